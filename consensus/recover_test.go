package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestJudge(t *testing.T) {
	second := Incarnation{Number: 1, ID: 7}
	log := func(id string, term, index uint64, voters string, alive ...string) Report {
		return Report{ID: id, Term: term, Log: &Position{Term: term, Index: index}, Voters: strings.Fields(voters), Alive: append(alive, id)}
	}
	plain := func(id string, alive ...string) Report { return Report{ID: id, Alive: append(alive, id)} }
	in := func(r Report, i Incarnation) Report { r.Incarnation = i; return r }
	leads := log("c", 4, 90, "a b c")
	leads.Leader = "c"
	for name, c := range map[string]struct {
		reports []Report
		best    string
		missing string
		err     error
		says    string
	}{
		"nobody has a log": {reports: []Report{plain("d"), plain("e")}, err: ErrNoLog},
		"a standby alone":  {reports: []Report{log("d", 3, 50, "a b c"), plain("e")}, best: "d", missing: "a b c"},
		"two nodes, the voter is gone": {
			reports: []Report{log("b", 2, 9, "a")}, best: "b", missing: "a"},
		"the later term goes before the longer log": {
			reports: []Report{log("c", 3, 80, "a b c"), log("d", 4, 60, "a b c")}, best: "d", missing: "a b"},
		"the longer log of one term": {
			reports: []Report{log("d", 4, 60, "a b c"), log("c", 4, 61, "a b c")}, best: "c", missing: "a b"},
		"somebody leads": {reports: []Report{log("d", 3, 50, "a b c"), leads}, err: ErrNotLost, says: "C leads"},
		"two of three answer": {
			reports: []Report{log("a", 3, 50, "a b c"), log("c", 3, 50, "a b c")}, err: ErrNotLost, says: "2 of its 3 masters answer (A, C)"},
		"gossip sees a majority": {
			reports: []Report{log("d", 3, 50, "a b c", "a", "b")}, err: ErrNotLost, says: "gossip still sees A, B"},
		"another node's gossip sees the one that matters": {
			reports: []Report{log("a", 3, 50, "a b c"), plain("e", "b")}, err: ErrNotLost, says: "gossip still sees B"},
		"a voter that lives and has lost its log counts for nothing": {
			reports: []Report{log("a", 3, 50, "a b c"), plain("b", "b")}, best: "a", missing: "c"},
		"what is of an older incarnation does not count, whatever its length": {
			reports: []Report{log("a", 9, 900, "a b c"), log("b", 9, 900, "a b c"), in(log("d", 4, 60, "d e f"), second)}, best: "d", missing: "e f"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Judge(c.reports, strings.ToUpper)
			if !errors.Is(err, c.err) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want %v that says %q", err, c.err, c.says)
			}
			if err == nil && (l.Best.ID != c.best || strings.Join(l.Missing, " ") != c.missing) {
				t.Errorf("best is %s, missing are %v", l.Best.ID, l.Missing)
			}
		})
	}
}

// recover makes a stopped host's log the first of a new incarnation and starts
// it. The others of hosts are told.
func (h *host) recover(t *testing.T, reports []Report, now Incarnation, told ...*host) Position {
	t.Helper()
	l, err := Judge(reports, func(id string) string { return id })
	if err != nil {
		t.Fatal(err)
	}
	if l.Best.ID != h.id {
		t.Fatalf("the best log is %s's", l.Best.ID)
	}
	h.end()
	at, err := Seed{ID: h.id, Dir: h.dir, Codec: jsonCodec{}, Incarnation: now, Term: l.Term}.FromLog()
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range append(told, h) {
		o.adopt(now)
	}
	h.start(false)
	return at
}

// adopt is what a node does that hears of an incarnation.
func (h *host) adopt(now Incarnation) {
	h.t.Helper()
	old := h.conf
	h.conf = func(c *Config) {
		if old != nil {
			old(c)
		}
		c.Incarnation = now
	}
	if of, err := Settle(h.dir); err != nil {
		h.t.Fatal(err)
	} else if of.Compare(now) < 0 {
		if h.alive() {
			h.end()
		}
		if err := SetAside(h.dir); err != nil {
			h.t.Fatal(err)
		}
	}
}

