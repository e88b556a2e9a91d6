package api_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"conclave/api"
	"conclave/api/apitest"
)

// site is a server behind real TLS, with a CA for its clients.
type site struct {
	*api.Server
	t     testing.TB
	store *apitest.Storage
	http  *httptest.Server
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
}

func newSite(t testing.TB, edit ...func(*api.Config)) *site {
	t.Helper()
	st := &site{t: t}
	st.key = newKey(t)
	st.ca = certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test-ca"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, nil, &st.key.PublicKey, st.key)
	pool := x509.NewCertPool()
	pool.AddCert(st.ca)
	edit = append([]func(*api.Config){func(c *api.Config) { c.ClientCAs = func() *x509.CertPool { return pool } }}, edit...)
	st.Server, st.store = apitest.NewServerStorage(t, edit...)
	st.http = httptest.NewUnstartedServer(st.Server)
	st.http.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	st.http.EnableHTTP2 = true
	st.http.StartTLS()
	t.Cleanup(func() { st.http.CloseClientConnections(); st.http.Close() })
	return st
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certify(t testing.TB, template, parent *x509.Certificate, pub *ecdsa.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// transport is the transport of a user with a certificate; no name: without.
func (st *site) transport(name string, groups ...string) *http.Transport {
	cfg := &tls.Config{InsecureSkipVerify: true} // who the server is, is not what these tests are about
	if name != "" {
		key := newKey(st.t)
		leaf := certify(st.t, &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: groups},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}, st.ca, &key.PublicKey, st.key)
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	st.t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func (st *site) admin() *http.Transport { return st.transport("admin", "system:masters") }

func (st *site) base() *url.URL {
	u, err := url.Parse(st.http.URL)
	if err != nil {
		st.t.Fatal(err)
	}
	return u
}

// clientset is client-go's client of an administrator.
func (st *site) clientset(contentType string) *kubernetes.Clientset {
	cs, err := kubernetes.NewForConfig(&rest.Config{
		Host: st.http.URL, Transport: st.admin(), QPS: -1,
		ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType},
	})
	if err != nil {
		st.t.Fatal(err)
	}
	return cs
}

// answer is a raw answer, and its body as JSON if it is.
type answer struct {
	code   int
	header http.Header
	body   []byte
}

func (a answer) status(t testing.TB) metav1.Status {
	t.Helper()
	var s metav1.Status
	if err := json.Unmarshal(a.body, &s); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
	return s
}

func (a answer) into(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v: %s", err, a.body)
	}
}

// request sends raw bytes; header pairs follow the body.
func (st *site) request(rt http.RoundTripper, method, path, body string, header ...string) answer {
	st.t.Helper()
	ctx, cancel := context.WithTimeout(st.t.Context(), 20*time.Second)
	defer cancel()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, st.http.URL+path, r)
	if err != nil {
		st.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		st.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		st.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, b.Bytes()}
}

func (st *site) namespace(name string) {
	st.t.Helper()
	c := st.Local(apitest.Admin)
	if _, err := c.Create(st.t.Context(), api.GVROf(&corev1.Namespace{}), "", "", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		st.t.Fatal(err)
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := c.Create(st.t.Context(), api.GVROf(sa), name, "", sa, metav1.CreateOptions{}); err != nil {
		st.t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func netipPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// impersonating asks to be taken for a user.
type impersonating struct {
	rt   http.RoundTripper
	user string
}

func (i impersonating) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Impersonate-User", i.user)
	return i.rt.RoundTrip(r)
}
