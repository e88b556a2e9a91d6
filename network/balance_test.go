package network

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

func TestAnnouncer(t *testing.T) {
	all := []string{"a", "b", "c", "d"}
	had, moved := map[string]int{}, 0
	for i := range 400 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i % 250)})
		who := announcer(a, all)
		had[who]++
		if again := announcer(a, []string{"d", "c", "b", "a"}); again != who {
			t.Fatalf("%s: %s, and in another order %s", a, who, again)
		}
		switch after := announcer(a, all[:3]); {
		case after == "d":
			t.Errorf("%s stays at a node that is gone", a)
		case after != who:
			moved++
			if who != "d" {
				t.Errorf("%s moved from %s to %s, though only d went", a, who, after)
			}
		}
	}
	if moved != had["d"] {
		t.Errorf("%d addresses moved, d had %d", moved, had["d"])
	}
	for _, n := range all {
		if had[n] < 60 || had[n] > 140 {
			t.Errorf("%s has %d of 400 addresses", n, had[n])
		}
	}
	if who := announcer(netip.MustParseAddr("10.0.0.1"), nil); who != "" {
		t.Errorf("nobody is alive, and %q answers", who)
	}
}

func balanced(change func(*corev1.Service), ips ...string) *corev1.Service {
	return serviceOf("web", "10.96.0.20", func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		for _, ip := range ips {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		if change != nil {
			change(s)
		}
	}, corev1.ServicePort{Protocol: corev1.ProtocolTCP, Port: 80})
}

func TestWhoAnswers(t *testing.T) {
	const ip = "192.0.2.5"
	winner := announcer(netip.MustParseAddr(ip), []string{"node1", "node2", "node3"})
	var second string
	for _, n := range []string{"node1", "node2", "node3"} {
		if n != winner && announcer(netip.MustParseAddr(ip), []string{n, map[string]string{"node1": "node2", "node2": "node3", "node3": "node1"}[n]}) == n {
			second = n
		}
	}
	if rest := strings.Replace(strings.Replace("node1 node2 node3", winner, "", 1), "  ", " ", 1); announcer(netip.MustParseAddr(ip), strings.Fields(rest)) != second {
		second = announcer(netip.MustParseAddr(ip), strings.Fields(rest))
	}
	local := func(s *corev1.Service) {
		externalLocal(s)
		s.Spec.Type, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, 31000
	}
	at := func(e ep, node string) ep { e.node = node; return e }
	slice := func(e ...ep) api.Object { return sliceOf("web", nil, e...) }
	excluded := nodeAt(winner, "192.168.0.9", "")
	excluded.Labels[corev1.LabelNodeExcludeBalancers] = ""
	for _, c := range []struct {
		name  string
		alive []string
		more  []api.Object
		who   string
	}{
		{"all alive", nil, []api.Object{balanced(nil, ip)}, winner},
		{"the first is dead", []string{"node1", "node2", "node3"}, []api.Object{balanced(nil, ip), excluded}, second},
		{"the node of the endpoint, where it must be local", nil, []api.Object{balanced(local, ip), slice(at(onOne, second))}, second},
		{"a draining endpoint if none is ready", nil, []api.Object{balanced(local, ip), slice(at(drained(onOne), second), at(unready(onTwo), winner))}, second},
		{"no endpoint anywhere", nil, []api.Object{balanced(local, ip)}, winner},
		{"a node has the address", nil, []api.Object{balanced(nil, "192.168.0.1")}, ""},
		{"of another class", nil, []api.Object{balanced(func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr("example.org/x") }, ip)}, ""},
	} {
		objects := append([]api.Object{nodeAt("node1", "192.168.0.1", ""), nodeAt("node2", "192.168.0.2", ""), nodeAt("node3", "192.168.0.3", "")}, c.more...)
		who := ""
		for _, n := range []string{"node1", "node2", "node3"} {
			if b := seen(objects...).balance(n, c.alive); len(b.answers) > 0 {
				who += n
			}
		}
		if who != c.who {
			t.Errorf("%s: %q answers, want %q", c.name, who, c.who)
		}
	}
	if b := seen(nodeAt("node1", "192.168.0.1", ""), balanced(nil, ip)).balance("node1", []string{"node2"}); len(b.answers) > 0 {
		t.Error("a dead node answers")
	}
	two := sliceOf("web", nil, onOne, onOneB, onTwo)
	b := seen(nodeAt("node1", "192.168.0.1", ""), balanced(local, ip), two).balance("node1", nil)
	if want := (healthCheck{types.NamespacedName{Namespace: "default", Name: "web"}, 2}); b.health[31000] != want {
		t.Errorf("health %v, want %v", b.health, want)
	}
}

