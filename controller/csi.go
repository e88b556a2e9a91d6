package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/csi"
	"conclave/api/kinds"
)

// newCSI makes the controller calls of those drivers that ask the cluster to
// make them, by an annotation of their CSIDriver: it makes, attaches, grows and
// removes their volumes, in place of the sidecars that most drivers bring. A
// call goes to a node on which the driver has registered.
//
// Every step is repeated until it is noted that it is done: drivers promise
// that a call made twice does what it does once.
func newCSI(e *env) *Controller {
	c := csiController{e}
	return &Controller{
		Name:    "csi",
		Workers: 4,
		Inputs: []Input{
			{claims, c.keysOfClaim},
			{snapshots, func(change Change) []Key {
				return c.waitingFor(snapshotv1.GroupName, "VolumeSnapshot", change.either())
			}},
			{volumes, func(change Change) []Key { return []Key{keyIn(volumes, change.either())} }},
			{attachments, c.keysOfAttachment},
			{csiNodes, c.keysOfCSINode},
			{csiDrivers, func(change Change) []Key { return c.keysOfDriver(change.either().GetName()) }},
		},
		Outputs: []Output{
			{volumes, "objects of CSI drivers"}, {volumes, "finalizer " + finalizerProvisioner}, {volumes, "spec.capacity of CSI drivers"},
			{claims, "status.conditions of CSI drivers"}, {claims, "finalizer " + finalizerCloned}, {claims, "node of volumes that begin with what one node has"}, {attachments, "status"}, {attachments, "finalizer " + finalizerAttacher},
		},
		Reconcile: c.reconcile,
	}
}

const (
	csiComponent = "csi"
	// The sidecars' own names: who knows them knows what they keep.
	finalizerProvisioner = "external-provisioner.volume.kubernetes.io/finalizer"
	finalizerAttacher    = "conclave.io/csi-attacher"
	// What begins so in a class is for whoever calls the driver, not for it.
	csiParameter = "csi.storage.k8s.io/"

	deletionSecretName      = "volume.kubernetes.io/provisioner-deletion-secret-name"
	deletionSecretNamespace = "volume.kubernetes.io/provisioner-deletion-secret-namespace"

	csiCallWait = 2 * time.Minute
)

type csiController struct{ *env }

// keysOfAttachment are the attachment, and its volume, which may have waited to
// be removed.
func (c csiController) keysOfAttachment(change Change) []Key {
	a := change.either().(*storagev1.VolumeAttachment)
	keys := []Key{keyIn(attachments, a)}
	if name := a.Spec.Source.PersistentVolumeName; name != nil && change.New == nil {
		keys = append(keys, Key{Resource: volumes, Name: *name})
	}
	return keys
}

func (c csiController) keysOfCSINode(change Change) (keys []Key) {
	for _, d := range change.either().(*storagev1.CSINode).Spec.Drivers {
		keys = append(keys, c.keysOfDriver(d.Name)...)
	}
	return keys
}

// keysOfDriver is all that may wait for a driver.
func (c csiController) keysOfDriver(name string) (keys []Key) {
	if !c.ours(name) {
		return nil
	}
	for _, claim := range list[*corev1.PersistentVolumeClaim](c.cache, claims, "") {
		if unfinished(claim) {
			keys = append(keys, keyIn(claims, claim))
		}
	}
	for _, v := range list[*corev1.PersistentVolume](c.cache, volumes, "") {
		if v.Spec.CSI != nil && v.Spec.CSI.Driver == name {
			keys = append(keys, keyIn(volumes, v))
		}
	}
	for _, a := range list[*storagev1.VolumeAttachment](c.cache, attachments, "") {
		if a.Spec.Attacher == name {
			keys = append(keys, keyIn(attachments, a))
		}
	}
	return keys
}

// ours says whether a driver wants the cluster to make its controller calls.
func (c csiController) ours(driver string) bool {
	d, ok := get[*storagev1.CSIDriver](c.cache, csiDrivers, "", driver)
	return ok && d.Annotations[api.AnnotationControllerCalls] == "true" && c.CallDriver != nil
}

