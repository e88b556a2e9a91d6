package consensus

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"weak"
)

// record is one version of one object. Everything in it but the cache of
// encodings is fixed when it is made.
type record struct {
	object    Object
	revision  uint64
	namespace string // the object's own, here so that the index need not ask it
	name      string
	encodings atomic.Pointer[encodings]
}

// encodings is an immutable list: adding makes a new head.
type encodings struct {
	name string
	// bytes is weak, so that an encoding lives for as long as somebody sends
	// it and an idle store holds none: it exists for the moment in which a
	// thousand watchers want the same event.
	bytes weak.Pointer[[]byte]
	next  *encodings
}

// newRecord takes ownership of the object and stamps it with the revision.
//
// From here on the object is many goroutines' to read, and reading must not
// write: a resource.Quantity keeps its text when it is first asked for, as
// encodings do through pointers. So it is asked for once before.
func newRecord(o Object, revision uint64) *record {
	o.SetResourceVersion(strconv.FormatUint(revision, 10))
	if s, ok := o.(interface{ Size() int }); ok {
		s.Size()
	}
	return &record{object: o, revision: revision, namespace: o.GetNamespace(), name: o.GetName()}
}

// at returns the same state under another revision: what a deletion leaves.
func (r *record) at(revision uint64) *record {
	return newRecord(r.object.DeepCopyObject().(Object), revision)
}

func (r *record) Object() Object   { return r.object }
func (r *record) Revision() uint64 { return r.revision }

func (r *record) Encoding(name string, encode func(Object) ([]byte, error)) ([]byte, error) {
	head := r.encodings.Load()
	for e := head; e != nil; e = e.next {
		if e.name == name {
			if b := e.bytes.Value(); b != nil {
				return *b, nil
			}
		}
	}
	out, err := encode(r.object)
	if err != nil {
		return nil, fmt.Errorf("encoding %s as %s: %w", keyString(r.namespace, r.name), name, err)
	}
	// The weak pointer watches the slice header, which dies at the next
	// collection; the bytes themselves stay with whoever holds them.
	b := &out
	fresh := &encodings{name: name, bytes: weak.Make(b)}
	for e := head; e != nil; e = e.next {
		if e.name != name && e.bytes.Value() != nil {
			fresh.next = &encodings{name: e.name, bytes: e.bytes, next: fresh.next}
		}
	}
	// Losing the race only costs the next caller an encode.
	r.encodings.CompareAndSwap(head, fresh)
	return *b, nil
}

func keyString(namespace, name string) string {
	if namespace == "" {
		return name
	}
	return namespace + "/" + name
}

func recordLess(a, b *record) bool {
	if a.namespace != b.namespace {
		return a.namespace < b.namespace
	}
	return a.name < b.name
}
