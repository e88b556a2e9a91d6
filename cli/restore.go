package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"

	corev1 "k8s.io/api/core/v1"

	"conclave/consensus"
	"conclave/identity"
)

// restoration is a snapshot to begin with.
type restoration struct {
	// open reads and checks the file. The function returned frees it.
	open func(ctx context.Context) (restored, func(), error)
	// giveUpNewer: nodes that answer and have newer state are no reason to stop.
	giveUpNewer bool
}

// restored is what a snapshot holds.
type restored struct {
	what    string // for people
	cluster string // its id
	life    uint64 // the incarnation in which it was made
	bundle  []byte // of the authority
	state   io.Reader
}

// enterRestored makes this machine the first node of the cluster that a
// snapshot holds. Nothing is changed before all of it was read and found good,
// and the nodes that it names were asked whether they need it. It returns where
// those nodes gossip.
func (s *Server) enterRestored(ctx context.Context, from *restoration) (authority *identity.Authority, peers []string, err error) {
	content, free, err := from.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer free()
	authority, err = identity.ParseBundle(content.bundle)
	if err == nil && authority.Cluster().ID != content.cluster {
		err = errors.New("its keys are of another cluster")
	}
	if err == nil {
		err = s.own.need(authority.Cluster().PodCIDR.Addr().Is6())
	}
	var store *consensus.Store
	if err == nil {
		store, err = consensus.Read(content.state, sealedCodec{authority.Sealer()})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("restore %s: %w", content.what, err)
	}
	nodes := nodesOf(store)
	life, err := s.askOldNodes(ctx, authority, nodes, store.Revision(), from.giveUpNewer)
	if err != nil {
		return nil, nil, err
	}
	life.Number = max(life.Number, content.life)
	if life, err = authority.Proclaim(life, s.config.Name, "restore of "+content.what); err != nil {
		return nil, nil, err
	}
	seed := consensus.Seed{
		ID: s.node.ID(), Dir: s.path("raft"), Codec: sealedCodec{authority.Sealer()}, Incarnation: logIncarnation(life),
		Log: s.log.With("room", "consensus"),
	}
	if err := os.RemoveAll(s.path("raft")); err != nil { // of an attempt that was cut off: this node is in no cluster
		return nil, nil, err
	}
	if err := seed.FromStore(store); err != nil {
		return nil, nil, err
	}
	if _, err := identity.SaveBundle(s.path("master"), content.bundle); err != nil {
		return nil, nil, err
	}
	if authority, err = s.node.Found(ctx, identity.FoundOptions{Name: s.config.Name, Addresses: s.own.list(), MasterDir: s.path("master")}); err != nil {
		return nil, nil, err
	}
	for _, n := range nodes {
		peers = append(peers, net.JoinHostPort(n.address.String(), fmt.Sprint(gossipPort)))
	}
	s.config.Tell("restored cluster %.8s on %s (%s) from %s", content.cluster, s.config.Name, s.own.get(), content.what)
	if len(peers) > 0 {
		s.config.Tell("of its %d nodes, those that live come back by themselves; others join again", len(peers))
	}
	return authority, peers, nil
}

// oldNode is a node that a snapshot names.
type oldNode struct {
	name    string
	address netip.Addr
}

// nodesOf are the nodes by their id.
func nodesOf(store *consensus.Store) map[string]oldNode {
	nodes := map[string]oldNode{}
	records, _ := store.List(nodesResource.Resource, "")
	for _, r := range records {
		node, ok := r.Object().(*corev1.Node)
		if !ok {
			continue
		}
		id := node.Annotations["conclave.io/node-id"]
		for _, a := range node.Status.Addresses {
			if address, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP && id != "" {
				nodes[id] = oldNode{node.Name, address}
				break
			}
		}
	}
	return nodes
}

// askOldNodes asks the nodes of a snapshot whether their cluster lives without
// it, or could, and returns the newest incarnation that they know.
func (s *Server) askOldNodes(ctx context.Context, authority *identity.Authority, nodes map[string]oldNode, revision uint64, giveUpNewer bool) (newest identity.Incarnation, err error) {
	guest, err := authority.Guest(s.node, s.config.Name, s.own.list())
	if err != nil {
		return newest, err
	}
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	dialer := dialerTo(guest, func(id string) []netip.AddrPort {
		return []netip.AddrPort{netip.AddrPortFrom(nodes[id].address, apiPort)}
	}, s.log)
	defer dialer.Close()
	var mu sync.Mutex
	var reports []consensus.Report
	var asked sync.WaitGroup
	for id := range nodes {
		if id == s.node.ID() {
			continue
		}
		asked.Go(func() {
			raw, err := dialer.Call(ctx, id, "/conclave/v1/report", nil)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			var r consensus.Report
			if json.Unmarshal(raw, &r) == nil && r.ID == id {
				reports = append(reports, r)
			}
		})
		asked.Go(func() {
			raw, err := dialer.Call(ctx, id, "/conclave/v1/incarnation", []byte("{}"))
			var i identity.Incarnation
			if err != nil || json.Unmarshal(raw, &i) != nil || authority.Cluster().Verify(i) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if newest.Compare(i) < 0 {
				newest = i
			}
		})
	}
	asked.Wait()
	if len(reports) == 0 {
		return newest, nil
	}
	loss, err := consensus.Judge(reports, func(id string) string {
		if n, ok := nodes[id]; ok {
			return n.name
		}
		return fmt.Sprintf("%.8s", id)
	})
	switch {
	case errors.Is(err, consensus.ErrNotLost):
		return newest, fmt.Errorf("nothing is restored: %w: `conclave join` makes this machine one of its nodes", err)
	case err != nil: // nobody has a log
		return newest, nil
	case loss.Best.Log.Index > revision && !giveUpNewer:
		return newest, fmt.Errorf("nothing is restored: node %s lives and has the cluster's state up to revision %d, newer than this snapshot: run `conclave recover` there, or give it up with --give-up-newer",
			nodes[loss.Best.ID].name, loss.Best.Log.Index)
	}
	return newest, nil
}
