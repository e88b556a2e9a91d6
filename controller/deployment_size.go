package controller

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Annotations by which kubectl's rollout verbs and this controller know the
// revisions and what size a ReplicaSet was given for.
const (
	revisionAnnotation        = "deployment.kubernetes.io/revision"
	revisionHistoryAnnotation = "deployment.kubernetes.io/revision-history"
	desiredAnnotation         = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation             = "deployment.kubernetes.io/max-replicas"
	rollbackAnnotation        = "deprecated.deployment.rollback.to"

	// historyBytes bounds revision-history: the oldest entries go first.
	historyBytes = 2000
)

// ours are the annotations that are not copied from Deployment to ReplicaSet.
var ours = []string{
	corev1.LastAppliedConfigAnnotation, revisionAnnotation, revisionHistoryAnnotation,
	desiredAnnotation, maxAnnotation, rollbackAnnotation,
}

func revisionOf(annotations map[string]string) int64 {
	n, err := strconv.ParseInt(annotations[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// annotate gives a ReplicaSet the Deployment's annotations and, if it is
// higher, the revision; it says whether anything changed.
func annotate(rs *appsv1.ReplicaSet, d *appsv1.Deployment, revision int64) bool {
	before := maps.Clone(rs.Annotations)
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for k, v := range d.Annotations {
		if !slices.Contains(ours, k) {
			rs.Annotations[k] = v
		}
	}
	if had := revisionOf(rs.Annotations); had < revision {
		if had > 0 {
			history := rs.Annotations[revisionAnnotation]
			if old := rs.Annotations[revisionHistoryAnnotation]; old != "" {
				history = old + "," + history
			}
			for len(history) > historyBytes {
				_, history, _ = strings.Cut(history, ",")
			}
			rs.Annotations[revisionHistoryAnnotation] = history
		}
		rs.Annotations[revisionAnnotation] = strconv.FormatInt(revision, 10)
	}
	return !maps.Equal(before, rs.Annotations)
}

// annotateSizes notes the Deployment's size, so that a change of it is told
// from a rollout, and what to scale in proportion to.
func annotateSizes(rs *appsv1.ReplicaSet, d *appsv1.Deployment) bool {
	want := map[string]string{
		desiredAnnotation: strconv.Itoa(int(desired(d.Spec.Replicas))),
		maxAnnotation:     strconv.Itoa(int(desired(d.Spec.Replicas) + maxSurge(d))),
	}
	changed := false
	for k, v := range want {
		if rs.Annotations[k] != v {
			if rs.Annotations == nil {
				rs.Annotations = map[string]string{}
			}
			rs.Annotations[k] = v
			changed = true
		}
	}
	return changed
}

// bounds are maxSurge, rounded up, and maxUnavailable, rounded down: at least
// one of them must let the rollout move.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return 0, 0
	}
	replicas := desired(d.Spec.Replicas)
	quarter := intstr.FromString("25%")
	s, u := &quarter, &quarter
	if r := d.Spec.Strategy.RollingUpdate; r != nil {
		if r.MaxSurge != nil {
			s = r.MaxSurge
		}
		if r.MaxUnavailable != nil {
			u = r.MaxUnavailable
		}
	}
	// Validation has seen both: what cannot be scaled counts as nothing.
	if n, err := intstr.GetScaledValueFromIntOrPercent(s, int(replicas), true); err == nil {
		surge = int32(n)
	}
	if n, err := intstr.GetScaledValueFromIntOrPercent(u, int(replicas), false); err == nil {
		unavailable = int32(n)
	}
	if surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, min(unavailable, replicas)
}

func maxSurge(d *appsv1.Deployment) int32       { s, _ := bounds(d); return s }
func maxUnavailable(d *appsv1.Deployment) int32 { _, u := bounds(d); return u }

func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(sets), func(rs *appsv1.ReplicaSet) bool { return desired(rs.Spec.Replicas) == 0 })
}

// resized says that spec.replicas changed since a ReplicaSet was sized.
func (r *rollout) resized() bool {
	for _, rs := range active(r.all()) {
		n, err := strconv.ParseInt(rs.Annotations[desiredAnnotation], 10, 32)
		if err == nil && int32(n) != desired(r.d.Spec.Replicas) {
			return true
		}
	}
	return false
}

// resize follows a change of spec.replicas, also in the midst of a rollout and
// while paused: then every ReplicaSet grows or shrinks in proportion.
func (r *rollout) resize(ctx context.Context) error {
	if err := r.syncRevision(ctx, false); err != nil {
		return err
	}
	want := desired(r.d.Spec.Replicas)
	alive := active(r.all())
	switch {
	case len(alive) == 1:
		return r.setSize(ctx, alive[0], want)
	case len(alive) == 0 && r.new != nil:
		return r.setSize(ctx, r.new, want)
	case len(alive) == 0 && len(r.old) > 0:
		return r.setSize(ctx, r.old[len(r.old)-1], want) // the latest
	case len(alive) == 0:
		return nil
	}
	if r.saturated() {
		for _, rs := range active(r.old) {
			if err := r.setSize(ctx, rs, 0); err != nil {
				return err
			}
		}
		return nil
	}
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return r.recreate(ctx)
	}
	sizes := proportional(r.d, alive)
	for i, rs := range alive {
		if err := r.setSize(ctx, rs, sizes[i]); err != nil {
			return err
		}
	}
	return nil
}

