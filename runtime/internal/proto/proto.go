// Package proto is what the engine and the process of a pod say to each other.
//
// They speak over a unix socket in the pod's run folder: a length of four
// bytes, big-endian, then a JSON body; file descriptors ride with the length.
// A connection carries one Request. Its answer is one Response, but for three
// operations that keep the connection open: watch (a response per change),
// exec (started, then ended) and attach (connected, then ended). A client that
// hangs up during exec kills the command; during attach it detaches.
//
// A pod process lives as long as its pod and may be older than the engine that
// speaks to it: fields are only added, never reused.
package proto

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Version is the version of the protocol and of the records on disk.
const Version = 1

// maxFrame bounds a body: a pod's environment may hold a few whole ConfigMaps.
const maxFrame = 16 << 20

// maxFiles is how many descriptors one frame may carry.
const maxFiles = 4

// ListenFD is the descriptor on which a pod process finds its listener.
const ListenFD = 3

// Names in a pod's run folder.
const (
	PodFile       = "pod.json"
	SocketFile    = "sock"
	StderrFile    = "stderr"
	ContainersDir = "containers"
	StateDir      = "state"
	ShmDir        = "shm"
)

// Names in a container's folder on disk.
const (
	UpperDir  = "upper"
	WorkDir   = "work"
	RootFSDir = "rootfs"
)

// PauseEnv in the environment makes the pod program the init of a shared
// process namespace, before Go starts.
const PauseEnv = "_CONCLAVE_PAUSE"

// Pod is what a pod process reads at its start.
type Pod struct {
	Version        int
	ID             string
	Namespace      string            `json:",omitempty"`
	Name           string            `json:",omitempty"`
	Hostname       string            `json:",omitempty"`
	NetNS          string            `json:",omitempty"`
	CgroupPath     string            // of the pod, below the root of each hierarchy
	QOS            string            `json:",omitempty"`
	IDs            uint32            `json:",omitempty"` // the first of its own users and groups; 0: the host's
	Holder         int               `json:",omitempty"` // the process that holds its namespaces, with IDs
	HostPID        bool              `json:",omitempty"`
	HostIPC        bool              `json:",omitempty"`
	ShareProcesses bool              `json:",omitempty"`
	Sysctls        map[string]string `json:",omitempty"`
	Resources      *specs.LinuxResources
	// Fence is the path of the node's fence if the pod must not run twice;
	// empty if it may.
	Fence string `json:",omitempty"`
}

// Namespace is the path of a process' namespace.
func Namespace(pid int, kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, kind) }

// State is a container's state; the words are the engine's.
type State string

// The states of a container.
const (
	Created State = "Created"
	Running State = "Running"
	Exited  State = "Exited"
)

// Record is what is known of a container. The pod process writes it to disk
// before it tells anybody.
type Record struct {
	ID       string
	Image    string
	Seq      uint64 // grows with each change of this container
	State    State
	PID      int `json:",omitempty"`
	Created  time.Time
	Started  time.Time `json:",omitzero"`
	Finished time.Time `json:",omitzero"`
	ExitCode int       `json:",omitempty"`
	OOM      bool      `json:",omitempty"`
	Reason   string    `json:",omitempty"`
	Message  string    `json:",omitempty"`
	Stop     int       `json:",omitempty"` // the signal that asks it to stop
	TTY      bool      `json:",omitempty"`
	User     *User     `json:",omitempty"` // nil in records of older programs
}

// User is who a container's first process runs as, in the pod's own numbers.
type User struct {
	UID, GID uint32
	Groups   []uint32 `json:",omitempty"` // GID among them
}

// Op is what a Request asks for.
type Op string

// The operations.
const (
	OpWatch    Op = "watch"    // Version, PID, Records, then each record that changes
	OpCreate   Op = "create"   // Create
	OpStart    Op = "start"    // ID
	OpRun      Op = "run"      // Create, then start
	OpStop     Op = "stop"     // ID, Signal, Grace
	OpRemove   Op = "remove"   // ID; kills first
	OpExec     Op = "exec"     // ID, Exec, with files
	OpAttach   Op = "attach"   // ID, Attach, with files
	OpUpdate   Op = "update"   // ID, Resources
	OpShutdown Op = "shutdown" // kill everything, then exit
	OpFence    Op = "fence"    // Fence
)

// Request is the first frame of a connection.
type Request struct {
	Op        Op
	ID        string                `json:",omitempty"`
	Create    *Create               `json:",omitempty"`
	Exec      *Exec                 `json:",omitempty"`
	Attach    *Attach               `json:",omitempty"`
	Signal    int                   `json:",omitempty"`
	Grace     time.Duration         `json:",omitempty"`
	Resources *specs.LinuxResources `json:",omitempty"`
	Fence     string                `json:",omitempty"` // as in Pod
}

// Create says how to make a container. Spec.Root.Path is Dir/rootfs; its user,
// and HOME in its environment, are filled in once the root filesystem is
// there.
type Create struct {
	Image      string
	Dir        string   // of the container, on disk
	Layers     []string // relative to the process' working directory, topmost first
	Spec       *Spec
	User       string   // "name", "uid", "uid:gid"; empty is root
	Groups     []uint32 `json:",omitempty"`
	OnlyGroups bool     `json:",omitempty"` // none of those that /etc/group has for the user
	TTY        bool     `json:",omitempty"`
	Stdin      bool     `json:",omitempty"`
	StdinOnce  bool     `json:",omitempty"`
	StopSignal int
	Log        Log
	// Epoch is that of the fence in which the start was allowed, if the pod is
	// fenced.
	Epoch uint64 `json:",omitempty"`
}

