package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"
)

// newDeployments rolls the pods of each Deployment from one template to the
// next, by way of ReplicaSets: one per template, the newest growing as the
// others shrink.
func newDeployments(e *env) *Controller {
	c := deploymentController{e}
	return &Controller{
		Name:    "deployment",
		Workers: 2,
		Inputs: []Input{
			{deployments, self},
			{replicaSets, claimants(e, deployments, "Deployment", func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector })},
			{pods, c.keysOfPod},
		},
		Outputs: []Output{
			{replicaSets, "objects controlled by a Deployment"}, {replicaSets, "spec.replicas"},
			{deployments, "status"}, {deployments, "revision annotation"},
		},
		Reconcile: c.reconcile,
	}
}

type deploymentController struct{ *env }

// keysOfPod wakes a Deployment of strategy Recreate when a pod ends: only then
// may the new ones start. Everything else about pods comes through the status
// of ReplicaSets.
func (c deploymentController) keysOfPod(change Change) []Key {
	if change.New != nil && !podFinished(change.New.(*corev1.Pod)) {
		return nil
	}
	owner, ok := controllerKey(change.either(), "ReplicaSet")
	if !ok {
		return nil
	}
	rs, ok := get[*appsv1.ReplicaSet](c.cache, replicaSets, owner.Namespace, owner.Name)
	if !ok {
		return nil
	}
	key, ok := controllerKey(rs, "Deployment")
	if !ok {
		return nil
	}
	d, ok := get[*appsv1.Deployment](c.cache, deployments, key.Namespace, key.Name)
	if !ok || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []Key{key}
}

// rollout is one look at one Deployment: its own copy of it, and the
// ReplicaSets by role. It changes as the writes of the reconciliation do.
type rollout struct {
	*env
	d *appsv1.Deployment // ours to change
	// asked is the status as it was read: what is written only if it differs.
	asked *appsv1.Deployment
	new   *appsv1.ReplicaSet // nil until made
	old   []*appsv1.ReplicaSet
}

func (c deploymentController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	d, ok := get[*appsv1.Deployment](c.cache, deployments, key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of deployment %s: %w", key, err)
	}
	if selector.Empty() {
		c.events.record("deployment-controller", about(d), corev1.EventTypeWarning, "SelectingAll",
			"This deployment is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	sets, err := claim[*appsv1.ReplicaSet](ctx, c.env, replicaSets, d, deployments, selector)
	if err != nil {
		return 0, err
	}
	r := &rollout{env: c.env, d: edit(d), asked: d}
	r.sort(sets)
	return r.run(ctx)
}

// sort tells the ReplicaSet of the current template from the others; of two
// the older counts, as whoever lost the race to create one must agree.
func (r *rollout) sort(sets []*appsv1.ReplicaSet) {
	slices.SortFunc(sets, oldestFirst)
	for _, rs := range sets {
		if r.new == nil && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			r.new = rs
			continue
		}
		r.old = append(r.old, rs)
	}
}

func oldestFirst(a, b *appsv1.ReplicaSet) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// sameTemplate compares what users wrote: the hash label is ours.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	delete(a.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(b.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return equality.Semantic.DeepEqual(a, b)
}

func (r *rollout) run(ctx context.Context) (time.Duration, error) {
	if r.d.DeletionTimestamp != nil {
		return r.writeStatus(ctx)
	}
	r.notePause()
	var err error
	switch {
	case r.d.Spec.Paused || r.resized():
		err = r.resize(ctx)
		if err == nil && r.d.Spec.Paused {
			err = r.cleanUp(ctx)
		}
	case r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType:
		err = r.recreate(ctx)
	default:
		err = r.roll(ctx)
	}
	if err != nil {
		return 0, r.failed(ctx, err)
	}
	return r.writeStatus(ctx)
}

// all are all ReplicaSets, the new one included.
func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.new == nil {
		return r.old
	}
	return append(slices.Clone(r.old), r.new)
}

func specReplicas(sets ...*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		if rs != nil {
			n += desired(rs.Spec.Replicas)
		}
	}
	return n
}

func statusOf(field func(*appsv1.ReplicaSetStatus) int32, sets ...*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		if rs != nil {
			n += field(&rs.Status)
		}
	}
	return n
}

