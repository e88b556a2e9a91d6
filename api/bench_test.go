package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
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
