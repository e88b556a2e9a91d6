// Package cel owns in which dialect of CEL (the Common Expression Language) rules,
// policies and conditions are written: the functions and the limits that
// Kubernetes gives them (KEP-2876, KEP-3488), and what expressions about a request
// for admission are told of it (admission.go, evaluate.go).
//
// It has no state but the environments that others extend, which are made when the
// first expression is looked at: a cluster without expressions pays nothing. A
// Compiler and a Run are each of one goroutine; everything else here may be used by
// any number of them, and is never changed.
package cel

import (
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/checker"
	"github.com/google/cel-go/ext"
	"github.com/google/cel-go/interpreter"
	limits "k8s.io/apiserver/pkg/apis/cel"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/library"
)

// base is what every expression may use.
var base = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.HomogeneousAggregateLiterals(), cel.EagerlyValidateDeclarations(true), cel.DefaultUTCTimeZone(true),
		cel.CrossTypeNumericComparisons(true), cel.OptionalTypes(),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(), cel.ValidateHomogeneousAggregateLiterals()),
		cel.CostEstimatorOptions(checker.PresenceTestHasCost(false)),
		ext.Strings(ext.StringsVersion(2)), ext.Sets(), ext.TwoVarComprehensions(), ext.Lists(ext.ListsVersion(3)),
		library.URLs(), library.Regex(), library.Lists(library.ListsVersion(1)), library.Authz(), library.AuthzSelectors(),
		library.Quantity(), library.IP(), library.CIDR(), library.Format(), library.SemverLib(library.SemverVersion(1)),
	)
})

// Env is the language with more in it: types that values may be of, variables,
// functions.
func Env(types []*apicel.DeclType, more ...cel.EnvOption) (*cel.Env, error) {
	env, err := base()
	if err != nil {
		return nil, err
	}
	provider := apicel.NewDeclTypeProvider(types...)
	provider.SetRecognizeKeywordAsFieldName(true)
	options, err := provider.EnvOptions(env.CELTypeProvider())
	if err != nil {
		return nil, err
	}
	return env.Extend(append(options, more...)...)
}

// Program makes what Compile returned ready to run. One run costs at most a given
// number of CEL's units, and stops when its context ends.
func Program(env *cel.Env, ast *cel.Ast) (cel.Program, error) {
	return env.Program(ast,
		cel.EvalOptions(cel.OptOptimize, cel.OptTrackCost), cel.CostLimit(limits.PerCallLimit),
		cel.CostTrackerOptions(interpreter.PresenceTestHasCost(false)), cel.CostTracking(&library.CostEstimator{}),
		cel.InterruptCheckFrequency(limits.CheckFrequency),
	)
}
