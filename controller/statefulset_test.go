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
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func statefulSet(name string, n int32, edit ...func(*appsv1.StatefulSet)) *appsv1.StatefulSet {
	s := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &n, ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template(name, "image:1"),
		},
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func inParallel(s *appsv1.StatefulSet) { s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement }

func withClaim(name string) func(*appsv1.StatefulSet) {
	return func(s *appsv1.StatefulSet) {
		s.Spec.VolumeClaimTemplates = append(s.Spec.VolumeClaimTemplates, corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
			},
		})
	}
}

// stateful shows pods in the order of their names: "web-0:1" runs image:1.
func (w *world) stateful() string {
	w.Helper()
	var shown []string
	for _, p := range all[*corev1.Pod](w, pods, "default") {
		s := p.Name + ":" + strings.TrimPrefix(p.Spec.Containers[0].Image, "image:")
		if p.DeletionTimestamp != nil {
			s += " ending"
		} else if !podReady(p) {
			s += " unready"
		}
		shown = append(shown, s)
	}
	slices.Sort(shown)
	return strings.Join(shown, ", ")
}

func (w *world) podsAre(want string) {
	w.Helper()
	w.settle(0)
	if got := w.stateful(); got != want {
		w.Fatalf("pods are %q, want %q", got, want)
	}
}

func (w *world) holdBack(names ...string) {
	w.agent.set(func() { w.agent.hold = func(p *corev1.Pod) bool { return slices.Contains(names, p.Name) } })
	w.settle(0)
}

func (w *world) scale(name string, n int32) {
	w.Helper()
	change(w, statefulSets, "default", name, func(s *appsv1.StatefulSet) { s.Spec.Replicas = &n })
}

// conformance: StatefulSet, Scaling
func TestStatefulSetScalesInOrder(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		w.holdBack("web-1")
		create(w, statefulSets, statefulSet("web", 3))
		w.podsAre("web-0:1, web-1:1 unready") // and nothing beyond
		w.holdBack()
		w.podsAre("web-0:1, web-1:1, web-2:1")
		set := read[*appsv1.StatefulSet](w, statefulSets, "default", "web")
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			n := strings.TrimPrefix(p.Name, "web-")
			want := map[string]string{"app": "web", "statefulset.kubernetes.io/pod-name": p.Name, "apps.kubernetes.io/pod-index": n, "controller-revision-hash": set.Status.CurrentRevision}
			if !maps.Equal(p.Labels, want) || p.Spec.Hostname != p.Name || p.Spec.Subdomain != "web" || !metav1.IsControlledBy(p, set) {
				t.Errorf("pod %s: labels %v, %s.%s, owners %v", p.Name, p.Labels, p.Spec.Hostname, p.Spec.Subdomain, p.OwnerReferences)
			}
			if got := w.events("web"); !slices.Contains(got, "SuccessfulCreate: create Pod "+p.Name+" in StatefulSet web successful") {
				t.Errorf("events %q", got)
			}
		}
		if s := set.Status; s.Replicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.CurrentReplicas != 3 || s.UpdatedReplicas != 3 ||
			s.ObservedGeneration != set.Generation || s.CurrentRevision != s.UpdateRevision || s.CollisionCount == nil || *s.CollisionCount != 0 {
			t.Errorf("status %+v", s)
		}
		// Down from the top, one after the other; and not at all while one
		// that stays is not well.
		w.agent.set(func() { w.agent.linger = true })
		w.scale("web", 1)
		w.podsAre("web-0:1, web-1:1, web-2:1 ending")
		w.agent.set(func() { w.agent.linger = false })
		w.podsAre("web-0:1")
		w.scale("web", 2)
		w.podsAre("web-0:1, web-1:1")
		w.holdBack("web-0")
		w.scale("web", 1)
		w.podsAre("web-0:1 unready, web-1:1")
		w.holdBack()
		w.podsAre("web-0:1")
		if !slices.Contains(w.events("web"), "SuccessfulDelete: delete Pod web-1 in StatefulSet web successful") {
			t.Errorf("events %q", w.events("web"))
		}
	})
}

