package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// asRequested is a request by a fresh key.
func asRequested(t testing.TB, edit func(r *x509.CertificateRequest, id string)) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := publicID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "anna", Organization: []string{"dev", "ops"}}}
	edit(r, id)
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

func TestSignClientRequest(t *testing.T) {
	_, a := found(t, "a")
	now := time.Now().Truncate(time.Second)
	der, _ := asRequested(t, func(r *x509.CertificateRequest, _ string) { r.DNSNames = []string{"a.example"} })
	for _, tc := range []struct{ asked, life time.Duration }{
		{0, ClientLife}, {10 * time.Minute, 15 * time.Minute}, {time.Hour, time.Hour + clientBackdate}, // between its beginning and its end
		{8 * time.Hour, 8 * time.Hour}, {90 * 24 * time.Hour, 90 * 24 * time.Hour}, {2 * ClientLife, ClientLife},
	} {
		text, err := a.SignClientRequest(der, x509.KeyUsageKeyEncipherment, tc.asked, now)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := parseCert(text)
		if err != nil {
			t.Fatal(err)
		}
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life != tc.life || !leaf.NotBefore.Equal(now.Add(-clientBackdate)) {
			t.Errorf("asked for %v: from %v for %v, want %v", tc.asked, leaf.NotBefore, life, tc.life)
		}
		if leaf.Subject.String() != "CN=anna,O=dev+O=ops" || leaf.KeyUsage != x509.KeyUsageKeyEncipherment|x509.KeyUsageDigitalSignature ||
			!slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || leaf.IsCA || len(leaf.DNSNames) != 0 {
			t.Errorf("%s, usages %b %v, CA %t, names %v", leaf.Subject, leaf.KeyUsage, leaf.ExtKeyUsage, leaf.IsCA, leaf.DNSNames)
		}
		if err := verifyLeaf(a.ca, leaf, x509.ExtKeyUsageClientAuth, now, false); err != nil {
			t.Error(err)
		}
		if err := verifyLeaf(a.ca, leaf, x509.ExtKeyUsageServerAuth, now, false); err == nil {
			t.Error("it is good for a server")
		}
	}
	// Where the clock is before the CA, and where the CA ends first.
	for _, at := range []time.Time{time.Unix(0, 0), a.ca.NotAfter.Add(-time.Hour)} {
		text, err := a.SignClientRequest(der, 0, ClientLife, at)
		if err != nil {
			t.Fatal(err)
		}
		if leaf, err := parseCert(text); err != nil || leaf.NotBefore.Before(a.ca.NotBefore) || leaf.NotAfter.After(a.ca.NotAfter) {
			t.Errorf("signed at %v: from %v to %v (%v)", at, leaf.NotBefore, leaf.NotAfter, err)
		}
	}
}

func TestSignClientRequestRefuses(t *testing.T) {
	_, a := found(t, "a")
	for name, edit := range map[string]func(r *x509.CertificateRequest, id string){
		"no user":        func(r *x509.CertificateRequest, _ string) { r.Subject.CommonName = "" },
		"a node":         func(r *x509.CertificateRequest, _ string) { r.Subject.CommonName = "system:node:b" },
		"nodes":          func(r *x509.CertificateRequest, _ string) { r.Subject.Organization = []string{"dev", "system:nodes"} },
		"administrators": func(r *x509.CertificateRequest, _ string) { r.Subject.Organization = []string{"dev", "system:masters"} },
		"administrators in another alphabet": func(r *x509.CertificateRequest, _ string) {
			// A BMPString, which is read as the same text.
			wide := []byte{}
			for _, c := range "system:masters" {
				wide = append(wide, 0, byte(c))
			}
			r.RawSubject = rawName(t, asn1.RawValue{Tag: asn1.TagBMPString, Bytes: wide})
		},
	} {
		der, _ := asRequested(t, edit)
		if text, err := a.SignClientRequest(der, 0, 0, time.Now()); err == nil {
			leaf, _ := parseCert(text)
			t.Errorf("%s: signed for %s", name, leaf.Subject)
		}
	}
	der, _ := asRequested(t, func(*x509.CertificateRequest, string) {})
	der[len(der)-1] ^= 1
	if _, err := a.SignClientRequest(der, 0, 0, time.Now()); err == nil {
		t.Error("signed a request whose own signature does not hold")
	}
	if _, err := a.SignClientRequest(nil, 0, 0, time.Now()); err == nil {
		t.Error("signed nothing")
	}
}

