package api

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"

	"conclave/api/kinds"
)

// What the rooms that look after volumes say to one another by way of objects.
// The first half are Kubernetes' words, the second half our own.
const (
	// AnnotationSelectedNode is where a claim's pod is going to run: the
	// scheduler writes it, and volumes that wait for it are made there.
	AnnotationSelectedNode = "volume.kubernetes.io/selected-node"
	// AnnotationBindCompleted says that a claim has found its volume.
	AnnotationBindCompleted = "pv.kubernetes.io/bind-completed"
	// AnnotationBoundByController says that the other side was not named by a user.
	AnnotationBoundByController = "pv.kubernetes.io/bound-by-controller"
	// AnnotationProvisionedBy is who made a volume.
	AnnotationProvisionedBy = "pv.kubernetes.io/provisioned-by"
	// AnnotationProvisioner is who is asked to make a volume for a claim.
	AnnotationProvisioner = "volume.kubernetes.io/storage-provisioner"

	FinalizerClaim  = "kubernetes.io/pvc-protection"
	FinalizerVolume = "kubernetes.io/pv-protection"

	// LocalPathClass is the class that every cluster begins with, and
	// LocalPathProvisioner who makes its volumes: folders on the disk of the
	// node where the pod runs.
	LocalPathClass       = "local-path"
	LocalPathProvisioner = "conclave.io/local-path"
	// AnnotationVolumesDir of a Node is the folder below which it keeps them.
	AnnotationVolumesDir = "conclave.io/volumes-dir"
	// LabelVolumeNode of a PersistentVolume is the node that has its data, and
	// is to make and to remove it.
	LabelVolumeNode = "conclave.io/node"
	// AnnotationVolumeMade says that the node has made the folder. It is never
	// made again: if it is missing, so is what was in it.
	AnnotationVolumeMade = "conclave.io/made"
	// AnnotationControllerCalls of a CSIDriver, "true", asks the cluster to make
	// the driver's controller calls: it brings no sidecars that would.
	AnnotationControllerCalls = "conclave.io/controller-calls"
	// FinalizerLocalPath keeps a PersistentVolume until its data is removed.
	FinalizerLocalPath = "conclave.io/local-path"
)

// annotationMade lists, on the namespace kube-system, what of a cluster's first
// equipment was made once and is the users' since: they may change or delete it.
const annotationMade = "conclave.io/equipped"

// AttachmentName is the name of the VolumeAttachment that stands for a volume
// of a CSI driver on a node, as Kubernetes makes it up.
func AttachmentName(handle, driver, node string) string {
	return "csi-" + VolumeDigest(handle+driver+node)
}

// VolumeDigest is a name without surprises for what may have any.
func VolumeDigest(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// ClaimName is the name of the claim behind a pod's volume.
func ClaimName(pod *corev1.Pod, v *corev1.Volume) (name string, ok bool) {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName, true
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name, true
	}
	return "", false
}

// ClaimNames are the names of all claims that a pod uses.
func ClaimNames(pod *corev1.Pod) (names []string) {
	for i := range pod.Spec.Volumes {
		if name, ok := ClaimName(pod, &pod.Spec.Volumes[i]); ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// Bound says that a claim has its volume.
func Bound(c *corev1.PersistentVolumeClaim) bool {
	return c.Spec.VolumeName != "" && c.Annotations[AnnotationBindCompleted] != ""
}

// Fits says whether a volume can be mounted on a node.
func Fits(v *corev1.PersistentVolume, node *corev1.Node) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return true
	}
	ok, err := corev1helpers.MatchNodeSelectorTerms(node, v.Spec.NodeAffinity.Required)
	return ok && err == nil
}

// Waits says that volumes of a class are made only where a pod wants them.
func Waits(c *storagev1.StorageClass) bool {
	return c.VolumeBindingMode != nil && *c.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}

