package api

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"conclave/api/types"
)

// Requests for a group and version of which an APIService names a Service are
// handed on to the API server behind it, by the replica that they come to, which
// finds the Service's endpoints as proxies and webhooks do. Who is who and who may
// what is decided here before; the other server is told the user in headers that
// it believes for the sake of our certificate (Config.FrontProxy). Nothing that
// the client says in those headers gets through.

var (
	apiServices       = types.Registration.WithResource("apiservices")
	apiServicesStored = apiServices.GroupResource().String()
)

const (
	// An API server behind this one has to say within this time what it serves.
	remotePatience = 5 * time.Second
	// Ways to other servers that are kept, with their idle connections.
	maxRemoteWays  = 64
	remoteIdleTime = 30 * time.Second
	// The longest answer that is read of a server's discovery.
	maxRemoteAnswer = 16 << 20

	remoteHeaders     = "x-remote-"
	remoteUserHeader  = "X-Remote-User"
	remoteUIDHeader   = "X-Remote-Uid"
	remoteGroupHeader = "X-Remote-Group"
	remoteExtraPrefix = "X-Remote-Extra-"
)

// aggregator asks other servers on our own account.
var aggregator = User{Name: "system:kube-aggregator", Groups: []string{groupMasters}}

// RequestHeaders is what an API server behind this one reads to know how it is
// told whose request it is: the data of the ConfigMap AuthenticationConfig,
// given in PEM the CA of clients, the CA of the front proxy, and in JSON the
// names that the latter's certificates have.
func RequestHeaders(clientCA, frontProxyCA []byte, names string) map[string]string {
	list := func(name string) string { return `["` + name + `"]` }
	return map[string]string{
		"client-ca-file":                     string(clientCA),
		"requestheader-client-ca-file":       string(frontProxyCA),
		"requestheader-allowed-names":        list(names),
		"requestheader-username-headers":     list(remoteUserHeader),
		"requestheader-uid-headers":          list(remoteUIDHeader),
		"requestheader-group-headers":        list(remoteGroupHeader),
		"requestheader-extra-headers-prefix": list(remoteExtraPrefix),
	}
}

// AuthenticationConfig is the ConfigMap of namespace kube-system by which API
// servers behind this one know clients and the front proxy.
const AuthenticationConfig = "extension-apiserver-authentication"

// remotes is what this replica keeps of the API servers behind it.
type remotes struct {
	mu     sync.Mutex
	ways   map[string]*http.Transport
	byName map[string]*remote // by the name of the APIService
}

// ownVersions are the groups and versions that are served from the table or by
// reviews: none of them can be given away. Every request asks for one.
func ownVersions(t *table, r map[schema.GroupVersionResource]*review) map[schema.GroupVersion]bool {
	own := map[schema.GroupVersion]bool{}
	for _, row := range t.rows {
		own[row.gvr.GroupVersion()] = true
	}
	for gvr := range r {
		own[gvr.GroupVersion()] = true
	}
	return own
}

// admitAPIService refuses to give away what the cluster itself is made of.
func admitAPIService(_ context.Context, c *call, obj, _ Object) error {
	o, ok := obj.(*types.APIService)
	if !ok || o.Spec.Service == nil {
		return nil
	}
	if gv := (schema.GroupVersion{Group: o.Spec.Group, Version: o.Spec.Version}); c.s.served[gv] {
		return forbiddenObject(c.res.gr(), o.Name, fmt.Sprintf("%s is served by the cluster itself and cannot be served by a service", gv))
	}
	return nil
}

// remoteOf is the APIService by which another server serves a group and version,
// nil if none does.
func (s *Server) remoteOf(gv schema.GroupVersion) *types.APIService {
	if s.served[gv] {
		return nil
	}
	rec := s.cfg.Storage.Get(apiServicesStored, "", gv.Version+"."+gv.Group)
	if rec == nil {
		return nil
	}
	o, ok := rec.Object().(*types.APIService)
	if !ok || o.Spec.Service == nil {
		return nil
	}
	return o
}

