package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// The snapshot controller's and the sidecar's own names: who knows them knows
// what they keep, and the sidecars of drivers go by them.
const (
	snapshotDomain = "snapshot.storage.kubernetes.io/"

	finalizerSnapshotSource = snapshotDomain + "volumesnapshot-as-source-protection"
	finalizerSnapshotBound  = snapshotDomain + "volumesnapshot-bound-protection"
	finalizerContent        = snapshotDomain + "volumesnapshotcontent-bound-protection"
	finalizerSnapshotClaim  = snapshotDomain + "pvc-as-source-protection"

	defaultSnapshotClass    = snapshotDomain + "is-default-class"
	snapshotBeingDeleted    = snapshotDomain + "volumesnapshot-being-deleted"
	snapshotBeingCreated    = snapshotDomain + "volumesnapshot-being-created"
	snapshotModeChange      = snapshotDomain + "allow-volume-mode-change"
	snapshotSecretName      = snapshotDomain + "deletion-secret-name"
	snapshotSecretNamespace = snapshotDomain + "deletion-secret-namespace"
	// labelSnapshotNode of a content is the one node that has the snapshot.
	labelSnapshotNode = snapshotDomain + "managed-by"

	snapshotComponent = "snapshot-controller"
)

// newSnapshots binds VolumeSnapshots to contents, makes the content of one that
// is to be taken of a claim, and does with a content what its deletion policy
// says once its snapshot is deleted. Whoever calls the driver, newCSISnapshots or
// a sidecar, looks at contents alone.
//
// A content names its snapshot from the start, and the snapshot names it in its
// status; only both together are a binding. The name of a content that is made
// here follows from the snapshot's UID, so that nothing is made twice.
func newSnapshots(e *env) *Controller {
	c := snapshotController{e}
	return &Controller{
		Name:    "snapshot",
		Workers: 2,
		Inputs: []Input{
			{snapshots, c.keysOfSnapshot}, {snapshotContents, c.keysOfContent}, {claims, c.keysOfClaim},
			{snapshotClasses, func(Change) []Key {
				return c.keysOf(list[*snapshotv1.VolumeSnapshot](c.cache, snapshots, ""), func(s *snapshotv1.VolumeSnapshot) bool { return boundContent(s) == "" })
			}},
		},
		Outputs: []Output{
			{snapshots, "spec.volumeSnapshotClassName"}, {snapshots, "metadata.finalizers"}, {snapshots, "status"},
			{snapshotContents, "objects"}, {snapshotContents, "spec.volumeSnapshotRef"}, {snapshotContents, "annotation " + snapshotBeingDeleted},
			{claims, "finalizer " + finalizerSnapshotClaim},
		},
		Reconcile: c.reconcile,
	}
}

type snapshotController struct{ *env }

func (c snapshotController) keysOf(all []*snapshotv1.VolumeSnapshot, which func(*snapshotv1.VolumeSnapshot) bool) (keys []Key) {
	for _, s := range all {
		if which(s) {
			keys = append(keys, keyIn(snapshots, s))
		}
	}
	return keys
}

func (c snapshotController) keysOfSnapshot(change Change) []Key {
	s := change.either().(*snapshotv1.VolumeSnapshot)
	keys := []Key{keyIn(snapshots, s)}
	if name := s.Spec.Source.PersistentVolumeClaimName; name != nil {
		keys = append(keys, Key{Resource: claims, Namespace: s.Namespace, Name: *name})
	}
	return keys
}

func (c snapshotController) keysOfContent(change Change) []Key {
	content := change.either().(*snapshotv1.VolumeSnapshotContent)
	ref := content.Spec.VolumeSnapshotRef
	return []Key{keyIn(snapshotContents, content), {Resource: snapshots, Namespace: ref.Namespace, Name: ref.Name}}
}

