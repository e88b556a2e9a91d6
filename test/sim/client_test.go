package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"

	"conclave/consensus"
)

// operation is one use of one key.
type operation struct {
	key    string
	verb   consensus.Verb // 0: a linearizable read
	value  string         // of a write, and unique
	expect string         // the value that the write's version stands for, "" for any
}

type outcome struct {
	value string // read
	err   error
	// open: nobody knows whether the write happened. It may have happened at
	// any time since, also after all else, where nobody looks.
	open bool
}

// registers is the specification: each key apart, the state is the value, ""
// if absent.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(operation).key
			byKey[key] = append(byKey[key], o)
		}
		var out [][]porcupine.Operation
		for _, ops := range byKey {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, in, out := state.(string), input.(operation), output.(outcome)
		if in.verb == 0 {
			return out.value == now, now
		}
		applies := (in.verb == consensus.Create) == (now == "") && (in.expect == "" || in.expect == now)
		after := in.value
		if in.verb == consensus.Delete {
			after = ""
		}
		switch {
		case out.open && !applies:
			return true, now
		case out.open, out.err == nil:
			return applies, after
		case errors.Is(out.err, consensus.ErrExists):
			return in.verb == consensus.Create && now != "", now
		case errors.Is(out.err, consensus.ErrNotFound):
			return in.verb != consensus.Create && now == "", now
		}
		return errors.Is(out.err, consensus.ErrConflict) && now != "" && in.expect != "" && in.expect != now, now
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

const keys = 5

// history is what the clients did and saw.
type history struct {
	mu   sync.Mutex
	all  []porcupine.Operation
	open int
}

func (h *history) add(o porcupine.Operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o.Output.(outcome).open {
		o.Return = math.MaxInt64
		h.open++
	}
	h.all = append(h.all, o)
}

// client writes and reads through any node until stop is closed.
func (c *cluster) client(h *history, id int, pause time.Duration, stop <-chan struct{}) {
	own := rand.New(rand.NewPCG(c.seed, uint64(1000+id)))
	seen := map[string]consensus.Record{}
	for i := 0; ; i++ {
		timer := time.NewTimer(time.Duration(own.ExpFloat64() * float64(pause)))
		select {
		case <-stop:
			timer.Stop()
			return
		case <-timer.C:
		}
		p, s := c.door(own.IntN(64), own.IntN(8))
		if s == nil {
			continue
		}
		in := operation{key: fmt.Sprint("k", own.IntN(keys)), verb: consensus.Verb(own.IntN(4)), value: fmt.Sprintf("%d.%d", id, i)}
		if in.verb == consensus.Delete && own.IntN(2) == 0 {
			in.verb = consensus.Update // else most keys are absent
		}
		version := uint64(0)
		if r := seen[in.key]; r != nil && own.IntN(2) == 0 && in.verb > consensus.Create {
			in.expect, version = value(r), r.Revision()
		}
		wait := time.Duration(1+own.IntN(15)) * time.Second
		o := porcupine.Operation{ClientId: id, Input: in, Call: int64(time.Since(c.began))}
		r, out, tells := c.perform(p, s, in, version, wait)
		o.Output, o.Return = out, int64(time.Since(c.began))
		if !tells {
			continue
		}
		if r != nil && in.verb != consensus.Delete {
			seen[in.key] = r
		}
		if r != nil && in.verb != 0 {
			c.watched.acknowledged(r.Revision())
		}
		h.add(o)
	}
}

// door is the master that a client of this machine talks to: its own, or one
// that it knows, to which it would be spliced.
func (c *cluster) door(machine, choice int) (*proc, *master) {
	all := c.present()
	p := all[machine%len(all)].running()
	if p == nil {
		return nil, nil
	}
	return c.doorOf(p, choice)
}

func (c *cluster) doorOf(p *proc, choice int) (*proc, *master) {
	if s := p.master.Load(); s != nil {
		return p, s
	}
	ids := p.masters()
	if len(ids) == 0 {
		return nil, nil
	}
	to, ok := p.resolve(ids[choice%len(ids)])
	if !ok {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(p.ctx, time.Second)
	defer cancel()
	if p.api.Carry(ctx, to) != nil {
		return nil, nil
	}
	if p = c.at(to.Addr()); p == nil {
		return nil, nil
	}
	return p, p.master.Load()
}

// perform runs one operation. A read that failed tells nothing, and neither does
// a write of which it is certain that it never was.
func (c *cluster) perform(p *proc, s *master, in operation, version uint64, wait time.Duration) (r consensus.Record, out outcome, tells bool) {
	// The client hears no more of a process that has ended.
	ctx, cancel := context.WithTimeout(p.ctx, wait)
	defer cancel()
	if in.verb == 0 {
		if err := s.node.Sync(ctx); err != nil || p.ctx.Err() != nil {
			return nil, out, false
		}
		if r = s.node.Store().Get(things, namespace, in.key); r != nil {
			out.value = value(r)
		}
		return r, out, true
	}
	w := consensus.Write{Verb: in.verb, Resource: things, Namespace: namespace, Name: in.key, Version: version}
	if in.verb != consensus.Delete {
		w.Object = thing(in.key, in.value)
	}
	r, err := s.node.Write(ctx, w)
	switch {
	case errors.Is(err, consensus.ErrNoLeader), errors.Is(err, consensus.ErrDiskFull):
		return nil, out, false // nothing was written
	case errors.Is(err, consensus.ErrUnknownOutcome), p.ctx.Err() != nil:
		return nil, outcome{open: true}, true
	}
	return r, outcome{err: err}, true
}
