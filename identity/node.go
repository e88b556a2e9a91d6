package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/validation"
)

const (
	keyFile     = "key.pem"
	certFile    = "cert.pem"
	clusterFile = "cluster.json"
)

// Node is this machine's identity. Its methods may be called from anywhere.
type Node struct {
	dir string
	key *ecdsa.PrivateKey
	id  string

	mu     sync.RWMutex
	member *membership // nil: in no cluster
	cert   []byte      // PEM of the newest certificate, nil: none
	// incarnation is the newest heard of.
	incarnation Incarnation
}

// membership is cluster.json.
type membership struct {
	Name     string  `json:"name"`
	NoMaster bool    `json:"noMaster,omitempty"`
	Cluster  Cluster `json:"cluster"`
}

// Cluster is what every member knows of its cluster.
type Cluster struct {
	ID     string `json:"id"`
	Domain string `json:"domain"`
	// PodCIDR and ServiceCIDR are both of IPv4, or both of IPv6 in a cluster of
	// IPv6 alone. Nodes reach each other by addresses of the same family.
	PodCIDR     netip.Prefix `json:"podCIDR"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR"`
	// PodCIDR6 and ServiceCIDR6 are there in a dual-stack cluster, whose first
	// family is IPv4; otherwise both are invalid.
	PodCIDR6     netip.Prefix `json:"podCIDR6,omitzero"`
	ServiceCIDR6 netip.Prefix `json:"serviceCIDR6,omitzero"`
	DNS          netip.Addr   `json:"dns"`
	// Encrypt: what pods of different nodes say to each other is encrypted.
	Encrypt   bool   `json:"encrypt,omitempty"`
	GossipKey []byte `json:"gossipKey"`
	// JoinSecret is what tokens carry. Only Authority.Cluster knows it.
	JoinSecret []byte `json:"joinSecret,omitempty"`
	CA         []byte `json:"ca"` // PEM
}

// CAHash is what a token says of the cluster's CA.
func (c Cluster) CAHash() [32]byte { return [32]byte(CAHash(c.CA)) }

// CAHash is the SHA-256 of a CA's certificate in DER, given in PEM; all zeros
// if that is none.
func CAHash(caPEM []byte) []byte {
	block, _ := pem.Decode(caPEM)
	if block == nil {
		return make([]byte, sha256.Size)
	}
	sum := sha256.Sum256(block.Bytes)
	return sum[:]
}

// Open reads the identity in dir (data-dir/identity). At first start it makes
// the key.
func Open(dir string) (*Node, error) {
	key, err := openKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("open the node's key: %w", err)
	}
	n := &Node{dir: dir, key: key}
	if n.id, err = publicID(key.Public()); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, clusterFile))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return n, nil
	case err != nil:
		return nil, fmt.Errorf("open the node's membership: %w", err)
	}
	n.member = new(membership)
	if err := json.Unmarshal(data, n.member); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, clusterFile), err)
	}
	// A missing or broken certificate is not fatal: it is renewed on the
	// strength of the key alone where this node is a master, and otherwise
	// Certificates says what is wrong.
	if n.cert, err = os.ReadFile(filepath.Join(dir, certFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open the node's certificate: %w", err)
	}
	return n, n.openIncarnation()
}

func openKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		data, err := marshalKey(key)
		if err != nil {
			return nil, err
		}
		return key, writeFile(path, data)
	}
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

func marshalKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("holds no PEM block")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("holds a %T, not an ECDSA key", key)
	}
	return ec, nil
}

// publicID is the id of the node that has this public key.
func publicID(public any) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:16]), nil
}

// ID is the node's id, in hex.
func (n *Node) ID() string { return n.id }

// Name is the node's Kubernetes name; empty in no cluster.
func (n *Node) Name() string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.member == nil {
		return ""
	}
	return n.member.Name
}

// NoMaster says whether the node joined with --no-master.
func (n *Node) NoMaster() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.member != nil && n.member.NoMaster
}

