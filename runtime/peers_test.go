package runtime

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// swarm is some stores that are each other's peers, over real HTTP.
type swarm struct {
	mu    sync.Mutex
	nodes []*store
	urls  []string
	told  map[string]bool // what nodes hold is known
	asked map[string]int
}

type seat struct {
	s  *swarm
	at int
}

func newSwarm(t *testing.T, n int) *swarm {
	t.Helper()
	w := &swarm{asked: map[string]int{}}
	for i := range n {
		s := newStore(t, t.TempDir())
		s.cfg.Peers = seat{w, i}
		e := storeEngine(s)
		e.log = s.log
		srv := httptest.NewServer(http.HandlerFunc(e.ServeLayer))
		t.Cleanup(srv.Close)
		w.nodes, w.urls = append(w.nodes, s), append(w.urls, srv.URL)
	}
	return w
}

func (p seat) Holders(key string) (ids []string) {
	for i, n := range p.s.nodes {
		if i != p.at && slices.Contains(storeEngine(n).Holds(), key) {
			ids = append(ids, fmt.Sprint(i))
		}
	}
	return ids
}

func (p seat) Owner(key string) (string, bool) {
	i := int(key[len(key)-1]) % len(p.s.nodes)
	return fmt.Sprint(i), i == p.at
}

func (p seat) node(id string) (i int) {
	if _, err := fmt.Sscan(id, &i); err != nil {
		panic(err)
	}
	return i
}

func (p seat) Image(_ context.Context, id, ref, arch string) ([]byte, error) {
	return p.s.nodes[p.node(id)].peerImage(ref, arch)
}

func (p seat) Layer(ctx context.Context, id, diffID string) (io.ReadCloser, error) {
	p.s.mu.Lock()
	p.s.asked[diffID]++
	p.s.mu.Unlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.s.urls[p.node(id)]+"?layer="+diffID, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, errNotHere
	}
	return res.Body, nil
}

