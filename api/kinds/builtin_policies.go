package kinds

import (
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/types"
)

// policySpec is what policies of both kinds have alike.
type policySpec struct {
	meta        *metav1.ObjectMeta
	paramKind   *types.ParamKind
	constraints *types.MatchResources
	conditions  []types.MatchCondition
	variables   []types.Variable
	failure     **string
	spec        any // what generations count
	rules       int // that it is made of
}

// policyOf is nil of no policy: of a new one, there is no older.
func policyOf(o runtime.Object) *policySpec {
	switch p := o.(type) {
	case *types.ValidatingAdmissionPolicy:
		if p == nil {
			return nil
		}
		s := &p.Spec
		return &policySpec{&p.ObjectMeta, s.ParamKind, s.MatchConstraints, s.MatchConditions, s.Variables, &s.FailurePolicy, s, len(s.Validations)}
	case *types.MutatingAdmissionPolicy:
		if p == nil {
			return nil
		}
		s := &p.Spec
		return &policySpec{&p.ObjectMeta, s.ParamKind, s.MatchConstraints, s.MatchConditions, s.Variables, &s.FailurePolicy, s, len(s.Mutations)}
	}
	return nil // rows are only handed what their New makes
}

// bindingSpec is what bindings of both kinds have alike.
type bindingSpec struct {
	meta   *metav1.ObjectMeta
	policy string
	param  *types.ParamRef
	match  *types.MatchResources
	spec   any
}

func bindingOf(o runtime.Object) bindingSpec {
	switch b := o.(type) {
	case *types.ValidatingAdmissionPolicyBinding:
		return bindingSpec{&b.ObjectMeta, b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, &b.Spec}
	case *types.MutatingAdmissionPolicyBinding:
		return bindingSpec{&b.ObjectMeta, b.Spec.PolicyName, b.Spec.ParamRef, b.Spec.MatchResources, &b.Spec}
	}
	return bindingSpec{}
}

