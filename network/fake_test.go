package network

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// memory is an api.Client that only reads, over maps. While it is held, the
// cluster is out of reach, as for a node that has lost every master.
type memory struct {
	mu      sync.Mutex
	version int
	objects map[string]map[types.NamespacedName]api.Object
	log     []memoryEvent
	watches map[*memoryWatch]struct{}
	held    chan struct{} // closed when the cluster can be reached
}

type memoryEvent struct {
	version  int
	resource string
	event    watch.Event
}

type memoryWatch struct {
	m        *memory
	resource string
	ch       chan watch.Event
	done     chan struct{}
	once     sync.Once
}

func newMemory() *memory {
	held := make(chan struct{})
	close(held)
	return &memory{version: 1, objects: map[string]map[types.NamespacedName]api.Object{}, watches: map[*memoryWatch]struct{}{}, held: held}
}

func (m *memory) put(resource string, o api.Object) {
	m.write(resource, o, watch.Modified)
}

func (m *memory) delete(resource string, o api.Object) {
	m.write(resource, o, watch.Deleted)
}

func (m *memory) write(resource string, o api.Object, kind watch.EventType) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.version++
	o.SetResourceVersion(strconv.Itoa(m.version))
	if m.objects[resource] == nil {
		m.objects[resource] = map[types.NamespacedName]api.Object{}
	}
	if kind == watch.Deleted {
		delete(m.objects[resource], keyOf(o))
	} else {
		if _, had := m.objects[resource][keyOf(o)]; !had {
			kind = watch.Added
		}
		m.objects[resource][keyOf(o)] = o
	}
	e := memoryEvent{m.version, resource, watch.Event{Type: kind, Object: o}}
	m.log = append(m.log, e)
	for w := range m.watches {
		if w.resource == resource {
			// Once the bookmark has been taken, the event before it has been
			// handled.
			w.send(e.event)
			w.send(watch.Event{Type: watch.Bookmark, Object: o})
		}
	}
}

// quiet says whether every event has been handled.
func (m *memory) quiet() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watches {
		if len(w.ch) > 0 {
			return false
		}
	}
	return true
}

func (w *memoryWatch) send(e watch.Event) {
	select {
	case w.ch <- e:
	case <-w.done:
	}
}

func (w *memoryWatch) ResultChan() <-chan watch.Event { return w.ch }

func (w *memoryWatch) Stop() {
	w.once.Do(func() {
		close(w.done)
		w.m.mu.Lock()
		defer w.m.mu.Unlock()
		delete(w.m.watches, w)
	})
}

func (m *memory) reach(ctx context.Context) error {
	m.mu.Lock()
	held := m.held
	m.mu.Unlock()
	select {
	case <-held:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *memory) List(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) ([]api.Object, metav1.ListMeta, error) {
	if err := m.reach(ctx); err != nil {
		return nil, metav1.ListMeta{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []api.Object
	for _, o := range m.objects[r.Resource] {
		out = append(out, o)
	}
	slices.SortFunc(out, func(a, b api.Object) int { return strings.Compare(keyOf(a).String(), keyOf(b).String()) })
	return out, metav1.ListMeta{ResourceVersion: strconv.Itoa(m.version)}, nil
}

func (m *memory) Watch(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	after, err := strconv.Atoi(o.ResourceVersion)
	if err != nil {
		return nil, errors.New("this fake only watches from a version")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &memoryWatch{m: m, resource: r.Resource, ch: make(chan watch.Event, 10000), done: make(chan struct{})}
	for _, e := range m.log {
		if e.version > after && e.resource == r.Resource {
			w.ch <- e.event
		}
	}
	m.watches[w] = struct{}{}
	return w, nil
}

var errReadOnly = errors.New("this fake only reads")

func (m *memory) Get(context.Context, schema.GroupVersionResource, string, string, metav1.GetOptions, ...string) (api.Object, error) {
	return nil, errReadOnly
}

func (m *memory) Create(context.Context, schema.GroupVersionResource, string, string, api.Object, metav1.CreateOptions, ...string) (api.Object, error) {
	return nil, errReadOnly
}

func (m *memory) Update(context.Context, schema.GroupVersionResource, string, api.Object, metav1.UpdateOptions, ...string) (api.Object, error) {
	return nil, errReadOnly
}

func (m *memory) Patch(context.Context, schema.GroupVersionResource, string, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (api.Object, error) {
	return nil, errReadOnly
}

func (m *memory) Delete(context.Context, schema.GroupVersionResource, string, string, metav1.DeleteOptions) error {
	return errReadOnly
}

var _ api.Client = (*memory)(nil)
