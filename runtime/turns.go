package runtime

import (
	"context"
	"runtime"
	"time"
)

// turns is how many pods may be starting. All are bound by the processor: of a
// hundred at once each would take as long as all of them, with all their memory
// in use at the same time; in turns, the middle one is done in little more than
// half of that. Containers have none: those of pods that were let in go first.
type turns chan struct{}

// longestTurn is how long a start waits for its turn: one that hangs must not
// hold up others for ever.
const longestTurn = 2 * time.Second

// newTurns has more of them than there are processors, because a start also
// waits, for the kernel and for the disk.
func newTurns() turns { return make(turns, 4*runtime.GOMAXPROCS(0)) }

// take waits for a turn, but not for longer than longestTurn nor than ctx: the
// caller goes on in any case. It returns how to end the turn.
func (t turns) take(ctx context.Context) (end func()) {
	select {
	case t <- struct{}{}:
		return t.end
	default:
	}
	patience := time.NewTimer(longestTurn)
	defer patience.Stop()
	select {
	case t <- struct{}{}:
		return t.end
	case <-patience.C:
	case <-ctx.Done():
	}
	return func() {}
}

func (t turns) end() { <-t }
