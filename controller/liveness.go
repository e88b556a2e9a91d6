package controller

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// nodeIDAnnotation is where a Node object carries the id of its key.
const nodeIDAnnotation = "conclave.io/node-id"

// states remembers what Liveness last said of each node, to tell what changed.
type states struct {
	liveness Liveness
	mu       sync.Mutex
	last     map[string]NodeState
}

func newStates(l Liveness) *states { return &states{liveness: l, last: map[string]NodeState{}} }

// of asks Liveness, not memory.
func (s *states) of(node *corev1.Node) NodeState {
	return s.liveness.State(node.Name, node.Annotations[nodeIDAnnotation])
}

// fenceLeft is Liveness' for a node.
func (s *states) fenceLeft(node *corev1.Node) time.Duration {
	return s.liveness.FenceLeft(node.Name, node.Annotations[nodeIDAnnotation])
}

// lost says that a node's agent cannot be asked, for good as far as is known.
func (s NodeState) lost() bool { return s == Refused || s == Dead }

// out says whether the pods of a node must not be sent traffic. The pods of a
// host that merely lacks our process run on.
func (s NodeState) out() bool { return s == Suspect || s == Dead }

// changedSince compares the nodes with the last time, and remembers.
func (s *states) changedSince(all []*corev1.Node) (changed []*corev1.Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := make(map[string]NodeState, len(all))
	for _, node := range all {
		now := s.of(node)
		seen[node.Name] = now
		if now != s.last[node.Name] {
			changed = append(changed, node)
		}
	}
	s.last = seen
	return changed
}

// watchLiveness turns a change of a node's state into a change of the Node
// object that changes nothing in it: whoever maps nodes to keys is told.
func (m *Manager) watchLiveness(ctx context.Context) {
	for {
		changed := m.env.Liveness.Changed()
		for _, node := range m.env.states.changedSince(list[*corev1.Node](m.env.cache, nodes, "")) {
			m.dispatch(nodes, []Change{{Old: node, New: node}})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
