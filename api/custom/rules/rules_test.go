package rules_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"conclave/api/custom/rules"
)

var update = flag.Bool("update", false, "rewrite the golden files; read the difference before you commit it")

// object is a case of testdata/objects.yaml.
type object struct {
	Name   string                          `json:"name"`
	Root   bool                            `json:"root"` // the schema is that of a resource
	Schema apiextensionsv1.JSONSchemaProps `json:"schema"`
	Value  any                             `json:"value"`
	Old    any                             `json:"old"`
	// Values that are too large to write: a string of so many letters, a list of
	// so many numbers, so many rows of such.
	Long  int `json:"long"`
	Count int `json:"count"`
	Rows  int `json:"rows"`
	// What may be spent, if not what usually is.
	Budget int64 `json:"budget"`
}

func objects(t testing.TB) (all []object) {
	t.Helper()
	text, err := os.ReadFile("testdata/objects.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if text, err = yaml.YAMLToJSON(text); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &all); err != nil { // whole numbers as int64, as those of requests
		t.Fatal(err)
	}
	for i := range all {
		o := &all[i]
		if o.Budget == 0 {
			o.Budget = rules.Budget
		}
		switch {
		case o.Long > 0:
			o.Value = strings.Repeat("x", o.Long)
		case o.Count > 0:
			list := make([]any, o.Count)
			for i := range list {
				list[i] = int64(i)
			}
			if o.Value = list; o.Rows > 0 {
				rows := make([]any, o.Rows)
				for i := range rows {
					rows[i] = list
				}
				o.Value = rows
			}
		}
	}
	return all
}

func schema(t testing.TB, props *apiextensionsv1.JSONSchemaProps) *structural.Structural {
	t.Helper()
	var in apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(props, &in, nil); err != nil {
		t.Fatal(err)
	}
	s, err := structural.NewStructural(&in)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// golden compares what was said with testdata/name.golden.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name + ".golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	is, was := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(is), len(was)) {
		a, b := "(nothing)", "(nothing)"
		if i < len(is) {
			a = is[i]
		}
		if i < len(was) {
			b = was[i]
		}
		if a != b {
			t.Fatalf("%s, line %d:\n%s\nnot\n%s", file, i+1, a, b)
		}
	}
}

func lines(prefix string, errs field.ErrorList) string {
	var b strings.Builder
	for _, e := range errs {
		fmt.Fprintf(&b, "%s%s\n", prefix, e)
	}
	return b.String()
}

// What rules say of values, in Kubernetes' words.
func TestCheck(t *testing.T) {
	var b strings.Builder
	for _, o := range objects(t) {
		all := rules.Compile(schema(t, &o.Schema), o.Root)
		p := field.NewPath("spec", "f")
		if o.Root {
			p = nil
		}
		errs, let, left := all.Check(p, o.Value, o.Old, o.Old != nil, o.Budget)
		fmt.Fprintf(&b, "# %s\n%s%s", o.Name, lines("", errs), lines("let: ", let))
		if left < 0 {
			b.WriteString("(no budget is left)\n")
			continue
		}
		// Nothing is kept of one run for the next.
		if again, _, _ := all.Check(p, o.Value, o.Old, o.Old != nil, o.Budget); fmt.Sprint(again) != fmt.Sprint(errs) {
			t.Errorf("%s: asked again, it says %v", o.Name, again)
		}
	}
	golden(t, "objects", b.String())
}

// Whatever is written as a rule, it is judged, and asked about a value: what is
// wrong with it is an error and no panic, and a rule that was let in holds or does
// not.
func FuzzRule(f *testing.F) {
	for _, seed := range []struct{ rule, message, path string }{
		{"self.a > 1", `"a is " + string(self.a)`, ".a"}, {"self.l.all(x, x in self.m)", "self.s", ".m['k']"}, {"oldSelf.a < self.a", "", ".l"},
		{"self.", "'", "['"}, {"self.l[9] == ''", `self.l.map(x, x + x).join("\n")`, ".m['\\"}, {"self.s.matches('(')", "self", "."}, {"size(self.m) / size(self.l) > 0", "self.?s.orValue('')", ".s"},
		{"quantity(self.s).isGreaterThan(quantity('1'))", "format.named('x').value()", ""}, {"duration(self.s) > duration('1s')", "[1, 2].map(x, x)[3]", ".."},
	} {
		f.Add(seed.rule, seed.message, seed.path)
	}
	var base apiextensionsv1.JSONSchemaProps
	if err := yaml.UnmarshalStrict([]byte(`{type: object, properties: {a: {type: integer}, s: {type: string, maxLength: 20}, l: {type: array, maxItems: 5, items: {type: string, maxLength: 20}}, m: {type: object, maxProperties: 5, additionalProperties: {type: string, maxLength: 20}}}}`), &base); err != nil {
		f.Fatal(err)
	}
	value := map[string]any{"a": int64(1), "s": "1h", "l": []any{"p", "q"}, "m": map[string]any{"p": "q"}}
	f.Fuzz(func(t *testing.T, text, message, path string) {
		props := base
		props.XValidations = apiextensionsv1.ValidationRules{{Rule: text, MessageExpression: message, FieldPath: path}}
		s := schema(t, &props)
		var j rules.Judge
		j.Root(s).Judge(field.NewPath("root"))
		refused := j.Errors(field.NewPath("root"))
		for _, old := range []any{nil, value} {
			errs, _, left := rules.Compile(s, true).Check(nil, value, old, old != nil, rules.Budget)
			for _, e := range errs {
				if len(refused) == 0 && strings.Contains(e.Detail, "compile error") {
					t.Errorf("%q was let in: %v", text, e)
				}
			}
			if len(refused) == 0 && left < rules.Budget/2 {
				t.Errorf("%q was let in, and %d is left of the budget", text, left)
			}
		}
	})
}
