package chaos

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// seven is a whole cluster: a leader, four more masters, a standby and a node.
func seven() State {
	s := State{Whole: true}
	for i, role := range []Role{Leader, Master, Master, Master, Master, Standby, Plain} {
		s.Hosts = append(s.Hosts, HostState{Name: fmt.Sprintf("h-%d", i+1), Role: role})
	}
	return s
}

func TestPlanRepeats(t *testing.T) {
	hit := map[Kind]int{}
	roles := map[Role]int{}
	for seed := range uint64(10) {
		for step := range 200 {
			s := seven()
			f, ok := Plan(seed, step, s)
			if !ok {
				t.Fatalf("seed %d, step %d: nothing may be done to a whole cluster", seed, step)
			}
			rand.Shuffle(len(s.Hosts), func(i, j int) { s.Hosts[i], s.Hosts[j] = s.Hosts[j], s.Hosts[i] })
			if again, _ := Plan(seed, step, s); !reflect.DeepEqual(f, again) {
				t.Fatalf("seed %d, step %d: %v, and another time %v", seed, step, f, again)
			}
			hit[f.Kind]++
			for _, h := range s.Hosts {
				if slices.Contains(f.Hosts, h.Name) {
					roles[h.Role]++
				}
			}
		}
	}
	for _, k := range sorts {
		if hit[k.kind] == 0 {
			t.Errorf("no seed does %s", k.kind)
		}
	}
	for _, r := range []Role{Leader, Master, Standby, Plain} {
		if roles[r] == 0 {
			t.Errorf("no seed hits a %s", r)
		}
	}
}

// TestPlanPromises lets faults come and go at random and checks that what is
// left could always decide.
func TestPlanPromises(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 7))
		s := seven()
		for step := range 500 {
			f, ok := Plan(seed, step, s)
			if ok {
				for i := range s.Hosts {
					if h := &s.Hosts[i]; slices.Contains(f.Hosts, h.Name) {
						h.Away, h.Noticed = h.Away || f.Kind.takesAway(), false
						h.Skewed = h.Skewed || f.Kind == Skew
					}
				}
			}
			away, voters, voting := 0, 0, 0
			for _, h := range s.Hosts {
				if h.Away {
					away++
				}
				if h.Role.votes() {
					voters++
					if h.Away {
						voting++
					}
				}
			}
			if away > 3 {
				t.Fatalf("seed %d, step %d, %v: %d hosts of 7 are away", seed, step, f, away)
			}
			if voting > (voters-1)/2 {
				t.Fatalf("seed %d, step %d, %v: %d voters of %d are away", seed, step, f, voting, voters)
			}
			// The cluster heals itself a little: hosts come back, the dead are
			// noticed, another node votes instead of them.
			for i := range s.Hosts {
				h := &s.Hosts[i]
				switch rng.IntN(6) {
				case 0:
					h.Away, h.Noticed, h.Skewed = false, false, false
				case 1:
					h.Noticed = h.Away
				}
			}
			for i := range s.Hosts {
				dead := &s.Hosts[i]
				if j := rng.IntN(len(s.Hosts)); dead.Role.votes() && dead.Noticed && !s.Hosts[j].Role.votes() && !s.Hosts[j].Noticed {
					dead.Role, s.Hosts[j].Role = s.Hosts[j].Role, dead.Role
				}
			}
			s.Whole = !slices.ContainsFunc(s.Hosts, func(h HostState) bool { return h.Away && h.Role.votes() })
		}
	}
}

func TestPlanWaits(t *testing.T) {
	s := seven()
	s.Whole = false
	waited := 0
	for step := range 100 {
		f, ok := Plan(1, step, s)
		if !ok {
			waited++
		}
		for _, h := range s.Hosts {
			if h.Role.votes() && slices.Contains(f.Hosts, h.Name) && f.Kind.takesAway() {
				t.Errorf("step %d: %v, but the set is not whole", step, f)
			}
		}
	}
	if waited == 0 {
		t.Error("no step waits for a voter that may go")
	}
	s.Cannot = []Kind{Fill, Skew}
	s.Beyond = true
	for step := range 100 {
		if f, ok := Plan(1, step, s); ok && (f.Kind == Fill || f.Kind == Skew) {
			t.Errorf("step %d: %v", step, f)
		}
	}
}

func TestCuts(t *testing.T) {
	names := []string{"a", "b", "c"}
	for _, test := range []struct {
		f    Fault
		want string
	}{
		{Fault{Kind: Isolate, Hosts: []string{"a", "b"}}, "[{c a} {a c} {c b} {b c}]"},
		{Fault{Kind: Deaf, Hosts: []string{"a"}}, "[{b a} {c a}]"},
		{Fault{Kind: Mute, Hosts: []string{"a"}}, "[{a b} {a c}]"},
		{Fault{Kind: Partial, Hosts: []string{"a"}, Peers: []string{"c"}}, "[{c a} {a c}]"},
		{Fault{Kind: Kill, Hosts: []string{"a"}}, "[]"},
	} {
		if got := fmt.Sprint(test.f.cuts(names)); got != test.want {
			t.Errorf("%v cuts %s, not %s", test.f, got, test.want)
		}
	}
}

func TestWhole(t *testing.T) {
	is := func(name string, role Role, state string) member { return member{Name: name, Role: role, State: state} }
	all := []member{is("a", Leader, "alive"), is("b", Master, "alive"), is("c", Master, "alive"), is("d", Standby, "alive"), is("e", Plain, "alive")}
	answers := func(change func(map[string]nodeStatus)) map[string]nodeStatus {
		out := map[string]nodeStatus{}
		for _, m := range all {
			out[m.Name] = nodeStatus{Node: m, Leader: "a", Term: 7, Members: slices.Clone(all)}
		}
		change(out)
		return out
	}
	for _, test := range []struct {
		want   string
		away   string
		change func(map[string]nodeStatus)
	}{
		{"", "", func(map[string]nodeStatus) {}},
		{"", "e", func(map[string]nodeStatus) {}},
		{"voter b is away", "b", func(map[string]nodeStatus) {}},
		{"no standby", "d", func(map[string]nodeStatus) {}},
		{"no leader is known", "", func(m map[string]nodeStatus) { clear(m) }},
		{"voter c does not follow a yet", "", func(m map[string]nodeStatus) { delete(m, "c") }},
		{"voter c is suspect", "", func(m map[string]nodeStatus) { m["a"].Members[2].State = "suspect" }},
		{"2 voters of 3", "", func(m map[string]nodeStatus) { m["a"].Members[2].Role = Plain }},
		{"voter b misses 1000 entries", "", func(m map[string]nodeStatus) { m["a"].Members[1].Lag = 1000 }},
		// A leader that was replaced does not know it yet.
		{"voter b does not follow e yet", "", func(m map[string]nodeStatus) {
			late := m["e"]
			late.Leader, late.Term, late.Node.Role = "e", 8, Leader
			late.Members = []member{is("b", Master, "alive"), is("c", Master, "alive"), is("e", Leader, "alive")}
			m["e"] = late
		}},
	} {
		if got := whole(answers(test.change), func(host string) bool { return host == test.away }); got != test.want {
			t.Errorf("it lacks %q, not %q", got, test.want)
		}
	}
}
