package chaos

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// op is an operation on register k from one second to another.
func op(verb Verb, value, expect string, outcome Outcome, got string, call, end int) Op {
	return Op{Key: "k", Verb: verb, Value: value, Expect: expect, Outcome: outcome, Got: got,
		Call: time.Duration(call) * time.Second, Return: time.Duration(end) * time.Second}
}

func TestLinearizable(t *testing.T) {
	made := op(Create, "1", "", Done, "1", 0, 1)
	for name, test := range map[string]struct {
		ops []Op
		ok  bool
	}{
		"one after the other":              {[]Op{made, op(Write, "2", "", Done, "2", 2, 3), op(Read, "", "", Done, "2", 4, 5)}, true},
		"an acknowledged write is lost":    {[]Op{made, op(Write, "2", "", Done, "2", 2, 3), op(Read, "", "", Done, "1", 4, 5)}, false},
		"a stale read while it is written": {[]Op{made, op(Write, "2", "", Done, "2", 2, 5), op(Read, "", "", Done, "1", 3, 4)}, true},
		"reads go back":                    {[]Op{made, op(Write, "2", "", Done, "2", 2, 9), op(Read, "", "", Done, "2", 3, 4), op(Read, "", "", Done, "1", 5, 6)}, false},
		"an open write is seen later":      {[]Op{made, op(Write, "2", "", Open, "", 2, 3), op(Read, "", "", Done, "1", 4, 5), op(Read, "", "", Done, "2", 6, 7)}, true},
		"an open write is never seen":      {[]Op{made, op(Write, "2", "", Open, "", 2, 3), op(Read, "", "", Done, "1", 4, 5)}, true},
		"an open write happens twice":      {[]Op{made, op(Write, "2", "", Open, "", 2, 3), op(Read, "", "", Done, "2", 4, 5), op(Write, "3", "", Done, "3", 6, 7), op(Read, "", "", Done, "2", 8, 9)}, false},
		"a refused write is seen":          {[]Op{made, op(Write, "2", "", Refused, "", 2, 3), op(Read, "", "", Done, "2", 4, 5)}, false},
		"a swap of what was not there":     {[]Op{made, op(Write, "2", "", Done, "2", 2, 3), op(Swap, "3", "1", Done, "3", 4, 5)}, false},
		"two swaps of the same":            {[]Op{made, op(Swap, "2", "1", Done, "2", 2, 5), op(Swap, "3", "1", Done, "3", 2, 5)}, false},
		"one of two swaps of the same":     {[]Op{made, op(Swap, "2", "1", Done, "2", 2, 5), op(Swap, "3", "1", Conflict, "", 2, 5)}, true},
		"a conflict with nothing":          {[]Op{made, op(Swap, "3", "1", Conflict, "", 2, 5)}, false},
		"made twice":                       {[]Op{made, op(Create, "2", "", Done, "2", 2, 3)}, false},
		"made, and there already":          {[]Op{made, op(Create, "2", "", Exists, "", 2, 3)}, true},
		"there already, but it is not":     {[]Op{op(Create, "2", "", Exists, "", 2, 3)}, false},
		"deleted and read":                 {[]Op{made, op(Delete, "", "", Done, "", 2, 3), op(Read, "", "", Done, "1", 4, 5)}, false},
		"deleted and missing":              {[]Op{made, op(Delete, "", "", Done, "", 2, 3), op(Read, "", "", Missing, "", 4, 5)}, true},
		"missing although it is there":     {[]Op{made, op(Write, "2", "", Missing, "", 2, 3)}, false},
		"a failed read says nothing":       {[]Op{made, op(Read, "", "", Open, "", 2, 3), op(Read, "", "", Refused, "", 4, 5)}, true},
	} {
		wrong, undecided := linearizable(test.ops, time.Minute)
		if (len(wrong) == 0) != test.ok || len(undecided) > 0 {
			t.Errorf("%s: wrong %v, undecided %v", name, wrong, undecided)
		}
	}
}

func TestConclude(t *testing.T) {
	answer := func(code int) error { return &statusError{code: code} }
	for _, test := range []struct {
		verb Verb
		err  error
		want Outcome
	}{
		{Write, nil, Done},
		{Read, answer(404), Missing},
		{Create, answer(409), Exists},
		{Swap, answer(409), Conflict},
		{Write, answer(409), Wrong}, // nothing was expected to be there
		{Create, answer(404), Wrong},
		{Write, answer(403), Wrong},
		{Write, answer(503), Refused},
		{Write, answer(504), Open},
		{Write, answer(500), Open},
		{Write, errors.New("EOF"), Open},
		{Write, fmt.Errorf("put: %w", &net.OpError{Op: "dial", Err: errors.New("no route")}), Unsent},
		{Write, fmt.Errorf("put: %w", &net.OpError{Op: "read", Err: errors.New("reset")}), Open},
	} {
		o := Op{Verb: test.verb}
		if o.conclude(test.err); o.Outcome != test.want {
			t.Errorf("%s that ended with %v: %s, not %s", test.verb, test.err, o.Outcome, test.want)
		}
	}
}

