package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// upstream is a name server on loopback that counts its questions.
type upstream struct {
	addr  netip.AddrPort
	asked atomic.Int64
}

func newUpstream(t testing.TB, network string, reply func(q, m *dns.Msg)) *upstream {
	t.Helper()
	u := &upstream{}
	s := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if q.Question[0].Qtype != loopProbe {
			u.asked.Add(1)
		}
		m := new(dns.Msg)
		m.SetReply(q)
		reply(q, m)
		w.WriteMsg(m)
	})}
	if network == "udp" {
		p, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.PacketConn, u.addr = p, netip.MustParseAddrPort(p.LocalAddr().String())
	} else {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.Listener, u.addr = l, netip.MustParseAddrPort(l.Addr().String())
	}
	started, done := make(chan struct{}), make(chan error, 1)
	s.NotifyStartedFunc = func() { close(started) }
	go func() { done <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return u
}

func rr(t testing.TB, s string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func testResolver(c *cluster, upstreams ...netip.AddrPort) *resolver {
	if upstreams == nil {
		upstreams = []netip.AddrPort{}
	}
	return newResolver(Config{Domain: "cluster.local", ClusterDNS: testDNS, PodCIDR: testPodCIDR, ServiceCIDR: testServiceCIDR, Upstreams: upstreams}, c)
}

func dnsCluster() *cluster {
	named := []corev1.ServicePort{
		{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt(8080)},
		{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53},
	}
	targets := []discoveryv1.EndpointPort{
		{Name: ptr("http"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr[int32](8080)},
		{Name: ptr("dns"), Protocol: ptr(corev1.ProtocolUDP), Port: ptr[int32](5353)},
	}
	named0 := func(e ep, hostname string) ep { e.hostname = hostname; return e }
	external := func(name, to string) *corev1.Service {
		return serviceOf(name, "", changes(kind(corev1.ServiceTypeExternalName), func(s *corev1.Service) { s.Spec.ExternalName = to; s.Spec.ClusterIPs = nil }))
	}
	return seen(
		&corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.1"}}}},
		serviceOf("web", "10.96.0.20", func(s *corev1.Service) { s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "fd00::20") }, named...),
		sliceOf("web", targets, onOne),
		serviceOf("plain", "10.96.0.21", nil, corev1.ServicePort{Port: 80}),
		serviceOf("set", "None", nil, named...),
		sliceOf("set", targets, named0(onOne, "db-0"), onTwo, named0(unready(onOneB), "db-2")),
		serviceOf("empty", "None", nil, named...),
		external("outside", "Example.ORG"), external("alias", "web.default.svc.cluster.local"),
		external("broken", "nothing.default.svc.cluster.local"), external("loop", "loop.default.svc.cluster.local"),
	)
}

// render is a reply without what changes from run to run.
func render(m *dns.Msg) string {
	lines := []string{dns.RcodeToString[m.Rcode]}
	if m.Authoritative {
		lines[0] += " authoritative"
	}
	for section, rrs := range map[string][]dns.RR{"": m.Answer, "authority ": m.Ns, "extra ": m.Extra} {
		for _, r := range rrs {
			if soa, ok := r.(*dns.SOA); ok {
				soa.Serial = 1
			}
			if r.Header().Rrtype != dns.TypeOPT {
				lines = append(lines, section+strings.Join(strings.Fields(r.String()), " "))
			}
		}
	}
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n  ")
}

func TestZone(t *testing.T) {
	up := newUpstream(t, "udp", func(q, m *dns.Msg) {
		if q.Question[0].Name == "example.org." && q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{rr(t, "example.org. 60 IN A 192.0.2.7")}
		} else {
			m.Rcode = dns.RcodeNameError
			m.Ns = []dns.RR{rr(t, ". 60 IN SOA a. b. 1 1 1 1 60")}
		}
	})
	r := testResolver(dnsCluster(), up.addr)
	var out strings.Builder
	for _, q := range []string{
		"cluster.local SOA", "cluster.local NS", "cluster.local A", "dns-version.cluster.local TXT", "dns-version.cluster.local A",
		"ns.dns.cluster.local A", "dns.cluster.local A", "nothing.cluster.local A", "svc.cluster.local A", "pod.cluster.local A",
		"default.svc.cluster.local A", "nothing.svc.cluster.local A", "web.nothing.svc.cluster.local A",
		"web.default.svc.cluster.local A", "WEB.Default.svc.Cluster.Local A", "web.default.svc.cluster.local AAAA", "web.default.svc.cluster.local MX",
		"web.default.svc.cluster.local SRV", "plain.default.svc.cluster.local AAAA",
		"_http._tcp.web.default.svc.cluster.local SRV", "_dns._udp.web.default.svc.cluster.local SRV", "_http._udp.web.default.svc.cluster.local SRV",
		"_http._tcp.web.default.svc.cluster.local A", "_tcp.web.default.svc.cluster.local A", "_sctp.web.default.svc.cluster.local A",
		"__tcp.web.default.svc.cluster.local A", "_http.tcp.web.default.svc.cluster.local SRV", "_._tcp.plain.default.svc.cluster.local SRV",
		"a.b.c.web.default.svc.cluster.local A", "10-244-1-5.web.default.svc.cluster.local A",
		"set.default.svc.cluster.local A", "set.default.svc.cluster.local AAAA", "set.default.svc.cluster.local SRV",
		"db-0.set.default.svc.cluster.local A", "10-244-2-5.set.default.svc.cluster.local A", "10-244-1-5.set.default.svc.cluster.local A",
		"db-2.set.default.svc.cluster.local A", "_http._tcp.set.default.svc.cluster.local SRV", "_dns._udp.set.default.svc.cluster.local SRV",
		"empty.default.svc.cluster.local A", "_http._tcp.empty.default.svc.cluster.local SRV",
		"outside.default.svc.cluster.local A", "outside.default.svc.cluster.local CNAME", "outside.default.svc.cluster.local AAAA", "x.outside.default.svc.cluster.local A",
		"alias.default.svc.cluster.local A", "alias.default.svc.cluster.local AAAA", "broken.default.svc.cluster.local A", "loop.default.svc.cluster.local A",
		"10-244-1-5.default.pod.cluster.local A", "10-244-1-5.default.pod.cluster.local AAAA", "192-168-0-1.default.pod.cluster.local A", "8-8-8-8.default.pod.cluster.local A", "x.default.pod.cluster.local A",
		"20.0.96.10.in-addr.arpa PTR", "20.0.96.10.in-addr.arpa A", "10.0.96.10.in-addr.arpa PTR", "99.0.96.10.in-addr.arpa PTR",
		"5.1.244.10.in-addr.arpa PTR", "5.2.244.10.in-addr.arpa PTR", "6.1.244.10.in-addr.arpa PTR", "1.244.10.in-addr.arpa PTR", "96.10.in-addr.arpa SOA",
		"0.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR",
		"8.8.8.8.in-addr.arpa PTR", "10.in-addr.arpa PTR", "example.org A", "example.org AAAA",
	} {
		name, qtype, _ := strings.Cut(q, " ")
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), dns.StringToType[qtype])
		m.SetEdns0(1232, false)
		fmt.Fprintf(&out, "%s\n  %s\n", q, render(r.answer(m, true)))
	}
	golden(t, "dns.golden", out.String())
}

