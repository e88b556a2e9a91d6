package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Containers that take all they can get or hold on to it: each is bounded, ends
// when told to, and leaves nothing (newHost's end looks for cgroups, mounts and
// processes).

// TestForkBomb: a container forks without end, up to its limit; its neighbour
// does not notice, and stopping the pod ends all of it.
func TestForkBomb(t *testing.T) {
	h := newHost(t)
	const most = 40
	p := h.pod(PodConfig{Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(most))}}})
	q := h.pod(PodConfig{ID: "p2"})
	h.mustRun(p, "bomb_0", ContainerConfig{Args: []string{"bomb"}})
	h.awaitLog(p, "bomb_0", "stopped at")
	out := h.logs(p, "bomb_0")
	if !strings.Contains(out, "resource temporarily unavailable") {
		t.Errorf("the bomb: %s", out)
	}
	use, err := h.engine.Stats(p, "")
	if err != nil || use.PIDs > most {
		t.Errorf("%d processes, %v", use.PIDs, err)
	}
	if out, st := h.output(q, "web_0", ContainerConfig{Args: []string{"echo", "fine"}}); out != "fine\n" || st.ExitCode != 0 {
		t.Errorf("its neighbour: %q %+v", out, st)
	}
	dir := h.cgroup(t, p)
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("its cgroup is left: %v", err)
	}
}

// cgroup is a folder of the pod's cgroup, which has all of its processes.
func (h *testHost) cgroup(t *testing.T, pod string) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids"} {
		dir := filepath.Join(root, h.cfg.podsCgroup(), "pod"+pod)
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	t.Fatal("the pod has no cgroup")
	return ""
}

// TestStubbornBomb: what ignores SIGTERM, and has children that do, is killed
// with all of them when its grace is over.
func TestStubbornBomb(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "web_0", ContainerConfig{Command: []string{"/bin/guest", "spawn", "stubborn"}})
	h.mustRun(p, "web_1", ContainerConfig{Args: []string{"stubborn"}})
	h.awaitLog(p, "web_1", "ready")
	if err := h.engine.StopContainer(t.Context(), p, "web_1", 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if c, ok := h.engine.Container(p, "web_1"); !ok || c.State != Exited || c.ExitCode != codeKilled {
		t.Errorf("%+v", c)
	}
	h.await(p, "web_0", exited)
	if use, err := h.engine.Stats(p, ""); err != nil || use.PIDs != 0 {
		t.Errorf("%d processes are left of the containers, %v", use.PIDs, err)
	}
}

// TestFlood: output at more than a gigabyte a minute; rotation bounds what
// of it is on disk at any time, and the last line is there.
func TestFlood(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	const size, files, mib = 4 << 20, 3, 256
	begin := time.Now()
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"flood", "256"}, LogMaxSize: size, LogMaxFiles: files})
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.await(p, "web_0", exited)
	}()
	var most int64
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-time.After(20 * time.Millisecond): // samples of the disk
		}
		entries, err := os.ReadDir(filepath.Dir(h.logPath(p, "web_0")))
		if err != nil {
			t.Fatal(err)
		}
		var sum int64
		for _, e := range entries {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		most = max(most, sum)
	}
	// A rotation makes the new file before the oldest is gone.
	if bound := int64(size * (files + 1)); most > bound || most < size {
		t.Errorf("up to %d bytes on disk, the bound is %d", most, bound)
	}
	if c, _ := h.engine.Container(p, "web_0"); c.ExitCode != 0 {
		t.Errorf("%+v", c)
	}
	t.Logf("%d MiB in %v, at most %d KiB of it on disk", mib, time.Since(begin).Round(time.Millisecond), most>>10)
}

// TestHeldMount: a container holds a file open on a mount of its own inside a
// volume; when its pod stops, the mount and the volume can go.
func TestHeldMount(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", volume, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(volume, unix.MNT_DETACH) }() // for a test that failed
	mounts := []specs.Mount{{Destination: "/tmp", Type: "bind", Source: volume, Options: []string{"rbind", "rw", "rprivate"}}}
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}, Mounts: mounts, Privileged: true})
	if _, err := h.engine.Exec(t.Context(), p, "web_0", []string{"/bin/guest", "try", "mount"}, false, nil, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if left := mountsBelow(t, filepath.Dir(volume)); len(left) != 1 {
		t.Errorf("the container's own mount is the host's too: %v", left)
	}
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(volume, 0); err != nil {
		t.Errorf("the volume is still in use: %v", err)
	}
}

// children are the children of a pod's process, zombies too, by their stat.
func (h *testHost) children(pod string) (out []string) {
	h.engine.mu.Lock()
	pid := h.engine.pods[pod].pid
	h.engine.mu.Unlock()
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, path := range all {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it is gone
		}
		if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			out = append(out, string(stat))
		}
	}
	return out
}

// TestExecAtTheEnd: a command is started in a container at the moment when it
// ends, as a probe may be; the container ends all the same.
func TestExecAtTheEnd(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	for i := range 20 {
		id := "web_" + strconv.Itoa(i)
		h.mustRun(p, id, ContainerConfig{Args: []string{"idle"}})
		var probes sync.WaitGroup
		for range 4 {
			probes.Go(func() {
				for {
					if _, err := h.engine.Exec(t.Context(), p, id, []string{"/bin/guest", "echo"}, false, nil, nil, nil, nil); err != nil {
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(i) * 3 * time.Millisecond) // somewhere in the middle of them
		if err := h.engine.StopContainer(t.Context(), p, id, 0); err != nil {
			t.Fatal(err)
		}
		probes.Wait()
		h.await(p, id, exited)
	}
	if left := h.children(p); len(left) != 0 {
		t.Errorf("the pod process has the children %q", left)
	}
}