// keysOfClaim are the snapshots that are to be taken of a claim, the one that it
// is restored from, and the claim.
func (c snapshotController) keysOfClaim(change Change) []Key {
	claim := change.either().(*corev1.PersistentVolumeClaim)
	keys := append(c.keysOf(indexed[*snapshotv1.VolumeSnapshot](c.cache, snapshots, snapshotsByClaim, keyOf(claim).String()),
		func(s *snapshotv1.VolumeSnapshot) bool { return boundContent(s) == "" }), keyIn(claims, claim))
	if s := claim.Spec.DataSource; s != nil && ofSnapshot(s) {
		keys = append(keys, Key{Resource: snapshots, Namespace: claim.Namespace, Name: s.Name})
	}
	return keys
}

func ofSnapshot(s *corev1.TypedLocalObjectReference) bool {
	return s.Kind == "VolumeSnapshot" && s.APIGroup != nil && *s.APIGroup == snapshotv1.GroupName
}

// boundContent is the content that a snapshot says it is bound to, "" if none.
func boundContent(s *snapshotv1.VolumeSnapshot) string {
	if s.Status == nil || s.Status.BoundVolumeSnapshotContentName == nil {
		return ""
	}
	return *s.Status.BoundVolumeSnapshotContentName
}

func (c snapshotController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	switch key.Resource {
	case snapshots:
		s, ok := get[*snapshotv1.VolumeSnapshot](c.cache, snapshots, key.Namespace, key.Name)
		switch {
		case !ok:
		case s.DeletionTimestamp != nil:
			return 0, c.end(ctx, s)
		default:
			return 0, c.snapshot(ctx, s)
		}
	case snapshotContents:
		if content, ok := get[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "", key.Name); ok {
			return 0, c.protect(ctx, content)
		}
	case claims:
		if claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, key.Namespace, key.Name); ok {
			return 0, c.release(ctx, claim)
		}
	}
	return 0, nil
}

func (c snapshotController) tell(o api.Object, kind, reason, format string, args ...any) {
	c.events.record(snapshotComponent, about(o), kind, reason, format, args...)
}

// refusal is why a snapshot cannot be bound: it is said in an event of this
// reason and in the snapshot's status.
type refusal struct{ reason, message string }

func (r refusal) Error() string { return r.message }

func refuse(reason, format string, args ...any) error {
	return refusal{reason, fmt.Sprintf(format, args...)}
}

// snapshot brings a snapshot to its content, and its status up to that.
func (c snapshotController) snapshot(ctx context.Context, s *snapshotv1.VolumeSnapshot) error {
	if !slices.Contains(s.Finalizers, finalizerSnapshotSource) || !slices.Contains(s.Finalizers, finalizerSnapshotBound) {
		changed := edit(s)
		for _, f := range []string{finalizerSnapshotSource, finalizerSnapshotBound} {
			if !slices.Contains(changed.Finalizers, f) {
				changed.Finalizers = append(changed.Finalizers, f)
			}
		}
		written, err := c.update(ctx, snapshots, changed)
		if err != nil {
			return ignoreGone(err)
		}
		s = written.(*snapshotv1.VolumeSnapshot)
	}
	find := c.given
	if s.Spec.Source.PersistentVolumeClaimName != nil {
		find = c.taken
	}
	content, err := find(ctx, s)
	var why refusal
	if errors.As(err, &why) {
		return c.fail(ctx, s, why) // what may change it brings us here again
	}
	if err != nil || content == nil {
		return err
	}
	return c.report(ctx, s, content)
}

