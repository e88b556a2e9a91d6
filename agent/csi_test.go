package agent

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"conclave/api/csi"
)

func TestKubeletPaths(t *testing.T) {
	a := &Agent{cfg: Config{Dir: "/data"}}
	p := newPlugins(a)
	for path, want := range map[string]string{
		"/var/lib/kubelet":                     "/data/kubelet",
		"/var/lib/kubelet/":                    "/data/kubelet",
		"/var/lib/kubelet/plugins/d/csi.sock":  "/data/kubelet/plugins/d/csi.sock",
		"/var/lib/kubelet/../kubelet/pods":     "/data/kubelet/pods",
		"/var/lib/kubelet/../../../etc/passwd": "/etc/passwd",
		"/var/lib/kubelets":                    "/var/lib/kubelets",
		"/var/lib":                             "/var/lib",
		"/data/kubelet/plugins/d/globalmount":  "/data/kubelet/plugins/d/globalmount",
	} {
		if got := a.dirs("u").host(path); got != want {
			t.Errorf("%s is %s here, want %s", path, got, want)
		}
	}
	if got := p.told("/data/kubelet/pods/u"); got != "/var/lib/kubelet/pods/u" {
		t.Errorf("drivers are told %s", got)
	}
}

// TestMountedRecord: what was begun is found again, and counts as done only in
// the same run of the host.
func TestMountedRecord(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "v", "mount")
	m := &mounted{Driver: "d", Handle: "h", Name: "v"}
	if err := m.write(filepath.Dir(target)); err != nil {
		t.Fatal(err)
	}
	got, err := readMounted(filepath.Dir(target))
	if err != nil || *got != *m || got.holds(target) {
		t.Fatalf("begun: %+v, %v, holds %t", got, err, got.holds(target))
	}
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := m.done(filepath.Dir(target), target); err != nil {
		t.Fatal(err)
	}
	if got, err = readMounted(filepath.Dir(target)); err != nil || !got.holds(target) || got.Mount {
		t.Fatalf("done: %+v, %v", got, err)
	}
	if other := (&mounted{Boot: "another run", Mount: false}); other.holds(target) {
		t.Error("what an earlier run of the host had mounted counts")
	}
	if gone := (&mounted{Boot: bootID(), Mount: true}); gone.holds(target) {
		t.Error("a mount that is gone counts")
	}
	// Nothing but what is empty is removed.
	if err := os.WriteFile(filepath.Join(target, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeMount(filepath.Dir(target), target); err == nil {
		t.Error("a folder with data in it was removed")
	}
	if _, err := os.Stat(filepath.Join(target, "data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(target, "data")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // again does nothing
		if err := removeMount(filepath.Dir(target), target); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Dir(target)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its folder: %v", err)
	}
}

// A pod whose driver is away is not taken down: only the driver can take back
// what it mounted.
func TestTearDownWithoutDriver(t *testing.T) {
	a := &Agent{cfg: Config{Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	a.node = &nodeKeeper{a: a, wake: make(chan struct{}, 1)}
	p := newPlugins(a)
	a.plugins = p
	dir := filepath.Join(p.dir, "pods", "u", "volumes", "kubernetes.io~csi", "pvc-1")
	if err := (&mounted{Driver: "d", Handle: "h", Name: "pvc-1"}).write(dir); err != nil {
		t.Fatal(err)
	}
	p.findUsed()
	if got := p.inUse(); len(got) != 1 || got[0] != "kubernetes.io/csi/d^h" {
		t.Errorf("in use are %v", got)
	}
	if err := p.tearDown(t.Context(), "u"); err == nil {
		t.Error("taken down without its driver")
	}
	if err := p.tearDown(t.Context(), "another"); err != nil {
		t.Error(err)
	}
	if len(p.records("u")) != 1 {
		t.Error("the record is gone")
	}
}

// What a driver made a device for a pod is taken back, from where kubelet has
// such things, and unstaged when no pod has it any more.
func TestTearDownDevice(t *testing.T) {
	a := &Agent{cfg: Config{Dir: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	a.node = &nodeKeeper{a: a, wake: make(chan struct{}, 1)}
	p := newPlugins(a)
	a.plugins = p
	var calls []string
	d := &driver{name: "d", call: func(_ context.Context, method string, _ []byte) ([]byte, error) {
		calls = append(calls, filepath.Base(method))
		return nil, nil
	}}
	p.drivers["d"] = d
	m := &mounted{Driver: "d", Handle: "h", Name: "pvc-1", Block: true}
	folder, staging := p.staged(m)
	if err := errors.Join(m.write(folder), os.MkdirAll(staging, 0o750)); err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{}
	for _, uid := range []string{"one", "two"} {
		dir := p.record(uid, m.Name, true)
		paths[uid] = p.published(m, dir)
		if err := errors.Join(m.write(dir), os.MkdirAll(filepath.Dir(paths[uid]), 0o750), os.WriteFile(paths[uid], nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if want := filepath.Join(p.dir, "plugins/kubernetes.io/csi/volumeDevices/publish", m.id(), uid); paths[uid] != want {
			t.Errorf("published at %s, want %s", paths[uid], want)
		}
	}
	p.sweep(t.Context(), d) // which finds it in use
	for _, step := range []struct {
		uid  string
		want string
	}{{"one", "NodeUnpublishVolume"}, {"two", "NodeUnpublishVolume NodeUnstageVolume"}} {
		calls = nil
		if err := p.tearDown(t.Context(), step.uid); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(calls, " "); got != step.want {
			t.Errorf("pod %s: called %s, want %s", step.uid, got, step.want)
		}
		if _, err := os.Lstat(paths[step.uid]); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", paths[step.uid], err)
		}
	}
	if len(p.inUse()) > 0 {
		t.Errorf("in use are %v", p.inUse())
	}
	for _, dir := range []string{folder, staging, filepath.Dir(paths["one"]), filepath.Join(p.dir, "pods", "one")} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

func TestFSGroupPolicy(t *testing.T) {
	policy := func(p storagev1.FSGroupPolicy) *storagev1.CSIDriver {
		return &storagev1.CSIDriver{Spec: storagev1.CSIDriverSpec{FSGroupPolicy: &p}}
	}
	once := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	for name, test := range map[string]struct {
		mount csiMount
		want  bool
	}{
		"by default":        {csiMount{fsType: "ext4", modes: once}, true},
		"no file system":    {csiMount{modes: once}, false},
		"shared":            {csiMount{fsType: "ext4", modes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}}, false},
		"always":            {csiMount{spec: policy(storagev1.FileFSGroupPolicy)}, true},
		"never":             {csiMount{spec: policy(storagev1.NoneFSGroupPolicy), fsType: "ext4", modes: once}, false},
		"read only, always": {csiMount{spec: policy(storagev1.FileFSGroupPolicy), readOnly: true}, false},
		"for one pod":       {csiMount{fsType: "ext4", modes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}}, true},
	} {
		test.mount.driver = &driver{can: map[csi.NodeCapability]bool{}}
		if got := test.mount.ours(); got != test.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestMemorySize(t *testing.T) {
	limited := func(limits ...string) *corev1.Pod {
		pod := &corev1.Pod{}
		for _, l := range limits {
			c := corev1.Container{}
			if l != "" {
				c.Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(l)}
			}
			pod.Spec.Containers = append(pod.Spec.Containers, c)
		}
		return pod
	}
	node := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
	small, large, none := resource.MustParse("1Mi"), resource.MustParse("1Ti"), resource.MustParse("0")
	for name, test := range map[string]struct {
		pod   *corev1.Pod
		limit *resource.Quantity
		want  int64
	}{
		"nothing said":     {limited(""), nil, 1 << 30},
		"a limit":          {limited("16Mi"), &small, 1 << 20},
		"the pod's":        {limited("16Mi", "16Mi"), nil, 32 << 20},
		"one is unlimited": {limited("16Mi", ""), nil, 1 << 30},
		"more than all":    {limited(""), &large, 1 << 30},
		"no limit":         {limited(""), &none, 1 << 30},
	} {
		if got := memorySize(test.pod, &corev1.EmptyDirVolumeSource{SizeLimit: test.limit}, node); got != test.want {
			t.Errorf("%s: %d", name, got)
		}
	}
}