func (c csiController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, csiCallWait)
	defer cancel()
	switch key.Resource {
	case claims:
		claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, key.Namespace, key.Name)
		if !ok {
			return 0, nil
		}
		if err := c.letGo(ctx, claim); err != nil {
			return 0, err
		}
		switch {
		case claim.DeletionTimestamp != nil:
			return 0, nil
		case api.Bound(claim):
			return 0, c.grow(ctx, claim)
		}
		return 0, c.provision(ctx, claim)
	case volumes:
		if v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", key.Name); ok {
			return 0, c.remove(ctx, v)
		}
	case attachments:
		if a, ok := get[*storagev1.VolumeAttachment](c.cache, attachments, "", key.Name); ok && c.ours(a.Spec.Attacher) {
			return 0, c.attachment(ctx, a)
		}
	}
	return 0, nil
}

func (c csiController) tell(o api.Object, kind, reason, format string, args ...any) {
	c.events.record(csiComponent, about(o), kind, reason, format, args...)
}

// at finds a node through which a driver can be called. v is the volume that
// the call is about: a driver may keep it where it is.
func (c csiController) at(driver string, v *corev1.PersistentVolume, preferred string) (csi.Caller, error) {
	return c.among(driver, preferred, func(n *corev1.Node) bool { return v == nil || api.Fits(v, n) })
}

// on is at for what one node has, as long as there is that node: any other one
// would do if none is named, and after that nobody knows better.
func (c csiController) on(driver, node string) (csi.Caller, error) {
	_, there := get[*corev1.Node](c.cache, nodes, "", node)
	return c.among(driver, node, func(n *corev1.Node) bool { return !there || n.Name == node })
}

// nodesOf are the nodes on which a driver has registered.
func (c csiController) nodesOf(driver string) (names []string) {
	for _, n := range list[*storagev1.CSINode](c.cache, csiNodes, "") {
		if csiEntry(n, driver) != nil {
			names = append(names, n.Name)
		}
	}
	return names
}

func (c csiController) among(driver, preferred string, which func(*corev1.Node) bool) (csi.Caller, error) {
	var best *corev1.Node
	for _, name := range c.nodesOf(driver) {
		node, ok := get[*corev1.Node](c.cache, nodes, "", name)
		if !ok || c.states.of(node) != Alive || !which(node) {
			continue
		}
		if best == nil || node.Name == preferred || best.Name != preferred && node.Name < best.Name {
			best = node
		}
	}
	if best == nil {
		return nil, fmt.Errorf("driver %s runs on no node that can be asked", driver)
	}
	return func(ctx context.Context, method string, request []byte) ([]byte, error) {
		return c.CallDriver(ctx, best.Name, best.Annotations[nodeIDAnnotation], driver, method, request)
	}, nil
}

// csiEntry is what a node says of a driver, nil if it has none of that name.
func csiEntry(n *storagev1.CSINode, driver string) *storagev1.CSINodeDriver {
	for i := range n.Spec.Drivers {
		if n.Spec.Drivers[i].Name == driver {
			return &n.Spec.Drivers[i]
		}
	}
	return nil
}

// secretOf reads a secret for a driver, nil if none is named.
func (c csiController) secretOf(ctx context.Context, ref *corev1.SecretReference) (map[string]string, error) {
	if ref == nil || ref.Name == "" {
		return nil, nil
	}
	o, err := c.peek(ctx, secrets, ref.Namespace, ref.Name)
	if err != nil {
		return nil, err
	}
	s, ok := o.(*corev1.Secret)
	if !ok {
		return nil, fmt.Errorf("secret %s/%s of the driver is not there", ref.Namespace, ref.Name)
	}
	data := make(map[string]string, len(s.Data))
	for k, v := range s.Data {
		data[k] = string(v)
	}
	return data, nil
}

// Making volumes.

