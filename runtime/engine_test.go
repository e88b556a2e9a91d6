package runtime

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

func ptr[T any](v T) *T { return &v }

func TestRunToTheEnd(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	out, st := h.output(p, "web_0", ContainerConfig{})
	if out != "from the image\n" || st.ExitCode != 0 || st.Reason != ReasonCompleted {
		t.Errorf("wrote %q, status %+v", out, st)
	}
	if st.StartedAt.Before(st.CreatedAt.Add(-time.Second)) || st.FinishedAt.Before(st.StartedAt) || st.Image == "" {
		t.Errorf("status %+v", st)
	}
	for i, c := range []struct {
		args   []string
		want   string
		code   int
		reason string
	}{
		{[]string{"exit", "7"}, "", 7, ReasonError},
		{[]string{"echo", "arguments"}, "arguments\n", 0, ReasonCompleted},
		{[]string{"stderr", "complaint"}, "complaint\n", 0, ReasonCompleted},
		{[]string{"hostname"}, "pod-p1\n", 0, ReasonCompleted},
	} {
		out, st := h.output(p, fmt.Sprintf("web_%d", i+1), ContainerConfig{Args: c.args})
		if out != c.want || st.ExitCode != c.code || st.Reason != c.reason {
			t.Errorf("%v: wrote %q, status %+v", c.args, out, st)
		}
	}
	data, err := os.ReadFile(h.logPath(p, "web_3"))
	if err != nil || !strings.Contains(string(data), " stderr F complaint\n") {
		t.Errorf("log %q, %v", data, err)
	}

	if err := h.run(p, "web_0", ContainerConfig{}); !errors.Is(err, ErrContainerExists) {
		t.Errorf("the same ID again: %v", err)
	}
	if err := h.engine.RemoveContainer(t.Context(), p, "web_0"); err != nil {
		t.Error(err)
	}
	if err := h.engine.RemoveContainer(t.Context(), p, "web_0"); err != nil {
		t.Errorf("removed again: %v", err)
	}
	if _, ok := h.engine.Container(p, "web_0"); ok {
		t.Error("a removed container is still known")
	}
	if _, err := os.Stat(filepath.Join(h.cfg.containersDir(), p, "web_0")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder: %v", err)
	}
	if err := h.run(p, "web_0", ContainerConfig{}); err != nil {
		t.Errorf("the ID of a removed container: %v", err)
	}
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Error(err)
	}
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Errorf("stopped again: %v", err)
	}
	if len(h.engine.Pods()) > 0 || len(h.engine.Containers("")) > 0 {
		t.Error("a stopped pod is still known")
	}
	if err := h.run(p, "web_9", ContainerConfig{}); !errors.Is(err, ErrPodNotFound) {
		t.Errorf("a container in no pod: %v", err)
	}
}

func TestStartErrors(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	for i, c := range []struct {
		name     string
		config   ContainerConfig
		want     error
		says     string
		recorded bool
	}{
		{"no such program", ContainerConfig{Command: []string{"foo"}}, ErrStart, `exec: "foo": executable file not found in $PATH`, true},
		{"no such path", ContainerConfig{Command: []string{"/no/such"}}, ErrStart, `no such file or directory`, true},
		{"not a program", ContainerConfig{Command: []string{"/etc/passwd"}}, ErrStart, `permission denied`, true},
		{"no such source", ContainerConfig{Mounts: []specs.Mount{{Destination: "/x", Type: "bind", Source: "/no/such/source", Options: []string{"rbind"}}}}, ErrStart, "/no/such/source", true},
		{"no such image", ContainerConfig{Image: "example.org/none"}, ErrImageNotFound, "example.org/none", false},
		{"unknown capability", ContainerConfig{AddCapabilities: []string{"FLY"}}, nil, `unknown capability "CAP_FLY"`, false},
		{"unknown signal", ContainerConfig{StopSignal: "SIGNOTHING"}, nil, "SIGNOTHING", false},
	} {
		id := fmt.Sprintf("c_%d", i)
		err := h.run(p, id, c.config)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		st, ok := h.engine.Container(p, id)
		if ok != c.recorded {
			t.Errorf("%s: recorded %v: %+v", c.name, ok, st)
		}
		if ok && (st.State != Exited || st.ExitCode != 128 || st.Reason != ReasonStartError || !strings.Contains(st.Message, c.says)) {
			t.Errorf("%s: status %+v", c.name, st)
		}
	}
	if err := h.run(p, "../evil", ContainerConfig{}); err == nil {
		t.Error("an ID that is a path was taken")
	}
	if err := h.engine.StartPod(t.Context(), PodConfig{ID: "p2", Sysctls: map[string]string{"vm.swappiness": "1"}}); err == nil || !strings.Contains(err.Error(), "vm.swappiness") {
		t.Errorf("a sysctl of the host: %v", err)
	}
	if m := mountsBelow(t, h.cfg.containersDir()); len(m) > 0 {
		t.Errorf("mounts are left: %v", m)
	}
}

