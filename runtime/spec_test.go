package runtime

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"conclave/runtime/internal/proto"
)

var update = flag.Bool("update", false, "rewrite the golden files; read the difference before you commit it")

func testSpecHost(v2 bool) host {
	return host{
		v2:           v2,
		capabilities: []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"},
		hostname:     "web-1",
		shm:          "/run/pod/shm",
		devices: func() ([]specs.LinuxDevice, error) {
			return []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}, nil
		},
	}
}

func TestSpecGolden(t *testing.T) {
	img := Image{ID: "sha256:1", Env: []string{"PATH=/app", "A=image"}, Entrypoint: []string{"/app/run"}, Cmd: []string{"--default"}, WorkingDir: "/app"}
	p := proto.Pod{ID: "uid", CgroupPath: "/conclave/burstable/poduid"}
	for name, c := range map[string]struct {
		host   host
		pod    proto.Pod
		config ContainerConfig
	}{
		"plain":    {testSpecHost(false), p, ContainerConfig{ID: "web_0"}},
		"plain-v2": {testSpecHost(true), p, ContainerConfig{ID: "web_0"}},
		"full": {testSpecHost(true), proto.Pod{CgroupPath: "/conclave/poduid", HostPID: true}, ContainerConfig{
			ID: "web_1", Command: []string{"sh", "-c"}, Args: []string{"true"}, Env: []string{"A=pod", "B=2", "A=last"}, WorkingDir: "srv/../data",
			Mounts: []specs.Mount{
				{Destination: "/data/inner", Type: "bind", Source: "/b", Options: []string{"rbind", "ro"}},
				{Destination: "/data", Type: "bind", Source: "/a", Options: []string{"rbind", "rw", "rslave"}},
				{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs"},
			},
			Resources:       &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}, Unified: map[string]string{"memory.oom.group": "1"}},
			OOMScoreAdj:     ptr(-997),
			AddCapabilities: []string{"NET_ADMIN", "cap_sys_admin"}, DropCapabilities: []string{"KILL"},
			ReadOnlyRoot: true, NoNewPrivileges: true, TTY: true, AppArmor: "k8s-web",
		}},
		"device": {testSpecHost(true), p, ContainerConfig{ID: "web_3", Devices: []specs.LinuxDevice{{Path: "/dev/xvda", Type: "b", Major: 7, Minor: 3}}, Resources: &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Major: ptr(int64(7)), Minor: ptr(int64(3)), Access: "r"}},
		}}},
		// Its own device, not the host's of that name.
		"device-privileged": {testSpecHost(true), p, ContainerConfig{ID: "web_4", Privileged: true, Devices: []specs.LinuxDevice{{Path: "/dev/fuse", Type: "b", Major: 7, Minor: 3}}}},
		"privileged":        {testSpecHost(true), p, ContainerConfig{ID: "web_2", Privileged: true, DropCapabilities: []string{"ALL"}}},
	} {
		spec, err := makeSpec(c.host, c.pod, img, c.config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := json.MarshalIndent(spec, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		path := filepath.Join("testdata", "spec", name+".json")
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil || string(got) != string(want) {
			t.Errorf("%s differs from %s (%v):\n%s", name, path, err, got)
		}
	}
}

func TestMakeArgs(t *testing.T) {
	full := Image{Entrypoint: []string{"entry"}, Cmd: []string{"cmd"}}
	for _, c := range []struct {
		img           Image
		command, args []string
		want          []string
	}{
		{full, nil, nil, []string{"entry", "cmd"}},
		{full, []string{"c"}, nil, []string{"c"}},
		{full, nil, []string{"a"}, []string{"entry", "a"}},
		{full, []string{"c"}, []string{"a"}, []string{"c", "a"}},
		{Image{Cmd: []string{"cmd"}}, nil, []string{"a"}, []string{"a"}},
	} {
		got, err := makeArgs(c.img, ContainerConfig{Command: c.command, Args: c.args})
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%v %v of %v: %v %v", c.command, c.args, c.img, got, err)
		}
	}
	if _, err := makeArgs(Image{}, ContainerConfig{}); !errors.Is(err, ErrStart) || !strings.Contains(err.Error(), "no command specified") {
		t.Errorf("nothing to run: %v", err)
	}
}

func TestMakeUser(t *testing.T) {
	for _, c := range []struct {
		image    string
		uid, gid *int64
		want     string
	}{
		{"", nil, nil, ""},
		{"web", nil, nil, "web"},
		{"web:www", nil, nil, "web:www"},
		{"web:www", ptr(int64(5)), nil, "5"},
		{"web", nil, ptr(int64(6)), "web:6"},
		{"", nil, ptr(int64(6)), "0:6"},
		{"1:2", ptr(int64(0)), ptr(int64(0)), "0:0"},
	} {
		if got, _ := makeUser(Image{User: c.image}, ContainerConfig{UID: c.uid, GID: c.gid}); got != c.want {
			t.Errorf("%q %v %v: %q, not %q", c.image, c.uid, c.gid, got, c.want)
		}
	}
}

