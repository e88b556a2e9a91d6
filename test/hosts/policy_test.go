package hosts

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"conclave/test/cluster"
)

// matrix is a cluster's pods of two namespaces, and one in a host's network:
// everybody asks everybody, on every port, directly and through services.
type matrix struct {
	c       *cluster.Cluster
	red     string // the namespaces
	blue    string
	pods    []*corev1.Pod
	host    *corev1.Pod // in the network of the first host
	servers []server
}

// server is one thing to ask.
type server struct {
	pod    *corev1.Pod // that answers
	kind   string      // http or udp
	port   string      // by which policies know it
	at     string
	direct bool
}

// The ports of each pod.
const (
	webPort   = 8080 // named web
	otherPort = 8090
	udpPort   = 8053
)

func TestNetworkPolicy(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	m := &matrix{c: c, red: namespace(t, c)}
	m.blue = m.red + "-blue"
	kubectl(t, c, "create", "namespace", m.blue)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := c.Kubectl(ctx, "delete", "namespace", m.blue, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	kubectl(t, c, "label", "namespace", m.blue, "colour=blue")
	m.start(t)

	all := func(from, to *corev1.Pod, port string) bool { return true }
	is := func(p *corev1.Pod, labels ...string) bool {
		for _, l := range labels {
			key, value, _ := strings.Cut(l, "=")
			if p.Labels[key] != value {
				return false
			}
		}
		return true
	}
	red := func(p *corev1.Pod) bool { return p.Namespace == m.red && !p.Spec.HostNetwork }
	blue := func(p *corev1.Pod) bool { return p.Namespace == m.blue }
	same := func(from, to *corev1.Pod) bool { return from.Name == to.Name && from.Namespace == to.Namespace }
	onNode := func(from, to *corev1.Pod) bool {
		return (from.Spec.HostNetwork || to.Spec.HostNetwork) && from.Spec.NodeName == to.Spec.NodeName
	}

	var cases int
	for _, step := range []struct {
		name     string
		policies string // applied to the red namespace
		allowed  func(from, to *corev1.Pod, port string) bool
	}{
		{"no policy", "", all},
		{"nothing may come in", policy("deny", "{podSelector: {}, policyTypes: [Ingress]}"), func(from, to *corev1.Pod, port string) bool { return !red(to) }},
		{"an empty rule lets everything in", policy("all", "{podSelector: {}, ingress: [{}]}"), all},
		{"pods of the namespace", policy("near", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"),
			func(from, to *corev1.Pod, port string) bool { return !red(to) || red(from) }},
		{"another namespace by its labels, a named port", policy("far", "{podSelector: {matchLabels: {app: one}}, ingress: [{from: [{namespaceSelector: {matchLabels: {colour: blue}}}], ports: [{port: web}]}]}"),
			func(from, to *corev1.Pod, port string) bool {
				return !red(to) || !is(to, "app=one") || blue(from) && port == "web"
			}},
		{"pods of another namespace, a port of UDP", policy("both", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {colour: blue}}, podSelector: {matchLabels: {app: two}}}], ports: [{port: 8053, protocol: UDP}]}]}"),
			func(from, to *corev1.Pod, port string) bool {
				return !red(to) || blue(from) && is(from, "app=two") && port == "udp"
			}},
		{"policies add up, a range of ports", policy("web", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: one}}}], ports: [{port: 8070, endPort: 8085}]}]}") +
			policy("other", "{podSelector: {matchLabels: {app: two}}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 8090}]}]}"),
			func(from, to *corev1.Pod, port string) bool {
				return !red(to) || red(from) && is(from, "app=one") && port == "web" || is(to, "app=two") && !from.Spec.HostNetwork && port == "other"
			}},
		{"an ipBlock with an exception", policy("block", fmt.Sprintf("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [%s/32]}}]}]}", m.pods[0].Status.PodIP)),
			func(from, to *corev1.Pod, port string) bool { return !red(to) || !same(from, m.pods[0]) }},
		{"nothing may go out", policy("mute", "{podSelector: {}, policyTypes: [Egress]}"), func(from, to *corev1.Pod, port string) bool { return !red(from) }},
		{"what may go out by labels and named port", policy("out", "{podSelector: {matchLabels: {app: one}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {colour: blue}}, podSelector: {matchLabels: {app: one}}}], ports: [{port: web}]}, {to: [{podSelector: {}}], ports: [{port: 8053, protocol: UDP}]}]}"),
			func(from, to *corev1.Pod, port string) bool {
				return !red(from) || !is(from, "app=one") || blue(to) && is(to, "app=one") && port == "web" || red(to) && port == "udp"
			}},
		{"both directions", policy("in", "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: one}}}]}]}") +
			policy("out", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: two}}}]}]}"),
			func(from, to *corev1.Pod, port string) bool {
				return (!red(to) || red(from) && is(from, "app=one")) && (!red(from) || red(to) && is(to, "app=two"))
			}},
	} {
		t.Run(step.name, func(t *testing.T) {
			if step.policies != "" {
				apply(t, c, m.red, step.policies)
			}
			cases += m.check(t, func(from, to *corev1.Pod, port string) bool {
				return same(from, to) || onNode(from, to) || step.allowed(from, to, port)
			})
			kubectl(t, c, "delete", "networkpolicy", "-n", m.red, "--all")
		})
	}
	t.Logf("%d cases", cases)
	if cases < 100 {
		t.Errorf("only %d cases", cases)
	}

	t.Run("DNS", func(t *testing.T) {
		apply(t, c, m.red, policy("mute", "{podSelector: {}, policyTypes: [Egress]}"))
		w := &world{c: c}
		w.wantFailure(t, m.pods[0], "timeout", "dig", "A", "kubernetes.default.svc.cluster.local.")
		apply(t, c, m.red, policy("dns", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]}"))
		w.wantAnswers(t, m.pods[0], []string{"A 10.96.0.1"}, "dig", "A", "kubernetes.default.svc.cluster.local.")
		w.wantAnswers(t, m.pods[0], []string{"A 10.96.0.1"}, "dig", "-tcp", "A", "kubernetes.default.svc.cluster.local.")
		kubectl(t, c, "delete", "networkpolicy", "-n", m.red, "--all")
	})
	t.Run("probes pass, and a pod that starts is isolated", func(t *testing.T) {
		apply(t, c, m.red, policy("deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"))
		p := m.pod("late", c.Hosts[1].Name, "late")
		p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("web")}}, PeriodSeconds: 1}
		late := runPods(t, c, m.red, p)[0]
		for _, from := range m.pods {
			if got := m.ask(t, from, "http:"+net.JoinHostPort(late.Status.PodIP, fmt.Sprint(webPort))); got[0] != "-" {
				t.Errorf("%s/%s reached it: %s", from.Namespace, from.Name, got)
			}
		}
	})
	t.Run("kubectl", func(t *testing.T) {
		mustContain(t, "the table", kubectl(t, c, "get", "netpol", "-n", m.red), "NAME", "POD-SELECTOR", "deny", "<none>")
		mustContain(t, "the description", kubectl(t, c, "describe", "netpol", "deny", "-n", m.red), "Allowing ingress traffic:", "Policy Types: Ingress, Egress")
	})
}