func TestStop(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "polite_0", ContainerConfig{Args: []string{"wait"}})
	h.mustRun(p, "quit_0", ContainerConfig{Args: []string{"wait"}, StopSignal: "SIGQUIT"})
	h.mustRun(p, "stubborn_0", ContainerConfig{Args: []string{"stubborn"}})
	for _, id := range []string{"polite_0", "quit_0", "stubborn_0"} {
		h.awaitLog(p, id, "ready\n")
	}
	ctx := t.Context()
	if err := h.engine.StopContainer(ctx, p, "polite_0", time.Minute); err != nil {
		t.Error(err)
	}
	if err := h.engine.StopContainer(ctx, p, "quit_0", time.Minute); err != nil {
		t.Error(err)
	}
	if st, _ := h.engine.Container(p, "polite_0"); st.State != Exited || st.ExitCode != 0 {
		t.Errorf("polite: %+v", st)
	}
	if got := h.logs(p, "polite_0") + h.logs(p, "quit_0"); got != "ready\ngot terminated\nready\ngot quit\n" {
		t.Errorf("logs %q", got)
	}
	if err := h.engine.StopContainer(ctx, p, "stubborn_0", 50*time.Millisecond); err != nil {
		t.Error(err)
	}
	if st, _ := h.engine.Container(p, "stubborn_0"); st.State != Exited || st.ExitCode != 137 || st.Reason != ReasonError {
		t.Errorf("stubborn: %+v", st)
	}
	if err := h.engine.StopContainer(ctx, p, "stubborn_0", time.Minute); err != nil {
		t.Errorf("stopped again: %v", err)
	}
	if err := h.engine.StopContainer(ctx, p, "nobody_0", time.Minute); !errors.Is(err, ErrContainerNotFound) {
		t.Errorf("stopped nobody: %v", err)
	}
	// A stopped pod takes a running container with it.
	h.mustRun(p, "stubborn_1", ContainerConfig{Args: []string{"stubborn"}})
	st, _ := h.engine.Container(p, "stubborn_1")
	if err := h.engine.StopPod(ctx, p); err != nil {
		t.Error(err)
	}
	noProcess(t, st.PID)
}

// noProcess fails the test if a process runs. One that only waits for its new
// parent to take notice does not.
func noProcess(t testing.TB, pid int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err == nil && !strings.Contains(string(data), "\nState:\tZ") {
		t.Errorf("process %d lives: %s", pid, data)
	}
}

