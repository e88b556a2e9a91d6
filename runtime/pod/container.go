//go:build linux && cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fscommon"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/cg"
	"conclave/runtime/internal/proto"
)

// startMemory is the least memory limit under which a container is started:
// until it becomes the container's program, its first process is this program,
// inside the container's cgroup. A smaller limit is set once it has become it.
const startMemory = 24 << 20

// drainPatience is how long the output of an exited container is waited for:
// only a process outside it can still hold the other end.
const drainPatience = 2 * time.Second

// codeNotStarted is the exit code of a container whose program could not be
// started, and codeKilled of a process that SIGKILL ended.
const (
	codeNotStarted = 128
	codeKilled     = 128 + int(unix.SIGKILL)
)

const fencedMessage = "The node lost the masters: they may have this pod run elsewhere, so it was killed here"

// container is one container of the pod.
type container struct {
	rec proto.Record // guarded by server.mu; Seq 0 until it exists whole

	epoch  uint64 // of the fence, in which it was started; guarded by server.mu
	fenced bool   // it is killed for the fence's sake; guarded by server.mu

	dir     string
	lc      *libcontainer.Container
	proc    *libcontainer.Process
	process *specs.Process // what exec starts from
	owner   int            // its root, as the host knows it
	private bool           // it has a process namespace of its own
	oomFile string         // folder of the file that counts OOM kills
	limits  *cgroups.Resources
	out     *output
	pumps   sync.WaitGroup

	stdinMu   sync.Mutex // guards the files, once the container exists whole
	streams   []*os.File // what the pumps read: two pipes, or the terminal
	stdin     *os.File   // the write end, or the terminal; nil if none or closed
	tty       bool
	stdinOnce bool

	startedAt time.Time     // when the program was let go; guarded by server.mu
	done      chan struct{} // closed when the exit is recorded
	cleaned   chan struct{} // closed when cgroup and mount are gone
}

// create makes a container up to the moment before its program starts.
func (s *server) create(id string, req *proto.Create) (err error) {
	c := &container{
		rec:       proto.Record{ID: id, Image: req.Image, Stop: req.StopSignal, TTY: req.TTY},
		dir:       req.Dir,
		process:   req.Spec.Process,
		tty:       req.TTY,
		stdinOnce: req.StdinOnce,
		epoch:     req.Epoch,
		owner:     int(s.pod.IDs),
		done:      make(chan struct{}),
		cleaned:   make(chan struct{}),
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return errors.New("the pod is being stopped")
	}
	if s.containers[id] != nil {
		s.mu.Unlock()
		return &proto.Error{Code: proto.CodeExists, Message: "container " + id + " already exists"}
	}
	if err := s.allowed(req.Epoch); err != nil {
		s.mu.Unlock()
		return err
	}
	s.containers[id] = c
	s.watchFence()
	s.mu.Unlock()

	if err := s.build(c, id, req); err != nil {
		s.release(c)
		s.mu.Lock()
		delete(s.containers, id)
		s.mu.Unlock()
		close(c.done)
		close(c.cleaned)
		return err
	}
	if err := s.launch(c, req); err != nil {
		s.release(c)
		now := time.Now()
		werr := s.change(c, func(r *proto.Record) bool {
			r.State, r.Created, r.Finished = proto.Exited, now, now
			r.ExitCode, r.Reason, r.Message = codeNotStarted, "StartError", err.Error()
			if c.fenced {
				r.ExitCode, r.Reason, r.Message = codeKilled, proto.ReasonFenced, fencedMessage
			}
			return true
		})
		close(c.done)
		close(c.cleaned)
		return errors.Join(&proto.Error{Code: proto.CodeStart, Message: err.Error()}, werr)
	}
	pid, err := c.proc.Pid()
	if err != nil {
		return err
	}
	for i, r := range c.streams {
		stream := [...]string{"stdout", "stderr"}[i]
		c.pumps.Go(func() { pump(r, stream, c.out) })
	}
	err = s.change(c, func(r *proto.Record) bool {
		r.State, r.Created, r.PID = proto.Created, time.Now(), pid
		u := c.process.User
		r.User = &proto.User{UID: u.UID, GID: u.GID, Groups: u.AdditionalGids}
		return true
	})
	go s.reap(c)
	s.mu.Lock()
	doomed := s.closing || c.fenced
	s.mu.Unlock()
	if doomed { // shutdown, or the fence, passed over it
		c.kill()
	}
	return err
}