// conformance: StatefulSet, Burst Scaling
func TestStatefulSetInParallel(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		w.holdBack("web-0", "web-1", "web-2")
		create(w, statefulSets, statefulSet("web", 3, inParallel))
		w.podsAre("web-0:1 unready, web-1:1 unready, web-2:1 unready")
		w.scale("web", 1)
		w.podsAre("web-0:1 unready")
	})
}

func TestStatefulSetOrdinals(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 2, func(s *appsv1.StatefulSet) { s.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5} }))
		w.podsAre("web-5:1, web-6:1")
		change(w, statefulSets, "default", "web", func(s *appsv1.StatefulSet) { s.Spec.Ordinals.Start = 6 })
		w.podsAre("web-6:1, web-7:1")
	})
}

// A pod that fails is deleted and made anew under its name; one that is deleted
// comes back only when it is gone.
//
// conformance: StatefulSet, Recreate Failed Pod
func TestStatefulSetReplacesPods(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 1))
		w.podsAre("web-0:1")
		before := read[*corev1.Pod](w, pods, "default", "web-0")
		change(w, pods, "default", "web-0", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "status")
		w.podsAre("web-0:1")
		after := read[*corev1.Pod](w, pods, "default", "web-0")
		if after.UID == before.UID {
			t.Error("the failed pod is still there")
		}
		if !slices.Contains(w.events("web"), "RecreatingFailedPod: StatefulSet default/web is recreating failed Pod web-0") {
			t.Errorf("events %q", w.events("web"))
		}
		w.agent.set(func() { w.agent.linger = true })
		w.remove(pods, "default", "web-0", metav1.DeletePropagationBackground)
		w.podsAre("web-0:1 ending")
		if n := read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status.Replicas; n != 1 {
			t.Errorf("%d replicas while one ends", n)
		}
		w.agent.set(func() { w.agent.linger = false })
		w.podsAre("web-0:1")
		if now := read[*corev1.Pod](w, pods, "default", "web-0"); now.UID == after.UID {
			t.Error("the deleted pod is still there")
		}
	})
}

func (w *world) roll(name, image string) {
	w.Helper()
	change(w, statefulSets, "default", name, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = image })
}

// conformance: StatefulSet, Rolling Update
func TestStatefulSetRollsAndRollsBack(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 3))
		w.podsAre("web-0:1, web-1:1, web-2:1")
		first := read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status.CurrentRevision
		w.holdBack("web-1")
		w.holdBack()
		w.agent.set(func() {
			w.agent.hold = func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "image:2" && p.Name == "web-1" }
		})
		w.roll("web", "image:2")
		w.podsAre("web-0:1, web-1:2 unready, web-2:2")
		s := read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status
		if s.CurrentRevision != first || s.UpdateRevision == first || s.CurrentReplicas != 1 || s.UpdatedReplicas != 2 {
			t.Errorf("half way: %+v", s)
		}
		w.holdBack()
		w.podsAre("web-0:2, web-1:2, web-2:2")
		s = read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status
		if s.CurrentRevision == first || s.CurrentRevision != s.UpdateRevision || s.CurrentReplicas != 3 || s.UpdatedReplicas != 3 {
			t.Errorf("done: %+v", s)
		}
		// Back to what was there: the old revision is the newest again.
		w.roll("web", "image:1")
		w.podsAre("web-0:1, web-1:1, web-2:1")
		history := all[*appsv1.ControllerRevision](w, revisions, "default")
		slices.SortFunc(history, oldestRevision)
		if len(history) != 2 || history[1].Name != first || history[1].Revision != 3 {
			t.Errorf("history: %d revisions, the newest %s as %d", len(history), history[len(history)-1].Name, history[len(history)-1].Revision)
		}
		if got := string(history[1].Data.Raw); !strings.HasPrefix(got, `{"spec":{"template":{"$patch":"replace",`) {
			t.Errorf("data is %s", got)
		}
	})
}

