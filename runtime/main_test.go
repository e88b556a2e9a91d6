package runtime

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"conclave/runtime/internal/cg"
)

// Programs that the tests need, built once by the first that needs them. An
// empty path says that it could not be, and why.
var (
	podBinary, guestBinary string
	buildProblem           string
	build                  sync.Once
	buildDir               string
)

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		os.Exit(helper())
	}
	dir, err := os.MkdirTemp("", "conclave-runtime-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	buildDir = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildPrograms(dir string) {
	// Looked at, so that a cached result of these tests is not taken for good
	// when only the programs have changed.
	for _, pattern := range []string{"pod/*.go", "internal/*/*.go", "testdata/guest/*.go"} {
		sources, err := filepath.Glob(pattern)
		for _, s := range sources {
			if _, err = os.Stat(s); err != nil {
				break
			}
		}
		if err != nil || len(sources) == 0 {
			buildProblem = fmt.Sprintf("cannot look at %s: %v", pattern, err)
			return
		}
	}
	compile := func(cgo, tags, ldflags, out, pkg string) string {
		path := filepath.Join(dir, out)
		cmd := exec.Command("go", "build", "-tags", tags, "-trimpath", "-ldflags", ldflags, "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if said, err := cmd.CombinedOutput(); err != nil {
			buildProblem = fmt.Sprintf("cannot build %s: %v: %s", pkg, err, said)
			return ""
		}
		return path
	}
	guestBinary = compile("0", "", "-s -w", "guest", "./testdata/guest")
	podBinary = compile("1", "seccomp netgo osusergo", "-s -w -extldflags -static", "conclave-pod", "./pod")
}

// testHost is a data folder, and an engine on it at a time.
type testHost struct {
	t      *testing.T
	cfg    Config
	engine *Engine
	end    func()
}

// needHost skips what this machine cannot do, with the reason.
func needHost(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	build.Do(func() { buildPrograms(buildDir) })
	if podBinary == "" || guestBinary == "" {
		t.Skip(buildProblem)
	}
	if err := probe(Config{Root: t.TempDir()}.mustDefaults(t)); err != nil {
		t.Skipf("this host cannot run containers: %v", err)
	}
}

func (c Config) mustDefaults(t testing.TB) Config {
	t.Helper()
	c, err := c.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.containersDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

// newHost makes a data folder with the image "guest" in it and starts an
// engine. Everything is gone at the end of the test, or the test fails.
func newHost(t *testing.T) *testHost {
	t.Helper()
	needHost(t)
	h := &testHost{t: t, cfg: Config{
		Root:         t.TempDir(),
		CgroupParent: fmt.Sprintf("conclave-test-%d-%d", os.Getpid(), time.Now().UnixNano()),
		PodBinary:    podBinary,
		Log:          slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}}
	t.Cleanup(h.close)
	h.start()
	h.importGuest()
	return h
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// start starts an engine on the folder.
func (h *testHost) start() {
	h.t.Helper()
	e, err := New(h.cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	h.engine = e
	h.end = func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
		h.engine, h.end = nil, nil
	}
}

// restart ends the engine and starts another: pods run on.
func (h *testHost) restart() {
	h.t.Helper()
	h.end()
	h.start()
}

func (h *testHost) close() {
	if h.end != nil {
		h.end()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := Purge(ctx, h.cfg); err != nil {
		h.t.Error(err)
	}
	h.noLeaks()
}

// noLeaks fails the test if a cgroup, mount or process of the host is left.
func (h *testHost) noLeaks() {
	h.t.Helper()
	dirs, err := cg.Hierarchies()
	if err != nil {
		h.t.Error(err)
	}
	for _, d := range dirs {
		if _, err := os.Stat(filepath.Join(d, h.cfg.CgroupParent)); !errors.Is(err, os.ErrNotExist) {
			h.t.Errorf("cgroup %s is left in %s (%v)", h.cfg.CgroupParent, d, err)
		}
	}
	for _, m := range mountsBelow(h.t, h.cfg.Root) {
		h.t.Errorf("mount %s is left", m)
	}
}

func mountsBelow(t testing.TB, root string) (out []string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], root+"/") {
			out = append(out, f[4])
		}
	}
	return out
}

const guestName = "example.org/guest:1"

