package agent_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"conclave/agent"
	"conclave/agent/agenttest"
)

// deviceNode makes the node of a block device; nobody opens it.
func deviceNode(t *testing.T, major, minor uint32) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := unix.Mknod(path, unix.S_IFBLK|0o640, int(unix.Mkdev(major, minor))); errors.Is(err, unix.EPERM) {
		t.Skip("device nodes cannot be made here")
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

func isDevice(path string) func(*corev1.PersistentVolume) {
	block := corev1.PersistentVolumeBlock
	return func(v *corev1.PersistentVolume) {
		v.Labels, v.Annotations, v.Finalizers, v.Spec.VolumeMode = nil, nil, nil, &block
		v.Spec.Local = &corev1.LocalVolumeSource{Path: path}
	}
}

// withDevice has the claim as a device in all containers of a pod.
func withDevice(path string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		claiming(p)
		p.Spec.Containers[0].VolumeMounts = nil
		p.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: path}}
		p.Spec.InitContainers = []corev1.Container{*p.Spec.Containers[0].DeepCopy()}
		p.Spec.InitContainers[0].Name = "first"
	}
}

// A local volume that is a device is one in the pod's containers, after a restart
// of ours too, and is left alone when the pod goes.
func TestLocalDevice(t *testing.T) {
	path := deviceNode(t, 7, 200)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.volume("disk", isDevice(path))
		w.claim("disk")
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{Exits: strings.HasPrefix(c.ID, "first")}
		}
		p := w.create(pod("a", withDevice("/dev//xvda")))
		after(time.Second)
		started := w.runtime.Started()
		if len(started) != 2 {
			t.Fatalf("%d containers, events %q", len(started), w.events("FailedMapVolume"))
		}
		for _, c := range started {
			if len(c.Devices) != 1 || len(c.Resources.Devices) != 1 {
				t.Fatalf("%s has %+v, rules %+v", c.ID, c.Devices, c.Resources.Devices)
			}
			d, rule := c.Devices[0], c.Resources.Devices[0]
			if d.Path != "/dev/xvda" || d.Type != "b" || d.Major != 7 || d.Minor != 200 || *d.FileMode != 0o640 || *d.UID != 0 || *d.GID != 0 {
				t.Errorf("%s has %+v", c.ID, d)
			}
			if !rule.Allow || rule.Type != "b" || *rule.Major != 7 || *rule.Minor != 200 || rule.Access != "rwm" {
				t.Errorf("%s may do %+v", c.ID, rule)
			}
		}
		w.restart()
		after(time.Minute)
		if n := len(w.runtime.Started()); n != 2 || w.get("a").Status.Phase != corev1.PodRunning {
			t.Errorf("after a restart %d containers were started, %s", n, show(w.get("a").Status))
		}
		w.delete("a", 0)
		after(time.Minute)
		if exists(filepath.Join(w.config.Dir, "run", "volumes", string(p.UID))) || !exists(path) {
			t.Error("the pod's link is there, or the device's node is not")
		}
		// Whose claim is read-only must not write.
		w.create(pod("b", withDevice("/dev/xvda"), func(p *corev1.Pod) { p.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true }))
		after(time.Second)
		if started = w.runtime.Started(); len(started) != 4 || started[3].Resources.Devices[0].Access != "r" {
			t.Errorf("read-only: %+v", started[len(started)-1].Resources.Devices)
		}
	})
}

func TestDevicesThatCannotBe(t *testing.T) {
	path := deviceNode(t, 7, 200)
	block := corev1.PersistentVolumeBlock
	for name, tc := range map[string]struct {
		pod    func(*corev1.Pod)
		volume func(*corev1.PersistentVolume)
		reason string
		want   string
	}{
		"mounted":   {claiming, isDevice(path), "FailedMount", `MountVolume.SetUp failed for volume "v" : volume v has volumeMode Block, but is specified in volumeMounts`},
		"a folder":  {withDevice("/dev/x"), func(v *corev1.PersistentVolume) { v.Labels = nil }, "FailedMount", "volume v has volumeMode Filesystem, but is specified in volumeDevices"},
		"no device": {withDevice("/dev/x"), isDevice(os.DevNull), "FailedMapVolume", `MapVolume.SetUpDevice failed for volume "v" : local volume: path "/dev/null" is no block device`},
		"missing":   {withDevice("/dev/x"), isDevice("/no/such/device"), "FailedMapVolume", "no such file or directory"},
		"of no driver": {withDevice("/dev/x"), func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
			v.Spec.VolumeMode = &block
		}, "FailedMapVolume", "volumes of this type are no block devices"},
		"relative": {withDevice("dev/x"), isDevice(path), "Failed", "error DevicePath `dev/x` must be an absolute path"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.volume("disk", tc.volume)
				w.claim("disk")
				w.create(pod("a", tc.pod))
				after(time.Minute)
				if got := w.events(tc.reason); !slices.ContainsFunc(got, func(e string) bool { return strings.Contains(e, tc.want) }) {
					t.Errorf("events %q", got)
				}
				if len(w.runtime.Started()) > 0 {
					t.Error("it runs")
				}
			})
		})
	}
}

// A local volume may be where a disk is mounted: that is not the pod's to unmount.
func TestLocalMountPoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.volume("disk", func(v *corev1.PersistentVolume) {
			v.Labels, v.Annotations, v.Finalizers = nil, nil, nil
			v.Spec.Local.Path = "/proc"
		})
		w.claim("disk")
		p := w.create(pod("a", claiming))
		after(time.Second)
		if w.mounted() != "/proc" {
			t.Fatalf("mounted %q, events %q", w.mounted(), w.events("FailedMount"))
		}
		w.delete("a", 0)
		after(time.Minute)
		if exists(filepath.Join(w.config.Dir, "run", "volumes", string(p.UID))) || !exists("/proc/self") {
			t.Error("the pod's link is there, or the mount is not")
		}
	})
}
