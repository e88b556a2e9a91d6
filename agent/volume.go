package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"conclave/api"
)

// podDirs are the folders of one pod. disk outlives a reboot, and etc is below
// it: what containers may write to must not be in the node's memory. The others
// are on the run folder's tmpfs.
type podDirs struct {
	disk    string // manifest, state, objects, emptyDirs, a link to the logs
	logs    string // of all pods: see logfiles.go
	etc     string // hosts, hostname, resolv.conf, termination messages
	volumes string // what the agent writes: never on disk, for it holds secrets
	sub     string // bind mounts that pin subPaths
	kubelet string // what stands for kubelet's folder, for all pods
}

func (a *Agent) dirs(uid string) podDirs {
	return podDirs{
		disk:    filepath.Join(a.cfg.Dir, "pods", uid),
		logs:    filepath.Join(a.cfg.Dir, "log"),
		etc:     filepath.Join(a.cfg.Dir, "pods", uid, "etc"),
		volumes: filepath.Join(a.cfg.RunDir, "volumes", uid),
		sub:     filepath.Join(a.cfg.RunDir, "subpaths", uid),
		kubelet: filepath.Join(a.cfg.Dir, "kubelet"),
	}
}

func (d podDirs) log(container string, attempt int) string {
	return filepath.Join(d.disk, "logs", container, strconv.Itoa(attempt)+".log")
}

func (d podDirs) termination(container string, attempt int) string {
	return filepath.Join(d.etc, "termination", containerID(container, attempt))
}

// nfs is where an export is mounted for a volume.
func (d podDirs) nfs(volume string) string { return filepath.Join(d.volumes, "nfs~"+volume) }

// volumeSources is what volumes take their content from.
type volumeSources struct {
	sources
	token   func(p *corev1.ServiceAccountTokenProjection) ([]byte, error)
	fsGroup *int64
	user    *int64 // the one user that all containers run as, nil if they differ
}

// setUpVolume makes one volume ready to be mounted, or brings it up to date.
func setUpVolume(pod *corev1.Pod, v *corev1.Volume, d podDirs, src volumeSources) error {
	switch {
	case v.EmptyDir != nil && v.EmptyDir.Medium == corev1.StorageMediumMemory:
		return setUpMemory(filepath.Join(d.volumes, v.Name), memorySize(pod, v.EmptyDir, src.allocatable), src.fsGroup)
	case v.EmptyDir != nil:
		return setUpEmpty(filepath.Join(d.disk, "volumes", v.Name), src.fsGroup)
	case v.HostPath != nil:
		return checkHostPath(d.host(v.HostPath.Path), v.HostPath.Type)
	case v.Image != nil: // it is brought by the first container that mounts it, as its own image is
		return os.MkdirAll(filepath.Join(d.volumes, v.Name), dirMode)
	}
	files, err := renderVolume(pod, v, src)
	if err != nil {
		return err
	}
	_, err = writePayload(filepath.Join(d.volumes, v.Name), files, src.fsGroup)
	return err
}

// volumePath is where a volume is on the host.
func volumePath(v *corev1.Volume, d podDirs) string {
	switch {
	case v.HostPath != nil:
		return d.host(v.HostPath.Path)
	case v.EmptyDir != nil && v.EmptyDir.Medium != corev1.StorageMediumMemory:
		return filepath.Join(d.disk, "volumes", v.Name)
	}
	return filepath.Join(d.volumes, v.Name)
}

func setUpEmpty(dir string, gid *int64) error {
	if _, err := os.Stat(dir); err == nil {
		return nil // containers own what is in it, and its mode
	}
	return makeDir(dir, 0o777, gid)
}

// memorySize is the most that a volume in memory can hold: what it may, what
// the pod may, or what the node has for pods, whichever is least. 0: no matter.
func memorySize(pod *corev1.Pod, e *corev1.EmptyDirVolumeSource, allocatable corev1.ResourceList) int64 {
	size := allocatable.Memory().Value()
	least := func(limit int64) {
		if limit > 0 && (size == 0 || limit < size) {
			size = limit
		}
	}
	var sum int64
	for _, c := range pod.Spec.Containers {
		limit := c.Resources.Limits.Memory().Value()
		if limit == 0 { // this one may use all that there is
			sum = 0
			break
		}
		sum += limit
	}
	least(sum)
	if e.SizeLimit != nil {
		least(e.SizeLimit.Value())
	}
	return size
}

