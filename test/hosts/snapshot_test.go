package hosts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// snapshotsOf is a cluster with the example driver and its class of snapshots.
func snapshotsOf(t *testing.T, hosts int) (*cluster.Cluster, string) {
	t.Helper()
	c := own(t, hosts)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	withDriver(t, c)
	return c, namespace(t, c)
}

func takeSnapshot(t *testing.T, c *cluster.Cluster, ns, name, source string) {
	t.Helper()
	apply(t, c, ns, "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {name: "+name+"}\nspec: {source: {"+source+"}}\n")
}

// becomes waits until kubectl prints this of an object.
func becomes(t *testing.T, c *cluster.Cluster, ns, object, path, want string) {
	t.Helper()
	eventually(t, object+" "+path, func() error {
		out, err := c.Kubectl(t.Context(), "get", "-n", ns, object, "-o", "jsonpath="+path)
		if err == nil && out != want {
			err = fmt.Errorf("it shows %q, not %q", out, want)
		}
		return err
	})
}

// vanishes waits until kubectl finds no object.
func vanishes(t *testing.T, c *cluster.Cluster, ns, object string) {
	t.Helper()
	eventually(t, object+" goes", func() error {
		out, err := c.Kubectl(t.Context(), "get", "-n", ns, object, "-o", "name", "--ignore-not-found")
		if err == nil && out != "" {
			err = errors.New("it is there")
		}
		return err
	})
}

// begunWith is a claim whose volume begins with something.
func begunWith(kind, name, size string) *corev1.PersistentVolumeClaim {
	claim := claimOf("of-"+name, "csi-hostpath", nil)
	claim.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: name}
	if kind == "VolumeSnapshot" {
		claim.Spec.DataSource.APIGroup = new("snapshot.storage.k8s.io")
	}
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	return claim
}

func makeClaim(t *testing.T, c *cluster.Cluster, ns string, claim *corev1.PersistentVolumeClaim) {
	t.Helper()
	if _, err := c.Client.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// runs runs a script once in a pod with a claim at /v/data, and returns what it
// printed.
func runs(t *testing.T, c *cluster.Cluster, ns, name, claim, script string) string {
	t.Helper()
	pod := storagePod(name, shell("main", script))
	withVolume(pod, "data", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}})
	createPod(t, c, ns, pod)
	waitForPod(t, c, ns, name, corev1.PodSucceeded)
	out := logOf(t, c, ns, name, "main")
	deletePod(t, c, ns, name)
	return out
}

// driverHas says on which hosts the driver has a file below its state.
func driverHas(t *testing.T, c *cluster.Cluster, name string) (on []string) {
	t.Helper()
	for _, h := range c.Hosts {
		if _, err := os.Stat(filepath.Join(c.DataDir(h), "kubelet", "plugins", hostpathDriver, "state", name)); err == nil {
			on = append(on, h.Name)
		}
	}
	return on
}

