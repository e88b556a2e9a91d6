package custom

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/kinds"
)

// NewKind makes the row of a version of a definition. Its objects are
// *unstructured.Unstructured, stored in the definition's storage version. An
// error says that the definition's schemas cannot be read, which its validation
// keeps from happening.
func NewKind(d *Definition, version string) (*kinds.Kind, error) {
	v := versionOf(d, version)
	if v == nil {
		return nil, fmt.Errorf("%s has no version %s", d.Name, version)
	}
	// Objects may be stored in any version that once was the storage version.
	schemas := map[string]*Schema{}
	for i := range d.Spec.Versions {
		s, err := newSchema(d.Spec.Versions[i].Schema)
		if err != nil {
			return nil, fmt.Errorf("%s, version %s: %w", d.Name, d.Spec.Versions[i].Name, err)
		}
		schemas[d.Spec.Versions[i].Name] = s
	}
	s := schemas[version]
	gvk := schema.GroupVersionKind{Group: d.Spec.Group, Version: version, Kind: d.Spec.Names.Kind}
	storedGVK := gvk.GroupKind().WithVersion(StorageVersion(d))
	listGVK := gvk.GroupVersion().WithKind(d.Spec.Names.ListKind)
	r := row{gvk: gvk, schema: s, namespaced: d.Spec.Scope == apiextensionsv1.NamespaceScoped}
	k := &kinds.Kind{
		GVK: gvk, Plural: d.Spec.Names.Plural, Singular: d.Status.AcceptedNames.Singular,
		ShortNames: d.Status.AcceptedNames.ShortNames, Categories: d.Spec.Names.Categories, Namespaced: r.namespaced,
		New: func() runtime.Object {
			u := &unstructured.Unstructured{Object: map[string]any{}}
			u.SetGroupVersionKind(gvk)
			return u
		},
		NewList: func() runtime.Object {
			l := &unstructured.UnstructuredList{}
			l.SetGroupVersionKind(listGVK)
			return l
		},
		ListKind: d.Spec.Names.ListKind,
		Stored:   d.Spec.Names.Plural + "." + d.Spec.Group,
		ToStored: func(obj runtime.Object) (runtime.Object, error) { return withVersion(of(obj), storedGVK), nil },
		FromStored: func(obj runtime.Object) (runtime.Object, error) {
			return restored(of(obj), schemas[of(obj).GroupVersionKind().Version], s, gvk), nil
		},
		Decoded: func(obj runtime.Object) ([]string, error) { return s.Prune(of(obj).Object) },
		Default: func(obj runtime.Object) { s.Default(of(obj).Object) },
		PrepareForCreate: func(obj runtime.Object) {
			if r.status {
				delete(of(obj).Object, "status")
			}
			of(obj).SetGeneration(1)
		},
		PrepareForUpdate:       func(obj, old runtime.Object) { r.prepareUpdate(of(obj), of(old)) },
		PrepareForStatusUpdate: func(obj, old runtime.Object) { prepareStatus(of(obj), of(old)) },
		Validate:               func(obj runtime.Object) field.ErrorList { return r.validate(of(obj), nil) },
		ValidateUpdate:         func(obj, old runtime.Object) field.ErrorList { return r.validate(of(obj), of(old)) },
		ValidateStatusUpdate:   func(obj, old runtime.Object) field.ErrorList { return r.validateStatus(of(obj), of(old)) },
		Warnings:               r.warnings,
	}
	if sub := v.Subresources; sub != nil {
		r.status = sub.Status != nil
		k.Status = r.status
		if r.scale = sub.Scale; r.scale != nil {
			k.GetScale, k.SetScale = r.getScale, r.setScale
		}
	}
	k.FieldNames, k.Fields = selectable(v.SelectableFields)
	k.Columns, k.Cells = columns(v.AdditionalPrinterColumns)
	return k.Complete(), nil
}

func versionOf(d *Definition, version string) *apiextensionsv1.CustomResourceDefinitionVersion {
	for i := range d.Spec.Versions {
		if d.Spec.Versions[i].Name == version {
			return &d.Spec.Versions[i]
		}
	}
	return nil
}

// Deprecation is what to tell whoever uses a version, empty if nothing.
func Deprecation(d *Definition, version string) string {
	v := versionOf(d, version)
	if v == nil || !v.Deprecated {
		return ""
	}
	if v.DeprecationWarning != nil {
		return *v.DeprecationWarning
	}
	text := fmt.Sprintf("%s/%s %s is deprecated", d.Spec.Group, version, d.Spec.Names.Kind)
	var better []string
	for _, o := range d.Spec.Versions {
		if o.Served && !o.Deprecated && compareVersions(o.Name, version) > 0 {
			better = append(better, o.Name)
		}
	}
	if len(better) == 0 {
		return text
	}
	return fmt.Sprintf("%s; use %s/%s %s", text, d.Spec.Group, slices.MaxFunc(better, compareVersions), d.Spec.Names.Kind)
}

// of is the object of a row: rows are only handed what their New makes.
func of(obj runtime.Object) *unstructured.Unstructured { return obj.(*unstructured.Unstructured) }

