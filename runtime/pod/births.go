//go:build linux && cgo

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// births knows the children of this process, so that those can be told apart that
// nobody else waits for. libcontainer starts a process by way of two others, all
// of which are our children, and hears of their PIDs only once all are there. If
// one of them dies before, as when its container ends at that moment or may not
// have more processes, it forgets the others. In runc, which ends then, that
// matters to nobody. Here they would stay as zombies, and one in a process
// namespace keeps the first process of that from ever having ended.
type births struct {
	mu       sync.Mutex
	underWay int
	failed   bool // one of them, since orphans were looked for
	known    map[int]struct{}
}

// begin is called before libcontainer starts a process.
func (b *births) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.underWay++
}

// end is called when it has, or has not. The process is somebody's to wait
// for.
func (b *births) end(p *libcontainer.Process, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.underWay--
	if err != nil {
		b.failed = true
	} else if pid, err := p.Pid(); err == nil {
		b.know(pid)
	}
	if b.failed && b.underWay == 0 {
		b.failed = false
		b.bury()
	}
}

// know is called with mu held, or before there is anybody else.
func (b *births) know(pid int) {
	if b.known == nil {
		b.known = map[int]struct{}{}
	}
	b.known[pid] = struct{}{}
}

// wait waits for a process that was born.
func (b *births) wait(p *libcontainer.Process) (*os.ProcessState, error) {
	pid, errPid := p.Pid()
	state, err := wait(p)
	if errPid == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.known, pid)
	}
	return state, err
}

// bury ends the children that nobody knows, and waits for them. mu is held, so
// that no others come.
func (b *births) bury() {
	for _, pid := range children() {
		if _, known := b.known[pid]; !known {
			_ = unix.Kill(pid, unix.SIGKILL) // a zombie is dead enough
			_, _ = unix.Wait4(pid, nil, 0, nil)
		}
	}
}

// children lists the children of this process. Not every kernel has a list of
// them (CONFIG_PROC_CHILDREN).
func children() (pids []int) {
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil // the pattern is ours
	}
	self := strconv.Itoa(os.Getpid())
	for _, path := range all {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		// PID (NAME) STATE PARENT …, as proc_pid_stat(5) has it; any byte may be
		// in a name.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) < 2 || string(fields[1]) != self {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
