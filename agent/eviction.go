package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	podresource "k8s.io/component-helpers/resource"
)

const (
	reasonEvicted     = "Evicted"
	immediately       = time.Second // a pod that must go at once has as long to end
	transitionDefault = 5 * time.Minute
	// How often is looked: far from every threshold, near to one (less than
	// twice as much as there is to be), and at most when the kernel calls.
	lookFar     = time.Minute
	lookNear    = 10 * time.Second
	lookAtMost  = time.Second
	evictedWait = 30 * time.Second // for one pod to be down before the next
)

// pressureKeeper watches what the node has too little of, says so in the
// Node's conditions, and evicts pods. At rest it reads a handful of files once
// a minute and writes nothing; the kernel calls it when memory goes fast.
type pressureKeeper struct {
	a    *Agent
	wake chan struct{}

	mu    sync.Mutex
	under map[corev1.NodeConditionType]bool

	// Of the loop.
	since   map[Signal]time.Time                   // a soft threshold is met
	unended map[thresholdKey]bool                  // it was met, and there is not enough yet
	lastMet map[corev1.NodeConditionType]time.Time // for the transition
	victim  *podWorker                             // evicted last
	until   time.Time                              // when it is not waited for any more
	told    map[Signal]bool                        // the Node's event about it
	alarms  alarms
	usage   storageUsage
}

func newPressureKeeper(a *Agent) *pressureKeeper {
	return &pressureKeeper{
		a: a, wake: make(chan struct{}, 1), under: map[corev1.NodeConditionType]bool{},
		since: map[Signal]time.Time{}, lastMet: map[corev1.NodeConditionType]time.Time{}, told: map[Signal]bool{},
	}
}

// conditions are what the node is short of.
func (p *pressureKeeper) conditions() map[corev1.NodeConditionType]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[corev1.NodeConditionType]bool{}
	for t, is := range p.under {
		out[t] = is
	}
	return out
}

// refuses says why a pod is not taken on while the node is short of something.
func (p *pressureKeeper) refuses(pod *corev1.Pod) *failure {
	var short []string
	for t, is := range p.conditions() {
		if is {
			short = append(short, string(t))
		}
	}
	if len(short) == 0 || critical(pod) {
		return nil
	}
	if len(short) == 1 && short[0] == string(corev1.NodeMemoryPressure) {
		if qosClass(pod) != corev1.PodQOSBestEffort {
			return nil
		}
		taint := corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}
		for _, t := range pod.Spec.Tolerations {
			if t.Key == "" && t.Operator == corev1.TolerationOpExists || t.Key == taint.Key && (t.Effect == "" || t.Effect == taint.Effect) {
				return nil
			}
		}
	}
	slices.Sort(short)
	return &failure{Reason: reasonEvicted, Message: fmt.Sprintf("Pod was rejected: The node had condition: [%s]. ", strings.Join(short, " "))}
}

// critical pods are never evicted: those of the node itself, and of system
// priority.
func critical(pod *corev1.Pod) bool {
	if source := pod.Annotations["kubernetes.io/config.source"]; source != "" && source != "api" {
		return true
	}
	return pod.Annotations[corev1.MirrorPodAnnotationKey] != "" || pod.Spec.Priority != nil && *pod.Spec.Priority >= criticalPodPrio
}

func (p *pressureKeeper) run(ctx context.Context) {
	defer p.alarms.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var called <-chan struct{}
	var quiet <-chan time.Time // until the kernel is listened to again
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.wake:
		case <-called:
			called, quiet = nil, time.After(lookAtMost)
		case <-quiet:
			called, quiet = p.alarms.rings, nil
			continue
		}
		next, readings := p.look(ctx)
		timer.Reset(next)
		if p.a.cfg.Readings == nil {
			p.arm(ctx, readings)
			if quiet == nil {
				called = p.alarms.rings
			}
		}
	}
}

// thresholdKey tells thresholds apart: of a signal there is at most one of each
// kind.
type thresholdKey struct {
	signal Signal
	soft   bool
}

// met is a threshold that there is less than.
type met struct {
	Threshold
	reading Reading
}

// look reads everything, sets the conditions, evicts at most one pod, and says
// when to look again.
func (p *pressureKeeper) look(ctx context.Context) (next time.Duration, readings map[Signal]Reading) {
	readings = p.read()
	now := p.a.cfg.Now()
	found, near := p.judge(readings, now)
	p.settle(found, now)
	next = lookFar
	if near {
		next = lookNear
	}
	if p.victim != nil {
		if !p.victim.view().rec.Down && now.Before(p.until) && p.a.worker(p.victim.uid) == p.victim {
			return min(next, p.until.Sub(now)), readings // one at a time
		}
		p.victim, p.until = nil, now.Add(lookAtMost) // what it held comes back in a moment
	}
	if now.Before(p.until) {
		return p.until.Sub(now), readings
	}
	if len(found) > 0 {
		if p.relieve(ctx, found) {
			next = min(next, lookNear)
		}
	} else {
		clear(p.told)
		next = min(next, p.checkStorage(readings, now))
	}
	return next, readings
}

