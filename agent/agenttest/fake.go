// Package agenttest holds a container runtime and a pod network that exist in
// memory only, for tests of the agent and of what uses it. They keep the
// contracts that agent.Runtime and agent.Network state, run no process, and
// work inside a testing/synctest bubble.
package agenttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	corev1 "k8s.io/api/core/v1"

	"conclave/agent"
)

// Behaviour is what a container does in the fake runtime.
type Behaviour struct {
	// StartDelay is how long the container is only created before it runs.
	StartDelay time.Duration
	// StartError keeps the container from being created.
	StartError error
	// ExitAfter makes it end by itself, with ExitCode; 0: it runs on.
	ExitAfter time.Duration
	ExitCode  int
	// Exits makes it end at once.
	Exits bool
	// Message is written as its termination message, Log to its log.
	Message, Log string
	// IgnoresTerm makes it run until it is killed.
	IgnoresTerm bool
}

// Runtime is a fake agent.Runtime. Its fields may be set before use.
type Runtime struct {
	// Behave says what a container does; nil: it runs until it is stopped.
	Behave func(agent.ContainerConfig) Behaviour
	// OnExec answers Exec; nil: every command succeeds at once.
	OnExec func(ctx context.Context, podID, id string, cmd []string, stdin io.Reader, stdout, stderr io.Writer) (int, error)
	// OnPull answers Pull; nil: every image exists, empty.
	OnPull func(ctx context.Context, ref string, o agent.PullOptions) (agent.Image, error)
	// OnNear answers Near; nil: nobody else has anything.
	OnNear func(ref string) bool
	// OnEntitled answers Entitled; nil: everybody is.
	OnEntitled func(ref string, c agent.Credentials) bool
	// Measured is what Stats says of a pod and its containers; Disk what a
	// container, as "POD/ID", has written.
	Measured map[string]agent.Stats
	Disk     map[string]uint64
	// OnUpdate may refuse new resources of a container.
	OnUpdate func(podID, id string, to *specs.LinuxResources) error
	// StartPodError fails StartPod.
	StartPodError error

	mu     sync.Mutex
	pods   map[string]*fakePod
	images map[string]agent.Image
	mounts map[string]string // images by where they are shown
	subs   map[chan struct{}]bool
	pid    int
	epoch  uint64 // of the fence, from 1
	down   bool   // the fence is
	// Started are all containers started, in order.
	started []agent.ContainerConfig
	updates []string
	bounds  agent.Bounds
}

type fakePod struct {
	config     agent.PodConfig
	containers map[string]*fakeContainer
}

type fakeContainer struct {
	agent.ContainerStatus
	config agent.ContainerConfig
	behave Behaviour
	done   chan struct{}
}

// AddImage makes an image present.
func (r *Runtime) AddImage(ref string, i agent.Image) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.images == nil {
		r.images = map[string]agent.Image{}
	}
	if i.ID == "" {
		i.ID = "sha256:" + ref
	}
	if len(i.Names) == 0 {
		i.Names = []string{ref}
	}
	r.images[ref] = i
}

// Started are the containers started so far, in order.
func (r *Runtime) Started() []agent.ContainerConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.started)
}

// PodConfig is what a pod was started with.
func (r *Runtime) PodConfig(id string) (agent.PodConfig, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[id]
	if p == nil {
		return agent.PodConfig{}, false
	}
	return p.config, true
}

// Reboot forgets all pods and containers, as a reboot of the host does.
func (r *Runtime) Reboot() {
	r.mu.Lock()
	for _, p := range r.pods {
		for _, c := range p.containers {
			c.end(137)
		}
	}
	r.pods = nil
	r.mu.Unlock()
	r.notify()
}

// SetFence takes the fence down, which kills the containers of fenced pods, or
// puts it up again. It is up at first.
func (r *Runtime) SetFence(up bool) {
	r.mu.Lock()
	if r.down && up {
		r.epoch++
	}
	r.down = !up
	for _, p := range r.pods {
		for _, c := range p.containers {
			if r.down && p.config.Fenced && c.State != agent.Exited {
				c.Reason, c.Message = agent.ReasonFenced, "the fence is down"
				c.end(137)
			}
		}
	}
	r.mu.Unlock()
	r.notify()
}

// Fence implements agent.Runtime.
func (r *Runtime) Fence() (epoch uint64, up bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch + 1, !r.down
}

