package network

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"
)

// policyYAML reads a policy as the API would have stored it.
func policyYAML(t *testing.T, namespace, name, spec string) *networkingv1.NetworkPolicy {
	t.Helper()
	n := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	if err := yaml.UnmarshalStrict([]byte(spec), &n.Spec); err != nil {
		t.Fatal(err)
	}
	if n.Spec.PolicyTypes == nil {
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if n.Spec.Egress != nil {
			n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	return n
}

// worldPod is a pod of a test's world.
type worldPod struct {
	namespace, name, addr string
	node                  string
	labels                labels.Set
	ports                 []namedPort
}

func (p worldPod) parsed() *policyPod {
	return &policyPod{uid: types.UID(p.namespace + "-" + p.name), namespace: p.namespace, labels: p.labels, addrs: []netip.Addr{addr(p.addr)}, ports: p.ports}
}

// worldOn is what a node sees.
func worldOn(node string, namespaces map[string]labels.Set, policies []*networkingv1.NetworkPolicy, pods []worldPod) *policyWorld {
	w := &policyWorld{namespaces: namespaces, policies: map[types.NamespacedName]*policy{}, pods: map[string]map[types.UID]*policyPod{}, dns: testDNS}
	for _, n := range policies {
		w.policies[keyOf(n)] = parsePolicy(n)
	}
	for _, p := range pods {
		is := p.parsed()
		if p.node == node {
			w.local = append(w.local, is)
		}
		// The API tells of a node's own pods too.
		if w.pods[p.namespace] == nil {
			w.pods[p.namespace] = map[types.UID]*policyPod{}
		}
		w.pods[p.namespace][is.uid] = is
	}
	return w
}

func TestCompile(t *testing.T) {
	pods := []worldPod{
		{"shop", "web", "10.244.1.2", "node1", labels.Set{"app": "web"}, []namedPort{{"http", tcp, 8080}}},
		{"shop", "db", "10.244.1.3", "node1", labels.Set{"app": "db"}, []namedPort{{"sql", tcp, 5432}}},
		{"shop", "job", "10.244.2.2", "node2", labels.Set{"app": "job"}, []namedPort{{"http", tcp, 9090}}},
		{"ops", "probe", "10.244.2.3", "node2", labels.Set{"app": "probe"}, nil},
	}
	namespaces := map[string]labels.Set{"shop": {"team": "a"}, "ops": {"team": "b"}}
	for _, tc := range []struct {
		name     string
		policies []string
	}{
		{"none", nil},
		{"deny", []string{"{podSelector: {}, policyTypes: [Ingress, Egress]}"}},
		{"allow-all", []string{"{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{}]}"}},
		{"ports", []string{`{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}, {port: 80, endPort: 90}, {port: 53, protocol: UDP}, {protocol: SCTP}]}]}`}},
		{"peers", []string{`{podSelector: {matchLabels: {app: db}}, ingress: [{from: [
			{podSelector: {matchExpressions: [{key: app, operator: In, values: [web, job]}]}},
			{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: probe}}},
			{ipBlock: {cidr: 192.168.0.0/16, except: [192.168.3.0/24, 192.168.255.0/24]}}, {ipBlock: {cidr: 192.168.3.128/25}}], ports: [{port: sql}]}]}`}},
		{"dns", []string{"{podSelector: {}, policyTypes: [Egress]}",
			`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: dns, protocol: UDP}, {port: 53}]}]}`}},
		{"everything", []string{"{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}, {from: [{namespaceSelector: {}}]}]}"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var all []*networkingv1.NetworkPolicy
			for i, spec := range tc.policies {
				all = append(all, policyYAML(t, "shop", fmt.Sprintf("p%d", i), spec))
			}
			golden(t, "policy-"+tc.name+".golden", worldOn("node1", namespaces, all, pods).compile(ip4).String())
		})
	}
}

// passes says what the tables do with a packet that opens a connection.
func (p *Policies) passes(from, to netip.Addr, proto protocol, port uint16) bool {
	judge := func(subject, other netip.Addr, profiles map[netip.Addr]string) bool {
		profile, isolated := profiles[subject]
		if !isolated || from == to {
			return true
		}
		for _, chain := range p.Profiles[profile] {
			for _, a := range p.Chains[chain] {
				if a.Proto != 0 && a.Proto != proto {
					continue
				}
				if a.Named != "" {
					if _, ok := p.Ports[a.Named][VIP{to, proto, port}]; !ok {
						continue
					}
				} else if a.Last != 0 && (port < a.First || port > a.Last) {
					continue
				}
				if a.Peers != "" {
					if _, ok := p.Peers[a.Peers][other]; !ok {
						continue
					}
				}
				if a.Blocks != "" && !slices.ContainsFunc(p.Blocks[a.Blocks], func(r addrRange) bool { return !other.Less(r.from) && !r.to.Less(other) }) {
					continue
				}
				return true
			}
		}
		return false
	}
	return judge(from, to, p.Egress) && judge(to, from, p.Ingress)
}

// spec is the words of Kubernetes' documentation, as simply as can be.
type spec struct {
	policies   []*networkingv1.NetworkPolicy
	namespaces map[string]labels.Set
	pods       []worldPod
}

func (s spec) podAt(a netip.Addr) *worldPod {
	for i := range s.pods {
		if addr(s.pods[i].addr) == a {
			return &s.pods[i]
		}
	}
	return nil
}

func selects(s *metav1.LabelSelector, l labels.Set) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(l)
}

func (s spec) allows(from, to netip.Addr, proto protocol, port uint16) bool {
	if from == to {
		return true
	}
	direction := func(subject, other netip.Addr, kind networkingv1.PolicyType) bool {
		pod := s.podAt(subject)
		if pod == nil || pod.node == "" {
			return true
		}
		isolated := false
		for _, n := range s.policies {
			if n.Namespace != pod.namespace || !slices.Contains(n.Spec.PolicyTypes, kind) || !selects(&n.Spec.PodSelector, pod.labels) {
				continue
			}
			isolated = true
			rule := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) bool {
				return (len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool { return s.isPeer(n.Namespace, p, other) })) &&
					(len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool { return s.isPort(p, to, proto, port) }))
			}
			if kind == networkingv1.PolicyTypeIngress {
				if slices.ContainsFunc(n.Spec.Ingress, func(r networkingv1.NetworkPolicyIngressRule) bool { return rule(r.From, r.Ports) }) {
					return true
				}
			} else if slices.ContainsFunc(n.Spec.Egress, func(r networkingv1.NetworkPolicyEgressRule) bool { return rule(r.To, r.Ports) }) {
				return true
			}
		}
		return !isolated
	}
	return direction(from, to, networkingv1.PolicyTypeEgress) && direction(to, from, networkingv1.PolicyTypeIngress)
}

