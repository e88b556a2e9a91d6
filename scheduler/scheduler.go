// Package scheduler owns which node a pod runs on. It runs on the leader alone.
//
// schedule is a pure function from a snapshot of the cluster and a pod to a
// node, or to the reasons why there is none. Around it, one loop takes pods
// from a queue, decides on one after the other, and counts each decision into
// the snapshot at once; the bindings are then written many at a time.
//
// # What always holds
//
//   - Bound and assumed pods together never ask for more than a node has, and
//     never for the same port of a host: the snapshot that one decision sees
//     has all decisions before it. A binding whose outcome is not known keeps
//     its place until it is known.
//   - Nothing is decided before everything that decisions depend on has been
//     listed.
//   - A pod with claims whose volumes wait for it is bound only once they are:
//     its node is written into the claims, and the pod holds its place there
//     until the volumes are bound, or turn out not to be.
//   - A stale decision is not argued with: a binding that is refused puts the
//     pod back into the queue.
//   - The snapshot is kept by small changes as the watches tell of them; no
//     decision copies or rebuilds it.
//   - A pod that fits nowhere waits, without being looked at again, until
//     something happens that may help: a node came or changed, a pod went, or
//     for pods that look at other pods, one came.
//
// A pod that fits nowhere may make room for itself where pods of lower priority
// run. It is nominated to that node, in its status, so that a new leader knows
// of it too; they are deleted with the grace that they ask for; and it waits,
// like any pod, until there is room. Nobody of lower priority takes it.
//
// # Threads
//
// Run starts one follower each of pods, nodes, namespaces, disruption budgets,
// claims, volumes, storage classes and of what CSI drivers say of themselves, the
// loop, and up to inFlight goroutines that each write one decision. All share the
// mutex of Scheduler and end with Run's context; Run returns after them.
package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// Config is what a Scheduler needs.
type Config struct {
	// Client reads the leader's own store and writes through its API server.
	Client api.Client
	// Suspect says that a node is doubted and gets no new pods for now. It is
	// asked for every candidate, so it answers from memory.
	Suspect func(nodeName string) bool
	Now     func() time.Time
	Log     *slog.Logger
}

// inFlight is how many decisions are written at a time.
const inFlight = 128

// Scheduler binds pods to nodes.
type Scheduler struct {
	Config
	mu       sync.Mutex
	snapshot *snapshot
	queue    *queue
	news     chan struct{}           // closed, and replaced, when claims or volumes changed
	notes    []func(context.Context) // writes that no decision waits for
	unlisted int                     // resources that were not yet listed
	wake     chan struct{}           // holds one token when the queue may have work
}

