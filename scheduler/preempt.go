package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

// sacrifice is the pods that have to go from a node for another to run there.
type sacrifice struct {
	node       *nodeInfo
	victims    []*podInfo // the most important first
	violations int        // of victims that a budget asks to spare
}

// Of many nodes only so many are tried, as in Kubernetes.
const (
	tryAtLeast    = 100
	tryPercentage = 10
)

func priorityOf(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// moreImportant puts first whom to spare first: by priority, then by age.
func moreImportant(a, b *podInfo) int {
	return cmp.Or(-cmp.Compare(priorityOf(a.Pod), priorityOf(b.Pod)), startOf(a).Compare(startOf(b)), cmp.Compare(a.UID, b.UID))
}

func startOf(p *podInfo) time.Time {
	if p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return p.CreationTimestamp.Time
}

// hopeless are the filters that no pod's going helps.
var hopelessFilters = []string{"NodeUnschedulable", "NodeName", "TaintToleration", "NodeSuspected", "NodeAffinity", volumeFilters[2].Name}

// preempt finds the node where room for a pod costs least, and whose pods of
// lower priority that costs; nil, and why, if none helps. It leaves the
// snapshot as it found it.
func preempt(s *snapshot, p *podInfo, suspect func(string) bool) (*sacrifice, string) {
	reasons := map[string]int{}
	if c, whole := newCycle(s, p, suspect); whole == "" {
		var candidates []*nodeInfo
		for _, n := range s.order {
			f := c.refusing(n)
			switch {
			case f == nil || slices.Contains(hopelessFilters, f.Name):
				reasons["Preemption is not helpful for scheduling"]++
			default:
				candidates = append(candidates, n)
			}
		}
		most := max(tryAtLeast, len(s.order)*tryPercentage/100)
		var best *sacrifice
		tried := 0
		for _, n := range candidates {
			found := s.sacrificeOn(n, p, suspect)
			if found == nil {
				reasons["No preemption victims found for incoming pod"]++
				continue
			}
			if best == nil || cheaper(found, best) {
				best = found
			}
			if tried++; tried >= most {
				break
			}
		}
		if best != nil {
			return best, ""
		}
	}
	return nil, " preemption: " + (&explanation{nodes: len(s.order), reasons: reasons}).String()
}

// sacrificeOn is the fewest pods that have to go from a node. First all of
// lower priority are thought away; then they are put back one after the other,
// those first that a budget protects and that are most important, as long as
// there is room.
func (s *snapshot) sacrificeOn(n *nodeInfo, p *podInfo, suspect func(string) bool) *sacrifice {
	var lower []*podInfo
	for _, other := range n.pods {
		if priorityOf(other.Pod) < priorityOf(p.Pod) {
			lower = append(lower, other)
		}
	}
	if len(lower) == 0 {
		return nil
	}
	slices.SortFunc(lower, moreImportant)
	out := map[types.UID]bool{}
	remove := func(v *podInfo) { s.removePod(v.UID); out[v.UID] = true }
	put := func(v *podInfo) { s.addPod(v); delete(out, v.UID) }
	defer func() {
		for _, v := range lower {
			if out[v.UID] {
				s.addPod(v)
			}
		}
	}()
	for _, v := range lower {
		remove(v)
	}
	if !s.feasible(n, p, suspect) {
		return nil
	}
	protected, free := s.protected(lower)
	found := &sacrifice{node: n}
	spare := func(v *podInfo) bool {
		put(v)
		if s.feasible(n, p, suspect) {
			return true
		}
		remove(v)
		found.victims = append(found.victims, v)
		return false
	}
	for _, v := range protected {
		if !spare(v) {
			found.violations++
		}
	}
	for _, v := range free {
		spare(v)
	}
	if len(found.victims) == 0 {
		return nil
	}
	slices.SortFunc(found.victims, moreImportant)
	return found
}

// feasible says whether a pod can run on a node as things are.
func (s *snapshot) feasible(n *nodeInfo, p *podInfo, suspect func(string) bool) bool {
	c, whole := newCycle(s, p, suspect)
	return whole == "" && n.Node != nil && c.refusing(n) == nil
}

// protected are those of some pods whose loss a disruption budget does not
// allow, counting from the first on, and the others.
func (s *snapshot) protected(all []*podInfo) (protected, free []*podInfo) {
	left := map[types.UID]int32{}
	for _, b := range s.budgets {
		left[b.UID] = b.Status.DisruptionsAllowed
	}
	for _, p := range all {
		violates := false
		for _, b := range s.budgets {
			if b.Namespace != p.Namespace || len(p.Labels) == 0 {
				continue
			}
			selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
			if err != nil || selector.Empty() || !selector.Matches(labels.Set(p.Labels)) {
				continue
			}
			if _, counted := b.Status.DisruptedPods[p.Name]; counted {
				continue
			}
			if left[b.UID]--; left[b.UID] < 0 {
				violates = true
			}
		}
		if violates {
			protected = append(protected, p)
		} else {
			free = append(free, p)
		}
	}
	return protected, free
}

// cheaper compares two sacrifices by Kubernetes' order.
func cheaper(a, b *sacrifice) bool {
	sum := func(s *sacrifice) (n int64) {
		for _, v := range s.victims {
			n += int64(priorityOf(v.Pod)) + 1<<31 // so that fewer always are less
		}
		return n
	}
	// The start of the oldest among the victims of the highest priority.
	start := func(s *sacrifice) time.Time { return startOf(s.victims[0]) }
	return cmp.Or(
		cmp.Compare(a.violations, b.violations),
		cmp.Compare(priorityOf(a.victims[0].Pod), priorityOf(b.victims[0].Pod)),
		cmp.Compare(sum(a), sum(b)),
		cmp.Compare(len(a.victims), len(b.victims)),
		-start(a).Compare(start(b)),
	) < 0
}

// nominate notes that a pod waits for room on a node, so that nobody of lower
// priority takes it.
func (s *snapshot) nominate(p *podInfo, node string) {
	s.unnominate(p.UID)
	n := s.nodes[node]
	if n == nil || n.Node == nil {
		return
	}
	if n.nominated == nil {
		n.nominated = map[types.UID]*podInfo{}
	}
	n.nominated[p.UID] = p
	s.nominations[p.UID] = node
}

func (s *snapshot) unnominate(uid types.UID) {
	if n := s.nodes[s.nominations[uid]]; n != nil {
		delete(n.nominated, uid)
	}
	delete(s.nominations, uid)
}

// taken is what a pod finds taken of a node: by the pods that are there and by
// those, as important as itself at least, that wait for room there.
func (n *nodeInfo) taken(p *podInfo) (r *resources, pods int) {
	r, pods = &n.requests, len(n.pods)
	if len(n.nominated) == 0 {
		return r, pods
	}
	all := resources{}
	all.add(r, 1)
	for uid, other := range n.nominated {
		if uid != p.UID && priorityOf(other.Pod) >= priorityOf(p.Pod) {
			all.add(&other.requests, 1)
			pods++
		}
	}
	return &all, pods
}

// mayPreempt says whether a pod may make room for itself: not if it does not
// want to, nor while those whose going it waits for are still going.
func (s *snapshot) mayPreempt(p *podInfo) bool {
	if policy := p.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return false
	}
	if n := s.nodes[s.nominations[p.UID]]; n != nil {
		for _, other := range n.pods {
			if other.DeletionTimestamp != nil && priorityOf(other.Pod) < priorityOf(p.Pod) {
				return false
			}
		}
	}
	return true
}

