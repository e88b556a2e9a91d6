package hosts

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

const toolImage = "conclave.test/tool:1"

// world is what the network's tests share: a namespace with one pod on each
// node that serves its name, by HTTP on 8080 and 8083 and by UDP on 8081, and
// one on each node in its host's network.
type world struct {
	c     *cluster.Cluster
	ns    string
	tool  string        // on the hosts
	pods  []*corev1.Pod // in the order of the hosts, labelled app=net
	hosts []*corev1.Pod // likewise, in the hosts' network
}

var netLabels = map[string]string{"app": "net"}

// toolPod runs the tests' tool, on any node if node is empty.
func toolPod(name, node string, labels map[string]string, args ...string) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(0)),
			Containers:                    []corev1.Container{{Name: "tool", Image: toolImage, Args: args}},
		},
	}
	if node != "" {
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node}
	}
	return p
}

// runPods creates pods and returns them once all are ready.
func runPods(t *testing.T, c *cluster.Cluster, ns string, pods ...*corev1.Pod) []*corev1.Pod {
	t.Helper()
	for _, p := range pods {
		if _, err := c.Client.CoreV1().Pods(ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	running := make([]*corev1.Pod, len(pods))
	for i, p := range pods {
		eventually(t, "pod "+p.Name+" is ready", func() (err error) {
			if running[i], err = c.Client.CoreV1().Pods(ns).Get(t.Context(), p.Name, metav1.GetOptions{}); err == nil && !podReady(running[i]) {
				err = fmt.Errorf("its status is %+v", running[i].Status)
			}
			return err
		})
	}
	return running
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func deletePod(t *testing.T, c *cluster.Cluster, ns, name string) {
	t.Helper()
	if err := c.Client.CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}); err != nil {
		t.Fatal(err)
	}
}

// inPod runs a command in a pod's first container and returns what it printed.
func inPod(ctx context.Context, c *cluster.Cluster, ns, pod string, argv ...string) (string, error) {
	config, err := c.RESTConfig("")
	if err != nil {
		return "", err
	}
	url := c.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: argv, Stdout: true, Stderr: true}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewSPDYExecutor(config, http.MethodPost, url)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var out, problems bytes.Buffer
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &problems}); err != nil {
		return out.String(), fmt.Errorf("in pod %s: %s: %w: %s", pod, strings.Join(argv, " "), err, strings.TrimSpace(problems.String()))
	}
	return out.String(), nil
}

// ask runs the tool in a pod of the world and returns the lines that it printed.
func (w *world) ask(t *testing.T, from *corev1.Pod, args ...string) ([]string, error) {
	out, err := inPod(t.Context(), w.c, from.Namespace, from.Name, append([]string{"/tool"}, args...)...)
	return strings.Split(strings.TrimSpace(out), "\n"), err
}

// wantAnswers asks until the distinct lines of the answer are these.
func (w *world) wantAnswers(t *testing.T, from *corev1.Pod, wanted []string, args ...string) {
	t.Helper()
	slices.Sort(wanted)
	eventually(t, strings.Join(args, " "), func() error {
		got, err := w.ask(t, from, args...)
		if err != nil {
			return err
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, wanted) {
			return fmt.Errorf("from %s the answers are %q, not %q", from.Name, got, wanted)
		}
		return nil
	})
}

// wantFailure asks until the answer is a failure that says why.
func (w *world) wantFailure(t *testing.T, from *corev1.Pod, why string, args ...string) {
	t.Helper()
	eventually(t, strings.Join(args, " ")+" fails", func() error {
		got, err := w.ask(t, from, args...)
		switch {
		case err == nil:
			return fmt.Errorf("it answers %q", got)
		case !strings.Contains(err.Error(), why):
			return fmt.Errorf("it fails otherwise: %w", err)
		}
		return nil
	})
}

func (w *world) names() []string { return names(w.pods...) }

func names(pods ...*corev1.Pod) []string {
	var all []string
	for _, p := range pods {
		all = append(all, p.Name)
	}
	return all
}

