package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"conclave/runtime/internal/cg"
	"conclave/runtime/internal/proto"
)

// shutdownPatience is how long a pod process gets to kill its containers
// before it is killed with them.
const shutdownPatience = 10 * time.Second

// killRound is the pause between two rounds of killing what is left in a
// cgroup: the kernel says nowhere when a killed process has left it.
const killRound = 5 * time.Millisecond

// idPattern is what may name a folder, a cgroup and a libcontainer state.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]*$`)

func checkID(what, id string) error {
	if len(id) > 200 || !idPattern.MatchString(id) {
		return fmt.Errorf("invalid %s ID %q", what, id)
	}
	return nil
}

// namespaced are the sysctls that belong to the IPC namespace; those of the
// network begin with "net.".
var namespaced = []string{
	"kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.",
}

// checkSysctls refuses what would change the host.
func checkSysctls(c PodConfig) error {
	for name := range c.Sysctls {
		dotted := strings.ReplaceAll(name, "/", ".")
		ipc := slices.ContainsFunc(namespaced, func(p string) bool { return strings.HasPrefix(dotted, p) })
		switch {
		case strings.Contains(dotted, ".."):
			return fmt.Errorf("sysctl %s is not a name", name)
		case ipc && !c.HostIPC, strings.HasPrefix(dotted, "net.") && c.NetNS != "":
		default:
			return fmt.Errorf("sysctl %s is not allowed: it would change the host", name)
		}
	}
	return nil
}

// StartPod makes the pod's cgroup and starts its process. It is idempotent,
// and also brings back the process of a pod that lost it. What a failed start
// has made stays until StartPod succeeds or StopPod is called.
func (e *Engine) StartPod(ctx context.Context, c PodConfig) error {
	cfg, err := e.podFile(c)
	if err == nil {
		err = checkSysctls(c)
	}
	if err != nil {
		return err
	}
	if err := e.startPod(ctx, cfg); err != nil {
		return fmt.Errorf("start pod %s: %w", c.ID, err)
	}
	return nil
}

// podFile is what the pod's process will read.
func (e *Engine) podFile(c PodConfig) (proto.Pod, error) {
	qos := strings.Trim(filepath.Clean("/"+c.CgroupParent), "/")
	fence := ""
	if c.Fenced {
		fence = e.cfg.fencePath()
	}
	return proto.Pod{
		Version:        proto.Version,
		ID:             c.ID,
		Namespace:      c.Namespace,
		Name:           c.Name,
		Hostname:       c.Hostname,
		NetNS:          c.NetNS,
		QOS:            qos,
		CgroupPath:     filepath.Join(e.cfg.podsCgroup(), qos, "pod"+c.ID),
		IDs:            c.IDs,
		HostPID:        c.HostPID,
		HostIPC:        c.HostIPC,
		ShareProcesses: c.ShareProcesses,
		Sysctls:        c.Sysctls,
		Resources:      e.resources(c.Resources),
		Fence:          fence,
	}, checkID("pod", c.ID)
}

// resources leaves out what this host's cgroups do not know.
func (e *Engine) resources(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil || e.v2 || r.Unified == nil {
		return r
	}
	out := *r
	out.Unified = nil
	return &out
}

func (e *Engine) startPod(ctx context.Context, cfg proto.Pod) error {
	p, err := e.lockPod(ctx, cfg)
	if err != nil {
		return err
	}
	defer p.op.Unlock()
	defer e.turns.take(ctx)()
	p.cfg.Fence = cfg.Fence
	if p.cfg.IDs != 0 && !isolated(p.cfg) {
		return errors.New("the process that held its namespaces is gone")
	}
	if p.cfg.NetNS == "" {
		p.cfg.NetNS = cfg.NetNS // which Isolate could not know
	}
	if e.isUp(p) {
		if ended, err := e.refence(ctx, p, cfg.Fence); !ended {
			return err
		}
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if err := proto.WriteFile(filepath.Join(p.dir, proto.PodFile), p.cfg); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(p.dir, stoppingFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := e.fault("pod.recorded"); err != nil {
		return err
	}
	m, err := cg.Open(p.cfg.CgroupPath, p.cfg.Resources)
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make cgroup %s: %w", p.cfg.CgroupPath, err)
	}
	if p.cfg.Resources != nil {
		r := cg.Resources(p.cfg.Resources)
		r.SkipDevices = true
		if err := m.Set(r); err != nil {
			return fmt.Errorf("limit cgroup %s: %w", p.cfg.CgroupPath, err)
		}
	}
	if err := e.fault("pod.cgroup"); err != nil {
		return err
	}
	if err := os.MkdirAll(e.podFolder(p.id), 0o711); err != nil {
		return err
	}
	// The process may be there already: a start that was cut short.
	if e.connect(ctx, p) == nil {
		return nil
	}
	if err := e.spawnPod(p); err != nil {
		return err
	}
	if err := e.fault("pod.spawned"); err != nil {
		return err
	}
	if err := e.connect(ctx, p); err != nil {
		if said := stderrTail(p.dir); said != "" {
			return fmt.Errorf("its process failed: %s", said)
		}
		return err
	}
	return nil
}

// UpdatePod changes the settings of a started pod's cgroup. What r does not
// name stays.
func (e *Engine) UpdatePod(ctx context.Context, podID string, r *specs.LinuxResources) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("update pod %s: %w", podID, err)
		}
	}()
	e.mu.Lock()
	p := e.pods[podID]
	e.mu.Unlock()
	if p == nil {
		return ErrPodNotFound
	}
	p.op.Lock()
	defer p.op.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	merged := mergeResources(p.cfg.Resources, e.resources(r))
	m, err := cg.Open(p.cfg.CgroupPath, merged)
	if err != nil {
		return err
	}
	to := cg.Resources(merged)
	to.SkipDevices = true
	if err := m.Set(to); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", p.cfg.CgroupPath, err)
	}
	p.cfg.Resources = merged
	return proto.WriteFile(filepath.Join(p.dir, proto.PodFile), p.cfg)
}

