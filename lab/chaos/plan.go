package chaos

import (
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
)

// Fault is one thing done to hosts, and undone after a time.
type Fault struct {
	Step  int           `json:"step"`
	Kind  Kind          `json:"kind"`
	Hosts []string      `json:"hosts"`
	Peers []string      `json:"peers,omitempty"`
	For   time.Duration `json:"for"`
}

func (f Fault) String() string {
	text := fmt.Sprintf("%s %s", f.Kind, strings.Join(f.Hosts, ","))
	if len(f.Peers) > 0 {
		text += " from " + strings.Join(f.Peers, ",")
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
}

var sorts = []sort{
	{Kill, 5, 1, 0, 15 * time.Second},
	{Stop, 2, 1, 0, 15 * time.Second},
	{PowerOff, 4, 2, time.Second, 25 * time.Second},
	{Readdress, 1, 1, time.Second, 10 * time.Second},
	{Pause, 3, 1, 200 * time.Millisecond, 20 * time.Second},
	{Isolate, 4, 3, 300 * time.Millisecond, 20 * time.Second},
	{Deaf, 2, 1, 300 * time.Millisecond, 15 * time.Second},
	{Mute, 2, 1, 300 * time.Millisecond, 15 * time.Second},
	{Partial, 2, 1, 300 * time.Millisecond, 15 * time.Second},
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
	// Away: a fault is in force that keeps it from its duties.
	Away bool
	// Touched: a fault of any kind is in force.
	Touched bool
}

// State is what Plan decides upon.
type State struct {
	Hosts []HostState
	// Whole: there are as many voters as should be, all of them healthy, and a
	// standby where a host is spare.
	Whole bool
	// Beyond lifts the bounds of what the cluster promises to bear.
	Beyond bool
}

// hostLimit is how many hosts may be away at once: without a majority of its
// hosts a cluster may be left with fewer voters than it should have.
func hostLimit(hosts int) int { return (hosts - 1) / 2 }

// Plan says what to do next, or false to look again later. The same seed, step
// and state give the same fault.
func Plan(seed uint64, step int, s State) (Fault, bool) {
	rng := rand.New(rand.NewPCG(seed, uint64(step)))
	// All that the seed decides is drawn first, in one order, whatever the state.
	role := drawRole(rng)
	kinds := drawKinds(rng)
	hosts := slices.Clone(s.Hosts)
	slices.SortFunc(hosts, func(a, b HostState) int { return strings.Compare(a.Name, b.Name) })
	rng.Shuffle(len(hosts), func(i, j int) { hosts[i], hosts[j] = hosts[j], hosts[i] })
	count, length := rng.IntN(3)+1, rng.Float64()
	if role.votes() && !s.Whole && !s.Beyond {
		return Fault{}, false // the seed wants a voter: it waits until one may go
	}
	hosts = slices.DeleteFunc(hosts, func(h HostState) bool { return h.Touched || h.Away })
	slices.SortStableFunc(hosts, func(a, b HostState) int { return preference(role, a) - preference(role, b) })
	for _, k := range kinds {
		for n := min(count, k.most, len(hosts)); n > 0; n-- {
			f := Fault{Step: step, Kind: k.kind, For: k.least + time.Duration(length*length*float64(k.longest-k.least))}
			for _, h := range hosts[:n] {
				f.Hosts = append(f.Hosts, h.Name)
			}
			if k.kind == Partial {
				f.Peers = peers(hosts[n:])
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
	if len(f.Hosts) == 0 || f.Kind == Partial && len(f.Peers) == 0 {
		return false
	}
	if s.Beyond {
		return true
	}
	away, voters, voting, touches := 0, 0, 0, false
	for _, h := range s.Hosts {
		hit := slices.Contains(f.Hosts, h.Name)
		if h.Role.votes() {
			voters++
			touches = touches || hit
		}
		if hit || h.Away {
			away++
			if h.Role.votes() {
				voting++
			}
		}
	}
	if away > hostLimit(len(s.Hosts)) {
		return false
	}
	return !touches || s.Whole && voting <= (voters-1)/2
}
