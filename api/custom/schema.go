package custom

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	runtimeschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"

	"conclave/api/custom/rules"
	"conclave/api/kinds"
)

// Schema is what a version says of its objects' form. It is read-only but for
// the checks and the rules, which are compiled when the first value is validated.
type Schema struct {
	structural *structural.Structural // nil: nothing is said
	root       *structural.Structural // the same, as a resource with its metadata
	checks     func() *node
	rules      func() *rules.Rules // nil: there are none
	// lenient is true once a broken rule was let be, because nothing had changed
	// where it stands: from then on, writers may have to be told of such.
	lenient atomic.Bool
}

// newSchema reads a version's schema. Where the version says nothing, all
// fields are kept (such definitions are older than ours can be).
func newSchema(v *apiextensionsv1.CustomResourceValidation) (*Schema, error) {
	s := &Schema{checks: func() *node { return nil }, rules: func() *rules.Rules { return nil }}
	if v == nil || v.OpenAPIV3Schema == nil {
		return s, nil
	}
	var err error
	if s.structural, err = toStructural(v.OpenAPIV3Schema); err != nil {
		return nil, err
	}
	root := *s.structural
	root.XEmbeddedResource = true
	s.root = &root
	s.checks = sync.OnceValue(func() *node { return compile(s.structural) })
	s.rules = sync.OnceValue(func() *rules.Rules { return rules.Compile(s.structural, true) })
	return s, nil
}

func toStructural(props *apiextensionsv1.JSONSchemaProps) (*structural.Structural, error) {
	var in apiextensions.JSONSchemaProps
	if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(props, &in, nil); err != nil {
		return nil, fmt.Errorf("read the schema: %w", err)
	}
	return structural.NewStructural(&in)
}

// Prune removes from an object what the schema does not know, and from its
// metadata and that of embedded objects what metadata does not have. It returns
// the paths of what it removed. An error is of metadata that cannot be read.
func (s *Schema) Prune(obj map[string]any) (unknown []string, err error) {
	if unknown, err = coerceMetadata(obj, ""); err != nil {
		return unknown, err
	}
	if s.structural == nil {
		return unknown, nil
	}
	unknown = append(unknown, pruning.PruneWithOptions(obj, s.structural, true, structural.UnknownFieldPathOptions{TrackUnknownFieldPaths: true})...)
	dropNulls(obj, s.structural)
	more, err := coerceEmbedded(obj, s.structural, "")
	return append(unknown, more...), err
}

// trim is Prune of an object whose metadata is as it must be.
func (s *Schema) trim(obj map[string]any) {
	if s.structural == nil {
		return
	}
	pruning.Prune(obj, s.structural, true)
	dropNulls(obj, s.structural)
}

// Default fills in the defaults of what is missing, and of nulls where there may
// be none.
func (s *Schema) Default(obj map[string]any) { fillDefaults(obj, s.structural) }

func fillDefaults(x any, s *structural.Structural) {
	if s == nil {
		return
	}
	replace := func(v any, s *structural.Structural) (any, bool) {
		if v == nil && s != nil && !s.Nullable && s.Default.Object != nil {
			return runtime.DeepCopyJSONValue(s.Default.Object), true
		}
		return v, false
	}
	switch x := x.(type) {
	case map[string]any:
		for name, p := range s.Properties {
			if p.Default.Object == nil {
				continue
			}
			if v, ok := x[name]; !ok || v == nil && !p.Nullable {
				x[name] = runtime.DeepCopyJSONValue(p.Default.Object)
			}
		}
		for name, v := range x {
			below := property(s, name)
			if v, replaced := replace(v, below); replaced {
				x[name] = v
			}
			fillDefaults(x[name], below)
		}
	case []any:
		for i := range x {
			if v, replaced := replace(x[i], s.Items); replaced {
				x[i] = v
			}
			fillDefaults(x[i], s.Items)
		}
	}
}

// property is the schema of a field, nil if nothing is said of it.
func property(s *structural.Structural, name string) *structural.Structural {
	if s == nil {
		return nil
	}
	if p, ok := s.Properties[name]; ok {
		return &p
	}
	if s.AdditionalProperties != nil {
		return s.AdditionalProperties.Structural
	}
	return nil
}