// given is the content that a snapshot names, bound to it.
func (c snapshotController) given(ctx context.Context, s *snapshotv1.VolumeSnapshot) (*snapshotv1.VolumeSnapshotContent, error) {
	name := *s.Spec.Source.VolumeSnapshotContentName
	content, ok := get[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "", name)
	if !ok {
		return nil, refuse("SnapshotContentMissing", "VolumeSnapshotContent %s is missing", name)
	}
	ref := content.Spec.VolumeSnapshotRef
	switch {
	case content.Spec.Source.SnapshotHandle == nil:
		return nil, refuse("SnapshotContentMismatch", "VolumeSnapshotContent %s is dynamically provisioned while expecting a pre-provisioned one", name)
	case ref.Name != s.Name || ref.Namespace != s.Namespace || ref.UID != "" && ref.UID != s.UID:
		return nil, refuse("SnapshotContentMisbound", "VolumeSnapshotContent [%s] is bound to a different snapshot", name)
	case content.DeletionTimestamp != nil:
		return nil, refuse("SnapshotContentMissing", "VolumeSnapshotContent %s is being deleted", name)
	case ref.UID != "":
		return content, nil
	}
	content = edit(content)
	content.Spec.VolumeSnapshotRef.UID = s.UID
	if content.Spec.VolumeSnapshotClassName == nil {
		content.Spec.VolumeSnapshotClassName = s.Spec.VolumeSnapshotClassName
	}
	written, err := c.update(ctx, snapshotContents, content)
	if err != nil {
		return nil, err
	}
	return written.(*snapshotv1.VolumeSnapshotContent), nil
}

// taken is the content of a snapshot that is to be taken of a claim: it is made
// once, and nothing is made in its place if it goes.
func (c snapshotController) taken(ctx context.Context, s *snapshotv1.VolumeSnapshot) (*snapshotv1.VolumeSnapshotContent, error) {
	name := "snapcontent-" + string(s.UID)
	if content, ok := get[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "", name); ok {
		if content.Spec.VolumeSnapshotRef.UID != s.UID {
			return nil, refuse("SnapshotContentMisbound", "VolumeSnapshotContent [%s] is bound to a different snapshot", name)
		}
		return content, nil
	}
	if boundContent(s) != "" {
		o, err := c.peek(ctx, snapshotContents, "", name)
		if o != nil || err != nil {
			return nil, err // its news are under way
		}
		return nil, refuse("SnapshotContentMissing", "VolumeSnapshotContent is missing")
	}
	claim, v, err := c.source(s)
	if err != nil {
		return nil, err
	}
	class, err := c.classOf(ctx, s, v.Spec.CSI.Driver)
	if err != nil {
		return nil, err
	}
	if s.Spec.VolumeSnapshotClassName == nil {
		s = edit(s)
		s.Spec.VolumeSnapshotClassName = &class.Name
		written, err := c.update(ctx, snapshots, s)
		if err != nil {
			return nil, err
		}
		s = written.(*snapshotv1.VolumeSnapshot)
	}
	if !slices.Contains(claim.Finalizers, finalizerSnapshotClaim) {
		claim = edit(claim)
		claim.Finalizers = append(claim.Finalizers, finalizerSnapshotClaim)
		if _, err := c.update(ctx, claims, claim); err != nil {
			return nil, err
		}
	}
	mode := corev1.PersistentVolumeFilesystem
	if v.Spec.VolumeMode != nil {
		mode = *v.Spec.VolumeMode
	}
	content := &snapshotv1.VolumeSnapshotContent{
		TypeMeta:   metav1.TypeMeta{APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshotContent"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{finalizerContent}},
		Spec: snapshotv1.VolumeSnapshotContentSpec{
			VolumeSnapshotRef: *about(s), DeletionPolicy: class.DeletionPolicy, Driver: class.Driver, VolumeSnapshotClassName: &class.Name,
			Source: snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &v.Spec.CSI.VolumeHandle}, SourceVolumeMode: &mode,
		},
	}
	if ref := snapshotSecret(class, &content.Spec.VolumeSnapshotRef, name, "snapshotter"); ref != nil {
		content.Annotations = map[string]string{snapshotSecretName: ref.Name, snapshotSecretNamespace: ref.Namespace}
	}
	if node := c.onlyNode(v); node != "" {
		content.Labels = map[string]string{labelSnapshotNode: node}
	}
	made, err := c.create(ctx, snapshotContents, content)
	if err != nil {
		return nil, err
	}
	c.tell(s, corev1.EventTypeNormal, "CreatingSnapshot", "Waiting for a snapshot %s to be created by the CSI driver.", keyOf(s))
	return made.(*snapshotv1.VolumeSnapshotContent), nil
}

