package controller

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/csi"
)

func (d *fakeDriver) become(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// snapshotWorld has a claim that is bound to a volume of a driver with snapshots,
// on n2.
func snapshotWorld(w *world) {
	w.driver.become(func() { w.driver.also, w.driver.ready = []uint64{5, 6, 7}, true })
	driverWorld(w)
	w.selectNode("data", "n2")
	w.settle(time.Minute)
	w.same("calls", w.driver.made(), "CreateVolume@n2")
}

func snapshotClass(name string, isDefault bool, policy snapshotv1.DeletionPolicy) *snapshotv1.VolumeSnapshotClass {
	c := &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}}, Driver: "d.test", DeletionPolicy: policy}
	if isDefault {
		c.Annotations[defaultSnapshotClass] = "true"
	}
	return c
}

func snapshotOf(name, claim string) *snapshotv1.VolumeSnapshot {
	return &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim}}}
}

// snapshot shows a snapshot's status in a line.
func (w *world) snapshot(name string) string {
	w.settle(0)
	s := read[*snapshotv1.VolumeSnapshot](w, snapshots, "default", name)
	if s.Status == nil {
		return "-"
	}
	out := []string{fmt.Sprint(*s.Status.ReadyToUse)}
	if s.Status.RestoreSize != nil {
		out = append(out, s.Status.RestoreSize.String())
	}
	if s.Status.Error != nil {
		out = append(out, *s.Status.Error.Message)
	}
	return strings.Join(out, " ")
}

func (w *world) contents() []*snapshotv1.VolumeSnapshotContent {
	w.settle(0)
	return all[*snapshotv1.VolumeSnapshotContent](w, snapshotContents, "")
}

// holds says whether the claim has a finalizer.
func (w *world) holds(claim, finalizer string) bool {
	return slices.Contains(read[*corev1.PersistentVolumeClaim](w, claims, "default", claim).Finalizers, finalizer)
}

// A snapshot is taken with its class's parameters and secret, looked at until it
// is ready, keeps its claim until then, and is removed before its objects are.
func TestSnapshotTaken(t *testing.T) {
	inWorld(t, func(w *world) {
		snapshotWorld(w)
		w.driver.become(func() { w.driver.ready = false })
		create(w, secrets, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "key-of-a"}, Data: map[string][]byte{"k": []byte("hush")}})
		class := snapshotClass("fast", true, snapshotv1.VolumeSnapshotContentDelete)
		class.Parameters = map[string]string{
			"speed": "high", "csi.storage.k8s.io/snapshotter-secret-name": "key-of-${volumesnapshot.name}", "csi.storage.k8s.io/snapshotter-secret-namespace": "${volumesnapshot.namespace}",
		}
		create(w, snapshotClasses, class)
		create(w, snapshots, snapshotOf("a", "data"))
		w.same("status", w.snapshot("a"), "false 2Gi")
		w.same("calls", w.driver.made(), "CreateSnapshot@n2")
		for _, want := range []string{"speed", "hush"} {
			if !bytes.Contains(w.driver.asked, []byte(want)) {
				t.Errorf("the driver is not told %q", want)
			}
		}
		if bytes.Contains(w.driver.asked, []byte("csi.storage.k8s.io")) {
			t.Error("the driver is told what is not for it")
		}
		if !w.holds("data", finalizerSnapshotClaim) {
			t.Error("the claim may go while a snapshot of it is not ready")
		}
		w.driver.become(func() { w.driver.ready = true })
		w.settle(2 * time.Minute)
		w.same("status", w.snapshot("a"), "true 2Gi")
		if w.holds("data", finalizerSnapshotClaim) {
			t.Error("the claim is kept though its snapshot is ready")
		}
		w.driver.made()
		w.settle(time.Hour)
		w.same("calls of a ready snapshot", w.driver.made(), "")
		content := w.contents()[0]
		if *content.Spec.VolumeSnapshotClassName != "fast" || *content.Spec.Source.VolumeHandle != "vol" || content.Labels[labelSnapshotNode] != "n2" || content.Annotations[snapshotBeingCreated] != "" {
			t.Errorf("the content is %+v", content)
		}
		w.driver.set("DeleteSnapshot", &csi.Error{Code: 13, Message: "busy"})
		w.remove(snapshots, "default", "a", metav1.DeletePropagationBackground)
		w.settle(0)
		if message := w.contents()[0].Status.Error; message == nil || !strings.Contains(*message.Message, "desc = busy") {
			t.Errorf("the content does not say why it stays: %v", message)
		}
		read[*snapshotv1.VolumeSnapshot](w, snapshots, "default", "a") // is there
		w.driver.set("", nil)
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "DeleteSnapshot@n2")
		if n := len(w.contents()) + len(all[*snapshotv1.VolumeSnapshot](w, snapshots, "default")); n > 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// A driver that fails is told of once for each thing that it says, and asked again;
