package hosts

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"conclave/test/conformance"
)

// typed is the part of a typed client that the life of an object needs.
type typed[T metav1.Object, L runtime.Object] interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
	Get(context.Context, string, metav1.GetOptions) (T, error)
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
	Patch(context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (T, error)
	Delete(context.Context, string, metav1.DeleteOptions) error
	DeleteCollection(context.Context, metav1.DeleteOptions, metav1.ListOptions) error
}

// liveThrough takes objects of one kind through all that can be done with them.
func liveThrough[T metav1.Object, L runtime.Object](t *testing.T, api typed[T, L], of string, count func(L) []string, made func(name string) T) {
	t.Helper()
	ctx, selected := t.Context(), metav1.ListOptions{LabelSelector: "of=" + of}
	seen, err := api.Watch(ctx, selected)
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Stop()
	create := func(name string) T {
		t.Helper()
		o := made(name)
		o.SetLabels(map[string]string{"of": of})
		o, err := api.Create(ctx, o, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	name := of + "-first"
	o := create(name)
	if got, err := api.Get(ctx, name, metav1.GetOptions{}); err != nil || got.GetUID() != o.GetUID() || !equality.Semantic.DeepEqual(got, o) {
		t.Fatalf("it is %+v (%v)", got, err)
	}
	if o, err = api.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil || o.GetLabels()["patched"] != "yes" {
		t.Fatalf("patched: %+v (%v)", o, err)
	}
	o.SetAnnotations(map[string]string{"updated": "yes"})
	if o, err = api.Update(ctx, o, metav1.UpdateOptions{}); err != nil || o.GetAnnotations()["updated"] != "yes" {
		t.Fatalf("updated: %+v (%v)", o, err)
	}
	if all, err := api.List(ctx, selected); err != nil || len(count(all)) != 1 {
		t.Fatalf("listed: %+v (%v)", all, err)
	}
	if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := api.Get(ctx, name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
	for _, want := range []watch.EventType{watch.Added, watch.Modified, watch.Modified, watch.Deleted} {
		if got, ok := <-seen.ResultChan(); !ok || got.Type != want || got.Object.(metav1.Object).GetName() != name {
			t.Fatalf("the watch saw %+v, want %s", got, want)
		}
	}
	create(of + "-second")
	create(of + "-third")
	if err := api.DeleteCollection(ctx, metav1.DeleteOptions{}, selected); err != nil {
		t.Fatal(err)
	}
	if all, err := api.List(ctx, selected); err != nil || len(count(all)) != 0 {
		t.Errorf("left are %+v (%v)", all, err)
	}
}

// TestCSIKinds takes the objects by which CSI drivers and clusters know each
// other through their lives.
func TestCSIKinds(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	api := c.Client.StorageV1()
	run := func(name, codename string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			conformance.Shows(t, codename)
			f(t)
		})
	}
	run("drivers", "[sig-storage] CSIInlineVolumes should run through the lifecycle of a CSIDriver [Conformance]", func(t *testing.T) {
		liveThrough(t, api.CSIDrivers(), ns, func(l *storagev1.CSIDriverList) []string { return make([]string, len(l.Items)) }, func(name string) *storagev1.CSIDriver {
			return &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSIDriverSpec{VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral}}}
		})
	})
	run("nodes", "[sig-storage] CSINodes CSI Conformance should run through the lifecycle of a csinode [Conformance]", func(t *testing.T) {
		liveThrough(t, api.CSINodes(), ns, func(l *storagev1.CSINodeList) []string { return make([]string, len(l.Items)) }, func(name string) *storagev1.CSINode {
			return &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: "csi.conclave.test", NodeID: "n", TopologyKeys: []string{"conclave.test/zone"}}}}}
		})
	})
	run("capacities", "[sig-storage] CSIStorageCapacity should support CSIStorageCapacities API operations [Conformance]", func(t *testing.T) {
		liveThrough(t, api.CSIStorageCapacities(ns), ns, func(l *storagev1.CSIStorageCapacityList) []string { return make([]string, len(l.Items)) }, func(name string) *storagev1.CSIStorageCapacity {
			q := resource.MustParse("10Gi")
			return &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Name: name}, StorageClassName: "fast", Capacity: &q}
		})
		all, err := api.CSIStorageCapacities("").List(t.Context(), metav1.ListOptions{LabelSelector: "of=" + ns})
		if err != nil || len(all.Items) != 0 {
			t.Errorf("in all namespaces: %v (%v)", all, err)
		}
		if _, err := c.Client.Discovery().ServerResourcesForGroupVersion("storage.k8s.io/v1"); err != nil {
			t.Error(err)
		}
	})
	run("attributes", "[sig-storage] VolumeAttributesClass [FeatureGate:VolumeAttributesClass] should run through the lifecycle of a VolumeAttributesClass [Conformance]", func(t *testing.T) {
		liveThrough(t, api.VolumeAttributesClasses(), ns, func(l *storagev1.VolumeAttributesClassList) []string { return make([]string, len(l.Items)) }, func(name string) *storagev1.VolumeAttributesClass {
			return &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: name}, DriverName: "csi.conclave.test", Parameters: map[string]string{"iops": "3"}}
		})
	})
	run("inline", "[sig-storage] CSIInlineVolumes should support CSIVolumeSource in Pod API [Conformance]", func(t *testing.T) {
		pods := c.Client.CoreV1().Pods(ns)
		pod := storagePod("inline", shell("main", "sleep 1d"))
		pod.Labels = map[string]string{"of": ns}
		withVolume(pod, "v", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "csi.conclave.test", ReadOnly: new(true), VolumeAttributes: map[string]string{"a": "b"}}})
		made := createPod(t, c, ns, pod)
		got, err := pods.Get(t.Context(), "inline", metav1.GetOptions{})
		if err != nil || got.UID != made.UID || got.Spec.Volumes[0].CSI == nil || got.Spec.Volumes[0].CSI.VolumeAttributes["a"] != "b" {
			t.Fatalf("it is %+v (%v)", got, err)
		}
		if _, err := pods.Patch(t.Context(), "inline", types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		all, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "of=" + ns + ",patched=yes"})
		if err != nil || len(all.Items) != 1 {
			t.Fatalf("listed: %+v (%v)", all, err)
		}
		eventually(t, "the pod waits for a driver that is not there", func() error {
			return wantEvent(t.Context(), c.Client, ns, "inline", "FailedMount", "driver name csi.conclave.test not found in the list of registered CSI drivers")
		})
		if err := pods.Delete(t.Context(), "inline", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pod is gone", func() error {
			if _, err := pods.Get(t.Context(), "inline", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				return fmt.Errorf("not yet (%v)", err)
			}
			return nil
		})
	})
}

// wantEvent wants an event of this reason about an object, whose message has
// all of these words.
func wantEvent(ctx context.Context, client kubernetes.Interface, ns, name, reason string, words ...string) error {
	all, err := client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name + ",reason=" + reason})
	if err != nil {
		return err
	}
	for _, e := range all.Items {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(e.Message, w) }) {
			return nil
		}
	}
	return fmt.Errorf("no event %s of %s says %q", reason, name, words)
}
