package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	podresource "k8s.io/component-helpers/resource"
)

// A running pod's resources are known in three versions. What is wished for is
// in the API's spec. What the node has allocated is in the spec of the worker's
// pod: it is a wish that was found to fit, it is kept on disk with the pod's
// manifest, and everything that the agent does goes by it. What is in force is
// in the record: of each container what it was started with or updated to, of
// the pod its cgroup's settings. A wish that does not fit stays a wish.

// sameResources says whether two versions of a pod ask for the same.
func sameResources(a, b *corev1.Pod) bool {
	same := func(x, y []corev1.Container) bool {
		return slices.EqualFunc(x, y, func(c, d corev1.Container) bool { return equalRequirements(&c.Resources, &d.Resources) })
	}
	return same(a.Spec.Containers, b.Spec.Containers) && same(a.Spec.InitContainers, b.Spec.InitContainers) &&
		equalRequirements(orNone(a.Spec.Resources), orNone(b.Spec.Resources))
}

func orNone(r *corev1.ResourceRequirements) *corev1.ResourceRequirements {
	if r == nil {
		return &corev1.ResourceRequirements{}
	}
	return r
}

func equalRequirements(a, b *corev1.ResourceRequirements) bool {
	return equalLists(a.Requests, b.Requests) && equalLists(a.Limits, b.Limits)
}

func equalLists(a, b corev1.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if other, ok := b[name]; !ok || q.Cmp(other) != 0 {
			return false
		}
	}
	return true
}

// withResources is pod with the resources that of has; pod itself if they are
// the same. Containers that of does not know keep theirs.
func withResources(pod, of *corev1.Pod) *corev1.Pod {
	if of == nil || sameResources(pod, of) {
		return pod
	}
	out := *pod
	out.Spec.Resources = of.Spec.Resources
	out.Spec.Containers, out.Spec.InitContainers = slices.Clone(pod.Spec.Containers), slices.Clone(pod.Spec.InitContainers)
	for _, c := range allContainers(&out) {
		if known := containerNamed(of, c.Name); known != nil {
			c.Resources = known.Resources
		}
	}
	return &out
}

// cgroupAmounts are the settings of a pod's cgroup, as a record keeps them.
type cgroupAmounts struct {
	Shares uint64 `json:"shares,omitempty"`
	Quota  int64  `json:"quota,omitempty"`  // per quotaPeriod; 0: none
	Memory int64  `json:"memory,omitempty"` // bytes; 0: none
}

func amountsOf(pod *corev1.Pod) cgroupAmounts { return amounts(podResources(pod)) }

func amounts(r *specs.LinuxResources) cgroupAmounts {
	a := cgroupAmounts{Shares: *r.CPU.Shares}
	if r.CPU.Quota != nil {
		a.Quota = *r.CPU.Quota
	}
	if r.Memory != nil && r.Memory.Limit != nil {
		a.Memory = *r.Memory.Limit
	}
	return a
}

// ceiling is enough for both; none is more than any amount.
func (a cgroupAmounts) ceiling(b cgroupAmounts) cgroupAmounts {
	most := func(x, y int64) int64 {
		if x == 0 || y == 0 {
			return 0
		}
		return max(x, y)
	}
	return cgroupAmounts{max(a.Shares, b.Shares), most(a.Quota, b.Quota), most(a.Memory, b.Memory)}
}

func (a cgroupAmounts) resources() *specs.LinuxResources {
	orUnlimited := func(n int64) *int64 {
		if n == 0 {
			n = -1
		}
		return &n
	}
	period := uint64(quotaPeriod)
	return &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: &a.Shares, Quota: orUnlimited(a.Quota), Period: &period},
		Memory: &specs.LinuxMemory{Limit: orUnlimited(a.Memory)},
	}
}

// resizeState is how a wish for other resources stands.
type resizeState struct {
	pending    *failure // why it is not allocated: Deferred or Infeasible
	generation int64    // of the pod whose wish was allocated last
	failed     string   // why the allocated resources are not in force
	announced  bool     // that the present resize has started
}

