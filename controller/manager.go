package controller

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

// NodeState is what gossip and the leases together say of a node.
type NodeState uint8

const (
	// Alive: the node's lease is held, and gossip does not doubt it.
	Alive NodeState = iota
	// Suspect: gossip doubts the node, its lease still runs. It gets no new
	// pods and leaves the endpoints; nothing is evicted.
	Suspect
	// Refused: the host answers that our process is not running. Its pods run
	// on, so they are given longer.
	Refused
	// Dead: gossip doubts the node and its lease has expired.
	Dead
)

// Liveness says who is alive. Its answers come from memory.
type Liveness interface {
	// State is what is known of a node by its name and the id in its
	// annotation conclave.io/node-id.
	State(nodeName, nodeID string) NodeState
	// Changed returns a channel that is closed, or receives, when the answer
	// of State may have changed for any node. It is asked for again after
	// each time.
	Changed() <-chan struct{}
}

// Config is what a Manager needs.
type Config struct {
	// Client reads the leader's own store and writes through its API server.
	Client api.Client
	// Kinds are all resources served: the garbage collector and the deletion
	// of namespaces look after every one of them.
	Kinds    []schema.GroupVersionResource
	Liveness Liveness
	// RootCA is the PEM of the cluster's CA, for kube-root-ca.crt.
	RootCA func() []byte
	// PodCIDR is divided among the nodes in ranges of NodeMask bits (24).
	PodCIDR  netip.Prefix
	NodeMask int
	Now      func() time.Time
	Log      *slog.Logger
}

// Manager runs every controller.
type Manager struct {
	config Config
}

// New prepares a Manager; nothing runs before Run.
func New(c Config) (*Manager, error) {
	if c.Client == nil || c.Liveness == nil {
		return nil, errors.New("controller: a Client and a Liveness are needed")
	}
	return &Manager{config: c}, nil
}

// Run reconciles until ctx, which is leadership's, ends, and returns when all
// that it started has ended.
func (m *Manager) Run(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}
