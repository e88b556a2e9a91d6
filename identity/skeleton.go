package identity

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"
)

var errSkeleton = errors.New("not written yet")

// Node is this machine's identity: a key pair made at first start.
type Node struct{}

// Cluster is what every member knows of its cluster. JoinSecret is set only in
// what Authority.Cluster returns.
type Cluster struct {
	ID, Domain           string
	PodCIDR, ServiceCIDR netip.Prefix
	DNS                  netip.Addr
	GossipKey            []byte
	JoinSecret           []byte
	CA                   []byte // PEM
}

// Open reads the identity in dir (data-dir/identity), making the key first.
func Open(dir string) (*Node, error) { return nil, errSkeleton }

// ID is the node's id in hex.
func (n *Node) ID() string { return "" }

// Name is the Kubernetes name, empty in no cluster.
func (n *Node) Name() string { return "" }

// NoMaster says whether the node joined with --no-master.
func (n *Node) NoMaster() bool { return false }

// Cluster is false on a fresh node.
func (n *Node) Cluster() (Cluster, bool) { return Cluster{}, false }

// CSR makes a certificate request of the node's key.
func (n *Node) CSR(name string, addrs []netip.Addr) ([]byte, error) { return nil, errSkeleton }

// FoundOptions are the founder's choices; zero fields get defaults.
type FoundOptions struct {
	Name                 string
	Addresses            []netip.Addr
	MasterDir            string // default: "master" beside the identity's folder
	Domain               string
	PodCIDR, ServiceCIDR netip.Prefix
	DNS                  netip.Addr
}

// Found makes the cluster on its first node.
func (n *Node) Found(ctx context.Context, o FoundOptions) (*Authority, error) {
	return nil, errSkeleton
}

// Authority is the CA and the other secrets that masters share.
type Authority struct{}

// OpenAuthority reads it from data-dir/master; os.ErrNotExist if not a master.
func OpenAuthority(masterDir string) (*Authority, error) { return nil, errSkeleton }

// SaveBundle stores another master's Bundle.
func SaveBundle(masterDir string, bundle []byte) (*Authority, error) { return nil, errSkeleton }

// Bundle is the whole authority, for a node that becomes a master.
func (a *Authority) Bundle() []byte { return nil }

// Cluster includes the JoinSecret.
func (a *Authority) Cluster() Cluster { return Cluster{} }

// Token is what a new node needs to join.
func (a *Authority) Token(addresses []string) Token { return Token{} }

// SignNode issues a node certificate.
func (a *Authority) SignNode(csrDER []byte, name string, addrs []netip.Addr, dns []string, noMaster bool, now time.Time) ([]byte, error) {
	return nil, errSkeleton
}

// SignServing mints an API serving certificate. A name "conclave://node/ID"
// becomes a URI, so that HTTP by node id can check it.
func (a *Authority) SignServing(names []string, addrs []netip.Addr) (*tls.Certificate, error) {
	return nil, errSkeleton
}

// Serving is a GetCertificate that mints and re-mints SignServing.
func (a *Authority) Serving(names []string, addrs func() []netip.Addr) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil
}

// SignClient issues a user's client certificate.
func (a *Authority) SignClient(user string, groups []string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	return nil, nil, errSkeleton
}

// ServiceAccountSigner signs service account tokens (ES256).
func (a *Authority) ServiceAccountSigner() crypto.Signer { return nil }

// Sealer seals Secrets at rest.
func (a *Authority) Sealer() *Sealer { return nil }

// Sealer seals with AES-256-GCM under a versioned prefix.
type Sealer struct{}

// Seal encrypts plain, bound to aad.
func (s *Sealer) Seal(plain, aad []byte) ([]byte, error) { return nil, errSkeleton }

// Open decrypts what Seal made.
func (s *Sealer) Open(sealed, aad []byte) ([]byte, error) { return nil, errSkeleton }

// Token is what a new node needs to join.
type Token struct {
	CAHash    [32]byte
	Secret    []byte
	Addresses []string
}

func (t Token) String() string { return "" }

// ParseToken reads a Token's String.
func ParseToken(s string) (Token, error) { return Token{}, errSkeleton }

// CertificatesConfig makes Certificates.
type CertificatesConfig struct {
	Node      *Node
	Renew     func(ctx context.Context, csrDER []byte) (certPEM []byte, err error)
	Addresses func() []netip.Addr
	Now       func() time.Time
	Log       *slog.Logger
}

// Certificates keeps the node's certificate fresh and hands out TLS configs.
type Certificates struct{}

// NewCertificates makes Certificates.
func NewCertificates(c CertificatesConfig) (*Certificates, error) { return nil, errSkeleton }

// Run renews until ctx ends.
func (c *Certificates) Run(ctx context.Context) error { return errSkeleton }

// Kick looks again now: the addresses changed.
func (c *Certificates) Kick() {}

// Server is the TLS config of the node protocols.
func (c *Certificates) Server(nextProtos ...string) *tls.Config { return nil }

// Client is the TLS config to dial the node with this id.
func (c *Certificates) Client(expectID string) *tls.Config { return nil }

// ProtoJoin is the ALPN of join and renewal: the only protocol that admits a
// peer without a certificate or with an expired one. PeerID is false on it.
const ProtoJoin = "conclave-join/1"

// PeerID is the verified id of the node at the other end.
func PeerID(cs *tls.ConnectionState) (string, bool) { return "", false }

// PeerName is its Kubernetes name.
func PeerName(cs *tls.ConnectionState) (string, bool) { return "", false }

// PeerEligible says whether it may become a master.
func PeerEligible(cs *tls.ConnectionState) bool { return false }

// JoinReply is what a joined node gets.
type JoinReply struct {
	Cert    []byte
	Cluster Cluster
	Peers   []string // gossip addresses
}

// JoinConfig is how to join.
type JoinConfig struct {
	Token     Token
	Node      *Node
	Name      string
	Addresses []netip.Addr
	NoMaster  bool
	Dial      func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Join joins and stores the membership in the Node.
func Join(ctx context.Context, c JoinConfig) (*JoinReply, error) { return nil, errSkeleton }

// Errors of Join; ErrNameTaken is also what Admit returns.
var (
	ErrWrongToken = errors.New("the token is not of this cluster, or no longer valid")
	ErrNameTaken  = errors.New("the name belongs to another live node")
)

// JoinServer answers joins and renewals.
type JoinServer struct {
	Authority func() *Authority // nil result: not a master
	Admit     func(ctx context.Context, name, id string) error
	Peers     func() []string // gossip addresses for the new node
	Masters   func() []string // where a node that is no master sends the caller
	Log       *slog.Logger
}

// JoinHandler serves POST /conclave/v1/join.
func JoinHandler(s JoinServer) http.Handler { return nil }

// RenewHandler serves POST /conclave/v1/renew.
func RenewHandler(s JoinServer) http.Handler { return nil }

// RenewFrom is a CertificatesConfig.Renew that asks masters.
func RenewFrom(n *Node, masters func() []string) func(ctx context.Context, csrDER []byte) ([]byte, error) {
	return nil
}
