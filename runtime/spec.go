package runtime

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

// defaultPath is what PATH is if neither image nor container say.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Limits on open files, as the container runtimes of today set them: the soft
// one small, because programs close all files up to it, the hard one large.
const (
	softFiles = 1024
	hardFiles = 512 << 10
)

// defaultCapabilities are those of every container runtime.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// Files of the kernel that say or do too much.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{
		"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
	}
)

// host is what a spec depends on beside what was asked for.
type host struct {
	v2           bool
	capabilities []string // all that the kernel knows
	hostname     string
	shm          string // the folder that is /dev/shm
	devices      func() ([]specs.LinuxDevice, error)
}

// request makes the request that creates a container.
func (e *Engine) request(p *pod, img Image, layers []string, dir string, c ContainerConfig) (*proto.Create, error) {
	h := host{v2: e.v2, capabilities: e.caps, hostname: p.cfg.Hostname, shm: filepath.Join(p.dir, proto.ShmDir), devices: hostDevices}
	if p.cfg.HostIPC {
		h.shm = "/dev/shm"
	}
	if h.hostname == "" {
		var err error
		if h.hostname, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	c.Resources = e.resources(c.Resources)
	spec, err := makeSpec(h, p.cfg, img, c)
	if err != nil {
		return nil, err
	}
	if err := e.shareProcesses(spec, p.id, c.PIDsOf); err != nil {
		return nil, err
	}
	if p.cfg.IDs != 0 {
		mapMounts(spec.Mounts, c.Mounts)
	}
	spec.Root.Path = filepath.Join(dir, proto.RootFSDir)
	signal, err := parseSignal(cmp.Or(c.StopSignal, img.StopSignal))
	if err != nil {
		return nil, err
	}
	user, groups := makeUser(img, c)
	return &proto.Create{
		Image:      img.ID,
		Dir:        dir,
		Layers:     layers,
		Spec:       spec,
		User:       user,
		Groups:     groups,
		OnlyGroups: c.OnlyGroups,
		TTY:        c.TTY,
		Stdin:      c.Stdin,
		StdinOnce:  c.StdinOnce,
		StopSignal: int(signal),
		Epoch:      c.Epoch,
		Log:        proto.Log{Path: c.LogPath, MaxSize: c.LogMaxSize, MaxFiles: c.LogMaxFiles},
	}, nil
}

// shareProcesses puts a container among the processes of another one of its
// pod. Where all of the pod's share them, or the host's, it is there already.
func (e *Engine) shareProcesses(spec *proto.Spec, podID, id string) error {
	if id == "" {
		return nil
	}
	target, ok := e.Container(podID, id)
	if !ok || target.State != Running {
		return fmt.Errorf("container %s, among whose processes it is to be, does not run", id)
	}
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.PIDNamespace {
			ns.Path = "/proc/" + strconv.Itoa(target.PID) + "/ns/pid"
		}
	}
	return nil
}

