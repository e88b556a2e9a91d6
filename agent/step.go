package agent

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// observed is all that step knows of a pod beyond its API object.
type observed struct {
	now      time.Time
	accepted bool          // the node has admitted the pod
	started  time.Time     // when
	crowded  bool          // it will once others are down
	failed   bool          // the node gave the pod up
	hurry    time.Duration // the longest that it may take to end, 0 if it says
	removed  bool          // the API has it no more
	down     bool          // everything of it was taken down

	volumes  opState // ConfigMaps, Secrets, tokens and files are in place
	sandbox  opState // network and pod process are in place
	teardown opState
	deletion opState // removing the object from the API
	fence    fenceState
	resize   opState // putting allocated resources in force
	stale    bool    // volumes must be brought up to date
	flushed  bool    // the API has the newest status

	resizeNeeded   bool // something allocated is to be put in force
	resizeProgress bool // something allocated is not in force

	containers map[string]containerView
}

// opState is how far something stands that may take time and may fail.
type opState struct {
	done    bool
	busy    bool
	retryAt time.Time // after a failure
}

// task is what is being done to a container.
type task uint8

const (
	idle task = iota
	starting
	stopping
)

// containerView is the newest start of one container.
type containerView struct {
	attempt   int  // -1: never started
	fresh     bool // that start was in the sandbox that there is now
	running   bool
	hooking   bool // it runs, and its postStart hook has not ended
	up        bool // it runs, and its hook and its startup probe are done
	renew     bool // to be started again, however it ended
	end       *corev1.ContainerStateTerminated
	replaced  bool // it was ended to be started anew, whatever the restart policy
	task      task
	grace     time.Duration // of the stop under way
	retryAt   time.Time     // no start before
	unhealthy *unhealthy    // its liveness or startup probe failed
}

type unhealthy struct {
	message string
	grace   time.Duration
}

type actionKind uint8

const (
	actWait     actionKind = iota // until something happens, at most until action.until
	actAdmit                      // decide whether this node can run the pod
	actFail                       // give the pod up, for action.failure
	actSetUp                      // put volumes in place, or bring them up to date
	actSandbox                    // make network and pod process
	actStart                      // start action.container anew
	actStop                       // stop action.container within action.grace
	actCancel                     // end what is being done to action.container ("": to the pod)
	actTearDown                   // take down everything of the pod
	actDelete                     // remove the object from the API
	actRenew                      // have all containers begin again
	actResize                     // put allocated resources in force
	actAllow                      // have the API allow a fenced pod to run here
	actForget                     // nobody knows the pod any more: end the worker
)

// action is the one next thing to do for a pod.
type action struct {
	kind      actionKind
	container string
	grace     time.Duration
	inTurn    bool // actStop: not before those that may need it have ended
	renewal   bool // actStop: no hook, and no back-off
	message   string
	failure   failure
	until     time.Time
}

var deadlineExceeded = failure{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}