// service makes a service of the world's pods, or as change makes it.
func (w *world) service(t *testing.T, name string, change func(*corev1.Service)) *corev1.Service {
	t.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}},
		Spec:       corev1.ServiceSpec{Selector: netLabels, Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
	change(s)
	made, err := w.c.Client.CoreV1().Services(w.ns).Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// change updates a service, again when another was faster.
func (w *world) change(t *testing.T, name string, change func(*corev1.Service)) *corev1.Service {
	t.Helper()
	var changed *corev1.Service
	eventually(t, "service "+name+" is updated", func() error {
		s, err := w.c.Client.CoreV1().Services(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(s)
		changed, err = w.c.Client.CoreV1().Services(w.ns).Update(t.Context(), s, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
		return err
	})
	return changed
}

func pageAt(host string, port int32) string {
	return "http://" + net.JoinHostPort(host, fmt.Sprint(port)) + "/"
}

// TestNetwork shows what Kubernetes asks of a cluster's network.
func TestNetwork(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	tool, err := cluster.Tool(t.Context(), c.Root)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: namespace(t, c), tool: tool}
	var pods []*corev1.Pod
	for i, h := range c.Hosts {
		pods = append(pods, toolPod(fmt.Sprintf("net-%d", i), h.Name, netLabels, "serve", "http:8080", "http:8083", "udp:8081"))
		onHost := toolPod(fmt.Sprintf("host-%d", i), h.Name, nil, "serve", "http:18080")
		onHost.Spec.HostNetwork, onHost.Spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
		pods = append(pods, onHost)
	}
	for i, p := range runPods(t, c, w.ns, pods...) {
		if i%2 == 0 {
			w.pods = append(w.pods, p)
		} else {
			w.hosts = append(w.hosts, p)
		}
	}
	for _, b := range slices.Concat(podNetwork, serviceProxy, serviceTypes, affinity, dnsNames, endpointObjects, apiProxy) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			conformance.Shows(t, b.codename)
			b.show(t, w)
		})
	}
}

// behaviour is one row of the conformance list and how it is shown.
type behaviour struct {
	name, codename string
	show           func(t *testing.T, w *world)
}

var podNetwork = []behaviour{
	{"pods reach pods by http", "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [Conformance] [NodeConformance]", func(t *testing.T, w *world) {
		w.everyPair(t, w.pods, "get", 8080)
	}},
	{"pods reach pods by udp", "[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: udp [Conformance] [NodeConformance]", func(t *testing.T, w *world) {
		w.everyPair(t, w.pods, "udp", 8081)
	}},
	{"nodes reach pods by http", "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: http [LinuxOnly] [Conformance] [NodeConformance]", func(t *testing.T, w *world) {
		w.everyPair(t, w.hosts, "get", 8080)
	}},
	{"nodes reach pods by udp", "[sig-network] Networking Granular Checks: Pods should function for node-pod communication: udp [LinuxOnly] [Conformance] [NodeConformance]", func(t *testing.T, w *world) {
		w.everyPair(t, w.hosts, "udp", 8081)
	}},
	{"host ports", "[sig-network] HostPort validates that there is no conflict between pods with same hostPort but different hostIP and protocol [LinuxOnly] [Conformance]", showHostPorts},
}

// everyPair asks each of the world's pods from each of these.
func (w *world) everyPair(t *testing.T, from []*corev1.Pod, how string, port int) {
	for _, a := range from {
		for _, b := range w.pods {
			target := net.JoinHostPort(b.Status.PodIP, fmt.Sprint(port))
			if how == "get" {
				target = "http://" + target + "/"
			}
			w.wantAnswers(t, a, []string{b.Name}, how, target)
		}
	}
}

func showHostPorts(t *testing.T, w *world) {
	const port = 54323
	node := w.c.Hosts[0]
	pod := func(name, ip string, protocol corev1.Protocol, serve string, inside int32) *corev1.Pod {
		p := toolPod(name, node.Name, nil, "serve", serve)
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: port, HostIP: ip, ContainerPort: inside, Protocol: protocol}}
		return p
	}
	address := node.Address.String()
	runPods(t, w.c, w.ns,
		pod("hp-loopback", "127.0.0.1", corev1.ProtocolTCP, "http:8080", 8080),
		pod("hp-address", address, corev1.ProtocolTCP, "http:8080", 8080),
		pod("hp-udp", address, corev1.ProtocolUDP, "udp:8081", 8081))
	w.wantAnswers(t, w.hosts[0], []string{"hp-loopback"}, "get", pageAt("127.0.0.1", port))
	for _, from := range []*corev1.Pod{w.hosts[0], w.hosts[1], w.pods[2]} {
		w.wantAnswers(t, from, []string{"hp-address"}, "get", pageAt(address, port))
		w.wantAnswers(t, from, []string{"hp-udp"}, "udp", fmt.Sprintf("%s:%d", address, port))
	}
}

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

// awaitEvent reads a watch until an event of that type has an object that will do.
func awaitEvent[T any](t *testing.T, w watch.Interface, kind watch.EventType, will func(T) bool) T {
	t.Helper()
	var last any
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("the watch ended before its %s event", kind)
			}
			last = e.Object
			if obj, ok := e.Object.(T); ok && e.Type == kind && will(obj) {
				return obj
			}
		case <-time.After(time.Minute):
			t.Fatalf("no such %s event; the last object is %+v", kind, last)
		}
	}
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