func reportsOf(t *testing.T, hosts ...*host) (all []Report) {
	t.Helper()
	for _, h := range hosts {
		r, err := h.get().Report(within(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func mustWrite(t *testing.T, n *Node, name, value string) Record {
	t.Helper()
	r, err := n.Write(within(t, time.Minute), create("n", name, value))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRecoverFromStandby loses all voters of a cluster for good. The standby
// leads alone with every acknowledged write; then the dead majority comes back
// together, and is nobody.
func TestRecoverFromStandby(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 5, 3)
		until(t, "a standby", 10*time.Second, func() bool { return len(leaderOf(hosts).get().Status().Servers) == 4 })
		var standby *host
		var dead, plain []*host
		for _, h := range hosts {
			switch n := h.get(); {
			case n == nil:
				plain = append(plain, h)
			case !isVoter(leaderOf(hosts).get(), h.id):
				standby = h
			default:
				dead = append(dead, h)
			}
		}
		for i := range 50 {
			mustWrite(t, leaderOf(hosts).get(), fmt.Sprintf("o%d", i), "kept")
		}
		last := mustWrite(t, leaderOf(hosts).get(), "last", "kept")
		until(t, "the standby has it", time.Second, func() bool { return standby.get().Store().Revision() >= last.Revision() })
		watch, err := standby.get().Store().Watch("things", "", last.Revision())
		if err != nil {
			t.Fatal(err)
		}
		watch.Stop()
		for _, h := range dead {
			h.powerOff()
			w.set(func() { w.gone[h.id] = true })
		}
		// What is sent to a leader that has just died has an unknown fate.
		until(t, "the standby misses the leader", 10*time.Second, func() bool { return standby.get().Leader() == "" })
		if _, err := standby.get().Write(within(t, 20*time.Second), create("n", "x", "no")); !errors.Is(err, ErrNoLeader) {
			t.Fatalf("a write without a majority: %v", err)
		}
		now := Incarnation{Number: 1, ID: 5}
		at := standby.recover(t, reportsOf(t, standby), now, plain...)
		if at.Index < last.Revision() || at.Written.IsZero() {
			t.Errorf("it says that its log ends at %+v; the last write was %d", at, last.Revision())
		}
		took := until(t, "the standby leads", 2*time.Second, standby.get().IsLeader)
		t.Logf("it leads after %s", took)
		for i := range 50 {
			if r := standby.get().Store().Get("things", "n", fmt.Sprintf("o%d", i)); r == nil || value(r) != "kept" {
				t.Errorf("object %d is %v", i, r)
			}
		}
		after := mustWrite(t, standby.get(), "after", "new")
		if after.Revision() <= last.Revision()+revisionGap {
			t.Errorf("revision %d follows %d", after.Revision(), last.Revision())
		}
		// Who has seen what only the dead have must not resume from there.
		if _, err := standby.get().Store().Watch("things", "", last.Revision()+1); !errors.Is(err, ErrExpired) {
			t.Errorf("a watch from a revision of the dead: %v", err)
		}
		until(t, "the others follow", 10*time.Second, func() bool {
			return standby.get().IsLeader() && len(standby.get().Status().Servers) == 2
		})

		// The dead return together, as a majority of what they remember, and
		// nobody tells them anything but their peers.
		outdated := make(map[string]bool)
		for _, h := range dead {
			h.conf = func(c *Config) { c.Outdated = func() { w.set(func() { outdated[h.id] = true }) } }
			w.set(func() { w.noMaster[h.id] = true }) // nobody else starts it meanwhile
			h.powerOn()
		}
		synctest.Wait()
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		if len(outdated) == 0 {
			t.Error("none of the dead has noticed anything")
		}
		w.mu.Unlock()
		if standby.get().Leader() != standby.id {
			t.Errorf("the recovered cluster is led by %q", standby.get().Leader())
		}
		// They are told, give their logs up, and serve again.
		for _, h := range dead {
			h.adopt(now)
			w.set(func() { delete(w.noMaster, h.id) })
			if _, err := os.Stat(filepath.Join(Superseded(h.dir), voteFile)); err != nil {
				t.Errorf("the old log of %s is not kept: %v", h.id, err)
			}
		}
		until(t, "three voters", 30*time.Second, func() bool { return votersOf(hosts) == 3 })
		chief := leaderOf(hosts).get()
		mustWrite(t, chief, "whole", "again")
		for _, name := range []string{"o7", "last", "after", "whole"} {
			if chief.Store().Get("things", "n", name) == nil {
				t.Errorf("%s is lost", name)
			}
		}
		endAll(hosts)
	})
}

func isVoter(n *Node, id string) bool {
	for _, s := range n.Status().Servers {
		if s.ID == id {
			return s.Voter
		}
	}
	return false
}

// TestReturnedMajorityAsksFirst has the dead majority come back where it can
// reach those who know better, but not by raft: Confirm keeps it from writing.
func TestReturnedMajorityAsksFirst(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 1, 1)
		old := hosts[0]
		mustWrite(t, old.get(), "a", "1")
		old.end()
		asked := make(chan struct{}, 1)
		knows := errors.New("the cluster was recovered")
		old.conf = func(c *Config) {
			c.Confirm = func(context.Context) error {
				select {
				case asked <- struct{}{}:
				default:
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				return knows
			}
		}
		old.start(false)
		<-asked
		if _, err := old.get().Write(within(t, 5*time.Second), create("n", "b", "2")); err == nil {
			t.Error("it wrote")
		}
		if err := old.get().Sync(within(t, 5*time.Second)); err == nil {
			t.Error("it answered a read")
		}
		if old.get().IsLeader() {
			t.Error("it leads")
		}
		w.set(func() { knows = nil })
		mustWrite(t, old.get(), "b", "2")
		old.end()
	})
}

