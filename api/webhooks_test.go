package api_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/webhook"
)

// hooks is a webhook server that records what it was asked.
type hooks struct {
	t      testing.TB
	server *httptest.Server
	mu     sync.Mutex
	asked  []webhook.Request
	by     []string // the path of each
}

type hookAnswer struct {
	deny, patch string
	warnings    []string
	raw         string // instead of a review
}

// newHooks answers what is posted to /NAME by the handler of that name.
func newHooks(t testing.TB, handlers map[string]func(webhook.Request) hookAnswer) *hooks {
	h := &hooks{t: t}
	h.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct {
			APIVersion string
			Request    webhook.Request
		}
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &in); err != nil {
			t.Error(err)
		}
		name := strings.TrimPrefix(r.URL.Path, "/")
		h.mu.Lock()
		h.asked, h.by = append(h.asked, in.Request), append(h.by, name)
		h.mu.Unlock()
		a := handlers[name](in.Request)
		if a.raw != "" {
			_, _ = io.WriteString(w, a.raw)
			return
		}
		response := map[string]any{"uid": in.Request.UID, "allowed": a.deny == "", "warnings": a.warnings}
		if a.deny != "" {
			response["status"] = map[string]any{"message": a.deny, "code": 418}
		}
		if a.patch != "" {
			response["patch"], response["patchType"] = []byte(a.patch), "JSONPatch"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"apiVersion": in.APIVersion, "kind": "AdmissionReview", "response": response})
	}))
	t.Cleanup(h.server.Close)
	return h
}

func (h *hooks) take() ([]webhook.Request, []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	defer func() { h.asked, h.by = nil, nil }()
	return h.asked, h.by
}

// config is a configuration with one webhook for each path; more are fields of
// all of them, in JSON.
func (h *hooks) config(kind, name, rules, more string, paths ...string) string {
	ca, err := json.Marshal(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.server.Certificate().Raw}))
	if err != nil {
		h.t.Fatal(err)
	}
	var all []string
	for _, path := range paths {
		all = append(all, fmt.Sprintf(`{"name":"%s.example.com","admissionReviewVersions":["v1"],"sideEffects":"None","clientConfig":{"url":"%s/%s","caBundle":%s},"rules":[%s]%s}`, path, h.server.URL, path, ca, rules, more))
	}
	return fmt.Sprintf(`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"%sWebhookConfiguration","metadata":{"name":%q},"webhooks":[%s]}`, kind, name, strings.Join(all, ","))
}

func hookPath(kind string) string {
	return "/apis/admissionregistration.k8s.io/v1/" + strings.ToLower(kind) + "webhookconfigurations"
}

func (st *site) hook(kind, body string) {
	st.t.Helper()
	st.post(hookPath(kind), body, 201)
}

func rule(operations, group, version, resources string) string {
	return fmt.Sprintf(`{"operations":[%s],"apiGroups":[%q],"apiVersions":[%q],"resources":[%s]}`, operations, group, version, resources)
}

const everything = `{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*/*"]}`

func allow(webhook.Request) hookAnswer { return hookAnswer{} }

