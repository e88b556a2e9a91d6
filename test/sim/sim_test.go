package sim

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
)

var (
	oneSeed = flag.Uint64("seed", 0, "run this seed alone")
	seeds   = flag.Int("seeds", 100, "how many seeds to run")
	from    = flag.Uint64("from", 1, "the first of them")
	verbose = flag.Bool("story", false, "tell what happens while it happens, with the nodes' logs")
)

// kept are seeds that found something once: what, is said where it was mended.
var kept = []uint64{
	2,      // a newcomer that missed those whom it was told of was alone for ever
	5,      // a node was prepared to be a master and never added (consensus/members.go)
	12,     // the log had a gap behind a leader's snapshot (consensus/disk.go, IsMonotonic)
	1486,   // the two with the newest log had had full disks, and asked for no votes
	5109,   // the log lost its end to a full disk, and raft panicked (consensus/disk.go, cut)
	10894,  // a node asked to go, was out, and its leave failed: it was excluded for ever
	11066,  // the same
	838,    // a candidate that was taken out while it took over followed nobody (consensus/members.go, follows)
	5597,   // gossip did not know of a leader's new address, and it took out voters that answered (consensus/members.go, candidates)
	5997,   // a full disk's refusals drove the leader behind the follower's snapshot (consensus/transport.go, further)
	6323,   // the same, and where the leader has no log itself: its older snapshot was sent, for ever (consensus/transport.go, InstallSnapshot)
	7426,   // newcomers who were cut off stopped at each other (gossip/peers.go, reached)
	8465,   // who had learned entries of a term was elected in it, a second time (consensus/stranger.go)
	9882,   // a voter did not know of another's vote, gave it none, and nobody led (consensus/stranger.go)
	201020, // a second handing over to a follower that was stuck left raft's goroutines behind (consensus/leader.go, transfer)
}

func TestMain(m *testing.M) {
	flag.Parse()
	debug.SetGCPercent(400) // the worlds are small, and make much garbage
	os.Exit(m.Run())
}

// TestSeeds runs histories, in parallel over the cores.
func TestSeeds(t *testing.T) {
	if *oneSeed != 0 {
		run(t, *oneSeed)
		return
	}
	var next atomic.Int64
	all := slices.Clone(kept)
	n := uint64(*seeds)
	if testing.Short() { // under the race detector each costs three times as much
		n /= 5
	}
	for i := range n {
		all = append(all, *from+i)
	}
	began := time.Now()
	var total sum
	t.Run("all", func(t *testing.T) {
		for range runtime.GOMAXPROCS(0) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for {
					i := int(next.Add(1)) - 1
					if i >= len(all) {
						return
					}
					t.Run(fmt.Sprint("seed ", all[i]), func(t *testing.T) { total.add(run(t, all[i])) })
					if n := i + 1; n%1000 == 0 {
						fmt.Fprintf(os.Stderr, "%d seeds after %s\n", n, time.Since(began).Round(time.Second))
					}
				}
			})
		}
	})
	t.Logf("%d seeds in %s: %s", len(all), time.Since(began).Round(time.Millisecond), &total)
}

// figures are what one seed was about.
type figures struct {
	virtual, settled         time.Duration
	operations, open, events int
	elections                int
}

type sum struct {
	mu sync.Mutex
	figures
	worst time.Duration // to settle
}

func (s *sum) add(f figures) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.virtual += f.virtual
	s.operations += f.operations
	s.open += f.open
	s.events += f.events
	s.elections += f.elections
	s.worst = max(s.worst, f.settled)
}

func (s *sum) String() string {
	return fmt.Sprintf("%s of virtual time, %d operations of which %d are open, %d changes, %d elections; the slowest was whole %s after the last fault",
		s.virtual.Round(time.Second), s.operations, s.open, s.events, s.elections, s.worst.Round(time.Millisecond))
}

