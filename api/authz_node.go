package api

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// nodeRules say what a node may because of the pods that are bound to it, which
// no role can say: Kubernetes' node authorizer.
type nodeRules struct{ s *Server }

// nodeOf is the name of the node that u is.
func nodeOf(u User) (string, bool) {
	name, ok := strings.CutPrefix(u.Name, nodePrefix)
	return name, ok && name != "" && slices.Contains(u.Groups, groupNodes)
}

var (
	reads  = []string{"get", "list", "watch"}
	writes = []string{"create", "update", "patch", "delete"}
)

// authorize says what a node may. What is not only its own is decided by the pods
// that are bound to it.
func (r *nodeRules) authorize(name string, a Attributes) error {
	read := slices.Contains(reads, a.Verb)
	switch a.Resource.GroupResource() {
	case nodes.GroupResource():
		switch {
		case read && a.Subresource == "":
			return nil // addresses and pod ranges of all nodes make the pod network
		case slices.Contains(writes, a.Verb) && (a.Subresource == "" || a.Subresource == "status"):
			if a.Name == name || a.Verb == "create" && a.Name == "" && a.Subresource == "" {
				return nil
			}
			return denied("node '" + name + "' cannot modify other nodes")
		}
	case services.GroupResource(), namespaces.GroupResource(),
		schema.GroupResource{Group: "discovery.k8s.io", Resource: "endpointslices"},
		schema.GroupResource{Group: "networking.k8s.io", Resource: "networkpolicies"},
		schema.GroupResource{Group: "node.k8s.io", Resource: "runtimeclasses"},
		schema.GroupResource{Group: "storage.k8s.io", Resource: "csidrivers"}:
		if read && a.Subresource == "" {
			return nil
		}
	case schema.GroupResource{Resource: "endpoints"}:
		if read {
			return nil
		}
	case schema.GroupResource{Resource: "events"}, schema.GroupResource{Group: "events.k8s.io", Resource: "events"}:
		if a.Verb == "create" || a.Verb == "patch" || a.Verb == "update" {
			return nil
		}
	case leases.GroupResource():
		if a.Namespace == corev1.NamespaceNodeLease && (a.Name == name || a.Verb == "create") {
			return nil
		}
		return denied("node '" + name + "' may use only its own lease")
	case pods.GroupResource():
		return r.nodePods(name, a)
	case secrets.GroupResource(), configMaps.GroupResource():
		return r.nodeReferenced(name, a)
	case volumeClaims.GroupResource():
		return r.nodeClaims(name, a)
	case volumes.GroupResource():
		return r.nodeVolumes(name, a)
	case csiNodes.GroupResource():
		if a.Subresource == "" && (a.Name == name || a.Verb == "create" && a.Name == "") {
			return nil
		}
		return denied("can only access CSINode with the same name as the requesting node")
	case attachments.GroupResource():
		return r.nodeAttachments(name, a)
	case serviceAccounts.GroupResource():
		switch {
		case a.Verb == "create" && a.Subresource == "token", a.Verb == "get" && a.Subresource == "":
			if r.anyPod(name, a.Namespace, func(p *corev1.Pod) bool { return p.Spec.ServiceAccountName == a.Name }) {
				return nil
			}
			return noRelationship(name, a)
		}
	case schema.GroupResource{Group: "authentication.k8s.io", Resource: "tokenreviews"},
		schema.GroupResource{Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}:
		if a.Verb == "create" {
			return nil // the kubelet API asks who calls it, and whether they may
		}
	}
	return denied("")
}

func noRelationship(node string, a Attributes) error {
	return denied("no relationship found between node '" + node + "' and this object")
}

// ofNode says whether a list or watch of pods is of a node's own.
func ofNode(node string, a Attributes) bool {
	f, err := fields.ParseSelector(a.FieldSelector)
	if err != nil {
		return false
	}
	on, ok := f.RequiresExactMatch("spec.nodeName")
	return ok && on == node
}

// nodePods lets a node see and change the pods that are bound to it.
func (r *nodeRules) nodePods(node string, a Attributes) error {
	switch a.Verb {
	case "list", "watch":
		if ofNode(node, a) || asksForPeers(a) { // of the latter it is shown little, see peers.go
			return nil
		}
		if a.Name == "" {
			return denied("can only list/watch pods with spec.nodeName field selector")
		}
	case "create":
		if a.Subresource == "" || a.Subresource == "eviction" && r.bound(node, a) {
			return nil // of a pod itself: only mirrors of its own, see authorizeNodeWrite
		}
		return noRelationship(node, a)
	case "get", "update", "patch", "delete":
		own := a.Subresource == "" && (a.Verb == "get" || a.Verb == "delete") || a.Subresource == "status" && a.Verb != "delete"
		if !own {
			return denied("")
		}
	default:
		return denied("")
	}
	if r.bound(node, a) {
		return nil
	}
	return noRelationship(node, a)
}

// bound says that the pod is bound to the node. What is not there at all is
// nobody's secret: the node learns that it is gone.
func (r *nodeRules) bound(node string, a Attributes) bool {
	rec := r.s.cfg.Storage.Get(pods.Resource, a.Namespace, a.Name)
	if rec == nil {
		return true
	}
	pod, ok := rec.Object().(*corev1.Pod)
	return ok && pod.Spec.NodeName == node
}

func (r *nodeRules) anyPod(node, namespace string, f func(*corev1.Pod) bool) bool {
	records, _ := r.s.cfg.Storage.List(pods.Resource, namespace)
	return slices.ContainsFunc(records, func(rec Record) bool {
		pod, ok := rec.Object().(*corev1.Pod)
		return ok && pod.Spec.NodeName == node && f(pod)
	})
}

