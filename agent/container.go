package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"
)

const (
	logMaxSize  = 10 << 20
	logMaxFiles = 5
)

// containerConfig is one start of a container as the runtime is to make it.
// Errors of type configError are for a human to mend. skipped are variables
// left out because of their names.
func containerConfig(pod *corev1.Pod, c *corev1.Container, attempt int, image Image, d podDirs, src sources, memory int64, domain string, secure security) (cfg ContainerConfig, skipped []string, err error) {
	list, values, skipped, err := environment(pod, c, src)
	if err != nil {
		return cfg, skipped, err
	}
	uid, gid := runAs(pod, c)
	if err := checkNonRoot(pod, c, uid, image.User); err != nil {
		return cfg, skipped, err
	}
	mounts, err := volumeMounts(pod, c, d, values, fsGroup(pod))
	if err != nil {
		return cfg, skipped, err
	}
	devices, rules, err := volumeDevices(pod, c, d)
	if err != nil {
		return cfg, skipped, err
	}
	etc, err := etcMounts(c, d, attempt)
	if err != nil {
		return cfg, skipped, err
	}
	score := oomScore(pod, c, memory)
	cfg = ContainerConfig{
		PodID: string(pod.UID), ID: containerID(c.Name, attempt), Image: image.ID,
		Command: expandAll(c.Command, values), Args: expandAll(c.Args, values),
		Env: list, WorkingDir: c.WorkingDir,
		Mounts:    append(mounts, etc...),
		Devices:   devices,
		Resources: containerResources(pod, c), OOMScoreAdj: &score,
		UID: uid, GID: gid, Groups: groups(pod),
		TTY: c.TTY, Stdin: c.Stdin, StdinOnce: c.StdinOnce,
		LogPath: d.log(c.Name, attempt), LogMaxSize: logMaxSize, LogMaxFiles: logMaxFiles,
	}
	cfg.Resources.Unified, cfg.Resources.Devices = wholeOOM, rules
	if !pod.Spec.HostNetwork {
		hostname, _ := podHostname(pod, domain)
		cfg.Env = append([]string{"HOSTNAME=" + hostname}, cfg.Env...)
	}
	if sc := c.SecurityContext; sc != nil {
		cfg.Privileged, cfg.ReadOnlyRoot = isTrue(sc.Privileged), isTrue(sc.ReadOnlyRootFilesystem)
		cfg.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
		cfg.UnmaskedProc = sc.ProcMount != nil && *sc.ProcMount == corev1.UnmaskedProcMount
		if sc.Capabilities != nil {
			cfg.AddCapabilities, cfg.DropCapabilities = capabilities(sc.Capabilities.Add), capabilities(sc.Capabilities.Drop)
		}
	}
	if target := targetOf(pod, c.Name); target != "" {
		if cfg.PIDsOf = src.running(target); cfg.PIDsOf == "" {
			return cfg, skipped, configError{fmt.Sprintf("unable to find target container %s", target)}
		}
	}
	if cfg.Seccomp, err = seccomp(pod, c, secure.profiles, secure.byDefault); err != nil {
		return cfg, skipped, err
	}
	cfg.AppArmor = theAppArmor().profileOf(pod, c)
	if sc := pod.Spec.SecurityContext; sc != nil && sc.SupplementalGroupsPolicy != nil {
		cfg.OnlyGroups = *sc.SupplementalGroupsPolicy == corev1.SupplementalGroupsPolicyStrict
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		cfg.StopSignal = string(*c.Lifecycle.StopSignal)
	}
	return cfg, skipped, nil
}

func expandAll(in []string, values map[string]string) []string {
	var out []string
	for _, s := range in {
		out = append(out, expand(s, lookupIn(values)))
	}
	return out
}

func capabilities(in []corev1.Capability) []string {
	var out []string
	for _, c := range in {
		out = append(out, string(c))
	}
	return out
}

