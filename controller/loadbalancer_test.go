package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

func balanced(port int32, edit ...func(*corev1.Service)) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.Ports[0].Port = port
		for _, f := range edit {
			f(s)
		}
	}
}

func withAddress(ip string) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip}}
	}
}

func (w *world) setPool(text string) {
	w.Helper()
	if !w.exists(configMaps, metav1.NamespaceSystem, api.SettingsName) {
		create(w, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: api.SettingsName}})
	}
	change(w, configMaps, metav1.NamespaceSystem, api.SettingsName, func(m *corev1.ConfigMap) { m.Data = map[string]string{balancerSetting: text} })
}

func (w *world) wantIngress(name, want string) {
	w.Helper()
	w.settle(time.Second)
	s := read[*corev1.Service](w, services, "default", name)
	if got := joined(ingressOf(s)); got != want {
		w.Errorf("%s has %q, want %q", name, got, want)
	}
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP {
			w.Errorf("%s: ipMode of %s is %v", name, in.IP, in.IPMode)
		}
	}
}

func (w *world) wantEvent(name, event string) {
	w.Helper()
	w.settle(time.Second)
	if all := w.events(name); !slices.Contains(all, event) {
		w.Errorf("no event %q among\n%s", event, strings.Join(all, "\n"))
	}
}

func TestLoadBalancerRanges(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("n1", withAddress("10.0.0.240"))
		w.setPool("10.0.0.240-10.0.0.241, 192.168.7.0/31")
		later := func() { w.settle(2 * time.Second) } // creation times differ
		create(w, services, service("a", balanced(80)))
		later()
		w.wantIngress("a", "10.0.0.241") // the first is the node's own
		w.wantEvent("a", `IPAllocated: Assigned IP ["10.0.0.241"]`)
		create(w, services, service("b", balanced(80)))
		later()
		create(w, services, service("c", balanced(80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.168.7.1" })))
		w.wantIngress("b", "192.168.7.0")
		w.wantIngress("c", "192.168.7.1")
		later()
		create(w, services, service("d", balanced(80)))
		w.wantIngress("d", "")
		w.wantEvent("d", `AllocationFailed: Failed to allocate IP for "default/d": no available IPs in 10.0.0.240-10.0.0.241, 192.168.7.0-192.168.7.1`)

		// One address is given back by a deletion, one by a change of type.
		w.remove(services, "default", "b", metav1.DeletePropagationBackground)
		w.wantIngress("d", "192.168.7.0")
		change(w, services, "default", "a", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP })
		w.wantIngress("a", "")
		create(w, services, service("e", balanced(80)))
		w.wantIngress("e", "10.0.0.241")

		// What is asked for and cannot be had is told, and had once it is free.
		later()
		create(w, services, service("f", balanced(80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.168.7.1" })))
		create(w, services, service("g", balanced(80, func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.9.9.9" })))
		w.wantIngress("f", "")
		w.wantEvent("f", `AllocationFailed: Failed to allocate IP for "default/f": "192.168.7.1" is already in use by service default/c`)
		w.wantEvent("g", `AllocationFailed: Failed to allocate IP for "default/g": "10.9.9.9" is in none of the ranges 10.0.0.240-10.0.0.241, 192.168.7.0-192.168.7.1`)
		change(w, services, "default", "c", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "" })
		w.wantIngress("c", "192.168.7.1") // it has it, and nothing says that it must not
		w.remove(services, "default", "c", metav1.DeletePropagationBackground)
		w.wantIngress("f", "192.168.7.1")

		// Other ranges move everybody; a setting that cannot be read nobody.
		w.setPool("ten")
		w.wantIngress("d", "192.168.7.0")
		w.wantEvent("conclave", `InvalidSetting: load-balancer.addresses: "ten" is no address, prefix or range such as 10.0.0.240-10.0.0.250`)
		w.setPool("10.5.0.0/24")
		w.wantIngress("d", "10.5.0.0")
		w.wantIngress("e", "10.5.0.1")
	})
}

func ofFamilies(p corev1.IPFamilyPolicy, families ...corev1.IPFamily) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &p, families }
}

// A service gets an address of each of its families, of ranges …
func TestDualStackLoadBalancerRanges(t *testing.T) {
	inDualWorld(t, func(w *world) {
		w.addNode("n1", func(n *corev1.Node) {
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "fd00:aa::1"}}
		})
		w.setPool("10.0.1.0/30, fd00:aa::1-fd00:aa::3")
		for _, s := range []*corev1.Service{
			service("one", balanced(80)),
			service("two", balanced(80, ofFamilies(corev1.IPFamilyPolicyPreferDualStack))),
			service("six", balanced(80, ofFamilies(corev1.IPFamilyPolicySingleStack, corev1.IPv6Protocol))),
			service("all", balanced(80, ofFamilies(corev1.IPFamilyPolicyRequireDualStack))),
		} {
			create(w, services, s)
			w.settle(2 * time.Second)
		}
		w.wantIngress("one", "10.0.1.0")
		w.wantIngress("two", "10.0.1.1, fd00:aa::2") // the first is the node's own
		w.wantIngress("six", "fd00:aa::3")
		w.wantIngress("all", "")
		w.wantEvent("all", `AllocationFailed: Failed to allocate IP for "default/all": no available IPs in fd00:aa::1-fd00:aa::3`)

		w.setPool("10.0.1.0/30")
		w.wantIngress("two", "10.0.1.1")
		w.wantIngress("six", "")
		w.wantEvent("six", `AllocationFailed: Failed to allocate IP for "default/six": load-balancer.addresses has no range of IPv6`)

		change(w, services, "default", "two", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "fd00:aa::9" })
		w.setPool("10.0.1.0/30 fd00:aa::/64")
		w.wantIngress("two", "10.0.1.1, fd00:aa::9")
		change(w, services, "default", "one", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "fd00:aa::8" })
		w.wantIngress("one", "")
		w.wantEvent("one", `AllocationFailed: Failed to allocate IP for "default/one": invalid spec.loadBalancerIP "fd00:aa::8"`)
	})
}