// what may have come of a call that broke off is removed all the same.
func TestSnapshotFails(t *testing.T) {
	inWorld(t, func(w *world) {
		snapshotWorld(w)
		create(w, snapshotClasses, snapshotClass("k", true, snapshotv1.VolumeSnapshotContentDelete))
		w.driver.set("CreateSnapshot", &csi.Error{Code: csi.Unavailable, Message: "gone away"})
		create(w, snapshots, snapshotOf("a", "data"))
		const why = `Failed to check and update snapshot content: failed to take snapshot of the volume vol: "rpc error: code = Unavailable desc = gone away"`
		w.settle(time.Minute)
		w.same("status", w.snapshot("a"), "false "+why)
		w.sees("a", "SnapshotContentCheckandUpdateFailed: "+why)
		before := w.contents()[0].ResourceVersion
		w.settle(time.Hour)
		if w.contents()[0].ResourceVersion != before {
			t.Error("the same failure is written again")
		}
		w.driver.set("", nil)
		w.remove(snapshots, "default", "a", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "CreateSnapshot@n2, DeleteSnapshot@n2")

		w.driver.set("CreateSnapshot", &csi.Error{Code: 3, Message: "never"})
		create(w, snapshots, snapshotOf("b", "data"))
		w.settle(time.Minute)
		w.remove(snapshots, "default", "b", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "")
		if n := len(w.contents()); n > 0 {
			t.Errorf("%d contents of a snapshot that was never taken are left", n)
		}
	})
}

// What a snapshot needs may come later, and until then its status says what that
// is.
func TestSnapshotWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		snapshotWorld(w)
		create(w, snapshots, snapshotOf("a", "data"))
		w.same("without a class", w.snapshot("a"), "false Failed to set default snapshot class with error cannot find default snapshot class")
		create(w, snapshotClasses, snapshotClass("k", true, snapshotv1.VolumeSnapshotContentRetain))
		w.same("with a class", w.snapshot("a"), "true 2Gi")
		create(w, snapshotClasses, snapshotClass("l", true, snapshotv1.VolumeSnapshotContentRetain))
		w.settle(0)
		create(w, snapshots, snapshotOf("b", "data"))
		w.same("with two", w.snapshot("b"), "false Failed to set default snapshot class with error 2 default snapshot classes were found")
		create(w, snapshots, snapshotOf("c", "nobody"))
		w.same("of no claim", w.snapshot("c"), `false Failed to create snapshot content with error persistentvolumeclaim "nobody" not found`)
		w.driver.become(func() { w.driver.also = nil })
		d := snapshotOf("d", "data")
		d.Spec.VolumeSnapshotClassName = new("k")
		create(w, snapshots, d)
		w.same("of a driver without", w.snapshot("d"), "false Failed to check and update snapshot content: CSI driver d.test does not support ControllerCreateSnapshot")

		// Retained is what the driver has, with its content.
		w.driver.made()
		w.remove(snapshots, "default", "a", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "")
		contents := w.contents()
		kept := contents[slices.IndexFunc(contents, func(k *snapshotv1.VolumeSnapshotContent) bool { return k.Spec.VolumeSnapshotRef.Name == "a" })]
		if kept.DeletionTimestamp != nil {
			t.Errorf("kept is %+v", kept)
		}
		w.remove(snapshotContents, "", kept.Name, metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "")
		if slices.ContainsFunc(w.contents(), func(k *snapshotv1.VolumeSnapshotContent) bool { return k.Name == kept.Name }) {
			t.Error("the content does not go")
		}
	})
}