// TestRecoverKeepsWhatIsNotKnownToBeCommitted: the leader acknowledged a write
// and died before anybody heard that it counts.
func TestRecoverKeepsWhatIsNotKnownToBeCommitted(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 2, 1) // one voter, one standby
		until(t, "a standby", 10*time.Second, func() bool { return len(hosts[0].get().Status().Servers) == 2 })
		until(t, "it has all", 10*time.Second, func() bool {
			n := hosts[1].get()
			return n != nil && n.Status().Last == hosts[0].get().Status().Last
		})
		mustWrite(t, hosts[0].get(), "a", "1")
		until(t, "the standby has the entry", time.Second, func() bool {
			return hosts[1].get().Status().Last == hosts[0].get().Status().Last
		})
		hosts[0].powerOff()
		w.set(func() { w.gone["n0"] = true })
		hosts[1].recover(t, reportsOf(t, hosts[1]), Incarnation{Number: 1, ID: 1})
		until(t, "it leads", 2*time.Second, hosts[1].get().IsLeader)
		if r := hosts[1].get().Store().Get("things", "n", "a"); r == nil {
			t.Error("the write is lost")
		}
		// And once more, from what a recovery left.
		mustWrite(t, hosts[1].get(), "b", "2")
		hosts[1].recover(t, leaderless(t, hosts[1]), Incarnation{Number: 2, ID: 1})
		until(t, "it leads again", 2*time.Second, hosts[1].get().IsLeader)
		for _, name := range []string{"a", "b"} {
			if hosts[1].get().Store().Get("things", "n", name) == nil {
				t.Errorf("%s is lost", name)
			}
		}
		endAll(hosts)
	})
}

// leaderless is a report of a node that leads, as if it did not: recovering is not
// refused.
func leaderless(t *testing.T, h *host) []Report {
	r := reportsOf(t, h)
	r[0].Leader, r[0].Voters = "", []string{"gone"}
	return r
}

