package custom

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// node is a schema made ready for checking values: structure and value
// validation in one, patterns compiled.
type node struct {
	types      []string // none: any
	nullable   bool
	items      *node
	properties map[string]*node
	additional *node
	closed     bool // no other properties
	listKeys   []string

	*structural.ValueValidation
	enum    []any
	pattern *regexp.Regexp
	misfit  error             // why the pattern is none: then no string fits
	format  func(string) bool // of strings

	allOf, anyOf, oneOf []*node
	not                 *node
}

func compile(s *structural.Structural) *node {
	if s == nil {
		return nil
	}
	n := &node{nullable: s.Nullable, ValueValidation: s.ValueValidation, items: compile(s.Items)}
	switch {
	case s.XIntOrString:
		n.types = []string{"integer", "string"}
	case s.Type != "":
		n.types = []string{s.Type}
	}
	if s.XListType != nil && *s.XListType == "map" {
		n.listKeys = s.XListMapKeys
	}
	for name, p := range s.Properties {
		n.property(name, compile(&p))
	}
	if a := s.AdditionalProperties; a != nil {
		n.additional, n.closed = compile(a.Structural), a.Structural == nil && !a.Bool
	}
	return n.complete()
}

func compileNested(s *structural.NestedValueValidation) *node {
	if s == nil {
		return nil
	}
	n := &node{ValueValidation: &s.ValueValidation, nullable: s.ForbiddenGenerics.Nullable, items: compileNested(s.Items), additional: compileNested(s.AdditionalProperties)}
	if t := s.ForbiddenGenerics.Type; t != "" {
		n.types = []string{t}
	}
	for name, p := range s.Properties {
		n.property(name, compileNested(&p))
	}
	return n.complete()
}

func (n *node) property(name string, p *node) {
	if n.properties == nil {
		n.properties = map[string]*node{}
	}
	n.properties[name] = p
}

func (n *node) complete() *node {
	if n.ValueValidation == nil {
		n.ValueValidation = &structural.ValueValidation{}
	}
	v := n.ValueValidation
	for _, e := range v.Enum {
		n.enum = append(n.enum, e.Object)
	}
	if v.Pattern != "" {
		n.pattern, _ = regexp.Compile(v.Pattern) // definitions with others are refused
	}
	if len(n.types) == 0 || slices.Equal(n.types, []string{"string"}) {
		n.format = formatOf(v.Format)
	}
	nested := func(list []structural.NestedValueValidation) (all []*node) {
		for i := range list {
			all = append(all, compileNested(&list[i]))
		}
		return all
	}
	n.allOf, n.anyOf, n.oneOf, n.not = nested(v.AllOf), nested(v.AnyOf), nested(v.OneOf), compileNested(v.Not)
	return n
}

// checkValue says what is wrong with a value. Of what is the same in old,
// nothing is said; old is nil where there is nothing to compare with.
func checkValue(root *field.Path, x, old any, n *node) field.ErrorList {
	c := &checker{root: root}
	c.value("", x, old, n)
	return c.errs
}

type checker struct {
	root *field.Path
	errs field.ErrorList
}

// at is the path of a name as schemas write it, with dots.
func (c *checker) at(name string) *field.Path {
	name = strings.TrimPrefix(name, ".")
	if name == "" {
		return c.root
	}
	return c.root.Child(name)
}

func (c *checker) add(e *field.Error) { c.errs = append(c.errs, e) }

// invalid is most of what there is to say: "spec.n in body should be …".
func (c *checker) invalid(name string, value any, format string, args ...any) {
	if value == nil {
		value = ""
	}
	c.add(field.Invalid(c.at(name), value, name+" in body "+fmt.Sprintf(format, args...)))
}

// try says what is wrong with a value by another schema, without saying so.
func (c *checker) try(name string, x, old any, n *node) field.ErrorList {
	other := &checker{root: c.root}
	other.value(name, x, old, n)
	return other.errs
}

func (c *checker) value(name string, x, old any, n *node) {
	if n == nil || old != nil && equality.Semantic.DeepEqual(x, old) {
		return
	}
	if x == nil {
		if len(n.types) > 0 && !n.nullable {
			c.add(field.TypeInvalid(c.at(name), "null", fmt.Sprintf("%s in body must be of type %s: %q", name, strings.Join(n.types, ","), "null")))
		}
		c.enumerated(name, x, n)
		return
	}
	if !c.typed(name, x, n) {
		return
	}
	c.junctors(name, x, old, n)
	switch x := x.(type) {
	case string:
		c.text(name, x, n)
	case int64, float64:
		c.number(name, x, n)
	case []any:
		c.list(name, x, old, n)
	}
	c.enumerated(name, x, n)
	if m, ok := x.(map[string]any); ok {
		c.object(name, m, old, n)
	}
}