// awaitLog waits until a container's log has some content. Logs are files;
// there is no event for them.
func (h *testHost) awaitLog(pod, id, want string) {
	h.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		data, err := os.ReadFile(h.logPath(pod, id))
		if err == nil && strings.Contains(logContent(h.t, data[:bytes.LastIndexByte(data, '\n')+1]), want) {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("log of %s of %s: %q, %v", id, pod, data, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestCreateThenStart(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	ctx := t.Context()
	c := ContainerConfig{PodID: p, ID: "web_0", Image: guestName, Args: []string{"echo", "late"}, LogPath: h.logPath(p, "web_0")}
	if err := h.engine.CreateContainer(ctx, c); err != nil {
		t.Fatal(err)
	}
	if st, ok := h.engine.Container(p, "web_0"); !ok || st.State != Created || st.PID == 0 || !st.StartedAt.IsZero() {
		t.Errorf("created: %+v %v", st, ok)
	}
	if _, err := h.engine.Exec(ctx, p, "web_0", []string{"/bin/guest"}, false, nil, nil, nil, nil); !errors.Is(err, ErrContainerNotRunning) {
		t.Errorf("exec before the start: %v", err)
	}
	if err := h.engine.StartContainer(ctx, p, "web_0"); err != nil {
		t.Fatal(err)
	}
	h.await(p, "web_0", exited)
	if got := h.logs(p, "web_0"); got != "late\n" {
		t.Errorf("log %q", got)
	}
	// One that never starts is removed all the same.
	c.ID = "web_1"
	if err := h.engine.CreateContainer(ctx, c); err != nil {
		t.Fatal(err)
	}
	if err := h.engine.RemoveContainer(ctx, p, "web_1"); err != nil {
		t.Error(err)
	}
}

func TestExec(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	ctx := t.Context()
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}, Env: []string{"MARK=1"}, UID: ptr(int64(101))})
	exec := func(stdin io.Reader, args ...string) (out, errs string, code int, err error) {
		var o, e bytes.Buffer
		code, err = h.engine.Exec(ctx, p, "web_0", append([]string{"/bin/guest"}, args...), false, stdin, &o, &e, nil)
		return o.String(), e.String(), code, err
	}
	for _, c := range []struct {
		args  []string
		stdin string
		out   string
		errs  string
		code  int
	}{
		{[]string{"echo", "hello"}, "", "hello\n", "", 0},
		{[]string{"stderr", "oops"}, "", "", "oops\n", 0},
		{[]string{"exit", "42"}, "", "", "", 42},
		{[]string{"cat"}, strings.Repeat("0123456789abcdef", 50_000), strings.Repeat("0123456789abcdef", 50_000), "", 0},
		{[]string{"id"}, "", "uid 101 gid 102 groups [102 103] home /home/web wd /work\n", "", 0},
	} {
		var in io.Reader
		if c.stdin != "" {
			in = strings.NewReader(c.stdin)
		}
		out, errs, code, err := exec(in, c.args...)
		if out != c.out || errs != c.errs || code != c.code || err != nil {
			t.Errorf("%v: %d bytes %.50q, %q, %d, %v", c.args, len(out), out, errs, code, err)
		}
	}
	if out, _, _, _ := exec(nil, "env"); !strings.Contains(out, "MARK=1\n") {
		t.Errorf("environment %q", out)
	}
	_, err := h.engine.Exec(ctx, p, "web_0", []string{"nothing"}, false, nil, nil, nil, nil)
	if !errors.Is(err, ErrStart) || !strings.Contains(err.Error(), `exec: "nothing": executable file not found in $PATH`) {
		t.Errorf("no such command: %v", err)
	}
	// A command that leaves a child with its stdout behind does not hang.
	out, _, code, err := exec(nil, "spawn", "idle")
	if !strings.HasPrefix(out, "child ") || code != 0 || err != nil {
		t.Errorf("spawn: %q %d %v", out, code, err)
	}
	// Hanging up kills.
	short, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	go func() {
		defer cancel()
		line, err := bufio.NewReader(r).ReadString('\n')
		if line != "ready\n" {
			t.Errorf("stubborn: %q %v", line, err)
		}
	}()
	if _, err := h.engine.Exec(short, p, "web_0", []string{"/bin/guest", "stubborn"}, false, nil, w, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		out, _, _, _ := exec(nil, "pids")
		if strings.Count(out, "\n") == 3 { // the container's, the child left behind, this one
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a cancelled command lives on: %s", out)
		}
	}
}

func TestExecTerminal(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}})
	sizes := make(chan [2]uint16)
	r, w := io.Pipe()
	go func() {
		sizes <- [2]uint16{120, 40}
		sizes <- [2]uint16{100, 30} // taken once the first is set
		sizes <- [2]uint16{100, 30} // taken once the second is
		fmt.Fprint(w, "word\n")
	}()
	var out bytes.Buffer
	code, err := h.engine.Exec(t.Context(), p, "web_0", []string{"/bin/guest", "tty"}, true, r, &out, nil, sizes)
	w.Close()
	if want := `line "word\n" rows 30 columns 100`; code != 0 || err != nil || !strings.Contains(out.String(), want) {
		t.Errorf("%q %d %v", out.String(), code, err)
	}
}

