package sim

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"
)

// fault is something that happens, and that is undone after a while.
type fault struct {
	name   string
	weight int
	// do begins it and returns what ends it; nil: there is nothing to end, or
	// it cannot happen now.
	do func(c *cluster) (undo func())
}

// faults are what may happen. None asks for more than is promised: whatever is
// acknowledged stays, and when all is healed the cluster is whole again.
var faults = []fault{
	{"cut off", 4, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() {
			var undo []func()
			for _, o := range c.machines {
				if o != m {
					undo = append(undo, c.cut(m, o), c.cut(o, m))
				}
			}
			return all(undo)
		})
	}},
	{"cut off one way", 4, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() {
			var undo []func()
			for _, o := range c.machines {
				if out := c.rand.IntN(2) == 0; o != m && out {
					undo = append(undo, c.cut(m, o))
				} else if o != m {
					undo = append(undo, c.cut(o, m))
				}
			}
			if c.rand.IntN(2) == 0 { // some both, some neither
				c.rand.Shuffle(len(undo), func(i, j int) { undo[i], undo[j] = undo[j], undo[i] })
				undo[0]()
				undo = undo[1:]
			}
			return all(undo)
		})
	}},
	{"cut between two", 5, func(c *cluster) func() {
		a, b := c.anybody(), c.anybody()
		if a == nil || b == nil || a == b {
			return nil
		}
		c.tell("between %s and %s", a.id, b.id)
		if c.rand.IntN(2) == 0 {
			return c.cut(a, b)
		}
		return all([]func(){c.cut(a, b), c.cut(b, a)})
	}},
	{"split", 3, func(c *cluster) func() {
		if c.parted {
			return nil
		}
		c.parted = true
		groups := make([][]netip.Addr, 2)
		for _, m := range c.machines {
			g := c.rand.IntN(2)
			groups[g] = append(groups[g], m.address())
		}
		c.tell("into %v", groups)
		c.net.Partition(groups...)
		return func() { c.net.Partition(); c.parted = false }
	}},
	{"kill", 6, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() { return c.down(m, byKill) })
	}},
	{"power off", 6, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() { return c.down(m, byPower) })
	}},
	{"stop", 4, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() { return c.down(m, byStop) })
	}},
	{"kill the leader", 4, func(c *cluster) func() {
		return c.with(c.leader(), func(m *machine) func() { return c.down(m, c.rand.IntN(3)) })
	}},
	{"leave", 2, func(c *cluster) func() {
		if len(c.present()) < 3 {
			return nil
		}
		return c.with(c.anybody(), func(m *machine) func() {
			left := make(chan bool, 1)
			c.flights.Go(func() { left <- m.leave() })
			return func() {
				if <-left {
					c.newcomer()
				}
			}
		})
	}},
	{"lose for ever", 2, func(c *cluster) func() {
		if len(c.present()) < 4 || c.unsettled() != "" {
			return nil // the others could not do without it
		}
		return c.with(c.anybody(), func(m *machine) func() {
			m.here.Store(false)
			m.halt(byPower)
			return c.newcomer
		})
	}},
	{"power off everywhere", 1, func(c *cluster) func() {
		var undo []func()
		for _, m := range c.present() {
			undo = append(undo, c.with(m, func(m *machine) func() { return c.down(m, byPower) }))
		}
		return all(undo)
	}},
	{"pause", 4, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() {
			a := m.address()
			c.net.Pause(a)
			return func() { c.net.Resume(a) }
		})
	}},
	{"move", 3, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() {
			p := m.running()
			if p == nil {
				return nil
			}
			c.moves++
			to := netip.AddrFrom4([4]byte{10, 0, 1, byte(c.moves)})
			m.mu.Lock()
			m.addr = to
			m.mu.Unlock()
			p.gossip.Move(netip.AddrPortFrom(to, gossipPort))
			p.api.Move(netip.AddrPortFrom(to, apiPort))
			p.pool.SetAdvertise(to)
			return nil
		})
	}},
	{"slow disk", 3, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() {
			m.disk.set(time.Duration(c.rand.IntN(400))*time.Millisecond, false)
			return func() { m.disk.set(0, false) }
		})
	}},
	{"full disk", 2, func(c *cluster) func() {
		return c.with(c.anybody(), func(m *machine) func() {
			m.disk.set(0, true)
			return func() { m.disk.set(0, false) }
		})
	}},
	{"loss", 3, func(c *cluster) func() {
		c.net.Loss(0.05 + 0.3*c.rand.Float64())
		return func() { c.net.Loss(c.loss) }
	}},
	{"delay", 3, func(c *cluster) func() {
		c.net.Delay(c.base, c.jitter+time.Duration(c.rand.IntN(120))*time.Millisecond)
		return func() { c.net.Delay(c.base, c.jitter) }
	}},
	{"hand over", 3, func(c *cluster) func() {
		if m := c.leader(); m != nil {
			if s := m.running().master.Load(); s != nil {
				c.flights.Go(func() {
					ctx, cancel := context.WithTimeout(c.ctx, time.Second)
					defer cancel()
					s.node.Transfer(ctx)
				})
			}
		}
		return nil
	}},
}

