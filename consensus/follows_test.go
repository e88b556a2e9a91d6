package consensus

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// TestCandidateFollowsNobody: raft knows a leader's name and follows it not. A
// candidate that is told to take over takes the old leader's entries all the
// same; if they remove it, the name is all that it ever hears.
func TestCandidateFollowsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := raft.DefaultConfig()
		c.LocalID, c.LogLevel = "a", "OFF"
		log := raft.NewInmemStore()
		snaps := raft.NewInmemSnapshotStore()
		_, own := raft.NewInmemTransport("a")
		_, other := raft.NewInmemTransport("b")
		own.Connect("b", other)
		other.Connect("a", own)
		if err := raft.BootstrapCluster(c, log, log, snaps, own, raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}, {ID: "b", Address: "b"}}}); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(c, &raft.MockFSM{}, log, log, snaps, own)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := r.Shutdown().Error(); err != nil {
				t.Error(err)
			}
		}()
		until(t, "it to be a candidate", time.Minute, func() bool { return r.State() == raft.Candidate })
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b"), Addr: []byte("b")}
		if err := other.TimeoutNow("a", "a", &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{}); err != nil {
			t.Fatal(err)
		}
		var answer raft.AppendEntriesResponse
		if err := other.AppendEntries("a", "a", &raft.AppendEntriesRequest{RPCHeader: header, Term: r.CurrentTerm()}, &answer); err != nil || !answer.Success {
			t.Fatalf("%+v, %v", answer, err)
		}
		if _, leader := r.LeaderWithID(); leader != "b" || r.State() != raft.Candidate {
			t.Skipf("raft is %s and knows the leader %q: it has learned better", r.State(), leader)
		}
		if follows(r) {
			t.Error("a candidate is said to follow the leader that it knows")
		}
	})
}
