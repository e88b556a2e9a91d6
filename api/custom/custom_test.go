package custom

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// def is a definition with one version of this schema, and whatever else is
// said at the end.
func def(t *testing.T, schema string, edit ...func(*Definition)) *Definition {
	t.Helper()
	d := &Definition{}
	text := "metadata: {name: things.example.com}\nspec:\n  group: example.com\n  scope: Namespaced\n  names: {plural: things, kind: Thing}\n  versions: [{name: v1, served: true, storage: true}]\n"
	if err := yaml.UnmarshalStrict([]byte(text), d); err != nil {
		t.Fatal(err)
	}
	props := &apiextensionsv1.JSONSchemaProps{}
	if err := yaml.UnmarshalStrict([]byte(schema), props); err != nil {
		t.Fatal(err)
	}
	d.Spec.Versions[0].Schema = &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: props}
	for _, f := range edit {
		f(d)
	}
	defaultDefinition(d)
	return d
}

const anything = "{type: object, x-kubernetes-preserve-unknown-fields: true}"

func said(errs field.ErrorList) string {
	var all []string
	for _, e := range errs {
		all = append(all, e.Error())
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// What is wrong with a definition, in Kubernetes' words.
func TestValidateDefinition(t *testing.T) {
	more := func(name string, edit func(*version)) func(*Definition) {
		return func(d *Definition) {
			v := *d.Spec.Versions[0].DeepCopy()
			v.Name, v.Storage = name, false
			if edit != nil {
				edit(&v)
			}
			d.Spec.Versions = append(d.Spec.Versions, v)
		}
	}
	props := func(s string) string { return "{type: object, properties: {spec: " + s + "}}" }
	for name, tc := range map[string]struct {
		schema string
		edit   func(*Definition)
		want   []string
	}{
		"good":         {schema: anything},
		"name":         {anything, func(d *Definition) { d.Name = "other.example.com" }, []string{`metadata.name: Invalid value: "other.example.com": must be spec.names.plural+"."+spec.group`}},
		"group":        {anything, func(d *Definition) { d.Name, d.Spec.Group = "things.example", "example" }, []string{`spec.group: Invalid value: "example": should be a domain with at least one dot`}},
		"scope":        {anything, func(d *Definition) { d.Spec.Scope = "Wide" }, []string{`spec.scope: Unsupported value: "Wide": supported values: "Cluster", "Namespaced"`}},
		"two storage":  {anything, more("v2", func(v *version) { v.Storage = true }), []string{"must have exactly one version marked as storage version"}},
		"no storage":   {anything, func(d *Definition) { d.Spec.Versions[0].Storage = false }, []string{"must have exactly one version marked as storage version", "status.storedVersions: Invalid value: null: must have at least one stored version"}},
		"same version": {anything, more("v1", nil), []string{"must contain unique version names"}},
		"no schema":    {anything, func(d *Definition) { d.Spec.Versions[0].Schema = nil }, []string{"spec.versions[0].schema.openAPIV3Schema: Required value"}},
		"kind":         {anything, func(d *Definition) { d.Spec.Names.ListKind = "Thing" }, []string{`spec.names.listKind: Invalid value: "Thing": kind and listKind may not be the same`}},
		"short name":   {anything, func(d *Definition) { d.Spec.Names.ShortNames = []string{"A"} }, []string{`spec.names.shortNames[0]: Invalid value: "A": a DNS-1035 label must consist of`}},
		"preserve":     {anything, func(d *Definition) { d.Spec.PreserveUnknownFields = true }, []string{"spec.preserveUnknownFields: Invalid value: true: cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"}},
		"protected":    {anything, func(d *Definition) { d.Name, d.Spec.Group = "things.x.k8s.io", "x.k8s.io" }, []string{`metadata.annotations[api-approved.kubernetes.io]: Required value: protected groups must have approval annotation`}},
		"column": {anything, func(d *Definition) {
			d.Spec.Versions[0].AdditionalPrinterColumns = []apiextensionsv1.CustomResourceColumnDefinition{{Name: "a", Type: "text", JSONPath: "spec"}}
		}, []string{`spec.additionalPrinterColumns[0].type: Invalid value: "text": must be one of boolean,date,integer,number,string`, "spec.additionalPrinterColumns[0].JSONPath: Invalid value: \"spec\": must be a simple json path starting with ."}},
		"scale": {anything, func(d *Definition) {
			d.Spec.Versions[0].Subresources = &apiextensionsv1.CustomResourceSubresources{Scale: &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".status.n"}}
		}, []string{`spec.subresources.scale.specReplicasPath: Invalid value: ".status.n": should be a json path under .spec`, "spec.subresources.scale.statusReplicasPath: Required value"}},
		"webhook": {anything, func(d *Definition) {
			more("v2", nil)(d)
			d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: "Webhook"}
		}, []string{"spec.conversion.webhookClientConfig: Required value", "spec.conversion.conversionReviewVersions: Required value"}},
		"selectable": {props("{type: object, properties: {m: {type: number}}}"), func(d *Definition) {
			d.Spec.Versions[0].SelectableFields = []apiextensionsv1.SelectableField{{JSONPath: ".spec.m"}, {JSONPath: ".spec.no"}}
		}, []string{"spec.versions[0].selectableFields[0].jsonPath: Invalid value: \".spec.m\": must point to a field of type string, boolean or integer", "spec.versions[0].selectableFields[1].jsonPath: Invalid value: \".spec.no\": is an invalid path"}},
		"no type":     {props("{properties: {a: {type: string}}}"), nil, []string{"spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields"}},
		"bad type":    {props("{type: map}"), nil, []string{`spec.validation.openAPIV3Schema.properties[spec].type: Unsupported value: "map": supported values: "array", "boolean", "integer", "number", "object", "string"`}},
		"unique":      {props("{type: array, items: {type: string}, uniqueItems: true}"), nil, []string{"spec.validation.openAPIV3Schema.properties[spec].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic"}},
		"both":        {props("{type: object, additionalProperties: {type: string}, properties: {a: {type: string}}}"), nil, []string{"spec.validation.openAPIV3Schema.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"}},
		"map keys":    {props("{type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [a], items: {type: object, properties: {a: {type: string}}}}"), nil, []string{"spec.validation.openAPIV3Schema.properties[spec].items.properties[a].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"}},
		"default":     {props("{type: object, properties: {m: {type: integer, maximum: 3, default: 4}}}"), nil, []string{"spec.validation.openAPIV3Schema.properties[spec].properties[m].default: Invalid value: 4:", "should be less than or equal to 3"}},
		"unpruned":    {props("{type: object, properties: {a: {type: string}}, default: {b: 1}}"), nil, []string{"spec.validation.openAPIV3Schema.properties[spec].default: Invalid value: {\"b\":1}: must not have unknown fields"}},
		"own default": {"{type: object, properties: {kind: {type: string, default: x}}}", nil, []string{"spec.validation.openAPIV3Schema.properties[kind].default: Forbidden: must not be set in top-level kind"}},
		"rule":        {props("{type: object, x-kubernetes-validations: [{rule: ' '}]}"), nil, []string{"x-kubernetes-validations[0].rule: Required value: rule is not specified"}},
		"each of two": {props("{properties: {a: {type: string}}}"), more("v2", func(v *version) { v.Schema.OpenAPIV3Schema.Description = "x" }), []string{"spec.versions[0].schema.openAPIV3Schema.properties[spec].type: Required value", "spec.versions[1].schema.openAPIV3Schema.properties[spec].type: Required value"}},
		"root of status": {"{type: object, minProperties: 2}", func(d *Definition) {
			d.Spec.Versions[0].Subresources = &apiextensionsv1.CustomResourceSubresources{Status: &apiextensionsv1.CustomResourceSubresourceStatus{}}
		}, []string{"fields are allowed at the root of the schema if the status subresource is enabled"}},
	} {
		edit := tc.edit
		if edit == nil {
			edit = func(*Definition) {}
		}
		got := said(ValidateDefinition(def(t, tc.schema, edit)))
		for _, want := range tc.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: it does not say %q:\n%s", name, want, got)
			}
		}
		if len(tc.want) == 0 && got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func TestValidateDefinitionUpdate(t *testing.T) {
	old := def(t, anything)
	SetCondition(old, Established, true, "", "", time.Unix(1, 0))
	d := old.DeepCopy()
	d.Spec.Scope, d.Spec.Names.Kind, d.Spec.Names.ListKind = "Cluster", "Other", "OtherList"
	if got := said(ValidateDefinitionUpdate(d, old)); !strings.Contains(got, `spec.scope: Invalid value: "Cluster": field is immutable`) || !strings.Contains(got, `spec.names.kind: Invalid value: "Other": field is immutable`) {
		t.Error(got)
	}
	d = old.DeepCopy()
	d.Spec.Versions[0].Name = "v2"
	prepareUpdate(d, old)
	if got := said(ValidateDefinitionUpdate(d, old)); !strings.Contains(got, "status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions; v1 was previously a storage version") {
		t.Error(got)
	}
	if d.Generation != old.Generation+1 || !slices.Equal(d.Status.StoredVersions, []string{"v1", "v2"}) {
		t.Errorf("generation %d, stored versions %v", d.Generation, d.Status.StoredVersions)
	}
}

