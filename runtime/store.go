package runtime

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// store is the images on disk, below Root/images:
//
//	index.json         which images there are and what they are called
//	blobs/sha256/HEX   their configs, manifests and indexes
//	layers/ID/         an unpacked layer; ID is the start of its diff ID
//	layers/ID.json     written after the folder: without it there is no layer
//	layers/ID.recipe   how its tar is made again, for other nodes; see recipe.go
//	layers/empty/      for an image without layers
//	tmp/               what is being made, or removed
//
// Layers are not kept packed: a node's disk is small. Each is unpacked once, whoever has it, and never changes.
//
// The disk is synced once per image, before the index names it: a layer is
// trusted if an image in the index has it, or if it was unpacked since the host
// booted. So a pull that was killed finds the layers that it had finished, and
// one that lost its power fetches them again.
type store struct {
	dir  string
	log  *slog.Logger
	cfg  Config
	boot string // tells this time of the host's running from others

	mu      sync.Mutex
	dirty   bool               // layers were made that may not be on the disk yet
	images  map[string]*stored // by ID
	holds   map[string]int     // layers that a pull under way counts on
	checked map[string]bool    // layers whose tree this process has looked at
	pulls   map[string]*flight
	locks   map[string]chan struct{} // of layers being made: one token each
	// fetching counts the layers that come from a registry right now.
	fetching map[string]int
	dropped  map[string]droppedFile // by file name

	pulling chan struct{} // one place for each image that may be pulled at once
	serving chan struct{} // one for each layer that may be served at once
}

// stored is an image in the index.
type stored struct {
	image  Image
	layers []string // folders, topmost first
	rights []right  // who may use it; none: everybody
	docs   []string // digests of its manifest and index, sorted
}

// indexFile is index.json.
type indexFile struct {
	Version int
	Images  []indexEntry
}

type indexEntry struct {
	ID      string
	Names   []string `json:",omitempty"`
	Digests []string `json:",omitempty"`
	Docs    []string `json:",omitempty"`
	Rights  []right  `json:",omitempty"`
}

// layerFile is layers/ID.json.
type layerFile struct {
	DiffID string
	Size   int64  // bytes on disk
	Tree   string // hash of names, kinds, modes, owners and sizes
	Boot   string // when it was made
}

const emptyLayer = "empty"

// layersDir is where layers' names are relative to.
func (s *store) layersDir() string { return filepath.Join(s.dir, "layers") }
func (s *store) tmpDir() string    { return filepath.Join(s.dir, "tmp") }

func (s *store) blobPath(digest string) string {
	return filepath.Join(s.dir, "blobs", strings.Replace(digest, ":", "/", 1))
}

// layerID is the folder of a layer: short, because the kernel takes the names
// of all layers of a container in one page.
func layerID(diffID string) string {
	_, hexPart, _ := strings.Cut(diffID, ":")
	return hexPart[:min(16, len(hexPart))]
}