func bigImage(t *testing.T) v1.Image {
	t.Helper()
	var layers [][]file
	for i := range 6 {
		noise := make([]byte, 2<<20)
		if _, err := rand.Read(noise); err != nil {
			t.Fatal(err)
		}
		layers = append(layers, []file{
			{name: fmt.Sprintf("dir%d/noise", i), mode: 0o644, data: noise}, {name: fmt.Sprintf("dir%d/empty", i), mode: 0o755},
			{name: fmt.Sprintf("dir%d/.wh.gone", i), mode: 0o644},
		})
	}
	img, err := makeImage(v1.Config{}, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestPeersShareOneDownload: every byte of every layer leaves the registry about
// once, whether the nodes pull one after the other or at the same time, and the
// registry may go as soon as one node has the image.
func TestPeersShareOneDownload(t *testing.T) {
	r := newRegistry(t)
	img := bigImage(t)
	digest := r.push(t, "big:1", img)
	t.Run("one after the other", func(t *testing.T) {
		w := newSwarm(t, 3)
		r.blobs.Store(0)
		for i, s := range w.nodes {
			if _, err := storeEngine(s).Pull(t.Context(), r.host+"/big:1", PullOptions{}); err != nil {
				t.Fatal(err)
			}
			// The config, which is the way by which the registry's word is checked.
			if n := r.blobs.Load(); n != int64(6+i+1) {
				t.Errorf("after %d nodes the registry was asked for %d blobs", i+1, n)
			}
		}
	})
	t.Run("at the same time", func(t *testing.T) {
		w := newSwarm(t, 4)
		r.blobs.Store(0)
		var g sync.WaitGroup
		for _, s := range w.nodes {
			g.Go(func() {
				if _, err := storeEngine(s).Pull(t.Context(), r.host+"/big:1", PullOptions{}); err != nil {
					t.Error(err)
				}
			})
		}
		g.Wait()
		if n := r.blobs.Load() - 4; n >= 12 { // 24 without any sharing, 6 at best
			t.Errorf("the registry gave %d layers to 4 nodes for an image of 6", n)
		}
	})
	t.Run("the registry is away", func(t *testing.T) {
		w := newSwarm(t, 3)
		first, err := storeEngine(w.nodes[0]).Pull(t.Context(), r.host+"/big:1", PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r.do(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
		defer r.before.Store(nil)
		second, err := storeEngine(w.nodes[1]).Pull(t.Context(), r.host+"/big:1", PullOptions{})
		if err != nil || second.ID != first.ID || !slices.Equal(second.Digests, first.Digests) || !slices.Equal(second.Names, first.Names) {
			t.Errorf("from a peer: %+v, %v", second, err)
		}
		if _, err := storeEngine(w.nodes[2]).Pull(t.Context(), r.host+"/big:1", PullOptions{Fresh: true}); !errors.Is(err, ErrRegistryUnavailable) {
			t.Errorf("policy Always: %v", err)
		}
		if _, err := storeEngine(w.nodes[2]).Pull(t.Context(), r.host+"/big@"+digest.String(), PullOptions{Fresh: true}); err != nil {
			t.Errorf("by digest: %v", err)
		}
		if _, err := storeEngine(w.nodes[2]).Pull(t.Context(), r.host+"/none:1", PullOptions{}); !errors.Is(err, ErrRegistryUnavailable) {
			t.Errorf("what nobody has: %v", err)
		}
	})
}

// TestPeersLie: what other nodes say is checked, and the registry has the last word.
func TestPeersLie(t *testing.T) {
	r := newRegistry(t)
	img := bigImage(t)
	digest := r.push(t, "big:1", img)
	w := newSwarm(t, 2)
	if _, err := storeEngine(w.nodes[0]).Pull(t.Context(), r.host+"/big:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	liar := w.nodes[0]
	_, layers, err := liar.use(r.host+"/big:1", func(Image) {})
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers { // of each kind of damage one
		noise := filepath.Join(liar.layersDir(), l, fmt.Sprintf("dir%d/noise", len(layers)-1-i))
		var err error
		switch i {
		case 0:
			var f *os.File
			if f, err = os.OpenFile(noise, os.O_WRONLY, 0); err == nil {
				_, err = f.WriteAt([]byte("another"), 77)
				f.Close()
			}
		case 1:
			err = os.Truncate(noise, 99)
		case 2:
			if err = os.Remove(noise); err == nil {
				err = os.Symlink("/etc/passwd", noise)
			}
		case 3:
			err = os.Truncate(liar.recipePath(l), 50)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.blobs.Store(0)
	if _, err := storeEngine(w.nodes[1]).Pull(t.Context(), r.host+"/big:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := r.blobs.Load(); n != 5 { // the config and four layers
		t.Errorf("%d blobs came from the registry", n)
	}
	for i, l := range layers {
		if data, err := os.ReadFile(filepath.Join(w.nodes[1].layersDir(), l, fmt.Sprintf("dir%d/noise", len(layers)-1-i))); len(data) != 2<<20 || bytes.Contains(data, []byte("another")) {
			t.Errorf("layer %d: %d bytes, %v", i, len(data), err)
		}
	}
	// A node that calls another image by a digest is found out.
	other := testImage(t, "other")
	r.push(t, "other:1", other)
	if _, err := storeEngine(liar).Pull(t.Context(), r.host+"/other:1", PullOptions{}); err != nil {
		t.Fatal(err)
	}
	liar.mu.Lock()
	for _, i := range liar.images {
		if slices.Contains(i.image.Names, strings.ToLower(r.host)+"/other:1") {
			i.image.Digests = []string{r.host + "/big@" + digest.String()}
		} else {
			i.image.Digests = nil
		}
	}
	liar.mu.Unlock()
	third := newStore(t, t.TempDir())
	third.cfg.Peers = seat{w, 1}
	got, err := storeEngine(third).Pull(t.Context(), r.host+"/big@"+digest.String(), PullOptions{})
	if want, _ := img.ConfigName(); err != nil || got.ID != want.String() {
		t.Errorf("by digest: %+v, %v", got, err)
	}
}

// TestRights: an image that a secret was needed for is given to those who have
// one that was accepted, here and on the node that took it from here.
func TestRights(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "secret:1", testImage(t, "s"))
	r.do(func(w http.ResponseWriter, req *http.Request) bool {
		if user, pass, _ := req.BasicAuth(); user == "me" && pass == "pw" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	ref := r.host + "/secret:1"
	as := func(user, password string) func(string) ([]Credential, error) {
		return func(string) ([]Credential, error) {
			return []Credential{{Username: user, Password: password}}, nil
		}
	}
	w := newSwarm(t, 2)
	e := storeEngine(w.nodes[0])
	if _, err := e.Pull(t.Context(), ref, PullOptions{Credentials: as("me", "pw")}); err != nil {
		t.Fatal(err)
	}
	check := func(where string, e *Engine) {
		t.Helper()
		for _, c := range []struct {
			who  func(string) ([]Credential, error)
			want bool
		}{{as("me", "pw"), true}, {as("me", "wrong"), false}, {nil, false}} {
			if got := e.Entitled(ref, c.who); got != c.want {
				t.Errorf("%s: entitled: %v, not %v", where, got, c.want)
			}
		}
	}
	check("pulled", e)
	again, err := openStore(e.images.cfg)
	if err != nil {
		t.Fatal(err)
	}
	check("after a restart", storeEngine(again))
	r.do(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	second := storeEngine(w.nodes[1])
	if _, err := second.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrRegistryUnavailable) {
		t.Errorf("anonymous, from a peer: %v", err)
	}
	if _, err := second.Pull(t.Context(), ref, PullOptions{Credentials: as("me", "pw")}); err != nil {
		t.Errorf("from a peer: %v", err)
	}
	check("from a peer", second)
	// What the node's own credential was for is for every pod of this node, and
	// for nobody on another.
	r.do(func(w http.ResponseWriter, req *http.Request) bool {
		if user, pass, _ := req.BasicAuth(); user == "me" && pass == "pw" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	w = newSwarm(t, 2)
	own := storeEngine(w.nodes[0])
	if _, err := own.Pull(t.Context(), ref, PullOptions{Credentials: func(string) ([]Credential, error) {
		return []Credential{{Username: "me", Password: "pw", Node: true}}, nil
	}}); err != nil {
		t.Fatal(err)
	}
	if !own.Entitled(ref, nil) {
		t.Error("what the node's own credential was for is refused to its pods")
	}
	r.do(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true })
	second = storeEngine(w.nodes[1])
	if _, err := second.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, ErrRegistryUnavailable) {
		t.Errorf("another node's own credential let a pod have it: %v", err)
	}
	if _, err := second.Pull(t.Context(), ref, PullOptions{Credentials: as("me", "pw")}); err != nil {
		t.Errorf("from a peer: %v", err)
	}
	check("from a peer whose own credential it was", second)
	// What was put here by hand is for everybody.
	third := storeEngine(newStore(t, t.TempDir()))
	if _, err := third.Import(t.Context(), dockerArchive(t, "example.org/hand:1", testImage(t, "h"))); err != nil {
		t.Fatal(err)
	}
	if !third.Entitled("example.org/hand:1", nil) {
		t.Error("an imported image is refused")
	}
}
