package agent

import (
	"fmt"
	"sort"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// statusInput is what a pod's status is computed from, beside the pod itself,
// whose Status is the one before.
type statusInput struct {
	observed
	failure  *failure
	rejected bool // nothing was ever made of it
	hostIPs  []string
	podIPs   []string
	views    map[string]statusView
	resize   resizeState
	cgroup   *cgroupAmounts // in force
}

// statusView is what the status says of a container, beyond containerView.
type statusView struct {
	record  containerRecord
	runtime *ContainerStatus // of the newest start
	image   Image
	ready   bool
	// waiting is why the next start has not happened.
	waiting *corev1.ContainerStateWaiting
}

// Why a container waits that nothing stands in the way of, as kubelet says it.
const (
	waitCreating     = "ContainerCreating"
	waitInitializing = "PodInitializing"
)

const containerIDPrefix = "conclave://"

// podStatus is the pod's whole status.
func podStatus(pod *corev1.Pod, in statusInput) corev1.PodStatus {
	old := &pod.Status
	s := corev1.PodStatus{
		ObservedGeneration:    pod.Generation,
		QOSClass:              qosClass(pod),
		NominatedNodeName:     old.NominatedNodeName,
		Resize:                old.Resize,
		ResourceClaimStatuses: old.ResourceClaimStatuses,
	}
	if in.accepted || in.failure != nil {
		t := metav1.NewTime(in.started.Truncate(time.Second))
		s.StartTime = &t
	}
	if s.StartTime == nil || in.started.IsZero() {
		s.StartTime = old.StartTime
	}
	if len(in.hostIPs) > 0 {
		s.HostIP = in.hostIPs[0]
		for _, ip := range in.hostIPs {
			s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
		}
	}
	if len(in.podIPs) > 0 {
		s.PodIP = in.podIPs[0]
		for _, ip := range in.podIPs {
			s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	initDone := initialized(pod, in.observed)
	for kind, c := range everyContainer(pod) {
		if in.rejected {
			break
		}
		list := &s.ContainerStatuses
		switch kind {
		case initial, sidecar:
			list = &s.InitContainerStatuses
		case ephemeral:
			list = &s.EphemeralContainerStatuses
		}
		*list = append(*list, containerStatus(pod, kind, c, in, initDone))
	}
	s.Phase = phase(pod, in, initDone)
	switch {
	case terminalPhase(old.Phase):
		s.Phase, s.Reason, s.Message = old.Phase, old.Reason, old.Message
	case in.failure != nil && !anyRunning(in.observed):
		s.Phase, s.Reason, s.Message = corev1.PodFailed, in.failure.Reason, in.failure.Message
	}
	if !in.rejected {
		podLevelStatus(pod, &s, in.cgroup, in.resizeProgress)
	}
	s.Conditions = conditions(pod, in, s, initDone)
	return s
}

func containerStatus(pod *corev1.Pod, kind containerKind, c *corev1.Container, in statusInput, initDone bool) corev1.ContainerStatus {
	view, v := in.views[c.Name], in.containers[c.Name]
	rec := view.record
	s := corev1.ContainerStatus{Name: c.Name, Image: c.Image, RestartCount: int32(max(rec.Attempt, 0)), Started: new(false)}
	if rec.Attempt >= 0 {
		s.ContainerID = fullContainerID(pod, c.Name, rec.Attempt)
		if rec.Image != "" {
			s.Image, s.ImageID = rec.Image, rec.ImageID
		}
		s.VolumeMounts = mountStatuses(c)
		s.User, s.StopSignal = rec.User, rec.StopSignal
		if v.running {
			s.AllocatedResources, s.Resources = c.Resources.Requests, actualResources(c, &rec)
		}
	}
	if rec.Last != nil {
		s.LastTerminationState.Terminated = rec.Last
	}
	ended := stoppedForGood(pod, in)
	switch {
	case v.running && (!v.hooking || ended):
		s.State.Running = &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(view.runtime.StartedAt.Truncate(time.Second))}
		s.Started, s.Ready = new(v.up || v.hooking), view.ready && kind != initial
	case rec.End != nil && (view.waiting == nil || ended || !shouldStart(pod, kind, c, v)):
		s.State.Terminated = rec.End
		s.Ready = kind == initial && rec.End.ExitCode == 0
	case rec.Attempt >= 0 && ended && rec.End == nil:
		s.State.Terminated = lostContainer(s.ContainerID)
	default:
		s.State.Waiting = view.waiting
		if rec.End != nil {
			s.LastTerminationState.Terminated = rec.End
		}
		if s.State.Waiting == nil {
			reason := waitCreating
			if kind == ordinary && !initDone || (kind == initial || kind == sidecar) && !initTurn(pod, c, in) {
				reason = waitInitializing
			}
			s.State.Waiting = &corev1.ContainerStateWaiting{Reason: reason}
		}
	}
	if kind == ephemeral { // nothing probes it, and nobody counts on it
		s.Started, s.Ready = nil, false
	}
	return s
}

// initTurn says whether it is this init container's turn.
func initTurn(pod *corev1.Pod, c *corev1.Container, in statusInput) bool {
	if len(pod.Spec.InitContainers) > 0 && pod.Spec.InitContainers[0].Name == c.Name {
		return false // kubectl then says Init:0/n, as for all that have not begun
	}
	return in.containers[c.Name].task == starting
}

// stoppedForGood: nothing of this pod will start again.
func stoppedForGood(pod *corev1.Pod, in statusInput) bool {
	return in.down || in.removed || in.failure != nil || pod.DeletionTimestamp != nil || terminalPhase(pod.Status.Phase) || finished(pod, in.observed)
}

func lostContainer(id string) *corev1.ContainerStateTerminated {
	return &corev1.ContainerStateTerminated{
		ExitCode: 137, Reason: "ContainerStatusUnknown", ContainerID: id,
		Message: "The container could not be located when the pod was terminated",
	}
}

// fullContainerID is unique among all containers of all nodes.
func fullContainerID(pod *corev1.Pod, name string, attempt int) string {
	return containerIDPrefix + startID(pod.UID, name, attempt)
}

// actualResources are the settings as they are in force.
func actualResources(c *corev1.Container, rec *containerRecord) *corev1.ResourceRequirements {
	r := c.Resources.DeepCopy()
	if rec.Resources != nil {
		r = rec.Resources.DeepCopy()
	}
	r.Claims = nil
	return r
}

// phase is Kubernetes' summary of a pod's containers.
func phase(pod *corev1.Pod, in statusInput, initDone bool) corev1.PodPhase {
	over := stoppedForGood(pod, in) && in.down
	for kind, c := range everyContainer(pod) {
		v := in.containers[c.Name]
		if kind == initial && (failedForGood(pod, c, v) || over && !v.running && v.end != nil && v.end.ExitCode != 0) {
			return corev1.PodFailed
		}
	}
	if !initDone && !over {
		return corev1.PodPending
	}
	var running, ended, again, good, fresh int
	for kind, c := range everyContainer(pod) {
		v := in.containers[c.Name]
		switch {
		case kind == sidecar && v.running && !over:
			running++
		case kind != ordinary: // a sidecar's end says nothing of the pod
		case v.hooking && v.attempt == 0 && !over:
			fresh++
		case v.running:
			running++
		case v.attempt >= 0: // ended, or lost
			ended++
			if v.end != nil && v.end.ExitCode == 0 {
				good++
			}
			if shouldStart(pod, kind, c, v) {
				again++
			}
		default:
			fresh++
		}
	}
	switch {
	case over && running == 0 && (ended > 0 || fresh > 0):
		// Taken down: it will not run again whatever its policy says.
		if ended > 0 && ended == good && fresh == 0 {
			return corev1.PodSucceeded
		}
		return corev1.PodFailed
	case fresh > 0:
		return corev1.PodPending
	case running > 0 || again > 0:
		return corev1.PodRunning
	case ended == good:
		return corev1.PodSucceeded
	}
	return corev1.PodFailed
}

// conditions are the pod's conditions: ours in their order, then those that
// others keep. A condition that stays as it was keeps its time.
func conditions(pod *corev1.Pod, in statusInput, s corev1.PodStatus, initDone bool) []corev1.PodCondition {
	set := func(t corev1.PodConditionType, ok bool, reason, message string) corev1.PodCondition {
		c := corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation}
		if !ok {
			c.Status, c.Reason, c.Message = corev1.ConditionFalse, reason, message
		} else if reason == podCompleted {
			c.Reason = reason
		}
		return c
	}
	var notReady, notInit []string
	for i := range s.ContainerStatuses {
		if !s.ContainerStatuses[i].Ready {
			notReady = append(notReady, s.ContainerStatuses[i].Name)
		}
	}
	for i := range s.InitContainerStatuses {
		c := &s.InitContainerStatuses[i]
		if i < len(pod.Spec.InitContainers) && initKind(&pod.Spec.InitContainers[i]) == sidecar {
			if !isTrue(c.Started) {
				notInit = append(notInit, c.Name)
			}
			if !c.Ready {
				notReady = append(notReady, c.Name)
			}
		} else if !c.Ready {
			notInit = append(notInit, c.Name)
		}
	}
	list := []corev1.PodCondition{
		set(corev1.PodReadyToStartContainers, in.sandbox.done && !in.down, "", ""),
		set(corev1.PodInitialized, initDone || s.Phase == corev1.PodSucceeded, "ContainersNotInitialized", fmt.Sprintf("containers with incomplete status: %v", notInit)),
	}
	ready, reason, message := len(notReady) == 0 && s.Phase == corev1.PodRunning, "ContainersNotReady", fmt.Sprintf("containers with unready status: %v", notReady)
	switch s.Phase {
	case corev1.PodSucceeded:
		ready, reason, message = false, podCompleted, ""
		list[1].Reason = podCompleted
	case corev1.PodFailed:
		ready, reason, message = false, "PodFailed", ""
	}
	containersReady := set(corev1.ContainersReady, ready, reason, message)
	if ready {
		for _, gate := range pod.Spec.ReadinessGates {
			if c := findCondition(pod.Status.Conditions, gate.ConditionType); c == nil || c.Status != corev1.ConditionTrue {
				ready, reason = false, "ReadinessGatesNotReady"
				message = fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType)
				if c != nil {
					message = fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, c.Status)
				}
				break
			}
		}
	}
	if renewing(pod, in.observed) {
		list = append(list, set(corev1.AllContainersRestarting, true, "", ""))
	} else if findCondition(pod.Status.Conditions, corev1.AllContainersRestarting) != nil {
		list = append(list, set(corev1.AllContainersRestarting, false, "", ""))
	}
	list = append(list, disruption(in.failure, set)...)
	list = append(list, set(corev1.PodReady, ready, reason, message), containersReady, set(corev1.PodScheduled, true, "", ""))
	if f := in.failure; f != nil && (f.Reason == reasonEvicted || f.Reason == reasonPreempted) && !in.rejected {
		list = append(list, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: f.Message, ObservedGeneration: pod.Generation})
	}
	list = append(list, resizeConditions(pod, in)...)
	for i := range list {
		c := &list[i]
		c.LastTransitionTime = metav1.NewTime(in.now.Truncate(time.Second))
		if old := findCondition(pod.Status.Conditions, c.Type); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
			c.LastProbeTime = old.LastProbeTime
		}
	}
	var others []corev1.PodCondition
	for _, c := range pod.Status.Conditions {
		if findCondition(list, c.Type) == nil && !resizeCondition(c.Type) {
			others = append(others, c)
		}
	}
	sort.SliceStable(others, func(i, j int) bool { return others[i].Type < others[j].Type })
	return append(list, others...)
}

// renewing says whether all containers of the pod are being started anew.
func renewing(pod *corev1.Pod, o observed) bool {
	for kind, c := range everyContainer(pod) {
		if v := o.containers[c.Name]; kind != ephemeral && (v.renew || renews(c, v)) {
			return true
		}
	}
	return false
}

const podCompleted = "PodCompleted"

func findCondition(list []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

// anyRunning: a pod does not fail before its last container has ended.
func anyRunning(o observed) bool {
	for _, v := range o.containers {
		if v.running {
			return true
		}
	}
	return false
}
