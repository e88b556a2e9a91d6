package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/cg"
	"conclave/runtime/internal/proto"
)

// processesCgroup holds the pod processes, below Config.CgroupParent: outside
// the engine's own, so that stopping that one by its cgroup (as systemd does)
// leaves them, and outside the pods', whose limits are for their containers.
const processesCgroup = "runtime"

// spawner starts pod processes. On cgroup version 1 its thread lives in their
// cgroup, and a child is born where the thread is: moving each child instead
// would cost a write per hierarchy. On version 2 clone does it.
//
// The thread also enters namespaces of the pod for the moment of the fork. It is never given back to Go's scheduler: it ends with stop.
type spawner struct {
	requests chan spawnRequest
	quit     chan struct{} // closed by stop
	ended    chan struct{} // closed by run
	once     sync.Once     // of stop
	cgroup   *os.File      // in the tree of version 2, if there is one
}

type spawnRequest struct {
	cmd   *exec.Cmd
	enter []namespace
	err   chan<- error
}

// namespace is one to be in for the moment of the fork. The kinds are those
// that each thread has for itself.
type namespace struct {
	kind string
	flag int
	path string
}

func newSpawner(path string, v2 bool) (*spawner, error) {
	m, err := cg.Open(path, nil)
	if err == nil {
		err = m.Apply(-1)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: make %s: %w", ErrNoCgroups, path, err)
	}
	s := &spawner{requests: make(chan spawnRequest), quit: make(chan struct{}), ended: make(chan struct{})}
	// Of version 2, and of the tree of version 2 that systemd puts beside
	// version 1 to keep track of processes.
	if dir := m.Path(""); dir != "" {
		if s.cgroup, err = os.Open(dir); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoCgroups, err)
		}
	}
	ready := make(chan error, 1)
	go s.run(path, v2, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return s, nil
}

// stop ends the thread; more than once is as good.
func (s *spawner) stop() {
	s.once.Do(func() {
		close(s.quit)
		<-s.ended
		if s.cgroup != nil {
			s.cgroup.Close()
		}
	})
}

// start starts cmd in these namespaces, the host's for kinds not among them.
func (s *spawner) start(cmd *exec.Cmd, enter []namespace) error {
	err := make(chan error, 1)
	select {
	case s.requests <- spawnRequest{cmd, enter, err}:
		return <-err
	case <-s.ended:
		return errEnding
	}
}

// StartBeside starts a process that outlives this one: in the cgroup of the
// pods' processes, which nobody stops with the engine's. Teardown and Purge end
// it.
func (e *Engine) StartBeside(cmd *exec.Cmd) error { return e.spawn.start(cmd, nil) }

func (s *spawner) run(path string, v2 bool, ready chan<- error) {
	runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
	if unix.Gettid() == os.Getpid() {
		// The main thread would not end, and is what /proc/PID shows. While it
		// is locked, another goroutine gets another thread.
		defer runtime.UnlockOSThread()
		again := make(chan struct{})
		go func() {
			defer close(again)
			s.run(path, v2, ready)
		}()
		<-again
		return
	}
	defer close(s.ended)
	home := map[string]*os.File{}
	var err error
	for _, kind := range []string{"net", "ipc", "uts"} {
		if home[kind], err = os.Open("/proc/thread-self/ns/" + kind); err != nil {
			break
		}
		defer home[kind].Close()
	}
	var back map[string]string
	if err == nil && !v2 {
		back, err = joinV1(path)
	}
	ready <- err
	if err != nil {
		return
	}
	// Lest the end of the thread, which nobody can wait for, keep the cgroup.
	defer func() {
		for dir, path := range back {
			_ = writeTask(dir, path) // the thread ends all the same
		}
	}()
	for {
		select {
		case r := <-s.requests:
			r.err <- s.startHere(r, home)
		case <-s.quit:
			return
		}
	}
}

func (s *spawner) startHere(r spawnRequest, home map[string]*os.File) (err error) {
	if s.cgroup != nil {
		r.cmd.SysProcAttr.UseCgroupFD = true
		r.cmd.SysProcAttr.CgroupFD = int(s.cgroup.Fd())
	}
	for _, n := range r.enter {
		ns, err := os.Open(n.path)
		if err != nil {
			return fmt.Errorf("%s namespace: %w", n.kind, err)
		}
		err = unix.Setns(int(ns.Fd()), n.flag)
		ns.Close()
		if err != nil {
			return fmt.Errorf("enter %s namespace %s: %w", n.kind, n.path, err)
		}
		defer func() {
			if back := unix.Setns(int(home[n.kind].Fd()), n.flag); back != nil {
				// Never start anything else in the wrong place.
				panic(fmt.Sprintf("runtime: cannot leave %s namespace %s: %v", n.kind, n.path, back))
			}
		}()
	}
	return r.cmd.Start()
}

// joinV1 puts the calling thread into the cgroup, in each hierarchy, and
// returns where it was.
func joinV1(path string) (back map[string]string, err error) {
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCgroups, err)
	}
	own, err := cgroups.ParseCgroupFile("/proc/thread-self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoCgroups, err)
	}
	back = map[string]string{}
	for _, m := range mounts {
		// Hierarchies without a manager in the library (named ones) are made here.
		if err := os.MkdirAll(filepath.Join(m.Mountpoint, path), 0o755); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoCgroups, err)
		}
		if err := writeTask(m.Mountpoint, path); err != nil {
			return nil, fmt.Errorf("%w: join %s: %w", ErrNoCgroups, path, err)
		}
		for _, subsystem := range m.Subsystems {
			if was, ok := own[subsystem]; ok {
				back[m.Mountpoint] = was
			}
		}
	}
	return back, nil
}

func writeTask(hierarchy, path string) error {
	return os.WriteFile(filepath.Join(hierarchy, path, "tasks"), []byte(strconv.Itoa(unix.Gettid())), 0)
}

// podCommand is the process of a pod, in a session of its own and in new IPC
// and UTS namespaces unless the pod uses the host's, or has some already.
func podCommand(binary, layers, dir string, p proto.Pod, listener, stderr *os.File) *exec.Cmd {
	attr := &syscall.SysProcAttr{Setsid: true}
	if p.Hostname != "" && p.IDs == 0 {
		attr.Cloneflags |= unix.CLONE_NEWUTS
	}
	if !p.HostIPC && p.IDs == 0 {
		attr.Cloneflags |= unix.CLONE_NEWIPC
	}
	return &exec.Cmd{
		Path: binary,
		Args: []string{"conclave-pod", "serve", dir},
		// One processor is enough for it and for the first process of a
		// container, which inherits this: fewer threads, less memory.
		Env:         []string{"GOMAXPROCS=1", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Dir:         layers, // layers are named relative to it
		Stderr:      stderr,
		ExtraFiles:  []*os.File{listener},
		SysProcAttr: attr,
	}
}
