package cel

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/interpreter"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	limits "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/lazy"

	"conclave/api/types"
)

// Input is what expressions are told of a request for admission.
type Input struct {
	Object, OldObject runtime.Object // nil: there is none
	Params            runtime.Object // nil: null
	Namespace         *corev1.Namespace
	// Request is the AdmissionRequest without its objects, as in JSON; nothing is
	// said of what is empty. Objects in it are made by ValueOf.
	Request map[string]any
	// Authorizer answers for whoever makes the request, and RequestAuthorizer of
	// the resource that it is about (package library of k8s.io/apiserver makes
	// them).
	Authorizer, RequestAuthorizer ref.Val
}

// ErrBudget is of expressions that together cost more than they may. What comes
// after them is not evaluated.
var ErrBudget = errors.New("validation failed due to running out of cost budget, no further validation rules will be run")

// Run evaluates expressions of one compiler for one request. Variables are
// evaluated at most once in it. It is of one goroutine.
type Run struct {
	ctx    context.Context
	values map[string]any
	budget int64 // that is left, in CEL's units of cost
	spent  int64 // by variables, in the expression that is being evaluated
}

// Begin prepares a run that may cost as much as budget. No compiler: there are no
// variables.
func Begin(ctx context.Context, c *Compiler, in *Input, budget int64) *Run {
	r := &Run{ctx: ctx, budget: budget, values: map[string]any{
		objectName: ValueOf(in.Object), oldObjectName: ValueOf(in.OldObject), paramsName: ValueOf(in.Params),
		requestName: celtypes.DefaultTypeAdapter.NativeToValue(in.Request), namespaceName: celtypes.NullValue,
	}}
	if in.Namespace != nil {
		r.values[namespaceName] = common.SchemalessTypedToVal(shownOf(in.Namespace))
	}
	if in.Authorizer != nil {
		r.values[authorizerName], r.values[requestAuthorizerName] = in.Authorizer, in.RequestAuthorizer
	}
	if c != nil && c.variables != nil {
		all := lazy.NewMapValue(c.variables)
		for _, v := range c.compiled {
			all.Append(v.name, func(*lazy.MapValue) ref.Val { return r.variable(v) })
		}
		r.values[variablesName] = all
	}
	return r
}

// unstructuredObject is one that has no Go type.
type unstructuredObject interface{ UnstructuredContent() map[string]any }

// ValueOf is an object as it would be in JSON.
func ValueOf(o runtime.Object) ref.Val {
	switch o := o.(type) {
	case nil:
		return celtypes.NullValue
	case unstructuredObject:
		return celtypes.DefaultTypeAdapter.NativeToValue(o.UnstructuredContent())
	}
	return common.SchemalessTypedToVal(o)
}

// shownOf is what expressions see of a namespace.
func shownOf(ns *corev1.Namespace) *corev1.Namespace {
	shown := &corev1.Namespace{Spec: ns.Spec, Status: ns.Status, ObjectMeta: ns.ObjectMeta}
	shown.ManagedFields, shown.OwnerReferences, shown.SelfLink = nil, nil, ""
	return shown
}

// ResolveName and Parent are cel-go's interpreter.Activation.
func (r *Run) ResolveName(name string) (any, bool) {
	v, ok := r.values[name]
	return v, ok
}

func (r *Run) Parent() interpreter.Activation { return nil }

// Eval is the value of an expression. ErrBudget ends the run.
func (r *Run) Eval(e *Expression) (ref.Val, error) {
	if e.err != nil {
		return nil, fmt.Errorf("compilation error: %w", e.err)
	}
	r.spent = 0
	v, details, err := e.program.ContextEval(r.ctx, r)
	if r.ctx.Err() != nil {
		return nil, r.ctx.Err()
	}
	cost, ok := costOf(details)
	if !ok {
		return nil, fmt.Errorf("runtime cost could not be calculated for expression: %s, no further expression will be run: %w", e.Text, err)
	}
	if cost > r.budget-min(r.spent, r.budget) {
		r.budget = 0
		return nil, ErrBudget
	}
	if r.budget -= cost + r.spent; err != nil {
		return nil, fmt.Errorf("expression '%s' resulted in error: %w", e.Text, err)
	}
	return v, nil
}

func costOf(d *cel.EvalDetails) (cost int64, ok bool) {
	if d == nil || d.ActualCost() == nil {
		return 0, false
	}
	return int64(min(*d.ActualCost(), math.MaxInt64/4)), true
}

func (r *Run) variable(v variable) ref.Val {
	if v.err != nil {
		return celtypes.NewErr("composited variable %q fails to compile: %v", v.name, v.err)
	}
	value, details, err := v.program.ContextEval(r.ctx, r)
	cost, ok := costOf(details)
	if !ok {
		return celtypes.NewErr("unable to calculate cost of variable %q", v.name)
	}
	if r.spent += cost; err != nil {
		return celtypes.NewErr("composited variable %q fails to evaluate: %v", v.name, err)
	}
	return value
}

// Left is what may still be spent.
func (r *Run) Left() int64 { return r.budget }

// Conditions are matchConditions: all of them have to be true for a webhook or a
// policy to be asked.
type Conditions []*Expression

// NewConditions compiles conditions. What of them are none, shows when they are
// evaluated: it is for validation to refuse them before.
func NewConditions(list []types.MatchCondition, params bool) Conditions {
	var all Conditions
	for _, m := range list {
		all = append(all, Condition(m.Expression, params))
	}
	return all
}

// Condition compiles one.
func Condition(text string, params bool) *Expression {
	return NewCompiler(false).Compile(text, Words{Params: params, Authorizer: true}, cel.BoolType)
}

// Match says whether all are true. One that is false decides, whatever is wrong
// with others.
func (all Conditions) Match(ctx context.Context, in *Input) (bool, error) {
	if len(all) == 0 {
		return true, nil
	}
	told := *in
	told.Namespace = nil
	r := Begin(ctx, nil, &told, limits.RuntimeCELCostBudgetMatchConditions)
	var errs []error
	for _, e := range all {
		v, err := r.Eval(e)
		switch {
		case errors.Is(err, ErrBudget), ctx.Err() != nil:
			return false, err
		case err != nil:
			errs = append(errs, err)
		case v != celtypes.True:
			return false, nil
		}
	}
	return len(errs) == 0, utilerrors.NewAggregate(errs)
}