func TestWarnings(t *testing.T) {
	d := def(t, "{type: object, properties: {spec: {type: object, x-kubernetes-validations: [{rule: 'true'}], properties: {a: {type: string, format: odd}}}}}")
	got := definitionWarnings(d, nil)
	if len(got) != 1 || got[0] != `unrecognized format "odd"` {
		t.Errorf("warnings are %q", got)
	}
	if again := definitionWarnings(d, d); len(again) > 0 {
		t.Errorf("an update says again %q", again)
	}
}

func value(t testing.TB, text string) map[string]any {
	t.Helper()
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// What is wrong with a value, in Kubernetes' words.
func TestValues(t *testing.T) {
	for _, tc := range []struct{ schema, value, want string }{
		{"{type: string}", "1", `spec.f: Invalid value: "integer": spec.f in body must be of type string: "integer"`},
		{"{type: string}", "null", `spec.f: Invalid value: "null": spec.f in body must be of type string: "null"`},
		{"{type: string, nullable: true}", "null", ""},
		{"{type: integer}", "1.5", `spec.f: Invalid value: "number": spec.f in body must be of type integer: "number"`},
		{"{type: integer}", "2.0", ""},
		{"{type: number}", "2", ""},
		{"{type: integer, format: int32}", "3000000000", "spec.f: Invalid value: 3000000000: Checked value must be of type integer with format int32 in spec.f"},
		{"{x-kubernetes-int-or-string: true}", "true", `spec.f: Invalid value: "boolean": spec.f in body must be of type integer,string: "boolean"`},
		{"{x-kubernetes-int-or-string: true}", "'80%'", ""},
		{"{type: integer, minimum: 1}", "0", "spec.f: Invalid value: 0: spec.f in body should be greater than or equal to 1"},
		{"{type: integer, minimum: 1, exclusiveMinimum: true}", "1", "spec.f: Invalid value: 1: spec.f in body should be greater than 1"},
		{"{type: integer, multipleOf: 3}", "4", "spec.f: Invalid value: 4: spec.f in body should be a multiple of 3"},
		{"{type: number, multipleOf: 0.1}", "0.3", ""},
		{"{type: string, maxLength: 2}", "abc", "spec.f: Too long: may not be more than 2 bytes"},
		{"{type: string, minLength: 2}", "ä", `spec.f: Invalid value: "ä": spec.f in body should be at least 2 chars long`},
		{"{type: string, pattern: '^a+$'}", "b", `spec.f: Invalid value: "b": spec.f in body should match '^a+$'`},
		{"{type: string, format: date-time}", "yesterday", `spec.f: Invalid value: "yesterday": spec.f in body must be of type date-time: "yesterday"`},
		{"{type: string, format: odd}", "x", ""},
		{"{type: string, enum: [a, b]}", "c", `spec.f: Unsupported value: "c": supported values: "a", "b"`},
		{"{type: array, maxItems: 1, items: {type: string}}", "[a, b]", "spec.f: Too many: 2: must have at most 1 item"},
		{"{type: array, minItems: 1, items: {type: string}}", "[]", "spec.f: Invalid value: 0: spec.f in body should have at least 1 items"},
		{"{type: array, items: {type: string}}", "[a, 1]", `spec.f[1]: Invalid value: "integer": spec.f[1] in body must be of type string: "integer"`},
		{"{type: object, required: [a], properties: {a: {type: string}}}", "{}", "spec.f.a: Required value"},
		{"{type: object, additionalProperties: {type: integer}}", "{x: a}", `spec.f.x: Invalid value: "string": spec.f.x in body must be of type integer: "string"`},
		{"{type: object, maxProperties: 1, additionalProperties: {type: integer}}", "{x: 1, z: 2}", "spec.f: Too many: 2: must have at most 1 item"},
		{"{type: string, anyOf: [{pattern: '^a'}, {pattern: '^b'}]}", "c", `<nil>: Invalid value: "": "spec.f" must validate at least one schema (anyOf)`},
		{"{type: string, oneOf: [{pattern: '^a'}, {pattern: 'b$'}]}", "ab", `"spec.f" must validate one and only one schema (oneOf). Found 2 valid alternatives`},
		{"{type: string, allOf: [{pattern: '^a'}, {pattern: 'b$'}]}", "a", `"spec.f" must validate all the schemas (allOf)`},
		{"{type: string, not: {pattern: '^a'}}", "a", `"spec.f" must not validate the schema (not)`},
		{"{type: array, x-kubernetes-list-type: set, items: {type: string}}", "[a, a]", `spec.f[1]: Duplicate value: "a"`},
		{"{type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}", "{kind: A}", "spec.f.apiVersion: Required value"},
	} {
		d := def(t, "{type: object, properties: {spec: {type: object, properties: {f: "+tc.schema+"}}}}")
		if errs := ValidateDefinition(d); len(errs) > 0 {
			t.Fatalf("%s: %s", tc.schema, said(errs))
		}
		s, err := newSchema(d.Spec.Versions[0].Schema)
		if err != nil {
			t.Fatal(err)
		}
		obj := value(t, "{spec: {f: "+tc.value+"}}")
		got := said(s.validate(obj, nil))
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s as %s: %q, not %q", tc.value, tc.schema, got, tc.want)
		}
		// What was there before is let be.
		if got := said(s.validate(obj, obj)); got != "" && !strings.Contains(tc.schema, "embedded") {
			t.Errorf("%s as %s, not changed: %s", tc.value, tc.schema, got)
		}
	}
}

