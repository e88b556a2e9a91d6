package api

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Users and groups that mean something to the server.
const (
	userAnonymous        = "system:anonymous"
	groupUnauthenticated = "system:unauthenticated"
	groupAuthenticated   = "system:authenticated"
	groupMasters         = "system:masters"
	groupNodes           = "system:nodes"
	groupServiceAccounts = "system:serviceaccounts"
	nodePrefix           = "system:node:"
	accountPrefix        = "system:serviceaccount:"
)

func unauthorized() error { return apierrors.NewUnauthorized("Unauthorized") }

// authenticate says who makes a request. A credential that is wrong is an
// error; none at all is the anonymous user.
func (s *Server) authenticate(r *http.Request) (User, error) {
	if u, ok := s.fromCertificate(r); ok {
		return u, nil
	}
	if token, ok := bearerToken(r); ok {
		u, _, err := s.fromToken(r.Context(), token, []string{Issuer})
		if err != nil {
			s.log.Info("token refused", "error", err, "remote", r.RemoteAddr)
			if apierrors.ReasonForError(err) != "" && !apierrors.IsUnauthorized(err) {
				return User{}, err
			}
			return User{}, unauthorized()
		}
		return u, nil
	}
	if r.Header.Get("Authorization") != "" {
		return User{}, unauthorized()
	}
	return User{Name: userAnonymous, Groups: []string{groupUnauthenticated}}, nil
}

// fromCertificate is the user of a certificate that the cluster's CA signed
// for clients. Another certificate proves nothing, and is as none.
func (s *Server) fromCertificate(r *http.Request) (User, bool) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || s.cfg.ClientCAs == nil {
		return User{}, false
	}
	leaf := r.TLS.PeerCertificates[0]
	if err := s.certs.verify(r.TLS.PeerCertificates, s.cfg.ClientCAs(), s.cfg.Now()); err != nil {
		s.log.Info("client certificate refused", "subject", leaf.Subject.String(), "error", err, "remote", r.RemoteAddr)
		return User{}, false
	}
	return User{Name: leaf.Subject.CommonName, Groups: withAuthenticated(leaf.Subject.Organization)}, leaf.Subject.CommonName != ""
}

// certCache remembers certificates that were verified: a client sends the same
// one with each request, and checking its signature is most of a small
// request's work. Its zero value is empty.
type certCache struct {
	mu    sync.Mutex
	good  map[[sha256.Size]byte]time.Time // until when
	roots *x509.CertPool                  // by which they were verified
}

const maxCachedCerts = 1024

