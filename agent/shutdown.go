package agent

import (
	"context"
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

// Shutdown ends this node's pods because its host goes down: the ordinary ones
// first, then those that are critical for the cluster or the node, for which
// the last part of grace is kept. It returns when all have ended and the API
// knows, or after grace. No pod is taken on any more. Static pods are left to
// the host: they come back with it.
func (a *Agent) Shutdown(ctx context.Context, grace, critical time.Duration) {
	a.mu.Lock()
	a.goingDown = true
	a.mu.Unlock()
	poke(a.node.wake)
	for _, group := range []struct {
		critical bool
		grace    time.Duration
	}{{false, grace - critical}, {true, critical}} {
		var ending []*podWorker
		for _, w := range a.allWorkers() {
			pod := w.view().pod
			isCritical := pod.Spec.Priority != nil && *pod.Spec.Priority >= criticalPodPrio
			if w.static == nil && isCritical == group.critical {
				w.giveUp(group.grace)
				ending = append(ending, w)
			}
		}
		limited, cancel := context.WithTimeout(ctx, group.grace)
		for _, w := range ending {
			a.awaitEnd(limited, w)
		}
		cancel()
	}
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
