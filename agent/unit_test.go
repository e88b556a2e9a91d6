package agent

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestExpand(t *testing.T) {
	values := lookupIn(map[string]string{"A": "1", "B": "$(A)", "E": ""})
	for in, want := range map[string]string{
		"": "", "x": "x", "$(A)": "1", "a$(A)b$(A)": "a1b1", "$(B)": "$(A)", "$(E)": "",
		"$(NONE)": "$(NONE)", "$$(A)": "$(A)", "$$$(A)": "$1", "$A": "$A", "$": "$", "x$": "x$", "$(A": "$(A", "$()": "$()", "$$": "$", "a$$b": "a$b",
	} {
		if got := expand(in, values); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	f.Add("$(A)$$(B)$(")
	f.Fuzz(func(t *testing.T, s string) {
		same := func(k string) (string, bool) { return "$(" + k + ")", true }
		if !strings.Contains(s, "$$") && expand(s, same) != s {
			t.Errorf("%q became %q", s, expand(s, same))
		}
	})
}

func testSources() sources {
	return sources{
		podIPs: []string{"10.0.0.1", "fd00::1"}, hostIPs: []string{"192.0.2.1"},
		allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("1Gi")},
		configMap: func(n string) (*corev1.ConfigMap, error) {
			if n != "c" {
				return nil, nil
			}
			return &corev1.ConfigMap{Data: map[string]string{"key": "value", "a-b": "dash", "bad=key": "x"}}, nil
		},
		secret: func(n string) (*corev1.Secret, error) {
			if n != "s" {
				return nil, nil
			}
			return &corev1.Secret{Data: map[string][]byte{"key": []byte("hidden")}}, nil
		},
		services: map[string]string{"WEB_SERVICE_HOST": "10.96.0.9", "OVER": "service"},
	}
}

func testPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "u-1", Labels: map[string]string{"app": "x"}, Annotations: map[string]string{"n": "v\n2"}},
		Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "sa", Containers: []corev1.Container{{
			Name: "web",
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
				Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1250m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
			},
		}}},
	}
}

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func ref(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }

func TestEnvironment(t *testing.T) {
	pod := testPod()
	c := &pod.Spec.Containers[0]
	c.EnvFrom = []corev1.EnvFromSource{
		{Prefix: "p-", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("c")}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: ref("s")}},
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref("none"), Optional: new(true)}},
	}
	c.Env = []corev1.EnvVar{
		{Name: "FOO", Value: "foo"},
		{Name: "BOTH", Value: "$(FOO);;$(key);;$(WEB_SERVICE_HOST);;$(NONE)"},
		{Name: "OVER", Value: "env"},
		{Name: "CM", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref("c"), Key: "key"}}},
		{Name: "GONE", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref("s"), Key: "no", Optional: new(true)}}},
		{Name: "NAME", ValueFrom: field("metadata.name")}, {Name: "NS", ValueFrom: field("metadata.namespace")}, {Name: "UID", ValueFrom: field("metadata.uid")},
		{Name: "LABEL", ValueFrom: field("metadata.labels['app']")}, {Name: "NOTE", ValueFrom: field("metadata.annotations['n']")},
		{Name: "NODE", ValueFrom: field("spec.nodeName")}, {Name: "SA", ValueFrom: field("spec.serviceAccountName")},
		{Name: "IP", ValueFrom: field("status.podIP")}, {Name: "IPS", ValueFrom: field("status.podIPs")}, {Name: "HOST", ValueFrom: field("status.hostIP")}, {Name: "HOSTS", ValueFrom: field("status.hostIPs")},
		{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		{Name: "MILLI", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "requests.cpu", Divisor: resource.MustParse("1m")}}},
		{Name: "MEM", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory", Divisor: resource.MustParse("1Mi")}}},
	}
	list, values, skipped, err := environment(pod, c, testSources())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"WEB_SERVICE_HOST": "10.96.0.9", "OVER": "env", "p-key": "value", "p-a-b": "dash", "key": "hidden", "FOO": "foo",
		"BOTH": "foo;;hidden;;10.96.0.9;;$(NONE)", "CM": "value", "NAME": "p", "NS": "ns", "UID": "u-1", "LABEL": "x", "NOTE": "v\n2",
		"NODE": "n1", "SA": "sa", "IP": "10.0.0.1", "IPS": "10.0.0.1,fd00::1", "HOST": "192.0.2.1", "HOSTS": "192.0.2.1", "CPU": "2", "MILLI": "250", "MEM": "64",
	}
	if !reflect.DeepEqual(values, want) || len(list) != len(want) {
		t.Errorf("got %q\nwant %q", values, want)
	}
	if !slices.Equal(skipped, []string{"p-bad=key"}) {
		t.Errorf("skipped %q", skipped)
	}
	c.Resources = corev1.ResourceRequirements{}
	if _, values, _, _ = environment(pod, c, testSources()); values["CPU"] != "2" || values["MEM"] != "1024" || values["MILLI"] != "0" {
		t.Errorf("without limits: %q", values)
	}
	for _, from := range []*corev1.EnvVarSource{
		{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref("none"), Key: "k"}},
		{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: ref("c"), Key: "none"}},
		{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref("none"), Key: "k"}},
		field("status.phase"), field("metadata.other['x']"),
	} {
		c.Env = []corev1.EnvVar{{Name: "X", ValueFrom: from}}
		var config configError
		if _, _, _, err := environment(pod, c, testSources()); !errors.As(err, &config) {
			t.Errorf("%+v: %v", from, err)
		}
	}
}

