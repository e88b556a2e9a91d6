package rbac

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// rule reads a rule as the table of roles has it; names of objects follow a colon
// behind the resources.
func rule(text string) rbacv1.PolicyRule {
	words := strings.Fields(text)
	var names []string
	if last := len(words) - 1; last == 2 {
		before, after, ok := strings.Cut(words[last], ":")
		if ok {
			words[last], names = before, strings.Split(after, ",")
		}
	}
	r := readRule(words)
	r.ResourceNames = names
	return r
}

func rules(texts ...string) (all []rbacv1.PolicyRule) {
	for _, t := range texts {
		all = append(all, rule(t))
	}
	return all
}

func TestAllows(t *testing.T) {
	for _, tc := range []struct {
		rule string
		q    Request
		want bool
	}{
		{"get core pods", Request{Verb: "get", Resource: "pods"}, true},
		{"get core pods", Request{Verb: "list", Resource: "pods"}, false},
		{"get core pods", Request{Verb: "get", Resource: "pods", Name: "a"}, true},
		{"get core pods", Request{Verb: "get", Resource: "pods", Subresource: "log"}, false},
		{"get core pods", Request{Verb: "get", Group: "apps", Resource: "pods"}, false},
		{"get core pods", Request{Verb: "get", Path: "/pods"}, false},
		{"get core,apps deployments", Request{Verb: "get", Group: "apps", Resource: "deployments"}, true},
		{"get core pods/log", Request{Verb: "get", Resource: "pods", Subresource: "log"}, true},
		{"get core pods/log", Request{Verb: "get", Resource: "pods"}, false},
		{"get core */log", Request{Verb: "get", Resource: "pods", Subresource: "log"}, true},
		{"get core */log", Request{Verb: "get", Resource: "log"}, false},
		{"get core */og", Request{Verb: "get", Resource: "pods", Subresource: "log"}, false},
		{"get core pods/*", Request{Verb: "get", Resource: "pods", Subresource: "log"}, false},
		{"get core xpods/log", Request{Verb: "get", Resource: "pods", Subresource: "log"}, false},
		{"update * */scale", Request{Verb: "update", Group: "apps", Resource: "deployments", Subresource: "scale"}, true},
		{"update * */scale", Request{Verb: "update", Group: "apps", Resource: "deployments"}, false},
		{"* * *", Request{Verb: "made-up", Group: "g", Resource: "r", Subresource: "s", Name: "n"}, true},
		{"* * *", Request{Verb: "get", Path: "/metrics"}, false},
		{"get core configmaps:a,b", Request{Verb: "get", Resource: "configmaps", Name: "b"}, true},
		{"get core configmaps:a,b", Request{Verb: "get", Resource: "configmaps", Name: "c"}, false},
		{"list core configmaps:a,b", Request{Verb: "list", Resource: "configmaps"}, false},
		{"create core configmaps:a,b", Request{Verb: "create", Resource: "configmaps"}, false},
		{"get /metrics", Request{Verb: "get", Path: "/metrics"}, true},
		{"get /metrics", Request{Verb: "get", Path: "/metrics/"}, false},
		{"get /metrics", Request{Verb: "head", Path: "/metrics"}, false},
		{"get /api/*", Request{Verb: "get", Path: "/api/v1"}, true},
		{"get /api/*", Request{Verb: "get", Path: "/api"}, false},
		{"get /ap*", Request{Verb: "get", Path: "/apis"}, true},
		{"get *", Request{Verb: "get", Path: "/"}, true},
		{"get /*/x", Request{Verb: "get", Path: "/a/x"}, false}, // * means anything at the end alone
		{"* *", Request{Verb: "get", Resource: "pods"}, false},
	} {
		r := rule(tc.rule)
		if got := allows(&r, &tc.q); got != tc.want {
			t.Errorf("%q, %+v: %v", tc.rule, tc.q, got)
		}
	}
}

