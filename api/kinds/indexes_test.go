package kinds

import (
	"math/rand"
	"testing"
)

func TestIndexes(t *testing.T) {
	for _, tc := range []struct {
		text  string
		limit int
		want  string
		n     int
		bad   bool
	}{
		{"", 5, "", 0, false},
		{"0", 5, "0", 1, false},
		{"0,1", 5, "0,1", 2, false},
		{"0-1", 5, "0,1", 2, false},
		{"0,1,2,5-7", 10, "0-2,5-7", 6, false},
		{"0-9", 3, "0-2", 3, false},
		{"2,7", 3, "2", 1, false},
		{"2,1", 5, "2", 1, true},
		{"a", 5, "", 0, true},
		{"3-1", 5, "", 0, true},
	} {
		got, err := ParseIndexes(tc.text, tc.limit)
		if got.String() != tc.want || got.Len() != tc.n || (err != nil) != tc.bad {
			t.Errorf("%q: %q, %d of them, %v", tc.text, got, got.Len(), err)
		}
	}
}

// A set that is added to in any order has what was added, and reads back.
func TestIndexesAdd(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 200 {
		var x Indexes
		want := map[int]bool{}
		for range r.Intn(30) {
			n := r.Intn(20)
			x, want[n] = x.Add(n), true
		}
		for i := range 22 {
			if x.Has(i) != want[i] {
				t.Fatalf("%s has %d: %t", x, i, x.Has(i))
			}
		}
		back, err := ParseIndexes(x.String(), 100)
		if err != nil || back.String() != x.String() || back.Len() != len(want) {
			t.Fatalf("%s reads back as %s (%v)", x, back, err)
		}
	}
}

func FuzzIndexes(f *testing.F) {
	f.Add("0-2,5", 10)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		x, err := ParseIndexes(text, limit)
		if again, err2 := ParseIndexes(x.String(), limit); err == nil && (err2 != nil || again.String() != x.String()) {
			t.Errorf("%q: %s, then %s (%v)", text, x, again, err2)
		}
	})
}