func TestServiceVariables(t *testing.T) {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "my-db"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.1.2", Ports: []corev1.ServicePort{
		{Name: "sql", Port: 5432, Protocol: corev1.ProtocolTCP}, {Port: 53, Protocol: corev1.ProtocolUDP},
	}}}
	want := map[string]string{
		"MY_DB_SERVICE_HOST": "10.96.1.2", "MY_DB_SERVICE_PORT": "5432", "MY_DB_SERVICE_PORT_SQL": "5432", "MY_DB_PORT": "tcp://10.96.1.2:5432",
		"MY_DB_PORT_5432_TCP": "tcp://10.96.1.2:5432", "MY_DB_PORT_5432_TCP_PROTO": "tcp", "MY_DB_PORT_5432_TCP_PORT": "5432", "MY_DB_PORT_5432_TCP_ADDR": "10.96.1.2",
		"MY_DB_PORT_53_UDP": "udp://10.96.1.2:53", "MY_DB_PORT_53_UDP_PROTO": "udp", "MY_DB_PORT_53_UDP_PORT": "53", "MY_DB_PORT_53_UDP_ADDR": "10.96.1.2",
	}
	if got := serviceVariables(s); !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	s.Spec.ClusterIP = corev1.ClusterIPNone
	if got := serviceVariables(s); got != nil {
		t.Errorf("headless: %q", got)
	}
}

func TestResources(t *testing.T) {
	pod := testPod()
	c := &pod.Spec.Containers[0]
	r := linuxResources(c.Resources.Requests, c.Resources.Limits)
	if *r.CPU.Shares != 256 || *r.CPU.Quota != 125000 || *r.CPU.Period != 100000 || *r.Memory.Limit != 64<<20 {
		t.Errorf("%+v %+v", *r.CPU, *r.Memory)
	}
	r = linuxResources(nil, nil)
	if *r.CPU.Shares != 2 || r.CPU.Quota != nil || r.Memory != nil {
		t.Errorf("nothing asked for: %+v", r)
	}
	if got := cgroupParent(pod); got != "burstable" {
		t.Error(got)
	}
	if got := oomScore(pod, c, 320<<20); got != 900 {
		t.Errorf("burstable: %d", got)
	}
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "free"})
	if r := podResources(pod); r.CPU.Quota != nil || r.Memory != nil || *r.CPU.Shares != 256 {
		t.Errorf("one container has no limit, the pod has: %+v", r)
	}
	pod.Spec.Containers = []corev1.Container{{Name: "g", Resources: corev1.ResourceRequirements{Requests: c.Resources.Limits, Limits: c.Resources.Limits}}}
	if qosClass(pod) != corev1.PodQOSGuaranteed || cgroupParent(pod) != "" || oomScore(pod, &pod.Spec.Containers[0], 1<<30) != -997 {
		t.Error("guaranteed", qosClass(pod))
	}
	pod.Spec.Containers = []corev1.Container{{Name: "b"}}
	if qosClass(pod) != corev1.PodQOSBestEffort || cgroupParent(pod) != "besteffort" || oomScore(pod, &pod.Spec.Containers[0], 1<<30) != 1000 {
		t.Error("best effort", qosClass(pod))
	}
}

