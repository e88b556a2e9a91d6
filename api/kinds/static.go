package kinds

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// CompleteStatic makes of a pod that was read from a file on a node what the
// server would make of one that it was sent, and says what is wrong with it. No
// master may be in sight when such a pod starts, so it needs nothing that only
// they have.
func CompleteStatic(pod *corev1.Pod) field.ErrorList {
	defaultPod(pod)
	preparePodCreate(pod)
	errs := validatePod(pod)
	refuse := func(at *field.Path, set bool) {
		if set {
			errs = append(errs, field.Forbidden(at, "a static pod may not refer to objects of the API"))
		}
	}
	refuse(specPath.Child("serviceAccountName"), pod.Spec.ServiceAccountName != "")
	refuse(specPath.Child("resourceClaims"), len(pod.Spec.ResourceClaims) > 0)
	refuse(specPath.Child("imagePullSecrets"), len(pod.Spec.ImagePullSecrets) > 0)
	for i, v := range pod.Spec.Volumes {
		at := specPath.Child("volumes").Index(i)
		refuse(at, v.Secret != nil || v.ConfigMap != nil || v.PersistentVolumeClaim != nil || v.Ephemeral != nil || v.CSI != nil)
		if v.Projected == nil {
			continue
		}
		for j, s := range v.Projected.Sources {
			refuse(at.Child("projected", "sources").Index(j), s.DownwardAPI == nil)
		}
	}
	for at, c := range containersOf(specPath, &pod.Spec) {
		for i, e := range c.Env {
			refuse(at.Child("env").Index(i), e.ValueFrom != nil && (e.ValueFrom.ConfigMapKeyRef != nil || e.ValueFrom.SecretKeyRef != nil))
		}
		refuse(at.Child("envFrom"), len(c.EnvFrom) > 0)
	}
	return errs
}
