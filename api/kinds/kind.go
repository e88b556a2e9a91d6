package kinds

import (
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Kind is one row of the table that the API server reads. Every function is
// pure: it reads its arguments, changes at most the first one where its name
// says so, and keeps nothing. In rows of Builtin, every function is set,
// except GetScale, SetScale, ToStored, FromStored, Decoded and Order where they do
// not apply.
type Kind struct {
	GVK        schema.GroupVersionKind
	Plural     string
	Singular   string
	ShortNames []string
	Categories []string
	Namespaced bool

	// ListKind is the kind of a list; empty: the kind's name with List behind it.
	ListKind string

	// New and NewList return empty objects.
	New, NewList func() runtime.Object

	// Status says that the kind has a status subresource: a plain update keeps
	// the stored status, an update of the status keeps all the rest.
	Status bool

	// Subs are further subresources that show the whole object, of which an
	// update changes a part.
	Subs []Sub

	// GetScale and SetScale are the scale subresource. SetScale changes obj. An
	// error is of an object that does not say what its scale is made of.
	GetScale func(obj runtime.Object) (*autoscalingv1.Scale, error)
	SetScale func(obj runtime.Object, s *autoscalingv1.Scale) error

	// Stored, if not empty, is the Resource() of the row under whose name and
	// in whose type objects of this kind are kept; the two functions convert.
	Stored               string
	ToStored, FromStored func(obj runtime.Object) (runtime.Object, error)

	// Decoded, if set, makes of an object that was just read from a request's
	// body one that the kind can hold, and returns the paths of the fields that
	// it does not have. It changes obj. Rows whose objects have a type of their
	// own need none: decoding does it.
	Decoded func(obj runtime.Object) (unknown []string, err error)

	// Default fills in what the writer left out. It is idempotent.
	Default func(obj runtime.Object)

	// PrepareForCreate drops what a creator may not say (the status) and sets
	// what the server says of a new object (generation, QoS class).
	PrepareForCreate func(obj runtime.Object)
	// PrepareForUpdate and PrepareForStatusUpdate copy from old into obj what
	// this kind of update may not change, and count the generation up where
	// the spec changed.
	PrepareForUpdate       func(obj, old runtime.Object)
	PrepareForStatusUpdate func(obj, old runtime.Object)

	// Validate is of a new object, the others are of an update; they include
	// all of the object's metadata.
	Validate             func(obj runtime.Object) field.ErrorList
	ValidateUpdate       func(obj, old runtime.Object) field.ErrorList
	ValidateStatusUpdate func(obj, old runtime.Object) field.ErrorList

	// Warnings returns what to tell the writer of an accepted object; old is
	// nil at creation.
	Warnings func(obj, old runtime.Object) []string

	// FieldNames are the fields by which a field selector may select; Fields
	// are their values.
	FieldNames []string
	Fields     func(obj runtime.Object) fields.Set

	// Columns and Cells are the table that kubectl prints, one cell a column.
	Columns []metav1.TableColumnDefinition
	Cells   func(obj runtime.Object, now time.Time) []any
	// Order is that of the table's rows; nil: that of the objects' names.
	Order func(a, b runtime.Object) int
}

// Sub is a subresource that shows the whole object. Prepare copies from old
// into obj all that an update of this kind may not change, and counts the
// generation up; Validate is of the outcome.
type Sub struct {
	Name string
	// Keeps are paths of fields that an update does not change and whose writer
	// therefore does not own them; none: the status.
	Keeps    [][]string
	Prepare  func(obj, old runtime.Object)
	Validate func(obj, old runtime.Object) field.ErrorList
}

// Sub returns the subresource of that name, nil if there is none.
func (k *Kind) Sub(name string) *Sub {
	for i := range k.Subs {
		if k.Subs[i].Name == name {
			return &k.Subs[i]
		}
	}
	return nil
}

// GVR is the resource of the row in its own version.
func (k *Kind) GVR() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.GVK.Group, Version: k.GVK.Version, Resource: k.Plural}
}

// Resource is the name under which the store keeps the kind: "pods",
// "deployments.apps".
func (k *Kind) Resource() string {
	if k.GVK.Group == "" {
		return k.Plural
	}
	return k.Plural + "." + k.GVK.Group
}

// object is what every API type is.
type object interface {
	runtime.Object
	metav1.Object
}

// metadataFields is the part of Fields that every kind has.
func metadataFields(namespaced bool, obj metav1.Object) fields.Set {
	set := fields.Set{"metadata.name": obj.GetName()}
	if namespaced {
		set["metadata.namespace"] = obj.GetNamespace()
	}
	return set
}

// one, two, check and checkTwo lend a typed function to a row. A row is only
// ever handed objects of the type that its New makes, so the assertion cannot
// fail.
func one[T runtime.Object](f func(T)) func(runtime.Object) {
	return func(o runtime.Object) { f(o.(T)) }
}

func two[T runtime.Object](f func(obj, old T)) func(obj, old runtime.Object) {
	return func(obj, old runtime.Object) { f(obj.(T), old.(T)) }
}

func check[T runtime.Object](f func(T) field.ErrorList) func(runtime.Object) field.ErrorList {
	return func(o runtime.Object) field.ErrorList { return f(o.(T)) }
}

func checkTwo[T runtime.Object](f func(obj, old T) field.ErrorList) func(obj, old runtime.Object) field.ErrorList {
	return func(obj, old runtime.Object) field.ErrorList { return f(obj.(T), old.(T)) }
}

// Complete fills in what a row left out because it is the same for all: rows of
// Builtin have it done.
func (k *Kind) Complete() *Kind {
	if k.Singular == "" {
		k.Singular = strings.ToLower(k.GVK.Kind)
	}
	if k.Default == nil {
		k.Default = func(runtime.Object) {}
	}
	create, update, status := k.PrepareForCreate, k.PrepareForUpdate, k.PrepareForStatusUpdate
	k.PrepareForCreate = func(obj runtime.Object) {
		obj.(object).SetGeneration(0) // not the writer's to say
		if create != nil {
			create(obj)
		}
	}
	keepGeneration := func(then func(obj, old runtime.Object)) func(obj, old runtime.Object) {
		return func(obj, old runtime.Object) {
			obj.(object).SetGeneration(old.(object).GetGeneration())
			if then != nil {
				then(obj, old)
			}
		}
	}
	k.PrepareForUpdate, k.PrepareForStatusUpdate = keepGeneration(update), keepGeneration(status)
	for i := range k.Subs {
		k.Subs[i].Prepare = keepGeneration(k.Subs[i].Prepare)
	}
	if k.ValidateStatusUpdate == nil {
		k.ValidateStatusUpdate = k.ValidateUpdate
	}
	if k.Warnings == nil {
		k.Warnings = func(_, _ runtime.Object) []string { return nil }
	}
	own := k.Fields
	k.Fields = func(obj runtime.Object) fields.Set {
		set := metadataFields(k.Namespaced, obj.(object))
		if own != nil {
			for name, value := range own(obj) {
				set[name] = value
			}
		}
		return set
	}
	names := []string{"metadata.name"}
	if k.Namespaced {
		names = append(names, "metadata.namespace")
	}
	k.FieldNames = append(names, k.FieldNames...)
	return k
}