// source is the claim of which a snapshot is to be taken, and its volume.
func (c snapshotController) source(s *snapshotv1.VolumeSnapshot) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
	const reason = "SnapshotContentCreationFailed"
	name := *s.Spec.Source.PersistentVolumeClaimName
	claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, s.Namespace, name)
	switch {
	case !ok:
		return nil, nil, refuse(reason, "Failed to create snapshot content with error persistentvolumeclaim %q not found", name)
	case claim.DeletionTimestamp != nil:
		return nil, nil, refuse(reason, "Failed to create snapshot content with error the PVC %s is being deleted", name)
	case !api.Bound(claim):
		return nil, nil, refuse(reason, "Failed to create snapshot content with error the PVC %s is not yet bound to a PV, will not attempt to take a snapshot", name)
	}
	v, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", claim.Spec.VolumeName)
	switch {
	case !ok:
		return nil, nil, fmt.Errorf("the volume %s of claim %s is not there", claim.Spec.VolumeName, keyOf(claim))
	case v.Spec.CSI == nil:
		return nil, nil, refuse(reason, "Failed to create snapshot content with error cannot find CSI PersistentVolumeSource for volume %s: only volumes of CSI drivers can have snapshots", v.Name)
	}
	return claim, v, nil
}

// classOf is the class that a snapshot names, or else the default one of its
// driver.
func (c snapshotController) classOf(ctx context.Context, s *snapshotv1.VolumeSnapshot, driver string) (*snapshotv1.VolumeSnapshotClass, error) {
	if name := s.Spec.VolumeSnapshotClassName; name != nil {
		o, err := c.peek(ctx, snapshotClasses, "", *name)
		if err != nil {
			return nil, err
		}
		class, ok := o.(*snapshotv1.VolumeSnapshotClass)
		switch {
		case !ok:
			return nil, refuse("GetSnapshotClassFailed", "Failed to get snapshot class with error volumesnapshotclass.snapshot.storage.k8s.io %q not found", *name)
		case class.Driver != driver:
			return nil, refuse("SnapshotContentCreationFailed", "Failed to create snapshot content with error the snapshot class %s is of driver %s, the volume is of %s", *name, class.Driver, driver)
		}
		return class, nil
	}
	var found []*snapshotv1.VolumeSnapshotClass
	for _, class := range list[*snapshotv1.VolumeSnapshotClass](c.cache, snapshotClasses, "") {
		if class.Annotations[defaultSnapshotClass] == "true" && class.Driver == driver {
			found = append(found, class)
		}
	}
	switch len(found) {
	case 0:
		return nil, refuse("SetDefaultSnapshotClassFailed", "Failed to set default snapshot class with error cannot find default snapshot class")
	case 1:
		return found[0], nil
	}
	return nil, refuse("SetDefaultSnapshotClassFailed", "Failed to set default snapshot class with error %d default snapshot classes were found", len(found))
}

// snapshotSecret is the secret that a class names for a kind of call, nil if it
// names none.
func snapshotSecret(class *snapshotv1.VolumeSnapshotClass, ref *corev1.ObjectReference, content, call string) *corev1.SecretReference {
	words := strings.NewReplacer("${volumesnapshot.name}", ref.Name, "${volumesnapshot.namespace}", ref.Namespace, "${volumesnapshotcontent.name}", content)
	name := words.Replace(class.Parameters[csiParameter+call+"-secret-name"])
	if name == "" {
		return nil
	}
	return &corev1.SecretReference{Name: name, Namespace: words.Replace(class.Parameters[csiParameter+call+"-secret-namespace"])}
}

