package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// What is asked of every kind that keeps pods: Deployments, ReplicaSets,
// ReplicationControllers, StatefulSets and DaemonSets.

// controllers is the typed client of such a kind, as far as it is needed here.
type controllers[T metav1.Object] interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Get(context.Context, string, metav1.GetOptions) (T, error)
	Patch(context.Context, string, types.PatchType, []byte, metav1.PatchOptions, ...string) (T, error)
	UpdateStatus(context.Context, T, metav1.UpdateOptions) (T, error)
}

// scalable is that of a kind that can be scaled.
type scalable[T metav1.Object] interface {
	controllers[T]
	GetScale(context.Context, string, metav1.GetOptions) (*autoscalingv1.Scale, error)
	UpdateScale(context.Context, string, *autoscalingv1.Scale, metav1.UpdateOptions) (*autoscalingv1.Scale, error)
}

func createOf[T metav1.Object](t *testing.T, api controllers[T], o T) T {
	t.Helper()
	o, err := api.Create(t.Context(), o, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// replicas is what a status says of pods, and whether it is of the spec that there
// is.
type replicas struct {
	all, available     int32
	observed, demanded int64
}

// keeps waits until there are that many pods, all available.
func keeps[T metav1.Object](t *testing.T, api controllers[T], name string, n int32, status func(T) replicas) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has %d pods", name, n), func() error {
		o, err := api.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := status(o); s.all != n || s.available != n || s.observed < s.demanded {
			return fmt.Errorf("its status is %+v", s)
		}
		return nil
	})
}

// showScale scales from 1 to 2 by an update and to 3 by a patch; reached waits
// until it is so.
func showScale[T metav1.Object](t *testing.T, api scalable[T], name string, reached func(n int32)) {
	t.Helper()
	scale, err := api.GetScale(t.Context(), name, metav1.GetOptions{})
	if err != nil || scale.Spec.Replicas != 1 || scale.Status.Replicas != 1 || scale.Status.Selector == "" {
		t.Fatalf("the scale is %+v (%v)", scale, err)
	}
	scale.ResourceVersion, scale.Spec.Replicas = "", 2
	if scale, err = api.UpdateScale(t.Context(), name, scale, metav1.UpdateOptions{}); err != nil || scale.Spec.Replicas != 2 {
		t.Fatalf("the updated scale is %+v (%v)", scale, err)
	}
	reached(2)
	if _, err := api.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(`{"spec":{"replicas":3}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	reached(3)
	eventually(t, "the scale says so", func() error {
		scale, err := api.GetScale(t.Context(), name, metav1.GetOptions{})
		if err == nil && (scale.Spec.Replicas != 3 || scale.Status.Replicas != 3) {
			err = fmt.Errorf("it is %+v", scale)
		}
		return err
	})
}

// showStatus has a condition written by an update and another by a patch; tell
// adds one to an object that is to be written.
func showStatus[T metav1.Object](t *testing.T, api controllers[T], get rest.Interface, ns, resource, name string, tell func(o T, condition string)) {
	t.Helper()
	wanted := func(condition string) {
		t.Helper()
		raw, err := get.Get().Namespace(ns).Resource(resource).Name(name).SubResource("status").Do(t.Context()).Raw()
		if err != nil {
			t.Fatal(err)
		}
		var o struct {
			Status struct{ Conditions []struct{ Type string } }
		}
		if err := json.Unmarshal(raw, &o); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(o.Status.Conditions, func(c struct{ Type string }) bool { return c.Type == condition }) {
			t.Fatalf("the conditions are %v, wanted %s", o.Status.Conditions, condition)
		}
	}
	eventually(t, "the status is updated", func() error {
		o, err := api.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		tell(o, "StatusUpdate")
		_, err = api.UpdateStatus(t.Context(), o, metav1.UpdateOptions{})
		return err
	})
	wanted("StatusUpdate")
	patch := `{"status":{"conditions":[{"type":"StatusPatched","status":"True"}]}}`
	if _, err := api.Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	wanted("StatusPatched")
}

// orphan makes a pod of a template that is nobody's yet.
func (w *world) orphan(t *testing.T, name string, tmpl corev1.PodTemplateSpec) *corev1.Pod {
	t.Helper()
	return runPods(t, w.c, w.ns, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: tmpl.Labels}, Spec: tmpl.Spec})[0]
}

// controlled waits until a pod is the owner's, or is not.
func (w *world) controlled(t *testing.T, pod *corev1.Pod, owner metav1.Object, want bool) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is the controller of %s: %t", owner.GetName(), pod.Name, want), func() error {
		p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), pod.Name, metav1.GetOptions{})
		if err == nil && (p.UID != pod.UID || metav1.IsControlledBy(p, owner) != want) {
			err = fmt.Errorf("it is %+v", p.ObjectMeta)
		}
		return err
	})
}

// released changes the label of a pod by which its owner selects it.
func (w *world) released(t *testing.T, pod *corev1.Pod, owner metav1.Object) {
	t.Helper()
	if _, err := w.c.Client.CoreV1().Pods(w.ns).Patch(t.Context(), pod.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"app":"free"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.controlled(t, pod, owner, false)
}
