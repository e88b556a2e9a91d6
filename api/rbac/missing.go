package rbac

import (
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// Missing are the rights among those wanted that are not among those had, each
// of one verb on one thing.
func Missing(have, want []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var missing []rbacv1.PolicyRule
	for i := range want {
		for _, single := range split(&want[i]) {
			if !slices.ContainsFunc(have, func(r rbacv1.PolicyRule) bool { return covers(&r, &single) }) {
				missing = append(missing, single)
			}
		}
	}
	return missing
}

// split takes a rule apart into single rights.
func split(r *rbacv1.PolicyRule) (singles []rbacv1.PolicyRule) {
	for _, group := range r.APIGroups {
		for _, resource := range r.Resources {
			for _, verb := range r.Verbs {
				one := rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}}
				if len(r.ResourceNames) == 0 {
					singles = append(singles, one)
				}
				for _, name := range r.ResourceNames {
					one.ResourceNames = []string{name}
					singles = append(singles, one)
				}
			}
		}
	}
	for _, url := range r.NonResourceURLs {
		for _, verb := range r.Verbs {
			singles = append(singles, rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: []string{url}})
		}
	}
	return singles
}

// covers says whether a rule includes a single right. A right of the form */scale
// is covered by itself and by *, not by all resources that there happen to be.
func covers(r, single *rbacv1.PolicyRule) bool {
	if !has(r.Verbs, single.Verbs[0]) {
		return false
	}
	if len(single.NonResourceURLs) > 0 {
		return slices.ContainsFunc(r.NonResourceURLs, func(url string) bool { return urlCovers(url, single.NonResourceURLs[0]) })
	}
	if !has(r.APIGroups, single.APIGroups[0]) {
		return false
	}
	if len(r.ResourceNames) > 0 && (len(single.ResourceNames) == 0 || !slices.Contains(r.ResourceNames, single.ResourceNames[0])) {
		return false
	}
	resource := single.Resources[0]
	_, sub, isSub := strings.Cut(resource, "/")
	return has(r.Resources, resource) || isSub && slices.Contains(r.Resources, "*/"+sub)
}

// Describe tells of single rights in lines, sorted, those on the same thing
// together.
func Describe(missing []rbacv1.PolicyRule) []string {
	type thing struct{ group, resource, name string }
	at := map[thing]int{}
	var together []rbacv1.PolicyRule
	for _, r := range missing {
		if len(r.NonResourceURLs) > 0 {
			together = append(together, r)
			continue
		}
		t := thing{group: r.APIGroups[0], resource: r.Resources[0]}
		if len(r.ResourceNames) > 0 {
			t.name = r.ResourceNames[0]
		}
		i, seen := at[t]
		if !seen {
			at[t] = len(together)
			r.Verbs = slices.Clone(r.Verbs)
			together = append(together, r)
		} else if !slices.Contains(together[i].Verbs, r.Verbs[0]) {
			together[i].Verbs = append(together[i].Verbs, r.Verbs[0])
		}
	}
	lines := make([]string, len(together))
	for i := range together {
		lines[i] = compact(&together[i])
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

func compact(r *rbacv1.PolicyRule) string {
	var parts []string
	for _, p := range []struct {
		name string
		list []string
	}{{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames}, {"Verbs", r.Verbs}} {
		if len(p.list) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", p.name, p.list))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
