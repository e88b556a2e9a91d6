package hosts

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
)

var serviceProxy = []behaviour{
	{"endpoints come and go", "[sig-network] Services should serve a basic endpoint from pods [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "basic"}
		s := w.service(t, "basic", func(s *corev1.Service) { s.Spec.Selector = labels })
		page := pageAt(s.Spec.ClusterIP, 80)
		from := w.pods[0]
		w.wantFailure(t, from, "refused", "get", page)
		runPods(t, w.c, w.ns, toolPod("basic-1", w.c.Hosts[1].Name, labels, "serve", "http:8080"))
		w.wantAnswers(t, from, []string{"basic-1"}, "get", "-n", "9", page)
		runPods(t, w.c, w.ns, toolPod("basic-2", w.c.Hosts[2].Name, labels, "serve", "http:8080"))
		w.wantAnswers(t, from, []string{"basic-1", "basic-2"}, "get", "-n", "30", page)
		deletePod(t, w.c, w.ns, "basic-1")
		w.wantAnswers(t, from, []string{"basic-2"}, "get", "-n", "9", page)
		deletePod(t, w.c, w.ns, "basic-2")
		w.wantFailure(t, from, "refused", "get", page)
		w.wantFailure(t, w.hosts[1], "refused", "get", page)
	}},
	{"several ports", "[sig-network] Services should serve multiport endpoints from pods [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "multi"}
		s := w.service(t, "multi", func(s *corev1.Service) {
			s.Spec.Selector = labels
			s.Spec.Ports = []corev1.ServicePort{{Name: "one", Port: 80, TargetPort: intstr.FromString("first")}, {Name: "two", Port: 81, TargetPort: intstr.FromString("second")}}
		})
		pod := func(name, serve, port string) *corev1.Pod {
			p := toolPod(name, "", labels, "serve", serve)
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: port, ContainerPort: 100}}
			return p
		}
		one, two, from := pageAt(s.Spec.ClusterIP, 80), pageAt(s.Spec.ClusterIP, 81), w.pods[1]
		runPods(t, w.c, w.ns, pod("multi-1", "http:100", "first"))
		w.wantAnswers(t, from, []string{"multi-1"}, "get", "-n", "5", one)
		w.wantFailure(t, from, "refused", "get", two)
		runPods(t, w.c, w.ns, pod("multi-2", "http:100", "second"))
		w.wantAnswers(t, from, []string{"multi-2"}, "get", "-n", "5", two)
		w.wantAnswers(t, from, []string{"multi-1"}, "get", "-n", "5", one)
		deletePod(t, w.c, w.ns, "multi-1")
		w.wantFailure(t, from, "refused", "get", one)
		w.wantAnswers(t, from, []string{"multi-2"}, "get", "-n", "5", two)
		deletePod(t, w.c, w.ns, "multi-2")
		w.wantFailure(t, from, "refused", "get", two)
	}},
	{"one port by two protocols", "[sig-network] Services should serve endpoints on same port and different protocols [Conformance]", func(t *testing.T, w *world) {
		tcp := corev1.ServicePort{Name: "tcp", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}
		udp := corev1.ServicePort{Name: "udp", Port: 80, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(8081)}
		ports := func(all ...corev1.ServicePort) func(*corev1.Service) {
			return func(s *corev1.Service) { s.Spec.Ports = all }
		}
		s := w.service(t, "both", ports(tcp, udp))
		byTCP, byUDP, from := []string{"get", "-n", "30", pageAt(s.Spec.ClusterIP, 80)}, []string{"udp", "-n", "30", s.Spec.ClusterIP + ":80"}, w.pods[2]
		w.wantAnswers(t, from, w.names(), byTCP...)
		w.wantAnswers(t, from, w.names(), byUDP...)
		w.change(t, "both", ports(tcp))
		w.wantFailure(t, from, "", byUDP...)
		w.wantAnswers(t, from, w.names(), byTCP...)
		w.change(t, "both", ports(udp))
		w.wantFailure(t, from, "refused", byTCP...)
		w.wantAnswers(t, from, w.names(), byUDP...)
	}},
	{"addresses in several slices", "[sig-network] EndpointSlice should support a Service with multiple endpoint IPs specified in multiple EndpointSlices [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "by-hand", func(s *corev1.Service) {
			s.Spec.Selector = nil
			s.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}}
		})
		w.slice(t, "by-hand-1", "by-hand", w.pods[0], map[string]int32{"a": 8080, "b": 8083})
		w.slice(t, "by-hand-2", "by-hand", w.pods[1], map[string]int32{"a": 8083, "b": 8080})
		for _, port := range []int32{80, 81} {
			w.wantAnswers(t, w.pods[2], names(w.pods[:2]...), "get", "-n", "30", pageAt(s.Spec.ClusterIP, port))
			w.wantAnswers(t, w.hosts[2], names(w.pods[:2]...), "get", "-n", "30", pageAt("by-hand."+w.ns, port))
		}
	}},
	{"ports in several slices", "[sig-network] EndpointSlice should support a Service with multiple ports specified in multiple EndpointSlices [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "split", func(s *corev1.Service) {
			s.Spec.Selector = nil
			s.Spec.Ports = []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "b", Port: 81}}
		})
		w.slice(t, "split-1", "split", w.pods[0], map[string]int32{"a": 8080})
		w.slice(t, "split-2", "split", w.pods[0], map[string]int32{"b": 8083})
		for _, port := range []int32{80, 81} {
			w.wantAnswers(t, w.pods[1], []string{"net-0"}, "get", "-n", "5", pageAt(s.Spec.ClusterIP, port))
			w.wantAnswers(t, w.hosts[0], []string{"net-0"}, "get", "-n", "5", pageAt(s.Spec.ClusterIP, port))
		}
	}},
	{"latency", "[sig-network] Service endpoints latency should not be very high [Conformance]", showLatency},
}

