package hosts

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"conclave/test/conformance"
)

// switched is a template whose pods are ready while they have a file /ready;
// they have it from the start if they are to be ready at once.
func switched(app, version string, ready bool) corev1.PodTemplateSpec {
	t := template(app, idle, version)
	c := &t.Spec.Containers[0]
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/ready"}}}}
	start := "exec sleep 100000"
	if ready {
		start = "touch /ready; " + start
	}
	c.Command = []string{"sh", "-c", start}
	return t
}

func newStatefulSet(name string, replicas int32, t corev1.PodTemplateSpec) *appsv1.StatefulSet {
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}},
		Spec: appsv1.StatefulSetSpec{
			Replicas: &replicas, ServiceName: name, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: t,
		},
	}
}

func (w *world) createStateful(t *testing.T, s *appsv1.StatefulSet) *appsv1.StatefulSet {
	t.Helper()
	s, err := w.c.Client.AppsV1().StatefulSets(w.ns).Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) editStateful(t *testing.T, name string, change func(*appsv1.StatefulSet)) {
	t.Helper()
	eventually(t, "stateful set "+name+" is updated", func() error {
		s, err := w.c.Client.AppsV1().StatefulSets(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(s)
		if _, err = w.c.Client.AppsV1().StatefulSets(w.ns).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
		return err
	})
}

// statefulStatus waits until the status of a set, of its newest generation, is
// as wanted.
func (w *world) statefulStatus(t *testing.T, name, what string, wanted func(*appsv1.StatefulSet) bool) *appsv1.StatefulSet {
	t.Helper()
	var s *appsv1.StatefulSet
	eventually(t, "stateful set "+name+" "+what, func() (err error) {
		if s, err = w.c.Client.AppsV1().StatefulSets(w.ns).Get(t.Context(), name, metav1.GetOptions{}); err == nil && (s.Status.ObservedGeneration < s.Generation || !wanted(s)) {
			err = fmt.Errorf("generation %d, status %+v", s.Generation, s.Status)
		}
		return err
	})
	return s
}

func (w *world) statefulReady(t *testing.T, name string, n int32) *appsv1.StatefulSet {
	t.Helper()
	return w.statefulStatus(t, name, fmt.Sprintf("has %d ready pods", n), func(s *appsv1.StatefulSet) bool {
		return s.Status.Replicas == n && s.Status.ReadyReplicas == n
	})
}

// statefulPods are a set's pods by name, told apart as "web-0:VERSION".
func (w *world) statefulPods(t *testing.T, app string) (shown []string) {
	t.Helper()
	pods, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		shown = append(shown, p.Name+":"+p.Spec.Containers[0].Env[0].Value)
	}
	slices.Sort(shown)
	return shown
}

func (w *world) wantStateful(t *testing.T, app string, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("the pods are %v", want), func() error {
		if got := w.statefulPods(t, app); !slices.Equal(got, want) {
			return fmt.Errorf("they are %v", got)
		}
		return nil
	})
}

// setReady switches a pod's readiness, and waits until the API says so.
func (w *world) setReady(t *testing.T, name string, ready bool) {
	t.Helper()
	command := []string{"rm", "-f", "/ready"}
	if ready {
		command = []string{"touch", "/ready"}
	}
	eventually(t, fmt.Sprintf("pod %s is ready: %t", name, ready), func() error {
		if _, err := inPod(t.Context(), w.c, w.ns, name, command...); err != nil {
			return err
		}
		p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && podReady(p) != ready {
			err = fmt.Errorf("it is not yet")
		}
		return err
	})
}

// TestStateful shows what Kubernetes asks of StatefulSets, and of the kinds
// below which volumes are kept.
func TestStateful(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: namespace(t, c)}
	for _, b := range slices.Concat(statefulSets, storageKinds, statefulVolumes) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			if b.codename != "" {
				conformance.Shows(t, b.codename)
			}
			b.show(t, w)
		})
	}
}

const basicStateful = "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] "

