package custom

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden file; read the difference before you commit it")

// What is wrong with the rules of a definition, in Kubernetes' words.
func TestRulesOfDefinition(t *testing.T) {
	text, err := os.ReadFile("testdata/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name         string
		Schema, Spec *apiextensionsv1.JSONSchemaProps
	}
	if err := yaml.UnmarshalStrict(text, &cases); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, c := range cases {
		if c.Spec != nil {
			c.Schema = &apiextensionsv1.JSONSchemaProps{Type: "object", Properties: map[string]apiextensionsv1.JSONSchemaProps{"spec": *c.Spec}}
		}
		d := def(t, anything)
		d.Spec.Versions[0].Schema.OpenAPIV3Schema = c.Schema
		fmt.Fprintf(&b, "# %s\n", c.Name)
		for _, e := range ValidateDefinition(d) {
			fmt.Fprintln(&b, e)
		}
		// What was let in before for what its rules cost, or are, stays.
		known := d.DeepCopy()
		known.Labels = map[string]string{"a": "b"}
		for _, e := range ValidateDefinitionUpdate(known, d) {
			if strings.Contains(e.Detail, "compil") || strings.Contains(e.Detail, "cost") {
				t.Errorf("%s: an update refuses what it did not change: %v", c.Name, e)
			}
		}
	}
	const file = "testdata/rules.golden"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != string(want) {
		is, was := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range min(len(is), len(was)) {
			if is[i] != was[i] {
				t.Fatalf("%s, line %d:\n%s\nnot\n%s", file, i+1, is[i], was[i])
			}
		}
		t.Fatalf("%s has %d lines, and %d were said", file, len(was), len(is))
	}
}

// ruled is a row whose objects have rules of most sorts.
const ruled = `
type: object
properties:
  spec:
    type: object
    required: [min, max]
    properties:
      min: {type: integer}
      max: {type: integer, maximum: 100}
      name: {type: string, maxLength: 30, x-kubernetes-validations: [{rule: 'self == oldSelf', message: name cannot change}]}
      tags: {type: array, maxItems: 10, x-kubernetes-list-type: set, items: {type: string, maxLength: 20, x-kubernetes-validations: [{rule: 'self.matches("^[a-z]+$")'}]}}
      ports:
        type: array
        maxItems: 10
        x-kubernetes-list-type: map
        x-kubernetes-list-map-keys: [name]
        items: {type: object, required: [name], properties: {name: {type: string, maxLength: 20}, port: {x-kubernetes-int-or-string: true}}, x-kubernetes-validations: [{rule: '!has(self.port) || type(self.port) == string || self.port > 0', fieldPath: .port, reason: FieldValueForbidden, message: ports are above 0}]}
    x-kubernetes-validations:
    - {rule: self.min <= self.max, messageExpression: 'self.min > 10 ? "min is far above max" : "min is above max"'}
  status: {type: object, properties: {ready: {type: integer}}, x-kubernetes-validations: [{rule: self.ready >= 0}]}
x-kubernetes-validations:
- {rule: '!has(self.status) || !has(self.status.ready) || self.status.ready <= self.spec.max', message: more are ready than there may be}
`

func ruledSchema(t testing.TB) *Schema {
	t.Helper()
	props := &apiextensionsv1.JSONSchemaProps{}
	if err := yaml.UnmarshalStrict([]byte(ruled), props); err != nil {
		t.Fatal(err)
	}
	s, err := newSchema(&apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: props})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Rules are asked when an object is created, changed, and when its status is; and
// not where the object is not what they take it for.
func TestRulesOfObject(t *testing.T) {
	d := def(t, ruled, func(d *Definition) {
		d.Spec.Versions[0].Subresources = &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}}
	})
	if errs := ValidateDefinition(d); len(errs) > 0 {
		t.Fatal(said(errs))
	}
	k, err := NewKind(d, "v1")
	if err != nil {
		t.Fatal(err)
	}
	obj := func(rest string) *unstructured.Unstructured {
		return &unstructured.Unstructured{Object: value(t, "{apiVersion: example.com/v1, kind: Thing, metadata: {name: m, namespace: default, uid: u, resourceVersion: '1'}, "+rest+"}")}
	}
	for name, tc := range map[string]struct {
		now, old string
		status   bool
		want     string
		warnings []string
	}{
		"good":       {now: "spec: {min: 1, max: 2}"},
		"created":    {now: "spec: {min: 3, max: 2, tags: [a, B], ports: [{name: a, port: 0}, {name: b, port: http}]}", want: "spec.ports[0].port: Forbidden: ports are above 0\nspec.tags[1]: Invalid value: \"B\": failed rule: self.matches(\"^[a-z]+$\")\nspec: Invalid value: min is above max"},
		"far":        {now: "spec: {min: 30, max: 2}", want: "spec: Invalid value: min is far above max"},
		"incomplete": {now: "spec: {min: 3}", want: "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation\nspec.max: Required value"},
		// A value that is too large is no reason not to ask.
		"too much":  {now: "spec: {min: 300, max: 200}", want: "spec.max: Invalid value: 200: spec.max in body should be less than or equal to 100\nspec: Invalid value: min is far above max"},
		"changed":   {now: "spec: {min: 1, max: 2, name: b}", old: "spec: {min: 1, max: 2, name: a}", want: `spec.name: Invalid value: "b": name cannot change`},
		"added":     {now: "spec: {min: 1, max: 2, name: b}", old: "spec: {min: 1, max: 2}"},
		"let be":    {now: "spec: {min: 1, max: 2, tags: [A]}", old: "spec: {min: 1, max: 3, tags: [A]}", warnings: []string{`spec.tags[0]: Invalid value: "A": failed rule: self.matches("^[a-z]+$")`}},
		"status":    {now: "spec: {min: 1, max: 2}, status: {ready: 3}", old: "spec: {min: 1, max: 2}", status: true, want: "<nil>: Invalid value: more are ready than there may be"},
		"of status": {now: "spec: {min: 1, max: 2}, status: {ready: -1}", old: "spec: {min: 1, max: 2}", status: true, want: "status: Invalid value: failed rule: self.ready >= 0"},
		// The status is not written, and its wrong spec is not either.
		"old spec": {now: "spec: {min: 9, max: 2}, status: {ready: 1}", old: "spec: {min: 9, max: 2}", status: true, warnings: []string{"spec: Invalid value: min is above max"}},
	} {
		var got string
		switch {
		case tc.old == "":
			got = said(k.Validate(obj(tc.now)))
		case tc.status:
			got = said(k.ValidateStatusUpdate(obj(tc.now), obj(tc.old)))
		default:
			got = said(k.ValidateUpdate(obj(tc.now), obj(tc.old)))
		}
		if got != tc.want {
			t.Errorf("%s: it says\n%s\nnot\n%s", name, got, tc.want)
		}
		if tc.old == "" {
			continue
		}
		if warnings := k.Warnings(obj(tc.now), obj(tc.old)); tc.want == "" && !slices.Equal(warnings, tc.warnings) {
			t.Errorf("%s: it warns %q, not %q", name, warnings, tc.warnings)
		}
	}
}

