package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"conclave/runtime/internal/proto"
)

// CreateContainer prepares a container up to the moment before its program
// starts.
func (e *Engine) CreateContainer(ctx context.Context, c ContainerConfig) error {
	return e.create(ctx, c, proto.OpCreate)
}

// StartContainer starts a created container's program.
func (e *Engine) StartContainer(ctx context.Context, podID, id string) error {
	return e.do(ctx, "start", podID, proto.Request{Op: proto.OpStart, ID: id})
}

// RunContainer is CreateContainer and StartContainer in one step.
func (e *Engine) RunContainer(ctx context.Context, c ContainerConfig) error {
	return e.create(ctx, c, proto.OpRun)
}

func (e *Engine) create(ctx context.Context, c ContainerConfig, op proto.Op) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("container %s of pod %s: %w", c.ID, c.PodID, err)
		}
	}()
	if err := checkID("container", c.ID); err != nil {
		return err
	}
	e.mu.Lock()
	p := e.pods[c.PodID]
	if p == nil || !p.up {
		e.mu.Unlock()
		return ErrPodNotFound
	}
	if old := p.containers[c.ID]; old != nil && old.seq > 0 {
		e.mu.Unlock()
		return ErrContainerExists
	}
	// From here on the image is in use, and the first word of the container
	// finds it, should that come before the answer.
	img, layers, err := e.images.use(c.Image, func(img Image) {
		if p.containers[c.ID] == nil {
			p.containers[c.ID] = &container{status: ContainerStatus{PodID: c.PodID, ID: c.ID, Image: img.ID}}
		}
	})
	e.mu.Unlock()
	if err != nil {
		return err
	}
	err = e.createIn(ctx, p, img, layers, c, op)
	e.mu.Lock()
	defer e.mu.Unlock()
	if k := p.containers[c.ID]; k != nil && k.seq == 0 && ctx.Err() == nil {
		delete(p.containers, c.ID)
	}
	return err
}

func (e *Engine) createIn(ctx context.Context, p *pod, img Image, layers []string, c ContainerConfig, op proto.Op) error {
	dir := filepath.Join(e.podFolder(p.id), c.ID)
	req, err := e.request(p, img, layers, dir, c)
	if err != nil {
		return err
	}
	if err := e.fault("container.prepared"); err != nil {
		return err
	}
	if err := e.call(ctx, p, proto.Request{Op: op, ID: c.ID, Create: req}, nil, nil); err != nil {
		if _, exists := e.Container(p.id, c.ID); !exists && ctx.Err() == nil {
			unmount(filepath.Join(dir, proto.RootFSDir))
			return errors.Join(err, os.RemoveAll(dir))
		}
		return err
	}
	return e.fault("container.started")
}

// do makes one request about a container.
func (e *Engine) do(ctx context.Context, verb, podID string, req proto.Request) error {
	e.mu.Lock()
	p := e.pods[podID]
	up := p != nil && p.up
	e.mu.Unlock()
	err := ErrPodNotFound
	if up {
		err = e.call(ctx, p, req, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("%s container %s of pod %s: %w", verb, req.ID, podID, err)
	}
	return nil
}

// StopContainer sends the stop signal, and after grace kills the container. It
// returns when the container has exited. If ctx ends first, the container is
// stopped all the same.
func (e *Engine) StopContainer(ctx context.Context, podID, id string, grace time.Duration) error {
	if c, ok := e.Container(podID, id); ok && c.State == Exited {
		return nil
	}
	return e.do(ctx, "stop", podID, proto.Request{Op: proto.OpStop, ID: id, Grace: grace})
}

// RemoveContainer removes a container, killing it first if it runs. It is
// idempotent.
func (e *Engine) RemoveContainer(ctx context.Context, podID, id string) error {
	if err := checkID("container", id); err != nil {
		return err
	}
	e.mu.Lock()
	p := e.pods[podID]
	up := p != nil && p.up
	e.mu.Unlock()
	if p == nil {
		return nil
	}
	if up {
		err := e.do(ctx, "remove", podID, proto.Request{Op: proto.OpRemove, ID: id})
		// A process that took the place of a dead one does not know the
		// containers of that one.
		if err != nil && !errors.Is(err, ErrContainerNotFound) {
			return err
		}
	}
	if err := e.fault("container.removed"); err != nil {
		return err
	}
	dir := filepath.Join(e.podFolder(podID), id)
	unmount(filepath.Join(dir, proto.RootFSDir))
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove container %s of pod %s: %w", id, podID, err)
	}
	if err := os.Remove(recordPath(p, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove container %s of pod %s: %w", id, podID, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(p.containers, id)
	return nil
}

// UpdateResources changes the bounds of a running container.
func (e *Engine) UpdateResources(ctx context.Context, podID, id string, r *specs.LinuxResources) error {
	return e.do(ctx, "update", podID, proto.Request{Op: proto.OpUpdate, ID: id, Resources: e.resources(r)})
}

// inUse says which container uses an image. e.mu is held.
func (e *Engine) inUse(imageID string) (podID, id string, used bool) {
	for _, p := range e.pods {
		for cid, c := range p.containers {
			if c.status.Image == imageID {
				return p.id, cid, true
			}
		}
	}
	return "", "", false
}