// provision makes the volume of a claim that asks a driver for one.
func (c csiController) provision(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	class, ok := get[*storagev1.StorageClass](c.cache, storageClasses, "", kinds.ClaimClass(claim))
	if !ok || !c.ours(class.Provisioner) || claim.Spec.VolumeName != "" {
		return nil
	}
	driver, selected := class.Provisioner, claim.Annotations[api.AnnotationSelectedNode]
	fail := func(err error) error {
		c.tell(claim, corev1.EventTypeWarning, "ProvisioningFailed", "failed to provision volume with StorageClass %q: %v", class.Name, rootCause(err))
		return err
	}
	from, err := c.originOf(claim, driver)
	if err != nil {
		return fail(err)
	}
	if from != nil {
		if placed, err := c.place(ctx, claim, class, from); placed || err != nil {
			return err // which brings it here again
		}
	}
	if claim.Annotations[api.AnnotationProvisioner] != driver || api.Waits(class) && selected == "" {
		return nil
	}
	name := "pvc-" + string(claim.UID)
	if o, err := c.peek(ctx, volumes, "", name); o != nil || err != nil {
		return err
	}
	if from != nil && from.volumeID != "" {
		if err := c.hold(ctx, claim); err != nil {
			return err
		}
	}
	v, err := c.make(ctx, claim, class, name, selected, from)
	if err != nil {
		failure := fail(err)
		if csi.IsCode(err, csi.ResourceExhausted) && selected != "" && (from == nil || from.node == "") {
			return volumeController(c).unselect(ctx, claim) // perhaps elsewhere
		}
		return failure
	}
	if _, err := c.create(ctx, volumes, v); err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	c.tell(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume %s", name)
	return nil
}

func (c csiController) make(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass, name, selected string, from *origin) (*corev1.PersistentVolume, error) {
	driver := class.Provisioner
	call, err := c.at(driver, nil, selected)
	if from != nil && from.node != "" {
		selected = from.node
		call, err = c.on(driver, selected)
	}
	if err != nil {
		return nil, err
	}
	can, err := csi.PluginCapabilities(ctx, call)
	if err != nil {
		return nil, err
	}
	controls, err := csi.ControllerCapabilities(ctx, call)
	if err != nil {
		return nil, err
	}
	if !controls[csi.CreateDelete] {
		return nil, fmt.Errorf("driver %s makes no volumes", driver)
	}
	ask := csi.Create{Name: name, Parameters: map[string]string{}}
	words := strings.NewReplacer("${pvc.name}", claim.Name, "${pvc.namespace}", claim.Namespace, "${pv.name}", name)
	own := map[string]string{}
	for k, value := range class.Parameters {
		if key, ok := strings.CutPrefix(k, csiParameter); ok {
			own[key] = words.Replace(value)
		} else {
			ask.Parameters[k] = value
		}
	}
	ref := func(what string) *corev1.SecretReference {
		if own[what+"-secret-name"] == "" {
			return nil
		}
		return &corev1.SecretReference{Namespace: own[what+"-secret-namespace"], Name: own[what+"-secret-name"]}
	}
	if ask.Secrets, err = c.secretOf(ctx, ref("provisioner")); err != nil {
		return nil, err
	}
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	ask.Required = request.Value()
	if limit, ok := claim.Spec.Resources.Limits[corev1.ResourceStorage]; ok {
		ask.Limit = limit.Value()
	}
	ask.Capability = csi.Capability{
		Block: kinds.IsBlock(claim.Spec.VolumeMode),
		Mode:  csi.ModeOf(claim.Spec.AccessModes, controls[csi.SingleNodeMulti]), MountFlags: class.MountOptions,
	}
	if !ask.Capability.Block {
		ask.Capability.FSType = cmp.Or(own["fstype"], "ext4")
	}
	if from != nil {
		switch ask.CloneOf, ask.SnapshotID = from.volumeID, from.snapshotID; {
		case ask.CloneOf != "" && !controls[csi.CloneVolume]:
			return nil, fmt.Errorf("CSI driver %s does not support clone volume", driver)
		case ask.SnapshotID != "" && !controls[csi.CreateDeleteSnapshot]:
			return nil, fmt.Errorf("CSI driver %s does not support snapshots", driver)
		}
	}
	if can[csi.Accessibility] {
		ask.Requisite, ask.Preferred = c.topologies(driver, class, selected)
	}
	made, err := csi.CreateVolume(ctx, call, ask)
	if err != nil {
		return nil, err
	}
	if made.ID == "" {
		return nil, errors.New("the driver gave its volume no id")
	}
	policy, mode := corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeFilesystem
	if class.ReclaimPolicy != nil {
		policy = *class.ReclaimPolicy
	}
	if ask.Capability.Block {
		mode = corev1.PersistentVolumeBlock
	}
	v := &corev1.PersistentVolume{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Finalizers: []string{finalizerProvisioner}, Annotations: map[string]string{api.AnnotationProvisionedBy: driver},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(cmp.Or(made.Capacity, ask.Required), resource.BinarySI)},
			AccessModes: claim.Spec.AccessModes, PersistentVolumeReclaimPolicy: policy, StorageClassName: class.Name, VolumeMode: &mode,
			MountOptions: class.MountOptions, ClaimRef: about(claim), NodeAffinity: affinityOf(made.Accessible),
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: driver, VolumeHandle: made.ID, VolumeAttributes: made.Context, FSType: ask.Capability.FSType,
				ControllerPublishSecretRef: ref("controller-publish"), NodeStageSecretRef: ref("node-stage"), NodePublishSecretRef: ref("node-publish"),
				ControllerExpandSecretRef: ref("controller-expand"), NodeExpandSecretRef: ref("node-expand"),
			}},
		},
	}
	if s := ref("provisioner"); s != nil {
		v.Annotations[deletionSecretName], v.Annotations[deletionSecretNamespace] = s.Name, s.Namespace
	}
	return v, nil
}

