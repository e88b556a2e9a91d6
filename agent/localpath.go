package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// folderKeeper makes and removes the folders of volumes of class local-path
// that are kept on this node. It follows those PersistentVolumes that name the
// node, and says there what it has done. Nothing else makes it remove anything:
// a folder that no PersistentVolume speaks of is left alone.
type folderKeeper struct {
	a    *Agent
	dir  string
	wake chan struct{}

	mu      sync.Mutex
	volumes map[types.UID]*corev1.PersistentVolume
	states  map[types.UID]*folderState
	looked  bool // for folders without a volume
}

type folderState struct {
	attempts
	busy bool
}

func newFolderKeeper(a *Agent) *folderKeeper {
	return &folderKeeper{
		a: a, dir: filepath.Join(a.cfg.Dir, "volumes"), wake: make(chan struct{}, 1),
		volumes: map[types.UID]*corev1.PersistentVolume{}, states: map[types.UID]*folderState{},
	}
}

// folderStep is the next thing to do for one volume.
type folderStep uint8

const (
	folderRest    folderStep = iota
	folderMake               // make the folder, and say so
	folderRemove             // remove it, and let the object go
	folderRelease            // let the object go, leave the folder
)

// folderNext decides. used says that a pod here mounts it.
func folderNext(v *corev1.PersistentVolume, dir string, used bool) folderStep {
	if v.Annotations[api.AnnotationProvisionedBy] != api.LocalPathProvisioner || !ownFolder(v, dir) {
		return folderRest
	}
	holds := func(finalizer string) bool { return slices.Contains(v.Finalizers, finalizer) }
	switch {
	case v.DeletionTimestamp == nil && v.Annotations[api.AnnotationVolumeMade] == "":
		return folderMake
	case v.DeletionTimestamp == nil || !holds(api.FinalizerLocalPath) || holds(api.FinalizerVolume) || used:
		return folderRest
	case v.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete:
		return folderRelease
	}
	return folderRemove
}

// ownFolder says that a volume's path is one that was made up for it: whoever
// may write PersistentVolumes must not thereby remove what he likes.
func ownFolder(v *corev1.PersistentVolume, dir string) bool {
	return v.Spec.Local != nil && filepath.Dir(v.Spec.Local.Path) == dir && strings.HasPrefix(filepath.Base(v.Spec.Local.Path), v.Name+"_")
}

// Replace and Apply are the api.Handler.
func (k *folderKeeper) Replace(objects []api.Object) {
	k.mu.Lock()
	clear(k.volumes)
	for _, o := range objects {
		k.set(o)
	}
	if !k.looked {
		k.looked = true
		k.lookForLeftovers()
	}
	k.mu.Unlock()
	poke(k.wake)
}

func (k *folderKeeper) Apply(t watch.EventType, o api.Object) {
	k.mu.Lock()
	if t == watch.Deleted {
		delete(k.volumes, o.GetUID())
	} else {
		k.set(o)
	}
	k.mu.Unlock()
	poke(k.wake)
}

// changed tells that a pod's use of volumes did.
func (k *folderKeeper) changed() { poke(k.wake) }

func (k *folderKeeper) set(o api.Object) {
	v, ok := o.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	k.volumes[v.UID] = v
	if s := k.states[v.UID]; s != nil {
		s.retry = time.Time{} // it may be another story now
	}
}

// lookForLeftovers tells of folders that no volume speaks of. They may be all
// that is left of somebody's data, when the cluster's state is an older one.
func (k *folderKeeper) lookForLeftovers() {
	entries, err := os.ReadDir(k.dir)
	if err != nil {
		return // none was made yet
	}
	known := map[string]bool{}
	for _, v := range k.volumes {
		if v.Spec.Local != nil {
			known[v.Spec.Local.Path] = true
		}
	}
	for _, e := range entries {
		if path := filepath.Join(k.dir, e.Name()); !known[path] {
			k.a.log.Warn("a folder belongs to no PersistentVolume: look whether it is still needed, and remove it if not", "path", path)
		}
	}
}

// run works until ctx ends; what is under way ends before it returns.
func (k *folderKeeper) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w := waiter{now: k.a.cfg.Now()}
		for _, v := range k.due(&w) {
			wg.Go(func() { k.work(ctx, v) })
		}
		timer.Stop()
		var alarm <-chan time.Time
		if !w.until.IsZero() {
			timer.Reset(w.until.Sub(w.now))
			alarm = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-alarm:
		}
	}
}

// due returns the volumes for which something is to be done now, and marks
// them as being worked on.
func (k *folderKeeper) due(w *waiter) (due []*corev1.PersistentVolume) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for uid := range k.states {
		if k.volumes[uid] == nil && !k.states[uid].busy {
			delete(k.states, uid)
		}
	}
	for uid, v := range k.volumes {
		s := k.states[uid]
		if s == nil {
			s = &folderState{}
			k.states[uid] = s
		}
		if s.busy || folderNext(v, k.dir, k.a.usesVolume(v)) == folderRest || w.later(s.retry) {
			continue
		}
		s.busy = true
		due = append(due, v)
	}
	return due
}

// work does the next thing for a volume.
func (k *folderKeeper) work(ctx context.Context, v *corev1.PersistentVolume) {
	err := k.step(ctx, v)
	k.mu.Lock()
	s := k.states[v.UID]
	s.busy = false
	switch {
	case err == nil:
		s.attempts = attempts{}
	case ctx.Err() == nil:
		s.failed(k.a.cfg.Now())
		k.a.log.Warn("a volume's folder cannot be kept as it should be: trying again", "volume", v.Name, "err", err)
	}
	k.mu.Unlock()
	poke(k.wake)
}

func (k *folderKeeper) step(ctx context.Context, v *corev1.PersistentVolume) error {
	changed := v.DeepCopy()
	path := v.Spec.Local.Path
	switch folderNext(v, k.dir, k.a.usesVolume(v)) {
	case folderRest:
		return nil
	case folderMake:
		if err := makeFolder(path); err != nil {
			return err
		}
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, api.AnnotationVolumeMade, k.a.cfg.Now().UTC().Format(time.RFC3339))
	case folderRemove:
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if err := syncDir(k.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if v.DeletionTimestamp != nil {
		changed.Finalizers = slices.DeleteFunc(changed.Finalizers, func(f string) bool { return f == api.FinalizerLocalPath })
	}
	written, err := k.a.cfg.Client.Update(ctx, volumesResource, "", changed, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		// Given up before it was made. Only an empty folder is removed so.
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			k.a.log.Warn("the folder of a volume that was given up stays", "path", path, "err", err)
		}
		k.mu.Lock()
		delete(k.volumes, v.UID)
		k.mu.Unlock()
		return nil
	case err != nil:
		return fmt.Errorf("say that the folder is kept: %w", err)
	}
	// The follower brings it too; until then it is not to be done twice.
	k.mu.Lock()
	defer k.mu.Unlock()
	if now, ok := written.(*corev1.PersistentVolume); ok && k.volumes[v.UID] == v {
		if len(now.Finalizers) == 0 && now.DeletionTimestamp != nil {
			delete(k.volumes, v.UID)
		} else {
			k.volumes[v.UID] = now
		}
	}
	return nil
}

// makeFolder makes a folder that survives a power cut, for containers of any
// user.
func makeFolder(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	if err := makeDir(path, 0o777, nil); err != nil {
		return err
	}
	return errors.Join(syncDir(filepath.Dir(path)), syncDir(filepath.Dir(filepath.Dir(path))))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
