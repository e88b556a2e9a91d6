package hosts

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Two hosts that lose each other's overlay packets are named as a pair by
// whoever is asked, and in their Nodes; healed, they are not.
func TestPathsBetweenNodes(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	one, two, three := c.Hosts[0], c.Hosts[1], c.Hosts[2]
	status := func(host string) string {
		t.Helper()
		out, err := c.On(t.Context(), host, "conclave", "status")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	condition := func(host string) corev1.NodeCondition {
		t.Helper()
		node, err := c.Client.CoreV1().Nodes().Get(t.Context(), host, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeNetworkUnavailable })
		if i < 0 {
			return corev1.NodeCondition{}
		}
		return node.Status.Conditions[i]
	}
	eventually(t, "every path is well", func() error {
		if out := status(two.Name); strings.Contains(out, "pods:") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	for range 12 { // however often it is asked
		for _, h := range c.Hosts {
			if out := status(h.Name); strings.Contains(out, "problem:") {
				t.Fatalf("a problem where there is none:\n%s", out)
			}
		}
	}
	if _, err := c.On(t.Context(), three.Name, "nft", "add table ip lossy; add chain ip lossy raw { type filter hook prerouting priority raw; }; add rule ip lossy raw ip saddr "+one.Address.String()+" udp dport 8472 drop"); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s and %s cannot reach each other's pods: UDP 8472 is dropped on the way", one.Name, three.Name)
	for _, host := range []string{one.Name, two.Name, three.Name} {
		out := status(host)
		mustContain(t, "the status of "+host, out, want)
		if n := strings.Count(out, "problem:"); n != 1 {
			t.Errorf("%s sees %d problems:\n%s", host, n, out)
		}
	}
	eventually(t, "the Nodes say so", func() error {
		status(two.Name) // each question is a test; three at once need no patience
		for host, peer := range map[string]string{one.Name: three.Name, three.Name: one.Name} {
			if is := condition(host); is.Status != corev1.ConditionFalse || is.Reason != "PathsFailing" || is.Message != "cannot reach "+peer+"'s pods: UDP 8472 is dropped on the way" {
				return fmt.Errorf("%s: %+v", host, is)
			}
		}
		return nil
	})
	mustContain(t, "the events", kubectl(t, c, "get", "events", "-A"), "PathsFailing")
	if is := condition(two.Name); is.Reason != "RouteCreated" {
		t.Errorf("%s: %+v", two.Name, is)
	}
	lossy := func(rule string) {
		t.Helper()
		if _, err := c.On(t.Context(), three.Name, "nft", "delete table ip lossy; "+rule); err != nil {
			t.Fatal(err)
		}
	}
	for _, fault := range []struct{ rule, want string }{
		{"ip saddr " + one.Address.String() + " udp dport 8472 meta length > 1400 drop",
			"packets of 1450 bytes do not pass, those of 1350 do: lower the MTU of this host's link to 1400"},
		{`iifname "conclave.vx" ip saddr 10.244.0.0/16 meta l4proto udp drop`, "pings pass, UDP does not"},
	} {
		lossy("add table ip lossy; add chain ip lossy raw { type filter hook prerouting priority raw; }; add rule ip lossy raw " + fault.rule)
		eventually(t, "status says: "+fault.want, func() error {
			if out := status(two.Name); !strings.Contains(out, fault.want) {
				return errors.New(out)
			}
			return nil
		})
	}
	lossy("")
	eventually(t, "the pair is well again", func() error {
		if out := status(two.Name); strings.Contains(out, "problem:") {
			return fmt.Errorf("%s", out)
		}
		for _, h := range c.Hosts {
			if is := condition(h.Name); is.Status != corev1.ConditionFalse || is.Reason != "RouteCreated" {
				return fmt.Errorf("%s: %+v", h.Name, is)
			}
		}
		return nil
	})

	// The MTU of pods is found, not assumed: that of the host's link, less the
	// overlay's own.
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	ns := namespace(t, c)
	mtu := func(pod string) string {
		t.Helper()
		runPods(t, c, ns, toolPod(pod, one.Name, nil, "serve", "http:8080"))
		out, err := inPod(t.Context(), c, ns, pod, "cat", "/sys/class/net/eth0/mtu")
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	if got := mtu("before"); got != "1450" {
		t.Errorf("a pod's MTU is %s", got)
	}
	if _, err := c.On(t.Context(), one.Name, "ip", "link", "set", "eth0", "mtu", "1400"); err != nil {
		t.Fatal(err)
	}
	if got := mtu("after"); got != "1350" {
		t.Errorf("after the link's MTU became 1400 a pod's is %s", got)
	}
}

// A node that is no master, and shares its link with another that says so too:
// packets of pods go there as they are, and policies know the pods of both.
func TestPlainNode(t *testing.T) {
	t.Parallel()
	c := own(t, 1, "--direct-routes")
	guest, err := c.Add()
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Ask(t.Context(), "token", "--bare")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(guest.Name, "join", strings.TrimSpace(token), "--no-master", "--direct-routes"); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "wait", "node/"+c.Hosts[0].Name, "--for=condition=Ready", "--timeout=60s")
	eventually(t, "the second node is there", func() error {
		_, err := c.Kubectl(t.Context(), "wait", "node/"+guest.Name, "--for=condition=Ready", "--timeout=60s")
		return err
	})
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	m := &matrix{c: c, red: namespace(t, c)}
	pods := runPods(t, c, m.red, m.pod("server", guest.Name, "server"), m.pod("client", c.Hosts[0].Name, "client"), m.pod("other", c.Hosts[0].Name, "other"))
	server, at := pods[0], ""
	at = fmt.Sprintf("http:%s:%d", server.Status.PodIP, webPort)
	ask := func(from *corev1.Pod, want string) {
		t.Helper()
		eventually(t, from.Name+" asks", func() error {
			if got := m.ask(t, from, at)[0]; got != want {
				return fmt.Errorf("%s gets %s, not %s", from.Name, got, want)
			}
			return nil
		})
	}
	ask(pods[2], "server")
	apply(t, c, m.red, policy("server", "{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: "+m.red+"}}}]}]}"))
	ask(pods[2], "-")
	ask(pods[1], "server")
	for _, pair := range [][2]string{{c.Hosts[0].Name, guest.Address.String()}, {guest.Name, c.Hosts[0].Address.String()}} {
		out, err := c.On(t.Context(), pair[0], "ip", "route")
		if err != nil {
			t.Fatal(err)
		}
		mustContain(t, "the routes of "+pair[0], out, "/24 via "+pair[1]+" dev ")
	}
	if out, err := c.On(t.Context(), guest.Name, "conclave", "status"); err != nil || strings.Contains(out, "pods:") {
		t.Errorf("%v: %s", err, out)
	}
}
