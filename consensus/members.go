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

const (
	// A server is caught up if it misses only entries that are younger than
	// readyAge, or at most readyLag and takes some within readyAge; a non-voter is
	// ready when it has been so for stableFor.
	readyLag  = 64
	readyAge  = 500 * time.Millisecond
	stableFor = 200 * time.Millisecond
	// reachableFor is how old a server's newest answer may be.
	reachableFor = time.Second
	// failingAfter is how long a server may be behind without coming closer;
	// a non-voter that answers may take longer, for a snapshot.
	failingAfter  = 30 * time.Second
	snapshotAfter = 2 * time.Minute
	// lostAfter is how long a voter that calls itself bare has not followed: it
	// may have become a master this moment, and gossip be late.
	lostAfter = 2 * time.Second
	// pendingWait is the pace while something is awaited that only health
	// shows, wishWait while a change must be wanted for longer, calmWait
	// otherwise: a voter that fails for long makes no event.
	pendingWait = 50 * time.Millisecond
	wishWait    = time.Second
	calmWait    = 10 * time.Second
	// prepareWait bounds one Prepare, prepareAgain is the pause after a failed
	// one, which doubles up to prepareMost, and how long an added node may be
	// silent before it is prepared again.
	prepareWait  = 15 * time.Second
	prepareAgain = 3 * time.Second
	prepareMost  = time.Minute
	changeWait   = time.Second
)

// wantedFor is how long a change must have been wanted.
var wantedFor = map[patience]time.Duration{saving: 30 * time.Second, better: 5 * time.Minute}

// masters is the state of the loop that keeps the master set: what it
// remembers between two looks. It belongs to one leadership.
type masters struct {
	n *Node
	l *leadership

	seen      map[string]*seen
	marks     []mark    // ends of the log at earlier looks, oldest first
	held      hold      // the target
	wanted    change    // the wish that is not fulfilled yet, if any
	since     time.Time // since when
	short     time.Time // since when voters are missing, zero if none are
	preparing string    // the node that Prepare works on, "" if none
	prepared  chan prepared
}

// seen is what is remembered of one node.
type seen struct {
	caughtUp time.Time // since when it has the log, zero if it has not
	last     uint64    // how far it was
	moved    time.Time // when it was last found further
	stuck    time.Time // since when it is behind and has not come closer
	revived  time.Time // when it was last prepared anew
	failed   time.Time // when preparing it last failed
	failures int       // how often in a row
}

// mark says that the log ended at last.
type mark struct {
	at   time.Time
	last uint64
}

// hold is a target that falls late.
type hold struct {
	voters int
	since  time.Time // when the target was last as high
}

func (h *hold) note(now time.Time, target int) {
	if target >= h.voters || now.Sub(h.since) >= wantedFor[saving] {
		h.voters, h.since = target, now
	}
}

type prepared struct {
	id  string
	err error
}

// leaving are the nodes that asked to go, until gossip no longer sees them, or
// they have not asked for a while: a leave may fail, and then the node is still
// one of us.
type leaving struct {
	mu    sync.Mutex
	asked map[string]time.Time
}

// leaveWithin is how long a node that asked to go, and asks no more, is believed.
const leaveWithin = time.Minute

// add returns whether that is news.
func (l *leaving) add(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asked == nil {
		l.asked = make(map[string]time.Time)
	}
	_, known := l.asked[id]
	l.asked[id] = time.Now()
	return !known
}

// has says whether a node leaves; one that is gone is forgotten, so that it
// may come back.
func (l *leaving) has(id string, alive bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, known := l.asked[id]
	if known && (!alive || time.Since(at) > leaveWithin) {
		delete(l.asked, id)
		return false
	}
	return known
}

