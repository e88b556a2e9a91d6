package api_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/api"
	"conclave/api/apitest"
)

// The proxy to a pod's or service's own port.
func TestPodProxy(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A server that leaves a body unread may reset the connection under its answer.
		b, _ := io.ReadAll(r.Body)
		switch r.URL.Path {
		case "/page":
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = io.WriteString(w, `<p title="/no"><A HREF="/rewriteme?a=1&amp;b=2">t</A> <a href="page">r</a> <img src="//elsewhere.test/x"> a < b`)
		case "/long":
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `<a href="/x">t</a>`+long+`<a href="/x">t</a>`)
		case "/away":
			w.Header().Set("Location", r.FormValue("to"))
			w.WriteHeader(http.StatusFound)
		default:
			fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.RequestURI(), b)
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	portOf := func(s *httptest.Server) string {
		at, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		return at.Port()
	}
	number, err := strconv.Atoi(portOf(plain))
	if err != nil {
		t.Fatal(err)
	}
	// Services cannot name a loopback address: it stands for their pod's.
	const podAddress = "10.1.2.3"
	st := newSite(t, func(c *api.Config) {
		c.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, strings.Replace(address, podAddress, "127.0.0.1", 1))
		}
	})
	st.namespace("shop")
	c := st.Local(apitest.Admin)
	p := testPod("p")
	p = must(c.Create(t.Context(), api.GVROf(p), "shop", "", p, metav1.CreateOptions{}))(t).(*corev1.Pod).DeepCopy()
	p.Status.PodIP, p.Status.PodIPs = "127.0.0.1", []corev1.PodIP{{IP: "127.0.0.1"}}
	must(c.Update(t.Context(), api.GVROf(p), "shop", p, metav1.UpdateOptions{}, "status"))(t)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 80}}}}
	must(c.Create(t.Context(), api.GVROf(svc), "shop", "", svc, metav1.CreateOptions{}))(t)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.1.2.4"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{podAddress}},
		},
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("web"), Port: ptr.To(int32(number))}},
	}
	must(c.Create(t.Context(), api.GVROf(slice), "shop", "", slice, metav1.CreateOptions{}))(t)
	pod, service := "/api/v1/namespaces/shop/pods/p:"+portOf(plain)+"/proxy", "/api/v1/namespaces/shop/services/s"
	for _, tc := range []struct {
		method, path string
		code         int
		body         string
		location     string
	}{
		{"PUT", pod + "/some/path/?q=1", 200, "PUT /some/path/?q=1 body", ""},
		{"POST", pod, 200, "POST / body", ""},
		{"GET", pod + "?q=1", 301, "", pod + "/?q=1"},
		{"GET", pod + "/", 200, "GET / body", ""},
		{"GET", pod + "/page", 200, `<p title="/no"><a href="` + pod + `/rewriteme?a=1&amp;b=2">t</A> <a href="page">r</a> <img src="//elsewhere.test/x"> a < b`, ""},
		{"GET", pod + "/away?to=/there%3Fx=1", 302, "", pod + "/there?x=1"},
		{"GET", pod + "/away?to=http://elsewhere.test/there", 302, "", "http://elsewhere.test/there"},
		{"GET", pod + "/long", 200, `<a href="` + pod + `/x">t</a>` + long + `<a href="/x">t</a>`, ""},
		{"GET", "/api/v1/namespaces/shop/pods/https:p:" + portOf(secure) + "/proxy/x", 200, "GET /x body", ""},
		{"GET", service + ":web/proxy/x", 200, "GET /x body", ""},
		{"GET", service + ":80/proxy/x", 200, "GET /x body", ""},
		{"GET", service + "/proxy/x", 200, "GET /x body", ""},
		{"GET", service + ":other/proxy/x", 503, "no endpoints available for service", ""},
	} {
		a := st.request(st.admin(), tc.method, tc.path, "body")
		if a.code != tc.code || a.header.Get("Location") != tc.location || a.code == 200 && string(a.body) != tc.body || !strings.Contains(string(a.body), tc.body) {
			t.Errorf("%s %s: %d to %q: %.300s", tc.method, tc.path, a.code, a.header.Get("Location"), a.body)
		}
	}

	guarded := newSite(t)
	guarded.namespace("shop")
	c = guarded.Local(apitest.Admin)
	p.ResourceVersion, p.UID = "", ""
	created := must(c.Create(t.Context(), api.GVROf(p), "shop", "", p, metav1.CreateOptions{}))(t).(*corev1.Pod).DeepCopy()
	created.Status.PodIP, created.Status.PodIPs = "127.0.0.1", []corev1.PodIP{{IP: "127.0.0.1"}}
	must(c.Update(t.Context(), api.GVROf(p), "shop", created, metav1.UpdateOptions{}, "status"))(t)
	if a := guarded.request(guarded.admin(), "GET", pod+"/x", ""); a.code != 503 || !strings.Contains(string(a.body), "address 127.0.0.1 is not proxied to") {
		t.Errorf("a pod that names this host's own address: %d %s", a.code, a.body)
	}
}