// build makes the root filesystem, resolves the user and prepares libcontainer.
func (s *server) build(c *container, id string, req *proto.Create) error {
	if err := mountRoot(req.Dir, req.Layers, mapping{s.users, int(s.pod.IDs), filepath.Join(s.dir, "lower")}); err != nil {
		return err
	}
	if s.users != nil {
		req.Spec.Linux.Namespaces = append(req.Spec.Linux.Namespaces, specs.LinuxNamespace{
			Type: specs.UserNamespace, Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.users.Fd()),
		})
	}
	root := req.Spec.Root.Path
	u, err := lookUpUser(root, req.User, req.Groups, req.OnlyGroups)
	if err != nil {
		return err
	}
	p := req.Spec.Process
	p.User = specs.User{UID: u.uid, GID: u.gid, AdditionalGids: u.groups}
	if !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		p.Env = append(p.Env, "HOME="+u.home)
	}
	if score := p.OOMScoreAdj; score != nil {
		*score = max(*score, s.lowestScore)
	}
	if init := s.sharedInit(); init != 0 {
		for i, ns := range req.Spec.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				req.Spec.Linux.Namespaces[i].Path = proto.Namespace(init, "pid")
			}
		}
	}
	config, err := specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: req.Spec.OCI()})
	if err != nil {
		return err
	}
	c.private = config.Namespaces.IsPrivate(configs.NEWPID)
	if r := config.Cgroups.Resources; r.Memory > 0 && r.Memory < startMemory {
		limits := *r
		limits.SkipDevices = true
		c.limits = &limits
		r.Memory = startMemory
		if r.MemorySwap > 0 {
			r.MemorySwap = max(r.MemorySwap, startMemory)
		}
	}
	if c.out, err = newOutput(req.Log.Path, req.Log.MaxSize, req.Log.MaxFiles); err != nil {
		return err
	}
	if c.lc, err = libcontainer.Create(filepath.Join(s.dir, proto.StateDir), id, config); err != nil {
		return err
	}
	return nil
}

// sharedInit is the init of the process namespace that the pod's containers
// share, 0 if they share none.
func (s *server) sharedInit() int {
	switch {
	case s.pause != nil:
		return s.pause.Process.Pid
	case s.pod.ShareProcesses && !s.pod.HostPID:
		return s.pod.Holder
	}
	return 0
}

// launch starts the container's first process, up to the fifo before its
// program.
func (s *server) launch(c *container, req *proto.Create) error {
	c.proc = newProcess(c.process)
	c.proc.Init = true
	var far []*os.File
	defer func() { proto.Close(far) }()
	var console *net.UnixConn
	if req.TTY {
		near, child, err := proto.SocketPair()
		if err != nil {
			return err
		}
		defer near.Close()
		far = append(far, child)
		console, c.proc.ConsoleSocket = near, child
	} else {
		for range 2 {
			r, w, err := proto.Pipe(true)
			if err != nil {
				return err
			}
			c.streams = append(c.streams, r)
			far = append(far, w)
		}
		c.proc.Stdout, c.proc.Stderr = far[0], far[1]
		if req.Stdin {
			w, r, err := proto.Pipe(false)
			if err != nil {
				return err
			}
			c.stdin = w
			far = append(far, r)
			c.proc.Stdin = r
		}
	}
	for _, f := range far {
		if !req.TTY && c.owner != 0 { // or the container could not open its own output
			if err := f.Chown(c.owner, c.owner); err != nil {
				return err
			}
		}
	}
	s.births.begin()
	err := c.lc.Start(c.proc)
	s.births.end(c.proc, err)
	if err != nil {
		return err
	}
	if req.TTY {
		master, err := proto.ReadFile(console)
		if err != nil {
			return fmt.Errorf("receive the terminal: %w", err)
		}
		if master, err = proto.Pollable(master); err != nil {
			return err
		}
		c.streams = []*os.File{master}
		if req.Stdin {
			c.stdin = master
		}
	}
	state, err := c.lc.State()
	if err != nil {
		return err
	}
	c.oomFile = state.CgroupPaths["memory"]
	if cgroups.IsCgroup2UnifiedMode() {
		c.oomFile = state.CgroupPaths[""]
	}
	return nil
}

