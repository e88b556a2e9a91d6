package agent_test

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// diary is what the hooks of a pod did, in order.
type diary struct {
	mu   sync.Mutex
	all  []string
	code int
	took time.Duration
}

func (d *diary) exec(ctx context.Context, _, id string, cmd []string, _ io.Reader, _, _ io.Writer) (int, error) {
	d.mu.Lock()
	d.all = append(d.all, id+" "+strings.Join(cmd, " "))
	code, took := d.code, d.took
	d.mu.Unlock()
	select {
	case <-time.After(took):
		return code, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (d *diary) entries() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.all)
}

func hooked(p *corev1.Pod) {
	command := func(name string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{name}}}
	}
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: command("hello"), PreStop: command("goodbye")}
}

func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{took: 5 * time.Second}
		w := newWorld(t, func(w *world) { w.runtime.OnExec = d.exec })
		w.create(pod("a", hooked, func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side", Image: "app:1"})
		}))
		after(4 * time.Second)
		p := w.get("a")
		if s := state(p, "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "ContainerCreating" || p.Status.Phase != corev1.PodPending {
			t.Errorf("while the hook runs: %s", show(p.Status))
		}
		if n := len(w.runtime.Started()); n != 1 {
			t.Errorf("%d containers were started before the hook of the first had ended", n)
		}
		after(2 * time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning || state(p, "web").State.Running == nil || state(p, "side").State.Running == nil {
			t.Errorf("after the hook: %s", show(p.Status))
		}
		w.delete("a", 30)
		after(4 * time.Second)
		if p := w.get("a"); p == nil || state(p, "web").State.Running == nil {
			t.Error("the container was stopped before its hook had ended")
		}
		after(2 * time.Second)
		if w.get("a") != nil {
			t.Error("the pod stays")
		}
		if got := d.entries(); !slices.Equal(got, []string{"web_0 hello", "web_0 goodbye"}) {
			t.Errorf("hooks: %q", got)
		}
	})
}

// A hook that takes longer than the grace period ends with it, and one of a pod
// that is deleted anew with less is cut short and not run again.
func TestPreStopAndGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		w := newWorld(t, func(w *world) { w.runtime.OnExec = d.exec })
		w.create(pod("long", hooked))
		w.create(pod("short", hooked))
		after(time.Second)
		d.mu.Lock()
		d.all, d.took = nil, time.Hour
		d.mu.Unlock()
		w.delete("long", 10)
		w.delete("short", 10)
		after(2 * time.Second)
		w.delete("short", 1)
		after(3 * time.Second)
		if w.get("short") != nil || w.get("long") == nil {
			t.Error("the hook was not cut short, or that of another was")
		}
		after(6 * time.Second)
		if w.get("long") != nil {
			t.Error("a hook outlives the grace period")
		}
		if got := d.entries(); len(got) != 2 {
			t.Errorf("hooks: %q", got)
		}
	})
}

func TestFailingPostStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{code: 3}
		w := newWorld(t, func(w *world) { w.runtime.OnExec = d.exec })
		w.create(pod("a", hooked, func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			p.Spec.Containers[0].Lifecycle.PreStop = nil
		}))
		after(time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodFailed {
			t.Errorf("%s", show(p.Status))
		}
	})
}
