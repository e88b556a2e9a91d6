package rules

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apimachinery/pkg/util/validation/field"
	limits "k8s.io/apiserver/pkg/apis/cel"
	apicel "k8s.io/apiserver/pkg/cel"
)

// The most that a rule, and all rules of a schema, may be estimated to cost for
// one object, in CEL's units.
const (
	ruleLimit   = 10_000_000
	schemaLimit = 100_000_000
)

// Judge says what is wrong with the rules of a schema as a definition is
// written. Whoever goes through the schema goes with it, from Root down, and has
// each place judged whose schema is right so far.
type Judge struct {
	errs   field.ErrorList
	total  uint64
	costly []costly // the four that cost most, if they matter
}

type costly struct {
	path *field.Path
	cost uint64
}

// Place is one place in a schema. A nil Place is one that rules are not looked
// at, and so is all below it.
type Place struct {
	judge  *Judge
	schema *structural.Structural
	// known says that here or above there is a rule: then types come from above,
	// by reach.
	known  bool
	above  *Place
	reach  func(*apicel.DeclType) *apicel.DeclType
	atRoot bool // of a resource

	made  bool
	world *world
	self  *apicel.DeclType
	err   error

	// times is how often a value may stand here, nil if nothing bounds it.
	times *uint64
	// apart is the place above whose items cannot be told to be the same as before.
	apart *field.Path
}

// Root is where a schema begins.
func (j *Judge) Root(s *structural.Structural) *Place {
	once := uint64(1)
	return &Place{judge: j, schema: s, known: len(s.XValidations) > 0, atRoot: true, times: &once}
}

func (p *Place) below(s *structural.Structural, reach func(*apicel.DeclType) *apicel.DeclType) *Place {
	out := &Place{
		judge: p.judge, schema: s, known: p.known || len(s.XValidations) > 0, above: p, reach: reach,
		atRoot: s.XEmbeddedResource, apart: p.apart,
	}
	if most := elements(p.schema); p.times != nil && most != nil {
		n := times(*p.times, *most)
		out.times = &n
	}
	return out
}

// elements is how many values may stand below a place for each that stands
// there, nil if any number.
func elements(s *structural.Structural) *uint64 {
	bound := func(most func(*structural.ValueValidation) *int64) *uint64 {
		if s.ValueValidation == nil || most(s.ValueValidation) == nil {
			return nil
		}
		n := uint64(max(0, *most(s.ValueValidation)))
		return &n
	}
	switch {
	case s.Type == "array":
		return bound(func(v *structural.ValueValidation) *int64 { return v.MaxItems })
	case s.Type == "object" && s.AdditionalProperties != nil:
		return bound(func(v *structural.ValueValidation) *int64 { return v.MaxProperties })
	}
	one := uint64(1)
	return &one
}

func times(a, b uint64) uint64 {
	if a != 0 && math.MaxUint64/a < b {
		return math.MaxUint64
	}
	return a * b
}

// Property is the place of a property.
func (p *Place) Property(name string) *Place {
	if p == nil {
		return nil
	}
	s, ok := p.schema.Properties[name]
	if !ok {
		return nil
	}
	return p.below(&s, func(t *apicel.DeclType) *apicel.DeclType {
		if escaped, ok := apicel.Escape(name); ok && t.Fields[escaped] != nil {
			return t.Fields[escaped].Type
		}
		return nil
	})
}

func element(t *apicel.DeclType) *apicel.DeclType { return t.ElemType }

// Items is the place of a list's items. at is the list's.
func (p *Place) Items(at *field.Path) *Place {
	if p == nil || p.schema.Items == nil {
		return nil
	}
	out := p.below(p.schema.Items, element)
	if keyed := p.schema.XListType != nil && *p.schema.XListType == "map"; !keyed && out.apart == nil {
		out.apart = at
	}
	return out
}

// Values is the place of a map's values.
func (p *Place) Values() *Place {
	if p == nil || p.schema.AdditionalProperties == nil || p.schema.AdditionalProperties.Structural == nil {
		return nil
	}
	return p.below(p.schema.AdditionalProperties.Structural, element)
}

// types are those of a place with a rule, or below one.
func (p *Place) types() (*world, *apicel.DeclType, error) {
	if p.made {
		return p.world, p.self, p.err
	}
	p.made = true
	if p.above != nil && p.above.known {
		w, t, err := p.above.types()
		if err != nil {
			p.err = err
			return nil, nil, err
		}
		if p.self = p.reach(t); p.self != nil {
			p.world = w
			return w, p.self, nil
		}
	}
	t := model.SchemaDeclType(p.schema, p.atRoot)
	if t == nil {
		p.err = errors.New("unable to convert structural schema to CEL declarations")
		return nil, nil, p.err
	}
	if p.world, p.err = newWorld(t); p.err == nil {
		p.self = p.world.types
	}
	return p.world, p.self, p.err
}