// … or of the nodes.
func TestDualStackLoadBalancerOnNodes(t *testing.T) {
	inDualWorld(t, func(w *world) {
		w.addNode("n1", func(n *corev1.Node) {
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.0.0.1"}, {Type: corev1.NodeInternalIP, Address: "fd00:aa::1"}}
		})
		w.addNode("n2", withAddress("10.0.0.2"))
		create(w, services, service("one", balanced(80)))
		create(w, services, service("two", balanced(81, ofFamilies(corev1.IPFamilyPolicyPreferDualStack))))
		create(w, services, service("six", balanced(80, ofFamilies(corev1.IPFamilyPolicySingleStack, corev1.IPv6Protocol))))
		w.wantIngress("one", "10.0.0.1, 10.0.0.2")
		w.wantIngress("two", "10.0.0.1, 10.0.0.2, fd00:aa::1")
		w.wantIngress("six", "fd00:aa::1") // the same port as one, of another family
	})
	// Where no node has an address of the family, somebody is told.
	inDualWorld(t, func(w *world) {
		w.addNode("n1", withAddress("10.0.0.1"))
		create(w, services, service("six", balanced(80, func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} })))
		w.wantIngress("six", "")
		w.wantEvent("six", `AllocationFailed: Failed to allocate IP for "default/six": none of the 1 nodes that serve it has an address of IPv6`)
	})
}

func TestLoadBalancerOfAnotherClass(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("n1", withAddress("10.0.0.1"))
		class := func(name string) func(*corev1.Service) {
			return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &name }
		}
		create(w, services, service("other", balanced(80, class("example.org/other"))))
		create(w, services, service("own", balanced(81, class("conclave.io/load-balancer"))))
		w.wantIngress("own", "10.0.0.1")
		w.wantIngress("other", "")
		change(w, services, "default", "other", func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.7"}}
		}, "status")
		w.wantIngress("other", "203.0.113.7")
	})
}

func TestLoadBalancerOnNodes(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range 3 {
			w.addNode(fmt.Sprintf("n%d", i+1), withAddress(fmt.Sprintf("10.0.0.%d", i+1)))
		}
		create(w, services, service("web", balanced(80)))
		w.wantIngress("web", "10.0.0.1, 10.0.0.2, 10.0.0.3")
		w.wantEvent("web", "UpdatedIngressIP: LoadBalancer Ingress IP addresses updated: 10.0.0.1, 10.0.0.2, 10.0.0.3")
		w.liveness.set("n2", Suspect)
		w.wantIngress("web", "10.0.0.1, 10.0.0.3")
		w.liveness.set("n2", Alive)
		w.wantIngress("web", "10.0.0.1, 10.0.0.2, 10.0.0.3")
		change(w, nodes, "", "n3", func(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""} })
		w.wantIngress("web", "10.0.0.1, 10.0.0.2")

		create(w, services, service("late", balanced(80)))
		w.wantIngress("late", "")
		w.wantEvent("late", `AllocationFailed: Failed to allocate IP for "default/late": port 80/TCP of the nodes' addresses is in use by service default/web`)
		create(w, services, service("api", balanced(6443)))
		w.wantIngress("api", "")
		w.remove(services, "default", "web", metav1.DeletePropagationBackground)
		w.wantIngress("late", "10.0.0.1, 10.0.0.2")

		// Where clients keep their addresses only nodes with endpoints serve.
		create(w, pods, plainPod("near", func(p *corev1.Pod) { p.Spec.NodeName = "n2" }))
		create(w, services, service("near", balanced(90, func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal })))
		w.wantIngress("near", "10.0.0.2")
		s := read[*corev1.Service](w, services, "default", "near")
		if p := s.Spec.HealthCheckNodePort; p < 30000 || p > 32767 {
			t.Errorf("healthCheckNodePort is %d", p)
		}
		change(w, services, "default", "near", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster })
		w.wantIngress("near", "10.0.0.1, 10.0.0.2")
		if s := read[*corev1.Service](w, services, "default", "near"); s.Spec.HealthCheckNodePort != 0 {
			t.Errorf("healthCheckNodePort stays %d", s.Spec.HealthCheckNodePort)
		}
		w.setPool("10.5.0.0/24")
		w.settle(time.Second)
		given := map[string]bool{}
		for _, name := range []string{"near", "late", "api"} { // whatever their ports
			given[joined(ingressOf(read[*corev1.Service](w, services, "default", name)))] = true
		}
		if len(given) != 3 || !given["10.5.0.0"] || !given["10.5.0.1"] || !given["10.5.0.2"] {
			t.Errorf("addresses %v", given)
		}
	})
}