func TestMissing(t *testing.T) {
	for name, tc := range map[string]struct{ have, want, missing []string }{
		"nothing wanted": {nil, nil, nil},
		"all of it":      {[]string{"get,list core pods"}, []string{"get core pods"}, nil},
		"from two rules": {[]string{"get core pods", "list core pods"}, []string{"get,list core pods"}, nil},
		"another verb":   {[]string{"get core pods"}, []string{"get,list core pods", "watch core pods"}, []string{`{APIGroups:[""], Resources:["pods"], Verbs:["list" "watch"]}`}},
		"stars":          {[]string{"* * *", "* *"}, []string{"* * *", "* *"}, nil},
		"a star of many": {[]string{"get,list,watch core pods"}, []string{"* core pods"}, []string{`{APIGroups:[""], Resources:["pods"], Verbs:["*"]}`}},
		"subresources":   {[]string{"get core */log", "get core pods"}, []string{"get core pods/log,pods/status,*/log,log"}, []string{`{APIGroups:[""], Resources:["log"], Verbs:["get"]}`, `{APIGroups:[""], Resources:["pods/status"], Verbs:["get"]}`}},
		"odd resources":  {[]string{"get core pods"}, []string{"get core pods/"}, []string{`{APIGroups:[""], Resources:["pods/"], Verbs:["get"]}`}},
		"named":          {[]string{"get core pods"}, []string{"get core pods:a"}, nil},
		"named only": {[]string{"get core pods:a"}, []string{"get core pods:a,b", "get core pods"},
			[]string{`{APIGroups:[""], Resources:["pods"], ResourceNames:["b"], Verbs:["get"]}`, `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`}},
		"paths":         {[]string{"get /healthz/*"}, []string{"get /healthz/a,/healthz"}, []string{`{NonResourceURLs:["/healthz"], Verbs:["get"]}`}},
		"paths of many": {[]string{"get /a*"}, []string{"get /ab*"}, nil},
		"groups":        {[]string{"get apps deployments"}, []string{"get apps,extensions deployments"}, []string{`{APIGroups:["extensions"], Resources:["deployments"], Verbs:["get"]}`}},
	} {
		got := Describe(Missing(rules(tc.have...), rules(tc.want...)))
		if len(got) == 0 && len(tc.missing) == 0 {
			continue
		}
		if !reflect.DeepEqual(got, tc.missing) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(tc.missing, "\n"))
		}
	}
}

// world is a random set of roles and bindings, from few names, so that they meet.
type world struct {
	clusterRoles    []*rbacv1.ClusterRole
	clusterBindings []*rbacv1.ClusterRoleBinding
	roles           []*rbacv1.Role
	bindings        []*rbacv1.RoleBinding
}

func some(r *rand.Rand, of ...string) (list []string) {
	for len(list) == 0 || r.IntN(3) == 0 {
		list = append(list, of[r.IntN(len(of))])
	}
	return list
}

var (
	someNamespaces = []string{"a", "b", "c"}
	someNames      = []string{"x", "y", "z"}
	someVerbs      = []string{"get", "list", "*", "create"}
	someGroups     = []string{"", "apps", "*"}
	someResources  = []string{"pods", "pods/log", "*/log", "*", "deployments", "*/scale", "deployments/scale"}
	somePaths      = []string{"/api", "/api/*", "/a*", "*", "/version"}
	someUsers      = []string{"jane", "joe", "system:serviceaccount:a:x", "system:serviceaccount:b:y"}
	someTeams      = []string{"team", "system:authenticated", "system:serviceaccounts:a"}
)

func randomRules(r *rand.Rand, paths bool) (all []rbacv1.PolicyRule) {
	for range 1 + r.IntN(4) {
		p := rbacv1.PolicyRule{Verbs: some(r, someVerbs...)}
		if paths && r.IntN(3) == 0 {
			p.NonResourceURLs = some(r, somePaths...)
		} else {
			p.APIGroups, p.Resources = some(r, someGroups...), some(r, someResources...)
			if r.IntN(4) == 0 {
				p.ResourceNames = some(r, someNames...)
			}
		}
		all = append(all, p)
	}
	return all
}

func randomSubjects(r *rand.Rand) (all []rbacv1.Subject) {
	for range 1 + r.IntN(4) {
		switch r.IntN(3) {
		case 0:
			all = append(all, rbacv1.Subject{Kind: "User", Name: someUsers[r.IntN(len(someUsers))]})
		case 1:
			all = append(all, rbacv1.Subject{Kind: "Group", Name: someTeams[r.IntN(len(someTeams))]})
		default:
			s := rbacv1.Subject{Kind: "ServiceAccount", Name: someNames[r.IntN(len(someNames))]}
			if r.IntN(2) == 0 {
				s.Namespace = someNamespaces[r.IntN(len(someNamespaces))]
			}
			all = append(all, s)
		}
	}
	return all
}

