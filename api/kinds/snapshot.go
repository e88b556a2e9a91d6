package kinds

import (
	"fmt"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// snapshotRows are the kinds of volume snapshots. To Kubernetes they are custom
// resources, whose definitions everybody brings along; what those definitions
// say, their rules in CEL too, is said here.
func snapshotRows() []*Kind {
	gv := snapshotv1.SchemeGroupVersion
	return []*Kind{
		{
			GVK: gv.WithKind("VolumeSnapshotClass"), Plural: "volumesnapshotclasses", ShortNames: []string{"vsclass", "vsclasses"},
			New: empty[snapshotv1.VolumeSnapshotClass], NewList: empty[snapshotv1.VolumeSnapshotClassList],
			PrepareForCreate: one(func(c *snapshotv1.VolumeSnapshotClass) { c.Generation = 1 }),
			PrepareForUpdate: two(func(c, old *snapshotv1.VolumeSnapshotClass) {
				countGeneration(c, []any{c.Driver, c.DeletionPolicy, c.Parameters}, []any{old.Driver, old.DeletionPolicy, old.Parameters})
			}),
			Validate: check(validateSnapshotClass), ValidateUpdate: checkTwo(validateSnapshotClassUpdate),
			Columns: snapshotClassColumns, Cells: cells(func(c *snapshotv1.VolumeSnapshotClass, now time.Time) []any {
				return []any{c.Name, c.Driver, string(c.DeletionPolicy), age(c.CreationTimestamp, now)}
			}),
		},
		specAndStatus(Kind{
			GVK: gv.WithKind("VolumeSnapshotContent"), Plural: "volumesnapshotcontents", ShortNames: []string{"vsc", "vscs"},
			New: empty[snapshotv1.VolumeSnapshotContent], NewList: empty[snapshotv1.VolumeSnapshotContentList],
			Validate: check(validateSnapshotContent), ValidateUpdate: checkTwo(validateSnapshotContentUpdate),
			Columns: snapshotContentColumns, Cells: cells(snapshotContentCells),
		}, func(c *snapshotv1.VolumeSnapshotContent) *snapshotv1.VolumeSnapshotContentSpec { return &c.Spec },
			func(c *snapshotv1.VolumeSnapshotContent) **snapshotv1.VolumeSnapshotContentStatus { return &c.Status }),
		specAndStatus(Kind{
			GVK: gv.WithKind("VolumeSnapshot"), Plural: "volumesnapshots", ShortNames: []string{"vs"}, Namespaced: true,
			New: empty[snapshotv1.VolumeSnapshot], NewList: empty[snapshotv1.VolumeSnapshotList],
			Validate: check(validateSnapshot), ValidateUpdate: checkTwo(validateSnapshotUpdate),
			Columns: snapshotColumns, Cells: cells(snapshotCells),
		}, func(s *snapshotv1.VolumeSnapshot) *snapshotv1.VolumeSnapshotSpec { return &s.Spec },
			func(s *snapshotv1.VolumeSnapshot) **snapshotv1.VolumeSnapshotStatus { return &s.Status }),
	}
}

var snapshotClassColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Driver", "Name of the CSI driver that makes the snapshots"),
	text("DeletionPolicy", "Whether contents made through this class, and the driver's snapshots, go with their VolumeSnapshots"),
	ageColumn,
}

var snapshotContentColumns = []metav1.TableColumnDefinition{
	nameColumn,
	boolean("ReadyToUse", "Whether volumes can be restored from the snapshot"),
	number("RestoreSize", "Size of the whole snapshot, in bytes"),
	text("DeletionPolicy", "Whether this content, and the driver's snapshot, go with the VolumeSnapshot that is bound to it"),
	text("Driver", "Name of the CSI driver that has the snapshot"),
	text("VolumeSnapshotClass", "Name of the class of the snapshot"),
	text("VolumeSnapshot", "Name of the VolumeSnapshot that is bound to this content"),
	text("VolumeSnapshotNamespace", "Namespace of the VolumeSnapshot that is bound to this content"),
	ageColumn,
}

var snapshotColumns = []metav1.TableColumnDefinition{
	nameColumn,
	boolean("ReadyToUse", "Whether volumes can be restored from the snapshot"),
	text("SourcePVC", "Name of the claim of which the snapshot is, or will be, taken"),
	text("SourceSnapshotContent", "Name of the VolumeSnapshotContent that stands for a snapshot which is there already"),
	text("RestoreSize", "Least size of a volume that is restored from the snapshot"),
	text("SnapshotClass", "Name of the VolumeSnapshotClass that was asked for"),
	text("SnapshotContent", "Name of the VolumeSnapshotContent to which this snapshot is to be bound: it is only if that names it too"),
	text("CreationTime", "When the driver took the snapshot"),
	ageColumn,
}

// given is what a pointer points at, nil of none: an empty cell.
func given[T any](p *T) any {
	if p == nil {
		return nil
	}
	return *p
}

func snapshotContentCells(c *snapshotv1.VolumeSnapshotContent, now time.Time) []any {
	status := c.Status
	if status == nil {
		status = &snapshotv1.VolumeSnapshotContentStatus{}
	}
	return []any{
		c.Name, given(status.ReadyToUse), given(status.RestoreSize), string(c.Spec.DeletionPolicy), c.Spec.Driver,
		given(c.Spec.VolumeSnapshotClassName), c.Spec.VolumeSnapshotRef.Name, c.Spec.VolumeSnapshotRef.Namespace, age(c.CreationTimestamp, now),
	}
}

