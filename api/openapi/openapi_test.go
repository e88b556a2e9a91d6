package openapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/custom"
)

func unzip(t *testing.T, data []byte, into any) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

type gvk struct{ Group, Version, Kind string }

type definition struct {
	Description string
	Properties  map[string]struct {
		Description string
		Ref         string `json:"$ref"`
		ListType    string `json:"x-kubernetes-list-type"`
		MergeKey    string `json:"x-kubernetes-patch-merge-key"`
		Strategy    string `json:"x-kubernetes-patch-strategy"`
	}
	GVKs []gvk `json:"x-kubernetes-group-version-kind"`
}

type operation struct {
	OperationID string
	Action      string `json:"x-kubernetes-action"`
	GVK         gvk    `json:"x-kubernetes-group-version-kind"`
	Parameters  []struct {
		Name, In string
		Ref      string `json:"$ref"`
	}
}

// path is the operations on a path, by method; its parameters are not one.
type path map[string]json.RawMessage

func (p path) operation(t *testing.T, method string) *operation {
	t.Helper()
	raw, ok := p[method]
	if !ok {
		return nil
	}
	var o operation
	if err := json.Unmarshal(raw, &o); err != nil {
		t.Fatal(err)
	}
	return &o
}

// documents are both versions, as far as they say the same.
type document struct {
	definitions map[string]definition
	paths       map[string]path
}

func v2Document(t *testing.T) document {
	var d struct {
		Swagger     string
		Definitions map[string]definition
		Paths       map[string]path
	}
	unzip(t, V2(), &d)
	if d.Swagger != "2.0" {
		t.Errorf("version 2 says it is %q", d.Swagger)
	}
	return document{d.Definitions, d.Paths}
}

func v3Document(t *testing.T, data []byte) document {
	var d struct {
		OpenAPI    string
		Components struct{ Schemas map[string]definition }
		Paths      map[string]path
	}
	unzip(t, data, &d)
	if !strings.HasPrefix(d.OpenAPI, "3.0") {
		t.Errorf("version 3 says it is %q", d.OpenAPI)
	}
	return document{d.Components.Schemas, d.Paths}
}

func root(gv schema.GroupVersion) string {
	if gv.Group == "" {
		return "api/" + gv.Version
	}
	return "apis/" + gv.String()
}

func TestEveryKind(t *testing.T) {
	v2, v3 := v2Document(t), map[string]document{}
	for at, data := range V3() {
		v3[at] = v3Document(t, data)
	}
	for _, k := range custom.Kinds() {
		at := root(k.GVK.GroupVersion())
		for version, d := range map[string]document{"2": v2, "3": v3[at]} {
			want := gvk{k.GVK.Group, k.GVK.Version, k.GVK.Kind}
			found := ""
			for name, def := range d.definitions {
				if slices.Contains(def.GVKs, want) {
					found = name
				}
			}
			if found == "" || !strings.HasPrefix(found, "io.k8s.") || !strings.HasSuffix(found, ".v1."+k.GVK.Kind) {
				t.Errorf("version %s: the schema of %s is %q", version, k.GVK, found)
			}
			if d.definitions[found].Description == "" {
				t.Errorf("version %s: %s is not described", version, found)
			}
			list := "/" + at + "/" + k.Plural
			if k.Namespaced {
				list = "/" + at + "/namespaces/{namespace}/" + k.Plural
			}
			one := list + "/{name}"
			checks := map[string][]string{
				list: {"get list", "post post", "delete deletecollection"},
				one:  {"get get", "put put", "patch patch", "delete delete"},
			}
			if k.Status {
				checks[one+"/status"] = []string{"get get", "put put", "patch patch"}
			}
			if k.GetScale != nil {
				checks[one+"/scale"] = []string{"get get", "put put", "patch patch"}
			}
			for at, operations := range checks {
				for _, o := range operations {
					method, action, _ := strings.Cut(o, " ")
					op := d.paths[at].operation(t, method)
					switch {
					case op == nil:
						t.Errorf("version %s: no %s %s", version, method, at)
					case op.Action != action || op.OperationID == "":
						t.Errorf("version %s: %s %s is %+v", version, method, at, op)
					case !strings.HasSuffix(at, "/scale") && op.GVK != want:
						t.Errorf("version %s: %s %s is of %v", version, method, at, op.GVK)
					}
				}
			}
		}
	}
}