// makeRoom decides whose going would help a pod that fits nowhere, and returns
// what has to be written; with the reason, if none does, at the end of the
// message. The mutex is held.
func (s *Scheduler) makeRoom(p *podInfo, message string) (func(context.Context), string) {
	had := s.snapshot.nominations[p.UID]
	if !s.snapshot.mayPreempt(p) {
		if policy := p.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
			message += " preemption: not eligible due to preemptionPolicy=Never."
		} else {
			message += " preemption: not eligible due to terminating pod on the nominated node."
		}
		return nil, message
	}
	found, why := preempt(s.snapshot, p, s.Suspect)
	if found == nil {
		s.snapshot.unnominate(p.UID)
		if had == "" {
			return nil, message + why
		}
		return func(ctx context.Context) { s.writeNomination(ctx, p.Pod, "") }, message + why
	}
	var displaced []*podInfo
	for _, other := range found.node.nominated {
		if priorityOf(other.Pod) < priorityOf(p.Pod) {
			displaced = append(displaced, other)
		}
	}
	for _, other := range displaced {
		s.snapshot.unnominate(other.UID)
	}
	s.snapshot.nominate(p, found.node.name)
	node, victims := found.node.name, found.victims
	return func(ctx context.Context) {
		s.writeNomination(ctx, p.Pod, node)
		for _, other := range displaced {
			s.writeNomination(ctx, other.Pod, "")
		}
		for _, v := range victims {
			s.evict(ctx, v.Pod, p.Pod, node)
		}
	}, message
}

