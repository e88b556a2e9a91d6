package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// policyRows are the kinds that say how much may be asked for.
func policyRows() []*Kind {
	return []*Kind{
		{
			GVK: corev1.SchemeGroupVersion.WithKind("LimitRange"), Plural: "limitranges", ShortNames: []string{"limits"}, Namespaced: true,
			New: empty[corev1.LimitRange], NewList: empty[corev1.LimitRangeList],
			Default: one(defaultLimitRange), Validate: check(validateLimitRange),
			ValidateUpdate: checkTwo(func(l, old *corev1.LimitRange) field.ErrorList {
				e := metadata(&l.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
				e.limitRange(l)
				return e.list()
			}),
			Columns: createdColumns, Cells: cells(func(l *corev1.LimitRange, _ time.Time) []any { return createdCells(&l.ObjectMeta) }),
		},
		specAndStatus(Kind{
			GVK: corev1.SchemeGroupVersion.WithKind("ResourceQuota"), Plural: "resourcequotas", ShortNames: []string{"quota"}, Namespaced: true,
			New: empty[corev1.ResourceQuota], NewList: empty[corev1.ResourceQuotaList],
			Default: one(func(q *corev1.ResourceQuota) {
				for _, l := range []corev1.ResourceList{q.Spec.Hard, q.Status.Hard, q.Status.Used} {
					defaultResourceList(l)
				}
			}),
			Validate: check(validateQuota), ValidateUpdate: checkTwo(validateQuotaUpdate), ValidateStatusUpdate: checkTwo(validateQuotaStatus),
			Columns: quotaColumns, Cells: cells(quotaCells),
		}, func(q *corev1.ResourceQuota) *corev1.ResourceQuotaSpec { return &q.Spec },
			func(q *corev1.ResourceQuota) *corev1.ResourceQuotaStatus { return &q.Status }),
	}
}

// defaultLimitRange fills in what follows from what is said: of a container's
// limits from its maximum, and of its requests from its limits or its minimum.
func defaultLimitRange(l *corev1.LimitRange) {
	for i := range l.Spec.Limits {
		item := &l.Spec.Limits[i]
		for _, list := range []corev1.ResourceList{item.Max, item.Min, item.Default, item.DefaultRequest, item.MaxLimitRequestRatio} {
			defaultResourceList(list)
		}
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		if item.Default == nil {
			item.Default = corev1.ResourceList{}
		}
		if item.DefaultRequest == nil {
			item.DefaultRequest = corev1.ResourceList{}
		}
		fill := func(to, from corev1.ResourceList) {
			for name, q := range from {
				if _, said := to[name]; !said {
					to[name] = q.DeepCopy()
				}
			}
		}
		fill(item.Default, item.Max)
		fill(item.DefaultRequest, item.Default)
		fill(item.DefaultRequest, item.Min)
	}
}

func validateLimitRange(l *corev1.LimitRange) field.ErrorList {
	e := metadata(&l.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.limitRange(l)
	return e.list()
}

func (e *problems) limitRange(l *corev1.LimitRange) {
	types := map[corev1.LimitType]bool{}
	for i := range l.Spec.Limits {
		item, p := &l.Spec.Limits[i], specPath.Child("limits").Index(i)
		e.qualifiedName(p.Child("type"), string(item.Type))
		if types[item.Type] {
			e.duplicate(p.Child("type"), item.Type)
		}
		types[item.Type] = true
		names := map[corev1.ResourceName]bool{}
		for child, list := range sorted(map[string]corev1.ResourceList{
			"max": item.Max, "min": item.Min, "default": item.Default, "defaultRequest": item.DefaultRequest, "maxLimitRequestRatio": item.MaxLimitRequestRatio,
		}) {
			for name := range sorted(list) {
				e.resourceName(p.Child(child).Key(string(name)), name)
				names[name] = true
			}
		}
		if item.Type == corev1.LimitTypePod {
			for child, list := range map[string]corev1.ResourceList{"default": item.Default, "defaultRequest": item.DefaultRequest} {
				if len(list) > 0 {
					e.forbidden(p.Child(child), "may not be specified when `type` is 'Pod'")
				}
			}
		}
		if item.Type == corev1.LimitTypePersistentVolumeClaim {
			_, least := item.Min[corev1.ResourceStorage]
			_, most := item.Max[corev1.ResourceStorage]
			if !least && !most {
				e.required(p, "either minimum or maximum storage value is required, but neither was provided")
			}
		}
		for name := range sorted(names) {
			e.limitItem(p, item, name)
		}
	}
}

func (e *problems) limitItem(p *field.Path, item *corev1.LimitRangeItem, name corev1.ResourceName) {
	most, hasMost := item.Max[name]
	least, hasLeast := item.Min[name]
	limit, hasLimit := item.Default[name]
	request, hasRequest := item.DefaultRequest[name]
	above := func(child string, q, than resource.Quantity, what string) {
		if q.Cmp(than) > 0 {
			e.invalid(p.Child(child).Key(string(name)), q.String(), fmt.Sprintf("%s value %s is greater than %s value %s", strings.TrimSpace(strings.Split(what, "|")[0]), q.String(), strings.Split(what, "|")[1], than.String()))
		}
	}
	if hasLeast && hasMost {
		above("min", least, most, "min|max")
	}
	if hasRequest && hasLeast {
		if least.Cmp(request) > 0 {
			e.invalid(p.Child("defaultRequest").Key(string(name)), request.String(), fmt.Sprintf("min value %s is greater than default request value %s", least.String(), request.String()))
		}
	}
	if hasRequest && hasMost {
		above("defaultRequest", request, most, "default request|max")
	}
	if hasRequest && hasLimit {
		above("defaultRequest", request, limit, "default request|default limit")
	}
	if hasLimit && hasLeast && least.Cmp(limit) > 0 {
		e.invalid(p.Child("default").Key(string(name)), least.String(), fmt.Sprintf("min value %s is greater than default value %s", least.String(), limit.String()))
	}
	if hasLimit && hasMost {
		above("default", limit, most, "default|max")
	}
	if ratio, ok := item.MaxLimitRequestRatio[name]; ok {
		if ratio.Cmp(*resource.NewQuantity(1, resource.DecimalSI)) < 0 {
			e.invalid(p.Child("maxLimitRequestRatio").Key(string(name)), ratio.String(), fmt.Sprintf("ratio %s is less than 1", ratio.String()))
		}
		if hasLeast && hasMost && least.Value() > 0 {
			if possible := float64(most.Value()) / float64(least.Value()); float64(ratio.MilliValue())/1000 > possible {
				e.invalid(p.Child("maxLimitRequestRatio").Key(string(name)), ratio.String(), fmt.Sprintf("ratio %s is greater than max/min = %f", ratio.String(), possible))
			}
		}
	}
	if !mayOvercommit(name) && hasLimit && hasRequest && limit.Cmp(request) != 0 {
		e.invalid(p.Child("defaultRequest").Key(string(name)), request.String(), fmt.Sprintf("default value %s must equal to defaultRequest value %s in %s", limit.String(), request.String(), name))
	}
}

// Quotas.

var quotaScopes = []corev1.ResourceQuotaScope{
	corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating, corev1.ResourceQuotaScopeBestEffort,
	corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopePriorityClass, corev1.ResourceQuotaScopeCrossNamespacePodAffinity,
	corev1.ResourceQuotaScopeVolumeAttributesClass,
}

func (e *problems) quotaResourceName(p *field.Path, name corev1.ResourceName) {
	before := len(*e)
	e.each(p, name, validation.IsQualifiedName(string(name)))
	if len(*e) > before || strings.Contains(string(name), "/") {
		return
	}
	plain := strings.TrimPrefix(strings.TrimPrefix(string(name), requestsPrefix), "limits.")
	if !slices.Contains(containerResources, name) && !slices.Contains(otherResources, name) && !isHugePages(name) && !isHugePages(corev1.ResourceName(plain)) {
		e.invalid(p, name, "must be a standard resource for quota")
	}
}

func (e *problems) quotaList(p *field.Path, list corev1.ResourceList) {
	for name, q := range sorted(list) {
		e.quotaResourceName(p.Key(string(name)), name)
		e.quantity(p.Key(string(name)), name, q)
	}
}

// podResource says that a quota's resource is of pods, and standardForBestEffort
// that pods which ask for nothing use it too.
func podResource(name corev1.ResourceName) bool {
	return slices.Contains([]corev1.ResourceName{
		corev1.ResourcePods, corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage,
	}, name) || strings.HasPrefix(string(name), requestsPrefix) && name != corev1.ResourceRequestsStorage && !strings.Contains(string(name), "storageclass") || name == "count/pods"
}

func validateQuota(q *corev1.ResourceQuota) field.ErrorList {
	e := metadata(&q.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.quotaSpec(&q.Spec)
	return e.list()
}

func (e *problems) quotaSpec(spec *corev1.ResourceQuotaSpec) {
	e.quotaList(specPath.Child("hard"), spec.Hard)
	e.scopes(specPath.Child("scopes"), spec.Scopes, spec.Hard)
	if s := spec.ScopeSelector; s != nil {
		var all []corev1.ResourceQuotaScope
		at := specPath.Child("scopeSelector", "matchExpressions")
		for i, r := range s.MatchExpressions {
			all = append(all, r.ScopeName)
			on := at.Index(i)
			oneOf(e, on.Child("operator"), r.Operator, corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn, corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist)
			switch r.Operator {
			case corev1.ScopeSelectorOpIn, corev1.ScopeSelectorOpNotIn:
				if len(r.Values) == 0 {
					e.required(on.Child("values"), "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")
				}
			case corev1.ScopeSelectorOpExists, corev1.ScopeSelectorOpDoesNotExist:
				if len(r.Values) > 0 {
					e.invalid(on.Child("values"), r.Values, "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")
				}
			}
			if r.ScopeName != corev1.ResourceQuotaScopePriorityClass && r.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass && r.Operator != corev1.ScopeSelectorOpExists {
				e.invalid(on.Child("operator"), r.Operator, "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")
			}
		}
		e.scopes(at.Child("scopeName"), all, spec.Hard)
	}
}

func (e *problems) scopes(p *field.Path, scopes []corev1.ResourceQuotaScope, hard corev1.ResourceList) {
	has := map[corev1.ResourceQuotaScope]bool{}
	for _, s := range scopes {
		if !slices.Contains(quotaScopes, s) {
			e.invalid(p, scopes, "unsupported scope")
			continue
		}
		for name := range sorted(hard) {
			fits := podResource(name)
			switch s {
			case corev1.ResourceQuotaScopeBestEffort:
				fits = name == corev1.ResourcePods || name == "count/pods"
			case corev1.ResourceQuotaScopeVolumeAttributesClass:
				fits = name == corev1.ResourcePersistentVolumeClaims || name == corev1.ResourceRequestsStorage
			}
			if !fits {
				e.invalid(p, scopes, "unsupported scope applied to resource")
			}
		}
		has[s] = true
	}
	for _, pair := range [][2]corev1.ResourceQuotaScope{
		{corev1.ResourceQuotaScopeBestEffort, corev1.ResourceQuotaScopeNotBestEffort}, {corev1.ResourceQuotaScopeTerminating, corev1.ResourceQuotaScopeNotTerminating},
	} {
		if has[pair[0]] && has[pair[1]] {
			e.invalid(p, scopes, "conflicting scopes")
		}
	}
}

func validateQuotaUpdate(q, old *corev1.ResourceQuota) field.ErrorList {
	e := metadata(&q.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.quotaSpec(&q.Spec)
	same := slices.Equal(slices.Sorted(slices.Values(q.Spec.Scopes)), slices.Sorted(slices.Values(old.Spec.Scopes)))
	if !same {
		e.invalid(specPath.Child("scopes"), q.Spec.Scopes, apivalidation.FieldImmutableErrorMsg)
	}
	return e.list()
}

func validateQuotaStatus(q, old *corev1.ResourceQuota) field.ErrorList {
	e := metadata(&q.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	p := field.NewPath("status")
	e.quotaList(p.Child("hard"), q.Status.Hard)
	e.quotaList(p.Child("used"), q.Status.Used)
	return e.list()
}

var quotaColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
	text("Limit", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
	ageColumn,
}

func quotaCells(q *corev1.ResourceQuota, now time.Time) []any {
	var requests, limits []string
	for name, hard := range sorted(q.Status.Hard) {
		used := q.Status.Used[name]
		cell := fmt.Sprintf("%s: %s/%s", name, used.String(), hard.String())
		if strings.HasPrefix(string(name), "limits.") {
			limits = append(limits, cell)
		} else {
			requests = append(requests, cell)
		}
	}
	return []any{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), age(q.CreationTimestamp, now)}
}
