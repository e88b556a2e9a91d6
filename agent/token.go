package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	tokenLife       = 3600
	tokenRenewShare = 0.8
	tokenRetry      = time.Minute
	tokenWait       = 10 * time.Second
)

// tokenCache holds the tokens of one pod's service account, also on disk, and
// says when the next is to be renewed.
type tokenCache struct {
	w *podWorker

	mu     sync.Mutex
	tokens map[string]*boundToken
}

type boundToken struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
	Renew   time.Time `json:"renew"`
}

func (c *tokenCache) init(w *podWorker) { c.w, c.tokens = w, map[string]*boundToken{} }

func (c *tokenCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tokens)
}

// renewal is the time at which the next token is due.
func (c *tokenCache) renewal() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next time.Time
	for _, t := range c.tokens {
		if next.IsZero() || t.Renew.Before(next) {
			next = t.Renew
		}
	}
	return next
}

// due says whether a token is to be renewed now.
func (c *tokenCache) due(now time.Time) bool {
	next := c.renewal()
	return !next.IsZero() && !now.Before(next)
}

// get returns a token for a projection: the one that there is while it is good,
// else a new one, else, if the API does not answer, any that there is.
func (c *tokenCache) get(ctx context.Context, pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) ([]byte, error) {
	seconds := int64(tokenLife)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	key := p.Audience + "|" + strconv.FormatInt(seconds, 10)
	file := filepath.Join(c.w.dirs.disk, "objects", "token."+strings.NewReplacer("/", "_", ":", "_").Replace(p.Audience)+"."+strconv.FormatInt(seconds, 10))
	now := c.w.a.cfg.Now()
	c.mu.Lock()
	have := c.tokens[key]
	c.mu.Unlock()
	if have == nil {
		if data, err := c.w.a.readSealed(file); err == nil {
			have = &boundToken{}
			if json.Unmarshal(data, have) != nil {
				have = nil
			}
		}
	}
	if have == nil || !now.Before(have.Renew) {
		fresh, err := c.request(ctx, pod, p.Audience, seconds)
		switch {
		case err == nil:
			have = fresh
			if err := c.keep(file, have); err != nil {
				return nil, err
			}
		case have == nil || ctx.Err() != nil:
			return nil, err
		default:
			c.w.log.Warn("a service account token cannot be renewed yet", "err", err)
			have = &boundToken{Token: have.Token, Expires: have.Expires, Renew: now.Add(tokenRetry)}
		}
	}
	c.mu.Lock()
	c.tokens[key] = have
	c.mu.Unlock()
	return []byte(have.Token), nil
}

// expiry is of a token that get returned.
func (c *tokenCache) expiry(p *corev1.ServiceAccountTokenProjection) time.Time {
	seconds := int64(tokenLife)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tokens[p.Audience+"|"+strconv.FormatInt(seconds, 10)]; t != nil {
		return t.Expires
	}
	return time.Time{}
}

func (c *tokenCache) request(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (*boundToken, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenWait)
	defer cancel()
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	r := &authenticationv1.TokenRequest{
		ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: pod.Namespace},
		Spec: authenticationv1.TokenRequestSpec{
			ExpirationSeconds: &seconds,
			BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
		},
	}
	if audience != "" {
		r.Spec.Audiences = []string{audience}
	}
	asked := c.w.a.cfg.Now()
	obj, err := c.w.a.cfg.Client.Create(ctx, serviceAccountsResource, pod.Namespace, account, r, metav1.CreateOptions{}, "token")
	if err != nil {
		return nil, fmt.Errorf("failed to fetch token: %w", err)
	}
	answer, ok := obj.(*authenticationv1.TokenRequest)
	if !ok || answer.Status.Token == "" {
		return nil, fmt.Errorf("failed to fetch token: the API answered with %T and no token", obj)
	}
	life := answer.Status.ExpirationTimestamp.Sub(asked)
	return &boundToken{
		Token: answer.Status.Token, Expires: answer.Status.ExpirationTimestamp.Time,
		Renew: asked.Add(max(time.Duration(float64(life)*tokenRenewShare), tokenRetry)),
	}, nil
}

func (c *tokenCache) keep(file string, t *boundToken) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return c.w.a.writeSealed(file, data)
}
