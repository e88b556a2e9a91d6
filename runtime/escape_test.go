package runtime

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The known ways out of a container, each by its CVE or its source, as far as
// they can be tried on one host. docs/security.md lists them.

const secret = "of the host alone"

// marker is a file of the host that no container may reach.
func marker(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "marker")
	if err := os.WriteFile(path, []byte(secret), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func unharmed(t *testing.T, marker string) {
	t.Helper()
	if got, err := os.ReadFile(marker); err != nil || string(got) != secret {
		t.Errorf("the host's file holds %q, %v", got, err)
	}
	for _, m := range mountsBelow(t, filepath.Dir(marker)) {
		t.Errorf("something is mounted at %s of the host", m)
	}
}

// hostileImage is the guest's with further layers over it.
func (h *testHost) hostileImage(name string, layers ...[]file) string {
	h.t.Helper()
	data, err := os.ReadFile(guestBinary)
	if err != nil {
		h.t.Fatal(err)
	}
	base := []file{{name: "bin/guest", mode: 0o755, data: data}, {name: "tmp/", mode: 0o1777}}
	img, err := makeImage(v1.Config{Entrypoint: []string{"/bin/guest"}}, append([][]file{base}, layers...)...)
	if err != nil {
		h.t.Fatal(err)
	}
	ref := "example.org/" + name + ":1"
	h.importImage(ref, img)
	return ref
}

func symlink(name, to string) file {
	return file{name: name, head: tar.Header{Typeflag: tar.TypeSymlink, Linkname: to}}
}

// TestUnpackEscapes: layers that would write or remove outside their folder
// (CVE-2018-15664 and CVE-2019-14271 of docker cp, GHSA-c3xm-pvg7-gh7r and
// CVE-2021-41103's kin), with the victim's path known.
func TestUnpackEscapes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("unpacking layers needs root")
	}
	for name, files := range map[string]func(victim string) []file{
		"write through an absolute link": func(v string) []file {
			return []file{symlink("l", filepath.Dir(v)), {name: "l/victim", mode: 0o644, data: []byte("x")}}
		},
		"write through a relative link": func(v string) []file {
			return []file{symlink("l", strings.Repeat("../", 20)+filepath.Dir(v)), {name: "l/victim", mode: 0o644, data: []byte("x")}}
		},
		"write through a chain of links": func(v string) []file {
			return []file{symlink("a", "b"), symlink("b", filepath.Dir(v)), {name: "a/victim", mode: 0o644, data: []byte("x")}}
		},
		"write over a link to it": func(v string) []file { return []file{symlink("l", v), {name: "l", mode: 0o644, data: []byte("x")}} },
		"write over a hard link to a link": func(v string) []file {
			return []file{symlink("l", v), {name: "h", head: tar.Header{Typeflag: tar.TypeLink, Linkname: "l"}}, {name: "h", mode: 0o644, data: []byte("x")}}
		},
		"hard link to it": func(v string) []file {
			return []file{{name: "h", head: tar.Header{Typeflag: tar.TypeLink, Linkname: v}}, {name: "h", mode: 0o644, data: []byte("x")}}
		},
		"hard link through a link": func(v string) []file {
			return []file{symlink("l", filepath.Dir(v)), {name: "h", head: tar.Header{Typeflag: tar.TypeLink, Linkname: "l/victim"}}}
		},
		"whiteout through a link": func(v string) []file { return []file{symlink("l", filepath.Dir(v)), {name: "l/.wh.victim"}} },
		"opaque through a link":   func(v string) []file { return []file{symlink("l", filepath.Dir(v)), {name: "l/.wh..wh..opq"}} },
		"device through a link": func(v string) []file {
			return []file{symlink("l", filepath.Dir(v)), {name: "l/null", mode: 0o666, head: tar.Header{Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}}
		},
		"mode and owner through a link": func(v string) []file {
			return []file{symlink("l", filepath.Dir(v)), {name: "l/", mode: 0o777, head: tar.Header{Uid: 4711}}}
		},
		"a folder that becomes a link": func(v string) []file {
			return []file{{name: "d/", mode: 0o755}, symlink("d", filepath.Dir(v)), {name: "d/victim", mode: 0o644, data: []byte("x")}}
		},
		"a parent made through a link": func(v string) []file {
			return []file{symlink("l", filepath.Dir(v)), {name: "l/deep/er/file", mode: 0o644}}
		},
		"absolute name": func(v string) []file { return []file{{name: v, mode: 0o644, data: []byte("x")}} },
		"attributes through a link": func(v string) []file {
			l := symlink("l", v)
			l.head.PAXRecords = map[string]string{xattrPrefix + "user.owned": "1"}
			return []file{l}
		},
	} {
		parent := t.TempDir()
		outside, dir := filepath.Join(parent, "outside"), filepath.Join(parent, "root")
		victim := filepath.Join(outside, "victim")
		for _, d := range []string{outside, dir} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(victim, []byte(secret), 0o640); err != nil {
			t.Fatal(err)
		}
		var before, after, now unix.Stat_t
		if err := unix.Stat(outside, &before); err != nil {
			t.Fatal(err)
		}
		uerr := unpackFiles(t, dir, files(victim))
		if err := unix.Stat(outside, &after); err != nil || after.Mtim != before.Mtim || after.Ctim != before.Ctim {
			t.Errorf("%s: the folder outside was touched: %v (%v)", name, err, uerr)
		}
		if got, err := os.ReadFile(victim); err != nil || string(got) != secret {
			t.Errorf("%s: the victim holds %q, %v (%v)", name, got, err, uerr)
		}
		if err := unix.Stat(victim, &now); err != nil || now.Nlink != 1 || now.Mode&0o7777 != 0o640 {
			t.Errorf("%s: the victim has %d links and mode %o", name, now.Nlink, now.Mode)
		}
	}
}

