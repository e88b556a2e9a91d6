package runtime

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func unpackFiles(t testing.TB, dir string, files []file) error {
	t.Helper()
	data, err := layerTar(files)
	if err != nil {
		t.Fatal(err)
	}
	return unpack(t.Context(), dir, bytes.NewReader(data), nil)
}

func TestUnpack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	dir := t.TempDir()
	when := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	link := func(kind byte, to string) tar.Header { return tar.Header{Typeflag: kind, Linkname: to, ModTime: when} }
	err := unpackFiles(t, dir, []file{
		{name: "./", mode: 0o755, head: tar.Header{ModTime: when}},
		{name: "dir/", mode: 0o1777, head: tar.Header{ModTime: when, Uid: 5, Gid: 6}},
		{name: "/dir/file", mode: 0o4755, data: []byte("content"), head: tar.Header{Uid: 7, Gid: 8, ModTime: when,
			PAXRecords: map[string]string{xattrPrefix + "user.note": "value", xattrPrefix + overlayXattr + "redirect": "/etc"}}},
		{name: "dir/hard", head: link(tar.TypeLink, "dir/file")},
		{name: "dir/soft", head: link(tar.TypeSymlink, "/etc/passwd")},
		{name: "dir/softhard", head: link(tar.TypeLink, "dir/soft")},
		{name: "implied/parent/file", mode: 0o600},
		{name: "abs", head: link(tar.TypeSymlink, "/dir")},
		{name: "abs/through", mode: 0o644, data: []byte("inside")},
		{name: "up", head: link(tar.TypeSymlink, "../../../../..")},
		{name: "up/here", mode: 0o644},
		{name: "a/../b/./c", mode: 0o644},
		{name: "null", mode: 0o666, head: tar.Header{Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		{name: "fifo", mode: 0o620, head: tar.Header{Typeflag: tar.TypeFifo}},
		{name: "dir/.wh.gone", mode: 0},
		{name: "implied/.wh..wh..opq", mode: 0},
		{name: "dir/.wh..wh.plnk", mode: 0},
		{name: "twice", mode: 0o644, data: []byte("first")},
		{name: "twice", mode: 0o644, data: []byte("second")},
		{name: "becomes/", mode: 0o755},
		{name: "becomes/x", mode: 0o644},
		{name: "becomes", mode: 0o644, data: []byte("a file")},
		{name: "both", mode: 0o644, data: []byte("new")},
		{name: ".wh.both", mode: 0},
	})
	if err != nil {
		t.Fatal(err)
	}
	stat := func(name string) *syscall.Stat_t {
		t.Helper()
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t)
	}
	for name, want := range map[string]uint32{
		"dir": unix.S_IFDIR | 0o1777, "dir/file": unix.S_IFREG | 0o4755, "dir/soft": unix.S_IFLNK | 0o777, "dir/softhard": unix.S_IFLNK | 0o777,
		"dir/through": unix.S_IFREG | 0o644, "here": unix.S_IFREG | 0o644, "b/c": unix.S_IFREG | 0o644, "implied/parent": unix.S_IFDIR | 0o755,
		"null": unix.S_IFCHR | 0o666, "fifo": unix.S_IFIFO | 0o620, "dir/gone": unix.S_IFCHR, "becomes": unix.S_IFREG | 0o644,
	} {
		if got := stat(name).Mode; got != want {
			t.Errorf("%s has mode %o, not %o", name, got, want)
		}
	}
	if st := stat("dir/file"); st.Uid != 7 || st.Gid != 8 || st.Ino != stat("dir/hard").Ino || st.Mtim.Sec != when.Unix() {
		t.Errorf("dir/file: %+v", st)
	}
	if st := stat("dir"); st.Uid != 5 || st.Mtim.Sec != when.Unix() {
		t.Errorf("dir: %+v", st)
	}
	if st := stat("dir/gone"); st.Rdev != 0 {
		t.Errorf("whiteout: device %d", st.Rdev)
	}
	for name, want := range map[string]string{"dir/through": "inside", "twice": "second", "becomes": "a file", "both": "new"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	attr := func(name, key string) string {
		b := make([]byte, 64)
		n, err := unix.Lgetxattr(filepath.Join(dir, name), key, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	if got := attr("implied", overlayXattr+"opaque"); got != "y" {
		t.Errorf("opaque: %q", got)
	}
	if got := attr("dir/file", "user.note"); got != "value" && got != unix.ENOTSUP.Error() {
		t.Errorf("attribute: %q", got)
	}
	if got := attr("dir/file", overlayXattr+"redirect"); got == "/etc" {
		t.Error("a layer forged overlayfs' own attribute")
	}
	if _, err := os.Lstat(filepath.Join(dir, "dir/.wh..wh.plnk")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another tool's sign was unpacked: %v", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	for _, files := range [][]file{
		{{name: "../evil", mode: 0o644}},
		{{name: "a/../../evil", mode: 0o644}},
		{{name: "/../evil", mode: 0o644}},
		{{name: "..", mode: 0o755, head: tar.Header{Typeflag: tar.TypeDir}}},
		{{name: "evil", head: tar.Header{Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}}},
		{{name: "evil", head: tar.Header{Typeflag: tar.TypeLink, Linkname: "."}}},
		{{name: "evil", mode: 0o644, head: tar.Header{Typeflag: tar.TypeChar}}},
		{{name: ".wh...", mode: 0o644}},
		{{name: ".wh.", mode: 0o644}},
		{{name: ".", mode: 0o644, head: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc"}}},
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		err := unpackFiles(t, dir, files)
		if !errors.Is(err, ErrUnsafeImage) || !strings.Contains(err.Error(), files[0].name) {
			t.Errorf("%q -> %q: %v", files[0].name, files[0].head.Linkname, err)
		}
		if left, err := os.ReadDir(parent); err != nil || len(left) != 1 {
			t.Errorf("%q wrote outside: %v %v", files[0].name, left, err)
		}
	}
	// Through a symlink, and replacing one, everything stays inside.
	parent := t.TempDir()
	dir := filepath.Join(parent, "root")
	outside := filepath.Join(parent, "outside")
	for _, d := range []string{dir, outside} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := unpackFiles(t, dir, []file{
		{name: "out", head: tar.Header{Typeflag: tar.TypeSymlink, Linkname: outside}},
		{name: "self", head: tar.Header{Typeflag: tar.TypeSymlink, Linkname: outside + "/made"}},
		{name: "self", mode: 0o644, data: []byte("replaced")},
		{name: "out/", mode: 0o755},
		{name: "out/file", mode: 0o644},
	})
	if left, lerr := os.ReadDir(outside); lerr != nil || len(left) > 0 {
		t.Errorf("outside holds %v, %v (%v)", left, lerr, err)
	}
	if err != nil {
		t.Error(err)
	}
}

// FuzzUnpack feeds anything to the unpacker: whatever it does, it does below
// its root.
func FuzzUnpack(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("unpacking layers needs root")
	}
	for _, files := range [][]file{
		{{name: "a/b", mode: 0o644, data: []byte("x")}},
		{{name: "l", head: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/../.."}}, {name: "l/x", mode: 0o644}},
		{{name: "../x", mode: 0o644}, {name: ".wh.x", mode: 0}},
	} {
		data, err := layerTar(files)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "1/2/3/root")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		err := unpack(t.Context(), dir, bytes.NewReader(data), nil)
		for d := filepath.Dir(dir); d != filepath.Dir(parent); d = filepath.Dir(d) {
			if left, rerr := os.ReadDir(d); rerr != nil || len(left) != 1 {
				t.Fatalf("%s holds %v, %v (%v)", d, left, rerr, err)
			}
		}
	})
}
