package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/api/kinds"
)

// volumeState is what the snapshot knows of claims, volumes, classes and drivers.
type volumeState struct {
	claims  map[string]*corev1.PersistentVolumeClaim // by namespace/name
	volumes map[string]*corev1.PersistentVolume
	classes map[string]*storagev1.StorageClass
	drivers map[string]*storagev1.CSIDriver
	// onNodes are the drivers on each node, and how many volumes they take there.
	onNodes map[string]*storagev1.CSINode
	// capacities are what drivers say that they have room for, by namespace/name.
	capacities map[string]*storagev1.CSIStorageCapacity
	// users are the pods on nodes that use a claim, by the claim.
	users map[string]map[types.UID]struct{}
	// names are the keys above by UID: a deletion is told by that.
	names map[types.UID]string
}

func newVolumeState() volumeState {
	return volumeState{
		claims: map[string]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{}, classes: map[string]*storagev1.StorageClass{},
		drivers: map[string]*storagev1.CSIDriver{}, onNodes: map[string]*storagev1.CSINode{}, capacities: map[string]*storagev1.CSIStorageCapacity{},
		users: map[string]map[types.UID]struct{}{}, names: map[types.UID]string{},
	}
}

func (s *volumeState) use(p *podInfo) {
	for _, key := range p.claims {
		if s.users[key] == nil {
			s.users[key] = map[types.UID]struct{}{}
		}
		s.users[key][p.UID] = struct{}{}
	}
}

func (s *volumeState) release(p *podInfo) {
	for _, key := range p.claims {
		delete(s.users[key], p.UID)
		if len(s.users[key]) == 0 {
			delete(s.users, key)
		}
	}
}

// volumeCheck is what a pod's claims ask of its node.
type volumeCheck struct {
	// hopeless says why no node will do, whatever it is like.
	hopeless string
	// taken says that a claim is for one pod at a time, and another has it.
	taken   bool
	bound   []*corev1.PersistentVolume
	waiting []*corev1.PersistentVolumeClaim // to be bound once the node is known
	mounted map[csiVolume]struct{}          // those of CSI drivers
}

// check reads a pod's claims.
func (s *volumeState) check(p *podInfo) (v volumeCheck) {
	for i, key := range p.claims {
		c := s.claims[key]
		name := p.claimNames[i]
		switch {
		case c == nil:
			v.hopeless = fmt.Sprintf("persistentvolumeclaim %q not found", name)
			return v
		case c.DeletionTimestamp != nil:
			v.hopeless = fmt.Sprintf("persistentvolumeclaim %q is being deleted", name)
			return v
		case c.Status.Phase == corev1.ClaimLost:
			v.hopeless = fmt.Sprintf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, c.Spec.VolumeName)
			return v
		case api.Bound(c):
			volume := s.volumes[c.Spec.VolumeName]
			if volume == nil {
				v.hopeless = fmt.Sprintf("persistentvolume %q not found", c.Spec.VolumeName)
				return v
			}
			v.bound = append(v.bound, volume)
		default:
			class := s.classes[kinds.ClaimClass(c)]
			if class == nil || !api.Waits(class) || c.Spec.VolumeName != "" {
				v.hopeless = "pod has unbound immediate PersistentVolumeClaims"
				return v
			}
			v.waiting = append(v.waiting, c)
		}
		if len(c.Spec.AccessModes) == 1 && c.Spec.AccessModes[0] == corev1.ReadWriteOncePod {
			for user := range s.users[key] {
				v.taken = v.taken || user != p.UID
			}
		}
	}
	v.mounted = s.mountedBy(p)
	return v
}

const (
	noVolume = "node(s) didn't find available persistent volumes to bind"
	noRoom   = "node(s) did not have enough free storage"
)

// unbindable says why a claim that waits for a node cannot have a volume there,
// neither one that is free nor one that is made; it is empty if it can.
func (s *volumeState) unbindable(c *corev1.PersistentVolumeClaim, node *corev1.Node) string {
	for _, v := range s.volumes {
		if v.Spec.ClaimRef == nil && v.DeletionTimestamp == nil && v.Status.Phase == corev1.VolumeAvailable && api.Suits(v, c) && api.Fits(v, node) {
			return ""
		}
	}
	class := s.classes[kinds.ClaimClass(c)]
	switch {
	case class.Provisioner == "kubernetes.io/no-provisioner",
		class.Provisioner == api.LocalPathProvisioner && node.Annotations[api.AnnotationVolumesDir] == "",
		!api.Allows(class, node):
		return noVolume
	case !s.room(class, c, node):
		return noRoom
	}
	return ""
}

var volumeFilters = []Filter{
	{"VolumeRestrictions", func(c *cycle) bool { return c.volumes.taken }, func(*cycle, *nodeInfo) bool { return false },
		because("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")},
	{"NodeVolumeLimits", func(c *cycle) bool { return len(c.volumes.mounted) > 0 }, (*cycle).mountable, because("node(s) exceed max volume count")},
	{"VolumeBinding", func(c *cycle) bool { return len(c.volumes.bound)+len(c.volumes.waiting) > 0 },
		func(c *cycle, n *nodeInfo) bool { return c.volumeRefusal(n) == "" },
		func(c *cycle, n *nodeInfo) []string { return []string{c.volumeRefusal(n)} }},
}

func (c *cycle) volumeRefusal(n *nodeInfo) string {
	for _, v := range c.volumes.bound {
		if !api.Fits(v, n.Node) {
			return "node(s) didn't match PersistentVolume's node affinity"
		}
	}
	for _, claim := range c.volumes.waiting {
		if why := c.s.unbindable(claim, n.Node); why != "" {
			return why
		}
	}
	return ""
}

