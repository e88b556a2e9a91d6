package consensus

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// rpcTimeout bounds one call of raft; a batch of entries has to pass.
	rpcTimeout = 5 * time.Second
	// dialTimeout bounds a connection to a host that may be gone. A stop
	// waits for it.
	dialTimeout = time.Second
	connPool    = 2
	// snapshotStall is how long a snapshot may be on its way without a byte.
	snapshotStall = 2 * rpcTimeout
)

// transport is raft's own network transport with ten additions:
//
//   - A follower hears of a commit at once. raft tells it with the next
//     entries or after CommitTimeout, whichever comes first; a watch on a
//     follower would lag by that. When the leader's store has moved, each
//     pipeline sends the empty AppendEntries that raft would send later.
//   - Heartbeats are stretched by pause, because ten a second are enough and
//     each costs both ends; somebody who waits for a verification of the
//     leader cuts the pause short.
//   - What peers answer tells how far they are, which raft does not export.
//   - It notes when the heartbeats were sent that the others answered: that is
//     until when this node surely led (authority).
//   - A follower that refuses entries is asked for those that follow its newest
//     one before raft goes back (further).
//   - A follower is sent no snapshot of what it has (InstallSnapshot).
//   - A node that began with nothing is asked for no vote (silence).
//   - A snapshot that stops coming is given up (watched).
//   - This node itself can have raft take entries (append).
//   - A server's address is its id: where it lives may change at any time.
type transport struct {
	*raft.NetworkTransport
	id      string
	streams *streams
	pause   time.Duration
	boot    func() time.Duration
	// mute says that this node must not be elected: its disk was full just now.
	mute   func() bool
	silent *atomic.Bool // neither elected, nor may it vote
	log    *guardedLog  // this node's
	// consumed are the questions that raft answers: the network's and append's.
	consumed chan raft.RPC
	// member says whether a server is in the configuration.
	member func(id string) bool

	mu        sync.Mutex
	peers     map[raft.ServerID]peer
	confirmed map[raft.ServerID]time.Duration // see authority
	pipes     map[*pipeline]struct{}
	urgent    chan struct{} // closed and replaced to end all pauses
	verifying int
	done      chan struct{}
	relaying  sync.WaitGroup
}

// peer is what is known of another server's replica.
type peer struct {
	contact time.Time // newest answer
	last    uint64    // its last log index by then
}

func newTransport(c *Config, pause time.Duration, log *raftLog, disk *disk) *transport {
	s := newStreams(&sameLife{StreamLayer: c.Stream, of: c.Incarnation, outdated: c.Outdated})
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: s, ServerAddressProvider: c.Addresses, Logger: log, MaxPool: connPool, Timeout: rpcTimeout,
		}),
		id: c.ID, streams: s, pause: pause, mute: disk.log.mute, silent: &disk.silent.on, log: disk.log,
		boot:      c.Boot,
		peers:     make(map[raft.ServerID]peer),
		confirmed: make(map[raft.ServerID]time.Duration),
		pipes:     make(map[*pipeline]struct{}),
		urgent:    make(chan struct{}),
		done:      make(chan struct{}),
		consumed:  make(chan raft.RPC),
	}
	t.relaying.Go(t.relay)
	return t
}

// relay passes on the network's questions until the transport is closed.
func (t *transport) relay() {
	for {
		select {
		case q := <-t.NetworkTransport.Consumer():
			switch q.Command.(type) {
			case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest:
				if t.silent.Load() {
					q.Respond(nil, errSilent)
					continue
				}
			}
			if q.Reader != nil {
				q.Reader = watched{q.Reader, t.streams.dropIncoming}
			}
			select {
			case t.consumed <- q:
			case <-t.done:
				return
			}
		case <-t.done:
			return
		}
	}
}

func (t *transport) Consumer() <-chan raft.RPC { return t.consumed }

// watched is a leader's snapshot. raft hears nothing else while it reads one, and
// would wait for ever for a leader whose host is gone. So a read that takes too
// long ends all incoming connections; those who are still there make new ones.
type watched struct {
	io.Reader
	drop func()
}

func (w watched) Read(b []byte) (int, error) {
	defer time.AfterFunc(snapshotStall, w.drop).Stop()
	return w.Reader.Read(b)
}

