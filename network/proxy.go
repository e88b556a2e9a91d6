package network

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Rules is all that the kernel's table of one family shall do with packets, as
// plain data: one value decides everything, and two values can be compared.
type Rules struct {
	Base Base
	// Services maps what a client sends to, to the chain that handles it.
	Services map[VIP]string
	// NodePorts maps a port of any of this node's addresses to a chain.
	NodePorts map[Port]string
	// Refused are destinations outside ServiceCIDR without any endpoint.
	Refused map[VIP]struct{}
	// Virtual are load balancers' addresses that no node has: nobody is behind
	// the ports that no service has.
	Virtual map[netip.Addr]struct{}
	// Balancers pick an endpoint; Entries decide which balancer traffic from
	// outside the cluster gets; Firewalls let some clients alone to an Entry.
	// All are chains, in one space of names, in which there is dropChain too;
	// only plain Balancers are none.
	Balancers map[string]Balancer
	Entries   map[string]Entry
	Firewalls map[string]Firewall
	// Picks are the numbers of endpoints that plain Balancers have.
	Picks map[int]struct{}
	// HostPorts leads from a port of this node to a pod's. A VIP without
	// address stands for all of this node's addresses.
	HostPorts map[VIP]netip.AddrPort
	// Pods are the addresses of this node's pods. One that reaches itself
	// through a service must be masqueraded, or it would answer itself
	// directly.
	Pods map[netip.Addr]struct{}
	// Nodes may send overlay packets to us.
	Nodes map[netip.Addr]struct{}
}

// Base is what every node does alike, with addresses of one family.
type Base struct {
	PodCIDR, ServiceCIDR netip.Prefix
	// DNS is ours: packets to it are for this host. It is invalid in the second
	// family.
	DNS netip.Addr
	// Overlay says that the overlay's packets are of this family.
	Overlay bool
	// NoSCTP says that this kernel cannot translate SCTP. Then no rule speaks
	// of it, and it is refused like what nobody serves.
	NoSCTP bool
	// Tunnel says that there is no way to other nodes' pods but the tunnel.
	Tunnel bool
}

func (b Base) ip() *family { return familyOf(b.PodCIDR.Addr()) }

// VIP is one destination of packets.
type VIP struct {
	Addr  netip.Addr
	Proto protocol
	Port  uint16
}

// Port is a destination whatever the address.
type Port struct {
	Proto protocol
	Port  uint16
}

// Balancer sends a new connection to one of its endpoints, each as likely as
// the others.
type Balancer struct {
	Endpoints []netip.AddrPort // sorted, never empty
	// Affinity, if not 0, keeps a client address at the endpoint that it had,
	// as long as it comes back within this time.
	Affinity time.Duration
	// Plain ones, which only Services lead to, are no chains but elements of
	// maps: they are the many, and the kernel looks at every chain whenever a
	// rule changes.
	Plain bool
}

// Entry leads traffic to a node port or external address on.
type Entry struct {
	// Cluster is the balancer over all endpoints.
	Cluster string
	// LocalOnly (externalTrafficPolicy Local) keeps the client's address, and
	// therefore this node: what comes from outside goes to Local, the balancer
	// over this node's endpoints, or is dropped if that is empty. Everything
	// else masquerades, so that the answer comes back this way.
	LocalOnly bool
	Local     string
	// Inside leads to a cluster address outside ServiceCIDR, of a range that was
	// added later: pods keep their address on the way, as in ServiceCIDR.
	Inside bool
}

// Firewall is loadBalancerSourceRanges.
type Firewall struct {
	Sources []netip.Prefix
	Entry   string
}

// dropChain is where packets go that shall not be answered.
const dropChain = "drop"

func newRules(base Base) *Rules {
	return &Rules{
		Base: base, Services: map[VIP]string{}, NodePorts: map[Port]string{}, Refused: map[VIP]struct{}{}, Virtual: map[netip.Addr]struct{}{},
		Balancers: map[string]Balancer{}, Entries: map[string]Entry{}, Firewalls: map[string]Firewall{}, Picks: map[int]struct{}{}, HostPorts: map[VIP]netip.AddrPort{},
		Pods: map[netip.Addr]struct{}{}, Nodes: map[netip.Addr]struct{}{},
	}
}