func TestARPFrames(t *testing.T) {
	me, you := []byte{2, 0, 0, 0, 0, 1}, []byte{2, 0, 0, 0, 0, 2}
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	f := arpFrame(me, you, arpReply, a, you, b)
	p, ok := parseARP(f)
	if !ok || p.op != arpReply || p.sender != a || p.target != b || !bytes.Equal(p.senderMAC[:], me) || len(f) != arpLength {
		t.Errorf("% x is read as %+v, %t", f, p, ok)
	}
	for i := range f {
		if _, ok := parseARP(f[:i]); ok {
			t.Errorf("%d bytes are taken for a packet", i)
		}
	}
}

func FuzzARP(f *testing.F) {
	f.Add(arpFrame(everybody, everybody, arpRequest, netip.MustParseAddr("192.0.2.1"), everybody, netip.MustParseAddr("192.0.2.2")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, ok := parseARP(b); ok && (!p.sender.Is4() || !p.target.Is4()) {
			t.Errorf("%+v", p)
		}
	})
}

func TestNDPFrames(t *testing.T) {
	me, you := []byte{2, 0, 0, 0, 0, 1}, []byte{2, 0, 0, 0, 0, 2}
	a, b := netip.MustParseAddr("2001:db8::1:2:3"), netip.MustParseAddr("fe80::2")
	// fe80::2 asks for 2001:db8::1:2:3.
	question, err := hex.DecodeString("3333ff020003" + "020000000002" + "86dd" + "6000000000203aff" +
		"fe800000000000000000000000000002" + "ff0200000000000000000001ff020003" + "87004b5600000000" + "20010db8000000000000000100020003" + "0101020000000002")
	if err != nil {
		t.Fatal(err)
	}
	h, ok := parseSolicitation(question)
	if !ok || h.asks != a || h.from != b || !bytes.Equal(h.mac[:], you) || h.claims.IsValid() {
		t.Errorf("% x is read as %+v, %t", question, h, ok)
	}
	for i := range question {
		if _, ok := parseSolicitation(question[:i]); ok {
			t.Errorf("%d bytes are taken for a question", i)
		}
		bad := bytes.Clone(question)
		bad[i] ^= 1
		if i >= 14 && i < 14+4 || i < 12 { // traffic class, flow label and link are nobody's business
			continue
		}
		if h, ok := parseSolicitation(bad); ok {
			t.Errorf("with byte %d wrong it is read as %+v", i, h)
		}
	}
	if group := solicited(a); group != netip.MustParseAddr("ff02::1:ff02:3") {
		t.Errorf("%s is asked for at %s", a, group)
	}
	reply := ndpSpeech.reply(me, h)
	want, err := hex.DecodeString("020000000002" + "020000000001" + "86dd" + "6000000000203aff" +
		"20010db8000000000000000100020003" + "fe800000000000000000000000000002" + "8800b9a160000000" + "20010db8000000000000000100020003" + "0201020000000001")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(reply, want) {
		t.Errorf("the answer is\n% x, want\n% x", reply, want)
	}
	h.from = netip.IPv6Unspecified()
	if reply := ndpSpeech.reply(me, h); !bytes.Equal(reply[:6], allNodesMAC) || reply[14+40+4] != ndpOverride {
		t.Errorf("who looks for a duplicate is told % x", reply)
	}
}