func TestAttach(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "cat_0", ContainerConfig{Args: []string{"cat"}, Stdin: true, StdinOnce: true})
	var out bytes.Buffer
	if err := h.engine.Attach(t.Context(), p, "cat_0", strings.NewReader("to the cat\n"), &out, io.Discard, nil); err != nil {
		t.Fatal(err)
	}
	if out.String() != "to the cat\n" {
		t.Errorf("attached: %q", out.String())
	}
	if st := h.await(p, "cat_0", exited); st.ExitCode != 0 {
		t.Errorf("%+v", st)
	}
	if got := h.logs(p, "cat_0"); got != "to the cat\n" {
		t.Errorf("log %q", got)
	}

	// With a terminal, and leaving before the end.
	h.mustRun(p, "tty_0", ContainerConfig{Args: []string{"tty"}, Stdin: true, TTY: true})
	ctx, leave := context.WithCancel(t.Context())
	sizes := make(chan [2]uint16)
	in, inW := io.Pipe()
	done := make(chan error, 1)
	out.Reset()
	go func() { done <- h.engine.Attach(ctx, p, "tty_0", in, &out, nil, sizes) }()
	sizes <- [2]uint16{81, 25}
	sizes <- [2]uint16{81, 25}
	fmt.Fprint(inW, "x\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), `line "x\n" rows 25 columns 81`) {
		t.Errorf("terminal: %q", out.String())
	}
	leave()
	h.mustRun(p, "wait_0", ContainerConfig{Args: []string{"wait"}})
	ctx, leave = context.WithCancel(t.Context())
	go func() { done <- h.engine.Attach(ctx, p, "wait_0", nil, io.Discard, nil, nil) }()
	h.awaitLog(p, "wait_0", "ready\n")
	leave()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("left: %v", err)
	}
	if st, _ := h.engine.Container(p, "wait_0"); st.State != Running {
		t.Errorf("after a reader left: %+v", st)
	}
}

func TestResources(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{CgroupParent: "burstable", Resources: &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(300 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(150_000)), Period: ptr(uint64(100_000))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(500))},
	}})
	memory := func(n int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(n), Swap: ptr(n)}}
	}
	// Less than the first process of a container needs until it becomes the program.
	h.mustRun(p, "small_0", ContainerConfig{Args: []string{"idle"}, Resources: memory(6 << 20)})
	u, err := h.engine.Stats(p, "small_0")
	if err != nil || u.MemoryLimit != 6<<20 || u.Memory == 0 || u.Memory > 6<<20 || u.WorkingSet > u.Memory || u.CPU <= 0 || u.PIDs == 0 {
		t.Errorf("small: %+v %v", u, err)
	}
	h.mustRun(p, "hungry_0", ContainerConfig{Args: []string{"eat", "200"}, Resources: memory(50 << 20)})
	if st := h.await(p, "hungry_0", exited); !st.OOMKilled || st.Reason != ReasonOOMKilled || st.ExitCode != 137 {
		t.Errorf("hungry: %+v", st)
	}
	if out, st := h.output(p, "fed_0", ContainerConfig{Args: []string{"eat", "20"}, Resources: memory(50 << 20)}); out != "ate 20\n" || st.OOMKilled {
		t.Errorf("fed: %q %+v", out, st)
	}
	ctx := t.Context()
	if err := h.engine.UpdateResources(ctx, p, "small_0", memory(64<<20)); err != nil {
		t.Error(err)
	}
	if u, err = h.engine.Stats(p, "small_0"); err != nil || u.MemoryLimit != 64<<20 {
		t.Errorf("updated: %+v %v", u, err)
	}
	// libcontainer must still start commands after an update.
	if code, err := h.engine.Exec(ctx, p, "small_0", []string{"/bin/guest", "exit", "3"}, false, nil, nil, nil, nil); code != 3 || err != nil {
		t.Errorf("exec after an update: %d %v", code, err)
	}
	if err := h.engine.UpdatePodResources(ctx, p, memory(400<<20)); err != nil {
		t.Error(err)
	}
	if u, err = h.engine.Stats(p, ""); err != nil || u.MemoryLimit != 400<<20 {
		t.Errorf("pod: %+v %v", u, err)
	}
	if err := h.engine.UpdateResources(ctx, p, "fed_0", memory(64<<20)); !errors.Is(err, ErrContainerNotRunning) {
		t.Errorf("update of an exited container: %v", err)
	}
	if _, err := h.engine.Stats(p, "fed_0"); !errors.Is(err, ErrContainerNotRunning) {
		t.Errorf("usage of an exited container: %v", err)
	}
}

