package custom

import (
	"fmt"
	"slices"
	"strings"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/kinds"
)

// Definition is the type of definitions.
type Definition = apiextensionsv1.CustomResourceDefinition

// Definitions is their resource.
var Definitions = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")

// Kinds returns the rows of all kinds that Conclave has by itself: those of
// kinds.Builtin and that of the definitions. Call it once, as Builtin.
func Kinds() []*kinds.Kind { return append(kinds.Builtin(), DefinitionKind()) }

// DefinitionKind returns the row of the definitions themselves. Each call makes
// a new one.
func DefinitionKind() *kinds.Kind {
	of := func(o runtime.Object) *Definition { return o.(*Definition) }
	meta := metav1.ObjectMeta{}.SwaggerDoc()
	k := &kinds.Kind{
		GVK:    apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"),
		Plural: Definitions.Resource, ShortNames: []string{"crd", "crds"}, Categories: []string{"api-extensions"},
		New:                    func() runtime.Object { return &Definition{} },
		NewList:                func() runtime.Object { return &apiextensionsv1.CustomResourceDefinitionList{} },
		Status:                 true,
		Default:                func(o runtime.Object) { defaultDefinition(of(o)) },
		PrepareForCreate:       func(o runtime.Object) { prepareCreate(of(o)) },
		PrepareForUpdate:       func(o, old runtime.Object) { prepareUpdate(of(o), of(old)) },
		PrepareForStatusUpdate: func(o, old runtime.Object) { of(o).Spec = of(old).Spec },
		Validate:               func(o runtime.Object) field.ErrorList { return ValidateDefinition(of(o)) },
		ValidateUpdate: func(o, old runtime.Object) field.ErrorList {
			return ValidateDefinitionUpdate(of(o), of(old))
		},
		ValidateStatusUpdate: func(o, old runtime.Object) field.ErrorList {
			return validateDefinitionStatus(of(o), of(old))
		},
		Warnings: func(o, old runtime.Object) []string {
			if old == nil {
				return definitionWarnings(of(o), nil)
			}
			return definitionWarnings(of(o), of(old))
		},
		Columns: []metav1.TableColumnDefinition{
			{Name: "Name", Type: "string", Format: "name", Description: meta["name"]},
			{Name: "Created At", Type: "date", Description: meta["creationTimestamp"]},
		},
		Cells: func(o runtime.Object, _ time.Time) []any {
			return []any{of(o).Name, of(o).CreationTimestamp.UTC().Format(time.RFC3339)}
		},
	}
	return k.Complete()
}

func defaultDefinition(d *Definition) {
	n := &d.Spec.Names
	if n.Singular == "" {
		n.Singular = strings.ToLower(n.Kind)
	}
	if n.ListKind == "" && n.Kind != "" {
		n.ListKind = n.Kind + "List"
	}
	if d.Spec.Conversion == nil {
		d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.NoneConverter}
	}
	if w := d.Spec.Conversion.Webhook; w != nil && w.ClientConfig != nil && w.ClientConfig.Service != nil && w.ClientConfig.Service.Port == nil {
		port := int32(443)
		w.ClientConfig.Service.Port = &port
	}
	if len(d.Status.StoredVersions) == 0 {
		keepStored(d)
	}
}

// StorageVersion is the version in which new objects are stored.
func StorageVersion(d *Definition) string {
	for _, v := range d.Spec.Versions {
		if v.Storage {
			return v.Name
		}
	}
	return ""
}

// keepStored adds the storage version to those in which objects may be stored.
func keepStored(d *Definition) {
	if v := StorageVersion(d); v != "" && !slices.Contains(d.Status.StoredVersions, v) {
		d.Status.StoredVersions = append(slices.Clone(d.Status.StoredVersions), v)
	}
}

func prepareCreate(d *Definition) {
	d.Status = apiextensionsv1.CustomResourceDefinitionStatus{}
	d.Generation = 1
	keepStored(d)
}

func prepareUpdate(d, old *Definition) {
	d.Status = *old.Status.DeepCopy()
	if !equality.Semantic.DeepEqual(d.Spec, old.Spec) {
		d.Generation++
	}
	keepStored(d)
}

// ResourceOf is the resource under which a version of a definition is served.
func ResourceOf(d *Definition, version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: d.Spec.Group, Version: version, Resource: d.Spec.Names.Plural}
}

// PrepareRemoval is what the deletion of a definition does to it first: it
// stays until its instances are gone.
func PrepareRemoval(d *Definition, now time.Time) {
	if !slices.Contains(d.Finalizers, Finalizer) {
		d.Finalizers = append(slices.Clone(d.Finalizers), Finalizer)
	}
	SetCondition(d, Terminating, true, "InstanceDeletionPending", "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon", now)
}

// definitionWarnings is what to tell who writes a definition. What old had
// already is not told again.
func definitionWarnings(d, old *Definition) []string {
	all := definitionRemarks(d)
	if old == nil {
		return all
	}
	before := definitionRemarks(old)
	return slices.DeleteFunc(all, func(w string) bool { return slices.Contains(before, w) })
}

func definitionRemarks(d *Definition) []string {
	var formats, sets []string
	for i := range d.Spec.Versions {
		v := &d.Spec.Versions[i]
		if v.Schema == nil {
			continue
		}
		everySchema(v.Schema.OpenAPIV3Schema, func(s *apiextensionsv1.JSONSchemaProps) {
			if s.Format != "" && !knownFormat(s.Type, s.Format) {
				formats = append(formats, fmt.Sprintf("unrecognized format %q", s.Format))
			}
			if s.XListType != nil && *s.XListType == "set" && s.Items != nil && s.Items.Schema != nil {
				if t := s.Items.Schema.Type; t == "object" || t == "array" {
					sets = append(sets, fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", t))
				}
			}
		})
	}
	slices.Sort(sets)
	slices.Sort(formats)
	return append(slices.Compact(formats), slices.Compact(sets)...)
}

// everySchema calls f for a schema and all below it.
func everySchema(s *apiextensionsv1.JSONSchemaProps, f func(*apiextensionsv1.JSONSchemaProps)) {
	if s == nil {
		return
	}
	f(s)
	if s.Items != nil {
		everySchema(s.Items.Schema, f)
		for i := range s.Items.JSONSchemas {
			everySchema(&s.Items.JSONSchemas[i], f)
		}
	}
	for _, list := range [][]apiextensionsv1.JSONSchemaProps{s.AllOf, s.AnyOf, s.OneOf} {
		for i := range list {
			everySchema(&list[i], f)
		}
	}
	everySchema(s.Not, f)
	for _, m := range []map[string]apiextensionsv1.JSONSchemaProps{s.Properties, s.PatternProperties, s.Definitions} {
		for _, p := range m {
			everySchema(&p, f)
		}
	}
	if s.AdditionalProperties != nil {
		everySchema(s.AdditionalProperties.Schema, f)
	}
	if s.AdditionalItems != nil {
		everySchema(s.AdditionalItems.Schema, f)
	}
}
