package controller

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (w *world) node(name string) *corev1.Node {
	w.Helper()
	return read[*corev1.Node](w, nodes, "", name)
}

// taintsOf lists "key:effect", sorted.
func taintsOf(n *corev1.Node) string {
	var found []string
	for _, t := range n.Spec.Taints {
		found = append(found, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(found)
	return strings.Join(found, " ")
}

func readyOf(n *corev1.Node) string {
	c := readyCondition(n)
	return string(c.Status) + " " + c.Reason + ": " + c.Message
}

func TestPodRanges(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, name := range []string{"a", "b", "c"} {
			w.addNode(name)
		}
		w.remove(nodes, "", "b", metav1.DeletePropagationBackground)
		w.settle(0)
		w.addNode("d")
		for name, want := range map[string]string{"a": "10.244.0.0/24", "c": "10.244.2.0/24", "d": "10.244.1.0/24"} {
			if n := w.node(name); n.Spec.PodCIDR != want || !slices.Equal(n.Spec.PodCIDRs, []string{want}) {
				t.Errorf("%s: %s %v", name, n.Spec.PodCIDR, n.Spec.PodCIDRs)
			}
		}
	})
}

// Nodes of a dual-stack cluster have a range of each family.
func TestDualStackPodRanges(t *testing.T) {
	inDualWorld(t, func(w *world) {
		for _, name := range []string{"a", "b"} {
			w.addNode(name)
		}
		for name, want := range map[string][]string{"a": {"10.244.0.0/24", "fd00:1::/64"}, "b": {"10.244.1.0/24", "fd00:1:0:1::/64"}} {
			if n := w.node(name); n.Spec.PodCIDR != want[0] || !slices.Equal(n.Spec.PodCIDRs, want) {
				t.Errorf("%s: %s %v", name, n.Spec.PodCIDR, n.Spec.PodCIDRs)
			}
		}
	})
}

// Nodes of a cluster of IPv6 alone have a /64 each.
func TestSixAlone(t *testing.T) {
	worldOf(t, []string{"fd00:1::/56", "fd00:2::/112"}, func(w *world) {
		w.addNode("a")
		w.addNode("b")
		for name, want := range map[string]string{"a": "fd00:1::/64", "b": "fd00:1:0:1::/64"} {
			if n := w.node(name); n.Spec.PodCIDR != want || !slices.Equal(n.Spec.PodCIDRs, []string{want}) {
				t.Errorf("%s: %s %v", name, n.Spec.PodCIDR, n.Spec.PodCIDRs)
			}
		}
	})
}

func TestRanges(t *testing.T) {
	for _, tc := range []struct {
		within      string
		bits, count int
		last        string
	}{{"10.244.0.0/16", 24, 256, "10.244.255.0/24"}, {"10.0.0.0/29", 30, 2, "10.0.0.4/30"}, {"255.255.255.0/24", 26, 4, "255.255.255.192/26"}, {"fd00::/62", 64, 4, "fd00:0:0:3::/64"}} {
		all := slices.Collect(ranges(netip.MustParsePrefix(tc.within), tc.bits))
		if len(all) != tc.count || all[len(all)-1].String() != tc.last {
			t.Errorf("%s by /%d: %d, last %v", tc.within, tc.bits, len(all), all[len(all)-1])
		}
	}
}

// A dead node is marked at once, its pods go at once if they tolerate nothing,
// and it is as it was when it returns.
func TestDeadNode(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, replicaSets, replicaSet("web", 2))
		create(w, pods, plainPod("stays", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}))
		w.settle(time.Second)
		before := w.node("a")
		w.agent.set(func() { w.agent.nodes = nil })
		w.addNode("b")
		w.liveness.set("a", Dead)
		w.settle(time.Second)
		n := w.node("a")
		if got := readyOf(n); got != "Unknown NodeStatusUnknown: Kubelet stopped posting node status." {
			t.Error(got)
		}
		if got := taintsOf(n); got != "unreachable:NoExecute unreachable:NoSchedule" {
			t.Error(got)
		}
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if p.Name == "stays" {
				if podReady(p) {
					t.Error("a pod that nobody can ask is ready")
				}
				continue
			}
			if p.Spec.NodeName != "b" || !podReady(p) {
				t.Errorf("pod %s on %s", p.Name, p.Spec.NodeName)
			}
		}
		if got := w.events("web-"); !slices.ContainsFunc(got, func(e string) bool {
			return strings.HasPrefix(e, "TaintManagerEviction: Marking for deletion Pod default/web-")
		}) {
			t.Errorf("events %q", got)
		}
		if got := w.events("a"); !slices.Contains(got, "NodeNotReady: Node a status is now: NodeNotReady") {
			t.Errorf("events %q", got)
		}
		// Somebody deletes a pod there: nobody but us can end it.
		w.remove(pods, "default", "stays", metav1.DeletePropagationBackground)
		w.settle(0)
		if w.exists(pods, "default", "stays") {
			t.Error("a deleted pod of a dead node is left")
		}
		w.liveness.set("a", Alive)
		w.settle(0)
		n = w.node("a")
		if readyOf(n) != readyOf(before) || taintsOf(n) != "" || n.Annotations[lastReportAnnotation] != "" {
			t.Errorf("back: %s, taints %q, annotations %v", readyOf(n), taintsOf(n), n.Annotations)
		}
		if got := w.events("a"); !slices.Contains(got, "NodeReady: Node a status is now: NodeReady") {
			t.Errorf("events %q", got)
		}
	})
}