// wantRecords checks what a pod is told of names, by UDP and by TCP.
func (w *world) wantRecords(t *testing.T, from *corev1.Pod, records []string, kind string, names ...string) {
	t.Helper()
	for _, name := range names {
		w.wantAnswers(t, from, records, "dig", kind, name)
		w.wantAnswers(t, from, records, "dig", "-tcp", kind, name)
	}
}

// expanded is a name of the namespace as pods may write it.
func (w *world) expanded(name string) []string {
	return []string{name + "." + w.ns, name + "." + w.ns + ".svc", name + "." + w.ns + ".svc.cluster.local", name + "." + w.ns + ".svc.cluster.local."}
}

func records(kind string, pods ...*corev1.Pod) []string {
	var all []string
	for _, p := range pods {
		all = append(all, kind+" "+p.Status.PodIP)
	}
	return all
}

func reverse(ip string) string {
	b := net.ParseIP(ip).To4()
	return fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa.", b[3], b[2], b[1], b[0])
}

func headless(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }

var dnsNames = []behaviour{
	{"DNS of the cluster", "[sig-network] DNS should provide DNS for the cluster [Conformance]", func(t *testing.T, w *world) {
		s, err := w.c.Client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range w.pods {
			w.wantRecords(t, from, []string{"A " + s.Spec.ClusterIP}, "A", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
		}
	}},
	{"DNS of services", "[sig-network] DNS should provide DNS for services [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "named", func(*corev1.Service) {})
		w.service(t, "named-headless", headless)
		from, full := w.pods[1], "."+w.ns+".svc.cluster.local."
		w.wantRecords(t, from, []string{"A " + s.Spec.ClusterIP}, "A", w.expanded("named")...)
		w.wantRecords(t, from, records("A", w.pods...), "A", w.expanded("named-headless")...)
		w.wantRecords(t, from, []string{"SRV 0 100 80 named" + full}, "SRV", w.expanded("_http._tcp.named")...)
		var targets []string
		for _, p := range w.pods {
			targets = append(targets, "SRV 0 33 8080 "+strings.ReplaceAll(p.Status.PodIP, ".", "-")+".named-headless"+full)
		}
		w.wantRecords(t, from, targets, "SRV", w.expanded("_http._tcp.named-headless")...)
		w.wantRecords(t, from, []string{"PTR named" + full}, "PTR", reverse(s.Spec.ClusterIP))
	}},
	{"DNS of partial names", "[sig-network] DNS should resolve DNS of partial qualified names for services [LinuxOnly] [Conformance]", func(t *testing.T, w *world) {
		s := w.service(t, "partial", func(*corev1.Service) {})
		w.service(t, "partial-headless", headless)
		from, full := w.pods[2], "."+w.ns+".svc.cluster.local."
		w.wantRecords(t, from, []string{"A " + s.Spec.ClusterIP}, "A", "partial", "partial."+w.ns, "partial."+w.ns+".svc")
		w.wantRecords(t, from, records("A", w.pods...), "A", "partial-headless", "partial-headless."+w.ns, "partial-headless."+w.ns+".svc")
		w.wantRecords(t, from, []string{"SRV 0 100 80 partial" + full}, "SRV", "_http._tcp.partial", "_http._tcp.partial."+w.ns, "_http._tcp.partial."+w.ns+".svc")
		w.wantRecords(t, from, []string{"PTR partial" + full}, "PTR", reverse(s.Spec.ClusterIP))
		// The C library's way: musl, glibc and Go all read the same file.
		conf, err := inPod(t.Context(), w.c, w.ns, from.Name, "cat", "/etc/resolv.conf")
		if err != nil {
			t.Fatal(err)
		}
		mustContain(t, "resolv.conf", conf, "search "+w.ns+".svc.cluster.local svc.cluster.local cluster.local", "nameserver 10.96.0.10", "ndots:5")
	}},
	{"DNS of ExternalName", "[sig-network] DNS should provide DNS for ExternalName services [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "elsewhere", externalName("foo.example.test"))
		from := w.pods[0]
		w.wantRecords(t, from, []string{"CNAME foo.example.test."}, "CNAME", w.expanded("elsewhere")...)
		w.change(t, "elsewhere", externalName("bar.example.test"))
		w.wantRecords(t, from, []string{"CNAME bar.example.test."}, "CNAME", w.expanded("elsewhere")...)
		s := w.change(t, "elsewhere", asType(corev1.ServiceTypeClusterIP))
		w.wantRecords(t, from, []string{"A " + s.Spec.ClusterIP}, "A", w.expanded("elsewhere")...)
	}},
	{"hosts file", "[sig-network] DNS should provide /etc/hosts entries for the cluster [Conformance]", func(t *testing.T, w *world) {
		p := runPods(t, w.c, w.ns, named(toolPod("entries", "", map[string]string{"app": "entries"}, "serve", "http:8080"), "querier", "entries"))[0]
		w.service(t, "entries", func(s *corev1.Service) { headless(s); s.Spec.Selector = p.Labels })
		w.wantHostsEntry(t, p, "querier", "querier.entries."+w.ns+".svc.cluster.local")
		w.wantHostsEntry(t, w.pods[0], w.pods[0].Name)
	}},
	{"DNS by host name", "[sig-network] DNS should provide DNS for pods for Hostname [Conformance]", func(t *testing.T, w *world) {
		p := runPods(t, w.c, w.ns, named(toolPod("hostname", "", map[string]string{"app": "hostname"}, "serve", "http:8080"), "its-name", "hostnames"))[0]
		w.service(t, "hostnames", func(s *corev1.Service) { headless(s); s.Spec.Selector = p.Labels })
		for _, from := range []*corev1.Pod{p, w.pods[1]} {
			w.wantRecords(t, from, records("A", p), "A", w.expanded("its-name.hostnames")...)
		}
		w.wantHostsEntry(t, p, "its-name", "its-name.hostnames."+w.ns+".svc.cluster.local")
	}},
	{"DNS by subdomain", "[sig-network] DNS should provide DNS for pods for Subdomain [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "subdomain"}
		w.service(t, "below", func(s *corev1.Service) { headless(s); s.Spec.Selector = labels })
		pods := runPods(t, w.c, w.ns, named(toolPod("sub-1", "", labels, "serve", "http:8080"), "one", "below"), named(toolPod("sub-2", "", labels, "serve", "http:8080"), "two", "below"))
		for _, from := range []*corev1.Pod{pods[0], w.pods[2]} {
			w.wantRecords(t, from, records("A", pods[0]), "A", w.expanded("one.below")...)
			w.wantRecords(t, from, records("A", pods[1]), "A", w.expanded("two.below")...)
			w.wantRecords(t, from, []string{"PTR one.below." + w.ns + ".svc.cluster.local."}, "PTR", reverse(pods[0].Status.PodIP))
		}
		// The pods' own command reports the name by the kernel.
		if out, err := inPod(t.Context(), w.c, w.ns, "sub-2", "hostname"); err != nil || strings.TrimSpace(out) != "two" {
			t.Errorf("the host name is %q (%v)", out, err)
		}
	}},
	{"DNS by the pod's own settings", "[sig-network] DNS should support configurable pod DNS nameservers [Conformance]", func(t *testing.T, w *world) {
		p := toolPod("own-dns", "", nil, "serve", "http:8080")
		p.Spec.DNSPolicy = corev1.DNSNone
		p.Spec.DNSConfig = &corev1.PodDNSConfig{
			Nameservers: []string{"1.1.1.1"}, Searches: []string{"resolv.conf.local"},
			Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("2")}, {Name: "edns0"}},
		}
		runPods(t, w.c, w.ns, p)
		got, err := inPod(t.Context(), w.c, w.ns, "own-dns", "cat", "/etc/resolv.conf")
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(got) {
			lines = append(lines, strings.TrimSpace(line))
		}
		slices.Sort(lines)
		if wanted := []string{"nameserver 1.1.1.1", "options ndots:2 edns0", "search resolv.conf.local"}; !slices.Equal(lines, wanted) {
			t.Errorf("resolv.conf is %q", lines)
		}
	}},
}

