package hosts

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
)

// dualStack is a dual-stack cluster of two hosts, each with an IPv6 address of
// its own in a network that the lab's bridge is in too, and what the network's
// tests share on it.
func dualStack(t *testing.T) (w *world, hosts []netip.Addr) {
	t.Helper()
	c := ownOf(t, cluster.Config{Hosts: 2, Bare: true, Up: []string{"--dual-stack"}})
	site := fmt.Sprintf("fd00:aa:%x:%x::", os.Getpid()>>16&0xffff, os.Getpid()&0xffff) // of this test alone
	bridge, err := netlink.LinkByName("clab-" + c.Name)
	if err != nil {
		t.Fatal(err)
	}
	outside := &net.IPNet{IP: net.ParseIP(site + "fe"), Mask: net.CIDRMask(64, 128)}
	if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: outside, Flags: unix.IFA_F_NODAD}); err != nil {
		t.Fatal(err)
	}
	for i, h := range c.Hosts {
		own := netip.MustParseAddr(fmt.Sprintf("%s%d", site, i+1))
		if _, err := c.On(t.Context(), h.Name, "ip", "-6", "address", "add", own.String()+"/64", "dev", "eth0", "nodad"); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, own)
	}
	if err := c.Form(t.Context(), t.Logf); err != nil {
		t.Fatal(err)
	}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w = &world{c: c, ns: "dual"}
	kubectl(t, c, "create", "namespace", w.ns)
	var pods []*corev1.Pod
	for i, h := range c.Hosts {
		p := toolPod(fmt.Sprintf("net-%d", i), h.Name, netLabels, "serve", "http:8080", "udp:8081", "http:8082=$(IPS)")
		p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "IPS", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIPs"}}}}
		pods = append(pods, p)
	}
	w.pods = runPods(t, c, w.ns, pods...)
	return w, hosts
}

func ipsOf(p *corev1.Pod) (all []string) {
	for _, ip := range p.Status.PodIPs {
		all = append(all, ip.IP)
	}
	return all
}

