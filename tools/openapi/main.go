// Command openapi writes the OpenAPI documents that package api/openapi
// embeds: one of version 2 for everything, one of version 3 for each group and
// version; and the schema by which server-side apply merges objects. Schemas come from the published Go types (package definitions, made
// by openapi-gen), paths from the table of kinds.
//
// Run it by `go generate ./api/openapi` at the root of the project.
package main

//go:generate go tool openapi-gen --output-dir definitions --output-pkg conclave/tools/openapi/definitions --output-file zz_generated.go --go-header-file boilerplate.txt --report-filename /dev/null k8s.io/api/admissionregistration/v1 k8s.io/api/apps/v1 k8s.io/api/authentication/v1 k8s.io/api/authorization/v1 k8s.io/api/autoscaling/v1 k8s.io/api/autoscaling/v2 k8s.io/api/coordination/v1 k8s.io/api/core/v1 k8s.io/api/discovery/v1 k8s.io/api/events/v1 k8s.io/api/networking/v1 k8s.io/api/node/v1 k8s.io/api/policy/v1 k8s.io/api/rbac/v1 k8s.io/api/batch/v1 k8s.io/api/certificates/v1 k8s.io/api/flowcontrol/v1 k8s.io/api/resource/v1 k8s.io/api/scheduling/v1 k8s.io/api/scheduling/v1alpha3 k8s.io/api/storage/v1 k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1 k8s.io/apimachinery/pkg/api/resource k8s.io/apimachinery/pkg/apis/meta/v1 k8s.io/apimachinery/pkg/runtime k8s.io/apimachinery/pkg/util/intstr k8s.io/apimachinery/pkg/version k8s.io/kube-aggregator/pkg/apis/apiregistration/v1
//go:generate go run . ../../api/openapi/spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v2" // structured-merge-diff's own
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/schemaconv"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
	smd "sigs.k8s.io/structured-merge-diff/v6/schema"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: openapi FOLDER")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(folder string) error {
	services := routes()
	schemas, err := withSnapshots()
	if err != nil {
		return err
	}
	groupVersionKinds := modelKinds(services)
	name := func(name string) (string, spec.Extensions) {
		name = modelName(name)
		gvks := groupVersionKinds[name]
		if len(gvks) == 0 {
			return name, nil
		}
		var list []any
		for _, gvk := range gvks {
			list = append(list, gvkExtension(gvk))
		}
		return name, spec.Extensions{extensionGVK: list}
	}
	info := &spec.Info{InfoProps: spec.InfoProps{Title: "Conclave", Version: "v1.37"}}
	identify := func(r common.Route) (string, []string, error) {
		return r.OperationName(), []string{r.(*route).tag}, nil
	}

	var all []common.RouteContainer
	for _, s := range services {
		all = append(all, s)
	}
	v2, err := builder.BuildOpenAPISpecFromRoutes(all, &common.Config{
		Info:                           info,
		ProtocolList:                   []string{"https"},
		GetDefinitions:                 schemas,
		GetDefinitionName:              name,
		GetOperationIDAndTagsFromRoute: identify,
		CommonResponses:                map[int]spec.Response{401: {ResponseProps: spec.ResponseProps{Description: "Unauthorized"}}},
		SecurityDefinitions:            &spec.SecurityDefinitions{"BearerToken": bearer()},
		DefaultSecurity:                []map[string][]string{{"BearerToken": {}}},
	})
	if err != nil {
		return fmt.Errorf("build version 2: %w", err)
	}
	// As Kubernetes does: version 2 has no place for defaults beside references.
	v2.Definitions = handler.PruneDefaults(v2.Definitions)
	text, err := json.Marshal(v2)
	if err != nil {
		return fmt.Errorf("encode version 2: %w", err)
	}
	// What client-go asks for; made here, because making it costs a server tens
	// of megabytes, and the code for it another one.
	protobuf, err := handler.ToProtoBinary(text)
	if err != nil {
		return fmt.Errorf("encode version 2 as protobuf: %w", err)
	}
	documents := []document{{path: "v2", json: text, protobuf: protobuf}}
	models := map[string]*spec.Schema{}
	for _, s := range services {
		config := &common.OpenAPIV3Config{
			Info:                           info,
			GetDefinitions:                 schemas,
			GetDefinitionName:              name,
			GetOperationIDAndTagsFromRoute: identify,
			CommonResponses:                map[int]*spec3.Response{401: {ResponseProps: spec3.ResponseProps{Description: "Unauthorized"}}},
			SecuritySchemes: spec3.SecuritySchemes{"BearerToken": {SecuritySchemeProps: spec3.SecuritySchemeProps{
				Type: "apiKey", Name: "authorization", In: "header", Description: bearer().Description,
			}}},
			DefaultSecurity: []map[string][]string{{"BearerToken": {}}},
		}
		v3, err := builder3.BuildOpenAPISpecFromRoutes([]common.RouteContainer{s}, config)
		if err != nil {
			return fmt.Errorf("build version 3 of %s: %w", s.root, err)
		}
		maps.Copy(models, v3.Components.Schemas)
		d := document{path: "v3" + s.root}
		if d.json, err = json.Marshal(v3); err != nil {
			return fmt.Errorf("encode version 3 of %s: %w", s.root, err)
		}
		if s.gv.Group != snapshotGroup { // as of custom resources: who asks for it is content with JSON
			if d.protobuf, err = handler3.ToV3ProtoBinary(d.json); err != nil {
				return fmt.Errorf("encode version 3 of %s as protobuf: %w", s.root, err)
			}
		}
		documents = append(documents, d)
	}
	merge, err := mergeSchema(models)
	if err != nil {
		return err
	}
	return write(folder, documents, merge)
}

