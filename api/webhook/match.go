package webhook

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/types"
)

// The operations that webhooks are asked about.
const (
	Create  = "CREATE"
	Update  = "UPDATE"
	Delete  = "DELETE"
	Connect = "CONNECT"
)

// Hook is one admission webhook, ready for use.
type Hook struct {
	Name    string
	Config  *types.WebhookClientConfig
	Ignores bool // failurePolicy: what it cannot be asked about is let through
	Again   bool // reinvocationPolicy IfNeeded
	Timeout time.Duration

	sideEffects string
	version     string // of AdmissionReview
	exact       bool
	rules       []types.RuleWithOperations
	namespaces  labels.Selector
	objects     labels.Selector
}

// Mutating are the webhooks of a configuration.
func Mutating(c *types.MutatingWebhookConfiguration) ([]*Hook, error) {
	var all []*Hook
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		h, err := newHook(&w.Webhook, w.ObjectSelector)
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
		h, err := newHook(&c.Webhooks[i].Webhook, c.Webhooks[i].ObjectSelector)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.Name, err)
		}
		all = append(all, h)
	}
	return all, nil
}

func newHook(w *types.Webhook, objects *metav1.LabelSelector) (*Hook, error) {
	is := func(p *string, value string) bool { return p != nil && *p == value }
	h := &Hook{
		Name: w.Name, Config: &w.ClientConfig, Ignores: is(w.FailurePolicy, types.Ignore), exact: is(w.MatchPolicy, types.Exact),
		Timeout: 10 * time.Second, rules: w.Rules,
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
	var err error
	if h.namespaces, err = selector(w.NamespaceSelector); err != nil {
		return nil, fmt.Errorf("webhook %s: namespaceSelector: %w", w.Name, err)
	}
	if h.objects, err = selector(objects); err != nil {
		return nil, fmt.Errorf("webhook %s: objectSelector: %w", w.Name, err)
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
	Namespace   string // of a Namespace, its own name
	// Others are the other versions that the resource is served in.
	Others []Version
	// Labels are those of the object and of what it was before, of each that has
	// metadata.
	Labels []map[string]string
	// NamespaceLabels are those of the namespace. It is asked where there is a
	// namespace and a webhook's selector wants to know.
	NamespaceLabels func() (map[string]string, error)
}

var namespaces = schema.GroupResource{Resource: "namespaces"}

// Concerns says whether a webhook is to be asked about a request, and in which
// version. An error is of the namespace's labels.
func (h *Hook) Concerns(s *Subject) (as Version, is bool, err error) {
	as, is = h.versionFor(s)
	if !is || !h.selects(s.Labels) {
		return as, false, nil
	}
	if h.namespaces.Empty() || s.Namespace == "" {
		return as, true, nil
	}
	of, err := s.NamespaceLabels()
	return as, err == nil && h.namespaces.Matches(labels.Set(of)), err
}

// versionFor is the version of the request that the rules mean.
func (h *Hook) versionFor(s *Subject) (Version, bool) {
	means := func(v Version) bool {
		return slices.ContainsFunc(h.rules, func(r types.RuleWithOperations) bool { return ruleMeans(&r, s, v.Resource) })
	}
	if means(s.Version) {
		return s.Version, true
	}
	if h.exact {
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
func (h *Hook) selects(all []map[string]string) bool {
	return h.objects.Empty() || slices.ContainsFunc(all, func(of map[string]string) bool { return h.objects.Matches(labels.Set(of)) })
}