// Judge looks at the rules of a place.
func (p *Place) Judge(at *field.Path) {
	if p == nil || len(p.schema.XValidations) == 0 {
		return
	}
	at = at.Child("x-kubernetes-validations")
	w, t, err := p.types()
	if err != nil {
		p.judge.add(field.InternalError(at, fmt.Errorf("internal error: failed to construct type information for x-kubernetes-validations rules: %w", err)))
		return
	}
	c := &compiler{world: w, schema: p.schema, self: t}
	for i, x := range p.schema.XValidations {
		var cost costs
		r, err := c.compile(x, &cost)
		if err != nil {
			p.judge.add(field.InternalError(at, err))
			return
		}
		cost.check = times(cost.check, p.most(t))
		p.verdict(at.Index(i), x, &r, cost)
	}
}

// most is how often a rule may be asked for one object.
func (p *Place) most(t *apicel.DeclType) uint64 {
	if p.times != nil {
		return *p.times
	}
	return uint64(limits.MaxRequestSizeBytes / (t.MinSerializedSize + 1)) // with a comma after each
}

func (p *Place) verdict(at *field.Path, x apiextensionsv1.ValidationRule, r *rule, cost costs) {
	j := p.judge
	j.charge(at.Child("rule"), "estimated rule cost", cost.check)
	if r.failure != "" {
		j.add(field.Invalid(at.Child("rule"), shown(x), r.failure))
	}
	if r.messageFailure != "" {
		j.add(field.Invalid(at.Child("messageExpression"), shown(x), r.messageFailure))
	} else if r.message != nil {
		j.charge(at.Child("messageExpression"), "estimated messageExpression cost", cost.message)
	}
	switch {
	case r.transition && p.apart != nil:
		j.add(field.Invalid(at.Child("rule"), x.Rule, fmt.Sprintf("oldSelf cannot be used on the uncorrelatable portion of the schema within %v", p.apart)))
	case !r.transition && x.OptionalOldSelf != nil:
		j.add(field.Invalid(at.Child("optionalOldSelf"), *x.OptionalOldSelf, "may not be set if oldSelf is not used in rule"))
	}
}

// shown is a rule as Kubernetes' errors show it: its internal type has no JSON
// names of its own.
func shown(x apiextensionsv1.ValidationRule) (out apiextensions.ValidationRule) {
	// The conversion has no case in which it fails.
	_ = apiextensionsv1.Convert_v1_ValidationRule_To_apiextensions_ValidationRule(&x, &out, nil)
	return out
}

func (j *Judge) add(e *field.Error) { j.errs = append(j.errs, e) }

func (j *Judge) charge(at *field.Path, what string, cost uint64) {
	if cost > ruleLimit {
		j.add(field.Forbidden(at, exceeds(what, cost, ruleLimit)))
	}
	if j.total > math.MaxUint64-cost {
		j.total = math.MaxUint64
	} else {
		j.total += cost
	}
	if cost < schemaLimit/100 {
		return
	}
	j.costly = append(j.costly, costly{at, cost})
	slices.SortStableFunc(j.costly, func(a, b costly) int {
		switch {
		case a.cost > b.cost:
			return -1
		case a.cost < b.cost:
			return 1
		}
		return 0
	})
	j.costly = j.costly[:min(4, len(j.costly))]
}

// exceeds says by how much, roughly: an estimate a hundred times too high is of
// loops in loops over what has no limit.
func exceeds(what string, cost, limit uint64) string {
	factor := float64(cost) / float64(limit)
	var by string
	switch {
	case factor > 100:
		by = "more than 100x"
	case factor < 1.5:
		by = fmt.Sprintf("%fx", factor)
	default:
		by = fmt.Sprintf("%.1fx", factor)
	}
	return fmt.Sprintf("%s exceeds budget by factor of %s (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)", what, by)
}

// Errors is what there is to say of all places that were judged. at is the
// schema's.
func (j *Judge) Errors(at *field.Path) field.ErrorList {
	errs := j.errs
	if j.total > schemaLimit {
		for _, c := range j.costly {
			errs = append(errs, field.Forbidden(c.path, "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"))
		}
		errs = append(errs, field.Forbidden(at, exceeds("x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema", j.total, schemaLimit)))
	}
	return errs
}