// Exit makes a running container end.
func (r *Runtime) Exit(podID, id string, code int) {
	r.mu.Lock()
	if c := r.find(podID, id); c != nil {
		c.end(code)
	}
	r.mu.Unlock()
	r.notify()
}

func (c *fakeContainer) end(code int) {
	if c.State == agent.Exited {
		return
	}
	c.State, c.ExitCode, c.FinishedAt, c.PID = agent.Exited, code, time.Now(), 0
	close(c.done)
}

func (r *Runtime) find(podID, id string) *fakeContainer {
	p := r.pods[podID]
	if p == nil {
		return nil
	}
	return p.containers[id]
}

func (r *Runtime) notify() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// StartPod implements agent.Runtime.
func (r *Runtime) StartPod(_ context.Context, c agent.PodConfig) error {
	r.mu.Lock()
	err := r.StartPodError
	if err == nil && r.pods[c.ID] == nil {
		if r.pods == nil {
			r.pods = map[string]*fakePod{}
		}
		r.pods[c.ID] = &fakePod{config: c, containers: map[string]*fakeContainer{}}
	}
	if err == nil {
		r.pods[c.ID].config.Fenced = c.Fenced
	}
	r.mu.Unlock()
	r.notify()
	return err
}

// Isolate implements agent.Runtime.
func (r *Runtime) Isolate(context.Context, agent.PodConfig) error { return nil }

// StopPod implements agent.Runtime.
func (r *Runtime) StopPod(_ context.Context, podID string) error {
	r.mu.Lock()
	if p := r.pods[podID]; p != nil {
		for _, c := range p.containers {
			c.end(137)
		}
		delete(r.pods, podID)
	}
	r.mu.Unlock()
	r.notify()
	return nil
}

// Pods implements agent.Runtime.
func (r *Runtime) Pods() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []string
	for id := range r.pods {
		ids = append(ids, id)
	}
	return ids
}

// RunContainer implements agent.Runtime.
func (r *Runtime) RunContainer(ctx context.Context, c agent.ContainerConfig) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var b Behaviour
	if r.Behave != nil {
		b = r.Behave(c)
	}
	if b.StartError != nil {
		return b.StartError
	}
	r.mu.Lock()
	p := r.pods[c.PodID]
	if p == nil {
		r.mu.Unlock()
		return fmt.Errorf("pod %s was not started", c.PodID)
	}
	if p.containers[c.ID] != nil {
		r.mu.Unlock()
		return fmt.Errorf("container %s exists", c.ID)
	}
	if t := p.containers[c.PIDsOf]; c.PIDsOf != "" && (t == nil || t.State != agent.Running) {
		r.mu.Unlock()
		return fmt.Errorf("container %s does not run", c.PIDsOf)
	}
	if p.config.Fenced && (r.down || c.Epoch != r.epoch+1) {
		r.mu.Unlock()
		return agent.ErrFenced
	}
	r.pid++
	f := &fakeContainer{config: c, behave: b, done: make(chan struct{}), ContainerStatus: agent.ContainerStatus{
		PodID: c.PodID, ID: c.ID, Image: c.Image, State: agent.Created, PID: r.pid,
	}}
	p.containers[c.ID] = f
	r.started = append(r.started, c)
	r.mu.Unlock()
	// The real runtime tells of a container before its program runs, and may
	// take its time in between.
	if b.StartDelay > 0 {
		r.notify()
		select {
		case <-time.After(b.StartDelay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	f.State, f.StartedAt = agent.Running, time.Now()
	r.mu.Unlock()
	if err := f.write(); err != nil {
		return err
	}
	switch {
	case b.Exits:
		r.Exit(c.PodID, c.ID, b.ExitCode)
	case b.ExitAfter > 0:
		time.AfterFunc(b.ExitAfter, func() { r.Exit(c.PodID, c.ID, b.ExitCode) })
	}
	r.notify()
	return nil
}

// write leaves what the container says where the agent looks for it.
func (c *fakeContainer) write() error {
	var log strings.Builder
	for line := range strings.Lines(c.behave.Log) {
		fmt.Fprintf(&log, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), strings.TrimSuffix(line, "\n"))
	}
	if err := os.MkdirAll(filepath.Dir(c.config.LogPath), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(c.config.LogPath, []byte(log.String()), 0o640); err != nil {
		return err
	}
	if c.behave.Message == "" {
		return nil
	}
	for _, m := range c.config.Mounts {
		if strings.Contains(m.Source, "/termination/") {
			return os.WriteFile(m.Source, []byte(c.behave.Message), 0o644)
		}
	}
	return errors.New("no file for the termination message is mounted")
}

// StopContainer implements agent.Runtime.
func (r *Runtime) StopContainer(ctx context.Context, podID, id string, grace time.Duration) error {
	r.mu.Lock()
	c := r.find(podID, id)
	r.mu.Unlock()
	if c == nil {
		return nil
	}
	code := 143
	if c.behave.IgnoresTerm {
		code = 137
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.Exit(podID, id, code)
	return nil
}

// RemoveContainer implements agent.Runtime.
func (r *Runtime) RemoveContainer(_ context.Context, podID, id string) error {
	r.mu.Lock()
	if p := r.pods[podID]; p != nil {
		delete(p.containers, id)
	}
	r.mu.Unlock()
	r.notify()
	return nil
}

// Containers implements agent.Runtime.
func (r *Runtime) Containers(podID string) []agent.ContainerStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []agent.ContainerStatus
	for id, p := range r.pods {
		if podID != "" && id != podID {
			continue
		}
		for _, c := range p.containers {
			all = append(all, c.ContainerStatus)
		}
	}
	return all
}

// Subscribe implements agent.Runtime.
func (r *Runtime) Subscribe() (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.subs == nil {
		r.subs = map[chan struct{}]bool{}
	}
	r.subs[c] = true
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.subs, c)
	}
}

