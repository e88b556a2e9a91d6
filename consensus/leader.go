package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// errLeadershipLost is the cause with which a leadership's context ends.
var errLeadershipLost = errors.New("leadership was lost")

// retryWait is the pause between two tries where no event tells when to try
// again.
const retryWait = 20 * time.Millisecond

// confirmAgain is how long a node that may not lead waits before it asks again.
const confirmAgain = 500 * time.Millisecond

// confirm asks, until it is so, whether this node may lead.
func (n *Node) confirm(ctx context.Context) {
	for !n.confirmed.Load() {
		err := n.c.Confirm(ctx)
		if err == nil {
			n.confirmed.Store(true)
			n.changed.fire()
			return
		}
		n.log.Warn("this node must not lead", "error", err)
		select {
		case <-time.After(confirmAgain):
		case <-ctx.Done():
			return
		}
	}
}

// leadership is one term of this node's rule. Its goroutine first waits for
// the barrier, then keeps the master set.
type leadership struct {
	ctx   context.Context
	stop  context.CancelCauseFunc
	done  chan struct{}
	term  uint64
	since time.Time // when the barrier had passed

	mu  sync.Mutex
	set masterSet // as keepMasters saw it last
}

// describe notes how the masters are; it says whether that is news.
func (l *leadership) describe(s masterSet) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	same := l.set.Voters == s.Voters && l.set.Target == s.Target && l.set.Standby == s.Standby && slices.Equal(l.set.Problems, s.Problems)
	l.set = s
	return !same
}

func (l *leadership) masters() masterSet {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.set
}

// settled returns once all that the configuration says is committed: a change
// under way may yet be undone.
func (n *Node) settled() error {
	r := n.raft.Load()
	if r == nil || n.established() == nil {
		return ErrNoLeader
	}
	return n.future(func() raft.Future { return r.Barrier(enqueueWait) })
}

// lead begins a leadership.
func (n *Node) lead(ctx context.Context) *leadership {
	l := &leadership{done: make(chan struct{})}
	l.ctx, l.stop = context.WithCancelCause(ctx)
	go func() {
		defer close(l.done)
		if n.establish(l) {
			var both sync.WaitGroup
			both.Go(func() { n.compareStates(l) })
			n.keepMasters(l)
			both.Wait()
		}
		n.setLeading(nil)
	}()
	return l
}

// end ends a leadership and returns when its goroutine has.
func (l *leadership) end() {
	l.stop(errLeadershipLost)
	<-l.done
}

// establish waits until this node has applied all that was committed before
// its term.
func (n *Node) establish(l *leadership) bool {
	r := n.raft.Load()
	lost := r.LastContact() // with the leader before
	n.trans.forget()
	for l.ctx.Err() == nil {
		if !n.confirmed.Load() {
			n.pause(l.ctx, n.changed.wait())
			continue
		}
		l.term = r.CurrentTerm()
		err := n.future(func() raft.Future { return r.Barrier(enqueueWait) })
		if err == nil && r.State() == raft.Leader && r.CurrentTerm() == l.term {
			l.since = time.Now()
			n.leases.reset(l.since)
			n.mu.Lock()
			if !lost.IsZero() {
				n.stats.Elections.add(l.since.Sub(lost))
			}
			n.mu.Unlock()
			n.log.Info("this node leads", "term", l.term)
			n.setLeading(l)
			return true
		}
		n.pause(l.ctx, n.changed.wait())
	}
	return false
}

func (n *Node) setLeading(l *leadership) {
	n.mu.Lock()
	n.leading = l
	n.mu.Unlock()
	if l == nil {
		n.leases.reset(time.Time{})
	}
	n.changed.fire()
}

// established returns the leadership of this node, nil if there is none.
func (n *Node) established() *leadership {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leading == nil || n.leading.ctx.Err() != nil {
		return nil
	}
	return n.leading
}

