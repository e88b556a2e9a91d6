package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

// burst is the most pods that one reconciliation creates or deletes.
const burst = 500

// newReplicaSets keeps as many pods as each ReplicaSet asks for.
//
// Kubernetes' own controller keeps expectations, because its cache may not yet
// show the pods that it just made. Ours does: the cache takes in the result of
// every write before the write returns, and one key is reconciled by one
// worker at a time, so a ReplicaSet is never topped up twice.
func newReplicaSets(e *env) *Controller {
	return replicaSetController{
		env: e, resource: replicaSets, component: "replicaset-controller",
		view: func(o api.Object) (*appsv1.ReplicaSet, bool) {
			rs, ok := o.(*appsv1.ReplicaSet)
			return rs, ok
		},
		withStatus: func(o api.Object, s appsv1.ReplicaSetStatus) (api.Object, bool) {
			rs := o.(*appsv1.ReplicaSet)
			if equality.Semantic.DeepEqual(rs.Status, s) {
				return nil, false
			}
			rs = edit(rs)
			rs.Status = s
			return rs, true
		},
	}.controller("replicaset", claimants(e, replicaSets, "ReplicaSet", func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector }))
}

// newReplicationControllers does the same for their older form: it sees each as
// a ReplicaSet that says that it is a ReplicationController.
func newReplicationControllers(e *env) *Controller {
	return replicaSetController{
		env: e, resource: replicationControllers, component: "replication-controller",
		view: func(o api.Object) (*appsv1.ReplicaSet, bool) {
			rc, ok := o.(*corev1.ReplicationController)
			if !ok || rc.Spec.Template == nil {
				return nil, false
			}
			return asReplicaSet(rc), true
		},
		withStatus: func(o api.Object, s appsv1.ReplicaSetStatus) (api.Object, bool) {
			rc := o.(*corev1.ReplicationController)
			status := corev1.ReplicationControllerStatus{
				Replicas: s.Replicas, FullyLabeledReplicas: s.FullyLabeledReplicas, ReadyReplicas: s.ReadyReplicas,
				AvailableReplicas: s.AvailableReplicas, ObservedGeneration: s.ObservedGeneration,
			}
			for _, c := range s.Conditions {
				status.Conditions = append(status.Conditions, corev1.ReplicationControllerCondition{
					Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
				})
			}
			if equality.Semantic.DeepEqual(rc.Status, status) {
				return nil, false
			}
			rc = edit(rc)
			rc.Status = status
			return rc, true
		},
	}.controller("replicationcontroller", claimants(e, replicationControllers, "ReplicationController", func(rc *corev1.ReplicationController) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}
	}))
}

// asReplicaSet shares the parts of a ReplicationController, which are not to be
// changed.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		TypeMeta: rc.TypeMeta, ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector: &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}, Template: *rc.Spec.Template,
		},
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}

// replicaSetController keeps the pods of ReplicaSets, or of what it is shown as
// ReplicaSets.
type replicaSetController struct {
	*env
	resource  schema.GroupVersionResource
	component string // by which events are reported
	view      func(api.Object) (*appsv1.ReplicaSet, bool)
	// withStatus returns a copy with another status, and whether it is another.
	withStatus func(api.Object, appsv1.ReplicaSetStatus) (api.Object, bool)
}

func (c replicaSetController) controller(name string, ofPod func(Change) []Key) *Controller {
	return &Controller{
		Name: name, Workers: 4,
		Inputs:    []Input{{c.resource, self}, {pods, ofPod}},
		Outputs:   []Output{{pods, "objects controlled through " + c.resource.Resource}, {c.resource, "status"}},
		Reconcile: c.reconcile,
	}
}