// Allows says whether volumes of a class may be made on a node.
func Allows(c *storagev1.StorageClass, node *corev1.Node) bool {
	if len(c.AllowedTopologies) == 0 {
		return true
	}
	return slices.ContainsFunc(c.AllowedTopologies, func(t corev1.TopologySelectorTerm) bool {
		return len(t.MatchLabelExpressions) > 0 && !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			return !slices.Contains(r.Values, node.Labels[r.Key])
		})
	})
}

// Suits says whether a volume has what a claim asks for. That it may be taken
// already is another matter.
func Suits(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	return Mismatch(v, c) == ""
}

// Mismatch says what a volume has not of what a claim asks for: size, class,
// mode, access modes or labels. It is empty if there is nothing.
func Mismatch(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) string {
	has, asks := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	switch {
	case has.Cmp(asks) < 0:
		return "requested PV is too small"
	case VolumeClass(v) != kinds.ClaimClass(c):
		return "storageClassName does not match"
	case !SameMode(v, c):
		return "incompatible volumeMode"
	case slices.ContainsFunc(c.Spec.AccessModes, func(m corev1.PersistentVolumeAccessMode) bool { return !slices.Contains(v.Spec.AccessModes, m) }):
		return "incompatible accessMode"
	case c.Spec.Selector == nil:
		return ""
	}
	if s, err := metav1.LabelSelectorAsSelector(c.Spec.Selector); err != nil || !s.Matches(labels.Set(v.Labels)) {
		return "its labels do not match the claim's selector"
	}
	return ""
}

// SameMode says whether a volume is a device where a claim asks for one, and a
// file system where it asks for that.
func SameMode(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	return kinds.IsBlock(v.Spec.VolumeMode) == kinds.IsBlock(c.Spec.VolumeMode)
}

// VolumeClass is the class that a volume is of, "" for none.
func VolumeClass(v *corev1.PersistentVolume) string {
	if class, ok := v.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return class
	}
	return v.Spec.StorageClassName
}

// DefaultClass is the class of claims that name none: the newest of those that
// are marked as default, nil if none is.
func DefaultClass(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var chosen *storagev1.StorageClass
	for _, c := range classes {
		switch {
		case !kinds.IsDefaultClass(c):
		case chosen == nil, chosen.CreationTimestamp.Before(&c.CreationTimestamp),
			chosen.CreationTimestamp.Equal(&c.CreationTimestamp) && c.Name < chosen.Name:
			chosen = c
		}
	}
	return chosen
}

// Unclassed says that a claim leaves the choice of its class to the cluster.
func Unclassed(c *corev1.PersistentVolumeClaim) bool {
	_, old := c.Annotations[corev1.BetaStorageClassAnnotation]
	return c.Spec.StorageClassName == nil && !old
}

// Admission.

func addFinalizer(obj Object, name string) {
	if !slices.Contains(obj.GetFinalizers(), name) {
		obj.SetFinalizers(append(obj.GetFinalizers(), name))
	}
}

func (c *call) storageClass(name string) *storagev1.StorageClass {
	if rec := c.s.cfg.Storage.Get(storageClasses.GroupResource().String(), "", name); rec != nil {
		class, _ := rec.Object().(*storagev1.StorageClass)
		return class
	}
	return nil
}

