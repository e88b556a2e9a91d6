package hosts

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

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
	kind   string      // http, udp or icmp
	port   string      // by which policies know it
	at     string
	direct bool
}

// says is what an answer is.
func (s server) says() string {
	if s.kind == "icmp" {
		return "pong"
	}
	return s.pod.Name
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
	t.Run("what a pod sends first is judged too", func(t *testing.T) {
		// The first thing that these do is what they may not; on both nodes, to
		// pods of both.
		var early []*corev1.Pod
		for i := range 6 {
			args := []string{"reach"}
			for _, to := range m.pods {
				args = append(args, fmt.Sprintf("http:%s:%d", to.Status.PodIP, webPort), fmt.Sprintf("udp:%s:%d", to.Status.PodIP, udpPort), "icmp:"+to.Status.PodIP)
			}
			p := toolPod(fmt.Sprintf("early-%d", i), c.Hosts[i%2].Name, map[string]string{"app": "early"}, args...)
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			putPod(t, c, m.red, p)
			early = append(early, p)
		}
		for _, p := range early {
			var ip string
			eventually(t, p.Name+" ends", func() error {
				is, err := c.Client.CoreV1().Pods(m.red).Get(t.Context(), p.Name, metav1.GetOptions{})
				if err == nil && is.Status.Phase != corev1.PodSucceeded {
					err = fmt.Errorf("it is %s", is.Status.Phase)
				}
				if err == nil {
					ip = is.Status.PodIP
				}
				return err
			})
			if out := kubectl(t, c, "logs", "-n", m.red, p.Name); strings.Trim(out, "-\n") != "" {
				t.Errorf("%s was answered:\n%s", p.Name, out)
			}
			for _, to := range m.pods {
				if seen := kubectl(t, c, "exec", "-n", to.Namespace, to.Name, "-c", "sniff", "--", "cat", "/seen"); ip == "" || strings.Contains(seen, " "+ip+" ") {
					t.Errorf("packets of %s (%s) arrived at %s", p.Name, ip, to.Name)
				}
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
	p.Spec.InitContainers = []corev1.Container{{Name: "sniff", Image: toolImage, Args: []string{"sniff", "/seen"}, RestartPolicy: ptr.To(corev1.ContainerRestartPolicyAlways)}}
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
		m.servers = append(m.servers, server{p, "icmp", "icmp", p.Status.PodIP, true})
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
	round := func() error {
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
					want = s.says()
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
	}
	eventually(t, "all that may be answered is, and nothing else", round)
	// Once more, looking at what arrives: an answer that does not come does not
	// say that the question did not.
	for _, p := range m.pods {
		m.sniffed(t, p)
	}
	if err := round(); err != nil {
		t.Error(err)
	}
	for _, p := range m.pods {
		missing := map[string]bool{} // what must arrive
		for _, from := range m.pods {
			for _, s := range m.servers {
				if s.pod == p && from != p && allowed(from, p, s.port) {
					missing[from.Name+" "+s.port] = true
				}
			}
		}
		eventually(t, "packets arrive at "+p.Name, func() error {
			for _, line := range m.sniffed(t, p) {
				from, port := m.sender(p, line)
				if from == nil {
					continue
				}
				delete(missing, from.Name+" "+port)
				if !allowed(from, p, port) {
					t.Errorf("at %s/%s arrives what may not: %s, of %s/%s", p.Namespace, p.Name, line, from.Namespace, from.Name)
				}
			}
			if len(missing) > 0 {
				return fmt.Errorf("these have not: %v", slices.Sorted(maps.Keys(missing)))
			}
			return nil
		})
	}
	return cases
}

// sniffed returns what has arrived at a pod since it was called last.
func (m *matrix) sniffed(t *testing.T, p *corev1.Pod) []string {
	t.Helper()
	// One reader: what is written between the two commands is not lost, because
	// the file is moved on by as much as was read.
	out, err := m.c.Kubectl(t.Context(), "exec", "-n", p.Namespace, p.Name, "-c", "sniff", "--", "sh", "-c", `had=$(cat /had 2>/dev/null || echo 0); tail -n +$((had+1)) /seen | tee /new; echo $((had+$(wc -l < /new))) > /had`)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(out), "\n")
}

// sender is who sent a packet that arrived at a pod, and to which port, as
// policies call it; nobody if it came from the pod's own node, which always may,
// or is none of the matrix.
func (m *matrix) sender(to *corev1.Pod, line string) (from *corev1.Pod, port string) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return nil, ""
	}
	port = map[string]string{"tcp " + fmt.Sprint(webPort): "web", "tcp " + fmt.Sprint(otherPort): "other", "udp " + fmt.Sprint(udpPort): "udp", "icmp 0": "icmp"}[f[0]+" "+f[2]]
	if port == "" {
		return nil, ""
	}
	for _, p := range m.pods {
		if p.Status.PodIP == f[1] {
			return p, port
		}
	}
	node := func(p *corev1.Pod) string { return p.Status.PodIP[:strings.LastIndexByte(p.Status.PodIP, '.')] + ".1" }
	if f[1] == node(m.pods[0]) && f[1] != node(to) { // the first host, at which the host's pod is
		return m.host, port
	}
	return nil, ""
}
