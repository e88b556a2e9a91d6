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
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The table in the kernel looks like this. Base chains are fixed; services are
// elements of maps, so that a packet pays one lookup however many there are,
// and a changed service changes its own elements and chains alone.
//
//	prerouting, output (nat)  → dispatch
//	dispatch       for our DNS: nothing
//	               to ServiceCIDR from outside PodCIDR: mark
//	               plain[address, protocol, port] is n → picks[n] → pick-n
//	               services[address, protocol, port] → svc-…, loc-…, ext-…, fw-… or drop
//	               to an address of this node: nodeports, then host ports
//	fw-…           a Firewall: → ext-… for some clients, drop for the others
//	ext-…          an Entry: mark, → svc-…; or by where the client is
//	svc-…, loc-…   a Balancer: dnat to ep-svc-…[random number]
//	pick-n         the plain Balancers of n endpoints: dnat to
//	               endpoints[plain[address, protocol, port], random number below n]
//	postrouting    masquerade what is marked, what a pod sends to itself, and
//	               what leaves the cluster
//	forward, local-out (filter)  new connections → refuse
//	refuse         reject what nobody serves
//	input          overlay packets from strangers: drop
//	raw            packets from pods to 127.0.0.0/8: drop

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
	typeVIP      = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	typePort     = nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	typeTarget   = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	typeEndpoint = nftables.MustConcatSetType(nftables.TypeInteger, nftables.TypeInteger, nftables.TypeInteger)
	typePair     = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)
)

var table = &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}

// fixedSets are the sets that are always there.
func fixedSets() []*nftables.Set {
	return []*nftables.Set{
		{Table: table, Name: setServices, IsMap: true, KeyType: typeVIP, DataType: nftables.TypeVerdict},
		{Table: table, Name: setPlain, IsMap: true, KeyType: typeVIP, DataType: typeEndpoint},
		{Table: table, Name: setPicks, IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeVerdict, KeyByteOrder: binaryutil.NativeEndian},
		{Table: table, Name: setEndpoints, IsMap: true, KeyType: typeEndpoint, DataType: typeTarget},
		{Table: table, Name: setNodePorts, IsMap: true, KeyType: typePort, DataType: nftables.TypeVerdict},
		{Table: table, Name: setHostPorts, IsMap: true, KeyType: typeVIP, DataType: typeTarget},
		{Table: table, Name: setAnyHost, IsMap: true, KeyType: typePort, DataType: typeTarget},
		{Table: table, Name: setRefused, KeyType: typeVIP},
		{Table: table, Name: setVirtual, KeyType: nftables.TypeIPAddr},
		{Table: table, Name: setHairpin, KeyType: typePair},
		{Table: table, Name: setNodes, KeyType: nftables.TypeIPAddr},
	}
}

// endpointsSet maps a number below the count of a balancer's endpoints to one
// of them.
func endpointsSet(chain string) *nftables.Set {
	return &nftables.Set{Table: table, Name: "ep-" + chain, IsMap: true, KeyType: nftables.TypeInteger, DataType: typeTarget, KeyByteOrder: binaryutil.NativeEndian}
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
func clientsSet(chain string, timeout time.Duration) *nftables.Set {
	return &nftables.Set{Table: table, Name: "cl-" + chain, IsMap: true, KeyType: nftables.TypeIPAddr, DataType: typeTarget,
		Dynamic: true, HasTimeout: true, Timeout: timeout, Size: maxClients}
}

// value is the data of an element: bytes, or the chain to go to. Both are
// empty in a set that is no map.
type value struct{ data, chain string }

// elements are what Rules put into the fixed sets: by set, then by key.
func (r *Rules) elements() map[string]map[string]value {
	out := map[string]map[string]value{}
	for _, s := range fixedSets() {
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

// kernel applies Rules to the kernel's table, each change as one transaction:
// a packet sees the old rules or the new, never a mixture.
type kernel struct {
	// applied is what the table holds, nil if that is not known: then it is
	// built from scratch, in one transaction too.
	applied *Rules
}

// connect opens a connection of its own for one transaction, so that a failed
// one leaves no answers behind for the next.
func connect() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		// A transaction is one message, and each of its parts is answered:
		// these are limits, not allocations.
		return errors.Join(c.SetWriteBuffer(64<<20), c.SetReadBuffer(64<<20))
	}))
}

// exists says whether the table is there: made by us before a restart.
func (k *kernel) exists() (bool, error) {
	c, err := connect()
	if err != nil {
		return false, fmt.Errorf("opening nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("listing nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName }), nil
}

// apply makes the table hold r. After an error the table is as it was, and the
// next call builds it from scratch.
func (k *kernel) apply(r *Rules) error { return k.change(k.applied, r, r) }

// change is apply for whoever knows what changed: of all, what old said is now
// as r says.
func (k *kernel) change(old, r, all *Rules) error {
	c, err := connect()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	applied := k.applied
	k.applied = nil
	b := batch{c: c}
	if applied == nil || applied.Base != all.Base {
		b.scratch(all.Base)
		old, r = newRules(all.Base), all
	}
	b.change(old, r)
	if b.err != nil {
		return fmt.Errorf("encoding nftables rules: %w", b.err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("applying nftables rules: %w", err)
	}
	k.applied = all
	return forgetClients(old, r)
}

// remove deletes the table.
func (k *kernel) remove() error {
	k.applied = nil
	there, err := k.exists()
	if err != nil || !there {
		return err
	}
	c, err := connect()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	c.DelTable(table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("removing the nftables table: %w", err)
	}
	return nil
}

// batch collects one transaction.
type batch struct {
	c   *nftables.Conn
	err error
}

func (b *batch) fail(err error) { b.err = errors.Join(b.err, err) }

func (b *batch) chain(name string) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Table: table, Name: name})
}

