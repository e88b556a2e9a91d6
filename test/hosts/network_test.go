package hosts

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
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

// runOnEach runs a pod with labels by its number on each host, and one in the
// host's own network.
func (w *world) runOnEach(t *testing.T, labels func(i int) map[string]string) {
	t.Helper()
	var pods []*corev1.Pod
	for i, h := range w.c.Hosts {
		pods = append(pods, toolPod(fmt.Sprintf("net-%d", i), h.Name, labels(i), "serve", "http:8080", "http:8083", "udp:8081"))
		onHost := toolPod(fmt.Sprintf("host-%d", i), h.Name, nil, "serve", "http:18080")
		onHost.Spec.HostNetwork, onHost.Spec.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
		pods = append(pods, onHost)
	}
	for i, p := range runPods(t, w.c, w.ns, pods...) {
		if i%2 == 0 {
			w.pods = append(w.pods, p)
		} else {
			w.hosts = append(w.hosts, p)
		}
	}
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
	w.runOnEach(t, func(int) map[string]string { return netLabels })
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
