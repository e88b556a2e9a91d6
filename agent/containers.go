package agent

import (
	"iter"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// containerKind is which part a container has in its pod's life.
type containerKind uint8

const (
	ordinary  containerKind = iota
	initial                 // must end well before the next of its list starts
	sidecar                 // of the same list, but runs beside the ordinary ones
	ephemeral               // added to a running pod, and never started again
)

// everyContainer iterates over a pod's containers in the order in which they
// start, the ephemeral ones last.
func everyContainer(pod *corev1.Pod) iter.Seq2[containerKind, *corev1.Container] {
	return func(yield func(containerKind, *corev1.Container) bool) {
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			if !yield(initKind(c), c) {
				return
			}
		}
		for i := range pod.Spec.Containers {
			if !yield(ordinary, &pod.Spec.Containers[i]) {
				return
			}
		}
		for i := range pod.Spec.EphemeralContainers {
			if !yield(ephemeral, asContainer(&pod.Spec.EphemeralContainers[i])) {
				return
			}
		}
	}
}

func initKind(c *corev1.Container) containerKind {
	if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
		return sidecar
	}
	return initial
}

// asContainer is the same memory under the type of an ordinary container:
// EphemeralContainerCommon has the same fields, by its definition.
func asContainer(e *corev1.EphemeralContainer) *corev1.Container {
	return (*corev1.Container)(&e.EphemeralContainerCommon)
}

func containerNamed(pod *corev1.Pod, name string) *corev1.Container {
	for _, c := range everyContainer(pod) {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// targetOf is the container whose processes an ephemeral one is to see.
func targetOf(pod *corev1.Pod, name string) string {
	for i := range pod.Spec.EphemeralContainers {
		if e := &pod.Spec.EphemeralContainers[i]; e.Name == name {
			return e.TargetContainerName
		}
	}
	return ""
}

// statusOf is what a pod's status says of a container; nil if nothing.
func statusOf(pod *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// shouldStart says whether a container that does not run is to be started, now
// or after its back-off.
func shouldStart(pod *corev1.Pod, kind containerKind, c *corev1.Container, v containerView) bool {
	switch {
	case v.attempt < 0:
		return true
	case kind == ephemeral:
		return false
	case v.end == nil, v.renew, v.replaced:
		return true
	case kind == initial && succeeded(v):
		return !v.fresh
	}
	return restarts(pod, kind, c, v.end.ExitCode)
}

// restarts says whether a container that ended with code is started again: by
// its own rules, else by its own policy, else by its pod's.
func restarts(pod *corev1.Pod, kind containerKind, c *corev1.Container, code int32) bool {
	if ruleFor(c, code) != "" {
		return true // of whichever action: both start it again
	}
	policy := pod.Spec.RestartPolicy
	switch {
	case c.RestartPolicy != nil:
		policy = corev1.RestartPolicy(*c.RestartPolicy)
	case kind == initial && policy != corev1.RestartPolicyNever:
		policy = corev1.RestartPolicyOnFailure
	}
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	}
	return true
}

// ruleFor is the action of the first rule that matches how a container ended.
func ruleFor(c *corev1.Container, code int32) corev1.ContainerRestartRuleAction {
	for _, r := range c.RestartPolicyRules {
		if r.ExitCodes == nil {
			continue
		}
		in := slices.Contains(r.ExitCodes.Values, code)
		if in == (r.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return r.Action
		}
	}
	return ""
}

// renews says whether a container's end asks for all of the pod's containers
// to be started anew.
func renews(c *corev1.Container, v containerView) bool {
	return !v.running && v.end != nil && v.fresh && ruleFor(c, v.end.ExitCode) == corev1.ContainerRestartRuleActionRestartAllContainers
}

// turnToEnd says whether a sidecar of a pod at its end is to end now: those
// that may need it, the ordinary containers and the sidecars after it, have.
func turnToEnd(pod *corev1.Pod, o observed, name string) bool {
	there := func(c *corev1.Container) bool {
		v := o.containers[c.Name]
		return v.running || v.task == starting
	}
	for i := range pod.Spec.Containers {
		if there(&pod.Spec.Containers[i]) {
			return false
		}
	}
	for i := len(pod.Spec.InitContainers) - 1; i >= 0; i-- {
		c := &pod.Spec.InitContainers[i]
		if c.Name == name {
			break
		}
		if initKind(c) == sidecar && there(c) {
			return false
		}
	}
	return true
}