// TestWebhooksMutate is of order, of what later ones see, and of being asked
// again.
func TestWebhooksMutate(t *testing.T) {
	add := func(key string) func(webhook.Request) hookAnswer {
		return func(r webhook.Request) hookAnswer {
			var cm corev1.ConfigMap
			_ = json.Unmarshal(r.Object, &cm)
			if cm.Data[key] != "" {
				return hookAnswer{}
			}
			return hookAnswer{patch: fmt.Sprintf(`[{"op":"add","path":"/data/%s","value":"%d"}]`, key, len(cm.Data))}
		}
	}
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"a": add("a"), "b": add("b"), "c": add("c")})
	st := newSite(t)
	of := rule(`"CREATE","UPDATE"`, "", "v1", `"configmaps"`)
	// By their names, not as they were made: c is first.
	st.hook("Mutating", h.config("Mutating", "second", of, `,"reinvocationPolicy":"Never"`, "a"))
	st.hook("Mutating", h.config("Mutating", "first", of, `,"reinvocationPolicy":"IfNeeded"`, "c", "b"))
	a := st.post(cms, `{apiVersion: v1, kind: ConfigMap, metadata: {name: x}, data: {z: z}}`, 201)
	var cm corev1.ConfigMap
	a.into(t, &cm)
	if cm.Data["c"] != "1" || cm.Data["b"] != "2" || cm.Data["a"] != "3" || cm.UID == "" {
		t.Errorf("made %s", a.body)
	}
	asked, by := h.take()
	if want := []string{"c", "b", "a", "c", "b"}; !slices.Equal(by, want) {
		t.Errorf("asked were %v, not %v", by, want)
	}
	if r := asked[0]; r.Operation != "CREATE" || r.Name != "x" || r.Namespace != "default" || r.Kind.Kind != "ConfigMap" || r.Resource.Resource != "configmaps" ||
		r.UserInfo.Username != "admin" || r.DryRun == nil || *r.DryRun || string(r.OldObject) != "null" || !strings.Contains(string(r.Options), `"kind":"CreateOptions"`) {
		t.Errorf("the question was %+v", r)
	}
	// A merge patch is an update to webhooks.
	a = st.request(st.admin(), "PATCH", cms+"/x", `{"data":{"a":null}}`, "Content-Type", "application/merge-patch+json")
	if a.into(t, &cm); cm.Data["a"] != "3" {
		t.Errorf("patched to %s", a.body)
	}
	if asked, by = h.take(); !slices.Equal(by, []string{"c", "b", "a", "c", "b"}) || asked[0].Operation != "UPDATE" || !strings.Contains(string(asked[0].OldObject), `"z":"z"`) || !strings.Contains(string(asked[0].Options), "PatchOptions") {
		t.Errorf("asked were %v: %+v", by, asked[0])
	}
	// Nobody is asked about their own configurations.
	h.take()
	st.hook("Mutating", h.config("Mutating", "all", everything, "", "a"))
	if a := st.request(st.admin(), "DELETE", hookPath("Mutating"), ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if _, by = h.take(); len(by) > 0 {
		t.Errorf("asked were %v", by)
	}
	if a := st.request(st.admin(), "GET", hookPath("Mutating"), "", "Accept", "application/vnd.kubernetes.protobuf"); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestWebhooksValidate is of every operation, and of what a refusal looks like.
func TestWebhooksValidate(t *testing.T) {
	var no sync.Map
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"v": func(r webhook.Request) hookAnswer {
		what := strings.Trim(r.Operation+" "+r.Resource.Resource+"/"+r.SubResource, "/")
		if _, ok := no.Load(what); ok {
			return hookAnswer{deny: "not so"}
		}
		return hookAnswer{warnings: []string{"saw " + what}}
	}})
	st := newSite(t)
	st.post(cms, `{apiVersion: v1, kind: ConfigMap, metadata: {name: was}}`, 201)
	st.namespace("apart")
	st.post("/api/v1/namespaces/apart/pods", `{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}`, 201)
	st.post("/apis/apps/v1/namespaces/default/deployments", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}`, 201)
	st.hook("Validating", h.config("Validating", "v", everything, "", "v"))
	rt := st.admin()
	const pod, deployment = "/api/v1/namespaces/apart/pods/p", "/apis/apps/v1/namespaces/default/deployments/d"
	const merge = "application/merge-patch+json"
	for _, tc := range []struct{ what, method, path, body, media string }{
		{"CREATE configmaps", "POST", cms, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new"}}`, ""},
		{"CREATE configmaps", "PATCH", cms + "/applied?fieldManager=m", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"applied"}}`, "application/apply-patch+yaml"},
		{"UPDATE configmaps", "PUT", cms + "/was", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"was"}}`, ""},
		{"UPDATE configmaps", "PATCH", cms + "/was", `{"data":{"a":"b"}}`, merge},
		{"UPDATE configmaps", "PATCH", cms + "/was?fieldManager=m", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"was"},"data":{"x":"y"}}`, "application/apply-patch+yaml"},
		{"UPDATE pods/status", "PATCH", pod + "/status", `{"status":{"message":"m"}}`, merge},
		{"UPDATE deployments/scale", "PATCH", deployment + "/scale", `{"spec":{"replicas":2}}`, merge},
		{"UPDATE pods/ephemeralcontainers", "PATCH", pod + "/ephemeralcontainers", `{"spec":{"ephemeralContainers":[{"name":"e","image":"i"}]}}`, merge},
		{"CREATE pods/binding", "POST", pod + "/binding", `{"apiVersion":"v1","kind":"Binding","metadata":{"name":"p"},"target":{"name":"n"}}`, ""},
		{"CREATE serviceaccounts/token", "POST", "/api/v1/namespaces/apart/serviceaccounts/default/token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{}}`, ""},
		{"CONNECT pods/exec", "POST", pod + "/exec?command=ls&container=c", "", ""},
		{"CONNECT pods/attach", "POST", pod + "/attach?container=c", "", ""},
		{"CONNECT pods/portforward", "POST", pod + "/portforward?ports=80", "", ""},
		{"CONNECT pods/proxy", "GET", pod + "/proxy/x", "", ""},
		{"CREATE pods/eviction", "POST", pod + "/eviction", `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"p"}}`, ""},
		{"CREATE selfsubjectreviews", "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`, ""},
		{"DELETE configmaps", "DELETE", cms, "", ""},
		{"DELETE configmaps", "DELETE", cms + "/was", "", ""},
	} {
		no.Store(tc.what, true)
		a := st.request(rt, tc.method, tc.path, tc.body, "Content-Type", tc.media)
		if s := a.status(t); a.code != 418 || s.Message != `admission webhook "v.example.com" denied the request: not so` {
			t.Errorf("%s: %d %s", tc.what, a.code, a.body)
		}
		no.Delete(tc.what)
		if strings.HasPrefix(tc.what, "CONNECT") || tc.method == "DELETE" && tc.path == cms {
			continue // nobody is at the other end; and the collection must not go yet
		}
		a = st.request(rt, tc.method, tc.path, tc.body, "Content-Type", tc.media)
		if want := fmt.Sprintf(`299 - "saw %s"`, tc.what); a.code > 299 || !slices.Contains(a.header.Values("Warning"), want) {
			t.Errorf("%s: %d %s %v", tc.what, a.code, a.body, a.header.Values("Warning"))
		}
	}
	asked, _ := h.take()
	scale := asked[slices.IndexFunc(asked, func(r webhook.Request) bool { return r.SubResource == "scale" })]
	if scale.Kind.Kind != "Scale" || scale.Resource.Resource != "deployments" || !strings.Contains(string(scale.Object), `"replicas":2`) || !strings.Contains(string(scale.OldObject), `"replicas":1`) {
		t.Errorf("asked about the scale: %+v %s", scale, scale.Object)
	}
	exec := asked[slices.IndexFunc(asked, func(r webhook.Request) bool { return r.SubResource == "exec" })]
	var o corev1.PodExecOptions
	if err := json.Unmarshal(exec.Object, &o); err != nil || exec.Kind.Kind != "PodExecOptions" || exec.Name != "p" || o.Kind != "PodExecOptions" || !slices.Equal(o.Command, []string{"ls"}) {
		t.Errorf("asked about exec: %+v %s", exec, exec.Object)
	}
	if a := st.request(rt, "DELETE", hookPath("Validating")+"/v", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestWebhooksFail is of webhooks that do not answer, or not as they should.
func TestWebhooksFail(t *testing.T) {
	release := make(chan struct{})
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{
		"slow": func(webhook.Request) hookAnswer { <-release; return hookAnswer{} },
		"bad":  func(webhook.Request) hookAnswer { return hookAnswer{raw: "{}"} },
		"other": func(webhook.Request) hookAnswer {
			return hookAnswer{raw: `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"1","allowed":true}}`}
		},
		"patch": func(webhook.Request) hookAnswer { return hookAnswer{patch: `[{"op":"remove","path":"/nothing"}]`} },
	})
	t.Cleanup(func() { close(release) })
	st := newSite(t)
	of := rule(`"CREATE"`, "", "v1", `"configmaps"`)
	n := 0
	for _, tc := range []struct{ path, more, want string }{
		{"slow", `,"timeoutSeconds":1`, `failed calling webhook "slow.example.com": failed to call webhook: Post "` + h.server.URL + `/slow?timeout=1s": context deadline exceeded`},
		{"bad", "", "webhook response was absent"},
		{"other", "", "expected response.uid="},
		{"patch", "", "its patch: "},
	} {
		for _, policy := range []string{"Fail", "Ignore"} {
			st.hook("Mutating", h.config("Mutating", "m", of, tc.more+`,"failurePolicy":"`+policy+`"`, tc.path))
			n++
			a := st.request(st.admin(), "POST", cms, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c%d"}}`, n))
			fails := policy == "Fail" || tc.path == "patch"
			if fails && (a.code != 500 || !strings.Contains(a.status(t).Message, tc.want)) || !fails && a.code != 201 {
				t.Errorf("%s, %s: %d %s", tc.path, policy, a.code, a.body)
			}
			if a := st.request(st.admin(), "DELETE", hookPath("Mutating")+"/m", ""); a.code != 200 {
				t.Fatalf("%d %s", a.code, a.body)
			}
		}
	}
	// A certificate that its bundle of CAs does not know.
	body := h.config("Validating", "untrusted", of, "", "bad")
	other := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: st.ca.Raw})
	var c map[string]any
	if err := json.Unmarshal([]byte(body), &c); err != nil {
		t.Fatal(err)
	}
	c["webhooks"].([]any)[0].(map[string]any)["clientConfig"].(map[string]any)["caBundle"] = other
	raw, _ := json.Marshal(c)
	st.hook("Validating", string(raw))
	if a := st.post(cms, `{apiVersion: v1, kind: ConfigMap, metadata: {name: u}}`, 500); !strings.Contains(string(a.body), "certificate signed by unknown authority") {
		t.Errorf("%s", a.body)
	}
}