// nodeReferenced lets a node read the secrets and config maps, each by its
// name, that a pod bound to it refers to.
func (r *nodeRules) nodeReferenced(node string, a Attributes) error {
	if a.Subresource != "" || !slices.Contains(reads, a.Verb) {
		return denied("can only read resources of this type")
	}
	if a.Name == "" || a.Namespace == "" {
		return denied("can only read namespaced object of this type by name")
	}
	ofSecret := a.Resource.Resource == secrets.Resource
	if !ofSecret && a.Namespace == metav1.NamespaceSystem && a.Name == SettingsName {
		return nil // what holds for all nodes
	}
	if r.anyPod(node, a.Namespace, func(p *corev1.Pod) bool { return refersTo(p, ofSecret, a.Name) }) {
		return nil
	}
	if ofSecret && a.Verb == "get" && r.volumeSecret(node, a.Namespace, a.Name) {
		return nil
	}
	return noRelationship(node, a)
}

// refersTo says whether a pod uses a secret, or else a config map.
func refersTo(pod *corev1.Pod, secret bool, name string) bool {
	spec := &pod.Spec
	if secret && slices.ContainsFunc(spec.ImagePullSecrets, func(s corev1.LocalObjectReference) bool { return s.Name == name }) {
		return true
	}
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for _, ct := range containers {
			if containerRefersTo(ct.Env, ct.EnvFrom, secret, name) {
				return true
			}
		}
	}
	for _, ct := range spec.EphemeralContainers {
		if containerRefersTo(ct.Env, ct.EnvFrom, secret, name) {
			return true
		}
	}
	return slices.ContainsFunc(spec.Volumes, func(v corev1.Volume) bool { return volumeRefersTo(&v, secret, name) })
}

func containerRefersTo(env []corev1.EnvVar, from []corev1.EnvFromSource, secret bool, name string) bool {
	for _, e := range env {
		if f := e.ValueFrom; f != nil {
			if secret && f.SecretKeyRef != nil && f.SecretKeyRef.Name == name || !secret && f.ConfigMapKeyRef != nil && f.ConfigMapKeyRef.Name == name {
				return true
			}
		}
	}
	for _, f := range from {
		if secret && f.SecretRef != nil && f.SecretRef.Name == name || !secret && f.ConfigMapRef != nil && f.ConfigMapRef.Name == name {
			return true
		}
	}
	return false
}

func volumeRefersTo(v *corev1.Volume, secret bool, name string) bool {
	if secret {
		if v.Secret != nil && v.Secret.SecretName == name || v.CSI != nil && v.CSI.NodePublishSecretRef != nil && v.CSI.NodePublishSecretRef.Name == name {
			return true
		}
	} else if v.ConfigMap != nil && v.ConfigMap.Name == name {
		return true
	}
	if v.Projected == nil {
		return false
	}
	return slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool {
		return secret && p.Secret != nil && p.Secret.Name == name || !secret && p.ConfigMap != nil && p.ConfigMap.Name == name
	})
}

// authorizeNodeWrite refuses what a node may not say of itself, though it may
// write the object: a node that was taken over must not draw pods to it.
func (c *call) authorizeNodeWrite(_ context.Context, verb string, obj, old Object) error {
	node, ok := nodeOf(c.user)
	if !ok || slices.Contains(c.user.Groups, groupMasters) {
		return nil
	}
	refuse := func(why string) error { return apierrors.NewForbidden(c.res.gr(), obj.GetName(), textError(why)) }
	switch o := obj.(type) {
	case *corev1.Node:
		if o.Name != node {
			return refuse("node \"" + node + "\" is not allowed to modify node \"" + o.Name + "\"")
		}
		var was corev1.Node
		if before, ok := old.(*corev1.Node); ok {
			was = *before
			if !apiequality.Semantic.DeepEqual(was.Spec.Taints, o.Spec.Taints) {
				return refuse("is not allowed to modify taints")
			}
			if !apiequality.Semantic.DeepEqual(was.OwnerReferences, o.OwnerReferences) {
				return refuse("is not allowed to modify owner references")
			}
		}
		for _, labels := range []map[string]string{o.Labels, was.Labels} {
			for key := range labels {
				before, had := was.Labels[key]
				now, has := o.Labels[key]
				if isRestrictedLabel(key) && (had != has || before != now) {
					return refuse("is not allowed to modify labels: " + key)
				}
			}
		}
	case *corev1.PersistentVolume:
		was, _ := old.(*corev1.PersistentVolume)
		return c.nodeVolumeWrite(node, o, was)
	case *storagev1.CSINode:
		if o.Name != node {
			return refuse("can only access CSINode with the same name as the requesting node")
		}
	case *corev1.PersistentVolumeClaim:
		was, _ := old.(*corev1.PersistentVolumeClaim)
		return c.nodeClaimWrite(o, was)
	case *corev1.Pod:
		if verb != "create" {
			return nil
		}
		if _, mirror := o.Annotations[corev1.MirrorPodAnnotationKey]; !mirror {
			return refuse("pod does not have \"" + corev1.MirrorPodAnnotationKey + "\" annotation, node \"" + node + "\" can only create mirror pods")
		}
		if o.Spec.NodeName != node {
			return refuse("node \"" + node + "\" can only create pods with spec.nodeName set to itself")
		}
	}
	return nil
}

func isRestrictedLabel(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	return domain == "node-restriction.kubernetes.io" || strings.HasSuffix(domain, ".node-restriction.kubernetes.io")
}
