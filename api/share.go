package api

import (
	"bytes"
	"hash/maphash"
	"runtime"
	"sync"
	"weak"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// sharedFields are the sets of managedFields that are in memory. Objects that were
// made alike, as a Deployment's pods, were written by the same managers field by
// field: what they say of that is an eighth of a large cluster's state, and nearly
// all of it the same. Whoever reads a stored object must not write to it anyway.
// A set is forgotten when the last object that has it is gone.
var sharedFields = struct {
	sync.Mutex
	seed maphash.Seed
	sets map[uint64]weak.Pointer[metav1.FieldsV1]
}{seed: maphash.MakeSeed(), sets: make(map[uint64]weak.Pointer[metav1.FieldsV1])}

// shareFields makes an object that was just decoded share its sets with others.
func shareFields(obj Object) {
	entries := obj.GetManagedFields()
	for i := range entries {
		if f := entries[i].FieldsV1; f != nil {
			entries[i].FieldsV1 = shared(f)
		}
	}
}

func shared(f *metav1.FieldsV1) *metav1.FieldsV1 {
	s := &sharedFields
	key := maphash.Bytes(s.seed, f.Raw)
	s.Lock()
	defer s.Unlock()
	if known := s.sets[key].Value(); known != nil {
		if bytes.Equal(known.Raw, f.Raw) {
			return known
		}
		return f // another one with this hash
	}
	mine := weak.Make(f)
	s.sets[key] = mine
	runtime.AddCleanup(f, func(key uint64) {
		s.Lock()
		defer s.Unlock()
		if s.sets[key] == mine { // nobody has put another in its place
			delete(s.sets, key)
		}
	}, key)
	return f
}
