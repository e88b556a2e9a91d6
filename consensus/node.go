package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"
)

// Defaults of Timing, and what follows from it.
const (
	defaultHeartbeat = 400 * time.Millisecond
	defaultLease     = 330 * time.Millisecond
	defaultNodeLease = 3 * time.Second
	// commitTimeout is how often raft itself repeats the commit index and
	// tries a follower that failed.
	commitTimeout = 500 * time.Millisecond
	// enqueueWait is how long a write waits for raft's main loop to take it.
	enqueueWait = time.Second
	// drainWait is how long a stop waits for writes under way: leadership is
	// decided long before.
	drainWait = 2 * time.Second

	snapshotEvery     = 2 * time.Minute
	snapshotThreshold = 4096
	trailingLogs      = 2 * snapshotThreshold
)

// Node is this process's replica of the log and the store.
type Node struct {
	c     Config
	log   *slog.Logger
	store *Store
	disk  *disk
	fsm   *machine
	// handler answers peers: made once, as every call of every node needs it.
	handler http.Handler
	// self is what raft calls us.
	self raft.ServerID

	running atomic.Bool
	// confirmed: nobody whom this node could ask knows of a newer incarnation.
	confirmed      atomic.Bool
	raft           atomic.Pointer[raft.Raft] // nil before Run has begun and after it ended
	trans          *transport                // fixed before raft is set
	notify         chan bool                 // raft's word on our leadership
	changed        signal                    // leader, state, configuration or leadership changed
	fatal          chan error                // the machine's last word
	ended          chan struct{}             // closed when Run has ended
	transferFailed atomic.Pointer[time.Time]
	futures        gate // raft forgets some of its open futures when it shuts down

	proposals proposals
	verify    batcher[index] // on the leader
	ask       batcher[index] // elsewhere: of the leader
	leases    leases
	leaving   leaving
	retired   sync.Once
	removed   atomic.Bool // the others have no place for this node any more

	mu      sync.Mutex
	leading *leadership // nil unless this node leads and its barrier has passed
	// leaderless is since when no leader is known, zero if one is; watchRaft
	// keeps it.
	leaderless time.Time
	stats      Metrics
}

// signal wakes all who wait for something to change.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that is closed at the next fire.
func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// gate counts who is inside, and after close lets nobody in.
type gate struct {
	mu     sync.Mutex
	inside int
	empty  chan struct{} // not nil once closed
}

func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.empty != nil {
		return false
	}
	g.inside++
	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside--; g.inside == 0 && g.empty != nil {
		close(g.empty)
	}
}

// close returns a channel that is closed when all have left. It is called
// once.
func (g *gate) close() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.empty = make(chan struct{})
	if g.inside == 0 {
		close(g.empty)
	}
	return g.empty
}