func TestPruneAndDefault(t *testing.T) {
	d := def(t, `
type: object
properties:
  spec:
    type: object
    default: {}
    properties:
      a: {type: string, default: x}
      m: {type: integer, nullable: true, default: 1}
      list: {type: array, items: {type: object, properties: {b: {type: string, default: v}}}}
      open: {type: object, x-kubernetes-preserve-unknown-fields: true}
      pod: {type: object, x-kubernetes-embedded-resource: true, properties: {spec: {type: object}}}
`)
	s, err := newSchema(d.Spec.Versions[0].Schema)
	if err != nil {
		t.Fatal(err)
	}
	obj := value(t, `{apiVersion: example.com/v1, kind: Thing, metadata: {name: m, odd: 1}, other: 1,
 spec: {a: null, m: null, z: 1, list: [{c: 1}, {b: w}], open: {q: 1}, pod: {apiVersion: v1, kind: Pod, metadata: {name: p, strange: 1}, odd: 2}}}`)
	unknown, err := s.Prune(obj)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"metadata.odd", "other", "spec.list[0].c", "spec.pod.odd", "spec.z", "spec.pod.metadata.strange"}
	if !slices.Equal(unknown, want) {
		t.Errorf("unknown are %q", unknown)
	}
	s.Default(obj)
	b, err := json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(b); got != `{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"name":"m"},"spec":{"a":"x","list":[{"b":"v"},{"b":"w"}],"m":null,"open":{"q":1},"pod":{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"}}}}` {
		t.Errorf("became %s", got)
	}
	empty := value(t, "{}")
	s.Default(empty)
	if got := fmt.Sprint(empty); got != "map[spec:map[a:x m:1]]" {
		t.Errorf("defaults are %s", got)
	}
}

