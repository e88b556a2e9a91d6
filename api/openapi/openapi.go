// Package openapi owns the OpenAPI documents of the built-in kinds, which
// kubectl reads to explain, to validate and to patch. They are made ahead of
// time from the published Go types and the table of api/kinds.
//
// What they say is for the most part the same: the descriptions of a few hundred
// types, once for each group and version that uses them, in two versions of
// OpenAPI and as JSON and protobuf. So each text is one file of folder spec,
// compressed with zstd, with texts that say the same before it as zstd's
// dictionary:
//
//	v2.json
//	├── v3/api/v1.json ── v3 of all other groups, JSON
//	└── v3/api/v1.pb ──── v3 of all other groups, and v2, protobuf
//
// That is 0.4 MB; with gzip, each by itself, it was 1.4. To read a text, those on
// the way to it are unpacked too, at most 2.9 MB, and forgotten: it takes some
// milliseconds, and nothing is on the heap while nobody reads. What names a
// version of a document, its hash, is in the table of documents and not made of the
// files: one file says different things with different dictionaries.
//
// What is served is compressed with gzip for whoever asks, which takes longer
// than unpacking, and is found again until the next collection of garbage: many
// clients that ask at once cost as much as one, and later none is left.
//
// The package runs nothing. After a change to the table of kinds or to a version
// of Kubernetes' modules (in tools/openapi/go.mod too), make the files and the
// table anew, at the root of the project:
//
//	go generate ./api/openapi
package openapi

//go:generate go -C ../../tools/openapi generate .

import (
	"bytes"
	"compress/gzip"
	"embed"
	"fmt"
	"slices"
	"strings"
	"sync"
	"weak"

	"github.com/klauspost/compress/zstd"
)

// Document is one document in its forms. It must not be changed.
type Document struct {
	// Path is where it is found: "v2" has all groups, as version 2.0 (swagger);
	// "v3/api/v1" and "v3/apis/apps/v1" have one, as version 3.0.
	Path string
	// Hash names what it says: SHA-256 of its JSON, in upper-case hexadecimal.
	Hash string
	JSON *Text
	// Protobuf is the same as gnostic's message, which client-go asks for. There
	// is none (nil) of the kinds of volume snapshots, whose group clients take for
	// one of custom resources.
	Protobuf *Text
}

// All is the documents of the built-in kinds, in the order of their paths.
func All() []Document { return documents[:] }

// Find is the document of a path, nil if there is none.
func Find(path string) *Document {
	i, ok := slices.BinarySearchFunc(documents[:], path, func(d Document, path string) int { return strings.Compare(d.Path, path) })
	if !ok {
		return nil
	}
	return &documents[i]
}

// Merge is the schema by which structured-merge-diff knows the fields of all
// types that the kinds are made of: YAML.
func Merge() *Text { return &merge }

// Text is what a document says in one form.
type Text struct {
	file string // below spec
	size int    // in bytes, of what it says
	on   *Text  // it and what it is on are the dictionary; nil: there is none

	made func() ([]byte, error) // makes a text that is not in a file

	mu     sync.Mutex // held while it is compressed, which is done once for all who wait
	zipped weak.Pointer[[]byte]
}

// Made is a text that a function makes, each time anew.
func Made(text func() ([]byte, error)) *Text { return &Text{made: text} }

// Read returns the text, which belongs to the caller.
func (t *Text) Read() ([]byte, error) {
	if t.made != nil {
		return t.made()
	}
	all, err := t.unpack(0)
	if err != nil {
		return nil, err
	}
	return all[len(all)-t.size:], nil
}

// zipLevel is that of gzip: a tenth larger than at the highest, in half the time.
const zipLevel = 4

// Zipped returns the text compressed with gzip, which must not be changed.
func (t *Text) Zipped() ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if b := t.zipped.Value(); b != nil {
		return *b, nil
	}
	text, err := t.Read()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, zipLevel)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	b := out.Bytes()
	t.zipped = weak.Make(&b)
	return b, nil
}

//go:embed spec
var spec embed.FS

// dictionary is the number of the dictionary in each file that has one.
const dictionary = 1

// unpack returns what the text is on and behind it the text, with room for more
// bytes behind that: all of it is allocated once.
func (t *Text) unpack(more int) ([]byte, error) {
	var before []byte
	var err error
	if t.on == nil {
		before = make([]byte, 0, t.size+more)
	} else if before, err = t.on.unpack(t.size + more); err != nil {
		return nil, err
	}
	packed, err := spec.ReadFile("spec/" + t.file)
	if err != nil {
		return nil, err
	}
	r, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderDictRaw(dictionary, before))
	if err != nil {
		return nil, fmt.Errorf("unpack the OpenAPI document %s: %w", t.file, err)
	}
	defer r.Close()
	all, err := r.DecodeAll(packed, before)
	if err != nil {
		return nil, fmt.Errorf("unpack the OpenAPI document %s: %w", t.file, err)
	}
	if len(all) != len(before)+t.size {
		return nil, fmt.Errorf("the OpenAPI document %s has %d bytes, not %d", t.file, len(all)-len(before), t.size)
	}
	return all, nil
}
