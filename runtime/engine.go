package runtime

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"

	"conclave/runtime/internal/proto"
)

// Engine runs the pods of one host.
type Engine struct {
	cfg    Config
	log    *slog.Logger
	binary string // the pod program
	v2     bool   // cgroup version
	caps   []string
	images *store
	spawn  *spawner
	turns  turns

	mountMu  sync.Mutex // one image is being mounted at a time
	mounting string     // its ID; guarded by mu

	fenceMu sync.Mutex   // of the one writer
	fence   *proto.Fence // stays mapped: who holds it may outlive Run

	// ctx ends when Run's does. Goroutines of the engine are in wg.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	pods   map[string]*pod
	subs   map[*subscriber]struct{}
	ending bool // no goroutine may be added to wg any more
}

// pod is one pod. Its fields are guarded by Engine.mu but for what is said.
type pod struct {
	id  string
	cfg proto.Pod // changed with op held
	dir string    // its run folder; constant

	// op is held by the one that starts or stops the pod.
	op sync.Mutex

	holder     *os.Process // of its namespaces, if it is our child; changed with op held
	process    *os.Process // set if it is our child
	pid        int
	up         bool          // its process answers
	fence      string        // the fence that its process obeys
	down       chan struct{} // closed when the process of this time is seen dead
	containers map[string]*container
}

// container is what is known of one. It is hidden until the pod process has
// told of it: seq is 0.
type container struct {
	status ContainerStatus
	seq    uint64
}

// containersDir is the folder of all root filesystems.
func (c Config) containersDir() string { return filepath.Join(c.Root, "containers") }

// podsCgroup is the cgroup of all pods, below the root of each hierarchy.
func (c Config) podsCgroup() string { return filepath.Join("/", c.CgroupParent, "kubepods") }

// withDefaults fills in what was left out.
func (c Config) withDefaults() (Config, error) {
	if c.Root == "" {
		return c, errors.New("runtime: Config.Root is empty")
	}
	var err error
	if c.Root, err = filepath.Abs(c.Root); err != nil {
		return c, err
	}
	if c.RunDir == "" {
		c.RunDir = filepath.Join(c.Root, "run", "runtime")
	}
	if c.RunDir, err = filepath.Abs(c.RunDir); err != nil {
		return c, err
	}
	c.CgroupParent = strings.Trim(filepath.Clean("/"+c.CgroupParent), "/")
	if c.CgroupParent == "" {
		c.CgroupParent = "conclave"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

// New probes the host, saying clearly what it lacks, and adopts the pods that
// run. What is left of pods that do not run is cleaned up.
func New(cfg Config) (*Engine, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, d := range []string{cfg.Root, cfg.containersDir(), cfg.RunDir} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("runtime: %w", err)
		}
	}
	if err := probe(cfg); err != nil {
		return nil, err
	}
	binary, err := podProgram(cfg)
	if err != nil {
		return nil, err
	}
	caps, err := allCapabilities()
	if err != nil {
		return nil, fmt.Errorf("runtime: capabilities of this kernel: %w", err)
	}
	images, err := openStore(cfg)
	if err != nil {
		return nil, err
	}
	e := &Engine{
		cfg:    cfg,
		log:    cfg.Log,
		binary: binary,
		v2:     cgroups.IsCgroup2UnifiedMode(),
		caps:   caps,
		images: images,
		turns:  newTurns(),
		pods:   map[string]*pod{},
		subs:   map[*subscriber]struct{}{},
	}
	if e.spawn, err = newSpawner(filepath.Join("/", cfg.CgroupParent, processesCgroup), e.v2); err != nil {
		return nil, err
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	if e.fence, err = proto.OpenFence(cfg.fencePath(), true); err != nil {
		e.stop()
		return nil, fmt.Errorf("runtime: the fence of this node: %w", err)
	}
	if err := e.recover(); err != nil {
		e.stop()
		return nil, err
	}
	return e, nil
}

// Run keeps the engine alive until ctx ends, and returns when all that it
// started has ended. Pods run on.
func (e *Engine) Run(ctx context.Context) error {
	e.watchDrops(ctx)
	<-ctx.Done()
	e.stop()
	return nil
}

func (e *Engine) stop() {
	e.mu.Lock()
	e.ending = true
	for s := range e.subs {
		s.cancel()
	}
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
	e.spawn.stop()
}

// goLocked runs f as part of the engine, unless it is ending. e.mu is held.
func (e *Engine) goLocked(f func()) bool {
	if e.ending {
		return false
	}
	e.wg.Go(f)
	return true
}

// fault lets a test end a change at a labelled step.
func (e *Engine) fault(label string) error {
	if e.cfg.Faults == nil {
		return nil
	}
	return e.cfg.Faults(label)
}

// Pods returns the IDs of all pods, sorted.
func (e *Engine) Pods() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Sorted(maps.Keys(e.pods))
}

