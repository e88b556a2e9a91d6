package controller

import (
	"context"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
	"conclave/api/flow"
	"conclave/api/types"
)

// newFlowSchemaStatus says of each FlowSchema whether its level of priority exists.
func newFlowSchemaStatus(e *env) *Controller {
	c := flowSchemaController{e}
	return &Controller{
		Name: "flowschema-status",
		Inputs: []Input{
			{flowSchemas, self},
			{priorityLevels, func(change Change) (keys []Key) {
				for _, o := range list[*types.FlowSchema](e.cache, flowSchemas, "") {
					if o.Spec.PriorityLevelConfiguration.Name == change.either().GetName() {
						keys = append(keys, keyOf(o))
					}
				}
				return keys
			}},
		},
		Outputs:   []Output{{flowSchemas, "status"}},
		Reconcile: c.reconcile,
	}
}

type flowSchemaController struct{ *env }

func (c flowSchemaController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	o, ok := get[*types.FlowSchema](c.cache, flowSchemas, "", key.Name)
	if !ok || o.DeletionTimestamp != nil {
		return 0, nil
	}
	name := o.Spec.PriorityLevelConfiguration.Name
	want := types.FlowCondition{
		Type: types.FlowSchemaDangling, Status: string(metav1.ConditionTrue), Reason: "NotFound", LastTransitionTime: metav1.NewTime(c.Now()),
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", name),
	}
	if _, exists := get[*types.PriorityLevelConfiguration](c.cache, priorityLevels, "", name); exists {
		want.Status, want.Reason = string(metav1.ConditionFalse), "Found"
		want.Message = fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", name)
	}
	changed := edit(o)
	is := changed.Status.Condition(types.FlowSchemaDangling)
	switch {
	case is == nil:
		changed.Status.Conditions = append(changed.Status.Conditions, want)
	case is.Status == want.Status && is.Reason == want.Reason && is.Message == want.Message:
		return 0, nil
	default:
		if is.Status == want.Status {
			want.LastTransitionTime = is.LastTransitionTime
		}
		*is = want
	}
	_, err := c.update(ctx, flowSchemas, changed, "status")
	return 0, ignoreGone(err)
}

// newFlowSchemas and newPriorityLevels keep those that every cluster has, which the
// API server makes when its leader begins: what is deleted is made again, and what is
// changed is changed back, as far as it lets itself.
func newFlowSchemas(e *env) *Controller {
	return newKeeper(e, "flowschema-keeping", flowSchemas, flow.Schemas(), flow.ReconcileSchema)
}

func newPriorityLevels(e *env) *Controller {
	return newKeeper(e, "prioritylevel-keeping", priorityLevels, flow.Levels(), flow.ReconcileLevel)
}

func newKeeper[T interface {
	comparable
	api.Object
}](e *env, name string, r schema.GroupVersionResource, system []T, reconcile func(have, want T) T) *Controller {
	return &Controller{
		Name:    name,
		Inputs:  []Input{{r, self}},
		Outputs: []Output{{r, "those of the system"}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			have, exists := get[T](e.cache, r, "", key.Name)
			i := slices.IndexFunc(system, func(o T) bool { return o.GetName() == key.Name })
			var none T
			switch {
			case exists && have.GetDeletionTimestamp() != nil:
			case i < 0 && exists && flow.Outdated(have, system):
				return 0, e.delete(ctx, r, have, metav1.DeleteOptions{})
			case i < 0:
			case !exists:
				if _, err := e.create(ctx, r, edit(system[i])); !apierrors.IsAlreadyExists(err) {
					return 0, err
				}
			default:
				if next := reconcile(have, system[i]); next != none {
					_, err := e.update(ctx, r, next)
					return 0, ignoreGone(err)
				}
			}
			return 0, nil
		},
	}
}
