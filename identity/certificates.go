package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

const (
	retryFirst = time.Second
	retryMost  = 5 * time.Minute
)

// CertificatesConfig is what Certificates needs. Addresses, Now and Log may be
// left out.
type CertificatesConfig struct {
	Node *Node // a member of a cluster
	// Renew has a request signed: by this node's own Authority if it is a
	// master, otherwise by RenewFrom.
	Renew func(ctx context.Context, csrDER []byte) (certPEM []byte, err error)
	// Addresses are the node's own, which its certificate names. Call Kick
	// when they change.
	Addresses func() []netip.Addr
	Now       func() time.Time
	Log       *slog.Logger
}

// Certificates keeps the node's certificate good, and makes the TLS configs of
// the node protocols. The configs may be kept: they always use the newest
// certificate.
type Certificates struct {
	cfg  CertificatesConfig
	ca   *x509.Certificate
	kick chan struct{} // holds at most one

	current atomic.Pointer[tls.Certificate] // nil until there is one
	// asked are the addresses that were asked for with the current one, nil
	// if it was read from disk. Only Run's goroutine touches it.
	asked []netip.Addr
}

// NewCertificates takes up the certificate that the node has. A node without
// one gets its first when Run runs.
func NewCertificates(cfg CertificatesConfig) (*Certificates, error) {
	cluster, ok := cfg.Node.Cluster()
	if !ok {
		return nil, errors.New("make certificates: the node is in no cluster")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	ca, err := parseCert(cluster.CA)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CA: %w", err)
	}
	c := &Certificates{cfg: cfg, ca: ca, kick: make(chan struct{}, 1)}
	if cert, err := c.load(cfg.Node.certPEM()); err != nil {
		cfg.Log.Warn("the node's stored certificate cannot be used; asking for another", "err", err)
	} else {
		c.current.Store(cert)
	}
	return c, nil
}

// load makes a certificate of PEM, with the CA behind it, which a joining node
// needs to see.
func (c *Certificates) load(certPEM []byte) (*tls.Certificate, error) {
	leaf, err := parseCert(certPEM)
	if err != nil {
		return nil, err
	}
	id, err := leafID(leaf)
	if err != nil {
		return nil, err
	}
	if id != c.cfg.Node.ID() {
		return nil, fmt.Errorf("it is of node %s, and this node is %s", id, c.cfg.Node.ID())
	}
	if err := verifyLeaf(c.ca, leaf, x509.ExtKeyUsageClientAuth, leaf.NotBefore, true); err != nil {
		return nil, err
	}
	return &tls.Certificate{
		Certificate: [][]byte{leaf.Raw, c.ca.Raw}, PrivateKey: c.cfg.Node.key, Leaf: leaf,
	}, nil
}

// Kick has Run look again now whether the certificate is still right.
func (c *Certificates) Kick() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// Expires is when the certificate in use ends; false if there is none yet.
func (c *Certificates) Expires() (time.Time, bool) {
	cert := c.current.Load()
	if cert == nil {
		return time.Time{}, false
	}
	return cert.Leaf.NotAfter, true
}

// Run renews the certificate when two thirds of its life are over, when the
// node's addresses changed, and when the clock jumped past either; it tries
// again with growing pauses until that worked. It returns when ctx ends.
func (c *Certificates) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := retryFirst
	var wait time.Duration
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.kick:
		case <-timer.C:
		}
		due, reason := c.due()
		if due <= 0 {
			if err := c.renew(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				c.cfg.Log.Warn("cannot renew the node's certificate", "because", reason, "retry", retry, "err", err)
				// Half of it by chance, so that nodes do not ask all at once.
				wait = retry/2 + rand.N(retry/2)
				retry = min(2*retry, retryMost)
				timer.Reset(wait)
				continue
			}
			retry = retryFirst
			due, _ = c.due()
			if due <= 0 {
				// The new one is due already: a clock is wrong. Asking again
				// at once would not change that.
				due = retryMost
			}
		}
		timer.Reset(due)
	}
}

// due is how long the certificate may be kept, and why not longer.
func (c *Certificates) due() (time.Duration, string) {
	cert := c.current.Load()
	if cert == nil {
		return 0, "there is none"
	}
	if c.cfg.Addresses != nil {
		// The authority leaves some addresses out; asking for the same again
		// would not change that.
		if now := c.cfg.Addresses(); !sameAddrs(now, c.asked) && !covers(cert.Leaf, now) {
			return 0, "the node's addresses changed"
		}
	}
	now := c.cfg.Now()
	if now.Before(cert.Leaf.NotBefore) {
		// Our clock is behind the issuer's, or the issuer's was ahead. A new
		// certificate would not help the first; the second passes with time.
		return max(cert.Leaf.NotBefore.Sub(now), time.Minute), "the clock is before the certificate"
	}
	// A tenth of the remaining third by chance; always the same for one
	// certificate, so that a due one stays due.
	spread := cert.Leaf.NotAfter.Sub(renewalTime(cert.Leaf)) / 10
	chance := time.Duration(cert.Leaf.SerialNumber.Bits()[0]%1000) * spread / 1000
	return renewalTime(cert.Leaf).Add(chance).Sub(now), "its end is near"
}

