package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func bounded(surge, unavailable string) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) {
		s, u := intstr.Parse(surge), intstr.Parse(unavailable)
		d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &s, MaxUnavailable: &u}}
	}
}

func recreating(d *appsv1.Deployment) {
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
}

func (w *world) deployment(name string) *appsv1.Deployment {
	w.Helper()
	return read[*appsv1.Deployment](w, deployments, "default", name)
}

func (w *world) setImage(name, image string) {
	w.Helper()
	change(w, deployments, "default", name, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
}

// sets are the ReplicaSets by image.
func (w *world) sets() map[string]*appsv1.ReplicaSet {
	w.Helper()
	found := map[string]*appsv1.ReplicaSet{}
	for _, rs := range all[*appsv1.ReplicaSet](w, replicaSets, "default") {
		found[rs.Spec.Template.Spec.Containers[0].Image] = rs
	}
	return found
}

func conditionOf(d *appsv1.Deployment, t appsv1.DeploymentConditionType) string {
	c := condition(&d.Status, t)
	if c == nil {
		return "none"
	}
	return fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
}

// conformance: Deployment RollingUpdate
func TestRollingUpdateAdopts(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		old := replicaSet("web", 1)
		old.Labels = map[string]string{"app": "web"}
		old.Annotations = map[string]string{revisionAnnotation: "3546343826724305832"}
		old.Spec.Template.Spec.Containers[0].Image = "image:0"
		old = create(w, replicaSets, old)
		w.settle(0)
		d := create(w, deployments, deployment("web", 1))
		w.settle(time.Second)
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if p.Spec.Containers[0].Image != "image:1" {
				t.Errorf("an old pod is left: %s", p.Name)
			}
		}
		was := read[*appsv1.ReplicaSet](w, replicaSets, "default", "web")
		if !metav1.IsControlledBy(was, d) || *was.Spec.Replicas != 0 {
			t.Errorf("the old set: owners %v, %d replicas", was.OwnerReferences, *was.Spec.Replicas)
		}
		if got := w.deployment("web").Annotations[revisionAnnotation]; got != "3546343826724305833" {
			t.Errorf("revision %s", got)
		}
	})
}

func TestRollout(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 4, func(d *appsv1.Deployment) { d.Annotations = map[string]string{"kubernetes.io/change-cause": "first"} }))
		w.settle(0)
		d := w.deployment("web")
		rs := w.sets()["image:1"]
		hash := rs.Labels[appsv1.DefaultDeploymentUniqueLabelKey]
		if rs.Name != "web-"+hash || rs.Spec.Selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] != hash || rs.Spec.Template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] != hash {
			t.Errorf("name %s, hash %s", rs.Name, hash)
		}
		wantNotes := map[string]string{revisionAnnotation: "1", desiredAnnotation: "4", maxAnnotation: "5", "kubernetes.io/change-cause": "first"}
		if !maps.Equal(rs.Annotations, wantNotes) {
			t.Errorf("annotations %v", rs.Annotations)
		}
		if d.Annotations[revisionAnnotation] != "1" || d.Generation != 1 || d.Status.ObservedGeneration != 1 {
			t.Errorf("revision %q, generation %d, observed %d", d.Annotations[revisionAnnotation], d.Generation, d.Status.ObservedGeneration)
		}
		if s := d.Status; s.Replicas != 4 || s.UpdatedReplicas != 4 || s.ReadyReplicas != 4 || s.AvailableReplicas != 4 || s.UnavailableReplicas != 0 {
			t.Errorf("status %+v", s)
		}
		for kind, want := range map[appsv1.DeploymentConditionType]string{
			appsv1.DeploymentProgressing: fmt.Sprintf("True NewReplicaSetAvailable: ReplicaSet %q has successfully progressed.", rs.Name),
			appsv1.DeploymentAvailable:   "True MinimumReplicasAvailable: Deployment has minimum availability.",
		} {
			if got := conditionOf(d, kind); got != want {
				t.Errorf("%s: %s", kind, got)
			}
		}
		if got := w.events("web"); !slices.Contains(got, fmt.Sprintf("ScalingReplicaSet: Scaled up replica set %s from 0 to 4", rs.Name)) {
			t.Errorf("events %q", got)
		}

		w.setImage("web", "image:2")
		w.settle(time.Second)
		sets := w.sets()
		if *sets["image:1"].Spec.Replicas != 0 || sets["image:2"].Status.AvailableReplicas != 4 {
			t.Errorf("sizes %d, %d", *sets["image:1"].Spec.Replicas, sets["image:2"].Status.AvailableReplicas)
		}
		if w.deployment("web").Annotations[revisionAnnotation] != "2" || sets["image:2"].Annotations[revisionAnnotation] != "2" {
			t.Errorf("revisions of %v", w.deployment("web").Annotations)
		}

		// kubectl rollout undo puts the old template back: the old set is the
		// new one, with the next revision, and remembers its first.
		w.setImage("web", "image:1")
		w.settle(time.Second)
		again := w.sets()["image:1"]
		if again.UID != rs.UID || again.Annotations[revisionAnnotation] != "3" || again.Annotations[revisionHistoryAnnotation] != "1" || again.Status.AvailableReplicas != 4 {
			t.Errorf("undone: %v, %+v", again.Annotations, again.Status)
		}
	})
}