// append has this node's raft take entries, as if somebody had sent them. The
// request must say what is true, and name no leader.
func (t *transport) append(ctx context.Context, q *raft.AppendEntriesRequest) error {
	answers := make(chan raft.RPCResponse, 1)
	select {
	case t.consumed <- raft.RPC{Command: q, RespChan: answers}:
	case <-ctx.Done():
		return ctx.Err()
	case <-t.done:
		return raft.ErrTransportShutdown
	}
	select {
	case a := <-answers:
		if a.Error == nil && !a.Response.(*raft.AppendEntriesResponse).Success {
			return errors.New("this node's log does not take them")
		}
		return a.Error
	case <-t.done: // raft may be gone
		return raft.ErrTransportShutdown
	}
}

func (t *transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.id) }

func (t *transport) EncodePeer(id raft.ServerID, _ raft.ServerAddress) []byte { return []byte(id) }

// Close ends all traffic. raft calls it too.
func (t *transport) Close() error {
	t.mu.Lock()
	select {
	case <-t.done:
	default:
		close(t.done)
	}
	t.mu.Unlock()
	err := t.NetworkTransport.Close() // closes streams
	t.CloseStreams()
	return err
}

// wait returns, after Close, when nobody reads from an incoming connection, and
// nothing is passed on any more.
func (t *transport) wait() {
	t.streams.open.Wait()
	t.relaying.Wait()
}

// errMute keeps a node whose disk is full from being elected.
var errMute = errors.New("this node cannot write its log and asks for no votes")

// errRemoved: what a removed server answers counts no more.
var errRemoved = errors.New("this server is no longer in the configuration")

// campaigns says why this node asks for no votes; nil if it does.
func (t *transport) campaigns() error {
	switch {
	case t.silent.Load():
		return errSilent
	case t.mute():
		return errMute
	}
	return nil
}

func (t *transport) RequestVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestVoteRequest, a *raft.RequestVoteResponse) error {
	if err := t.campaigns(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestVote(id, to, q, a)
}

func (t *transport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, q *raft.RequestPreVoteRequest, a *raft.RequestPreVoteResponse) error {
	if err := t.campaigns(); err != nil {
		return err
	}
	return t.NetworkTransport.RequestPreVote(id, to, q, a)
}

func (t *transport) AppendEntries(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	if q.PrevLogEntry == 0 && q.LeaderCommitIndex == 0 && len(q.Entries) == 0 { // a heartbeat
		t.rest()
	}
	sent := t.boot()
	err := t.NetworkTransport.AppendEntries(id, to, q, a)
	if err == nil && !a.Success && a.Term == q.Term && a.LastLog > q.PrevLogEntry {
		err = t.further(id, to, q, a)
	}
	if err == nil && a.Term > q.Term && !t.member(string(id)) {
		// A last call to a server that was just removed, and that is back with
		// a later term: raft would give up leadership for it.
		return errRemoved
	}
	if err == nil {
		t.heard(id, q, a)
		if a.Term == q.Term {
			t.confirm(id, sent)
		}
	}
	return err
}

// further tries once more where a follower refused entries, behind the newest
// one that it says it has. If that is the leader's too, so is all before it (Log
// Matching, section 3.5 of Ongaro's dissertation), and what raft sent is there.
//
// raft itself begins one entry earlier after each refusal, and never later again:
// with a follower whose disk is full it arrives where the follower has a snapshot
// and no log, and can compare nothing any more.
func (t *transport) further(id raft.ServerID, to raft.ServerAddress, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) error {
	term := t.log.termAt(a.LastLog)
	if term == 0 {
		return nil
	}
	again := *q
	again.PrevLogEntry, again.PrevLogTerm, again.Entries = a.LastLog, term, nil
	for i, e := range q.Entries {
		if e.Index > a.LastLog {
			again.Entries = q.Entries[i:]
			break
		}
	}
	var answer raft.AppendEntriesResponse
	if err := t.NetworkTransport.AppendEntries(id, to, &again, &answer); err != nil {
		return err
	}
	if answer.Success || answer.Term > q.Term {
		*a = answer
	}
	return nil
}

// errTakesNothing has raft wait before it tries again.
var errTakesNothing = errors.New("it has what the snapshot holds, and takes no more entries: its disk may be full")

// InstallSnapshot first asks the follower whether it has the entry that the
// snapshot ends with. If so it has all before it too, and nothing is sent. raft
// has gone back too far then, entry by entry, while the follower's disk was full.
// The snapshot would throw away what the follower has behind it, and has said
// that it has. While the disk is still full it is an error, or raft would go back
// again, and again, without any pause.
func (t *transport) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, q *raft.InstallSnapshotRequest, a *raft.InstallSnapshotResponse, data io.Reader) error {
	ask := raft.AppendEntriesRequest{RPCHeader: q.RPCHeader, Term: q.Term, Leader: q.Leader, PrevLogEntry: q.LastLogIndex, PrevLogTerm: q.LastLogTerm}
	var has, takes raft.AppendEntriesResponse
	if err := t.AppendEntries(id, to, &ask, &has); err != nil {
		return err
	}
	if !has.Success && has.Term <= q.Term {
		return t.NetworkTransport.InstallSnapshot(id, to, q, a, data)
	}
	*a = raft.InstallSnapshotResponse{RPCHeader: has.RPCHeader, Term: has.Term, Success: has.Success}
	var next raft.Log
	ask.PrevLogEntry, ask.PrevLogTerm, ask.Entries = has.LastLog, t.log.termAt(has.LastLog), []*raft.Log{&next}
	if !has.Success || ask.PrevLogTerm == 0 || t.log.GetLog(has.LastLog+1, &next) != nil {
		return nil
	}
	if err := t.AppendEntries(id, to, &ask, &takes); err != nil {
		return err
	}
	if !takes.Success && takes.Term <= q.Term && !takes.NoRetryBackoff { // what it lacks is not another past
		return errTakesNothing
	}
	return nil
}