// remoteAt is remoteOf of the group and version that a path is below.
func (s *Server) remoteAt(path string) *types.APIService {
	parts := strings.SplitN(strings.Trim(path, "/"), "/", 4)
	if len(parts) < 3 || parts[0] != "apis" {
		return nil
	}
	return s.remoteOf(schema.GroupVersion{Group: parts[1], Version: parts[2]})
}

// straight says that a path means the same to everybody: nothing in it is empty,
// or leads up.
func straight(path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	for _, part := range strings.Split(strings.TrimSuffix(path[1:], "/"), "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// handOn answers by another server, for a user who may.
func (x *exchange) handOn(o *types.APIService) error {
	if !straight(x.r.URL.Path) {
		return errNoSuchPath // what we decided on need not be what the server reads
	}
	return x.askRemote(o, x.user, x.r.URL.Path)
}

// askRemote answers by another server, as asked by some user.
func (x *exchange) askRemote(o *types.APIService, as User, path string) error {
	unavailable := func() error {
		// In so many words, as plain text: clients make their own message of it.
		http.Error(x.w, "service unavailable", http.StatusServiceUnavailable)
		return nil
	}
	if !o.IsAvailable() {
		return unavailable()
	}
	s := o.Spec.Service
	if _, err := x.s.backendOf(s.Namespace, s.Name, ptr.Deref(s.Port, 443)); err != nil {
		x.s.log.Info("a request cannot be handed on", "apiservice", o.Name, "error", err)
		return unavailable()
	}
	way, base, err := x.s.remoteWay(o)
	if err != nil {
		http.Error(x.w, err.Error(), http.StatusInternalServerError)
		return nil
	}
	ctx, cancel := x.s.watchContext(x.r.Context())
	if x.target.Verb != "watch" && !x.streams() && x.r.Header.Get("Upgrade") == "" {
		cancel()
		ctx, cancel = context.WithTimeout(x.r.Context(), requestTime)
	}
	defer cancel()
	x.r = x.r.WithContext(ctx)
	answered := func(r *http.Response) error {
		if x.target.Verb == "watch" || r.StatusCode == http.StatusSwitchingProtocols {
			x.seat.Leave()
		}
		return noRedirect(r)
	}
	x.forward(base, path, x.query, way, answered, func(h http.Header) { tellUser(h, as) })
	return nil
}

// noRedirect refuses an answer that sends the client somewhere else, where it
// would go with its credentials.
func noRedirect(r *http.Response) error {
	if r.StatusCode < 300 || r.StatusCode > 399 || r.Header.Get("Location") == "" {
		return nil
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusBadGateway, Reason: metav1.StatusReasonUnknown,
		Message: "the backend attempted to redirect this request, which is not permitted", Details: &metav1.StatusDetails{},
	}}
}

// tellUser says in a request's header whose it is, and takes out whatever else
// might be read so.
func tellUser(h http.Header, u User) {
	for name := range h {
		if strings.HasPrefix(strings.ReplaceAll(strings.ToLower(name), "_", "-"), remoteHeaders) {
			delete(h, name)
		}
	}
	h.Set(remoteUserHeader, u.Name)
	if u.UID != "" {
		h.Set(remoteUIDHeader, u.UID)
	}
	for _, g := range u.Groups {
		h.Add(remoteGroupHeader, g)
	}
	for key, values := range u.Extra {
		for _, v := range values {
			h.Add(remoteExtraPrefix+escapedName(key), v)
		}
	}
}

// escapedName is a text as a part of a header's name: what may not be in one is
// percent-encoded.
func escapedName(text string) string {
	const others = "!#$&'*+-.^_`|~"
	var b strings.Builder
	for i := range len(text) {
		c := text[i]
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(others, c) >= 0 {
			b.WriteByte(c)
			continue
		}
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// remoteWay is what carries requests to the server of an APIService, and the
// server's address: a name, by which it is known, whose connections lead to one of
// the Service's endpoints.
func (s *Server) remoteWay(o *types.APIService) (*http.Transport, *url.URL, error) {
	ref, port := o.Spec.Service, ptr.Deref(o.Spec.Service.Port, 443)
	name := ref.Name + "." + ref.Namespace + ".svc"
	base := &url.URL{Scheme: "https", Host: net.JoinHostPort(name, strconv.Itoa(int(port)))}
	key := strings.Join([]string{base.Host, strconv.FormatBool(o.Spec.InsecureSkipTLSVerify), string(o.Spec.CABundle)}, "\x00")
	s.remotes.mu.Lock()
	defer s.remotes.mu.Unlock()
	if way := s.remotes.ways[key]; way != nil {
		return way, base, nil
	}
	trust := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name, GetClientCertificate: s.cfg.FrontProxy,
		InsecureSkipVerify: o.Spec.InsecureSkipTLSVerify, // as its owner wants it
	}
	if len(o.Spec.CABundle) > 0 {
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(o.Spec.CABundle) {
			return nil, nil, errors.New("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	way := &http.Transport{
		TLSClientConfig: trust, IdleConnTimeout: remoteIdleTime, MaxIdleConnsPerHost: 16, TLSHandshakeTimeout: 10 * time.Second,
		DisableCompression: true, // what the client asks for, it gets
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			at, err := s.backendOf(ref.Namespace, ref.Name, port)
			if err != nil {
				return nil, err
			}
			return s.dialPod(ctx, network, at)
		},
	}
	if len(s.remotes.ways) >= maxRemoteWays {
		for _, old := range s.remotes.ways {
			old.CloseIdleConnections()
		}
		s.remotes.ways = nil
	}
	if s.remotes.ways == nil {
		s.remotes.ways = map[string]*http.Transport{}
	}
	s.remotes.ways[key] = way
	return way, base, nil
}

// fetch reads a path of another server on our own account.
func (s *Server) fetch(ctx context.Context, o *types.APIService, path string) ([]byte, error) {
	return s.call(ctx, o, http.MethodGet, path)
}

// call is fetch by any method, without a body.
func (s *Server) call(ctx context.Context, o *types.APIService, method, path string) ([]byte, error) {
	way, base, err := s.remoteWay(o)
	if err != nil {
		return nil, err
	}
	at := base.JoinPath(path)
	ctx, cancel := context.WithTimeout(ctx, remotePatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, at.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", mediaJSON)
	tellUser(req.Header, aggregator)
	resp, err := way.RoundTrip(req)
	if err != nil {
		way.CloseIdleConnections()
		return nil, fmt.Errorf("failing or missing response from %s: %w", at, withoutSource(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return nil, &badStatus{at.String(), resp.StatusCode}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxRemoteAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("failing or missing response from %s: %w", at, withoutSource(err))
	case len(body) > maxRemoteAnswer:
		return nil, fmt.Errorf("the response from %s has more than %d bytes", at, maxRemoteAnswer)
	}
	return body, nil
}

// badStatus is an answer that says no.
type badStatus struct {
	at   string
	code int
}

func (e *badStatus) Error() string {
	return fmt.Sprintf("failing or missing response from %s: bad status from %s: %d", e.at, e.at, e.code)
}

// withoutSource leaves out of a failure our own port, which differs each time:
// the same failure has the same text.
func withoutSource(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		short := *op
		short.Source = nil
		return &short
	}
	return err
}

// ProbeAPIService asks the server of an APIService for what it serves, of several
// endpoints a few, and says why none answers.
func (s *Server) ProbeAPIService(ctx context.Context, o *types.APIService) error {
	path := "/apis/" + o.Spec.Group + "/" + o.Spec.Version
	_, err := s.fetch(ctx, o, path)
	if err == nil {
		return nil
	}
	const more = 4
	answers := make(chan error, more)
	for range more {
		go func() {
			_, err := s.fetch(ctx, o, path)
			answers <- err
		}()
	}
	worked := false
	for range more {
		if again := <-answers; again == nil {
			worked = true
		}
	}
	if worked {
		return nil
	}
	return err
}
