package kinds

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/cel"
	"conclave/api/types"
)

// ReviewVersions are the versions of AdmissionReview and ConversionReview that
// the server speaks, the one that it likes best first.
var ReviewVersions = []string{"v1", "v1beta1"}

// validateHooks is of a configuration; old is nil of a new one.
func validateHooks(c hookConfig, old *hookConfig) field.ErrorList {
	var was *metav1.ObjectMeta
	sameConditions := false
	if old != nil {
		was = old.meta
		sameConditions = slices.EqualFunc(c.hooks, old.hooks, func(a, b hook) bool { return slices.Equal(a.matchConditions, b.matchConditions) })
	}
	e := metadata(c.meta, was, false, apivalidation.NameIsDNSSubdomain)
	names := map[string]bool{}
	for i, w := range c.hooks {
		p := field.NewPath("webhooks").Index(i)
		e.hook(p, w)
		if !sameConditions {
			e.matchConditions(p.Child("matchConditions"), w.matchConditions, false)
		}
		if names[w.Name] {
			e.duplicate(p.Child("name"), w.Name)
		}
		names[w.Name] = true
	}
	return e.list()
}

func (e *problems) hook(p *field.Path, w hook) {
	e.add(validation.IsFullyQualifiedDomainName(p.Child("name"), w.Name)...)
	e.reviewVersions(p.Child("admissionReviewVersions"), w.AdmissionReviewVersions)
	for i, r := range w.Rules {
		e.hookRule(p.Child("rules").Index(i), r)
	}
	maybe := func(name string, value *string, allowed ...string) {
		if value != nil && !slices.Contains(allowed, *value) {
			e.add(field.NotSupported(p.Child(name), *value, allowed))
		}
	}
	maybe("failurePolicy", w.FailurePolicy, types.Fail, types.Ignore)
	maybe("matchPolicy", w.MatchPolicy, types.Equivalent, types.Exact)
	if w.SideEffects == nil {
		e.required(p.Child("sideEffects"), "must specify one of "+types.SideEffectsNone+", "+types.SideEffectsNoDry)
	}
	maybe("sideEffects", w.SideEffects, types.SideEffectsNone, types.SideEffectsNoDry)
	if w.reinvocation != nil {
		maybe("reinvocationPolicy", *w.reinvocation, types.IfNeeded, types.Never)
	}
	if t := w.TimeoutSeconds; t != nil && (*t < 1 || *t > 30) {
		e.invalid(p.Child("timeoutSeconds"), *t, "the timeout value must be between 1 and 30 seconds")
	}
	labelSelector(e, p.Child("namespaceSelector"), w.NamespaceSelector)
	labelSelector(e, p.Child("objectSelector"), *w.objectSelector)
	*e = append(*e, ValidateClientConfig(&w.ClientConfig, p.Child("clientConfig"))...)
}

// maxMatchConditions is how many there may be of one webhook or policy.
const maxMatchConditions = 64

// matchConditions is of the conditions of a webhook or, with parameters, of a
// policy.
func (e *problems) matchConditions(p *field.Path, list []types.MatchCondition, params bool) {
	if len(list) > maxMatchConditions {
		e.add(field.TooMany(p, len(list), maxMatchConditions))
	}
	names := map[string]bool{}
	for i, m := range list {
		p := p.Index(i)
		if text := strings.TrimSpace(m.Expression); e.nonEmpty(p.Child("expression"), text) {
			e.compiled(p.Child("expression"), cel.Condition(text, params))
		}
		if !e.nonEmpty(p.Child("name"), m.Name) {
			continue
		}
		e.qualifiedName(p.Child("name"), m.Name)
		if names[m.Name] {
			e.duplicate(p.Child("name"), m.Name)
		}
		names[m.Name] = true
	}
}

// compiled says Invalid of an expression that is none.
func (e *problems) compiled(p *field.Path, x *cel.Expression) {
	if err := x.Err(); err != nil {
		e.invalid(p, x.Text, err.Error())
	}
}

func (e *problems) reviewVersions(p *field.Path, versions []string) {
	if len(versions) == 0 {
		e.required(p, "must specify one of "+strings.Join(ReviewVersions, ", "))
		return
	}
	known, seen := false, map[string]bool{}
	for i, v := range versions {
		known = known || slices.Contains(ReviewVersions, v)
		e.each(p.Index(i), v, validation.IsDNS1035Label(v))
		if seen[v] {
			e.invalid(p.Index(i), v, "duplicate version")
		}
		seen[v] = true
	}
	if !known {
		e.invalid(p, versions, "must include at least one of "+strings.Join(ReviewVersions, ", "))
	}
}

