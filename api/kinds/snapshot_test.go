package kinds

import (
	"reflect"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	snapshotsName  = "volumesnapshots.snapshot.storage.k8s.io"
	contentsName   = "volumesnapshotcontents.snapshot.storage.k8s.io"
	snapClassName  = "volumesnapshotclasses.snapshot.storage.k8s.io"
	snapshotMeta   = "metadata: {name: x, namespace: default, resourceVersion: '1', creationTimestamp: 2020-01-01T00:00:00Z}\n"
	contentMeta    = "metadata: {name: x, resourceVersion: '1', creationTimestamp: 2020-01-01T00:00:00Z}\n"
	contentOptions = "driver: d, deletionPolicy: Delete, volumeSnapshotRef: {name: s, namespace: ns}, "
)

// What the rules in CEL of the published definitions say.
func TestSnapshotRules(t *testing.T) {
	for name, tc := range map[string]struct {
		resource, old, now string // old is empty at creation
		want               []string
	}{
		"of a claim":       {snapshotsName, "", snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}}", nil},
		"of a content":     {snapshotsName, "", snapshotMeta + "spec: {source: {volumeSnapshotContentName: c}, volumeSnapshotClassName: k}", nil},
		"of nothing":       {snapshotsName, "", snapshotMeta + "spec: {source: {}}", []string{`spec.source: Invalid value: "object": exactly one of volumeSnapshotContentName and persistentVolumeClaimName must be set`}},
		"of both":          {snapshotsName, "", snapshotMeta + "spec: {source: {persistentVolumeClaimName: c, volumeSnapshotContentName: c}}", []string{`spec.source: Invalid value: "object": exactly one of volumeSnapshotContentName and persistentVolumeClaimName must be set`}},
		"of no class":      {snapshotsName, "", snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}, volumeSnapshotClassName: ''}", []string{`spec.volumeSnapshotClassName: Invalid value: "": volumeSnapshotClassName must not be the empty string when set`}},
		"another claim":    {snapshotsName, snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}}", snapshotMeta + "spec: {source: {persistentVolumeClaimName: d}}", []string{`spec.source.persistentVolumeClaimName: Invalid value: "d": persistentVolumeClaimName is immutable`}},
		"a class later":    {snapshotsName, snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}}", snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}, volumeSnapshotClassName: k}", nil},
		"another source":   {snapshotsName, snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}}", snapshotMeta + "spec: {source: {volumeSnapshotContentName: d}}", []string{"spec.source.persistentVolumeClaimName: Invalid value: null: persistentVolumeClaimName is required once set"}},
		"content":          {contentsName, "", contentMeta + "spec: {" + contentOptions + "source: {snapshotHandle: h}, sourceVolumeMode: Block}", nil},
		"empty content":    {contentsName, "", contentMeta + "spec: {}", []string{"spec.driver: Required value", "spec.deletionPolicy: Required value", `spec.source: Invalid value: "object": exactly one of volumeHandle and snapshotHandle must be set`, `spec.volumeSnapshotRef: Invalid value: "object": both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set`}},
		"policy":           {contentsName, contentMeta + "spec: {" + contentOptions + "source: {snapshotHandle: h}}", contentMeta + "spec: {driver: d, deletionPolicy: Retain, volumeSnapshotRef: {name: s, namespace: ns, uid: u}, source: {snapshotHandle: h}}", nil},
		"another snapshot": {contentsName, contentMeta + "spec: {" + contentOptions + "source: {snapshotHandle: h}, sourceVolumeMode: Block}", contentMeta + "spec: {" + contentOptions + "source: {snapshotHandle: i}}", []string{`spec.source.snapshotHandle: Invalid value: "i": snapshotHandle is immutable`, "spec.sourceVolumeMode: Invalid value: null: sourceVolumeMode is required once set"}},
		"class":            {snapClassName, "", contentMeta + "driver: d\ndeletionPolicy: Retain\nparameters: {a: b}", nil},
		"empty class":      {snapClassName, "", contentMeta + "deletionPolicy: Odd", []string{"driver: Required value", `deletionPolicy: Unsupported value: "Odd": supported values: "Delete", "Retain"`}},
		"changed class":    {snapClassName, contentMeta + "driver: d\ndeletionPolicy: Retain", contentMeta + "driver: e\ndeletionPolicy: Delete", nil},
	} {
		t.Run(name, func(t *testing.T) {
			k := table[tc.resource]
			now := parse[runtime.Object](t, tc.resource, tc.now)
			var errs field.ErrorList
			if tc.old == "" {
				now.(object).SetResourceVersion("")
				errs = k.Validate(now)
			} else {
				errs = k.ValidateUpdate(now, parse[runtime.Object](t, tc.resource, tc.old))
			}
			expect(t, errs, tc.want...)
		})
	}
}

func TestSnapshotColumns(t *testing.T) {
	now := time.Date(2020, 1, 1, 1, 0, 0, 0, time.UTC)
	for resource, tc := range map[string]struct {
		object string
		want   []any
	}{
		snapshotsName: {snapshotMeta + "spec: {source: {persistentVolumeClaimName: c}, volumeSnapshotClassName: k}\nstatus: {readyToUse: true, restoreSize: 1Gi, boundVolumeSnapshotContentName: v, creationTime: 2020-01-01T00:30:00Z}",
			[]any{"x", true, "c", nil, "1Gi", "k", "v", "30m", "60m"}},
		contentsName:  {contentMeta + "spec: {" + contentOptions + "source: {snapshotHandle: h}}", []any{"x", nil, nil, "Delete", "d", nil, "s", "ns", "60m"}},
		snapClassName: {contentMeta + "driver: d\ndeletionPolicy: Retain", []any{"x", "d", "Retain", "60m"}},
	} {
		k := table[resource]
		if got := k.Cells(parse[runtime.Object](t, resource, tc.object), now); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %#v, not %#v", resource, got, tc.want)
		}
		if len(k.Columns) != len(tc.want) {
			t.Errorf("%s has %d columns", resource, len(k.Columns))
		}
	}
}