// release undoes build and launch, as far as they came.
func (s *server) release(c *container) {
	if c.lc != nil {
		_ = c.lc.Signal(unix.SIGKILL) // it may not have come to live
		if c.proc != nil {
			_, _ = s.births.wait(c.proc)
		}
		_ = c.lc.Destroy() // the engine removes the pod's cgroup whole
	}
	proto.Close(c.streams)
	if c.stdin != nil && !c.tty {
		c.stdin.Close()
	}
	c.stdin = nil
	if c.out != nil {
		c.out.end()
	}
	unmountRoot(c.dir)
}

// start lets the program go.
func (s *server) start(id string) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	state := c.rec.State
	if state == proto.Created && c.startedAt.IsZero() {
		c.startedAt = time.Now()
	} else if state == proto.Created {
		state = proto.Running // somebody else is starting it
	}
	s.mu.Unlock()
	switch state {
	case proto.Running:
		return nil
	case proto.Exited:
		return &proto.Error{Code: proto.CodeNotRunning, Message: "container " + id + " has exited"}
	}
	var before os.FileInfo
	if c.limits != nil {
		before, _ = os.Stat(c.exe()) // nil if it is gone already
	}
	if err := c.lc.Exec(); err != nil {
		return &proto.Error{Code: proto.CodeStart, Message: err.Error()}
	}
	if c.limits != nil {
		if err := c.shrink(before); err != nil {
			c.kill()
			return &proto.Error{Code: proto.CodeStart, Message: err.Error()}
		}
	}
	return s.change(c, func(r *proto.Record) bool {
		if r.State != proto.Created {
			return false // it has exited meanwhile
		}
		r.State, r.Started = proto.Running, c.startedAt
		return true
	})
}

func (c *container) exe() string {
	pid, _ := c.proc.Pid() // of a started process
	return "/proc/" + strconv.Itoa(pid) + "/exe"
}

// shrink sets a memory limit that was too small for the start. The first
// process execs within a millisecond of being let go; nothing tells us when,
// so it is looked at. A program that uses more than its limit by then is
// killed, as it would be a moment later.
func (c *container) shrink(before os.FileInfo) error {
	deadline := time.Now().Add(5 * time.Second)
	for before != nil && time.Now().Before(deadline) {
		now, err := os.Stat(c.exe())
		if err != nil || !os.SameFile(before, now) {
			break
		}
		time.Sleep(200 * time.Microsecond)
	}
	config := c.lc.Config()
	cgroup := *config.Cgroups
	cgroup.Resources = c.limits
	config.Cgroups = &cgroup
	err := c.lc.Set(config)
	c.limits.SkipDevices = false // libcontainer refuses exec with it set
	if errors.Is(err, libcontainer.ErrNotRunning) || !c.alive() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("set the memory limit of %d bytes: %w", c.limits.Memory, err)
	}
	return nil
}

func (c *container) alive() bool {
	select {
	case <-c.done:
		return false
	default:
	}
	_, err := os.Stat(c.exe())
	return err == nil
}

