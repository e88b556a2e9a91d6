package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

// A fenced pod must never run twice (api.Fenced). Three things see to it. Its
// own process kills it when the node's fence comes down; the leader replaces it
// only when that has happened; and after that, here, nothing of it is started
// before the API took a write about the pod: the leader deletes the pod only as
// it was before it saw that the node was gone, so either that write comes first
// and the deletion is refused, or the deletion does and the write is. What the
// write allowed holds for one epoch of the fence, which the runtime checks with
// each start, since this process may be stopped between any two steps.

// ConditionFence is the condition of a fenced pod by which its node says that it
// may run it.
const ConditionFence corev1.PodConditionType = "conclave.io/Fence"

// unfenced, if not empty, leaves every pod without a fence. Only a test's build
// sets it, by the linker, to show what the fence is for.
var unfenced string

// fenced says whether a pod must never run twice.
func (a *Agent) fenced(pod *corev1.Pod) bool {
	return unfenced == "" && api.Fenced(pod, func(string) *corev1.PersistentVolumeClaim { return nil })
}

// FenceRaised tells that the fence is up again after it was down.
func (a *Agent) FenceRaised() {
	for _, w := range a.allWorkers() {
		poke(w.wake)
	}
}

// fenceState is how a pod stands to the fence.
type fenceState struct {
	needed  bool // the pod is a fenced one
	up      bool // the node's fence holds
	allowed bool // the API took the write, in this epoch
	ask     opState
}

func (w *podWorker) fenceState() fenceState {
	if !w.a.fenced(w.pod) {
		return fenceState{}
	}
	epoch, up := w.a.cfg.Runtime.Fence()
	return fenceState{needed: true, up: up, allowed: w.epoch == epoch, ask: w.opState("fence", w.fence)}
}

// askFence writes into the API that this node is about to run the pod.
func (w *podWorker) askFence() {
	pod := w.pod
	epoch, _ := w.a.cfg.Runtime.Fence()
	now := metav1.NewTime(w.a.cfg.Now())
	condition := corev1.PodCondition{
		Type: ConditionFence, Status: corev1.ConditionTrue, Reason: "LeaseHeld", LastProbeTime: now, LastTransitionTime: now,
		Message: "This node may run the pod as long as its lease with the masters holds.", ObservedGeneration: pod.Generation,
	}
	w.start("fence", idle, 0, func(ctx context.Context) func() {
		written, err := w.a.writeCondition(ctx, pod, condition)
		return func() {
			switch {
			case err == nil:
				w.fence.succeeded()
				w.epoch = epoch
				w.update(written, false)
			case !errors.Is(err, context.Canceled):
				// Not found, conflict: it is deleted or another's. The follower will say so.
				w.log.Debug("a fenced pod is not allowed to run yet", "err", err)
				w.fence.failed(w.a.cfg.Now())
			}
		}
	})
}

// writeCondition sets one condition of this very pod and no other of its name.
func (a *Agent) writeCondition(ctx context.Context, pod *corev1.Pod, c corev1.PodCondition) (*corev1.Pod, error) {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": pod.UID},
		"status":   map[string]any{"conditions": []corev1.PodCondition{c}},
	})
	if err != nil {
		return nil, err
	}
	obj, err := a.cfg.Client.Patch(ctx, podsResource, pod.Namespace, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, err
	}
	written, ok := obj.(*corev1.Pod)
	if !ok || written.UID != pod.UID {
		return nil, apierrors.NewConflict(podsResource.GroupResource(), pod.Name, fmt.Errorf("it is not the pod %s any more", pod.UID))
	}
	return written, nil
}