var statefulSets = []behaviour{
	{"ordered", basicStateful + "Scaling should happen in predictable order and halt if any stateful pod is unhealthy [Conformance] [Slow]", showOrder},
	{"burst", basicStateful + "Burst scaling should run to completion even with unhealthy pods [Conformance] [Slow]", func(t *testing.T, w *world) {
		s := newStatefulSet("burst", 3, switched("burst", "1", false))
		s.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		w.createStateful(t, s)
		unready := func(n int32) {
			t.Helper()
			w.statefulStatus(t, "burst", fmt.Sprintf("has %d pods that are not ready", n), func(s *appsv1.StatefulSet) bool {
				return s.Status.Replicas == n && s.Status.ReadyReplicas == 0
			})
			w.wantStateful(t, "burst", []string{"burst-0:1", "burst-1:1", "burst-2:1", "burst-3:1"}[:n]...)
		}
		scale := func(n int32) { w.editStateful(t, "burst", func(s *appsv1.StatefulSet) { s.Spec.Replicas = &n }) }
		unready(3)
		scale(4)
		unready(4)
		scale(2)
		unready(2)
		w.setReady(t, "burst-0", true)
		scale(0)
		unready(0)
	}},
	{"failed pods", basicStateful + "Should recreate evicted statefulset [Conformance]", func(t *testing.T, w *world) {
		// Another pod has the port on the node that the set's pod must run on.
		node := w.c.Hosts[1].Name
		blocker := idlePod("blocker", nil, "")
		blocker.Spec.NodeName = node
		blocker.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 21017, HostPort: 21017}}
		runPods(t, w.c, w.ns, blocker)
		watching := w.watchPods(t)
		defer watching.Stop()
		tmpl := template("failing", idle, "1")
		tmpl.Spec.NodeName, tmpl.Spec.Containers[0].Ports = node, blocker.Spec.Containers[0].Ports
		w.createStateful(t, newStatefulSet("failing", 1, tmpl))
		first := awaitEvent(t, watching, watch.Modified, func(p *corev1.Pod) bool { return p.Name == "failing-0" && p.Status.Phase == corev1.PodFailed })
		awaitEvent(t, watching, watch.Deleted, func(p *corev1.Pod) bool { return p.UID == first.UID })
		awaitEvent(t, watching, watch.Added, func(p *corev1.Pod) bool { return p.Name == "failing-0" && p.UID != first.UID })
		deletePod(t, w.c, w.ns, "blocker")
		w.statefulReady(t, "failing", 1)
	}},
	{"scale", basicStateful + "should have a working scale subresource [Conformance]", func(t *testing.T, w *world) {
		w.createStateful(t, newStatefulSet("scaled-sts", 1, template("scaled-sts", idle, "1")))
		w.statefulReady(t, "scaled-sts", 1)
		showScale(t, w.c.Client.AppsV1().StatefulSets(w.ns), "scaled-sts", func(n int32) { w.statefulReady(t, "scaled-sts", n) })
	}},
	{"list, patch and delete a collection", basicStateful + "should list, patch and delete a collection of StatefulSets [Conformance]", func(t *testing.T, w *world) {
		api, selected := w.c.Client.AppsV1().StatefulSets(w.ns), metav1.ListOptions{LabelSelector: "of=listed"}
		w.createStateful(t, newStatefulSet("listed", 1, template("listed", idle, "1")))
		w.statefulReady(t, "listed", 1)
		patch := `{"metadata":{"labels":{"patched":"yes"}},"spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"main","env":[{"name":"VERSION","value":"2"}]}]}}}}`
		if _, err := api.Patch(t.Context(), "listed", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		w.statefulReady(t, "listed", 2)
		w.wantStateful(t, "listed", "listed-0:2", "listed-1:2")
		for _, ns := range []string{w.ns, ""} {
			all, err := w.c.Client.AppsV1().StatefulSets(ns).List(t.Context(), selected)
			if err != nil || len(all.Items) != 1 || all.Items[0].Labels["patched"] != "yes" || *all.Items[0].Spec.Replicas != 2 {
				t.Fatalf("in %q are %v (%v)", ns, all, err)
			}
		}
		if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}, selected); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the set and its pods are gone", func() error {
			all, err := api.List(t.Context(), selected)
			if err == nil && len(all.Items)+len(w.statefulPods(t, "listed")) > 0 {
				err = errors.New("some are left")
			}
			return err
		})
	}},
	{"canary", basicStateful + "should perform canary updates and phased rolling updates of template modifications [Conformance]", func(t *testing.T, w *world) {
		partition := func(n int32) func(*appsv1.StatefulSet) {
			return func(s *appsv1.StatefulSet) {
				s.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType, RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &n}}
			}
		}
		s := newStatefulSet("canary", 3, template("canary", idle, "1"))
		partition(3)(s)
		w.createStateful(t, s)
		before := w.statefulReady(t, "canary", 3)
		if before.Status.CurrentRevision != before.Status.UpdateRevision {
			t.Fatalf("a new set has two revisions: %+v", before.Status)
		}
		// A partition beyond all pods keeps every one of them.
		w.editStateful(t, "canary", func(s *appsv1.StatefulSet) { s.Spec.Template = template("canary", idle, "2") })
		s = w.statefulStatus(t, "canary", "knows the new revision", func(s *appsv1.StatefulSet) bool { return s.Status.UpdateRevision != before.Status.UpdateRevision })
		if s.Status.CurrentRevision != before.Status.CurrentRevision {
			t.Errorf("the status is %+v", s.Status)
		}
		w.wantStateful(t, "canary", "canary-0:1", "canary-1:1", "canary-2:1")
		w.editStateful(t, "canary", partition(2))
		w.wantStateful(t, "canary", "canary-0:1", "canary-1:1", "canary-2:2")
		w.statefulReady(t, "canary", 3)
		// What is deleted comes back as what it was.
		for _, name := range []string{"canary-0", "canary-2"} {
			deletePod(t, w.c, w.ns, name)
		}
		w.wantStateful(t, "canary", "canary-0:1", "canary-1:1", "canary-2:2")
		s = w.statefulReady(t, "canary", 3)
		for _, p := range w.podsOf(t, "canary") {
			want := s.Status.CurrentRevision
			if p.Name == "canary-2" {
				want = s.Status.UpdateRevision
			}
			if got := p.Labels[appsv1.StatefulSetRevisionLabel]; got != want {
				t.Errorf("pod %s is of revision %s, not %s", p.Name, got, want)
			}
		}
		w.editStateful(t, "canary", partition(1))
		w.wantStateful(t, "canary", "canary-0:1", "canary-1:2", "canary-2:2")
		w.editStateful(t, "canary", partition(0))
		w.wantStateful(t, "canary", "canary-0:2", "canary-1:2", "canary-2:2")
		w.statefulStatus(t, "canary", "has one revision again", func(s *appsv1.StatefulSet) bool {
			return s.Status.CurrentRevision == s.Status.UpdateRevision && s.Status.UpdatedReplicas == 3 && s.Status.CurrentReplicas == 3
		})
	}},
	{"rolling update", basicStateful + "should perform rolling updates and roll backs of template modifications [Conformance]", showRollingBack},
	{"status", basicStateful + "should validate Statefulset Status endpoints [Conformance]", func(t *testing.T, w *world) {
		api := w.c.Client.AppsV1().StatefulSets(w.ns)
		w.createStateful(t, newStatefulSet("told-sts", 1, template("told-sts", idle, "1")))
		w.statefulReady(t, "told-sts", 1)
		showStatus(t, api, w.c.Client.AppsV1().RESTClient(), w.ns, "statefulsets", "told-sts", func(s *appsv1.StatefulSet, condition string) {
			s.Status.Conditions = append(s.Status.Conditions, appsv1.StatefulSetCondition{Type: appsv1.StatefulSetConditionType(condition), Status: corev1.ConditionTrue, Reason: "E2E"})
			s.Spec.Replicas = ptr.To(int32(7)) // not this subresource's to change
		})
		if s := w.statefulReady(t, "told-sts", 1); *s.Spec.Replicas != 1 {
			t.Errorf("a status update set %d replicas", *s.Spec.Replicas)
		}
	}},
}

