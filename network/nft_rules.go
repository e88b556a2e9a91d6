package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers. The first is the 16-byte register 1; 9 and 10 are its second and
// third word, where the parts of a concatenation go.
const (
	reg0 = 1
	reg1 = 9
	reg2 = 10

	regVerdict = unix.NFT_REG_VERDICT
)

// rule concatenates parts of a rule.
func rule(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func load(reg uint32, base expr.PayloadBase, offset, length uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length})
}

func loadSource(reg uint32) []expr.Any { return load(reg, expr.PayloadBaseNetworkHeader, 12, 4) }
func loadDest(reg uint32) []expr.Any   { return load(reg, expr.PayloadBaseNetworkHeader, 16, 4) }
func loadPort(reg uint32) []expr.Any   { return load(reg, expr.PayloadBaseTransportHeader, 2, 2) }

func meta(key expr.MetaKey, reg uint32) []expr.Any { return one(&expr.Meta{Key: key, Register: reg}) }

func compare(op expr.CmpOp, data []byte) []expr.Any {
	return one(&expr.Cmp{Op: op, Register: reg0, Data: data})
}

// within matches an address that has been loaded.
func within(op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := ipNet(p).Mask
	return rule(one(&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: mask, Xor: make([]byte, 4)}),
		compare(op, p.Masked().Addr().AsSlice()))
}

func sourceIs(op expr.CmpOp, p netip.Prefix) []expr.Any { return rule(loadSource(reg0), within(op, p)) }
func destIs(op expr.CmpOp, p netip.Prefix) []expr.Any   { return rule(loadDest(reg0), within(op, p)) }

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// link compares a link's name.
func link(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return rule(meta(key, reg0), compare(op, padded))
}

func protoIs(p protocol) []expr.Any {
	return rule(meta(expr.MetaKeyL4PROTO, reg0), compare(expr.CmpOpEq, []byte{byte(p)}))
}

// anyBit matches if a word that has been loaded, in the machine's own byte
// order, has one of the bits.
func anyBit(bits uint32) []expr.Any {
	return rule(one(&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)}),
		compare(expr.CmpOpNeq, make([]byte, 4)))
}

// setMark sets or clears our bit of the packet's mark and leaves the others.
func setMark(set bool) []expr.Any {
	xor := uint32(0)
	if set {
		xor = masqueradeMark
	}
	return rule(meta(expr.MetaKeyMARK, reg0),
		one(&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^uint32(masqueradeMark)), Xor: binaryutil.NativeEndian.PutUint32(xor)}),
		one(&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg0}))
}

// local matches if the source or destination is an address of this node.
func local(op expr.CmpOp, source bool) []expr.Any {
	return rule(one(&expr.Fib{Register: reg0, FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true}),
		compare(op, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)))
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return one(&expr.Verdict{Kind: kind, Chain: chain})
}

// vipKey and portOnlyKey load what the sets of such keys are looked up by.
func vipKey() []expr.Any {
	return rule(loadDest(reg0), meta(expr.MetaKeyL4PROTO, reg1), loadPort(reg2))
}

func portOnlyKey() []expr.Any { return rule(meta(expr.MetaKeyL4PROTO, reg0), loadPort(reg1)) }

// verdictFrom goes where a map of verdicts says.
func verdictFrom(set string) []expr.Any { return verdictOf(set, reg0) }

func verdictOf(set string, reg uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg, DestRegister: regVerdict, IsDestRegSet: true, SetName: set})
}

// targetFrom loads an address and a port into two registers.
func targetFrom(set string, source, dest uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: source, DestRegister: dest, IsDestRegSet: true, SetName: set})
}

func inSet(set string, invert bool) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg0, SetName: set, Invert: invert})
}

func dnat(addr, port uint32) []expr.Any {
	return one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: addr, RegProtoMin: port})
}

func masquerade() []expr.Any { return one(&expr.Masq{FullyRandom: true}) }

var (
	loopback  = netip.MustParsePrefix("127.0.0.0/8")
	multicast = netip.MustParsePrefix("224.0.0.0/4")
)

type baseChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// baseChains are where packets enter the table.
func baseChains(b Base) []baseChain {
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return &nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority}
	}
	newOnly := rule(one(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0}), anyBit(expr.CtStateBitNEW), verdict(expr.VerdictGoto, "refuse"))
	return []baseChain{
		{chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw), [][]expr.Any{
			// route_localnet lets this host reach host ports by 127.0.0.1. It
			// must not let pods reach what listens there.
			rule(link(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridgeName), destIs(expr.CmpOpEq, loopback), verdict(expr.VerdictDrop, "")),
		}},
		{chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), [][]expr.Any{
			verdict(expr.VerdictGoto, "dispatch"),
		}},
		{chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest), [][]expr.Any{
			verdict(expr.VerdictGoto, "dispatch"),
		}},
		{chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter), [][]expr.Any{
			rule(protoIs(udp), loadPort(reg0), compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(vxlanPort)),
				loadSource(reg0), inSet(setNodes, true), verdict(expr.VerdictDrop, "")),
		}},
		{chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter), [][]expr.Any{newOnly}},
		{chain("local-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter), [][]expr.Any{newOnly}},
		{chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource), [][]expr.Any{
			rule(meta(expr.MetaKeyMARK, reg0), anyBit(masqueradeMark), setMark(false), masquerade()),
			rule(loadSource(reg0), loadDest(reg1), inSet(setHairpin, false), masquerade()),
			rule(sourceIs(expr.CmpOpEq, loopback), link(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridgeName), masquerade()),
			rule(sourceIs(expr.CmpOpEq, b.PodCIDR), destIs(expr.CmpOpNeq, b.PodCIDR), destIs(expr.CmpOpNeq, multicast),
				link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, bridgeName), link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, "lo"), masquerade()),
		}},
	}
}

