package api_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/apitest"
	"conclave/api/openapi"
)

// fakeNodes reaches one fake kubelet.
type fakeNodes struct{ base *url.URL }

func (f fakeNodes) Kubelet(_ context.Context, node string) (*url.URL, http.RoundTripper, error) {
	if node != "n1" {
		return nil, nil, errors.New("no such node")
	}
	return f.base, http.DefaultTransport, nil
}

func TestKubeletProxy(t *testing.T) {
	kubelet := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			t.Error("the client's credentials went to the node")
		}
		if r.Header.Get("Upgrade") == "" {
			fmt.Fprintf(w, "%s?%s", r.URL.Path, r.URL.RawQuery)
			return
		}
		conn, b, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", r.Header.Get("Upgrade"))
		fmt.Fprintf(b, "%s?%s\n", r.URL.Path, r.URL.RawQuery)
		b.Flush()
		line, _ := b.ReadString('\n')
		fmt.Fprintf(b, "echo %s", line)
		b.Flush()
	}))
	defer kubelet.Close()
	base, _ := url.Parse(kubelet.URL)
	st := newSite(t, func(c *api.Config) { c.Nodes = fakeNodes{base} })
	st.namespace("shop")
	c := st.Local(apitest.Admin)
	for name, node := range map[string]string{"p": "n1", "far": "n9", "waiting": ""} {
		p := testPod(name)
		if name == "p" {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side", Image: "x"})
		}
		must(c.Create(t.Context(), api.GVROf(p), "shop", "", p, metav1.CreateOptions{}))(t)
		if node != "" {
			must(c.Create(t.Context(), api.GVROf(p), "shop", name, &corev1.Binding{Target: corev1.ObjectReference{Name: node}}, metav1.CreateOptions{}, "binding"))(t)
		}
	}
	rt, path := st.admin(), "/api/v1/namespaces/shop/pods/"
	for _, tc := range []struct {
		path string
		code int
		want string
	}{
		{"p/log?container=side&follow=true&tailLines=5&timestamps=true&sinceSeconds=7&limitBytes=9&previous=true", 200, "/containerLogs/shop/p/side?follow=true&limitBytes=9&previous=true&sinceSeconds=7&tailLines=5&timestamps=true"},
		{"p/log", 400, "a container name must be specified for pod p, choose one of: [web side]"},
		{"p/log?container=none", 400, "container none is not valid for pod p"},
		{"p/log?container=web&tailLines=-1", 400, "tailLines"},
		{"waiting/log", 200, ""},
		{"far/log", 503, "no such node"},
		{"waiting/exec?command=id", 400, "pod waiting does not have a host assigned"},
		{"p/exec?container=web", 400, "you must specify at least 1 command for the container"},
	} {
		if a := st.request(rt, "GET", path+tc.path, ""); a.code != tc.code || !strings.Contains(string(a.body), tc.want) {
			t.Errorf("%s: %d %s", tc.path, a.code, a.body)
		}
	}
	if a := st.request(rt, "GET", "/api/v1/nodes/n1/proxy/healthz", ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
	must(c.Create(t.Context(), api.GVROf(&corev1.Node{}), "", "", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}, metav1.CreateOptions{}))(t)
	if a := st.request(rt, "GET", "/api/v1/nodes/n1/proxy/stats/summary?x=1", ""); string(a.body) != "/stats/summary?x=1" {
		t.Errorf("%d %s", a.code, a.body)
	}

	// A stream that changes protocol, as exec does.
	h1 := st.admin()
	h1.TLSClientConfig.NextProtos = []string{"http/1.1"}
	conn, err := tls.Dial("tcp", st.base().Host, h1.TLSClientConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %sp/exec?container=web&command=cat&command=-n&stdin=true&stdout=true HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", path)
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "SPDY/3.1" {
		t.Fatal(resp, err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "/exec/shop/p/web?command=cat&command=-n&input=1&output=1\n" {
		t.Errorf("%q %v", line, err)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := r.ReadString('\n'); err != nil || line != "echo hello\n" {
		t.Errorf("%q %v", line, err)
	}
}

func TestOpenAPI(t *testing.T) {
	st := newSite(t)
	rt := st.admin()
	rt.DisableCompression = true
	text, err := openapi.Find("v2").JSON.Read()
	if err != nil {
		t.Fatal(err)
	}
	a := st.request(rt, "GET", "/openapi/v2", "")
	if !bytes.Equal(a.body, text) || a.header.Get("Content-Type") != "application/json" || a.header.Get("Content-Encoding") != "" {
		t.Errorf("%v %d bytes", a.header, len(a.body))
	}
	for range 2 { // made, and found again
		z := st.request(rt, "GET", "/openapi/v2", "", "Accept-Encoding", "gzip")
		r, err := gzip.NewReader(bytes.NewReader(z.body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, text) || z.header.Get("Content-Encoding") != "gzip" || z.header.Get("Content-Length") != strconv.Itoa(len(z.body)) {
			t.Errorf("%v %v", z.header, err)
		}
	}
	if a := st.request(rt, "GET", "/openapi/v2", "", "If-None-Match", a.header.Get("ETag")); a.code != 304 {
		t.Errorf("%d", a.code)
	}
	if p := st.request(rt, "GET", "/openapi/v2", "", "Accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"); p.code != 200 || !bytes.Contains(p.body, []byte("2.0")) || bytes.HasPrefix(p.body, []byte("{")) {
		t.Errorf("%d %d bytes", p.code, len(p.body))
	}
	// client-go asks for protobuf first and reads what comes.
	if _, err := st.clientset("").Discovery().OpenAPISchema(); err != nil {
		t.Error(err)
	}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		}
	}
	st.request(rt, "GET", "/openapi/v3", "").into(t, &index)
	if len(index.Paths) != len(openapi.All())-1 {
		t.Errorf("the index of version 3 has %d paths", len(index.Paths))
	}
	at := index.Paths["api/v1"].URL
	if a := st.request(rt, "GET", at, ""); !bytes.HasPrefix(a.body, []byte(`{"openapi":"3.0`)) || !strings.Contains(a.header.Get("Cache-Control"), "immutable") {
		t.Errorf("%s: %d %v", at, a.code, a.header)
	}
	if a := st.request(rt, "GET", "/openapi/v3/api/v1?hash=OLD", ""); a.code != 301 || a.header.Get("Location") != at {
		t.Errorf("%d %v", a.code, a.header)
	}
	for _, none := range []string{"/openapi", "/openapi/v1", "/openapi/v3/v2", "/openapi/v3/apis/apps/v2", "/openapi/merge"} {
		if a := st.request(rt, "GET", none, ""); a.code != 404 {
			t.Errorf("%s: %d", none, a.code)
		}
	}
}
