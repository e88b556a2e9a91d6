package flow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/api/types"
)

// limited is a level of so many shares that neither lends nor borrows; without
// queues it refuses.
func limited(name string, shares int32, queuing ...int32) *types.PriorityLevelConfiguration {
	l := &types.LimitedLevel{NominalConcurrencyShares: ptr.To(shares), LendablePercent: ptr.To[int32](0), BorrowingLimitPercent: ptr.To[int32](0)}
	l.LimitResponse.Type = types.Reject
	if len(queuing) == 3 {
		l.LimitResponse = types.LimitResponse{Type: types.Queue, Queuing: &types.QueuingConfiguration{Queues: queuing[0], HandSize: queuing[1], QueueLengthLimit: queuing[2]}}
	}
	return &types.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-" + "of-level"}, Spec: types.PriorityLevelSpec{Type: types.Limited, Limited: l}}
}

// schema is a FlowSchema of everything that users ask.
func schema(name, level string, precedence int32, users ...string) *types.FlowSchema {
	o := &types.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-of-schema"}}
	o.Spec = types.FlowSchemaSpec{
		PriorityLevelConfiguration: types.PriorityLevelReference{Name: level}, MatchingPrecedence: precedence,
		DistinguisherMethod: &types.FlowDistinguisherMethod{Type: types.ByUser},
		Rules: []types.PolicyRulesWithSubjects{{
			ResourceRules:    []types.ResourcePolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, ClusterScope: true, Namespaces: []string{"*"}}},
			NonResourceRules: []types.NonResourcePolicyRule{{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}},
		}},
	}
	for _, u := range users {
		o.Spec.Rules[0].Subjects = append(o.Spec.Rules[0].Subjects, types.FlowSubject{Kind: types.UserKind, User: &types.NamedSubject{Name: u}})
	}
	return o
}

func of(user, verb, group, resource, namespace string, groups ...string) *Request {
	resource, sub, _ := strings.Cut(resource, "/")
	return &Request{User: user, Groups: groups, Verb: verb, Group: group, Resource: resource, Subresource: sub, Namespace: namespace}
}