// conformance: StatefulSet, Rolling Update with Partition
func TestStatefulSetPartition(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		partition := func(n int32) func(s *appsv1.StatefulSet) {
			return func(s *appsv1.StatefulSet) {
				s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &n}
			}
		}
		create(w, statefulSets, statefulSet("web", 3, partition(3)))
		w.podsAre("web-0:1, web-1:1, web-2:1")
		w.roll("web", "image:2")
		w.podsAre("web-0:1, web-1:1, web-2:1")
		change(w, statefulSets, "default", "web", partition(2))
		w.podsAre("web-0:1, web-1:1, web-2:2")
		// Those that are deleted come back as what they were.
		w.remove(pods, "default", "web-0", metav1.DeletePropagationBackground)
		w.remove(pods, "default", "web-2", metav1.DeletePropagationBackground)
		w.podsAre("web-0:1, web-1:1, web-2:2")
		change(w, statefulSets, "default", "web", partition(0))
		w.podsAre("web-0:2, web-1:2, web-2:2")
	})
}

func TestStatefulSetOnDelete(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 2, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType }))
		w.podsAre("web-0:1, web-1:1")
		w.roll("web", "image:2")
		w.podsAre("web-0:1, web-1:1")
		w.remove(pods, "default", "web-0", metav1.DeletePropagationBackground)
		w.podsAre("web-0:2, web-1:1")
	})
}

func TestStatefulSetHistoryLimit(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		one := int32(1)
		create(w, statefulSets, statefulSet("web", 1, func(s *appsv1.StatefulSet) { s.Spec.RevisionHistoryLimit = &one }))
		w.podsAre("web-0:1")
		for i := 2; i <= 5; i++ {
			w.roll("web", fmt.Sprint("image:", i))
			w.podsAre(fmt.Sprint("web-0:", i))
		}
		var left []int64
		for _, r := range all[*appsv1.ControllerRevision](w, revisions, "default") {
			left = append(left, r.Revision)
		}
		if slices.Sort(left); !slices.Equal(left, []int64{4, 5}) {
			t.Errorf("revisions %v are left", left)
		}
	})
}

// A revision whose name another template's has is given another name.
func TestStatefulSetCollision(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 1))
		w.podsAre("web-0:1")
		r := all[*appsv1.ControllerRevision](w, revisions, "default")[0]
		w.remove(statefulSets, "default", "web", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		create(w, revisions, &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: r.Name}, Data: *r.Data.DeepCopy()})
		create(w, statefulSets, statefulSet("web", 1))
		w.podsAre("web-0:1")
		if s := read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status; *s.CollisionCount != 1 || s.CurrentRevision == r.Name {
			t.Errorf("status %+v", s)
		}
	})
}

func TestStatefulSetMinReadySeconds(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 2, func(s *appsv1.StatefulSet) { s.Spec.MinReadySeconds = 30 }))
		w.settle(29 * time.Second)
		w.podsAre("web-0:1")
		if s := read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status; s.ReadyReplicas != 1 || s.AvailableReplicas != 0 {
			t.Errorf("early: %+v", s)
		}
		w.settle(2 * time.Second)
		w.podsAre("web-0:1, web-1:1")
		w.settle(31 * time.Second)
		if s := read[*appsv1.StatefulSet](w, statefulSets, "default", "web").Status; s.AvailableReplicas != 2 {
			t.Errorf("late: %+v", s)
		}
	})
}

