package network

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// Pods on every node reach each other, and nodes reach pods, by TCP and UDP;
// both sides see the other's own address.
//
// conformance: Networking, intra pod http
// conformance: Networking, intra pod udp
func TestPodsReachEachOther(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	a, b, c := all[0].attach("a"), all[0].attach("b"), all[1].attach("c")
	pods := map[string]*machine{"a": a, "b": b, "c": c}
	for name, p := range pods {
		p.serve(name, 80)
	}
	for from, p := range pods {
		for to, q := range pods {
			for _, network := range protocols {
				t.Run(from+" to "+to+" "+network, func(t *testing.T) {
					p.expect(network, q.addr.String()+":80", to, p.addr.String())
				})
			}
		}
	}
	for _, n := range all {
		gateway := gatewayOf(netip.MustParsePrefix(n.object().Spec.PodCIDR)).String()
		for to, q := range pods {
			for _, network := range protocols {
				t.Run(n.config.Name+" to "+to+" "+network, func(t *testing.T) {
					n.expect(network, q.addr.String()+":80", to, gateway)
				})
			}
		}
	}
}

func TestServices(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	a, b, c, d := all[0].attach("a"), all[0].attach("b"), all[1].attach("c"), all[1].attach("d")
	a.serve("a", 8080)
	c.serve("c", 8080)
	outside := l.host(200)
	ports, targets := both(80, 8080)
	ports[0].NodePort, ports[1].NodePort = 30080, 30080
	svc := serviceOf("web", "10.96.0.20", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, ports...)
	only := func(e ...ep) { all.put(sliceOf("web", targets, e...)) }
	onA, onC := ep{addr: a.addr, node: "node1"}, ep{addr: c.addr, node: "node2"}
	all.put(svc)
	only(onC)

	for _, network := range protocols {
		t.Run("pods and nodes "+network, func(t *testing.T) {
			a.expect(network, "10.96.0.20:80", "c", a.addr.String())
			b.expect(network, "10.96.0.20:80", "c", b.addr.String())
			all[0].expect(network, "10.96.0.20:80", "c", "10.244.1.1")
			all[1].expect(network, "10.96.0.20:80", "c", "10.244.2.1")
		})
		t.Run("hairpin "+network, func(t *testing.T) {
			c.expect(network, "10.96.0.20:80", "c", "10.244.2.1")
			only(onA)
			a.expect(network, "10.96.0.20:80", "a", "10.244.1.1")
			// Another pod of the same node is seen by its own address.
			b.expect(network, "10.96.0.20:80", "a", b.addr.String())
			only(onC)
			d.expect(network, "10.96.0.20:80", "c", d.addr.String())
		})
		t.Run("node port "+network, func(t *testing.T) {
			outside.expect(network, "192.168.77.1:30080", "c", "")
			outside.expect(network, "192.168.77.2:30080", "c", "")
			all[0].expect(network, "192.168.77.1:30080", "c", "")
			a.expect(network, "192.168.77.2:30080", "c", "")
		})
		t.Run("port that the service does not have "+network, func(t *testing.T) {
			a.expectRefused(network, "10.96.0.20:81")
			all[0].expectRefused(network, "10.96.0.99:80")
		})
	}
	t.Run("both endpoints get traffic", func(t *testing.T) {
		only(onA, onC)
		seen := map[string]bool{}
		for range 100 {
			who, _, err := b.talk("tcp4", "10.96.0.20:80")
			if err != nil {
				t.Fatal(err)
			}
			seen[who] = true
		}
		if !seen["a"] || !seen["c"] {
			t.Errorf("100 connections reached only %v", seen)
		}
	})
	t.Run("a UDP client moves on when its endpoint goes", func(t *testing.T) {
		only(onC)
		conn, err := b.dial("udp4", "10.96.0.20:80", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, step := range []struct {
			e    ep
			want string
		}{{onC, "c"}, {onA, "a"}, {onC, "c"}} {
			only(step.e)
			if who, _, err := exchange(conn); who != step.want {
				t.Errorf("got %q, %v; want %q", who, err, step.want)
			}
		}
	})
	t.Run("no endpoints", func(t *testing.T) {
		only()
		for _, network := range protocols {
			b.expectRefused(network, "10.96.0.20:80")
			all[0].expectRefused(network, "10.96.0.20:80")
			outside.expectRefused(network, "192.168.77.1:30080")
		}
		only(ep{addr: c.addr, node: "node2", notReady: true})
		b.expectRefused("tcp4", "10.96.0.20:80")
	})
	t.Run("a terminating endpoint serves if it is the last", func(t *testing.T) {
		only(ep{addr: c.addr, node: "node2", draining: true})
		b.expect("tcp4", "10.96.0.20:80", "c", "")
	})
	t.Run("externalTrafficPolicy Local", func(t *testing.T) {
		local := svc.DeepCopy()
		local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		all.put(local)
		only(onC)
		for _, network := range protocols {
			outside.expect(network, "192.168.77.2:30080", "c", outside.addr.String())
			a.expect(network, "192.168.77.1:30080", "c", "")
			all[0].expect(network, "192.168.77.1:30080", "c", "")
		}
		if who, _, err := outside.talk("udp4", "192.168.77.1:30080"); err == nil {
			t.Errorf("%q answered at a node without endpoints", who)
		}
	})
	t.Run("internalTrafficPolicy Local", func(t *testing.T) {
		local := svc.DeepCopy()
		local.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
		all.put(local)
		only(onA, onC)
		for range 10 {
			b.expect("tcp4", "10.96.0.20:80", "a", "")
			all[1].expect("tcp4", "10.96.0.20:80", "c", "")
		}
		only(onC)
		// Dropped, not refused: elsewhere somebody serves.
		if who, _, err := b.talk("udp4", "10.96.0.20:80"); err == nil || errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("got %q, %v where no endpoint is", who, err)
		}
		only()
		b.expectRefused("tcp4", "10.96.0.20:80")
	})
	t.Run("external address", func(t *testing.T) {
		external := svc.DeepCopy()
		external.Spec.ExternalIPs = []string{"192.168.99.9"}
		all.put(external)
		only(onC)
		outside.in(func() error {
			link, err := netlink.LinkByName("uplink")
			if err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("192.168.99.9/32")), Gw: all[0].addr.AsSlice()})
		})
		for _, network := range protocols {
			outside.expect(network, "192.168.99.9:80", "c", "")
			a.expect(network, "192.168.99.9:80", "c", "")
		}
		only()
		outside.expectRefused("tcp4", "192.168.99.9:80")
	})
	t.Run("deleted", func(t *testing.T) {
		only(onC)
		all.delete(svc)
		b.expectRefused("tcp4", "10.96.0.20:80")
		outside.expectRefused("tcp4", "192.168.77.1:30080")
	})
}

