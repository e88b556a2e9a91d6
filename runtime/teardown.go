package runtime

import (
	"context"
	"fmt"
	"path/filepath"

	"conclave/runtime/internal/cg"
)

// Teardown removes what the engine made outside its folders, once every pod is
// stopped: the cgroups. No pod can be started after it. Images and folders are
// the caller's to remove. Purge does the same for a host without an engine.
func (e *Engine) Teardown(ctx context.Context) error {
	if pods := e.Pods(); len(pods) > 0 {
		return fmt.Errorf("runtime: %d pods are left: stop them first", len(pods))
	}
	e.spawn.stop() // its thread lives in one of them
	if err := cg.Kill(filepath.Join("/", e.cfg.CgroupParent), killPause(ctx)); err != nil {
		return fmt.Errorf("runtime: remove cgroup %s: %w", e.cfg.CgroupParent, err)
	}
	return nil
}
