package kinds

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/cel"
	"conclave/api/policy"
	"conclave/api/types"
)

const (
	maxAuditAnnotations     = 20
	maxAuditValueExpression = 5 << 10 // bytes
)

func validateValidatingPolicy(p, old *types.ValidatingAdmissionPolicy) field.ErrorList {
	e, compiled := validatePolicy(policyOf(p), policyOf(old))
	spec := field.NewPath("spec")
	if len(p.Spec.Validations) == 0 && len(p.Spec.AuditAnnotations) == 0 {
		e.required(spec.Child("validations"), "validations or auditAnnotations must contain at least one item")
		e.required(spec.Child("auditAnnotations"), "validations or auditAnnotations must contain at least one item")
	}
	for i, v := range p.Spec.Validations {
		e.validation(spec.Child("validations").Index(i), v, compiled)
	}
	if len(p.Spec.AuditAnnotations) > maxAuditAnnotations {
		e.invalid(spec.Child("auditAnnotations"), p.Spec.AuditAnnotations, fmt.Sprintf("must not have more than %d auditAnnotations", maxAuditAnnotations))
	}
	keys := map[string]bool{}
	for i, a := range p.Spec.AuditAnnotations {
		at := spec.Child("auditAnnotations").Index(i)
		if p.Name == "" {
			e.invalid(at.Child("key"), a.Key, "requires metadata.name be non-empty")
		} else {
			e.qualifiedName(at.Child("key"), p.Name+"/"+a.Key)
		}
		switch text := strings.TrimSpace(a.ValueExpression); {
		case text == "":
			e.required(at.Child("valueExpression"), "valueExpression is not specified")
		case len(text) > maxAuditValueExpression:
			e.required(at.Child("valueExpression"), fmt.Sprintf("must not exceed %d bytes in length", maxAuditValueExpression))
		default:
			e.compiled(at.Child("valueExpression"), compiled.Audit(a.ValueExpression))
		}
		if keys[a.Key] {
			e.duplicate(at.Child("key"), a.Key)
		}
		keys[a.Key] = true
	}
	return e.list()
}

func (e *problems) validation(p *field.Path, v types.Validation, compiled *policy.Compiler) {
	if strings.TrimSpace(v.Expression) == "" {
		e.required(p.Child("expression"), "expression is not specified")
	} else {
		e.compiled(p.Child("expression"), compiled.Validation(v.Expression))
	}
	switch {
	case v.MessageExpression == "":
	case strings.TrimSpace(v.MessageExpression) == "":
		e.invalid(p.Child("messageExpression"), v.MessageExpression, "must be non-empty if specified")
	default:
		e.compiled(p.Child("messageExpression"), compiled.Message(v.MessageExpression))
	}
	switch message := strings.TrimSpace(v.Message); {
	case v.Message != "" && message == "":
		e.invalid(p.Child("message"), v.Message, "message must be non-empty if specified")
	case strings.ContainsAny(message, "\n\r"):
		e.invalid(p.Child("message"), v.Message, "message must not contain line breaks")
	}
	if all := []metav1.StatusReason{metav1.StatusReasonForbidden, metav1.StatusReasonInvalid, metav1.StatusReasonRequestEntityTooLarge}; v.Reason != nil && !slices.Contains(all, *v.Reason) {
		e.add(field.NotSupported(p.Child("reason"), *v.Reason, all))
	}
}

func validateMutatingPolicy(p, old *types.MutatingAdmissionPolicy) field.ErrorList {
	e, compiled := validatePolicy(policyOf(p), policyOf(old))
	spec := field.NewPath("spec")
	if m := p.Spec.MatchConstraints; m != nil {
		for i, r := range m.ResourceRules {
			for j, o := range r.Operations {
				if all := []string{"*", "CONNECT", "CREATE", "UPDATE"}; o == "DELETE" { // there is nothing to change
					e.add(field.NotSupported(spec.Child("matchConstraints", "resourceRules").Index(i).Child("operations").Index(j), o, all))
				}
			}
		}
	}
	if len(p.Spec.Mutations) == 0 {
		e.required(spec.Child("mutations"), "mutations must contain at least one item")
	}
	for i, m := range p.Spec.Mutations {
		e.mutation(spec.Child("mutations").Index(i), m, compiled)
	}
	if all := []string{types.IfNeeded, types.Never}; p.Spec.ReinvocationPolicy == "" {
		e.required(spec.Child("reinvocationPolicy"), "")
	} else if !slices.Contains(all, p.Spec.ReinvocationPolicy) {
		e.add(field.NotSupported(spec.Child("reinvocationPolicy"), p.Spec.ReinvocationPolicy, all))
	}
	return e.list()
}

