package rbac

import (
	"maps"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ReconcileRole is a role of the system as it has to be, given the one that is
// there: what somebody added stays, what is missing is added, and one that says
// that it wants no update gets none. It is nil if nothing has to change.
func ReconcileRole(have, want *rbacv1.ClusterRole) *rbacv1.ClusterRole {
	if have.Annotations[AutoUpdate] == "false" {
		return nil
	}
	out := have.DeepCopy()
	complete(&out.ObjectMeta, &want.ObjectMeta)
	out.Rules = append(out.Rules, Missing(have.Rules, want.Rules)...)
	if want.AggregationRule != nil {
		if out.AggregationRule == nil {
			out.AggregationRule = &rbacv1.AggregationRule{}
		}
		for _, s := range want.AggregationRule.ClusterRoleSelectors {
			into := &out.AggregationRule.ClusterRoleSelectors
			if !slices.ContainsFunc(*into, func(o metav1.LabelSelector) bool { return equality.Semantic.DeepEqual(o, s) }) {
				*into = append(*into, s)
			}
		}
	}
	if equality.Semantic.DeepEqual(out, have) {
		return nil
	}
	return out
}

// ReconcileBinding is ReconcileRole of a binding. anew says that it is of another
// role, which no update can change: it has to be deleted and made again.
func ReconcileBinding(have, want *rbacv1.ClusterRoleBinding) (out *rbacv1.ClusterRoleBinding, anew bool) {
	if have.Annotations[AutoUpdate] == "false" {
		return nil, false
	}
	out = have.DeepCopy()
	complete(&out.ObjectMeta, &want.ObjectMeta)
	for _, s := range want.Subjects {
		if !slices.Contains(out.Subjects, s) {
			out.Subjects = append(out.Subjects, s)
		}
	}
	if have.RoleRef != want.RoleRef {
		return &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: out.Name, Labels: out.Labels, Annotations: out.Annotations},
			RoleRef:    want.RoleRef, Subjects: out.Subjects,
		}, true
	}
	if equality.Semantic.DeepEqual(out, have) {
		return nil, false
	}
	return out, false
}

// complete adds the labels and annotations that are missing.
func complete(have, want *metav1.ObjectMeta) {
	merge := func(have, want map[string]string) map[string]string {
		out := maps.Clone(want)
		maps.Copy(out, have)
		return out
	}
	have.Labels, have.Annotations = merge(have.Labels, want.Labels), merge(have.Annotations, want.Annotations)
}
