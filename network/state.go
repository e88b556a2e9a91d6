package network

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
	"conclave/network/wireguard"
)

// The types below keep of an API object what this package uses and nothing
// else: a node that is no master decodes every Service of the cluster, and the
// whole object would stay in its memory.

// protocol is an IP protocol number, as packets carry it.
type protocol uint8

const (
	tcp  protocol = 6
	udp  protocol = 17
	sctp protocol = 132
)

func (p protocol) String() string {
	switch p {
	case tcp:
		return "tcp"
	case udp:
		return "udp"
	case sctp:
		return "sctp"
	}
	return "unknown"
}

func protocolOf(p corev1.Protocol) protocol {
	switch p {
	case corev1.ProtocolUDP:
		return udp
	case corev1.ProtocolSCTP:
		return sctp
	}
	return tcp // also the default of a field left empty
}

// service is a Service.
type service struct {
	key     types.NamespacedName
	created time.Time
	// clusterIPs is empty for a headless or ExternalName service.
	clusterIPs []netip.Addr
	headless   bool
	// external is the name that an ExternalName service stands for.
	external string
	// externalIPs are the addresses outside ServiceCIDR that also belong to it.
	externalIPs []netip.Addr
	// balancer is nil unless it is of type LoadBalancer.
	balancer      *balancer
	ports         []servicePort
	affinity      time.Duration // 0: none
	internalLocal bool
	externalLocal bool
	// elsewhere says that another proxy carries it, by its label: here it is
	// but a name.
	elsewhere bool
}

// balancer is what only a Service of type LoadBalancer has.
type balancer struct {
	// addresses are those of its status that are of mode VIP: packets to them
	// arrive here as they were sent.
	addresses []netip.Addr
	// sources, if any, are who alone may send to them.
	sources []netip.Prefix
	// ours says that no other implementation looks after it.
	ours bool
	// healthPort, if not 0, is where each node says how many endpoints it has.
	healthPort uint16
}

type servicePort struct {
	name     string
	proto    protocol
	port     uint16
	nodePort uint16
}

// endpointSlice is an EndpointSlice.
type endpointSlice struct {
	service   types.NamespacedName
	ports     []slicePort
	endpoints []endpoint
}

type slicePort struct {
	name  string
	proto protocol
	port  uint16
}

type endpoint struct {
	addr     netip.Addr
	hostname string
	node     string
	ready    bool
	// draining: terminating but still serving, used when nothing is ready.
	draining bool
	// hints are nil where there are none. Endpoints of one slice that have the
	// same share them.
	hints *hints
}

// hints are the places that an endpoint is meant for, sorted.
type hints struct{ zones, nodes []string }

func (h *hints) equal(o *hints) bool {
	return h == o || h != nil && o != nil && slices.Equal(h.zones, o.zones) && slices.Equal(h.nodes, o.nodes)
}

// node is a Node.
type node struct {
	// addr is what the others send overlay packets to, of the family of its first
	// range; invalid as long as it has no such InternalIP.
	addr  netip.Addr
	addrs []netip.Addr // all InternalIPs
	pods  ranges       // of its pods' addresses
	zone  string
	// excluded from answering for load balancers' addresses, by its label.
	excluded bool
	// direct: it sends to those who share its link, and expects from them,
	// packets of pods as they are.
	direct bool
	key    wireguard.Key // by which to encrypt for it; zero if it has shown none
}

// cluster is what this node has seen of the cluster. It survives the loss of
// every master: only a new snapshot replaces it.
type cluster struct {
	mu       sync.RWMutex
	services map[types.NamespacedName]*service
	slices   map[types.NamespacedName]*endpointSlice
	// byService and byAddress are indexes into slices; byIP is one into
	// services, by cluster IP.
	byService map[types.NamespacedName][]*endpointSlice
	byAddress map[netip.Addr][]*endpointSlice
	byIP      map[netip.Addr]*service
	balanced  map[types.NamespacedName]*service // those with a balancer
	spaces    map[string]int                    // services in each namespace
	// dirty are the services of which something changed since the rules were
	// made; allDirty stands for all of them.
	dirty     map[types.NamespacedName]struct{}
	allDirty  bool
	nodes     map[string]node
	localPods map[types.UID]struct{}
	// synced says which resources have delivered their first snapshot.
	synced map[string]bool
	// changed is called after every change, outside the lock, with the
	// resource that changed.
	changed func(resource string)
}