func randomWorld(r *rand.Rand) (w world) {
	ref := func(kinds ...string) rbacv1.RoleRef {
		return rbacv1.RoleRef{Kind: kinds[r.IntN(len(kinds))], Name: someNames[r.IntN(len(someNames))]}
	}
	for _, name := range someNames {
		if r.IntN(3) > 0 {
			w.clusterRoles = append(w.clusterRoles, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: randomRules(r, true)})
		}
		w.clusterBindings = append(w.clusterBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: ref("ClusterRole"), Subjects: randomSubjects(r)})
	}
	for _, ns := range someNamespaces {
		for _, name := range someNames {
			if r.IntN(3) > 0 {
				w.roles = append(w.roles, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Rules: randomRules(r, false)})
			}
			if r.IntN(3) > 0 {
				w.bindings = append(w.bindings, &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, RoleRef: ref("Role", "ClusterRole"), Subjects: randomSubjects(r)})
			}
		}
	}
	return w
}

func (w world) index(on *Index) *Index {
	return on.WithClusterRoles(w.clusterRoles).WithClusterRoleBindings(w.clusterBindings).WithRoles(w.roles).WithRoleBindings(w.bindings)
}

// allows is what the documentation of Kubernetes says, word for word and slowly.
func (w world) allows(u User, q Request) bool {
	isOne := func(subjects []rbacv1.Subject, ns string) bool {
		for _, s := range subjects {
			switch s.Kind {
			case "User":
				if s.Name == u.Name {
					return true
				}
			case "Group":
				for _, g := range u.Groups {
					if s.Name == g {
						return true
					}
				}
			case "ServiceAccount":
				of := s.Namespace
				if of == "" {
					of = ns
				}
				if of != "" && u.Name == fmt.Sprintf("system:serviceaccount:%s:%s", of, s.Name) {
					return true
				}
			}
		}
		return false
	}
	contains := func(list []string, values ...string) bool {
		for _, s := range list {
			for _, v := range values {
				if s == v {
					return true
				}
			}
		}
		return false
	}
	permits := func(rules []rbacv1.PolicyRule) bool {
		for _, r := range rules {
			if !contains(r.Verbs, q.Verb, "*") {
				continue
			}
			if q.Path != "" {
				for _, p := range r.NonResourceURLs {
					if p == q.Path || p[len(p)-1] == '*' && strings.HasPrefix(q.Path, p[:len(p)-1]) {
						return true
					}
				}
				continue
			}
			whole := q.Resource
			patterns := []string{"*"}
			if q.Subresource != "" {
				whole += "/" + q.Subresource
				patterns = append(patterns, "*/"+q.Subresource)
			}
			if contains(r.APIGroups, q.Group, "*") && contains(r.Resources, append(patterns, whole)...) &&
				(len(r.ResourceNames) == 0 || contains(r.ResourceNames, q.Name)) {
				return true
			}
		}
		return false
	}
	role := func(ref rbacv1.RoleRef, ns string) []rbacv1.PolicyRule {
		if ref.Kind == "ClusterRole" {
			for _, r := range w.clusterRoles {
				if r.Name == ref.Name {
					return r.Rules
				}
			}
			return nil
		}
		for _, r := range w.roles {
			if r.Name == ref.Name && r.Namespace == ns {
				return r.Rules
			}
		}
		return nil
	}
	for _, b := range w.clusterBindings {
		if isOne(b.Subjects, "") && permits(role(b.RoleRef, "")) {
			return true
		}
	}
	for _, b := range w.bindings {
		if q.Path == "" && b.Namespace == q.Namespace && isOne(b.Subjects, b.Namespace) && permits(role(b.RoleRef, b.Namespace)) {
			return true
		}
	}
	return false
}

