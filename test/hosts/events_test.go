package hosts

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/test/conformance"
)

// TestEvents keeps events by both of their groups.
func TestEvents(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	const label = "kind=test"
	now := metav1.NewMicroTime(time.Unix(1700000000, 123456000))
	old := func(name string) *corev1.Event {
		return &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Name: name, Namespace: ns, Labels: map[string]string{"kind": "test"}},
			InvolvedObject: corev1.ObjectReference{Namespace: ns, Kind: "Pod", Name: "p"}, Reason: "Test", Message: "first", Type: "Normal", Count: 1,
		}
	}
	young := func(name string) *eventsv1.Event {
		return &eventsv1.Event{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, Labels: map[string]string{"kind": "test"}},
			Regarding:  corev1.ObjectReference{Namespace: ns, Kind: "Pod", Name: "p"}, EventTime: now, Reason: "Test", Note: "first", Type: "Normal",
			Action: "Do", ReportingController: "conclave.test/controller", ReportingInstance: "one",
		}
	}
	core, events := c.Client.CoreV1().Events(ns), c.Client.EventsV1().Events(ns)
	t.Run("one of core", func(t *testing.T) {
		conformance.Shows(t, "[sig-instrumentation] Events should manage the lifecycle of an event [Conformance]")
		if _, err := core.Create(t.Context(), old("one"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		everywhere, err := c.Client.CoreV1().Events("").List(t.Context(), metav1.ListOptions{LabelSelector: label})
		if err != nil || !slices.ContainsFunc(everywhere.Items, func(e corev1.Event) bool { return e.Name == "one" && e.Namespace == ns }) {
			t.Errorf("%v: not among the events of all namespaces", err)
		}
		if _, err := core.Patch(t.Context(), "one", types.StrategicMergePatchType, []byte(`{"message":"patched"}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := core.Get(t.Context(), "one", metav1.GetOptions{})
		if err != nil || got.Message != "patched" {
			t.Fatalf("%v: %+v", err, got)
		}
		got.Series = &corev1.EventSeries{Count: 100, LastObservedTime: now}
		if _, err := core.Update(t.Context(), got, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, err = core.Get(t.Context(), "one", metav1.GetOptions{}); err != nil || got.Series == nil || got.Series.Count != 100 || !got.Series.LastObservedTime.Equal(&now) {
			t.Errorf("%v: %+v", err, got.Series)
		}
		byField, err := core.List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=p,reason=Test"})
		if err != nil || len(byField.Items) != 1 {
			t.Errorf("by field: %v, %d events", err, len(byField.Items))
		}
		if err := core.Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		left, err := core.List(t.Context(), metav1.ListOptions{LabelSelector: label})
		if err != nil || len(left.Items) > 0 {
			t.Errorf("%v: %v are left", err, left.Items)
		}
	})
	t.Run("collection of core", func(t *testing.T) {
		conformance.Shows(t, "[sig-instrumentation] Events should delete a collection of events [Conformance]")
		for _, name := range []string{"a", "b", "c"} {
			if _, err := core.Create(t.Context(), old(name), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		other := old("other")
		other.Labels = nil
		if _, err := core.Create(t.Context(), other, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if all, err := core.List(t.Context(), metav1.ListOptions{LabelSelector: label}); err != nil || len(all.Items) != 3 {
			t.Fatalf("%v: %d events", err, len(all.Items))
		}
		if err := core.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: label}); err != nil {
			t.Fatal(err)
		}
		all, err := core.List(t.Context(), metav1.ListOptions{})
		if err != nil || len(all.Items) != 1 || all.Items[0].Name != "other" {
			t.Errorf("%v: %v are left", err, all.Items)
		}
		if err := core.Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("one of events", func(t *testing.T) {
		conformance.Shows(t, "[sig-instrumentation] Events API should ensure that an event can be fetched, patched, deleted, and listed [Conformance]")
		if _, err := events.Create(t.Context(), young("one"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, where := range []string{"", ns} {
			all, err := c.Client.EventsV1().Events(where).List(t.Context(), metav1.ListOptions{
				LabelSelector: label, FieldSelector: "reportingController=conclave.test/controller",
			})
			if err != nil || len(all.Items) != 1 || all.Items[0].Name != "one" || all.Items[0].Namespace != ns {
				t.Errorf("in %q: %v, %+v", where, err, all)
			}
		}
		if _, err := events.Patch(t.Context(), "one", types.StrategicMergePatchType, []byte(`{"series":{"count":2,"lastObservedTime":"2023-11-14T22:13:20.123456Z"}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		got, err := events.Get(t.Context(), "one", metav1.GetOptions{})
		if err != nil || got.Series == nil || got.Series.Count != 2 || !got.Series.LastObservedTime.Equal(&now) || !got.EventTime.Equal(&now) {
			t.Fatalf("%v: %+v", err, got)
		}
		got.Series.Count = 100
		if _, err := events.Update(t.Context(), got, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if got, err = events.Get(t.Context(), "one", metav1.GetOptions{}); err != nil || got.Series.Count != 100 {
			t.Errorf("%v: %+v", err, got)
		}
		// It is the same event in the other group.
		if same, err := core.Get(t.Context(), "one", metav1.GetOptions{}); err != nil || same.Message != "first" || same.InvolvedObject.Name != "p" || same.UID != got.UID {
			t.Errorf("as an event of core: %v, %+v", err, same)
		}
		if err := events.Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := events.Get(t.Context(), "one", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("a deleted event: %v", err)
		}
	})
	t.Run("collection of events", func(t *testing.T) {
		conformance.Shows(t, "[sig-instrumentation] Events API should delete a collection of events [Conformance]")
		for _, name := range []string{"a", "b", "c"} {
			if _, err := events.Create(t.Context(), young(name), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if all, err := events.List(t.Context(), metav1.ListOptions{LabelSelector: label}); err != nil || len(all.Items) != 3 {
			t.Fatalf("%v: %d events", err, len(all.Items))
		}
		if err := events.DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: label}); err != nil {
			t.Fatal(err)
		}
		if all, err := events.List(t.Context(), metav1.ListOptions{LabelSelector: label}); err != nil || len(all.Items) != 0 {
			t.Errorf("%v: %d events are left", err, len(all.Items))
		}
	})
}
