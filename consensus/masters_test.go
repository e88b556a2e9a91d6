package consensus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// set is how the leader's configuration looks: "n0 n1 n2 +n3" for three voters
// and a standby.
func set(hosts []*host) string {
	l := leaderOf(hosts)
	if l == nil {
		return "no leader"
	}
	var all []string
	for _, s := range l.get().Status().Servers {
		if s.Voter {
			all = append(all, s.ID)
		} else {
			all = append(all, "+"+s.ID)
		}
	}
	slices.SortFunc(all, func(a, b string) int {
		if a[0] == '+' != (b[0] == '+') {
			return strings.Compare(b, a)
		}
		return strings.Compare(a, b)
	})
	return strings.Join(all, " ")
}

// whole waits for so many voters and standbys, all of them alive.
func whole(t *testing.T, hosts []*host, voters, standbys int) {
	t.Helper()
	until(t, fmt.Sprintf("%d voters and %d standbys", voters, standbys), 90*time.Second, func() bool {
		l := leaderOf(hosts)
		if l == nil {
			return false
		}
		votes, others := 0, 0
		for _, s := range l.get().Status().Servers {
			h := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h.id == s.ID })]
			if !h.alive() || !l.w.reaches(l.id, h.id) {
				return false
			}
			if s.Voter {
				votes++
			} else {
				others++
			}
		}
		return votes == voters && others == standbys
	})
}

// scribe writes through a host for as long as it runs, and remembers what was
// acknowledged and the longest time that a write took.
type scribe struct {
	mu      sync.Mutex
	written []string
	longest time.Duration
	stop    context.CancelFunc
	done    sync.WaitGroup
}

func (s *scribe) follow(ctx context.Context, t *testing.T, h *host, every time.Duration) {
	s.done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			n := h.get()
			if n != nil && n.Leader() != "" && n.serves(h.id) {
				name := fmt.Sprintf("%s-%d", h.id, i)
				began := time.Now()
				_, err := n.Write(ctx, create("n", name, "1"))
				s.mu.Lock()
				if took := time.Since(began); err == nil {
					s.written = append(s.written, name)
					s.longest = max(s.longest, took)
				}
				s.mu.Unlock()
			}
			select {
			case <-time.After(every):
			case <-ctx.Done():
			}
		}
	})
}

// gap returns the longest time that a write took since the last call.
func (s *scribe) gap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.longest
	s.longest = 0
	return d
}

// memoryLog is raft's log in memory, which outlives its Node as a disk would.
type memoryLog struct{ *raft.InmemStore }

func (memoryLog) Close() error { return nil }

// real makes hosts do as the server does: a node that is no longer a master ends
// its replica and wipes it. Their logs are in memory.
func (w *wires) real() {
	var mu sync.Mutex
	logs, wiping := make(map[string]*raft.InmemStore), make(map[string]bool)
	w.conf = func(h *host, c *Config) {
		c.OpenLog = func() (LogStore, error) {
			mu.Lock()
			defer mu.Unlock()
			if logs[h.id] == nil {
				logs[h.id] = raft.NewInmemStore()
			}
			return memoryLog{logs[h.id]}, nil
		}
		c.Retired = func() {
			mu.Lock()
			wiping[h.id] = true
			mu.Unlock()
			h.end()
			h.mu.Lock()
			h.retired++
			h.mu.Unlock()
			os.RemoveAll(h.dir)
			mu.Lock()
			defer mu.Unlock()
			delete(wiping, h.id)
			delete(logs, h.id)
		}
		prepare := c.Prepare
		c.Prepare = func(ctx context.Context, id string) error {
			mu.Lock()
			busy := wiping[id]
			mu.Unlock()
			if busy {
				return errors.New("it is about to forget")
			}
			return prepare(ctx, id)
		}
	}
}

