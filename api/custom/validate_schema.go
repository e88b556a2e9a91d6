package custom

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/custom/rules"
)

var (
	schemaTypes = []string{"array", "boolean", "integer", "number", "object", "string"}
	// What the root may say where the status is a subresource: so that what is
	// said of the status is in its own schema.
	rootFields = []string{
		"Description", "Type", "Format", "Title", "Maximum", "ExclusiveMaximum", "Minimum", "ExclusiveMinimum", "MaxLength", "MinLength", "Pattern",
		"MaxItems", "MinItems", "UniqueItems", "MultipleOf", "Required", "Items", "Properties", "ExternalDocs", "Example", "XPreserveUnknownFields", "XValidations",
	}
)

// validateSchema says what is wrong with the schema of a version. Of a known one
// the rules are not looked at again.
func validateSchema(v *apiextensionsv1.CustomResourceValidation, status, known bool, p *field.Path) (errs field.ErrorList) {
	if v == nil || v.OpenAPIV3Schema == nil {
		return nil
	}
	s, p := v.OpenAPIV3Schema, p.Child("openAPIV3Schema")
	if status {
		errs = append(errs, validateRoot(s, p)...)
	}
	if s.Nullable {
		errs = append(errs, field.Forbidden(p.Child("nullable"), "nullable cannot be true at the root"))
	}
	var judge rules.Judge
	look := schemaJudge{root: true}
	ss, err := toStructural(s)
	if err == nil {
		if bad := structural.ValidateStructural(p, ss); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if bad := (&defaults{known: known, budget: rules.Budget}).validate(ss, true, p); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if !known {
			look.rules = judge.Root(ss)
		}
	}
	errs = append(errs, look.judge(s, p)...)
	if len(errs) == 0 && err != nil {
		errs = append(errs, field.Invalid(p, "", err.Error()))
	}
	return append(errs, judge.Errors(p)...)
}

func validateRoot(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			continue
		}
		name := v.Type().Field(i).Name
		if name == "Type" {
			if s.Type != "object" {
				return append(errs, field.Invalid(p.Child("type"), s.Type, `only "object" is allowed as the type at the root of the schema if the status subresource is enabled`))
			}
			continue
		}
		if !slices.Contains(rootFields, name) {
			return append(errs, field.Invalid(p, *s, fmt.Sprintf("only %v fields are allowed at the root of the schema if the status subresource is enabled", rootFields)))
		}
	}
	return errs
}

// defaults says which defaults would not be valid values, and which break rules,
// unless the rules are known.
type defaults struct {
	known  bool
	budget int64 // what the rules may cost yet
}

func (d *defaults) validate(s *structural.Structural, root bool, p *field.Path) (errs field.ErrorList) {
	if s == nil || d.budget < 0 {
		return nil
	}
	errs = d.one(s, root, p)
	errs = append(errs, d.validate(s.Items, false, p.Child("items"))...)
	for _, name := range sortedKeys(s.Properties) {
		below := s.Properties[name]
		errs = append(errs, d.validate(&below, false, p.Child("properties").Key(name))...)
	}
	return errs
}

func (d *defaults) one(s *structural.Structural, root bool, p *field.Path) (errs field.ErrorList) {
	value := s.Default.Object
	if value == nil {
		return nil
	}
	p = p.Child("default")
	pruned := runtime.DeepCopyJSONValue(value)
	pruning.Prune(pruned, s, s.XEmbeddedResource)
	if !reflect.DeepEqual(pruned, value) {
		errs = append(errs, field.Invalid(p, value, "must not have unknown fields"))
	}
	if _, err := coerceEmbedded(pruned, s, ""); err != nil {
		return append(errs, field.Invalid(p, value, fmt.Sprintf("must result in valid metadata: %v", err)))
	}
	if bad := validateEmbedded(p, value, s); len(bad) > 0 {
		return append(errs, bad...)
	}
	if bad := checkValue(p, value, nil, compile(s)); len(bad) > 0 || d.known {
		return append(errs, bad...)
	}
	return append(errs, d.rules(s, root, value, p)...)
}

