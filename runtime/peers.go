package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Peers are the other nodes of the cluster, as far as images are concerned. A
// key is a layer's diff ID, or a name or digest of an image as in Image.Names.
type Peers interface {
	// Holders are the live nodes that say that they have what a key names, the
	// nearest first. They may be wrong.
	Holders(key string) []string
	// Owner is the one node that fetches a layer for all that start at the same
	// time; own says that it is this one. Every node names the same.
	Owner(key string) (id string, own bool)
	// Image asks a node what PeerImage answers there.
	Image(ctx context.Context, id, ref, arch string) ([]byte, error)
	// Layer asks a node for what PeerLayer writes there. It returns when the
	// node has it or says that it does not.
	Layer(ctx context.Context, id, diffID string) (io.ReadCloser, error)
}

const (
	// peerMin is the smallest layer that is asked of other nodes while a
	// registry has it too: below it the question costs more than the answer.
	peerMin = 64 << 10
	// ownerMin is the smallest layer for which its owner is waited for.
	ownerMin = 1 << 20
	// peerTries is how many nodes are asked for the same.
	peerTries = 3
	// servedAtOnce is how many layers are served at once.
	servedAtOnce = 4
	// ownerGrace is how long the owner of a layer may be behind those who ask.
	ownerGrace = 300 * time.Millisecond
)

// peerImage is what a node tells another of an image.
type peerImage struct {
	Config  []byte
	Docs    map[string][]byte // manifest and index, by digest, as far as there are any
	Names   []string
	Digests []string
	Rights  []right
	Sizes   []int64 // of the layers, as their manifest has them
}

// errNotHere says that a node does not have what it was asked for.
var errNotHere = errors.New("not on this node")

// PeerImage is what another node is told of an image: all but its layers.
func (e *Engine) PeerImage(ref, arch string) ([]byte, error) { return e.images.peerImage(ref, arch) }

func (s *store) peerImage(ref, arch string) ([]byte, error) {
	s.mu.Lock()
	i, called := s.find(ref)
	if i == nil || called == "" || i.image.Architecture != arch {
		s.mu.Unlock()
		return nil, fmt.Errorf("%s: %w", ref, errNotHere)
	}
	out := peerImage{Digests: i.image.Digests, Rights: elsewhere(i.rights), Docs: map[string][]byte{}}
	if slices.Contains(i.image.Names, called) {
		out.Names = []string{called}
	}
	id, docs := i.image.ID, i.docs
	s.mu.Unlock()
	var err error
	if out.Config, err = os.ReadFile(s.blobPath(id)); err != nil {
		return nil, err
	}
	for _, d := range docs {
		raw, err := os.ReadFile(s.blobPath(d))
		if err != nil {
			return nil, err
		}
		out.Docs[d] = raw
	}
	return json.Marshal(out)
}

// PeerLayer writes a layer's tar to another node. If it is being fetched from a
// registry right now, it waits for that. began is called before the first byte.
func (e *Engine) PeerLayer(ctx context.Context, diffID string, w io.Writer, began func()) error {
	return e.images.peerLayer(ctx, diffID, w, began)
}

