package consensus

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation is one use of one key.
type operation struct {
	key    string
	verb   Verb   // 0: a linearizable read
	value  string // of a write, and unique
	expect string // the value that the write's version stands for, "" for any
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
		applies := (in.verb == Create) == (now == "") && (in.expect == "" || in.expect == now)
		after := in.value
		if in.verb == Delete {
			after = ""
		}
		switch {
		case out.open && !applies:
			return true, now
		case out.open, out.err == nil:
			return applies, after
		case errors.Is(out.err, ErrExists):
			return in.verb == Create && now != "", now
		case errors.Is(out.err, ErrNotFound):
			return in.verb != Create && now == "", now
		}
		return errors.Is(out.err, ErrConflict) && now != "" && in.expect != "" && in.expect != now, now
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v → %+v", input, output) },
}

// TestLinearizable lets clients read and write through every node while hosts
// are cut off, leaders are changed and processes restarted.
func TestLinearizable(t *testing.T) {
	for seed := range uint64(3) {
		bubble(t, func(t *testing.T, w *wires) {
			rng := rand.New(rand.NewPCG(seed, 9))
			hosts := cluster(t, w, 5, 3)
			until(t, "a standby", 5*time.Second, func() bool { return len(leaderOf(hosts).get().Status().Servers) == 4 })
			var nodes []*host
			for _, h := range hosts {
				if h.alive() {
					nodes = append(nodes, h)
				}
			}
			start := time.Now()
			var mu sync.Mutex
			var history []porcupine.Operation
			open := 0
			stop := make(chan struct{})
			var clients sync.WaitGroup
			for c := range 6 {
				own := rand.New(rand.NewPCG(seed, uint64(c)))
				clients.Go(func() {
					seen := map[string]Record{}
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						default:
						}
						time.Sleep(time.Duration(own.IntN(60)) * time.Millisecond)
						n := nodes[own.IntN(len(nodes))].get()
						if n == nil {
							continue
						}
						in := operation{key: fmt.Sprint("k", own.IntN(3)), verb: Verb(own.IntN(4)), value: fmt.Sprintf("%d.%d", c, i)}
						version := uint64(0)
						if r := seen[in.key]; r != nil && own.IntN(2) == 0 && in.verb > Create {
							in.expect, version = value(r), r.Revision()
						}
						o := porcupine.Operation{ClientId: c, Input: in, Call: int64(time.Since(start))}
						r, out, tells := perform(t, n, in, version)
						o.Output, o.Return = out, int64(time.Since(start))
						if !tells {
							continue
						}
						if r != nil && in.verb != Delete {
							seen[in.key] = r
						}
						mu.Lock()
						if out.open {
							o.Return = math.MaxInt64
							open++
						}
						history = append(history, o)
						mu.Unlock()
					}
				})
			}
			for range 12 {
				time.Sleep(time.Duration(100+rng.IntN(700)) * time.Millisecond)
				victim := nodes[rng.IntN(len(nodes))]
				if l := leaderOf(hosts); l != nil && rng.IntN(2) == 0 {
					victim = l
				}
				switch rng.IntN(3) {
				case 0:
					victim.cut()
					time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
					w.set(func() { w.group[victim.id] = 0 })
				case 1:
					victim.powerOff()
					time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
					victim.powerOn()
				default:
					victim.get().Transfer(within(t, time.Second)) // a follower refuses
				}
			}
			time.Sleep(2 * time.Second)
			close(stop)
			clients.Wait()
			for _, h := range nodes {
				if err := h.get().Sync(within(t, 10*time.Second)); err != nil {
					t.Error(err)
				}
			}
			t.Logf("%d operations, of which %d were open", len(history), open)
			if len(history) < 200 {
				t.Errorf("only %d operations", len(history))
			}
			if result := porcupine.CheckOperationsTimeout(registers, history, 30*time.Second); result != porcupine.Ok {
				t.Errorf("seed %d: the history of %d operations: %s", seed, len(history), result)
			}
			endAll(hosts)
		})
	}
}

// perform runs one operation. A read that failed tells nothing.
func perform(t *testing.T, n *Node, in operation, version uint64) (r Record, out outcome, tells bool) {
	ctx := within(t, 30*time.Second)
	if in.verb == 0 {
		if err := n.Sync(ctx); err != nil {
			return nil, out, false
		}
		if r = n.Store().Get("things", "n", in.key); r != nil {
			out.value = value(r)
		}
		return r, out, true
	}
	w := Write{Verb: in.verb, Resource: "things", Namespace: "n", Name: in.key, Version: version}
	if in.verb != Delete {
		w.Object = thing("n", in.key, in.value)
	}
	r, err := n.Write(ctx, w)
	switch {
	case errors.Is(err, ErrNoLeader):
		return nil, out, false // nothing was written
	case errors.Is(err, ErrUnknownOutcome):
		out.open = true
	default:
		out.err = err
	}
	return r, out, true
}
