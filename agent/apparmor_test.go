package agent

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestAppArmor(t *testing.T) {
	none := appArmorHost{}
	whole := appArmorHost{enabled: true}
	bare := appArmorHost{enabled: true, missing: errors.New("apparmor_parser is not there")}
	local := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: new("k8s-web")}
	byDefault := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}
	unconfined := &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}
	for name, c := range map[string]struct {
		host           appArmorHost
		pod, container *corev1.AppArmorProfile
		privileged     bool
		refused        string
		kernel         string // what it is told
	}{
		"nothing asked, nothing there":   {host: none},
		"unconfined, nothing there":      {host: none, container: unconfined},
		"a profile, nothing there":       {host: none, container: local, refused: "AppArmor is not enabled on the host"},
		"the default, nothing there":     {host: none, pod: byDefault, refused: "AppArmor is not enabled on the host"},
		"nothing asked":                  {host: whole, kernel: "conclave-default"},
		"nothing asked, privileged":      {host: whole, privileged: true},
		"a profile":                      {host: whole, container: local, kernel: "k8s-web"},
		"the pod's profile":              {host: whole, pod: local, kernel: "k8s-web"},
		"its own before the pod's":       {host: whole, pod: local, container: unconfined},
		"the default":                    {host: whole, container: byDefault, kernel: "conclave-default"},
		"the default without a compiler": {host: bare, container: byDefault, refused: "apparmor_parser is not there"},
		"nothing asked, no compiler":     {host: bare},
		"a profile without a compiler":   {host: bare, container: local, kernel: "k8s-web"},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{AppArmorProfile: c.pod},
			Containers:      []corev1.Container{{Name: "a", SecurityContext: &corev1.SecurityContext{AppArmorProfile: c.container, Privileged: &c.privileged}}},
		}}
		err := c.host.check(pod)
		if got := ""; err != nil {
			got = err.Error()
			if got != c.refused {
				t.Errorf("%s: %s", name, got)
			}
			continue
		}
		if c.refused != "" {
			t.Errorf("%s: not refused", name)
		}
		if got := c.host.profileOf(pod, &pod.Spec.Containers[0]); got != c.kernel {
			t.Errorf("%s: the kernel is told %q, not %q", name, got, c.kernel)
		}
	}
}

// TestDefaultProfileIsLoaded by the first compiler of profiles that is there.
func TestDefaultProfileIsLoaded(t *testing.T) {
	dir := t.TempDir()
	parser := filepath.Join(dir, "parser")
	for _, c := range []struct{ script, want string }{
		{"", "install it (package apparmor)"},
		{"cat > " + dir + "/text; echo $@ > " + dir + "/args", ""},
		{"echo no such feature >&2; exit 3", "exit status 3: no such feature"},
	} {
		if c.script != "" {
			if err := os.WriteFile(parser, []byte("#!/bin/sh\n"+c.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		err := loadDefaultProfile([]string{filepath.Join(dir, "nowhere"), parser})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v", c.script, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "text"))
	if err != nil || string(text) != defaultProfileText {
		t.Errorf("the compiler read %q (%v)", text, err)
	}
	if args, err := os.ReadFile(filepath.Join(dir, "args")); err != nil || strings.TrimSpace(string(args)) != "--replace --skip-cache --quiet" {
		t.Errorf("the compiler was told %q (%v)", args, err)
	}
}

// TestDefaultProfileCompiles for a kernel with all that AppArmor 3.0 mediates. The
// compiler is the host's (package apparmor, which make deps-test installs).
func TestDefaultProfileCompiles(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		parser = "/sbin/apparmor_parser"
	}
	compile := func(text string) ([]byte, error) {
		cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "--quiet", "--stdout", "--features-file", "/etc/apparmor.d/abi/3.0")
		cmd.Stdin = strings.NewReader(text)
		return cmd.Output()
	}
	if out, err := compile(defaultProfileText); err != nil || len(out) == 0 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	if _, err := compile(strings.Replace(defaultProfileText, "deny mount,", "deny mounting,", 1)); err == nil {
		t.Error("the compiler takes anything")
	}
}