func named(p *corev1.Pod, hostname, subdomain string) *corev1.Pod {
	p.Spec.Hostname, p.Spec.Subdomain = hostname, subdomain
	return p
}

// wantHostsEntry checks that the pod's own hosts file names its address so.
func (w *world) wantHostsEntry(t *testing.T, p *corev1.Pod, names ...string) {
	t.Helper()
	hosts, err := inPod(t.Context(), w.c, w.ns, p.Name, "cat", "/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(hosts) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == p.Status.PodIP {
			for _, name := range names {
				if !slices.Contains(f[1:], name) {
					t.Errorf("/etc/hosts of %s lacks %s: %q", p.Name, name, line)
				}
			}
			return
		}
	}
	t.Errorf("/etc/hosts of %s does not name %s:\n%s", p.Name, p.Status.PodIP, hosts)
}

// endpointsOf are the addresses of a service's Endpoints and of its
// EndpointSlices; nil where there is no such object.
func (w *world) endpointsOf(t *testing.T, service string) (endpoints, slicesOf []string, err error) {
	ep, err := w.c.Client.CoreV1().Endpoints(w.ns).Get(t.Context(), service, metav1.GetOptions{})
	if err == nil {
		endpoints = []string{}
		for _, s := range ep.Subsets {
			for _, p := range s.Ports {
				for _, a := range s.Addresses {
					endpoints = append(endpoints, fmt.Sprintf("%s %s:%d", p.Name, a.IP, p.Port))
				}
			}
		}
	} else if !apierrors.IsNotFound(err) {
		return nil, nil, err
	}
	all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		return nil, nil, err
	}
	for _, s := range all.Items {
		if slicesOf == nil {
			slicesOf = []string{}
		}
		for _, p := range s.Ports {
			for _, e := range s.Endpoints {
				if ptr.Deref(e.Conditions.Ready, true) {
					slicesOf = append(slicesOf, fmt.Sprintf("%s %s:%d", *p.Name, e.Addresses[0], *p.Port))
				}
			}
		}
	}
	slices.Sort(endpoints)
	slices.Sort(slicesOf)
	return endpoints, slicesOf, nil
}

