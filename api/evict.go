package api

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
)

// maxDisrupted is how many evicted pods a budget may wait for.
const maxDisrupted = 2000

// evict deletes a pod, politely: if a disruption budget allows it.
func evict(ctx context.Context, c *call, obj Object, o metav1.CreateOptions) (runtime.Object, error) {
	e, ok := obj.(*policyv1.Eviction)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected an Eviction, got a %T", obj))
	}
	var d metav1.DeleteOptions
	if e.DeleteOptions != nil {
		d = *e.DeleteOptions
	}
	if len(o.DryRun) > 0 {
		d.DryRun = o.DryRun
	}
	one := *c
	one.sub, one.quiet = "", true // webhooks were asked about the eviction
	rec, err := one.get(ctx, metav1.GetOptions{}, true)
	if err != nil {
		return nil, err
	}
	pod, ok := rec.Object().(*corev1.Pod)
	if !ok {
		return nil, apierrors.NewBadRequest("not a pod")
	}
	if !unprotected(pod) {
		if err := c.charge(ctx, pod, c.dryRun(d.DryRun)); err != nil {
			return nil, err
		}
		if !c.dryRun(d.DryRun) {
			if err := c.markEvicted(ctx, pod); err != nil {
				return nil, err
			}
		}
	}
	if d.Preconditions == nil {
		d.Preconditions = &metav1.Preconditions{}
	}
	if d.Preconditions.UID == nil { // the one that the budget was asked about
		d.Preconditions.UID = &pod.UID
	}
	if _, _, err := one.remove(ctx, d); err != nil {
		return nil, err
	}
	return success(), nil
}

// unprotected says that no budget is asked about a pod: it does not run, or
// goes already.
func unprotected(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil ||
		pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodPending
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// budgetsOf are the disruption budgets that select a pod.
func (s *Server) budgetsOf(pod *corev1.Pod) (all []*policyv1.PodDisruptionBudget) {
	records, _ := s.cfg.Storage.List(budgets.GroupResource().String(), pod.Namespace)
	for _, rec := range records {
		b, ok := rec.Object().(*policyv1.PodDisruptionBudget)
		if !ok {
			continue
		}
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err == nil && selector.Matches(labels.Set(pod.Labels)) {
			all = append(all, b)
		}
	}
	return all
}

// charge takes one from what the pod's budget allows, or says why it may not.
// The store decides among evictions that come at once: each names the version
// of the budget that it read.
func (c *call) charge(ctx context.Context, pod *corev1.Pod, dryRun bool) error {
	if err := c.s.cfg.Storage.Sync(ctx); err != nil {
		return c.storageError(err)
	}
	const tries = 20
	for range tries {
		all := c.s.budgetsOf(pod)
		switch len(all) {
		case 0:
			return nil
		case 1:
		default:
			return apierrors.NewInternalError(fmt.Errorf("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."))
		}
		b := all[0]
		if !isReady(pod) {
			policy := b.Spec.UnhealthyPodEvictionPolicy
			if policy != nil && *policy == policyv1.AlwaysAllow || b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0 {
				return nil // what is not healthy is no loss
			}
		}
		b = b.DeepCopy()
		if err := take(b, pod.Name, c.now()); err != nil {
			return err
		}
		if dryRun {
			return nil
		}
		_, err := c.s.own().Update(ctx, budgets, b.Namespace, b, metav1.UpdateOptions{}, "status")
		switch {
		case err == nil, apierrors.IsNotFound(err):
			return nil
		case !apierrors.IsConflict(err):
			return err
		}
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return c.storageError(err)
		}
	}
	return tooManyEvictions(policyv1.DisruptionBudgetCause, "", 10)
}

// tooManyEvictions is the refusal of an eviction that may succeed later.
func tooManyEvictions(cause metav1.CauseType, why string, after int) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", after)
	if why != "" {
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause, Message: why})
	}
	return err
}

// take counts a pod as evicted in its budget, or says why it may not be.
func take(b *policyv1.PodDisruptionBudget, pod string, now metav1.Time) error {
	s := &b.Status
	switch {
	case s.ObservedGeneration < b.Generation:
		return tooManyEvictions(policyv1.DisruptionBudgetCause, fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name), 10)
	case s.DisruptionsAllowed < 0:
		return apierrors.NewForbidden(budgets.GroupResource(), b.Name, fmt.Errorf("pdb disruptions allowed is negative"))
	case len(s.DisruptedPods) > maxDisrupted:
		return apierrors.NewForbidden(budgets.GroupResource(), b.Name, fmt.Errorf("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case s.DisruptionsAllowed == 0:
		why := fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, s.DesiredHealthy, s.CurrentHealthy)
		if c := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition); c != nil && c.Reason == policyv1.SyncFailedReason {
			why = fmt.Sprintf("The disruption budget %s does not allow evicting pods currently because it failed sync: %v", b.Name, c.Message)
		}
		return tooManyEvictions(policyv1.DisruptionBudgetCause, why, 0)
	}
	s.DisruptionsAllowed--
	if s.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, Reason: policyv1.InsufficientPodsReason,
			ObservedGeneration: s.ObservedGeneration, LastTransitionTime: now,
		})
	}
	if s.DisruptedPods == nil {
		s.DisruptedPods = map[string]metav1.Time{}
	}
	// From now on the controller counts the pod as gone.
	s.DisruptedPods[pod] = now
	return nil
}

// markEvicted says in a pod's status why it goes.
func (c *call) markEvicted(ctx context.Context, pod *corev1.Pod) error {
	one := *c
	one.sub = "status"
	_, err := one.update(ctx, update{mode: ofStatus, change: func(old Object) (Object, error) {
		now := old.DeepCopyObject().(*corev1.Pod)
		now.UID, now.ResourceVersion = pod.UID, ""
		is := corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			LastTransitionTime: c.now(), ObservedGeneration: now.Generation,
		}
		now.Status.Conditions = slices.DeleteFunc(now.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == is.Type })
		now.Status.Conditions = append(now.Status.Conditions, is)
		return now, nil
	}})
	return err
}
