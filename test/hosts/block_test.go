package hosts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/test/cluster"
)

const kept = "kept in no file\n"

// loopsBehind are the loop devices of this machine behind which is a file with
// this in its path.
func loopsBehind(t *testing.T, part string) (devices []string) {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if raw, err := os.ReadFile(path); err == nil && strings.Contains(string(raw), part) {
			devices = append(devices, "/dev/"+strings.Split(path, "/")[3])
		}
	}
	return devices
}

// detachBehind takes them away, should a test have failed to.
func detachBehind(t *testing.T, part string) {
	t.Helper()
	for _, d := range loopsBehind(t, part) {
		if out, err := exec.Command("losetup", "-d", d).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", d, err, out)
		}
	}
}

func blockClaim(name, class, size string) *corev1.PersistentVolumeClaim {
	c := claimOf(name, class, nil)
	c.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
	c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	return c
}

// deviceIn gives a claim to containers of a pod as a device.
func deviceIn(pod *corev1.Pod, claim, path string, containers ...*corev1.Container) *corev1.Pod {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}})
	for _, c := range containers {
		c.VolumeDevices = append(c.VolumeDevices, corev1.VolumeDevice{Name: claim, DevicePath: path})
	}
	return pod
}

func execIn(t *testing.T, c *cluster.Cluster, ns, pod, script string) (out string) {
	t.Helper()
	eventually(t, "a command in "+pod, func() (err error) { // its node may just be back
		out, err = inPod(t.Context(), c, ns, pod, "sh", "-c", script)
		return err
	})
	return out
}

// wantLog waits until a container's log is this.
func wantLog(t *testing.T, c *cluster.Cluster, ns, pod, container, want string) {
	t.Helper()
	eventually(t, "the log of "+container, func() error {
		if out := logOf(t, c, ns, pod, container); out != want {
			return fmt.Errorf("it says %q, not %q", out, want)
		}
		return nil
	})
}

