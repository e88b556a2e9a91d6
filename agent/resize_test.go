package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func asks(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		r := corev1.ResourceList{}
		for name, q := range map[corev1.ResourceName]string{"cpu": cpu, "memory": memory} {
			if q != "" {
				r[name] = resource.MustParse(q)
			}
		}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: r, Limits: r}
	}
}

func (w *world) resize(name, cpu, memory string) {
	w.t.Helper()
	var parts []string
	for n, q := range map[string]string{"cpu": cpu, "memory": memory} {
		parts = append(parts, fmt.Sprintf("%q:%q", n, q))
	}
	list := "{" + strings.Join(parts, ",") + "}"
	patch := `{"spec":{"containers":[{"name":"web","resources":{"requests":` + list + `,"limits":` + list + `}}]}}`
	if _, err := w.client.Patch(context.Background(), podsGVR, "default", name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize"); err != nil {
		w.t.Fatal(err)
	}
}

func resizeSays(p *corev1.Pod, kind corev1.PodConditionType) string {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

func actual(p *corev1.Pod) string {
	s := p.Status.ContainerStatuses[0]
	if s.Resources == nil {
		return ""
	}
	return fmt.Sprintf("%s %s, allocated %s %s", s.Resources.Limits.Cpu(), s.Resources.Limits.Memory(), s.AllocatedResources.Cpu(), s.AllocatedResources.Memory())
}

func TestResizeInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.create(pod("a", asks("100m", "100Mi")))
		after(time.Second)
		w.resize("a", "200m", "50Mi")
		after(time.Second)
		got := w.get("a")
		if actual(got) != "200m 50Mi, allocated 200m 50Mi" || got.Status.ObservedGeneration != 2 || state(got, "web").RestartCount != 0 {
			t.Errorf("%s, generation %d, %d restarts", actual(got), got.Status.ObservedGeneration, state(got, "web").RestartCount)
		}
		// Up: the pod before its container; down: after it.
		uid := string(p.UID)
		if updates := w.runtime.Updates(); !slices.Equal(updates, []string{uid, "web_0", uid}) {
			t.Errorf("updates %v", updates)
		}
		for _, id := range []string{"", "web_0"} {
			r := w.runtime.Resources(uid, id)
			if *r.CPU.Quota != 20000 || *r.CPU.Shares != 204 || *r.Memory.Limit != 50<<20 {
				t.Errorf("%q has quota %d, shares %d, memory %d", id, *r.CPU.Quota, *r.CPU.Shares, *r.Memory.Limit)
			}
		}
		if c := resizeSays(got, corev1.PodResizeInProgress) + resizeSays(got, corev1.PodResizePending); c != "" {
			t.Error(c)
		}
		if done := w.events("ResizeCompleted"); len(done) != 1 || !strings.HasPrefix(done[0], `Pod resize completed: {"containers":[{"name":"web"`) {
			t.Errorf("events %q", done)
		}
		// A restart of the process changes nothing.
		w.restart()
		after(time.Second)
		if updates := w.runtime.Updates(); len(updates) != 3 || actual(w.get("a")) != actual(got) {
			t.Errorf("after a restart: %v, %s", updates, actual(w.get("a")))
		}
	})
}

func TestResizeByRestart(t *testing.T) {
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.create(pod("a", asks("100m", "100Mi"), func(p *corev1.Pod) {
				p.Spec.RestartPolicy = policy
				p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
			}))
			after(time.Second)
			w.resize("a", "200m", "100Mi") // needs none
			after(time.Second)
			if got := w.get("a"); state(got, "web").RestartCount != 0 || actual(got) != "200m 100Mi, allocated 200m 100Mi" {
				t.Errorf("%d restarts, %s", state(got, "web").RestartCount, actual(got))
			}
			w.resize("a", "200m", "50Mi")
			after(time.Second)
			got := w.get("a")
			if s := state(got, "web"); s.RestartCount != 1 || s.State.Running == nil || actual(got) != "200m 50Mi, allocated 200m 50Mi" {
				t.Errorf("%s: %d restarts, %+v, %s", policy, s.RestartCount, s.State, actual(got))
			}
			if r := w.runtime.Resources(string(p.UID), ""); *r.Memory.Limit != 50<<20 {
				t.Errorf("the pod has %d", *r.Memory.Limit)
			}
			if killed := w.events("Killing"); len(killed) != 1 || killed[0] != "Container web resize requires restart" {
				t.Errorf("%q", killed)
			}
		})
	}
}

