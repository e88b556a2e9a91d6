package custom

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	openapiv2 "k8s.io/apiextensions-apiserver/pkg/controller/openapi/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

const (
	metaModel = "io.k8s.apimachinery.pkg.apis.meta.v1."

	prefixV2 = "#/definitions/"
	prefixV3 = "#/components/schemas/"

	extensionGVK        = "x-kubernetes-group-version-kind"
	extensionSelectable = "x-kubernetes-selectable-fields"
)

// ModelName is the name of a kind's schema: "com.example.v1.Kind".
func ModelName(group, version, kind string) string {
	parts := strings.Split(group, ".")
	slices.Reverse(parts)
	return strings.Join(append(parts, version, kind), ".")
}

// Models are the OpenAPI schemas of a version's objects and lists, by their
// names, for documents of version 2 or else 3. They refer to metav1's models.
func Models(d *Definition, version string, v2 bool) (map[string]*spec.Schema, error) {
	v := versionOf(d, version)
	if v == nil {
		return nil, fmt.Errorf("%s has no version %s", d.Name, version)
	}
	var s *structural.Structural
	if v.Schema != nil && v.Schema.OpenAPIV3Schema != nil {
		var err error
		if s, err = toStructural(v.Schema.OpenAPIV3Schema); err != nil {
			return nil, fmt.Errorf("%s, version %s: %w", d.Name, version, err)
		}
	}
	m := modeler{v2: v2, group: d.Spec.Group, version: version}
	object, list := m.object(s, d.Spec.Names.Kind), m.list(d)
	if len(v.SelectableFields) > 0 {
		var fields []any
		for _, f := range v.SelectableFields {
			fields = append(fields, map[string]any{"fieldPath": strings.TrimPrefix(f.JSONPath, ".")})
		}
		object.AddExtension(extensionSelectable, fields)
		list.AddExtension(extensionSelectable, fields)
	}
	return map[string]*spec.Schema{
		ModelName(d.Spec.Group, version, d.Spec.Names.Kind):     object,
		ModelName(d.Spec.Group, version, d.Spec.Names.ListKind): list,
	}, nil
}

type modeler struct {
	v2             bool
	group, version string
}

func (m modeler) ref(name, description string) spec.Schema {
	prefix := prefixV3
	if m.v2 {
		prefix = prefixV2
	}
	return *spec.RefSchema(prefix + name).WithDescription(description)
}

func (m modeler) gvk(kind string) []any {
	return []any{map[string]any{"group": m.group, "version": m.version, "kind": kind}}
}

var (
	typeMetaDoc = map[string]string{
		"apiVersion": metav1.TypeMeta{}.SwaggerDoc()["apiVersion"],
		"kind":       metav1.TypeMeta{}.SwaggerDoc()["kind"],
	}
	objectDoc = metav1.PartialObjectMetadata{}.SwaggerDoc()
	listDoc   = metav1.PartialObjectMetadataList{}.SwaggerDoc()
)

func text(description string) spec.Schema {
	return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"string"}, Description: description}}
}

func (m modeler) object(s *structural.Structural, kind string) *spec.Schema {
	out := &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}
	// Of a schema that keeps unknown fields, version 2 must say nothing at all:
	// clients would take what it says for all that there may be.
	if s != nil && (!m.v2 || !s.XPreserveUnknownFields) {
		s = s.DeepCopy().Unfold()
		if m.v2 {
			s = openapiv2.ToStructuralOpenAPIV2(s)
		}
		out = s.ToKubeOpenAPI()
		m.typeMeta(out)
		out.SetProperty("metadata", m.ref(metaModel+"ObjectMeta", objectDoc["metadata"]))
		m.embedded(out)
	}
	out.AddExtension(extensionGVK, m.gvk(kind))
	return out
}

func (m modeler) typeMeta(s *spec.Schema) {
	for name, doc := range typeMetaDoc {
		s.SetProperty(name, text(doc))
	}
}