func setUpMemory(dir string, size int64, gid *int64) error {
	if mounted, err := mountinfo.Mounted(dir); err == nil && mounted {
		return nil
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	options := "mode=0777"
	if size > 0 {
		options += ",size=" + strconv.FormatInt(size, 10)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", dir, err)
	}
	return makeDir(dir, 0o777, gid)
}

func checkHostPath(path string, kind *corev1.HostPathType) error {
	if kind == nil || *kind == corev1.HostPathUnset {
		return nil
	}
	switch *kind {
	case corev1.HostPathDirectoryOrCreate:
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return makeDir(path, dirMode, nil)
		}
	case corev1.HostPathFileOrCreate:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return fmt.Errorf("hostPath type check failed: %w", err)
		}
		f.Close()
	}
	is := map[corev1.HostPathType]struct {
		what string
		ok   func(fs.FileMode) bool
	}{
		corev1.HostPathDirectoryOrCreate: {"a directory", fs.FileMode.IsDir},
		corev1.HostPathDirectory:         {"a directory", fs.FileMode.IsDir},
		corev1.HostPathFileOrCreate:      {"a file", fs.FileMode.IsRegular},
		corev1.HostPathFile:              {"a file", fs.FileMode.IsRegular},
		corev1.HostPathSocket:            {"a socket file", func(m fs.FileMode) bool { return m&fs.ModeSocket != 0 }},
		corev1.HostPathCharDev:           {"a character device", func(m fs.FileMode) bool { return m&fs.ModeCharDevice != 0 }},
		corev1.HostPathBlockDev: {"a block device", func(m fs.FileMode) bool {
			return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
		}},
	}[*kind]
	if is.ok == nil {
		return fmt.Errorf("hostPath type check failed: %s is an unknown type", *kind)
	}
	info, err := os.Stat(path)
	if err != nil || !is.ok(info.Mode()) {
		return fmt.Errorf("hostPath type check failed: %s is not %s", path, is.what)
	}
	return nil
}

// renderVolume is what the files of a volume should be.
func renderVolume(pod *corev1.Pod, v *corev1.Volume, src volumeSources) (map[string]payloadFile, error) {
	files := map[string]payloadFile{}
	switch {
	case v.ConfigMap != nil:
		return files, renderConfigMap(files, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, mode(v.ConfigMap.DefaultMode), src)
	case v.Secret != nil:
		return files, renderSecret(files, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, mode(v.Secret.DefaultMode), src)
	case v.DownwardAPI != nil:
		return files, renderDownward(files, pod, v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode), src)
	case v.Projected != nil:
		m := mode(v.Projected.DefaultMode)
		for i := range v.Projected.Sources {
			if err := renderProjection(files, pod, &v.Projected.Sources[i], m, src); err != nil {
				return nil, err
			}
		}
		return files, nil
	}
	return nil, fmt.Errorf("this kind of volume is not supported by Conclave")
}

func renderProjection(files map[string]payloadFile, pod *corev1.Pod, s *corev1.VolumeProjection, m fs.FileMode, src volumeSources) error {
	switch {
	case s.ConfigMap != nil:
		return renderConfigMap(files, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, m, src)
	case s.Secret != nil:
		return renderSecret(files, s.Secret.Name, s.Secret.Items, s.Secret.Optional, m, src)
	case s.DownwardAPI != nil:
		return renderDownward(files, pod, s.DownwardAPI.Items, m, src)
	case s.ServiceAccountToken != nil:
		token, err := src.token(s.ServiceAccountToken)
		if err != nil {
			return err
		}
		f := payloadFile{Data: token, Mode: m}
		if src.user != nil || src.fsGroup != nil {
			f.Mode, f.UID = 0o600, src.user
		}
		files[s.ServiceAccountToken.Path] = f
		return nil
	}
	return fmt.Errorf("this kind of projected source is not supported by Conclave")
}

func renderConfigMap(files map[string]payloadFile, name string, items []corev1.KeyToPath, optional *bool, m fs.FileMode, src volumeSources) error {
	cm, err := src.configMap(name)
	if err != nil {
		return err
	}
	if cm == nil {
		return missing(optional, "configmap %q not found", name)
	}
	data := make(map[string][]byte, len(cm.Data)+len(cm.BinaryData))
	for k, v := range cm.Data {
		data[k] = []byte(v)
	}
	for k, v := range cm.BinaryData {
		data[k] = v
	}
	return renderKeys(files, data, items, optional, m, "config")
}

func renderSecret(files map[string]payloadFile, name string, items []corev1.KeyToPath, optional *bool, m fs.FileMode, src volumeSources) error {
	s, err := src.secret(name)
	if err != nil {
		return err
	}
	if s == nil {
		return missing(optional, "secret %q not found", name)
	}
	return renderKeys(files, s.Data, items, optional, m, "secret")
}

func renderKeys(files map[string]payloadFile, data map[string][]byte, items []corev1.KeyToPath, optional *bool, m fs.FileMode, what string) error {
	if items == nil {
		for k, v := range data {
			files[k] = payloadFile{Data: v, Mode: m}
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if err := missing(optional, "references non-existent %s key: %s", what, item.Key); err != nil {
				return err
			}
			continue
		}
		f := payloadFile{Data: v, Mode: m}
		if item.Mode != nil {
			f.Mode = fs.FileMode(*item.Mode)
		}
		files[item.Path] = f
	}
	return nil
}