func TestResizePending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		after(time.Second)
		cpus := w.node().Status.Allocatable.Cpu().MilliValue()
		milli := func(n int64) string { return fmt.Sprintf("%dm", n) }
		w.create(pod("a", asks(milli(cpus/2), "10Mi")))
		w.create(pod("b", asks(milli(cpus/4), "10Mi")))
		w.create(pod("c", asks(milli(cpus/8), "10Mi"), func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" }))
		after(time.Second)
		w.resize("a", milli(cpus+1), "10Mi")
		after(time.Second)
		want := fmt.Sprintf("True Infeasible Node didn't have enough capacity: cpu, requested: %d, capacity: %d", cpus+1, cpus)
		if got := resizeSays(w.get("a"), corev1.PodResizePending); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		w.resize("a", milli(cpus/2), "10Mi")
		w.resize("b", milli(cpus/2), "10Mi")
		w.resize("c", milli(cpus*3/4), "10Mi")
		after(time.Second)
		if got := resizeSays(w.get("a"), corev1.PodResizePending); got != "" {
			t.Errorf("taken back: %q", got)
		}
		want = fmt.Sprintf("True Deferred Node didn't have enough resource: cpu, requested: %d, used: %d, capacity: %d", cpus/2, cpus/2+cpus/8, cpus)
		if got := resizeSays(w.get("b"), corev1.PodResizePending); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if n := len(w.runtime.Updates()); n != 0 {
			t.Errorf("%d updates of what was not allocated", n)
		}
		// There is room for one of them, and c has the higher priority.
		w.restart()
		after(time.Second)
		w.delete("a", 0)
		after(5 * time.Second)
		b, c := w.get("b"), w.get("c")
		if !strings.HasPrefix(resizeSays(b, corev1.PodResizePending), "True Deferred") || resizeSays(c, corev1.PodResizePending) != "" || state(c, "web").Resources.Limits.Cpu().MilliValue() != cpus*3/4 {
			t.Errorf("b: %q; c: %q, %s", resizeSays(b, corev1.PodResizePending), resizeSays(c, corev1.PodResizePending), actual(c))
		}
		w.delete("c", 0)
		after(5 * time.Second)
		if b = w.get("b"); resizeSays(b, corev1.PodResizePending) != "" || state(b, "web").Resources.Limits.Cpu().MilliValue() != cpus/2 {
			t.Errorf("b: %q, %s", resizeSays(b, corev1.PodResizePending), actual(b))
		}
	})
}

func TestResizeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		broken := true
		w.runtime.OnUpdate = func(_, _ string, r *specs.LinuxResources) error {
			if broken {
				return errors.New("device or resource busy")
			}
			return nil
		}
		w.create(pod("a", asks("100m", "100Mi")))
		after(time.Second)
		w.resize("a", "100m", "50Mi")
		after(time.Second)
		got := w.get("a")
		if c := resizeSays(got, corev1.PodResizeInProgress); c != "True Error device or resource busy" || actual(got) != "100m 100Mi, allocated 100m 50Mi" {
			t.Errorf("%q, %s", c, actual(got))
		}
		// Less than what is in use would kill it.
		w.resize("a", "100m", "1Mi")
		after(5 * time.Second)
		if c := resizeSays(w.get("a"), corev1.PodResizeInProgress); c != `True Error attempting to set container "web" memory limit (1048576) below current usage (2097152)` {
			t.Errorf("%q", c)
		}
		broken = false
		w.resize("a", "100m", "50Mi")
		after(5 * time.Second)
		if c := resizeSays(w.get("a"), corev1.PodResizeInProgress); c != "" || actual(w.get("a")) != "100m 50Mi, allocated 100m 50Mi" {
			t.Errorf("%q, %s", c, actual(w.get("a")))
		}
	})
}
