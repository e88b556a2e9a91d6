package network

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// labelled is a pod with labels, as it is before it has an address.
func labelled(namespace, name string, labels map[string]string, ports ...corev1.ContainerPort) *corev1.Pod {
	p := podNamed(name, ports...)
	p.Namespace, p.UID, p.Labels = namespace, types.UID("uid-"+namespace+"-"+name), labels
	return p
}

// run attaches a pod; once it has its address, everybody may know of it.
func (all nodes) run(n *testNode, p *corev1.Pod) *machine {
	n.t.Helper()
	p.Spec.NodeName = n.config.Name
	a := n.do(order{Do: "attach", Resource: "pods", Object: encode(n.t, p)})
	p.Status.PodIP = a.IPs[0].String()
	p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	all.put(p)
	m := &machine{t: n.t, path: a.Netns, addr: a.IPs[0]}
	m.serve(p.Name, 80)
	return m
}

// expectDropped asserts that nothing comes back, for as long as an answer would
// never take.
func (m *machine) expectDropped(network, to string) {
	m.t.Helper()
	d := net.Dialer{Timeout: 400 * time.Millisecond}
	var c net.Conn
	err := inNamespace(m.path, func() (err error) { c, err = d.Dial(network, to); return err })
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(d.Timeout))
		b := make([]byte, 100)
		if _, err = c.Write([]byte("hello\n")); err == nil {
			_, err = c.Read(b)
		}
		if err == nil {
			m.t.Errorf("%s %s: %s answered", network, to, b)
		}
	}
	if late := net.Error(nil); !errors.As(err, &late) || !late.Timeout() {
		m.t.Errorf("%s %s: %v; want no answer", network, to, err)
	}
}

func namespaceOf(name string, labels map[string]string) *corev1.Namespace {
	labels[corev1.LabelMetadataName] = name
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
}

