package consensus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

func TestSingleNodeLeadsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		h := w.host(t, "n0")
		began := time.Now()
		n := h.start(true)
		if _, err := n.Write(within(t, time.Second), create("n", "a", "1")); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("the first write was done after %s", took)
		}
		if err := n.Sync(within(t, time.Second)); err != nil {
			t.Error(err)
		}
		h.end()
		// And again, after a stop.
		n = h.start(false)
		began = time.Now()
		if err := n.Sync(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("the first read after a restart was done after %s", took)
		}
		if r := n.Store().Get("things", "n", "a"); r == nil || value(r) != "1" {
			t.Errorf("the object came back as %v", r)
		}
		h.end()
	})
}

func TestThreeMastersFromNothing(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		began := time.Now()
		hosts := cluster(t, w, 3, 3)
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("three masters after %s", took)
		}
		t.Logf("three masters after %s", time.Since(began))
		endAll(hosts)
	})
}

func TestWritesAndReadsAnywhere(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 4, 3)
		until(t, "a standby", 5*time.Second, func() bool { return len(leaderOf(hosts).get().Status().Servers) == 4 })
		for i, h := range hosts {
			name := fmt.Sprintf("o%d", i)
			began := time.Now()
			r, err := h.get().Write(within(t, time.Second), create("n", name, "1"))
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 20*time.Millisecond {
				t.Errorf("a write on %s took %s: it waited for a timer", h.id, took)
			}
			for _, other := range hosts {
				if err := other.get().Sync(within(t, time.Second)); err != nil {
					t.Fatal(err)
				}
				if got := other.get().Store().Get("things", "n", name); got == nil || got.Revision() != r.Revision() {
					t.Errorf("%s does not see what %s wrote", other.id, h.id)
				}
			}
			bad := update("n", name, "2")
			bad.Version = r.Revision() - 1
			if _, err := h.get().Write(within(t, time.Second), bad); !errors.Is(err, ErrConflict) {
				t.Errorf("a stale update on %s: %v", h.id, err)
			}
			if _, err := h.get().Write(within(t, time.Second), create("n", name, "2")); !errors.Is(err, ErrExists) {
				t.Errorf("a second create on %s: %v", h.id, err)
			}
			big := create("n", "big", string(make([]byte, maxEntry)))
			if _, err := h.get().Write(within(t, time.Second), big); !errors.Is(err, ErrTooLarge) {
				t.Errorf("a huge object on %s: %v", h.id, err)
			}
			gone, err := h.get().Write(within(t, time.Second), remover("n", name))
			if err != nil || value(gone) != "1" || gone.Revision() <= r.Revision() {
				t.Errorf("a delete on %s: %v, %v", h.id, gone, err)
			}
		}
		endAll(hosts)
	})
}

func TestLeaderPowerOff(t *testing.T) {
	var took []time.Duration
	for n := range 5 {
		bubble(t, func(t *testing.T, w *wires) {
			hosts := cluster(t, w, 5, 3)
			time.Sleep(time.Duration(n) * 37 * time.Millisecond)
			old := leaderOf(hosts)
			var survivor *host
			for _, h := range hosts {
				if h != old && h.alive() {
					survivor = h
				}
			}
			if _, err := survivor.get().Write(within(t, time.Second), create("n", "before", "1")); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			old.cut()
			if _, err := survivor.get().Write(within(t, 5*time.Second), create("n", "after", "1")); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
			for _, h := range hosts {
				if h == old || !h.alive() {
					continue
				}
				if err := h.get().Sync(within(t, time.Second)); err != nil {
					t.Fatal(err)
				}
				if h.get().Store().Get("things", "n", "before") == nil || h.get().Store().Get("things", "n", "after") == nil {
					t.Errorf("%s lost something", h.id)
				}
			}
			old.end()
			// The dead voter is replaced, once gossip knows.
			w.set(func() { w.gone[old.id] = true })
			until(t, "three live voters", 10*time.Second, func() bool {
				l := leaderOf(hosts)
				if l == nil {
					return false
				}
				for _, s := range l.get().Status().Servers {
					if s.ID == old.id {
						return false
					}
				}
				return votersOf(hosts) == 3
			})
			endAll(hosts)
		})
	}
	// Two candidates may share the votes, and then it takes longer, by their dice;
	// it does so seldom.
	slices.Sort(took)
	t.Logf("writes succeeded after %s", took)
	if len(took) == 5 && took[3] > 1200*time.Millisecond {
		t.Errorf("writes succeeded after %s", took)
	}
}

func TestGracefulStopHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		old := leaderOf(hosts)
		go old.end()
		synctest.Wait()
		for _, h := range hosts {
			if h != old {
				began := time.Now()
				if _, err := h.get().Write(within(t, time.Second), create("n", "a", "1")); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took > 100*time.Millisecond {
					t.Errorf("a write succeeded after %s", took)
				}
				break
			}
		}
		time.Sleep(time.Second)
		endAll(hosts)
	})
}

func TestLead(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		var mu sync.Mutex
		working := map[string]int{}
		most := 0
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for _, h := range hosts {
			n := h.get()
			all.Go(func() {
				err := n.Lead(ctx, func(ctx context.Context) error {
					mu.Lock()
					working[h.id]++
					most = max(most, len(working))
					mu.Unlock()
					<-ctx.Done()
					mu.Lock()
					delete(working, h.id)
					mu.Unlock()
					return ctx.Err()
				})
				if err != nil {
					t.Errorf("%s: %v", h.id, err)
				}
			})
		}
		for range 4 {
			old := leaderOf(hosts)
			if old == nil {
				t.Fatal("nobody leads")
			}
			synctest.Wait()
			mu.Lock()
			if working[old.id] != 1 || len(working) != 1 {
				t.Errorf("%s leads, and %v work", old.id, working)
			}
			mu.Unlock()
			if err := old.get().Transfer(within(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			until(t, "another leader", time.Second, func() bool { l := leaderOf(hosts); return l != nil && l != old })
		}
		cancel()
		all.Wait()
		mine := errors.New("mine")
		if err := leaderOf(hosts).get().Lead(t.Context(), func(context.Context) error { return mine }); !errors.Is(err, mine) {
			t.Errorf("the work's error became %v", err)
		}
		endAll(hosts)
	})
}

func TestMinorityCannotWriteOrRead(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		old := leaderOf(hosts)
		n := old.get()
		w.set(func() { w.group[old.id] = 1 })
		if err := n.Sync(within(t, 2*time.Second)); !errors.Is(err, ErrNoLeader) {
			t.Errorf("a read of the minority: %v", err)
		}
		if _, err := n.Write(within(t, 2*time.Second), create("n", "a", "1")); !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a write of the minority: %v", err)
		}
		until(t, "a leader of the majority", 2*time.Second, func() bool { l := leaderOf(hosts); return l != nil && l != old })
		if _, err := leaderOf(hosts).get().Write(within(t, time.Second), create("n", "b", "1")); err != nil {
			t.Error(err)
		}
		// Whoever has time is told too, and not only when it is over.
		for what, call := range map[string]func(context.Context) error{
			"read":  n.Sync,
			"write": func(ctx context.Context) error { _, err := n.Write(ctx, create("n", "a", "1")); return err },
		} {
			ctx := within(t, time.Minute)
			if err := call(ctx); !errors.Is(err, ErrNoLeader) || ctx.Err() != nil {
				t.Errorf("a patient %s of the minority: %v, %v", what, err, ctx.Err())
			}
		}
		// Who comes after that is told sooner.
		began := time.Now()
		if err := n.Sync(within(t, time.Minute)); !errors.Is(err, ErrNoLeader) || time.Since(began) > leaderWait/2 {
			t.Errorf("a later read of the minority: %v after %s", err, time.Since(began))
		}
		w.set(func() { w.group[old.id] = 0 })
		// Until the leader is heard again, reads are still refused soon.
		until(t, "a read after the heal", 10*time.Second, func() bool { return n.Sync(within(t, time.Minute)) == nil })
		if n.Store().Get("things", "n", "b") == nil || n.Store().Get("things", "n", "a") != nil {
			t.Error("the healed node does not have the majority's state")
		}
		endAll(hosts)
	})
}

