package hosts

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/lab"
)

// exchange puts one question to the cluster's DNS from a host.
func exchange(t *testing.T, h *lab.Host, network string, q *dns.Msg) *dns.Msg {
	t.Helper()
	conn, err := h.Dial(t.Context(), network, "10.96.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	d := &dns.Conn{Conn: conn, UDPSize: 65535}
	if err := d.WriteMsg(q); err != nil {
		t.Fatal(err)
	}
	m, err := d.ReadMsg()
	if err != nil {
		t.Fatalf("%s: %v", q.Question[0].Name, err)
	}
	return m
}

func question(name string, kind uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, kind) }

// nameServer answers on the lab's gateway, beside the hosts, and counts what it
// is asked.
type nameServer struct {
	addr netip.AddrPort

	mu    sync.Mutex
	asked map[string]int
}

func newNameServer(t *testing.T, gateway netip.Addr, answer func(q, m *dns.Msg)) *nameServer {
	t.Helper()
	listener, err := net.ListenPacket("udp4", netip.AddrPortFrom(gateway, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	s := &nameServer{addr: netip.MustParseAddrPort(listener.LocalAddr().String()), asked: map[string]int{}}
	server := &dns.Server{PacketConn: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		s.mu.Lock()
		s.asked[strings.ToLower(q.Question[0].Name)]++
		s.mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		answer(q, m)
		_ = w.WriteMsg(m)
	})}
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(), <-done); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *nameServer) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

