package cli

import "testing"

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 100, 10 << 20: 100, slack: 100, 2 * slack: 50, 4 * slack: 25, 5 * slack: 20, 100 * slack: leastPercent} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB alive: %d%%, want %d%%", live>>20, got, want)
		}
	}
}
