package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// imageMount is a note in RunDir/image-volumes: an image is shown somewhere. It
// is written before the mount, and counts for nothing when that is gone.
type imageMount struct{ Image, Target string }

const imageMountsFolder = "image-volumes"

func (e *Engine) imageMountsDir() string { return filepath.Join(e.cfg.RunDir, imageMountsFolder) }

// MountImage shows the content of an image, read-only, in a folder, which is
// made, until somebody unmounts it. The image is in use until then. It is
// idempotent.
func (e *Engine) MountImage(ctx context.Context, ref, target string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.mountImage(ref, target); err != nil {
		return fmt.Errorf("mount image %s on %s: %w", ref, target, err)
	}
	return nil
}

func (e *Engine) mountImage(ref, target string) error {
	e.mountMu.Lock()
	defer e.mountMu.Unlock()
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if e.ImageMounted(target) {
		return nil
	}
	if err := os.MkdirAll(e.imageMountsDir(), 0o700); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(target))
	note := filepath.Join(e.imageMountsDir(), hex.EncodeToString(sum[:8]))
	var noted error
	e.mu.Lock()
	_, layers, err := e.images.use(ref, func(img Image) {
		var data []byte
		if data, noted = json.Marshal(imageMount{img.ID, target}); noted == nil {
			noted = os.WriteFile(note, data, 0o600)
		}
		e.mounting = img.ID
	})
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.mounting = ""
		e.mu.Unlock()
	}()
	if err = errors.Join(err, noted); err == nil {
		err = overlay(e.images.layersDir(), layers, target)
	}
	if err != nil {
		return errors.Join(err, os.Remove(note))
	}
	return nil
}

// overlay mounts layers, topmost first, without an upper one. Their names are
// relative to dir, for the kernel takes all of them in one page; so it runs on a
// thread that has a working directory of its own, and ends with it.
func overlay(dir string, layers []string, target string) error {
	if len(layers) == 1 { // the kernel wants two
		layers = append(slices.Clone(layers), emptyLayer)
		if layers[0] == emptyLayer {
			return unix.Mount("conclave", target, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=4k")
		}
	}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread goes
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return os.NewSyscallError("unshare", err)
			}
			if err := unix.Chdir(dir); err != nil {
				return os.NewSyscallError("chdir", err)
			}
			err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "lowerdir="+strings.Join(layers, ":"))
			return os.NewSyscallError("mount", err)
		}()
	}()
	return <-result
}

// ImageMounted says whether something is shown in a folder.
func (e *Engine) ImageMounted(target string) bool {
	mounted, err := mountinfo.Mounted(target)
	return err == nil && mounted
}

// ImageInUse says whether a container or a mount uses an image.
func (e *Engine) ImageInUse(id string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	_, _, used := e.inUse(id)
	return used || e.mounted(id) != ""
}

// mounted is where an image is shown. e.mu is held.
func (e *Engine) mounted(id string) (target string) {
	if e.mounting == id {
		return "a volume"
	}
	notes, err := os.ReadDir(e.imageMountsDir())
	if err != nil {
		return "" // there was none since the host booted
	}
	for _, n := range notes {
		path := filepath.Join(e.imageMountsDir(), n.Name())
		data, err := os.ReadFile(path)
		var m imageMount
		if err != nil || json.Unmarshal(data, &m) != nil || m.Image == id && !e.ImageMounted(m.Target) {
			if m.Image != e.mounting || e.mounting == "" {
				if err := os.Remove(path); err != nil {
					e.log.Warn("the note of an image's mount cannot be removed", "error", err)
				}
			}
			continue
		}
		if m.Image == id {
			target = m.Target
		}
	}
	return target
}