// TestImageFolders: set-user-ID programs and device nodes of images lie on the
// host's disk, where other users of the host must not get at them
// (CVE-2021-41103).
func TestImageFolders(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}})
	closed := func(path string) bool {
		for ; path != h.cfg.Root; path = filepath.Dir(path) {
			if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o007 == 0 {
				return err == nil
			}
		}
		return false
	}
	layers, err := os.ReadDir(h.engine.images.layersDir())
	if err != nil || len(layers) == 0 {
		t.Fatalf("layers: %v %v", layers, err)
	}
	for _, path := range []string{
		filepath.Join(h.engine.images.layersDir(), layers[0].Name()), filepath.Join(h.engine.podFolder(p), "web_0", "rootfs"),
		filepath.Join(h.engine.podFolder(p), "web_0", "upper"), filepath.Join(h.engine.cfg.RunDir, p),
	} {
		if !closed(path) {
			t.Errorf("any user of the host can go to %s", path)
		}
	}
}

// TestHostileRoot: what an image puts where the runtime mounts, writes and
// reads (CVE-2019-19921, CVE-2021-30465, CVE-2023-27561, CVE-2025-31133,
// CVE-2025-52565, CVE-2025-52881, and files of /etc that are links).
func TestHostileRoot(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	m := marker(t)
	up := strings.Repeat("../", 30)
	volume := func(t *testing.T, files ...[2]string) string {
		dir := t.TempDir()
		for _, f := range files {
			if err := os.Symlink(f[1], filepath.Join(dir, f[0])); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	pts := specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666"}}
	bind := func(source, target string) specs.Mount {
		return specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"rbind", "rw"}}
	}
	own := filepath.Join(t.TempDir(), "own")
	if err := os.WriteFile(own, []byte("the pod's"), 0o644); err != nil {
		t.Fatal(err)
	}
	const pattern = "/proc/sys/kernel/core_pattern"
	before, err := os.ReadFile(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		name   string
		layer  []file
		config ContainerConfig
		want   string // what the container says, if it starts
		fails  bool   // it must not start
	}{
		{"/proc is a link", []file{symlink("proc", "/tmp")}, ContainerConfig{Args: []string{"echo", "up"}}, "", true},
		{"/sys is a link", []file{symlink("sys", "/tmp")}, ContainerConfig{Args: []string{"echo", "up"}}, "", true},
		{"/dev is a link to the host", []file{symlink("dev", up+filepath.Dir(m))}, ContainerConfig{Args: []string{"read", m}}, "guest: open " + m + ": no such file or directory\n", false},
		{"/etc/hosts is a link to the host", []file{symlink("etc/hosts", m)}, ContainerConfig{Args: []string{"read", "/etc/hosts"}, Mounts: []specs.Mount{bind(own, "/etc/hosts")}}, "the pod's", false},
		{"/etc is a link to the host", []file{symlink("etc", up+filepath.Dir(m))}, ContainerConfig{Args: []string{"read", "/etc/marker"}, Mounts: []specs.Mount{bind(own, "/etc/marker")}}, "the pod's", false},
		{"/etc/passwd is a link to the host", []file{symlink("etc/passwd", m)}, ContainerConfig{Args: []string{"id"}}, "uid 0 gid 0 groups [0] home / wd /\n", false},
		{"/etc/passwd is a fifo", []file{{name: "etc/passwd", mode: 0o644, head: tar.Header{Typeflag: tar.TypeFifo}}}, ContainerConfig{Args: []string{"id"}}, "", true},
		{"the working directory is a link to the host", []file{symlink("work", filepath.Dir(m))}, ContainerConfig{Args: []string{"read", "marker"}, WorkingDir: "/work"}, "", true},
		{"a termination message's folder is a link to the host", []file{symlink("msg", up+filepath.Dir(m))}, ContainerConfig{Args: []string{"read", "/msg/marker"}, Mounts: []specs.Mount{bind(own, "/msg/marker")}}, "the pod's", false},
		{"a volume's target is a link to the host", []file{symlink("data", up+filepath.Dir(m))}, ContainerConfig{Args: []string{"ls", "/data"}, Mounts: []specs.Mount{bind(filepath.Dir(own), "/data")}}, "own\n", false},
		{"a target inside a volume is a link to the host", nil, ContainerConfig{Args: []string{"ls", "/v/out"}, Mounts: []specs.Mount{bind(volume(t, [2]string{"out", up + filepath.Dir(m)}), "/v"), bind(filepath.Dir(own), "/v/out")}}, "own\n", false},
		{"a target inside a volume is a link to /proc", nil, ContainerConfig{Args: []string{"try", "write:" + pattern}, Mounts: []specs.Mount{bind(volume(t, [2]string{"out", "/proc/sys"}), "/v"), bind(filepath.Dir(own), "/v/out")}}, "", true},
		// CVE-2025-31133: what hides files is itself a link to another one.
		{"/dev/null is a link", nil, ContainerConfig{Args: []string{"try", "write:" + pattern}, Mounts: []specs.Mount{bind(volume(t, [2]string{"null", pattern}), "/dev")}}, "write:" + pattern + ": read-only file system\n", false},
		// CVE-2025-52565: the terminal is put over a link.
		{"/dev/console is a link", nil, ContainerConfig{TTY: true, Args: []string{"try", "write:" + pattern}, Mounts: []specs.Mount{bind(volume(t, [2]string{"console", pattern}), "/dev"), pts}}, "write:" + pattern + ": read-only file system\r\n", false},
		{"/dev/pts is a link", nil, ContainerConfig{TTY: true, Args: []string{"try", "write:" + pattern}, Mounts: []specs.Mount{bind(volume(t, [2]string{"pts", "/proc/sys"}, [2]string{"ptmx", pattern}), "/dev"), pts}}, "write:" + pattern + ": read-only file system\r\n", false},
	} {
		id := fmt.Sprintf("c_%d", i)
		c.config.Image = guestName
		if c.layer != nil {
			c.config.Image = h.hostileImage(fmt.Sprintf("hostile%d", i), c.layer)
		}
		if err := h.run(p, id, c.config); err != nil {
			if !c.fails {
				t.Logf("%s: it does not start, which is as good: %v", c.name, err)
			}
		} else {
			h.await(p, id, exited)
			if out := h.logs(p, id); c.fails || out != c.want {
				t.Errorf("%s: it started and said %q", c.name, out)
			}
		}
		if err := h.engine.RemoveContainer(t.Context(), p, id); err != nil {
			t.Error(err)
		}
		unharmed(t, m)
	}
	if got, err := os.ReadFile(own); err != nil || string(got) != "the pod's" {
		t.Errorf("the pod's own file holds %q, %v", got, err)
	}
	if after, err := os.ReadFile(pattern); err != nil || !bytes.Equal(before, after) {
		t.Errorf("core_pattern is %q now, %v", after, err)
	}
}