// A set takes pods that have its labels and one of its names, nothing else.
func TestStatefulSetAdopts(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		for _, name := range []string{"web-0", "web-x", "web-01"} {
			create(w, pods, plainPod(name, func(p *corev1.Pod) { p.Labels = map[string]string{"app": "web"} }))
		}
		w.settle(0)
		set := create(w, statefulSets, statefulSet("web", 1))
		w.settle(0)
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if owned := metav1.IsControlledBy(p, set); owned != (p.Name == "web-0") {
				t.Errorf("%s is owned: %t", p.Name, owned)
			}
		}
		// It never had the labels that say who it is.
		if l := read[*corev1.Pod](w, pods, "default", "web-0").Labels; l["apps.kubernetes.io/pod-index"] != "0" {
			t.Errorf("labels %v", l)
		}
	})
}

func (w *world) claimNames() string {
	var names []string
	for _, c := range all[*corev1.PersistentVolumeClaim](w, claims, "default") {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func TestStatefulSetClaims(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 2, withClaim("data")))
		w.podsAre("web-0:1, web-1:1")
		if got := w.claimNames(); got != "data-web-0, data-web-1" {
			t.Errorf("claims %s", got)
		}
		c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data-web-0")
		if c.Labels["app"] != "web" || len(c.OwnerReferences) != 0 {
			t.Errorf("labels %v, owners %v", c.Labels, c.OwnerReferences)
		}
		p := read[*corev1.Pod](w, pods, "default", "web-1")
		if v := p.Spec.Volumes[0]; v.Name != "data" || v.PersistentVolumeClaim == nil || v.PersistentVolumeClaim.ClaimName != "data-web-1" {
			t.Errorf("volume %+v", v)
		}
		if !slices.Contains(w.events("web"), "SuccessfulCreate: create Claim data-web-0 Pod web-0 in StatefulSet web successful") {
			t.Errorf("events %q", w.events("web"))
		}
		w.scale("web", 1)
		w.podsAre("web-0:1")
		w.remove(statefulSets, "default", "web", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		w.podsAre("")
		if got := w.claimNames(); got != "data-web-0, data-web-1" {
			t.Errorf("claims %s after the set", got)
		}
	})
}

func TestStatefulSetClaimRetention(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, statefulSets, statefulSet("web", 3, withClaim("data"), func(s *appsv1.StatefulSet) {
			s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: "Delete", WhenScaled: "Delete"}
		}))
		w.podsAre("web-0:1, web-1:1, web-2:1")
		old := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data-web-2").UID
		w.scale("web", 2)
		w.settle(time.Second)
		if got := w.claimNames(); got != "data-web-0, data-web-1" {
			t.Errorf("claims %s after scaling", got)
		}
		// A pod that comes again gets a claim of its own, not what is left of
		// the one before.
		w.scale("web", 3)
		w.settle(time.Second)
		w.podsAre("web-0:1, web-1:1, web-2:1")
		if c := read[*corev1.PersistentVolumeClaim](w, claims, "default", "data-web-2"); c.UID == old {
			t.Error("the claim of the pod before")
		}
		w.remove(statefulSets, "default", "web", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if got := w.claimNames(); got != "" {
			t.Errorf("claims %s after the set", got)
		}
	})
}