// Hand-made slices of a service without selector are all reachable: several
// addresses, and several ports of one address.
//
// conformance: EndpointSlice, multiple IPs, multiple ports
// conformance: EndpointSlice, single IP, multiple ports
func TestHandMadeSlices(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	a, b, c := all[0].attach("a"), all[0].attach("b"), all[1].attach("c")
	b.serve("b-one", 3001)
	b.serve("b-two", 3002)
	c.serve("c-two", 3002)
	ports := []corev1.ServicePort{{Name: "one", Port: 80}, {Name: "two", Port: 81}}
	all.put(serviceOf("web", "10.96.0.20", nil, ports...))
	slice := func(name, port string, number int32, m *machine) *discoveryv1.EndpointSlice {
		s := sliceOf("web", []discoveryv1.EndpointPort{{Name: &port, Protocol: ptr(corev1.ProtocolTCP), Port: &number}}, ep{addr: m.addr})
		s.Name = name
		return s
	}
	for name, second := range map[string]struct {
		m   *machine
		who string
	}{"single IP": {b, "b-two"}, "multiple IPs": {c, "c-two"}} {
		t.Run(name, func(t *testing.T) {
			all.put(slice("web-1", "one", 3001, b), slice("web-2", "two", 3002, second.m))
			for range 5 {
				for _, from := range []*machine{a, c, all[0].machine, all[1].machine} {
					from.expect("tcp4", "10.96.0.20:80", "b-one", "")
					from.expect("tcp4", "10.96.0.20:81", second.who, "")
				}
			}
		})
	}
}