// Exec implements agent.Runtime.
func (r *Runtime) Exec(ctx context.Context, podID, id string, cmd []string, _ bool, stdin io.Reader, stdout, stderr io.Writer, _ <-chan [2]uint16) (int, error) {
	r.mu.Lock()
	c := r.find(podID, id)
	running := c != nil && c.State == agent.Running
	r.mu.Unlock()
	if !running {
		return 0, fmt.Errorf("container %s does not run", id)
	}
	if r.OnExec == nil {
		return 0, nil
	}
	return r.OnExec(ctx, podID, id, cmd, stdin, stdout, stderr)
}

// Attach implements agent.Runtime: the container repeats its input until the
// input or the container ends.
func (r *Runtime) Attach(ctx context.Context, podID, id string, stdin io.Reader, stdout, _ io.Writer, _ <-chan [2]uint16) error {
	r.mu.Lock()
	c := r.find(podID, id)
	r.mu.Unlock()
	if c == nil {
		return fmt.Errorf("container %s does not exist", id)
	}
	if stdin != nil && stdout != nil {
		_, err := io.Copy(stdout, stdin)
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	return nil
}

// UpdatePod implements agent.Runtime.
func (r *Runtime) UpdatePod(_ context.Context, podID string, to *specs.LinuxResources) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pods[podID]
	if p == nil {
		return fmt.Errorf("pod %s does not exist", podID)
	}
	p.config.Resources = to
	r.updates = append(r.updates, podID)
	return nil
}

// SetBounds implements agent.Runtime.
func (r *Runtime) SetBounds(b agent.Bounds) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bounds = b
	return nil
}

// Bounds are what was set last.
func (r *Runtime) Bounds() agent.Bounds {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bounds
}

// DiskUsage implements agent.Runtime.
func (r *Runtime) DiskUsage(podID, id string) (bytes, inodes uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.Disk[podID+"/"+id], 1, nil
}

// UpdateContainer implements agent.Runtime.
func (r *Runtime) UpdateContainer(_ context.Context, podID, id string, to *specs.LinuxResources) error {
	if r.OnUpdate != nil {
		if err := r.OnUpdate(podID, id, to); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.find(podID, id)
	if c == nil || c.State != agent.Running {
		return fmt.Errorf("container %s does not run", id)
	}
	c.config.Resources = to
	r.updates = append(r.updates, id)
	return nil
}

// Updates are the pods and containers whose resources were changed, in order.
func (r *Runtime) Updates() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.updates)
}

