package consensus

import (
	"context"
	"fmt"
	"sync"

	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/watch"
)

// The bounds of the window of events, where Config does not say.
const (
	defaultWindow      = 20_000
	defaultWindowBytes = 8 << 20
	// minWindow events are kept however large they are.
	minWindow = 64
)

// Store is the versioned state in memory: for each resource a sorted index of
// immutable records, and one window of the newest events. It knows no clock
// and makes no choice of its own: the same writes at the same revisions give
// the same store.
//
// Writes come from one goroutine at a time; reads and watches from any.
type Store struct {
	maxEvents, maxBytes int

	mu        sync.RWMutex
	revision  uint64 // newest applied
	start     uint64 // revision of the snapshot that the store was filled from
	resources map[string]*resource
	all       topic       // every event; its bounds are the window's
	bytes     int         // of the events in the window
	ended     bool        // nothing will be applied any more
	touched   []*resource // with events that no watcher was woken for yet
	waiters   map[*waiter]struct{}
	// sum is the sum of all records' marks, and sums what it was lately.
	sum  uint64
	sums [keptSums]sumAt
	turn int // the oldest of sums
}

// resource is one kind's index and its part of the window.
type resource struct {
	name string
	tree *btree.BTreeG[*record]
	// frozen is a copy of tree that nobody changes, shared by readers until
	// the next write; nil if there is none.
	frozen *btree.BTreeG[*record]
	last   uint64 // revision of the newest change here, 0: none since the snapshot
	topic
}

type waiter struct {
	revision uint64
	done     chan struct{}
}

// applied is what became of one write.
type applied struct {
	record   *record
	revision uint64
	err      error
}

// NewStore returns an empty store at revision 0.
func NewStore() *Store { return newStore(defaultWindow, defaultWindowBytes) }

func newStore(maxEvents, maxBytes int) *Store {
	return &Store{
		maxEvents: maxEvents, maxBytes: maxBytes,
		resources: make(map[string]*resource),
		all:       newTopic(0),
		waiters:   make(map[*waiter]struct{}),
	}
}

func newTree() *btree.BTreeG[*record] {
	return btree.NewBTreeGOptions(recordLess, btree.Options{NoLocks: true})
}

// Apply applies one write at a revision, which must be newer than the last:
// how tests, which have no log, fill a store. The store keeps a copy of the
// object.
func (s *Store) Apply(revision uint64, w Write) (Record, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	if w.Object != nil {
		w.Object = w.Object.DeepCopyObject().(Object)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if revision <= s.revision {
		return nil, fmt.Errorf("applying revision %d: the store is already at %d", revision, s.revision)
	}
	out := s.apply(revision, w, requestID{}, 0)
	s.finish(revision)
	if out.err != nil {
		return nil, out.err
	}
	return out.record, nil
}

// check refuses a write that contradicts itself.
func (w *Write) check() error {
	what := fmt.Sprintf("%s %s %s", w.Verb, w.Resource, keyString(w.Namespace, w.Name))
	switch {
	case w.Verb < Create || w.Verb > Delete:
		return fmt.Errorf("%s: verb %d is not known", what, w.Verb)
	case w.Resource == "" || w.Name == "":
		return fmt.Errorf("%s: a resource and a name are needed", what)
	case (w.Object == nil) != (w.Verb == Delete):
		return fmt.Errorf("%s: an object is needed for all but delete", what)
	case w.Object != nil && (w.Object.GetNamespace() != w.Namespace || w.Object.GetName() != w.Name):
		return fmt.Errorf("%s: the object calls itself %s", what, keyString(w.Object.GetNamespace(), w.Object.GetName()))
	}
	return nil
}

// apply decides and makes one change under mu. It owns w.Object. Its caller
// calls finish after the last of a batch.
func (s *Store) apply(revision uint64, w Write, id requestID, size int) applied {
	r := s.resource(w.Resource)
	old, found := r.tree.Get(&record{namespace: w.Namespace, name: w.Name})
	if err := w.decide(old, found); err != nil {
		return applied{revision: revision, err: fmt.Errorf("%s %s %s: %w", w.Verb, w.Resource, keyString(w.Namespace, w.Name), err)}
	}
	e := &event{Event: Event{Type: watch.Modified}, resource: r, id: id, size: size}
	var now *record
	switch w.Verb {
	case Delete:
		e.Type = watch.Deleted
		now = old.at(revision)
		r.tree.Delete(old)
		s.sum -= r.mark(old)
	case Create:
		e.Type = watch.Added
		fallthrough
	default:
		now = newRecord(w.Object, revision)
		r.tree.Set(now)
		names := r.markNames(now)
		s.sum += names.at(revision)
		if found {
			s.sum -= names.at(old.revision)
		}
	}
	e.Record = now
	if found { // a nil *record must not become a Record that is not nil
		e.Previous = old
	}
	r.frozen, r.last = nil, revision
	s.push(e)
	return applied{record: now, revision: revision}
}

// decide checks a write's preconditions against what is stored.
func (w *Write) decide(old *record, found bool) error {
	if w.Verb == Create {
		switch {
		case found:
			return ErrExists
		case w.Version != 0 || w.UID != "":
			return fmt.Errorf("a version or UID is demanded of what does not exist: %w", ErrConflict)
		}
		return nil
	}
	switch {
	case !found:
		return ErrNotFound
	case w.UID != "" && w.UID != old.object.GetUID():
		return fmt.Errorf("the UID is %s, not %s: %w", old.object.GetUID(), w.UID, ErrConflict)
	case w.Version != 0 && w.Version != old.revision:
		return fmt.Errorf("the version is %d, not %d: %w", old.revision, w.Version, ErrConflict)
	}
	return nil
}

// finish moves the store to a revision and wakes all who wait for it.
func (s *Store) finish(revision uint64) {
	s.revision = max(s.revision, revision)
	s.noteSum()
	s.notify()
	for w := range s.waiters {
		if w.revision <= s.revision {
			close(w.done)
			delete(s.waiters, w)
		}
	}
}

// resource returns the entry of a resource, made at first use. Under mu.
func (s *Store) resource(name string) *resource {
	r := s.resources[name]
	if r == nil {
		// The window lost no event of a resource that had none; what came
		// before the snapshot is not known.
		r = &resource{name: name, tree: newTree(), topic: newTopic(s.start)}
		s.resources[name] = r
	}
	return r
}

// Get returns the newest version, nil if there is none.
func (s *Store) Get(resource, namespace, name string) Record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.resources[resource]; r != nil {
		if found, ok := r.tree.Get(&record{namespace: namespace, name: name}); ok {
			return found
		}
	}
	return nil
}

