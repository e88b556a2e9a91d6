package webhook

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"conclave/api/types"
)

// TestConcerns is a table of rules and selectors, each against one request.
func TestConcerns(t *testing.T) {
	v := func(group, version, resource string) Version {
		return Version{Resource: schema.GroupVersionResource{Group: group, Version: version, Resource: resource}}
	}
	rule := func(resource string, edit ...func(*types.RuleWithOperations)) types.RuleWithOperations {
		r := types.RuleWithOperations{Operations: []string{"CREATE"}, Rule: types.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{resource}}}
		for _, f := range edit {
			f(&r)
		}
		return r
	}
	scope := func(s string) func(*types.RuleWithOperations) {
		return func(r *types.RuleWithOperations) { r.Scope = &s }
	}
	label := &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
	base := Subject{
		Operation: Create, Version: v("apps", "v1", "deployments"), Namespace: "n",
		NamespaceLabels: func() (map[string]string, error) { return map[string]string{"a": "b"}, nil },
	}
	with := func(f func(*Subject)) Subject { s := base; f(&s); return s }
	gone := errors.New("gone")
	for name, tc := range map[string]struct {
		rule      types.RuleWithOperations
		edit      func(*types.MutatingWebhook)
		of        Subject
		concerned bool
		err       error
	}{
		"plain":                      {rule: rule("deployments"), of: base, concerned: true},
		"all resources":              {rule: rule("*"), of: base, concerned: true},
		"all resources, of a status": {rule: rule("*"), of: with(func(s *Subject) { s.Subresource = "status" })},
		"a status":                   {rule: rule("*/status"), of: with(func(s *Subject) { s.Subresource = "status" }), concerned: true},
		"everything of it":           {rule: rule("deployments/*"), of: with(func(s *Subject) { s.Subresource = "scale" }), concerned: true},
		"everything of all":          {rule: rule("*/*"), of: base, concerned: true},
		"another":                    {rule: rule("daemonsets"), of: base},
		"another operation":          {rule: rule("*", func(r *types.RuleWithOperations) { r.Operations = []string{"UPDATE", "DELETE"} }), of: base},
		"all operations":             {rule: rule("*", func(r *types.RuleWithOperations) { r.Operations = []string{"*"} }), of: base, concerned: true},
		"namespaced":                 {rule: rule("*", scope(types.NamespacedScope)), of: base, concerned: true},
		"not of the cluster":         {rule: rule("*", scope(types.ClusterScope)), of: base},
		"of the cluster":             {rule: rule("*", scope(types.ClusterScope)), of: with(func(s *Subject) { s.Namespace = "" }), concerned: true},
		"equivalent":                 {rule: rule("deployments"), of: with(func(s *Subject) { s.Version, s.Others = v("apps", "v2", "deployments"), []Version{base.Version} }), concerned: true},
		"exact": {rule: rule("deployments"), edit: func(w *types.MutatingWebhook) { w.MatchPolicy = ptr.To(types.Exact) },
			of: with(func(s *Subject) { s.Version, s.Others = v("apps", "v2", "deployments"), []Version{base.Version} })},
		"the old object's labels": {rule: rule("*"), edit: func(w *types.MutatingWebhook) { w.ObjectSelector = label },
			of: with(func(s *Subject) { s.Labels = []map[string]string{{}, {"a": "b"}} }), concerned: true},
		"no labels":     {rule: rule("*"), edit: func(w *types.MutatingWebhook) { w.ObjectSelector = label }, of: base},
		"the namespace": {rule: rule("*"), edit: func(w *types.MutatingWebhook) { w.NamespaceSelector = label }, of: base, concerned: true},
		"another namespace": {rule: rule("*"), edit: func(w *types.MutatingWebhook) { w.NamespaceSelector = label },
			of: with(func(s *Subject) { s.NamespaceLabels = func() (map[string]string, error) { return nil, nil } })},
		"no namespace, whatever is selected": {rule: rule("*"), edit: func(w *types.MutatingWebhook) { w.NamespaceSelector = label },
			of: with(func(s *Subject) { s.Namespace = "" }), concerned: true},
		"a namespace that is gone": {rule: rule("*"), edit: func(w *types.MutatingWebhook) { w.NamespaceSelector = label },
			of: with(func(s *Subject) { s.NamespaceLabels = func() (map[string]string, error) { return nil, gone } }), err: gone},
		"a namespace that is gone, of no concern": {rule: rule("daemonsets"), edit: func(w *types.MutatingWebhook) { w.NamespaceSelector = label },
			of: with(func(s *Subject) { s.NamespaceLabels = func() (map[string]string, error) { return nil, gone } })},
	} {
		w := types.MutatingWebhook{Webhook: types.Webhook{Name: "w", Rules: []types.RuleWithOperations{tc.rule}}}
		if tc.edit != nil {
			tc.edit(&w)
		}
		hooks, err := Mutating(&types.MutatingWebhookConfiguration{Webhooks: []types.MutatingWebhook{w}})
		if err != nil {
			t.Fatal(err)
		}
		as, is, err := hooks[0].Concerns(&tc.of)
		if is != tc.concerned || !errors.Is(err, tc.err) {
			t.Errorf("%s: concerned: %t, %v", name, is, err)
		}
		if is && name == "equivalent" && as != base.Version {
			t.Errorf("%s: as %v", name, as)
		}
	}
}

