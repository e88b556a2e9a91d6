package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	pods       = corev1.SchemeGroupVersion.WithResource("pods")
	nodes      = corev1.SchemeGroupVersion.WithResource("nodes")
	namespaces = corev1.SchemeGroupVersion.WithResource("namespaces")
	events     = corev1.SchemeGroupVersion.WithResource("events")
	claims     = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumes    = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
	budgets    = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")
	classes    = storagev1.SchemeGroupVersion.WithResource("storageclasses")
	drivers    = storagev1.SchemeGroupVersion.WithResource("csidrivers")
	onNodes    = storagev1.SchemeGroupVersion.WithResource("csinodes")
	capacities = storagev1.SchemeGroupVersion.WithResource("csistoragecapacities")
)

const component = "default-scheduler"

// bind writes a decision. It ends with the pod bound, or gone, or back in the
// queue, or ctx.
func (s *Scheduler) bind(ctx context.Context, e *entry, assumed *podInfo, waiting []*corev1.PersistentVolumeClaim) {
	if len(waiting) > 0 {
		if err := s.bindVolumes(ctx, e, assumed, waiting); err != nil {
			if ctx.Err() != nil {
				return
			}
			s.mu.Lock()
			info := e.info
			s.mu.Unlock()
			s.unbind(e, assumed, err)
			if !errors.Is(err, errPodGone) {
				s.writeFailure(ctx, info, `running PreBind plugin "VolumeBinding": binding volumes: `+err.Error(), true)
			}
			return
		}
	}
	binding := &corev1.Binding{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Binding"},
		ObjectMeta: metav1.ObjectMeta{Namespace: assumed.Namespace, Name: assumed.Name, UID: assumed.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: assumed.Spec.NodeName},
	}
	var err error
	for delay := firstBackOff; ; delay = min(2*delay, lastBackOff) {
		_, err = s.Client.Create(ctx, pods, assumed.Namespace, assumed.Name, binding, metav1.CreateOptions{}, "binding")
		if err == nil || definite(err) || !pause(ctx, delay) {
			break
		}
		// It may or may not be bound: the same again finds out.
	}
	if ctx.Err() != nil {
		return
	}
	if apierrors.IsConflict(err) && s.boundTo(ctx, assumed) {
		err = nil // an earlier try of ours got through
	}
	if err == nil {
		s.mu.Lock()
		if s.queue.entries[assumed.UID] == e {
			s.queue.remove(assumed.UID)
		}
		s.mu.Unlock()
		s.event(ctx, assumed.Pod, corev1.EventTypeNormal, "Scheduled", "Binding",
			fmt.Sprintf("Successfully assigned %s/%s to %s", assumed.Namespace, assumed.Name, assumed.Spec.NodeName))
		return
	}
	s.unbind(e, assumed, err)
}

// unbind takes a decision back that could not be carried out.
func (s *Scheduler) unbind(e *entry, assumed *podInfo, err error) {
	s.Log.Debug("binding refused", "pod", assumed.Namespace+"/"+assumed.Name, "node", assumed.Spec.NodeName, "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.signal()
	if s.snapshot.pods[assumed.UID] == assumed { // no watch has told better
		s.snapshot.removePod(assumed.UID)
		s.queue.wakeAll(s.Now(), func(*podInfo) bool { return true })
	}
	if apierrors.IsNotFound(err) && s.queue.entries[assumed.UID] == e {
		s.queue.remove(assumed.UID)
		return
	}
	s.queue.failed(e, s.Now(), true)
}

// definite says that an error is an answer: nothing was bound by that call.
func definite(err error) bool {
	for _, is := range []func(error) bool{
		apierrors.IsNotFound, apierrors.IsConflict, apierrors.IsAlreadyExists, apierrors.IsForbidden,
		apierrors.IsInvalid, apierrors.IsBadRequest, apierrors.IsServiceUnavailable, apierrors.IsTooManyRequests,
		apierrors.IsUnauthorized, apierrors.IsGone, apierrors.IsMethodNotSupported,
	} {
		if is(err) {
			return true
		}
	}
	return false
}

// pause waits, and says whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Scheduler) boundTo(ctx context.Context, assumed *podInfo) bool {
	o, err := s.Client.Get(ctx, pods, assumed.Namespace, assumed.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return false
	}
	pod, ok := o.(*corev1.Pod)
	return ok && pod.UID == assumed.UID && pod.Spec.NodeName == assumed.Spec.NodeName
}

// writeFailure notes on a pod why it has no node, and, if that is news, in an
// event.
func (s *Scheduler) writeFailure(ctx context.Context, p *podInfo, message string, news bool) {
	if news {
		s.event(ctx, p.Pod, corev1.EventTypeWarning, "FailedScheduling", "Scheduling", message)
	}
	s.writeCondition(ctx, p.Pod, corev1.PodReasonUnschedulable, message)
}

func (s *Scheduler) writeCondition(ctx context.Context, pod *corev1.Pod, reason, message string) {
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
	if i >= 0 && pod.Status.Conditions[i].Status == corev1.ConditionFalse && pod.Status.Conditions[i].Reason == reason && pod.Status.Conditions[i].Message == message {
		return
	}
	condition := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: reason, Message: message,
		LastTransitionTime: metav1.NewTime(s.Now()).Rfc3339Copy(), ObservedGeneration: pod.Generation,
	}
	pod = pod.DeepCopy()
	if i >= 0 {
		if pod.Status.Conditions[i].Status == corev1.ConditionFalse {
			condition.LastTransitionTime = pod.Status.Conditions[i].LastTransitionTime
		}
		pod.Status.Conditions[i] = condition
	} else {
		pod.Status.Conditions = append(pod.Status.Conditions, condition)
	}
	if _, err := s.Client.Update(ctx, pods, pod.Namespace, pod, metav1.UpdateOptions{}, "status"); err != nil && ctx.Err() == nil {
		// Somebody changed or deleted it: that brings it here again.
		s.Log.Debug("condition not written", "pod", pod.Namespace+"/"+pod.Name, "error", err)
	}
}

func (s *Scheduler) event(ctx context.Context, pod *corev1.Pod, kind, reason, action, message string) {
	now := s.Now()
	stamp := metav1.NewTime(now)
	e := &corev1.Event{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: fmt.Sprintf("%s.%x", pod.Name, now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		},
		Type: kind, Reason: reason, Action: action, Message: message, Count: 1,
		FirstTimestamp: stamp, LastTimestamp: stamp,
		Source: corev1.EventSource{Component: component}, ReportingController: component,
	}
	if _, err := s.Client.Create(ctx, events, e.Namespace, e.Name, e, metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
		s.Log.Debug("event not written", "pod", pod.Namespace+"/"+pod.Name, "reason", reason, "error", err)
	}
}