// makeSpec decides all of a container's spec but for the root's path, the user
// and HOME, which depend on the root filesystem. The pod process lives in the
// pod's network, IPC and UTS namespaces: the container inherits them.
func makeSpec(h host, p proto.Pod, img Image, c ContainerConfig) (*proto.Spec, error) {
	args, err := makeArgs(img, c)
	if err != nil {
		return nil, err
	}
	caps, err := makeCapabilities(h, c)
	if err != nil {
		return nil, err
	}
	score := 0
	if c.OOMScoreAdj != nil {
		score = *c.OOMScoreAdj
	}
	spec := &proto.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Readonly: c.ReadOnlyRoot},
		Process: &specs.Process{
			Terminal:        c.TTY,
			Args:            args,
			Env:             makeEnv(h, img, c),
			Cwd:             filepath.Clean("/" + cmp.Or(c.WorkingDir, img.WorkingDir)),
			Capabilities:    caps,
			NoNewPrivileges: c.NoNewPrivileges,
			// Always set: the pod process' own must not be inherited.
			OOMScoreAdj: &score,
			Rlimits:     []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: softFiles, Hard: hardFiles}},
		},
		Mounts: makeMounts(h, c),
		Linux: &proto.Linux{
			CgroupsPath: filepath.Join(p.CgroupPath, c.ID),
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}},
			Resources:   makeResources(c),
		},
	}
	if !p.HostPID { // the pod process fills in the path of a shared one
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	spec.Linux.Devices = c.Devices
	if c.Privileged {
		all, err := h.devices()
		if err != nil {
			return nil, fmt.Errorf("list the host's devices: %w", err)
		}
		spec.Linux.Devices = append(slices.DeleteFunc(all, func(d specs.LinuxDevice) bool {
			return slices.ContainsFunc(c.Devices, func(own specs.LinuxDevice) bool { return own.Path == d.Path })
		}), c.Devices...)
	} else {
		if !c.UnmaskedProc {
			spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
		}
		if h.v2 {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
	}
	if spec.Linux.Seccomp, err = makeSeccomp(c, caps.Bounding); err != nil {
		return nil, err
	}
	spec.Process.ApparmorProfile = c.AppArmor
	spec.Linux.RootfsPropagation = rootPropagation(c.Mounts)
	return spec, nil
}

// makeArgs joins the command as Kubernetes does: a command replaces entrypoint
// and arguments of the image, arguments replace the image's only.
func makeArgs(img Image, c ContainerConfig) ([]string, error) {
	var args []string
	switch {
	case len(c.Command) > 0:
		args = slices.Concat(c.Command, c.Args)
	case len(c.Args) > 0:
		args = slices.Concat(img.Entrypoint, c.Args)
	default:
		args = slices.Concat(img.Entrypoint, img.Cmd)
	}
	if len(args) == 0 || args[0] == "" {
		return nil, fmt.Errorf("%w: no command specified, and the image has none", ErrStart)
	}
	return args, nil
}

// makeEnv merges the environment, the last of a name winning, each name in the
// place of its first mention.
func makeEnv(h host, img Image, c ContainerConfig) []string {
	all := []string{"PATH=" + defaultPath, "HOSTNAME=" + h.hostname}
	if c.TTY {
		all = append(all, "TERM=xterm")
	}
	all = slices.Concat(all, img.Env, c.Env)
	var out []string
	at := map[string]int{}
	for _, kv := range all {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}

// makeUser returns the user as the root filesystem's files will resolve it.
func makeUser(img Image, c ContainerConfig) (user string, groups []uint32) {
	user, group, _ := strings.Cut(img.User, ":")
	if c.UID != nil {
		user, group = strconv.FormatInt(*c.UID, 10), ""
	}
	if c.GID != nil {
		group = strconv.FormatInt(*c.GID, 10)
	}
	if group != "" {
		user = cmp.Or(user, "0") + ":" + group
	}
	for _, g := range c.Groups {
		groups = append(groups, uint32(g))
	}
	return user, groups
}

// allCapabilities lists what a privileged container gets: all that the kernel
// knows, but for what this process could not give, in a host that is a
// container itself.
func allCapabilities() ([]string, error) {
	list, err := capability.ListSupported()
	if err != nil {
		return nil, err
	}
	own, err := capability.NewPid2(0)
	if err != nil {
		return nil, err
	}
	if err := own.Load(); err != nil {
		return nil, err
	}
	var out []string
	for _, c := range list {
		if own.Get(capability.BOUNDING, c) {
			out = append(out, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	slices.Sort(out)
	return out, nil
}

// makeCapabilities adds to and drops from the defaults; drops win, but for
// single ones added back to an ALL.
func makeCapabilities(h host, c ContainerConfig) (*specs.LinuxCapabilities, error) {
	set := map[string]bool{}
	base := defaultCapabilities
	if c.Privileged {
		base = h.capabilities
	}
	for _, name := range base {
		set[name] = true
	}
	change := func(names []string, to bool) error {
		for _, name := range names {
			name = strings.ToUpper(name)
			if name == "ALL" {
				continue
			}
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			if !slices.Contains(h.capabilities, name) {
				return fmt.Errorf("unknown capability %q", name)
			}
			set[name] = to
		}
		return nil
	}
	all := func(names []string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, "ALL") })
	}
	if !c.Privileged {
		if all(c.AddCapabilities) {
			for _, name := range h.capabilities {
				set[name] = true
			}
		}
		if all(c.DropCapabilities) {
			clear(set)
		}
		if err := errors.Join(change(c.AddCapabilities, true), change(c.DropCapabilities, false)); err != nil {
			return nil, err
		}
	}
	names := []string{}
	for _, name := range h.capabilities {
		if set[name] {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}, nil
}

// makeMounts puts the container's mounts after the usual ones, in whose place
// they may come, and the outer before the inner.
func makeMounts(h host, c ContainerConfig) []specs.Mount {
	mode := "ro"
	if c.Privileged {
		mode = "rw"
	}
	usual := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "bind", Source: h.shm, Options: []string{"rbind", "nosuid", "nodev", "noexec", "rw"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
	}
	own := slices.Clone(c.Mounts)
	for i := range own {
		own[i].Destination = filepath.Clean("/" + own[i].Destination)
	}
	slices.SortStableFunc(own, func(a, b specs.Mount) int {
		return strings.Count(strings.TrimSuffix(a.Destination, "/"), "/") - strings.Count(strings.TrimSuffix(b.Destination, "/"), "/")
	})
	usual = slices.DeleteFunc(usual, func(u specs.Mount) bool {
		return slices.ContainsFunc(own, func(m specs.Mount) bool { return m.Destination == u.Destination })
	})
	return append(usual, own...)
}

// rootPropagation lets through what the mounts ask to let through.
func rootPropagation(mounts []specs.Mount) string {
	has := func(options ...string) bool {
		return slices.ContainsFunc(mounts, func(m specs.Mount) bool {
			return slices.ContainsFunc(m.Options, func(o string) bool { return slices.Contains(options, o) })
		})
	}
	switch {
	case has("rshared", "shared"):
		return "rshared"
	case has("rslave", "slave"):
		return "rslave"
	}
	return ""
}

func makeResources(c ContainerConfig) *specs.LinuxResources {
	var r specs.LinuxResources
	if c.Resources != nil {
		r = *c.Resources
	}
	// libcontainer allows the usual devices after this.
	r.Devices = append([]specs.LinuxDeviceCgroup{{Allow: c.Privileged, Access: "rwm"}}, r.Devices...)
	return &r
}

// hostDevices lists the device nodes of the host, for a privileged container.
func hostDevices() ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			switch path {
			case "/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd":
				return filepath.SkipDir
			}
			return nil
		}
		if d.Type()&os.ModeDevice == 0 || path == "/dev/console" || path == "/dev/ptmx" {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		kind := "b"
		if d.Type()&os.ModeCharDevice != 0 {
			kind = "c"
		}
		mode := info.Mode().Perm()
		out = append(out, specs.LinuxDevice{
			Path: path, Type: kind, FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
			Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		})
		return nil
	})
	return out, err
}

