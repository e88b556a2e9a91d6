package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// observe gathers what step needs, and notes what has happened since.
func (w *podWorker) observe() observed {
	w.mu.Lock()
	wish := w.latest
	if newer(wish, w.pod) {
		w.takeOver(wish)
	}
	w.stale = w.stale || w.tokens.due(w.a.cfg.Now())
	w.stale = w.stale || !w.republishAt.IsZero() && !w.a.cfg.Now().Before(w.republishAt)
	removed, stale, crowded := w.removed, w.stale, w.crowded
	if w.changed {
		w.changed = false
		w.tryAgain()
	}
	evicted, goingDown, within := w.evicted, w.goingDown, w.within
	w.mu.Unlock()
	if evicted != nil && w.rec.Failed == nil && !w.rec.Down && !w.rec.Started.IsZero() {
		w.rec.Failed = evicted
		w.event(nil, corev1.EventTypeWarning, evicted.Reason, evicted.Message)
	}
	if goingDown && !w.rec.Started.IsZero() && w.rec.Failed == nil && !w.rec.Down && !removed && w.pod.DeletionTimestamp == nil && !terminalPhase(w.pod.Status.Phase) {
		w.rec.Failed = &failure{Reason: reasonTerminated, Message: messageTerminated}
	}
	w.allocate(wish)
	o := observed{
		now: w.a.cfg.Now(), removed: removed, stale: stale && w.volumes.done,
		accepted: !w.rec.Started.IsZero(), started: w.rec.Started, crowded: crowded,
		failed: w.rec.Failed != nil, down: w.rec.Down, hurry: w.hurry(within),
		volumes: w.opState("volumes", w.volumes), sandbox: w.opState("sandbox", w.sandbox),
		teardown: w.opState("teardown", w.teardown), deletion: w.opState("deletion", w.deletion), fence: w.fenceState(),
		containers: map[string]containerView{},
	}
	if w.sandbox.done && !w.rec.Down && !o.teardown.busy && !slices.Contains(w.a.cfg.Runtime.Pods(), string(w.uid)) {
		w.event(nil, corev1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
		w.sandbox.done, o.sandbox.done = false, false
	}
	newest := w.newestContainers()
	for _, c := range everyContainer(w.pod) {
		o.containers[c.Name] = w.observeContainer(c, newest[c.Name], o.now)
	}
	for name, loop := range w.containers {
		if loop.turn != nil && turnToEnd(w.pod, o, name) {
			close(loop.turn)
			loop.turn = nil
		}
	}
	o.resize = w.opState("resize", w.resizing)
	o.resizeNeeded, o.resizeProgress = w.resizeNeeded(o.containers)
	if o.down && w.pod.DeletionTimestamp != nil && w.ops["status"] == nil {
		o.flushed = w.statusGone || equality.Semantic.DeepEqual(w.statusNow(o), w.pod.Status)
	}
	return o
}

// hurry is the longest that the pod may take to end, 0 if as long as it likes:
// within what its host goes down, and what it was given when it was given up.
func (w *podWorker) hurry(within time.Duration) time.Duration {
	if f := w.rec.Failed; f != nil && f.Grace > 0 && (within == 0 || f.Grace < within) {
		return f.Grace
	}
	return within
}

// takeOver makes a newer version of the pod the one that is worked on.
func (w *podWorker) takeOver(pod *corev1.Pod) {
	old := w.pod
	if !w.rec.Started.IsZero() {
		pod = withResources(pod, old) // others than those are to be allocated first
	}
	w.pod = pod
	w.statusGone = w.statusGone && w.static == nil // a mirror comes back
	w.stale = w.stale || !equality.Semantic.DeepEqual(old.Labels, pod.Labels) || !equality.Semantic.DeepEqual(old.Annotations, pod.Annotations) ||
		len(old.Spec.EphemeralContainers) != len(pod.Spec.EphemeralContainers) // they may need other objects
	w.changed = w.changed || w.stale || old.Generation != pod.Generation
	if w.a.fenced(old) != w.a.fenced(pod) {
		w.sandbox.done = false // its process is to know
	}
}

// tryAgain forgets the waiting after what a change of the pod or of an object
// may have mended.
func (w *podWorker) tryAgain() {
	w.volumes.retry = time.Time{}
	for _, c := range w.containers {
		if c.waiting != nil && c.pull == nil {
			c.retry = time.Time{}
		}
	}
}

func (w *podWorker) opState(key string, t attempts) opState {
	return opState{done: t.done, busy: w.ops[key] != nil, retryAt: t.retry}
}

func (w *podWorker) loop(name string) *containerLoop {
	c := w.containers[name]
	if c == nil {
		c = &containerLoop{}
		w.containers[name] = c
	}
	return c
}

type numberedStatus struct {
	ContainerStatus
	attempt int
}

func (w *podWorker) newestContainers() map[string]*numberedStatus {
	newest := map[string]*numberedStatus{}
	for _, s := range w.a.cfg.Runtime.Containers(string(w.uid)) {
		name, attempt, ok := splitContainerID(s.ID)
		if ok && (newest[name] == nil || newest[name].attempt < attempt) {
			newest[name] = &numberedStatus{s, attempt}
		}
	}
	return newest
}

func (w *podWorker) observeContainer(c *corev1.Container, s *numberedStatus, now time.Time) containerView {
	rec, loop := w.rec.container(c.Name), w.loop(c.Name)
	op := w.ops[containerKey(c.Name)]
	if s != nil && s.attempt > rec.Attempt && (s.State != Created || op == nil) {
		// Started just now, or by a process that did not live to note it. One
		// that is only created has not been started yet while we are at it.
		w.started(c, rec, s)
	}
	v := containerView{
		attempt: rec.Attempt, renew: rec.Renew, retryAt: later(rec.Until, loop.retry),
		fresh: rec.Attempt >= 0 && rec.Sandbox == w.rec.Sandbox && !rec.Renew,
	}
	if op != nil {
		v.task, v.grace = op.task, op.grace
	}
	if rec.Attempt < 0 {
		v.retryAt = loop.retry
		return v
	}
	id := containerID(c.Name, rec.Attempt)
	switch {
	case s != nil && s.attempt == rec.Attempt && s.State == Running:
		v.running = true
		v.hooking = v.task == starting && postStartOf(c) != nil
		v.retryAt = loop.retry
		rec.Up = rec.Up || !probes(c.StartupProbe) || w.hasCome(probeKey{id, startup})
		v.up = rec.Up && !v.hooking
		w.checkRunning(c, rec, &v, id)
	case rec.End != nil:
	case s != nil && s.attempt == rec.Attempt && (s.State == Exited || v.task == idle):
		w.ended(c, rec, s, now)
	case s == nil && v.task != starting && !w.busyAsAWhole():
		rec.End = lostContainer(fullContainerID(w.pod, c.Name, rec.Attempt))
		rec.End.FinishedAt = metav1.NewTime(now.Truncate(time.Second))
	}
	if !v.running {
		v.end, v.replaced = rec.End, rec.Replaced
		v.retryAt = later(rec.Until, loop.retry)
	}
	return v
}

// busyAsAWhole: containers may come and go without being lost.
func (w *podWorker) busyAsAWhole() bool { return w.ops["teardown"] != nil }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// checkRunning finds reasons to restart a running container.
func (w *podWorker) checkRunning(c *corev1.Container, rec *containerRecord, v *containerView, id string) {
	if rec.Asked != "" && rec.Asked != c.Image {
		v.unhealthy = &unhealthy{message: fmt.Sprintf("Container %s definition changed, will be restarted", c.Name), grace: gracePeriod(w.pod, false)}
		w.loop(c.Name).replaced = true
		return
	}
	if behind(w.pod, c, rec) && needsRestart(c, rec.Resources) {
		v.unhealthy = &unhealthy{message: fmt.Sprintf("Container %s resize requires restart", c.Name), grace: gracePeriod(w.pod, false)}
		w.loop(c.Name).replaced = true
		return
	}
	for _, k := range []struct {
		kind  probeKind
		probe *corev1.Probe
	}{{startup, c.StartupProbe}, {liveness, c.LivenessProbe}} {
		w.mu.Lock()
		r := w.probes[probeKey{id, k.kind}]
		failed := r != nil && r.known && !r.good
		w.mu.Unlock()
		if !failed {
			continue
		}
		grace := gracePeriod(w.pod, false)
		if s := k.probe.TerminationGracePeriodSeconds; s != nil {
			grace = time.Duration(*s) * time.Second
		}
		v.unhealthy = &unhealthy{message: fmt.Sprintf("Container %s failed %s probe, will be restarted", c.Name, strings.ToLower(string(k.kind))), grace: grace}
		return
	}
}

// hasCome says whether a probe has succeeded.
func (w *podWorker) hasCome(k probeKey) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.probes[k]
	return r != nil && r.known && r.good
}

