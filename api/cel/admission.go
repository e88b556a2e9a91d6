package cel

import (
	"fmt"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types/traits"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/mutation"
)

// The names of what expressions about a request for admission may use.
const (
	objectName            = "object"
	oldObjectName         = "oldObject"
	paramsName            = "params"
	requestName           = "request"
	namespaceName         = "namespaceObject"
	authorizerName        = "authorizer"
	requestAuthorizerName = "authorizer.requestResource"
	variablesName         = "variables"
	variablesType         = "kubernetes.variables"
)

// Words says which of them are there beside those that always are.
type Words struct {
	Params     bool
	Authorizer bool
	Patches    bool // Object{} and JSONPatch{}
}

// Expression is one that was compiled.
type Expression struct {
	Text    string
	program cel.Program
	err     error // why it is none
}

// Err says why it cannot be evaluated.
func (e *Expression) Err() error { return e.err }

// Compiler compiles the expressions of one policy, whose variables later ones
// may use. It is of one goroutine.
type Compiler struct {
	envs  map[Words]*cel.Env
	types Types
	// variables is the type of the variables, nil where there are none. It grows
	// with each; the environments see it.
	variables *apicel.DeclType
	compiled  []variable
	check     bool
}

type variable struct {
	name string
	*Expression
}

// Types are the types of the objects, where they are known: nil is anything.
type Types struct{ Object, Params *apicel.DeclType }

// NewCompiler is of expressions with variables or without.
func NewCompiler(variables bool) *Compiler {
	c := &Compiler{envs: map[Words]*cel.Env{}}
	if variables {
		c.variables = apicel.NewObjectType(variablesType, map[string]*apicel.DeclField{})
	}
	return c
}

// NewChecker compiles for the sake of errors alone: what expressions say is
// compared with types.
func NewChecker(t Types) *Compiler {
	c := NewCompiler(true)
	c.types, c.check = t, true
	return c
}

// plain are the environments without variables of their own and without types,
// which all share. There are at most eight.
var plain sync.Map // Words to func() (*cel.Env, error)

func (c *Compiler) env(w Words) (*cel.Env, error) {
	if c.variables == nil && !c.check {
		made, _ := plain.LoadOrStore(w, sync.OnceValues(func() (*cel.Env, error) { return newEnv(w, Types{}, nil) }))
		return made.(func() (*cel.Env, error))()
	}
	if env := c.envs[w]; env != nil {
		return env, nil
	}
	env, err := newEnv(w, c.types, c.variables)
	if err == nil {
		c.envs[w] = env
	}
	return env, err
}

func newEnv(w Words, t Types, variables *apicel.DeclType) (*cel.Env, error) {
	request, namespace := requestType(), namespaceType()
	declared := []*apicel.DeclType{request, namespace}
	of := func(t *apicel.DeclType) *cel.Type {
		if t == nil {
			return cel.DynType
		}
		declared = append(declared, t)
		return t.CelType()
	}
	object := of(t.Object)
	options := []cel.EnvOption{
		cel.Variable(objectName, object), cel.Variable(oldObjectName, object),
		cel.Variable(requestName, request.CelType()), cel.Variable(namespaceName, namespace.CelType()),
	}
	if w.Params {
		options = append(options, cel.Variable(paramsName, of(t.Params)))
	}
	if w.Authorizer {
		options = append(options, cel.Variable(authorizerName, library.AuthorizerType), cel.Variable(requestAuthorizerName, library.ResourceCheckType))
	}
	if variables != nil {
		options = append(options, cel.Variable(variablesName, of(variables)))
	}
	if w.Patches { // last, because it asks the provider before it
		options = append(options, common.ResolverEnvOption(&mutation.DynamicTypeResolver{}), library.JSONPatch())
	}
	return Env(declared, options...)
}

// Compile makes an expression ready, whose value has to be of one of some types;
// none: of any. What it is none for, Expression.Err says.
func (c *Compiler) Compile(text string, w Words, of ...*cel.Type) *Expression {
	e, _ := c.compile(text, w, of...)
	return e
}

func (c *Compiler) compile(text string, w Words, of ...*cel.Type) (*Expression, *cel.Type) {
	e := &Expression{Text: text}
	env, err := c.env(w)
	if err != nil {
		e.err = fmt.Errorf("unexpected error loading CEL environment: %w", err)
		return e, nil
	}
	ast, issues := env.Compile(text)
	if issues.Err() != nil {
		e.err = fmt.Errorf("compilation failed: %s", issues.String())
		return e, nil
	}
	if err := isOneOf(ast.OutputType(), of); err != nil {
		e.err = err
		return e, nil
	}
	if c.check {
		return e, ast.OutputType()
	}
	if e.program, err = Program(env, ast); err != nil {
		e.err = fmt.Errorf("program instantiation failed: %w", err)
	}
	return e, ast.OutputType()
}

