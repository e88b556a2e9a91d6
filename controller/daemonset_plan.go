package controller

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// daemonState is all that the decision on a DaemonSet depends on.
type daemonState struct {
	set  *appsv1.DaemonSet
	hash string // of the template
	now  time.Time
	// mayReplace says whether a failed pod may be deleted yet.
	mayReplace func(*corev1.Pod) bool

	nodes  []*corev1.Node
	run    map[string]bool // nodes that are to have a pod
	stay   map[string]bool // nodes whose pod may stay
	byNode map[string][]*corev1.Pod
}

// daemonPlan is what to do about it.
type daemonPlan struct {
	create []string // nodes
	remove []*corev1.Pod
	events []said
	again  time.Duration
}

type said struct{ kind, reason, message string }

func newDaemonState(set *appsv1.DaemonSet, hash string, nodes []*corev1.Node, pods []*corev1.Pod, now time.Time) *daemonState {
	s := &daemonState{set: set, hash: hash, now: now, nodes: nodes, run: map[string]bool{}, stay: map[string]bool{}, mayReplace: func(*corev1.Pod) bool { return true }}
	for _, n := range nodes {
		s.run[n.Name], s.stay[n.Name] = suits(set, n)
	}
	s.assign(pods)
	return s
}

// assign sorts pods by their nodes, the oldest first.
func (s *daemonState) assign(pods []*corev1.Pod) {
	s.byNode = map[string][]*corev1.Pod{}
	slices.SortStableFunc(pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	for _, p := range pods {
		if podFinished(p) && p.DeletionTimestamp != nil {
			continue // it runs no more, and goes
		}
		s.byNode[s.nodeOf(p)] = append(s.byNode[s.nodeOf(p)], p)
	}
}

func (s *daemonState) nodeOf(p *corev1.Pod) string { return pinnedTo(p) }

func (s *daemonState) current(p *corev1.Pod) bool {
	return p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == s.hash
}

// available says whether a pod is, and if it only needs time, how long.
func (s *daemonState) available(p *corev1.Pod) (bool, time.Duration) {
	if p.DeletionTimestamp != nil {
		return false, 0
	}
	left, ready := availableIn(p, time.Duration(s.set.Spec.MinReadySeconds)*time.Second, s.now)
	return ready && left == 0, left
}

// plan is one step: what nodes lack, what is too much, and then what a rolling
// update asks for.
func (s *daemonState) plan() daemonPlan {
	var p daemonPlan
	unavailable, surge := s.limits()
	for _, n := range s.nodes {
		s.tend(&p, n.Name, surge > 0)
	}
	for node, pods := range s.byNode {
		if _, known := s.run[node]; known {
			continue
		}
		for _, pod := range pods {
			if pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil { // it waits for a node that is gone
				p.remove = append(p.remove, pod)
			}
		}
	}
	if s.set.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType || len(p.create)+len(p.remove) > 0 {
		return p // the update goes on when this is done, and brings us here again
	}
	if surge > 0 {
		s.surge(&p, surge)
	} else {
		s.replace(&p, unavailable)
	}
	return p
}

// limits are maxUnavailable and maxSurge in numbers of nodes.
func (s *daemonState) limits() (unavailable, surge int) {
	r := s.set.Spec.UpdateStrategy.RollingUpdate
	if r == nil {
		return 1, 0
	}
	desired := 0
	for _, run := range s.run {
		if run {
			desired++
		}
	}
	scaled := func(v *intstr.IntOrString) int {
		if v == nil {
			return 0
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(v, desired, true)
		if err != nil {
			return 0
		}
		return n
	}
	unavailable, surge = scaled(r.MaxUnavailable), scaled(r.MaxSurge)
	if unavailable == 0 && surge == 0 {
		unavailable = 1
	}
	return unavailable, surge
}

// tend sees to one node.
func (s *daemonState) tend(p *daemonPlan, node string, surging bool) {
	pods := s.byNode[node]
	switch {
	case s.run[node] && len(pods) == 0:
		p.create = append(p.create, node)
	case !s.stay[node]:
		for _, pod := range pods {
			if pod.DeletionTimestamp == nil {
				p.remove = append(p.remove, pod)
			}
		}
	default:
		var running []*corev1.Pod
		for _, pod := range pods {
			switch {
			case pod.DeletionTimestamp != nil:
			case pod.Status.Phase == corev1.PodFailed:
				if s.mayReplace(pod) {
					p.events = append(p.events, said{corev1.EventTypeWarning, "FailedDaemonPod", fmt.Sprintf("Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, node)})
					p.remove = append(p.remove, pod)
				}
			case pod.Status.Phase == corev1.PodSucceeded:
				p.events = append(p.events, said{corev1.EventTypeNormal, "SucceededDaemonPod", fmt.Sprintf("Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, node)})
				p.remove = append(p.remove, pod)
			default:
				running = append(running, pod)
			}
		}
		if len(running) < 2 {
			return
		}
		if !surging {
			p.remove = append(p.remove, running[1:]...)
			return
		}
		old, new, more := s.pair(running)
		p.remove = append(p.remove, more...)
		if old != nil && new != nil {
			if is, _ := s.available(new); is || !podReady(old) {
				p.remove = append(p.remove, old)
			}
		}
	}
}

// pair is the oldest pod of an older template and of this one, and the others.
func (s *daemonState) pair(pods []*corev1.Pod) (old, new *corev1.Pod, more []*corev1.Pod) {
	for _, pod := range pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case s.current(pod) && new == nil:
			new = pod
		case !s.current(pod) && old == nil:
			old = pod
		default:
			more = append(more, pod)
		}
	}
	return old, new, more
}

// replace deletes old pods, so many at a time that no more than most nodes are
// without an available one. Those that are not available are no loss.
func (s *daemonState) replace(p *daemonPlan, most int) {
	gone := 0
	var free, candidates []*corev1.Pod
	for _, n := range s.nodes {
		pods := s.byNode[n.Name]
		if !s.run[n.Name] && len(pods) == 0 {
			continue
		}
		old, new, more := s.pair(pods)
		switch {
		case len(more) > 0, old == nil && new == nil, old != nil && new != nil:
			gone++
		case new != nil:
			is, left := s.available(new)
			if !is {
				gone++
			}
			p.again = sooner(p.again, left)
		default:
			if is, left := s.available(old); is {
				candidates = append(candidates, old)
			} else {
				p.again = sooner(p.again, left)
				free = append(free, old)
			}
		}
	}
	p.remove = append(append(p.remove, free...), candidates[:max(min(most-gone, len(candidates)), 0)]...)
}

// surge makes new pods beside old ones, on so many nodes at a time, and deletes
// the old ones when the new ones are available.
func (s *daemonState) surge(p *daemonPlan, most int) {
	surging := 0
	var free, candidates []string
	for _, n := range s.nodes {
		old, new, more := s.pair(s.byNode[n.Name])
		switch {
		case len(more) > 0:
			surging++
		case old == nil:
		case new == nil:
			if is, _ := s.available(old); is {
				candidates = append(candidates, n.Name)
			} else {
				free = append(free, n.Name)
			}
		default:
			if is, left := s.available(new); is {
				p.remove = append(p.remove, old)
			} else {
				surging++
				p.again = sooner(p.again, left)
			}
		}
	}
	p.create = append(append(p.create, free...), candidates[:max(min(most-surging, len(candidates)), 0)]...)
}

// status is what the pods amount to, and when to look again.
func (s *daemonState) status() (appsv1.DaemonSetStatus, time.Duration) {
	var again time.Duration
	st := appsv1.DaemonSetStatus{ObservedGeneration: s.set.Generation, Conditions: s.set.Status.Conditions}
	for _, n := range s.nodes {
		pods := s.byNode[n.Name]
		if !s.run[n.Name] {
			if len(pods) > 0 {
				st.NumberMisscheduled++
			}
			continue
		}
		st.DesiredNumberScheduled++
		if len(pods) == 0 {
			continue
		}
		st.CurrentNumberScheduled++
		// Of several the oldest that is ready counts for its readiness.
		shown := pods[0]
		for _, pod := range pods {
			if podReady(pod) && pod.DeletionTimestamp == nil {
				shown = pod
				break
			}
		}
		if podReady(shown) {
			st.NumberReady++
			is, left := s.available(shown)
			if is {
				st.NumberAvailable++
			}
			again = sooner(again, left)
		}
		if slices.ContainsFunc(pods, s.current) {
			st.UpdatedNumberScheduled++
		}
	}
	st.NumberUnavailable = st.DesiredNumberScheduled - st.NumberAvailable
	return st, again
}
