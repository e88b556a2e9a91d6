package api

import (
	"context"
	"slices"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"

	"conclave/api/rbac"
)

// Who may do what: masters everything, nodes what follows from their pods
// (authz_node.go), everybody what roles are bound to them (package rbac). All
// else is refused.

var (
	clusterRoles        = rbacv1.SchemeGroupVersion.WithResource("clusterroles")
	clusterRoleBindings = rbacv1.SchemeGroupVersion.WithResource("clusterrolebindings")
	roles               = rbacv1.SchemeGroupVersion.WithResource("roles")
	roleBindings        = rbacv1.SchemeGroupVersion.WithResource("rolebindings")
)

// denied is why somebody may not; it may be empty.
type denied string

func (d denied) Error() string { return "denied: " + string(d) }

// decision is whether somebody may, and why.
type decision struct {
	allowed bool
	grant   *rbac.Grant // by which, if it is by a role
	why     string      // not; may be empty
}

// reason tells of a decision as reviews of access do.
func (d decision) reason() string {
	if d.grant != nil {
		return "RBAC: allowed by " + d.grant.String()
	}
	return d.why
}

// syncForDenial bounds how long a refusal is delayed by catching up.
const syncForDenial = time.Second

// authorize refuses what u may not, and says who asked what.
func (s *Server) authorize(ctx context.Context, u User, a Attributes) error {
	if d := s.decide(ctx, u, &a); !d.allowed {
		return forbidden(u, a, d.why)
	}
	return nil
}

// decide says whether u may. Before it says no to somebody whom it knows, it lets
// this replica catch up: a right that was given anywhere holds at once
// everywhere. Where there is no majority to catch up with, what this replica has
// decides.
func (s *Server) decide(ctx context.Context, u User, a *Attributes) decision {
	if slices.Contains(u.Groups, groupMasters) {
		return decision{allowed: true}
	}
	d := s.decideNow(u, a)
	if !d.allowed && !slices.Contains(u.Groups, groupUnauthenticated) && s.catchUp(ctx) {
		d = s.decideNow(u, a)
	}
	if !d.allowed && d.why == "" {
		d.why = s.rights.index(s.cfg.Storage).Why(rbac.User{Name: u.Name, Groups: u.Groups}, a.Namespace)
	}
	return d
}

// catchUp brings this replica up to date, and says whether it could soon.
func (s *Server) catchUp(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, syncForDenial)
	defer cancel()
	return s.cfg.Storage.Sync(ctx) == nil
}

func (s *Server) decideNow(u User, a *Attributes) decision {
	var d decision
	if name, ok := nodeOf(u); ok {
		err := (&nodeRules{s}).authorize(name, *a)
		if err == nil {
			return decision{allowed: true}
		}
		if why, ok := err.(denied); ok {
			d.why = string(why)
		}
	}
	q := rbac.Request{
		Verb: a.Verb, Group: a.Resource.Group, Resource: a.Resource.Resource, Subresource: a.Subresource,
		Namespace: a.Namespace, Name: a.Name, Path: a.Path,
	}
	if g := s.rights.index(s.cfg.Storage).Allows(rbac.User{Name: u.Name, Groups: u.Groups}, &q); g != nil {
		return decision{allowed: true, grant: g}
	}
	return d
}

// rights is the index of all roles and bindings that this replica has.
type rights struct{ derived[rightsAt] }

// rightsAt is an index with what Storage.Changed said of each of the kinds that it
// was made of.
type rightsAt struct {
	of    *rbac.Index
	parts [4]uint64
}

var rightsStored = []string{
	clusterRoles.GroupResource().String(), clusterRoleBindings.GroupResource().String(),
	roles.GroupResource().String(), roleBindings.GroupResource().String(),
}

func (r *rights) index(st Storage) *rbac.Index {
	return r.derived.of(st, rightsStored, func(before rightsAt) rightsAt { return renewRights(st, before) }).of
}

// renewRights makes an index of the one before and of the kinds of which something
// changed. What is asked before the objects are read is never newer than they.
func renewRights(st Storage, before rightsAt) rightsAt {
	first := before.of == nil
	if first {
		before.of = &rbac.Index{}
	}
	next := before
	for i, make := range []func(*rbac.Index, Storage, string) *rbac.Index{
		func(x *rbac.Index, st Storage, stored string) *rbac.Index {
			return x.WithClusterRoles(orElse(allOf[*rbacv1.ClusterRole](st, stored), rbac.Roles))
		},
		func(x *rbac.Index, st Storage, stored string) *rbac.Index {
			return x.WithClusterRoleBindings(orElse(allOf[*rbacv1.ClusterRoleBinding](st, stored), rbac.Bindings))
		},
		func(x *rbac.Index, st Storage, stored string) *rbac.Index {
			return x.WithRoles(allOf[*rbacv1.Role](st, stored))
		},
		func(x *rbac.Index, st Storage, stored string) *rbac.Index {
			return x.WithRoleBindings(allOf[*rbacv1.RoleBinding](st, stored))
		},
	} {
		next.parts[i] = st.Changed(rightsStored[i])
		if first || next.parts[i] != before.parts[i] {
			next.of = make(next.of, st, rightsStored[i])
		}
	}
	return next
}

func allOf[T Object](st Storage, stored string) []T {
	records, _ := st.List(stored, "")
	all := make([]T, 0, len(records))
	for _, rec := range records {
		if o, ok := rec.Object().(T); ok {
			all = append(all, o)
		}
	}
	return all
}

// orElse is what every cluster has where there is nothing: nobody has led this
// cluster yet who writes it. Who looks whether a master is alive need not wait.
func orElse[T any](have []T, otherwise func() []T) []T {
	if len(have) > 0 {
		return have
	}
	return otherwise()
}