// Containers returns the containers of a pod, of all if podID is empty, oldest
// first.
func (e *Engine) Containers(podID string) []ContainerStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []ContainerStatus
	for id, p := range e.pods {
		if podID != "" && id != podID {
			continue
		}
		for _, c := range p.containers {
			if c.seq > 0 {
				out = append(out, c.status)
			}
		}
	}
	slices.SortFunc(out, func(a, b ContainerStatus) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.PodID+"/"+a.ID, b.PodID+"/"+b.ID)
	})
	return out
}

// Container returns one container.
func (e *Engine) Container(podID, id string) (ContainerStatus, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pods[podID]; p != nil {
		if c := p.containers[id]; c != nil && c.seq > 0 {
			return c.status, true
		}
	}
	return ContainerStatus{}, false
}

// learn takes in a record, if it is newer than what is known. Containers that
// the engine has not heard of before are added only by whoever starts them or
// by a first look, so that a late word of a removed one does not bring it
// back. e.mu is held.
func (e *Engine) learn(p *pod, r proto.Record, add bool) {
	c := p.containers[r.ID]
	if c == nil {
		if !add {
			return
		}
		c = &container{}
		p.containers[r.ID] = c
	}
	if r.Seq <= c.seq {
		return
	}
	c.seq = r.Seq
	c.status = ContainerStatus{
		PodID:      p.id,
		ID:         r.ID,
		Image:      r.Image,
		State:      State(r.State),
		PID:        r.PID,
		CreatedAt:  r.Created,
		StartedAt:  r.Started,
		FinishedAt: r.Finished,
		ExitCode:   r.ExitCode,
		OOMKilled:  r.OOM,
		Reason:     r.Reason,
		Message:    r.Message,
		User:       (*User)(r.User),
		StopSignal: signalName(r.Stop),
	}
	for s := range e.subs {
		s.put(c.status)
	}
}

// subscriber passes changes on at its reader's pace.
type subscriber struct {
	out    chan ContainerStatus
	wake   chan struct{} // holds one token
	done   chan struct{}
	once   sync.Once
	mu     sync.Mutex
	latest map[string]ContainerStatus
	order  []string
}

func (s *subscriber) cancel() { s.once.Do(func() { close(s.done) }) }

func (s *subscriber) put(st ContainerStatus) {
	key := st.PodID + "/" + st.ID
	s.mu.Lock()
	if _, ok := s.latest[key]; !ok {
		s.order = append(s.order, key)
	}
	s.latest[key] = st
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *subscriber) run() {
	defer close(s.out)
	for {
		select {
		case <-s.wake:
		case <-s.done:
			return
		}
		for {
			s.mu.Lock()
			if len(s.order) == 0 {
				s.mu.Unlock()
				break
			}
			key := s.order[0]
			st := s.latest[key]
			s.order = s.order[1:]
			delete(s.latest, key)
			s.mu.Unlock()
			select {
			case s.out <- st:
			case <-s.done:
				return
			}
		}
	}
}

// Subscribe returns a channel with the new status of each container whose
// state changed, the newest only if the reader is slow. It is closed when
// cancel is called or the engine ends. Subscribe first, then look at
// Containers: nothing is missed.
func (e *Engine) Subscribe() (events <-chan ContainerStatus, cancel func()) {
	s := &subscriber{
		out:    make(chan ContainerStatus),
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
		latest: map[string]ContainerStatus{},
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.goLocked(s.run) {
		close(s.out)
		return s.out, func() {}
	}
	e.subs[s] = struct{}{}
	return s.out, func() {
		e.mu.Lock()
		delete(e.subs, s)
		e.mu.Unlock()
		s.cancel()
	}
}