// What a dual-stack cluster promises: pods and Services of both families, from
// everywhere, by address and by name.
func TestDualStack(t *testing.T) {
	t.Parallel()
	w, hosts := dualStack(t)
	c, ctx := w.c, t.Context()
	a, b := w.pods[0], w.pods[1]

	t.Run("addresses", func(t *testing.T) {
		for i, p := range w.pods {
			node, err := c.Client.CoreV1().Nodes().Get(ctx, p.Spec.NodeName, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ips := ipsOf(p)
			if len(ips) != 2 || len(node.Spec.PodCIDRs) != 2 {
				t.Fatalf("the pod has %v, its node %v", ips, node.Spec.PodCIDRs)
			}
			for j, ip := range ips {
				if !netip.MustParsePrefix(node.Spec.PodCIDRs[j]).Contains(netip.MustParseAddr(ip)) {
					t.Errorf("%s is not of %s", ip, node.Spec.PodCIDRs[j])
				}
			}
			var of []string
			for _, ip := range p.Status.HostIPs {
				of = append(of, ip.IP)
			}
			if want := []string{c.Hosts[i].Address.String(), hosts[i].String()}; !slices.Equal(of, want) {
				t.Errorf("hostIPs are %v, want %v", of, want)
			}
			w.wantAnswers(t, p, []string{strings.Join(ips, ",")}, "get", pageAt(ips[0], 8082))
		}
	})
	t.Run("between nodes", func(t *testing.T) {
		w.wantAnswers(t, a, names(b), "get", pageAt(ipsOf(b)[1], 8080))
		w.wantAnswers(t, a, names(b), "reach", "udp:"+hostPort(ipsOf(b)[1], 8081))
		w.wantAnswers(t, a, names(a), "get", pageAt(ipsOf(a)[1], 8080))
	})
	t.Run("service", func(t *testing.T) {
		s := w.service(t, "both", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyRequireDualStack) })
		if !slices.Equal(s.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}) || len(s.Spec.ClusterIPs) != 2 {
			t.Fatalf("it has %v of %v", s.Spec.ClusterIPs, s.Spec.IPFamilies)
		}
		for _, p := range w.pods {
			for _, ip := range s.Spec.ClusterIPs {
				w.wantAnswers(t, p, names(w.pods...), "get", "-n", "40", pageAt(ip, 80))
			}
		}
		w.wantRecords(t, a, []string{"A " + s.Spec.ClusterIPs[0]}, "A", w.expanded("both")...)
		w.wantRecords(t, b, []string{"AAAA " + s.Spec.ClusterIPs[1]}, "AAAA", w.expanded("both")...)
		w.wantRecords(t, b, []string{"PTR both.dual.svc.cluster.local."}, "PTR", reverse6(s.Spec.ClusterIPs[1]))
		families := map[discoveryv1.AddressType]int{}
		slices, err := c.Client.DiscoveryV1().EndpointSlices(w.ns).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=both"})
		if err != nil {
			t.Fatal(err)
		}
		for _, slice := range slices.Items {
			families[slice.AddressType] += len(slice.Endpoints)
		}
		if len(families) != 2 || families[discoveryv1.AddressTypeIPv4] != 2 || families[discoveryv1.AddressTypeIPv6] != 2 {
			t.Errorf("its endpoints are %v", families)
		}
		// One family less, and its address is another's again.
		made := kubectl(t, c, "-n", w.ns, "patch", "service", "both", "-p", `{"spec":{"ipFamilyPolicy":"SingleStack"}}`, "-o", "jsonpath={.spec.clusterIPs}{.spec.ipFamilies}")
		if want := fmt.Sprintf(`["%s"]["IPv4"]`, s.Spec.ClusterIPs[0]); made != want {
			t.Errorf("as SingleStack it has %s, want %s", made, want)
		}
		if out, err := c.Kubectl(ctx, "get", "ipaddress", s.Spec.ClusterIPs[1]); err == nil {
			t.Errorf("its address is still reserved: %s", out)
		}
		w.wantFailure(t, a, "refused", "get", pageAt(s.Spec.ClusterIPs[1], 80))
	})
	t.Run("service of IPv6 alone", func(t *testing.T) {
		s := w.service(t, "six", func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol} })
		w.wantAnswers(t, a, names(w.pods...), "get", "-n", "40", pageAt(s.Spec.ClusterIP, 80))
		w.wantAnswers(t, a, names(w.pods...), "get", "-n", "40", pageAt("six", 80))
	})
	t.Run("headless", func(t *testing.T) {
		w.service(t, "head", func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.IPFamilyPolicy = corev1.ClusterIPNone, ptr.To(corev1.IPFamilyPolicyPreferDualStack)
		})
		var want []string
		for _, p := range w.pods {
			want = append(want, "AAAA "+ipsOf(p)[1])
		}
		w.wantRecords(t, a, want, "AAAA", w.expanded("head")...)
	})
	t.Run("node port", func(t *testing.T) {
		s := w.service(t, "port", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.IPFamilyPolicy = corev1.ServiceTypeNodePort, ptr.To(corev1.IPFamilyPolicyPreferDualStack)
		})
		for i, p := range w.pods {
			for _, host := range []string{c.Hosts[i].Address.String(), hosts[i].String()} {
				w.wantAnswers(t, p, names(w.pods...), "get", "-n", "40", pageAt(host, s.Spec.Ports[0].NodePort))
			}
			// From the other host, which is outside.
			eventually(t, "the node port by IPv6", func() error {
				_, err := c.Fetch(ctx, c.Hosts[1-i].Name, pageAt(hosts[i].String(), s.Spec.Ports[0].NodePort))
				return err
			})
		}
	})
	t.Run("load balancer", func(t *testing.T) {
		vip := netip.PrefixFrom(hosts[0], 64).Masked().Addr().Next() // ::1, of the first host
		for range 0xff {
			vip = vip.Next()
		}
		kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", fmt.Sprintf(`{"data":{"load-balancer.addresses":"%s"}}`, vip))
		w.service(t, "lb", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.IPFamilyPolicy = corev1.ServiceTypeLoadBalancer, ptr.To(corev1.IPFamilyPolicySingleStack)
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		})
		eventually(t, "an answer at the load balancer's address", func() error {
			client, err := fromOutside(t, netip.AddrPortFrom(vip, 80).String())
			if err == nil && netip.PrefixFrom(client, 64).Masked() != netip.PrefixFrom(vip, 64).Masked() {
				err = fmt.Errorf("the client is seen as %s", client)
			}
			return err
		})
	})
	t.Run("policy", func(t *testing.T) {
		apply(t, c, w.ns, policy("six", fmt.Sprintf("{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: '%s/128'}}]}]}", ipsOf(b)[1])))
		w.wantAnswers(t, b, []string{"-", a.Name}, "reach", "http:"+hostPort(ipsOf(a)[0], 8080), "http:"+hostPort(ipsOf(a)[1], 8080))
		w.wantAnswers(t, a, []string{"-"}, "reach", "http:"+hostPort(ipsOf(b)[0], 8080), "http:"+hostPort(ipsOf(b)[1], 8080))
		kubectl(t, c, "-n", w.ns, "delete", "networkpolicy", "six")
		w.wantAnswers(t, a, names(b), "reach", "http:"+hostPort(ipsOf(b)[1], 8080))
	})
	t.Run("after a restart", func(t *testing.T) {
		if err := c.Kill(c.Hosts[0].Name); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(c.Hosts[0].Name, "up"); err != nil {
			t.Fatal(err)
		}
		w.wantAnswers(t, a, names(b), "get", pageAt(ipsOf(b)[1], 8080))
		p := runPods(t, c, w.ns, toolPod("later", c.Hosts[0].Name, nil, "serve", "http:8080"))[0]
		w.wantAnswers(t, b, names(p), "get", pageAt(ipsOf(p)[1], 8080))
	})
	t.Run("other ranges are refused", func(t *testing.T) {
		if err := c.Stop(c.Hosts[1].Name); err != nil {
			t.Fatal(err)
		}
		out, err := c.On(ctx, c.Hosts[1].Name, c.Binary, "up", "--pod-cidr", "10.99.0.0/16")
		if err == nil || !strings.Contains(err.Error(), "this node's cluster was founded with 10.244.0.0/16 for pods") {
			t.Errorf("another range than the cluster's: %s, %v", out, err)
		}
	})
}

