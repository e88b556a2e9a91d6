//go:build linux && cgo

package main

import (
	"os"
	"strings"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rlimits are the limits that a spec of ours may set.
var rlimits = map[string]int{
	"RLIMIT_NOFILE":  unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC":   unix.RLIMIT_NPROC,
	"RLIMIT_CORE":    unix.RLIMIT_CORE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_STACK":   unix.RLIMIT_STACK,
}

// newProcess makes libcontainer's process of the spec's.
func newProcess(p *specs.Process) *libcontainer.Process {
	out := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		LogLevel:        "2", // errors
	}
	if c := p.Capabilities; c != nil {
		out.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Permitted: c.Permitted,
			Inheritable: c.Inheritable, Ambient: c.Ambient,
		}
	}
	for _, g := range p.User.AdditionalGids {
		out.AdditionalGroups = append(out.AdditionalGroups, int(g))
	}
	for _, l := range p.Rlimits {
		if t, ok := rlimits[strings.ToUpper(l.Type)]; ok {
			hard := highest(t, l.Hard)
			out.Rlimits = append(out.Rlimits, configs.Rlimit{Type: t, Hard: hard, Soft: min(l.Soft, hard)})
		}
	}
	return out
}

// highest returns the hard limit that can be given, at most want: a host that
// is a container itself may not raise its own.
func highest(t int, want uint64) uint64 {
	var own unix.Rlimit
	if unix.Getrlimit(t, &own) != nil || want <= own.Max {
		return want // if it is refused, libcontainer says so
	}
	raised := own
	raised.Max = want
	if unix.Setrlimit(t, &raised) != nil {
		return own.Max
	}
	return want
}

// wait waits for a child without holding a thread.
func wait(p *libcontainer.Process) (*os.ProcessState, error) {
	if pid, err := p.Pid(); err == nil {
		// A child that nobody has waited for keeps its PID.
		if fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK); err == nil {
			f := os.NewFile(uintptr(fd), "pidfd")
			if raw, err := f.SyscallConn(); err == nil {
				// It becomes readable when the process has ended. If this
				// fails, Wait below waits in a thread instead.
				_ = raw.Read(func(fd uintptr) bool {
					n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
					return n > 0 || (err != nil && err != unix.EINTR)
				})
			}
			f.Close()
		}
	}
	return p.Wait()
}

// exitCode is that of a shell: 128 and the signal for a killed process.
func exitCode(s *os.ProcessState) int {
	ws, ok := s.Sys().(syscall.WaitStatus)
	if !ok {
		return 255
	}
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}
