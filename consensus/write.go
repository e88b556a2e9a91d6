package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// verdict is what is known of one attempt to write.
type verdict uint8

// Their values go over the network: append only.
const (
	unknown   verdict = iota // it may be in the log, or still get there
	refused                  // it is not in the log and will not be; another attempt may succeed
	committed                // it was applied, with success or not: final
	rejected                 // it is not in the log, and another attempt is useless
)

// result is the answer to an attempt.
type result struct {
	verdict  verdict
	revision uint64 // of the entry, if committed
	err      error
}

// outcomes are the errors that an answer can carry. The position is the
// number on the wire: append only.
var outcomes = []error{nil, ErrNotFound, ErrExists, ErrConflict, ErrTooLarge, ErrDiskFull, ErrNoLeader, ErrUnknownOutcome}

// otherOutcome stands for an error that is only a text.
const otherOutcome = 255

func (r result) encode() []byte {
	b := []byte{byte(r.verdict), otherOutcome}
	for i, e := range outcomes {
		if errors.Is(r.err, e) {
			b[1] = byte(i)
		}
	}
	b = binary.AppendUvarint(b, r.revision)
	if r.err != nil {
		b = append(b, r.err.Error()...)
	}
	return b
}

// remoteError is an error of another node: its words, and what it is.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

func parseResult(b []byte) (result, error) {
	if len(b) < 3 || b[0] > byte(rejected) {
		return result{}, fmt.Errorf("malformed answer of %d bytes to a write", len(b))
	}
	revision, n := binary.Uvarint(b[2:])
	if n <= 0 {
		return result{}, errors.New("malformed answer to a write")
	}
	r := result{verdict: verdict(b[0]), revision: revision}
	if b[1] != 0 {
		e := &remoteError{text: string(b[2+n:])}
		if int(b[1]) < len(outcomes) {
			e.is = outcomes[b[1]]
		}
		r.err = e
	}
	return r, nil
}

// Write commits one change and returns once this replica has applied it. The
// record is the new version, or for Delete the last state.
//
// Where there is no leader it waits for one, until ctx ends or there has been
// none for leaderWait: ErrNoLeader. A leader that is lost while the write is under way leaves its
// fate open; then Write asks the next leader. The entry counts in one term
// only, so that in a later term it is either in the log already or never will
// be, and the window of events tells which. Thus a write happens at most once,
// and ErrUnknownOutcome is left for a wait that ends in between.
func (n *Node) Write(ctx context.Context, w Write) (Record, error) {
	if err := w.check(); err != nil {
		return nil, err
	}
	what := fmt.Sprintf("%s %s %s", w.Verb, w.Resource, keyString(w.Namespace, w.Name))
	e := entry{
		verb: w.Verb, id: newRequestID(), version: w.Version,
		resource: w.Resource, namespace: w.Namespace, name: w.Name, uid: w.UID,
	}
	if w.Object != nil {
		var err error
		if e.object, err = n.c.Codec.Encode(w.Object); err != nil {
			return nil, fmt.Errorf("%s: encoding it for the log: %w", what, err)
		}
	}
	if len(e.object) > maxEntry {
		return nil, fmt.Errorf("%s: %d bytes of %d allowed: %w", what, len(e.object), maxEntry, ErrTooLarge)
	}
	began, a := time.Now(), &attempt{n: n, entry: &e, since: n.store.Revision()}
	for {
		changed := n.changed.wait()
		record, done, err := a.try(ctx)
		if done {
			if err != nil {
				return nil, err // says what, as the store does
			}
			return record, nil
		}
		n.pause(ctx, changed)
		if given := n.over(ctx, began); given != nil {
			if a.open != 0 {
				return nil, fmt.Errorf("%s: %w: %w", what, ErrUnknownOutcome, given)
			}
			return nil, fmt.Errorf("%s: %w: %w", what, whyNoLeader(err), given)
		}
	}
}

