package consensus

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// readyLag is how many entries a non-voter may miss and still be called
	// caught up, stableFor how long it must have been.
	readyLag  = 64
	stableFor = 200 * time.Millisecond
	// reachableFor is how old a server's newest answer may be.
	reachableFor = time.Second
	// patience is how long a change that only saves must have been wanted: a
	// node that reboots is back by then.
	patience = 30 * time.Second
	// pendingWait is the pace while something is awaited that only health
	// shows.
	pendingWait = 50 * time.Millisecond
	// prepareWait bounds one Prepare, prepareAgain is the pause after a failed
	// one, and how long an added node may be silent before it is prepared
	// again.
	prepareWait  = 15 * time.Second
	prepareAgain = 3 * time.Second
	changeWait   = time.Second
)

// masters is the state of the loop that keeps the master set: what it
// remembers between two looks. It belongs to one leadership.
type masters struct {
	n *Node
	l *leadership

	caughtUp  map[string]time.Time // since when a non-voter has had the log
	failed    map[string]time.Time // when preparing a node last failed
	silent    map[string]time.Time // since when a non-voter gives no answer
	wanted    change               // the patient change wanted last
	since     time.Time            // since when
	preparing string               // the node that Prepare works on, "" if none
	prepared  chan prepared
}

type prepared struct {
	id  string
	err error
}

// leaving are the nodes that asked to go, until gossip no longer sees them.
type leaving struct {
	mu  sync.Mutex
	ids map[string]bool
}

// add returns whether that is news.
func (l *leaving) add(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ids == nil {
		l.ids = make(map[string]bool)
	}
	known := l.ids[id]
	l.ids[id] = true
	return !known
}

// has says whether a node leaves; one that is gone is forgotten, so that it
// may come back.
func (l *leaving) has(id string, alive bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !alive {
		delete(l.ids, id)
	}
	return l.ids[id]
}

// keepMasters makes the changes that plan asks for, one at a time, until the
// leadership ends. It sleeps while there is nothing to do.
func (n *Node) keepMasters(l *leadership) {
	m := &masters{
		n: n, l: l,
		caughtUp: make(map[string]time.Time), failed: make(map[string]time.Time), silent: make(map[string]time.Time),
		prepared: make(chan prepared, 1),
	}
	defer func() {
		if m.preparing != "" {
			<-m.prepared
		}
	}()
	for {
		changed, members := n.changed.wait(), n.c.MembersChanged()
		var tick <-chan time.Time
		if m.step() {
			tick = time.After(pendingWait)
		}
		select {
		case <-changed:
		case <-members:
		case <-tick:
		case p := <-m.prepared:
			m.add(p)
		case <-l.ctx.Done():
			return
		}
	}
}

// step looks once and makes at most one change. It returns whether it has to
// look again soon.
func (m *masters) step() (pending bool) {
	n := m.n
	r := n.raft.Load()
	if r == nil {
		return false
	}
	servers := r.GetConfiguration().Configuration().Servers
	now := time.Now()
	nodes := m.candidates(now, servers)
	c := plan(n.c.ID, nodes, servers)
	if c.patient {
		if m.wanted != c {
			m.wanted, m.since = c, now
		}
		if now.Sub(m.since) < patience {
			return true
		}
	}
	m.wanted = change{}
	m.revive(now, nodes, servers)
	if c.step == keep || c.id == "" {
		return c.pending || m.preparing != ""
	}
	if c.step == add {
		m.prepare(c.id)
		return true
	}
	began := time.Now()
	err := n.future(func() raft.Future {
		id := raft.ServerID(c.id)
		switch c.step {
		case promote:
			return r.AddVoter(id, raft.ServerAddress(id), 0, changeWait)
		case demote:
			return r.DemoteVoter(id, 0, changeWait)
		case handOver:
			return r.LeadershipTransfer()
		}
		return r.RemoveServer(id, 0, changeWait)
	})
	if err != nil {
		n.log.Warn("changing the masters", "step", c.step.String(), "node", c.id, "error", err)
		return true
	}
	n.count(func(s *Metrics) { s.Changes++; s.LastChange = time.Since(began) })
	n.log.Info("changed the masters", "step", c.step.String(), "node", c.id)
	delete(m.caughtUp, c.id)
	n.changed.fire()
	return true
}

