package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"conclave/test/conformance"
)

// absentImage is one that no node has or can pull: pods of it never get ready.
const absentImage = "conclave.test/absent:1"

// template is that of pods that do nothing, told apart by their version.
func template(app, image, version string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(0)),
			Containers: []corev1.Container{{
				Name: "main", Image: image, Command: []string{"sleep", "100000"}, Env: []corev1.EnvVar{{Name: "VERSION", Value: version}}}},
		},
	}
}

const idle = "conclave.test/busybox:1"

func newDeployment(name string, replicas int32, t corev1.PodTemplateSpec) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}},
		Spec:       appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: t},
	}
}

func newReplicaSet(name string, replicas int32, t corev1.PodTemplateSpec) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name, "app": t.Labels["app"]}},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: t.Labels}, Template: t},
	}
}

func (w *world) create(t *testing.T, d *appsv1.Deployment) *appsv1.Deployment {
	t.Helper()
	return createOf(t, w.c.Client.AppsV1().Deployments(w.ns), d)
}

func (w *world) createSet(t *testing.T, rs *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	t.Helper()
	return createOf(t, w.c.Client.AppsV1().ReplicaSets(w.ns), rs)
}

// edit changes a deployment, again when another was faster.
func (w *world) edit(t *testing.T, name string, change func(*appsv1.Deployment)) {
	t.Helper()
	eventually(t, "deployment "+name+" is updated", func() error {
		d, err := w.c.Client.AppsV1().Deployments(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		change(d)
		_, err = w.c.Client.AppsV1().Deployments(w.ns).Update(t.Context(), d, metav1.UpdateOptions{})
		if err != nil && !apierrors.IsConflict(err) {
			t.Fatal(err)
		}
		return err
	})
}

// complete waits until a deployment has rolled out.
func (w *world) complete(t *testing.T, name string) *appsv1.Deployment {
	t.Helper()
	var d *appsv1.Deployment
	eventually(t, "deployment "+name+" is complete", func() (err error) {
		if d, err = w.c.Client.AppsV1().Deployments(w.ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		want, s := *d.Spec.Replicas, d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.Replicas != want || s.AvailableReplicas != want {
			err = fmt.Errorf("generation %d, status %+v", d.Generation, s)
		}
		return err
	})
	return d
}

// setsOf are a deployment's replica sets, the oldest revision first.
func (w *world) setsOf(t *testing.T, deployment string) []appsv1.ReplicaSet {
	t.Helper()
	all, err := w.c.Client.AppsV1().ReplicaSets(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + deployment})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(all.Items, func(a, b appsv1.ReplicaSet) int {
		return strings.Compare(a.Annotations[revision], b.Annotations[revision])
	})
	return all.Items
}

const revision = "deployment.kubernetes.io/revision"

// wantSizes waits until a deployment's replica sets have these sizes, the
// oldest revision first.
func (w *world) wantSizes(t *testing.T, deployment string, sizes ...int32) []appsv1.ReplicaSet {
	t.Helper()
	var sets []appsv1.ReplicaSet
	eventually(t, fmt.Sprintf("replica sets of %s have the sizes %v", deployment, sizes), func() error {
		var got []int32
		sets = w.setsOf(t, deployment)
		for _, rs := range sets {
			got = append(got, *rs.Spec.Replicas)
		}
		if !slices.Equal(got, sizes) {
			return fmt.Errorf("they have %v", got)
		}
		return nil
	})
	return sets
}

// available waits until a replica set has that many pods, all available.
func (w *world) available(t *testing.T, name string, n int32) {
	t.Helper()
	keeps(t, w.c.Client.AppsV1().ReplicaSets(w.ns), name, n, func(rs *appsv1.ReplicaSet) replicas {
		return replicas{rs.Status.Replicas, rs.Status.AvailableReplicas, rs.Status.ObservedGeneration, rs.Generation}
	})
}

// TestApps shows what Kubernetes asks of Deployments and ReplicaSets.
func TestApps(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	w := &world{c: c, ns: namespace(t, c)}
	for _, b := range slices.Concat(deployments, replicaSets) {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			conformance.Shows(t, b.codename)
			b.show(t, w)
		})
	}
}