// rules asks the rules about a default twice: it may be there already when an
// object changes, and it may come with the object.
func (d *defaults) rules(s *structural.Structural, root bool, value any, p *field.Path) field.ErrorList {
	all := rules.Compile(s, root || s.XEmbeddedResource)
	errs, _, left := all.Check(p, value, value, false, d.budget)
	if len(errs) == 0 {
		bad, _, fresh := all.Check(p, value, nil, false, d.budget)
		errs, left = bad, min(left, fresh)
	}
	d.budget = left
	return errs
}

// schemaJudge walks through a schema. What it knows of the way down: whether it
// is at the root, inside a resource's own fields, and why there may be no
// defaults here, if there may not, and whether rules are judged.
type schemaJudge struct {
	root, meta bool
	noDefault  string
	rules      *rules.Place
}

func (j schemaJudge) judge(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	if s == nil {
		return nil
	}
	errs = j.refused(s, p)
	errs = append(errs, validateExtensions(s, p)...)
	errs = append(errs, validateRules(s, p)...)
	below := j
	below.root, below.rules = false, nil
	into := func(j schemaJudge, s *apiextensionsv1.JSONSchemaProps, p *field.Path) {
		errs = append(errs, j.judge(s, p)...)
	}
	if a := s.AdditionalProperties; a != nil {
		if len(s.Properties) > 0 && (!a.Allows || a.Schema != nil) {
			errs = append(errs, field.Forbidden(p.Child("additionalProperties"), "additionalProperties and properties are mutual exclusive"))
		}
		inside := below
		if j.meta {
			inside.noDefault = "inside additionalProperties applying to object metadata"
		}
		inside.rules = j.rules.Values()
		into(inside, a.Schema, p.Child("additionalProperties"))
	}
	for _, name := range sortedKeys(s.Properties) {
		inside := below
		inside.rules = j.rules.Property(name)
		if (j.root || s.XEmbeddedResource) && slices.Contains([]string{"metadata", "kind", "apiVersion"}, name) {
			inside.meta = true
			if j.root {
				inside.noDefault = "in top-level " + name
			}
		}
		property := s.Properties[name]
		into(inside, &property, p.Child("properties").Key(name))
	}
	into(below, s.Not, p.Child("not"))
	for _, list := range []struct {
		name    string
		schemas []apiextensionsv1.JSONSchemaProps
	}{{"allOf", s.AllOf}, {"oneOf", s.OneOf}, {"anyOf", s.AnyOf}} {
		for i := range list.schemas {
			into(below, &list.schemas[i], p.Child(list.name).Index(i))
		}
	}
	if s.Items != nil {
		below.rules = j.rules.Items(p)
		into(below, s.Items.Schema, p.Child("items"))
	}
	if len(errs) == 0 { // else the types of CEL may not be what they will be
		j.rules.Judge(p)
	}
	return errs
}

// refused is what a schema may not use.
func (j schemaJudge) refused(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	forbid := func(is bool, name, why string) {
		if is {
			errs = append(errs, field.Forbidden(p.Child(name), why))
		}
	}
	if s.Type != "" && !slices.Contains(schemaTypes, s.Type) {
		errs = append(errs, field.NotSupported(p.Child("type"), s.Type, schemaTypes))
	}
	forbid(s.Default != nil && j.noDefault != "", "default", "must not be set "+j.noDefault)
	forbid(s.ID != "", "id", "id is not supported")
	forbid(s.AdditionalItems != nil, "additionalItems", "additionalItems is not supported")
	forbid(len(s.PatternProperties) > 0, "patternProperties", "patternProperties is not supported")
	forbid(len(s.Definitions) > 0, "definitions", "definitions is not supported")
	forbid(s.Dependencies != nil, "dependencies", "dependencies is not supported")
	forbid(s.Ref != nil, "$ref", "$ref is not supported")
	forbid(s.Type == "null", "type", "type cannot be set to null, use nullable as an alternative")
	forbid(s.Items != nil && len(s.Items.JSONSchemas) > 0, "items", "items must be a schema object and not an array")
	forbid(j.meta && s.XEmbeddedResource, "x-kubernetes-embedded-resource", "must not be used inside of resource meta")
	forbid(s.UniqueItems, "uniqueItems", "uniqueItems cannot be set to true since the runtime complexity becomes quadratic")
	return errs
}