// wrote is an acknowledged write.
func wrote(revision int, value string) Op {
	o := op(Write, value, "", Done, value, 0, 1)
	o.Revision = fmt.Sprint(revision)
	return o
}

func TestWatched(t *testing.T) {
	change := func(revision uint64, value string) Change {
		return Change{Revision: revision, Type: "MODIFIED", Key: "k", Value: value}
	}
	saw := func(from, to uint64, changes ...Change) *stretch {
		return &stretch{from: from, to: to, changes: changes, list: map[string]Change{}}
	}
	ops := []Op{wrote(11, "a"), wrote(12, "b"), wrote(14, "c"), op(Write, "o", "", Open, "", 2, 3), op(Write, "r", "", Refused, "", 2, 3)}
	all := saw(10, 14, change(11, "a"), change(12, "b"), change(14, "c"))
	for name, test := range map[string]struct {
		stretches []*stretch
		wrong     []string
		want      string // part of the only complaint, "" if all is well
	}{
		"all":                     {[]*stretch{all}, nil, ""},
		"skipped":                 {[]*stretch{saw(10, 14, change(11, "a"), change(14, "c"))}, nil, "skipped the acknowledged revision 12"},
		"not yet there":           {[]*stretch{saw(10, 12, change(11, "a"), change(12, "b"))}, nil, ""},
		"an open write":           {[]*stretch{saw(10, 14, change(11, "a"), change(12, "b"), change(13, "o"), change(14, "c"))}, nil, ""},
		"a refused write":         {[]*stretch{saw(10, 14, change(11, "a"), change(12, "b"), change(13, "r"), change(14, "c"))}, nil, "was answered: refused"},
		"an unknown write":        {[]*stretch{saw(10, 14, change(11, "a"), change(12, "b"), change(13, "x"), change(14, "c"))}, nil, "which nobody wrote"},
		"another value":           {[]*stretch{saw(10, 14, change(11, "a"), change(12, "o"), change(14, "c"))}, nil, "was acknowledged as b"},
		"broken rules":            {[]*stretch{all}, []string{"repeated"}, "repeated"},
		"a gap with a true list":  {[]*stretch{saw(10, 11, change(11, "a")), {from: 12, to: 14, changes: []Change{change(14, "c")}, list: map[string]Change{"k": change(12, "b")}}}, nil, ""},
		"a gap with a stale list": {[]*stretch{saw(10, 11, change(11, "a")), {from: 12, to: 14, changes: []Change{change(14, "c")}, list: map[string]Change{"k": change(9, "z")}}}, nil, "a list at revision 12"},
	} {
		w := &watcher{host: "h", stretches: test.stretches, wrong: test.wrong}
		got := watched(ops, []*watcher{w})
		if test.want == "" && len(got) > 0 || test.want != "" && (len(got) != 1 || !strings.Contains(got[0], test.want)) {
			t.Errorf("%s: %q", name, got)
		}
	}
	// What one saw, the others saw.
	fewer := &watcher{host: "fewer", stretches: []*stretch{all}}
	more := &watcher{host: "more", stretches: []*stretch{saw(10, 14, change(11, "a"), change(12, "b"), change(13, "o"), change(14, "c"))}}
	if got := watched(ops, []*watcher{fewer, more}); len(got) != 1 || !strings.Contains(got[0], "fewer skipped revision 13") {
		t.Errorf("two that differ: %q", got)
	}
}

func TestTake(t *testing.T) {
	w := &watcher{since: func() time.Duration { return 0 }}
	s := &stretch{from: 10, to: 10}
	for _, e := range []struct{ kind, revision string }{{"ADDED", "11"}, {"BOOKMARK", "13"}, {"MODIFIED", "12"}, {"MODIFIED", "13"}, {"MODIFIED", "14"}, {"BOOKMARK", "12"}} {
		if err := w.take(s, e.kind, fmt.Appendf(nil, `{"metadata":{"name":"k","resourceVersion":%q}}`, e.revision)); err != nil {
			t.Error(err)
		}
	}
	if len(w.wrong) != 3 || len(s.changes) != 2 || s.to != 14 {
		t.Errorf("%d changes to %d, and %q", len(s.changes), s.to, w.wrong)
	}
	if err := w.take(s, "ERROR", []byte(`{"code":410}`)); answered(err) != 410 {
		t.Error(err)
	}
}

func TestGaps(t *testing.T) {
	second := func(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
	successes := [][2]time.Duration{{second(4), second(4.1)}, {second(0.2), second(0.3)}, {second(0.5), second(0.6)}}
	want := [][2]time.Duration{{second(0.6), second(4.1)}, {second(4.1), second(10)}}
	if got := gaps(successes, 0, second(10)); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