// TestWriteUnderWayWhenTheLeaderDies: the write ends once, and truthfully.
func TestWriteUnderWayWhenTheLeaderDies(t *testing.T) {
	for ms := range 12 {
		bubble(t, func(t *testing.T, w *wires) {
			hosts := cluster(t, w, 3, 3)
			old := leaderOf(hosts)
			survivor := hosts[0]
			if survivor == old {
				survivor = hosts[1]
			}
			var all sync.WaitGroup
			errs := make([]error, 40)
			for i := range errs {
				all.Go(func() {
					time.Sleep(time.Duration(i) * 100 * time.Microsecond)
					_, errs[i] = survivor.get().Write(within(t, 10*time.Second), create("n", fmt.Sprint(i), "1"))
				})
			}
			time.Sleep(time.Duration(ms) * 300 * time.Microsecond)
			old.powerOff()
			all.Wait()
			if err := survivor.get().Sync(within(t, 5*time.Second)); err != nil {
				t.Fatal(err)
			}
			for i, err := range errs {
				r := survivor.get().Store().Get("things", "n", fmt.Sprint(i))
				if err != nil || r == nil {
					t.Errorf("write %d: %v; stored: %v", i, err, r != nil)
				}
			}
			endAll(hosts)
		})
	}
}

func TestRemove(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 4, 3)
		old := leaderOf(hosts)
		// The leader itself leaves: its place is taken, then it goes.
		if err := old.get().Remove(within(t, 20*time.Second), old.id); err != nil {
			t.Fatal(err)
		}
		until(t, "the node to be told", 10*time.Second, func() bool {
			old.mu.Lock()
			defer old.mu.Unlock()
			return old.retired == 1
		})
		old.end()
		w.set(func() { w.gone[old.id] = true })
		until(t, "three voters", 10*time.Second, func() bool { return votersOf(hosts) == 3 })
		// A removed node that is started again with its old log is told too.
		w.set(func() { w.noMaster[old.id] = true; delete(w.gone, old.id) })
		old.start(false)
		until(t, "the node to be told again", 10*time.Second, func() bool {
			old.mu.Lock()
			defer old.mu.Unlock()
			return old.retired == 2
		})
		endAll(hosts)
	})
}

func TestLastMasterCannotBeRemoved(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		h := w.host(t, "n0")
		n := h.start(true)
		if err := n.Remove(within(t, 5*time.Second), "n0"); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("removing the only node: %v", err)
		}
		h.end()
	})
}

func TestAllHostsPoweredOff(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		for i := range 50 {
			if _, err := hosts[i%3].get().Write(within(t, time.Second), create("n", fmt.Sprint(i), "1")); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range hosts {
			h.powerOff()
		}
		began := time.Now()
		for _, h := range hosts {
			h.powerOn()
		}
		for _, h := range hosts {
			if err := h.get().Sync(within(t, 10*time.Second)); err != nil {
				t.Fatal(err)
			}
			if got, _ := h.get().Store().List("things", ""); len(got) != 50 {
				t.Errorf("%s has %d objects", h.id, len(got))
			}
		}
		t.Logf("all back after %s", time.Since(began))
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("all back after %s", took)
		}
		endAll(hosts)
	})
}

