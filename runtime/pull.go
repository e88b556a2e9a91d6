package runtime

import (
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// parallelLayers is how many layers of an image are fetched at once.
	parallelLayers = 3
	// layerAttempts is how often a layer is tried, if the network fails.
	layerAttempts = 3
	// stallPatience is how long a layer may bring nothing before it is given
	// up and tried again.
	stallPatience = time.Minute
)

// flight is a pull that several callers wait for.
type flight struct {
	done     chan struct{}
	cancel   context.CancelFunc
	waiting  int                      // guarded by store.mu
	progress map[int]func(d, t int64) // of each that waits; guarded by mu
	mu       sync.Mutex
	img      Image
	err      error
}

func (f *flight) report(done, total int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.progress {
		p(done, total)
	}
}

// Pull fetches an image. Identical pulls at the same time share one, which is
// given up when the last caller has. Errors match ErrInvalidImageName,
// ErrImageNotFound, ErrUnauthorized, ErrRegistryUnavailable, ErrDiskFull,
// ErrUnsafeImage or ErrDamagedImage.
func (e *Engine) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	img, err := e.images.pullShared(ctx, ref, o)
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return img, nil
}

func (s *store) pullShared(ctx context.Context, ref string, o PullOptions) (Image, error) {
	parsed, err := s.parse(ref)
	if err != nil {
		return Image{}, err
	}
	if o.Platform == nil {
		o.Platform = &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
	}
	if o.Auth == nil {
		o.Auth = authn.Anonymous
	}
	key, err := pullKey(parsed, o)
	if err != nil {
		return Image{}, err
	}
	s.mu.Lock()
	f := s.pulls[key]
	if f == nil {
		// It has a context of its own: the first caller may leave before the
		// others.
		fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{done: make(chan struct{}), cancel: cancel, progress: map[int]func(d, t int64){}}
		s.pulls[key] = f
		go func() {
			defer cancel()
			f.img, f.err = s.pull(fctx, parsed, o, f.report)
			s.mu.Lock()
			if s.pulls[key] == f {
				delete(s.pulls, key)
			}
			s.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiting++
	me := f.waiting
	s.mu.Unlock()
	if o.Progress != nil {
		f.mu.Lock()
		f.progress[me] = o.Progress
		f.mu.Unlock()
	}
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	delete(f.progress, me)
	f.mu.Unlock()
	s.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	if last && s.pulls[key] == f {
		delete(s.pulls, key) // whoever comes now starts anew
	}
	s.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
	return Image{}, ctx.Err()
}

// pullKey tells pulls apart that may have different outcomes.
func pullKey(ref name.Reference, o PullOptions) (string, error) {
	auth, err := o.Auth.Authorization()
	if err != nil {
		return "", fmt.Errorf("%w: credentials: %w", ErrUnauthorized, err)
	}
	secret, err := json.Marshal(auth)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(secret)
	return ref.Name() + " " + o.Platform.String() + " " + hex.EncodeToString(sum[:]), nil
}

// parse reads a reference as users write it.
func (s *store) parse(ref string) (name.Reference, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidImageName, err)
	}
	if !s.mayBePlain(parsed.Context().RegistryStr()) {
		return parsed, nil
	}
	if parsed, err = name.ParseReference(ref, name.Insecure); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidImageName, err)
	}
	return parsed, nil
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

// normalize is how a reference is called in the index: with registry,
// repository and tag or digest, in the words that users know.
func normalize(ref name.Reference) string {
	sep := ":"
	if _, ok := ref.(name.Digest); ok {
		sep = "@"
	}
	return repository(ref) + sep + ref.Identifier()
}

func repository(ref name.Reference) string {
	registry := ref.Context().RegistryStr()
	if registry == name.DefaultRegistry {
		registry = "docker.io"
	}
	return registry + "/" + ref.Context().RepositoryStr()
}

// plainGuard refuses plain HTTP to registries that must have TLS: the library
// would fall back to it for any private address.
type plainGuard struct {
	store *store
	next  http.RoundTripper
}