func newCluster(changed func(string)) *cluster {
	c := &cluster{changed: changed, dirty: map[types.NamespacedName]struct{}{}, synced: map[string]bool{}, nodes: map[string]node{}, localPods: map[types.UID]struct{}{}}
	c.resetServices()
	c.resetSlices()
	return c
}

func (c *cluster) resetServices() {
	c.allDirty = true
	c.services = map[types.NamespacedName]*service{}
	c.byIP = map[netip.Addr]*service{}
	c.balanced = map[types.NamespacedName]*service{}
	c.spaces = map[string]int{}
}

func (c *cluster) resetSlices() {
	c.allDirty = true
	c.slices = map[types.NamespacedName]*endpointSlice{}
	c.byService = map[types.NamespacedName][]*endpointSlice{}
	c.byAddress = map[netip.Addr][]*endpointSlice{}
}

// isSynced says whether all these resources have been seen once.
func (c *cluster) isSynced(resources ...string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return !slices.ContainsFunc(resources, func(r string) bool { return !c.synced[r] })
}

// handler receives one resource for a cluster. Its functions are called with
// the cluster's lock held.
type handler struct {
	c        *cluster
	resource string
	reset    func()
	put      func(api.Object)
	drop     func(api.Object)
}

var _ api.Handler = handler{}

// Replace implements api.Handler.
func (h handler) Replace(objects []api.Object) {
	h.c.mu.Lock()
	h.reset()
	for _, o := range objects {
		h.put(o)
	}
	h.c.synced[h.resource] = true
	h.c.mu.Unlock()
	h.c.changed(h.resource)
}

// Apply implements api.Handler.
func (h handler) Apply(event watch.EventType, object api.Object) {
	h.c.mu.Lock()
	switch event {
	case watch.Added, watch.Modified:
		h.put(object)
	case watch.Deleted:
		h.drop(object)
	}
	h.c.mu.Unlock()
	h.c.changed(h.resource)
}