// saturated says that the new ReplicaSet alone is all that was asked for.
func (r *rollout) saturated() bool {
	if r.new == nil {
		return false
	}
	noted, err := strconv.ParseInt(r.new.Annotations[desiredAnnotation], 10, 32)
	want := desired(r.d.Spec.Replicas)
	return err == nil && desired(r.new.Spec.Replicas) == want && int32(noted) == want && r.new.Status.AvailableReplicas == want
}

// proportional divides the allowed size among ReplicaSets by what each has,
// and sorts them: the largest first, and among equals the newest first when
// growing, the oldest first when shrinking. What rounding leaves over goes to
// the first.
func proportional(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) []int32 {
	allowed := int32(0)
	if desired(d.Spec.Replicas) > 0 {
		allowed = desired(d.Spec.Replicas) + maxSurge(d)
	}
	add := allowed - specReplicas(sets...)
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		age := oldestFirst(a, b)
		if add > 0 {
			age = -age
		}
		return cmp.Or(-cmp.Compare(desired(a.Spec.Replicas), desired(b.Spec.Replicas)), age)
	})
	sizes := make([]int32, len(sets))
	added := int32(0)
	for i, rs := range sets {
		share := int32(0)
		if add != 0 && add != added && desired(rs.Spec.Replicas) != 0 {
			share = fraction(d, rs)
			if add > 0 {
				share = min(share, add-added)
			} else {
				share = max(share, add-added)
			}
		}
		sizes[i] = desired(rs.Spec.Replicas) + share
		added += share
	}
	sizes[0] = max(sizes[0]+add-added, 0)
	return sizes
}

// fraction is by how much one ReplicaSet would change alone.
func fraction(d *appsv1.Deployment, rs *appsv1.ReplicaSet) int32 {
	size := desired(rs.Spec.Replicas)
	if desired(d.Spec.Replicas) == 0 {
		return -size
	}
	before, err := strconv.ParseInt(rs.Annotations[maxAnnotation], 10, 32)
	if err != nil || before == 0 {
		if before = int64(d.Status.Replicas); before == 0 {
			return 0
		}
	}
	after := float64(size) * float64(desired(d.Spec.Replicas)+maxSurge(d)) / float64(before)
	return int32(math.Round(after)) - size
}

// newSize is how large the new ReplicaSet may be now.
func (r *rollout) newSize(rs *appsv1.ReplicaSet) int32 {
	want, have := desired(r.d.Spec.Replicas), desired(rs.Spec.Replicas)
	if r.d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return want
	}
	room := want + maxSurge(r.d) - specReplicas(r.old...) - have
	if room <= 0 {
		return have
	}
	return have + min(room, want-have)
}

// roll replaces old pods by new ones within the bounds.
func (r *rollout) roll(ctx context.Context) error {
	if err := r.syncRevision(ctx, true); err != nil {
		return err
	}
	want, have := desired(r.d.Spec.Replicas), desired(r.new.Spec.Replicas)
	switch size := r.newSize(r.new); {
	case have > want:
		return r.setSize(ctx, r.new, want)
	case size != have:
		return r.setSize(ctx, r.new, size)
	}
	if shrunk, err := r.shrinkOld(ctx); shrunk || err != nil {
		return err
	}
	if r.complete() {
		return r.cleanUp(ctx)
	}
	return nil
}

// shrinkOld takes from the old ReplicaSets what availability allows: first
// pods that are not available anyway, then the others, oldest set first.
func (r *rollout) shrinkOld(ctx context.Context) (bool, error) {
	old := active(r.old)
	if len(old) == 0 {
		return false, nil
	}
	minimum := desired(r.d.Spec.Replicas) - maxUnavailable(r.d)
	newUnavailable := desired(r.new.Spec.Replicas) - r.new.Status.AvailableReplicas
	room := specReplicas(r.all()...) - minimum - newUnavailable
	if room <= 0 {
		return false, nil
	}
	sizes := make([]int32, len(old))
	for i, rs := range old {
		sizes[i] = desired(rs.Spec.Replicas)
		if broken := sizes[i] - rs.Status.AvailableReplicas; broken > 0 {
			n := min(broken, room)
			sizes[i] -= n
			room -= n
		}
	}
	// The pods just taken above were not available. A set that was shrunk
	// before, and has not said so yet, still counts pods that go: not here.
	spare := -minimum
	for _, rs := range r.all() {
		spare += min(rs.Status.AvailableReplicas, desired(rs.Spec.Replicas))
	}
	for i := range old {
		if spare <= 0 {
			break
		}
		n := min(sizes[i], spare)
		sizes[i] -= n
		spare -= n
	}
	shrunk := false
	for i, rs := range old {
		if sizes[i] != desired(rs.Spec.Replicas) {
			shrunk = true
			if err := r.setSize(ctx, rs, sizes[i]); err != nil {
				return shrunk, err
			}
		}
	}
	return shrunk, nil
}

// recreate ends all old pods before it makes new ones.
func (r *rollout) recreate(ctx context.Context) error {
	if err := r.syncRevision(ctx, false); err != nil {
		return err
	}
	if old := active(r.old); len(old) > 0 {
		for _, rs := range old {
			if err := r.setSize(ctx, rs, 0); err != nil {
				return err
			}
		}
		return nil
	}
	for _, rs := range r.old {
		for _, pod := range controlled[*corev1.Pod](r.cache, pods, rs.UID) {
			if !podFinished(pod) {
				return nil // its end wakes us
			}
		}
	}
	if r.new == nil {
		if err := r.syncRevision(ctx, true); err != nil {
			return err
		}
	}
	if err := r.setSize(ctx, r.new, desired(r.d.Spec.Replicas)); err != nil {
		return err
	}
	if r.complete() {
		return r.cleanUp(ctx)
	}
	return nil
}
