package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/csi"
)

// fakeDriver answers controller calls and remembers them.
type fakeDriver struct {
	mu     sync.Mutex
	calls  []string
	refuse map[string]*csi.Error // by method
	also   []uint64              // further capabilities of the controller
	ready  bool                  // that snapshots are
	listed string                // the snapshot that a list has, on n2 alone
	asked  []byte                // the last request that was no question
}

func (d *fakeDriver) set(method string, err *csi.Error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = map[string]*csi.Error{method: err}
	if err == nil {
		d.refuse = nil
	}
}

// made are the calls since the last time, but those that only ask.
func (d *fakeDriver) made() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := slices.Compact(d.calls)
	d.calls = nil
	return strings.Join(calls, ", ")
}

func text(n protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), s)
}

func number(n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
}

func (d *fakeDriver) call(_ context.Context, node, _, driver, method string, request []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	method = method[strings.LastIndex(method, "/")+1:]
	if err := d.refuse[method]; err != nil {
		return nil, err
	}
	capability := func(kinds ...uint64) (all []byte) {
		for _, k := range kinds {
			all = append(all, text(1, string(text(1, string(number(1, k)))))...)
		}
		return all
	}
	switch method {
	case "GetPluginCapabilities":
		return capability(1, 2), nil
	case "ControllerGetCapabilities":
		return capability(append([]uint64{1, 2, 9}, d.also...)...), nil
	case "ListSnapshots":
		if d.listed == "" || node != "n2" {
			return nil, nil
		}
		return text(1, string(text(1, string(slices.Concat(number(1, 1<<30), text(2, d.listed), number(5, 1)))))), nil
	}
	d.asked = request
	d.calls = append(d.calls, fmt.Sprintf("%s@%s", method, node))
	switch method {
	case "CreateVolume":
		where := text(5, string(text(1, string(append(text(1, "zone"), text(2, "of-"+node)...)))))
		return text(1, string(slices.Concat(number(1, 2<<30), text(2, "vol"), where))), nil
	case "ControllerPublishVolume":
		return text(1, string(append(text(1, "disk"), text(2, "sdb")...))), nil
	case "CreateSnapshot":
		ready := uint64(0)
		if d.ready {
			ready = 1
		}
		return text(1, string(slices.Concat(number(1, 2<<30), text(2, "snap"), text(4, string(number(1, 1700000000))), number(5, ready)))), nil
	case "ControllerExpandVolume":
		return slices.Concat(number(1, 5<<30), number(2, 1)), nil
	}
	return nil, nil
}

// driverWorld has a driver on two nodes, a class of it, and a claim.
func driverWorld(w *world) {
	for _, n := range []string{"n1", "n2"} {
		create(w, nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{"zone": "of-" + n}}})
		create(w, csiNodes, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: n}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "d.test", NodeID: "id-" + n, TopologyKeys: []string{"zone"}}}}})
	}
	create(w, csiDrivers, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "d.test", Annotations: map[string]string{api.AnnotationControllerCalls: "true"}}})
	create(w, storageClasses, storageClass("csi", "d.test", true))
	create(w, claims, volumeClaim("data", "csi"))
	w.settle(0)
}

func user(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{
			NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}},
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}},
		},
	}
}

func (w *world) attached() (shown []string) {
	w.settle(0)
	for _, a := range all[*storagev1.VolumeAttachment](w, attachments, "") {
		s := a.Spec.NodeName
		switch {
		case a.DeletionTimestamp != nil:
			s += " ending"
		case a.Status.Attached:
			s += " " + a.Status.AttachmentMetadata["disk"]
		case a.Status.AttachError != nil:
			s += " " + a.Status.AttachError.Message
		}
		shown = append(shown, s)
	}
	return shown
}

