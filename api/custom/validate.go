package custom

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/kinds"
	"conclave/api/types"
)

// More selectable fields than this in one version are refused.
const maxSelectable = 8

// ValidateDefinition says what is wrong with a new definition.
func ValidateDefinition(d *Definition) field.ErrorList {
	name := func(name string, prefix bool) []string {
		why := apivalidation.NameIsDNSSubdomain(name, prefix)
		if name != d.Spec.Names.Plural+"."+d.Spec.Group {
			why = append(why, `must be spec.names.plural+"."+spec.group`)
		}
		return why
	}
	errs := kinds.ValidateMetadata(&d.ObjectMeta, nil, false, name, field.NewPath("metadata"))
	errs = append(errs, validateSpec(&d.Spec, nil)...)
	errs = append(errs, validateStatusOf(d)...)
	return append(errs, validateApproval(d, nil)...)
}

// ValidateDefinitionUpdate says what is wrong with a changed one.
func ValidateDefinitionUpdate(d, old *Definition) field.ErrorList {
	p := field.NewPath("spec")
	errs := kinds.ValidateMetadata(&d.ObjectMeta, &old.ObjectMeta, false, nil, field.NewPath("metadata"))
	errs = append(errs, validateSpec(&d.Spec, &old.Spec)...)
	if IsTrue(old, Established) {
		errs = append(errs, apivalidation.ValidateImmutableField(d.Spec.Scope, old.Spec.Scope, p.Child("scope"))...)
		errs = append(errs, apivalidation.ValidateImmutableField(d.Spec.Names.Kind, old.Spec.Names.Kind, p.Child("names", "kind"))...)
	}
	errs = append(errs, apivalidation.ValidateImmutableField(d.Spec.Group, old.Spec.Group, p.Child("group"))...)
	errs = append(errs, apivalidation.ValidateImmutableField(d.Spec.Names.Plural, old.Spec.Names.Plural, p.Child("names", "plural"))...)
	errs = append(errs, validateStatusOf(d)...)
	return append(errs, validateApproval(d, old)...)
}

func validateDefinitionStatus(d, old *Definition) field.ErrorList {
	errs := kinds.ValidateMetadata(&d.ObjectMeta, &old.ObjectMeta, false, nil, field.NewPath("metadata"))
	return append(errs, validateNames(&d.Status.AcceptedNames, field.NewPath("status", "acceptedNames"))...)
}

// validateStatusOf is of the parts of the status that follow from the spec.
func validateStatusOf(d *Definition) field.ErrorList {
	p := field.NewPath("status")
	errs := validateNames(&d.Status.AcceptedNames, p.Child("acceptedNames"))
	stored, p := d.Status.StoredVersions, p.Child("storedVersions")
	if len(stored) == 0 {
		return append(errs, field.Invalid(p, stored, "must have at least one stored version"))
	}
	if v := StorageVersion(d); v != "" && !slices.Contains(stored, v) {
		errs = append(errs, field.Invalid(p, stored, "must have the storage version "+v))
	}
	for i, v := range stored {
		if versionOf(d, v) == nil {
			errs = append(errs, field.Invalid(p.Index(i), v, fmt.Sprintf("missing from spec.versions; %[1]s was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in %[1]s and removes %[1]s from status.storedVersions", v)))
		}
	}
	return errs
}