// TestDNS shows the cluster's DNS as a resolver sees it, byte by byte where that
// matters: what is there, what is not and how that is said, sizes, the servers
// that others' names are asked of, and what is remembered.
func TestDNS(t *testing.T) {
	c := three(t)
	t.Parallel()
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: namespace(t, c)}
	w.pods = runPods(t, c, w.ns, toolPod("net-0", c.Hosts[0].Name, netLabels, "serve", "http:8080"))
	h := c.Hosts[1]
	below := "." + w.ns + ".svc.cluster.local."
	web := w.service(t, "web", func(*corev1.Service) {})
	record := func(text string) dns.RR {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		return rr
	}
	eventually(t, "the service is known", func() error { _, err := lookup(t, h, "web"+below, dns.TypeA); return err })

	t.Run("a name as it was written", func(t *testing.T) {
		name := "wEB." + w.ns + ".sVc.CLUSTER.local."
		m := exchange(t, h, "udp", question(name, dns.TypeA))
		if len(m.Answer) != 1 || m.Question[0].Name != name || m.Answer[0].Header().Name != name || m.Answer[0].(*dns.A).A.String() != web.Spec.ClusterIP || !m.Authoritative || !m.RecursionAvailable {
			t.Errorf("%v", m)
		}
		if ttl := m.Answer[0].Header().Ttl; ttl != 5 {
			t.Errorf("it may be kept for %d s", ttl)
		}
	})
	t.Run("no such name, and no such record", func(t *testing.T) {
		for name, want := range map[string]struct {
			kind  uint16
			rcode int
		}{
			"web" + below:                             {dns.TypeAAAA, dns.RcodeSuccess},
			"nobody" + below:                          {dns.TypeA, dns.RcodeNameError},
			"web.no-such-ns.svc.cluster.local.":       {dns.TypeA, dns.RcodeNameError},
			"8-8-8-8." + w.ns + ".pod.cluster.local.": {dns.TypeA, dns.RcodeNameError},
			"_nothing._tcp.web" + below:               {dns.TypeSRV, dns.RcodeNameError},
			"254.255.96.10.in-addr.arpa.":             {dns.TypePTR, dns.RcodeNameError},
		} {
			m := exchange(t, h, "udp", question(name, want.kind))
			if m.Rcode != want.rcode || len(m.Answer) > 0 || len(m.Ns) != 1 || !m.Authoritative {
				t.Errorf("%s: %v", name, m)
				continue
			}
			if soa, ok := m.Ns[0].(*dns.SOA); !ok || soa.Minttl != 5 || soa.Hdr.Ttl != 5 || !dns.IsSubDomain(soa.Hdr.Name, name) {
				t.Errorf("%s: no word on how long that holds: %v", name, m.Ns)
			}
		}
	})
	t.Run("what else the specification names", func(t *testing.T) {
		dashed := strings.ReplaceAll(w.pods[0].Status.PodIP, ".", "-")
		for _, q := range []struct {
			name string
			kind uint16
			want string
		}{
			{"dns-version.cluster.local.", dns.TypeTXT, `"1.1.0"`},
			{dashed + "." + w.ns + ".pod.cluster.local.", dns.TypeA, w.pods[0].Status.PodIP},
			{reverse(web.Spec.ClusterIP), dns.TypePTR, "web" + below},
			{"_http._tcp.web" + below, dns.TypeSRV, "0 100 80 web" + below},
		} {
			for _, network := range []string{"udp", "tcp"} {
				m := exchange(t, h, network, question(q.name, q.kind))
				if len(m.Answer) != 1 || strings.TrimPrefix(m.Answer[0].String(), m.Answer[0].Header().String()) != q.want {
					t.Errorf("%s by %s: %v", q.name, network, m)
				}
			}
		}
	})
	t.Run("DNS by its own name", func(t *testing.T) {
		// Charts name it so, and scripts ask for its address.
		if ip := kubectl(t, c, "get", "service", "-n", "kube-system", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[*].spec.clusterIP}"); ip != "10.96.0.10" {
			t.Errorf("its service has the address %q", ip)
		}
		w.wantRecords(t, w.pods[0], []string{"A 10.96.0.10"}, "A", "kube-dns.kube-system", "kube-dns.kube-system.svc.cluster.local.")
		w.wantRecords(t, w.pods[0], []string{"PTR kube-dns.kube-system.svc.cluster.local."}, "PTR", reverse("10.96.0.10"))
		w.wantRecords(t, w.pods[0], []string{"SRV 0 100 53 kube-dns.kube-system.svc.cluster.local."}, "SRV", "_dns._udp.kube-dns.kube-system", "_dns-tcp._tcp.kube-dns.kube-system")
	})
	t.Run("sizes", func(t *testing.T) {
		w.service(t, "many", func(s *corev1.Service) { headless(s); s.Spec.Selector = nil })
		slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "many-1", Labels: map[string]string{discoveryv1.LabelServiceName: "many"}}, AddressType: discoveryv1.AddressTypeIPv4,
			Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(80)), Protocol: ptr.To(corev1.ProtocolTCP)}}}
		for i := range 150 {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("203.0.113.%d", i+1)}})
		}
		if _, err := c.Client.DiscoveryV1().EndpointSlices(w.ns).Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		name := "many" + below
		eventually(t, "all by TCP", func() error {
			if m := exchange(t, h, "tcp", question(name, dns.TypeA)); m.Truncated || len(m.Answer) != 150 {
				return fmt.Errorf("%d answers, cut %v", len(m.Answer), m.Truncated)
			}
			return nil
		})
		for edns, most := range map[uint16]int{0: 512, 512: 512, 1000: 1000, 4096: 1232} {
			q := question(name, dns.TypeA)
			if edns > 0 {
				q.SetEdns0(edns, false)
			}
			m := exchange(t, h, "udp", q)
			m.Compress = true // as it came
			raw, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			if !m.Truncated || len(raw) > most || len(m.Answer) < most/20 || (m.IsEdns0() != nil) != (edns > 0) {
				t.Errorf("EDNS %d: %d bytes, %d answers, cut %v", edns, len(raw), len(m.Answer), m.Truncated)
			}
		}
	})
	t.Run("names outside", func(t *testing.T) {
		up := newNameServer(t, c.Gateway(), func(q, m *dns.Msg) {
			if strings.HasPrefix(q.Question[0].Name, "no") {
				m.Rcode = dns.RcodeNameError
				m.Ns = []dns.RR{record("outside.example. 60 IN SOA ns.outside.example. h.outside.example. 1 1 1 1 60")}
				return
			}
			m.Answer = []dns.RR{record(q.Question[0].Name + " 60 IN A 192.0.2.53")}
		})
		failing := newNameServer(t, c.Gateway(), func(_, m *dns.Msg) { m.Rcode = dns.RcodeServerFailure })
		// The first is not there, the second has nothing to say.
		closed, err := net.ListenPacket("udp4", netip.AddrPortFrom(c.Gateway(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		nowhere := closed.LocalAddr().String()
		closed.Close()
		patch := func(value string) {
			kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", `{"data":{"dns.forward.outside.example":`+value+`}}`)
		}
		patch(fmt.Sprintf(`"%s, %s, %s"`, nowhere, failing.addr, up.addr))
		defer patch("null")
		eventually(t, "the third server answers", func() error { _, err := lookup(t, h, "ready.outside.example.", dns.TypeA); return err })
		if failing.count("ready.outside.example.") == 0 {
			t.Error("the second server was not asked")
		}
		for name, want := range map[string]int{"www.outside.example.": dns.RcodeSuccess, "nowhere.outside.example.": dns.RcodeNameError} {
			for i, network := range []string{"udp", "udp", "tcp", "udp"} {
				spelled := name
				if i == 3 {
					spelled = strings.ToUpper(name)
				}
				m := exchange(t, h, network, question(spelled, dns.TypeA))
				rest := slices.Concat(m.Answer, m.Ns)
				if m.Rcode != want || m.Authoritative || m.Question[0].Name != spelled || len(rest) != 1 || rest[0].Header().Ttl > 60 {
					t.Errorf("%s by %s: %v", spelled, network, m)
				}
			}
			if n := up.count(name); n != 1 {
				t.Errorf("%s was asked for %d times: what was said is to be kept", name, n)
			}
		}
		// Names of the cluster are nobody else's business.
		kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", fmt.Sprintf(`{"data":{"dns.forward.cluster.local":"%[1]s","dns.forward.96.10.in-addr.arpa":"%[1]s","dns.forward.arrived.example":"%[1]s"}}`, up.addr))
		defer kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", `{"data":{"dns.forward.cluster.local":null,"dns.forward.96.10.in-addr.arpa":null,"dns.forward.arrived.example":null}}`)
		eventually(t, "the settings are there", func() error { _, err := lookup(t, h, "www.arrived.example.", dns.TypeA); return err })
		for _, name := range []string{"nobody" + below, "9.9.96.10.in-addr.arpa."} {
			exchange(t, h, "udp", question(name, dns.TypeA))
			if n := up.count(name); n > 0 {
				t.Errorf("%s left the cluster", name)
			}
		}
	})
	t.Run("more servers than resolvers read", func(t *testing.T) {
		p := toolPod("crowded", c.Hosts[0].Name, nil, "serve", "http:8080")
		p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}}
		runPods(t, c, w.ns, p)
		podEvent(t, c, w.ns, "crowded", "DNSConfigForming", "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: 10.96.0.10 192.0.2.1 192.0.2.2")
	})
}