// judge finds the thresholds that are met, soft ones for as long as their
// grace, or were and are not made up for, and says whether one is near.
func (p *pressureKeeper) judge(readings map[Signal]Reading, now time.Time) (found []met, near bool) {
	hard, soft := p.a.cfg.EvictionHard, p.a.cfg.EvictionSoft
	for _, t := range hard.of(signalMemory) {
		t.Signal = signalPods
		hard = append(slices.Clone(hard), t)
	}
	still, unended := map[Signal]bool{}, map[thresholdKey]bool{}
	for _, t := range slices.Concat(hard, soft) {
		r, ok := readings[t.Signal]
		if !ok || r.Capacity == 0 {
			continue
		}
		key, least := thresholdKey{t.Signal, t.Grace > 0}, t.amount(r.Capacity)
		if p.unended[key] {
			least = t.enough(r.Capacity)
		}
		near = near || r.Available < 2*least
		if r.Available >= least {
			continue
		}
		if t.Grace > 0 {
			still[t.Signal] = true
			if p.since[t.Signal].IsZero() {
				p.since[t.Signal] = now
			}
			if now.Sub(p.since[t.Signal]) < t.Grace {
				continue
			}
		}
		unended[key] = true
		found = append(found, met{t, r})
	}
	p.unended = unended
	for s := range p.since {
		if !still[s] {
			delete(p.since, s)
		}
	}
	// Memory first: a lack of it hurts soonest. Hard before soft.
	slices.SortStableFunc(found, func(a, b met) int {
		rank := func(m met) int {
			if conditionFor(m.Signal) == corev1.NodeMemoryPressure {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Grace, b.Grace))
	})
	return found, near
}

