package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var stepNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// situation is an accepted, prepared pod with one init and two ordinary
// containers, for a test to change.
func situation() (*corev1.Pod, *observed) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyAlways,
			TerminationGracePeriodSeconds: new(int64(30)),
			InitContainers:                []corev1.Container{{Name: "init"}},
			Containers:                    []corev1.Container{{Name: "a"}, {Name: "b"}},
		},
	}
	return pod, &observed{
		now: stepNow, accepted: true, started: stepNow.Add(-time.Minute),
		volumes: opState{done: true}, sandbox: opState{done: true},
		containers: map[string]containerView{"init": never, "a": never, "b": never},
	}
}

var (
	never   = containerView{attempt: -1}
	runs    = containerView{attempt: 0, fresh: true, running: true}
	ended0  = containerView{attempt: 0, fresh: true, end: &corev1.ContainerStateTerminated{ExitCode: 0}}
	ended1  = containerView{attempt: 0, fresh: true, end: &corev1.ContainerStateTerminated{ExitCode: 1}}
	waiting = containerView{attempt: 0, fresh: true, end: &corev1.ContainerStateTerminated{ExitCode: 1}, retryAt: stepNow.Add(time.Minute)}
	stale0  = containerView{attempt: 0, end: &corev1.ContainerStateTerminated{ExitCode: 0}}
	starts  = containerView{attempt: -1, task: starting}
	stops   = containerView{attempt: 0, fresh: true, running: true, task: stopping, grace: 30 * time.Second}
	ill     = containerView{attempt: 0, fresh: true, running: true, unhealthy: &unhealthy{"ill", time.Second}}
)