// keepMasters makes the changes that plan asks for, one at a time, until the
// leadership ends. It sleeps while there is nothing to do.
func (n *Node) keepMasters(l *leadership) {
	m := &masters{n: n, l: l, seen: make(map[string]*seen), prepared: make(chan prepared, 1)}
	votes := voters(n.configuration())
	m.held = hold{votes + 1 - votes%2, time.Now()}
	defer func() {
		if m.preparing != "" {
			<-m.prepared
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed, members := n.changed.wait(), n.c.MembersChanged()
		timer.Reset(m.step())
		select {
		case <-changed:
		case <-members:
		case <-timer.C:
		case p := <-m.prepared:
			m.add(p)
		case <-l.ctx.Done():
			return
		}
	}
}

// step looks once and makes at most one change. It returns when to look again
// at the latest.
func (m *masters) step() time.Duration {
	n := m.n
	r := n.raft.Load()
	if r == nil {
		return calmWait
	}
	configuration := r.GetConfiguration()
	servers := configuration.Configuration().Servers
	t := time.Now()
	nodes := m.candidates(t, servers, configuration.Index())
	p := newPlanner(n.c.ID, nodes, servers, 0)
	m.held.note(t, p.target)
	c := plan(n.c.ID, nodes, servers, m.held.voters)
	m.measure(t, p)
	if m.l.describe(newPlanner(n.c.ID, nodes, servers, m.held.voters).describe()) {
		n.changed.fire()
	}
	m.revive(t, nodes, servers) // whatever else is wanted, and however long that has time
	if c.after == now {
		m.wanted = change{}
	} else {
		if m.wanted != c.wish() {
			m.wanted, m.since = c.wish(), t
		}
		if left := wantedFor[c.after] - t.Sub(m.since); left > 0 {
			return min(left, wishWait)
		}
	}
	switch {
	case c.step == add:
		m.prepare(c.id)
		return wishWait
	case c.step == keep && (c.waits || m.preparing != ""):
		return pendingWait
	case c.step == keep:
		return m.calm(t)
	}
	if c.step == handOver {
		n.readySuccessors(m.l.ctx)
	}
	var err error
	if id := raft.ServerID(c.id); c.step == handOver {
		err = n.transfer(n.future, r)
	} else {
		err = n.future(func() raft.Future {
			switch c.step {
			case promote:
				return r.AddVoter(id, raft.ServerAddress(id), 0, changeWait)
			case demote:
				return r.DemoteVoter(id, 0, changeWait)
			}
			return r.RemoveServer(id, 0, changeWait)
		})
	}
	if errors.Is(err, errTransferFailed) {
		return wishWait
	}
	if err != nil {
		n.log.Warn("changing the masters", "step", c.step.String(), "node", c.id, "error", err)
		return pendingWait
	}
	m.changed(c, time.Since(t))
	return pendingWait
}

// changed notes that a change was made.
func (m *masters) changed(c change, took time.Duration) {
	n := m.n
	n.count(func(s *Metrics) { s.Changes++; s.LastChange = took })
	args := []any{"step", c.step.String(), "node", c.id}
	if c.instead != "" {
		args = append(args, "instead", c.instead)
	}
	n.log.Info("changed the masters", args...)
	if s := m.seen[c.id]; s != nil {
		s.caughtUp = time.Time{}
		if c.step == remove && !s.stuck.IsZero() {
			// Not the next one to be added. And one that has lost its log must not
			// begin anew while what was sent to the old one is still on its way.
			s.fail()
		}
	}
	n.changed.fire()
}

// fail notes that the node could not be made to follow.
func (s *seen) fail() { s.failed, s.failures = time.Now(), s.failures+1 }

// unprepared says for how long it is too early to try again; 0: it is not.
func (s *seen) unprepared(now time.Time) time.Duration {
	if s.failures == 0 {
		return 0
	}
	return max(s.failed.Add(min(prepareAgain<<min(s.failures-1, 8), prepareMost)).Sub(now), 0)
}

// calm is how long nothing has to be looked at: until a node may be tried again,
// at the latest.
func (m *masters) calm(now time.Time) time.Duration {
	wait := calmWait
	for _, s := range m.seen {
		if left := s.unprepared(now); left > 0 {
			wait = min(wait, left)
		}
	}
	return wait
}

// measure takes the time for which voters are missing.
func (m *masters) measure(now time.Time, p *planner) {
	whole := 0
	for _, id := range p.good {
		if p.nodes[id].Alive {
			whole++
		}
	}
	switch missing := whole < min(p.want, len(p.voters)) || whole < p.want && !m.short.IsZero(); {
	case missing && m.short.IsZero():
		m.short = now
	case !missing && !m.short.IsZero():
		took := now.Sub(m.short)
		m.short = time.Time{}
		m.n.count(func(s *Metrics) { s.Replacements.add(took) })
	}
}

// candidates joins what gossip, raft and the leases say. The configuration is
// the entry at index.
func (m *masters) candidates(now time.Time, servers []raft.Server, index uint64) []candidate {
	n := m.n
	members := n.c.Members()
	suffrage := make(map[string]raft.ServerSuffrage)
	for _, s := range servers {
		suffrage[string(s.ID)] = s.Suffrage
		if !slices.ContainsFunc(members, func(m Member) bool { return m.ID == string(s.ID) }) {
			members = append(slices.Clip(members), Member{ID: string(s.ID)})
		}
	}
	due, near := m.mark(now)
	out := make([]candidate, len(members))
	for i, member := range members {
		s := m.seen[member.ID]
		if s == nil {
			s = &seen{}
			m.seen[member.ID] = s
		}
		peer := n.trans.peer(member.ID)
		_, expired := n.Lease(member.Name, member.ID)
		c := candidate{
			Member:     member,
			Dead:       !member.Alive && expired && now.Sub(peer.contact) >= reachableFor,
			Reachable:  now.Sub(peer.contact) < reachableFor,
			Leaving:    n.leaving.has(member.ID, member.Alive),
			Unprepared: s.unprepared(now) > 0,
		}
		if !member.Started.IsZero() {
			c.Up = now.Sub(member.Started)
		}
		if peer.last > s.last {
			s.moved = now
		}
		votes, server := suffrage[member.ID]
		switch {
		case !server || member.ID == n.c.ID:
			s.caughtUp, s.stuck = time.Time{}, time.Time{}
		case c.Reachable && (peer.last >= due || peer.last >= near && now.Sub(s.moved) < readyAge):
			if s.caughtUp.IsZero() {
				s.caughtUp = now
			}
			s.stuck = time.Time{}
			// A voter votes only for those that have a vote by its own log: one that
			// lacks this leader's would let nobody lead, were the two alone.
			c.Ready = now.Sub(s.caughtUp) >= stableFor && (votes == raft.Voter || peer.last >= index)
		default:
			s.caughtUp = time.Time{}
			if s.stuck.IsZero() || s.moved.Equal(now) {
				s.stuck = now
			}
			limit := failingAfter
			if votes != raft.Voter && c.Reachable {
				limit = snapshotAfter
			}
			c.Failing = member.Alive && now.Sub(s.stuck) >= limit
			c.Lost = member.Alive && member.Bare && votes == raft.Voter && now.Sub(s.stuck) >= lostAfter
		}
		s.last = peer.last
		out[i] = c
	}
	return out
}

// mark notes where the log ends. It returns where it ended readyAge ago, as far as
// that is known, and readyLag entries before its end.
func (m *masters) mark(now time.Time) (due, near uint64) {
	last := uint64(0)
	if r := m.n.raft.Load(); r != nil {
		last = r.LastIndex()
	}
	if len(m.marks) == 0 || now.Sub(m.marks[len(m.marks)-1].at) >= readyAge/8 {
		m.marks = append(m.marks, mark{now, last})
	}
	for len(m.marks) > 1 && now.Sub(m.marks[1].at) >= readyAge {
		m.marks = m.marks[1:]
	}
	due = last
	if old := m.marks[0]; now.Sub(old.at) >= readyAge {
		due = old.last
	}
	return due, last - min(readyLag, last)
}

// prepare starts Prepare for a node that shall be added, or that was added and
// does not follow.
func (m *masters) prepare(id string) {
	if m.preparing != "" {
		return
	}
	m.preparing = id
	go func() {
		ctx, cancel := context.WithTimeout(m.l.ctx, prepareWait)
		defer cancel()
		err := m.n.c.Prepare(ctx, id)
		if err == nil && !m.n.serves(id) {
			err = m.n.isNew(ctx, id)
		}
		if err != nil {
			err = fmt.Errorf("preparing node %s to be a master: %w", id, err)
		}
		m.prepared <- prepared{id, err}
	}()
}

// serves says whether a node is in the configuration.
func (n *Node) serves(id string) bool {
	return slices.ContainsFunc(n.configuration().Servers, func(s raft.Server) bool { return string(s.ID) == id })
}

var errOldLog = errors.New("it still has the log of a time before it was removed")

// isNew makes sure that a node which is to be added begins with nothing. One
// that was removed while it was away, and is back with its old log, might know
// a later term, in which it would depose leader after leader, and finds out by
// itself that it has to forget.
func (n *Node) isNew(ctx context.Context, id string) error {
	for {
		var a leaderAnswer
		err := call(ctx, n.c.Caller, id, pathLeader, struct{}{}, &a)
		if err == nil && a.State {
			return errOldLog
		}
		if err == nil {
			return nil
		}
		select { // its Node is only about to run
		case <-time.After(retryWait):
		case <-ctx.Done():
			return err
		}
	}
}

// add ends what prepare began. A node that is in the configuration already was
// only revived.
func (m *masters) add(p prepared) {
	m.preparing = ""
	n := m.n
	if n.serves(p.id) && p.err == nil {
		return
	}
	if r := n.raft.Load(); p.err == nil && r != nil {
		began := time.Now()
		p.err = n.future(func() raft.Future {
			return r.AddNonvoter(raft.ServerID(p.id), raft.ServerAddress(p.id), 0, changeWait)
		})
		if p.err == nil {
			if s := m.seen[p.id]; s != nil {
				s.failures = 0
			}
			m.changed(change{step: add, id: p.id}, time.Since(began))
		}
	}
	if p.err != nil && m.l.ctx.Err() == nil {
		if s := m.seen[p.id]; s != nil {
			s.fail()
		}
		n.log.Warn("adding a master", "node", p.id, "error", p.err)
	}
}

// revive prepares a non-voter again that gossip sees and raft does not reach:
// its process may have lost what it was given.
func (m *masters) revive(now time.Time, nodes []candidate, servers []raft.Server) {
	for _, c := range nodes {
		in := slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == c.ID && s.Suffrage != raft.Voter })
		s := m.seen[c.ID]
		if !in || c.Reachable || !c.eligible() || c.Suspect || c.Unprepared || now.Sub(s.stuck) < prepareAgain || now.Sub(s.revived) < prepareAgain {
			continue
		}
		s.revived = now
		m.prepare(c.ID)
	}
}

