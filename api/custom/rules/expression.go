package rules

import (
	"fmt"
	"strings"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	celtypes "github.com/google/cel-go/common/types"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/library"

	"conclave/api/cel"
)

// The variables of a rule: the value that it stands at, and what was there.
const (
	self    = "self"
	oldSelf = "oldSelf"
)

// rootType is the name of the type of a schema's root; the types below are named
// after it. No expression can spell it, so none can depend on it.
const rootType = "@self"

// world is what the rules at and below one place of a schema are compiled with:
// the language, and the types of that place and all below it.
type world struct {
	types *apicel.DeclType // named
	env   *celgo.Env
}

// newWorld is that of a place whose values are of a type.
func newWorld(t *apicel.DeclType) (*world, error) {
	t = t.MaybeAssignTypeName(rootType)
	env, err := cel.Env([]*apicel.DeclType{t})
	if err != nil {
		return nil, err
	}
	return &world{t, env}, nil
}

// rule is a rule made ready. Of one that does not compile, failure says why.
type rule struct {
	apiextensionsv1.ValidationRule
	failure, messageFailure string
	check, message          celgo.Program
	transition              bool   // it speaks of oldSelf
	at                      string // fieldPath, as field.Path writes it
}

// optional says that oldSelf may be absent.
func (r *rule) optional() bool { return r.OptionalOldSelf != nil && *r.OptionalOldSelf }

// costs is the most that a rule and its message may cost once, in CEL's units.
type costs struct{ check, message uint64 }

// compiler makes the rules of one place ready. The environments with its
// variables are needed to check types alone; programs hold that of the world.
type compiler struct {
	world         *world
	schema        *structural.Structural
	self          *apicel.DeclType
	plain, option *celgo.Env
}

// env declares the variables; one of the two is usually enough.
func (c *compiler) env(optional bool) (*celgo.Env, error) {
	made, before := &c.plain, c.self.CelType()
	if optional {
		made, before = &c.option, celtypes.NewOptionalType(before)
	}
	if *made != nil {
		return *made, nil
	}
	env, err := c.world.env.Extend(celgo.Variable(self, c.self.CelType()), celgo.Variable(oldSelf, before))
	*made = env
	return env, err
}

// compile makes a rule ready. An error is one of the language itself, not of the
// rule. What a rule may cost is only estimated when somebody wants to know.
func (c *compiler) compile(r apiextensionsv1.ValidationRule, want *costs) (rule, error) {
	out := rule{ValidationRule: r}
	if strings.TrimSpace(r.Rule) == "" {
		return out, nil
	}
	env, err := c.env(out.optional())
	if err != nil {
		return out, err
	}
	ast, issues := env.Compile(r.Rule)
	switch {
	case issues != nil:
		out.failure = "compilation failed: " + issues.String()
		return out, nil
	case ast.OutputType() != celgo.BoolType:
		out.failure = "cel expression must evaluate to a bool"
		return out, nil
	}
	for _, ref := range ast.NativeRep().ReferenceMap() {
		out.transition = out.transition || ref.Name == oldSelf
	}
	if out.check, err = cel.Program(c.world.env, ast); err != nil {
		out.failure = "program instantiation failed: " + err.Error()
		return out, nil
	}
	if want != nil {
		if want.check, err = c.cost(env, ast); err != nil {
			out.failure = "cost estimation failed: " + err.Error()
			return out, nil
		}
	}
	if r.FieldPath != "" {
		if p, err := Path(r.FieldPath, c.schema); err == nil {
			out.at = p.String()
		}
	}
	if r.MessageExpression != "" {
		c.compileMessage(&out, env, want)
	}
	return out, nil
}

func (c *compiler) compileMessage(out *rule, env *celgo.Env, want *costs) {
	ast, issues := env.Compile(out.MessageExpression)
	switch {
	case issues != nil:
		out.messageFailure = "messageExpression compilation failed: " + issues.String()
		return
	case ast.OutputType() != celgo.StringType:
		out.messageFailure = "messageExpression must evaluate to a string"
		return
	}
	message, err := cel.Program(c.world.env, ast)
	if err != nil {
		out.messageFailure = "messageExpression instantiation failed: " + err.Error()
		return
	}
	if want != nil {
		if want.message, err = c.cost(env, ast); err != nil {
			out.messageFailure = "cost estimation failed for messageExpression: " + err.Error()
			return
		}
	}
	out.message = message
}

func (c *compiler) cost(env *celgo.Env, ast *celgo.Ast) (uint64, error) {
	e, err := env.EstimateCost(ast, &library.CostEstimator{SizeEstimator: sizes{c.self}})
	return e.Max, err
}

// sizes tells the estimator how long lists, maps and strings may get, by what
// the schema says of them.
type sizes struct{ self *apicel.DeclType }

// EstimateSize follows a path that begins with a variable.
func (s sizes) EstimateSize(element checker.AstNode) *checker.SizeEstimate {
	path := element.Path()
	if len(path) == 0 {
		return nil
	}
	at := s.self
	for _, name := range path[1:] {
		switch name {
		case "@items", "@values":
			at = at.ElemType
		case "@keys":
			at = at.KeyType
		default:
			f, ok := at.Fields[name]
			if !ok {
				return nil
			}
			at = f.Type
		}
		if at == nil {
			return nil
		}
	}
	return &checker.SizeEstimate{Max: uint64(at.MaxElements)}
}

// EstimateCallCost leaves calls to the library.
func (sizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// text is how errors name a rule.
func (r *rule) text() string {
	if r.Message != "" {
		return strings.TrimSpace(r.Message)
	}
	return strings.TrimSpace(r.Rule)
}

// saying is what a broken rule says where it has no expression for that.
func (r *rule) saying() string {
	if r.Message != "" {
		return strings.TrimSpace(r.Message)
	}
	return fmt.Sprintf("failed rule: %s", r.text())
}
