package runtime

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// newStore opens a store in a folder of the test. Layers hold whiteouts and
// owners: that needs root.
func newStore(t *testing.T, root string) *store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	s, err := openStore(Config{Root: root, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func storeEngine(s *store) *Engine {
	return &Engine{images: s, pods: map[string]*pod{}}
}

// registryServer is a registry that a test can make misbehave.
type registryServer struct {
	host string
	// before may answer a request itself, by returning true.
	before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	blobs  atomic.Int64 // GETs of blobs
}

func newRegistry(t *testing.T) *registryServer {
	t.Helper()
	r := &registryServer{}
	real := registry.New(registry.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		if f := r.before.Load(); f != nil && (*f)(w, req) {
			return
		}
		real.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *registryServer) do(f func(http.ResponseWriter, *http.Request) bool) { r.before.Store(&f) }

func (r *registryServer) push(t *testing.T, ref string, what any) v1.Hash {
	t.Helper()
	parsed, err := name.ParseReference(r.host+"/"+ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	var h v1.Hash
	switch w := what.(type) {
	case v1.Image:
		if err = remote.Write(parsed, w); err == nil {
			h, err = w.Digest()
		}
	case v1.ImageIndex:
		if err = remote.WriteIndex(parsed, w); err == nil {
			h, err = w.Digest()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func testImage(t *testing.T, mark string) v1.Image {
	t.Helper()
	img, err := makeImage(v1.Config{Env: []string{"MARK=" + mark}, User: "web", StopSignal: "SIGQUIT", Volumes: map[string]struct{}{"/b": {}, "/a": {}}},
		[]file{{name: "base", mode: 0o644, data: []byte("the same in all")}},
		[]file{{name: "mark", mode: 0o640, data: []byte(mark)}, {name: "big", mode: 0o600, data: bytes.Repeat([]byte(mark), 100_000)}})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestPull(t *testing.T) {
	r := newRegistry(t)
	e := storeEngine(newStore(t, t.TempDir()))
	img := testImage(t, "one")
	digest := r.push(t, "team/app:1", img)
	var done, total int64
	got, err := e.Pull(t.Context(), r.host+"/team/app:1", PullOptions{Progress: func(d, n int64) { done, total = d, n }})
	if err != nil {
		t.Fatal(err)
	}
	if done != total || total == 0 {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	id, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != id.String() || !slices.Equal(got.Names, []string{r.host + "/team/app:1"}) ||
		!slices.Equal(got.Digests, []string{r.host + "/team/app@" + digest.String()}) ||
		got.User != "web" || got.StopSignal != "SIGQUIT" || !slices.Equal(got.Env, []string{"MARK=one"}) ||
		!slices.Equal(got.Volumes, []string{"/a", "/b"}) || got.Size < 300_000 || got.Architecture != runtime.GOARCH {
		t.Errorf("image %+v", got)
	}
	for _, ref := range []string{got.ID, strings.TrimPrefix(got.ID, "sha256:"), got.Names[0], got.Digests[0]} {
		if i, ok := e.Image(ref); !ok || i.ID != got.ID {
			t.Errorf("by %s: %+v %v", ref, i, ok)
		}
	}
	// Layers on disk hold what they should, topmost first.
	_, layers, err := e.images.use(got.ID, func(Image) {})
	if err != nil || len(layers) != 2 {
		t.Fatalf("layers %v %v", layers, err)
	}
	if data, err := os.ReadFile(filepath.Join(e.images.layersDir(), layers[0], "mark")); string(data) != "one" {
		t.Errorf("mark %q %v", data, err)
	}

	// Pulled again nothing is fetched but names; a shared layer is fetched once.
	before := r.blobs.Load()
	if _, err := e.Pull(t.Context(), r.host+"/team/app:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := r.blobs.Load() - before; n != 1 { // the config
		t.Errorf("%d blobs fetched again", n)
	}
	r.push(t, "team/app:1", testImage(t, "two"))
	before = r.blobs.Load()
	next, err := e.Pull(t.Context(), r.host+"/team/app:1", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n := r.blobs.Load() - before; n != 2 {
		t.Errorf("%d blobs fetched for one new layer", n)
	}
	if old, _ := e.Image(got.ID); next.ID == got.ID || len(old.Names) != 0 || len(old.Digests) != 1 {
		t.Errorf("the name did not move: %+v", old)
	}
	byDigest, err := e.Pull(t.Context(), got.Digests[0], PullOptions{})
	if err != nil || byDigest.ID != got.ID || len(byDigest.Names) != 0 {
		t.Errorf("by digest: %+v %v", byDigest, err)
	}

	// A new process finds the same.
	again := newStore(t, filepath.Dir(e.images.dir))
	if a, b := fmt.Sprint(again.list()), fmt.Sprint(e.Images()); a != b {
		t.Errorf("opened again:\n%s\n%s", a, b)
	}

	// Removed, the layer of its own goes and the shared one stays.
	if err := e.RemoveImage(t.Context(), got.ID); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(e.images.layersDir(), "*.json"))
	if err != nil || len(left) != 2 {
		t.Errorf("layers %v %v", left, err)
	}
	if err := e.RemoveImage(t.Context(), next.Names[0]); err != nil {
		t.Fatal(err)
	}
	if err := e.RemoveImage(t.Context(), next.Names[0]); !errors.Is(err, ErrImageNotFound) {
		t.Errorf("removed again: %v", err)
	}
	if left, err := os.ReadDir(e.images.layersDir()); err != nil || len(left) != 1 {
		t.Errorf("left %v %v", left, err)
	}
}

func TestPullErrors(t *testing.T) {
	r := newRegistry(t)
	root := t.TempDir()
	e := storeEngine(newStore(t, root))
	r.push(t, "app:1", testImage(t, "x"))
	arm, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{Architecture: "s390x", OS: "linux"})
	if err != nil {
		t.Fatal(err)
	}
	r.push(t, "foreign:1", v1.ImageIndex(mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}})))
	climbing, err := makeImage(v1.Config{}, []file{{name: "../../climbed", mode: 0o644, data: []byte("out")}})
	if err != nil {
		t.Fatal(err)
	}
	r.push(t, "climbing:1", climbing)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.Addr().String()
	closed.Close()
	status := func(code int) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(code); return true }
	}
	blob := func(f func(http.ResponseWriter)) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") || r.Method != http.MethodGet {
				return false
			}
			f(w)
			return true
		}
	}
	for _, c := range []struct {
		name, ref string
		server    func(http.ResponseWriter, *http.Request) bool
		want      error
		says      string
	}{
		{"bad name", "UPPER/case:1", nil, ErrInvalidImageName, "UPPER"},
		{"no such tag", r.host + "/app:2", nil, ErrImageNotFound, "/app:2"},
		{"no such repository", r.host + "/none:1", nil, ErrImageNotFound, "/none:1"},
		{"no such platform", r.host + "/foreign:1", nil, ErrImageNotFound, "no variant for linux/" + runtime.GOARCH},
		{"nobody listens", nobody + "/app:1", nil, ErrRegistryUnavailable, "connection refused"},
		{"registry fails", r.host + "/app:1", status(http.StatusInternalServerError), ErrRegistryUnavailable, "500"},
		{"registry refuses", r.host + "/app:1", status(http.StatusForbidden), ErrUnauthorized, "403"},
		{"wrong bytes", r.host + "/app:1", blob(func(w http.ResponseWriter) { fmt.Fprint(w, "nonsense") }), nil, "sha256"},
		{"climbs out", r.host + "/climbing:1", nil, ErrUnsafeImage, `entry "../../climbed"`},
		{"no TLS", "10.255.255.1.nip.invalid:5000/app:1", nil, ErrRegistryUnavailable, "10.255.255.1.nip.invalid"},
	} {
		r.before.Store(nil)
		if c.server != nil {
			r.do(c.server)
		}
		_, err := e.Pull(t.Context(), c.ref, PullOptions{})
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r.before.Store(nil)
	if len(e.Images()) > 0 {
		t.Errorf("images %v", e.Images())
	}
	if left, err := os.ReadDir(e.images.tmpDir()); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(root, "climbed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a layer wrote outside its root: %v", err)
	}
}

