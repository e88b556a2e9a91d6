package runtime

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// What a host may lack. New's errors match them.
var (
	ErrNotRoot      = errors.New("containers need root")
	ErrNoOverlay    = errors.New("the kernel cannot mount overlayfs")
	ErrNoCgroups    = errors.New("cgroups are not usable")
	ErrNoPodProgram = errors.New("the pod program is missing")
)

// podProgramFile is the pod program in embedded, compressed with gzip.
const podProgramFile = "embedded/" + runtime.GOARCH + "/conclave-pod.gz"

// probe says what the host lacks, in a sentence that says what to do.
func probe(cfg Config) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: run conclave as root", ErrNotRoot)
	}
	if err := probeOverlay(cfg.containersDir()); err != nil {
		return err
	}
	return probeCgroups()
}

// probeOverlay mounts one: only that shows whether the folder's filesystem can
// be the upper layer.
func probeOverlay(dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, ".probe-")
	if err != nil {
		return fmt.Errorf("runtime: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(tmp, d), 0o700); err != nil {
			return fmt.Errorf("runtime: %w", err)
		}
	}
	m := filepath.Join(tmp, "m")
	options := fmt.Sprintf("lowerdir=%[1]s/l,upperdir=%[1]s/u,workdir=%[1]s/w", tmp)
	switch err := unix.Mount("overlay", m, "overlay", 0, options); {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: load the module (modprobe overlay) or use a kernel that has it", ErrNoOverlay)
	case err != nil:
		return fmt.Errorf("%w in %s (%w): put the data folder on a local disk with ext4, xfs or btrfs", ErrNoOverlay, dir, err)
	}
	return unix.Unmount(m, unix.MNT_DETACH)
}

// probeCgroups looks for version 2, or for the controllers of version 1.
func probeCgroups() error {
	var have []string
	if cgroups.IsCgroup2UnifiedMode() {
		data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoCgroups, err)
		}
		for f := range bytes.FieldsSeq(data) {
			have = append(have, string(f))
		}
	} else {
		mounts, err := cgroups.GetCgroupMounts(true)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNoCgroups, err)
		}
		for _, m := range mounts {
			have = append(have, m.Subsystems...)
		}
		// Version 2 decides over devices by programs, not by a controller.
		if !slices.Contains(have, "devices") {
			return fmt.Errorf("%w: neither cgroup version 2 nor the devices controller of version 1 is mounted below /sys/fs/cgroup", ErrNoCgroups)
		}
	}
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, c) {
			return fmt.Errorf("%w: the %s controller is missing (on a Raspberry Pi add cgroup_enable=memory to the kernel's command line)", ErrNoCgroups, c)
		}
	}
	return nil
}

// podProgram returns the path of the pod program, having written the embedded
// one to disk if this version of it is not there yet.
func podProgram(cfg Config) (string, error) {
	if cfg.PodBinary != "" {
		if err := unix.Access(cfg.PodBinary, unix.X_OK); err != nil {
			return "", fmt.Errorf("%w: %s: %w", ErrNoPodProgram, cfg.PodBinary, err)
		}
		return filepath.Abs(cfg.PodBinary)
	}
	packed, err := embedded.Open(podProgramFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w from this build: run make build, or CGO_ENABLED=1 go build -tags 'seccomp netgo osusergo' -trimpath "+
			"-ldflags '-s -w -extldflags -static' -o conclave-pod ./runtime/pod && gzip -9nc conclave-pod > runtime/%s, and build again", ErrNoPodProgram, podProgramFile)
	}
	if err != nil {
		return "", err
	}
	defer packed.Close()
	// gzip ends with the checksum and the size of what it holds: they tell
	// whether the file is there and whole, without unpacking anything.
	var want [8]byte
	if _, err := packed.(io.Seeker).Seek(-int64(len(want)), io.SeekEnd); err != nil {
		return "", err
	}
	if _, err := io.ReadFull(packed, want[:]); err != nil {
		return "", err
	}
	sum, size := binary.LittleEndian.Uint32(want[:4]), binary.LittleEndian.Uint32(want[4:])
	dir := filepath.Join(cfg.Root, "bin")
	path := filepath.Join(dir, fmt.Sprintf("conclave-pod-%08x-%x", sum, size))
	if holds(path, sum, size) {
		return path, nil
	}
	// Reading the embedded file brings megabytes of our own program into memory.
	defer pageOut()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("write the pod program: %w", err)
	}
	if _, err := packed.(io.Seeker).Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	program, err := gzip.NewReader(packed)
	if err != nil {
		return "", fmt.Errorf("unpack the pod program: %w", err)
	}
	if err := writeSync(path, program, 0o755); err != nil {
		return "", fmt.Errorf("write the pod program: %w", err)
	}
	// Older versions stay for as long as a pod runs them: removing the file
	// does not disturb those.
	old, err := filepath.Glob(filepath.Join(dir, "conclave-pod-*"))
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if o != path {
			if err := os.Remove(o); err != nil {
				return "", fmt.Errorf("remove an older pod program: %w", err)
			}
		}
	}
	return path, nil
}

// holds says whether a file has this checksum and size.
func holds(path string, sum, size uint32) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	have := crc32.NewIEEE()
	n, err := io.Copy(have, f)
	return err == nil && n == int64(size) && have.Sum32() == sum
}

// pageOut lets go of the read-only pages of our own program: what is needed of
// them comes back from the page cache. It changes no content, whatever they
// are; a kernel that cannot do it leaves things as they are.
func pageOut() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "r--p" || f[5] != exe {
			continue
		}
		var from, to uintptr
		if _, err := fmt.Sscanf(f[0], "%x-%x", &from, &to); err != nil {
			return
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_PAGEOUT) // a hint
	}
}

// writeFileSync writes a file whole or not at all, and durably.
func writeFileSync(path string, data []byte, mode os.FileMode) error {
	return writeSync(path, bytes.NewReader(data), mode)
}

func writeSync(path string, content io.Reader, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