func TestRefusedNodeIsGivenTime(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("p", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64)}}
		}))
		w.settle(time.Second)
		w.liveness.set("a", Refused)
		w.settle(30 * time.Second)
		if got := taintsOf(w.node("a")); got != "" {
			t.Errorf("after 30 s: %s", got)
		}
		w.settle(15 * time.Second)
		if got := taintsOf(w.node("a")); got != "unreachable:NoSchedule" {
			t.Errorf("after 45 s: %s", got)
		}
		if p := read[*corev1.Pod](w, pods, "default", "p"); p.DeletionTimestamp != nil {
			t.Error("evicted early")
		}
		w.settle(5 * time.Minute)
		// Its process may come back to end it in order: it is not forced.
		if p := read[*corev1.Pod](w, pods, "default", "p"); p.DeletionTimestamp == nil {
			t.Error("never evicted")
		}
	})
}

func TestCordonAndNotReady(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		change(w, nodes, "", "a", func(n *corev1.Node) {
			n.Spec.Unschedulable = true
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "mine", Effect: corev1.TaintEffectNoSchedule})
		})
		w.settle(0)
		if got := taintsOf(w.node("a")); got != "mine:NoSchedule unschedulable:NoSchedule" {
			t.Error(got)
		}
		change(w, nodes, "", "a", func(n *corev1.Node) { n.Spec.Unschedulable = false })
		change(w, nodes, "", "a", func(n *corev1.Node) { readyCondition(n).Status = corev1.ConditionFalse }, "status")
		w.settle(0)
		if got := taintsOf(w.node("a")); got != "mine:NoSchedule not-ready:NoExecute not-ready:NoSchedule" {
			t.Error(got)
		}
		change(w, nodes, "", "a", func(n *corev1.Node) { readyCondition(n).Status = corev1.ConditionTrue }, "status")
		w.settle(0)
		if got := taintsOf(w.node("a")); got != "mine:NoSchedule" {
			t.Error(got)
		}
	})
}

func taintFor(w *world, node string, on bool) {
	w.Helper()
	change(w, nodes, "", node, func(n *corev1.Node) {
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == "evict" })
		if on {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "evict", Value: "yes", Effect: corev1.TaintEffectNoExecute})
		}
	})
}

func tolerating(seconds int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "evict", Operator: corev1.TolerationOpEqual, Value: "yes", Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds}}
	}
}

// conformance: Pod Eviction, Toleration limits
func TestTolerationLimits(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("one", tolerating(5)))
		create(w, pods, plainPod("two", tolerating(25)))
		create(w, pods, plainPod("none"))
		w.settle(time.Second)
		taintFor(w, "a", true)
		for _, step := range []struct {
			after          time.Duration
			none, one, two bool
		}{{time.Second, false, true, true}, {6 * time.Second, false, false, true}, {25 * time.Second, false, false, false}} {
			w.settle(step.after)
			for name, want := range map[string]bool{"none": step.none, "one": step.one, "two": step.two} {
				if w.exists(pods, "default", name) != want {
					t.Errorf("%v on: %s is there: %v", step.after, name, !want)
				}
			}
		}
	})
}

// conformance: Taint, Pod Eviction on taint removal
func TestTaintRemovalCancels(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("p", tolerating(60)))
		w.settle(time.Second)
		taintFor(w, "a", true)
		w.settle(30 * time.Second)
		taintFor(w, "a", false)
		w.settle(time.Hour)
		if !w.exists(pods, "default", "p") {
			t.Error("evicted for a taint that is gone")
		}
		if got := w.events("p"); len(got) > 0 && !slices.Contains(got, "TaintManagerEviction: Cancelling deletion of Pod default/p") {
			t.Errorf("events %q", got)
		}
	})
}

func TestPodsWithoutNode(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("plain"))
		create(w, statefulSets, statefulSet("stateful", 1))
		w.settle(time.Second)
		stateful := read[*corev1.Pod](w, pods, "default", "stateful-0").UID
		stays := func() bool { return read[*corev1.Pod](w, pods, "default", "stateful-0").UID == stateful }
		w.agent.set(func() { w.agent.nodes = nil })
		w.liveness.set("a", Suspect) // its agent no longer acts
		w.remove(nodes, "", "a", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if w.exists(pods, "default", "plain") || !stays() {
			t.Errorf("plain %v, stateful %v", w.exists(pods, "default", "plain"), stays())
		}
		w.settle(orphanGrace)
		if stays() {
			t.Error("the stateful pod stays for ever")
		}
	})
}

func TestToleration(t *testing.T) {
	five, ten := int64(5), int64(10)
	taint := &corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoExecute}
	tolerateFor := func(s *int64) corev1.Toleration {
		return corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists, TolerationSeconds: s}
	}
	for _, tc := range []struct {
		all     []corev1.Toleration
		seconds int64
		forever bool
	}{
		{nil, 0, false}, {[]corev1.Toleration{tolerateFor(nil)}, 0, true},
		{[]corev1.Toleration{tolerateFor(&ten), tolerateFor(&five)}, 5, false},
		{[]corev1.Toleration{tolerateFor(nil), tolerateFor(&five)}, 5, false},
		{[]corev1.Toleration{tolerateFor(&five), tolerateFor(nil)}, 5, false},
		{[]corev1.Toleration{{Key: "other", Operator: corev1.TolerationOpExists}}, 0, false},
	} {
		if s, f := toleration(tc.all, taint); s != tc.seconds || f != tc.forever {
			t.Errorf("%v: %d %v", tc.all, s, f)
		}
	}
}
