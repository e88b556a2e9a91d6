package controller

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	disruptionComponent = "controllermanager"
	// evictionTakes is how long an allowed eviction may take to be seen. Then
	// the pod counts again.
	evictionTakes = 2 * time.Minute
)

// newDisruption counts, for each PodDisruptionBudget, how many of its pods may
// be evicted. The API server takes from that number with each eviction that it
// allows, and notes the pod, which counts as gone from then on.
func newDisruption(e *env) *Controller {
	c := disruptionController{e}
	return &Controller{
		Name: "disruption", Workers: 2,
		Inputs: []Input{
			{budgets, self},
			{pods, c.keysOfPod},
			{deployments, c.keysOfScaled}, {replicaSets, c.keysOfScaled}, {statefulSets, c.keysOfScaled}, {replicationControllers, c.keysOfScaled},
		},
		Outputs:   []Output{{budgets, "status"}},
		Reconcile: c.reconcile,
	}
}

type disruptionController struct{ *env }

func (c disruptionController) keysOfPod(change Change) (keys []Key) {
	old, _ := change.Old.(*corev1.Pod)
	now, _ := change.New.(*corev1.Pod)
	if old != nil && now != nil && podReady(old) == podReady(now) && old.Status.Phase == now.Status.Phase &&
		(old.DeletionTimestamp == nil) == (now.DeletionTimestamp == nil) && equality.Semantic.DeepEqual(old.Labels, now.Labels) {
		return nil
	}
	o := change.either()
	for _, b := range list[*policyv1.PodDisruptionBudget](c.cache, budgets, o.GetNamespace()) {
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil {
			continue
		}
		for _, side := range change.sides() {
			if selector.Matches(labels.Set(side.GetLabels())) {
				keys = append(keys, keyOf(b))
				break
			}
		}
	}
	return keys
}

// keysOfScaled wakes the budgets of a namespace where something was scaled.
func (c disruptionController) keysOfScaled(change Change) (keys []Key) {
	if change.Old != nil && change.New != nil && change.Old.GetGeneration() == change.New.GetGeneration() {
		return nil
	}
	for _, b := range list[*policyv1.PodDisruptionBudget](c.cache, budgets, change.either().GetNamespace()) {
		keys = append(keys, keyOf(b))
	}
	return keys
}

