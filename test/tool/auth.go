package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Where a pod finds what its service account has.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// accountClient speaks to the API server with the pod's own token and CA.
type accountClient struct {
	token string
	http  http.Client
}

func newAccountClient() (*accountClient, error) {
	token, err := os.ReadFile(filepath.Join(accountDir, "token"))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(accountDir, "ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("ca.crt holds no certificate")
	}
	return &accountClient{string(token), http.Client{
		Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}, nil
}

// do asks, and reads the answer into out; a nil body is a GET.
func (c *accountClient) do(ctx context.Context, url string, body, out any) error {
	method, in := http.MethodGet, io.Reader(nil)
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		method, in = http.MethodPost, bytes.NewReader(raw)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+c.token)
	request.Header.Set("Content-Type", "application/json")
	answer, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, answer.Status, raw)
	}
	return json.Unmarshal(raw, out)
}

// whoami prints as whom the API server, by its Service's address, knows the
// bearer of this pod's token; then what it answers to a GET of each path.
func whoami(ctx context.Context, paths []string) error {
	c, err := newAccountClient()
	if err != nil {
		return err
	}
	base := "https://" + net.JoinHostPort(os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT"))
	var review struct {
		Status struct {
			UserInfo struct{ Username string }
		}
	}
	if err := c.do(ctx, base+"/apis/authentication.k8s.io/v1/selfsubjectreviews", map[string]string{"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}, &review); err != nil {
		return err
	}
	fmt.Println(review.Status.UserInfo.Username)
	for _, path := range paths {
		var into struct{ Kind string }
		if err := c.do(ctx, base+path, nil, &into); err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(path, into.Kind)
	}
	return nil
}

// oidc verifies the token in a file as somebody would who knows nothing of
// Kubernetes: by the issuer's metadata and its published keys.
func oidc(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("oidc: name the token's file and its audience")
	}
	token, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	c, err := newAccountClient()
	if err != nil {
		return err
	}
	parts := strings.Split(string(token), ".")
	if len(parts) != 3 {
		return errors.New("the token has not three parts")
	}
	var head struct{ Alg, Kid string }
	var claims struct {
		Iss, Sub string
		Aud      []string
		Exp, Nbf int64
	}
	for i, into := range []any{&head, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return err
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return err
		}
	}
	var metadata struct {
		Issuer, JWKSURI string
		Algorithms      []string
	}
	var raw map[string]any
	if err := c.do(ctx, strings.TrimSuffix(claims.Iss, "/")+"/.well-known/openid-configuration", nil, &raw); err != nil {
		return err
	}
	metadata.Issuer, _ = raw["issuer"].(string)
	metadata.JWKSURI, _ = raw["jwks_uri"].(string)
	all, _ := raw["id_token_signing_alg_values_supported"].([]any)
	for _, a := range all {
		metadata.Algorithms = append(metadata.Algorithms, fmt.Sprint(a))
	}
	if metadata.Issuer != claims.Iss || !slices.Contains(metadata.Algorithms, head.Alg) {
		return fmt.Errorf("the token is of issuer %q by %s, and the metadata says %+v", claims.Iss, head.Alg, metadata)
	}
	var keys struct {
		Keys []struct{ Kid, Kty, Crv, Alg, Use, X, Y string }
	}
	if err := c.do(ctx, metadata.JWKSURI, nil, &keys); err != nil {
		return err
	}
	for _, k := range keys.Keys {
		if k.Kid != head.Kid || k.Alg != head.Alg {
			continue
		}
		if k.Kty != "EC" || k.Crv != "P-256" || head.Alg != "ES256" || k.Use != "sig" {
			return fmt.Errorf("this program knows no key such as %+v", k)
		}
		if err := verify(k.X, k.Y, parts); err != nil {
			return err
		}
		if now := time.Now().Unix(); now < claims.Nbf-10 || now > claims.Exp || !slices.Contains(claims.Aud, args[1]) {
			return fmt.Errorf("the token is good from %d to %d for %q, and now is %d", claims.Nbf, claims.Exp, claims.Aud, now)
		}
		fmt.Println("verified", claims.Sub)
		return nil
	}
	return fmt.Errorf("none of the issuer's keys is %q: %+v", head.Kid, keys)
}

// verify checks a token's signature by a point of P-256.
func verify(x, y string, parts []string) error {
	number := func(s string) []byte {
		raw, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			return nil // then the point or the signature is none
		}
		return raw
	}
	point := slices.Concat([]byte{4}, number(x), number(y))
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return fmt.Errorf("the issuer's key: %w", err)
	}
	signature := number(parts[2])
	if len(signature) != 64 {
		return fmt.Errorf("the signature has %d bytes", len(signature))
	}
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if !ecdsa.Verify(key, sum[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])) {
		return errors.New("the signature is wrong")
	}
	return nil
}
