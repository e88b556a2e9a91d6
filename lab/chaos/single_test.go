package chaos

import (
	"context"
	"slices"
	"testing"
	"time"
)

func TestTogether(t *testing.T) {
	stay := func(pod, node string, first, last int) Stay {
		return Stay{pod, node, int64(first) * int64(time.Second), int64(last) * int64(time.Second)}
	}
	for name, test := range map[string]struct {
		stays []Stay
		wrong int
		moves []time.Duration
	}{
		"one":                             {[]Stay{stay("a", "1", 1, 9)}, 0, nil},
		"two at once":                     {[]Stay{stay("a", "1", 1, 9), stay("b", "2", 1, 9)}, 0, nil},
		"one after the other":             {[]Stay{stay("a", "2", 12, 15), stay("a", "1", 1, 9)}, 0, []time.Duration{3 * time.Second}},
		"again on the same node":          {[]Stay{stay("a", "1", 1, 9), stay("a", "1", 10, 12)}, 0, nil},
		"twice":                           {[]Stay{stay("a", "1", 1, 9), stay("a", "2", 8, 12)}, 1, nil},
		"twice on one node":               {[]Stay{stay("a", "1", 1, 9), stay("a", "1", 8, 12)}, 1, nil},
		"one that outlasts two":           {[]Stay{stay("a", "1", 1, 20), stay("a", "2", 5, 6), stay("a", "3", 8, 9)}, 2, nil},
		"another one after some together": {[]Stay{stay("a", "1", 1, 20), stay("a", "2", 5, 6), stay("a", "3", 22, 23)}, 1, []time.Duration{2 * time.Second}},
	} {
		wrong, moves := together(test.stays)
		if len(wrong) != test.wrong || !slices.Equal(moves, test.moves) {
			t.Errorf("%s: %q, %v", name, wrong, moves)
		}
	}
}

func TestStamp(t *testing.T) {
	t.Setenv("POD", "single-0")
	t.Setenv("NODE", "lab-1")
	folder := t.TempDir()
	begun := sinceBoot()
	ctx, cancel := context.WithTimeout(t.Context(), 5*stampEvery)
	defer cancel()
	if err := stamp(ctx, folder); err != nil {
		t.Fatal(err)
	}
	stays, err := readStays(folder)
	if err != nil || len(stays) != 1 {
		t.Fatalf("%v (%v)", stays, err)
	}
	s := stays[0]
	if s.Pod != "single-0" || s.Node != "lab-1" || s.First < begun || s.Last <= s.First || s.Last > sinceBoot() {
		t.Errorf("%+v, begun at %d", s, begun)
	}
}
