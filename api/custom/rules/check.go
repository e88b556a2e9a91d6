package rules

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	celtypes "github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	limits "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/common"
)

// Budget is what all rules together may cost for one object, in CEL's units:
// about a second.
const Budget = limits.RuntimeCELCostBudget

var (
	errNoTypes = errors.New("failed to convert to declType for CEL validation rules")
	errNoCost  = errors.New("runtime cost could not be calculated")
)

// Check says which rules a value breaks, from its root to its leaves. old is what
// was there before, nil if nothing was. Where lenient, what is as it was may break
// the rules that do not speak of oldSelf; that is told apart, in let. What is left
// of the budget is negative when it was not enough.
func (r *Rules) Check(p *field.Path, value, old any, lenient bool, budget int64) (errs, let field.ErrorList, left int64) {
	c := &check{budget: budget}
	var was kinship
	if lenient && r != nil {
		was.now = common.NewCorrelatedObject(value, old, r.shape)
	}
	c.value(r, p, value, old, was)
	return c.errs, c.let, c.budget
}

// check is one run through a value.
type check struct {
	errs, let field.ErrorList
	budget    int64
}

// spent says that no more rules are run.
func (c *check) spent() bool { return c.budget < 0 }

func (c *check) invalid(p *field.Path, r *Rules, format string, args ...any) {
	c.errs = append(c.errs, field.Invalid(p, r.shape.Type(), fmt.Sprintf(format, args...)))
}

// kinship is what a value was before, or the next above it of which that is
// known.
type kinship struct{ now, above *common.CorrelatedObject }

// same says that nothing changed here.
func (k kinship) same() bool {
	if k.now != nil {
		return k.now.CachedDeepEqual()
	}
	return k.above.CachedDeepEqual()
}

func (k kinship) key(name string) kinship {
	switch {
	case k.now == nil:
		return k
	case k.above == nil && (name == "apiVersion" || name == "kind"):
		return kinship{} // the old object is shown in the version of the new one: a change would not be seen
	}
	return kinship{k.now.Key(name), k.now}
}

func (k kinship) index(i int) kinship {
	if k.now == nil {
		return k
	}
	return kinship{k.now.Index(i), k.now}
}

func (c *check) value(r *Rules, p *field.Path, value, old any, was kinship) {
	// Rules of what may be null stand above it.
	if r == nil || value == nil {
		return
	}
	c.rules(r, p, value, old, was)
	switch x := value.(type) {
	case []any:
		before, _ := old.([]any)
		c.list(r, p, x, before, was)
	case map[string]any:
		before, _ := old.(map[string]any)
		c.object(r, p, x, before, was)
	}
}

func (c *check) list(r *Rules, p *field.Path, x, old []any, was kinship) {
	if r.items == nil {
		return
	}
	before := common.MakeMapList(r.shape, old) // empty, unless items have keys
	for i, v := range x {
		if c.spent() {
			return
		}
		c.value(r.items, p.Index(i), v, before.Get(v), was.index(i))
	}
}

func (c *check) object(r *Rules, p *field.Path, x, old map[string]any, was kinship) {
	if r.values == nil && r.properties == nil {
		return
	}
	names := make([]string, 0, len(x))
	for name := range x {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if c.spent() {
			return
		}
		if r.values != nil {
			c.value(r.values, p.Key(name), x[name], old[name], was.key(name))
		}
		if below := r.properties[name]; below != nil && !c.spent() {
			c.value(below, p.Child(name), x[name], old[name], was.key(name))
		}
	}
}

// variables are those of one run of a rule.
type variables struct {
	self, old ref.Val
	hasOld    bool
}

func (v *variables) ResolveName(name string) (any, bool) {
	switch name {
	case self:
		return v.self, true
	case oldSelf:
		return v.old, v.hasOld
	}
	return nil, false
}

func (v *variables) Parent() celgo.Activation { return nil }

// rules runs the rules of one place.
func (c *check) rules(r *Rules, p *field.Path, value, old any, was kinship) {
	switch {
	case c.spent():
		return
	case r.failure != nil:
		c.invalid(p, r, "rule compiler initialization error: %v", r.failure)
		return
	case len(r.rules) == 0:
		return
	case c.budget == 0:
		c.broke(p, r)
		return
	}
	plain := &variables{self: common.UnstructuredToVal(value, r.value)}
	option := &variables{self: plain.self, old: celtypes.OptionalNone, hasOld: true}
	if r.old && old != nil {
		plain.old, plain.hasOld = common.UnstructuredToVal(old, r.value), true
		option.old = celtypes.OptionalOf(plain.old)
	}
	for i := range r.rules {
		rule := &r.rules[i]
		switch {
		case rule.failure != "":
			c.invalid(p, r, "rule compile error: %s", rule.failure)
			continue
		case rule.check == nil, rule.transition && old == nil && !rule.optional():
			continue
		}
		with := plain
		if rule.optional() {
			with = option
		}
		holds := c.run(r, rule, p, with)
		if c.spent() {
			return
		}
		if !holds {
			c.broken(r, rule, p, value, with, !rule.transition && was.same())
			if c.spent() {
				return
			}
		}
	}
}

