package kinds

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A pod may still name its containers' AppArmor profiles in annotations, as
// before there were fields (KEP-24). What it says there becomes the field when the
// pod is made, and stays as it is: everybody else reads the field.

// appArmorOf is the field that an annotation stands for; nil for none.
func appArmorOf(annotation string) *corev1.AppArmorProfile {
	name, local := strings.CutPrefix(annotation, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
	switch {
	case annotation == corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	case annotation == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	case local && name != "" && strings.TrimSpace(name) == name:
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	return nil
}

// appArmorFields writes into a new pod's fields what its annotations say. Where a
// field says something already, validation compares them.
func appArmorFields(pod *corev1.Pod) {
	var whole *corev1.AppArmorProfile
	if sc := pod.Spec.SecurityContext; sc != nil {
		whole = sc.AppArmorProfile
	}
	for _, c := range allContainers(&pod.Spec) {
		profile := appArmorOf(pod.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name])
		if profile == nil || c.SecurityContext != nil && c.SecurityContext.AppArmorProfile != nil || equality.Semantic.DeepEqual(profile, whole) {
			continue
		}
		if c.SecurityContext == nil {
			c.SecurityContext = &corev1.SecurityContext{}
		}
		c.SecurityContext.AppArmorProfile = profile
	}
}

// podMetadata is of annotations that mean something for a pod.
func (e *problems) podMetadata(annotations map[string]string, spec *corev1.PodSpec, p *field.Path) {
	p = p.Child("annotations")
	for key, profile := range sorted(annotations) {
		name, ok := strings.CutPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix)
		if !ok {
			continue
		}
		if !slices.ContainsFunc(allContainers(spec), func(c *corev1.Container) bool { return c.Name == name }) {
			e.invalid(p.Key(key), name, "container not found")
		}
		if profile != "" && appArmorOf(profile) == nil && !strings.HasPrefix(profile, corev1.DeprecatedAppArmorBetaProfileNamePrefix) {
			e.invalid(p.Key(key), profile, fmt.Sprintf("invalid AppArmor profile name: %q", profile))
		}
	}
}

// appArmorAgrees refuses a new pod whose annotation and field differ.
func (e *problems) appArmorAgrees(pod *corev1.Pod) {
	for at, c := range containersOf(specPath, &pod.Spec) {
		annotation, ok := pod.Annotations[corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]
		if !ok || c.SecurityContext == nil || c.SecurityContext.AppArmorProfile == nil {
			continue
		}
		is, says := c.SecurityContext.AppArmorProfile, appArmorOf(annotation)
		at = at.Child("securityContext", "appArmorProfile")
		switch {
		case says == nil || says.Type != is.Type:
			e.forbidden(at.Child("type"), "apparmor type in annotation and field must match")
		case says.LocalhostProfile != nil && is.LocalhostProfile != nil && *says.LocalhostProfile != *is.LocalhostProfile:
			e.forbidden(at.Child("localhostProfile"), "apparmor profile in annotation and field must match")
		}
	}
}

// appArmorStays refuses any change of these annotations.
func (e *problems) appArmorStays(now, old map[string]string) {
	p := field.NewPath("metadata", "annotations")
	for key, was := range sorted(old) {
		if is, ok := now[key]; strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) && (!ok || is != was) {
			e.forbidden(p.Key(key), "may not remove or update AppArmor annotations")
		}
	}
	for key := range sorted(now) {
		if _, ok := old[key]; strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) && !ok {
			e.forbidden(p.Key(key), "may not add AppArmor annotations")
		}
	}
}

// appArmorWarnings tell whoever makes a pod, or what makes pods, of the fields.
func appArmorWarnings(p *field.Path, annotations map[string]string) (out []string) {
	for key := range sorted(annotations) {
		if strings.HasPrefix(key, corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix) {
			out = append(out, p.Child("metadata", "annotations").Key(key).String()+`: deprecated since v1.30; use the "appArmorProfile" field instead`)
		}
	}
	return out
}