// One port number carries TCP and UDP; removing either protocol stops just
// that traffic.
//
// conformance: Service, should serve endpoints on same port and different protocols.
func TestProtocolsAreApart(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	a, c := all[0].attach("a"), all[1].attach("c")
	c.serve("c", 8080)
	ports, targets := both(80, 8080)
	all.put(serviceOf("web", "10.96.0.20", nil, ports...), sliceOf("web", targets, ep{addr: c.addr, node: "node2"}))
	a.expect("tcp4", "10.96.0.20:80", "c", "")
	a.expect("udp4", "10.96.0.20:80", "c", "")
	all.put(serviceOf("web", "10.96.0.20", nil, ports[0]))
	a.expect("tcp4", "10.96.0.20:80", "c", "")
	a.expectRefused("udp4", "10.96.0.20:80")
	all.put(serviceOf("web", "10.96.0.20", nil, ports[1]))
	a.expectRefused("tcp4", "10.96.0.20:80")
	a.expect("udp4", "10.96.0.20:80", "c", "")
}

// Same hostPort with different hostIP or protocol coexists on one node and is
// reachable.
//
// conformance: Scheduling, HostPort matching and HostIP and Protocol not-matching
func TestHostPorts(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	n, outside := all[0], l.host(200)
	p1 := n.attach("p1", corev1.ContainerPort{ContainerPort: 8080, HostPort: 54323, Protocol: corev1.ProtocolTCP, HostIP: "127.0.0.1"})
	p2 := n.attach("p2", corev1.ContainerPort{ContainerPort: 8080, HostPort: 54323, Protocol: corev1.ProtocolTCP, HostIP: "192.168.77.1"})
	p3 := n.attach("p3", corev1.ContainerPort{ContainerPort: 8080, HostPort: 54323, Protocol: corev1.ProtocolUDP, HostIP: "192.168.77.1"})
	p4 := n.attach("p4", corev1.ContainerPort{ContainerPort: 8080, HostPort: 54324, Protocol: corev1.ProtocolTCP})
	for name, p := range map[string]*machine{"p1": p1, "p2": p2, "p3": p3, "p4": p4} {
		p.serve(name, 8080)
	}
	n.expect("tcp4", "127.0.0.1:54323", "p1", "")
	n.expect("tcp4", "192.168.77.1:54323", "p2", "")
	n.expect("udp4", "192.168.77.1:54323", "p3", "")
	n.expect("tcp4", "127.0.0.1:54324", "p4", "")
	outside.expect("tcp4", "192.168.77.1:54323", "p2", outside.addr.String())
	outside.expect("udp4", "192.168.77.1:54323", "p3", outside.addr.String())
	outside.expect("tcp4", "192.168.77.1:54324", "p4", outside.addr.String())
	p4.expect("tcp4", "192.168.77.1:54324", "p4", "")
	all[1].expect("tcp4", "192.168.77.1:54324", "p4", "")
	// As the conformance test does it: from the node's own address.
	c, err := n.dial("tcp4", "127.0.0.1:54323", "192.168.77.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if who, _, err := exchange(c); who != "p1" {
		t.Errorf("got %q, %v; want p1", who, err)
	}
	n.detach("p4")
	outside.expectRefused("tcp4", "192.168.77.1:54324")

	t.Run("pods do not reach the node's loopback", func(t *testing.T) {
		n.serve("node", 9999)
		p2.in(func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := writeSysctl("ipv4/conf/eth0/route_localnet", "1"); err != nil {
				return err
			}
			if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}); err != nil {
				return err
			}
			return netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: ipNet(ip4.loopback), Gw: net.IPv4(10, 244, 1, 1)})
		})
		if who, _, err := p2.talk("udp4", "127.0.0.1:9999"); err == nil {
			t.Errorf("%s answered", who)
		}
	})
}

