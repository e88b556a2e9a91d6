package kinds

import (
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Names of roles and bindings may be anything that fits into a path: those of
// the system have colons.
func rbacMetadata(meta, old *metav1.ObjectMeta, namespaced bool) problems {
	return metadata(meta, old, namespaced, path.ValidatePathSegmentName)
}

func validateRole(r *rbacv1.Role) field.ErrorList {
	e := rbacMetadata(&r.ObjectMeta, nil, true)
	e.policyRules(r.Rules, true)
	return e.list()
}

func validateRoleUpdate(r, old *rbacv1.Role) field.ErrorList {
	e := rbacMetadata(&r.ObjectMeta, &old.ObjectMeta, true)
	e.policyRules(r.Rules, true)
	return e.list()
}

func validateClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	e := rbacMetadata(&r.ObjectMeta, nil, false)
	e.clusterRole(r)
	return e.list()
}

func validateClusterRoleUpdate(r, old *rbacv1.ClusterRole) field.ErrorList {
	e := rbacMetadata(&r.ObjectMeta, &old.ObjectMeta, false)
	e.clusterRole(r)
	return e.list()
}

func (e *problems) clusterRole(r *rbacv1.ClusterRole) {
	e.policyRules(r.Rules, false)
	if r.AggregationRule == nil {
		return
	}
	p := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(r.AggregationRule.ClusterRoleSelectors) == 0 {
		e.required(p, "at least one clusterRoleSelector required if aggregationRule is non-nil")
	}
	for i := range r.AggregationRule.ClusterRoleSelectors {
		s := &r.AggregationRule.ClusterRoleSelectors[i]
		labelSelector(e, p.Index(i), s)
		if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
			e.invalid(p.Index(i), s, "invalid label selector.")
		}
	}
}

func (e *problems) policyRules(rules []rbacv1.PolicyRule, namespaced bool) {
	for i := range rules {
		e.policyRule(field.NewPath("rules").Index(i), &rules[i], namespaced)
	}
}

func (e *problems) policyRule(p *field.Path, r *rbacv1.PolicyRule, namespaced bool) {
	if len(r.Verbs) == 0 {
		e.required(p.Child("verbs"), "verbs must contain at least one value")
	}
	if len(r.NonResourceURLs) > 0 {
		if namespaced {
			e.invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs")
		}
		if len(r.APIGroups) > 0 || len(r.Resources) > 0 || len(r.ResourceNames) > 0 {
			e.invalid(p.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs")
		}
		return
	}
	if len(r.APIGroups) == 0 {
		e.required(p.Child("apiGroups"), "resource rules must supply at least one api group")
	}
	if len(r.Resources) == 0 {
		e.required(p.Child("resources"), "resource rules must supply at least one resource")
	}
}

func validateRoleBinding(b *rbacv1.RoleBinding) field.ErrorList {
	e := rbacMetadata(&b.ObjectMeta, nil, true)
	e.binding(b.RoleRef, b.Subjects, true)
	return e.list()
}

func validateRoleBindingUpdate(b, old *rbacv1.RoleBinding) field.ErrorList {
	e := rbacMetadata(&b.ObjectMeta, &old.ObjectMeta, true)
	e.binding(b.RoleRef, b.Subjects, true)
	e.sameRole(b.RoleRef, old.RoleRef)
	return e.list()
}

func validateClusterRoleBinding(b *rbacv1.ClusterRoleBinding) field.ErrorList {
	e := rbacMetadata(&b.ObjectMeta, nil, false)
	e.binding(b.RoleRef, b.Subjects, false)
	return e.list()
}

func validateClusterRoleBindingUpdate(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
	e := rbacMetadata(&b.ObjectMeta, &old.ObjectMeta, false)
	e.binding(b.RoleRef, b.Subjects, false)
	e.sameRole(b.RoleRef, old.RoleRef)
	return e.list()
}

// sameRole refuses another role: whoever may change who is in a binding must not
// thereby choose what they get.
func (e *problems) sameRole(ref, old rbacv1.RoleRef) {
	if ref != old {
		e.invalid(field.NewPath("roleRef"), ref, "cannot change roleRef")
	}
}

func (e *problems) binding(ref rbacv1.RoleRef, subjects []rbacv1.Subject, namespaced bool) {
	kinds := []string{"ClusterRole"}
	if namespaced {
		kinds = []string{"Role", "ClusterRole"}
	}
	p := field.NewPath("roleRef")
	if ref.APIGroup != rbacv1.GroupName {
		e.add(field.NotSupported(p.Child("apiGroup"), ref.APIGroup, []string{rbacv1.GroupName}))
	}
	if !slices.Contains(kinds, ref.Kind) {
		e.add(field.NotSupported(p.Child("kind"), ref.Kind, kinds))
	}
	if e.nonEmpty(p.Child("name"), ref.Name) {
		e.each(p.Child("name"), ref.Name, path.IsValidPathSegmentName(ref.Name))
	}
	for i, s := range subjects {
		e.subject(field.NewPath("subjects").Index(i), s, namespaced)
	}
}

func (e *problems) subject(p *field.Path, s rbacv1.Subject, namespaced bool) {
	named := e.nonEmpty(p.Child("name"), s.Name)
	group := func(want string) {
		if s.APIGroup != want {
			e.add(field.NotSupported(p.Child("apiGroup"), s.APIGroup, []string{want}))
		}
	}
	switch s.Kind {
	case rbacv1.ServiceAccountKind:
		if named {
			e.each(p.Child("name"), s.Name, apivalidation.ValidateServiceAccountName(s.Name, false))
		}
		group("")
		if !namespaced {
			e.nonEmpty(p.Child("namespace"), s.Namespace)
		}
	case rbacv1.UserKind, rbacv1.GroupKind:
		group(rbacv1.GroupName)
	default:
		e.add(field.NotSupported(p.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
	}
}