// started notes that a container runs for the attempt-th time.
func (w *podWorker) started(c *corev1.Container, rec *containerRecord, s *numberedStatus) {
	loop := w.loop(c.Name)
	if rec.End != nil {
		rec.Last = rec.End
	}
	rec.End, rec.Attempt, rec.Sandbox, rec.Asked = nil, s.attempt, w.rec.Sandbox, c.Image
	rec.Up, rec.Renew, rec.Replaced = false, false, false
	if rec.Resources, rec.Cgroup = loop.resources, loop.cgroup; rec.Resources == nil { // started by an earlier process
		in := amounts(containerResources(w.pod, c))
		rec.Resources, rec.Cgroup = &c.Resources, &in
	}
	image := loop.image
	if image.ID != s.Image {
		image, _ = w.a.cfg.Runtime.Image(s.Image)
	}
	rec.Image, rec.ImageID = imageNames(c.Image, image)
	rec.User, rec.StopSignal = identity(s)
	loop.waiting, loop.pull = nil, nil
	loop.attempts = attempts{}
}

// identity is who a container runs as and what asks it to end, as far as the
// runtime knows. SIGTERM is not worth saying.
func identity(s *numberedStatus) (user *corev1.ContainerUser, signal *corev1.Signal) {
	if s.StopSignal != "" && s.StopSignal != string(corev1.SIGTERM) {
		signal = new(corev1.Signal(s.StopSignal))
	}
	if s.User == nil {
		return nil, signal
	}
	groups := make([]int64, len(s.User.Groups))
	for i, g := range s.User.Groups {
		groups[i] = int64(g)
	}
	return &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: int64(s.User.UID), GID: int64(s.User.GID), SupplementalGroups: groups}}, signal
}