// rawName is a subject with a user and one group.
func rawName(t *testing.T, group asn1.RawValue) []byte {
	t.Helper()
	type attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	type set []attribute
	var rdns []asn1.RawValue
	for _, a := range []attribute{
		{asn1.ObjectIdentifier{2, 5, 4, 3}, asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte("anna")}},
		{asn1.ObjectIdentifier{2, 5, 4, 10}, group},
	} {
		der, err := asn1.MarshalWithParams(set{a}, "set")
		if err != nil {
			t.Fatal(err)
		}
		rdns = append(rdns, asn1.RawValue{FullBytes: der})
	}
	der, err := asn1.Marshal(rdns)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// With a certificate that was requested, nobody is a node: not one that asked for
// all that a node's has, and for nobody else's key.
func TestRequestedIsNoPeer(t *testing.T) {
	n, a := found(t, "a")
	certs := selfSigning(t, n, a, nil)
	der, key := asRequested(t, func(r *x509.CertificateRequest, id string) {
		r.Subject.OrganizationalUnit = []string{eligibleUnit}
		r.URIs, r.DNSNames = []*url.URL{nodeURI(id)}, []string{"a", apiName}
		r.IPAddresses = []net.IP{netip.MustParseAddr("192.0.2.1").AsSlice()}
	})
	text, err := a.SignClientRequest(der, 0, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := parseCert(text)
	if err != nil {
		t.Fatal(err)
	}
	cs := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	if id, is := PeerID(cs); is || PeerEligible(cs) || a.VerifyNode(cs) == nil {
		t.Errorf("it is node %q", id)
	}
	if _, is := PeerName(cs); is {
		t.Error("it has a node's name")
	}
	pair := tls.Certificate{Certificate: [][]byte{leaf.Raw, a.ca.Raw}, PrivateKey: key}
	const notNode = "the certificate is not a node's"
	for _, proto := range []string{"conclave-node/1", ProtoJoin} {
		sErr, _, _, _ := handshake(t, certs.Server(proto), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}, proto)
		if sErr == nil || !strings.Contains(sErr.Error(), notNode) {
			t.Errorf("%s: %v", proto, sErr)
		}
	}
	// Nor is it a server that a node would talk to.
	for _, proto := range []string{"conclave-node/1", "h2"} {
		_, cErr, _, _ := handshake(t, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{proto}}, certs.Client(""), proto)
		if cErr == nil || !strings.Contains(cErr.Error(), "incompatible key usage") {
			t.Errorf("as a server of %s: %v", proto, cErr)
		}
	}
}

// FuzzSignClientRequest: whatever subject and names are asked for, what is issued
// is a client's, of no node and of no administrator.
func FuzzSignClientRequest(f *testing.F) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	a, err := newAuthority(FoundOptions{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("anna", "dev,ops", "", "")
	f.Add("anna", "dev", "master-eligible", "conclave://node/0123")
	f.Add("system:node:a", "system:nodes", "master-eligible", "conclave://node/0123")
	f.Add("a", "system:masters", "system:masters", "")
	f.Add("system:NODE:a", "system:nodes\x00,\u00a0system:masters", "", "conclave://node/")
	f.Fuzz(func(t *testing.T, user, groups, unit, uri string) {
		r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: user, Organization: strings.Split(groups, ","), OrganizationalUnit: []string{unit}}}
		if u, err := url.Parse(uri); err == nil && uri != "" {
			r.URIs = []*url.URL{u}
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
		if err != nil {
			t.Skip("no request")
		}
		text, err := a.SignClientRequest(der, 0, 0, time.Now())
		if err != nil {
			return
		}
		leaf, err := parseCert(text)
		if err != nil {
			t.Fatal(err)
		}
		_, named := uriID(leaf)
		if _, err := leafID(leaf); err == nil || named || leafEligible(leaf) || isNode(leaf.Subject.CommonName, leaf.Subject.Organization) ||
			slices.Contains(leaf.Subject.Organization, mastersGroup) || leaf.IsCA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
			t.Fatalf("issued %s", leaf.Subject)
		}
	})
}
