package controller

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// newAttachDetach keeps one VolumeAttachment for each volume of a CSI driver
// and node whose pods use it. Whoever calls the driver, a sidecar of its own or
// newCSI, follows these objects. A volume is not taken from a node that says
// that it still has it mounted, unless the node is dead: then nothing runs
// there, which is why its pods were given up.
func newAttachDetach(e *env) *Controller {
	c := attachController{e}
	return &Controller{
		Name:    "attachdetach",
		Workers: 2,
		Inputs: []Input{
			{pods, c.keysOfPod}, {claims, c.keysOfClaim}, {volumes, c.keysOfVolume}, {attachments, c.keysOfAttachment},
			{nodes, func(change Change) []Key { return []Key{keyIn(nodes, change.either())} }},
			{csiDrivers, func(Change) (keys []Key) {
				for _, n := range list[*corev1.Node](c.cache, nodes, "") {
					keys = append(keys, keyIn(nodes, n))
				}
				return keys
			}},
		},
		Outputs:   []Output{{attachments, "objects of pods' volumes"}},
		Reconcile: c.reconcile,
	}
}

const attachComponent = "attachdetach-controller"

type attachController struct{ *env }

func nodeKey(name string) Key { return Key{Resource: nodes, Name: name} }

func (c attachController) keysOfPod(change Change) (keys []Key) {
	pod := change.either().(*corev1.Pod)
	if pod.Spec.NodeName != "" && len(api.ClaimNames(pod)) > 0 {
		return []Key{nodeKey(pod.Spec.NodeName)}
	}
	return nil
}

func (c attachController) keysOfClaim(change Change) (keys []Key) {
	for _, p := range indexed[*corev1.Pod](c.cache, pods, podsByClaim, keyOf(change.either()).String()) {
		if p.Spec.NodeName != "" {
			keys = append(keys, nodeKey(p.Spec.NodeName))
		}
	}
	return keys
}

func (c attachController) keysOfVolume(change Change) (keys []Key) {
	v := change.either().(*corev1.PersistentVolume)
	if v.Spec.CSI == nil || v.Spec.ClaimRef == nil {
		return nil
	}
	for _, p := range indexed[*corev1.Pod](c.cache, pods, podsByClaim, v.Spec.ClaimRef.Namespace+"/"+v.Spec.ClaimRef.Name) {
		if p.Spec.NodeName != "" {
			keys = append(keys, nodeKey(p.Spec.NodeName))
		}
	}
	return keys
}

// keysOfAttachment are its node, and those that wait for it to let go.
func (c attachController) keysOfAttachment(change Change) []Key {
	a := change.either().(*storagev1.VolumeAttachment)
	keys := []Key{nodeKey(a.Spec.NodeName)}
	if name := a.Spec.Source.PersistentVolumeName; name != nil && change.New == nil {
		if v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", *name); ok {
			keys = append(keys, c.keysOfVolume(Change{New: v})...)
		}
	}
	return keys
}

