package network

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

var protocols6 = []string{"tcp6", "udp6"}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

// Pods of a dual-stack cluster reach each other by IPv6, on one node and
// between nodes, and see each other's own address; the nodes do too.
func TestPodsReachEachOther6(t *testing.T) {
	t.Parallel()
	all, _ := twoDualNodes(t)
	a, b, c := all[0].attach("a"), all[0].attach("b"), all[1].attach("c")
	pods := map[string]*machine{"a": a, "b": b, "c": c}
	for name, p := range pods {
		p.serve(name, 80)
		p.serve6(name, 80)
	}
	if want := netip.MustParseAddr("fd00:77:0:f01::2"); a.addr6 != want {
		t.Errorf("the first pod has %s, want %s", a.addr6, want)
	}
	for from, p := range pods {
		for to, q := range pods {
			for i, network := range protocols6 {
				t.Run(from+" to "+to+" "+network, func(t *testing.T) {
					p.expect(network, at(q.addr6, 80), to, p.addr6.String())
					p.expect(protocols[i], at(q.addr, 80), to, p.addr.String())
				})
			}
		}
	}
	for _, n := range all {
		gateway := gatewayOf(netip.MustParsePrefix(n.object().Spec.PodCIDRs[1])).String()
		for to, q := range pods {
			for _, network := range protocols6 {
				t.Run(n.config.Name+" to "+to+" "+network, func(t *testing.T) {
					n.expect(network, at(q.addr6, 80), to, gateway)
				})
			}
		}
	}
}

// What a restart of the process finds it keeps, and a teardown leaves nothing:
// the host listens to its routers as before.
func TestDualRestartAndTeardown(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	needIPv6(t)
	l.dual = true
	accept := func(m *machine) (out string) {
		m.in(func() error {
			for _, key := range []string{"all/forwarding", "default/accept_ra", "uplink/accept_ra"} {
				b, err := os.ReadFile(sysctlPath("ipv6/conf/" + key))
				if err != nil {
					return err
				}
				out += strings.TrimSpace(string(b)) + " "
			}
			return nil
		})
		return strings.TrimSpace(out)
	}
	first, second := l.node(1), l.node(2)
	all := nodes{first, second}
	before := "0 1 1"
	all.ready()
	if got := accept(first.machine); got != "1 2 2" {
		t.Errorf("a node passes packets on and listens to routers: %s, want 1 2 2", got)
	}
	a, c := all[0].attach("a"), all[1].attach("c")
	c.serve6("c", 80)
	first.stop()
	a.expect("tcp6", at(c.addr6, 80), "c", a.addr6.String())
	first.start()
	nodes{first}.put(first.object(), second.object())
	first.do(order{Do: "ready"})
	if again := first.attach("a"); again.addr6 != a.addr6 || again.path != a.path {
		t.Errorf("after a restart the pod has %s in %s, had %s in %s", again.addr6, again.path, a.addr6, a.path)
	}
	a.expect("tcp6", at(c.addr6, 80), "c", a.addr6.String())
	first.do(order{Do: "teardown"})
	if got := accept(first.machine); got != before {
		t.Errorf("after the teardown: %s, want %s", got, before)
	}
	first.in(func() error {
		for _, f := range []*family{ip4, ip6} {
			for _, name := range []string{tableName, policyTableName} {
				if there, err := (nftTable{name, f}).exists(); there || err != nil {
					t.Errorf("table %s %s is there: %v", f.name, name, err)
				}
			}
		}
		routes, err := vnetlink.RouteListFiltered(vnetlink.FAMILY_ALL, &vnetlink.Route{Protocol: routeProtocol}, vnetlink.RT_FILTER_PROTOCOL)
		if len(routes) > 0 {
			t.Errorf("routes are left: %v", routes)
		}
		return err
	})
}