func available(s *appsv1.ReplicaSetStatus) int32 { return s.AvailableReplicas }
func existing(s *appsv1.ReplicaSetStatus) int32  { return s.Replicas }
func readyOnes(s *appsv1.ReplicaSetStatus) int32 { return s.ReadyReplicas }
func terminating(s *appsv1.ReplicaSetStatus) int32 {
	if s.TerminatingReplicas == nil {
		return 0
	}
	return *s.TerminatingReplicas
}

// syncRevision keeps the new ReplicaSet's revision the highest and copies the
// Deployment's annotations to it; where there is none yet it makes it, if told.
func (r *rollout) syncRevision(ctx context.Context, create bool) error {
	var highest int64
	for _, rs := range r.old {
		highest = max(highest, revisionOf(rs.Annotations))
	}
	if r.new == nil && create {
		return r.createNew(ctx, highest+1)
	}
	if r.new == nil {
		return nil
	}
	rs := edit(r.new)
	changed := annotate(rs, r.d, highest+1)
	if rs.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		rs.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
		changed = true
	}
	if changed {
		if err := r.writeSet(ctx, rs); err != nil {
			return err
		}
	}
	r.setRevision(r.new.Annotations[revisionAnnotation])
	if deadline(r.d) > 0 && condition(&r.d.Status, appsv1.DeploymentProgressing) == nil {
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "FoundNewReplicaSet", "Found new replica set %q", r.new.Name)
	}
	return nil
}

func (r *rollout) setRevision(revision string) {
	if r.d.Annotations[revisionAnnotation] == revision {
		return
	}
	if r.d.Annotations == nil {
		r.d.Annotations = map[string]string{}
	}
	r.d.Annotations[revisionAnnotation] = revision
}

// createNew makes the ReplicaSet of the current template.
func (r *rollout) createNew(ctx context.Context, revision int64) error {
	template := r.d.Spec.Template.DeepCopy()
	hash, err := templateHash(template, r.d.Status.CollisionCount)
	if err != nil {
		return fmt.Errorf("hash of the template: %w", err)
	}
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	selector := r.d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	rs := &appsv1.ReplicaSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.d.Namespace, Name: r.d.Name + "-" + hash,
			Labels:          template.Labels,
			OwnerReferences: []metav1.OwnerReference{controllerRef(r.d)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: new(int32), MinReadySeconds: r.d.Spec.MinReadySeconds,
			Selector: selector, Template: *template,
		},
	}
	*rs.Spec.Replicas = r.newSize(rs)
	annotate(rs, r.d, revision)
	annotateSizes(rs, r.d)
	made, err := r.create(ctx, replicaSets, rs)
	switch {
	case err == nil:
		r.new = made.(*appsv1.ReplicaSet)
		if n := desired(r.new.Spec.Replicas); n > 0 {
			r.scaled(r.new, 0, n)
		}
		if deadline(r.d) > 0 {
			r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, "NewReplicaSetCreated", "Created new replica set %q", r.new.Name)
		}
	case apierrors.IsAlreadyExists(err):
		// Ours after all, or another template has the same hash.
		other, peekErr := r.peek(ctx, replicaSets, rs.Namespace, rs.Name)
		if peekErr != nil {
			return peekErr
		}
		if found, ok := other.(*appsv1.ReplicaSet); ok && metav1.IsControlledBy(found, r.d) && sameTemplate(&found.Spec.Template, &r.d.Spec.Template) {
			r.learn(replicaSets, found)
			r.new = found
			break
		}
		count := int32(0)
		if r.d.Status.CollisionCount != nil {
			count = *r.d.Status.CollisionCount
		}
		count++
		r.d.Status = *r.asked.Status.DeepCopy()
		r.d.Status.CollisionCount = &count
		if _, err := r.update(ctx, deployments, r.d, "status"); err != nil {
			return err
		}
		return fmt.Errorf("the hash %s is taken by another template", hash)
	default:
		return createError{err}
	}
	r.setRevision(r.new.Annotations[revisionAnnotation])
	return nil
}

