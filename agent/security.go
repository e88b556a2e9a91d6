package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What a container is allowed. Of the security contexts' fields three kinds do
// nothing here because they do nothing on such a node under Kubernetes either:
// seLinuxOptions and seLinuxChangePolicy where the kernel has no SELinux (no
// runtime labels then), and windowsOptions on Linux.

// security is what the node says about containers.
type security struct {
	profiles  string // the folder below which Localhost seccomp profiles are
	byDefault bool   // RuntimeDefault for who names no profile
}

func (a *Agent) security() security {
	return security{filepath.Join(a.cfg.Dir, "seccomp"), a.cfg.SeccompDefault}
}

// seccomp is the profile of a container as the runtime is to be told: the
// container's own, the pod's, or the node's default. root is the folder below
// which Localhost profiles are.
func seccomp(pod *corev1.Pod, c *corev1.Container, root string, byDefault bool) (string, error) {
	var p *corev1.SeccompProfile
	if sc := pod.Spec.SecurityContext; sc != nil {
		p = sc.SeccompProfile
	}
	if sc := c.SecurityContext; sc != nil {
		if isTrue(sc.Privileged) {
			return "", nil
		}
		if sc.SeccompProfile != nil {
			p = sc.SeccompProfile
		}
	}
	switch {
	case p == nil && byDefault:
		return "runtime/default", nil
	case p == nil || p.Type == corev1.SeccompProfileTypeUnconfined:
		return "", nil
	case p.Type == corev1.SeccompProfileTypeRuntimeDefault:
		return "runtime/default", nil
	case p.Type == corev1.SeccompProfileTypeLocalhost && p.LocalhostProfile != nil && filepath.IsLocal(*p.LocalhostProfile):
		return "localhost/" + filepath.Join(root, *p.LocalhostProfile), nil
	}
	return "", configError{fmt.Sprintf("invalid seccomp profile of type %s", p.Type)}
}

// safeSysctls belong to a namespace and cannot be used against the node or
// other pods.
var safeSysctls = []string{
	"kernel.shm_rmid_forced",
	"net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range",
	"net.ipv4.tcp_syncookies", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem",
}

// checkSysctls refuses a pod whose sysctls are neither safe nor allowed on this
// node by name, or by a prefix and "*".
func checkSysctls(pod *corev1.Pod, allowed []string) error {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := sysctlName(s.Name)
		known := slices.ContainsFunc(slices.Concat(safeSysctls, allowed), func(a string) bool {
			prefix, pattern := strings.CutSuffix(sysctlName(a), "*")
			return name == prefix || pattern && strings.HasPrefix(name, prefix)
		})
		switch {
		case !known:
			return fmt.Errorf("%q not allowlisted", s.Name)
		case pod.Spec.HostNetwork && strings.HasPrefix(name, "net."):
			return fmt.Errorf("%q not allowed with host net enabled", s.Name)
		case pod.Spec.HostIPC && !strings.HasPrefix(name, "net."):
			return fmt.Errorf("%q not allowed with host ipc enabled", s.Name)
		}
	}
	return nil
}

// sysctlName separates the parts of a name by dots, which within a part are
// slashes then, as sysctl(8) has it.
func sysctlName(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	return name
}

// mayMountRecursively says whether the kernel can make a mount read-only with
// all that is mounted below it (mount_setattr, of 5.12).
var mayMountRecursively = sync.OnceValue(func() bool {
	return unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}) != unix.ENOSYS
})

// recursiveReadOnly decides whether a mount is to be so; possible says whether
// the kernel can.
func recursiveReadOnly(m *corev1.VolumeMount, possible bool) (bool, error) {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == corev1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	switch {
	case !m.ReadOnly:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", m.Name)
	case m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but mountPropagation is %q, not None", m.Name, *m.MountPropagation)
	case *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled && !possible:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", m.Name)
	}
	return possible, nil
}

// mountStatuses are what a container's status says of its mounts.
func mountStatuses(c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		s := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if recursive, err := recursiveReadOnly(m, mayMountRecursively()); err == nil && recursive {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// userRanges gives each pod with users of its own 65536 of the host's, none of
// them twice at a time. The first range is the host's own.
type userRanges struct {
	mu   sync.Mutex
	used map[uint32]types.UID
}

const usersPerPod = 1 << 16

// keep says that a pod has a range already.
func (r *userRanges) keep(first uint32, uid types.UID) {
	if first == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used == nil {
		r.used = map[uint32]types.UID{}
	}
	r.used[first] = uid
}

// take returns the lowest free range.
func (r *userRanges) take(uid types.UID) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.used == nil {
		r.used = map[uint32]types.UID{}
	}
	for n := range uint32(math.MaxUint16 - 1) { // the last id of all is nobody's
		if first := (n + 1) * usersPerPod; r.used[first] == "" {
			r.used[first] = uid
			return first, nil
		}
	}
	return 0, errors.New("no range of user IDs is left on this node")
}

func (r *userRanges) free(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.used, func(_ uint32, of types.UID) bool { return of == uid })
}

// ownUsers says that a pod is to have users of its own.
func ownUsers(pod *corev1.Pod) bool { return pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers }

// mayIsolateUsers says whether the kernel has what user namespaces of pods need:
// the mapping of ids for every filesystem that volumes are on (tmpfs has it since
// Linux 6.3).
var mayIsolateUsers = sync.OnceValue(func() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) != nil {
		return false
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	most, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	return err == nil && strings.TrimSpace(string(most)) != "0" && (major > 6 || major == 6 && minor >= 3)
})

// runtimeHandlers are the handlers that RuntimeClasses may name here, the
// default one among them, with what they can do.
var runtimeHandlers = []string{"", "runc"}

// checkHandler refuses a pod that asks for what no handler here can do, or whose
// class names another one.
func (w *podWorker) checkHandler(ctx context.Context, pod *corev1.Pod) error {
	if ownUsers(pod) && !mayIsolateUsers() {
		return errors.New("can't set `spec.hostUsers: false`, runtime does not support user namespaces")
	}
	if pod.Spec.RuntimeClassName == nil {
		return nil
	}
	o, err := w.a.objects.get(ctx, w.uid, w.dirs, objectKey{runtimeClassesResource, "", *pod.Spec.RuntimeClassName})
	if err != nil {
		return err
	}
	class, ok := o.(*nodev1.RuntimeClass)
	if !ok {
		return fmt.Errorf("RuntimeClass %q not found", *pod.Spec.RuntimeClassName)
	}
	if !slices.Contains(runtimeHandlers, class.Handler) {
		return fmt.Errorf("no runtime for %q is configured", class.Handler)
	}
	return nil
}

func handlerFeatures() (out []corev1.NodeRuntimeHandler) {
	for _, name := range runtimeHandlers {
		out = append(out, corev1.NodeRuntimeHandler{Name: name, Features: &corev1.NodeRuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: new(mayMountRecursively()), UserNamespaces: new(mayIsolateUsers()),
		}})
	}
	return out
}

// readPart reads at most so many bytes of a file that containers write to: they
// may have made it as large as they like. A negative offset is the file's end.
func readPart(path string, offset, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if offset < 0 {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		offset = max(info.Size()-most, 0)
	}
	return io.ReadAll(io.NewSectionReader(f, offset, most))
}