// admitClaim gives a new claim its class and keeps it while a pod uses it; an
// old one may grow only where its class says so.
func admitClaim(_ context.Context, c *call, obj, old Object) error {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil
	}
	if err := c.checkLimits(claim); err != nil {
		return err
	}
	if old == nil {
		addFinalizer(claim, FinalizerClaim)
		if Unclassed(claim) {
			var all []*storagev1.StorageClass
			records, _ := c.s.cfg.Storage.List(storageClasses.GroupResource().String(), "")
			for _, rec := range records {
				if class, ok := rec.Object().(*storagev1.StorageClass); ok {
					all = append(all, class)
				}
			}
			if class := DefaultClass(all); class != nil {
				claim.Spec.StorageClassName = &class.Name
			}
		}
		return nil
	}
	was := old.(*corev1.PersistentVolumeClaim)
	before, now := was.Spec.Resources.Requests[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if now.Cmp(before) <= 0 {
		return nil
	}
	if was.Status.Phase != corev1.ClaimBound {
		return nil // which validation refuses
	}
	class := c.storageClass(kinds.ClaimClass(was))
	if class == nil || class.AllowVolumeExpansion == nil || !*class.AllowVolumeExpansion {
		return forbiddenObject(c.res.gr(), claim.Name, "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
	}
	return nil
}

// admitVolume keeps a volume while a claim is bound to it.
func admitVolume(_ context.Context, _ *call, obj, old Object) error {
	if old == nil {
		addFinalizer(obj, FinalizerVolume)
	}
	return nil
}

// ensureLocalPath makes the class that every cluster begins with, once in the
// cluster's life.
func ensureLocalPath(ctx context.Context, c Client) error {
	o, err := c.Get(ctx, namespaces, "", metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read namespace %s: %w", metav1.NamespaceSystem, err)
	}
	var made []string
	if list := o.GetAnnotations()[annotationMade]; list != "" {
		made = strings.Split(list, ",")
	}
	if slices.Contains(made, LocalPathClass) {
		return nil
	}
	waits, remove, grow := storagev1.VolumeBindingWaitForFirstConsumer, corev1.PersistentVolumeReclaimDelete, true
	if err := ensure(ctx, c, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: LocalPathClass, Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner: LocalPathProvisioner, VolumeBindingMode: &waits, ReclaimPolicy: &remove, AllowVolumeExpansion: &grow,
	}); err != nil {
		return err
	}
	ns := o.DeepCopyObject().(Object)
	annotations := ns.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[annotationMade] = strings.Join(append(made, LocalPathClass), ",")
	ns.SetAnnotations(annotations)
	if _, err := c.Update(ctx, namespaces, "", ns, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("note on namespace %s that class %s was made: %w", metav1.NamespaceSystem, LocalPathClass, err)
	}
	return nil
}

// What nodes may see and say of volumes.

// usesClaim says whether a pod bound to a node uses a claim.
func (r *nodeRules) usesClaim(node, namespace, name string) bool {
	return r.anyPod(node, namespace, func(p *corev1.Pod) bool { return slices.Contains(ClaimNames(p), name) })
}

// nodeClaims lets a node read the claims, each by its name, that a pod bound to
// it uses.
func (r *nodeRules) nodeClaims(node string, a Attributes) error {
	if a.Subresource == "status" && (a.Verb == "get" || a.Verb == "update" || a.Verb == "patch") && r.usesClaim(node, a.Namespace, a.Name) {
		return nil // that what is on the volume has grown, see authorizeNodeWrite
	}
	if a.Subresource != "" || !slices.Contains(reads, a.Verb) {
		return denied("can only read resources of this type")
	}
	if a.Name == "" || a.Namespace == "" {
		return denied("can only read namespaced object of this type by name")
	}
	if r.usesClaim(node, a.Namespace, a.Name) {
		return nil
	}
	return noRelationship(node, a)
}

// nodeAttachments lets a node read what attaches volumes to it.
func (r *nodeRules) nodeAttachments(node string, a Attributes) error {
	if a.Subresource != "" || !slices.Contains(reads, a.Verb) || a.Name == "" {
		return denied("can only read this type by name")
	}
	rec := r.s.cfg.Storage.Get(attachments.GroupResource().String(), "", a.Name)
	if rec == nil {
		return nil // nobody's secret: the node learns that there is none
	}
	if o, ok := rec.Object().(*storagev1.VolumeAttachment); ok && o.Spec.NodeName == node {
		return nil
	}
	return noRelationship(node, a)
}