// TestPullBreaks breaks the connection in the middle of each layer, twice.
func TestPullBreaks(t *testing.T) {
	r := newRegistry(t)
	e := storeEngine(newStore(t, t.TempDir()))
	img := testImage(t, "x")
	r.push(t, "app:1", img)
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	broken := map[string]int{}
	r.do(func(w http.ResponseWriter, req *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(req.URL.Path, "/blobs/") || req.Method != http.MethodGet || strings.HasSuffix(req.URL.Path, config.String()) {
			return false
		}
		if broken[req.URL.Path]++; broken[req.URL.Path] > 2 {
			return false
		}
		w.Header().Set("Content-Length", "100000")
		if _, err := w.Write([]byte("\x1f\x8b\x08\x00")); err != nil {
			t.Error(err)
		}
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		panic(http.ErrAbortHandler)
	})
	var done, total int64
	if _, err := e.Pull(t.Context(), r.host+"/app:1", PullOptions{Progress: func(d, n int64) { done, total = d, n }}); err != nil {
		t.Error(err)
	}
	if done != total || total == 0 {
		t.Errorf("progress ended at %d of %d", done, total)
	}
}

func TestPlainHTTP(t *testing.T) {
	s := &store{cfg: Config{InsecureRegistries: []string{"registry.lan:5000", "old.lan"}}}
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.8.9.1": true, "[::1]:5000": true,
		"registry.lan:5000": true, "registry.lan": false, "old.lan:80": true,
		"192.168.1.2:5000": false, "10.0.0.1": false, "index.docker.io": false, "localhost.evil.org": false,
	} {
		if got := s.mayBePlain(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	called := false
	g := route{&endpoint{}, s, roundTripper(func(*http.Request) (*http.Response, error) { called = true; return nil, io.EOF })}
	req := httptest.NewRequest(http.MethodGet, "http://192.168.1.2:5000/v2/", nil)
	if _, err := g.RoundTrip(req); err == nil || called || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("plain to a private address: %v, called %v", err, called)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestPullAuth(t *testing.T) {
	r := newRegistry(t)
	e := storeEngine(newStore(t, t.TempDir()))
	r.push(t, "secret:1", testImage(t, "s"))
	r.do(func(w http.ResponseWriter, req *http.Request) bool {
		if user, pass, _ := req.BasicAuth(); user == "me" && pass == "pw" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := e.Pull(t.Context(), r.host+"/secret:1", PullOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("anonymous: %v", err)
	}
	if _, err := e.Pull(t.Context(), r.host+"/secret:1", PullOptions{Credentials: func(string) ([]Credential, error) {
		return []Credential{{Username: "me", Password: "old"}, {Username: "me", Password: "pw"}}, nil
	}}); err != nil {
		t.Errorf("with credentials: %v", err)
	}
}

func TestPullIndex(t *testing.T) {
	r := newRegistry(t)
	e := storeEngine(newStore(t, t.TempDir()))
	var adds []mutate.IndexAddendum
	for _, arch := range []string{"amd64", "arm64"} {
		img := testImage(t, arch)
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	digest := r.push(t, "multi:1", v1.ImageIndex(mutate.AppendManifests(empty.Index, adds...)))
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := e.Pull(t.Context(), r.host+"/multi:1", PullOptions{Platform: &v1.Platform{OS: "linux", Architecture: arch}})
		if err != nil || !slices.Equal(img.Env, []string{"MARK=" + arch}) || !slices.Equal(img.Digests, []string{r.host + "/multi@" + digest.String()}) {
			t.Errorf("%s: %+v %v", arch, img, err)
		}
	}
}

// TestPullTogether pulls the same from many sides at once, and lets the first
// caller leave.
func TestPullTogether(t *testing.T) {
	r := newRegistry(t)
	e := storeEngine(newStore(t, t.TempDir()))
	r.push(t, "app:1", testImage(t, "x"))
	gate, waiting := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.do(func(http.ResponseWriter, *http.Request) bool {
		once.Do(func() { close(waiting) })
		<-gate
		return false
	})
	first, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := e.Pull(first, r.host+"/app:1", PullOptions{})
		left <- err
	}()
	<-waiting
	var wg sync.WaitGroup
	var joined sync.WaitGroup
	for range 5 {
		joined.Add(1)
		wg.Go(func() {
			joined.Done()
			if _, err := e.Pull(t.Context(), r.host+"/app:1", PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	joined.Wait()
	for e.images.waitingFor(r.host+"/app:1") < 6 { // they are on their way
		runtime.Gosched()
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the one who left: %v", err)
	}
	close(gate)
	wg.Wait()
	if n := r.blobs.Load(); n != 3 {
		t.Errorf("%d blobs were fetched, not the 3 that there are", n)
	}
}

// waitingFor counts who waits for a pull.
func (s *store) waitingFor(ref string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, f := range s.pulls {
		if strings.HasPrefix(key, ref+" ") {
			n += f.waiting
		}
	}
	return n
}

func TestImport(t *testing.T) {
	e := storeEngine(newStore(t, t.TempDir()))
	img := testImage(t, "x")
	archive := dockerArchive(t, "busybox:1.36", img).Bytes()
	var squeezed bytes.Buffer
	z := gzip.NewWriter(&squeezed)
	if _, err := z.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{archive, squeezed.Bytes()} {
		got, err := e.Import(t.Context(), bytes.NewReader(data))
		if err != nil || len(got) != 1 || !slices.Equal(got[0].Names, []string{"docker.io/library/busybox:1.36"}) {
			t.Fatalf("%+v %v", got, err)
		}
	}
	for _, ref := range []string{"busybox:1.36", "library/busybox:1.36", "docker.io/busybox:1.36", "index.docker.io/library/busybox:1.36"} {
		if _, ok := e.Image(ref); !ok {
			t.Errorf("not found as %s", ref)
		}
	}

	// An OCI layout with an index of variants, one layer of them in zstd.
	dir := t.TempDir()
	data, err := layerTar([]file{{name: "z", mode: 0o644, data: []byte("zstandard")}})
	if err != nil {
		t.Fatal(err)
	}
	own, err := mutate.AppendLayers(testImage(t, "own"), zstdLayer{data})
	if err != nil {
		t.Fatal(err)
	}
	index := v1.ImageIndex(mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: testImage(t, "other"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
		mutate.IndexAddendum{Add: own, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}}))
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "example.org/oci:1"})); err != nil {
		t.Fatal(err)
	}
	got, err := e.Import(t.Context(), folderTar(t, dir))
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Env, []string{"MARK=own"}) || !slices.Equal(got[0].Names, []string{"example.org/oci:1"}) || len(got[0].Digests) != 1 {
		t.Fatalf("%+v %v", got, err)
	}
	_, layers, err := e.images.use("example.org/oci:1", func(Image) {})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(e.images.layersDir(), layers[0], "z")); string(data) != "zstandard" {
		t.Errorf("%q %v", data, err)
	}

	for what, data := range map[string][]byte{"neither": {}, "nonsense": bytes.Repeat([]byte("x"), 2048), "cut": archive[:len(archive)/2]} {
		if _, err := e.Import(t.Context(), bytes.NewReader(data)); !errors.Is(err, ErrDamagedImage) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// zstdLayer is a layer that is compressed with zstd.
type zstdLayer struct{ tar []byte }

func (l zstdLayer) packed() []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(l.tar, nil)
}
func (l zstdLayer) Digest() (v1.Hash, error) { return v1.NewHash(digestOf(l.packed())) }
func (l zstdLayer) DiffID() (v1.Hash, error) { return v1.NewHash(digestOf(l.tar)) }
func (l zstdLayer) Size() (int64, error)     { return int64(len(l.packed())), nil }
func (l zstdLayer) MediaType() (types.MediaType, error) {
	return types.OCILayerZStd, nil
}
func (l zstdLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed())), nil
}
func (l zstdLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.tar)), nil
}

