package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/kinds"
)

// claimedVolume finds the volume behind a pod's claim and sees that it can be
// mounted here; what it finds is remembered for those who ask what is in use.
func (w *podWorker) claimedVolume(ctx context.Context, pod *corev1.Pod, claimName string, ephemeral bool) (*corev1.PersistentVolume, error) {
	o, err := w.a.objects.get(ctx, w.uid, w.dirs, objectKey{claimsResource, pod.Namespace, claimName})
	if err != nil {
		return nil, err
	}
	claim, ok := o.(*corev1.PersistentVolumeClaim)
	switch {
	case !ok:
		return nil, fmt.Errorf("persistentvolumeclaim %q not found", claimName)
	case ephemeral && !metav1.IsControlledBy(claim, pod):
		return nil, fmt.Errorf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", pod.Namespace, claimName, pod.Namespace, pod.Name)
	case !api.Bound(claim) || claim.Status.Phase != corev1.ClaimBound:
		return nil, fmt.Errorf("error processing PVC %s/%s: PVC is not bound", pod.Namespace, claimName)
	}
	key := objectKey{volumesResource, "", claim.Spec.VolumeName}
	w.a.objects.add(w.uid, key)
	w.mu.Lock()
	if w.mounts == nil {
		w.mounts = map[string]string{}
	}
	w.mounts[claimName] = claim.Spec.VolumeName
	w.mu.Unlock()
	if o, err = w.a.objects.get(ctx, w.uid, w.dirs, key); err != nil {
		return nil, err
	}
	v, ok := o.(*corev1.PersistentVolume)
	switch {
	case !ok:
		return nil, fmt.Errorf("persistentvolume %q not found", claim.Spec.VolumeName)
	case v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != claim.UID:
		return nil, fmt.Errorf("PVC %s/%s and PV %s do not name each other", pod.Namespace, claimName, v.Name)
	case !api.Fits(v, w.a.node.labelled()):
		return nil, fmt.Errorf("volume node affinity check failed: no matching NodeSelectorTerms: volume %s cannot be mounted on node %s", v.Name, w.a.cfg.NodeName)
	}
	return v, nil
}

// setUpClaim makes the volume behind a claim ready to be mounted, or to be a
// container's device: a link below the pod's own volumes says where it is.
func (w *podWorker) setUpClaim(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume, own bool) error {
	name, _ := api.ClaimName(pod, volume)
	v, err := w.claimedVolume(ctx, pod, name, volume.Ephemeral != nil)
	if err == nil {
		err = checkMode(pod, volume.Name, v.Spec.VolumeMode)
	}
	if err != nil {
		return err
	}
	link := filepath.Join(w.dirs.volumes, volume.Name)
	if kinds.IsBlock(v.Spec.VolumeMode) {
		path, err := w.mapDevice(ctx, pod, volume, v)
		if err == nil {
			err = pointTo(link, path)
		}
		if err != nil {
			return mapFailure{err}
		}
		return nil
	}
	var path string
	switch {
	case v.Spec.Local != nil:
		path = v.Spec.Local.Path
		// It is never made here: what is missing may be a disk.
		if info, err := os.Stat(path); err != nil || !info.IsDir() {
			return fmt.Errorf("local volume: path %q does not exist", path)
		}
		if gid := fsGroup(pod); gid != nil && own {
			if err := giveToGroup(path, int(*gid), pod.Spec.SecurityContext.FSGroupChangePolicy); err != nil {
				return fmt.Errorf("applyFSGroup failed for vol %s: %w", v.Name, err)
			}
		}
	case v.Spec.HostPath != nil:
		path = v.Spec.HostPath.Path
		if err := checkHostPath(path, v.Spec.HostPath.Type); err != nil {
			return err
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(path, dirMode); err != nil {
				return err
			}
		}
	case v.Spec.NFS != nil:
		path = w.dirs.nfs(volume.Name)
		if err := setUpNFS(ctx, v.Spec.NFS, v.Spec.MountOptions, path); err != nil {
			return err
		}
	case v.Spec.CSI != nil:
		if path, err = w.setUpCSI(ctx, pod, volume, v, own); err != nil {
			return err
		}
	default:
		return errors.New("volumes of this type are not supported by Conclave")
	}
	return pointTo(link, path)
}

// pointTo makes a link say where a volume is.
func pointTo(link, path string) error {
	if now, err := os.Readlink(link); err == nil && now == path {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o711); err != nil {
		return err
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(path, link)
}

// giveToGroup makes everything below a folder readable and writable by a group,
// and lets what is made there later be the group's too. It never follows a link
// out of the folder, whatever a container does to it meanwhile.
func giveToGroup(path string, gid int, policy *corev1.PodFSGroupChangePolicy) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	if policy != nil && *policy == corev1.FSGroupChangeOnRootMismatch {
		info, err := root.Stat(".")
		if err != nil {
			return err
		}
		if owner, ok := groupOf(info); ok && owner == gid && info.Mode()&(fs.ModeSetgid|0o070) == fs.ModeSetgid|0o070 {
			return nil
		}
	}
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone since
		}
		if err != nil {
			return err
		}
		info, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := root.Lchown(name, -1, gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		mode := info.Mode() & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			return nil
		case entry.IsDir():
			mode |= 0o070 | fs.ModeSetgid
		default:
			mode |= 0o060
		}
		if err := root.Chmod(name, mode); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// usesVolume says whether a volume is, or may be, mounted by a pod of this
// node: not all that a pod uses is known before its volumes have been set up.
func (a *Agent) usesVolume(v *corev1.PersistentVolume) bool {
	ref := v.Spec.ClaimRef
	if ref == nil {
		return false
	}
	for _, w := range a.allWorkers() {
		w.mu.Lock()
		pod, down := w.latest, w.shown.rec.Down
		mounted, known := w.mounts[ref.Name]
		w.mu.Unlock()
		if down || pod.Namespace != ref.Namespace || known && mounted != v.Name {
			continue
		}
		for _, name := range api.ClaimNames(pod) {
			if name == ref.Name {
				return true
			}
		}
	}
	return false
}

// groupOf is the group that owns a file.
func groupOf(info fs.FileInfo) (int, bool) {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(s.Gid), true
}
