package agent

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func profile(t corev1.SeccompProfileType, path string) *corev1.SeccompProfile {
	p := &corev1.SeccompProfile{Type: t}
	if path != "" {
		p.LocalhostProfile = &path
	}
	return p
}

func TestSeccompProfile(t *testing.T) {
	const def, local, none = corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeLocalhost, corev1.SeccompProfileTypeUnconfined
	for name, c := range map[string]struct {
		pod, own   *corev1.SeccompProfile
		privileged bool
		byDefault  bool
		want       string
		fails      bool
	}{
		"nothing is Unconfined":       {},
		"nothing, as the node has it": {byDefault: true, want: "runtime/default"},
		"the pod's":                   {pod: profile(def, ""), want: "runtime/default"},
		"the container's":             {pod: profile(def, ""), own: profile(none, ""), byDefault: true},
		"a file":                      {own: profile(local, "team/web.json"), want: "localhost//data/seccomp/team/web.json"},
		"a file elsewhere":            {own: profile(local, "../identity/key"), fails: true},
		"no file":                     {own: profile(local, ""), fails: true},
		"privileged":                  {own: profile(def, ""), privileged: true, byDefault: true},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{SeccompProfile: c.pod}}}
		got, err := seccomp(pod, &corev1.Container{SecurityContext: &corev1.SecurityContext{SeccompProfile: c.own, Privileged: &c.privileged}}, "/data/seccomp", c.byDefault)
		if got != c.want || (err != nil) != c.fails {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
}

func TestCheckSysctls(t *testing.T) {
	for _, c := range []struct {
		name    string
		allowed []string
		host    bool
		want    string
	}{
		{"kernel.shm_rmid_forced", nil, false, ""},
		{"kernel/shm_rmid_forced", nil, false, ""},
		{"net.ipv4.tcp_rmem", nil, false, ""},
		{"kernel.msgmax", nil, false, `"kernel.msgmax" not allowlisted`},
		{"kernel.msgmax", []string{"kernel.msg*"}, false, ""},
		{"kernel.sem", []string{"kernel.msg*"}, false, `"kernel.sem" not allowlisted`},
		{"net.ipv4.conf.eth0/1.mtu", []string{"net.ipv4.conf.eth0/1.mtu"}, false, ""},
		{"net/ipv4/conf/eth0.1/mtu", []string{"net.ipv4.conf.eth0/1.mtu"}, false, ""},
		{"net.ipv4.tcp_rmem", nil, true, `"net.ipv4.tcp_rmem" not allowed with host net enabled`},
		{"kernel.shm_rmid_forced", nil, true, `"kernel.shm_rmid_forced" not allowed with host ipc enabled`},
	} {
		pod := &corev1.Pod{Spec: corev1.PodSpec{HostNetwork: c.host, HostIPC: c.host, SecurityContext: &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: c.name, Value: "1"}}}}}
		got := ""
		if err := checkSysctls(pod, c.allowed); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s of %v: %q", c.name, c.allowed, got)
		}
	}
}

func TestCheckAppArmor(t *testing.T) {
	path := "k8s-web"
	ask := func(of corev1.AppArmorProfileType) *corev1.Pod {
		p := &corev1.AppArmorProfile{Type: of}
		if of == corev1.AppArmorProfileTypeLocalhost {
			p.LocalhostProfile = &path
		}
		return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", SecurityContext: &corev1.SecurityContext{AppArmorProfile: p}}}}}
	}
	for _, c := range []struct {
		pod  *corev1.Pod
		host bool
		want string
		name string
	}{
		{ask(corev1.AppArmorProfileTypeUnconfined), false, "", ""},
		{ask(corev1.AppArmorProfileTypeLocalhost), false, "AppArmor is not enabled on the host", path},
		{ask(corev1.AppArmorProfileTypeRuntimeDefault), false, "AppArmor is not enabled on the host", ""},
		{ask(corev1.AppArmorProfileTypeLocalhost), true, "", path},
		{ask(corev1.AppArmorProfileTypeRuntimeDefault), true, "the runtime has no default profile", ""},
	} {
		err := checkAppArmor(c.pod, c.host)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v on %v: %v", c.pod.Spec.Containers[0].SecurityContext.AppArmorProfile, c.host, err)
		}
		if got := appArmorName(c.pod, &c.pod.Spec.Containers[0]); got != c.name {
			t.Errorf("the kernel is told %q", got)
		}
	}
}

func TestRecursiveReadOnly(t *testing.T) {
	enabled, possible, disabled := corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible, corev1.RecursiveReadOnlyDisabled
	for _, c := range []struct {
		mode          *corev1.RecursiveReadOnlyMode
		readOnly, can bool
		want, fails   bool
	}{
		{nil, true, true, false, false},
		{&disabled, true, true, false, false},
		{&enabled, true, true, true, false},
		{&enabled, true, false, false, true},
		{&enabled, false, true, false, true},
		{&possible, true, true, true, false},
		{&possible, true, false, false, false},
	} {
		m := &corev1.VolumeMount{Name: "v", ReadOnly: c.readOnly, RecursiveReadOnly: c.mode}
		if got, err := recursiveReadOnly(m, c.can); got != c.want || (err != nil) != c.fails {
			t.Errorf("%+v, kernel %v: %v %v", m, c.can, got, err)
		}
	}
	d := podDirs{disk: t.TempDir(), volumes: t.TempDir()}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}}}
	c := &corev1.Container{VolumeMounts: []corev1.VolumeMount{{Name: "v", MountPath: "/v", ReadOnly: true, RecursiveReadOnly: &possible, BindMountOptions: []string{"noexec", "nodev"}}}}
	mounts, err := volumeMounts(pod, c, d, nil, nil)
	if err != nil || mayMountRecursively() != slices.Contains(mounts[0].Options, "rro") || !slices.Contains(mounts[0].Options, "noexec") || !slices.Contains(mounts[0].Options, "nodev") {
		t.Errorf("mounts %+v, %v", mounts, err)
	}
}
