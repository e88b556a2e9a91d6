package hosts

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// evict asks for the eviction of a pod.
func (w *world) evict(t *testing.T, name string) error {
	t.Helper()
	return w.c.Client.CoreV1().Pods(w.ns).EvictV1(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.ns}})
}

func (w *world) budget(t *testing.T, name string, spec policyv1.PodDisruptionBudgetSpec) *policyv1.PodDisruptionBudget {
	t.Helper()
	spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
	made, err := w.c.Client.PolicyV1().PodDisruptionBudgets(w.ns).Create(t.Context(), &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// allows waits until a budget is seen to and allows so many disruptions.
func (w *world) allows(t *testing.T, name string, n int32) (b *policyv1.PodDisruptionBudget) {
	t.Helper()
	eventually(t, fmt.Sprintf("budget %s allows %d", name, n), func() (err error) {
		if b, err = w.c.Client.PolicyV1().PodDisruptionBudgets(w.ns).Get(t.Context(), name, metav1.GetOptions{}); err == nil &&
			(b.Status.ObservedGeneration != b.Generation || b.Status.DisruptionsAllowed != n) {
			err = fmt.Errorf("its status is %+v", b.Status)
		}
		return err
	})
	return b
}

// TestDisruption shows what Kubernetes asks of disruption budgets.
func TestDisruption(t *testing.T) {
	c := three(t)
	show(t, &world{c: c, ns: namespace(t, c)}, disruption)
}

func atLeast(n int) policyv1.PodDisruptionBudgetSpec {
	return policyv1.PodDisruptionBudgetSpec{MinAvailable: ptr.To(intstr.FromInt(n))}
}

var disruption = []behaviour{
	{"a budget's life", "[sig-apps] DisruptionController should create a PodDisruptionBudget [Conformance]", func(t *testing.T, w *world) {
		budgets := w.c.Client.PolicyV1().PodDisruptionBudgets(w.ns)
		w.budget(t, "lived", atLeast(1))
		w.allows(t, "lived", 0)
		eventually(t, "it is updated", func() error {
			b, err := budgets.Get(t.Context(), "lived", metav1.GetOptions{})
			if err == nil {
				b.Spec.MinAvailable = ptr.To(intstr.FromString("10%"))
				_, err = budgets.Update(t.Context(), b, metav1.UpdateOptions{})
			}
			return err
		})
		w.allows(t, "lived", 0)
		if _, err := budgets.Patch(t.Context(), "lived", types.MergePatchType, []byte(`{"spec":{"minAvailable":"20%"}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if b := w.allows(t, "lived", 0); b.Generation != 3 {
			t.Errorf("generation %d", b.Generation)
		}
		if err := budgets.Delete(t.Context(), "lived", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := budgets.Get(t.Context(), "lived", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("it is there: %v", err)
		}
	}},
	{"a budget counts", "[sig-apps] DisruptionController should observe PodDisruptionBudget status updated [Conformance]", func(t *testing.T, w *world) {
		w.budget(t, "counted", atLeast(1))
		w.allows(t, "counted", 0)
		w.createSet(t, newReplicaSet("counted", 3, template("counted", idle, "1")))
		if b := w.allows(t, "counted", 2); b.Status.CurrentHealthy != 3 || b.Status.DesiredHealthy != 1 || b.Status.ExpectedPods != 3 {
			t.Errorf("status %+v", b.Status)
		}
	}},
	{"an eviction is refused", "[sig-apps] DisruptionController should block an eviction until the PDB is updated to allow it [Conformance]", func(t *testing.T, w *world) {
		w.createSet(t, newReplicaSet("blocked", 3, template("blocked", idle, "1")))
		w.available(t, "blocked", 3)
		w.budget(t, "blocked", atLeast(3))
		w.allows(t, "blocked", 0)
		list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=blocked"})
		if err != nil {
			t.Fatal(err)
		}
		pod := list.Items[0].Name
		err = w.evict(t, pod)
		if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) ||
			!strings.Contains(err.Error(), "Cannot evict pod as it would violate the pod's disruption budget.") {
			t.Fatalf("the answer is %v", err)
		}
		if _, err := w.c.Client.PolicyV1().PodDisruptionBudgets(w.ns).Patch(t.Context(), "blocked", types.MergePatchType, []byte(`{"spec":{"minAvailable":2}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		w.allows(t, "blocked", 1)
		if err := w.evict(t, pod); err != nil {
			t.Fatal(err)
		}
		// The next one has to wait until the first has been replaced.
		if err := w.evict(t, list.Items[1].Name); !apierrors.IsTooManyRequests(err) {
			t.Errorf("the second eviction: %v", err)
		}
		w.allows(t, "blocked", 1)
	}},
}

// TestPreemption shows who gives way to whom, on a cluster of its own: the
// pods of others would be in the way, or go.
func TestPreemption(t *testing.T) {
	t.Parallel()
	c := own(t, 2)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	for _, b := range preemption {
		t.Run(b.name, func(t *testing.T) {
			conformance.Shows(t, b.codename)
			b.show(t, &world{c: c, ns: namespace(t, c)})
		})
	}
}

const scarce = "conclave.test/scarce"

// offer gives every node five of something that pods have to share.
func offer(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for _, h := range c.Hosts {
		kubectl(t, c, "patch", "node", h.Name, "--subresource=status", "--type=merge", "-p", `{"status":{"capacity":{"`+scarce+`":"5"},"allocatable":{"`+scarce+`":"5"}}}`)
	}
}

func needing(name, class, n string) *corev1.Pod {
	p := idlePod(name, nil, "1m")
	p.Spec.PriorityClassName = class
	p.Spec.TerminationGracePeriodSeconds = ptr.To(int64(0))
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{scarce: resource.MustParse(n)}, Limits: corev1.ResourceList{scarce: resource.MustParse(n)},
	}
	return p
}

func class(t *testing.T, c *cluster.Cluster, name string, value int32) {
	t.Helper()
	_, err := c.Client.SchedulingV1().PriorityClasses().Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

// fill takes all of what is scarce, by a pod of each name on some node.
func (w *world) fill(t *testing.T, low, medium string) {
	t.Helper()
	offer(t, w.c)
	class(t, w.c, "low", 1)
	class(t, w.c, "medium", 100)
	class(t, w.c, "high", 1000)
	runPods(t, w.c, w.ns, needing(low, "low", "5"), needing(medium, "medium", "5"))
}

func (w *world) gone(t *testing.T, name string) {
	t.Helper()
	eventually(t, name+" is gone", func() error {
		if _, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%v)", err)
		}
		return nil
	})
}

// clear removes a test's pods, and waits for it.
func (w *world) clear(t *testing.T) {
	t.Helper()
	kubectl(t, w.c, "-n", w.ns, "delete", "replicasets,pods", "--all", "--force", "--wait=true")
}

var preemption = []behaviour{
	{"basic", "[sig-scheduling] SchedulerPreemption validates basic preemption works [Conformance] [Serial]", func(t *testing.T, w *world) {
		defer w.clear(t)
		w.fill(t, "lowest", "middle")
		runPods(t, w.c, w.ns, needing("highest", "high", "4"))
		w.gone(t, "lowest")
		if p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), "middle", metav1.GetOptions{}); err != nil || p.DeletionTimestamp != nil {
			t.Errorf("the one in the middle: %v (%v)", p, err)
		}
	}},
	{"critical", "[sig-scheduling] SchedulerPreemption validates lower priority pod preemption by critical pod [Conformance] [Serial]", func(t *testing.T, w *world) {
		defer w.clear(t)
		w.fill(t, "low-one", "medium-one")
		runPods(t, w.c, w.ns, needing("critical", "system-cluster-critical", "5"))
		w.gone(t, "low-one")
	}},
	{"disruption condition", "[sig-scheduling] SchedulerPreemption validates pod disruption condition is added to the preempted pod [Conformance] [Serial]", func(t *testing.T, w *world) {
		defer w.clear(t)
		offer(t, w.c)
		class(t, w.c, "low", 1)
		class(t, w.c, "high", 1000)
		held := needing("held", "low", "5")
		held.Finalizers = []string{"conclave.test/held"}
		held.Spec.NodeSelector = onHost(w.c.Hosts[0].Name)
		runPods(t, w.c, w.ns, held)
		taker := needing("taker", "high", "5")
		taker.Spec.NodeSelector = onHost(w.c.Hosts[0].Name)
		runPods(t, w.c, w.ns, taker)
		eventually(t, "the condition", func() error {
			p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), "held", metav1.GetOptions{})
			if err == nil && (p.DeletionTimestamp == nil || !slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
				return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
			})) {
				err = fmt.Errorf("it is %+v", p.Status.Conditions)
			}
			return err
		})
		if _, err := w.c.Client.CoreV1().Pods(w.ns).Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}},
	{"path", "[sig-scheduling] SchedulerPreemption PreemptionExecutionPath runs ReplicaSets to verify preemption running path [Conformance] [Serial]", func(t *testing.T, w *world) {
		defer w.clear(t)
		offer(t, w.c)
		// Five units on one node: three go to the least important set, one each to
		// two others, and then a fourth needs three: no more than it needs give way.
		for i, s := range []struct {
			class    string
			value    int32
			replicas int32
			units    string
		}{{"p1", 1, 3, "1"}, {"p2", 2, 1, "1"}, {"p3", 3, 1, "1"}, {"p4", 4, 1, "3"}} {
			class(t, w.c, s.class, s.value)
			pod := needing("", s.class, s.units)
			pod.Labels = map[string]string{"app": s.class}
			pod.Spec.NodeSelector = onHost(w.c.Hosts[0].Name)
			w.createSet(t, &appsv1.ReplicaSet{
				ObjectMeta: metav1.ObjectMeta{Name: s.class},
				Spec: appsv1.ReplicaSetSpec{Replicas: &s.replicas, Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
					Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec}},
			})
			w.available(t, s.class, s.replicas)
			if i == 3 {
				w.available(t, "p2", 1)
				w.available(t, "p3", 1)
			}
		}
		if rs, err := w.c.Client.AppsV1().ReplicaSets(w.ns).Get(t.Context(), "p1", metav1.GetOptions{}); err != nil || rs.Status.AvailableReplicas != 0 {
			t.Errorf("of the least important run %d (%v)", rs.Status.AvailableReplicas, err)
		}
	}},
	{"classes", "[sig-scheduling] SchedulerPreemption PriorityClass endpoints verify PriorityClass endpoints can be operated with different HTTP methods [Conformance] [Serial]", func(t *testing.T, w *world) {
		classes := w.c.Client.SchedulingV1().PriorityClasses()
		class(t, w.c, "endpoints-1", 1)
		class(t, w.c, "endpoints-2", 2)
		list, err := classes.List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) < 4 {
			t.Fatalf("%d classes (%v)", len(list.Items), err)
		}
		for _, name := range []string{"endpoints-1", "endpoints-2"} {
			if _, err := classes.Patch(t.Context(), name, types.MergePatchType, []byte(`{"value":7}`), metav1.PatchOptions{}); !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) {
				t.Errorf("a patch of the value: %v", err)
			}
			got, err := classes.Patch(t.Context(), name, types.MergePatchType, []byte(`{"description":"patched"}`), metav1.PatchOptions{})
			if err != nil || got.Description != "patched" {
				t.Fatalf("patched to %v (%v)", got, err)
			}
			got.Value = 8
			if _, err := classes.Update(t.Context(), got, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
				t.Errorf("an update of the value: %v", err)
			}
			if got, err = classes.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
			got.Description = "updated"
			if got, err = classes.Update(t.Context(), got, metav1.UpdateOptions{}); err != nil || got.Description != "updated" {
				t.Errorf("updated to %v (%v)", got, err)
			}
			if err := classes.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
		if err := classes.Delete(t.Context(), "system-node-critical", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("the deletion of a system class: %v", err)
		}
	}},
}
