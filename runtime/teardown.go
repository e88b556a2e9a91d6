package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/cgroups"
)

// Teardown removes what the engine made outside its folders, once every pod is
// stopped: the cgroups. Images and folders are the caller's to remove.
func (e *Engine) Teardown(ctx context.Context) error {
	if pods := e.Pods(); len(pods) > 0 {
		return fmt.Errorf("runtime: %d pods are left: stop them first", len(pods))
	}
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return fmt.Errorf("runtime: find the cgroups: %w", err)
	}
	var failed error
	for _, m := range mounts {
		if err := cgroups.RemovePath(filepath.Join(m.Mountpoint, e.cfg.CgroupParent)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("runtime: remove cgroup %s: %w", e.cfg.CgroupParent, err))
		}
	}
	return failed
}
