package scheduler

import (
	"math"

	"k8s.io/apimachinery/pkg/labels"
)

// spreadCount is a topology spread constraint and how the matching pods are
// spread now.
type spreadCount struct {
	spread
	self    int64 // 1 if the pod counts itself
	domains map[string]int64
	least   int64 // of any domain; 0 if there are fewer than minDomains
}

// newSpreadCount counts the pods that a constraint means, in the domains that
// it takes in: all nodes that have all the constraints' labels, and that the
// pod could be on as far as the policies say.
func newSpreadCount(c *cycle, constraint spread, all []spread) spreadCount {
	count := spreadCount{spread: constraint, domains: map[string]int64{}}
	if constraint.selector.Matches(labels.Set(c.p.Labels)) {
		count.self = 1
	}
	included := func(n *nodeInfo) bool {
		for _, other := range all {
			if _, ok := n.domain(other.key); !ok {
				return false
			}
		}
		if constraint.honorAffinity && c.p.required != nil {
			if ok, err := c.p.required.Match(n.Node); !ok || err != nil {
				return false
			}
		}
		return !constraint.honorTaints || n.unbearable(c.p) == nil
	}
	for _, n := range c.s.order {
		if d, ok := n.domain(constraint.key); ok && included(n) {
			count.domains[d] += 0
		}
	}
	for _, p := range c.s.byNamespace[c.p.Namespace] {
		if p.DeletionTimestamp != nil || !constraint.selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		if n := c.s.nodes[p.Spec.NodeName]; n.Node != nil && included(n) {
			d, _ := n.domain(constraint.key)
			count.domains[d]++
		}
	}
	if len(count.domains) >= constraint.minDomains {
		count.least = math.MaxInt64
		for _, n := range count.domains {
			count.least = min(count.least, n)
		}
		if len(count.domains) == 0 {
			count.least = 0
		}
	}
	return count
}

func (s *spreadCount) fits(n *nodeInfo) bool {
	d, _ := n.domain(s.key)
	return s.domains[d]+s.self-s.least <= s.skew
}

// place is one domain of one topology.
type place struct{ key, value string }

// affinityCount is what the wishes of this pod about others, and of others
// about this one, come to in each place.
type affinityCount struct {
	// forbidden by the required anti-affinity of pods that run there.
	forbidden map[place]bool
	// wanted are, for each required term of this pod, the places where a pod
	// that it means runs; avoided the places where its anti-affinity finds one.
	wanted  []map[string]bool
	avoided map[place]bool
	// alone says that no pod anywhere matches the required terms, but this one
	// does itself: the first of a group may go anywhere.
	alone bool
	// score by place, of preferences on both sides.
	score map[place]int64
}

// hardWeight is what the required affinity of a running pod for this one is
// worth as a preference, as in Kubernetes.
const hardWeight = 1

func newAffinityCount(c *cycle) affinityCount {
	var a affinityCount
	p := c.p
	for _, other := range c.s.affine {
		n := c.s.nodes[other.Spec.NodeName]
		if n.Node == nil {
			continue
		}
		for i := range other.anti {
			if t := &other.anti[i]; t.matches(p, c.s.namespaces) {
				mark(&a.forbidden, n, t.key)
			}
		}
		for i := range other.affinity {
			if t := &other.affinity[i]; t.matches(p, c.s.namespaces) {
				a.rate(n, t.key, hardWeight)
			}
		}
		a.rateAll(n, other.preferAffinity, 1, p, c)
		a.rateAll(n, other.preferAnti, -1, p, c)
	}
	if !p.affine() {
		return a
	}
	a.wanted = make([]map[string]bool, len(p.affinity))
	for i := range a.wanted {
		a.wanted[i] = map[string]bool{}
	}
	any := false
	for _, pods := range c.s.byNamespace {
		for _, other := range pods {
			n := c.s.nodes[other.Spec.NodeName]
			if n.Node == nil {
				continue
			}
			// A pod counts for affinity only if it matches every term.
			all := len(p.affinity) > 0
			for i := range p.affinity {
				all = all && p.affinity[i].matches(other, c.s.namespaces)
			}
			for i := range p.affinity {
				if d, ok := n.domain(p.affinity[i].key); ok && all {
					a.wanted[i][d] = true
					any = true
				}
			}
			for i := range p.anti {
				if t := &p.anti[i]; t.matches(other, c.s.namespaces) {
					mark(&a.avoided, n, t.key)
				}
			}
			a.rateAll(n, p.preferAffinity, 1, other, c)
			a.rateAll(n, p.preferAnti, -1, other, c)
		}
	}
	if len(p.affinity) > 0 && !any {
		a.alone = true
		for i := range p.affinity {
			a.alone = a.alone && p.affinity[i].matches(p, c.s.namespaces)
		}
	}
	return a
}

func mark(m *map[place]bool, n *nodeInfo, key string) {
	if d, ok := n.domain(key); ok {
		if *m == nil {
			*m = map[place]bool{}
		}
		(*m)[place{key, d}] = true
	}
}

func (a *affinityCount) rate(n *nodeInfo, key string, weight int64) {
	if d, ok := n.domain(key); ok {
		if a.score == nil {
			a.score = map[place]int64{}
		}
		a.score[place{key, d}] += weight
	}
}

func (a *affinityCount) rateAll(n *nodeInfo, terms []weighted, sign int64, p *podInfo, c *cycle) {
	for i := range terms {
		if terms[i].matches(p, c.s.namespaces) {
			a.rate(n, terms[i].key, sign*terms[i].weight)
		}
	}
}

// refusal is why a node will not do, empty if it will.
func (a *affinityCount) refusal(c *cycle, n *nodeInfo) string {
	for i := range c.p.affinity {
		d, ok := n.domain(c.p.affinity[i].key)
		if !ok || !a.alone && !a.wanted[i][d] {
			return "node(s) didn't match pod affinity rules"
		}
	}
	for i := range c.p.anti {
		if d, ok := n.domain(c.p.anti[i].key); ok && a.avoided[place{c.p.anti[i].key, d}] {
			return "node(s) didn't match pod anti-affinity rules"
		}
	}
	for at := range a.forbidden {
		if d, ok := n.domain(at.key); ok && d == at.value {
			return "node(s) didn't satisfy existing pods anti-affinity rules"
		}
	}
	return ""
}
