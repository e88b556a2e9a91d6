package controller

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// withAClaim makes a pod one that must not run twice.
func withAClaim(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
}

// unreachableAt0 is what the API adds to pods by default.
func unreachableAt0(p *corev1.Pod) {
	p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: new(int64)}}
}

func TestFencedPodWaitsForItsFence(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		inWorld(t, func(w *world) {
			w.addNode("a")
			create(w, pods, plainPod("fenced", withAClaim))
			create(w, pods, plainPod("plain"))
			w.settle(time.Second)
			if deleted {
				w.agent.set(func() { w.agent.linger = true })
				w.remove(pods, "default", "fenced", metav1.DeletePropagationBackground)
			}
			w.agent.set(func() { w.agent.nodes = nil })
			w.liveness.set("a", Suspect)
			w.settle(3 * time.Second)
			w.liveness.set("a", Dead)
			w.liveness.mu.Lock()
			w.liveness.since["a"] = time.Now().Add(-3 * time.Second) // it was silent before it was called dead
			w.liveness.mu.Unlock()
			w.settle(testFence - 3*time.Second - time.Millisecond)
			if !w.exists(pods, "default", "fenced") || w.exists(pods, "default", "plain") {
				t.Errorf("deleted %v: with the fence up, fenced: %v, plain: %v", deleted, w.exists(pods, "default", "fenced"), w.exists(pods, "default", "plain"))
			}
			w.settle(time.Second)
			if w.exists(pods, "default", "fenced") {
				t.Errorf("deleted %v: the pod stays though its fence is down", deleted)
			}
			if got := w.events("fenced"); !deleted && !slices.ContainsFunc(got, func(e string) bool { return strings.HasPrefix(e, "Fenced: Node a lost") }) {
				t.Errorf("events %q", got)
			}
		})
	}
}

// The node is back between the judgement and the deletion: it has written about
// its pod, and the pod stays.
func TestFencedPodIsDeletedAsItWasSeen(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("fenced", withAClaim))
		w.settle(time.Second)
		seen := read[*corev1.Pod](w, pods, "default", "fenced")
		change(w, pods, "default", "fenced", func(p *corev1.Pod) { p.Status.Message = "it runs" }, "status")
		err := w.manager.env.deleteAsSeen(w.ctx, seen, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		if err == nil || !w.exists(pods, "default", "fenced") {
			t.Errorf("a pod that its node wrote about was deleted: %v", err)
		}
	})
}

// On a host that lacks our process an ordinary pod runs on; a fenced one was
// killed by its own process, and is replaced when its node is called unreachable.
func TestFencedPodOnARefusedHost(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("fenced", withAClaim, unreachableAt0))
		create(w, pods, plainPod("patient", withAClaim, func(p *corev1.Pod) {
			unreachableAt0(p)
			*p.Spec.Tolerations[0].TolerationSeconds = 60
		}))
		create(w, pods, plainPod("plain", unreachableAt0))
		w.settle(time.Second)
		w.agent.set(func() { w.agent.nodes = nil })
		w.liveness.set("a", Refused)
		for _, step := range []struct {
			after                  time.Duration
			fenced, patient, plain bool
		}{{refusedGrace - time.Second, true, true, true}, {2 * time.Second, false, true, true}, {time.Minute, false, false, true}} {
			w.settle(step.after)
			for name, want := range map[string]bool{"fenced": step.fenced, "patient": step.patient, "plain": step.plain} {
				if w.exists(pods, "default", name) != want {
					t.Errorf("%s on: %s is there: %v", step.after, name, !want)
				}
			}
		}
	})
}

func TestCoolDown(t *testing.T) {
	for losses, want := range []time.Duration{0, 0, 0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 2 * time.Minute, 2 * time.Minute, 2 * time.Minute} {
		if got := coolDown(losses); got != want {
			t.Errorf("%d losses: %s, want %s", losses, got, want)
		}
	}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	annotation := "nonsense"
	for i := range 20 {
		annotation = noteLoss(annotation, now.Add(time.Duration(i)*5*time.Minute))
	}
	if got := len(losses(annotation, now.Add(95*time.Minute))); got != 6 {
		t.Errorf("of a loss each 5 minutes %d count: %s", got, annotation)
	}
	for i := range 20 {
		annotation = noteLoss(annotation, now.Add(95*time.Minute+time.Duration(i)*time.Second))
	}
	if n := strings.Count(annotation, ","); n > lossesToKeep {
		t.Errorf("the annotation grows: %s", annotation)
	}
}