// validateSpec is of a definition that may have been another before: old is nil
// for a new one.
func validateSpec(s, old *apiextensionsv1.CustomResourceDefinitionSpec) (errs field.ErrorList) {
	p := field.NewPath("spec")
	add := func(e ...*field.Error) { errs = append(errs, e...) }
	if s.Group == "" {
		add(field.Required(p.Child("group"), ""))
	} else if why := validation.IsDNS1123Subdomain(s.Group); len(why) > 0 {
		add(field.Invalid(p.Child("group"), s.Group, strings.Join(why, ",")))
	} else if !strings.Contains(s.Group, ".") {
		add(field.Invalid(p.Child("group"), s.Group, "should be a domain with at least one dot"))
	}
	add(oneOf(p.Child("scope"), s.Scope, apiextensionsv1.ClusterScoped, apiextensionsv1.NamespaceScoped)...)
	storage, names := 0, map[string]bool{}
	for i := range s.Versions {
		v, vp := &s.Versions[i], p.Child("versions").Index(i)
		if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
			add(field.Required(vp.Child("schema", "openAPIV3Schema"), ""))
		}
		if v.Storage {
			storage++
		}
		names[v.Name] = true
		if why := validation.IsDNS1035Label(v.Name); len(why) > 0 {
			add(field.Invalid(vp.Child("name"), v.Name, strings.Join(why, ",")))
		}
		add(validateVersion(s, old, v, vp)...)
	}
	add(validateShared(s, old, p)...)
	if len(names) != len(s.Versions) {
		add(field.Invalid(p.Child("versions"), s.Versions, "must contain unique version names"))
	}
	if storage != 1 {
		add(field.Invalid(p.Child("versions"), s.Versions, "must have exactly one version marked as storage version"))
	}
	for _, required := range []struct{ name, value string }{
		{"plural", s.Names.Plural}, {"singular", s.Names.Singular}, {"kind", s.Names.Kind}, {"listKind", s.Names.ListKind},
	} {
		if required.value == "" {
			add(field.Required(p.Child("names", required.name), ""))
		}
	}
	add(validateNames(&s.Names, p.Child("names"))...)
	if s.PreserveUnknownFields {
		add(field.Invalid(p.Child("preserveUnknownFields"), true, "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"))
	}
	add(validateConversion(s, p.Child("conversion"))...)
	return errs
}

// What all versions have alike, Kubernetes judges once, and names it as it was
// in the days when all versions shared it.

func alike[T any](s *apiextensionsv1.CustomResourceDefinitionSpec, part func(*apiextensionsv1.CustomResourceDefinitionVersion) T, none func(T) bool) bool {
	if len(s.Versions) == 0 {
		return false
	}
	first := part(&s.Versions[0])
	return !none(first) && !slices.ContainsFunc(s.Versions, func(v apiextensionsv1.CustomResourceDefinitionVersion) bool {
		return !equality.Semantic.DeepEqual(part(&v), first)
	})
}

type version = apiextensionsv1.CustomResourceDefinitionVersion

func sharedSchema(s *apiextensionsv1.CustomResourceDefinitionSpec) bool {
	return alike(s, func(v *version) *apiextensionsv1.CustomResourceValidation { return v.Schema }, func(x *apiextensionsv1.CustomResourceValidation) bool { return x == nil })
}

func sharedSubresources(s *apiextensionsv1.CustomResourceDefinitionSpec) bool {
	return alike(s, func(v *version) *apiextensionsv1.CustomResourceSubresources { return v.Subresources }, func(x *apiextensionsv1.CustomResourceSubresources) bool { return x == nil })
}

func sharedColumns(s *apiextensionsv1.CustomResourceDefinitionSpec) bool {
	return alike(s, func(v *version) []apiextensionsv1.CustomResourceColumnDefinition { return v.AdditionalPrinterColumns }, func(x []apiextensionsv1.CustomResourceColumnDefinition) bool { return len(x) == 0 })
}

func validateShared(s, old *apiextensionsv1.CustomResourceDefinitionSpec, p *field.Path) (errs field.ErrorList) {
	if len(s.Versions) == 0 {
		return nil
	}
	v := &s.Versions[0]
	if sharedSchema(s) {
		status := slices.ContainsFunc(s.Versions, func(v version) bool { return hasStatus(&v) })
		errs = append(errs, validateSchema(v.Schema, status, knownSchema(v, old), p.Child("validation"))...)
	}
	if sharedSubresources(s) {
		errs = append(errs, validateSubresources(v.Subresources, p.Child("subresources"))...)
	}
	if sharedColumns(s) {
		errs = append(errs, validateColumns(v.AdditionalPrinterColumns, p.Child("additionalPrinterColumns"))...)
	}
	return errs
}