// wantEndpoints waits until both kinds of object name these; nil: are gone.
func (w *world) wantEndpoints(t *testing.T, service string, wanted []string) {
	t.Helper()
	slices.Sort(wanted)
	eventually(t, "endpoints of "+service, func() error {
		endpoints, inSlices, err := w.endpointsOf(t, service)
		if err != nil {
			return err
		}
		for _, got := range [][]string{endpoints, inSlices} {
			if (got == nil) != (wanted == nil) || !slices.Equal(got, wanted) {
				return fmt.Errorf("Endpoints %#v, EndpointSlices %#v, wanted %#v", endpoints, inSlices, wanted)
			}
		}
		return nil
	})
}

func (w *world) at(port string, number int, pods ...*corev1.Pod) []string {
	all := []string{}
	for _, p := range pods {
		all = append(all, fmt.Sprintf("%s %s:%d", port, p.Status.PodIP, number))
	}
	return all
}

var endpointObjects = []behaviour{
	{"endpoints and slices of pods", "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "matched"}
		w.service(t, "matched", func(s *corev1.Service) {
			s.Spec.Selector = labels
			s.Spec.Ports = []corev1.ServicePort{{Name: "number", Port: 80, TargetPort: intstr.FromInt32(8080)}, {Name: "name", Port: 81, TargetPort: intstr.FromString("by-name")}}
		})
		pod := toolPod("matched-1", "", labels, "serve", "http:8080")
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "by-name", ContainerPort: 8080}}
		second := toolPod("matched-2", "", labels, "serve", "http:8080")
		pods := runPods(t, w.c, w.ns, pod, second)
		w.wantEndpoints(t, "matched", slices.Concat(w.at("number", 8080, pods...), w.at("name", 8080, pods[0])))
		all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=matched"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all.Items {
			if s.Labels[discoveryv1.LabelManagedBy] != "endpointslice-controller.k8s.io" || !metav1.IsControlledBy(&s, w.get(t, "matched")) {
				t.Errorf("slice %s is not the controller's: %+v", s.Name, s.ObjectMeta)
			}
			for _, e := range s.Endpoints {
				if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || e.NodeName == nil {
					t.Errorf("endpoint %+v names no pod or node", e)
				}
			}
		}
		deletePod(t, w.c, w.ns, "matched-1")
		w.wantEndpoints(t, "matched", w.at("number", 8080, pods[1]))
		if err := w.deleteServices(t, "of=matched"); err != nil {
			t.Fatal(err)
		}
		w.wantEndpoints(t, "matched", nil)
	}},
	{"slices of no pods", "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "lonely", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} })
		w.wantEndpoints(t, "lonely", []string{})
		if err := w.deleteServices(t, "of=lonely"); err != nil {
			t.Fatal(err)
		}
		w.wantEndpoints(t, "lonely", nil)
	}},
	{"endpoints of pods", "[sig-network] EndpointsController should create Endpoints for Pods matching a Service [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "counted"}
		w.service(t, "counted", func(s *corev1.Service) { s.Spec.Selector = labels })
		first := runPods(t, w.c, w.ns, toolPod("counted-1", w.c.Hosts[0].Name, labels, "serve", "http:8080"))
		w.wantEndpoints(t, "counted", w.at("http", 8080, first...))
		second := runPods(t, w.c, w.ns, toolPod("counted-2", w.c.Hosts[1].Name, labels, "serve", "http:8080"))
		w.wantEndpoints(t, "counted", w.at("http", 8080, first[0], second[0]))
		deletePod(t, w.c, w.ns, "counted-1")
		w.wantEndpoints(t, "counted", w.at("http", 8080, second...))
	}},
	{"endpoints of no pods", "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "unmatched", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} })
		w.wantEndpoints(t, "unmatched", []string{})
		if err := w.deleteServices(t, "of=unmatched"); err != nil {
			t.Fatal(err)
		}
		w.wantEndpoints(t, "unmatched", nil)
	}},
	{"mirrored endpoints", "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete [Conformance]", showMirroring},
	{"lifecycle of endpoints", "[sig-network] Endpoints should test the lifecycle of an Endpoint [Conformance]", showEndpointsLifecycle},
	{"operations on slices", "[sig-network] EndpointSlice should support creating EndpointSlice API operations [Conformance]", showSliceOperations},
}