var deployments = []behaviour{
	{"recreate", "[sig-apps] Deployment RecreateDeployment should delete old pods and create new ones [Conformance]", showRecreate},
	{"rolling update adopts", "[sig-apps] Deployment RollingUpdateDeployment should delete old pods and create new ones [Conformance]", showRollingUpdate},
	{"history", "[sig-apps] Deployment deployment should delete old replica sets [Conformance]", func(t *testing.T, w *world) {
		d := newDeployment("history", 1, template("history", idle, "1"))
		d.Spec.RevisionHistoryLimit = ptr.To(int32(0))
		w.create(t, d)
		w.complete(t, "history")
		first := w.wantSizes(t, "history", 1)[0]
		w.edit(t, "history", func(d *appsv1.Deployment) { d.Spec.Template = template("history", idle, "2") })
		w.complete(t, "history")
		if left := w.wantSizes(t, "history", 1)[0]; left.UID == first.UID {
			t.Errorf("the old replica set %s is the one that is left", left.Name)
		}
	}},
	{"rollover", "[sig-apps] Deployment deployment should support rollover [Conformance]", showRollover},
	{"proportional scaling", "[sig-apps] Deployment deployment should support proportional scaling [Conformance]", func(t *testing.T, w *world) {
		d := newDeployment("proportional", 5, template("proportional", idle, "1"))
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: ptr.To(intstr.FromInt32(1)), MaxUnavailable: ptr.To(intstr.FromInt32(1))}
		w.create(t, d)
		w.complete(t, "proportional")
		w.edit(t, "proportional", func(d *appsv1.Deployment) { d.Spec.Template = template("proportional", absentImage, "2") })
		sets := w.wantSizes(t, "proportional", 4, 2)
		w.available(t, sets[0].Name, 4)
		w.edit(t, "proportional", func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To(int32(10)) })
		// 11 are allowed now where 6 were: 4·11/6 and 2·11/6, rounded.
		w.wantSizes(t, "proportional", 7, 4)
		w.available(t, sets[0].Name, 7)
	}},
	{"scale of a deployment", "[sig-apps] Deployment Deployment should have a working scale subresource [Conformance]", func(t *testing.T, w *world) {
		w.create(t, newDeployment("scaled", 1, template("scaled", idle, "1")))
		w.complete(t, "scaled")
		showScale(t, w.c.Client.AppsV1().Deployments(w.ns), "scaled", func(n int32) {
			if d := w.complete(t, "scaled"); *d.Spec.Replicas != n {
				t.Errorf("it has %d replicas", *d.Spec.Replicas)
			}
		})
	}},
	{"lifecycle of a deployment", "[sig-apps] Deployment should run the lifecycle of a Deployment [Conformance]", showDeploymentLifecycle},
	{"status of a deployment", "[sig-apps] Deployment should validate Deployment Status endpoints [Conformance]", showDeploymentStatus},
}