// Only what leaves the cluster is masqueraded.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	a := all[0].attach("a")
	outside := l.host(200)
	outside.serve("outside", 80)
	all[1].serve("node2", 80)
	for _, network := range protocols {
		a.expect(network, "192.168.77.200:80", "outside", "192.168.77.1")
		a.expect(network, "192.168.77.2:80", "node2", "192.168.77.1")
		all[0].expect(network, "192.168.77.200:80", "outside", "192.168.77.1")
	}
	// A service whose endpoint is a node, as the API server's is.
	ports, targets := both(443, 80)
	all.put(serviceOf("kubernetes", "10.96.0.1", nil, ports...), sliceOf("kubernetes", targets, ep{addr: all[1].addr}))
	for _, network := range protocols {
		a.expect(network, "10.96.0.1:443", "node2", "192.168.77.1")
		all[0].expect(network, "10.96.0.1:443", "node2", "192.168.77.1")
	}
	// (By UDP the server must answer from the address that it was asked at:
	// this one, bound to all addresses, does not.)
	all[1].expect("tcp4", "10.96.0.1:443", "node2", "")
}

func TestOverlayIsForNodesOnly(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	a := all[0].attach("a")
	a.serve("a", 80)
	stranger := l.host(200)
	stranger.in(func() error {
		if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vx", TxQLen: -1, HardwareAddr: overlayMAC(netip.MustParsePrefix("10.244.2.0/24"))}, VxlanId: vxlanID, Port: vxlanPort}); err != nil {
			return err
		}
		link, err := netlink.LinkByName("vx")
		if err != nil {
			return err
		}
		if err := bringUp(link, []netip.Prefix{netip.MustParsePrefix("10.244.2.9/32")}); err != nil {
			return err
		}
		return setPeers(link, hostConfig{Range: ranges{first: netip.MustParsePrefix("10.244.2.8/29")}, Peers: []peer{{Range: ranges{first: netip.MustParsePrefix("10.244.1.0/24")}, Address: all[0].addr}}})
	})
	var before, after uint64
	count := func(n *uint64) {
		all[0].in(func() error {
			link, err := netlink.LinkByName(vxlanName)
			if err == nil {
				*n = link.Attrs().Statistics.RxPackets
			}
			return err
		})
	}
	for _, n := range all {
		n.do(order{Do: "paths"}) // the nodes' own packets
	}
	count(&before)
	if who, _, err := stranger.talk("udp4", a.addr.String()+":80"); err == nil {
		t.Errorf("%s answered a stranger", who)
	}
	if count(&after); before != after {
		t.Errorf("%d overlay packets of a stranger came through", after-before)
	}
}