func renderDownward(files map[string]payloadFile, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, m fs.FileMode, src volumeSources) error {
	for _, item := range items {
		from := corev1.EnvVarSource{FieldRef: item.FieldRef, ResourceFieldRef: item.ResourceFieldRef}
		var v string
		var err error
		if item.ResourceFieldRef != nil {
			c := containerNamed(pod, item.ResourceFieldRef.ContainerName)
			if c == nil {
				return fmt.Errorf("container %q not found", item.ResourceFieldRef.ContainerName)
			}
			v, _, err = envValueFrom(pod, c, &from, src.sources)
		} else {
			v, _, err = envValueFrom(pod, nil, &from, src.sources)
		}
		if err != nil {
			return err
		}
		f := payloadFile{Data: []byte(v), Mode: m}
		if item.Mode != nil {
			f.Mode = fs.FileMode(*item.Mode)
		}
		files[item.Path] = f
	}
	return nil
}

func mode(m *int32) fs.FileMode {
	if m == nil {
		return 0o644
	}
	return fs.FileMode(*m)
}

// referenced are the names of the ConfigMaps and Secrets that a pod needs,
// those of pulling its images included.
func referenced(pod *corev1.Pod) (configMaps, secrets map[string]bool) {
	configMaps, secrets = map[string]bool{}, map[string]bool{}
	for _, c := range everyContainer(pod) {
		for _, from := range c.EnvFrom {
			if from.ConfigMapRef != nil {
				configMaps[from.ConfigMapRef.Name] = true
			}
			if from.SecretRef != nil {
				secrets[from.SecretRef.Name] = true
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.ConfigMapKeyRef != nil {
				configMaps[e.ValueFrom.ConfigMapKeyRef.Name] = true
			}
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				secrets[e.ValueFrom.SecretKeyRef.Name] = true
			}
		}
	}
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap != nil {
			configMaps[v.ConfigMap.Name] = true
		}
		if v.Secret != nil {
			secrets[v.Secret.SecretName] = true
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					configMaps[s.ConfigMap.Name] = true
				}
				if s.Secret != nil {
					secrets[s.Secret.Name] = true
				}
			}
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		secrets[s.Name] = true
	}
	delete(configMaps, "")
	delete(secrets, "")
	return configMaps, secrets
}

// volumeMounts are a container's mounts of the pod's volumes.
func volumeMounts(pod *corev1.Pod, c *corev1.Container, d podDirs, env map[string]string, fsGroup *int64) ([]specs.Mount, error) {
	volumes := map[string]*corev1.Volume{}
	for i := range pod.Spec.Volumes {
		volumes[pod.Spec.Volumes[i].Name] = &pod.Spec.Volumes[i]
	}
	var mounts []specs.Mount
	for i, m := range c.VolumeMounts {
		v := volumes[m.Name]
		if v == nil {
			return nil, configError{fmt.Sprintf("volume %q of container %q is not in the pod", m.Name, c.Name)}
		}
		source, sub := volumePath(v, d), m.SubPath
		if _, claimed := api.ClaimName(pod, v); claimed || v.CSI != nil || v.NFS != nil {
			var err error
			if source, err = os.Readlink(source); err != nil {
				return nil, configError{fmt.Sprintf("volume %q of container %q is not set up", m.Name, c.Name)}
			}
		}
		if m.SubPathExpr != "" {
			var unknown string
			sub = expand(m.SubPathExpr, func(k string) (string, bool) {
				value, ok := env[k]
				if !ok {
					unknown = k
				}
				return value, ok
			})
			if unknown != "" {
				return nil, configError{fmt.Sprintf("missing value for %q", unknown)}
			}
		}
		if v.HostPath != nil {
			// A source that is not there becomes a folder, as with Docker.
			if _, err := os.Stat(source); errors.Is(err, fs.ErrNotExist) {
				if err := os.MkdirAll(source, dirMode); err != nil {
					return nil, configError{err.Error()}
				}
			}
		}
		if sub != "" {
			if filepath.IsAbs(sub) {
				return nil, configError{fmt.Sprintf("subPath %q must not be absolute", sub)}
			}
			for _, part := range strings.Split(sub, "/") {
				if part == ".." {
					return nil, configError{fmt.Sprintf("subPath %q must not contain '..'", sub)}
				}
			}
			var err error
			if source, err = pinSubPath(source, sub, filepath.Join(d.sub, fmt.Sprintf("%s-%d", c.Name, i)), fsGroup); err != nil {
				return nil, configError{fmt.Sprintf("failed to prepare subPath for volumeMount %q of container %q: %v", m.Name, c.Name, err)}
			}
		}
		readOnly := m.ReadOnly || v.Secret != nil || v.ConfigMap != nil || v.DownwardAPI != nil || v.Projected != nil ||
			v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly || v.CSI != nil && isTrue(v.CSI.ReadOnly) || v.NFS != nil && v.NFS.ReadOnly
		mount := bindMount(source, m.MountPath, readOnly || v.Image != nil, m.MountPropagation)
		if v.Image != nil { // it is content, not programs
			mount.Options = append(mount.Options, "noexec", "nosuid", "nodev")
		}
		recursive, err := recursiveReadOnly(&m, mayMountRecursively())
		if err != nil {
			return nil, configError{err.Error()}
		}
		if recursive {
			mount.Options = append(mount.Options, "rro")
		}
		mount.Options = append(mount.Options, m.BindMountOptions...)
		if v.HostPath != nil && filepath.Clean(v.HostPath.Path) == hostLogs && sub == "" {
			with, err := d.withLogs(mount, func(path string) bool {
				return slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return filepath.Clean(m.MountPath) == path })
			})
			if err != nil {
				return nil, configError{err.Error()}
			}
			mounts = append(mounts, with...)
			continue
		}
		mounts = append(mounts, mount)
	}
	return mounts, nil
}