func (s spec) isPeer(namespace string, p networkingv1.NetworkPolicyPeer, a netip.Addr) bool {
	if b := p.IPBlock; b != nil {
		return netip.MustParsePrefix(b.CIDR).Contains(a) && !slices.ContainsFunc(b.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(a) })
	}
	pod := s.podAt(a)
	switch {
	case pod == nil:
		return false
	case p.NamespaceSelector == nil && pod.namespace != namespace:
		return false
	case p.NamespaceSelector != nil && !selects(p.NamespaceSelector, s.namespaces[pod.namespace]):
		return false
	}
	return p.PodSelector == nil || selects(p.PodSelector, pod.labels)
}

func (s spec) isPort(p networkingv1.NetworkPolicyPort, to netip.Addr, proto protocol, port uint16) bool {
	if protocolOf(*p.Protocol) != proto {
		return false
	}
	switch {
	case p.Port == nil:
		return true
	case p.Port.Type == intstr.String:
		pod := s.podAt(to)
		return pod != nil && slices.Contains(pod.ports, namedPort{p.Port.StrVal, proto, port})
	case p.EndPort != nil:
		return int32(port) >= p.Port.IntVal && int32(port) <= *p.EndPort
	}
	return int32(port) == p.Port.IntVal
}

// randomSpec is a small world in which most things touch.
func randomSpec(rnd *rand.Rand) spec {
	pick := func(n int) int { return rnd.IntN(n) }
	some := func(set []string) labels.Set {
		l := labels.Set{}
		for _, key := range set {
			if pick(2) == 0 {
				l[key] = fmt.Sprint(pick(2))
			}
		}
		return l
	}
	s := spec{namespaces: map[string]labels.Set{}}
	spaces := []string{"a", "b", metav1.NamespaceSystem}
	for _, ns := range spaces {
		s.namespaces[ns] = some([]string{"team", "env"})
		s.namespaces[ns][corev1.LabelMetadataName] = ns
	}
	for i := range 2 + pick(5) {
		node := 1 + pick(2)
		p := worldPod{spaces[pick(2)], fmt.Sprintf("p%d", i), fmt.Sprintf("10.244.%d.%d", node, 2+i), fmt.Sprintf("node%d", node), some([]string{"app", "tier"}), nil}
		for _, port := range []namedPort{{"http", tcp, 80}, {"http", tcp, 81}, {"http", udp, 80}, {"dns", udp, 53}} {
			if pick(3) == 0 {
				p.ports = append(p.ports, port)
			}
		}
		s.pods = append(s.pods, p)
	}
	s.pods = append(s.pods, worldPod{metav1.NamespaceSystem, "dns", testDNS.String(), "", labels.Set{"k8s-app": "kube-dns"}, []namedPort{{"dns", udp, 53}, {"dns-tcp", tcp, 53}}})
	sel := func(keys ...string) *metav1.LabelSelector {
		out := &metav1.LabelSelector{}
		switch key := keys[pick(len(keys))]; pick(5) {
		case 0, 1:
			out.MatchLabels = map[string]string{key: fmt.Sprint(pick(2))}
		case 2:
			out.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpDoesNotExist}}
		case 3:
			out.MatchExpressions = []metav1.LabelSelectorRequirement{{Key: key, Operator: metav1.LabelSelectorOpNotIn, Values: []string{"0"}}}
		}
		return out
	}
	block := func() *networkingv1.IPBlock {
		whole := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(96 + 148*pick(2)), byte(pick(3)), byte(pick(8))}), []int{0, 8, 16, 24, 30, 32}[pick(6)]).Masked()
		b := &networkingv1.IPBlock{CIDR: whole.String()}
		for range pick(3) {
			if whole.Bits() < 32 {
				bits := whole.Bits() + 1 + pick(32-whole.Bits())
				a := whole.Addr().As4()
				for i := range a {
					host := byte(0xff) >> min(8, max(0, whole.Bits()-8*i))
					a[i] |= byte(pick(256)) & host
				}
				if pick(2) == 0 { // one that matters
					a = addr(s.pods[pick(len(s.pods))].addr).As4()
				}
				if except := netip.PrefixFrom(netip.AddrFrom4(a), bits).Masked(); whole.Contains(except.Addr()) {
					b.Except = append(b.Except, except.String())
				}
			}
		}
		return b
	}
	peers := func() (out []networkingv1.NetworkPolicyPeer) {
		for range pick(3) {
			switch pick(4) {
			case 0:
				out = append(out, networkingv1.NetworkPolicyPeer{PodSelector: sel("app", "tier")})
			case 1:
				out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: sel("team", "env", corev1.LabelMetadataName)})
			case 2:
				out = append(out, networkingv1.NetworkPolicyPeer{NamespaceSelector: sel("team", "env"), PodSelector: sel("app", "tier", "k8s-app")})
			case 3:
				out = append(out, networkingv1.NetworkPolicyPeer{IPBlock: block()})
			}
		}
		return out
	}
	ports := func() (out []networkingv1.NetworkPolicyPort) {
		for range pick(3) {
			p := networkingv1.NetworkPolicyPort{Protocol: ptr([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[pick(3)])}
			switch pick(4) {
			case 0:
				p.Port = ptr(intstr.FromString([]string{"http", "dns"}[pick(2)]))
			case 1:
				p.Port = ptr(intstr.FromInt32([]int32{53, 80, 81}[pick(3)]))
			case 2:
				p.Port, p.EndPort = ptr(intstr.FromInt32([]int32{1, 53, 80}[pick(3)])), ptr([]int32{80, 81, 65535}[pick(3)])
			}
			out = append(out, p)
		}
		return out
	}
	for i := range pick(5) {
		n := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: spaces[pick(2)], Name: fmt.Sprintf("n%d", i)}}
		n.Spec.PodSelector = *sel("app", "tier")
		n.Spec.PolicyTypes = [][]networkingv1.PolicyType{{networkingv1.PolicyTypeIngress}, {networkingv1.PolicyTypeEgress}, {networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}[pick(3)]
		for range pick(3) {
			n.Spec.Ingress = append(n.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers(), Ports: ports()})
		}
		for range pick(3) {
			n.Spec.Egress = append(n.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers(), Ports: ports()})
		}
		s.policies = append(s.policies, n)
	}
	return s
}

