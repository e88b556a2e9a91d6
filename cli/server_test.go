package cli

import (
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestRetiredMaster asks, by connections that were made while this node was a
// master, when it no longer is one: the answer must end them, or a client that
// keeps its connection would be refused for ever.
func TestRetiredMaster(t *testing.T) {
	server := httptest.NewUnstartedServer((&Server{}).apiHandler())
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for _, proto := range []string{"http/1.1", "h2"} {
		config := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
		config.NextProtos = []string{proto}
		client := http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: proto == "h2",
			TLSNextProto: map[bool]map[string]func(string, *tls.Conn) http.RoundTripper{false: {}}[proto == "h2"]}}
		for range 2 {
			request, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				GotConn: func(c httptrace.GotConnInfo) {
					if c.Reused {
						t.Errorf("%s: the connection was kept", proto)
					}
				}}), http.MethodGet, server.URL+"/api", nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			var status metav1.Status
			if err := json.NewDecoder(response.Body).Decode(&status); err != nil || status.Reason != metav1.StatusReasonServiceUnavailable || response.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %s %+v (%v)", proto, response.Status, status, err)
			}
			response.Body.Close()
		}
	}
}
