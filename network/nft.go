package network

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The table of a family in the kernel looks like this. Base chains are fixed; services are
// elements of maps, so that a packet pays one lookup however many there are,
// and a changed service changes its own elements and chains alone.
//
//	prerouting, output (nat)  → dispatch
//	dispatch       for our DNS: nothing
//	               to ServiceCIDR from outside PodCIDR: mark
//	               plain[address, protocol, port] is n → picks[n] → pick-n
//	               services[address, protocol, port] → svc-…, loc-…, ext-…, fw-…, in-… or drop
//	               to an address of this node: nodeports, then host ports
//	fw-…           a Firewall: → ext-… for some clients, drop for the others
//	ext-…          an Entry: mark, → svc-…; or by where the client is
//	in-…           an Entry to a cluster address outside ServiceCIDR: mark
//	               unless from PodCIDR, → svc-… or loc-…
//	svc-…, loc-…   a Balancer: dnat to ep-svc-…[random number]
//	pick-n         the plain Balancers of n endpoints: dnat to
//	               endpoints[plain[address, protocol, port], random number below n]
//	postrouting    masquerade what is marked, what a pod sends to itself, and
//	               what leaves the cluster
//	forward, local-out (filter)  new connections → refuse
//	refuse         reject what nobody serves
//	input          overlay packets from strangers: drop (in the family that carries them)
//	raw            packets from pods to 127.0.0.0/8: drop (IPv4); questions for
//	               virtual neighbours: drop (IPv6)

const (
	tableName = "conclave"
	// masqueradeMark is set on the first packet of a connection on its way
	// from dispatch to postrouting, where it is cleared.
	masqueradeMark = 0x00010000
	// maxClients bounds what one balancer remembers of its clients.
	maxClients = 65536
	// chunk is how many elements go into one message: its length has 16 bits.
	chunk = 400
)

// The maps and sets that hold what Rules say, by name.
const (
	setServices  = "services"
	setPlain     = "plain"
	setPicks     = "picks"
	setEndpoints = "endpoints"
	setNodePorts = "nodeports"
	setHostPorts = "hostports"
	setAnyHost   = "hostports-any"
	setRefused   = "refused"
	setVirtual   = "virtual"
	setHairpin   = "hairpin"
	setNodes     = "nodes"
)

var (
	typePort     = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	typeEndpoint = nftables.MustConcatSetType(nftables.TypeInteger, nftables.TypeInteger, nftables.TypeInteger)
)

// fixedSets are the sets that are always there.
func fixedSets(f *family) []*nftables.Set {
	return []*nftables.Set{
		{Name: setServices, IsMap: true, KeyType: f.typeVIP, DataType: nftables.TypeVerdict},
		{Name: setPlain, IsMap: true, KeyType: f.typeVIP, DataType: typeEndpoint},
		{Name: setPicks, IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian},
		{Name: setEndpoints, IsMap: true, KeyType: typeEndpoint, DataType: f.typeTarget},
		{Name: setNodePorts, IsMap: true, KeyType: typePort, DataType: nftables.TypeVerdict},
		{Name: setHostPorts, IsMap: true, KeyType: f.typeVIP, DataType: f.typeTarget},
		{Name: setAnyHost, IsMap: true, KeyType: typePort, DataType: f.typeTarget},
		{Name: setRefused, KeyType: f.typeVIP},
		{Name: setVirtual, KeyType: f.typeAddr},
		{Name: setHairpin, KeyType: f.typePair},
		{Name: setNodes, KeyType: f.typeAddr},
	}
}

// endpointsSet maps a number below the count of a balancer's endpoints to one
// of them.
func endpointsSet(f *family, chain string) *nftables.Set {
	return &nftables.Set{Name: "ep-" + chain, IsMap: true, KeyType: nftables.TypeInteger, DataType: f.typeTarget, KeyByteOrder: binaryutil.NativeEndian}
}

// A plain balancer's endpoints are in a map with all others'. It is told from
// them by a hash of its name, of which two are alike in one of 10^11 clusters
// of 10,000 services.
func balancerHash(name string) [8]byte {
	sum := sha256.Sum256([]byte(name))
	return [8]byte(sum[:8])
}

func endpointKey(hash [8]byte, i int) string { return string(hash[:]) + number(i) }

func number(i int) string { return string(binaryutil.NativeEndian.PutUint32(uint32(i))) }

// pickChain is the chain of the plain balancers that have n endpoints.
func pickChain(n int) string { return fmt.Sprintf("pick-%d", n) }

// chains are the balancers that are chains.
func (r *Rules) chains() map[string]Balancer {
	out := map[string]Balancer{}
	for name, b := range r.Balancers {
		if !b.Plain {
			out[name] = b
		}
	}
	return out
}

