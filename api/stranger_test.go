package api

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TestStoredByANewerServer: what a kind is that this server does not know stays as it
// was written, byte for byte.
func TestStoredByANewerServer(t *testing.T) {
	like := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "new", UID: "uid", Labels: map[string]string{"a": "b"}, Finalizers: []string{"c.d/e"}},
		Data:       map[string]string{"what": "ever"},
	}
	raw, err := like.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	envelope := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "next.k8s.io/v1", Kind: "Novelty"}, Raw: raw}
	body, err := envelope.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	stored := append(bytes.Clone(protobufPrefix), body...)
	o, err := DecodeStored(stored)
	if err != nil {
		t.Fatal(err)
	}
	if o.GetNamespace() != "shop" || o.GetName() != "new" || o.GetUID() != "uid" || o.GetLabels()["a"] != "b" || len(o.GetFinalizers()) != 1 ||
		o.GetObjectKind().GroupVersionKind().String() != "next.k8s.io/v1, Kind=Novelty" {
		t.Errorf("%+v", o)
	}
	o = o.DeepCopyObject().(Object)
	o.SetResourceVersion("7") // as the store does
	if again, err := EncodeStored(o); err != nil || !bytes.Equal(again, stored) {
		t.Errorf("stored again: %q, %v", again, err)
	}
	for n := range len(stored) { // cut off anywhere, it is refused or has a name
		if o, err := DecodeStored(stored[:n]); err == nil && o.GetName() != "new" && o.GetName() != "" {
			t.Errorf("the first %d bytes are %q", n, o.GetName())
		}
	}
}
