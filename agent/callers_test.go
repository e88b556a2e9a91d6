package agent

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestKubeletRight(t *testing.T) {
	for _, c := range []struct{ method, path, want string }{
		{http.MethodGet, "/metrics", "get [metrics]"}, {http.MethodGet, "/metrics/cadvisor", "get [metrics]"}, {http.MethodPost, "/metrics", "create [metrics]"},
		{http.MethodGet, "/metricsx", "get [proxy]"}, {http.MethodGet, "/stats/summary", "get [stats]"}, {http.MethodGet, "/pods", "get [pods proxy]"},
		{http.MethodGet, "/healthz", "get [healthz proxy]"}, {http.MethodHead, "/containerLogs/a/b/c", "get [proxy]"}, {http.MethodDelete, "/x", "delete [proxy]"},
		// A WebSocket begins with GET, and runs a command all the same.
		{http.MethodGet, "/exec/a/b/c", "create [proxy]"}, {http.MethodGet, "/attach/a/b/c", "create [proxy]"}, {http.MethodGet, "/portForward/a/b", "create [proxy]"},
		{http.MethodGet, "/exec/%2e%2e/%2e%2e/metrics", "create [proxy]"},
	} {
		verb, subresources := kubeletRight(httptest.NewRequest(c.method, c.path, nil))
		if got := fmt.Sprint(verb, " ", subresources); got != c.want {
			t.Errorf("%s %s takes %s, not %s", c.method, c.path, got, c.want)
		}
	}
}
