package controller

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

func podCondition(pod *corev1.Pod, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == t {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

func podReady(pod *corev1.Pod) bool {
	c := podCondition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// podFinished says that no container of the pod runs or will run.
func podFinished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// podActive says that the pod counts as a replica.
func podActive(pod *corev1.Pod) bool {
	return !podFinished(pod) && pod.DeletionTimestamp == nil
}

// availableIn returns how long a ready pod must still stay ready to count as
// available: 0 if it does already. A pod that is not ready is never available.
func availableIn(pod *corev1.Pod, minReady time.Duration, now time.Time) (left time.Duration, ready bool) {
	if !podReady(pod) {
		return 0, false
	}
	since := podCondition(pod, corev1.PodReady).LastTransitionTime
	left = max(since.Add(minReady).Sub(now), 0)
	if minReady == 0 || left > 2*minReady { // the clock of one of us is wrong, and so the time says nothing
		left = 0
	}
	return left, true
}

// controllerKey is the Key of an object's controller, if that is of the kind.
func controllerKey(o api.Object, kind string) (Key, bool) {
	ref := metav1.GetControllerOfNoCopy(o)
	if ref == nil || ref.Kind != kind {
		return Key{}, false
	}
	return Key{Namespace: o.GetNamespace(), Name: ref.Name}, true
}

// sides returns the objects of a change, without nils.
func (c Change) sides() []api.Object {
	var all []api.Object
	if c.Old != nil {
		all = append(all, c.Old)
	}
	if c.New != nil && c.New != c.Old {
		all = append(all, c.New)
	}
	return all
}