func (c replicaSetController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	o, ok := get[api.Object](c.cache, c.resource, key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	rs, ok := c.view(o)
	if !ok {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of %s %s: %w", c.resource.Resource, key, err)
	}
	claimed, err := claim[*corev1.Pod](ctx, c.env, pods, rs, c.resource, selector)
	if err != nil {
		return 0, err
	}
	failure := error(nil)
	if rs.DeletionTimestamp == nil {
		failure = c.scale(ctx, rs, claimed)
	}
	// What was just made and deleted is in the cache by now.
	status, again := replicaSetStatus(rs, matching(controlled[*corev1.Pod](c.cache, pods, rs.UID), selector), failure, c.Now())
	if changed, differs := c.withStatus(o, status); differs {
		if _, err := c.update(ctx, c.resource, changed, "status"); err != nil && !apierrors.IsNotFound(err) {
			return 0, errors.Join(failure, err)
		}
	}
	return again, failure
}

func matching(all []*corev1.Pod, s labels.Selector) []*corev1.Pod {
	return slices.DeleteFunc(all, func(p *corev1.Pod) bool { return !s.Matches(labels.Set(p.Labels)) })
}

// scale makes or deletes what is missing or too many.
func (c replicaSetController) scale(ctx context.Context, rs *appsv1.ReplicaSet, claimed []*corev1.Pod) error {
	active := slices.DeleteFunc(slices.Clone(claimed), func(p *corev1.Pod) bool { return !podActive(p) })
	missing := int(desired(rs.Spec.Replicas)) - len(active)
	switch {
	case missing > 0:
		return c.createPods(ctx, rs, min(missing, burst))
	case missing < 0:
		surplus := victims(active, c.relatedPerNode(rs), -missing, c.Now())
		return c.deletePods(ctx, rs, surplus[:min(len(surplus), burst)])
	default:
		return nil
	}
}

func desired(replicas *int32) int32 {
	if replicas == nil {
		return 1
	}
	return *replicas
}

// createPods makes pods in batches of 1, 2, 4, …: if they are refused, by a
// quota say, that is found out by few requests instead of many.
func (c replicaSetController) createPods(ctx context.Context, rs *appsv1.ReplicaSet, n int) error {
	for batch := 1; n > 0; batch *= 2 {
		var g errgroup.Group
		for range min(batch, n) {
			g.Go(func() error {
				made, err := c.create(ctx, pods, podFromTemplate(rs))
				if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
					return err // to be dropped below: nobody needs to read of it
				}
				if err != nil {
					c.events.record(c.component, about(rs), corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", rootCause(err))
					return err
				}
				c.events.record(c.component, about(rs), corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %s", made.GetName())
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return nil
			}
			return createError{err}
		}
		n -= min(batch, n)
	}
	return nil
}

// createError tells a failure to create from one to delete.
type createError struct{ error }

func (e createError) Unwrap() error { return e.error }

// rootCause strips what our own layers said of an API error: users compare
// events and conditions with what the server says.
func rootCause(err error) error {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if e, ok := status.(error); ok {
			return e
		}
	}
	return err
}

func podFromTemplate(rs *appsv1.ReplicaSet) *corev1.Pod {
	t := rs.Spec.Template.DeepCopy()
	prefix := rs.Name + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = rs.Name
	}
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: rs.Namespace, GenerateName: prefix,
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{controllerRef(rs)},
		},
		Spec: t.Spec,
	}
}