// step decides what to do next for a pod. It is called again after each action
// until it answers actWait: every action changes what is observed.
func step(pod *corev1.Pod, o observed) action {
	if o.removed || pod.DeletionTimestamp != nil || o.failed || o.down || terminalPhase(pod.Status.Phase) || finished(pod, o) {
		return stepDown(pod, o)
	}
	if !o.accepted {
		if o.crowded {
			return action{kind: actWait}
		}
		return action{kind: actAdmit}
	}
	w := waiter{now: o.now}
	if d := pod.Spec.ActiveDeadlineSeconds; d != nil && !w.later(o.started.Add(time.Duration(*d)*time.Second)) {
		return action{kind: actFail, failure: deadlineExceeded}
	}
	if (!o.volumes.done || o.stale) && !o.volumes.busy && !w.later(o.volumes.retryAt) {
		return action{kind: actSetUp}
	}
	if !o.sandbox.done && !o.sandbox.busy && !w.later(o.sandbox.retryAt) {
		return action{kind: actSandbox}
	}
	ready := o.volumes.done && o.sandbox.done
	if f := o.fence; f.needed && !(f.up && f.allowed) {
		ready = false
		if f.up && !f.ask.busy && !w.later(f.ask.retryAt) {
			return action{kind: actAllow}
		}
	}
	if o.resizeNeeded && o.sandbox.done && !o.resize.busy && !w.later(o.resize.retryAt) {
		return action{kind: actResize}
	}
	if asked, a := stepRenewal(pod, o, &w); asked {
		return a
	}
	for i := range pod.Spec.EphemeralContainers {
		c := asContainer(&pod.Spec.EphemeralContainers[i])
		if a, ok := stepContainer(pod, ephemeral, c, o.containers[c.Name], ready, &w); ok {
			return a
		}
	}
	a, begun := stepInit(pod, o, ready, &w)
	if a.kind != actWait || !begun {
		return a
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		v := o.containers[c.Name]
		if a, ok := stepContainer(pod, ordinary, c, v, ready, &w); ok {
			return a
		}
		if v.task == starting && (v.attempt < 0 || v.renew || v.hooking) {
			break // the first start is in the order of the list
		}
	}
	return w.action()
}

