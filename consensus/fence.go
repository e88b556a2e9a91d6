package consensus

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// What must not run twice is fenced by two times. A node runs it until
// fenceHolds after the moment at which, as far as it knows, its lease's leader
// surely led; the leader replaces it fenceEnds after it last renewed the
// node's lease, or began to lead, whichever was later.
//
// Why there is never a second copy: let c be when the heartbeats were sent by
// which the renewing leader knew that it led. The node stops at c+fenceHolds.
// The same leader noted the renewal after c. Another leader needs the vote of
// one who answered those heartbeats, given after that answer, thus leads only
// after c. Both wait for fenceEnds, on clocks that run at the same rate to
// within the quarter that is between the two; it is also the time in which the
// killed processes are gone.
const (
	fenceHolds = 8 * time.Second
	fenceEnds  = 10 * time.Second
)

// SinceBoot is the kernel's CLOCK_BOOTTIME: the time since the machine was
// started, suspensions included, which Go's own clock leaves out.
func SinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("consensus: the kernel has no CLOCK_BOOTTIME: %v", err)) // Linux has it since 2.6.39
	}
	return time.Duration(ts.Nano())
}

// authority is for how long this node has not been sure that it leads: the
// time since the sending of the newest heartbeats that a majority of the
// voters answered in its term. A leader that was paused, or whose followers
// have another, has grown old by this though nobody has told it so. ok is
// false if no majority has answered yet.
func (n *Node) authority() (age time.Duration, ok bool) {
	if n.raft.Load() == nil {
		return 0, false
	}
	now := n.c.Boot()
	sent, ok := confirmedBy(voterIDs(n.configuration()), n.self, n.trans.confirmations(), now)
	return now - sent, ok
}

// confirmedBy is the latest moment at or after which a majority of the voters
// has answered; the leader itself, if it votes, always does.
func confirmedBy(voters []raft.ServerID, self raft.ServerID, answered map[raft.ServerID]time.Duration, now time.Duration) (at time.Duration, ok bool) {
	var moments []time.Duration
	for _, id := range voters {
		if moment, has := answered[id]; id == self {
			moments = append(moments, now)
		} else if has {
			moments = append(moments, moment)
		}
	}
	majority := len(voters)/2 + 1
	if len(voters) == 0 || len(moments) < majority {
		return 0, false
	}
	slices.Sort(moments)
	return moments[len(moments)-majority], true
}

// FenceLeft is how long what must not run twice may still run on a node, for
// all that this leader knows; at 0 it has stopped, and does not start again but
// with a lease of this leader or a later one. It counts to the moment at which
// this node surely led, not to now: of what came after, a renewal by another
// leader's grace, it would know nothing. A node that does not lead says
// fenceEnds. An empty id looks the node up by its name.
func (n *Node) FenceLeft(nodeName, id string) time.Duration {
	now := time.Now() // before age, lest a pause in between add to the silence
	l, r := n.established(), n.raft.Load()
	if l == nil || r == nil || r.State() != raft.Leader || r.CurrentTerm() != l.term {
		return fenceEnds
	}
	age, sure := n.authority()
	if !sure {
		return fenceEnds
	}
	b := &n.leases
	b.mu.Lock()
	defer b.mu.Unlock()
	last := b.find(nodeName, id).Renewed
	if last.Before(b.since) {
		last = b.since
	}
	return max(fenceEnds-(now.Sub(last)-age), 0)
}