func TestSecurity(t *testing.T) {
	pod := testPod()
	c := &pod.Spec.Containers[0]
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(1000)), RunAsGroup: new(int64(2000)), FSGroup: new(int64(3000)), SupplementalGroups: []int64{4000}}
	c.SecurityContext = &corev1.SecurityContext{
		RunAsUser: new(int64(1001)), Privileged: new(true), ReadOnlyRootFilesystem: new(true), AllowPrivilegeEscalation: new(false),
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN"}, Drop: []corev1.Capability{"ALL"}},
	}
	c.Command, c.Args = []string{"$(FOO)"}, []string{"a$(FOO)", "$$(FOO)"}
	c.Env = []corev1.EnvVar{{Name: "FOO", Value: "bar"}}
	dir := t.TempDir()
	d := podDirs{disk: filepath.Join(dir, "d"), etc: filepath.Join(dir, "e")}
	c.TerminationMessagePath = "/dev/termination-log"
	cfg, _, err := containerConfig(pod, c, 3, Image{ID: "i"}, d, testSources(), 1<<30, "cluster.local", security{})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ID != "web_3" || *cfg.UID != 1001 || *cfg.GID != 2000 || !slices.Equal(cfg.Groups, []int64{4000, 3000}) || !cfg.Privileged || !cfg.ReadOnlyRoot || !cfg.NoNewPrivileges ||
		!slices.Equal(cfg.AddCapabilities, []string{"NET_ADMIN"}) || !slices.Equal(cfg.DropCapabilities, []string{"ALL"}) {
		t.Errorf("%+v", cfg)
	}
	if !slices.Equal(cfg.Command, []string{"bar"}) || !slices.Equal(cfg.Args, []string{"abar", "$(FOO)"}) || cfg.Env[0] != "HOSTNAME=p" {
		t.Errorf("%q %q %q", cfg.Command, cfg.Args, cfg.Env)
	}
	var targets []string
	for _, m := range cfg.Mounts {
		targets = append(targets, m.Destination)
	}
	if strings.Join(targets, " ") != "/etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log" {
		t.Errorf("mounts %q", targets)
	}
	if info, err := os.Stat(d.termination("web", 3)); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("termination file: %v %v", info, err)
	}
	for _, test := range []struct {
		uid   *int64
		image string
		ok    bool
	}{{new(int64(0)), "5", false}, {new(int64(1)), "0", true}, {nil, "", false}, {nil, "0:0", false}, {nil, "12:12", true}, {nil, "nobody", false}} {
		c.SecurityContext = &corev1.SecurityContext{RunAsNonRoot: new(true), RunAsUser: test.uid}
		pod.Spec.SecurityContext = nil
		if err := checkNonRoot(pod, c, test.uid, test.image); (err == nil) != test.ok {
			t.Errorf("%v %q: %v", test.uid, test.image, err)
		}
	}
}