// A stored object that needs nothing is shown as it is; others are copied.
func TestFromStored(t *testing.T) {
	d := def(t, "{type: object, properties: {spec: {type: object, properties: {a: {type: string, default: x}}}}}")
	k, err := NewKind(d, "v1")
	if err != nil {
		t.Fatal(err)
	}
	whole := &unstructured.Unstructured{Object: value(t, "{apiVersion: example.com/v1, kind: Thing, metadata: {name: m}, spec: {a: b}}")}
	if out, err := k.FromStored(whole); err != nil || out != whole {
		t.Errorf("became %v (%v)", out, err)
	}
	old := &unstructured.Unstructured{Object: value(t, "{apiVersion: example.com/v1, kind: Thing, metadata: {name: m}, spec: {gone: 1}}")}
	before := old.DeepCopy()
	out, err := k.FromStored(old)
	if err != nil || fmt.Sprint(out.(*unstructured.Unstructured).Object["spec"]) != "map[a:x]" {
		t.Errorf("became %v (%v)", out, err)
	}
	if fmt.Sprint(old) != fmt.Sprint(before) {
		t.Error("the stored object was changed")
	}
}

// An object that was stored in another version keeps what that version knows
// for readers of that version, though the storage version has changed.
func TestOtherStoredVersion(t *testing.T) {
	d := def(t, "{type: object, properties: {a: {type: string}, b: {type: string, default: x}}}", func(d *Definition) {
		v := *d.Spec.Versions[0].DeepCopy()
		d.Spec.Versions[0].Storage = false
		v.Name, v.Schema.OpenAPIV3Schema.Properties = "v2", map[string]apiextensionsv1.JSONSchemaProps{"c": {Type: "string"}, "b": {Type: "string"}}
		d.Spec.Versions = append(d.Spec.Versions, v)
	})
	old := &unstructured.Unstructured{Object: value(t, "{apiVersion: example.com/v1, kind: Thing, metadata: {name: m}, a: w}")}
	for version, want := range map[string]string{"v1": "map[a:w apiVersion:example.com/v1 b:x kind:Thing metadata:map[name:m]]", "v2": "map[apiVersion:example.com/v2 b:x kind:Thing metadata:map[name:m]]"} {
		k, err := NewKind(d, version)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := k.FromStored(old); err != nil || fmt.Sprint(out.(*unstructured.Unstructured).Object) != want {
			t.Errorf("in version %s it is %v (%v)", version, out, err)
		}
		if made, err := k.ToStored(old); err != nil || of(made).GetAPIVersion() != "example.com/v2" || old.GetAPIVersion() != "example.com/v1" {
			t.Errorf("it is stored as %v (%v)", made, err)
		}
	}
}