// slice makes an EndpointSlice by hand: a pod's address with these ports.
func (w *world) slice(t *testing.T, name, service string, pod *corev1.Pod, ports map[string]int32) {
	t.Helper()
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "a-person"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{pod.Status.PodIP}}},
	}
	for name, port := range ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: ptr.To(name), Port: ptr.To(port), Protocol: ptr.To(corev1.ProtocolTCP)})
	}
	if _, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// showLatency measures from the creation of a Service to the event that shows
// its endpoints.
func showLatency(t *testing.T, w *world) {
	const services, atOnce = 60, 6
	watching, err := w.c.Client.CoreV1().Endpoints(w.ns).Watch(t.Context(), metav1.ListOptions{LabelSelector: "of=latency"})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	started := make(chan struct {
		name string
		at   time.Time
	}, services)
	var making sync.WaitGroup
	for worker := range atOnce {
		making.Go(func() {
			for i := worker; i < services; i += atOnce {
				name := fmt.Sprintf("latency-%d", i)
				began := time.Now()
				_, err := w.c.Client.CoreV1().Services(w.ns).Create(t.Context(), &corev1.Service{
					ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": "latency"}},
					Spec:       corev1.ServiceSpec{Selector: netLabels, Ports: []corev1.ServicePort{{Port: 80}}},
				}, metav1.CreateOptions{})
				if err != nil {
					t.Error(err)
					return
				}
				started <- struct {
					name string
					at   time.Time
				}{name, began}
			}
		})
	}
	seen := map[string]time.Time{}
	for len(seen) < services && !t.Failed() {
		select {
		case e, ok := <-watching.ResultChan():
			if !ok {
				t.Fatal("the watch ended")
			}
			ep, ok := e.Object.(*corev1.Endpoints)
			if _, again := seen[ep.Name]; ok && !again && len(ep.Subsets) > 0 && len(ep.Subsets[0].Addresses) > 0 {
				seen[ep.Name] = time.Now()
			}
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d services have endpoints", len(seen), services)
		}
	}
	making.Wait()
	var took []time.Duration
	for range services {
		s := <-started
		took = append(took, seen[s.name].Sub(s.at))
	}
	slices.Sort(took)
	half, most := took[len(took)/2], took[len(took)*9/10]
	t.Logf("50%%: %s, 90%%: %s, slowest: %s", half, most, took[len(took)-1])
	if half > 20*time.Second || most > 50*time.Second {
		t.Error("too slow")
	}
	if err := w.deleteServices(t, "of=latency"); err != nil {
		t.Error(err)
	}
}

func (w *world) deleteServices(t *testing.T, selector string) error {
	return w.c.Client.CoreV1().RESTClient().Delete().Namespace(w.ns).Resource("services").
		VersionedParams(&metav1.ListOptions{LabelSelector: selector}, scheme.ParameterCodec).Do(t.Context()).Error()
}

func externalName(target string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, target }
}

func asType(kind corev1.ServiceType) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Type, s.Spec.ExternalName = kind, "" }
}