func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		root := filepath.Join(dir, e.Name())
		real, err := filepath.EvalSymlinks(root)
		if err != nil {
			t.Fatal(err)
		}
		err = filepath.WalkDir(real, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(p)
			rel, _ := filepath.Rel(real, p)
			out[filepath.Join(e.Name(), rel)] = string(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestAtomicWriter(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "v")
	write := func(files map[string]payloadFile, want bool) {
		t.Helper()
		changed, err := writePayload(dir, files, nil)
		if err != nil || changed != want {
			t.Fatalf("changed %v, %v", changed, err)
		}
		wanted := map[string]string{}
		for p, f := range files {
			wanted[p] = string(f.Data)
		}
		if got := readTree(t, dir); !reflect.DeepEqual(got, wanted) {
			t.Fatalf("got %q, want %q", got, wanted)
		}
	}
	one := map[string]payloadFile{"a": {Data: []byte("1"), Mode: 0o400}, "d/e/f": {Data: []byte("2"), Mode: 0o644}}
	write(one, true)
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode() != 0o400 {
		t.Errorf("mode: %v %v", info.Mode(), err)
	}
	before, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	write(one, false)
	held, err := os.Open(filepath.Join(dir, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	write(map[string]payloadFile{"a": {Data: []byte("new"), Mode: 0o400}, "g": {Data: []byte("3"), Mode: 0o644}}, true)
	after, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil || after == before {
		t.Errorf("..data: %s, before %s, %v", after, before, err)
	}
	if _, err := os.Stat(filepath.Join(dir, before)); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the old folder stays")
	}
	// A crash between the change of ..data and the rest of the work.
	if err := errors.Join(os.Remove(filepath.Join(dir, "g")), os.Mkdir(filepath.Join(dir, "..0123"), 0o700), os.Symlink(filepath.Join(dataLink, "gone"), filepath.Join(dir, "gone"))); err != nil {
		t.Fatal(err)
	}
	write(map[string]payloadFile{"a": {Data: []byte("new"), Mode: 0o400}, "g": {Data: []byte("3"), Mode: 0o644}}, false)
	if _, err := os.Stat(filepath.Join(dir, "..0123")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a folder left by a crash stays")
	}
	write(map[string]payloadFile{}, true)
	for _, bad := range []string{"", "/a", "../a", "a/../../b", "..data"} {
		if _, err := writePayload(dir, map[string]payloadFile{bad: {}}, nil); err == nil {
			t.Errorf("%q was written", bad)
		}
	}
}

func TestAtomicWriterOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing owners needs root")
	}
	dir := filepath.Join(t.TempDir(), "v")
	if _, err := writePayload(dir, map[string]payloadFile{"a": {Mode: 0o400, UID: new(int64(7))}}, new(int64(9))); err != nil {
		t.Fatal(err)
	}
	var info unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "a"), &info); err != nil || info.Uid != 7 || info.Gid != 9 || info.Mode&0o777 != 0o440 {
		t.Errorf("%+v %v", info, err)
	}
}

func FuzzPayloadPath(f *testing.F) {
	for _, s := range []string{"a", "a/b", "../x", "a/../../x", "/etc/x", "..data/x", "a//b", "a/.", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if checkPayloadPath(p) != nil {
			return
		}
		if full := filepath.Join("/root/dir", p); full != "/root/dir" && !strings.HasPrefix(full, "/root/dir/") {
			t.Errorf("%q leads to %s", p, full)
		}
	})
}

func TestRenderVolume(t *testing.T) {
	pod := testPod()
	src := volumeSources{sources: testSources(), token: func(p *corev1.ServiceAccountTokenProjection) ([]byte, error) {
		return []byte("token for " + p.Audience), nil
	}}
	v := &corev1.Volume{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: new(int32(0o640)), Sources: []corev1.VolumeProjection{
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: ref("c"), Items: []corev1.KeyToPath{{Key: "key", Path: "sub/k", Mode: new(int32(0o400))}}}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: ref("s")}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: ref("none"), Optional: new(true)}},
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "x"}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "web", Resource: "limits.cpu", Divisor: resource.MustParse("1m")}},
			{Path: "annotations", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations"}},
		}}},
	}}}}
	files, err := renderVolume(pod, v, src)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]payloadFile{
		"sub/k": {Data: []byte("value"), Mode: 0o400}, "key": {Data: []byte("hidden"), Mode: 0o640}, "token": {Data: []byte("token for x"), Mode: 0o640},
		"cpu": {Data: []byte("1250"), Mode: 0o640}, "annotations": {Data: []byte(`n="v\n2"`), Mode: 0o640},
	}
	if !reflect.DeepEqual(files, want) {
		t.Errorf("%+v", files)
	}
	v = &corev1.Volume{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s", Items: []corev1.KeyToPath{{Key: "no", Path: "x"}}}}}
	if _, err := renderVolume(pod, v, src); err == nil || err.Error() != "references non-existent secret key: no" {
		t.Error(err)
	}
}

