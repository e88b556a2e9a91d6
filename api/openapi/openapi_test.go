package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"weak"

	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/custom"
)

func read(t *testing.T, text *Text, into any) {
	t.Helper()
	b, err := text.Read()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
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
	read(t, Find("v2").JSON, &d)
	if d.Swagger != "2.0" {
		t.Errorf("version 2 says it is %q", d.Swagger)
	}
	return document{d.Definitions, d.Paths}
}

func v3Document(t *testing.T, text *Text) document {
	var d struct {
		OpenAPI    string
		Components struct{ Schemas map[string]definition }
		Paths      map[string]path
	}
	read(t, text, &d)
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
	for _, d := range All()[1:] {
		v3[strings.TrimPrefix(d.Path, "v3/")] = v3Document(t, d.JSON)
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
			if found == "" || !strings.HasPrefix(found, "io.k8s.") || !strings.HasSuffix(found, "."+k.GVK.Version+"."+k.GVK.Kind) {
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
	for _, d := range All()[1:] {
		for name, p := range v3Document(t, d.JSON).paths {
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
					t.Errorf("%s: patch %s has no %s: %v", d.Path, name, want, names)
				}
			}
		}
	}
}

func TestExtensions(t *testing.T) {
	for version, d := range map[string]document{"2": v2Document(t), "3": v3Document(t, Find("v3/api/v1").JSON)} {
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

// TestProtobuf compares the protobuf form of each document with its JSON.
func TestProtobuf(t *testing.T) {
	without := 0
	for _, d := range All()[1:] {
		if d.Protobuf == nil {
			without++
			continue
		}
		raw, err := d.Protobuf.Read()
		if err != nil {
			t.Fatal(err)
		}
		var doc openapi_v3.Document
		if err := proto.Unmarshal(raw, &doc); err != nil {
			t.Fatalf("%s: %v", d.Path, err)
		}
		var got []string
		for _, s := range doc.Components.Schemas.AdditionalProperties {
			got = append(got, s.Name)
		}
		slices.Sort(got)
		of := v3Document(t, d.JSON)
		if want := slices.Sorted(maps.Keys(of.definitions)); !slices.Equal(got, want) {
			t.Errorf("%s: in protobuf there are the schemas %v, in JSON %v", d.Path, got, want)
		}
		if len(doc.Paths.Path) != len(of.paths) || doc.Info.Title != "Conclave" || !strings.HasPrefix(doc.Openapi, "3.0") {
			t.Errorf("%s: %d paths instead of %d, %v", d.Path, len(doc.Paths.Path), len(of.paths), doc.Info)
		}
	}
	if without != 1 {
		t.Errorf("%d documents have no protobuf, not that of volume snapshots alone", without)
	}
}

// TestTable holds the table to the files: each row says what is there, and there is
// nothing that no row speaks of.
func TestTable(t *testing.T) {
	used := map[string]bool{"spec/" + Merge().file: true}
	last := ""
	for _, d := range All() {
		text, err := d.JSON.Read()
		if err != nil {
			t.Fatal(err)
		}
		if hash := fmt.Sprintf("%X", sha256.Sum256(text)); hash != d.Hash {
			t.Errorf("%s: the hash is %s, not %s", d.Path, hash, d.Hash)
		}
		if got := Find(d.Path); got == nil || got.Path != d.Path || d.Path <= last {
			t.Errorf("%s is not found, or behind %s", d.Path, last)
		}
		last = d.Path
		used["spec/"+d.JSON.file] = true
		if d.Protobuf != nil {
			used["spec/"+d.Protobuf.file] = true
		}
	}
	if err := fs.WalkDir(spec, ".", func(path string, f fs.DirEntry, err error) error {
		if err == nil && !f.IsDir() && !used[path] {
			t.Errorf("%s is of no document", path)
		}
		delete(used, path)
		return err
	}); err != nil {
		t.Error(err)
	}
	if len(used) != 0 {
		t.Errorf("there are no files %v", used)
	}
	if d := Find("v3"); d != nil {
		t.Errorf("found %s", d.Path)
	}
}

// Who read a text may keep and change it. It is compressed once for all who ask at
// the same time, and found again, but not kept.
func TestZipped(t *testing.T) {
	made := 0
	text := Made(func() ([]byte, error) { made++; return []byte("hello"), nil })
	var group sync.WaitGroup
	first := make([][]byte, 8)
	for i := range first {
		group.Go(func() { first[i], _ = text.Zipped() })
	}
	group.Wait()
	z, err := gzip.NewReader(bytes.NewReader(first[0]))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}
	before := made
	if before > len(first) {
		t.Errorf("made %d times", before)
	}
	runtime.GC()
	runtime.GC() // what is found only by a weak pointer is gone after the first
	if _, err := text.Zipped(); err != nil || made != before+1 {
		t.Errorf("made %d times, then %d (%v)", before, made, err)
	}
	if a, b := mustRead(t, "v2"), mustRead(t, "v2"); &a[0] == &b[0] {
		t.Error("two who read a text have the same bytes")
	}
	fails := Made(func() ([]byte, error) { return nil, io.ErrUnexpectedEOF })
	if _, err := fails.Zipped(); err != io.ErrUnexpectedEOF {
		t.Errorf("what is not made is compressed: %v", err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	b, err := Find(path).JSON.Read()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A damaged file is told of, by its name.
func TestDamaged(t *testing.T) {
	for name, text := range map[string]*Text{
		"another dictionary": {file: "v3/api/v1.json.zst", size: text_v3_api_v1_json.size, on: &merge},
		"none":               {file: "v3/api/v1.json.zst", size: text_v3_api_v1_json.size},
		"another size":       {file: "v3/api/v1.json.zst", size: 1, on: &text_v2_json},
	} {
		if b, err := text.Read(); err == nil || !strings.Contains(err.Error(), "v3/api/v1.json") {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

// What serving costs: the first time, and until the next collection of garbage.
func BenchmarkServe(b *testing.B) {
	api := Find("v3/api/v1")
	for name, text := range map[string]*Text{
		"v2 JSON": Find("v2").JSON, "v2 protobuf": Find("v2").Protobuf, "v3 api JSON": api.JSON, "v3 api protobuf": api.Protobuf,
		"v3 apps protobuf": Find("v3/apis/apps/v1").Protobuf,
	} {
		b.Run(name+"/read", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := text.Read(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/zipped first", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				text.zipped = weak.Pointer[[]byte]{}
				if _, err := text.Zipped(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/zipped again", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := text.Zipped(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
