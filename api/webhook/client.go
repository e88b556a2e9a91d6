package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"conclave/api/types"
)

const (
	// A connection is kept this long for the next call: long enough for a burst
	// of writes, short enough to forget a backend that is no more.
	idleTime = 15 * time.Second
	// Ways to webhooks that are remembered. More at once are hardly in use.
	maxWays = 64
	// The largest answer that is read.
	maxAnswer = 8 << 20
)

// Client calls webhooks. The zero value has no way to Services.
type Client struct {
	// Resolve is an address (host:port) at which a port of a Service answers.
	Resolve func(namespace, name string, port int32) (string, error)
	// Dial connects to an address that Resolve returned.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	ways map[string]*http.Client
}

// Post sends question to a webhook and reads its answer, within a time that the
// webhook is told of.
func (c *Client) Post(ctx context.Context, to *types.WebhookClientConfig, timeout time.Duration, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return fmt.Errorf("encode the question: %w", err)
	}
	at, err := address(to)
	if err != nil {
		return err
	}
	way, err := c.way(to, at)
	if err != nil {
		return err
	}
	query := at.Query()
	query.Set("timeout", timeout.String())
	at.RawQuery = query.Encode()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json, */*")
	req.Header.Set("User-Agent", "kube-apiserver-admission")
	resp, err := way.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the answer of %s: %w", at.Host, err)
	case len(text) > maxAnswer:
		return fmt.Errorf("the answer of %s has more than %d bytes", at.Host, maxAnswer)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		const enough = 1 << 10
		return fmt.Errorf("the server responded with the status code %d: %s", resp.StatusCode, strings.TrimSpace(string(text[:min(len(text), enough)])))
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("the answer of %s cannot be read: %w", at.Host, err)
	}
	return nil
}

// address is the URL of a webhook.
func address(to *types.WebhookClientConfig) (*url.URL, error) {
	switch {
	case to.URL != nil:
		return url.Parse(*to.URL)
	case to.Service == nil:
		return nil, fmt.Errorf("neither url nor service is set")
	}
	s, port := to.Service, int32(443)
	if s.Port != nil {
		port = *s.Port
	}
	u := &url.URL{Scheme: "https", Host: net.JoinHostPort(s.Name+"."+s.Namespace+".svc", strconv.Itoa(int(port))), Path: "/"}
	if s.Path != nil && *s.Path != "" {
		u.Path = *s.Path
	}
	return u, nil
}

// way is the HTTP client for a webhook.
func (c *Client) way(to *types.WebhookClientConfig, at *url.URL) (*http.Client, error) {
	key := at.Host + "\x00" + string(to.CABundle)
	if to.Service != nil {
		key = to.Service.Namespace + "\x00" + key
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if way := c.ways[key]; way != nil {
		return way, nil
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(to.CABundle) > 0 {
		trust.RootCAs = x509.NewCertPool()
		if !trust.RootCAs.AppendCertsFromPEM(to.CABundle) {
			return nil, fmt.Errorf("unable to load root certificates: unable to parse bytes as PEM block")
		}
	}
	carrier := &http.Transport{TLSClientConfig: trust, IdleConnTimeout: idleTime, MaxIdleConnsPerHost: 8, TLSHandshakeTimeout: 30 * time.Second}
	if s := to.Service; s != nil {
		trust.ServerName = s.Name + "." + s.Namespace + ".svc"
		namespace, name := s.Namespace, s.Name
		carrier.DialContext = func(ctx context.Context, network, wanted string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(wanted)
			if err != nil {
				return nil, err
			}
			n, err := strconv.ParseInt(port, 10, 32)
			if err != nil {
				return nil, err
			}
			found, err := c.Resolve(namespace, name, int32(n))
			if err != nil {
				return nil, err
			}
			return c.Dial(ctx, network, found)
		}
	}
	if c.ways == nil || len(c.ways) >= maxWays {
		c.ways = map[string]*http.Client{}
	}
	way := &http.Client{Transport: carrier, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	c.ways[key] = way
	return way, nil
}