// wantExternal checks that a service is a name for another one and nothing more.
func (w *world) wantExternal(t *testing.T, s *corev1.Service, target *corev1.Service) {
	t.Helper()
	if s.Spec.ClusterIP != "" || len(s.Spec.ClusterIPs) > 0 || s.Spec.Ports[0].NodePort != 0 {
		t.Errorf("the service kept %q %v and node port %d", s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Ports[0].NodePort)
	}
	name := target.Name + "." + w.ns + ".svc.cluster.local."
	for _, from := range w.pods[:2] {
		w.wantAnswers(t, from, []string{"CNAME " + name}, "dig", "CNAME", s.Name)
		w.wantAnswers(t, from, []string{"CNAME " + name, "A " + target.Spec.ClusterIP}, "dig", "A", s.Name)
		w.wantAnswers(t, from, w.names(), "get", "-n", "30", pageAt(s.Name, 80))
	}
}

// wantReachable checks a service by its name, its address and, if it has one,
// its node port at every node.
func (w *world) wantReachable(t *testing.T, s *corev1.Service) {
	t.Helper()
	for _, from := range []*corev1.Pod{w.pods[0], w.hosts[1]} {
		w.wantAnswers(t, from, w.names(), "get", "-n", "30", pageAt(s.Name+"."+w.ns+".svc", 80))
		w.wantAnswers(t, from, w.names(), "get", "-n", "30", pageAt(s.Spec.ClusterIP, 80))
		if port := s.Spec.Ports[0].NodePort; port != 0 {
			for _, h := range w.c.Hosts {
				w.wantAnswers(t, from, w.names(), "get", "-n", "30", pageAt(h.Address.String(), port))
			}
		}
	}
}

var serviceTypes = []behaviour{
	{"ClusterIP to ExternalName", "[sig-network] Services should be able to change the type from ClusterIP to ExternalName [Conformance]", func(t *testing.T, w *world) {
		target := w.service(t, "c2e-target", func(*corev1.Service) {})
		was := w.service(t, "c2e", func(*corev1.Service) {})
		w.wantReachable(t, was)
		w.wantExternal(t, w.change(t, "c2e", externalName("c2e-target."+w.ns+".svc.cluster.local")), target)
		// The address that it lost is another's to have.
		w.service(t, "c2e-heir", func(s *corev1.Service) { s.Spec.ClusterIP = was.Spec.ClusterIP })
	}},
	{"NodePort to ExternalName", "[sig-network] Services should be able to change the type from NodePort to ExternalName [Conformance]", func(t *testing.T, w *world) {
		target := w.service(t, "n2e-target", func(*corev1.Service) {})
		was := w.service(t, "n2e", asType(corev1.ServiceTypeNodePort))
		node := pageAt(w.c.Hosts[1].Address.String(), was.Spec.Ports[0].NodePort)
		w.wantAnswers(t, w.pods[0], w.names(), "get", "-n", "30", node)
		w.wantExternal(t, w.change(t, "n2e", externalName("n2e-target."+w.ns+".svc.cluster.local")), target)
		w.wantFailure(t, w.pods[0], "refused", "get", node)
		w.service(t, "n2e-heir", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ClusterIP, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, was.Spec.ClusterIP, was.Spec.Ports[0].NodePort
		})
	}},
	{"ExternalName to ClusterIP", "[sig-network] Services should be able to change the type from ExternalName to ClusterIP [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "e2c", externalName("example.test"))
		s := w.change(t, "e2c", asType(corev1.ServiceTypeClusterIP))
		if net.ParseIP(s.Spec.ClusterIP) == nil || s.Spec.Ports[0].NodePort != 0 {
			t.Fatalf("the service has %+v", s.Spec)
		}
		w.wantReachable(t, s)
	}},
	{"ExternalName to NodePort", "[sig-network] Services should be able to change the type from ExternalName to NodePort [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "e2n", externalName("example.test"))
		s := w.change(t, "e2n", asType(corev1.ServiceTypeNodePort))
		if net.ParseIP(s.Spec.ClusterIP) == nil || s.Spec.Ports[0].NodePort == 0 {
			t.Fatalf("the service has %+v", s.Spec)
		}
		w.wantReachable(t, s)
	}},
	{"NodePort", "[sig-network] Services should be able to create a functioning NodePort service [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "node-port", asType(corev1.ServiceTypeNodePort))
		w.wantReachable(t, s)
		for _, h := range w.c.Hosts { // and from outside of every pod
			out, err := w.c.On(t.Context(), h.Name, w.tool, "get", pageAt(w.c.Hosts[0].Address.String(), s.Spec.Ports[0].NodePort))
			if err != nil || !slices.Contains(w.names(), strings.TrimSpace(out)) {
				t.Errorf("from %s: %q, %v", h.Name, out, err)
			}
		}
	}},
	{"status lifecycle", "[sig-network] Services should complete a service status lifecycle [Conformance]", showServiceStatus},
	{"delete a collection", "[sig-network] Services should delete a collection of services [Conformance]", func(t *testing.T, w *world) {
		for _, name := range []string{"bulk-1", "bulk-2", "spared"} {
			w.service(t, name, func(s *corev1.Service) { s.Labels = map[string]string{"bulk": strings.Split(name, "-")[0]} })
		}
		if err := w.deleteServices(t, "bulk=bulk"); err != nil {
			t.Fatal(err)
		}
		left, err := w.c.Client.CoreV1().Services(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "bulk"})
		if err != nil || len(left.Items) != 1 || left.Items[0].Name != "spared" {
			t.Errorf("left are %v (%v)", left.Items, err)
		}
	}},
	{"all namespaces", "[sig-network] Services should find a service from listing all namespaces [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "found", func(*corev1.Service) {})
		all, err := w.c.Client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, wanted := range []string{"default/kubernetes", w.ns + "/found"} {
			if !slices.ContainsFunc(all.Items, func(s corev1.Service) bool { return s.Namespace+"/"+s.Name == wanted }) {
				t.Errorf("%s is not listed", wanted)
			}
		}
	}},
	{"kubernetes", "[sig-network] API Server should provide secure master service [Conformance]", func(t *testing.T, w *world) {
		s, err := w.c.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Spec.Ports) != 1 || s.Spec.Ports[0].Port != 443 || s.Spec.Ports[0].Name != "https" {
			t.Errorf("its ports are %+v", s.Spec.Ports)
		}
		for _, from := range w.pods {
			w.wantAnswers(t, from, []string{"ok"}, "get", "https://kubernetes.default/readyz")
		}
	}},
	{"kubernetes' endpoints", "[sig-network] API Server should have Endpoints and EndpointSlices pointing to API Server [Conformance]", showKubernetesEndpoints},
}

