package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// A UDP flow has no end that the kernel could see: as long as a client sends,
// its packets follow the translation that the first of them got. So when an
// endpoint goes, its flows must be forgotten. The same goes for flows that
// began while there was no endpoint, and for everything of a pod's address
// that another pod may get.

// staleFlows matches connection tracking entries that lead astray.
type staleFlows struct {
	// vips has the destinations whose endpoints changed. A VIP without
	// address stands for all of this node's.
	vips map[VIP]staleVIP
	// pods are addresses that no pod has any more.
	pods map[netip.Addr]struct{}
}

type staleVIP struct{ was, is []netip.AddrPort }

// staleAfter compares two rules; a nil old means that anything may be stale.
func staleAfter(old, r *Rules, pods []netip.Addr) staleFlows {
	s := staleFlows{vips: map[VIP]staleVIP{}, pods: map[netip.Addr]struct{}{}}
	before := map[VIP][]netip.AddrPort{}
	if old != nil {
		before = old.udpTargets()
	}
	after := r.udpTargets()
	for vip, is := range after {
		if was, ok := before[vip]; !ok || !slices.Equal(was, is) {
			s.vips[vip] = staleVIP{was, is}
		}
	}
	for vip, was := range before {
		if _, ok := after[vip]; !ok {
			s.vips[vip] = staleVIP{was, nil}
		}
	}
	for _, a := range pods {
		s.pods[a] = struct{}{}
	}
	return s
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	addr := func(ip net.IP) netip.Addr { a, _ := netip.AddrFromSlice(ip); return a.Unmap() }
	client, dest, server := addr(f.Forward.SrcIP), addr(f.Forward.DstIP), addr(f.Reverse.SrcIP)
	if _, ok := s.pods[client]; ok {
		return true
	}
	if _, ok := s.pods[server]; ok {
		return true
	}
	if protocol(f.Forward.Protocol) != udp {
		return false
	}
	to := netip.AddrPortFrom(server, f.Reverse.SrcPort)
	untranslated := server == dest
	if v, ok := s.vips[VIP{dest, udp, f.Forward.DstPort}]; ok {
		return !slices.Contains(v.is, to)
	}
	// Whether the destination is ours is not known here: only what was led to
	// an endpoint of old, or was not led anywhere, is stale.
	if v, ok := s.vips[VIP{Proto: udp, Port: f.Forward.DstPort}]; ok {
		return untranslated && len(v.is) > 0 || slices.Contains(v.was, to) && !slices.Contains(v.is, to)
	}
	return false
}

// forget deletes what matches.
func (s staleFlows) forget(f *family) error {
	if len(s.vips) == 0 && len(s.pods) == 0 {
		return nil
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.InetFamily(f.netlink), s); err != nil {
		return fmt.Errorf("forgetting stale connection tracking entries: %w", err)
	}
	return nil
}
