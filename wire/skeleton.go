package wire

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/hashicorp/raft"
)

// The ALPN names of the node protocols.
const (
	ProtoRaft = "conclave-raft/1"
	ProtoNode = "conclave-node/1"
	ProtoJoin = "conclave-join/1" // join and renewal; served by Node() too
)

// ErrLocal is returned by Config.Splice when API connections are served here.
var ErrLocal = errors.New("the API is served here")

// Config makes a Port.
type Config struct {
	Listener net.Listener
	TLS      func() *tls.Config // node protocols
	APITLS   func() *tls.Config // the Kubernetes API on a master
	// PeerID is the verified node id of a handshaken connection.
	PeerID      func(*tls.ConnectionState) (string, bool)
	Splice      func(ctx context.Context) (net.Conn, error) // a connection to a master's port; nil or ErrLocal: served here
	Unavailable http.Handler                                // default: 503 with a Status body
	Log         *slog.Logger
}

// Port is the one TLS port.
type Port struct{}

// New makes a Port.
func New(c Config) *Port { return nil }

// Run accepts until ctx ends.
func (p *Port) Run(ctx context.Context) error { return nil }

// Raft yields raft connections.
func (p *Port) Raft() net.Listener { return nil }

// Node yields connections of HTTP between nodes: serve it with ServeNode.
func (p *Port) Node() net.Listener { return nil }

// API yields Kubernetes API connections.
func (p *Port) API() net.Listener { return nil }

// ServeNode serves h on Node() until ctx ends: HTTP/2 under our own ALPN.
func ServeNode(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	return nil
}

// Certs gives the TLS config for dialling a node.
type Certs interface {
	Client(expectID string) *tls.Config
}

// Dialer reaches nodes by id.
type Dialer struct {
	Certs   Certs
	Resolve func(id string) []netip.AddrPort
	Log     *slog.Logger
}

// CallError is an answer that is no success.
type CallError struct {
	Code int
	Body string
}

func (e *CallError) Error() string { return e.Body }

// Dial connects to a node with a protocol.
func (d *Dialer) Dial(ctx context.Context, id, proto string) (net.Conn, error) { return nil, nil }

// Call posts body to a path of a node.
func (d *Dialer) Call(ctx context.Context, id, path string, body []byte) ([]byte, error) {
	return nil, nil
}

// Node is a RoundTripper for HTTP between nodes (streams), by id.
func (d *Dialer) Node(id string) http.RoundTripper { return nil }

// HTTP is a RoundTripper for the Kubernetes API of a master, by id.
func (d *Dialer) HTTP(id string) http.RoundTripper { return nil }

// Reset drops the kept connections to a node: it died, or its address changed.
func (d *Dialer) Reset(id string) {}

// Close drops all kept connections.
func (d *Dialer) Close() {}

// StreamLayer is a raft.StreamLayer whose addresses are node ids.
func (d *Dialer) StreamLayer(l net.Listener, id string) raft.StreamLayer { return nil }

var _ = time.Second
