package runtime

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"golang.org/x/sys/unix"
)

// Whiteouts, as a layer's tar says that something below is gone.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // of aufs; nothing to us, but for the next
	whiteoutOpaque = ".wh..wh..opq"
)

// xattrPrefix is how a tar's PAX records name extended attributes.
const xattrPrefix = "SCHILY.xattr."

// overlayXattr are overlayfs' own: a layer must not forge them.
const overlayXattr = "trusted.overlay."

// unpacker writes the entries of one layer below root. Every path is resolved
// by the kernel inside root, as if root were "/": a symlink of the layer leads
// nowhere else. An entry whose name itself climbs out is refused, because no
// honest tool writes one.
type unpacker struct {
	root *os.File
	// parent is the folder of the last entry, for most entries share it with
	// the one before. It is forgotten when something is removed.
	parent     *os.File
	parentPath string
	dirs       []dirTime // set last: writing into a folder changes its time
	record     *recorder // of the layer's recipe; nil: none is wanted
}

type dirTime struct {
	path string
	at   time.Time
}

// unpack writes a layer's tar into an empty folder, in overlayfs' form. record,
// if there is one, reads what r does.
func unpack(ctx context.Context, dir string, r io.Reader, record *recorder) error {
	root, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	u := &unpacker{root: root, record: record}
	defer u.forget()
	t := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: read the layer's tar: %w", ErrDamagedImage, err)
		}
		if err := u.entry(h, t); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	return u.setTimes()
}

// inside cleans a name of a tar; it is relative to the root, "." for the root.
func inside(name string) (string, error) {
	p := path.Clean(strings.TrimLeft(name, "/"))
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", fmt.Errorf("%w: it climbs out of the image's root", ErrUnsafeImage)
	}
	if strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("%w: its name holds a zero byte", ErrUnsafeImage)
	}
	return p, nil
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := inside(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the image's root is not a folder", ErrUnsafeImage)
		}
		root, err := pathrs.Reopen(u.root, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		return u.finishDir(root, ".", h)
	}
	dir, base := path.Split(name)
	parent, err := u.open(path.Clean(dir))
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, base)
	}
	if err := u.clear(parent, base, h.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	// Clearing may have closed it.
	if parent, err = u.open(path.Clean(dir)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return u.file(parent, base, name, h, content)
	case tar.TypeDir:
		return u.dir(parent, base, name, h)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, int(parent.Fd()), base); err != nil {
			return os.NewSyscallError("symlinkat", err)
		}
		return u.finishNode(parent, base, h, false)
	case tar.TypeLink:
		return u.link(parent, base, h)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if kind == unix.S_IFCHR && dev == 0 {
			return fmt.Errorf("%w: a character device 0:0 is overlayfs' own sign", ErrUnsafeImage)
		}
		if err := unix.Mknodat(int(parent.Fd()), base, kind|0o600, int(dev)); err != nil {
			return os.NewSyscallError("mknodat", err)
		}
		return u.finishNode(parent, base, h, true)
	}
	return fmt.Errorf("%w: type %q is not known", ErrDamagedImage, h.Typeflag)
}

// open returns a folder, made if need be.
func (u *unpacker) open(dir string) (*os.File, error) {
	if u.parent != nil && u.parentPath == dir {
		return u.parent, nil
	}
	u.forget()
	f, err := pathrs.MkdirAllHandle(u.root, dir, 0o755)
	if err != nil {
		return nil, err
	}
	u.parent, u.parentPath = f, dir
	return f, nil
}

func (u *unpacker) forget() {
	if u.parent != nil {
		u.parent.Close()
		u.parent = nil
	}
}

