package api_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/kube-openapi/pkg/util/proto"
	"sigs.k8s.io/yaml"

	"conclave/api"
	"conclave/api/apitest"
	"conclave/api/custom"
)

const crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

// crontab is a definition with most of what there is.
const crontab = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec, description: when}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    selectableFields: [{jsonPath: .spec.color}]
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [cronSpec]
            properties:
              cronSpec: {type: string, pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'}
              replicas: {type: integer, minimum: 1, maximum: 10, default: 1}
              color: {type: string, enum: [red, green]}
              note: {type: string, nullable: true}
              port: {x-kubernetes-int-or-string: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
              keys:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, value: {type: string}}
              tags: {type: array, x-kubernetes-list-type: set, items: {type: string}}
          status:
            type: object
            properties:
              replicas: {type: integer}
              selector: {type: string}
              conditions:
                type: array
                items: {type: object, properties: {type: {type: string}, status: {type: string}}}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

func object(name, spec string) string {
	return fmt.Sprintf("apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: %s}\nspec: %s\n", name, spec)
}

const tabs = "/apis/stable.example.com/v1/namespaces/default/crontabs"

// define posts a definition and judges its names, as the controller does.
func (st *site) define(text string) *custom.Definition {
	st.t.Helper()
	if a := st.request(st.admin(), "POST", crds, text, "Content-Type", "application/yaml"); a.code != 201 {
		st.t.Fatalf("%d %s", a.code, a.body)
	}
	var d custom.Definition
	if err := yaml.Unmarshal([]byte(text), &d); err != nil {
		st.t.Fatal(err)
	}
	return st.judge(d.Name)
}

func (st *site) judge(name string) *custom.Definition {
	st.t.Helper()
	c := st.Local(apitest.Admin)
	all, _, err := c.List(st.t.Context(), custom.Definitions, "", metav1.ListOptions{})
	if err != nil {
		st.t.Fatal(err)
	}
	var d *custom.Definition
	var others []*custom.Definition
	for _, o := range all {
		others = append(others, o.(*custom.Definition))
		if o.GetName() == name {
			d = o.DeepCopyObject().(*custom.Definition)
		}
	}
	custom.JudgeNames(d, others, time.Unix(1e9, 0))
	made, err := c.Update(st.t.Context(), custom.Definitions, "", d, metav1.UpdateOptions{}, "status")
	if err != nil {
		st.t.Fatal(err)
	}
	return made.(*custom.Definition)
}

func (st *site) post(path, body string, want int) answer {
	st.t.Helper()
	a := st.request(st.admin(), "POST", path, body, "Content-Type", "application/yaml")
	if a.code != want {
		st.t.Fatalf("%d instead of %d: %s", a.code, want, a.body)
	}
	return a
}

func (a answer) object(t testing.TB) *unstructured.Unstructured {
	t.Helper()
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(a.body); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return u
}

func field(t testing.TB, u *unstructured.Unstructured, path ...string) any {
	t.Helper()
	v, _, err := unstructured.NestedFieldNoCopy(u.Object, path...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestCustomResource(t *testing.T) {
	st := newSite(t)
	st.define(crontab)
	rt := st.admin()
	made := st.post(tabs, object("a", `{cronSpec: "* * * * */5", note: null, color: null, unknown: 1, port: 80, free: {x: {z: 1}}}`), 201)
	if w := made.header.Values("Warning"); len(w) != 1 || !strings.Contains(w[0], `unknown field \"spec.unknown\"`) {
		t.Errorf("warnings are %q", w)
	}
	u := made.object(t)
	if field(t, u, "spec", "replicas") != int64(1) || field(t, u, "spec", "unknown") != nil || field(t, u, "spec", "port") != int64(80) || u.GetGeneration() != 1 {
		t.Errorf("made %s", made.body)
	}
	if v, ok, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", "note"); !ok || v != nil {
		t.Errorf("a nullable null was not kept: %s", made.body)
	}
	if field(t, u, "spec", "free", "x", "z") != int64(1) || len(u.GetManagedFields()) != 1 {
		t.Errorf("made %s", made.body)
	}
	// The protobuf that client-go asks for first is not there; JSON is.
	a := st.request(rt, "GET", tabs+"/a", "", "Accept", "application/vnd.kubernetes.protobuf,application/json")
	if a.code != 200 || a.header.Get("Content-Type") != "application/json" || a.object(t).GetName() != "a" {
		t.Errorf("%d %s %s", a.code, a.header, a.body)
	}
	if a := st.request(rt, "GET", tabs+"/a", "", "Accept", "application/vnd.kubernetes.protobuf"); a.code != 406 {
		t.Errorf("%d %s", a.code, a.body)
	}
	var list struct {
		Kind, APIVersion string
		Items            []map[string]any
	}
	st.request(rt, "GET", tabs, "").into(t, &list)
	if list.Kind != "CronTabList" || len(list.Items) != 1 || list.Items[0]["kind"] != "CronTab" || list.Items[0]["apiVersion"] != "stable.example.com/v1" {
		t.Errorf("list is %+v", list)
	}
	for name, tc := range map[string]struct {
		media, body string
		code        int
		want        string
	}{
		"merge":     {"application/merge-patch+json", `{"spec":{"replicas":3}}`, 200, `"replicas":3`},
		"json":      {"application/json-patch+json", `[{"op":"replace","path":"/spec/cronSpec","value":"1 * * * *"}]`, 200, `"cronSpec":"1 * * * *"`},
		"strategic": {"application/strategic-merge-patch+json", `{"spec":{"replicas":4}}`, 415, ""},
		"invalid":   {"application/merge-patch+json", `{"spec":{"replicas":30}}`, 422, `spec.replicas: Invalid value: 30: spec.replicas in body should be less than or equal to 10`},
		"strict":    {"application/merge-patch+json", `{"spec":{"nope":30}}`, 400, `unknown field \"spec.nope\"`},
	} {
		a := st.request(rt, "PATCH", tabs+"/a?fieldValidation=Strict", tc.body, "Content-Type", tc.media)
		if a.code != tc.code || !strings.Contains(string(a.body), tc.want) {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
	// The status is a subresource, and so is the scale.
	a = st.request(rt, "PATCH", tabs+"/a/status", `{"spec":{"replicas":9},"status":{"replicas":2,"selector":"a=b"},"metadata":{"labels":{"x":"y"}}}`, "Content-Type", "application/merge-patch+json")
	if u = a.object(t); a.code != 200 || field(t, u, "status", "replicas") != int64(2) || field(t, u, "spec", "replicas") == int64(9) || len(u.GetLabels()) > 0 {
		t.Errorf("%d %s", a.code, a.body)
	}
	var scale autoscalingv1.Scale
	st.request(rt, "GET", tabs+"/a/scale", "").into(t, &scale)
	if scale.Kind != "Scale" || scale.Spec.Replicas != 3 || scale.Status.Replicas != 2 || scale.Status.Selector != "a=b" {
		t.Errorf("scale is %+v", scale)
	}
	if a := st.request(rt, "PATCH", tabs+"/a/scale", `{"spec":{"replicas":5}}`, "Content-Type", "application/merge-patch+json"); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	u = st.request(rt, "GET", tabs+"/a", "").object(t)
	if field(t, u, "spec", "replicas") != int64(5) || u.GetGeneration() != 4 {
		t.Errorf("scaled to %v, generation %d", u.Object["spec"], u.GetGeneration())
	}
	// The other version is the same objects, with nothing said of their form.
	a = st.request(rt, "GET", "/apis/stable.example.com/v1beta1/namespaces/default/crontabs/a", "")
	if u = a.object(t); u.GetAPIVersion() != "stable.example.com/v1beta1" || field(t, u, "spec", "replicas") != int64(5) {
		t.Errorf("%d %s", a.code, a.body)
	}
	if w := a.header.Get("Warning"); !strings.Contains(w, "stable.example.com/v1beta1 CronTab is deprecated; use stable.example.com/v1 CronTab") {
		t.Errorf("warning is %q", w)
	}
	if a := st.request(rt, "DELETE", tabs+"/a", ""); a.code != 200 || a.status(t).Details.Kind != "crontabs" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(rt, "GET", tabs+"/a", ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestCustomApply(t *testing.T) {
	st := newSite(t)
	st.define(crontab)
	apply := func(manager, spec string, want int) *unstructured.Unstructured {
		t.Helper()
		a := st.request(st.admin(), "PATCH", tabs+"/a?fieldManager="+manager+"&fieldValidation=Strict", object("a", spec), "Content-Type", applyType)
		if a.code != want {
			t.Fatalf("%d instead of %d: %s", a.code, want, a.body)
		}
		if want >= 300 {
			return nil
		}
		return a.object(t)
	}
	apply("one", `{cronSpec: "* * * * *", keys: [{name: a, value: "1"}], tags: [p]}`, 201)
	u := apply("two", `{keys: [{name: b, value: "2"}], tags: [q]}`, 200)
	if keys := field(t, u, "spec", "keys").([]any); len(keys) != 2 {
		t.Errorf("keys are %v", keys)
	}
	if tags := field(t, u, "spec", "tags").([]any); len(tags) != 2 {
		t.Errorf("tags are %v", tags)
	}
	apply("two", `{cronSpec: "1 * * * *", keys: [{name: b, value: "2"}]}`, 409)
	u = apply("one", `{cronSpec: "* * * * *"}`, 200)
	if keys := field(t, u, "spec", "keys").([]any); len(keys) != 1 {
		t.Errorf("what one applied no more is still there: %v", keys)
	}
	apply("one", `{cronSpec: "* * * * *", nope: 1}`, 400)
	apply("one", "{cronSpec: '* * * * *', cronSpec: '* * * * *'}", 400)
	// In another version the same fields have the same owners.
	a := st.request(st.admin(), "PATCH", strings.Replace(tabs, "v1/", "v1beta1/", 1)+"/a?fieldManager=three", strings.Replace(object("a", `{cronSpec: "2 * * * *"}`), "/v1", "/v1beta1", 1), "Content-Type", applyType)
	if a.code != 409 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestCustomTableAndSelectors(t *testing.T) {
	st := newSite(t)
	st.define(crontab)
	st.post(tabs, object("a", `{cronSpec: "* * * * *", color: red}`), 201)
	st.post(tabs, object("b", `{cronSpec: "1 * * * *", color: green}`), 201)
	if a := st.request(st.admin(), "PATCH", tabs+"/a/status", `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "Content-Type", "application/merge-patch+json"); a.code != 200 {
		t.Fatal(a.code, string(a.body))
	}
	var table metav1.Table
	st.request(st.admin(), "GET", tabs+"?fieldSelector=spec.color%3Dred", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").into(t, &table)
	var names []string
	for _, c := range table.ColumnDefinitions {
		names = append(names, c.Name)
	}
	if !slices.Equal(names, []string{"Name", "Spec", "Replicas", "Ready"}) || len(table.Rows) != 1 {
		t.Fatalf("columns %v, %d rows", names, len(table.Rows))
	}
	if cells, _ := json.Marshal(table.Rows[0].Cells); string(cells) != `["a","* * * * *",1,"True"]` {
		t.Errorf("cells are %s", cells)
	}
	if a := st.request(st.admin(), "GET", tabs+"?fieldSelector=spec.cronSpec%3Dred", ""); a.code != 400 || !strings.Contains(string(a.body), "field label not supported: spec.cronSpec") {
		t.Errorf("%d %s", a.code, a.body)
	}
	var page unstructured.UnstructuredList
	a := st.request(st.admin(), "GET", tabs+"?limit=1", "")
	if err := page.UnmarshalJSON(a.body); err != nil || len(page.Items) != 1 || page.GetContinue() == "" {
		t.Fatalf("%v %s", err, a.body)
	}
	a = st.request(st.admin(), "GET", tabs+"?limit=1&continue="+page.GetContinue(), "")
	if err := page.UnmarshalJSON(a.body); err != nil || len(page.Items) != 1 || page.Items[0].GetName() != "b" {
		t.Errorf("%v %s", err, a.body)
	}
	if a := st.request(st.admin(), "DELETE", tabs+"?fieldSelector=spec.color%3Dgreen", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(st.admin(), "GET", tabs+"/a", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// What is served follows the definition: versions, schemas, defaults, watches.
func TestCustomFollowsDefinition(t *testing.T) {
	st := newSite(t)
	if a := st.request(st.admin(), "GET", tabs, ""); a.code != 404 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	st.define(crontab)
	st.post(tabs, object("a", `{cronSpec: "* * * * *"}`), 201)
	c := st.Local(apitest.Admin)
	gvr := custom.Definitions.GroupVersion().WithResource("crontabs")
	gvr.Group = "stable.example.com"
	w, err := c.Watch(t.Context(), gvr, "default", metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if e := <-w.ResultChan(); e.Object.(api.Object).GetName() != "a" {
		t.Errorf("watch began with %v", e)
	}
	if a := st.request(st.admin(), "PATCH", crds+"/crontabs.stable.example.com", `[
		{"op":"replace","path":"/spec/versions/1/served","value":false},
		{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/image","value":{"type":"string","default":"busybox"}}]`,
		"Content-Type", "application/json-patch+json"); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if a := st.request(st.admin(), "GET", strings.Replace(tabs, "v1/", "v1beta1/", 1), ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if u := st.request(st.admin(), "GET", tabs+"/a", "").object(t); field(t, u, "spec", "image") != "busybox" {
		t.Errorf("the new default is not shown: %v", u.Object)
	}
	if e, ok := <-w.ResultChan(); ok {
		t.Errorf("the watch of the old form goes on: %v", e)
	}
	// Being deleted, it takes no new objects.
	if a := st.request(st.admin(), "DELETE", crds+"/crontabs.stable.example.com", ""); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	d := must(c.Get(t.Context(), custom.Definitions, "", "crontabs.stable.example.com", metav1.GetOptions{}))(t).(*custom.Definition)
	if !custom.IsTrue(d, custom.Terminating) || !slices.Contains(d.Finalizers, custom.Finalizer) {
		t.Errorf("being deleted it is %+v", d.Status)
	}
	if a := st.post(tabs, object("b", `{cronSpec: "* * * * *"}`), 403); !strings.Contains(string(a.body), "create not allowed while custom resource definition is terminating") {
		t.Errorf("%s", a.body)
	}
}

func TestCustomDiscovery(t *testing.T) {
	st := newSite(t)
	plain := st.request(st.admin(), "GET", "/apis", "")
	st.define(crontab)
	d := st.clientset("").Discovery()
	groups := must(d.ServerGroups())(t)
	i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == "stable.example.com" })
	if i < 0 || groups.Groups[i].PreferredVersion.Version != "v1" || len(groups.Groups[i].Versions) != 2 {
		t.Fatalf("groups are %+v", groups.Groups)
	}
	resources := must(d.ServerResourcesForGroupVersion("stable.example.com/v1"))(t)
	var names []string
	for _, r := range resources.APIResources {
		names = append(names, r.Name)
	}
	if !slices.Equal(names, []string{"crontabs", "crontabs/scale", "crontabs/status"}) || !slices.Equal(resources.APIResources[0].ShortNames, []string{"ct"}) {
		t.Errorf("resources are %+v", resources.APIResources)
	}
	if a := st.request(st.admin(), "GET", "/apis", "", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"); !strings.Contains(string(a.body), `"stable.example.com"`) {
		t.Errorf("%s", a.body)
	}
	c := st.Local(apitest.Admin)
	o := must(c.Get(t.Context(), custom.Definitions, "", "crontabs.stable.example.com", metav1.GetOptions{}))(t).DeepCopyObject().(*custom.Definition)
	must(o, c.Delete(t.Context(), custom.Definitions, "", o.Name, metav1.DeleteOptions{}))(t)
	o = must(c.Get(t.Context(), custom.Definitions, "", o.Name, metav1.GetOptions{}))(t).DeepCopyObject().(*custom.Definition)
	o.Finalizers = nil
	must(c.Update(t.Context(), custom.Definitions, "", o, metav1.UpdateOptions{}, "status"))(t)
	if a := st.request(st.admin(), "GET", "/apis", ""); string(a.body) != string(plain.body) {
		t.Errorf("after the definition is gone, there is %s", a.body)
	}
	if a := st.request(st.admin(), "GET", tabs, ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// The documents have the custom resources in them, in both their forms, and
// lose them again.
func TestCustomOpenAPI(t *testing.T) {
	st := newSite(t)
	plain := st.request(st.admin(), "GET", "/openapi/v2", "")
	st.define(crontab)
	var v2 struct {
		Definitions, Paths map[string]any
	}
	st.request(st.admin(), "GET", "/openapi/v2", "").into(t, &v2)
	if v2.Definitions["com.example.stable.v1.CronTab"] == nil || v2.Definitions["com.example.stable.v1beta1.CronTabList"] == nil || v2.Definitions["io.k8s.api.core.v1.Pod"] == nil {
		t.Errorf("version 2 has %d definitions", len(v2.Definitions))
	}
	if v2.Paths["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs/{name}/scale"] == nil || v2.Paths["/api/v1/pods"] == nil {
		t.Errorf("version 2 has %d paths", len(v2.Paths))
	}
	document, err := st.clientset("").Discovery().OpenAPISchema()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range document.Definitions.AdditionalProperties {
		names = append(names, d.Name)
		if d.Name == "com.example.stable.v1.CronTab" {
			spec := d.Value.Properties.AdditionalProperties[slices.IndexFunc(d.Value.Properties.AdditionalProperties, func(p *openapi_v2.NamedSchema) bool { return p.Name == "spec" })]
			if !slices.Equal(spec.Value.Type.Value, []string{"object"}) || !slices.Equal(spec.Value.Required, []string{"cronSpec"}) {
				t.Errorf("in protobuf, spec is %v", spec)
			}
		}
	}
	if !slices.Contains(names, "com.example.stable.v1.CronTab") || !slices.Contains(names, "io.k8s.api.core.v1.Pod") {
		t.Errorf("in protobuf, version 2 has %d definitions", len(names))
	}
	if _, err := proto.NewOpenAPIData(document); err != nil {
		t.Error(err)
	}
	var v3 struct {
		Components struct{ Schemas map[string]any }
		Paths      map[string]any
	}
	st.request(st.admin(), "GET", "/openapi/v3/apis/stable.example.com/v1", "").into(t, &v3)
	for _, name := range []string{"com.example.stable.v1.CronTab", "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "io.k8s.api.autoscaling.v1.ScaleSpec"} {
		if v3.Components.Schemas[name] == nil {
			t.Errorf("version 3 has no %s", name)
		}
	}
	text := st.request(st.admin(), "GET", "/openapi/v3/apis/stable.example.com/v1", "").body
	for _, ref := range regexp.MustCompile(`"#/components/schemas/([^"]+)"`).FindAllSubmatch(text, -1) {
		if v3.Components.Schemas[string(ref[1])] == nil {
			t.Errorf("version 3 speaks of %s and does not have it", ref[1])
		}
	}
	if a := st.request(st.admin(), "GET", "/openapi/v3/apis/stable.example.com/v1", "", "Accept", "application/com.github.proto-openapi.spec.v3.v1.0+protobuf,application/json"); a.header.Get("Content-Type") != "application/json" {
		t.Errorf("answered with %s", a.header.Get("Content-Type"))
	}
	if a := st.request(st.admin(), "PATCH", crds+"/crontabs.stable.example.com", `[{"op":"replace","path":"/spec/versions/1/served","value":false}]`, "Content-Type", "application/json-patch+json"); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if a := st.request(st.admin(), "GET", "/openapi/v3/apis/stable.example.com/v1beta1", ""); a.code != 404 {
		t.Errorf("%d", a.code)
	}
	v2.Definitions = nil
	st.request(st.admin(), "GET", "/openapi/v2", "").into(t, &v2)
	if v2.Definitions["com.example.stable.v1beta1.CronTab"] != nil || v2.Definitions["com.example.stable.v1.CronTab"] == nil {
		t.Error("the version that is not served is still in version 2, or the other not")
	}
	if plain.header.Get("ETag") == st.request(st.admin(), "GET", "/openapi/v2", "").header.Get("ETag") {
		t.Error("the ETag is the same")
	}
}