func keyOf(o api.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

// handlers are the receivers of all that a cluster follows, by resource.
func (c *cluster) handlers() map[string]handler {
	return map[string]handler{
		"services": {c, "services", c.resetServices,
			func(o api.Object) {
				c.dropService(keyOf(o))
				if s, ok := o.(*corev1.Service); ok {
					c.putService(parseService(s))
				}
			},
			func(o api.Object) { c.dropService(keyOf(o)) }},
		"endpointslices": {c, "endpointslices", c.resetSlices,
			func(o api.Object) {
				c.dropSlice(keyOf(o))
				if s, ok := o.(*discoveryv1.EndpointSlice); ok {
					c.putSlice(keyOf(o), parseSlice(s))
				}
			},
			func(o api.Object) { c.dropSlice(keyOf(o)) }},
		"nodes": {c, "nodes", func() { c.nodes = map[string]node{} },
			func(o api.Object) {
				if n, ok := o.(*corev1.Node); ok {
					c.nodes[n.Name] = parseNode(n)
				}
			},
			func(o api.Object) { delete(c.nodes, o.GetName()) }},
		"pods": {c, "pods", func() { c.localPods = map[types.UID]struct{}{} },
			func(o api.Object) { c.localPods[o.GetUID()] = struct{}{} },
			func(o api.Object) { delete(c.localPods, o.GetUID()) }},
	}
}

func (c *cluster) putService(s *service) {
	c.services[s.key] = s
	c.dirty[s.key] = struct{}{}
	c.spaces[s.key.Namespace]++
	for _, ip := range s.clusterIPs {
		c.byIP[ip] = s
	}
	if s.balancer != nil {
		c.balanced[s.key] = s
	}
}

func (c *cluster) dropService(key types.NamespacedName) {
	s := c.services[key]
	if s == nil {
		return
	}
	c.dirty[key] = struct{}{}
	delete(c.services, key)
	delete(c.balanced, key)
	if c.spaces[key.Namespace]--; c.spaces[key.Namespace] == 0 {
		delete(c.spaces, key.Namespace)
	}
	for _, ip := range s.clusterIPs {
		if c.byIP[ip] == s {
			delete(c.byIP, ip)
		}
	}
}

func (c *cluster) putSlice(key types.NamespacedName, s *endpointSlice) {
	c.slices[key] = s
	c.dirty[s.service] = struct{}{}
	addTo(c.byService, s.service, s)
	for _, e := range s.endpoints {
		addTo(c.byAddress, e.addr, s)
	}
}

func (c *cluster) dropSlice(key types.NamespacedName) {
	s := c.slices[key]
	if s == nil {
		return
	}
	c.dirty[s.service] = struct{}{}
	delete(c.slices, key)
	removeFrom(c.byService, s.service, s)
	for _, e := range s.endpoints {
		removeFrom(c.byAddress, e.addr, s)
	}
}

// addTo and removeFrom keep an index whose lists are short: a map for each
// address would take more memory than all else here.
func addTo[K comparable](index map[K][]*endpointSlice, k K, s *endpointSlice) {
	if all := index[k]; !slices.Contains(all, s) {
		index[k] = append(all, s)
	}
}

func removeFrom[K comparable](index map[K][]*endpointSlice, k K, s *endpointSlice) {
	all := slices.DeleteFunc(index[k], func(o *endpointSlice) bool { return o == s })
	if len(all) == 0 {
		delete(index, k)
	} else {
		index[k] = all
	}
}

// takeDirty returns the services of which something changed since it was called
// last, or that anything may have.
func (c *cluster) takeDirty() (keys map[types.NamespacedName]struct{}, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys, all = c.dirty, c.allDirty
	c.dirty, c.allDirty = map[types.NamespacedName]struct{}{}, false
	return keys, all
}

// slicesOf returns the slices of a service, to be read only while the lock is
// held.
func (c *cluster) slicesOf(key types.NamespacedName) []*endpointSlice { return c.byService[key] }

// parseAddr reads an address of an API object. The API has validated it, so
// one that cannot be read is not there.
func parseAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil && a.Zone() == ""
}

func parseAddrs(all []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range all {
		if a, ok := parseAddr(s); ok && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// labelServiceProxy names the proxy that carries a service, where that is not
// the one that every node has.
const labelServiceProxy = "service.kubernetes.io/service-proxy-name"

func parseService(s *corev1.Service) *service {
	out := &service{key: keyOf(s), created: s.CreationTimestamp.Time}
	_, out.elsewhere = s.Labels[labelServiceProxy]
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.external = strings.ToLower(strings.TrimSuffix(s.Spec.ExternalName, "."))
		return out
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		out.headless = true
	} else {
		out.clusterIPs = parseAddrs(append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...))
	}
	for _, p := range s.Spec.Ports {
		out.ports = append(out.ports, servicePort{name: p.Name, proto: protocolOf(p.Protocol), port: uint16(p.Port), nodePort: uint16(p.NodePort)})
	}
	if out.headless {
		return out
	}
	out.externalIPs = parseAddrs(s.Spec.ExternalIPs)
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		out.balancer = parseBalancer(s)
		if out.elsewhere {
			out.balancer.healthPort = 0
		}
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		out.affinity = time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			out.affinity = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
		}
	}
	out.internalLocal = s.Spec.InternalTrafficPolicy != nil && *s.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	out.externalLocal = s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	return out
}

func parseBalancer(s *corev1.Service) *balancer {
	out := &balancer{ours: api.OwnLoadBalancer(s), healthPort: uint16(s.Spec.HealthCheckNodePort)}
	var virtual []string
	for _, i := range s.Status.LoadBalancer.Ingress {
		if i.IP != "" && (i.IPMode == nil || *i.IPMode == corev1.LoadBalancerIPModeVIP) {
			virtual = append(virtual, i.IP)
		}
	}
	out.addresses = parseAddrs(virtual)
	for _, r := range s.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(r)); err == nil {
			out.sources = append(out.sources, p.Masked())
		}
	}
	return out
}

