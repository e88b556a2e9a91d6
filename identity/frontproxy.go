package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"sync"
	"time"
)

// FrontProxyName is who the masters are to the API servers behind them: the
// common name that those have to let speak for others.
const FrontProxyName = "front-proxy-client"

const frontProxyLife = 7 * 24 * time.Hour

// FrontProxy is a CA of its own, by which API servers behind ours know that it is
// a master who tells them whose request it is. It signs nothing but certificates
// for FrontProxyName, and nobody else trusts it: neither the API nor a node takes
// one of them, and no certificate of the cluster's CA is one.
//
// Its key is made of the CA's (HKDF, RFC 5869): who has the one has the other
// anyway, and so every master has the same without being given it, also in a
// cluster that was founded before there was a FrontProxy.
type FrontProxy struct {
	authority *Authority
	ca        *x509.Certificate
	key       *ecdsa.PrivateKey
	clock     func() time.Time

	mu   sync.Mutex
	cert *tls.Certificate
}

// FrontProxy returns the front proxy's CA.
func (a *Authority) FrontProxy() (*FrontProxy, error) {
	key, err := frontProxyKey(a.caKey)
	if err != nil {
		return nil, fmt.Errorf("make the front proxy's key: %w", err)
	}
	// All of it is given, and a signature without randomness (RFC 6979), so that
	// every master publishes the same certificate.
	sum := sha256.Sum256(a.ca.Raw)
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(sum[:16]),
		Subject:      pkix.Name{CommonName: "conclave-front-proxy-ca", Organization: []string{a.cluster.ID}},
		NotBefore:    a.ca.NotBefore, NotAfter: a.ca.NotAfter,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:    x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make the front proxy's CA: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &FrontProxy{authority: a, ca: ca, key: key, clock: time.Now}, nil
}

// frontProxyKey takes the first candidate that is a scalar of the curve, which
// nearly any is.
func frontProxyKey(ca *ecdsa.PrivateKey) (*ecdsa.PrivateKey, error) {
	secret, err := ca.Bytes()
	if err != nil {
		return nil, err
	}
	for i := range 64 {
		raw, err := hkdf.Key(sha256.New, secret, nil, fmt.Sprintf("conclave front-proxy %d", i), 32)
		if err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("no scalar was found")
}

// CAPEM is the CA's certificate: the same on all masters.
func (f *FrontProxy) CAPEM() []byte { return certToPEM(f.ca.Raw) }

// Client is for tls.Config's GetClientCertificate: a certificate for
// FrontProxyName, made anew when two thirds of its life are over.
func (f *FrontProxy) Client(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.authority.floor(f.clock())
	if f.cert != nil && !renewalDue(f.cert.Leaf, now) {
		return f.cert, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: FrontProxyName},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(frontProxyLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}
	if leaf.NotBefore.Before(f.ca.NotBefore) {
		leaf.NotBefore = f.ca.NotBefore
	}
	if leaf.NotAfter.After(f.ca.NotAfter) {
		leaf.NotAfter = f.ca.NotAfter
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, f.ca, key.Public(), f.key)
	if err != nil {
		return nil, fmt.Errorf("sign the front proxy's certificate: %w", err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	f.cert = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	return f.cert, nil
}