// elements are those of a balancer's map of endpoints.
func (b Balancer) elements() map[string]value {
	out := make(map[string]value, len(b.Endpoints))
	for i, ep := range b.Endpoints {
		out[number(i)] = value{data: targetKey(ep)}
	}
	return out
}

// clientsSet maps a client to the endpoint that it had. The kernel fills it.
func clientsSet(f *family, chain string, timeout time.Duration) *nftables.Set {
	return &nftables.Set{Name: "cl-" + chain, IsMap: true, KeyType: f.typeAddr, DataType: f.typeTarget,
		Dynamic: true, HasTimeout: true, Timeout: timeout, Size: maxClients}
}

// elements are what Rules put into the fixed sets: by set, then by key.
func (r *Rules) elements() map[string]map[string]value {
	out := map[string]map[string]value{}
	for _, s := range fixedSets(r.Base.ip()) {
		out[s.Name] = map[string]value{}
	}
	for vip, chain := range r.Services {
		if b := r.Balancers[chain]; b.Plain {
			out[setPlain][vip.key()] = value{data: endpointKey(balancerHash(chain), len(b.Endpoints))}
		} else {
			out[setServices][vip.key()] = value{chain: chain}
		}
	}
	for name, b := range r.Balancers {
		if !b.Plain {
			continue
		}
		hash := balancerHash(name)
		for i, ep := range b.Endpoints {
			out[setEndpoints][endpointKey(hash, i)] = value{data: targetKey(ep)}
		}
	}
	for n := range r.Picks {
		out[setPicks][number(n)] = value{chain: pickChain(n)}
	}
	for port, chain := range r.NodePorts {
		out[setNodePorts][port.key()] = value{chain: chain}
	}
	for vip, to := range r.HostPorts {
		if vip.Addr.IsValid() {
			out[setHostPorts][vip.key()] = value{data: targetKey(to)}
		} else {
			out[setAnyHost][Port{vip.Proto, vip.Port}.key()] = value{data: targetKey(to)}
		}
	}
	for vip := range r.Refused {
		out[setRefused][vip.key()] = value{}
	}
	for a := range r.Virtual {
		out[setVirtual][string(a.AsSlice())] = value{}
	}
	for a := range r.Pods {
		out[setHairpin][string(a.AsSlice())+string(a.AsSlice())] = value{}
	}
	for a := range r.Nodes {
		out[setNodes][string(a.AsSlice())] = value{}
	}
	return out
}

// In a concatenation every part fills up a multiple of four bytes.

func (v VIP) key() string { return string(v.Addr.AsSlice()) + Port{v.Proto, v.Port}.key() }

func (p Port) key() string { return string([]byte{byte(p.Proto), 0, 0, 0}) + portKey(p.Port) }

func targetKey(t netip.AddrPort) string { return string(t.Addr().AsSlice()) + portKey(t.Port()) }

func portKey(p uint16) string {
	return string(append(binary.BigEndian.AppendUint16(nil, p), 0, 0))
}

// kernel applies Rules of one family to the kernel's table, each change as one
// transaction: a packet sees the old rules or the new, never a mixture.
type kernel struct {
	nftTable
	// applied is what the table holds, nil if that is not known: then it is
	// built from scratch, in one transaction too.
	applied *Rules
}

func newKernel(f *family) *kernel { return &kernel{nftTable: nftTable{tableName, f}} }

// apply makes the table hold r. After an error the table is as it was, and the
// next call builds it from scratch.
func (k *kernel) apply(r *Rules) error { return k.change(k.applied, r, r) }

// change is apply for whoever knows what changed: of all, what old said is now
// as r says.
func (k *kernel) change(old, r, all *Rules) error {
	tx, err := k.begin()
	if err != nil {
		return err
	}
	applied := k.applied
	k.applied = nil
	b := rulesBatch{tx, k.ip}
	var clients map[string][]nftables.SetElement
	if applied == nil || applied.Base != all.Base {
		clients, _ = k.clients(all) // better rules that have forgotten than none
		b.scratch(all.Base)
		old, r = newRules(all.Base), all
	}
	b.change(old, r)
	for name, elements := range clients {
		set := clientsSet(k.ip, name, all.Balancers[name].Affinity)
		set.Table = b.nft
		for part := range slices.Chunk(elements, chunk) {
			b.fail(b.c.SetAddElements(set, part))
		}
	}
	if err := b.commit(); err != nil {
		return err
	}
	k.applied = all
	return k.forgetClients(old, r)
}

// rulesBatch collects one transaction on a table of Rules.
type rulesBatch struct {
	*batch
	ip *family
}