// TestStatefulSteps shows what is done at once in states that are hard to bring
// about.
func TestStatefulSteps(t *testing.T) {
	now := time.Unix(1e6, 0)
	gone := metav1.NewTime(now)
	// A pod is written as its place, its revision, and what is wrong with it.
	pods := func(text string) map[int]*corev1.Pod {
		all := map[int]*corev1.Pod{}
		for _, one := range strings.Fields(text) {
			var n int
			var revision string
			if _, err := fmt.Sscanf(strings.NewReplacer("@", " ", "!", " ", "-", " ", "x", " ").Replace(one), "%d %s", &n, &revision); err != nil {
				t.Fatal(one, err)
			}
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("web-", n)}}
			p.Labels = map[string]string{"controller-revision-hash": revision, "statefulset.kubernetes.io/pod-name": p.Name, "apps.kubernetes.io/pod-index": fmt.Sprint(n)}
			p.Status.Phase = corev1.PodRunning
			if !strings.Contains(one, "!") {
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			}
			if strings.HasSuffix(one, "-") {
				p.DeletionTimestamp = &gone
			}
			if strings.HasSuffix(one, "x") {
				p.Status.Phase = corev1.PodFailed
			}
			all[n] = p
		}
		return all
	}
	unavailable := func(v intstr.IntOrString) func(*appsv1.StatefulSet) {
		return func(s *appsv1.StatefulSet) {
			s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{MaxUnavailable: &v}
		}
	}
	held := func(s *appsv1.StatefulSet) { s.Annotations = map[string]string{"held": "1"} }
	for _, tc := range []struct {
		name, pods string
		n          int32
		edit       []func(*appsv1.StatefulSet)
		want       string
	}{
		{"first", "", 3, nil, "+0@new"},
		{"second", "0@new", 3, nil, "+1@new"},
		{"a hole", "0@new 2@new", 3, nil, "+1@new"},
		{"all at once", "1@new", 3, []func(*appsv1.StatefulSet){inParallel}, "+0@new +2@new"},
		{"claims that go", "0@new", 3, []func(*appsv1.StatefulSet){held}, ""},
		{"claims that go, in parallel", "0@new", 3, []func(*appsv1.StatefulSet){held, inParallel}, "+2@new"},
		{"one ends", "0@new 1@new-", 3, nil, ""},
		{"one failed", "0@new 1@newx", 3, nil, "~1"},
		{"one failed and ends", "0@new 1@newx-", 3, nil, ""},
		{"surplus", "0@new 1@new 2@new", 1, nil, "-2"},
		{"surplus in parallel", "0@new 1@new 2@new", 1, []func(*appsv1.StatefulSet){inParallel}, "-2 -1"},
		{"surplus that is ill goes", "0@new 1@new!", 1, nil, "-1"},
		{"surplus waits for a lower one", "0@new 1@new! 2@new!", 1, nil, ""},
		{"surplus that ends", "0@new 1@new 2@new-", 1, nil, ""},
		{"roll", "0@old 1@old 2@old", 3, nil, "-2"},
		{"roll goes on", "0@old 1@old 2@new", 3, nil, "-1"},
		{"roll waits", "0@old 1@old 2@new!", 3, []func(*appsv1.StatefulSet){inParallel}, ""},
		{"two at a time", "0@old 1@old 2@old 3@old", 4, []func(*appsv1.StatefulSet){unavailable(intstr.FromInt32(2))}, "-3 -2"},
		{"two at a time, one missing", "0@old 1@old 2@old 3@new!", 4, []func(*appsv1.StatefulSet){inParallel, unavailable(intstr.FromInt32(2))}, "-2"},
		{"half at a time", "0@old 1@old 2@old", 3, []func(*appsv1.StatefulSet){unavailable(intstr.FromString("50%"))}, "-2 -1"},
		{"an old one that is ill is not missed", "0@old! 1@old 2@old", 3, []func(*appsv1.StatefulSet){inParallel}, "-0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &statefulState{set: statefulSet("web", tc.n, tc.edit...), current: "old", update: "new", pods: pods(tc.pods), now: now}
			s.set.Spec.UpdateStrategy.Type = appsv1.RollingUpdateStatefulSetStrategyType
			s.held = func(n int) bool { return n == 1 && s.set.Annotations["held"] != "" }
			var got []string
			todo, _ := s.steps()
			for _, step := range todo {
				switch step.verb {
				case createPod:
					got = append(got, fmt.Sprintf("+%d@%s", step.ordinal, step.revision))
				case replacePod:
					got = append(got, fmt.Sprint("~", step.ordinal))
				default:
					got = append(got, fmt.Sprint("-", step.ordinal))
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%q, want %q", strings.Join(got, " "), tc.want)
			}
		})
	}
}
