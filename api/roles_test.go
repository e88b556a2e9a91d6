package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"conclave/api"
	"conclave/api/apitest"
)

// as is client-go's client of a user with a certificate.
func (st *site) as(name string, groups ...string) *kubernetes.Clientset {
	st.t.Helper()
	cs, err := kubernetes.NewForConfig(&rest.Config{Host: st.http.URL, Transport: st.transport(name, groups...), QPS: -1})
	if err != nil {
		st.t.Fatal(err)
	}
	return cs
}

func right(verbs, group, resources string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Split(verbs, ","), APIGroups: []string{group}, Resources: strings.Split(resources, ","), ResourceNames: names}
}

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: named(name), Rules: rules}
}

func user(name string) rbacv1.Subject { return rbacv1.Subject{Kind: "User", Name: name} }

func toClusterRole(name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{Kind: "ClusterRole", Name: name}
}

func roleBinding(name, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{ObjectMeta: named(name), RoleRef: toClusterRole(role), Subjects: subjects}
}

func clusterBinding(name, role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: named(name), RoleRef: toClusterRole(role), Subjects: subjects}
}

// What a role allows it allows as soon as it is bound, and no longer than it is.
func TestRoles(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	st.namespace("bank")
	cs, ctx := st.clientset(""), t.Context()
	jane := st.as("jane")
	list := func(ns string) error {
		_, err := jane.CoreV1().ConfigMaps(ns).List(ctx, metav1.ListOptions{})
		return err
	}
	refused := func(when string, err error, want string) {
		t.Helper()
		if !apierrors.IsForbidden(err) || err.Error() != want {
			t.Errorf("%s: %v\nwant %s", when, err, want)
		}
	}
	const plain = `configmaps is forbidden: User "jane" cannot list resource "configmaps" in API group "" in the namespace "shop"`
	refused("before", list("shop"), plain)
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("readers", "reader", user("jane")), metav1.CreateOptions{}))(t)
	refused("without the role", list("shop"), plain+`: RBAC: clusterrole.rbac.authorization.k8s.io "reader" not found`)
	must(cs.RbacV1().ClusterRoles().Create(ctx, clusterRole("reader", right("list", "", "configmaps")), metav1.CreateOptions{}))(t)
	if err := list("shop"); err != nil {
		t.Error(err)
	}
	refused("elsewhere", list("bank"), strings.Replace(plain, "shop", "bank", 1))
	refused("everywhere", list(""), strings.Replace(plain, ` in the namespace "shop"`, " at the cluster scope", 1))
	refused("a subresource", &apierrors.StatusError{ErrStatus: st.request(st.transport("jane"), "GET", "/api/v1/namespaces/shop/pods/p/log", "").status(t)}, `pods "p" is forbidden: User "jane" cannot get resource "pods/log" in API group "" in the namespace "shop"`)
	if err := cs.RbacV1().RoleBindings("shop").Delete(ctx, "readers", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	refused("after", list("shop"), plain)
}

