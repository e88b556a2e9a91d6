package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

// TestServiceFields shows what each field of a Service does to packets: from
// pods, from hosts, and from a machine beside them.
func TestServiceFields(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: "fields"} // the cluster does not live to delete it
	kubectl(t, c, "create", "namespace", w.ns)
	w.runOnEach(t, func(i int) map[string]string { return map[string]string{"app": "net", "is": fmt.Sprintf("net-%d", i)} })
	for _, f := range serviceFields {
		t.Run(f.name, func(t *testing.T) { f.show(t, w) })
	}
}

// only makes a service select one pod of the world.
func only(p *corev1.Pod) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Selector = map[string]string{"is": p.Labels["is"]} }
}

// atHost is a port of one of the world's hosts.
func (w *world) atHost(host int, port int32) string {
	return net.JoinHostPort(w.c.Hosts[host].Address.String(), fmt.Sprint(port))
}

// outside asks from beside the hosts until the answer is as wanted: the client
// that the pod saw, or a failure that says why.
func (w *world) outside(t *testing.T, at string, client netip.Addr, why string) {
	t.Helper()
	eventually(t, at+" from outside", func() error {
		saw, err := fromOutside(t, at)
		switch {
		case why == "" && err != nil:
			return err
		case why == "" && client.IsValid() && saw != client:
			return fmt.Errorf("the pod sees %s, not %s", saw, client)
		case why != "" && err == nil:
			return fmt.Errorf("somebody answers, who sees %s", saw)
		case why != "" && !strings.Contains(err.Error(), why):
			return fmt.Errorf("it fails otherwise: %w", err)
		}
		return nil
	})
}

// wantClient asks until the pod that answers has seen this client.
func (w *world) wantClient(t *testing.T, from *corev1.Pod, page, client string) {
	t.Helper()
	eventually(t, page+" sees "+client, func() error {
		got, err := w.ask(t, from, "get", page+"echo")
		if err != nil {
			return err
		}
		var saw struct{ Client string }
		if err := json.Unmarshal([]byte(got[0]), &saw); err != nil {
			return fmt.Errorf("%q: %w", got, err)
		}
		if host, _, err := net.SplitHostPort(saw.Client); err != nil || host != client {
			return fmt.Errorf("it sees %s (%v)", saw.Client, err)
		}
		return nil
	})
}

// wantNoAnswer asks until nobody answers, for whatever reason.
func (w *world) wantNoAnswer(t *testing.T, from *corev1.Pod, page string) {
	t.Helper()
	eventually(t, page+" is not answered", func() error {
		if got, err := w.ask(t, from, "get", page); err == nil {
			return fmt.Errorf("it answers %q", got)
		}
		return nil
	})
}

const tooLate = "Timeout exceeded" // what Go's client says of packets that are dropped

