package api_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/utils/ptr"

	"conclave/api"
	"conclave/api/apitest"
	"conclave/api/flow"
	"conclave/api/types"
)

const flunders = "/apis/wardle.example.com/v1alpha1/namespaces/shop/flunders"

// extension is a server behind ours, and what it was last asked.
type extension struct {
	*site
	server *httptest.Server
	ca     []byte // PEM

	mu    sync.Mutex
	asked *http.Request
	peers []*x509.Certificate
	down  bool // answers discovery with 500

	lists   []string // of flunders, the next after each deletion
	deleted []string
}

func (e *extension) last() *http.Request {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

// fail lets it answer nothing but that it cannot.
func (e *extension) fail() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.down = true
}

// forget lets last be of what is asked from now on.
func (e *extension) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = nil
}

// hold has it list flunders so, the next after each deletion, and returns what
// was deleted.
func (e *extension) hold(lists []string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lists = lists
	return slices.Clone(e.deleted)
}

// newExtension has a certificate for this name, and an APIService that says that
// it is available.
func newExtension(t *testing.T, name string) *extension {
	e := &extension{}
	const address = "10.1.2.3" // of its pod
	key := newKey(t)
	front := certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "front-proxy-client"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, nil, &key.PublicKey, key)
	e.site = newSite(t, func(c *api.Config) {
		c.Dial = func(ctx context.Context, network, at string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, strings.Replace(at, address, "127.0.0.1", 1))
		}
		c.FrontProxy = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &tls.Certificate{Certificate: [][]byte{front.Raw}, PrivateKey: key, Leaf: front}, nil
		}
	})
	own := newKey(t)
	cert := certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}, nil, &own.PublicKey, own)
	e.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	e.server = httptest.NewUnstartedServer(e)
	e.server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: own}}}
	e.server.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that have to fail
	e.server.StartTLS()
	t.Cleanup(func() { e.server.CloseClientConnections(); e.server.Close() })
	at, err := url.Parse(e.server.URL)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(at.Port())
	if err != nil {
		t.Fatal(err)
	}
	e.namespace("shop")
	c := e.Local(apitest.Admin)
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "web", Port: 443}}}}
	must(c.Create(t.Context(), api.GVROf(svc), "shop", "", svc, metav1.CreateOptions{}))(t)
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "by-hand", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}}, AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}}, Ports: []discoveryv1.EndpointPort{{Name: ptr.To("web"), Port: ptr.To(int32(number))}},
	}
	must(c.Create(t.Context(), api.GVROf(slice), "shop", "", slice, metav1.CreateOptions{}))(t)
	e.post("/apis/apiregistration.k8s.io/v1/apiservices", fmt.Sprintf(`{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"v1alpha1.wardle.example.com"},
"spec":{"group":"wardle.example.com","version":"v1alpha1","groupPriorityMinimum":2000,"versionPriority":200,"caBundle":%q,"service":{"namespace":"shop","name":"s"}}}`, base64.StdEncoding.EncodeToString(e.ca)), 201)
	e.say(types.APIServiceCondition{Status: "True", Reason: "Passed"})
	return e
}

func (e *extension) registered() *types.APIService {
	r := types.Registration.WithResource("apiservices")
	return must(e.Local(apitest.Admin).Get(e.t.Context(), r, "", "v1alpha1.wardle.example.com", metav1.GetOptions{}))(e.t).(*types.APIService)
}

// say writes the condition that the leader would.
func (e *extension) say(c types.APIServiceCondition) {
	e.t.Helper()
	o := e.registered().DeepCopyObject().(*types.APIService)
	c.Type = types.APIAvailable
	o.SetCondition(c)
	must(e.Local(apitest.Admin).Update(e.t.Context(), types.Registration.WithResource("apiservices"), "", o, metav1.UpdateOptions{}, "status"))(e.t)
}