// dropNulls removes fields that are null, may not be and have no default, as
// decoding into Go's types does.
func dropNulls(x any, s *structural.Structural) {
	switch x := x.(type) {
	case map[string]any:
		for name, v := range x {
			p := property(s, name)
			if v == nil && p != nil && !p.Nullable && p.Default.Object == nil {
				delete(x, name)
				continue
			}
			dropNulls(v, p)
		}
	case []any:
		var items *structural.Structural
		if s != nil {
			items = s.Items
		}
		for _, v := range x {
			dropNulls(v, items)
		}
	}
}

// coerceMetadata makes an object's metadata what ObjectMeta can hold.
func coerceMetadata(obj map[string]any, path string) (unknown []string, err error) {
	raw, ok := obj["metadata"]
	if !ok {
		return nil, nil
	}
	data, err := json.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	var meta metav1.ObjectMeta
	strict, err := kjson.UnmarshalStrict(data, &meta)
	if err != nil {
		return nil, err
	}
	for _, e := range strict {
		if f, ok := e.(kjson.FieldError); ok {
			unknown = append(unknown, join(path, "metadata")+"."+f.FieldPath())
		}
	}
	clean, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&meta)
	if err != nil {
		return unknown, fmt.Errorf("metadata: %w", err)
	}
	if meta.CreationTimestamp.IsZero() {
		delete(clean, "creationTimestamp")
	}
	obj["metadata"] = clean
	return unknown, nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// coerceEmbedded is coerceMetadata of all embedded objects. The root's own is
// not one of them.
func coerceEmbedded(x any, s *structural.Structural, path string) (unknown []string, err error) {
	if s == nil {
		return nil, nil
	}
	below := func(v any, s *structural.Structural, path string) {
		if err != nil {
			return
		}
		var more []string
		more, err = coerceEmbedded(v, s, path)
		unknown = append(unknown, more...)
	}
	switch x := x.(type) {
	case map[string]any:
		if s.XEmbeddedResource {
			for _, name := range []string{"apiVersion", "kind"} {
				if v, ok := x[name]; ok {
					if _, isString := v.(string); !isString {
						return nil, field.Invalid(field.NewPath(join(path, name)), v, "must be a string")
					}
				}
			}
			if unknown, err = coerceMetadata(x, path); err != nil {
				return unknown, field.Invalid(field.NewPath(join(path, "metadata")), x["metadata"], err.Error())
			}
		}
		for name, v := range x {
			if !s.XEmbeddedResource || name != "metadata" {
				below(v, property(s, name), join(path, name))
			}
		}
	case []any:
		for i, v := range x {
			below(v, s.Items, fmt.Sprintf("%s[%d]", path, i))
		}
	}
	slices.Sort(unknown)
	return unknown, err
}

// validate says what is wrong with an object, or with what changed of it since
// old: what was there before may be wrong, as Kubernetes lets it.
func (s *Schema) validate(obj, old map[string]any) field.ErrorList {
	if s.structural == nil {
		return nil
	}
	var was any
	if old != nil {
		was = old
	}
	errs := checkValue(nil, obj, was, s.checks())
	errs = append(errs, validateEmbedded(nil, obj, s.structural)...)
	if old == nil || len(s.lists(old)) == 0 {
		errs = append(errs, s.lists(obj)...)
	}
	return errs
}

// blocking are the errors behind which rules are not asked: what is not as its
// schema says may not be what a rule takes it for.
var blocking = []field.ErrorType{field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid}

