package hosts

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestHostPathTypes takes each type of a hostPath at its word.
func TestHostPathTypes(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	host := c.Hosts[0]
	root := filepath.Join(c.DataDir(host), "..", "paths-of-"+ns)
	if err := os.MkdirAll(filepath.Join(root, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("of the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(root, "listens"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	if err := unix.Mknod(filepath.Join(root, "disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 250))); err != nil {
		t.Fatal(err)
	}
	pod := func(name, path string, kind corev1.HostPathType, script string) *corev1.Pod {
		p := storagePod(name, shell("main", script))
		p.Spec.NodeName = host.Name
		withVolume(p, "host", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}})
		createPod(t, c, ns, p)
		return p
	}
	good := map[string]*corev1.Pod{
		"d\n":                pod("made-dir", filepath.Join(root, "new", "dir"), corev1.HostPathDirectoryOrCreate, "test -d /v/host && echo d"),
		"f\n":                pod("made-file", filepath.Join(root, "new-file"), corev1.HostPathFileOrCreate, "test -f /v/host && echo f"),
		"of the host\n":      pod("file", filepath.Join(root, "file"), corev1.HostPathFile, "cat /v/host"),
		"s\n":                pod("socket", filepath.Join(root, "listens"), corev1.HostPathSocket, "test -S /v/host && echo s"),
		"b\n":                pod("disk", filepath.Join(root, "disk"), corev1.HostPathBlockDev, "test -b /v/host && echo b"),
		"character device\n": pod("device", "/dev/null", corev1.HostPathCharDev, "test -c /v/host && echo character device"),
	}
	for path, kind := range map[string]corev1.HostPathType{
		"dir":     corev1.HostPathFile,
		"file":    corev1.HostPathDirectory,
		"missing": corev1.HostPathDirectory,
		"socket":  corev1.HostPathSocket,
		"block":   corev1.HostPathBlockDev,
	} {
		pod("bad-"+path, filepath.Join(root, path), kind, "true")
	}
	for want, p := range good {
		waitForPod(t, c, ns, p.Name, corev1.PodSucceeded)
		if out := logOf(t, c, ns, p.Name, "main"); !strings.HasSuffix(out, want) {
			t.Errorf("%s: %q", p.Name, out)
		}
	}
	for path, what := range map[string]string{
		"dir": "is not a file", "file": "is not a directory", "missing": "is not a directory", "socket": "is not a socket file", "block": "is not a block device",
	} {
		eventually(t, "a "+path+" is refused", func() error {
			return wantEvent(t.Context(), c.Client, ns, "bad-"+path, "FailedMount", "hostPath type check failed: "+filepath.Join(root, path)+" "+what)
		})
	}
}

// TestMountPropagation: what one container mounts in a volume, another sees if
// both ask for it, and a third does not.
func TestMountPropagation(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	const shared = "/var/lib/kubelet/propagation" // which is on a shared mount
	pod := func(name, script string, mode corev1.MountPropagationMode, privileged bool) {
		p := storagePod(name, shell("main", script))
		p.Spec.NodeName = c.Hosts[1].Name
		withVolume(p, "shared", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: shared, Type: ptr.To(corev1.HostPathDirectoryOrCreate)}})
		p.Spec.Containers[0].VolumeMounts[0].MountPropagation = &mode
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &privileged}
		createPod(t, c, ns, p)
		waitForPod(t, c, ns, name, corev1.PodRunning)
	}
	look := "while sleep 0.1; do cat /v/shared/sub/file 2>/dev/null; done"
	pod("sees", look, corev1.MountPropagationHostToContainer, false)
	pod("blind", look, corev1.MountPropagationNone, false)
	pod("mounts", "mkdir -p /v/shared/sub && mount -t tmpfs of-the-test /v/shared/sub && echo here > /v/shared/sub/file && trap 'umount /v/shared/sub; exit' TERM && while sleep 0.1; do :; done",
		corev1.MountPropagationBidirectional, true)
	eventually(t, "the mount is seen", func() error {
		if out := logOf(t, c, ns, "sees", "main"); !strings.HasPrefix(out, "here\n") {
			return fmt.Errorf("it prints %q", out)
		}
		return nil
	})
	if out := logOf(t, c, ns, "blind", "main"); out != "" {
		t.Errorf("a container without propagation sees %q", out)
	}
	if out, err := c.On(t.Context(), c.Hosts[1].Name, "cat", "/proc/mounts"); err != nil || !strings.Contains(out, "of-the-test") {
		t.Errorf("the host does not see it (%v)", err)
	}
	if err := c.Client.CoreV1().Pods(ns).Delete(t.Context(), "mounts", metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(10))}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is unmounted everywhere", func() error {
		out, err := c.On(t.Context(), c.Hosts[1].Name, "cat", "/proc/mounts")
		if err == nil && strings.Contains(out, "of-the-test") {
			err = fmt.Errorf("the host has it")
		}
		return err
	})
}

// TestNFSWithoutClient: a kernel that has no client for NFS is named as the
// reason, not the server.
func TestNFSWithoutClient(t *testing.T) {
	raw, err := os.ReadFile("/proc/filesystems")
	if err != nil || strings.Contains(string(raw), "\tnfs") {
		t.Skip("this kernel mounts NFS")
	}
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	v := csiVolume("nfs-"+ns, "", nil)
	// Somebody answers at the port: the kernel is what is missing.
	v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: c.Hosts[0].Address.String(), Path: "/export"}}
	v.Spec.MountOptions = []string{"port=6443", "hard"}
	v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: ns, Name: "export"}
	if _, err := c.Client.CoreV1().PersistentVolumes().Create(t.Context(), v, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(t, c.Client.CoreV1().PersistentVolumes().Delete, v.Name) })
	if _, err := c.Client.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), claimOf("export", "", nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := storagePod("reader", shell("main", "true"))
	withVolume(pod, "data", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "export"}})
	createPod(t, c, ns, pod)
	eventually(t, "the pod says why", func() error {
		return wantEvent(t.Context(), c.Client, ns, "reader", "FailedMount", "this host's kernel has no NFS client")
	})
	withVolume(pod, "inline", corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: "127.0.0.1", Path: "/x"}})
	pod.Name = "away"
	createPod(t, c, ns, pod)
	eventually(t, "a server that is away is named", func() error {
		return wantEvent(t.Context(), c.Client, ns, "away", "FailedMount", "the NFS server 127.0.0.1 does not answer")
	})
}