// showRecreate checks, by the order of events, that no new pod exists before
// all old ones are gone.
func showRecreate(t *testing.T, w *world) {
	d := newDeployment("recreate", 2, template("recreate", idle, "1"))
	d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
	w.create(t, d)
	w.complete(t, "recreate")
	pods := w.c.Client.CoreV1().Pods(w.ns)
	before, err := pods.List(t.Context(), metav1.ListOptions{LabelSelector: "app=recreate"})
	if err != nil {
		t.Fatal(err)
	}
	old := map[types.UID]bool{}
	for _, p := range before.Items {
		old[p.UID] = true
	}
	watching, err := pods.Watch(t.Context(), metav1.ListOptions{LabelSelector: "app=recreate", ResourceVersion: before.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	w.edit(t, "recreate", func(d *appsv1.Deployment) { d.Spec.Template = template("recreate", idle, "2") })
	for range 2 {
		gone := awaitEvent(t, watching, watch.Deleted, func(p *corev1.Pod) bool {
			if !old[p.UID] {
				t.Fatalf("pod %s came before the old ones were gone", p.Name)
			}
			return true
		})
		delete(old, gone.UID)
	}
	if len(old) > 0 {
		t.Fatalf("%d old pods are left", len(old))
	}
	for range 2 {
		awaitEvent(t, watching, watch.Added, func(p *corev1.Pod) bool { return p.Spec.Containers[0].Env[0].Value == "2" })
	}
	w.complete(t, "recreate")
}

func showRollingUpdate(t *testing.T, w *world) {
	w.createSet(t, newReplicaSet("rolling-orphan", 1, template("rolling", idle, "1")))
	w.available(t, "rolling-orphan", 1)
	before, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=rolling"})
	if err != nil || len(before.Items) != 1 {
		t.Fatalf("the pods before are %v (%v)", before, err)
	}
	d := w.create(t, newDeployment("rolling", 1, template("rolling", idle, "2")))
	w.complete(t, "rolling")
	var was, is *appsv1.ReplicaSet
	sets := w.setsOf(t, "rolling")
	for i := range sets {
		if !metav1.IsControlledBy(&sets[i], d) {
			t.Errorf("replica set %s is not the deployment's", sets[i].Name)
		}
		if sets[i].Name == "rolling-orphan" {
			was = &sets[i]
		} else {
			is = &sets[i]
		}
	}
	if len(sets) != 2 || was == nil || is == nil || *was.Spec.Replicas != 0 || *is.Spec.Replicas != 1 || is.Spec.Template.Spec.Containers[0].Env[0].Value != "2" {
		t.Fatalf("the replica sets are %+v", sets)
	}
	eventually(t, "the old pod is gone and the new one is the new set's", func() error {
		pods, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=rolling"})
		if err == nil && (len(pods.Items) != 1 || pods.Items[0].UID == before.Items[0].UID || !metav1.IsControlledBy(&pods.Items[0], is)) {
			err = fmt.Errorf("the pods are %v", pods.Items)
		}
		return err
	})
}

func showRollover(t *testing.T, w *world) {
	d := newDeployment("rollover", 2, template("rollover", idle, "1"))
	d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: ptr.To(intstr.FromInt32(1)), MaxUnavailable: ptr.To(intstr.FromInt32(0))}
	w.create(t, d)
	w.complete(t, "rollover")
	w.edit(t, "rollover", func(d *appsv1.Deployment) { d.Spec.Template = template("rollover", absentImage, "2") })
	stuck := w.wantSizes(t, "rollover", 2, 1)
	w.available(t, stuck[0].Name, 2)
	w.edit(t, "rollover", func(d *appsv1.Deployment) { d.Spec.Template = template("rollover", idle, "3") })
	w.complete(t, "rollover")
	sets := w.wantSizes(t, "rollover", 0, 0, 2)
	if sets[0].UID != stuck[0].UID || sets[1].UID != stuck[1].UID {
		t.Errorf("the replica sets are not those of before: %v", sets)
	}
}

func showDeploymentLifecycle(t *testing.T, w *world) {
	api, selected := w.c.Client.AppsV1().Deployments(w.ns), metav1.ListOptions{LabelSelector: "of=cycle"}
	watching, err := api.Watch(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	w.create(t, newDeployment("cycle", 1, template("cycle", idle, "1")))
	awaitEvent(t, watching, watch.Added, func(*appsv1.Deployment) bool { return true })
	awaitEvent(t, watching, watch.Modified, func(d *appsv1.Deployment) bool { return d.Status.AvailableReplicas == 1 })

	patch := `{"metadata":{"labels":{"patched":"yes"}},"spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"main","env":[{"name":"VERSION","value":"2"}]}]}}}}`
	if _, err := api.Patch(t.Context(), "cycle", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(d *appsv1.Deployment) bool {
		return d.Labels["patched"] == "yes" && *d.Spec.Replicas == 2 && d.Status.UpdatedReplicas == 2 && d.Status.AvailableReplicas == 2
	})
	everywhere, err := w.c.Client.AppsV1().Deployments("").List(t.Context(), selected)
	if err != nil || len(everywhere.Items) != 1 || everywhere.Items[0].Spec.Template.Spec.Containers[0].Env[0].Value != "2" {
		t.Fatalf("listed are %+v (%v)", everywhere, err)
	}
	w.edit(t, "cycle", func(d *appsv1.Deployment) {
		d.Labels["updated"], d.Spec.Template.Spec.Containers[0].Env[0].Value = "yes", "3"
	})
	awaitEvent(t, watching, watch.Modified, func(d *appsv1.Deployment) bool { return d.Labels["updated"] == "yes" })
	w.complete(t, "cycle")

	if _, err := api.Patch(t.Context(), "cycle", types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(d *appsv1.Deployment) bool { return *d.Spec.Replicas == 1 && d.Status.Replicas == 1 })

	condition := `{"status":{"conditions":[{"type":"ByPatch","status":"True","reason":"Test","message":"by the test"}]}}`
	if _, err := api.Patch(t.Context(), "cycle", types.StrategicMergePatchType, []byte(condition), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(d *appsv1.Deployment) bool { return hasCondition(d, "ByPatch") })
	eventually(t, "the status is updated", func() error {
		d, err := api.Get(t.Context(), "cycle", metav1.GetOptions{})
		if err != nil {
			return err
		}
		d.Status.Conditions = append(d.Status.Conditions, appsv1.DeploymentCondition{Type: "ByUpdate", Status: corev1.ConditionTrue, Reason: "Test"})
		_, err = api.UpdateStatus(t.Context(), d, metav1.UpdateOptions{})
		return err
	})
	awaitEvent(t, watching, watch.Modified, func(d *appsv1.Deployment) bool { return hasCondition(d, "ByPatch") && hasCondition(d, "ByUpdate") })
	if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Deleted, func(*appsv1.Deployment) bool { return true })
	eventually(t, "its replica sets and pods are gone too", func() error {
		pods, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=cycle"})
		if err == nil && len(w.setsOf(t, "cycle"))+len(pods.Items) > 0 {
			err = errors.New("some are left")
		}
		return err
	})
}

func hasCondition(d *appsv1.Deployment, kind appsv1.DeploymentConditionType) bool {
	return slices.ContainsFunc(d.Status.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == kind })
}