var guestImage = sync.OnceValues(func() (v1.Image, error) {
	data, err := os.ReadFile(guestBinary)
	if err != nil {
		return nil, err
	}
	return makeImage(v1.Config{
		Env:        []string{"FROM_IMAGE=yes", "SHARED=image"},
		Entrypoint: []string{"/bin/guest"},
		Cmd:        []string{"echo", "from", "the", "image"},
		WorkingDir: "/work",
	}, []file{
		{name: "bin/guest", mode: 0o755, data: data},
		{name: "tmp/", mode: 0o1777},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0::/root:/bin/sh\nweb:x:101:102::/home/web:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\nweb:x:102:\nextra:x:103:web\n")},
	})
})

// file is an entry of a layer made by a test.
type file struct {
	name string
	mode int64
	data []byte
	head tar.Header // fields beyond those
}

func layerTar(files []file) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.head
		h.Name, h.Mode, h.Size = f.name, f.mode, int64(len(f.data))
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(f.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

func makeImage(config v1.Config, layers ...[]file) (v1.Image, error) {
	var made []v1.Layer
	for _, files := range layers {
		data, err := layerTar(files)
		if err != nil {
			return nil, err
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		if err != nil {
			return nil, err
		}
		made = append(made, l)
	}
	img, err := mutate.AppendLayers(empty.Image, made...)
	if err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.Config, c.OS, c.Architecture = config, "linux", runtime.GOARCH
	return mutate.ConfigFile(img, c)
}

func (h *testHost) importGuest() {
	h.t.Helper()
	img, err := guestImage()
	if err != nil {
		h.t.Fatal(err)
	}
	h.importImage(guestName, img)
}

func (h *testHost) importImage(ref string, img v1.Image) Image {
	h.t.Helper()
	out, err := h.engine.Import(h.t.Context(), dockerArchive(h.t, ref, img))
	if err != nil {
		h.t.Fatal(err)
	}
	return out[0]
}

// pod starts a pod and returns its ID.
func (h *testHost) pod(c PodConfig) string {
	h.t.Helper()
	if c.ID == "" {
		c.ID = "p1"
	}
	if c.Hostname == "" {
		c.Hostname = "pod-" + c.ID
	}
	if err := h.engine.StartPod(h.t.Context(), c); err != nil {
		h.t.Fatal(err)
	}
	return c.ID
}

// run runs a container of the guest image, with the pod's log in the data
// folder.
func (h *testHost) run(pod, id string, c ContainerConfig) error {
	h.t.Helper()
	c.PodID, c.ID = pod, id
	if c.Image == "" {
		c.Image = guestName
	}
	if c.LogPath == "" {
		c.LogPath = h.logPath(pod, id)
	}
	return h.engine.RunContainer(h.t.Context(), c)
}

func (h *testHost) logPath(pod, id string) string {
	return filepath.Join(h.cfg.Root, "logs", pod, id+".log")
}

func (h *testHost) mustRun(pod, id string, c ContainerConfig) {
	h.t.Helper()
	if err := h.run(pod, id, c); err != nil {
		h.t.Fatal(err)
	}
}

// await returns the container's status once it fits, as told by an event.
func (h *testHost) await(pod, id string, fits func(ContainerStatus) bool) ContainerStatus {
	h.t.Helper()
	events, cancel := h.engine.Subscribe()
	defer cancel()
	if c, ok := h.engine.Container(pod, id); ok && fits(c) {
		return c
	}
	timeout := time.After(30 * time.Second)
	for {
		select {
		case c := <-events:
			if c.PodID == pod && c.ID == id && fits(c) {
				return c
			}
		case <-timeout:
			c, ok := h.engine.Container(pod, id)
			h.t.Fatalf("container %s of %s did not get there: %+v %v", id, pod, c, ok)
		}
	}
}

func exited(c ContainerStatus) bool { return c.State == Exited }

// output runs a container to its end and returns what it wrote.
func (h *testHost) output(pod, id string, c ContainerConfig) (string, ContainerStatus) {
	h.t.Helper()
	h.mustRun(pod, id, c)
	st := h.await(pod, id, exited)
	return h.logs(pod, id), st
}

// logs returns the content of a container's log, without the CRI columns.
func (h *testHost) logs(pod, id string) string {
	h.t.Helper()
	data, err := os.ReadFile(h.logPath(pod, id))
	if err != nil {
		h.t.Fatal(err)
	}
	return logContent(h.t, data)
}

func logContent(t testing.TB, data []byte) string {
	t.Helper()
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			t.Fatalf("log line %q has %d columns", line, len(f))
		}
		if _, err := time.Parse(time.RFC3339Nano, f[0]); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		out.WriteString(f[3])
		if f[2] == "F" {
			out.WriteByte('\n')
		}
	}
	return out.String()
}
