package chaos

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"conclave/lab"
)

// Event is something that happened, for the log of the run.
type Event struct {
	At    time.Duration `json:"at"`
	Kind  string        `json:"kind"` // fault, lifted, leader, voters, healed, whole
	Hosts []string      `json:"hosts,omitempty"`
	Text  string        `json:"text"`
}

// Line is the event in one line.
func (e Event) Line() string {
	if len(e.Hosts) == 0 || e.Kind == "fault" {
		return e.Kind + ": " + e.Text
	}
	return e.Kind + " " + strings.Join(e.Hosts, ",") + ": " + e.Text
}

// Span is a time during which something was so on hosts.
type Span struct {
	Kind     Kind
	Hosts    []string
	Text     string
	From, To time.Duration
}

// look is what the hosts said at one time, as far as it differs from the time
// before.
type look struct {
	At     time.Duration
	Leader string
	Term   uint64
	Roles  map[string]Role
	States map[string]string // as the newest leader's gossip has them
	Up     map[string]bool   // its conclave answers
}

func (l look) same(o look) bool {
	return l.Leader == o.Leader && l.Term == o.Term && maps.Equal(l.Roles, o.Roles) && maps.Equal(l.States, o.States) && maps.Equal(l.Up, o.Up)
}

// observed are all looks, oldest first.
type observed []look

// found takes in what the observer saw.
func (d *drill) found(s sight) {
	best := newest(s.answers)
	l := look{At: s.at, Leader: best.Leader, Term: best.Term, Roles: s.roles(), States: map[string]string{}, Up: map[string]bool{}}
	for _, m := range best.Members {
		l.States[m.Name] = m.State
	}
	for name := range s.answers {
		l.Up[name] = true
	}
	d.mu.Lock()
	d.now = s
	var before look
	if n := len(d.seen); n > 0 {
		before = d.seen[n-1]
	}
	if best.Node.Role != Leader { // the others know some things later
		l.Leader, l.Term, l.Roles, l.States = before.Leader, before.Term, before.Roles, before.States
	}
	fresh := !l.same(before)
	if fresh {
		d.seen = append(d.seen, l)
	}
	d.mu.Unlock()
	if !fresh {
		return
	}
	if l.Leader != "" && (l.Leader != before.Leader || l.Term != before.Term) {
		d.tell(l.At, Event{Kind: "leader", Text: fmt.Sprintf("%s, term %d", l.Leader, l.Term)})
	}
	if now := voters(l.Roles); l.Leader != "" && !slices.Equal(now, voters(before.Roles)) {
		d.tell(l.At, Event{Kind: "voters", Text: strings.Join(now, " ")})
	}
}