// change writes a pod's status, as it is now, changed by f.
func (s *Scheduler) change(ctx context.Context, pod *corev1.Pod, what string, f func(*corev1.PodStatus)) {
	for range 5 {
		o, err := s.Client.Get(ctx, pods, pod.Namespace, pod.Name, metav1.GetOptions{ResourceVersion: "0"})
		now, ok := o.(*corev1.Pod)
		if err != nil || !ok || now.UID != pod.UID {
			return
		}
		now = now.DeepCopy()
		f(&now.Status)
		_, err = s.Client.Update(ctx, pods, pod.Namespace, now, metav1.UpdateOptions{}, "status")
		if !apierrors.IsConflict(err) {
			if err != nil && ctx.Err() == nil {
				s.Log.Debug(what+" not written", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			}
			return
		}
	}
}

func (s *Scheduler) writeNomination(ctx context.Context, pod *corev1.Pod, node string) {
	s.change(ctx, pod, "nomination", func(status *corev1.PodStatus) { status.NominatedNodeName = node })
}

// evict lets a pod go for the sake of another, as gently as it asks for.
func (s *Scheduler) evict(ctx context.Context, victim, preemptor *corev1.Pod, node string) {
	s.change(ctx, victim, "condition", func(status *corev1.PodStatus) {
		is := corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
			Message:            component + ": preempting to accommodate a higher priority pod",
			LastTransitionTime: metav1.NewTime(s.Now()).Rfc3339Copy(), ObservedGeneration: victim.Generation,
		}
		status.Conditions = slices.DeleteFunc(status.Conditions, func(c corev1.PodCondition) bool { return c.Type == is.Type })
		status.Conditions = append(status.Conditions, is)
	})
	err := s.Client.Delete(ctx, pods, victim.Namespace, victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &victim.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		// It stays, and so the preemptor waits: its next turn tries again.
		s.Log.Warn("preemption failed", "pod", victim.Namespace+"/"+victim.Name, "for", preemptor.Namespace+"/"+preemptor.Name, "error", err)
		return
	}
	s.event(ctx, victim, corev1.EventTypeNormal, "Preempted", "Preempting", fmt.Sprintf("Preempted by pod %v on node %v", preemptor.UID, node))
}

func (s *Scheduler) applyBudget(o api.Object) {
	if b, ok := o.(*policyv1.PodDisruptionBudget); ok {
		s.snapshot.budgets[b.UID] = b
	}
}

func (s *Scheduler) knownBudgets() (uids []types.UID) {
	for uid := range s.snapshot.budgets {
		uids = append(uids, uid)
	}
	return uids
}

func (s *Scheduler) forgetBudget(uid types.UID) { delete(s.snapshot.budgets, uid) }
