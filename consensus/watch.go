package consensus

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
)

// ErrStopped is what Next returns after Stop.
var ErrStopped = errors.New("the watcher was stopped")

// event is one entry of the window.
type event struct {
	Event
	resource *resource
	id       requestID // of the write, so that its sender can find out what became of it
	size     int       // of the write in the log
}

func (e *event) revision() uint64 { return e.Record.(*record).revision }

// topic is a queue of events: one for each resource and one for all together.
// The queues share their events; what leaves the one leaves the other.
type topic struct {
	// base is the oldest revision of which all later events are here. It is
	// the revision of the newest event dropped, or the snapshot's.
	base uint64
	// first is the position of the oldest event; positions count from the
	// start of the topic and are never used again.
	first  uint64
	events []*event // [head:] are the events, in the order of their revisions
	head   int
	// changed is closed at the next event and replaced.
	changed chan struct{}
	dirty   bool // an event came, and changed is not closed yet
}

func newTopic(base uint64) topic { return topic{base: base, changed: make(chan struct{})} }

func (t *topic) len() int    { return len(t.events) - t.head }
func (t *topic) end() uint64 { return t.first + uint64(t.len()) }

func (t *topic) push(e *event) {
	t.events = append(t.events, e)
	t.dirty = true
}

func (t *topic) pop() *event {
	e := t.events[t.head]
	t.events[t.head] = nil
	t.head++
	t.first++
	t.base = e.revision()
	if t.head >= 64 && t.head*2 >= len(t.events) {
		n := copy(t.events, t.events[t.head:])
		clear(t.events[n:])
		t.events, t.head = t.events[:n], 0
	}
	return e
}

// reset forgets all events: a snapshot took their place. Whoever was reading
// has missed something.
func (t *topic) reset(base uint64) {
	t.first = t.end() + 1
	t.events, t.head, t.base = nil, 0, base
	t.dirty = true
}

// position is where the events after a revision begin.
func (t *topic) position(revision uint64) uint64 {
	events := t.events[t.head:]
	return t.first + uint64(sort.Search(len(events), func(i int) bool { return events[i].revision() > revision }))
}

// from returns the events at and after a position. The slice is a view that
// the next push or pop may invalidate.
func (t *topic) from(position uint64) []*event {
	return t.events[t.head+int(position-t.first):]
}

// after returns a copy of the events after a revision.
func (t *topic) after(revision uint64) []*event {
	return append([]*event(nil), t.from(t.position(revision))...)
}

func (t *topic) notify() {
	if t.dirty {
		close(t.changed)
		t.changed, t.dirty = make(chan struct{}), false
	}
}

// push adds an event and drops the oldest that no longer fit. Under mu.
func (s *Store) push(e *event) {
	e.resource.push(e)
	s.all.push(e)
	s.touched = append(s.touched, e.resource)
	s.bytes += e.size
	for n := s.all.len(); n > s.maxEvents || n > minWindow && s.bytes > s.maxBytes; n-- {
		old := s.all.pop()
		s.bytes -= old.size
		old.resource.pop() // the oldest of all is the oldest of its resource
	}
}

// notify wakes the watchers of all that changed since the last call. Under mu.
func (s *Store) notify() {
	for _, r := range s.touched {
		r.notify()
	}
	s.touched = s.touched[:0]
	s.all.notify()
}

// outcome looks for the write with this id among the events after a revision.
// known is false where the window does not reach back that far.
func (s *Store) outcome(id requestID, after uint64) (out Record, revision uint64, found, known bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, e := range s.all.from(s.all.position(after)) {
		if e.id == id {
			return e.Record, e.revision(), true, true
		}
	}
	return nil, 0, false, after >= s.all.base
}

// Watcher reads events from the store's window at its own pace. It costs the
// store nothing between two calls.
type Watcher struct {
	store     *Store
	topic     *topic
	namespace string
	stopped   chan struct{}
	stop      sync.Once

	mu       sync.Mutex
	next     uint64 // position of the first event not looked at
	returned uint64 // all events up to this revision were returned
}

// Watch returns the events of a resource ("" for all), of one namespace
// unless it is empty, after a revision: ErrExpired, ErrFuture.
func (s *Store) Watch(resource, namespace string, after uint64) (*Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.all
	if resource != "" {
		t = &s.resource(resource).topic
	}
	if err := s.within(t, after); err != nil {
		return nil, fmt.Errorf("watching %s after revision %d: %w", resource, after, err)
	}
	return s.watcher(t, namespace, t.position(after), after), nil
}

func (s *Store) watcher(t *topic, namespace string, next, returned uint64) *Watcher {
	return &Watcher{store: s, topic: t, namespace: namespace, stopped: make(chan struct{}), next: next, returned: returned}
}

// ListAndWatch is List, and a Watch of all that comes after, in one step.
func (s *Store) ListAndWatch(resource, namespace string) ([]Record, *Watcher, error) {
	if resource == "" {
		return nil, nil, errors.New("listing and watching: a resource is needed")
	}
	s.mu.Lock()
	r := s.resource(resource)
	tree := r.freeze()
	w := s.watcher(&r.topic, namespace, r.end(), s.revision)
	s.mu.Unlock()
	return collect(tree, namespace), w, nil
}

// Next waits until there are events after the last ones returned, and returns
// them all with the revision up to which nothing is missing. When ctx ends it
// returns ctx's error and the watcher stays usable. ErrExpired: the window
// moved past this reader.
func (w *Watcher) Next(ctx context.Context) ([]Event, uint64, error) {
	for {
		events, revision, changed, err := w.take()
		if err != nil || len(events) > 0 {
			return events, revision, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, revision, ctx.Err()
		case <-w.stopped:
			return nil, revision, ErrStopped
		}
	}
}

// take returns what is there, and the channel that says when to look again.
func (w *Watcher) take() ([]Event, uint64, <-chan struct{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.stopped:
		return nil, w.returned, nil, ErrStopped
	default:
	}
	s := w.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if w.next < w.topic.first {
		return nil, w.returned, nil, fmt.Errorf("reading events after revision %d: the oldest is %d: %w", w.returned, w.topic.base, ErrExpired)
	}
	fresh := w.topic.from(w.next)
	var events []Event
	if len(fresh) > 0 && w.namespace == "" {
		events = make([]Event, 0, len(fresh))
	}
	for _, e := range fresh {
		if w.wants(e) {
			events = append(events, e.Event)
		}
	}
	w.next += uint64(len(fresh))
	w.returned = max(w.returned, s.revision)
	return events, w.returned, w.topic.changed, nil
}

func (w *Watcher) wants(e *event) bool {
	return w.namespace == "" || e.Record.(*record).namespace == w.namespace
}

// Revision is the revision up to which Next has returned everything, moved
// forward to the store's own where no event of this watcher lies between: an
// honest bookmark.
func (w *Watcher) Revision() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.store
	s.mu.RLock()
	defer s.mu.RUnlock()
	if w.next < w.topic.first {
		return w.returned
	}
	for _, e := range w.topic.from(w.next) {
		if w.wants(e) {
			return w.returned
		}
		w.next++
	}
	w.returned = max(w.returned, s.revision)
	return w.returned
}

// Stop frees the watcher and ends a Next that waits.
func (w *Watcher) Stop() { w.stop.Do(func() { close(w.stopped) }) }
