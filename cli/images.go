package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"conclave/gossip"
	"conclave/runtime"
)

// Images between nodes: gossip tells roughly who has what, calls ask exactly,
// and layers come as streams. See docs/decisions/0010-images.md.

// imagesChanged is the engine's hint; it must not wait.
func (s *Server) imagesChanged() {
	select {
	case s.images <- struct{}{}:
	default:
	}
}

// announceEvery bounds how often gossip is told of a pull's layers.
const announceEvery = 300 * time.Millisecond

// announceImages tells the others what this node can give them.
func (s *Server) announceImages(ctx context.Context) error {
	for {
		s.pool.SetMeta(func(m *gossip.Meta) { m.Holds = gossip.NewFilter(s.engine.Holds()) })
		s.agent.ImagesChanged()
		select {
		case <-s.images:
		case <-ctx.Done():
			return nil
		}
		select { // more is to come
		case <-time.After(announceEvery):
		case <-ctx.Done():
			return nil
		}
		select { // and is told at once
		case <-s.images:
		default:
		}
	}
}

// imagePeers are the other nodes as the engine asks for them.
type imagePeers struct{ s *Server }

// alive are the other nodes that may be asked, those of this node's zone first
// and otherwise in no order, so that not all ask the same.
func (p imagePeers) alive() []gossip.Member {
	if p.s.pool == nil {
		return nil // before the node has a cluster
	}
	all := slices.DeleteFunc(slices.Clone(p.s.pool.Members()), func(m gossip.Member) bool {
		return m.ID == p.s.node.ID() || m.State != gossip.Alive
	})
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	zone := p.s.config.Labels["topology.kubernetes.io/zone"]
	slices.SortStableFunc(all, func(a, b gossip.Member) int {
		far := func(m gossip.Member) int {
			if m.Zone == zone {
				return 0
			}
			return 1
		}
		return cmp.Compare(far(a), far(b))
	})
	return all
}

// holders are those of the other nodes that gossip says have what a key names.
func (p imagePeers) holders(key string) []gossip.Member {
	return slices.DeleteFunc(p.alive(), func(m gossip.Member) bool { return !m.Holds.Has(key) })
}

func (p imagePeers) Holders(key string) (ids []string) {
	for _, m := range p.holders(key) {
		ids = append(ids, m.ID)
	}
	return ids
}