// knownSchema says that a version had the same schema before: its rules were
// judged then, and are not refused now for costing too much.
func knownSchema(v *version, old *apiextensionsv1.CustomResourceDefinitionSpec) bool {
	return old != nil && slices.ContainsFunc(old.Versions, func(o version) bool {
		return o.Name == v.Name && equality.Semantic.DeepEqual(o.Schema, v.Schema)
	})
}

func hasStatus(v *version) bool { return v.Subresources != nil && v.Subresources.Status != nil }

func validateVersion(s, old *apiextensionsv1.CustomResourceDefinitionSpec, v *version, p *field.Path) (errs field.ErrorList) {
	for _, why := range badDeprecation(v) {
		errs = append(errs, field.Invalid(p.Child("deprecationWarning"), v.DeprecationWarning, why))
	}
	if !sharedSchema(s) {
		errs = append(errs, validateSchema(v.Schema, hasStatus(v), knownSchema(v, old), p.Child("schema"))...)
	}
	if !sharedSubresources(s) {
		errs = append(errs, validateSubresources(v.Subresources, p.Child("subresources"))...)
	}
	if !sharedColumns(s) {
		errs = append(errs, validateColumns(v.AdditionalPrinterColumns, p.Child("additionalPrinterColumns"))...)
	}
	return append(errs, validateSelectable(v, p.Child("selectableFields"))...)
}

func badDeprecation(v *version) (why []string) {
	w := v.DeprecationWarning
	if w == nil {
		return nil
	}
	if !v.Deprecated {
		return []string{"can only be set for deprecated versions"}
	}
	if len(*w) > 256 {
		why = append(why, "must be <= 256 characters long")
	}
	if *w == "" {
		why = append(why, "must not be an empty string")
	}
	for i, r := range *w {
		if !unicode.IsPrint(r) {
			why = append(why, fmt.Sprintf("must only contain printable UTF-8 characters; non-printable character found at index %d", i))
			break
		}
	}
	if !utf8.ValidString(*w) {
		why = append(why, "must only contain printable UTF-8 characters")
	}
	return why
}

func oneOf[T ~string](p *field.Path, value T, allowed ...T) field.ErrorList {
	switch {
	case value == "":
		return field.ErrorList{field.Required(p, "")}
	case !slices.Contains(allowed, value):
		return field.ErrorList{field.NotSupported(p, value, allowed)}
	}
	return nil
}

func validateNames(n *apiextensionsv1.CustomResourceDefinitionNames, p *field.Path) (errs field.ErrorList) {
	label := func(p *field.Path, value, checked, mixed string) {
		if why := validation.IsDNS1035Label(checked); checked != "" && len(why) > 0 {
			errs = append(errs, field.Invalid(p, value, mixed+strings.Join(why, ",")))
		}
	}
	const mixed = "may have mixed case, but should otherwise match: "
	label(p.Child("plural"), n.Plural, n.Plural, "")
	label(p.Child("singular"), n.Singular, n.Singular, "")
	label(p.Child("kind"), n.Kind, strings.ToLower(n.Kind), mixed)
	label(p.Child("listKind"), n.ListKind, strings.ToLower(n.ListKind), mixed)
	list := func(name string, values []string) {
		for i, v := range values {
			if why := validation.IsDNS1035Label(v); len(why) > 0 {
				errs = append(errs, field.Invalid(p.Child(name).Index(i), v, strings.Join(why, ",")))
			}
		}
	}
	list("shortNames", n.ShortNames)
	if n.Kind != "" && n.Kind == n.ListKind {
		errs = append(errs, field.Invalid(p.Child("listKind"), n.ListKind, "kind and listKind may not be the same"))
	}
	list("categories", n.Categories)
	return errs
}

var (
	columnTypes   = []string{"boolean", "date", "integer", "number", "string"}
	columnFormats = []string{"byte", "date", "date-time", "double", "float", "int32", "int64", "password"}
)

