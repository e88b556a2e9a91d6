package consensus

import "context"

// Store is the versioned state in memory.
type Store struct{}

// Watcher reads events from the store's window at its own pace.
type Watcher struct{}

// NewStore returns an empty store at revision 0.
func NewStore() *Store { return &Store{} }

// Apply applies one write at a revision, without a log: for tests.
func (s *Store) Apply(revision uint64, w Write) (Record, error) { return nil, nil }

// Get returns the newest version, nil if there is none.
func (s *Store) Get(resource, namespace, name string) Record { return nil }

// List returns the objects of a resource, of one namespace unless it is
// empty, sorted by namespace and name, and the revision of that view.
func (s *Store) List(resource, namespace string) ([]Record, uint64) { return nil, 0 }

// ListAt is List as it was at a revision: ErrExpired, ErrFuture.
func (s *Store) ListAt(resource, namespace string, revision uint64) ([]Record, error) {
	return nil, nil
}

// Watch returns the events of a resource ("" for all) after a revision:
// ErrExpired, ErrFuture.
func (s *Store) Watch(resource, namespace string, after uint64) (*Watcher, error) { return nil, nil }

// ListAndWatch is List, and a Watch of all that comes after, in one step.
func (s *Store) ListAndWatch(resource, namespace string) ([]Record, *Watcher, error) {
	return nil, nil, nil
}

// Revision is the newest revision applied.
func (s *Store) Revision() uint64 { return 0 }

// WaitFor returns once a revision is applied.
func (s *Store) WaitFor(ctx context.Context, revision uint64) error { return nil }

// Next waits for events.
func (w *Watcher) Next(ctx context.Context) ([]Event, uint64, error) { return nil, 0, nil }

// Revision is an honest bookmark.
func (w *Watcher) Revision() uint64 { return 0 }

// Stop frees the watcher.
func (w *Watcher) Stop() {}
