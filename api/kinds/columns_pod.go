package kinds

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var podColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Ready", "The aggregate readiness state of this pod for accepting traffic."),
	text("Status", "The aggregate status of the containers in this pod."),
	text("Restarts", "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted."),
	ageColumn,
	wide(text("IP", docs(corev1.PodStatus{}, "podIP"))),
	wide(text("Node", docs(corev1.PodSpec{}, "nodeName"))),
	wide(text("Nominated Node", docs(corev1.PodStatus{}, "nominatedNodeName"))),
	wide(text("Readiness Gates", docs(corev1.PodSpec{}, "readinessGates"))),
}

func podCells(pod *corev1.Pod, now time.Time) []any {
	s := summarize(pod)
	restarts := strconv.Itoa(s.restarts)
	if s.restarts != 0 && !s.lastRestart.IsZero() {
		restarts = fmt.Sprintf("%d (%s ago)", s.restarts, age(s.lastRestart, now))
	}
	ip := pod.Status.PodIP
	if len(pod.Status.PodIPs) > 0 {
		ip = pod.Status.PodIPs[0].IP
	}
	gates := none
	if n := len(pod.Spec.ReadinessGates); n > 0 {
		open := 0
		for _, g := range pod.Spec.ReadinessGates {
			if conditionIs(pod, g.ConditionType, corev1.ConditionTrue) {
				open++
			}
		}
		gates = fmt.Sprintf("%d/%d", open, n)
	}
	return []any{
		pod.Name, fmt.Sprintf("%d/%d", s.ready, s.containers), s.status, restarts, age(pod.CreationTimestamp, now),
		or(ip, none), or(pod.Spec.NodeName, none), or(pod.Status.NominatedNodeName, none), gates,
	}
}

func conditionIs(pod *corev1.Pod, of corev1.PodConditionType, status corev1.ConditionStatus) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == of && c.Status == status })
}

// summary is what one line says of a pod.
type summary struct {
	status            string
	ready, containers int
	restarts          int
	lastRestart       metav1.Time
}

// count adds a container's restarts.
func (s *summary) count(c *corev1.ContainerStatus) {
	s.restarts += int(c.RestartCount)
	if t := c.LastTerminationState.Terminated; t != nil && s.lastRestart.Before(&t.FinishedAt) {
		s.lastRestart = t.FinishedAt
	}
}

// ended is why a container ended, in one word.
func ended(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

// summarize finds the word that says most about where a pod stands: of its
// first init container that is not done; then of its first container that is
// not running; or else its phase.
func summarize(pod *corev1.Pod) summary {
	s := summary{status: string(pod.Status.Phase), containers: len(pod.Spec.Containers)}
	if pod.Status.Reason != "" {
		s.status = pod.Status.Reason
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonSchedulingGated {
			s.status = corev1.PodReasonSchedulingGated
		}
	}
	sidecars := map[string]bool{}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; isSidecar(c) {
			sidecars[c.Name] = true
			s.containers++
		}
	}

	initializing, ofSidecars := false, summary{}
	for i := range pod.Status.InitContainerStatuses {
		c := &pod.Status.InitContainerStatuses[i]
		s.count(c)
		if sidecars[c.Name] {
			ofSidecars.count(c)
		}
		switch t, w := c.State.Terminated, c.State.Waiting; {
		case t != nil && t.ExitCode == 0:
			continue
		case sidecars[c.Name] && isTrue(c.Started):
			if c.Ready {
				s.ready++
			}
			continue
		case t != nil:
			s.status = "Init:" + ended(t)
		case w != nil && w.Reason != "" && w.Reason != "PodInitializing":
			s.status = "Init:" + w.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers))
		}
		initializing = true
		break
	}

	if !initializing || conditionIs(pod, corev1.PodInitialized, corev1.ConditionTrue) {
		// Once the pod runs, what its init containers went through is history.
		s.restarts, s.lastRestart = ofSidecars.restarts, ofSidecars.lastRestart
		running := false
		for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
			c := &pod.Status.ContainerStatuses[i]
			s.count(c)
			switch {
			case c.State.Waiting != nil && c.State.Waiting.Reason != "":
				s.status = c.State.Waiting.Reason
			case c.State.Terminated != nil:
				s.status = ended(c.State.Terminated)
			case c.Ready && c.State.Running != nil:
				running = true
				s.ready++
			}
		}
		if s.status == "Completed" && running {
			if s.status = "NotReady"; conditionIs(pod, corev1.PodReady, corev1.ConditionTrue) {
				s.status = "Running"
			}
		}
	}

	if pod.DeletionTimestamp != nil {
		switch {
		case pod.Status.Reason == "NodeLost":
			s.status = string(corev1.PodUnknown)
		case pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed:
			s.status = "Terminating"
		}
	}
	return s
}
