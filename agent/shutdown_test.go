package agent_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/agent"
	"conclave/agent/agenttest"
)

var ordinaryFirst = []agent.ShutdownPeriod{{Grace: 20 * time.Second}, {Priority: agent.CriticalPriority, Grace: 10 * time.Second}}

// Periods may be of any priorities, in any order. A pod belongs to the highest
// that it reaches, or else to the lowest.
func TestShutdownByPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		names := map[string]int32{"low": -10, "plain": 0, "web": 1000, "data": 5000}
		for name, priority := range names {
			w.put(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: priority})
			w.create(pod(name, func(p *corev1.Pod) {
				p.Spec.PriorityClassName, p.Spec.TerminationGracePeriodSeconds = name, new(int64(600))
			}))
		}
		after(time.Second)
		began := time.Now()
		go w.agent.Shutdown(context.Background(), []agent.ShutdownPeriod{{Priority: 5000, Grace: 7 * time.Second}, {Priority: 0, Grace: 3 * time.Second}, {Priority: 1000, Grace: 5 * time.Second}})
		for _, step := range []struct {
			at    time.Duration
			ended []string
		}{{2 * time.Second, nil}, {4 * time.Second, []string{"low", "plain"}}, {7 * time.Second, []string{"low", "plain"}}, {9 * time.Second, []string{"low", "plain", "web"}}, {14 * time.Second, []string{"low", "plain", "web"}}, {17 * time.Second, []string{"data", "low", "plain", "web"}}} {
			after(step.at - time.Since(began))
			var ended []string
			for name := range names {
				if w.get(name).Status.Phase == corev1.PodFailed {
					ended = append(ended, name)
				}
			}
			if slices.Sort(ended); !slices.Equal(ended, step.ended) {
				t.Errorf("after %s %v have ended, not %v", step.at, ended, step.ended)
			}
		}
	})
}

// A host that goes down ends its pods in order: the critical ones last, none
// later than its part of the time.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		w.create(pod("slow", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(600)) }))
		w.create(pod("quick", func(p *corev1.Pod) { p.Spec.TerminationGracePeriodSeconds = new(int64(3)) }))
		w.create(pod("critical", func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-node-critical" }))
		after(time.Second)
		done := make(chan time.Time, 1)
		began := time.Now()
		go func() {
			w.agent.Shutdown(context.Background(), ordinaryFirst)
			done <- time.Now()
		}()
		phases := func() [3]corev1.PodPhase {
			return [3]corev1.PodPhase{w.get("slow").Status.Phase, w.get("quick").Status.Phase, w.get("critical").Status.Phase}
		}
		const up, over = corev1.PodRunning, corev1.PodFailed
		for _, step := range []struct {
			at   time.Duration
			want [3]corev1.PodPhase
		}{{2 * time.Second, [3]corev1.PodPhase{up, up, up}}, {4 * time.Second, [3]corev1.PodPhase{up, over, up}}, {19 * time.Second, [3]corev1.PodPhase{up, over, up}}, {21 * time.Second, [3]corev1.PodPhase{over, over, up}}, {29 * time.Second, [3]corev1.PodPhase{over, over, up}}} {
			after(step.at - time.Since(began))
			if got := phases(); got != step.want {
				t.Errorf("after %s: %v, want %v", step.at, got, step.want)
			}
		}
		if n := w.node(); ready(n).Status != corev1.ConditionFalse || ready(n).Message != "node is shutting down" {
			t.Errorf("the node: %s", show(n.Status.Conditions))
		}
		w.create(pod("late"))
		after(500 * time.Millisecond)
		if p := w.get("late"); p.Status.Reason != "NodeShutdown" || p.Status.Phase != over {
			t.Errorf("a pod that comes now: %s", show(p.Status))
		}
		after(3 * time.Second)
		p := w.get("critical")
		if p.Status.Phase != over || p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." || condition(p, corev1.DisruptionTarget) != corev1.ConditionTrue {
			t.Errorf("%s", show(p.Status))
		}
		select {
		case at := <-done:
			if took := at.Sub(began); took > 31*time.Second {
				t.Errorf("it took %s", took)
			}
		default:
			t.Error("the shutdown has not ended")
		}
	})
}

// A shutdown that finds nothing that takes its time, takes none itself.
func TestShutdownOfQuickPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a"))
		after(time.Second)
		began := time.Now()
		w.agent.Shutdown(context.Background(), ordinaryFirst)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("it took %s", took)
		}
		if p := w.get("a"); p.Status.Reason != "Terminated" {
			t.Errorf("%s", show(p.Status))
		}
	})
}