// on is what a node's tables become.
func (s spec) on(node string) *Policies {
	pods := slices.Clone(s.pods)
	return worldOn(node, s.namespaces, s.policies, slices.DeleteFunc(pods, func(p worldPod) bool { return p.node == "" })).compile(ip4)
}

// Whatever the policies and whatever the packet, the tables of the two nodes
// together do what the specification says.
func TestPoliciesFollowTheSpecification(t *testing.T) {
	t.Parallel()
	passed, dropped := 0, 0
	for seed := range uint64(3000) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		s := randomSpec(rnd)
		one, two := s.on("node1"), s.on("node2")
		addrs := []netip.Addr{addr("10.244.1.1"), addr("10.96.0.11"), addr("192.168.0.7"), addr("255.255.255.255"), addr("0.0.0.0")}
		for _, p := range s.pods {
			addrs = append(addrs, addr(p.addr))
		}
		for range 200 {
			from, to := addrs[rnd.IntN(len(addrs))], addrs[rnd.IntN(len(addrs))]
			proto := []protocol{tcp, udp, sctp}[rnd.IntN(3)]
			port := []uint16{53, 79, 80, 81, 82, 65535}[rnd.IntN(6)]
			want := s.allows(from, to, proto, port)
			if got := one.passes(from, to, proto, port) && two.passes(from, to, proto, port); got != want {
				for _, n := range s.policies {
					b, _ := yaml.Marshal(n)
					t.Log(string(b))
				}
				t.Fatalf("seed %d: %s to %s %s %d: passes %v, want %v\n%+v\n%s\n%s", seed, from, to, proto, port, got, want, s.pods, one, two)
			}
			if want {
				passed++
			} else {
				dropped++
			}
		}
	}
	if passed == 0 || dropped == 0 {
		t.Errorf("%d packets pass and %d do not: the test shows nothing", passed, dropped)
	}
}

