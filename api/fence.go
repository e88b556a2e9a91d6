package api

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Fenced says that two copies of a pod must never run: it is a StatefulSet's,
// or it mounts a claim that only one node, or one pod, may mount at a time.
// claim finds a claim of the pod's namespace; one that it does not know (nil)
// counts as such, so that two who know different things err to the safe side.
func Fenced(pod *corev1.Pod, claim func(name string) *corev1.PersistentVolumeClaim) bool {
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil && owner.Kind == "StatefulSet" {
		return true
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		switch {
		case v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil:
			return single(v.Ephemeral.VolumeClaimTemplate.Spec.AccessModes)
		case v.PersistentVolumeClaim != nil:
			c := claim(v.PersistentVolumeClaim.ClaimName)
			return c == nil || single(c.Spec.AccessModes)
		}
		return false
	})
}

// single says that not all of a claim's modes are for many nodes.
func single(modes []corev1.PersistentVolumeAccessMode) bool {
	return len(modes) == 0 || slices.ContainsFunc(modes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteMany && m != corev1.ReadOnlyMany
	})
}