// validateExtensions is of Kubernetes' own fields about lists and maps.
func validateExtensions(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	add := func(e *field.Error) { errs = append(errs, e) }
	if x := s.XPreserveUnknownFields; x != nil && !*x {
		add(field.Invalid(p.Child("x-kubernetes-preserve-unknown-fields"), *x, "must be true or undefined"))
	}
	ofType := func(kind, extension string) {
		why := fmt.Sprintf("must be %s if %s is specified", kind, extension)
		if s.Type == "" {
			add(field.Required(p.Child("type"), why))
		} else if s.Type != kind {
			add(field.Invalid(p.Child("type"), s.Type, why))
		}
	}
	if x := s.XMapType; x != nil {
		ofType("object", "x-kubernetes-map-type")
		if *x != "atomic" && *x != "granular" {
			add(field.NotSupported(p.Child("x-kubernetes-map-type"), *x, []string{"atomic", "granular"}))
		}
	}
	if len(s.XListMapKeys) > 0 {
		const why = "must be map if x-kubernetes-list-map-keys is non-empty"
		if s.XListType == nil {
			add(field.Required(p.Child("x-kubernetes-list-type"), why))
		} else if *s.XListType != "map" {
			add(field.Invalid(p.Child("x-kubernetes-list-type"), *s.XListType, why))
		}
	}
	if s.XListType == nil {
		return errs
	}
	ofType("array", "x-kubernetes-list-type")
	switch *s.XListType {
	case "atomic":
	case "set":
		errs = append(errs, validateSet(s, p)...)
	case "map":
		errs = append(errs, validateMap(s, p)...)
	default:
		add(field.NotSupported(p.Child("x-kubernetes-list-type"), *s.XListType, []string{"atomic", "set", "map"}))
	}
	return errs
}

func validateSet(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	if s.Items == nil || s.Items.Schema == nil {
		return nil
	}
	items, p := s.Items.Schema, p.Child("items")
	const why = "must be atomic as item of a list with x-kubernetes-list-type=set"
	switch {
	case items.Type == "array" && items.XListType != nil && *items.XListType != "atomic":
		errs = append(errs, field.Invalid(p.Child("x-kubernetes-list-type"), *items.XListType, why))
	case items.Type == "object" && (items.XMapType == nil || *items.XMapType != "atomic"):
		errs = append(errs, field.Invalid(p.Child("x-kubernetes-map-type"), items.XMapType, why))
	}
	if items.Nullable {
		errs = append(errs, field.Forbidden(p.Child("nullable"), "cannot be nullable when x-kubernetes-list-type is set"))
	}
	return errs
}

