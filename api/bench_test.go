package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/apitest"
)

// Creates of a 512-byte ConfigMap over TLS: what the server itself costs, the
// log being memory.
func BenchmarkCreate(b *testing.B) {
	st := newSite(b)
	rt := st.admin()
	data := strings.Repeat("x", 512)
	var n atomic.Int64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, _ := http.NewRequest("POST", st.http.URL+cms, strings.NewReader(fmt.Sprintf(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c%d"},"data":{"a":%q}}`, n.Add(1), data)))
			resp, err := rt.RoundTrip(req)
			if err != nil {
				b.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != 201 {
				b.Error(resp.Status)
			}
		}
	})
}

// BenchmarkUpdateInProcess is an update of a ConfigMap without a connection: what
// a write costs where no webhook is configured, where there are a webhook or a
// policy that do not concern it, and where a policy does.
func BenchmarkUpdateInProcess(b *testing.B) {
	for _, bench := range []struct {
		name  string
		setUp func(*site)
	}{
		{"no webhook", func(*site) {}},
		{"one of no concern", func(st *site) {
			h := newHooks(b, nil)
			st.hook("Validating", h.config("Validating", "v", rule(`"*"`, "apps", "v1", `"*"`), "", "v"))
		}},
		{"a policy of no concern", func(st *site) {
			st.policy("Validating", "p", `{matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: ["*"], resources: [deployments]}]}, validations: [{expression: "false"}]}`, denies)
		}},
		{"a policy", func(st *site) {
			st.policy("Validating", "p", `{`+ofConfigMaps+`, validations: [{expression: "!has(object.data) || object.data.all(k, k != 'secret')"}]}`, denies)
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			st := newSite(b)
			bench.setUp(st)
			c := st.Local(apitest.Admin)
			r := corev1.SchemeGroupVersion.WithResource("configmaps")
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "default"}}
			if _, err := c.Create(b.Context(), r, "default", "", cm, metav1.CreateOptions{}); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				cm.Data = map[string]string{"n": fmt.Sprint(n)}
				if _, err := c.Update(b.Context(), r, "default", cm, metav1.UpdateOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkVersion is the smallest request, of somebody unknown and without a
// connection: what every request costs before it is looked at, its seat with it.
func BenchmarkVersion(b *testing.B) {
	s := apitest.NewServer(b)
	r := httptest.NewRequest(http.MethodGet, "/version", nil)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != http.StatusOK {
			b.Fatal(w.Code)
		}
	}
}
