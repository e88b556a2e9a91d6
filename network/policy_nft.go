package network

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Policies have a table of their own, which is there while a pod is isolated.
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

var policyTable = &nftables.Table{Name: policyTableName, Family: nftables.TableFamilyIPv4}

func policyMap(name string) *nftables.Set {
	return &nftables.Set{Table: policyTable, Name: name, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeVerdict}
}

func selfSet() *nftables.Set {
	return &nftables.Set{Table: policyTable, Name: setSelf, KeyType: typePair}
}

func peerSet(name string) *nftables.Set {
	return &nftables.Set{Table: policyTable, Name: name, KeyType: nftables.TypeIPAddr}
}

func portSet(name string) *nftables.Set {
	return &nftables.Set{Table: policyTable, Name: name, KeyType: typeVIP}
}

func blockSet(name string) *nftables.Set {
	return &nftables.Set{Table: policyTable, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
}

// policyKernel applies Policies to the kernel's table, each change as one
// transaction.
type policyKernel struct {
	// applied is what the table holds, nil if that is not known: then it is
	// built from scratch, in one transaction too.
	applied *Policies
	// version is policyState's of what applied was made of.
	version uint64
}

// exists says whether the table is there: made by us before a restart.
func (k *policyKernel) exists() (bool, error) {
	c, err := connect()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("listing nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == policyTableName }), nil
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
	c, err := connect()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	b := policyBatch{c: c}
	if old == nil || old.empty() || old.DNS != p.DNS {
		b.scratch(p.DNS)
		old = newPolicies(p.DNS)
	}
	b.change(old, p)
	if b.err != nil {
		return fmt.Errorf("encoding the rules of network policies: %w", b.err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("applying network policies: %w", err)
	}
	k.applied = p
	return nil
}

// remove deletes the table.
func (k *policyKernel) remove() error {
	k.applied = nil
	there, err := k.exists()
	if err != nil || !there {
		return err
	}
	c, err := connect()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	c.DelTable(policyTable)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the table of network policies: %w", err)
	}
	return nil
}

// policyBatch collects one transaction.
type policyBatch struct {
	c   *nftables.Conn
	err error
}

func (b *policyBatch) fail(err error) { b.err = errors.Join(b.err, err) }

func (b *policyBatch) chain(name string) *nftables.Chain {
	return &nftables.Chain{Table: policyTable, Name: name}
}

func (b *policyBatch) rules(chain string, all ...[]expr.Any) {
	for _, exprs := range all {
		b.c.AddRule(&nftables.Rule{Table: policyTable, Chain: b.chain(chain), Exprs: exprs})
	}
}

// scratch replaces the table by one with the base chains and empty maps.
func (b *policyBatch) scratch(dns netip.Addr) {
	b.c.AddTable(policyTable) // so that it is there to be deleted
	b.c.DelTable(policyTable)
	b.c.AddTable(policyTable)
	for _, s := range []*nftables.Set{policyMap(setIngress), policyMap(setEgress), selfSet()} {
		b.fail(b.c.AddSet(s, nil))
	}
	base := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority, judge ...[]expr.Any) {
		b.c.AddChain(&nftables.Chain{Table: policyTable, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority})
		state := one(&expr.Ct{Key: expr.CtKeySTATE, Register: reg0})
		b.rules(name,
			rule(one(&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg0}), compare(expr.CmpOpEq, []byte{1}),
				state, anyBit(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept, "")),
			// Errors of the network about a connection.
			rule(meta(expr.MetaKeyL4PROTO, reg0), compare(expr.CmpOpEq, []byte{unix.IPPROTO_ICMP}),
				state, anyBit(expr.CtStateBitRELATED), verdict(expr.VerdictAccept, "")),
			rule(loadSource(reg0), loadDest(reg1), inSet(setSelf, false), verdict(expr.VerdictAccept, "")))
		b.rules(name, judge...)
	}
	bySource := rule(loadSource(reg0), verdictFrom(setEgress))
	base("egress", nftables.ChainHookForward, egressPriority, bySource)
	base("ingress", nftables.ChainHookForward, ingressPriority, rule(loadDest(reg0), verdictFrom(setIngress)))
	base("dns", nftables.ChainHookInput, egressPriority,
		rule(destIs(expr.CmpOpNeq, single(dns)), verdict(expr.VerdictAccept, "")), bySource)
}