// run runs one seed.
func run(t *testing.T, seed uint64) (f figures) {
	dir, err := os.MkdirTemp("/dev/shm", "sim")
	if err != nil {
		dir = t.TempDir()
	}
	defer os.RemoveAll(dir)
	// A panic in a goroutine ends the process at once: this is what it leaves.
	fmt.Printf("seed %d begins\n", seed)
	var c *cluster
	passed := false
	defer func() {
		if !passed || t.Failed() { // also when the bubble panics, which ends all tests
			fmt.Fprintf(os.Stderr, "%s\nthis was seed %d; to run it again:\n\tgo test ./test/sim -run TestSeeds -seed %d -count=1 -v\n",
				strings.Join(c.story, "\n"), seed, seed)
		}
	}()
	var ops []porcupine.Operation
	synctest.Test(t, func(t *testing.T) {
		c = newCluster(t, seed, dir)
		f, ops = c.live()
	})
	if result := porcupine.CheckOperationsTimeout(registers, ops, time.Minute); result != porcupine.Ok {
		t.Errorf("the history of %d operations is not linearizable: %s", len(ops), result)
	}
	passed = true
	return f
}

// live is one history, from the first start to the last check.
func (c *cluster) live() (f figures, ops []porcupine.Operation) {
	r := c.rand
	size := []int{3, 3, 3, 3, 4, 5, 5, 5, 5, 7}[r.IntN(10)]
	lan := r.IntN(4) > 0
	c.base, c.jitter = 50*time.Microsecond, 200*time.Microsecond
	if !lan {
		c.base, c.jitter = time.Duration(r.IntN(10))*time.Millisecond, 10*time.Millisecond
	}
	c.files = r.IntN(12) == 0
	c.loss = float64(r.IntN(3)) * 0.01
	c.lasts = time.Duration(500+r.IntN(4000)) * time.Millisecond
	c.every = time.Duration(300+r.IntN(2500)) * time.Millisecond
	c.net.Delay(c.base, c.jitter)
	c.net.Loss(c.loss)
	c.net.Twice(0.01)
	zones := []int{1, 1, 1, 3}[r.IntN(4)]
	for i := range size + 3 { // three may join later
		c.machine(i, fmt.Sprint("zone-", i%zones), time.Duration(100+r.IntN(3000))*time.Microsecond)
	}
	c.tell("%d machines in %d zones, files: %v, %s to %s apart, %g lost, a fault each %s for %s", size, zones, c.files, c.base, c.base+c.jitter, c.loss, c.every, c.lasts)
	c.machines[0].founder = true
	for i, m := range c.machines[:size] {
		m.fresh.Store(false)
		if i == 0 {
			m.start()
			continue
		}
		m.start(netip.AddrPortFrom(c.machines[0].address(), gossipPort).String())
	}
	var h history
	stop := make(chan struct{})
	var users sync.WaitGroup
	if c.settle(30 * time.Second) {
		for i := range 3 + r.IntN(3) {
			users.Go(func() { c.client(&h, i, 250*time.Millisecond, stop) })
		}
		users.Go(func() { c.wander(0, stop) })
		c.trouble(time.Duration(8+r.IntN(25)) * time.Second)
		c.net.Heal()
		healed := time.Now()
		c.tell("all is healed")
		time.Sleep(time.Second)
		close(stop)
		users.Wait()
		if c.settle(7 * time.Minute) { // a voter that shares a zone is exchanged after five
			f.settled = time.Since(healed)
			c.tell("the cluster is whole")
			c.compare(&h)
		}
	}
	f.virtual = time.Since(c.began)
	for _, m := range c.machines {
		m.halt(byStop)
	}
	for _, m := range c.machines {
		<-m.ended
	}
	c.end()
	c.flights.Wait()
	time.Sleep(2 * time.Minute) // memberlist's goroutines end by their timers
	for _, wrong := range c.watched.check() {
		c.violation("%s", wrong)
	}
	f.operations, f.open, f.events, f.elections = len(h.all), h.open, len(c.watched.changes), len(c.leaders)
	return f, h.all
}

