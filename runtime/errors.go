package runtime

import "errors"

// Outcomes that callers act on. Errors of the package match them with
// errors.Is.
var (
	errEnding = errors.New("the engine has ended")

	// ErrPodNotFound says that StartPod was not called for the pod, or that its
	// process is gone; StartPod makes it anew.
	ErrPodNotFound       = errors.New("pod is not running")
	ErrContainerNotFound = errors.New("container not found")
	ErrContainerExists   = errors.New("container already exists")
	// ErrContainerNotRunning refuses exec, attach and the like.
	ErrContainerNotRunning = errors.New("container is not running")
	// ErrStart says that the container's own process could not be started: a
	// missing program, a bad working directory. The container is then Exited
	// with ReasonStartError and exit code 128.
	ErrStart = errors.New("failed to start container")
	// ErrFenced says that the pod must not run twice and the node's fence, or
	// the epoch in which the start was allowed, is over.
	ErrFenced = errors.New("the node may not run this pod now")

	// ErrImageNotFound says that the registry, or the store, has no such image.
	ErrImageNotFound = errors.New("image not found")
	// ErrUnauthorized says that the registry wants other credentials.
	ErrUnauthorized        = errors.New("registry denied access")
	ErrRegistryUnavailable = errors.New("registry is unavailable")
	ErrInvalidImageName    = errors.New("invalid image name")
	ErrImageInUse          = errors.New("image is in use")
	ErrDiskFull            = errors.New("the disk that holds the images is full")
	// ErrUnsafeImage says that a layer wanted to write outside its root.
	ErrUnsafeImage = errors.New("unsafe image")
	// ErrDamagedImage says that bytes do not have the digest they should have.
	ErrDamagedImage = errors.New("damaged image")
)