func (e *problems) mutation(p *field.Path, m types.Mutation, compiled *policy.Compiler) {
	one := func(of, name string, x *types.Expression, compile func(string) *cel.Expression) {
		p := p.Child(name)
		switch {
		case m.PatchType != of && x != nil:
			e.forbidden(p, "must not be specified when patchType is "+m.PatchType)
		case m.PatchType != of:
		case x == nil:
			e.required(p, "must be specified when patchType is "+of)
		case strings.TrimSpace(x.Expression) == "":
			e.required(p.Child("expression"), "expression is not specified")
		default:
			e.compiled(p.Child("expression"), compile(x.Expression))
		}
	}
	switch all := []string{types.PatchApplyConfiguration, types.PatchJSON}; {
	case m.PatchType == "":
		e.required(p.Child("patchType"), "")
	case !slices.Contains(all, m.PatchType):
		e.add(field.NotSupported(p.Child("patchType"), m.PatchType, all))
	default:
		one(types.PatchApplyConfiguration, "applyConfiguration", m.ApplyConfiguration, compiled.Apply)
		one(types.PatchJSON, "jsonPatch", m.JSONPatch, compiled.Patch)
	}
}

// validatePolicy is of what policies of both kinds have alike. The compiler knows
// the variables.
func validatePolicy(p, old *policySpec) (problems, *policy.Compiler) {
	var was *metav1.ObjectMeta
	if old != nil {
		was = old.meta
	}
	e := metadata(p.meta, was, false, apivalidation.NameIsDNSSubdomain)
	spec := field.NewPath("spec")
	if f := *p.failure; f == nil {
		e.required(spec.Child("failurePolicy"), "")
	} else if all := []string{types.Fail, types.Ignore}; !slices.Contains(all, *f) {
		e.add(field.NotSupported(spec.Child("failurePolicy"), *f, all))
	}
	if p.paramKind != nil {
		e.paramKind(spec.Child("paramKind"), *p.paramKind)
	}
	if p.constraints == nil {
		e.required(spec.Child("matchConstraints"), "")
	} else {
		e.matchResources(spec.Child("matchConstraints"), p.constraints)
		if len(p.constraints.ResourceRules) == 0 {
			e.required(spec.Child("matchConstraints", "resourceRules"), "")
		}
	}
	same := old != nil && slices.Equal(p.conditions, old.conditions) && (p.paramKind == nil) == (old.paramKind == nil)
	if !same {
		e.matchConditions(spec.Child("matchConditions"), p.conditions, p.paramKind != nil)
	}
	compiled := policy.NewCompiler(len(p.variables) > 0, p.paramKind != nil)
	for i, v := range p.variables {
		e.variable(spec.Child("variables").Index(i), v, compiled)
	}
	return e, compiled
}

// celIdentifier and celReserved are made when the first policy is written.
var (
	celIdentifier = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile("^[_a-zA-Z][_a-zA-Z0-9]*$") })
	celReserved   = sync.OnceValue(func() []string {
		return strings.Fields("true false null in as break const continue else for function if import let loop package namespace return var void while")
	})
)

func (e *problems) variable(p *field.Path, v types.Variable, compiled *policy.Compiler) {
	switch {
	case strings.TrimSpace(v.Name) == "":
		e.required(p.Child("name"), "name is not specified")
	case !celIdentifier().MatchString(v.Name), slices.Contains(celReserved(), v.Name):
		e.invalid(p.Child("name"), v.Name, "name is not a valid CEL identifier")
	}
	if strings.TrimSpace(v.Expression) == "" {
		e.required(p.Child("expression"), "expression is not specified")
		return
	}
	e.compiled(p.Child("expression"), compiled.Variable(v.Name, v.Expression))
}

func (e *problems) paramKind(p *field.Path, k types.ParamKind) {
	if e.nonEmpty(p.Child("apiVersion"), k.APIVersion) {
		group, version, both := strings.Cut(k.APIVersion, "/")
		if !both {
			group, version = "", group
		}
		p := p.Child("apiVersion")
		switch {
		case strings.Contains(version, "/"):
			e.invalid(p, k.APIVersion, "unexpected GroupVersion string: "+k.APIVersion)
		case version == "":
			e.invalid(p, k.APIVersion, "version must be specified")
		default:
			if why := validation.IsDNS1123Subdomain(group); group != "" && len(why) > 0 {
				e.invalid(p, group, strings.Join(why, ","))
			}
			if why := validation.IsDNS1035Label(version); len(why) > 0 {
				e.invalid(p, version, strings.Join(why, ","))
			}
		}
	}
	if e.nonEmpty(p.Child("kind"), k.Kind) {
		if why := validation.IsDNS1035Label(strings.ToLower(k.Kind)); len(why) > 0 {
			e.invalid(p.Child("kind"), k.Kind, "may have mixed case, but should otherwise match: "+strings.Join(why, ","))
		}
	}
}

