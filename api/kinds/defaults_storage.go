package kinds

import (
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

func defaultClaim(c *corev1.PersistentVolumeClaim) {
	defaultTo(&c.Status.Phase, corev1.ClaimPending)
	defaultClaimSpec(&c.Spec)
	defaultResourceList(c.Status.Capacity)
	defaultResourceList(c.Status.AllocatedResources)
}

func defaultClaimSpec(spec *corev1.PersistentVolumeClaimSpec) {
	defaultPtr(&spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	defaultResourceList(spec.Resources.Limits)
	defaultResourceList(spec.Resources.Requests)
	// Two names of one field, where the older one can name the thing at all.
	if s := spec.DataSource; s != nil && spec.DataSourceRef == nil {
		spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: s.APIGroup, Kind: s.Kind, Name: s.Name}
	} else if r := spec.DataSourceRef; r != nil && s == nil && r.Namespace == nil {
		spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: r.APIGroup, Kind: r.Kind, Name: r.Name}
	}
}

// defaultVolumeObject is of a PersistentVolume; defaultVolume is of a pod's.
func defaultVolumeObject(v *corev1.PersistentVolume) {
	spec := &v.Spec
	defaultTo(&v.Status.Phase, corev1.VolumePending)
	defaultTo(&spec.PersistentVolumeReclaimPolicy, corev1.PersistentVolumeReclaimRetain)
	defaultPtr(&spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	defaultResourceList(spec.Capacity)
	if s := spec.HostPath; s != nil {
		defaultPtr(&s.Type, corev1.HostPathUnset)
	}
	if s := spec.ISCSI; s != nil {
		defaultTo(&s.ISCSIInterface, "default")
	}
	if s := spec.RBD; s != nil {
		defaultTo(&s.RBDPool, "rbd")
		defaultTo(&s.RadosUser, "admin")
		defaultTo(&s.Keyring, "/etc/ceph/keyring")
	}
	if s := spec.AzureDisk; s != nil {
		defaultPtr(&s.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		defaultPtr(&s.Kind, corev1.AzureSharedBlobDisk)
		defaultPtr(&s.FSType, "ext4")
		defaultPtr(&s.ReadOnly, false)
	}
	if s := spec.ScaleIO; s != nil {
		defaultTo(&s.StorageMode, "ThinProvisioned")
		defaultTo(&s.FSType, "xfs")
	}
}

func defaultStorageClass(c *storagev1.StorageClass) {
	defaultPtr(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
	defaultPtr(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
}

func defaultCSIDriver(d *storagev1.CSIDriver) {
	spec := &d.Spec
	defaultPtr(&spec.AttachRequired, true)
	defaultPtr(&spec.PodInfoOnMount, false)
	defaultPtr(&spec.StorageCapacity, false)
	defaultPtr(&spec.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	defaultPtr(&spec.RequiresRepublish, false)
	defaultPtr(&spec.SELinuxMount, false)
	if len(spec.VolumeLifecycleModes) == 0 {
		spec.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
}
