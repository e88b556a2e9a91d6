package hosts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
)

// sixAlone is a cluster of hosts that have IPv6 addresses alone, with what the
// network's tests share on it. Its pods are probed, by their addresses.
func sixAlone(t *testing.T) *world {
	t.Helper()
	c := ownOf(t, cluster.Config{Hosts: 3, IPv6: true})
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: "six"}
	kubectl(t, c, "create", "namespace", w.ns)
	var pods []*corev1.Pod
	for i, h := range c.Hosts {
		p := toolPod(fmt.Sprintf("net-%d", i), h.Name, netLabels, "serve", "http:8080", "udp:8081", "http:8082=$(IPS) $(HOST) $(KUBERNETES_SERVICE_HOST)")
		tool := &p.Spec.Containers[0]
		field := func(name, path string) corev1.EnvVar {
			return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
		}
		tool.Env = []corev1.EnvVar{field("IPS", "status.podIPs"), field("HOST", "status.hostIP")}
		tool.Ports = []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 4444}}
		tool.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(8080)}}}
		tool.LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}}
		onHost := toolPod(fmt.Sprintf("host-%d", i), h.Name, nil, "serve", "http:18080")
		onHost.Spec.HostNetwork, onHost.Spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
		pods = append(pods, p, onHost)
	}
	for i, p := range runPods(t, c, w.ns, pods...) {
		if i%2 == 0 {
			w.pods = append(w.pods, p)
		} else {
			w.hosts = append(w.hosts, p)
		}
	}
	return w
}