func TestHostPathTypes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		kind corev1.HostPathType
		path string
		ok   bool
	}{
		{corev1.HostPathUnset, dir + "/none", true},
		{corev1.HostPathDirectory, dir, true}, {corev1.HostPathDirectory, file, false}, {corev1.HostPathDirectory, dir + "/none", false},
		{corev1.HostPathDirectoryOrCreate, dir + "/made", true}, {corev1.HostPathDirectoryOrCreate, file, false},
		{corev1.HostPathFile, file, true}, {corev1.HostPathFile, dir, false}, {corev1.HostPathFileOrCreate, dir + "/newfile", true},
		{corev1.HostPathCharDev, "/dev/null", true}, {corev1.HostPathBlockDev, "/dev/null", false}, {corev1.HostPathSocket, file, false},
	} {
		if err := checkHostPath(test.path, &test.kind); (err == nil) != test.ok {
			t.Errorf("%s %s: %v", test.kind, test.path, err)
		}
	}
}

// A subPath never leads out of its volume, whatever links the pod put there.
func TestSubPath(t *testing.T) {
	base := t.TempDir()
	probe := filepath.Join(base, "probe")
	if err := os.Mkdir(probe, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(probe, probe, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("bind mounts need root: %v", err)
	}
	if err := unix.Unmount(probe, 0); err != nil {
		t.Fatal(err)
	}
	volume, outside := filepath.Join(base, "volume"), filepath.Join(base, "outside")
	d := podDirs{disk: filepath.Join(base, "d"), volumes: filepath.Join(base, "v"), sub: filepath.Join(base, "s"), etc: filepath.Join(base, "e")}
	t.Cleanup(func() {
		if err := tearDownVolumes(d); err != nil {
			t.Error(err)
		}
	})
	for _, dir := range []string{volume, outside, filepath.Join(volume, "real")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{filepath.Join(outside, "secret"): "no", filepath.Join(volume, "real", "f"): "yes"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"out": outside, "up": "../outside", "in": "real"} {
		if err := os.Symlink(target, filepath.Join(volume, link)); err != nil {
			t.Fatal(err)
		}
	}
	for i, test := range []struct{ sub, file, want string }{
		{"real", "f", "yes"}, {"in", "f", "yes"}, {"real/f", "", "yes"}, {"new/deep", "none", ""}, {"out", "secret", ""}, {"up", "secret", ""},
	} {
		pin, err := pinSubPath(volume, test.sub, filepath.Join(d.sub, "c-"+string(rune('0'+i))), nil)
		if err != nil {
			if test.want != "" {
				t.Errorf("%s: %v", test.sub, err)
			}
			continue
		}
		data, err := os.ReadFile(filepath.Join(pin, test.file))
		if string(data) != test.want || test.want != "" && err != nil {
			t.Errorf("%s: %q, %v", test.sub, data, err)
		}
	}
	// What is made is as open as the volume, and its group's.
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	gid := int64(1234)
	if _, err := pinSubPath(volume, "shared", filepath.Join(d.sub, "c-9"), &gid); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(volume, "shared")); err != nil || info.Mode() != fs.ModeDir|fs.ModeSetgid|0o777 {
		t.Errorf("a new subPath is %v (%v)", info.Mode(), err)
	}
	if err := tearDownVolumes(d); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(volume, "real", "f")); string(data) != "yes" {
		t.Errorf("taking down removed what was in the volume: %v", err)
	}
	pod := testPod()
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: volume}}}}
	for _, bad := range []corev1.VolumeMount{
		{Name: "v", SubPath: "../x"}, {Name: "v", SubPathExpr: "$(ABS)"}, {Name: "v", SubPathExpr: "$(NONE)"}, {Name: "v", SubPathExpr: "$(UP)"}, {Name: "other"},
	} {
		c := &corev1.Container{Name: "c", VolumeMounts: []corev1.VolumeMount{bad}}
		var config configError
		if _, err := volumeMounts(pod, c, d, map[string]string{"ABS": "/tmp", "UP": ".."}, nil); !errors.As(err, &config) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestResolver(t *testing.T) {
	host := parseResolver([]byte("# c\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nsearch lan. home\noptions edns0\n"))
	for _, test := range []struct {
		policy corev1.DNSPolicy
		host   bool
		config *corev1.PodDNSConfig
		want   string
	}{
		{corev1.DNSClusterFirst, false, nil, "search ns.svc.c.local svc.c.local c.local lan home\nnameserver 10.96.0.10\noptions ndots:5\n"},
		{corev1.DNSClusterFirst, true, nil, "search lan home\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions edns0\n"},
		{corev1.DNSClusterFirstWithHostNet, true, nil, "search ns.svc.c.local svc.c.local c.local lan home\nnameserver 10.96.0.10\noptions ndots:5\n"},
		{corev1.DNSDefault, false, nil, "search lan home\nnameserver 1.1.1.1\nnameserver 2.2.2.2\noptions edns0\n"},
		{corev1.DNSNone, false, &corev1.PodDNSConfig{Nameservers: []string{"9.9.9.9"}, Searches: []string{"x"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("2")}, {Name: "rotate"}}}, "search x\nnameserver 9.9.9.9\noptions ndots:2 rotate\n"},
		{corev1.DNSClusterFirst, false, &corev1.PodDNSConfig{Nameservers: []string{"10.96.0.10", "9.9.9.9"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: new("1")}}}, "search ns.svc.c.local svc.c.local c.local lan home\nnameserver 10.96.0.10\nnameserver 9.9.9.9\noptions ndots:1\n"},
	} {
		pod := testPod()
		pod.Spec.DNSPolicy, pod.Spec.HostNetwork, pod.Spec.DNSConfig = test.policy, test.host, test.config
		if got := podResolver(pod, host, "10.96.0.10", "c.local").String(); got != test.want {
			t.Errorf("%s %v: %q", test.policy, test.host, got)
		}
	}
}

