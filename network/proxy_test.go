package network

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, file, got string) {
	t.Helper()
	path := "testdata/" + file
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (rewrite it with -update and read the difference):\n%s", path, got)
	}
}

// seen is a cluster that has seen these objects.
func seen(objects ...api.Object) *cluster {
	c := newCluster(func(string) {})
	byResource := map[string][]api.Object{}
	for _, o := range objects {
		byResource[resourceOf(o)] = append(byResource[resourceOf(o)], o)
	}
	for resource, h := range c.handlers() {
		h.Replace(byResource[resource])
	}
	return c
}

// take updates a proxy that is the only one of a cluster.
func (p *proxy) take(c *cluster, pods []reservation) (was, is *Rules) {
	dirty, all := c.takeDirty()
	return p.update(c, dirty, all, pods)
}

var testBase = Base{PodCIDR: testPodCIDR, ServiceCIDR: testServiceCIDR, DNS: testDNS, Overlay: true}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	onOne   = ep{addr: addr("10.244.1.5"), node: "node1"}
	onOneB  = ep{addr: addr("10.244.1.6"), node: "node1"}
	onTwo   = ep{addr: addr("10.244.2.5"), node: "node2"}
	drained = func(e ep) ep { e.draining = true; return e }
	unready = func(e ep) ep { e.notReady = true; return e }
)

func kind(t corev1.ServiceType) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Type = t }
}

func changes(all ...func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) {
		for _, f := range all {
			f(s)
		}
	}
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
}