func typeOf(x any) string {
	switch x.(type) {
	case bool:
		return "boolean"
	case string:
		return "string"
	case int64:
		return "integer"
	case float64:
		return "number"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	}
	return ""
}

// typed says whether the value is of the schema's type.
func (c *checker) typed(name string, x any, n *node) bool {
	is := typeOf(x)
	whole, isFloat := x.(float64)
	switch {
	case len(n.types) == 0, slices.Contains(n.types, is):
		return true
	case is == "integer" && slices.Contains(n.types, "number"):
		return true
	case isFloat && whole == math.Trunc(whole) && slices.Contains(n.types, "integer"):
		return true
	}
	c.add(field.TypeInvalid(c.at(name), is, fmt.Sprintf("%s in body must be of type %s: %q", name, strings.Join(n.types, ","), is)))
	return false
}

func (c *checker) enumerated(name string, x any, n *node) {
	if len(n.enum) == 0 {
		return
	}
	var allowed []string
	for _, e := range n.enum {
		if sameValue(x, e) {
			return
		}
		if s, ok := e.(string); ok {
			allowed = append(allowed, s)
			continue
		}
		b, _ := json.Marshal(e) // of what was JSON
		allowed = append(allowed, string(b))
	}
	c.add(field.NotSupported(c.at(name), x, allowed))
}

// sameValue compares numbers by what they are worth.
func sameValue(a, b any) bool {
	x, xNumber := float(a)
	y, yNumber := float(b)
	if xNumber && yNumber {
		return x == y
	}
	return reflect.DeepEqual(a, b)
}

func float(x any) (float64, bool) {
	switch x := x.(type) {
	case int64:
		return float64(x), true
	case float64:
		return x, true
	}
	return 0, false
}

func (c *checker) text(name, x string, n *node) {
	switch length := int64(utf8.RuneCountInString(x)); {
	case n.MaxLength != nil && length > *n.MaxLength:
		c.add(field.TooLong(c.at(name), "", int(*n.MaxLength)))
	case n.MinLength != nil && length < *n.MinLength:
		c.invalid(name, x, "should be at least %d chars long", *n.MinLength)
	case n.pattern != nil && !n.pattern.MatchString(x):
		c.invalid(name, x, "should match '%s'", n.Pattern)
	}
	if n.format != nil && !n.format(x) {
		c.add(field.TypeInvalid(c.at(name), x, fmt.Sprintf("%s in body must be of type %s: %q", name, n.Format, x)))
	}
}

func (c *checker) number(name string, x any, n *node) {
	value, _ := float(x)
	if len(n.types) == 1 && !inRange(x, n.types[0], n.Format) {
		c.add(field.Invalid(c.at(name), x, fmt.Sprintf("Checked value must be of type %s with format %s in %s", n.types[0], n.Format, name)))
	}
	if f := n.MultipleOf; f != nil {
		if times := value / *f; *f <= 0 || math.Abs(times-math.Round(times)) > 1e-9*max(1, math.Abs(times)) {
			c.invalid(name, x, "should be a multiple of %v", *f)
		}
	}
	if m := n.Minimum; m != nil {
		switch {
		case n.ExclusiveMinimum && value <= *m:
			c.invalid(name, x, "should be greater than %v", plain(*m))
		case value < *m:
			c.invalid(name, x, "should be greater than or equal to %v", plain(*m))
		}
	}
	if m := n.Maximum; m != nil {
		switch {
		case n.ExclusiveMaximum && value >= *m:
			c.invalid(name, x, "should be less than %v", plain(*m))
		case value > *m:
			c.invalid(name, x, "should be less than or equal to %v", plain(*m))
		}
	}
}

// plain writes whole numbers as such.
func plain(f float64) string {
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return strconv.FormatInt(int64(f), 10)
	}
	return fmt.Sprint(f)
}

// inRange says whether a number fits into its format.
func inRange(x any, kind, format string) bool {
	value, _ := float(x)
	switch kind + " " + format {
	case "integer int32":
		return value >= math.MinInt32 && value <= math.MaxInt32
	case "number float":
		return math.Abs(value) <= math.MaxFloat32
	}
	return kind != "integer" || value >= math.MinInt64 && value <= math.MaxInt64
}