// What resolvers would not read is left out, and said.
func TestResolverLimits(t *testing.T) {
	few, omitted := resolver{nameservers: []string{"a", "b", "c"}, searches: make([]string, 32)}.fit()
	if len(omitted) > 0 || len(few.nameservers) != 3 || len(few.searches) != 32 {
		t.Errorf("%q of %v", omitted, few)
	}
	many := resolver{nameservers: []string{"a", "b", "c", "d"}, searches: []string{"first"}}
	for range 40 {
		many.searches = append(many.searches, strings.Repeat("x", 70))
	}
	fits, omitted := many.fit()
	if len(omitted) != 2 || !strings.HasSuffix(omitted[0], "the applied nameserver line is: a b c") || !strings.Contains(omitted[1], "the applied search line is: first xx") ||
		len(strings.Join(fits.searches, " ")) > 2048 || len(fits.searches) != 29 {
		t.Errorf("%q of %v", omitted, fits)
	}
}

func TestHostsFile(t *testing.T) {
	pod := testPod()
	pod.Spec.Hostname, pod.Spec.Subdomain = "h", "sub"
	pod.Spec.HostAliases = []corev1.HostAlias{{IP: "123.45.67.89", Hostnames: []string{"foo", "bar"}}}
	got := string(hostsFile(pod, []byte("127.0.0.1 me"), []string{"10.0.0.1"}, "c.local"))
	if !strings.HasPrefix(got, "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n") ||
		!strings.HasSuffix(got, "10.0.0.1\th.sub.ns.svc.c.local\th\n\n# Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\n") {
		t.Errorf("%q", got)
	}
	pod.Spec.HostNetwork = true
	got = string(hostsFile(pod, []byte("127.0.0.1 me"), nil, "c.local"))
	if got != "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n\n# Entries added by HostAliases.\n123.45.67.89\tfoo\tbar\n" {
		t.Errorf("host network: %q", got)
	}
}

