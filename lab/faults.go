package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Pause stops a host's conclave process where it stands, as a machine that
// swaps or a debugger does; its pods go on. Kill and PowerOff end it all the
// same.
func (l *Lab) Pause(name string) error { return l.freeze(name, unix.SIGSTOP) }

// Resume lets a paused process go on.
func (l *Lab) Resume(name string) error { return l.freeze(name, unix.SIGCONT) }

func (l *Lab) freeze(name string, sig unix.Signal) error {
	return l.update(func() error {
		h, err := l.Host(name)
		if err != nil {
			return err
		}
		if !h.Daemon.alive() {
			return fmt.Errorf("conclave does not run on host %s", h.Name)
		}
		if err := h.Daemon.signal(sig); err != nil {
			return fmt.Errorf("host %s: %w", h.Name, err)
		}
		return nil
	})
}

// SetNetwork makes these the only cuts, and has each host lose so many of a
// hundred packets that come to it from other hosts. Unlike Partition, which cuts
// whole groups apart, it also cuts one direction, or one link of many. Heal ends
// all of it.
func (l *Lab) SetNetwork(cuts []Cut, loss map[string]int) error {
	return l.update(func() error {
		for _, c := range cuts {
			for _, name := range []string{c.From, c.To} {
				if _, err := l.Host(name); err != nil {
					return err
				}
			}
		}
		l.Cuts = cuts
		for _, h := range l.Hosts {
			h.Loss = loss[h.Name]
		}
		return l.applyAllCuts()
	})
}

// Socket is where this machine reaches the host's conclave as its
// administrator. It is inside the host's own mounts: the path is good until
// the host is powered off.
func (l *Lab) Socket(h *Host) string {
	return filepath.Join("/proc", strconv.Itoa(h.Init.PID), "root", l.DataDir(h), "run", "conclave.sock")
}

// Dial connects from inside a host: it goes by the host's routes, rules and
// cuts.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !h.Init.alive() {
		return nil, fmt.Errorf("host %s is off", h.Name)
	}
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	go func() {
		runtime.LockOSThread() // and never unlock it: the thread ends with the goroutine
		pidfd, err := unix.PidfdOpen(h.Init.PID, 0)
		if err == nil {
			err = errors.Join(unix.Setns(pidfd, unix.CLONE_NEWNET), unix.Close(pidfd))
		}
		if err != nil {
			done <- dialled{err: fmt.Errorf("host %s: enter its network: %w", h.Name, err)}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		done <- dialled{conn, err}
	}()
	d := <-done
	return d.conn, d.err
}

// Shared is a folder of the lab that all its hosts see by the same path; it goes
// with the lab.
func (l *Lab) Shared(name string) (string, error) {
	dir := filepath.Join(l.dir, "shared", name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", fmt.Errorf("shared folder: %w", err)
	}
	return dir, nil
}