func (w *world) podsOf(t *testing.T, app string) []corev1.Pod {
	t.Helper()
	pods, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

// showOrder watches every step of a set that grows and shrinks: each pod comes
// when all before it are ready, and goes when all after it are gone and all
// before it are ready.
func showOrder(t *testing.T, w *world) {
	watching, err := w.c.Client.CoreV1().Pods(w.ns).Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=ordered"})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	names := []string{"ordered-0", "ordered-1", "ordered-2"}
	w.createStateful(t, newStatefulSet("ordered", 3, switched("ordered", "1", false)))
	for i, name := range names {
		// The set has looked at its pods and made no more of them.
		w.statefulStatus(t, "ordered", "waits for "+name, func(s *appsv1.StatefulSet) bool {
			return int(s.Status.Replicas) == i+1 && int(s.Status.ReadyReplicas) == i
		})
		w.setReady(t, name, true)
	}
	w.statefulReady(t, "ordered", 3)
	w.setReady(t, "ordered-1", false)
	w.statefulStatus(t, "ordered", "knows that one is ill", func(s *appsv1.StatefulSet) bool { return s.Status.ReadyReplicas == 2 })
	w.editStateful(t, "ordered", func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(2)) })
	// It has seen what it is to do, and does not.
	w.statefulStatus(t, "ordered", "halts", func(s *appsv1.StatefulSet) bool { return s.Status.Replicas == 3 && s.Status.ReadyReplicas == 2 })
	w.setReady(t, "ordered-1", true)
	w.statefulReady(t, "ordered", 2)
	w.editStateful(t, "ordered", func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(0)) })
	w.statefulReady(t, "ordered", 0)

	last := map[string]*corev1.Pod{} // nil: there is none
	leaving := map[types.UID]bool{}
	for left := len(names); left > 0; {
		e := <-watching.ResultChan()
		p, ok := e.Object.(*corev1.Pod)
		if !ok {
			t.Fatalf("the watch says %+v", e.Object)
		}
		i := slices.Index(names, p.Name)
		before, after := names[:i], names[i+1:]
		switch {
		case e.Type == watch.Added:
			for _, other := range before {
				if last[other] == nil || !podReady(last[other]) {
					t.Errorf("%s came before %s was ready", p.Name, other)
				}
			}
		case p.DeletionTimestamp != nil && !leaving[p.UID] || e.Type == watch.Deleted && !leaving[p.UID]:
			leaving[p.UID] = true
			for _, other := range after {
				if last[other] != nil {
					t.Errorf("%s was deleted before %s was gone", p.Name, other)
				}
			}
			for _, other := range before {
				if last[other] == nil || !podReady(last[other]) {
					t.Errorf("%s was deleted while %s was not ready", p.Name, other)
				}
			}
		}
		last[p.Name] = p
		if e.Type == watch.Deleted {
			last[p.Name] = nil
			left--
		}
	}
}