func (c disruptionController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	b, ok := get[*policyv1.PodDisruptionBudget](c.cache, budgets, key.Namespace, key.Name)
	if !ok || b.DeletionTimestamp != nil {
		return 0, nil
	}
	var all []*corev1.Pod
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	if err == nil {
		all = matching(list[*corev1.Pod](c.cache, pods, key.Namespace), selector)
	}
	if err == nil && len(all) == 0 {
		c.events.record(disruptionComponent, about(b), corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	var expected, desired int
	if err == nil {
		if expected, desired, err = expectedPods(b, all, c.scaleOf); err != nil {
			c.events.record(disruptionComponent, about(b), corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		}
	}
	status, again, expired := budgetStatus(b, all, expected, desired, err, c.Now())
	for _, pod := range expired {
		c.events.record(disruptionComponent, about(pod), corev1.EventTypeWarning, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", b.Namespace, b.Name)
	}
	if equality.Semantic.DeepEqual(b.Status, status) {
		return again, nil
	}
	b = edit(b)
	b.Status = status
	_, err = c.update(ctx, budgets, b, "status")
	return again, ignoreGone(err)
}

// scaleOf is the scale of what controls a pod.
func (c disruptionController) scaleOf(pod *corev1.Pod, ref *metav1.OwnerReference) (uid types.UID, replicas int32, err error) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return "", 0, err
	}
	gk := gv.WithKind(ref.Kind).GroupKind()
	switch gk {
	case schema.GroupKind{Kind: "ReplicationController"}:
		if rc, ok := get[*corev1.ReplicationController](c.cache, replicationControllers, pod.Namespace, ref.Name); ok && rc.UID == ref.UID {
			return rc.UID, desired(rc.Spec.Replicas), nil
		}
	case schema.GroupKind{Group: "apps", Kind: "ReplicaSet"}:
		if rs, ok := get[*appsv1.ReplicaSet](c.cache, replicaSets, pod.Namespace, ref.Name); ok && rs.UID == ref.UID {
			if owner := metav1.GetControllerOfNoCopy(rs); owner != nil && owner.Kind == "Deployment" {
				if d, ok := get[*appsv1.Deployment](c.cache, deployments, pod.Namespace, owner.Name); ok && d.UID == owner.UID {
					return d.UID, desired(d.Spec.Replicas), nil
				}
			}
			return rs.UID, desired(rs.Spec.Replicas), nil
		}
	case schema.GroupKind{Group: "apps", Kind: "StatefulSet"}:
		if s, ok := get[*appsv1.StatefulSet](c.cache, statefulSets, pod.Namespace, ref.Name); ok && s.UID == ref.UID {
			return s.UID, desired(s.Spec.Replicas), nil
		}
	default:
		plural, _ := apimeta.UnsafeGuessKindToResource(gv.WithKind(ref.Kind))
		return "", 0, fmt.Errorf("%s does not implement the scale subresource", plural.GroupResource())
	}
	return "", 0, fmt.Errorf("found no controllers for pod %q", pod.Name)
}

// expectedPods is how many pods there should be, and how many of them must be
// healthy.
func expectedPods(b *policyv1.PodDisruptionBudget, all []*corev1.Pod, scaleOf func(*corev1.Pod, *metav1.OwnerReference) (types.UID, int32, error)) (expected, healthy int, err error) {
	scale := func() (total int, err error) {
		seen := map[types.UID]bool{}
		for _, pod := range all {
			ref := metav1.GetControllerOfNoCopy(pod)
			if ref == nil {
				continue // nobody says how many of its like there should be
			}
			if seen[ref.UID] {
				continue
			}
			seen[ref.UID] = true
			uid, n, err := scaleOf(pod, ref)
			if err != nil {
				return 0, err
			}
			if uid == ref.UID || !seen[uid] {
				total += int(n)
			}
			seen[uid] = true
		}
		return total, nil
	}
	scaled := func(v *intstr.IntOrString) (int, error) {
		return intstr.GetScaledValueFromIntOrPercent(v, expected, true)
	}
	switch least, most := b.Spec.MinAvailable, b.Spec.MaxUnavailable; {
	case most != nil:
		if expected, err = scale(); err != nil {
			return 0, 0, err
		}
		n, err := scaled(most)
		return expected, max(expected-n, 0), err
	case least != nil && least.Type == intstr.Int:
		return len(all), least.IntValue(), nil
	case least != nil:
		if expected, err = scale(); err != nil {
			return 0, 0, err
		}
		n, err := scaled(least)
		return expected, n, err
	}
	return len(all), 0, nil
}

// budgetStatus is the status that the pods amount to, when to look again, and
// the pods whose allowed eviction did not come.
func budgetStatus(b *policyv1.PodDisruptionBudget, all []*corev1.Pod, expected, desired int, failure error, now time.Time) (policyv1.PodDisruptionBudgetStatus, time.Duration, []*corev1.Pod) {
	s := *b.Status.DeepCopy()
	s.ObservedGeneration = b.Generation
	condition := metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse, ObservedGeneration: b.Generation,
		LastTransitionTime: metav1.NewTime(now).Rfc3339Copy(),
	}
	if failure != nil {
		// What cannot be counted is not to be lost.
		s.DisruptionsAllowed = 0
		condition.Reason, condition.Message = policyv1.SyncFailedReason, failure.Error()
		apimeta.SetStatusCondition(&s.Conditions, condition)
		return s, 0, nil
	}
	var again time.Duration
	var expired []*corev1.Pod
	s.DisruptedPods = nil
	healthy := 0
	for _, pod := range all {
		if pod.DeletionTimestamp != nil {
			continue
		}
		if at, ok := b.Status.DisruptedPods[pod.Name]; ok {
			if left := at.Add(evictionTakes).Sub(now); left > 0 {
				if s.DisruptedPods == nil {
					s.DisruptedPods = map[string]metav1.Time{}
				}
				s.DisruptedPods[pod.Name] = at
				again = sooner(again, left)
				continue
			}
			expired = append(expired, pod)
		}
		if podReady(pod) {
			healthy++
		}
	}
	s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods = int32(healthy), int32(desired), int32(expected)
	s.DisruptionsAllowed = max(int32(healthy-desired), 0)
	if expected <= 0 {
		s.DisruptionsAllowed = 0
	}
	condition.Reason = policyv1.InsufficientPodsReason
	if s.DisruptionsAllowed > 0 {
		condition.Status, condition.Reason = metav1.ConditionTrue, policyv1.SufficientPodsReason
	}
	apimeta.SetStatusCondition(&s.Conditions, condition)
	return s, again, expired
}
