package api

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"conclave/api/kinds"
	"conclave/api/openapi"
)

// resource is one row of the table at work: the kind, and what the server
// makes of it once.
type resource struct {
	*kinds.Kind
	gvr    schema.GroupVersionResource
	stored string      // the resource under which Storage keeps it
	hooks  hooks       // what this kind needs besides its row
	def    *definition // whose custom resource it is, nil for all others
	json   bool        // that objects have no form in protobuf
	as     string      // tells its encodings of a stored object from others'

	mu       sync.Mutex
	managers map[string]*managedfields.FieldManager // by subresource
}

func (r *resource) gr() schema.GroupResource { return r.gvr.GroupResource() }

// table is the rows by their names. It changes only by being replaced.
type table struct {
	rows  []*resource
	byGVR map[schema.GroupVersionResource]*resource
}

func newTable(rows []*kinds.Kind) (*table, error) {
	t := &table{byGVR: map[schema.GroupVersionResource]*resource{}}
	for _, k := range rows {
		r := newResource(k)
		if t.byGVR[r.gvr] != nil {
			return nil, fmt.Errorf("two kinds share the resource %s", r.gvr)
		}
		t.rows = append(t.rows, r)
		t.byGVR[r.gvr] = r
	}
	return t, nil
}

func newResource(k *kinds.Kind) *resource {
	r := &resource{Kind: k, gvr: k.GVR(), stored: k.Stored, as: k.GVK.Group, json: !inProtobuf(k.New()), managers: map[string]*managedfields.FieldManager{}}
	if r.stored == "" {
		r.stored = k.Resource()
	}
	return r
}

// groupVersions lists every group with its versions, in the order of the rows.
func (t *table) groupVersions() []schema.GroupVersion {
	var gvs []schema.GroupVersion
	for _, r := range t.rows {
		if gv := r.gvr.GroupVersion(); !slices.Contains(gvs, gv) {
			gvs = append(gvs, gv)
		}
	}
	return gvs
}

// typeConverter knows the schemas of all built-in types. It costs memory to
// build and to keep, so it is made when the first request needs it.
var typeConverter = sync.OnceValues(func() (managedfields.TypeConverter, error) {
	schema, err := openapi.Merge().Read()
	if err != nil {
		return nil, err
	}
	parser, err := typed.NewParser(typed.YAMLObject(schema))
	if err != nil {
		return nil, fmt.Errorf("read the schema of the built-in types: %w", err)
	}
	return managedfields.NewSchemeTypeConverter(Scheme(), parser), nil
})

// fieldManager tracks who owns which field of the resource, when it is written
// by way of a subresource ("" for the resource itself).
func (r *resource) fieldManager(subresource string) (*managedfields.FieldManager, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := r.managers[subresource]; m != nil {
		return m, nil
	}
	gv := r.gvr.GroupVersion()
	if r.def != nil {
		m, err := r.customManager(subresource)
		if err == nil {
			r.managers[subresource] = m
		}
		return m, err
	}
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	// What a writer's request cannot change, the writer does not own.
	kept := fieldpath.NewSet()
	switch sub := r.Sub(subresource); {
	case subresource == "status":
		kept.Insert(fieldpath.MakePathOrDie("spec"))
	case sub != nil && len(sub.Keeps) > 0:
		for _, path := range sub.Keeps {
			kept.Insert(pathOf(path))
		}
	case (subresource == "" || sub != nil) && r.Status:
		kept.Insert(fieldpath.MakePathOrDie("status"))
	}
	if !kept.Empty() {
		reset = map[fieldpath.APIVersion]fieldpath.Filter{fieldpath.APIVersion(gv.String()): fieldpath.NewExcludeSetFilter(kept)}
	}
	converter, err := typeConverter()
	if err != nil {
		return nil, err
	}
	m, err := managedfields.NewDefaultFieldManager(converter, Scheme(), defaulter{r.Kind}, Scheme(), r.GVK, gv, subresource, reset)
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", r.gvr, err)
	}
	r.managers[subresource] = m
	return m, nil
}

func pathOf(names []string) (path fieldpath.Path) {
	for _, name := range names {
		path = append(path, fieldpath.PathElement{FieldName: &name})
	}
	return path
}

type defaulter struct{ k *kinds.Kind }

