package network

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Policies is what this node's pods may receive and send, as plain data: one
// value decides everything, and two values can be compared. A pod that is in
// neither Ingress nor Egress is isolated in neither direction.
type Policies struct {
	ip *family // of all addresses here
	// Ingress and Egress map an isolated pod's address to its profile.
	Ingress, Egress map[netip.Addr]string
	// Profiles are the policies that add up for a pod, as chains. What none of
	// them allows is dropped. Their names follow from their content.
	Profiles map[string][]string
	// Chains are what each policy allows in one direction.
	Chains map[string][]allowance
	// Peers are the addresses of the pods that a selector selects.
	Peers map[string]map[netip.Addr]struct{}
	// Ports are the ports that have a name, each with its pod's address.
	Ports map[string]map[VIP]struct{}
	// Blocks are the addresses of a rule's ipBlocks, as ranges in order, none
	// touching the next. Their names follow from their content.
	Blocks map[string][]addrRange
	// DNS is the address at which this node's resolver answers its pods. It is
	// judged by the sender's egress, like a pod elsewhere. It is of the
	// cluster's first family: in the other there is none.
	DNS netip.Addr
}

// allowance lets one kind of packets pass: all that a field which is not set
// leaves open.
type allowance struct {
	// Peers or Blocks, never both, names the set that has the other side.
	Peers, Blocks string
	Proto         protocol // 0: any, then there is no port either
	First, Last   uint16   // of destination ports; both 0: any
	Named         string   // the set that has the destination's address and port
}

// addrRange is all addresses from one to another, both included.
type addrRange struct{ from, to netip.Addr }

// direction of traffic, seen from the pod that a policy selects.
type direction string

const (
	ingress direction = "in"
	egress  direction = "out"
)

// policy is a NetworkPolicy.
type policy struct {
	key      types.NamespacedName
	pods     labels.Selector
	isolates map[direction]bool
	rules    map[direction][]policyRule
}

type policyRule struct {
	anyPeer bool
	peers   []policyPeer
	blocks  []addrRange
	anyPort bool
	ports   []policyPort
}

// policyPeer selects pods.
type policyPeer struct {
	id         string          // of all that it says
	namespace  string          // where it looks, if namespaces is nil
	namespaces labels.Selector // nil: the policy's own
	pods       labels.Selector
}

type policyPort struct {
	proto       protocol
	first, last uint16 // both 0: any
	name        string
}

// policyPod is what policies can say of a pod.
type policyPod struct {
	uid       types.UID
	namespace string
	labels    labels.Set
	addrs     []netip.Addr
	ports     []namedPort
}

type namedPort struct {
	name  string
	proto protocol
	port  uint16
}

// policyWorld is all that policies are about: the input of compile.
type policyWorld struct {
	policies map[types.NamespacedName]*policy
	// namespaces has the labels of each. One that is not known has its name.
	namespaces map[string]labels.Set
	// local are the pods of this node, pods are those of all the others, by
	// namespace.
	local []*policyPod
	pods  map[string]map[types.UID]*policyPod
	dns   netip.Addr
}

// resolverPod stands for this node's resolver. Manifests that allow DNS name
// the pods that answer it elsewhere, so they mean it here; and it has the
// address that pods know.
func resolverPod(addr netip.Addr) *policyPod {
	return &policyPod{
		uid: "dns", namespace: metav1.NamespaceSystem, labels: labels.Set{"k8s-app": "kube-dns"}, addrs: []netip.Addr{addr},
		ports: []namedPort{{"dns", udp, 53}, {"dns-tcp", tcp, 53}},
	}
}

func (w *policyWorld) namespaceLabels(name string) labels.Set {
	if l, ok := w.namespaces[name]; ok {
		return l
	}
	return labels.Set{corev1.LabelMetadataName: name}
}

// all calls f with every pod of a namespace.
func (w *policyWorld) all(namespace string, f func(*policyPod)) {
	local := map[types.UID]bool{}
	for _, p := range w.local {
		if p.namespace == namespace {
			local[p.uid] = true
			f(p)
		}
	}
	for uid, p := range w.pods[namespace] {
		if !local[uid] {
			f(p)
		}
	}
	if namespace == metav1.NamespaceSystem && w.dns.IsValid() {
		f(resolverPod(w.dns))
	}
}