// pause waits for a change, or a moment.
func (n *Node) pause(ctx context.Context, changed <-chan struct{}) {
	timer := time.NewTimer(retryWait)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// errEnded is why a node that is stopped does nothing more. It is no outcome of a
// write: what is waited for may well have been written.
var errEnded = errors.New("this node's consensus has ended")

// given says whether to stop trying: the caller's context, or the node, has
// ended.
func (n *Node) given(ctx context.Context) error {
	select {
	case <-n.ended:
		return errEnded
	default:
		return ctx.Err()
	}
}

// leaderWait is how long calls go on without a leader. An election takes a
// second or two; who has had none for longer is cut off from the others, and
// whoever asks it had better know: after leastWait, in which a node that was
// healed just now finds the others.
const (
	leaderWait = 10 * time.Second
	leastWait  = time.Second
)

// Leaderless is since when this node knows no leader; zero if it knows one.
func (n *Node) Leaderless() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.Leader() != "":
		n.leaderless = time.Time{}
	case n.leaderless.IsZero():
		n.leaderless = time.Now()
	}
	return n.leaderless
}

// over says why a call that began then is to give up, if it is: the caller's
// context or the node has ended, or nobody has led for long.
func (n *Node) over(ctx context.Context, began time.Time) error {
	if given := n.given(ctx); given != nil {
		return given
	}
	if since := n.Leaderless(); !since.IsZero() && time.Since(since) >= leaderWait && time.Since(began) >= leastWait {
		return fmt.Errorf("there was none for %s", time.Since(since).Round(time.Second))
	}
	return nil
}

// Lead runs work each time this node has become leader and knows all that was
// written before. work's context ends when leadership is lost; Lead waits for
// work to end before anything else. An error of work while it still leads
// ends Lead; the end of ctx is no error.
func (n *Node) Lead(ctx context.Context, work func(ctx context.Context) error) error {
	for {
		changed := n.changed.wait()
		l := n.established()
		if l == nil {
			select {
			case <-changed:
				continue
			case <-n.ended:
				return nil
			case <-ctx.Done():
				return nil
			}
		}
		both, cancel := context.WithCancelCause(ctx)
		stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
		err := work(both)
		stop()
		cancel(nil)
		if err != nil && ctx.Err() == nil && l.ctx.Err() == nil {
			return err
		}
		select {
		case <-l.ctx.Done():
		case <-ctx.Done():
			return nil
		}
	}
}

// Transfer hands leadership to the voter that has most of the log.
func (n *Node) Transfer(ctx context.Context) error {
	r := n.raft.Load()
	if r == nil {
		return fmt.Errorf("handing over leadership: %w", ErrNoLeader)
	}
	err := await(ctx, func() error { return n.transfer(n.future, r) })
	if err != nil {
		return fmt.Errorf("handing over leadership: %w", err)
	}
	return nil
}

// transferAgain is how long no leadership is handed over after that failed. raft
// leaves a message for the goroutine that replicates to the chosen follower,
// and waits for ever to leave a second one where that goroutine is stuck in a
// call (of rpcTimeout, and raft's own pause of 10 s) and the leadership ends
// meanwhile: raft.go, leadershipTransfer, triggerDeferErrorCh. It then believes
// in a handing over for ever, and refuses all writes when it leads again.
const transferAgain = rpcTimeout + 11*time.Second

var errTransferFailed = errors.New("handing over failed a moment ago")

// transfer hands leadership over, by way of run, unless that failed lately.
func (n *Node) transfer(run func(func() raft.Future) error, r *raft.Raft) error {
	if failed := n.transferFailed.Load(); failed != nil && time.Since(*failed) < transferAgain {
		return errTransferFailed
	}
	err := run(func() raft.Future { return r.LeadershipTransfer() })
	if err != nil {
		now := time.Now()
		n.transferFailed.Store(&now)
	}
	return err
}

// readyWait bounds the preparation of successors.
const readyWait = 500 * time.Millisecond