func TestMakeCapabilities(t *testing.T) {
	h := testSpecHost(true)
	for _, c := range []struct {
		add, drop []string
		want      string
	}{
		{nil, nil, "CAP_CHOWN CAP_DAC_OVERRIDE CAP_KILL CAP_NET_BIND_SERVICE"},
		{[]string{"ALL"}, nil, strings.Join(h.capabilities, " ")},
		{[]string{"all"}, []string{"sys_admin"}, "CAP_CHOWN CAP_DAC_OVERRIDE CAP_KILL CAP_NET_ADMIN CAP_NET_BIND_SERVICE"},
		{nil, []string{"ALL"}, ""},
		{[]string{"CHOWN"}, []string{"ALL"}, "CAP_CHOWN"},
	} {
		got, err := makeCapabilities(h, ContainerConfig{AddCapabilities: c.add, DropCapabilities: c.drop})
		if err != nil || strings.Join(got.Bounding, " ") != c.want || len(got.Inheritable)+len(got.Ambient) > 0 {
			t.Errorf("add %v drop %v: %+v %v", c.add, c.drop, got, err)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGQUIT": syscall.SIGQUIT, "quit": syscall.SIGQUIT, "3": syscall.SIGQUIT, "SIGRTMIN+3": 37, "rtmin+0": 34,
		"SIGRTMIN": 34, "SIGRTMAX": 64, "SIGRTMAX-14": 50, "SIGCLD": syscall.SIGCHLD, "SIGIOT": syscall.SIGABRT, "SIGPOLL": syscall.SIGIO,
	} {
		if got, err := parseSignal(s); got != want || err != nil {
			t.Errorf("%q: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"0", "99", "-1", "SIGNOTHING", "RTMIN+99", "RTMAX-31", "RTMAX+1", "RTMIN-1"} {
		if got, err := parseSignal(s); err == nil {
			t.Errorf("%q was taken as %v", s, got)
		}
	}
}

func TestSignalName(t *testing.T) {
	for n := 1; n <= 64; n++ {
		if n == 32 || n == 33 { // the C library's
			continue
		}
		name := signalName(n)
		if got, err := parseSignal(name); int(got) != n || err != nil {
			t.Errorf("%d is %q, which is %d, %v", n, name, got, err)
		}
	}
	for n, want := range map[int]string{0: "", 34: "SIGRTMIN", 37: "SIGRTMIN+3", 49: "SIGRTMIN+15", 50: "SIGRTMAX-14", 64: "SIGRTMAX", 15: "SIGTERM"} {
		if got := signalName(n); got != want {
			t.Errorf("%d is %q", n, got)
		}
	}
}

func TestCheckSysctls(t *testing.T) {
	for _, c := range []struct {
		name string
		pod  PodConfig
		ok   bool
	}{
		{"net.core.somaxconn", PodConfig{NetNS: "/x"}, true},
		{"net.core.somaxconn", PodConfig{}, false},
		{"net/ipv4/conf/eth0.1/forwarding", PodConfig{NetNS: "/x"}, true},
		{"kernel.shm_rmid_forced", PodConfig{}, true},
		{"kernel.shm_rmid_forced", PodConfig{HostIPC: true}, false},
		{"kernel.panic", PodConfig{NetNS: "/x"}, false},
		{"net/../vm/swappiness", PodConfig{NetNS: "/x"}, false},
		{"vm.swappiness", PodConfig{NetNS: "/x"}, false},
	} {
		c.pod.Sysctls = map[string]string{c.name: "1"}
		if err := checkSysctls(c.pod); (err == nil) != c.ok {
			t.Errorf("%s %+v: %v", c.name, c.pod, err)
		}
	}
}

// TestUsageV2 reads a folder that looks like a cgroup of version 2, which this
// machine may not have.
func TestUsageV2(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 70\n",
		"memory.current": "1000\n",
		"memory.max":     "max\n",
		"memory.stat":    "anon 300\nfile 500\ninactive_file 400\npgfault 7\npgmajfault 2\n",
		"pids.current":   "3\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u, err := usageV2(dir)
	if want := (Usage{CPU: 1_500_000, Memory: 1000, WorkingSet: 600, RSS: 300, PIDs: 3, PageFaults: 7, MajorFaults: 2, Periods: 9, Throttled: 4, ThrottledTime: 70_000}); err != nil || u != want {
		t.Errorf("%+v %v", u, err)
	}
}
