package api

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"conclave/api/kinds"
)

// Issuer is who signs the tokens of service accounts, and their audience
// where a request names none.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// OpenAPI is the documents that describe the kinds, as package openapi makes
// them.
type OpenAPI interface {
	V2() []byte            // JSON, gzipped
	V3() map[string][]byte // "api/v1", "apis/apps/v1" → JSON, gzipped
}

// NodeConns reaches the kubelet API of a node.
type NodeConns interface {
	// Kubelet returns where the node's kubelet API answers and the transport
	// that reaches it with the right certificates.
	Kubelet(ctx context.Context, nodeName string) (base *url.URL, rt http.RoundTripper, err error)
}

// NodeLease is what is known of a node's heartbeat, kept in memory alone.
type NodeLease struct {
	Name     string // of the node
	Holder   string
	Renewed  time.Time
	Acquired time.Time
	Duration time.Duration
}

// Config is what a Server works with.
type Config struct {
	Storage Storage
	Kinds   []*kinds.Kind
	// OpenAPI may be nil: then /openapi answers 404.
	OpenAPI OpenAPI
	// ClientCAs verifies the certificates that clients presented; the TLS
	// layer need only ask for them. nil: no client certificates.
	ClientCAs func() *x509.CertPool
	// ServiceAccountSigner is the ECDSA P-256 key that signs and verifies the
	// tokens of service accounts. nil: no tokens.
	ServiceAccountSigner func() crypto.Signer
	// ServiceCIDR is where ClusterIPs come from.
	ServiceCIDR netip.Prefix
	// Nodes may be nil: then log, exec and their like answer 503.
	Nodes NodeConns
	// Leases are the leases of live nodes, shown in kube-node-lease.
	Leases func() []NodeLease
	// Ready says why this server cannot answer yet. nil: it always can.
	Ready func() error
	// UnreachableToleration is how long a pod that does not say otherwise
	// stays bound to a node that is not ready or unreachable.
	UnreachableToleration time.Duration
	Version               version.Info
	Log                   *slog.Logger
	Now                   func() time.Time
	// Authorizer replaces the built-in rules if it is set.
	Authorizer Authorizer
}

// User is who makes a request.
type User struct {
	Name, UID string
	Groups    []string
	Extra     map[string][]string
}

// Authorizer decides who may do what.
type Authorizer interface {
	// Authorize returns nil where the user may, or else the reason, which may
	// be empty, wrapped in Denied.
	Authorize(ctx context.Context, u User, a Attributes) error
}

// Attributes are what an Authorizer decides on.
type Attributes struct {
	Verb        string
	Resource    schema.GroupVersionResource // empty for a path
	Subresource string
	Namespace   string
	Name        string
	Path        string // for what is not a resource
}

// Server is the API server. Make one by New.
type Server struct{ cfg Config }

// New returns a server that answers once Run has been called.
func New(cfg Config) (*Server, error) { return &Server{cfg}, nil }

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {}

// Run does what the server does besides answering, and ends all watches when
// ctx ends.
func (s *Server) Run(ctx context.Context) error { return nil }

// Local is the client of this process, acting as u. It encodes nothing: it
// reads this replica's own records as they are, without asking the leader
// whether they are the newest.
func (s *Server) Local(u User) Client { return nil }

// EnsureDefaults creates what every cluster has. The leader calls it.
func (s *Server) EnsureDefaults(ctx context.Context) error { return nil }

// SetMasters keeps the endpoints of the kubernetes service.
func (s *Server) SetMasters(ctx context.Context, masters []netip.AddrPort) error { return nil }

// NewHTTP is a client of the server at base: protobuf for built-in kinds.
func NewHTTP(base *url.URL, rt http.RoundTripper) Client { return nil }

// Follow keeps h told of the state of a resource until ctx ends.
func Follow(ctx context.Context, c Client, r schema.GroupVersionResource, namespace string, o metav1.ListOptions, h Handler) error {
	return errors.New("not yet")
}