// At no moment of a rollout are there more pods than asked for and maxSurge,
// or fewer available than maxUnavailable leaves.
func TestRolloutStaysWithinBounds(t *testing.T) {
	for _, tc := range []struct {
		surge, unavailable string
		most, least        int32
	}{{"25%", "25%", 13, 8}, {"0", "1", 10, 9}, {"1", "0", 11, 10}, {"100%", "0", 20, 10}} {
		t.Run(tc.surge+" "+tc.unavailable, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.addNode("a")
				create(w, deployments, deployment("web", 10, bounded(tc.surge, tc.unavailable)))
				w.settle(time.Second)
				w.agent.set(func() { w.agent.hold = func(p *corev1.Pod) bool { return !podReady(p) } })
				w.setImage("web", "image:2")
				for round := range 60 {
					// A third of the pods that wait become ready, others each time.
					w.agent.set(func() {
						w.agent.hold = func(p *corev1.Pod) bool { return !podReady(p) && (int(p.UID[0])+round)%3 != 0 }
					})
					w.settle(0)
					live, ready := int32(0), int32(0)
					for _, p := range all[*corev1.Pod](w, pods, "default") {
						if podActive(p) {
							live++
							if podReady(p) {
								ready++
							}
						}
					}
					if live > tc.most || ready < tc.least {
						t.Fatalf("round %d: %d pods, %d ready", round, live, ready)
					}
				}
				w.agent.set(func() { w.agent.hold = nil })
				w.settle(time.Second)
				if d := w.deployment("web"); d.Status.UpdatedReplicas != 10 || d.Status.Replicas != 10 || d.Status.AvailableReplicas != 10 {
					t.Errorf("never done: %+v", d.Status)
				}
			})
		})
	}
}

// A rollout whose pods never become ready stops where availability demands it,
// and is called failed after its deadline.
//
// conformance: Deployment Rollover
func TestProgressDeadline(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		deadline := int32(60)
		create(w, deployments, deployment("web", 4, bounded("1", "1"), func(d *appsv1.Deployment) { d.Spec.ProgressDeadlineSeconds = &deadline }))
		w.settle(time.Second)
		w.agent.set(func() {
			w.agent.hold = func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "image:2" }
		})
		w.setImage("web", "image:2")
		w.settle(30 * time.Second)
		name := w.sets()["image:2"].Name
		if got, want := conditionOf(w.deployment("web"), appsv1.DeploymentProgressing), fmt.Sprintf("True ReplicaSetUpdated: ReplicaSet %q is progressing.", name); got != want {
			t.Errorf("%s", got)
		}
		if s := w.deployment("web").Status; s.AvailableReplicas != 3 || s.UpdatedReplicas != 2 || s.Replicas != 5 {
			t.Errorf("status %+v", s)
		}
		w.settle(40 * time.Second)
		if got, want := conditionOf(w.deployment("web"), appsv1.DeploymentProgressing), fmt.Sprintf("False ProgressDeadlineExceeded: ReplicaSet %q has timed out progressing.", name); got != want {
			t.Errorf("%s", got)
		}
		// Another template rolls over the failed one.
		w.setImage("web", "image:3")
		w.settle(time.Second)
		sets := w.sets()
		if *sets["image:1"].Spec.Replicas+*sets["image:2"].Spec.Replicas != 0 || sets["image:3"].Status.AvailableReplicas != 4 {
			t.Errorf("rollover: %d %d", *sets["image:1"].Spec.Replicas, *sets["image:2"].Spec.Replicas)
		}
		if got := conditionOf(w.deployment("web"), appsv1.DeploymentProgressing); !strings.HasPrefix(got, "True NewReplicaSetAvailable") {
			t.Error(got)
		}
	})
}

