package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var statefulSetColumns = append([]metav1.TableColumnDefinition{
	nameColumn,
	text("Ready", "Number of the pod with ready state"),
	ageColumn,
}, workloadColumns[:2]...)

func statefulSetCells(s *appsv1.StatefulSet, now time.Time) []any {
	return append([]any{
		s.Name, fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, replicas(s.Spec.Replicas)), age(s.CreationTimestamp, now),
	}, workloadCells(&s.Spec.Template, s.Spec.Selector)[:2]...)
}

var controllerRevisionColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Controller", "Controller of the object"),
	number("Revision", docs(appsv1.ControllerRevision{}, "revision")),
	ageColumn,
}

func controllerRevisionCells(r *appsv1.ControllerRevision, now time.Time) []any {
	controller := none
	if ref := metav1.GetControllerOfNoCopy(r); ref != nil {
		kind := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).GroupKind()
		controller = strings.ToLower(kind.String()) + "/" + ref.Name
	}
	return []any{r.Name, controller, r.Revision, age(r.CreationTimestamp, now)}
}

var volumeColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Capacity", docs(corev1.PersistentVolumeSpec{}, "capacity")),
	text("Access Modes", docs(corev1.PersistentVolumeSpec{}, "accessModes")),
	text("Reclaim Policy", docs(corev1.PersistentVolumeSpec{}, "persistentVolumeReclaimPolicy")),
	text("Status", docs(corev1.PersistentVolumeStatus{}, "phase")),
	text("Claim", docs(corev1.PersistentVolumeSpec{}, "claimRef")),
	text("StorageClass", "StorageClass of the pv"),
	text("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
	text("Reason", docs(corev1.PersistentVolumeStatus{}, "reason")),
	ageColumn,
	wide(text("VolumeMode", docs(corev1.PersistentVolumeSpec{}, "volumeMode"))),
}

func volumeCells(v *corev1.PersistentVolume, now time.Time) []any {
	claim := ""
	if r := v.Spec.ClaimRef; r != nil {
		claim = r.Namespace + "/" + r.Name
	}
	class := v.Spec.StorageClassName
	if old := v.Annotations[corev1.BetaStorageClassAnnotation]; old != "" {
		class = old
	}
	return []any{
		v.Name, storageOf(v.Spec.Capacity), modes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy),
		phase(string(v.Status.Phase), v), claim, class, className(v.Spec.VolumeAttributesClassName),
		v.Status.Reason, age(v.CreationTimestamp, now), volumeMode(v.Spec.VolumeMode),
	}
}

var claimColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Status", docs(corev1.PersistentVolumeClaimStatus{}, "phase")),
	text("Volume", docs(corev1.PersistentVolumeClaimSpec{}, "volumeName")),
	text("Capacity", docs(corev1.PersistentVolumeClaimStatus{}, "capacity")),
	text("Access Modes", docs(corev1.PersistentVolumeClaimStatus{}, "accessModes")),
	text("StorageClass", "StorageClass of the pvc"),
	text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
	ageColumn,
	wide(text("VolumeMode", docs(corev1.PersistentVolumeClaimSpec{}, "volumeMode"))),
}

func claimCells(c *corev1.PersistentVolumeClaim, now time.Time) []any {
	capacity, access := "", ""
	if c.Spec.VolumeName != "" {
		capacity, access = storageOf(c.Status.Capacity), modes(c.Status.AccessModes)
	}
	class := ClaimClass(c)
	return []any{
		c.Name, phase(string(c.Status.Phase), c), c.Spec.VolumeName, capacity, access, class,
		className(c.Spec.VolumeAttributesClassName), age(c.CreationTimestamp, now), volumeMode(c.Spec.VolumeMode),
	}
}

// ClaimClass is the storage class that a claim asks for, "" for none.
func ClaimClass(c *corev1.PersistentVolumeClaim) string {
	if class, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return ""
}

// phase is an object's phase, unless it is about to go.
func phase(now string, o metav1.Object) string {
	if o.GetDeletionTimestamp() != nil {
		return "Terminating"
	}
	return now
}

func storageOf(l corev1.ResourceList) string {
	q := l[corev1.ResourceStorage]
	return q.String()
}

func className(name *string) string {
	if name == nil {
		return unset
	}
	return *name
}

func volumeMode(m *corev1.PersistentVolumeMode) string {
	if m == nil {
		return unset
	}
	return string(*m)
}

// modes are access modes in kubectl's short words, each once.
func modes(all []corev1.PersistentVolumeAccessMode) string {
	short := []struct {
		mode corev1.PersistentVolumeAccessMode
		name string
	}{
		{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"},
	}
	var names []string
	for _, s := range short {
		if slices.Contains(all, s.mode) {
			names = append(names, s.name)
		}
	}
	return strings.Join(names, ",")
}

var storageClassColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Provisioner", docs(storagev1.StorageClass{}, "provisioner")),
	text("ReclaimPolicy", docs(storagev1.StorageClass{}, "reclaimPolicy")),
	text("VolumeBindingMode", docs(storagev1.StorageClass{}, "volumeBindingMode")),
	text("AllowVolumeExpansion", docs(storagev1.StorageClass{}, "allowVolumeExpansion")),
	ageColumn,
}