func (e *extension) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	e.asked, e.peers = r, r.TLS.PeerCertificates
	down, listed := e.down, ""
	if len(e.lists) > 0 {
		listed = e.lists[min(len(e.deleted), len(e.lists)-1)]
	}
	e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case down:
		w.WriteHeader(http.StatusInternalServerError)
	case r.Header.Get("Upgrade") != "":
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", r.Header.Get("Upgrade"))
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := rw.ReadString('\n')
		_, _ = io.WriteString(conn, "you said "+line)
	case r.URL.Path == "/apis/wardle.example.com/v1alpha1":
		_, _ = io.WriteString(w, `{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"wardle.example.com/v1alpha1","resources":[
{"name":"flunders/status","namespaced":true,"kind":"Flunder","verbs":["get"]},{"name":"flunders","singularName":"flunder","namespaced":true,"kind":"Flunder","verbs":["get","list","delete"]},{"name":"orphans/status","kind":"X","verbs":["get"]}]}`)
	case r.URL.Path == "/openapi/v3":
		_, _ = io.WriteString(w, `{"paths":{"apis/wardle.example.com/v1alpha1":{"serverRelativeURL":"/openapi/v3/apis/wardle.example.com/v1alpha1?hash=A"},"apis/apps/v1":{"serverRelativeURL":"/openapi/v3/apis/apps/v1?hash=B"}}}`)
	case r.URL.Path == flunders && r.Method == "DELETE", strings.HasPrefix(r.URL.Path, flunders+"/kept") && r.Method == "DELETE":
		e.mu.Lock()
		e.deleted = append(e.deleted, strings.TrimPrefix(r.URL.Path, flunders))
		e.mu.Unlock()
		_, _ = io.WriteString(w, `{}`)
	case r.URL.Path == flunders && listed != "":
		_, _ = io.WriteString(w, listed)
	case strings.HasSuffix(r.URL.Path, "/away"):
		http.Redirect(w, r, "https://elsewhere.test/", http.StatusFound)
	case r.URL.Query().Get("watch") == "true":
		_, _ = io.WriteString(w, "one\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	default:
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.RequestURI())
	}
}

// TestAggregateIdentity says who the server behind is told that it is, whatever
// the client says.
func TestAggregateIdentity(t *testing.T) {
	e := newExtension(t, "s.shop.svc")
	a := e.request(e.admin(), "GET", flunders+"?limit=5", "",
		"X-Remote-User", "mallory", "X-Remote-Group", "system:masters", "X-Remote-Extra-Scopes", "all", "X_Remote_User", "mallory", "X-Remote-Uid", "0", "X-Remote-Other", "x",
		"Authorization", "Bearer x",
		"Impersonate-User", "jane", "Impersonate-Group", "system:masters", "Impersonate-Uid", "42", "Impersonate-Extra-Acme.com%2fproject", "p1")
	if a.code != 200 || string(a.body) != "GET "+flunders+"?limit=5" {
		t.Fatalf("%d %s", a.code, a.body)
	}
	got := http.Header{}
	for name, values := range e.last().Header {
		if n := strings.ToLower(strings.ReplaceAll(name, "_", "-")); strings.HasPrefix(n, "x-remote-") || n == "authorization" || strings.HasPrefix(n, "impersonate-") {
			got[name] = values
		}
	}
	want := http.Header{
		"X-Remote-User": {"jane"}, "X-Remote-Uid": {"42"}, "X-Remote-Group": {"system:masters", "system:authenticated"},
		http.CanonicalHeaderKey("X-Remote-Extra-acme.com%2Fproject"): {"p1"},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("it is told\n%v, not\n%v", got, want)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.peers) != 1 || e.peers[0].Subject.CommonName != "front-proxy-client" {
		t.Errorf("it is shown the certificates %v", e.peers)
	}
}

