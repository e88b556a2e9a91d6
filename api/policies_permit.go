package api

import (
	"context"
	"fmt"
	"slices"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/types"
)

// Whoever writes a policy learns by it of its parameters: so they have to be
// allowed to read them.

// permitPolicy refuses a policy whose writer may not read all objects of its
// paramKind.
func permitPolicy(ctx context.Context, c *call, obj, old Object) error {
	kind := paramKindOf(obj)
	if kind == nil || old != nil && apiequality.Semantic.DeepEqual(kind, paramKindOf(old)) {
		return nil
	}
	return c.mayReadParams(ctx, obj, kind, "*", "*", field.NewPath("spec", "paramKind"),
		fmt.Sprintf(`must have "get" permission on all objects of the referenced paramKind (kind=%s, apiVersion=%s)`, kind.Kind, kind.APIVersion))
}

// permitPolicyBinding refuses a binding whose writer may not read the parameters
// that it names, as far as there is a policy that says of which kind they are.
func permitPolicyBinding(ctx context.Context, c *call, obj, old Object) error {
	policies, name, ref := paramRefOf(obj)
	if ref == nil {
		return nil
	}
	if old != nil {
		if _, was, before := paramRefOf(old); was == name && apiequality.Semantic.DeepEqual(ref, before) {
			return nil
		}
	}
	kind := &types.ParamKind{APIVersion: "*/*", Kind: "*"} // whatever a policy may yet say
	if rec := c.s.cfg.Storage.Get(policies.GroupResource().String(), "", name); rec != nil {
		if kind = paramKindOf(rec.Object()); kind == nil {
			return nil // what the binding names is not used
		}
	}
	namespace, one := ref.Namespace, ref.Name
	if namespace == "" {
		namespace = "*"
	}
	if one == "" {
		one = "*"
	}
	return c.mayReadParams(ctx, obj, kind, namespace, one, field.NewPath("spec", "paramRef"),
		`must have "get" permission on the objects that paramRef refers to`)
}

func (c *call) mayReadParams(ctx context.Context, obj Object, kind *types.ParamKind, namespace, name string, at *field.Path, why string) error {
	if slices.Contains(c.user.Groups, groupMasters) {
		return nil
	}
	gvr := schema.GroupVersionResource{Group: "*", Version: "*", Resource: "*"}
	if gv, err := schema.ParseGroupVersion(kind.APIVersion); err == nil {
		gvr.Group, gvr.Version = gv.Group, gv.Version
		if r := c.s.resourceOfKind(gv.WithKind(kind.Kind)); r != nil {
			gvr = r.gvr
		}
	}
	if c.s.decide(ctx, c.user, &Attributes{Verb: "get", Resource: gvr, Namespace: namespace, Name: name}).allowed {
		return nil
	}
	return apierrors.NewInvalid(c.res.GVK.GroupKind(), obj.GetName(), field.ErrorList{field.Forbidden(at, fmt.Sprintf("user %q %s", c.user.Name, why))})
}

func paramKindOf(o Object) *types.ParamKind {
	switch p := o.(type) {
	case *types.ValidatingAdmissionPolicy:
		return p.Spec.ParamKind
	case *types.MutatingAdmissionPolicy:
		return p.Spec.ParamKind
	}
	return nil
}

func paramRefOf(o Object) (policies schema.GroupVersionResource, policy string, ref *types.ParamRef) {
	switch b := o.(type) {
	case *types.ValidatingAdmissionPolicyBinding:
		return validatingPolicies, b.Spec.PolicyName, b.Spec.ParamRef
	case *types.MutatingAdmissionPolicyBinding:
		return mutatingPolicies, b.Spec.PolicyName, b.Spec.ParamRef
	}
	return policies, "", nil
}