// A schema without rules compiles nothing and says nothing of them.
func TestNoRules(t *testing.T) {
	d := def(t, "{type: object, properties: {spec: {type: object, required: [a], properties: {a: {type: integer}}}}}")
	s, err := newSchema(d.Spec.Versions[0].Schema)
	if err != nil {
		t.Fatal(err)
	}
	if s.rules() != nil {
		t.Error("there are rules")
	}
	obj := value(t, "{spec: {}}")
	if errs := s.validateRules(obj, nil, s.validate(obj, nil)); len(errs) > 0 {
		t.Errorf("rules say %v", errs)
	}
}

// Whatever an object is, rules are run to their end: what they cannot take is an
// error and no panic, and asked twice they say the same.
func FuzzRules(f *testing.F) {
	for _, seed := range []string{
		`{"spec":{"min":1,"max":2,"tags":["a"],"ports":[{"name":"a","port":1}]},"status":{"ready":1}}`,
		`{"spec":{"min":"x","max":null,"tags":[1,{}],"ports":[{"name":{},"port":[]},3]},"status":[]}`,
		`{"spec":[],"metadata":3,"kind":{}}`, `{"spec":{"ports":[{"name":["a"]},{"name":["a"]}],"tags":[[],[]]}}`, `{"status":{"ready":1e300}}`,
	} {
		f.Add(seed, `{"spec":{"name":"a","ports":[{"name":"a"}]}}`)
		f.Add(seed, seed)
	}
	s := ruledSchema(f)
	f.Fuzz(func(t *testing.T, now, old string) {
		obj, before := map[string]any{}, map[string]any{}
		if json.Unmarshal([]byte(now), &obj) != nil || json.Unmarshal([]byte(old), &before) != nil || obj == nil || before == nil {
			return
		}
		all := s.rules()
		for _, was := range []map[string]any{nil, before} {
			errs, let := s.askRules(all, obj, was)
			if again, letAgain := s.askRules(all, obj, was); said(again) != said(errs) || said(letAgain) != said(let) {
				t.Errorf("it says\n%s\nand then\n%s", said(errs), said(again))
			}
			if was == nil && len(let) > 0 {
				t.Errorf("what is new is let be: %v", let)
			}
		}
		// What is as its schema says and has not changed is let be, but at the root,
		// and where a rule finds nothing to look at.
		if !clean(s, obj) {
			return
		}
		errs, _ := s.askRules(all, obj, obj)
		for _, e := range errs {
			if e.Field != "<nil>" && !strings.Contains(e.Detail, "evaluating rule") {
				t.Errorf("what has not changed breaks a rule: %v", e)
			}
		}
	})
}

// clean says that a schema has nothing to remove and nothing to say.
func clean(s *Schema, obj map[string]any) bool {
	unknown, err := s.Prune(obj)
	return err == nil && len(unknown) == 0 && len(s.validate(obj, nil)) == 0
}

// BenchmarkRules is what a create and an update pay for the rules of an object.
func BenchmarkRules(b *testing.B) {
	s := ruledSchema(b)
	obj := value(b, "{apiVersion: example.com/v1, kind: Thing, metadata: {name: m}, spec: {min: 1, max: 2, name: a, tags: [a, b, c], ports: [{name: a, port: 80}, {name: b, port: http}]}, status: {ready: 1}}")
	old := value(b, "{apiVersion: example.com/v1, kind: Thing, metadata: {name: m}, spec: {min: 1, max: 3, name: a, tags: [a, b], ports: [{name: a, port: 81}]}, status: {ready: 1}}")
	for name, was := range map[string]map[string]any{"create": nil, "update": old} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if errs, _ := s.askRules(s.rules(), obj, was); len(errs) > 0 {
					b.Fatal(said(errs))
				}
			}
		})
	}
	b.Run("compile", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if ruledSchema(b).rules() == nil {
				b.Fatal("there are no rules")
			}
		}
	})
}