func TestRules(t *testing.T) {
	tcpPorts := []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}}
	clusterOnly := []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}
	targets := []discoveryv1.EndpointPort{{Name: ptr(""), Protocol: ptr(corev1.ProtocolTCP), Port: ptr[int32](8080)}}
	web := func(change func(*corev1.Service)) *corev1.Service {
		return serviceOf("web", "10.96.0.20", change, clusterOnly...)
	}
	nodePort := func(change func(*corev1.Service)) *corev1.Service {
		return serviceOf("web", "10.96.0.20", changes(kind(corev1.ServiceTypeNodePort), change), tcpPorts...)
	}
	none := func(*corev1.Service) {}
	second := func(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice { s.Name += "-more"; return s }
	external := func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"192.0.2.1"} }
	age := func(s *corev1.Service, name string, at int64) *corev1.Service {
		s.Name, s.CreationTimestamp = name, metav1.NewTime(time.Unix(at, 0))
		return s
	}
	sliceFor := func(name string, e ...ep) *discoveryv1.EndpointSlice { return sliceOf(name, targets, e...) }
	multiPorts, multiTargets := both(53, 5353)

	var out strings.Builder
	for _, c := range []struct {
		name    string
		objects []api.Object
		pods    []reservation
	}{
		{"cluster address", []api.Object{web(nil), sliceFor("web", onTwo, onOne)}, nil},
		{"no endpoints", []api.Object{web(nil), sliceFor("web")}, nil},
		{"no slice", []api.Object{web(nil)}, nil},
		{"slices of other services and nobody's", []api.Object{web(nil), sliceFor("other", onOne), sliceFor("", onTwo)}, nil},
		{"an endpoint that is not ready is left out", []api.Object{web(nil), sliceFor("web", onOne, unready(onTwo))}, nil},
		{"terminating endpoints only if none is ready", []api.Object{web(nil), sliceFor("web", drained(onOne), onTwo)}, nil},
		{"all terminate", []api.Object{web(nil), sliceFor("web", drained(onOne), unready(onTwo))}, nil},
		{"several slices, the same endpoint twice", []api.Object{web(nil), sliceFor("web", onOne, unready(onTwo)), second(sliceFor("web", onTwo))}, nil},
		{"headless", []api.Object{serviceOf("web", "None", nil, clusterOnly...), sliceFor("web", onOne)}, nil},
		{"ExternalName", []api.Object{web(changes(kind(corev1.ServiceTypeExternalName), func(s *corev1.Service) { s.Spec.ExternalName = "example.org" })), sliceFor("web", onOne)}, nil},
		{"TCP and UDP on one port, named target ports", []api.Object{serviceOf("web", "10.96.0.20", nil, multiPorts...), sliceOf("web", multiTargets, onOne)}, nil},
		{"SCTP", []api.Object{serviceOf("web", "10.96.0.20", nil, corev1.ServicePort{Protocol: corev1.ProtocolSCTP, Port: 80}),
			sliceOf("web", []discoveryv1.EndpointPort{{Protocol: ptr(corev1.ProtocolSCTP), Port: ptr[int32](8080)}}, onOne)}, nil},
		{"hand-made slices with different ports for one name", []api.Object{web(nil), sliceFor("web", onOne),
			second(sliceOf("web", []discoveryv1.EndpointPort{{Port: ptr[int32](9090)}}, onOne))}, nil},
		{"a slice port without number, and one of another name", []api.Object{web(nil),
			sliceOf("web", []discoveryv1.EndpointPort{{}, {Name: ptr("x"), Port: ptr[int32](1)}}, onOne)}, nil},
		{"affinity", []api.Object{web(func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }), sliceFor("web", onOne)}, nil},
		{"affinity with timeout", []api.Object{web(func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](7)}}
		}), sliceFor("web", onOne)}, nil},
		{"internalTrafficPolicy Local", []api.Object{web(internalLocal), sliceFor("web", onOne, onOneB, onTwo)}, nil},
		{"internalTrafficPolicy Local, none here", []api.Object{web(internalLocal), sliceFor("web", onTwo)}, nil},
		{"internalTrafficPolicy Local, one terminating here", []api.Object{web(internalLocal), sliceFor("web", onTwo, drained(onOne))}, nil},
		{"node port", []api.Object{nodePort(none), sliceFor("web", onOne, onTwo)}, nil},
		{"node port without endpoints", []api.Object{nodePort(none)}, nil},
		{"node port, externalTrafficPolicy Local", []api.Object{nodePort(externalLocal), sliceFor("web", onOne, onTwo)}, nil},
		{"node port, externalTrafficPolicy Local, none here", []api.Object{nodePort(externalLocal), sliceFor("web", onTwo)}, nil},
		{"node port, internalTrafficPolicy Local", []api.Object{nodePort(internalLocal), sliceFor("web", onOne, onTwo)}, nil},
		{"external address", []api.Object{web(external), sliceFor("web", onOne)}, nil},
		{"external address without endpoints", []api.Object{web(external)}, nil},
		{"two services claim one external address: the older has it", []api.Object{
			age(web(external), "web", 20), sliceFor("web", onOne),
			age(serviceOf("", "10.96.0.30", external, clusterOnly...), "old", 10), sliceFor("old", onTwo)}, nil},
		{"two services claim one external address, one without endpoints", []api.Object{
			age(web(external), "web", 20), sliceFor("web", onOne),
			age(serviceOf("", "10.96.0.30", external, clusterOnly...), "old", 10)}, nil},
		{"load balancer's address", []api.Object{serviceOf("web", "10.96.0.20", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.5"}, {Hostname: "x"}, {IP: "192.0.2.6", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}}
		}, clusterOnly...), sliceFor("web", onOne)}, nil},
		{"load balancer with source ranges", []api.Object{serviceOf("web", "10.96.0.20", func(s *corev1.Service) {
			externalLocal(s)
			s.Spec.Type, s.Spec.LoadBalancerSourceRanges = corev1.ServiceTypeLoadBalancer, []string{"198.51.100.7/24", " 203.0.113.0/25 "}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.5"}}
		}, tcpPorts...), sliceFor("web", onOne)}, nil},
		{"load balancer of another class, and one at a node's address", []api.Object{
			serviceOf("web", "10.96.0.20", func(s *corev1.Service) {
				s.Spec.Type, s.Spec.LoadBalancerClass = corev1.ServiceTypeLoadBalancer, ptr("example.org/other")
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.5"}}
			}, clusterOnly...), sliceFor("web", onOne),
			serviceOf("own", "10.96.0.21", func(s *corev1.Service) {
				s.Spec.Type = corev1.ServiceTypeLoadBalancer
				s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.168.0.1"}}
			}, clusterOnly...), sliceFor("own", onOne), nodeAt("node1", "192.168.0.1", "a")}, nil},
		{"hints for this zone", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", forZone(onOne, "b"), forZone(onTwo, "a"))}, nil},
		{"hints for other zones only", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "c"), sliceFor("web", forZone(onOne, "b"), forZone(onTwo, "a"))}, nil},
		{"an endpoint without hints: nobody's count", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", onOne, forZone(onTwo, "a"))}, nil},
		{"one that is not ready needs no hints", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", unready(onOneB), forZone(onOne, "b"), forZone(onTwo, "a"))}, nil},
		{"hints for this node before those for its zone", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", forNode(forZone(onOne, "a"), "node1"), forNode(forZone(onOneB, "a"), "node3"), forNode(forZone(onTwo, "b"), "node2"))}, nil},
		{"no hints for this node, but for its zone", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", forNode(forZone(onOne, "a"), "node3"), forNode(forZone(onTwo, "b"), "node2"))}, nil},
		{"those meant for this zone drain: the others serve", []api.Object{web(nil), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", forZone(drained(onOne), "a"), forZone(onTwo, "b"))}, nil},
		{"hints do not bind what must be local", []api.Object{web(internalLocal), nodeAt("node1", "192.168.0.1", "a"), sliceFor("web", forZone(onOne, "b"), forZone(onTwo, "a"))}, nil},
		{"a service at DNS's address changes nothing", []api.Object{serviceOf("web", "10.96.0.10", nil, clusterOnly...), sliceFor("web", onOne)}, nil},
		{"a cluster address of an added range", []api.Object{serviceOf("web", "10.112.0.5", nil, clusterOnly...), sliceFor("web", onOne, onTwo)}, nil},
		{"a cluster address of an added range without endpoints", []api.Object{serviceOf("web", "10.112.0.5", nil, clusterOnly...)}, nil},
		{"a cluster address of an added range, internalTrafficPolicy Local", []api.Object{serviceOf("web", "10.112.0.5", internalLocal, clusterOnly...), sliceFor("web", onOne, onTwo)}, nil},
		{"a cluster address of an added range, internalTrafficPolicy Local, none here", []api.Object{serviceOf("web", "10.112.0.5", internalLocal, clusterOnly...), sliceFor("web", onTwo)}, nil},
		{"another proxy's", []api.Object{serviceOf("web", "10.96.0.20", func(s *corev1.Service) {
			s.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
		}, clusterOnly...), sliceFor("web", onOne)}, nil},
		{"IPv6 addresses are left out", []api.Object{serviceOf("web", "10.96.0.20", func(s *corev1.Service) { s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, "fd00::20") }, clusterOnly...),
			sliceFor("web", onOne, ep{addr: addr("fd00::1")})}, nil},
		{"nodes", []api.Object{
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.1"}}}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node2"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "192.168.0.9"}, {Type: corev1.NodeInternalIP, Address: "192.168.0.2"}}}},
			&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node3"}}}, nil},
		{"pods with host ports, the second of two that clash has none", nil, []reservation{
			{Address: addr("10.244.1.5"), HostPorts: []hostPort{{addr("127.0.0.1"), tcp, 80, 8080}, {netip.Addr{}, tcp, 81, 8081}}},
			{Address: addr("10.244.1.6"), HostPorts: []hostPort{{addr("127.0.0.1"), udp, 80, 8080}, {netip.Addr{}, tcp, 81, 8081}}}}},
	} {
		fmt.Fprintf(&out, "# %s\n%s\n", c.name, seen(c.objects...).rules(testBase, "node1", c.pods))
	}
	golden(t, "rules.golden", out.String())
}

// rules are those of a cluster, as a node's first look at it gives them.
func (c *cluster) rules(base Base, nodeName string, pods []reservation) *Rules {
	c.mu.Lock()
	c.allDirty = true
	c.mu.Unlock()
	p := newProxy(base, nodeName)
	p.take(c, pods)
	return p.rules
}

func nodeAt(name, address, zone string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: address}}}}
}

