package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openTo lets other users through to a folder: a pod's own users are others.
func openTo(t *testing.T, path string) {
	t.Helper()
	for ; path != "/"; path = filepath.Dir(path) {
		if st, err := os.Stat(path); err != nil {
			t.Fatal(err)
		} else if st.Mode().Perm()&0o001 == 0 {
			if err := os.Chmod(path, st.Mode().Perm()|0o011); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestUserNamespace: a pod's root is nobody on the host, and sees its files,
// volumes and network as if it were root.
func TestUserNamespace(t *testing.T) {
	h := newHost(t)
	openTo(t, h.cfg.Root)
	const first = 1 << 20
	c := PodConfig{ID: "p1", Hostname: "inside", IDs: first, ShareProcesses: true, Sysctls: map[string]string{"kernel.shm_rmid_forced": "1"}}
	if err := h.engine.Isolate(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	holder := h.engine.pods["p1"].cfg.Holder
	if err := h.engine.Isolate(t.Context(), c); err != nil || h.engine.pods["p1"].cfg.Holder != holder {
		t.Fatalf("a second time: %v", err)
	}
	if c.NetNS = h.engine.IsolatedNetwork("p1"); c.NetNS == "" {
		t.Fatal("it has no network")
	}
	p := h.pod(c)
	volume := t.TempDir()
	openTo(t, volume)
	if err := os.WriteFile(filepath.Join(volume, "roots"), []byte("readable"), 0o600); err != nil {
		t.Fatal(err)
	}
	mounts := []specs.Mount{{Destination: "/data", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}}}
	n := 0
	for _, c := range []struct {
		name   string
		config ContainerConfig
		want   string
	}{
		{"it is root", ContainerConfig{Args: []string{"id"}}, "uid 0 gid 0 groups [0] home /root wd /work\n"},
		{"of its own users", ContainerConfig{Args: []string{"read", "/proc/self/uid_map"}}, "         0    1048576      65536\n"},
		{"and groups", ContainerConfig{Args: []string{"read", "/proc/self/gid_map"}}, "         0    1048576      65536\n"},
		{"the host name", ContainerConfig{Args: []string{"hostname"}}, "inside\n"},
		{"the sysctl", ContainerConfig{Args: []string{"read", "/proc/sys/kernel/shm_rmid_forced"}}, "1\n"},
		{"its image is its own", ContainerConfig{Args: []string{"write", "/etc/passwd", "root:x:0:0::/:\n"}}, ""},
		{"a volume is its own", ContainerConfig{Args: []string{"read", "/data/roots"}, Mounts: mounts}, "readable"},
		{"what it writes is root's", ContainerConfig{Args: []string{"write", "/data/written", "x"}, Mounts: mounts}, ""},
		{"shared memory", ContainerConfig{Args: []string{"write", "/dev/shm/x", "y"}}, ""},
		{"another user", ContainerConfig{Args: []string{"write", "/data/roots", "no"}, Mounts: mounts, UID: ptr(int64(1000))}, "guest: open /data/roots: permission denied\n"},
		{"its network is its own", ContainerConfig{Args: []string{"ls", "/sys/class/net"}}, "lo\n"},
		{"capabilities are for what is its own", ContainerConfig{Args: []string{"try", "settime", "chroot", "swapon"}, AddCapabilities: []string{"ALL"}},
			"settime: operation not permitted\nchroot: ok\nswapon: operation not permitted\n"},
		{"no devices", ContainerConfig{Args: []string{"try", "null"}}, "null: operation not permitted\n"},
		{"everything of /proc, which is its own", ContainerConfig{Args: []string{"try", "write:/proc/sys/kernel/shm_rmid_forced", "write:/proc/sys/kernel/core_pattern"}, UnmaskedProc: true},
			"write:/proc/sys/kernel/shm_rmid_forced: ok\nwrite:/proc/sys/kernel/core_pattern: permission denied\n"},
	} {
		id := "c_" + string(rune('a'+n))
		n++
		if err := h.run(p, id, c.config); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		h.await(p, id, exited)
		if out := h.logs(p, id); out != c.want {
			t.Errorf("%s: %q, want %q", c.name, out, c.want)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(volume, "written"), &st); err != nil || st.Uid != 0 {
		t.Errorf("on the host it is user %d's, %v", st.Uid, err)
	}
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}})
	web, _ := h.engine.Container(p, "web_0")
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(web.PID), "status"))
	if err != nil || !strings.Contains(string(status), "Uid:\t1048576\t1048576\t1048576\t1048576") {
		t.Errorf("on the host its root is %s, %v", status, err)
	}
	var out bytes.Buffer
	if _, err := h.engine.Exec(t.Context(), p, "web_0", []string{"/bin/guest", "id"}, false, nil, &out, &out, nil); err != nil || out.String() != "uid 0 gid 0 groups [0] home /root wd /work\n" {
		t.Errorf("exec: %q %v", out.String(), err)
	}
	// An engine that comes later finds it all.
	h.restart()
	if err := h.engine.Isolate(t.Context(), c); err != nil || h.engine.IsolatedNetwork(p) != c.NetNS {
		t.Errorf("after a restart: %v, %q", err, h.engine.IsolatedNetwork(p))
	}
	if err := h.engine.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	noProcess(t, holder)
	// One that is found isolated, and not started yet.
	if err := h.engine.Isolate(t.Context(), PodConfig{ID: "p2", IDs: first}); err != nil {
		t.Fatal(err)
	}
	holder = h.engine.pods["p2"].cfg.Holder
	h.restart()
	c = PodConfig{ID: "p2", IDs: first, Hostname: "other", NetNS: h.engine.IsolatedNetwork("p2")}
	if out, _ := h.output(h.pod(c), "web_0", ContainerConfig{Args: []string{"pids"}, Seccomp: SeccompDefault, NoNewPrivileges: true}); out != "1 guest\n" {
		t.Errorf("with processes of its own: %q", out)
	}
	if err := h.engine.StopPod(t.Context(), "p2"); err != nil {
		t.Fatal(err)
	}
	noProcess(t, holder)
}
