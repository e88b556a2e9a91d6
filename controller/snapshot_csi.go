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
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/csi"
)

// newCSISnapshots takes and removes snapshots of those drivers that ask the
// cluster to make their controller calls, in place of a sidecar: it brings the
// status of each content up to what the driver says, and lets one that is deleted
// go when the driver has removed its snapshot, or has to keep it.
func newCSISnapshots(e *env) *Controller {
	c := csiSnapshots{csiController{e}}
	return &Controller{
		Name:    "csi-snapshot",
		Workers: 4,
		Inputs: []Input{
			{snapshotContents, self},
			{csiNodes, func(change Change) (keys []Key) {
				for _, d := range change.either().(*storagev1.CSINode).Spec.Drivers {
					keys = append(keys, c.keysOf(d.Name)...)
				}
				return keys
			}},
			{csiDrivers, func(change Change) []Key { return c.keysOf(change.either().GetName()) }},
		},
		Outputs: []Output{
			{snapshotContents, "status"}, {snapshotContents, "finalizer " + finalizerContent},
			{snapshotContents, "annotation " + snapshotBeingCreated}, {snapshotContents, "label " + labelSnapshotNode + " of given snapshots"},
		},
		Reconcile: c.reconcile,
	}
}

type csiSnapshots struct{ csiController }

// Between two questions whether a snapshot is ready: a tenth of its age.
const (
	firstLook = time.Second
	lastLook  = time.Minute
)

// keysOf are the contents that may wait for a driver.
func (c csiSnapshots) keysOf(driver string) (keys []Key) {
	if !c.ours(driver) {
		return nil
	}
	for _, content := range list[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "") {
		if content.Spec.Driver == driver && (content.DeletionTimestamp != nil || !isReady(content)) {
			keys = append(keys, keyOf(content))
		}
	}
	return keys
}

func isReady(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.Status != nil && content.Status.ReadyToUse != nil && *content.Status.ReadyToUse
}

func (c csiSnapshots) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, csiCallWait)
	defer cancel()
	content, ok := get[*snapshotv1.VolumeSnapshotContent](c.cache, snapshotContents, "", key.Name)
	switch {
	case !ok || !c.ours(content.Spec.Driver):
		return 0, nil
	case content.DeletionTimestamp != nil:
		return 0, c.remove(ctx, content)
	case isReady(content):
		return 0, nil
	}
	content, s, err := c.look(ctx, content)
	if err != nil {
		return 0, c.failed(ctx, content, "SnapshotContentCheckandUpdateFailed", "Failed to check and update snapshot content: "+rootCause(err).Error(), err)
	}
	status := &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &s.ID, ReadyToUse: &s.Ready}
	if !s.Created.IsZero() {
		status.CreationTime = new(s.Created.UnixNano())
	}
	if s.Size > 0 || content.Spec.Source.VolumeHandle != nil {
		status.RestoreSize = &s.Size
	}
	if content, err = c.setStatus(ctx, content, status); err != nil || s.Ready {
		return 0, err
	}
	age := c.Now().Sub(content.CreationTimestamp.Time)
	return min(max(age/10, firstLook), lastLook), nil
}

// setStatus writes the status, and then that no call is under way.
func (c csiSnapshots) setStatus(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, status *snapshotv1.VolumeSnapshotContentStatus) (*snapshotv1.VolumeSnapshotContent, error) {
	if !equality.Semantic.DeepEqual(content.Status, status) {
		content = edit(content)
		content.Status = status
		written, err := c.update(ctx, snapshotContents, content, "status")
		if err != nil {
			return content, err
		}
		content = written.(*snapshotv1.VolumeSnapshotContent)
	}
	return c.mark(ctx, content, false)
}

// mark notes that a call may have made a snapshot of which nothing is known yet,
// or that all is known. It stays through failures: a write for each of them would
// bring the content here again at once.
func (c csiSnapshots) mark(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, underWay bool) (*snapshotv1.VolumeSnapshotContent, error) {
	if _, is := content.Annotations[snapshotBeingCreated]; is == underWay {
		return content, nil
	}
	changed := edit(content)
	if underWay {
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, snapshotBeingCreated, "yes")
	} else {
		delete(changed.Annotations, snapshotBeingCreated)
	}
	written, err := c.update(ctx, snapshotContents, changed)
	if err != nil {
		return content, err
	}
	return written.(*snapshotv1.VolumeSnapshotContent), nil
}

