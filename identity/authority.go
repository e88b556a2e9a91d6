package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	bundleFile    = "authority.json"
	bundleVersion = 1

	nodeLife    = 7 * 24 * time.Hour
	servingLife = 7 * 24 * time.Hour
	caLife      = 50 * 365 * 24 * time.Hour
	// backdate is how far before its making a certificate begins: clients with
	// a clock behind by less than this accept it at once.
	backdate = 24 * time.Hour

	nodeUser     = "system:node:"
	nodesGroup   = "system:nodes"
	mastersGroup = "system:masters"
	eligibleUnit = "master-eligible"
	uriScheme    = "conclave"
	uriNodeHost  = "node"
)

// Authority is what the masters share: the CA, the key that signs service
// account tokens, the key that seals Secrets, and the cluster's facts. It is
// immutable; its methods may be called from anywhere.
type Authority struct {
	bundle  []byte
	cluster Cluster
	ca      *x509.Certificate
	caKey   *ecdsa.PrivateKey
	saKey   *ecdsa.PrivateKey
	sealer  *Sealer
}

// bundle is authority.json.
type bundle struct {
	Version int     `json:"version"`
	Cluster Cluster `json:"cluster"` // CA and JoinSecret included
	CAKey   []byte  `json:"caKey"`   // PEM
	SAKey   []byte  `json:"serviceAccountKey"`
	SealKey []byte  `json:"sealKey"`
}

func newAuthority(o FoundOptions) (*Authority, error) {
	if o.Domain == "" {
		o.Domain = "cluster.local"
	}
	pods, services := netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("10.96.0.0/16")
	if named := slices.Concat([]netip.Addr{o.PodCIDR.Addr(), o.ServiceCIDR.Addr()}, o.Addresses); slices.ContainsFunc(named, netip.Addr.Is6) {
		pods, services = localRanges()
	}
	if !o.PodCIDR.IsValid() {
		o.PodCIDR = pods
	}
	if !o.ServiceCIDR.IsValid() {
		o.ServiceCIDR = services
	}
	if o.PodCIDR.Addr().Is4() != o.ServiceCIDR.Addr().Is4() || o.PodCIDR.Addr().Is6() && (o.DualStack || o.PodCIDR6.IsValid()) {
		return nil, fmt.Errorf("the ranges of pods (%s) and services (%s) are both of IPv4, or of IPv6 alone", o.PodCIDR, o.ServiceCIDR)
	}
	if o.DualStack && !o.PodCIDR6.IsValid() && !o.ServiceCIDR6.IsValid() {
		o.PodCIDR6, o.ServiceCIDR6 = localRanges()
	}
	if o.PodCIDR6.IsValid() != o.ServiceCIDR6.IsValid() {
		return nil, errors.New("pods and services have IPv6 ranges both or neither")
	}
	if o.PodCIDR.Overlaps(o.ServiceCIDR) {
		return nil, fmt.Errorf("the ranges of pods (%s) and services (%s) overlap", o.PodCIDR, o.ServiceCIDR)
	}
	if o.PodCIDR6.Overlaps(o.ServiceCIDR6) {
		return nil, fmt.Errorf("the ranges of pods (%s) and services (%s) overlap", o.PodCIDR6, o.ServiceCIDR6)
	}
	if !o.DNS.IsValid() {
		o.DNS = nthAddr(o.ServiceCIDR, 10)
	}
	if !o.ServiceCIDR.Contains(o.DNS) {
		return nil, fmt.Errorf("the DNS address %s is not in the range of services, %s", o.DNS, o.ServiceCIDR)
	}
	b := bundle{Version: bundleVersion, SealKey: randomBytes(32), Cluster: Cluster{
		ID: uuid.NewString(), Domain: o.Domain,
		PodCIDR: o.PodCIDR.Masked(), ServiceCIDR: o.ServiceCIDR.Masked(), DNS: o.DNS,
		PodCIDR6: o.PodCIDR6.Masked(), ServiceCIDR6: o.ServiceCIDR6.Masked(), Encrypt: o.Encrypt,
		GossipKey: randomBytes(32), JoinSecret: randomBytes(16),
	}}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if b.CAKey, err = marshalKey(caKey); err != nil {
		return nil, err
	}
	if b.SAKey, err = marshalKey(saKey); err != nil {
		return nil, err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: "conclave-ca", Organization: []string{b.Cluster.ID}},
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	b.Cluster.CA = certToPEM(der)
	data, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	return parseBundle(data)
}

