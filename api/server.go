package api

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"

	"golang.org/x/sync/errgroup"

	"conclave/api/flow"
	"conclave/api/kinds"
	"conclave/api/webhook"
)

// Issuer is who signs the tokens of service accounts, and their audience
// where a request names none.
const Issuer = "https://kubernetes.default.svc.cluster.local"

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
	// ClientCAs verifies the certificates that clients presented; the TLS
	// layer need only ask for them. nil: no client certificates.
	ClientCAs func() *x509.CertPool
	// ServiceAccountSigner is the ECDSA P-256 key that signs and verifies the
	// tokens of service accounts. nil: no tokens.
	ServiceAccountSigner func() crypto.Signer
	// ServiceCIDR is where ClusterIPs come from, of IPv4, or of IPv6 in a cluster
	// of IPv6 alone; ServiceCIDR6 is the second one of a dual-stack cluster.
	ServiceCIDR, ServiceCIDR6 netip.Prefix
	// Nodes may be nil: then log, exec and their like answer 503.
	Nodes NodeConns
	// Dial replaces how proxies to pods and services connect if it is set.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// FrontProxy is the certificate by which API servers behind this one know that
	// it speaks for others. nil: they are shown none.
	FrontProxy func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// Leases are the leases of live nodes, shown in kube-node-lease.
	Leases func() []NodeLease
	// Ready says why this server cannot answer yet. nil: it always can.
	Ready func() error
	// Metrics is the text of GET /metrics; nil: there is none.
	Metrics func() []byte
	// Seats is how many requests over HTTP are served at once, but for those that no
	// level of priority limits. 0: flow.Seats.
	Seats int
	// Stale is asked before a read that any replica may answer
	// (resourceVersion=0). It says why what this one has may be old, and
	// nothing if there is no such doubt; an error refuses the read. nil: there
	// never is.
	Stale func(ctx context.Context) (string, error)
	// UnreachableToleration is how long, in a cluster that this server founds, a
	// pod that does not say otherwise stays bound to a node that cannot be
	// reached. Afterwards it is a setting of the cluster.
	UnreachableToleration time.Duration
	Version               version.Info
	Log                   *slog.Logger
	Now                   func() time.Time
}

// User is who makes a request.
type User struct {
	Name, UID string
	Groups    []string
	Extra     map[string][]string
}

// Attributes are what is asked for, and what it is decided on whether it may be.
type Attributes struct {
	Verb          string
	Resource      schema.GroupVersionResource // empty for a path
	Subresource   string
	Namespace     string
	Name          string
	LabelSelector string // of list, watch and deletecollection
	FieldSelector string
	Path          string // for what is not a resource
}

// Server is the API server. Make one by New.
type Server struct {
	cfg      Config
	log      *slog.Logger
	table    atomic.Pointer[table]
	reviews  map[schema.GroupVersionResource]*review
	served   map[schema.GroupVersion]bool // see ownVersions
	creators map[string]creator           // by "resource.group/subresource"
	disco    discovery                    // without custom resources
	customs  customs
	certs    certCache
	rights   rights
	fair     fairness
	hooks    webhook.Client
	remotes  remotes
	// The webhooks that are asked about writes.
	mutating, validating hookSet
	// The policies that are.
	mutates, judges policySet
	// ending ends when Run does, and with it all watches.
	ending context.Context
	end    context.CancelFunc
}

// New returns a server. It answers at once; Run need only be running for what
// it does in the background.
func New(cfg Config) (*Server, error) {
	if cfg.Storage == nil {
		return nil, errors.New("api: no storage")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	t, err := newTable(cfg.Kinds)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s := &Server{cfg: cfg, log: cfg.Log}
	s.fair.control = flow.New(cmp.Or(cfg.Seats, flow.Seats), cfg.Now, func() { s.fair.now(cfg.Storage) })
	s.hooks.Resolve, s.hooks.Dial = s.backendOf, s.dialPod
	s.ending, s.end = context.WithCancel(context.Background())
	for _, r := range t.rows {
		r.hooks = hooksOf(r)
	}
	s.table.Store(t)
	s.reviews = reviews(s)
	s.served = ownVersions(t, s.reviews)
	s.creators = creators()
	s.disco.build(s, t.rows, nil)
	return s, nil
}

// Run frees reservations that belong to nobody, ends the watches of custom
// resources that are served no more or otherwise, and ends all watches when ctx
// ends.
func (s *Server) Run(ctx context.Context) error {
	defer s.end()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.followDefinitions(ctx) })
	g.Go(func() error { return s.repairLoop(ctx) })
	return g.Wait()
}

// watchContext is ctx, ended also by the end of the server.
func (s *Server) watchContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ending, cancel)
	return ctx, func() { stop(); cancel() }
}
