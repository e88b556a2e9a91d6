package rbac

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// The user name of a service account is this, its namespace, a colon, its name.
const accountPrefix = "system:serviceaccount:"

// Index answers who may do what from all roles and bindings of a moment. It
// is immutable. The zero value is of no objects, and allows nothing.
type Index struct {
	clusterRoles map[string]*rbacv1.ClusterRole
	cluster      *grants
	roles        map[string][]*rbacv1.Role // by namespace, each sorted by name
	spaces       map[string]*space
}

// space is the bindings of one namespace.
type space struct {
	bindings []*rbacv1.RoleBinding
	grants
}

// grants are who gets what in one scope.
type grants struct {
	byUser, byGroup map[string][]Grant
}

// Grant is a binding, seen from one of its subjects. Its role is looked up when
// it is used: it may come later than the binding, or go before it.
type Grant struct {
	binding   string
	namespace string // empty: of the whole cluster
	ref       *rbacv1.RoleRef
	subject   *rbacv1.Subject
}

// String tells of a grant as Kubernetes does.
func (g *Grant) String() string {
	name, kind, subject := g.binding, "ClusterRoleBinding", g.subject.Name
	if g.namespace != "" {
		name, kind = g.binding+"/"+g.namespace, "RoleBinding"
	}
	if g.subject.Kind == rbacv1.ServiceAccountKind {
		subject += "/" + g.accountNamespace()
	}
	return fmt.Sprintf("%s %q of %s %q to %s %q", kind, name, g.ref.Kind, g.ref.Name, g.subject.Kind, subject)
}

func (g *Grant) accountNamespace() string {
	if g.subject.Namespace != "" {
		return g.subject.Namespace
	}
	return g.namespace
}

func (s *grants) add(g Grant) {
	into, name := &s.byUser, g.subject.Name
	switch g.subject.Kind {
	case rbacv1.GroupKind:
		into = &s.byGroup
	case rbacv1.ServiceAccountKind:
		ns := g.accountNamespace()
		if ns == "" {
			return
		}
		name = accountPrefix + ns + ":" + name
	}
	if *into == nil {
		*into = map[string][]Grant{}
	}
	(*into)[name] = append((*into)[name], g)
}

// WithClusterRoles, and the three below, are an index that differs in all
// objects of one kind. The slices are sorted by namespace and name, and the
// caller's no more.
func (x *Index) WithClusterRoles(all []*rbacv1.ClusterRole) *Index {
	out := *x
	out.clusterRoles = make(map[string]*rbacv1.ClusterRole, len(all))
	for _, r := range all {
		out.clusterRoles[r.Name] = r
	}
	return &out
}

// WithClusterRoleBindings: see WithClusterRoles.
func (x *Index) WithClusterRoleBindings(all []*rbacv1.ClusterRoleBinding) *Index {
	out := *x
	out.cluster = &grants{}
	for _, b := range all {
		for i := range b.Subjects {
			out.cluster.add(Grant{b.Name, "", &b.RoleRef, &b.Subjects[i]})
		}
	}
	return &out
}

// WithRoles: see WithClusterRoles.
func (x *Index) WithRoles(all []*rbacv1.Role) *Index {
	out := *x
	out.roles = map[string][]*rbacv1.Role{}
	for run := range runs(all, func(r *rbacv1.Role) string { return r.Namespace }) {
		out.roles[run[0].Namespace] = run
	}
	return &out
}

// WithRoleBindings: see WithClusterRoles. What it knows of namespaces in which
// nothing changed it keeps.
func (x *Index) WithRoleBindings(all []*rbacv1.RoleBinding) *Index {
	out := *x
	out.spaces = make(map[string]*space, len(x.spaces))
	for run := range runs(all, func(b *rbacv1.RoleBinding) string { return b.Namespace }) {
		ns := run[0].Namespace
		if before := x.spaces[ns]; before != nil && slices.Equal(before.bindings, run) {
			out.spaces[ns] = before
			continue
		}
		s := &space{bindings: run}
		for _, b := range run {
			for i := range b.Subjects {
				s.add(Grant{b.Name, ns, &b.RoleRef, &b.Subjects[i]})
			}
		}
		out.spaces[ns] = s
	}
	return &out
}

// runs are the parts of a sorted slice that have the same key.
func runs[T any](all []T, key func(T) string) func(func([]T) bool) {
	return func(yield func([]T) bool) {
		for len(all) > 0 {
			n := 1
			for n < len(all) && key(all[n]) == key(all[0]) {
				n++
			}
			if !yield(all[:n:n]) {
				return
			}
			all = all[n:]
		}
	}
}

