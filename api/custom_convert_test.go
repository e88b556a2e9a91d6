package api_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api/apitest"
)

// hostports is a definition whose versions say the same in one field and in two.
const hostports = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ends.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: ends, singular: end, kind: End}
  conversion:
    strategy: Webhook
    webhook: {conversionReviewVersions: [v1], clientConfig: {url: "%s", caBundle: %s}}
  versions:
  - name: v1
    served: true
    storage: true
    selectableFields: [{jsonPath: .hostPort}]
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, properties: {hostPort: {type: string}, more: {type: string, default: less}, status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
  - name: v2
    served: true
    storage: false
    selectableFields: [{jsonPath: .host}, {jsonPath: .port}]
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, properties: {host: {type: string}, port: {type: string}, more: {type: string}, status: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
`

// converting serves conversions, and what it does instead.
type converting struct {
	*httptest.Server
	calls  atomic.Int64
	spoils atomic.Pointer[func(objects []map[string]any) string]
}

func newConverting(t *testing.T) *converting {
	c := &converting{}
	c.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.calls.Add(1)
		var in struct {
			Request struct {
				UID               string
				DesiredAPIVersion string
				Objects           []map[string]any
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		for _, o := range in.Request.Objects {
			if o["more"] == nil && strings.HasSuffix(fmt.Sprint(o["apiVersion"]), "/v1") {
				t.Errorf("sent without its version's default: %v", o)
			}
			o["apiVersion"], o["unknown"] = in.Request.DesiredAPIVersion, "x"
			if both, ok := o["hostPort"].(string); ok {
				host, port, _ := strings.Cut(both, ":")
				o["host"], o["port"] = host, port
				delete(o, "hostPort")
			} else if host, ok := o["host"].(string); ok {
				o["hostPort"] = fmt.Sprint(host, ":", o["port"])
				delete(o, "host")
				delete(o, "port")
			}
		}
		result := map[string]any{"status": "Success"}
		if f := c.spoils.Load(); f != nil {
			if why := (*f)(in.Request.Objects); why != "" {
				result = map[string]any{"status": "Failure", "message": why}
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": map[string]any{
			"uid": in.Request.UID, "convertedObjects": in.Request.Objects, "result": result,
		}})
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *converting) definition() string {
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})
	return fmt.Sprintf(hostports, c.URL, base64.StdEncoding.EncodeToString(ca))
}

const ends1, ends2 = "/apis/stable.example.com/v1/namespaces/default/ends", "/apis/stable.example.com/v2/namespaces/default/ends"

func end(version, name, fields string) string {
	return fmt.Sprintf("apiVersion: stable.example.com/%s\nkind: End\nmetadata: {name: %s, labels: {of: %s}}\n%s\n", version, name, name, fields)
}

func TestConversion(t *testing.T) {
	by := newConverting(t)
	st := newSite(t)
	d := st.define(by.definition())
	rt := st.admin()
	get := func(path string) *unstructured.Unstructured {
		t.Helper()
		a := st.request(rt, "GET", path, "")
		if a.code != 200 {
			t.Fatalf("%s: %d %s", path, a.code, a.body)
		}
		return a.object(t)
	}
	// What is created in one version is read in both.
	st.post(ends1, end("v1", "one", `hostPort: "h:1"`), 201)
	if n := by.calls.Load(); n != 0 {
		t.Errorf("%d conversions where none is needed", n)
	}
	st.post(ends2, end("v2", "two", "host: h\nport: \"2\""), 201)
	for _, u := range []*unstructured.Unstructured{get(ends2 + "/one"), get(ends2 + "/two")} {
		if field(t, u, "host") != "h" || field(t, u, "hostPort") != nil || field(t, u, "unknown") != nil || u.GetAPIVersion() != "stable.example.com/v2" || u.GetUID() == "" || u.GetLabels()["of"] != u.GetName() {
			t.Errorf("v2 is %v", u.Object)
		}
	}
	if u := get(ends1 + "/two"); field(t, u, "hostPort") != "h:2" {
		t.Errorf("v1 is %v", u.Object)
	}
	// An update keeps what it does not speak of, and managed fields are of each version.
	a := st.request(rt, "PATCH", ends2+"/one?fieldManager=m", `{"port":"9"}`, "Content-Type", "application/merge-patch+json")
	if u := a.object(t); a.code != 200 || field(t, u, "host") != "h" || field(t, u, "port") != "9" {
		t.Errorf("%d %s", a.code, a.body)
	}
	a = st.request(rt, "PATCH", ends2+"/two?fieldManager=a", "apiVersion: stable.example.com/v2\nkind: End\nmetadata: {name: two}\nport: \"3\"\n", "Content-Type", "application/apply-patch+yaml")
	if a.code != 409 {
		t.Errorf("the port is another's: %d %s", a.code, a.body)
	}
	a = st.request(rt, "PATCH", ends2+"/two?fieldManager=a&force=true", "apiVersion: stable.example.com/v2\nkind: End\nmetadata: {name: two}\nport: \"3\"\n", "Content-Type", "application/apply-patch+yaml")
	if a.code != 200 || get(ends1 + "/two").Object["hostPort"] != "h:3" {
		t.Errorf("%d %s", a.code, a.body)
	}
	// A list of what is stored in two versions.
	changed := strings.Replace(strings.Replace(by.definition(), "storage: true", "storage: xx", 1), "storage: false", "storage: true", 1)
	changed = strings.Replace(changed, "storage: xx", "storage: false", 1)
	if a := st.request(rt, "PATCH", crds+"/"+d.Name+"?fieldManager=c&force=true", changed, "Content-Type", "application/apply-patch+yaml"); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	st.post(ends2, end("v2", "zwei", "host: z\nport: \"4\""), 201)
	for path, want := range map[string][]string{ends1: {"h:9", "h:3", "z:4"}, ends2: {"h", "h", "z"}} {
		by.calls.Store(0)
		var list unstructured.UnstructuredList
		a := st.request(rt, "GET", path, "")
		if err := list.UnmarshalJSON(a.body); err != nil {
			t.Fatalf("%v: %s", err, a.body)
		}
		var got []string
		for _, u := range list.Items {
			got = append(got, fmt.Sprint(u.Object[map[string]string{ends1: "hostPort", ends2: "host"}[path]]))
		}
		if !slices.Equal(got, want) || by.calls.Load() != 1 {
			t.Errorf("%s: %v by %d calls", path, got, by.calls.Load())
		}
	}
	// Pages, and fields of the version that is asked for.
	var page unstructured.UnstructuredList
	if err := page.UnmarshalJSON(st.request(rt, "GET", ends2+"?limit=1", "").body); err != nil || len(page.Items) != 1 || *page.GetRemainingItemCount() != 2 {
		t.Errorf("%v %+v", err, page)
	}
	if err := page.UnmarshalJSON(st.request(rt, "GET", ends2+"?fieldSelector=host%3Dh,port%3D3", "").body); err != nil || len(page.Items) != 1 || page.Items[0].GetName() != "two" {
		t.Errorf("%v %+v", err, page)
	}
	if a := st.request(rt, "GET", ends1+"?fieldSelector=host%3Dh", ""); a.code != 400 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(rt, "DELETE", ends1+"?fieldSelector=hostPort%3Dh:3", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(rt, "GET", ends2+"/two", ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
	// An answer that is none.
	for why, f := range map[string]func([]map[string]any) string{
		"conversion webhook for stable.example.com/v1, Kind=End failed: cannot": func([]map[string]any) string { return "cannot" },
		"metadata.name: \"other\" instead of \"one\"": func(all []map[string]any) string {
			all[0]["metadata"].(map[string]any)["name"] = "other"
			return ""
		},
		"it is not of stable.example.com/v2": func(all []map[string]any) string { all[0]["apiVersion"] = "stable.example.com/v1"; return "" },
	} {
		by.spoils.Store(&f)
		if a := st.request(rt, "GET", ends2+"/one", ""); a.code != 500 || !strings.Contains(a.status(t).Message, why) {
			t.Errorf("%d %s", a.code, a.body)
		}
	}
	by.spoils.Store(nil)
	if a := st.request(rt, "PUT", ends2+"/one/status", `{"apiVersion":"stable.example.com/v2","kind":"End","metadata":{"name":"one"},"status":{"a":"b"}}`); a.code != 200 || field(t, a.object(t), "status", "a") != "b" || field(t, a.object(t), "host") != "h" {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestConversionWatch is of what watches see, and of what is asked for them.
func TestConversionWatch(t *testing.T) {
	by := newConverting(t)
	st := newSite(t)
	st.define(by.definition())
	st.post(ends1, end("v1", "was", `hostPort: "h:1"`), 201)
	c := st.Local(apitest.Admin)

	gvr := schema.GroupVersionResource{Group: "stable.example.com", Version: "v2", Resource: "ends"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var all []watch.Interface
	for range 3 {
		w, err := c.Watch(ctx, gvr, "default", metav1.ListOptions{FieldSelector: "host=h"})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, w)
	}
	st.post(ends1, end("v1", "new", `hostPort: "h:2"`), 201)
	st.post(ends1, end("v1", "other", `hostPort: "o:3"`), 201)
	if a := st.request(st.admin(), "PATCH", ends1+"/new", `{"hostPort":"x:2"}`, "Content-Type", "application/merge-patch+json"); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	for _, w := range all {
		for _, want := range []string{"ADDED was h 1", "ADDED new h 2", "DELETED new h 2"} {
			e := <-w.ResultChan()
			u, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				t.Fatalf("%v", e)
			}
			if got := fmt.Sprint(e.Type, " ", u.GetName(), " ", u.Object["host"], " ", u.Object["port"]); got != want || u.GetAPIVersion() != "stable.example.com/v2" {
				t.Errorf("%s instead of %s", got, want)
			}
		}
	}
	// Each version of each object at most once for all watches at once, and twice
	// where they come together.
	if n := by.calls.Load(); n > 12 {
		t.Errorf("%d conversions", n)
	}
}