func (c *check) broke(p *field.Path, r *Rules) {
	c.invalid(p, r, "validation failed due to running out of cost budget, no further validation rules will be run")
	c.budget = -1
}

const tooMuch = "operation cancelled: actual cost limit exceeded"

// run says whether a rule holds. One that cannot be run is told at once.
func (c *check) run(r *Rules, rule *rule, p *field.Path, with *variables) (holds bool) {
	out, details, err := rule.check.Eval(with)
	cost := details.ActualCost()
	switch {
	case cost == nil:
		c.errs = append(c.errs, field.InternalError(p, fmt.Errorf("%w for validation rule: %v, no further validation rules will be run", errNoCost, rule.text())))
		c.budget = -1
		return true
	case *cost > math.MaxInt64 || int64(*cost) > c.budget:
		c.broke(p, r)
		return true
	}
	c.budget -= int64(*cost)
	switch {
	case err == nil:
		return out == celtypes.True
	case strings.HasPrefix(err.Error(), "no such overload"):
		// What is an integer or a string has no type before it is there.
		c.invalid(p, r, "'%v': call arguments did not match a supported operator, function or macro signature for rule: %v", err, rule.text())
	case strings.HasPrefix(err.Error(), tooMuch):
		c.invalid(p, r, "'%v': no further validation rules will be run due to call cost exceeds limit for rule: %v", err, rule.text())
		c.budget = -1
	default:
		c.invalid(p, r, "%v evaluating rule: %v", err, rule.text())
	}
	return true
}

// broken tells of a rule that does not hold.
func (c *check) broken(r *Rules, rule *rule, p *field.Path, value any, with *variables, unchanged bool) {
	if rule.at != "" {
		p = p.Child(rule.at)
	}
	list := &c.errs
	if unchanged {
		list = &c.let
	}
	detail, fatal := c.detail(rule, with)
	if fatal != nil {
		if errors.Is(fatal, errNoCost) {
			*list = append(*list, field.InternalError(p, fatal))
		} else {
			*list = append(*list, field.Invalid(p, r.shape.Type(), fatal.Error()))
		}
		c.budget = -1
		return
	}
	if t := r.shape.Type(); t == "object" || t == "array" {
		value = field.OmitValueType{}
	}
	*list = append(*list, failed(p, value, detail, rule.Reason))
}

func failed(p *field.Path, value any, detail string, reason *apiextensionsv1.FieldValueErrorReason) *field.Error {
	if reason != nil {
		switch *reason {
		case apiextensionsv1.FieldValueForbidden:
			return field.Forbidden(p, detail)
		case apiextensionsv1.FieldValueRequired:
			return field.Required(p, detail)
		case apiextensionsv1.FieldValueDuplicate:
			return field.Duplicate(p, value)
		}
	}
	return field.Invalid(p, value, detail)
}

// detail is what a broken rule says: what its expression says, or else its
// message, or else the rule. fatal is of an expression after which nothing more
// is run.
func (c *check) detail(rule *rule, with *variables) (text string, fatal error) {
	if rule.message == nil {
		return rule.saying(), nil
	}
	out, details, err := rule.message.Eval(with)
	cost := details.ActualCost()
	switch {
	case cost == nil:
		return "", fmt.Errorf("%w for messageExpression: %q", errNoCost, rule.MessageExpression)
	case *cost > math.MaxInt64 || int64(*cost) > c.budget:
		return "", errors.New("messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run")
	case err != nil && strings.HasPrefix(err.Error(), tooMuch):
		return "", fmt.Errorf("no further validation rules will be run due to call cost exceeds limit for messageExpression: %q", rule.MessageExpression)
	}
	c.budget -= int64(*cost)
	if err == nil {
		said, _ := out.Value().(string)
		said = strings.TrimSpace(said)
		if said != "" && len(said) <= limits.MaxEvaluatedMessageExpressionSizeBytes && !strings.Contains(said, "\n") {
			return said, nil
		}
	}
	return rule.saying(), nil
}
