package consensus

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// Status describes a replica.
type Status struct {
	ID      string
	Leader  string
	State   string // "leader", "follower", "candidate" or "stopped"
	Term    uint64
	Applied uint64 // newest revision in the store
	Last    uint64 // newest index in the log
	// DiskError is why the disk took the newest entry not; nil if it did.
	DiskError error
	Servers   []Server
	// Masters is known to the leader alone.
	Masters *Masters
}

// DiskProblem says what is wrong with the disk of the log, for people; "" if
// nothing is.
func (s *Status) DiskProblem() string {
	switch {
	case s.DiskError == nil:
		return ""
	case errors.Is(s.DiskError, ErrDiskFull):
		return "the disk that holds the log is full: free some space, nothing can be written until then"
	}
	return fmt.Sprintf("the disk that holds this master's log takes no writes: %v", s.DiskError)
}

// Masters is how the set of masters is: so many of Target voters do their work,
// so many non-voters could take a place at once, and why there are too few and
// nothing can be done about it.
type Masters struct {
	Voters, Target, Standby int
	Problems                []string
}

// Server is one member of the raft configuration.
type Server struct {
	ID    string
	Voter bool
	// Lag is how many entries the server was known to miss, Contact when it
	// last answered. Both are known to the leader alone.
	Lag     uint64
	Contact time.Time
}

// Metrics are counters since New, and the newest of some times.
type Metrics struct {
	Writes     uint64 // attempts to write that began on this node
	Forwarded  uint64 // of them, those that went to another node
	Commits    uint64 // entries that this node proposed as leader
	CommitTime time.Duration
	// Elections are those that this node won, from the last word of the leader
	// before until it led itself and knew all that was written.
	Elections Times
	// Replacements: from the first doubt about a voter until there were as many
	// as there should be, while this node led.
	Replacements Times
	Changes      uint64 // changes of the master set that this node made
	LastChange   time.Duration
	// Window is how many events are kept, WindowBytes their size in the log.
	Window, WindowBytes int
}

// Times sums up how long something took that happens now and then.
type Times struct {
	Count     uint64
	Sum, Last time.Duration
}

func (t *Times) add(took time.Duration) {
	t.Count++
	t.Sum += took
	t.Last = took
}

// Status describes the replica and, on the leader, its peers.
func (n *Node) Status() Status {
	s := Status{ID: n.c.ID, State: "stopped", Applied: n.store.Revision(), DiskError: n.disk.log.refusal()}
	r := n.raft.Load()
	if r == nil {
		return s
	}
	s.Leader, s.Term = n.leaderAndTerm()
	s.State, s.Last = strings.ToLower(r.State().String()), r.LastIndex()
	for _, server := range r.GetConfiguration().Configuration().Servers {
		o := Server{ID: string(server.ID), Voter: server.Suffrage == raft.Voter}
		if r.State() == raft.Leader && server.ID != n.self {
			p := n.trans.peer(o.ID)
			o.Contact = p.contact
			o.Lag = s.Last - min(p.last, s.Last)
		}
		s.Servers = append(s.Servers, o)
	}
	if l := n.established(); l != nil {
		set := Masters(l.masters())
		s.Masters = &set
	}
	return s
}

// Metrics is a snapshot of the counters.
func (n *Node) Metrics() Metrics {
	n.mu.Lock()
	m := n.stats
	n.mu.Unlock()
	n.store.mu.RLock()
	m.Window, m.WindowBytes = n.store.all.len(), n.store.bytes
	n.store.mu.RUnlock()
	return m
}
