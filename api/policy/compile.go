package policy

import (
	"fmt"
	"strings"

	celgo "github.com/google/cel-go/cel"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/cel/mutation"

	"conclave/api/cel"
	"conclave/api/types"
	"conclave/api/webhook"
)

// Compiler compiles the expressions of one policy.
type Compiler struct {
	cel    *cel.Compiler
	params bool
}

// NewCompiler is of a policy with variables, with parameters, or without.
func NewCompiler(variables, params bool) *Compiler {
	return &Compiler{cel.NewCompiler(variables), params}
}

func (c *Compiler) words() cel.Words { return cel.Words{Params: c.params, Authorizer: true} }

// Variable compiles a variable, which what comes after it may use.
func (c *Compiler) Variable(name, text string) *cel.Expression {
	return c.cel.Variable(name, text, c.words())
}

// Validation compiles what has to be true.
func (c *Compiler) Validation(text string) *cel.Expression {
	return c.cel.Compile(text, c.words(), celgo.BoolType)
}

// Message compiles a messageExpression, which knows no authorizer.
func (c *Compiler) Message(text string) *cel.Expression {
	return c.cel.Compile(text, cel.Words{Params: c.params}, celgo.StringType)
}

// Audit compiles the valueExpression of an audit annotation.
func (c *Compiler) Audit(text string) *cel.Expression {
	return c.cel.Compile(strings.TrimSpace(text), c.words(), celgo.StringType, celgo.NullType)
}

func (c *Compiler) patching() cel.Words {
	return cel.Words{Params: c.params, Authorizer: true, Patches: true}
}

// Apply compiles the expression of a mutation by an apply configuration.
func (c *Compiler) Apply(text string) *cel.Expression {
	return c.cel.Compile(text, c.patching(), celgo.ObjectType(mutation.ObjectTypeName))
}

// Patch compiles that of a mutation by a JSON patch.
func (c *Compiler) Patch(text string) *cel.Expression {
	return c.cel.Compile(text, c.patching(), celgo.ListType(celgo.ObjectType(mutation.JSONPatchTypeName)))
}

// Policy is an admission policy, ready for use.
type Policy struct {
	*webhook.Match
	Name      string
	ParamKind *types.ParamKind // nil: it takes none
	Ignores   bool             // failurePolicy: errors are no refusal
	Again     bool             // reinvocationPolicy IfNeeded

	compiler    *Compiler
	conditions  cel.Conditions
	validations []validation
	audits      []*cel.Expression
	mutations   []mutate
}

type validation struct {
	expression, message *cel.Expression // message may be nil
	text                string
	reason              metav1.StatusReason
}

// NewValidating makes a policy ready. The error is of what validation refuses.
func NewValidating(p *types.ValidatingAdmissionPolicy) (*Policy, error) {
	s := &p.Spec
	policy, err := newPolicy(p.Name, s.MatchConstraints, s.ParamKind, s.FailurePolicy, s.Variables, s.MatchConditions)
	if err != nil {
		return nil, err
	}
	c := policy.compiler
	for _, v := range s.Validations {
		one := validation{expression: c.Validation(v.Expression), text: strings.TrimSpace(v.Message), reason: metav1.StatusReasonInvalid}
		if strings.TrimSpace(v.MessageExpression) != "" {
			one.message = c.Message(v.MessageExpression)
		}
		if v.Reason != nil {
			one.reason = *v.Reason
		}
		policy.validations = append(policy.validations, one)
	}
	for _, a := range s.AuditAnnotations {
		policy.audits = append(policy.audits, c.Audit(a.ValueExpression))
	}
	return policy, nil
}

// NewMutating makes a policy ready. The error is of what validation refuses.
func NewMutating(p *types.MutatingAdmissionPolicy) (*Policy, error) {
	s := &p.Spec
	policy, err := newPolicy(p.Name, s.MatchConstraints, s.ParamKind, s.FailurePolicy, s.Variables, s.MatchConditions)
	if err != nil {
		return nil, err
	}
	policy.Again = s.ReinvocationPolicy == types.IfNeeded
	for _, m := range s.Mutations {
		switch {
		case m.PatchType == types.PatchJSON && m.JSONPatch != nil:
			policy.mutations = append(policy.mutations, mutate{policy.compiler.Patch(m.JSONPatch.Expression), true})
		case m.PatchType == types.PatchApplyConfiguration && m.ApplyConfiguration != nil:
			policy.mutations = append(policy.mutations, mutate{policy.compiler.Apply(m.ApplyConfiguration.Expression), false})
		default:
			return nil, fmt.Errorf("%s: a mutation of type %q without its expression", p.Name, m.PatchType)
		}
	}
	return policy, nil
}

func newPolicy(name string, constraints *types.MatchResources, params *types.ParamKind, failure *string, variables []types.Variable, conditions []types.MatchCondition) (*Policy, error) {
	if constraints == nil || len(constraints.ResourceRules) == 0 {
		return nil, fmt.Errorf("%s: policy contained no match constraints, a required field", name)
	}
	match, err := webhook.NewMatch(constraints)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p := &Policy{
		Match: match, Name: name, ParamKind: params, Ignores: failure != nil && *failure == types.Ignore,
		compiler: NewCompiler(len(variables) > 0, params != nil), conditions: cel.NewConditions(conditions, params != nil),
	}
	for _, v := range variables {
		p.compiler.Variable(v.Name, v.Expression)
	}
	return p, nil
}

// Binding is a use of a policy.
type Binding struct {
	*webhook.Match // nil: wherever the policy applies
	Name           string
	Param          *types.ParamRef
	Actions        []string // what follows from a refusal; none of mutating policies
}

// NewBinding makes a binding ready. The error is of what validation refuses.
func NewBinding(name string, match *types.MatchResources, param *types.ParamRef, actions []string) (*Binding, error) {
	b := &Binding{Name: name, Param: param, Actions: actions}
	if match == nil {
		return b, nil
	}
	var err error
	if b.Match, err = webhook.NewMatch(match); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}