// New prepares a Scheduler; nothing runs before Run.
func New(c Config) (*Scheduler, error) {
	if c.Client == nil {
		return nil, errors.New("scheduler: a Client is needed")
	}
	if c.Suspect == nil {
		c.Suspect = func(string) bool { return false }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Scheduler{Config: c, snapshot: newSnapshot(), queue: newQueue(), news: make(chan struct{}), wake: make(chan struct{}, 1)}, nil
}

// Run binds pods until ctx, which is leadership's, ends, and returns when all
// that it started has ended. A Scheduler runs once.
func (s *Scheduler) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	handlers := map[schema.GroupVersionResource]*handler{
		pods:       {s: s, apply: s.applyPod, known: s.knownPods, forget: s.forgetPod},
		nodes:      {s: s, apply: s.applyNode, known: s.knownNodes, forget: s.forgetNode},
		namespaces: {s: s, apply: s.applyNamespace, known: s.knownNamespaces, forget: s.forgetNamespace},
		claims:     {s: s, apply: s.applyClaim, known: known(s.snapshot.claims), forget: forget(s, s.snapshot.claims)},
		volumes:    {s: s, apply: s.applyVolume, known: known(s.snapshot.volumes), forget: forget(s, s.snapshot.volumes)},
		budgets:    {s: s, apply: s.applyBudget, known: s.knownBudgets, forget: s.forgetBudget},
		classes:    byName(s, s.snapshot.classes),
		drivers:    byName(s, s.snapshot.drivers),
		onNodes:    byName(s, s.snapshot.onNodes),
		capacities: byName(s, s.snapshot.capacities),
	}
	s.unlisted = len(handlers)
	for resource, h := range handlers {
		g.Go(func() error {
			err := api.Follow(ctx, s.Client, resource, "", metav1.ListOptions{}, h)
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("follow %s: %w", resource.Resource, err)
		})
	}
	g.Go(func() error { s.loop(ctx); return nil })
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// loop decides on one pod after the other.
func (s *Scheduler) loop(ctx context.Context) {
	var writes errgroup.Group
	writes.SetLimit(inFlight)
	defer writes.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		write, next := s.decide()
		if write != nil {
			writes.Go(func() error { write(ctx); return nil })
			continue
		}
		if !next.IsZero() {
			timer.Reset(max(next.Sub(s.Now()), 0))
		} else {
			timer.Stop()
		}
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
}

// decide takes the next pod and returns what has to be written of the
// decision, or nil and when to ask again.
func (s *Scheduler) decide() (write func(context.Context), next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unlisted > 0 {
		return nil, time.Time{}
	}
	if len(s.notes) > 0 {
		write, s.notes = s.notes[0], s.notes[1:]
		return write, time.Time{}
	}
	e, next := s.queue.pop(s.Now())
	if e == nil {
		return nil, next
	}
	p := e.info
	node, why, looked := schedule(s.snapshot, p, s.Suspect)
	s.snapshot.decided(looked)
	if node == nil {
		// Nothing tells when suspicion ends, so then time has to.
		s.queue.failed(e, s.Now(), why.reasons[suspected] > 0)
		var room func(context.Context)
		message := why.String()
		if why.whole == "" && why.nodes > 0 {
			room, message = s.makeRoom(p, message)
		}
		news := e.said != message
		e.said = message
		return func(ctx context.Context) {
			s.writeFailure(ctx, p, message, news)
			if room != nil {
				room(ctx)
			}
		}, time.Time{}
	}
	waiting := s.snapshot.check(p).waiting
	s.snapshot.unnominate(p.UID)
	assumed := s.snapshot.assume(p, node)
	return func(ctx context.Context) { s.bind(ctx, e, assumed, waiting) }, time.Time{}
}

// assume counts a pod on the node that was chosen for it.
func (s *snapshot) assume(p *podInfo, n *nodeInfo) *podInfo {
	pod := *p.Pod // shallow: only the name of the node differs
	pod.Spec.NodeName = n.name
	assumed := *p
	assumed.Pod = &pod
	s.addPod(&assumed)
	return &assumed
}

func (s *Scheduler) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// handler feeds one resource into snapshot and queue. All of its functions are
// called with the mutex held.
type handler struct {
	s      *Scheduler
	apply  func(api.Object)
	forget func(types.UID)
	known  func() []types.UID
	listed bool
}

func (h *handler) Replace(objects []api.Object) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	defer h.s.signal()
	now := make(map[types.UID]bool, len(objects))
	for _, o := range objects {
		now[o.GetUID()] = true
	}
	for _, uid := range h.known() {
		if !now[uid] {
			h.forget(uid)
		}
	}
	for _, o := range objects {
		h.apply(o)
	}
	if !h.listed {
		h.listed = true
		h.s.unlisted--
	}
}

func (h *handler) Apply(t watch.EventType, o api.Object) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	defer h.s.signal()
	if t == watch.Deleted {
		h.forget(o.GetUID())
	} else {
		h.apply(o)
	}
}

func (s *Scheduler) applyPod(o api.Object) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return
	}
	finished := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case finished:
		s.forgetPod(pod.UID)
	case pod.Spec.NodeName != "":
		s.queue.remove(pod.UID)
		s.snapshot.unnominate(pod.UID)
		info := newPodInfo(pod)
		old := s.snapshot.pods[pod.UID]
		s.snapshot.addPod(info)
		if old == nil || !equality.Semantic.DeepEqual(old.Labels, pod.Labels) || smaller(&info.requests, &old.requests) {
			s.queue.wakeAll(s.Now(), func(p *podInfo) bool { return p.looksAtPods || old != nil })
		}
	case pod.DeletionTimestamp != nil || pod.Spec.SchedulerName != corev1.DefaultSchedulerName && pod.Spec.SchedulerName != "":
		s.queue.remove(pod.UID)
	default:
		e := s.queue.entries[pod.UID]
		if e == nil && s.snapshot.pods[pod.UID] != nil {
			return // old news: it is bound by now
		}
		if e != nil && sameToScheduler(e.info.Pod, pod) {
			info := *e.info // others may be reading it
			info.Pod = pod
			e.info = &info // our own note of why it waits, mostly
			return
		}
		e = s.queue.put(newPodInfo(pod), s.Now())
		if node := pod.Status.NominatedNodeName; node != "" {
			s.snapshot.nominate(e.info, node) // by a leader before us
		}
		if e.stage == gated {
			s.notes = append(s.notes, func(ctx context.Context) {
				s.writeCondition(ctx, pod, corev1.PodReasonSchedulingGated, "Scheduling is blocked due to non-empty scheduling gates")
			})
		}
	}
}