// clear makes room for an entry: a later one replaces an earlier one, but a
// folder stays a folder.
func (u *unpacker) clear(parent *os.File, base string, dir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("fstatat", err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && dir {
		return nil
	}
	u.record.spoil("an entry is replaced by a later one")
	// RemoveAll follows no symlink below the folder that it is given.
	if err := os.RemoveAll(at(parent, base)); err != nil {
		return err
	}
	u.forget()
	return nil
}

// at is a path to an entry of an open folder, for calls without an *at form.
func at(dir *os.File, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + base
}

func (u *unpacker) whiteout(parent *os.File, base string) error {
	if base == whiteoutOpaque {
		err := unix.Setxattr(at(parent, "."), overlayXattr+"opaque", []byte("y"), 0)
		return os.NewSyscallError("setxattr", err)
	}
	if strings.HasPrefix(base, whiteoutMeta) {
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: it removes what has no name", ErrUnsafeImage)
	}
	err := unix.Mknodat(int(parent.Fd()), name, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil // this layer also brings a new one
	}
	return os.NewSyscallError("mknodat", err)
}

func (u *unpacker) file(parent *os.File, base, name string, h *tar.Header, content io.Reader) error {
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	copied := u.record.file(name, h.Size)
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	copied()
	if err := finish(f, h); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return setTime(parent, base, h.ModTime)
}

func (u *unpacker) dir(parent *os.File, base, name string, h *tar.Header) error {
	if err := unix.Mkdirat(int(parent.Fd()), base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return os.NewSyscallError("mkdirat", err)
	}
	fd, err := unix.Openat(int(parent.Fd()), base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	return u.finishDir(os.NewFile(uintptr(fd), base), name, h)
}

func (u *unpacker) finishDir(f *os.File, name string, h *tar.Header) error {
	defer f.Close()
	u.dirs = append(u.dirs, dirTime{name, h.ModTime})
	return finish(f, h)
}

func (u *unpacker) link(parent *os.File, base string, h *tar.Header) error {
	target, err := inside(h.Linkname)
	if err != nil {
		return fmt.Errorf("link to %q: %w", h.Linkname, err)
	}
	dir, name := path.Split(target)
	if name == "" || name == "." {
		return fmt.Errorf("%w: a link to the image's root", ErrUnsafeImage)
	}
	from, err := pathrs.OpenatInRoot(u.root, path.Clean(dir))
	if err != nil {
		return fmt.Errorf("link to %q: %w", h.Linkname, err)
	}
	defer from.Close()
	// Without AT_SYMLINK_FOLLOW a link to a symlink is a link to that.
	if err := unix.Linkat(int(from.Fd()), name, int(parent.Fd()), base, 0); err != nil {
		return fmt.Errorf("link to %q: %w", h.Linkname, err)
	}
	return nil
}

// finish sets owner, mode and attributes of an open file or folder. The owner
// comes first: changing it takes the set-user-ID bit and capabilities away.
func finish(f *os.File, h *tar.Header) error {
	if err := f.Chown(h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), uint32(h.Mode)&0o7777); err != nil {
		return os.NewSyscallError("fchmod", err)
	}
	return eachXattr(h, func(name string, value []byte) error {
		return unix.Fsetxattr(int(f.Fd()), name, value, 0)
	})
}

// finishNode is finish for what cannot be opened: symlinks and devices.
func (u *unpacker) finishNode(parent *os.File, base string, h *tar.Header, mode bool) error {
	if err := unix.Fchownat(int(parent.Fd()), base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return os.NewSyscallError("fchownat", err)
	}
	if mode {
		// It was made just now and is no symlink.
		if err := unix.Fchmodat(int(parent.Fd()), base, uint32(h.Mode)&0o7777, 0); err != nil {
			return os.NewSyscallError("fchmodat", err)
		}
	}
	err := eachXattr(h, func(name string, value []byte) error {
		return unix.Lsetxattr(at(parent, base), name, value, 0)
	})
	if err != nil {
		return err
	}
	return setTime(parent, base, h.ModTime)
}

func eachXattr(h *tar.Header, set func(name string, value []byte) error) error {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, xattrPrefix)
		if !ok || strings.HasPrefix(name, overlayXattr) {
			continue
		}
		err := set(name, []byte(value))
		// A filesystem without a kind of attribute, or a symlink that cannot
		// have one, is no reason to refuse an image.
		if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

func setTime(parent *os.File, base string, t time.Time) error {
	err := unix.UtimesNanoAt(int(parent.Fd()), base, timespec(t), unix.AT_SYMLINK_NOFOLLOW)
	return os.NewSyscallError("utimensat", err)
}

func timespec(t time.Time) []unix.Timespec {
	ts, err := unix.TimeToTimespec(t)
	if err != nil { // a year that the kernel cannot have
		ts = unix.Timespec{}
	}
	return []unix.Timespec{ts, ts}
}

// setTimes sets the folders' times, the inner before the outer.
func (u *unpacker) setTimes() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		f, err := pathrs.OpenatInRoot(u.root, u.dirs[i].path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue // a later entry replaced it
		}
		if err != nil {
			return err
		}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), timespec(u.dirs[i].at), 0)
		f.Close()
		if err != nil {
			return os.NewSyscallError("utimensat", err)
		}
	}
	return nil
}
