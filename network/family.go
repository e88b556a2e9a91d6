package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// family is one of the two kinds of addresses, with all in which packets and
// tables of the one differ from the other's. What is the same for both is
// written once, and takes a family.
type family struct {
	name    string // as nft calls it
	long    string // as the kernel's modules do
	table   nftables.TableFamily
	netlink int
	length  uint32 // of an address, in bytes
	header  int    // the length of a packet's header, without extensions
	// source and dest are where addresses are in a packet's header.
	source, dest uint32
	// behind is the register of the word behind an address in reg0, and
	// further that of the one behind that; both are words of four bytes, as
	// parts of concatenations are.
	behind, further uint32
	// past is the register of the word behind an address that begins at behind.
	past uint32

	icmp, unreachable   uint8 // the protocol, and its code for a closed port
	loopback, multicast netip.Prefix

	typeAddr, typeVIP, typeTarget, typePair nftables.SetDatatype
}

func newFamily(f family) *family {
	f.typeVIP = nftables.MustConcatSetType(f.typeAddr, nftables.TypeInetProto, nftables.TypeInetService)
	f.typeTarget = nftables.MustConcatSetType(f.typeAddr, nftables.TypeInetService)
	f.typePair = nftables.MustConcatSetType(f.typeAddr, f.typeAddr)
	words := f.length / 4
	f.behind, f.further = word0+words, word0+words+1
	f.past = f.behind + words
	return &f
}

var (
	ip4 = newFamily(family{
		name: "ip", long: "ipv4", table: nftables.TableFamilyIPv4, netlink: netlink.FAMILY_V4, length: 4, header: 20, source: 12, dest: 16,
		icmp: unix.IPPROTO_ICMP, unreachable: 3,
		loopback: netip.MustParsePrefix("127.0.0.0/8"), multicast: netip.MustParsePrefix("224.0.0.0/4"),
		typeAddr: nftables.TypeIPAddr,
	})
	ip6 = newFamily(family{
		name: "ip6", long: "ipv6", table: nftables.TableFamilyIPv6, netlink: netlink.FAMILY_V6, length: 16, header: 40, source: 8, dest: 24,
		icmp: unix.IPPROTO_ICMPV6, unreachable: 4,
		loopback: netip.MustParsePrefix("::1/128"), multicast: netip.MustParsePrefix("ff00::/8"),
		typeAddr: nftables.TypeIP6Addr,
	})
)

// familyOf is the family of an address.
func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return ip4
	}
	return ip6
}

// has says whether an address is of the family.
func (f *family) has(a netip.Addr) bool { return a.IsValid() && familyOf(a) == f }

func (f *family) loadSource(reg uint32) []expr.Any {
	return load(reg, expr.PayloadBaseNetworkHeader, f.source, f.length)
}

func (f *family) loadDest(reg uint32) []expr.Any {
	return load(reg, expr.PayloadBaseNetworkHeader, f.dest, f.length)
}

// loadBoth loads source and destination, one behind the other.
func (f *family) loadBoth() []expr.Any { return rule(f.loadSource(reg0), f.loadDest(f.behind)) }

// vipKey loads what sets of typeVIP are looked up by.
func (f *family) vipKey() []expr.Any {
	return rule(f.loadDest(reg0), meta(expr.MetaKeyL4PROTO, f.behind), loadPort(f.further))
}

// within matches an address that has been loaded.
func (f *family) within(op expr.CmpOp, p netip.Prefix) []expr.Any {
	return rule(one(&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: f.length, Mask: ipNet(p).Mask, Xor: make([]byte, f.length)}),
		compare(op, p.Masked().Addr().AsSlice()))
}

func (f *family) sourceIs(op expr.CmpOp, p netip.Prefix) []expr.Any {
	return rule(f.loadSource(reg0), f.within(op, p))
}

func (f *family) destIs(op expr.CmpOp, p netip.Prefix) []expr.Any {
	return rule(f.loadDest(reg0), f.within(op, p))
}

// dnat sends to the address and port in two registers.
func (f *family) dnat(addr, port uint32) []expr.Any {
	return one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.table), RegAddrMin: addr, RegProtoMin: port})
}

// dnatTarget sends to what a map of typeTarget has put into reg0.
func (f *family) dnatTarget() []expr.Any { return f.dnat(reg0, f.behind) }
