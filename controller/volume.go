package controller

import (
	"cmp"
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
	"conclave/api/kinds"
)

const volumeComponent = "persistentvolume-controller"

// newVolumes binds claims to volumes, makes volumes of class local-path, and
// does with a volume what its reclaim policy says once its claim is gone.
//
// A volume and its claim name each other. The volume's name for the claim,
// claimRef with the claim's UID, is written first and decides: the store takes
// only one of two writers. So a crash in between leaves what the next look
// completes.
func newVolumes(e *env) *Controller {
	c := volumeController{e}
	return &Controller{
		Name:    "persistentvolume",
		Workers: 2,
		Inputs: []Input{
			{claims, c.keysOfClaim}, {volumes, c.keysOfVolume}, {storageClasses, c.keysOfClass}, {nodes, c.keysOfNode},
		},
		Outputs: []Output{
			{claims, "spec.volumeName"}, {claims, "spec.storageClassName"}, {claims, "status"},
			{volumes, "spec.claimRef"}, {volumes, "status"}, {volumes, "objects of class local-path"},
		},
		Reconcile: c.reconcile,
	}
}

type volumeController struct{ *env }

func keyIn(r schema.GroupVersionResource, o metav1.Object) Key {
	k := keyOf(o)
	k.Resource = r
	return k
}

func (c volumeController) keysOfClaim(change Change) []Key {
	claim := change.either().(*corev1.PersistentVolumeClaim)
	keys := []Key{keyIn(claims, claim)}
	if claim.Spec.VolumeName != "" {
		keys = append(keys, Key{Resource: volumes, Name: claim.Spec.VolumeName})
	}
	for _, v := range indexed[*corev1.PersistentVolume](c.cache, volumes, volumesByClaim, keyOf(claim).String()) {
		keys = append(keys, keyIn(volumes, v))
	}
	return keys
}

func (c volumeController) keysOfVolume(change Change) (keys []Key) {
	for _, side := range change.sides() {
		v := side.(*corev1.PersistentVolume)
		keys = append(keys, keyIn(volumes, v))
		if ref := v.Spec.ClaimRef; ref != nil {
			keys = append(keys, Key{Resource: claims, Namespace: ref.Namespace, Name: ref.Name})
		}
	}
	if v, ok := change.New.(*corev1.PersistentVolume); ok && v.Spec.ClaimRef == nil {
		keys = append(keys, c.unbound(func(claim *corev1.PersistentVolumeClaim) bool {
			return claim.Spec.VolumeName == v.Name || kinds.ClaimClass(claim) == api.VolumeClass(v)
		})...)
	}
	return keys
}

func (c volumeController) keysOfClass(change Change) []Key {
	name := change.either().GetName()
	return c.unbound(func(claim *corev1.PersistentVolumeClaim) bool {
		return api.Unclassed(claim) || kinds.ClaimClass(claim) == name
	})
}

// keysOfNode are the volumes that are kept on a node: when it is gone or dead,
// nobody may be there to make or to remove them.
func (c volumeController) keysOfNode(change Change) (keys []Key) {
	for _, v := range indexed[*corev1.PersistentVolume](c.cache, volumes, volumesByNode, change.either().GetName()) {
		if v.DeletionTimestamp != nil || !made(v) {
			keys = append(keys, keyIn(volumes, v))
			if ref := v.Spec.ClaimRef; ref != nil {
				keys = append(keys, Key{Resource: claims, Namespace: ref.Namespace, Name: ref.Name})
			}
		}
	}
	return keys
}

func (c volumeController) unbound(which func(*corev1.PersistentVolumeClaim) bool) (keys []Key) {
	for _, claim := range list[*corev1.PersistentVolumeClaim](c.cache, claims, "") {
		if !api.Bound(claim) && which(claim) {
			keys = append(keys, keyIn(claims, claim))
		}
	}
	return keys
}

