package cel_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	celgo "github.com/google/cel-go/cel"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"

	"conclave/api/cel"
	"conclave/api/types"
)

func pod() *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}, HostUsers: ptr.To(false), Priority: ptr.To[int32](3)},
	}
}

// TestTold reads what expressions are told, of objects with Go types and without.
func TestTold(t *testing.T) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(pod())
	if err != nil {
		t.Fatal(err)
	}
	for kind, object := range map[string]runtime.Object{"typed": pod(), "unstructured": &unstructured.Unstructured{Object: content}} {
		in := &cel.Input{
			Object: object, Request: map[string]any{"operation": "CREATE", "name": "p", "userInfo": map[string]any{"username": "u", "groups": []string{"g"}}},
			Namespace: &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"x": "y"}, ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}},
		}
		for _, text := range []string{
			`object.kind == 'Pod' && object.metadata.labels.a == 'b' && object.spec.containers[0].image == 'i' && object.spec.priority == 3`,
			`!object.spec.hostUsers && !has(object.spec.nodeName) && !has(object.metadata.annotations)`,
			`object.spec.?nodeName.orValue('none') == 'none' && object.spec.containers.all(c, c.name.size() == 1)`,
			`oldObject == null && params == null`,
			`request.operation == 'CREATE' && request.userInfo.groups == ['g'] && !has(request.subResource)`,
			`namespaceObject.metadata.name == 'n' && namespaceObject.metadata.labels.x == 'y'`,
		} {
			e := cel.NewCompiler(false).Compile(text, cel.Words{Params: true}, celgo.BoolType)
			if e.Err() != nil {
				t.Errorf("%s: %v", text, e.Err())
				continue
			}
			if v, err := cel.Begin(t.Context(), nil, in, 1000).Eval(e); err != nil || v.Value() != true {
				t.Errorf("%s: %s: %v, %v", kind, text, v, err)
			}
		}
	}
}

// TestWords refuses what an expression does not have.
func TestWords(t *testing.T) {
	for text, w := range map[string]cel.Words{
		`params.a`: {}, `authorizer.path('/').check('get').allowed()`: {Params: true}, `Object{}`: {Authorizer: true}, `variables.a`: {Params: true, Authorizer: true, Patches: true},
		`request.nosuch`: {}, `request.uid`: {}, `namespaceObject.metadata.managedFields`: {}, `[JSONPatch{ops: 'add'}]`: {Authorizer: true},
	} {
		if e := cel.NewCompiler(false).Compile(text, w); e.Err() == nil {
			t.Errorf("%s compiles", text)
		}
	}
	if e := cel.NewCompiler(false).Compile(`1`, cel.Words{}, celgo.StringType, celgo.NullType); e.Err() == nil || e.Err().Error() != "must evaluate to one of [string null_type] but got int" {
		t.Error(e.Err())
	}
}

// TestVariables have types, are evaluated once, and cost what they cost.
func TestVariables(t *testing.T) {
	c := cel.NewCompiler(true)
	const heavy = `[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, a + b >= 0))`
	for name, text := range map[string]string{"heavy": heavy, "text": `object.metadata.name + '!'`, "list": `object.spec.containers.map(c, string(c.name))`, "bad": `object.nosuch`} {
		if e := c.Variable(name, text, cel.Words{}); e.Err() != nil {
			t.Fatal(e.Err())
		}
	}
	c.Variable("after", `variables.text + variables.list[0]`, cel.Words{})
	for _, text := range []string{`variables.list[0] + 1 == 2`, `variables.heavy == 'a'`, `variables.later`} {
		if e := c.Compile(text, cel.Words{}); e.Err() == nil {
			t.Errorf("%s compiles", text)
		}
	}
	in := &cel.Input{Object: pod()}
	eval := func(r *cel.Run, text string) error {
		t.Helper()
		e := c.Compile(text, cel.Words{}, celgo.BoolType)
		if e.Err() != nil {
			t.Fatal(e.Err())
		}
		v, err := r.Eval(e)
		if err == nil && v.Value() != true {
			t.Errorf("%s is %v", text, v)
		}
		return err
	}
	const budget = 10000
	r := cel.Begin(t.Context(), c, in, budget)
	if err := eval(r, `variables.after == 'p!c' && (true || variables.bad)`); err != nil {
		t.Error(err)
	}
	before := r.Left()
	if err := eval(r, `variables.heavy`); err != nil {
		t.Error(err)
	}
	once := before - r.Left()
	if err := eval(r, `variables.heavy`); err != nil {
		t.Error(err)
	}
	if again := before - once - r.Left(); once < 200 || again > 10 {
		t.Errorf("it cost %d, and then %d", once, again)
	}
	if err := eval(r, `variables.bad == 1`); err == nil || !strings.Contains(err.Error(), `composited variable "bad" fails to evaluate: no such key: nosuch`) {
		t.Error(err)
	}
	if err := eval(cel.Begin(t.Context(), c, in, once/2), `variables.heavy`); !errors.Is(err, cel.ErrBudget) {
		t.Errorf("half of what it costs: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := eval(cel.Begin(ctx, c, in, budget), `variables.heavy`); !errors.Is(err, context.Canceled) {
		t.Errorf("when nobody waits any more: %v", err)
	}
}

// TestConditions has what is false decide, whatever else is wrong.
func TestConditions(t *testing.T) {
	in := &cel.Input{Object: pod()}
	for _, tc := range []struct {
		expressions []string
		match       bool
		err         string
	}{
		{nil, true, ""},
		{[]string{`true`, `object.kind == 'Pod'`}, true, ""},
		{[]string{`object.nosuch == 1`, `false`}, false, ""},
		{[]string{`object.nosuch == 1`, `true`}, false, "expression 'object.nosuch == 1' resulted in error: no such key: nosuch"},
		{[]string{`object.nosuch == 1`, `object.nor == 1`}, false, "[expression 'object.nosuch == 1' resulted in error: no such key: nosuch, expression 'object.nor == 1' resulted in error: no such key: nor]"},
		{[]string{`object.`}, false, "compilation error: compilation failed: "},
	} {
		var all []types.MatchCondition
		for _, text := range tc.expressions {
			all = append(all, types.MatchCondition{Expression: text})
		}
		match, err := cel.NewConditions(all, false).Match(t.Context(), in)
		if match != tc.match || (err == nil) != (tc.err == "") || err != nil && !strings.HasPrefix(err.Error(), tc.err) {
			t.Errorf("%v: %t, %v", tc.expressions, match, err)
		}
	}
}
