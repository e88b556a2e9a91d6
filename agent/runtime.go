package agent

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
)

// Runtime is what the agent asks of the container runtime. All methods may be
// called from several goroutines. Containers must be found again after a
// restart of this process; the runtime may forget them when the host reboots.
type Runtime interface {
	// Isolate makes the namespaces of a pod with IDs, before its network is made.
	// It is idempotent.
	Isolate(ctx context.Context, c PodConfig) error
	// StartPod makes what a pod's containers share: its cgroup and the process
	// that stays with it. It is idempotent.
	StartPod(ctx context.Context, c PodConfig) error
	// StopPod kills what is left of a pod and removes all traces of it but the
	// log files. It is idempotent.
	StopPod(ctx context.Context, podID string) error
	// Pods lists the IDs of the pods that StartPod made and StopPod did not
	// remove.
	Pods() []string
	// RunContainer creates and starts a container of a started pod. If a
	// container could be created but its command not be started, the error is
	// returned and Containers shows it Exited with the reason StartError.
	RunContainer(ctx context.Context, c ContainerConfig) error
	// StopContainer asks a container to end, kills it after grace, and returns
	// when it has ended.
	StopContainer(ctx context.Context, podID, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, podID, id string) error
	// Containers is the newest known state of a pod's containers, of all pods
	// if podID is empty. It answers from memory.
	Containers(podID string) []ContainerStatus
	// Fence is the present epoch of the node's fence, and whether it holds: what
	// must not run twice may run, if that was allowed in this epoch. It answers
	// from memory.
	Fence() (epoch uint64, up bool)
	// Subscribe returns a channel that receives after any container or pod
	// changed; several changes may be one signal. The function ends it.
	Subscribe() (<-chan struct{}, func())
	Exec(ctx context.Context, podID, id string, cmd []string, tty bool, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) (int, error)
	Attach(ctx context.Context, podID, id string, stdin io.Reader, stdout, stderr io.Writer, resize <-chan [2]uint16) error
	// UpdatePod changes the settings of a started pod's cgroup, UpdateContainer
	// those of a running container's. What resources do not name stays; a limit
	// of -1 is none.
	UpdatePod(ctx context.Context, podID string, resources *specs.LinuxResources) error
	UpdateContainer(ctx context.Context, podID, id string, resources *specs.LinuxResources) error
	// SetBounds bounds what all pods take together.
	SetBounds(b Bounds) error
	// Stats measures a container, or the whole pod if id is empty.
	Stats(podID, id string) (Stats, error)
	// DiskUsage walks a container's writable layer.
	DiskUsage(podID, id string) (bytes, inodes uint64, err error)
	// Pull fetches an image. Its errors match ErrImageNotFound,
	// ErrRegistryUnavailable, ErrInvalidImageName and ErrDiskFull.
	Pull(ctx context.Context, ref string, o PullOptions) (Image, error)
	// Entitled says whether who has these credentials may use an image that is
	// here without asking its registry again.
	Entitled(ref string, c Credentials) bool
	// Near says whether another node, which lives, says that it has an image.
	Near(ref string) bool
	Image(ref string) (Image, bool)
	Images() []Image
	// RemoveImage removes an image that nothing uses.
	RemoveImage(ctx context.Context, ref string) error
	// CollectLayers removes layers that belong to no image.
	CollectLayers() error
	// MountImage shows the content of an image, read-only, in a folder, until
	// somebody unmounts that. The image is in use until then.
	MountImage(ctx context.Context, id, target string) error
	ImageMounted(target string) bool
	ImageInUse(id string) bool
}

// ReasonFenced is the reason of a container that was killed because the node's
// fence came down.
const ReasonFenced = "Fenced"

// Outcomes of Runtime.Pull and RunContainer, matched with errors.Is.
var (
	// ErrFenced says that the pod's fence is down, or was since the epoch.
	ErrFenced = errors.New("the node may not run this pod now")

	ErrImageNotFound       = errors.New("image not found")
	ErrDiskFull            = errors.New("the disk is full")
	ErrRegistryUnavailable = errors.New("registry unavailable")
	ErrInvalidImageName    = errors.New("invalid image name")
)