// connect makes a connection to a server and leaves it in the pool, by an entry
// of term 0, which nobody takes.
func (t *transport) connect(id raft.ServerID) {
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(t.id), Addr: []byte(t.id)}
	_ = t.NetworkTransport.AppendEntries(id, raft.ServerAddress(id), &raft.AppendEntriesRequest{RPCHeader: header}, &raft.AppendEntriesResponse{})
}

// rest waits for the pause to pass, unless somebody is in a hurry.
func (t *transport) rest() {
	t.mu.Lock()
	urgent, hurry := t.urgent, t.verifying > 0
	t.mu.Unlock()
	if hurry {
		return
	}
	timer := time.NewTimer(t.pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-urgent:
	case <-t.done:
	}
}

// hurry lets heartbeats go out at once until the function returned is called.
func (t *transport) hurry() (calm func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.verifying++
	close(t.urgent)
	t.urgent = make(chan struct{})
	return func() {
		t.mu.Lock()
		t.verifying--
		t.mu.Unlock()
	}
}

func (t *transport) heard(id raft.ServerID, q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) {
	last := a.LastLog // from before this request
	if n := len(q.Entries); n > 0 && a.Success {
		last = max(last, q.Entries[n-1].Index)
	}
	t.mu.Lock()
	t.peers[id] = peer{contact: time.Now(), last: last}
	t.mu.Unlock()
}

// peer returns what the server last answered.
func (t *transport) peer(id string) peer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.peers[raft.ServerID(id)]
}

// confirm notes that a server took this node for its leader after sent.
func (t *transport) confirm(id raft.ServerID, sent time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.confirmed[id] = max(t.confirmed[id], sent)
}

// confirmations are when the newest answered heartbeats were sent, as time
// since boot, by server.
func (t *transport) confirmations() map[raft.ServerID]time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.confirmed)
}

// forget drops what peers said before this node led.
func (t *transport) forget() {
	t.mu.Lock()
	t.peers = make(map[raft.ServerID]peer)
	t.confirmed = make(map[raft.ServerID]time.Duration)
	t.mu.Unlock()
}

func (t *transport) AppendEntriesPipeline(id raft.ServerID, to raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, to)
	if err != nil {
		return nil, err
	}
	p := &pipeline{
		AppendPipeline: inner, t: t, id: id,
		turn: make(chan struct{}, 1), wake: make(chan uint64, 1), answers: make(chan raft.AppendFuture), closed: make(chan struct{}),
	}
	t.mu.Lock()
	t.pipes[p] = struct{}{}
	t.mu.Unlock()
	p.workers.Go(p.push)
	p.workers.Go(p.relay)
	return p, nil
}