// Resign hands leadership over, if this node leads and there is another voter,
// and returns when the next leader takes writes. It says whether it led. The
// voters make their connections to each other before: handshakes would be the
// longest part of the change.
func (n *Node) Resign(ctx context.Context) (led bool, err error) {
	r := n.raft.Load()
	if r == nil || r.State() != raft.Leader || voters(n.configuration()) < 2 {
		return false, nil
	}
	n.readySuccessors(ctx)
	if err := n.Transfer(ctx); err != nil {
		return true, err
	}
	return true, n.Sync(ctx) // this node is a voter that the next leader may need
}

// readySuccessors has the other voters get ready to lead.
func (n *Node) readySuccessors(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	n.eachVoter(func(id string) { _ = call(ctx, n.c.Caller, id, pathReady, struct{}{}, &struct{}{}) })
}

// eachVoter calls do for every voter but this node at the same time, and returns
// when all calls have.
func (n *Node) eachVoter(do func(id string)) {
	var all sync.WaitGroup
	for _, id := range voterIDs(n.configuration()) {
		if id != n.self {
			all.Go(func() { do(string(id)) })
		}
	}
	all.Wait()
}

// ready connects this node to the other voters in the ways that a leader and
// its followers will need. What fails will be tried again when it is needed.
func (n *Node) ready(ctx context.Context) {
	if n.raft.Load() == nil {
		return
	}
	n.eachVoter(func(id string) {
		var all sync.WaitGroup
		for range connPool {
			all.Go(func() { n.trans.connect(raft.ServerID(id)) })
		}
		var a leaderAnswer
		_ = call(ctx, n.c.Caller, id, pathLeader, struct{}{}, &a)
		all.Wait()
	})
}

// await runs f in a goroutine, which may outlive ctx.
func await(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Remove takes a node out of the configuration, wherever it is called, and
// returns when it is out. The leader finds a replacement first, if there is
// one, and hands over before it removes itself.
func (n *Node) Remove(ctx context.Context, id string) error {
	for {
		changed := n.changed.wait()
		done, err := n.remove(ctx, id)
		if done || err != nil {
			return err
		}
		n.pause(ctx, changed)
		if id == n.c.ID && n.removed.Load() {
			return nil // it was told so before it had its answer
		}
		if err := n.given(ctx); err != nil {
			return fmt.Errorf("removing node %s: %w: %w", id, ErrNoLeader, err)
		}
	}
}

var errLastMaster = errors.New("no other node can take over: it is the last that may be a master")

// remove asks the leader once.
func (n *Node) remove(ctx context.Context, id string) (done bool, err error) {
	leader := n.Leader()
	switch {
	case leader == "":
		return false, nil
	case leader != n.c.ID:
		var a removeAnswer
		try, cancel := n.whileLeads(ctx, leader)
		defer cancel()
		if err := call(try, n.c.Caller, leader, pathRemove, removeQuestion{ID: id}, &a); err != nil {
			return false, nil
		}
		if a.Error != "" {
			return false, fmt.Errorf("removing node %s: %s", id, a.Error)
		}
		return a.Removed, nil
	}
	if n.established() == nil {
		return false, nil
	}
	a := n.removeHere(id)
	if a.Error != "" {
		return false, fmt.Errorf("removing node %s: %s", id, a.Error)
	}
	return a.Removed, nil
}

// removeHere marks the node as leaving, for the loop that keeps the masters,
// and says whether it is out already.
func (n *Node) removeHere(id string) removeAnswer {
	servers := n.raft.Load().GetConfiguration().Configuration().Servers
	in, others := false, 0
	for _, s := range servers {
		in = in || string(s.ID) == id
	}
	for _, m := range n.c.Members() {
		if m.ID != id && m.Alive && !m.NoMaster {
			others++
		}
	}
	switch {
	case in && others == 0:
		return removeAnswer{Error: errLastMaster.Error()}
	case !in:
		return removeAnswer{Removed: true}
	}
	if n.leaving.add(id) {
		n.changed.fire()
	}
	return removeAnswer{}
}
