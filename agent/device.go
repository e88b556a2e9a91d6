package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"conclave/api"
	"conclave/api/kinds"
)

// A volume in mode Block is a device of this node. What mounting is for the
// others, mapping is for it: the link below the pod's volumes leads to a device
// node, and a container that names the volume in its volumeDevices is given a
// node of the same device, and its cgroup leave to use it.

// mapFailure is why a volume could not be made a device for its pod.
type mapFailure struct{ error }

func (f mapFailure) Unwrap() error { return f.error }

// checkMode refuses a volume that containers want to use otherwise than it can
// be used.
func checkMode(pod *corev1.Pod, volume string, mode *corev1.PersistentVolumeMode) error {
	for _, c := range everyContainer(pod) {
		for _, m := range c.VolumeMounts {
			if m.Name == volume && kinds.IsBlock(mode) {
				return fmt.Errorf("volume %s has volumeMode %s, but is specified in volumeMounts", volume, corev1.PersistentVolumeBlock)
			}
		}
		for _, m := range c.VolumeDevices {
			if m.Name == volume && !kinds.IsBlock(mode) {
				return fmt.Errorf("volume %s has volumeMode %s, but is specified in volumeDevices", volume, corev1.PersistentVolumeFilesystem)
			}
		}
	}
	return nil
}

// mapDevice finds the device that a volume is, or has its driver make one.
func (w *podWorker) mapDevice(ctx context.Context, pod *corev1.Pod, volume *corev1.Volume, v *corev1.PersistentVolume) (path string, err error) {
	switch {
	case v.Spec.Local != nil:
		path = v.Spec.Local.Path
		if _, err := deviceAt(path); err != nil {
			return "", fmt.Errorf("local volume: %w", err)
		}
		return path, nil
	case v.Spec.CSI != nil:
		return w.setUpCSI(ctx, pod, volume, v, false)
	}
	return "", errors.New("volumes of this type are no block devices")
}

// deviceAt is what the kernel calls the block device whose node is at a path,
// and who may open it.
func deviceAt(path string) (specs.LinuxDevice, error) {
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil {
		return specs.LinuxDevice{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if info.Mode&unix.S_IFMT != unix.S_IFBLK {
		return specs.LinuxDevice{}, fmt.Errorf("path %q is no block device", path)
	}
	mode := os.FileMode(info.Mode & 0o777)
	return specs.LinuxDevice{
		Type: "b", Major: int64(unix.Major(info.Rdev)), Minor: int64(unix.Minor(info.Rdev)), FileMode: &mode, UID: &info.Uid, GID: &info.Gid,
	}, nil
}

// volumeDevices are the devices that a container is to have, each with the rule
// of its cgroup. A node of a device has the owner and the mode of the host's.
func volumeDevices(pod *corev1.Pod, c *corev1.Container, d podDirs) (devices []specs.LinuxDevice, rules []specs.LinuxDeviceCgroup, err error) {
	for _, m := range c.VolumeDevices {
		if !filepath.IsAbs(m.DevicePath) {
			return nil, nil, configError{fmt.Sprintf("error DevicePath `%s` must be an absolute path", m.DevicePath)}
		}
		readOnly, found := false, false
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			if _, claimed := api.ClaimName(pod, v); claimed && v.Name == m.Name {
				found, readOnly = true, v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
			}
		}
		if !found {
			return nil, nil, configError{fmt.Sprintf("cannot find volume %q to pass into container %q", m.Name, c.Name)}
		}
		device, err := deviceAt(filepath.Join(d.volumes, m.Name))
		if err != nil {
			return nil, nil, configError{fmt.Sprintf("volume %q of container %q: %v", m.Name, c.Name, err)}
		}
		device.Path = filepath.Clean(m.DevicePath)
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: device.Type, Major: &device.Major, Minor: &device.Minor, Access: "rwm"}
		if readOnly {
			rule.Access = "r"
		}
		devices, rules = append(devices, device), append(rules, rule)
	}
	return devices, rules, nil
}
