package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"conclave/runtime/internal/cg"
)

// processesCgroup holds the pod processes, below Config.CgroupParent: outside
// the engine's own, so that stopping that one by its cgroup (as systemd does)
// leaves them, and outside the pods', whose limits are for their containers.
const processesCgroup = "runtime"

// spawner starts pod processes. On cgroup version 1 its thread lives in their
// cgroup, and a child is born where the thread is: moving each child instead
// would cost a write per hierarchy. On version 2 clone does it.
//
// The thread also enters the pod's network namespace for the moment of the
// fork. It is never given back to Go's scheduler: it ends with stop.
type spawner struct {
	requests chan spawnRequest
	quit     chan struct{} // closed by stop
	ended    chan struct{} // closed by run
	cgroup   *os.File      // version 2 only
}

type spawnRequest struct {
	cmd   *exec.Cmd
	netns string
	err   chan<- error
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
	if v2 {
		if s.cgroup, err = os.Open(m.Path("")); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoCgroups, err)
		}
	}
	ready := make(chan error)
	go s.run(path, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return s, nil
}

func (s *spawner) stop() {
	close(s.quit)
	<-s.ended
	if s.cgroup != nil {
		s.cgroup.Close()
	}
}

// start starts cmd in a network namespace, the host's if netns is empty.
func (s *spawner) start(cmd *exec.Cmd, netns string) error {
	err := make(chan error, 1)
	select {
	case s.requests <- spawnRequest{cmd, netns, err}:
		return <-err
	case <-s.ended:
		return errEnding
	}
}

func (s *spawner) run(path string, ready chan<- error) {
	defer close(s.ended)
	runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
	home, err := os.Open("/proc/thread-self/ns/net")
	if err == nil && s.cgroup == nil {
		err = joinV1(path)
	}
	ready <- err
	if err != nil {
		return
	}
	defer home.Close()
	for {
		select {
		case r := <-s.requests:
			r.err <- s.startHere(r, home)
		case <-s.quit:
			return
		}
	}
}

func (s *spawner) startHere(r spawnRequest, home *os.File) (err error) {
	if s.cgroup != nil {
		r.cmd.SysProcAttr.UseCgroupFD = true
		r.cmd.SysProcAttr.CgroupFD = int(s.cgroup.Fd())
	}
	if r.netns != "" {
		ns, err := os.Open(r.netns)
		if err != nil {
			return fmt.Errorf("network namespace: %w", err)
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", r.netns, err)
		}
		defer func() {
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
				// Never start anything else in the wrong place.
				panic(fmt.Sprintf("runtime: cannot leave network namespace %s: %v", r.netns, back))
			}
		}()
	}
	return r.cmd.Start()
}

// joinV1 puts the calling thread into the cgroup, in each hierarchy.
func joinV1(path string) error {
	dirs, err := cg.Hierarchies()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoCgroups, err)
	}
	tid := strconv.Itoa(unix.Gettid())
	for _, d := range dirs {
		dir := filepath.Join(d, path)
		// Hierarchies without a manager in the library (named ones) are made here.
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("%w: %w", ErrNoCgroups, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte(tid), 0); err != nil {
			return fmt.Errorf("%w: join %s: %w", ErrNoCgroups, dir, err)
		}
	}
	return nil
}

// podCommand is the process of a pod, in a session of its own and in new IPC
// and UTS namespaces unless the pod uses the host's.
func podCommand(binary, layers, dir string, hostname string, hostIPC bool, listener, stderr *os.File) *exec.Cmd {
	attr := &syscall.SysProcAttr{Setsid: true}
	if hostname != "" {
		attr.Cloneflags |= unix.CLONE_NEWUTS
	}
	if !hostIPC {
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