// allocate gives the pod what the API wishes for it, if the node has it.
func (w *podWorker) allocate(wish *corev1.Pod) {
	if w.rec.Started.IsZero() || w.rec.Failed != nil || w.rec.Down || wish.DeletionTimestamp != nil || terminalPhase(wish.Status.Phase) || sameResources(wish, w.pod) {
		if w.resize.pending != nil {
			w.resize.pending = nil
			w.a.withdrawResize(w)
		}
		return
	}
	wish = withResources(w.pod, wish)
	refused := w.a.allocate(w, wish)
	if refused != nil {
		if before := w.resize.pending; before == nil || before.Reason != refused.Reason {
			w.resizeEvent(corev1.EventTypeWarning, "Resize"+refused.Reason, "Pod resize "+refused.Reason, wish, refused.Message)
		}
		w.resize.pending = refused
		return
	}
	w.pod = wish
	w.resize = resizeState{generation: wish.Generation, announced: true}
	w.resizing = attempts{}
	w.mu.Lock()
	w.stale = true // volumes may show resources
	w.mu.Unlock()
	w.resizeEvent(corev1.EventTypeNormal, "ResizeStarted", "Pod resize started", wish, "")
}

func (w *podWorker) resizeEvent(kind, reason, what string, pod *corev1.Pod, problem string) {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	told := struct {
		Resources  *corev1.ResourceRequirements `json:"resources,omitempty"`
		Containers []container                  `json:"containers"`
		Generation int64                        `json:"generation"`
		Error      string                       `json:"error,omitempty"`
	}{Resources: pod.Spec.Resources, Generation: pod.Generation, Error: problem}
	for _, c := range pod.Spec.Containers {
		told.Containers = append(told.Containers, container{c.Name, c.Resources})
	}
	data, err := json.Marshal(told)
	if err != nil {
		return // API types always marshal
	}
	w.event(nil, kind, reason, what+": "+string(data))
}

// allocate decides whether the node can give a pod what is wished for it, and
// counts it as given if so. Of several pods that wait for room, the one of
// higher rank has it.
func (a *Agent) allocate(by *podWorker, wish *corev1.Pod) *failure {
	a.admission.Lock()
	defer a.admission.Unlock()
	a.resizes[by] = wish
	refused := a.fits(by, wish)
	if refused == nil {
		for other, theirs := range a.resizes {
			if other != by && outranks(theirs, wish) && a.fits(other, theirs) == nil {
				// It was told of the room, as we were.
				refused = a.deferral(wish)
			}
		}
	}
	if refused != nil {
		return refused
	}
	delete(a.resizes, by)
	poke(a.reckon)
	by.mu.Lock()
	by.reserved = wish
	by.mu.Unlock()
	for other := range a.resizes {
		poke(other.wake) // it may have waited for us only
	}
	return nil
}

// holding is the pod with the resources that the node has allocated to it.
func (w *podWorker) holding() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return withResources(w.shown.pod, w.reserved)
}

func (a *Agent) withdrawResize(by *podWorker) {
	a.admission.Lock()
	defer a.admission.Unlock()
	delete(a.resizes, by)
	for other := range a.resizes {
		poke(other.wake)
	}
}

func (a *Agent) deferral(wish *corev1.Pod) *failure {
	return &failure{Reason: corev1.PodReasonDeferred, Message: fmt.Sprintf("Node didn't have enough resource for pod %s beside resizes of pods of higher priority", wish.Name)}
}

// fits says why the node cannot give by's pod what is wished for it. What
// does not grow always fits. a.admission is held.
func (a *Agent) fits(by *podWorker, wish *corev1.Pod) *failure {
	allocatable := a.node.allocatable()
	have := by.holding()
	options := podresource.PodResourcesOptions{}
	want, had := podresource.PodRequests(wish, options), podresource.PodRequests(withResources(wish, have), options)
	var used map[corev1.ResourceName]int64
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		q, before, capacity := want[name], had[name], allocatable[name]
		if q.Cmp(before) <= 0 {
			continue
		}
		asked, limit := units(name, q.MilliValue(), q.Value()), units(name, capacity.MilliValue(), capacity.Value())
		if asked > limit {
			return &failure{Reason: corev1.PodReasonInfeasible, Message: fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", name, asked, limit)}
		}
		if used == nil {
			_, staying := a.neighbours(by) // what leaves gives back what it has
			used = requested(staying)
		}
		if used[name]+asked > limit {
			return &failure{Reason: corev1.PodReasonDeferred, Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, asked, used[name], limit)}
		}
	}
	return nil
}