// TestSnapshots takes a snapshot of a claim, changes the data, and finds the old
// data in a claim that is restored from it; a clone has the new. A snapshot goes
// with its VolumeSnapshot, or stays where its class says so, and is found again by
// its handle.
func TestSnapshots(t *testing.T) {
	c, ns := snapshotsOf(t, 2)
	makeClaim(t, c, ns, claimOf("data", "csi-hostpath", nil))
	runs(t, c, ns, "writes", "data", "echo old > /v/data/file; mkdir -m 700 /v/data/dir; ln -s ../file /v/data/dir/link; sync")
	takeSnapshot(t, c, ns, "monday", "persistentVolumeClaimName: data")
	becomes(t, c, ns, "vs/monday", "{.status.readyToUse} {.status.restoreSize} {.spec.volumeSnapshotClassName}", "true 1Gi csi-hostpath")
	content := kubectl(t, c, "get", "-n", ns, "vs/monday", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
	handle := kubectl(t, c, "get", "vsc/"+content, "-o", "jsonpath={.status.snapshotHandle}")
	at := driverHas(t, c, "snapshots/"+handle+".json")
	if len(at) != 1 {
		t.Fatalf("the driver has the snapshot %s on %v", handle, at)
	}
	for _, reason := range []string{"CreatingSnapshot", "SnapshotCreated", "SnapshotReady"} {
		eventually(t, "the event "+reason, func() error { return wantEvent(t.Context(), c.Client, ns, "monday", reason) })
	}
	runs(t, c, ns, "changes", "data", "echo new > /v/data/file; sync")

	// Its volume is made where the snapshot is, though no pod asks for it yet.
	makeClaim(t, c, ns, begunWith("VolumeSnapshot", "monday", "2Gi"))
	becomes(t, c, ns, "pvc/of-monday", "{.status.phase} {.status.capacity.storage}", "Bound 2Gi")
	if out := runs(t, c, ns, "restored", "of-monday", "cat /v/data/dir/link; stat -c %a /v/data/dir"); out != "old\n700\n" {
		t.Errorf("restored is %q", out)
	}
	makeClaim(t, c, ns, begunWith("PersistentVolumeClaim", "data", "1Gi"))
	if out := runs(t, c, ns, "cloned", "of-data", "cat /v/data/file; echo mine > /v/data/file"); out != "new\n" {
		t.Errorf("cloned is %q", out)
	}
	if out := runs(t, c, ns, "unchanged", "data", "cat /v/data/file"); out != "new\n" {
		t.Errorf("after that the source is %q", out)
	}

	// Too small, of a snapshot that there is not, or of a driver that cannot: the
	// claim waits, and says why.
	small := begunWith("VolumeSnapshot", "monday", "1Mi")
	small.Name = "small"
	makeClaim(t, c, ns, small)
	eventually(t, "a claim that is too small says so", func() error {
		return wantEvent(t.Context(), c.Client, ns, "small", "ProvisioningFailed", "requested volume size 1048576 is less than the size 1073741824 for the source snapshot monday")
	})
	makeClaim(t, c, ns, begunWith("VolumeSnapshot", "nobody", "1Gi"))
	eventually(t, "a claim of no snapshot says so", func() error {
		return wantEvent(t.Context(), c.Client, ns, "of-nobody", "ProvisioningFailed", `"nobody" not found`)
	})

	// What waits to be restored keeps its snapshot.
	kubectl(t, c, "delete", "-n", ns, "vs/monday", "--wait=false")
	eventually(t, "the snapshot is kept", func() error { return wantEvent(t.Context(), c.Client, ns, "monday", "SnapshotDeletePending") })
	kubectl(t, c, "delete", "-n", ns, "pvc/small", "pvc/of-nobody")
	vanishes(t, c, ns, "vs/monday")
	vanishes(t, c, ns, "vsc/"+content)
	if at := driverHas(t, c, "snapshots/"+handle); len(at) > 0 {
		t.Errorf("the driver still has the snapshot, on %v", at)
	}
	if out := runs(t, c, ns, "remains", "of-monday", "cat /v/data/file"); out != "old\n" {
		t.Errorf("after that the restored claim is %q", out)
	}

	// A class that retains: the content stays when its snapshot goes, and so does
	// the driver's snapshot when the content goes.
	apply(t, c, ns, `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: keeps}
driver: hostpath.csi.conclave.test
deletionPolicy: Retain
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: tuesday}
spec: {volumeSnapshotClassName: keeps, source: {persistentVolumeClaimName: data}}
`)
	becomes(t, c, ns, "vs/tuesday", "{.status.readyToUse}", "true")
	content = kubectl(t, c, "get", "-n", ns, "vs/tuesday", "-o", "jsonpath={.status.boundVolumeSnapshotContentName}")
	handle = kubectl(t, c, "get", "vsc/"+content, "-o", "jsonpath={.status.snapshotHandle}")
	kubectl(t, c, "delete", "-n", ns, "vs/tuesday")
	becomes(t, c, ns, "vsc/"+content, "{.status.readyToUse}", "true")
	kubectl(t, c, "delete", "vsc/"+content)
	if at := driverHas(t, c, "snapshots/"+handle+".json"); len(at) != 1 {
		t.Fatalf("of a snapshot that was to stay the driver has %v", at)
	}

	// What stayed is found again by its handle, on whichever node it is.
	apply(t, c, ns, fmt.Sprintf(`
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: found}
spec:
  driver: hostpath.csi.conclave.test
  deletionPolicy: Delete
  source: {snapshotHandle: %s}
  volumeSnapshotRef: {namespace: %s, name: again}
`, handle, ns))
	takeSnapshot(t, c, ns, "again", "volumeSnapshotContentName: found")
	becomes(t, c, ns, "vs/again", "{.status.readyToUse} {.status.restoreSize} {.status.boundVolumeSnapshotContentName}", "true 1Gi found")
	becomes(t, c, ns, "vsc/found", `{.metadata.labels.snapshot\.storage\.kubernetes\.io/managed-by}`, strings.Join(driverHas(t, c, "snapshots/"+handle+".json"), " "))
	makeClaim(t, c, ns, begunWith("VolumeSnapshot", "again", "1Gi"))
	if out := runs(t, c, ns, "found", "of-again", "cat /v/data/file"); out != "new\n" {
		t.Errorf("what was found again is %q", out)
	}
	if out := kubectl(t, c, "get", "-n", ns, "vs"); !strings.Contains(out, "READYTOUSE   SOURCEPVC   SOURCESNAPSHOTCONTENT   RESTORESIZE") || !strings.Contains(out, "found") {
		t.Errorf("kubectl shows\n%s", out)
	}
	kubectl(t, c, "delete", "-n", ns, "vs/again")
	vanishes(t, c, ns, "vsc/found")
	if at := driverHas(t, c, "snapshots/"+handle); len(at) > 0 {
		t.Errorf("the driver still has what was found, on %v", at)
	}
}

// TestSnapshotFails shows what keeps a snapshot from being taken, in its status
// and in an event, and that it is taken once nothing does; and a snapshot of a
// device.
func TestSnapshotFails(t *testing.T) {
	c, ns := snapshotsOf(t, 1)
	makeClaim(t, c, ns, claimOf("data", "csi-hostpath", nil))
	takeSnapshot(t, c, ns, "early", "persistentVolumeClaimName: data")
	becomes(t, c, ns, "vs/early", "{.status.readyToUse} {.status.error.message}", "false Failed to create snapshot content with error the PVC data is not yet bound to a PV, will not attempt to take a snapshot")
	runs(t, c, ns, "writes", "data", "echo kept > /v/data/file; sync")
	becomes(t, c, ns, "vs/early", "{.status.readyToUse}{.status.error}", "true")
	takeSnapshot(t, c, ns, "later", "persistentVolumeClaimName: data")
	becomes(t, c, ns, "vs/later", "{.status.readyToUse}", "true")

	// The driver's own words; and while it may still be taken, the claim stays.
	apply(t, c, ns, `
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotClass
metadata: {name: odd}
driver: hostpath.csi.conclave.test
deletionPolicy: Delete
parameters: {color: blue}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: blue}
spec: {volumeSnapshotClassName: odd, source: {persistentVolumeClaimName: data}}
`)
	const words = "rpc error: code = InvalidArgument desc = snapshots have no parameter color"
	eventually(t, "the status has the driver's words", func() error {
		out, err := c.Kubectl(t.Context(), "get", "-n", ns, "vs/blue", "-o", "jsonpath={.status.readyToUse} {.status.error.message}")
		if err == nil && (!strings.HasPrefix(out, "false ") || !strings.Contains(out, words)) {
			err = fmt.Errorf("it is %q", out)
		}
		return err
	})
	eventually(t, "an event has the driver's words", func() error {
		return wantEvent(t.Context(), c.Client, ns, "blue", "SnapshotContentCheckandUpdateFailed", words)
	})
	kubectl(t, c, "delete", "-n", ns, "pvc/data", "--wait=false")
	becomes(t, c, ns, "pvc/data", "{.metadata.finalizers}", `["snapshot.storage.kubernetes.io/pvc-as-source-protection"]`)
	kubectl(t, c, "delete", "-n", ns, "vs/blue")
	vanishes(t, c, ns, "pvc/data")

	// The snapshot outlives its claim.
	makeClaim(t, c, ns, begunWith("VolumeSnapshot", "later", "1Gi"))
	if out := runs(t, c, ns, "restored", "of-later", "cat /v/data/file"); out != "kept\n" {
		t.Errorf("restored is %q", out)
	}

	// What is no volume of a driver has none, and begins with none.
	makeClaim(t, c, ns, claimOf("folder", "local-path", nil))
	runs(t, c, ns, "local", "folder", "true")
	takeSnapshot(t, c, ns, "local", "persistentVolumeClaimName: folder")
	eventually(t, "a folder says that it has no snapshots", func() error {
		return wantEvent(t.Context(), c.Client, ns, "local", "SnapshotContentCreationFailed", "only volumes of CSI drivers can have snapshots")
	})

	t.Run("published definitions", func(t *testing.T) { showPublished(t, c, ns) })
	t.Run("device", func(t *testing.T) { showDeviceSnapshot(t, c, ns) })
}

// showPublished applies a definition such as drivers' manifests carry, and takes
// it away again: the snapshots that there are stay as they are.
func showPublished(t *testing.T, c *cluster.Cluster, ns string) {
	const definition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: volumesnapshots.snapshot.storage.k8s.io
  annotations: {api-approved.kubernetes.io: "https://github.com/kubernetes-csi/external-snapshotter/pull/814"}
spec:
  group: snapshot.storage.k8s.io
  scope: Namespaced
  names: {kind: VolumeSnapshot, listKind: VolumeSnapshotList, plural: volumesnapshots, singular: volumesnapshot, shortNames: [vs]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`
	apply(t, c, ns, definition)
	kubectl(t, c, "wait", "--for=condition=Established", "--timeout=30s", "crd/volumesnapshots.snapshot.storage.k8s.io")
	becomes(t, c, ns, "vs/early", "{.status.readyToUse}", "true")
	if out, err := c.Kubectl(t.Context(), "patch", "-n", ns, "vs/early", "--type=merge", "-p", `{"spec":{"source":{"persistentVolumeClaimName":"other"}}}`); err == nil || !strings.Contains(err.Error(), "persistentVolumeClaimName is immutable") {
		t.Errorf("its source was changed: %s (%v)", out, err)
	}
	kubectl(t, c, "delete", "crd/volumesnapshots.snapshot.storage.k8s.io")
	becomes(t, c, ns, "vs/early", "{.status.readyToUse}", "true")
	if out := kubectl(t, c, "explain", "volumesnapshot.spec.source"); !strings.Contains(out, "persistentVolumeClaimName\t<string>") {
		t.Errorf("kubectl explains\n%s", out)
	}
}

// showDeviceSnapshot restores what a pod wrote to a device that it still has.
func showDeviceSnapshot(t *testing.T, c *cluster.Cluster, ns string) {
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	t.Cleanup(func() { detachBehind(t, c.DataDir(c.Hosts[0])) })
	makeClaim(t, c, ns, blockClaim("disk", "csi-hostpath", "64Mi"))
	pod := storagePod("uses", shell("main", "printf '"+kept+"' > /dev/disk; echo written; sleep 1d"))
	createPod(t, c, ns, deviceIn(pod, "disk", "/dev/disk", &pod.Spec.Containers[0]))
	wantLog(t, c, ns, "uses", "main", "written\n")
	takeSnapshot(t, c, ns, "disk", "persistentVolumeClaimName: disk")
	becomes(t, c, ns, "vs/disk", "{.status.readyToUse}", "true")

	// It is no file system, unless somebody answers for that.
	makeClaim(t, c, ns, begunWith("VolumeSnapshot", "disk", "64Mi"))
	eventually(t, "the modes differ", func() error {
		return wantEvent(t.Context(), c.Client, ns, "of-disk", "ProvisioningFailed", "modifies the mode of the source volume")
	})
	kubectl(t, c, "delete", "-n", ns, "pvc/of-disk")
	claim := begunWith("VolumeSnapshot", "disk", "64Mi")
	claim.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
	makeClaim(t, c, ns, claim)
	reader := storagePod("reads", shell("main", fmt.Sprintf("head -c %d /dev/disk", len(kept))))
	createPod(t, c, ns, deviceIn(reader, "of-disk", "/dev/disk", &reader.Spec.Containers[0]))
	waitForPod(t, c, ns, "reads", corev1.PodSucceeded)
	wantLog(t, c, ns, "reads", "main", kept)
	deletePod(t, c, ns, "reads")
	deletePod(t, c, ns, "uses")
}
