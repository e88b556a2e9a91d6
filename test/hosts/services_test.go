package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"conclave/lab"
	"conclave/test/cluster"
)

// fromOutside asks a server from the lab's bridge, as a machine beside the hosts
// would, and returns what it saw of the client.
func fromOutside(t *testing.T, at string) (client netip.Addr, err error) {
	t.Helper()
	h := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := h.Get("http://" + at + "/echo")
	if err != nil {
		return client, err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return client, err
	}
	var echo struct{ Client string }
	if err := json.Unmarshal(body, &echo); err != nil {
		return client, fmt.Errorf("%s says %q: %w", at, body, err)
	}
	saw, err := netip.ParseAddrPort(echo.Client)
	return saw.Addr(), err
}

// behind is the host that the bridge sends packets for an address to.
func behind(c *cluster.Cluster, address string) (*lab.Host, error) {
	all, err := netlink.NeighList(0, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	mac := map[string]string{}
	for _, n := range all {
		mac[n.IP.String()] = n.HardwareAddr.String()
	}
	for _, h := range c.Hosts {
		if mac[address] != "" && mac[h.Address.String()] == mac[address] {
			return h, nil
		}
	}
	return nil, fmt.Errorf("%s is at %q, which is no host's", address, mac[address])
}

const balancedPods = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: echo}}}
      containers:
      - {name: tool, image: "conclave.test/tool:1", args: [serve, "http:8080"]}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: LoadBalancer
  selector: {app: echo}
  ports: [{port: 8088, targetPort: 8080}]
`

// An address of a range is answered for by one host, goes on at another when
// that one loses its power, and shows pods their real clients.
func TestLoadBalancer(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	const ns = "balanced" // the cluster does not live to delete it
	kubectl(t, c, "create", "namespace", ns)
	apply(t, c, ns, balancedPods)
	kubectl(t, c, "-n", ns, "rollout", "status", "deployment/echo", "--timeout=60s")

	ingress := func() (ips []string, err error) {
		s, err := c.Client.CoreV1().Services(ns).Get(t.Context(), "echo", metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		for _, in := range s.Status.LoadBalancer.Ingress {
			ips = append(ips, in.IP)
		}
		return ips, nil
	}
	wantIngress := func(wanted ...string) {
		t.Helper()
		eventually(t, "the service's addresses", func() error {
			got, err := ingress()
			if err == nil && !slices.Equal(got, wanted) {
				err = fmt.Errorf("they are %v, not %v", got, wanted)
			}
			return err
		})
	}

	// Without a range it has the hosts' addresses.
	var own []string
	for _, h := range c.Hosts {
		own = append(own, h.Address.String())
	}
	wantIngress(own...)
	for _, ip := range own {
		eventually(t, "an answer at "+ip, func() error { _, err := fromOutside(t, ip+":8088"); return err })
	}

	// A range gives it an address of its own.
	b := c.Subnet.Addr().As4()
	address := func(last byte) string { return netip.AddrFrom4([4]byte{b[0], b[1], b[2], last}).String() }
	vip := address(240)
	pool := fmt.Sprintf(`{"data":{"load-balancer.addresses":"%s-%s"}}`, vip, address(250))
	kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", pool)
	wantIngress(vip)
	mustContain(t, "kubectl get service", kubectl(t, c, "-n", ns, "get", "service", "echo"), vip)
	eventually(t, "an answer at "+vip, func() error { _, err := fromOutside(t, vip+":8088"); return err })
	eventually(t, "events", func() error {
		said := kubectl(t, c, "-n", ns, "describe", "service", "echo")
		for _, want := range []string{"IPAllocated", fmt.Sprintf("Assigned IP [%q]", vip), "nodeAssigned", "announcing " + vip + " from node"} {
			if !strings.Contains(said, want) {
				return fmt.Errorf("no %q in\n%s", want, said)
			}
		}
		return nil
	})
	if _, err := fromOutside(t, vip+":8089"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port that the service has not: %v", err)
	}

	// The pods see the client.
	if _, err := c.Client.CoreV1().Services(ns).Patch(t.Context(), "echo", types.MergePatchType,
		[]byte(`{"spec":{"externalTrafficPolicy":"Local"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	seesClient := func() error {
		saw, err := fromOutside(t, vip+":8088")
		if err == nil && saw != c.Gateway() {
			err = fmt.Errorf("the pod sees %s, not %s", saw, c.Gateway())
		}
		return err
	}
	eventually(t, "the client's address", seesClient)

	for _, h := range c.Hosts { // so that the bridge knows them all
		_, _ = fromOutside(t, h.Address.String()+":10250")
	}
	first, err := behind(c, vip)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PowerOff(first.Name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an answer at "+vip+" after "+first.Name+" lost its power", seesClient)
	second, err := behind(c, vip)
	if err != nil || second.Name == first.Name {
		t.Errorf("%s is at %v now (%v), and was at %s", vip, second, err, first.Name)
	}
	if err := c.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := ingress(); err != nil || !slices.Equal(got, []string{vip}) {
		t.Errorf("its addresses are %v (%v)", got, err)
	}

	// Given back, it is silent, and the next one's.
	kubectl(t, c, "-n", ns, "delete", "service", "echo")
	if _, err := c.Client.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "echo"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "echo"}, Ports: []corev1.ServicePort{{Port: 9099}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantIngress(vip)

	// The last host alone, without any master that answers, goes on with what
	// it knew: names, services and the address.
	second, err = behind(c, vip)
	if err != nil {
		t.Fatal(err)
	}
	var last *lab.Host
	for _, h := range c.Hosts {
		if h.Name != first.Name && h.Name != second.Name {
			last = h
		}
	}
	eventually(t, "the address in DNS", func() error { _, err := lookup(t, last, "echo."+ns+".svc.cluster.local.", dns.TypeA); return err })
	eventually(t, "an answer at the next service", func() error {
		_, err := fromOutside(t, vip+":9099")
		if err != nil && strings.Contains(err.Error(), "refused") { // nobody listens at 9099 of the pods
			return nil
		}
		return err
	})
	if err := c.PowerOff(second.Name); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the address at the last host", func() error {
		_, _ = fromOutside(t, vip+":9099")
		h, err := behind(c, vip)
		if err == nil && h.Name != last.Name {
			err = fmt.Errorf("it is at %s, not %s", h.Name, last.Name)
		}
		return err
	})
	for name, wanted := range map[string]int{"echo." + ns + ".svc.cluster.local.": 1, "kubernetes.default.svc.cluster.local.": 1, "nobody." + ns + ".svc.cluster.local.": 0} {
		got, err := lookup(t, last, name, dns.TypeA)
		if (err == nil) != (wanted > 0) || len(got) != wanted {
			t.Errorf("%s, with no master: %v (%v)", name, got, err)
		}
	}
}

