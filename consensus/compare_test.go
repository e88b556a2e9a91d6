package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// spoil overwrites the newest entry of a stopped host's log.
func (h *host) spoil() {
	h.t.Helper()
	log, err := openBolt(filepath.Join(h.dir, logFile), false)
	if err != nil {
		h.t.Fatal(err)
	}
	var l raft.Log
	last, err := log.LastIndex()
	if err == nil {
		err = log.GetLog(last, &l)
	}
	if err != nil || l.Type != raft.LogCommand {
		h.t.Fatalf("%v: the newest entry is %+v", err, l)
	}
	l.Data[len(l.Data)/2] ^= 1
	if err := errors.Join(log.StoreLog(&l), log.Close()); err != nil {
		h.t.Fatal(err)
	}
}

// beginAnew waits for the host's process to end of damage, and does with its log
// what the server does.
func (h *host) beginAnew(err error) {
	h.t.Helper()
	if !errors.Is(err, ErrDamaged) {
		h.t.Errorf("%s ended with %v", h.id, err)
	}
	if err := SetDamagedAside(h.dir); err != nil {
		h.t.Error(err)
	}
	if _, err := os.Stat(Damaged(h.dir)); err != nil {
		h.t.Errorf("the damaged log is not kept: %v", err)
	}
}

// bareness has gossip tell who runs no replica.
func bareness(w *wires) {
	w.about = func(m *Member) { m.Bare = !w.hosts[m.ID].alive() }
}

// TestDamagedLogIsReplaced flips one bit of a voter's newest entry while it is
// stopped. It must not go on with it; the others take its vote and give it a new
// log, though nobody else could take the place.
func TestDamagedLogIsReplaced(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		bareness(w)
		hosts := cluster(t, w, 3, 3)
		for i := range 20 {
			mustWrite(t, leaderOf(hosts).get(), fmt.Sprintf("o%d", i), "kept")
		}
		hurt := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leaderOf(hosts) })]
		until(t, "it has everything", time.Second, func() bool { return hurt.get().Store().Get("things", "n", "o19") != nil })
		hurt.end()
		hurt.spoil()
		n, err := New(hurt.config())
		if err == nil {
			err = errors.Join(errors.New("the damage went unnoticed"), n.Close())
		}
		hurt.beginAnew(err)
		until(t, "its vote is taken", time.Minute, func() bool { return votersOf(hosts) == 2 })
		until(t, "it has a vote again", time.Minute, func() bool { return votersOf(hosts) == 3 })
		until(t, "it has everything again", 10*time.Second, func() bool {
			return hurt.get() != nil && hurt.get().Store().Get("things", "n", "o19") != nil
		})
		mustWrite(t, hurt.get(), "after", "new")
		endAll(hosts)
	})
}

// TestStatesAreCompared changes the state of one replica behind raft's back: of
// a follower, which begins anew, and of the leader, which all others contradict.
func TestStatesAreCompared(t *testing.T) {
	for _, of := range []string{"a follower", "the leader"} {
		t.Run(of, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *wires) {
				bareness(w)
				w.conf = func(_ *host, c *Config) { c.Compare = time.Minute }
				hosts := cluster(t, w, 3, 3)
				for i := range 5 {
					mustWrite(t, leaderOf(hosts).get(), fmt.Sprintf("o%d", i), "kept")
				}
				time.Sleep(3 * time.Minute)
				if votersOf(hosts) != 3 {
					t.Fatal("equal states were found to differ")
				}
				leader := leaderOf(hosts)
				hurt := leader
				if of == "a follower" {
					hurt = hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leader })]
				}
				s := hurt.get().store
				s.mu.Lock()
				s.resource("things").tree.Delete(&record{namespace: "n", name: "o1"})
				s.sum = s.count() // as if it had never been applied
				s.mu.Unlock()
				mustWrite(t, leader.get(), "more", "to compare")

				hurt.mu.Lock()
				done := hurt.done
				hurt.mu.Unlock()
				err := <-done
				hurt.mu.Lock()
				hurt.node = nil
				hurt.mu.Unlock()
				w.changed.fire()
				hurt.beginAnew(err)
				until(t, "it has a vote again", 2*time.Minute, func() bool { return votersOf(hosts) == 3 && hurt.get() != nil })
				until(t, "it has everything again", 10*time.Second, func() bool { return hurt.get().Store().Get("things", "n", "o1") != nil })
				time.Sleep(3 * time.Minute)
				if votersOf(hosts) != 3 {
					t.Error("equal states were found to differ")
				}
				endAll(hosts)
			})
		})
	}
}

// TestMark: replicas of different versions of this program compare their sums, so
// a mark is what it always was: FNV-1a of the names, each with a 0 behind it, and
// of the revision, its lowest byte first.
func TestMark(t *testing.T) {
	r := &resource{name: "pods"}
	for _, o := range []*record{{}, {namespace: "default", name: "web-0", revision: 1}, {name: "größer", revision: 1 << 60}, {namespace: "a", name: "b", revision: 0xfedcba9876543210}} {
		h := fnv.New64a()
		for _, s := range []string{r.name, o.namespace, o.name} {
			h.Write(append([]byte(s), 0))
		}
		h.Write(binary.LittleEndian.AppendUint64(nil, o.revision))
		if got, want := r.mark(o), h.Sum64(); got != want {
			t.Errorf("%s/%s at %d has the mark %x, want %x", o.namespace, o.name, o.revision, got, want)
		}
	}
}