// covers says whether a certificate names all these addresses, but for those
// that no node's certificate names.
func covers(leaf *x509.Certificate, addrs []netip.Addr) bool {
	for _, a := range addrs {
		if !a.IsValid() || a.IsLoopback() || a.IsUnspecified() {
			continue
		}
		ip := net.IP(a.Unmap().WithZone("").AsSlice())
		if !slices.ContainsFunc(leaf.IPAddresses, ip.Equal) {
			return false
		}
	}
	return true
}

// renew gets a new certificate and puts it in use.
func (c *Certificates) renew(ctx context.Context) error {
	var addrs []netip.Addr
	if c.cfg.Addresses != nil {
		addrs = c.cfg.Addresses()
	}
	csr, err := c.cfg.Node.CSR(c.cfg.Node.Name(), addrs)
	if err != nil {
		return err
	}
	data, err := c.cfg.Renew(ctx, csr)
	if err != nil {
		return err
	}
	next, err := c.load(data)
	if err != nil {
		return fmt.Errorf("read the renewed certificate: %w", err)
	}
	if old := c.current.Load(); old != nil {
		now := c.cfg.Now()
		if next.Leaf.NotAfter.Before(old.Leaf.NotAfter) && now.Before(old.Leaf.NotAfter) && now.After(old.Leaf.NotBefore) {
			return fmt.Errorf("the renewed certificate ends at %s, before the one in use: the issuer's clock is behind",
				next.Leaf.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	c.current.Store(next)
	c.asked = addrs
	c.cfg.Log.Info("renewed the node's certificate", "until", next.Leaf.NotAfter)
	if err := c.cfg.Node.setCert(certToPEM(next.Leaf.Raw)); err != nil {
		// It is in use all the same; after a restart the old one is renewed.
		c.cfg.Log.Error("cannot store the renewed certificate", "err", err)
	}
	return nil
}

// own is the certificate to show. Each handshake looks at the clock: timers do
// not see it jump.
func (c *Certificates) own() (*tls.Certificate, error) {
	cert := c.current.Load()
	if cert == nil {
		return nil, errors.New("this node has no certificate yet")
	}
	if renewalDue(cert.Leaf, c.cfg.Now()) {
		c.Kick()
	}
	return cert, nil
}

// Server is the config for accepting the node protocols. A peer has to show a
// node's certificate, but for ProtoJoin, where it may.
func (c *Certificates) Server(nextProtos ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: nextProtos,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return c.own()
		},
		// The certificate is judged in VerifyConnection, where the protocol
		// is known; crypto/tls's own judgement knows no tolerance for clocks.
		ClientAuth: tls.RequestClientCert,
		// A resumed session would keep a certificate alive past its end.
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				if cs.NegotiatedProtocol == ProtoJoin {
					return nil
				}
				return errors.New("the peer shows no certificate")
			}
			_, err := c.verifyNode(cs, x509.ExtKeyUsageClientAuth)
			return err
		},
	}
}

// ServerToAll is Server, for who shows no certificate too: whoever answers them
// has to know them by something else.
func (c *Certificates) ServerToAll(nextProtos ...string) *tls.Config {
	config := c.Server(nextProtos...)
	known := config.VerifyConnection
	config.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return known(cs)
	}
	return config
}

// Client is the config for dialling the node with this id; set NextProtos on a
// clone. For the Kubernetes API's protocols the peer's serving certificate has
// to name the id too, unless it names none (one minted elsewhere). An empty id
// accepts any node of the cluster.
func (c *Certificates) Client(expectID string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.own()
		},
		// Names of hosts mean nothing here: VerifyConnection checks the CA,
		// the usage, the time and the id.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			var id string
			var err error
			switch cs.NegotiatedProtocol {
			case "h2", "http/1.1", "":
				id, err = c.verifyAPI(cs)
				if err == nil && id == "" {
					return nil
				}
			default:
				id, err = c.verifyNode(cs, x509.ExtKeyUsageServerAuth)
			}
			if err == nil && expectID != "" && id != expectID {
				err = fmt.Errorf("node %s answers there, not %s", id, expectID)
			}
			return err
		},
	}
}

// verifyNode checks that the peer is a node of this cluster, and returns its id.
func (c *Certificates) verifyNode(cs tls.ConnectionState, usage x509.ExtKeyUsage) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("the peer shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if err := verifyLeaf(c.ca, leaf, usage, c.cfg.Now(), cs.NegotiatedProtocol == ProtoJoin); err != nil {
		return "", err
	}
	return leafID(leaf)
}

// verifyAPI checks that the peer serves this cluster's API: with a serving
// certificate, or with its node's certificate while it has no master to send
// us to. It returns the id that the certificate names, if any.
func (c *Certificates) verifyAPI(cs tls.ConnectionState) (string, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", errors.New("the peer shows no certificate")
	}
	leaf := cs.PeerCertificates[0]
	if err := verifyLeaf(c.ca, leaf, x509.ExtKeyUsageServerAuth, c.cfg.Now(), false); err != nil {
		return "", err
	}
	if id, ok := uriID(leaf); ok {
		return id, nil
	}
	if !slices.Contains(leaf.DNSNames, apiName) {
		return "", fmt.Errorf("the certificate of %s is not for the API", leaf.Subject.CommonName)
	}
	return "", nil
}

// CAPEM is the cluster's CA, for those who make configs of their own.
func (c *Certificates) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Raw})
}