// runAs is the user and group that the container is to run as; nil leaves them
// to the image.
func runAs(pod *corev1.Pod, c *corev1.Container) (uid, gid *int64) {
	if p := pod.Spec.SecurityContext; p != nil {
		uid, gid = p.RunAsUser, p.RunAsGroup
	}
	if sc := c.SecurityContext; sc != nil {
		if sc.RunAsUser != nil {
			uid = sc.RunAsUser
		}
		if sc.RunAsGroup != nil {
			gid = sc.RunAsGroup
		}
	}
	return uid, gid
}

func runAsNonRoot(pod *corev1.Pod, c *corev1.Container) bool {
	if sc := c.SecurityContext; sc != nil && sc.RunAsNonRoot != nil {
		return *sc.RunAsNonRoot
	}
	return pod.Spec.SecurityContext != nil && isTrue(pod.Spec.SecurityContext.RunAsNonRoot)
}

// checkNonRoot refuses a container that must not be root and is, or might be.
func checkNonRoot(pod *corev1.Pod, c *corev1.Container, uid *int64, imageUser string) error {
	if !runAsNonRoot(pod, c) {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", podFullName(pod), c.Name)
	if uid != nil {
		if *uid == 0 {
			return configError{"container's runAsUser breaks non-root policy " + where}
		}
		return nil
	}
	user, _, _ := strings.Cut(imageUser, ":")
	if user == "" {
		return configError{"container has runAsNonRoot and image will run as root " + where}
	}
	number, err := strconv.ParseInt(user, 10, 64)
	if err != nil {
		return configError{fmt.Sprintf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user, where)}
	}
	if number == 0 {
		return configError{"container has runAsNonRoot and image will run as root " + where}
	}
	return nil
}

// podFullName is how Kubernetes' messages name a pod.
func podFullName(pod *corev1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

func fsGroup(pod *corev1.Pod) *int64 {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	return pod.Spec.SecurityContext.FSGroup
}

// groups are the supplementary groups of all of the pod's containers.
func groups(pod *corev1.Pod) []int64 {
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	out := append([]int64(nil), sc.SupplementalGroups...)
	if sc.FSGroup != nil {
		out = append(out, *sc.FSGroup)
	}
	return out
}

// commonUser is the user that all of the pod's containers run as, if it is one.
func commonUser(pod *corev1.Pod) *int64 {
	var user *int64
	for i, c := range allContainers(pod) {
		uid, _ := runAs(pod, c)
		if uid == nil || i > 0 && *uid != *user {
			return nil
		}
		user = uid
	}
	return user
}

// etcMounts are the files in /etc and the termination message, except where
// the container mounts something of its own.
func etcMounts(c *corev1.Container, d podDirs, attempt int) ([]specs.Mount, error) {
	taken := map[string]bool{}
	for _, m := range c.VolumeMounts {
		taken[filepath.Clean(m.MountPath)] = true
	}
	readOnly := c.SecurityContext != nil && isTrue(c.SecurityContext.ReadOnlyRootFilesystem)
	var mounts []specs.Mount
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if target := "/etc/" + name; !taken[target] {
			mounts = append(mounts, bindMount(filepath.Join(d.etc, name), target, readOnly, nil))
		}
	}
	if path := c.TerminationMessagePath; path != "" && !taken[filepath.Clean(path)] {
		source := d.termination(c.Name, attempt)
		if err := os.MkdirAll(filepath.Dir(source), dirMode); err != nil {
			return nil, err
		}
		if err := os.WriteFile(source, nil, 0o666); err != nil {
			return nil, err
		}
		if err := os.Chmod(source, 0o666); err != nil { // whatever the umask
			return nil, err
		}
		mounts = append(mounts, bindMount(source, path, false, nil))
	}
	return mounts, nil
}

const (
	messageMaxBytes  = 4096
	fallbackMaxBytes = 2048
	fallbackMaxLines = 80
)

// terminationMessage is what a container left behind: the file it was given,
// or the end of its log if it failed and asks for that.
func terminationMessage(c *corev1.Container, d podDirs, attempt, exitCode int) string {
	if data, err := readPart(d.termination(c.Name, attempt), -1, messageMaxBytes); err == nil && len(data) > 0 {
		return string(data)
	}
	if c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || exitCode == 0 {
		return ""
	}
	return logTail(d.log(c.Name, attempt), fallbackMaxLines, fallbackMaxBytes)
}
