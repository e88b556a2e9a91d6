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
func mountRoot(dir string, layers []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	for _, d := range []string{proto.UpperDir, proto.WorkDir, proto.RootFSDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
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
	err := unix.Mount("overlay", target, "overlay", 0, options+",volatile")
	if errors.Is(err, unix.EINVAL) { // a kernel before 5.10
		err = unix.Mount("overlay", target, "overlay", 0, options)
	}
	if err != nil {
		return fmt.Errorf("mount the root filesystem of %d layers at %s: %w", len(layers), target, err)
	}
	return nil
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
