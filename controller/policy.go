package controller

import (
	"context"
	"time"

	"conclave/api/types"
)

// newPolicyStatus says of each validating admission policy what of it does not fit
// to the kinds that it is about. A version of a policy is looked at once, as in
// Kubernetes: what is defined later, changes nothing.
func newPolicyStatus(e *env) *Controller {
	c := policyController{e}
	return &Controller{
		Name:      "validatingadmissionpolicy-status",
		Inputs:    []Input{{validatingPolicies, self}},
		Outputs:   []Output{{validatingPolicies, "status"}},
		Reconcile: c.reconcile,
	}
}

type policyController struct{ *env }

func (c policyController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	p, ok := get[*types.ValidatingAdmissionPolicy](c.cache, validatingPolicies, "", key.Name)
	if !ok || c.CheckPolicy == nil || p.DeletionTimestamp != nil || p.Status.ObservedGeneration >= p.Generation {
		return 0, nil
	}
	warnings, err := c.CheckPolicy(p)
	if err != nil {
		return 0, err
	}
	changed := edit(p)
	changed.Status.ObservedGeneration = p.Generation
	changed.Status.TypeChecking = &types.TypeChecking{ExpressionWarnings: warnings}
	_, err = c.update(ctx, validatingPolicies, changed, "status")
	return 0, ignoreGone(err)
}
