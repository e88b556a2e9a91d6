package agent

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	podresource "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// admit decides whether this node can take a pod on beside those that it has.
// A pod that the scheduler never saw (spec.nodeName written by hand), or placed
// by what was true a moment ago, is refused here.
//
// What a pod takes up is free for others as soon as the API has the pod no
// more, or knows that it is over; here it still ends. Who comes meanwhile and
// finds no room only for that has to wait, not to fail.
func (a *Agent) admit(by *podWorker, pod *corev1.Pod) (refused *failure, crowded bool) {
	a.admission.Lock()
	defer a.admission.Unlock()
	others, staying := a.neighbours(by)
	node, allocatable := a.node.labelled(), a.node.allocatable()
	if refused = a.permissible(pod); refused == nil {
		refused = a.pressure.refuses(pod)
	}
	if refused != nil {
		return refused, false
	}
	refused = admissible(pod, others, node, allocatable)
	if refused == nil {
		a.accepted[by.uid] = true
		poke(a.reckon)
		return nil, false
	}
	if len(staying) < len(others) && admissible(pod, staying, node, allocatable) == nil ||
		critical(pod) && strings.HasPrefix(refused.Reason, outOf) && a.preempt(by, pod, node, allocatable) {
		a.crowded[by] = true
		return nil, true
	}
	return refused, false
}

// preempt ends pods so that one that is critical has room, and says whether it
// will have: none that are critical themselves, and of the others, first those of
// the least quality of service and priority, no more than it takes. a.admission
// is held.
func (a *Agent) preempt(by *podWorker, pod *corev1.Pod, node *corev1.Node, allocatable corev1.ResourceList) bool {
	type other struct {
		worker *podWorker
		pod    *corev1.Pod
	}
	var kept []*corev1.Pod
	var mayGo []other
	for _, w := range a.allWorkers() {
		if w == by || !a.accepted[w.uid] {
			continue
		}
		w.mu.Lock()
		leaves := w.removed || w.evicted != nil || w.shown.rec.Failed != nil || w.shown.rec.Down
		w.mu.Unlock()
		p := w.holding()
		switch {
		case leaves || terminalPhase(p.Status.Phase): // there is room once it is down
		case critical(p):
			kept = append(kept, p)
		default:
			mayGo = append(mayGo, other{w, p})
		}
	}
	if admissible(pod, kept, node, allocatable) != nil {
		return false
	}
	worth := []corev1.PodQOSClass{corev1.PodQOSBestEffort, corev1.PodQOSBurstable, corev1.PodQOSGuaranteed}
	slices.SortStableFunc(mayGo, func(x, y other) int { // the last to go first
		return cmp.Or(cmp.Compare(slices.Index(worth, qosClass(y.pod)), slices.Index(worth, qosClass(x.pod))), cmp.Compare(priorityOf(y.pod), priorityOf(x.pod)))
	})
	for _, o := range mayGo {
		if with := append(kept, o.pod); admissible(pod, with, node, allocatable) == nil {
			kept = with
			continue
		}
		o.worker.mu.Lock()
		o.worker.evicted = &failure{Reason: reasonPreempted, Message: "Preempted in order to admit critical pod"}
		o.worker.mu.Unlock()
		poke(o.worker.wake)
	}
	return true
}

func priorityOf(pod *corev1.Pod) int32 {
	if pod.Spec.Priority == nil {
		return 0
	}
	return *pod.Spec.Priority
}

// neighbours are the pods that take something of this node beside by's, and
// those of them that the API does not know to be over. a.admission is held.
func (a *Agent) neighbours(by *podWorker) (others, staying []*corev1.Pod) {
	for _, w := range a.allWorkers() {
		if w == by || !a.accepted[w.uid] {
			continue
		}
		w.mu.Lock()
		v, removed := w.shown, w.removed
		w.mu.Unlock()
		if v.rec.Down {
			continue
		}
		pod := w.holding()
		others = append(others, pod)
		if !removed && !terminalPhase(pod.Status.Phase) {
			staying = append(staying, pod)
		}
	}
	return others, staying
}

// requested is what pods take, in units: what is allocated to them, or what
// they still have of more.
func requested(pods []*corev1.Pod) map[corev1.ResourceName]int64 {
	options := podresource.PodResourcesOptions{UseStatusResources: true, InPlacePodLevelResourcesVerticalScalingEnabled: true}
	used := map[corev1.ResourceName]int64{}
	for _, o := range pods {
		for name, q := range podresource.PodRequests(o, options) {
			used[name] += units(name, q.MilliValue(), q.Value())
		}
	}
	return used
}

