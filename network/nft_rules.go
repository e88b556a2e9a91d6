package network

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers. The first is the 16-byte register 1, which begins with word0; 9
// and 10 are its second and third word, where the parts of a concatenation go.
// What lies behind an address depends on its family.
const (
	reg0  = 1
	word0 = 8
	reg1  = 9
	reg2  = 10

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

func loadPort(reg uint32) []expr.Any { return load(reg, expr.PayloadBaseTransportHeader, 2, 2) }

func meta(key expr.MetaKey, reg uint32) []expr.Any { return one(&expr.Meta{Key: key, Register: reg}) }

func compare(op expr.CmpOp, data []byte) []expr.Any {
	return one(&expr.Cmp{Op: op, Register: reg0, Data: data})
}

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

// portOnlyKey loads what sets of typePort are looked up by.
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

func masquerade() []expr.Any { return one(&expr.Masq{FullyRandom: true}) }

type baseChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// baseChains are where packets enter the table.
func baseChains(b Base) []baseChain {
	f := b.ip()
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, rules ...[]expr.Any) baseChain {
		return baseChain{&nftables.Chain{Name: name, Type: kind, Hooknum: hook, Priority: priority}, rules}
	}
	newOnly := rule(one(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0}), anyBit(expr.CtStateBitNEW), verdict(expr.VerdictGoto, "refuse"))
	dispatch := verdict(expr.VerdictGoto, "dispatch")
	var all []baseChain
	if f == ip4 {
		all = []baseChain{
			// route_localnet lets this host reach host ports by 127.0.0.1. It
			// must not let pods reach what listens there.
			chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
				rule(link(expr.MetaKeyIIFNAME, expr.CmpOpEq, bridgeName), f.destIs(expr.CmpOpEq, f.loopback), verdict(expr.VerdictDrop, ""))),
		}
	}
	if b.Overlay {
		all = append(all, chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter,
			rule(protoIs(udp), loadPort(reg0), compare(expr.CmpOpEq, binaryutil.BigEndian.PutUint16(vxlanPort)),
				f.loadSource(reg0), inSet(setNodes, true), verdict(expr.VerdictDrop, ""))))
	}
	if f == ip6 {
		// We answer for load balancers' addresses ourselves; the kernel would
		// pass a question on, and on.
		all = append(all, chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw,
			rule(meta(expr.MetaKeyL4PROTO, reg0), compare(expr.CmpOpEq, []byte{f.icmp}), load(reg0, expr.PayloadBaseTransportHeader, 0, 1), compare(expr.CmpOpEq, []byte{ndpSolicitation}),
				f.loadDest(reg0), inSet(setVirtual, false), verdict(expr.VerdictDrop, ""))))
	}
	if b.Tunnel {
		all = append(all, tunnelChains(b)...)
	}
	return append(all,
		chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, dispatch),
		chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, dispatch),
		chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, newOnly),
		chain("local-out", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, newOnly),
		chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, postroutingRules(b)...))
}

// postroutingRules masquerade what has to come back this way.
func postroutingRules(b Base) [][]expr.Any {
	f := b.ip()
	rules := [][]expr.Any{
		rule(meta(expr.MetaKeyMARK, reg0), anyBit(masqueradeMark), setMark(false), masquerade()),
		rule(f.loadBoth(), inSet(setHairpin, false), masquerade()),
	}
	if f == ip4 {
		rules = append(rules, rule(f.sourceIs(expr.CmpOpEq, f.loopback), link(expr.MetaKeyOIFNAME, expr.CmpOpEq, bridgeName), masquerade()))
	}
	return append(rules, rule(f.sourceIs(expr.CmpOpEq, b.PodCIDR), f.destIs(expr.CmpOpNeq, b.PodCIDR), f.destIs(expr.CmpOpNeq, f.multicast),
		link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, bridgeName), link(expr.MetaKeyOIFNAME, expr.CmpOpNeq, "lo"), masquerade()))
}

