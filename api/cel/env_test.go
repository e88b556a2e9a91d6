package cel_test

import (
	"testing"

	celgo "github.com/google/cel-go/cel"

	"conclave/api/cel"
)

// TestDialect has a line of each library that Kubernetes gives to expressions.
func TestDialect(t *testing.T) {
	env, err := cel.Env(nil, celgo.Variable("object", celgo.DynType))
	if err != nil {
		t.Fatal(err)
	}
	object := map[string]any{"n": int64(3), "list": []any{int64(1), int64(2)}}
	for _, text := range []string{
		`object.n == 3 && object.n < 3.5`,
		`object.list.exists(x, x == 2) && object.list.isSorted() && object.list.sum() == 3`,
		`object.?absent.orValue('none') == 'none'`,
		`quantity('1Gi').isGreaterThan(quantity('1M'))`,
		`ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.1.1')`,
		`url('https://a.b:80/c').getPort() == '80'`,
		`'abc123'.find('[0-9]+') == '123'`,
		`'a,b'.split(',').size() == 2 && 'x'.upperAscii() == 'X'`,
		`sets.contains([1, 2], [1])`,
		`!format.dns1123Label().validate('name').hasValue()`,
		`semver('1.2.3').isLessThan(semver('1.3.0'))`,
		`[1, 2].all(i, v, i < v)`,
		`lists.range(3) == [0, 1, 2]`,
		`timestamp('2020-01-01T00:00:00Z') + duration('1h') > timestamp('2020-01-01T00:30:00Z')`,
	} {
		ast, issues := env.Compile(text)
		if issues.Err() != nil {
			t.Errorf("%s: %v", text, issues.Err())
			continue
		}
		program, err := cel.Program(env, ast)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if v, _, err := program.ContextEval(t.Context(), map[string]any{"object": object}); err != nil || v.Value() != true {
			t.Errorf("%s: %v, %v", text, v, err)
		}
	}
	for _, text := range []string{`object.n +`, `1 + 'a'`, `[1, 'a']`, `duration('never')`, `now()`} {
		if _, issues := env.Compile(text); issues.Err() == nil {
			t.Errorf("%s compiles", text)
		}
	}
}

// TestLimit stops what costs too much.
func TestLimit(t *testing.T) {
	env, err := cel.Env(nil)
	if err != nil {
		t.Fatal(err)
	}
	list := `[0,1,2,3,4,5,6,7,8,9]`
	ast, issues := env.Compile(list + `.all(a, ` + list + `.all(b, ` + list + `.all(c, ` + list + `.all(d, ` + list + `.all(e, ` + list + `.all(f, a+b+c+d+e+f >= 0))))))`)
	if issues.Err() != nil {
		t.Fatal(issues.Err())
	}
	program, err := cel.Program(env, ast)
	if err != nil {
		t.Fatal(err)
	}
	if v, _, err := program.ContextEval(t.Context(), map[string]any{}); err == nil {
		t.Errorf("a million steps are let be: %v", v)
	}
}
