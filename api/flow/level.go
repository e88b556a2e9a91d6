package flow

import (
	"context"
	"slices"
	"sync"
	"time"

	"conclave/api/types"
)

// Why a request was refused, in the words of Kubernetes' metrics.
const (
	QueueFull  = "queue-full"
	NoSeat     = "concurrency-limit" // and nothing waits at this level
	TooLong    = "time-out"          // it has waited
	GoneAway   = "cancelled"         // nobody waits for its answer any more
	leastUse   = int64(time.Millisecond)
	guessedUse = 10 * int64(time.Millisecond)
)

// Refused says that a request is not served, and why.
type Refused string

func (r Refused) Error() string { return "no seat for the request: " + string(r) }

// level is one level of priority. Its requests come and go by enter and
// Seat.Leave, in their own goroutines.
type level struct {
	name    string
	exempt  bool
	control *Control

	mu      sync.Mutex
	spec    types.PriorityLevelSpec
	share   share
	limit   int // as it is divided now
	serving int
	waiting int // in all queues
	demand  demand
	// queues are those that something waits in, or is served out of.
	queues map[int]*queue
	// ring are those that something waits in; turn is where among equals the next
	// choice begins.
	ring []*queue
	turn int
	// clock is the start of the queue that was served last: a queue that was empty
	// begins there, what it did not use before is lost.
	clock  int64
	counts map[string]*count // by FlowSchema
}

// count is what became of the requests of one FlowSchema at one level.
type count struct {
	serving, waiting int
	served           uint64
	refused          map[string]uint64
}

// queue is requests of a few flows.
type queue struct {
	number  int
	start   int64 // how much it has used, in nanoseconds of one seat
	serving int
	waiters []*waiter
}

// waiter is a request that waits. Its seat is written before ready is closed.
type waiter struct {
	ready chan struct{}
	count *count
	seat  Seat
}

// Seat is what a request has while it is served. The zero value is none.
type Seat struct {
	level *level
	count *count
	queue *queue // nil: it did not wait
	since int64  // nanoseconds
}

// Leave gives the seat back, once.
func (s *Seat) Leave() {
	if l := s.level; l != nil {
		now := l.control.nano()
		l.mu.Lock()
		l.rise(s, now)
		l.mu.Unlock()
		*s = Seat{}
		l.control.divideBy(now)
	}
}

// enter returns with a seat, or Refused.
func (l *level) enter(ctx context.Context, schema *Schema, q *Request, patience time.Duration) (Seat, error) {
	now := l.control.nano()
	l.control.divideBy(now)
	l.mu.Lock()
	c := schema.count
	if l.exempt || l.serving < l.limit {
		seat := l.sit(c, nil, now)
		l.mu.Unlock()
		return seat, nil
	}
	w, err := l.wait(c, schema, q, now)
	l.mu.Unlock()
	if err != nil {
		return Seat{}, err
	}
	return l.await(ctx, w, patience)
}

// sit takes a seat; the caller holds mu.
func (l *level) sit(c *count, from *queue, now int64) Seat {
	l.serving++
	c.serving++
	c.served++
	l.demand.set(l.serving+l.waiting, now)
	return Seat{l, c, from, now}
}

// rise gives a seat back, and to the next; the caller holds mu.
func (l *level) rise(s *Seat, now int64) {
	l.serving--
	s.count.serving--
	if q := s.queue; q != nil {
		q.serving--
		q.start += max(leastUse, now-s.since) - guessedUse
		l.forget(q)
	}
	l.demand.set(l.serving+l.waiting, now)
	l.serve(now)
}

// refuse counts; the caller holds mu.
func (c *count) refuse(why string) Refused {
	if c.refused == nil {
		c.refused = map[string]uint64{}
	}
	c.refused[why]++
	return Refused(why)
}