// TestAggregateRights says that the question is that of any resource, and that no
// path gets around it.
func TestAggregateRights(t *testing.T) {
	e := newExtension(t, "s.shop.svc")
	jane := e.transport("jane")
	for _, path := range []string{flunders, flunders + "/a", flunders + "/a/status", flunders + "/a/status/deeper/still", flunders + "/a/proxy/x"} {
		e.forget()
		if a := e.request(jane, "GET", path, ""); a.code != 403 || e.last() != nil {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
	for _, path := range []string{
		"/apis/wardle.example.com/v1alpha1//namespaces/shop/flunders", flunders + "/../../secrets", flunders + "/./a", flunders + "/%2e%2e/x", flunders + "/a%2F..%2Fb",
	} {
		e.forget()
		if a := e.request(e.admin(), "GET", path, ""); a.code != 404 || e.last() != nil {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
	// Discovery is for everybody who is somebody.
	if a := e.request(jane, "GET", "/apis/wardle.example.com/v1alpha1", ""); a.code != 200 || e.last().Header.Get("X-Remote-User") != "jane" {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := e.request(e.transport(""), "GET", "/apis/wardle.example.com/v1alpha1", ""); a.code != 403 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

func TestAggregateAnswers(t *testing.T) {
	e := newExtension(t, "s.shop.svc")
	if a := e.request(e.admin(), "GET", flunders+"/away", ""); a.code != 502 || a.header.Get("Location") != "" || !strings.Contains(a.status(t).Message, "attempted to redirect") {
		t.Errorf("a redirect: %d %s", a.code, a.body)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", e.http.URL+flunders+"?watch=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := e.admin().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "one\n" {
		t.Errorf("a watch: %q %v", line, err)
	}
	// It has begun, and so has no seat any more; nor has the request before, soon.
	for slices.ContainsFunc(e.Fairness(), func(l flow.Stats) bool { return l.Serving > 0 }) {
		if ctx.Err() != nil {
			t.Fatalf("seats are taken: %+v", e.Fairness())
		}
		runtime.Gosched()
	}
	cancel()
	resp.Body.Close()

	one := e.transport("admin", "system:masters")
	conn, err := tls.Dial("tcp", strings.TrimPrefix(e.http.URL, "https://"), &tls.Config{InsecureSkipVerify: true, Certificates: one.TLSClientConfig.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET %s/a/shell HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, X-Remote-User\r\nUpgrade: SPDY/3.1\r\nX-Remote-User: mallory\r\n\r\n", flunders)
	r := bufio.NewReader(conn)
	up, err := http.ReadResponse(r, nil)
	if err != nil || up.StatusCode != 101 || e.last().Header.Get("X-Remote-User") != "admin" || len(e.last().Header.Values("X-Remote-User")) != 1 {
		t.Fatalf("an upgrade: %v %v %v", up, err, e.last().Header)
	}
	fmt.Fprintln(conn, "hello")
	if line, err := r.ReadString('\n'); line != "you said hello\n" {
		t.Errorf("after an upgrade: %q %v", line, err)
	}
}

// TestAggregateUnavailable is of what cannot be reached, or is not whom we think.
func TestAggregateUnavailable(t *testing.T) {
	plain := func(e *extension, what string) {
		t.Helper()
		a := e.request(e.admin(), "GET", flunders, "")
		if a.code != 503 || string(a.body) != "service unavailable\n" || e.last() != nil {
			t.Errorf("%s: %d %s", what, a.code, a.body)
		}
	}
	e := newExtension(t, "s.shop.svc")
	e.say(types.APIServiceCondition{Status: "False", Reason: "MissingEndpoints"})
	plain(e, "not available")
	e.say(types.APIServiceCondition{Status: "True", Reason: "Passed"})
	slices := discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
	if err := e.Local(apitest.Admin).Delete(t.Context(), slices, "shop", "by-hand", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	plain(e, "without endpoints")

	other := newExtension(t, "s.other.svc")
	if a := other.request(other.admin(), "GET", flunders, ""); a.code != 503 || !strings.Contains(a.status(t).Message, "certificate is valid for s.other.svc, not s.shop.svc") {
		t.Errorf("a server of another name: %d %s", a.code, a.body)
	}
	err := other.ProbeAPIService(t.Context(), other.registered())
	if err == nil || !strings.HasPrefix(err.Error(), "failing or missing response from https://s.shop.svc:443/apis/wardle.example.com/v1alpha1: ") {
		t.Errorf("a probe of it: %v", err)
	}
	trusting := other.registered().DeepCopyObject().(*types.APIService)
	trusting.Spec.CABundle, trusting.Spec.InsecureSkipTLSVerify = nil, true
	if err := other.ProbeAPIService(t.Context(), trusting); err != nil {
		t.Errorf("with insecureSkipTLSVerify: %v", err)
	}
	other.fail()
	if err := other.ProbeAPIService(t.Context(), trusting); err == nil || !strings.HasSuffix(err.Error(), "bad status from https://s.shop.svc:443/apis/wardle.example.com/v1alpha1: 500") {
		t.Errorf("a probe of what fails: %v", err)
	}
}

// TestAggregateDiscovery is of what clients are shown, also while the server is
// away.
func TestAggregateDiscovery(t *testing.T) {
	e := newExtension(t, "s.shop.svc")
	var groups metav1.APIGroupList
	e.request(e.admin(), "GET", "/apis", "").into(t, &groups)
	i := slices.IndexFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == "wardle.example.com" })
	if i < 0 || groups.Groups[i].PreferredVersion.GroupVersion != "wardle.example.com/v1alpha1" {
		t.Errorf("groups are %+v", groups)
	}
	if groups.Groups[0].Name != "apps" {
		t.Errorf("the first group is %s, not that of the highest priority", groups.Groups[0].Name)
	}
	if a := e.request(e.admin(), "GET", "/apis/wardle.example.com", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	whole := func() *discoveryv2.APIVersionDiscovery {
		t.Helper()
		var all discoveryv2.APIGroupDiscoveryList
		e.request(e.admin(), "GET", "/apis", "", "Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList").into(t, &all)
		for _, g := range all.Items {
			if g.Name == "wardle.example.com" {
				return &g.Versions[0]
			}
		}
		t.Fatal("there is no such group")
		return nil
	}
	if v := whole(); v.Freshness != "Current" || len(v.Resources) != 1 || v.Resources[0].Resource != "flunders" || len(v.Resources[0].Subresources) != 1 {
		t.Errorf("it is %+v", v)
	}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		}
	}
	e.request(e.admin(), "GET", "/openapi/v3", "").into(t, &index)
	at := index.Paths["apis/wardle.example.com/v1alpha1"].URL
	if at != "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=A" || strings.HasSuffix(index.Paths["apis/apps/v1"].URL, "=B") {
		t.Errorf("the index is %+v", index)
	}
	if a := e.request(e.transport("jane"), "GET", at, ""); string(a.body) != "GET "+at || e.last().Header.Get("X-Remote-User") != "system:kube-aggregator" {
		t.Errorf("%d %s", a.code, a.body)
	}

	e.fail()
	e.say(types.APIServiceCondition{Status: "False", Reason: "FailedDiscoveryCheck"})
	if v := whole(); v.Freshness != "Stale" || len(v.Resources) != 1 {
		t.Errorf("while it is away, it is %+v", v)
	}
	// client-go gives what there is, and says what is missing.
	lists, err := e.clientset("application/json").Discovery().ServerPreferredResources()
	failed, ok := errors.AsType[*discovery.ErrGroupDiscoveryFailed](err)
	if !ok || len(failed.Groups) != 1 || len(lists) < 10 {
		t.Errorf("%d lists and %v", len(lists), err)
	}
	if a := e.request(e.admin(), "GET", "/api/v1/namespaces/shop/services", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	// A group that is given back is the definitions' again.
	r := types.Registration.WithResource("apiservices")
	if err := e.Local(apitest.Admin).Delete(t.Context(), r, "", "v1alpha1.wardle.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if a := e.request(e.admin(), "GET", "/apis/wardle.example.com", ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := e.request(e.admin(), "GET", flunders, ""); a.code != 404 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestAPIServiceOwn says that what the cluster itself is made of is not given away.
func TestAPIServiceOwn(t *testing.T) {
	st := newSite(t)
	body := func(group, version string) string {
		return fmt.Sprintf(`{"apiVersion":"apiregistration.k8s.io/v1","kind":"APIService","metadata":{"name":"%s.%s"},
"spec":{"group":%q,"version":%q,"groupPriorityMinimum":100,"versionPriority":1,"insecureSkipTLSVerify":true,"service":{"namespace":"shop","name":"s"}}}`, version, group, group, version)
	}
	const path = "/apis/apiregistration.k8s.io/v1/apiservices"
	for _, gv := range [][2]string{{"apps", "v1"}, {"", "v1"}, {"authorization.k8s.io", "v1"}, {"apiregistration.k8s.io", "v1"}} {
		if a := st.post(path, body(gv[0], gv[1]), 403); !strings.Contains(a.status(t).Message, "is served by the cluster itself") {
			t.Errorf("%v: %s", gv, a.body)
		}
	}
	for _, gv := range [][2]string{{"metrics.k8s.io", "v1beta1"}, {"apps", "v9"}} {
		st.post(path, body(gv[0], gv[1]), 201)
	}
}

// TestEmptyBehind is of what is deleted with a namespace.
func TestEmptyBehind(t *testing.T) {
	e := newExtension(t, "s.shop.svc")
	e.hold([]string{
		`{"items":[{"metadata":{"name":"kept-1","finalizers":["f"]}},{"metadata":{"name":"kept-2"}}]}`, "",
		`{"items":[{"metadata":{"name":"kept-1","finalizers":["f"]}}]}`,
	})
	left, unknown, err := e.EmptyBehind(t.Context(), "shop")
	if err != nil || len(unknown) > 0 || len(left) != 1 || left[0].Count != 1 || left[0].Finalizers["f"] != 1 || left[0].Resource.Resource != "flunders" {
		t.Errorf("%+v %v %v", left, unknown, err)
	}
	if got := fmt.Sprint(e.hold(nil)); got != "[/kept-1 /kept-2]" {
		t.Errorf("deleted was %s", got)
	}
	e.hold([]string{`{"items":[]}`})
	if left, unknown, err := e.EmptyBehind(t.Context(), "shop"); err != nil || len(left)+len(unknown) > 0 {
		t.Errorf("%+v %v %v", left, unknown, err)
	}
	e.say(types.APIServiceCondition{Status: "False", Reason: "MissingEndpoints"})
	_, unknown, err = e.EmptyBehind(t.Context(), "shop")
	if err != nil || fmt.Sprint(unknown) != "[wardle.example.com/v1alpha1: stale GroupVersion discovery: wardle.example.com/v1alpha1]" {
		t.Errorf("%v %v", unknown, err)
	}
}
