package consensus

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// virtualBoot is a machine's time since boot inside a bubble.
func virtualBoot() time.Duration { return time.Duration(time.Now().UnixNano()) }

func TestConfirmedBy(t *testing.T) {
	type answers = map[raft.ServerID]time.Duration
	const now = 100
	for name, tc := range map[string]struct {
		voters   []raft.ServerID
		answered answers
		at       time.Duration
		ok       bool
	}{
		"alone":                              {voters: []raft.ServerID{"me"}, at: now, ok: true},
		"two need both":                      {voters: []raft.ServerID{"a", "me"}, answered: answers{"a": 40}, at: 40, ok: true},
		"three need the quicker":             {voters: []raft.ServerID{"a", "b", "me"}, answered: answers{"a": 40, "b": 90}, at: 90, ok: true},
		"five need the second":               {voters: []raft.ServerID{"a", "b", "c", "d", "me"}, answered: answers{"a": 40, "b": 90, "c": 70, "d": 10}, at: 70, ok: true},
		"nobody has answered":                {voters: []raft.ServerID{"a", "b", "me"}},
		"too few have":                       {voters: []raft.ServerID{"a", "b", "c", "d", "me"}, answered: answers{"a": 40}},
		"who does not vote does not count":   {voters: []raft.ServerID{"a", "b", "me"}, answered: answers{"a": 40, "standby": 99}, at: 40, ok: true},
		"a leader without a vote counts not": {voters: []raft.ServerID{"a", "b", "c"}, answered: answers{"a": 40, "b": 90}, at: 40, ok: true},
		"no voters":                          {},
	} {
		if at, ok := confirmedBy(tc.voters, "me", tc.answered, now); at != tc.at || ok != tc.ok {
			t.Errorf("%s: %d %v, want %d %v", name, at, ok, tc.at, tc.ok)
		}
	}
}

// A leader that is cut off from the other masters goes on answering an agent
// beside it for a while. That moves the agent's fence no further than the
// leader's authority reached, and nobody replaces anything before it is down.
func TestFenceOfAMinority(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		hosts := cluster(t, w, 3, 3)
		w.set(func() { w.noMaster["agent"] = true })
		agent := w.host(t, "agent")
		told := make(chan time.Duration, 1000)
		c := NewLease(LeaseConfig{
			ID: "agent", Name: "name-agent", Caller: agent, Boot: virtualBoot, Fence: func(until time.Duration) { told <- until },
			Masters: func() []string { return []string{"n0", "n1", "n2"} },
		})
		if c.FenceUntil() != 0 {
			t.Error("there is a fence before the first renewal")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Run(ctx) }()
		held := func() time.Duration { return c.FenceUntil() - virtualBoot() }
		until(t, "the fence holds", 5*time.Second, func() bool { return held() > 0 })
		time.Sleep(10 * time.Second)
		if left := held(); left < fenceHolds-2*time.Second || left > fenceHolds {
			t.Errorf("with all well, the fence holds for another %s", left)
		}
		old := leaderOf(hosts)
		if left := old.get().FenceLeft("name-agent", "agent"); left < fenceEnds-2*time.Second {
			t.Errorf("the leader would replace what a live node runs in %s", left)
		}
		for _, h := range hosts {
			if left := h.get().FenceLeft("name-nobody", ""); h != old && left != fenceEnds {
				t.Errorf("%s, which does not lead, believes that the fence is down in %s", h.id, left)
			}
		}
		w.set(func() { w.group[old.id], w.group["agent"] = 7, 7 })
		cut := virtualBoot()
		var next *Node
		until(t, "another leader", 5*time.Second, func() bool {
			for _, h := range hosts {
				if h != old && h.get().IsLeader() {
					next = h.get()
				}
			}
			return next != nil
		})
		for next.FenceLeft("name-agent", "agent") > 0 {
			time.Sleep(10 * time.Millisecond)
			if old.get().FenceLeft("name-agent", "agent") == 0 {
				t.Fatal("the leader without followers would replace what runs beside it")
			}
		}
		if held() > -time.Second {
			t.Errorf("the other side replaces what may run here until %s before", held())
		}
		if c.FenceUntil() > cut+fenceHolds {
			t.Errorf("the fence moved %s beyond what the cut allows", c.FenceUntil()-cut-fenceHolds)
		}
		w.set(func() { w.group[old.id], w.group["agent"] = 0, 0 })
		until(t, "the fence is back", 5*time.Second, func() bool { return held() > 0 })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		close(told)
		last := time.Duration(0)
		for at := range told {
			if at <= last {
				t.Errorf("the fence was told to go from %s to %s", last, at)
			}
			last = at
		}
		endAll(hosts)
	})
}
