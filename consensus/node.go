package consensus

import (
	"context"
	"net/http"
	"time"
)

// Node is this process's replica of the log and the store.
type Node struct{}

// New opens the log in Config.Dir.
func New(c Config) (*Node, error) { return &Node{}, nil }

// HasState says whether dir holds a log.
func HasState(dir string) (bool, error) { return false, nil }

// Bootstrap makes this node the only voter of a new cluster. It is called
// once, before Run, and refuses a folder that has state.
func (n *Node) Bootstrap() error { return nil }

// Run runs the replica until ctx ends or the replica cannot go on.
func (n *Node) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Store is this node's replica.
func (n *Node) Store() *Store { return nil }

// Write commits one change and returns once this replica has applied it.
func (n *Node) Write(ctx context.Context, w Write) (Record, error) { return nil, ErrNoLeader }

// Sync returns once this replica has everything that was acknowledged
// anywhere before the call.
func (n *Node) Sync(ctx context.Context) error { return ErrNoLeader }

// Lead runs work each time this node becomes leader.
func (n *Node) Lead(ctx context.Context, work func(ctx context.Context) error) error { return nil }

// Leader is the id of the leader, "" if none is known.
func (n *Node) Leader() string { return "" }

// IsLeader says whether this node leads and has caught up with its own log.
func (n *Node) IsLeader() bool { return false }

// Transfer hands leadership to another voter.
func (n *Node) Transfer(ctx context.Context) error { return nil }

// Remove takes a node out of the configuration.
func (n *Node) Remove(ctx context.Context, id string) error { return nil }

// Handler answers peers' calls below /conclave/v1/.
func (n *Node) Handler() http.Handler { return http.NotFoundHandler() }

// Lease is when the node was last heard of, and whether its lease has ended.
// Only the leader knows: elsewhere nothing is ever expired.
func (n *Node) Lease(nodeName, id string) (renewed time.Time, expired bool) {
	return time.Time{}, false
}

// Leases are all leases that the leader knows.
func (n *Node) Leases() []Lease { return nil }

// Status describes the replica and, on the leader, its peers.
func (n *Node) Status() Status { return Status{} }

// Metrics is a snapshot of the counters.
func (n *Node) Metrics() Metrics { return Metrics{} }
