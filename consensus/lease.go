package consensus

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Lease is one node's lease as the leader sees it.
type Lease struct {
	ID, Name string
	Renewed  time.Time
	Expired  bool
}

// leases is the leader's book of who renewed when. It is in memory: a new
// leader knows nothing and gives everybody one whole lease.
type leases struct {
	duration time.Duration

	mu    sync.Mutex
	since time.Time // when this node began to lead; zero if it does not
	byID  map[string]Lease
}

// reset begins a leadership, or ends it if since is zero.
func (b *leases) reset(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since, b.byID = since, make(map[string]Lease)
}

// renew returns false if this node does not lead.
func (b *leases) renew(id, name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since.IsZero() {
		return false
	}
	b.byID[id] = Lease{ID: id, Name: name, Renewed: time.Now()}
	return true
}

// seen completes a lease with what time says of it. Under mu.
func (b *leases) seen(l Lease) Lease {
	from := l.Renewed
	if from.Before(b.since) {
		from = b.since
	}
	l.Expired = !b.since.IsZero() && time.Since(from) > b.duration
	return l
}

// Lease is when the node was last heard of, and whether its lease has ended.
// An empty id looks the node up by its name. Only the leader knows: elsewhere
// nothing is ever expired. A node that never renewed with this leader has the
// zero time, and expires one lease after the leader began.
func (n *Node) Lease(nodeName, id string) (renewed time.Time, expired bool) {
	b := &n.leases
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.seen(b.find(nodeName, id))
	return l.Renewed, l.Expired
}

// find is a node's lease; the zero Lease if it never renewed. Under mu.
func (b *leases) find(nodeName, id string) Lease {
	l := b.byID[id]
	if id == "" {
		for _, o := range b.byID {
			if o.Name == nodeName && o.Renewed.After(l.Renewed) {
				l = o
			}
		}
	}
	return l
}

// Renewal is a leader's answer to a node that renews its lease.
type Renewal struct {
	// Age is how long before the answer the leader surely led. Only if Sure:
	// a leader that has just begun does not know.
	Age  time.Duration
	Sure bool
}

// RenewLocal renews the lease of this node itself, if it leads.
func (n *Node) RenewLocal() (r Renewal, leads bool) {
	if !n.leases.renew(n.c.ID, n.c.Name) {
		return Renewal{}, false
	}
	r.Age, r.Sure = n.authority()
	return r, true
}

// Leases are all leases that the leader knows, by name.
func (n *Node) Leases() []Lease {
	b := &n.leases
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Lease, 0, len(b.byID))
	for _, l := range b.byID {
		out = append(out, b.seen(l))
	}
	slices.SortFunc(out, func(a, c Lease) int { return cmp.Or(cmp.Compare(a.Name, c.Name), cmp.Compare(a.ID, c.ID)) })
	return out
}

// LeaseConfig is what a LeaseClient needs.
type LeaseConfig struct {
	ID, Name string
	Caller   Caller
	// Local renews with the Node of this process and says whether that leads:
	// Node.RenewLocal. It may be nil, if Caller reaches this node itself.
	Local    func() (r Renewal, leads bool)
	Masters  func() []string // ids of nodes that may know the leader
	Duration time.Duration   // as in Config.LeaseDuration; 3 s
	// Fence, if not nil, is called after a renewal with the time since boot
	// until which what must not run twice may run here. It must not block.
	Fence func(until time.Duration)
	// Boot is as in Config.
	Boot func() time.Duration
	Log  *slog.Logger
}

// LeaseClient keeps this node's lease with the leader. Every node has one.
type LeaseClient struct {
	c      LeaseConfig
	leader string // as last heard; Run's alone

	mu      sync.Mutex
	renewed time.Time
	fence   time.Duration
	lost    chan struct{}
	isLost  bool
}

