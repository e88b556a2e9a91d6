package hosts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/lab"
	"conclave/test/cluster"
)

const hostpathDriver = "hostpath.csi.conclave.test"

// withDriver runs the example driver on every host.
func withDriver(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if err := c.Import(t.Context(), "csi-hostpath"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "apply", "-f", filepath.Join(c.Root, "examples", "csi-hostpath.yaml"))
	for _, h := range c.Hosts {
		eventually(t, "the driver registers with "+h.Name, func() error {
			n, err := c.Client.StorageV1().CSINodes().Get(t.Context(), h.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if len(n.Spec.Drivers) != 1 || n.Spec.Drivers[0].Name != hostpathDriver || n.Spec.Drivers[0].NodeID != h.Name || *n.Spec.Drivers[0].Allocatable.Count != 100 {
				return fmt.Errorf("it says %+v", n.Spec.Drivers)
			}
			if len(n.OwnerReferences) != 1 || n.OwnerReferences[0].Kind != "Node" {
				return fmt.Errorf("it belongs to %+v", n.OwnerReferences)
			}
			return nil
		})
	}
}

// gone waits until an object is not there.
func gone(t *testing.T, what string, get func() error) {
	t.Helper()
	eventually(t, what+" is gone", func() error {
		if err := get(); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%v)", err)
		}
		return nil
	})
}

// TestCSI takes a claim through its life on a driver that is deployed as any
// other: made, attached, mounted, its data there after the pod, after our
// process and after the driver, grown, and removed.
func TestCSI(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	withDriver(t, c)
	ns := namespace(t, c)
	core, storage := c.Client.CoreV1(), c.Client.StorageV1()
	claim := claimOf("data", "csi-hostpath", nil)
	if _, err := core.PersistentVolumeClaims(ns).Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	claiming := func(name, script string) *corev1.Pod {
		pod := storagePod(name, shell("main", script))
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: new(int64(4242))}
		withVolume(pod, "data", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}})
		return pod
	}
	createPod(t, c, ns, claiming("writer", "echo kept > /v/data/file; stat -c '%g %A' /v/data; sync; sleep 1d"))
	pod := waitForPod(t, c, ns, "writer", corev1.PodRunning)
	eventually(t, "the pod wrote", func() error {
		if out := logOf(t, c, ns, "writer", "main"); !strings.HasPrefix(out, "4242 drwxrws") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	bound, err := core.PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
	if err != nil || bound.Status.Phase != corev1.ClaimBound {
		t.Fatalf("the claim is %+v (%v)", bound.Status, err)
	}
	v, err := core.PersistentVolumes().Get(t.Context(), bound.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || v.Spec.CSI == nil || v.Spec.CSI.Driver != hostpathDriver || v.Spec.NodeAffinity == nil {
		t.Fatalf("the volume is %+v (%v)", v, err)
	}
	attachments := func() (mine []storagev1.VolumeAttachment) {
		all, err := storage.VolumeAttachments().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all.Items {
			if *a.Spec.Source.PersistentVolumeName == v.Name {
				mine = append(mine, a)
			}
		}
		return mine
	}
	if all := attachments(); len(all) != 1 || !all[0].Status.Attached || all[0].Spec.NodeName != pod.Spec.NodeName || all[0].Status.AttachmentMetadata["attached"] != "to "+pod.Spec.NodeName {
		t.Errorf("attachments: %+v", all)
	}
	eventually(t, "the node says that the volume is in use", func() error {
		node, err := core.Nodes().Get(t.Context(), pod.Spec.NodeName, metav1.GetOptions{})
		if err == nil && len(node.Status.VolumesInUse) != 1 {
			err = fmt.Errorf("it says %v", node.Status.VolumesInUse)
		}
		return err
	})

	// The process of the node goes and comes; the pod does not notice.
	host := c.Hosts[slices.IndexFunc(c.Hosts, func(h *lab.Host) bool { return h.Name == pod.Spec.NodeName })]
	if err := c.Kill(host.Name); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(host.Name, "up"); err != nil {
		t.Fatal(err)
	}

	// Growing, while it is mounted.
	eventually(t, "more is asked for", func() error { // of an API server that may have gone with the process
		_, err := core.PersistentVolumeClaims(ns).Patch(t.Context(), "data", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"3Gi"}}}}`), metav1.PatchOptions{})
		return err
	})
	eventually(t, "the claim has grown", func() error {
		got, err := core.PersistentVolumeClaims(ns).Get(t.Context(), "data", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if q := got.Status.Capacity[corev1.ResourceStorage]; q.String() != "3Gi" || len(got.Status.Conditions) > 0 {
			return fmt.Errorf("its status is %+v", got.Status)
		}
		return nil
	})
	eventually(t, "the pod is told", func() error { return wantEvent(t.Context(), c.Client, ns, "writer", "FileSystemResizeSuccessful") })

	// Another pod finds what the first wrote; then the volume is detached.
	deletePod(t, c, ns, "writer")
	createPod(t, c, ns, claiming("reader", "cat /v/data/file"))
	waitForPod(t, c, ns, "reader", corev1.PodSucceeded)
	if out := logOf(t, c, ns, "reader", "main"); out != "kept\n" {
		t.Errorf("the second pod reads %q", out)
	}
	deletePod(t, c, ns, "reader")
	eventually(t, "the volume is detached", func() error {
		if all := attachments(); len(all) > 0 {
			return fmt.Errorf("%+v", all)
		}
		return nil
	})
	state := filepath.Join(c.DataDir(host), "kubelet", "plugins", hostpathDriver, "state", v.Spec.CSI.VolumeHandle)
	if raw, err := os.ReadFile(filepath.Join(state, "file")); err != nil || string(raw) != "kept\n" {
		t.Errorf("on the host there is %q (%v)", raw, err)
	}

	// A volume of the pod's own comes and goes with it.
	own := storagePod("inline", shell("main", "cat /v/mine/about"))
	withVolume(own, "mine", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: hostpathDriver, VolumeAttributes: map[string]string{"greeting": "hello"}}})
	createPod(t, c, ns, own)
	waitForPod(t, c, ns, "inline", corev1.PodSucceeded)
	if out := logOf(t, c, ns, "inline", "main"); out != ns+"/inline hello\n" {
		t.Errorf("the driver was told %q", out)
	}
	deletePod(t, c, ns, "inline")

	// Without its claim the volume goes, and the data with it.
	if err := core.PersistentVolumeClaims(ns).Delete(t.Context(), "data", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone(t, "the volume", func() error {
		_, err := core.PersistentVolumes().Get(t.Context(), v.Name, metav1.GetOptions{})
		return err
	})
	if _, err := os.Stat(state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the data is still there (%v)", err)
	}
	for _, h := range c.Hosts {
		eventually(t, "nothing is left on "+h.Name, func() error { // a pod is gone before its last folder is
			left, err := filepath.Glob(filepath.Join(c.DataDir(h), "kubelet", "p*", "*", "volumes", "*", "*"))
			if err == nil && len(left) > 0 {
				err = fmt.Errorf("there is %v", left)
			}
			return err
		})
	}
}