// volumeSecret says whether a volume that a pod of the node uses needs a secret
// to be mounted.
func (r *nodeRules) volumeSecret(node, namespace, name string) bool {
	records, _ := r.s.cfg.Storage.List(volumes.Resource, "")
	return slices.ContainsFunc(records, func(rec Record) bool {
		v, ok := rec.Object().(*corev1.PersistentVolume)
		if !ok || v.Spec.CSI == nil || v.Spec.ClaimRef == nil {
			return false
		}
		needs := slices.ContainsFunc([]*corev1.SecretReference{v.Spec.CSI.NodeStageSecretRef, v.Spec.CSI.NodePublishSecretRef, v.Spec.CSI.NodeExpandSecretRef}, func(ref *corev1.SecretReference) bool {
			return ref != nil && ref.Namespace == namespace && ref.Name == name
		})
		return needs && r.usesClaim(node, v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
	})
}

// nodeVolumes lets a node read the volumes that its pods' claims are bound to,
// and those that are kept on it; and say of the latter what it did, see
// authorizeNodeWrite.
func (r *nodeRules) nodeVolumes(node string, a Attributes) error {
	if a.Subresource != "" {
		return denied("")
	}
	if s, err := labels.Parse(a.LabelSelector); err == nil && (a.Verb == "list" || a.Verb == "watch") {
		if on, ok := s.RequiresExactMatch(LabelVolumeNode); ok && on == node {
			return nil
		}
	}
	if a.Name == "" {
		return denied("can only read this type by name, or with the label selector " + LabelVolumeNode)
	}
	rec := r.s.cfg.Storage.Get(volumes.Resource, "", a.Name)
	if rec == nil {
		return nil // nobody's secret: the node learns that there is none
	}
	v, ok := rec.Object().(*corev1.PersistentVolume)
	switch {
	case !ok:
	case v.Labels[LabelVolumeNode] == node && (slices.Contains(reads, a.Verb) || a.Verb == "update" || a.Verb == "patch"):
		return nil
	case !slices.Contains(reads, a.Verb):
		return denied("can only read resources of this type")
	case v.Spec.ClaimRef != nil && r.usesClaim(node, v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name):
		return nil
	}
	return noRelationship(node, a)
}

// nodeClaimWrite refuses any change by a node of a claim, but that of its size
// and of what is said of its growing.
func (c *call) nodeClaimWrite(claim, was *corev1.PersistentVolumeClaim) error {
	if was != nil {
		allowed := was.DeepCopy()
		allowed.Status.Capacity, allowed.Status.Conditions = claim.Status.Capacity, claim.Status.Conditions
		allowed.Status.AllocatedResources, allowed.Status.AllocatedResourceStatuses = claim.Status.AllocatedResources, claim.Status.AllocatedResourceStatuses
		allowed.ResourceVersion, allowed.ManagedFields = claim.ResourceVersion, claim.ManagedFields
		if apiequality.Semantic.DeepEqual(allowed, claim) {
			return nil
		}
	}
	return apierrors.NewForbidden(c.res.gr(), claim.Name, textError("a node may only say how large a claim has become"))
}

// nodeVolumeWrite refuses any change by a node of a volume that is kept on it,
// but these two: that its folder is made, and that its data is gone.
func (c *call) nodeVolumeWrite(node string, v, was *corev1.PersistentVolume) error {
	if was == nil || was.Labels[LabelVolumeNode] != node {
		return apierrors.NewForbidden(c.res.gr(), v.Name, textError("node \""+node+"\" is not allowed to modify volumes of other nodes"))
	}
	allowed := was.DeepCopy()
	if made, ok := v.Annotations[AnnotationVolumeMade]; ok {
		metav1.SetMetaDataAnnotation(&allowed.ObjectMeta, AnnotationVolumeMade, made)
	}
	if !slices.Contains(v.Finalizers, FinalizerLocalPath) {
		allowed.Finalizers = slices.DeleteFunc(allowed.Finalizers, func(f string) bool { return f == FinalizerLocalPath })
	}
	allowed.ResourceVersion, allowed.ManagedFields = v.ResourceVersion, v.ManagedFields
	if !apiequality.Semantic.DeepEqual(allowed, v) {
		return apierrors.NewForbidden(c.res.gr(), v.Name, textError("node \""+node+"\" may only say that the volume's folder is made, or removed"))
	}
	return nil
}