// NewLease returns a client without a lease: what Lost returns is closed.
func NewLease(c LeaseConfig) *LeaseClient {
	orDefault(&c.Duration, defaultNodeLease)
	if c.Boot == nil {
		c.Boot = SinceBoot
	}
	if c.Fence == nil {
		c.Fence = func(time.Duration) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	l := &LeaseClient{c: c, lost: make(chan struct{}), isLost: true}
	close(l.lost)
	return l
}

// Run renews until ctx ends: four times in a lease, and at once after a
// failure.
func (l *LeaseClient) Run(ctx context.Context) error {
	every := min(l.c.Duration/4, time.Second)
	next := time.NewTimer(0)
	defer next.Stop()
	end := time.NewTimer(l.c.Duration)
	defer end.Stop()
	results := make(chan grant, 1)
	var tries sync.WaitGroup
	defer tries.Wait()
	for {
		select {
		case <-next.C:
			tries.Go(func() { results <- l.renew(ctx) })
		case g := <-results:
			if g.at.IsZero() {
				next.Reset(min(every, 100*time.Millisecond))
				continue
			}
			l.renewedAt(g)
			next.Reset(time.Until(g.at.Add(every)))
			end.Reset(time.Until(g.at.Add(l.c.Duration * 2 / 3)))
		case <-end.C:
			l.lose()
		case <-ctx.Done():
			return nil
		}
	}
}

// grant is a renewal, and when the call for it was begun, on both clocks; at is
// zero if there was none.
type grant struct {
	Renewal
	at   time.Time
	boot time.Duration
}

func (l *LeaseClient) renewedAt(g grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewed = g.at
	if l.isLost {
		l.isLost, l.lost = false, make(chan struct{})
	}
	if until := g.boot - g.Age + fenceHolds; g.Sure && until > l.fence {
		l.fence = until
		l.c.Fence(until)
	}
}

// FenceUntil is until when, as time since boot, what must not run twice may run
// on this node: no leader replaces it earlier. Zero before the first renewal.
func (l *LeaseClient) FenceUntil() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fence
}

func (l *LeaseClient) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.isLost {
		l.isLost = true
		close(l.lost)
		l.c.Log.Warn("no leader renews this node's lease", "renewed", l.renewed)
	}
}

// renew asks the leader, or everybody where it is not known.
func (l *LeaseClient) renew(ctx context.Context) grant {
	if l.c.Local != nil {
		g := l.now()
		var leads bool
		if g.Renewal, leads = l.c.Local(); leads {
			return g
		}
	}
	if l.leader != "" {
		try, cancel := context.WithTimeout(ctx, l.c.Duration/6)
		g, _ := l.ask(try, l.leader)
		cancel()
		if !g.at.IsZero() {
			return g
		}
		l.leader = ""
	}
	type answer struct {
		grant
		from string
	}
	masters := l.c.Masters()
	answers := make(chan answer, len(masters))
	var asked sync.WaitGroup
	defer asked.Wait()
	try, cancel := context.WithTimeout(ctx, l.c.Duration/6)
	defer cancel()
	for _, id := range masters {
		asked.Go(func() {
			g, hint := l.ask(try, id)
			if g.at.IsZero() && hint != "" && hint != id {
				id = hint
				g, _ = l.ask(try, id)
			}
			answers <- answer{g, id}
		})
	}
	for range masters {
		if a := <-answers; !a.at.IsZero() {
			l.leader = a.from
			return a.grant
		}
	}
	return grant{}
}

// now is a grant that begins now.
func (l *LeaseClient) now() grant { return grant{at: time.Now(), boot: l.c.Boot()} }

func (l *LeaseClient) ask(ctx context.Context, id string) (g grant, hint string) {
	g = l.now()
	var a leaseAnswer
	if err := call(ctx, l.c.Caller, id, pathLease, leaseQuestion{Name: l.c.Name}, &a); err != nil || !a.Renewed {
		return grant{}, a.Leader
	}
	if a.Age != nil {
		g.Age, g.Sure = *a.Age, true
	}
	return g, ""
}

// Renewed is when the last successful renewal was begun: the lease cannot end
// on the leader's clock before Renewed plus Duration. It is zero before the
// first.
func (l *LeaseClient) Renewed() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renewed
}

// Lost returns a channel that is closed once two thirds of the lease have
// passed without a renewal: what must not run twice has to stop within the
// last third. After a renewal, Lost returns a new channel.
func (l *LeaseClient) Lost() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}
