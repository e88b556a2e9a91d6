package runtime

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// maxDocument bounds the JSON documents of an archive.
const maxDocument = 8 << 20

// Import reads the images of a docker-archive or an OCI layout tar, compressed
// or not. The archive is put on the disk first: its parts come in any order.
func (e *Engine) Import(ctx context.Context, r io.Reader) ([]Image, error) {
	out, err := e.images.importTar(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	return out, nil
}

func (s *store) importTar(ctx context.Context, r io.Reader) ([]Image, error) {
	f, err := os.CreateTemp(s.tmpDir(), "import-")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // it goes with the descriptor
		return nil, err
	}
	plain, err := decompress(io.NopCloser(r))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	if _, err := io.Copy(f, readerWithContext{ctx, plain}); err != nil {
		return nil, registryError(ctx, err)
	}
	a, err := openArchive(f)
	if err != nil {
		return nil, err
	}
	var images []archived
	switch {
	case a.has("manifest.json"):
		images, err = a.docker()
	case a.has("index.json"):
		images, err = a.oci()
	default:
		err = fmt.Errorf("%w: neither manifest.json nor index.json is in the archive", ErrDamagedImage)
	}
	if err != nil {
		return nil, err
	}
	var out []Image
	for _, i := range images {
		img, err := s.fetch(ctx, arrival{config: i.config, names: i.names, digests: i.digests, docs: i.docs}, i.layers, nil)
		if err != nil {
			return out, err
		}
		out = append(out, img)
	}
	return out, nil
}

type readerWithContext struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWithContext) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// archive is a tar with its members' places.
type archive struct {
	file    *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	link         string // another member's name
}

// archived is an image in an archive.
type archived struct {
	config         []byte
	layers         []layerSource
	names, digests []string
	docs           map[string][]byte
}

func openArchive(f *os.File) (*archive, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	a := &archive{file: f, members: map[string]member{}}
	t := tar.NewReader(f)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: not a tar archive: %w", ErrDamagedImage, err)
		}
		key := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			// The reader has consumed the header and nothing more.
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.members[key] = member{offset: at, size: h.Size}
		case tar.TypeSymlink:
			a.members[key] = member{link: path.Join(path.Dir(key), h.Linkname)}
		case tar.TypeLink:
			a.members[key] = member{link: path.Clean(h.Linkname)}
		}
	}
}

func (a *archive) has(key string) bool {
	_, ok := a.members[key]
	return ok
}

// open returns a member; older archives link one layer to another.
func (a *archive) open(key string) (*io.SectionReader, error) {
	key = path.Clean(key)
	for range 8 {
		m, ok := a.members[key]
		if !ok {
			return nil, fmt.Errorf("%w: %s is not in the archive", ErrDamagedImage, key)
		}
		if m.link == "" {
			return io.NewSectionReader(a.file, m.offset, m.size), nil
		}
		key = m.link
	}
	return nil, fmt.Errorf("%w: %s in the archive links to itself", ErrDamagedImage, key)
}

func (a *archive) document(key string) ([]byte, error) {
	r, err := a.open(key)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxDocument {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrDamagedImage, key, r.Size())
	}
	return io.ReadAll(r)
}

func (a *archive) layer(key string) (layerSource, error) {
	r, err := a.open(key)
	if err != nil {
		return layerSource{}, err
	}
	return layerSource{size: r.Size(), open: []func(context.Context) (io.ReadCloser, error){func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(r, 0, r.Size())), nil
	}}}, nil
}

// docker reads what "docker save" writes.
func (a *archive) docker() ([]archived, error) {
	data, err := a.document("manifest.json")
	if err != nil {
		return nil, err
	}
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", ErrDamagedImage, err)
	}
	var out []archived
	for _, m := range manifest {
		var i archived
		if i.config, err = a.document(m.Config); err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			src, err := a.layer(l)
			if err != nil {
				return nil, err
			}
			i.layers = append(i.layers, src)
		}
		for _, tag := range m.RepoTags {
			ref, err := name.ParseReference(tag)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrInvalidImageName, err)
			}
			i.names = append(i.names, normalize(ref))
		}
		out = append(out, i)
	}
	return out, nil
}

// The annotations by which an OCI layout names its images, the fuller first.
var nameAnnotations = []string{"io.containerd.image.name", "org.opencontainers.image.ref.name"}

// oci reads an OCI layout, of each index the variant for this host.
func (a *archive) oci() ([]archived, error) {
	data, err := a.document("index.json")
	if err != nil {
		return nil, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("%w: index.json: %w", ErrDamagedImage, err)
	}
	var out []archived
	for _, d := range index.Manifests {
		i, err := a.ociImage(d, 0)
		if err != nil {
			return nil, err
		}
		for _, key := range nameAnnotations {
			// A bare tag is a name only together with the layout's own, which
			// is not in it.
			if n := d.Annotations[key]; strings.ContainsAny(n, "/:") {
				ref, err := name.ParseReference(n)
				if err != nil {
					return nil, fmt.Errorf("%w: %w", ErrInvalidImageName, err)
				}
				i.names = []string{normalize(ref)}
				i.digests = []string{repository(ref) + "@" + d.Digest.String()}
				break
			}
		}
		out = append(out, i)
	}
	return out, nil
}

func (a *archive) blob(d v1.Descriptor) ([]byte, error) {
	data, err := a.document(blobMember(d.Digest))
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d.Digest.String() {
		return nil, fmt.Errorf("%w: blob %s has the digest %s", ErrDamagedImage, d.Digest, got)
	}
	return data, nil
}

func blobMember(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

func (a *archive) ociImage(d v1.Descriptor, depth int) (out archived, err error) {
	data, err := a.blob(d)
	if err != nil {
		return out, err
	}
	if d.MediaType == types.OCIImageIndex || d.MediaType == types.DockerManifestList {
		var index v1.IndexManifest
		if err := json.Unmarshal(data, &index); err != nil {
			return out, fmt.Errorf("%w: index %s: %w", ErrDamagedImage, d.Digest, err)
		}
		child, err := pickPlatform(index, v1.Platform{OS: "linux", Architecture: runtime.GOARCH})
		if err != nil || depth > 4 {
			return out, errors.Join(err, fmt.Errorf("%w: index %s", ErrDamagedImage, d.Digest))
		}
		if out, err = a.ociImage(child, depth+1); err == nil {
			out.docs[d.Digest.String()] = data
		}
		return out, err
	}
	out.docs = map[string][]byte{d.Digest.String(): data}
	var m v1.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return out, fmt.Errorf("%w: manifest %s: %w", ErrDamagedImage, d.Digest, err)
	}
	if out.config, err = a.blob(m.Config); err != nil {
		return out, err
	}
	for _, l := range m.Layers {
		src, err := a.layer(blobMember(l.Digest))
		if err != nil {
			return out, err
		}
		out.layers = append(out.layers, src)
	}
	return out, nil
}

// pickPlatform chooses a platform's variant of an index.
func pickPlatform(index v1.IndexManifest, want v1.Platform) (v1.Descriptor, error) {
	for _, d := range index.Manifests {
		if d.Platform != nil && d.Platform.Satisfies(want) {
			return d, nil
		}
	}
	if len(index.Manifests) == 1 && index.Manifests[0].Platform == nil {
		return index.Manifests[0], nil
	}
	return v1.Descriptor{}, fmt.Errorf("%w: it has no variant for %s", ErrImageNotFound, want.String())
}