// TestBlockVolumes takes a claim for a device through its life on the example
// driver, whose devices are loop devices: what one pod writes to it the next one
// reads; it grows in a running pod, outlives our process, may be used by whom it
// was given to and no otherwise than that, and leaves nothing behind.
func TestBlockVolumes(t *testing.T) {
	c := own(t, 1)
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	withDriver(t, c)
	ns := namespace(t, c)
	core := c.Client.CoreV1()
	if _, err := core.PersistentVolumeClaims(ns).Create(t.Context(), blockClaim("disk", "csi-hostpath", "64Mi"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}

	// Written by an init container, read by the next; its permissions are those
	// of the host's device, and no other device may be used.
	pod := storagePod("writer", shell("main", `exec 2>&1; cat /dev/disk | head -c 16; blockdev --getsize64 /dev/disk; stat -c %F /dev/disk
mknod /other b 7 255; cat /other; sleep 1d`))
	first := shell("first", "printf '"+kept+"' | dd of=/dev/disk conv=fsync 2>/dev/null")
	first.Image = pod.Spec.Containers[0].Image
	pod.Spec.InitContainers = []corev1.Container{first}
	createPod(t, c, ns, deviceIn(pod, "disk", "/dev/disk", &pod.Spec.InitContainers[0], &pod.Spec.Containers[0]))
	waitForPod(t, c, ns, "writer", corev1.PodRunning)
	bound, err := core.PersistentVolumeClaims(ns).Get(t.Context(), "disk", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := core.PersistentVolumes().Get(t.Context(), bound.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || *v.Spec.VolumeMode != corev1.PersistentVolumeBlock || v.Spec.CSI.FSType != "" {
		t.Fatalf("the volume is %+v (%v)", v, err)
	}
	t.Cleanup(func() { detachBehind(t, v.Spec.CSI.VolumeHandle) })
	wantLog(t, c, ns, "writer", "main", kept+"67108864\nblock special file\ncat: can't open '/other': Operation not permitted\n")

	// A debugger has it too, under a name of its own.
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "debugger", Image: first.Image, Command: []string{"head", "-c", "16", "/somewhere/else"}, VolumeDevices: []corev1.VolumeDevice{{Name: "disk", DevicePath: "/somewhere/else"}},
	}}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := core.Pods(ns).Patch(t.Context(), "writer", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "ephemeralcontainers"); err != nil {
		t.Fatal(err)
	}
	wantLog(t, c, ns, "writer", "debugger", kept)

	// Our process goes and comes; the pod does not notice, and its device grows.
	host := c.Hosts[0]
	if err := c.Kill(host.Name); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(host.Name, "up"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "more is asked for", func() error {
		_, err := core.PersistentVolumeClaims(ns).Patch(t.Context(), "disk", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"96Mi"}}}}`), metav1.PatchOptions{})
		return err
	})
	eventually(t, "the claim has grown", func() error {
		got, err := core.PersistentVolumeClaims(ns).Get(t.Context(), "disk", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if q := got.Status.Capacity[corev1.ResourceStorage]; q.String() != "96Mi" || len(got.Status.Conditions) > 0 {
			return fmt.Errorf("its status is %+v", got.Status)
		}
		return nil
	})
	if out := execIn(t, c, ns, "writer", "blockdev --getsize64 /dev/disk; head -c 16 /dev/disk"); out != "100663296\n"+kept {
		t.Errorf("afterwards the device says %q", out)
	}
	if p := waitForPod(t, c, ns, "writer", corev1.PodRunning); p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("the pod was restarted")
	}

	// The next pod reads it, and where its claim is read-only no more than that.
	deletePod(t, c, ns, "writer")
	reader := storagePod("reader", shell("main", "exec 2>&1; head -c 16 /dev/disk; blockdev --getsize64 /dev/disk; echo no > /dev/disk"))
	deviceIn(reader, "disk", "/dev/disk", &reader.Spec.Containers[0]).Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	createPod(t, c, ns, reader)
	waitForPod(t, c, ns, "reader", corev1.PodFailed)
	wantLog(t, c, ns, "reader", "main", kept+"100663296\nsh: can't create /dev/disk: Operation not permitted\n")
	deletePod(t, c, ns, "reader")

	// A privileged one has the host's devices, and its own in their place.
	boss := storagePod("boss", shell("main", "head -c 16 /dev/loop-control"))
	boss.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: new(true)}
	createPod(t, c, ns, deviceIn(boss, "disk", "/dev/loop-control", &boss.Spec.Containers[0]))
	waitForPod(t, c, ns, "boss", corev1.PodSucceeded)
	wantLog(t, c, ns, "boss", "main", kept)
	deletePod(t, c, ns, "boss")

	// Nobody can mount it.
	createPod(t, c, ns, edited(storagePod("mounts", shell("main", "true")), func(p *corev1.Pod) {
		withVolume(p, "disk", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "disk"}})
	}))
	eventually(t, "the pod is told why not", func() error {
		return wantEvent(t.Context(), c.Client, ns, "mounts", "FailedMount", "volume disk has volumeMode Block, but is specified in volumeMounts")
	})
	deletePod(t, c, ns, "mounts")

	if err := core.PersistentVolumeClaims(ns).Delete(t.Context(), "disk", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone(t, "the volume", func() error {
		_, err := core.PersistentVolumes().Get(t.Context(), v.Name, metav1.GetOptions{})
		return err
	})
	if left := loopsBehind(t, v.Spec.CSI.VolumeHandle); len(left) > 0 {
		t.Errorf("devices %v are left", left)
	}
	for _, pattern := range []string{"pods/*/volumeDevices", "plugins/kubernetes.io/csi/volumeDevices/*/*"} {
		if left, err := filepath.Glob(filepath.Join(c.DataDir(host), "kubelet", pattern)); err != nil || len(left) > 0 {
			t.Errorf("left is %v (%v)", left, err)
		}
	}
}

// TestLocalDevice has a device of the host as a volume.
func TestLocalDevice(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	core, host := c.Client.CoreV1(), c.Hosts[1]
	file := filepath.Join(t.TempDir(), "disk-"+ns)
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("no loop devices here: %v: %s", err, out)
	}
	t.Cleanup(func() { detachBehind(t, file) })
	device := strings.TrimSpace(string(out))
	v := csiVolume("device-"+ns, "", map[string]string{"of": ns})
	v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: device}}
	v.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
	v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host.Name}}},
	}}}}
	if _, err := core.PersistentVolumes().Create(t.Context(), v, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(t, core.PersistentVolumes().Delete, v.Name) })
	// A claim for a file system does not get it.
	for _, claim := range []*corev1.PersistentVolumeClaim{claimOf("folder", "", nil), blockClaim("disk", "", "1Mi")} {
		claim.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"of": ns}}
		claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("1Mi")
		if _, err := core.PersistentVolumeClaims(ns).Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	pod := storagePod("writer", shell("main", "printf '"+kept+"' | dd of=/dev/disk conv=fsync 2>/dev/null && blockdev --getsize64 /dev/disk"))
	createPod(t, c, ns, deviceIn(pod, "disk", "/dev/disk", &pod.Spec.Containers[0]))
	if p := waitForPod(t, c, ns, "writer", corev1.PodSucceeded); p.Spec.NodeName != host.Name {
		t.Errorf("it ran on %s", p.Spec.NodeName)
	}
	wantLog(t, c, ns, "writer", "main", "1048576\n")
	raw, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(raw), kept) {
		t.Errorf("on the device is %q (%v)", raw[:min(len(raw), len(kept))], err)
	}
	if folder, err := core.PersistentVolumeClaims(ns).Get(t.Context(), "folder", metav1.GetOptions{}); err != nil || folder.Status.Phase != corev1.ClaimPending {
		t.Errorf("the claim for a folder is %s (%v)", folder.Status.Phase, err)
	}
	deletePod(t, c, ns, "writer")
	gone(t, "the pod", func() error {
		_, err := core.Pods(ns).Get(t.Context(), "writer", metav1.GetOptions{})
		return err
	})
	if _, err := os.Stat(device); err != nil {
		t.Errorf("the host's device: %v", err)
	}
}
