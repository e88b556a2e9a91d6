package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Of a large cluster not every node is looked at: enough to choose well from,
// and the next decision looks at others. As in Kubernetes, the share falls with
// size, to the same floor but sooner, and small clusters are looked at whole.
const (
	sampleAll     = 100 // nodes: up to here all
	samplePercent = 50
	sampleFloor   = 5 // per cent
)

// sample is how many nodes that will do are enough to choose from.
func sample(nodes int) int {
	if nodes <= sampleAll {
		return nodes
	}
	percent := max(samplePercent-nodes/100, sampleFloor)
	return max(nodes*percent/100, sampleAll)
}

// explanation says why a pod fits nowhere.
type explanation struct {
	nodes   int
	whole   string // a reason that has nothing to do with nodes
	reasons map[string]int
}

// String is what users of Kubernetes know.
func (e *explanation) String() string {
	if e.nodes == 0 {
		return "no nodes available to schedule pods"
	}
	if e.whole != "" {
		return fmt.Sprintf("0/%d nodes are available: %s.", e.nodes, e.whole)
	}
	var parts []string
	for reason, n := range maps.All(e.reasons) {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(parts)
	return fmt.Sprintf("0/%d nodes are available: %s.", e.nodes, strings.Join(parts, ", "))
}

// schedule decides where a pod runs: the node, or why there is none. It
// changes nothing that a decision depends on, and depends on nothing but its
// arguments; looked is how many
// nodes it looked at.
func schedule(s *snapshot, p *podInfo, suspect func(string) bool) (chosen *nodeInfo, why *explanation, looked int) {
	c, whole := newCycle(s, p, suspect)
	if whole != "" {
		return nil, &explanation{nodes: len(s.order), whole: whole}, 0
	}
	enough := sample(len(s.order))
	candidates := c.candidates[:0]
	for looked = 0; looked < len(s.order) && len(candidates) < enough; looked++ {
		n := s.order[(s.start+looked)%len(s.order)]
		if c.refusing(n) == nil {
			candidates = append(candidates, n)
		}
	}
	c.candidates = candidates
	if len(candidates) == 0 {
		return nil, c.explain(), looked
	}
	if len(candidates) == 1 {
		return candidates[0], nil, looked
	}
	scores := c.score(candidates)
	highest := slices.Max(scores)
	ties := 0
	for _, v := range scores {
		if v == highest {
			ties++
		}
	}
	pick := s.turn % ties
	for i, v := range scores {
		if v != highest {
			continue
		}
		if pick == 0 {
			return candidates[i], nil, looked
		}
		pick--
	}
	return nil, c.explain(), looked // not reached: some score is the highest
}

// newCycle prepares one decision; whole is why there is no use in it.
func newCycle(s *snapshot, p *podInfo, suspect func(string) bool) (c *cycle, whole string) {
	c = &cycle{s: s, p: p, suspect: suspect, scratch: &s.scratch}
	if len(p.claims) > 0 {
		if c.volumes = s.check(p); c.volumes.hopeless != "" {
			return c, c.volumes.hopeless
		}
	}
	for _, constraint := range p.hardSpread {
		c.hard = append(c.hard, newSpreadCount(c, constraint, p.hardSpread))
	}
	for _, constraint := range p.softSpread {
		c.soft = append(c.soft, newSpreadCount(c, constraint, p.softSpread))
	}
	if p.affine() || len(s.affine) > 0 {
		c.affinity = newAffinityCount(c)
	}
	c.filters = c.filters[:0]
	for i := range filters {
		if filters[i].Concerns(c) {
			c.filters = append(c.filters, &filters[i])
		}
	}
	return c, ""
}

// refusing is the first filter that does not let the pod onto a node.
func (c *cycle) refusing(n *nodeInfo) *Filter {
	for _, f := range c.filters {
		if !f.Check(c, n) {
			return f
		}
	}
	return nil
}

func (c *cycle) explain() *explanation {
	e := &explanation{nodes: len(c.s.order), reasons: map[string]int{}}
	for _, n := range c.s.order {
		if f := c.refusing(n); f != nil {
			for _, reason := range f.Explain(c, n) {
				e.reasons[reason]++
			}
		}
	}
	return e
}

// decided moves on, so that the next decision begins elsewhere.
func (s *snapshot) decided(looked int) {
	s.turn++
	if len(s.order) > 0 {
		s.start = (s.start + looked) % len(s.order)
	}
}
