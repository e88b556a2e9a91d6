package hosts

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func newDaemonSet(name string) *appsv1.DaemonSet {
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}},
		Spec:       appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template(name, idle, "1")},
	}
}

func (w *world) createDaemon(t *testing.T, d *appsv1.DaemonSet) *appsv1.DaemonSet {
	t.Helper()
	made, err := w.c.Client.AppsV1().DaemonSets(w.ns).Create(t.Context(), d, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func (w *world) editDaemon(t *testing.T, name string, change func(*appsv1.DaemonSet)) {
	t.Helper()
	eventually(t, "daemon set "+name+" is updated", func() error {
		d, err := w.c.Client.AppsV1().DaemonSets(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err == nil {
			change(d)
			_, err = w.c.Client.AppsV1().DaemonSets(w.ns).Update(t.Context(), d, metav1.UpdateOptions{})
		}
		return err
	})
}

// daemons waits until exactly these nodes have one ready pod each, all of one
// template, and returns the pods in the order of the nodes.
func (w *world) daemons(t *testing.T, name, version string, nodes ...string) (pods []corev1.Pod) {
	t.Helper()
	eventually(t, fmt.Sprintf("pods of %s run on %v", name, nodes), func() error {
		list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return err
		}
		var on []string
		pods = list.Items
		slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Spec.NodeName, b.Spec.NodeName) })
		for _, p := range pods {
			if podReady(&p) && p.DeletionTimestamp == nil && p.Spec.Containers[0].Env[0].Value == version {
				on = append(on, p.Spec.NodeName)
			}
		}
		if slices.Sort(nodes); len(pods) != len(nodes) || !slices.Equal(on, nodes) {
			return fmt.Errorf("%d pods, good ones on %v", len(pods), on)
		}
		d, err := w.c.Client.AppsV1().DaemonSets(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if n := int32(len(nodes)); d.Status.ObservedGeneration != d.Generation || d.Status.DesiredNumberScheduled != n || d.Status.NumberReady != n || d.Status.UpdatedNumberScheduled != n || d.Status.NumberMisscheduled != 0 {
			return fmt.Errorf("the status is %+v", d.Status)
		}
		return nil
	})
	return pods
}

func (w *world) nodeNames() (names []string) {
	for _, h := range w.c.Hosts {
		names = append(names, h.Name)
	}
	return names
}

func uids(pods []corev1.Pod) (all []string) {
	for _, p := range pods {
		all = append(all, string(p.UID))
	}
	return all
}

// TestDaemonSets shows what Kubernetes asks of DaemonSets.
func TestDaemonSets(t *testing.T) {
	c := three(t)
	show(t, &world{c: c, ns: namespace(t, c)}, daemonSets)
}