// showRollingBack updates a set and takes the update back: both go from the
// highest place down, one pod at a time, whatever one of them is like before.
func showRollingBack(t *testing.T, w *world) {
	w.createStateful(t, newStatefulSet("rolling", 3, switched("rolling", "1", true)))
	first := w.statefulReady(t, "rolling", 3).Status.CurrentRevision
	watching, err := w.c.Client.CoreV1().Pods(w.ns).Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=rolling"})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	roll := func(version string) *appsv1.StatefulSet {
		t.Helper()
		w.editStateful(t, "rolling", func(s *appsv1.StatefulSet) { s.Spec.Template = switched("rolling", version, true) })
		for _, name := range []string{"rolling-2", "rolling-1", "rolling-0"} {
			gone := awaitEvent(t, watching, watch.Deleted, func(*corev1.Pod) bool { return true })
			if gone.Name != name {
				t.Fatalf("%s was replaced before %s", gone.Name, name)
			}
			awaitEvent(t, watching, watch.Modified, func(p *corev1.Pod) bool { return p.Name == name && p.UID != gone.UID && podReady(p) })
		}
		w.wantStateful(t, "rolling", "rolling-0:"+version, "rolling-1:"+version, "rolling-2:"+version)
		return w.statefulStatus(t, "rolling", "has rolled out", func(s *appsv1.StatefulSet) bool {
			return s.Status.CurrentRevision == s.Status.UpdateRevision && s.Status.UpdatedReplicas == 3 && s.Status.ReadyReplicas == 3
		})
	}
	second := roll("2").Status.CurrentRevision
	if second == first {
		t.Error("the new template has the old revision")
	}
	if out := kubectl(t, w.c, "rollout", "history", "statefulset/rolling", "-n", w.ns); !strings.Contains(out, "1  ") || !strings.Contains(out, "2  ") {
		t.Errorf("the history is\n%s", out)
	}
	// Half way through another update it turns out to be none.
	w.editStateful(t, "rolling", func(s *appsv1.StatefulSet) { s.Spec.Template = switched("rolling", "3", false) })
	broken := awaitEvent(t, watching, watch.Modified, func(p *corev1.Pod) bool {
		return p.Name == "rolling-2" && p.Spec.Containers[0].Env[0].Value == "3" && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil
	})
	w.wantStateful(t, "rolling", "rolling-0:2", "rolling-1:2", "rolling-2:3")
	kubectl(t, w.c, "rollout", "undo", "statefulset/rolling", "-n", w.ns)
	// As everywhere with Kubernetes, a pod that never gets ready has to be
	// deleted by hand for the old one to come back.
	deletePod(t, w.c, w.ns, broken.Name)
	s := w.statefulStatus(t, "rolling", "has rolled back", func(s *appsv1.StatefulSet) bool {
		return s.Status.UpdateRevision == second && s.Status.CurrentRevision == second && s.Status.ReadyReplicas == 3
	})
	w.wantStateful(t, "rolling", "rolling-0:2", "rolling-1:2", "rolling-2:2")
	for _, p := range w.podsOf(t, "rolling") {
		if got := p.Labels[appsv1.StatefulSetRevisionLabel]; got != s.Status.CurrentRevision {
			t.Errorf("pod %s is of revision %s", p.Name, got)
		}
	}
}

// --- the kinds below which volumes are kept ----------------------------------

func csiVolume(name, class string, labels map[string]string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, StorageClassName: class,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.conclave.test", VolumeHandle: name}},
		},
	}
}

func claimOf(name, class string, labels map[string]string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
}

