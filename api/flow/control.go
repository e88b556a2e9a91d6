package flow

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"conclave/api/types"
)

// Seats is how many requests a server serves at once, exempt ones aside: what
// Kubernetes' API server has by default for reading (400) and for writing (200).
const Seats = 600

// Control is the fairness of one server. Match and Enter may be called by all at
// once, also while Set is.
type Control struct {
	seats   int
	now     func() time.Time
	start   time.Time
	refresh func()
	rules   atomic.Pointer[rules]
	next    atomic.Int64 // when the seats are divided again, in nanoseconds

	mu     sync.Mutex // of whoever changes what is below
	levels map[string]*level
}

// rules are the FlowSchemas of a moment, in the order in which they are asked. They
// are not changed.
type rules struct {
	schemas []*Schema
	rest    *Schema // of whoever none of them matches
}

// Schema is a FlowSchema in force.
type Schema struct {
	Name, UID       string
	Level, LevelUID string
	by              string
	matcher         matcher
	level           *level
	count           *count
}

// New returns a Control of so many seats, which knows what every cluster has. Each
// request that waits calls refresh once a second, which may call Set: nobody else need
// come by who would find out that the levels have changed.
func New(seats int, now func() time.Time, refresh func()) *Control {
	c := &Control{seats: seats, now: now, start: now(), refresh: refresh, levels: map[string]*level{}}
	c.Set(Schemas(), Levels())
	return c
}

// nano is the time since the start, which no change of the host's clock moves.
func (c *Control) nano() int64 { return int64(c.now().Sub(c.start)) }

// Set makes these be in force, and with them whatever is missing of those that have
// to be. Requests that are under way stay what they are.
func (c *Control) Set(schemas []*types.FlowSchema, levels []*types.PriorityLevelConfiguration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.nano()
	levels = withMandatory(levels, Levels())
	sum := 0.0
	for _, o := range levels {
		sum += float64(sharesOf(&o.Spec))
	}
	kept, uids := map[string]*level{}, map[string]string{}
	for _, o := range levels {
		l := c.levels[o.Name]
		if l == nil {
			l = &level{name: o.Name, exempt: o.Spec.Type == types.Exempt, control: c}
		}
		l.set(o.Spec, shareOf(&o.Spec, c.seats, sum), now)
		kept[o.Name], uids[o.Name] = l, string(o.UID)
	}
	c.levels = kept
	schemas = withMandatory(schemas, Schemas())
	slices.SortFunc(schemas, Compare)
	next := &rules{}
	for _, o := range schemas {
		l := kept[o.Spec.PriorityLevelConfiguration.Name]
		if l == nil {
			continue // it is dangling
		}
		s := &Schema{
			Name: o.Name, UID: string(o.UID), Level: l.name, LevelUID: uids[l.name],
			matcher: newMatcher(o.Spec.Rules), level: l, count: l.countOf(o.Name),
		}
		if m := o.Spec.DistinguisherMethod; m != nil {
			s.by = m.Type
		}
		next.schemas = append(next.schemas, s)
		if o.Name == CatchAll {
			next.rest = s
		}
	}
	c.rules.Store(next)
	for _, l := range kept {
		l.forgetSchemas(next.schemas)
	}
	c.next.CompareAndSwap(0, now+int64(Period))
}

// withMandatory adds what must be there and is not.
func withMandatory[T interface{ GetName() string }](have, system []T) []T {
	have = slices.Clone(have)
	for _, o := range system {
		if mandatory(o.GetName()) && !slices.ContainsFunc(have, func(other T) bool { return other.GetName() == o.GetName() }) {
			have = append(have, o)
		}
	}
	return have
}

// forgetSchemas drops the counts of those that are no more, and of which nothing is
// under way.
func (l *level) forgetSchemas(now []*Schema) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.counts, func(name string, c *count) bool {
		used := c.serving > 0 || c.waiting > 0
		return !used && !slices.ContainsFunc(now, func(s *Schema) bool { return s.level == l && s.Name == name })
	})
}

// Match is the FlowSchema that a request is of.
func (c *Control) Match(q *Request) *Schema {
	r := c.rules.Load()
	for _, s := range r.schemas {
		if s.matcher.matches(q) {
			return s
		}
	}
	return r.rest
}

// distinguish tells the flows of a FlowSchema apart.
func (s *Schema) distinguish(q *Request) string {
	switch s.by {
	case types.ByUser:
		return q.User
	case types.ByNamespace:
		return q.Namespace
	}
	return ""
}

// Enter returns once the request may be served, with the seat that it has to leave
// afterwards. It waits at most as long as it is told, and no longer than ctx; the
// error is Refused.
func (s *Schema) Enter(ctx context.Context, q *Request, patience time.Duration) (Seat, error) {
	return s.level.enter(ctx, s, q, patience)
}

// divideBy divides the seats anew when it is time.
func (c *Control) divideBy(now int64) {
	if due := c.next.Load(); now < due || !c.next.CompareAndSwap(due, now+int64(Period)) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.divide(now)
}

// divide gives each level the limit that its share and its demand make; the caller
// holds mu.
func (c *Control) divide(now int64) {
	left := float64(c.seats)
	var limited []*level
	var claims []claim
	for _, name := range slices.Sorted(maps.Keys(c.levels)) {
		l := c.levels[name]
		l.mu.Lock()
		peak, wants := l.demand.settle(now)
		made := claimOf(l.share, peak, wants)
		l.mu.Unlock()
		if l.exempt {
			left -= made.low // what it does not lend is not to be had
			continue
		}
		limited, claims = append(limited, l), append(claims, made)
	}
	for i, limit := range divide(left, claims) {
		limited[i].limitTo(limit, now)
	}
}

// Stats is what became of the requests so far, level by level in the order of their
// names.
type Stats struct {
	Level                      string
	Nominal, Min, Max, Current int // seats; Current of the exempt level means nothing
	Serving                    int
	Schemas                    []SchemaStats
}

// SchemaStats is of one FlowSchema.
type SchemaStats struct {
	Schema           string
	Serving, Waiting int
	Served           uint64
	Refused          map[string]uint64 // by the reason
}

// Stats tells of all levels.
func (c *Control) Stats() []Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Stats
	for _, name := range slices.Sorted(maps.Keys(c.levels)) {
		all = append(all, c.levels[name].stats())
	}
	return all
}

func (l *level) stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Stats{Level: l.name, Nominal: l.share.nominal, Min: l.share.min, Max: l.share.max, Current: l.limit, Serving: l.serving}
	for _, name := range slices.Sorted(maps.Keys(l.counts)) {
		c := l.counts[name]
		s.Schemas = append(s.Schemas, SchemaStats{name, c.serving, c.waiting, c.served, maps.Clone(c.refused)})
	}
	return s
}