// embedded adds to the schemas of embedded resources what those have.
func (m modeler) embedded(s *spec.Schema) {
	for name, p := range s.Properties {
		m.embedded(&p)
		s.Properties[name] = p
	}
	if s.Items != nil && s.Items.Schema != nil {
		m.embedded(s.Items.Schema)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil {
		m.embedded(s.AdditionalProperties.Schema)
	}
	if open, _ := s.Extensions.GetBool("x-kubernetes-preserve-unknown-fields"); open && m.v2 {
		return
	}
	if is, _ := s.Extensions.GetBool("x-kubernetes-embedded-resource"); !is {
		return
	}
	m.typeMeta(s)
	s.SetProperty("metadata", m.ref(metaModel+"ObjectMeta", objectDoc["metadata"]))
	for _, name := range []string{"kind", "apiVersion"} {
		if !slices.Contains(s.Required, name) {
			s.Required = append(s.Required, name)
		}
	}
}

func (m modeler) list(d *Definition) *spec.Schema {
	n := d.Spec.Names
	item := spec.RefSchema(m.refName(ModelName(m.group, m.version, n.Kind)))
	items := spec.ArrayProperty(item).WithDescription(fmt.Sprintf("List of %s. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md", n.Plural))
	s := &spec.Schema{SchemaProps: spec.SchemaProps{
		Type: []string{"object"}, Description: fmt.Sprintf("%s is a list of %s", n.ListKind, n.Kind), Required: []string{"items"},
	}}
	s.SetProperty("items", *items)
	s.SetProperty("metadata", m.ref(metaModel+"ListMeta", listDoc["metadata"]))
	m.typeMeta(s)
	s.AddExtension(extensionGVK, m.gvk(n.ListKind))
	return s
}

func (m modeler) refName(name string) string {
	if m.v2 {
		return prefixV2 + name
	}
	return prefixV3 + name
}

// Paths are the paths below which a version's objects are found, as documents
// of OpenAPI describe them.
func Paths(d *Definition, version string, v2 bool) map[string]any {
	v := versionOf(d, version)
	p := pather{modeler: modeler{v2: v2, group: d.Spec.Group, version: version}, names: d.Spec.Names, namespaced: d.Spec.Scope == apiextensionsv1.NamespaceScoped}
	root := "/apis/" + d.Spec.Group + "/" + version + "/"
	all := map[string]any{}
	kind, list := ModelName(d.Spec.Group, version, d.Spec.Names.Kind), ModelName(d.Spec.Group, version, d.Spec.Names.ListKind)
	if p.namespaced {
		all[root+d.Spec.Names.Plural] = p.path(false, false, map[string]any{
			"get": p.operation("list", "list objects of kind "+p.names.Kind, "list"+p.names.Kind+"ForAllNamespaces", listParameters, "", list, 200),
		})
		root += "namespaces/{namespace}/"
	}
	within := ""
	if p.namespaced {
		within = "Namespaced"
	}
	k := p.names.Kind
	root += d.Spec.Names.Plural
	all[root] = p.path(p.namespaced, false, map[string]any{
		"get":    p.operation("list", "list objects of kind "+k, "list"+within+k, listParameters, "", list, 200),
		"post":   p.operation("post", "create "+article(k), "create"+within+k, writeParameters, kind, kind, 200, 201, 202),
		"delete": p.operation("deletecollection", "delete collection of "+k, "deleteCollection"+within+k, listParameters, "", metaModel+"Status", 200),
	})
	change := func(sub, title, model string) map[string]any {
		what := "the specified " + k
		if sub != "" {
			what = sub + " of " + what
		}
		return map[string]any{
			"get":   p.operation("get", "read "+what, "read"+within+k+title, getParameters, "", model, 200),
			"put":   p.operation("put", "replace "+what, "replace"+within+k+title, writeParameters, model, model, 200, 201),
			"patch": p.operation("patch", "partially update "+what, "patch"+within+k+title, patchParameters, metaModel+"Patch", model, 200),
		}
	}
	object := change("", "", kind)
	object["delete"] = p.operation("delete", "delete "+article(k), "delete"+within+k, deleteParameters, metaModel+"DeleteOptions", metaModel+"Status", 200, 202)
	all[root+"/{name}"] = p.path(p.namespaced, true, object)
	if v != nil && v.Subresources != nil {
		if v.Subresources.Status != nil {
			all[root+"/{name}/status"] = p.path(p.namespaced, true, change("status", "Status", kind))
		}
		if v.Subresources.Scale != nil {
			all[root+"/{name}/scale"] = p.path(p.namespaced, true, change("scale", "Scale", ScaleModel))
		}
	}
	return all
}

// ScaleModel is the name of the schema of scales, which a document needs where
// a path of Paths speaks of them.
const ScaleModel = "io.k8s.api.autoscaling.v1.Scale"

func article(kind string) string {
	if strings.ContainsRune("AEIOU", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}

type pather struct {
	modeler
	names      apiextensionsv1.CustomResourceDefinitionNames
	namespaced bool
}

// parameter is a query parameter: its name, its type, and who documents it.
type parameter struct{ name, kind, doc string }

func parameters(docs map[string]string, list ...string) (all []parameter) {
	for _, entry := range list {
		name, kind, _ := strings.Cut(entry, " ")
		if kind == "" {
			kind = "string"
		}
		all = append(all, parameter{name, kind, docs[name]})
	}
	return all
}

var (
	getParameters  = parameters(metav1.GetOptions{}.SwaggerDoc(), "resourceVersion")
	listParameters = parameters(metav1.ListOptions{}.SwaggerDoc(), "allowWatchBookmarks boolean", "continue", "fieldSelector", "labelSelector", "limit integer",
		"resourceVersion", "resourceVersionMatch", "sendInitialEvents boolean", "timeoutSeconds integer", "watch boolean")
	writeParameters  = parameters(metav1.CreateOptions{}.SwaggerDoc(), "dryRun", "fieldManager", "fieldValidation")
	patchParameters  = append(parameters(metav1.PatchOptions{}.SwaggerDoc(), "force boolean"), writeParameters...)
	deleteParameters = parameters(metav1.DeleteOptions{}.SwaggerDoc(), "dryRun", "gracePeriodSeconds integer", "orphanDependents boolean", "propagationPolicy")
)

func (p pather) parameter(name, kind, doc, in string) map[string]any {
	out := map[string]any{"name": name, "in": in, "description": doc}
	if in == "path" {
		out["required"] = true
	}
	if p.v2 {
		out["type"], out["uniqueItems"] = kind, true
	} else {
		out["schema"] = map[string]any{"type": kind, "uniqueItems": true}
	}
	return out
}

// path adds to the operations of a path the parameters in the path itself.
func (p pather) path(namespace, name bool, operations map[string]any) map[string]any {
	var shared []any
	if name {
		shared = append(shared, p.parameter("name", "string", "name of the "+p.names.Kind, "path"))
	}
	if namespace {
		shared = append(shared, p.parameter("namespace", "string", "object name and auth scope, such as for teams and projects", "path"))
	}
	shared = append(shared, p.parameter("pretty", "string", "If 'true', then the output is pretty printed.", "query"))
	out := maps.Clone(operations)
	out["parameters"] = shared
	return out
}

var (
	produced = []string{"application/json", "application/yaml"}
	patches  = []string{"application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"}
	statuses = map[int]string{200: "OK", 201: "Created", 202: "Accepted"}
)

// operation is one method of a path. It takes the model in, if not empty, and
// answers with the model out.
func (p pather) operation(action, description, id string, query []parameter, in, out string, codes ...int) map[string]any {
	parts := strings.Split(p.group, ".")
	for i, part := range parts {
		parts[i] = title(part)
	}
	op := map[string]any{
		"description": description, "operationId": upTo(id) + strings.Join(parts, "") + title(p.version) + after(id),
		"tags": []string{strings.Join(parts, "") + "_" + p.version}, "x-kubernetes-action": action,
		extensionGVK: map[string]any{"group": p.group, "version": p.version, "kind": p.names.Kind},
	}
	var all []any
	consumed := produced
	if action == "patch" {
		consumed = patches
	}
	ref := func(model string) map[string]any { return map[string]any{"$ref": p.refName(model)} }
	content := func(model string, media []string) map[string]any {
		m := map[string]any{}
		for _, name := range media {
			m[name] = map[string]any{"schema": ref(model)}
		}
		return m
	}
	if in != "" {
		required := action != "delete"
		if p.v2 {
			body := map[string]any{"name": "body", "in": "body", "schema": ref(in)}
			if required {
				body["required"] = true
			}
			all = append(all, body)
		} else {
			body := map[string]any{"content": content(in, consumed)}
			if required {
				body["required"] = true
			}
			op["requestBody"] = body
		}
	}
	for _, q := range query {
		all = append(all, p.parameter(q.name, q.kind, q.doc, "query"))
	}
	if len(all) > 0 {
		op["parameters"] = all
	}
	responses := map[string]any{"401": map[string]any{"description": "Unauthorized"}}
	for _, code := range codes {
		r := map[string]any{"description": statuses[code]}
		if p.v2 {
			r["schema"] = ref(out)
		} else {
			r["content"] = content(out, produced)
		}
		responses[fmt.Sprint(code)] = r
	}
	op["responses"] = responses
	if p.v2 {
		op["consumes"], op["produces"], op["schemes"] = consumed, produced, []string{"https"}
	}
	return op
}

func title(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// upTo and after split an operation's id behind its verb: the group stands
// between them, as in listStableExampleComV1CronTab.
func upTo(id string) string {
	if i := strings.IndexFunc(strings.TrimPrefix(id, "deleteCollection"), func(r rune) bool { return r >= 'A' && r <= 'Z' }); i >= 0 {
		return id[:len(id)-len(strings.TrimPrefix(id, "deleteCollection"))+i]
	}
	return id
}

func after(id string) string { return id[len(upTo(id)):] }
