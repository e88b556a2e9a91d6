package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/watch"

	"conclave/consensus"
)

const things = "things"

// change is what an event says.
type change struct {
	kind       watch.EventType
	key, value string
	before     uint64 // the revision of the version before, 0 if there was none
}

// stretch is what one watcher saw without an interruption: first a list at a
// revision, unless it went on from the one before, then all changes up to
// another.
type stretch struct {
	who      string
	list     map[string]uint64 // revisions by key; nil: there was none
	from, to uint64
	seen     []uint64
}

// watched gathers what all watchers saw.
type watched struct {
	mu        *sync.Mutex
	changes   map[uint64]change
	acked     map[uint64]bool
	stretches []*stretch
	wrong     []string
}

func newWatched() watched {
	return watched{mu: &sync.Mutex{}, changes: map[uint64]change{}, acked: map[uint64]bool{}}
}

func (w *watched) acknowledged(revision uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.acked[revision] = true
}

func (w *watched) begin(s *stretch) *stretch {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.to = s.from
	w.stretches = append(w.stretches, s)
	return s
}

// hear adds what Next returned.
func (w *watched) hear(s *stretch, events []consensus.Event, to uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range events {
		now := change{kind: e.Type, key: e.Record.Object().GetName(), value: value(e.Record)}
		if e.Previous != nil {
			now.before = e.Previous.Revision()
		}
		at := e.Record.Revision()
		if other, known := w.changes[at]; known && other != now {
			w.wrong = append(w.wrong, fmt.Sprintf("%s saw %+v at revision %d, another %+v", s.who, now, at, other))
		}
		w.changes[at] = now
		s.seen = append(s.seen, at)
	}
	s.to = to
}

func revisions(list []consensus.Record) map[string]uint64 {
	out := map[string]uint64{}
	for _, r := range list {
		out[r.Object().GetName()] = r.Revision()
	}
	return out
}

// follow watches one replica for as long as it runs.
func (c *cluster) follow(ctx context.Context, who string, store *consensus.Store) {
	for ctx.Err() == nil {
		list, w, err := store.ListAndWatch(things, "")
		if err != nil {
			c.violation("%s: watch: %v", who, err)
			return
		}
		s := c.watched.begin(&stretch{who: who, list: revisions(list), from: w.Revision()})
		for {
			events, to, err := w.Next(ctx)
			c.watched.hear(s, events, to)
			if err != nil {
				break // expired by a snapshot, or over
			}
		}
		w.Stop()
	}
}

// wander watches as a client does that goes on at another node where it stopped.
func (c *cluster) wander(id int, stop <-chan struct{}) {
	own := rand.New(rand.NewPCG(c.seed, uint64(2000+id)))
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
		case <-ctx.Done():
		}
		cancel()
	}()
	s := &stretch{}
	for ctx.Err() == nil {
		all := c.present()
		p := all[own.IntN(len(all))].running()
		var m *master
		if p != nil {
			m = p.master.Load()
		}
		if m == nil {
			sleep(ctx, 100*time.Millisecond)
			continue
		}
		store := m.node.Store()
		w, err := store.Watch(things, "", s.to)
		if errors.Is(err, consensus.ErrExpired) || s.who == "" {
			list, at := store.List(things, "")
			s = c.watched.begin(&stretch{who: fmt.Sprint("wanderer ", id), list: revisions(list), from: at})
			w, err = store.Watch(things, "", at)
		}
		if err != nil { // that replica is behind, or moved on in between
			sleep(ctx, 50*time.Millisecond)
			continue
		}
		until, done := context.WithTimeout(ctx, time.Duration(own.IntN(4000))*time.Millisecond)
		for err == nil {
			var events []consensus.Event
			var to uint64
			events, to, err = w.Next(until)
			c.watched.hear(s, events, to)
		}
		done()
		w.Stop()
	}
}

// check says what watchers saw wrongly, given that all of them together saw all.
func (w *watched) check() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Sorted(maps.Keys(w.changes))
	for revision := range w.acked {
		if _, known := w.changes[revision]; !known {
			w.wrong = append(w.wrong, fmt.Sprintf("no watcher saw the write that was acknowledged with revision %d", revision))
		}
	}
	for _, s := range w.stretches {
		low, _ := slices.BinarySearch(all, s.from+1)
		high, _ := slices.BinarySearch(all, s.to+1)
		if want := all[low:max(low, high)]; !slices.Equal(s.seen, want) {
			w.wrong = append(w.wrong, fmt.Sprintf("%s saw revisions %v from %d to %d; there are %v", s.who, s.seen, s.from, s.to, want))
		}
	}
	// What was listed is what the changes before made.
	slices.SortFunc(w.stretches, func(a, b *stretch) int { return int(a.from) - int(b.from) })
	state, next := map[string]uint64{}, 0
	for _, s := range w.stretches {
		for ; next < len(all) && all[next] <= s.from; next++ {
			e := w.changes[all[next]]
			if e.before != state[e.key] {
				w.wrong = append(w.wrong, fmt.Sprintf("revision %d changes revision %d of %s, which was at %d", all[next], e.before, e.key, state[e.key]))
			}
			if state[e.key] = all[next]; e.kind == watch.Deleted {
				delete(state, e.key)
			}
		}
		if s.list != nil && !maps.Equal(s.list, state) {
			w.wrong = append(w.wrong, fmt.Sprintf("%s was listed %v at revision %d; there was %v", s.who, s.list, s.from, state))
		}
	}
	return w.wrong
}