func showDeploymentStatus(t *testing.T, w *world) {
	api := w.c.Client.AppsV1().Deployments(w.ns)
	w.create(t, newDeployment("told", 1, template("told", idle, "1")))
	w.complete(t, "told")
	showStatus(t, api, w.c.Client.AppsV1().RESTClient(), w.ns, "deployments", "told", func(d *appsv1.Deployment, condition string) {
		d.Status.Conditions = append(d.Status.Conditions, appsv1.DeploymentCondition{Type: appsv1.DeploymentConditionType(condition), Status: corev1.ConditionTrue, Reason: "E2E"})
		d.Spec.Replicas = ptr.To(int32(7)) // not this subresource's to change
	})
	if d := w.complete(t, "told"); *d.Spec.Replicas != 1 {
		t.Errorf("a status update set %d replicas", *d.Spec.Replicas)
	}
}

var replicaSets = []behaviour{
	{"a replica set serves", "[sig-apps] ReplicaSet should serve a basic image on each replica with a public image [Conformance]", func(t *testing.T, w *world) {
		w.createSet(t, newReplicaSet("serving", 3, servingTemplate("serving")))
		w.available(t, "serving", 3)
		w.serves(t, "serving", 3)
	}},
	{"adopt and release", "[sig-apps] ReplicaSet should adopt matching pods on creation and release no longer matching pods [Conformance]", func(t *testing.T, w *world) {
		tmpl := template("adopted", idle, "1")
		orphan := w.orphan(t, "orphan", tmpl)
		rs := w.createSet(t, newReplicaSet("adopted", 1, tmpl))
		w.controlled(t, orphan, rs, true)
		w.available(t, "adopted", 1)
		w.released(t, orphan, rs)
		eventually(t, "another pod takes its place", func() error {
			pods, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=adopted"})
			if err == nil && (len(pods.Items) != 1 || !metav1.IsControlledBy(&pods.Items[0], rs) || !podReady(&pods.Items[0])) {
				err = fmt.Errorf("the pods are %v", pods.Items)
			}
			return err
		})
	}},
	{"replace and patch", "[sig-apps] ReplicaSet Replace and Patch tests [Conformance]", func(t *testing.T, w *world) {
		api := w.c.Client.AppsV1().ReplicaSets(w.ns)
		w.createSet(t, newReplicaSet("replaced", 1, template("replaced", idle, "1")))
		w.available(t, "replaced", 1)
		eventually(t, "the replica set is replaced", func() error {
			rs, err := api.Get(t.Context(), "replaced", metav1.GetOptions{})
			if err != nil {
				return err
			}
			rs.Spec.Replicas = ptr.To(int32(2))
			_, err = api.Update(t.Context(), rs, metav1.UpdateOptions{})
			return err
		})
		w.available(t, "replaced", 2)
		patch := `{"metadata":{"labels":{"patched":"yes"}},"spec":{"replicas":3,"template":{"spec":{"containers":[{"name":"main","image":"` + toolImage + `"}]}}}}`
		if _, err := api.Patch(t.Context(), "replaced", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		w.available(t, "replaced", 3)
		rs, err := api.Get(t.Context(), "replaced", metav1.GetOptions{})
		if err != nil || rs.Labels["patched"] != "yes" || rs.Spec.Template.Spec.Containers[0].Image != toolImage {
			t.Errorf("it is %+v (%v)", rs, err)
		}
	}},
	{"scale of a replica set", "[sig-apps] ReplicaSet Replicaset should have a working scale subresource [Conformance]", func(t *testing.T, w *world) {
		w.createSet(t, newReplicaSet("scaled-set", 1, template("scaled-set", idle, "1")))
		w.available(t, "scaled-set", 1)
		showScale(t, w.c.Client.AppsV1().ReplicaSets(w.ns), "scaled-set", func(n int32) { w.available(t, "scaled-set", n) })
	}},
	{"list and delete a collection", "[sig-apps] ReplicaSet should list and delete a collection of ReplicaSets [Conformance]", func(t *testing.T, w *world) {
		api, selected := w.c.Client.AppsV1().ReplicaSets(w.ns), metav1.ListOptions{LabelSelector: "collected=yes"}
		rs := newReplicaSet("collected", 3, template("collected", idle, "1"))
		rs.Labels["collected"] = "yes"
		w.createSet(t, rs)
		other := w.createSet(t, newReplicaSet("spared", 1, template("spared", idle, "1")))
		w.available(t, "collected", 3)
		for _, ns := range []string{w.ns, ""} {
			if all, err := w.c.Client.AppsV1().ReplicaSets(ns).List(t.Context(), selected); err != nil || len(all.Items) != 1 {
				t.Fatalf("in %q are %v (%v)", ns, all, err)
			}
		}
		if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the replica set is gone", func() error {
			all, err := api.List(t.Context(), selected)
			if err == nil && len(all.Items) > 0 {
				err = fmt.Errorf("it is %+v", all.Items[0].ObjectMeta)
			}
			return err
		})
		if got, err := api.Get(t.Context(), other.Name, metav1.GetOptions{}); err != nil || got.DeletionTimestamp != nil {
			t.Errorf("the other one is %+v (%v)", got, err)
		}
	}},
	{"status of a replica set", "[sig-apps] ReplicaSet should validate Replicaset Status endpoints [Conformance]", func(t *testing.T, w *world) {
		api := w.c.Client.AppsV1().ReplicaSets(w.ns)
		w.createSet(t, newReplicaSet("told-set", 1, template("told-set", idle, "1")))
		w.available(t, "told-set", 1)
		showStatus(t, api, w.c.Client.AppsV1().RESTClient(), w.ns, "replicasets", "told-set", func(rs *appsv1.ReplicaSet, condition string) {
			rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{Type: appsv1.ReplicaSetConditionType(condition), Status: corev1.ConditionTrue, Reason: "E2E"})
		})
	}},
}

