//go:build linux && cgo

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"conclave/runtime/internal/cg"
	"conclave/runtime/internal/proto"
)

// guard watches the node's fence for a pod that must not run twice. A goroutine
// of it lives while the pod has containers, and sleeps until the instant that it
// read last: it asks the engine nothing, which may be dead, or stopped.
type guard struct {
	path string
	page *proto.Fence // nil until it could be mapped; guarded by server.mu
	on   bool         // the goroutine lives; guarded by server.mu
}

const (
	killRound    = 5 * time.Millisecond
	killPatience = time.Second // between two looks at what does not die
)

// read is proto.Fence's, and says that the fence is down if there is none. One
// that is down may have been replaced by another file. server.mu is held.
func (g *guard) read() (until time.Duration, epoch uint64) {
	if g.page != nil {
		if until, epoch = g.page.Read(); proto.SinceBoot() < until {
			return until, epoch
		}
		_ = g.page.Close() // a mapping of ours; it is looked for again
		g.page = nil
	}
	var err error
	if g.page, err = proto.OpenFence(g.path, false); err != nil {
		return 0, 0
	}
	return g.page.Read()
}

// setFence makes the pod a fenced one, or an ordinary one if path is empty.
// What runs is taken to be of the present epoch.
func (s *server) setFence(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guard != nil && s.guard.path == path {
		return
	}
	s.guard = nil // a goroutine of the former finds out when it wakes
	if path == "" {
		return
	}
	s.guard = &guard{path: path}
	_, epoch := s.guard.read()
	for _, c := range s.containers {
		c.epoch = epoch
	}
	s.watchFence()
}

// allowed says why a container may not be started. s.mu is held.
func (s *server) allowed(epoch uint64) error {
	if s.guard == nil {
		return nil
	}
	until, now := s.guard.read()
	if proto.SinceBoot() < until && epoch == now {
		return nil
	}
	return &proto.Error{Code: proto.CodeFenced, Message: "this node has not been allowed by the masters, since it lost them, to run this pod"}
}

// watchFence starts the goroutine if it does not live. s.mu is held.
func (s *server) watchFence() {
	if g := s.guard; g != nil && !g.on {
		g.on = true
		go s.obey(g)
	}
}

// obey kills the containers when the fence is down, or was down in between. It
// ends when there are none left.
func (s *server) obey(g *guard) {
	alarm, err := newAlarm()
	if err != nil {
		fmt.Fprintln(os.Stderr, err) // there is nobody to return it to
	}
	defer alarm.close()
	for {
		s.mu.Lock()
		until, epoch := g.read()
		up := proto.SinceBoot() < until
		var all []*container
		doomed := false
		for _, c := range s.containers {
			if c.rec.State != proto.Exited {
				all = append(all, c)
				doomed = doomed || !up || c.epoch != epoch
			}
		}
		if len(all) == 0 || s.guard != g {
			g.on = false
			if s.guard != g && g.page != nil {
				_ = g.page.Close() // nobody uses it any more
			}
			s.mu.Unlock()
			return
		}
		if doomed {
			for _, c := range all {
				c.fenced = true // create kills the one that it is making
			}
		}
		s.mu.Unlock()
		if doomed {
			s.killFenced(all)
		} else if err == nil {
			err = alarm.wait(until)
		} else {
			time.Sleep(until - proto.SinceBoot())
		}
	}
}

// killFenced kills all that runs in the pod, without libcontainer, whose lock a
// start or an exec under way may hold. It returns when the containers' exits
// are recorded.
func (s *server) killFenced(all []*container) {
	pause := 0
	if s.pause != nil {
		pause = s.pause.Process.Pid
	}
	round := killRound
	kill := func() {
		err := cg.Empty(s.pod.CgroupPath, pause, func() error {
			time.Sleep(round)
			round = min(2*round, killPatience)
			return nil
		})
		if err != nil {
			fmt.Fprintln(os.Stderr, "kill the containers of a fenced pod:", err) // tried again below
		}
	}
	for _, c := range all {
		for gone := false; !gone; {
			kill()
			select {
			case <-c.done:
				gone = true
			case <-time.After(killPatience): // it is made at this moment, or its output drains
			}
		}
	}
	s.rest.change()
}

// alarm is a timer on CLOCK_BOOTTIME, where Go's own stand still while the
// machine is suspended. Waiting holds no thread.
type alarm struct{ file *os.File }

func newAlarm() (alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return alarm{}, os.NewSyscallError("timerfd_create", err)
	}
	return alarm{os.NewFile(uintptr(fd), "alarm")}, nil
}

func (a alarm) close() {
	if a.file != nil {
		a.file.Close()
	}
}

// wait returns at an instant since boot.
func (a alarm) wait(until time.Duration) error {
	raw, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(until))}
	control := raw.Control(func(fd uintptr) {
		err = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &at, nil)
	})
	if err := errors.Join(control, err); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	var expirations [8]byte
	_, err = a.file.Read(expirations[:])
	return err
}