// A Service is reached by its IPv6 cluster address, node port and external
// addresses as by those of IPv4.
func TestServices6(t *testing.T) {
	t.Parallel()
	all, l := twoDualNodes(t)
	a, b, c, d := all[0].attach("a"), all[0].attach("b"), all[1].attach("c"), all[1].attach("d")
	a.serve6("a", 8080)
	c.serve6("c", 8080)
	c.serve("c4", 8080)
	outside := l.host(200)
	ports, targets := both(80, 8080)
	ports[0].NodePort, ports[1].NodePort = 30080, 30080
	external := netip.MustParseAddr("fd00:aa::99")
	svc := serviceOf("web", "10.96.0.20", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.ClusterIPs = []string{"10.96.0.20", "fd00:77:0:ff::20"}
		s.Spec.ExternalIPs = []string{external.String()}
	}, ports...)
	only := func(e ...ep) { all.put(sliceOf("web", targets, e...)) }
	onA, onC := ep{addr: a.addr6, node: "node1"}, ep{addr: c.addr6, node: "node2"}
	all.put(svc, sliceOf("web", targets, ep{addr: c.addr, node: "node2"}))
	only(onC)
	const vip = "[fd00:77:0:ff::20]:80"
	for i, network := range protocols6 {
		t.Run("pods and nodes "+network, func(t *testing.T) {
			a.expect(network, vip, "c", a.addr6.String())
			b.expect(network, vip, "c", b.addr6.String())
			b.expect(protocols[i], "10.96.0.20:80", "c4", b.addr.String())
			all[0].expect(network, vip, "c", "fd00:77:0:f01::1")
			all[1].expect(network, vip, "c", "fd00:77:0:f02::1")
		})
		t.Run("hairpin "+network, func(t *testing.T) {
			c.expect(network, vip, "c", "fd00:77:0:f02::1")
			only(onA)
			a.expect(network, vip, "a", "fd00:77:0:f01::1")
			b.expect(network, vip, "a", b.addr6.String())
			only(onC)
			d.expect(network, vip, "c", d.addr6.String())
		})
		t.Run("node port and external address "+network, func(t *testing.T) {
			outside.expect(network, at(all[0].addr6, 30080), "c", "")
			outside.expect(network, at(all[1].addr6, 30080), "c", "")
			outside.expect(protocols[i], at(all[0].addr, 30080), "c4", "")
			all[0].expect(network, at(all[0].addr6, 30080), "c", "")
			a.expect(network, at(all[1].addr6, 30080), "c", "")
			a.expect(network, at(external, 80), "c", "")
		})
		t.Run("what nobody serves "+network, func(t *testing.T) {
			a.expectRefused(network, "[fd00:77:0:ff::20]:81")
			all[0].expectRefused(network, "[fd00:77:0:ff::99]:80")
		})
	}
	t.Run("outside", func(t *testing.T) {
		// The world sees the node; the answer finds its way back.
		outside.serve6("outside", 80)
		for _, network := range protocols6 {
			a.expect(network, at(outside.addr6, 80), "outside", all[0].addr6.String())
		}
		// Where nothing leads, who asks is told so, and may try IPv4.
		if _, err := a.dial("tcp6", "[2001:db8::1]:80", ""); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("a way that is not there: %v", err)
		}
	})
	t.Run("a UDP client moves on when its endpoint goes", func(t *testing.T) {
		only(onC)
		conn, err := b.dial("udp6", vip, "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if who, _, err := exchange(conn); who != "c" || err != nil {
			t.Fatalf("got %q, %v", who, err)
		}
		only(onA)
		if who, _, err := exchange(conn); who != "a" || err != nil {
			t.Errorf("got %q, %v; want to be led to a", who, err)
		}
	})
	t.Run("affinity", func(t *testing.T) {
		only(onA, onC)
		sticky := svc.DeepCopy()
		sticky.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		all.put(sticky)
		first, _, err := b.talk("tcp6", vip)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			b.expect("tcp6", vip, first, "")
		}
	})
	t.Run("external traffic stays on its node", func(t *testing.T) {
		only(onC)
		local := svc.DeepCopy()
		local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		all.put(local)
		for _, network := range protocols6 {
			outside.expect(network, at(all[1].addr6, 30080), "c", outside.addr6.String())
			if who, _, err := outside.talk(network, at(all[0].addr6, 30080)); err == nil {
				t.Errorf("%s: the node without an endpoint led to %s", network, who)
			}
		}
	})
	t.Run("host port", func(t *testing.T) {
		e := all[0].attach("e", corev1.ContainerPort{ContainerPort: 8080, HostPort: 4444, Protocol: corev1.ProtocolTCP})
		e.serve6("e", 8080)
		outside.expect("tcp6", at(all[0].addr6, 4444), "e", "")
	})
	t.Run("one family alone", func(t *testing.T) {
		all.put(serviceOf("old", "10.96.0.30", nil, ports[0]), sliceOf("old", targets, ep{addr: c.addr, node: "node2"}))
		a.expect("tcp4", "10.96.0.30:80", "c4", "")
		six := serviceOf("new", "fd00:77:0:ff::30", nil, ports[0])
		all.put(six, sliceOf("new", targets, onC))
		a.expect("tcp6", "[fd00:77:0:ff::30]:80", "c", "")
	})
}

