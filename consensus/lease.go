package consensus

import (
	"context"
	"log/slog"
	"time"
)

// Lease is one node's lease as the leader sees it.
type Lease struct {
	ID, Name string
	Renewed  time.Time
	Expired  bool
}

// Status describes a replica.
type Status struct {
	ID       string
	Leader   string
	State    string // "leader", "follower", "candidate", "stopped"
	Term     uint64
	Applied  uint64 // newest index applied
	Last     uint64 // newest index in the log
	DiskFull bool
	Servers  []Server
}

// Server is one member of the raft configuration.
type Server struct {
	ID    string
	Voter bool
	// Lag, known to the leader alone, is how many entries the server misses.
	Lag     uint64
	Contact time.Time // known to the leader alone
}

// Metrics are counters since the start of the process.
type Metrics struct {
	Writes, Forwarded uint64
}

// LeaseConfig is what a LeaseClient needs.
type LeaseConfig struct {
	ID, Name string
	Caller   Caller
	Masters  func() []string // ids of nodes that may know the leader
	Duration time.Duration   // as in Config.LeaseDuration; 3 s
	Log      *slog.Logger
}

// LeaseClient keeps this node's lease with the leader.
type LeaseClient struct{}

// NewLease returns a client that does nothing before Run.
func NewLease(c LeaseConfig) *LeaseClient { return &LeaseClient{} }

// Run renews until ctx ends.
func (l *LeaseClient) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Renewed is when the last successful renewal was begun: the lease cannot end
// on the leader's clock before Renewed plus Duration.
func (l *LeaseClient) Renewed() time.Time { return time.Time{} }

// Lost returns a channel that is closed once two thirds of the lease have
// passed without a renewal: what must not run twice has to stop within the
// last third. After a renewal, Lost returns a new channel.
func (l *LeaseClient) Lost() <-chan struct{} { return nil }
