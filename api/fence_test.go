package api

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestFenced(t *testing.T) {
	yes := true
	owned := func(kind string, controller *bool) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: kind, Controller: controller}}}}
	}
	claims := map[string][]corev1.PersistentVolumeAccessMode{
		"once": {corev1.ReadWriteOnce}, "pod": {corev1.ReadWriteOncePod}, "many": {corev1.ReadWriteMany, corev1.ReadOnlyMany},
		"either": {corev1.ReadWriteMany, corev1.ReadWriteOnce},
	}
	mounting := func(name string) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}}}
	}
	ephemeral := func(modes ...corev1.PersistentVolumeAccessMode) *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes}}}}}}}}
	}
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		want bool
	}{
		"nobody's":                {&corev1.Pod{}, false},
		"a ReplicaSet's":          {owned("ReplicaSet", &yes), false},
		"a StatefulSet's":         {owned("StatefulSet", &yes), true},
		"of another's ownership":  {owned("StatefulSet", nil), false},
		"for one node":            {mounting("once"), true},
		"for one pod":             {mounting("pod"), true},
		"for many nodes":          {mounting("many"), false},
		"for one node or many":    {mounting("either"), true},
		"of an unknown claim":     {mounting("unknown"), true},
		"with a claim of its own": {ephemeral(corev1.ReadWriteOnce), true},
		"with one for many":       {ephemeral(corev1.ReadWriteMany), false},
	} {
		got := Fenced(tc.pod, func(name string) *corev1.PersistentVolumeClaim {
			if modes, ok := claims[name]; ok {
				return &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes}}
			}
			return nil
		})
		if got != tc.want {
			t.Errorf("a pod %s: %v", name, got)
		}
	}
}

// A pod that must not run twice is not gone before its node says so, unless
// somebody says that no grace is to be given.
func TestGraceOfFencedPods(t *testing.T) {
	zero, yes := int64(0), true
	pod := &corev1.Pod{Spec: corev1.PodSpec{NodeName: "n", TerminationGracePeriodSeconds: &zero}}
	if got := podGrace(pod, nil); got != 0 {
		t.Errorf("an ordinary pod: %d", got)
	}
	pod.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Controller: &yes}}
	if got := podGrace(pod, nil); got != 1 {
		t.Errorf("a fenced pod: %d", got)
	}
	if got := podGrace(pod, &zero); got != 0 {
		t.Errorf("a fenced pod, by force: %d", got)
	}
	pod.Spec.NodeName = ""
	if got := podGrace(pod, nil); got != 0 {
		t.Errorf("one that runs nowhere: %d", got)
	}
}