func (c *checker) list(name string, x []any, old any, n *node) {
	if n.MinItems != nil && int64(len(x)) < *n.MinItems {
		c.invalid(name, int64(len(x)), "should have at least %d items", *n.MinItems)
	}
	if n.MaxItems != nil && int64(len(x)) > *n.MaxItems {
		c.add(field.TooMany(c.at(name), len(x), int(*n.MaxItems)))
		return // of too many items each would have something to say
	}
	if n.UniqueItems {
		for i := range x {
			if slices.ContainsFunc(x[:i], func(v any) bool { return reflect.DeepEqual(v, x[i]) }) {
				c.invalid(name, nil, "shouldn't contain duplicates")
				break
			}
		}
	}
	if n.items == nil {
		return
	}
	was, _ := old.([]any)
	for i, v := range x {
		c.value(fmt.Sprintf("%s[%d]", name, i), v, correlated(v, was, n.listKeys), n.items)
	}
}

// correlated is the item of a list before that is the same by its keys.
func correlated(item any, list []any, keys []string) any {
	m, ok := item.(map[string]any)
	if !ok || len(keys) == 0 {
		return nil
	}
	for _, v := range list {
		before, ok := v.(map[string]any)
		if ok && !slices.ContainsFunc(keys, func(key string) bool { return !sameValue(before[key], m[key]) }) {
			return before
		}
	}
	return nil
}

func (c *checker) object(name string, x map[string]any, old any, n *node) {
	if n.MinProperties != nil && int64(len(x)) < *n.MinProperties {
		c.invalid(name, int64(len(x)), "should have at least %d properties", *n.MinProperties)
	}
	if n.MaxProperties != nil && int64(len(x)) > *n.MaxProperties {
		c.add(field.TooMany(c.at(name), len(x), int(*n.MaxProperties)))
	}
	was, _ := old.(map[string]any)
	for _, key := range sortedKeys(x) {
		p, known := n.properties[key]
		switch {
		case known:
			c.value(join(name, key), x[key], was[key], p)
		case n.additional != nil:
			c.value(name+"."+key, x[key], was[key], n.additional)
		case n.closed:
			c.add(field.Invalid(c.at(name), key, fmt.Sprintf("%s.%s in body is a forbidden property", name, key)))
		}
	}
	for _, key := range n.Required {
		if _, ok := x[key]; !ok {
			c.add(field.Required(c.at(name+"."+key), ""))
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// junctors are allOf, anyOf, oneOf and not. Of alternatives none of which fits,
// the one with the least to say against it is told.
func (c *checker) junctors(name string, x, old any, n *node) {
	fail := func(format string, args ...any) {
		c.add(field.Invalid(c.root, "", fmt.Sprintf("%q ", name)+fmt.Sprintf(format, args...)))
	}
	alternatives := func(list []*node) (fit int, best field.ErrorList) {
		for i, alt := range list {
			errs := c.try(name, x, old, alt)
			if len(errs) == 0 {
				fit++
			} else if i == 0 || len(errs) < len(best) {
				best = errs
			}
		}
		return fit, best
	}
	if len(n.anyOf) > 0 {
		if fit, best := alternatives(n.anyOf); fit == 0 {
			fail("must validate at least one schema (anyOf)")
			c.errs = append(c.errs, best...)
		}
	}
	if len(n.oneOf) > 0 {
		switch fit, best := alternatives(n.oneOf); fit {
		case 1:
		case 0:
			fail("must validate one and only one schema (oneOf). Found none valid")
			c.errs = append(c.errs, best...)
		default:
			fail("must validate one and only one schema (oneOf). Found %d valid alternatives", fit)
		}
	}
	if len(n.allOf) > 0 {
		fit := 0
		for _, part := range n.allOf {
			errs := c.try(name, x, old, part)
			if len(errs) == 0 {
				fit++
			}
			c.errs = append(c.errs, errs...)
		}
		switch fit {
		case len(n.allOf):
		case 0:
			fail("must validate all the schemas (allOf). None validated")
		default:
			fail("must validate all the schemas (allOf)")
		}
	}
	if n.not != nil && len(c.try(name, x, old, n.not)) == 0 {
		fail("must not validate the schema (not)")
	}
}
