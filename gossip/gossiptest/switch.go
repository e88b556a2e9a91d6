// Package gossiptest is a lossy network in memory for tests of whole clusters.
package gossiptest

import (
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// Switch is a network in memory. It implements nothing by itself: each Host
// made from it is a memberlist.Transport.
type Switch struct{}

// New makes a Switch without faults.
func New(seed int64) *Switch { return nil }

// Host plugs in a host with an address.
func (s *Switch) Host(addr netip.AddrPort) memberlist.Transport { return nil }

// Partition cuts the hosts of each group from those of the others.
func (s *Switch) Partition(groups ...[]netip.Addr) {}

// Heal undoes Partition, Cut and Kill.
func (s *Switch) Heal() {}

// Cut drops all from one host to another, one way.
func (s *Switch) Cut(from, to netip.Addr) {}

// Kill makes a host dead: nothing in, nothing out. Revive undoes it.
func (s *Switch) Kill(a netip.Addr) {}

// Revive undoes Kill.
func (s *Switch) Revive(a netip.Addr) {}

// Loss drops this fraction of packets (streams are reliable).
func (s *Switch) Loss(fraction float64) {}

// Delay delays every packet and the opening of each stream.
func (s *Switch) Delay(base, jitter time.Duration) {}