// TestCatchUpBySnapshot: a node that was away for longer than the log reaches
// back gets a snapshot, and its watchers are told.
func TestCatchUpBySnapshot(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		away := hosts[0]
		if leaderOf(hosts) == away {
			away = hosts[1]
		}
		watcher, err := away.get().Store().Watch("things", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.group[away.id] = 1 })
		l := leaderOf(hosts).get()
		for i := range 20 {
			if _, err := l.Write(within(t, time.Second), create("n", fmt.Sprint(i), "1")); err != nil {
				t.Fatal(err)
			}
		}
		for _, h := range hosts {
			if h != away {
				r := h.get().raft.Load()
				c := r.ReloadableConfig()
				c.TrailingLogs = 1
				if err := r.ReloadConfig(c); err != nil {
					t.Fatal(err)
				}
				if err := r.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
			}
		}
		w.set(func() { w.group[away.id] = 0 })
		if err := away.get().Sync(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, _ := away.get().Store().List("things", ""); len(got) != 20 {
			t.Errorf("it has %d objects", len(got))
		}
		if _, _, err := watcher.Next(within(t, time.Second)); !errors.Is(err, ErrExpired) {
			t.Errorf("the watcher across the snapshot is told %v", err)
		}
		// What it had before is gone, lest there be a gap between that and the rest.
		if _, err := l.Write(within(t, time.Second), create("n", "last", "1")); err != nil {
			t.Fatal(err)
		}
		if err := away.get().Sync(within(t, time.Second)); err != nil {
			t.Fatal(err)
		}
		stored := away.get().disk.store
		first, err := stored.FirstIndex()
		if err != nil {
			t.Fatal(err)
		}
		if last, err := stored.LastIndex(); err != nil || first > last {
			t.Fatalf("the log is from %d to %d: %v", first, last, err)
		} else {
			for i := first; i <= last; i++ {
				if err := stored.GetLog(i, new(raft.Log)); err != nil {
					t.Fatalf("the log is from %d to %d, without %d: %v", first, last, i, err)
				}
			}
		}
		endAll(hosts)
	})
}

func TestLeases(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		w.set(func() { w.noMaster["agent"] = true })
		agent := w.host(t, "agent") // not a master: it only calls
		c := NewLease(LeaseConfig{
			ID: "agent", Name: "name-agent", Caller: agent,
			Masters: func() []string { return []string{"n0", "n1", "n2"} },
		})
		select {
		case <-c.Lost():
		default:
			t.Error("there is a lease before the first renewal")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		until(t, "a lease", time.Second, func() bool { return !c.Renewed().IsZero() })
		synctest.Wait()
		old := leaderOf(hosts)
		renewed, expired := old.get().Lease("name-agent", "")
		if expired || time.Since(renewed) > time.Second || len(old.get().Leases()) != 1 {
			t.Errorf("renewed %s ago, expired %v, all: %v", time.Since(renewed), expired, old.get().Leases())
		}
		// The leader dies; the lease goes on with the next before it ends.
		old.powerOff()
		lost := c.Lost()
		until(t, "another leader", 2*time.Second, func() bool { return leaderOf(hosts) != nil })
		time.Sleep(1500 * time.Millisecond)
		select {
		case <-lost:
			t.Error("the lease was lost with the leader")
		default:
		}
		next := leaderOf(hosts).get()
		if _, expired := next.Lease("name-agent", "agent"); expired {
			t.Error("the new leader calls the agent dead")
		}
		if _, expired := next.Lease("name-other", "other"); expired {
			t.Error("the new leader calls somebody dead before a whole lease has passed")
		}
		// The agent is cut off: it knows before the leader does.
		w.set(func() { w.group["agent"] = 7 })
		cut := time.Now()
		<-c.Lost()
		if _, expired := next.Lease("name-agent", "agent"); expired {
			t.Error("the leader calls the agent dead before it could know")
		}
		if end := c.Renewed().Add(3 * time.Second); time.Until(end) < 500*time.Millisecond {
			t.Errorf("only %s are left of the lease", time.Until(end))
		}
		t.Logf("the agent knew after %s", time.Since(cut))
		until(t, "the lease to expire", 4*time.Second, func() bool { _, e := next.Lease("name-agent", "agent"); return e })
		if _, expired := next.Lease("name-other", "other"); !expired {
			t.Error("a node that never renewed is alive")
		}
		w.set(func() { w.group["agent"] = 0 })
		until(t, "the lease to be back", 2*time.Second, func() bool {
			_, e := next.Lease("name-agent", "agent")
			select {
			case <-c.Lost():
				return false
			default:
				return !e
			}
		})
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		endAll(hosts)
	})
}

