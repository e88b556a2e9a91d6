package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

// staticKeeper runs the pods that the files of one folder describe, whether
// masters are in sight or not, and shows each in the API by a mirror: a pod of
// the same name that nothing runs for, whose status is the static pod's. Who
// deletes the mirror sees it come back; what is in the file goes on.
//
// A static pod's UID is a hash of its file: a file that changes is another pod,
// which starts when the one before has gone.
type staticKeeper struct {
	a       *Agent
	dir     string        // empty: there are none
	files   chan struct{} // one place: look at the workers again
	mirrors chan struct{} // one place: look at the mirrors again

	mu     sync.Mutex
	pods   map[string]*corev1.Pod               // by file
	shown  map[types.NamespacedName]*corev1.Pod // the mirrors of this node that the API has
	listed bool                                 // shown is complete
}

func newStaticKeeper(a *Agent, dir string) (*staticKeeper, error) {
	k := &staticKeeper{
		a: a, dir: dir, files: make(chan struct{}, 1), mirrors: make(chan struct{}, 1),
		pods: map[string]*corev1.Pod{}, shown: map[types.NamespacedName]*corev1.Pod{},
	}
	if dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("agent: the folder of static pods: %w", err)
		}
	}
	return k, nil
}

func nameOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// read reads the folder. A file that cannot be read as a pod stands for what it
// was before: somebody may be about to write it.
func (k *staticKeeper) read() {
	if k.dir == "" {
		return
	}
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		k.a.log.Error("the folder of static pods cannot be read; they stay as they are", "dir", k.dir, "err", err)
		return
	}
	pods := map[string]*corev1.Pod{}
	taken := map[types.NamespacedName]string{}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || e.IsDir() {
			continue
		}
		pod, err := k.readFile(name)
		if err != nil {
			k.mu.Lock()
			pod = k.pods[name]
			k.mu.Unlock()
			if !errors.Is(err, os.ErrNotExist) {
				k.a.log.Warn("a file of the folder of static pods is no static pod", "file", filepath.Join(k.dir, name), "goes-on", pod != nil, "err", err)
			}
		}
		if pod == nil {
			continue
		}
		if other, ok := taken[nameOf(pod)]; ok {
			k.a.log.Warn("two files describe one static pod; the first counts", "file", name, "first", other, "pod", nameOf(pod))
			continue
		}
		taken[nameOf(pod)], pods[name] = name, pod
	}
	k.mu.Lock()
	k.pods = pods
	k.mu.Unlock()
}

func (k *staticKeeper) readFile(name string) (*corev1.Pod, error) {
	data, err := os.ReadFile(filepath.Join(k.dir, name))
	if err != nil {
		return nil, err
	}
	return staticPod(data, name, k.a.cfg.NodeName, k.a.cfg.Now())
}

// staticPod is the pod that a file describes, on this node.
func staticPod(data []byte, file, node string, now time.Time) (*corev1.Pod, error) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", node, file, data))
	uid := hex.EncodeToString(sum[:16])
	return api.ReadStaticPod(data, func(pod *corev1.Pod) {
		pod.UID, pod.ResourceVersion, pod.Status = types.UID(uid), "", corev1.PodStatus{}
		if pod.Name != "" {
			pod.Name += "-" + node
		}
		pod.CreationTimestamp = metav1.NewTime(now.Truncate(time.Second))
		pod.Spec.NodeName = node
		pod.Annotations = maps.Clone(pod.Annotations)
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		delete(pod.Annotations, corev1.MirrorPodAnnotationKey)
		pod.Annotations[api.AnnotationPodSource] = api.PodSourceFile
		pod.Annotations[api.AnnotationPodHash] = uid
		pod.Annotations[api.AnnotationPodSeen] = now.Format(time.RFC3339Nano)
		// It belongs to the node whatever becomes of that.
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute})
	})
}

// mirrorOf is what shows a static pod in the API.
func mirrorOf(pod *corev1.Pod, node *corev1.Node) *corev1.Pod {
	m := pod.DeepCopy()
	m.UID, m.ResourceVersion, m.CreationTimestamp, m.Status = "", "", metav1.Time{}, corev1.PodStatus{}
	m.Annotations[corev1.MirrorPodAnnotationKey] = pod.Annotations[api.AnnotationPodHash]
	if node != nil && node.UID != "" {
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID, Controller: new(true)}}
	}
	return m
}

// run keeps pods and mirrors until ctx ends.
func (k *staticKeeper) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return k.keepPods(ctx) })
	group.Go(func() error { k.keepMirrors(ctx); return nil })
	return group.Wait()
}

func (k *staticKeeper) keepPods(ctx context.Context) error {
	var changed chan error
	if k.dir != "" {
		n, err := watchDir(k.dir)
		if err != nil {
			return fmt.Errorf("agent: static pods: %w", err)
		}
		defer n.close()
		changed = n.events
		k.read() // what changed before it was watched
	}
	for {
		k.syncWorkers()
		poke(k.mirrors)
		select {
		case <-ctx.Done():
			return nil
		case <-k.files:
		case err := <-changed:
			if err != nil {
				return fmt.Errorf("agent: watch the folder of static pods: %w", err)
			}
			k.read()
		}
	}
}

