package policy

import (
	"context"
	"errors"
	"strings"

	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	limits "k8s.io/apiserver/pkg/apis/cel"

	"conclave/api/cel"
)

// Denial is one refusal of a policy.
type Denial struct {
	Message string
	Reason  metav1.StatusReason
}

// Validate is all that a policy has against a request. Of errors, its
// failurePolicy decides whether they are something. audit are those of audit
// annotations, which refuse whatever the binding's actions are.
func (p *Policy) Validate(ctx context.Context, in *cel.Input) (denials, audit []Denial) {
	failed := func(err error) []Denial {
		if p.Ignores {
			return nil
		}
		return []Denial{{Message: err.Error(), Reason: metav1.StatusReasonInvalid}}
	}
	is, err := p.conditions.Match(ctx, in)
	if err != nil {
		return failed(err), nil
	}
	if !is {
		return nil, nil
	}
	r := cel.Begin(ctx, p.compiler.cel, in, limits.RuntimeCELCostBudget)
	for _, v := range p.validations {
		value, err := r.Eval(v.expression)
		switch {
		case errors.Is(err, cel.ErrBudget), ctx.Err() != nil:
			return failed(err), nil
		case err != nil:
			denials = append(denials, failed(err)...)
		case value != celtypes.True:
			denials = append(denials, Denial{v.why(r), v.reason})
		}
	}
	r = cel.Begin(ctx, p.compiler.cel, in, limits.RuntimeCELCostBudget)
	for _, a := range p.audits {
		// There is no log that they could be written to; that they can be
		// evaluated is asked for.
		if _, err := r.Eval(a); errors.Is(err, cel.ErrBudget) || ctx.Err() != nil {
			return failed(err), nil
		} else if err != nil {
			audit = append(audit, failed(err)...)
		}
	}
	return denials, audit
}

// why is what to say of an expression that is false.
func (v *validation) why(r *cel.Run) string {
	if v.message != nil {
		if value, err := r.Eval(v.message); err == nil {
			if text := sayable(value); text != "" {
				return text
			}
		}
	}
	if v.text != "" {
		return v.text
	}
	return "failed expression: " + strings.TrimSpace(v.expression.Text)
}

// sayable is the value of a messageExpression, empty if it is none to show.
func sayable(v ref.Val) string {
	text, ok := v.Value().(string)
	text = strings.TrimSpace(text)
	if !ok || len(text) > limits.MaxEvaluatedMessageExpressionSizeBytes || strings.Contains(text, "\n") {
		return ""
	}
	return text
}
