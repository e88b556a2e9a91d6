package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

const cms = "/api/v1/namespaces/default/configmaps"

// What is wrong is refused with Kubernetes' words.
func TestRefusals(t *testing.T) {
	st := newSite(t)
	admin, anybody, node := st.admin(), st.transport(""), st.transport("system:node:n1", "system:nodes")
	seed := st.request(admin, "POST", cms, `{"metadata":{"name":"seed"},"data":{"a":"b"}}`)
	if seed.code != 201 {
		t.Fatalf("%d %s", seed.code, seed.body)
	}
	big := `{"metadata":{"name":"big"},"data":{"a":"` + strings.Repeat("x", 2<<20) + `"}}`
	huge := `{"metadata":{"name":"big"},"data":{"a":"` + strings.Repeat("x", 4<<20) + `"}}`
	for name, tc := range map[string]struct {
		rt      http.RoundTripper
		method  string
		path    string
		body    string
		header  []string
		code    int
		reason  metav1.StatusReason
		message string // contained
	}{
		"anonymous":                              {anybody, "GET", "/api/v1/namespaces/y/pods", "", nil, 403, "Forbidden", `pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "y"`},
		"anonymous at cluster":                   {anybody, "GET", "/api/v1/nodes", "", nil, 403, "Forbidden", `nodes is forbidden: User "system:anonymous" cannot list resource "nodes" in API group "" at the cluster scope`},
		"anonymous path":                         {anybody, "GET", "/apis", "", nil, 403, "Forbidden", `forbidden: User "system:anonymous" cannot get path "/apis"`},
		"wrong token":                            {anybody, "GET", "/version", "", []string{"Authorization", "Bearer nonsense"}, 401, "Unauthorized", "Unauthorized"},
		"basic":                                  {anybody, "GET", "/version", "", []string{"Authorization", "Basic Zm9vOmJhcg=="}, 401, "Unauthorized", "Unauthorized"},
		"node may not":                           {node, "DELETE", "/api/v1/namespaces/default", "", nil, 403, "Forbidden", `namespaces "default" is forbidden: User "system:node:n1" cannot delete resource "namespaces" in API group "" in the namespace "default"`},
		"impersonation":                          {node, "GET", cms, "", []string{"Impersonate-User", "admin"}, 403, "Forbidden", `users "admin" is forbidden: User "system:node:n1" cannot impersonate resource "users"`},
		"no such resource":                       {admin, "GET", "/api/v1/things", "", nil, 404, "NotFound", "the server could not find the requested resource"},
		"no such object":                         {admin, "GET", cms + "/none", "", nil, 404, "NotFound", `configmaps "none" not found`},
		"no such namespace":                      {admin, "POST", "/api/v1/namespaces/none/configmaps", `{"metadata":{"name":"x"}}`, nil, 404, "NotFound", `namespaces "none" not found`},
		"exists":                                 {admin, "POST", cms, `{"metadata":{"name":"seed"}}`, nil, 409, "AlreadyExists", `configmaps "seed" already exists`},
		"no name":                                {admin, "POST", cms, `{}`, nil, 422, "Invalid", "name or generateName is required"},
		"bad name":                               {admin, "POST", cms, `{"metadata":{"name":"A_B"}}`, nil, 422, "Invalid", "metadata.name: Invalid value"},
		"other namespace":                        {admin, "POST", cms, `{"metadata":{"name":"x","namespace":"other"}}`, nil, 400, "BadRequest", "the namespace of the provided object does not match the namespace sent on the request"},
		"other name":                             {admin, "PUT", cms + "/seed", `{"metadata":{"name":"x"}}`, nil, 400, "BadRequest", "the name of the object (x) does not match the name on the URL (seed)"},
		"version at creation":                    {admin, "POST", cms, `{"metadata":{"name":"x","resourceVersion":"5"}}`, nil, 400, "BadRequest", "resourceVersion should not be set on objects to be created"},
		"other kind":                             {admin, "POST", cms, `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"x"}}`, nil, 400, "BadRequest", "cannot be handled as a ConfigMap"},
		"other version":                          {admin, "POST", cms, `{"kind":"ConfigMap","apiVersion":"v2","metadata":{"name":"x"}}`, nil, 400, "BadRequest", "ConfigMap"},
		"not JSON":                               {admin, "POST", cms, `{`, nil, 400, "BadRequest", ""},
		"strange media":                          {admin, "POST", cms, `<a/>`, []string{"Content-Type", "text/xml"}, 415, "UnsupportedMediaType", "application/json"},
		"strange accept":                         {admin, "GET", cms, ``, []string{"Accept", "text/xml"}, 406, "NotAcceptable", "only the following media types are accepted"},
		"strange patch":                          {admin, "PATCH", cms + "/seed", `{}`, []string{"Content-Type", "application/json"}, 415, "UnsupportedMediaType", "application/merge-patch+json"},
		"patch test fails":                       {admin, "PATCH", cms + "/seed", `[{"op":"test","path":"/data/a","value":"x"}]`, []string{"Content-Type", "application/json-patch+json"}, 422, "Invalid", ""},
		"patch changes name":                     {admin, "PATCH", cms + "/seed", `{"metadata":{"name":"other"}}`, []string{"Content-Type", "application/merge-patch+json"}, 400, "BadRequest", "name"},
		"patch of old version":                   {admin, "PATCH", cms + "/seed", `{"metadata":{"resourceVersion":"1"}}`, []string{"Content-Type", "application/merge-patch+json"}, 409, "Conflict", "the object has been modified"},
		"apply without manager":                  {admin, "PATCH", cms + "/seed", `{"apiVersion":"v1","kind":"ConfigMap"}`, []string{"Content-Type", "application/apply-patch+yaml"}, 422, "Invalid", "fieldManager"},
		"strict":                                 {admin, "POST", cms + "?fieldValidation=Strict", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"dat":{}}`, nil, 400, "BadRequest", `strict decoding error: unknown field "dat"`},
		"strict duplicate":                       {admin, "POST", cms + "?fieldValidation=Strict", `{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{},"data":{}}`, nil, 400, "BadRequest", `duplicate field "data"`},
		"strange validation":                     {admin, "POST", cms + "?fieldValidation=Often", `{"metadata":{"name":"x"}}`, nil, 422, "Invalid", "fieldValidation"},
		"strange dry run":                        {admin, "POST", cms + "?dryRun=Some", `{"metadata":{"name":"x"}}`, nil, 422, "Invalid", "dryRun"},
		"large body":                             {admin, "POST", cms, huge, nil, 413, "RequestEntityTooLarge", "limit is 3145728"},
		"large object":                           {admin, "POST", cms, big, nil, 422, "Invalid", "may not be more than 1048576 bytes"},
		"large object of a kind without a limit": {admin, "POST", "/apis/apps/v1/namespaces/default/deployments", bigDeployment(t), nil, 413, "RequestEntityTooLarge", "an object may have at most 1572864"},
		"post to an object":                      {admin, "POST", cms + "/seed", `{}`, nil, 405, "MethodNotAllowed", "the server does not allow this method on the requested resource"},
		"put to a collection":                    {admin, "PUT", cms, `{}`, nil, 405, "MethodNotAllowed", "the server does not allow this method on the requested resource"},
		"bad selector":                           {admin, "GET", cms + "?labelSelector=a+in", "", nil, 400, "BadRequest", ""},
		"bad field":                              {admin, "GET", cms + "?fieldSelector=data.a%3Db", "", nil, 400, "BadRequest", "field label not supported: data.a"},
		"bad version":                            {admin, "GET", cms + "?resourceVersion=x", "", nil, 422, "Invalid", "resourceVersion"},
		"bad match":                              {admin, "GET", cms + "?resourceVersionMatch=Exact", "", nil, 422, "Invalid", "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"bad continue":                           {admin, "GET", cms + "?continue=x", "", nil, 400, "BadRequest", "continue key is not valid"},
		"initial without match":                  {admin, "GET", cms + "?watch=1&sendInitialEvents=true", "", nil, 422, "Invalid", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"},
		"delete with wrong uid":                  {admin, "DELETE", cms + "/seed", `{"preconditions":{"uid":"x"}}`, nil, 409, "Conflict", "Precondition failed: UID in precondition: x"},
		"two deletion policies":                  {admin, "DELETE", cms + "/seed", `{"orphanDependents":true,"propagationPolicy":"Orphan"}`, nil, 422, "Invalid", "propagationPolicy"},
		"immortal namespace":                     {admin, "DELETE", "/api/v1/namespaces/kube-system", "", nil, 403, "Forbidden", `namespaces "kube-system" is forbidden: this namespace may not be deleted`},
		"review is not listed":                   {admin, "GET", "/apis/authentication.k8s.io/v1/tokenreviews", "", nil, 405, "MethodNotAllowed", ""},
		"strange includeObject":                  {admin, "GET", cms + "?includeObject=All", "", []string{"Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"}, 400, "BadRequest", "includeObject"},
		"no status here":                         {admin, "GET", cms + "/seed/status", "", nil, 404, "NotFound", ""},
		"exec without a command":                 {admin, "POST", "/api/v1/namespaces/default/pods/none/exec", "", nil, 404, "NotFound", `pods "none" not found`},
	} {
		t.Run(name, func(t *testing.T) {
			a := st.request(tc.rt, tc.method, tc.path, tc.body, tc.header...)
			s := a.status(t)
			if a.code != tc.code || int(s.Code) != tc.code || s.Reason != tc.reason || !strings.Contains(s.Message, tc.message) || s.Status != "Failure" || s.Kind != "Status" {
				t.Errorf("%d %s", a.code, a.body)
			}
		})
	}
	if got := st.request(admin, "GET", cms+"/seed", ""); string(got.body) != string(seed.body) {
		t.Errorf("a refused request changed something:\n%s\n%s", seed.body, got.body)
	}
}

// Requests that are accepted, with a word of warning or another form of answer.
func TestForms(t *testing.T) {
	st := newSite(t)
	rt := st.admin()
	a := st.request(rt, "POST", cms, "metadata:\n  name: why\ndat: {}\ndata:\n  a: b\n", "Content-Type", "application/yaml", "Accept", "application/yaml")
	if a.code != 201 || !strings.Contains(string(a.body), "kind: ConfigMap") || a.header.Get("Warning") != `299 - "unknown field \"dat\""` {
		t.Errorf("%d %v %s", a.code, a.header, a.body)
	}
	if a := st.request(rt, "POST", cms+"?fieldValidation=Ignore", `{"metadata":{"name":"z"},"dat":1}`); a.code != 201 || a.header.Get("Warning") != "" {
		t.Errorf("%d %v %s", a.code, a.header, a.body)
	}
	var cm corev1.ConfigMap
	a = st.request(rt, "POST", cms+"?dryRun=All", `{"metadata":{"generateName":"dry-"}}`)
	a.into(t, &cm)
	if a.code != 201 || len(cm.Name) != len("dry-")+5 || cm.ResourceVersion != "" || cm.UID == "" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(rt, "GET", cms+"/"+cm.Name, ""); a.code != 404 {
		t.Errorf("a dry run wrote: %s", a.body)
	}

	var table metav1.Table
	a = st.request(rt, "GET", cms+"?includeObject=Object", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
	a.into(t, &table)
	if table.Kind != "Table" || len(table.Rows) != 2 || table.ColumnDefinitions[0].Name != "Name" || table.Rows[0].Cells[0] != "why" || !strings.Contains(string(table.Rows[0].Object.Raw), `"data"`) {
		t.Errorf("%s", a.body)
	}
	var list metav1.PartialObjectMetadataList
	a = st.request(rt, "GET", cms, "", "Accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")
	a.into(t, &list)
	if list.Kind != "PartialObjectMetadataList" || len(list.Items) != 2 || list.Items[0].Kind != "PartialObjectMetadata" || list.Items[0].UID == "" {
		t.Errorf("%s", a.body)
	}
	var whole map[string]any
	a = st.request(rt, "GET", cms, "")
	a.into(t, &whole)
	item := whole["items"].([]any)[0].(map[string]any)
	if whole["kind"] != "ConfigMapList" || item["kind"] != nil || item["data"] == nil {
		t.Errorf("%s", a.body)
	}
	var del metav1.Status
	a = st.request(rt, "DELETE", cms+"/why", "")
	a.into(t, &del)
	if del.Status != "Success" || del.Details.Kind != "configmaps" || del.Details.Name != "why" || del.Details.UID == "" {
		t.Errorf("%s", a.body)
	}
	big := fmt.Sprintf(`{"metadata":{"name":"wide"},"data":{"a":%q}}`, strings.Repeat("wide ", 100<<10))
	st.request(rt, "POST", cms, big)
	raw := st.transport("admin", "system:masters")
	raw.DisableCompression = true
	if a := st.request(raw, "GET", cms, "", "Accept-Encoding", "gzip"); a.header.Get("Content-Encoding") != "gzip" || len(a.body) > 64<<10 {
		t.Errorf("not compressed: %v, %d bytes", a.header, len(a.body))
	}
}

// A list in pages is one state, whatever happens between; when that state is
// forgotten, the rest can still be had.
//
// conformance: [sig-api-machinery] Servers with support for API chunking should return chunks of results for list calls [Conformance]
// conformance: [sig-api-machinery] Servers with support for API chunking should support continue listing from the last key if the original version has been compacted away, though the list is inconsistent [Conformance] [Slow]
func TestPages(t *testing.T) {
	st := newSite(t)
	rt := st.admin()
	for i := range 10 {
		if a := st.request(rt, "POST", cms, fmt.Sprintf(`{"metadata":{"name":"p%d","labels":{"odd":"%v"}}}`, i, i%2 == 1)); a.code != 201 {
			t.Fatalf("%s", a.body)
		}
	}
	page := func(query string) (corev1.ConfigMapList, answer) {
		var l corev1.ConfigMapList
		a := st.request(rt, "GET", cms+query, "")
		a.into(t, &l)
		return l, a
	}
	first, _ := page("?limit=4")
	if len(first.Items) != 4 || first.Continue == "" || first.RemainingItemCount == nil || *first.RemainingItemCount != 6 {
		t.Fatalf("%+v", first.ListMeta)
	}
	st.request(rt, "DELETE", cms+"/p5", "")
	second, _ := page("?limit=4&continue=" + first.Continue)
	if len(second.Items) != 4 || second.Items[1].Name != "p5" || second.ResourceVersion != first.ResourceVersion || *second.RemainingItemCount != 2 {
		t.Errorf("%+v", second)
	}
	last, _ := page("?limit=4&continue=" + second.Continue)
	if len(last.Items) != 2 || last.Continue != "" || last.RemainingItemCount != nil {
		t.Errorf("%+v", last)
	}
	if odd, _ := page("?limit=2&labelSelector=odd%3Dtrue"); len(odd.Items) != 2 || odd.Items[1].Name != "p3" || odd.Continue == "" || odd.RemainingItemCount != nil {
		t.Errorf("%+v", odd)
	}
	if old, _ := page("?resourceVersionMatch=Exact&resourceVersion=" + first.ResourceVersion); len(old.Items) != 10 || old.ResourceVersion != first.ResourceVersion {
		t.Errorf("exact: %d items at %s", len(old.Items), old.ResourceVersion)
	}
	st.store.Compact()
	_, gone := page("?limit=4&continue=" + first.Continue)
	s := gone.status(t)
	if gone.code != 410 || s.Reason != metav1.StatusReasonExpired || s.Continue == "" {
		t.Fatalf("%s", gone.body)
	}
	rest, _ := page("?continue=" + s.Continue)
	if len(rest.Items) != 5 || rest.Items[0].Name != "p4" || rest.Items[1].Name != "p6" {
		t.Errorf("%+v", rest)
	}
	if _, a := page("?resourceVersionMatch=Exact&resourceVersion=" + first.ResourceVersion); a.code != 410 {
		t.Errorf("%s", a.body)
	}
	if _, a := page("?resourceVersion=100000"); a.code != 504 || !strings.Contains(string(a.body), "Too large resource version") {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// Only a read that asks for any version does without asking the leader.
func TestLinearizableReads(t *testing.T) {
	st := newSite(t)
	rt := st.admin()
	st.store.FailSync(api.ErrNoLeader)
	for path, code := range map[string]int{
		cms: 503, cms + "?resourceVersion=0": 200, "/api/v1/namespaces/default": 503, "/api/v1/namespaces/default?resourceVersion=0": 200,
	} {
		a := st.request(rt, "GET", path, "")
		if a.code != code {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
		// The storage has waited: no client shall do so again by itself.
		if code == 503 && a.header.Get("Retry-After") != "" {
			t.Errorf("%s: clients are told to wait once more: %v", path, a.header)
		}
	}
	st.store.FailSync(nil)
	why := "this may be old"
	old := newSite(t, func(c *api.Config) {
		c.Stale = func(context.Context) (string, error) {
			if why == "" {
				return "", api.ErrNoLeader
			}
			return why, nil
		}
	})
	for path, warned := range map[string]bool{cms: false, cms + "?resourceVersion=0": true, "/api/v1/namespaces/default": false, "/api/v1/namespaces/default?resourceVersion=0": true} {
		if a := old.request(old.admin(), "GET", path, ""); a.code != 200 || (a.header.Get("Warning") == `299 - "this may be old"`) != warned {
			t.Errorf("%s: %d, warning %q", path, a.code, a.header.Get("Warning"))
		}
	}
	why = ""
	if a := old.request(old.admin(), "GET", cms+"?resourceVersion=0", ""); a.code != 503 || !strings.Contains(a.status(t).Message, "conclave recover") {
		t.Errorf("a read that is refused: %d %s", a.code, a.body)
	}
	st.store.FailWrites(func(api.Write) error { return api.ErrUnknownOutcome })
	if a := st.request(rt, "POST", cms, `{"metadata":{"name":"x"}}`); a.code != 504 || a.status(t).Reason != metav1.StatusReasonTimeout {
		t.Errorf("%d %s", a.code, a.body)
	}
	st.store.FailWrites(func(api.Write) error { return api.ErrDiskFull })
	if a := st.request(rt, "POST", cms, `{"metadata":{"name":"x"}}`); a.code != 507 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestDiscovery(t *testing.T) {
	st := newSite(t)
	cs := st.clientset("application/json")
	groups, lists, err := cs.Discovery().ServerGroupsAndResources()
	if err != nil || len(groups) < 8 {
		t.Fatal(len(groups), err)
	}
	found := map[string]string{}
	for _, l := range lists {
		for _, r := range l.APIResources {
			found[l.GroupVersion+" "+r.Name] = r.Kind
		}
	}
	for name, kind := range map[string]string{
		"v1 pods": "Pod", "v1 pods/log": "Pod", "v1 pods/eviction": "Eviction", "apps/v1 deployments/scale": "Scale", "v1 namespaces/finalize": "Namespace",
		"v1 bindings": "Binding", "authorization.k8s.io/v1 selfsubjectaccessreviews": "SelfSubjectAccessReview", "v1 serviceaccounts/token": "TokenRequest",
	} {
		if found[name] != kind {
			t.Errorf("%s is %q, want %q", name, found[name], kind)
		}
	}
	rt := st.admin()
	const v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	a := st.request(rt, "GET", "/apis", "", "Accept", v2+",application/json")
	if a.header.Get("Content-Type") != v2 || a.header.Get("ETag") == "" {
		t.Errorf("%v", a.header)
	}
	if b := st.request(rt, "GET", "/apis", "", "Accept", v2, "If-None-Match", a.header.Get("ETag")); b.code != 304 {
		t.Errorf("%d", b.code)
	}
	var old metav1.APIResourceList
	st.request(rt, "GET", "/apis/apps/v1", "", "Accept", "application/json").into(t, &old)
	if old.Kind != "APIResourceList" || len(old.APIResources) < 2 {
		t.Errorf("%+v", old)
	}
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ok", "/livez": "ok", "/readyz?verbose": "[+]ping ok\nreadyz check passed\n",
	} {
		if a := st.request(st.transport(""), "GET", path, ""); string(a.body) != want || a.code != 200 {
			t.Errorf("%s: %d %q", path, a.code, a.body)
		}
	}
	// Of single checks, and of all else, nobody is told without a name.
	for path, code := range map[string]int{"/readyz/ping": 403, "/api": 403, "/metrics": 403} {
		if a := st.request(st.transport(""), "GET", path, ""); a.code != code {
			t.Errorf("%s: %d %q", path, a.code, a.body)
		}
	}
	if a := st.request(rt, "GET", "/readyz/ping", ""); string(a.body) != "ok" {
		t.Errorf("%d %q", a.code, a.body)
	}
	v := must(cs.Discovery().ServerVersion())(t)
	if v.GitVersion != "v1.37.0" {
		t.Errorf("%+v", v)
	}
}

func TestNotReady(t *testing.T) {
	st := newSite(t, func(c *api.Config) { c.Ready = func() error { return api.ErrNoLeader } })
	a := st.request(st.transport(""), "GET", "/readyz", "")
	if a.code != 500 || !strings.Contains(string(a.body), "[-]consensus failed: the cluster has no leader\nreadyz check failed") {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(st.transport(""), "GET", "/livez", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// Whoever has been allowed may act as another, with that one's rights.
func TestImpersonation(t *testing.T) {
	st := newSite(t)
	rt := st.admin()
	a := st.request(rt, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{}`,
		"Impersonate-User", "jane", "Impersonate-Group", "devs", "Impersonate-Extra-Scopes", "view")
	var r struct {
		Status struct {
			UserInfo struct {
				Username string
				Groups   []string
				Extra    map[string][]string
			}
		}
	}
	if err := json.Unmarshal(a.body, &r); err != nil {
		t.Fatal(err)
	}
	u := r.Status.UserInfo
	if a.code != 201 || u.Username != "jane" || fmt.Sprint(u.Groups) != "[devs system:authenticated]" || fmt.Sprint(u.Extra) != "map[scopes:[view]]" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(rt, "GET", cms, "", "Impersonate-User", "jane"); a.code != 403 || !strings.Contains(string(a.body), `User \"jane\" cannot list`) {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func bigDeployment(t *testing.T) string {
	d := testDeployment("big")
	d.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "X", Value: strings.Repeat("x", 2<<20)}}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