// A leader whose clock is a day ahead lets a node cool down, and then its clock
// is set, or another one leads: the node is not out for a day.
func TestCoolDownByAWrongClock(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		ahead := time.Now().Add(24 * time.Hour)
		change(w, nodes, "", "a", func(n *corev1.Node) {
			n.Annotations[coolDownAnnotation] = ahead.UTC().Format(time.RFC3339)
			n.Annotations[lossesAnnotation] = noteLoss(noteLoss(noteLoss("", ahead), ahead), ahead)
		})
		w.settle(time.Second)
		n := w.node("a")
		if got := readyOf(n); cooling(n) || !strings.HasPrefix(got, "True ") {
			t.Errorf("it is out until %q: %s", n.Annotations[coolDownAnnotation], got)
		}
		w.liveness.set("a", Dead)
		w.settle(time.Second)
		w.liveness.set("a", Alive)
		w.settle(0)
		if got := readyOf(w.node("a")); !strings.HasPrefix(got, "True ") {
			t.Errorf("lost once, and back: %s", got)
		}
	})
}

// A node that is lost again and again gets nothing for a while when it is back,
// in which it is lost again at once.
func TestFlappingNode(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		flap := func() {
			w.liveness.set("a", Dead)
			w.settle(time.Second)
			w.liveness.set("a", Alive)
			w.settle(0)
		}
		for range 2 {
			flap()
			if got := readyOf(w.node("a")); !strings.HasPrefix(got, "True ") {
				t.Fatalf("lost for the first two times and back: %s", got)
			}
		}
		flap()
		n := w.node("a")
		if got := readyOf(n); !strings.HasPrefix(got, "Unknown NodeStatusUnknown: Node was lost 3 times in the last 30m0s: it gets no pods and no traffic until ") {
			t.Error(got)
		}
		if got := taintsOf(n); got != "unreachable:NoSchedule" {
			t.Errorf("taints %s", got)
		}
		if got := w.events("a"); !slices.Contains(got, "NodeCoolingDown: Node a was lost 3 times in the last 30m0s: it gets no pods and no traffic for 10s") {
			t.Errorf("events %q", got)
		}
		w.settle(5 * time.Second)
		w.liveness.set("a", Suspect) // a doubt changes nothing
		w.settle(time.Second)
		if got := taintsOf(w.node("a")); got != "unreachable:NoSchedule" {
			t.Errorf("in doubt: taints %s", got)
		}
		w.liveness.set("a", Alive)
		// Its agent reports anew, as after a reboot: that does not end it.
		change(w, nodes, "", "a", func(n *corev1.Node) {
			r := readyCondition(n)
			r.Status, r.Reason, r.Message = corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"
		}, "status")
		w.settle(time.Second)
		if got := readyOf(w.node("a")); !strings.HasPrefix(got, "Unknown ") {
			t.Errorf("after a report: %s", got)
		}
		flap() // lost for the fourth time before it was cool
		if got := readyOf(w.node("a")); !strings.Contains(got, "lost 4 times") {
			t.Error(got)
		}
		w.settle(15 * time.Second)
		if got := readyOf(w.node("a")); !strings.HasPrefix(got, "Unknown ") {
			t.Errorf("after 15 of 20 s: %s", got)
		}
		w.settle(6 * time.Second)
		n = w.node("a")
		if got := readyOf(n); !strings.HasPrefix(got, "True KubeletReady: ") || taintsOf(n) != "" || cooling(n) {
			t.Errorf("cool: %s, taints %s, annotations %v", got, taintsOf(n), n.Annotations)
		}
		w.settle(time.Hour)
		flap()
		if got := readyOf(w.node("a")); !strings.HasPrefix(got, "True ") {
			t.Errorf("lost once after an hour and back: %s", got)
		}
	})
}

