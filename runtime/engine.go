package runtime

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Engine runs the pods of one host.
type Engine struct{ cfg Config }

var errSkeleton = errors.New("runtime: not built yet")

// New probes the host and adopts the pods that run.
func New(cfg Config) (*Engine, error) { return nil, errSkeleton }

// Run watches the pod processes until ctx ends. Pods run on after it returned.
func (e *Engine) Run(ctx context.Context) error { return errSkeleton }

// StartPod makes the pod's cgroup and starts its process. It is idempotent.
func (e *Engine) StartPod(ctx context.Context, c PodConfig) error { return errSkeleton }

// StopPod kills what is left of a pod and removes everything of it. It is
// idempotent.
func (e *Engine) StopPod(ctx context.Context, podID string) error { return errSkeleton }

// Pods returns the IDs of all pods, sorted.
func (e *Engine) Pods() []string { return nil }

// UpdatePodResources changes the bounds of the whole pod.
func (e *Engine) UpdatePodResources(ctx context.Context, podID string, r *specs.LinuxResources) error {
	return errSkeleton
}

// CreateContainer prepares a container up to the moment before its program
// starts.
func (e *Engine) CreateContainer(ctx context.Context, c ContainerConfig) error { return errSkeleton }

// StartContainer starts a created container's program.
func (e *Engine) StartContainer(ctx context.Context, podID, id string) error { return errSkeleton }

// RunContainer is CreateContainer and StartContainer in one step.
func (e *Engine) RunContainer(ctx context.Context, c ContainerConfig) error { return errSkeleton }

// StopContainer sends the stop signal, and after grace kills the container. It
// returns when the container has exited.
func (e *Engine) StopContainer(ctx context.Context, podID, id string, grace time.Duration) error {
	return errSkeleton
}

// RemoveContainer removes an exited container, or kills it first.
func (e *Engine) RemoveContainer(ctx context.Context, podID, id string) error { return errSkeleton }

// Containers returns the containers of a pod, of all if podID is empty, oldest
// first.
func (e *Engine) Containers(podID string) []ContainerStatus { return nil }

// Subscribe returns a channel with the new status of each container whose
// state changed, newest only if the reader is slow. cancel closes it.
func (e *Engine) Subscribe() (events <-chan ContainerStatus, cancel func()) { return nil, nil }

// Exec runs a command in a running container and returns its exit code.
func (e *Engine) Exec(ctx context.Context, podID, id string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error) {
	return 0, errSkeleton
}

// Attach connects to the container's own streams until it exits or ctx ends.
func (e *Engine) Attach(ctx context.Context, podID, id string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) error {
	return errSkeleton
}

// UpdateResources changes the bounds of a running container.
func (e *Engine) UpdateResources(ctx context.Context, podID, id string, r *specs.LinuxResources) error {
	return errSkeleton
}

// Stats returns what a container uses, or the whole pod if id is empty.
func (e *Engine) Stats(podID, id string) (Usage, error) { return Usage{}, errSkeleton }

// Pull fetches an image. Identical pulls at the same time share one.
func (e *Engine) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	return Image{}, errSkeleton
}

// Import reads the images of a docker-archive or an OCI layout tar.
func (e *Engine) Import(ctx context.Context, r io.Reader) ([]Image, error) { return nil, errSkeleton }

// Images returns all images, sorted by ID.
func (e *Engine) Images() []Image { return nil }

// Image finds an image by name, digest or ID.
func (e *Engine) Image(ref string) (Image, bool) { return Image{}, false }

// RemoveImage removes a name, and the image with its last one. ErrImageInUse.
func (e *Engine) RemoveImage(ctx context.Context, ref string) error { return errSkeleton }
