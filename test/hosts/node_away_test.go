package hosts

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/test/conformance"
)

// TestNodeAway does to a node what tests of the shared cluster must not: taints
// it, and stops its conclave.
func TestNodeAway(t *testing.T) {
	needRoot(t)
	t.Parallel()
	c := own(t, 2)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	// The second node is none of the masters of two.
	node := c.Hosts[1].Name
	for _, k := range []struct {
		name  string
		check func(*nodeTest, string)
	}{
		{"[sig-node] NoExecuteTaintManager Multiple Pods evicts pods with minTolerationSeconds [Conformance] [Serial]", evictsInTurn},
		{"[sig-node] NoExecuteTaintManager Single Pod removing taint cancels eviction [Conformance] [Serial]", evictionCancelled},
		{"a node that was away", away},
	} {
		t.Run(k.name, func(t *testing.T) {
			if k.name[0] == '[' {
				conformance.Shows(t, k.name)
			}
			k.check(&nodeTest{t, c, namespace(t, c)}, node)
		})
	}
}

// onNode is a pod of one node that tolerates a taint for a while, or for ever.
func onNode(name, node string, tolerations ...corev1.Toleration) *corev1.Pod {
	return edited(nodePod(name, sh("main", ": pod-"+name+"; "+polite)), always, func(p *corev1.Pod) {
		p.Spec.NodeName, p.Spec.Tolerations = node, tolerations
		p.Labels["of"] = "taints"
	})
}

func tolerate(key string, seconds *int64) corev1.Toleration {
	return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: seconds}
}

func (n *nodeTest) taint(node, key string, on bool) {
	n.Helper()
	change := key + "=yes:NoExecute"
	if !on {
		change += "-"
	}
	kubectl(n.T, n.c, "taint", "node", node, change)
}

// evictsInTurn: each pod goes at its own time.
func evictsInTurn(n *nodeTest, node string) {
	const key = "conclave.test/turn"
	for name, seconds := range map[string]int64{"soon": 1, "later": 6} {
		n.create(onNode(name, node, tolerate(key, &seconds)))
		n.until(name, "ready", readyNow, nil)
	}
	w := n.watch("of=taints")
	began := time.Now()
	n.taint(node, key, true)
	defer n.taint(node, key, false)
	var order []string
	n.seen(w, "both are deleted", func(e watch.Event, p *corev1.Pod) bool {
		if e.Type == watch.Deleted {
			order = append(order, p.Name)
		}
		return len(order) == 2
	})
	if fmt.Sprint(order) != "[soon later]" || time.Since(began) < 6*time.Second {
		n.Errorf("the order was %v, after %v", order, time.Since(began))
	}
}

// evictionCancelled: a taint that is gone in time evicts nobody. The other pod
// is evicted by another taint, set after the first was removed, when the time of
// the first would long have been over.
func evictionCancelled(n *nodeTest, node string) {
	const key, clock = "conclave.test/cancelled", "conclave.test/clock"
	n.create(onNode("stays", node, tolerate(key, new(int64(4))), tolerate(clock, nil)))
	n.create(onNode("clock", node, tolerate(key, nil), tolerate(clock, new(int64(5)))))
	n.until("clock", "ready", readyNow, nil)
	stays := n.until("stays", "ready", readyNow, nil)
	w := n.watch("of=taints")
	n.taint(node, key, true)
	n.taint(node, key, false)
	n.taint(node, clock, true)
	defer n.taint(node, clock, false)
	n.seen(w, "the clock is evicted", func(e watch.Event, p *corev1.Pod) bool {
		if p.Name == "stays" && p.DeletionTimestamp != nil {
			n.Fatal("the pod was evicted all the same")
		}
		return e.Type == watch.Deleted && p.Name == "clock"
	})
	if p := n.pod("stays"); p.UID != stays.UID || p.DeletionTimestamp != nil {
		n.Error(shown(p))
	}
}

// away: what the cluster decided while a node's conclave was down holds when it
// is back, and what it wrongly believed is put right.
func away(n *nodeTest, node string) {
	forgiving := corev1.Toleration{Operator: corev1.TolerationOpExists}
	for _, name := range []string{"kept", "removed"} {
		n.create(onNode(name, node, forgiving))
		n.until(name, "ready", readyNow, nil)
	}
	before := processesOn(n.T, n.c, node, "pod-kept")
	if len(before) != 1 || len(processesOn(n.T, n.c, node, "pod-removed")) != 1 {
		n.Fatalf("the pods' processes are %v and %v", before, processesOn(n.T, n.c, node, "pod-removed"))
	}
	kept := n.pod("kept")
	if err := n.c.Kill(node); err != nil {
		n.Fatal(err)
	}
	n.until("kept", "is no longer called ready", func(p *corev1.Pod) bool { return conditionOf(p, corev1.PodReady) == corev1.ConditionFalse }, nil)
	kubectl(n.T, n.c, "-n", n.ns, "delete", "pod", "removed", "--force", "--grace-period=0")
	if _, err := n.c.Client.CoreV1().Pods(n.ns).Get(n.Context(), "removed", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		n.Fatalf("the pod is still there: %v", err)
	}
	if len(processesOn(n.T, n.c, node, "pod-removed")) != 1 {
		n.Fatal("the container went while nobody was there to stop it")
	}
	if err := n.c.Start(node, "up"); err != nil {
		n.Fatal(err)
	}
	p := n.until("kept", "is ready again", readyNow, nil)
	if restarts(p) != 0 || p.Status.ContainerStatuses[0].ContainerID != kept.Status.ContainerStatuses[0].ContainerID {
		n.Errorf("it was %s and is %s", shown(kept.Status), shown(p.Status))
	}
	if after := processesOn(n.T, n.c, node, "pod-kept"); fmt.Sprint(after) != fmt.Sprint(before) {
		n.Errorf("its process was %v and is %v", before, after)
	}
	eventually(n.T, "what was deleted meanwhile is killed", func() error {
		if left := processesOn(n.T, n.c, node, "pod-removed"); len(left) > 0 {
			return errors.New(fmt.Sprint(left))
		}
		return nil
	})
}