// New opens the log in Config.Dir. A node that is not run must be closed.
func New(c Config) (*Node, error) {
	for name, missing := range map[string]bool{
		"ID": c.ID == "", "Dir": c.Dir == "", "Stream": c.Stream == nil, "Addresses": c.Addresses == nil,
		"Codec": c.Codec == nil, "Caller": c.Caller == nil, "PeerID": c.PeerID == nil, "Members": c.Members == nil,
		"MembersChanged": c.MembersChanged == nil, "Prepare": c.Prepare == nil,
	} {
		if missing {
			return nil, fmt.Errorf("consensus: Config.%s is needed", name)
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Retired == nil {
		c.Retired = func() {}
	}
	if c.Boot == nil {
		c.Boot = SinceBoot
	}
	if c.Outdated == nil {
		c.Outdated = func() {}
	}
	c.Caller = lifeCaller{c.Caller, c.Incarnation}
	t := &c.Timing
	orDefault(&c.LeaseDuration, defaultNodeLease)
	orDefault(&c.Compare, defaultCompare)
	orDefault(&c.Window, defaultWindow)
	orDefault(&c.WindowBytes, defaultWindowBytes)
	orDefault(&t.Heartbeat, defaultHeartbeat)
	orDefault(&t.Election, t.Heartbeat)
	orDefault(&t.Lease, t.Heartbeat*defaultLease/defaultHeartbeat)
	orDefault(&c.Compaction.Every, snapshotEvery)
	orDefault(&c.Compaction.Threshold, snapshotThreshold)
	orDefault(&c.Compaction.Trailing, trailingLogs)
	t.Election = max(t.Election, t.Heartbeat)
	t.Lease = min(t.Lease, t.Heartbeat-1) // see poke
	n := &Node{
		c: c, log: c.Log, self: raft.ServerID(c.ID),
		store:  newStore(c.Window, c.WindowBytes),
		notify: make(chan bool, 64),
		fatal:  make(chan error, 1),
		ended:  make(chan struct{}),
	}
	n.fsm = &machine{store: n.store, codec: c.Codec, committed: n.committed, failed: n.fail}
	n.leases.duration = c.LeaseDuration
	n.handler = n.newHandler()
	var err error
	n.disk, err = openDisk(c.Dir, c.OpenLog, newRaftLog(n.log))
	if err != nil {
		return nil, err
	}
	n.disk.log.disk.damaged = n.fail
	at, err := n.disk.position()
	if err == nil {
		err = enroll(c.Dir, at.Index == 0, c.Incarnation)
	}
	if err != nil {
		return nil, errors.Join(err, n.disk.close())
	}
	n.confirmed.Store(c.Confirm == nil)
	return n, nil
}

func orDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// Close frees a node that was never run.
func (n *Node) Close() error {
	if !n.running.CompareAndSwap(false, true) {
		return errors.New("closing a node that was run: end Run's context instead")
	}
	return n.disk.close()
}

// fail is told by the machine that this replica cannot go on.
func (n *Node) fail(err error) {
	select {
	case n.fatal <- err:
	default:
	}
}

func (n *Node) committed(index uint64) {
	if r := n.raft.Load(); r != nil && r.State() == raft.Leader {
		n.trans.committed(index)
	}
}

// raftConfig is what raft runs with.
func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = n.self
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = n.c.Timing.Heartbeat, n.c.Timing.Election, n.c.Timing.Lease
	c.CommitTimeout = commitTimeout
	c.MaxAppendEntries = 128
	c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = n.c.Compaction.Every, n.c.Compaction.Threshold, n.c.Compaction.Trailing
	c.NotifyCh = n.notify
	c.Logger = newRaftLog(n.log)
	c.NoLegacyTelemetry = true
	// A removed node follows: it must never lead a cluster of itself alone.
	c.ShutdownOnRemove = false
	return c
}

// Bootstrap makes this node the only voter of a new cluster. It is called
// once, before Run, and refuses a folder that has state.
func (n *Node) Bootstrap() error {
	if n.running.Load() {
		return errors.New("bootstrapping: the node is already running")
	}
	// The transport is only asked to encode addresses, in a format that is no
	// longer used.
	_, trans := raft.NewInmemTransport(raft.ServerAddress(n.self))
	defer trans.Close()
	err := raft.BootstrapCluster(n.raftConfig(), n.disk.log, n.disk.vote, n.disk.snaps, trans, raft.Configuration{
		Servers: []raft.Server{{Suffrage: raft.Voter, ID: n.self, Address: raft.ServerAddress(n.self)}},
	})
	if err != nil {
		return fmt.Errorf("bootstrapping the log in %s: %w", n.c.Dir, err)
	}
	return nil
}

// Run runs the replica until ctx ends, which is no error, or until the
// replica cannot go on. A leader hands over first.
func (n *Node) Run(ctx context.Context) (err error) {
	if !n.running.CompareAndSwap(false, true) {
		return errors.New("running consensus: the node was already run or closed")
	}
	defer func() {
		err = errors.Join(err, n.disk.close())
		n.store.end()
		close(n.ended)
		n.changed.fire()
	}()
	r, err := n.start()
	if err != nil {
		return fmt.Errorf("starting consensus in %s: %w", n.c.Dir, err)
	}
	seen := make(chan raft.Observation, 64)
	observer := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState, raft.PeerObservation:
			return true
		}
		return false
	})
	r.RegisterObserver(observer)
	asked := make(chan raft.Observation, 1) // who is not heard asks again
	canvassers := raft.NewObserver(asked, false, func(o *raft.Observation) bool {
		c, ok := canvassOf(o.Data)
		return ok && !slices.Contains(voterIDs(r.GetConfiguration().Configuration()), raft.ServerID(c.id))
	})
	r.RegisterObserver(canvassers)
	n.raft.Store(r)
	n.changed.fire()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.watchRaft(ctx, seen) })
	g.Go(func() error { n.pulse(ctx, r); return nil })
	g.Go(func() error { n.confirm(ctx); return nil })
	g.Go(func() error { n.watchRetirement(ctx, r); return nil })
	g.Go(func() error { n.learn(ctx, r, asked); return nil })
	g.Go(func() error { n.speak(ctx, r); return nil })
	err = g.Wait()
	r.DeregisterObserver(canvassers)
	r.DeregisterObserver(observer)
	n.stop(r)
	return err
}