func FuzzNDP(f *testing.F) {
	f.Add(ndpAdvertisement(everybody, everybody, netip.MustParseAddr("2001:db8::1"), allNodes, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := parseSolicitation(b); ok {
			ndpSpeech.reply(everybody, h)
		}
	})
}

// behind is the hardware address that a machine sends packets for an address
// to.
func (m *machine) behind(a netip.Addr) (mac string) {
	m.t.Helper()
	m.in(func() error {
		all, err := netlink.NeighList(0, familyOf(a).netlink)
		for _, n := range all {
			if n.IP.Equal(net.IP(a.AsSlice())) {
				mac = n.HardwareAddr.String()
			}
		}
		return err
	})
	return mac
}

func (m *machine) hardware() (mac string) {
	m.t.Helper()
	m.in(func() error {
		l, err := netlink.LinkByName("uplink")
		if err == nil {
			mac = l.Attrs().HardwareAddr.String()
		}
		return err
	})
	return mac
}

// soon waits until ok, which news on the wire may make true.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for: %s", what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func TestLoadBalancer(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	loadBalancer(t, all, l, balancedFamily{
		protocols: protocols, vip: netip.MustParseAddr("192.168.77.100"), cluster: "10.96.0.20", guest: "192.168.77.200/32", others: []string{"192.168.77.201/32", "10.244.0.0/16"},
		of: func(m *machine) netip.Addr { return m.addr }, serve: (*machine).serve,
	})
}

// The same by IPv6, where neighbour discovery does what ARP does.
func TestLoadBalancer6(t *testing.T) {
	t.Parallel()
	all, l := twoDualNodes(t)
	loadBalancer(t, all, l, balancedFamily{
		protocols: protocols6, vip: netip.MustParseAddr("fd00:aa::100"), cluster: "fd00:77:0:ff::20", guest: "fd00:aa::c8/128", others: []string{"fd00:aa::c9/128", testPodCIDR6.String()},
		of: func(m *machine) netip.Addr { return m.addr6 }, serve: (*machine).serve6,
	})
}

// balancedFamily is what a load balancer's test differs in by family.
type balancedFamily struct {
	protocols []string
	vip       netip.Addr
	cluster   string
	guest     string   // the range of the first machine outside
	others    []string // those of the second, and of pods
	of        func(*machine) netip.Addr
	serve     func(m *machine, name string, port int) func()
}