// localRanges are a cluster's own, of a random /48 of unique local addresses
// (RFC 4193): a /64 for each of 256 nodes, and as many addresses of services as
// IPv4 has.
func localRanges() (pods, services netip.Prefix) {
	b := [16]byte{0: 0xfd}
	copy(b[1:6], randomBytes(5))
	pods = netip.PrefixFrom(netip.AddrFrom16(b), 56)
	b[6] = 0xff
	return pods, netip.PrefixFrom(netip.AddrFrom16(b), 112)
}

func parseBundle(data []byte) (*Authority, error) {
	var b bundle
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, err
	}
	if b.Version != bundleVersion {
		return nil, fmt.Errorf("it has version %d; this Conclave knows %d", b.Version, bundleVersion)
	}
	a := &Authority{bundle: data, cluster: b.Cluster}
	var err error
	if a.ca, err = parseCert(b.Cluster.CA); err != nil {
		return nil, fmt.Errorf("its CA certificate: %w", err)
	}
	if a.caKey, err = parseKey(b.CAKey); err != nil {
		return nil, fmt.Errorf("its CA key: %w", err)
	}
	if !a.caKey.PublicKey.Equal(a.ca.PublicKey) {
		return nil, errors.New("its CA key is not the key of its CA certificate")
	}
	if a.saKey, err = parseKey(b.SAKey); err != nil {
		return nil, fmt.Errorf("its service account key: %w", err)
	}
	if a.sealer, err = newSealer(b.SealKey); err != nil {
		return nil, err
	}
	return a, nil
}

// OpenAuthority reads the authority from data-dir/master. The error matches
// os.ErrNotExist where there is none: this node is no master.
func OpenAuthority(masterDir string) (*Authority, error) {
	path := filepath.Join(masterDir, bundleFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("open the cluster's authority: %w", err)
	}
	a, err := parseBundle(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return a, nil
}

// SaveBundle stores another master's Bundle in data-dir/master: this node
// becomes a master. Bundles travel over mutual TLS only.
func SaveBundle(masterDir string, bundle []byte) (*Authority, error) {
	a, err := ParseBundle(bundle)
	if err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(masterDir, bundleFile), a.bundle); err != nil {
		return nil, fmt.Errorf("store the cluster's authority: %w", err)
	}
	return a, nil
}

// Bundle is the whole authority, secrets included, for SaveBundle.
func (a *Authority) Bundle() []byte { return slices.Clone(a.bundle) }

// Cluster is what the authority knows of the cluster, the JoinSecret included.
func (a *Authority) Cluster() Cluster { return a.cluster }

// Token lets new nodes join; addresses are host:port of TLS ports.
func (a *Authority) Token(addresses []string) Token {
	return Token{CAHash: a.cluster.CAHash(), Secret: a.cluster.JoinSecret, Addresses: addresses}
}

// ParseBundle reads a Bundle without storing it.
func ParseBundle(bundle []byte) (*Authority, error) {
	a, err := parseBundle(slices.Clone(bundle))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's authority: %w", err)
	}
	return a, nil
}

// VerifyNode says whether a node that may be a master, with a good certificate
// of this authority, is at the other end of a connection that did not check.
func (a *Authority) VerifyNode(cs *tls.ConnectionState) error {
	if !PeerEligible(cs) {
		return errors.New("only a node that may be a master is given this")
	}
	return verifyLeaf(a.ca, cs.PeerCertificates[0], x509.ExtKeyUsageClientAuth, time.Now(), false)
}

// Guest lets a machine that is in no cluster yet call the nodes of this one. It
// has the Client of Certificates.
type Guest struct {
	ca   *x509.Certificate
	cert tls.Certificate
}

// Guest makes a certificate for the node's key.
func (a *Authority) Guest(n *Node, name string, addrs []netip.Addr) (*Guest, error) {
	csr, err := n.CSR(name, addrs)
	if err != nil {
		return nil, err
	}
	cert, err := a.SignNode(csr, name, addrs, nil, false, time.Now())
	if err != nil {
		return nil, err
	}
	leaf, err := parseCert(cert)
	if err != nil {
		return nil, err
	}
	return &Guest{ca: a.ca, cert: tls.Certificate{Certificate: [][]byte{leaf.Raw, a.ca.Raw}, PrivateKey: n.key, Leaf: leaf}}, nil
}

// Client is the config for dialling the node with this id.
func (g *Guest) Client(expectID string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{g.cert},
		InsecureSkipVerify: true, // VerifyConnection checks the CA, the time and the id
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, ok := PeerID(&cs)
			if !ok || id != expectID {
				return fmt.Errorf("another machine answers there than node %s", expectID)
			}
			return verifyLeaf(g.ca, cs.PeerCertificates[0], x509.ExtKeyUsageServerAuth, time.Now(), false)
		},
	}
}