func TestPolicyKernelRules(t *testing.T) {
	inScratch(t, func() error {
		pods := []worldPod{
			{"shop", "web", "10.244.1.2", "node1", labels.Set{"app": "web"}, []namedPort{{"http", tcp, 8080}}},
			{"shop", "job", "10.244.2.2", "node2", labels.Set{"app": "job"}, nil},
		}
		w := worldOn("node1", nil, []*networkingv1.NetworkPolicy{
			policyYAML(t, "shop", "in", `{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: http}, {port: 80, endPort: 90}, {protocol: UDP}]}, {from: [{ipBlock: {cidr: 192.168.0.0/16, except: [192.168.3.0/24]}}, {ipBlock: {cidr: 255.0.0.0/8}}]}]}`),
			policyYAML(t, "shop", "out", `{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}`),
		}, pods)
		k := newPolicyKernel(ip4)
		if err := k.apply(w.compile(ip4)); err != nil {
			return err
		}
		text, err := tableText(k.nftTable)
		if err != nil {
			return err
		}
		golden(t, "policy-kernel.golden", text)
		return nil
	})
}

// However the kernel came to hold some policies, it holds the same.
func TestPolicyChangesAreAsGoodAsAFreshStart(t *testing.T) {
	inScratch(t, func() error {
		k := newPolicyKernel(ip4)
		isolated := 0
		for seed := range uint64(80) {
			p := randomSpec(rand.New(rand.NewPCG(seed, 11))).on("node1")
			if err := k.apply(p); err != nil {
				return fmt.Errorf("change %d: %w", seed, err)
			}
			there, err := k.exists()
			if err != nil {
				return err
			}
			if there == p.empty() {
				t.Fatalf("change %d: isolates nobody: %v, the table is there: %v", seed, p.empty(), there)
			}
			if p.empty() {
				continue
			}
			isolated++
			changed, err := tableText(k.nftTable)
			if err != nil {
				return err
			}
			if err := newPolicyKernel(ip4).apply(p); err != nil {
				return fmt.Errorf("change %d, from scratch: %w", seed, err)
			}
			fresh, err := tableText(k.nftTable)
			if err != nil {
				return err
			}
			if changed != fresh {
				t.Fatalf("change %d: the kernel holds\n%s\nfrom scratch it would hold\n%s", seed, changed, fresh)
			}
		}
		if isolated < 20 {
			t.Errorf("only %d of the changes isolated a pod", isolated)
		}
		return nil
	})
}

