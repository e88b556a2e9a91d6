package apitest

import (
	"context"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// Storage is api.Storage in memory: one replica that is always its own leader.
// Objects pass through the stored form, as they do on their way through the
// log, so that what does not survive it is noticed.
type Storage struct {
	mu       sync.Mutex
	revision uint64
	objects  map[string]*record // by resource, namespace and name
	changes  map[string]uint64  // by resource, the revision of the newest
	events   []event            // in order; those up to compacted are gone
	compact  uint64
	changed  chan struct{} // closed and replaced at each write
	fail     func(api.Write) error
	syncErr  error
	syncs    int
}

type event struct {
	api.Event
	resource string
	revision uint64
}

type record struct {
	object   api.Object
	revision uint64
	mu       sync.Mutex
	encoded  map[string][]byte
}

func (r *record) Object() api.Object { return r.object }
func (r *record) Revision() uint64   { return r.revision }

func (r *record) Encoding(name string, encode func(api.Object) ([]byte, error)) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b, ok := r.encoded[name]; ok {
		return b, nil
	}
	b, err := encode(r.object)
	if err != nil {
		return nil, err
	}
	if r.encoded == nil {
		r.encoded = map[string][]byte{}
	}
	r.encoded[name] = b
	return b, nil
}

// NewStorage returns an empty store. Its first revision is 1, as a raft log
// begins with entries of raft's own.
func NewStorage() *Storage {
	return &Storage{revision: 1, objects: map[string]*record{}, changes: map[string]uint64{}, changed: make(chan struct{})}
}

// FailWrites makes every write ask f first; an error of f is the write's. nil
// ends it.
func (s *Storage) FailWrites(f func(api.Write) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// FailSync makes Sync return err.
func (s *Storage) FailSync(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncErr = err
}

// Syncs is how often Sync was called.
func (s *Storage) Syncs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.syncs
}

// Compact forgets all events up to now: older revisions are expired.
func (s *Storage) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compact, s.events = s.revision, nil
	close(s.changed)
	s.changed = make(chan struct{})
}

func key(resource, namespace, name string) string {
	return resource + "\x00" + namespace + "\x00" + name
}

// Get implements api.Storage.
func (s *Storage) Get(resource, namespace, name string) api.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.objects[key(resource, namespace, name)]; r != nil {
		return r
	}
	return nil
}

// List implements api.Storage.
func (s *Storage) List(resource, namespace string) ([]api.Record, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list(resource, namespace), s.revision
}