// rules are those of a grant's role; false if there is no such role.
func (x *Index) rules(namespace string, ref *rbacv1.RoleRef) ([]rbacv1.PolicyRule, bool) {
	if ref.Kind == "ClusterRole" {
		if r := x.clusterRoles[ref.Name]; r != nil {
			return r.Rules, true
		}
		return nil, false
	}
	of := x.roles[namespace]
	i := sort.Search(len(of), func(i int) bool { return of[i].Name >= ref.Name })
	if ref.Kind == "Role" && i < len(of) && of[i].Name == ref.Name {
		return of[i].Rules, true
	}
	return nil, false
}

// Allows returns the grant by which a user may do what a request asks for, nil
// if there is none.
func (x *Index) Allows(u User, q *Request) *Grant {
	if g := x.find(x.cluster, u, q); g != nil || q.Namespace == "" || q.Path != "" {
		return g
	}
	if s := x.spaces[q.Namespace]; s != nil {
		return x.find(&s.grants, u, q)
	}
	return nil
}

func (x *Index) find(s *grants, u User, q *Request) *Grant {
	if s == nil {
		return nil
	}
	if g := x.among(s.byUser[u.Name], q); g != nil {
		return g
	}
	for _, group := range u.Groups {
		if g := x.among(s.byGroup[group], q); g != nil {
			return g
		}
	}
	return nil
}

func (x *Index) among(all []Grant, q *Request) *Grant {
	for i := range all {
		rules, _ := x.rules(all[i].namespace, all[i].ref)
		for j := range rules {
			if allows(&rules[j], q) {
				return &all[i]
			}
		}
	}
	return nil
}

// Rules are all that a user may do in a namespace and, by bindings of the whole
// cluster, everywhere; and an error for each role that is bound and not there.
func (x *Index) Rules(u User, namespace string) (all []rbacv1.PolicyRule, errs []error) {
	type source struct{ namespace, binding string }
	seen := map[source]bool{}
	for _, g := range x.of(u, namespace) {
		if s := (source{g.namespace, g.binding}); seen[s] {
			continue
		} else {
			seen[s] = true
		}
		rules, err := x.RulesOf(g.namespace, *g.ref)
		if err != nil {
			errs = append(errs, err)
		}
		all = append(all, rules...)
	}
	return all, errs
}

func (x *Index) of(u User, namespace string) (all []Grant) {
	scopes := []*grants{x.cluster}
	if s := x.spaces[namespace]; s != nil {
		scopes = append(scopes, &s.grants)
	}
	for _, s := range scopes {
		if s == nil {
			continue
		}
		all = append(all, s.byUser[u.Name]...)
		for _, group := range u.Groups {
			all = append(all, s.byGroup[group]...)
		}
	}
	return all
}

// Why is what may be the reason of a refusal: roles that are bound to the user
// and not there. It is empty if there are none.
func (x *Index) Why(u User, namespace string) string {
	var errs []error
	for _, g := range x.of(u, namespace) {
		if _, ok := x.rules(g.namespace, g.ref); !ok {
			errs = append(errs, &RoleMissing{g.ref.Kind, g.ref.Name})
		}
	}
	if len(errs) == 0 {
		return ""
	}
	return "RBAC: " + Texts(errs)
}

// Texts are different errors in one line, as Kubernetes puts them.
func Texts(errs []error) string {
	var texts []string
	for _, err := range errs {
		if text := err.Error(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	if len(texts) == 1 {
		return texts[0]
	}
	return "[" + strings.Join(texts, ", ") + "]"
}

// RoleMissing says that there is no role of that kind and name.
type RoleMissing struct{ Kind, Name string }

func (e *RoleMissing) Error() string {
	return fmt.Sprintf("%s.%s %q not found", strings.ToLower(e.Kind), rbacv1.GroupName, e.Name)
}

// RulesOf are the rules of the role that a binding in a namespace, or of the
// whole cluster if it is empty, refers to: RoleMissing.
func (x *Index) RulesOf(namespace string, ref rbacv1.RoleRef) ([]rbacv1.PolicyRule, error) {
	rules, ok := x.rules(namespace, &ref)
	if !ok {
		return nil, &RoleMissing{ref.Kind, ref.Name}
	}
	return rules, nil
}