// A dual-stack cluster knows its addresses of IPv6, and no others.
func TestZone6(t *testing.T) {
	onOne6 := ep{addr: addr("fd00:77:0:f01::5"), node: "node1", hostname: "db-0"}
	set4, set6 := sliceOf("set", []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](8080)}}, onOne), sliceOf("set", []discoveryv1.EndpointPort{{Name: ptr("http"), Port: ptr[int32](8080)}}, onOne6)
	n := nodeAt("node1", "192.168.0.1", "")
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: "fd00:aa::1"})
	http := corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}
	r := newResolver(Config{Domain: "cluster.local", ClusterDNS: testDNS, PodCIDR: testPodCIDR, ServiceCIDR: testServiceCIDR,
		PodCIDR6: testPodCIDR6, ServiceCIDR6: testServiceCIDR6, Upstreams: []netip.AddrPort{}}, seen(n,
		serviceOf("both", "10.96.0.20", func(s *corev1.Service) { s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "fd00:77:0:ff::20") }, http),
		serviceOf("six", "fd00:77:0:ff::21", nil, http), serviceOf("set", "None", nil, http), set4, set6))
	var out strings.Builder
	for _, q := range []string{
		"both.default.svc.cluster.local A", "both.default.svc.cluster.local AAAA", "both.default.svc.cluster.local SRV",
		"six.default.svc.cluster.local A", "six.default.svc.cluster.local AAAA",
		"set.default.svc.cluster.local A", "set.default.svc.cluster.local AAAA", "db-0.set.default.svc.cluster.local AAAA", "db-0.set.default.svc.cluster.local A",
		"fd00-77-0-f01--5.default.pod.cluster.local AAAA", "fd00-77-0-f01--5.default.pod.cluster.local A", "fd00-aa--1.default.pod.cluster.local AAAA", "fd00-78--5.default.pod.cluster.local AAAA",
		reverse6("fd00:77:0:ff::20") + " PTR", reverse6("fd00:77:0:ff::99") + " PTR", reverse6("fd00:77:0:f01::5") + " PTR", reverse6("fd00:77:0:f01::6") + " PTR", reverse6("fd00:78::1") + " PTR",
		"f.0.0.0.0.0.7.7.0.0.0.0.d.f.ip6.arpa SOA",
	} {
		name, qtype, _ := strings.Cut(q, " ")
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), dns.StringToType[qtype])
		m.SetEdns0(1232, false)
		fmt.Fprintf(&out, "%s\n  %s\n", q, render(r.answer(m, true)))
	}
	golden(t, "dns6.golden", out.String())
}