// committed tells all pipelines that the leader has applied up to index.
func (t *transport) committed(index uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.pipes {
		select {
		case <-p.wake: // replaced by the newer
		default:
		}
		p.wake <- index // committed is the only sender
	}
}

// pipeline adds commit notices to raft's pipeline to one follower. They go in
// order with the entries, so that the follower has what they speak of.
type pipeline struct {
	raft.AppendPipeline
	t       *transport
	id      raft.ServerID
	wake    chan uint64
	answers chan raft.AppendFuture
	closed  chan struct{}
	once    sync.Once
	workers sync.WaitGroup

	// turn is held by whoever sends: the inner pipeline takes one at a time.
	// It is a channel because the holder may wait for the network.
	turn   chan struct{}
	notice *raft.AppendEntriesRequest // what raft would send next if there were no entries
	told   uint64                     // the commit index that the follower was told
}

func (p *pipeline) AppendEntries(q *raft.AppendEntriesRequest, a *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	f, err := p.AppendPipeline.AppendEntries(q, a)
	if err == nil {
		next := *q
		next.Entries = nil
		if n := len(q.Entries); n > 0 {
			next.PrevLogEntry, next.PrevLogTerm = q.Entries[n-1].Index, q.Entries[n-1].Term
		}
		p.notice, p.told = &next, max(p.told, q.LeaderCommitIndex)
	}
	return f, err
}

// push sends the notices until the pipeline is closed.
func (p *pipeline) push() {
	for {
		select {
		case index := <-p.wake:
			p.turn <- struct{}{}
			if p.notice != nil && index > p.told && index <= p.notice.PrevLogEntry {
				q := *p.notice
				q.LeaderCommitIndex = index
				if _, err := p.AppendPipeline.AppendEntries(&q, new(raft.AppendEntriesResponse)); err == nil {
					p.told = index
				} // raft meets the same error with its next entries
			}
			<-p.turn
		case <-p.closed:
			return
		}
	}
}

// relay hands the answers on to raft. It takes each as soon as it is there:
// raft may have stopped listening while it still sends, and would then wait
// for ever for room in the inner pipeline.
func (p *pipeline) relay() {
	var queue []raft.AppendFuture
	for {
		var out chan raft.AppendFuture
		var first raft.AppendFuture
		if len(queue) > 0 {
			out, first = p.answers, queue[0]
		}
		select {
		case f := <-p.AppendPipeline.Consumer():
			if f.Error() == nil {
				p.t.heard(p.id, f.Request(), f.Response())
			}
			queue = append(queue, f)
		case out <- first:
			queue = queue[1:]
		case <-p.closed:
			return
		}
	}
}

func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answers }

func (p *pipeline) Close() error {
	p.t.mu.Lock()
	delete(p.t.pipes, p)
	p.t.mu.Unlock()
	p.once.Do(func() { close(p.closed) })
	err := p.AppendPipeline.Close() // fails a send that push may be in
	p.workers.Wait()
	return err
}

// streams is the caller's stream layer, which remembers its connections so
// that Close ends them: raft's transport leaves handlers of incoming ones
// reading for ever.
type streams struct {
	raft.StreamLayer
	mu     sync.Mutex
	conns  map[net.Conn]bool // true: an incoming one
	closed bool
	open   sync.WaitGroup // incoming connections, until their handlers close them
}

type trackedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func newStreams(l raft.StreamLayer) *streams {
	return &streams{StreamLayer: l, conns: make(map[net.Conn]bool)}
}

func (s *streams) track(c net.Conn, err error, user func()) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	s.conns[c] = user != nil
	if user != nil {
		s.open.Add(1)
	}
	return &trackedConn{Conn: c, release: func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		if user != nil {
			user()
		}
	}}, nil
}

func (s *streams) Accept() (net.Conn, error) {
	c, err := s.StreamLayer.Accept()
	return s.track(c, err, s.open.Done)
}

func (s *streams) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	c, err := s.StreamLayer.Dial(a, min(timeout, dialTimeout))
	return s.track(c, err, nil)
}

// dropIncoming closes the connections that others made. Their readers see it.
func (s *streams) dropIncoming() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, incoming := range s.conns {
		if incoming {
			c.Close()
		}
	}
}

func (c *trackedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}

func (s *streams) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	errs := []error{s.StreamLayer.Close()}
	for c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