// topologies are where a volume may be: where the pod will run, if that is
// known, or else wherever the driver is and the class allows.
func (c csiController) topologies(driver string, class *storagev1.StorageClass, selected string) (requisite, preferred []map[string]string) {
	for _, n := range list[*storagev1.CSINode](c.cache, csiNodes, "") {
		entry := csiEntry(n, driver)
		node, ok := get[*corev1.Node](c.cache, nodes, "", n.Name)
		if entry == nil || !ok || selected != "" && n.Name != selected || !api.Allows(class, node) {
			continue
		}
		segments := map[string]string{}
		for _, key := range entry.TopologyKeys {
			if value, ok := node.Labels[key]; ok {
				segments[key] = value
			}
		}
		if len(segments) > 0 && !slices.ContainsFunc(requisite, func(other map[string]string) bool { return maps.Equal(other, segments) }) {
			requisite = append(requisite, segments)
		}
	}
	return requisite, requisite
}

func affinityOf(accessible []map[string]string) *corev1.VolumeNodeAffinity {
	var terms []corev1.NodeSelectorTerm
	for _, segments := range accessible {
		var term corev1.NodeSelectorTerm
		for _, key := range slices.Sorted(maps.Keys(segments)) {
			term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{Key: key, Operator: corev1.NodeSelectorOpIn, Values: []string{segments[key]}})
		}
		if len(term.MatchExpressions) > 0 {
			terms = append(terms, term)
		}
	}
	if len(terms) == 0 {
		return nil
	}
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: terms}}
}

// remove removes a volume whose claim is gone, if that is its policy, and lets
// go of its object.
func (c csiController) remove(ctx context.Context, v *corev1.PersistentVolume) error {
	driver := v.Annotations[api.AnnotationProvisionedBy]
	if v.Spec.CSI == nil || driver != v.Spec.CSI.Driver || !c.ours(driver) {
		return nil
	}
	released := v.Status.Phase == corev1.VolumeReleased && v.Spec.ClaimRef != nil
	if v.DeletionTimestamp == nil && !released || v.Status.Phase == corev1.VolumeBound || slices.Contains(v.Finalizers, api.FinalizerVolume) && v.DeletionTimestamp != nil {
		return nil
	}
	if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
		if v.DeletionTimestamp == nil {
			return nil
		}
		return dropFinalizer(ctx, c.env, volumes, v, finalizerProvisioner)
	}
	if len(indexed[*storagev1.VolumeAttachment](c.cache, attachments, attachmentsByVolume, v.Name)) > 0 {
		return nil // once it is detached everywhere
	}
	if v.Spec.ClaimRef != nil { // what follows destroys data
		if claim, err := volumeController(c).claimOf(ctx, v.Spec.ClaimRef); claim != nil || err != nil {
			return err
		}
	}
	call, err := c.at(driver, v, "")
	if err == nil {
		var with map[string]string
		if with, err = c.secretOf(ctx, &corev1.SecretReference{Namespace: v.Annotations[deletionSecretNamespace], Name: v.Annotations[deletionSecretName]}); err == nil {
			err = csi.DeleteVolume(ctx, call, v.Spec.CSI.VolumeHandle, with)
		}
	}
	if err != nil {
		c.tell(v, corev1.EventTypeWarning, "VolumeFailedDelete", "%v", err)
		return err
	}
	if v.DeletionTimestamp == nil {
		if err := c.delete(ctx, volumes, v, metav1.DeleteOptions{}); err != nil {
			return err
		}
		now, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", v.Name)
		if !ok {
			return nil
		}
		v = now
	}
	return dropFinalizer(ctx, c.env, volumes, v, finalizerProvisioner)
}