func forZone(e ep, zone string) ep { e.forZone = zone; return e }
func forNode(e ep, node string) ep { e.forNode = node; return e }

// A kernel that cannot translate SCTP gets no rule for it: what is sent is
// refused.
func TestNoSCTP(t *testing.T) {
	port := func(p corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: strings.ToLower(string(p)), Protocol: p, Port: 80}
	}
	target := func(p corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: ptr(strings.ToLower(string(p))), Protocol: &p, Port: ptr[int32](8080)}
	}
	c := seen(serviceOf("web", "10.96.0.20", nil, port(corev1.ProtocolTCP), port(corev1.ProtocolSCTP)),
		sliceOf("web", []discoveryv1.EndpointPort{target(corev1.ProtocolTCP), target(corev1.ProtocolSCTP)}, onOne))
	base := testBase
	if text := c.rules(base, "node1", nil).String(); !strings.Contains(text, "sctp") {
		t.Errorf("no rule for SCTP:\n%s", text)
	}
	base.NoSCTP = true
	if text := c.rules(base, "node1", nil).String(); strings.Contains(text, "sctp") || !strings.Contains(text, "tcp . 80") {
		t.Errorf("rules:\n%s", text)
	}
}

// What a change of objects leaves is what the last objects alone would give.
func TestClusterForgets(t *testing.T) {
	ports, targets := both(80, 8080)
	final := []api.Object{serviceOf("a", "10.96.0.20", nil, ports...), sliceOf("a", targets, onTwo)}
	c := seen(serviceOf("a", "10.96.0.99", nil, ports...), sliceOf("a", targets, onOne), serviceOf("b", "10.96.0.98", nil, ports...), sliceOf("b", targets, onOneB))
	handlers := c.handlers()
	for _, o := range final {
		handlers[resourceOf(o)].Apply("MODIFIED", o)
	}
	handlers["services"].Apply("DELETED", serviceOf("b", "10.96.0.98", nil, ports...))
	handlers["endpointslices"].Apply("DELETED", sliceOf("b", targets, onOneB))
	handlers["services"].Apply("DELETED", serviceOf("never", "10.96.0.97", nil, ports...))
	want := seen(final...)
	if got := c.rules(testBase, "n", nil).String(); got != want.rules(testBase, "n", nil).String() {
		t.Errorf("got\n%s", got)
	}
	for what, sizes := range map[string][2]int{
		"byIP": {len(c.byIP), len(want.byIP)}, "spaces": {len(c.spaces), len(want.spaces)}, "byAddress": {len(c.byAddress), len(want.byAddress)},
		"byService": {len(c.byService), len(want.byService)},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s has %d entries, want %d", what, sizes[0], sizes[1])
		}
	}
}

