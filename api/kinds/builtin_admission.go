package kinds

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/types"
)

// hookConfig is what the configurations of both kinds have alike.
type hookConfig struct {
	meta  *metav1.ObjectMeta
	hooks []hook
	spec  any // what generations count
}

// hook is a webhook of either kind.
type hook struct {
	*types.Webhook
	objectSelector  **metav1.LabelSelector
	reinvocation    **string // nil where the kind has none
	matchConditions []types.MatchCondition
}

func hooksOf(o runtime.Object) hookConfig {
	switch c := o.(type) {
	case *types.MutatingWebhookConfiguration:
		all := make([]hook, len(c.Webhooks))
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			all[i] = hook{&w.Webhook, &w.ObjectSelector, &w.ReinvocationPolicy, w.MatchConditions}
		}
		return hookConfig{&c.ObjectMeta, all, c.Webhooks}
	case *types.ValidatingWebhookConfiguration:
		all := make([]hook, len(c.Webhooks))
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			all[i] = hook{&w.Webhook, &w.ObjectSelector, nil, w.MatchConditions}
		}
		return hookConfig{&c.ObjectMeta, all, c.Webhooks}
	}
	return hookConfig{} // rows are only handed what their New makes
}

// admissionRows are the configurations of webhooks.
func admissionRows() []*Kind {
	row := func(kind, plural string, make, list func() runtime.Object) *Kind {
		return &Kind{
			GVK: types.Admission.WithKind(kind), Plural: plural, Categories: []string{"api-extensions"}, New: make, NewList: list,
			Default:          defaultHooks,
			PrepareForCreate: func(o runtime.Object) { hooksOf(o).meta.Generation = 1 },
			PrepareForUpdate: func(o, old runtime.Object) {
				countGeneration(hooksOf(o).meta, hooksOf(o).spec, hooksOf(old).spec)
			},
			Validate: func(o runtime.Object) field.ErrorList { return validateHooks(hooksOf(o), nil) },
			ValidateUpdate: func(o, old runtime.Object) field.ErrorList {
				was := hooksOf(old)
				return validateHooks(hooksOf(o), &was)
			},
			Columns: []metav1.TableColumnDefinition{
				nameColumn,
				number("Webhooks", "Webhooks indicates the number of webhooks registered in this configuration"),
				ageColumn,
			},
			Cells: func(o runtime.Object, now time.Time) []any {
				c := hooksOf(o)
				return []any{c.meta.Name, int64(len(c.hooks)), age(c.meta.CreationTimestamp, now)}
			},
		}
	}
	return []*Kind{
		row("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", empty[types.MutatingWebhookConfiguration], empty[types.MutatingWebhookConfigurationList]),
		row("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", empty[types.ValidatingWebhookConfiguration], empty[types.ValidatingWebhookConfigurationList]),
	}
}

func defaultHooks(o runtime.Object) {
	for _, w := range hooksOf(o).hooks {
		defaultPtr(&w.FailurePolicy, types.Fail)
		defaultPtr(&w.MatchPolicy, types.Equivalent)
		defaultPtr(&w.NamespaceSelector, metav1.LabelSelector{})
		defaultPtr(w.objectSelector, metav1.LabelSelector{})
		defaultPtr(&w.TimeoutSeconds, 10)
		if w.reinvocation != nil {
			defaultPtr(w.reinvocation, types.Never)
		}
		for i := range w.Rules {
			defaultPtr(&w.Rules[i].Scope, types.AllScopes)
		}
		if s := w.ClientConfig.Service; s != nil {
			defaultPtr(&s.Port, 443)
		}
	}
}