func all(undo []func()) func() {
	return func() {
		for _, f := range undo {
			if f != nil {
				f()
			}
		}
	}
}

// with does something to a machine that no other fault is at work on.
func (c *cluster) with(m *machine, do func(m *machine) func()) func() {
	if m == nil || m.busy.Load() {
		return nil
	}
	c.tell("  %s", m.id)
	undo := do(m)
	if undo == nil {
		return nil
	}
	m.busy.Store(true)
	return func() {
		c.flights.Go(func() { undo(); m.busy.Store(false) }) // a process takes its time to end
	}
}

// down ends a process, and begins another in the end.
func (c *cluster) down(m *machine, how int) func() {
	m.halt(how)
	return m.again
}

// cut is undone for the addresses that it was made for.
func (c *cluster) cut(a, b *machine) func() {
	from, to := a.address(), b.address()
	c.net.Cut(from, to)
	return func() { c.net.Mend(from, to) }
}

// present are the machines that are in the cluster.
func (c *cluster) present() (all []*machine) {
	for _, m := range c.machines {
		if m.here.Load() {
			all = append(all, m)
		}
	}
	return all
}

func (c *cluster) anybody() *machine {
	all := c.present()
	return all[c.rand.IntN(len(all))]
}

// newcomer joins a machine that was not there before, if there is one left.
func (c *cluster) newcomer() {
	var peers []string
	for _, m := range c.present() {
		peers = append(peers, netip.AddrPortFrom(m.address(), gossipPort).String())
	}
	for _, m := range c.machines {
		if !m.here.Load() && m.fresh.CompareAndSwap(true, false) {
			c.tell("%s joins", m.id)
			m.start(peers...)
			return
		}
	}
}

// leave takes a machine out of the cluster, as conclave leave does. It may fail.
func (m *machine) leave() bool {
	p := m.running()
	if p == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	defer cancel()
	for i := range 8 {
		door, s := m.c.doorOf(p, i)
		if s == nil {
			sleep(ctx, 200*time.Millisecond)
			continue
		}
		try, done := context.WithTimeout(door.ctx, 15*time.Second)
		err := s.node.Remove(try, m.id)
		done()
		m.c.tell("%s leaves: %v", m.id, err)
		if err != nil || ctx.Err() != nil {
			return false
		}
		p.pool.Leave(ctx) // the others find out, if they do not hear it
		m.here.Store(false)
		m.halt(byStop)
		return true
	}
	return false
}

// leader is the machine of a node that thinks that it leads.
func (c *cluster) leader() *machine {
	var found []*machine
	for _, m := range c.present() {
		if p := m.running(); p != nil {
			if s := p.master.Load(); s != nil && s.node.IsLeader() {
				found = append(found, m)
			}
		}
	}
	if len(found) == 0 {
		return nil
	}
	return found[c.rand.IntN(len(found))]
}

// pick throws a die that is as heavy as the faults.
func pick(r *rand.Rand) fault {
	sum := 0
	for _, f := range faults {
		sum += f.weight
	}
	n := r.IntN(sum)
	for _, f := range faults {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("unreachable")
}

// trouble makes faults for some time, and undoes them all before it returns.
func (c *cluster) trouble(length time.Duration) {
	type ending struct {
		at   time.Time
		name string
		undo func()
	}
	var open []ending
	end := time.Now().Add(length)
	next := time.Now()
	for {
		now := time.Now()
		rest := open[:0]
		for _, e := range open {
			if now.Before(e.at) && now.Before(end) {
				rest = append(rest, e)
				continue
			}
			e.undo()
			c.tell("end of %s", e.name)
		}
		open = rest
		if !now.Before(end) {
			return
		}
		if !now.Before(next) {
			f := pick(c.rand)
			lasts := time.Duration(c.rand.ExpFloat64() * float64(c.lasts))
			c.tell("%s for %s", f.name, lasts.Round(time.Millisecond))
			if undo := f.do(c); undo != nil {
				open = append(open, ending{now.Add(lasts), f.name, undo})
			}
			next = now.Add(time.Duration(c.rand.ExpFloat64() * float64(c.every)))
		}
		wake := end
		if next.Before(wake) {
			wake = next
		}
		for _, e := range open {
			if e.at.Before(wake) {
				wake = e.at
			}
		}
		time.Sleep(time.Until(wake))
	}
}
