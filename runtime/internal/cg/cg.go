// Package cg turns an OCI spec's resources into those of the cgroup library,
// and opens cgroups of either version without systemd.
package cg

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Mount is where cgroups are mounted.
const Mount = "/sys/fs/cgroup"

// Open returns the manager of the cgroup at a path below the root of each
// hierarchy. Nothing is made yet: Apply(-1) makes it.
func Open(path string, r *specs.LinuxResources) (cgroups.Manager, error) {
	c := &cgroups.Cgroup{Path: path, Resources: Resources(r)}
	c.SkipDevices = true
	if cgroups.IsCgroup2UnifiedMode() {
		return fs2.NewManager(c, "")
	}
	return fs.NewManager(c, nil)
}

// Resources translates what a pod may set.
func Resources(r *specs.LinuxResources) *cgroups.Resources {
	out := &cgroups.Resources{}
	Update(out, r)
	return out
}

// Update overwrites in out what r sets.
func Update(out *cgroups.Resources, r *specs.LinuxResources) {
	if r == nil {
		return
	}
	if m := r.Memory; m != nil {
		set(&out.Memory, m.Limit)
		set(&out.MemoryReservation, m.Reservation)
		set(&out.MemorySwap, m.Swap)
	}
	if c := r.CPU; c != nil {
		set(&out.CpuShares, c.Shares)
		set(&out.CpuQuota, c.Quota)
		set(&out.CpuPeriod, c.Period)
		if c.Burst != nil {
			out.CpuBurst = c.Burst
		}
		if c.Shares != nil {
			// The two scales differ: 1024 shares are a weight of 39, and the
			// kernel's defaults (1024, 100) do not map onto each other.
			out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		if c.Cpus != "" {
			out.CpusetCpus = c.Cpus
		}
		if c.Mems != "" {
			out.CpusetMems = c.Mems
		}
	}
	if p := r.Pids; p != nil {
		out.PidsLimit = p.Limit
	}
	for _, h := range r.HugepageLimits {
		i := slices.IndexFunc(out.HugetlbLimit, func(o *cgroups.HugepageLimit) bool { return o.Pagesize == h.Pagesize })
		if i < 0 {
			out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
		} else {
			out.HugetlbLimit[i].Limit = h.Limit
		}
	}
	if len(r.Unified) > 0 {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		for k, v := range r.Unified {
			out.Unified[k] = v
		}
	}
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}

// Hierarchies returns the folders below which a cgroup's path lies: one on
// version 2, one per controller on version 1.
func Hierarchies() ([]string, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return []string{Mount}, nil
	}
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range mounts {
		if !slices.Contains(out, m.Mountpoint) {
			out = append(out, m.Mountpoint)
		}
	}
	if cgroups.IsCgroup2HybridMode() { // where the library makes cgroups too
		out = append(out, filepath.Join(Mount, "unified"))
	}
	if len(out) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted")
	}
	return out, nil
}

// Empty kills every process of a cgroup and of those below it, in every
// hierarchy, but for this one and spared, and returns when none is left. wait
// is called between two rounds, and ends them with an error.
func Empty(path string, spared int, wait func() error) error {
	dirs, err := Hierarchies()
	if err != nil {
		return err
	}
	return empty(dirs, path, spared, wait)
}

func empty(dirs []string, path string, spared int, wait func() error) error {
	for {
		alive := false
		for _, d := range dirs {
			pids, err := cgroups.GetAllPids(filepath.Join(d, path))
			if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				return err
			}
			for _, pid := range pids {
				if pid != os.Getpid() && pid != spared && unix.Kill(pid, unix.SIGKILL) == nil {
					alive = true
				}
			}
		}
		if !alive {
			return nil
		}
		if err := wait(); err != nil {
			return err
		}
	}
}

// Kill empties a cgroup and those below it, in every hierarchy, and removes
// them.
func Kill(path string, wait func() error) error {
	dirs, err := Hierarchies()
	if err != nil {
		return err
	}
	if err := empty(dirs, path, 0, wait); err != nil {
		return err
	}
	var errs []error
	for _, d := range dirs {
		if err := cgroups.RemovePath(filepath.Join(d, path)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Find returns the paths of the cgroups below parent whose name starts with
// prefix, at most three levels down, as they are in any hierarchy.
func Find(parent, prefix string) ([]string, error) {
	dirs, err := Hierarchies()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		for _, pattern := range []string{"*", "*/*", "*/*/*"} {
			found, err := filepath.Glob(filepath.Join(d, parent, pattern))
			if err != nil {
				return nil, err
			}
			for _, f := range found {
				if !strings.HasPrefix(filepath.Base(f), prefix) {
					continue
				}
				if st, err := os.Lstat(f); err != nil || !st.IsDir() {
					continue
				}
				if rel := strings.TrimPrefix(f, d); !slices.Contains(out, rel) {
					out = append(out, rel)
				}
			}
		}
	}
	return out, nil
}
