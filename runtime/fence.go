package runtime

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"conclave/runtime/internal/proto"
)

// HoldFence says until when, as time since boot, this node may run the pods
// that must not run twice. Their processes kill what is in them when that comes
// and it was not called again, though the engine, or all of this program, may
// be dead or stopped by then. It says whether that began a new epoch: the fence
// was down before, and what was allowed then must be allowed anew.
func (e *Engine) HoldFence(until time.Duration) (newEpoch bool) {
	e.fenceMu.Lock()
	defer e.fenceMu.Unlock()
	return e.fence.Hold(until)
}

// Fence is the present epoch, and whether fenced pods may run now.
func (e *Engine) Fence() (epoch uint64, up bool) { return e.fence.Up() }

func (c Config) fencePath() string { return filepath.Join(c.RunDir, proto.FenceFile) }

// refence has the process of a pod obey the fence, or no longer. One of an older
// program that knows of none is ended, and its containers with it: the caller
// starts another. p.op is held.
func (e *Engine) refence(ctx context.Context, p *pod, path string) (ended bool, err error) {
	e.mu.Lock()
	obeyed, process, down := p.fence, p.process, p.down
	e.mu.Unlock()
	if obeyed == path {
		return false, nil
	}
	err = e.call(ctx, p, proto.Request{Op: proto.OpFence, Fence: path}, nil, nil)
	if refused := (*proto.Error)(nil); errors.As(err, &refused) {
		e.log.Warn("a pod's process is too old to keep it from running twice: starting the pod anew", "pod", p.id)
		_ = process.Kill() // dead is as good
		select {
		case <-down:
			return true, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	if err != nil {
		return false, err
	}
	e.mu.Lock()
	p.fence = path
	e.mu.Unlock()
	return false, proto.WriteFile(filepath.Join(p.dir, proto.PodFile), p.cfg)
}
