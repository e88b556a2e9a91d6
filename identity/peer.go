package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ProtoJoin is the ALPN name of joining and renewal: the one protocol on which
// a peer may have no certificate, or an expired one. Nobody is anybody there:
// PeerID, PeerName and PeerEligible are empty on it.
const ProtoJoin = "conclave-join/1"

const (
	// expiryGrace is how long after its end a certificate is still good: the
	// clocks of two nodes may differ by that much.
	expiryGrace = 10 * time.Minute
	// renewGrace is how long after its end a certificate may be renewed where
	// nobody can say whether its node is still a member.
	renewGrace = 30 * 24 * time.Hour
	apiName    = "kubernetes"
)

// PeerID is the id of the node at the other end of a connection made with the
// configs of Certificates; false if it is no node, or on ProtoJoin.
func PeerID(cs *tls.ConnectionState) (string, bool) {
	leaf := peerLeaf(cs)
	if leaf == nil {
		return "", false
	}
	id, err := leafID(leaf)
	return id, err == nil
}

// PeerName is the Kubernetes name of the node at the other end.
func PeerName(cs *tls.ConnectionState) (string, bool) {
	leaf := peerLeaf(cs)
	if leaf == nil {
		return "", false
	}
	return leafName(leaf)
}

// PeerEligible says whether the node at the other end may become a master.
func PeerEligible(cs *tls.ConnectionState) bool {
	leaf := peerLeaf(cs)
	if leaf == nil {
		return false
	}
	_, err := leafID(leaf)
	return err == nil && leafEligible(leaf)
}

func peerLeaf(cs *tls.ConnectionState) *x509.Certificate {
	if cs == nil || cs.NegotiatedProtocol == ProtoJoin || len(cs.PeerCertificates) == 0 {
		return nil
	}
	return cs.PeerCertificates[0]
}

// leafID is the id that a node's certificate names; an error if it is not its
// key's, or if the certificate is not a node's.
func leafID(leaf *x509.Certificate) (string, error) {
	if !slices.Contains(leaf.Subject.Organization, nodesGroup) {
		return "", errors.New("the certificate is not a node's")
	}
	named, ok := uriID(leaf)
	if !ok {
		return "", errors.New("the certificate names no node id")
	}
	id, err := publicID(leaf.PublicKey)
	if err != nil {
		return "", err
	}
	if id != named {
		return "", fmt.Errorf("the certificate names the id %s; its key has %s", named, id)
	}
	return id, nil
}

// uriID is the id in the URI of a node's or a serving certificate.
func uriID(leaf *x509.Certificate) (string, bool) {
	for _, u := range leaf.URIs {
		if u.Scheme == uriScheme && u.Host == uriNodeHost {
			return strings.TrimPrefix(u.Path, "/"), true
		}
	}
	return "", false
}

func leafName(leaf *x509.Certificate) (string, bool) {
	return strings.CutPrefix(leaf.Subject.CommonName, nodeUser)
}

func leafEligible(leaf *x509.Certificate) bool {
	return slices.Contains(leaf.Subject.OrganizationalUnit, eligibleUnit)
}

// verifyLeaf checks that the CA issued the leaf for a usage, at a time when it
// was good. A clock behind is moved forward to the leaf's beginning; an expired
// leaf passes only if it may.
func verifyLeaf(ca, leaf *x509.Certificate, usage x509.ExtKeyUsage, now time.Time, mayBeExpired bool) error {
	if !mayBeExpired && now.After(leaf.NotAfter.Add(expiryGrace)) {
		return fmt.Errorf("the certificate of %s ended at %s and the clock here says %s: one of the two clocks is wrong, or the node was away and has to renew first",
			leaf.Subject.CommonName, leaf.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	// The times were judged above; what remains is the signature, and any time
	// in the leaf's life (which lies within the CA's) serves for that.
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{usage},
	}); err != nil {
		return fmt.Errorf("verify the certificate of %s: %w", leaf.Subject.CommonName, err)
	}
	return nil
}