// stepInit is step for the init containers, one after the other. begun says
// that the ordinary containers need wait for them no longer.
func stepInit(pod *corev1.Pod, o observed, ready bool, w *waiter) (a action, begun bool) {
	over := initialized(pod, o)
	last := -1 // the furthest that was started in this sandbox
	for i := range pod.Spec.InitContainers {
		if v := o.containers[pod.Spec.InitContainers[i].Name]; v.attempt >= 0 && v.fresh {
			last = i
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		v, kind := o.containers[c.Name], initKind(c)
		if kind == initial && (over || succeeded(v) && v.fresh) {
			continue
		}
		if a, ok := stepContainer(pod, kind, c, v, ready, w); ok {
			return a, false
		}
		// A sidecar holds up what comes after it until it has come up for the
		// first time; when it crashes later, the others go on.
		if !over && (kind == initial || i >= last && !v.up) {
			return w.action(), false
		}
	}
	return w.action(), true
}

// stepRenewal stops all containers of a pod one of whose containers asks for
// all to be started anew, and then has them begin again.
func stepRenewal(pod *corev1.Pod, o observed, w *waiter) (asked bool, a action) {
	for kind, c := range everyContainer(pod) {
		asked = asked || kind != ephemeral && renews(c, o.containers[c.Name])
	}
	if !asked {
		return false, action{}
	}
	pending := false
	for _, c := range everyContainer(pod) {
		switch v := o.containers[c.Name]; {
		case v.task == starting:
			return true, action{kind: actCancel, container: c.Name}
		case v.running && v.task == idle && !w.later(v.retryAt):
			return true, action{kind: actStop, container: c.Name, grace: gracePeriod(pod, false), renewal: true,
				message: "Stopping container " + c.Name + ", all containers of the pod will be restarted"}
		case v.running || v.task == stopping:
			pending = true
		}
	}
	if pending {
		return true, w.action()
	}
	return true, action{kind: actRenew}
}

func stepContainer(pod *corev1.Pod, kind containerKind, c *corev1.Container, v containerView, ready bool, w *waiter) (action, bool) {
	if v.task != idle {
		return action{}, false
	}
	if v.running {
		if v.unhealthy != nil {
			return action{kind: actStop, container: c.Name, grace: v.unhealthy.grace, message: v.unhealthy.message}, true
		}
		return action{}, false
	}
	if !shouldStart(pod, kind, c, v) || !ready || w.later(v.retryAt) {
		return action{}, false
	}
	return action{kind: actStart, container: c.Name}, true
}

func succeeded(v containerView) bool { return !v.running && v.end != nil && v.end.ExitCode == 0 }

// initialized says whether the init containers have done their work in this
// sandbox, and its sidecars have come up. That an ordinary container was
// started proves it.
func initialized(pod *corev1.Pod, o observed) bool {
	for i := range pod.Spec.Containers {
		if v := o.containers[pod.Spec.Containers[i].Name]; v.attempt >= 0 && v.fresh {
			return true
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		v := o.containers[c.Name]
		if initKind(c) == sidecar && !v.up || initKind(c) == initial && (!succeeded(v) || !v.fresh) {
			return false
		}
	}
	return true
}

// finished says whether the pod's containers have ended for good. What its
// sidecars do counts for nothing.
func finished(pod *corev1.Pod, o observed) bool {
	if !o.accepted {
		return false
	}
	for kind, c := range everyContainer(pod) {
		if v := o.containers[c.Name]; kind == initial && failedForGood(pod, c, v) {
			return true
		}
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		v := o.containers[c.Name]
		if v.running || v.end == nil || v.task != idle || shouldStart(pod, ordinary, c, v) {
			return false
		}
	}
	return true
}

// failedForGood says whether an init container has ended the pod.
func failedForGood(pod *corev1.Pod, c *corev1.Container, v containerView) bool {
	return !v.running && !v.renew && v.end != nil && v.end.ExitCode != 0 && !restarts(pod, initial, c, v.end.ExitCode)
}

// stepDown takes a pod down that is at its end, in order: what is under way,
// containers, everything else, the API object. All containers are stopped at
// once; a sidecar runs its hook at once too, but waits for its turn to end.
func stepDown(pod *corev1.Pod, o observed) action {
	w := waiter{now: o.now}
	pending := false
	for kind, c := range everyContainer(pod) {
		v := o.containers[c.Name]
		grace := gracePeriod(pod, o.removed)
		if o.hurry > 0 {
			grace = min(grace, o.hurry)
		}
		if o.removed && o.fence.needed {
			grace = 0 // its successor may run already
		}
		switch {
		case v.task == starting:
			return action{kind: actCancel, container: c.Name}
		case v.task == stopping && v.grace > grace:
			return action{kind: actCancel, container: c.Name} // then stopped with less
		case v.task == stopping:
			pending = true
		case v.running && !w.later(v.retryAt):
			return action{kind: actStop, container: c.Name, grace: grace, inTurn: kind == sidecar}
		case v.running:
			pending = true
		}
	}
	if !o.down && (o.volumes.busy || o.sandbox.busy) {
		return action{kind: actCancel}
	}
	if pending || o.teardown.busy || o.deletion.busy {
		return w.action()
	}
	if !o.down {
		if w.later(o.teardown.retryAt) {
			return w.action()
		}
		return action{kind: actTearDown}
	}
	if o.removed {
		return action{kind: actForget}
	}
	if pod.DeletionTimestamp != nil && o.flushed && !o.deletion.done && !w.later(o.deletion.retryAt) {
		return action{kind: actDelete}
	}
	return w.action()
}

const defaultGrace = 30 * time.Second

// gracePeriod is how long the pod's containers may take to end. One whose
// object was removed by force gets a moment all the same.
func gracePeriod(pod *corev1.Pod, removed bool) time.Duration {
	grace := defaultGrace
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	if s := pod.DeletionGracePeriodSeconds; s != nil && pod.DeletionTimestamp != nil {
		grace = time.Duration(*s) * time.Second
	}
	if removed {
		return max(min(grace, defaultGrace), time.Second)
	}
	return max(grace, 0)
}

// waiter collects the earliest time at which something is to be done.
type waiter struct {
	now, until time.Time
}

// later says whether t is still to come, and remembers it if so.
func (w *waiter) later(t time.Time) bool {
	if !t.After(w.now) {
		return false
	}
	if w.until.IsZero() || t.Before(w.until) {
		w.until = t
	}
	return true
}

func (w *waiter) action() action { return action{kind: actWait, until: w.until} }