func (w *world) get(t *testing.T, service string) *corev1.Service {
	t.Helper()
	s, err := w.c.Client.CoreV1().Services(w.ns).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func handMade(name string, ip string, port int32) *corev1.Endpoints {
	return &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"by": name}},
		Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: ip}}, Ports: []corev1.EndpointPort{{Name: "http", Port: port}}}},
	}
}

func showMirroring(t *testing.T, w *world) {
	s := w.service(t, "mirrored", func(s *corev1.Service) { s.Spec.Selector = nil })
	endpoints := w.c.Client.CoreV1().Endpoints(w.ns)
	ep, err := endpoints.Create(t.Context(), handMade("mirrored", w.pods[0].Status.PodIP, 8080), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, "mirrored", w.at("http", 8080, w.pods[0]))
	all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=mirrored"})
	if err != nil || len(all.Items) != 1 || all.Items[0].Labels[discoveryv1.LabelManagedBy] != "endpointslicemirroring-controller.k8s.io" || all.Items[0].Labels["by"] != "mirrored" {
		t.Fatalf("the slices are %+v (%v)", all, err)
	}
	w.wantAnswers(t, w.pods[2], []string{"net-0"}, "get", "-n", "5", pageAt(s.Spec.ClusterIP, 80))
	ep.Subsets[0].Addresses[0].IP, ep.Subsets[0].Ports[0].Port = w.pods[1].Status.PodIP, 8083
	if _, err := endpoints.Update(t.Context(), ep, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, "mirrored", w.at("http", 8083, w.pods[1]))
	w.wantAnswers(t, w.pods[2], []string{"net-1"}, "get", "-n", "5", pageAt(s.Spec.ClusterIP, 80))
	if err := endpoints.Delete(t.Context(), "mirrored", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, "mirrored", nil)
}

func showEndpointsLifecycle(t *testing.T, w *world) {
	endpoints := w.c.Client.CoreV1().Endpoints(w.ns)
	selected := metav1.ListOptions{LabelSelector: "by=cycle"}
	watching, err := endpoints.Watch(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	if _, err := endpoints.Create(t.Context(), handMade("cycle", "10.0.0.24", 80), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ep := awaitEvent(t, watching, watch.Added, func(*corev1.Endpoints) bool { return true })
	everywhere, err := w.c.Client.CoreV1().Endpoints("").List(t.Context(), selected)
	if err != nil || len(everywhere.Items) != 1 || everywhere.Items[0].UID != ep.UID {
		t.Fatalf("listed are %+v (%v)", everywhere, err)
	}
	ep.Labels["updated"] = "yes"
	if _, err := endpoints.Update(t.Context(), ep, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *corev1.Endpoints) bool { return e.Labels["updated"] == "yes" })
	patch := `{"metadata":{"labels":{"patched":"yes"}},"subsets":[{"addresses":[{"ip":"10.0.0.25"}],"ports":[{"name":"http","port":81}]}]}`
	if _, err := endpoints.Patch(t.Context(), "cycle", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *corev1.Endpoints) bool { return e.Labels["patched"] == "yes" })
	got, err := endpoints.Get(t.Context(), "cycle", metav1.GetOptions{})
	if err != nil || got.Subsets[0].Addresses[0].IP != "10.0.0.25" || got.Subsets[0].Ports[0].Port != 81 || got.Labels["updated"] != "yes" {
		t.Fatalf("the patched object is %+v (%v)", got, err)
	}
	if err := endpoints.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Deleted, func(*corev1.Endpoints) bool { return true })
	if _, err := endpoints.Get(t.Context(), "cycle", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("afterwards: %v", err)
	}
}

