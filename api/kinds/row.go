package kinds

import (
	"k8s.io/apimachinery/pkg/runtime"
)

// What most kinds do alike when they are written: the rows of builtin_*.go are
// made by these two.

// specAndStatus is a row whose objects have a status of their own: a creator
// may not say it, a plain update keeps it, and an update of the status keeps
// the spec. The generation counts the specs.
func specAndStatus[T object, S, U any](k Kind, spec func(T) *S, status func(T) *U) *Kind {
	k.Status = true
	k.PrepareForCreate = one(func(o T) {
		var none U
		*status(o) = none
		o.SetGeneration(1)
	})
	k.PrepareForUpdate = two(func(o, old T) {
		*status(o) = *status(old)
		countGeneration(o, spec(o), spec(old))
	})
	k.PrepareForStatusUpdate = two(func(o, old T) { *spec(o) = *spec(old) })
	return &k
}

// specAlone is a row whose objects have no status. The generation counts the
// specs.
func specAlone[T object, S any](k Kind, spec func(T) *S) *Kind {
	k.PrepareForCreate = one(func(o T) { o.SetGeneration(1) })
	k.PrepareForUpdate = two(func(o, old T) { countGeneration(o, spec(o), spec(old)) })
	return &k
}

// then adds to what a row's preparation of an update does.
func then[T runtime.Object](before func(obj, old runtime.Object), more func(obj, old T)) func(obj, old runtime.Object) {
	return func(obj, old runtime.Object) {
		before(obj, old)
		more(obj.(T), old.(T))
	}
}
