package rules

import (
	"sync"

	structural "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiserver/pkg/cel/common"
)

// shape is a schema as values of CEL ask for it. Theirs (model.Structural) makes
// what is below it anew for each field that is read; this one does so once.
type shape struct {
	model.Structural
	below    func() parts
	resource func() *shape // the same, with the fields of a resource
}

type parts struct {
	properties map[string]common.Schema
	items      common.Schema
	values     common.SchemaOrBool
}

func newShape(s *structural.Structural) *shape {
	out := &shape{Structural: model.Structural{Structural: s}}
	out.below = sync.OnceValue(func() (p parts) {
		if s.Properties != nil {
			p.properties = make(map[string]common.Schema, len(s.Properties))
			for name, property := range s.Properties {
				p.properties[name] = newShape(&property)
			}
		}
		if s.Items != nil {
			p.items = newShape(s.Items)
		}
		if a := s.AdditionalProperties; a != nil {
			v := values{allows: a.Bool}
			if a.Structural != nil {
				v.schema = newShape(a.Structural)
			}
			p.values = v
		}
		return p
	})
	out.resource = sync.OnceValue(func() *shape {
		whole := model.WithTypeAndObjectMeta(s)
		if whole == s {
			return out
		}
		return newShape(whole)
	})
	return out
}

func (s *shape) Items() common.Schema                      { return s.below().items }
func (s *shape) Properties() map[string]common.Schema      { return s.below().properties }
func (s *shape) AdditionalProperties() common.SchemaOrBool { return s.below().values }
func (s *shape) WithTypeAndObjectMeta() common.Schema      { return s.resource() }

// child is the shape of a property, and item and value those of what a list and
// a map hold. Ask only for what the schema has.
func (s *shape) child(name string) *shape { return s.below().properties[name].(*shape) }
func (s *shape) item() *shape             { return s.below().items.(*shape) }
func (s *shape) value() *shape            { return s.below().values.Schema().(*shape) }

type values struct {
	schema common.Schema
	allows bool
}

func (v values) Schema() common.Schema { return v.schema }
func (v values) Allows() bool          { return v.allows }