// place is where a node is: what endpoints near it are told by.
type place struct{ node, zone string }

// targets are the endpoints of one service port that traffic may go to.
type targets struct{ cluster, local []netip.AddrPort }

// backing is one endpoint of one service port.
type backing struct {
	ready, draining, local bool
	hints                  *hints
}

// targetsOf picks the endpoints of one port: those that are ready, of them
// those that are meant for this place, or else those that terminate but still
// serve. The choice is made again among this node's own, whatever their hints.
func targetsOf(f *family, port servicePort, all []*endpointSlice, here place) targets {
	seen := map[netip.AddrPort]backing{}
	for _, s := range all {
		for _, p := range s.ports {
			if p.name != port.name || p.proto != port.proto {
				continue
			}
			for _, e := range s.endpoints {
				if !f.has(e.addr) {
					continue
				}
				// A pod that moves between slices is in two for a moment.
				key := netip.AddrPortFrom(e.addr, p.port)
				was := seen[key]
				is := backing{was.ready || e.ready, was.draining || e.draining, was.local || e.node != "" && e.node == here.node, e.hints}
				if e.hints == nil {
					is.hints = was.hints
				}
				seen[key] = is
			}
		}
	}
	pick := func(keep func(backing) bool) []netip.AddrPort {
		var out []netip.AddrPort
		for ap, s := range seen {
			if keep(s) {
				out = append(out, ap)
			}
		}
		slices.SortFunc(out, netip.AddrPort.Compare)
		return out
	}
	near := meantFor(here, seen)
	t := targets{
		cluster: pick(func(s backing) bool { return s.ready && near(s.hints) }),
		local:   pick(func(s backing) bool { return s.ready && s.local }),
	}
	if len(t.cluster) == 0 {
		t.cluster = pick(func(s backing) bool { return s.draining })
	}
	if len(t.local) == 0 {
		t.local = pick(func(s backing) bool { return s.draining && s.local })
	}
	return t
}

// meantFor says whose hints count: those for this node, if every ready
// endpoint is meant for some node and one of them for this; or else those for
// its zone, by the same rule; or else nobody's.
func meantFor(here place, all map[netip.AddrPort]backing) func(*hints) bool {
	forNode := func(h *hints) []string { return h.nodes }
	forZone := func(h *hints) []string { return h.zones }
	for _, way := range []struct {
		of   func(*hints) []string
		name string
	}{{forNode, here.node}, {forZone, here.zone}} {
		every, some := true, false
		for _, b := range all {
			switch {
			case !b.ready:
			case b.hints == nil || len(way.of(b.hints)) == 0:
				every = false
			case slices.Contains(way.of(b.hints), way.name):
				some = true
			}
		}
		if every && some {
			return func(h *hints) bool { return h != nil && slices.Contains(way.of(h), way.name) }
		}
	}
	return func(*hints) bool { return true }
}

// part is what one service wants of Rules. What it gets of it depends on the
// others: where several claim a destination, the oldest has it.
type part struct {
	key     types.NamespacedName
	created time.Time
	vips    []vipClaim
	ports   []portClaim
	chains  []namedChain
}

// vipClaim is a destination and the chain for it; none where packets are to be
// refused, unless another service wants them.
type vipClaim struct {
	VIP
	chain string
}

type portClaim struct {
	Port
	chain string
}

// namedChain is one chain of a kind that is not nil.
type namedChain struct {
	name     string
	balancer *Balancer
	entry    *Entry
	firewall *Firewall
}

func (p *part) balance(name string, all []netip.AddrPort, affinity time.Duration, plain bool) {
	p.chains = append(p.chains, namedChain{name: name, balancer: &Balancer{all, affinity, plain}})
}

