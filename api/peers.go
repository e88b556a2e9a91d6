package api

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
)

// A node enforces network policies, which name pods of the whole cluster by
// their labels. So it may follow all pods that have an address, by the field
// selector PeersSelector, and is shown of each what a policy can ask for: its
// names, labels, addresses and named ports. What a pod runs, with which
// arguments and variables, stays between it and its own node.

// PeersSelector selects the pods that a network policy may mean.
const PeersSelector = "status.podIP!="

// asksForPeers says whether a list or watch is that of PeersSelector.
func asksForPeers(a Attributes) bool {
	if a.Resource != pods || a.Subresource != "" || a.Verb != "list" && a.Verb != "watch" {
		return false
	}
	s, err := fields.ParseSelector(a.FieldSelector)
	return err == nil && slices.ContainsFunc(s.Requirements(), func(r fields.Requirement) bool {
		return r.Field == "status.podIP" && r.Operator == selection.NotEquals && r.Value == ""
	})
}

// shownTo is the resource as a user sees it.
func (s *Server) shownTo(u User, res *resource, a Attributes) *resource {
	name, isNode := nodeOf(u)
	if !isNode || slices.Contains(u.Groups, groupMasters) || !asksForPeers(a) || ofNode(name, a) {
		return res
	}
	k := *res.Kind
	k.FromStored = func(obj runtime.Object) (runtime.Object, error) { return asPeer(obj.(*corev1.Pod)), nil }
	return &resource{Kind: &k, gvr: res.gvr, stored: res.stored, hooks: res.hooks}
}

// asPeer is what others than its own node may know of a pod.
func asPeer(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, Labels: p.Labels, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec:   corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	ports := func(all []corev1.Container) (out []corev1.Container) {
		for _, c := range all {
			if named := slices.DeleteFunc(slices.Clone(c.Ports), func(p corev1.ContainerPort) bool { return p.Name == "" }); len(named) > 0 {
				out = append(out, corev1.Container{Name: c.Name, Ports: named, RestartPolicy: c.RestartPolicy})
			}
		}
		return out
	}
	out.Spec.InitContainers, out.Spec.Containers = ports(p.Spec.InitContainers), ports(p.Spec.Containers)
	return out
}