// outranks says which of two pods has room first: the one of higher priority,
// then the one that is promised more.
func outranks(a, b *corev1.Pod) bool {
	if x, y := priorityOf(a), priorityOf(b); x != y {
		return x > y
	}
	return qosClass(a) == corev1.PodQOSGuaranteed && qosClass(b) != corev1.PodQOSGuaranteed
}

// needsRestart says whether a container is to get its new resources by a
// restart: it says so of one that changes.
func needsRestart(c *corev1.Container, has *corev1.ResourceRequirements) bool {
	return slices.ContainsFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
		if p.RestartPolicy != corev1.RestartContainer {
			return false
		}
		differs := func(a, b corev1.ResourceList) bool {
			x, y := a[p.ResourceName], b[p.ResourceName]
			return x.Cmp(y) != 0
		}
		return differs(c.Resources.Requests, has.Requests) || differs(c.Resources.Limits, has.Limits)
	})
}

// behind says whether a running container lacks what it is allocated, itself or
// as the limits of its pod.
func behind(pod *corev1.Pod, c *corev1.Container, rec *containerRecord) bool {
	if rec.Resources == nil {
		return false
	}
	if !equalRequirements(rec.Resources, &c.Resources) {
		return true
	}
	return rec.Cgroup != nil && pod.Spec.Resources != nil && *rec.Cgroup != amounts(containerResources(pod, c))
}

// resizeNeeded says whether something allocated is not in force and can be put
// in force without a restart; progress, whether anything is not in force.
func (w *podWorker) resizeNeeded(views map[string]containerView) (needed, progress bool) {
	if w.rec.Cgroup == nil || w.rec.Down {
		return false, false
	}
	for _, c := range allContainers(w.pod) {
		rec := w.rec.Containers[c.Name]
		if rec == nil || !views[c.Name].running || !behind(w.pod, c, rec) {
			continue
		}
		progress = true
		needed = needed || !needsRestart(c, rec.Resources)
	}
	target := amountsOf(w.pod)
	if progress {
		return needed || *w.rec.Cgroup != w.rec.Cgroup.ceiling(target), true
	}
	differs := *w.rec.Cgroup != target
	return differs, differs
}