// onlyNode is the node that a volume's data is on, "" if more than one can reach
// it.
func (e *env) onlyNode(v *corev1.PersistentVolume) (name string) {
	if v.Spec.NodeAffinity == nil {
		return ""
	}
	for _, n := range list[*corev1.Node](e.cache, nodes, "") {
		if !api.Fits(v, n) {
			continue
		}
		if name != "" {
			return ""
		}
		name = n.Name
	}
	return name
}

// fail says why a snapshot cannot be had, unless it is said.
func (c snapshotController) fail(ctx context.Context, s *snapshotv1.VolumeSnapshot, why refusal) error {
	status := snapshotv1.VolumeSnapshotStatus{}
	if s.Status != nil {
		if toldOf(s.Status.Error, why.message) {
			return nil
		}
		status = *s.Status.DeepCopy()
	}
	c.tell(s, corev1.EventTypeWarning, why.reason, "%s", why.message)
	status.Error, status.ReadyToUse = c.problem(why.message), new(false)
	return c.setStatus(ctx, s, status)
}

// problem is an error as a status says it, and toldOf says that it does.
func (e *env) problem(message string) *snapshotv1.VolumeSnapshotError {
	return &snapshotv1.VolumeSnapshotError{Time: new(metav1.NewTime(e.Now()).Rfc3339Copy()), Message: &message}
}

func toldOf(was *snapshotv1.VolumeSnapshotError, message string) bool {
	return was != nil && was.Message != nil && *was.Message == message
}

func (c snapshotController) setStatus(ctx context.Context, s *snapshotv1.VolumeSnapshot, status snapshotv1.VolumeSnapshotStatus) error {
	if s.Status != nil && equality.Semantic.DeepEqual(*s.Status, status) {
		return nil
	}
	s = edit(s)
	s.Status = &status
	_, err := c.update(ctx, snapshots, s, "status")
	return ignoreGone(err)
}

// report says in a snapshot's status what its content has come to.
func (c snapshotController) report(ctx context.Context, s *snapshotv1.VolumeSnapshot, content *snapshotv1.VolumeSnapshotContent) error {
	was := snapshotv1.VolumeSnapshotStatus{}
	if s.Status != nil {
		was = *s.Status
	}
	status := *was.DeepCopy()
	status.BoundVolumeSnapshotContentName = &content.Name
	ready := false
	status.ReadyToUse, status.Error = &ready, nil
	if known := content.Status; known != nil {
		if known.ReadyToUse != nil {
			ready = *known.ReadyToUse
		}
		if known.CreationTime != nil {
			at := metav1.NewTime(time.Unix(0, *known.CreationTime)).Rfc3339Copy()
			status.CreationTime = &at
		}
		if known.RestoreSize != nil {
			status.RestoreSize = resource.NewQuantity(*known.RestoreSize, resource.BinarySI)
		}
		if known.Error != nil && known.Error.Message != nil {
			if status.Error = was.Error; !toldOf(was.Error, *known.Error.Message) {
				c.tell(s, corev1.EventTypeWarning, "SnapshotContentCheckandUpdateFailed", "%s", *known.Error.Message)
				status.Error = c.problem(*known.Error.Message)
			}
		}
		if known.SnapshotHandle != nil && was.CreationTime == nil && status.CreationTime != nil {
			c.tell(s, corev1.EventTypeNormal, "SnapshotCreated", "Snapshot %s was successfully created by the CSI driver.", keyOf(s))
		}
	}
	if ready && (was.ReadyToUse == nil || !*was.ReadyToUse) {
		c.tell(s, corev1.EventTypeNormal, "SnapshotReady", "Snapshot %s is ready to use.", keyOf(s))
	}
	return c.setStatus(ctx, s, status)
}