func (c replicaSetController) deletePods(ctx context.Context, rs *appsv1.ReplicaSet, surplus []*corev1.Pod) error {
	var g errgroup.Group
	g.SetLimit(64)
	for _, pod := range surplus {
		g.Go(func() error {
			if err := c.delete(ctx, pods, pod, metav1.DeleteOptions{}); err != nil {
				c.events.record(c.component, about(rs), corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", rootCause(err))
				return err
			}
			c.events.record(c.component, about(rs), corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %s", pod.Name)
			return nil
		})
	}
	return g.Wait()
}

// relatedPerNode counts, per node, the active pods of all ReplicaSets that
// share this one's controller: of a Deployment's pods those go first that
// crowd a node.
func (c replicaSetController) relatedPerNode(rs *appsv1.ReplicaSet) map[string]int {
	related := []*appsv1.ReplicaSet{rs}
	if ref := metav1.GetControllerOfNoCopy(rs); ref != nil {
		related = controlled[*appsv1.ReplicaSet](c.cache, replicaSets, ref.UID)
	}
	count := map[string]int{}
	for _, r := range related {
		for _, p := range controlled[*corev1.Pod](c.cache, pods, r.UID) {
			if podActive(p) {
				count[p.Spec.NodeName]++
			}
		}
	}
	return count
}

// victims returns the n pods whose loss costs least, in Kubernetes' order.
func victims(active []*corev1.Pod, related map[string]int, n int, now time.Time) []*corev1.Pod {
	phase := map[corev1.PodPhase]int{corev1.PodPending: 0, corev1.PodUnknown: 1, corev1.PodRunning: 2}
	readySince := func(p *corev1.Pod) time.Time {
		if c := podCondition(p, corev1.PodReady); c != nil && c.Status == corev1.ConditionTrue {
			return c.LastTransitionTime.Time
		}
		return time.Time{}
	}
	slices.SortFunc(active, func(a, b *corev1.Pod) int {
		return cmp.Or(
			less(a.Spec.NodeName == "", b.Spec.NodeName == ""),
			cmp.Compare(phase[a.Status.Phase], phase[b.Status.Phase]),
			less(!podReady(a), !podReady(b)),
			cmp.Compare(deletionCost(a), deletionCost(b)),
			-cmp.Compare(related[a.Spec.NodeName], related[b.Spec.NodeName]),
			younger(readySince(a), readySince(b), now),
			-cmp.Compare(restarts(a), restarts(b)),
			younger(a.CreationTimestamp.Time, b.CreationTimestamp.Time, now),
			cmp.Compare(a.UID, b.UID),
		)
	})
	return active[:min(n, len(active))]
}

// less puts those first for which it is true.
func less(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// younger puts the later time first, by powers of two of the age, so that
// among pods of about one age it does not always hit the youngest.
func younger(a, b, now time.Time) int {
	return cmp.Compare(magnitude(a, now), magnitude(b, now))
}

func magnitude(t, now time.Time) int {
	age := now.Sub(t)
	switch {
	case t.IsZero():
		return math.MaxInt // unknown counts as oldest
	case age <= 0:
		return -1
	}
	return int(math.Log2(float64(age)))
}

func deletionCost(p *corev1.Pod) int32 {
	n, err := strconv.ParseInt(p.Annotations[corev1.PodDeletionCost], 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func restarts(p *corev1.Pod) (most int32) {
	for _, s := range p.Status.ContainerStatuses {
		most = max(most, s.RestartCount)
	}
	return most
}

// replicaSetStatus is the status that the pods amount to, and when to look
// again because a ready pod becomes available by the passing of time.
func replicaSetStatus(rs *appsv1.ReplicaSet, all []*corev1.Pod, failure error, now time.Time) (appsv1.ReplicaSetStatus, time.Duration) {
	var again time.Duration
	var terminating int32
	s := *rs.Status.DeepCopy()
	s.Replicas, s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0, 0
	template := labels.SelectorFromSet(rs.Spec.Template.Labels)
	for _, pod := range all {
		if pod.DeletionTimestamp != nil && !podFinished(pod) {
			terminating++
		}
		if !podActive(pod) {
			continue
		}
		s.Replicas++
		if template.Matches(labels.Set(pod.Labels)) {
			s.FullyLabeledReplicas++
		}
		left, ready := availableIn(pod, time.Duration(rs.Spec.MinReadySeconds)*time.Second, now)
		switch {
		case ready && left == 0:
			s.AvailableReplicas++
			s.ReadyReplicas++
		case ready:
			s.ReadyReplicas++
			if again == 0 || left < again {
				again = left
			}
		}
	}
	s.TerminatingReplicas = &terminating
	s.ObservedGeneration = rs.Generation
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.ReplicaSetCondition) bool { return c.Type == appsv1.ReplicaSetReplicaFailure })
	if failure != nil {
		reason := "FailedDelete"
		if errors.As(failure, new(createError)) {
			reason = "FailedCreate"
		}
		condition := appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason,
			Message: rootCause(failure).Error(), LastTransitionTime: metav1.NewTime(now),
		}
		for _, old := range rs.Status.Conditions {
			if old.Type == condition.Type && old.Status == condition.Status && old.Reason == reason {
				// The first message stays: those of refusals differ in
				// generated names, and would be one write each.
				condition = old
			}
		}
		s.Conditions = append(s.Conditions, condition)
	}
	return s, again
}
