package agent_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/agent"
	"conclave/agent/agenttest"
	"conclave/api"
)

func ofStatefulSet(p *corev1.Pod) {
	yes := true
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "s", UID: "s", Controller: &yes}}
}

// starts are the containers that were started of pods of that name.
func (w *world) starts(uid types.UID) (ids []string) {
	for _, c := range w.runtime.Started() {
		if c.PodID == string(uid) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

func (w *world) wantStarts(what string, uid types.UID, want ...string) {
	w.t.Helper()
	if got := w.starts(uid); !slices.Equal(got, want) {
		w.t.Errorf("%s: started %q, want %q", what, got, want)
	}
}

func (w *world) raise() {
	w.runtime.SetFence(true)
	w.agent.FenceRaised()
}

// change updates a pod in the API.
func (w *world) change(name string, edit func(*corev1.Pod)) {
	w.t.Helper()
	p := w.get(name).DeepCopy()
	edit(p)
	if _, err := w.client.Update(w.t.Context(), podsGVR, p.Namespace, p, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func fenceCondition(p *corev1.Pod) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == agent.ConditionFence {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestFenceKillsAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		fenced, plain := w.create(pod("a", ofStatefulSet)), w.create(pod("b"))
		after(time.Second)
		first := fenceCondition(w.get("a"))
		if first.Status != corev1.ConditionTrue || fenceCondition(w.get("b")).Type != "" {
			t.Fatalf("the conditions are %+v and %+v", first, fenceCondition(w.get("b")))
		}
		w.runtime.SetFence(false)
		after(time.Minute)
		w.wantStarts("behind the fence", fenced.UID, "web_0")
		w.wantStarts("the ordinary pod", plain.UID, "web_0")
		s := state(w.get("a"), "web")
		if s.State.Terminated == nil || s.State.Terminated.Reason != agent.ReasonFenced || s.State.Terminated.ExitCode != 137 {
			t.Errorf("the status is %s", show(s))
		}
		if len(w.events(agent.ReasonFenced)) != 1 {
			t.Errorf("the events are %q", w.events(agent.ReasonFenced))
		}
		w.raise()
		after(time.Millisecond)
		w.wantStarts("the fence is back", fenced.UID, "web_0", "web_1")
		after(time.Second)
		if now := fenceCondition(w.get("a")); !now.LastProbeTime.After(first.LastProbeTime.Time) {
			t.Errorf("nothing was written about the pod before it was started again: %+v", now)
		}
		// It was not its fault: the next crash is its first.
		w.runtime.Exit(string(fenced.UID), "web_1", 1)
		after(time.Millisecond)
		w.wantStarts("after a crash", fenced.UID, "web_0", "web_1", "web_2")
		w.restart()
		after(time.Second)
		w.wantStarts("after a restart of the agent", fenced.UID, "web_0", "web_1", "web_2")
	})
}

// judging is a client that may refuse what is written about pods.
type judging struct {
	api.Client
	refusal   atomic.Pointer[error]
	patched   atomic.Int64
	forbidden atomic.Bool // to read a pod by its name
}

func (j *judging) Get(ctx context.Context, g gvr, ns, name string, o metav1.GetOptions, sub ...string) (api.Object, error) {
	if g == podsGVR && j.forbidden.Load() {
		return nil, apierrors.NewForbidden(g.GroupResource(), name, errors.New("it is another node's"))
	}
	return j.Client.Get(ctx, g, ns, name, o, sub...)
}

func (j *judging) Patch(ctx context.Context, g gvr, ns, name string, t types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (api.Object, error) {
	if err := j.refusal.Load(); err != nil {
		return nil, *err
	}
	if strings.Contains(string(data), "LeaseHeld") {
		j.patched.Add(1)
	}
	return j.Client.Patch(ctx, g, ns, name, t, data, o, sub...)
}

// The pod was deleted and this agent has not heard of it, or the API does not
// answer: the lease alone does not let it run.
func TestFenceAsksTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &judging{}
		w := newWorld(t, func(w *world) { client.Client = w.client; w.config.Client = client })
		p := w.create(pod("a", ofStatefulSet))
		after(time.Second)
		w.runtime.SetFence(false)
		after(time.Second)
		gone := error(apierrors.NewNotFound(podsGVR.GroupResource(), "a"))
		client.refusal.Store(&gone)
		w.raise()
		after(10 * time.Minute)
		w.wantStarts("while the API refuses", p.UID, "web_0")
		// What was allowed in one epoch does not hold in the next.
		client.refusal.Store(nil)
		before := client.patched.Load()
		after(5 * time.Minute)
		w.wantStarts("once it does not", p.UID, "web_0", "web_1")
		w.runtime.SetFence(false)
		w.raise()
		after(time.Minute)
		w.wantStarts("in the next epoch", p.UID, "web_0", "web_1", "web_2")
		if n := client.patched.Load() - before; n != 2 {
			t.Errorf("the API was asked %d times for two epochs", n)
		}
	})
}

func TestFenceAtBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		fenced, plain := w.create(pod("a", ofStatefulSet)), w.create(pod("b"))
		after(time.Second)
		w.stop()
		w.runtime.SetFence(false)
		w.runtime.Reboot()
		w.start()
		after(time.Minute)
		w.wantStarts("booted without a lease", fenced.UID, "web_0")
		w.wantStarts("the ordinary pod", plain.UID, "web_0", "web_1")
		w.raise()
		after(time.Second)
		w.wantStarts("with a lease", fenced.UID, "web_0", "web_1")
	})
}

func TestFenceOfAnAdoptedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.create(pod("a"))
		after(time.Second)
		fenced := func() bool { c, _ := w.runtime.PodConfig(string(p.UID)); return c.Fenced }
		if fenced() {
			t.Fatal("an ordinary pod is fenced")
		}
		w.change("a", ofStatefulSet)
		after(time.Second)
		if !fenced() {
			t.Error("an adopted pod is not fenced")
		}
		w.change("a", func(p *corev1.Pod) { p.OwnerReferences = nil })
		after(time.Second)
		if fenced() {
			t.Error("a pod that was let go is fenced")
		}
		w.wantStarts("of it all", p.UID, "web_0")
	})
}

// A pod that was removed by force may have a successor: it gets no grace.
func TestFencedPodRemovedByForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		p := w.create(pod("a", ofStatefulSet))
		after(time.Second)
		w.delete("a", 0)
		after(time.Millisecond)
		for _, c := range w.runtime.Containers(string(p.UID)) {
			if c.State == agent.Running {
				t.Errorf("%+v", c)
			}
		}
	})
}

// The pod was replaced on another node while this agent was not there: it may
// not even read its successor.
func TestReplacedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &judging{}
		w := newWorld(t, func(w *world) { client.Client = w.client; w.config.Client = client })
		w.create(pod("a", ofStatefulSet))
		after(time.Second)
		w.stop()
		w.delete("a", 0)
		w.create(pod("a", ofStatefulSet, func(p *corev1.Pod) { p.Spec.NodeName = "n2" }))
		client.forbidden.Store(true)
		w.start()
		after(time.Second)
		if len(w.runtime.Pods()) != 0 {
			t.Error("a pod that runs elsewhere by now was not taken down")
		}
	})
}
