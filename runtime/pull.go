package runtime

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const (
	// parallelLayers is how many layers of an image are fetched at once.
	parallelLayers = 3
	// layerAttempts is how often a layer is tried, if the network fails.
	layerAttempts = 3
	// zstdWindow bounds the memory that a layer may ask for: --ultra and --long
	// want more than a small node has.
	zstdWindow = 32 << 20
	// defaultParallelPulls is how many images are pulled at once.
	defaultParallelPulls = 3
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
	key := fmt.Sprintf("%s %s %v", ref.Name(), o.Platform, o.Fresh)
	if o.Credentials == nil {
		return key, nil
	}
	credentials, err := o.Credentials(ref.Context().RegistryStr() + "/" + ref.Context().RepositoryStr())
	if err != nil {
		return "", fmt.Errorf("%w: credentials: %w", ErrUnauthorized, err)
	}
	for _, c := range credentials {
		key += " " + c.key()
	}
	return key, nil
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

func (s *store) pull(ctx context.Context, ref name.Reference, o PullOptions, report func(done, total int64)) (Image, error) {
	select { // so many images at once: the disk is slow, and memory is short
	case s.pulling <- struct{}{}:
		defer func() { <-s.pulling }()
	case <-ctx.Done():
		return Image{}, ctx.Err()
	}
	if _, exact := ref.(name.Digest); exact {
		// Its bytes are its name: whoever has them will do.
		if found := s.askPeers(ctx, ref, o); found != nil {
			if img, err := s.fetchFound(ctx, ref, found, report); err == nil || ctx.Err() != nil {
				return img, err
			}
		}
	}
	t := &transports{store: s}
	defer t.close()
	r, err := s.resolve(ctx, ref, o, t)
	if err != nil {
		if errors.Is(err, ErrRegistryUnavailable) && !o.Fresh {
			if found := s.askPeers(ctx, ref, o); found != nil {
				s.log.Info("the registry is away: another node has the image", "image", ref.Name(), "error", err)
				return s.fetchFound(ctx, ref, found, report)
			}
		}
		return Image{}, err
	}
	progress := &progress{report: report}
	sources := make([]layerSource, len(r.manifest.Layers))
	for i, l := range r.manifest.Layers {
		progress.total += l.Size
		sources[i].size = l.Size
		for _, at := range r.blobs {
			sources[i].open = append(sources[i].open, func(ctx context.Context) (io.ReadCloser, error) {
				b, err := at()
				if err != nil {
					return nil, err
				}
				return b.open(ctx, l)
			})
		}
	}
	return s.fetch(ctx, arrival{
		config: r.config, names: namesOf(ref), digests: []string{repository(ref) + "@" + r.digest}, docs: r.docs, rights: []right{r.right},
	}, sources, progress)
}

// namesOf are the names in the index that an image gets by being pulled.
func namesOf(ref name.Reference) []string {
	if _, ok := ref.(name.Tag); ok {
		return []string{normalize(ref)}
	}
	return nil
}

// arrival is an image that comes into the store.
type arrival struct {
	config         []byte
	names, digests []string
	docs           map[string][]byte // what its digests name, by digest
	rights         []right           // none: it was put here by hand, and is for everybody
}

// layerSource is where the bytes of a layer come from, compressed or not: the
// first of open that brings them.
type layerSource struct {
	size int64
	open []func(context.Context) (io.ReadCloser, error)
}

// fetch brings the layers of an image that are missing, and adds the image.
func (s *store) fetch(ctx context.Context, a arrival, sources []layerSource, p *progress) (Image, error) {
	diffIDs, err := layersOf(a.config)
	if err != nil {
		return Image{}, err
	}
	if len(diffIDs) != len(sources) {
		return Image{}, fmt.Errorf("%w: its config names %d layers, its manifest %d", ErrDamagedImage, len(diffIDs), len(sources))
	}
	release := s.hold(diffIDs)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(parallelLayers)
	for _, i := range s.ownFirst(diffIDs) {
		g.Go(func() error { return s.fetchLayer(gctx, diffIDs[i], sources[i], p) })
	}
	var img Image
	if err = g.Wait(); err == nil {
		img, err = s.add(a)
	}
	release()
	err = registryErrorOrNil(ctx, err)
	if errors.Is(err, ErrDiskFull) {
		// The layers that did come keep others from using the disk.
		if rest := s.collect(); rest != nil {
			s.log.Error("a full disk cannot be cleaned up", "error", rest)
		}
	}
	return img, err
}

func registryErrorOrNil(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return registryError(ctx, err)
}

// layersOf are the diff IDs that a config names.
func layersOf(config []byte) ([]string, error) {
	var c v1.ConfigFile
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("%w: its config: %w", ErrDamagedImage, err)
	}
	var diffIDs []string
	for _, d := range c.RootFS.DiffIDs {
		if d.Algorithm != "sha256" {
			return nil, fmt.Errorf("%w: layer %s: only sha256 is known", ErrDamagedImage, d)
		}
		diffIDs = append(diffIDs, d.String())
	}
	return diffIDs, nil
}

// fetchLayer brings one layer: from another node, or else from where its image
// comes from.
func (s *store) fetchLayer(ctx context.Context, diffID string, src layerSource, p *progress) error {
	if s.present(diffID) {
		p.add(src.size)
		return nil
	}
	if len(src.open) == 0 || src.size >= peerMin {
		for _, peer := range s.holders(diffID, src.size) {
			err := s.fetchFrom(ctx, diffID, src.size, peer, p)
			if err == nil || ctx.Err() != nil || errors.Is(registryError(ctx, err), ErrDiskFull) {
				return err
			}
			s.log.Debug("another node could not give a layer", "layer", diffID, "error", err)
		}
	}
	s.making(diffID, 1)
	defer s.making(diffID, -1)
	err := fmt.Errorf("%w: no node that has layer %s answers", ErrRegistryUnavailable, diffID)
	for _, open := range src.open {
		for attempt := range layerAttempts {
			if err = s.fetchFrom(ctx, diffID, src.size, open, p); err == nil || ctx.Err() != nil {
				return err
			}
			if !errors.Is(registryError(ctx, err), ErrRegistryUnavailable) {
				break
			}
			s.log.Warn("a layer could not be fetched", "layer", diffID, "attempt", attempt+1, "error", err)
		}
		if kind := registryError(ctx, err); errors.Is(kind, ErrDiskFull) || errors.Is(kind, ErrUnsafeImage) {
			break
		}
	}
	return err
}

// fetchFrom brings a layer from one place.
func (s *store) fetchFrom(ctx context.Context, diffID string, size int64, open func(context.Context) (io.ReadCloser, error), p *progress) error {
	count := &counter{progress: p, limit: size}
	err := s.addLayer(ctx, diffID, func() (io.ReadCloser, error) {
		r, err := open(ctx)
		if err != nil {
			return nil, err
		}
		count.r = r
		return decompress(count)
	})
	if err == nil {
		p.add(size - count.n) // all of it, if it was there already
		return nil
	}
	p.add(-count.n)
	if count.err != nil {
		// Whatever the tar's reader made of it, the bytes did not come.
		err = fmt.Errorf("layer %s: %w", diffID, registryError(ctx, count.err))
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

// counter counts what is read, up to a limit: what comes from other nodes is
// not compressed.
type counter struct {
	r        io.ReadCloser
	n, limit int64
	err      error // of a read, if it was not the end
	progress *progress
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	add := min(int64(n), c.limit-c.n)
	c.n += add
	c.progress.add(add)
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}

func (c *counter) Close() error { return c.r.Close() }

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
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
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