// sameToScheduler says that nothing differs that a decision depends on.
func sameToScheduler(a, b *corev1.Pod) bool {
	return a.Generation == b.Generation && equality.Semantic.DeepEqual(a.Labels, b.Labels) && equality.Semantic.DeepEqual(a.Spec, b.Spec)
}

func smaller(a, b *resources) bool {
	return a.cpu < b.cpu || a.memory < b.memory || a.storage < b.storage
}

// forgetPod is also told of a pod that ended.
func (s *Scheduler) forgetPod(uid types.UID) {
	s.queue.remove(uid)
	if s.snapshot.nominations[uid] != "" {
		s.snapshot.unnominate(uid)
		s.queue.wakeAll(s.Now(), func(*podInfo) bool { return true })
	}
	if p := s.snapshot.removePod(uid); p != nil {
		if len(p.claims) > 0 {
			s.volumesChanged(func(*podInfo) bool { return false }) // its binding may wait
		}
		s.queue.wakeAll(s.Now(), func(*podInfo) bool { return true })
	}
}

// knownPods leaves out the pods that are being bound: their binding tells.
func (s *Scheduler) knownPods() (uids []types.UID) {
	for uid := range s.snapshot.pods {
		if s.queue.entries[uid] == nil {
			uids = append(uids, uid)
		}
	}
	for uid, e := range s.queue.entries {
		if e.stage != binding {
			uids = append(uids, uid)
		}
	}
	return uids
}

func (s *Scheduler) applyNode(o api.Object) {
	node, ok := o.(*corev1.Node)
	if !ok {
		return
	}
	var old *corev1.Node
	if n := s.snapshot.nodes[node.Name]; n != nil {
		old = n.Node
	}
	s.snapshot.setNode(node)
	if old == nil || old.Spec.Unschedulable != node.Spec.Unschedulable ||
		!equality.Semantic.DeepEqual(old.Status.Allocatable, node.Status.Allocatable) ||
		!equality.Semantic.DeepEqual(old.Labels, node.Labels) || !equality.Semantic.DeepEqual(old.Spec.Taints, node.Spec.Taints) {
		s.queue.wakeAll(s.Now(), func(*podInfo) bool { return true })
	}
}

func (s *Scheduler) knownNodes() (uids []types.UID) {
	for _, n := range s.snapshot.order {
		uids = append(uids, n.UID)
	}
	return uids
}

func (s *Scheduler) forgetNode(uid types.UID) {
	for _, n := range s.snapshot.order {
		if n.UID == uid {
			s.snapshot.removeNode(n.name)
			// Constraints that count domains may be easier now.
			s.queue.wakeAll(s.Now(), func(p *podInfo) bool { return p.looksAtPods })
			return
		}
	}
}

func (s *Scheduler) applyNamespace(o api.Object) {
	if !equality.Semantic.DeepEqual(s.snapshot.namespaces[o.GetName()], labels.Set(o.GetLabels())) {
		s.snapshot.namespaces[o.GetName()] = o.GetLabels()
		s.snapshot.namespaceUIDs[o.GetUID()] = o.GetName()
		s.queue.wakeAll(s.Now(), func(p *podInfo) bool { return p.looksAtPods })
	}
}

func (s *Scheduler) knownNamespaces() (uids []types.UID) {
	for uid := range s.snapshot.namespaceUIDs {
		uids = append(uids, uid)
	}
	return uids
}

func (s *Scheduler) forgetNamespace(uid types.UID) {
	delete(s.snapshot.namespaces, s.snapshot.namespaceUIDs[uid])
	delete(s.snapshot.namespaceUIDs, uid)
}