func policy(name, spec string) string {
	return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: " + name + "}\nspec: " + spec + "\n---\n"
}

func (m *matrix) pod(name, node, app string) *corev1.Pod {
	p := toolPod(name, node, map[string]string{"app": app}, "serve",
		fmt.Sprintf("http:%d=%s", webPort, name), fmt.Sprintf("http:%d=%s", otherPort, name), fmt.Sprintf("udp:%d=%s", udpPort, name))
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "web", ContainerPort: webPort}}
	return p
}

// start runs two pods of each namespace on one node, and more on the others.
func (m *matrix) start(t *testing.T) {
	hosts := m.c.Hosts
	m.pods = append(m.pods, runPods(t, m.c, m.red, m.pod("red-1", hosts[0].Name, "one"), m.pod("red-2", hosts[0].Name, "two"), m.pod("red-3", hosts[1].Name, "one"))...)
	m.pods = append(m.pods, runPods(t, m.c, m.blue, m.pod("blue-1", hosts[0].Name, "one"), m.pod("blue-2", hosts[1].Name, "two"))...)
	onHost := toolPod("host", hosts[0].Name, map[string]string{"app": "one"}, "serve", "http:18099")
	onHost.Spec.HostNetwork = true
	m.host = runPods(t, m.c, m.red, onHost)[0]
	ports := []struct {
		kind, name string
		number     int32
	}{{"http", "web", webPort}, {"http", "other", otherPort}, {"udp", "udp", udpPort}}
	for _, p := range m.pods {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: p.Name}}
		kubectl(t, m.c, "label", "pod", "-n", p.Namespace, p.Name, "name="+p.Name)
		s.Spec.Selector = map[string]string{"name": p.Name}
		for i, port := range ports {
			proto := corev1.ProtocolTCP
			if port.kind == "udp" {
				proto = corev1.ProtocolUDP
			}
			// A service's port is not its pod's: policies speak of the pod's.
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: port.name, Protocol: proto, Port: int32(100 + i), TargetPort: intstr.FromInt32(port.number)})
		}
		s, err := m.c.Client.CoreV1().Services(p.Namespace).Create(t.Context(), s, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for i, port := range ports {
			m.servers = append(m.servers,
				server{p, port.kind, port.name, net.JoinHostPort(p.Status.PodIP, fmt.Sprint(port.number)), true},
				server{p, port.kind, port.name, net.JoinHostPort(s.Spec.ClusterIP, fmt.Sprint(100+i)), false})
		}
	}
}

