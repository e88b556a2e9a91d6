package sim

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"conclave/gossip"
	"conclave/gossip/gossiptest"
)

var members = flag.Int("members", 60, "how many members gossip in TestGossip")

// crowd is many members and nothing else.
type crowd struct {
	t     *testing.T
	net   *gossiptest.Switch
	pools []*gossip.Pool
	addrs []netip.AddrPort
	dead  map[string]bool
}

// TestGossip lets many members find each other over a network that loses one
// packet in twenty, and then kills some. Nobody who lives may be called dead.
func TestGossip(t *testing.T) {
	var used time.Duration
	heap := uint64(0)
	defer debug.SetGCPercent(debug.SetGCPercent(100)) // a thousand members know a million
	synctest.Test(t, func(t *testing.T) { used, heap = gossipOf(t, *members) })
	t.Logf("simulated with %s of CPU and %d KiB of heap for each member", used.Round(time.Millisecond), heap/uint64(*members)>>10)
}

func gossipOf(t *testing.T, n int) (used time.Duration, heap uint64) {
	const (
		founders = 3
		wave     = 25 // members that start at a time
		loss     = 0.05
	)
	used = -processorTime()
	c := &crowd{t: t, net: gossiptest.New(1), dead: map[string]bool{}}
	c.net.Delay(200*time.Microsecond, 2*time.Millisecond)
	c.net.Loss(loss)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	begun := time.Now()
	for i := range n {
		at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), gossipPort)
		var seeds []string
		for _, a := range c.addrs[:min(i, founders)] {
			seeds = append(seeds, a.String())
		}
		pool, err := gossip.New(gossip.Config{
			ID: fmt.Sprintf("id%04d", i), Bind: at, Key: gossipKey, Seeds: seeds, Transport: c.net.Host(at),
			Meta: gossip.Meta{Name: fmt.Sprintf("node-%d", i), Role: gossip.RoleNode, Memory: 1 << 30, CPU: 4, Started: begun,
				APIPort: apiPort, KubeletPort: 10250, Addresses: []netip.Addr{at.Addr()}, DiskLatency: time.Millisecond},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.pools, c.addrs = append(c.pools, pool), append(c.addrs, at)
		running.Go(func() {
			if err := pool.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		if i%wave == wave-1 {
			time.Sleep(200 * time.Millisecond)
		}
	}
	started := time.Now()
	c.wait("everybody knows everybody", 3*time.Minute, gossip.Alive, n)
	t.Logf("%d members started within %s, and knew each other %s later; each had sent %s", n, started.Sub(begun).Round(100*time.Millisecond),
		time.Since(started).Round(100*time.Millisecond), c.each(gossiptest.Traffic{}, 0))

	time.Sleep(20 * time.Second) // until the news of the joins are old
	before := c.net.Traffic()
	const quiet = 30 * time.Second
	for range 10 {
		time.Sleep(quiet / 10)
		c.noFalseDeath()
	}
	t.Logf("at rest, with %g %% of the packets lost, each sends %s", loss*100, c.each(before, quiet))

	rng := rand.New(rand.NewPCG(1, 1))
	killed := time.Now()
	victims := max(2, n/50)
	for len(c.dead) < victims {
		i := founders + rng.IntN(n-founders)
		c.dead[fmt.Sprintf("id%04d", i)] = true
		c.net.Kill(c.addrs[i].Addr())
	}
	before = c.net.Traffic()
	first := c.waitAny(30 * time.Second)
	c.wait("everybody knows the dead", 2*time.Minute, gossip.Dead, victims)
	t.Logf("%d died at once: the first was suspected after %s, all were dead for everybody after %s, for which each sent %s", victims,
		first.Round(10*time.Millisecond), time.Since(killed).Round(100*time.Millisecond), c.each(before, 0))
	for range 5 {
		time.Sleep(3 * time.Second)
		c.noFalseDeath()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	cancel()
	running.Wait()
	time.Sleep(5 * time.Minute) // memberlist's goroutines end by their timers
	return used + processorTime(), m.HeapAlloc
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// each is what one member sent since, in so long; 0: in all.
func (c *crowd) each(since gossiptest.Traffic, in time.Duration) string {
	now := c.net.Traffic()
	by, unit := float64(len(c.pools)), ""
	if in > 0 {
		by, unit = by*in.Seconds(), " each second"
	}
	return fmt.Sprintf("%.1f packets and %.0f bytes, and %.0f bytes in streams%s",
		float64(now.Packets-since.Packets)/by, float64(now.PacketBytes-since.PacketBytes)/by, float64(now.StreamBytes-since.StreamBytes)/by, unit)
}

// living are the pools that run on hosts that live.
func (c *crowd) living() []*gossip.Pool {
	return slices.DeleteFunc(slices.Clone(c.pools), func(p *gossip.Pool) bool { return c.dead[p.Local().ID] })
}

// count is how many members somebody sees in a state.
func count(p *gossip.Pool, s gossip.State) (n int) {
	for _, m := range p.Members() {
		if m.State == s {
			n++
		}
	}
	return n
}

// wait lets time pass until everybody sees so many in a state, all at once.
func (c *crowd) wait(what string, most time.Duration, s gossip.State, want int) {
	begin := time.Now()
	all := c.living()
	seen := 0 // in a row, of all
	for time.Since(begin) < most {
		for n := 0; n < len(all) && count(all[seen], s) == want; n++ {
			if n == len(all)-1 {
				return
			}
			seen = (seen + 1) % len(all) // who does not yet is asked first the next time
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.t.Fatalf("%s: not within %s; %s sees %d, not %d", what, most, all[seen].Local().ID, count(all[seen], s), want)
}

// waitAny waits until somebody doubts one of the dead.
func (c *crowd) waitAny(most time.Duration) time.Duration {
	begin := time.Now()
	for time.Since(begin) < most {
		time.Sleep(50 * time.Millisecond)
		for _, p := range c.living() {
			for id := range c.dead {
				if m, ok := p.Member(id); ok && m.State != gossip.Alive {
					return time.Since(begin)
				}
			}
		}
	}
	c.t.Fatalf("nobody doubts the dead within %s", most)
	return 0
}

// noFalseDeath: whoever lives is alive or suspected for everybody.
func (c *crowd) noFalseDeath() {
	for _, p := range c.living() {
		for _, m := range p.Members() {
			if m.State >= gossip.Dead && !c.dead[m.ID] {
				c.t.Errorf("%s calls %s %s, which lives", p.Local().ID, m.ID, m.State)
			}
		}
	}
}
