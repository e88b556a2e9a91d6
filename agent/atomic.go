package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// payloadFile is one file of a volume that the agent writes.
type payloadFile struct {
	Data []byte
	Mode fs.FileMode
	UID  *int64
}

const (
	dataLink = "..data"
	dirMode  = 0o755
)

// writePayload makes dir show exactly these files, all at once to whoever
// reads: they are written into a new folder, to which the link ..data then
// changes over. What users open are links through ..data, so an open folder
// never shows half of an update. The name of the new folder is a digest of the
// content: if that is what ..data names, nothing is written.
func writePayload(dir string, files map[string]payloadFile, fsGroup *int64) (changed bool, err error) {
	for p := range files {
		if err := checkPayloadPath(p); err != nil {
			return false, err
		}
	}
	name := ".." + payloadDigest(files, fsGroup)
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if old == name {
		return false, settle(dir, name, files) // in case a crash came between
	}
	if err := makeDir(dir, dirMode, fsGroup); err != nil {
		return false, err
	}
	next := filepath.Join(dir, name)
	if err := os.RemoveAll(next); err != nil { // left by a crash
		return false, err
	}
	if err := makeDir(next, dirMode, fsGroup); err != nil {
		return false, err
	}
	for p, f := range files {
		if err := writePayloadFile(next, p, f, fsGroup); err != nil {
			return false, err
		}
	}
	if err := swapLink(dir, name, dataLink); err != nil {
		return false, err
	}
	return true, settle(dir, name, files)
}

func writePayloadFile(root, path string, f payloadFile, gid *int64) error {
	for i, c := range path {
		if c == '/' {
			if err := makeDir(filepath.Join(root, path[:i]), dirMode, gid); err != nil {
				return err
			}
		}
	}
	full := filepath.Join(root, path)
	mode := f.Mode.Perm()
	if gid != nil {
		mode |= 0o440
	}
	if err := os.WriteFile(full, f.Data, 0o600); err != nil {
		return err
	}
	if f.UID != nil || gid != nil {
		if err := os.Chown(full, id(f.UID), id(gid)); err != nil {
			return err
		}
	}
	return os.Chmod(full, mode)
}

// settle keeps a link through ..data for each first path element, and of the
// folders of content only the one of that name.
func settle(dir, name string, files map[string]payloadFile) error {
	want := map[string]bool{}
	for p := range files {
		top, _, _ := strings.Cut(p, "/")
		want[top] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		n := e.Name()
		switch {
		case n == dataLink, n == name:
		case strings.HasPrefix(n, ".."):
			old = append(old, n)
		case want[n]:
			delete(want, n)
		default:
			if err := os.Remove(filepath.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	for n := range want {
		if err := os.Symlink(filepath.Join(dataLink, n), filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	for _, n := range old {
		if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
			return err
		}
	}
	return nil
}

// swapLink makes dir/link point to target in one step.
func swapLink(dir, target, link string) error {
	tmp := filepath.Join(dir, link+"_tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, link))
}

func checkPayloadPath(p string) error {
	if p == "" || filepath.IsAbs(p) || !filepath.IsLocal(p) || strings.HasPrefix(p, "..") {
		return fmt.Errorf("invalid path %q: must be relative and stay in its volume", p)
	}
	return nil
}

// payloadDigest changes when anything that readers could see changes.
func payloadDigest(files map[string]payloadFile, gid *int64) string {
	var b bytes.Buffer
	num := func(n int64) { b.Write(binary.AppendVarint(nil, n)) }
	num(int64(id(gid)))
	for _, p := range sortedKeys(files) {
		f := files[p]
		num(int64(len(p)))
		b.WriteString(p)
		num(int64(f.Mode))
		num(int64(id(f.UID)))
		num(int64(len(f.Data)))
		b.Write(f.Data)
	}
	sum := sha256.Sum256(b.Bytes())
	return hex.EncodeToString(sum[:10])
}

// makeDir makes one folder with exactly this mode, whatever the umask, setgid
// for a group if there is one.
func makeDir(dir string, mode fs.FileMode, gid *int64) error {
	if err := os.MkdirAll(dir, mode.Perm()); err != nil {
		return err
	}
	if gid != nil {
		if err := os.Chown(dir, -1, id(gid)); err != nil {
			return err
		}
		mode |= fs.ModeSetgid | 0o050
	}
	return os.Chmod(dir, mode)
}

// id is a user or group for chown, which leaves -1 alone.
func id(p *int64) int {
	if p == nil {
		return -1
	}
	return int(*p)
}

// writeDurably replaces a file by one that is complete after a power loss.
func writeDurably(path string, data []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