// admissionPolicyRows are admission policies and their bindings.
func admissionPolicyRows() []*Kind {
	policy := func(k Kind, counted, about string) *Kind {
		k.Categories = []string{"api-extensions"}
		k.PrepareForCreate = func(o runtime.Object) {
			if p, ok := o.(*types.ValidatingAdmissionPolicy); ok {
				p.Status = types.ValidatingAdmissionPolicyStatus{}
			}
			policyOf(o).meta.Generation = 1
		}
		k.PrepareForUpdate = func(o, old runtime.Object) {
			if p, ok := o.(*types.ValidatingAdmissionPolicy); ok {
				p.Status = old.(*types.ValidatingAdmissionPolicy).Status
			}
			countGeneration(policyOf(o).meta, policyOf(o).spec, policyOf(old).spec)
		}
		k.Warnings = func(o, _ runtime.Object) []string { return auditWarnings(o) }
		k.Columns = []metav1.TableColumnDefinition{
			nameColumn, number(counted, about), text("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"), ageColumn,
		}
		k.Cells = func(o runtime.Object, now time.Time) []any {
			p, params := policyOf(o), "<unset>"
			if p.paramKind != nil {
				params = p.paramKind.APIVersion + "/" + p.paramKind.Kind
			}
			return []any{p.meta.Name, int64(p.rules), params, age(p.meta.CreationTimestamp, now)}
		}
		return &k
	}
	binding := func(k Kind) *Kind {
		k.Categories = []string{"api-extensions"}
		k.Default = func(o runtime.Object) { defaultPolicyBinding(bindingOf(o)) }
		k.PrepareForCreate = func(o runtime.Object) { bindingOf(o).meta.Generation = 1 }
		k.PrepareForUpdate = func(o, old runtime.Object) {
			countGeneration(bindingOf(o).meta, bindingOf(o).spec, bindingOf(old).spec)
		}
		k.Validate = func(o runtime.Object) field.ErrorList { return validateBinding(o, nil) }
		k.ValidateUpdate = func(o, old runtime.Object) field.ErrorList { return validateBinding(o, bindingOf(old).meta) }
		k.Warnings = func(o, _ runtime.Object) []string { return auditWarnings(o) }
		k.Columns = []metav1.TableColumnDefinition{
			nameColumn, text("PolicyName", "PolicyName indicates the policy definition which the policy binding binded to"),
			text("ParamRef", "ParamRef indicates the param resource which sets the configration param"), ageColumn,
		}
		k.Cells = func(o runtime.Object, now time.Time) []any {
			b := bindingOf(o)
			return []any{b.meta.Name, b.policy, paramCell(b.param), age(b.meta.CreationTimestamp, now)}
		}
		return &k
	}
	return []*Kind{
		policy(Kind{
			GVK: types.Admission.WithKind("ValidatingAdmissionPolicy"), Plural: "validatingadmissionpolicies", Status: true,
			New: empty[types.ValidatingAdmissionPolicy], NewList: empty[types.ValidatingAdmissionPolicyList],
			Default:                func(o runtime.Object) { defaultPolicy(policyOf(o)) },
			PrepareForStatusUpdate: two(func(p, old *types.ValidatingAdmissionPolicy) { p.Spec = old.Spec }),
			Validate:               check(func(p *types.ValidatingAdmissionPolicy) field.ErrorList { return validateValidatingPolicy(p, nil) }),
			ValidateUpdate:         checkTwo(validateValidatingPolicy),
			ValidateStatusUpdate:   checkTwo(validatePolicyStatus),
		}, "Validations", "Validations indicates the number of validation rules defined in this configuration"),
		binding(Kind{
			GVK: types.Admission.WithKind("ValidatingAdmissionPolicyBinding"), Plural: "validatingadmissionpolicybindings",
			New: empty[types.ValidatingAdmissionPolicyBinding], NewList: empty[types.ValidatingAdmissionPolicyBindingList],
		}),
		policy(Kind{
			GVK: types.Admission.WithKind("MutatingAdmissionPolicy"), Plural: "mutatingadmissionpolicies",
			New: empty[types.MutatingAdmissionPolicy], NewList: empty[types.MutatingAdmissionPolicyList],
			Default: one(func(p *types.MutatingAdmissionPolicy) {
				defaultPolicy(policyOf(p))
				defaultTo(&p.Spec.ReinvocationPolicy, types.Never)
			}),
			Validate:       check(func(p *types.MutatingAdmissionPolicy) field.ErrorList { return validateMutatingPolicy(p, nil) }),
			ValidateUpdate: checkTwo(validateMutatingPolicy),
		}, "Mutations", "Mutation indicates the number of mutations rules defined in this configuration"),
		binding(Kind{
			GVK: types.Admission.WithKind("MutatingAdmissionPolicyBinding"), Plural: "mutatingadmissionpolicybindings",
			New: empty[types.MutatingAdmissionPolicyBinding], NewList: empty[types.MutatingAdmissionPolicyBindingList],
		}),
	}
}

// auditWarnings tells who counts on an audit log that there is none.
func auditWarnings(o runtime.Object) []string {
	const none = ": nothing is written: Conclave keeps no audit log"
	switch o := o.(type) {
	case *types.ValidatingAdmissionPolicy:
		if len(o.Spec.AuditAnnotations) > 0 {
			return []string{"spec.auditAnnotations" + none}
		}
	case *types.ValidatingAdmissionPolicyBinding:
		if i := slices.Index(o.Spec.ValidationActions, types.Audit); i >= 0 {
			return []string{fmt.Sprintf("spec.validationActions[%d]: %s%s", i, types.Audit, none)}
		}
	}
	return nil
}

// paramCell names the parameters of a binding.
func paramCell(r *types.ParamRef) string {
	switch {
	case r == nil:
		return "<unset>"
	case r.Name == "" && r.Selector != nil:
		return r.Selector.String()
	case r.Namespace != "":
		return r.Namespace + "/" + r.Name
	}
	return "*/" + r.Name
}

func defaultPolicy(p *policySpec) {
	defaultPtr(p.failure, types.Fail)
	defaultMatch(p.constraints)
}

func defaultPolicyBinding(b bindingSpec) {
	defaultMatch(b.match)
	if b.param != nil {
		defaultPtr(&b.param.ParameterNotFoundAction, types.Deny)
	}
}

func defaultMatch(m *types.MatchResources) {
	if m == nil {
		return
	}
	defaultPtr(&m.MatchPolicy, types.Equivalent)
	defaultPtr(&m.NamespaceSelector, metav1.LabelSelector{})
	defaultPtr(&m.ObjectSelector, metav1.LabelSelector{})
	for _, rules := range [][]types.NamedRuleWithOperations{m.ResourceRules, m.ExcludeResourceRules} {
		for i := range rules {
			defaultPtr(&rules[i].Scope, types.AllScopes)
		}
	}
}
