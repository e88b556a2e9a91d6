package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// ndpSpeech is neighbour discovery of IPv6 over Ethernet (RFC 4861), of which
// questions for neighbours are all that is heard: announcements of who takes
// over are meant for others.
var ndpSpeech = speech{
	name: "neighbour discovery", ethertype: unix.ETH_P_IPV6,
	filter: []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 6}, // the next header
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.IPPROTO_ICMPV6},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 14 + 40}, // its type
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: ndpSolicitation},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	},
	parse: parseSolicitation,
	reply: func(own net.HardwareAddr, h heard) []byte {
		if h.from.IsUnspecified() { // it looks whether it may have the address: all shall hear
			return ndpAdvertisement(own, allNodesMAC, h.asks, allNodes, ndpOverride)
		}
		return ndpAdvertisement(own, h.mac[:], h.asks, h.from, ndpOverride|ndpSolicited)
	},
	announce: func(own net.HardwareAddr, a netip.Addr) [][]byte {
		return [][]byte{ndpAdvertisement(own, allNodesMAC, a, allNodes, ndpOverride)}
	},
	join: joinSolicited,
}

const (
	ndpSolicitation = 135
	ndpAdvertised   = 136

	// Flags of an advertisement. That of a router is not set: nobody shall send
	// by way of a load balancer's address.
	ndpSolicited = 0x40
	ndpOverride  = 0x20

	ndpLength = 14 + 40 + 24 // Ethernet's header, that of IPv6, and a solicitation without options
)

var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = []byte{0x33, 0x33, 0, 0, 0, 1}
)

// parseSolicitation reads a frame; whatever RFC 4861, 7.1.1 does not accept for
// a question for a neighbour is none.
func parseSolicitation(frame []byte) (h heard, ok bool) {
	if len(frame) < ndpLength || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IPV6 || frame[14]>>4 != 6 {
		return h, false
	}
	head := frame[14 : 14+40]
	size := int(binary.BigEndian.Uint16(head[4:]))
	if head[6] != unix.IPPROTO_ICMPV6 || head[7] != 255 || size < 24 || len(frame) < 14+40+size {
		return h, false
	}
	body := frame[14+40 : 14+40+size]
	copy(h.mac[:], frame[6:12])
	to := netip.AddrFrom16([16]byte(head[24:40]))
	h.from, h.asks = netip.AddrFrom16([16]byte(head[8:24])), netip.AddrFrom16([16]byte(body[8:24]))
	if body[0] != ndpSolicitation || body[1] != 0 || h.asks.IsMulticast() || h.from.IsMulticast() || checksum6(h.from, to, body) != 0 {
		return h, false
	}
	return h, true
}

// ndpAdvertisement says that an address is at a hardware address. It comes from
// the address itself.
func ndpAdvertisement(from, toMAC []byte, address, to netip.Addr, flags byte) []byte {
	body := []byte{ndpAdvertised, 0, 0, 0, flags, 0, 0, 0}
	body = slices.Concat(body, address.AsSlice(), []byte{2, 1}, from) // the option "target link-layer address"
	binary.BigEndian.PutUint16(body[2:], checksum6(address, to, body))
	head := []byte{6 << 4, 0, 0, 0, 0, byte(len(body)), unix.IPPROTO_ICMPV6, 255}
	return slices.Concat(toMAC, from, binary.BigEndian.AppendUint16(nil, unix.ETH_P_IPV6), head, address.AsSlice(), to.AsSlice(), body)
}

// checksum6 is that of ICMPv6, over the message and what RFC 8200, 8.1 puts
// before it. Of a message with the right one in it, it is 0.
func checksum6(from, to netip.Addr, body []byte) uint16 {
	pseudo := binary.BigEndian.AppendUint32(slices.Concat(from.AsSlice(), to.AsSlice()), uint32(len(body)))
	return checksum(slices.Concat(pseudo, []byte{0, 0, 0, unix.IPPROTO_ICMPV6}, body))
}

// solicited is the group in which a question for an address is asked (RFC 4291,
// 2.7.1).
func solicited(a netip.Addr) netip.Addr {
	b, low := netip.MustParseAddr("ff02::1:ff00:0").As16(), a.As16()
	copy(b[13:], low[13:])
	return netip.AddrFrom16(b)
}

// joinSolicited joins the groups of addresses on a link, so that its hardware
// and the switches before it let questions through.
func joinSolicited(index int, all []netip.Addr) (leave func() error, err error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket of IPv6: %w", err)
	}
	groups := map[netip.Addr]bool{}
	for _, a := range all {
		group := solicited(a)
		if groups[group] {
			continue
		}
		groups[group] = true
		if err := unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: group.As16(), Interface: uint32(index)}); err != nil {
			return nil, errors.Join(fmt.Errorf("joining %s: %w", group, err), unix.Close(fd))
		}
	}
	return func() error { return unix.Close(fd) }, nil
}