// targets are the voters and standbys of so many nodes that may be masters.
func targets(nodes int) (voters, standbys int) {
	switch {
	case nodes >= 7:
		voters = 5
	case nodes >= 3:
		voters = 3
	default:
		voters = 1
	}
	return voters, min(1, nodes-voters)
}

// settle waits until the master set is as it should be, and stays so.
func (c *cluster) settle(most time.Duration) bool {
	const calm = time.Second
	begin, since := time.Now(), time.Time{}
	why := ""
	for time.Since(begin) < most {
		if why = c.unsettled(); why != "" {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		} else if time.Since(since) >= calm {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, m := range c.machines {
		if p := m.running(); p != nil {
			line := m.id + " sees"
			for _, o := range p.pool.Members() {
				line += fmt.Sprintf(" %s=%s/%s", o.ID, o.State, o.Role)
			}
			if s := p.master.Load(); s != nil {
				line += fmt.Sprintf("; %+v", s.node.Status())
			}
			c.tell("%s", line)
		}
	}
	c.violation("the master set is not settled after %s: %s", most, why)
	return false
}

// unsettled says what is not yet as it should be.
func (c *cluster) unsettled() string {
	var leader *master
	running := map[string]bool{}
	for _, m := range c.present() {
		p := m.running()
		if p == nil {
			return m.id + " does not run"
		}
		if s := p.master.Load(); s != nil {
			running[m.id] = true
			if s.node.IsLeader() {
				leader = s
			}
		}
	}
	if leader == nil {
		return "nobody leads"
	}
	wantVoters, wantStandbys := targets(len(c.present()))
	voters, standbys := 0, 0
	status := leader.node.Status()
	for _, s := range status.Servers {
		if s.Voter {
			voters++
		} else {
			standbys++
		}
		if !running[s.ID] {
			return s.ID + " is in the configuration and runs no consensus"
		}
		if s.ID != status.ID && s.Lag > 0 {
			return s.ID + " lags behind"
		}
		delete(running, s.ID)
	}
	switch {
	case voters != wantVoters || standbys != wantStandbys:
		return fmt.Sprintf("%d voters and %d standbys, not %d and %d", voters, standbys, wantVoters, wantStandbys)
	case len(running) > 0:
		return fmt.Sprintf("%v were removed and were not told", slices.Sorted(maps.Keys(running)))
	}
	return ""
}

// compare reads everything everywhere, as the last part of the history, and
// looks whether all replicas are equal.
func (c *cluster) compare(h *history) {
	ctx, cancel := context.WithTimeout(c.ctx, 20*time.Second)
	defer cancel()
	var first map[string]string
	var whose string
	for i, m := range c.present() {
		s := m.running().master.Load()
		if s == nil {
			continue
		}
		call := int64(time.Since(c.began))
		if err := s.node.Sync(ctx); err != nil {
			c.violation("%s cannot be read after all was healed: %v", m.id, err)
			continue
		}
		state := map[string]string{}
		list, _ := s.node.Store().List(things, "")
		for _, r := range list {
			state[r.Object().GetName()] = fmt.Sprintf("%s at %d", value(r), r.Revision())
		}
		for k := range keys {
			in, out := operation{key: fmt.Sprint("k", k)}, outcome{}
			if r := s.node.Store().Get(things, namespace, in.key); r != nil {
				out.value = value(r)
			}
			h.add(porcupine.Operation{ClientId: 100 + i, Input: in, Call: call, Output: out, Return: int64(time.Since(c.began))})
		}
		if first == nil {
			first, whose = state, m.id
		} else if !maps.Equal(first, state) {
			c.violation("%s has %v, %s has %v", whose, first, m.id, state)
		}
	}
}
