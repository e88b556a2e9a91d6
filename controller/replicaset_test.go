package controller

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestReplicaSetScales(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, replicaSets, replicaSet("web", 3))
		w.settle(0)
		rs := read[*appsv1.ReplicaSet](w, replicaSets, "default", "web")
		s := rs.Status
		if s.Replicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.FullyLabeledReplicas != 3 || s.ObservedGeneration != rs.Generation {
			t.Errorf("status %+v", s)
		}
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if !metav1.IsControlledBy(p, rs) || !strings.HasPrefix(p.Name, "web-") {
				t.Errorf("pod %s has owners %v", p.Name, p.OwnerReferences)
			}
			if got := w.events("web"); !slices.Contains(got, "SuccessfulCreate: Created pod: "+p.Name) {
				t.Errorf("events %q", got)
			}
		}
		change(w, replicaSets, "default", "web", func(rs *appsv1.ReplicaSet) { *rs.Spec.Replicas = 1 })
		w.settle(time.Second)
		if left := all[*corev1.Pod](w, pods, "default"); len(left) != 1 {
			t.Errorf("%d pods", len(left))
		}
		if s := read[*appsv1.ReplicaSet](w, replicaSets, "default", "web").Status; s.Replicas != 1 || *s.TerminatingReplicas != 0 {
			t.Errorf("status %+v", s)
		}
		if !slices.ContainsFunc(w.events("web"), func(e string) bool { return strings.HasPrefix(e, "SuccessfulDelete: Deleted pod: web-") }) {
			t.Errorf("events %q", w.events("web"))
		}
		// A pod that fails is replaced, and stays to be read.
		one := all[*corev1.Pod](w, pods, "default")[0]
		change(w, pods, "default", one.Name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "status")
		w.settle(0)
		if n := len(all[*corev1.Pod](w, pods, "default")); n != 2 {
			t.Errorf("%d pods after one failed", n)
		}
	})
}

// A ReplicaSet takes a matching pod that nobody controls, and lets go of one
// whose labels no longer match, which it then replaces.
//
// conformance: Replica Set, adopt matching pods and release non matching pods
func TestReplicaSetAdoptsAndReleases(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("web"))
		w.settle(0)
		rs := create(w, replicaSets, replicaSet("web", 1))
		w.settle(0)
		if all := all[*corev1.Pod](w, pods, "default"); len(all) != 1 || !metav1.IsControlledBy(all[0], rs) {
			t.Fatalf("%d pods, first owned by %v", len(all), all[0].OwnerReferences)
		}
		change(w, pods, "default", "web", func(p *corev1.Pod) { p.Labels["app"] = "other" })
		w.settle(0)
		if p := read[*corev1.Pod](w, pods, "default", "web"); len(p.OwnerReferences) != 0 {
			t.Errorf("still owned by %v", p.OwnerReferences)
		}
		if n := len(all[*corev1.Pod](w, pods, "default")); n != 2 {
			t.Errorf("%d pods", n)
		}
	})
}

func TestMinReadySeconds(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		rs := replicaSet("web", 2)
		rs.Spec.MinReadySeconds = 30
		create(w, replicaSets, rs)
		w.settle(10 * time.Second)
		if s := read[*appsv1.ReplicaSet](w, replicaSets, "default", "web").Status; s.ReadyReplicas != 2 || s.AvailableReplicas != 0 {
			t.Errorf("early: %+v", s)
		}
		w.settle(21 * time.Second)
		if s := read[*appsv1.ReplicaSet](w, replicaSets, "default", "web").Status; s.AvailableReplicas != 2 {
			t.Errorf("late: %+v", s)
		}
	})
}

func TestVictims(t *testing.T) {
	now := time.Unix(100000, 0)
	pod := func(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "u", CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}, Spec: corev1.PodSpec{NodeName: "n"}}
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
		for _, f := range edit {
			f(p)
		}
		return p
	}
	unready := func(p *corev1.Pod) { p.Status.Conditions[0].Status = corev1.ConditionFalse }
	// The order in which they go, each by one rule more than the next.
	want := []*corev1.Pod{
		pod("no node", func(p *corev1.Pod) { p.Spec.NodeName = ""; p.Status.Phase = corev1.PodPending }, unready),
		pod("pending", func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }, unready),
		pod("not ready", unready),
		pod("cheap", func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: "-5"} }),
		pod("crowded", func(p *corev1.Pod) { p.Spec.NodeName = "crowd" }),
		pod("ready lately", func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Minute)) }),
		pod("restarted", func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: 3}} }),
		pod("young", func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-10 * time.Minute)) }),
		pod("last"),
	}
	given := slices.Clone(want)
	slices.Reverse(given)
	for i, p := range victims(given, map[string]int{"crowd": 2, "n": 1}, len(given), now) {
		if p.Name != want[i].Name {
			t.Errorf("%d: %s, want %s", i, p.Name, want[i].Name)
		}
	}
}

func TestReplicaFailure(t *testing.T) {
	rs := replicaSet("web", 1)
	now := time.Unix(1000, 0)
	s, _ := replicaSetStatus(rs, nil, createError{errors.New("quota")}, now)
	if len(s.Conditions) != 1 || s.Conditions[0].Reason != "FailedCreate" || s.Conditions[0].Message != "quota" {
		t.Fatalf("conditions %+v", s.Conditions)
	}
	rs.Status = s
	if again, _ := replicaSetStatus(rs, nil, createError{errors.New("quota, other words")}, now.Add(time.Minute)); again.Conditions[0].Message != "quota" {
		t.Errorf("each refusal is a write: %+v", again.Conditions)
	}
	if s, _ = replicaSetStatus(rs, nil, nil, now); len(s.Conditions) != 0 {
		t.Errorf("the condition stays: %+v", s.Conditions)
	}
}
