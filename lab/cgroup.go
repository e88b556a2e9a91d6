package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is the cgroup, in every hierarchy, below which all labs are.
const cgroupRoot = "/conclave-lab"

// hierarchies are the places where cgroup file systems are mounted: one for
// version 2, one per controller for version 1.
func hierarchies() ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(raw)) {
		before, after, _ := strings.Cut(line, " - ")
		kind, _, _ := strings.Cut(after, " ")
		if fields := strings.Fields(before); (kind == "cgroup" || kind == "cgroup2") && len(fields) > 4 {
			all = append(all, fields[4])
		}
	}
	return all, nil
}

// removeCgroups removes a cgroup and all below it in every hierarchy, after
// killing what is still in there.
func removeCgroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	var failed error
	for _, root := range roots {
		failed = errors.Join(failed, removeTree(filepath.Join(root, name)))
	}
	return failed
}

// removeEmptyCgroups removes a cgroup where it has nothing below it.
func removeEmptyCgroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return fmt.Errorf("cgroups: %w", err)
	}
	for _, root := range roots {
		err := unix.Rmdir(filepath.Join(root, name))
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("cgroup %s: %w", name, err)
		}
	}
	return nil
}

func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", dir, err)
	}
	for i := len(dirs) - 1; i >= 0; i-- { // the deepest first
		if err := removeOne(dirs[i]); err != nil {
			return err
		}
	}
	return nil
}

// removeOne removes an empty cgroup. A process that was killed leaves its
// cgroup only when it is fully gone, so a busy one is tried again for a while.
func removeOne(dir string) error {
	pause := time.Millisecond
	for {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || pause > time.Second {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, word := range strings.Fields(string(raw)) {
			if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(pause)
		pause *= 2
	}
}