// TestScheduling shows what Kubernetes asks of the scheduler's filters, one
// after the other: they fill nodes and label them.
func TestScheduling(t *testing.T) {
	c := three(t)
	w := &world{c: c, ns: namespace(t, c)}
	for _, b := range scheduling {
		t.Run(b.name, func(t *testing.T) {
			conformance.Shows(t, b.codename)
			b.show(t, w)
		})
	}
}

// idlePod does nothing on the nodes that the selector selects.
func idlePod(name string, selector map[string]string, cpu string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: template("", idle, "1").Spec}
	p.Spec.NodeSelector = selector
	if cpu != "" {
		list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: list, Limits: list}
	}
	return p
}

// wantUnscheduled waits until the scheduler has said why a pod fits nowhere.
func (w *world) wantUnscheduled(t *testing.T, p *corev1.Pod, why string) {
	t.Helper()
	if _, err := w.c.Client.CoreV1().Pods(w.ns).Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "pod "+p.Name+" is not scheduled", func() error {
		got, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), p.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range got.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable && strings.Contains(c.Message, why) {
				if got.Spec.NodeName != "" || got.Status.Phase != corev1.PodPending {
					t.Fatalf("and yet it is %s on %q", got.Status.Phase, got.Spec.NodeName)
				}
				return nil
			}
		}
		return fmt.Errorf("it is %s on %q, with %+v", got.Status.Phase, got.Spec.NodeName, got.Status.Conditions)
	})
	eventually(t, "an event says so", func() error {
		events, err := w.c.Client.CoreV1().Events(w.ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + p.Name + ",reason=FailedScheduling"})
		if err == nil && !slices.ContainsFunc(events.Items, func(e corev1.Event) bool { return strings.Contains(e.Message, why) }) {
			err = fmt.Errorf("the events are %v", events.Items)
		}
		return err
	})
}

