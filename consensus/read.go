package consensus

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// index is a point in the log up to which all that was acknowledged lies, the
// term in which the leader vouched for it, and where the leader's log ended.
type index struct{ revision, term, last uint64 }

// batcher lets all who ask while one answer is under way share the next one:
// an answer is only good for questions that were there before its work began.
type batcher[T any] struct {
	mu   sync.Mutex
	busy bool
	next *batch[T]
}

type batch[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// do returns the result of a work that begins after the call.
func (b *batcher[T]) do(ctx context.Context, work func() (T, error)) (T, error) {
	b.mu.Lock()
	if b.next == nil {
		b.next = &batch[T]{done: make(chan struct{})}
	}
	mine := b.next
	if !b.busy {
		b.busy = true
		go b.run(work)
	}
	b.mu.Unlock()
	select {
	case <-mine.done:
		return mine.value, mine.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// run works until nobody waits.
func (b *batcher[T]) run(work func() (T, error)) {
	for {
		b.mu.Lock()
		now := b.next
		b.next = nil
		b.busy = now != nil
		b.mu.Unlock()
		if now == nil {
			return
		}
		now.value, now.err = work()
		close(now.done)
	}
}

// Sync returns once this replica has everything that was acknowledged
// anywhere before the call. It tries until ctx ends, or until there was no
// leader for leaderWait: ErrNoLeader.
func (n *Node) Sync(ctx context.Context) error {
	_, err := n.sync(ctx)
	return err
}

// sync also returns the term of the leader that vouched for it.
func (n *Node) sync(ctx context.Context) (term uint64, err error) {
	began := time.Now()
	for {
		changed := n.changed.wait()
		at, err := n.reach(ctx)
		if err == nil {
			return at.term, nil
		}
		n.pause(ctx, changed)
		if given := n.over(ctx, began); given != nil {
			return 0, fmt.Errorf("catching up with the leader: %w: %w (%w)", ErrNoLeader, given, err)
		}
	}
}

// reach tries once to bring this replica to where the leader is, and returns where
// that was.
func (n *Node) reach(ctx context.Context) (index, error) {
	at, err := n.readIndex(ctx)
	if err == nil {
		err = n.store.WaitFor(ctx, at.revision)
	}
	return at, err
}

func (n *Node) readIndex(ctx context.Context) (index, error) {
	leader := n.Leader()
	switch leader {
	case "":
		return index{}, ErrNoLeader
	case n.c.ID:
		return n.verify.do(ctx, n.verifyLeader)
	}
	return n.ask.do(ctx, n.askLeader)
}

// verifyLeader is the leader's own answer: what it has applied, if a majority
// still follows it.
func (n *Node) verifyLeader() (index, error) {
	l := n.established()
	r := n.raft.Load()
	if l == nil || r == nil {
		return index{}, ErrNoLeader
	}
	at := index{revision: n.store.Revision(), term: l.term, last: r.LastIndex()}
	if voters(r.GetConfiguration().Configuration()) > 1 {
		calm := n.trans.hurry()
		defer calm()
	}
	if err := n.future(func() raft.Future { return r.VerifyLeader() }); err != nil {
		return index{}, fmt.Errorf("verifying leadership: %w", err)
	}
	if l.ctx.Err() != nil {
		return index{}, ErrNoLeader
	}
	return at, nil
}

// askTimeout bounds one question to a leader that may be dead.
const askTimeout = 2 * time.Second

// askLeader asks the leader for its answer.
func (n *Node) askLeader() (index, error) {
	leader := n.Leader()
	if leader == "" || leader == n.c.ID {
		return index{}, ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	ctx, stop := n.whileLeads(ctx, leader)
	defer stop()
	b, err := n.c.Caller.Call(ctx, leader, pathReadIndex, nil)
	if err != nil {
		return index{}, fmt.Errorf("asking the leader how far it is: %w", err)
	}
	return parseIndex(b)
}

func (i index) encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(binary.AppendUvarint(nil, i.term), i.revision), i.last)
}

// parseIndex reads an answer; an empty one comes from a node that does not
// lead.
func parseIndex(b []byte) (i index, err error) {
	for _, field := range []*uint64{&i.term, &i.revision, &i.last} {
		v, size := binary.Uvarint(b)
		if size <= 0 {
			return index{}, fmt.Errorf("reading the leader's answer: %w", ErrNoLeader)
		}
		*field, b = v, b[size:]
	}
	return i, nil
}

// whileLeads returns a context that ends when the node is no longer known as
// the leader: a dead one never answers.
func (n *Node) whileLeads(ctx context.Context, leader string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			changed := n.changed.wait()
			if n.Leader() != leader {
				cancel()
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() { cancel(); watch.Wait() }
}