// Network policies hold for both families of a pod's addresses.
func TestPolicies6(t *testing.T) {
	t.Parallel()
	all, l := twoDualNodes(t)
	a, b, c := all[0].attach("a"), all[0].attach("b"), all[1].attach("c")
	for name, p := range map[string]*machine{"a": a, "b": b, "c": c} {
		p.serve(name, 80)
		p.serve6(name, 80)
	}
	outside := l.host(200)
	// closed asserts that nobody reaches an address, all at once: each waits in
	// vain.
	closed := func(to netip.Addr, from ...*machine) {
		t.Helper()
		network := "tcp6"
		if to.Is4() {
			network = "tcp4"
		}
		var waiting sync.WaitGroup
		for _, m := range from {
			waiting.Go(func() {
				if who, _, err := m.talk(network, at(to, 80)); err == nil {
					t.Errorf("%s was reached by %s: %s", to, m.addr6, who)
				}
			})
		}
		waiting.Wait()
	}
	deny := policyYAML(t, "default", "deny", "{podSelector: {}, policyTypes: [Ingress]}")
	all.put(deny)
	closed(a.addr, b, c)
	closed(a.addr6, b, c)
	a.expect("tcp6", at(a.addr6, 80), "a", "") // itself
	all[0].expect("tcp6", at(a.addr6, 80), "a", "")

	// An ipBlock lets in one family, and the one address of it.
	all.put(policyYAML(t, "default", "allow", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 'fd00:77:0:f02::/64', except: ['fd00:77:0:f02::9/128']}}]}]}"))
	c.expect("tcp6", at(a.addr6, 80), "a", c.addr6.String())
	closed(a.addr, c)
	closed(a.addr6, b)

	// Egress: to nobody but one range.
	all.put(policyYAML(t, "default", "out", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 'fd00:aa::/64'}}], ports: [{port: 80}]}]}"))
	outside.serve6("outside", 80)
	outside.serve6("outside", 81)
	a.expect("tcp6", at(outside.addr6, 80), "outside", "")
	if _, _, err := a.talk("tcp6", at(outside.addr6, 81)); err == nil {
		t.Error("a port that is not allowed was reached")
	}
	closed(a.addr6, c)
	all.delete(deny, policyYAML(t, "default", "allow", "{podSelector: {}}"), policyYAML(t, "default", "out", "{podSelector: {}}"))
	c.expect("tcp6", at(a.addr6, 80), "a", c.addr6.String())
	for _, n := range all {
		n.in(func() error {
			there, err := newPolicyKernel(ip6).exists()
			if there {
				err = errors.Join(err, errors.New("the table of policies is left"))
			}
			return err
		})
	}
}