// wantOn waits until a pod runs on a node.
func (w *world) wantOn(t *testing.T, name, node string) {
	t.Helper()
	eventually(t, "pod "+name+" runs on "+node, func() error {
		p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil && (p.Spec.NodeName != node || p.Status.Phase != corev1.PodRunning) {
			err = fmt.Errorf("it is %s on %q", p.Status.Phase, p.Spec.NodeName)
		}
		return err
	})
}

func onHost(name string) map[string]string { return map[string]string{corev1.LabelHostname: name} }

var scheduling = []behaviour{
	{"two nodes", "[sig-architecture] Conformance Tests should have at least two untainted nodes [Conformance]", func(t *testing.T, w *world) {
		nodes, err := w.c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		usable := 0
		for _, n := range nodes.Items {
			ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
			})
			if ready && len(n.Spec.Taints) == 0 && !n.Spec.Unschedulable {
				usable++
			}
		}
		if usable < 2 {
			t.Errorf("%d nodes are ready and untainted", usable)
		}
	}},
	{"resources", "[sig-scheduling] SchedulerPredicates validates resource limits of pods that are allowed to run [Conformance] [Serial]", func(t *testing.T, w *world) {
		var fillers []*corev1.Pod
		half := int64(0)
		for i, h := range w.c.Hosts {
			n, err := w.c.Client.CoreV1().Nodes().Get(t.Context(), h.Name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			all := n.Status.Allocatable.Cpu().MilliValue()
			fillers = append(fillers, idlePod(fmt.Sprintf("filler-%d", i), onHost(h.Name), fmt.Sprintf("%dm", all*6/10)))
			half = max(half, all/2)
		}
		runPods(t, w.c, w.ns, fillers...)
		w.wantUnscheduled(t, idlePod("too-much", nil, fmt.Sprintf("%dm", half)), fmt.Sprintf("0/%d nodes are available: %d Insufficient cpu.", len(fillers), len(fillers)))
		runPods(t, w.c, w.ns, idlePod("enough", nil, "10m"))
		deletePod(t, w.c, w.ns, "filler-1") // makes room
		w.wantOn(t, "too-much", w.c.Hosts[1].Name)
		for _, name := range []string{"filler-0", "filler-2", "too-much", "enough"} {
			deletePod(t, w.c, w.ns, name)
		}
	}},
	{"selector that matches", "[sig-scheduling] SchedulerPredicates validates that NodeSelector is respected if matching [Conformance] [Serial]", func(t *testing.T, w *world) {
		for _, h := range w.c.Hosts {
			labelNode(t, w, h.Name, `"42"`)
			runPods(t, w.c, w.ns, idlePod("selects-"+h.Name, map[string]string{"conclave.test/choice": "42"}, ""))
			w.wantOn(t, "selects-"+h.Name, h.Name)
			labelNode(t, w, h.Name, "null")
		}
	}},
	{"selector that matches nothing", "[sig-scheduling] SchedulerPredicates validates that NodeSelector is respected if not matching [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.wantUnscheduled(t, idlePod("nowhere", map[string]string{"conclave.test/choice": "none"}, ""), "node(s) didn't match Pod's node affinity/selector")
	}},
	{"host ports that conflict", "[sig-scheduling] SchedulerPredicates validates that there exists conflict between pods with same hostPort and protocol but one using 0.0.0.0 hostIP [Conformance] [Serial]", func(t *testing.T, w *world) {
		pod := func(name, ip string, protocol corev1.Protocol) *corev1.Pod {
			p := idlePod(name, onHost(w.c.Hosts[0].Name), "")
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 54322, HostIP: ip, ContainerPort: 8080, Protocol: protocol}}
			return p
		}
		runPods(t, w.c, w.ns, pod("everywhere", "", corev1.ProtocolTCP))
		w.wantUnscheduled(t, pod("at-loopback", "127.0.0.1", corev1.ProtocolTCP), "node(s) didn't have free ports for the requested pod ports")
		w.wantUnscheduled(t, pod("at-zero", "0.0.0.0", corev1.ProtocolTCP), "node(s) didn't have free ports for the requested pod ports")
		runPods(t, w.c, w.ns, pod("by-udp", "0.0.0.0", corev1.ProtocolUDP)) // another protocol, no conflict
	}},
	{"taint taken away", "[sig-node] NoExecuteTaintManager Single Pod removing taint cancels eviction [Conformance] [Serial]", showTaintTakenAway},
	{"taint evicts in time", "[sig-node] NoExecuteTaintManager Multiple Pods evicts pods with minTolerationSeconds [Conformance] [Serial]", showTaintEvicts},
}