func bindMount(source, target string, readOnly bool, propagation *corev1.MountPropagationMode) specs.Mount {
	options := []string{"rbind", "rprivate", "rw"}
	if propagation != nil {
		switch *propagation {
		case corev1.MountPropagationHostToContainer:
			options[1] = "rslave"
		case corev1.MountPropagationBidirectional:
			options[1] = "rshared"
		}
	}
	if readOnly {
		options[2] = "ro"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: options}
}

// pinSubPath resolves sub inside volume, never following a link out of it, and
// holds the result by a bind mount at pin: whatever the pod does to the volume
// afterwards, the container gets what was resolved here.
func pinSubPath(volume, sub, pin string, gid *int64) (string, error) {
	root, err := os.OpenFile(volume, unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	handle, err := pathrs.OpenatInRoot(root, sub)
	if errors.Is(err, fs.ErrNotExist) {
		// What is made here is as open as the volume: whoever may write to that
		// may write to this.
		var info fs.FileInfo
		if info, err = os.Stat(volume); err == nil {
			handle, err = pathrs.MkdirAllHandle(root, sub, info.Mode().Perm())
		}
		if err == nil {
			err = makeDir(fdPath(handle), info.Mode()&(fs.ModePerm|fs.ModeSetgid), gid)
		}
	}
	if err != nil {
		return "", err
	}
	defer handle.Close()
	var info unix.Stat_t
	if err := unix.Fstat(int(handle.Fd()), &info); err != nil {
		return "", err
	}
	if err := unpin(pin); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(pin), 0o700); err != nil {
		return "", err
	}
	if info.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(pin, 0o700)
	} else {
		err = os.WriteFile(pin, nil, 0o600)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount(fdPath(handle), pin, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind %s of %s: %w", sub, volume, err)
	}
	return pin, nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// unpin takes a pin away. It removes one empty folder or file, never what a
// mount that could not be taken away still shows.
func unpin(pin string) error {
	for {
		err := unix.Unmount(pin, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", pin, err)
		}
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmountBelow takes away what is mounted below a folder, the inner before the
// outer: what shows there is not the folder's to remove.
func unmountBelow(dir string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return fmt.Errorf("what is mounted below %s: %w", dir, err)
	}
	for _, m := range slices.Backward(mounts) { // the kernel lists them as they were made
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// tearDownVolumes unmounts what the agent mounted for a pod and removes the
// folders. It refuses to remove anything below a mount that stays.
func tearDownVolumes(d podDirs) error {
	pins, err := os.ReadDir(d.sub)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, p := range pins {
		if err := unpin(filepath.Join(d.sub, p.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(d.sub); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	volumes, err := os.ReadDir(d.volumes)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, v := range volumes {
		dir := filepath.Join(d.volumes, v.Name())
		if v.Type()&fs.ModeSymlink != 0 { // it leads to what is not the pod's, a mount perhaps
			if err := os.Remove(dir); err != nil {
				return err
			}
			continue
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		if there, err := mountinfo.Mounted(dir); err == nil && there {
			return fmt.Errorf("something is still mounted on %s", dir) // what is there may be somebody's data
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	// A pod with Bidirectional propagation may have mounted anything there.
	for _, dir := range []string{d.volumes, filepath.Join(d.disk, "volumes")} {
		if err := unmountBelow(dir); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(d.volumes), os.RemoveAll(d.etc), os.RemoveAll(filepath.Join(d.disk, "volumes")))
}