// failed writes down, where users look, that the new ReplicaSet could not be
// made.
func (r *rollout) failed(ctx context.Context, err error) error {
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	if !errors.As(err, new(createError)) || deadline(r.d) == 0 {
		return err
	}
	r.d.Status = *r.asked.Status.DeepCopy()
	r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, "ReplicaSetCreateError", "Failed to create new replica set %q: %v", r.d.Name, rootCause(err))
	if !equality.Semantic.DeepEqual(r.d.Status, r.asked.Status) {
		if _, writeErr := r.update(ctx, deployments, r.d, "status"); writeErr != nil {
			return errors.Join(err, writeErr)
		}
	}
	return err
}

// templateHash names a template: FNV-1a over its protobuf form, whose maps are
// sorted, and the number of collisions met so far.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) (string, error) {
	b, err := t.Marshal()
	if err != nil {
		return "", err
	}
	h := fnv.New32a()
	h.Write(b)
	if collisions != nil {
		fmt.Fprintf(h, "/%d", *collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10)), nil
}

// writeSet updates a ReplicaSet and takes the answer in place of the one held.
func (r *rollout) writeSet(ctx context.Context, rs *appsv1.ReplicaSet) error {
	made, err := r.update(ctx, replicaSets, rs)
	if err != nil {
		return err
	}
	written, ok := made.(*appsv1.ReplicaSet)
	if !ok {
		return fmt.Errorf("update replicasets %s: the answer is a %T", keyOf(rs), made)
	}
	if r.new != nil && r.new.UID == written.UID {
		r.new = written
	}
	for i := range r.old {
		if r.old[i].UID == written.UID {
			r.old[i] = written
		}
	}
	return nil
}

// setSize scales a ReplicaSet and keeps its notes on the Deployment's size.
func (r *rollout) setSize(ctx context.Context, rs *appsv1.ReplicaSet, size int32) error {
	before := desired(rs.Spec.Replicas)
	changed := edit(rs)
	changed.Spec.Replicas = &size
	if noted := annotateSizes(changed, r.d); before == size && !noted {
		return nil
	}
	if err := r.writeSet(ctx, changed); err != nil {
		return err
	}
	if before != size {
		r.scaled(changed, before, size)
	}
	return nil
}

func (r *rollout) scaled(rs *appsv1.ReplicaSet, from, to int32) {
	direction := "up"
	if to < from {
		direction = "down"
	}
	r.events.record("deployment-controller", about(r.d), corev1.EventTypeNormal, "ScalingReplicaSet",
		"Scaled %s replica set %s from %d to %d", direction, rs.Name, from, to)
}

// cleanUp deletes the oldest revisions beyond the limit; those that still have
// pods stay.
func (r *rollout) cleanUp(ctx context.Context) error {
	if r.d.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	history := slices.DeleteFunc(slices.Clone(r.old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	surplus := len(history) - int(*r.d.Spec.RevisionHistoryLimit)
	if surplus <= 0 {
		return nil
	}
	slices.SortFunc(history, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(cmp.Compare(revisionOf(a.Annotations), revisionOf(b.Annotations)), oldestFirst(a, b))
	})
	for _, rs := range history[:surplus] {
		if rs.Status.Replicas != 0 || desired(rs.Spec.Replicas) != 0 || rs.Generation > rs.Status.ObservedGeneration {
			continue
		}
		if err := r.delete(ctx, replicaSets, rs, metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}

// writeStatus writes what has changed of status and revision, and says when
// the progress deadline has to be looked at.
func (r *rollout) writeStatus(ctx context.Context) (time.Duration, error) {
	r.fillStatus()
	if r.d.DeletionTimestamp == nil {
		r.fillProgress()
	}
	again := r.untilDeadline()
	noted := r.d.Annotations[revisionAnnotation]
	if equality.Semantic.DeepEqual(r.d.Status, r.asked.Status) && noted == r.asked.Annotations[revisionAnnotation] {
		return again, nil
	}
	// The revision travels with the status: a plain update of a Deployment's
	// annotations would count as a new generation of its spec.
	made, err := r.update(ctx, deployments, r.d, "status")
	if apierrors.IsNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if made.GetAnnotations()[revisionAnnotation] != noted {
		d := edit(made.(*appsv1.Deployment))
		r.d = d
		r.setRevision(noted)
		if _, err := r.update(ctx, deployments, d); err != nil {
			return 0, err
		}
	}
	return again, nil
}