// TestService reaches a Service where Resolve says, under its own name alone.
func TestService(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("timeout") != "2s" || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("asked by %s with %v", r.URL, r.Header)
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"host": r.Host, "path": r.URL.Path})
	}))
	defer server.Close()
	var wanted []string
	c := &Client{
		Resolve: func(namespace, name string, port int32) (string, error) {
			wanted = append(wanted, namespace+"/"+name)
			if name == "none" {
				return "", errors.New(`no endpoints available for service "none"`)
			}
			return "backend:1", nil
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "backend:1" {
				t.Errorf("dialled %s", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, server.Listener.Addr().String())
		},
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	ask := func(name string, ca []byte) (map[string]string, error) {
		var answer map[string]string
		to := &types.WebhookClientConfig{CABundle: ca, Service: &types.ServiceReference{Namespace: "ns", Name: name, Path: ptr.To("/p"), Port: ptr.To(int32(8443))}}
		return answer, c.Post(t.Context(), to, 2*time.Second, map[string]string{}, &answer)
	}
	// The server's certificate is for example.com and not for a Service.
	if _, err := ask("hooks", ca); err == nil || !strings.Contains(err.Error(), "not hooks.ns.svc") {
		t.Errorf("a certificate for another name: %v", err)
	}
	if _, err := ask("none", ca); err == nil || !strings.Contains(err.Error(), `Post "https://none.ns.svc:8443/p?timeout=2s": no endpoints available for service "none"`) {
		t.Errorf("nobody is there: %v", err)
	}
	if _, err := ask("bad", []byte("no certificate")); err == nil || !strings.Contains(err.Error(), "unable to load root certificates") {
		t.Errorf("a bundle of nothing: %v", err)
	}
	if len(wanted) != 2 {
		t.Errorf("resolved %v", wanted)
	}
	var answer map[string]string
	if err := c.Post(t.Context(), &types.WebhookClientConfig{CABundle: ca, URL: ptr.To(server.URL + "/there")}, 2*time.Second, 1, &answer); err != nil || answer["path"] != "/there" {
		t.Errorf("by URL: %v %v", answer, err)
	}
}

// TestRefusal is of the sentences that users read.
func TestRefusal(t *testing.T) {
	h := &Hook{Name: "w.example.com"}
	for want, status := range map[string]*metav1.Status{
		`admission webhook "w.example.com" denied the request without explanation`: nil,
		`admission webhook "w.example.com" denied the request: no`:                 {Message: "no", Reason: "Because"},
		`admission webhook "w.example.com" denied the request: Because`:            {Reason: "Because", Code: 200, Status: "Success"},
	} {
		err := h.Refusal(&Response{Result: status})
		var is interface{ Status() metav1.Status }
		if !errors.As(err, &is) || is.Status().Message != want || is.Status().Code != 400 || is.Status().Status != "Failure" {
			t.Errorf("%v instead of %s", err, want)
		}
	}
}

// FuzzAnswer has to judge any answer without panicking, and to take none that is
// of another question.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"u","allowed":true}}`))
	f.Add([]byte(`{"response":{"uid":"x","patch":"e30=","patchType":"JSONPatch"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var answer review
		if json.Unmarshal(raw, &answer) != nil {
			return
		}
		question := review{heading: heading{"admission.k8s.io/v1", "AdmissionReview"}, Request: &Request{UID: "u"}}
		if check(&question, &answer) == nil && (answer.Response == nil || answer.Response.UID != "u") {
			t.Errorf("took %s", raw)
		}
	})
}