func TestStaleFlows(t *testing.T) {
	ap := netip.MustParseAddrPort
	rules := func(endpoints ...netip.AddrPort) *Rules {
		r := newRules(testBase)
		if len(endpoints) > 0 {
			r.Services[VIP{addr("10.96.0.20"), udp, 53}] = "svc-x"
			r.Services[VIP{addr("10.96.0.20"), tcp, 53}] = "svc-x"
			r.NodePorts[Port{udp, 30053}] = "ext-x"
			r.Entries["ext-x"] = Entry{Cluster: "svc-x"}
			r.Balancers["svc-x"] = Balancer{Endpoints: endpoints}
		}
		return r
	}
	a, b := ap("10.244.1.5:5353"), ap("10.244.2.5:5353")
	client := ap("10.244.1.9:4000")
	service, node, elsewhere := ap("10.96.0.20:53"), ap("192.168.0.1:30053"), ap("192.0.2.9:30053")
	for _, c := range []struct {
		name             string
		old, is          *Rules
		gone             []netip.Addr
		proto            protocol
		from, to, server netip.AddrPort
		want             bool
	}{
		{"the endpoint went", rules(a, b), rules(b), nil, udp, client, service, a, true},
		{"another endpoint went", rules(a, b), rules(b), nil, udp, client, service, b, false},
		{"TCP connections are left alone", rules(a, b), rules(b), nil, tcp, client, service, a, false},
		{"the last endpoint went", rules(a), rules(), nil, udp, client, service, a, true},
		{"the first endpoint came", rules(), rules(a), nil, udp, client, service, service, true},
		{"nothing changed", rules(a), rules(a), nil, udp, client, service, b, false},
		{"after a start everything is checked", nil, rules(a), nil, udp, client, service, b, true},
		{"after a start what is right stays", nil, rules(a), nil, udp, client, service, a, false},
		{"node port, the endpoint went", rules(a, b), rules(b), nil, udp, client, node, a, true},
		{"node port, nobody was there", rules(), rules(a), nil, udp, client, node, node, true},
		{"the port of a node, but not ours", rules(a, b), rules(b), nil, udp, client, elsewhere, b, false},
		{"the pod that went was the client", rules(), rules(), []netip.Addr{client.Addr()}, tcp, client, elsewhere, elsewhere, true},
		{"the pod that went was the server", rules(), rules(), []netip.Addr{a.Addr()}, tcp, client, service, a, true},
		{"another pod went", rules(), rules(), []netip.Addr{b.Addr()}, tcp, client, service, a, false},
	} {
		if got := staleAfter(c.old, c.is, c.gone).MatchConntrackFlow(flowOf(c.proto, c.from, c.to, c.server)); got != c.want {
			t.Errorf("%s: stale: %v, want %v", c.name, got, c.want)
		}
	}
}

