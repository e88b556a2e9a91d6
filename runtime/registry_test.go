package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// TestHostsFile reads hosts.toml files as containerd's users have them.
func TestHostsFile(t *testing.T) {
	type end struct {
		URL           string // of /v2/team/app/x
		Mirror        bool
		Resolve, Pull bool
		Credentials   string
	}
	for _, c := range []struct {
		what, host, file string
		want             []end
		fails            string
	}{
		{what: "a mirror", host: "docker.io", file: `
server = "https://registry-1.docker.io"

[host."https://mirror.lan:5000"]
  capabilities = ["pull", "resolve"] # and a comment
`, want: []end{{"https://mirror.lan:5000/v2/team/app/x?ns=docker.io", true, true, true, "mirror.lan:5000/team/app"},
			{"https://registry-1.docker.io/v2/team/app/x", false, true, true, "index.docker.io/team/app"}}},
		{what: "several, in the order of the file", host: "reg.lan", file: `
[host."http://z.lan"]
capabilities = ['pull']
[host."a.lan"]
skip_verify = true
dial_timeout = "3s"
[host."https://proxy.lan/v2/harbor"]
override_path = true
[host."https://proxy.lan/v2/harbor".header]
x-key = ["a", "b"]
`, want: []end{{"http://z.lan/v2/team/app/x?ns=reg.lan", true, false, true, "z.lan/team/app"}, {"https://a.lan/v2/team/app/x?ns=reg.lan", true, true, true, "a.lan/team/app"},
			{"https://proxy.lan/v2/harbor/team/app/x?ns=reg.lan", true, true, true, "proxy.lan/team/app"}, {"", false, true, true, "reg.lan/team/app"}}},
		{what: "plain HTTP", host: "reg.lan:5000", file: `server = "http://reg.lan:5000"`, want: []end{{"http://reg.lan:5000/v2/team/app/x", false, true, true, "reg.lan:5000/team/app"}}},
		{what: "inline", host: "reg.lan", file: `host."https://m.lan".capabilities = ["resolve", "push"]`, want: []end{{"https://m.lan/v2/team/app/x?ns=reg.lan", true, true, false, "m.lan/team/app"}, {"", false, true, true, "reg.lan/team/app"}}},
		{what: "no file", host: "reg.lan", want: []end{{"", false, true, true, "reg.lan/team/app"}}},
		{what: "unknown key", host: "reg.lan", file: "[host.\"https://m.lan\"]\nspeed = true\n", fails: "line 2: speed is not supported"},
		{what: "unknown capability", host: "reg.lan", file: "capabilities = [\"fly\"]\n", fails: `line 1: unknown capability "fly"`},
		{what: "no TOML", host: "reg.lan", file: "\n\nserver: x\n", fails: "line 3: = is missing"},
		{what: "twice", host: "reg.lan", file: "server = \"a.lan\"\nserver = \"b.lan\"\n", fails: "line 2: server is there twice"},
		{what: "open text", host: "reg.lan", file: "server = \"a.lan\n", fails: "line 1: a text does not end"},
		{what: "open list", host: "reg.lan", file: "ca = [\"a\"\n \"b\"]", fails: "line 2: a list does not end"},
		{what: "too much", host: "reg.lan", file: "skip_verify = true false", fails: `line 1: "false" is too much`},
		{what: "no address", host: "reg.lan", file: "[host.\"ftp://a\"]\n", fails: "no address of a host"},
	} {
		dir := t.TempDir()
		if c.file != "" {
			if err := os.MkdirAll(filepath.Join(dir, c.host), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, c.host, "hosts.toml"), []byte(c.file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		repo, err := name.NewRepository(c.host + "/team/app")
		if err != nil {
			t.Fatal(err)
		}
		all, err := (&store{cfg: Config{RegistryDir: dir}}).endpoints(repo)
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) || !errors.Is(err, ErrRegistryUnavailable) {
				t.Errorf("%s: %v", c.what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		var got []end
		for _, e := range all {
			g := end{Mirror: e.mirror, Resolve: e.resolve, Pull: e.pull, Credentials: e.repository}
			if e.base != nil {
				r := route{e, &store{}, roundTripper(func(r *http.Request) (*http.Response, error) {
					g.URL = r.URL.String()
					if e.override && !reflect.DeepEqual(r.Header["X-Key"], []string{"a", "b"}) {
						t.Errorf("%s: header %v", c.what, r.Header)
					}
					return nil, io.EOF
				})}
				req := httptest.NewRequest(http.MethodGet, "https://"+repo.RegistryStr()+"/v2/team/app/x", nil)
				if _, err := r.RoundTrip(req); !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			}
			got = append(got, g)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%+v\n%+v", c.what, got, c.want)
		}
	}
}

func FuzzHostsFile(f *testing.F) {
	f.Add("server = \"https://a\"\n[host.\"https://b\"]\n  ca = [\"x\", 'y']\n client = [[\"a\",\"b\"]]\n[host.\"https://b\".header]\n x = \"1\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := readHosts([]byte(text), "/", endpoint{origin: "reg.lan", namespace: "reg.lan"}, "team/app")
		if err == nil && len(all) == 0 {
			t.Error("nobody is to be asked")
		}
	})
}

// TestMirrors: a mirror is asked first and with its own credentials, and what it
// does not have comes from the registry.
func TestMirrors(t *testing.T) {
	origin, mirror := newRegistry(t), newRegistry(t)
	both, alone := testImage(t, "both"), testImage(t, "alone")
	origin.push(t, "team/both:1", both)
	mirror.push(t, "team/both:1", both)
	origin.push(t, "team/alone:1", alone)
	var told []string
	mirror.do(func(w http.ResponseWriter, r *http.Request) bool {
		user, _, _ := r.BasicAuth()
		told = append(told, user+" "+r.URL.Query().Get("ns"))
		if user != "mirror" {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		return false
	})
	s := newStore(t, t.TempDir())
	s.cfg.RegistryDir = t.TempDir()
	dir := filepath.Join(s.cfg.RegistryDir, origin.host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = \"http://%s\"\n[host.\"http://%s\"]\n", origin.host, mirror.host), 0o644); err != nil {
		t.Fatal(err)
	}
	o := PullOptions{Credentials: func(repository string) ([]Credential, error) {
		if strings.HasPrefix(repository, mirror.host) {
			return []Credential{{Username: "mirror", Password: "m"}}, nil
		}
		return []Credential{{Username: "origin", Password: "o"}}, nil
	}}
	if _, err := storeEngine(s).Pull(t.Context(), origin.host+"/team/both:1", o); err != nil {
		t.Fatal(err)
	}
	if origin.blobs.Load() != 0 || mirror.blobs.Load() != 3 {
		t.Errorf("%d blobs of the registry, %d of the mirror", origin.blobs.Load(), mirror.blobs.Load())
	}
	for _, who := range told {
		if strings.HasPrefix(who, "origin") || !strings.HasSuffix(who, origin.host) {
			t.Errorf("the mirror was told %q", who)
		}
	}
	if _, err := storeEngine(s).Pull(t.Context(), origin.host+"/team/alone:1", o); err != nil {
		t.Fatal(err)
	}
	// A mirror that lies about a layer is passed over, for that layer.
	third := testImage(t, "third")
	origin.push(t, "team/third:1", third)
	mirror.before.Store(nil)
	mirror.push(t, "team/third:1", third)
	manifest, err := third.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	mirror.do(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, manifest.Layers[1].Digest.String()) && r.Method == http.MethodGet {
			_, _ = w.Write(bytes.Repeat([]byte{0x1f}, int(manifest.Layers[1].Size)))
			return true
		}
		return false
	})
	if _, err := storeEngine(s).Pull(t.Context(), origin.host+"/team/third:1", o); err != nil {
		t.Errorf("with a lying mirror: %v", err)
	}
}