// TestMastersOneAfterAnother cuts the power of one master after another, every
// 15 seconds, until two of seven hosts are left; then all come back.
func TestMastersOneAfterAnother(t *testing.T) {
	for seed := range uint64(3) {
		bubble(t, func(t *testing.T, w *wires) {
			rng := rand.New(rand.NewPCG(seed, 7))
			w.real()
			hosts := cluster(t, w, 7, 5)
			whole(t, hosts, 5, 1)
			ctx, cancel := context.WithCancel(t.Context())
			s := &scribe{}
			var killed []*host
			for _, h := range hosts {
				s.follow(ctx, t, h, 200*time.Millisecond)
			}
			for len(killed) < 5 {
				time.Sleep(15 * time.Second)
				victim := leaderOf(hosts)
				if rng.IntN(3) > 0 { // any voter
					var voters []*host
					for _, h := range hosts {
						if n := h.get(); n != nil && w.reaches(h.id, victim.id) && slices.Contains(voterIDs(victim.get().configuration()), raft.ServerID(h.id)) {
							voters = append(voters, h)
						}
					}
					victim = voters[rng.IntN(len(voters))]
				}
				before := set(hosts)
				s.gap()
				victim.cut()
				killed = append(killed, victim)
				time.Sleep(2 * time.Second)
				w.set(func() { w.gone[victim.id] = true }) // gossip knows now
				time.Sleep(4 * time.Second)
				gap := s.gap()
				victim.end()
				t.Logf("seed %d: %s, %s killed: %.2f s, %s", seed, before, victim.id, gap.Seconds(), set(hosts))
				if gap > 1200*time.Millisecond {
					t.Errorf("a write took %s", gap)
				}
			}
			for _, h := range hosts {
				if h.alive() {
					if _, err := h.get().Write(within(t, time.Second), create("n", "last-"+h.id, "1")); err != nil {
						t.Errorf("at the end: %v", err)
					}
				}
			}
			for _, h := range killed {
				h.powerOn()
			}
			cancel()
			s.done.Wait()
			whole(t, hosts, 5, 1)
			before := set(hosts)
			time.Sleep(5 * time.Minute)
			if now := set(hosts); now != before {
				t.Errorf("in minutes in which nothing happened %s became %s", before, now)
			}
			for _, h := range hosts {
				n := h.get()
				if n == nil || !n.serves(h.id) {
					continue
				}
				if err := n.Sync(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
				lost := 0
				for _, name := range s.written {
					if n.Store().Get("things", "n", name) == nil {
						lost++
					}
				}
				if lost > 0 || len(s.written) < 1000 {
					t.Errorf("%s has lost %d of %d acknowledged writes", h.id, lost, len(s.written))
				}
			}
			endAll(hosts)
		})
	}
}

// TestOldLogDoesNoHarm brings a voter back that was removed while it was away,
// with its old log and a term far beyond the others': nobody notices, and it
// becomes a standby.
func TestOldLogDoesNoHarm(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.real()
		hosts := cluster(t, w, 4, 3)
		whole(t, hosts, 3, 1)
		chief := leaderOf(hosts)
		var away *host
		for _, h := range hosts {
			if h != chief && slices.Contains(voterIDs(chief.get().configuration()), raft.ServerID(h.id)) {
				away = h
			}
		}
		away.powerOff()
		w.set(func() { w.gone[away.id] = true })
		whole(t, hosts, 3, 0)
		vote, err := openVote(filepath.Join(away.dir, voteFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(vote.SetUint64([]byte("CurrentTerm"), 1000), vote.file.Close()); err != nil {
			t.Fatal(err)
		}
		term := chief.get().Status().Term
		ctx, cancel := context.WithCancel(t.Context())
		s := &scribe{}
		s.follow(ctx, t, chief, 20*time.Millisecond)
		away.powerOn()
		whole(t, hosts, 3, 1)
		time.Sleep(10 * time.Second)
		cancel()
		s.done.Wait()
		if away.retired != 1 || !away.alive() {
			t.Errorf("the node that was away was told %d times that it is out; it runs: %v", away.retired, away.alive())
		}
		if now := chief.get().Status(); now.State != "leader" || now.Term != term {
			t.Errorf("the leader of term %d is %s in term %d", term, now.State, now.Term)
		}
		if gap := s.gap(); gap > 100*time.Millisecond {
			t.Errorf("a write took %s", gap)
		}
		endAll(hosts)
	})
}

// TestRebalance gives a cluster a node in a zone of its own, and one with more
// memory: each gets a vote after a while, once, and nothing else moves.
func TestRebalance(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.real()
		zone := map[string]string{"n0": "x", "n1": "x", "n2": "y", "n3": "y", "n4": "z", "n5": "y"}
		w.about = func(m *Member) {
			m.Zone, m.Memory, m.DiskLatency = zone[m.ID], 2<<30, 2*time.Millisecond
			if m.ID == "n5" {
				m.Memory = 8 << 30
			}
		}
		hosts := cluster(t, w, 4, 3)
		whole(t, hosts, 3, 1)
		hosts = append(hosts, w.host(t, "n4"))
		time.Sleep(4 * time.Minute)
		if got := set(hosts); strings.Contains(got, "n4") {
			t.Errorf("it was in haste: %s", got)
		}
		time.Sleep(3 * time.Minute)
		if got := set(hosts); got != "n0 n2 n4 +n1" && got != "n0 n2 n4 +n3" && got != "n0 n3 n4 +n1" && got != "n0 n3 n4 +n2" {
			t.Errorf("the zones are x x y y z, and the masters %s", got)
		}
		hosts = append(hosts, w.host(t, "n5"))
		w.set(func() {})
		time.Sleep(10 * time.Minute)
		got := set(hosts)
		if !strings.HasPrefix(got, "n0 n4 n5 +") {
			t.Errorf("n5 has the most memory, and the masters are %s", got)
		}
		changes := leaderOf(hosts).get().Metrics().Changes
		time.Sleep(20 * time.Minute)
		if m := leaderOf(hosts).get().Metrics(); m.Changes != changes || set(hosts) != got {
			t.Errorf("%d changes were made at rest: from %s to %s", m.Changes-changes, got, set(hosts))
		}
		endAll(hosts)
	})
}