// partOf is what a service wants. It depends on nothing but what is given.
func partOf(s *service, all []*endpointSlice, here place, base Base) *part {
	p := &part{key: s.key, created: s.created}
	if s.elsewhere {
		return p
	}
	for _, port := range s.ports {
		if port.proto == sctp && base.NoSCTP {
			continue
		}
		p.add(s, port, targetsOf(base.ip(), port, all, here), base)
	}
	return p
}

// add adds what one port of a service wants.
func (p *part) add(s *service, port servicePort, t targets, base Base) {
	f := base.ip()
	served := len(t.cluster) > 0 || len(t.local) > 0
	chain := func(kind string) string {
		return fmt.Sprintf("%s-%s/%s/%s/%d", kind, s.key.Namespace, s.key.Name, port.proto, port.port)
	}
	svc, loc, ext, fw, in := chain("svc"), chain("loc"), chain("ext"), chain("fw"), chain("in")
	used := map[string]bool{}

	internal := svc
	if s.internalLocal {
		internal = loc
		if len(t.local) == 0 {
			internal = dropChain // somebody serves, but not here
		}
	}
	for _, ip := range s.clusterIPs {
		vip := VIP{ip, port.proto, port.port}
		switch inside := base.ServiceCIDR.Contains(ip); {
		// Our own resolver answers at DNS's address, whoever else claims it.
		case !f.has(ip) || ip == base.DNS:
		case inside && !served:
			// There is no element: what the tables do not know in ServiceCIDR is
			// refused.
		case !served:
			p.vips = append(p.vips, vipClaim{vip, ""})
		case inside || internal == dropChain:
			p.vips = append(p.vips, vipClaim{vip, internal})
			used[internal] = true
		default:
			p.vips = append(p.vips, vipClaim{vip, in})
			used[internal], used[in] = true, true
		}
	}
	external := func(ip netip.Addr, chain string) {
		switch {
		case !f.has(ip):
		case !served:
			p.vips = append(p.vips, vipClaim{VIP{ip, port.proto, port.port}, ""})
		default:
			p.vips = append(p.vips, vipClaim{VIP{ip, port.proto, port.port}, chain})
			used[chain], used[ext] = true, true
		}
	}
	for _, ip := range s.externalIPs {
		external(ip, ext)
	}
	if s.balancer != nil {
		entry := ext
		if len(s.balancer.sources) > 0 {
			entry = fw
		}
		for _, ip := range s.balancer.addresses {
			external(ip, entry)
		}
	}
	// A node port without endpoints needs no rule: nobody listens there.
	if port.nodePort != 0 && served {
		p.ports = append(p.ports, portClaim{Port{port.proto, port.nodePort}, ext})
		used[ext] = true
	}

	if used[fw] {
		p.chains = append(p.chains, namedChain{name: fw, firewall: &Firewall{s.balancer.sources, ext}})
	}
	if used[ext] {
		e := &Entry{Cluster: svc, LocalOnly: s.externalLocal}
		used[svc] = true
		if s.externalLocal && len(t.local) > 0 {
			e.Local = loc
			used[loc] = true
		}
		p.chains = append(p.chains, namedChain{name: ext, entry: e})
	}
	if used[in] {
		p.chains = append(p.chains, namedChain{name: in, entry: &Entry{Cluster: internal, Inside: true}})
	}
	plain := !used[ext] && !used[in] && s.affinity == 0
	if used[svc] {
		p.balance(svc, t.cluster, s.affinity, plain)
	}
	if used[loc] {
		p.balance(loc, t.local, s.affinity, plain)
	}
}

// addChains adds a part's chains.
func (r *Rules) addChains(p *part) {
	for _, c := range p.chains {
		switch {
		case c.balancer != nil:
			r.Balancers[c.name] = *c.balancer
		case c.entry != nil:
			r.Entries[c.name] = *c.entry
		case c.firewall != nil:
			r.Firewalls[c.name] = *c.firewall
		}
	}
}