func validateMap(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	add := func(e *field.Error) { errs = append(errs, e) }
	keysPath := p.Child("x-kubernetes-list-map-keys")
	if len(s.XListMapKeys) == 0 {
		add(field.Required(keysPath, "must not be empty if x-kubernetes-list-type is map"))
	}
	if s.Items == nil {
		add(field.Required(p.Child("items"), "must have a schema if x-kubernetes-list-type is map"))
		return errs
	}
	items := s.Items.Schema
	if items == nil {
		add(field.Invalid(p.Child("items"), s.Items, "must only have a single schema if x-kubernetes-list-type is map"))
		return errs
	}
	if items.Type != "object" {
		add(field.Invalid(p.Child("items", "type"), items.Type, "must be object if parent array's x-kubernetes-list-type is map"))
		return errs
	}
	if items.Nullable {
		add(field.Forbidden(p.Child("items", "nullable"), "cannot be nullable when x-kubernetes-list-type is map"))
	}
	seen := map[string]bool{}
	for _, key := range s.XListMapKeys {
		if seen[key] {
			add(field.Invalid(keysPath, s.XListMapKeys, "must not contain duplicate entries"))
		}
		seen[key] = true
		property, ok := items.Properties[key]
		if !ok {
			add(field.Invalid(keysPath, s.XListMapKeys, "entries must all be names of item properties"))
			continue
		}
		p := p.Child("items", "properties").Key(key)
		if property.Type == "array" || property.Type == "object" {
			add(field.Invalid(p.Child("type"), items.Type, "must be a scalar type if parent array's x-kubernetes-list-type is map"))
		}
		if !slices.Contains(items.Required, key) && property.Default == nil {
			add(field.Required(p.Child("default"), "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property"))
		}
		if property.Nullable {
			add(field.Forbidden(p.Child("nullable"), "this property is in x-kubernetes-list-map-keys, so it cannot be nullable"))
		}
	}
	return errs
}

var ruleReasons = []apiextensionsv1.FieldValueErrorReason{
	apiextensionsv1.FieldValueDuplicate, apiextensionsv1.FieldValueForbidden, apiextensionsv1.FieldValueInvalid, apiextensionsv1.FieldValueRequired,
}

// hasPath says whether a schema knows a path; of one that cannot be read
// something else is said.
func hasPath(s *apiextensionsv1.JSONSchemaProps, path string) bool {
	ss, err := toStructural(s)
	if err != nil {
		return true
	}
	_, err = rules.Path(path, ss)
	return err == nil
}

// validateRules is of what can be said of a rule without running it.
func validateRules(s *apiextensionsv1.JSONSchemaProps, p *field.Path) (errs field.ErrorList) {
	lines := func(s string) bool { return strings.ContainsAny(s, "\n\r") }
	for i, r := range s.XValidations {
		p := p.Child("x-kubernetes-validations").Index(i)
		rule, message := strings.TrimSpace(r.Rule), strings.TrimSpace(r.Message)
		switch {
		case rule == "":
			errs = append(errs, field.Required(p.Child("rule"), "rule is not specified"))
		case r.Message != "" && message == "":
			errs = append(errs, field.Invalid(p.Child("message"), r.Message, "must be non-empty if specified"))
		case lines(message):
			errs = append(errs, field.Invalid(p.Child("message"), r.Message, "must not contain line breaks"))
		case lines(rule) && message == "":
			errs = append(errs, field.Required(p.Child("message"), "message must be specified if rule contains line breaks"))
		}
		if r.MessageExpression != "" && strings.TrimSpace(r.MessageExpression) == "" {
			errs = append(errs, field.Required(p.Child("messageExpression"), "messageExpression must be non-empty if specified"))
		}
		if r.Reason != nil && !slices.Contains(ruleReasons, *r.Reason) {
			errs = append(errs, field.NotSupported(p.Child("reason"), *r.Reason, ruleReasons))
		}
		if r.FieldPath != "" && strings.TrimSpace(r.FieldPath) == "" {
			errs = append(errs, field.Invalid(p.Child("fieldPath"), r.FieldPath, "must be non-empty if specified"))
		}
		if lines(r.FieldPath) {
			errs = append(errs, field.Invalid(p.Child("fieldPath"), r.FieldPath, "must not contain line breaks"))
		}
		if r.FieldPath != "" && !hasPath(s, r.FieldPath) {
			errs = append(errs, field.Invalid(p.Child("fieldPath"), r.FieldPath, "must be a valid path"))
		}
	}
	return errs
}