// TestWebhooksSelect is of rules and selectors.
func TestWebhooksSelect(t *testing.T) {
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"a": allow})
	st := newSite(t)
	st.namespace("other")
	const cluster = "/api/v1/namespaces"
	cm := func(labels string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"c-","labels":{%s}}}`, labels)
	}
	of := rule(`"CREATE"`, "", "v1", `"configmaps"`)
	for name, tc := range map[string]struct {
		rules, more, path, body string
		asked                   bool
	}{
		"plain":                {of, "", cms, cm(""), true},
		"another operation":    {rule(`"UPDATE"`, "", "v1", `"configmaps"`), "", cms, cm(""), false},
		"another group":        {rule(`"CREATE"`, "apps", "v1", `"configmaps"`), "", cms, cm(""), false},
		"another version":      {rule(`"CREATE"`, "", "v2", `"configmaps"`), "", cms, cm(""), false},
		"subresources alone":   {rule(`"CREATE"`, "", "v1", `"configmaps/status"`), "", cms, cm(""), false},
		"with subresources":    {rule(`"CREATE"`, "", "v1", `"configmaps/*"`), "", cms, cm(""), true},
		"cluster":              {`{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*"],"scope":"Cluster"}`, "", cms, cm(""), false},
		"cluster, a namespace": {`{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*"],"scope":"Cluster"}`, "", cluster, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n1"}}`, true},
		"namespaced":           {`{"operations":["*"],"apiGroups":["*"],"apiVersions":["*"],"resources":["*"],"scope":"Namespaced"}`, "", cluster, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n2"}}`, false},
		"object":               {of, `,"objectSelector":{"matchLabels":{"a":"b"}}`, cms, cm(`"a":"b"`), true},
		"not the object":       {of, `,"objectSelector":{"matchLabels":{"a":"b"}}`, cms, cm(`"a":"c"`), false},
		"namespace":            {of, `,"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"other"}}`, "/api/v1/namespaces/other/configmaps", cm(""), true},
		"not the namespace":    {of, `,"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"other"}}`, cms, cm(""), false},
		"the namespace itself": {rule(`"CREATE"`, "", "v1", `"namespaces"`), `,"namespaceSelector":{"matchLabels":{"mine":"yes"}}`, cluster, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n3","labels":{"mine":"yes"}}}`, true},
		"equivalent events":    {rule(`"CREATE"`, "events.k8s.io", "v1", `"events"`), "", "/api/v1/namespaces/default/events", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e1"},"involvedObject":{"kind":"Pod","name":"p","namespace":"default"},"reason":"r"}`, true},
		"exact events":         {rule(`"CREATE"`, "events.k8s.io", "v1", `"events"`), `,"matchPolicy":"Exact"`, "/api/v1/namespaces/default/events", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e2"},"involvedObject":{"kind":"Pod","name":"p","namespace":"default"},"reason":"r"}`, false},
	} {
		st.hook("Validating", h.config("Validating", "v", tc.rules, tc.more, "a"))
		h.take()
		st.post(tc.path, tc.body, 201)
		asked, _ := h.take()
		if (len(asked) == 1) != tc.asked {
			t.Errorf("%s: asked %d times", name, len(asked))
		}
		if name == "equivalent events" && (asked[0].Resource.Group != "events.k8s.io" || asked[0].RequestResource.Group != "" || !strings.Contains(string(asked[0].Object), `"regarding"`)) {
			t.Errorf("asked about %+v %s", asked[0], asked[0].Object)
		}
		if a := st.request(st.admin(), "DELETE", hookPath("Validating")+"/v", ""); a.code != 200 {
			t.Fatalf("%d %s", a.code, a.body)
		}
	}
}

// TestWebhooksCustom is of custom resources: other versions, and pruning.
func TestWebhooksCustom(t *testing.T) {
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"a": func(r webhook.Request) hookAnswer {
		if r.Kind.Version != "v1" || !strings.Contains(string(r.Object), `"apiVersion":"stable.example.com/v1"`) {
			return hookAnswer{deny: "not v1: " + string(r.Object)}
		}
		return hookAnswer{patch: `[{"op":"add","path":"/spec/unknown","value":1},{"op":"add","path":"/spec/note","value":"n"}]`}
	}})
	st := newSite(t)
	st.define(crontab)
	st.hook("Mutating", h.config("Mutating", "m", rule(`"CREATE"`, "stable.example.com", "v1", `"crontabs"`), "", "a"))
	u := st.post(tabs, object("a", `{cronSpec: "* * * * *"}`), 201).object(t)
	if field(t, u, "spec", "note") != "n" || field(t, u, "spec", "unknown") != nil || field(t, u, "spec", "replicas") != int64(1) {
		t.Errorf("made %v", u.Object)
	}
	u = st.post("/apis/stable.example.com/v1beta1/namespaces/default/crontabs", strings.Replace(object("b", `{cronSpec: "* * * * *"}`), "/v1", "/v1beta1", 1), 201).object(t)
	if field(t, u, "spec", "note") != "n" || u.GetAPIVersion() != "stable.example.com/v1beta1" {
		t.Errorf("made %v", u.Object)
	}
	if asked, _ := h.take(); asked[1].RequestKind.Version != "v1beta1" || asked[1].Kind.Version != "v1" {
		t.Errorf("asked about %+v", asked[1])
	}
}

// TestWebhooksPods is of what follows on a webhook's change: defaults, the
// server's own admission, and what an update of the status may not change.
func TestWebhooksPods(t *testing.T) {
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{
		"inject": func(webhook.Request) hookAnswer {
			return hookAnswer{patch: `[{"op":"add","path":"/spec/initContainers","value":[{"name":"i","image":"i"}]}]`}
		},
		"status": func(webhook.Request) hookAnswer {
			return hookAnswer{patch: `[{"op":"replace","path":"/spec/containers/0/image","value":"other"},{"op":"add","path":"/status/message","value":"seen"}]`}
		},
		"exec": func(webhook.Request) hookAnswer {
			return hookAnswer{patch: `[{"op":"replace","path":"/command","value":[]}]`}
		},
	})
	st := newSite(t)
	st.namespace("apart")
	st.hook("Mutating", h.config("Mutating", "i", rule(`"CREATE"`, "", "v1", `"pods"`), "", "inject"))
	st.hook("Mutating", h.config("Mutating", "s", rule(`"UPDATE"`, "", "v1", `"pods/status"`), "", "status"))
	st.hook("Mutating", h.config("Mutating", "x", rule(`"CONNECT"`, "", "v1", `"pods/exec"`), "", "exec"))
	a := st.post("/api/v1/namespaces/apart/pods", `{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i}]}}`, 201)
	var pod corev1.Pod
	a.into(t, &pod)
	if len(pod.Spec.InitContainers) != 1 || pod.Spec.InitContainers[0].TerminationMessagePolicy != corev1.TerminationMessageReadFile {
		t.Fatalf("made %s", a.body)
	}
	mounts, volumes := pod.Spec.InitContainers[0].VolumeMounts, pod.Spec.Volumes
	if len(volumes) != 1 || len(mounts) != 1 || mounts[0].Name != volumes[0].Name {
		t.Errorf("the token is not mounted once: %v %v", mounts, volumes)
	}
	a = st.request(st.admin(), "PATCH", "/api/v1/namespaces/apart/pods/p/status", `{"status":{"reason":"r"}}`, "Content-Type", "application/merge-patch+json")
	if a.into(t, &pod); pod.Status.Message != "seen" || pod.Spec.Containers[0].Image != "i" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a = st.request(st.admin(), "POST", "/api/v1/namespaces/apart/pods/p/exec?command=ls", ""); a.code != 400 || !strings.Contains(string(a.body), "at least 1 command") {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestWebhooksDryRun asks, and says so.
func TestWebhooksDryRun(t *testing.T) {
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"a": allow})
	st := newSite(t)
	st.hook("Validating", h.config("Validating", "v", everything, "", "a"))
	st.post(cms+"?dryRun=All", `{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}`, 201)
	asked, _ := h.take()
	if len(asked) != 1 || !*asked[0].DryRun || !slices.Contains(asked[0].UserInfo.Groups, "system:masters") {
		t.Errorf("asked %+v", asked)
	}
}

// TestWebhookConfigurations is of what a configuration may say.
func TestWebhookConfigurations(t *testing.T) {
	h := newHooks(t, nil)
	st := newSite(t)
	of := rule(`"CREATE"`, "", "v1", `"configmaps"`)
	var c struct {
		metav1.ObjectMeta `json:"metadata"`
		Webhooks          []map[string]any
	}
	st.post(hookPath("Mutating"), h.config("Mutating", "m", of, "", "a"), 201).into(t, &c)
	w := c.Webhooks[0]
	if w["failurePolicy"] != "Fail" || w["matchPolicy"] != "Equivalent" || w["timeoutSeconds"] != 10.0 || w["reinvocationPolicy"] != "Never" || c.Generation != 1 {
		t.Errorf("made %+v", c)
	}
	for want, body := range map[string]string{
		`webhooks[0].matchConditions[0].expression: Invalid value: "object.n +": compilation failed: `:                                  h.config("Mutating", "x", of, `,"matchConditions":[{"name":"a","expression":"object.n +"}]`, "a"),
		`webhooks[0].matchConditions[0].expression: Invalid value: "'a'": must evaluate to bool but got string`:                         h.config("Mutating", "x", of, `,"matchConditions":[{"name":"a","expression":"'a'"}]`, "a"),
		`webhooks[0].matchConditions[0].expression: Invalid value: "params.a": compilation failed: `:                                    h.config("Mutating", "x", of, `,"matchConditions":[{"name":"a","expression":"params.a"}]`, "a"),
		`webhooks[0].matchConditions[0].expression: Required value`:                                                                     h.config("Mutating", "x", of, `,"matchConditions":[{"name":"a","expression":" "}]`, "a"),
		`webhooks[0].matchConditions[0].name: Required value`:                                                                           h.config("Mutating", "x", of, `,"matchConditions":[{"name":"","expression":"true"}]`, "a"),
		`webhooks[0].matchConditions[0].name: Invalid value: "a b": name part must consist of alphanumeric characters`:                  h.config("Mutating", "x", of, `,"matchConditions":[{"name":"a b","expression":"true"}]`, "a"),
		`webhooks[0].matchConditions[1].name: Duplicate value: "a"`:                                                                     h.config("Mutating", "x", of, `,"matchConditions":[{"name":"a","expression":"true"},{"name":"a","expression":"true"}]`, "a"),
		`webhooks[0].matchConditions: Too many: 65: must have at most 64 items`:                                                         h.config("Mutating", "x", of, `,"matchConditions":[`+many(65)+`]`, "a"),
		`webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds`:                             h.config("Mutating", "x", of, `,"timeoutSeconds":31`, "a"),
		`webhooks[0].rules[0].resources: Invalid value: ["*/*","pods"]: if '*/*' is present, must not specify other resources`:          h.config("Mutating", "x", rule(`"CREATE"`, "", "v1", `"*/*","pods"`), "", "a"),
		`webhooks[1].name: Duplicate value: "a.example.com"`:                                                                            h.config("Mutating", "x", of, "", "a", "a"),
		`webhooks[0].rules[0].operations[0]: Unsupported value: "READ": supported values: "*", "CONNECT", "CREATE", "DELETE", "UPDATE"`: h.config("Mutating", "x", rule(`"READ"`, "", "v1", `"pods"`), "", "a"),
		`'https' is the only allowed URL scheme`:                                                                                        strings.ReplaceAll(h.config("Mutating", "x", of, "", "a"), "https://", "http://"),
		`exactly one of url or service is required`:                                                                                     strings.ReplaceAll(h.config("Mutating", "x", of, "", "a"), `"url":`, `"service":{"name":"s","namespace":"n"},"url":`),
	} {
		a := st.request(st.admin(), "POST", hookPath("Mutating"), body)
		if a.code != 422 || !strings.Contains(a.status(t).Message, want) {
			t.Errorf("%s: %d %s", want, a.code, a.status(t).Message)
		}
	}
	if a := st.request(st.admin(), "PATCH", hookPath("Mutating")+"/m", `{"webhooks":[{"name":"a.example.com","timeoutSeconds":5}]}`, "Content-Type", "application/strategic-merge-patch+json"); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	} else if a.into(t, &c); len(c.Webhooks) != 1 || c.Webhooks[0]["timeoutSeconds"] != 5.0 || c.Generation != 2 {
		t.Errorf("patched to %s", a.body)
	}
	apply := h.config("Validating", "applied", of, "", "b")
	if a := st.request(st.admin(), "PATCH", hookPath("Validating")+"/applied?fieldManager=me", apply, "Content-Type", "application/apply-patch+yaml"); a.code != 201 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.request(st.admin(), "GET", hookPath("Mutating")+"/m", "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"); !strings.Contains(string(a.body), `"cells":["m",1,`) {
		t.Errorf("%s", a.body)
	}
}
