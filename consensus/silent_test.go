package consensus

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// TestForgottenLog: three of five masters go on without the two that are cut off,
// and one of the three loses its log. It must not help the two to a majority that
// knows nothing of what the three have written, neither before nor after it was
// given another log.
func TestForgottenLog(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 7, 5)
		leader := leaderOf(hosts)
		var others []*host
		for _, s := range leader.get().Status().Servers {
			if s.Voter && s.ID != leader.id {
				others = append(others, w.hosts[s.ID])
			}
		}
		forgets, stays, cut := others[0], others[1], others[2:]
		w.set(func() { w.group[cut[0].id], w.group[cut[1].id] = 1, 1 })
		write := func(name string) {
			t.Helper()
			if _, err := leader.get().Write(within(t, 10*time.Second), create("n", name, "1")); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 20 {
			write(fmt.Sprint(i))
		}
		forgets.end()
		if err := os.RemoveAll(forgets.dir); err != nil {
			t.Fatal(err)
		}
		forgets.start(false)
		w.set(func() { // the three that have forgotten, or never heard, are together
			w.group[forgets.id] = 1
			w.group[leader.id], w.group[stays.id] = 2, 2
		})
		together := append(cut, forgets)
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if l := leaderOf(together); l != nil {
				t.Fatalf("%s leads, without what was written", l.id)
			}
		}
		w.set(func() { w.group = map[string]int{} })
		until(t, "five voters, and all that was written", time.Minute, func() bool {
			l := leaderOf(hosts)
			return l != nil && votersOf(hosts) == 5 && l.get().Store().Get("things", "n", "19") != nil
		})
		endAll(hosts)
	})
}