func isOneOf(is *cel.Type, of []*cel.Type) error {
	names := make([]string, len(of))
	for i, t := range of {
		if is.IsExactType(t) {
			return nil
		}
		names[i] = t.String()
	}
	switch len(of) {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("must evaluate to %s but got %s", names[0], is)
	}
	return fmt.Errorf("must evaluate to one of [%s] but got %s", strings.Join(names, " "), is)
}

// Variable compiles a variable, which is evaluated when something uses it, and
// then once. What comes before it, it may use.
func (c *Compiler) Variable(name, text string, w Words) *Expression {
	e, t := c.compile(text, w)
	c.variables.Fields[name] = apicel.NewDeclField(name, declared(t), true, nil, nil)
	c.compiled = append(c.compiled, variable{name, e})
	return e
}

// declared is a type as the type of a field; what is none of the simple ones is
// anything.
func declared(t *cel.Type) *apicel.DeclType {
	if t == nil {
		return apicel.DynType
	}
	for _, known := range []*apicel.DeclType{
		apicel.AnyType, apicel.BoolType, apicel.BytesType, apicel.DoubleType, apicel.DurationType,
		apicel.IntType, apicel.NullType, apicel.StringType, apicel.TimestampType, apicel.UintType,
	} {
		if known.CelType().IsExactType(t) {
			return known
		}
	}
	if parameters := t.Parameters(); t.HasTrait(traits.ContainerType) && t.HasTrait(traits.IndexerType) {
		switch len(parameters) {
		case 1:
			return apicel.NewListType(declared(parameters[0]), -1)
		case 2:
			return apicel.NewMapType(declared(parameters[0]), declared(parameters[1]), -1)
		}
	}
	return apicel.DynType
}

type fields map[string]*apicel.DeclType

// record is a type of fields. Whose name ends in ? need not be there.
func record(name string, all fields) *apicel.DeclType {
	declared := make(map[string]*apicel.DeclField, len(all))
	for name, t := range all {
		name, maybe := strings.CutSuffix(name, "?")
		declared[name] = apicel.NewDeclField(name, t, !maybe, nil, nil)
	}
	return apicel.NewObjectType(name, declared)
}

// requestType is that of an AdmissionRequest but for its objects, which have
// names of their own, and its UID.
func requestType() *apicel.DeclType {
	text, texts := apicel.StringType, apicel.NewListType(apicel.StringType, -1)
	kind := record("kubernetes.GroupVersionKind", fields{"group": text, "version": text, "kind": text})
	resource := record("kubernetes.GroupVersionResource", fields{"group": text, "version": text, "resource": text})
	user := record("kubernetes.UserInfo", fields{"username?": text, "uid?": text, "groups?": texts, "extra?": apicel.NewMapType(text, texts, -1)})
	return record("kubernetes.AdmissionRequest", fields{
		"kind": kind, "resource": resource, "subResource?": text, "requestKind": kind, "requestResource": resource, "requestSubResource?": text,
		"name": text, "namespace?": text, "operation": text, "userInfo": user, "dryRun?": apicel.BoolType, "options?": apicel.DynType,
	})
}

// namespaceType is what is shown of a request's namespace.
func namespaceType() *apicel.DeclType {
	text, texts, labels, moment := apicel.StringType, apicel.NewListType(apicel.StringType, -1), apicel.NewMapType(apicel.StringType, apicel.StringType, -1), apicel.TimestampType
	condition := record("kubernetes.NamespaceCondition", fields{"status": text, "type": text, "lastTransitionTime": moment, "message": text, "reason": text})
	return record("kubernetes.Namespace", fields{
		"metadata": record("kubernetes.NamespaceMetadata", fields{
			"name": text, "generateName": text, "namespace": text, "labels": labels, "annotations": labels, "UID": text, "creationTimestamp": moment,
			"deletionGracePeriodSeconds": apicel.IntType, "deletionTimestamp": moment, "generation": apicel.IntType, "resourceVersion": text, "finalizers": texts,
		}),
		"spec":   record("kubernetes.NamespaceSpec", fields{"finalizers": texts}),
		"status": record("kubernetes.NamespaceStatus", fields{"conditions": apicel.NewListType(condition, -1), "phase": text}),
	})
}
