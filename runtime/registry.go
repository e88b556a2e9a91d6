package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sys/unix"
)

// Credential is what a registry may be told of who pulls.
type Credential struct {
	Username, Password           string
	IdentityToken, RegistryToken string
	// Node says that it is the node's own: what it pulls is for every pod here.
	Node bool
}

// key names a credential in the index without giving it away.
func (c Credential) key() string {
	data, err := json.Marshal([]string{c.Username, c.Password, c.IdentityToken, c.RegistryToken})
	if err != nil {
		return "" // strings always marshal
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (c Credential) auth() authn.Authenticator {
	if c.Username == "" && c.Password == "" && c.IdentityToken == "" && c.RegistryToken == "" {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	})
}

// resolved is what a registry says that a reference is.
type resolved struct {
	config   []byte
	manifest *v1.Manifest
	digest   string            // of what the reference named
	docs     map[string][]byte // the manifest and, if there is one, the index, by digest
	right    right
	blobs    []func() (*blobs, error) // where the layers are, the likeliest first
}

// blobs fetches the blobs of one repository at one endpoint.
type blobs struct {
	host   string
	client *http.Client
	url    string // of the repository
}

// resolve asks the mirrors of a registry and the registry itself, in their
// order and with each credential that fits, what a reference is now.
func (s *store) resolve(ctx context.Context, ref name.Reference, o PullOptions, t *transports) (*resolved, error) {
	endpoints, err := s.endpoints(ref.Context())
	if err != nil {
		return nil, err
	}
	failed := fmt.Errorf("%w: no host of %s may resolve names: see its hosts.toml", ErrRegistryUnavailable, ref.Context().RegistryStr())
	for i, e := range endpoints {
		if !e.resolve {
			continue
		}
		out, err := s.resolveWith(ctx, ref, e, o, t)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			// The registry's own word comes last, and counts.
			failed = err
			s.log.Debug("a registry did not answer as hoped", "host", e.host, "image", ref.Name(), "error", err)
			continue
		}
		if !e.pull {
			out.blobs = nil
		}
		for _, other := range endpoints[i+1:] {
			if other.pull {
				out.blobs = append(out.blobs, s.lazily(ctx, ref, other, o, t))
			}
		}
		return out, nil
	}
	return nil, failed
}

// credentials are what fits an endpoint, nobody's if nothing does.
func (o PullOptions) credentials(e *endpoint) ([]Credential, error) {
	if o.Credentials == nil {
		return []Credential{{}}, nil
	}
	found, err := o.Credentials(e.repository)
	if err != nil {
		return nil, fmt.Errorf("%w: credentials for %s: %w", ErrUnauthorized, e.repository, err)
	}
	if len(found) == 0 {
		found = []Credential{{}}
	}
	return found, nil
}

// resolveWith tries each credential at one endpoint.
func (s *store) resolveWith(ctx context.Context, ref name.Reference, e *endpoint, o PullOptions, t *transports) (out *resolved, err error) {
	rt, err := t.of(e)
	if err != nil {
		return nil, err
	}
	credentials, err := o.credentials(e)
	if err != nil {
		return nil, err
	}
	for _, c := range credentials {
		if out, err = s.resolveAt(ctx, ref, e, c, rt, *o.Platform); err == nil || !errors.Is(err, ErrUnauthorized) {
			break
		}
	}
	return out, err
}

// lazily is a further endpoint for blobs, which is asked when it is needed.
func (s *store) lazily(ctx context.Context, ref name.Reference, e *endpoint, o PullOptions, t *transports) func() (*blobs, error) {
	return sync.OnceValues(func() (*blobs, error) {
		rt, err := t.of(e)
		if err != nil {
			return nil, err
		}
		credentials, err := o.credentials(e)
		if err != nil {
			return nil, err
		}
		for _, c := range credentials {
			var in entrance
			if in, err = s.enter(ctx, ref, e, c, rt); err == nil {
				return in.blobs, nil
			}
		}
		return nil, err
	})
}

