package kinds

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// mutablePodFields are named to whoever changes another one.
var mutablePodFields = quoted([]string{"spec.containers[*].image", "spec.initContainers[*].image", "spec.activeDeadlineSeconds"}) +
	",`spec.tolerations` (only additions to existing tolerations)" +
	",`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"

func validatePodUpdate(pod, old *corev1.Pod) field.ErrorList {
	e := metadata(&pod.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.podMetadata(pod.Annotations, &pod.Spec, field.NewPath("metadata"))
	e.appArmorStays(pod.Annotations, old.Annotations)
	p := specPath

	// The numbers of containers first: all else compares one with one.
	stop := false
	for _, of := range []struct {
		field     string
		was, now  int
		complaint string
	}{
		{"containers", len(old.Spec.Containers), len(pod.Spec.Containers), "pod updates may not add or remove containers"},
		{"initContainers", len(old.Spec.InitContainers), len(pod.Spec.InitContainers), "pod updates may not add or remove containers"},
	} {
		if of.was != of.now {
			e.forbidden(p.Child(of.field), of.complaint)
			stop = true
		}
	}
	if stop {
		return e.list()
	}
	for at, c := range containersOf(p, &pod.Spec) {
		if strings.HasPrefix(at.String(), "spec.ephemeralContainers") {
			continue
		}
		if c.Image == "" {
			e.required(at.Child("image"), "")
		} else if strings.TrimSpace(c.Image) != c.Image {
			e.invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace")
		}
	}

	deadline := p.Child("activeDeadlineSeconds")
	if now, was := pod.Spec.ActiveDeadlineSeconds, old.Spec.ActiveDeadlineSeconds; now != nil {
		switch {
		case *now < 0 || *now > math.MaxInt32:
			e.activeDeadline(deadline, now)
			return e.list()
		case was != nil && *was < *now:
			e.invalid(deadline, *now, "must be less than or equal to previous value")
			return e.list()
		}
	} else if was != nil {
		e.invalid(deadline, now, "must not update from a positive integer to nil value")
	}

	if len(pod.Spec.SchedulingGates) > 0 {
		for i, g := range pod.Spec.SchedulingGates {
			if !slices.Contains(old.Spec.SchedulingGates, g) {
				e.forbidden(p.Child("schedulingGates").Index(i), fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name))
			}
		}
		if pod.Spec.NodeName != "" && old.Spec.NodeName == "" {
			e.forbidden(p.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
		}
	}

	if !equality.Semantic.DeepEqual(pod.Spec.Tolerations, old.Spec.Tolerations) {
		e.onlyAdded(p.Child("tolerations"), pod.Spec.Tolerations, old.Spec.Tolerations)
	}

	// Whatever else differs, once the allowed differences are undone, is not.
	munged := pod.Spec.DeepCopy()
	for i := range munged.Containers {
		munged.Containers[i].Image = old.Spec.Containers[i].Image
	}
	for i := range munged.InitContainers {
		munged.InitContainers[i].Image = old.Spec.InitContainers[i].Image
	}
	munged.ActiveDeadlineSeconds = old.Spec.ActiveDeadlineSeconds
	munged.SchedulingGates = old.Spec.SchedulingGates
	munged.Tolerations = old.Spec.Tolerations
	// An older client may know only one of the two names.
	munged.DeprecatedServiceAccount = old.Spec.DeprecatedServiceAccount
	if was, now := old.Spec.TerminationGracePeriodSeconds, munged.TerminationGracePeriodSeconds; was != nil && *was < 0 && now != nil && *now == 1 {
		munged.TerminationGracePeriodSeconds = was
	}
	if len(old.Spec.SchedulingGates) > 0 {
		e.tightened(p, munged, &old.Spec)
	}
	if !equality.Semantic.DeepEqual(*munged, old.Spec) {
		e.forbidden(p, fmt.Sprintf("pod updates may not change fields other than %s\n%v", mutablePodFields, diff.Diff(old.Spec, *munged)))
	}
	return e.list()
}

// tightened allows a gated pod to be sent to fewer nodes than before, and
// undoes that in spec.
func (e *problems) tightened(p *field.Path, spec, old *corev1.PodSpec) {
	if !equality.Semantic.DeepEqual(spec.NodeSelector, old.NodeSelector) {
		for key, value := range old.NodeSelector {
			if now, ok := spec.NodeSelector[key]; !ok || now != value {
				e.invalid(p.Child("nodeSelector"), spec.NodeSelector, "only additions to spec.nodeSelector are allowed (no deletions or mutations)")
				break
			}
		}
		e.labels(p.Child("nodeSelector"), spec.NodeSelector)
		spec.NodeSelector = old.NodeSelector
	}
	required := func(s *corev1.PodSpec) *corev1.NodeSelector {
		if s.Affinity == nil || s.Affinity.NodeAffinity == nil {
			return nil
		}
		return s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	if equality.Semantic.DeepEqual(spec.Affinity, old.Affinity) {
		return
	}
	now, was := required(spec), required(old)
	at := p.Child("affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
	ok := true
	if was != nil {
		ok = now != nil && len(now.NodeSelectorTerms) == len(was.NodeSelectorTerms)
		for i := 0; ok && i < len(was.NodeSelectorTerms); i++ {
			ok = extends(now.NodeSelectorTerms[i].MatchExpressions, was.NodeSelectorTerms[i].MatchExpressions) &&
				extends(now.NodeSelectorTerms[i].MatchFields, was.NodeSelectorTerms[i].MatchFields)
		}
	}
	if !ok {
		e.invalid(at.Child("nodeSelectorTerms"), now, "only additions are allowed (no deletions or modifications)")
	}
	e.affinity(p.Child("affinity"), spec.Affinity)
	// Only the required node affinity was looked at; what else changed stays
	// for the caller to find.
	undone := spec.Affinity.DeepCopy()
	if undone == nil {
		undone = &corev1.Affinity{}
	}
	if undone.NodeAffinity == nil {
		undone.NodeAffinity = &corev1.NodeAffinity{}
	}
	undone.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = was
	if old.Affinity == nil || old.Affinity.NodeAffinity == nil {
		if equality.Semantic.DeepEqual(undone.NodeAffinity, &corev1.NodeAffinity{}) {
			undone.NodeAffinity = nil
		}
	}
	if old.Affinity == nil && equality.Semantic.DeepEqual(undone, &corev1.Affinity{}) {
		undone = nil
	}
	spec.Affinity = undone
}

// extends says whether a list begins with all of another.
func extends(list, with []corev1.NodeSelectorRequirement) bool {
	return len(list) >= len(with) && equality.Semantic.DeepEqual(list[:len(with)], with)
}

// validateEphemeralContainers is of an update that adds ephemeral containers:
// one that was added stays as it is.
func validateEphemeralContainers(pod, old *corev1.Pod) field.ErrorList {
	if _, ok := old.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers")}
	}
	e := metadata(&pod.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.podMetadata(pod.Annotations, &pod.Spec, field.NewPath("metadata"))
	e.podSpec(specPath, &pod.Spec)
	at := specPath.Child("ephemeralContainers")
	now := map[string]*corev1.EphemeralContainer{}
	for i := range pod.Spec.EphemeralContainers {
		now[pod.Spec.EphemeralContainers[i].Name] = &pod.Spec.EphemeralContainers[i]
	}
	for _, was := range old.Spec.EphemeralContainers {
		if is := now[was.Name]; is == nil {
			e.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be removed\n", was.Name))
		} else if !equality.Semantic.DeepEqual(was, *is) {
			e.forbidden(at, fmt.Sprintf("existing ephemeral containers %q may not be changed\n%v", was.Name, diff.Diff(was, *is)))
		}
	}
	return e.list()
}

func validatePodStatusUpdate(pod, old *corev1.Pod) field.ErrorList {
	e := metadata(&pod.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	p := field.NewPath("status")
	if node := pod.Status.NominatedNodeName; node != "" {
		e.each(p.Child("nominatedNodeName"), node, apivalidation.NameIsDNSSubdomain(node, false))
	}
	if pod.Spec.NodeName != old.Spec.NodeName {
		e.forbidden(p.Child("nodeName"), "may not be changed directly")
	}
	if pod.Status.QOSClass != old.Status.QOSClass {
		e.invalid(p.Child("qosClass"), pod.Status.QOSClass, apivalidation.FieldImmutableErrorMsg)
	}
	e.conditions(p.Child("conditions"), pod.Status.Conditions, old.Status.Conditions)

	policy := old.Spec.RestartPolicy
	if slices.ContainsFunc(slices.Concat(pointers(old.Spec.InitContainers), pointers(old.Spec.Containers)), restartsAll) {
		policy = corev1.RestartPolicyAlways // any end may be followed by another start
	}
	for _, of := range []struct {
		field    string
		now, was []corev1.ContainerStatus
		specs    []corev1.Container
	}{
		{"containerStatuses", pod.Status.ContainerStatuses, old.Status.ContainerStatuses, old.Spec.Containers},
		{"initContainerStatuses", pod.Status.InitContainerStatuses, old.Status.InitContainerStatuses, old.Spec.InitContainers},
	} {
		e.transitions(p.Child(of.field), of.now, of.was, of.specs, policy)
	}
	// An ephemeral container never runs again, whatever the pod's policy.
	e.transitions(p.Child("ephemeralContainerStatuses"), pod.Status.EphemeralContainerStatuses, old.Status.EphemeralContainerStatuses, nil, corev1.RestartPolicyNever)
	e.podIPs(p, &pod.Status)
	return e.list()
}

// conditions are well formed, unless they were as bad before.
func (e *problems) conditions(p *field.Path, list, old []corev1.PodCondition) {
	system := []corev1.PodConditionType{corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized}
	for i, c := range list {
		if slices.Contains(system, c.Type) {
			continue
		}
		if slices.ContainsFunc(old, func(o corev1.PodCondition) bool { return o.Type == c.Type }) {
			continue
		}
		e.qualifiedName(p.Index(i).Child("Type"), string(c.Type))
	}
}

// restartsAll says whether a container's end may start all of its pod's anew.
func restartsAll(c *corev1.Container) bool {
	return slices.ContainsFunc(c.RestartPolicyRules, func(r corev1.ContainerRestartRule) bool {
		return r.Action == corev1.ContainerRestartRuleActionRestartAllContainers
	})
}

// transitions refuse to run again what has ended for good.
func (e *problems) transitions(p *field.Path, now, was []corev1.ContainerStatus, specs []corev1.Container, policy corev1.RestartPolicy) {
	for _, old := range was {
		if old.State.Terminated == nil {
			continue
		}
		final := policy == corev1.RestartPolicyNever || policy == corev1.RestartPolicyOnFailure && old.State.Terminated.ExitCode == 0
		if slices.ContainsFunc(specs, func(c corev1.Container) bool {
			return c.Name == old.Name && (c.RestartPolicy != nil || len(c.RestartPolicyRules) > 0)
		}) {
			final = false
		}
		if !final {
			continue
		}
		for i, s := range now {
			if s.Name == old.Name && s.State.Terminated == nil {
				e.forbidden(p.Index(i).Child("state"), "may not be transitioned to non-terminated state")
			}
		}
	}
}

func (e *problems) podIPs(p *field.Path, s *corev1.PodStatus) {
	seen := map[string]bool{}
	for i, ip := range s.PodIPs {
		e.ip(p.Child("podIPs").Index(i), ip.IP)
		if seen[ip.IP] {
			e.duplicate(p.Child("podIPs").Index(i), ip.IP)
		}
		seen[ip.IP] = true
	}
	if len(s.PodIPs) > 2 {
		e.invalid(p.Child("podIPs"), s.PodIPs, "may specify no more than one IP for each IP family")
	}
}
