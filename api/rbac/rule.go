package rbac

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// User is who asks.
type User struct {
	Name   string
	Groups []string
}

// Request is what somebody wants to do: to a resource or, if Path is not empty,
// to a path that is none.
type Request struct {
	Verb                         string
	Group, Resource, Subresource string
	Namespace, Name              string
	Path                         string
}

// all stands for every verb, group, resource or path.
const all = "*"

// allows says whether a rule allows a request. It is on the way of every request
// and allocates nothing.
func allows(r *rbacv1.PolicyRule, q *Request) bool {
	if !has(r.Verbs, q.Verb) {
		return false
	}
	if q.Path != "" {
		return slices.ContainsFunc(r.NonResourceURLs, func(url string) bool { return urlCovers(url, q.Path) })
	}
	return has(r.APIGroups, q.Group) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, q.Name)) &&
		slices.ContainsFunc(r.Resources, func(pattern string) bool { return resourceMatches(pattern, q.Resource, q.Subresource) })
}

// has says whether a list contains a value, or all.
func has(list []string, value string) bool {
	for _, s := range list {
		if s == value || s == all {
			return true
		}
	}
	return false
}

// resourceMatches says whether "pods", "pods/log", "*/scale" or "*" is a
// resource or its subresource.
func resourceMatches(pattern, resource, sub string) bool {
	if pattern == all {
		return true
	}
	if sub == "" {
		return pattern == resource
	}
	of := len(pattern) - len(sub) - 1 // where the slash has to be
	if of < 0 || pattern[of] != '/' || pattern[of+1:] != sub {
		return false
	}
	return pattern[:of] == resource || pattern[:of] == all
}

// urlCovers says whether a path of a rule, which may end in *, covers another.
func urlCovers(pattern, path string) bool {
	return pattern == path || strings.HasSuffix(pattern, all) && strings.HasPrefix(path, strings.TrimRight(pattern, all))
}