// entrance is a repository that let us in.
type entrance struct {
	rt    http.RoundTripper
	blobs *blobs
}

// enter authenticates at an endpoint.
func (s *store) enter(ctx context.Context, ref name.Reference, e *endpoint, c Credential, rt http.RoundTripper) (entrance, error) {
	inner, err := transport.NewWithContext(ctx, ref.Context().Registry, c.auth(), userAgent{rt}, []string{ref.Scope(transport.PullScope)})
	if err != nil {
		return entrance{}, registryError(ctx, err)
	}
	repo := ref.Context()
	return entrance{inner, &blobs{
		host: e.host, client: &http.Client{Transport: inner, CheckRedirect: checkRedirect},
		url: "https://" + repo.RegistryStr() + "/v2/" + repo.RepositoryStr(),
	}}, nil
}

// userAgent tells registries who asks.
type userAgent struct{ next http.RoundTripper }

func (a userAgent) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("User-Agent", "conclave")
	return a.next.RoundTrip(r)
}

// resolveAttempts is how often a registry is asked that answers with an error
// of its own.
const resolveAttempts = 3

func (s *store) resolveAt(ctx context.Context, ref name.Reference, e *endpoint, c Credential, rt http.RoundTripper, platform v1.Platform) (out *resolved, err error) {
	for attempt := range resolveAttempts {
		if attempt > 0 {
			select {
			case <-time.After(300 * time.Millisecond << attempt):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		out, err = s.resolveOnce(ctx, ref, e, c, rt, platform)
		var dial *net.OpError
		if err == nil || !errors.Is(err, ErrRegistryUnavailable) || errors.As(err, &dial) && dial.Op == "dial" {
			break
		}
	}
	return out, err
}

func (s *store) resolveOnce(ctx context.Context, ref name.Reference, e *endpoint, c Credential, rt http.RoundTripper, platform v1.Platform) (*resolved, error) {
	in, err := s.enter(ctx, ref, e, c, rt)
	if err != nil {
		return nil, err
	}
	desc, err := remote.Get(ref, remote.WithContext(ctx), remote.WithTransport(in.rt), remote.WithPlatform(platform))
	if err != nil {
		return nil, registryError(ctx, err)
	}
	out := &resolved{digest: desc.Digest.String(), docs: map[string][]byte{desc.Digest.String(): desc.Manifest}, blobs: []func() (*blobs, error){func() (*blobs, error) { return in.blobs, nil }}}
	img, err := desc.Image()
	if err != nil {
		if desc.MediaType.IsIndex() && strings.Contains(err.Error(), "no child with platform") {
			return nil, fmt.Errorf("%w: it has no variant for %s", ErrImageNotFound, platform)
		}
		return nil, registryError(ctx, err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, registryError(ctx, err)
	}
	out.docs[digestOf(raw)] = raw
	if out.manifest, err = img.Manifest(); err != nil {
		return nil, registryError(ctx, err)
	}
	if out.config, err = img.RawConfigFile(); err != nil {
		return nil, registryError(ctx, err)
	}
	if got := digestOf(out.config); got != out.manifest.Config.Digest.String() {
		return nil, fmt.Errorf("%w: its config has the digest %s, not %s", ErrDamagedImage, got, out.manifest.Config.Digest)
	}
	out.right = right{Repository: repository(ref), Anyone: c.auth() == authn.Anonymous, Here: c.Node}
	if !out.right.Anyone {
		out.right.Keys = []string{c.key()}
	}
	return out, nil
}

// checkRedirect keeps a registry from sending us to services of this host or of
// its cloud.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	ip, err := netip.ParseAddr(r.URL.Hostname())
	if err != nil || r.URL.Hostname() == via[0].URL.Hostname() {
		return nil
	}
	if ip.IsLinkLocalUnicast() || ip.IsLoopback() || ip.IsUnspecified() {
		return fmt.Errorf("the registry redirects to %s, which is for this host alone", ip)
	}
	return nil
}

// resumes is how often in a row a blob's connection may break without bringing
// anything.
const resumes = 3

// open fetches a blob. A connection that breaks is made again where it broke.
// What was read is the blob only when the end has been read.
func (b *blobs) open(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	r := &blobReader{ctx: ctx, from: b, want: d, hash: sha256.New()}
	if err := r.connect(); err != nil {
		return nil, err
	}
	return r, nil
}

type blobReader struct {
	ctx    context.Context
	from   *blobs
	want   v1.Descriptor
	offset int64
	hash   hash.Hash
	body   io.ReadCloser
	broken int // times in a row

	resumed bool

	stall *time.Timer // closes body when nothing comes
}

// connect asks for what is missing.
func (r *blobReader) connect() error {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.from.url+"/blobs/"+r.want.Digest.String(), nil)
	if err != nil {
		return err
	}
	if r.offset > 0 {
		r.resumed = true
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", r.offset, r.want.Size-1))
	}
	res, err := r.from.client.Do(req)
	if err != nil {
		return registryError(r.ctx, err)
	}
	if err := transport.CheckError(res, http.StatusOK, http.StatusPartialContent); err != nil {
		res.Body.Close()
		return registryError(r.ctx, err)
	}
	body := res.Body
	r.stall = time.AfterFunc(stallPatience, func() { body.Close() })
	switch {
	case res.StatusCode == http.StatusPartialContent && !strings.HasPrefix(res.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", r.offset)):
		body.Close()
		return fmt.Errorf("%w: %s answers with another part of a blob than was asked for", ErrRegistryUnavailable, r.from.host)
	case res.StatusCode == http.StatusOK && r.offset > 0: // it knows no ranges
		if _, err := io.CopyN(io.Discard, body, r.offset); err != nil {
			body.Close()
			return registryError(r.ctx, err)
		}
	}
	r.body = body
	return nil
}

func (r *blobReader) Read(b []byte) (int, error) {
	for {
		if r.body == nil {
			if err := r.again(); err != nil {
				return 0, err
			}
			continue
		}
		n, err := r.body.Read(b)
		r.stall.Reset(stallPatience)
		if n > 0 {
			r.offset += int64(n)
			r.hash.Write(b[:n])
			r.broken = 0
		}
		if r.offset > r.want.Size {
			return 0, fmt.Errorf("%w: blob %s has more than %d bytes", ErrDamagedImage, r.want.Digest, r.want.Size)
		}
		if errors.Is(err, io.EOF) && r.offset == r.want.Size {
			if got := "sha256:" + hex.EncodeToString(r.hash.Sum(nil)); got != r.want.Digest.String() {
				if r.resumed { // two halves of different things, perhaps: from the start again
					return 0, fmt.Errorf("%w: blob %s came in parts that do not fit together", ErrRegistryUnavailable, r.want.Digest)
				}
				return 0, fmt.Errorf("%w: what %s sent as blob %s has the digest %s", ErrDamagedImage, r.from.host, r.want.Digest, got)
			}
			return n, io.EOF
		}
		if err != nil {
			if r.ctx.Err() != nil {
				return 0, r.ctx.Err()
			}
			r.Close()
			r.body = nil
			r.broken++
			if r.broken > resumes {
				return 0, fmt.Errorf("%w: %w", ErrRegistryUnavailable, err)
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// again connects after a break, not at once.
func (r *blobReader) again() error {
	for {
		select {
		case <-time.After(250 * time.Millisecond << r.broken):
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
		err := r.connect()
		if err == nil || !errors.Is(err, ErrRegistryUnavailable) || r.broken >= resumes {
			return err
		}
		r.broken++
	}
}

func (r *blobReader) Close() error {
	if r.body == nil {
		return nil
	}
	r.stall.Stop()
	return r.body.Close()
}

// registryError gives an error of a pull its kind, unless it has one.
func registryError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, known := range []error{ErrImageNotFound, ErrUnauthorized, ErrRegistryUnavailable, ErrDiskFull, ErrUnsafeImage, ErrDamagedImage} {
		if errors.Is(err, known) {
			return err
		}
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	var te *transport.Error
	if errors.As(err, &te) {
		for _, d := range te.Errors {
			switch d.Code {
			case transport.ManifestUnknownErrorCode, transport.NameUnknownErrorCode, transport.BlobUnknownErrorCode:
				return fmt.Errorf("%w: %w", ErrImageNotFound, err)
			case transport.UnauthorizedErrorCode, transport.DeniedErrorCode:
				return fmt.Errorf("%w: %w", ErrUnauthorized, err)
			}
		}
		switch te.StatusCode {
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrImageNotFound, err)
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: %w", ErrUnauthorized, err)
		}
		return fmt.Errorf("%w: %w", ErrRegistryUnavailable, err)
	}
	var pe *os.PathError
	var se *os.SyscallError
	var ne net.Error
	if (errors.As(err, &pe) || errors.As(err, &se)) && !errors.As(err, &ne) {
		return err // the host's own
	}
	return fmt.Errorf("%w: %w", ErrRegistryUnavailable, err)
}

// mayBePlain says whether a registry may be spoken to without TLS.
func (s *store) mayBePlain(registry string) bool {
	if slices.Contains(s.cfg.InsecureRegistries, registry) {
		return true
	}
	host, _, err := net.SplitHostPort(registry)
	if err != nil {
		host = registry
	}
	if host == "localhost" || slices.Contains(s.cfg.InsecureRegistries, host) {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

// transports keeps connections for the time of one pull.
type transports struct {
	store *store
	mu    sync.Mutex
	made  []*http.Transport
}

func (t *transports) of(e *endpoint) (http.RoundTripper, error) {
	config, err := e.tls(t.store.cfg.RootCAs)
	if err != nil {
		return nil, err
	}
	dial := e.dialTimeout
	if dial == 0 {
		dial = 10 * time.Second
	}
	h := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dial, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		MaxIdleConnsPerHost:   parallelLayers,
	}
	t.mu.Lock()
	t.made = append(t.made, h)
	t.mu.Unlock()
	return route{e, t.store, h}, nil
}

// close lets the connections go: a pull is rare, they would stay.
func (t *transports) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range t.made {
		h.CloseIdleConnections()
	}
}

// route leads what is meant for a registry to one of its endpoints, and refuses
// plain HTTP to whoever must have TLS: the library would fall back to it for
// any private address.
type route struct {
	to    *endpoint
	store *store
	next  http.RoundTripper
}

func (r route) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == r.to.origin && r.to.base != nil {
		u := *req.URL
		u.Scheme, u.Host = r.to.base.Scheme, r.to.base.Host
		u.Path = r.to.path(req.URL.Path)
		u.RawPath = ""
		if r.to.mirror {
			q := u.Query()
			q.Set("ns", r.to.namespace)
			u.RawQuery = q.Encode()
		}
		req = req.Clone(req.Context())
		req.URL, req.Host = &u, u.Host
		for k, values := range r.to.header {
			req.Header[k] = values
		}
		res, err := r.next.RoundTrip(req)
		if err == nil && res.StatusCode == http.StatusUnauthorized {
			// A host that gives out its own tokens is sent for them as the registry
			// is: the library trusts that name, and so the way leads here again.
			for i, challenge := range res.Header["Www-Authenticate"] {
				own := `realm="` + r.to.base.Scheme + "://" + r.to.base.Host + "/"
				res.Header["Www-Authenticate"][i] = strings.Replace(challenge, own, `realm="https://`+r.to.origin+"/", 1)
			}
		}
		return res, err
	}
	plain := r.store.mayBePlain(req.URL.Host) || r.to.base != nil && r.to.base.Scheme == "http"
	if req.URL.Scheme != "https" && !plain {
		return nil, fmt.Errorf("registry %s does not speak TLS, and is not listed as insecure", req.URL.Host)
	}
	return r.next.RoundTrip(req)
}

// serverURL reads the address of a registry's host.
func serverURL(text string) (*url.URL, error) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err == nil && (u.Host == "" || u.Scheme != "https" && u.Scheme != "http") {
		err = errors.New("it is no address of a host")
	}
	return u, err
}
