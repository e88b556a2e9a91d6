package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"conclave/api/kinds"
)

// encoded is a record of an object.
type encoded struct {
	Record
	obj Object
}

func (e encoded) Object() Object { return e.obj }

// managedPod is a pod of the usual size.
func managedPod(i int) *corev1.Pod {
	fields := `{"f:metadata":{"f:labels":{".":{},"f:app":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"main\"}":{".":{},"f:image":{},"f:name":{},"f:resources":{".":{},"f:requests":{".":{},"f:cpu":{},"f:memory":{}}}}}}}`
	return &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("application-%d", i), Namespace: "default", Labels: map[string]string{"app": "application"},
			Annotations: map[string]string{"text": `a "managedFields":[{"manager":"x"}] <b>`},
			ManagedFields: []metav1.ManagedFieldsEntry{
				{Manager: "kubectl", Operation: "Apply", APIVersion: "v1", Time: &metav1.Time{Time: time.Unix(1e9, 0)}, FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)}},
				{Manager: "conclave", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: &metav1.FieldsV1{Raw: []byte(fields)}, Subresource: "status"},
				{Manager: "none", FieldsV1: &metav1.FieldsV1{}},
				{Subresource: `a"b`},
				{},
			},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/team/application:1.2.3", Args: []string{"--listen=:8080", "<&>"}}}},
	}
}

// TestEncodeJSON: it is what encoding/json makes, and the object is as it was.
func TestEncodeJSON(t *testing.T) {
	bare := managedPod(2)
	bare.ManagedFields = nil
	untyped := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "a/v1", "kind": "K", "metadata": map[string]any{
		"name": "x", "managedFields": []any{map[string]any{"manager": "m", "fieldsV1": map[string]any{"f:spec": map[string]any{}}}}}}}
	for _, obj := range []Object{managedPod(1), bare, managedPod(3), untyped, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}} {
		want, err := json.Marshal(obj)
		if err != nil {
			t.Fatal(err)
		}
		got, err := encodeJSON(obj)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if again, _ := json.Marshal(obj); !bytes.Equal(again, want) {
			t.Errorf("the object was changed: %s", again)
		}
	}
}

// TestWriteListing: lists of every length around a batch are what encoding/json
// makes of the list's type.
func TestWriteListing(t *testing.T) {
	r := &resource{Kind: &kinds.Kind{}}
	r.GVK = corev1.SchemeGroupVersion.WithKind("Pod")
	for _, n := range []int{0, 1, batch - 1, batch, batch + 1, 5*batch + 3} {
		want := corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{}}
		want.ResourceVersion = "7"
		l := listing{revision: 7}
		for i := range n {
			pod := managedPod(i)
			l.records = append(l.records, encoded{obj: pod})
			pod = pod.DeepCopy()
			pod.TypeMeta = metav1.TypeMeta{}
			want.Items = append(want.Items, *pod)
		}
		var got bytes.Buffer
		if err := writeListing(&got, r, l); err != nil {
			t.Fatal(err)
		}
		if text, err := json.Marshal(want); err != nil || !bytes.Equal(got.Bytes(), text) {
			t.Errorf("%d items: %v\ngot  %.300s\nwant %.300s", n, err, got.Bytes(), text)
		}
	}
}

type brokenPipe struct{ left int }

func (b *brokenPipe) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("broken pipe")
	}
	return len(p), nil
}

// TestWriteListingEnds: whoever goes away in the middle is not written to for ever.
func TestWriteListingEnds(t *testing.T) {
	r := &resource{Kind: &kinds.Kind{}}
	r.GVK = corev1.SchemeGroupVersion.WithKind("Pod")
	var l listing
	for i := range 20 * batch {
		l.records = append(l.records, encoded{obj: managedPod(i)})
	}
	if err := writeListing(&brokenPipe{left: 1 << 20}, r, l); err == nil || !strings.Contains(err.Error(), "broken pipe") {
		t.Errorf("it ended with %v", err)
	}
}

func BenchmarkEncodeJSON(b *testing.B) {
	pod := managedPod(1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := encodeJSON(pod); err != nil {
			b.Fatal(err)
		}
	}
}