func (s *store) peerLayer(ctx context.Context, diffID string, w io.Writer, began func()) error {
	if _, err := v1.NewHash(diffID); err != nil {
		return fmt.Errorf("%w: %w", errNotHere, err)
	}
	if !s.hasLayer(diffID) {
		if !s.isMaking(diffID) {
			select { // whoever asks may have been quicker
			case <-time.After(ownerGrace):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if !s.isMaking(diffID) {
			return errNotHere
		}
		unlock, err := s.lockLayer(ctx, diffID)
		if err != nil {
			return err
		}
		unlock()
	}
	if !s.hasLayer(diffID) {
		return errNotHere
	}
	select {
	case s.serving <- struct{}{}:
		defer func() { <-s.serving }()
	case <-ctx.Done():
		return ctx.Err()
	}
	began()
	return s.pack(ctx, diffID, w)
}

// hasLayer says whether a layer can be served.
func (s *store) hasLayer(diffID string) bool {
	_, err := s.layer(diffID)
	return err == nil && s.packs(diffID)
}

// IsNotHere says whether an error of PeerImage or PeerLayer is that this node
// does not have it.
func IsNotHere(err error) bool { return errors.Is(err, errNotHere) }

// making notes that a layer is fetched from a registry.
func (s *store) making(diffID string, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fetching[diffID] += by; s.fetching[diffID] == 0 {
		delete(s.fetching, diffID)
	}
}

func (s *store) isMaking(diffID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fetching[diffID] > 0
}

// holders are where other nodes have a layer, or may soon have it.
func (s *store) holders(diffID string, size int64) (open []func(context.Context) (io.ReadCloser, error)) {
	if s.cfg.Peers == nil {
		return nil
	}
	from := func(id string) func(context.Context) (io.ReadCloser, error) {
		return func(ctx context.Context) (io.ReadCloser, error) {
			r, err := s.cfg.Peers.Layer(ctx, id, diffID)
			if err != nil {
				return nil, err
			}
			return newPatient(r), nil
		}
	}
	all := s.cfg.Peers.Holders(diffID)
	for _, id := range all[:min(len(all), peerTries)] {
		open = append(open, from(id))
	}
	if owner, own := s.cfg.Peers.Owner(diffID); !own && owner != "" && size >= ownerMin && len(all) == 0 {
		open = append(open, from(owner))
	}
	return open
}

// ownFirst is the order in which the layers of an image are fetched: first what
// other nodes wait for.
func (s *store) ownFirst(diffIDs []string) []int {
	var own, others []int
	for i, d := range diffIDs {
		if s.cfg.Peers != nil {
			if _, ok := s.cfg.Peers.Owner(d); ok {
				own = append(own, i)
				continue
			}
		}
		others = append(others, i)
	}
	return append(own, others...)
}

// patient closes a reader that brings nothing for long.
type patient struct {
	io.ReadCloser
	timer *time.Timer
}

func newPatient(r io.ReadCloser) *patient {
	return &patient{r, time.AfterFunc(stallPatience, func() { r.Close() })}
}

func (p *patient) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.timer.Reset(stallPatience)
	return n, err
}

func (p *patient) Close() error {
	p.timer.Stop()
	return p.ReadCloser.Close()
}

// askPeers looks for an image on other nodes. What it returns is checked: a
// digest is what it says, and whoever pulls may have it.
func (s *store) askPeers(ctx context.Context, ref name.Reference, o PullOptions) *peerImage {
	if s.cfg.Peers == nil {
		return nil
	}
	called := normalize(ref)
	all := s.cfg.Peers.Holders(called)
	for _, id := range all[:min(len(all), peerTries)] {
		actx, cancel := context.WithTimeout(ctx, 10*time.Second)
		raw, err := s.cfg.Peers.Image(actx, id, called, o.Platform.Architecture)
		cancel()
		if err != nil {
			s.log.Debug("another node does not have an image", "image", called, "node", id, "error", err)
			continue
		}
		found := &peerImage{}
		err = json.Unmarshal(raw, found)
		if err == nil {
			err = found.check(ref, *o.Platform)
		}
		if err != nil {
			s.log.Warn("another node's word about an image is not believed", "image", called, "node", id, "error", err)
			continue
		}
		if !entitled(found.Rights, repository(ref), o) {
			s.log.Info("another node has an image that these credentials were never allowed to pull", "image", called)
			continue
		}
		return found
	}
	return nil
}

// check follows the chain from a digest to the config.
func (p *peerImage) check(ref name.Reference, platform v1.Platform) error {
	for d, raw := range p.Docs {
		if got := digestOf(raw); got != d {
			return fmt.Errorf("%w: document %s has the digest %s", ErrDamagedImage, d, got)
		}
	}
	id := digestOf(p.Config)
	for digest := range p.Docs {
		var m v1.Manifest
		if json.Unmarshal(p.Docs[digest], &m) == nil && m.Config.Digest.String() == id {
			p.Sizes = nil
			for _, l := range m.Layers {
				p.Sizes = append(p.Sizes, l.Size)
			}
		}
	}
	exact, ok := ref.(name.Digest)
	if !ok {
		return nil
	}
	at := exact.DigestStr()
	for range 4 {
		raw, ok := p.Docs[at]
		if !ok {
			return fmt.Errorf("%w: document %s is missing", ErrDamagedImage, at)
		}
		var index v1.IndexManifest
		if err := json.Unmarshal(raw, &index); err != nil {
			return fmt.Errorf("%w: %w", ErrDamagedImage, err)
		}
		if index.MediaType == types.OCIImageIndex || index.MediaType == types.DockerManifestList || len(index.Manifests) > 0 {
			child, err := pickPlatform(index, platform)
			if err != nil {
				return err
			}
			at = child.Digest.String()
			continue
		}
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return fmt.Errorf("%w: %w", ErrDamagedImage, err)
		}
		if m.Config.Digest.String() != id {
			return fmt.Errorf("%w: %s has the config %s, not %s", ErrDamagedImage, exact, m.Config.Digest, id)
		}
		return nil
	}
	return fmt.Errorf("%w: indexes of indexes", ErrDamagedImage)
}

