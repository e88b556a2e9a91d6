//go:build linux && cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

// server is the whole pod process.
type server struct {
	dir   string // the pod's run folder
	pod   proto.Pod
	pause *exec.Cmd // the shared process namespace's init, nil without one
	users *os.File  // the pod's user namespace, nil if it is the host's
	// lowestScore is the lowest OOM score that a container can be given here.
	lowestScore int

	rest   *rest
	births births

	// mu guards what follows and every container's rec. It is held while a
	// record is written, which is to a tmpfs.
	mu         sync.Mutex
	containers map[string]*container
	watchers   map[*watcher]struct{}
	guard      *guard // nil unless the pod must not run twice
	closing    bool
}

// watcher is a connection that is told of every change, the newest state of a
// container only if it reads slowly.
type watcher struct {
	dirty map[string]proto.Record
	wake  chan struct{} // holds one token
}

func newServer(dir string, pod proto.Pod) (*server, error) {
	for _, d := range []string{proto.ContainersDir, proto.StateDir} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	lowest, err := protect()
	if err != nil {
		return nil, err
	}
	pause, err := setUp(dir, pod)
	if err != nil {
		return nil, err
	}
	var users *os.File
	if pod.Holder != 0 {
		if users, err = os.Open(proto.Namespace(pod.Holder, "user")); err != nil {
			return nil, fmt.Errorf("user namespace: %w", err)
		}
	}
	s := &server{
		dir:         dir,
		pod:         pod,
		pause:       pause,
		users:       users,
		lowestScore: lowest,
		rest:        newRest(),
		containers:  map[string]*container{},
		watchers:    map[*watcher]struct{}{},
	}
	if pause != nil {
		s.births.know(pause.Process.Pid)
	}
	s.setFence(pod.Fence)
	return s, nil
}

// serve answers until shutdown closes the listener.
func (s *server) serve(l *net.UnixListener) error {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.closing {
				return nil
			}
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer c.Close()
			if s.handle(c) {
				l.Close()
			}
		}()
	}
}

// handle serves one connection. It says whether that was the shutdown.
func (s *server) handle(c *net.UnixConn) (shutdown bool) {
	defer s.rest.change()
	var req proto.Request
	files, err := proto.Read(c, &req)
	if err != nil {
		return false
	}
	defer func() { proto.Close(files) }()
	ctx := context.Background()
	var resp proto.Response
	switch req.Op {
	case proto.OpWatch:
		s.watch(c)
		return false
	case proto.OpCreate:
		err = s.create(req.ID, req.Create)
	case proto.OpStart:
		err = s.start(req.ID)
	case proto.OpRun:
		if err = s.create(req.ID, req.Create); err == nil {
			err = s.start(req.ID)
		}
	case proto.OpStop:
		err = s.stop(hangUp(ctx, c), req.ID, req.Signal, req.Grace)
	case proto.OpRemove:
		err = s.remove(req.ID)
	case proto.OpUpdate:
		err = s.update(req.ID, req.Resources)
	case proto.OpFence:
		s.setFence(req.Fence)
	case proto.OpExec:
		resp, err = s.exec(c, req.ID, req.Exec, files)
	case proto.OpAttach:
		err = s.attach(c, req.ID, req.Attach, files)
		files = nil // they went to the output
		resp.Done = true
	case proto.OpShutdown:
		s.shutdown()
		shutdown = true
	default:
		err = fmt.Errorf("unknown operation %q", req.Op)
	}
	if err != nil {
		resp.Error = asError(err)
	}
	if req.ID != "" {
		resp.Record = s.record(req.ID)
	}
	// If the engine is gone it will ask again when it is back.
	_ = proto.Write(c, resp)
	return shutdown
}

// hangUp returns a context that ends when the other side closes the
// connection, on which nothing more is expected.
func hangUp(ctx context.Context, c *net.UnixConn) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		var b [1]byte
		_, _ = c.Read(b[:]) // any outcome is the end: closing c ends it too
	}()
	return ctx
}

func asError(err error) *proto.Error {
	var e *proto.Error
	if errors.As(err, &e) {
		return &proto.Error{Code: e.Code, Message: err.Error()}
	}
	return &proto.Error{Code: proto.CodeOther, Message: err.Error()}
}

// get returns a container that exists whole.
func (s *server) get(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.rec.Seq == 0 {
		return nil, &proto.Error{Code: proto.CodeNotFound, Message: "container " + id + " not found"}
	}
	return c, nil
}

func (s *server) record(id string) *proto.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.rec.Seq == 0 {
		return nil
	}
	rec := c.rec
	return &rec
}

// recordsLocked returns all records. s.mu is held.
func (s *server) recordsLocked() []proto.Record {
	var out []proto.Record
	for _, id := range slices.Sorted(maps.Keys(s.containers)) {
		if c := s.containers[id]; c.rec.Seq > 0 {
			out = append(out, c.rec)
		}
	}
	return out
}

// change alters a record, writes it down, then tells the watchers. change may
// decline by returning false.
func (s *server) change(c *container, change func(*proto.Record) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := c.rec
	if !change(&rec) {
		return nil
	}
	rec.Seq++
	c.rec = rec
	err := proto.WriteFile(s.recordPath(rec.ID), rec)
	for w := range s.watchers {
		w.dirty[rec.ID] = rec
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	if err != nil {
		return fmt.Errorf("write down the state of container %s: %w", rec.ID, err)
	}
	return nil
}

func (s *server) recordPath(id string) string {
	return filepath.Join(s.dir, proto.ContainersDir, id+".json")
}

// watch sends all records, then each that changes, until the other side hangs
// up.
func (s *server) watch(c *net.UnixConn) {
	w := &watcher{dirty: map[string]proto.Record{}, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	resp := proto.Response{Version: proto.Version, PID: os.Getpid(), Records: s.recordsLocked()}
	if s.guard != nil {
		resp.Fence = s.guard.path
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	gone := hangUp(context.Background(), c)
	for {
		if proto.Write(c, resp) != nil {
			return
		}
		s.rest.change()
		select {
		case <-w.wake:
		case <-gone.Done():
			return
		}
		s.mu.Lock()
		resp = proto.Response{}
		for _, id := range slices.Sorted(maps.Keys(w.dirty)) {
			resp.Records = append(resp.Records, w.dirty[id])
		}
		clear(w.dirty)
		s.mu.Unlock()
	}
}

// shutdown kills all containers and waits until they are recorded.
func (s *server) shutdown() {
	s.mu.Lock()
	s.closing = true
	all := slices.Collect(maps.Values(s.containers))
	var whole []*container // create kills the others when it sees that we close
	for _, c := range all {
		if c.rec.Seq > 0 {
			whole = append(whole, c)
		}
	}
	s.mu.Unlock()
	for _, c := range whole {
		c.kill()
	}
	for _, c := range all {
		<-c.cleaned
	}
	if s.pause != nil {
		_ = s.pause.Process.Kill() // it may have left by itself
		_ = s.pause.Wait()
	}
	if !s.pod.HostIPC {
		_ = unix.Unmount(filepath.Join(s.dir, proto.ShmDir), unix.MNT_DETACH) // the engine looks again
	}
}