// Whatever a request's body holds, cleaning, defaults and checks end, and what
// was cleaned once is clean.
func FuzzValue(f *testing.F) {
	for _, seed := range []string{`{"spec":{"a":null,"list":[{"b":1},null]},"metadata":{"x":1}}`, `{"metadata":[]}`, `{"spec":{"pod":{"metadata":{"name":3}}}}`} {
		f.Add(seed)
	}
	d := &Definition{}
	if err := yaml.Unmarshal([]byte(`{spec: {versions: [{name: v1, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, default: {}, properties: {
		a: {type: string, default: x, maxLength: 3}, list: {type: array, x-kubernetes-list-type: map, x-kubernetes-list-map-keys: [b], items: {type: object, required: [b], properties: {b: {type: string}}}},
		pod: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}, any: {x-kubernetes-int-or-string: true, anyOf: [{type: integer}, {type: string}]}}}}}}}]}}`), d); err != nil {
		f.Fatal(err)
	}
	s, err := newSchema(d.Spec.Versions[0].Schema)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		obj := map[string]any{}
		if json.Unmarshal([]byte(text), &obj) != nil || obj == nil {
			return
		}
		if _, err := s.Prune(obj); err != nil {
			return
		}
		s.Default(obj)
		s.validate(obj, nil)
		if again, err := s.Prune(obj); err != nil || len(again) > 0 {
			t.Errorf("what was cleaned has %q (%v)", again, err)
		}
	})
}

