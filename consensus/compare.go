package consensus

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Replicas compare what their logs have come to. Entries and snapshots carry
// checksums, so that damage on a disk shows when they are read; what is left is
// a replica that skipped an entry, applied one twice, or decided differently.
// So what is compared is which version of which object there is: a sum over all
// records of a mark, kept by each write at the cost of a short hash.

// keptSums is for how many batches of writes a replica remembers its sum: the
// leader must still know its own at the revision that a follower was at.
const keptSums = 512

// sumAt is the sum of the state at a revision.
type sumAt struct {
	Revision uint64 `json:"revision"`
	Sum      uint64 `json:"sum"`
}

// mark stands for one version of one object: FNV-1a of its names and its
// revision. It is not kept with the record, which would be a quarter larger: of
// two versions of one object the names, which are nearly all of it, are hashed
// once.
func (r *resource) mark(o *record) uint64 { return r.markNames(o).at(o.revision) }

// marking is an FNV-1a hash on its way.
type marking uint64

const (
	fnvStart marking = 14695981039346656037
	fnvPrime marking = 1099511628211
)

func (r *resource) markNames(o *record) marking {
	h := fnvStart
	for _, s := range [...]string{r.name, o.namespace, o.name} {
		for i := range len(s) {
			h = (h ^ marking(s[i])) * fnvPrime
		}
		h *= fnvPrime // a 0 between names
	}
	return h
}

func (h marking) at(revision uint64) uint64 {
	for i := 0; i < 64; i += 8 {
		h = (h ^ marking(byte(revision>>i))) * fnvPrime
	}
	return uint64(h)
}

// count adds all marks up. Under mu.
func (s *Store) count() (sum uint64) {
	for _, r := range s.resources {
		r.tree.Scan(func(o *record) bool {
			sum += r.mark(o)
			return true
		})
	}
	return sum
}

// noteSum remembers the sum after a batch. Under mu.
func (s *Store) noteSum() {
	s.sums[s.turn] = sumAt{s.revision, s.sum}
	s.turn = (s.turn + 1) % keptSums
}

// newestSum is the state's sum now.
func (s *Store) newestSum() sumAt {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return sumAt{s.revision, s.sum}
}

// sumOf is what the sum was at a revision, if that is still known.
func (s *Store) sumOf(revision uint64) (sum uint64, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if revision == s.revision {
		return s.sum, true
	}
	i := slices.IndexFunc(s.sums[:], func(a sumAt) bool { return a.Revision == revision })
	if i < 0 || revision == 0 {
		return 0, false
	}
	return s.sums[i].Sum, true
}

// How often the leader compares, if anything was written since; and how long
// after a difference it looks again before it believes it.
const (
	defaultCompare = 10 * time.Minute
	compareAgain   = time.Second
)

// compareStates has the leader compare the others' states with its own, until
// the leadership ends. Who differs is told to begin anew; if all others differ,
// it is the leader itself that does.
func (n *Node) compareStates(l *leadership) {
	timer := time.NewTimer(n.c.Compare)
	defer timer.Stop()
	var compared uint64
	for {
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			return
		}
		timer.Reset(n.c.Compare)
		now := n.store.Revision()
		if now == compared {
			continue
		}
		differ, _, all := n.differing(l.ctx, nil)
		if all {
			compared = now
		}
		if len(differ) == 0 {
			continue
		}
		again := time.NewTimer(compareAgain)
		select {
		case <-again.C:
		case <-l.ctx.Done():
			again.Stop()
			return
		}
		differ, agree, _ := n.differing(l.ctx, differ)
		if len(differ) > 1 && agree == 0 {
			n.fail(fmt.Errorf("%w: the state here differs from that of all other masters", ErrDamaged))
			return
		}
		for _, id := range differ {
			n.log.Warn("the state of a master differs: it is to begin anew", "node", id)
			var none struct{}
			if err := call(l.ctx, n.c.Caller, id, pathDiffers, none, &none); err != nil && l.ctx.Err() == nil {
				n.log.Warn("telling a master that its state differs", "node", id, "error", err)
			}
		}
	}
}

// differing asks the other servers for their sums, and returns who differs from
// this node's state, of those that did before if suspects is not nil; how many
// agree; and whether all could be judged.
func (n *Node) differing(ctx context.Context, suspects []string) (differ []string, agree int, all bool) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	all = true
	for _, server := range n.configuration().Servers {
		id := string(server.ID)
		if id == n.c.ID {
			continue
		}
		var theirs sumAt
		if call(ctx, n.c.Caller, id, pathSum, struct{}{}, &theirs) != nil {
			all = false
			continue
		}
		switch ours, known := n.store.sumOf(theirs.Revision); {
		case !known:
			all = false
		case ours == theirs.Sum:
			agree++
		case suspects == nil || slices.Contains(suspects, id):
			differ = append(differ, id)
		}
	}
	return differ, agree, all
}