// wait puts a request into the shortest queue of its flow's hand; the caller holds
// mu.
func (l *level) wait(c *count, schema *Schema, q *Request, now int64) (*waiter, error) {
	if l.spec.Limited == nil || l.spec.Limited.LimitResponse.Queuing == nil {
		return nil, c.refuse(NoSeat)
	}
	rules := l.spec.Limited.LimitResponse.Queuing
	best, length := 0, -1
	deal(hashOf(schema.Name, schema.distinguish(q)), int(rules.Queues), int(rules.HandSize), func(number int) {
		have := 0
		if queue := l.queues[number]; queue != nil {
			have = len(queue.waiters)
		}
		if length < 0 || have < length {
			best, length = number, have
		}
	})
	if length >= int(rules.QueueLengthLimit) {
		return nil, c.refuse(QueueFull)
	}
	into := l.queues[best]
	if into == nil {
		into = &queue{number: best}
		l.queues[best] = into
	}
	if len(into.waiters) == 0 {
		into.start = max(into.start, l.clock)
		l.ring = append(l.ring, into)
	}
	w := &waiter{ready: make(chan struct{}), count: c}
	into.waiters = append(into.waiters, w)
	l.waiting++
	c.waiting++
	w.seat.queue = into
	l.demand.set(l.serving+l.waiting, now)
	return w, nil
}

// await returns once the waiter has a seat, or has waited too long.
func (l *level) await(ctx context.Context, w *waiter, patience time.Duration) (Seat, error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-w.ready:
			return w.seat, nil
		case <-tick.C:
			l.control.refresh()
			l.control.divideBy(l.control.nano())
		case <-waiting.Done():
			return l.giveUp(w, ctx.Err() != nil)
		}
	}
}

// giveUp takes a waiter out of its queue, unless it was given a seat just now that
// somebody can use.
func (l *level) giveUp(w *waiter, gone bool) (Seat, error) {
	now := l.control.nano()
	l.mu.Lock()
	defer l.mu.Unlock()
	why := TooLong
	if gone {
		why = GoneAway
	}
	select {
	case <-w.ready:
		if !gone {
			return w.seat, nil
		}
		l.rise(&w.seat, now)
	default:
		q := w.seat.queue
		q.waiters = slices.DeleteFunc(q.waiters, func(other *waiter) bool { return other == w })
		l.waited(q, w)
		l.forget(q)
		l.demand.set(l.serving+l.waiting, now)
	}
	return Seat{}, w.count.refuse(why)
}

// waited is told that a waiter is in its queue no more; the caller holds mu.
func (l *level) waited(q *queue, w *waiter) {
	l.waiting--
	w.count.waiting--
	if len(q.waiters) > 0 {
		return
	}
	at := slices.Index(l.ring, q)
	l.ring = slices.Delete(l.ring, at, at+1)
	if at < l.turn {
		l.turn--
	}
}

// forget drops a queue that nothing is known of any more; the caller holds mu.
func (l *level) forget(q *queue) {
	if q.serving == 0 && len(q.waiters) == 0 && l.queues[q.number] == q {
		delete(l.queues, q.number)
	}
}

// serve gives free seats to those that wait; the caller holds mu.
func (l *level) serve(now int64) {
	for l.waiting > 0 && l.serving < l.limit {
		q := l.choose()
		w := q.waiters[0]
		q.waiters[0] = nil
		q.waiters = q.waiters[1:]
		l.waited(q, w)
		l.clock = max(l.clock, q.start)
		q.start += guessedUse // until it is known
		q.serving++
		w.seat = l.sit(w.count, q, now)
		close(w.ready)
	}
}

// choose returns the queue that has used least, of several in turn; the caller holds
// mu.
func (l *level) choose() *queue {
	var best *queue
	next := 0
	for i := range l.ring {
		at := (l.turn + i) % len(l.ring)
		if q := l.ring[at]; best == nil || q.start < best.start {
			best, next = q, at+1
		}
	}
	l.turn = next
	return best
}

// set is told what the level is now, and how many seats it has.
func (l *level) set(spec types.PriorityLevelSpec, s share, now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.nominal != l.share.nominal || l.counts == nil {
		l.limit = s.nominal
	}
	l.spec, l.share = spec, s
	l.limit = min(max(l.limit, s.min), s.max)
	if l.counts == nil {
		l.counts, l.queues = map[string]*count{}, map[int]*queue{}
		l.demand.since, l.demand.changed = now, now
	}
	l.serve(now)
}

// countOf is the count of a FlowSchema.
func (l *level) countOf(schema string) *count {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counts[schema]
	if c == nil {
		c = &count{}
		l.counts[schema] = c
	}
	return c
}

// limitTo is told how many seats the level has until the next division. What it
// serves beyond is served to its end.
func (l *level) limitTo(limit int, now int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit = limit
	l.serve(now)
}