func TestNames(t *testing.T) {
	now := time.Unix(100, 0)
	named := func(plural, kind string, short ...string) *Definition {
		return def(t, anything, func(d *Definition) {
			d.Name, d.Spec.Names.Plural, d.Spec.Names.Kind, d.Spec.Names.ShortNames = plural+".example.com", plural, kind, short
		})
	}
	first, second := named("things", "Thing", "t"), named("others", "Thing", "t", "o")
	all := []*Definition{first, second}
	JudgeNames(first, all, now)
	if !IsTrue(first, NamesAccepted) || !IsTrue(first, Established) || first.Status.AcceptedNames.Kind != "Thing" {
		t.Errorf("first is %+v", first.Status)
	}
	JudgeNames(second, all, now)
	if c := Condition(second, NamesAccepted); IsTrue(second, Established) || c.Reason != "ListKindConflict" || c.Message != `"ThingList" is already in use` {
		t.Errorf("second is %+v", second.Status)
	}
	if n := second.Status.AcceptedNames; n.Plural != "others" || n.Kind != "" || len(n.ShortNames) > 0 {
		t.Errorf("second has %+v", n)
	}
	again := second.DeepCopy()
	JudgeNames(again, all, now.Add(time.Hour))
	if fmt.Sprint(again.Status) != fmt.Sprint(second.Status) {
		t.Error("judging again changes the status")
	}
	JudgeNames(second, []*Definition{second}, now)
	if !IsTrue(second, Established) || len(second.Status.AcceptedNames.ShortNames) != 2 {
		t.Errorf("alone, second is %+v", second.Status)
	}
}

func TestFormats(t *testing.T) {
	for format, values := range map[string]struct{ good, bad string }{
		"date":       {"2026-01-31", "2026-02-31"},
		"date-time":  {"2026-01-31T10:00:00Z", "2026-01-31"},
		"duration":   {"3 days", "3 moons"},
		"uuid":       {"6ba7b810-9dad-11d1-80b4-00c04fd430c8", "x"},
		"ipv4":       {"10.0.0.1", "::1"},
		"ipv6":       {"::1", "10.0.0.1"},
		"cidr":       {"10.0.0.0/8", "10.0.0.0"},
		"mac":        {"00:11:22:33:44:55", "x"},
		"email":      {"a@example.com", "a"},
		"hostname":   {"a.example.com", "-a"},
		"uri":        {"https://example.com", "example"},
		"byte":       {"YWJj", "?"},
		"hexcolor":   {"#fff", "#ff"},
		"isbn10":     {"0-321-75104-3", "0321751042"},
		"isbn13":     {"978-0321751041", "9780321751042"},
		"creditcard": {"4111 1111 1111 1111", "4111111111111112"},
	} {
		f := formatOf(format)
		if f == nil || !f(values.good) || f(values.bad) {
			t.Errorf("%s is not told apart", format)
		}
	}
}