func noExecute(key string) corev1.Taint {
	return corev1.Taint{Key: "conclave.test/" + key, Value: "yes", Effect: corev1.TaintEffectNoExecute}
}

// taint gives a node these taints and no others.
func (w *world) taint(t *testing.T, node string, taints ...corev1.Taint) {
	t.Helper()
	eventually(t, "node "+node+" is tainted", func() error {
		n, err := w.c.Client.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err
		}
		n.Spec.Taints = taints
		_, err = w.c.Client.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{})
		return err
	})
}

// tolerates makes a pod bear a taint for so many seconds.
func tolerates(p *corev1.Pod, taint corev1.Taint, seconds int64) *corev1.Pod {
	p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
		Key: taint.Key, Operator: corev1.TolerationOpEqual, Value: taint.Value, Effect: taint.Effect, TolerationSeconds: &seconds})
	return p
}

// showTaintTakenAway removes a taint before a pod's time is up. A witness, which
// bears another taint for longer than the pod had, tells when it would have been.
func showTaintTakenAway(t *testing.T, w *world) {
	node := w.c.Hosts[2].Name
	first, second := noExecute("first"), noExecute("second")
	t.Cleanup(func() { w.taintCleanly(t, node) })
	pods := runPods(t, w.c, w.ns,
		tolerates(tolerates(idlePod("reprieved", onHost(node), ""), first, 4), second, 1000),
		tolerates(tolerates(idlePod("witness", onHost(node), ""), first, 1000), second, 5))
	watching := w.watchPods(t)
	defer watching.Stop()
	w.taint(t, node, first)
	w.taint(t, node, second)
	gone := awaitEvent(t, watching, watch.Deleted, func(p *corev1.Pod) bool { return p.Name == "reprieved" || p.Name == "witness" })
	if gone.Name != "witness" {
		t.Errorf("%s was evicted after its taint had gone", gone.Name)
	}
	got, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), "reprieved", metav1.GetOptions{})
	if err != nil || got.UID != pods[0].UID || got.DeletionTimestamp != nil || got.Status.Phase != corev1.PodRunning {
		t.Errorf("the pod is %+v (%v)", got, err)
	}
}

