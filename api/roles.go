package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sync/errgroup"

	"conclave/api/rbac"
)

// What roles and bindings need beyond their rows: nobody gives away what they do
// not have, and every cluster has those of the system.

// everything is the rights that nobody lacks anything who has them.
var everything = []rbacv1.PolicyRule{
	{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
}

// permitRole refuses a role with rights that its writer does not have, unless they
// may escalate.
func permitRole(ctx context.Context, c *call, obj, old Object) error {
	if slices.Contains(c.user.Groups, groupMasters) || old != nil && onlyForGarbage(obj, old) {
		return nil
	}
	escalates := Attributes{Verb: "escalate", Resource: c.res.gvr, Namespace: c.namespace, Name: c.name}
	if c.s.decide(ctx, c.user, &escalates).allowed {
		return nil
	}
	var rules []rbacv1.PolicyRule
	gathers := false
	switch r := obj.(type) {
	case *rbacv1.Role:
		rules = r.Rules
	case *rbacv1.ClusterRole:
		was, _ := old.(*rbacv1.ClusterRole)
		rules, gathers = r.Rules, r.AggregationRule != nil || was != nil && was.AggregationRule != nil
	}
	if why := c.lacks(rules); why != "" {
		return forbiddenObject(c.res.gr(), obj.GetName(), why)
	}
	if gathers && c.lacks(everything) != "" {
		return forbiddenObject(c.res.gr(), obj.GetName(), "must have cluster-admin privileges to use the aggregationRule")
	}
	return nil
}

// permitBinding refuses a binding to a role with rights that its writer does not
// have, unless they may bind that role.
func permitBinding(ctx context.Context, c *call, obj, old Object) error {
	if slices.Contains(c.user.Groups, groupMasters) || old != nil && onlyForGarbage(obj, old) {
		return nil
	}
	var ref rbacv1.RoleRef
	switch b := obj.(type) {
	case *rbacv1.RoleBinding:
		ref = b.RoleRef
	case *rbacv1.ClusterRoleBinding:
		ref = b.RoleRef
	}
	of := clusterRoles
	switch {
	case ref.Kind == "ClusterRole":
	case ref.Kind == "Role" && c.res.gvr == roleBindings:
		of = roles
	default:
		return nil // validation refuses it
	}
	binds := Attributes{Verb: "bind", Resource: of, Namespace: c.namespace, Name: ref.Name}
	binds.Resource.Group = ref.APIGroup
	if c.s.decide(ctx, c.user, &binds).allowed {
		return nil
	}
	rules, err := c.s.rights.index(c.s.cfg.Storage).RulesOf(c.namespace, ref)
	if err != nil {
		return apierrors.NewNotFound(of.GroupResource(), ref.Name)
	}
	if why := c.lacks(rules); why != "" {
		return forbiddenObject(c.res.gr(), obj.GetName(), why)
	}
	return nil
}

// lacks says which rights among these the call's user does not have, in
// Kubernetes' words; it is empty if none.
func (c *call) lacks(rules []rbacv1.PolicyRule) string {
	have, errs := c.s.rights.index(c.s.cfg.Storage).Rules(rbac.User{Name: c.user.Name, Groups: c.user.Groups}, c.namespace)
	missing := rbac.Missing(have, rules)
	if len(missing) == 0 {
		return ""
	}
	text := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		c.user.Name, c.user.Groups, strings.Join(rbac.Describe(missing), "\n"))
	if len(errs) > 0 {
		text += fmt.Sprintf("; resolution errors: [%v]", rbac.Texts(errs))
	}
	return text
}

// onlyForGarbage says that an update changes no more than what the garbage
// collector needs to let an object go.
func onlyForGarbage(obj, old Object) bool {
	like := obj.DeepCopyObject().(Object)
	like.SetOwnerReferences(old.GetOwnerReferences())
	like.SetFinalizers(old.GetFinalizers())
	like.SetManagedFields(old.GetManagedFields())
	return apiequality.Semantic.DeepEqual(like, old)
}

// rolesAtOnce are written together, so that the log takes them in few steps.
const rolesAtOnce = 16

// ensureRoles makes the roles and bindings of the system be there, as Kubernetes
// does at each start: what was taken from them is added, what was added stays, and
// those that say that they want no update get none.
func ensureRoles(ctx context.Context, c Client) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(rolesAtOnce)
	for _, want := range rbac.Roles() {
		g.Go(func() error { return ensureRole(ctx, c, want) })
	}
	for _, want := range rbac.Bindings() {
		g.Go(func() error { return ensureBinding(ctx, c, want) })
	}
	g.Go(func() error { return ensureReader(ctx, c, rbac.AuthenticationReader(AuthenticationConfig)) })
	return g.Wait()
}

func ensureRole(ctx context.Context, c Client, want *rbacv1.ClusterRole) error {
	return keepUp(ctx, c, want, func(have Object) (Object, bool) {
		next := rbac.ReconcileRole(have.(*rbacv1.ClusterRole), want)
		return next, next != nil
	})
}

// ensureReader is ensureRole of a role in a namespace, whose rules are kept alike.
func ensureReader(ctx context.Context, c Client, want *rbacv1.Role) error {
	wide := func(r *rbacv1.Role) *rbacv1.ClusterRole {
		return &rbacv1.ClusterRole{ObjectMeta: r.ObjectMeta, Rules: r.Rules}
	}
	return keepUp(ctx, c, want, func(have Object) (Object, bool) {
		next := rbac.ReconcileRole(wide(have.(*rbacv1.Role)), wide(want))
		if next == nil {
			return nil, false
		}
		return &rbacv1.Role{ObjectMeta: next.ObjectMeta, Rules: next.Rules}, true
	})
}

// keepUp makes an object be there, and be as next says of what is there; false:
// nothing has to change.
func keepUp(ctx context.Context, c Client, want Object, next func(have Object) (Object, bool)) error {
	r := GVROf(want)
	have, err := c.Get(ctx, r, want.GetNamespace(), want.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ensure(ctx, c, want)
	}
	if err == nil {
		if better, differs := next(have); differs {
			_, err = c.Update(ctx, r, want.GetNamespace(), better, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("keep up %s %q: %w", r.Resource, want.GetName(), err)
	}
	return nil
}

func ensureBinding(ctx context.Context, c Client, want *rbacv1.ClusterRoleBinding) error {
	have, err := c.Get(ctx, clusterRoleBindings, "", want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return ensure(ctx, c, want)
	}
	if err == nil {
		switch next, anew := rbac.ReconcileBinding(have.(*rbacv1.ClusterRoleBinding), want); {
		case anew:
			uid := have.GetUID()
			err = errors.Join(
				c.Delete(ctx, clusterRoleBindings, "", want.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}}),
				ensure(ctx, c, next))
		case next != nil:
			_, err = c.Update(ctx, clusterRoleBindings, "", next, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		return fmt.Errorf("keep up the cluster role binding %q: %w", want.Name, err)
	}
	return nil
}