// kill kills the whole container.
func (c *container) kill() {
	if c.lc == nil {
		return
	}
	select {
	case <-c.done:
	default:
		_ = c.lc.Signal(unix.SIGKILL) // not running any more is as good
	}
}

// reap waits for the exit, and records it once the output is complete.
func (s *server) reap(c *container) {
	state, err := s.births.wait(c.proc)
	finished := time.Now()
	code := 255
	if err == nil || state != nil {
		code = exitCode(state)
	}
	if !c.private {
		_ = c.lc.Signal(unix.SIGKILL) // what it left behind, if anything
	}
	for _, r := range c.streams {
		_ = r.SetReadDeadline(time.Now().Add(drainPatience)) // closed is as good
	}
	c.pumps.Wait()
	oom := oomKills(c.oomFile)
	c.stdinMu.Lock()
	if c.stdin != nil && !c.tty {
		c.stdin.Close()
	}
	c.stdin = nil
	proto.Close(c.streams)
	c.streams = nil
	c.stdinMu.Unlock()
	c.out.end()
	err = s.change(c, func(r *proto.Record) bool {
		r.State, r.PID, r.Finished, r.ExitCode = proto.Exited, 0, finished, code
		if r.Started.IsZero() {
			r.Started = c.startedAt
		}
		r.OOM = oom > 0 && code != 0
		switch {
		case c.fenced && code == codeKilled:
			r.Reason, r.Message = proto.ReasonFenced, fencedMessage
		case r.OOM:
			r.Reason = "OOMKilled"
		case code == 0:
			r.Reason = "Completed"
		default:
			r.Reason = "Error"
		}
		return true
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err) // there is nobody to return it to
	}
	close(c.done)
	_ = c.lc.Destroy() // what stays goes with the pod's cgroup
	unmountRoot(c.dir)
	close(c.cleaned)
	s.rest.change()
}

// oomKills reads how often the kernel killed in a memory cgroup.
func oomKills(dir string) uint64 {
	var n uint64
	var err error
	if cgroups.IsCgroup2UnifiedMode() {
		n, err = fscommon.GetValueByKey(dir, "memory.events", "oom_kill")
	} else {
		n, err = fs.OOMKillCount(dir)
	}
	if err != nil {
		return 0
	}
	return n
}

// stop asks a container to end, and kills it after the grace. It goes on when
// the caller leaves.
func (s *server) stop(ctx context.Context, id string, signal int, grace time.Duration) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	state, sig := c.rec.State, syscall.Signal(c.rec.Stop)
	s.mu.Unlock()
	if state == proto.Exited {
		return nil
	}
	if signal != 0 {
		sig = syscall.Signal(signal)
	}
	if grace <= 0 || state == proto.Created {
		c.kill()
	} else if err := c.proc.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v: %w", sig, err)
	}
	killer := time.AfterFunc(max(grace, time.Millisecond), c.kill)
	select {
	case <-c.done:
		killer.Stop()
	case <-ctx.Done():
	}
	return nil
}