func TestInside(t *testing.T) {
	h := newHost(t)
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "hello"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := h.pod(PodConfig{Sysctls: map[string]string{"kernel.shm_rmid_forced": "1"}})
	bind := func(options ...string) []specs.Mount {
		return []specs.Mount{{Destination: "/data", Type: "bind", Source: volume, Options: append(options, "rbind")}}
	}
	n := 0
	for _, c := range []struct {
		name   string
		config ContainerConfig
		want   string
		code   int
	}{
		{"root", ContainerConfig{Args: []string{"id"}}, "uid 0 gid 0 groups [0] home /root wd /work\n", 0},
		{"uid of nobody", ContainerConfig{Args: []string{"id"}, UID: ptr(int64(65534)), GID: ptr(int64(7)), Groups: []int64{8}}, "uid 65534 gid 7 groups [7 8] home / wd /work\n", 0},
		{"uid of the image", ContainerConfig{Args: []string{"id"}, UID: ptr(int64(101)), WorkingDir: "/made/for/it"}, "uid 101 gid 102 groups [102 103] home /home/web wd /made/for/it\n", 0},
		{"default capabilities", ContainerConfig{Args: []string{"status", "CapEff", "NoNewPrivs"}}, "CapEff:\t00000000a80425fb\nNoNewPrivs:\t0\n", 0},
		{"changed capabilities", ContainerConfig{Args: []string{"status", "CapBnd", "NoNewPrivs"}, NoNewPrivileges: true, DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}, "CapBnd:\t0000000000001000\nNoNewPrivs:\t1\n", 0},
		{"read-only root", ContainerConfig{Args: []string{"write", "/tmp/x", "y"}, ReadOnlyRoot: true}, "guest: open /tmp/x: read-only file system\n", 9},
		{"writable root", ContainerConfig{Args: []string{"write", "/tmp/x", "y"}}, "", 0},
		{"own root", ContainerConfig{Args: []string{"read", "/tmp/x"}}, "guest: open /tmp/x: no such file or directory\n", 9},
		{"volume", ContainerConfig{Args: []string{"read", "/data/hello"}, Mounts: bind("ro")}, "from the host", 0},
		{"read-only volume", ContainerConfig{Args: []string{"write", "/data/x", "y"}, Mounts: bind("ro")}, "guest: open /data/x: read-only file system\n", 9},
		{"writable volume", ContainerConfig{Args: []string{"write", "/data/x", "y"}, Mounts: bind("rw")}, "", 0},
		{"into shared memory", ContainerConfig{Args: []string{"write", "/dev/shm/x", "shared"}}, "", 0},
		{"out of shared memory", ContainerConfig{Args: []string{"read", "/dev/shm/x"}}, "shared", 0},
		{"sysctl", ContainerConfig{Args: []string{"read", "/proc/sys/kernel/shm_rmid_forced"}}, "1\n", 0},
		{"sysctls are read-only", ContainerConfig{Args: []string{"write", "/proc/sys/kernel/shm_rmid_forced", "0"}}, "guest: open /proc/sys/kernel/shm_rmid_forced: read-only file system\n", 9},
		{"masked", ContainerConfig{Args: []string{"read", "/proc/keys"}}, "", 0},
		{"own processes", ContainerConfig{Args: []string{"pids"}}, "1 guest\n", 0},
		{"environment", ContainerConfig{Args: []string{"env"}, Env: []string{"SHARED=pod", "NEW=1"}},
			"PATH=" + defaultPath + "\nHOSTNAME=pod-p1\nFROM_IMAGE=yes\nSHARED=pod\nNEW=1\nHOME=/root\n", 0},
		{"devices", ContainerConfig{Args: []string{"ls", "/dev"}}, "fd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n", 0},
	} {
		id := fmt.Sprintf("c_%d", n)
		n++
		out, st := h.output(p, id, c.config)
		if out != c.want || st.ExitCode != c.code {
			t.Errorf("%s: %q, status %+v", c.name, out, st)
		}
		if err := h.engine.RemoveContainer(t.Context(), p, id); err != nil {
			t.Error(err)
		}
	}
	out, _ := h.output(p, "privileged_0", ContainerConfig{Args: []string{"status", "CapEff"}, Privileged: true})
	own, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(own), out) {
		t.Errorf("privileged: %q, we have %s %v", out, own, err)
	}
	if got, err := os.ReadFile(filepath.Join(volume, "x")); string(got) != "y" {
		t.Errorf("the volume holds %q, %v", got, err)
	}
}

func TestProcessNamespaces(t *testing.T) {
	h := newHost(t)
	shared := h.pod(PodConfig{ID: "shared", ShareProcesses: true})
	h.mustRun(shared, "a_0", ContainerConfig{Args: []string{"idle"}})
	out, _ := h.output(shared, "b_0", ContainerConfig{Args: []string{"pids"}})
	if !strings.HasPrefix(out, "1 pause\n") || strings.Count(out, "guest") != 2 {
		t.Errorf("shared: %q", out)
	}
	// What a container leaves behind ends with it, though its namespace lives.
	h.mustRun(shared, "c_0", ContainerConfig{Args: []string{"spawn", "idle"}})
	if st := h.await(shared, "c_0", exited); st.ExitCode != 0 {
		t.Errorf("%+v", st)
	}
	out, _ = h.output(shared, "d_0", ContainerConfig{Args: []string{"pids"}})
	if strings.Count(out, "guest") != 2 {
		t.Errorf("after a container with a child: %q", out)
	}
	host := h.pod(PodConfig{ID: "host", HostPID: true, HostIPC: true})
	out, st := h.output(host, "a_0", ContainerConfig{Args: []string{"pids"}})
	if !strings.Contains(out, "\n"+strconv.Itoa(os.Getpid())+" ") {
		t.Errorf("host: %q, %+v", out, st)
	}
}