// fullDisk is a log whose disk is full for a while.
type fullDisk struct {
	LogStore
	full *atomic.Bool
}

func (d fullDisk) StoreLogs(logs []*raft.Log) error {
	if d.full.Load() {
		return syscall.ENOSPC
	}
	return d.LogStore.StoreLogs(logs)
}

// onDisk puts something between a host's node and the log on its disk.
func (h *host) onDisk(wrap func(LogStore) LogStore) {
	h.conf = func(c *Config) {
		c.OpenLog = func() (LogStore, error) {
			if err := os.MkdirAll(h.dir, 0o700); err != nil {
				return nil, err
			}
			log, err := openBolt(filepath.Join(h.dir, logFile), false)
			return wrap(log), err
		}
	}
}

// TestDisksFullOfAMajority: those who were full have the newest log, so that
// nobody else can lead, and they must find out by themselves that there is room
// again.
func TestDisksFullOfAMajority(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		var full [3]atomic.Bool
		var hosts []*host
		for i := range full {
			h := w.host(t, fmt.Sprintf("n%d", i))
			h.onDisk(func(log LogStore) LogStore { return fullDisk{log, &full[i]} })
			hosts = append(hosts, h)
		}
		hosts[0].start(true)
		until(t, "three voters", 10*time.Second, func() bool { return votersOf(hosts) == 3 })
		behind := hosts[1]
		if leaderOf(hosts) == behind {
			behind = hosts[2]
		}
		behind.cut()
		if _, err := leaderOf(hosts).get().Write(within(t, time.Second), create("n", "a", "1")); err != nil {
			t.Fatal(err)
		}
		for i, h := range hosts {
			full[i].Store(h != behind)
		}
		if _, err := leaderOf(hosts).get().Write(within(t, 8*time.Second), create("n", "b", "1")); err == nil {
			t.Error("a write to full disks succeeded")
		}
		until(t, "both to know that their disks are full", 20*time.Second, func() bool {
			for _, h := range hosts {
				if h != behind && !errors.Is(h.get().Status().DiskError, ErrDiskFull) {
					return false
				}
			}
			return true
		})
		for i := range full {
			full[i].Store(false)
		}
		w.set(func() { w.group[behind.id] = 0 })
		// A write gives up when there was no leader for 10 s, which is about how
		// long it takes both to look for room and one to be elected.
		until(t, "a write, now that there is room again", time.Minute, func() bool {
			_, err := behind.get().Write(within(t, 20*time.Second), create("n", "c", "1"))
			return err == nil
		})
		endAll(hosts)
	})
}

// TestFullDiskGetsNoVote: in a young cluster, whose log is short, a node that takes
// none of it is not called caught up; with room on its disk it has its vote.
func TestFullDiskGetsNoVote(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		var full atomic.Bool
		full.Store(true)
		hosts := []*host{w.host(t, "n0"), w.host(t, "n1"), w.host(t, "n2")}
		hosts[2].onDisk(func(log LogStore) LogStore { return fullDisk{log, &full} })
		hosts[0].start(true)
		until(t, "the third to follow", 10*time.Second, func() bool { return hosts[0].get() != nil && hosts[0].get().serves("n2") })
		time.Sleep(10 * time.Second) // long enough for a vote
		if n := votersOf(hosts); n != 1 {
			t.Errorf("%d voters while the disk of one of three is full", n)
		}
		full.Store(false)
		until(t, "three voters", time.Minute, func() bool { return votersOf(hosts) == 3 })
		endAll(hosts)
	})
}

// countedRefusals counts what a full disk refuses.
type countedRefusals struct {
	fullDisk
	n *atomic.Int64
}

func (c countedRefusals) StoreLogs(logs []*raft.Log) error {
	err := c.fullDisk.StoreLogs(logs)
	if err != nil {
		c.n.Add(1)
	}
	return err
}

// TestFullDiskBehindASnapshot: with every entry that a follower's full disk
// refuses, raft's leader begins one entry earlier, until it is where the follower
// has a snapshot and no log, or where it has no log itself. There every attempt
// fails, with room or without.
func TestFullDiskBehindASnapshot(t *testing.T) {
	for _, of := range []string{"the follower", "both"} {
		t.Run(of, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *wires) { fullDiskBehindASnapshot(t, w, of == "both") })
		})
	}
}