// syncWorkers makes the workers of static pods those of the files. One that
// follows another of its name waits until that has ended.
func (k *staticKeeper) syncWorkers() {
	k.mu.Lock()
	wanted := map[types.UID]*corev1.Pod{}
	for _, pod := range k.pods {
		wanted[pod.UID] = pod
	}
	k.mu.Unlock()
	busy := map[types.NamespacedName]bool{}
	for _, w := range k.a.allWorkers() {
		if w.static == nil {
			continue
		}
		busy[nameOf(w.static)] = true
		if wanted[w.uid] == nil {
			w.update(w.static, true)
		}
		delete(wanted, w.uid)
	}
	for _, pod := range wanted {
		if busy[nameOf(pod)] {
			continue
		}
		k.a.startWorker(pod, record{})
		k.mu.Lock()
		mirror := k.shown[nameOf(pod)]
		k.mu.Unlock()
		if mirror != nil && mirror.Annotations[corev1.MirrorPodAnnotationKey] == string(pod.UID) {
			k.apply(mirror, false)
		}
	}
}

// replace and apply are told of the mirrors that the API has.
func (k *staticKeeper) replace(mirrors []*corev1.Pod) {
	k.mu.Lock()
	k.listed = true
	clear(k.shown)
	k.mu.Unlock()
	for _, m := range mirrors {
		k.apply(m, false)
	}
	poke(k.mirrors)
}

func (k *staticKeeper) apply(mirror *corev1.Pod, removed bool) {
	k.mu.Lock()
	if removed {
		delete(k.shown, nameOf(mirror))
	} else {
		k.shown[nameOf(mirror)] = mirror
	}
	k.mu.Unlock()
	if w := k.a.worker(types.UID(mirror.Annotations[corev1.MirrorPodAnnotationKey])); w != nil && w.static != nil && !removed {
		w.update(mirror, false)
	}
	poke(k.mirrors)
}

// due are the static pods that have no mirror, and the mirrors that are to go:
// those of no static pod of ours, and those being deleted, which then come
// back.
func (k *staticKeeper) due() (missing, surplus []*corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.listed {
		return nil, nil
	}
	hashes := map[types.NamespacedName]string{}
	for _, pod := range k.pods {
		hash := pod.Annotations[api.AnnotationPodHash]
		if hashes[nameOf(pod)] = hash; k.shown[nameOf(pod)] == nil {
			missing = append(missing, pod)
		}
	}
	for name, m := range k.shown {
		if m.DeletionTimestamp != nil || hashes[name] != m.Annotations[corev1.MirrorPodAnnotationKey] {
			surplus = append(surplus, m)
		}
	}
	return missing, surplus
}

// keepMirrors has the API show what there is. What it refuses is tried again
// later and later.
func (k *staticKeeper) keepMirrors(ctx context.Context) {
	var tries attempts
	for {
		missing, surplus := k.due()
		var failed error
		for _, m := range surplus {
			err := k.a.cfg.Client.Delete(ctx, podsResource, m.Namespace, m.Name, metav1.DeleteOptions{
				GracePeriodSeconds: new(int64(0)), Preconditions: metav1.NewUIDPreconditions(string(m.UID)),
			})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				failed = errors.Join(failed, err)
			}
		}
		for _, pod := range missing {
			if _, err := k.a.cfg.Client.Create(ctx, podsResource, pod.Namespace, pod.Name, mirrorOf(pod, k.a.node.object()), metav1.CreateOptions{}); err != nil {
				failed = errors.Join(failed, err)
			}
		}
		var again <-chan time.Time
		if now := k.a.cfg.Now(); failed == nil {
			tries.succeeded()
		} else {
			if tries.failed(now); tries.fails == 1 {
				k.a.log.Warn("a static pod cannot be shown in the API yet", "err", failed)
			}
			again = time.After(tries.retry.Sub(now))
		}
		wake := k.mirrors
		if again != nil {
			wake = nil // one try at a time, however much happens
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-again:
		}
	}
}

// merged is a static pod with what the API's mirror of it knows: its version
// and its status.
func merged(static, mirror *corev1.Pod) *corev1.Pod {
	m := static.DeepCopy()
	m.ResourceVersion, m.Generation, m.Status = mirror.ResourceVersion, mirror.Generation, mirror.Status
	return m
}

func mirrorsAmong(objects []api.Object) (mirrors []*corev1.Pod, others []*corev1.Pod) {
	for _, o := range objects {
		if pod, ok := o.(*corev1.Pod); ok && api.IsMirror(pod) {
			mirrors = append(mirrors, pod)
		} else if ok {
			others = append(others, pod)
		}
	}
	return slices.Clip(mirrors), others
}