// Pods on a node that cools down get no traffic.
func TestNoTrafficWhileCooling(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, services, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.96.7.7", Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80}}},
		})
		create(w, pods, plainPod("web", func(p *corev1.Pod) {
			p.Labels["app"] = "web"
			p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}))
		w.settle(time.Second)
		ready := func() (n int) {
			for _, e := range all[*corev1.Endpoints](w, endpoints, "default") {
				for _, s := range e.Subsets {
					n += len(s.Addresses)
				}
			}
			return n
		}
		if ready() != 1 {
			t.Fatalf("%d addresses", ready())
		}
		for range 3 {
			w.liveness.set("a", Dead)
			w.settle(time.Second)
			w.liveness.set("a", Alive)
			w.agent.poke() // its agent reports its pod again
			w.settle(time.Second)
		}
		if ready() != 0 || !podReady(read[*corev1.Pod](w, pods, "default", "web")) {
			t.Errorf("while it cools down: %d addresses, the pod is ready: %v", ready(), podReady(read[*corev1.Pod](w, pods, "default", "web")))
		}
		w.settle(12 * time.Second)
		if ready() != 1 {
			t.Errorf("when it has: %d addresses", ready())
		}
	})
}

// A volume on a dead node's disk keeps its pod there; one that others reach too
// does not.
func TestPodTiedToADeadNode(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, name := range []string{"a", "b"} {
			w.addNode(name, func(n *corev1.Node) { n.Labels[corev1.LabelHostname] = name })
		}
		w.agent.set(func() { w.agent.nodes = []string{"a"} })
		mounting := func(name string, hosts ...string) {
			create(w, volumes, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: corev1.ResourceList{"storage": resource.MustParse("1Gi")},
				PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/data"}},
				NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: hosts}}}}}},
			}})
			create(w, claims, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data-" + name}, Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, VolumeName: "pv-" + name,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{"storage": resource.MustParse("1Gi")}},
			}})
			create(w, pods, plainPod(name, func(p *corev1.Pod) {
				p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data-" + name}}}}
			}))
		}
		mounting("local", "a")
		mounting("shared", "a", "b")
		w.settle(time.Second)
		for range 3 { // each of which looks at the pods anew
			w.liveness.set("a", Suspect)
			w.settle(time.Second)
			w.liveness.set("a", Dead)
			w.settle(testFence + time.Second)
		}
		if !w.exists(pods, "default", "local") || w.exists(pods, "default", "shared") {
			t.Errorf("the pod on the node's own disk is there: %v; the other: %v", w.exists(pods, "default", "local"), w.exists(pods, "default", "shared"))
		}
		said := 0
		for _, e := range all[*corev1.Event](w, events, "default") {
			if e.InvolvedObject.Name == "local" && e.Reason == "VolumeOnLostNode" {
				said += int(e.Count)
				if !strings.Contains(e.Message, "Volume pv-local lies on node a") {
					t.Error(e.Message)
				}
			}
		}
		if said != 1 {
			t.Errorf("it was said %d times why", said)
		}
	})
}

// A node that is back before its taint is taken away keeps its pods.
func TestBackBeforeTheTaintIsGone(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, pods, plainPod("fenced", withAClaim))
		w.settle(time.Second)
		uid := read[*corev1.Pod](w, pods, "default", "fenced").UID
		w.liveness.set("a", Dead)
		w.settle(testFence / 2)
		if got := taintsOf(w.node("a")); got != "unreachable:NoExecute unreachable:NoSchedule" {
			t.Fatal(got)
		}
		w.liveness.set("a", Suspect)
		w.settle(time.Second)
		w.liveness.set("a", Alive)
		w.settle(time.Minute)
		if p := read[*corev1.Pod](w, pods, "default", "fenced"); p.UID != uid || p.DeletionTimestamp != nil {
			t.Errorf("the pod is %+v", p.ObjectMeta)
		}
	})
}

// A node that is back reports before it is judged alive, perhaps again and
// again: that was one loss.
func TestOneOutageIsOneLoss(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		w.liveness.set("a", Dead)
		w.settle(10 * time.Second)
		for range 5 {
			change(w, nodes, "", "a", func(n *corev1.Node) {
				r := readyCondition(n)
				r.Status, r.Reason, r.Message = corev1.ConditionTrue, "KubeletReady", "kubelet is posting ready status"
			}, "status")
			w.settle(100 * time.Millisecond)
			if got := readyOf(w.node("a")); !strings.HasPrefix(got, "Unknown ") {
				t.Fatalf("a dead node is %s", got)
			}
		}
		w.liveness.set("a", Alive)
		w.settle(time.Second)
		n := w.node("a")
		if lost := n.Annotations[lossesAnnotation]; strings.Contains(lost, ",") || lost == "" {
			t.Errorf("one outage counts as %q", lost)
		}
		if got := readyOf(n); !strings.HasPrefix(got, "True ") || cooling(n) {
			t.Errorf("back: %s, annotations %v", got, n.Annotations)
		}
	})
}
