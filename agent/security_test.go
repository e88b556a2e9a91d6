package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
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

func TestUserRanges(t *testing.T) {
	var r userRanges
	r.keep(2*usersPerPod, "old")
	r.keep(0, "of the host's users")
	take := func(uid types.UID, want uint32) {
		t.Helper()
		if got, err := r.take(uid); err != nil || got != want {
			t.Errorf("%s has %d, not %d, %v", uid, got, want, err)
		}
	}
	take("a", usersPerPod)
	take("b", 3*usersPerPod)
	r.free("old")
	r.free("a")
	take("c", usersPerPod)
	take("d", 2*usersPerPod)
	for n := uint32(4); n < 1<<16-2; n++ {
		r.keep(n*usersPerPod, "many")
	}
	take("last", (1<<16-2)*usersPerPod)
	if got, err := r.take("one more"); err == nil {
		t.Errorf("there was %d left", got)
	}
}

// TestHugeFiles: a container makes the files that it was given a terabyte large
// (it costs it nothing); this process must not read them whole.
func TestHugeFiles(t *testing.T) {
	const huge = 1 << 40
	a := &Agent{cfg: Config{ClusterDomain: "cluster.local"}}
	pod, d := testPod(), podDirs{disk: t.TempDir(), etc: t.TempDir()}
	dns, _ := a.resolverOf(pod)
	if err := a.writeEtc(pod, d, []string{"10.0.0.1"}, dns, false); err != nil {
		t.Fatal(err)
	}
	message := d.termination(pod.Spec.Containers[0].Name, 0)
	if err := errors.Join(os.MkdirAll(filepath.Dir(message), 0o755), os.WriteFile(message, []byte("begin"), 0o644)); err != nil {
		t.Fatal(err)
	}
	files := []string{message}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		files = append(files, filepath.Join(d.etc, name))
	}
	for _, f := range files {
		if err := os.Truncate(f, huge); err != nil {
			t.Skipf("no sparse file of a terabyte here: %v", err)
		}
	}
	if got := terminationMessage(&pod.Spec.Containers[0], d, 0, 0); len(got) != messageMaxBytes {
		t.Errorf("the message has %d bytes", len(got))
	}
	if err := a.writeEtc(pod, d, []string{"10.0.0.1"}, dns, false); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() != huge {
			t.Errorf("%s was written anew: %v %v", f, info, err)
		}
	}
	if err := a.writeEtc(pod, d, []string{"10.0.0.2"}, dns, false); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(d.etc, "hosts")); err != nil || !strings.Contains(string(got), "10.0.0.2") {
		t.Errorf("another address: %d bytes, %v", len(got), err)
	}
	// A new sandbox, be it after a reboot, begins with what is right now.
	if err := a.writeEtc(pod, d, []string{"10.0.0.2"}, dns, true); err != nil {
		t.Fatal(err)
	}
	for _, f := range files[1:] {
		if info, err := os.Stat(f); err != nil || info.Size() == 0 || info.Size() > 1<<20 {
			t.Errorf("%s of a new sandbox: %v %v", f, info, err)
		}
	}
	// A link in place of one leads nowhere.
	if err := errors.Join(os.Remove(message), os.Symlink("/etc/passwd", message)); err != nil {
		t.Fatal(err)
	}
	if got := terminationMessage(&pod.Spec.Containers[0], d, 0, 0); got != "" {
		t.Errorf("the message is %q", got)
	}
}

// TestSubPathRace: the owner of a volume swaps a folder for a link to the host
// while it is mounted (CVE-2017-1002101, CVE-2021-25741).
func TestSubPathRace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	volume, outside, sub := filepath.Join(root, "volume"), filepath.Join(root, "outside"), filepath.Join(root, "sub")
	target, link := filepath.Join(volume, "a"), filepath.Join(volume, "link")
	if err := errors.Join(os.MkdirAll(filepath.Join(target, "b"), 0o755), os.MkdirAll(filepath.Join(outside, "b"), 0o755),
		os.WriteFile(filepath.Join(outside, "b", "secret"), nil, 0o600), os.Symlink(outside, link)); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		var err error
		for err == nil {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
				err = unix.Renameat2(unix.AT_FDCWD, target, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
		<-stop
		stopped <- err
	}()
	pinned := 0
	for i := range 500 {
		path := []string{"a/b", "a", "a/b/new"}[i%3]
		pin, err := pinSubPath(volume, path, filepath.Join(sub, "c-0"), nil)
		if err != nil {
			continue // it saw the link
		}
		pinned++
		for _, leak := range []string{"secret", "b/secret"} {
			if _, err := os.Stat(filepath.Join(pin, leak)); err == nil {
				t.Errorf("the container would see the host through %s", path)
			}
		}
	}
	close(stop)
	if err := <-stopped; err != nil || pinned == 0 {
		t.Errorf("no race was run: %d mounts, %v", pinned, err)
	}
	if err := unpin(filepath.Join(sub, "c-0")); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(outside, "b")); err != nil || len(left) != 1 {
		t.Errorf("outside holds %v, %v", left, err)
	}
}

// TestLeftMounts: a pod with Bidirectional propagation mounts a folder of the
// host into its volume and leaves it there. Taking the pod down must not remove
// what that folder holds.
func TestLeftMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	d := podDirs{disk: filepath.Join(root, "disk"), volumes: filepath.Join(root, "run"), sub: filepath.Join(root, "sub"), etc: filepath.Join(root, "etc")}
	precious := filepath.Join(root, "precious")
	at := filepath.Join(d.disk, "volumes", "shared", "a")
	if err := errors.Join(os.MkdirAll(at, 0o755), os.MkdirAll(filepath.Join(precious, "b"), 0o755), os.WriteFile(filepath.Join(precious, "data"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{at, at, filepath.Join(at, "b")} { // twice at one place, and one inside
		if err := unix.Mount(precious, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // of a test that failed
		for unix.Unmount(at, unix.MNT_DETACH) == nil {
		}
	})
	if err := tearDownVolumes(d); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(precious, "data")); err != nil {
		t.Errorf("the host's data went with the pod: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(d.disk, "volumes")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the volume is left: %v", err)
	}
}