// everywhere are the namespaces in which there are pods.
func (w *policyWorld) everywhere() []string {
	seen := map[string]bool{metav1.NamespaceSystem: true}
	for ns := range w.pods {
		seen[ns] = true
	}
	for _, p := range w.local {
		seen[p.namespace] = true
	}
	out := make([]string, 0, len(seen))
	for ns := range seen {
		out = append(out, ns)
	}
	slices.Sort(out)
	return out
}

func newPolicies(f *family, dns netip.Addr) *Policies {
	return &Policies{ip: f,
		Ingress: map[netip.Addr]string{}, Egress: map[netip.Addr]string{}, Profiles: map[string][]string{}, Chains: map[string][]allowance{},
		Peers: map[string]map[netip.Addr]struct{}{}, Ports: map[string]map[VIP]struct{}{}, Blocks: map[string][]addrRange{}, DNS: dns,
	}
}

// compile turns what policies say of pods into what to do with packets of one
// family. It depends on nothing else: the same world gives the same answer.
func (w *policyWorld) compile(f *family) *Policies {
	dns := w.dns
	if !f.has(dns) {
		dns = netip.Addr{}
	}
	p := newPolicies(f, dns)
	byNamespace := map[string][]*policy{}
	for _, pol := range w.policies {
		byNamespace[pol.key.Namespace] = append(byNamespace[pol.key.Namespace], pol)
	}
	for _, all := range byNamespace {
		slices.SortFunc(all, func(a, b *policy) int { return compareKeys(a.key, b.key) })
	}
	for _, pod := range w.local {
		applies := map[direction][]*policy{}
		for _, pol := range byNamespace[pod.namespace] {
			if pol.pods.Matches(pod.labels) {
				for d := range pol.isolates {
					applies[d] = append(applies[d], pol)
				}
			}
		}
		for d, subjects := range map[direction]map[netip.Addr]string{ingress: p.Ingress, egress: p.Egress} {
			if len(applies[d]) == 0 {
				continue
			}
			profile := w.profile(p, d, applies[d])
			for _, a := range pod.addrs {
				if p.ip.has(a) {
					subjects[a] = profile
				}
			}
		}
	}
	return p
}

// profile adds what some policies allow together, and returns its name.
func (w *policyWorld) profile(p *Policies, d direction, all []*policy) string {
	chains := make([]string, len(all))
	for i, pol := range all {
		chains[i] = chainName(string(d), pol.key.Namespace, pol.key.Name)
		if _, had := p.Chains[chains[i]]; !had {
			p.Chains[chains[i]] = w.allowances(p, d, pol)
		}
	}
	name := chainName("pod-"+string(d), all[0].key.Namespace, digest(chains...))
	p.Profiles[name] = chains
	return name
}

// chainName is readable as long as the kernel takes it.
func chainName(kind, namespace, name string) string {
	full := kind + "-" + namespace + "/" + name
	if len(full) > 200 {
		return kind + "-" + namespace + "/" + digest(name)
	}
	return full
}

func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// allowances are what a policy allows in one direction, each once, in an order
// that does not change.
func (w *policyWorld) allowances(p *Policies, d direction, pol *policy) []allowance {
	var out []allowance
	for _, r := range pol.rules[d] {
		var from []allowance // what the peers leave open
		if r.anyPeer {
			from = []allowance{{}}
		}
		for _, peer := range r.peers {
			from = append(from, allowance{Peers: w.peers(p, peer)})
		}
		if len(r.blocks) > 0 {
			from = append(from, allowance{Blocks: blocks(p, r.blocks)})
		}
		for _, a := range from {
			if r.anyPort {
				out = append(out, a)
			}
			for _, port := range r.ports {
				a.Proto, a.First, a.Last, a.Named = port.proto, port.first, port.last, ""
				if port.name != "" {
					a.Named = w.named(p, d, port)
				}
				out = append(out, a)
			}
		}
	}
	slices.SortFunc(out, func(a, b allowance) int {
		return cmp.Or(cmp.Compare(a.Peers, b.Peers), cmp.Compare(a.Blocks, b.Blocks), cmp.Compare(a.Proto, b.Proto),
			cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last), cmp.Compare(a.Named, b.Named))
	})
	return slices.Compact(out)
}