func (c volumeController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	if key.Resource == volumes {
		v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", key.Name)
		if !ok {
			return 0, nil
		}
		return 0, c.volume(ctx, v)
	}
	claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	if claim.Annotations[api.AnnotationBindCompleted] != "" {
		return 0, c.bound(ctx, claim)
	}
	if claim.DeletionTimestamp != nil {
		return 0, nil // too late for a volume
	}
	return 0, c.unboundClaim(ctx, claim)
}

// made says that the data of a volume exists: for a folder on a node that the
// node has said so.
func made(v *corev1.PersistentVolume) bool {
	return v.Annotations[api.AnnotationProvisionedBy] != api.LocalPathProvisioner || v.Annotations[api.AnnotationVolumeMade] != ""
}

// refersTo says whether a volume is for this claim: of this UID, or, where a
// user wrote the reference, of this name.
func refersTo(v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) bool {
	ref := v.Spec.ClaimRef
	return ref != nil && ref.Namespace == claim.Namespace && ref.Name == claim.Name && (ref.UID == "" || ref.UID == claim.UID)
}

// bestVolume is the volume that a claim should be bound to: one that is meant
// for it, or else the smallest that suits. node is where its pod will run, nil
// if that does not matter; where it does and is not known yet, only a volume
// that is meant for the claim will do.
func bestVolume(claim *corev1.PersistentVolumeClaim, all []*corev1.PersistentVolume, waits bool, node *corev1.Node) *corev1.PersistentVolume {
	var best *corev1.PersistentVolume
	for _, v := range all {
		switch {
		case v.DeletionTimestamp != nil || !made(v) || !api.Suits(v, claim):
		case refersTo(v, claim):
			return v
		case v.Spec.ClaimRef != nil, v.Status.Phase != corev1.VolumeAvailable, waits && (node == nil || !api.Fits(v, node)):
		case best == nil || smaller(v, best):
			best = v
		}
	}
	return best
}

func smaller(a, b *corev1.PersistentVolume) bool {
	x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
	return cmp.Or(x.Cmp(y), cmp.Compare(a.Name, b.Name)) < 0
}

