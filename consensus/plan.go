package consensus

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// candidate is what the leader knows of one node when it plans.
type candidate struct {
	Member
	// Up is how long its process has run.
	Up time.Duration
	// Dead: gossip does not see it, its lease has ended, and it does not answer
	// raft either, which may know a way that the others have not heard of.
	Dead bool
	// Reachable: it answered raft's heartbeats lately.
	Reachable bool
	// Ready: a non-voter that has had the whole log for a while.
	Ready bool
	// Failing: gossip sees it, and for long it has not had the log.
	Failing bool
	// Lost: gossip sees it, and it has no log any more. As a voter it is as good
	// as dead, and will never be back: whoever has lost its log gives no votes.
	Lost bool
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

// patience says for how long a change must have been wanted before it is made.
type patience uint8

const (
	now    patience = iota
	saving          // it makes nothing safer: a node that reboots is back by then
	better          // it exchanges a voter that does its work for one that suits better
)

// change is at most one step towards the master set that should be.
type change struct {
	step step
	id   string
	// instead is the voter that a better one is to replace.
	instead string
	after   patience
	// waits: what is awaited shows in health alone, so that the caller must
	// look again without an event.
	waits bool
}

// wish is what a change is for, through all of its steps.
func (c change) wish() change {
	if c.after == better {
		c.step, c.waits = keep, false
	}
	return c
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
// of voters only between two steps. held is the target of a moment ago, which
// is kept while there are nodes enough: whoever loses one may lose the next.
func plan(self string, nodes []candidate, servers []raft.Server, held int) change {
	p := newPlanner(self, nodes, servers, held)
	for _, rule := range []func() change{
		p.dropUseless, p.dropDeadVoters, p.promoteReady, p.retireUnwanted, p.addServer, p.shrink, p.rebalance, p.tidy,
	} {
		if c := rule(); c != (change{}) {
			return c
		}
	}
	return change{waits: p.waits()}
}

type planner struct {
	self   string
	nodes  map[string]candidate
	spare  []candidate // may be masters, not in the configuration
	voters []string
	others []string // non-voters
	good   []string // voters that may stay
	target int      // voters by the number of nodes that live now
	want   int      // voters
	wanted int      // servers in all
}

func newPlanner(self string, nodes []candidate, servers []raft.Server, held int) *planner {
	p := &planner{self: self, nodes: make(map[string]candidate)}
	in := make(map[string]bool)
	for _, s := range servers {
		in[string(s.ID)] = true
	}
	for _, n := range append([]candidate{{Member: Member{ID: self}}}, nodes...) {
		if n.ID == self { // this node is the one that thinks
			n.Alive, n.Suspect, n.Dead, n.Reachable, n.Failing, n.Lost = true, false, false, true, false, false
		}
		p.nodes[n.ID] = n
	}
	live, eligible := 0, 0
	for _, n := range p.nodes {
		here := n.Alive || in[n.ID] && !n.Dead // until its lease has ended too
		if here && !n.Leaving {
			live++
			if !n.NoMaster {
				eligible++
			}
		}
		if !in[n.ID] && n.eligible() && !n.Suspect && !n.Unprepared {
			p.spare = append(p.spare, n)
		}
	}
	upTo := func(voters int) int {
		for voters > 1 && voters > eligible {
			voters -= 2
		}
		return voters
	}
	p.target = upTo(voterTarget(live))
	p.want = upTo(max(p.target, held))
	p.wanted = min(p.want+1, max(eligible, 1))
	for _, s := range servers {
		id := string(s.ID)
		if s.Suffrage != raft.Voter {
			p.others = append(p.others, id)
			continue
		}
		p.voters = append(p.voters, id)
		if n := p.nodes[id]; !n.Dead && !n.Failing && !n.Lost && !n.Leaving && !n.NoMaster {
			p.good = append(p.good, id)
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

// dropUseless removes non-voters that are dead, must not be masters, or do not
// follow although another node might.
func (p *planner) dropUseless() change {
	for _, id := range p.others {
		if n := p.nodes[id]; n.Dead || n.NoMaster || n.Leaving || n.Failing && len(p.spare) > 0 {
			return change{step: remove, id: id}
		}
	}
	return change{}
}

// dropDeadVoters removes dead voters: at once where that lets the others lose
// one more, or where another node is ready to take the place; after a while
// otherwise. A dead one that is still a voter has its vote the moment it is
// back, and most are back soon. One that has lost its log goes at once, so that
// it can be given a new one; one that lives and does not follow goes only if
// another is ready, or if there are as many as there should be without it.
func (p *planner) dropDeadVoters() change {
	dead := 0
	for _, id := range p.voters {
		if p.nodes[id].Dead {
			dead++
		}
	}
	ready := len(p.ready()) > 0
	spared := ready || len(p.good) >= p.want
	for _, id := range p.voters {
		n := p.nodes[id]
		if !n.Dead && !n.Lost && !(n.Failing && spared) || !p.safe(without(p.voters, id)) {
			continue
		}
		c := change{step: remove, id: id}
		if safer := (len(p.voters)-dead)/2 < len(p.voters)/2; !safer && !ready && !n.Lost {
			c.after = saving
		}
		return c
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
		if n := p.nodes[id]; n.eligible() && !n.Suspect && !n.Failing {
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

// shrink gives up votes that the number of nodes no longer warrants, and the
// vote too many in the middle of an exchange.
func (p *planner) shrink() change {
	if len(p.good) > p.want && len(p.good) == len(p.voters) {
		if id := p.worst(p.good); p.safe(without(p.voters, id)) {
			return change{step: demote, id: id}
		}
	}
	return change{}
}

// rebalance exchanges a voter that does its work for a node that suits clearly
// better: the other one follows the log, then has its vote, and then shrink
// takes the vote of the worst. The leader itself goes last, and hands over
// before; one that is the only voter stays.
func (p *planner) rebalance() change {
	if p.want == 1 || len(p.good) != p.want || len(p.voters) != p.want {
		return change{}
	}
	in, out, found := p.exchange()
	c := change{id: in.ID, instead: out, after: better}
	switch spare := !slices.Contains(p.others, in.ID); {
	case !found:
		return change{}
	case spare:
		c.step = add
	case !in.Ready || !in.Reachable:
		c.waits = true // and nobody else has to go meanwhile
	case out == p.self:
		c.step = handOver
	case p.safe(append(slices.Clone(p.voters), in.ID)):
		c.step = promote
	}
	return c
}

// clearly is by how much another node must be worth more than a voter, to take
// its place.
const clearly = 0.75

// exchange finds the node that would improve the set of voters most, and the
// voter that it would replace; self only if there is no other such pair. What
// it finds makes fewer voters share a zone, or as many and the sum of their
// worth clearly larger: exchanges never go round in a circle.
func (p *planner) exchange() (in candidate, out string, found bool) {
	type gain struct {
		notSelf int
		zones   int
		worth   float64
	}
	var most gain
	best := ""
	for _, id := range slices.Concat(p.others, ids(p.spare)) {
		n := p.nodes[id]
		if !n.eligible() || n.Suspect || n.Failing {
			continue
		}
		for _, voter := range p.good {
			v := p.nodes[voter]
			if !v.Alive || v.Suspect {
				continue
			}
			g := gain{truth(voter != p.self), p.inZone(v) - p.inZone(n) + truth(v.Zone == n.Zone), n.worth() - v.worth()}
			if g.zones < 0 || g.zones == 0 && (g.worth < clearly || !n.known() || !v.known()) {
				continue
			}
			if d := cmp.Or(cmp.Compare(g.notSelf, most.notSelf), cmp.Compare(g.zones, most.zones),
				cmp.Compare(g.worth, most.worth), strings.Compare(best, id+voter)); best == "" || d > 0 {
				in, out, most, best = n, voter, g, id+voter
			}
		}
	}
	return in, out, best != ""
}

// tidy lets go of non-voters that nobody needs.
func (p *planner) tidy() change {
	// A voter that is silent, or has to go, will need a replacement.
	have := 0
	for _, id := range slices.Concat(p.voters, p.others) {
		if p.nodes[id].eligible() {
			have++
		}
	}
	if len(p.voters) <= p.want && have > p.wanted && len(p.others) > 0 {
		return change{step: remove, id: p.worst(p.others), after: saving}
	}
	return change{}
}

// waits says whether something is to be expected that no event announces: the
// end of a lease, a non-voter that catches up, or a node that leaves and does not
// go.
func (p *planner) waits() bool {
	for _, id := range p.voters {
		if n := p.nodes[id]; !n.Dead && !n.Reachable || n.Suspect || n.Bare {
			return true
		}
	}
	for _, id := range p.others {
		if n := p.nodes[id]; !n.Ready || !n.Alive || n.Suspect {
			return true
		}
	}
	for _, n := range p.nodes {
		if n.Leaving && n.Alive { // it may yet stay
			return true
		}
	}
	return false
}

// best is the node to trust most: in a zone with few voters, then worth most;
// then by id, so that all agree.
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
		cmp.Compare(truth(a.Failing), truth(b.Failing)),
		cmp.Compare(p.inZone(a), p.inZone(b)),
		-cmp.Compare(a.worth(), b.worth()),
		strings.Compare(a.ID, b.ID),
	)
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

func ids(from []candidate) (all []string) {
	for _, c := range from {
		all = append(all, c.ID)
	}
	slices.Sort(all)
	return all
}

// inZone counts the other voters in the node's zone. Nodes without a zone are
// in one together.
func (p *planner) inZone(n candidate) (count int) {
	for _, id := range p.good {
		if id != n.ID && p.nodes[id].Zone == n.Zone {
			count++
		}
	}
	return count
}

// worth says how well a node suits as a master, in points: one for each
// doubling of its memory, a quarter for each halving of the time that its disk
// takes, and up to a half for a long life. Thus twice the memory, or a disk
// eight times as fast, is clearly better, and a long life alone never is: a
// restart is no fault. Beyond the bounds nothing is gained.
func (c candidate) worth() float64 {
	memory, disk := c.Memory, c.DiskLatency
	if memory == 0 {
		memory = 1 << 30
	}
	if disk == 0 {
		disk = 8 * time.Millisecond
	}
	doublings := func(v, low, high float64) float64 { return math.Log2(min(max(v, low), high) / low) }
	return doublings(float64(memory), 1<<28, 8<<30) -
		doublings(disk.Seconds(), 0.001, 0.128)/4 +
		doublings(c.Up.Hours(), 1, 1024)/20
}

// known says whether the node has told what its worth depends on.
func (c candidate) known() bool { return c.Memory > 0 && c.DiskLatency > 0 }

// masterSet is how the set of masters is, for people.
type masterSet struct {
	// Voters that do their work, of Target; standbys that could replace one.
	Voters, Target, Standby int
	Problems                []string
}

// describe says how the set of masters is, and why it is not what it should
// be if nothing is under way that would make it so.
func (p *planner) describe() masterSet {
	s := masterSet{Target: p.want}
	for _, id := range p.good {
		if n := p.nodes[id]; n.Alive && n.Reachable {
			s.Voters++
		}
	}
	s.Standby = len(p.ready())
	var missing []string
	for _, id := range p.voters {
		if n := p.nodes[id]; n.Dead || n.Failing || n.Lost || !n.Alive {
			missing = append(missing, n.called(id))
		}
	}
	if s.Voters >= p.want && len(missing) == 0 {
		return s
	}
	slices.Sort(missing)
	what := fmt.Sprintf("%d of %d masters", s.Voters, max(s.Target, len(p.voters)))
	if len(missing) > 0 {
		what += ": " + strings.Join(missing, ", ") + " does not follow"
	}
	if len(p.spare) > 0 || p.catchingUp() {
		return s // another node is on its way
	}
	s.Problems = append(s.Problems, what+", and no node is fit to take the place: "+p.unfit())
	return s
}

// unfit says why each of the other nodes cannot be a master.
func (p *planner) unfit() string {
	var why []string
	for id, n := range p.nodes {
		name := n.called(id)
		switch {
		case slices.Contains(p.voters, id):
		case n.NoMaster && n.Alive:
			why = append(why, name+" was started with --no-master")
		case n.Leaving:
			why = append(why, name+" leaves")
		case !n.Alive:
			why = append(why, name+" does not answer")
		case n.Suspect:
			why = append(why, name+" is in doubt")
		case n.Unprepared:
			why = append(why, name+" could not be made one, see the leader's log")
		case n.Failing:
			why = append(why, name+" does not follow the log")
		}
	}
	if len(why) == 0 {
		return "there is none besides"
	}
	slices.Sort(why)
	return strings.Join(why, ", ")
}

func (c candidate) called(id string) string { return cmp.Or(c.Name, id) }