// blocks adds the set of those of a rule's addresses that are of the family,
// which may be none, and returns its name.
func blocks(p *Policies, all []addrRange) string {
	var here []addrRange
	var parts []string
	for _, b := range all {
		if p.ip.has(b.from) {
			here, parts = append(here, b), append(parts, b.String())
		}
	}
	name := "net-" + digest(parts...)
	p.Blocks[name] = here
	return name
}

// peers adds the set of pods that a peer selects, and returns its name.
func (w *policyWorld) peers(p *Policies, peer policyPeer) string {
	name := "pods-" + peer.id
	if _, had := p.Peers[name]; had {
		return name
	}
	set := map[netip.Addr]struct{}{}
	p.Peers[name] = set
	add := func(pod *policyPod) {
		if !peer.pods.Matches(pod.labels) {
			return
		}
		for _, a := range pod.addrs {
			if p.ip.has(a) {
				set[a] = struct{}{}
			}
		}
	}
	if peer.namespaces == nil {
		w.all(peer.namespace, add)
		return name
	}
	for _, ns := range w.everywhere() {
		if peer.namespaces.Matches(w.namespaceLabels(ns)) {
			w.all(ns, add)
		}
	}
	return name
}

// named adds the set of ports that have a name, and returns its name. Traffic
// that comes in goes to this node's pods, so theirs are enough.
func (w *policyWorld) named(p *Policies, d direction, port policyPort) string {
	name := fmt.Sprintf("port-%s-%s-%s", d, port.proto, port.name)
	if _, had := p.Ports[name]; had {
		return name
	}
	set := map[VIP]struct{}{}
	p.Ports[name] = set
	add := func(pod *policyPod) {
		for _, have := range pod.ports {
			if have.name != port.name || have.proto != port.proto {
				continue
			}
			for _, a := range pod.addrs {
				if p.ip.has(a) {
					set[VIP{a, have.proto, have.port}] = struct{}{}
				}
			}
		}
	}
	if d == ingress {
		for _, pod := range w.local {
			add(pod)
		}
		return name
	}
	for _, ns := range w.everywhere() {
		w.all(ns, add)
	}
	return name
}

// wantsPeers says whether a policy depends on pods elsewhere.
func (p *policy) wantsPeers() bool {
	for d, rules := range p.rules {
		for _, r := range rules {
			if len(r.peers) > 0 || d == egress && slices.ContainsFunc(r.ports, func(p policyPort) bool { return p.name != "" }) {
				return true
			}
		}
	}
	return false
}

// parsePolicy reads a NetworkPolicy. The API has validated it; what cannot be
// read selects nothing.
func parsePolicy(n *networkingv1.NetworkPolicy) *policy {
	p := &policy{key: keyOf(n), pods: selector(&n.Spec.PodSelector), isolates: map[direction]bool{}, rules: map[direction][]policyRule{}}
	types := n.Spec.PolicyTypes
	if slices.Contains(types, networkingv1.PolicyTypeIngress) {
		p.isolates[ingress] = true
		for _, r := range n.Spec.Ingress {
			p.rules[ingress] = append(p.rules[ingress], parseRule(n.Namespace, r.From, r.Ports))
		}
	}
	if slices.Contains(types, networkingv1.PolicyTypeEgress) {
		p.isolates[egress] = true
		for _, r := range n.Spec.Egress {
			p.rules[egress] = append(p.rules[egress], parseRule(n.Namespace, r.To, r.Ports))
		}
	}
	return p
}

func selector(s *metav1.LabelSelector) labels.Selector {
	out, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return out
}

func parseRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) policyRule {
	r := policyRule{anyPeer: len(peers) == 0, anyPort: len(ports) == 0}
	for _, peer := range peers {
		if peer.IPBlock != nil {
			r.blocks = append(r.blocks, parseBlock(peer.IPBlock)...)
			continue
		}
		if peer.PodSelector == nil && peer.NamespaceSelector == nil {
			continue
		}
		out := policyPeer{namespace: namespace, pods: labels.Everything()}
		if peer.PodSelector != nil {
			out.pods = selector(peer.PodSelector)
		}
		if peer.NamespaceSelector != nil {
			out.namespace, out.namespaces = "", selector(peer.NamespaceSelector)
			out.id = digest("in", out.namespaces.String(), out.pods.String())
		} else {
			out.id = digest(namespace, out.pods.String())
		}
		r.peers = append(r.peers, out)
	}
	r.blocks = join(r.blocks)
	for _, port := range ports {
		out := policyPort{proto: tcp}
		if port.Protocol != nil {
			out.proto = protocolOf(*port.Protocol)
		}
		switch {
		case port.Port == nil:
		case port.Port.Type == intstr.String:
			out.name = port.Port.StrVal
		default:
			out.first = uint16(port.Port.IntVal)
			out.last = out.first
			if port.EndPort != nil {
				out.last = uint16(*port.EndPort)
			}
		}
		r.ports = append(r.ports, out)
	}
	return r
}

// parseBlock is the addresses of an ipBlock without its exceptions.
func parseBlock(b *networkingv1.IPBlock) []addrRange {
	whole, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return nil
	}
	left := []addrRange{rangeOf(whole)}
	for _, except := range b.Except {
		prefix, err := netip.ParsePrefix(except)
		if err != nil || prefix.Addr().Is4() != whole.Addr().Is4() {
			continue
		}
		out := rangeOf(prefix)
		var rest []addrRange
		for _, r := range left {
			if r.to.Less(out.from) || out.to.Less(r.from) {
				rest = append(rest, r)
				continue
			}
			if r.from.Less(out.from) {
				rest = append(rest, addrRange{r.from, out.from.Prev()})
			}
			if out.to.Less(r.to) {
				rest = append(rest, addrRange{out.to.Next(), r.to})
			}
		}
		left = rest
	}
	return left
}

func rangeOf(p netip.Prefix) addrRange { return addrRange{p.Masked().Addr(), lastOf(p)} }

// join orders ranges and joins those that overlap or touch.
func join(all []addrRange) []addrRange {
	slices.SortFunc(all, func(a, b addrRange) int { return cmp.Or(a.from.Compare(b.from), a.to.Compare(b.to)) })
	var out []addrRange
	for _, r := range all {
		if n := len(out); n > 0 && (!out[n-1].to.Less(r.from) || out[n-1].to.Next() == r.from) {
			if out[n-1].to.Less(r.to) {
				out[n-1].to = r.to
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

func (r addrRange) String() string { return r.from.String() + "-" + r.to.String() }

// empty says whether no pod is isolated.
func (p *Policies) empty() bool { return len(p.Ingress) == 0 && len(p.Egress) == 0 }

// String renders policies as nft would list them, sorted.
func (p *Policies) String() string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for d, subjects := range map[direction]map[netip.Addr]string{ingress: p.Ingress, egress: p.Egress} {
		for a, profile := range subjects {
			add("map %s: %s : goto %s", d, a, profile)
		}
	}
	for name, chains := range p.Profiles {
		add("chain %s: jump %s, drop", name, strings.Join(chains, ", jump "))
	}
	for name, rules := range p.Chains {
		add("chain %s:", name)
		for _, r := range rules {
			add("chain %s: %s", name, r)
		}
	}
	for name, set := range p.Peers {
		add("set %s:", name)
		for a := range set {
			add("set %s: %s", name, a)
		}
	}
	for name, set := range p.Ports {
		for v := range set {
			add("set %s: %s", name, v)
		}
	}
	for name, ranges := range p.Blocks {
		for _, r := range ranges {
			add("set %s: %s", name, r)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

func (a allowance) String() string {
	var parts []string
	switch {
	case a.Named != "":
		parts = append(parts, "port in "+a.Named)
	case a.Proto != 0 && a.First == 0 && a.Last == 0:
		parts = append(parts, a.Proto.String())
	case a.Proto != 0 && a.First == a.Last:
		parts = append(parts, fmt.Sprintf("%s %d", a.Proto, a.First))
	case a.Proto != 0:
		parts = append(parts, fmt.Sprintf("%s %d-%d", a.Proto, a.First, a.Last))
	}
	if set := a.Peers + a.Blocks; set != "" {
		parts = append(parts, "peer in "+set)
	}
	return strings.Join(append(parts, "accept"), " ")
}
