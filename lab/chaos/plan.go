package chaos

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is what is done to a host.
type Kind string

// The kinds of fault.
const (
	Kill      Kind = "kill"        // SIGKILL to conclave, which is started again afterwards
	Stop      Kind = "stop"        // SIGTERM instead
	PowerOff  Kind = "power-off"   // the host loses its power, and boots afterwards
	Readdress Kind = "new-address" // as power-off, and it boots with another address
	Pause     Kind = "pause"       // SIGSTOP to conclave, SIGCONT afterwards
	Isolate   Kind = "isolate"     // the hosts are cut off from all others, both ways
	Deaf      Kind = "deaf"        // the hosts hear no other one
	Mute      Kind = "mute"        // no other host hears them
	Partial   Kind = "partial"     // the hosts are cut off from the peers only, both ways
	Lossy     Kind = "lossy"       // the hosts lose some of the packets that come to them
	Skew      Kind = "skew"        // the wall clock of conclave is wrong
	Fill      Kind = "fill-disk"   // no room is left on the host's disk
	Corrupt   Kind = "corrupt-log" // SIGKILL to a master's conclave, whose newest log entry is then noise
)

// Fault is one thing done to hosts, and undone after a time.
type Fault struct {
	Step  int           `json:"step"`
	Kind  Kind          `json:"kind"`
	Hosts []string      `json:"hosts"`
	Peers []string      `json:"peers,omitempty"`
	By    time.Duration `json:"by,omitempty"`   // Skew
	Loss  int           `json:"loss,omitempty"` // Lossy: percent
	For   time.Duration `json:"for"`
}

func (f Fault) String() string {
	text := fmt.Sprintf("%s %s", f.Kind, strings.Join(f.Hosts, ","))
	switch f.Kind {
	case Partial:
		text += " from " + strings.Join(f.Peers, ",")
	case Skew:
		text += " by " + f.By.String()
	case Lossy:
		text += fmt.Sprintf(" %d%%", f.Loss)
	}
	return fmt.Sprintf("%s for %.1f s", text, f.For.Seconds())
}

// sort is what Plan has to know of a kind.
type sort struct {
	kind   Kind
	weight int
	// most hosts that one such fault takes away together.
	most int
	// least and longest time that it lasts.
	least, longest time.Duration
	// hits says whether it can be done to a host.
	hits func(HostState) bool
}

func present(h HostState) bool   { return !h.Away }
func rightTime(h HostState) bool { return !h.Skewed }
func keepsLog(h HostState) bool  { return !h.Away && (h.Role.votes() || h.Role == Standby) }

var sorts = []sort{
	{Kill, 5, 1, 0, 15 * time.Second, present},
	{Stop, 2, 1, 0, 15 * time.Second, present},
	{PowerOff, 4, 2, time.Second, 25 * time.Second, present},
	{Readdress, 1, 1, time.Second, 10 * time.Second, present},
	{Pause, 3, 1, 200 * time.Millisecond, 20 * time.Second, present},
	{Isolate, 4, 3, 300 * time.Millisecond, 20 * time.Second, present},
	{Deaf, 2, 1, 300 * time.Millisecond, 15 * time.Second, present},
	{Mute, 2, 1, 300 * time.Millisecond, 15 * time.Second, present},
	{Partial, 2, 1, 300 * time.Millisecond, 15 * time.Second, present},
	{Lossy, 2, 1, time.Second, 15 * time.Second, present},
	{Skew, 2, 1, time.Second, 60 * time.Second, rightTime},
	{Fill, 2, 1, time.Second, 10 * time.Second, present},
	{Corrupt, 2, 1, 0, 5 * time.Second, keepsLog},
}

// Kinds are the names of all kinds of fault.
func Kinds() (names []string) {
	for _, k := range sorts {
		names = append(names, string(k.kind))
	}
	return names
}

// skews are by how much clocks are made wrong: a certificate of a node is good
// for a week, so that days would be beyond what is promised.
var skews = []time.Duration{time.Second, 90 * time.Second, time.Hour, 20 * time.Hour}

// losses are how many of a hundred packets are lost.
var losses = []int{2, 10, 30}

// takesAway says whether hosts cannot do their duties under a fault.
func (k Kind) takesAway() bool { return k != Skew }

// silences says whether a fault keeps hosts from being heard by all others, so
// that these have to do without.
func (k Kind) silences() bool {
	return slices.Contains([]Kind{Kill, Stop, PowerOff, Readdress, Pause, Isolate, Mute, Corrupt}, k)
}

// Role is what a host's node is in the cluster.
type Role string

// The roles, as `conclave status` calls them.
const (
	Leader  Role = "leader"
	Master  Role = "master"
	Standby Role = "standby"
	Plain   Role = "node"
)

func (r Role) votes() bool { return r == Leader || r == Master }

// HostState is what is known of one host.
type HostState struct {
	Name string
	Role Role
	// Away: a fault is in force that keeps it from its duties. Noticed: for so
	// long that nobody would give it a vote.
	Away, Noticed bool
	// Skewed: its clock is wrong.
	Skewed bool
}