func folderTar(t *testing.T, dir string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestDamage breaks each part of the store; the image must be missing or its
// pull must repair it.
func TestDamage(t *testing.T) {
	r := newRegistry(t)
	img := testImage(t, "x")
	r.push(t, "app:1", img)
	for what, damage := range map[string]func(s *store, layer string) error{
		"index cut":             func(s *store, _ string) error { return os.Truncate(filepath.Join(s.dir, "index.json"), 20) },
		"config changed":        func(s *store, _ string) error { return os.WriteFile(s.blobPath(s.list()[0].ID), []byte("{}"), 0o600) },
		"layer removed":         func(s *store, l string) error { return os.RemoveAll(filepath.Join(s.layersDir(), l)) },
		"layer's note removed":  func(s *store, l string) error { return os.Remove(filepath.Join(s.layersDir(), l+".json")) },
		"layer's note cut":      func(s *store, l string) error { return os.Truncate(filepath.Join(s.layersDir(), l+".json"), 3) },
		"file in layer removed": func(s *store, l string) error { return os.Remove(filepath.Join(s.layersDir(), l, "mark")) },
		"file in layer cut":     func(s *store, l string) error { return os.Truncate(filepath.Join(s.layersDir(), l, "big"), 7) },
	} {
		t.Run(what, func(t *testing.T) {
			root := t.TempDir()
			s := newStore(t, root)
			if _, err := storeEngine(s).Pull(t.Context(), r.host+"/app:1", PullOptions{}); err != nil {
				t.Fatal(err)
			}
			_, layers, err := s.use(r.host+"/app:1", func(Image) {})
			if err != nil {
				t.Fatal(err)
			}
			if err := damage(s, layers[0]); err != nil {
				t.Fatal(err)
			}
			e := storeEngine(newStore(t, root))
			if _, err := e.Pull(t.Context(), r.host+"/app:1", PullOptions{}); err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(filepath.Join(e.images.layersDir(), layers[0], "big")); len(data) != 100_000 {
				t.Errorf("after the repair: %d bytes, %v", len(data), err)
			}
			if len(e.Images()) != 1 {
				t.Errorf("images %+v", e.Images())
			}
		})
	}
}

// TestResume: a pull that was cut short leaves the layers it had finished.
func TestResume(t *testing.T) {
	r := newRegistry(t)
	root := t.TempDir()
	s := newStore(t, root)
	img := testImage(t, "x")
	r.push(t, "app:1", img)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	diff, err := layers[0].DiffID()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.addLayer(t.Context(), diff.String(), layers[0].Uncompressed); err != nil {
		t.Fatal(err)
	}
	// What was being made when the process died.
	if err := os.MkdirAll(filepath.Join(s.tmpDir(), "layer-1", "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	e := storeEngine(newStore(t, root))
	if _, err := e.Pull(t.Context(), r.host+"/app:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := r.blobs.Load(); n != 2 { // config and the second layer
		t.Errorf("%d blobs were fetched", n)
	}
	if left, err := os.ReadDir(e.images.tmpDir()); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v %v", left, err)
	}
}

// TestPowerLoss: what an unfinished pull left is not trusted after a boot, what
// a finished one left is.
func TestPowerLoss(t *testing.T) {
	r := newRegistry(t)
	root := t.TempDir()
	s := newStore(t, root)
	s.boot = "an earlier one"
	done, cut := testImage(t, "done"), testImage(t, "cut")
	r.push(t, "done:1", done)
	r.push(t, "cut:1", cut)
	if _, err := storeEngine(s).Pull(t.Context(), r.host+"/done:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	layers, err := cut.Layers()
	if err != nil {
		t.Fatal(err)
	}
	diff, err := layers[1].DiffID()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.addLayer(t.Context(), diff.String(), layers[1].Uncompressed); err != nil {
		t.Fatal(err)
	}
	e := storeEngine(newStore(t, root))
	for ref, want := range map[string]int64{"/done:1": 1, "/cut:1": 2} { // configs, and the one layer
		before := r.blobs.Load()
		if _, err := e.Pull(t.Context(), r.host+ref, PullOptions{}); err != nil {
			t.Fatal(err)
		}
		if n := r.blobs.Load() - before; n != want {
			t.Errorf("%s: %d blobs were fetched, not %d", ref, n, want)
		}
	}
	// Nothing is written when nothing is new.
	index := filepath.Join(e.images.dir, "index.json")
	was, err := os.Stat(index)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Pull(t.Context(), r.host+"/done:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if is, err := os.Stat(index); err != nil || !os.SameFile(was, is) {
		t.Errorf("the index was written again (%v)", err)
	}
}

func TestImageInUse(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.output(p, "a_0", ContainerConfig{})
	if err := h.engine.RemoveImage(t.Context(), guestName); !errors.Is(err, ErrImageInUse) || !strings.Contains(err.Error(), "a_0") {
		t.Errorf("in use: %v", err)
	}
	h.restart()
	if err := h.engine.RemoveImage(t.Context(), guestName); !errors.Is(err, ErrImageInUse) {
		t.Errorf("in use, after a restart: %v", err)
	}
	if err := h.engine.RemoveContainer(t.Context(), p, "a_0"); err != nil {
		t.Fatal(err)
	}
	if err := h.engine.RemoveImage(t.Context(), guestName); err != nil {
		t.Error(err)
	}
}

// TestManyLayers runs a container whose layers' full names would not fit the
// kernel's page of mount options, with whiteouts on the way.
func TestManyLayers(t *testing.T) {
	h := newHost(t)
	guest, err := os.ReadFile(guestBinary)
	if err != nil {
		t.Fatal(err)
	}
	layers := [][]file{{
		{name: "bin/guest", mode: 0o755, data: guest},
		{name: "d/hidden", mode: 0o644, data: []byte("1")},
		{name: "opaque/old", mode: 0o644, data: []byte("1")},
		{name: "d/kept", mode: 0o644, data: []byte("1")},
	}}
	for i := range 100 {
		layers = append(layers, []file{{name: fmt.Sprintf("n/f%03d", i), mode: 0o644, data: []byte("x")}})
	}
	layers = append(layers, []file{
		{name: "d/.wh.hidden", mode: 0o644},
		{name: "opaque/.wh..wh..opq", mode: 0o644},
		{name: "opaque/new", mode: 0o644, data: []byte("2")},
	}, []file{{name: "n/f000", mode: 0o644, data: []byte("x")}}) // the same layer twice
	img, err := makeImage(v1.Config{Entrypoint: []string{"/bin/guest"}}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	h.importImage("example.org/many:1", img)
	p := h.pod(PodConfig{})
	for i, c := range []struct{ dir, want string }{{"/d", "kept\n"}, {"/opaque", "new\n"}} {
		if out, _ := h.output(p, fmt.Sprintf("c_%d", i), ContainerConfig{Image: "example.org/many:1", Args: []string{"ls", c.dir}}); out != c.want {
			t.Errorf("%s: %q", c.dir, out)
		}
	}
	out, _ := h.output(p, "n_0", ContainerConfig{Image: "example.org/many:1", Args: []string{"ls", "/n"}})
	if n := strings.Count(out, "\n"); n != 100 {
		t.Errorf("%d files from 100 layers", n)
	}
}

// TestDiskFull unpacks into a filesystem that is too small.
func TestDiskFull(t *testing.T) {
	r := newRegistry(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small filesystem")
	}
	r.push(t, "app:1", testImage(t, "long mark"))
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=200k"); err != nil {
		t.Skipf("cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	e := storeEngine(newStore(t, root))
	if _, err := e.Pull(t.Context(), r.host+"/app:1", PullOptions{}); !errors.Is(err, ErrDiskFull) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(e.images.tmpDir()); err != nil || len(left) > 0 {
		t.Errorf("left in tmp: %v %v", left, err)
	}
}
