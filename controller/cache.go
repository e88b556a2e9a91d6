package controller

import (
	"slices"
	"strconv"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

// Key names one object. Resource is left empty by controllers that look after
// a single kind.
type Key struct {
	Resource        schema.GroupVersionResource
	Namespace, Name string
}

func keyOf(o metav1.Object) Key { return Key{Namespace: o.GetNamespace(), Name: o.GetName()} }

func (k Key) String() string {
	s := k.Name
	if k.Namespace != "" {
		s = k.Namespace + "/" + s
	}
	if k.Resource.Resource != "" {
		s = k.Resource.Resource + " " + s
	}
	return s
}

// Change is one step of an object: Old is nil when it appeared, New when it
// went. An object that was replaced by another of its name is two changes.
type Change struct{ Old, New api.Object }

// either returns the newer of the two.
func (c Change) either() api.Object {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

// cache is a set of indexes over the store's own immutable objects: pointers,
// no copies. Three things write to it: the follower of each resource, the
// result of every write of a controller (see store), and nothing else. Because
// of the second a controller always reads its own writes, so that no
// controller needs expectations.
type cache struct {
	mu     sync.RWMutex
	tables map[schema.GroupVersionResource]*table
	// dependents lists, by the UID of an owner, the objects that name it in
	// their ownerReferences, whether or not the owner exists.
	dependents map[types.UID]map[Key]api.Object
}

type table struct {
	resource schema.GroupVersionResource
	kind     string                           // of a custom resource, whose plural does not tell it
	objects  map[string]map[string]api.Object // by namespace, then name
	indexes  map[string]*index
	// gone holds the UIDs that a controller deleted before the follower told
	// so: late news of them must not revive them.
	gone map[types.UID]struct{}
	// followed is the newest version that the follower told of. Whatever a
	// controller learns up to there is no news, and must not revive what the
	// follower has seen go.
	followed uint64
	// namespaced is known once an object has been seen.
	namespaced, seen bool
	synced           bool
}

// index finds the objects of a table by a value of theirs.
type index struct {
	values func(api.Object) []string
	found  map[string]map[Key]api.Object
}

func newCache(kinds []schema.GroupVersionResource) *cache {
	c := &cache{
		tables:     make(map[schema.GroupVersionResource]*table, len(kinds)),
		dependents: map[types.UID]map[Key]api.Object{},
	}
	for _, r := range kinds {
		c.tables[r] = newTable(r)
	}
	return c
}

func newTable(r schema.GroupVersionResource) *table {
	return &table{
		resource: r,
		objects:  map[string]map[string]api.Object{},
		indexes:  map[string]*index{},
		gone:     map[types.UID]struct{}{},
	}
}

// addCustom makes room for a custom resource, which is about to be followed. A
// table stays when its resource goes: who was owned by its objects must find
// that they are gone.
func (c *cache) addCustom(r schema.GroupVersionResource, kind string, namespaced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tables[r]
	if t == nil {
		t = newTable(r)
		c.tables[r] = t
	}
	t.kind, t.seen, t.namespaced = kind, true, namespaced
}

// clear forgets the objects of a resource that is followed no more.
func (c *cache) clear(r schema.GroupVersionResource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tables[r]
	for _, names := range t.objects {
		for _, o := range names {
			c.put(t, o, nil)
		}
	}
	clear(t.gone)
	t.synced = true // nobody need wait for it
}

// scope says whether a resource's objects are in namespaces, if that is known.
func (c *cache) scope(r schema.GroupVersionResource) (namespaced, known bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t := c.tables[r]
	if t == nil {
		return false, false
	}
	return t.namespaced, t.seen
}

// resourceOf is the resource that is followed of a kind, whatever the version.
func (c *cache) resourceOf(group, plural, kind string) (schema.GroupVersionResource, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for r, t := range c.tables {
		if r.Group == group && (t.kind == kind || t.kind == "" && r.Resource == plural) {
			return r, true
		}
	}
	return schema.GroupVersionResource{}, false
}

// addIndex is called before anything is followed.
func (c *cache) addIndex(r schema.GroupVersionResource, name string, values func(api.Object) []string) {
	c.tables[r].indexes[name] = &index{values: values, found: map[string]map[Key]api.Object{}}
}

// revision orders the versions of an object; 0 if it carries none.
func revision(o metav1.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (t *table) get(namespace, name string) api.Object { return t.objects[namespace][name] }

// put replaces old by new in the table and every index; either may be nil.
func (c *cache) put(t *table, old, new api.Object) {
	if old != nil {
		key := keyOf(old)
		for _, x := range t.indexes {
			for _, v := range x.values(old) {
				drop(x.found, v, key)
			}
		}
		key.Resource = t.resource
		for _, o := range old.GetOwnerReferences() {
			drop(c.dependents, o.UID, key)
		}
		if new == nil {
			names := t.objects[key.Namespace]
			delete(names, key.Name)
			if len(names) == 0 {
				delete(t.objects, key.Namespace)
			}
		}
	}
	if new != nil {
		key := keyOf(new)
		names := t.objects[key.Namespace]
		if names == nil {
			names = map[string]api.Object{}
			t.objects[key.Namespace] = names
		}
		names[key.Name] = new
		t.seen, t.namespaced = true, key.Namespace != ""
		for _, x := range t.indexes {
			for _, v := range x.values(new) {
				insert(x.found, v, key, new)
			}
		}
		key.Resource = t.resource
		for _, o := range new.GetOwnerReferences() {
			insert(c.dependents, o.UID, key, new)
		}
	}
}

func insert[K comparable](m map[K]map[Key]api.Object, at K, key Key, o api.Object) {
	if m[at] == nil {
		m[at] = map[Key]api.Object{}
	}
	m[at][key] = o
}

func drop[K comparable](m map[K]map[Key]api.Object, at K, key Key) {
	delete(m[at], key)
	if len(m[at]) == 0 {
		delete(m, at)
	}
}

// apply takes in a version of an object, unless a newer one is known.
func (c *cache) apply(r schema.GroupVersionResource, o api.Object, byFollower bool) []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tables[r]
	if byFollower {
		t.followed = max(t.followed, revision(o))
	} else if revision(o) <= t.followed {
		return nil
	}
	return c.applyLocked(t, o)
}

func (c *cache) applyLocked(t *table, o api.Object) []Change {
	if _, gone := t.gone[o.GetUID()]; gone {
		return nil
	}
	old := t.get(o.GetNamespace(), o.GetName())
	if old != nil && revision(o) <= revision(old) {
		return nil
	}
	c.put(t, old, o)
	if old != nil && old.GetUID() != o.GetUID() {
		return []Change{{Old: old}, {New: o}}
	}
	return []Change{{Old: old, New: o}}
}

// remove takes in that an object is gone. The follower's word is the last one
// on that UID; a controller's word is remembered until the follower's comes.
func (c *cache) remove(r schema.GroupVersionResource, o api.Object, byFollower bool) []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tables[r]
	if byFollower {
		t.followed = max(t.followed, revision(o))
		delete(t.gone, o.GetUID())
	} else if old := t.get(o.GetNamespace(), o.GetName()); old != nil && old.GetUID() == o.GetUID() {
		// Only while the follower still owes the news.
		t.gone[o.GetUID()] = struct{}{}
	}
	old := t.get(o.GetNamespace(), o.GetName())
	if old == nil || old.GetUID() != o.GetUID() {
		return nil
	}
	c.put(t, old, nil)
	// The last state may say more than the one that was known (finalizers).
	return []Change{{Old: o}}
}

// replace takes in the whole state of a resource. It returns the changes, and
// the objects known here that the list does not have: deleted in a gap, or
// written by a controller after the list was made. The caller finds out which.
func (c *cache) replace(r schema.GroupVersionResource, objects []api.Object) (changes []Change, missing []api.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tables[r]
	listed := make(map[types.UID]struct{}, len(objects))
	for _, o := range objects {
		listed[o.GetUID()] = struct{}{}
		t.followed = max(t.followed, revision(o))
		changes = append(changes, c.applyLocked(t, o)...)
	}
	for uid := range t.gone {
		if _, ok := listed[uid]; !ok {
			delete(t.gone, uid)
		}
	}
	for _, names := range t.objects {
		for _, o := range names {
			if _, ok := listed[o.GetUID()]; !ok {
				missing = append(missing, o)
			}
		}
	}
	t.synced = true
	return changes, missing
}

func (c *cache) synced() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, t := range c.tables {
		if !t.synced {
			return false
		}
	}
	return true
}

