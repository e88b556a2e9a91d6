package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// remoteFS are file systems that a question about their room may hang in, where
// their server is away: the kernel's client of NFS does until it is back.
var remoteFS = []string{"nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs"}

// claimVolume is the file system behind a claim that a pod has mounted.
type claimVolume struct {
	pod           *corev1.Pod
	volume, claim string
	fs            *fsSummary
}

// claimVolumes are those of all pods that run here; who asks about a pod gives its
// view. Devices have no file system, and those of remote servers are not asked.
func (a *Agent) claimVolumes(views []podView, at metav1.Time) (out []claimVolume) {
	var mounts []*mountinfo.Info // as they were made; read once there is a claim
	for _, v := range views {
		if len(v.running) == 0 {
			continue
		}
		folder := a.dirs(string(v.pod.UID)).volumes
		for i := range v.pod.Spec.Volumes {
			volume := &v.pod.Spec.Volumes[i]
			claim, ok := api.ClaimName(v.pod, volume)
			if !ok {
				continue
			}
			path, err := os.Readlink(filepath.Join(folder, volume.Name))
			if err != nil {
				continue // not there yet
			}
			if mounts == nil {
				if mounts, err = mountinfo.GetMounts(nil); err != nil {
					return nil
				}
			}
			if fs := kindOfFS(mounts, path); slices.Contains(remoteFS, fs) || strings.HasPrefix(fs, "fuse") {
				continue
			}
			if info, err := os.Stat(path); err != nil || !info.IsDir() {
				continue
			}
			out = append(out, claimVolume{v.pod, volume.Name, claim, folderFS(path, at)})
		}
	}
	return out
}

// kindOfFS is the type of the file system that a path is on, by the mounts alone.
func kindOfFS(mounts []*mountinfo.Info, path string) string {
	kind, longest := "", -1
	for _, m := range mounts {
		prefix := strings.TrimSuffix(m.Mountpoint, "/")
		if (path == prefix || strings.HasPrefix(path, prefix+"/")) && len(prefix) >= longest { // the last of one place counts
			kind, longest = m.FSType, len(prefix)
		}
	}
	return kind
}

// exposeClaims writes the series by which claims are watched that fill up.
func exposeClaims(e exposition, volumes []claimVolume) {
	for _, f := range []struct {
		name, help string
		value      func(*fsSummary) *uint64
	}{
		{"kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", func(s *fsSummary) *uint64 { return s.CapacityBytes }},
		{"kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", func(s *fsSummary) *uint64 { return s.AvailableBytes }},
		{"kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", func(s *fsSummary) *uint64 { return s.UsedBytes }},
		{"kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", func(s *fsSummary) *uint64 { return s.Inodes }},
		{"kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", func(s *fsSummary) *uint64 { return s.InodesFree }},
		{"kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", func(s *fsSummary) *uint64 { return s.InodesUsed }},
	} {
		e.family(f.name, "gauge", f.help)
		told := map[string]bool{} // pods share claims
		for _, v := range volumes {
			line := fmt.Sprintf("%s{namespace=%q,persistentvolumeclaim=%q}", f.name, v.pod.Namespace, v.claim)
			if n := f.value(v.fs); n != nil && !told[line] {
				told[line] = true
				fmt.Fprintf(e, "%s %d\n", line, *n)
			}
		}
	}
}