func (b *batch) rules(chain string, rules ...[]expr.Any) {
	for _, exprs := range rules {
		b.c.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Table: table, Name: chain}, Exprs: exprs})
	}
}

// scratch replaces the table by one with the base chains and empty sets.
func (b *batch) scratch(base Base) {
	b.c.AddTable(table) // so that it is there to be deleted
	b.c.DelTable(table)
	b.c.AddTable(table)
	for _, s := range fixedSets() {
		b.fail(b.c.AddSet(s, nil))
	}
	b.chain("dispatch")
	b.chain("refuse")
	b.chain(dropChain)
	b.rules(dropChain, verdict(expr.VerdictDrop, ""))
	for _, c := range baseChains(base) {
		b.c.AddChain(c.chain)
		b.rules(c.chain.Name, c.rules...)
	}
	b.rules("dispatch", dispatchRules(base)...)
	b.rules("refuse", refuseRules(base)...)
}

// change turns what old says into what r says. What refers to a chain goes
// before it, and comes after it.
func (b *batch) change(old, r *Rules) {
	was, is := old.elements(), r.elements()
	for _, s := range fixedSets() {
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
			b.rules(pickChain(n), pickRules(n)...)
		}
	}
	for _, name := range slices.Concat(goneFirewalls, existing(old.Firewalls, newFirewalls), goneEntries, existing(old.Entries, newEntries),
		goneBalancers, existing(hadChains, newBalancers), gonePicks) {
		b.c.FlushChain(&nftables.Chain{Table: table, Name: name})
	}
	for _, name := range slices.Concat(goneFirewalls, goneEntries, goneBalancers, gonePicks) {
		b.c.DelChain(&nftables.Chain{Table: table, Name: name})
	}
	for _, name := range goneBalancers {
		b.c.DelSet(endpointsSet(name))
		if a := old.Balancers[name].Affinity; a != 0 {
			b.c.DelSet(clientsSet(name, a))
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
		b.rules(name, firewallRules(r.Firewalls[name])...)
	}
	for _, s := range fixedSets() {
		b.add(s, was[s.Name], is[s.Name])
	}
}

func (b *batch) balancer(name string, old, is Balancer) {
	ep := endpointsSet(name)
	if len(old.Endpoints) == 0 {
		b.chain(name)
		b.fail(b.c.AddSet(ep, nil))
	}
	if old.Affinity != is.Affinity {
		if old.Affinity != 0 {
			b.c.DelSet(clientsSet(name, old.Affinity))
		}
		if is.Affinity != 0 {
			b.fail(b.c.AddSet(clientsSet(name, is.Affinity), nil))
		}
	}
	b.delete(ep, old.elements(), is.elements())
	b.add(ep, old.elements(), is.elements())
	b.rules(name, balancerRules(name, is)...)
}

// delete removes the elements that are gone or have another value now.
func (b *batch) delete(s *nftables.Set, was, is map[string]value) {
	b.elements(s, was, is, b.c.SetDeleteElements)
}

// add adds the elements that are new or have another value now.
func (b *batch) add(s *nftables.Set, was, is map[string]value) {
	b.elements(s, is, was, b.c.SetAddElements)
}

// elements passes those of a that b does not have to f.
func (b *batch) elements(s *nftables.Set, has, hasNot map[string]value, f func(*nftables.Set, []nftables.SetElement) error) {
	var keys []string
	for key, v := range has {
		if other, ok := hasNot[key]; !ok || other != v {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for part := range slices.Chunk(keys, chunk) {
		var elements []nftables.SetElement
		for _, key := range part {
			e := nftables.SetElement{Key: []byte(key), Val: []byte(has[key].data)}
			if chain := has[key].chain; chain != "" {
				e.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}
			}
			elements = append(elements, e)
		}
		b.fail(f(s, elements))
	}
}

// changed returns the names that are gone, and those that are new or differ,
// both sorted.
func changed[V any](old, is map[string]V, equal func(a, b V) bool) (gone, differ []string) {
	for name := range old {
		if _, ok := is[name]; !ok {
			gone = append(gone, name)
		}
	}
	for name, v := range is {
		if was, ok := old[name]; !ok || !equal(was, v) {
			differ = append(differ, name)
		}
	}
	slices.Sort(gone)
	slices.Sort(differ)
	return gone, differ
}

func existing[V any](m map[string]V, names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { _, ok := m[n]; return !ok })
}

// forgetClients makes balancers forget the clients of endpoints that they no
// longer have; the other clients keep theirs.
func forgetClients(old, r *Rules) error {
	for name, is := range r.Balancers {
		was, had := old.Balancers[name]
		if !had || is.Affinity == 0 || is.Affinity != was.Affinity || slices.Equal(was.Endpoints, is.Endpoints) {
			continue
		}
		c, err := connect()
		if err != nil {
			return fmt.Errorf("opening nftables: %w", err)
		}
		keep := map[string]bool{}
		for _, ep := range is.Endpoints {
			keep[targetKey(ep)] = true
		}
		set := clientsSet(name, is.Affinity)
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
