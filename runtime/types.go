package runtime

import (
	"crypto/x509"
	"log/slog"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"conclave/runtime/internal/proto"
)

// Config is what an Engine needs to know of its host.
type Config struct {
	// Root is the data folder: images, root filesystems and the pod program
	// are below it. It must be on a filesystem that overlayfs can write to.
	Root string
	// RunDir is a folder on a tmpfs: what must not outlive a reboot. Empty
	// means Root/run/runtime.
	RunDir string
	// CgroupParent is the cgroup below which everything is made, "conclave" if
	// empty. No cgroup outside it is touched.
	CgroupParent string
	// PodBinary is the path of the pod program; empty means the embedded one.
	PodBinary string
	// InsecureRegistries are hosts ("registry.lan:5000") that may be spoken to
	// over plain HTTP. localhost and 127.0.0.0/8 always may.
	InsecureRegistries []string
	// RootCAs verifies registries; nil means the host's own roots.
	RootCAs *x509.CertPool
	// RegistryDir holds a folder for each registry whose hosts are not what its
	// name says: see hosts.go. Empty: none.
	RegistryDir string
	// MaxParallelPulls is how many images are pulled at once, 3 if 0.
	MaxParallelPulls int
	// Peers are asked for what they have before a registry is. Nil: nobody.
	Peers Peers
	// Changed is called when Holds may answer otherwise than before, with locks
	// held: it must return at once.
	Changed func()
	// Log is where the engine tells what it does. Nil discards.
	Log *slog.Logger
	// Faults, if not nil, is called at each labelled step of a change with the
	// label; an error makes the step fail as if the process had died there.
	// Tests set it.
	Faults func(label string) error
}

// PodConfig says what the containers of one pod share.
type PodConfig struct {
	ID        string // the pod's UID; names its folders and cgroup
	Namespace string
	Name      string
	// Hostname is the name inside the pod; empty leaves the host's own.
	Hostname string
	// NetNS is the path of the network namespace; empty means the host's.
	NetNS string
	// CgroupParent is relative to the cgroup of all pods: "burstable",
	// "besteffort" or empty.
	CgroupParent string
	// Resources bound the whole pod, nil for no bounds.
	Resources *specs.LinuxResources
	// IDs, if not 0, is the first of the 65536 users and groups of the host that
	// the pod's are: it has a user namespace then, and Isolate must come first.
	IDs            uint32
	HostPID        bool
	HostIPC        bool
	ShareProcesses bool
	Sysctls        map[string]string
	// Fenced pods must not run twice: their containers are killed when the
	// node's fence comes down (HoldFence).
	Fenced bool
}

// ContainerConfig says what to run.
type ContainerConfig struct {
	PodID string
	ID    string // "web_0": name and attempt
	Image string // image ID, or any name that the image has
	// Command replaces the image's entrypoint, Args its command.
	Command    []string
	Args       []string
	Env        []string // appended to the image's, the last of a name wins
	WorkingDir string
	Mounts     []specs.Mount
	// Devices are made in the container beside the usual ones, in whose place
	// they may come. Resources must have the rules that let it open them.
	Devices   []specs.LinuxDevice
	Resources *specs.LinuxResources
	// OOMScoreAdj is passed on as it is, nil leaves the default 0.
	OOMScoreAdj *int
	// UID and GID override the image's user; Groups are added.
	UID    *int64
	GID    *int64
	Groups []int64
	// OnlyGroups: what /etc/group of the image says of the user adds nothing.
	OnlyGroups       bool
	AddCapabilities  []string
	DropCapabilities []string
	Privileged       bool
	ReadOnlyRoot     bool
	NoNewPrivileges  bool
	// UnmaskedProc leaves /proc and /sys as the kernel makes them.
	UnmaskedProc bool
	// Seccomp is SeccompDefault, or SeccompLocalhost and the path of a profile
	// in OCI's form; empty is none. A privileged container has none.
	Seccomp string
	// AppArmor names a profile that is loaded in the kernel; empty is none.
	AppArmor  string
	TTY       bool
	Stdin     bool
	StdinOnce bool
	// LogPath is the file in the CRI log format; empty discards the output.
	LogPath string
	// LogMaxSize is where the file is rotated, 10 MiB if 0; LogMaxFiles is how
	// many are kept with the current one, 5 if 0. A rotated file has the name
	// with "." and the time appended.
	LogMaxSize  int64
	LogMaxFiles int
	// PIDsOf is the ID of the running container of the pod whose processes this
	// one is to be among; empty: its own, or the pod's.
	PIDsOf string
	// Epoch is that of the fence in which the start was allowed, if the pod is
	// fenced. A fence that was down since refuses it.
	Epoch uint64
	// StopSignal ("SIGQUIT", "3") overrides the image's; empty means that, or
	// SIGTERM.
	StopSignal string
}

// State is where in its life a container is.
type State string

// The states, in the only order in which they are passed through.
const (
	Created State = "Created"
	Running State = "Running"
	Exited  State = "Exited"
)

// Reasons of an exited container, in Kubernetes' words.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	// ReasonFenced says that the pod was killed because the node's fence was
	// down. The exit code is then 137.
	ReasonFenced = proto.ReasonFenced
	// ReasonUnknown says that nobody saw the exit: the pod process itself was
	// killed. The exit code is then 137.
	ReasonUnknown = "ContainerStatusUnknown"
)

// ContainerStatus is one container as it is now.
type ContainerStatus struct {
	PodID      string
	ID         string
	Image      string // image ID
	State      State
	PID        int // on the host, 0 unless Created or Running
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int
	OOMKilled  bool
	Reason     string
	Message    string
	User       *User // nil if it is not known
	StopSignal string
}

// User is who a container's first process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // GID among them
}

// Usage is what a container or a pod uses now.
type Usage struct {
	Time        time.Time
	CPU         time.Duration // CPU time used since the start
	Memory      uint64        // bytes charged
	WorkingSet  uint64        // Memory without the inactive page cache
	RSS         uint64        // anonymous memory
	PIDs        uint64
	MemoryLimit uint64 // 0: none
	PageFaults  uint64
	MajorFaults uint64
	// Of the periods in which its CPU limit counts, so many have passed, in so
	// many of them it had to wait, and for so long in all.
	Periods, Throttled uint64
	ThrottledTime      time.Duration
}

// Image is one image in the store.
type Image struct {
	ID      string   // "sha256:…" of its config
	Names   []string // "docker.io/library/nginx:1.27", sorted
	Digests []string // "docker.io/library/nginx@sha256:…", sorted
	Size    int64    // bytes unpacked
	// The rest is the image's config.
	User         string
	Env          []string
	Entrypoint   []string
	Cmd          []string
	WorkingDir   string
	StopSignal   string
	Volumes      []string
	Architecture string
	Created      time.Time
	Pinned       bool // its archive lies in the drop folder
}

// PullOptions are how to pull.
type PullOptions struct {
	// Credentials are what fits a repository ("registry.lan:5000/team/app"), to
	// be tried in this order; nothing, or nil, is nobody.
	Credentials func(repository string) ([]Credential, error)
	// Fresh wants what the registry says now: a registry that does not answer
	// is an error, whatever other nodes have. A digest is always fresh.
	Fresh bool
	// Platform picks from an index, nil for this host's.
	Platform *v1.Platform
	// Progress, if not nil, is told of bytes fetched and to fetch. It is called
	// from several goroutines, one at a time.
	Progress func(done, total int64)
}