// mergeSchema is what structured-merge-diff needs to know of the models.
func mergeSchema(models map[string]*spec.Schema) ([]byte, error) {
	merge, err := schemaconv.ToSchemaFromOpenAPI(models, false)
	if err != nil {
		return nil, fmt.Errorf("make the schema of merging: %w", err)
	}
	slices.SortFunc(merge.Types, func(a, b smd.TypeDef) int { return strings.Compare(a.Name, b.Name) })
	for i := range merge.Types {
		sortFields(&merge.Types[i].Atom)
	}
	text, err := yaml.Marshal(merge)
	if err != nil {
		return nil, fmt.Errorf("encode the schema of merging: %w", err)
	}
	// By the name that runtime.Scheme makes of a type that does not tell its own.
	return bytes.ReplaceAll(text, []byte(snapshotModel), []byte(util.ToRESTFriendlyName(snapshots))), nil
}

// sortFields gives the fields of a type, and of those inside it, an order: the
// schemas that they come from have none.
func sortFields(t *smd.Atom) {
	if t.List != nil {
		sortFields(&t.List.ElementType.Inlined)
	}
	if t.Map == nil {
		return
	}
	sortFields(&t.Map.ElementType.Inlined)
	slices.SortFunc(t.Map.Fields, func(a, b smd.StructField) int { return strings.Compare(a.Name, b.Name) })
	for i := range t.Map.Fields {
		sortFields(&t.Map.Fields[i].Type.Inlined)
	}
}

func bearer() *spec.SecurityScheme {
	return &spec.SecurityScheme{SecuritySchemeProps: spec.SecuritySchemeProps{
		Type: "apiKey", Name: "authorization", In: "header", Description: "Bearer Token authentication",
	}}
}

const (
	extensionAction = "x-kubernetes-action"
	extensionGVK    = "x-kubernetes-group-version-kind"
)

func gvkExtension(gvk schema.GroupVersionKind) map[string]any {
	return map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}
}

// modelName is the name of a type's schema. Most published types know theirs.
func modelName(canonical string) string {
	if name, ok := strings.CutPrefix(canonical, snapshots); ok {
		return snapshotModel + name
	}
	if strings.Contains(canonical, "/") {
		return util.ToRESTFriendlyName(canonical)
	}
	return canonical
}