// What a cluster of IPv6 alone promises: all that one of IPv4 does.
func TestIPv6Alone(t *testing.T) {
	t.Parallel()
	w := sixAlone(t)
	c, ctx := w.c, t.Context()
	a, b := w.pods[0], w.pods[1]

	t.Run("addresses", func(t *testing.T) {
		kubernetes, err := c.Client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		if err != nil || !slices.Equal(kubernetes.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv6Protocol}) {
			t.Fatalf("the Service kubernetes has %v, %v", kubernetes.Spec.IPFamilies, err)
		}
		for i, p := range slices.Concat(w.pods, w.hosts) {
			h := c.Hosts[i%len(c.Hosts)]
			node, err := c.Client.CoreV1().Nodes().Get(ctx, h.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ips := ipsOf(p)
			if len(ips) != 1 || len(node.Spec.PodCIDRs) != 1 || len(p.Status.HostIPs) != 1 || p.Status.HostIP != h.Address.String() {
				t.Fatalf("%s has %v on %v, its node %v", p.Name, ips, p.Status.HostIPs, node.Spec.PodCIDRs)
			}
			if p.Spec.HostNetwork {
				if ips[0] != h.Address.String() {
					t.Errorf("%s has %v", p.Name, ips)
				}
				continue
			}
			if !netip.MustParsePrefix(node.Spec.PodCIDR).Contains(netip.MustParseAddr(ips[0])) {
				t.Errorf("%s is not of %s", ips[0], node.Spec.PodCIDR)
			}
			w.wantAnswers(t, p, []string{ips[0] + " " + h.Address.String() + " " + kubernetes.Spec.ClusterIP}, "get", pageAt(ips[0], 8082))
		}
		mustContain(t, "the kubeconfig", kubectl(t, c, "config", "view"), "server: https://["+c.Hosts[0].Address.String()+"]:6443")
	})
	t.Run("between pods and nodes", func(t *testing.T) {
		w.everyPair(t, w.pods, "get", 8080)
		w.everyPair(t, w.pods, "udp", 8081)
		w.everyPair(t, w.hosts, "get", 8080)
	})
	t.Run("service", func(t *testing.T) {
		s := w.service(t, "web", func(s *corev1.Service) { s.Spec.IPFamilyPolicy = ptr.To(corev1.IPFamilyPolicyPreferDualStack) })
		if !slices.Equal(s.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv6Protocol}) || len(s.Spec.ClusterIPs) != 1 {
			t.Fatalf("it has %v of %v", s.Spec.ClusterIPs, s.Spec.IPFamilies)
		}
		for _, p := range slices.Concat(w.pods, w.hosts) {
			w.wantAnswers(t, p, w.names(), "get", "-n", "40", pageAt(s.Spec.ClusterIP, 80))
		}
		w.wantAnswers(t, a, w.names(), "get", "-n", "40", pageAt("web", 80))
		w.wantRecords(t, a, []string{"AAAA " + s.Spec.ClusterIP}, "AAAA", w.expanded("web")...)
		w.wantRecords(t, b, []string{"PTR web.six.svc.cluster.local."}, "PTR", reverse6(s.Spec.ClusterIP))
		all, err := c.Client.DiscoveryV1().EndpointSlices(w.ns).List(ctx, metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=web"})
		if err != nil || len(all.Items) != 1 || all.Items[0].AddressType != discoveryv1.AddressTypeIPv6 || len(all.Items[0].Endpoints) != 3 {
			t.Errorf("its endpoints are %v, %v", all.Items, err)
		}
		w.change(t, "web", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP })
		w.wantSticky(t, pageAt(s.Spec.ClusterIP, 80))
	})
	t.Run("IPv4 is refused", func(t *testing.T) {
		for spec, want := range map[string]string{
			`"ipFamilies":["IPv4"]`:                                           `spec.ipFamilies[0]: Invalid value: "IPv4": not configured on this cluster`,
			`"clusterIP":"10.96.0.20"`:                                        `IPv4 is not configured on this cluster`,
			`"ipFamilyPolicy":"RequireDualStack"`:                             `this cluster is not configured for dual-stack services`,
			`"ipFamilyPolicy":"PreferDualStack","ipFamilies":["IPv6","IPv4"]`: `spec.ipFamilies[1]: Invalid value: "IPv4": not configured on this cluster`,
		} {
			_, err := c.KubectlInput(ctx, fmt.Sprintf(`{"apiVersion":"v1","kind":"Service","metadata":{"name":"four"},"spec":{%s,"ports":[{"port":80}]}}`, spec), "create", "-n", w.ns, "-f", "-")
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", spec, err, want)
			}
		}
	})
	t.Run("headless", func(t *testing.T) {
		w.service(t, "head", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone })
		w.wantRecords(t, a, records("AAAA", w.pods...), "AAAA", w.expanded("head")...)
	})
	t.Run("node port, host port and external address", func(t *testing.T) {
		external := "2001:db8::99"
		s := w.service(t, "port", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeNodePort, []string{external}
		})
		for i, h := range c.Hosts {
			for _, from := range []*corev1.Pod{w.pods[i], w.pods[(i+1)%3], w.hosts[(i+1)%3]} {
				w.wantAnswers(t, from, w.names(), "get", "-n", "40", pageAt(h.Address.String(), s.Spec.Ports[0].NodePort))
				w.wantAnswers(t, from, names(w.pods[i]), "get", pageAt(h.Address.String(), 4444))
			}
			eventually(t, "the node port from outside", func() error {
				_, err := fromOutside(t, hostPort(h.Address.String(), uint16(s.Spec.Ports[0].NodePort)))
				return err
			})
		}
		w.wantAnswers(t, a, w.names(), "get", "-n", "40", pageAt(external, 80))
	})
	t.Run("load balancer", func(t *testing.T) {
		s := w.service(t, "lb", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].Port = corev1.ServiceTypeLoadBalancer, 8088
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		})
		for _, h := range c.Hosts { // without a range it has the hosts' addresses
			eventually(t, "an answer at "+h.Address.String(), func() error {
				_, err := fromOutside(t, hostPort(h.Address.String(), 8088))
				return err
			})
		}
		vip := c.Gateway()
		for range 0xff {
			vip = vip.Next()
		}
		kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", fmt.Sprintf(`{"data":{"load-balancer.addresses":"%s"}}`, vip))
		eventually(t, "the client's address at the load balancer's", func() error {
			client, err := fromOutside(t, netip.AddrPortFrom(vip, 8088).String())
			if err == nil && client != c.Gateway() {
				err = fmt.Errorf("the client is seen as %s", client)
			}
			return err
		})
		kubectl(t, c, "-n", w.ns, "delete", "service", s.Name)
	})
	t.Run("policy", func(t *testing.T) {
		apply(t, c, w.ns, policy("only-b", fmt.Sprintf("{podSelector: {matchLabels: {app: net}}, ingress: [{from: [{ipBlock: {cidr: '%s/128'}}]}]}", b.Status.PodIP)))
		w.wantAnswers(t, w.pods[2], []string{"-"}, "reach", "http:"+hostPort(a.Status.PodIP, 8080))
		w.wantAnswers(t, b, names(a), "reach", "http:"+hostPort(a.Status.PodIP, 8080))
		// Egress to nobody but DNS, which counts as a pod.
		apply(t, c, w.ns, policy("only-dns", "{podSelector: {matchLabels: {app: net}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]}"))
		w.wantAnswers(t, b, []string{"-"}, "reach", "http:"+hostPort(a.Status.PodIP, 8080))
		w.wantAnswers(t, b, records("AAAA", w.pods...), "dig", "AAAA", "head.six")
		kubectl(t, c, "-n", w.ns, "delete", "networkpolicy", "only-b", "only-dns")
		w.wantAnswers(t, w.pods[2], names(a), "reach", "http:"+hostPort(a.Status.PodIP, 8080))
	})
	t.Run("kubectl", func(t *testing.T) {
		for _, p := range w.pods { // of every node
			mustContain(t, "exec", kubectl(t, c, "-n", w.ns, "exec", p.Name, "--", "/tool", "get", pageAt("localhost", 8080)), p.Name)
			kubectl(t, c, "-n", w.ns, "logs", p.Name)
		}
		mustContain(t, "the API's proxy", kubectl(t, c, "get", "--raw", "/api/v1/namespaces/six/pods/"+b.Name+":8080/proxy/"), b.Name)
		mustContain(t, "port-forward", forwarded(t, c, w.ns, b.Name, 8080), b.Name)
	})
	t.Run("paths", func(t *testing.T) {
		status := func() error {
			out, err := c.On(ctx, c.Hosts[2].Name, "conclave", "status")
			if err == nil && strings.Contains(out, "problem:") {
				err = errors.New(out)
			}
			return err
		}
		eventually(t, "every path is well", status)
		one, three := c.Hosts[0], c.Hosts[2]
		if _, err := c.On(ctx, three.Name, "nft", "add table ip6 lossy; add chain ip6 lossy raw { type filter hook prerouting priority raw; }; add rule ip6 lossy raw ip6 saddr "+one.Address.String()+" udp dport 8472 drop"); err != nil {
			t.Fatal(err)
		}
		if err := status(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%s and %s cannot reach each other's pods: UDP 8472 is dropped on the way", one.Name, three.Name)) {
			t.Errorf("with a path that is cut: %v", err)
		}
		if _, err := c.On(ctx, three.Name, "nft", "delete table ip6 lossy"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "every path is well again", status)
	})
	t.Run("the leader dies", func(t *testing.T) {
		first := leader(t, c, 3)
		if err := c.Kill(first); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another leader", func() error {
			out, err := c.Ask(ctx, "status")
			if err == nil && (strings.Contains(out, "leader none") || strings.Contains(out, "leader "+first+",")) {
				err = errors.New(out)
			}
			return err
		})
		if err := c.Connect(ctx); err != nil {
			t.Fatal(err)
		}
		alive := slices.DeleteFunc(slices.Clone(w.pods), func(p *corev1.Pod) bool { return p.Spec.NodeName == first })
		w.everyPair(t, alive, "get", 8080) // also the pod of the host whose conclave is dead
		s := w.service(t, "later", func(*corev1.Service) {})
		w.wantAnswers(t, alive[0], w.names(), "get", "-n", "40", pageAt(s.Spec.ClusterIP, 80))
		if err := c.Start(first, "up"); err != nil {
			t.Fatal(err)
		}
		leader(t, c, 3)
		p := runPods(t, c, w.ns, toolPod("last", first, nil, "serve", "http:8080"))[0]
		w.wantAnswers(t, alive[0], names(p), "get", pageAt(p.Status.PodIP, 8080))
		w.wantAnswers(t, p, names(p), "get", pageAt(p.Status.PodIP, 8080))
	})
}

// forwarded is the page at a pod's port, by kubectl port-forward.
func forwarded(t *testing.T, c *cluster.Cluster, ns, pod string, port int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "bin", "kubectl"), "--kubeconfig", c.Kubeconfig, "-n", ns, "port-forward", "pod/"+pod, fmt.Sprintf(":%d", port))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it says that it was killed
	}()
	line, err := bufio.NewReader(out).ReadString('\n') // Forwarding from 127.0.0.1:40123 -> 8080
	if err != nil {
		t.Fatal(err)
	}
	local, err := netip.ParseAddrPort(strings.Fields(strings.TrimPrefix(line, "Forwarding from "))[0])
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	answer, err := http.Get("http://" + net.JoinHostPort(local.Addr().String(), fmt.Sprint(local.Port())) + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}
