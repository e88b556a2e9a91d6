package hosts

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"

	"conclave/test/conformance"
)

// TestNamespaces makes, changes and ends namespaces.
func TestNamespaces(t *testing.T) {
	c := three(t)
	all := c.Client.CoreV1().Namespaces()
	create := func(t *testing.T) *corev1.Namespace {
		t.Helper()
		made, err := all.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "spaces-"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	read := func(t *testing.T, name string) *corev1.Namespace {
		t.Helper()
		ns, err := all.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return ns
	}
	remove := func(t *testing.T, name string) {
		t.Helper()
		if err := all.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	gone := func(t *testing.T, name string) {
		t.Helper()
		eventually(t, "namespace "+name+" is gone", func() error {
			ns, err := all.Get(t.Context(), name, metav1.GetOptions{})
			if apierrors.IsNotFound(err) {
				return nil
			}
			return fmt.Errorf("it is there: %v %+v", err, ns.Status)
		})
	}
	t.Run("patch", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Namespaces should patch a Namespace [Conformance] [Serial]")
		ns := create(t)
		patch := `{"metadata":{"labels":{"patched":"yes"}}}`
		if _, err := all.Patch(t.Context(), ns.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := read(t, ns.Name); got.Labels["patched"] != "yes" {
			t.Errorf("labels %v", got.Labels)
		}
		remove(t, ns.Name)
	})
	t.Run("update", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Namespaces should apply an update to a Namespace [Conformance] [Serial]")
		ns := create(t)
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			ns := read(t, ns.Name)
			ns.Labels["updated"] = "yes"
			_, err := all.Update(t.Context(), ns, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, ns.Name); got.Labels["updated"] != "yes" || got.Labels[corev1.LabelMetadataName] != ns.Name {
			t.Errorf("labels %v", got.Labels)
		}
		remove(t, ns.Name)
	})
	t.Run("status", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Namespaces should apply changes to a namespace status [Conformance] [Serial]")
		ns := create(t)
		has := func(what, kind string) {
			t.Helper()
			raw, err := c.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces", ns.Name, "status").DoRaw(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var got corev1.Namespace
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			if got.Status.Phase != corev1.NamespaceActive || kind != "" && !slices.ContainsFunc(got.Status.Conditions, func(c corev1.NamespaceCondition) bool {
				return string(c.Type) == kind && c.Status == corev1.ConditionTrue && c.Message == what
			}) {
				t.Errorf("the status %s is %+v", what, got.Status)
			}
		}
		has("at first", "")
		patch := `{"metadata":{"annotations":{"a":"b"}},"status":{"conditions":[{"type":"Patched","status":"True","reason":"Test","message":"by a patch"}]}}`
		if _, err := all.Patch(t.Context(), ns.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		has("by a patch", "Patched")
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			ns := read(t, ns.Name)
			ns.Status.Conditions = append(ns.Status.Conditions, corev1.NamespaceCondition{Type: "Updated", Status: corev1.ConditionTrue, Reason: "Test", Message: "by an update"})
			_, err := all.UpdateStatus(t.Context(), ns, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		has("by an update", "Updated")
		has("by a patch", "Patched")
		remove(t, ns.Name)
	})
	t.Run("finalizer", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Namespaces should apply a finalizer to a Namespace [Conformance] [Serial]")
		ns := create(t)
		const mine = corev1.FinalizerName("conclave.test/mine")
		set := func(change func(of []corev1.FinalizerName) []corev1.FinalizerName) {
			t.Helper()
			err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
				ns := read(t, ns.Name)
				ns.Spec.Finalizers = change(ns.Spec.Finalizers)
				_, err := all.Finalize(t.Context(), ns, metav1.UpdateOptions{})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		set(func(of []corev1.FinalizerName) []corev1.FinalizerName { return append(of, mine) })
		if got := read(t, ns.Name).Spec.Finalizers; !slices.Contains(got, mine) || !slices.Contains(got, corev1.FinalizerKubernetes) {
			t.Errorf("finalizers %q", got)
		}
		remove(t, ns.Name)
		eventually(t, "only our finalizer is left", func() error {
			if got := read(t, ns.Name); len(got.Spec.Finalizers) != 1 || got.Status.Phase != corev1.NamespaceTerminating {
				return fmt.Errorf("finalizers %q, %s", got.Spec.Finalizers, got.Status.Phase)
			}
			return nil
		})
		set(func([]corev1.FinalizerName) []corev1.FinalizerName { return nil })
		gone(t, ns.Name)
	})
	t.Run("services", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Namespaces should ensure that all services are removed when a namespace is deleted [Conformance] [Serial]")
		ns := create(t)
		_, err := c.Client.CoreV1().Services(ns.Name).Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "inside"},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"a": "b"}, Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		remove(t, ns.Name)
		gone(t, ns.Name)
		// A namespace of the same name is empty.
		if _, err := all.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if left, err := c.Client.CoreV1().Services(ns.Name).List(t.Context(), metav1.ListOptions{}); err != nil || len(left.Items) > 0 {
			t.Errorf("%v: services are left: %v", err, left)
		}
		remove(t, ns.Name)
	})
	t.Run("pods", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] Namespaces should ensure that all pods are removed when a namespace is deleted [Conformance] [Serial]")
		ns := create(t)
		account(t, c, ns.Name, "default")
		for _, name := range []string{"a", "b"} {
			createPod(t, c, ns.Name, sleeper(name, "inside"))
		}
		waitForPod(t, c, ns.Name, "a", corev1.PodRunning)
		waitForPod(t, c, ns.Name, "b", corev1.PodRunning)
		remove(t, ns.Name)
		gone(t, ns.Name)
		if _, err := all.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns.Name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if left, err := c.Client.CoreV1().Pods(ns.Name).List(t.Context(), metav1.ListOptions{}); err != nil || len(left.Items) > 0 {
			t.Errorf("%v: pods are left: %v", err, left)
		}
		remove(t, ns.Name)
	})
	t.Run("pods first", func(t *testing.T) {
		t.Parallel()
		conformance.Shows(t, "[sig-api-machinery] OrderedNamespaceDeletion namespace deletion should delete pod first [Conformance]")
		ns := create(t)
		account(t, c, ns.Name, "default")
		pod := sleeper("held", "inside")
		pod.Finalizers = []string{"conclave.test/held"}
		createPod(t, c, ns.Name, pod)
		configMaps{t, c, ns.Name}.create("waits", "x", "0")
		waitForPod(t, c, ns.Name, "held", corev1.PodRunning)
		remove(t, ns.Name)
		eventually(t, "the namespace says that a finalizer holds it", func() error {
			got := read(t, ns.Name)
			pod, err := c.Client.CoreV1().Pods(ns.Name).Get(t.Context(), "held", metav1.GetOptions{})
			if err != nil || pod.DeletionTimestamp == nil {
				return fmt.Errorf("pod: %v, deleted at %v", err, pod.DeletionTimestamp)
			}
			if !slices.ContainsFunc(got.Status.Conditions, func(c corev1.NamespaceCondition) bool {
				return c.Type == corev1.NamespaceFinalizersRemaining && c.Status == corev1.ConditionTrue
			}) {
				return fmt.Errorf("conditions %+v", got.Status.Conditions)
			}
			return nil
		})
		if kept, err := c.Client.CoreV1().ConfigMaps(ns.Name).Get(t.Context(), "waits", metav1.GetOptions{}); err != nil || kept.DeletionTimestamp != nil {
			t.Errorf("the config map did not wait for the pod: %v", err)
		}
		if _, err := c.Client.CoreV1().Pods(ns.Name).Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		gone(t, ns.Name)
	})
}