// protect keeps a content until whoever calls the driver has done what its
// deletion means.
func (c snapshotController) protect(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	if content.DeletionTimestamp != nil || slices.Contains(content.Finalizers, finalizerContent) {
		return nil
	}
	content = edit(content)
	content.Finalizers = append(content.Finalizers, finalizerContent)
	_, err := c.update(ctx, snapshotContents, content)
	return ignoreGone(err)
}

// end lets a snapshot go that is being deleted: once no volume is being made of
// it, and after its content, if that is to go too.
func (c snapshotController) end(ctx context.Context, s *snapshotv1.VolumeSnapshot) error {
	if !slices.Contains(s.Finalizers, finalizerSnapshotSource) && !slices.Contains(s.Finalizers, finalizerSnapshotBound) {
		return nil
	}
	if slices.ContainsFunc(indexed[*corev1.PersistentVolumeClaim](c.cache, claims, claimsBySource, sourceKey(snapshotv1.GroupName, "VolumeSnapshot", s.Namespace, s.Name)), unfinished) {
		c.tell(s, corev1.EventTypeWarning, "SnapshotDeletePending", "Snapshot is being used to restore a PVC")
		return nil
	}
	content, err := c.contentOf(ctx, s)
	if err != nil {
		return err
	}
	if content != nil && content.Annotations[snapshotBeingDeleted] == "" {
		content = edit(content)
		metav1.SetMetaDataAnnotation(&content.ObjectMeta, snapshotBeingDeleted, "yes")
		written, err := c.update(ctx, snapshotContents, content)
		switch {
		case apierrors.IsNotFound(err):
			content = nil
		case err != nil:
			return err
		default:
			content = written.(*snapshotv1.VolumeSnapshotContent)
		}
	}
	if content != nil && content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		if content.DeletionTimestamp == nil {
			if err := c.delete(ctx, snapshotContents, content, metav1.DeleteOptions{}); err != nil {
				return err
			}
		}
		if _, left := get[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "", content.Name); left {
			return nil // its going brings us here again
		}
	}
	s = edit(s)
	s.Finalizers = slices.DeleteFunc(s.Finalizers, func(f string) bool { return f == finalizerSnapshotSource || f == finalizerSnapshotBound })
	_, err = c.update(ctx, snapshots, s)
	return ignoreGone(err)
}

// contentOf is the content that is bound to a snapshot, or would be, nil if there
// is none. What follows may destroy data: the cache's word is not enough.
func (c snapshotController) contentOf(ctx context.Context, s *snapshotv1.VolumeSnapshot) (*snapshotv1.VolumeSnapshotContent, error) {
	name := "snapcontent-" + string(s.UID)
	if given := s.Spec.Source.VolumeSnapshotContentName; given != nil {
		name = *given
	}
	o, err := c.peek(ctx, snapshotContents, "", name)
	if err != nil {
		return nil, err
	}
	content, ok := o.(*snapshotv1.VolumeSnapshotContent)
	if !ok || content.Spec.VolumeSnapshotRef.UID != s.UID {
		return nil, nil
	}
	return content, nil
}

// unfinished says that a claim is waiting for its volume.
func unfinished(claim *corev1.PersistentVolumeClaim) bool {
	return claim.DeletionTimestamp == nil && !api.Bound(claim)
}

// release lets a claim go once no snapshot of it is being taken.
func (c snapshotController) release(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	if !slices.Contains(claim.Finalizers, finalizerSnapshotClaim) {
		return nil
	}
	for _, s := range indexed[*snapshotv1.VolumeSnapshot](c.cache, snapshots, snapshotsByClaim, keyOf(claim).String()) {
		if s.Status == nil || s.Status.ReadyToUse == nil || !*s.Status.ReadyToUse {
			return nil
		}
	}
	return dropFinalizer(ctx, c.env, claims, claim, finalizerSnapshotClaim)
}

func sourceKey(group, kind, namespace, name string) string {
	return group + "/" + kind + " " + namespace + "/" + name
}