func validateColumns(list []apiextensionsv1.CustomResourceColumnDefinition, p *field.Path) (errs field.ErrorList) {
	for i := range list {
		c, p := &list[i], p.Index(i)
		if c.Name == "" {
			errs = append(errs, field.Required(p.Child("name"), ""))
		}
		must := "must be one of " + strings.Join(columnTypes, ",")
		if c.Type == "" {
			errs = append(errs, field.Required(p.Child("type"), must))
		} else if !slices.Contains(columnTypes, c.Type) {
			errs = append(errs, field.Invalid(p.Child("type"), c.Type, must))
		}
		if c.Format != "" && !slices.Contains(columnFormats, c.Format) {
			errs = append(errs, field.Invalid(p.Child("format"), c.Format, "must be one of "+strings.Join(columnFormats, ",")))
		}
		if c.JSONPath == "" {
			errs = append(errs, field.Required(p.Child("JSONPath"), ""))
		} else {
			errs = append(errs, simplePath(c.JSONPath, p.Child("JSONPath"))...)
		}
	}
	return errs
}

func simplePath(s string, p *field.Path) field.ErrorList {
	if !strings.HasPrefix(s, ".") {
		return field.ErrorList{field.Invalid(p, s, "must be a simple json path starting with .")}
	}
	return nil
}

func validateSubresources(s *apiextensionsv1.CustomResourceSubresources, p *field.Path) (errs field.ErrorList) {
	if s == nil || s.Scale == nil {
		return nil
	}
	below := func(name, path string, required bool, where string, roots ...string) {
		p := p.Child("scale." + name)
		if path == "" {
			if required {
				errs = append(errs, field.Required(p, ""))
			}
			return
		}
		if bad := simplePath(path, p); len(bad) > 0 {
			errs = append(errs, bad...)
		} else if !slices.ContainsFunc(roots, func(root string) bool { return strings.HasPrefix(path, root) }) {
			errs = append(errs, field.Invalid(p, path, "should be a json path under "+where))
		}
	}
	below("specReplicasPath", s.Scale.SpecReplicasPath, true, ".spec", ".spec.")
	below("statusReplicasPath", s.Scale.StatusReplicasPath, true, ".status", ".status.")
	if s.Scale.LabelSelectorPath != nil {
		below("labelSelectorPath", *s.Scale.LabelSelectorPath, false, "either .spec or .status", ".spec.", ".status.")
	}
	return errs
}

func validateSelectable(v *version, p *field.Path) (errs field.ErrorList) {
	if len(v.SelectableFields) == 0 {
		return nil
	}
	if v.Schema == nil || v.Schema.OpenAPIV3Schema == nil {
		return field.ErrorList{field.Invalid(p, "", "may only be set when `version.schema.openAPIV3Schema` is not included")}
	}
	s, err := toStructural(v.Schema.OpenAPIV3Schema)
	if err != nil {
		return nil // told with the schema
	}
	seen := map[string]bool{}
	for i, f := range v.SelectableFields {
		p := p.Index(i).Child("jsonPath")
		if f.JSONPath == "" {
			errs = append(errs, field.Required(p, ""))
			continue
		}
		at, err := fieldAt(s, f.JSONPath)
		if err != nil {
			errs = append(errs, field.Invalid(p, f.JSONPath, fmt.Sprintf("is an invalid path: %v", err)))
			continue
		}
		if steps(f.JSONPath)[0] == "metadata" {
			errs = append(errs, field.Invalid(p, f.JSONPath, "must not point to fields in metadata"))
		}
		if at.Type != "string" && at.Type != "boolean" && at.Type != "integer" {
			errs = append(errs, field.Invalid(p, f.JSONPath, "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed."))
		}
		if seen[f.JSONPath] {
			errs = append(errs, field.Duplicate(p, f.JSONPath))
		}
		seen[f.JSONPath] = true
	}
	if len(seen) > maxSelectable {
		errs = append(errs, field.TooMany(p, len(seen), maxSelectable))
	}
	return errs
}

