package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// read asks the kernel how much there is of everything. What cannot be read is
// left out.
func (p *pressureKeeper) read() map[Signal]Reading {
	if p.a.cfg.Readings != nil {
		return p.a.cfg.Readings()
	}
	out := map[Signal]Reading{}
	if m, err := meminfo(); err == nil {
		out[signalMemory] = Reading{m["MemAvailable"], m["MemTotal"]}
	}
	if _, used, err := cgroupUsage("/sys/fs/cgroup", p.a.cfg.CgroupRoot); err == nil {
		all := p.podsMemory()
		out[signalPods] = Reading{all - int64(used), all}
	}
	disk := func(path string, bytes, inodes Signal) {
		var fs unix.Statfs_t
		if unix.Statfs(path, &fs) != nil {
			return
		}
		out[bytes] = Reading{int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize}
		if fs.Files > 0 { // some filesystems make inodes as needed
			out[inodes] = Reading{int64(fs.Ffree), int64(fs.Files)}
		}
	}
	disk(p.a.cfg.Dir, signalNodefs, signalNodeInodes)
	disk(filepath.Join(p.a.cfg.Dir, "images"), signalImagefs, signalImageInodes)
	var info unix.Sysinfo_t
	if all := p.a.node.pids; all > 0 && unix.Sysinfo(&info) == nil {
		out[signalPIDs] = Reading{all - int64(info.Procs), all}
	}
	return out
}

// podsMemory is what all pods may have.
func (p *pressureKeeper) podsMemory() int64 {
	q := p.a.cfg.Reserved[corev1.ResourceMemory]
	return max(p.a.node.memory()-q.Value(), 0)
}

// alarms have the kernel call when memory goes fast. On cgroup version 1 it
// calls when a cgroup's usage crosses an amount; elsewhere when processes wait
// for memory, if it measures that.
type alarms struct {
	rings chan struct{} // one place
	v1    [2]*usageAlarm
	psi   bool
}

type usageAlarm struct {
	at    int64
	event *os.File
}

func (a *alarms) close() {
	for _, u := range a.v1 {
		if u != nil {
			u.event.Close()
		}
	}
}

// arm sets the alarms anew, by what was read just now.
func (p *pressureKeeper) arm(ctx context.Context, readings map[Signal]Reading) {
	a := &p.alarms
	if a.rings == nil {
		a.rings = make(chan struct{}, 1)
		if !a.psi {
			a.psi = p.watchPressure(ctx)
		}
	}
	hard := p.a.cfg.EvictionHard.of(signalMemory)
	if len(hard) == 0 {
		return
	}
	for i, of := range []struct {
		group  string
		signal Signal
	}{{"", signalMemory}, {p.a.cfg.CgroupRoot, signalPods}} {
		r, ok := readings[of.signal]
		dir := filepath.Join("/sys/fs/cgroup/memory", of.group)
		usage, err := cgroupValue(filepath.Join(dir, "memory.usage_in_bytes"), "")
		if !ok || err != nil {
			continue
		}
		// It counts the page cache in, which is no lack: the alarm is set as
		// far from now as the lack is.
		at := int64(usage) + r.Available - hard.amount(r.Capacity)
		if at <= int64(usage) || i == 1 && of.group == "" {
			continue // it is so already: looking often does
		}
		if old := a.v1[i]; old != nil && old.at > int64(usage) && abs(old.at-at) < at/64 {
			continue
		}
		if u, err := newUsageAlarm(dir, at, a.rings); err == nil {
			if a.v1[i] != nil {
				a.v1[i].event.Close()
			}
			a.v1[i] = u
		}
	}
}

func abs(n int64) int64 { return max(n, -n) }

// newUsageAlarm registers with a cgroup of version 1. Closing the event ends it
// and the goroutine that listens.
func newUsageAlarm(dir string, at int64, rings chan struct{}) (*usageAlarm, error) {
	usage, err := os.Open(filepath.Join(dir, "memory.usage_in_bytes"))
	if err != nil {
		return nil, err
	}
	defer usage.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	event := os.NewFile(uintptr(fd), "memory alarm")
	line := fmt.Sprintf("%d %d %d", fd, usage.Fd(), at)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		event.Close()
		return nil, err
	}
	go func() { // until event is closed
		var count [8]byte
		for {
			if _, err := event.Read(count[:]); err != nil {
				return
			}
			poke(rings)
		}
	}()
	return &usageAlarm{at, event}, nil
}

// watchPressure has the kernel call when processes wait for memory for 7 % of a
// second. It says whether the kernel measures that.
func (p *pressureKeeper) watchPressure(ctx context.Context) bool {
	f, err := os.OpenFile("/proc/pressure/memory", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	if _, err := f.WriteString("some 70000 1000000\x00"); err != nil {
		f.Close()
		return false
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		f.Close()
		return false
	}
	end := context.AfterFunc(ctx, func() { _, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	rings := p.alarms.rings
	go func() { // until ctx ends
		defer f.Close()
		defer unix.Close(stop)
		defer end()
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
		for ctx.Err() == nil {
			_, err := unix.Poll(fds, -1)
			if err == unix.EINTR {
				continue
			}
			if err != nil || fds[1].Revents != 0 || fds[0].Revents&unix.POLLERR != 0 {
				return
			}
			poke(rings)
			select { // a pressure that lasts calls once a second
			case <-ctx.Done():
			case <-time.After(lookAtMost):
			}
		}
	}()
	return true
}
