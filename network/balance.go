package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A load balancer's address that no node has is answered for by one node. Every
// node finds out for itself which: nobody asks, and nothing is agreed upon, so
// that an address goes on also while there is no master. Two nodes that see
// different members may both answer for a moment; the one that began later has
// said so to everybody on the link.

// balance is what load balancers need of this node besides Rules.
type balance struct {
	// answers are the addresses that this node answers for, with the service
	// that each belongs to.
	answers map[netip.Addr]types.NamespacedName
	// health is what is told at each health check port.
	health map[uint16]healthCheck
}

type healthCheck struct {
	service types.NamespacedName
	local   int // endpoints that are ready on this node
}

// balance maps what has been seen of the cluster, and who is alive, to what
// this node does. A nil alive takes all nodes for alive.
func (c *cluster) balance(self string, alive []string) balance {
	c.mu.RLock()
	defer c.mu.RUnlock()
	b := balance{map[netip.Addr]types.NamespacedName{}, map[uint16]healthCheck{}}
	if len(c.balanced) == 0 {
		return b
	}
	owned := map[netip.Addr]bool{}
	var able []string
	for name, n := range c.nodes {
		for _, a := range n.addrs {
			owned[a] = true
		}
		if !n.excluded && (alive == nil || slices.Contains(alive, name)) {
			able = append(able, name)
		}
	}
	for key, s := range c.balanced {
		counts := map[*family]nodeCounts{ip4: c.nodesOf(ip4, key), ip6: c.nodesOf(ip6, key)}
		if p := s.balancer.healthPort; p != 0 {
			if other, taken := b.health[p]; !taken || compareKeys(key, other.service) < 0 {
				b.health[p] = healthCheck{key, max(counts[ip4].ready[self], counts[ip6].ready[self])}
			}
		}
		if !s.balancer.ours {
			continue
		}
		for _, a := range s.balancer.addresses {
			if owned[a] || announcer(a, s.candidates(able, counts[familyOf(a)])) != self {
				continue
			}
			if other, taken := b.answers[a]; !taken || compareKeys(key, other) < 0 {
				b.answers[a] = key
			}
		}
	}
	return b
}

// candidates are those of some nodes that may answer for a service's address:
// as the rules choose, ones with an endpoint that is ready, or else that
// drains, or else anybody may say that nobody serves.
func (s *service) candidates(able []string, n nodeCounts) []string {
	if !s.externalLocal {
		return able
	}
	for _, on := range []map[string]int{n.ready, n.draining} {
		if near := slices.DeleteFunc(slices.Clone(able), func(name string) bool { return on[name] == 0 }); len(near) > 0 {
			return near
		}
	}
	return able
}

// nodeCounts are how many endpoints of a service each node has.
type nodeCounts struct{ ready, draining map[string]int }

// nodesOf counts a service's endpoints of one family on each node. The lock
// must be held.
func (c *cluster) nodesOf(f *family, key types.NamespacedName) nodeCounts {
	out := nodeCounts{map[string]int{}, map[string]int{}}
	seen := map[netip.Addr]bool{}
	for _, s := range c.byService[key] {
		for _, e := range s.endpoints {
			switch {
			case seen[e.addr] || e.node == "" || !f.has(e.addr):
			case e.ready:
				seen[e.addr] = true
				out.ready[e.node]++
			case e.draining:
				out.draining[e.node]++
			}
		}
	}
	return out
}

// announcer is which of these nodes answers for an address: the one with the
// highest hash of both. So a node that goes moves only what it had, and each
// address to where chance wants it.
func announcer(a netip.Addr, nodes []string) string {
	best, highest := "", uint64(0)
	for _, n := range nodes {
		sum := sha256.Sum256(append(a.AsSlice(), n...))
		if h := binary.BigEndian.Uint64(sum[:]); best == "" || h > highest || h == highest && n < best {
			best, highest = n, h
		}
	}
	return best
}

// runBalance keeps the health check ports and the answers for addresses as the
// cluster wants them, until ctx ends.
func (n *Network) runBalance(ctx context.Context) error {
	health := newHealthServer(n.cfg.Log, func() bool { return n.healthy() })
	defer health.close()
	answers := newAnswerer(n.cfg.Log, n.host.sysctl)
	defer answers.close()
	var told sync.WaitGroup
	defer told.Wait()
	var had balance
	var met []string
	started := time.Now()
	for {
		var alive []string
		var news <-chan struct{} // nil: none
		if n.cfg.Live != nil {
			alive, news = n.cfg.Live()
		}
		var retry <-chan time.Time
		switch {
		case !n.cluster.isSynced("services", "endpointslices", "nodes"):
		case n.lonely(alive) && time.Since(started) < meetTime:
			retry = time.After(meetTime - time.Since(started))
		default:
			is := n.cluster.balance(n.cfg.NodeName, alive)
			failed := health.set(is.health)
			err := answers.set(slices.Collect(maps.Keys(is.answers)), n.cfg.Address().Unmap())
			// Whoever comes or comes back may have answered for what is ours.
			slices.Sort(alive)
			if !slices.Equal(alive, met) {
				answers.repeat()
			}
			met = alive
			if err != nil || failed {
				if err != nil {
					n.cfg.Log.Warn("answering for load balancers' addresses failed, trying again", "err", err)
				}
				retry = time.After(retryMost)
			}
			for a, key := range is.answers {
				if had.answers[a] != key {
					n.cfg.Log.Info("answering for a load balancer's address", "address", a, "service", key)
					told.Go(func() { n.tell(ctx, key, "nodeAssigned", fmt.Sprintf("announcing %s from node %q", a, n.cfg.NodeName)) })
				}
			}
			had = is
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.balanceKick:
		case <-news:
		case <-retry:
		case <-answers.again():
			answers.shout()
		}
	}
}

// meetTime is how long a process that has just started, and has met no other
// node yet, leaves the addresses to those that it may meet.
const meetTime = 5 * time.Second

// lonely says that of several nodes none but this one is seen alive.
func (n *Network) lonely(alive []string) bool {
	n.cluster.mu.RLock()
	defer n.cluster.mu.RUnlock()
	return len(alive) == 1 && alive[0] == n.cfg.NodeName && len(n.cluster.nodes) > 1
}

// healthy says whether the rules are what is wanted.
func (n *Network) healthy() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.problems["rules"] == nil
}

// tell writes an Event about a service. It is a kindness: where no master
// answers, it is not told.
func (n *Network) tell(ctx context.Context, key types.NamespacedName, reason, message string) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	o, err := n.cfg.Client.Get(ctx, followed["services"], key.Namespace, key.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return
	}
	now := metav1.Now()
	event := &corev1.Event{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: fmt.Sprintf("%s.%x", key.Name, now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: key.Namespace, Name: key.Name,
			UID: o.GetUID(), ResourceVersion: o.GetResourceVersion()},
		Type: corev1.EventTypeNormal, Reason: reason, Message: message,
		Source:         corev1.EventSource{Component: "conclave-network", Host: n.cfg.NodeName},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
		ReportingController: "conclave-network", ReportingInstance: n.cfg.NodeName,
	}
	if _, err := n.cfg.Client.Create(ctx, eventResource, key.Namespace, event.Name, event, metav1.CreateOptions{}); err != nil {
		n.cfg.Log.Debug("an event was not written", "service", key, "reason", strings.ToLower(reason), "err", err)
	}
}