// get returns an object of a known type.
func get[T api.Object](c *cache, r schema.GroupVersionResource, namespace, name string) (T, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	o, ok := c.tables[r].get(namespace, name).(T)
	return o, ok
}

// list returns all objects of a namespace, or of all if it is empty, by
// namespace and name.
func list[T api.Object](c *cache, r schema.GroupVersionResource, namespace string) []T {
	c.mu.RLock()
	var found []T
	for ns, names := range c.tables[r].objects {
		if namespace != "" && ns != namespace {
			continue
		}
		for _, o := range names {
			if o, ok := o.(T); ok {
				found = append(found, o)
			}
		}
	}
	c.mu.RUnlock()
	sortByName(found)
	return found
}

// indexed returns the objects that an index has under a value, by namespace
// and name.
func indexed[T api.Object](c *cache, r schema.GroupVersionResource, name, value string) []T {
	c.mu.RLock()
	var found []T
	for _, o := range c.tables[r].indexes[name].found[value] {
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	c.mu.RUnlock()
	sortByName(found)
	return found
}

// controlled returns the objects of a resource whose controller has this UID,
// by namespace and name.
func controlled[T api.Object](c *cache, r schema.GroupVersionResource, uid types.UID) []T {
	c.mu.RLock()
	var found []T
	for key, o := range c.dependents[uid] {
		if key.Resource != r {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(o); ref == nil || ref.UID != uid {
			continue
		}
		if o, ok := o.(T); ok {
			found = append(found, o)
		}
	}
	c.mu.RUnlock()
	sortByName(found)
	return found
}

// dependentsOf returns every object that names this UID as an owner.
func (c *cache) dependentsOf(uid types.UID) map[Key]api.Object {
	c.mu.RLock()
	defer c.mu.RUnlock()
	found := make(map[Key]api.Object, len(c.dependents[uid]))
	for key, o := range c.dependents[uid] {
		found[key] = o
	}
	return found
}

func sortByName[T api.Object](objects []T) {
	slices.SortFunc(objects, func(a, b T) int { return byName(a, b) })
}

func byName(a, b metav1.Object) int {
	switch ka, kb := keyOf(a), keyOf(b); {
	case ka == kb:
		return 0
	case ka.Namespace < kb.Namespace, ka.Namespace == kb.Namespace && ka.Name < kb.Name:
		return -1
	default:
		return 1
	}
}