// State is what Plan decides upon.
type State struct {
	Hosts []HostState
	// Whole: there are as many voters as should be, all of them healthy, and a
	// standby where a host is spare.
	Whole bool
	// Cannot are the kinds that cannot be done here.
	Cannot []Kind
	// Beyond lifts the bounds of what the cluster promises to bear; but a log
	// that a majority has lost would be gone.
	Beyond bool
}

// hostLimit is how many hosts may be away at once: without a majority of its
// hosts a cluster may be left with fewer voters than it should have.
func hostLimit(hosts int) int { return (hosts - 1) / 2 }

// choices are how many kinds a step has to choose from: were there more, what is
// always allowed would be done all the time.
const choices = 3

// Plan says what to do next, or false to look again later. The same seed, step
// and state give the same fault.
func Plan(seed uint64, step int, s State) (Fault, bool) {
	rng := rand.New(rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%d/%d", seed, step))))
	// All that the seed decides is drawn first, in one order, whatever the state.
	role := drawRole(rng)
	kinds := drawKinds(rng)
	hosts := slices.Clone(s.Hosts)
	slices.SortFunc(hosts, func(a, b HostState) int { return strings.Compare(a.Name, b.Name) })
	rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	count, length := rng.IntN(3)+1, rng.Float64()
	by, loss := skews[rng.IntN(len(skews))], losses[rng.IntN(len(losses))]
	if rng.IntN(2) == 0 {
		by = -by
	}
	if role.votes() && !s.Whole && !s.Beyond {
		return Fault{}, false // the seed wants a voter: it waits until one may go
	}
	slices.SortStableFunc(hosts, func(a, b HostState) int { return preference(role, a) - preference(role, b) })
	kinds = slices.DeleteFunc(kinds, func(k sort) bool { return slices.Contains(s.Cannot, k.kind) })
	for _, k := range kinds[:min(choices, len(kinds))] {
		able := slices.DeleteFunc(slices.Clone(hosts), func(h HostState) bool { return !k.hits(h) })
		for n := min(count, k.most, len(able)); n > 0; n-- {
			f := Fault{Step: step, Kind: k.kind, For: k.least + time.Duration(length*length*float64(k.longest-k.least))}
			for _, h := range able[:n] {
				f.Hosts = append(f.Hosts, h.Name)
			}
			switch k.kind {
			case Partial:
				f.Peers = peers(able[n:])
			case Skew:
				f.By = by
			case Lossy:
				f.Loss = loss
			}
			if s.allows(f) {
				return f, true
			}
		}
	}
	return Fault{}, false
}

// preference orders the hosts: those of the role that the seed wants first, then
// those whose loss costs least.
func preference(want Role, h HostState) int {
	if h.Role == want {
		return 0
	}
	return 1 + slices.Index([]Role{Plain, Standby, Master, Leader}, h.Role)
}

// drawRole chooses what kind of host the next fault shall hit.
func drawRole(rng *rand.Rand) Role {
	switch n := rng.IntN(100); {
	case n < 30:
		return Leader
	case n < 60:
		return Master
	case n < 70:
		return Standby
	}
	return Plain
}

// drawKinds puts all kinds in an order in which the heavy ones tend to be first.
func drawKinds(rng *rand.Rand) []sort {
	left := slices.Clone(sorts)
	var order []sort
	for len(left) > 0 {
		total := 0
		for _, k := range left {
			total += k.weight
		}
		n := rng.IntN(total)
		i := 0
		for ; n >= left[i].weight; i++ {
			n -= left[i].weight
		}
		order, left = append(order, left[i]), slices.Delete(left, i, i+1)
	}
	return order
}

// peers are those from which a host is cut off in part: half of the others, so
// that every two hosts still have a way round.
func peers(others []HostState) (names []string) {
	for _, h := range others[:len(others)/2] {
		names = append(names, h.Name)
	}
	return names
}

// allows says whether a fault stays within what the guarantees promise.
func (s State) allows(f Fault) bool {
	switch {
	case f.Kind == Partial && len(f.Peers) == 0:
		return false
	case s.Beyond && f.Kind != Corrupt, !f.Kind.takesAway():
		return true
	}
	away, voters, risky, touches, voting := 0, 0, 0, false, false
	for _, h := range s.Hosts {
		hit := slices.Contains(f.Hosts, h.Name)
		if h.Role.votes() {
			voters++
			touches = touches || hit
		}
		if !hit && !h.Away {
			continue
		}
		away++
		// Any other host may be about to get a vote, unknown to us.
		if h.Role.votes() || hit || !h.Noticed {
			risky++
		}
		voting = voting || h.Role.votes()
	}
	switch {
	case away > hostLimit(len(s.Hosts)), touches && !s.Whole:
		return false
	case s.Whole && !voting:
		return true
	}
	return risky <= (voters-1)/2
}
