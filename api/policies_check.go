package api

import (
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"conclave/api/custom"
	"conclave/api/policy"
	"conclave/api/types"
)

// CheckPolicy says what in a policy's expressions does not fit to the kinds that
// its rules name, as this server serves them.
func (s *Server) CheckPolicy(p *types.ValidatingAdmissionPolicy) ([]types.ExpressionWarning, error) {
	return policy.Check(p, catalogue{s})
}

// catalogue knows the kinds that a server serves.
type catalogue struct{ s *Server }

func (c catalogue) KindOf(r schema.GroupVersionResource) schema.GroupVersionKind {
	if row := c.s.find(r, true); row != nil {
		return row.GVK
	}
	return schema.GroupVersionKind{}
}

func (c catalogue) SchemaOf(gvk schema.GroupVersionKind) (string, func(string) (*spec.Schema, error), error) {
	r := c.s.resourceOfKind(gvk)
	switch {
	case r == nil:
		return "", nil, nil
	case r.def != nil:
		return customSchema(r)
	}
	path := "apis/" + gvk.GroupVersion().String()
	if gvk.Group == "" {
		path = "api/" + gvk.Version
	}
	raw, err := openAPISchemas(path, func(string) bool { return true })
	if err != nil {
		return "", nil, err
	}
	named, ok := r.New().(interface{ OpenAPIModelName() string })
	if !ok || raw[named.OpenAPIModelName()] == nil {
		return "", nil, nil
	}
	return named.OpenAPIModelName(), func(name string) (*spec.Schema, error) {
		m := &spec.Schema{}
		if err := json.Unmarshal(raw[name], m); err != nil {
			return nil, fmt.Errorf("read the schema of %s: %w", name, err)
		}
		return m, nil
	}, nil
}

// customSchema is that of a version of a custom resource.
func customSchema(r *resource) (string, func(string) (*spec.Schema, error), error) {
	models, err := metaModels()
	if err != nil {
		return "", nil, err
	}
	own, err := custom.Models(r.def.object, r.gvr.Version, false)
	if err != nil {
		return "", nil, err
	}
	name := custom.ModelName(r.gvr.Group, r.gvr.Version, r.GVK.Kind)
	if own[name] == nil {
		return "", nil, nil
	}
	return name, func(name string) (*spec.Schema, error) {
		for _, of := range []map[string]*spec.Schema{own, models} {
			if m := of[name]; m != nil {
				return m, nil
			}
		}
		return nil, fmt.Errorf("there is no schema of %s", name)
	}, nil
}