// change turns what old says into what p says. What refers to a chain or a set
// goes before it, and comes after it.
func (b *policyBatch) change(old, p *Policies) {
	was, is := old.subjects(), p.subjects()
	fixed := []*nftables.Set{policyMap(setIngress), policyMap(setEgress), selfSet()}
	for _, s := range fixed {
		b.elements(s, was[s.Name], is[s.Name], b.c.SetDeleteElements)
	}
	// A profile's name follows from what it says: it never changes.
	goneProfiles, newProfiles := changed(old.Profiles, p.Profiles, slices.Equal)
	goneChains, newChains := changed(old.Chains, p.Chains, slices.Equal)
	for _, name := range slices.Concat(goneProfiles, goneChains, existing(old.Chains, newChains)) {
		b.c.FlushChain(b.chain(name))
	}
	for _, name := range slices.Concat(goneProfiles, goneChains) {
		b.c.DelChain(b.chain(name))
	}

	gonePeers, newPeers := changed(old.Peers, p.Peers, maps.Equal)
	gonePorts, newPorts := changed(old.Ports, p.Ports, maps.Equal)
	goneBlocks, newBlocks := changed(old.Blocks, p.Blocks, slices.Equal)
	for _, name := range slices.Concat(gonePeers, gonePorts, goneBlocks) {
		b.c.DelSet(&nftables.Set{Table: policyTable, Name: name})
	}
	for _, name := range newPeers {
		b.set(peerSet(name), len(existing(old.Peers, []string{name})) > 0, addrElements(old.Peers[name]), addrElements(p.Peers[name]))
	}
	for _, name := range newPorts {
		b.set(portSet(name), len(existing(old.Ports, []string{name})) > 0, vipElements(old.Ports[name]), vipElements(p.Ports[name]))
	}
	for _, name := range newBlocks {
		b.fail(b.c.AddSet(blockSet(name), nil))
		for part := range slices.Chunk(p.Blocks[name], chunk/2) {
			var elements []nftables.SetElement
			for _, r := range part {
				elements = append(elements, nftables.SetElement{Key: r.from.AsSlice()})
				if end := r.to.Next(); end.IsValid() { // or else the range has no end
					elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
				}
			}
			b.fail(b.c.SetAddElements(blockSet(name), elements))
		}
	}

	for _, name := range newChains {
		if _, had := old.Chains[name]; !had {
			b.c.AddChain(b.chain(name))
		}
		for _, a := range p.Chains[name] {
			b.rules(name, a.exprs(strings.HasPrefix(name, string(ingress)+"-")))
		}
	}
	for _, name := range newProfiles {
		b.c.AddChain(b.chain(name))
		for _, chain := range p.Profiles[name] {
			b.rules(name, verdict(expr.VerdictJump, chain))
		}
		b.rules(name, verdict(expr.VerdictDrop, ""))
	}
	for _, s := range fixed {
		b.elements(s, is[s.Name], was[s.Name], b.c.SetAddElements)
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

// set makes a set hold what it shall, by the elements that differ.
func (b *policyBatch) set(s *nftables.Set, there bool, was, is map[string]value) {
	if !there {
		b.fail(b.c.AddSet(s, nil))
	}
	b.elements(s, was, is, b.c.SetDeleteElements)
	b.elements(s, is, was, b.c.SetAddElements)
}

// elements passes those of has that hasNot does not have to f.
func (b *policyBatch) elements(s *nftables.Set, has, hasNot map[string]value, f func(*nftables.Set, []nftables.SetElement) error) {
	(&batch{c: b.c}).elements(s, has, hasNot, func(s *nftables.Set, all []nftables.SetElement) error {
		b.fail(f(s, all))
		return nil
	})
}

// exprs is the rule that lets pass what a allows. The port is always the
// destination's.
func (a allowance) exprs(incoming bool) []expr.Any {
	peer := loadDest(reg0)
	if incoming {
		peer = loadSource(reg0)
	}
	var parts [][]expr.Any
	number := binaryutil.BigEndian.PutUint16
	switch {
	case a.Named != "":
		parts = append(parts, rule(protoIs(a.Proto), vipKey(), inSet(a.Named, false)))
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
