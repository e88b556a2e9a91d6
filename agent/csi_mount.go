package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/csi"
	"conclave/api/kinds"
)

const (
	csiContext     = "csi.storage.k8s.io/"
	republishEvery = time.Minute
)

// errNotYet says that a volume waits for what is on its way: not worth an event
// at once.
var errNotYet = errors.New("it is not attached yet")

// csiMount is one volume of a pod on its way to be mounted by its driver.
type csiMount struct {
	w   *podWorker
	pod *corev1.Pod

	driver     *driver
	spec       *storagev1.CSIDriver // nil: the driver says nothing of itself
	handle     string
	name       string // of the volume: the persistent one's, or the pod's own
	ephemeral  bool
	block      bool
	readOnly   bool
	attributes map[string]string
	modes      []corev1.PersistentVolumeAccessMode
	fsType     string
	options    []string
	stageWith  *corev1.SecretReference
	mountWith  *corev1.SecretReference
	growWith   *corev1.SecretReference
}

// setUpCSI has a volume mounted by its driver, or made a device, and returns
// where. v is the persistent volume, nil if it is the pod's own; own says that
// its files may be given to the pod's group.
func (w *podWorker) setUpCSI(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume, v *corev1.PersistentVolume, own bool) (path string, err error) {
	m := &csiMount{w: w, pod: pod}
	name := ""
	if v != nil {
		s := v.Spec.CSI
		name, m.handle, m.name, m.attributes, m.modes, m.fsType, m.options = s.Driver, s.VolumeHandle, v.Name, s.VolumeAttributes, v.Spec.AccessModes, s.FSType, v.Spec.MountOptions
		m.block = kinds.IsBlock(v.Spec.VolumeMode)
		m.readOnly = s.ReadOnly || volume.PersistentVolumeClaim != nil && volume.PersistentVolumeClaim.ReadOnly
		m.stageWith, m.mountWith, m.growWith = s.NodeStageSecretRef, s.NodePublishSecretRef, s.NodeExpandSecretRef
	} else {
		s := volume.CSI
		name, m.name, m.attributes, m.ephemeral, m.readOnly = s.Driver, volume.Name, s.VolumeAttributes, true, isTrue(s.ReadOnly)
		m.handle = fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(pod.UID)+volume.Name)))
		m.modes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
		if s.FSType != nil {
			m.fsType = *s.FSType
		}
		if r := s.NodePublishSecretRef; r != nil {
			m.mountWith = &corev1.SecretReference{Namespace: pod.Namespace, Name: r.Name}
		}
	}
	if m.driver, err = w.a.plugins.driver(name); err != nil {
		return "", fmt.Errorf("kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: %w", err)
	}
	o, err := w.extraObject(ctx, objectKey{csiDriversResource, "", name})
	if err != nil {
		return "", err
	}
	m.spec, _ = o.(*storagev1.CSIDriver)
	if mode := storagev1.VolumeLifecyclePersistent; m.ephemeral || m.spec != nil {
		if m.ephemeral {
			mode = storagev1.VolumeLifecycleEphemeral
		}
		if !slices.Contains(m.modesOfDriver(), mode) {
			return "", fmt.Errorf("kubernetes.io/csi: volume mode %q not supported by driver %s (only supports %q)", mode, name, m.modesOfDriver())
		}
	}
	defer w.a.plugins.lock(name, m.handle)()
	dir := w.a.plugins.record(string(pod.UID), m.name, m.block)
	path = w.a.plugins.published(m.record(), dir)
	rec, err := readMounted(dir)
	again := err == nil && rec.holds(path)
	if again && m.block {
		_, missing := deviceAt(path)
		again = missing == nil
	}
	if again && !w.republish() {
		return path, m.grow(ctx, volume, v, path)
	}
	if rec == nil {
		rec = m.record()
		if err := rec.write(dir); err != nil {
			return "", err
		}
		w.a.plugins.findUsed()
	}
	ctx, cancel := context.WithTimeout(ctx, csiWait)
	defer cancel()
	if err := m.mount(ctx, path, again); err != nil {
		return "", fmt.Errorf("kubernetes.io/csi: %w", err)
	}
	if m.block {
		if _, err := deviceAt(path); err != nil {
			return "", fmt.Errorf("kubernetes.io/csi: driver %s has published no block device: %w", name, err)
		}
	}
	if err := rec.done(dir, path); err != nil {
		return "", err
	}
	if m.spec != nil && isTrue(m.spec.Spec.RequiresRepublish) {
		w.mu.Lock()
		w.republishAt = w.a.cfg.Now().Add(republishEvery)
		w.mu.Unlock()
	}
	if gid := fsGroup(pod); gid != nil && own && !again && m.ours() && !m.driver.can[csi.VolumeMountGroup] {
		if err := giveToGroup(path, int(*gid), pod.Spec.SecurityContext.FSGroupChangePolicy); err != nil {
			return "", fmt.Errorf("applyFSGroup failed for vol %s: %w", m.name, err)
		}
	}
	return path, m.grow(ctx, volume, v, path)
}

