package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

// TestFrontProxy says that all masters have one front proxy, that its
// certificates are renewed, and that neither they nor the cluster's are good for
// what the others are.
func TestFrontProxy(t *testing.T) {
	a, err := newAuthority(FoundOptions{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := ParseBundle(a.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	f, err := a.FrontProxy()
	if err != nil {
		t.Fatal(err)
	}
	g, err := other.FrontProxy()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.CAPEM(), g.CAPEM()) {
		t.Error("two masters publish different CAs")
	}
	if f.key.Equal(a.caKey) {
		t.Error("the front proxy's key is the CA's")
	}
	now := time.Now()
	f.clock = func() time.Time { return now }
	cert, err := f.Client(nil)
	if err != nil {
		t.Fatal(err)
	}
	pool := func(certs ...*x509.Certificate) *x509.CertPool {
		p := x509.NewCertPool()
		for _, c := range certs {
			p.AddCert(c)
		}
		return p
	}
	by := func(leaf *x509.Certificate, roots *x509.CertPool, use x509.ExtKeyUsage) error {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{use}})
		return err
	}
	if err := by(cert.Leaf, pool(g.ca), x509.ExtKeyUsageClientAuth); err != nil || cert.Leaf.Subject.CommonName != FrontProxyName {
		t.Errorf("what one master shows is not known by what another publishes: %v", err)
	}
	if by(cert.Leaf, pool(f.ca), x509.ExtKeyUsageServerAuth) == nil {
		t.Error("the front proxy may pass for a server")
	}
	if by(cert.Leaf, pool(a.ca), x509.ExtKeyUsageClientAuth) == nil {
		t.Error("the front proxy is a client of the API")
	}
	if verifyLeaf(a.ca, cert.Leaf, x509.ExtKeyUsageClientAuth, now, false) == nil || a.VerifyNode(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}}) == nil {
		t.Error("the front proxy is a node")
	}
	text, _, err := a.SignClient(FrontProxyName, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	user, err := parseCert(text)
	if err != nil {
		t.Fatal(err)
	}
	if by(user, pool(f.ca), x509.ExtKeyUsageClientAuth) == nil {
		t.Error("a user of that name is the front proxy")
	}

	now = now.Add(frontProxyLife / 2)
	if again, err := f.Client(nil); err != nil || again != cert {
		t.Errorf("half of its life is not over: %v", err)
	}
	now = now.Add(frontProxyLife / 4)
	if again, err := f.Client(nil); err != nil || again == cert || !again.Leaf.NotAfter.After(cert.Leaf.NotAfter) {
		t.Errorf("it is not renewed: %v", err)
	}
}
