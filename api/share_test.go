package api

import (
	"hash/maphash"
	"runtime"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestSharedFields: objects that were decoded from alike bytes share what is alike,
// and only that; what nobody has any more is forgotten.
func TestSharedFields(t *testing.T) {
	pod := managedPod(1)
	pod.ManagedFields[0].FieldsV1.Raw = []byte(`{"f:of":{"f:this":{"f:test":{}}}}`)
	pod.ManagedFields[1].FieldsV1.Raw = pod.ManagedFields[0].FieldsV1.Raw
	raw, err := encodeRecord(protobufRecord{encoded{obj: pod}}, mediaProtobuf)
	if err != nil {
		t.Fatal(err)
	}
	decode := func() []metav1.ManagedFieldsEntry {
		obj, err := DecodeStored(raw)
		if err != nil {
			t.Fatal(err)
		}
		return obj.GetManagedFields()
	}
	a, b := decode(), decode()
	if a[0].FieldsV1 != b[0].FieldsV1 || a[0].FieldsV1 != a[1].FieldsV1 {
		t.Error("the same set is there more than once")
	}
	if a[0].FieldsV1 == a[2].FieldsV1 || string(a[0].FieldsV1.Raw) == string(a[2].FieldsV1.Raw) {
		t.Error("two sets that differ became one")
	}
	runtime.KeepAlive(a)
	runtime.KeepAlive(b)
	a, b = nil, nil
	key := maphash.Bytes(sharedFields.seed, pod.ManagedFields[0].FieldsV1.Raw)
	forgotten := func() bool {
		sharedFields.Lock()
		defer sharedFields.Unlock()
		_, known := sharedFields.sets[key]
		return !known
	}
	for range 1000 {
		if runtime.GC(); forgotten() {
			return
		}
		runtime.Gosched()
	}
	t.Error("the set is still known")
}

// protobufRecord encodes as it is asked to, and keeps nothing.
type protobufRecord struct{ encoded }

func (r protobufRecord) Encoding(_ string, encode func(Object) ([]byte, error)) ([]byte, error) {
	return encode(r.obj)
}