func TestStep(t *testing.T) {
	wait := action{kind: actWait}
	later := func(d time.Duration) action { return action{kind: actWait, until: stepNow.Add(d)} }
	containers := func(init, a, b containerView) func(*corev1.Pod, *observed) {
		return func(_ *corev1.Pod, o *observed) {
			o.containers = map[string]containerView{"init": init, "a": a, "b": b}
		}
	}
	policy := func(p corev1.RestartPolicy) func(*corev1.Pod, *observed) {
		return func(pod *corev1.Pod, _ *observed) { pod.Spec.RestartPolicy = p }
	}
	deleted := func(grace int64) func(*corev1.Pod, *observed) {
		return func(pod *corev1.Pod, _ *observed) {
			pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &metav1.Time{Time: stepNow}, &grace
		}
	}
	with := func(f func(o *observed)) func(*corev1.Pod, *observed) {
		return func(_ *corev1.Pod, o *observed) { f(o) }
	}
	start := func(c string) action { return action{kind: actStart, container: c} }
	type edits []func(*corev1.Pod, *observed)
	for _, test := range []struct {
		name  string
		edits edits
		want  action
	}{
		{"no room before others are down", edits{with(func(o *observed) { o.accepted, o.crowded = false, true })}, action{kind: actWait}},
		{"not accepted", edits{with(func(o *observed) { o.accepted = false })}, action{kind: actAdmit}},
		{"volumes first", edits{with(func(o *observed) { o.volumes.done = false })}, action{kind: actSetUp}},
		{"volumes failed", edits{with(func(o *observed) { o.volumes = opState{retryAt: stepNow.Add(time.Second)} })}, later(time.Second)},
		{"volumes out of date", edits{with(func(o *observed) { o.stale = true })}, action{kind: actSetUp}},
		{"sandbox beside busy volumes", edits{with(func(o *observed) { o.volumes, o.sandbox = opState{busy: true}, opState{} })}, action{kind: actSandbox}},
		{"nothing starts without a sandbox", edits{with(func(o *observed) { o.sandbox = opState{busy: true} })}, wait},
		{"init first", nil, start("init")},
		{"init works", edits{containers(runs, never, never)}, wait},
		{"init failed", edits{containers(ended1, never, never)}, start("init")},
		{"init failed, in back-off", edits{containers(waiting, never, never)}, later(time.Minute)},
		{"init done", edits{containers(ended0, never, never)}, start("a")},
		{"init done in another sandbox", edits{containers(stale0, stale0, never)}, start("init")},
		{"the first start is in order", edits{containers(ended0, starts, never)}, wait},
		{"one after the other", edits{containers(ended0, runs, never)}, start("b")},
		{"all run", edits{containers(ended0, runs, runs)}, wait},
		{"a crash", edits{containers(ended0, ended1, runs)}, start("a")},
		{"a crash, in back-off", edits{containers(ended0, waiting, runs)}, later(time.Minute)},
		{"back-off of one does not hold up the other", edits{containers(ended0, waiting, ended1)}, start("b")},
		{"an end under Always", edits{containers(ended0, ended0, runs)}, start("a")},
		{"an end under OnFailure", edits{policy(corev1.RestartPolicyOnFailure), containers(ended0, ended0, runs)}, wait},
		{"a crash under OnFailure", edits{policy(corev1.RestartPolicyOnFailure), containers(ended0, ended1, runs)}, start("a")},
		{"a crash under Never", edits{policy(corev1.RestartPolicyNever), containers(ended0, ended1, runs)}, wait},
		{"all ended under Never", edits{policy(corev1.RestartPolicyNever), containers(ended0, ended1, ended0)}, action{kind: actTearDown}},
		{"init failed under Never", edits{policy(corev1.RestartPolicyNever), containers(ended1, never, never)}, action{kind: actTearDown}},
		{"at rest at its end", edits{policy(corev1.RestartPolicyNever), containers(ended0, ended1, ended0), with(func(o *observed) { o.down = true })}, wait},
		{"unhealthy", edits{containers(ended0, ill, runs)}, action{kind: actStop, container: "a", grace: time.Second, message: "ill"}},
		{"deadline to come", edits{containers(ended0, runs, runs), func(p *corev1.Pod, _ *observed) { p.Spec.ActiveDeadlineSeconds = new(int64(100)) }}, later(40 * time.Second)},
		{"deadline over", edits{containers(ended0, runs, runs), func(p *corev1.Pod, _ *observed) { p.Spec.ActiveDeadlineSeconds = new(int64(60)) }}, action{kind: actFail, failure: deadlineExceeded}},
		{"given up: stop", edits{containers(ended0, runs, ended0), with(func(o *observed) { o.failed = true })}, action{kind: actStop, container: "a", grace: 30 * time.Second}},
		{"deleted: stop", edits{deleted(5), containers(ended0, runs, runs)}, action{kind: actStop, container: "a", grace: 5 * time.Second}},
		{"deleted: stop the next too", edits{deleted(30), containers(ended0, stops, runs)}, action{kind: actStop, container: "b", grace: 30 * time.Second}},
		{"deleted: wait for all", edits{deleted(30), containers(ended0, stops, stops)}, wait},
		{"deleted: with less time", edits{deleted(5), containers(ended0, stops, stops)}, action{kind: actCancel, container: "a"}},
		{"deleted while starting", edits{deleted(5), containers(ended0, starts, never)}, action{kind: actCancel, container: "a"}},
		{"deleted while volumes are made", edits{deleted(5), with(func(o *observed) { o.volumes = opState{busy: true} })}, action{kind: actCancel}},
		{"deleted: take down", edits{deleted(5), containers(ended0, ended1, ended1)}, action{kind: actTearDown}},
		{"deleted: taking down", edits{deleted(5), containers(ended0, ended1, ended1), with(func(o *observed) { o.teardown.busy = true })}, wait},
		{"deleted: taking down failed", edits{deleted(5), containers(ended0, ended1, ended1), with(func(o *observed) { o.teardown.retryAt = stepNow.Add(time.Second) })}, later(time.Second)},
		{"deleted: status first", edits{deleted(5), containers(ended0, ended1, ended1), with(func(o *observed) { o.down = true })}, wait},
		{"deleted: object", edits{deleted(5), containers(ended0, ended1, ended1), with(func(o *observed) { o.down, o.flushed = true, true })}, action{kind: actDelete}},
		{"deleted: done", edits{deleted(5), containers(ended0, ended1, ended1), with(func(o *observed) { o.down, o.flushed, o.deletion.done = true, true, true })}, wait},
		{"removed by force: stop", edits{containers(ended0, runs, runs), with(func(o *observed) { o.removed = true })}, action{kind: actStop, container: "a", grace: 30 * time.Second}},
		{"removed: forget", edits{containers(ended0, ended1, ended1), with(func(o *observed) { o.removed, o.down = true, true })}, action{kind: actForget}},
		{"failed by somebody else", edits{containers(ended0, runs, ended1), func(p *corev1.Pod, _ *observed) { p.Status.Phase = corev1.PodFailed }}, action{kind: actStop, container: "a", grace: 30 * time.Second}},
	} {
		pod, o := situation()
		for _, edit := range test.edits {
			edit(pod, o)
		}
		if got := step(pod, *o); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

func TestPhase(t *testing.T) {
	for _, test := range []struct {
		policy  corev1.RestartPolicy
		init    containerView
		a, b    containerView
		down    bool
		deleted bool
		want    corev1.PodPhase
	}{
		{corev1.RestartPolicyAlways, never, never, never, false, false, corev1.PodPending},
		{corev1.RestartPolicyAlways, runs, never, never, false, false, corev1.PodPending},
		{corev1.RestartPolicyAlways, ended1, never, never, false, false, corev1.PodPending},
		{corev1.RestartPolicyNever, ended1, never, never, false, false, corev1.PodFailed},
		{corev1.RestartPolicyAlways, ended0, runs, never, false, false, corev1.PodPending},
		{corev1.RestartPolicyAlways, ended0, runs, runs, false, false, corev1.PodRunning},
		{corev1.RestartPolicyAlways, ended0, ended1, ended1, false, false, corev1.PodRunning},
		{corev1.RestartPolicyOnFailure, ended0, ended1, ended0, false, false, corev1.PodRunning},
		{corev1.RestartPolicyOnFailure, ended0, ended0, ended0, false, false, corev1.PodSucceeded},
		{corev1.RestartPolicyNever, ended0, ended1, ended0, false, false, corev1.PodFailed},
		{corev1.RestartPolicyNever, ended0, ended1, runs, false, false, corev1.PodRunning},
		{corev1.RestartPolicyAlways, ended0, ended1, ended0, false, true, corev1.PodRunning},
		{corev1.RestartPolicyAlways, ended0, ended1, ended0, true, true, corev1.PodFailed},
		{corev1.RestartPolicyAlways, ended0, ended0, ended0, true, true, corev1.PodSucceeded},
		{corev1.RestartPolicyAlways, never, never, never, true, true, corev1.PodFailed},
	} {
		pod, o := situation()
		pod.Spec.RestartPolicy = test.policy
		o.containers = map[string]containerView{"init": test.init, "a": test.a, "b": test.b}
		o.down = test.down
		if test.deleted {
			pod.DeletionTimestamp = &metav1.Time{Time: stepNow}
		}
		if got := phase(pod, statusInput{observed: *o}, initialized(pod, *o)); got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}

func TestConditionTimes(t *testing.T) {
	pod, o := situation()
	o.containers = map[string]containerView{"init": ended0, "a": runs, "b": runs}
	in := statusInput{observed: *o, views: map[string]statusView{}}
	for _, n := range []string{"init", "a", "b"} {
		in.views[n] = statusView{record: containerRecord{}, runtime: &ContainerStatus{StartedAt: stepNow}, ready: n != "b"}
	}
	pod.Status = podStatus(pod, in)
	if c := findCondition(pod.Status.Conditions, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Message != "containers with unready status: [b]" || !c.LastTransitionTime.Time.Equal(stepNow) {
		t.Fatalf("not ready: %+v", c)
	}
	in.now = stepNow.Add(time.Hour)
	again := podStatus(pod, in)
	if c := findCondition(again.Conditions, corev1.PodReady); !c.LastTransitionTime.Time.Equal(stepNow) {
		t.Errorf("a condition that stayed moved its time: %+v", c)
	}
	b := in.views["b"]
	b.ready = true
	in.views["b"] = b
	pod.Status = again
	if c := findCondition(podStatus(pod, in).Conditions, corev1.PodReady); c.Status != corev1.ConditionTrue || !c.LastTransitionTime.Time.Equal(in.now) {
		t.Errorf("ready: %+v", c)
	}
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	if c := findCondition(podStatus(pod, in).Conditions, corev1.PodReady); c.Status != corev1.ConditionFalse || c.Reason != "ReadinessGatesNotReady" {
		t.Errorf("behind a gate: %+v", c)
	}
}