func TestNetworkNamespace(t *testing.T) {
	h := newHost(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip to make a network namespace")
	}
	ns := fmt.Sprintf("conclave-rt-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Skipf("cannot make a network namespace: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", ns).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	p := h.pod(PodConfig{NetNS: "/run/netns/" + ns, Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "81"}})
	out, _ := h.output(p, "a_0", ContainerConfig{Args: []string{"ls", "/sys/class/net"}})
	if out != "lo\n" {
		t.Errorf("links of the pod: %q", out)
	}
	if out, _ = h.output(p, "b_0", ContainerConfig{Args: []string{"read", "/proc/sys/net/ipv4/ip_unprivileged_port_start"}}); out != "81\n" {
		t.Errorf("sysctl of the pod: %q", out)
	}
	// The thread that starts pods came back.
	other := h.pod(PodConfig{ID: "p2"})
	if out, _ = h.output(other, "a_0", ContainerConfig{Args: []string{"ls", "/sys/class/net"}}); out == "lo\n" {
		t.Errorf("links of the host: %q", out)
	}
	if err := h.engine.StartPod(t.Context(), PodConfig{ID: "p3", NetNS: "/run/netns/none"}); err == nil || !strings.Contains(err.Error(), "/run/netns/none") {
		t.Errorf("no such namespace: %v", err)
	}
}

func TestLogRotation(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	_, st := h.output(p, "a_0", ContainerConfig{Args: []string{"tickexit", "60", "0"}, LogMaxSize: 500, LogMaxFiles: 3})
	if st.ExitCode != 0 {
		t.Fatalf("%+v", st)
	}
	files, err := filepath.Glob(h.logPath(p, "a_0") + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v", files, err)
	}
	// The newest file is the one without a time, and sorts first.
	var all strings.Builder
	for _, f := range append(files[1:], files[0]) {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 500 {
			t.Errorf("%s has %d bytes", f, len(data))
		}
		all.WriteString(logContent(t, data))
	}
	lines := strings.Split(strings.TrimSpace(all.String()), "\n")
	if last := lines[len(lines)-1]; last != "tick 59" || len(lines) < 20 {
		t.Errorf("%d lines up to %q", len(lines), last)
	}
}

func TestSubscribe(t *testing.T) {
	h := newHost(t)
	events, cancel := h.engine.Subscribe()
	slow, cancelSlow := h.engine.Subscribe()
	p := h.pod(PodConfig{})
	for i := range 3 {
		h.output(p, fmt.Sprintf("a_%d", i), ContainerConfig{Args: []string{"exit", strconv.Itoa(i)}})
	}
	last := map[string]ContainerStatus{}
	for len(last) < 3 || last["a_2"].State != Exited {
		st := <-events
		last[st.ID] = st
	}
	for i := range 3 {
		if st := last[fmt.Sprintf("a_%d", i)]; st.State != Exited || st.ExitCode != i {
			t.Errorf("%+v", st)
		}
	}
	// The slow one may have missed steps on the way, never the last.
	last = map[string]ContainerStatus{}
	for len(last) < 3 || last["a_2"].State != Exited {
		st := <-slow
		last[st.ID] = st
	}
	if last["a_0"].State != Exited || last["a_1"].State != Exited {
		t.Errorf("the slow reader saw %+v", last)
	}
	cancel()
	cancelSlow()
	for range events { // closed
	}
}

// helperEnv makes the test program an engine of its own, for a test to kill.
const helperEnv = "CONCLAVE_RUNTIME_HELPER"

// helperConfig is what the helper is told in helperEnv.
type helperConfig struct {
	Root, CgroupParent, PodBinary string
	Containers                    []ContainerConfig
}

func helper() int {
	fail := func(err error) int {
		fmt.Println("failed:", err)
		return 1
	}
	var c helperConfig
	if err := json.Unmarshal([]byte(os.Getenv(helperEnv)), &c); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := New(Config{Root: c.Root, CgroupParent: c.CgroupParent, PodBinary: c.PodBinary})
	if err != nil {
		return fail(err)
	}
	if err := e.StartPod(ctx, PodConfig{ID: "p1", Hostname: "p1"}); err != nil {
		return fail(err)
	}
	for _, k := range c.Containers {
		if err := e.RunContainer(ctx, k); err != nil {
			return fail(err)
		}
	}
	fmt.Println("ready")
	if err := e.Run(ctx); err != nil {
		return fail(err)
	}
	return 0
}

// TestKilledEngine kills the process that has the engine: containers go on, a
// new engine adopts them, the log has no gap, an exit meanwhile is told.
func TestKilledEngine(t *testing.T) {
	h := newHost(t)
	h.end()
	tell, err := json.Marshal(helperConfig{Root: h.cfg.Root, CgroupParent: h.cfg.CgroupParent, PodBinary: podBinary, Containers: []ContainerConfig{
		{PodID: "p1", ID: "tick_0", Image: guestName, Args: []string{"tick", "5ms"}, LogPath: h.logPath("p1", "tick_0")},
		{PodID: "p1", ID: "end_0", Image: guestName, Args: []string{"tickexit", "40", "5"}, LogPath: h.logPath("p1", "end_0")},
	}})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"="+string(tell))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("helper: %q %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	killed := time.Now()
	h.awaitLog("p1", "end_0", "tick 39\n") // it ends while nobody is there

	h.start()
	if got := h.engine.Pods(); len(got) != 1 || got[0] != "p1" {
		t.Fatalf("pods %v", got)
	}
	st, ok := h.engine.Container("p1", "tick_0")
	if !ok || st.State != Running || st.StartedAt.After(killed) {
		t.Fatalf("adopted: %+v %v", st, ok)
	}
	if end := h.await("p1", "end_0", exited); end.ExitCode != 5 || end.FinishedAt.Before(killed) || end.FinishedAt.After(time.Now()) {
		t.Errorf("the one that ended: %+v", end)
	}
	if again, _ := h.engine.Container("p1", "tick_0"); again.PID != st.PID {
		t.Errorf("restarted: %+v", again)
	}
	if code, err := h.engine.Exec(t.Context(), "p1", "tick_0", []string{"/bin/guest", "exit", "4"}, false, nil, nil, nil, nil); code != 4 || err != nil {
		t.Errorf("exec in an adopted container: %d %v", code, err)
	}
	if err := h.engine.StopContainer(t.Context(), "p1", "tick_0", 0); err != nil {
		t.Error(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(h.logs("p1", "tick_0")), "\n") {
		if line != fmt.Sprintf("tick %d", i) {
			t.Fatalf("line %d is %q", i, line)
		}
	}
	// The exits that were told once are told again after another restart.
	h.restart()
	if st, ok := h.engine.Container("p1", "end_0"); !ok || st.ExitCode != 5 || st.State != Exited {
		t.Errorf("after a restart: %+v %v", st, ok)
	}
}

// TestKilledPodProcess kills the process that stays with a pod: the containers
// go with it, are reported, and the pod can be started again.
func TestKilledPodProcess(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%v", away), func(t *testing.T) {
			h := newHost(t)
			p := h.pod(PodConfig{ShareProcesses: true})
			h.mustRun(p, "a_0", ContainerConfig{Args: []string{"stubborn"}})
			st, _ := h.engine.Container(p, "a_0")
			pid := h.engine.pods[p].pid
			if away {
				h.end()
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if away {
				h.start()
			}
			end := h.await(p, "a_0", exited)
			if end.ExitCode != 137 || end.Reason != ReasonUnknown || end.Message == "" || end.StartedAt.IsZero() {
				t.Errorf("status %+v", end)
			}
			noProcess(t, st.PID)
			if m := mountsBelow(t, h.cfg.containersDir()); len(m) > 0 {
				t.Errorf("mounts are left: %v", m)
			}
			h.awaitDown(p)
			h.pod(PodConfig{ShareProcesses: true})
			if out, _ := h.output(p, "a_1", ContainerConfig{Args: []string{"echo", "again"}}); out != "again\n" {
				t.Errorf("in the pod started again: %q", out)
			}
			if err := h.engine.RemoveContainer(t.Context(), p, "a_0"); err != nil {
				t.Error(err)
			}
		})
	}
}