// remove forgets a container, killing it first if it lives.
func (s *server) remove(id string) error {
	c, err := s.get(id)
	if err != nil {
		return err
	}
	c.kill()
	<-c.cleaned
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
	if err := os.Remove(s.recordPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// update changes a container's limits.
func (s *server) update(id string, r *specs.LinuxResources) error {
	c, err := s.running(id)
	if err != nil {
		return err
	}
	config := c.lc.Config()
	cgroup, res := *config.Cgroups, *config.Cgroups.Resources
	cg.Update(&res, r)
	res.SkipDevices = true
	cgroup.Resources, config.Cgroups = &res, &cgroup
	err = c.lc.Set(config)
	res.SkipDevices = false // see shrink
	return err
}

func (s *server) running(id string) (*container, error) {
	c, err := s.get(id)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.rec.State != proto.Running {
		return nil, &proto.Error{Code: proto.CodeNotRunning, Message: fmt.Sprintf("container %s is not running: it is %s", id, strings.ToLower(string(c.rec.State)))}
	}
	return c, nil
}

// exec runs a command in a container until it ends or the caller hangs up.
func (s *server) exec(conn *net.UnixConn, id string, req *proto.Exec, files []*os.File) (proto.Response, error) {
	c, err := s.running(id)
	if err != nil {
		return proto.Response{}, err
	}
	process := *c.process
	process.Args = req.Args
	process.Env = slices.Clone(process.Env)
	if req.TTY && !slices.ContainsFunc(process.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		process.Env = append(process.Env, "TERM=xterm")
	}
	p := newProcess(&process)
	want := 0
	take := func() (f *os.File) {
		if want < len(files) {
			f = files[want]
		}
		want++
		return f
	}
	if req.TTY {
		p.ConsoleSocket = take()
	} else {
		// A nil file inside an interface would not be a nil interface.
		if req.Stdin {
			p.Stdin = take()
		}
		if req.Stdout {
			p.Stdout = take()
		}
		if req.Stderr {
			p.Stderr = take()
		}
	}
	if want != len(files) {
		return proto.Response{}, fmt.Errorf("exec came with %d files, not %d", len(files), want)
	}
	s.births.begin()
	err = c.lc.Run(p)
	s.births.end(p, err)
	if err != nil {
		return proto.Response{}, &proto.Error{Code: proto.CodeStart, Message: err.Error()}
	}
	proto.Close(files)
	pid, err := p.Pid()
	if err == nil {
		err = proto.Write(conn, proto.Response{PID: pid})
	}
	if err != nil {
		_ = p.Signal(unix.SIGKILL) // nobody is there to see its end
	}
	gone := hangUp(context.Background(), conn)
	stop := context.AfterFunc(gone, func() { _ = p.Signal(unix.SIGKILL) })
	defer stop()
	state, err := s.births.wait(p)
	if err != nil && state == nil {
		return proto.Response{}, err
	}
	return proto.Response{Done: true, ExitCode: exitCode(state)}, nil
}

// attach connects to a container's streams until it exits or the caller hangs
// up.
func (s *server) attach(conn *net.UnixConn, id string, req *proto.Attach, files []*os.File) error {
	c, err := s.running(id)
	if err != nil {
		proto.Close(files)
		return err
	}
	var sinks []*sink
	for _, want := range []struct {
		stream string
		set    bool
	}{{"stdout", req.Stdout}, {"stderr", req.Stderr}} {
		if !want.set || len(files) == 0 {
			continue
		}
		f, err := proto.Pollable(files[0])
		files = files[1:]
		if err != nil {
			proto.Close(files)
			return err
		}
		sinks = append(sinks, &sink{stream: want.stream, file: f})
	}
	proto.Close(files)
	for _, k := range sinks {
		c.out.attach(k)
		defer c.out.detach(k)
	}
	var reply []*os.File
	c.stdinMu.Lock()
	if c.tty {
		reply = c.streams // the terminal: to set its size, even without stdin
	} else if req.Stdin && c.stdin != nil {
		reply = append(reply, c.stdin)
	}
	err = proto.Write(conn, proto.Response{}, reply...)
	c.stdinMu.Unlock()
	if err != nil {
		return err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			var again proto.Request
			files, err := proto.Read(conn, &again)
			if err != nil {
				return
			}
			proto.Close(files)
			if again.Attach != nil && again.Attach.CloseStdin {
				c.closeStdin()
			}
		}
	}()
	select {
	case <-c.done:
	case <-gone:
	}
	return nil
}

// closeStdin follows the end of an attached reader's stdin, if the container
// wants to be attached to once only.
func (c *container) closeStdin() {
	c.stdinMu.Lock()
	defer c.stdinMu.Unlock()
	if c.stdin == nil || !c.stdinOnce || c.tty {
		return
	}
	c.stdin.Close()
	c.stdin = nil
}