// start restores the state and starts raft.
func (n *Node) start() (r *raft.Raft, err error) {
	if !n.disk.hasState() {
		if err := n.disk.silent.begin(); err != nil {
			return nil, fmt.Errorf("noting that there was no log: %w", err)
		}
	}
	n.trans = newTransport(&n.c, n.c.Timing.Heartbeat*3/10, newRaftLog(n.log), n.disk)
	n.trans.member = n.serves
	defer func() {
		if p := recover(); p != nil { // raft panics on a log with holes
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
		if err != nil {
			n.trans.Close()
			n.trans.wait()
		}
	}()
	r, err = raft.NewRaft(n.raftConfig(), n.fsm, n.disk.log, n.disk.vote, n.disk.snaps, n.trans)
	if err != nil {
		return nil, errors.Join(err, n.fsm.unreadable)
	}
	if voters(r.GetConfiguration().Configuration()) == 1 {
		poke(r) // there is nobody to wait for
	}
	return r, nil
}

// watchRaft turns what raft says into changed and leadership. It ends with
// ctx, and with the machine's failure.
func (n *Node) watchRaft(ctx context.Context, seen <-chan raft.Observation) error {
	var current *leadership
	end := func() {
		if current != nil {
			current.end()
			current = nil
		}
	}
	defer end()
	for {
		n.Leaderless()
		select {
		case <-seen:
			n.changed.fire()
		case leads := <-n.notify:
			end()
			if leads {
				current = n.lead(ctx)
			}
			n.changed.fire()
		case err := <-n.fatal:
			return err
		case <-ctx.Done():
			n.handOver()
			return nil
		}
	}
}

// handOver gives leadership away, if there is somebody to take it.
func (n *Node) handOver() {
	r := n.raft.Load()
	if r.State() == raft.Leader && voters(r.GetConfiguration().Configuration()) > 1 {
		err := n.transfer(func(start func() raft.Future) error { return start().Error() }, r) // bounded by raft's election time-out
		if err != nil {
			n.log.Warn("handing over leadership before the stop failed", "error", err)
		}
	}
}

// stop ends raft and all that it started.
func (n *Node) stop(r *raft.Raft) {
	drained := n.futures.close()
	select {
	case <-drained:
	case <-time.After(drainWait):
		n.log.Warn("stopping with writes under way")
	}
	f := r.Shutdown()
	n.trans.Close() // so that calls to dead peers end now
	if err := f.Error(); err != nil {
		n.log.Warn("stopping raft", "error", err)
	}
	n.trans.wait()
	n.raft.Store(nil)
}

// future runs one of raft's futures to its end, unless the node is stopping.
func (n *Node) future(start func() raft.Future) error {
	if !n.futures.enter() {
		return raft.ErrRaftShutdown
	}
	defer n.futures.leave()
	return start().Error()
}

// poke makes a follower look at once whether its leader is overdue. raft
// checks that by a timer that runs free of the heartbeats, up to twice the
// time-out late; what it does look at is a heartbeat time-out that was
// shortened while it runs.
func poke(r *raft.Raft) {
	c := r.ReloadableConfig()
	c.HeartbeatTimeout--
	r.ReloadConfig(c)
	c.HeartbeatTimeout++
	r.ReloadConfig(c)
}

// pulse pokes raft when the leader is overdue. The voters take turns by a
// fraction of the time-out, lest they all stand for the same election.
func (n *Node) pulse(ctx context.Context, r *raft.Raft) {
	timeout := n.c.Timing.Heartbeat
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		turn := slices.Index(voterIDs(r.GetConfiguration().Configuration()), n.self)
		if turn < 0 || r.State() != raft.Follower {
			timer.Reset(timeout)
			continue
		}
		due := r.LastContact().Add(timeout + time.Duration(turn)*timeout/20)
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			continue
		}
		poke(r)
		timer.Reset(timeout)
	}
}

func voterIDs(c raft.Configuration) (ids []raft.ServerID) {
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func voters(c raft.Configuration) int { return len(voterIDs(c)) }

// Store is this node's replica.
func (n *Node) Store() *Store { return n.store }

// Leader is the id of the leader, "" if none is known.
func (n *Node) Leader() string {
	id, _ := n.leaderAndTerm()
	return id
}

func (n *Node) leaderAndTerm() (string, uint64) {
	r := n.raft.Load()
	if r == nil {
		return "", 0
	}
	_, id := r.LeaderWithID()
	return string(id), r.CurrentTerm()
}

// IsLeader says whether this node leads and has caught up with its own log.
func (n *Node) IsLeader() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leading != nil
}
