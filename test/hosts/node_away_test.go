package hosts

import (
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestNodeAway stops a node's conclave, which tests of the shared cluster must
// not: what the cluster decides meanwhile holds when it is back, and what it
// wrongly believed is put right.
func TestNodeAway(t *testing.T) {
	needRoot(t)
	t.Parallel()
	c := own(t, 2)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	node := c.Hosts[1].Name // no master: a cluster of two has one
	n := &nodeTest{t, c, namespace(t, c)}
	for _, name := range []string{"kept", "removed"} {
		n.create(edited(nodePod(name, sh("main", ": pod-"+name+"; trap 'exit 0' TERM; sleep 3600 & wait")), always, func(p *corev1.Pod) {
			p.Spec.NodeName, p.Spec.Tolerations = node, []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}))
		n.until(name, "ready", readyNow, nil)
	}
	var before []int
	eventually(t, "each pod has one process", func() error { // a shell that forks is seen twice
		before = processesOn(t, c, node, "pod-kept")
		if removed := processesOn(t, c, node, "pod-removed"); len(before) != 1 || len(removed) != 1 {
			return fmt.Errorf("they are %v and %v", before, removed)
		}
		return nil
	})
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