// What the watches tell.

func (s *Scheduler) applyClaim(o api.Object) {
	c, ok := o.(*corev1.PersistentVolumeClaim)
	if !ok {
		return
	}
	key := c.Namespace + "/" + c.Name
	s.snapshot.claims[key], s.snapshot.names[c.UID] = c, key
	s.volumesChanged(func(p *podInfo) bool { return p.uses(key) })
}

func (s *Scheduler) applyVolume(o api.Object) {
	v, ok := o.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	old := s.snapshot.volumes[v.Name]
	s.snapshot.volumes[v.Name], s.snapshot.names[v.UID] = v, v.Name
	if old == nil || !equality.Semantic.DeepEqual(old.Spec, v.Spec) || old.Status.Phase != v.Status.Phase {
		s.volumesChanged(func(p *podInfo) bool { return len(p.claims) > 0 })
	}
}

// remember takes in what has nothing but a name that matters.
func remember[T api.Object](s *Scheduler, m map[string]T) func(api.Object) {
	return func(o api.Object) {
		if t, ok := o.(T); ok {
			key := strings.TrimPrefix(o.GetNamespace()+"/"+o.GetName(), "/")
			m[key], s.snapshot.names[o.GetUID()] = t, key
			s.volumesChanged(func(p *podInfo) bool { return len(p.claims) > 0 })
		}
	}
}

// volumesChanged wakes the pods that a change may have helped, and those whose
// bindings wait for their claims.
func (s *Scheduler) volumesChanged(helped func(*podInfo) bool) {
	s.queue.wakeAll(s.Now(), helped)
	close(s.news)
	s.news = make(chan struct{})
}

// byName handles what is remembered in a map by name.
func byName[T api.Object](s *Scheduler, m map[string]T) *handler {
	return &handler{s: s, apply: remember(s, m), known: known(m), forget: forget(s, m)}
}

func known[T api.Object](m map[string]T) func() []types.UID {
	return func() (uids []types.UID) {
		for _, o := range m {
			uids = append(uids, o.GetUID())
		}
		return uids
	}
}

func forget[T api.Object](s *Scheduler, m map[string]T) func(types.UID) {
	return func(uid types.UID) {
		if key, ok := s.snapshot.names[uid]; ok {
			if m[key].GetUID() == uid {
				delete(m, key)
			}
			delete(s.snapshot.names, uid)
			s.volumesChanged(func(p *podInfo) bool { return len(p.claims) > 0 })
		}
	}
}

// volumesWithin is how long the volumes of one pod may take to be bound.
const volumesWithin = 30 * time.Second

var errPodGone = errors.New("the pod is gone")

// bindVolumes writes into the claims that wait for it where their pod is going
// to run, and waits until all are bound: a pod that has a node must not find
// that its volume is elsewhere.
func (s *Scheduler) bindVolumes(ctx context.Context, e *entry, assumed *podInfo, waiting []*corev1.PersistentVolumeClaim) error {
	node := assumed.Spec.NodeName
	written := map[string]uint64{} // the version of each claim from which on it must name the node
	for _, c := range waiting {
		version, err := s.selectNode(ctx, c, node)
		if err != nil {
			return err
		}
		written[c.Namespace+"/"+c.Name] = version
	}
	ctx, cancel := context.WithTimeout(ctx, volumesWithin)
	defer cancel()
	for {
		s.mu.Lock()
		done, err := s.snapshot.volumesBound(written, node)
		if s.queue.entries[assumed.UID] != e {
			err = errPodGone
		}
		news := s.news
		s.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return errors.New("context deadline exceeded")
		}
	}
}

// selectNode names the node in a claim, and returns that version of it.
func (s *Scheduler) selectNode(ctx context.Context, claim *corev1.PersistentVolumeClaim, node string) (uint64, error) {
	for {
		if claim.Annotations[api.AnnotationSelectedNode] == node || api.Bound(claim) {
			return version(claim), nil
		}
		changed := claim.DeepCopy()
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, api.AnnotationSelectedNode, node)
		made, err := s.Client.Update(ctx, claims, changed.Namespace, changed, metav1.UpdateOptions{})
		if err == nil {
			return version(made), nil
		}
		if !apierrors.IsConflict(err) {
			return 0, err
		}
		o, err := s.Client.Get(ctx, claims, claim.Namespace, claim.Name, metav1.GetOptions{})
		if err != nil {
			return 0, err
		}
		now, ok := o.(*corev1.PersistentVolumeClaim)
		if !ok || now.UID != claim.UID {
			return 0, fmt.Errorf("persistentvolumeclaim %q was replaced by another", claim.Name)
		}
		claim = now
	}
}

func version(o metav1.Object) uint64 {
	n, err := strconv.ParseUint(o.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// volumesBound says whether all these claims have volumes that can be mounted
// on a node, or why they will not.
func (s *volumeState) volumesBound(written map[string]uint64, node string) (bool, error) {
	done := true
	for key, since := range written {
		c := s.claims[key]
		switch {
		case c == nil, c.DeletionTimestamp != nil:
			return false, fmt.Errorf("persistentvolumeclaim %q was deleted", key)
		case version(c) < since:
			done = false // old news
		case api.Bound(c):
			done = done && s.volumes[c.Spec.VolumeName] != nil
		case c.Annotations[api.AnnotationSelectedNode] != node:
			return false, fmt.Errorf("provisioning failed for PVC %q", key)
		default:
			done = false
		}
	}
	return done, nil
}