// A content that was given is bound to the snapshot that it names and to no other,
// and its driver's snapshot is found on the node that has it.
func TestSnapshotGiven(t *testing.T) {
	inWorld(t, func(w *world) {
		snapshotWorld(w)
		given := func(name string) *snapshotv1.VolumeSnapshot {
			return &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{VolumeSnapshotContentName: new("k")}}}
		}
		create(w, snapshots, given("a"))
		w.same("without its content", w.snapshot("a"), "false VolumeSnapshotContent k is missing")
		create(w, snapshotContents, &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "k"}, Spec: snapshotv1.VolumeSnapshotContentSpec{
			Driver: "d.test", DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Source: snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: new("old")},
			VolumeSnapshotRef: corev1.ObjectReference{Namespace: "default", Name: "a"},
		}})
		w.same("not found", w.snapshot("a"), "false Failed to check and update snapshot content: failed to list snapshot for content k: can not find snapshot for snapshotID old")
		w.driver.become(func() { w.driver.listed = "old" })
		w.settle(time.Minute)
		w.same("found", w.snapshot("a"), "true 1Gi")
		if k := w.contents()[0]; k.Labels[labelSnapshotNode] != "n2" || k.Spec.VolumeSnapshotRef.UID == "" {
			t.Errorf("the content is %+v", k)
		}
		create(w, snapshots, given("b"))
		w.same("of another", w.snapshot("b"), "false VolumeSnapshotContent [k] is bound to a different snapshot")
		w.remove(snapshots, "default", "b", metav1.DeletePropagationBackground)
		w.same("after the other is gone", w.snapshot("a"), "true 1Gi")
		w.driver.made()
		w.remove(snapshots, "default", "a", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "DeleteSnapshot@n2")
	})
}

// A volume is made of a snapshot, or of another volume, on the node that has it,
// though the class waits for a pod; and whatever it is made of stays until then.
func TestVolumeBeginsWith(t *testing.T) {
	inWorld(t, func(w *world) {
		snapshotWorld(w)
		create(w, snapshotClasses, snapshotClass("k", true, snapshotv1.VolumeSnapshotContentDelete))
		create(w, snapshots, snapshotOf("a", "data"))
		w.settle(time.Minute)
		w.driver.made()
		const failed = `ProvisioningFailed: failed to provision volume with StorageClass "csi": `
		claim := func(name, kind, from, size string) *corev1.PersistentVolumeClaim {
			c := volumeClaim(name, "csi")
			c.Spec.Resources.Requests["storage"] = resource.MustParse(size)
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: kind, Name: from}
			if kind != "PersistentVolumeClaim" {
				c.Spec.DataSource.APIGroup = new(snapshotv1.GroupName)
			}
			return c
		}
		w.driver.set("CreateVolume", &csi.Error{Code: 13, Message: "later"})
		create(w, claims, claim("restored", "VolumeSnapshot", "a", "2Gi"))
		create(w, claims, claim("cloned", "PersistentVolumeClaim", "data", "2Gi"))
		w.settle(time.Minute)
		w.sees("restored", "ProvisioningFailed: failed to provision volume")
		if !w.holds("data", finalizerCloned) {
			t.Error("the claim may go while it is cloned")
		}
		w.remove(snapshots, "default", "a", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.sees("a", "SnapshotDeletePending: Snapshot is being used to restore a PVC")
		w.driver.set("", nil)
		w.settle(time.Minute)
		w.same("a clone", strings.Fields(w.binding("cloned"))[0], "Bound")
		if w.holds("data", finalizerCloned) {
			t.Error("the claim is kept though its clone is made")
		}
		// Who restores from a snapshot that is being deleted comes too late.
		w.same("too late", strings.Fields(w.binding("restored"))[0], "Pending")
		w.sees("restored", failed+"snapshot a is currently being deleted")
		w.remove(claims, "default", "restored", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		if len(w.contents()) > 0 {
			t.Error("the snapshot does not go")
		}

		create(w, snapshots, snapshotOf("b", "data"))
		w.settle(time.Minute)
		w.driver.made()
		create(w, claims, claim("small", "VolumeSnapshot", "b", "1Gi"))
		w.sees("small", failed+"requested volume size 1073741824 is less than the size 2147483648 for the source snapshot b")
		create(w, claims, claim("again", "VolumeSnapshot", "b", "2Gi"))
		w.settle(time.Minute)
		w.same("restored", strings.Fields(w.binding("again"))[0], "Bound")
		w.same("calls", w.driver.made(), "CreateVolume@n2")
		if !bytes.Contains(w.driver.asked, []byte("snap")) {
			t.Error("the driver is not told of what")
		}
		if at := read[*corev1.PersistentVolumeClaim](w, claims, "default", "again").Annotations[api.AnnotationSelectedNode]; at != "n2" {
			t.Errorf("it is made on %q", at)
		}
		w.driver.become(func() { w.driver.also = nil })
		create(w, claims, claim("cannot", "PersistentVolumeClaim", "data", "2Gi"))
		w.sees("cannot", failed+"CSI driver d.test does not support clone volume")
	})
}