func randomAsk(r *rand.Rand) (User, Request) {
	u := User{Name: someUsers[r.IntN(len(someUsers))]}
	if r.IntN(2) == 0 {
		u.Groups = some(r, someTeams...)
	}
	q := Request{Verb: []string{"get", "list", "create", "delete"}[r.IntN(4)]}
	if r.IntN(5) == 0 {
		q.Path = []string{"/api", "/api/v1", "/version", "/x"}[r.IntN(4)]
		return u, q
	}
	q.Group = []string{"", "apps"}[r.IntN(2)]
	q.Resource, q.Subresource, _ = strings.Cut([]string{"pods", "pods/log", "deployments", "deployments/scale", "secrets", "secrets/log"}[r.IntN(6)], "/")
	if r.IntN(3) > 0 {
		q.Namespace = someNamespaces[r.IntN(len(someNamespaces))]
	}
	if r.IntN(2) == 0 {
		q.Name = someNames[r.IntN(len(someNames))]
	}
	return u, q
}

// An index says what reading everything says, whichever it was made of; and its
// Rules and Missing agree with it.
func TestIndexAgreesWithNaive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x, yes, no := &Index{}, 0, 0
	for range 400 {
		w := randomWorld(r)
		x = w.index(x)
		for range 60 {
			u, q := randomAsk(r)
			want := w.allows(u, q)
			if got := x.Allows(u, &q) != nil; got != want {
				t.Fatalf("%+v, %+v: %v\n%+v", u, q, got, w)
			}
			if want {
				yes++
			} else {
				no++
			}
			have, _ := x.Rules(u, q.Namespace)
			one := rbacv1.PolicyRule{Verbs: []string{q.Verb}}
			if q.Path != "" {
				one.NonResourceURLs = []string{q.Path}
				have, _ = x.Rules(u, "")
			} else {
				one.APIGroups, one.Resources = []string{q.Group}, []string{q.Resource}
				if q.Subresource != "" {
					one.Resources[0] += "/" + q.Subresource
				}
				if q.Name != "" {
					one.ResourceNames = []string{q.Name}
				}
			}
			if got := len(Missing(have, []rbacv1.PolicyRule{one})) == 0; got != want {
				t.Fatalf("%+v has %+v: that it covers %+v is %v", u, have, one, got)
			}
		}
	}
	if yes < 1000 || no < 1000 {
		t.Errorf("%d yes, %d no: the worlds are too poor", yes, no)
	}
}

func TestMissingRoles(t *testing.T) {
	x := (&Index{}).WithClusterRoleBindings([]*rbacv1.ClusterRoleBinding{
		{ObjectMeta: metav1.ObjectMeta{Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "gone"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "jane"}}},
	})
	if got, want := x.Why(User{Name: "jane"}, ""), `RBAC: clusterrole.rbac.authorization.k8s.io "gone" not found`; got != want {
		t.Errorf("%s", got)
	}
	if got := x.Why(User{Name: "joe"}, ""); got != "" {
		t.Errorf("%s", got)
	}
	x = x.WithRoleBindings([]*rbacv1.RoleBinding{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "gone"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "jane"}}},
	})
	if got, want := x.Why(User{Name: "jane"}, "n"), `RBAC: [clusterrole.rbac.authorization.k8s.io "gone" not found, role.rbac.authorization.k8s.io "gone" not found]`; got != want {
		t.Errorf("%s", got)
	}
	x = x.WithRoles([]*rbacv1.Role{{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "gone"}, Rules: rules("get core pods")}})
	g := x.Allows(User{Name: "jane"}, &Request{Verb: "get", Resource: "pods", Namespace: "n"})
	if g == nil || g.String() != `RoleBinding "b/n" of Role "gone" to User "jane"` {
		t.Errorf("%v", g)
	}
}

func TestAggregate(t *testing.T) {
	labelled := func(name, label string, texts ...string) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{label: "true"}}, Rules: rules(texts...)}
	}
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "all", Labels: map[string]string{"one": "true"}},
		Rules:      rules("get core secrets"), // what it has by hand it does not keep
		AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{
			{MatchLabels: map[string]string{"two": "true"}}, {MatchLabels: map[string]string{"one": "true"}},
		}},
	}
	got, err := Aggregate(role, []*rbacv1.ClusterRole{
		labelled("b", "one", "get core pods", "list core pods"), role, labelled("c", "two", "watch core pods"), labelled("a", "one", "list core pods"), labelled("d", "three", "* * *"),
	})
	if want := rules("watch core pods", "list core pods", "get core pods"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v %v", err, got)
	}
}