func (d defaulter) Default(obj runtime.Object) {
	if d.k.Default != nil {
		d.k.Default(obj)
	}
}

// matcher returns what decides whether an object is selected; nil selects all.
func (r *resource) matcher(label labels.Selector, field fields.Selector) (func(Object) bool, error) {
	byLabel := label != nil && !label.Empty()
	byField := field != nil && !field.Empty()
	if byField {
		for _, req := range field.Requirements() {
			if !slices.Contains(r.FieldNames, req.Field) && req.Field != "metadata.name" && (req.Field != "metadata.namespace" || !r.Namespaced) {
				ls := ""
				if label != nil {
					ls = label.String()
				}
				return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to find %q that match label selector %q, field selector %q: field label not supported: %s",
					r.gvr.String(), ls, field.String(), req.Field))
			}
		}
	}
	if !byLabel && !byField {
		return nil, nil
	}
	return func(obj Object) bool {
		if byLabel && !label.Matches(labels.Set(obj.GetLabels())) {
			return false
		}
		return !byField || field.Matches(r.fieldsOf(obj))
	}, nil
}

func (r *resource) fieldsOf(obj Object) fields.Set {
	set := fields.Set{"metadata.name": obj.GetName(), "metadata.namespace": obj.GetNamespace()}
	if r.Fields != nil {
		maps.Copy(set, r.Fields(obj))
	}
	return set
}

// view turns a stored record into one of this resource's own type.
func (r *resource) view(rec Record) Record {
	if r.FromStored == nil || rec == nil {
		return rec
	}
	return &viewed{Record: rec, r: r}
}

// toStored is the reverse, for what is about to be written.
func (r *resource) toStored(obj Object) (Object, error) {
	if r.ToStored == nil {
		return obj, nil
	}
	out, err := r.ToStored(obj)
	if err != nil {
		return nil, fmt.Errorf("convert %s to its stored form: %w", r.gvr, err)
	}
	o := out.(Object)
	return o, setKind(o)
}

// viewed is a record whose object is converted for each reader; its encodings
// are cached with the record like all others.
type viewed struct {
	Record
	r         *resource
	converted Object // where a webhook made it
	once      sync.Once
	obj       Object
}

func (v *viewed) Object() Object {
	if v.converted != nil {
		return v.converted
	}
	v.once.Do(func() { v.obj = v.convert(v.Record.Object()) })
	return v.obj
}

func (v *viewed) convert(stored Object) Object {
	out, err := v.r.FromStored(stored)
	if err != nil {
		// A conversion is between two shapes of one thing and has no reason to
		// fail; an empty object under the right name tells more than a crash.
		out = v.r.New()
		out.(Object).SetName(stored.GetName())
		out.(Object).SetNamespace(stored.GetNamespace())
	}
	o := out.(Object)
	if o.GetObjectKind().GroupVersionKind() != v.r.GVK { // it may be the stored object itself
		o.GetObjectKind().SetGroupVersionKind(v.r.GVK)
	}
	return o
}

func (v *viewed) Encoding(name string, encode func(Object) ([]byte, error)) ([]byte, error) {
	if v.converted != nil {
		return encode(v.converted)
	}
	return v.Record.Encoding(v.r.as+" "+name, func(stored Object) ([]byte, error) { return encode(v.convert(stored)) })
}

// loose is a record of an object that no store holds: what a dry run would
// have written, a lease that lives in memory.
type loose struct{ obj Object }

func (l loose) Object() Object   { return l.obj }
func (l loose) Revision() uint64 { return 0 }
func (l loose) Encoding(_ string, encode func(Object) ([]byte, error)) ([]byte, error) {
	return encode(l.obj)
}

// emptyList returns a list of the resource's kind that says what it is.
func (r *resource) emptyList() runtime.Object {
	list := r.NewList()
	list.GetObjectKind().SetGroupVersionKind(r.listGVK())
	return list
}

func (r *resource) listGVK() schema.GroupVersionKind {
	if r.ListKind != "" {
		return r.GVK.GroupVersion().WithKind(r.ListKind)
	}
	return r.GVK.GroupVersion().WithKind(r.GVK.Kind + "List")
}

// internalOptions is ListOptions with its selectors parsed.
type internalOptions = internalversion.ListOptions

// isList says whether a type is a list, by its having items.
func isList(obj runtime.Object) bool { return meta.IsListType(obj) }
