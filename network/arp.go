package network

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// arpSpeech is ARP for IPv4 over Ethernet (RFC 826).
var arpSpeech = speech{
	name: "ARP", ethertype: unix.ETH_P_ARP,
	parse: func(frame []byte) (h heard, ok bool) {
		p, ok := parseARP(frame)
		h.mac, h.from = p.senderMAC, p.sender
		if p.op == arpRequest {
			h.asks = p.target
		}
		if p.sender != p.target { // or else it announces itself, as those do that take over
			h.claims = p.sender
		}
		return h, ok
	},
	reply: func(own net.HardwareAddr, h heard) []byte {
		return arpFrame(own, h.mac[:], arpReply, h.asks, h.mac[:], h.from)
	},
	announce: func(own net.HardwareAddr, a netip.Addr) [][]byte { // in both ways that are in use
		return [][]byte{
			arpFrame(own, everybody, arpRequest, a, make([]byte, 6), a),
			arpFrame(own, everybody, arpReply, a, everybody, a),
		}
	},
}

var everybody = []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

const (
	arpRequest = 1
	arpReply   = 2
	arpLength  = 14 + 28 // Ethernet's header and ARP for IPv4
)

// arpHead is what ARP for IPv4 over Ethernet begins with.
var arpHead = []byte{0, 1, 8, 0, 6, 4}

type arpPacket struct {
	op             uint16
	senderMAC      [6]byte
	sender, target netip.Addr
}

// parseARP reads a frame; whatever is not ARP for IPv4 over Ethernet is none.
func parseARP(frame []byte) (p arpPacket, ok bool) {
	if len(frame) < arpLength || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_ARP || !bytes.Equal(frame[14:20], arpHead) {
		return p, false
	}
	body := frame[14:]
	p.op = binary.BigEndian.Uint16(body[6:])
	copy(p.senderMAC[:], body[8:14])
	p.sender, p.target = netip.AddrFrom4([4]byte(body[14:18])), netip.AddrFrom4([4]byte(body[24:28]))
	return p, true
}

func arpFrame(from, to []byte, op uint16, sender netip.Addr, targetMAC []byte, target netip.Addr) []byte {
	f := slices.Concat(to, from, binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP), arpHead, binary.BigEndian.AppendUint16(nil, op))
	return slices.Concat(f, from, sender.AsSlice(), targetMAC, target.AsSlice())
}
