package policy

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/openapi"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"conclave/api/cel"
	"conclave/api/types"
)

// maxChecked is how many kinds a policy is compared with.
const maxChecked = 10

// Catalogue knows the kinds that are served.
type Catalogue interface {
	// KindOf is the kind of a resource, empty if it is not served.
	KindOf(schema.GroupVersionResource) schema.GroupVersionKind
	// SchemaOf is the name of a kind's schema and the schemas by their names; an
	// empty name says that the kind has none.
	SchemaOf(schema.GroupVersionKind) (name string, models func(string) (*spec.Schema, error), err error)
}

// Check compares the validations of a policy with the schemas of the kinds that
// its rules name. What does not fit to one of them is worth a warning, no more:
// expressions may know better.
func Check(p *types.ValidatingAdmissionPolicy, in Catalogue) ([]types.ExpressionWarning, error) {
	var params *apicel.DeclType
	if k := p.Spec.ParamKind; k != nil {
		var err error
		if params, err = declared(in, schema.FromAPIVersionAndKind(k.APIVersion, k.Kind), "params."); err != nil {
			return nil, err
		}
	}
	var warnings []types.ExpressionWarning
	find := func(at string) *types.ExpressionWarning {
		i := slices.IndexFunc(warnings, func(w types.ExpressionWarning) bool { return w.FieldRef == at })
		if i < 0 {
			i, warnings = len(warnings), append(warnings, types.ExpressionWarning{FieldRef: at})
		}
		return &warnings[i]
	}
	w := cel.Words{Params: p.Spec.ParamKind != nil, Authorizer: true}
	for _, gvk := range kindsOf(p.Spec.MatchConstraints, in) {
		object, err := declared(in, gvk, "")
		if err != nil {
			return nil, err
		}
		if object == nil {
			continue
		}
		c := cel.NewChecker(cel.Types{Object: object, Params: params})
		for _, v := range p.Spec.Variables {
			c.Variable(v.Name, v.Expression, w)
		}
		check := func(at, text string) {
			if err := c.Compile(text, w).Err(); err != nil {
				one := find(at)
				if one.Warning != "" {
					one.Warning += "\n"
				}
				one.Warning += fmt.Sprintf("%v: %s\n", gvk, strings.TrimPrefix(err.Error(), "compilation failed: "))
			}
		}
		for i, v := range p.Spec.Validations {
			check(fmt.Sprintf("spec.validations[%d].expression", i), v.Expression)
			if v.MessageExpression != "" {
				check(fmt.Sprintf("spec.validations[%d].messageExpression", i), v.MessageExpression)
			}
		}
	}
	slices.SortStableFunc(warnings, func(a, b types.ExpressionWarning) int { return strings.Compare(a.FieldRef, b.FieldRef) })
	return warnings, nil
}

// kindsOf are the kinds that rules name, in order. Rules with * name none.
func kindsOf(m *types.MatchResources, in Catalogue) (all []schema.GroupVersionKind) {
	if m == nil {
		return nil
	}
	for _, r := range m.ResourceRules {
		if slices.Contains(r.APIGroups, "*") || slices.Contains(r.APIVersions, "*") {
			continue
		}
		for _, group := range r.APIGroups {
			for _, version := range r.APIVersions {
				for _, resource := range r.Resources {
					if strings.ContainsAny(resource, "*/") {
						continue
					}
					gvk := in.KindOf(schema.GroupVersionResource{Group: group, Version: version, Resource: resource})
					if !gvk.Empty() && !slices.Contains(all, gvk) {
						all = append(all, gvk)
					}
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b schema.GroupVersionKind) int { return strings.Compare(a.String(), b.String()) })
	return all[:min(len(all), maxChecked)]
}

// declared is a kind as a type of CEL, nil if it has no schema.
func declared(in Catalogue, gvk schema.GroupVersionKind, prefix string) (*apicel.DeclType, error) {
	name, models, err := in.SchemaOf(gvk)
	if err != nil || name == "" {
		return nil, err
	}
	r := resolver{models: models, on: map[string]bool{}}
	s, err := r.named(name)
	if err != nil {
		return nil, err
	}
	t := common.SchemaDeclType(&openapi.Schema{Schema: s}, true)
	if t == nil {
		return nil, nil
	}
	return t.MaybeAssignTypeName(prefix + gvk.Kind), nil
}

// resolver puts schemas in the place of references to them.
type resolver struct {
	models func(string) (*spec.Schema, error)
	on     map[string]bool // those that are being resolved
}

func (r *resolver) named(name string) (*spec.Schema, error) {
	if r.on[name] { // it has itself in it
		return &spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}}}, nil
	}
	s, err := r.models(name)
	if err != nil {
		return nil, err
	}
	r.on[name] = true
	defer delete(r.on, name)
	return r.whole(s)
}

// refersTo is the name of the schema that one stands for. With a description of
// its own, a reference is the only part of an allOf.
func refersTo(s *spec.Schema) string {
	if ref := s.Ref.String(); ref != "" {
		return ref[strings.LastIndexByte(ref, '/')+1:]
	}
	for i := range s.AllOf {
		if name := refersTo(&s.AllOf[i]); name != "" {
			return name
		}
	}
	return ""
}

// whole is a schema without references.
func (r *resolver) whole(s *spec.Schema) (*spec.Schema, error) {
	if name := refersTo(s); name != "" {
		return r.named(name)
	}
	out := *s
	if len(s.Properties) > 0 {
		out.Properties = make(map[string]spec.Schema, len(s.Properties))
		for name, p := range s.Properties {
			of, err := r.whole(&p)
			if err != nil {
				return nil, err
			}
			out.Properties[name] = *of
		}
	}
	if a := s.AdditionalProperties; a != nil && a.Schema != nil {
		of, err := r.whole(a.Schema)
		if err != nil {
			return nil, err
		}
		out.AdditionalProperties = &spec.SchemaOrBool{Allows: a.Allows, Schema: of}
	}
	if s.Items != nil && s.Items.Schema != nil {
		of, err := r.whole(s.Items.Schema)
		if err != nil {
			return nil, err
		}
		out.Items = &spec.SchemaOrArray{Schema: of}
	}
	return &out, nil
}