// showTaintEvicts taints a node whose pods bear that for different times: the
// shorter time ends first, and neither ends too early.
func showTaintEvicts(t *testing.T, w *world) {
	node := w.c.Hosts[2].Name
	taint := noExecute("both")
	t.Cleanup(func() { w.taintCleanly(t, node) })
	runPods(t, w.c, w.ns, tolerates(idlePod("longer", onHost(node), ""), taint, 4), tolerates(idlePod("shorter", onHost(node), ""), taint, 1), idlePod("at-once", onHost(node), ""))
	watching := w.watchPods(t)
	defer watching.Stop()
	start := time.Now()
	w.taint(t, node, taint)
	for _, next := range []struct {
		name string
		not  time.Duration
	}{{"at-once", 0}, {"shorter", time.Second}, {"longer", 4 * time.Second}} {
		gone := awaitEvent(t, watching, watch.Deleted, func(p *corev1.Pod) bool { return p.Name == "at-once" || p.Name == "longer" || p.Name == "shorter" })
		if took := time.Since(start); gone.Name != next.name || took < next.not {
			t.Errorf("%s was evicted after %s, expected was %s after %s", gone.Name, took, next.name, next.not)
		}
	}
}

func (w *world) watchPods(t *testing.T) watch.Interface {
	t.Helper()
	watching, err := w.c.Client.CoreV1().Pods(w.ns).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return watching
}

// taintCleanly takes every taint away, whatever has become of the test.
func (w *world) taintCleanly(t *testing.T, node string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := w.c.Client.CoreV1().Nodes().Patch(ctx, node, types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{})
	if err != nil {
		t.Error(err)
	}
}

// labelNode gives a node a label of ours: a JSON string, or null to take it away.
func labelNode(t *testing.T, w *world, node, value string) {
	t.Helper()
	patch := json.RawMessage(`{"metadata":{"labels":{"conclave.test/choice":` + value + `}}}`)
	if _, err := w.c.Client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}
