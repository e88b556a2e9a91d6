package network

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Policies have a table of their own in each family, which is there while a pod
// is isolated.
// Its chains are base chains of their own too: what one accepts goes on to the
// next, what one drops is gone.
//
//	egress (forward)    judge by the source, after services are translated
//	ingress (forward)   judge by the destination, before anything is masqueraded
//	dns (input)         to our resolver: judge by the source
//	                    all three: replies pass; what a pod sends to itself
//	                    passes; in[address] or out[address] → pod-…
//	pod-…               a profile: jump in-… or out-…, for each policy; drop
//	in-…, out-…         a policy: accept what it allows
//
// What this node sends to its pods meets none of them, and what a pod sends to
// this node only the resolver's: so Kubernetes wants it. Only the packets of
// the side that opened a connection are judged, but all of them: what a policy
// forbids now stops at once, whether or not it was open before.

const policyTableName = "conclave-policy"

const (
	setIngress = "in"
	setEgress  = "out"
	setSelf    = "self"

	egressPriority  = -20
	ingressPriority = -10
)

// fixedPolicySets are the maps and sets that are always there.
func fixedPolicySets(f *family) []*nftables.Set {
	return []*nftables.Set{
		{Name: setIngress, IsMap: true, KeyType: f.typeAddr, DataType: nftables.TypeVerdict},
		{Name: setEgress, IsMap: true, KeyType: f.typeAddr, DataType: nftables.TypeVerdict},
		{Name: setSelf, KeyType: f.typePair},
	}
}

func peerSet(f *family, name string) *nftables.Set {
	return &nftables.Set{Name: name, KeyType: f.typeAddr}
}

func portSet(f *family, name string) *nftables.Set {
	return &nftables.Set{Name: name, KeyType: f.typeVIP}
}

func blockSet(f *family, name string) *nftables.Set {
	return &nftables.Set{Name: name, KeyType: f.typeAddr, Interval: true}
}

// policyKernel applies Policies of one family to the kernel's table, each
// change as one transaction.
type policyKernel struct {
	nftTable
	// applied is what the table holds, nil if that is not known: then it is
	// built from scratch, in one transaction too.
	applied *Policies
	// version is policyState's of what applied was made of.
	version uint64
}

func newPolicyKernel(f *family) *policyKernel {
	return &policyKernel{nftTable: nftTable{policyTableName, f}}
}

// apply makes the table hold p. After an error the table is as it was, and the
// next call builds it from scratch.
func (k *policyKernel) apply(p *Policies) error {
	old := k.applied
	if old != nil && old.empty() && p.empty() {
		k.applied = p
		return nil
	}
	k.applied = nil
	if p.empty() {
		if err := k.remove(); err != nil {
			return err
		}
		k.applied = p
		return nil
	}
	tx, err := k.begin()
	if err != nil {
		return err
	}
	b := policyBatch{tx, k.ip}
	if old == nil || old.empty() || old.DNS != p.DNS {
		b.scratch(p.DNS)
		old = newPolicies(k.ip, p.DNS)
	}
	b.change(old, p)
	if err := b.commit(); err != nil {
		return err
	}
	k.applied = p
	return nil
}

// policyBatch collects one transaction on a table of Policies.
type policyBatch struct {
	*batch
	ip *family
}

// scratch replaces the table by one with the base chains and empty maps.
func (b *policyBatch) scratch(dns netip.Addr) {
	b.replace()
	for _, s := range fixedPolicySets(b.ip) {
		b.set(s)
	}
	base := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority, judge ...[]expr.Any) {
		c := b.named(name)
		c.Type, c.Hooknum, c.Priority = nftables.ChainTypeFilter, hook, &priority
		b.c.AddChain(c)
		state := one(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0})
		b.rules(name,
			rule(one(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg0}), compare(expr.CmpOpEq, []byte{1}),
				state, anyBit(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept, "")),
			// Errors of the network about a connection.
			rule(meta(expr.MetaKeyL4PROTO, reg0), compare(expr.CmpOpEq, []byte{b.ip.icmp}),
				state, anyBit(expr.CtStateBitRELATED), verdict(expr.VerdictAccept, "")),
			rule(b.ip.loadBoth(), inSet(setSelf, false), verdict(expr.VerdictAccept, "")))
		b.rules(name, judge...)
	}
	bySource := rule(b.ip.loadSource(reg0), verdictFrom(setEgress))
	base("egress", nftables.ChainHookForward, egressPriority, bySource)
	base("ingress", nftables.ChainHookForward, ingressPriority, rule(b.ip.loadDest(reg0), verdictFrom(setIngress)))
	if b.ip.has(dns) {
		base("dns", nftables.ChainHookInput, egressPriority,
			rule(b.ip.destIs(expr.CmpOpNeq, single(dns)), verdict(expr.VerdictAccept, "")), bySource)
	}
}

