package scheduler

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func important(n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Priority = &n }
}

func startedAt(second int64) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.StartTime = &metav1.Time{Time: time.Unix(second, 0)} }
}

func onNode(name string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = name } }

func TestPreempt(t *testing.T) {
	pod := func(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
		p := testPod(name, edit...)
		p.UID = types.UID("uid-" + name)
		return p
	}
	budget := func(left int32) func(*snapshot) {
		return func(s *snapshot) {
			s.budgets["b"] = &policyv1.PodDisruptionBudget{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b", UID: "b"},
				Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "kept"}}},
				Status:     policyv1.PodDisruptionBudgetStatus{DisruptionsAllowed: left},
			}
		}
	}
	kept := func(p *corev1.Pod) { p.Labels = map[string]string{"app": "kept"} }
	incoming := pod("new", asks("cpu", "2"), important(100))
	for _, tc := range []struct {
		name    string
		s       *snapshot
		with    func(*snapshot)
		node    string
		victims []string
		why     string
	}{
		{"only what is needed goes, the least important first",
			cluster(testNode("a"), pod("x", asks("cpu", "1"), important(5), onNode("a")), pod("y", asks("cpu", "2"), important(1), onNode("a")), pod("z", asks("cpu", "1"), important(9), onNode("a"))),
			nil, "a", []string{"y"}, ""},
		{"of equals the youngest",
			cluster(testNode("a"), pod("old", asks("cpu", "2"), onNode("a"), startedAt(10)), pod("young", asks("cpu", "2"), onNode("a"), startedAt(20))),
			nil, "a", []string{"young"}, ""},
		{"nobody as important",
			cluster(testNode("a"), pod("x", asks("cpu", "4"), important(100), onNode("a"))),
			nil, "", nil, " preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
		{"a taint is not for sale",
			cluster(testNode("a", tainted("k", "v", corev1.TaintEffectNoSchedule)), pod("x", asks("cpu", "4"), onNode("a"))),
			nil, "", nil, " preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."},
		{"the node whose victims matter least",
			cluster(testNode("a"), testNode("b"), pod("x", asks("cpu", "4"), important(9), onNode("a")), pod("y", asks("cpu", "4"), important(3), onNode("b"))),
			nil, "b", []string{"y"}, ""},
		{"a budget is spared where it can be",
			cluster(testNode("a"), testNode("b"), pod("x", asks("cpu", "4"), important(9), onNode("a")), pod("y", asks("cpu", "4"), important(3), kept, onNode("b"))),
			budget(0), "a", []string{"x"}, ""},
		{"on one node too",
			cluster(testNode("a"), pod("x", asks("cpu", "2"), important(9), onNode("a")), pod("y", asks("cpu", "2"), important(3), kept, onNode("a"))),
			budget(0), "a", []string{"x"}, ""},
		{"but not for ever",
			cluster(testNode("a"), pod("y", asks("cpu", "4"), kept, onNode("a"))),
			budget(0), "a", []string{"y"}, ""},
		{"room that another waits for is taken",
			cluster(testNode("a"), pod("x", asks("cpu", "4"), onNode("a"))),
			func(s *snapshot) {
				s.nominate(newPodInfo(pod("first", asks("cpu", "3"), important(100))), "a")
			}, "", nil, " preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.with != nil {
				tc.with(tc.s)
			}
			before := len(tc.s.pods)
			found, why := preempt(tc.s, newPodInfo(incoming), func(string) bool { return false })
			if len(tc.s.pods) != before {
				t.Errorf("%d pods in the snapshot, were %d", len(tc.s.pods), before)
			}
			if found == nil {
				if tc.node != "" || why != tc.why {
					t.Errorf("none: %q", why)
				}
				return
			}
			var names []string
			for _, v := range found.victims {
				names = append(names, v.Name)
			}
			if found.node.name != tc.node || !slices.Equal(names, tc.victims) {
				t.Errorf("%v from %s, want %v from %s", names, found.node.name, tc.victims, tc.node)
			}
		})
	}
}

// A claim for one pod at a time, and the last volume that a driver can mount on a
// node, are taken from whom matters less, as room is.
func TestPreemptForVolumes(t *testing.T) {
	holder := func(p *corev1.Pod) { p.UID = "holder" }
	for name, s := range map[string]*snapshot{
		"a claim for one pod": cluster(testNode("a"), testClaim("data", "", boundTo("v"), alone), driverVolume("v", "d"),
			testPod("x", on("a"), holder, claiming("data"))),
		"the last mount": cluster(testNode("a"), mounts("a", "d", 1), testClaim("data", "", boundTo("v")), driverVolume("v", "d"),
			testClaim("one", "", boundTo("v1")), driverVolume("v1", "d"), testPod("x", on("a"), holder, claiming("one"))),
	} {
		found, why := preempt(s, newPodInfo(testPod("p", claiming("data"), important(100))), trust)
		if found == nil || len(found.victims) != 1 || found.victims[0].Name != "x" {
			t.Errorf("%s: %+v, %q", name, found, why)
		}
		if found, _ := preempt(s, newPodInfo(testPod("p", claiming("data"))), trust); found != nil {
			t.Errorf("%s: taken from an equal", name)
		}
	}
}

// What waits for room gets it, and nobody of lower priority comes before.
func TestPreemption(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		b.node("a")
		low, high := int32(0), int32(1000)
		b.class("high", high)
		b.pod("low", asks("cpu", "4"))
		b.settle(time.Second)
		b.pod("high", asks("cpu", "3"), func(p *corev1.Pod) { p.Spec.PriorityClassName = "high" })
		b.settle(0)
		p, victim := b.get("high"), b.get("low")
		if p.Status.NominatedNodeName != "a" || victim.DeletionTimestamp == nil || *victim.Spec.Priority != low {
			t.Fatalf("nominated to %q, the victim goes at %v", p.Status.NominatedNodeName, victim.DeletionTimestamp)
		}
		if !slices.ContainsFunc(victim.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonPreemptionByScheduler
		}) {
			t.Errorf("conditions %+v", victim.Status.Conditions)
		}
		b.pod("rival", asks("cpu", "2"))
		b.settle(time.Second)
		if err := b.client.Delete(b.ctx, pods, "default", "low", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
			t.Fatal(err)
		}
		b.settle(time.Minute)
		if p := b.get("high"); p.Spec.NodeName != "a" || p.Status.NominatedNodeName != "" {
			t.Errorf("on %q, nominated to %q", p.Spec.NodeName, p.Status.NominatedNodeName)
		}
		if rival := b.get("rival"); rival.Spec.NodeName != "" {
			t.Errorf("the rival is on %q", rival.Spec.NodeName)
		}
		if got := b.events("Preempted"); len(got) != 1 {
			t.Errorf("events %q", got)
		}
	})
}

func (b *bench) class(name string, value int32) {
	b.Helper()
	b.create(&schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}, schedulingv1.SchemeGroupVersion.WithResource("priorityclasses"))
}