// retireAfter is how long a node hears nothing of a leader before it asks the
// others whether it is still wanted; retireEvery how often it asks. A node that
// was prepared and is in no configuration yet has addedWithin: whoever prepared
// it may have lost its leadership since.
const (
	retireAfter = time.Second
	retireEvery = 3 * time.Second
	addedWithin = prepareWait + 15*time.Second
)

// watchRetirement finds out that this node was removed while it was away, or
// never added: the others do not talk to it, and it would stand for elections,
// or wait, for ever. It believes only a leader that has just verified its leadership.
func (n *Node) watchRetirement(ctx context.Context, r *raft.Raft) {
	for {
		changed := n.changed.wait()
		if follows(r) {
			// raft forgets the leader when it hears nothing, so there is
			// nothing to look at until then.
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return
			}
		}
		wait, told := retireAfter, (<-chan struct{})(nil)
		if len(r.GetConfiguration().Configuration().Servers) == 0 {
			wait, told = addedWithin, changed
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-told:
			timer.Stop()
			continue
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if follows(r) {
			continue
		}
		if n.removedElsewhere(ctx) {
			n.retired.Do(func() {
				n.removed.Store(true)
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

// follows says that raft follows a leader, or leads. A candidate that was asked
// to take over leadership takes entries of the old leader, and keeps its name,
// without following it: if these took the candidate out, nobody is heard of again.
func follows(r *raft.Raft) bool {
	_, leader := r.LeaderWithID()
	return leader != "" && r.State() != raft.Candidate
}

// removedElsewhere asks every live node for the leader, and the leader whether
// this node is in its configuration.
func (n *Node) removedElsewhere(ctx context.Context) bool {
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
		// Its configuration is committed, and it leads now: whatever this node
		// voted for in later terms, its vote no longer counts.
		if a.Verified && !slices.Contains(a.Servers, n.c.ID) {
			out = true
			cancel()
		}
	}
	return out
}