// ask returns who answers each of these, "-" for nobody.
func (m *matrix) ask(t *testing.T, from *corev1.Pod, targets ...string) []string {
	t.Helper()
	out, err := inPod(t.Context(), m.c, from.Namespace, from.Name, append([]string{"/tool", "reach"}, targets...)...)
	if err != nil {
		t.Error(err)
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

// check asks everybody for everything until the answers are those that are
// allowed, and returns how many there were.
func (m *matrix) check(t *testing.T, allowed func(from, to *corev1.Pod, port string) bool) int {
	t.Helper()
	var targets []string
	for _, s := range m.servers {
		targets = append(targets, s.kind+":"+s.at)
	}
	sources := append(slices.Clone(m.pods), m.host)
	cases := 0
	eventually(t, "all packets go where they may, and nowhere else", func() error {
		answers := make([][]string, len(sources))
		errs := make([]error, len(sources))
		var all sync.WaitGroup
		for i, from := range sources {
			all.Go(func() {
				out, err := inPod(t.Context(), m.c, from.Namespace, from.Name, append([]string{"/tool", "reach"}, targets...)...)
				answers[i], errs[i] = strings.Split(strings.TrimSpace(out), "\n"), err
			})
		}
		all.Wait()
		cases = 0
		var wrong []string
		for i, from := range sources {
			if errs[i] != nil {
				return errs[i]
			}
			if len(answers[i]) != len(m.servers) {
				return fmt.Errorf("%d answers for %d questions: %q", len(answers[i]), len(m.servers), answers[i])
			}
			for j, s := range m.servers {
				want := "-"
				if allowed(from, s.pod, s.port) {
					want = s.pod.Name
				}
				cases++
				if got := answers[i][j]; got != want {
					wrong = append(wrong, fmt.Sprintf("%s to %s (%s, %s, directly %v): %s, not %s", from.Name, s.pod.Name, s.port, s.at, s.direct, got, want))
				}
			}
		}
		if len(wrong) > 0 {
			return fmt.Errorf("%d of %d: %s", len(wrong), cases, strings.Join(wrong[:min(len(wrong), 8)], "; "))
		}
		return nil
	})
	return cases
}