// dispatchRules lead a new connection to its service.
func dispatchRules(b Base) [][]expr.Any {
	f := b.ip()
	var rules [][]expr.Any
	if b.DNS.IsValid() {
		rules = append(rules, rule(f.destIs(expr.CmpOpEq, single(b.DNS)), verdict(expr.VerdictReturn, "")))
	}
	rules = append(rules,
		// The answer must come back this way, and pods answer strangers
		// directly.
		rule(f.destIs(expr.CmpOpEq, b.ServiceCIDR), f.sourceIs(expr.CmpOpNeq, b.PodCIDR), setMark(true)),
		// What plain says are three words, the last of them the number of
		// endpoints.
		rule(f.vipKey(), targetFrom(setPlain, reg0, reg0), verdictOf(setPicks, reg2)),
		rule(f.vipKey(), verdictFrom(setServices)),
		rule(f.destIs(expr.CmpOpEq, b.ServiceCIDR), verdict(expr.VerdictReturn, "")),
		rule(local(expr.CmpOpNeq, false), verdict(expr.VerdictReturn, "")))
	if f == ip6 {
		// The kernel takes nothing from ::1 that did not come from itself, so
		// no port there can lead to a pod.
		rules = append(rules, rule(f.destIs(expr.CmpOpEq, f.loopback), verdict(expr.VerdictReturn, "")))
	}
	return append(rules,
		rule(f.destIs(expr.CmpOpNeq, f.loopback), portOnlyKey(), verdictFrom(setNodePorts)),
		rule(f.vipKey(), targetFrom(setHostPorts, reg0, reg0), f.dnatTarget()),
		rule(portOnlyKey(), targetFrom(setAnyHost, reg0, reg0), f.dnatTarget()))
}

// refuseRules reject at once what would otherwise wait for an answer.
func refuseRules(b Base) [][]expr.Any {
	f := b.ip()
	reset := one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	unreachable := one(&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: f.unreachable})
	unserved := f.destIs(expr.CmpOpEq, b.ServiceCIDR)
	if b.DNS.IsValid() {
		unserved = rule(unserved, f.destIs(expr.CmpOpNeq, single(b.DNS)))
	}
	refused := rule(f.vipKey(), inSet(setRefused, false))
	virtual := rule(f.loadDest(reg0), inSet(setVirtual, false))
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
func firewallRules(f *family, w Firewall) [][]expr.Any {
	var rules [][]expr.Any
	for _, p := range w.Sources {
		if f.has(p.Addr()) {
			rules = append(rules, rule(f.sourceIs(expr.CmpOpEq, p), verdict(expr.VerdictGoto, w.Entry)))
		}
	}
	return append(rules, verdict(expr.VerdictDrop, ""))
}

// entryRules are those of an ext- chain.
func entryRules(e Entry, b Base) [][]expr.Any {
	if e.Inside {
		return [][]expr.Any{
			rule(b.ip().sourceIs(expr.CmpOpNeq, b.PodCIDR), setMark(true)),
			rule(verdict(expr.VerdictGoto, e.Cluster)),
		}
	}
	if !e.LocalOnly {
		return [][]expr.Any{rule(setMark(true), verdict(expr.VerdictGoto, e.Cluster))}
	}
	rules := [][]expr.Any{
		rule(b.ip().sourceIs(expr.CmpOpEq, b.PodCIDR), verdict(expr.VerdictGoto, e.Cluster)),
		rule(local(expr.CmpOpEq, true), setMark(true), verdict(expr.VerdictGoto, e.Cluster)),
	}
	if e.Local == "" {
		return append(rules, verdict(expr.VerdictDrop, ""))
	}
	return append(rules, verdict(expr.VerdictGoto, e.Local))
}

// pickRules are those of the plain balancers that have n endpoints: a random
// number takes the place of n behind what tells the balancer from the others.
func pickRules(f *family, n int) [][]expr.Any {
	return [][]expr.Any{rule(f.vipKey(), targetFrom(setPlain, reg0, reg0),
		one(&expr.Numgen{Register: reg2, Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}),
		targetFrom(setEndpoints, reg0, reg0), f.dnatTarget())}
}

// balancerRules are those of a svc- or loc- chain.
func balancerRules(f *family, name string, b Balancer) [][]expr.Any {
	pick := func(reg uint32) []expr.Any {
		return rule(one(&expr.Numgen{Register: reg, Modulus: uint32(len(b.Endpoints)), Type: unix.NFT_NG_RANDOM}),
			targetFrom("ep-"+name, reg, reg))
	}
	plain := rule(pick(reg0), f.dnatTarget())
	if b.Affinity == 0 {
		return [][]expr.Any{plain}
	}
	clients, target := "cl-"+name, f.behind
	remember := one(&expr.Dynset{SrcRegKey: reg0, SrcRegData: target, SetName: clients, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: b.Affinity})
	return [][]expr.Any{
		// A client that is known, and is remembered for as long again.
		rule(f.loadSource(reg0), targetFrom(clients, reg0, target), remember, f.dnat(target, f.past)),
		rule(f.loadSource(reg0), pick(target), remember, f.dnat(target, f.past)),
		plain, // when the set of clients is full
	}
}