// whyNoLeader tells a full disk from a lack of nodes.
func whyNoLeader(err error) error {
	if errors.Is(err, ErrDiskFull) {
		return ErrDiskFull
	}
	return ErrNoLeader
}

// attempt is one Write on its way through leaders and terms.
type attempt struct {
	n     *Node
	entry *entry
	data  []byte // the entry for its term
	since uint64 // the store's revision when the write began
	// open is the term in which an earlier try ended without a verdict, 0 if
	// none did.
	open uint64
}

// try delivers the entry to the leader that is known now. It is done when
// there is a result; otherwise the error says why it must be tried again.
func (a *attempt) try(ctx context.Context) (_ Record, done bool, err error) {
	n := a.n
	leader, term := n.leaderAndTerm()
	if leader == "" {
		r := n.raft.Load()
		if r != nil && errors.Is(n.disk.log.refusal(), ErrDiskFull) && a.open == 0 && voters(r.GetConfiguration().Configuration()) == 1 {
			return nil, true, ErrDiskFull
		}
		return nil, false, ErrNoLeader
	}
	if a.open != 0 && term > a.open {
		record, done, err := a.resolve(ctx)
		if done || err != nil {
			return record, done, err
		}
	}
	if a.entry.term != term || a.data == nil {
		if a.open != 0 {
			return nil, false, ErrNoLeader // the term fell behind what resolve saw: look again
		}
		a.entry.term = term
		a.data = a.entry.encode()
	}
	res := n.deliver(ctx, leader, term, a.data)
	switch res.verdict {
	case committed:
		record, err := a.result(ctx, res)
		return record, true, err
	case rejected:
		return nil, true, res.err
	case refused:
		if errors.Is(res.err, ErrDiskFull) && a.open == 0 && voters(n.configuration()) == 1 {
			return nil, true, res.err
		}
	default:
		a.open = term
	}
	return nil, false, res.err
}

// resolve finds out, in a term after the open one, what became of the write.
func (a *attempt) resolve(ctx context.Context) (_ Record, done bool, err error) {
	term, err := a.n.sync(ctx)
	if err != nil {
		return nil, false, err
	}
	if term <= a.open {
		return nil, false, ErrNoLeader
	}
	record, _, found, known := a.n.store.outcome(a.entry.id, a.since)
	switch {
	case found:
		return record, true, nil
	case !known:
		return nil, true, fmt.Errorf("%s %s %s: too much has happened since: %w", a.entry.verb, a.entry.resource,
			keyString(a.entry.namespace, a.entry.name), ErrUnknownOutcome)
	}
	a.open, a.data = 0, nil
	return nil, false, nil
}

// result waits until this replica has the write's result.
func (a *attempt) result(ctx context.Context, res result) (Record, error) {
	waited := a.n.store.WaitFor(ctx, res.revision)
	if res.err != nil {
		return nil, res.err
	}
	if waited == nil {
		if record, _, found, _ := a.n.store.outcome(a.entry.id, max(a.since, res.revision-1)); found {
			return record, nil
		}
		waited = ErrExpired
	}
	return nil, fmt.Errorf("%s %s %s was written at revision %d, but this replica cannot show it: %w: %w", a.entry.verb, a.entry.resource,
		keyString(a.entry.namespace, a.entry.name), res.revision, ErrUnknownOutcome, waited)
}

// deliver proposes an entry to the leader, here or over the network. The same
// entry may be delivered again to the same leader.
func (n *Node) deliver(ctx context.Context, leader string, term uint64, data []byte) result {
	n.count(func(m *Metrics) { m.Writes++ })
	if leader == n.c.ID {
		return n.propose(ctx, term, data)
	}
	n.count(func(m *Metrics) { m.Forwarded++ })
	ctx, cancel := n.whileLeads(ctx, leader)
	defer cancel()
	b, err := n.c.Caller.Call(ctx, leader, pathPropose, data)
	if err != nil {
		return result{verdict: unknown, err: fmt.Errorf("forwarding the write to the leader: %w", err)}
	}
	res, err := parseResult(b)
	if err != nil {
		return result{verdict: unknown, err: err}
	}
	return res
}

