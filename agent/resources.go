package agent

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
)

const (
	quotaPeriod     = 100000 // microseconds
	minQuota        = 1000
	minShares       = 2
	sharesPerCPU    = 1024
	oomGuaranteed   = -997
	oomBestEffort   = 1000
	criticalPodPrio = 2000000000
)

// qosClass is the pod's quality of service: what the API computed, or the same
// computed here for a pod that says none.
func qosClass(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	any, guaranteed := false, true
	all := allContainers(pod)
	if podresource.IsPodLevelResourcesSet(pod) {
		all = []*corev1.Container{{Resources: *pod.Spec.Resources}}
	}
	for _, c := range all {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			req, hasReq := c.Resources.Requests[name]
			lim, hasLim := c.Resources.Limits[name]
			hasReq, hasLim = hasReq && !req.IsZero(), hasLim && !lim.IsZero()
			any = any || hasReq || hasLim
			if !hasLim || hasReq && req.Cmp(lim) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// cgroupParent is where the runtime puts the pod's cgroup, below its own.
func cgroupParent(pod *corev1.Pod) string {
	switch qosClass(pod) {
	case corev1.PodQOSBestEffort:
		return "besteffort"
	case corev1.PodQOSBurstable:
		return "burstable"
	}
	return ""
}

// linuxResources turns requests and limits into cgroup settings. Zero limits
// mean none.
func linuxResources(requests, limits corev1.ResourceList) *specs.LinuxResources {
	cpu := &specs.LinuxCPU{}
	r := &specs.LinuxResources{CPU: cpu}
	request, ok := requests[corev1.ResourceCPU]
	limit := limits[corev1.ResourceCPU]
	if !ok {
		request = limit
	}
	shares := max(uint64(request.MilliValue())*sharesPerCPU/1000, minShares)
	cpu.Shares = &shares
	if m := limit.MilliValue(); m > 0 {
		quota, period := max(m*quotaPeriod/1000, minQuota), uint64(quotaPeriod)
		cpu.Quota, cpu.Period = &quota, &period
	}
	if m, ok := limits[corev1.ResourceMemory]; ok && m.Value() > 0 {
		bytes := m.Value()
		r.Memory = &specs.LinuxMemory{Limit: &bytes}
	}
	return r
}

// podResources are the settings of the pod's own cgroup. The limits of
// containers bind the pod as a whole only if each of them has one.
func podResources(pod *corev1.Pod) *specs.LinuxResources {
	requests := podresource.PodRequests(pod, podresource.PodResourcesOptions{})
	limits := podresource.PodLimits(pod, podresource.PodResourcesOptions{})
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if q := podLevelLimit(pod, name); !q.IsZero() {
			continue
		}
		for _, c := range allContainers(pod) {
			if q, ok := c.Resources.Limits[name]; !ok || q.IsZero() {
				delete(limits, name)
			}
		}
	}
	return linuxResources(requests, limits)
}

// podResources are those, and the bound of the pod's processes.
func (a *Agent) podResources(pod *corev1.Pod) *specs.LinuxResources {
	r := podResources(pod)
	pids := a.cfg.PodPIDs
	if pids == 0 {
		pids = podPIDs(a.node.memory())
	}
	if pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	return r
}

// podLevelLimit is the limit that was set for the pod as a whole, zero if none.
func podLevelLimit(pod *corev1.Pod, name corev1.ResourceName) resource.Quantity {
	if pod.Spec.Resources == nil {
		return resource.Quantity{}
	}
	return pod.Spec.Resources.Limits[name]
}

// containerResources are the settings of a container's cgroup. One without a
// limit of its own has that of its pod.
func containerResources(pod *corev1.Pod, c *corev1.Container) *specs.LinuxResources {
	limits := c.Resources.Limits
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		q := podLevelLimit(pod, name)
		if own := c.Resources.Limits[name]; !own.IsZero() || q.IsZero() {
			continue
		}
		limits = maps.Clone(limits)
		if limits == nil {
			limits = corev1.ResourceList{}
		}
		limits[name] = q
	}
	return linuxResources(c.Resources.Requests, limits)
}

// wholeOOM has the kernel kill all of a container that ran out of memory, not
// one process of it. Only cgroup version 2 knows that.
var wholeOOM = map[string]string{"memory.oom.group": "1"}

// oomScore is the container's oom_score_adj on a node with that much memory:
// the smaller its share of requested memory, the sooner it is killed.
func oomScore(pod *corev1.Pod, c *corev1.Container, memory int64) int {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= criticalPodPrio {
		return oomGuaranteed
	}
	switch qosClass(pod) {
	case corev1.PodQOSGuaranteed:
		return oomGuaranteed
	case corev1.PodQOSBestEffort:
		return oomBestEffort
	}
	if memory <= 0 {
		return oomBestEffort - 1
	}
	request := c.Resources.Requests.Memory().Value()
	if podresource.IsPodLevelRequestsSet(pod) {
		// What the pod requests beyond its containers is all of theirs.
		all := allContainers(pod)
		rest := pod.Spec.Resources.Requests.Memory().Value()
		for _, other := range all {
			rest -= other.Resources.Requests.Memory().Value()
		}
		request += max(rest, 0) / int64(len(all))
	}
	if initKind(c) == sidecar && slices.ContainsFunc(pod.Spec.InitContainers, func(i corev1.Container) bool { return i.Name == c.Name }) {
		// A sidecar is not killed before the containers that it serves.
		least := int64(math.MaxInt64)
		for i := range pod.Spec.Containers {
			least = min(least, pod.Spec.Containers[i].Resources.Requests.Memory().Value())
		}
		request = max(request, least)
	}
	score := 1000 - int(1000*request/memory)
	return min(max(score, 1000+oomGuaranteed), oomBestEffort-1)
}

// resourceValue is what a resourceFieldRef names, in units of its divisor,
// rounded up. A limit that is not set is the pod's, or else the node's
// allocatable amount.
func resourceValue(pod *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, bool) {
	var q resource.Quantity
	var ok bool
	name := corev1.ResourceName("")
	if after, found := strings.CutPrefix(ref.Resource, "limits."); found {
		name = corev1.ResourceName(after)
		if q, ok = c.Resources.Limits[name]; !ok || q.IsZero() {
			if q = podLevelLimit(pod, name); q.IsZero() {
				q = allocatable[name]
			}
		}
	} else if after, found := strings.CutPrefix(ref.Resource, "requests."); found {
		name = corev1.ResourceName(after)
		q = c.Resources.Requests[name]
	} else {
		return "", false
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == corev1.ResourceCPU {
		return strconv.FormatInt(ceilDiv(q.MilliValue(), divisor.MilliValue()), 10), true
	}
	return strconv.FormatInt(ceilDiv(q.Value(), divisor.Value()), 10), true
}

func ceilDiv(a, b int64) int64 {
	if b <= 0 {
		return a
	}
	return (a + b - 1) / b
}

// allContainers are the init and the ordinary containers, in that order.
func allContainers(pod *corev1.Pod) []*corev1.Container {
	all := make([]*corev1.Container, 0, len(pod.Spec.InitContainers)+len(pod.Spec.Containers))
	for i := range pod.Spec.InitContainers {
		all = append(all, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		all = append(all, &pod.Spec.Containers[i])
	}
	return all
}
