package wireguard

import (
	"maps"
	"net/netip"
	"slices"
)

// Device is all that a link is set to.
type Device struct {
	Key  Key    // private
	Port uint16 // UDP, at all addresses of this host
	// Source is this host's address, as others know it. When it changes, where
	// packets were sent from so far is forgotten.
	Source netip.Addr
	Peers  map[Key]Peer // by their public keys
}

// Peer is somebody at the other end.
type Peer struct {
	Endpoint netip.AddrPort
	// Allowed are the addresses that are sent to the peer, and the only ones
	// that packets from it may come from; sorted. No two peers have one.
	Allowed []netip.Prefix
}

// keepalive is the interval at which a peer is greeted, in seconds, the longest
// that there is. It is for the first greeting that it is set: a peer of which
// one is asked for is greeted at once, and so a session is made that both ends
// can use, also after one of them has forgotten it.
const keepalive = 65535

// change is what a device lacks, in the order in which it has to be said:
// whoever goes gives up addresses that another may get.
type change struct {
	Key   *Key
	Port  *uint16
	Gone  []Key
	Peers []peerChange
}

type peerChange struct {
	Key      Key
	Endpoint netip.AddrPort // invalid: as it is
	Allowed  []netip.Prefix // all of them; nil: as they are
	New      bool
}

// to says how a device becomes another. Where packets are sent from anew, all
// peers are told their endpoints again.
func (d Device) to(want Device, anew bool) (c change) {
	if d.Key != want.Key {
		c.Key = &want.Key
	}
	if d.Port != want.Port {
		c.Port = &want.Port
	}
	order := func(a, b Key) int { return slices.Compare(a[:], b[:]) }
	for _, k := range slices.SortedFunc(maps.Keys(d.Peers), order) {
		if _, stays := want.Peers[k]; !stays {
			c.Gone = append(c.Gone, k)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(want.Peers), order) {
		is, there := d.Peers[k]
		p, differs := peerChange{Key: k, New: !there}, !there
		if w := want.Peers[k].Endpoint; anew || is.Endpoint != w {
			p.Endpoint, differs = w, true
		}
		if w := want.Peers[k].Allowed; !slices.Equal(is.Allowed, w) {
			p.Allowed, differs = append([]netip.Prefix{}, w...), true
		}
		if differs {
			c.Peers = append(c.Peers, p)
		}
	}
	return c
}

func (c change) empty() bool {
	return c.Key == nil && c.Port == nil && len(c.Gone) == 0 && len(c.Peers) == 0
}

// sortPrefixes puts what was read into the order of Peer.Allowed.
func sortPrefixes(all []netip.Prefix) {
	slices.SortFunc(all, ComparePrefixes)
}

// ComparePrefixes is the order of Peer.Allowed.
func ComparePrefixes(a, b netip.Prefix) int {
	if d := a.Addr().Compare(b.Addr()); d != 0 {
		return d
	}
	return a.Bits() - b.Bits()
}