// Policies select pods by what they are now, on one node and across nodes,
// whatever was open before.
func TestNetworkPolicies(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	all.put(namespaceOf("shop", map[string]string{}), namespaceOf("ops", map[string]string{"team": "ops"}))
	web := labelled("shop", "web", map[string]string{"app": "web"}, corev1.ContainerPort{Name: "http", ContainerPort: 80})
	near, far := labelled("shop", "near", map[string]string{"app": "near"}), labelled("ops", "far", map[string]string{"app": "far"})
	w, n, f := all.run(all[0], web), all.run(all[0], near), all.run(all[1], far)
	outside := l.host(200)
	outside.serve("outside", 80)
	at := w.addr.String() + ":80"
	for _, network := range protocols {
		n.expect(network, at, "web", "")
		f.expect(network, at, "web", "")
	}
	open, err := f.dial("tcp4", at, "")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, _, err := exchange(open); err != nil {
		t.Fatal(err)
	}

	deny := policyYAML(t, "shop", "deny", "{podSelector: {}, policyTypes: [Ingress]}")
	all.put(deny)
	t.Run("nothing comes in, not by what was open either", func(t *testing.T) {
		open.SetDeadline(time.Now().Add(400 * time.Millisecond))
		open.Write([]byte("hello\n"))
		if n, err := open.Read(make([]byte, 100)); err == nil {
			t.Errorf("%d bytes came by a connection that was open", n)
		}
		n.expectDropped("tcp4", at)
		f.expectDropped("udp4", at)
	})
	t.Run("the node itself does", func(t *testing.T) { all[0].expect("tcp4", at, "web", "") })
	t.Run("what goes out does, and is answered", func(t *testing.T) {
		w.expect("tcp4", f.addr.String()+":80", "far", "")
		w.expect("udp4", "192.168.77.200:80", "outside", "")
	})
	t.Run("a pod is isolated when Attach returns", func(t *testing.T) {
		late := labelled("shop", "late", nil)
		a := all[0].do(order{Do: "attach", Resource: "pods", Object: encode(t, late)})
		m := &machine{t: t, path: a.Netns, addr: a.IPs[0]}
		m.serve("late", 80)
		f.expectDropped("tcp4", m.addr.String()+":80")
		all[0].expect("tcp4", m.addr.String()+":80", "late", "")
	})
	allow := policyYAML(t, "shop", "allow", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: ops}}, podSelector: {matchLabels: {app: far}}}], ports: [{port: http}]}]}`)
	all.put(allow)
	t.Run("what another policy allows does", func(t *testing.T) {
		f.expect("tcp4", at, "web", f.addr.String())
		f.expectDropped("udp4", at)
		n.expectDropped("tcp4", at)
		open.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := open.Read(make([]byte, 100)); err != nil { // the answer to what was written meanwhile
			t.Errorf("the connection of before, which is allowed again: %v", err)
		}
	})
	t.Run("labels of a namespace change", func(t *testing.T) {
		all.put(namespaceOf("ops", map[string]string{}))
		f.expectDropped("tcp4", at)
		all.put(namespaceOf("ops", map[string]string{"team": "ops"}))
		f.expect("tcp4", at, "web", "")
	})
	t.Run("labels of a peer change", func(t *testing.T) {
		far.Labels = map[string]string{"app": "else"}
		all.put(far)
		f.expectDropped("tcp4", at)
		far.Labels = map[string]string{"app": "far"}
		all.put(far)
		f.expect("tcp4", at, "web", "")
	})
	t.Run("labels of the pod change", func(t *testing.T) {
		web.Labels = map[string]string{"app": "else"}
		all.put(web)
		f.expectDropped("tcp4", at)
		web.Labels = map[string]string{"app": "web"}
		all.put(web)
	})
	t.Run("through a service", func(t *testing.T) {
		ports, targets := both(8080, 80)
		ports[0].NodePort = 30080
		all.put(serviceOf("web", "10.96.0.20", kind(corev1.ServiceTypeNodePort), ports...), sliceOf("web", targets, ep{addr: w.addr, node: "node1"}))
		f.expect("tcp4", "10.96.0.20:8080", "web", f.addr.String())
		n.expectDropped("tcp4", "10.96.0.20:8080")
		outside.expectDropped("tcp4", "192.168.77.1:30080")
		w.expect("tcp4", "10.96.0.20:8080", "web", "") // a pod cannot keep itself out
		all.put(policyYAML(t, "shop", "world", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 192.168.77.200/32}}]}]}`))
		outside.expect("tcp4", "192.168.77.1:30080", "web", "")
		outside.expectDropped("tcp4", "192.168.77.2:30080") // node 2 is who asks here
	})
	t.Run("egress", func(t *testing.T) {
		ask := func(m *machine, name string, proto string) error {
			var err error
			m.in(func() error {
				c := dns.Client{Net: proto, Timeout: 400 * time.Millisecond}
				_, _, err = c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), netip.AddrPortFrom(testDNS, 53).String())
				return nil
			})
			return err
		}
		silent := policyYAML(t, "ops", "silent", "{podSelector: {}, policyTypes: [Egress]}")
		all.put(silent)
		f.expectDropped("tcp4", at)
		f.expectDropped("udp4", "192.168.77.200:80")
		f.expect("udp4", f.addr.String()+":80", "far", "")
		if err := ask(f, "web.default.svc.cluster.local.", "udp"); err == nil {
			t.Error("DNS answers a pod that may send nothing")
		}
		all[1].serve("node2", 81)
		f.expect("tcp4", all[1].addr.String()+":81", "node2", "") // its own node, always
		all.put(policyYAML(t, "ops", "dns", `{podSelector: {}, policyTypes: [Egress], egress: [
			{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}]},
			{to: [{ipBlock: {cidr: 192.168.77.0/24, except: [192.168.77.1/32]}}], ports: [{port: 79, endPort: 80}]}]}`))
		if err := ask(f, "web.default.svc.cluster.local.", "udp"); err != nil {
			t.Error(err)
		}
		if err := ask(f, "web.default.svc.cluster.local.", "tcp"); err == nil {
			t.Error("DNS answers by TCP, which is not allowed")
		}
		f.expect("tcp4", "192.168.77.200:80", "outside", "")
		f.expectDropped("udp4", "192.168.77.200:80")
		f.expectDropped("tcp4", at)
	})
	for _, p := range []string{"silent", "dns"} {
		all.delete(policyYAML(t, "ops", p, "{podSelector: {}}"))
	}
	for _, p := range []string{"deny", "allow", "world"} {
		all.delete(policyYAML(t, "shop", p, "{podSelector: {}}"))
	}
	t.Run("without policies all is open", func(t *testing.T) {
		n.expect("udp4", at, "web", "")
		for _, m := range all {
			m.in(func() error {
				if there, err := newPolicyKernel(ip4).exists(); there || err != nil {
					t.Errorf("%s: the table is there: %v, %v", m.config.Name, there, err)
				}
				return nil
			})
		}
	})
}

// A node that has lost its process, then every master, keeps its pods isolated,
// those that it starts too, also after a boot.
func TestNetworkPoliciesWithoutMasters(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	all.put(namespaceOf("default", map[string]string{}))
	web, client := labelled("default", "web", map[string]string{"app": "web"}), labelled("default", "client", map[string]string{"app": "client"})
	other := labelled("default", "other", nil)
	policy := policyYAML(t, "default", "web", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}")
	all.put(policy)
	w, c, o := all.run(all[0], web), all.run(all[1], client), all.run(all[1], other)
	check := func(w *machine, clientKnown bool) {
		t.Helper()
		if clientKnown {
			c.expect("tcp4", w.addr.String()+":80", "web", "")
		}
		o.expectDropped("tcp4", w.addr.String()+":80")
		all[0].expect("tcp4", w.addr.String()+":80", "web", "")
	}
	check(w, true)
	all[0].kill()
	check(w, true)
	all[0].config.Held = true
	all[0].start()
	all[0].do(order{Do: "attach", Resource: "pods", Object: encode(t, web)}) // as the agent does again
	check(w, true)
	late := labelled("default", "late", map[string]string{"app": "web"})
	a := all[0].do(order{Do: "attach", Resource: "pods", Object: encode(t, late)})
	m := &machine{t: t, path: a.Netns, addr: a.IPs[0]}
	m.serve("web", 80)
	check(m, false)
}
