package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

const aSnapshot = `{"apiVersion":"snapshot.storage.k8s.io/v1","kind":"VolumeSnapshot","metadata":{"name":"monday"},"spec":{"source":{"persistentVolumeClaimName":"data"}}}`

// A kind whose types have no protobuf is stored and answered as JSON, by whatever
// way it is written.
func TestKindWithoutProtobuf(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	rt := st.admin()
	const at = "/apis/snapshot.storage.k8s.io/v1/namespaces/shop/volumesnapshots"
	accept := []string{"Accept", "application/vnd.kubernetes.protobuf, application/json"}
	a := st.request(rt, "PATCH", at+"/monday?fieldManager=me", aSnapshot, append(accept, "Content-Type", applyType)...)
	var s snapshotv1.VolumeSnapshot
	if a.into(t, &s); a.code != http.StatusCreated || managers(s.ManagedFields) != "me Apply" || s.Generation != 1 {
		t.Fatalf("applied: %d %+v", a.code, s)
	}
	a = st.request(rt, "PATCH", at+"/monday/status", `{"status":{"readyToUse":true,"restoreSize":"1Gi"},"spec":{"volumeSnapshotClassName":"no"}}`, append(accept, "Content-Type", "application/merge-patch+json")...)
	s = snapshotv1.VolumeSnapshot{}
	if a.into(t, &s); a.code != http.StatusOK || !*s.Status.ReadyToUse || s.Status.RestoreSize.String() != "1Gi" || s.Spec.VolumeSnapshotClassName != nil {
		t.Errorf("the status: %d %+v", a.code, s)
	}
	a = st.request(rt, "GET", at, "", accept...)
	var list snapshotv1.VolumeSnapshotList
	if a.into(t, &list); len(list.Items) != 1 || list.Kind != "VolumeSnapshotList" {
		t.Errorf("listed: %d %+v", a.code, list)
	}
	if a = st.request(rt, "GET", at, "", "Accept", "application/vnd.kubernetes.protobuf"); a.code != http.StatusNotAcceptable {
		t.Errorf("as protobuf alone it is answered with %d", a.code)
	}
	if a = st.request(rt, "GET", at, "", "Accept", "application/json;as=Table;g=meta.k8s.io;v=v1"); !strings.Contains(string(a.body), "ReadyToUse") {
		t.Errorf("as a table it is %s", a.body)
	}
	if a = st.request(rt, "GET", at, "", "Accept", "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"); a.code != http.StatusOK {
		t.Errorf("its metadata as protobuf are %d", a.code)
	}

	// Our own client, which speaks protobuf where it can.
	client := api.NewHTTP(st.base(), rt)
	gvr := schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	o, err := client.Get(t.Context(), gvr, "shop", "monday", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := o.DeepCopyObject().(*snapshotv1.VolumeSnapshot)
	got.Labels = map[string]string{"a": "b"}
	if o, err = client.Update(t.Context(), gvr, "shop", got, metav1.UpdateOptions{}); err != nil || o.GetLabels()["a"] != "b" {
		t.Errorf("updated: %v %v", o, err)
	}
}

func TestStoredWithoutProtobuf(t *testing.T) {
	s := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "5"}}
	data, err := api.EncodeStored(s)
	if err != nil || !json.Valid(data) {
		t.Fatalf("stored as %q, %v", data, err)
	}
	o, err := api.DecodeStored(data)
	if back, ok := o.(*snapshotv1.VolumeSnapshot); err != nil || !ok || back.Kind != "VolumeSnapshot" || back.Name != "a" || back.ResourceVersion != "" {
		t.Errorf("read back is %#v, %v", o, err)
	}
	// What a cluster stored as a custom resource before is the same.
	if o, err = api.DecodeStored([]byte(aSnapshot)); err != nil {
		t.Fatal(err)
	}
	if _, ok := o.(*snapshotv1.VolumeSnapshot); !ok {
		t.Errorf("a custom resource is read as %T", o)
	}
}