func showServiceStatus(t *testing.T, w *world) {
	services := w.c.Client.CoreV1().Services(w.ns)
	watching, err := services.Watch(t.Context(), metav1.ListOptions{LabelSelector: "of=lifecycle"})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	w.service(t, "lifecycle", func(s *corev1.Service) {
		asType(corev1.ServiceTypeLoadBalancer)(s)
		s.Spec.LoadBalancerClass = ptr.To("example.org/nobody") // so that nobody but the test writes the status
	})
	awaitEvent(t, watching, watch.Added, func(*corev1.Service) bool { return true })

	status, err := services.Get(t.Context(), "lifecycle", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := w.c.Client.CoreV1().RESTClient().Get().Namespace(w.ns).Resource("services").Name("lifecycle").SubResource("status").Do(t.Context()).Get()
	if err != nil || raw.(*corev1.Service).UID != status.UID {
		t.Fatalf("the status subresource is %v (%v)", raw, err)
	}
	patch := `{"metadata":{"annotations":{"patched":"true"}},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"}]}}}`
	if _, err := services.Patch(t.Context(), "lifecycle", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(s *corev1.Service) bool {
		return s.Annotations["patched"] == "true" && len(s.Status.LoadBalancer.Ingress) == 1 && s.Status.LoadBalancer.Ingress[0].IP == "203.0.113.1"
	})
	eventually(t, "the status is updated", func() error {
		s, err := services.Get(t.Context(), "lifecycle", metav1.GetOptions{})
		if err != nil {
			return err
		}
		s.Status.Conditions = append(s.Status.Conditions, metav1.Condition{
			Type: "StatusUpdate", Status: metav1.ConditionTrue, Reason: "Test", Message: "set by the test", LastTransitionTime: metav1.Now()})
		_, err = services.UpdateStatus(t.Context(), s, metav1.UpdateOptions{})
		return err
	})
	awaitEvent(t, watching, watch.Modified, func(s *corev1.Service) bool {
		return len(s.Status.Conditions) == 1 && s.Status.Conditions[0].Type == "StatusUpdate"
	})
	if _, err := services.Patch(t.Context(), "lifecycle", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"more":"yes"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(s *corev1.Service) bool { return s.Labels["more"] == "yes" && len(s.Status.Conditions) == 1 })
	if err := services.Delete(t.Context(), "lifecycle", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Deleted, func(*corev1.Service) bool { return true })
}

func showKubernetesEndpoints(t *testing.T, w *world) {
	var masters []string
	eventually(t, "every host is a master and named", func() error {
		ep, err := w.c.Client.CoreV1().Endpoints("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if masters = nil; len(ep.Subsets) == 1 {
			for _, a := range ep.Subsets[0].Addresses {
				masters = append(masters, a.IP)
			}
		}
		if len(masters) != len(w.c.Hosts) || ep.Subsets[0].Ports[0].Port != 6443 || ep.Subsets[0].Ports[0].Name != "https" {
			return fmt.Errorf("the endpoints are %+v", ep.Subsets)
		}
		return nil
	})
	for _, address := range masters {
		config, err := w.c.RESTConfig("")
		if err != nil {
			t.Fatal(err)
		}
		config.Host = "https://" + address + ":6443"
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Get(config.Host + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", config.Host, answer.Status)
		}
	}
	slices.Sort(masters)
	eventually(t, "the slices name the same", func() error {
		all, err := w.c.Client.DiscoveryV1().EndpointSlices("default").List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kubernetes"})
		if err != nil {
			return err
		}
		var got []string
		for _, s := range all.Items {
			for _, e := range s.Endpoints {
				got = append(got, e.Addresses...)
			}
			if len(s.Ports) != 1 || *s.Ports[0].Port != 6443 || *s.Ports[0].Name != "https" {
				return fmt.Errorf("the ports are %+v", s.Ports)
			}
		}
		if slices.Sort(got); !slices.Equal(got, masters) {
			return fmt.Errorf("they name %v, not %v", got, masters)
		}
		return nil
	})
}

var affinity = []behaviour{
	{"affinity of ClusterIP", "[sig-network] Services should have session affinity work for service with type clusterIP [LinuxOnly] [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "sticky", withAffinity(corev1.ServiceAffinityClientIP))
		w.wantSticky(t, pageAt(s.Spec.ClusterIP, 80))
	}},
	{"affinity of NodePort", "[sig-network] Services should have session affinity work for NodePort service [LinuxOnly] [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "sticky-port", func(s *corev1.Service) {
			s.Spec.Type, s.Spec.SessionAffinity = corev1.ServiceTypeNodePort, corev1.ServiceAffinityClientIP
		})
		w.wantSticky(t, pageAt(w.c.Hosts[1].Address.String(), s.Spec.Ports[0].NodePort))
	}},
	{"affinity of ClusterIP is switched", "[sig-network] Services should be able to switch session affinity for service with type clusterIP [LinuxOnly] [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "switch", func(*corev1.Service) {})
		w.wantSwitched(t, "switch", pageAt(s.Spec.ClusterIP, 80))
	}},
	{"affinity of NodePort is switched", "[sig-network] Services should be able to switch session affinity for NodePort service [LinuxOnly] [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "switch-port", asType(corev1.ServiceTypeNodePort))
		w.wantSwitched(t, "switch-port", pageAt(w.c.Hosts[2].Address.String(), s.Spec.Ports[0].NodePort))
	}},
}