// failed says why, unless it is said, and fails.
func (c csiSnapshots) failed(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, reason, message string, why error) error {
	status := &snapshotv1.VolumeSnapshotContentStatus{}
	if content.Status != nil {
		if toldOf(content.Status.Error, message) {
			return why
		}
		status = content.Status.DeepCopy()
	}
	c.tell(content, corev1.EventTypeWarning, reason, "%s", message)
	status.Error = c.problem(message)
	if status.ReadyToUse == nil {
		status.ReadyToUse = new(false)
	}
	changed := edit(content)
	changed.Status = status
	_, err := c.update(ctx, snapshotContents, changed, "status")
	return errors.Join(why, ignoreGone(err))
}

// look asks the driver for the snapshot of a content: to take it, where it is to
// be taken, or else whether it is there.
func (c csiSnapshots) look(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (*snapshotv1.VolumeSnapshotContent, csi.Snapshot, error) {
	if content.Spec.Source.SnapshotHandle != nil {
		return c.find(ctx, content)
	}
	call, err := c.caller(content)
	if err != nil {
		return content, csi.Snapshot{}, err
	}
	can, err := csi.ControllerCapabilities(ctx, call)
	if err != nil {
		return content, csi.Snapshot{}, err
	}
	if !can[csi.CreateDeleteSnapshot] {
		return content, csi.Snapshot{}, fmt.Errorf("CSI driver %s does not support ControllerCreateSnapshot", content.Spec.Driver)
	}
	class, err := c.classOf(ctx, content)
	if err == nil && class == nil {
		err = fmt.Errorf("the snapshot class %s is not there", *content.Spec.VolumeSnapshotClassName)
	}
	if err != nil {
		return content, csi.Snapshot{}, err
	}
	with, err := c.secretOf(ctx, snapshotSecret(class, &content.Spec.VolumeSnapshotRef, content.Name, "snapshotter"))
	if err != nil {
		return content, csi.Snapshot{}, err
	}
	if content.Status == nil || content.Status.SnapshotHandle == nil {
		if content, err = c.mark(ctx, content, true); err != nil {
			return content, csi.Snapshot{}, err
		}
	}
	s, err := c.take(ctx, call, content, class, with)
	if err != nil {
		err = fmt.Errorf("failed to take snapshot of the volume %s: %q", *content.Spec.Source.VolumeHandle, err)
	}
	return content, s, err
}

func (c csiSnapshots) take(ctx context.Context, call csi.Caller, content *snapshotv1.VolumeSnapshotContent, class *snapshotv1.VolumeSnapshotClass, with map[string]string) (csi.Snapshot, error) {
	parameters := map[string]string{}
	for k, v := range class.Parameters {
		if !strings.HasPrefix(k, csiParameter) {
			parameters[k] = v
		}
	}
	s, err := csi.CreateSnapshot(ctx, call, *content.Spec.Source.VolumeHandle, "snapshot-"+string(content.Spec.VolumeSnapshotRef.UID), parameters, with)
	if err == nil && s.ID == "" {
		err = errors.New("the driver gave its snapshot no id")
	}
	return s, err
}

// caller reaches the driver: on the node that has the snapshot, if one does.
func (c csiSnapshots) caller(content *snapshotv1.VolumeSnapshotContent) (csi.Caller, error) {
	return c.on(content.Spec.Driver, content.Labels[labelSnapshotNode])
}

// classOf is the class of a content, nil if there is none.
func (c csiSnapshots) classOf(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (*snapshotv1.VolumeSnapshotClass, error) {
	name := content.Spec.VolumeSnapshotClassName
	if name == nil {
		return nil, nil
	}
	o, err := c.peek(ctx, snapshotClasses, "", *name)
	class, _ := o.(*snapshotv1.VolumeSnapshotClass)
	return class, err
}

// find looks for a snapshot that is said to be there. A driver that cannot list
// its snapshots is not asked. Of one whose snapshots are each on one node, all
// nodes are, and the one that has it is noted.
func (c csiSnapshots) find(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (*snapshotv1.VolumeSnapshotContent, csi.Snapshot, error) {
	id, where := *content.Spec.Source.SnapshotHandle, []string{content.Labels[labelSnapshotNode]}
	if where[0] == "" {
		if nodes := c.nodesOf(content.Spec.Driver); len(nodes) > 0 {
			where = nodes
		}
	}
	class, err := c.classOf(ctx, content)
	if err != nil {
		return content, csi.Snapshot{}, err
	}
	var with map[string]string
	if class != nil {
		if with, err = c.secretOf(ctx, snapshotSecret(class, &content.Spec.VolumeSnapshotRef, content.Name, "snapshotter-list")); err != nil {
			return content, csi.Snapshot{}, err
		}
	}
	for _, node := range where {
		call, err := c.on(content.Spec.Driver, node)
		if err != nil {
			return content, csi.Snapshot{}, err
		}
		can, err := csi.ControllerCapabilities(ctx, call)
		if err != nil {
			return content, csi.Snapshot{}, err
		}
		if !can[csi.ListSnapshots] {
			return content, csi.Snapshot{ID: id, Ready: true}, nil
		}
		s, found, err := csi.FindSnapshot(ctx, call, id, with)
		if err != nil {
			return content, s, fmt.Errorf("failed to list snapshot for content %s: %q", content.Name, err)
		}
		if !found {
			continue
		}
		plugin, err := csi.PluginCapabilities(ctx, call)
		if err != nil || !plugin[csi.Accessibility] || content.Labels[labelSnapshotNode] != "" {
			return content, s, err
		}
		content = edit(content)
		metav1.SetMetaDataLabel(&content.ObjectMeta, labelSnapshotNode, node)
		written, err := c.update(ctx, snapshotContents, content)
		if err != nil {
			return content, s, err
		}
		return written.(*snapshotv1.VolumeSnapshotContent), s, nil
	}
	return content, csi.Snapshot{}, fmt.Errorf("failed to list snapshot for content %s: can not find snapshot for snapshotID %s", content.Name, id)
}

// remove does what the deletion of a content means: while its snapshot is there,
// nothing; after that the driver's snapshot goes, if that is its policy.
func (c csiSnapshots) remove(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	unbound := content.Spec.Source.SnapshotHandle != nil && content.Spec.VolumeSnapshotRef.UID == ""
	if !slices.Contains(content.Finalizers, finalizerContent) || !unbound && content.Annotations[snapshotBeingDeleted] == "" {
		return nil
	}
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete {
		if err := c.removeSnapshot(ctx, content); err != nil {
			return c.failed(ctx, content, "SnapshotDeleteError", fmt.Sprintf("Failed to delete snapshot: %v", rootCause(err)), err)
		}
	}
	return dropFinalizer(ctx, c.env, snapshotContents, content, finalizerContent)
}

func (c csiSnapshots) removeSnapshot(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	id := ""
	switch {
	case content.Spec.Source.SnapshotHandle != nil:
		id = *content.Spec.Source.SnapshotHandle
	case content.Status != nil && content.Status.SnapshotHandle != nil:
		id = *content.Status.SnapshotHandle
	case content.Annotations[snapshotBeingCreated] == "":
		return nil // there is none
	}
	call, err := c.caller(content)
	if err != nil {
		return err
	}
	with, err := c.secretOf(ctx, &corev1.SecretReference{Name: content.Annotations[snapshotSecretName], Namespace: content.Annotations[snapshotSecretNamespace]})
	if err != nil {
		return err
	}
	if id == "" { // a call was under way: made again, it says what came of it
		class, err := c.classOf(ctx, content)
		if err != nil {
			return err
		}
		if class == nil {
			class = &snapshotv1.VolumeSnapshotClass{}
		}
		s, err := c.take(ctx, call, content, class, with)
		switch {
		case err != nil && csi.Final(err):
			return nil
		case err != nil:
			return err
		}
		id = s.ID
	}
	return csi.DeleteSnapshot(ctx, call, id, with)
}
