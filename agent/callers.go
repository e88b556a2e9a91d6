package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The kubelet API lets in whom Config's Authorize does, which are the masters,
// and besides whoever shows a token that the API knows and has a right to this
// Node's subresource, as under kubelet: who scrapes metrics calls nodes directly.

var (
	tokenReviewsResource  = authenticationv1.SchemeGroupVersion.WithResource("tokenreviews")
	accessReviewsResource = authorizationv1.SchemeGroupVersion.WithResource("subjectaccessreviews")
)

const (
	// verdictLife is how long an answer of the API's holds: for the pages of one
	// scrape, and no longer than a right that was taken may matter.
	verdictLife = 10 * time.Second
	verdictsMax = 256
	reviewWait  = 10 * time.Second
)

// callers remembers for a moment who may do what.
type callers struct {
	mu       sync.Mutex
	verdicts map[[sha256.Size]byte]verdict
}

type verdict struct {
	code  int // of HTTP, 0: it may
	err   error
	until time.Time
}

// admitCaller decides about a request to the kubelet API. code is what to answer
// with if not.
func (a *Agent) admitCaller(r *http.Request) (code int, err error) {
	if err = a.cfg.Authorize(r); err == nil {
		return 0, nil
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if token = strings.TrimSpace(token); !ok || token == "" {
		if r.TLS != nil && len(r.TLS.PeerCertificates) == 0 {
			return http.StatusUnauthorized, errors.New("Unauthorized")
		}
		return http.StatusForbidden, fmt.Errorf("Forbidden: %w", err)
	}
	verb, subresources := kubeletRight(r)
	key := sha256.Sum256([]byte(token + "\x00" + verb + "\x00" + strings.Join(subresources, ",")))
	now := a.cfg.Now()
	c := &a.callers
	c.mu.Lock()
	known, ok := c.verdicts[key]
	c.mu.Unlock()
	if ok && now.Before(known.until) {
		return known.code, known.err
	}
	ctx, cancel := context.WithTimeout(r.Context(), reviewWait)
	defer cancel()
	code, err = a.reviewCaller(ctx, token, verb, subresources)
	if code == http.StatusServiceUnavailable {
		return code, err // nobody has decided
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.verdicts == nil {
		c.verdicts = map[[sha256.Size]byte]verdict{}
	}
	if len(c.verdicts) >= verdictsMax {
		maps.DeleteFunc(c.verdicts, func(_ [sha256.Size]byte, v verdict) bool { return !now.Before(v.until) })
	}
	if len(c.verdicts) < verdictsMax {
		c.verdicts[key] = verdict{code, err, now.Add(verdictLife)}
	}
	return code, err
}

// kubeletRight is the verb, and the subresources of a Node, one of which a caller
// needs the right to. Commands in containers and connections to them need the
// right to create whatever the method is: WebSockets begin with GET.
func kubeletRight(r *http.Request) (verb string, subresources []string) {
	below := func(path string) bool { return r.URL.Path == path || strings.HasPrefix(r.URL.Path, path+"/") }
	verb = map[string]string{http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[r.Method]
	if verb == "" {
		verb = "get"
	}
	switch {
	case below("/exec"), below("/attach"), below("/portForward"):
		return "create", []string{"proxy"}
	case below("/stats"):
		return verb, []string{"stats"}
	case below("/metrics"):
		return verb, []string{"metrics"}
	case below("/pods"):
		return verb, []string{"pods", "proxy"}
	case below("/healthz"):
		return verb, []string{"healthz", "proxy"}
	}
	return verb, []string{"proxy"}
}

// reviewCaller asks the API whose a token is and whether they have the right.
func (a *Agent) reviewCaller(ctx context.Context, token, verb string, subresources []string) (code int, err error) {
	o, err := a.cfg.Client.Create(ctx, tokenReviewsResource, "", "", &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return http.StatusServiceUnavailable, fmt.Errorf("the API cannot be asked who calls: %w", err)
	}
	who, ok := o.(*authenticationv1.TokenReview)
	if !ok || !who.Status.Authenticated {
		return http.StatusUnauthorized, errors.New("Unauthorized")
	}
	user := who.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	for _, sub := range subresources {
		o, err := a.cfg.Client.Create(ctx, accessReviewsResource, "", "", &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, Groups: user.Groups, UID: user.UID, Extra: extra,
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: sub, Name: a.cfg.NodeName},
		}}, metav1.CreateOptions{})
		if err != nil {
			return http.StatusServiceUnavailable, fmt.Errorf("the API cannot be asked what the caller may do: %w", err)
		}
		if answer, ok := o.(*authorizationv1.SubjectAccessReview); ok && answer.Status.Allowed && !answer.Status.Denied {
			return 0, nil
		}
	}
	return http.StatusForbidden, fmt.Errorf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", user.Username, verb, subresources)
}