func (e *problems) matchResources(p *field.Path, m *types.MatchResources) {
	if m.MatchPolicy == nil {
		e.required(p.Child("matchPolicy"), "")
	} else if all := []string{types.Equivalent, types.Exact}; !slices.Contains(all, *m.MatchPolicy) {
		e.add(field.NotSupported(p.Child("matchPolicy"), *m.MatchPolicy, all))
	}
	selector := func(p *field.Path, s *metav1.LabelSelector) {
		if s == nil {
			e.required(p, "")
		}
		labelSelector(e, p, s)
	}
	selector(p.Child("namespaceSelector"), m.NamespaceSelector)
	selector(p.Child("objectSelector"), m.ObjectSelector)
	e.namedRules(p.Child("resourceRules"), m.ResourceRules)
	e.namedRules(p.Child("excludeResourceRules"), m.ExcludeResourceRules)
}

func (e *problems) namedRules(p *field.Path, rules []types.NamedRuleWithOperations) {
	for i, r := range rules {
		p, seen := p.Index(i), map[string]bool{}
		for j, name := range r.ResourceNames {
			e.each(p.Child("resourceNames").Index(j), name, path.ValidatePathSegmentName(name, false))
			if seen[name] {
				e.duplicate(p.Child("resourceNames").Index(j), name)
			}
			seen[name] = true
		}
		e.hookRule(p, r.RuleWithOperations)
	}
}

func validateBinding(o runtime.Object, old *metav1.ObjectMeta) field.ErrorList {
	b := bindingOf(o)
	e := metadata(b.meta, old, false, apivalidation.NameIsDNSSubdomain)
	spec := field.NewPath("spec")
	if e.nonEmpty(spec.Child("policyName"), b.policy) {
		e.each(spec.Child("policyName"), b.policy, apivalidation.NameIsDNSSubdomain(b.policy, false))
	}
	if b.param != nil {
		e.paramRef(spec.Child("paramRef"), b.param)
	}
	if b.match != nil {
		e.matchResources(spec.Child("matchResources"), b.match)
	}
	if v, ok := o.(*types.ValidatingAdmissionPolicyBinding); ok {
		e.validationActions(spec.Child("validationActions"), v.Spec.ValidationActions)
	}
	return e.list()
}

func (e *problems) paramRef(p *field.Path, r *types.ParamRef) {
	if r.Name != "" {
		e.each(p.Child("name"), r.Name, path.ValidatePathSegmentName(r.Name, false))
	}
	labelSelector(e, p.Child("selector"), r.Selector)
	switch {
	case r.Name != "" && r.Selector != nil:
		e.forbidden(p.Child("name"), "name and selector are mutually exclusive")
		e.forbidden(p.Child("selector"), "name and selector are mutually exclusive")
	case r.Name == "" && r.Selector == nil:
		e.required(p, "one of name or selector must be specified")
	}
	if a := r.ParameterNotFoundAction; a == nil || *a == "" {
		e.required(p.Child("parameterNotFoundAction"), "")
	} else if all := []string{types.Deny, types.Allow}; !slices.Contains(all, *a) {
		e.add(field.NotSupported(p.Child("parameterNotFoundAction"), *a, all))
	}
}

func (e *problems) validationActions(p *field.Path, actions []string) {
	seen := map[string]bool{}
	for i, a := range actions {
		if all := []string{types.Audit, types.Deny, types.Warn}; !slices.Contains(all, a) {
			e.add(field.NotSupported(p.Index(i), a, all))
		}
		if seen[a] {
			e.duplicate(p.Index(i), a)
		}
		seen[a] = true
	}
	if seen[types.Deny] && seen[types.Warn] {
		e.invalid(p, actions, "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)")
	}
	if len(actions) == 0 {
		e.required(p, "at least one validation action is required")
	}
}

// fieldReference is a path as the leader writes it.
var fieldReference = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[a-zA-Z]+(\[[0-9]+\])?(\.[a-zA-Z]+(\[[0-9]+\])?)*$`)
})

func validatePolicyStatus(p, old *types.ValidatingAdmissionPolicy) field.ErrorList {
	e := metadata(&p.ObjectMeta, &old.ObjectMeta, false, nil)
	status := field.NewPath("status")
	if t := p.Status.TypeChecking; t != nil {
		for i, w := range t.ExpressionWarnings {
			at := status.Child("typeChecking", "expressionWarnings").Index(i)
			e.nonEmpty(at.Child("warning"), w.Warning)
			if ref := strings.TrimSpace(w.FieldRef); e.nonEmpty(at.Child("fieldRef"), ref) && !fieldReference().MatchString(ref) {
				e.invalid(at.Child("fieldRef"), ref, "invalid JSONPath: must be a path of fields, as in spec.validations[0].expression")
			}
		}
	}
	e.add(metavalidation.ValidateConditions(p.Status.Conditions, status.Child("conditions"))...)
	return e.list()
}