// A process that is killed leaves traffic flowing, and the next one finds all
// as it was: the same answers, connections unbroken, also with no master in
// sight.
func TestRestart(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	a, c := all[0].attach("a"), all[1].attach("c", corev1.ContainerPort{ContainerPort: 8080, HostPort: 7070})
	c.serve("c", 8080)
	ports, targets := both(80, 8080)
	objects := []api.Object{serviceOf("web", "10.96.0.20", nil, ports...), sliceOf("web", targets, ep{addr: c.addr, node: "node2"})}
	all.put(objects...)
	conn, err := a.dial("tcp4", "10.96.0.20:80", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	works := func(t *testing.T) {
		t.Helper()
		if who, _, err := exchange(conn); who != "c" {
			t.Errorf("on the old connection: %q, %v", who, err)
		}
		a.expect("tcp4", "10.96.0.20:80", "c", a.addr.String())
		a.expect("tcp4", "192.168.77.2:7070", "c", "")
	}
	same := func(t *testing.T) {
		t.Helper()
		if again := all[0].attach("a"); *again != *a {
			t.Errorf("attached again: %v, was %v", *again, *a)
		}
		if again := all[1].attach("c", corev1.ContainerPort{ContainerPort: 8080, HostPort: 7070}); *again != *c {
			t.Errorf("attached again: %v, was %v", *again, *c)
		}
	}
	works(t)
	t.Run("killed", func(t *testing.T) {
		for _, n := range all {
			n.kill()
		}
		works(t)
	})
	t.Run("started without masters", func(t *testing.T) {
		for _, n := range all {
			n.config.Held = true
			n.start()
		}
		same(t)
		works(t)
		b := all[0].attach("b")
		b.expect("tcp4", "10.96.0.20:80", "c", b.addr.String())
	})
	t.Run("started with masters", func(t *testing.T) {
		for _, n := range all {
			n.stop()
			n.config.Held = false
			n.start()
		}
		same(t)
		all.put(append(objects, all[0].object(), all[1].object())...)
		works(t)
	})
}

// A node that comes back with another address is reached there.
func TestAddressChanges(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	a, c := all[0].attach("a"), all[1].attach("c")
	c.serve("c", 80)
	a.expect("tcp4", c.addr.String()+":80", "c", a.addr.String())
	n := all[1]
	n.addr = netip.MustParseAddr("192.168.77.102")
	n.in(func() error { return setAddress("uplink", n.addr) })
	n.do(order{Do: "address", Address: n.addr})
	moved := n.object()
	moved.Spec.PodCIDR = "10.244.2.0/24"
	all.put(moved)
	a.expect("tcp4", c.addr.String()+":80", "c", a.addr.String())

	// A node that leaves takes its route along.
	all[:1].delete(moved)
	if who, _, err := a.talk("udp4", c.addr.String()+":80"); err == nil {
		t.Errorf("%s answered over a link that should be gone", who)
	}
}

// What a pod asks is answered: the cluster's names by the node itself, the
// rest by others. An ExternalName service is a CNAME, follows changes, and
// becomes an address as ClusterIP.
//
// conformance: DNS, for ExternalName Services
func TestDNSFromPods(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	a := all[0].attach("a")
	outside := l.host(250)
	var asked []string
	var mu sync.Mutex
	server := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		asked = append(asked, q.Question[0].Name)
		mu.Unlock()
		m := new(dns.Msg)
		m.SetReply(q)
		rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.7")
		if err == nil {
			m.Answer = []dns.RR{rr}
		}
		w.WriteMsg(m)
	})}
	outside.in(func() (err error) {
		server.PacketConn, err = net.ListenPacket("udp4", "192.168.77.250:53")
		return err
	})
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	<-started
	defer func() {
		if err := errors.Join(server.Shutdown(), <-done); err != nil {
			t.Error(err)
		}
	}()

	ports, targets := both(80, 8080)
	var many []ep
	for i := range 200 {
		many = append(many, ep{addr: netip.AddrFrom4([4]byte{10, 244, 9, byte(i + 1)})})
	}
	headless := serviceOf("many", "None", nil, ports...)
	all.put(serviceOf("web", "10.96.0.20", nil, ports...), headless, sliceOf("many", targets, many...))

	ask := func(m *machine, network, name string) *dns.Msg {
		t.Helper()
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		conn, err := m.dial(network, "10.96.0.10:53", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := dns.Client{Net: network, Timeout: 3 * time.Second}
		a, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: conn})
		if err != nil {
			t.Fatalf("%s %s: %v", network, name, err)
		}
		return a
	}
	for _, from := range []*machine{a, all[0].machine, all[1].machine} {
		for _, network := range protocols {
			if m := ask(from, network, "web.default.svc.cluster.local."); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.96.0.20" {
				t.Errorf("%s: web: %v", network, m)
			}
		}
	}
	if m := ask(a, "udp4", "many.default.svc.cluster.local."); !m.Truncated {
		t.Errorf("200 addresses went into one UDP answer: %d", len(m.Answer))
	}
	if m := ask(a, "tcp4", "many.default.svc.cluster.local."); m.Truncated || len(m.Answer) != 200 {
		t.Errorf("by TCP there were %d addresses of 200", len(m.Answer))
	}
	named := func(to string) *corev1.Service {
		return serviceOf("named", "", changes(kind(corev1.ServiceTypeExternalName), func(s *corev1.Service) { s.Spec.ClusterIPs, s.Spec.ExternalName = nil, to }))
	}
	for _, to := range []string{"foo.example.com", "bar.example.com"} {
		all.put(named(to))
		for _, from := range []*machine{a, all[1].machine} {
			if m := ask(from, "udp4", "named.default.svc.cluster.local."); len(m.Answer) == 0 || m.Answer[0].Header().Rrtype != dns.TypeCNAME || m.Answer[0].(*dns.CNAME).Target != to+"." {
				t.Errorf("a service named %s: %v", to, m)
			}
		}
	}
	all.put(serviceOf("named", "10.96.0.33", nil, ports...))
	if m := ask(a, "udp4", "named.default.svc.cluster.local."); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "10.96.0.33" {
		t.Errorf("a service that has an address now: %v", m)
	}
	mu.Lock()
	asked = nil
	mu.Unlock()
	if m := ask(a, "udp4", "nothing.default.svc.cluster.local."); m.Rcode != dns.RcodeNameError {
		t.Errorf("a name that is not there: %v", m)
	}
	for range 3 {
		if m := ask(a, "udp4", "example.org."); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "192.0.2.7" {
			t.Errorf("example.org: %v", m)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 1 || asked[0] != "example.org." {
		t.Errorf("the upstream was asked %q; want example.org once", asked)
	}
}

// Many pods at once are no trouble, and all have a link that fits into the
// overlay.
func TestBurst(t *testing.T) {
	l := newLAN(t)
	n := l.node(1)
	nodes{n}.put(n.object())
	n.do(order{Do: "ready"})
	start := time.Now()
	n.do(order{Do: "burst", UID: "50"})
	t.Logf("50 pods attached in %s", time.Since(start))
	files, err := filepath.Glob(filepath.Join(n.config.RunDir, "uid-burst*"))
	if err != nil || len(files) != 50 {
		t.Fatalf("%d namespaces, %v", len(files), err)
	}
	addrs := map[string]bool{}
	for _, f := range files {
		if err := inNamespace(f, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			if eth.Attrs().MTU != 1500-vxlanOverhead {
				t.Errorf("%s: MTU %d", f, eth.Attrs().MTU)
			}
			all, err := netlink.AddrList(eth, netlink.FAMILY_ALL)
			for _, a := range all {
				addrs[a.String()] = true
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
	if len(addrs) != 50 {
		t.Errorf("%d addresses: %v", len(addrs), addrs)
	}
	start = time.Now()
	n.do(order{Do: "unburst", UID: "50"})
	t.Logf("and detached in %s", time.Since(start))
	if left, err := filepath.Glob(filepath.Join(n.config.RunDir, "uid-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if text := inventory(n.machine); strings.Contains(text, "link "+vethPrefix) {
		t.Errorf("left:\n%s", text)
	}
}

// inventory lists all that a node may have made in its namespace.
func inventory(m *machine) string {
	m.t.Helper()
	var out []string
	m.in(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			out = append(out, "link "+l.Attrs().Name)
			addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				out = append(out, "address "+a.String())
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{}, 0)
		if err != nil {
			return err
		}
		for _, r := range routes {
			out = append(out, "route "+r.String())
		}
		c, err := connect()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, t := range tables {
			out = append(out, "table "+t.Name)
		}
		for _, key := range []string{"ipv4/ip_forward", "ipv4/conf/all/send_redirects"} {
			b, err := os.ReadFile(sysctlPath(key))
			if err != nil {
				return err
			}
			out = append(out, key+" "+string(b))
		}
		return nil
	})
	return strings.Join(out, "\n")
}

func TestTeardownLeavesNothing(t *testing.T) {
	l := newLAN(t)
	clean := inventory(l.host(3))
	n := l.node(1)
	clean = strings.ReplaceAll(clean, "192.168.77.3", "192.168.77.1")
	nodes{n}.put(n.object(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node2"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.2.0/24"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.77.2"}}}})
	n.do(order{Do: "ready"})
	p := n.attach("a", corev1.ContainerPort{ContainerPort: 1, HostPort: 1})
	ports, targets := both(80, 8080)
	nodes{n}.put(serviceOf("web", "10.96.0.20", nil, ports...), sliceOf("web", targets, ep{addr: p.addr}))
	if dirty := inventory(n.machine); dirty == clean {
		t.Fatalf("nothing was made:\n%s", dirty)
	}
	n.do(order{Do: "teardown"})
	if isNamespace(p.path) {
		t.Error("the pod's namespace is still bound")
	}
	// Link indexes differ from machine to machine.
	if got := inventory(n.machine); stripIndexes(got) != stripIndexes(clean) {
		t.Errorf("left behind:\n%s\nwant:\n%s", got, clean)
	}
	for _, dir := range []string{n.config.RunDir, n.config.Dir} {
		files, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, f := range files {
			t.Errorf("left behind: %s", filepath.Join(dir, f.Name()))
		}
	}
}

func stripIndexes(s string) string {
	var out []string
	for line := range strings.Lines(s) {
		var words []string
		for w := range strings.FieldsSeq(line) {
			words = append(words, w)
		}
		line = strings.Join(words, " ")
		if i := strings.Index(line, "Ifindex: "); i >= 0 {
			rest := line[i+len("Ifindex: "):]
			if j := strings.IndexByte(rest, ' '); j >= 0 {
				line = line[:i] + rest[j:]
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

// Namespaces are entered on threads that end; this process's own threads stay
// where they are, its first one above all.
func TestThreadsStayAtHome(t *testing.T) {
	needRoot(t)
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			var away string
			err := onThread(func() (err error) {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("on the first thread")
				}
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					return err
				}
				away, err = os.Readlink("/proc/thread-self/ns/net")
				return err
			})
			if err != nil || away == home {
				t.Errorf("in %s: %v", away, err)
			}
		})
	}
	wg.Wait()
	for range 200 {
		runtime.Gosched()
		if now, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || now != home {
			t.Fatalf("this goroutine is in %s, %v", now, err)
		}
	}
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != home {
		t.Fatalf("this process is in %s, %v", now, err)
	}
}

// SCTP is translated where the kernel can: checked packet by packet, since the
// kernel of these tests has no sockets of it.
func TestSCTP(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if !tracksSCTP() {
		t.Skip("this kernel does not track SCTP")
	}
	all, _ := twoNodes(t)
	a, c := all[0].attach("a"), all[1].attach("c")
	all.put(serviceOf("web", "10.96.0.20", nil, corev1.ServicePort{Protocol: corev1.ProtocolSCTP, Port: 80}),
		sliceOf("web", []discoveryv1.EndpointPort{{Name: ptr(""), Protocol: ptr(corev1.ProtocolSCTP), Port: ptr[int32](8080)}}, ep{addr: c.addr, node: "node2"}))

	raw := func(m *machine) (fd int) {
		m.in(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
			return err
		})
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	// An INIT: ports, tag 0, checksum; then the chunk.
	packet := make([]byte, 32)
	binary.BigEndian.PutUint16(packet, 5555)
	binary.BigEndian.PutUint16(packet[2:], 80)
	packet[12] = 1
	binary.BigEndian.PutUint16(packet[14:], 20)
	binary.BigEndian.PutUint32(packet[16:], 7)
	binary.BigEndian.PutUint32(packet[20:], 65536)
	binary.BigEndian.PutUint16(packet[24:], 1)
	binary.BigEndian.PutUint16(packet[26:], 1)
	sum := func(b []byte) uint32 {
		b = slices.Clone(b)
		clear(b[8:12])
		return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	}
	binary.LittleEndian.PutUint32(packet[8:], sum(packet))
	server, client := raw(c), raw(a)
	if err := unix.Sendto(client, packet, 0, &unix.SockaddrInet4{Addr: [4]byte{10, 96, 0, 20}}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 256)
	n, err := unix.Read(server, got)
	if err != nil || n != 20+len(packet) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	from, to, body := netip.AddrFrom4([4]byte(got[12:16])), netip.AddrFrom4([4]byte(got[16:20])), got[20:n]
	if from != a.addr || to != c.addr || binary.BigEndian.Uint16(body[2:]) != 8080 || binary.LittleEndian.Uint32(body[8:]) != sum(body) {
		t.Errorf("from %s to %s, port %d, checksum %08x, which should be %08x", from, to, binary.BigEndian.Uint16(body[2:]), binary.LittleEndian.Uint32(body[8:]), sum(body))
	}
}