// In a cluster of IPv6 alone DNS has an address of IPv6 too.
func TestZoneOfIPv6Alone(t *testing.T) {
	r := newResolver(Config{Domain: "cluster.local", ClusterDNS: testDNS6, PodCIDR: testPodCIDR6, ServiceCIDR: testServiceCIDR6, Upstreams: []netip.AddrPort{}},
		seen(nodeAt("node1", "fd00:aa::1", ""), serviceOf("six", "fd00:77:0:ff::21", nil, corev1.ServicePort{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80})))
	if r.addr != "[fd00:77:0:ff::a]:53" {
		t.Errorf("it listens at %s", r.addr)
	}
	var out strings.Builder
	for _, q := range []string{
		"cluster.local NS", "ns.dns.cluster.local A", "ns.dns.cluster.local AAAA", reverse6("fd00:77:0:ff::a") + " PTR",
		"six.default.svc.cluster.local A", "six.default.svc.cluster.local AAAA", reverse6("fd00:77:0:ff::21") + " PTR",
		"20.0.96.10.in-addr.arpa PTR", "fd00-aa--1.default.pod.cluster.local AAAA",
	} {
		name, qtype, _ := strings.Cut(q, " ")
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), dns.StringToType[qtype])
		m.SetEdns0(1232, false)
		fmt.Fprintf(&out, "%s\n  %s\n", q, render(r.answer(m, true)))
	}
	golden(t, "dns6-alone.golden", out.String())
}

// reverse6 is the name below ip6.arpa of an address.
func reverse6(ip string) string {
	name, err := dns.ReverseAddr(ip)
	if err != nil {
		panic(err)
	}
	return name
}

// A cluster that was not seen yet is not one without services.
func TestZoneBeforeTheClusterIsSeen(t *testing.T) {
	r := testResolver(newCluster(func(string) {}))
	q := new(dns.Msg)
	q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	if m := r.answer(q, true); m.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %s", render(m))
	}
}

