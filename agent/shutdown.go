package agent

import (
	"cmp"
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The words of kubelet's graceful node shutdown.
const (
	reasonTerminated    = "Terminated"
	messageTerminated   = "Pod was terminated in response to imminent node shutdown."
	reasonShutdown      = "NodeShutdown"
	messageShutdown     = "Pod was rejected as the node is shutting down."
	messageShuttingDown = "node is shutting down"
)

// ShutdownPeriod is what pods of at least a priority, and below that of the next
// period, get to end when their host goes down.
type ShutdownPeriod struct {
	Priority int32
	Grace    time.Duration
}

// CriticalPriority is the least of the pods that are critical for the cluster
// or a node.
const CriticalPriority = criticalPodPrio

// Shutdown ends this node's pods because its host goes down: one period after
// the other, the least priority first, each no longer than it says. Pods of less
// priority than any period names belong to the first. It returns when all have
// ended and the API knows, or after the periods. No pod is taken on any more.
// Static pods are left to the host: they come back with it.
func (a *Agent) Shutdown(ctx context.Context, periods []ShutdownPeriod) {
	a.mu.Lock()
	a.goingDown = true
	a.mu.Unlock()
	poke(a.node.wake)
	periods = slices.Clone(periods)
	slices.SortFunc(periods, func(x, y ShutdownPeriod) int { return cmp.Compare(x.Priority, y.Priority) })
	for i, period := range periods {
		var ending []*podWorker
		for _, w := range a.allWorkers() {
			if w.static == nil && periodOf(periods, w.view().pod) == i {
				w.giveUp(period.Grace)
				ending = append(ending, w)
			}
		}
		limited, cancel := context.WithTimeout(ctx, period.Grace)
		for _, w := range ending {
			a.awaitEnd(limited, w)
		}
		cancel()
	}
}

// periodOf is the index of a pod's period, among those in order.
func periodOf(periods []ShutdownPeriod, pod *corev1.Pod) int {
	of := 0
	for i, p := range periods {
		if priorityOf(pod) >= p.Priority {
			of = i
		}
	}
	return of
}

// giveUp ends the worker's pod for good, within grace.
func (w *podWorker) giveUp(grace time.Duration) {
	w.mu.Lock()
	w.goingDown, w.within = true, grace
	w.mu.Unlock()
	poke(w.wake)
}

// awaitEnd waits until nothing of a pod is left and the API knows.
func (a *Agent) awaitEnd(ctx context.Context, w *podWorker) {
	changed, done := a.watchPod(w.uid)
	defer done()
	for {
		if v := w.view(); a.worker(w.uid) != w || v.rec.Down && v.told {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) isGoingDown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.goingDown
}

// disruption tells controllers that a pod did not fail by itself.
func disruption(f *failure, set func(t corev1.PodConditionType, ok bool, reason, message string) corev1.PodCondition) []corev1.PodCondition {
	if f == nil || f.Reason != reasonTerminated {
		return nil
	}
	c := set(corev1.DisruptionTarget, true, "", "")
	c.Reason, c.Message = corev1.PodReasonTerminationByKubelet, f.Message
	return []corev1.PodCondition{c}
}
