package consensus

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// parseNodes reads "a b:nomaster c:dead,leaving": nodes that live and answer,
// but for what is said.
func parseNodes(text string) (nodes []candidate) {
	for _, f := range strings.Fields(text) {
		id, words, _ := strings.Cut(f, ":")
		c := candidate{Member: Member{ID: id, Alive: true}, Reachable: true}
		for _, word := range strings.Split(words, ",") {
			switch key, v, _ := strings.Cut(word, "="); key {
			case "":
			case "dead":
				c.Alive, c.Dead, c.Reachable = false, true, false
			case "silent": // gossip lost it, the lease has not ended
				c.Alive, c.Reachable = false, false
			case "suspect":
				c.Suspect = true
			case "nomaster":
				c.NoMaster = true
			case "leaving":
				c.Leaving = true
			case "ready":
				c.Ready = true
			case "unprepared":
				c.Unprepared = true
			case "zone":
				c.Zone = v
			case "memory":
				fmt.Sscan(v, &c.Memory)
				c.Memory <<= 30
			case "disk":
				c.DiskLatency, _ = time.ParseDuration(v)
			case "up":
				d, _ := time.ParseDuration(v)
				c.Started = time.Unix(1e9, 0).Add(-d)
			default:
				panic(word)
			}
		}
		nodes = append(nodes, c)
	}
	return nodes
}

// parseServers reads "A B c": voters in capitals.
func parseServers(text string) (servers []raft.Server) {
	for _, f := range strings.Fields(text) {
		s := raft.Server{ID: raft.ServerID(strings.ToLower(f)), Suffrage: raft.Nonvoter}
		if f != strings.ToLower(f) {
			s.Suffrage = raft.Voter
		}
		servers = append(servers, s)
	}
	return servers
}

// TestPlan: a leads in all of them.
func TestPlan(t *testing.T) {
	for _, c := range []struct{ name, nodes, servers, want string }{
		{"alone", "a", "A", "keep"},
		{"gossip does not know us yet", "", "A", "keep"},
		{"a second node stands by", "a b", "A", "add b"},
		{"two nodes keep one voter", "a b:ready", "A b", "keep"},
		{"a third node is added first", "a b:ready c", "A b", "add c"},
		{"two voters would be worse than one", "a b:ready c", "A b c", "keep…"},
		{"both can follow", "a b:ready c:ready", "A b c", "promote b"},
		{"from two to three", "a b c:ready", "A B c", "promote c"},
		{"three voters and no node to spare", "a b c", "A B C", "keep"},
		{"the fourth stands by", "a b c d", "A B C", "add d"},
		{"a suspect is not added", "a b c d:suspect", "A B C", "keep"},
		{"a suspect is not promoted", "a b c:ready,suspect", "A B c", "keep…"},
		{"one that could not be prepared is left alone", "a b c d:unprepared", "A B C", "keep…"},
		{"five stay three", "a b c d:ready e", "A B C d", "keep"},
		{"seven become five", "a b c d:ready e:ready f g", "A B C d", "add e"},
		{"seven: both follow", "a b c d:ready e:ready f g", "A B C d e", "promote d"},
		{"seven: complete but for votes", "a b c d:ready e:ready f:ready g", "A B C d e f", "promote d"},
		{"seven: not alone", "a b c d:ready e f g", "A B C d e f", "keep…"},
		{"--no-master is not added", "a b:nomaster c", "A", "add c"},
		{"three nodes, one of them no master", "a b:nomaster c:ready", "A c", "keep"},
		{"a silent voter waits for its lease", "a b c:silent d:ready", "A B C d", "keep…"},
		{"a dead voter goes first", "a b c:dead d:ready", "A B C d", "remove c"},
		{"and is replaced", "a b c:dead d:ready", "A B d", "promote d"},
		{"a dead voter without a replacement", "a b c:dead", "A B C", "remove c patiently"},
		{"a majority is never given up", "a b:dead c:dead", "A B C", "keep…"},
		{"one of two dead in five", "a b c d:dead e:dead f:ready g", "A B C D E f", "remove d"},
		{"a dead standby is dropped", "a b c d:dead e", "A B C d", "remove d"},
		{"another stands by", "a b c d:dead e", "A B C", "add e"},
		{"a removal that would leave no majority", "a b c:dead d:suspect", "A B C", "remove c patiently"},
		{"shrinking is patient", "a b", "A B", "demote b patiently"},
		{"shrinking from five", "a b c d e f", "A B C D E", "demote e patiently"},
		{"too many stand by", "a b c d:ready e:ready", "A B C d e", "remove e patiently"},
		{"a voter that became no master, replaced first", "a b:nomaster c d:ready", "A B C d", "promote d"},
		{"then it goes", "a b:nomaster c d", "A B C D", "remove b"},
		{"a voter that leaves, nobody to replace it", "a b c:leaving", "A B C", "remove c"},
		{"a voter that leaves, somebody to add", "a b c:leaving d", "A B C", "add d"},
		{"a voter that leaves, somebody to wait for", "a b c:leaving d", "A B C d", "keep…"},
		{"the leader leaves", "a:leaving b c d", "A B C D", "hand over a"},
		{"the leader of two leaves", "a:leaving b:ready", "A b", "promote b"},
		{"then hands over", "a:leaving b", "A B", "hand over a"},
		{"the last one cannot leave", "a:leaving", "A", "keep…"},
		{"other zones first", "a:zone=x b:zone=x,ready,memory=8 c:zone=y,ready", "A b c", "promote c"},
		{"more memory first", "a b:memory=1 c:memory=8", "A", "add c"},
		{"a faster disk first", "a b:disk=30ms c:disk=2ms", "A", "add c"},
		{"a longer uptime first", "a b:up=1h c:up=90h", "A", "add c"},
		{"the worst is demoted", "a b:memory=8 c:memory=1 d:memory=8 e:memory=8 f", "A B C D E", "demote c patiently"},
		{"a server that gossip never heard of", "a b c d", "A B C X", "demote x patiently"},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := parseNodes(c.nodes)
			if strings.Contains(c.servers, "X") {
				nodes = append(nodes, candidate{Member: Member{ID: "x"}})
			}
			got := plan("a", nodes, parseServers(c.servers))
			text := strings.TrimSpace(got.step.String() + " " + got.id)
			if got.patient {
				text += " patiently"
			}
			if got.step == keep && got.pending {
				text += "…"
			}
			if text != c.want {
				t.Errorf("%s with %s: got %q, want %q", c.servers, c.nodes, text, c.want)
			}
		})
	}
}