func showSliceOperations(t *testing.T, w *world) {
	groups, err := w.c.Client.Discovery().ServerGroups()
	if err != nil || !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool {
		return g.Name == "discovery.k8s.io" && g.PreferredVersion.Version == "v1"
	}) {
		t.Fatalf("the groups are %+v (%v)", groups, err)
	}
	resources, err := w.c.Client.Discovery().ServerResourcesForGroupVersion("discovery.k8s.io/v1")
	if err != nil || !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == "endpointslices" && r.Kind == "EndpointSlice" }) {
		t.Fatalf("the resources are %+v (%v)", resources, err)
	}
	api := w.c.Client.DiscoveryV1().EndpointSlices(w.ns)
	selected := metav1.ListOptions{LabelSelector: "operations=yes"}
	watching, err := api.Watch(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	var made []*discoveryv1.EndpointSlice
	for i := range 3 {
		s, err := api.Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{GenerateName: "slice-", Labels: map[string]string{"operations": "yes"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		awaitEvent(t, watching, watch.Added, func(e *discoveryv1.EndpointSlice) bool { return e.UID == s.UID })
		made = append(made, s)
	}
	if got, err := api.Get(t.Context(), made[0].Name, metav1.GetOptions{}); err != nil || got.UID != made[0].UID {
		t.Fatalf("got %+v (%v)", got, err)
	}
	for _, ns := range []string{w.ns, ""} {
		if all, err := w.c.Client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), selected); err != nil || len(all.Items) != 3 {
			t.Fatalf("in %q are %+v (%v)", ns, all, err)
		}
	}
	if s, err := api.Patch(t.Context(), made[0].Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil || s.Annotations["patched"] != "yes" {
		t.Fatalf("patched: %+v (%v)", s, err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *discoveryv1.EndpointSlice) bool { return e.Annotations["patched"] == "yes" })
	made[1].Annotations, made[1].Endpoints[0].Addresses = map[string]string{"updated": "yes"}, []string{"10.0.0.99"}
	if s, err := api.Update(t.Context(), made[1], metav1.UpdateOptions{}); err != nil || s.Endpoints[0].Addresses[0] != "10.0.0.99" {
		t.Fatalf("updated: %+v (%v)", s, err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *discoveryv1.EndpointSlice) bool { return e.Annotations["updated"] == "yes" })
	if err := api.Delete(t.Context(), made[2].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Deleted, func(e *discoveryv1.EndpointSlice) bool { return e.UID == made[2].UID })
	if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		awaitEvent(t, watching, watch.Deleted, func(*discoveryv1.EndpointSlice) bool { return true })
	}
	if all, err := api.List(t.Context(), selected); err != nil || len(all.Items) != 0 {
		t.Errorf("left are %+v (%v)", all, err)
	}
}

var apiProxy = []behaviour{
	{"proxy", "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service Proxy [Conformance]", func(t *testing.T, w *world) {
		w.wantProxied(t, "proxied", "")
	}},
	{"proxy with a path", "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service ProxyWithPath [Conformance]", func(t *testing.T, w *world) {
		w.wantProxied(t, "proxied-path", "echo/some/path/with/METHOD")
	}},
	{"proxy by port and scheme", "[sig-network] Proxy version v1 should proxy through a service and a pod [Conformance]", showProxyPorts},
}

// echoed is what the tool's server saw of a request.
type echoed struct{ Method, Path, Query, Body string }

// proxyClient speaks HTTP to the API server, and follows no redirect.
func (w *world) proxyClient(t *testing.T) (*http.Client, string) {
	t.Helper()
	config, err := w.c.RESTConfig("")
	if err != nil {
		t.Fatal(err)
	}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return client, config.Host
}

