package rules

import (
	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	apicel "k8s.io/apiserver/pkg/cel"
)

// Rules are the rules of a schema and of all below it, made ready.
type Rules struct {
	shape *shape
	value *shape // the same as rules see it: with the fields of a resource, where it is one
	rules []rule
	// old says that a rule speaks of oldSelf; failure is why none can be run.
	old     bool
	failure error

	items, values *Rules
	properties    map[string]*Rules
}

// Has says whether there is a rule in a schema.
func Has(s *structural.Structural) bool {
	if s == nil {
		return false
	}
	if len(s.XValidations) > 0 || Has(s.Items) || s.AdditionalProperties != nil && Has(s.AdditionalProperties.Structural) {
		return true
	}
	for _, p := range s.Properties {
		if Has(&p) {
			return true
		}
	}
	return false
}

// Compile makes the rules of a schema ready, nil if there are none. At the root
// of a resource, rules know its apiVersion, kind and name. Rules that do not
// compile are errors of the objects that they are asked about.
func Compile(s *structural.Structural, resource bool) *Rules {
	if !Has(s) {
		return nil
	}
	return compileTypes(newShape(s), resource, model.SchemaDeclType(s, resource))
}

// compileTypes begins anew with the types of a place.
func compileTypes(s *shape, resource bool, t *apicel.DeclType) *Rules {
	if t == nil {
		return compile(s, resource, nil, nil)
	}
	w, err := newWorld(t)
	if err != nil {
		return &Rules{shape: s, value: s, failure: err}
	}
	return compile(s, resource, w, w.types)
}

// compile makes ready what is at and below a place, nil if that is nothing. t is
// nil where a value may be anything.
func compile(s *shape, resource bool, w *world, t *apicel.DeclType) *Rules {
	schema := s.Structural.Structural
	out := &Rules{shape: s, value: s}
	if resource {
		out.value = s.resource()
	}
	if len(schema.XValidations) > 0 {
		out.prepare(w, t)
	}
	var elements *apicel.DeclType
	if t != nil {
		elements = t.ElemType
	}
	if items := schema.Items; Has(items) {
		out.items = compile(s.item(), items.XEmbeddedResource, w, elements)
	}
	if a := schema.AdditionalProperties; a != nil && Has(a.Structural) {
		out.values = compile(s.value(), a.Structural.XEmbeddedResource, w, elements)
	}
	for name, p := range schema.Properties {
		if !Has(&p) || t == nil {
			continue
		}
		if below := property(s.child(name), name, p.XEmbeddedResource, w, t); below != nil {
			if out.properties == nil {
				out.properties = map[string]*Rules{}
			}
			out.properties[name] = below
		}
	}
	return out
}

// property is compile of a property. Those that CEL cannot know are passed over;
// those that it cannot name have a world of their own.
func property(s *shape, name string, resource bool, w *world, t *apicel.DeclType) *Rules {
	escaped, ok := apicel.Escape(name)
	if !ok {
		if below := model.SchemaDeclType(s.Structural.Structural, resource); below != nil {
			return compileTypes(s, resource, below)
		}
		return nil
	}
	f, ok := t.Fields[escaped]
	if !ok {
		return nil
	}
	return compile(s, resource, w, f.Type)
}

func (r *Rules) prepare(w *world, t *apicel.DeclType) {
	if t == nil {
		r.failure = errNoTypes
		return
	}
	schema := r.shape.Structural.Structural
	c := &compiler{world: w, schema: schema, self: t}
	for _, x := range schema.XValidations {
		made, err := c.compile(x, nil)
		if err != nil {
			r.failure = err
			return
		}
		r.rules, r.old = append(r.rules, made), r.old || made.transition
	}
}
