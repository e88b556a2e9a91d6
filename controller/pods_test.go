package controller

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAvailableIn(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		ready    corev1.ConditionStatus
		since    time.Duration // before now
		minReady time.Duration
		left     time.Duration
		ok       bool
	}{
		{corev1.ConditionFalse, time.Hour, 0, 0, false},
		{corev1.ConditionTrue, 0, 0, 0, true},
		{corev1.ConditionTrue, 4 * time.Second, 10 * time.Second, 6 * time.Second, true},
		{corev1.ConditionTrue, 11 * time.Second, 10 * time.Second, 0, true},
		{corev1.ConditionTrue, -2 * time.Second, 10 * time.Second, 12 * time.Second, true},
		{corev1.ConditionTrue, -20 * time.Hour, 10 * time.Second, 0, true}, // by a node whose clock is wrong
		{corev1.ConditionTrue, -20 * time.Hour, 0, 0, true},
	} {
		pod := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{
			Type: corev1.PodReady, Status: test.ready, LastTransitionTime: metav1.NewTime(now.Add(-test.since))}}}}
		if left, ok := availableIn(pod, test.minReady, now); left != test.left || ok != test.ok {
			t.Errorf("%s since %s, of %s: %s %v, not %s %v", test.ready, test.since, test.minReady, left, ok, test.left, test.ok)
		}
	}
}
