package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// origin is what a volume begins with, as its claim asks for it: a snapshot, or
// the volume of another claim.
type origin struct {
	snapshotID, volumeID string
	size                 int64  // that the volume must have
	node                 string // that alone has it, if one does
}

// originOf finds what a claim's volume is to begin with, nil if it is to be
// empty.
func (c csiController) originOf(claim *corev1.PersistentVolumeClaim, driver string) (*origin, error) {
	s, ref := claim.Spec.DataSource, claim.Spec.DataSourceRef
	switch {
	case s != nil && ofSnapshot(s):
		return c.snapshotOrigin(claim, driver, s.Name)
	case s != nil && s.Kind == "PersistentVolumeClaim" && (s.APIGroup == nil || *s.APIGroup == ""):
		return c.claimOrigin(claim, driver, s.Name)
	case ref != nil && ref.Namespace != nil && *ref.Namespace != "":
		return nil, errors.New("a dataSourceRef of another namespace is not supported by Conclave yet")
	case s != nil || ref != nil:
		return nil, errors.New("a dataSource must be a PersistentVolumeClaim or a VolumeSnapshot of snapshot.storage.k8s.io: volume populators are not supported by Conclave yet")
	}
	return nil, nil
}

func (c csiController) snapshotOrigin(claim *corev1.PersistentVolumeClaim, driver, name string) (*origin, error) {
	s, ok := get[*snapshotv1.VolumeSnapshot](c.cache, snapshots, claim.Namespace, name)
	switch {
	case !ok:
		return nil, fmt.Errorf("error getting snapshot %s from api server: volumesnapshots.snapshot.storage.k8s.io %q not found", name, name)
	case s.DeletionTimestamp != nil:
		return nil, fmt.Errorf("snapshot %s is currently being deleted", name)
	case boundContent(s) == "":
		return nil, fmt.Errorf("snapshot %s is not bound", name)
	case s.Status.ReadyToUse == nil || !*s.Status.ReadyToUse:
		return nil, fmt.Errorf("snapshot %s is not Ready", name)
	}
	k, ok := get[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "", boundContent(s))
	if !ok || k.Spec.VolumeSnapshotRef.UID != s.UID || k.Status == nil || k.Status.SnapshotHandle == nil {
		return nil, fmt.Errorf("snapshot %s is not bound to %s", name, boundContent(s))
	}
	if k.Spec.Driver != driver {
		return nil, fmt.Errorf("snapshot %s is of driver %s, the class of the claim is of %s", name, k.Spec.Driver, driver)
	}
	if mode, asked := k.Spec.SourceVolumeMode, claim.Spec.VolumeMode; mode != nil && asked != nil && *mode != *asked && k.Annotations[snapshotModeChange] != "true" {
		return nil, fmt.Errorf("requested volume %s/%s modifies the mode of the source volume but does not have permission to do so. %s annotation is not present on snapshotcontent %s", claim.Namespace, claim.Name, snapshotModeChange, k.Name)
	}
	from := &origin{snapshotID: *k.Status.SnapshotHandle, node: k.Labels[labelSnapshotNode]}
	if k.Status.RestoreSize != nil {
		from.size = *k.Status.RestoreSize
	}
	if asks := claim.Spec.Resources.Requests[corev1.ResourceStorage]; asks.Value() < from.size {
		return nil, fmt.Errorf("requested volume size %d is less than the size %d for the source snapshot %s", asks.Value(), from.size, name)
	}
	return from, nil
}

func (c csiController) claimOrigin(claim *corev1.PersistentVolumeClaim, driver, name string) (*origin, error) {
	from, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, claim.Namespace, name)
	switch {
	case !ok || !api.Bound(from):
		return nil, fmt.Errorf("the claim %s, which is to be cloned, is not bound", name)
	case from.DeletionTimestamp != nil:
		return nil, fmt.Errorf("the PVC DataSource %s is currently being deleted", name)
	}
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", from.Spec.VolumeName)
	if !ok || v.Spec.CSI == nil || v.Spec.CSI.Driver != driver {
		return nil, fmt.Errorf("the claim %s, which is to be cloned, is of another driver", name)
	}
	if !api.SameMode(v, claim) {
		return nil, fmt.Errorf("the source PVC %s and the new one must have the same volume mode for cloning", name)
	}
	asks, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], v.Spec.Capacity[corev1.ResourceStorage]
	if asks.Cmp(has) < 0 {
		return nil, fmt.Errorf("error, new PVC request must be greater than or equal in size to the specified PVC data source, requested %d but source is %d", asks.Value(), has.Value())
	}
	return &origin{volumeID: v.Spec.CSI.VolumeHandle, size: has.Value(), node: c.onlyNode(v)}, nil
}

// place names the node of a claim whose volume can be made on one node only,
// because what it begins with is there: nobody need wait for a pod to choose.
func (c csiController) place(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, from *origin) (placed bool, err error) {
	if !api.Waits(class) || from.node == "" || claim.Annotations[api.AnnotationSelectedNode] == from.node {
		return false, nil
	}
	claim = edit(claim)
	metav1.SetMetaDataAnnotation(&claim.ObjectMeta, api.AnnotationSelectedNode, from.node)
	_, err = c.update(ctx, claims, claim)
	return true, err
}

// finalizerCloned is external-provisioner's.
const finalizerCloned = "provisioner.storage.kubernetes.io/cloning-protection"

// hold keeps the claim that is about to be cloned, and letGo what was held: once
// no clone is being made of it.
func (c csiController) hold(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	from, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, claim.Namespace, claim.Spec.DataSource.Name)
	if !ok || slices.Contains(from.Finalizers, finalizerCloned) {
		return nil
	}
	from = edit(from)
	from.Finalizers = append(from.Finalizers, finalizerCloned)
	_, err := c.update(ctx, claims, from)
	return err
}

func (c csiController) letGo(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if !slices.Contains(claim.Finalizers, finalizerCloned) || slices.ContainsFunc(
		indexed[*corev1.PersistentVolumeClaim](c.cache, claims, claimsBySource, sourceKey("", "PersistentVolumeClaim", claim.Namespace, claim.Name)), unfinished) {
		return nil
	}
	return dropFinalizer(ctx, c.env, claims, claim, finalizerCloned)
}

// keysOfClaim are the claim, and the one that it is a clone of.
func (c csiController) keysOfClaim(change Change) []Key {
	claim := change.either().(*corev1.PersistentVolumeClaim)
	keys := []Key{keyIn(claims, claim)}
	if s := claim.Spec.DataSource; s != nil && s.Kind == "PersistentVolumeClaim" {
		keys = append(keys, Key{Resource: claims, Namespace: claim.Namespace, Name: s.Name})
	}
	if api.Bound(claim) { // what waits to be cloned
		keys = append(keys, c.waitingFor("", "PersistentVolumeClaim", claim)...)
	}
	return keys
}

// waitingFor are the claims that are to begin with an object.
func (c csiController) waitingFor(group, kind string, o metav1.Object) (keys []Key) {
	for _, claim := range indexed[*corev1.PersistentVolumeClaim](c.cache, claims, claimsBySource, sourceKey(group, kind, o.GetNamespace(), o.GetName())) {
		if unfinished(claim) {
			keys = append(keys, keyIn(claims, claim))
		}
	}
	return keys
}
