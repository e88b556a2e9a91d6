package controller

import (
	"context"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/kinds"
)

// A volume of class local-path is a folder below a node's data folder. It comes
// to be in three steps, each by who can do it: the scheduler writes into the
// claim where the pod will run; here the PersistentVolume is made, for that
// node and for that claim alone; the node's agent, which follows the volumes
// that name it, makes the folder and says so in an annotation, and only then
// the two are bound. It goes in two: here the PersistentVolume is deleted once
// its claim is gone; the agent removes the data, and then the finalizer that
// kept the object until then. A dead node's volumes wait for it.

// localPath makes the volume of a claim on the node that was selected for it.
// A volume that is being made there is waited for; one elsewhere is given up.
func (c volumeController) localPath(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node) error {
	selected := claim.Annotations[api.AnnotationSelectedNode]
	name := "pvc-" + string(claim.UID)
	v, exists := get[*corev1.PersistentVolume](c.cache, volumes, "", name)
	if why := refuseLocal(claim, class); why != "" {
		c.tell(claim, corev1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %s", class.Name, why)
		return nil
	}
	switch {
	case exists && v.Labels[api.LabelVolumeNode] == selected && node != nil && c.states.of(node) != Dead:
		return nil // its agent is at it
	case exists:
		if v.DeletionTimestamp != nil {
			return nil // once it is gone
		}
		return c.delete(ctx, volumes, v, metav1.DeleteOptions{}) // whose news bring us here again
	case node == nil || node.Annotations[api.AnnotationVolumesDir] == "" || c.states.of(node) == Dead:
		c.tell(claim, corev1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: node %q is not there to make it", class.Name, selected)
		return c.unselect(ctx, claim)
	}
	c.tell(claim, corev1.EventTypeNormal, "Provisioning", "Node %s is making the volume of claim %q", node.Name, keyOf(claim))
	_, err := c.create(ctx, volumes, localVolume(claim, class, node, name))
	return err
}

// refuseLocal says why no folder on a node can be what a claim asks for.
func refuseLocal(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) string {
	switch {
	case !api.Waits(class):
		return "a folder on a node can be made only where a pod runs: the class must have volumeBindingMode WaitForFirstConsumer"
	case slices.ContainsFunc(claim.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod
	}):
		return "a folder on a node has no access modes but ReadWriteOnce and ReadWriteOncePod"
	case kinds.IsBlock(claim.Spec.VolumeMode):
		return "a folder on a node is no block device"
	case claim.Spec.DataSource != nil || claim.Spec.DataSourceRef != nil:
		return "a folder on a node begins empty: it can be made from no dataSource"
	case claim.Spec.Selector != nil:
		return "claim.Spec.Selector is not supported for dynamic provisioning"
	case len(class.MountOptions) > 0:
		return "Provisioner does not support mount options"
	}
	return ""
}

func localVolume(claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, node *corev1.Node, name string) *corev1.PersistentVolume {
	// Whoever looks at the disk wants to know whose folder it is.
	folder := name + "_" + claim.Namespace + "_" + claim.Name
	folder = folder[:min(len(folder), 200)]
	policy := corev1.PersistentVolumeReclaimDelete
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	mode := corev1.PersistentVolumeFilesystem
	host := node.Name
	if label := node.Labels[corev1.LabelHostname]; label != "" {
		host = label
	}
	return &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Finalizers: []string{api.FinalizerLocalPath},
			Labels:      map[string]string{api.LabelVolumeNode: node.Name},
			Annotations: map[string]string{api.AnnotationProvisionedBy: api.LocalPathProvisioner},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: claim.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: claim.Spec.AccessModes, PersistentVolumeReclaimPolicy: policy, StorageClassName: class.Name, VolumeMode: &mode,
			ClaimRef:               about(claim),
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(node.Annotations[api.AnnotationVolumesDir], folder)}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}
}

// abandon lets go of a deleted volume whose data nobody will ever remove:
// because it was never made, or because its node has left the cluster.
func (c volumeController) abandon(ctx context.Context, v *corev1.PersistentVolume) error {
	if !slices.Contains(v.Finalizers, api.FinalizerLocalPath) || slices.Contains(v.Finalizers, api.FinalizerVolume) {
		return nil
	}
	name := v.Labels[api.LabelVolumeNode]
	if made(v) {
		if o, err := c.peek(ctx, nodes, "", name); o != nil || err != nil {
			return err
		}
		c.tell(v, corev1.EventTypeWarning, "VolumeAbandoned", "Node %s has left the cluster: what is left of the data in %s is to be removed there by hand", name, localPathOf(v))
	}
	return dropFinalizer(ctx, c.env, volumes, v, api.FinalizerLocalPath)
}

func localPathOf(v *corev1.PersistentVolume) string {
	if v.Spec.Local == nil {
		return ""
	}
	return v.Spec.Local.Path
}