// A cluster of IPv4 alone says of IPv6 what Kubernetes says.
func TestSingleStack(t *testing.T) {
	c := three(t)
	w := &world{c: c, ns: namespace(t, c)}
	s := w.service(t, "prefers", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack) })
	if len(s.Spec.ClusterIPs) != 1 || len(s.Spec.IPFamilies) != 1 || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicyPreferDualStack {
		t.Errorf("a Service that prefers two families has %v of %v, %s", s.Spec.ClusterIPs, s.Spec.IPFamilies, *s.Spec.IPFamilyPolicy)
	}
	_, err := c.Client.CoreV1().Services(w.ns).Patch(t.Context(), "prefers", types.MergePatchType, []byte(`{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`), metav1.PatchOptions{})
	if err == nil || !strings.Contains(err.Error(), "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services") {
		t.Errorf("one that requires them: %v", err)
	}
}

func hostPort(ip string, port uint16) string {
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port).String()
}

// reverse6 is the name below ip6.arpa of an address.
func reverse6(ip string) string {
	var b strings.Builder
	all := netip.MustParseAddr(ip).As16()
	for _, x := range slices.Backward(all[:]) {
		fmt.Fprintf(&b, "%x.%x.", x&15, x>>4)
	}
	return b.String() + "ip6.arpa."
}