// announcing are the names of the holders, in order.
func (p imagePeers) announcing(key string) []string {
	names := []string{}
	for _, m := range p.holders(key) {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

// Owner is the live node whose id and the key together weigh most: each key has
// its own, and one that leaves changes only what it owned.
func (p imagePeers) Owner(key string) (id string, own bool) {
	if p.s.pool == nil {
		return "", true
	}
	id = p.s.node.ID()
	most := gossip.Weight(id, key)
	for _, m := range p.alive() {
		if w := gossip.Weight(m.ID, key); w > most {
			id, most = m.ID, w
		}
	}
	return id, id == p.s.node.ID()
}

func (p imagePeers) Image(ctx context.Context, id, ref, arch string) ([]byte, error) {
	return p.s.dialer.Call(ctx, id, "/conclave/v1/image?"+url.Values{"ref": {ref}, "arch": {arch}}.Encode(), nil)
}

func (p imagePeers) Layer(ctx context.Context, id, diffID string) (io.ReadCloser, error) {
	return p.s.dialer.Stream(ctx, id, "/conclave/v1/layer?"+url.Values{"layer": {diffID}}.Encode())
}

// serveImage tells another node of an image.
func (s *Server) serveImage(_ string, w http.ResponseWriter, r *http.Request) {
	raw, err := s.engine.PeerImage(r.FormValue("ref"), r.FormValue("arch"))
	switch {
	case err == nil:
		_, _ = w.Write(raw) // an answer is in memory
	case runtime.IsNotHere(err):
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// imageRow is an image as the commands show it.
type imageRow struct {
	ID     string
	Names  []string
	Size   int64
	Pinned bool     `json:",omitempty"`
	Nodes  []string `json:",omitempty"` // names of those that have it
}

func (s *Server) imageRows() []imageRow {
	rows := []imageRow{}
	for _, i := range s.engine.Images() {
		rows = append(rows, imageRow{ID: i.ID, Names: i.Names, Size: i.Size, Pinned: i.Pinned, Nodes: []string{s.node.Name()}})
	}
	return rows
}

// serveImages tells another node what there is here.
func (s *Server) serveImages(_ string, w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, s.imageRows())
}

// imagesWait bounds the question to nodes that may just have died.
const imagesWait = 3 * time.Second

// clusterImages are the images of all nodes that answer, with who has them. A
// name counts where it is: two nodes may call different images alike.
func (s *Server) clusterImages(ctx context.Context) []imageRow {
	ctx, cancel := context.WithTimeout(ctx, imagesWait)
	defer cancel()
	var mu sync.Mutex
	all := s.imageRows()
	var asked sync.WaitGroup
	for _, m := range (imagePeers{s}).alive() {
		asked.Go(func() {
			var rows []imageRow
			raw, err := s.dialer.Call(ctx, m.ID, "/conclave/v1/images", nil)
			if err == nil {
				err = json.Unmarshal(raw, &rows)
			}
			if err != nil {
				s.log.Warn("a node does not tell which images it has", "node", m.Name, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, rows...)
		})
	}
	asked.Wait()
	return mergeImages(all)
}

// mergeImages puts what nodes say of one image into one row.
func mergeImages(all []imageRow) []imageRow {
	byID := map[string]*imageRow{}
	rows := []imageRow{}
	for _, r := range all {
		if old := byID[r.ID]; old != nil {
			old.Names = append(old.Names, r.Names...)
			old.Nodes = append(old.Nodes, r.Nodes...)
			old.Pinned = old.Pinned || r.Pinned
			continue
		}
		byID[r.ID] = &imageRow{ID: r.ID, Size: r.Size, Pinned: r.Pinned, Names: slices.Clone(r.Names), Nodes: slices.Clone(r.Nodes)}
	}
	for _, r := range byID {
		slices.Sort(r.Names)
		r.Names = slices.Compact(r.Names)
		slices.SortFunc(r.Nodes, compareNames)
		r.Nodes = slices.Compact(r.Nodes)
		rows = append(rows, *r)
	}
	slices.SortFunc(rows, func(a, b imageRow) int { return cmp.Compare(firstName(a), firstName(b)) })
	return rows
}

func firstName(r imageRow) string {
	if len(r.Names) == 0 {
		return "\xff" + r.ID // those without a name come last
	}
	return r.Names[0]
}

// pullNews is a line of the answer to a pull.
type pullNews struct {
	Done, Total int64     `json:",omitempty"`
	Image       *imageRow `json:",omitempty"`
	Error       string    `json:",omitempty"`
}

// newsEvery bounds how often the commands are told how far a pull is.
const newsEvery = 200 * time.Millisecond

// servePull pulls an image for the command line, with the credentials that it
// sends or else the node's own.
func (s *Server) servePull(w http.ResponseWriter, r *http.Request) {
	var credential runtime.Credential
	if err := json.NewDecoder(r.Body).Decode(&credential); err != nil && err != io.EOF {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var mu sync.Mutex
	var last time.Time
	out := json.NewEncoder(w)
	say := func(n pullNews) {
		_ = out.Encode(n) // who asked went away: the request's context ends
		_ = http.NewResponseController(w).Flush()
	}
	o := runtime.PullOptions{
		Credentials: func(repository string) ([]runtime.Credential, error) {
			if credential != (runtime.Credential{}) {
				return []runtime.Credential{credential}, nil
			}
			own, err := s.agent.NodeCredentials(r.Context(), repository)
			if err != nil {
				s.log.Warn("some of the node's credentials for registries cannot be had", "repository", repository, "error", err)
			}
			return runtimeCredentials(own), nil
		},
		Progress: func(done, total int64) {
			mu.Lock()
			defer mu.Unlock()
			if time.Since(last) > newsEvery {
				last = time.Now()
				say(pullNews{Done: done, Total: total})
			}
		},
	}
	img, err := s.engine.Pull(r.Context(), r.FormValue("ref"), o)
	mu.Lock()
	defer mu.Unlock()
	if err != nil {
		say(pullNews{Error: err.Error()})
		return
	}
	say(pullNews{Image: &imageRow{ID: img.ID, Names: img.Names, Size: img.Size}})
}

// dockerConfigs are where Docker and kubelet look for credentials, this node's
// own file first.
func (s *Server) dockerConfigs() []string {
	files := []string{s.path("config.json")}
	if home, err := os.UserHomeDir(); err == nil {
		files = append(files, filepath.Join(home, ".docker", "config.json"), filepath.Join(home, ".dockercfg"))
	}
	if root := "/root/.docker/config.json"; !slices.Contains(files, root) {
		files = append(files, root)
	}
	return files
}

// pruned is the answer to prune.
type pruned struct {
	Images []imageRow
	Error  string `json:",omitempty"` // of those that stay
}

func (s *Server) prune(ctx context.Context) pruned {
	removed, err := s.agent.PruneImages(ctx)
	out := pruned{Images: []imageRow{}}
	for _, i := range removed {
		out.Images = append(out.Images, imageRow{ID: i.ID, Names: i.Names, Size: i.Size})
	}
	if err != nil {
		out.Error = fmt.Sprint(err)
	}
	return out
}
