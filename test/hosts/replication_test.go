package hosts

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func newReplication(name string, replicas int32, t corev1.PodTemplateSpec) *corev1.ReplicationController {
	return &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"of": name}},
		Spec:       corev1.ReplicationControllerSpec{Replicas: &replicas, Selector: t.Labels, Template: &t},
	}
}

func (w *world) replicate(t *testing.T, rc *corev1.ReplicationController) *corev1.ReplicationController {
	t.Helper()
	return createOf(t, w.c.Client.CoreV1().ReplicationControllers(w.ns), rc)
}

// replicated waits until a controller has so many available pods.
func (w *world) replicated(t *testing.T, name string, n int32) {
	t.Helper()
	keeps(t, w.c.Client.CoreV1().ReplicationControllers(w.ns), name, n, func(rc *corev1.ReplicationController) replicas {
		return replicas{rc.Status.Replicas, rc.Status.AvailableReplicas, rc.Status.ObservedGeneration, rc.Generation}
	})
}

// appPods are the pods of an application that are not going.
func (w *world) appPods(t *testing.T, app string) (alive []corev1.Pod) {
	t.Helper()
	list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// TestReplication shows what Kubernetes asks of ReplicationControllers, of the
// garbage collector about their pods, and of kubectl about both.
func TestReplication(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	show(t, &world{c: c, ns: namespace(t, c)}, replication)
}

// gathered is the deletion of a ReplicationController with two pods.
func (w *world) gathered(t *testing.T, name string, o metav1.DeleteOptions) *corev1.ReplicationController {
	t.Helper()
	rc := w.replicate(t, newReplication(name, 2, template(name, idle, "1")))
	w.replicated(t, name, 2)
	if err := w.c.Client.CoreV1().ReplicationControllers(w.ns).Delete(t.Context(), name, o); err != nil {
		t.Fatal(err)
	}
	return rc
}

func (w *world) replicationGone(t *testing.T, name string) {
	t.Helper()
	eventually(t, name+" is gone", func() error {
		if _, err := w.c.Client.CoreV1().ReplicationControllers(w.ns).Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there (%v)", err)
		}
		return nil
	})
}

func (w *world) podsGone(t *testing.T, app string) {
	t.Helper()
	eventually(t, "the pods of "+app+" are gone", func() error {
		list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are there", len(list.Items))
		}
		return err
	})
}