func withAffinity(a corev1.ServiceAffinity) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.SessionAffinity = a }
}

// wantSticky checks that each client has one pod, and keeps it.
func (w *world) wantSticky(t *testing.T, page string) {
	t.Helper()
	for _, from := range []*corev1.Pod{w.pods[0], w.pods[1], w.hosts[2]} {
		had := ""
		eventually(t, page+" keeps "+from.Name+" at one pod", func() error {
			got, err := w.ask(t, from, "get", "-n", "30", page)
			if err != nil {
				return err
			}
			if got = slices.Compact(got); len(got) != 1 {
				return fmt.Errorf("it was at %v", got)
			}
			had = got[0]
			return nil
		})
		if got, err := w.ask(t, from, "get", "-n", "10", page); err != nil || !slices.Equal(slices.Compact(got), []string{had}) {
			t.Errorf("%s was at %s and then at %v (%v)", from.Name, had, got, err)
		}
	}
}

func (w *world) wantSwitched(t *testing.T, name, page string) {
	t.Helper()
	for range 2 {
		w.wantAnswers(t, w.pods[0], w.names(), "get", "-n", "30", page)
		w.change(t, name, withAffinity(corev1.ServiceAffinityClientIP))
		w.wantSticky(t, page)
		w.change(t, name, withAffinity(corev1.ServiceAffinityNone))
	}
	w.wantAnswers(t, w.pods[0], w.names(), "get", "-n", "30", page)
}