// Resources are what a pod has now, or a container of it if id is not empty.
func (r *Runtime) Resources(podID, id string) *specs.LinuxResources {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.find(podID, id); c != nil {
		return c.config.Resources
	}
	if p := r.pods[podID]; p != nil && id == "" {
		return p.config.Resources
	}
	return nil
}

// Stats implements agent.Runtime.
func (r *Runtime) Stats(podID, id string) (agent.Stats, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, ok := r.Measured[podID]; ok {
		return s, nil
	}
	if p := r.pods[podID]; p != nil && id == "" {
		return agent.Stats{Time: time.Now(), MemoryWorkingSet: 2 << 20, Processes: 1}, nil
	}
	c := r.find(podID, id)
	if c == nil || c.State != agent.Running {
		return agent.Stats{}, fmt.Errorf("container %s does not run", id)
	}
	return agent.Stats{Time: time.Now(), CPUNanoseconds: 1_500_000_000, MemoryUsage: 3 << 20, MemoryWorkingSet: 2 << 20, MemoryRSS: 1 << 20, Processes: 1}, nil
}

// Pull implements agent.Runtime.
func (r *Runtime) Pull(ctx context.Context, ref string, o agent.PullOptions) (agent.Image, error) {
	i := agent.Image{ID: "sha256:" + ref, Names: []string{ref}, Size: 1000}
	if r.OnPull != nil {
		var err error
		if i, err = r.OnPull(ctx, ref, o); err != nil {
			return i, err
		}
	}
	r.AddImage(ref, i)
	i, _ = r.Image(ref)
	return i, nil
}

// Image implements agent.Runtime.
func (r *Runtime) Image(ref string) (agent.Image, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, ok := r.images[ref]; ok {
		return i, true
	}
	for _, i := range r.images {
		if i.ID == ref {
			return i, true
		}
	}
	return agent.Image{}, false
}

// Images implements agent.Runtime.
func (r *Runtime) Images() []agent.Image {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []agent.Image
	for _, i := range r.images {
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b agent.Image) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// RemoveImage implements agent.Runtime.
func (r *Runtime) RemoveImage(_ context.Context, ref string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, i := range r.images {
		if name == ref || i.ID == ref {
			delete(r.images, name)
			return nil
		}
	}
	return fmt.Errorf("image %s: %w", ref, agent.ErrImageNotFound)
}

// Network is a fake agent.Network: it gives each pod the next address of
// 10.244.9.0/24 and no namespace.
type Network struct {
	mu       sync.Mutex
	attached map[string]netip.Addr
	last     byte
	err      error
}

// Fail makes the network not ready for a reason, ready again if it is nil.
func (n *Network) Fail(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.err = err
}

// Attached are the pods that have an address.
func (n *Network) Attached() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.attached)
}

// Attach implements agent.Network.
func (n *Network) Attach(_ context.Context, pod *corev1.Pod) (string, []netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err != nil {
		return "", nil, n.err
	}
	ip, ok := n.attached[string(pod.UID)]
	if !ok {
		if n.attached == nil {
			n.attached = map[string]netip.Addr{}
		}
		n.last++
		ip = netip.AddrFrom4([4]byte{10, 244, 9, n.last})
		n.attached[string(pod.UID)] = ip
	}
	return "", []netip.Addr{ip}, nil
}

// Detach implements agent.Network.
func (n *Network) Detach(_ context.Context, podUID string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, podUID)
	return nil
}

// Ready implements agent.Network.
func (n *Network) Ready() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Entitled implements agent.Runtime.
func (r *Runtime) Entitled(ref string, c agent.Credentials) bool {
	return r.OnEntitled == nil || r.OnEntitled(ref, c)
}

// Near implements agent.Runtime.
func (r *Runtime) Near(ref string) bool { return r.OnNear != nil && r.OnNear(ref) }

// CollectLayers implements agent.Runtime: there are no layers.
func (r *Runtime) CollectLayers() error { return nil }

// MountImage implements agent.Runtime. It shows nothing.
func (r *Runtime) MountImage(_ context.Context, id, target string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mounts == nil {
		r.mounts = map[string]string{}
	}
	r.mounts[target] = id
	return nil
}

// ImageMounted implements agent.Runtime.
func (r *Runtime) ImageMounted(target string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mounts[target] != ""
}

// ImageInUse implements agent.Runtime.
func (r *Runtime) ImageInUse(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.mounts {
		if m == id {
			return true
		}
	}
	return false
}