// validateRules says which rules an object breaks, given what is wrong with it
// besides.
func (s *Schema) validateRules(obj, old map[string]any, besides field.ErrorList) field.ErrorList {
	all := s.rules()
	if all == nil {
		return nil
	}
	if slices.ContainsFunc(besides, func(e *field.Error) bool { return slices.Contains(blocking, e.Type) }) {
		return field.ErrorList{field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")}
	}
	errs, let := s.askRules(all, obj, old)
	if len(let) > 0 {
		s.lenient.Store(true)
	}
	return errs
}

func (s *Schema) askRules(all *rules.Rules, obj, old map[string]any) (errs, let field.ErrorList) {
	if old == nil {
		errs, _, _ = all.Check(nil, obj, nil, false, rules.Budget)
		return errs, nil
	}
	errs, let, _ = all.Check(nil, obj, old, true, rules.Budget)
	return errs, let
}

// ruleWarnings tells of the rules that an object still breaks where it has not
// changed. It asks them again, if there ever was such an object.
func (s *Schema) ruleWarnings(obj, old map[string]any) (all []string) {
	if !s.lenient.Load() {
		return nil
	}
	_, let := s.askRules(s.rules(), obj, old)
	for _, e := range let {
		all = append(all, e.Error())
	}
	return all
}

// lists says what is wrong with lists that are sets and maps.
func (s *Schema) lists(obj map[string]any) field.ErrorList {
	return listtype.ValidateListSetsAndMaps(nil, s.structural, obj)
}

// validateStatus is validate of an object's status alone.
func (s *Schema) validateStatus(obj, old map[string]any) field.ErrorList {
	if s.structural == nil {
		return nil
	}
	var errs field.ErrorList
	if status, ok := obj["status"]; ok {
		if n := s.checks(); n != nil && n.properties["status"] != nil {
			errs = checkValue(field.NewPath("status"), status, old["status"], n.properties["status"])
		}
	}
	if now := s.lists(obj); len(now) > 0 && len(s.lists(old)) == 0 {
		errs = append(errs, now...)
	}
	return errs
}

// validateEmbedded says what is wrong with the type and metadata of embedded
// objects.
func validateEmbedded(p *field.Path, x any, s *structural.Structural) (errs field.ErrorList) {
	if s == nil {
		return nil
	}
	switch x := x.(type) {
	case map[string]any:
		if s.XEmbeddedResource {
			errs = append(errs, validateResource(p, x)...)
		}
		for name, v := range x {
			if below, ok := s.Properties[name]; ok {
				errs = append(errs, validateEmbedded(p.Child(name), v, &below)...)
			} else if s.AdditionalProperties != nil {
				errs = append(errs, validateEmbedded(p.Key(name), v, s.AdditionalProperties.Structural)...)
			}
		}
	case []any:
		for i, v := range x {
			errs = append(errs, validateEmbedded(p.Index(i), v, s.Items)...)
		}
	}
	return errs
}

func validateResource(p *field.Path, x map[string]any) (errs field.ErrorList) {
	text := func(name string, check func(string) string) {
		path := p.Child(name)
		v, ok := x[name]
		s, isString := v.(string)
		switch {
		case !ok:
			errs = append(errs, field.Required(path, ""))
		case !isString:
			errs = append(errs, field.Invalid(path, v, "must be a string"))
		case s == "":
			errs = append(errs, field.Invalid(path, s, "must not be empty"))
		default:
			if why := check(s); why != "" {
				errs = append(errs, field.Invalid(path, s, why))
			}
		}
	}
	text("apiVersion", func(s string) string {
		if _, err := runtimeschema.ParseGroupVersion(s); err != nil {
			return err.Error()
		}
		return ""
	})
	text("kind", func(s string) string {
		if why := validation.IsDNS1035Label(strings.ToLower(s)); len(why) > 0 {
			return "may have mixed case, but should otherwise match: " + strings.Join(why, ",")
		}
		return ""
	})
	meta, err := objectMeta(x)
	if err != nil {
		return append(errs, field.Invalid(p.Child("metadata"), x["metadata"], err.Error()))
	}
	if _, ok := x["metadata"]; ok {
		if meta.Name == "" {
			meta.Name = "unnamed" // an embedded object need have none
		}
		errs = append(errs, kinds.ValidateMetadata(meta, nil, meta.Namespace != "", apivalidation.ValidateNameFunc(pathSegment), p.Child("metadata"))...)
	}
	return errs
}

// pathSegment is of names that may stand in a path.
func pathSegment(name string, prefix bool) (why []string) {
	if !prefix && (name == "." || name == "..") {
		why = append(why, fmt.Sprintf("may not be '%s'", name))
	}
	for _, not := range []string{"/", "%"} {
		if strings.Contains(name, not) {
			why = append(why, fmt.Sprintf("may not contain '%s'", not))
		}
	}
	return why
}

// objectMeta reads the metadata of an object.
func objectMeta(obj map[string]any) (*metav1.ObjectMeta, error) {
	meta := &metav1.ObjectMeta{}
	raw, ok := obj["metadata"]
	if !ok || raw == nil {
		return meta, nil
	}
	m, ok := raw.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("expected map[string]interface{}, got %T", raw)
	}
	return meta, runtime.DefaultUnstructuredConverter.FromUnstructured(m, meta)
}