// imageNames are the image and imageID of a container status: a name that the
// image has, and the digest that it can be pulled by.
func imageNames(asked string, image Image) (name, imageID string) {
	name, imageID = asked, image.ID
	if len(image.Names) > 0 {
		name = image.Names[0]
		for _, n := range image.Names {
			if imageRepository(n) == imageRepository(asked) {
				name = n
				break
			}
		}
	}
	for i, d := range image.Digests {
		if i == 0 || imageRepository(d) == imageRepository(asked) {
			imageID = d
		}
	}
	return name, imageID
}

// ended notes how a container came to its end.
func (w *podWorker) ended(c *corev1.Container, rec *containerRecord, s *numberedStatus, now time.Time) {
	finished := s.FinishedAt
	if finished.IsZero() {
		finished = now
	}
	end := &corev1.ContainerStateTerminated{
		ExitCode: int32(s.ExitCode), Reason: s.Reason,
		Message:     terminationMessage(c, w.dirs, rec.Attempt, s.ExitCode),
		StartedAt:   metav1.NewTime(s.StartedAt.Truncate(time.Second)),
		FinishedAt:  metav1.NewTime(finished.Truncate(time.Second)),
		ContainerID: fullContainerID(w.pod, c.Name, rec.Attempt),
	}
	if s.StartedAt.IsZero() {
		end.StartedAt = end.FinishedAt
	}
	if end.Message == "" {
		end.Message = s.Message
	}
	switch {
	case s.State == Created:
		end.ExitCode, end.Reason = 128, "ContainerCannotRun"
	case s.OOMKilled:
		end.Reason = "OOMKilled"
	case end.Reason != "":
	case end.ExitCode == 0:
		end.Reason = "Completed"
	default:
		end.Reason = "Error"
	}
	rec.End = end
	loop := w.loop(c.Name)
	if end.Reason == ReasonFenced {
		w.event(c, corev1.EventTypeWarning, ReasonFenced, end.Message)
	}
	if loop.replaced || end.Reason == ReasonFenced {
		rec.BackOff, rec.Until = 0, time.Time{}
	} else {
		rec.crashed(later(s.StartedAt, time.Time{}), finished)
	}
	rec.Replaced = loop.replaced
	loop.replaced, loop.killed = false, false
}