// record is what is written before the driver is called.
func (m *csiMount) record() *mounted {
	return &mounted{Driver: m.driver.name, Handle: m.handle, Name: m.name, Ephemeral: m.ephemeral, Block: m.block}
}

// modesOfDriver are the ways in which a driver's volumes come and go.
func (m *csiMount) modesOfDriver() []storagev1.VolumeLifecycleMode {
	if m.spec == nil {
		return []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
	return m.spec.Spec.VolumeLifecycleModes
}

// ours says whether files are to be given to the pod's group by the node.
func (m *csiMount) ours() bool {
	policy := storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy
	if m.spec != nil && m.spec.Spec.FSGroupPolicy != nil {
		policy = *m.spec.Spec.FSGroupPolicy
	}
	switch policy {
	case storagev1.NoneFSGroupPolicy:
		return false
	case storagev1.FileFSGroupPolicy:
		return !m.readOnly
	}
	return !m.readOnly && m.fsType != "" && (slices.Contains(m.modes, corev1.ReadWriteOnce) || slices.Contains(m.modes, corev1.ReadWriteOncePod))
}

func (m *csiMount) capability() csi.Capability {
	c := csi.Capability{Block: m.block, FSType: m.fsType, MountFlags: m.options, Mode: csi.ModeOf(m.modes, m.driver.can[csi.NodeSingleMulti])}
	if gid := fsGroup(m.pod); gid != nil && m.driver.can[csi.VolumeMountGroup] && m.ours() {
		c.MountGroup = strconv.FormatInt(*gid, 10)
	}
	return c
}

// mount stages and publishes. again says that both are so already, and the
// driver only wants to be asked anew.
func (m *csiMount) mount(ctx context.Context, path string, again bool) error {
	p := m.w.a.plugins
	attached, err := m.attached(ctx)
	if err != nil {
		return err
	}
	request := csi.Mount{VolumeID: m.handle, PublishContext: attached, VolumeContext: m.attributes, Capability: m.capability()}
	if !m.ephemeral && m.driver.can[csi.StageUnstage] {
		dir, target := p.staged(m.record())
		request.Staging = p.told(target)
		if rec, err := readMounted(dir); err != nil || !rec.holds(target) {
			rec := m.record()
			if err := rec.write(dir); err != nil {
				return err
			}
			if err := os.MkdirAll(target, 0o750); err != nil {
				return err
			}
			if request.Secrets, err = m.secret(ctx, m.stageWith); err != nil {
				return err
			}
			if err := csi.NodeStage(ctx, m.driver.call, request); err != nil {
				if m.block {
					return fmt.Errorf("blockMapper.stageVolumeForBlock failed: %w", err)
				}
				return fmt.Errorf("MountDevice failed for volume %q: %w", m.name, err)
			}
			if err := rec.done(dir, target); err != nil {
				return err
			}
		}
	}
	if m.block { // the driver makes the file, but not its folder
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
	}
	request.Target, request.ReadOnly = p.told(path), m.readOnly
	if request.Secrets, err = m.secret(ctx, m.mountWith); err != nil {
		return err
	}
	if request.VolumeContext, request.Secrets, err = m.context(ctx, request.Secrets); err != nil {
		return err
	}
	return csi.NodePublish(ctx, m.driver.call, request)
}

// attached waits for the cluster to have attached the volume to this node, and
// returns what whoever did so has to say.
func (m *csiMount) attached(ctx context.Context) (map[string]string, error) {
	if m.ephemeral || m.spec != nil && m.spec.Spec.AttachRequired != nil && !*m.spec.Spec.AttachRequired {
		return nil, nil
	}
	name := api.AttachmentName(m.handle, m.driver.name, m.w.a.cfg.NodeName)
	o, err := m.w.extraObject(ctx, objectKey{attachmentsResource, "", name})
	if err != nil {
		return nil, err
	}
	a, _ := o.(*storagev1.VolumeAttachment)
	switch {
	case a == nil || a.DeletionTimestamp != nil:
		return nil, fmt.Errorf("volume attachment %s of volume %s: %w", name, m.name, errNotYet)
	case a.Status.Attached:
		return a.Status.AttachmentMetadata, nil
	case a.Status.AttachError != nil:
		return nil, errors.New(a.Status.AttachError.Message)
	}
	return nil, fmt.Errorf("volume attachment %s of volume %s: %w", name, m.name, errNotYet)
}

func (m *csiMount) secret(ctx context.Context, ref *corev1.SecretReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	// It is asked for when it is needed and kept nowhere: a driver needs the
	// cluster anyway.
	o, err := m.w.a.cfg.Client.Get(ctx, secretsResource, ref.Namespace, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("fetching secret %s/%s failed: %w", ref.Namespace, ref.Name, err)
	}
	s, ok := o.(*corev1.Secret)
	if !ok {
		return nil, fmt.Errorf("secret %s/%s is a %T", ref.Namespace, ref.Name, o)
	}
	data := make(map[string]string, len(s.Data))
	for k, v := range s.Data {
		data[k] = string(v)
	}
	return data, nil
}

// context is what the driver is told of the volume, and of the pod if it wants.
func (m *csiMount) context(ctx context.Context, secrets map[string]string) (volume, with map[string]string, err error) {
	volume = maps.Clone(m.attributes)
	if m.spec == nil {
		return volume, secrets, nil
	}
	if volume == nil {
		volume = map[string]string{}
	}
	if isTrue(m.spec.Spec.PodInfoOnMount) {
		volume[csiContext+"pod.name"], volume[csiContext+"pod.namespace"], volume[csiContext+"pod.uid"] = m.pod.Name, m.pod.Namespace, string(m.pod.UID)
		volume[csiContext+"serviceAccount.name"] = m.pod.Spec.ServiceAccountName
		volume[csiContext+"ephemeral"] = strconv.FormatBool(m.ephemeral)
	}
	if len(m.spec.Spec.TokenRequests) == 0 {
		return volume, secrets, nil
	}
	type token struct {
		Token   string    `json:"token"`
		Expires time.Time `json:"expirationTimestamp"`
	}
	tokens := map[string]token{}
	for _, r := range m.spec.Spec.TokenRequests {
		ask := &corev1.ServiceAccountTokenProjection{Audience: r.Audience, ExpirationSeconds: r.ExpirationSeconds}
		raw, err := m.w.tokens.get(ctx, m.pod, ask)
		if err != nil {
			return nil, nil, err
		}
		tokens[r.Audience] = token{string(raw), m.w.tokens.expiry(ask)}
	}
	text, err := json.Marshal(tokens)
	if err != nil {
		return nil, nil, err
	}
	const key = csiContext + "serviceAccount.tokens"
	if isTrue(m.spec.Spec.ServiceAccountTokenInSecrets) {
		secrets = maps.Clone(secrets)
		if secrets == nil {
			secrets = map[string]string{}
		}
		secrets[key] = string(text)
	} else {
		volume[key] = string(text)
	}
	return volume, secrets, nil
}

// grow makes what is on a volume as large as the volume has become, and says so
// in the claim.
func (m *csiMount) grow(ctx context.Context, volume *corev1.Volume, v *corev1.PersistentVolume, path string) error {
	if v == nil {
		return nil
	}
	name, _ := api.ClaimName(m.pod, volume)
	o, err := m.w.a.objects.get(ctx, m.w.uid, m.w.dirs, objectKey{claimsResource, m.pod.Namespace, name})
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	if err != nil || !ok {
		return err
	}
	size, has := v.Spec.Capacity[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	if size.Cmp(has) <= 0 {
		return nil
	}
	staging := ""
	if m.driver.can[csi.StageUnstage] {
		_, target := m.w.a.plugins.staged(m.record())
		staging = m.w.a.plugins.told(target)
	}
	if m.driver.can[csi.NodeExpand] {
		secrets, err := m.secret(ctx, m.growWith)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, csiWait)
		defer cancel()
		if _, err := csi.NodeExpandVolume(ctx, m.driver.call, m.handle, m.w.a.plugins.told(path), staging, size.Value(), m.capability(), secrets); err != nil {
			return fmt.Errorf("NodeExpandVolume failed for volume %q: %w", m.name, err)
		}
	}
	status := claim.DeepCopy()
	if status.Status.Capacity == nil {
		status.Status.Capacity = corev1.ResourceList{}
	}
	status.Status.Capacity[corev1.ResourceStorage] = size
	delete(status.Status.AllocatedResourceStatuses, corev1.ResourceStorage)
	status.Status.Conditions = slices.DeleteFunc(status.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimFileSystemResizePending || c.Type == corev1.PersistentVolumeClaimResizing
	})
	if equality.Semantic.DeepEqual(status.Status, claim.Status) {
		return nil
	}
	_, err = m.w.a.cfg.Client.Update(ctx, claimsResource, claim.Namespace, status, metav1.UpdateOptions{}, "status")
	if apierrors.IsConflict(err) {
		return nil // its news bring us here again
	}
	if err != nil {
		return fmt.Errorf("say that claim %s has grown: %w", claim.Name, err)
	}
	m.w.event(nil, corev1.EventTypeNormal, "FileSystemResizeSuccessful", fmt.Sprintf("MountVolume.NodeExpandVolume succeeded for volume %q %s", m.name, m.w.a.cfg.NodeName))
	return nil
}

// extraObject is an object that the pod does not name itself, but what it names
// needs.
func (w *podWorker) extraObject(ctx context.Context, key objectKey) (api.Object, error) {
	w.mu.Lock()
	if w.extra == nil {
		w.extra = map[objectKey]bool{}
	}
	w.extra[key] = true
	w.mu.Unlock()
	w.a.objects.add(w.uid, key)
	return w.a.objects.get(ctx, w.uid, w.dirs, key)
}

// republish says, once, that a driver is to be asked anew now.
func (w *podWorker) republish() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.republishAt.IsZero() || w.a.cfg.Now().Before(w.republishAt) {
		return false
	}
	w.republishAt = time.Time{}
	return true
}