// row is what the functions of a kind share.
type row struct {
	gvk        schema.GroupVersionKind
	schema     *Schema
	namespaced bool
	status     bool
	scale      *apiextensionsv1.CustomResourceSubresourceScale
}

// withVersion is an object under another version of its kind: with conversion
// strategy None nothing else differs. What is below its metadata is shared.
func withVersion(u *unstructured.Unstructured, gvk schema.GroupVersionKind) *unstructured.Unstructured {
	if u.GroupVersionKind() == gvk {
		return u
	}
	out := &unstructured.Unstructured{Object: maps.Clone(u.Object)}
	if meta, ok := out.Object["metadata"].(map[string]any); ok {
		out.Object["metadata"] = maps.Clone(meta)
	}
	out.SetGroupVersionKind(gvk)
	return out
}

// restored is a stored object as a version's readers see it: with the defaults
// of the version that it is stored in, and with what both versions know. Where
// there is nothing to change it is the stored object itself, which is shared.
func restored(u *unstructured.Unstructured, stored, served *Schema, gvk schema.GroupVersionKind) *unstructured.Unstructured {
	out := u.DeepCopy()
	if stored != nil { // else the version is no more
		stored.trim(out.Object)
		stored.Default(out.Object)
	}
	if served != stored {
		out.SetGroupVersionKind(gvk)
		served.trim(out.Object)
		return out
	}
	if equality.Semantic.DeepEqual(out.Object, u.Object) {
		return u
	}
	return out
}

func (r *row) prepareUpdate(u, old *unstructured.Unstructured) {
	if r.status {
		if status, ok := old.Object["status"]; ok {
			u.Object["status"] = runtime.DeepCopyJSONValue(status)
		} else {
			delete(u.Object, "status")
		}
	}
	if !equality.Semantic.DeepEqual(withoutMetadata(u), withoutMetadata(old)) {
		u.SetGeneration(old.GetGeneration() + 1)
	}
}

func withoutMetadata(u *unstructured.Unstructured) map[string]any {
	m := maps.Clone(u.Object)
	delete(m, "metadata")
	return m
}

// prepareStatus lets nothing through but the status, who wrote it, and the
// version that the writer had.
func prepareStatus(u, old *unstructured.Unstructured) {
	status, ok := u.Object["status"]
	managed, version := u.GetManagedFields(), u.GetResourceVersion()
	u.Object = old.DeepCopy().Object
	u.SetManagedFields(managed)
	u.SetResourceVersion(version)
	if ok {
		u.Object["status"] = status
	} else {
		delete(u.Object, "status")
	}
}

func (r *row) validate(u, old *unstructured.Unstructured) field.ErrorList {
	errs := r.validateMetadata(u, old)
	var before map[string]any
	if old != nil {
		before = old.Object
	}
	errs = append(errs, r.schema.validate(u.Object, before)...)
	errs = append(errs, r.validateScale(u, true)...)
	return append(errs, r.schema.validateRules(u.Object, before, errs)...)
}

func (r *row) validateStatus(u, old *unstructured.Unstructured) field.ErrorList {
	errs := r.validateMetadata(u, old)
	errs = append(errs, r.schema.validateStatus(u.Object, old.Object)...)
	errs = append(errs, r.validateScale(u, false)...)
	return append(errs, r.schema.validateRules(u.Object, old.Object, errs)...)
}

func (r *row) validateMetadata(u, old *unstructured.Unstructured) field.ErrorList {
	p := field.NewPath("metadata")
	meta, err := objectMeta(u.Object)
	if err != nil {
		return field.ErrorList{field.Invalid(p, u.Object["metadata"], err.Error())}
	}
	if old == nil {
		return kinds.ValidateMetadata(meta, nil, r.namespaced, apivalidation.NameIsDNSSubdomain, p)
	}
	before, err := objectMeta(old.Object)
	if err != nil {
		return field.ErrorList{field.Invalid(p, old.Object["metadata"], err.Error())}
	}
	return kinds.ValidateMetadata(meta, before, r.namespaced, nil, p)
}

func (r *row) warnings(obj, old runtime.Object) []string {
	all := finalizerWarnings(obj, old)
	if old != nil {
		all = append(all, r.schema.ruleWarnings(of(obj).Object, of(old).Object)...)
	}
	return all
}

// finalizerWarnings is of finalizers that are new and may be another's.
func finalizerWarnings(obj, old runtime.Object) (all []string) {
	names := of(obj).GetFinalizers()
	if old != nil {
		before := of(old).GetFinalizers()
		names = slices.DeleteFunc(slices.Clone(names), func(f string) bool { return slices.Contains(before, f) })
	}
	slices.Sort(names)
	for _, f := range names {
		for _, why := range validation.IsQualifiedName(f) {
			all = append(all, fmt.Sprintf("metadata.finalizers: %q: %s", f, why))
		}
		switch {
		case strings.Contains(f, "/"), f == "orphan", f == "foregroundDeletion", f == string(corev1.FinalizerKubernetes):
		case strings.Contains(f, "."):
			all = append(all, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers", f))
		default:
			all = append(all, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers", f))
		}
	}
	return all
}