// scratch replaces the table by one with the base chains and empty sets.
func (b *rulesBatch) scratch(base Base) {
	b.replace()
	for _, s := range fixedSets(b.ip) {
		b.set(s)
	}
	b.chain("dispatch")
	b.chain("refuse")
	b.chain(dropChain)
	b.rules(dropChain, verdict(expr.VerdictDrop, ""))
	for _, c := range baseChains(base) {
		c.chain.Table = b.nft
		b.c.AddChain(c.chain)
		b.rules(c.chain.Name, c.rules...)
	}
	b.rules("dispatch", dispatchRules(base)...)
	b.rules("refuse", refuseRules(base)...)
}

// change turns what old says into what r says. What refers to a chain goes
// before it, and comes after it.
func (b *rulesBatch) change(old, r *Rules) {
	was, is := old.elements(), r.elements()
	for _, s := range fixedSets(b.ip) {
		b.delete(s, was[s.Name], is[s.Name])
	}
	goneFirewalls, newFirewalls := changed(old.Firewalls, r.Firewalls, func(a, b Firewall) bool {
		return a.Entry == b.Entry && slices.Equal(a.Sources, b.Sources)
	})
	goneEntries, newEntries := changed(old.Entries, r.Entries, func(a, b Entry) bool { return a == b })
	hadChains, hasChains := old.chains(), r.chains()
	goneBalancers, newBalancers := changed(hadChains, hasChains, func(a, b Balancer) bool {
		return a.Affinity == b.Affinity && slices.Equal(a.Endpoints, b.Endpoints)
	})
	var gonePicks []string
	for n := range old.Picks {
		if _, stays := r.Picks[n]; !stays {
			gonePicks = append(gonePicks, pickChain(n))
		}
	}
	for n := range r.Picks {
		if _, had := old.Picks[n]; !had {
			b.chain(pickChain(n))
			b.rules(pickChain(n), pickRules(b.ip, n)...)
		}
	}
	b.clear(slices.Concat(goneFirewalls, existing(old.Firewalls, newFirewalls), goneEntries, existing(old.Entries, newEntries),
		goneBalancers, existing(hadChains, newBalancers), gonePicks)...)
	b.drop(slices.Concat(goneFirewalls, goneEntries, goneBalancers, gonePicks)...)
	for _, name := range goneBalancers {
		b.dropSet(endpointsSet(b.ip, name).Name)
		if a := old.Balancers[name].Affinity; a != 0 {
			b.dropSet(clientsSet(b.ip, name, a).Name)
		}
	}
	for _, name := range newBalancers {
		b.balancer(name, hadChains[name], hasChains[name])
	}
	for _, name := range newEntries {
		if _, had := old.Entries[name]; !had {
			b.chain(name)
		}
		b.rules(name, entryRules(r.Entries[name], r.Base)...)
	}
	for _, name := range newFirewalls {
		if _, had := old.Firewalls[name]; !had {
			b.chain(name)
		}
		b.rules(name, firewallRules(b.ip, r.Firewalls[name])...)
	}
	for _, s := range fixedSets(b.ip) {
		b.add(s, was[s.Name], is[s.Name])
	}
}

func (b *rulesBatch) balancer(name string, old, is Balancer) {
	ep := endpointsSet(b.ip, name)
	if len(old.Endpoints) == 0 {
		b.chain(name)
		b.set(ep)
	}
	if old.Affinity != is.Affinity {
		if old.Affinity != 0 {
			b.dropSet(clientsSet(b.ip, name, old.Affinity).Name)
		}
		if is.Affinity != 0 {
			b.set(clientsSet(b.ip, name, is.Affinity))
		}
	}
	b.delete(ep, old.elements(), is.elements())
	b.add(ep, old.elements(), is.elements())
	b.rules(name, balancerRules(b.ip, name, is)...)
}

// clients are those that the table remembers, by balancer: what is built from
// scratch knows them again, each for as long as it was to be remembered still,
// at an endpoint that is there.
func (k *kernel) clients(r *Rules) (map[string][]nftables.SetElement, error) {
	sticky := map[string]string{}
	for name, b := range r.Balancers {
		if b.Affinity != 0 {
			sticky[clientsSet(k.ip, name, b.Affinity).Name] = name
		}
	}
	if len(sticky) == 0 {
		return nil, nil
	}
	there, err := k.exists()
	if err != nil || !there {
		return nil, err
	}
	c, err := connect()
	if err != nil {
		return nil, err
	}
	sets, err := c.GetSets(k.nft())
	if err != nil {
		return nil, fmt.Errorf("listing the sets of the nftables table %s: %w", k, err)
	}
	all := map[string][]nftables.SetElement{}
	for _, set := range sets {
		name, ok := sticky[set.Name]
		if !ok {
			continue
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, fmt.Errorf("reading the clients of %s: %w", name, err)
		}
		b, at := r.Balancers[name], map[string]bool{}
		for _, ep := range b.Endpoints {
			at[targetKey(ep)] = true
		}
		for _, e := range elements {
			if left := min(e.Expires, b.Affinity); left > 0 && at[string(e.Val)] {
				all[name] = append(all[name], nftables.SetElement{Key: e.Key, Val: e.Val, Timeout: left})
			}
		}
	}
	return all, nil
}

