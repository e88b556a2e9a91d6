package runtime

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"

	"conclave/runtime/internal/cg"
)

// Bounds are what all pods together may take of the host, and how its
// processors are shared out among the classes of pods. Zero sets nothing.
type Bounds struct {
	Memory int64 // bytes
	PIDs   int64
	// Shares are of all pods beside the host's own programs; Burstable and
	// BestEffort are those of the classes beside single guaranteed pods.
	Shares, Burstable, BestEffort uint64
}

// SetBounds puts bounds in force. A bound below what is in use already may be
// refused by the kernel; the others are set all the same.
func (e *Engine) SetBounds(b Bounds) error {
	all := &specs.LinuxResources{}
	if b.Shares > 0 {
		all.CPU = &specs.LinuxCPU{Shares: &b.Shares}
	}
	if b.PIDs > 0 {
		all.Pids = &specs.LinuxPids{Limit: &b.PIDs}
	}
	var errs []error
	errs = append(errs, e.bound("", all))
	if b.Memory > 0 { // apart: it alone depends on what is in use
		errs = append(errs, e.bound("", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &b.Memory}}))
	}
	for class, shares := range map[string]uint64{"burstable": b.Burstable, "besteffort": b.BestEffort} {
		if shares > 0 {
			errs = append(errs, e.bound(class, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}))
		}
	}
	return errors.Join(errs...)
}

func (e *Engine) bound(class string, r *specs.LinuxResources) error {
	path := filepath.Join(e.cfg.podsCgroup(), class)
	m, err := cg.Open(path, r)
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", path, err)
	}
	to := cg.Resources(r)
	to.SkipDevices = true
	if err := m.Set(to); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", path, err)
	}
	return nil
}

// PodsCgroup is the folder of the cgroup of all pods that counts memory, ""
// before there is one, and whether it is of version 2.
func (e *Engine) PodsCgroup() (memory string, v2 bool) {
	m, err := cg.Open(e.cfg.podsCgroup(), nil)
	if err != nil {
		return "", e.v2
	}
	if e.v2 {
		return m.Path(""), true
	}
	return m.Path("memory"), false
}