func (g plainGuard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.store.mayBePlain(r.URL.Host) {
		return nil, fmt.Errorf("registry %s does not speak TLS, and is not listed as insecure", r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

func (s *store) transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       &tls.Config{RootCAs: s.cfg.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		MaxIdleConnsPerHost:   parallelLayers,
	}
}

func (s *store) pull(ctx context.Context, ref name.Reference, o PullOptions, report func(done, total int64)) (Image, error) {
	t := s.transport()
	defer t.CloseIdleConnections() // a pull is rare; its connections would stay
	desc, err := remote.Get(ref,
		remote.WithContext(ctx),
		remote.WithAuth(o.Auth),
		remote.WithPlatform(*o.Platform),
		remote.WithTransport(plainGuard{s, t}),
		remote.WithUserAgent("conclave"),
		remote.WithRetryBackoff(remote.Backoff{Duration: 300 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: 3}),
	)
	if err != nil {
		return Image{}, registryError(ctx, err)
	}
	remoteImage, err := desc.Image()
	if err != nil {
		if desc.MediaType.IsIndex() && strings.Contains(err.Error(), "no child with platform") {
			return Image{}, fmt.Errorf("%w: it has no variant for %s", ErrImageNotFound, o.Platform)
		}
		return Image{}, registryError(ctx, err)
	}
	manifest, err := remoteImage.Manifest()
	if err != nil {
		return Image{}, registryError(ctx, err)
	}
	raw, err := remoteImage.RawConfigFile()
	if err != nil {
		return Image{}, registryError(ctx, err)
	}
	if got := digestOf(raw); got != manifest.Config.Digest.String() {
		return Image{}, fmt.Errorf("%w: its config has the digest %s, not %s", ErrDamagedImage, got, manifest.Config.Digest)
	}
	layers, err := remoteImage.Layers()
	if err != nil {
		return Image{}, registryError(ctx, err)
	}
	progress := &progress{report: report}
	for _, l := range manifest.Layers {
		progress.total += l.Size
	}
	sources := make([]layerSource, len(layers))
	for i, l := range layers {
		sources[i] = layerSource{size: manifest.Layers[i].Size, open: l.Compressed}
	}
	var names []string
	if _, ok := ref.(name.Tag); ok {
		names = []string{normalize(ref)}
	}
	return s.fetch(ctx, raw, sources, names, []string{repository(ref) + "@" + desc.Digest.String()}, progress)
}

// layerSource is where the bytes of a layer come from, compressed or not.
type layerSource struct {
	size int64
	open func() (io.ReadCloser, error)
}

// fetch brings the layers of a config that are missing, and adds the image.
func (s *store) fetch(ctx context.Context, raw []byte, sources []layerSource, names, digests []string, p *progress) (Image, error) {
	var c v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return Image{}, fmt.Errorf("%w: its config: %w", ErrDamagedImage, err)
	}
	if len(c.RootFS.DiffIDs) != len(sources) {
		return Image{}, fmt.Errorf("%w: its config names %d layers, its manifest %d", ErrDamagedImage, len(c.RootFS.DiffIDs), len(sources))
	}
	var diffIDs []string
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" {
			return Image{}, fmt.Errorf("%w: layer %s: only sha256 is known", ErrDamagedImage, d)
		}
		diffIDs = append(diffIDs, d.String())
	}
	release := s.hold(diffIDs)
	defer release()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for i, src := range sources {
		g.Go(func() error { return s.fetchLayer(gctx, diffIDs[i], src, p) })
	}
	if err := g.Wait(); err != nil {
		return Image{}, registryError(ctx, err)
	}
	img, err := s.add(raw, names, digests)
	if err != nil {
		return Image{}, registryError(ctx, err)
	}
	return img, nil
}

// fetchLayer brings one layer, trying again if the network fails.
func (s *store) fetchLayer(ctx context.Context, diffID string, src layerSource, p *progress) error {
	var err error
	for attempt := range layerAttempts {
		if attempt > 0 {
			select {
			case <-time.After(time.Duration(attempt) * 500 * time.Millisecond):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		count := &counter{progress: p}
		err = s.addLayer(ctx, diffID, func() (io.ReadCloser, error) {
			r, err := src.open()
			if err != nil {
				return nil, err
			}
			count.r = r
			count.stall = time.AfterFunc(stallPatience, func() { r.Close() })
			return decompress(count)
		})
		if err == nil {
			p.add(src.size - count.n) // all of it, if it was there already
			return nil
		}
		p.add(-count.n)
		if count.err != nil {
			// Whatever the tar's reader made of it, the bytes did not come.
			kind := ErrRegistryUnavailable
			if strings.Contains(count.err.Error(), "verifying sha256") { // the library's error has no exported type
				kind = ErrDamagedImage
			}
			err = fmt.Errorf("layer %s: %w: %w", diffID, kind, count.err)
		}
		if ctx.Err() != nil || !errors.Is(registryError(ctx, err), ErrRegistryUnavailable) {
			return err
		}
		s.log.Warn("a layer could not be fetched", "layer", diffID, "attempt", attempt+1, "error", err)
	}
	return err
}

// progress sums up what the layers have fetched.
type progress struct {
	mu          sync.Mutex
	done, total int64
	report      func(done, total int64)
}

func (p *progress) add(n int64) {
	if p == nil || p.report == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	p.report(p.done, p.total)
}

// counter counts what is read, and notices when nothing comes.
type counter struct {
	r        io.ReadCloser
	n        int64
	err      error // of a read, if it was not the end
	progress *progress
	stall    *time.Timer
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.stall.Reset(stallPatience)
	c.n += int64(n)
	c.progress.add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func (c *counter) Close() error {
	c.stall.Stop()
	return c.r.Close()
}

// decompress looks at the first bytes, because media types lie.
func decompress(r io.ReadCloser) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		r.Close()
		return nil, err
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("%w: %w", ErrDamagedImage, err)
		}
		return readCloser{z, func() error { return errors.Join(z.Close(), r.Close()) }}, nil
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("%w: %w", ErrDamagedImage, err)
		}
		return readCloser{z, func() error { z.Close(); return r.Close() }}, nil
	}
	return readCloser{br, r.Close}, nil
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }

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
