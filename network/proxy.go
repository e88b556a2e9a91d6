package network

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Rules is all that the kernel's tables shall do with packets, as plain data:
// one value decides everything, and two values can be compared.
type Rules struct {
	Base Base
	// Services maps what a client sends to, to the chain that handles it.
	Services map[VIP]string
	// NodePorts maps a port of any of this node's addresses to a chain.
	NodePorts map[Port]string
	// Refused are addresses outside ServiceCIDR without any endpoint.
	Refused map[VIP]struct{}
	// Virtual are load balancers' addresses that no node has: nobody is behind
	// the ports that no service has.
	Virtual map[netip.Addr]struct{}
	// Balancers pick an endpoint; Entries decide which balancer traffic from
	// outside the cluster gets; Firewalls let some clients alone to an Entry.
	// All are chains, in one space of names, in which there is dropChain too.
	Balancers map[string]Balancer
	Entries   map[string]Entry
	Firewalls map[string]Firewall
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

// Base is what every node does alike.
type Base struct {
	PodCIDR, ServiceCIDR netip.Prefix
	// DNS is ours: packets to it are for this host.
	DNS netip.Addr
}

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
		Balancers: map[string]Balancer{}, Entries: map[string]Entry{}, Firewalls: map[string]Firewall{}, HostPorts: map[VIP]netip.AddrPort{},
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
func targetsOf(port servicePort, all []*endpointSlice, here place) targets {
	seen := map[netip.AddrPort]backing{}
	for _, s := range all {
		for _, p := range s.ports {
			if p.name != port.name || p.proto != port.proto {
				continue
			}
			for _, e := range s.endpoints {
				if !e.addr.Is4() {
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

// addService adds what one service needs. Where two services claim the same
// external address or node port, the one added first keeps it.
func (r *Rules) addService(s *service, all []*endpointSlice, here place) {
	for _, port := range s.ports {
		t := targetsOf(port, all, here)
		id := fmt.Sprintf("%s/%s/%s/%d", s.key.Namespace, s.key.Name, port.proto, port.port)
		svc, loc, ext, fw := "svc-"+id, "loc-"+id, "ext-"+id, "fw-"+id
		served := len(t.cluster) > 0 || len(t.local) > 0

		internal := svc
		if s.internalLocal {
			internal = loc
			if len(t.local) == 0 {
				internal = dropChain // somebody serves, but not here
			}
		}
		claimed := map[string]bool{}
		for _, ip := range s.clusterIPs {
			// Our own resolver answers at this address, whoever else claims it.
			if !ip.Is4() || ip == r.Base.DNS {
				continue
			}
			// Without endpoints there is no element, and what the tables do
			// not know in ServiceCIDR is refused.
			if served {
				claimed[internal] = claim(r.Services, VIP{ip, port.proto, port.port}, internal) || claimed[internal]
			}
		}
		external := func(ip netip.Addr, chain string) {
			vip := VIP{ip, port.proto, port.port}
			switch {
			case !ip.Is4():
			case !served:
				r.Refused[vip] = struct{}{} // unless another service has it, see rules
			case claim(r.Services, vip, chain):
				claimed[chain], claimed[ext] = true, true
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
			if claimed[fw] {
				r.Firewalls[fw] = Firewall{s.balancer.sources, ext}
			}
		}
		// A node port without endpoints needs no rule: nobody listens there.
		if port.nodePort != 0 && served {
			claimed[ext] = claim(r.NodePorts, Port{port.proto, port.nodePort}, ext) || claimed[ext]
		}

		if claimed[ext] {
			e := Entry{Cluster: svc, LocalOnly: s.externalLocal}
			claimed[svc] = true
			if s.externalLocal && len(t.local) > 0 {
				e.Local = loc
				claimed[loc] = true
			}
			r.Entries[ext] = e
		}
		if claimed[svc] {
			r.Balancers[svc] = Balancer{Endpoints: t.cluster, Affinity: s.affinity}
		}
		if claimed[loc] {
			r.Balancers[loc] = Balancer{Endpoints: t.local, Affinity: s.affinity}
		}
	}
}

func claim[K comparable](m map[K]string, key K, chain string) bool {
	if _, taken := m[key]; taken {
		return false
	}
	m[key] = chain
	return true
}

// rules maps what a node has seen of the cluster, and the pods that it runs,
// to Rules. It depends on nothing else: the same input gives the same rules.
func (c *cluster) rules(base Base, nodeName string, pods []reservation) *Rules {
	r := newRules(base)
	c.mu.RLock()
	defer c.mu.RUnlock()

	ordered := make([]*service, 0, len(c.services))
	for _, s := range c.services {
		ordered = append(ordered, s)
	}
	// The oldest service keeps an address that several claim.
	slices.SortFunc(ordered, func(a, b *service) int {
		return cmp.Or(a.created.Compare(b.created), compareKeys(a.key, b.key))
	})
	here := place{nodeName, c.nodes[nodeName].zone}
	for _, s := range ordered {
		r.addService(s, c.slicesOf(s.key), here)
	}
	for vip := range r.Refused {
		if _, taken := r.Services[vip]; taken {
			delete(r.Refused, vip)
		}
	}
	owned := map[netip.Addr]bool{}
	for name, n := range c.nodes {
		owned[n.addr] = true
		if name != nodeName && n.addr.IsValid() {
			r.Nodes[n.addr] = struct{}{}
		}
	}
	for _, s := range c.balanced {
		for _, a := range s.balancer.addresses {
			if s.balancer.ours && a.Is4() && !owned[a] {
				r.Virtual[a] = struct{}{}
			}
		}
	}
	for _, p := range pods {
		r.Pods[p.Address] = struct{}{}
		for _, h := range p.HostPorts {
			vip := VIP{h.Address, h.Protocol, h.Port}
			if _, taken := r.HostPorts[vip]; !taken {
				r.HostPorts[vip] = netip.AddrPortFrom(p.Address, h.PodPort)
			}
		}
	}
	return r
}

func compareKeys(a, b types.NamespacedName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