// Sealer seals Secrets at rest.
func (a *Authority) Sealer() *Sealer { return a.sealer }

// ServiceAccountSigner signs service account tokens (ECDSA P-256: ES256).
func (a *Authority) ServiceAccountSigner() crypto.Signer { return a.saKey }

// floor is now, or the time when the authority was made if our clock is behind
// even that.
func (a *Authority) floor(now time.Time) time.Time {
	if made := a.ca.NotBefore.Add(backdate); now.Before(made) {
		return made
	}
	return now
}

// SignNode issues a node's certificate for the key that signed the request.
// Of the request only the key is believed.
func (a *Authority) SignNode(csrDER []byte, name string, addrs []netip.Addr, dns []string, noMaster bool, now time.Time) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	key, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("check certificate request: its key is not ECDSA P-256")
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	// A node must not be able to pass for the API server.
	if name == apiName || name == "localhost" || strings.HasPrefix(name, apiName+".default") {
		return nil, fmt.Errorf("%q cannot be a node's name: it is the API server's", name)
	}
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(addr netip.Addr) bool {
		return !addr.IsValid() || addr.IsUnspecified() || addr.IsLoopback() || a.cluster.ServiceCIDR.Contains(addr.Unmap()) || a.cluster.ServiceCIDR6.Contains(addr)
	})
	id, err := publicID(key)
	if err != nil {
		return nil, err
	}
	subject := pkix.Name{CommonName: nodeUser + name, Organization: []string{nodesGroup}}
	if !noMaster {
		subject.OrganizationalUnit = []string{eligibleUnit}
	}
	now = a.floor(now)
	der, err := a.sign(key, &x509.Certificate{
		Subject:   subject,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(nodeLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    append([]string{name}, dns...),
		IPAddresses: ipAddresses(addrs),
		URIs:        []*url.URL{nodeURI(id)},
	})
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of node %s: %w", name, err)
	}
	return certToPEM(der), nil
}

// SignServing mints a certificate for serving the API: for the names by which
// pods know it, localhost, the first address of the service range, and what is
// given. A name conclave://node/ID says which node serves.
func (a *Authority) SignServing(names []string, addrs []netip.Addr) (*tls.Certificate, error) {
	return a.signServing(names, addrs, time.Now())
}

func (a *Authority) signServing(names []string, addrs []netip.Addr, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now = a.floor(now)
	cert := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(servingLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{apiName, "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc." + a.cluster.Domain, "localhost"},
		IPAddresses: ipAddresses(append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}),
			netip.IPv6Loopback(), nthAddr(a.cluster.ServiceCIDR, 1)}, addrs...)),
	}
	for _, name := range names {
		if u, err := url.Parse(name); err == nil && u.Scheme == uriScheme {
			cert.URIs = append(cert.URIs, u)
		} else if !slices.Contains(cert.DNSNames, name) {
			cert.DNSNames = append(cert.DNSNames, name)
		}
	}
	der, err := a.sign(key.Public(), cert)
	if err != nil {
		return nil, fmt.Errorf("sign the API's serving certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.ca.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// Serving returns a tls.Config.GetCertificate that keeps one certificate of
// SignServing, and mints the next when two thirds of its life are over, the
// clock jumped, or the addresses changed.
func (a *Authority) Serving(names []string, addrs func() []netip.Addr) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return a.serving(names, addrs, time.Now)
}

func (a *Authority) serving(names []string, addrs func() []netip.Addr, clock func() time.Time) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var cert *tls.Certificate
	var minted []netip.Addr
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		now, current := clock(), addrs()
		if cert != nil && !renewalDue(cert.Leaf, a.floor(now)) && sameAddrs(minted, current) {
			return cert, nil
		}
		next, err := a.signServing(names, current, now)
		if err != nil {
			return nil, err
		}
		cert, minted = next, slices.Clone(current)
		return cert, nil
	}
}