// dispatchRules lead a new connection to its service.
func dispatchRules(b Base) [][]expr.Any {
	return [][]expr.Any{
		rule(destIs(expr.CmpOpEq, single(b.DNS)), verdict(expr.VerdictReturn, "")),
		// The answer must come back this way, and pods answer strangers
		// directly.
		rule(destIs(expr.CmpOpEq, b.ServiceCIDR), sourceIs(expr.CmpOpNeq, b.PodCIDR), setMark(true)),
		// What plain says are three words, the last of them the number of
		// endpoints.
		rule(vipKey(), targetFrom(setPlain, reg0, reg0), verdictOf(setPicks, reg2)),
		rule(vipKey(), verdictFrom(setServices)),
		rule(destIs(expr.CmpOpEq, b.ServiceCIDR), verdict(expr.VerdictReturn, "")),
		rule(local(expr.CmpOpNeq, false), verdict(expr.VerdictReturn, "")),
		rule(destIs(expr.CmpOpNeq, loopback), portOnlyKey(), verdictFrom(setNodePorts)),
		rule(vipKey(), targetFrom(setHostPorts, reg0, reg0), dnat(reg0, reg1)),
		rule(portOnlyKey(), targetFrom(setAnyHost, reg0, reg0), dnat(reg0, reg1)),
	}
}

// refuseRules reject at once what would otherwise wait for an answer.
func refuseRules(b Base) [][]expr.Any {
	reset := one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	unreachable := one(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}) // port unreachable
	unserved := rule(destIs(expr.CmpOpEq, b.ServiceCIDR), destIs(expr.CmpOpNeq, single(b.DNS)))
	refused := rule(vipKey(), inSet(setRefused, false))
	virtual := rule(loadDest(reg0), inSet(setVirtual, false))
	return [][]expr.Any{
		rule(unserved, protoIs(tcp), reset), // not rate-limited, as ICMP is
		rule(unserved, unreachable),
		rule(refused, protoIs(tcp), reset),
		rule(refused, unreachable),
		rule(virtual, protoIs(tcp), reset),
		rule(virtual, unreachable),
	}
}

// firewallRules are those of a fw- chain.
func firewallRules(f Firewall) [][]expr.Any {
	var rules [][]expr.Any
	for _, p := range f.Sources {
		if p.Addr().Is4() {
			rules = append(rules, rule(sourceIs(expr.CmpOpEq, p), verdict(expr.VerdictGoto, f.Entry)))
		}
	}
	return append(rules, verdict(expr.VerdictDrop, ""))
}

// entryRules are those of an ext- chain.
func entryRules(e Entry, b Base) [][]expr.Any {
	if !e.LocalOnly {
		return [][]expr.Any{rule(setMark(true), verdict(expr.VerdictGoto, e.Cluster))}
	}
	rules := [][]expr.Any{
		rule(sourceIs(expr.CmpOpEq, b.PodCIDR), verdict(expr.VerdictGoto, e.Cluster)),
		rule(local(expr.CmpOpEq, true), setMark(true), verdict(expr.VerdictGoto, e.Cluster)),
	}
	if e.Local == "" {
		return append(rules, verdict(expr.VerdictDrop, ""))
	}
	return append(rules, verdict(expr.VerdictGoto, e.Local))
}

// pickRules are those of the plain balancers that have n endpoints: a random
// number takes the place of n behind what tells the balancer from the others.
func pickRules(n int) [][]expr.Any {
	return [][]expr.Any{rule(vipKey(), targetFrom(setPlain, reg0, reg0),
		one(&expr.Numgen{Register: reg2, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}),
		targetFrom(setEndpoints, reg0, reg0), dnat(reg0, reg1))}
}

// balancerRules are those of a svc- or loc- chain.
func balancerRules(name string, b Balancer) [][]expr.Any {
	pick := func(reg uint32) []expr.Any {
		return rule(one(&expr.Numgen{Register: reg, Modulus: uint32(len(b.Endpoints)), Type: unix.NFT_NG_RANDOM}),
			targetFrom("ep-"+name, reg, reg))
	}
	plain := rule(pick(reg0), dnat(reg0, reg1))
	if b.Affinity == 0 {
		return [][]expr.Any{plain}
	}
	clients := "cl-" + name
	remember := one(&expr.Dynset{SrcRegKey: reg0, SrcRegData: reg1, SetName: clients, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: b.Affinity})
	return [][]expr.Any{
		// A client that is known, and is remembered for as long again.
		rule(loadSource(reg0), targetFrom(clients, reg0, reg1), remember, dnat(reg1, reg2)),
		rule(loadSource(reg0), pick(reg1), remember, dnat(reg1, reg2)),
		plain, // when the set of clients is full
	}
}