func conditionFor(s Signal) corev1.NodeConditionType {
	switch s {
	case signalMemory, signalPods:
		return corev1.NodeMemoryPressure
	case signalPIDs:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// settle says in the Node what it is short of, and goes on to for a while
// after the end: what was evicted is not to come back at once.
func (p *pressureKeeper) settle(found []met, now time.Time) {
	for _, m := range found {
		p.lastMet[conditionFor(m.Signal)] = now
	}
	hold := p.a.cfg.EvictionTransition
	if hold == 0 {
		hold = transitionDefault
	}
	changed := false
	p.mu.Lock()
	for _, t := range []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		last := p.lastMet[t]
		is := !last.IsZero() && (last.Equal(now) || now.Sub(last) < hold)
		if is != p.under[t] {
			p.under[t], changed = is, true
			p.a.node.event(corev1.EventTypeNormal, pressureEvent(t, is), fmt.Sprintf("Node %s status is now: %s", p.a.cfg.NodeName, pressureEvent(t, is)))
		}
	}
	p.mu.Unlock()
	if changed {
		poke(p.a.node.wake)
	}
}

func pressureEvent(t corev1.NodeConditionType, is bool) string {
	names := map[corev1.NodeConditionType][2]string{
		corev1.NodeMemoryPressure: {"NodeHasSufficientMemory", "NodeHasInsufficientMemory"},
		corev1.NodeDiskPressure:   {"NodeHasNoDiskPressure", "NodeHasDiskPressure"},
		corev1.NodePIDPressure:    {"NodeHasSufficientPID", "NodeHasInsufficientPID"},
	}
	if is {
		return names[t][1]
	}
	return names[t][0]
}

// starved is the resource behind a signal, as messages name it.
func starved(s Signal) corev1.ResourceName {
	switch s {
	case signalMemory, signalPods:
		return corev1.ResourceMemory
	case signalPIDs:
		return "pids"
	case signalNodeInodes, signalImageInodes:
		return "inodes"
	}
	return corev1.ResourceEphemeralStorage
}

// relieve does something about the first threshold that is met.
func (p *pressureKeeper) relieve(ctx context.Context, found []met) (evicted bool) {
	for _, m := range found {
		what := starved(m.Signal)
		if !p.told[m.Signal] {
			p.told[m.Signal] = true
			p.a.node.event(corev1.EventTypeWarning, "EvictionThresholdMet", fmt.Sprintf("Attempting to reclaim %s", what))
		}
		if conditionFor(m.Signal) == corev1.NodeDiskPressure {
			// What nobody needs goes before anybody's pod.
			p.a.reclaimDisk(ctx)
			if r, ok := p.read()[m.Signal]; ok && r.Available >= m.enough(r.Capacity) {
				continue
			}
		}
		for _, c := range p.ranked(what) {
			if critical(c.pod) {
				continue
			}
			p.evict(c.worker, &failure{Reason: reasonEvicted, Message: c.lowMessage(m, what)}, m.Grace)
			return true
		}
	}
	return false
}

// evict gives a pod up for the node's sake.
func (p *pressureKeeper) evict(w *podWorker, why *failure, grace time.Duration) {
	if grace <= 0 {
		grace = immediately
	}
	why.Grace = grace
	p.a.log.Warn("evicting a pod", "pod", w.view().pod.Namespace+"/"+w.view().pod.Name, "why", why.Message)
	p.victim, p.until = w, p.a.cfg.Now().Add(max(evictedWait, grace))
	w.mu.Lock()
	w.evicted = why
	w.mu.Unlock()
	poke(w.wake)
}

// candidate is a pod that may be evicted, and what it takes.
type candidate struct {
	worker     *podWorker
	pod        *corev1.Pod
	running    map[string]string
	use        uint64 // of what there is too little of
	request    uint64
	containers map[string]uint64 // their own use, by name
}

func (c candidate) over() int64 { return int64(c.use) - int64(c.request) }

// ranked are the pods that run, the first to be evicted first: those that use
// more than they requested, of them those of the least priority, of them the
// one that exceeds its request most.
func (p *pressureKeeper) ranked(what corev1.ResourceName) []candidate {
	var all []candidate
	for _, w := range p.a.allWorkers() {
		v := w.view()
		if v.rec.Started.IsZero() || v.rec.Down || v.rec.Failed != nil || terminalPhase(v.pod.Status.Phase) {
			continue
		}
		c := candidate{worker: w, pod: v.pod, running: v.running, containers: map[string]uint64{}}
		requests := podresource.PodRequests(v.pod, podresource.PodResourcesOptions{})
		switch what {
		case corev1.ResourceMemory:
			s, err := p.a.cfg.Runtime.Stats(string(w.uid), "")
			if err != nil {
				continue // nothing of it is there yet
			}
			c.use, c.request = s.MemoryWorkingSet, uint64(requests.Memory().Value())
			for name, id := range v.running {
				if s, err := p.a.cfg.Runtime.Stats(string(w.uid), id); err == nil {
					c.containers[name] = s.MemoryWorkingSet
				}
			}
		case "pids":
			if s, err := p.a.cfg.Runtime.Stats(string(w.uid), ""); err == nil {
				c.use = s.Processes
			}
		default:
			u := p.a.storageOf(w, v)
			for _, spec := range v.pod.Spec.Containers {
				c.containers[spec.Name] = u.of(spec.Name)
			}
			if c.use = u.total(); what == "inodes" {
				c.use, c.containers = u.inodes, nil
			} else {
				c.request = uint64(requests.StorageEphemeral().Value())
			}
		}
		all = append(all, c)
	}
	slices.SortStableFunc(all, func(a, b candidate) int {
		exceeds := 0
		if x, y := a.over() > 0, b.over() > 0; what != "pids" && x != y {
			if exceeds = 1; x {
				exceeds = -1
			}
		}
		return cmp.Or(exceeds, cmp.Compare(priorityOf(a.pod), priorityOf(b.pod)), cmp.Compare(b.over(), a.over()))
	})
	return all
}

// lowMessage is what the evicted pod is told, in kubelet's words.
func (c candidate) lowMessage(m met, what corev1.ResourceName) string {
	var b strings.Builder
	show := func(n int64) string { return resource.NewQuantity(n, resource.BinarySI).String() }
	if what == "inodes" || what == "pids" {
		show = func(n int64) string { return resource.NewQuantity(n, resource.DecimalSI).String() }
	}
	fmt.Fprintf(&b, "The node was low on resource: %s. Threshold quantity: %s, available: %s. ", what, show(m.amount(m.reading.Capacity)), show(m.reading.Available))
	for _, spec := range c.pod.Spec.Containers {
		use, ok := c.containers[spec.Name]
		request := spec.Resources.Requests[what]
		if ok && int64(use) > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", spec.Name, show(int64(use)), request.String(), what)
		}
	}
	return b.String()
}

// reclaimDisk removes what no pod of this node needs.
func (a *Agent) reclaimDisk(ctx context.Context) {
	if _, err := a.PruneImages(ctx); err != nil {
		a.log.Warn("images that nobody uses cannot all be removed", "err", err)
	}
}