var serviceFields = []struct {
	name string
	show func(t *testing.T, w *world)
}{
	{"no endpoints", func(t *testing.T, w *world) {
		s := w.service(t, "nobody", func(s *corev1.Service) {
			s.Spec.Selector, s.Spec.Type, s.Spec.ExternalIPs = map[string]string{"app": "nobody"}, corev1.ServiceTypeNodePort, []string{"198.51.100.7"}
		})
		for _, from := range []*corev1.Pod{w.pods[0], w.hosts[1]} {
			for _, page := range []string{pageAt(s.Spec.ClusterIP, 80), "http://" + w.atHost(2, s.Spec.Ports[0].NodePort), pageAt("198.51.100.7", 80)} {
				w.wantFailure(t, from, "refused", "get", page)
			}
		}
		w.outside(t, w.atHost(0, s.Spec.Ports[0].NodePort), netip.Addr{}, "refused")
	}},
	{"hairpin", func(t *testing.T, w *world) {
		self := w.pods[0]
		s := w.service(t, "self", func(s *corev1.Service) { only(self)(s); s.Spec.Type = corev1.ServiceTypeNodePort })
		w.wantAnswers(t, self, names(self), "get", "-n", "5", pageAt(s.Spec.ClusterIP, 80))
		w.wantAnswers(t, self, names(self), "get", "-n", "5", "http://"+w.atHost(0, s.Spec.Ports[0].NodePort))
	}},
	{"node ports at every address", func(t *testing.T, w *world) {
		s := w.service(t, "ports", asType(corev1.ServiceTypeNodePort))
		port := s.Spec.Ports[0].NodePort
		// An address that came later is a node's too.
		if _, err := w.c.On(t.Context(), w.c.Hosts[1].Name, "ip", "address", "add", "198.51.100.20/32", "dev", "lo"); err != nil {
			t.Fatal(err)
		}
		w.wantAnswers(t, w.hosts[1], w.names(), "get", "-n", "30", pageAt("198.51.100.20", port))
		w.wantAnswers(t, w.pods[1], w.names(), "get", "-n", "30", pageAt("198.51.100.20", port))
		for i := range w.c.Hosts {
			w.wantAnswers(t, w.pods[0], w.names(), "get", "-n", "30", "http://"+w.atHost(i, port))
			w.outside(t, w.atHost(i, port), netip.Addr{}, "")
		}
		w.change(t, "ports", func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 31999 })
		w.outside(t, w.atHost(0, 31999), netip.Addr{}, "")
		w.outside(t, w.atHost(0, port), netip.Addr{}, "refused")
	}},
	{"ports change", func(t *testing.T, w *world) {
		s := w.service(t, "moving", only(w.pods[1]))
		w.wantAnswers(t, w.pods[0], names(w.pods[1]), "get", pageAt(s.Spec.ClusterIP, 80))
		w.change(t, "moving", func(s *corev1.Service) { s.Spec.Ports[0].Port, s.Spec.Ports[0].TargetPort = 81, intstr.FromInt32(8083) })
		w.wantAnswers(t, w.pods[0], names(w.pods[1]), "get", pageAt(s.Spec.ClusterIP, 81))
		w.wantFailure(t, w.pods[0], "refused", "get", pageAt(s.Spec.ClusterIP, 80))
	}},
	{"sessionAffinity and its timeout", func(t *testing.T, w *world) {
		sticky := func(seconds int32) func(*corev1.Service) {
			return func(s *corev1.Service) {
				s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
			}
		}
		s := w.service(t, "sticky", sticky(2))
		// Pauses longer than the timeout let it go, shorter ones do not.
		visits := func(pause string) []string {
			out, err := inPod(t.Context(), w.c, w.ns, w.pods[0].Name, "sh", "-c", "for i in 1 2 3 4 5; do /tool get "+pageAt(s.Spec.ClusterIP, 80)+" && sleep "+pause+"; done")
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Fields(out)
			slices.Sort(got)
			return slices.Compact(got)
		}
		eventually(t, "a client that stays away", func() error {
			if got := visits("3"); len(got) < 2 {
				return fmt.Errorf("was always at %v", got)
			}
			return nil
		})
		w.change(t, "sticky", sticky(600))
		eventually(t, "a client that comes back", func() error {
			if got := visits("1"); len(got) > 1 {
				return fmt.Errorf("was at %v", got)
			}
			return nil
		})
		// A new process makes the node's rules anew, and knows the clients still.
		from, page := w.pods[2], pageAt(s.Spec.ClusterIP, 80)
		had, err := w.ask(t, from, "get", page)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if err := errors.Join(w.c.Kill(w.c.Hosts[2].Name), w.c.Start(w.c.Hosts[2].Name, "up")); err != nil {
				t.Fatal(err)
			}
			news := w.service(t, fmt.Sprintf("news-%d", i), only(w.pods[0]))
			w.wantAnswers(t, from, names(w.pods[0]), "get", pageAt(news.Spec.ClusterIP, 80))
			if got, err := w.ask(t, from, "get", page); err != nil || !slices.Equal(got, had) {
				t.Errorf("the client was at %v, and after a restart at %v (%v)", had, got, err)
			}
		}
	}},
	{"internalTrafficPolicy Local", func(t *testing.T, w *world) {
		s := w.service(t, "inside", func(s *corev1.Service) {
			s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		})
		for i, p := range w.pods {
			w.wantAnswers(t, p, names(p), "get", "-n", "10", pageAt(s.Spec.ClusterIP, 80))
			w.wantAnswers(t, w.hosts[i], names(p), "get", "-n", "10", pageAt(s.Spec.ClusterIP, 80))
		}
		w.change(t, "inside", only(w.pods[0]))
		w.wantAnswers(t, w.pods[0], names(w.pods[0]), "get", pageAt(s.Spec.ClusterIP, 80))
		w.wantFailure(t, w.pods[1], tooLate, "get", pageAt(s.Spec.ClusterIP, 80))
	}},
	{"externalTrafficPolicy Local of a node port", func(t *testing.T, w *world) {
		s := w.service(t, "near", func(s *corev1.Service) {
			only(w.pods[0])(s)
			s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
		})
		port := s.Spec.Ports[0].NodePort
		w.outside(t, w.atHost(0, port), w.c.Gateway(), "")
		w.outside(t, w.atHost(1, port), netip.Addr{}, tooLate)
		// Pods and hosts are not outside.
		w.wantAnswers(t, w.pods[1], names(w.pods[0]), "get", "http://"+w.atHost(1, port))
		w.wantAnswers(t, w.hosts[1], names(w.pods[0]), "get", "http://"+w.atHost(1, port))
		w.change(t, "near", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster })
		// Masqueraded, be it needed or not: as the node is seen by its own pods.
		w.outside(t, w.atHost(0, port), netip.MustParsePrefix(w.pods[0].Status.PodIP+"/24").Masked().Addr().Next(), "")
		w.outside(t, w.atHost(1, port), netip.Addr{}, "")
	}},
	{"healthCheckNodePort", func(t *testing.T, w *world) {
		s := w.service(t, "healthy", func(s *corev1.Service) {
			only(w.pods[2])(s)
			s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.Ports[0].Port = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal, 8091
			s.Spec.LoadBalancerClass = ptr.To("example.test/other")
		})
		check := func(host, code int, local float64) {
			t.Helper()
			eventually(t, fmt.Sprintf("the health check port of host %d", host), func() error {
				r, err := (&http.Client{Timeout: 3 * time.Second}).Get("http://" + w.atHost(host, s.Spec.HealthCheckNodePort) + "/healthz")
				if err != nil {
					return err
				}
				defer r.Body.Close()
				raw, err := io.ReadAll(r.Body)
				if err != nil {
					return err
				}
				var said struct {
					Service             struct{ Namespace, Name string }
					LocalEndpoints      float64
					ServiceProxyHealthy bool
				}
				if err := json.Unmarshal(raw, &said); err != nil {
					return fmt.Errorf("%q: %w", raw, err)
				}
				if r.StatusCode != code || said.LocalEndpoints != local || !said.ServiceProxyHealthy || said.Service.Namespace != w.ns || said.Service.Name != "healthy" ||
					r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(local) {
					return fmt.Errorf("%s %v: %s", r.Status, r.Header, raw)
				}
				return nil
			})
		}
		check(2, http.StatusOK, 1)
		check(0, http.StatusServiceUnavailable, 0)
		w.change(t, "healthy", only(w.pods[0]))
		check(2, http.StatusServiceUnavailable, 0)
		check(0, http.StatusOK, 1)
		w.change(t, "healthy", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster })
		eventually(t, "the port is closed", func() error {
			conn, err := net.DialTimeout("tcp", w.atHost(0, s.Spec.HealthCheckNodePort), time.Second)
			if err == nil {
				conn.Close()
				return errors.New("it is open")
			}
			return nil
		})
	}},
	{"externalIPs", func(t *testing.T, w *world) {
		s := w.service(t, "foreign", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"198.51.100.9"} })
		for _, from := range []*corev1.Pod{w.pods[0], w.hosts[2]} {
			w.wantAnswers(t, from, w.names(), "get", "-n", "30", pageAt("198.51.100.9", s.Spec.Ports[0].Port))
		}
	}},
	{"loadBalancerClass and ipMode of another's", func(t *testing.T, w *world) {
		w.service(t, "others", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.LoadBalancerClass, s.Spec.AllocateLoadBalancerNodePorts = corev1.ServiceTypeLoadBalancer, ptr.To("example.test/other"), ptr.To(false)
		})
		ingress := func(text string) {
			t.Helper()
			if _, err := w.c.Client.CoreV1().Services(w.ns).Patch(t.Context(), "others", types.MergePatchType, []byte(`{"status":{"loadBalancer":{"ingress":[`+text+`]}}}`), metav1.PatchOptions{}, "status"); err != nil {
				t.Fatal(err)
			}
		}
		ingress(`{"ip":"198.51.100.30"}`)
		w.wantAnswers(t, w.pods[0], w.names(), "get", "-n", "30", pageAt("198.51.100.30", 80))
		ingress(`{"ip":"198.51.100.30","ipMode":"Proxy"}`)
		// Now it is for the balancer itself, which is not there.
		w.wantNoAnswer(t, w.pods[0], pageAt("198.51.100.30", 80))
		s := w.get(t, "others")
		if p := s.Spec.Ports[0].NodePort; p != 0 || len(s.Status.LoadBalancer.Ingress) != 1 {
			t.Errorf("it has the node port %d and %+v", p, s.Status)
		}
		w.change(t, "others", func(s *corev1.Service) { s.Spec.AllocateLoadBalancerNodePorts = ptr.To(true) })
		if s := w.get(t, "others"); s.Spec.Ports[0].NodePort == 0 {
			t.Error("it has no node port, though it may")
		}
	}},
	{"loadBalancerSourceRanges", func(t *testing.T, w *world) {
		s := w.service(t, "fenced", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].Port = corev1.ServiceTypeLoadBalancer, 8092
			s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24"}
		})
		w.outside(t, w.atHost(0, s.Spec.Ports[0].NodePort), netip.Addr{}, "") // not guarded
		w.outside(t, w.atHost(1, 8092), netip.Addr{}, tooLate)
		w.change(t, "fenced", func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"203.0.113.0/24", w.c.Gateway().String() + "/32"}
		})
		w.outside(t, w.atHost(1, 8092), netip.Addr{}, "")
	}},
	{"loadBalancerIP", func(t *testing.T, w *world) {
		b := w.c.Subnet.Addr().As4()
		address := func(last byte) string { return netip.AddrFrom4([4]byte{b[0], b[1], b[2], last}).String() }
		kubectl(t, w.c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", fmt.Sprintf(`{"data":{"load-balancer.addresses":"%s-%s"}}`, address(240), address(250)))
		ask := func(name, ip string) *corev1.Service {
			return w.service(t, name, func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerIP = corev1.ServiceTypeLoadBalancer, ip })
		}
		ask("first", address(245))
		w.outside(t, address(245)+":80", netip.Addr{}, "")
		s := w.get(t, "first")
		if in := s.Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != address(245) || in[0].IPMode == nil || *in[0].IPMode != corev1.LoadBalancerIPModeVIP {
			t.Errorf("its status is %+v", s.Status)
		}
		ask("second", address(245))
		eventually(t, "who comes late is told", func() error {
			if said := kubectl(t, w.c, "-n", w.ns, "describe", "service", "second"); !strings.Contains(said, "AllocationFailed") || !strings.Contains(said, "already in use by service") {
				return errors.New(said)
			}
			return nil
		})
		// Another type gives it back.
		w.change(t, "first", func(s *corev1.Service) { s.Spec.Type, s.Spec.LoadBalancerIP = corev1.ServiceTypeClusterIP, "" })
		eventually(t, "the next has it", func() error {
			if in := w.get(t, "second").Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != address(245) {
				return fmt.Errorf("it has %+v", in)
			}
			return nil
		})
		if in := w.get(t, "first").Status.LoadBalancer.Ingress; len(in) > 0 {
			t.Errorf("a ClusterIP has %+v", in)
		}
		kubectl(t, w.c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", `{"data":{"load-balancer.addresses":null}}`)
	}},
	{"trafficDistribution PreferSameZone and PreferClose", func(t *testing.T, w *world) {
		for i, h := range w.c.Hosts {
			kubectl(t, w.c, "label", "node", h.Name, fmt.Sprintf("topology.kubernetes.io/zone=zone-%d", i/2), "--overwrite")
		}
		for _, way := range []string{corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferClose} {
			s := w.service(t, strings.ToLower(way), func(s *corev1.Service) { s.Spec.TrafficDistribution = &way })
			page := pageAt(s.Spec.ClusterIP, 80)
			w.wantAnswers(t, w.pods[0], names(w.pods[:2]...), "get", "-n", "30", page)
			w.wantAnswers(t, w.pods[1], names(w.pods[:2]...), "get", "-n", "30", page)
			w.wantAnswers(t, w.pods[2], names(w.pods[2]), "get", "-n", "30", page)
			// A zone without an endpoint is served by the others.
			w.change(t, s.Name, only(w.pods[2]))
			w.wantAnswers(t, w.pods[0], names(w.pods[2]), "get", "-n", "10", page)
		}
	}},
	{"publishNotReadyAddresses", func(t *testing.T, w *world) {
		p := toolPod("unready", w.c.Hosts[1].Name, map[string]string{"app": "unready"}, "serve", "http:8080")
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}}
		putPod(t, w.c, w.ns, p)
		s := w.service(t, "unready", func(s *corev1.Service) { s.Spec.Selector = p.Labels })
		w.service(t, "unready-headless", func(s *corev1.Service) { headless(s); s.Spec.Selector = p.Labels })
		eventually(t, "it runs", func() error {
			is, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), p.Name, metav1.GetOptions{})
			if err == nil && (is.Status.Phase != corev1.PodRunning || is.Status.PodIP == "") {
				err = errors.New("not yet")
			}
			p = is
			return err
		})
		w.wantFailure(t, w.pods[0], "refused", "get", pageAt(s.Spec.ClusterIP, 80))
		w.wantFailure(t, w.pods[0], "NXDOMAIN", "dig", "A", "unready-headless."+w.ns+".svc.cluster.local.")
		for _, name := range []string{"unready", "unready-headless"} {
			w.change(t, name, func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true })
		}
		w.wantAnswers(t, w.pods[0], names(p), "get", pageAt(s.Spec.ClusterIP, 80))
		w.wantRecords(t, w.pods[0], records("A", p), "A", "unready-headless."+w.ns+".svc.cluster.local.")
	}},
	{"terminating endpoints", func(t *testing.T, w *world) {
		slow := func(name, node string) *corev1.Pod {
			p := toolPod(name, node, map[string]string{"app": "leaving"}, "serve", "http:8080")
			p.Spec.TerminationGracePeriodSeconds = ptr.To(int64(600))
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "600"}}}}
			return p
		}
		leaving := runPods(t, w.c, w.ns, slow("leaving", w.c.Hosts[0].Name))[0]
		s := w.service(t, "leaving", func(s *corev1.Service) {
			s.Spec.Selector, s.Spec.Type, s.Spec.ExternalTrafficPolicy = leaving.Labels, corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
		})
		page := pageAt(s.Spec.ClusterIP, 80)
		w.wantAnswers(t, w.pods[1], names(leaving), "get", page)
		if err := w.c.Client.CoreV1().Pods(w.ns).Delete(t.Context(), leaving.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "its slice says so", func() error {
			all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=leaving"})
			if err != nil {
				return err
			}
			if len(all.Items) != 1 || len(all.Items[0].Endpoints) != 1 {
				return fmt.Errorf("the slices are %+v", all.Items)
			}
			if is := all.Items[0].Endpoints[0].Conditions; *is.Ready || !*is.Serving || !*is.Terminating {
				return fmt.Errorf("the conditions are %+v", is)
			}
			return nil
		})
		w.wantAnswers(t, w.pods[1], names(leaving), "get", "-n", "5", page)
		w.outside(t, w.atHost(0, s.Spec.Ports[0].NodePort), w.c.Gateway(), "")
		staying := runPods(t, w.c, w.ns, slow("staying", w.c.Hosts[1].Name))[0]
		w.wantAnswers(t, w.pods[1], names(staying), "get", "-n", "20", page)
		// The node that has only the one that goes still answers for it.
		w.outside(t, w.atHost(0, s.Spec.Ports[0].NodePort), w.c.Gateway(), "")
		deletePod(t, w.c, w.ns, leaving.Name)
		deletePod(t, w.c, w.ns, staying.Name)
	}},
	{"UDP clients move on", func(t *testing.T, w *world) {
		s := w.service(t, "datagrams", func(s *corev1.Service) {
			only(w.pods[0])(s)
			s.Spec.Type, s.Spec.Ports = corev1.ServiceTypeNodePort, []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(8081)}}
		})
		inside, err := w.c.Hosts[2].Dial(t.Context(), "udp", net.JoinHostPort(s.Spec.ClusterIP, "80"))
		if err != nil {
			t.Fatal(err)
		}
		outside, err := net.Dial("udp", w.atHost(1, s.Spec.Ports[0].NodePort))
		if err != nil {
			t.Fatal(err)
		}
		nobody := func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} }
		for _, p := range []*corev1.Pod{w.pods[0], w.pods[1], nil, w.pods[2]} {
			if p == nil { // packets that nobody gets begin a flow too
				w.change(t, "datagrams", nobody)
				for _, conn := range []net.Conn{inside, outside} {
					eventually(t, "nobody answers", func() error {
						if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
							return err
						}
						_, _ = io.WriteString(conn, "who")
						if _, err := conn.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNREFUSED) {
							return fmt.Errorf("it is not refused: %w", err)
						}
						return nil
					})
				}
				continue
			}
			w.change(t, "datagrams", only(p))
			for where, conn := range map[string]net.Conn{"a host": inside, "outside": outside} {
				// One socket, which goes on sending.
				eventually(t, "an answer of "+p.Name+" to "+where, func() error {
					if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
						return err
					}
					if _, err := io.WriteString(conn, "who"); err != nil {
						return err
					}
					buf := make([]byte, 100)
					n, err := conn.Read(buf)
					if err == nil && string(buf[:n]) != p.Name {
						err = fmt.Errorf("%s answers", buf[:n])
					}
					return err
				})
			}
		}
		inside.Close()
		outside.Close()
	}},
	{"endpoints in the hosts' networks", func(t *testing.T, w *world) {
		for _, p := range w.hosts {
			kubectl(t, w.c, "-n", w.ns, "label", "pod", p.Name, "app=on-host", "is="+p.Name)
		}
		s := w.service(t, "on-hosts", func(s *corev1.Service) {
			s.Spec.Selector, s.Spec.Type, s.Spec.Ports[0].TargetPort = map[string]string{"app": "on-host"}, corev1.ServiceTypeNodePort, intstr.FromInt32(18080)
		})
		// A pod of the host's network is called as its host.
		var all []string
		for _, h := range w.c.Hosts {
			all = append(all, h.Name)
		}
		for _, from := range []*corev1.Pod{w.pods[0], w.hosts[1]} {
			for _, page := range []string{pageAt(s.Spec.ClusterIP, 80), "http://" + w.atHost(0, s.Spec.Ports[0].NodePort), "http://" + w.atHost(2, s.Spec.Ports[0].NodePort)} {
				w.wantAnswers(t, from, slices.Clone(all), "get", "-n", "30", page)
			}
		}
		w.outside(t, w.atHost(1, s.Spec.Ports[0].NodePort), netip.Addr{}, "")
		w.change(t, "on-hosts", func(s *corev1.Service) {
			s.Spec.Selector["is"], s.Spec.ExternalTrafficPolicy = w.hosts[2].Name, corev1.ServiceExternalTrafficPolicyLocal
		})
		w.outside(t, w.atHost(2, s.Spec.Ports[0].NodePort), w.c.Gateway(), "")
		w.outside(t, w.atHost(1, s.Spec.Ports[0].NodePort), netip.Addr{}, tooLate)
	}},
	{"endpoints outside the cluster", func(t *testing.T, w *world) {
		l, err := net.Listen("tcp", net.JoinHostPort(w.c.Gateway().String(), "0"))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			_, _ = io.WriteString(w, "outside sees "+host)
		})}
		go server.Serve(l) //nolint:errcheck // it ends when it is closed
		t.Cleanup(func() { server.Close() })
		s := w.service(t, "database", func(s *corev1.Service) { s.Spec.Selector = nil })
		if _, err := w.c.Client.CoreV1().Endpoints(w.ns).Create(t.Context(), handMade("database", w.c.Gateway().String(), int32(l.Addr().(*net.TCPAddr).Port)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wantAnswers(t, w.pods[1], []string{"outside sees " + w.c.Hosts[1].Address.String()}, "get", pageAt(s.Spec.ClusterIP, 80))
	}},
	{"an address of an added ServiceCIDR", func(t *testing.T, w *world) {
		apply(t, w.c, w.ns, "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: more}\nspec: {cidrs: [10.112.0.0/24]}\n")
		kubectl(t, w.c, "wait", "servicecidr/more", "--for=condition=Ready", "--timeout=60s")
		s := w.service(t, "more", func(s *corev1.Service) { s.Spec.ClusterIP = "10.112.0.5" })
		page := pageAt(s.Spec.ClusterIP, 80)
		for _, from := range []*corev1.Pod{w.pods[0], w.hosts[0], w.hosts[2]} {
			w.wantAnswers(t, from, w.names(), "get", "-n", "30", page)
		}
		w.wantRecords(t, w.pods[0], []string{"PTR more." + w.ns + ".svc.cluster.local."}, "PTR", reverse("10.112.0.5"))
		// Pods are seen as they are, hosts as somebody whom all pods can answer.
		w.wantClient(t, w.pods[0], page, w.pods[0].Status.PodIP)
		w.change(t, "more", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} })
		for _, from := range []*corev1.Pod{w.pods[1], w.hosts[1]} {
			w.wantFailure(t, from, "refused", "get", page)
		}
	}},
	{"a service of another proxy", func(t *testing.T, w *world) {
		s := w.service(t, "proxied", func(*corev1.Service) {})
		page := pageAt(s.Spec.ClusterIP, 80)
		w.wantAnswers(t, w.pods[0], w.names(), "get", "-n", "30", page)
		w.change(t, "proxied", func(s *corev1.Service) { s.Labels["service.kubernetes.io/service-proxy-name"] = "other" })
		w.wantFailure(t, w.pods[0], "refused", "get", page)
		w.wantRecords(t, w.pods[0], []string{"A " + s.Spec.ClusterIP}, "A", "proxied")
	}},
	{"SCTP", func(t *testing.T, w *world) {
		_, err := os.Stat("/proc/sys/net/sctp")
		out := apply(t, w.c, w.ns, "apiVersion: v1\nkind: Service\nmetadata: {name: sctp}\nspec: {selector: {app: net}, ports: [{port: 80, protocol: SCTP}]}\n")
		if says := strings.Contains(out, "this node's kernel has no SCTP"); says != (err != nil) {
			t.Errorf("the kernel's SCTP: %v; it says %q", err, out)
		}
	}},
	{"what is not there is said", func(t *testing.T, w *world) {
		out := apply(t, w.c, w.ns, "apiVersion: v1\nkind: Service\nmetadata: {name: hints, annotations: {service.kubernetes.io/topology-mode: Auto}}\nspec: {selector: {app: net}, ports: [{port: 80}]}\n")
		mustContain(t, "the warning", out, "Warning: ", "service.kubernetes.io/topology-mode", "spec.trafficDistribution")
	}},
}