// A pod that comes costs elements of sets, whatever else is there.
func TestManyPolicies(t *testing.T) {
	inScratch(t, func() error {
		var policies []*networkingv1.NetworkPolicy
		var pods []worldPod
		for i := range 200 {
			ns := fmt.Sprintf("ns%d", i)
			policies = append(policies, policyYAML(t, ns, "deny", "{podSelector: {}, policyTypes: [Ingress]}"),
				policyYAML(t, ns, "allow", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ns7}}}], ports: [{port: 80}]}]}"))
			for j := range 50 {
				n := i*50 + j
				node := "node2"
				if j == 0 {
					node = "node1"
				}
				pods = append(pods, worldPod{ns, fmt.Sprint(j), netip.AddrFrom4([4]byte{10, 244, byte(n / 250), byte(n%250 + 2)}).String(), node, labels.Set{"app": "web"}, nil})
			}
		}
		k := newPolicyKernel(ip4)
		apply := func(what string) error {
			start := time.Now()
			p := worldOn("node1", nil, policies, pods).compile(ip4)
			compiled := time.Now()
			if err := k.apply(p); err != nil {
				return err
			}
			t.Logf("%s: compiled in %s, applied in %s", what, compiled.Sub(start), time.Since(compiled))
			return nil
		}
		if err := apply("400 policies, 10000 pods"); err != nil {
			return err
		}
		before, err := tableText(k.nftTable)
		if err != nil {
			return err
		}
		pods = append(pods, worldPod{"ns3", "new", "10.244.200.2", "node1", labels.Set{"app": "web"}, nil})
		if err := apply("one pod more"); err != nil {
			return err
		}
		after, err := tableText(k.nftTable)
		if err != nil {
			return err
		}
		had := map[string]bool{}
		for line := range strings.Lines(before) {
			had[line] = true
		}
		var more []string
		for line := range strings.Lines(after) {
			if !had[line] {
				more = append(more, strings.TrimSpace(line))
			}
		}
		// Its entry in the map, itself, and as a peer.
		if len(more) == 0 || slices.ContainsFunc(more, func(l string) bool { return !strings.HasPrefix(l, "0af4c802") }) {
			t.Errorf("one pod more changed more than elements: %q", more)
		}
		return nil
	})
}
