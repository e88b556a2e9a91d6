package scheduler

import (
	"cmp"
	"container/heap"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// How long a pod waits after a failed attempt, at least: doubled each time.
const (
	firstBackOff = 100 * time.Millisecond
	lastBackOff  = 10 * time.Second
)

// stage is where a pod without a node is.
type stage uint8

const (
	active  stage = iota // its turn comes by priority, then age
	backOff              // its turn comes after a while
	waiting              // nothing has changed since it did not fit
	gated                // its schedulingGates hold it
	binding              // decided, being written
)

// entry is one pod without a node.
type entry struct {
	info     *podInfo
	stage    stage
	place    int // in its heap
	added    time.Time
	order    uint64    // of arrival, among those of one time
	attempts int       // that failed
	ready    time.Time // when back-off ends
	said     string    // the last explanation that was written down
}

func (e *entry) priority() int32 {
	if e.info.Spec.Priority == nil {
		return 0
	}
	return *e.info.Spec.Priority
}

// queue holds the pods without a node. It is not safe for concurrent use.
type queue struct {
	entries map[types.UID]*entry
	active  entryHeap
	backOff entryHeap
	arrived uint64
}

func newQueue() *queue {
	return &queue{
		entries: map[types.UID]*entry{},
		active: entryHeap{less: func(a, b *entry) bool {
			return cmp.Or(-cmp.Compare(a.priority(), b.priority()), cmp.Compare(a.order, b.order)) < 0
		}},
		backOff: entryHeap{less: func(a, b *entry) bool { return a.ready.Before(b.ready) }},
	}
}

// put takes in a pod, or a new version of one. A changed pod gets a new chance
// at once; one that is being bound keeps its decision.
func (q *queue) put(p *podInfo, now time.Time) *entry {
	e := q.entries[p.UID]
	if e == nil {
		q.arrived++
		e = &entry{info: p, added: now, order: q.arrived, stage: waiting}
		q.entries[p.UID] = e
	} else {
		if e.stage == binding {
			e.info = p
			return e
		}
		q.unheap(e) // its priority may change
		e.info, e.stage = p, waiting
	}
	switch {
	case len(p.Spec.SchedulingGates) > 0:
		e.stage = gated
	default:
		q.wake(e, now)
	}
	return e
}

func (q *queue) unheap(e *entry) {
	switch e.stage {
	case active:
		heap.Remove(&q.active, e.place)
	case backOff:
		heap.Remove(&q.backOff, e.place)
	}
}

func (q *queue) remove(uid types.UID) {
	if e := q.entries[uid]; e != nil {
		q.unheap(e)
		delete(q.entries, uid)
	}
}

// wake gives a waiting pod its turn, but not before its back-off has ended.
func (q *queue) wake(e *entry, now time.Time) {
	if e.stage != waiting {
		return
	}
	if e.ready.After(now) {
		e.stage = backOff
		heap.Push(&q.backOff, e)
		return
	}
	e.stage = active
	heap.Push(&q.active, e)
}

// wakeAll wakes the waiting pods for which what happened may have helped.
func (q *queue) wakeAll(now time.Time, helped func(*podInfo) bool) {
	for _, e := range q.entries {
		if e.stage == waiting && helped(e.info) {
			q.wake(e, now)
		}
	}
}

// pop returns the next pod, which is in stage binding from now on, or nil and
// when to ask again (zero: when something changes).
func (q *queue) pop(now time.Time) (*entry, time.Time) {
	for len(q.backOff.all) > 0 && !q.backOff.all[0].ready.After(now) {
		e := heap.Pop(&q.backOff).(*entry)
		e.stage = active
		heap.Push(&q.active, e)
	}
	if len(q.active.all) > 0 {
		e := heap.Pop(&q.active).(*entry)
		e.stage = binding
		return e, time.Time{}
	}
	if len(q.backOff.all) > 0 {
		return nil, q.backOff.all[0].ready
	}
	return nil, time.Time{}
}

// failed puts a pod back: to wait for something to change, or, if retry, for
// its back-off only.
func (q *queue) failed(e *entry, now time.Time, retry bool) {
	if q.entries[e.info.UID] != e {
		return // gone meanwhile
	}
	delay := lastBackOff
	if e.attempts < 7 {
		delay = min(firstBackOff<<e.attempts, lastBackOff)
	}
	e.attempts++
	e.ready = now.Add(delay)
	e.stage = waiting
	switch {
	case len(e.info.Spec.SchedulingGates) > 0:
		e.stage = gated
	case retry:
		q.wake(e, now)
	}
}

type entryHeap struct {
	all  []*entry
	less func(a, b *entry) bool
}

func (h *entryHeap) Len() int           { return len(h.all) }
func (h *entryHeap) Less(i, j int) bool { return h.less(h.all[i], h.all[j]) }
func (h *entryHeap) Swap(i, j int) {
	h.all[i], h.all[j] = h.all[j], h.all[i]
	h.all[i].place, h.all[j].place = i, j
}
func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.place = len(h.all)
	h.all = append(h.all, e)
}
func (h *entryHeap) Pop() any {
	e := h.all[len(h.all)-1]
	h.all[len(h.all)-1] = nil
	h.all = h.all[:len(h.all)-1]
	return e
}