func voters(roles map[string]Role) (names []string) {
	for name, role := range roles {
		if role.votes() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// first returns when something was so first from a time on.
func (o observed) first(from, to time.Duration, so func(look) bool) (time.Duration, bool) {
	for _, l := range o {
		if l.At > from && l.At <= to && so(l) {
			return l.At - from, true
		}
	}
	return 0, false
}

// at is how things were at a time.
func (o observed) at(when time.Duration) (l look) {
	for _, next := range o {
		if next.At > when {
			break
		}
		l = next
	}
	return l
}

// Report is what came of a drill.
type Report struct {
	Seed     uint64
	Nodes    int
	Duration time.Duration
	Beyond   bool
	Started  time.Time
	Command  string // that repeats it

	Operations int
	Outcomes   map[Outcome]int
	Undecided  []string // registers whose histories were too intricate to judge
	Watches    int
	Relists    int
	Changes    int
	Probes     int
	Stays      int
	Compared   int
	Sown       time.Duration // when the last fault was lifted
	Whole      time.Duration // after that; 0 if never
	Finished   time.Duration
	Violations []string

	Events []Event
	Spans  []Span // faults
	Gaps   []Gap
	Times  []Timing
	Hosts  []string
	looks  observed
}

// Timing is how long the cluster took for something, over all faults that asked
// for it.
type Timing struct {
	What   string
	Values []time.Duration
}

func (r *Report) violate(format string, args ...any) {
	r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
}

// draw computes gaps and times.
func (r *Report) draw(ops []Op, probes []Probe, hosts []lab.Host, looks observed) {
	r.looks = looks
	success := map[[2]string][][2]time.Duration{} // by what and host
	add := func(what, host string, from, to time.Duration) {
		for _, h := range []string{host, ""} {
			success[[2]string{what, h}] = append(success[[2]string{what, h}], [2]time.Duration{from, to})
		}
	}
	for _, o := range ops {
		switch {
		case !o.tells() || o.Outcome == Open:
		case o.Verb == Read:
			add("reads", o.Host, o.Call, o.Return)
		default:
			add("writes", o.Host, o.Call, o.Return)
		}
	}
	for _, p := range probes {
		if p.Error == "" {
			add("Service", p.Host, p.At, p.At+p.Took)
		}
	}
	for _, h := range hosts {
		r.Hosts = append(r.Hosts, h.Name)
	}
	for _, what := range gapped {
		for _, host := range append([]string{""}, r.Hosts...) {
			served := success[[2]string{what, host}]
			for _, f := range r.Spans { // of a host that is away nothing is expected
				if slices.Contains(f.Hosts, host) && f.Kind.takesAway() {
					served = append(served, [2]time.Duration{f.From, f.From}, [2]time.Duration{f.To, f.To})
				}
			}
			for _, g := range gaps(served, 0, r.Sown) {
				if !r.isAway(host, g) {
					r.Gaps = append(r.Gaps, Gap{host, what, g[0], g[1]})
				}
			}
		}
	}
	r.Times = timings(r.Spans, looks)
}

// gapped are what is watched for gaps.
var gapped = []string{"writes", "reads", "Service"}

// isAway says whether a host was away all of a time.
func (r *Report) isAway(host string, time [2]time.Duration) bool {
	return slices.ContainsFunc(r.Spans, func(f Span) bool {
		return slices.Contains(f.Hosts, host) && f.Kind.takesAway() && f.From <= time[0] && f.To >= time[1]
	})
}

// timings are the times that the faults asked for.
func timings(faults []Span, looks observed) []Timing {
	detection, election, replacement := Timing{What: "host away → leader's gossip doubts it"}, Timing{What: "leader away → another one leads"}, Timing{What: "voter away → another node votes in its place"}
	for _, f := range faults {
		if !f.Kind.silences() {
			continue
		}
		before := looks.at(f.From)
		for _, host := range f.Hosts {
			if t, ok := looks.first(f.From, f.To, func(l look) bool { return l.States[host] != "" && l.States[host] != "alive" }); ok {
				detection.Values = append(detection.Values, t)
			}
			if before.Leader == host {
				if t, ok := looks.first(f.From, f.To+10*time.Second, func(l look) bool { return l.Leader != "" && l.Leader != host && l.Term > before.Term }); ok {
					election.Values = append(election.Values, t)
				}
			}
			if !before.Roles[host].votes() {
				continue
			}
			had := voters(before.Roles)
			if t, ok := looks.first(f.From, f.To, func(l look) bool {
				now := voters(l.Roles)
				return !slices.Contains(now, host) && slices.ContainsFunc(now, func(n string) bool { return !slices.Contains(had, n) })
			}); ok {
				replacement.Values = append(replacement.Values, t)
			}
		}
	}
	return []Timing{detection, election, replacement}
}

// Quantile of sorted values.
func (t Timing) Quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(t.Values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// longest is the longest gap of one kind, of one host or of all together.
func (r *Report) longest(what, host string) (longest Gap) {
	for _, g := range r.Gaps {
		if g.What == what && g.Host == host && g.To-g.From > longest.To-longest.From {
			longest = g
		}
	}
	return longest
}

// Result is the sentence that a drill ends with.
func (r *Report) Result() string {
	switch n := len(r.Violations); n {
	case 0:
		return "no violation"
	case 1:
		return "1 VIOLATION"
	default:
		return fmt.Sprintf("%d VIOLATIONS", n)
	}
}

// Facts are what was done and checked, each with its name.
func (r *Report) Facts() [][2]string {
	facts := [][2]string{
		{"seed", fmt.Sprint(r.Seed)},
		{"nodes", fmt.Sprint(r.Nodes)},
		{"duration", fmt.Sprintf("%.0f s", r.Sown.Seconds())},
		{"faults", fmt.Sprintf("%d: %s", len(r.Spans), r.faultCounts())},
		{"operations", fmt.Sprintf("%d: %s", r.Operations, r.outcomes())},
		{"registers that could not be judged", fmt.Sprint(len(r.Undecided))},
		{"changes watched", fmt.Sprintf("%d in %d watches; %d lists after a 410", r.Changes, r.Watches, r.Relists)},
		{"visits to the Service", fmt.Sprint(r.Probes)},
		{"lives of StatefulSet pods", fmt.Sprint(r.Stays)},
	}
	if r.Whole > 0 {
		facts = append(facts, [2]string{"whole by itself after", fmt.Sprintf("%.1f s; %d kinds are equal at all nodes", r.Whole.Seconds(), r.Compared)})
	}
	return facts
}

// GapRows are the longest gaps, a row for each host.
func (r *Report) GapRows() (rows [][]string) {
	for _, host := range append([]string{""}, r.Hosts...) {
		row := []string{cmp.Or(host, "all nodes at once")}
		for _, what := range gapped {
			row = append(row, r.gap(what, host))
		}
		rows = append(rows, row)
	}
	return rows
}

// GapFrom is gapFrom in seconds.
func (r *Report) GapFrom() float64 { return gapFrom.Seconds() }

// Text writes the report as tables.
func (r *Report) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	line := func(cells ...string) { fmt.Fprintln(t, strings.Join(cells, "\t")) }
	for _, f := range r.Facts() {
		line(f[:]...)
	}
	line("")
	line("", "times", "median", "p90", "worst")
	for _, x := range r.Times {
		row := []string{x.What, fmt.Sprint(len(x.Values))}
		for _, q := range []float64{.5, .9, 1} {
			if len(x.Values) > 0 {
				row = append(row, fmt.Sprintf("%.1f s", x.Quantile(q).Seconds()))
			}
		}
		line(row...)
	}
	line("")
	line(append([]string{"longest gap, without the host's own faults"}, gapped...)...)
	for _, row := range r.GapRows() {
		line(row...)
	}
	line("")
	line("result", r.Result())
	if err := t.Flush(); err != nil {
		return err
	}
	for i, v := range r.Violations {
		if i == 20 {
			fmt.Fprintf(w, "and %d more\n", len(r.Violations)-i)
			break
		}
		fmt.Fprintln(w, "violation:", v)
	}
	_, err := fmt.Fprintln(w, "again:", r.Command)
	return err
}

func (r *Report) gap(what, host string) string {
	g := r.longest(what, host)
	if g.To == g.From {
		return fmt.Sprintf("< %.1f s", gapFrom.Seconds())
	}
	return fmt.Sprintf("%.1f s at %.0f s", (g.To - g.From).Seconds(), g.From.Seconds())
}

func (r *Report) faultCounts() string {
	counts := map[string]int{}
	for _, s := range r.Spans {
		counts[string(s.Kind)]++
	}
	return joined(counts)
}

func (r *Report) outcomes() string {
	counts := map[string]int{}
	for o, n := range r.Outcomes {
		counts[string(o)] = n
	}
	return joined(counts)
}

func joined(counts map[string]int) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(counts[b]-counts[a], strings.Compare(a, b)) })
	for i, n := range names {
		names[i] = fmt.Sprintf("%d %s", counts[n], n)
	}
	return strings.Join(names, ", ")
}
