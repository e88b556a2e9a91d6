package scheduler

import (
	"math"
	"slices"
)

// Weights as Kubernetes has them by default.
const (
	weightLeast    = 1
	weightBalanced = 1
	weightImages   = 1
	weightSpread   = 2
	weightAffinity = 2 // pods'
	weightNodes    = 2 // node affinity
	weightTaints   = 3

	best = 100 // of every score
)

// leastAllocated prefers nodes that have more left.
func leastAllocated(p *podInfo, n *nodeInfo) int64 {
	return (free(n.allocatable.cpu, n.scored.cpu+p.scored.cpu) + free(n.allocatable.memory, n.scored.memory+p.scored.memory)) / 2
}

func free(capacity, used int64) int64 {
	if capacity == 0 || used > capacity {
		return 0
	}
	return (capacity - used) * best / capacity
}

// balanced prefers nodes whose processor and memory fill up alike.
func balanced(p *podInfo, n *nodeInfo) int64 {
	cpu := share(n.requests.cpu+p.requests.cpu, n.allocatable.cpu)
	memory := share(n.requests.memory+p.requests.memory, n.allocatable.memory)
	return int64((1 - math.Abs(cpu-memory)/2) * best)
}

func share(used, capacity int64) float64 {
	if capacity == 0 {
		return 1
	}
	return min(float64(used)/float64(capacity), 1)
}

// What an image must weigh to count, and what counts fully, per container.
const (
	imageLeast = 23 << 20
	imageMost  = 1000 << 20
)

// imageScore prefers nodes that have the images, the large ones above all; an
// image that few nodes have counts less, so that they are not crowded.
func imageScore(c *cycle, known []*image, n *nodeInfo) int64 {
	var sum int64
	for _, i := range known {
		if _, ok := i.nodes[n]; ok {
			sum += i.size * int64(len(i.nodes)) / int64(len(c.s.order))
		}
	}
	most := int64(imageMost) * int64(len(c.p.images))
	sum = min(max(sum, imageLeast), most)
	return best * (sum - imageLeast) / (most - imageLeast)
}

// scorer rates all candidates: values, normalised to 0..best and weighted, are
// added to total.
type scorer struct {
	c          *cycle
	candidates []*nodeInfo
	total      []int64
	values     []int64
}

// add rates every candidate and normalises: best for the highest, or for the
// lowest if reverse; from is what a candidate at worst has.
func (s *scorer) add(weight int64, reverse, fromLowest bool, rate func(n *nodeInfo) int64) {
	lowest, highest := int64(math.MaxInt64), int64(math.MinInt64)
	for i, n := range s.candidates {
		v := rate(n)
		s.values[i] = v
		lowest, highest = min(lowest, v), max(highest, v)
	}
	if !fromLowest {
		lowest = 0
	}
	if highest == lowest {
		return // no difference
	}
	for i, v := range s.values {
		v = (v - lowest) * best / (highest - lowest)
		if reverse {
			v = best - v
		}
		s.total[i] += weight * v
	}
}

// score returns how good each candidate is.
func (c *cycle) score(candidates []*nodeInfo) []int64 {
	c.total = slices.Grow(c.total[:0], len(candidates))[:len(candidates)]
	c.values = slices.Grow(c.values[:0], len(candidates))[:len(candidates)]
	s := &scorer{c: c, candidates: candidates, total: c.total, values: c.values}
	var images []*image
	for _, name := range c.p.images {
		if i := c.s.images[name]; i != nil {
			images = append(images, i)
		}
	}
	for i, n := range candidates {
		s.total[i] = weightLeast*leastAllocated(c.p, n) + weightBalanced*balanced(c.p, n)
		if len(images) > 0 {
			s.total[i] += weightImages * imageScore(c, images, n)
		}
	}
	if c.s.prefering > 0 {
		s.add(weightTaints, true, false, func(n *nodeInfo) (unbearable int64) {
			for i := range n.prefer {
				if !c.p.tolerates(&n.prefer[i]) {
					unbearable++
				}
			}
			return unbearable
		})
	}
	if c.p.preferred != nil {
		s.add(weightNodes, false, false, func(n *nodeInfo) int64 { return c.p.preferred.Score(n.Node) })
	}
	if len(c.affinity.score) > 0 {
		s.add(weightAffinity, false, true, func(n *nodeInfo) (sum int64) {
			for at, weight := range c.affinity.score {
				if d, ok := n.domain(at.key); ok && d == at.value {
					sum += weight
				}
			}
			return sum
		})
	}
	switch owner := c.s.owners[c.p.owner]; {
	case len(c.soft) > 0:
		s.add(weightSpread, true, true, func(n *nodeInfo) (sum int64) {
			for i := range c.soft {
				d, ok := n.domain(c.soft[i].key)
				if !ok {
					return math.MaxInt32 // nowhere is worse
				}
				sum += c.soft[i].domains[d] * best / max(c.soft[i].skew, 1)
			}
			return sum
		})
	case owner != nil:
		// Kubernetes' own default: over nodes and, more coarsely, over zones.
		c.zones = slices.Grow(c.zones[:0], len(c.s.zoneNames))[:len(c.s.zoneNames)]
		for id, name := range c.s.zoneNames {
			c.zones[id] = 2 * best * owner.zones[name] / max(int64(c.s.zones[name]), 1)
		}
		s.add(weightSpread, true, true, func(n *nodeInfo) int64 { return owner.nodes[n]*best + c.zones[n.zoneID] })
	}
	return s.total
}