var storageKinds = []behaviour{
	{"volumes and claims", "[sig-storage] PersistentVolumes CSI Conformance should run through the lifecycle of a PV and a PVC [Conformance]", showVolumeLifecycle},
	{"status of volumes and claims", "[sig-storage] PersistentVolumes CSI Conformance should apply changes to a pv/pvc status [Conformance]", showVolumeStatus},
	{"storage classes", "[sig-storage] StorageClasses CSI Conformance should run through the lifecycle of a StorageClass [Conformance]", func(t *testing.T, w *world) {
		api, selected := w.c.Client.StorageV1().StorageClasses(), metav1.ListOptions{LabelSelector: "of=" + w.ns}
		made := func() *storagev1.StorageClass {
			t.Helper()
			c, err := api.Create(t.Context(), &storagev1.StorageClass{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "cycle-", Labels: map[string]string{"of": w.ns}}, Provisioner: "conclave.test/cycle",
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		c := made()
		if got, err := api.Get(t.Context(), c.Name, metav1.GetOptions{}); err != nil || got.UID != c.UID || *got.ReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			t.Fatalf("it is %+v (%v)", got, err)
		}
		if _, err := api.Patch(t.Context(), c.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the class is updated", func() error {
			c, err := api.Get(t.Context(), c.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			c.Labels["updated"] = "yes"
			_, err = api.Update(t.Context(), c, metav1.UpdateOptions{})
			return err
		})
		all, err := api.List(t.Context(), selected)
		if err != nil || len(all.Items) != 1 || all.Items[0].Labels["patched"] != "yes" || all.Items[0].Labels["updated"] != "yes" {
			t.Fatalf("listed are %+v (%v)", all, err)
		}
		if err := api.Delete(t.Context(), c.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := api.Get(t.Context(), c.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("after its deletion: %v", err)
		}
		made()
		if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
			t.Fatal(err)
		}
		if all, err := api.List(t.Context(), selected); err != nil || len(all.Items) != 0 {
			t.Errorf("left are %+v (%v)", all, err)
		}
	}},
	{"volume attachments", "[sig-storage] VolumeAttachment Conformance should run through the lifecycle of a VolumeAttachment [Conformance]", func(t *testing.T, w *world) {
		api, selected := w.c.Client.StorageV1().VolumeAttachments(), metav1.ListOptions{LabelSelector: "of=" + w.ns}
		a := w.attachment(t, "attached-1")
		if got, err := api.Get(t.Context(), a.Name, metav1.GetOptions{}); err != nil || got.UID != a.UID {
			t.Fatalf("it is %+v (%v)", got, err)
		}
		if _, err := api.Patch(t.Context(), a.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		all, err := api.List(t.Context(), metav1.ListOptions{LabelSelector: selected.LabelSelector + ",patched=yes"})
		if err != nil || len(all.Items) != 1 {
			t.Fatalf("listed are %+v (%v)", all, err)
		}
		if err := api.Delete(t.Context(), a.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		b := w.attachment(t, "attached-2")
		eventually(t, "the attachment is updated", func() error {
			b, err := api.Get(t.Context(), b.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			b.Labels["updated"] = "yes"
			_, err = api.Update(t.Context(), b, metav1.UpdateOptions{})
			return err
		})
		if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: selected.LabelSelector + ",updated=yes"}); err != nil {
			t.Fatal(err)
		}
		if all, err := api.List(t.Context(), selected); err != nil || len(all.Items) != 0 {
			t.Errorf("left are %+v (%v)", all, err)
		}
	}},
	{"status of a volume attachment", "[sig-storage] VolumeAttachment Conformance should apply changes to a volumeattachment status [Conformance]", func(t *testing.T, w *world) {
		api := w.c.Client.StorageV1().VolumeAttachments()
		a := w.attachment(t, "told-attachment")
		a, err := api.Patch(t.Context(), a.Name, types.MergePatchType, []byte(`{"status":{"attached":true}}`), metav1.PatchOptions{}, "status")
		if err != nil || !a.Status.Attached {
			t.Fatalf("patched: %+v (%v)", a, err)
		}
		a.Status.AttachmentMetadata = map[string]string{"by": "update"}
		a.Spec.NodeName = "elsewhere" // not this subresource's to change
		if a, err = api.UpdateStatus(t.Context(), a, metav1.UpdateOptions{}); err != nil || a.Status.AttachmentMetadata["by"] != "update" || a.Spec.NodeName == "elsewhere" {
			t.Fatalf("updated: %+v (%v)", a, err)
		}
		var got storagev1.VolumeAttachment
		if err := w.c.Client.StorageV1().RESTClient().Get().Resource("volumeattachments").Name(a.Name).SubResource("status").Do(t.Context()).Into(&got); err != nil || !got.Status.Attached {
			t.Errorf("read: %+v (%v)", got.Status, err)
		}
	}},
}

func (w *world) attachment(t *testing.T, name string) *storagev1.VolumeAttachment {
	t.Helper()
	api := w.c.Client.StorageV1().VolumeAttachments()
	a, err := api.Create(t.Context(), &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": w.ns}},
		Spec:       storagev1.VolumeAttachmentSpec{Attacher: "csi.conclave.test", NodeName: w.c.Hosts[0].Name, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("some-volume")}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(t, api.Delete, name) })
	return a
}

// cleanUp deletes what a test may have left in the cluster.
func cleanUp(t *testing.T, remove func(context.Context, string, metav1.DeleteOptions) error, name string) {
	if err := remove(context.Background(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}

func showVolumeLifecycle(t *testing.T, w *world) {
	labels := map[string]string{"of": "cycle-" + w.ns}
	selected := metav1.ListOptions{LabelSelector: "of=cycle-" + w.ns}
	volumes, claims := w.c.Client.CoreV1().PersistentVolumes(), w.c.Client.CoreV1().PersistentVolumeClaims(w.ns)
	class := "cycle-" + w.ns
	make := func(n string) {
		t.Helper()
		if _, err := volumes.Create(t.Context(), csiVolume("cycle-"+n, class, labels), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cleanUp(t, volumes.Delete, "cycle-"+n) })
		if _, err := claims.Create(t.Context(), claimOf("cycle-"+n, class, labels), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the claim is bound to the volume", func() error {
			c, err := claims.Get(t.Context(), "cycle-"+n, metav1.GetOptions{})
			if err == nil && (c.Status.Phase != corev1.ClaimBound || c.Spec.VolumeName != "cycle-"+n) {
				err = fmt.Errorf("it is %+v", c)
			}
			return err
		})
	}
	make("1")
	all, err := volumes.List(t.Context(), selected)
	if err != nil || len(all.Items) != 1 || !slices.Contains(all.Items[0].Finalizers, "kubernetes.io/pv-protection") {
		t.Fatalf("the volumes are %+v (%v)", all, err)
	}
	for _, ns := range []string{w.ns, ""} {
		all, err := w.c.Client.CoreV1().PersistentVolumeClaims(ns).List(t.Context(), selected)
		if err != nil || len(all.Items) != 1 || !slices.Contains(all.Items[0].Finalizers, "kubernetes.io/pvc-protection") {
			t.Fatalf("the claims in %q are %+v (%v)", ns, all, err)
		}
	}
	patch := []byte(`{"metadata":{"labels":{"patched":"yes"}}}`)
	if v, err := volumes.Patch(t.Context(), "cycle-1", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil || v.Labels["patched"] != "yes" {
		t.Fatalf("the volume is %+v (%v)", v, err)
	}
	if c, err := claims.Patch(t.Context(), "cycle-1", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil || c.Labels["patched"] != "yes" {
		t.Fatalf("the claim is %+v (%v)", c, err)
	}
	eventually(t, "the volume is updated", func() error {
		v, err := volumes.Get(t.Context(), "cycle-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		v.Labels["updated"] = "yes"
		_, err = volumes.Update(t.Context(), v, metav1.UpdateOptions{})
		return err
	})
	eventually(t, "the claim is updated", func() error {
		c, err := claims.Get(t.Context(), "cycle-1", metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.Labels["updated"] = "yes"
		_, err = claims.Update(t.Context(), c, metav1.UpdateOptions{})
		return err
	})
	gone := func() {
		t.Helper()
		eventually(t, "both are gone", func() error {
			v, err := volumes.List(t.Context(), selected)
			if err != nil {
				return err
			}
			c, err := claims.List(t.Context(), selected)
			if err == nil && len(v.Items)+len(c.Items) > 0 {
				err = fmt.Errorf("%d volumes and %d claims are left", len(v.Items), len(c.Items))
			}
			return err
		})
	}
	for _, err := range []error{claims.Delete(t.Context(), "cycle-1", metav1.DeleteOptions{}), volumes.Delete(t.Context(), "cycle-1", metav1.DeleteOptions{})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	gone()
	make("2")
	for _, err := range []error{claims.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected), volumes.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	gone()
}

func showVolumeStatus(t *testing.T, w *world) {
	volumes, claims := w.c.Client.CoreV1().PersistentVolumes(), w.c.Client.CoreV1().PersistentVolumeClaims(w.ns)
	class := "told-" + w.ns
	if _, err := volumes.Create(t.Context(), csiVolume("told-volume", class, nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cleanUp(t, volumes.Delete, "told-volume") })
	if _, err := claims.Create(t.Context(), claimOf("told-claim", class, nil), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the claim is bound", func() error {
		c, err := claims.Get(t.Context(), "told-claim", metav1.GetOptions{})
		if err == nil && c.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("it is %s", c.Status.Phase)
		}
		return err
	})
	client := w.c.Client.CoreV1().RESTClient()
	condition := `{"status":{"conditions":[{"type":"StatusPatched","status":"True","reason":"E2E","message":"by the test"}]}}`
	c, err := claims.Patch(t.Context(), "told-claim", types.MergePatchType, []byte(condition), metav1.PatchOptions{}, "status")
	if err != nil || len(c.Status.Conditions) != 1 || c.Status.Conditions[0].Type != "StatusPatched" {
		t.Fatalf("the claim's status is patched: %+v (%v)", c, err)
	}
	eventually(t, "the claim's status is updated", func() error {
		c, err := claims.Get(t.Context(), "told-claim", metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.Status.Conditions = append(c.Status.Conditions, corev1.PersistentVolumeClaimCondition{Type: "StatusUpdate", Status: corev1.ConditionTrue, Reason: "E2E"})
		_, err = claims.UpdateStatus(t.Context(), c, metav1.UpdateOptions{})
		return err
	})
	var claim corev1.PersistentVolumeClaim
	if err := client.Get().Namespace(w.ns).Resource("persistentvolumeclaims").Name("told-claim").SubResource("status").Do(t.Context()).Into(&claim); err != nil || len(claim.Status.Conditions) != 2 {
		t.Errorf("the claim's status is read: %+v (%v)", claim.Status, err)
	}
	v, err := volumes.Patch(t.Context(), "told-volume", types.MergePatchType, []byte(`{"status":{"message":"patched","reason":"E2E"}}`), metav1.PatchOptions{}, "status")
	if err != nil || v.Status.Reason != "E2E" {
		t.Fatalf("the volume's status is patched: %+v (%v)", v, err)
	}
	eventually(t, "the volume's status is updated", func() error {
		v, err := volumes.Get(t.Context(), "told-volume", metav1.GetOptions{})
		if err != nil {
			return err
		}
		v.Status.Reason, v.Spec.PersistentVolumeReclaimPolicy = "Updated", corev1.PersistentVolumeReclaimDelete // the latter is not this subresource's
		_, err = volumes.UpdateStatus(t.Context(), v, metav1.UpdateOptions{})
		return err
	})
	var volume corev1.PersistentVolume
	if err := client.Get().Resource("persistentvolumes").Name("told-volume").SubResource("status").Do(t.Context()).Into(&volume); err != nil ||
		volume.Status.Reason != "Updated" || volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		t.Errorf("the volume's status is read: %+v (%v)", volume, err)
	}
}

// --- volumes of class local-path ---------------------------------------------

// withData gives a set's pods a claim each, of the default class, at /data.
func withData(s *appsv1.StatefulSet) *appsv1.StatefulSet {
	claim := claimOf("data", "", nil)
	claim.Spec.StorageClassName = nil
	s.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{*claim}
	s.Spec.Template.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	return s
}

var statefulVolumes = []behaviour{
	{"data stays with its pod", "", func(t *testing.T, w *world) {
		if _, err := w.c.Client.CoreV1().Services(w.ns).Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "kept"}, Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.createStateful(t, withData(newStatefulSet("kept", 2, template("kept", idle, "1"))))
		w.statefulReady(t, "kept", 2)
		run := func(pod string, argv ...string) string {
			t.Helper()
			var out string
			eventually(t, strings.Join(argv, " ")+" in "+pod, func() (err error) {
				out, err = inPod(t.Context(), w.c, w.ns, pod, argv...)
				return err
			})
			return strings.TrimSpace(out)
		}
		run("kept-0", "sh", "-c", "hostname > /data/name")
		run("kept-1", "sh", "-c", "hostname > /data/name")
		if got := run("kept-0", "hostname", "-f"); !strings.HasPrefix(got, "kept-0.kept."+w.ns+".svc.") {
			t.Errorf("the pod's whole name is %q", got)
		}
		run("kept-0", "nslookup", "kept-1.kept."+w.ns+".svc.cluster.local")
		before := map[string]string{}
		for _, p := range w.podsOf(t, "kept") {
			before[p.Name] = p.Spec.NodeName
			deletePod(t, w.c, w.ns, p.Name)
		}
		w.statefulStatus(t, "kept", "has new pods", func(s *appsv1.StatefulSet) bool { return s.Status.ReadyReplicas == 2 })
		for _, name := range []string{"kept-0", "kept-1"} {
			if got := run(name, "cat", "/data/name"); got != name {
				t.Errorf("%s finds the data of %q", name, got)
			}
		}
		for _, p := range w.podsOf(t, "kept") {
			if p.Spec.NodeName != before[p.Name] {
				t.Errorf("%s moved from %s, where its volume is, to %s", p.Name, before[p.Name], p.Spec.NodeName)
			}
		}
		// The folders are on the nodes' disks, until nobody claims them.
		paths := w.localPaths(t, "kept")
		kubectl(t, w.c, "delete", "statefulset", "kept", "-n", w.ns)
		for claim, path := range paths {
			if _, err := os.Stat(path + "/name"); err != nil {
				t.Errorf("the set is gone, and so is the data of %s: %v", claim, err)
			}
			kubectl(t, w.c, "delete", "pvc", claim, "-n", w.ns)
			eventually(t, "the data of "+claim+" is removed", func() error {
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("%s is there (%v)", path, err)
				}
				return nil
			})
		}
	}},
	{"claims go with the set", "", func(t *testing.T, w *world) {
		s := withData(newStatefulSet("brief", 2, template("brief", idle, "1")))
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
			WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		}
		w.createStateful(t, s)
		w.statefulReady(t, "brief", 2)
		paths := w.localPaths(t, "brief")
		gone := func(claim string) {
			t.Helper()
			eventually(t, claim+" and its data are gone", func() error {
				_, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).Get(t.Context(), claim, metav1.GetOptions{})
				if _, statErr := os.Stat(paths[claim]); !apierrors.IsNotFound(err) || !errors.Is(statErr, fs.ErrNotExist) {
					return fmt.Errorf("the claim: %v, the folder: %v", err, statErr)
				}
				return nil
			})
		}
		w.editStateful(t, "brief", func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To(int32(1)) })
		gone("data-brief-1")
		kubectl(t, w.c, "delete", "statefulset", "brief", "-n", w.ns)
		gone("data-brief-0")
	}},
	{"a claim that nothing serves", "", func(t *testing.T, w *world) {
		if _, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).Create(t.Context(), claimOf("unserved", "", nil), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.wantUnscheduled(t, claimingPod("waits", "unserved"), "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims.")
		w.wantUnscheduled(t, claimingPod("claims-nothing", "none"), `0/3 nodes are available: persistentvolumeclaim "none" not found.`)
	}},
	{"a claim for one pod", "", func(t *testing.T, w *world) {
		c := claimOf("single", "local-path", nil)
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		if _, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		runPods(t, w.c, w.ns, claimingPod("one", "single"))
		w.wantUnscheduled(t, claimingPod("two", "single"), "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")
		// A claim that is deleted stays as long as the pod that uses it.
		kubectl(t, w.c, "delete", "pvc", "single", "-n", w.ns, "--wait=false")
		if c, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).Get(t.Context(), "single", metav1.GetOptions{}); err != nil || c.DeletionTimestamp == nil {
			t.Fatalf("the claim is %+v (%v)", c, err)
		}
		deletePod(t, w.c, w.ns, "one")
		eventually(t, "the claim is gone", func() error {
			_, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).Get(t.Context(), "single", metav1.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there (%v)", err)
			}
			return nil
		})
	}},
	{"an ephemeral volume for a group", "", func(t *testing.T, w *world) {
		p := idlePod("scratch", nil, "")
		spec := claimOf("", "local-path", nil).Spec
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: spec}}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/data", SubPath: "below"}}
		p.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To(int64(4321)), RunAsUser: ptr.To(int64(1000))}
		runPods(t, w.c, w.ns, p)
		if out, err := inPod(t.Context(), w.c, w.ns, "scratch", "sh", "-c", "echo hello > /data/file && stat -c %g /data/file"); err != nil || strings.TrimSpace(out) != "4321" {
			t.Errorf("the file's group is %q (%v)", out, err)
		}
		deletePod(t, w.c, w.ns, "scratch")
		eventually(t, "the claim goes with the pod", func() error {
			_, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).Get(t.Context(), "scratch-v", metav1.GetOptions{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there (%v)", err)
			}
			return nil
		})
	}},
}

func claimingPod(name, claim string) *corev1.Pod {
	p := idlePod(name, nil, "")
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/data"}}
	return p
}

// localPaths are where the nodes keep the volumes of a set's claims.
func (w *world) localPaths(t *testing.T, app string) map[string]string {
	t.Helper()
	claims, err := w.c.Client.CoreV1().PersistentVolumeClaims(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	paths := map[string]string{}
	for _, c := range claims.Items {
		v, err := w.c.Client.CoreV1().PersistentVolumes().Get(t.Context(), c.Spec.VolumeName, metav1.GetOptions{})
		if err != nil || v.Spec.Local == nil {
			t.Fatalf("the volume of %s is %+v (%v)", c.Name, v, err)
		}
		paths[c.Name] = v.Spec.Local.Path
	}
	return paths
}