// reconcile looks at one node.
func (c attachController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	node, known := get[*corev1.Node](c.cache, nodes, "", key.Name)
	wanted := map[string]*corev1.PersistentVolume{}
	for _, pod := range indexed[*corev1.Pod](c.cache, pods, podsByNode, key.Name) {
		if podFinished(pod) {
			continue
		}
		for _, name := range api.ClaimNames(pod) {
			v := c.volumeOf(pod, name)
			if v == nil {
				continue
			}
			a := api.AttachmentName(v.Spec.CSI.VolumeHandle, v.Spec.CSI.Driver, key.Name)
			if wanted[a] != nil {
				continue
			}
			wanted[a] = v
			if !known || pod.DeletionTimestamp != nil {
				continue // what is there stays, nothing is begun
			}
			if err := c.attach(ctx, a, v, pod); err != nil {
				return 0, err
			}
		}
	}
	for _, a := range indexed[*storagev1.VolumeAttachment](c.cache, attachments, attachmentsByNode, key.Name) {
		if wanted[a.Name] != nil || a.DeletionTimestamp != nil || !c.madeHere(a) {
			continue
		}
		if known && c.states.of(node) != Dead {
			// The cache may be behind with nodes while it is not with pods.
			o, err := c.peek(ctx, nodes, "", key.Name)
			if err != nil {
				return 0, err
			}
			if now, ok := o.(*corev1.Node); ok && c.inUse(now, a) {
				continue // the node's status brings us here again
			}
		}
		if err := c.delete(ctx, attachments, a, metav1.DeleteOptions{}); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// volumeOf is the volume of a driver behind a pod's claim, if it has to be
// attached.
func (c attachController) volumeOf(pod *corev1.Pod, claimName string) *corev1.PersistentVolume {
	claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, pod.Namespace, claimName)
	if !ok || !api.Bound(claim) {
		return nil
	}
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", claim.Spec.VolumeName)
	if !ok || v.Spec.CSI == nil || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != claim.UID {
		return nil
	}
	if d, ok := get[*storagev1.CSIDriver](c.cache, csiDrivers, "", v.Spec.CSI.Driver); ok && d.Spec.AttachRequired != nil && !*d.Spec.AttachRequired {
		return nil
	}
	return v
}

// attach asks for a volume to be attached to a pod's node.
func (c attachController) attach(ctx context.Context, name string, v *corev1.PersistentVolume, pod *corev1.Pod) error {
	if _, ok := get[*storagev1.VolumeAttachment](c.cache, attachments, "", name); ok {
		return nil
	}
	for _, other := range indexed[*storagev1.VolumeAttachment](c.cache, attachments, attachmentsByVolume, v.Name) {
		if other.Spec.NodeName != pod.Spec.NodeName && exclusive(v.Spec.AccessModes) {
			c.events.record(attachComponent, about(pod), corev1.EventTypeWarning, "FailedAttachVolume",
				"Multi-Attach error for volume %q Volume is already exclusively attached to one node and can't be attached to another", v.Name)
			return nil
		}
	}
	_, err := c.create(ctx, attachments, &storagev1.VolumeAttachment{
		TypeMeta:   metav1.TypeMeta{APIVersion: storagev1.SchemeGroupVersion.String(), Kind: "VolumeAttachment"},
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: storagev1.VolumeAttachmentSpec{
			Attacher: v.Spec.CSI.Driver, NodeName: pod.Spec.NodeName, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &v.Name},
		},
	})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// exclusive says that a volume is for one node at a time.
func exclusive(modes []corev1.PersistentVolumeAccessMode) bool {
	return !slices.ContainsFunc(modes, func(m corev1.PersistentVolumeAccessMode) bool {
		return m == corev1.ReadWriteMany || m == corev1.ReadOnlyMany
	})
}

// madeHere tells an attachment of ours from those that others make: by its name.
func (c attachController) madeHere(a *storagev1.VolumeAttachment) bool {
	if a.Spec.Source.PersistentVolumeName == nil {
		return false
	}
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", *a.Spec.Source.PersistentVolumeName)
	if !ok || v.Spec.CSI == nil {
		return len(a.Name) == len(api.AttachmentName("", "", "")) && a.Name[:4] == "csi-"
	}
	return a.Name == api.AttachmentName(v.Spec.CSI.VolumeHandle, v.Spec.CSI.Driver, a.Spec.NodeName)
}

func (c attachController) inUse(node *corev1.Node, a *storagev1.VolumeAttachment) bool {
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", *a.Spec.Source.PersistentVolumeName)
	if !ok || v.Spec.CSI == nil {
		return false
	}
	return slices.Contains(node.Status.VolumesInUse, corev1.UniqueVolumeName("kubernetes.io/csi/"+v.Spec.CSI.Driver+"^"+v.Spec.CSI.VolumeHandle))
}