func (e *problems) hookRule(p *field.Path, r types.RuleWithOperations) {
	// named is a list that means all by a single *.
	named := func(name, what string, list []string) bool {
		if len(list) == 0 {
			e.required(p.Child(name), "")
			return false
		}
		if len(list) > 1 && slices.Contains(list, "*") {
			e.invalid(p.Child(name), list, "if '*' is present, must not specify other "+what)
		}
		return true
	}
	named("operations", "operations", r.Operations)
	for i, o := range r.Operations {
		if all := []string{"*", "CONNECT", "CREATE", "DELETE", "UPDATE"}; !slices.Contains(all, o) {
			e.add(field.NotSupported(p.Child("operations").Index(i), o, all))
		}
	}
	named("apiGroups", "API groups", r.APIGroups)
	named("apiVersions", "API versions", r.APIVersions)
	for i, v := range r.APIVersions {
		e.nonEmpty(p.Child("apiVersions").Index(i), v)
	}
	if len(r.Resources) == 0 {
		e.required(p.Child("resources"), "")
	}
	e.hookResources(p.Child("resources"), r.Resources)
	if all := []string{types.AllScopes, types.ClusterScope, types.NamespacedScope}; r.Scope != nil && !slices.Contains(all, *r.Scope) {
		e.add(field.NotSupported(p.Child("scope"), *r.Scope, all))
	}
}

// hookResources refuses what another entry of the list means already.
func (e *problems) hookResources(p *field.Path, resources []string) {
	if len(resources) > 1 && slices.Contains(resources, "*/*") {
		e.invalid(p, resources, "if '*/*' is present, must not specify other resources")
	}
	whole, everywhere := map[string]bool{}, map[string]bool{} // "pods/*" and "*/status"
	for i, r := range resources {
		if r == "" {
			e.required(p.Index(i), "")
			continue
		}
		resource, sub, _ := strings.Cut(r, "/")
		if whole[resource] {
			e.invalid(p.Index(i), r, fmt.Sprintf("if '%s/*' is present, must not specify %s", resource, r))
		}
		if everywhere[sub] && r != "*/"+sub {
			e.invalid(p.Index(i), r, fmt.Sprintf("if '*/%s' is present, must not specify %s", sub, r))
		}
		whole[resource] = whole[resource] || sub == "*"
		everywhere[sub] = everywhere[sub] || resource == "*"
	}
	if len(resources) > 1 && slices.Contains(resources, "*") && slices.ContainsFunc(resources, func(r string) bool { return r != "*" && !strings.Contains(r, "/") }) {
		e.invalid(p, resources, "if '*' is present, must not specify other resources without subresources")
	}
}

// ValidateClientConfig says what is wrong with the way to a webhook.
func ValidateClientConfig(c *types.WebhookClientConfig, p *field.Path) field.ErrorList {
	var e problems
	switch {
	case (c.URL == nil) == (c.Service == nil):
		e.required(p, "exactly one of url or service is required")
	case c.URL != nil:
		e.hookURL(p.Child("url"), *c.URL)
	default:
		s, p := c.Service, p.Child("service")
		if s.Name == "" {
			e.required(p.Child("name"), "service name is required")
		}
		if s.Namespace == "" {
			e.required(p.Child("namespace"), "service namespace is required")
		}
		if s.Port != nil {
			if why := validation.IsValidPortNum(int(*s.Port)); len(why) > 0 {
				e.invalid(p.Child("port"), *s.Port, "port is not valid: "+strings.Join(why, ","))
			}
		}
		if s.Path != nil {
			e.hookPath(p.Child("path"), *s.Path)
		}
	}
	return e.list()
}

func (e *problems) hookPath(p *field.Path, path string) {
	if path == "" || path == "/" {
		return
	}
	if path == "//" {
		e.invalid(p, path, "segment[0] may not be empty")
		return
	}
	if !strings.HasPrefix(path, "/") {
		e.invalid(p, path, "must start with a '/'")
	}
	steps := strings.Split(strings.TrimSuffix(path[1:], "/"), "/")
	for i, step := range steps {
		if step == "" {
			e.invalid(p, path, fmt.Sprintf("segment[%d] may not be empty", i))
			continue
		}
		for _, why := range validation.IsDNS1123Subdomain(step) {
			e.invalid(p, path, fmt.Sprintf("segment[%d]: %v", i, why))
		}
	}
}

func (e *problems) hookURL(p *field.Path, raw string) {
	const form = "; desired format: https://host[/path]"
	u, err := url.Parse(raw)
	if err != nil {
		e.required(p, "url must be a valid URL: "+err.Error()+form)
		return
	}
	if u.Scheme != "https" {
		e.invalid(p, u.Scheme, "'https' is the only allowed URL scheme"+form)
	}
	if u.Host == "" {
		e.invalid(p, u.Host, "host must be specified"+form)
	}
	if u.User != nil {
		e.invalid(p, u.User.String(), "user information is not permitted in the URL")
	}
	if u.Fragment != "" {
		e.invalid(p, u.Fragment, "fragments are not permitted in the URL")
	}
	if u.RawQuery != "" {
		e.invalid(p, u.RawQuery, "query parameters are not permitted in the URL")
	}
}