// unboundClaim looks for a volume of a claim that has none.
func (c volumeController) unboundClaim(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if api.Unclassed(claim) {
		if class := api.DefaultClass(list[*storagev1.StorageClass](c.cache, storageClasses, "")); class != nil {
			claim = edit(claim)
			claim.Spec.StorageClassName = &class.Name
			_, err := c.update(ctx, claims, claim) // which brings it here again
			return err
		}
	}
	if claim.Spec.VolumeName != "" {
		return c.namedVolume(ctx, claim)
	}
	class, known, err := c.classOf(ctx, kinds.ClaimClass(claim))
	if err != nil {
		return err
	}
	waits := known && api.Waits(class)
	selected := claim.Annotations[api.AnnotationSelectedNode]
	node, _ := get[*corev1.Node](c.cache, nodes, "", selected)
	if v := bestVolume(claim, list[*corev1.PersistentVolume](c.cache, volumes, ""), waits, node); v != nil {
		return c.bind(ctx, v, claim)
	}
	switch name := kinds.ClaimClass(claim); {
	case name == "":
		c.tell(claim, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
	case !known:
		c.tell(claim, corev1.EventTypeWarning, "ProvisioningFailed", "storageclass.storage.k8s.io %q not found", name)
	case waits && selected == "":
		c.tell(claim, corev1.EventTypeNormal, "WaitForFirstConsumer", "waiting for first consumer to be created before binding")
	case class.Provisioner == api.LocalPathProvisioner:
		return c.localPath(ctx, claim, class, node)
	case class.Provisioner == noProvisioner:
		c.tell(claim, corev1.EventTypeNormal, "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
		return c.unselect(ctx, claim)
	default:
		c.tell(claim, corev1.EventTypeNormal, "ExternalProvisioning", "Waiting for a volume to be created either by the external provisioner '%s' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered.", class.Provisioner)
		if claim.Annotations[api.AnnotationProvisioner] != class.Provisioner {
			claim = edit(claim)
			metav1.SetMetaDataAnnotation(&claim.ObjectMeta, api.AnnotationProvisioner, class.Provisioner)
			_, err := c.update(ctx, claims, claim)
			return err
		}
	}
	return nil
}

// classOf finds a class. A class, its volumes and claims are often made in one
// breath: that the cache does not know it yet must not let a claim be bound as
// if its class did not wait.
func (c volumeController) classOf(ctx context.Context, name string) (class *storagev1.StorageClass, known bool, err error) {
	class, known = get[*storagev1.StorageClass](c.cache, storageClasses, "", name)
	if known || name == "" {
		return class, known, nil
	}
	o, err := c.peek(ctx, storageClasses, "", name)
	class, known = o.(*storagev1.StorageClass)
	return class, known, err
}

const noProvisioner = "kubernetes.io/no-provisioner"

func (c volumeController) tell(o api.Object, kind, reason, format string, args ...any) {
	c.events.record(volumeComponent, about(o), kind, reason, format, args...)
}

// unselect lets the scheduler choose another node for a claim's pod.
func (c volumeController) unselect(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if claim.Annotations[api.AnnotationSelectedNode] == "" {
		return nil
	}
	claim = edit(claim)
	delete(claim.Annotations, api.AnnotationSelectedNode)
	_, err := c.update(ctx, claims, claim)
	return err
}

// namedVolume binds a claim to the volume that it asks for by name.
func (c volumeController) namedVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", claim.Spec.VolumeName)
	switch {
	case !ok:
		return nil // it may come
	case refersTo(v, claim):
		return c.bind(ctx, v, claim)
	case v.Spec.ClaimRef != nil:
		c.tell(claim, corev1.EventTypeWarning, "FailedBinding", "volume %q already bound to a different claim.", v.Name)
	case !api.Suits(v, claim):
		c.tell(claim, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind to requested volume %q: %s", v.Name, api.Mismatch(v, claim))
	default:
		return c.bind(ctx, v, claim)
	}
	return nil
}

// bind makes a volume and a claim each other's. What is so already is not
// written again.
func (c volumeController) bind(ctx context.Context, v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) error {
	if ref := v.Spec.ClaimRef; ref == nil || ref.UID == "" {
		byUs := ref == nil
		v = edit(v)
		v.Spec.ClaimRef = about(claim)
		if byUs {
			metav1.SetMetaDataAnnotation(&v.ObjectMeta, api.AnnotationBoundByController, "yes")
		}
		written, err := c.update(ctx, volumes, v)
		if err != nil {
			return err
		}
		v = written.(*corev1.PersistentVolume)
	}
	v, err := c.grow(ctx, v, claim)
	if err != nil {
		return err
	}
	if err := c.setPhase(ctx, v, corev1.VolumeBound, ""); err != nil {
		return err
	}
	if claim.Spec.VolumeName != v.Name || claim.Annotations[api.AnnotationBindCompleted] == "" {
		claim = edit(claim)
		if claim.Spec.VolumeName == "" {
			metav1.SetMetaDataAnnotation(&claim.ObjectMeta, api.AnnotationBoundByController, "yes")
		}
		claim.Spec.VolumeName = v.Name
		metav1.SetMetaDataAnnotation(&claim.ObjectMeta, api.AnnotationBindCompleted, "yes")
		written, err := c.update(ctx, claims, claim)
		if err != nil {
			return err
		}
		claim = written.(*corev1.PersistentVolumeClaim)
	}
	status := *claim.Status.DeepCopy()
	// How large a driver's volume has become, whoever makes it grow says.
	if v.Spec.CSI == nil || status.Phase != corev1.ClaimBound || status.Capacity == nil {
		status.Capacity = v.Spec.Capacity
	}
	status.Phase, status.AccessModes = corev1.ClaimBound, v.Spec.AccessModes
	return c.setClaimStatus(ctx, claim, status)
}

// grow makes a folder as large as its claim has come to ask: it has no size but
// that of its disk, so the number is all there is to change.
func (c volumeController) grow(ctx context.Context, v *corev1.PersistentVolume, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	has, asks := v.Spec.Capacity[corev1.ResourceStorage], claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if v.Annotations[api.AnnotationProvisionedBy] != api.LocalPathProvisioner || asks.Cmp(has) <= 0 {
		return v, nil
	}
	v = edit(v)
	v.Spec.Capacity[corev1.ResourceStorage] = asks
	written, err := c.update(ctx, volumes, v)
	if err != nil {
		return nil, err
	}
	c.tell(claim, corev1.EventTypeNormal, "VolumeResizeSuccessful", "Resize volume succeeded")
	return written.(*corev1.PersistentVolume), nil
}

func (c volumeController) setClaimStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, status corev1.PersistentVolumeClaimStatus) error {
	if equality.Semantic.DeepEqual(status, claim.Status) {
		return nil
	}
	claim = edit(claim)
	claim.Status = status
	_, err := c.update(ctx, claims, claim, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// setPhase writes the phase of a volume, and since when.
func (c volumeController) setPhase(ctx context.Context, v *corev1.PersistentVolume, phase corev1.PersistentVolumePhase, message string) error {
	if v.Status.Phase == phase && v.Status.Message == message {
		return nil
	}
	v = edit(v)
	if v.Status.Phase != phase {
		now := metav1.NewTime(c.Now()).Rfc3339Copy()
		v.Status.LastPhaseTransitionTime = &now
	}
	v.Status.Phase, v.Status.Message = phase, message
	_, err := c.update(ctx, volumes, v, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// bound looks whether a claim still has its volume.
func (c volumeController) bound(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	lost := func(reason, message string) error {
		if claim.Status.Phase == corev1.ClaimLost {
			return nil
		}
		c.tell(claim, corev1.EventTypeWarning, reason, "%s", message)
		status := *claim.Status.DeepCopy()
		status.Phase, status.AccessModes, status.Capacity = corev1.ClaimLost, nil, nil
		return c.setClaimStatus(ctx, claim, status)
	}
	if claim.Spec.VolumeName == "" {
		return lost("ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
	}
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", claim.Spec.VolumeName)
	if !ok {
		// The cache may be behind with volumes while it is not with claims.
		if o, err := c.peek(ctx, volumes, "", claim.Spec.VolumeName); o != nil || err != nil {
			return err
		}
		return lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
	}
	if v.Spec.ClaimRef != nil && v.Spec.ClaimRef.UID != claim.UID && v.Spec.ClaimRef.UID != "" {
		return lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
	}
	return c.bind(ctx, v, claim)
}

// volume keeps the phase of a volume, and reclaims it.
func (c volumeController) volume(ctx context.Context, v *corev1.PersistentVolume) error {
	if v.DeletionTimestamp != nil {
		if err := c.abandon(ctx, v); err != nil {
			return err
		}
	}
	ref := v.Spec.ClaimRef
	if ref == nil || ref.UID == "" {
		return c.setPhase(ctx, v, corev1.VolumeAvailable, "")
	}
	claim, err := c.claimOf(ctx, ref)
	switch {
	case err != nil:
		return err
	case claim == nil:
		return c.reclaim(ctx, v)
	case claim.Spec.VolumeName == v.Name:
		if claim.Annotations[api.AnnotationBindCompleted] == "" {
			return nil // the claim's turn
		}
		return c.setPhase(ctx, v, corev1.VolumeBound, "")
	case claim.Spec.VolumeName == "":
		if !api.SameMode(v, claim) { // it will never be the claim's
			c.tell(v, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind PersistentVolume to requested PersistentVolumeClaim %q due to incompatible volumeMode.", claim.Name)
			c.tell(claim, corev1.EventTypeWarning, "VolumeMismatch", "Cannot bind PersistentVolume %q to requested PersistentVolumeClaim %q due to incompatible volumeMode.", v.Name, claim.Name)
		}
		return nil // the claim's turn
	}
	// The claim has another volume.
	if v.Annotations[api.AnnotationProvisionedBy] != "" && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
		return c.reclaim(ctx, v)
	}
	v = edit(v)
	if v.Annotations[api.AnnotationBoundByController] != "" {
		v.Spec.ClaimRef = nil
		delete(v.Annotations, api.AnnotationBoundByController)
	} else {
		v.Spec.ClaimRef.UID, v.Spec.ClaimRef.ResourceVersion = "", ""
	}
	_, err = c.update(ctx, volumes, v)
	return err
}

// claimOf finds the very claim that a volume is bound to, nil if it is gone.
func (c volumeController) claimOf(ctx context.Context, ref *corev1.ObjectReference) (*corev1.PersistentVolumeClaim, error) {
	claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, ref.Namespace, ref.Name)
	if !ok || claim.UID != ref.UID {
		// What follows may destroy data: the cache's word is not enough.
		o, err := c.peek(ctx, claims, ref.Namespace, ref.Name)
		if err != nil {
			return nil, err
		}
		if claim, ok = o.(*corev1.PersistentVolumeClaim); !ok || claim.UID != ref.UID {
			return nil, nil
		}
	}
	return claim, nil
}

// reclaim does with a volume whose claim is gone what its policy says.
func (c volumeController) reclaim(ctx context.Context, v *corev1.PersistentVolume) error {
	fail := func(reason, message string) error {
		if v.Status.Phase == corev1.VolumeFailed && v.Status.Message == message {
			return nil
		}
		c.tell(v, corev1.EventTypeWarning, reason, "%s", message)
		return c.setPhase(ctx, v, corev1.VolumeFailed, message)
	}
	by := v.Annotations[api.AnnotationProvisionedBy]
	switch policy := v.Spec.PersistentVolumeReclaimPolicy; {
	case policy == corev1.PersistentVolumeReclaimRecycle:
		return fail("VolumeFailedRecycle", "No recycler plugin found for the volume!")
	case policy == corev1.PersistentVolumeReclaimDelete && by == "":
		return fail("VolumeFailedDelete", `error getting deleter volume plugin for volume "`+v.Name+`": no deletable volume plugin matched`)
	}
	if err := c.setPhase(ctx, v, corev1.VolumeReleased, ""); err != nil {
		return err
	}
	if v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || by != api.LocalPathProvisioner || v.DeletionTimestamp != nil {
		return nil
	}
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", v.Name)
	if !ok {
		return nil
	}
	return c.delete(ctx, volumes, v, metav1.DeleteOptions{})
}

// newVolumeProtection keeps a claim while a pod uses it, and a volume while a
// claim is bound to it.
func newVolumeProtection(e *env) *Controller {
	c := volumeProtection{e}
	deleted := func(r schema.GroupVersionResource) func(Change) []Key {
		return func(change Change) []Key {
			if change.New == nil || change.New.GetDeletionTimestamp() == nil {
				return nil
			}
			return []Key{keyIn(r, change.New)}
		}
	}
	return &Controller{
		Name:      "volume-protection",
		Workers:   2,
		Inputs:    []Input{{claims, deleted(claims)}, {volumes, deleted(volumes)}, {pods, c.keysOfPod}},
		Outputs:   []Output{{claims, "finalizer " + api.FinalizerClaim}, {volumes, "finalizer " + api.FinalizerVolume}},
		Reconcile: c.reconcile,
	}
}

type volumeProtection struct{ *env }

// keysOfPod are the claims that a pod has let go of.
func (c volumeProtection) keysOfPod(change Change) (keys []Key) {
	if change.New != nil && !podFinished(change.New.(*corev1.Pod)) {
		return nil
	}
	pod := change.either().(*corev1.Pod)
	for _, name := range api.ClaimNames(pod) {
		keys = append(keys, Key{Resource: claims, Namespace: pod.Namespace, Name: name})
	}
	return keys
}

func (c volumeProtection) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	o, ok := get[api.Object](c.cache, key.Resource, key.Namespace, key.Name)
	if !ok || o.GetDeletionTimestamp() == nil {
		return 0, nil
	}
	finalizer := api.FinalizerVolume
	switch o := o.(type) {
	case *corev1.PersistentVolume:
		if o.Status.Phase == corev1.VolumeBound {
			return 0, nil
		}
	case *corev1.PersistentVolumeClaim:
		finalizer = api.FinalizerClaim
		if slices.ContainsFunc(indexed[*corev1.Pod](c.cache, pods, podsByClaim, key.Namespace+"/"+key.Name), func(p *corev1.Pod) bool {
			return p.Spec.NodeName != "" && !podFinished(p)
		}) {
			return 0, nil
		}
	}
	return 0, dropFinalizer(ctx, c.env, key.Resource, o, finalizer)
}

func dropFinalizer(ctx context.Context, e *env, r schema.GroupVersionResource, o api.Object, name string) error {
	if !slices.Contains(o.GetFinalizers(), name) {
		return nil
	}
	o = edit(o)
	o.SetFinalizers(slices.DeleteFunc(o.GetFinalizers(), func(f string) bool { return f == name }))
	_, err := e.update(ctx, r, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// newEphemeral makes the claims of pods' ephemeral volumes. They belong to the
// pod and go with it.
func newEphemeral(e *env) *Controller {
	c := ephemeralController{e}
	return &Controller{
		Name:    "ephemeral-volume",
		Workers: 2,
		Inputs: []Input{
			{pods, func(change Change) []Key {
				if change.New == nil || !slices.ContainsFunc(change.New.(*corev1.Pod).Spec.Volumes, func(v corev1.Volume) bool { return v.Ephemeral != nil }) {
					return nil
				}
				return self(change)
			}},
			{claims, func(change Change) []Key {
				if key, ok := controllerKey(change.either(), "Pod"); ok && change.New == nil {
					return []Key{key}
				}
				return nil
			}},
		},
		Outputs:   []Output{{claims, "objects made from ephemeral volumes"}},
		Reconcile: c.reconcile,
	}
}

type ephemeralController struct{ *env }

func (c ephemeralController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	pod, ok := get[*corev1.Pod](c.cache, pods, key.Namespace, key.Name)
	if !ok || pod.DeletionTimestamp != nil || podFinished(pod) {
		return 0, nil
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Ephemeral == nil || v.Ephemeral.VolumeClaimTemplate == nil {
			continue
		}
		name, _ := api.ClaimName(pod, v)
		if have, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, pod.Namespace, name); ok {
			if !metav1.IsControlledBy(have, pod) {
				c.events.record("ephemeral_volume", about(pod), corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: PVC %s/%s was not created for pod %s/%s (pod is not owner)", v.Name, have.Namespace, have.Name, pod.Namespace, pod.Name)
			}
			continue
		}
		t := v.Ephemeral.VolumeClaimTemplate
		_, err := c.create(ctx, claims, &corev1.PersistentVolumeClaim{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: pod.Namespace, Name: name, Labels: t.Labels, Annotations: t.Annotations, OwnerReferences: []metav1.OwnerReference{controllerRef(pod)},
			},
			Spec: *t.Spec.DeepCopy(),
		})
		if err != nil {
			c.events.record("ephemeral_volume", about(pod), corev1.EventTypeWarning, "FailedBinding", "ephemeral volume %s: create PVC %s: %v", v.Name, name, rootCause(err))
			return 0, terminatingIsFine(err)
		}
	}
	return 0, nil
}
