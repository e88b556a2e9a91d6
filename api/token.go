package api

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
)

// claims are what a service account's token says, in Kubernetes' names.
type claims struct {
	Issuer    string     `json:"iss"`
	Subject   string     `json:"sub"`
	Audience  audience   `json:"aud"`
	Expires   int64      `json:"exp"`
	NotBefore int64      `json:"nbf"`
	Issued    int64      `json:"iat"`
	ID        string     `json:"jti"`
	Private   tokenOwner `json:"kubernetes.io"`
}

type tokenOwner struct {
	Namespace      string    `json:"namespace"`
	ServiceAccount namedUID  `json:"serviceaccount"`
	Pod            *namedUID `json:"pod,omitempty"`
	Secret         *namedUID `json:"secret,omitempty"`
	Node           *namedUID `json:"node,omitempty"`
}

type namedUID struct {
	Name string `json:"name"`
	UID  string `json:"uid,omitempty"`
}

// audience is one string or several, as RFC 7519 allows.
type audience []string

func (a *audience) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*a = audience{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(a))
}

type tokenHeader struct {
	Algorithm string `json:"alg"`
	KeyID     string `json:"kid,omitempty"`
	Type      string `json:"typ,omitempty"`
}

var (
	errNotOurs    = errors.New("token has not been issued by this cluster")
	errBadToken   = errors.New("invalid bearer token")
	errTokenEnded = errors.New("token has expired")
)

// Clocks of nodes differ by some seconds.
const clockSkew = 10 * time.Second

// keyID names a public key as Kubernetes does: the hash of its DER.
func keyID(pub crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return "", fmt.Errorf("name the token key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// signToken makes a JWT with ES256.
func signToken(signer crypto.Signer, c claims) (string, error) {
	kid, err := keyID(signer.Public())
	if err != nil {
		return "", err
	}
	head, err := json.Marshal(tokenHeader{Algorithm: "ES256", KeyID: kid})
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(body)
	sum := sha256.Sum256([]byte(signed))
	der, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	// JWS wants the two numbers side by side, where ASN.1 has a sequence.
	var rs struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &rs); err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	var sig [64]byte
	rs.R.FillBytes(sig[:32])
	rs.S.FillBytes(sig[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig[:]), nil
}

// verifyToken checks a token's signature, issuer and times, and returns what
// it says. Whom it names must still be looked up.
func verifyToken(pub crypto.PublicKey, token string, now time.Time) (claims, error) {
	var c claims
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return c, fmt.Errorf("token key is a %T, not ECDSA P-256", pub)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errBadToken
	}
	var head tokenHeader
	if err := decodeSegment(parts[0], &head); err != nil || head.Algorithm != "ES256" {
		return c, errBadToken
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil || len(sig) != 64 {
		return c, errBadToken
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:])) {
		return c, errNotOurs
	}
	if err := decodeSegment(parts[1], &c); err != nil {
		return c, errBadToken
	}
	switch {
	case c.Issuer != Issuer:
		return c, errNotOurs
	case now.After(time.Unix(c.Expires, 0).Add(clockSkew)):
		return c, errTokenEnded
	case now.Add(clockSkew).Before(time.Unix(c.NotBefore, 0)):
		return c, errors.New("token is not valid yet")
	}
	return c, nil
}

func decodeSegment(s string, into any) error {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, into)
}

// intersects says whether a token is meant for one of the audiences.
func (a audience) intersects(wanted []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(wanted, s) })
}

func newTokenID() string { return string(uuid.NewUUID()) }