// openStore reads the index. Entries that are damaged are dropped, and so will
// be fetched again.
func openStore(cfg Config) (*store, error) {
	s := &store{
		dir:     filepath.Join(cfg.Root, "images"),
		log:     cfg.Log,
		cfg:     cfg,
		images:  map[string]*stored{},
		holds:   map[string]int{},
		checked: map[string]bool{},
		pulls:   map[string]*flight{},
		locks:   map[string]chan struct{}{},

		fetching: map[string]int{},
		pulling:  make(chan struct{}, cmp.Or(cfg.MaxParallelPulls, defaultParallelPulls)),
		serving:  make(chan struct{}, servedAtOnce),
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	s.boot = strings.TrimSpace(string(boot))
	for _, d := range []string{s.tmpDir(), filepath.Join(s.layersDir(), emptyLayer), filepath.Join(s.dir, "blobs", "sha256")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("images: %w", err)
		}
	}
	if err := removeChildren(s.tmpDir()); err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	s.readDropped()
	data, err := os.ReadFile(filepath.Join(s.dir, "index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("images: %w", err)
	}
	var index indexFile
	if err := json.Unmarshal(data, &index); err != nil {
		s.log.Error("the index of images is damaged; images will be fetched again", "error", err)
		return s, nil
	}
	for _, entry := range index.Images {
		img, err := s.load(entry)
		if err != nil {
			s.log.Error("an image is damaged; it will be fetched again", "image", entry.ID, "names", entry.Names, "error", err)
			continue
		}
		s.images[entry.ID] = img
	}
	return s, nil
}

func removeChildren(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// load reads an image of the index.
func (s *store) load(entry indexEntry) (*stored, error) {
	raw, err := os.ReadFile(s.blobPath(entry.ID))
	if err != nil {
		return nil, err
	}
	return s.describe(raw, entry)
}

// describe makes an image of its config, if all its layers are there.
func (s *store) describe(raw []byte, entry indexEntry) (*stored, error) {
	if got := digestOf(raw); got != entry.ID {
		return nil, fmt.Errorf("%w: its config has the digest %s", ErrDamagedImage, got)
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, fmt.Errorf("%w: its config: %w", ErrDamagedImage, err)
	}
	out := &stored{rights: entry.Rights, docs: entry.Docs, image: Image{
		ID:           entry.ID,
		Names:        entry.Names,
		Digests:      entry.Digests,
		User:         c.Config.User,
		Env:          c.Config.Env,
		Entrypoint:   c.Config.Entrypoint,
		Cmd:          c.Config.Cmd,
		WorkingDir:   c.Config.WorkingDir,
		StopSignal:   c.Config.StopSignal,
		Architecture: c.Architecture,
		Created:      c.Created.Time,
	}}
	for v := range c.Config.Volumes {
		out.image.Volumes = append(out.image.Volumes, v)
	}
	slices.Sort(out.image.Volumes)
	for _, d := range c.RootFS.DiffIDs {
		l, err := s.layer(d.String())
		if err != nil {
			return nil, err
		}
		out.image.Size += l.Size
		if id := layerID(l.DiffID); !slices.Contains(out.layers, id) {
			out.layers = append(out.layers, id)
		} else {
			// overlayfs refuses a folder that comes twice. The upper one says
			// all that the lower one does.
			out.layers = append(slices.DeleteFunc(out.layers, func(o string) bool { return o == id }), id)
		}
	}
	slices.Reverse(out.layers)
	if len(out.layers) == 0 {
		out.layers = []string{emptyLayer}
	}
	return out, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// note reads what is known of a layer.
func (s *store) note(id string) (l layerFile, err error) {
	data, err := os.ReadFile(filepath.Join(s.layersDir(), id+".json"))
	if err != nil {
		return l, err
	}
	if err := json.Unmarshal(data, &l); err != nil {
		return l, fmt.Errorf("%w: layer %s: %w", ErrDamagedImage, id, err)
	}
	return l, nil
}

// layer returns what is known of a layer that is complete on disk.
func (s *store) layer(diffID string) (layerFile, error) {
	id := layerID(diffID)
	l, err := s.note(id)
	if err != nil {
		return l, err
	}
	if l.DiffID != diffID {
		return l, fmt.Errorf("%w: layer %s is %s", ErrDamagedImage, diffID, l.DiffID)
	}
	if st, err := os.Stat(filepath.Join(s.layersDir(), id)); err != nil || !st.IsDir() {
		return l, fmt.Errorf("%w: layer %s has no folder", ErrDamagedImage, diffID)
	}
	return l, nil
}

// present says whether a layer is whole. Once in the life of the process it
// looks at the whole tree; that is for pulls, which are meant to repair.
func (s *store) present(diffID string) bool {
	l, err := s.layer(diffID)
	if err != nil {
		return false
	}
	id := layerID(diffID)
	s.mu.Lock()
	checked := s.checked[id]
	trusted := l.Boot == s.boot || s.named(id)
	s.mu.Unlock()
	if checked {
		return true
	}
	if !trusted {
		s.log.Info("a layer may not have reached the disk; it will be fetched again", "layer", diffID)
		return false
	}
	tree, _, err := hashTree(filepath.Join(s.layersDir(), id))
	if err != nil || tree != l.Tree {
		s.log.Error("a layer is damaged; it will be fetched again", "layer", diffID, "error", err)
		return false
	}
	s.mu.Lock()
	s.checked[id] = true
	s.mu.Unlock()
	return true
}

// named says whether an image has a layer. s.mu is held.
func (s *store) named(id string) bool {
	for _, i := range s.images {
		if slices.Contains(i.layers, id) {
			return true
		}
	}
	return false
}

// hashTree hashes what a damaged or touched tree would change, without reading
// the files, and sums what they occupy.
func hashTree(dir string) (hash string, size int64, err error) {
	h := sha256.New()
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return errors.New("no stat")
		}
		size += st.Blocks * 512
		length := st.Size
		if d.IsDir() {
			length = 0 // the filesystem's own business
		}
		link := ""
		if d.Type() == fs.ModeSymlink {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		_, err = fmt.Fprintf(h, "%q %o %d %d %d %d %q\n", strings.TrimPrefix(path, dir), st.Mode, st.Uid, st.Gid, length, st.Rdev, link)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// addLayer unpacks a layer, unless it is there. open returns its tar,
// uncompressed. Whoever comes second waits for the first.
func (s *store) addLayer(ctx context.Context, diffID string, open func() (io.ReadCloser, error)) error {
	unlock, err := s.lockLayer(ctx, diffID)
	if err != nil {
		return err
	}
	defer unlock()
	if s.present(diffID) {
		return nil
	}
	id := layerID(diffID)
	final := filepath.Join(s.layersDir(), id)
	// A damaged one may be in use: running containers keep it.
	if err := s.discard(id); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(s.tmpDir(), "layer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // what fails here is removed at the next start
	tree := filepath.Join(tmp, "d")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	recipe := filepath.Join(tmp, "recipe")
	packs, err := unpackVerified(ctx, tree, recipe, diffID, open)
	if err != nil {
		return fmt.Errorf("layer %s: %w", diffID, err)
	}
	l := layerFile{DiffID: diffID, Boot: s.boot}
	if l.Tree, l.Size, err = hashTree(tree); err != nil {
		return err
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.Rename(tree, final); err != nil {
		return err
	}
	if packs {
		if err := os.Rename(recipe, s.recipePath(id)); err != nil {
			return err
		}
	}
	note := filepath.Join(tmp, "note")
	if err := os.WriteFile(note, data, 0o600); err != nil {
		return err
	}
	if err := os.Rename(note, final+".json"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checked[id], s.dirty = true, true
	s.tell()
	return nil
}

// unpackVerified unpacks a layer and checks that it is the one it says. It
// writes its recipe on the way, and says whether that came to something.
func unpackVerified(ctx context.Context, dir, recipe, diffID string, open func() (io.ReadCloser, error)) (packs bool, err error) {
	r, err := open()
	if err != nil {
		return false, err
	}
	defer r.Close()
	f, err := os.OpenFile(recipe, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return false, err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		return false, err
	}
	h := sha256.New()
	record := &recorder{from: io.TeeReader(r, h), out: bufio.NewWriter(z)}
	if err := unpack(ctx, dir, record, record); err != nil {
		return false, err
	}
	// After the tar's end there is padding, which the digest covers.
	if _, err := io.Copy(io.Discard, record); err != nil {
		return false, err
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != diffID {
		return false, fmt.Errorf("%w: its content has the digest %s", ErrDamagedImage, got)
	}
	if err := errors.Join(record.end(), z.Close(), f.Close()); err != nil {
		if record.broken == nil {
			return false, err
		}
		return false, os.Remove(recipe)
	}
	return true, nil
}

func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(d.Fd())))
}

// discard moves a layer out of the way and removes it, its description first.
func (s *store) discard(id string) error {
	final := filepath.Join(s.layersDir(), id)
	for _, file := range []string{final + ".json", s.recipePath(id)} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	tmp, err := os.MkdirTemp(s.tmpDir(), "gone-")
	if err != nil {
		return err
	}
	if err := os.Rename(final, filepath.Join(tmp, "d")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.mu.Lock()
	delete(s.checked, id)
	s.mu.Unlock()
	return os.RemoveAll(tmp)
}

// lockLayer lets one at a time make a layer.
func (s *store) lockLayer(ctx context.Context, diffID string) (unlock func(), err error) {
	s.mu.Lock()
	lock := s.locks[diffID]
	if lock == nil {
		lock = make(chan struct{}, 1)
		s.locks[diffID] = lock
	}
	s.mu.Unlock()
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hold keeps layers from being collected until release is called.
func (s *store) hold(diffIDs []string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range diffIDs {
		s.holds[layerID(d)]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range diffIDs {
			if id := layerID(d); s.holds[id] > 1 {
				s.holds[id]--
			} else {
				delete(s.holds, id)
			}
		}
	}
}

// add puts an image whose layers are there into the index. A name moves here
// from any other image. If all is as it was, nothing is written.
func (s *store) add(a arrival) (Image, error) {
	id := digestOf(a.config)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.images[id]
	entry := indexEntry{ID: id, Names: slices.Clone(a.names), Digests: slices.Clone(a.digests), Docs: slices.Collect(maps.Keys(a.docs)), Rights: mergeRights(nil, a.rights)}
	if old != nil {
		entry.Names = append(entry.Names, old.image.Names...)
		entry.Digests = append(entry.Digests, old.image.Digests...)
		entry.Docs = append(entry.Docs, old.docs...)
		entry.Rights = mergeRights(old.rights, a.rights)
	}
	entry.Names, entry.Digests, entry.Docs = sortedSet(entry.Names), sortedSet(entry.Digests), sortedSet(entry.Docs)
	fresh := old == nil
	if old == nil {
		if err := os.WriteFile(s.blobPath(id), a.config, 0o600); err != nil {
			return Image{}, err
		}
	}
	for d, raw := range a.docs {
		if old != nil && slices.Contains(old.docs, d) {
			continue
		}
		fresh = true
		if err := os.WriteFile(s.blobPath(d), raw, 0o600); err != nil {
			return Image{}, err
		}
	}
	if s.dirty || fresh {
		if err := syncFS(s.dir); err != nil {
			return Image{}, err
		}
		s.dirty = false
	}
	img, err := s.describe(a.config, entry)
	if err != nil {
		return Image{}, err
	}
	if old != nil && slices.Equal(old.image.Names, entry.Names) && slices.Equal(old.image.Digests, entry.Digests) &&
		slices.Equal(old.docs, entry.Docs) && reflect.DeepEqual(old.rights, entry.Rights) {
		return clone(img.image), nil
	}
	next := map[string]*stored{}
	for oid, o := range s.images {
		if oid == id {
			continue
		}
		kept := *o
		kept.image.Names = without(o.image.Names, a.names...)
		next[oid] = &kept
	}
	next[id] = img
	if err := s.writeIndex(next); err != nil {
		return Image{}, err
	}
	s.images = next
	s.tell()
	return clone(img.image), nil
}

// tell says that there is something new to tell other nodes of.
func (s *store) tell() {
	if s.cfg.Changed != nil {
		s.cfg.Changed()
	}
}

func sortedSet(in []string) []string {
	slices.Sort(in)
	return slices.Compact(in)
}

func without(in []string, remove ...string) []string {
	return slices.DeleteFunc(slices.Clone(in), func(n string) bool { return slices.Contains(remove, n) })
}

func clone(img Image) Image {
	for _, f := range []*[]string{&img.Names, &img.Digests, &img.Env, &img.Entrypoint, &img.Cmd, &img.Volumes} {
		*f = slices.Clone(*f)
	}
	return img
}

func (s *store) writeIndex(images map[string]*stored) error {
	index := indexFile{Version: 1}
	for _, i := range images {
		index.Images = append(index.Images, indexEntry{ID: i.image.ID, Names: i.image.Names, Digests: i.image.Digests, Docs: i.docs, Rights: i.rights})
	}
	slices.SortFunc(index.Images, func(a, b indexEntry) int { return strings.Compare(a.ID, b.ID) })
	data, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		return err
	}
	return writeFileSync(filepath.Join(s.dir, "index.json"), data, 0o600)
}

// list returns all images, sorted by ID.
func (s *store) list() []Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Image, 0, len(s.images))
	for _, i := range s.images {
		img := clone(i.image)
		img.Pinned = s.pinned(img.ID)
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// find returns the image of an ID, a name or a digest, and the name under
// which the image has it, empty for an ID. s.mu is held.
func (s *store) find(ref string) (img *stored, called string) {
	for _, id := range []string{ref, "sha256:" + ref} {
		if i := s.images[id]; i != nil {
			return i, ""
		}
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, ""
	}
	called = normalize(parsed)
	for _, i := range s.images {
		if slices.Contains(i.image.Names, called) || slices.Contains(i.image.Digests, called) {
			return i, called
		}
	}
	return nil, ""
}

func (s *store) get(ref string) (Image, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := s.find(ref)
	if i == nil {
		return Image{}, false
	}
	return clone(i.image), true
}

// use returns an image and its layers' folders, topmost first, and calls
// before while nobody can remove it.
func (s *store) use(ref string, before func(Image)) (Image, []string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, _ := s.find(ref)
	if i == nil {
		return Image{}, nil, fmt.Errorf("%w: %s", ErrImageNotFound, ref)
	}
	img := clone(i.image)
	before(img)
	return img, slices.Clone(i.layers), nil
}

// remove takes a name away, or the whole image if ref is its ID or its last
// name. inUse is asked before an image goes. Its layers are left to collect.
func (s *store) remove(ref string, inUse func(id string) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i, called := s.find(ref)
	if i == nil {
		return fmt.Errorf("%w: %s", ErrImageNotFound, ref)
	}
	kept := *i
	kept.image.Names = without(i.image.Names, called)
	kept.image.Digests = without(i.image.Digests, called)
	next := map[string]*stored{}
	for id, o := range s.images {
		if o != i {
			next[id] = o
		}
	}
	gone := called == "" || len(kept.image.Names) == 0 && (len(i.image.Names) > 0 || len(kept.image.Digests) == 0)
	if gone {
		if err := inUse(i.image.ID); err != nil {
			return err
		}
	} else {
		next[i.image.ID] = &kept
	}
	if err := s.writeIndex(next); err != nil {
		return err
	}
	s.images = next
	s.tell()
	if !gone {
		return nil
	}
	used := map[string]bool{}
	for id, o := range next {
		used[id] = true
		for _, d := range o.docs {
			used[d] = true
		}
	}
	for _, d := range append([]string{i.image.ID}, i.docs...) {
		if used[d] {
			continue
		}
		if err := os.Remove(s.blobPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// collect removes the layers that no image and no pull has.
func (s *store) collect() error {
	entries, err := os.ReadDir(s.layersDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		id := e.Name()
		if !e.IsDir() || id == emptyLayer || strings.HasPrefix(id, ".") {
			continue
		}
		s.mu.Lock()
		used := s.holds[id] > 0 || s.named(id)
		s.mu.Unlock()
		if used {
			continue
		}
		if err := s.discard(id); err != nil {
			return err
		}
	}
	return nil
}

// CollectLayers removes the layers that belong to no image, of pulls that came
// to nothing.
func (e *Engine) CollectLayers() error {
	if err := e.images.collect(); err != nil {
		return fmt.Errorf("remove unused layers: %w", err)
	}
	return nil
}

// Images returns all images, sorted by ID.
func (e *Engine) Images() []Image { return e.images.list() }

// Image finds an image by name, digest or ID.
func (e *Engine) Image(ref string) (Image, bool) { return e.images.get(ref) }

// RemoveImage removes a name, and the image with its last one; by its ID, the
// image with all its names. An image that a container uses is refused:
// ErrImageInUse.
func (e *Engine) RemoveImage(ctx context.Context, ref string) error {
	e.mu.Lock()
	err := e.images.remove(ref, func(id string) error {
		if pod, c, used := e.inUse(id); used {
			return fmt.Errorf("%w: by container %s of pod %s", ErrImageInUse, c, pod)
		}
		if at := e.mounted(id); at != "" {
			return fmt.Errorf("%w: as the volume %s", ErrImageInUse, at)
		}
		return nil
	})
	e.mu.Unlock()
	if err == nil {
		err = e.images.collect()
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	return nil
}
