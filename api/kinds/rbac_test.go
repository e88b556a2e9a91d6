package kinds

import (
	"reflect"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func TestValidateRBAC(t *testing.T) {
	const (
		roles, bindings       = "roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io"
		clusterRoles, cluster = "clusterroles.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io"
		meta                  = "metadata: {name: 'system:x', namespace: default}\n"
		global                = "metadata: {name: 'system:x'}\n"
		ref                   = "roleRef: {kind: ClusterRole, name: view}\n"
	)
	for _, tc := range []struct {
		resource, name, object string
		want                   []string
	}{
		{roles, "good", meta + "rules: [{verbs: [get], apiGroups: [''], resources: [pods, pods/log], resourceNames: [a]}]", nil},
		{roles, "without rules", meta, nil},
		{roles, "a name that is no path", "metadata: {name: 'a/b', namespace: default}", []string{"metadata.name: Invalid value: \"a/b\": may not contain '/'"}},
		{roles, "empty rule", meta + "rules: [{}]", []string{
			"rules[0].verbs: Required value: verbs must contain at least one value",
			"rules[0].apiGroups: Required value: resource rules must supply at least one api group",
			"rules[0].resources: Required value: resource rules must supply at least one resource",
		}},
		{roles, "paths", meta + "rules: [{verbs: [get], nonResourceURLs: [/x]}]", []string{
			`rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs`,
		}},
		{clusterRoles, "paths", global + "rules: [{verbs: [get], nonResourceURLs: [/x]}]", nil},
		{clusterRoles, "both", global + "rules: [{verbs: [get], nonResourceURLs: [/x], resources: [pods]}]", []string{
			`rules[0].nonResourceURLs: Invalid value: ["/x"]: rules cannot apply to both regular resources and non-resource URLs`,
		}},
		{clusterRoles, "gathers nothing", global + "aggregationRule: {}", []string{
			"aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
		}},
		{clusterRoles, "gathers", global + "aggregationRule: {clusterRoleSelectors: [{matchLabels: {a: b}}]}", nil},
		{clusterRoles, "a bad selector", global + "aggregationRule: {clusterRoleSelectors: [{matchLabels: {'a b': b}}]}", []string{
			"aggregationRule.clusterRoleSelectors[0].matchLabels: Invalid value: \"a b\": name part must consist of…",
			"aggregationRule.clusterRoleSelectors[0]: Invalid value: …",
		}},
		{bindings, "good", meta + ref + "subjects: [{kind: User, name: jane}, {kind: Group, name: 'a b'}, {kind: ServiceAccount, name: default}]", nil},
		{bindings, "of nothing", meta, []string{
			`roleRef.kind: Unsupported value: "": supported values: "Role", "ClusterRole"`,
			"roleRef.name: Required value",
		}},
		{bindings, "of another group", meta + "roleRef: {apiGroup: x, kind: Role, name: '..'}", []string{
			`roleRef.apiGroup: Unsupported value: "x": supported values: "rbac.authorization.k8s.io"`,
			`roleRef.name: Invalid value: "..": may not be '..'`,
		}},
		{bindings, "bad subjects", meta + ref + "subjects: [{kind: User, apiGroup: x}, {kind: ServiceAccount, apiGroup: x, name: 'a:b'}, {kind: Dog, name: rex}]", []string{
			"subjects[0].name: Required value",
			`subjects[0].apiGroup: Unsupported value: "x": supported values: "rbac.authorization.k8s.io"`,
			`subjects[1].name: Invalid value: "a:b": a lowercase RFC 1123 subdomain must consist of…`,
			`subjects[1].apiGroup: Unsupported value: "x": supported values: ""`,
			`subjects[2].kind: Unsupported value: "Dog": supported values: "ServiceAccount", "User", "Group"`,
		}},
		{cluster, "good", global + ref + "subjects: [{kind: ServiceAccount, name: default, namespace: a}]", nil},
		{cluster, "a role", global + "roleRef: {kind: Role, name: view}\nsubjects: [{kind: ServiceAccount, name: default}]", []string{
			`roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole"`,
			"subjects[0].namespace: Required value",
		}},
	} {
		t.Run(tc.resource+" "+tc.name, func(t *testing.T) {
			expect(t, table[tc.resource].Validate(parse[runtime.Object](t, tc.resource, tc.object)), tc.want...)
		})
	}
	old := parse[runtime.Object](t, bindings, meta+ref)
	other := parse[runtime.Object](t, bindings, meta+"roleRef: {kind: ClusterRole, name: edit}\nsubjects: [{kind: Group, name: all}]")
	for _, o := range []runtime.Object{old, other} {
		o.(metav1.Object).SetResourceVersion("1")
	}
	expect(t, table[bindings].ValidateUpdate(other, old), "roleRef: Invalid value: …")
	if s := other.(*rbacv1.RoleBinding).Subjects[0]; s.APIGroup != rbacv1.GroupName {
		t.Errorf("%+v", s)
	}
}

func TestRBACCells(t *testing.T) {
	now := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	meta := metav1.ObjectMeta{Name: "x", CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}
	subjects := []rbacv1.Subject{{Kind: "User", Name: "jane"}, {Kind: "Group", Name: "g"}, {Kind: "User", Name: "joe"}, {Kind: "ServiceAccount", Namespace: "a", Name: "b"}}
	ref := rbacv1.RoleRef{Kind: "ClusterRole", Name: "view"}
	for resource, tc := range map[string]struct {
		obj     runtime.Object
		headers []string
		want    []any
	}{
		"roles":        {&rbacv1.Role{ObjectMeta: meta}, []string{"Name", "Created At"}, []any{"x", "2020-01-02T02:04:05Z"}},
		"clusterroles": {&rbacv1.ClusterRole{ObjectMeta: meta}, []string{"Name", "Created At"}, []any{"x", "2020-01-02T02:04:05Z"}},
		"rolebindings": {&rbacv1.RoleBinding{ObjectMeta: meta, RoleRef: ref, Subjects: subjects},
			[]string{"Name", "Role", "Age", "Users", "Groups", "ServiceAccounts"}, []any{"x", "ClusterRole/view", "60m", "jane, joe", "g", "a/b"}},
		"clusterrolebindings": {&rbacv1.ClusterRoleBinding{ObjectMeta: meta, RoleRef: ref},
			[]string{"Name", "Role", "Age", "Users", "Groups", "ServiceAccounts"}, []any{"x", "ClusterRole/view", "60m", "", "", ""}},
	} {
		k := table[resource+".rbac.authorization.k8s.io"]
		var headers []string
		for _, c := range k.Columns {
			headers = append(headers, c.Name)
		}
		if got := k.Cells(tc.obj, now); !reflect.DeepEqual(got, tc.want) || !reflect.DeepEqual(headers, tc.headers) {
			t.Errorf("%s: %q %q", resource, headers, got)
		}
	}
}
