package flow

import (
	"cmp"
	"slices"
	"strings"

	"conclave/api/types"
)

// Request is what decides about the flow of a request.
type Request struct {
	User   string
	Groups []string
	Verb   string
	// Of a resource.
	Group, Resource, Subresource string
	Namespace                    string
	// Path is not empty for all else.
	Path string
}

const (
	all           = "*"
	accountPrefix = "system:serviceaccount:"
)

// matcher is the rules of a FlowSchema, made ready to be asked by every request.
type matcher []rule

type rule struct {
	subjects  []subject
	resources []types.ResourcePolicyRule
	paths     []types.NonResourcePolicyRule
}

// subject is a user or, if group is set, a group. A name may stand for all that
// begin with it.
type subject struct {
	name          string
	group, prefix bool
}

func newMatcher(rules []types.PolicyRulesWithSubjects) (m matcher) {
	for i := range rules {
		r := rule{resources: rules[i].ResourceRules, paths: rules[i].NonResourceRules}
		for _, s := range rules[i].Subjects {
			var made subject
			switch {
			case s.Kind == types.UserKind && s.User != nil:
				made.name = s.User.Name
			case s.Kind == types.GroupKind && s.Group != nil:
				made.name, made.group = s.Group.Name, true
			case s.Kind == types.ServiceAccountKind && s.ServiceAccount != nil:
				made.name = accountPrefix + s.ServiceAccount.Namespace + ":" + s.ServiceAccount.Name
			default:
				continue // of a kind that nobody is of
			}
			if made.name == all || s.Kind == types.ServiceAccountKind && s.ServiceAccount.Name == all {
				made.name, made.prefix = strings.TrimSuffix(made.name, all), true
			}
			r.subjects = append(r.subjects, made)
		}
		m = append(m, r)
	}
	return m
}

// matches says whether any rule does.
func (m matcher) matches(q *Request) bool {
	for i := range m {
		if r := &m[i]; r.concerns(q) && r.covers(q) {
			return true
		}
	}
	return false
}

func (r *rule) concerns(q *Request) bool {
	for _, s := range r.subjects {
		switch {
		case s.group && (s.prefix && len(q.Groups) > 0 || slices.Contains(q.Groups, s.name)):
			return true
		case !s.group && (s.name == q.User || s.prefix && strings.HasPrefix(q.User, s.name)):
			return true
		}
	}
	return false
}

func (r *rule) covers(q *Request) bool {
	if q.Path != "" {
		for i := range r.paths {
			if p := &r.paths[i]; has(p.Verbs, q.Verb) && slices.ContainsFunc(p.NonResourceURLs, q.isAt) {
				return true
			}
		}
		return false
	}
	for i := range r.resources {
		o := &r.resources[i]
		if !has(o.Verbs, q.Verb) || !has(o.APIGroups, q.Group) || !slices.ContainsFunc(o.Resources, q.isOf) {
			continue
		}
		if q.Namespace == "" && o.ClusterScope || q.Namespace != "" && has(o.Namespaces, q.Namespace) {
			return true
		}
	}
	return false
}

func has(list []string, one string) bool {
	for _, s := range list {
		if s == one || s == all {
			return true
		}
	}
	return false
}

// isAt says whether a pattern is of the request's path.
func (q *Request) isAt(pattern string) bool {
	start, below := strings.CutSuffix(pattern, all)
	return pattern == q.Path || below && strings.HasPrefix(q.Path, start)
}

// isOf says whether a name of a resource, or of a subresource, is the request's.
func (q *Request) isOf(name string) bool {
	if name == all {
		return true
	}
	rest, ok := strings.CutPrefix(name, q.Resource)
	if q.Subresource == "" || !ok {
		return ok && rest == ""
	}
	return len(rest) == len(q.Subresource)+1 && rest[0] == '/' && rest[1:] == q.Subresource
}

// Compare is the order in which FlowSchemas are asked.
func Compare(a, b *types.FlowSchema) int {
	return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), cmp.Compare(a.Name, b.Name))
}
