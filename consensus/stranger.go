package consensus

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// raft's servers vote only for those that have a vote by their own log, which
// Raft does not ask for (section 4.1 of Ongaro's dissertation: a server goes by
// the newest configuration of its own log in all that it begins, and answers
// whoever asks). One that misses the entry by which another got its vote refuses
// it for ever, and where the two are all that is left, nobody leads.
//
// So whoever is asked for a vote by such a stranger, whose log is longer and the
// beginning of which it has, and knows no leader, takes the rest from the
// stranger's log. It might have had these entries from the leader that wrote
// them, in time. Nobody counts them as stored here, so that nothing is committed
// by them, and they take the place of no others (guardedLog.keep).

// tailMost bounds how many entries are taken at once; there is one vote asked for
// after another. Their size is bounded by maxEntry, or is that of one.
const tailMost = 64

// tailWait bounds the question for them.
const tailWait = 2 * time.Second

type tailQuestion struct {
	After uint64 `json:"after"` // an entry's index
	Term  uint64 `json:"term"`  // and its term
}

type tailAnswer struct {
	Entries []raft.Log `json:"entries,omitempty"` // none if that entry is not there
}

// tail is what this node's log has behind an entry.
func (n *Node) tail(q tailQuestion) (a tailAnswer) {
	log, size := n.disk.log, 0
	if q.Term == 0 || log.termAt(q.After) != q.Term {
		return a
	}
	for len(a.Entries) < tailMost {
		var l raft.Log
		if log.GetLog(q.After+1+uint64(len(a.Entries)), &l) != nil {
			return a
		}
		if size += len(l.Data); size > maxEntry && len(a.Entries) > 0 {
			return a
		}
		a.Entries = append(a.Entries, l)
	}
	return a
}

// canvass is who asks for a vote, and where its log ends.
type canvass struct {
	id          string
	index, term uint64
}

// canvassOf reads a question for a vote, of either kind.
func canvassOf(data any) (c canvass, ok bool) {
	switch q := data.(type) {
	case raft.RequestVoteRequest:
		return canvass{string(q.ID), q.LastLogIndex, q.LastLogTerm}, true
	case raft.RequestPreVoteRequest:
		return canvass{string(q.ID), q.LastLogIndex, q.LastLogTerm}, true
	}
	return c, false
}

// learn takes entries from strangers that ask for votes, until ctx ends.
func (n *Node) learn(ctx context.Context, r *raft.Raft, asked <-chan raft.Observation) {
	for {
		select {
		case o := <-asked:
			c, _ := canvassOf(o.Data)
			if err := n.learnFrom(ctx, r, c); err != nil {
				n.log.Info("a node asks for a vote that has none by this node's log, and its log could not be had", "node", c.id, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) learnFrom(ctx context.Context, r *raft.Raft, c canvass) error {
	last := r.LastIndex()
	term := n.disk.log.termAt(last)
	if n.Leader() != "" || term == 0 || c.index <= last || c.term < term {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tailWait)
	defer cancel()
	var a tailAnswer
	if err := call(ctx, n.c.Caller, c.id, pathTail, tailQuestion{last, term}, &a); err != nil || len(a.Entries) == 0 {
		return err
	}
	entries, err := follow(last, term, a.Entries)
	if err != nil {
		return fmt.Errorf("what it sent: %w", err)
	}
	release := n.disk.log.keep(last)
	defer release()
	if n.Leader() != "" {
		return nil
	}
	return n.trans.append(ctx, &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}, // of no leader
		// Whoever has entries of a term knows of the term: it must not be elected in
		// it once more.
		Term:         max(r.CurrentTerm(), entries[len(entries)-1].Term),
		PrevLogEntry: last, PrevLogTerm: term, Entries: entries,
	})
}

// follow checks entries that are to follow another.
func follow(index, term uint64, entries []raft.Log) ([]*raft.Log, error) {
	out := make([]*raft.Log, len(entries))
	for i := range entries {
		l := &entries[i]
		if l.Index != index+1+uint64(i) || l.Term < term {
			return nil, fmt.Errorf("entry %d of term %d does not follow entry %d of term %d", l.Index, l.Term, index+uint64(i), term)
		}
		term = l.Term
		if l.Type == raft.LogCommand {
			if _, err := checkEntry(l.Data); err != nil {
				return nil, fmt.Errorf("entry %d: %w", l.Index, err)
			}
		}
		out[i] = l
	}
	return out, nil
}