// proposals are the entries that this node proposed in one term. An entry that
// comes again, because its sender lost the answer, finds the first one.
type proposals struct {
	mu    sync.Mutex
	term  uint64
	byID  map[requestID]*proposal
	order []requestID // oldest first
}

// keptProposals must outnumber the entries that arrive while one request is
// lost on the way.
const keptProposals = 4096

type proposal struct {
	done   chan struct{}
	result result
}

// begin returns the proposal of an id, and whether the caller is its first.
func (p *proposals) begin(term uint64, id requestID) (*proposal, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term != term {
		p.term, p.byID, p.order = term, make(map[requestID]*proposal), nil
	}
	if old, ok := p.byID[id]; ok {
		return old, false
	}
	fresh := &proposal{done: make(chan struct{})}
	p.byID[id] = fresh
	p.order = append(p.order, id)
	if len(p.order) > keptProposals {
		delete(p.byID, p.order[0])
		p.order = p.order[1:]
	}
	return fresh, true
}

func (p *proposals) drop(term uint64, id requestID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.term == term {
		delete(p.byID, id)
	}
}

// propose hands an entry to raft, if this node leads in the entry's term.
func (n *Node) propose(ctx context.Context, term uint64, data []byte) result {
	r := n.raft.Load()
	if r == nil || r.State() != raft.Leader || r.CurrentTerm() != term || !n.confirmed.Load() {
		return result{verdict: refused, err: ErrNoLeader}
	}
	e, err := decodeEntry(data)
	if err != nil || e.term != term {
		return result{verdict: rejected, err: errors.Join(err, errStale)}
	}
	p, first := n.proposals.begin(term, e.id)
	if first {
		go func() {
			p.result = n.commit(r, &e, data)
			if p.result.verdict == refused {
				n.proposals.drop(term, e.id) // the next try may be taken
			}
			close(p.done)
		}()
	}
	select {
	case <-p.done:
		return p.result
	case <-ctx.Done():
		return result{verdict: unknown, err: ctx.Err()}
	}
}

// commit decodes an entry, as proof that every replica can, and runs it
// through raft.
func (n *Node) commit(r *raft.Raft, e *entry, data []byte) result {
	if e.verb != Delete {
		o, err := n.c.Codec.Decode(e.object)
		if err != nil {
			return result{verdict: rejected, err: fmt.Errorf("%s %s %s: reading back what goes into the log: %w",
				e.verb, e.resource, keyString(e.namespace, e.name), err)}
		}
		n.fsm.decoded.Store(&data[0], o)
		defer n.fsm.decoded.Delete(&data[0])
	}
	var f raft.ApplyFuture
	began := time.Now()
	err := n.future(func() raft.Future {
		f = r.ApplyLog(raft.Log{Data: data}, enqueueWait)
		return f
	})
	n.count(func(m *Metrics) { m.Commits++; m.CommitTime += time.Since(began) })
	switch {
	case err == nil:
		a, ok := f.Response().(applied)
		switch {
		case !ok || a.revision == 0:
			return result{verdict: unknown, err: a.err} // this replica is broken
		case errors.Is(a.err, errStale):
			return result{verdict: refused, err: a.err}
		}
		return result{verdict: committed, revision: a.revision, err: a.err}
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return result{verdict: refused, err: fmt.Errorf("%w: %w", ErrNoLeader, err)}
	case noSpace(err):
		return result{verdict: refused, err: fmt.Errorf("%s %s %s: %w: %w", e.verb, e.resource, keyString(e.namespace, e.name), ErrDiskFull, err)}
	}
	return result{verdict: unknown, err: err}
}

func (n *Node) configuration() raft.Configuration {
	if r := n.raft.Load(); r != nil {
		return r.GetConfiguration().Configuration()
	}
	return raft.Configuration{}
}

func (n *Node) count(f func(*Metrics)) {
	n.mu.Lock()
	f(&n.stats)
	n.mu.Unlock()
}
