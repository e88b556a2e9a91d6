// Package liveness puts together what gossip, the leases and a knock at the
// door say of a node: gossip alone may only suspect, an expired lease evicts,
// and a connection that is refused means that the host lives while only our
// process is down (docs/decisions/0002-liveness.md).
//
// It owns no membership and no lease: it asks for both, and keeps only the last
// knock at each node that gossip doubts. decide is the whole judgement, a pure
// function. Run is one loop; each knock is a goroutine that ends with its
// timeout, and Run waits for all of them.
package liveness

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// State is the judgement on a node.
type State uint8

// The judgements, in the order of package controller's NodeState.
const (
	Alive   State = iota // its lease is held, and gossip does not doubt it
	Suspect              // in doubt: nothing new is given to it, nothing taken from it
	Refused              // its host answers that our process is not running
	Dead                 // doubted, and its lease has ended
)

// Member is what gossip says of a node.
type Member struct {
	ID, Name string
	Alive    bool           // and not suspected
	Address  netip.AddrPort // of the port that every node listens on
}

// Config says where to ask. All functions are called from several goroutines.
type Config struct {
	Members func() []Member
	// Subscribe gives hints that Members changed.
	Subscribe func() (<-chan struct{}, func())
	// Lease is when a node renewed last, and whether its lease has ended.
	Lease func(name, id string) (renewed time.Time, expired bool)
	// Dial makes a TCP connection; nil is net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Patience is how long a node may miss its lease although gossip, or its
	// open port, says that it lives; 40 s, as Kubernetes waits for a kubelet.
	Patience time.Duration
}

// knockTimeout is how long a host may take to refuse or accept a connection.
const knockTimeout = 500 * time.Millisecond

// The loop looks again this often: leases end without a hint.
const (
	calm    = time.Second
	alarmed = 100 * time.Millisecond
)

type knock uint8

const (
	unknown knock = iota
	silent        // no answer: timeout, no route
	open
	refused
)

type judged struct {
	state  State
	knock  knock
	asked  time.Time // of the last knock
	asking bool
}

// Judge knows the state of every node. Make one by New.
type Judge struct {
	config Config

	mu      sync.Mutex
	nodes   map[string]*judged // by id
	changed chan struct{}      // closed at the next change
	found   Detections
}

// Detections says how many nodes were found dead, and how long after they were
// last heard of: in all, and the newest one.
type Detections struct {
	Count     uint64
	Sum, Last time.Duration
}

// Detections are those since New.
func (j *Judge) Detections() Detections {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.found
}

// New prepares a Judge; without Run it calls everybody alive.
func New(c Config) *Judge {
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Patience == 0 {
		c.Patience = 40 * time.Second
	}
	return &Judge{config: c, nodes: map[string]*judged{}, changed: make(chan struct{})}
}

// State is the judgement on a node, from memory. A node that gossip has never
// heard of is judged by its lease alone.
func (j *Judge) State(name, id string) State {
	j.mu.Lock()
	if n := j.nodes[id]; n != nil {
		defer j.mu.Unlock()
		return n.state
	}
	j.mu.Unlock()
	if _, expired := j.config.Lease(name, id); expired {
		return Dead
	}
	return Alive
}

// Changed returns a channel that is closed when a judgement has changed.
func (j *Judge) Changed() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.changed
}

// Run judges until ctx ends.
func (j *Judge) Run(ctx context.Context) error {
	hints, cancel := j.config.Subscribe()
	defer cancel()
	knocked := make(chan struct{}, 1)
	var knocks sync.WaitGroup
	defer knocks.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hints:
		case <-knocked:
		case <-timer.C:
		}
		doubt := j.look(time.Now(), func(id string, address netip.AddrPort) {
			knocks.Go(func() {
				answer := j.knock(ctx, address)
				j.mu.Lock()
				if n := j.nodes[id]; n != nil {
					n.knock, n.asking = answer, false
				}
				j.mu.Unlock()
				select {
				case knocked <- struct{}{}:
				default:
				}
			})
		})
		if doubt {
			timer.Reset(alarmed)
		} else {
			timer.Reset(calm)
		}
	}
}

// look judges every member once, knocks where that would tell more, and says
// whether anybody is in doubt.
func (j *Judge) look(now time.Time, ask func(id string, address netip.AddrPort)) (doubt bool) {
	members := j.config.Members()
	j.mu.Lock()
	defer j.mu.Unlock()
	changed := false
	present := map[string]bool{}
	for _, m := range members {
		present[m.ID] = true
		n := j.nodes[m.ID]
		if n == nil {
			n = &judged{}
			j.nodes[m.ID] = n
		}
		if m.Alive {
			n.knock, n.asked = unknown, time.Time{}
		} else if !n.asking && now.Sub(n.asked) >= time.Second && n.state != Dead {
			n.asking, n.asked = true, now
			ask(m.ID, m.Address)
		}
		renewed, expired := j.config.Lease(m.Name, m.ID)
		state := decide(facts{
			gossip: m.Alive, expired: expired, patient: now.Sub(renewed) < j.config.Patience,
			knock: n.knock, before: n.state,
		})
		if state == Dead && n.state != Dead && !renewed.IsZero() {
			j.found.Count++
			j.found.Last = now.Sub(renewed)
			j.found.Sum += j.found.Last
		}
		changed = changed || state != n.state
		n.state = state
		doubt = doubt || (state != Alive && state != Dead) || !m.Alive && state != Dead
	}
	for id := range j.nodes {
		if !present[id] {
			delete(j.nodes, id)
			changed = true
		}
	}
	if changed {
		close(j.changed)
		j.changed = make(chan struct{})
	}
	return doubt
}

type facts struct {
	gossip  bool // gossip does not doubt it
	expired bool // its lease has ended
	patient bool // the last renewal is recent enough to wait for signs of life to win
	knock   knock
	before  State
}

// decide judges a node.
func decide(f facts) State {
	lives := f.gossip || f.knock == open
	switch {
	case f.gossip && !f.expired:
		return Alive
	case !f.gossip && f.knock == refused:
		return Refused
	case !f.gossip && f.knock == unknown && f.before != Dead && !f.expired:
		// The first knock, under way now, tells a dead host from a dead process.
		return f.before
	case !f.expired:
		return Suspect
	case lives && f.patient:
		return Suspect
	case !f.gossip && f.knock == unknown && f.before != Dead:
		return f.before
	default:
		return Dead
	}
}

// knock tries to connect to a node.
func (j *Judge) knock(ctx context.Context, address netip.AddrPort) knock {
	ctx, cancel := context.WithTimeout(ctx, knockTimeout)
	defer cancel()
	conn, err := j.config.Dial(ctx, "tcp", address.String())
	switch {
	case err == nil:
		conn.Close()
		return open
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused
	default:
		return silent
	}
}