// A claim of a driver without sidecars is made, attached, grown, detached and
// removed, each once, and each on the node that has the volume.
func TestDriverWithoutSidecars(t *testing.T) {
	inWorld(t, func(w *world) {
		driverWorld(w)
		w.same("calls before a node is selected", w.driver.made(), "")
		w.driver.set("CreateVolume", &csi.Error{Code: csi.ResourceExhausted, Message: "full"})
		w.selectNode("data", "n1")
		w.sees("data", `ProvisioningFailed: failed to provision volume with StorageClass "csi": rpc error: code = ResourceExhausted desc = full`)
		if c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data"); c.Annotations[api.AnnotationSelectedNode] != "" {
			t.Error("the scheduler is not asked for another node")
		}
		w.driver.set("", nil)
		w.selectNode("data", "n2")
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "CreateVolume@n2")
		c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data")
		name := "pvc-" + string(c.UID)
		w.same("claim", w.binding("data"), "Bound "+name)
		v := read[*corev1.PersistentVolume](w, volumes, "", name)
		if v.Spec.CSI.VolumeHandle != "vol" || v.Spec.CSI.FSType != "ext4" || v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] != "of-n2" || !slices.Contains(v.Finalizers, finalizerProvisioner) {
			t.Errorf("the volume is %+v", v)
		}

		w.driver.set("ControllerPublishVolume", &csi.Error{Code: 13, Message: "no"})
		create(w, pods, user("a", "n2"))
		w.same("attached", strings.Join(w.attached(), ", "), "n2 rpc error: code = Internal desc = no")
		w.driver.set("", nil)
		w.settle(time.Minute)
		w.same("attached", strings.Join(w.attached(), ", "), "n2 sdb")
		w.same("calls", w.driver.made(), "ControllerPublishVolume@n2")

		c = edit(read[*corev1.PersistentVolumeClaim](w, claims, "default", "data"))
		c.Spec.Resources.Requests["storage"] = resource.MustParse("5Gi")
		if _, err := w.client.Update(w.ctx, claims, "default", c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle(time.Minute)
		w.same("calls", w.driver.made(), "ControllerExpandVolume@n2")
		c = read[*corev1.PersistentVolumeClaim](w, claims, "default", "data")
		if q := c.Status.Capacity["storage"]; q.String() != "2Gi" || len(c.Status.Conditions) != 1 || c.Status.Conditions[0].Type != corev1.PersistentVolumeClaimFileSystemResizePending {
			t.Errorf("the claim's status is %+v before its node has done its part", c.Status)
		}
		if q := read[*corev1.PersistentVolume](w, volumes, "", name).Spec.Capacity["storage"]; q.String() != "5Gi" {
			t.Errorf("the volume has %s", q.String())
		}

		// It stays attached while the node says that it is mounted.
		n := edit(read[*corev1.Node](w, nodes, "", "n2"))
		n.Status.VolumesInUse = []corev1.UniqueVolumeName{"kubernetes.io/csi/d.test^vol"}
		if _, err := w.client.Update(w.ctx, nodes, "", n, metav1.UpdateOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		if err := w.client.Delete(w.ctx, pods, "default", "a", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
			t.Fatal(err)
		}
		w.remove(claims, "default", "data", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		w.same("attached", strings.Join(w.attached(), ", "), "n2 sdb")
		w.same("calls while it is mounted", w.driver.made(), "")
		n = edit(read[*corev1.Node](w, nodes, "", "n2"))
		n.Status.VolumesInUse = nil
		if _, err := w.client.Update(w.ctx, nodes, "", n, metav1.UpdateOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		w.settle(time.Minute)
		w.same("attached", strings.Join(w.attached(), ", "), "")
		w.same("calls", w.driver.made(), "ControllerUnpublishVolume@n2, DeleteVolume@n2")
		w.same("volumes", w.phases(), "")
	})
}

// A volume for one node is not attached to a second one, but when the first is
// dead.
func TestAttachToOneNode(t *testing.T) {
	inWorld(t, func(w *world) {
		driverWorld(w)
		create(w, volumes, volume("static", "csi", "9Gi", func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d.test", VolumeHandle: "h"}}
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data"}
		}))
		w.same("claim", w.binding("data"), "Bound static")
		create(w, pods, user("a", "n1"))
		w.same("attached", strings.Join(w.attached(), ", "), "n1 sdb")
		create(w, pods, user("b", "n2"))
		w.same("attached", strings.Join(w.attached(), ", "), "n1 sdb")
		w.sees("b", `FailedAttachVolume: Multi-Attach error for volume "static"`)
		n := edit(read[*corev1.Node](w, nodes, "", "n1"))
		n.Status.VolumesInUse = []corev1.UniqueVolumeName{"kubernetes.io/csi/d.test^h"}
		if _, err := w.client.Update(w.ctx, nodes, "", n, metav1.UpdateOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		w.liveness.set("n1", Dead)
		w.settle(time.Minute) // its pod is replaced
		w.same("attached", strings.Join(w.attached(), ", "), "n2 sdb")
	})
}

// What a driver with sidecars wants made is left to them.
func TestDriverWithSidecars(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, storageClasses, storageClass("csi", "d.test", false))
		create(w, csiDrivers, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "d.test"}})
		create(w, claims, volumeClaim("data", "csi"))
		w.settle(time.Minute)
		if c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data"); c.Annotations[api.AnnotationProvisioner] != "d.test" || c.Status.Phase != corev1.ClaimPending {
			t.Errorf("the claim is %+v, %v", c.Status, c.Annotations)
		}
		w.same("calls", w.driver.made(), "")
	})
}
