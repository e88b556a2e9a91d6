package controller

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/types"
)

// TestPolicyStatus says that a policy is looked at once for each version of it,
// and that nothing is written afterwards.
func TestPolicyStatus(t *testing.T) {
	inWorld(t, func(w *world) {
		at := func() *types.ValidatingAdmissionPolicy {
			w.Helper()
			w.settle(0)
			o, err := w.client.Get(w.ctx, validatingPolicies, "", "p", metav1.GetOptions{})
			if err != nil {
				w.Fatal(err)
			}
			return o.(*types.ValidatingAdmissionPolicy)
		}
		rule := types.RuleWithOperations{Operations: []string{"CREATE"}, Rule: types.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}}}
		w.make(&types.ValidatingAdmissionPolicy{
			ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec: types.ValidatingAdmissionPolicySpec{
				MatchConstraints: &types.MatchResources{ResourceRules: []types.NamedRuleWithOperations{{RuleWithOperations: rule}}},
				Validations:      []types.Validation{{Expression: "object.spec.replicants > 1"}},
			},
		})
		p := at()
		if s := p.Status; s.ObservedGeneration != 1 || s.TypeChecking == nil || len(s.TypeChecking.ExpressionWarnings) != 1 ||
			!strings.Contains(s.TypeChecking.ExpressionWarnings[0].Warning, "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replicants'") {
			w.Errorf("%+v", s)
		}
		changed := edit(p)
		changed.Spec.Validations[0].Expression = "object.spec.replicas > 1"
		if _, err := w.client.Update(w.ctx, validatingPolicies, "", changed, metav1.UpdateOptions{}); err != nil {
			w.Fatal(err)
		}
		p = at()
		if s := p.Status; s.ObservedGeneration != 2 || s.TypeChecking == nil || len(s.TypeChecking.ExpressionWarnings) != 0 {
			w.Errorf("%+v", s)
		}
		w.settle(askWell)
		if now := at().ResourceVersion; now != p.ResourceVersion {
			w.Errorf("version %s became %s", p.ResourceVersion, now)
		}
	})
}