var daemonSets = []behaviour{
	{"simple", "[sig-apps] Daemon set should run and stop simple daemon [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.createDaemon(t, newDaemonSet("simple"))
		before := w.daemons(t, "simple", "1", w.nodeNames()...)
		deletePod(t, w.c, w.ns, before[0].Name)
		after := w.daemons(t, "simple", "1", w.nodeNames()...)
		if after[0].UID == before[0].UID || after[1].UID != before[1].UID {
			t.Errorf("pods were %v and are %v", uids(before), uids(after))
		}
	}},
	{"complex", "[sig-apps] Daemon set should run and stop complex daemon [Conformance] [Serial]", func(t *testing.T, w *world) {
		const label = "conclave.test/daemon"
		node := w.c.Hosts[0].Name
		d := newDaemonSet("complex")
		d.Spec.Template.Spec.NodeSelector = map[string]string{label: "blue"}
		w.createDaemon(t, d)
		w.daemons(t, "complex", "1")
		mark := func(value string) {
			t.Helper()
			if _, err := w.c.Client.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+label+`":`+value+`}}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() {
			if _, err := w.c.Kubectl(context.Background(), "label", "node", node, label+"-"); err != nil {
				t.Error(err)
			}
		})
		mark(`"blue"`)
		w.daemons(t, "complex", "1", node)
		mark(`"green"`)
		w.daemons(t, "complex", "1")
		w.editDaemon(t, "complex", func(d *appsv1.DaemonSet) {
			d.Spec.Template.Spec.NodeSelector[label] = "green"
			d.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType}
		})
		w.daemons(t, "complex", "1", node)
	}},
	{"failed pods", "[sig-apps] Daemon set should retry creating failed daemon pods [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.createDaemon(t, newDaemonSet("failing"))
		before := w.daemons(t, "failing", "1", w.nodeNames()...)
		eventually(t, "a pod is told that it failed", func() error {
			p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), before[0].Name, metav1.GetOptions{})
			if err == nil {
				p.Status.Phase = corev1.PodFailed
				_, err = w.c.Client.CoreV1().Pods(w.ns).UpdateStatus(t.Context(), p, metav1.UpdateOptions{})
			}
			return err
		})
		w.gone(t, before[0].Name)
		w.daemons(t, "failing", "1", w.nodeNames()...)
	}},
	{"rolling update", "[sig-apps] Daemon set should update pod when spec was updated and update strategy is RollingUpdate [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.createDaemon(t, newDaemonSet("rolling"))
		before := w.daemons(t, "rolling", "1", w.nodeNames()...)
		w.editDaemon(t, "rolling", func(d *appsv1.DaemonSet) { d.Spec.Template = template("rolling", idle, "2") })
		after := w.daemons(t, "rolling", "2", w.nodeNames()...)
		const hash = appsv1.DefaultDaemonSetUniqueLabelKey
		revisions, err := w.c.Client.AppsV1().ControllerRevisions(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=rolling"})
		if err != nil || len(revisions.Items) != 2 {
			t.Fatalf("revisions %v (%v)", revisions, err)
		}
		for _, p := range after {
			if p.Labels[hash] == before[0].Labels[hash] || !slices.ContainsFunc(revisions.Items, func(r appsv1.ControllerRevision) bool { return r.Labels[hash] == p.Labels[hash] }) {
				t.Errorf("pod %s has hash %q", p.Name, p.Labels[hash])
			}
		}
	}},
	{"rollback", "[sig-apps] Daemon set should rollback without unnecessary restarts [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.createDaemon(t, newDaemonSet("rollback"))
		before := w.daemons(t, "rollback", "1", w.nodeNames()...)
		w.editDaemon(t, "rollback", func(d *appsv1.DaemonSet) { d.Spec.Template = template("rollback", absentImage, "2") })
		var touched string
		eventually(t, "one pod is of the image that nobody has", func() error {
			list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=rollback"})
			if err != nil {
				return err
			}
			for _, p := range list.Items {
				if p.Spec.Containers[0].Image == absentImage {
					touched = p.Name
					return nil
				}
			}
			return fmt.Errorf("%d pods, none of it", len(list.Items))
		})
		w.editDaemon(t, "rollback", func(d *appsv1.DaemonSet) { d.Spec.Template = template("rollback", idle, "1") })
		after := w.daemons(t, "rollback", "1", w.nodeNames()...)
		kept := 0
		for _, p := range after {
			if slices.Contains(uids(before), string(p.UID)) {
				kept++
			}
		}
		if kept != len(before)-1 {
			t.Errorf("%d of %d pods were kept; %s was of the bad image", kept, len(before), touched)
		}
	}},
	{"collection", "[sig-apps] Daemon set should list and delete a collection of DaemonSets [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.createDaemon(t, newDaemonSet("collected"))
		w.daemons(t, "collected", "1", w.nodeNames()...)
		selected := metav1.ListOptions{LabelSelector: "of=collected"}
		if all, err := w.c.Client.AppsV1().DaemonSets("").List(t.Context(), selected); err != nil || len(all.Items) != 1 {
			t.Fatalf("everywhere are %v (%v)", all, err)
		}
		if err := w.c.Client.AppsV1().DaemonSets(w.ns).DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
			t.Fatal(err)
		}
		eventually(t, "set and pods are gone", func() error {
			list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=collected"})
			if err == nil && len(list.Items) > 0 {
				err = fmt.Errorf("%d pods", len(list.Items))
			}
			if _, getErr := w.c.Client.AppsV1().DaemonSets(w.ns).Get(t.Context(), "collected", metav1.GetOptions{}); err == nil && !apierrors.IsNotFound(getErr) {
				err = fmt.Errorf("the set: %v", getErr)
			}
			return err
		})
	}},
	{"status", "[sig-apps] Daemon set should verify changes to a daemon set status [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.createDaemon(t, newDaemonSet("told"))
		w.daemons(t, "told", "1", w.nodeNames()...)
		showStatus(t, w.c.Client.AppsV1().DaemonSets(w.ns), w.c.Client.AppsV1().RESTClient(), w.ns, "daemonsets", "told", func(d *appsv1.DaemonSet, condition string) {
			d.Status.Conditions = append(d.Status.Conditions, appsv1.DaemonSetCondition{Type: appsv1.DaemonSetConditionType(condition), Status: corev1.ConditionTrue})
		})
	}},
	{"revisions", "[sig-apps] ControllerRevision should manage the lifecycle of a ControllerRevision [Conformance] [Serial]", func(t *testing.T, w *world) {
		revisions := w.c.Client.AppsV1().ControllerRevisions(w.ns)
		d := w.createDaemon(t, newDaemonSet("revised"))
		w.daemons(t, "revised", "1", w.nodeNames()...)
		selected := metav1.ListOptions{LabelSelector: "app=revised"}
		list, err := w.c.Client.AppsV1().ControllerRevisions("").List(t.Context(), selected)
		if err != nil || len(list.Items) != 1 || !metav1.IsControlledBy(&list.Items[0], d) {
			t.Fatalf("revisions %v (%v)", list, err)
		}
		first := list.Items[0]
		patched, err := revisions.Patch(t.Context(), first.Name, types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{})
		if err != nil || patched.Labels["patched"] != "yes" {
			t.Fatalf("patched to %v (%v)", patched, err)
		}
		copied := first.DeepCopy()
		copied.ObjectMeta = metav1.ObjectMeta{Name: "revised-copy", Labels: map[string]string{"copy": "yes"}}
		copied.Revision++
		if _, err := revisions.Create(t.Context(), copied, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		made, err := revisions.Get(t.Context(), "revised-copy", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		made.Labels["updated"] = "yes"
		if made, err = revisions.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil || made.Labels["updated"] != "yes" {
			t.Fatalf("updated to %v (%v)", made, err)
		}
		if err := revisions.Delete(t.Context(), first.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.editDaemon(t, "revised", func(d *appsv1.DaemonSet) { d.Spec.Template = template("revised", idle, "2") })
		w.daemons(t, "revised", "2", w.nodeNames()...)
		if err := revisions.DeleteCollection(t.Context(), metav1.DeleteOptions{GracePeriodSeconds: ptr.To(int64(0))}, metav1.ListOptions{LabelSelector: "copy=yes"}); err != nil {
			t.Fatal(err)
		}
		if _, err := revisions.Get(t.Context(), "revised-copy", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the copy is there: %v", err)
		}
	}},
}
