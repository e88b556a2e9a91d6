package cli

import "testing"

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 10 << 20: 100, slack: 100, 2 * slack: 50, 4 * slack: 25, 5 * slack: 20, 100 * slack: leastPercent} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB alive: %d%%, want %d%%", live>>20, got, want)
		}
	}
}

func TestWorthReturning(t *testing.T) {
	for _, c := range []struct {
		live, objects, free uint64
		want                bool
	}{
		{10 << 20, 11 << 20, 1 << 20, false}, // not worth a collection
		{10 << 20, 18 << 20, 0, true},        // garbage
		{10 << 20, 10 << 20, 8 << 20, true},  // what a burst left behind
		{10 << 20, 9 << 20, 0, false},        // counted while it was freed
		{400 << 20, 440 << 20, 40 << 20, false},
		{400 << 20, 440 << 20, 80 << 20, true},
	} {
		if got := worthReturning(c.live, c.objects, c.free); got != c.want {
			t.Errorf("%d of %d MiB alive, %d free: %v, want %v", c.live>>20, c.objects>>20, c.free>>20, got, c.want)
		}
	}
}
