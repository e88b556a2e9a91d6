package kinds

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	helper "k8s.io/component-helpers/resource"
)

// What quotas count.

// countedByName are the resources that a quota may count by their plain name.
var countedByName = []string{"configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets", "services"}

const classSuffix = ".storageclass.storage.k8s.io/"

// QuotaConcerns says whether a quota's resource may be used by objects of a
// kind, which Resource() names.
func QuotaConcerns(name corev1.ResourceName, kind string) bool {
	text := string(name)
	switch {
	case text == "count/"+kind || text == kind && slices.Contains(countedByName, kind):
		return true
	case kind == "pods":
		return podResource(name)
	case kind == "services":
		return name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case kind == "persistentvolumeclaims":
		return name == corev1.ResourceRequestsStorage || name == corev1.ResourceStorage || strings.Contains(text, classSuffix)
	}
	return false
}

// QuotaUsage is what an object of a kind uses of all that quotas count.
func QuotaUsage(kind string, obj runtime.Object, now time.Time) corev1.ResourceList {
	one := *resource.NewQuantity(1, resource.DecimalSI)
	used := corev1.ResourceList{corev1.ResourceName("count/" + kind): one}
	switch o := obj.(type) {
	case *corev1.Pod:
		if podEnded(o, now) {
			return used // it is there, and takes nothing
		}
		podUsage(used, o)
	case *corev1.Service:
		ports := 0
		for _, p := range o.Spec.Ports {
			if p.NodePort != 0 || needsNodePort(o) {
				ports++
			}
		}
		if o.Spec.Type == corev1.ServiceTypeLoadBalancer {
			used[corev1.ResourceServicesLoadBalancers] = one
		}
		if ports > 0 && o.Spec.Type != corev1.ServiceTypeClusterIP && o.Spec.Type != corev1.ServiceTypeExternalName {
			used[corev1.ResourceServicesNodePorts] = *resource.NewQuantity(int64(ports), resource.DecimalSI)
		}
	case *corev1.PersistentVolumeClaim:
		class := ClaimClass(o)
		if q, ok := o.Spec.Resources.Requests[corev1.ResourceStorage]; ok {
			used[corev1.ResourceRequestsStorage] = q
			if class != "" {
				used[corev1.ResourceName(class+classSuffix+"requests.storage")] = q
			}
		}
		if class != "" {
			used[corev1.ResourceName(class+classSuffix+"persistentvolumeclaims")] = one
		}
	}
	if slices.Contains(countedByName, kind) {
		used[corev1.ResourceName(kind)] = one
	}
	return used
}

// podEnded says that a pod takes nothing any more.
func podEnded(p *corev1.Pod, now time.Time) bool {
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return true
	}
	return p.DeletionTimestamp != nil && p.DeletionGracePeriodSeconds != nil && now.After(p.DeletionTimestamp.Time)
}

func podUsage(used corev1.ResourceList, p *corev1.Pod) {
	for name, q := range helper.PodRequests(p, helper.PodResourcesOptions{}) {
		if slices.Contains(containerResources, name) || isHugePages(name) {
			used[name] = q
		}
		used[requestsPrefix+name] = q
	}
	for name, q := range helper.PodLimits(p, helper.PodResourcesOptions{}) {
		used["limits."+name] = q
	}
}

// QuotaMatches says whether a quota's scopes let it count an object.
func QuotaMatches(q *corev1.ResourceQuota, obj runtime.Object) bool {
	pod, isPod := obj.(*corev1.Pod)
	in := func(scope corev1.ResourceQuotaScope) bool {
		if !isPod {
			return false
		}
		switch scope {
		case corev1.ResourceQuotaScopeTerminating:
			return pod.Spec.ActiveDeadlineSeconds != nil
		case corev1.ResourceQuotaScopeNotTerminating:
			return pod.Spec.ActiveDeadlineSeconds == nil
		case corev1.ResourceQuotaScopeBestEffort:
			return QOSClass(pod) == corev1.PodQOSBestEffort
		case corev1.ResourceQuotaScopeNotBestEffort:
			return QOSClass(pod) != corev1.PodQOSBestEffort
		case corev1.ResourceQuotaScopePriorityClass:
			return pod.Spec.PriorityClassName != ""
		case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
			return crossesNamespaces(pod)
		}
		return false
	}
	for _, s := range q.Spec.Scopes {
		if !in(s) {
			return false
		}
	}
	if q.Spec.ScopeSelector == nil {
		return true
	}
	for _, r := range q.Spec.ScopeSelector.MatchExpressions {
		value := ""
		switch o := obj.(type) {
		case *corev1.Pod:
			if r.ScopeName != corev1.ResourceQuotaScopePriorityClass {
				if !in(r.ScopeName) {
					return false
				}
				continue
			}
			value = o.Spec.PriorityClassName
		case *corev1.PersistentVolumeClaim:
			if r.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass {
				return false
			}
			value = deref(o.Spec.VolumeAttributesClassName)
		default:
			return false
		}
		ok := false
		switch r.Operator {
		case corev1.ScopeSelectorOpIn:
			ok = slices.Contains(r.Values, value)
		case corev1.ScopeSelectorOpNotIn:
			ok = !slices.Contains(r.Values, value)
		case corev1.ScopeSelectorOpExists:
			ok = value != ""
		case corev1.ScopeSelectorOpDoesNotExist:
			ok = value == ""
		}
		if !ok {
			return false
		}
	}
	return true
}

func crossesNamespaces(pod *corev1.Pod) bool {
	a := pod.Spec.Affinity
	if a == nil {
		return false
	}
	var terms []*corev1.PodAffinityTerm
	if a.PodAffinity != nil {
		terms = append(terms, podAffinityTerms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)...)
	}
	if a.PodAntiAffinity != nil {
		terms = append(terms, podAffinityTerms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)...)
	}
	return slices.ContainsFunc(terms, func(t *corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}

// QuotaLacks names what a pod must say because a quota counts it, by container:
// nothing if it says all.
func QuotaLacks(pod *corev1.Pod, hard corev1.ResourceList) map[corev1.ResourceName][]string {
	lacks := map[corev1.ResourceName][]string{}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for name := range hard {
			text, list := string(name), c.Resources.Requests
			if rest, ok := strings.CutPrefix(text, "limits."); ok {
				text, list = rest, c.Resources.Limits
			}
			text = strings.TrimPrefix(text, requestsPrefix)
			if !slices.Contains(containerResources, corev1.ResourceName(text)) || !podResource(name) {
				continue
			}
			if _, ok := list[corev1.ResourceName(text)]; ok {
				continue
			}
			if r := pod.Spec.Resources; r != nil { // said for the pod as a whole
				whole := r.Requests
				if strings.HasPrefix(string(name), "limits.") {
					whole = r.Limits
				}
				if _, ok := whole[corev1.ResourceName(text)]; ok {
					continue
				}
			}
			lacks[name] = append(lacks[name], c.Name)
		}
	}
	return lacks
}
