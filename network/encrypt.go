package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"conclave/network/wireguard"
)

// In a cluster that encrypts, a WireGuard tunnel takes the overlay's place. It
// is one link, whose peers are the other nodes, each with its ranges of pods'
// addresses as the only ones that it may use. There is no other way: what is
// for pods of other nodes and would leave by another link is dropped, and so is
// what says to be from a pod and has come by one.

const (
	tunnelName = "conclave.wg"
	tunnelPort = 51820
	// tunnelOverhead is what WireGuard adds over IPv6, 20 bytes more than over
	// IPv4: so all nodes have one MTU.
	tunnelOverhead = 80

	keyFile = "wireguard.key"
)

// AnnotationWireGuardKey of a Node is the public key by which it encrypts what
// pods send to pods of other nodes.
const AnnotationWireGuardKey = "conclave.io/wireguard-key"

// Encryption is what a node needs to encrypt.
type Encryption struct {
	// Start starts a process that outlives this one, where the kernel has no
	// WireGuard.
	Start func(*exec.Cmd) error
}

// ProbeEncryption says why a host with these settings cannot encrypt, if so.
func ProbeEncryption(directRoutes bool) error {
	_, err := probeTunnel(directRoutes)
	return err
}

// probeTunnel tries in a namespace of its own who can encrypt here.
func probeTunnel(directRoutes bool) (means wireguard.Means, err error) {
	if directRoutes {
		return 0, errors.New("the cluster encrypts what pods of different nodes say to each other (--encrypt), and --direct-routes sends it as it is: leave --direct-routes away")
	}
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("this kernel or container does not let us make network namespaces: %w", err)
		}
		var err error
		means, err = wireguard.Probe()
		return err
	})
	return means, err
}

// openTunnel makes what a node that encrypts has.
func (n *Network) openTunnel() error {
	means, err := probeTunnel(n.cfg.DirectRoutes)
	if err != nil {
		return err
	}
	if n.key, err = wireguard.OpenKey(filepath.Join(n.cfg.Dir, keyFile)); err != nil {
		return err
	}
	n.host.tunnel = wireguard.New(wireguard.Config{
		Link: tunnelName, Dir: n.cfg.RunDir, Means: means, Start: n.cfg.Encrypt.Start,
		Died: func() {
			n.cfg.Log.Warn("the process that encrypts has ended, starting it again")
			n.want()
		},
	})
	return nil
}

// PublicKey is what the Node's AnnotationWireGuardKey shall be; empty if the
// cluster does not encrypt.
func (n *Network) PublicKey() string {
	if n.cfg.Encrypt == nil {
		return ""
	}
	return n.key.Public().String()
}

// EncryptedBy says who encrypts here what pods say to pods of other nodes;
// empty if nobody does.
func (n *Network) EncryptedBy() string {
	if n.cfg.Encrypt == nil {
		return ""
	}
	return n.host.tunnel.Means().String()
}

// overhead is what a packet grows by on its way to another node.
func (c Config) overhead() int {
	if c.Encrypt != nil {
		return tunnelOverhead
	}
	return c.families()[0].overhead()
}

// keyed leaves those of the peers that can be encrypted for, and none twice.
func keyed(peers []peer) []peer {
	seen := map[wireguard.Key]bool{{}: true}
	return slices.DeleteFunc(peers, func(p peer) bool {
		known := seen[p.Key]
		seen[p.Key] = true
		return known
	})
}

// device is what the tunnel is to be.
func (c hostConfig) device() wireguard.Device {
	d := wireguard.Device{Key: c.Key, Port: tunnelPort, Source: c.Address, Peers: map[wireguard.Key]wireguard.Peer{}}
	for _, p := range c.Peers {
		theirs := p.Range.all()
		allowed := slices.Clone(theirs[:min(len(theirs), len(c.Range.all()))])
		slices.SortFunc(allowed, wireguard.ComparePrefixes)
		d.Peers[p.Key] = wireguard.Peer{Endpoint: netip.AddrPortFrom(p.Address, tunnelPort), Allowed: allowed}
	}
	return d
}

// setTunnel is setOverlay for a host that encrypts.
func (h *host) setTunnel(c hostConfig) error {
	if c.Peers == nil {
		// Not to be known yet must not end what there is.
		if link, err := netlink.LinkByName(tunnelName); err == nil && wireguard.IsLink(link) {
			return nil
		}
	}
	link, err := h.tunnel.Set(c.MTU, c.device())
	if err != nil {
		return err
	}
	if err := bringUp(link, c.Range.between()); err != nil {
		return err
	}
	var routes []netlink.Route
	for _, p := range c.Peers {
		theirs := p.Range.all()
		for i, own := range c.Range.all() {
			if i < len(theirs) {
				routes = append(routes, linkRoute(link, theirs[i], own))
			}
		}
	}
	return setRoutes(link, routes)
}

// tunnelWell says whether who encrypts is there.
func (h *host) tunnelWell() bool { return h.tunnel == nil || h.tunnel.Well() }

// removeTunnel removes the tunnel, also one that an earlier configuration had.
func (h *host) removeTunnel() error {
	return wireguard.New(wireguard.Config{Link: tunnelName, Dir: h.runDir}).Remove()
}

// unkeyed says why no packets go to a node, if it has shown no key.
func (n *Network) unkeyed(name string) string {
	if n.cfg.Encrypt == nil {
		return ""
	}
	n.cluster.mu.RLock()
	defer n.cluster.mu.RUnlock()
	if n.cluster.nodes[name].key != (wireguard.Key{}) {
		return ""
	}
	return "its Node has no usable annotation " + AnnotationWireGuardKey + ", by which to encrypt for it"
}

// parseKey reads a node's key, which is zero where there is none.
func parseKey(annotations map[string]string) wireguard.Key {
	k, err := wireguard.ParseKey(annotations[AnnotationWireGuardKey])
	if err != nil {
		return wireguard.Key{}
	}
	return k
}

// tunnelChains are the base chains of a cluster that encrypts: what is from a
// pod comes from the bridge or out of the tunnel, and what is for a pod goes
// there.
func tunnelChains(b Base) []baseChain {
	f := b.ip()
	elsewhere := func(key expr.MetaKey) []expr.Any {
		return rule(link(key, expr.CmpOpNeq, bridgeName), link(key, expr.CmpOpNeq, tunnelName), link(key, expr.CmpOpNeq, "lo"), verdict(expr.VerdictDrop, ""))
	}
	return []baseChain{
		{&nftables.Chain{Name: "plain-in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw},
			[][]expr.Any{rule(f.sourceIs(expr.CmpOpEq, b.PodCIDR), elsewhere(expr.MetaKeyIIFNAME))}},
		// Before addresses of senders are translated, and behind where a packet
		// goes is known.
		{&nftables.Chain{Name: "plain-out", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityMangle},
			[][]expr.Any{rule(f.destIs(expr.CmpOpEq, b.PodCIDR), elsewhere(expr.MetaKeyOIFNAME))}},
	}
}
