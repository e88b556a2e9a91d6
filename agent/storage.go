package agent

import (
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"

	podresource "k8s.io/component-helpers/resource"
)

// podStorage is what a pod takes of the node's disk.
type podStorage struct {
	layers, logs map[string]uint64 // by container
	volumes      map[string]uint64 // emptyDirs on the disk
	etc          uint64            // /etc/hosts and the like, and termination messages
	inodes       uint64
}

// of is what a container has written outside of volumes.
func (s podStorage) of(container string) uint64 { return s.layers[container] + s.logs[container] }

func (s podStorage) total() (sum uint64) {
	sum = s.etc
	for _, n := range s.layers {
		sum += n
	}
	for _, n := range s.logs {
		sum += n
	}
	for _, n := range s.volumes {
		sum += n
	}
	return sum
}

// storageOf walks all that a pod has written.
func (a *Agent) storageOf(w *podWorker, v podView) podStorage {
	s := podStorage{layers: map[string]uint64{}, logs: map[string]uint64{}, volumes: map[string]uint64{}}
	s.etc, s.inodes = folderUsage(w.dirs.etc)
	for _, c := range a.cfg.Runtime.Containers(string(w.uid)) {
		name, _, ok := splitContainerID(c.ID)
		if !ok {
			continue
		}
		if bytes, inodes, err := a.cfg.Runtime.DiskUsage(string(w.uid), c.ID); err == nil {
			s.layers[name] += bytes
			s.inodes += inodes
		}
	}
	for _, c := range allContainers(v.pod) {
		bytes, inodes := folderUsage(filepath.Join(w.dirs.disk, "logs", c.Name))
		s.logs[c.Name] += bytes
		s.inodes += inodes
	}
	for i := range v.pod.Spec.Volumes {
		vol := &v.pod.Spec.Volumes[i]
		if vol.EmptyDir == nil || vol.EmptyDir.Medium == corev1.StorageMediumMemory {
			continue // those in memory count there
		}
		bytes, inodes := folderUsage(volumePath(vol, w.dirs))
		s.volumes[vol.Name] = bytes
		s.inodes += inodes
	}
	return s
}

// folderUsage walks a folder; what goes away meanwhile is not counted.
func folderUsage(dir string) (bytes, inodes uint64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		inodes++
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += uint64(st.Blocks) * 512
		}
		return nil
	})
	return bytes, inodes
}

// storageUsage is when limits of storage were looked at, and why not since: a
// limit that was far then can only be exceeded now if the disk has become that
// much fuller.
type storageUsage struct {
	free     int64 // of the disk, at the last walk
	headroom int64 // the least distance from a limit then
	at       time.Time
	pods     int // that have limits
	every    time.Duration
}

const (
	storageEvery = 10 * time.Second // while a limit is near
	storageRest  = 5 * time.Minute  // to be sure, if the disk changes at all
	walkShare    = 50               // a walk takes at most this fraction of the time
)

// checkStorage evicts a pod that has written more than its limits allow. The
// walks it takes are made for pods with limits only, and not at all while the
// disk does not fill.
func (p *pressureKeeper) checkStorage(readings map[Signal]Reading, now time.Time) time.Duration {
	u := &p.usage
	var limited []*podWorker
	for _, w := range p.a.allWorkers() {
		v := w.view()
		if !v.rec.Started.IsZero() && !v.rec.Down && v.rec.Failed == nil && limitsStorage(v.pod) {
			limited = append(limited, w)
		}
	}
	if len(limited) == 0 {
		*u = storageUsage{}
		return lookFar
	}
	free := readings[signalNodefs].Available
	pause := max(u.every, storageEvery)
	if since := now.Sub(u.at); u.pods == len(limited) && (since < pause || free == u.free || u.free-free < u.headroom && since < storageRest) {
		return pause
	}
	begun := time.Now()
	u.headroom = 1 << 62
	for _, w := range limited {
		v := w.view()
		message, headroom := exceeds(v.pod, p.a.storageOf(w, v))
		if message != "" {
			p.evict(w, &failure{Reason: reasonEvicted, Message: message}, 0)
			u.pods = -1 // look again
			return storageEvery
		}
		u.headroom = min(u.headroom, headroom)
	}
	// Others may have freed as much as a pod has written: half is safer.
	u.headroom /= 2
	u.free, u.at, u.pods, u.every = free, now, len(limited), time.Since(begun)*walkShare
	return max(u.every, storageEvery)
}

func limitsStorage(pod *corev1.Pod) bool {
	for _, c := range allContainers(pod) {
		if _, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]; ok {
			return true
		}
	}
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumMemory && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() > 0
	})
}

// exceeds is what a pod is told whose storage exceeds a limit, "" if none, and
// how far it is from the nearest.
func exceeds(pod *corev1.Pod, s podStorage) (message string, headroom int64) {
	headroom = 1 << 62
	over := func(use uint64, limit int64) bool {
		headroom = min(headroom, limit-int64(use))
		return int64(use) > limit
	}
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil || v.EmptyDir.Medium == corev1.StorageMediumMemory || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if over(s.volumes[v.Name], v.EmptyDir.SizeLimit.Value()) {
			return "Usage of EmptyDir volume \"" + v.Name + "\" exceeds the limit \"" + v.EmptyDir.SizeLimit.String() + "\". ", 0
		}
	}
	limits := podresource.PodLimits(pod, podresource.PodResourcesOptions{})
	if q, ok := limits[corev1.ResourceEphemeralStorage]; ok && over(s.total(), q.Value()) {
		return "Pod ephemeral local storage usage exceeds the total limit of containers " + q.String() + ". ", 0
	}
	for _, c := range allContainers(pod) {
		if q, ok := c.Resources.Limits[corev1.ResourceEphemeralStorage]; ok && over(s.of(c.Name), q.Value()) {
			return "Container " + c.Name + " exceeded its local ephemeral storage limit \"" + q.String() + "\". ", 0
		}
	}
	return "", headroom
}