// Growing.

func (c csiController) grow(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", claim.Spec.VolumeName)
	if !ok || v.Spec.CSI == nil || !c.ours(v.Spec.CSI.Driver) || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != claim.UID {
		return nil
	}
	asks, has := claim.Spec.Resources.Requests[corev1.ResourceStorage], v.Spec.Capacity[corev1.ResourceStorage]
	if asks.Cmp(has) <= 0 {
		return nil
	}
	call, err := c.at(v.Spec.CSI.Driver, v, "")
	if err != nil {
		return err
	}
	can, err := csi.ControllerCapabilities(ctx, call)
	if err != nil {
		return err
	}
	size, onNode := asks.Value(), true
	if can[csi.ExpandVolume] {
		with, err := c.secretOf(ctx, v.Spec.CSI.ControllerExpandSecretRef)
		if err != nil {
			return err
		}
		c.tell(claim, corev1.EventTypeNormal, "Resizing", "the driver %s is resizing volume %s", v.Spec.CSI.Driver, v.Name)
		size, onNode, err = csi.ControllerExpand(ctx, call, v.Spec.CSI.VolumeHandle, asks.Value(), csi.Capability{
			Block: kinds.IsBlock(v.Spec.VolumeMode), FSType: v.Spec.CSI.FSType, MountFlags: v.Spec.MountOptions,
			Mode: csi.ModeOf(v.Spec.AccessModes, can[csi.SingleNodeMulti]),
		}, with)
		if err != nil {
			c.tell(claim, corev1.EventTypeWarning, "VolumeResizeFailed", "resize volume %q by the driver %s failed: %v", v.Name, v.Spec.CSI.Driver, err)
			return err
		}
	}
	status := *claim.Status.DeepCopy()
	now := *resource.NewQuantity(max(size, asks.Value()), resource.BinarySI)
	if onNode {
		// Before the volume's size is written, which is what the node goes by.
		status.Conditions = []corev1.PersistentVolumeClaimCondition{{
			Type: corev1.PersistentVolumeClaimFileSystemResizePending, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(c.Now()),
			Message: "Waiting for user to (re-)start a pod to finish file system resize of volume on node.",
		}}
		c.tell(claim, corev1.EventTypeNormal, "FileSystemResizeRequired", "Require file system resize of volume on node")
	} else {
		if status.Capacity == nil {
			status.Capacity = corev1.ResourceList{}
		}
		status.Capacity[corev1.ResourceStorage], status.Conditions = now, nil
	}
	if err := volumeController(c).setClaimStatus(ctx, claim, status); err != nil {
		return err
	}
	v = edit(v)
	v.Spec.Capacity[corev1.ResourceStorage] = now
	if _, err := c.update(ctx, volumes, v); err != nil {
		return err
	}
	if !onNode {
		c.tell(claim, corev1.EventTypeNormal, "VolumeResizeSuccessful", "Resize volume succeeded")
	}
	return nil
}

// Attaching.

// attachment does what an attachment stands for.
func (c csiController) attachment(ctx context.Context, a *storagev1.VolumeAttachment) error {
	if a.Spec.Source.PersistentVolumeName == nil {
		return nil
	}
	held := slices.Contains(a.Finalizers, finalizerAttacher)
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", *a.Spec.Source.PersistentVolumeName)
	switch {
	case a.DeletionTimestamp != nil && held:
		if ok && v.Spec.CSI != nil {
			if err := c.detach(ctx, a, v); err != nil {
				return c.attachFailed(ctx, a, &a.Status.DetachError, err)
			}
		}
		return dropFinalizer(ctx, c.env, attachments, a, finalizerAttacher)
	case a.DeletionTimestamp != nil || a.Status.Attached || !ok || v.Spec.CSI == nil:
		return nil
	case !held:
		a = edit(a)
		a.Finalizers = append(a.Finalizers, finalizerAttacher)
		written, err := c.update(ctx, attachments, a)
		if err != nil {
			return err
		}
		a = written.(*storagev1.VolumeAttachment)
	}
	told, err := c.attach(ctx, a, v)
	if err != nil {
		return c.attachFailed(ctx, a, &a.Status.AttachError, err)
	}
	a = edit(a)
	a.Status = storagev1.VolumeAttachmentStatus{Attached: true, AttachmentMetadata: told}
	_, err = c.update(ctx, attachments, a, "status")
	return err
}