// mergeResources is base with what r names.
func mergeResources(base, r *specs.LinuxResources) *specs.LinuxResources {
	if base == nil || r == nil {
		return cmp.Or(r, base)
	}
	out := *base
	if r.CPU != nil {
		cpu := *cmp.Or(base.CPU, new(specs.LinuxCPU))
		cpu.Shares, cpu.Quota, cpu.Period = cmp.Or(r.CPU.Shares, cpu.Shares), cmp.Or(r.CPU.Quota, cpu.Quota), cmp.Or(r.CPU.Period, cpu.Period)
		out.CPU = &cpu
	}
	if r.Memory != nil {
		memory := *cmp.Or(base.Memory, new(specs.LinuxMemory))
		memory.Limit, memory.Swap = cmp.Or(r.Memory.Limit, memory.Limit), cmp.Or(r.Memory.Swap, memory.Swap)
		out.Memory = &memory
	}
	out.Pids = cmp.Or(r.Pids, base.Pids)
	return &out
}

// lockPod returns the pod of that ID, made if it is new, with its op held.
func (e *Engine) lockPod(ctx context.Context, cfg proto.Pod) (*pod, error) {
	for {
		e.mu.Lock()
		if e.ending {
			e.mu.Unlock()
			return nil, errEnding
		}
		p := e.pods[cfg.ID]
		if p == nil {
			p = &pod{id: cfg.ID, cfg: cfg, dir: filepath.Join(e.cfg.RunDir, cfg.ID), containers: map[string]*container{}}
			e.pods[cfg.ID] = p
		}
		e.mu.Unlock()
		p.op.Lock()
		e.mu.Lock()
		current := e.pods[cfg.ID] == p
		e.mu.Unlock()
		if current {
			return p, nil
		}
		p.op.Unlock() // it was stopped while we waited
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

func (e *Engine) isUp(p *pod) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return p.up
}

func (e *Engine) podFolder(id string) string {
	return filepath.Join(e.cfg.containersDir(), id)
}

// spawnPod starts the pod's process with a socket that is ready for calls.
func (e *Engine) spawnPod(p *pod) error {
	if err := os.RemoveAll(filepath.Join(p.dir, proto.StateDir)); err != nil { // of a process that died
		return err
	}
	l, err := listen(p.dir)
	if err != nil {
		return err
	}
	defer l.Close()
	lf, err := l.File()
	if err != nil {
		return err
	}
	defer lf.Close()
	stderr, err := os.OpenFile(filepath.Join(p.dir, proto.StderrFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer stderr.Close()
	cmd := podCommand(e.binary, e.images.layersDir(), p.dir, p.cfg, lf, stderr)
	if err := e.spawn.start(cmd, entered(p.cfg)); err != nil {
		return fmt.Errorf("start %s: %w", e.binary, err)
	}
	e.mu.Lock()
	p.process = cmd.Process
	e.mu.Unlock()
	return nil
}

// stderrTail is the last thing that a pod process said.
func stderrTail(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, proto.StderrFile))
	if err != nil {
		return ""
	}
	const most = 2000
	if len(data) > most {
		data = data[len(data)-most:]
	}
	return strings.TrimPrefix(strings.TrimSpace(string(data)), "conclave-pod: ")
}

// connect opens the connection over which the pod process tells of changes,
// takes in what it tells first, and follows it from then on.
func (e *Engine) connect(ctx context.Context, p *pod) error {
	conn, err := dial(p.dir)
	if err != nil {
		return err
	}
	var first proto.Response
	if err := exchange(ctx, conn, proto.Request{Op: proto.OpWatch}, nil, &first); err != nil {
		conn.Close()
		return err
	}
	if first.Version != proto.Version {
		conn.Close()
		return fmt.Errorf("pod process %d speaks version %d, not %d", first.PID, first.Version, proto.Version)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.process == nil || p.process.Pid != first.PID {
		// Not our child. This holds on to that very process.
		if p.process, err = os.FindProcess(first.PID); err != nil {
			conn.Close()
			return err
		}
	}
	p.pid, p.up, p.down, p.fence = first.PID, true, make(chan struct{}), first.Fence
	for _, r := range first.Records {
		e.learn(p, r, true)
	}
	if !e.goLocked(func() { e.follow(p, conn) }) {
		conn.Close()
		return errEnding
	}
	return nil
}

// follow takes in what a pod process tells until it dies or the engine ends.
func (e *Engine) follow(p *pod, conn *net.UnixConn) {
	stop := context.AfterFunc(e.ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	for {
		var resp proto.Response
		files, err := proto.Read(conn, &resp)
		proto.Close(files)
		if err != nil {
			if e.ctx.Err() == nil {
				e.lost(p, err)
			}
			return
		}
		e.mu.Lock()
		for _, r := range resp.Records {
			e.learn(p, r, false)
		}
		e.mu.Unlock()
	}
}

// lost follows the death of a pod process. Its containers have no parent any
// more and nobody reads their output: they are killed and reported.
func (e *Engine) lost(p *pod, cause error) {
	e.mu.Lock()
	process := p.process
	e.mu.Unlock()
	_ = process.Kill()    // dead already, unless it spoke nonsense
	_, _ = process.Wait() // reaps it, if it is our child
	_, statErr := os.Stat(filepath.Join(p.dir, stoppingFile))
	if statErr != nil { // nobody asked it to end
		if !errors.Is(cause, io.EOF) {
			e.log.Warn("lost the connection to a pod process", "pod", p.id, "error", cause)
		}
		e.log.Error("a pod process died; killing its containers", "pod", p.id, "pid", process.Pid, "said", stderrTail(p.dir))
		e.orphaned(p)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	p.up, p.process, p.pid = false, nil, 0
	close(p.down)
}

// stoppingFile in a pod's run folder says that the pod is being stopped.
const stoppingFile = "stopping"

// orphaned kills the containers of a pod that has no process, and records
// their end.
func (e *Engine) orphaned(p *pod) {
	if err := e.killCgroup(e.ctx, p); err != nil {
		e.log.Error("cannot kill the containers of a dead pod process", "pod", p.id, "error", err)
	}
	e.unmountPod(p)
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, c := range p.containers {
		if c.seq == 0 {
			delete(p.containers, id) // it never came to be
			continue
		}
		if c.status.State == Exited {
			continue
		}
		r, err := readRecord(p, id)
		if err != nil {
			r = proto.Record{ID: id, Image: c.status.Image, Created: c.status.CreatedAt, Started: c.status.StartedAt}
		}
		r.Seq = max(r.Seq, c.seq) + 1
		r.State, r.PID, r.Finished = proto.Exited, 0, time.Now()
		r.ExitCode, r.Reason = codeKilled, ReasonUnknown
		r.Message = "The process that stayed with the pod was killed, and the container with it"
		if err := proto.WriteFile(recordPath(p, id), r); err != nil {
			e.log.Error("cannot record the end of a container", "pod", p.id, "container", id, "error", err)
		}
		e.learn(p, r, false)
	}
}

// codeKilled is the exit code of a process that SIGKILL ended.
const codeKilled = 128 + int(unix.SIGKILL)

func recordPath(p *pod, id string) string {
	return filepath.Join(p.dir, proto.ContainersDir, id+".json")
}

func readRecord(p *pod, id string) (r proto.Record, err error) {
	data, err := os.ReadFile(recordPath(p, id))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

// readRecords reads what a pod process wrote down, whoever it was.
func readRecords(p *pod) ([]proto.Record, error) {
	entries, err := os.ReadDir(filepath.Join(p.dir, proto.ContainersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []proto.Record
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			continue // one that was being written
		}
		r, err := readRecord(p, id)
		if err != nil {
			return nil, fmt.Errorf("record of container %s: %w", id, err)
		}
		out = append(out, r)
	}
	return out, nil
}

func (e *Engine) killCgroup(ctx context.Context, p *pod) error {
	return cg.Kill(p.cfg.CgroupPath, killPause(ctx))
}

func killPause(ctx context.Context) func() error {
	return func() error {
		select {
		case <-time.After(killRound):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unmountPod unmounts all that may be mounted for a pod.
func (e *Engine) unmountPod(p *pod) {
	unmountBelow(e.podFolder(p.id))
	unmount(filepath.Join(p.dir, proto.ShmDir))
}

// unmountBelow unmounts the root filesystems of the containers in a pod's
// folder.
func unmountBelow(folder string) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return // there is no such folder
	}
	for _, c := range entries {
		unmount(filepath.Join(folder, c.Name(), proto.RootFSDir))
	}
}

// unmount undoes every mount at a path. Not being one is as good.
func unmount(path string) {
	for unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
}

// StopPod kills what is left of a pod and removes everything of it. It is
// idempotent, and works after Run has returned too.
func (e *Engine) StopPod(ctx context.Context, podID string) error {
	e.mu.Lock()
	p := e.pods[podID]
	e.mu.Unlock()
	if p == nil {
		return nil
	}
	p.op.Lock()
	defer p.op.Unlock()
	e.mu.Lock()
	current := e.pods[podID] == p
	e.mu.Unlock()
	if !current {
		return nil
	}
	if err := e.stopPod(ctx, p); err != nil {
		return fmt.Errorf("stop pod %s: %w", podID, err)
	}
	return nil
}

func (e *Engine) stopPod(ctx context.Context, p *pod) error {
	// From here on its end is no accident, for whoever comes after us too.
	if err := os.WriteFile(filepath.Join(p.dir, stoppingFile), nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := e.fault("stop.marked"); err != nil {
		return err
	}
	if err := e.endProcess(ctx, p); err != nil {
		return err
	}
	if err := e.fault("stop.ended"); err != nil {
		return err
	}
	if err := e.killCgroup(ctx, p); err != nil {
		return err
	}
	p.release()
	if err := e.fault("stop.killed"); err != nil {
		return err
	}
	e.unmountPod(p)
	if err := e.fault("stop.unmounted"); err != nil {
		return err
	}
	if err := os.RemoveAll(e.podFolder(p.id)); err != nil {
		return err
	}
	if err := e.fault("stop.removed"); err != nil {
		return err
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.pods, p.id)
	return nil
}

// endProcess ends the pod's process, if it has one.
func (e *Engine) endProcess(ctx context.Context, p *pod) error {
	if !e.isUp(p) {
		// One that was started and never answered.
		e.mu.Lock()
		process := p.process
		p.process = nil
		e.mu.Unlock()
		if process != nil {
			_ = process.Kill() // dead is as good
			_, _ = process.Wait()
		}
		return nil
	}
	e.mu.Lock()
	down, process := p.down, p.process
	e.mu.Unlock()
	patience, cancel := context.WithTimeout(ctx, shutdownPatience)
	defer cancel()
	if err := e.call(patience, p, proto.Request{Op: proto.OpShutdown}, nil, nil); err != nil {
		e.log.Warn("a pod process did not shut down by itself", "pod", p.id, "error", err)
		_ = process.Kill() // dead is as good
	}
	select {
	case <-down:
		return nil
	case <-e.ctx.Done():
		// The engine has ended (a node that leaves stops its pods then): nobody
		// watches any more. The process has nothing left to do.
		_ = process.Kill()    // dead is as good
		_, _ = process.Wait() // reaps it, if it is our child
		e.mu.Lock()
		defer e.mu.Unlock()
		p.up, p.process = false, nil
		return nil
	case <-patience.Done():
	}
	_ = process.Kill() // dead is as good
	select {
	case <-down:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// UpdatePodResources changes the bounds of the whole pod.
func (e *Engine) UpdatePodResources(ctx context.Context, podID string, r *specs.LinuxResources) error {
	e.mu.Lock()
	p := e.pods[podID]
	e.mu.Unlock()
	if p == nil {
		return fmt.Errorf("pod %s: %w", podID, ErrPodNotFound)
	}
	p.op.Lock()
	defer p.op.Unlock()
	r = e.resources(r)
	m, err := cg.Open(p.cfg.CgroupPath, r)
	if err != nil {
		return err
	}
	res := cg.Resources(r)
	res.SkipDevices = true
	if err := m.Set(res); err != nil {
		return fmt.Errorf("limit pod %s: %w", podID, err)
	}
	p.cfg.Resources = r
	return proto.WriteFile(filepath.Join(p.dir, proto.PodFile), p.cfg)
}