// Network is what the agent asks of the pod network. Pods of the host network
// never reach it.
type Network interface {
	// Attach makes the pod's network namespace and gives it its addresses. It
	// is idempotent: for a pod already attached, also by an earlier process, it
	// returns what the pod has. It may wait until the node has a pod range.
	Attach(ctx context.Context, pod *corev1.Pod) (netns string, ips []netip.Addr, err error)
	// Detach frees what Attach made. It is idempotent.
	Detach(ctx context.Context, podUID string) error
	// Ready says why pods cannot be attached now.
	Ready() error
}

// Credential is what a registry is told of who pulls.
type Credential struct {
	Username, Password           string
	IdentityToken, RegistryToken string
	// Node says that it is the node's own, for every pod here.
	Node bool
}

// Credentials are those for a repository ("registry.lan:5000/team/app"), in the
// order in which they are to be tried; none is nobody.
type Credentials func(repository string) ([]Credential, error)

// PullOptions are how to pull.
type PullOptions struct {
	Credentials Credentials
	// Fresh wants what the registry says now, not what is known elsewhere.
	Fresh bool
}

// PodConfig is a pod as the runtime sees it.
type PodConfig struct {
	ID               string // the pod's UID
	Namespace, Name  string
	Hostname         string
	NetNS            string // path; empty: the host's
	CgroupParent     string // "burstable", "besteffort" or "" for guaranteed pods
	Resources        *specs.LinuxResources
	IDs              uint32 // the first of the pod's own users and groups; 0: they are the host's
	HostPID, HostIPC bool
	ShareProcesses   bool
	Sysctls          map[string]string
	// Fenced pods must not run twice: their containers are killed when the
	// node's fence comes down.
	Fenced bool
}

// ContainerConfig is one start of one container.
type ContainerConfig struct {
	PodID                             string
	ID                                string // container name and attempt: "web_0"
	Image                             string // image ID
	Command, Args                     []string
	Env                               []string
	WorkingDir                        string
	Mounts                            []specs.Mount
	Devices                           []specs.LinuxDevice // Resources has the rules for them
	Resources                         *specs.LinuxResources
	OOMScoreAdj                       *int
	UID, GID                          *int64
	Groups                            []int64
	OnlyGroups                        bool // none of the image's
	AddCapabilities, DropCapabilities []string
	Privileged, ReadOnlyRoot          bool
	NoNewPrivileges                   bool
	UnmaskedProc                      bool
	Seccomp                           string // "runtime/default", "localhost/PATH" or none
	AppArmor                          string // a profile's name, or none
	TTY, Stdin, StdinOnce             bool
	LogPath                           string
	LogMaxSize                        int64
	LogMaxFiles                       int
	// PIDsOf is the ID of the running container of the pod whose processes this
	// one is to be among; empty: its own, or the pod's.
	PIDsOf string
	// Epoch is that of the fence in which the start was allowed, if the pod is
	// fenced.
	Epoch      uint64
	StopSignal string
}

// State is what a container is doing.
type State string

// The states of a container.
const (
	Created State = "Created"
	Running State = "Running"
	Exited  State = "Exited"
)

// ContainerStatus is what the runtime knows of one start of one container.
type ContainerStatus struct {
	PodID, ID, Image string
	State            State
	PID              int
	StartedAt        time.Time
	FinishedAt       time.Time
	ExitCode         int
	OOMKilled        bool
	Reason, Message  string
	User             *ContainerUser // nil if it is not known
	StopSignal       string         // that asks it to end, by Kubernetes' name
}

// ContainerUser is who a container's first process runs as.
type ContainerUser struct {
	UID, GID uint32
	Groups   []uint32 // GID among them
}

// Image is an image in the node's store.
type Image struct {
	ID                   string
	Names                []string
	Digests              []string
	Size                 int64
	User                 string
	Env, Entrypoint, Cmd []string
	WorkingDir           string
	StopSignal           string
	Pinned               bool // it is not removed for want of room
}

// Stats is what a container uses.
type Stats struct {
	Time             time.Time
	CPUNanoseconds   uint64 // since its start
	MemoryUsage      uint64 // bytes, page cache included
	MemoryWorkingSet uint64 // bytes that cannot be reclaimed at once
	MemoryRSS        uint64
	MemoryLimit      uint64 // 0: none
	PageFaults       uint64
	MajorFaults      uint64
	// Of the periods in which the CPU limit counts, if there is one.
	Periods, Throttled   uint64
	ThrottledNanoseconds uint64
	Processes            uint64
}
