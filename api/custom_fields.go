package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"conclave/api/custom"
	"conclave/api/openapi"
)

// Who owns which field of a custom resource.

// customManager tracks the fields of a custom resource, when it is written by
// way of a subresource.
func (r *resource) customManager(subresource string) (*managedfields.FieldManager, error) {
	var cannot []fieldpath.Path // what such a writer does not change
	switch {
	case subresource == "status":
		cannot = []fieldpath.Path{fieldpath.MakePathOrDie("metadata"), fieldpath.MakePathOrDie("spec")}
	case subresource == "" && r.Status:
		cannot = []fieldpath.Path{fieldpath.MakePathOrDie("status")}
	}
	gv := r.gvr.GroupVersion()
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if cannot != nil {
		reset = map[fieldpath.APIVersion]fieldpath.Filter{fieldpath.APIVersion(gv.String()): fieldpath.NewExcludeSetFilter(fieldpath.NewSet(cannot...))}
	}
	types, err := r.def.typed()
	if err != nil {
		return nil, fmt.Errorf("schemas of %s: %w", r.gvr, err)
	}
	m, err := managedfields.NewDefaultCRDFieldManager(types, r.def.between, defaulter{r.Kind}, r.def.between, r.GVK, gv, subresource, reset)
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", r.gvr, err)
	}
	return m, nil
}

// customTypes knows the fields of all versions of a definition.
func customTypes(d *custom.Definition) (managedfields.TypeConverter, error) {
	models, err := metaModels()
	if err != nil {
		return nil, err
	}
	all := map[string]*spec.Schema{}
	for name, m := range models {
		all[name] = m
	}
	for _, v := range d.Spec.Versions {
		own, err := custom.Models(d, v.Name, false)
		if err != nil {
			return nil, err
		}
		for name, m := range own {
			all[name] = m
		}
	}
	return managedfields.NewTypeConverter(all, false)
}

const metaPrefix = "io.k8s.apimachinery.pkg.apis.meta.v1."

// metaModels are the schemas of metadata and of what belongs to requests of all
// kinds, as the document of a small group of built-in kinds has them.
func metaModels() (map[string]*spec.Schema, error) {
	raw, err := metaSchemas()
	if err != nil {
		return nil, err
	}
	models := map[string]*spec.Schema{}
	for name, text := range raw {
		m := &spec.Schema{}
		if err := json.Unmarshal(text, m); err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", name, err)
		}
		models[name] = m
	}
	return models, nil
}

// metaSchemas are the same as they are written, which is 30 KB: every definition
// needs them, and reading a document costs some milliseconds.
var metaSchemas = sync.OnceValues(func() (map[string]json.RawMessage, error) {
	return openAPISchemas("apis/"+custom.Definitions.GroupVersion().String(), func(name string) bool { return strings.HasPrefix(name, metaPrefix) })
})

// openAPISchemas are some of the schemas of a document of built-in kinds.
func openAPISchemas(path string, wanted func(name string) bool) (map[string]json.RawMessage, error) {
	built := openapi.Find("v3/" + path)
	if built == nil {
		return nil, fmt.Errorf("there is no OpenAPI document %s", path)
	}
	text, err := built.JSON.Read()
	if err != nil {
		return nil, err
	}
	var doc struct {
		Components struct {
			Schemas map[string]json.RawMessage `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("read the OpenAPI document %s: %w", path, err)
	}
	found := map[string]json.RawMessage{}
	for name, schema := range doc.Components.Schemas {
		if wanted(name) {
			found[name] = bytes.Clone(schema) // the document need not live on
		}
	}
	return found, nil
}

// renamer converts between the versions of a custom resource, which with
// strategy None differ in their name alone, and makes empty ones.
type renamer struct {
	convert func(*unstructured.Unstructured, schema.GroupVersionKind) (Object, error) // nil: by their name
}

func (renamer) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{Object: map[string]any{}}
	u.SetGroupVersionKind(gvk)
	return u, nil
}

func (r renamer) ConvertToVersion(in runtime.Object, to runtime.GroupVersioner) (runtime.Object, error) {
	u, ok := in.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("convert a %T: not a custom resource", in)
	}
	have := u.GroupVersionKind()
	gvk, ok := to.KindForGroupVersionKinds([]schema.GroupVersionKind{have})
	if !ok {
		// A version of the same group: all its versions have the kind.
		gv, isOne := to.(schema.GroupVersion)
		if !isOne || gv.Group != have.Group {
			return nil, fmt.Errorf("convert %s to %v: not a version of its group", have, to)
		}
		gvk = gv.WithKind(have.Kind)
	}
	if gvk == have {
		return u, nil
	}
	if r.convert != nil && !have.Empty() {
		return r.convert(u, gvk)
	}
	out := u.DeepCopy()
	out.SetGroupVersionKind(gvk)
	return out, nil
}

func (r renamer) Convert(in, out, _ any) error {
	from, ok := in.(*unstructured.Unstructured)
	to, isOne := out.(*unstructured.Unstructured)
	if !ok || !isOne {
		return fmt.Errorf("convert a %T into a %T: not a custom resource", in, out)
	}
	gvk := to.GroupVersionKind()
	to.Object = from.DeepCopy().Object
	if !gvk.Empty() {
		to.SetGroupVersionKind(gvk)
	}
	return nil
}

func (renamer) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}