// TestSysctlInjection: the value of a harmless sysctl that names another one
// (CVE-2022-0811 of CRI-O, whose helper split it at the +).
func TestSysctlInjection(t *testing.T) {
	h := newHost(t)
	const pattern = "/proc/sys/kernel/core_pattern"
	before, err := os.ReadFile(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for i, value := range []string{"1+kernel.core_pattern=|/bin/evil", "1\nkernel.core_pattern=|/bin/evil", "1 kernel.core_pattern=|/bin/evil"} {
		id := fmt.Sprintf("p%d", i)
		if err := h.engine.StartPod(t.Context(), PodConfig{ID: id, Sysctls: map[string]string{"kernel.shm_rmid_forced": value}}); err == nil {
			t.Logf("%q was taken", value) // the kernel reads a number and leaves the rest
		}
		if err := h.engine.StopPod(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if after, err := os.ReadFile(pattern); err != nil || !bytes.Equal(before, after) {
		t.Errorf("core_pattern is %q now, %v", after, err)
	}
}

// TestLeakedDescriptors: a working directory, a command or an open file that
// belongs to the runtime (CVE-2024-21626, CVE-2016-9962).
func TestLeakedDescriptors(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	m := marker(t)
	for fd := range 16 {
		for _, dir := range []string{"/proc/self/fd/%d", "/proc/thread-self/fd/%d/.."} {
			id := fmt.Sprintf("c_%d", fd)
			err := h.run(p, id, ContainerConfig{WorkingDir: fmt.Sprintf(dir, fd), Args: []string{"read", strings.Repeat("../", 30) + m}})
			if err == nil {
				h.await(p, id, exited)
				if out := h.logs(p, id); strings.Contains(out, secret) {
					t.Errorf("the host is open from "+dir, fd)
				}
			}
			if err := h.engine.RemoveContainer(t.Context(), p, id); err != nil {
				t.Error(err)
			}
			if err := os.Remove(h.logPath(p, id)); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
	}
	own := func(what, out string) { // Go's own start looks at processes and its CPU limit

		t.Helper()
		for line := range strings.Lines(out) {
			switch kind := strings.Fields(line)[1]; {
			case kind == "pipe", kind == "anon_inode", kind == "/dev/null", strings.HasPrefix(kind, "/proc/"), strings.HasPrefix(kind, "/sys/fs/cgroup/cpu"), strings.HasPrefix(kind, "/dev/pts/"):
			default:
				t.Errorf("%s holds %s", what, line)
			}
		}
	}
	out, _ := h.output(p, "fds_0", ContainerConfig{Args: []string{"fds"}})
	own("a container's program", out)
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}})
	var said bytes.Buffer
	if _, err := h.engine.Exec(t.Context(), p, "web_0", []string{"/bin/guest", "fds"}, false, nil, &said, &said, nil); err != nil {
		t.Error(err)
	}
	own("a command in a container", said.String())
	unharmed(t, m)
}

// TestHunted: a container lies in wait for the runtime's own processes, which
// enter it for each command: to overwrite their program (CVE-2019-5736) and to
// reach the host through what they hold (CVE-2016-9962, CVE-2024-21626).
func TestHunted(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	m := marker(t)
	digest := func() [32]byte {
		t.Helper()
		data, err := os.ReadFile(podBinary)
		if err != nil {
			t.Fatal(err)
		}
		installed, err := os.ReadFile(h.engine.binary)
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(append(data, installed...))
	}
	before := digest()
	image := h.hostileImage("hunter", []file{symlink("bin/sh", "/proc/self/exe")})
	h.mustRun(p, "web_0", ContainerConfig{Image: image, Args: []string{"hunt", "/tmp/over", m}, AddCapabilities: []string{"SYS_PTRACE"}})
	h.awaitLog(p, "web_0", "ready")
	for range 20 {
		// The second is what the exploit had the runtime run: itself.
		for _, cmd := range [][]string{{"/bin/guest", "echo"}, {"/bin/sh", "init"}} {
			if _, err := h.engine.Exec(t.Context(), p, "web_0", cmd, false, nil, nil, nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	var said bytes.Buffer
	if _, err := h.engine.Exec(t.Context(), p, "web_0", []string{"/bin/guest", "write", "/tmp/over", ""}, false, nil, &said, &said, nil); err != nil || said.Len() > 0 {
		t.Fatalf("%v %s", err, said.String())
	}
	h.await(p, "web_0", exited)
	out := h.logs(p, "web_0")
	if strings.Contains(out, "REACHED") || digest() != before {
		t.Errorf("the hunter: %s", out)
	}
	if !strings.Contains(out, "over") || !strings.Contains(out, "met another program") {
		t.Errorf("the hunter met nobody, so this proves nothing: %s", out)
	}
	t.Logf("the hunter: %q", out)
	unharmed(t, m)
}

// TestDevices: a container makes device nodes, or brings them in its image, and
// may not open what is not its own.
func TestDevices(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	node := func(name string, kind byte, major, minor int64) file {
		return file{name: name, mode: 0o666, head: tar.Header{Typeflag: kind, Devmajor: major, Devminor: minor}}
	}
	image := h.hostileImage("devices", []file{node("disk", tar.TypeBlock, 8, 0), node("loop", tar.TypeBlock, 7, 0), node("mem", tar.TypeChar, 1, 1), node("null", tar.TypeChar, 1, 3)})
	const no = "operation not permitted"
	for id, c := range map[string]struct {
		config ContainerConfig
		want   string
	}{
		"made_0":    {ContainerConfig{Args: []string{"try", "disk", "memory", "kmsg", "null"}}, "disk: " + no + "\nmemory: " + no + "\nkmsg: " + no + "\nnull: ok\n"},
		"brought_0": {ContainerConfig{Image: image, Args: []string{"try", "open:/disk", "open:/loop", "open:/mem", "open:/null"}}, "open:/disk: " + no + "\nopen:/loop: " + no + "\nopen:/mem: " + no + "\nopen:/null: ok\n"},
		"without_0": {ContainerConfig{Args: []string{"try", "null"}, DropCapabilities: []string{"MKNOD"}}, "null: " + no + "\n"},
		"user_0":    {ContainerConfig{Args: []string{"try", "null"}, UID: ptr(int64(1000))}, "null: " + no + "\n"},
		// All capabilities but not privileged: the cgroup still holds.
		"all_0": {ContainerConfig{Args: []string{"try", "disk", "memory"}, AddCapabilities: []string{"ALL"}}, "disk: " + no + "\nmemory: " + no + "\n"},
	} {
		if out, _ := h.output(p, id, c.config); out != c.want {
			t.Errorf("%s: %s", id, out)
		}
	}
}

// TestKernelFiles: what /proc and /sys say and do beyond the container.
func TestKernelFiles(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	const ro, empty = "read-only file system", "empty"
	var tries []string
	want := map[string][]string{}
	try := func(what string, oneOf ...string) {
		tries = append(tries, what)
		want[what] = append(oneOf, "no such file or directory") // a kernel without it is as good
	}
	for _, path := range []string{
		"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/irq/0/smp_affinity",
		"/sys/kernel/uevent_helper", "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max", "/sys/kernel/mm/transparent_hugepage/enabled",
	} {
		try("write:"+path, ro, "permission denied")
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/proc/latency_stats", "/proc/sched_debug"} {
		try("size:"+path, empty)
	}
	try("mount", "operation not permitted", "permission denied")
	try("remount-proc", "operation not permitted", "permission denied")
	try("umount-mask", "operation not permitted")
	try("swapon", "operation not permitted")
	try("settime", "operation not permitted")
	try("reboot", "operation not permitted")
	try("init-module", "operation not permitted", "function not implemented")
	try("setns", "operation not permitted")
	out, _ := h.output(p, "web_0", ContainerConfig{Args: append([]string{"try"}, tries...)})
	n := 0
	for line := range strings.Lines(out) {
		what, got, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		n++
		if !contains(want[what], got) {
			t.Errorf("%s: %s", what, got)
		}
	}
	if n != len(tries) {
		t.Errorf("%d answers to %d attempts: %s", n, len(tries), out)
	}
	for _, dir := range []string{"/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		if out, _ := h.output(p, "ls"+strings.ReplaceAll(dir, "/", "_"), ContainerConfig{Args: []string{"ls", dir}}); out != "" && !strings.Contains(out, "no such file") {
			t.Errorf("%s shows %q", dir, out)
		}
	}
	// CVE-2022-0492: a cgroup's release_agent from a user namespace.
	out, _ = h.output(p, "agent_0", ContainerConfig{Args: []string{"try", "release-agent"}})
	if strings.Contains(out, "ok") {
		t.Errorf("release_agent: %s", out)
	}
}

// TestPrivileges: what was taken away stays away, whatever the image brings.
func TestPrivileges(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	data, err := os.ReadFile(guestBinary)
	if err != nil {
		t.Fatal(err)
	}
	capable := file{name: "capable", mode: 0o755, data: data}
	// All of the capabilities, permitted and effective, as setcap writes them.
	capable.head.PAXRecords = map[string]string{xattrPrefix + "security.capability": "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\xff\x01\x00\x00\x00\x00\x00\x00"}
	image := h.hostileImage("privileges", []file{{name: "setuid", mode: 0o4755, data: data}, capable})
	const caps = "CapEff"
	n := 0
	for _, c := range []struct {
		name    string
		config  ContainerConfig
		command []string
		want    string
	}{
		{"set-user-ID", ContainerConfig{UID: ptr(int64(1000))}, []string{"/setuid", "status", "Uid"}, "Uid:\t1000\t0\t0\t0\n"},
		{"set-user-ID with no-new-privileges", ContainerConfig{UID: ptr(int64(1000)), NoNewPrivileges: true}, []string{"/setuid", "status", "Uid"}, "Uid:\t1000\t1000\t1000\t1000\n"},
		{"set-user-ID without capabilities", ContainerConfig{UID: ptr(int64(1000)), DropCapabilities: []string{"ALL"}}, []string{"/setuid", "status", caps, "CapBnd"}, "CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"},
		{"file capabilities with no-new-privileges", ContainerConfig{UID: ptr(int64(1000)), NoNewPrivileges: true, DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"}}, []string{"/bin/guest", "status", "CapPrm", caps}, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n"},
		{"file capabilities beyond the container's", ContainerConfig{UID: ptr(int64(1000))}, []string{"/capable", "echo", "ran"}, "exec /capable: operation not permitted\n"},
		{"nothing is inherited", ContainerConfig{UID: ptr(int64(1000)), AddCapabilities: []string{"SYS_ADMIN"}}, []string{"/bin/guest", "status", "CapInh", "CapAmb", caps}, "CapInh:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n"},
		{"root without capabilities", ContainerConfig{DropCapabilities: []string{"ALL"}}, []string{"/bin/guest", "try", "setuid", "chroot", "null"}, "setuid: operation not permitted\nchroot: operation not permitted\nnull: operation not permitted\n"},
	} {
		c.config.Image, c.config.Command = image, c.command
		id := fmt.Sprintf("c_%d", n)
		n++
		if err := h.run(p, id, c.config); err != nil {
			if c.want != "" {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		h.await(p, id, exited)
		if out := h.logs(p, id); out != c.want {
			t.Errorf("%s: %q, want %q", c.name, out, c.want)
		}
	}
}

// TestKeyrings: the kernel keeps keys outside of every namespace; each
// container has a session keyring of its own.
func TestKeyrings(t *testing.T) {
	h := newHost(t)
	p, q := h.pod(PodConfig{ID: "p1"}), h.pod(PodConfig{ID: "p2"})
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"key", "add", "conclave-secret"}})
	h.awaitLog(p, "web_0", "added")
	id := strings.TrimSpace(strings.TrimPrefix(h.logs(p, "web_0"), "added "))
	if out, _ := h.output(q, "thief_0", ContainerConfig{Args: []string{"key", "find", "conclave-secret", id}}); out != "find: required key not available\nread: permission denied\n" {
		t.Errorf("another pod's key: %q", out)
	}
	if out, _ := h.output(q, "thief_1", ContainerConfig{Args: []string{"key", "find", "conclave-secret", id}, Seccomp: SeccompDefault}); out != "find: operation not permitted\nread: operation not permitted\n" {
		t.Errorf("with a filter: %q", out)
	}
}

// TestMountRace: while containers start, another one swaps the target of their
// mounts for a link to the host (CVE-2021-30465).
func TestMountRace(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	m := marker(t)
	volume, source := t.TempDir(), t.TempDir()
	target, link := filepath.Join(volume, "out"), filepath.Join(volume, "link")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(strings.Repeat("../", 30)+filepath.Dir(m), link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(source, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				stopped <- n
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, target, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				n = -1 << 40
			}
		}
	}()
	started := 0
	for i := range 25 {
		id := fmt.Sprintf("c_%d", i)
		err := h.run(p, id, ContainerConfig{Args: []string{"read", m}, Mounts: []specs.Mount{
			{Destination: "/v", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}},
			{Destination: "/v/out", Type: "bind", Source: source, Options: []string{"rbind", "rw"}},
			{Destination: "/v/out/deeper", Type: "tmpfs", Source: "tmpfs"},
		}})
		if err == nil {
			started++
			h.await(p, id, exited)
			if out := h.logs(p, id); strings.Contains(out, secret) {
				t.Error("a container reads the host's file")
			}
		}
		if err := h.engine.RemoveContainer(t.Context(), p, id); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if n := <-stopped; n < 100 || started == 0 {
		t.Errorf("no race was run: %d swaps, %d starts", n, started)
	}
	unharmed(t, m)
	if left, err := os.ReadDir(filepath.Dir(m)); err != nil || len(left) != 1 {
		t.Errorf("the host's folder holds %v, %v", left, err)
	}
}