func parseSlice(s *discoveryv1.EndpointSlice) *endpointSlice {
	out := &endpointSlice{service: types.NamespacedName{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
	for _, p := range s.Ports {
		if p.Port == nil {
			continue // "all ports" has no meaning to a service rule
		}
		port := slicePort{port: uint16(*p.Port), proto: tcp}
		if p.Name != nil {
			port.name = *p.Name
		}
		if p.Protocol != nil {
			port.proto = protocolOf(*p.Protocol)
		}
		out.ports = append(out.ports, port)
	}
	for _, e := range s.Endpoints {
		// Clients must read an absent condition as: ready yes, serving as
		// ready, terminating no.
		ready := e.Conditions.Ready == nil || *e.Conditions.Ready
		serving := ready
		if e.Conditions.Serving != nil {
			serving = *e.Conditions.Serving
		}
		terminating := e.Conditions.Terminating != nil && *e.Conditions.Terminating
		ep := endpoint{ready: ready, draining: serving && terminating}
		if e.Hostname != nil {
			ep.hostname = strings.ToLower(*e.Hostname)
		}
		if e.NodeName != nil {
			ep.node = *e.NodeName
		}
		if ep.hints = parseHints(e.Hints); ep.hints != nil && len(out.endpoints) > 0 {
			if last := out.endpoints[len(out.endpoints)-1].hints; last.equal(ep.hints) {
				ep.hints = last
			}
		}
		// Only the first address of an endpoint is to be used; the others are
		// there for history.
		if len(e.Addresses) > 0 {
			if a, ok := parseAddr(e.Addresses[0]); ok {
				ep.addr = a
				out.endpoints = append(out.endpoints, ep)
			}
		}
	}
	return out
}

func parseHints(h *discoveryv1.EndpointHints) *hints {
	if h == nil || len(h.ForZones) == 0 && len(h.ForNodes) == 0 {
		return nil
	}
	out := &hints{}
	for _, z := range h.ForZones {
		out.zones = append(out.zones, z.Name)
	}
	for _, n := range h.ForNodes {
		out.nodes = append(out.nodes, n.Name)
	}
	slices.Sort(out.zones)
	slices.Sort(out.nodes)
	return out
}

func parseNode(n *corev1.Node) node {
	out := node{zone: n.Labels[corev1.LabelTopologyZone]}
	out.direct, out.key = n.Annotations[AnnotationDirectRoutes] == "true", parseKey(n.Annotations)
	_, out.excluded = n.Labels[corev1.LabelNodeExcludeBalancers]
	for _, a := range n.Status.Addresses {
		addr, ok := parseAddr(a.Address)
		if !ok || a.Type != corev1.NodeInternalIP {
			continue
		}
		out.addrs = append(out.addrs, addr)
	}
	for _, c := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		p, err := netip.ParsePrefix(c)
		switch {
		case err != nil:
		case !out.pods.first.IsValid():
			out.pods.first = p.Masked()
		case out.pods.first.Addr().Is4() && !p.Addr().Is4():
			out.pods.second = p.Masked()
		}
	}
	out.addr = out.addrOf(ip4)
	if out.pods.first.Addr().Is6() || !out.addr.IsValid() {
		out.addr = out.addrOf(ip6)
	}
	return out
}

// addrOf is the node's own address in one family, invalid if it has none.
func (n node) addrOf(f *family) netip.Addr {
	for _, a := range n.addrs {
		if f.has(a) {
			return a
		}
	}
	return netip.Addr{}
}

// ends are where the paths to its pods lead, one for each range. Packets of a
// family of which the node has no address go by the overlay alone.
func (n node) ends() (all []pathEnd) {
	for i, r := range n.pods.all() {
		end := pathEnd{n.addr, r}
		if a := n.addrOf(familyOf(r.Addr())); i > 0 && a.IsValid() {
			end.addr = a
		}
		all = append(all, end)
	}
	return all
}