// change turns what old says into what p says. What refers to a chain or a set
// goes before it, and comes after it.
func (b *policyBatch) change(old, p *Policies) {
	was, is := old.subjects(), p.subjects()
	for _, s := range fixedPolicySets(b.ip) {
		b.delete(s, was[s.Name], is[s.Name])
	}
	// A profile's name follows from what it says: it never changes.
	goneProfiles, newProfiles := changed(old.Profiles, p.Profiles, slices.Equal)
	goneChains, newChains := changed(old.Chains, p.Chains, slices.Equal)
	b.clear(slices.Concat(goneProfiles, goneChains, existing(old.Chains, newChains))...)
	b.drop(slices.Concat(goneProfiles, goneChains)...)

	gonePeers, newPeers := changed(old.Peers, p.Peers, maps.Equal)
	gonePorts, newPorts := changed(old.Ports, p.Ports, maps.Equal)
	goneBlocks, newBlocks := changed(old.Blocks, p.Blocks, slices.Equal)
	for _, name := range slices.Concat(gonePeers, gonePorts, goneBlocks) {
		b.dropSet(name)
	}
	for _, name := range newPeers {
		b.fill(peerSet(b.ip, name), len(existing(old.Peers, []string{name})) > 0, addrElements(old.Peers[name]), addrElements(p.Peers[name]))
	}
	for _, name := range newPorts {
		b.fill(portSet(b.ip, name), len(existing(old.Ports, []string{name})) > 0, vipElements(old.Ports[name]), vipElements(p.Ports[name]))
	}
	for _, name := range newBlocks {
		s := blockSet(b.ip, name)
		b.set(s)
		for part := range slices.Chunk(p.Blocks[name], chunk/2) {
			var elements []nftables.SetElement
			for _, r := range part {
				elements = append(elements, nftables.SetElement{Key: r.from.AsSlice()})
				if end := r.to.Next(); end.IsValid() { // or else the range has no end
					elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
				}
			}
			b.fail(b.c.SetAddElements(s, elements))
		}
	}

	for _, name := range newChains {
		if _, had := old.Chains[name]; !had {
			b.chain(name)
		}
		for _, a := range p.Chains[name] {
			b.rules(name, a.exprs(b.ip, strings.HasPrefix(name, string(ingress)+"-")))
		}
	}
	for _, name := range newProfiles {
		b.chain(name)
		for _, chain := range p.Profiles[name] {
			b.rules(name, verdict(expr.VerdictJump, chain))
		}
		b.rules(name, verdict(expr.VerdictDrop, ""))
	}
	for _, s := range fixedPolicySets(b.ip) {
		b.add(s, was[s.Name], is[s.Name])
	}
}

// subjects are the elements of the fixed maps and sets, by set, then by key.
func (p *Policies) subjects() map[string]map[string]value {
	out := map[string]map[string]value{setIngress: {}, setEgress: {}, setSelf: {}}
	for name, subjects := range map[string]map[netip.Addr]string{setIngress: p.Ingress, setEgress: p.Egress} {
		for a, profile := range subjects {
			key := string(a.AsSlice())
			out[name][key] = value{chain: profile}
			out[setSelf][key+key] = value{}
		}
	}
	return out
}

func addrElements(set map[netip.Addr]struct{}) map[string]value {
	out := make(map[string]value, len(set))
	for a := range set {
		out[string(a.AsSlice())] = value{}
	}
	return out
}

func vipElements(set map[VIP]struct{}) map[string]value {
	out := make(map[string]value, len(set))
	for v := range set {
		out[v.key()] = value{}
	}
	return out
}

// fill makes a set hold what it shall, by the elements that differ.
func (b *policyBatch) fill(s *nftables.Set, there bool, was, is map[string]value) {
	if !there {
		b.set(s)
	}
	b.delete(s, was, is)
	b.add(s, was, is)
}

// exprs is the rule that lets pass what a allows. The port is always the
// destination's.
func (a allowance) exprs(f *family, incoming bool) []expr.Any {
	peer := f.loadDest(reg0)
	if incoming {
		peer = f.loadSource(reg0)
	}
	var parts [][]expr.Any
	number := binaryutil.BigEndian.PutUint16
	switch {
	case a.Named != "":
		parts = append(parts, rule(protoIs(a.Proto), f.vipKey(), inSet(a.Named, false)))
	case a.Proto != 0 && a.First == 0 && a.Last == 0:
		parts = append(parts, protoIs(a.Proto))
	case a.Proto != 0 && a.First == a.Last:
		parts = append(parts, protoIs(a.Proto), loadPort(reg0), compare(expr.CmpOpEq, number(a.First)))
	case a.Proto != 0:
		parts = append(parts, protoIs(a.Proto), loadPort(reg0), compare(expr.CmpOpGte, number(a.First)), compare(expr.CmpOpLte, number(a.Last)))
	}
	if set := a.Peers + a.Blocks; set != "" {
		parts = append(parts, peer, inSet(set, false))
	}
	return rule(append(parts, verdict(expr.VerdictAccept, ""))...)
}