// The roles of the system, put together as the controller does.
func TestSystemRoles(t *testing.T) {
	all := Roles()
	for range 3 { // view, then edit, then admin
		for _, r := range all {
			if r.AggregationRule != nil {
				var err error
				if r.Rules, err = Aggregate(r, all); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	bind := func(role, user string) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: user}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: role}, Subjects: []rbacv1.Subject{{Kind: "User", Name: user}}}
	}
	bindings := Bindings()
	for _, role := range []string{"view", "edit", "admin", "system:auth-delegator", "system:persistent-volume-provisioner"} {
		bindings = append(bindings, bind(role, role))
	}
	x := (&Index{}).WithClusterRoles(all).WithClusterRoleBindings(bindings)
	group := func(name string) User { return User{Name: "somebody", Groups: []string{name}} }
	user := func(name string) User { return User{Name: name} }
	for _, tc := range []struct {
		u    User
		q    Request
		want bool
	}{
		{group("system:masters"), Request{Verb: "any", Path: "/x"}, true},
		{group("system:masters"), Request{Verb: "any", Resource: "any"}, true},
		{group("system:unauthenticated"), Request{Verb: "get", Path: "/healthz"}, true},
		{group("system:unauthenticated"), Request{Verb: "get", Path: "/healthz/ping"}, false},
		{group("system:unauthenticated"), Request{Verb: "get", Path: "/api"}, false},
		{group("system:authenticated"), Request{Verb: "get", Path: "/apis/apps/v1"}, true},
		{group("system:authenticated"), Request{Verb: "get", Path: "/metrics"}, false},
		{group("system:authenticated"), Request{Verb: "get", Path: "/openid/v1/jwks"}, false},
		{group("system:serviceaccounts"), Request{Verb: "get", Path: "/openid/v1/jwks"}, true},
		{group("system:monitoring"), Request{Verb: "get", Path: "/metrics"}, true},
		{group("system:authenticated"), Request{Verb: "create", Group: "authorization.k8s.io", Resource: "selfsubjectrulesreviews"}, true},
		{group("system:authenticated"), Request{Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}, false},
		{user("view"), Request{Verb: "list", Resource: "pods"}, true},
		{user("view"), Request{Verb: "get", Resource: "pods", Subresource: "log"}, true},
		{user("view"), Request{Verb: "get", Resource: "pods", Subresource: "exec"}, false},
		{user("view"), Request{Verb: "get", Resource: "secrets"}, false},
		{user("view"), Request{Verb: "list", Group: "metrics.k8s.io", Resource: "pods"}, true},
		{user("view"), Request{Verb: "create", Resource: "pods"}, false},
		{user("edit"), Request{Verb: "list", Resource: "pods"}, true},
		{user("edit"), Request{Verb: "get", Resource: "secrets"}, true},
		{user("edit"), Request{Verb: "create", Resource: "pods", Subresource: "eviction"}, true},
		{user("edit"), Request{Verb: "update", Resource: "endpoints"}, false},
		{user("edit"), Request{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "roles"}, false},
		{user("edit"), Request{Verb: "update", Resource: "resourcequotas"}, false},
		{user("admin"), Request{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "rolebindings"}, true},
		{user("admin"), Request{Verb: "escalate", Group: "rbac.authorization.k8s.io", Resource: "roles"}, false},
		{user("admin"), Request{Verb: "get", Resource: "nodes"}, false},
		{user("admin"), Request{Verb: "delete", Group: "apps", Resource: "statefulsets"}, true},
		{user("system:auth-delegator"), Request{Verb: "create", Group: "authentication.k8s.io", Resource: "tokenreviews"}, true},
		{user("system:persistent-volume-provisioner"), Request{Verb: "create", Group: "events.k8s.io", Resource: "events"}, true},
	} {
		if got := x.Allows(tc.u, &tc.q) != nil; got != tc.want {
			t.Errorf("%+v, %+v: %v", tc.u, tc.q, got)
		}
	}
	for _, r := range all {
		if r.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" || r.Annotations["rbac.authorization.kubernetes.io/autoupdate"] != "true" || len(r.Rules) == 0 {
			t.Errorf("%+v", r)
		}
	}
}

