package runtime

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestPackAgain: the tar of a layer comes back byte for byte, whatever wrote it.
func TestPackAgain(t *testing.T) {
	s := newStore(t, t.TempDir())
	long := bytes.Repeat([]byte("a name that does not fit into a header/"), 8)
	long = append(long, "end"...)
	write := func(format tar.Format, after []byte, headers ...tar.Header) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			h.Format = format
			body := bytes.Repeat([]byte("x"), int(h.Size))
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(body); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return append(b.Bytes(), after...)
	}
	usual := []tar.Header{
		{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "dir/one", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1},
		{Name: "./dir/block", Typeflag: tar.TypeReg, Mode: 0o600, Size: 512},
		{Name: "/dir/large", Typeflag: tar.TypeReg, Mode: 0o600, Size: 200_000},
		{Name: "dir/empty", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "dir/.wh.gone", Typeflag: tar.TypeReg, Mode: 0o600},
		{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "dir"},
		{Name: "link/through", Typeflag: tar.TypeReg, Mode: 0o644, Size: 700},
		{Name: "hard", Typeflag: tar.TypeLink, Linkname: "dir/one"},
		{Name: "fifo", Typeflag: tar.TypeFifo},
	}
	for what, c := range map[string]struct {
		tar   []byte
		packs bool
	}{
		"usual":             {write(tar.FormatUSTAR, nil, usual...), true},
		"PAX":               {write(tar.FormatPAX, nil, append(usual, tar.Header{Name: string(long), Typeflag: tar.TypeReg, Size: 5, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}})...), true},
		"GNU":               {write(tar.FormatGNU, nil, append(usual, tar.Header{Name: string(long), Typeflag: tar.TypeReg, Size: 5})...), true},
		"padded at the end": {write(tar.FormatUSTAR, make([]byte, 10240), usual...), true},
		"garbage after":     {write(tar.FormatUSTAR, []byte("whatever"), usual...), true},
		"replaced":          {write(tar.FormatUSTAR, nil, append(usual, tar.Header{Name: "dir/one", Typeflag: tar.TypeReg, Size: 9})...), false},
		"nothing":           {write(tar.FormatUSTAR, nil), true},
	} {
		sum := sha256.Sum256(c.tar)
		id := "sha256:" + hex.EncodeToString(sum[:])
		if err := s.addLayer(t.Context(), id, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c.tar)), nil }); err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		var got bytes.Buffer
		err := s.pack(t.Context(), id, &got)
		if !c.packs {
			if !errors.Is(err, errNoRecipe) || s.hasLayer(id) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(got.Bytes(), c.tar) {
			t.Errorf("%s: %d bytes instead of %d, %v", what, got.Len(), len(c.tar), err)
		}
		if info, err := os.Stat(s.recipePath(layerID(id))); err != nil || info.Size() > 2000 {
			t.Errorf("%s: its recipe has %d bytes, %v", what, info.Size(), err)
		}
		if err := s.discard(layerID(id)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(s.recipePath(layerID(id))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the recipe outlives its layer: %v", what, err)
		}
	}
}

// FuzzRecipe: a recipe that is damaged leads out of its layer never.
func FuzzRecipe(f *testing.F) {
	dir := f.TempDir()
	inside := filepath.Join(dir, "layer")
	for path, text := range map[string]string{filepath.Join(dir, "secret"): "SECRET", filepath.Join(inside, "file"): "hello"} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink("../secret", filepath.Join(inside, "out")); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x00\x03abc\x01\x04file\x05\x02"))
	f.Add([]byte("\x01\x03out\x06\x02"))
	f.Add([]byte("\x01\x09../secret\x06\x02"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root, err := os.Open(inside)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		var out bytes.Buffer
		_ = cook(t.Context(), root, bufio.NewReader(bytes.NewReader(data)), &out) // it may fail as it likes
		if bytes.Contains(out.Bytes(), []byte("SECRET")) && !bytes.Contains(data, []byte("SECRET")) {
			t.Fatal("what lies outside was read")
		}
	})
}