// candidates joins what gossip, raft and the leases say.
func (m *masters) candidates(now time.Time, servers []raft.Server) []candidate {
	n := m.n
	members := n.c.Members()
	for _, s := range servers {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.ID == string(s.ID) }) {
			members = append(slices.Clip(members), Member{ID: string(s.ID)})
		}
	}
	last := uint64(0)
	if r := n.raft.Load(); r != nil {
		last = r.LastIndex()
	}
	out := make([]candidate, len(members))
	for i, member := range members {
		peer := n.trans.peer(member.ID)
		_, expired := n.Lease(member.Name, member.ID)
		c := candidate{
			Member:     member,
			Dead:       !member.Alive && expired,
			Reachable:  now.Sub(peer.contact) < reachableFor,
			Leaving:    n.leaving.has(member.ID, member.Alive),
			Unprepared: now.Sub(m.failed[member.ID]) < prepareAgain,
		}
		if c.Reachable && peer.last+readyLag >= last {
			if m.caughtUp[member.ID].IsZero() {
				m.caughtUp[member.ID] = now
			}
			c.Ready = now.Sub(m.caughtUp[member.ID]) >= stableFor
		} else {
			delete(m.caughtUp, member.ID)
		}
		out[i] = c
	}
	return out
}

// prepare starts Prepare for a node that shall be added.
func (m *masters) prepare(id string) {
	if m.preparing != "" {
		return
	}
	m.preparing = id
	go func() {
		ctx, cancel := context.WithTimeout(m.l.ctx, prepareWait)
		defer cancel()
		err := m.n.c.Prepare(ctx, id)
		if err != nil {
			err = fmt.Errorf("preparing node %s to be a master: %w", id, err)
		}
		m.prepared <- prepared{id, err}
	}()
}

// add ends what prepare began. A node that is in the configuration already was
// only revived.
func (m *masters) add(p prepared) {
	m.preparing = ""
	n := m.n
	r := n.raft.Load()
	if p.err == nil && r != nil && !slices.ContainsFunc(r.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return string(s.ID) == p.id }) {
		p.err = n.future(func() raft.Future {
			return r.AddNonvoter(raft.ServerID(p.id), raft.ServerAddress(p.id), 0, changeWait)
		})
		if p.err == nil {
			n.log.Info("changed the masters", "step", add.String(), "node", p.id)
			n.count(func(s *Metrics) { s.Changes++ })
		}
	}
	if p.err != nil && m.l.ctx.Err() == nil {
		m.failed[p.id] = time.Now()
		n.log.Warn("adding a master", "node", p.id, "error", p.err)
	}
}

// revive prepares a non-voter again that gossip sees and raft does not reach:
// its process may have lost what it was given.
func (m *masters) revive(now time.Time, nodes []candidate, servers []raft.Server) {
	for _, c := range nodes {
		in := slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == c.ID && s.Suffrage != raft.Voter })
		if !in || c.Reachable || !c.eligible() || c.Suspect {
			delete(m.silent, c.ID)
			continue
		}
		if m.silent[c.ID].IsZero() {
			m.silent[c.ID] = now
		}
		if now.Sub(m.silent[c.ID]) >= prepareAgain && !c.Unprepared {
			m.silent[c.ID] = now
			m.prepare(c.ID)
		}
	}
}

// retireAfter is how long a node hears nothing of a leader before it asks the
// others whether it is still wanted; retireEvery how often it asks.
const (
	retireAfter = time.Second
	retireEvery = 3 * time.Second
)

// watchRetirement finds out that this node was removed while it was away: the
// others no longer talk to it, and it would stand for elections for ever. It
// believes only a leader that has just verified its leadership.
func (n *Node) watchRetirement(ctx context.Context, r *raft.Raft) {
	for {
		changed := n.changed.wait()
		if _, leader := r.LeaderWithID(); leader != "" || len(r.GetConfiguration().Configuration().Servers) == 0 {
			// raft forgets the leader when it hears nothing, so there is
			// nothing to look at until then.
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		timer := time.NewTimer(retireAfter)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if _, leader := r.LeaderWithID(); leader != "" {
			continue
		}
		if n.removedElsewhere(ctx, r) {
			n.retired.Do(func() {
				n.log.Info("this node is no longer a master")
				go n.c.Retired()
			})
			return
		}
		timer.Reset(retireEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// removedElsewhere asks every live node for the leader, and the leader whether
// this node is in its configuration.
func (n *Node) removedElsewhere(ctx context.Context, r *raft.Raft) bool {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	answers := make(chan leaderAnswer)
	var asked sync.WaitGroup
	for _, m := range n.c.Members() {
		if m.ID == n.c.ID || !m.Alive {
			continue
		}
		asked.Go(func() {
			var a leaderAnswer
			if call(ctx, n.c.Caller, m.ID, pathLeader, struct{}{}, &a) == nil {
				select {
				case answers <- a:
				case <-ctx.Done():
				}
			}
		})
	}
	go func() { asked.Wait(); close(answers) }()
	out := false
	for a := range answers {
		if a.Verified && a.Term >= r.CurrentTerm() && !slices.Contains(a.Servers, n.c.ID) {
			out = true
			cancel()
		}
	}
	return out
}
