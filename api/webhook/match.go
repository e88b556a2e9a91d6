package webhook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/cel"
	"conclave/api/types"
)

// The operations that webhooks are asked about.
const (
	Create  = "CREATE"
	Update  = "UPDATE"
	Delete  = "DELETE"
	Connect = "CONNECT"
)

// Match is which requests are meant: rules and selectors, of a webhook or of an
// admission policy.
type Match struct {
	all        bool // where there are no rules
	exact      bool
	rules      []types.NamedRuleWithOperations
	excluded   []types.NamedRuleWithOperations
	namespaces labels.Selector
	objects    labels.Selector
}

// NewMatch is of a policy or, where it has no rules, of all that a binding's
// policy means.
func NewMatch(m *types.MatchResources) (*Match, error) {
	match := &Match{
		all: len(m.ResourceRules) == 0, exact: m.MatchPolicy != nil && *m.MatchPolicy == types.Exact,
		rules: m.ResourceRules, excluded: m.ExcludeResourceRules,
	}
	return match, match.selectBy(m.NamespaceSelector, m.ObjectSelector)
}

func (m *Match) selectBy(namespaces, objects *metav1.LabelSelector) (err error) {
	if m.namespaces, err = selector(namespaces); err != nil {
		return fmt.Errorf("namespaceSelector: %w", err)
	}
	if m.objects, err = selector(objects); err != nil {
		return fmt.Errorf("objectSelector: %w", err)
	}
	return nil
}

// Hook is one admission webhook, ready for use.
type Hook struct {
	*Match
	Name       string
	Config     *types.WebhookClientConfig
	Conditions cel.Conditions
	Ignores    bool // failurePolicy: what it cannot be asked about is let through
	Again      bool // reinvocationPolicy IfNeeded
	Timeout    time.Duration

	sideEffects string
	version     string // of AdmissionReview
}

// Mutating are the webhooks of a configuration.
func Mutating(c *types.MutatingWebhookConfiguration) ([]*Hook, error) {
	var all []*Hook
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		h, err := newHook(&w.Webhook, w.ObjectSelector, w.MatchConditions)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		h.Again = w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == types.IfNeeded
		all = append(all, h)
	}
	return all, nil
}

// Validating are the webhooks of a configuration.
func Validating(c *types.ValidatingWebhookConfiguration) ([]*Hook, error) {
	var all []*Hook
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		h, err := newHook(&w.Webhook, w.ObjectSelector, w.MatchConditions)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		all = append(all, h)
	}
	return all, nil
}

func newHook(w *types.Webhook, objects *metav1.LabelSelector, conditions []types.MatchCondition) (*Hook, error) {
	is := func(p *string, value string) bool { return p != nil && *p == value }
	h := &Hook{
		Match: &Match{exact: is(w.MatchPolicy, types.Exact)},
		Name:  w.Name, Config: &w.ClientConfig, Conditions: cel.NewConditions(conditions, false), Ignores: is(w.FailurePolicy, types.Ignore),
		Timeout: 10 * time.Second,
	}
	for _, r := range w.Rules {
		h.rules = append(h.rules, types.NamedRuleWithOperations{RuleWithOperations: r})
	}
	if w.TimeoutSeconds != nil {
		h.Timeout = time.Duration(*w.TimeoutSeconds) * time.Second
	}
	if w.SideEffects != nil {
		h.sideEffects = *w.SideEffects
	}
	for _, v := range w.AdmissionReviewVersions { // the one that the webhook likes best
		if v == "v1" || v == "v1beta1" {
			h.version = v
			break
		}
	}
	if err := h.selectBy(w.NamespaceSelector, objects); err != nil {
		return nil, fmt.Errorf("webhook %s: %w", w.Name, err)
	}
	return h, nil
}

// selector is of everything where nothing is said.
func selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Everything(), nil
	}
	return metav1.LabelSelectorAsSelector(s)
}

// Version is a resource in one of its versions, and the kind that requests of it
// carry.
type Version struct {
	Resource schema.GroupVersionResource
	Kind     schema.GroupVersionKind
}

// Subject is what a request is about.
type Subject struct {
	Operation string
	Version
	Subresource string
	Name        string // empty where one is still to be made
	Namespace   string // of a Namespace, its own name
	// Others are the other versions that the resource is served in.
	Others []Version
	// Labels are those of the object and of what it was before, of each that has
	// metadata.
	Labels []map[string]string
	// NamespaceLabels are those of the namespace. It is asked where there is a
	// namespace and a selector wants to know.
	NamespaceLabels func() (map[string]string, error)
}

var namespaces = schema.GroupResource{Resource: "namespaces"}

// Concerns says whether a request is meant, and in which version. An error is of
// the namespace's labels.
func (m *Match) Concerns(s *Subject) (as Version, is bool, err error) {
	as, is = m.versionFor(s)
	if !is || !m.selects(s.Labels) {
		return as, false, nil
	}
	if m.namespaces.Empty() || s.Namespace == "" {
		return as, true, nil
	}
	of, err := s.NamespaceLabels()
	return as, err == nil && m.namespaces.Matches(labels.Set(of)), err
}

// versionFor is the version of the request that the rules mean.
func (m *Match) versionFor(s *Subject) (Version, bool) {
	if _, out := m.oneOf(m.excluded, s); out {
		return Version{}, false
	}
	if m.all {
		return s.Version, true
	}
	return m.oneOf(m.rules, s)
}

// oneOf is the version that one of some rules means.
func (m *Match) oneOf(rules []types.NamedRuleWithOperations, s *Subject) (Version, bool) {
	means := func(v Version) bool {
		return slices.ContainsFunc(rules, func(r types.NamedRuleWithOperations) bool {
			return (len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, s.Name)) && ruleMeans(&r.RuleWithOperations, s, v.Resource)
		})
	}
	if means(s.Version) {
		return s.Version, true
	}
	if m.exact {
		return Version{}, false
	}
	i := slices.IndexFunc(s.Others, means)
	if i < 0 {
		return Version{}, false
	}
	return s.Others[i], true
}

func ruleMeans(r *types.RuleWithOperations, s *Subject, resource schema.GroupVersionResource) bool {
	one := func(list []string, value string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, value)
	}
	if !one(r.Operations, s.Operation) || !one(r.APIGroups, resource.Group) || !one(r.APIVersions, resource.Version) {
		return false
	}
	inNamespace := s.Namespace != "" && resource.GroupResource() != namespaces
	if r.Scope != nil && (*r.Scope == types.NamespacedScope && !inNamespace || *r.Scope == types.ClusterScope && inNamespace) {
		return false
	}
	return slices.ContainsFunc(r.Resources, func(text string) bool {
		name, sub, _ := strings.Cut(text, "/")
		return (name == "*" || name == resource.Resource) && (sub == "*" || sub == s.Subresource)
	})
}

// selects says whether one of the labels is selected. What has no labels to
// speak of is selected by nothing but an empty selector.
func (m *Match) selects(all []map[string]string) bool {
	return m.objects.Empty() || slices.ContainsFunc(all, func(of map[string]string) bool { return m.objects.Matches(labels.Set(of)) })
}