// TestStandbyIsRevivedMeanwhile: a standby that ends its replica is given another
// at once, also while an exchange is wanted that takes its time.
func TestStandbyIsRevivedMeanwhile(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		w.real()
		zone := map[string]string{"n0": "x", "n1": "x", "n2": "y", "n3": "y", "n4": "z"}
		w.about = func(m *Member) { m.Zone, m.Memory, m.DiskLatency = zone[m.ID], 2<<30, 2*time.Millisecond }
		hosts := cluster(t, w, 4, 3)
		whole(t, hosts, 3, 1)
		_, name, _ := strings.Cut(set(hosts), "+")
		standby := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h.id == name })]
		hosts = append(hosts, w.host(t, "n4"))
		time.Sleep(time.Minute)
		if got := set(hosts); strings.Contains(got, "n4") {
			t.Fatalf("nothing is waited for: %s", got)
		}
		standby.end()
		took := until(t, "the standby to follow again", 15*time.Second, func() bool { return standby.get() != nil })
		t.Logf("it follows again after %s", took)
		endAll(hosts)
	})
}

// TestLeaderKilledInItsFirstSeconds ends the first leader at many moments of a
// cluster's beginning, as SIGKILL would, and starts it again at once.
func TestLeaderKilledInItsFirstSeconds(t *testing.T) {
	for ms := 0; ms < 2400; ms += 60 {
		bubble(t, func(t *testing.T, w *wires) {
			w.real()
			hosts := []*host{w.host(t, "n0")}
			hosts[0].start(true)
			time.Sleep(time.Duration(ms%7) * 50 * time.Millisecond)
			hosts = append(hosts, w.host(t, "n1"), w.host(t, "n2"))
			time.Sleep(time.Duration(ms) * time.Millisecond)
			hosts[0].powerOff()
			w.set(func() { w.gone["n0"] = ms%2 == 0 })
			time.Sleep(time.Duration(ms%11) * 300 * time.Millisecond)
			hosts[0].powerOn()
			began := time.Now()
			if _, err := hosts[0].get().Write(within(t, time.Minute), create("n", "a", "1")); err != nil {
				t.Errorf("killed after %d ms: %v", ms, err)
			}
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("killed after %d ms: a write took %s", ms, took)
			}
			whole(t, hosts, 3, 0)
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("killed after %d ms: three voters took %s", ms, took)
			}
			endAll(hosts)
		})
	}
}

// TestAnswersProveLife: a voter that gossip has lost, because its address changed
// perhaps, and that has the log as well as the others, is no dead one.
func TestAnswersProveLife(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		l := leaderOf(hosts)
		unseen := hosts[0]
		if unseen == l {
			unseen = hosts[1]
		}
		votes := func() bool {
			servers := l.get().raft.Load().GetConfiguration().Configuration().Servers
			return slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == unseen.id && s.Suffrage == raft.Voter })
		}
		w.set(func() {
			w.about = func(m *Member) { m.Alive = m.ID != unseen.id }
		})
		time.Sleep(2 * time.Minute)
		if !votes() {
			t.Error("it was taken out")
		}
		w.set(func() { w.group[unseen.id] = 1 })
		until(t, "it to be taken out when it answers no more", 2*time.Minute, func() bool { return !votes() })
		endAll(hosts)
	})
}