func (r *Rules) removeChains(p *part) {
	for _, c := range p.chains {
		delete(r.Balancers, c.name)
		delete(r.Entries, c.name)
		delete(r.Firewalls, c.name)
	}
}

// proxy keeps the Rules of one family as a node wants them, at the cost of what
// changes rather than of what there is. One goroutine owns it.
type proxy struct {
	rules *Rules
	here  place
	parts map[types.NamespacedName]*part
	// vips and ports have, for each destination, the parts that claim it, the
	// oldest first.
	vips  map[VIP][]claimant
	ports map[Port][]claimant
	// picks counts the plain balancers by how many endpoints they have.
	picks map[int]int
}

// claimant is a part that claims a destination, and the chain for it.
type claimant struct {
	*part
	chain string
}

func newProxy(base Base, nodeName string) *proxy {
	return &proxy{rules: newRules(base), here: place{node: nodeName}, parts: map[types.NamespacedName]*part{},
		vips: map[VIP][]claimant{}, ports: map[Port][]claimant{}, picks: map[int]int{}}
}

// insert and remove keep claimants sorted: the oldest service first.
func insert(all []claimant, c claimant) []claimant {
	i, _ := slices.BinarySearchFunc(all, c, func(a, b claimant) int {
		return cmp.Or(a.created.Compare(b.created), compareKeys(a.key, b.key))
	})
	return slices.Insert(all, i, c)
}

func remove(all []claimant, p *part) []claimant {
	return slices.DeleteFunc(all, func(c claimant) bool { return c.part == p })
}

// winner is who has a destination. One that refuses makes way for any that
// serves.
func winner(all []claimant) (claimant, bool) {
	for _, c := range all {
		if c.chain != "" {
			return c, true
		}
	}
	if len(all) > 0 {
		return all[0], true
	}
	return claimant{}, false
}

// show adds to r how things are with these destinations and services.
func (p *proxy) show(r *Rules, vips map[VIP]bool, ports map[Port]bool, keys map[types.NamespacedName]*part) {
	for key := range keys {
		if part := p.parts[key]; part != nil {
			r.addChains(part)
		}
	}
	// The chains of all who claim a destination: one that has it now may not
	// have had it before, and its chains are no news.
	for vip := range vips {
		for _, c := range p.vips[vip] {
			r.addChains(c.part)
		}
		switch c, ok := winner(p.vips[vip]); {
		case !ok:
		case c.chain == "":
			r.Refused[vip] = struct{}{}
		default:
			r.Services[vip] = c.chain
		}
	}
	for port := range ports {
		for _, c := range p.ports[port] {
			r.addChains(c.part)
		}
		if c, ok := winner(p.ports[port]); ok {
			r.NodePorts[port] = c.chain
		}
	}
}

