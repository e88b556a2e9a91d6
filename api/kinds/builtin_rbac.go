package kinds

import (
	"strings"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rbacRows are the kinds that say who may do what.
func rbacRows() []*Kind {
	return []*Kind{
		{
			GVK: rbacv1.SchemeGroupVersion.WithKind("Role"), Plural: "roles", Namespaced: true,
			New: empty[rbacv1.Role], NewList: empty[rbacv1.RoleList],
			Validate: check(validateRole), ValidateUpdate: checkTwo(validateRoleUpdate),
			Columns: createdColumns, Cells: cells(func(r *rbacv1.Role, _ time.Time) []any { return createdCells(&r.ObjectMeta) }),
		},
		{
			GVK: rbacv1.SchemeGroupVersion.WithKind("RoleBinding"), Plural: "rolebindings", Namespaced: true,
			New: empty[rbacv1.RoleBinding], NewList: empty[rbacv1.RoleBindingList],
			Default:  one(func(b *rbacv1.RoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) }),
			Validate: check(validateRoleBinding), ValidateUpdate: checkTwo(validateRoleBindingUpdate),
			Columns: bindingColumns("roleBinding", docs(rbacv1.RoleBinding{}, "roleRef")), Cells: cells(func(b *rbacv1.RoleBinding, now time.Time) []any {
				return bindingCells(&b.ObjectMeta, b.RoleRef, b.Subjects, now)
			}),
		},
		{
			GVK: rbacv1.SchemeGroupVersion.WithKind("ClusterRole"), Plural: "clusterroles",
			New: empty[rbacv1.ClusterRole], NewList: empty[rbacv1.ClusterRoleList],
			Validate: check(validateClusterRole), ValidateUpdate: checkTwo(validateClusterRoleUpdate),
			Columns: createdColumns, Cells: cells(func(r *rbacv1.ClusterRole, _ time.Time) []any { return createdCells(&r.ObjectMeta) }),
		},
		{
			GVK: rbacv1.SchemeGroupVersion.WithKind("ClusterRoleBinding"), Plural: "clusterrolebindings",
			New: empty[rbacv1.ClusterRoleBinding], NewList: empty[rbacv1.ClusterRoleBindingList],
			Default:  one(func(b *rbacv1.ClusterRoleBinding) { defaultBinding(&b.RoleRef, b.Subjects) }),
			Validate: check(validateClusterRoleBinding), ValidateUpdate: checkTwo(validateClusterRoleBindingUpdate),
			Columns: bindingColumns("clusterRoleBinding", docs(rbacv1.ClusterRoleBinding{}, "roleRef")), Cells: cells(func(b *rbacv1.ClusterRoleBinding, now time.Time) []any {
				return bindingCells(&b.ObjectMeta, b.RoleRef, b.Subjects, now)
			}),
		},
	}
}

func defaultBinding(ref *rbacv1.RoleRef, subjects []rbacv1.Subject) {
	if ref.APIGroup == "" {
		ref.APIGroup = rbacv1.GroupName
	}
	for i := range subjects {
		if s := &subjects[i]; s.APIGroup == "" && (s.Kind == rbacv1.UserKind || s.Kind == rbacv1.GroupKind) {
			s.APIGroup = rbacv1.GroupName
		}
	}
}

// Kinds without columns of their own are shown with the time of their creation.
var createdColumns = []metav1.TableColumnDefinition{
	nameColumn,
	{Name: "Created At", Type: "date", Description: metaDescription["creationTimestamp"]},
}

func createdCells(meta *metav1.ObjectMeta) []any {
	return []any{meta.Name, meta.CreationTimestamp.UTC().Format(time.RFC3339)}
}

func bindingColumns(kind, role string) []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		nameColumn,
		text("Role", role),
		ageColumn,
		wide(text("Users", "Users in the "+kind)),
		wide(text("Groups", "Groups in the "+kind)),
		wide(text("ServiceAccounts", "ServiceAccounts in the "+kind)),
	}
}

func bindingCells(meta *metav1.ObjectMeta, ref rbacv1.RoleRef, subjects []rbacv1.Subject, now time.Time) []any {
	names := map[string][]string{}
	for _, s := range subjects {
		name := s.Name
		if s.Kind == rbacv1.ServiceAccountKind {
			name = s.Namespace + "/" + s.Name
		}
		names[s.Kind] = append(names[s.Kind], name)
	}
	of := func(kind string) string { return strings.Join(names[kind], ", ") }
	return []any{
		meta.Name, ref.Kind + "/" + ref.Name, age(meta.CreationTimestamp, now),
		of(rbacv1.UserKind), of(rbacv1.GroupKind), of(rbacv1.ServiceAccountKind),
	}
}