// fetchFound brings an image that other nodes have.
func (s *store) fetchFound(ctx context.Context, ref name.Reference, p *peerImage, report func(done, total int64)) (Image, error) {
	diffIDs, err := layersOf(p.Config)
	if err != nil {
		return Image{}, err
	}
	progress := &progress{report: report}
	sources := make([]layerSource, len(diffIDs))
	if len(p.Sizes) == len(sources) {
		for i, size := range p.Sizes {
			sources[i].size = size
			progress.total += size
		}
	}
	a := arrival{config: p.Config, names: namesOf(ref), docs: p.Docs, rights: p.Rights}
	for _, d := range p.Digests {
		if _, digest, ok := strings.Cut(d, "@"); ok && p.Docs[digest] != nil {
			a.digests = append(a.digests, d)
		}
	}
	return s.fetch(ctx, a, sources, progress)
}

// right says who may use an image that was pulled from a repository.
type right struct {
	Repository string
	Anyone     bool     `json:",omitempty"`
	Here       bool     `json:",omitempty"` // every pod of this node, whose own credential it was
	Keys       []string `json:",omitempty"` // of credentials that the registry accepted
}

// elsewhere are rights as they are on other nodes.
func elsewhere(here []right) []right {
	out := slices.Clone(here)
	for i := range out {
		out[i].Here = false
	}
	return out
}

// entitled says whether one of some credentials was accepted before, or none is
// needed. An image without any right was put on a node by hand.
func entitled(rights []right, repository string, o PullOptions) bool {
	if len(rights) == 0 {
		return true
	}
	for _, r := range rights {
		if r.Repository != repository {
			continue
		}
		if r.Anyone || r.Here {
			return true
		}
		if o.Credentials == nil {
			return false
		}
		credentials, err := o.Credentials(strings.Replace(repository, "docker.io/", name.DefaultRegistry+"/", 1))
		if err != nil {
			return false
		}
		return slices.ContainsFunc(credentials, func(c Credential) bool { return slices.Contains(r.Keys, c.key()) })
	}
	return false
}

// mergeRights adds what a pull has shown.
func mergeRights(have, add []right) []right {
	out := slices.Clone(have)
	for _, a := range add {
		i := slices.IndexFunc(out, func(r right) bool { return r.Repository == a.Repository })
		if i < 0 {
			a.Keys = sortedSet(slices.Clone(a.Keys))
			out = append(out, a)
			continue
		}
		out[i].Anyone, out[i].Here = out[i].Anyone || a.Anyone, out[i].Here || a.Here
		out[i].Keys = sortedSet(append(slices.Clone(out[i].Keys), a.Keys...))
	}
	slices.SortFunc(out, func(a, b right) int { return strings.Compare(a.Repository, b.Repository) })
	return out
}

// Entitled says whether a pod with some credentials may use an image that is
// here: one that was put here by hand, or that anybody or one of these
// credentials could pull. Otherwise the registry has to be asked again.
func (e *Engine) Entitled(ref string, credentials func(repository string) ([]Credential, error)) bool {
	s := e.images
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return true // an ID: whoever knows it is told nothing new
	}
	s.mu.Lock()
	i, _ := s.find(ref)
	var rights []right
	if i != nil {
		rights = i.rights
	}
	s.mu.Unlock()
	return entitled(rights, repository(parsed), PullOptions{Credentials: credentials})
}

// Near says whether another node that lives says that it has an image of a name.
func (e *Engine) Near(ref string) bool {
	if e.images.cfg.Peers == nil {
		return false
	}
	parsed, err := name.ParseReference(ref)
	return err == nil && len(e.images.cfg.Peers.Holders(normalize(parsed))) > 0
}

// Holds are the keys of all that other nodes can have from this one.
func (e *Engine) Holds() []string {
	s := e.images
	var keys []string
	for _, i := range s.list() {
		keys = append(append(keys, i.Names...), i.Digests...)
	}
	entries, err := os.ReadDir(s.layersDir())
	if err != nil {
		return keys
	}
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), ".recipe")
		if !ok {
			continue
		}
		if l, err := s.note(id); err == nil {
			keys = append(keys, l.DiffID)
		}
	}
	return keys
}

// ServeLayer answers another node's request for a layer.
func (e *Engine) ServeLayer(w http.ResponseWriter, r *http.Request) {
	began := false
	err := e.PeerLayer(r.Context(), r.FormValue("layer"), w, func() { began = true })
	switch {
	case err == nil:
	case began: // the other side must not take it for the end
		e.log.Debug("a layer could not be given to another node", "error", err)
		panic(http.ErrAbortHandler)
	case IsNotHere(err):
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}