func TestReconcile(t *testing.T) {
	want := Roles()[0]
	if want.Name != "cluster-admin" || ReconcileRole(want.DeepCopy(), want) != nil {
		t.Errorf("%+v", want)
	}
	less := want.DeepCopy()
	less.Rules = append(rules("get core nodes"), less.Rules[0])
	less.Labels = map[string]string{"mine": "yes", "kubernetes.io/bootstrapping": "other"}
	got := ReconcileRole(less, want)
	if got == nil || !reflect.DeepEqual(got.Rules, rules("get core nodes", "* * *", "* *")) ||
		!reflect.DeepEqual(got.Labels, map[string]string{"mine": "yes", "kubernetes.io/bootstrapping": "other"}) {
		t.Errorf("%+v", got)
	}
	less.Annotations[AutoUpdate] = "false"
	if got := ReconcileRole(less, want); got != nil {
		t.Errorf("it says that it wants no update: %+v", got)
	}
	plain := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "view"}, Rules: rules("get core pods")}
	view := Roles()[slices.IndexFunc(Roles(), func(r *rbacv1.ClusterRole) bool { return r.Name == "view" })]
	if got := ReconcileRole(plain, view); got == nil || got.AggregationRule == nil || len(got.AggregationRule.ClusterRoleSelectors) != 1 || len(got.Rules) != 1 {
		t.Errorf("%+v", got)
	}

	binding := Bindings()[0]
	if got, _ := ReconcileBinding(binding.DeepCopy(), binding); got != nil {
		t.Errorf("%+v", got)
	}
	mine := binding.DeepCopy()
	mine.Subjects = []rbacv1.Subject{{Kind: "User", APIGroup: rbacv1.GroupName, Name: "jane"}}
	if got, anew := ReconcileBinding(mine, binding); anew || len(got.Subjects) != 2 || got.Subjects[1].Name != "system:masters" {
		t.Errorf("%v %+v", anew, got)
	}
	mine.RoleRef.Name, mine.UID = "view", "u"
	if got, anew := ReconcileBinding(mine, binding); !anew || got.RoleRef.Name != "cluster-admin" || len(got.Subjects) != 2 || got.UID != "" {
		t.Errorf("%v %+v", anew, got)
	}
}

// BenchmarkAllows is the question of an operator with a role of its own, in a
// cluster of a thousand namespaces; the last of some rules answers it.
func BenchmarkAllows(b *testing.B) {
	w := world{clusterRoles: Roles(), clusterBindings: Bindings()}
	for n := range 1000 {
		ns := fmt.Sprintf("ns-%04d", n)
		w.roles = append(w.roles, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "operator"}, Rules: rules(
			"READ core pods,services", "BOTH core configmaps,secrets", "READ core events", "BOTH apps deployments,statefulsets",
		)})
		w.bindings = append(w.bindings, &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "operator"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "operator"},
			Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Name: "operator"}},
		})
	}
	x := w.index(&Index{})
	u := User{Name: "system:serviceaccount:ns-0500:operator", Groups: []string{"system:serviceaccounts", "system:serviceaccounts:ns-0500", "system:authenticated"}}
	for name, q := range map[string]Request{
		"yes": {Verb: "watch", Group: "apps", Resource: "deployments", Namespace: "ns-0500"},
		"no":  {Verb: "watch", Resource: "nodes"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if (x.Allows(u, &q) != nil) != (name == "yes") {
					b.Fatal(name)
				}
			}
		})
	}
	b.Run("one binding changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next := slices.Clone(w.bindings)
			next[7] = next[7].DeepCopy()
			x.WithRoleBindings(next)
		}
	})
}

// A yes costs nothing that has to be collected.
func TestYesAllocatesNothing(t *testing.T) {
	w := world{clusterRoles: Roles(), clusterBindings: Bindings()}
	x := w.index(&Index{})
	u, q := User{Name: "jane", Groups: []string{"system:authenticated"}}, Request{Verb: "get", Path: "/apis/apps/v1"}
	if n := testing.AllocsPerRun(100, func() {
		if x.Allows(u, &q) == nil {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