// conformance: Deployment Recreate
func TestRecreate(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 2, recreating))
		w.settle(time.Second)
		w.agent.set(func() { w.agent.linger = true })
		w.setImage("web", "image:2")
		w.settle(time.Minute)
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if p.Spec.Containers[0].Image != "image:1" || p.DeletionTimestamp == nil {
				t.Errorf("pod of %s while the old ones end", p.Spec.Containers[0].Image)
			}
		}
		w.agent.set(func() { w.agent.linger = false })
		w.settle(time.Second)
		if s := w.deployment("web").Status; s.AvailableReplicas != 2 || s.UpdatedReplicas != 2 {
			t.Errorf("status %+v", s)
		}
	})
}

// conformance: Deployment Proportional Scaling
func TestProportionalScaling(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 10, bounded("3", "2")))
		w.settle(time.Second)
		w.agent.set(func() {
			w.agent.hold = func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "image:404" }
		})
		w.setImage("web", "image:404")
		w.settle(time.Second)
		sets := w.sets()
		if old, young := *sets["image:1"].Spec.Replicas, *sets["image:404"].Spec.Replicas; old != 8 || young != 5 {
			t.Fatalf("before: %d and %d", old, young)
		}
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { *d.Spec.Replicas = 30 })
		w.settle(time.Second)
		sets = w.sets()
		if old, young := *sets["image:1"].Spec.Replicas, *sets["image:404"].Spec.Replicas; old != 20 || young != 13 {
			t.Errorf("after: %d and %d", old, young)
		}
	})
}

// conformance: Deployment RevisionHistoryLimit
func TestRevisionHistoryLimit(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		limit := int32(1)
		create(w, deployments, deployment("web", 1, func(d *appsv1.Deployment) { d.Spec.RevisionHistoryLimit = &limit }))
		w.settle(time.Second)
		for _, image := range []string{"image:2", "image:3", "image:4"} {
			w.setImage("web", image)
			w.settle(time.Second)
		}
		if got := slices.Sorted(maps.Keys(w.sets())); !slices.Equal(got, []string{"image:3", "image:4"}) {
			t.Errorf("left: %v", got)
		}
	})
}

func TestPause(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 2))
		w.settle(time.Second)
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { d.Spec.Paused = true })
		w.setImage("web", "image:2")
		w.settle(time.Hour)
		if _, made := w.sets()["image:2"]; made {
			t.Error("a paused deployment rolled out")
		}
		if got := conditionOf(w.deployment("web"), appsv1.DeploymentProgressing); got != "Unknown DeploymentPaused: Deployment is paused" {
			t.Error(got)
		}
		// It scales all the same.
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { *d.Spec.Replicas = 5 })
		w.settle(time.Second)
		if n := *w.sets()["image:1"].Spec.Replicas; n != 5 {
			t.Errorf("%d replicas", n)
		}
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.settle(time.Second)
		if s := w.deployment("web").Status; s.UpdatedReplicas != 5 || s.AvailableReplicas != 5 || s.Replicas != 5 {
			t.Errorf("status %+v", s)
		}
	})
}

// A name that is taken by another template is a collision of hashes: counted,
// and then another name.
func TestCollision(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		d := create(w, deployments, deployment("web", 1, func(d *appsv1.Deployment) { d.Spec.Paused = true }))
		w.settle(time.Second)
		hash, err := templateHash(&d.Spec.Template, nil)
		if err != nil {
			t.Fatal(err)
		}
		squatter := replicaSet("web-"+hash, 0)
		create(w, replicaSets, squatter)
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.settle(time.Second)
		d = w.deployment("web")
		if d.Status.CollisionCount == nil || *d.Status.CollisionCount != 1 || d.Status.AvailableReplicas != 1 {
			t.Errorf("status %+v", d.Status)
		}
	})
}

func TestBounds(t *testing.T) {
	for _, tc := range []struct {
		replicas           int32
		surge, unavailable string
		wantS, wantU       int32
	}{
		{10, "25%", "25%", 3, 2}, {1, "25%", "25%", 1, 0}, {10, "0", "0", 0, 1}, {3, "1", "5", 1, 3}, {4, "0%", "10%", 0, 1}, {0, "25%", "25%", 0, 0},
	} {
		d := deployment("d", tc.replicas, bounded(tc.surge, tc.unavailable))
		if s, u := bounds(d); s != tc.wantS || u != tc.wantU {
			t.Errorf("%d replicas, %s %s: %d %d", tc.replicas, tc.surge, tc.unavailable, s, u)
		}
	}
}
