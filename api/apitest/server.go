// Package apitest lends tests an API server over a store in memory.
package apitest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/netip"
	"testing"
	"time"

	"crypto"

	"k8s.io/apimachinery/pkg/version"

	"conclave/api"
	"conclave/api/custom"
)

// Admin may do everything.
var Admin = api.User{Name: "admin", Groups: []string{"system:masters", "system:authenticated"}}

// NewServer returns a running server over an empty store in memory, which ends
// with the test. It has the default namespaces and the kubernetes service. Of
// its Config, edit may change everything before it is used.
func NewServer(t testing.TB, edit ...func(*api.Config)) *api.Server {
	s, _ := NewServerStorage(t, edit...)
	return s
}

// NewServerStorage is NewServer and the store below it.
func NewServerStorage(t testing.TB, edit ...func(*api.Config)) (*api.Server, *Storage) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	store := NewStorage()
	cfg := api.Config{
		Storage:              store,
		Kinds:                custom.Kinds(),
		ClientCAs:            func() *x509.CertPool { return x509.NewCertPool() },
		ServiceAccountSigner: func() crypto.Signer { return key },
		ServiceCIDR:          netip.MustParsePrefix("10.96.0.0/16"),
		Version:              version.Info{Major: "1", Minor: "37", GitVersion: "v1.37.0"},
		Now:                  time.Now,
	}
	for _, f := range edit {
		f(&cfg)
	}
	s, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx) // it ends by ctx
	}()
	t.Cleanup(func() { cancel(); <-ended })
	if err := s.EnsureDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	return s, store
}