// serves asks every pod of an application for its page, which is its name.
func (w *world) serves(t *testing.T, app string, n int) {
	t.Helper()
	client, host := w.proxyClient(t)
	eventually(t, fmt.Sprintf("%d pods of %s serve", n, app), func() error {
		pods := w.appPods(t, app)
		if len(pods) != n {
			return fmt.Errorf("there are %d", len(pods))
		}
		for _, p := range pods {
			answer, body, err := through(t.Context(), client, http.MethodGet, host+"/api/v1/namespaces/"+w.ns+"/pods/"+p.Name+"/proxy/", "")
			if err == nil && (answer.StatusCode != http.StatusOK || body != p.Name) {
				err = fmt.Errorf("%s answers %q", p.Name, body)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func servingTemplate(app string) corev1.PodTemplateSpec {
	pod := toolPod("", "", map[string]string{"app": app}, "serve", "http:8080")
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec}
}

func servingManifest(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: v1
kind: ReplicationController
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {app: %[1]s}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: tool, image: %[3]q, args: [serve, "http:8080"], ports: [{containerPort: 8080}]}]
`, name, replicas, toolImage)
}

var replication = []behaviour{
	{"adopt", "[sig-apps] ReplicationController should adopt matching pods on creation [Conformance]", func(t *testing.T, w *world) {
		tmpl := template("rc-adopting", idle, "1")
		orphan := w.orphan(t, "rc-orphan", tmpl)
		w.controlled(t, orphan, w.replicate(t, newReplication("rc-adopting", 1, tmpl)), true)
		w.replicated(t, "rc-adopting", 1)
	}},
	{"release", "[sig-apps] ReplicationController should release no longer matching pods [Conformance]", func(t *testing.T, w *world) {
		rc := w.replicate(t, newReplication("rc-releasing", 1, template("rc-releasing", idle, "1")))
		w.replicated(t, "rc-releasing", 1)
		w.released(t, &w.appPods(t, "rc-releasing")[0], rc)
		w.replicated(t, "rc-releasing", 1)
	}},
	{"serve", "[sig-apps] ReplicationController should serve a basic image on each replica with a public image [Conformance]", func(t *testing.T, w *world) {
		w.replicate(t, newReplication("rc-serving", 2, servingTemplate("rc-serving")))
		w.replicated(t, "rc-serving", 2)
		w.serves(t, "rc-serving", 2)
	}},
	{"scale", "[sig-apps] ReplicationController should get and update a ReplicationController scale [Conformance]", func(t *testing.T, w *world) {
		w.replicate(t, newReplication("rc-scaled", 1, template("rc-scaled", idle, "1")))
		w.replicated(t, "rc-scaled", 1)
		showScale(t, w.c.Client.CoreV1().ReplicationControllers(w.ns), "rc-scaled", func(n int32) { w.replicated(t, "rc-scaled", n) })
	}},
	{"failure", "[sig-apps] ReplicationController should surface a failure condition on a common issue like exceeded quota [Conformance]", func(t *testing.T, w *world) {
		w = &world{c: w.c, ns: namespace(t, w.c)}
		w.quota(t, "q", amounts("pods", "2"))
		w.uses(t, "q", "pods", "0")
		w.replicate(t, newReplication("rc-failing", 3, template("rc-failing", idle, "1")))
		failing := func(want bool) {
			t.Helper()
			eventually(t, fmt.Sprintf("it fails: %t", want), func() error {
				rc, err := w.c.Client.CoreV1().ReplicationControllers(w.ns).Get(t.Context(), "rc-failing", metav1.GetOptions{})
				if err == nil && slices.ContainsFunc(rc.Status.Conditions, func(c corev1.ReplicationControllerCondition) bool {
					return c.Type == corev1.ReplicationControllerReplicaFailure && c.Status == corev1.ConditionTrue && c.Reason == "FailedCreate"
				}) != want {
					err = fmt.Errorf("its conditions are %+v", rc.Status.Conditions)
				}
				return err
			})
		}
		failing(true)
		kubectl(t, w.c, "-n", w.ns, "scale", "rc", "rc-failing", "--replicas=2")
		failing(false)
	}},
	{"lifecycle", "[sig-apps] ReplicationController should test the lifecycle of a ReplicationController [Conformance]", func(t *testing.T, w *world) {
		api := w.c.Client.CoreV1().ReplicationControllers(w.ns)
		watching, err := api.Watch(t.Context(), metav1.ListOptions{LabelSelector: "of=rc-lived"})
		if err != nil {
			t.Fatal(err)
		}
		defer watching.Stop()
		w.replicate(t, newReplication("rc-lived", 1, template("rc-lived", idle, "1")))
		if e := <-watching.ResultChan(); e.Type != "ADDED" {
			t.Errorf("the first event is %s", e.Type)
		}
		w.replicated(t, "rc-lived", 1)
		got, err := api.Patch(t.Context(), "rc-lived", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{})
		if err != nil || got.Labels["patched"] != "yes" {
			t.Fatalf("patched to %v (%v)", got, err)
		}
		if _, err := api.Patch(t.Context(), "rc-lived", types.StrategicMergePatchType, []byte(`{"status":{"readyReplicas":0,"availableReplicas":0}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		w.replicated(t, "rc-lived", 1) // which the controller puts right
		if _, err := api.Patch(t.Context(), "rc-lived", types.StrategicMergePatchType, []byte(`{"spec":{"replicas":2}}`), metav1.PatchOptions{}, "scale"); err != nil {
			t.Fatal(err)
		}
		w.replicated(t, "rc-lived", 2)
		eventually(t, "it is updated", func() error {
			rc, err := api.Get(t.Context(), "rc-lived", metav1.GetOptions{})
			if err == nil {
				rc.Annotations = map[string]string{"updated": "yes"}
				_, err = api.Update(t.Context(), rc, metav1.UpdateOptions{})
			}
			return err
		})
		if all, err := w.c.Client.CoreV1().ReplicationControllers("").List(t.Context(), metav1.ListOptions{LabelSelector: "of=rc-lived"}); err != nil || len(all.Items) != 1 || all.Items[0].Annotations["updated"] != "yes" {
			t.Fatalf("everywhere are %v (%v)", all, err)
		}
		if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "of=rc-lived"}); err != nil {
			t.Fatal(err)
		}
		w.replicationGone(t, "rc-lived")
	}},

	{"background", "[sig-api-machinery] Garbage collector should delete pods created by rc when not orphaning [Conformance]", func(t *testing.T, w *world) {
		w.gathered(t, "rc-background", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)})
		w.replicationGone(t, "rc-background")
		w.podsGone(t, "rc-background")
	}},
	{"orphan", "[sig-api-machinery] Garbage collector should orphan pods created by rc if delete options say so [Conformance] [Serial]", func(t *testing.T, w *world) {
		w.gathered(t, "rc-orphan", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationOrphan)})
		w.replicationGone(t, "rc-orphan")
		// Those of another, deleted later, are gone when the collector has seen to both.
		w.gathered(t, "rc-orphan-witness", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)})
		w.podsGone(t, "rc-orphan-witness")
		pods := w.appPods(t, "rc-orphan")
		if len(pods) != 2 || len(pods[0].OwnerReferences)+len(pods[1].OwnerReferences) > 0 {
			t.Errorf("left are %v", pods)
		}
	}},
	{"foreground", "[sig-api-machinery] Garbage collector should keep the rc around until all its pods are deleted if the deleteOptions says so [Conformance] [Serial]", func(t *testing.T, w *world) {
		tmpl := template("rc-foreground", idle, "1")
		tmpl.Finalizers = []string{"conclave.test/held"}
		w.replicate(t, newReplication("rc-foreground", 2, tmpl))
		w.replicated(t, "rc-foreground", 2)
		api := w.c.Client.CoreV1().ReplicationControllers(w.ns)
		if err := api.Delete(t.Context(), "rc-foreground", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}); err != nil {
			t.Fatal(err)
		}
		release := func(n int) {
			t.Helper()
			list, err := w.c.Client.CoreV1().Pods(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=rc-foreground"})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list.Items[:n] {
				if _, err := w.c.Client.CoreV1().Pods(w.ns).Patch(t.Context(), p.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				w.gone(t, p.Name)
			}
		}
		eventually(t, "both pods are going", func() error {
			if n := len(w.appPods(t, "rc-foreground")); n != 0 {
				return fmt.Errorf("%d are not", n)
			}
			return nil
		})
		release(1)
		rc, err := api.Get(t.Context(), "rc-foreground", metav1.GetOptions{})
		if err != nil || !slices.Contains(rc.Finalizers, metav1.FinalizerDeleteDependents) {
			t.Errorf("while a pod is left it is %v (%v)", rc, err)
		}
		release(1)
		w.replicationGone(t, "rc-foreground")
	}},
	{"two owners", "[sig-api-machinery] Garbage collector should not delete dependents that have both valid owner and owner that's waiting for dependents to be deleted [Conformance] [Serial]", func(t *testing.T, w *world) {
		first := w.replicate(t, newReplication("rc-going", 2, template("rc-going", idle, "1")))
		second := w.replicate(t, newReplication("rc-staying", 0, template("rc-staying", idle, "1")))
		w.replicated(t, "rc-going", 2)
		shared := w.appPods(t, "rc-going")[0]
		patch := fmt.Sprintf(`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"ReplicationController","name":%q,"uid":%q}]}}`, second.Name, second.UID)
		if _, err := w.c.Client.CoreV1().Pods(w.ns).Patch(t.Context(), shared.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := w.c.Client.CoreV1().ReplicationControllers(w.ns).Delete(t.Context(), first.Name, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}); err != nil {
			t.Fatal(err)
		}
		w.replicationGone(t, "rc-going")
		left := w.appPods(t, "rc-going")
		if len(left) != 1 || left[0].UID != shared.UID || len(left[0].OwnerReferences) != 1 || left[0].OwnerReferences[0].UID != second.UID {
			t.Errorf("left are %v", left)
		}
	}},

	{"kubectl describe", "[sig-cli] Kubectl client Kubectl describe should check if kubectl describe prints relevant information for rc and pods [Conformance]", func(t *testing.T, w *world) {
		apply(t, w.c, w.ns, servingManifest("described", 1)+"---\napiVersion: v1\nkind: Service\nmetadata: {name: described, labels: {app: described}}\nspec: {selector: {app: described}, ports: [{port: 8080}]}\n")
		w.replicated(t, "described", 1)
		pod := w.appPods(t, "described")[0]
		k := func(args ...string) string {
			t.Helper()
			return kubectl(t, w.c, append([]string{"-n", w.ns, "describe"}, args...)...)
		}
		mustContain(t, "of the pod", k("pod", pod.Name), "Name: ", "Namespace: ", "Node: ", "Labels: ", "app=described", "Status: ", "Running", "IP: ", "Controlled By: ", "ReplicationController/described", "Image: ", "State: ", "QoS Class: ")
		mustContain(t, "of the rc", k("rc", "described"), "Name: ", "Namespace: ", "Selector: ", "app=described", "Labels: ", "Annotations: ", "Replicas: ", "1 current", "1 desired", "Pods Status: ", "Pod Template:", "Image: ", "Events:")
		mustContain(t, "of the service", k("service", "described"), "Name: ", "Namespace: ", "Labels: ", "app=described", "Annotations: ", "Selector: ", "Type: ", "ClusterIP", "IP: ", "Port: ", "Endpoints: ", "Session Affinity: ")
		mustContain(t, "of the node", k("node", pod.Spec.NodeName), "Name: ", "Labels: ", "Annotations: ", "CreationTimestamp: ", "Conditions:", "Type", "Status", "LastHeartbeatTime", "LastTransitionTime", "Reason", "Message", "Addresses:", "Capacity:", "Version", "Kernel Version", "Kubelet Version", "Pods:")
		mustContain(t, "of the namespace", k("namespace", w.ns), "Name: ", "Labels: ", "Annotations: ", "Status: ", "Active")
	}},
	{"kubectl expose", "[sig-cli] Kubectl client Kubectl expose should create services for rc [Conformance]", func(t *testing.T, w *world) {
		apply(t, w.c, w.ns, servingManifest("exposed", 1))
		w.replicated(t, "exposed", 1)
		filled := func(name string, port int32) {
			t.Helper()
			eventually(t, name+" has endpoints", func() error {
				ep, err := w.c.Client.CoreV1().Endpoints(w.ns).Get(t.Context(), name, metav1.GetOptions{})
				if err == nil && (len(ep.Subsets) != 1 || len(ep.Subsets[0].Addresses) != 1 || ep.Subsets[0].Ports[0].Port != 8080) {
					err = fmt.Errorf("they are %+v", ep.Subsets)
				}
				return err
			})
			svc, err := w.c.Client.CoreV1().Services(w.ns).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil || svc.Spec.Ports[0].Port != port || svc.Spec.Ports[0].TargetPort.IntValue() != 8080 {
				t.Errorf("service %s is %v (%v)", name, svc, err)
			}
		}
		kubectl(t, w.c, "-n", w.ns, "expose", "rc", "exposed", "--name=exposed-2", "--port=1234", "--target-port=8080")
		filled("exposed-2", 1234)
		kubectl(t, w.c, "-n", w.ns, "expose", "service", "exposed-2", "--name=exposed-3", "--port=2345", "--target-port=8080")
		filled("exposed-3", 2345)
	}},
	{"kubectl patch", "[sig-cli] Kubectl client Kubectl patch should add annotations for pods in rc [Conformance]", func(t *testing.T, w *world) {
		apply(t, w.c, w.ns, servingManifest("annotated", 2))
		w.replicated(t, "annotated", 2)
		for _, p := range w.appPods(t, "annotated") {
			kubectl(t, w.c, "-n", w.ns, "patch", "pod", p.Name, "-p", `{"metadata":{"annotations":{"x":"y"}}}`)
		}
		for _, p := range w.appPods(t, "annotated") {
			if p.Annotations["x"] != "y" {
				t.Errorf("pod %s has %v", p.Name, p.Annotations)
			}
		}
	}},
	{"kubectl create and stop", "[sig-cli] Kubectl client Update Demo should create and stop a replication controller [Conformance]", func(t *testing.T, w *world) {
		if _, err := w.c.KubectlInput(t.Context(), servingManifest("stopped", 2), "create", "-n", w.ns, "-f", "-"); err != nil {
			t.Fatal(err)
		}
		w.serves(t, "stopped", 2)
		if _, err := w.c.KubectlInput(t.Context(), servingManifest("stopped", 2), "delete", "-n", w.ns, "--grace-period=0", "--force", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		if out := kubectl(t, w.c, "-n", w.ns, "get", "rc", "-l", "app=stopped", "--no-headers"); !strings.Contains(out, "No resources found") && strings.TrimSpace(out) != "" {
			t.Errorf("left is %q", out)
		}
		w.podsGone(t, "stopped")
	}},
	{"kubectl scale", "[sig-cli] Kubectl client Update Demo should scale a replication controller [Conformance]", func(t *testing.T, w *world) {
		if _, err := w.c.KubectlInput(t.Context(), servingManifest("resized", 2), "create", "-n", w.ns, "-f", "-"); err != nil {
			t.Fatal(err)
		}
		w.serves(t, "resized", 2)
		for _, n := range []int{1, 2} {
			kubectl(t, w.c, "-n", w.ns, "scale", "rc", "resized", fmt.Sprintf("--replicas=%d", n), "--timeout=5m")
			w.serves(t, "resized", n)
		}
	}},
}
