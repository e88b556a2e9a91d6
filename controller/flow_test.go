package controller

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/api/flow"
	"conclave/api/types"
)

// A FlowSchema says whether its level exists, and what every cluster has stays.
func TestFlowSchemas(t *testing.T) {
	inWorld(t, func(w *world) {
		schemaOf := func(name string) *types.FlowSchema {
			w.Helper()
			o, err := w.client.Get(w.ctx, flowSchemas, "", name, metav1.GetOptions{})
			if err != nil {
				w.Fatal(err)
			}
			return edit(o.(*types.FlowSchema))
		}
		says := func(name, status, reason, message string) {
			w.Helper()
			w.settle(time.Second)
			c := schemaOf(name).Status.Condition(types.FlowSchemaDangling)
			if c == nil || c.Status != status || c.Reason != reason || c.Message != message || c.LastTransitionTime.IsZero() {
				t.Errorf("%s says %+v", name, c)
			}
		}
		says("probes", "False", "Found", `This FlowSchema references the PriorityLevelConfiguration object named "exempt" and it exists`)
		own := &types.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "own"}}
		own.Spec.PriorityLevelConfiguration.Name = "own"
		create(w, flowSchemas, own)
		says("own", "True", "NotFound", `This FlowSchema references the PriorityLevelConfiguration object named "own" but there is no such object`)
		level := &types.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "own"}}
		level.Spec = types.PriorityLevelSpec{Type: types.Limited, Limited: &types.LimitedLevel{LimitResponse: types.LimitResponse{Type: types.Reject}}}
		create(w, priorityLevels, level)
		says("own", "False", "Found", `This FlowSchema references the PriorityLevelConfiguration object named "own" and it exists`)
		at := schemaOf("own").ResourceVersion
		w.settle(time.Minute)
		if now := schemaOf("own").ResourceVersion; now != at {
			t.Errorf("written at %s and again at %s", at, now)
		}
		if err := w.client.Delete(w.ctx, priorityLevels, "", "own", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		says("own", "True", "NotFound", `This FlowSchema references the PriorityLevelConfiguration object named "own" but there is no such object`)

		// Deleted, it is made again; changed, it is changed back, unless it says no.
		for _, name := range []string{"exempt", "workload-low"} {
			if err := w.client.Delete(w.ctx, priorityLevels, "", name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		probes, accounts := schemaOf("probes"), schemaOf("service-accounts")
		probes.Spec.MatchingPrecedence, accounts.Spec.MatchingPrecedence, accounts.Annotations[flow.AutoUpdate] = 77, 78, "false"
		for _, o := range []*types.FlowSchema{probes, accounts} {
			if _, err := w.client.Update(w.ctx, flowSchemas, "", o, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		w.settle(time.Second)
		for _, name := range []string{"exempt", "workload-low"} {
			if _, err := w.client.Get(w.ctx, priorityLevels, "", name, metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
		}
		if a, b := schemaOf("probes").Spec.MatchingPrecedence, schemaOf("service-accounts").Spec.MatchingPrecedence; a != 2 || b != 78 {
			t.Errorf("%d %d", a, b)
		}
		o, err := w.client.Get(w.ctx, priorityLevels, "", "exempt", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		free := edit(o.(*types.PriorityLevelConfiguration))
		free.Spec.Exempt.NominalConcurrencyShares = ptr.To[int32](9)
		if _, err := w.client.Update(w.ctx, priorityLevels, "", free, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle(time.Second)
		if o, err = w.client.Get(w.ctx, priorityLevels, "", "exempt", metav1.GetOptions{}); err != nil || *o.(*types.PriorityLevelConfiguration).Spec.Exempt.NominalConcurrencyShares != 9 {
			t.Errorf("%+v %v", o, err)
		}
	})
}