// TestBearerToken pulls from a registry that sends us to a token server.
func TestBearerToken(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "team/app:1", testImage(t, "x"))
	var asked atomic.Int64
	r.do(func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path == "/token" {
			asked.Add(1)
			user, pass, _ := req.BasicAuth()
			if user != "me" || pass != "pw" || req.FormValue("scope") != "repository:team/app:pull" || req.FormValue("service") != "here" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"token": "let me in"})
			return true
		}
		if req.Header.Get("Authorization") == "Bearer let me in" {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="here"`, r.host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	e := storeEngine(newStore(t, t.TempDir()))
	if _, err := e.Pull(t.Context(), r.host+"/team/app:1", PullOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("anonymous: %v", err)
	}
	o := PullOptions{Credentials: func(string) ([]Credential, error) { return []Credential{{Username: "me", Password: "pw"}}, nil }}
	if _, err := e.Pull(t.Context(), r.host+"/team/app:1", o); err != nil {
		t.Errorf("with a password: %v", err)
	}
	// And where the registry is only the mirror of another.
	s := newStore(t, t.TempDir())
	s.cfg.RegistryDir = t.TempDir()
	if err := os.MkdirAll(filepath.Join(s.cfg.RegistryDir, "other.lan"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.cfg.RegistryDir, "other.lan", "hosts.toml"), fmt.Appendf(nil, "[host.\"http://%s\"]\n", r.host), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := storeEngine(s).Pull(t.Context(), "other.lan/team/app:1", o); err != nil {
		t.Errorf("by a mirror: %v", err)
	}
	if _, err := storeEngine(newStore(t, t.TempDir())).Pull(t.Context(), r.host+"/team/app:1", PullOptions{
		Credentials: func(string) ([]Credential, error) { return []Credential{{RegistryToken: "let me in"}}, nil }}); err != nil {
		t.Errorf("with a token of one's own: %v", err)
	}
}

// TestRanges: a download that breaks goes on where it broke, also at a registry
// that knows no ranges.
func TestRanges(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		r := newRegistry(t)
		img := bigImage(t)
		r.push(t, "big:1", img)
		var mu sync.Mutex
		sent, broken := map[string]int{}, map[string]bool{}
		r.do(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.Contains(req.URL.Path, "/blobs/") || req.Method != http.MethodGet {
				return false
			}
			mu.Lock()
			first := !broken[req.URL.Path]
			broken[req.URL.Path] = true
			mu.Unlock()
			if !ranges {
				req.Header.Del("Range")
			}
			layers, err := img.Layers()
			if err != nil {
				t.Error(err)
			}
			for _, l := range layers {
				if d, err := l.Digest(); err == nil && first && strings.HasSuffix(req.URL.Path, d.String()) {
					body, err := l.Compressed()
					if err != nil {
						t.Error(err)
						return true
					}
					data, _ := io.ReadAll(body)
					w.Header().Set("Content-Length", fmt.Sprint(len(data)))
					n, _ := w.Write(data[:len(data)*3/4])
					mu.Lock()
					sent[req.URL.Path] += n
					mu.Unlock()
					_ = http.NewResponseController(w).Flush()
					panic(http.ErrAbortHandler)
				}
			}
			if req.Header.Get("Range") != "" {
				mu.Lock()
				sent["resumed"]++
				mu.Unlock()
			}
			return false
		})
		if _, err := storeEngine(newStore(t, t.TempDir())).Pull(t.Context(), r.host+"/big:1", PullOptions{}); err != nil {
			t.Errorf("ranges %v: %v", ranges, err)
		}
		mu.Lock()
		if want := map[bool]int{true: 6, false: 0}[ranges]; sent["resumed"] != want {
			t.Errorf("ranges %v: %d downloads went on where they broke, not %d", ranges, sent["resumed"], want)
		}
		mu.Unlock()
	}
}

// TestParallelPulls: so many images at once and no more; the others wait.
func TestParallelPulls(t *testing.T) {
	r := newRegistry(t)
	for i := range 5 {
		r.push(t, fmt.Sprintf("app%d:1", i), testImage(t, fmt.Sprint(i)))
	}
	var now atomic.Int64
	gate, begun := make(chan struct{}), make(chan int64, 16)
	r.do(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/manifests/") {
			begun <- now.Add(1)
			<-gate
			now.Add(-1)
		}
		return false
	})
	s := newStore(t, t.TempDir())
	s.pulling = make(chan struct{}, 2)
	var g sync.WaitGroup
	for i := range 5 {
		g.Go(func() {
			if _, err := storeEngine(s).Pull(t.Context(), fmt.Sprintf("%s/app%d:1", r.host, i), PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	<-begun
	if most := <-begun; most != 2 {
		t.Errorf("the second began as one of %d", most)
	}
	// One that waits can be given up.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := storeEngine(s).Pull(ctx, r.host+"/app0:2", PullOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("given up: %v", err)
	}
	close(gate)
	g.Wait()
	close(begun)
	for most := range begun {
		if most > 2 {
			t.Errorf("%d images were pulled at once", most)
		}
	}
}