// Cluster is what the node knows of its cluster; false if it is in none yet.
func (n *Node) Cluster() (Cluster, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.member == nil {
		return Cluster{}, false
	}
	return n.member.Cluster, true
}

// CSR is a certificate request of the node's key, in DER.
func (n *Node) CSR(name string, addrs []netip.Addr) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: nodeUser + name},
		IPAddresses: ipAddresses(addrs),
	}, n.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return der, nil
}

// Sealer seals what rests on this node's disk alone. Its key comes from the
// node's own, so that a copy of one folder tells nothing without the other.
func (n *Node) Sealer() (*Sealer, error) {
	secret, err := n.key.Bytes()
	if err != nil {
		return nil, fmt.Errorf("derive the node's sealing key: %w", err)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "conclave node seal", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the node's sealing key: %w", err)
	}
	return newSealer(key)
}

// FoundOptions are the founder's choices. Fields left empty take the defaults
// of ARCHITECTURE.md, but for Name.
type FoundOptions struct {
	Name      string
	Addresses []netip.Addr
	// NoMaster is refused: somebody has to be the first master.
	NoMaster  bool
	MasterDir string // "master" beside the identity's folder
	Domain    string
	// PodCIDR and ServiceCIDR are of one family. Left empty they are of the
	// family of Addresses; those of IPv6 are ranges that nobody else has.
	PodCIDR     netip.Prefix
	ServiceCIDR netip.Prefix
	// PodCIDR6 and ServiceCIDR6 make the cluster dual-stack; DualStack does so
	// too, with ranges that nobody else has.
	PodCIDR6, ServiceCIDR6 netip.Prefix
	DualStack              bool
	Encrypt                bool
	DNS                    netip.Addr // the tenth address of ServiceCIDR
}

// Found makes a cluster with this node as its first master. After a crash
// half-way it takes up the authority that the first attempt made.
func (n *Node) Found(_ context.Context, o FoundOptions) (*Authority, error) {
	if _, ok := n.Cluster(); ok {
		return nil, ErrMember
	}
	if o.NoMaster {
		return nil, errors.New("the first node of a cluster has to be a master: leave out --no-master")
	}
	if err := checkName(o.Name); err != nil {
		return nil, err
	}
	if o.MasterDir == "" {
		o.MasterDir = filepath.Join(filepath.Dir(n.dir), "master")
	}
	a, err := OpenAuthority(o.MasterDir)
	if errors.Is(err, os.ErrNotExist) {
		a, err = newAuthority(o)
		if err == nil {
			_, err = SaveBundle(o.MasterDir, a.Bundle())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make the cluster's authority: %w", err)
	}
	csr, err := n.CSR(o.Name, o.Addresses)
	if err != nil {
		return nil, err
	}
	cert, err := a.SignNode(csr, o.Name, o.Addresses, nil, false, time.Now())
	if err != nil {
		return nil, err
	}
	c := a.Cluster()
	c.JoinSecret = nil
	return a, n.enter(membership{Name: o.Name, Cluster: c}, cert)
}

// enter makes the node a member: the certificate first, then cluster.json,
// which commits.
func (n *Node) enter(m membership, certPEM []byte) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.member != nil {
		return ErrMember
	}
	if err := n.writeCert(certPEM); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(n.dir, clusterFile), data); err != nil {
		return fmt.Errorf("store the node's membership: %w", err)
	}
	n.member = &m
	return nil
}

// setCert stores a renewed certificate.
func (n *Node) setCert(certPEM []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.writeCert(certPEM)
}

func (n *Node) writeCert(certPEM []byte) error {
	if err := writeFile(filepath.Join(n.dir, certFile), certPEM); err != nil {
		return fmt.Errorf("store the node's certificate: %w", err)
	}
	n.cert = certPEM
	return nil
}

func (n *Node) certPEM() []byte {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.cert
}

// checkName refuses what Kubernetes would not take as the name of a Node.
func checkName(name string) error {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return fmt.Errorf("%q cannot be a node's name: %s", name, problems[0])
	}
	return nil
}