// lookup asks the cluster's DNS from a host.
func lookup(t *testing.T, h *lab.Host, name string, kind uint16) ([]dns.RR, error) {
	t.Helper()
	conn, err := h.Dial(t.Context(), "udp", "10.96.0.10:53")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return nil, err
	}
	q := new(dns.Msg)
	q.SetQuestion(name, kind)
	d := &dns.Conn{Conn: conn}
	if err := d.WriteMsg(q); err != nil {
		return nil, err
	}
	m, err := d.ReadMsg()
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess {
		return nil, fmt.Errorf("%s: %s", name, dns.RcodeToString[m.Rcode])
	}
	return m.Answer, nil
}

// Services that prefer what is near, and domains with name servers of their
// own.
func TestServiceSettings(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: namespace(t, c)}
	var pods []*corev1.Pod
	for i, h := range c.Hosts {
		pods = append(pods, toolPod(fmt.Sprintf("net-%d", i), h.Name, netLabels, "serve", "http:8080"))
	}
	w.pods = runPods(t, c, w.ns, pods...)

	t.Run("PreferSameNode", func(t *testing.T) {
		s := w.service(t, "near", func(s *corev1.Service) {
			s.Spec.TrafficDistribution = ptr.To(corev1.ServiceTrafficDistributionPreferSameNode)
		})
		page := pageAt(s.Spec.ClusterIP, s.Spec.Ports[0].Port)
		for _, p := range w.pods {
			w.wantAnswers(t, p, names(p), "get", "-n", "10", page)
		}
		// Where there is none on the node, those elsewhere serve.
		away := w.pods[0]
		if _, err := c.Client.CoreV1().Pods(w.ns).Patch(t.Context(), away.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"away"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wantAnswers(t, away, names(w.pods[1:]...), "get", "-n", "40", page)
		w.change(t, "near", func(s *corev1.Service) { s.Spec.TrafficDistribution = nil })
		w.wantAnswers(t, w.pods[1], names(w.pods[1:]...), "get", "-n", "40", page)
	})

	t.Run("dns.forward", func(t *testing.T) {
		listener, err := net.ListenPacket("udp4", netip.AddrPortFrom(c.Gateway(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		server := &dns.Server{PacketConn: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(q)
			if rr, err := dns.NewRR(q.Question[0].Name + " 60 IN A 192.0.2.53"); err == nil && q.Question[0].Qtype == dns.TypeA {
				m.Answer = []dns.RR{rr}
			}
			_ = w.WriteMsg(m)
		})}
		done := make(chan error, 1)
		go func() { done <- server.ActivateAndServe() }()
		t.Cleanup(func() {
			if err := errors.Join(server.Shutdown(), <-done); err != nil {
				t.Error(err)
			}
		})
		patch := func(value string) {
			kubectl(t, c, "-n", "kube-system", "patch", "configmap", "conclave", "--type=merge", "-p", `{"data":{"dns.forward.stub.example":`+value+`}}`)
		}
		patch(fmt.Sprintf("%q", listener.LocalAddr()))
		for _, h := range c.Hosts {
			eventually(t, "a name of the domain at "+h.Name, func() error {
				got, err := lookup(t, h, "www.stub.example.", dns.TypeA)
				if err == nil && (len(got) != 1 || !strings.HasSuffix(got[0].String(), "192.0.2.53")) {
					err = fmt.Errorf("it is %v", got)
				}
				return err
			})
		}
		patch("null")
		eventually(t, "the end of the setting", func() error {
			if got, err := lookup(t, c.Hosts[0], "other.stub.example.", dns.TypeA); err == nil && len(got) > 0 {
				return fmt.Errorf("it still answers %v", got)
			}
			return nil
		})
	})
}