func TestMatch(t *testing.T) {
	const (
		known, nodes = "system:authenticated", "system:nodes"
		accounts     = "system:serviceaccounts"
	)
	own := schema("own", "workload-low", 700, "ann")
	own.Spec.Rules[0].ResourceRules = []types.ResourcePolicyRule{{Verbs: []string{"list"}, APIGroups: []string{"apps"}, Resources: []string{"deployments", "deployments/status"}, Namespaces: []string{"shop"}}}
	own.Spec.Rules[0].NonResourceRules = []types.NonResourcePolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/metrics", "/openapi/*"}}}
	lost := schema("lost", "missing", 3, "*")
	// Of one precedence, the name decides.
	second, first := schema("b", "system", 600, "bob"), schema("a", "node-high", 600, "bob")
	c := New(Seats, time.Now, func() {})
	c.Set(append(Schemas(), own, lost, second, first), Levels())
	path := func(user, verb, path string, groups ...string) *Request {
		return &Request{User: user, Groups: groups, Verb: verb, Path: path}
	}
	for _, tc := range []struct {
		q           *Request
		want, level string
	}{
		{of("admin", "delete", "", "pods", "shop", "system:masters", known), "exempt", "exempt"},
		{path("system:anonymous", "get", "/livez", "system:unauthenticated"), "probes", "exempt"},
		{path("system:anonymous", "get", "/livez/ping", "system:unauthenticated"), "global-default", "global-default"},
		{of("system:node:n1", "update", "", "nodes/status", "", nodes, known), "system-node-high", "node-high"},
		{of("system:node:n1", "update", "coordination.k8s.io", "leases", "kube-node-lease", nodes, known), "system-node-high", "node-high"},
		{of("system:node:n1", "list", "coordination.k8s.io", "leases", "", nodes, known), "system-nodes", "system"},
		{of("system:node:n1", "update", "", "pods/status", "shop", nodes, known), "system-nodes", "system"},
		{of("system:kube-scheduler", "update", "coordination.k8s.io", "leases", "kube-system", known), "system-leader-election", "leader-election"},
		{of("system:kube-scheduler", "list", "", "pods", "", known), "kube-scheduler", "workload-high"},
		{of("system:serviceaccount:kube-system:x", "get", "", "configmaps", "kube-system", accounts, known), "workload-leader-election", "leader-election"},
		{of("system:serviceaccount:kube-system:x", "list", "", "configmaps", "kube-system", accounts, known), "kube-system-service-accounts", "workload-high"},
		{of("system:serviceaccount:kube-system:endpoint-controller", "update", "", "endpoints", "shop", accounts, known), "endpoint-controller", "workload-high"},
		{of("system:serviceaccount:kube-systems:x", "list", "", "pods", "shop", accounts, known), "service-accounts", "workload-low"},
		{of("ann", "list", "apps", "deployments", "shop", known), "own", "workload-low"},
		{of("ann", "list", "apps", "deployments/status", "shop", known), "own", "workload-low"},
		{of("ann", "list", "apps", "deployments/scale", "shop", known), "global-default", "global-default"},
		{of("ann", "list", "apps", "deployment", "shop", known), "global-default", "global-default"},
		{of("ann", "list", "apps", "deployments", "", known), "global-default", "global-default"},
		{of("ann", "list", "", "deployments", "shop", known), "global-default", "global-default"},
		{of("ann", "get", "apps", "deployments", "shop", known), "global-default", "global-default"},
		{path("ann", "get", "/openapi/v3", known), "own", "workload-low"},
		{path("ann", "get", "/openapi", known), "global-default", "global-default"},
		{path("ann", "post", "/metrics", known), "global-default", "global-default"},
		{of("bob", "get", "", "pods", "shop", known), "a", "node-high"},
		{of("nobody", "get", "", "pods", "shop"), "catch-all", "catch-all"},
	} {
		if s := c.Match(tc.q); s.Name != tc.want || s.Level != tc.level {
			t.Errorf("%+v is of %s at level %s", *tc.q, s.Name, s.Level)
		}
	}
	// What has to be is there, whatever is deleted.
	c.Set(nil, nil)
	if s := c.Match(of("admin", "get", "", "pods", "", "system:masters")); s.Name != Exempt {
		t.Error(s.Name)
	}
	if s := c.Match(of("ann", "get", "", "pods", "", known)); s.Name != CatchAll {
		t.Error(s.Name)
	}
}

func TestDeal(t *testing.T) {
	seen := map[string]int{}
	for i := range 20000 {
		var hand []int
		deal(hashOf("schema", fmt.Sprint(i)), 6, 3, func(q int) { hand = append(hand, q) })
		slices.Sort(hand)
		if len(slices.Compact(slices.Clone(hand))) != 3 || hand[0] < 0 || hand[2] > 5 {
			t.Fatal(hand)
		}
		seen[fmt.Sprint(hand)]++
	}
	// There are 20 hands, and each is as good as another.
	for hand, n := range seen {
		if len(seen) != 20 || n < 800 || n > 1200 {
			t.Errorf("%s %d times, of %d hands", hand, n, len(seen))
		}
	}
	if hashOf("a", "bc") == hashOf("ab", "c") {
		t.Error("two flows have one hash")
	}
	for _, tc := range []struct{ queues, hand, bits int }{{64, 6, 36}, {128, 6, 42}, {16, 4, 16}, {1, 1, 0}, {1 << 10, 7, 70}} {
		if got := Entropy(tc.queues, tc.hand); got != tc.bits {
			t.Errorf("%d of %d: %d bits", tc.hand, tc.queues, got)
		}
	}
}

// TestNominal has the limits that Kubernetes 1.3x has with its 600 seats.
func TestNominal(t *testing.T) {
	want := map[string]share{
		"exempt": {0, 0, 600}, "catch-all": {13, 13, 600}, "system": {74, 50, 600}, "node-high": {98, 73, 600}, "leader-election": {25, 25, 600},
		"workload-high": {98, 49, 600}, "workload-low": {245, 24, 600}, "global-default": {49, 24, 600},
	}
	for _, s := range New(Seats, time.Now, func() {}).Stats() {
		if got := (share{s.Nominal, s.Min, s.Max}); got != want[s.Level] || s.Level != Exempt && s.Current != s.Nominal {
			t.Errorf("%s: %+v, now %d", s.Level, got, s.Current)
		}
	}
	l := limited("x", 10)
	l.Spec.Limited.BorrowingLimitPercent = ptr.To[int32](50)
	if got := shareOf(&l.Spec, 100, 20); got != (share{50, 50, 75}) {
		t.Error(got)
	}
}

func TestDivide(t *testing.T) {
	for name, tc := range map[string]struct {
		seats  float64
		claims []claim
		want   []int
	}{
		"idle: all is lent, in proportion":      {100, []claim{{10, 100, 10}, {30, 100, 30}}, []int{25, 75}},
		"one is busy":                           {100, []claim{{10, 100, 10}, {30, 100, 90}}, []int{10, 90}},
		"both want more":                        {100, []claim{{10, 100, 100}, {30, 100, 300}}, []int{25, 75}},
		"one may not borrow":                    {100, []claim{{50, 50, 400}, {10, 100, 10}}, []int{50, 50}},
		"nobody may have more":                  {100, []claim{{10, 20, 20}, {10, 20, 20}}, []int{20, 20}},
		"more is promised than there is":        {10, []claim{{8, 20, 20}, {8, 20, 20}}, []int{8, 8}},
		"what has no share, and wants nothing":  {100, []claim{{0, 100, 0}, {50, 100, 50}}, []int{0, 100}},
		"what has no share, but wants a little": {100, []claim{{0, 100, 50}, {50, 100, 50}}, []int{50, 50}},
	} {
		if got := divide(tc.seats, tc.claims); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestDemand(t *testing.T) {
	second := int64(time.Second)
	d := demand{}
	d.set(10, 0)
	d.set(0, 5*second)
	peak, wants := d.settle(10 * second)
	if peak != 10 || wants != 10 { // a mean of 5, and a deviation of 5
		t.Errorf("%d %g", peak, wants)
	}
	if peak, wants = d.settle(20 * second); peak != 0 || wants >= 10 || wants < 9.7 {
		t.Errorf("%d %g: demand falls slowly", peak, wants)
	}
	d.set(3, 21*second)
	if peak, wants = d.settle(3600 * second); peak != 3 || wants < 3 || wants > 3.1 {
		t.Errorf("%d %g: an hour makes all forget", peak, wants)
	}
}

// one is a Control with a level of one seat, which user's requests are of.
func one(queuing ...int32) (*Control, func(user string) *Request) {
	c := New(10, time.Now, func() {})
	c.Set(append(Schemas(), schema("own", "own", 500, "*")), append(Levels(), limited("own", 1, queuing...)))
	return c, func(user string) *Request { return &Request{User: user, Verb: "get", Path: "/version"} }
}

func enter(t *testing.T, c *Control, q *Request, patience time.Duration) (Seat, error) {
	t.Helper()
	s := c.Match(q)
	if s.Level != "own" || s.UID != "uid-of-schema" || s.LevelUID != "uid-of-level" {
		t.Errorf("%+v", s)
	}
	return s.Enter(t.Context(), q, patience)
}

func TestReject(t *testing.T) {
	c, q := one()
	seat, err := enter(t, c, q("ann"), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enter(t, c, q("bob"), time.Minute); !errors.Is(err, Refused(NoSeat)) {
		t.Errorf("a second one is served: %v", err)
	}
	seat.Leave()
	seat.Leave() // it has none any more
	if seat, err = enter(t, c, q("bob"), time.Minute); err != nil {
		t.Error(err)
	}
	if _, err := enter(t, c, q("bob"), time.Minute); !errors.Is(err, Refused(NoSeat)) {
		t.Errorf("a seat was given back twice: %v", err)
	}
	i := slices.IndexFunc(c.Stats(), func(s Stats) bool { return s.Level == "own" })
	if s := c.Stats()[i]; s.Serving != 1 || s.Schemas[0].Served != 2 || s.Schemas[0].Refused[NoSeat] != 2 {
		t.Errorf("%+v", s)
	}
	seat.Leave()
}

func TestExempt(t *testing.T) {
	c := New(1, time.Now, func() {})
	q := of("admin", "get", "", "pods", "", "system:masters")
	for range 1000 {
		if _, err := c.Match(q).Enter(t.Context(), q, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, q := one(1, 1, 2)
		seat, err := enter(t, c, q("ann"), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var wg sync.WaitGroup
		wait := func(name string, patience time.Duration, want error) {
			wg.Go(func() {
				seat, err := enter(t, c, q(name), patience)
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				if !errors.Is(err, want) {
					t.Errorf("%s: %v", name, err)
				}
				seat.Leave()
			})
			synctest.Wait()
		}
		begin := time.Now()
		wait("patient", time.Minute, nil)
		wait("impatient", 5*time.Second, Refused(TooLong))
		wait("too many", time.Minute, Refused(QueueFull))
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if strings.Join(order, ", ") != "too many, impatient" {
			t.Error(order)
		}
		// Whose client goes away leaves the queue.
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := c.Match(q("gone")).Enter(ctx, q("gone"), time.Minute); !errors.Is(err, Refused(GoneAway)) {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		synctest.Wait()
		wait("last", time.Minute, nil)
		seat.Leave()
		wg.Wait()
		if got := strings.Join(order[2:], ", "); got != "patient, last" || time.Since(begin) != 6*time.Second {
			t.Errorf("%s after %v", got, time.Since(begin))
		}
		for _, s := range c.Stats() {
			if s.Serving != 0 || s.Level == "own" && (s.Schemas[0].Waiting != 0 || s.Schemas[0].Served != 3) {
				t.Errorf("%+v", s)
			}
		}
		if l := c.levels["own"]; len(l.queues)+len(l.ring)+l.waiting != 0 {
			t.Errorf("what waited is remembered: %+v", l.queues)
		}
	})
}

// TestLimits has random requests of many users, and looks at each moment whether
// more are served than may be; that nobody waits while a seat is free; and that all
// are served in the end.
func TestLimits(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			c := New(40, time.Now, func() {})
			levels := append(Levels(), limited("own", 50, 16, 3, 1000))
			schemas := append(Schemas(), schema("own", "own", 500, "*"))
			c.Set(schemas, levels)
			l := c.levels["own"]
			limit := l.limit
			if limit != 7 {
				t.Fatal(limit)
			}
			var wg sync.WaitGroup
			for i := range 300 {
				user, pause, use := fmt.Sprint(rnd.IntN(9)), time.Duration(rnd.IntN(3000))*time.Millisecond, time.Duration(rnd.IntN(200))*time.Millisecond
				wg.Go(func() {
					time.Sleep(pause)
					q := &Request{User: user, Verb: "get", Path: "/version"}
					seat, err := c.Match(q).Enter(t.Context(), q, time.Hour)
					if err != nil {
						t.Errorf("%d: %v", i, err)
					}
					l.mu.Lock()
					if l.serving > limit || l.waiting > 0 && l.serving < limit {
						t.Errorf("%d served and %d waiting, of %d", l.serving, l.waiting, limit)
					}
					l.mu.Unlock()
					time.Sleep(use)
					seat.Leave()
				})
				if i%50 == 25 { // others' changes are none of its business
					c.Set(schemas, append(slices.Clone(levels), limited("other", int32(rnd.IntN(2)))))
				}
			}
			wg.Wait()
			if l.serving+l.waiting+len(l.queues)+len(l.ring) != 0 {
				t.Errorf("%d %d %v", l.serving, l.waiting, l.queues)
			}
		})
	}
}

// TestFair has a flow that asks for far more than there is, always, and others that
// ask now and then: those hardly wait.
func TestFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, q := one(64, 8, 200)
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		served := 0
		for range 100 {
			wg.Go(func() {
				for ctx.Err() == nil {
					seat, err := c.Match(q("elephant")).Enter(ctx, q("elephant"), time.Hour)
					if err != nil {
						return
					}
					served++
					time.Sleep(100 * time.Millisecond)
					seat.Leave()
				}
			})
		}
		for i := range 20 {
			time.Sleep(time.Second)
			begin := time.Now()
			seat, err := enter(t, c, q(fmt.Sprint("mouse", i)), time.Minute)
			// One that is being served, and one of each queue of the elephant.
			if waited := time.Since(begin); err != nil || waited > 900*time.Millisecond {
				t.Errorf("mouse %d waits %v: %v", i, waited, err)
			}
			seat.Leave()
		}
		stop()
		wg.Wait()
		if served < 150 {
			t.Errorf("the elephant is served %d times", served)
		}
	})
}

// TestNobodyStarves has a flow of short requests and one of long ones in two queues
// of one seat: by time, each gets half.
func TestNobodyStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, q := one(2, 1, 100)
		name := func(number int) string { // a user whose hand is that queue
			for i := 0; ; i++ {
				got := -1
				deal(hashOf("own", fmt.Sprint(i)), 2, 1, func(n int) { got = n })
				if got == number {
					return fmt.Sprint(i)
				}
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		used := [2]time.Duration{}
		for number, long := range []time.Duration{0, 2 * time.Second} {
			user := name(number)
			for range 50 {
				wg.Go(func() {
					for ctx.Err() == nil {
						seat, err := c.Match(q(user)).Enter(ctx, q(user), time.Hour)
						if err != nil {
							return
						}
						time.Sleep(max(long, time.Millisecond))
						used[number] += max(long, time.Millisecond)
						seat.Leave()
					}
				})
			}
		}
		time.Sleep(100 * time.Second)
		stop()
		wg.Wait()
		if used[0] < 45*time.Second || used[1] < 45*time.Second {
			t.Errorf("%v", used)
		}
	})
}

// TestBorrow has one level that is flooded while the others are idle, and then
// another that wants back what it has lent.
func TestBorrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(100, time.Now, func() {})
		lends, borrows := limited("lends", 300, 8, 2, 1000), limited("own", 100, 8, 2, 1000)
		lends.Spec.Limited.LendablePercent, borrows.Spec.Limited.BorrowingLimitPercent = ptr.To[int32](90), nil
		c.Set(append(Schemas(), schema("lends", "lends", 500, "lender"), schema("own", "own", 501, "*")), append(Levels(), lends, borrows))
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		flood := func(user string) {
			for range 300 {
				wg.Go(func() {
					for ctx.Err() == nil {
						q := &Request{User: user, Verb: "get", Path: "/version"}
						seat, err := c.Match(q).Enter(ctx, q, time.Hour)
						if err != nil {
							return
						}
						time.Sleep(700 * time.Millisecond)
						seat.Leave()
					}
				})
			}
		}
		serving := func(name string) int {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.levels[name].stats().Serving
		}
		flood("ann")
		synctest.Wait()
		if got := serving("own"); got != 16 { // 100 of 645 shares
			t.Errorf("%d are served at first", got)
		}
		time.Sleep(2*Period + time.Second)
		if got := serving("own"); got < 30 {
			t.Errorf("%d are served of what is idle", got)
		}
		flood("lender")
		time.Sleep(2*Period + time.Second)
		if own, lent := serving("own"), serving("lends"); lent < 47 || own+lent > 101 {
			t.Errorf("%d are served, and %d of who lent", own, lent)
		}
		stop()
		wg.Wait()
	})
}

// TestWaiterDivides has nobody who comes or goes but one who waits: seats that others
// leave idle come to it all the same.
func TestWaiterDivides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(100, time.Now, func() {})
		jail := limited("own", 0, 1, 1, 10)
		jail.Spec.Limited.BorrowingLimitPercent = nil
		c.Set(append(Schemas(), schema("own", "own", 500, "*")), append(Levels(), jail))
		q := &Request{User: "ann", Verb: "get", Path: "/version"}
		begin := time.Now()
		seat, err := enter(t, c, q, time.Minute)
		if waited := time.Since(begin); err != nil || waited > 2*Period {
			t.Errorf("after %v: %v", waited, err)
		}
		seat.Leave()
		// One that may not borrow never lets anybody out.
		jail.Spec.Limited.BorrowingLimitPercent = ptr.To[int32](0)
		c.Set(append(Schemas(), schema("own", "own", 500, "*")), append(Levels(), jail))
		if _, err = enter(t, c, q, time.Minute); !errors.Is(err, Refused(TooLong)) {
			t.Error(err)
		}
	})
}

func TestReconcile(t *testing.T) {
	find := func(name string) *types.FlowSchema {
		all := Schemas()
		return all[slices.IndexFunc(all, func(o *types.FlowSchema) bool { return o.Name == name })]
	}
	for name, tc := range map[string]struct {
		of          string
		annotation  string
		generation  int64
		kept        bool   // the spec is made what it has to be
		annotations string // afterwards
	}{
		"kept up":                 {"probes", "true", 5, true, "true"},
		"not to be kept up":       {"probes", "false", 1, false, "false"},
		"as it was made":          {"probes", "", 1, true, "true"},
		"changed by somebody":     {"probes", "", 2, false, "false"},
		"says nonsense":           {"probes", "perhaps", 2, false, "false"},
		"has to be, says no":      {Exempt, "false", 2, true, "true"},
		"has to be, says nothing": {CatchAll, "", 2, true, "true"},
	} {
		have := find(tc.of)
		have.Generation, have.Annotations = tc.generation, nil
		if tc.annotation != "" {
			have.Annotations = map[string]string{AutoUpdate: tc.annotation}
		}
		have.Spec.MatchingPrecedence = 77
		next := ReconcileSchema(have, find(tc.of))
		if next == nil {
			next = have
		}
		if kept := next.Spec.MatchingPrecedence != 77; kept != tc.kept || next.Annotations[AutoUpdate] != tc.annotations {
			t.Errorf("%s: %v %v", name, kept, next.Annotations)
		}
		if ReconcileSchema(next, find(tc.of)) != nil {
			t.Errorf("%s: it is changed a second time", name)
		}
	}
	for _, want := range Levels() {
		have := want.DeepCopyObject().(*types.PriorityLevelConfiguration)
		if ReconcileLevel(have, want) != nil {
			t.Errorf("%s is changed", want.Name)
		}
		if have.Spec.Limited != nil {
			have.Spec.Limited.NominalConcurrencyShares = ptr.To[int32](7)
			if next := ReconcileLevel(have, want); next == nil || *next.Spec.Limited.NominalConcurrencyShares == 7 {
				t.Errorf("%s is not kept up", want.Name)
			}
			continue
		}
		have.Spec.Exempt.NominalConcurrencyShares = ptr.To[int32](7)
		if next := ReconcileLevel(have, want); next != nil {
			t.Errorf("the owner may give the exempt level seats: %+v", next.Spec)
		}
	}
	old := schema("old", "system", 50)
	old.Annotations = map[string]string{AutoUpdate: "true"}
	if !Outdated(old, Schemas()) || Outdated(find("probes"), Schemas()) || Outdated(schema("mine", "system", 50), Schemas()) {
		t.Error("what is outdated is what was the system's and is no more")
	}
}

// BenchmarkFree is what each request pays while nothing waits.
func BenchmarkFree(b *testing.B) {
	for name, q := range map[string]*Request{
		"exempt": of("admin", "get", "", "pods", "shop", "system:masters", "system:authenticated"),
		"node":   of("system:node:n1", "update", "", "pods/status", "shop", "system:nodes", "system:authenticated"),
		"person": of("ann", "get", "", "pods", "shop", "people", "system:authenticated"),
	} {
		b.Run(name, func(b *testing.B) {
			c := New(Seats, time.Now, func() {})
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				seat, err := c.Match(q).Enter(ctx, q, time.Minute)
				if err != nil {
					b.Fatal(err)
				}
				seat.Leave()
			}
		})
	}
}
