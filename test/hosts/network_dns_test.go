package hosts

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

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
