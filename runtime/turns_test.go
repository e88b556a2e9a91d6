package runtime

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, ctx := newTurns(), t.Context()
		begun := time.Now()
		waited := func() time.Duration { return time.Since(begun) }
		var ends []func()
		for range cap(turns) {
			ends = append(ends, turns.take(ctx))
		}
		if waited() != 0 {
			t.Fatalf("the first waited for %v", waited())
		}
		// The next one has its turn when another ends.
		go func() {
			time.Sleep(time.Second)
			ends[0]()
		}()
		ends[0] = turns.take(ctx)
		if waited() != time.Second {
			t.Errorf("the next one went on after %v", waited())
		}
		// None ends: those who wait go on all the same, and take nobody's turn.
		turns.take(ctx)()
		if waited() != time.Second+longestTurn || len(turns) != cap(turns) {
			t.Errorf("after %v, %d turns of %d", waited(), len(turns), cap(turns))
		}
		given, cancel := context.WithCancel(ctx)
		cancel()
		turns.take(given)()
		if waited() != time.Second+longestTurn {
			t.Errorf("one that was called off waited until %v", waited())
		}
		for _, end := range ends {
			end()
		}
		if len(turns) != 0 {
			t.Errorf("%d turns are left", len(turns))
		}
	})
}