func loadBalancer(t *testing.T, all nodes, l *lan, f balancedFamily) {
	a, c := all[0].attach("a"), all[1].attach("c")
	f.serve(a, "a", 8080)
	f.serve(c, "c", 8080)
	outside := l.host(200)
	vip, tcpName, udpName := f.vip, f.protocols[0], f.protocols[1]
	ip := vip.String()
	port := func(a string, n uint16) string { return netip.AddrPortFrom(netip.MustParseAddr(a), n).String() }
	ports, targets := both(80, 8080)
	svc := serviceOf("web", f.cluster, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
	}, ports...)
	onA, onC := ep{addr: f.of(a), node: "node1"}, ep{addr: f.of(c), node: "node2"}
	all.put(svc, sliceOf("web", targets, onC))

	byName := map[string]*testNode{"node1": all[0], "node2": all[1]}
	first := announcer(vip, []string{"node1", "node2"})
	second := map[string]string{"node1": "node2", "node2": "node1"}[first]
	at := func(name string) func() bool {
		return func() bool { return outside.behind(vip) == byName[name].hardware() }
	}
	soon(t, "an answer at the address", func() bool { who, _, err := outside.talk(tcpName, port(ip, 80)); return err == nil && who == "c" })
	if !at(first)() {
		t.Errorf("%s is at %s, want %s", ip, outside.behind(vip), first)
	}
	for _, network := range f.protocols {
		outside.expect(network, port(ip, 80), "c", "")
		a.expect(network, port(ip, 80), "c", "")
		all[0].expect(network, port(ip, 80), "c", "")
		outside.expectRefused(network, port(ip, 81))
		a.expectRefused(network, port(ip, 81))
	}

	t.Run("moves when its node is gone, and back", func(t *testing.T) {
		for _, n := range all {
			n.do(order{Do: "live", UID: second})
		}
		soon(t, "the news that the address is at "+second, at(second))
		for _, network := range f.protocols {
			outside.expect(network, port(ip, 80), "c", "")
		}
		for _, n := range all {
			n.do(order{Do: "live", UID: "node1,node2"})
		}
		soon(t, "the news that the address is back at "+first, at(first))
	})
	t.Run("externalTrafficPolicy Local keeps the client's address", func(t *testing.T) {
		local := svc.DeepCopy()
		local.Spec.ExternalTrafficPolicy, local.Spec.HealthCheckNodePort = corev1.ServiceExternalTrafficPolicyLocal, 31999
		all.put(local)
		for _, on := range []struct {
			e         ep
			who, node string
		}{{onA, "a", "node1"}, {onC, "c", "node2"}} {
			all.put(sliceOf("web", targets, on.e))
			soon(t, "the news that the address is at "+on.node, at(on.node))
			for _, network := range f.protocols {
				outside.expect(network, port(ip, 80), on.who, f.of(outside).String())
			}
			for name, n := range byName {
				status, count := "503 Service Unavailable", 0
				if name == on.node {
					status, count = "200 OK", 1
				}
				want := fmt.Sprintf("{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": %d,\n\t\"serviceProxyHealthy\": true\n}", count)
				soon(t, "the health of "+name, func() bool {
					got := outside.page(n.addr.String() + ":31999")
					return strings.Contains(got, status) && strings.Contains(got, "X-Load-Balancing-Endpoint-Weight: "+fmt.Sprint(count)) && strings.HasSuffix(got, want)
				})
			}
		}
		all.put(svc)
		soon(t, "the end of the health check", func() bool { return outside.page(all[0].addr.String()+":31999") == "" })
	})
	t.Run("loadBalancerSourceRanges", func(t *testing.T) {
		guarded := svc.DeepCopy()
		guarded.Spec.LoadBalancerSourceRanges = []string{f.guest}
		all.put(guarded)
		stranger := l.host(201)
		for _, network := range f.protocols {
			outside.expect(network, port(ip, 80), "c", "")
			a.expect(network, port(f.cluster, 80), "c", f.of(a).String())
		}
		for _, m := range []*machine{stranger, a} {
			if who, _, err := m.talk(udpName, port(ip, 80)); err == nil {
				t.Errorf("%q answered to %s, who may not ask", who, m.addr)
			}
		}
		guarded.Spec.LoadBalancerSourceRanges = f.others
		all.put(guarded)
		stranger.expect(tcpName, port(ip, 80), "c", "")
		a.expect(tcpName, port(ip, 80), "c", "")
	})
	t.Run("given up", func(t *testing.T) {
		plain := svc.DeepCopy()
		plain.Spec.Type, plain.Status = corev1.ServiceTypeClusterIP, corev1.ServiceStatus{}
		all.put(plain)
		nobody := l.host(202)
		soon(t, "silence at the address", func() bool { _, err := nobody.dial(tcpName, port(ip, 80), ""); return err != nil })
		if mac := nobody.behind(vip); mac != "" {
			t.Errorf("%s still answers", mac)
		}
	})
}

// page is what a port says to an HTTP request, "" if nothing.
func (m *machine) page(to string) string {
	m.t.Helper()
	conn, err := m.dial("tcp4", to, "")
	if err != nil {
		return ""
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(conn)
	if err != nil {
		return ""
	}
	return string(b)
}