func (s *Storage) list(resource, namespace string) []api.Record {
	prefix := resource + "\x00"
	if namespace != "" {
		prefix += namespace + "\x00"
	}
	var keys []string
	for k := range s.objects {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	records := make([]api.Record, len(keys))
	for i, k := range keys {
		records[i] = s.objects[k]
	}
	return records
}

// ListAt implements api.Storage.
func (s *Storage) ListAt(resource, namespace string, revision uint64) ([]api.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.inWindow(revision); err != nil {
		return nil, err
	}
	state := map[string]api.Record{}
	for _, r := range s.list(resource, namespace) {
		state[key("", r.Object().GetNamespace(), r.Object().GetName())] = r
	}
	for _, e := range slices.Backward(s.events) {
		if e.revision <= revision {
			break
		}
		if !e.of(resource, namespace) {
			continue
		}
		o := e.Record.Object()
		k := key("", o.GetNamespace(), o.GetName())
		if delete(state, k); e.Previous != nil {
			state[k] = e.Previous
		}
	}
	keys := make([]string, 0, len(state))
	for k := range state {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	records := make([]api.Record, len(keys))
	for i, k := range keys {
		records[i] = state[k]
	}
	return records, nil
}

func (s *Storage) inWindow(revision uint64) error {
	switch {
	case revision > s.revision:
		return api.ErrFuture
	case revision < s.compact:
		return api.ErrExpired
	}
	return nil
}

func (e event) of(resource, namespace string) bool {
	return (resource == "" || e.resource == resource) && (namespace == "" || e.Record.Object().GetNamespace() == namespace)
}

// Watch implements api.Storage.
func (s *Storage) Watch(resource, namespace string, after uint64) (api.Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.inWindow(after); err != nil {
		return nil, err
	}
	return &watcher{s: s, resource: resource, namespace: namespace, at: after}, nil
}

// ListAndWatch implements api.Storage.
func (s *Storage) ListAndWatch(resource, namespace string) ([]api.Record, api.Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list(resource, namespace), &watcher{s: s, resource: resource, namespace: namespace, at: s.revision}, nil
}

// Revision implements api.Storage.
func (s *Storage) Revision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

// Changed implements api.Storage.
func (s *Storage) Changed(resources ...string) (newest uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range resources {
		newest = max(newest, s.changes[r])
	}
	return newest
}

// Sync implements api.Storage.
func (s *Storage) Sync(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.syncs++
	return s.syncErr
}

// WaitFor implements api.Storage.
func (s *Storage) WaitFor(ctx context.Context, revision uint64) error {
	for {
		s.mu.Lock()
		now, changed := s.revision, s.changed
		s.mu.Unlock()
		if now >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Write implements api.Storage.
func (s *Storage) Write(ctx context.Context, w api.Write) (api.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, api.ErrUnknownOutcome
	}
	var object api.Object
	if w.Object != nil {
		data, err := api.EncodeStored(w.Object)
		if err != nil {
			return nil, err
		}
		if object, err = api.DecodeStored(data); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		if err := s.fail(w); err != nil {
			return nil, err
		}
	}
	k := key(w.Resource, w.Namespace, w.Name)
	old := s.objects[k]
	switch {
	case w.Verb == api.Create && old != nil:
		return nil, api.ErrExists
	case w.Verb != api.Create && old == nil:
		return nil, api.ErrNotFound
	case w.Version != 0 && (old == nil || old.revision != w.Version), w.UID != "" && (old == nil || old.object.GetUID() != w.UID):
		return nil, api.ErrConflict
	}
	s.revision++
	s.changes[w.Resource] = s.revision
	e := event{resource: w.Resource, revision: s.revision}
	if old != nil {
		e.Previous = old
	}
	if w.Verb == api.Delete {
		object = old.object.DeepCopyObject().(api.Object)
	}
	object.SetResourceVersion(strconv.FormatUint(s.revision, 10))
	if sized, ok := object.(interface{ Size() int }); ok {
		sized.Size() // quantities keep their texts now, not when they are shared
	}
	rec := &record{object: object, revision: s.revision}
	e.Record = rec
	switch w.Verb {
	case api.Create:
		e.Type, s.objects[k] = watch.Added, rec
	case api.Update:
		e.Type, s.objects[k] = watch.Modified, rec
	case api.Delete:
		e.Type = watch.Deleted
		delete(s.objects, k)
	}
	s.events = append(s.events, e)
	close(s.changed)
	s.changed = make(chan struct{})
	return rec, nil
}

type watcher struct {
	s                   *Storage
	resource, namespace string
	at                  uint64
}

func (w *watcher) Next(ctx context.Context) ([]api.Event, uint64, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, w.at, err
		}
		w.s.mu.Lock()
		if w.at < w.s.compact {
			w.s.mu.Unlock()
			return nil, w.at, api.ErrExpired
		}
		first := sort.Search(len(w.s.events), func(i int) bool { return w.s.events[i].revision > w.at })
		var batch []api.Event
		for _, e := range w.s.events[first:] {
			if e.of(w.resource, w.namespace) {
				batch = append(batch, e.Event)
			}
		}
		w.at = w.s.revision
		changed := w.s.changed
		w.s.mu.Unlock()
		if len(batch) > 0 {
			return batch, w.at, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, w.at, ctx.Err()
		}
	}
}

func (w *watcher) Revision() uint64 { return w.at }
func (w *watcher) Stop()            {}