// Log is where output goes.
type Log struct {
	Path     string `json:",omitempty"`
	MaxSize  int64  `json:",omitempty"`
	MaxFiles int    `json:",omitempty"`
}

// Exec is a command in a running container. With TTY the frame carries one
// file, the socket to which the terminal is sent. Without, it carries those
// of stdin, stdout and stderr that are set, in this order.
type Exec struct {
	Args   []string
	TTY    bool `json:",omitempty"`
	Stdin  bool `json:",omitempty"`
	Stdout bool `json:",omitempty"`
	Stderr bool `json:",omitempty"`
}

// Attach connects to the container's streams. The frame carries the write ends
// for stdout and stderr that are set; the response carries the container's
// stdin, or its terminal, if it has one and Stdin is set. CloseStdin in a
// second request on the connection says that stdin has ended.
type Attach struct {
	Stdin      bool `json:",omitempty"`
	Stdout     bool `json:",omitempty"`
	Stderr     bool `json:",omitempty"`
	CloseStdin bool `json:",omitempty"`
}

// Response answers a Request.
type Response struct {
	Error    *Error   `json:",omitempty"`
	Version  int      `json:",omitempty"`
	PID      int      `json:",omitempty"`
	Record   *Record  `json:",omitempty"`
	Records  []Record `json:",omitempty"`
	Fence    string   `json:",omitempty"` // of watch: the fence that is obeyed
	ExitCode int      `json:",omitempty"`
	Done     bool     `json:",omitempty"` // of exec and attach: this is the end
}

// Code tells errors apart.
type Code string

// The codes of an Error.
const (
	CodeNotFound   Code = "not found"
	CodeExists     Code = "exists"
	CodeNotRunning Code = "not running"
	CodeStart      Code = "start"  // the container's own program could not be started
	CodeFenced     Code = "fenced" // the node may not run this pod now
	CodeOther      Code = "other"
)

// ReasonFenced is the Record's reason of a container that was killed because
// its node may no longer run it.
const ReasonFenced = "Fenced"

// Error is a refusal or a failure.
type Error struct {
	Code    Code
	Message string
}

func (e *Error) Error() string { return e.Message }

// Write sends v, with files.
func Write(c *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxFrame {
		return fmt.Errorf("message of %d bytes is too large", len(body))
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], uint32(len(body)))
	if len(files) == 0 {
		_, err = (&net.Buffers{head[:], body}).WriteTo(c)
		return err
	}
	fds := make([]int, len(files))
	for i, f := range files {
		// Not Fd, which would make a shared description blocking.
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
		}
		if err != nil {
			return err
		}
	}
	// The descriptors go with the first bytes only: a stream socket may cut a
	// longer message, and would then send them again or not at all.
	if _, _, err = c.WriteMsgUnix(head[:], unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	runtime.KeepAlive(files)
	_, err = c.Write(body)
	return err
}

// Read receives v and the files that came with it. The caller closes them.
func Read(c *net.UnixConn, v any) (files []*os.File, err error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(head[:], oob)
	if err != nil {
		return nil, err
	}
	if n == 0 && oobn == 0 {
		return nil, io.EOF
	}
	defer func() {
		if err != nil {
			Close(files)
			files = nil
		}
	}()
	if files, err = parseFiles(oob[:oobn]); err != nil {
		return files, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return files, errors.New("too many files in a message")
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return files, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		return files, fmt.Errorf("message of %d bytes is too large", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return files, err
	}
	return files, json.Unmarshal(body, v)
}

// ReadFile receives one file, as libcontainer sends a terminal.
func ReadFile(c *net.UnixConn) (*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	buf := make([]byte, 4096)
	_, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, err
	}
	files, err := parseFiles(oob[:oobn])
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	Close(files[1:])
	return files[0], nil
}

func parseFiles(oob []byte) (files []*os.File, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// Close closes files.
func Close(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Pollable returns f as a file whose reads and writes wait in Go's poller, not
// in a thread, and obey deadlines. f is spent.
func Pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	name := f.Name()
	f.Close()
	if err != nil {
		return nil, os.NewSyscallError("dup", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("set nonblock", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Pipe returns a pipe whose near end waits in Go's poller, and whose far end
// is blocking, as a program expects it of its standard streams.
func Pipe(nearReads bool) (near, far *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe", err)
	}
	n, f := p[0], p[1]
	if !nearReads {
		n, f = f, n
	}
	if err := unix.SetNonblock(n, true); err != nil {
		unix.Close(n)
		unix.Close(f)
		return nil, nil, os.NewSyscallError("set nonblock", err)
	}
	return os.NewFile(uintptr(n), "pipe"), os.NewFile(uintptr(f), "pipe"), nil
}

// WriteFile replaces a small file at once. The folder is on a tmpfs: nothing
// is synced.
func WriteFile(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// SocketPair returns a connection and the other end, for another process.
func SocketPair() (*net.UnixConn, *os.File, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	near, far := os.NewFile(uintptr(p[0]), "socket"), os.NewFile(uintptr(p[1]), "socket")
	defer near.Close()
	c, err := net.FileConn(near)
	if err != nil {
		far.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), far, nil
}