func storageClassCells(c *storagev1.StorageClass, now time.Time) []any {
	name := c.Name
	if IsDefaultClass(c) {
		name += " (default)"
	}
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingImmediate
	if c.ReclaimPolicy != nil {
		reclaim = *c.ReclaimPolicy
	}
	if c.VolumeBindingMode != nil {
		binding = *c.VolumeBindingMode
	}
	return []any{name, c.Provisioner, string(reclaim), string(binding), isTrue(c.AllowVolumeExpansion), age(c.CreationTimestamp, now)}
}

// IsDefaultClass says whether claims that name no class get this one.
func IsDefaultClass(c *storagev1.StorageClass) bool {
	return c.Annotations["storageclass.kubernetes.io/is-default-class"] == "true" ||
		c.Annotations["storageclass.beta.kubernetes.io/is-default-class"] == "true"
}

var attachmentColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Attacher", docs(storagev1.VolumeAttachmentSpec{}, "attacher")),
	text("PV", docs(storagev1.VolumeAttachmentSource{}, "persistentVolumeName")),
	text("Node", docs(storagev1.VolumeAttachmentSpec{}, "nodeName")),
	text("Attached", docs(storagev1.VolumeAttachmentStatus{}, "attached")),
	ageColumn,
}

func attachmentCells(a *storagev1.VolumeAttachment, now time.Time) []any {
	volume := ""
	if name := a.Spec.Source.PersistentVolumeName; name != nil {
		volume = *name
	}
	return []any{a.Name, a.Spec.Attacher, volume, a.Spec.NodeName, a.Status.Attached, age(a.CreationTimestamp, now)}
}

var csiDriverColumns = []metav1.TableColumnDefinition{
	nameColumn,
	boolean("AttachRequired", docs(storagev1.CSIDriverSpec{}, "attachRequired")),
	boolean("PodInfoOnMount", docs(storagev1.CSIDriverSpec{}, "podInfoOnMount")),
	boolean("StorageCapacity", docs(storagev1.CSIDriverSpec{}, "storageCapacity")),
	text("TokenRequests", docs(storagev1.CSIDriverSpec{}, "tokenRequests")),
	boolean("RequiresRepublish", docs(storagev1.CSIDriverSpec{}, "requiresRepublish")),
	text("Modes", docs(storagev1.CSIDriverSpec{}, "volumeLifecycleModes")),
	ageColumn,
}

func csiDriverCells(d *storagev1.CSIDriver, now time.Time) []any {
	tokens, list := unset, []string{}
	if d.Spec.TokenRequests != nil {
		for _, r := range d.Spec.TokenRequests {
			list = append(list, r.Audience)
		}
		tokens = strings.Join(list, ",")
	}
	modes := []string{}
	for _, m := range d.Spec.VolumeLifecycleModes {
		modes = append(modes, string(m))
	}
	attach := d.Spec.AttachRequired == nil || *d.Spec.AttachRequired
	return []any{
		d.Name, attach, isTrue(d.Spec.PodInfoOnMount), isTrue(d.Spec.StorageCapacity), tokens,
		isTrue(d.Spec.RequiresRepublish), strings.Join(modes, ","), age(d.CreationTimestamp, now),
	}
}

func boolean(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "boolean", Description: description}
}

var csiNodeColumns = []metav1.TableColumnDefinition{nameColumn, number("Drivers", docs(storagev1.CSINodeSpec{}, "drivers")), ageColumn}

func csiNodeCells(n *storagev1.CSINode, now time.Time) []any {
	return []any{n.Name, int64(len(n.Spec.Drivers)), age(n.CreationTimestamp, now)}
}

var capacityColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("StorageClassName", docs(storagev1.CSIStorageCapacity{}, "storageClassName")),
	text("Capacity", docs(storagev1.CSIStorageCapacity{}, "capacity")),
}

func capacityCells(c *storagev1.CSIStorageCapacity, _ time.Time) []any {
	capacity := unset
	if c.Capacity != nil {
		capacity = c.Capacity.String()
	}
	return []any{c.Name, c.StorageClassName, capacity}
}

var attributesClassColumns = []metav1.TableColumnDefinition{
	nameColumn, text("DriverName", docs(storagev1.VolumeAttributesClass{}, "driverName")), ageColumn,
}

func attributesClassCells(c *storagev1.VolumeAttributesClass, now time.Time) []any {
	return []any{c.Name, c.DriverName, age(c.CreationTimestamp, now)}
}