// SignClient issues a user's certificate and its key, for a kubeconfig.
func (a *Authority) SignClient(user string, groups []string, ttl time.Duration) (certPEM, keyPEM []byte, err error) {
	if user == "" || ttl <= 0 {
		return nil, nil, errors.New("sign a client certificate: it needs a user and a life")
	}
	if isNode(user, groups) {
		return nil, nil, errors.New("sign a client certificate: nodes get theirs by joining")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	now := a.floor(time.Now())
	der, err := a.sign(key.Public(), &x509.Certificate{
		Subject:   pkix.Name{CommonName: user, Organization: groups},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(ttl),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("sign the client certificate of %s: %w", user, err)
	}
	if keyPEM, err = marshalKey(key); err != nil {
		return nil, nil, err
	}
	return certToPEM(der), keyPEM, nil
}

// isNode says whether a subject would pass for a node's.
func isNode(user string, groups []string) bool {
	return strings.HasPrefix(user, nodeUser) || slices.Contains(groups, nodesGroup)
}

// Lives of certificates that somebody asked for with a request of their own.
const (
	// ClientLife is the longest, and that of those who ask for none.
	ClientLife = 365 * 24 * time.Hour
	// clientBackdate is by how much they begin before their making. It is
	// Kubernetes', and less than ours elsewhere: clients take the time from
	// beginning to end for the life that they were given.
	clientBackdate = 5 * time.Minute
	// shortLife is from when on the backdating is a part of the life.
	shortLife = 8 * time.Hour
)

// SignClientRequest issues, in PEM, the certificate that a request in DER asks
// for, with which its holder is a client of the API and nothing else: it has the
// user (CN) and the groups (O) of the request, its key and these usages of the
// key, and no names, so that between nodes it is nobody's (see PeerID). Nodes
// and administrators are not made by requests. A life of 0 is the longest.
//
// The outcome depends on the arguments alone: what is refused once stays refused.
func (a *Authority) SignClientRequest(csrDER []byte, usage x509.KeyUsage, life time.Duration, now time.Time) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(csrDER)
	if err != nil {
		return nil, fmt.Errorf("read certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	user, groups := csr.Subject.CommonName, csr.Subject.Organization
	switch {
	case user == "":
		return nil, errors.New("the request names no user: its subject has no CN")
	case isNode(user, groups):
		return nil, fmt.Errorf("the request is for user %q in groups %q: nodes get their certificates by joining", user, groups)
	case slices.Contains(groups, mastersGroup):
		return nil, fmt.Errorf("the request is for group %s: administrators' certificates are made by `conclave kubeconfig`", mastersGroup)
	}
	if life <= 0 || life > ClientLife {
		life = ClientLife
	}
	now = a.floor(now)
	leaf := &x509.Certificate{
		Subject:   pkix.Name{CommonName: user, Organization: groups},
		NotBefore: now.Add(-clientBackdate), NotAfter: now.Add(life),
		KeyUsage:    usage,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if life >= shortLife {
		leaf.NotAfter = leaf.NotBefore.Add(life)
	}
	der, err := a.sign(csr.PublicKey, leaf)
	if err != nil {
		return nil, fmt.Errorf("sign the client certificate of %s: %w", user, err)
	}
	return certToPEM(der), nil
}

// sign completes and signs a leaf. A leaf never outlives or precedes its CA.
func (a *Authority) sign(public any, leaf *x509.Certificate) ([]byte, error) {
	leaf.SerialNumber = serial()
	leaf.KeyUsage |= x509.KeyUsageDigitalSignature // without which TLS 1.3 is not spoken
	leaf.BasicConstraintsValid = true
	if leaf.NotBefore.Before(a.ca.NotBefore) {
		leaf.NotBefore = a.ca.NotBefore
	}
	if leaf.NotAfter.After(a.ca.NotAfter) {
		leaf.NotAfter = a.ca.NotAfter
	}
	return x509.CreateCertificate(rand.Reader, leaf, a.ca, public, a.caKey)
}

// renewalDue is true from two thirds of a certificate's life on, and where the
// clock is before its making: then the clock, or the one of its issuer, was
// wrong, and a new one tells which.
func renewalDue(leaf *x509.Certificate, now time.Time) bool {
	return now.Before(leaf.NotBefore) || !now.Before(renewalTime(leaf))
}

func renewalTime(leaf *x509.Certificate) time.Time {
	life := leaf.NotAfter.Sub(leaf.NotBefore) - backdate
	return leaf.NotAfter.Add(-life / 3)
}

func nodeURI(id string) *url.URL {
	return &url.URL{Scheme: uriScheme, Host: uriNodeHost, Path: "/" + id}
}

func serial() *big.Int { return new(big.Int).SetBytes(randomBytes(16)) }

// randomBytes cannot fail: crypto/rand ends the process where the kernel gives
// no randomness.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func nthAddr(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

func ipAddresses(addrs []netip.Addr) []net.IP {
	var ips []net.IP
	for _, a := range slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare)) {
		if a.IsValid() {
			ips = append(ips, a.Unmap().WithZone("").AsSlice())
		}
	}
	return ips
}

func sameAddrs(a, b []netip.Addr) bool {
	sorted := func(s []netip.Addr) []netip.Addr {
		return slices.Compact(slices.SortedFunc(slices.Values(s), netip.Addr.Compare))
	}
	return slices.Equal(sorted(a), sorted(b))
}

func certToPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("there is no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