// world is a cluster as plan sees it, which changes as plan says.
type world struct {
	nodes   []candidate
	servers []raft.Server
	leader  string
}

func (w *world) node(id string) *candidate {
	i := slices.IndexFunc(w.nodes, func(c candidate) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &w.nodes[i]
}

func (w *world) voters() (all, answering int) {
	for _, s := range w.servers {
		if s.Suffrage == raft.Voter {
			all++
			if c := w.node(string(s.ID)); c != nil && c.Reachable {
				answering++
			}
		}
	}
	return all, answering
}

func (w *world) apply(t *testing.T, c change) {
	i := slices.IndexFunc(w.servers, func(s raft.Server) bool { return string(s.ID) == c.id })
	switch c.step {
	case add:
		if i >= 0 {
			t.Fatalf("adding %s, which is a server", c.id)
		}
		w.servers = append(w.servers, raft.Server{ID: raft.ServerID(c.id), Suffrage: raft.Nonvoter})
	case promote:
		if i < 0 || w.servers[i].Suffrage == raft.Voter || !w.node(c.id).Ready {
			t.Fatalf("promoting %s, which was no caught-up non-voter", c.id)
		}
		w.servers[i].Suffrage = raft.Voter
	case demote:
		w.servers[i].Suffrage = raft.Nonvoter
	case remove:
		if c.id == w.leader {
			t.Fatal("the leader removes itself")
		}
		w.servers = slices.Delete(w.servers, i, i+1)
	case handOver:
		for _, s := range w.servers {
			if n := w.node(string(s.ID)); s.Suffrage == raft.Voter && string(s.ID) != w.leader && n.Reachable {
				w.leader = n.ID
				return
			}
		}
		t.Fatal("there is nobody to hand over to")
	}
}

// TestPlanKeepsQuorumAndSettles lets nodes come, die, return and leave at
// random. Every change keeps an answering majority, and once nothing happens
// the set becomes what it should be and stays so.
func TestPlanKeepsQuorumAndSettles(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 5))
		w := &world{leader: "n0", servers: []raft.Server{{ID: "n0", Suffrage: raft.Voter}}}
		for i := range 1 + rng.IntN(9) {
			w.nodes = append(w.nodes, candidate{Member: Member{
				ID: fmt.Sprintf("n%d", i), Alive: true, NoMaster: i > 0 && rng.IntN(6) == 0, Zone: fmt.Sprint(rng.IntN(3)), Memory: uint64(rng.IntN(4)) << 30,
			}, Reachable: true})
		}
		settle := func() {
			for n := 0; ; n++ {
				if n > 100 {
					t.Fatalf("seed %d: it never settles: %v", seed, w.servers)
				}
				for i := range w.nodes { // who lives catches up
					w.nodes[i].Ready = w.nodes[i].Reachable
				}
				c := plan(w.leader, w.nodes, w.servers)
				if c.step == keep {
					return
				}
				before, beforeAnswering := w.voters()
				w.apply(t, c)
				all, answering := w.voters()
				if beforeAnswering*2 > before && answering*2 <= all {
					t.Fatalf("seed %d: %s %s left %d of %d voters answering", seed, c.step, c.id, answering, all)
				}
			}
		}
		settle()
		for range 12 {
			// Something happens to a node other than the leader that leaves the
			// voters a majority.
			c := &w.nodes[rng.IntN(len(w.nodes))]
			was := *c
			switch rng.IntN(3) {
			case 0:
				c.Alive, c.Dead, c.Reachable, c.Ready = false, true, false, false
			case 1:
				c.Alive, c.Dead, c.Reachable, c.Leaving = true, false, true, false
			default:
				c.Leaving = true
			}
			if all, answering := w.voters(); c.ID == w.leader && c.Dead || answering*2 <= all {
				*c = was
				continue
			}
			settle()
		}
		// At rest: as many voters as there should be, all of them good.
		live, eligible := 0, 0
		for _, c := range w.nodes {
			if c.Alive && !c.Leaving {
				live++
			}
			if c.eligible() {
				eligible++
			}
		}
		want := voterTarget(live)
		for want > 1 && want > eligible {
			want -= 2
		}
		all, answering := w.voters()
		spare := len(w.servers) - all
		if eligible == 0 {
			continue // only nodes that want to go: somebody must stay
		}
		if all != want || answering != all || spare != min(eligible-want, 1) {
			t.Errorf("seed %d: %d live, %d eligible: %d voters of which %d answer, %d standing by; want %d", seed, live, eligible, all, answering, spare, want)
		}
		for _, s := range w.servers {
			if c := w.node(string(s.ID)); !c.eligible() {
				t.Errorf("seed %d: %s is still a server", seed, s.ID)
			}
		}
	}
}