// update takes in what changed in the cluster since the last time: these
// services, or any of them, and the pods that this node runs. It returns the
// part of Rules that may differ, as it was and as it is. The whole is in rules.
func (p *proxy) update(c *cluster, changed map[types.NamespacedName]struct{}, all bool, pods []reservation) (was, is *Rules) {
	dirty := maps.Clone(changed)
	c.mu.RLock()
	defer c.mu.RUnlock()
	was, is = newRules(p.rules.Base), newRules(p.rules.Base)
	if zone := c.nodes[p.here.node].zone; zone != p.here.zone {
		p.here.zone, all = zone, true
	}
	if all {
		for key := range p.parts {
			dirty[key] = struct{}{}
		}
		for key := range c.services {
			dirty[key] = struct{}{}
		}
	}
	fresh := make(map[types.NamespacedName]*part, len(dirty))
	vips, ports := map[VIP]bool{}, map[Port]bool{}
	touch := func(part *part) {
		for _, v := range part.vips {
			vips[v.VIP] = true
		}
		for _, v := range part.ports {
			ports[v.Port] = true
		}
	}
	for key := range dirty {
		old := p.parts[key]
		if s := c.services[key]; s != nil {
			fresh[key] = partOf(s, c.slicesOf(key), p.here, p.rules.Base)
			touch(fresh[key])
		} else if old != nil {
			fresh[key] = nil
		}
		if old != nil {
			touch(old)
		}
	}
	p.show(was, vips, ports, fresh)
	was.Picks = p.rules.Picks
	for key, now := range fresh {
		p.replace(key, now)
	}
	p.show(is, vips, ports, fresh)
	for n := range p.picks {
		is.Picks[n] = struct{}{}
	}
	p.rules.Picks = is.Picks
	for vip := range vips {
		delete(p.rules.Services, vip)
		delete(p.rules.Refused, vip)
	}
	for port := range ports {
		delete(p.rules.NodePorts, port)
	}
	p.show(p.rules, vips, ports, fresh)
	for _, part := range fresh {
		if part != nil && len(part.vips)+len(part.ports) == 0 {
			delete(p.parts, part.key) // a headless one, say
		}
	}

	was.HostPorts, was.Pods, was.Nodes, was.Virtual = p.rules.HostPorts, p.rules.Pods, p.rules.Nodes, p.rules.Virtual
	here(is, c, p.here.node, pods)
	p.rules.HostPorts, p.rules.Pods, p.rules.Nodes, p.rules.Virtual = is.HostPorts, is.Pods, is.Nodes, is.Virtual
	return was, is
}

// replace puts a part in the place of the one that the service had; nil if it
// has none any more.
func (p *proxy) replace(key types.NamespacedName, now *part) {
	if old := p.parts[key]; old != nil {
		p.rules.removeChains(old)
		p.count(old, -1)
		for _, v := range old.vips {
			if p.vips[v.VIP] = remove(p.vips[v.VIP], old); len(p.vips[v.VIP]) == 0 {
				delete(p.vips, v.VIP)
			}
		}
		for _, v := range old.ports {
			if p.ports[v.Port] = remove(p.ports[v.Port], old); len(p.ports[v.Port]) == 0 {
				delete(p.ports, v.Port)
			}
		}
		delete(p.parts, key)
	}
	if now == nil {
		return
	}
	p.parts[key] = now
	p.count(now, 1)
	for _, v := range now.vips {
		p.vips[v.VIP] = insert(p.vips[v.VIP], claimant{now, v.chain})
	}
	for _, v := range now.ports {
		p.ports[v.Port] = insert(p.ports[v.Port], claimant{now, v.chain})
	}
}

// count adds n for each plain balancer of a part.
func (p *proxy) count(part *part, n int) {
	for _, c := range part.chains {
		if c.balancer == nil || !c.balancer.Plain {
			continue
		}
		size := len(c.balancer.Endpoints)
		if p.picks[size] += n; p.picks[size] == 0 {
			delete(p.picks, size)
		}
	}
}

// here adds what is few: the nodes, this node's pods, and the addresses of load
// balancers.
func here(r *Rules, c *cluster, nodeName string, pods []reservation) {
	f := r.Base.ip()
	owned := map[netip.Addr]bool{}
	for name, n := range c.nodes {
		for _, a := range n.addrs {
			owned[a] = true
		}
		if name != nodeName && f.has(n.addr) { // by which the overlay goes
			r.Nodes[n.addr] = struct{}{}
		}
	}
	for _, s := range c.balanced {
		for _, a := range s.balancer.addresses {
			if s.balancer.ours && f.has(a) && !owned[a] {
				r.Virtual[a] = struct{}{}
			}
		}
	}
	for _, p := range pods {
		a := p.address(f)
		if !a.IsValid() {
			continue
		}
		r.Pods[a] = struct{}{}
		for _, h := range p.HostPorts {
			vip := VIP{h.Address, h.Protocol, h.Port}
			if _, taken := r.HostPorts[vip]; !taken && (!h.Address.IsValid() || f.has(h.Address)) {
				r.HostPorts[vip] = netip.AddrPortFrom(a, h.PodPort)
			}
		}
	}
}

func compareKeys(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