func (c *certCache) verify(chain []*x509.Certificate, roots *x509.CertPool, now time.Time) error {
	leaf := chain[0]
	sum := sha256.Sum256(leaf.Raw)
	c.mu.Lock()
	if c.roots == nil || c.roots != roots && !c.roots.Equal(roots) || len(c.good) >= maxCachedCerts {
		c.good = map[[sha256.Size]byte]time.Time{}
	}
	c.roots = roots
	until, known := c.good[sum]
	c.mu.Unlock()
	if known && now.Before(until) && !now.Before(leaf.NotBefore) {
		return nil
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	until = leaf.NotAfter
	for _, cert := range chains[0] {
		if cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.roots == roots {
		c.good[sum] = until
	}
	return nil
}

func withAuthenticated(groups []string) []string {
	if slices.Contains(groups, groupAuthenticated) {
		return groups
	}
	return append(slices.Clone(groups), groupAuthenticated)
}

// bearerToken is the token of the Authorization header, or of the WebSocket
// protocol by which browsers, which cannot set headers, send one.
func bearerToken(r *http.Request) (string, bool) {
	kind, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(kind, "bearer") {
		token = strings.TrimSpace(token)
		return token, token != ""
	}
	return "", false
}

// fromToken is the service account that a token names. The account, and the
// object that the token is bound to, must still be there.
func (s *Server) fromToken(ctx context.Context, token string, audiences []string) (User, audience, error) {
	if s.cfg.ServiceAccountSigner == nil {
		return User{}, nil, errNotOurs
	}
	signer := s.cfg.ServiceAccountSigner()
	if signer == nil {
		return User{}, nil, apierrors.NewServiceUnavailable("this node does not have the key of service account tokens yet")
	}
	c, err := verifyToken(signer.Public(), token, s.cfg.Now())
	if err != nil {
		return User{}, nil, err
	}
	if !c.Audience.intersects(audiences) {
		return User{}, nil, fmt.Errorf("token audiences %q are not among %q", c.Audience, audiences)
	}
	ns, account := c.Private.Namespace, c.Private.ServiceAccount
	bound := []struct {
		resource, namespace string
		is                  *namedUID
	}{
		{serviceAccounts.Resource, ns, &account},
		{pods.Resource, ns, c.Private.Pod},
		{secrets.Resource, ns, c.Private.Secret},
	}
	for _, b := range bound {
		if b.is == nil {
			continue
		}
		if err := s.stillThere(ctx, b.resource, b.namespace, *b.is); err != nil {
			return User{}, nil, err
		}
	}
	u := accountUser(ns, account.Name, account.UID)
	u.Extra = map[string][]string{"authentication.kubernetes.io/credential-id": {"JTI=" + c.ID}}
	if p := c.Private.Pod; p != nil {
		u.Extra["authentication.kubernetes.io/pod-name"], u.Extra["authentication.kubernetes.io/pod-uid"] = []string{p.Name}, []string{p.UID}
	}
	if n := c.Private.Node; n != nil {
		u.Extra["authentication.kubernetes.io/node-name"], u.Extra["authentication.kubernetes.io/node-uid"] = []string{n.Name}, []string{n.UID}
	}
	return u, c.Audience, nil
}

// stillThere looks for what a token is bound to; this replica may be behind.
func (s *Server) stillThere(ctx context.Context, resource, namespace string, is namedUID) error {
	for synced := false; ; synced = true {
		rec := s.cfg.Storage.Get(resource, namespace, is.Name)
		if rec != nil && (is.UID == "" || string(rec.Object().GetUID()) == is.UID) {
			if t := rec.Object().GetDeletionTimestamp(); t != nil && s.cfg.Now().After(t.Add(clockSkew)) {
				return fmt.Errorf("%s %s/%s of the token is being deleted", resource, namespace, is.Name)
			}
			return nil
		}
		if synced {
			return fmt.Errorf("%s %s/%s of the token is gone", resource, namespace, is.Name)
		}
		if err := s.cfg.Storage.Sync(ctx); err != nil {
			return storageError(err, schema.GroupResource{Resource: resource}, is.Name)
		}
	}
}

func accountUser(namespace, name, uid string) User {
	return User{
		Name: accountPrefix + namespace + ":" + name, UID: uid,
		Groups: []string{groupServiceAccounts, groupServiceAccounts + ":" + namespace, groupAuthenticated},
	}
}

// impersonate is the user that a request asks to be taken for, if its own user
// may be taken for that one.
func (s *Server) impersonate(r *http.Request, u User) (User, error) {
	h := r.Header
	name, uid, groups := h.Get(authenticationv1.ImpersonateUserHeader), h.Get(authenticationv1.ImpersonateUIDHeader), h.Values(authenticationv1.ImpersonateGroupHeader)
	extra := map[string][]string{}
	for key, values := range h {
		if rest, ok := strings.CutPrefix(key, authenticationv1.ImpersonateUserExtraHeaderPrefix); ok {
			if k, err := url.PathUnescape(strings.ToLower(rest)); err == nil {
				extra[k] = values
			}
		}
	}
	if name == "" {
		if uid != "" || len(groups) > 0 || len(extra) > 0 {
			return u, apierrors.NewBadRequest("requested groups, uid or extra without impersonating a user")
		}
		return u, nil
	}
	asks := []Attributes{{Verb: "impersonate", Resource: schema.GroupVersionResource{Version: "v1", Resource: "users"}, Name: name}}
	account := strings.Split(strings.TrimPrefix(name, accountPrefix), ":")
	isAccount := strings.HasPrefix(name, accountPrefix) && len(account) == 2
	if isAccount {
		asks[0] = Attributes{Verb: "impersonate", Resource: serviceAccounts, Namespace: account[0], Name: account[1]}
	}
	for _, g := range groups {
		asks = append(asks, Attributes{Verb: "impersonate", Resource: schema.GroupVersionResource{Version: "v1", Resource: "groups"}, Name: g})
	}
	authentication := authenticationv1.SchemeGroupVersion
	if uid != "" {
		asks = append(asks, Attributes{Verb: "impersonate", Resource: authentication.WithResource("uids"), Name: uid})
	}
	for k, values := range extra {
		for _, v := range values {
			asks = append(asks, Attributes{Verb: "impersonate", Resource: authentication.WithResource("userextras"), Subresource: k, Name: v})
		}
	}
	for _, a := range asks {
		if err := s.authorize(r.Context(), u, a); err != nil {
			return u, err
		}
	}
	as := User{Name: name, UID: uid, Groups: slices.Clone(groups), Extra: extra}
	if isAccount && len(groups) == 0 {
		as.Groups = accountUser(account[0], account[1], "").Groups
	}
	if name == userAnonymous {
		if !slices.Contains(as.Groups, groupUnauthenticated) {
			as.Groups = append(as.Groups, groupUnauthenticated)
		}
	} else if !slices.Contains(as.Groups, groupUnauthenticated) {
		as.Groups = withAuthenticated(as.Groups)
	}
	return as, nil
}

// tokenFor signs a token for a service account.
func (s *Server) tokenFor(sa *corev1.ServiceAccount, c claims) (string, error) {
	if s.cfg.ServiceAccountSigner == nil {
		return "", apierrors.NewServiceUnavailable("this cluster signs no tokens")
	}
	signer := s.cfg.ServiceAccountSigner()
	if signer == nil {
		return "", apierrors.NewServiceUnavailable("this node does not have the key of service account tokens yet")
	}
	c.Issuer, c.ID = Issuer, newTokenID()
	c.Subject = accountPrefix + sa.Namespace + ":" + sa.Name
	c.Private.Namespace = sa.Namespace
	c.Private.ServiceAccount = namedUID{Name: sa.Name, UID: string(sa.UID)}
	token, err := signToken(signer, c)
	if err != nil {
		return "", errors.Join(errors.New("sign a token for "+c.Subject), err)
	}
	return token, nil
}