// Signals that C libraries leave free are counted from their first up and from
// their last down; Kubernetes writes the lower half in the one way and the upper
// in the other.
const firstFree, upperFree, lastFree = 34, 50, 64

// signalName is how Kubernetes writes a signal, empty for none.
func signalName(n int) string {
	switch {
	case n == firstFree:
		return "SIGRTMIN"
	case n > firstFree && n < upperFree:
		return fmt.Sprintf("SIGRTMIN+%d", n-firstFree)
	case n == lastFree:
		return "SIGRTMAX"
	case n >= upperFree && n < lastFree:
		return fmt.Sprintf("SIGRTMAX-%d", lastFree-n)
	}
	return unix.SignalName(syscall.Signal(n))
}

// otherNames are those that a signal has besides the kernel's own.
var otherNames = map[string]syscall.Signal{"SIGCLD": unix.SIGCHLD, "SIGIOT": unix.SIGABRT, "SIGPOLL": unix.SIGIO}

// parseSignal reads "SIGQUIT", "quit", "3" or "SIGRTMIN+3"; empty is SIGTERM.
func parseSignal(s string) (syscall.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= lastFree {
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	for _, from := range []struct {
		name, sign string
		n, step    int
	}{{"SIGRTMIN", "+", firstFree, 1}, {"SIGRTMAX", "-", lastFree, -1}} {
		rest, ok := strings.CutPrefix(name, from.name)
		if !ok {
			continue
		}
		distance := 0
		if rest != "" {
			digits, ok := strings.CutPrefix(rest, from.sign)
			var err error
			if distance, err = strconv.Atoi(digits); !ok || err != nil || distance < 0 || distance > lastFree-firstFree {
				break
			}
		}
		return syscall.Signal(from.n + from.step*distance), nil
	}
	if n, ok := otherNames[name]; ok {
		return n, nil
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown stop signal %q", s)
}
