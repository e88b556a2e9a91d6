package consensus

import (
	"cmp"
	"slices"
	"strings"

	"github.com/hashicorp/raft"
)

// candidate is what the leader knows of one node when it plans.
type candidate struct {
	Member
	// Dead: gossip does not see it and its lease has ended.
	Dead bool
	// Reachable: it answered raft's heartbeats lately.
	Reachable bool
	// Ready: a non-voter that has had the whole log for a while.
	Ready bool
	// Leaving: it asked to be taken out.
	Leaving bool
	// Unprepared: adding it failed a moment ago.
	Unprepared bool
}

type step uint8

const (
	keep     step = iota
	add           // as non-voter, after Prepare
	promote       // non-voter to voter
	demote        // voter to non-voter
	remove        // out of the configuration
	handOver      // leadership to another voter, so that this one can go
)

func (s step) String() string {
	return [...]string{"keep", "add", "promote", "demote", "remove", "hand over"}[s]
}

// change is at most one step towards the master set that should be.
type change struct {
	step step
	id   string
	// patient: the change only saves; the caller makes it once it has been
	// wanted for a while.
	patient bool
	// pending: what is waited for shows in health alone, so that the caller
	// must look again without an event.
	pending bool
}

// voterTarget is how many voters so many live nodes get.
func voterTarget(live int) int {
	switch {
	case live >= 7:
		return 5
	case live >= 3:
		return 3
	}
	return 1
}

// plan says what the leader self should change next. It never makes a change
// after which the voters that answer are no majority, and keeps an even number
// of voters only between two steps.
func plan(self string, nodes []candidate, servers []raft.Server) change {
	p := newPlanner(self, nodes, servers)
	for _, rule := range []func() change{
		p.dropUseless, p.dropDeadVoters, p.promoteReady, p.retireUnwanted, p.addServer, p.shrink,
	} {
		if c := rule(); c.step != keep {
			c.pending = true
			return c
		}
	}
	return change{pending: p.pending()}
}

type planner struct {
	self   string
	nodes  map[string]candidate
	spare  []candidate // may be masters, not in the configuration
	voters []string
	others []string // non-voters
	good   []string // voters that may stay
	want   int      // voters
	wanted int      // servers in all
}

func newPlanner(self string, nodes []candidate, servers []raft.Server) *planner {
	p := &planner{self: self, nodes: make(map[string]candidate)}
	live, eligible := 0, 0
	for _, n := range nodes {
		if n.ID == self { // this node is the one that thinks
			n.Alive, n.Suspect, n.Dead, n.Reachable = true, false, false, true
		}
		p.nodes[n.ID] = n
		if n.Alive && !n.Leaving {
			live++
		}
		if n.eligible() {
			eligible++
		}
	}
	if _, ok := p.nodes[self]; !ok {
		p.nodes[self] = candidate{Member: Member{ID: self, Alive: true}, Reachable: true}
		live, eligible = live+1, eligible+1
	}
	p.want = voterTarget(live)
	for p.want > 1 && p.want > eligible {
		p.want -= 2
	}
	p.wanted = min(p.want+1, max(eligible, 1))
	in := make(map[string]bool)
	for _, s := range servers {
		id := string(s.ID)
		in[id] = true
		if s.Suffrage != raft.Voter {
			p.others = append(p.others, id)
			continue
		}
		p.voters = append(p.voters, id)
		if n := p.nodes[id]; !n.Dead && !n.Leaving && !n.NoMaster {
			p.good = append(p.good, id)
		}
	}
	for _, n := range p.nodes {
		if !in[n.ID] && n.eligible() && !n.Suspect && !n.Unprepared {
			p.spare = append(p.spare, n)
		}
	}
	return p
}

func (c candidate) eligible() bool { return c.Alive && !c.NoMaster && !c.Leaving }

// safe says whether the voters that answer would still be a majority.
func (p *planner) safe(voters []string) bool {
	answer := 0
	for _, id := range voters {
		if p.nodes[id].Reachable {
			answer++
		}
	}
	return len(voters) > 0 && answer >= len(voters)/2+1
}

func without(ids []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(o string) bool { return o == id })
}

// dropUseless removes non-voters that are dead or must not be masters.
func (p *planner) dropUseless() change {
	for _, id := range p.others {
		if n := p.nodes[id]; n.Dead || n.NoMaster || n.Leaving {
			return change{step: remove, id: id}
		}
	}
	return change{}
}

// dropDeadVoters removes dead voters: at once where another node can take their
// place, after a while where none can. Three voters with one dead need two of
// the two that live, and so do the two alone; but a dead one that is still a
// voter has its vote the moment it is back, and most are back soon.
func (p *planner) dropDeadVoters() change {
	replaceable := len(p.spare) > 0 || p.catchingUp()
	for _, id := range p.voters {
		if p.nodes[id].Dead && p.safe(without(p.voters, id)) {
			odd := len(p.voters)%2 == 1
			return change{step: remove, id: id, patient: odd && !replaceable && len(p.voters) > 1}
		}
	}
	return change{}
}

