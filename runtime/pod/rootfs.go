//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

// mountRoot mounts a container's root filesystem at dir/rootfs. The layers are
// relative to the working directory, because the kernel takes one page of
// options and an image may have 127 layers.
//
// No other user of the host gets into dir: there are set-user-ID programs in it,
// and what the containers write.
func mountRoot(dir string, layers []string, m mapping) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	layers, done, err := m.lower(layers)
	defer done()
	if err != nil {
		return err
	}
	for _, d := range []string{proto.UpperDir, proto.WorkDir, proto.RootFSDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	// The pod's root owns what is its own; a container's first process goes
	// through dir as that.
	for _, d := range []string{dir, filepath.Join(dir, proto.UpperDir), filepath.Join(dir, proto.WorkDir)} {
		if err := os.Chown(d, m.root, m.root); err != nil {
			return err
		}
	}
	options := overlayOptions(layers, filepath.Join(dir, proto.UpperDir), filepath.Join(dir, proto.WorkDir))
	target := filepath.Join(dir, proto.RootFSDir)
	if len(options)+len(",volatile") >= os.Getpagesize() {
		return fmt.Errorf("mount the root filesystem: %d layers are too many", len(layers))
	}
	// The upper layer is never used again after a crash, so it need not be
	// synced: a container's root does not outlive it.
	err = unix.Mount("overlay", target, "overlay", 0, options+",volatile")
	if errors.Is(err, unix.EINVAL) { // a kernel before 5.10
		err = unix.Mount("overlay", target, "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount the root filesystem of %d layers at %s: %w", len(layers), target, err)
	}
	return nil
}

// mapping is how a pod with users of its own sees files: root is who owns for it
// what root owns in its image. The zero value changes nothing.
type mapping struct {
	users *os.File // the user namespace
	root  int
	dir   string // where layers are mounted for a moment
}

// lower makes the layers show their files with the pod's ids. done takes away
// what overlayfs, which holds mounts of its own, needs no longer.
func (m mapping) lower(layers []string) (mapped []string, done func(), err error) {
	if m.users == nil {
		return layers, func() {}, nil
	}
	var made []string
	done = func() {
		for _, l := range made {
			_ = unix.Unmount(l, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			_ = os.Remove(l) // an empty folder, on a tmpfs that goes with the pod
		}
	}
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return nil, done, err
	}
	for _, l := range layers {
		target, err := os.MkdirTemp(m.dir, "")
		if err == nil {
			made = append(made, target)
			err = mountMapped(l, target, m.users)
		}
		if err != nil {
			return nil, done, fmt.Errorf("map the ids of layer %s: %w (needs Linux 5.19, and a filesystem that can)", l, err)
		}
	}
	return made, done, nil
}

// mountMapped binds source to target, with the ids of a user namespace.
func mountMapped(source, target string, users *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return os.NewSyscallError("mount_setattr", err)
	}
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

var overlayEscaper = strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)

func overlayOptions(layers []string, upper, work string) string {
	var b strings.Builder
	b.WriteString("lowerdir=")
	for i, l := range layers {
		if i > 0 {
			b.WriteByte(':')
		}
		b.WriteString(overlayEscaper.Replace(l))
	}
	fmt.Fprintf(&b, ",upperdir=%s,workdir=%s", overlayEscaper.Replace(upper), overlayEscaper.Replace(work))
	return b.String()
}

// unmountRoot undoes mountRoot. Whatever is in the way goes when it is let go
// of; not being mounted is as good.
func unmountRoot(dir string) {
	_ = unix.Unmount(filepath.Join(dir, proto.RootFSDir), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}