func TestPullAuth(t *testing.T) {
	config := map[string]any{"auths": map[string]any{
		"https://index.docker.io/v1/": map[string]string{"username": "hub", "password": "p"},
		"reg.example.com":             map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("all:x:y"))},
		"reg.example.com/team":        map[string]string{"username": "team"},
		"*.cloud.example:5000":        map[string]string{"registrytoken": "tok"},
	}}
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []*corev1.Secret{{Data: map[string][]byte{corev1.DockerConfigJsonKey: data}}}
	all, team := Credential{Username: "all", Password: "x:y"}, Credential{Username: "team"}
	hub := []Credential{{Username: "hub", Password: "p"}}
	for image, want := range map[string][]Credential{
		"nginx": hub, "docker.io/library/nginx:1": hub, "me/app@sha256:00": hub,
		"reg.example.com/a/b:1": {all}, "reg.example.com/team/app": {team, all}, "reg.example.com/teams/app": {all},
		"eu.cloud.example:5000/x": {{RegistryToken: "tok"}}, "other.example.com/x": nil, "localhost:5000/x": nil,
	} {
		if got := matching(secretEntries(secrets), imageRepository(image)); !slices.Equal(got, want) {
			t.Errorf("%s: %+v, want %+v", image, got, want)
		}
	}
	old, err := json.Marshal(config["auths"])
	if err != nil {
		t.Fatal(err)
	}
	if got := matching(secretEntries([]*corev1.Secret{{Data: map[string][]byte{corev1.DockerConfigKey: old}}}), "reg.example.com/team/app"); !slices.Equal(got, []Credential{team, all}) {
		t.Errorf("dockercfg: %+v", got)
	}
}

func TestContainerIDs(t *testing.T) {
	for _, test := range []struct {
		id      string
		name    string
		attempt int
		ok      bool
	}{{"web_0", "web", 0, true}, {"a-b_12", "a-b", 12, true}, {"web", "", 0, false}, {"web_x", "web", 0, false}} {
		name, attempt, ok := splitContainerID(test.id)
		if ok != test.ok || ok && (name != test.name || attempt != test.attempt || containerID(name, attempt) != test.id) {
			t.Errorf("%s: %s %d %v", test.id, name, attempt, ok)
		}
	}
}

func TestCgroupUsage(t *testing.T) {
	files := map[string]string{
		"v1/cpuacct/g/cpuacct.usage": "5000\n", "v1/memory/g/memory.usage_in_bytes": "900\n", "v1/memory/g/memory.stat": "cache 1\ntotal_inactive_file 100\n",
		"v2/g/cpu.stat": "usage_usec 5\nuser_usec 3\n", "v2/g/memory.current": "900\n", "v2/g/memory.stat": "anon 3\ninactive_file 100\n",
	}
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []string{"v1", "v2"} {
		if cpu, memory, err := cgroupUsage(filepath.Join(dir, v), "g"); cpu != 5000 || memory != 800 || err != nil {
			t.Errorf("%s: %d %d %v", v, cpu, memory, err)
		}
	}
}

func TestGiveToGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives files to a group, which needs root")
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, err := range []error{
		os.Mkdir(filepath.Join(dir, "sub"), 0o700), os.WriteFile(filepath.Join(dir, "sub", "file"), nil, 0o600), os.Symlink(outside, filepath.Join(dir, "link")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func(path string) (gid int, mode fs.FileMode) {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		gid, _ = groupOf(info)
		return gid, info.Mode()
	}
	if err := giveToGroup(dir, 1234, nil); err != nil {
		t.Fatal(err)
	}
	if gid, mode := look(filepath.Join(dir, "sub")); gid != 1234 || mode != fs.ModeDir|fs.ModeSetgid|0o770 {
		t.Errorf("folder: %d, %v", gid, mode)
	}
	if gid, mode := look(filepath.Join(dir, "sub", "file")); gid != 1234 || mode != 0o660 {
		t.Errorf("file: %d, %v", gid, mode)
	}
	if gid, mode := look(outside); gid == 1234 || mode != 0o600 {
		t.Errorf("what a link points to: %d, %v", gid, mode)
	}
	// With the other policy the root's group decides about all.
	policy := corev1.FSGroupChangeOnRootMismatch
	for _, err := range []error{os.Chown(filepath.Join(dir, "sub"), -1, 5), giveToGroup(dir, 1234, &policy)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if gid, _ := look(filepath.Join(dir, "sub")); gid != 5 {
		t.Errorf("the root is as it should be, and all below was changed: %d", gid)
	}
	if err := giveToGroup(dir, 77, &policy); err != nil {
		t.Fatal(err)
	}
	if gid, _ := look(filepath.Join(dir, "sub")); gid != 77 {
		t.Errorf("the root was not as it should be, and what is below was left: %d", gid)
	}
}