func fullDiskBehindASnapshot(t *testing.T, w *wires, ofBoth bool) {
	var full atomic.Bool
	var refused atomic.Int64
	var hosts []*host
	for i := range 3 {
		h := w.host(t, fmt.Sprintf("n%d", i))
		if i == 1 {
			h.onDisk(func(log LogStore) LogStore { return countedRefusals{fullDisk{log, &full}, &refused} })
		}
		hosts = append(hosts, h)
	}
	hosts[0].start(true)
	until(t, "three voters", 10*time.Second, func() bool { return votersOf(hosts) == 3 })
	leader, behind := leaderOf(hosts), hosts[1]
	if leader == behind {
		t.Fatal("another one was to found it")
	}
	written := 0
	write := func(many int) {
		t.Helper()
		for range many {
			if _, err := leader.get().Write(within(t, time.Second), create("n", fmt.Sprint(written), "1")); err != nil {
				t.Fatal(err)
			}
			written++
		}
	}
	follows := func(when string) {
		t.Helper()
		until(t, when, time.Minute, func() bool {
			return behind.get().Store().Revision() == leader.get().Store().Revision()
		})
	}
	compact := func(h *host) {
		t.Helper()
		r := h.get().raft.Load()
		c := r.ReloadableConfig()
		c.TrailingLogs = 3
		if err := errors.Join(r.ReloadConfig(c), r.Snapshot().Error()); err != nil {
			t.Fatal(err)
		}
	}
	write(100)
	follows("the follower to have all")
	if ofBoth { // the leader's is older
		compact(leader)
		write(5)
		follows("the follower to have more")
	}
	compact(behind)
	full.Store(true)
	write(5)
	until(t, "it to be refused often", 5*time.Minute, func() bool {
		return errors.Is(behind.get().Status().DiskError, ErrDiskFull) && refused.Load() > 3
	})
	time.Sleep(5 * time.Minute) // the leader goes on trying, and back
	has := behind.get().raft.Load().LastIndex()
	full.Store(false)
	lost := false
	until(t, "it to have the rest", time.Minute, func() bool {
		lost = lost || behind.get().raft.Load().LastIndex() < has
		return behind.get().Store().Revision() == leader.get().Store().Revision()
	})
	if lost {
		t.Error("it has forgotten entries that it had said to have")
	}
	write(5)
	follows("it to have what follows")
	endAll(hosts)
}

// TestPreparedAndNeverAdded: the leader that prepared a node was no longer one
// when the node was ready.
func TestPreparedAndNeverAdded(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		left := w.host(t, "n9")
		w.set(func() { w.noMaster[left.id] = true }) // nobody adds it now
		left.start(false)
		until(t, "the node to be told", time.Minute, func() bool {
			left.mu.Lock()
			defer left.mu.Unlock()
			return left.retired == 1
		})
		left.end()
		endAll(hosts)
	})
}

// TestLeaveThatDoesNotHappen: a node that asked to go and stayed is one of us.
func TestLeaveThatDoesNotHappen(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		stays := hosts[0]
		if leaderOf(hosts) == stays {
			stays = hosts[1]
		}
		if err := stays.get().Remove(within(t, 20*time.Second), stays.id); err != nil {
			t.Fatal(err)
		}
		until(t, "the node to be told", 10*time.Second, func() bool {
			stays.mu.Lock()
			defer stays.mu.Unlock()
			return stays.retired == 1
		})
		if err := stays.get().Remove(within(t, 5*time.Second), stays.id); err != nil {
			t.Errorf("the node is out, and asked again it says %v", err)
		}
		stays.end()
		if err := os.RemoveAll(stays.dir); err != nil {
			t.Fatal(err)
		}
		until(t, "three voters again", 3*time.Minute, func() bool { return votersOf(hosts) == 3 })
		endAll(hosts)
	})
}