// fieldAt is the schema of the field that a path such as ".spec.color" names.
func fieldAt(s *structural.Structural, path string) (*structural.Structural, error) {
	if !strings.HasPrefix(path, ".") || strings.ContainsAny(path, "[]'\"") {
		return nil, fmt.Errorf("expected a path of names with dots before them, got %q", path)
	}
	for _, name := range steps(path) {
		p, ok := s.Properties[name]
		if !ok {
			return nil, fmt.Errorf("does not refer to a valid field: %q is not in the schema", name)
		}
		s = &p
	}
	return s, nil
}

func validateConversion(s *apiextensionsv1.CustomResourceDefinitionSpec, p *field.Path) (errs field.ErrorList) {
	c := s.Conversion
	if c == nil {
		return nil
	}
	errs = oneOf(p.Child("strategy"), c.Strategy, apiextensionsv1.NoneConverter, apiextensionsv1.WebhookConverter)
	w := c.Webhook
	if c.Strategy != apiextensionsv1.WebhookConverter {
		if w != nil && w.ClientConfig != nil {
			errs = append(errs, field.Forbidden(p.Child("webhookClientConfig"), "should not be set when strategy is not set to Webhook"))
		}
		if w != nil && len(w.ConversionReviewVersions) > 0 {
			errs = append(errs, field.Forbidden(p.Child("conversionReviewVersions"), "should not be set when strategy is not set to Webhook"))
		}
		return errs
	}
	if w == nil || w.ClientConfig == nil {
		errs = append(errs, field.Required(p.Child("webhookClientConfig"), "required when strategy is set to Webhook"))
	} else {
		cc := ClientConfig(w.ClientConfig)
		errs = append(errs, kinds.ValidateClientConfig(&cc, p.Child("webhookClientConfig"))...)
	}
	if w == nil || len(w.ConversionReviewVersions) == 0 {
		errs = append(errs, field.Required(p.Child("conversionReviewVersions"), ""))
	} else if !slices.Contains(w.ConversionReviewVersions, "v1") && !slices.Contains(w.ConversionReviewVersions, "v1beta1") {
		errs = append(errs, field.Invalid(p.Child("conversionReviewVersions"), w.ConversionReviewVersions, "must include at least one of v1, v1beta1"))
	}
	return errs
}

// ClientConfig is the way to a definition's webhook.
func ClientConfig(c *apiextensionsv1.WebhookClientConfig) types.WebhookClientConfig {
	out := types.WebhookClientConfig{URL: c.URL, CABundle: c.CABundle}
	if s := c.Service; s != nil {
		out.Service = &types.ServiceReference{Namespace: s.Namespace, Name: s.Name, Path: s.Path, Port: s.Port}
	}
	return out
}

// validateApproval is of groups that are Kubernetes' own to give away.
func validateApproval(d, old *Definition) field.ErrorList {
	g := "." + d.Spec.Group
	if !strings.HasSuffix(g, ".k8s.io") && !strings.HasSuffix(g, ".kubernetes.io") {
		return nil
	}
	const key = apiextensionsv1.KubeAPIApprovedAnnotation
	state := func(value string) string {
		u, err := url.ParseRequestURI(value)
		switch {
		case value == "":
			return "missing"
		case strings.HasPrefix(value, "unapproved"):
			return "bypassed"
		case err == nil && u.Host != "" && u.Scheme != "":
			return "approved"
		}
		return "invalid"
	}
	value := d.Annotations[key]
	is := state(value)
	if old != nil && state(old.Annotations[key]) == is {
		return nil
	}
	const see = ", see https://github.com/kubernetes/enhancements/pull/1111"
	switch p := field.NewPath("metadata", "annotations").Key(key); is {
	case "missing":
		return field.ErrorList{field.Required(p, fmt.Sprintf("protected groups must have approval annotation %q", key)+see)}
	case "invalid":
		return field.ErrorList{field.Invalid(p, value, fmt.Sprintf("protected groups must have approval annotation %q with either a URL or a reason starting with \"unapproved\"", key)+see)}
	}
	return nil
}