// Whatever changed and in which order, the proxy wants, and the kernel gets,
// what the last objects alone would give.
func TestProxyForgetsNothing(t *testing.T) {
	inScratch(t, func() error {
		rnd := rand.New(rand.NewPCG(3, 4))
		c := newCluster(func(string) {})
		h := c.handlers()
		p := newProxy(testBase, "node1")
		k := newKernel(ip4)
		pick := func(of ...string) string { return of[rnd.IntN(len(of))] }
		randomService := func(name string) *corev1.Service {
			ports := []corev1.ServicePort{{Name: "a", Protocol: corev1.ProtocolTCP, Port: 80}}
			if rnd.IntN(2) == 0 {
				ports = append(ports, corev1.ServicePort{Name: "b", Protocol: corev1.ProtocolUDP, Port: int32(80 + rnd.IntN(2))})
			}
			return serviceOf(name, "10.96.0."+pick("20", "21", "22", "23"), func(s *corev1.Service) {
				s.CreationTimestamp = metav1.NewTime(time.Unix(int64(rnd.IntN(3)), 0))
				switch rnd.IntN(6) {
				case 0:
					s.Spec.Type = corev1.ServiceTypeNodePort
					for i := range s.Spec.Ports {
						s.Spec.Ports[i].NodePort = int32(30000 + rnd.IntN(3))
					}
					if rnd.IntN(2) == 0 {
						externalLocal(s)
					}
				case 1:
					s.Spec.ExternalIPs = []string{"192.0.2." + pick("1", "2")}
				case 2:
					s.Spec.Type = corev1.ServiceTypeLoadBalancer
					s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2." + pick("2", "3")}}
					if rnd.IntN(2) == 0 {
						s.Spec.LoadBalancerSourceRanges = []string{pick("10.0.0.0/8", "0.0.0.0/0")}
					}
				case 3:
					s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				case 4:
					internalLocal(s)
				}
				if rnd.IntN(8) == 0 {
					s.Spec.ClusterIP, s.Spec.ClusterIPs = corev1.ClusterIPNone, []string{corev1.ClusterIPNone}
				}
			}, ports...)
		}
		randomSlice := func(name, service string) *discoveryv1.EndpointSlice {
			var ends []ep
			for range rnd.IntN(4) {
				e := ep{addr: netip.AddrFrom4([4]byte{10, 244, byte(1 + rnd.IntN(2)), byte(rnd.IntN(4))}), node: pick("node1", "node2")}
				e.notReady, e.draining = rnd.IntN(4) == 0, rnd.IntN(6) == 0
				if rnd.IntN(3) == 0 {
					e.forZone = pick("a", "b")
				}
				ends = append(ends, e)
			}
			s := sliceOf(service, []discoveryv1.EndpointPort{
				{Name: ptr("a"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr[int32](8080)}, {Name: ptr("b"), Protocol: ptr(corev1.ProtocolUDP), Port: ptr[int32](8081)},
			}, ends...)
			s.Name = name
			return s
		}
		for i := range 60 {
			for range 1 + rnd.IntN(3) {
				service := pick("one", "two", "three", "four", "five")
				switch rnd.IntN(12) {
				case 0:
					h["services"].Apply(watch.Deleted, randomService(service))
				case 1, 2, 3:
					h["services"].Apply(watch.Modified, randomService(service))
				case 4:
					name := service + "-" + pick("1", "2")
					h["endpointslices"].Apply(watch.Deleted, randomSlice(name, service))
				case 5:
					h["nodes"].Apply(watch.Modified, nodeAt("node"+pick("1", "2"), "192.0.2."+pick("3", "4"), pick("a", "b")))
				case 6:
					if rnd.IntN(5) == 0 {
						h["services"].Replace([]api.Object{randomService("one"), randomService("two")})
					}
				default:
					h["endpointslices"].Apply(watch.Modified, randomSlice(service+"-"+pick("1", "2"), service))
				}
			}
			was, is := p.take(c, nil)
			fresh := newProxy(testBase, "node1")
			c.mu.Lock()
			c.allDirty = true
			c.mu.Unlock()
			fresh.take(c, nil)
			if got, want := p.rules.String(), fresh.rules.String(); got != want {
				t.Fatalf("step %d: the proxy wants\n%s\nfrom scratch it would want\n%s", i, got, want)
			}
			if err := k.change(was, is, p.rules); err != nil {
				return fmt.Errorf("step %d: %w", i, err)
			}
			changed, err := kernelText()
			if err != nil {
				return err
			}
			if err := newKernel(ip4).apply(fresh.rules); err != nil {
				return fmt.Errorf("step %d, from scratch: %w", i, err)
			}
			if again, err := kernelText(); err != nil || again != changed {
				t.Fatalf("step %d: the kernel holds\n%s\nfrom scratch it would hold\n%s (%v)", i, changed, again, err)
			}
		}
		return nil
	})
}
