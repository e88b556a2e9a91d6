package consensus

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
)

// TestReadingARecordWritesNothing: a quantity that is reached by a pointer keeps
// its text at the first encoding, which others would see while they copy it.
func TestReadingARecordWritesNothing(t *testing.T) {
	limit := quantity.NewQuantity(1<<20, quantity.BinarySI)
	pod := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: limit}}}}}}
	rec := newRecord(pod, 7)
	shown := func() string { return fmt.Sprintf("%#v", rec.object.(*corev1.Pod).Spec.Volumes[0].EmptyDir.SizeLimit) }
	before := shown()
	if _, err := rec.object.(*corev1.Pod).Marshal(); err != nil {
		t.Fatal(err)
	}
	if after := shown(); after != before {
		t.Errorf("encoding it changed %s to %s", before, after)
	}
}