// What kubectl looks for before it patches: that dry run and field validation
// are parameters of the patch.
func TestPatchParameters(t *testing.T) {
	for at, data := range V3() {
		for name, p := range v3Document(t, data).paths {
			op := p.operation(t, "patch")
			if op == nil {
				continue
			}
			var names []string
			for _, parameter := range op.Parameters {
				names = append(names, parameter.Name)
			}
			for _, want := range []string{"dryRun", "fieldManager", "fieldValidation", "force"} {
				if !slices.Contains(names, want) {
					t.Errorf("%s: patch %s has no %s: %v", at, name, want, names)
				}
			}
		}
	}
}

func TestExtensions(t *testing.T) {
	for version, d := range map[string]document{"2": v2Document(t), "3": v3Document(t, V3()["api/v1"])} {
		containers := d.definitions["io.k8s.api.core.v1.PodSpec"].Properties["containers"]
		if containers.ListType != "map" || containers.MergeKey != "name" || containers.Strategy != "merge" || containers.Description == "" {
			t.Errorf("version %s: PodSpec.containers is %+v", version, containers)
		}
	}
	if got := v2Document(t).definitions["io.k8s.api.apps.v1.DeploymentSpec"].Properties["strategy"]; got.Ref != "#/definitions/io.k8s.api.apps.v1.DeploymentStrategy" {
		t.Errorf("DeploymentSpec.strategy is %+v", got)
	}
}

// Reviews are not in the table of kinds, but are created by clients all the same.
func TestReviews(t *testing.T) {
	v2 := v2Document(t)
	for _, at := range []string{
		"/apis/authentication.k8s.io/v1/tokenreviews", "/apis/authentication.k8s.io/v1/selfsubjectreviews",
		"/apis/authorization.k8s.io/v1/subjectaccessreviews", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
		"/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "/apis/authorization.k8s.io/v1/namespaces/{namespace}/localsubjectaccessreviews",
		"/api/v1/namespaces/{namespace}/pods/{name}/eviction", "/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
	} {
		if op := v2.paths[at].operation(t, "post"); op == nil || op.Action != "post" {
			t.Errorf("post %s is %+v", at, op)
		}
	}
}

// The documents are the binary's own bytes: asking for them allocates none.
func TestNoCopies(t *testing.T) {
	if &V2()[0] != &V2()[0] || &V3()["api/v1"][0] != &V3()["api/v1"][0] {
		t.Error("each call copies a document")
	}
}

// TestProtobufParts puts the parts of each protobuf document together and
// compares the schemas of the outcome with those of the JSON document.
func TestProtobufParts(t *testing.T) {
	for at, parts := range V3Protobuf() {
		z, err := gzip.NewReader(bytes.NewReader(slices.Concat(parts[0], parts[1])))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		var doc openapi_v3.Document
		if err := proto.Unmarshal(raw, &doc); err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		var got []string
		for _, s := range doc.Components.Schemas.AdditionalProperties {
			got = append(got, s.Name)
		}
		slices.Sort(got)
		of := v3Document(t, V3()[at])
		if want := slices.Sorted(maps.Keys(of.definitions)); !slices.Equal(got, want) {
			t.Errorf("%s: in protobuf there are the schemas %v, in JSON %v", at, got, want)
		}
		if len(doc.Paths.Path) != len(of.paths) || doc.Info.Title != "Conclave" || !strings.HasPrefix(doc.Openapi, "3.0") {
			t.Errorf("%s: %d paths instead of %d, %v", at, len(doc.Paths.Path), len(of.paths), doc.Info)
		}
	}
}
