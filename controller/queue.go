package controller

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Delays after a failed reconciliation: doubled from the first to the last.
const (
	firstBackOff = 5 * time.Millisecond
	lastBackOff  = 30 * time.Second
)

// queue hands keys to the workers of one controller. A key is handed to one
// worker at a time; added again meanwhile, it is handed out once more after.
// It runs no goroutine, and at rest no timer unless a key asked for one.
type queue struct {
	mu       sync.Mutex
	ready    []Key
	waiting  map[Key]bool // in ready, or to be put there when done
	running  map[Key]bool
	failures map[Key]int
	// later holds when a key is due by its own wish; entries of timers that
	// disagree with it are void.
	later  map[Key]time.Time
	timers timerHeap
	timer  *time.Timer
	wake   chan struct{} // holds one token while ready is not empty
	closed bool
}

func newQueue() *queue {
	return &queue{
		waiting: map[Key]bool{}, running: map[Key]bool{},
		failures: map[Key]int{}, later: map[Key]time.Time{},
		wake: make(chan struct{}, 1),
	}
}

func (q *queue) add(keys ...Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, k := range keys {
		q.addLocked(k)
	}
}

func (q *queue) addLocked(k Key) {
	if q.waiting[k] {
		return
	}
	q.waiting[k] = true
	if !q.running[k] {
		q.ready = append(q.ready, k)
		q.signal()
	}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next waits for a key; false when ctx has ended.
func (q *queue) next(ctx context.Context) (Key, bool) {
	for {
		if ctx.Err() != nil {
			return Key{}, false
		}
		q.mu.Lock()
		if len(q.ready) > 0 {
			k := q.ready[0]
			q.ready = q.ready[1:]
			if len(q.ready) > 0 {
				q.signal()
			} else {
				q.ready = nil // let the grown array go
			}
			delete(q.waiting, k)
			q.running[k] = true
			q.mu.Unlock()
			return k, true
		}
		q.mu.Unlock()
		select {
		case <-q.wake:
		case <-ctx.Done():
			return Key{}, false
		}
	}
}

// done ends the work on a key: failed keys come back after a growing delay,
// others after the delay they ask for, if any.
func (q *queue) done(k Key, after time.Duration, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.running, k)
	if err != nil {
		n := q.failures[k]
		q.failures[k] = n + 1
		after = lastBackOff
		if n < 13 {
			after = min(firstBackOff<<n, lastBackOff)
		}
	} else {
		delete(q.failures, k)
	}
	if q.waiting[k] {
		q.ready = append(q.ready, k)
		q.signal()
	}
	delete(q.later, k)
	if after > 0 && !q.closed {
		at := time.Now().Add(after)
		q.later[k] = at
		heap.Push(&q.timers, due{at, k})
		q.arm()
	}
}

// arm sets the timer for the earliest wish.
func (q *queue) arm() {
	for len(q.timers) > 0 && !q.later[q.timers[0].key].Equal(q.timers[0].at) {
		heap.Pop(&q.timers)
	}
	if len(q.timers) == 0 || q.closed {
		return
	}
	d := max(time.Until(q.timers[0].at), 0)
	if q.timer == nil {
		q.timer = time.AfterFunc(d, q.fire)
	} else {
		q.timer.Reset(d)
	}
}

func (q *queue) fire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for len(q.timers) > 0 && !q.timers[0].at.After(now) {
		d := heap.Pop(&q.timers).(due)
		if q.later[d.key].Equal(d.at) {
			delete(q.later, d.key)
			q.addLocked(d.key)
		}
	}
	q.arm()
}

// close stops the timer.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	if q.timer != nil {
		q.timer.Stop()
	}
}

type due struct {
	at  time.Time
	key Key
}

type timerHeap []due

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h timerHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *timerHeap) Push(x any)        { *h = append(*h, x.(due)) }
func (h *timerHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
