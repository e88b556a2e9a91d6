package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/proto"
)

// A pod whose users are not the host's has a process that does nothing but hold
// the namespaces that belong to its user namespace (network, IPC, host name,
// and processes if they are shared), for a namespace's owner is who made it.
// The pod process is started in them and sees them with the host's users; the
// pod's containers join the user namespace. Mounts and layers show their files
// to the pod with its own ids, by the kernel's mapped mounts.

// idsPerPod is how many users and groups such a pod has: all that Kubernetes
// knows.
const idsPerPod = 1 << 16

// Isolate makes the namespaces of a pod with PodConfig.IDs; it comes before the
// network's and before StartPod. It is idempotent.
func (e *Engine) Isolate(ctx context.Context, c PodConfig) error {
	if c.IDs == 0 {
		return nil
	}
	cfg, err := e.podFile(c)
	if err != nil {
		return err
	}
	p, err := e.lockPod(ctx, cfg)
	if err != nil {
		return err
	}
	defer p.op.Unlock()
	if isolated(p.cfg) || p.cfg.IDs == 0 { // one that runs from before there were any
		return nil
	}
	if e.isUp(p) {
		return fmt.Errorf("the namespaces of pod %s are gone", c.ID)
	}
	if err := e.isolate(p); err != nil {
		return fmt.Errorf("make the user namespace of pod %s: %w", c.ID, err)
	}
	return nil
}

func (e *Engine) isolate(p *pod) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	// It is there before the first of the pod is made, and names it afterwards.
	if err := proto.WriteFile(filepath.Join(p.dir, proto.PodFile), p.cfg); err != nil {
		return err
	}
	if err := e.fault("pod.isolating"); err != nil {
		return err
	}
	program, err := os.Open(e.binary) // by its descriptor: its folder may be closed to the pod's users
	if err != nil {
		return err
	}
	defer program.Close()
	flags := uintptr(unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if p.cfg.ShareProcesses {
		flags |= unix.CLONE_NEWPID
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(p.cfg.IDs), Size: idsPerPod}}
	cmd := &exec.Cmd{
		Path: "/proc/self/fd/" + strconv.Itoa(int(program.Fd())),
		Args: []string{"conclave-pod", "pause"}, Env: []string{proto.PauseEnv + "=1"}, Dir: "/",
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true, Cloneflags: flags, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{},
		},
	}
	if err := e.spawn.start(cmd, nil); err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%w: the kernel makes none (see /proc/sys/user/max_user_namespaces)", err)
		}
		return err
	}
	p.cfg.Holder, p.holder = cmd.Process.Pid, cmd.Process
	return proto.WriteFile(filepath.Join(p.dir, proto.PodFile), p.cfg)
}

// isolated says whether the process that holds a pod's namespaces lives. It is
// known by the ids that it maps, which no other pod has.
func isolated(p proto.Pod) bool {
	if p.Holder == 0 {
		return false
	}
	data, err := os.ReadFile("/proc/" + strconv.Itoa(p.Holder) + "/uid_map")
	f := strings.Fields(string(data))
	return err == nil && len(f) == 3 && f[0] == "0" && f[1] == strconv.FormatUint(uint64(p.IDs), 10)
}

// release ends the holder of a pod's namespaces.
func (p *pod) release() {
	if isolated(p.cfg) {
		_ = unix.Kill(p.cfg.Holder, unix.SIGKILL) // dead is as good
	}
	if p.holder != nil {
		_ = p.holder.Kill() // dead is as good
		_, _ = p.holder.Wait()
		p.holder = nil
	}
}

// IsolatedNetwork is the network namespace that Isolate made for a pod; empty
// if it made none.
func (e *Engine) IsolatedNetwork(podID string) string {
	e.mu.Lock()
	p := e.pods[podID]
	e.mu.Unlock()
	if p == nil {
		return ""
	}
	p.op.Lock()
	defer p.op.Unlock()
	if !isolated(p.cfg) {
		return ""
	}
	return proto.Namespace(p.cfg.Holder, "net")
}

// entered are the namespaces in which a pod process is started.
func entered(p proto.Pod) []namespace {
	var out []namespace
	if p.NetNS != "" {
		out = append(out, namespace{"net", unix.CLONE_NEWNET, p.NetNS})
	}
	if p.IDs != 0 {
		out = append(out, namespace{"ipc", unix.CLONE_NEWIPC, proto.Namespace(p.Holder, "ipc")}, namespace{"uts", unix.CLONE_NEWUTS, proto.Namespace(p.Holder, "uts")})
	}
	return out
}

// mapMounts has the pod's own mounts show their files with the pod's ids.
func mapMounts(mounts []specs.Mount, own []specs.Mount) {
	for i := range mounts {
		for _, m := range own {
			if mounts[i].Type == "bind" && mounts[i].Source == m.Source {
				mounts[i].Options = append(append([]string(nil), mounts[i].Options...), "ridmap")
				break
			}
		}
	}
}