// attachFailed says why, unless it is said, and fails.
func (c csiController) attachFailed(ctx context.Context, a *storagev1.VolumeAttachment, where **storagev1.VolumeError, why error) error {
	if *where != nil && (*where).Message == why.Error() {
		return why
	}
	changed := edit(a)
	problem := &storagev1.VolumeError{Time: metav1.NewTime(c.Now()), Message: why.Error()}
	if where == &a.Status.AttachError {
		changed.Status.AttachError = problem
	} else {
		changed.Status.DetachError = problem
	}
	if equality.Semantic.DeepEqual(changed.Status, a.Status) {
		return why
	}
	_, err := c.update(ctx, attachments, changed, "status")
	return errors.Join(why, err)
}

// mustAttach says whether a driver has anything to do to attach a volume, and
// how it calls the node.
func (c csiController) mustAttach(ctx context.Context, a *storagev1.VolumeAttachment, v *corev1.PersistentVolume) (call csi.Caller, can map[csi.ControllerCapability]bool, nodeID string, err error) {
	if call, err = c.at(a.Spec.Attacher, v, a.Spec.NodeName); err != nil {
		return nil, nil, "", err
	}
	plugin, err := csi.PluginCapabilities(ctx, call)
	if err != nil || !plugin[csi.ControllerService] {
		return nil, nil, "", err
	}
	if can, err = csi.ControllerCapabilities(ctx, call); err != nil || !can[csi.PublishUnpublish] {
		return nil, nil, "", err
	}
	n, ok := get[*storagev1.CSINode](c.cache, csiNodes, "", a.Spec.NodeName)
	if ok {
		if entry := csiEntry(n, a.Spec.Attacher); entry != nil {
			return call, can, entry.NodeID, nil
		}
	}
	return call, can, "", nil
}

func (c csiController) attach(ctx context.Context, a *storagev1.VolumeAttachment, v *corev1.PersistentVolume) (map[string]string, error) {
	call, can, nodeID, err := c.mustAttach(ctx, a, v)
	switch {
	case err != nil:
		return nil, err
	case call == nil:
		return nil, nil
	case nodeID == "":
		return nil, fmt.Errorf("driver %s has not registered with node %s", a.Spec.Attacher, a.Spec.NodeName)
	}
	with, err := c.secretOf(ctx, v.Spec.CSI.ControllerPublishSecretRef)
	if err != nil {
		return nil, err
	}
	return csi.ControllerPublish(ctx, call, csi.Publish{
		VolumeID: v.Spec.CSI.VolumeHandle, NodeID: nodeID, ReadOnly: v.Spec.CSI.ReadOnly, Secrets: with, Context: v.Spec.CSI.VolumeAttributes,
		Capability: csi.Capability{
			Block: kinds.IsBlock(v.Spec.VolumeMode), FSType: v.Spec.CSI.FSType, MountFlags: v.Spec.MountOptions,
			Mode: csi.ModeOf(v.Spec.AccessModes, can[csi.SingleNodeMulti]),
		},
	})
}

func (c csiController) detach(ctx context.Context, a *storagev1.VolumeAttachment, v *corev1.PersistentVolume) error {
	call, _, nodeID, err := c.mustAttach(ctx, a, v)
	if err != nil || call == nil {
		return err
	}
	with, err := c.secretOf(ctx, v.Spec.CSI.ControllerPublishSecretRef)
	if err != nil {
		return err
	}
	// Of a node that is gone the id is not known any more: it is its name, with
	// most drivers.
	err = csi.ControllerUnpublish(ctx, call, v.Spec.CSI.VolumeHandle, cmp.Or(nodeID, a.Spec.NodeName), with)
	if csi.IsCode(err, csi.NotFound) {
		return nil
	}
	return err
}