func TestAddressRanges(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.240-10.0.0.250, 192.168.7.0/28": "10.0.0.240-10.0.0.250, 192.168.7.0-192.168.7.15",
		"10.0.0.9\n10.0.0.7/31":                 "10.0.0.9-10.0.0.9, 10.0.0.6-10.0.0.7",
		"10.1.2.3/15":                           "10.0.0.0-10.1.255.255",
		"0.0.0.0/0":                             "0.0.0.0-255.255.255.255",
		"":                                      "",
		"10.0.0.9-10.0.0.1":                     `"10.0.0.9-10.0.0.1" ends before it begins`,
		"fd00::/64":                             `"fd00::/64": only IPv4 addresses can be given`,
		"10.0.0.1-x":                            `"10.0.0.1-x" is no address, prefix or range such as 10.0.0.240-10.0.0.250`,
	} {
		all, err := parseAddressRanges(text, discoveryv1.AddressTypeIPv4)
		got := joinedRanges(all)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestDualStackAddressRanges(t *testing.T) {
	if _, err := parseAddressRanges("fd00::/126, 10.0.0.1", discoveryv1.AddressTypeIPv6); err == nil || err.Error() != `"10.0.0.1": only IPv6 addresses can be given` {
		t.Errorf("in a cluster of IPv6 alone: %v", err)
	}
	for text, want := range map[string]string{
		"10.0.0.1, fd00::/126 fd00::9-fd00::a": "10.0.0.1-10.0.0.1, fd00::-fd00::3, fd00::9-fd00::a",
		"10.0.0.1-fd00::1":                     `"10.0.0.1-fd00::1" begins in one family of addresses and ends in another`,
	} {
		all, err := parseAddressRanges(text, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
		got := joinedRanges(all)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

func TestHints(t *testing.T) {
	inWorld(t, func(w *world) {
		zoned := func(zone string) func(*corev1.Node) {
			return func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = zone }
		}
		w.addNode("n1", zoned("a"))
		w.addNode("n2")
		on := func(node string) func(*corev1.Pod) {
			return func(p *corev1.Pod) { p.Spec.NodeName = node; p.Labels["app"] = "web" }
		}
		w.agent.set(func() { w.agent.hold = func(p *corev1.Pod) bool { return p.Name == "p3" } })
		create(w, pods, plainPod("p1", on("n1")))
		create(w, pods, plainPod("p2", on("n2")))
		create(w, pods, plainPod("p3", on("n1")))
		create(w, services, service("web"))
		for _, c := range []struct{ distribution, want string }{
			{"", "p1: p2: p3:"},
			{corev1.ServiceTrafficDistributionPreferClose, "p1: zones [{a}] nodes [] p2: p3:"},
			{corev1.ServiceTrafficDistributionPreferSameZone, "p1: zones [{a}] nodes [] p2: p3:"},
			{corev1.ServiceTrafficDistributionPreferSameNode, "p1: zones [{a}] nodes [{n1}] p2: zones [] nodes [{n2}] p3:"},
			{"", "p1: p2: p3:"},
		} {
			change(w, services, "default", "web", func(s *corev1.Service) {
				s.Spec.TrafficDistribution = nil
				if c.distribution != "" {
					s.Spec.TrafficDistribution = &c.distribution
				}
			})
			w.settle(time.Second)
			var ends []discoveryv1.Endpoint
			for _, s := range w.slices("web") {
				ends = append(ends, s.Endpoints...)
			}
			slices.SortFunc(ends, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.TargetRef.Name, b.TargetRef.Name) })
			var got []string
			for _, e := range ends {
				got = append(got, e.TargetRef.Name+":")
				if e.Hints != nil {
					got = append(got, fmt.Sprintf("zones %v nodes %v", e.Hints.ForZones, e.Hints.ForNodes))
				}
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%q: %s, want %s", c.distribution, s, c.want)
			}
		}
	})
}
