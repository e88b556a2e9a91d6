package hosts

import (
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
	if _, err := c.On(t.Context(), three.Name, "nft", "delete table ip lossy"); err != nil {
		t.Fatal(err)
	}
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
}