// awaitDown waits until the engine has seen that a pod has no process.
func (h *testHost) awaitDown(pod string) {
	h.t.Helper()
	h.engine.mu.Lock()
	p := h.engine.pods[pod]
	down := p.down
	if !p.up {
		down = nil
	}
	h.engine.mu.Unlock()
	if down != nil {
		<-down
	}
}

var errFault = errors.New("a fault made by the test")

// TestFaults ends each change at each labelled step, as a crash would, and
// starts a new engine. Stopping the pod must leave nothing, and so must using
// it again.
func TestFaults(t *testing.T) {
	labels := []string{
		"pod.recorded", "pod.cgroup", "pod.spawned",
		"container.prepared", "container.started", "container.removed",
		"stop.marked", "stop.ended", "stop.killed", "stop.unmounted", "stop.removed",
	}
	h := newHost(t)
	seen := map[string]bool{}
	var mu sync.Mutex
	at := ""
	h.end()
	h.cfg.Faults = func(label string) error {
		mu.Lock()
		defer mu.Unlock()
		seen[label] = true
		if label == at {
			return fmt.Errorf("%w at %s", errFault, label)
		}
		return nil
	}
	set := func(label string) {
		mu.Lock()
		defer mu.Unlock()
		at = label
	}
	h.start()
	cycle := func() error {
		ctx := t.Context()
		if err := h.engine.StartPod(ctx, PodConfig{ID: "p1", Hostname: "p1"}); err != nil {
			return err
		}
		if err := h.run("p1", "a_0", ContainerConfig{Args: []string{"idle"}}); err != nil {
			return err
		}
		if err := h.engine.RemoveContainer(ctx, "p1", "a_0"); err != nil {
			return err
		}
		if err := h.run("p1", "a_1", ContainerConfig{Args: []string{"idle"}}); err != nil {
			return err
		}
		return h.engine.StopPod(ctx, "p1")
	}
	for _, label := range labels {
		set(label)
		if err := cycle(); !errors.Is(err, errFault) {
			t.Errorf("%s: %v", label, err)
		}
		set("")
		h.restart()
		if err := h.engine.StopPod(t.Context(), "p1"); err != nil {
			t.Errorf("%s: stop: %v", label, err)
		}
		h.engine.wg.Wait() // folders are removed in the background
		for _, dir := range []string{h.cfg.containersDir(), filepath.Join(h.cfg.Root, "run", "runtime")} {
			left, err := os.ReadDir(dir)
			left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return e.Name() == proto.FenceFile }) // the node's, not a pod's
			if err != nil || len(left) > 0 {
				t.Errorf("%s: %s holds %v, %v", label, dir, left, err)
			}
		}
		if m := mountsBelow(t, h.cfg.Root); len(m) > 0 {
			t.Errorf("%s: mounts are left: %v", label, m)
		}
		if err := cycle(); err != nil {
			t.Errorf("%s: afterwards: %v", label, err)
		}
	}
	for label := range seen {
		if !contains(labels, label) {
			t.Errorf("the label %s is not walked", label)
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// TestReboot empties the run folder, as a reboot does.
func TestReboot(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "a_0", ContainerConfig{Args: []string{"idle"}})
	h.end()
	run := filepath.Join(h.cfg.Root, "run", "runtime")
	unmount(filepath.Join(run, p, "shm"))
	if err := os.RemoveAll(run); err != nil {
		t.Fatal(err)
	}
	h.start()
	if len(h.engine.Pods()) > 0 {
		t.Errorf("pods %v", h.engine.Pods())
	}
	h.engine.wg.Wait() // folders are removed in the background
	if left, err := os.ReadDir(h.cfg.containersDir()); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
	if _, ok := h.engine.Image(guestName); !ok {
		t.Error("the image is gone")
	}
}

func TestTeardown(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{CgroupParent: "besteffort"})
	if err := h.engine.Teardown(t.Context()); err == nil || !strings.Contains(err.Error(), "stop them first") {
		t.Errorf("with a pod: %v", err)
	}
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.engine.Teardown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	h.noLeaks()
	if err := h.engine.StartPod(t.Context(), PodConfig{ID: "p2"}); !errors.Is(err, errEnding) {
		t.Errorf("a pod after the end: %v", err)
	}
}

// TestStopAfterTheEnd: a node that leaves stops its pods when all else has
// ended.
func TestStopAfterTheEnd(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "a_0", ContainerConfig{Args: []string{"stubborn"}})
	e := h.engine
	st, _ := e.Container(p, "a_0")
	h.end()
	begin := time.Now()
	if err := e.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > shutdownPatience/2 {
		t.Errorf("it took %v", took)
	}
	noProcess(t, st.PID)
	if err := e.Teardown(t.Context()); err != nil {
		t.Error(err)
	}
	h.noLeaks()
}
