package runtime

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestDefaultSeccomp(t *testing.T) {
	for arch, own := range map[string]string{"amd64": "arch_prctl", "arm64": "set_tls"} {
		p := defaultSeccomp(arch, []string{"CAP_SYS_TIME"})
		all := map[string]int{}
		for _, rule := range p.Syscalls {
			for _, name := range rule.Names {
				if len(rule.Args) == 0 && rule.Action == specs.ActAllow {
					all[name]++
				}
			}
		}
		for name, n := range all {
			if n > 1 {
				t.Errorf("%s: %s is allowed %d times", arch, name, n)
			}
		}
		for _, name := range []string{"openat", "futex", "execve", "settimeofday", own} {
			if all[name] == 0 {
				t.Errorf("%s: %s is not allowed", arch, name)
			}
		}
		for _, name := range []string{
			"mount", "umount2", "setns", "unshare", "clone", "clone3", "bpf", "keyctl", "add_key", "request_key", "init_module", "kexec_load", "reboot", "swapon",
			"userfaultfd", "io_uring_setup", "perf_event_open", "open_by_handle_at", "pivot_root", "socket", "personality", "syslog", "open_tree", "fsopen", "move_pages",
		} {
			if all[name] != 0 {
				t.Errorf("%s: %s is allowed whatever its arguments", arch, name)
			}
		}
		if p.DefaultAction != specs.ActErrno || len(p.Architectures) < 2 {
			t.Errorf("%s: %s %v", arch, p.DefaultAction, p.Architectures)
		}
	}
	with := defaultSeccomp("amd64", []string{"CAP_SYS_ADMIN", "CAP_BPF"})
	if n := len(with.Syscalls[0].Names); n != len(slices.Compact(slices.Sorted(slices.Values(with.Syscalls[0].Names)))) || !slices.Contains(with.Syscalls[0].Names, "clone3") {
		t.Errorf("with CAP_SYS_ADMIN: %d names, some twice or without clone3", n)
	}
}

// TestSeccomp asks the kernel.
func TestSeccomp(t *testing.T) {
	h := newHost(t)
	p := h.pod(PodConfig{})
	write := func(name string, v any) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noMkdir := write("no-mkdir.json", map[string]any{
		"defaultAction": "SCMP_ACT_ALLOW",
		"syscalls":      []any{map[string]any{"names": []string{"mkdir", "mkdirat"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 100}},
	})
	const refused = "operation not permitted"
	n := 0
	for _, c := range []struct {
		name   string
		config ContainerConfig
		tries  []string
		want   []string
	}{
		{"none", ContainerConfig{}, []string{"unshare-user", "keyctl", "clone3", "mkdir"}, []string{"invalid argument", "ok", "invalid argument", "ok"}},
		{"default", ContainerConfig{Seccomp: SeccompDefault},
			[]string{"unshare-user", "keyctl", "bpf", "mount", "setns", "vsock", "alg", "inet", "clone3", "swapon", "settime", "chroot", "mkdir"},
			[]string{refused, refused, refused, refused, refused, refused, refused, "ok", "function not implemented", refused, refused, "ok", "ok"}},
		{"default, with capabilities", ContainerConfig{Seccomp: SeccompDefault, AddCapabilities: []string{"SYS_ADMIN"}},
			[]string{"unshare-net", "mount", "clone3", "keyctl"}, []string{"ok", "ok", "invalid argument", refused}},
		{"default, without privileges and not root", ContainerConfig{Seccomp: SeccompDefault, NoNewPrivileges: true, UID: ptr(int64(1000)), DropCapabilities: []string{"ALL"}},
			[]string{"chroot", "unshare-user", "inet"}, []string{refused, refused, "ok"}},
		{"a file", ContainerConfig{Seccomp: SeccompLocalhost + noMkdir}, []string{"mkdir", "keyctl"}, []string{"network is down", "ok"}},
	} {
		id := "c_" + string(rune('0'+n))
		n++
		c.config.Args = append([]string{"try"}, c.tries...)
		out, _ := h.output(p, id, c.config)
		var want strings.Builder
		for i, name := range c.tries {
			want.WriteString(name + ": " + c.want[i] + "\n")
		}
		if out != want.String() {
			t.Errorf("%s:\n%swant\n%s", c.name, out, want.String())
		}
	}
	if out, _ := h.output(p, "privileged_0", ContainerConfig{Args: []string{"status", "Seccomp"}, Privileged: true, Seccomp: SeccompDefault}); out != "Seccomp:\t0\n" {
		t.Errorf("a privileged container: %q", out)
	}
	// What is run in it later is filtered too.
	h.mustRun(p, "web_0", ContainerConfig{Args: []string{"idle"}, Seccomp: SeccompDefault})
	var out, errs bytes.Buffer
	if _, err := h.engine.Exec(t.Context(), p, "web_0", []string{"/bin/guest", "status", "Seccomp"}, false, nil, &out, &errs, nil); err != nil || out.String() != "Seccomp:\t2\n" {
		t.Errorf("exec: %q %q %v", out.String(), errs.String(), err)
	}
	for path, want := range map[string]string{
		"/nowhere/profile.json":                                                "cannot load seccomp profile \"/nowhere/profile.json\": open /nowhere/profile.json: no such file or directory",
		write("text.json", "text"):                                             "decoding seccomp profile failed",
		write("empty.json", map[string]any{}):                                  "it has no defaultAction",
		write("wrong.json", map[string]any{"defaultAction": "SCMP_ACT_SMILE"}): "SCMP_ACT_SMILE",
	} {
		err := h.run(p, "bad_0", ContainerConfig{Args: []string{"echo"}, Seccomp: SeccompLocalhost + path})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if st, ok := h.engine.Container(p, "bad_0"); ok {
			t.Errorf("%s: a container came to be: %+v", path, st)
			_ = h.engine.RemoveContainer(t.Context(), p, "bad_0")
		}
	}
}
