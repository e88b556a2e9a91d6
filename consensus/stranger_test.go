package consensus

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// lateDisk takes its time, and may be full when that is over.
type lateDisk struct{ fullDisk }

func (d lateDisk) StoreLogs(logs []*raft.Log) error {
	time.Sleep(20 * time.Millisecond)
	return d.fullDisk.StoreLogs(logs)
}

// TestVoteOfWhoMissesTheVoters: a leader gives a second and a third node a vote,
// and dies before the second knows of the third's. The third has the newer log,
// and the second gives it no vote, because it has none by its own: each alone
// would refuse the other for ever.
func TestVoteOfWhoMissesTheVoters(t *testing.T) {
	bubble(t, func(t *testing.T, w *wires) {
		var full atomic.Bool
		hosts := []*host{w.host(t, "n0"), w.host(t, "n1"), w.host(t, "n2")}
		second, third := hosts[1], hosts[2]
		second.onDisk(func(log LogStore) LogStore { return lateDisk{fullDisk{log, &full}} })
		hosts[0].start(true)
		until(t, "three voters", time.Minute, func() bool { return third.get() != nil && countVoters(third.get()) == 3 })
		full.Store(true)
		hosts[0].powerOff()
		time.Sleep(time.Second)
		if countVoters(second.get()) == 3 {
			t.Fatal("the second knows too")
		}
		full.Store(false)
		until(t, "one of the two to lead", time.Minute, func() bool { return leaderOf(hosts[1:]) != nil })
		endAll(hosts)
	})
}

func TestTail(t *testing.T) {
	log, err := newGuardedLog(raft.NewInmemStore())
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(2 * tailMost) {
		l := raft.Log{Index: i + 1, Term: 1 + i/10, Type: raft.LogCommand, Data: []byte{entryUnsummed, 1}}
		if i >= 100 {
			l.Data = make([]byte, maxEntry/2)
		}
		if err := log.StoreLog(&l); err != nil {
			t.Fatal(err)
		}
	}
	n := &Node{disk: &disk{log: log}}
	for _, c := range []struct {
		after, term uint64
		want        int
	}{
		{9, 1, tailMost},
		{10, 1, tailMost},
		{10, 2, 0}, // another past
		{0, 0, 0},
		{98, 10, 3},  // as many as are not too large together
		{100, 10, 2}, // at least one, however large
		{2*tailMost - 1, 13, 1},
		{2 * tailMost, 13, 0},
		{2*tailMost + 1, 13, 0},
	} {
		got := n.tail(tailQuestion{c.after, c.term})
		if len(got.Entries) != c.want || c.want > 0 && got.Entries[0].Index != c.after+1 {
			t.Errorf("%d entries behind %d of term %d, not %d", len(got.Entries), c.after, c.term, c.want)
		}
	}
}

func TestFollow(t *testing.T) {
	entry := func(index, term uint64) raft.Log {
		return raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte{entryUnsummed, 1}}
	}
	damaged := entry(6, 2)
	damaged.Data = []byte{entryVersion, 0, 0, 0, 0, 1}
	for name, c := range map[string]struct {
		entries []raft.Log
		well    bool
	}{
		"in order":         {[]raft.Log{entry(6, 2), entry(7, 2), entry(8, 4)}, true},
		"a gap before":     {[]raft.Log{entry(7, 2)}, false},
		"a gap":            {[]raft.Log{entry(6, 2), entry(8, 2)}, false},
		"one that is here": {[]raft.Log{entry(5, 2), entry(6, 2)}, false},
		"an older term":    {[]raft.Log{entry(6, 1)}, false},
		"terms go back":    {[]raft.Log{entry(6, 3), entry(7, 2)}, false},
		"damage":           {[]raft.Log{damaged}, false},
	} {
		if got, err := follow(5, 2, c.entries); (err == nil) != c.well || c.well && len(got) != len(c.entries) {
			t.Errorf("%s: %d entries, %v", name, len(got), err)
		}
	}
}

// TestKeep: what a leader has stored meanwhile is not thrown away.
func TestKeep(t *testing.T) {
	log, err := newGuardedLog(raft.NewInmemStore())
	if err != nil {
		t.Fatal(err)
	}
	store := func(index, term uint64) {
		if err := log.StoreLog(&raft.Log{Index: index, Term: term, Type: raft.LogNoop}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(5) {
		store(i+1, 1)
	}
	release := log.keep(4)
	if err := log.DeleteRange(5, 5); err == nil || log.termAt(5) != 1 {
		t.Errorf("the end is gone: %v", err)
	}
	if err := log.DeleteRange(1, 2); err != nil || log.termAt(2) != 0 {
		t.Errorf("the beginning could not be removed: %v", err)
	}
	release()
	if err := log.DeleteRange(5, 5); err != nil {
		t.Error(err)
	}
}
