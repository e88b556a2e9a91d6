package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// appArmorHost is what this host can do about AppArmor (KEP-24).
type appArmorHost struct {
	enabled bool
	// missing says why there is no default profile; nil: it is loaded.
	missing error
}

// theAppArmor asks the kernel, and loads the default profile, once: AppArmor comes
// and goes with a restart of the machine alone.
var theAppArmor = sync.OnceValue(func() appArmorHost {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(data), "Y") {
		return appArmorHost{}
	}
	return appArmorHost{enabled: true, missing: loadDefaultProfile(appArmorParsers)}
})

const defaultProfile = "conclave-default"

// defaultProfileText lets a container do what a container without privileges
// does, and keeps from it what the kernel's own files offer beyond that: names
// below /proc that are no process's, and below /sys all but cgroups. It includes no
// file of the host's, so that it means the same everywhere.
const defaultProfileText = `profile ` + defaultProfile + ` flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  umount,
  signal (receive) peer=unconfined,
  signal (send, receive) peer=` + defaultProfile + `,
  ptrace (trace, read, tracedby, readby) peer=` + defaultProfile + `,

  deny mount,
  deny /proc/* w,
  deny /proc/[^1-9]*/** w,
  deny /proc/{kcore,sysrq-trigger} rwklx,
  deny /sys/{[^f]*,f[^s]*}/** wklx,
  deny /sys/fs/{[^c]*,c[^g]*}/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
}
`

// appArmorParsers is where hosts have the compiler of profiles; a service's PATH
// may be without the folders of the administrator.
var appArmorParsers = []string{"apparmor_parser", "/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"}

// parserWait bounds the compiler, which takes a second or two on the slowest machine.
const parserWait = time.Minute

// loadDefaultProfile gives the kernel the default profile, in the place of one of
// that name from an earlier start, which containers may be running under.
func loadDefaultProfile(parsers []string) error {
	for _, name := range parsers {
		program, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), parserWait)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, "--replace", "--skip-cache", "--quiet")
		cmd.Stdin = strings.NewReader(defaultProfileText)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("the runtime's default profile could not be loaded: %s: %w: %s", program, err, bytes.TrimSpace(out))
		}
		return nil
	}
	return errors.New("the runtime's default profile could not be loaded: apparmor_parser is not there: install it (package apparmor), or load a profile into the kernel and name it as one of type Localhost")
}

// appArmor is the profile that a container asks for; nil: it does not say.
func appArmor(pod *corev1.Pod, c *corev1.Container) *corev1.AppArmorProfile {
	if sc := c.SecurityContext; sc != nil && sc.AppArmorProfile != nil {
		return sc.AppArmorProfile
	}
	if sc := pod.Spec.SecurityContext; sc != nil {
		return sc.AppArmorProfile
	}
	return nil
}

// check refuses a pod that asks for what this host cannot enforce.
func (h appArmorHost) check(pod *corev1.Pod) error {
	for _, c := range allContainers(pod) {
		switch p := appArmor(pod, c); {
		case p == nil || p.Type == corev1.AppArmorProfileTypeUnconfined:
		case !h.enabled:
			return errors.New("AppArmor is not enabled on the host")
		case p.Type == corev1.AppArmorProfileTypeRuntimeDefault && h.missing != nil:
			return h.missing
		}
	}
	return nil
}

// profileOf is what the kernel calls a container's profile; empty is none.
func (h appArmorHost) profileOf(pod *corev1.Pod, c *corev1.Container) string {
	if !h.enabled || c.SecurityContext != nil && isTrue(c.SecurityContext.Privileged) {
		return ""
	}
	switch p := appArmor(pod, c); {
	case p == nil || p.Type == corev1.AppArmorProfileTypeRuntimeDefault:
		if h.missing == nil {
			return defaultProfile
		}
	case p.Type == corev1.AppArmorProfileTypeLocalhost && p.LocalhostProfile != nil:
		return *p.LocalhostProfile
	}
	return ""
}