// TestSeedSettles cuts the planting off at each step: the folder holds the old
// log or the new one, whole.
func TestSeedSettles(t *testing.T) {
	now := Incarnation{Number: 1, ID: 3}
	make1 := func(t *testing.T) Seed {
		w := newWires()
		h := w.host(t, "n0")
		n := h.start(true)
		mustWrite(t, n, "a", "1")
		h.end()
		return Seed{ID: "n0", Dir: h.dir, Codec: jsonCodec{}, Incarnation: now}
	}
	for name, cut := range map[string]struct {
		undo func(dir string) error
		want Incarnation
	}{
		"before the old log was moved": {func(dir string) error {
			return errors.Join(os.Rename(dir, dir+freshSuffix), os.Rename(Superseded(dir), dir))
		}, Incarnation{}},
		"before the new log was moved": {func(dir string) error { return os.Rename(dir, dir+freshSuffix) }, now},
		"half-way through writing": {func(dir string) error {
			return errors.Join(os.Rename(dir, dir+freshSuffix), os.Remove(filepath.Join(dir+freshSuffix, incarnationFile)), os.Rename(Superseded(dir), dir))
		}, Incarnation{}},
		"not at all": {func(string) error { return nil }, now},
	} {
		t.Run(name, func(t *testing.T) {
			s := make1(t)
			if _, err := s.FromLog(); err != nil {
				t.Fatal(err)
			}
			if err := cut.undo(s.Dir); err != nil {
				t.Fatal(err)
			}
			of, err := Settle(s.Dir)
			if err != nil || of.Compare(cut.want) != 0 {
				t.Fatalf("the log is of %s, %v", of, err)
			}
			if has, err := HasState(s.Dir); err != nil || !has {
				t.Errorf("there is a log: %v, %v", has, err)
			}
			if _, err := os.Stat(s.Dir + freshSuffix); err == nil {
				t.Error("what was not finished is still there")
			}
		})
	}
}

func TestOlderLogIsRefused(t *testing.T) {
	w := newWires()
	h := w.host(t, "n0")
	h.start(true)
	h.end()
	h.conf = func(c *Config) { c.Incarnation = Incarnation{Number: 1, ID: 1} }
	if _, err := New(h.config()); !errors.Is(err, ErrSuperseded) {
		t.Errorf("opening an older log: %v", err)
	}
}

// TestStateStream carries a store from one cluster to another.
func TestStateStream(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		h := w.host(t, "n0")
		n := h.start(true)
		for i := range 100 {
			mustWrite(t, n, fmt.Sprintf("o%d", i), "v")
		}
		var stream bytes.Buffer
		state := n.State()
		mustWrite(t, n, "between", "v")
		at := state.Revision()
		if err := state.Write(&stream); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, n, "later", "v")
		h.end()
		other := newWires().host(t, "n9")
		other.conf = func(c *Config) { c.Incarnation = Incarnation{Number: 1, ID: 1} }
		seed := Seed{ID: "n9", Dir: other.dir, Codec: jsonCodec{}, Incarnation: Incarnation{Number: 1, ID: 1}}
		for i := 0; i < stream.Len(); i += 31 {
			bad := bytes.Clone(stream.Bytes())
			bad[i] ^= 0x10
			if _, err := Read(bytes.NewReader(bad), jsonCodec{}); err == nil {
				t.Fatalf("byte %d was changed unnoticed", i)
			}
			if _, err := Read(bytes.NewReader(stream.Bytes()[:i]), jsonCodec{}); err == nil {
				t.Fatalf("%d bytes of %d were enough", i, stream.Len())
			}
		}
		store, err := Read(bytes.NewReader(stream.Bytes()), jsonCodec{})
		if err != nil {
			t.Fatal(err)
		}
		if err := seed.FromStore(store); err != nil {
			t.Fatal(err)
		}
		m := other.start(false)
		until(t, "it leads", time.Second, m.IsLeader)
		records, _ := m.Store().List("things", "n")
		if len(records) != 100 || m.Store().Revision() < at+revisionGap {
			t.Errorf("%d objects at revision %d", len(records), m.Store().Revision())
		}
		other.end()
	})
}
