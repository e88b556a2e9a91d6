package consensus

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/hashicorp/raft"
)

// Codec turns objects into the bytes of the log and of snapshots, and back.
// Whatever must not be readable on disk is sealed inside it.
type Codec interface {
	Encode(Object) ([]byte, error)
	Decode([]byte) (Object, error)
}

// Caller posts to a peer by its node id over mutual TLS and returns the body
// of a 200 answer; any other answer is an error.
type Caller interface {
	Call(ctx context.Context, id, path string, body []byte) ([]byte, error)
}

// Member is what gossip says of one node. A node that left or that is unknown
// is not in the list, or is in it with Alive false.
type Member struct {
	ID, Name, Zone string
	Alive          bool
	Suspect        bool // gossip has doubts: nothing new is given to it
	NoMaster       bool // never a voter nor a standby
	Bare           bool // it has no log, and votes for nobody
	Memory         uint64
	DiskLatency    time.Duration
	Started        time.Time
}

// Timing is raft's clockwork. Zero fields take the defaults.
type Timing struct {
	// Heartbeat is how long a follower hears nothing before it stands for
	// election; Election how long one attempt lasts at most. 400 ms.
	Heartbeat, Election time.Duration
	// Lease is how long a leader that reaches no quorum still calls itself
	// leader: less than Heartbeat. 330 ms.
	Lease time.Duration
}

// Compaction is when the log is cut. Zero fields take the defaults.
type Compaction struct {
	Every     time.Duration // between two looks whether there is enough; 2 minutes
	Threshold uint64        // entries that make a snapshot worth while; 4096
	// Trailing entries are kept behind a snapshot: enough for a node that was
	// away to catch up, and for the older snapshot to be of use if the newer
	// one is damaged. 8192.
	Trailing uint64
}

// Config is what a Node needs from the rest of the process.
type Config struct {
	ID, Name string
	Dir      string // the folder raft/ of the data folder

	Stream    raft.StreamLayer
	Addresses raft.ServerAddressProvider
	Codec     Codec
	Caller    Caller
	// PeerID returns the node id of the caller's certificate, "" if none.
	PeerID func(*http.Request) string

	// Members is called from the leader's loop and must not block.
	Members func() []Member
	// MembersChanged returns a channel that is closed at the next change after
	// the call; it is called anew after each.
	MembersChanged func() <-chan struct{}
	// Prepare makes node id ready to run consensus (hands it the masters' keys
	// and has it start its Node). The leader calls it before it adds the node,
	// and again when an added node does not answer: it must be idempotent.
	Prepare func(ctx context.Context, id string) error
	// Incarnation is that of the cluster, as this node knows it. An empty log
	// takes it; New refuses a log of another one with ErrSuperseded.
	Incarnation Incarnation
	// Outdated is called, from any goroutine, when a peer shows a newer
	// incarnation: the caller finds out and stops the node.
	Outdated func()
	// Confirm is called after the start, until it returns no error: the caller
	// asks whom it knows whether the cluster was recovered without this node.
	// Until then the node does nothing as a leader. nil: there is nobody to ask.
	Confirm func(ctx context.Context) error
	// Retired is called at most once, from a goroutine of its own, when this
	// node is no longer in the configuration: the caller stops the node and
	// wipes Dir.
	Retired func()

	LeaseDuration time.Duration // of node leases; 3 s
	Window        int           // events kept for watchers; 20,000
	WindowBytes   int           // of their encoded size; 8 MiB
	Timing        Timing
	Compaction    Compaction
	Compare       time.Duration // between two comparisons of the masters' states; 10 minutes
	Log           *slog.Logger
	// Boot is the time since the machine started, suspensions included; nil is
	// the kernel's CLOCK_BOOTTIME.
	Boot func() time.Duration
	// OpenLog opens the log of Dir, for tests; nil opens raft-boltdb there.
	OpenLog func() (LogStore, error)
}

// LogStore is where raft's log is kept. What StoreLogs took is on disk when it
// returns.
type LogStore interface {
	raft.LogStore
	io.Closer
}