// forgetClients makes balancers forget the clients of endpoints that they no
// longer have; the other clients keep theirs.
func (k *kernel) forgetClients(old, r *Rules) error {
	for name, is := range r.Balancers {
		was, had := old.Balancers[name]
		if !had || is.Affinity == 0 || is.Affinity != was.Affinity || slices.Equal(was.Endpoints, is.Endpoints) {
			continue
		}
		c, err := connect()
		if err != nil {
			return err
		}
		keep := map[string]bool{}
		for _, ep := range is.Endpoints {
			keep[targetKey(ep)] = true
		}
		set := clientsSet(k.ip, name, is.Affinity)
		set.Table = k.nft()
		clients, err := c.GetSetElements(set)
		if err != nil {
			return fmt.Errorf("reading the clients of %s: %w", name, err)
		}
		for _, client := range clients {
			if keep[string(client.Val)] {
				continue
			}
			// One that has just expired is an error that undoes the whole
			// transaction, so each has its own.
			if err := c.SetDeleteElements(set, []nftables.SetElement{{Key: client.Key}}); err != nil {
				return fmt.Errorf("forgetting a client of %s: %w", name, err)
			}
			if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("forgetting a client of %s: %w", name, err)
			}
		}
	}
	return nil
}

// String renders rules as nft would list them, sorted.
func (r *Rules) String() string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for vip, chain := range r.Services {
		add("map %s: %s : goto %s", setServices, vip, chain)
	}
	for port, chain := range r.NodePorts {
		add("map %s: %s . %d : goto %s", setNodePorts, port.Proto, port.Port, chain)
	}
	for vip, to := range r.HostPorts {
		add("map %s: %s : %s", setHostPorts, vip, to)
	}
	for vip := range r.Refused {
		add("set %s: %s", setRefused, vip)
	}
	for a := range r.Virtual {
		add("set %s: %s", setVirtual, a)
	}
	for a := range r.Pods {
		add("set %s: %s . %s", setHairpin, a, a)
	}
	for a := range r.Nodes {
		add("set %s: %s", setNodes, a)
	}
	for name, b := range r.Balancers {
		add("chain %s: dnat to one of %v%s", name, b.Endpoints, map[bool]string{true: fmt.Sprintf(", the same to a client for %s", b.Affinity)}[b.Affinity != 0])
	}
	for name, f := range r.Firewalls {
		add("chain %s: from %v goto %s, else drop", name, f.Sources, f.Entry)
	}
	for name, e := range r.Entries {
		switch {
		case e.Inside:
			add("chain %s: masquerade but from pods, goto %s", name, e.Cluster)
		case !e.LocalOnly:
			add("chain %s: masquerade, goto %s", name, e.Cluster)
		case e.Local == "":
			add("chain %s: from inside goto %s, else drop", name, e.Cluster)
		default:
			add("chain %s: from inside goto %s, else goto %s", name, e.Cluster, e.Local)
		}
	}
	slices.Sort(lines)
	out := ""
	for _, l := range lines {
		out += l + "\n"
	}
	return out
}

func (v VIP) String() string {
	if !v.Addr.IsValid() {
		return fmt.Sprintf("any . %s . %d", v.Proto, v.Port)
	}
	return fmt.Sprintf("%s . %s . %d", v.Addr, v.Proto, v.Port)
}

// udpTargets are the endpoints that each UDP destination leads to.
func (r *Rules) udpTargets() map[VIP][]netip.AddrPort {
	out := map[VIP][]netip.AddrPort{}
	resolve := func(chain string) []netip.AddrPort {
		if f, ok := r.Firewalls[chain]; ok {
			chain = f.Entry
		}
		if e, ok := r.Entries[chain]; ok {
			return slices.Concat(r.Balancers[e.Cluster].Endpoints, r.Balancers[e.Local].Endpoints)
		}
		return r.Balancers[chain].Endpoints
	}
	for vip, chain := range r.Services {
		if vip.Proto == udp {
			out[vip] = resolve(chain)
		}
	}
	for port, chain := range r.NodePorts {
		if port.Proto == udp {
			out[VIP{Proto: udp, Port: port.Port}] = resolve(chain)
		}
	}
	for vip, to := range maps.All(r.HostPorts) {
		if vip.Proto == udp {
			out[vip] = append(out[vip], to)
		}
	}
	return out
}
