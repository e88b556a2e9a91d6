package controller

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// deadline is how long a rollout may stand still; 0 if that is not watched.
func deadline(d *appsv1.Deployment) time.Duration {
	// The largest number means forever.
	if d.Spec.ProgressDeadlineSeconds == nil || *d.Spec.ProgressDeadlineSeconds == 1<<31-1 {
		return 0
	}
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition leaves a condition of the same status and reason alone, and the
// transition time of one of the same status.
func (r *rollout) setCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, format string, args ...any) {
	if old := condition(&r.d.Status, t); old != nil && old.Status == status && old.Reason == reason {
		return
	}
	r.renewCondition(t, status, reason, format, args...)
}

// renewCondition is setCondition that counts as news in any case.
func (r *rollout) renewCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, format string, args ...any) {
	now := metav1.NewTime(r.Now()).Rfc3339Copy()
	c := appsv1.DeploymentCondition{
		Type: t, Status: status, Reason: reason, Message: fmt.Sprintf(format, args...),
		LastUpdateTime: now, LastTransitionTime: now,
	}
	if old := condition(&r.d.Status, t); old != nil && old.Status == status {
		c.LastTransitionTime = old.LastTransitionTime
	}
	r.dropCondition(t)
	r.d.Status.Conditions = append(r.d.Status.Conditions, c)
}

func (r *rollout) dropCondition(t appsv1.DeploymentConditionType) {
	r.d.Status.Conditions = slices.DeleteFunc(r.d.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// notePause marks that the clock of the progress deadline stands still.
func (r *rollout) notePause() {
	if deadline(r.d) == 0 {
		return
	}
	c := condition(&r.d.Status, appsv1.DeploymentProgressing)
	if c != nil && c.Reason == "ProgressDeadlineExceeded" {
		return
	}
	paused := c != nil && c.Reason == "DeploymentPaused"
	switch {
	case r.d.Spec.Paused && !paused:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentPaused", "Deployment is paused")
	case !r.d.Spec.Paused && paused:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, "DeploymentResumed", "Deployment is resumed")
	}
}

// fillStatus adds up the ReplicaSets.
func (r *rollout) fillStatus() {
	s := &r.d.Status
	all := r.all()
	s.ObservedGeneration = r.d.Generation
	s.Replicas = statusOf(existing, all...)
	s.UpdatedReplicas = statusOf(existing, r.new)
	s.ReadyReplicas = statusOf(readyOnes, all...)
	s.AvailableReplicas = statusOf(available, all...)
	s.UnavailableReplicas = max(specReplicas(all...)-s.AvailableReplicas, 0)
	ending := statusOf(terminating, all...)
	s.TerminatingReplicas = &ending
	if s.AvailableReplicas >= desired(r.d.Spec.Replicas)-maxUnavailable(r.d) {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.")
	} else {
		r.setCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
	}
}

// complete says that what was asked for is what there is.
func (r *rollout) complete() bool {
	s := r.d.Status
	probe := rollout{env: r.env, d: &appsv1.Deployment{ObjectMeta: r.d.ObjectMeta, Spec: r.d.Spec, Status: *s.DeepCopy()}, new: r.new, old: r.old}
	probe.fillStatus()
	return completeStatus(r.d, &probe.d.Status)
}

func completeStatus(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	want := desired(d.Spec.Replicas)
	return s.UpdatedReplicas == want && s.Replicas == want && s.AvailableReplicas == want && s.ObservedGeneration >= d.Generation
}

// fillProgress says how the rollout fares, and whether ReplicaSets fail.
func (r *rollout) fillProgress() {
	s, before := &r.d.Status, &r.asked.Status
	name := fmt.Sprintf("Deployment %q", r.d.Name)
	if r.new != nil {
		name = fmt.Sprintf("ReplicaSet %q", r.new.Name)
	}
	c := condition(s, appsv1.DeploymentProgressing)
	switch {
	case deadline(r.d) == 0:
		r.dropCondition(appsv1.DeploymentProgressing)
	case r.d.Spec.Paused:
		// notePause has spoken.
	case s.Replicas == s.UpdatedReplicas && c != nil && c.Reason == "NewReplicaSetAvailable":
		// A rollout that ended does not begin again because a pod restarts.
	case completeStatus(r.d, s):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetAvailable", "%s has successfully progressed.", name)
	case s.UpdatedReplicas > before.UpdatedReplicas || s.Replicas-s.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		s.ReadyReplicas > before.ReadyReplicas || s.AvailableReplicas > before.AvailableReplicas:
		r.renewCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "ReplicaSetUpdated", "%s is progressing.", name)
	case r.timedOut():
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ProgressDeadlineExceeded", "%s has timed out progressing.", name)
	}
	r.fillFailure()
}

// fillFailure takes over the failure of the new ReplicaSet, or of any.
func (r *rollout) fillFailure() {
	sets := r.old
	if r.new != nil {
		sets = append([]*appsv1.ReplicaSet{r.new}, r.old...)
	}
	for _, rs := range sets {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				r.setCondition(appsv1.DeploymentReplicaFailure, c.Status, c.Reason, "%s", c.Message)
				return
			}
		}
	}
	r.dropCondition(appsv1.DeploymentReplicaFailure)
}

func (r *rollout) timedOut() bool {
	c := condition(&r.d.Status, appsv1.DeploymentProgressing)
	switch {
	case c == nil || c.Reason == "NewReplicaSetAvailable":
		return false
	case c.Reason == "ProgressDeadlineExceeded":
		return true
	}
	return c.LastUpdateTime.Add(deadline(r.d)).Before(r.Now())
}

// untilDeadline is when standing still would become a failure.
func (r *rollout) untilDeadline() time.Duration {
	c := condition(&r.d.Status, appsv1.DeploymentProgressing)
	if deadline(r.d) == 0 || c == nil || r.d.Spec.Paused || r.d.DeletionTimestamp != nil ||
		completeStatus(r.d, &r.d.Status) ||
		c.Reason == "NewReplicaSetAvailable" || c.Reason == "ProgressDeadlineExceeded" {
		return 0
	}
	// A second later, because conditions know only whole seconds.
	return max(c.LastUpdateTime.Add(deadline(r.d)).Sub(r.Now()), 0) + time.Second
}