// applyResources puts in force what is allocated: first the pod's cgroup gets
// enough for before and after, then each container what is its own, and when
// all have it the pod's cgroup what remains. No cgroup is ever smaller than
// what is in it.
func (w *podWorker) applyResources(views map[string]containerView) {
	pod, podID := w.pod, string(w.uid)
	inForce, target := *w.rec.Cgroup, amountsOf(w.pod)
	type update struct {
		id, name string
		memory   int64 // the limit before, 0: none
		to       cgroupAmounts
		of       corev1.ResourceRequirements
	}
	var updates []update
	waiting := false // for a restart
	for _, c := range allContainers(pod) {
		rec := w.rec.Containers[c.Name]
		switch {
		case rec == nil || !views[c.Name].running || !behind(pod, c, rec):
		case needsRestart(c, rec.Resources):
			waiting = true
		default:
			u := update{id: containerID(c.Name, rec.Attempt), name: c.Name, to: amounts(containerResources(pod, c)), of: c.Resources}
			if u.memory = rec.Resources.Limits.Memory().Value(); rec.Cgroup != nil {
				u.memory = rec.Cgroup.Memory
			}
			updates = append(updates, u)
		}
	}
	w.start("resize", idle, 0, func(ctx context.Context) func() {
		var errs []error
		done := map[string]update{}
		set := func(to cgroupAmounts) {
			if to == inForce {
				return
			}
			err := w.memoryAllows("", "pod", inForce.Memory, to.Memory)
			if err == nil {
				err = w.a.cfg.Runtime.UpdatePod(ctx, podID, to.resources())
			}
			if err != nil {
				errs = append(errs, err)
				return
			}
			inForce = to
		}
		set(inForce.ceiling(target))
		if len(errs) == 0 {
			for _, u := range updates {
				err := w.memoryAllows(u.id, fmt.Sprintf("container %q", u.name), u.memory, u.to.Memory)
				if err == nil {
					err = w.a.cfg.Runtime.UpdateContainer(ctx, podID, u.id, u.to.resources())
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				done[u.name] = u
			}
		}
		if len(errs) == 0 && !waiting {
			set(target)
		}
		err := errors.Join(errs...)
		return func() {
			w.rec.Cgroup = &inForce
			for name, u := range done {
				if rec := w.rec.Containers[name]; containerID(name, rec.Attempt) == u.id {
					rec.Resources, rec.Cgroup = &u.of, &u.to
				}
			}
			if err == nil {
				w.resizing.succeeded()
				w.resize.failed = ""
				w.roomier = true // if it became less
				return
			}
			if errors.Is(err, context.Canceled) {
				return
			}
			if w.resize.failed != err.Error() {
				w.resizeEvent(corev1.EventTypeWarning, "ResizeError", "Pod resize error", pod, err.Error())
			}
			w.resize.failed = err.Error()
			w.resizing.failed(w.a.cfg.Now())
		}
	})
}

// memoryAllows refuses a limit below what is in use: the kernel would kill.
func (w *podWorker) memoryAllows(id, what string, from, to int64) error {
	if to == 0 || from != 0 && to >= from {
		return nil
	}
	s, err := w.a.cfg.Runtime.Stats(string(w.uid), id)
	if err != nil {
		return nil // it has ended, or there is nothing to be compared
	}
	if s.MemoryWorkingSet > uint64(to) {
		return fmt.Errorf("attempting to set %s memory limit (%d) below current usage (%d)", what, to, s.MemoryWorkingSet)
	}
	return nil
}

// resizeConditions are the pod's conditions about a resize.
func resizeConditions(pod *corev1.Pod, in statusInput) []corev1.PodCondition {
	var list []corev1.PodCondition
	add := func(t corev1.PodConditionType, generation int64, reason, message string) {
		list = append(list, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message, ObservedGeneration: generation})
	}
	if in.down || in.failure != nil {
		return nil
	}
	if f := in.resize.pending; f != nil {
		add(corev1.PodResizePending, pod.Generation, f.Reason, f.Message)
	}
	if in.resizeProgress {
		reason := ""
		if in.resize.failed != "" {
			reason = corev1.PodReasonError
		}
		generation := in.resize.generation
		if generation == 0 { // allocated by an earlier process
			generation = pod.Generation
		}
		add(corev1.PodResizeInProgress, generation, reason, in.resize.failed)
	}
	return list
}

// podLevelStatus is the status of resources that the pod has as a whole.
func podLevelStatus(pod *corev1.Pod, s *corev1.PodStatus, inForce *cgroupAmounts, progress bool) {
	if !podresource.IsPodLevelResourcesSet(pod) {
		return
	}
	s.AllocatedResources = podresource.PodRequests(pod, podresource.PodResourcesOptions{})
	s.Resources = pod.Spec.Resources.DeepCopy()
	s.Resources.Claims = nil
	if old := pod.Status.Resources; progress && old != nil && inForce != nil && *inForce != amountsOf(pod) {
		s.Resources = old // what is in force still
	}
}

// finishResize tells once that a resize is complete.
func (w *podWorker) finishResize(progress bool) {
	if progress || !w.resize.announced {
		return
	}
	w.resize.announced = false
	w.resizeEvent(corev1.EventTypeNormal, "ResizeCompleted", "Pod resize completed", w.pod, "")
}

// resizeCondition says of a type of condition that it is one of a resize.
func resizeCondition(t corev1.PodConditionType) bool {
	return t == corev1.PodResizePending || t == corev1.PodResizeInProgress
}