// ready are the non-voters that could vote now.
func (p *planner) ready() (ids []candidate) {
	for _, id := range p.others {
		if n := p.nodes[id]; n.eligible() && !n.Suspect && n.Ready && n.Reachable {
			ids = append(ids, n)
		}
	}
	return ids
}

// promoteReady makes voters. Two voters are worse than one, so it takes a step
// to an even number only if the next one can follow, or if one has to go.
func (p *planner) promoteReady() change {
	ready := p.ready()
	if len(p.good) >= p.want || len(ready) == 0 {
		return change{}
	}
	even := (len(p.voters)+1)%2 == 0
	if even && len(ready) < 2 && len(p.good) == len(p.voters) {
		return change{}
	}
	best := p.best(ready)
	if !p.safe(append(slices.Clone(p.voters), best.ID)) {
		return change{}
	}
	return change{step: promote, id: best.ID}
}

// retireUnwanted takes the vote from nodes that leave or must not be masters,
// once there is nobody to wait for who could replace them.
func (p *planner) retireUnwanted() change {
	if len(p.good) == 0 || len(p.good) < p.want && (len(p.spare) > 0 || p.catchingUp()) {
		return change{}
	}
	for _, id := range p.voters {
		n := p.nodes[id]
		if n.Dead || !n.Leaving && !n.NoMaster || !p.safe(without(p.voters, id)) {
			continue
		}
		if id == p.self {
			return change{step: handOver, id: id}
		}
		return change{step: remove, id: id}
	}
	return change{}
}

func (p *planner) catchingUp() bool {
	for _, id := range p.others {
		if n := p.nodes[id]; n.eligible() && !n.Suspect {
			return true
		}
	}
	return false
}

// addServer lets another node follow the log, as a voter to be or a standby.
func (p *planner) addServer() change {
	have := len(p.good)
	for _, id := range p.others {
		if p.nodes[id].eligible() {
			have++
		}
	}
	if have >= p.wanted || len(p.spare) == 0 {
		return change{}
	}
	return change{step: add, id: p.best(p.spare).ID}
}

// shrink gives up what the number of nodes no longer warrants.
func (p *planner) shrink() change {
	if len(p.good) > p.want && len(p.good) == len(p.voters) {
		if id := p.worst(p.good); p.safe(without(p.voters, id)) {
			return change{step: demote, id: id, patient: true}
		}
	}
	// A voter that is silent, or has to go, will need a replacement.
	have := 0
	for _, id := range slices.Concat(p.voters, p.others) {
		if p.nodes[id].eligible() {
			have++
		}
	}
	if len(p.voters) <= p.want && have > p.wanted && len(p.others) > 0 {
		return change{step: remove, id: p.worst(p.others), patient: true}
	}
	return change{}
}

// pending says whether something is to be expected that no event announces.
func (p *planner) pending() bool {
	for _, id := range slices.Concat(p.voters, p.others) {
		if n := p.nodes[id]; !n.Alive || n.Suspect || n.Leaving || n.NoMaster {
			return true
		}
	}
	if len(p.good) < p.want && (len(p.others) > 0 || len(p.spare) > 0) {
		return true
	}
	for _, id := range p.others {
		if !p.nodes[id].Ready {
			return true
		}
	}
	for _, n := range p.nodes {
		if n.Unprepared {
			return true
		}
	}
	return false
}

// best is the node to trust most: in a zone with few voters, then with more
// memory, a faster disk, a longer uptime; then by id, so that all agree.
func (p *planner) best(from []candidate) candidate {
	return slices.MinFunc(from, p.compare)
}

// worst is the opposite, and never self.
func (p *planner) worst(ids []string) string {
	var from []candidate
	for _, id := range ids {
		if id != p.self {
			n := p.nodes[id]
			n.ID = id // a node that gossip does not know has nothing else
			from = append(from, n)
		}
	}
	if len(from) == 0 {
		return ""
	}
	return slices.MaxFunc(from, p.compare).ID
}

func (p *planner) compare(a, b candidate) int {
	return cmp.Or(
		// What gossip does not see is worse than all that it sees.
		cmp.Compare(truth(!a.Alive), truth(!b.Alive)),
		cmp.Compare(p.inZone(a), p.inZone(b)),
		-cmp.Compare(a.Memory>>28, b.Memory>>28), // in steps of 256 MiB
		cmp.Compare(a.DiskLatency.Milliseconds(), b.DiskLatency.Milliseconds()),
		a.Started.Compare(b.Started),
		strings.Compare(a.ID, b.ID),
	)
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// inZone counts the other voters in the node's zone.
func (p *planner) inZone(n candidate) (count int) {
	for _, id := range p.good {
		if id != n.ID && p.nodes[id].Zone == n.Zone && n.Zone != "" {
			count++
		}
	}
	return count
}