// Who may only read may not run programs by a WebSocket, which begins with a GET.
func TestWebSocketsCreate(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	must(cs.CoreV1().Pods("shop").Create(ctx, testPod("p"), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().ClusterRoles().Create(ctx, clusterRole("reader", right("get", "", "pods/exec,pods/log")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().ClusterRoles().Create(ctx, clusterRole("runner", right("get,create", "", "pods/exec")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("readers", "reader", user("jane")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("runners", "runner", user("joe")), metav1.CreateOptions{}))(t)
	const pod = "/api/v1/namespaces/shop/pods/p"
	for _, tc := range []struct {
		who, method, path string
		code              int
		say               string
	}{
		{"jane", "GET", "/log", 200, ""},
		{"jane", "GET", "/exec?command=id", 403, `pods "p" is forbidden: User "jane" cannot create resource "pods/exec" in API group "" in the namespace "shop"`},
		{"jane", "POST", "/exec?command=id", 403, `cannot create resource "pods/exec"`},
		{"joe", "GET", "/exec?command=id", 400, "does not have a host assigned"},
		{"joe", "POST", "/exec?command=id", 400, "does not have a host assigned"},
		{"joe", "GET", "/log", 403, `cannot get resource "pods/log"`},
	} {
		a := st.request(st.transport(tc.who), tc.method, pod+tc.path, "")
		if a.code != tc.code || tc.say != "" && !strings.Contains(a.status(t).Message, tc.say) {
			t.Errorf("%s %s %s: %d %s", tc.who, tc.method, tc.path, a.code, a.body)
		}
	}
}

// Rights in a namespace are not rights to what is in none, by whichever path.
func TestNamespaceIsNoWayOut(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("all", "cluster-admin", user("jane")), metav1.CreateOptions{}))(t)
	rt := st.transport("jane")
	binding := `{"metadata":{"name":"out"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"jane"}]}`
	for _, tc := range []struct {
		method, path, body string
		code               int
	}{
		{"GET", "/api/v1/namespaces/shop", "", 200},
		{"GET", "/api/v1/namespaces/shop/pods", "", 200},
		{"GET", "/api/v1/namespaces/shop/nodes", "", 404},
		{"GET", "/api/v1/watch/namespaces/shop/nodes", "", 404},
		{"GET", "/api/v1/namespaces/shop/namespaces", "", 404},
		{"GET", "/api/v1/namespaces/shop/namespaces/default", "", 404},
		{"DELETE", "/api/v1/namespaces/shop/namespaces/default", "", 404},
		{"GET", "/api/v1/namespaces/default", "", 403},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/clusterrolebindings", binding, 404},
		{"POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding, 403},
		{"GET", "/apis/metrics.k8s.io/v1beta1/namespaces/shop/nodes", "", 404},
		{"GET", "/metrics", "", 403},
	} {
		if a := st.request(rt, tc.method, tc.path, tc.body); a.code != tc.code {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, a.code, a.body)
		}
	}
	if _, err := cs.RbacV1().ClusterRoleBindings().Get(ctx, "out", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

// Nobody gives away what they do not have, but who may escalate or bind.
func TestEscalation(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	const rbacGroup = rbacv1.GroupName
	create := func(r *rbacv1.ClusterRole) {
		t.Helper()
		must(cs.RbacV1().ClusterRoles().Create(ctx, r, metav1.CreateOptions{}))(t)
	}
	create(clusterRole("writer", right("*", rbacGroup, "roles,rolebindings,clusterroles,clusterrolebindings"), right("get,list", "", "pods")))
	create(clusterRole("escalator", right("escalate", rbacGroup, "clusterroles")))
	create(clusterRole("binder", right("bind", rbacGroup, "clusterroles", "secret-reader")))
	create(clusterRole("secret-reader", right("get", "", "secrets")))
	create(clusterRole("pod-reader", right("get", "", "pods")))
	// A role that gathers: rules of its own are none that a writer lacks.
	gathering := clusterRole("gathering")
	gathering.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{"a": "b"}}}}
	// Every star of roles is one of their verbs, so writers may escalate: take
	// that from them.
	for _, name := range []string{"joe", "jane", "eve"} {
		must(cs.RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding(name, "limited", user(name)), metav1.CreateOptions{}))(t)
	}
	create(clusterRole("limited", right("create,update,patch,get", rbacGroup, "roles,rolebindings,clusterroles,clusterrolebindings"), right("get,list", "", "pods")))
	must(cs.RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding("eve-escalates", "escalator", user("eve")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding("joe-binds", "binder", user("joe")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding("boss-writes", "writer", user("boss")), metav1.CreateOptions{}))(t)

	const attempt = `user "jane" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:` + "\n"
	role := func(who string, r *rbacv1.ClusterRole) error {
		_, err := st.as(who).RbacV1().ClusterRoles().Create(ctx, r, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	bind := func(who, to string) error {
		_, err := st.as(who).RbacV1().RoleBindings("shop").Create(ctx, roleBinding("b", to, user(who)), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	for name, tc := range map[string]struct {
		err  error
		want string // empty: allowed
	}{
		"what she has":        {role("jane", clusterRole("r", right("get", "", "pods"))), ""},
		"what she has not":    {role("jane", clusterRole("r", right("get,watch,delete", "", "pods,nodes"))), `clusterroles.rbac.authorization.k8s.io "r" is forbidden: ` + attempt + `{APIGroups:[""], Resources:["nodes"], Verbs:["get" "watch" "delete"]}` + "\n" + `{APIGroups:[""], Resources:["pods"], Verbs:["watch" "delete"]}`},
		"paths":               {role("jane", &rbacv1.ClusterRole{ObjectMeta: named("r"), Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/api", "/metrics"}}}}), `clusterroles.rbac.authorization.k8s.io "r" is forbidden: ` + attempt + `{NonResourceURLs:["/metrics"], Verbs:["get"]}`},
		"gathering":           {role("jane", gathering), `clusterroles.rbac.authorization.k8s.io "gathering" is forbidden: must have cluster-admin privileges to use the aggregationRule`},
		"by escalate":         {role("eve", clusterRole("r", right("*", "*", "*"))), ""},
		"by escalate, gather": {role("eve", gathering), ""},
		"by a star":           {role("boss", clusterRole("r", right("*", "*", "*"))), ""},
		"binds what she has":  {bind("jane", "pod-reader"), ""},
		"binds more":          {bind("jane", "secret-reader"), `rolebindings.rbac.authorization.k8s.io "b" is forbidden: ` + attempt + `{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}`},
		"binds nothing":       {bind("jane", "nothing"), `clusterroles.rbac.authorization.k8s.io "nothing" not found`},
		"by bind":             {bind("joe", "secret-reader"), ""},
		"by bind, another":    {bind("joe", "cluster-admin"), `rolebindings.rbac.authorization.k8s.io "b" is forbidden: user "joe" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held:` + "\n" + `{APIGroups:["*"], Resources:["*"], Verbs:["*"]}` + "\n" + `{NonResourceURLs:["*"], Verbs:["*"]}`},
	} {
		switch {
		case tc.want == "" && tc.err != nil, tc.want != "" && tc.err == nil:
			t.Errorf("%s: %v", name, tc.err)
		case tc.want != "" && tc.err.Error() != tc.want:
			t.Errorf("%s:\n%s\nwant\n%s", name, tc.err, tc.want)
		}
	}

	// An update is looked at like a new object, whatever it is called; one that
	// lets an object go is not.
	jane := st.as("jane")
	for verb, err := range map[string]error{
		"patch": func() error {
			_, err := jane.RbacV1().ClusterRoles().Patch(ctx, "pod-reader", "application/json-patch+json", []byte(`[{"op":"add","path":"/rules/0/verbs/-","value":"delete"}]`), metav1.PatchOptions{})
			return err
		}(),
		"apply": func() error {
			_, err := jane.RbacV1().ClusterRoles().Patch(ctx, "pod-reader", "application/apply-patch+yaml", []byte(`{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"pod-reader"},"rules":[{"verbs":["delete"],"apiGroups":[""],"resources":["pods"]}]}`), metav1.PatchOptions{FieldManager: "t", Force: new(true)})
			return err
		}(),
	} {
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `Verbs:["delete"]`) {
			t.Errorf("%s: %v", verb, err)
		}
	}
	if _, err := jane.RbacV1().ClusterRoles().Patch(ctx, "secret-reader", "application/merge-patch+json", []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a label may have it gathered: %v", err)
	}
	if _, err := jane.RbacV1().ClusterRoles().Patch(ctx, "secret-reader", "application/merge-patch+json", []byte(`{"metadata":{"finalizers":["example.com/x"]}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	b := must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("fixed", "view", user("jane")), metav1.CreateOptions{}))(t)
	b.RoleRef.Name = "edit"
	if _, err := cs.RbacV1().RoleBindings("shop").Update(ctx, b, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "cannot change roleRef") {
		t.Errorf("%v", err)
	}
}

// Reviews of access tell the same as the server does, and why.
func TestReviewsOfRoles(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	must(cs.RbacV1().Roles("shop").Create(ctx, &rbacv1.Role{ObjectMeta: named("reader"), Rules: []rbacv1.PolicyRule{right("get", "", "pods/log")}}, metav1.CreateOptions{}))(t)
	b := roleBinding("readers", "", rbacv1.Subject{Kind: "ServiceAccount", Name: "default"})
	b.RoleRef = rbacv1.RoleRef{Kind: "Role", Name: "reader"}
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, b, metav1.CreateOptions{}))(t)
	account := "system:serviceaccount:shop:default"
	logs := authorizationv1.ResourceAttributes{Verb: "get", Resource: "pods", Subresource: "log", Namespace: "shop"}
	ask := func(a authorizationv1.ResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
		t.Helper()
		return must(cs.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
			Spec: authorizationv1.SubjectAccessReviewSpec{User: account, ResourceAttributes: &a},
		}, metav1.CreateOptions{}))(t).Status
	}
	if s := ask(logs); !s.Allowed || s.Reason != `RBAC: allowed by RoleBinding "readers/shop" of Role "reader" to ServiceAccount "default/shop"` {
		t.Errorf("%+v", s)
	}
	logs.Subresource = ""
	if s := ask(logs); s.Allowed || s.Reason != "" {
		t.Errorf("%+v", s)
	}
	rules := must(st.as(account, "system:serviceaccounts").AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "shop"},
	}, metav1.CreateOptions{}))(t).Status
	text := fmt.Sprint(rules.ResourceRules, rules.NonResourceRules)
	for _, want := range []string{"pods/log", "selfsubjectaccessreviews", "/openid/v1/jwks", "/apis/*"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not among %s", want, text)
		}
	}
	if strings.Contains(text, "[*]") || rules.Incomplete {
		t.Errorf("%+v", rules)
	}
	// A node's rights by its pods are no rules; of which pods it asks, matters.
	node := api.User{Name: "system:node:n1", Groups: []string{"system:nodes"}}
	for selector, want := range map[string]bool{"n1": true, "n2": false} {
		s := must(cs.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
			User: node.Name, Groups: node.Groups, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", FieldSelector: &authorizationv1.FieldSelectorAttributes{
				Requirements: []metav1.FieldSelectorRequirement{{Key: "spec.nodeName", Operator: metav1.FieldSelectorOpIn, Values: []string{selector}}},
			}},
		}}, metav1.CreateOptions{}))(t).Status
		if s.Allowed != want {
			t.Errorf("%s: %+v", selector, s)
		}
	}
}

// Being taken for somebody else is a right of its own, and gives theirs.
func TestImpersonationIsARight(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	must(cs.RbacV1().ClusterRoles().Create(ctx, clusterRole("as-jane", right("impersonate", "", "users", "jane"), right("impersonate", "", "groups", "devs"), right("impersonate", "authentication.k8s.io", "userextras/reason", "test")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding("as-jane", "as-jane", user("tester")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("edit", "system:aggregate-to-edit", user("editor")), metav1.CreateOptions{}))(t)
	must(cs.RbacV1().RoleBindings("shop").Create(ctx, roleBinding("devs", "system:aggregate-to-view", rbacv1.Subject{Kind: "Group", Name: "devs"}), metav1.CreateOptions{}))(t)
	pods := func(rt http.RoundTripper, header ...string) (int, string) {
		a := st.request(rt, "GET", "/api/v1/namespaces/shop/pods", "", header...)
		return a.code, a.status(t).Message
	}
	tester, editor := st.transport("tester"), st.transport("editor")
	for name, tc := range map[string]struct {
		rt     http.RoundTripper
		header []string
		code   int
		say    string
	}{
		"himself":          {tester, nil, 403, `User "tester" cannot list`},
		"jane":             {tester, []string{"Impersonate-User", "jane"}, 403, `User "jane" cannot list`},
		"jane, a dev":      {tester, []string{"Impersonate-User", "jane", "Impersonate-Group", "devs"}, 200, ""},
		"with a reason":    {tester, []string{"Impersonate-User", "jane", "Impersonate-Group", "devs", "Impersonate-Extra-Reason", "test"}, 200, ""},
		"another reason":   {tester, []string{"Impersonate-User", "jane", "Impersonate-Extra-Reason", "fun"}, 403, `userextras.authentication.k8s.io "fun" is forbidden: User "tester" cannot impersonate resource "userextras/reason" in API group "authentication.k8s.io" at the cluster scope`},
		"joe":              {tester, []string{"Impersonate-User", "joe"}, 403, `users "joe" is forbidden: User "tester" cannot impersonate resource "users" in API group "" at the cluster scope`},
		"a master":         {tester, []string{"Impersonate-User", "jane", "Impersonate-Group", "system:masters"}, 403, `groups "system:masters" is forbidden: User "tester" cannot impersonate resource "groups" in API group "" at the cluster scope`},
		"a group alone":    {tester, []string{"Impersonate-Group", "devs"}, 400, ""},
		"account, by edit": {editor, []string{"Impersonate-User", "system:serviceaccount:shop:default"}, 403, `User "system:serviceaccount:shop:default" cannot list`},
		"elsewhere":        {editor, []string{"Impersonate-User", "system:serviceaccount:default:default"}, 403, `serviceaccounts "default" is forbidden: User "editor" cannot impersonate resource "serviceaccounts" in API group "" in the namespace "default"`},
	} {
		if code, say := pods(tc.rt, tc.header...); code != tc.code || !strings.Contains(say, tc.say) {
			t.Errorf("%s: %d %s", name, code, say)
		}
	}
}

// What a user may is looked up again before it is refused; not where nobody can
// say more, and not for those whom nobody knows.
func TestRefusalCatchesUp(t *testing.T) {
	st := newSite(t)
	jane := api.User{Name: "jane", Groups: []string{"system:authenticated"}}
	nobody := api.User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}
	get := func(u api.User) error {
		_, _, err := st.Local(u).List(context.Background(), api.GVROf(&corev1.ConfigMap{}), "default", metav1.ListOptions{})
		return err
	}
	for _, tc := range []struct {
		u     api.User
		syncs int
	}{{jane, 1}, {nobody, 0}, {apitest.Admin, 0}} {
		before := st.store.Syncs()
		if err := get(tc.u); (tc.u.Name != apitest.Admin.Name) != apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", tc.u.Name, err)
		}
		if n := st.store.Syncs() - before; n != tc.syncs {
			t.Errorf("%s: %d syncs", tc.u.Name, n)
		}
	}
	c := st.Local(apitest.Admin)
	if _, err := c.Create(t.Context(), api.GVROf(&rbacv1.ClusterRoleBinding{}), "", "", clusterBinding("jane", "system:aggregate-to-view", user("jane")), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	st.store.FailSync(errors.Join(api.ErrNoLeader))
	if err := get(jane); err != nil {
		t.Errorf("without a majority: %v", err)
	}
	if err := get(nobody); !apierrors.IsForbidden(err) {
		t.Errorf("%v", err)
	}
}

// Many ask while roles and bindings change: each sees what was written before it
// asked, and rights of others never come and go by it.
func TestRightsWhileTheyChange(t *testing.T) {
	st := newSite(t)
	ctx, admin := t.Context(), st.Local(apitest.Admin)
	make := func(obj api.Object) {
		if _, err := admin.Create(ctx, api.GVROf(obj), "default", "", obj, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	}
	list := func(name string) error {
		_, _, err := st.Local(api.User{Name: name, Groups: []string{"system:authenticated"}}).List(ctx, api.GVROf(&corev1.ConfigMap{}), "default", metav1.ListOptions{})
		return err
	}
	make(roleBinding("always", "system:aggregate-to-view", user("always")))
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			for i := range 25 {
				name := fmt.Sprintf("u-%d-%d", w, i)
				if err := list(name); !apierrors.IsForbidden(err) {
					t.Errorf("%s before: %v", name, err)
				}
				make(roleBinding(name, "system:aggregate-to-view", user(name)))
				if err := list(name); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := admin.Delete(ctx, api.GVROf(&rbacv1.RoleBinding{}), "default", name, metav1.DeleteOptions{}); err != nil {
					t.Error(err)
				}
				if err := list(name); !apierrors.IsForbidden(err) {
					t.Errorf("%s after: %v", name, err)
				}
				if err := list("always"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}

// The roles of the system come back, keep what was added, and are let be if they
// say so; a binding to another role is made anew.
func TestSystemRolesAreKept(t *testing.T) {
	st := newSite(t)
	cs, ctx := st.clientset(""), t.Context()
	roles, bindings := cs.RbacV1().ClusterRoles(), cs.RbacV1().ClusterRoleBindings()
	view := must(roles.Get(ctx, "system:aggregate-to-view", metav1.GetOptions{}))(t)
	view.Rules = []rbacv1.PolicyRule{right("get", "example.com", "mice")}
	must(roles.Update(ctx, view, metav1.UpdateOptions{}))(t)
	edit := must(roles.Get(ctx, "system:aggregate-to-edit", metav1.GetOptions{}))(t)
	edit.Rules, edit.Annotations = nil, map[string]string{rbacv1.AutoUpdateAnnotationKey: "false"}
	must(roles.Update(ctx, edit, metav1.UpdateOptions{}))(t)
	for _, name := range []string{"system:discovery", "system:basic-user"} {
		if err := roles.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := bindings.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	must(bindings.Create(ctx, clusterBinding("system:discovery", "cluster-admin", user("jane")), metav1.CreateOptions{}))(t)
	const reader = "extension-apiserver-authentication-reader"
	if err := cs.RbacV1().Roles("kube-system").Delete(ctx, reader, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := st.EnsureDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	r := must(cs.RbacV1().Roles("kube-system").Get(ctx, reader, metav1.GetOptions{}))(t)
	if len(r.Rules) != 1 || r.Rules[0].ResourceNames[0] != "extension-apiserver-authentication" {
		t.Errorf("%+v", r.Rules)
	}
	r.Rules = r.Rules[:0]
	must(cs.RbacV1().Roles("kube-system").Update(ctx, r, metav1.UpdateOptions{}))(t)
	if err := st.EnsureDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	if r := must(cs.RbacV1().Roles("kube-system").Get(ctx, reader, metav1.GetOptions{}))(t); len(r.Rules) != 3 { // a verb each
		t.Errorf("%+v", r.Rules)
	}
	if r := must(roles.Get(ctx, "system:aggregate-to-view", metav1.GetOptions{}))(t); r.Rules[0].Resources[0] != "mice" || len(r.Rules) < 20 {
		t.Errorf("%+v", r.Rules)
	}
	if r := must(roles.Get(ctx, "system:aggregate-to-edit", metav1.GetOptions{}))(t); len(r.Rules) != 0 {
		t.Errorf("%+v", r.Rules)
	}
	if b := must(bindings.Get(ctx, "system:discovery", metav1.GetOptions{}))(t); b.RoleRef.Name != "system:discovery" || len(b.Subjects) != 2 {
		t.Errorf("%+v", b)
	}
	// Where nobody has written any yet, those of the system hold.
	if err := roles.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := bindings.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]int{"/readyz": 200, "/api": 403} {
		if a := st.request(st.transport(""), "GET", path, ""); a.code != code {
			t.Errorf("%s: %d %s", path, a.code, a.body)
		}
	}
	if err := st.EnsureDefaults(ctx); err != nil {
		t.Fatal(err)
	}
	at := st.store.Revision()
	if err := st.EnsureDefaults(ctx); err != nil || st.store.Revision() != at {
		t.Errorf("what is as it should be was written again: %v", err)
	}
}

// BenchmarkAuthorize is a GET in process: of a master, of a node and of whoever has
// a role, and a refusal.
func BenchmarkAuthorize(b *testing.B) {
	st := newSite(b)
	c := st.Local(apitest.Admin)
	for _, obj := range []api.Object{
		&corev1.Node{ObjectMeta: named("n1")}, clusterBinding("jane", "system:aggregate-to-view", user("jane")),
	} {
		if _, err := c.Create(b.Context(), api.GVROf(obj), "", "", obj, metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for name, u := range map[string]api.User{
		"master": apitest.Admin, "node": {Name: "system:node:n1", Groups: []string{"system:nodes", "system:authenticated"}},
		"user": {Name: "jane", Groups: []string{"system:authenticated"}}, "refused": {Name: "joe", Groups: []string{"system:authenticated"}},
	} {
		b.Run(name, func(b *testing.B) {
			c := st.Local(u)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Get(b.Context(), api.GVROf(&corev1.Namespace{}), "", "default", metav1.GetOptions{}); (err != nil) != (name == "refused") {
					b.Fatal(err)
				}
			}
		})
	}
}
