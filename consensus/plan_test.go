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
			case "failing":
				c.Failing = true
			case "lost":
				c.Lost, c.Reachable = true, false
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
				c.Up, _ = time.ParseDuration(v)
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

// TestPlan: a leads in all of them. A number before the servers is the target of
// a moment ago.
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
		{"one that could not be prepared is left alone", "a b c d:unprepared", "A B C", "keep"},
		{"five stay three", "a b c d:ready e", "A B C d", "keep"},
		{"seven become five", "a b c d:ready e:ready f g", "A B C d", "add e"},
		{"seven: both follow", "a b c d:ready e:ready f g", "A B C d e", "promote d"},
		{"seven: complete but for votes", "a b c d:ready e:ready f:ready g", "A B C d e f", "promote d"},
		{"seven: not alone", "a b c d:ready e f g", "A B C d e f", "keep…"},
		{"--no-master is not added", "a b:nomaster c", "A", "add c"},
		{"three nodes, one of them no master", "a b:nomaster c:ready", "A c", "keep"},

		{"a silent voter waits for its lease", "a b c:silent d:ready", "A B C d", "keep…"},
		{"a silent voter does not make others go", "a b c d e:silent", "5 A B C D E", "keep…"},
		{"a dead voter goes first", "a b c:dead d:ready", "A B C d", "remove c"},
		{"and is replaced", "a b c:dead d:ready", "A B d", "promote d"},
		{"a dead voter, somebody to wait for", "a b c:dead d", "A B C d", "remove c after a while"},
		{"a dead voter, somebody to add", "a b c:dead d", "A B C", "remove c after a while"},
		{"a dead voter without a replacement", "a b c:dead", "A B C", "remove c after a while"},
		{"two of an even number are worse", "a b:ready", "A B", "demote b"},
		{"a voter without its log goes at once", "a b c:lost", "A B C", "remove c"},
		{"and is the next to be added", "a b c", "A B", "add c"},
		{"a voter without its log goes before somebody is waited for", "a b c:lost d", "A B C d", "remove c"},
		{"a voter without its log, whose vote is needed", "a b:dead c:lost", "A B C", "keep…"},
		{"a majority is never given up", "a b:dead c:dead", "A B C", "keep"},
		{"one of two dead in five", "a b c d:dead e:dead f:ready g", "A B C D E f", "remove d"},
		{"two of five dead, nobody to replace them: three could lose one", "a b c d:dead e:dead", "5 A B C D E", "remove d"},
		{"four with one dead could lose none", "a b c e:dead", "5 A B C E", "remove e"},
		{"one of five dead, nobody to replace it: nothing is won", "a b c d e:dead", "5 A B C D E", "remove e after a while"},
		{"a dead standby is dropped", "a b c d:dead e", "A B C d", "remove d"},
		{"another stands by", "a b c d:dead e", "A B C", "add e"},
		{"a removal that would leave no majority", "a b c:dead d:suspect", "A B C", "remove c after a while"},
		{"a voter that lives and does not follow", "a b c:failing d:ready", "A B C d", "remove c"},
		{"it stays if nobody is ready", "a b c:failing d", "A B C d", "keep…"},
		{"one too many that does not follow goes", "a b c d e:failing", "A B C D E", "remove e after a while"},
		{"a standby that does not follow", "a b c d:failing e", "A B C d", "remove d"},
		{"it stays if there is no other", "a b c d:failing", "A B C d", "keep…"},

		{"a place is taken although six warrant three", "a b c d e:dead f:ready g", "5 A B C D f", "promote f"},
		{"six stay five for a while", "a b c d e f:ready", "5 A B C D E f", "keep"},
		{"shrinking from five", "a b c d e f", "A B C D E f", "demote e"},
		{"to three", "a b c d e:ready f", "A B C D e f", "demote d"},
		{"five warrant no more than there are", "a b c d:ready e:dead", "5 A B C d", "keep"},
		{"too many stand by", "a b c d:ready e:ready", "A B C d e", "remove e after a while"},

		{"a voter that became no master, replaced first", "a b:nomaster c d:ready", "A B C d", "promote d"},
		{"then it goes", "a b:nomaster c d", "A B C D", "remove b"},
		{"a voter that leaves, nobody to replace it", "a b c:leaving", "A B C", "remove c"},
		{"a voter that leaves, somebody to add", "a b c:leaving d", "A B C", "add d"},
		{"a voter that leaves, somebody to wait for", "a b c:leaving d", "A B C d", "keep…"},
		{"a voter that leaves, somebody in vain", "a b c:leaving d:failing", "A B C d", "remove c"},
		{"the leader leaves", "a:leaving b c d", "A B C D", "hand over a"},
		{"the leader of two leaves", "a:leaving b:ready", "A b", "promote b"},
		{"then hands over", "a:leaving b", "A B", "hand over a"},
		{"the last one cannot leave", "a:leaving", "A", "keep…"},

		{"other zones first", "a:zone=x b:zone=x,ready,memory=8 c:zone=y,ready", "A b c", "promote c"},
		{"more memory first", "a b:memory=1 c:memory=8", "A", "add c"},
		{"a faster disk first", "a b:disk=30ms c:disk=2ms", "A", "add c"},
		{"a longer uptime first", "a b:up=1h c:up=90h", "A", "add c"},
		{"the worst is demoted", "a b:memory=8 c:memory=1 d:memory=8 e:memory=8 f", "A B C D E f", "demote c"},
		{"a server that gossip never heard of", "a b c d", "A B C X d", "demote x"},

		{"a zone without a master gets one: add", "a:zone=x b:zone=x c:zone=y d:zone=y,ready e:zone=z", "A B C d", "add e for b"},
		{"wait", "a:zone=x b:zone=x c:zone=y d:zone=y,ready e:zone=z", "A B C d e", "keep for b…"},
		{"promote", "a:zone=x b:zone=x c:zone=y d:zone=y,ready e:zone=z,ready", "A B C d e", "promote e for b"},
		{"demote", "a:zone=x b:zone=x c:zone=y d:zone=y,ready e:zone=z", "A B C E d", "demote b"},
		{"tidy up", "a:zone=x b:zone=x,ready c:zone=y d:zone=z", "A C D b", "keep"},
		{"the zones are as even as can be", "a:zone=x b:zone=x c:zone=y d:zone=y,ready", "A B C d", "keep"},
		{"a far better standby", "a:memory=4,disk=1ms b:memory=4,disk=1ms c:memory=1,disk=9ms d:memory=4,disk=1ms,ready", "A B C d", "promote d for c"},
		{"a slightly better one", "a:memory=4,disk=1ms b:memory=4,disk=1ms c:memory=3,disk=1ms d:memory=4,disk=1ms,ready", "A B C d", "keep"},
		{"a much faster disk", "a:memory=4,disk=1ms b:memory=4,disk=1ms c:memory=4,disk=30ms d:memory=4,disk=2ms,ready", "A B C d", "promote d for c"},
		{"a long life alone moves nobody", "a:memory=4,disk=1ms b:memory=4,disk=1ms c:memory=4,disk=1ms d:memory=4,disk=1ms,ready,up=9999h", "A B C d", "keep"},
		{"nothing is known of it", "a b c d:memory=8,ready", "A B C d", "keep"},
		{"zones before memory", "a:zone=x,memory=4,disk=1ms b:zone=y,memory=1,disk=1ms c:zone=z,memory=4,disk=1ms d:zone=x,memory=8,disk=1ms,ready", "A B C d", "promote d for a by another leader"},
		{"the leader last", "a:memory=1,disk=1ms b:memory=2,disk=1ms c:memory=8,disk=1ms d:memory=8,disk=1ms,ready", "A B C d", "promote d for b"},
		{"the leader hands over", "a:memory=1,disk=1ms b:memory=8,disk=1ms c:memory=8,disk=1ms d:memory=8,disk=1ms,ready", "A B C d", "promote d for a by another leader"},
		{"no exchange while one is in doubt", "a:zone=x b:zone=x c:zone=y,suspect d:zone=z,ready", "A B C d", "promote d for b"},
		{"no exchange of one in doubt", "a:zone=x b:zone=y c:zone=y,suspect d:zone=y,suspect,ready e:zone=y", "A B C d", "keep…"},
		{"no exchange while one is missing", "a:zone=x b:zone=x c:dead d:zone=z,ready", "A B C d", "remove c"},
	} {
		t.Run(c.name, func(t *testing.T) {
			held := 0
			if number, rest, ok := strings.Cut(c.servers, " "); ok && number == "5" {
				held, c.servers = 5, rest
			}
			nodes := parseNodes(c.nodes)
			if strings.Contains(c.servers, "X") {
				nodes = append(nodes, candidate{Member: Member{ID: "x"}})
			}
			got := plan("a", nodes, parseServers(c.servers), held)
			text := strings.TrimSpace(got.step.String() + " " + got.id)
			if got.step == keep {
				text = "keep"
			}
			if got.after == saving {
				text += " after a while"
			}
			if got.after == better {
				text += " for " + got.instead
			}
			if got.step == handOver && got.after == better {
				text = "promote " + got.id + " for " + got.instead + " by another leader"
			}
			if got.step == keep && got.waits {
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
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	nodes   []candidate
	servers []raft.Server
	leader  string
	held    int
	history []string
}

func (w *world) say(format string, args ...any) {
	w.history = append(w.history, fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	var nodes []string
	for _, c := range w.nodes {
		nodes = append(nodes, fmt.Sprintf("%+v", c))
	}
	w.t.Fatalf("seed %d: %s\nleader %s, held %d, servers %v\n%s\nhistory:\n%s", w.seed, fmt.Sprintf(format, args...), w.leader, w.held, w.servers,
		strings.Join(nodes, "\n"), strings.Join(w.history[max(0, len(w.history)-25):], "\n"))
}

func (w *world) node(id string) *candidate {
	i := slices.IndexFunc(w.nodes, func(c candidate) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &w.nodes[i]
}

func (w *world) server(id string) *raft.Server {
	i := slices.IndexFunc(w.servers, func(s raft.Server) bool { return string(s.ID) == id })
	if i < 0 {
		return nil
	}
	return &w.servers[i]
}

// voters counts the votes: all, those that answer, and those of nodes that are
// not dead and may be masters.
func (w *world) voters() (all, answering, good int) {
	for _, s := range w.servers {
		if s.Suffrage == raft.Voter {
			all++
			c := w.node(string(s.ID))
			if c.Reachable {
				answering++
			}
			if !c.Dead && !c.NoMaster && !c.Leaving && !c.Failing && !c.Lost {
				good++
			}
		}
	}
	return all, answering, good
}

func (w *world) quorum() bool { all, answering, _ := w.voters(); return answering*2 > all }

// fit are the nodes that could be masters now.
func (w *world) fit() (n int) {
	for _, c := range w.nodes {
		if c.Alive && !c.NoMaster && !c.Leaving && !c.Suspect && !c.Unprepared && !c.Failing {
			n++
		}
	}
	return n
}

// apply makes a change and holds it against the promises.
func (w *world) apply(c change) {
	w.t.Helper()
	w.say("  %s %s %s", c.step, c.id, c.instead)
	had := w.quorum()
	_, _, good := w.voters()
	s := w.server(c.id)
	n := w.node(c.id)
	switch c.step {
	case add:
		if s != nil || n.NoMaster || n.Leaving || !n.Alive || n.Suspect {
			w.fail("adding %s, which is a server already or unfit", c.id)
		}
		w.servers = append(w.servers, raft.Server{ID: raft.ServerID(c.id), Suffrage: raft.Nonvoter})
	case promote:
		if s == nil || s.Suffrage == raft.Voter || !n.Ready || !n.Reachable || n.Suspect || n.NoMaster || n.Leaving {
			w.fail("promoting %s, which is no caught-up and stable non-voter", c.id)
		}
		s.Suffrage = raft.Voter
	case demote:
		if c.id == w.leader {
			w.fail("the leader takes its own vote")
		}
		s.Suffrage = raft.Nonvoter
	case remove:
		if c.id == w.leader {
			w.fail("the leader removes itself")
		}
		w.servers = slices.DeleteFunc(w.servers, func(s raft.Server) bool { return string(s.ID) == c.id })
		n.Unprepared = n.Unprepared || n.Failing // the loop does not try it again at once
		if n.Lost {
			n.Lost, n.Reachable = false, n.Alive
		}
	case handOver:
		w.elect()
	}
	if had && !w.quorum() {
		w.fail("%s %s left no majority that answers", c.step, c.id)
	}
	target := w.target()
	if _, _, now := w.voters(); now < good && now < target {
		w.fail("%s %s took a good voter: %d are left of %d", c.step, c.id, now, target)
	}
}

func (w *world) elect() {
	var able []string
	for _, s := range w.servers {
		if n := w.node(string(s.ID)); s.Suffrage == raft.Voter && string(s.ID) != w.leader && n.Reachable {
			able = append(able, n.ID)
		}
	}
	if len(able) == 0 {
		w.fail("there is nobody to hand over to")
	}
	w.leader = able[w.rng.IntN(len(able))]
	w.held = 0
	w.say("  %s leads", w.leader)
}

// target is how many voters there should be at least: the nodes that are dead
// or unfit do not count.
func (w *world) target() int {
	live, eligible := 0, 0
	for _, c := range w.nodes {
		if c.Alive && !c.Leaving {
			live++
			if !c.NoMaster {
				eligible++
			}
		}
	}
	want := voterTarget(live)
	for want > 1 && want > eligible {
		want -= 2
	}
	return want
}

// step looks once, as the leader's loop would. patient says whether what only
// saves or suits better has been wanted for long enough.
func (w *world) step(patient bool) change {
	w.t.Helper()
	p := newPlanner(w.leader, w.nodes, w.servers, 0)
	if patient || p.target > w.held {
		w.held = p.target
	}
	c := plan(w.leader, w.nodes, w.servers, w.held)
	if c.step != keep && (c.after == now || patient) {
		w.apply(c)
	}
	return c
}

// heal brings everybody back.
func (w *world) heal() {
	w.say("heal")
	for i := range w.nodes {
		c := &w.nodes[i]
		c.Alive, c.Reachable = true, !c.Lost
		c.Dead, c.Suspect, c.Failing, c.Leaving, c.Unprepared, c.Ready = false, false, false, false, false, false
	}
}

// settle lets nothing happen but what plan wants, until it wants no more.
func (w *world) settle() {
	w.t.Helper()
	w.say("settle")
	seen := map[string]bool{}
	for n := 0; ; n++ {
		for i := range w.nodes { // who lives catches up
			c := &w.nodes[i]
			c.Ready = c.Reachable && !c.Failing && w.server(c.ID) != nil
		}
		c := w.step(true)
		if c.step == keep {
			return
		}
		state := fmt.Sprint(w.leader, w.servers)
		if seen[state] && c.step != handOver {
			w.fail("it goes round in a circle")
		}
		seen[state] = true
		if n > 40 {
			w.fail("it does not settle within 40 changes")
		}
	}
}

// happen lets one thing happen.
func (w *world) happen() {
	c := &w.nodes[w.rng.IntN(len(w.nodes))]
	was, leads := *c, c.ID == w.leader
	switch w.rng.IntN(13) {
	case 0, 1: // dies; a lease ends later
		c.Alive, c.Reachable, c.Ready, c.Suspect, c.Failing = false, false, false, false, false
		c.Dead = w.rng.IntN(2) == 0 && !leads
	case 2:
		c.Dead = !c.Alive && !leads
	case 3, 4, 5: // is back
		c.Alive, c.Dead, c.Reachable, c.Leaving, c.Suspect, c.Failing, c.Ready = true, false, !c.Lost, false, false, false, false
	case 6:
		c.Leaving = c.Alive
	case 7:
		c.Suspect = c.Alive && w.rng.IntN(2) == 0
	case 8:
		c.Failing = c.Alive && !leads && w.rng.IntN(2) == 0
		c.Reachable = c.Alive && !c.Failing && !c.Lost
		c.Ready = c.Ready && c.Reachable
	case 9:
		c.NoMaster = w.rng.IntN(4) == 0
	case 10:
		c.Unprepared = w.rng.IntN(3) == 0
	case 12: // its disk has lost the log
		if s := w.server(c.ID); s != nil && s.Suffrage == raft.Voter && c.Alive && !leads {
			c.Lost, c.Reachable, c.Ready = true, false, false
		}
	case 11:
		c.Memory, c.DiskLatency, c.Zone = uint64(w.rng.IntN(5))<<30, time.Duration(w.rng.IntN(40))*time.Millisecond, fmt.Sprint(w.rng.IntN(3))
	}
	if !w.quorum() { // nobody plans then
		*c = was
		return
	}
	w.say("%+v", *c)
	if leads && !c.Alive {
		w.elect()
	}
	for i := range w.nodes { // the others catch up, or not
		if o := &w.nodes[i]; w.rng.IntN(2) == 0 {
			o.Ready = o.Reachable && w.server(o.ID) != nil
		}
	}
}

// TestPlanThroughHistories lets nodes come, die, doubt, return, change and leave
// at random, thousands of times. No change breaks a promise, and whenever
// nothing happens for a while the set becomes what it should be and stays so.
func TestPlanThroughHistories(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 5))
		w := &world{t: t, seed: seed, rng: rng, leader: "n0", servers: []raft.Server{{ID: "n0", Suffrage: raft.Voter}}}
		for i := range 1 + rng.IntN(9) {
			w.nodes = append(w.nodes, candidate{Member: Member{
				ID: fmt.Sprintf("n%d", i), Alive: true, NoMaster: i > 0 && rng.IntN(6) == 0, Zone: fmt.Sprint(rng.IntN(3)),
				Memory: uint64(rng.IntN(4)) << 30, DiskLatency: time.Duration(rng.IntN(20)) * time.Millisecond,
			}, Reachable: true})
		}
		for range 2000 {
			w.happen()
			for range rng.IntN(4) {
				w.step(rng.IntN(8) == 0)
			}
			if rng.IntN(10) == 0 {
				if rng.IntN(3) == 0 {
					w.heal()
				}
				w.settle()
				w.atRest()
			}
		}
	}
}

// atRest checks a world in which plan wants nothing more.
func (w *world) atRest() {
	w.t.Helper()
	target, fit := w.target(), w.fit()
	all, answering, good := w.voters()
	if good < min(target, fit) {
		// A voter that is silent without being dead is waited for.
		for _, s := range w.servers {
			if n := w.node(string(s.ID)); s.Suffrage == raft.Voter && (!n.Alive && !n.Dead || n.Suspect || n.Lost) {
				return
			}
		}
		if fit >= target {
			w.fail("%d good voters of %d, and %d nodes are fit", good, target, fit)
		}
	}
	eligible := 0
	for _, c := range w.nodes {
		if c.Alive && !c.NoMaster {
			eligible++
		}
		if c.Suspect || c.Leaving || c.Unprepared || c.Failing || c.Alive == c.Dead {
			return // somebody is in doubt: fewer or more may be right
		}
	}
	if eligible == 0 {
		return // somebody has to be a master
	}
	if all != target || answering != all || len(w.servers)-all != min(eligible-target, 1) {
		w.fail("%d voters of which %d answer, %d stand by; want %d", all, answering, len(w.servers)-all, target)
	}
	if _, out, found := newPlanner(w.leader, w.nodes, w.servers, 0).exchange(); found && target > 1 {
		w.fail("%s could be exchanged", out)
	}
}