// Names of the cluster stay in it, whatever they are.
func TestNothingLeaks(t *testing.T) {
	up := newUpstream(t, "udp", func(q, m *dns.Msg) {})
	r := testResolver(dnsCluster(), up.addr)
	for _, name := range []string{"x.cluster.local.", "CLUSTER.LOCAL.", "google.com.default.svc.cluster.local.", "9.9.244.10.in-addr.arpa.", "9.9.96.10.IN-ADDR.ARPA."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypePTR, dns.TypeDS, dns.TypeANY} {
			q := new(dns.Msg)
			q.SetQuestion(name, qtype)
			r.answer(q, true)
		}
	}
	if n := up.asked.Load(); n != 0 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

func TestOddQueries(t *testing.T) {
	r := testResolver(dnsCluster())
	question := func(change func(*dns.Msg)) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
		change(q)
		return q
	}
	for name, c := range map[string]struct {
		q     *dns.Msg
		rcode int
	}{
		"two questions": {question(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError},
		"none":          {question(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		"an update":     {question(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"chaos":         {question(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"a transfer":    {question(func(q *dns.Msg) { q.Question[0].Qtype = dns.TypeAXFR }), dns.RcodeRefused},
		"EDNS 1":        {question(func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"no recursion":  {question(func(q *dns.Msg) { q.RecursionDesired = false; q.Question[0].Name = "example.org." }), dns.RcodeRefused},
		"no upstream":   {question(func(q *dns.Msg) { q.Question[0].Name = "example.org." }), dns.RcodeServerFailure},
	} {
		m := r.answer(c.q, true)
		if m.Rcode != c.rcode || m.Id != c.q.Id || !m.Response {
			t.Errorf("%s: got %s, want %s", name, render(m), dns.RcodeToString[c.rcode])
		}
	}
	if m := r.answer(question(func(q *dns.Msg) { q.Response = true }), true); m != nil {
		t.Errorf("an answer was answered: %v", m)
	}
}

func TestSizes(t *testing.T) {
	var many []ep
	for i := range 250 {
		many = append(many, ep{addr: netip.AddrFrom4([4]byte{10, 244, 1, byte(i + 1)}), hostname: fmt.Sprintf("pod-%d", i)})
	}
	ports, targets := both(80, 8080)
	r := testResolver(seen(serviceOf("many", "None", nil, ports...), sliceOf("many", targets, many...)))
	for _, c := range []struct {
		edns    int
		udp     bool
		most    int
		partial bool
	}{{0, true, 512, true}, {100, true, 512, true}, {1000, true, 1000, true}, {65535, true, maxUDP, true}, {0, false, 65535, false}, {1232, false, 65535, false}} {
		for _, name := range []string{"many.default.svc.cluster.local.", "_t._tcp.many.default.svc.cluster.local."} {
			q := new(dns.Msg)
			q.SetQuestion(name, map[bool]uint16{true: dns.TypeSRV, false: dns.TypeA}[name[0] == '_'])
			if c.edns > 0 {
				q.SetEdns0(uint16(c.edns), false)
			}
			m := r.answer(q, c.udp)
			b, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if len(b) > c.most || m.Truncated != c.partial || (m.IsEdns0() != nil) != (c.edns > 0) {
				t.Errorf("%+v %s: %d bytes, truncated %v, EDNS %v", c, name, len(b), m.Truncated, m.IsEdns0())
			}
			if !c.partial && len(m.Answer) != 250 {
				t.Errorf("%+v %s: %d answers", c, name, len(m.Answer))
			}
		}
	}
}

func TestForwarding(t *testing.T) {
	good := func(q, m *dns.Msg) { m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 60 IN A 192.0.2.7")} }
	refusing := func(q, m *dns.Msg) { m.Rcode = dns.RcodeRefused }
	ask := func(f *forwarder, name string, overUDP bool) *dns.Msg {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		m := new(dns.Msg)
		m.SetReply(q)
		f.fill(m, q, q.Question[0], overUDP)
		return m
	}
	never := func(netip.Addr) bool { return false }
	t.Run("cache", func(t *testing.T) {
		up := newUpstream(t, "udp", good)
		f := newForwarder([]netip.AddrPort{up.addr}, never)
		now := time.Unix(1000, 0)
		f.now = func() time.Time { return now }
		for _, step := range []struct {
			name  string
			after time.Duration
			ttl   uint32
			asked int64
		}{{"example.org.", 0, 60, 1}, {"EXAMPLE.org.", 10 * time.Second, 50, 1}, {"example.org.", 49 * time.Second, 1, 1}, {"example.org.", 2 * time.Second, 60, 2}, {"example.com.", 0, 60, 3}} {
			now = now.Add(step.after)
			m := ask(f, step.name, true)
			if len(m.Answer) != 1 || m.Answer[0].Header().Ttl != step.ttl || up.asked.Load() != step.asked {
				t.Errorf("%+v: %s, asked %d times", step, render(m), up.asked.Load())
			}
		}
		for i := range cacheEntries + 10 {
			f.cache.put(cacheKey{name: fmt.Sprint(i)}, ask(f, "example.net.", true), now)
		}
		if n := len(f.cache.byKey); n != cacheEntries || f.cache.recent.Len() != n {
			t.Errorf("the cache grew to %d", n)
		}
		large := ask(f, "example.net.", true)
		for i := range 1000 {
			large.Answer = append(large.Answer, rr(t, fmt.Sprintf("example.net. 60 IN TXT %d", i)))
		}
		for i := range 1000 {
			f.cache.put(cacheKey{name: fmt.Sprint(i)}, large, now)
		}
		size := 0
		for _, e := range f.cache.byKey {
			size += e.Value.(*cached).size
		}
		if size > cacheBytes || size != f.cache.size || len(f.cache.byKey) == 0 {
			t.Errorf("%d answers of %d bytes are kept, counted as %d", len(f.cache.byKey), size, f.cache.size)
		}
	})
	t.Run("what has expired is better than nothing", func(t *testing.T) {
		up := newUpstream(t, "udp", func(q, m *dns.Msg) {
			if m.Rcode = dns.RcodeNameError; q.Question[0].Name == "example.org." {
				good(q, m)
				m.Rcode = dns.RcodeSuccess
			}
			m.Ns = []dns.RR{rr(t, "org. 60 IN SOA ns.org. hostmaster.org. 1 2 3 4 60")}
		})
		f := newForwarder([]netip.AddrPort{up.addr}, never)
		now := time.Unix(1000, 0)
		f.now = func() time.Time { return now }
		ask(f, "example.org.", true)
		ask(f, "none.org.", true)
		f.fixed = nil
		f.file = "/nonexistent"
		for _, step := range []struct {
			name  string
			after time.Duration
			rcode int
			ttl   uint32
		}{{"example.org.", 59 * time.Second, dns.RcodeSuccess, 1}, {"example.org.", time.Second, dns.RcodeSuccess, staleTTL}, {"none.org.", 0, dns.RcodeServerFailure, 0},
			{"example.org.", staleFor, dns.RcodeServerFailure, 0}} {
			now = now.Add(step.after)
			m := ask(f, step.name, true)
			if m.Rcode != step.rcode || step.ttl > 0 && (len(m.Answer) != 1 || m.Answer[0].Header().Ttl != step.ttl) {
				t.Errorf("%+v : %s", step, render(m))
			}
		}
	})
	t.Run("the same question is asked once at a time", func(t *testing.T) {
		release := make(chan struct{})
		up := newUpstream(t, "udp", func(q, m *dns.Msg) {
			if q.Question[0].Qtype != loopProbe {
				<-release
			}
			good(q, m)
		})
		f := newForwarder([]netip.AddrPort{up.addr}, never)
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				if m := ask(f, "example.org.", true); len(m.Answer) != 1 {
					t.Errorf("got %s", render(m))
				}
			})
		}
		soon(t, "the question", func() bool { return up.asked.Load() > 0 })
		close(release)
		all.Wait()
		if n := up.asked.Load(); n != 1 {
			t.Errorf("it was asked %d times", n)
		}
	})
	t.Run("a domain has its own servers", func(t *testing.T) {
		of := func(ip string) func(q, m *dns.Msg) {
			return func(q, m *dns.Msg) { m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 60 IN A "+ip)} }
		}
		world, org, lab := newUpstream(t, "udp", of("192.0.2.1")), newUpstream(t, "udp", of("192.0.2.2")), newUpstream(t, "udp", of("192.0.2.3"))
		f := newForwarder(nil, never)
		f.file = "/nonexistent"
		settings, problems := parseDNSSettings(map[string]string{
			"dns.forward": world.addr.String(), "dns.forward.Example.org": org.addr.String(), "dns.forward.lab.example.org": lab.addr.String(),
			"dns.forwarding": "x", "dns.forward.bad.org": "nobody", "dns.forward.a..b": "192.0.2.1", "unreachable-toleration": "0s",
		})
		if len(problems) != 2 {
			t.Errorf("problems %v", problems)
		}
		f.configure(settings)
		for name, want := range map[string]string{"www.example.com.": "192.0.2.1", "EXAMPLE.org.": "192.0.2.2", "a.example.org.": "192.0.2.2", "notexample.org.": "192.0.2.1", "x.lab.example.org.": "192.0.2.3"} {
			if m := ask(f, name, true); len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != want {
				t.Errorf("%s: %s, want %s", name, render(m), want)
			}
		}
		f.configure(dnsSettings{})
		if m := ask(f, "www.example.com.", true); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("without settings: %s", render(m))
		}
	})
	t.Run("a server that asks us back is left out", func(t *testing.T) {
		made := make(chan struct{}) // before it is asked
		var r *resolver
		up := newUpstream(t, "udp", func(q, m *dns.Msg) { <-made; *m = *r.answer(q, true) })
		other := newUpstream(t, "udp", good)
		r = testResolver(dnsCluster(), up.addr, other.addr)
		close(made)
		f := r.up
		if m := ask(f, "example.org.", true); len(m.Answer) != 1 {
			t.Errorf("got %s", render(m))
		}
		soon(t, "the loop to be found", func() bool {
			f.loops.mu.Lock()
			defer f.loops.mu.Unlock()
			return f.loops.back[up.addr] && len(f.loops.probes) == 0
		})
		before := up.asked.Load()
		if m := ask(f, "example.com.", true); len(m.Answer) != 1 || up.asked.Load() != before {
			t.Errorf("got %s, asked %d times more", render(m), up.asked.Load()-before)
		}
		if f.loops.back[other.addr] {
			t.Error("the other server is left out too")
		}
	})
	t.Run("another server is asked", func(t *testing.T) {
		bad, up := newUpstream(t, "udp", refusing), newUpstream(t, "udp", good)
		closed, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		dead := netip.MustParseAddrPort(closed.LocalAddr().String())
		closed.Close()
		if m := ask(newForwarder([]netip.AddrPort{dead, bad.addr, up.addr}, never), "example.org.", true); len(m.Answer) != 1 {
			t.Errorf("got %s", render(m))
		}
		if m := ask(newForwarder([]netip.AddrPort{dead, bad.addr}, never), "example.org.", true); m.Rcode != dns.RcodeRefused {
			t.Errorf("got %s", render(m))
		}
		if m := ask(newForwarder([]netip.AddrPort{dead}, never), "example.org.", true); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("got %s", render(m))
		}
	})
	t.Run("by TCP", func(t *testing.T) {
		up := newUpstream(t, "tcp", good)
		if m := ask(newForwarder([]netip.AddrPort{up.addr}, never), "example.org.", false); len(m.Answer) != 1 {
			t.Errorf("got %s", render(m))
		}
	})
	t.Run("a cut answer says so and is not kept", func(t *testing.T) {
		up := newUpstream(t, "udp", func(q, m *dns.Msg) { good(q, m); m.Truncated = true })
		f := newForwarder([]netip.AddrPort{up.addr}, never)
		if m := ask(f, "example.org.", true); !m.Truncated || len(f.cache.byKey) != 0 {
			t.Errorf("got %s, kept %d", render(m), len(f.cache.byKey))
		}
	})
}

func TestLifetime(t *testing.T) {
	soa := func(ttl, minimum int) dns.RR {
		return rr(t, fmt.Sprintf("org. %d IN SOA a. b. 1 2 3 4 %d", ttl, minimum))
	}
	a := func(ttl int) dns.RR { return rr(t, fmt.Sprintf("example.org. %d IN A 192.0.2.7", ttl)) }
	for name, c := range map[string]struct {
		m    dns.Msg
		want time.Duration
		ok   bool
	}{
		"the shortest":         {dns.Msg{Answer: []dns.RR{a(60), a(30)}}, 30 * time.Second, true},
		"very long":            {dns.Msg{Answer: []dns.RR{a(1 << 30)}}, maxCacheTTL, true},
		"no such name":         {dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}, Ns: []dns.RR{soa(100, 20)}}, 20 * time.Second, true},
		"no data":              {dns.Msg{Ns: []dns.RR{soa(10, 20)}}, 10 * time.Second, true},
		"negative, very long":  {dns.Msg{Ns: []dns.RR{soa(86400, 86400)}}, maxNegative, true},
		"negative without SOA": {dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeNameError}}, 0, false},
		"a failure":            {dns.Msg{MsgHdr: dns.MsgHdr{Rcode: dns.RcodeServerFailure}, Answer: []dns.RR{a(60)}}, 0, false},
		"cut":                  {dns.Msg{MsgHdr: dns.MsgHdr{Truncated: true}, Answer: []dns.RR{a(60)}}, 0, false},
	} {
		if got, ok := lifetime(&c.m); got != c.want || ok != c.ok {
			t.Errorf("%s: %s, %v", name, got, ok)
		}
	}
}

func TestNameServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	f := newForwarder(nil, func(a netip.Addr) bool { return testServiceCIDR.Contains(a) })
	f.file = path
	now := time.Unix(1000, 0)
	f.now = func() time.Time { return now }
	write := func(s string, at int64) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Unix(at, 0), time.Unix(at, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.upstreams(); len(got) != 0 {
		t.Errorf("without a file: %v", got)
	}
	write("# nameserver 1.2.3.4\nsearch x\nnameserver 10.96.0.10\nnameserver\t192.0.2.1 # first\nnameserver fe80::1%eth0\nnameserver x\nnameserver\nnameserver 192.0.2.1\n", 1)
	if got := f.upstreams(); len(got) != 0 {
		t.Errorf("the file was read again at once: %v", got)
	}
	now = now.Add(resolvConfAge + 1)
	if got := fmt.Sprint(f.upstreams()); got != "[192.0.2.1:53 [fe80::1%eth0]:53]" {
		t.Errorf("got %s", got)
	}
	write("nameserver 192.0.2.2", 2)
	now = now.Add(resolvConfAge + 1)
	if got := fmt.Sprint(f.upstreams()); got != "[192.0.2.2:53]" {
		t.Errorf("got %s", got)
	}
}

// Whatever comes in, what goes out can be sent, and fits.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.set.default.svc.cluster.local.", "5.1.244.10.in-addr.arpa.", "1.0.ip6.arpa.", "1-2-3-4.x.pod.cluster.local.", `\000._.svc.cluster.local.`} {
		q := new(dns.Msg)
		q.SetQuestion(name, dns.TypeA)
		b, err := q.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		q.SetEdns0(600, true)
		if b, err = q.Pack(); err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	r := testResolver(dnsCluster())
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil {
			return
		}
		m := r.answer(q, true)
		if m == nil {
			return
		}
		out, err := m.Pack()
		if err != nil {
			t.Fatalf("%v: %v", q, err)
		}
		if len(out) > maxUDP {
			t.Errorf("%v: %d bytes", q, len(out))
		}
		if m.Id != q.Id || !m.Response {
			t.Errorf("%v: not its answer: %v", q, m)
		}
	})
}
