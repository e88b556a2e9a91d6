package kinds

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/diff"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// preparePodResize undoes all that a resize may not change, without a word: a
// writer sends the whole pod, as he last saw it. Other containers than before
// are left for validation to refuse.
func preparePodResize(pod, old *corev1.Pod) {
	wanted := pod.Spec
	pod.Status = old.Status
	pod.Labels, pod.Annotations = old.Labels, old.Annotations
	pod.Finalizers, pod.OwnerReferences = old.Finalizers, old.OwnerReferences
	if sameContainers(wanted.Containers, old.Spec.Containers) && sameContainers(wanted.InitContainers, old.Spec.InitContainers) {
		spec := old.Spec.DeepCopy()
		spec.Resources = wanted.Resources
		for _, of := range []struct{ to, from []corev1.Container }{
			{spec.Containers, wanted.Containers}, {spec.InitContainers, wanted.InitContainers},
		} {
			for i := range of.to {
				of.to[i].Resources, of.to[i].ResizePolicy = of.from[i].Resources, of.from[i].ResizePolicy
			}
		}
		pod.Spec = *spec
	}
	countGeneration(pod, &pod.Spec, &old.Spec)
}

func sameContainers(a, b []corev1.Container) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.Container) bool { return x.Name == y.Name })
}

// resizable are the resources that a pod may get more or less of while it runs.
var resizable = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}

func validatePodResize(pod, old *corev1.Pod) field.ErrorList {
	e := metadata(&pod.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	if _, static := old.Annotations[corev1.MirrorPodAnnotationKey]; static || ownedByNode(old) {
		e.forbidden(field.NewPath(""), "static pods cannot be resized")
		return e.list()
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		e.forbidden(field.NewPath(""), "windows pods cannot be resized")
		return e.list()
	}
	for _, of := range []struct {
		field    string
		now, was []corev1.Container
	}{
		{"containers", pod.Spec.Containers, old.Spec.Containers}, {"initContainers", pod.Spec.InitContainers, old.Spec.InitContainers},
	} {
		if !sameContainers(of.now, of.was) {
			e.forbidden(specPath.Child(of.field), "containers may not be added, removed, renamed or reordered on resize")
		}
	}
	if len(e.list()) > 0 {
		return e.list()
	}

	// The new spec is to be as valid as one of a new pod.
	e.podSpecResources(&pod.Spec)
	if was, now := old.Status.QOSClass, QOSClass(pod); was != "" && was != now {
		e.invalid(specPath, now, "Pod QOS Class may not change as a result of resizing")
	}

	// What differs, beyond what may, is refused.
	munged := pod.Spec.DeepCopy()
	for i := range munged.Containers {
		e.resized(specPath.Child("containers").Index(i), &munged.Containers[i], &old.Spec.Containers[i])
	}
	for i := range munged.InitContainers {
		c, was, at := &munged.InitContainers[i], &old.Spec.InitContainers[i], specPath.Child("initContainers").Index(i)
		if isSidecar(was) {
			e.resized(at, c, was)
		} else if !equality.Semantic.DeepEqual(c.Resources, was.Resources) {
			e.forbidden(at.Child("resources"), "resources of init containers that are not restartable may not be changed")
			c.Resources = was.Resources
		}
	}
	if now, was := munged.Resources, old.Spec.Resources; now != nil && was != nil {
		e.notRemoved(specPath.Child("resources"), now, was)
		undo(now, was)
	}
	if !equality.Semantic.DeepEqual(*munged, old.Spec) {
		e.forbidden(specPath, fmt.Sprintf("only cpu and memory resources are mutable\n%v", diff.Diff(old.Spec, *munged)))
	}
	return e.list()
}

// resized checks what a container asks for now, and undoes it in c.
func (e *problems) resized(at *field.Path, c, was *corev1.Container) {
	e.notRemoved(at.Child("resources"), &c.Resources, &was.Resources)
	undo(&c.Resources, &was.Resources)
}

// notRemoved: an amount may change, but whoever had one keeps one.
func (e *problems) notRemoved(at *field.Path, now, was *corev1.ResourceRequirements) {
	for _, of := range []struct {
		field    string
		now, was corev1.ResourceList
	}{{"requests", now.Requests, was.Requests}, {"limits", now.Limits, was.Limits}} {
		for name := range sorted(of.was) {
			if _, ok := of.now[name]; !ok {
				e.forbidden(at.Child(of.field), "resource "+of.field+" cannot be removed")
				break
			}
		}
	}
}

// undo makes the amounts that may change what they were.
func undo(now, was *corev1.ResourceRequirements) {
	for _, of := range []struct{ now, was *corev1.ResourceList }{{&now.Requests, &was.Requests}, {&now.Limits, &was.Limits}} {
		for _, name := range resizable {
			q, had := (*of.was)[name]
			switch {
			case had && *of.now == nil:
				*of.now = corev1.ResourceList{name: q}
			case had:
				(*of.now)[name] = q
			default:
				delete(*of.now, name)
			}
		}
		if len(*of.now) == 0 && len(*of.was) == 0 {
			*of.now = *of.was
		}
	}
}

// podSpecResources are the requirements of a pod and of its containers.
func (e *problems) podSpecResources(spec *corev1.PodSpec) {
	for at, c := range containersOf(specPath, spec) {
		e.requirements(at.Child("resources"), &c.Resources, nil)
	}
	if spec.Resources != nil {
		e.podResources(specPath, spec)
	}
}

// ownedByNode says of a pod that it mirrors one that its node has of itself.
func ownedByNode(pod *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(pod)
	return ref != nil && ref.Kind == "Node"
}
