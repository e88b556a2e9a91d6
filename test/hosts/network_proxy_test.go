package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
)

var apiProxy = []behaviour{
	{"proxy", "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service Proxy [Conformance]", func(t *testing.T, w *world) {
		w.wantProxied(t, "proxied", "")
	}},
	{"proxy with a path", "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service ProxyWithPath [Conformance]", func(t *testing.T, w *world) {
		w.wantProxied(t, "proxied-path", "echo/some/path/with/METHOD")
	}},
	{"proxy by port and scheme", "[sig-network] Proxy version v1 should proxy through a service and a pod [Conformance]", showProxyPorts},
}

// echoed is what the tool's server saw of a request.
type echoed struct{ Method, Path, Query, Body string }

// proxyClient speaks HTTP to the API server, and follows no redirect.
func (w *world) proxyClient(t *testing.T) (*http.Client, string) {
	t.Helper()
	config, err := w.c.RESTConfig("")
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client, config.Host
}

func through(ctx context.Context, client *http.Client, method, at, body string) (*http.Response, string, error) {
	request, err := http.NewRequestWithContext(ctx, method, at, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	return answer, string(raw), err
}

// wantProxied sends every method to a pod and to a service, below a path or to
// the proxy itself.
func (w *world) wantProxied(t *testing.T, name, path string) {
	p := toolPod(name, "", map[string]string{"app": name}, "serve", "http:8080")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	runPods(t, w.c, w.ns, p)
	w.service(t, name, func(s *corev1.Service) { s.Spec.Selector = p.Labels })
	w.wantEndpoints(t, name, []string{"http " + w.podIP(t, name) + ":8080"})
	client, host := w.proxyClient(t)
	eventually(t, name+" listens", func() error {
		answer, body, err := through(t.Context(), client, http.MethodGet, host+"/api/v1/namespaces/"+w.ns+"/pods/"+name+"/proxy/", "")
		if err == nil && answer.StatusCode != http.StatusOK {
			err = errors.New(answer.Status + ": " + body)
		}
		return err
	})
	for _, kind := range []string{"pods/" + name, "services/" + name} {
		base := host + "/api/v1/namespaces/" + w.ns + "/" + kind + "/proxy"
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			at := base
			if path != "" {
				at += "/" + strings.Replace(path, "METHOD", method, 1) + "?method=" + method
			}
			answer, body, err := through(t.Context(), client, method, at, "a body")
			if err != nil {
				t.Fatal(err)
			}
			if path == "" && (method == "GET" || method == "HEAD") {
				if to := answer.Header.Get("Location"); answer.StatusCode != http.StatusMovedPermanently || !strings.HasSuffix(to, "/proxy/") {
					t.Errorf("%s %s: %s to %q", method, at, answer.Status, to)
				}
				if answer, body, err = through(t.Context(), client, method, at+"/", ""); err != nil {
					t.Fatal(err)
				}
			}
			if answer.StatusCode != http.StatusOK {
				t.Errorf("%s %s: %s: %s", method, at, answer.Status, body)
				continue
			}
			switch {
			case method == "HEAD":
				if path != "" && answer.Header.Get("X-Method") != "HEAD" {
					t.Errorf("HEAD %s arrived as %q", at, answer.Header.Get("X-Method"))
				}
			case path == "":
				if body != name {
					t.Errorf("%s %s: %q", method, at, body)
				}
			default:
				var got echoed
				if err := json.Unmarshal([]byte(body), &got); err != nil {
					t.Fatalf("%s %s: %q: %v", method, at, body, err)
				}
				if wanted := (echoed{method, "/" + strings.Replace(path, "METHOD", method, 1), "method=" + method, "a body"}); got != wanted {
					t.Errorf("%s %s: the pod saw %+v", method, at, got)
				}
			}
		}
	}
}

func (w *world) podIP(t *testing.T, name string) string {
	t.Helper()
	p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Status.PodIP
}

func showProxyPorts(t *testing.T, w *world) {
	labels := map[string]string{"app": "porter"}
	link := `<a href="/rewriteme">test</a>`
	p := toolPod("porter", "", labels, "serve", "http:1080="+link, "http:160=foo", "http:162=bar", "https:443="+link, "https:460=tls baz", "https:462=tls qux")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "dest1", ContainerPort: 160}, {Name: "dest2", ContainerPort: 162}, {Name: "tlsdest1", ContainerPort: 460}, {Name: "tlsdest2", ContainerPort: 462}}
	runPods(t, w.c, w.ns, p)
	w.service(t, "porter", func(s *corev1.Service) {
		s.Spec.Selector = labels
		s.Spec.Ports = []corev1.ServicePort{
			{Name: "portname1", Port: 80, TargetPort: intstr.FromString("dest1")}, {Name: "portname2", Port: 81, TargetPort: intstr.FromInt32(162)},
			{Name: "tlsportname1", Port: 443, TargetPort: intstr.FromString("tlsdest1")}, {Name: "tlsportname2", Port: 444, TargetPort: intstr.FromInt32(462)},
		}
	})
	client, host := w.proxyClient(t)
	ns := "/api/v1/namespaces/" + w.ns
	wanted := map[string]string{}
	for name, text := range map[string]string{
		"porter:portname1": "foo", "http:porter:portname1": "foo", "porter:80": "foo", "porter:portname2": "bar", "http:porter:portname2": "bar", "porter:81": "bar",
		"https:porter:tlsportname1": "tls baz", "https:porter:443": "tls baz", "https:porter:tlsportname2": "tls qux", "https:porter:444": "tls qux",
	} {
		wanted[ns+"/services/"+name+"/proxy/"] = text
	}
	for name, text := range map[string]string{
		"porter:160": "foo", "http:porter:160": "foo", "porter:162": "bar", "http:porter:162": "bar", "https:porter:460": "tls baz", "https:porter:462": "tls qux",
		"porter:1080": "", "http:porter:1080": "", "https:porter:443": "",
	} {
		path := ns + "/pods/" + name + "/proxy/"
		if text == "" {
			text = `<a href="` + path + `rewriteme">test</a>`
		}
		wanted[path] = text
	}
	for path, text := range wanted {
		eventually(t, path, func() error {
			answer, body, err := through(t.Context(), client, http.MethodGet, host+path, "")
			if err == nil && (answer.StatusCode != http.StatusOK || body != text) {
				err = errors.New(answer.Status + ": " + body)
			}
			return err
		})
	}
}