func snapshotCells(s *snapshotv1.VolumeSnapshot, now time.Time) []any {
	status := s.Status
	if status == nil {
		status = &snapshotv1.VolumeSnapshotStatus{}
	}
	var size, taken any
	if status.RestoreSize != nil {
		size = status.RestoreSize.String()
	}
	if status.CreationTime != nil {
		taken = age(*status.CreationTime, now)
	}
	return []any{
		s.Name, given(status.ReadyToUse), given(s.Spec.Source.PersistentVolumeClaimName), given(s.Spec.Source.VolumeSnapshotContentName), size,
		given(s.Spec.VolumeSnapshotClassName), given(status.BoundVolumeSnapshotContentName), taken, age(s.CreationTimestamp, now),
	}
}

func validateSnapshotClass(c *snapshotv1.VolumeSnapshotClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.snapshotClass(c)
	return e.list()
}

func validateSnapshotClassUpdate(c, old *snapshotv1.VolumeSnapshotClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.snapshotClass(c)
	return e.list()
}

func (e *problems) snapshotClass(c *snapshotv1.VolumeSnapshotClass) {
	e.nonEmpty(field.NewPath("driver"), c.Driver)
	oneOf(e, field.NewPath("deletionPolicy"), c.DeletionPolicy, snapshotv1.VolumeSnapshotContentDelete, snapshotv1.VolumeSnapshotContentRetain)
}

// oneSource is of the two fields of a source, of which one is to be set.
func (e *problems) oneSource(p *field.Path, first, second string, hasFirst, hasSecond bool) {
	if hasFirst == hasSecond {
		e.invalid(p, "object", fmt.Sprintf("exactly one of %s and %s must be set", first, second))
	}
}

// once is of a field that is not changed once it is set.
func once[T comparable](e *problems, p *field.Path, name string, value, old *T) {
	switch p = p.Child(name); {
	case old == nil:
	case value == nil:
		e.invalid(p, nil, name+" is required once set")
	case *value != *old:
		e.invalid(p, *value, name+" is immutable")
	}
}

func validateSnapshot(s *snapshotv1.VolumeSnapshot) field.ErrorList {
	e := metadata(&s.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.snapshot(s)
	return e.list()
}

func validateSnapshotUpdate(s, old *snapshotv1.VolumeSnapshot) field.ErrorList {
	e := metadata(&s.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.snapshot(s)
	at, source, was := specPath.Child("source"), &s.Spec.Source, &old.Spec.Source
	once(&e, at, "persistentVolumeClaimName", source.PersistentVolumeClaimName, was.PersistentVolumeClaimName)
	once(&e, at, "volumeSnapshotContentName", source.VolumeSnapshotContentName, was.VolumeSnapshotContentName)
	return e.list()
}

func (e *problems) snapshot(s *snapshotv1.VolumeSnapshot) {
	source := &s.Spec.Source
	e.oneSource(specPath.Child("source"), "volumeSnapshotContentName", "persistentVolumeClaimName", source.VolumeSnapshotContentName != nil, source.PersistentVolumeClaimName != nil)
	if class := s.Spec.VolumeSnapshotClassName; class != nil && *class == "" {
		e.invalid(specPath.Child("volumeSnapshotClassName"), "", "volumeSnapshotClassName must not be the empty string when set")
	}
}

func validateSnapshotContent(c *snapshotv1.VolumeSnapshotContent) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.snapshotContent(c)
	return e.list()
}

func validateSnapshotContentUpdate(c, old *snapshotv1.VolumeSnapshotContent) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.snapshotContent(c)
	at, source, was := specPath.Child("source"), &c.Spec.Source, &old.Spec.Source
	once(&e, at, "volumeHandle", source.VolumeHandle, was.VolumeHandle)
	once(&e, at, "snapshotHandle", source.SnapshotHandle, was.SnapshotHandle)
	once(&e, specPath, "sourceVolumeMode", c.Spec.SourceVolumeMode, old.Spec.SourceVolumeMode)
	return e.list()
}

func (e *problems) snapshotContent(c *snapshotv1.VolumeSnapshotContent) {
	spec := &c.Spec
	e.nonEmpty(specPath.Child("driver"), spec.Driver)
	oneOf(e, specPath.Child("deletionPolicy"), spec.DeletionPolicy, snapshotv1.VolumeSnapshotContentDelete, snapshotv1.VolumeSnapshotContentRetain)
	e.oneSource(specPath.Child("source"), "volumeHandle", "snapshotHandle", spec.Source.VolumeHandle != nil, spec.Source.SnapshotHandle != nil)
	if ref := spec.VolumeSnapshotRef; ref.Name == "" || ref.Namespace == "" {
		e.invalid(specPath.Child("volumeSnapshotRef"), "object", "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set")
	}
	if s := c.Status; s != nil && s.RestoreSize != nil && *s.RestoreSize < 0 {
		e.invalid(field.NewPath("status", "restoreSize"), *s.RestoreSize, "should be greater than or equal to 0")
	}
}