// roomMade lets those that wait for room ask again: a pod is down.
func (a *Agent) roomMade() {
	poke(a.pressure.wake) // it may wait for this pod
	a.admission.Lock()
	defer a.admission.Unlock()
	poke(a.reckon)
	for w := range a.crowded {
		delete(a.crowded, w)
		w.mu.Lock()
		w.crowded = false
		w.mu.Unlock()
		poke(w.wake)
	}
	for w := range a.resizes {
		poke(w.wake)
	}
}

// permissible refuses what this node's kernel or administrator does not allow.
func (a *Agent) permissible(pod *corev1.Pod) *failure {
	if os := pod.Spec.OS; os != nil && os.Name != "" && string(os.Name) != runtime.GOOS {
		return &failure{Reason: "PodOSNotSupported", Message: "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS"}
	}
	if err := checkSysctls(pod, a.cfg.UnsafeSysctls); err != nil {
		return &failure{Reason: "SysctlForbidden", Message: "Pod was rejected: forbidden sysctl: " + err.Error()}
	}
	if err := theAppArmor().check(pod); err != nil {
		return &failure{Reason: "AppArmor", Message: "Pod was rejected: Cannot enforce AppArmor: " + err.Error()}
	}
	return nil
}

// The reasons of a pod that there is no room for begin with outOf, and name what
// there is too little of.
const (
	outOf           = "OutOf"
	reasonPreempted = "Preempting"
)

// admissible is admit's decision.
func admissible(pod *corev1.Pod, others []*corev1.Pod, node *corev1.Node, allocatable corev1.ResourceList) *failure {
	refuse := func(reason, format string, args ...any) *failure {
		return &failure{Reason: reason, Message: "Pod was rejected: " + fmt.Sprintf(format, args...)}
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); err != nil || !ok {
		return refuse("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
	}
	if limit, ok := allocatable[corev1.ResourcePods]; ok && int64(len(others))+1 > limit.Value() {
		return refuse(outOf+"pods", "Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", len(others), limit.Value())
	}
	used := requested(others)
	requests := podresource.PodRequests(pod, podresource.PodResourcesOptions{})
	for _, name := range sortedResources(requests) {
		q := requests[name]
		want := units(name, q.MilliValue(), q.Value())
		have, known := allocatable[name]
		if !known && strings.Contains(string(name), "/") {
			continue // the cluster's, as somebody told the node's object: the scheduler counts it
		}
		capacity := units(name, have.MilliValue(), have.Value())
		if want > 0 && used[name]+want > capacity {
			return refuse(outOf+string(name), "Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, want, used[name], capacity)
		}
	}
	taken := hostPorts(others...)
	for p := range hostPorts(pod) {
		for t := range taken {
			if p.conflicts(t) {
				return refuse("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	return nil
}

func units(name corev1.ResourceName, milli, whole int64) int64 {
	if name == corev1.ResourceCPU {
		return milli
	}
	return whole
}

func sortedResources(l corev1.ResourceList) []corev1.ResourceName {
	byName := map[string]bool{}
	for n := range l {
		byName[string(n)] = true
	}
	var out []corev1.ResourceName
	for _, n := range sortedKeys(byName) {
		out = append(out, corev1.ResourceName(n))
	}
	return out
}

type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

// conflicts: the same port of one address, where 0.0.0.0 is all of them.
func (p hostPort) conflicts(o hostPort) bool {
	return p.port == o.port && p.protocol == o.protocol && (p.ip == o.ip || p.ip == "0.0.0.0" || o.ip == "0.0.0.0")
}

func hostPorts(pods ...*corev1.Pod) map[hostPort]bool {
	ports := map[hostPort]bool{}
	for _, pod := range pods {
		for kind, c := range everyContainer(pod) {
			for _, p := range c.Ports {
				if p.HostPort == 0 || kind == initial {
					continue
				}
				h := hostPort{p.HostIP, p.Protocol, p.HostPort}
				if h.ip == "" {
					h.ip = "0.0.0.0"
				}
				if h.protocol == "" {
					h.protocol = corev1.ProtocolTCP
				}
				ports[h] = true
			}
		}
	}
	return ports
}
