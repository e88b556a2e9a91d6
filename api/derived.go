package api

import (
	"sync"
	"sync/atomic"
)

// derived is what is made of stored objects, and kept while they are as they were.
// It is asked at each use whether they still are, which costs little: so it is never
// older than this replica, whether or not anybody runs.
type derived[T any] struct {
	mu     sync.Mutex // of whoever makes it anew
	newest atomic.Pointer[derivedAt[T]]
}

// derivedAt is a state, with what Storage.Changed said of what it was made of. It is
// not changed.
type derivedAt[T any] struct {
	changed uint64
	of      T
}

// of is what is made of the objects that are stored under some names; anew makes it,
// given the one before, at first the zero value.
func (d *derived[T]) of(st Storage, stored []string, anew func(before T) T) T {
	if at := d.newest.Load(); at != nil && at.changed == st.Changed(stored...) {
		return at.of
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	// Asked before the objects are read: never newer than they.
	next := &derivedAt[T]{changed: st.Changed(stored...)}
	var before T
	if at := d.newest.Load(); at != nil {
		if at.changed == next.changed {
			return at.of
		}
		before = at.of
	}
	next.of = anew(before)
	d.newest.Store(next)
	return next.of
}