func through(ctx context.Context, client *http.Client, method, at, body string) (*http.Response, string, error) {
	request, err := http.NewRequestWithContext(ctx, method, at, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	answer, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	return answer, string(raw), err
}

// wantProxied sends every method to a pod and to a service, below a path or to
// the proxy itself.
func (w *world) wantProxied(t *testing.T, name, path string) {
	p := toolPod(name, "", map[string]string{"app": name}, "serve", "http:8080")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	runPods(t, w.c, w.ns, p)
	w.service(t, name, func(s *corev1.Service) { s.Spec.Selector = p.Labels })
	w.wantEndpoints(t, name, []string{"http " + w.podIP(t, name) + ":8080"})
	client, host := w.proxyClient(t)
	eventually(t, name+" listens", func() error {
		answer, body, err := through(t.Context(), client, http.MethodGet, host+"/api/v1/namespaces/"+w.ns+"/pods/"+name+"/proxy/", "")
		if err == nil && answer.StatusCode != http.StatusOK {
			err = errors.New(answer.Status + ": " + body)
		}
		return err
	})
	for _, kind := range []string{"pods/" + name, "services/" + name} {
		base := host + "/api/v1/namespaces/" + w.ns + "/" + kind + "/proxy"
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
			at := base
			if path != "" {
				at += "/" + strings.Replace(path, "METHOD", method, 1) + "?method=" + method
			}
			answer, body, err := through(t.Context(), client, method, at, "a body")
			if err != nil {
				t.Fatal(err)
			}
			if path == "" && (method == "GET" || method == "HEAD") {
				if to := answer.Header.Get("Location"); answer.StatusCode != http.StatusMovedPermanently || !strings.HasSuffix(to, "/proxy/") {
					t.Errorf("%s %s: %s to %q", method, at, answer.Status, to)
				}
				if answer, body, err = through(t.Context(), client, method, at+"/", ""); err != nil {
					t.Fatal(err)
				}
			}
			if answer.StatusCode != http.StatusOK {
				t.Errorf("%s %s: %s: %s", method, at, answer.Status, body)
				continue
			}
			switch {
			case method == "HEAD":
				if path != "" && answer.Header.Get("X-Method") != "HEAD" {
					t.Errorf("HEAD %s arrived as %q", at, answer.Header.Get("X-Method"))
				}
			case path == "":
				if body != name {
					t.Errorf("%s %s: %q", method, at, body)
				}
			default:
				var got echoed
				if err := json.Unmarshal([]byte(body), &got); err != nil {
					t.Fatalf("%s %s: %q: %v", method, at, body, err)
				}
				if wanted := (echoed{method, "/" + strings.Replace(path, "METHOD", method, 1), "method=" + method, "a body"}); got != wanted {
					t.Errorf("%s %s: the pod saw %+v", method, at, got)
				}
			}
		}
	}
}

func (w *world) podIP(t *testing.T, name string) string {
	t.Helper()
	p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p.Status.PodIP
}

func showProxyPorts(t *testing.T, w *world) {
	labels := map[string]string{"app": "porter"}
	link := `<a href="/rewriteme">test</a>`
	p := toolPod("porter", "", labels, "serve", "http:1080="+link, "http:160=foo", "http:162=bar", "https:443="+link, "https:460=tls baz", "https:462=tls qux")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "dest1", ContainerPort: 160}, {Name: "dest2", ContainerPort: 162}, {Name: "tlsdest1", ContainerPort: 460}, {Name: "tlsdest2", ContainerPort: 462}}
	runPods(t, w.c, w.ns, p)
	w.service(t, "porter", func(s *corev1.Service) {
		s.Spec.Selector = labels
		s.Spec.Ports = []corev1.ServicePort{
			{Name: "portname1", Port: 80, TargetPort: intstr.FromString("dest1")}, {Name: "portname2", Port: 81, TargetPort: intstr.FromInt32(162)},
			{Name: "tlsportname1", Port: 443, TargetPort: intstr.FromString("tlsdest1")}, {Name: "tlsportname2", Port: 444, TargetPort: intstr.FromInt32(462)},
		}
	})
	client, host := w.proxyClient(t)
	ns := "/api/v1/namespaces/" + w.ns
	wanted := map[string]string{}
	for name, text := range map[string]string{
		"porter:portname1": "foo", "http:porter:portname1": "foo", "porter:80": "foo", "porter:portname2": "bar", "http:porter:portname2": "bar", "porter:81": "bar",
		"https:porter:tlsportname1": "tls baz", "https:porter:443": "tls baz", "https:porter:tlsportname2": "tls qux", "https:porter:444": "tls qux",
	} {
		wanted[ns+"/services/"+name+"/proxy/"] = text
	}
	for name, text := range map[string]string{
		"porter:160": "foo", "http:porter:160": "foo", "porter:162": "bar", "http:porter:162": "bar", "https:porter:460": "tls baz", "https:porter:462": "tls qux",
		"porter:1080": "", "http:porter:1080": "", "https:porter:443": "",
	} {
		path := ns + "/pods/" + name + "/proxy/"
		if text == "" {
			text = `<a href="` + path + `rewriteme">test</a>`
		}
		wanted[path] = text
	}
	for path, text := range wanted {
		eventually(t, path, func() error {
			answer, body, err := through(t.Context(), client, http.MethodGet, host+path, "")
			if err == nil && (answer.StatusCode != http.StatusOK || body != text) {
				err = errors.New(answer.Status + ": " + body)
			}
			return err
		})
	}
}