// view is a consistent copy of one resource, made in constant time.
func (s *Store) view(name string) (*btree.BTreeG[*record], uint64) {
	s.mu.RLock()
	r := s.resources[name]
	if r == nil || r.frozen != nil {
		defer s.mu.RUnlock()
		if r == nil {
			return nil, s.revision
		}
		return r.frozen, s.revision
	}
	s.mu.RUnlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.freeze(), s.revision
}

// freeze returns the shared copy, made if there is none. Under mu.
func (r *resource) freeze() *btree.BTreeG[*record] {
	if r.frozen == nil {
		r.frozen = r.tree.Copy()
	}
	return r.frozen
}

func collect(tree *btree.BTreeG[*record], namespace string) []Record {
	if tree == nil {
		return nil
	}
	if namespace == "" {
		out := make([]Record, 0, tree.Len())
		tree.Scan(func(r *record) bool {
			out = append(out, r)
			return true
		})
		return out
	}
	var out []Record
	tree.Ascend(&record{namespace: namespace}, func(r *record) bool {
		if r.namespace != namespace {
			return false
		}
		out = append(out, r)
		return true
	})
	return out
}

// List returns the objects of a resource, of one namespace unless it is
// empty, sorted by namespace and name, and the revision of that view.
func (s *Store) List(resource, namespace string) ([]Record, uint64) {
	tree, revision := s.view(resource)
	return collect(tree, namespace), revision
}

// ListAt is List as it was at a revision in the window: ErrExpired,
// ErrFuture. It takes the newest state and undoes the events since.
func (s *Store) ListAt(resource, namespace string, revision uint64) ([]Record, error) {
	s.mu.Lock()
	if err := s.within(&s.resource(resource).topic, revision); err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("listing %s at revision %d: %w", resource, revision, err)
	}
	r := s.resources[resource]
	undo := r.after(revision)
	tree := r.freeze()
	if len(undo) > 0 {
		// Copying marks the copied tree too, so it must happen under mu.
		tree = tree.Copy()
	}
	s.mu.Unlock()
	for i := len(undo) - 1; i >= 0; i-- {
		if e := undo[i]; e.Previous == nil {
			tree.Delete(e.Record.(*record))
		} else {
			tree.Set(e.Previous.(*record))
		}
	}
	return collect(tree, namespace), nil
}

// within says whether a topic's events after a revision are all there.
func (s *Store) within(t *topic, revision uint64) error {
	switch {
	case revision > s.revision:
		return fmt.Errorf("the newest is %d: %w", s.revision, ErrFuture)
	case revision < t.base:
		return fmt.Errorf("the oldest is %d: %w", t.base, ErrExpired)
	}
	return nil
}

// Changed is a number that grows with each change to an object of these resources,
// and stays the same as long as there is none: the revision of the newest, or of
// the snapshot that the store was filled from.
func (s *Store) Changed(resources ...string) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	newest := s.start
	for _, name := range resources {
		if r := s.resources[name]; r != nil {
			newest = max(newest, r.last)
		}
	}
	return newest
}

// Revision is the newest revision applied.
func (s *Store) Revision() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.revision
}

// end lets go of all who wait: this replica has ended, and what they wait for
// will never be applied here.
func (s *Store) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for w := range s.waiters {
		close(w.done)
		delete(s.waiters, w)
	}
}

// WaitFor returns once a revision is applied, or with an error when it never
// will be, because the replica has ended.
func (s *Store) WaitFor(ctx context.Context, revision uint64) error {
	reached := func() error {
		if s.revision >= revision {
			return nil
		}
		return fmt.Errorf("waiting for revision %d: %w", revision, errEnded)
	}
	s.mu.RLock()
	if s.revision >= revision {
		s.mu.RUnlock()
		return nil
	}
	s.mu.RUnlock()
	s.mu.Lock()
	if s.revision >= revision || s.ended {
		defer s.mu.Unlock()
		return reached()
	}
	w := &waiter{revision: revision, done: make(chan struct{})}
	s.waiters[w] = struct{}{}
	s.mu.Unlock()
	select {
	case <-w.done:
		s.mu.RLock()
		defer s.mu.RUnlock()
		return reached()
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.waiters, w)
		s.mu.Unlock()
		return fmt.Errorf("waiting for revision %d: %w", revision, ctx.Err())
	}
}
