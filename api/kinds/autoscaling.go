package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/types"
)

// A HorizontalPodAutoscaler says between which bounds the replicas of something
// follow what its pods use (KEP 2307). It is one kind in two versions; v2 is the
// one that is stored, see autoscaling_v1.go for the other.

const (
	// DefaultCPUTarget is the share of its request that a pod's processors are
	// meant to be used by, where nothing else is said, in percent.
	DefaultCPUTarget = 80
	// DefaultScaleDownWindow is how long a lower recommendation waits, in seconds.
	DefaultScaleDownWindow = 300

	longestStabilization = 3600 // seconds
	longestPolicyPeriod  = 1800 // seconds
)

func autoscalingRows() []*Kind {
	v2 := specAndStatus(Kind{
		GVK: types.Autoscaling.WithKind("HorizontalPodAutoscaler"), Plural: "horizontalpodautoscalers", ShortNames: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true,
		New: empty[types.HorizontalPodAutoscaler], NewList: empty[types.HorizontalPodAutoscalerList],
		Default:  one(defaultAutoscaler),
		Validate: check(judgeAutoscaler.create), ValidateUpdate: checkTwo(judgeAutoscaler.update), ValidateStatusUpdate: checkTwo(validateAutoscalerStatus),
		Warnings: warn(autoscalerWarnings),
		Columns:  autoscalerColumns, Cells: cells(autoscalerCells),
	}, func(h *types.HorizontalPodAutoscaler) *types.AutoscalerSpec {
		return &h.Spec
	},
		func(h *types.HorizontalPodAutoscaler) *types.AutoscalerStatus {
			return &h.Status
		})
	return []*Kind{v2, olderAutoscaler(v2)}
}

// DefaultBehavior is how fast replicas follow where nobody says otherwise.
func DefaultBehavior() *types.AutoscalerBehavior {
	b := &types.AutoscalerBehavior{}
	defaultBehavior(b)
	return b
}

func defaultAutoscaler(h *types.HorizontalPodAutoscaler) {
	defaultPtr(&h.Spec.MinReplicas, 1)
	if len(h.Spec.Metrics) == 0 {
		h.Spec.Metrics = []types.MetricSpec{cpuMetric(DefaultCPUTarget)}
	}
	if h.Spec.Behavior != nil {
		defaultBehavior(h.Spec.Behavior)
	}
}

func cpuMetric(percent int32) types.MetricSpec {
	return types.MetricSpec{Type: types.ResourceMetric, Resource: &types.ResourceMetricSource{
		Name: corev1.ResourceCPU, Target: types.MetricTarget{Type: types.TargetUtilization, AverageUtilization: &percent},
	}}
}

func defaultBehavior(b *types.AutoscalerBehavior) {
	all := types.ScalingPolicy{Type: types.PolicyPercent, Value: 100, PeriodSeconds: 15}
	some := types.ScalingPolicy{Type: types.PolicyPods, Value: 4, PeriodSeconds: 15}
	rules := func(r **types.ScalingRules, policies ...types.ScalingPolicy) *types.ScalingRules {
		defaultPtr(r, types.ScalingRules{})
		defaultPtr(&(*r).SelectPolicy, types.SelectMost)
		if (*r).Policies == nil {
			(*r).Policies = policies
		}
		return *r
	}
	defaultPtr(&rules(&b.ScaleUp, some, all).StabilizationWindowSeconds, 0)
	rules(&b.ScaleDown, all) // whose window is the controller's to know
}

// What may be said.

var judgeAutoscaler = judge[*types.HorizontalPodAutoscaler]{
	spec: func(e *problems, h *types.HorizontalPodAutoscaler) { e.autoscaler(specPath, &h.Spec) },
}

func validateAutoscalerStatus(h, old *types.HorizontalPodAutoscaler) field.ErrorList {
	e := metadata(&h.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	p := field.NewPath("status")
	e.nonNegative(p.Child("currentReplicas"), int64(h.Status.CurrentReplicas))
	e.nonNegative(p.Child("desiredReplicas"), int64(h.Status.DesiredReplicas))
	return e.list()
}

func (e *problems) autoscaler(p *field.Path, spec *types.AutoscalerSpec) {
	if least := spec.MinReplicas; least != nil && *least < 1 {
		e.invalid(p.Child("minReplicas"), *least, "must be greater than or equal to 1")
	}
	if spec.MaxReplicas < 1 {
		e.invalid(p.Child("maxReplicas"), spec.MaxReplicas, "must be greater than 0")
	}
	if least := spec.MinReplicas; least != nil && spec.MaxReplicas < *least {
		e.invalid(p.Child("maxReplicas"), spec.MaxReplicas, "must be greater than or equal to `minReplicas`")
	}
	e.scaleTarget(p.Child("scaleTargetRef"), spec.ScaleTargetRef)
	for i := range spec.Metrics {
		e.metric(p.Child("metrics").Index(i), &spec.Metrics[i])
	}
	if b := spec.Behavior; b != nil {
		e.scalingRules(p.Child("behavior", "scaleUp"), b.ScaleUp)
		e.scalingRules(p.Child("behavior", "scaleDown"), b.ScaleDown)
	}
}

func (e *problems) scaleTarget(p *field.Path, ref types.ObjectName) {
	if e.nonEmpty(p.Child("kind"), ref.Kind) {
		e.each(p.Child("kind"), ref.Kind, path.IsValidPathSegmentName(ref.Kind))
	}
	if e.nonEmpty(p.Child("name"), ref.Name) {
		e.each(p.Child("name"), ref.Name, path.IsValidPathSegmentName(ref.Name))
	}
}

func (e *problems) scalingRules(p *field.Path, r *types.ScalingRules) {
	if r == nil {
		return
	}
	if w := r.StabilizationWindowSeconds; w != nil {
		e.within(p.Child("stabilizationWindowSeconds"), *w, 0, longestStabilization, "must be greater than or equal to zero")
	}
	if r.SelectPolicy != nil && !slices.Contains(selections, *r.SelectPolicy) {
		e.add(field.NotSupported(p.Child("selectPolicy"), *r.SelectPolicy, selections))
	}
	if r.Tolerance != nil && r.Tolerance.Sign() < 0 {
		e.invalid(p.Child("tolerance"), r.Tolerance.String(), apivalidation.IsNegativeErrorMsg)
	}
	if len(r.Policies) == 0 {
		e.required(p.Child("policies"), "must specify at least one Policy")
	}
	for i, policy := range r.Policies {
		at := p.Child("policies").Index(i)
		if !slices.Contains(policyTypes, policy.Type) {
			e.add(field.NotSupported(at.Child("type"), policy.Type, policyTypes))
		}
		if policy.Value <= 0 {
			e.invalid(at.Child("value"), policy.Value, "must be greater than zero")
		}
		e.within(at.Child("periodSeconds"), policy.PeriodSeconds, 1, longestPolicyPeriod, "must be greater than zero")
	}
}

var (
	selections  = []string{types.SelectNone, types.SelectMost, types.SelectLeast}
	policyTypes = []string{types.PolicyPercent, types.PolicyPods}
	metricTypes = []string{
		types.ContainerResourceMetric, types.ExternalMetric, types.ObjectMetric,
		types.PodsMetric, types.ResourceMetric,
	}
	targetTypes = []string{types.TargetUtilization, types.TargetValue, types.TargetAverageValue}
)

// within is of seconds between two bounds.
func (e *problems) within(p *field.Path, n, least, most int32, tooLittle string) {
	switch {
	case n < least:
		e.invalid(p, n, tooLittle)
	case n > most:
		e.invalid(p, n, fmt.Sprintf("must be less than or equal to %d", most))
	}
}

// metric is of one metric: its type names the one source that is filled in.
func (e *problems) metric(p *field.Path, m *types.MetricSpec) {
	sources := []struct {
		name  string
		of    string
		is    bool
		judge func(*field.Path)
	}{
		{"object", types.ObjectMetric, m.Object != nil, func(p *field.Path) {
			e.scaleTarget(p.Child("describedObject"), m.Object.DescribedObject)
			e.metricName(p.Child("metric"), m.Object.Metric)
			e.metricTarget(p.Child("target"), &m.Object.Target)
			if t := &m.Object.Target; t.Value == nil && t.AverageValue == nil {
				e.required(p.Child("target", "averageValue"), "must set either a target value or averageValue")
			}
		}},
		{"external", types.ExternalMetric, m.External != nil, func(p *field.Path) {
			e.metricName(p.Child("metric"), m.External.Metric)
			e.metricTarget(p.Child("target"), &m.External.Target)
			switch t := &m.External.Target; {
			case t.Value == nil && t.AverageValue == nil:
				e.required(p.Child("target", "averageValue"), "must set either a target value for metric or a per-pod target")
			case t.Value != nil && t.AverageValue != nil:
				e.forbidden(p.Child("target", "value"), "may not set both a target value for metric and a per-pod target")
			}
		}},
		{"pods", types.PodsMetric, m.Pods != nil, func(p *field.Path) {
			e.metricName(p.Child("metric"), m.Pods.Metric)
			e.metricTarget(p.Child("target"), &m.Pods.Target)
			if m.Pods.Target.AverageValue == nil {
				e.required(p.Child("target", "averageValue"), "must specify a positive target averageValue")
			}
		}},
		{"resource", types.ResourceMetric, m.Resource != nil, func(p *field.Path) {
			if m.Resource.Name == "" {
				e.required(p.Child("name"), "must specify a resource name")
			}
			e.usageTarget(p.Child("target"), &m.Resource.Target)
		}},
		{"containerResource", types.ContainerResourceMetric, m.ContainerResource != nil, func(p *field.Path) {
			if m.ContainerResource.Name == "" {
				e.required(p.Child("name"), "must specify a resource name")
			} else {
				e.containerResourceName(p.Child("name"), m.ContainerResource.Name)
			}
			if m.ContainerResource.Container == "" {
				e.required(p.Child("container"), "must specify a container")
			} else {
				e.dnsLabel(p.Child("container"), m.ContainerResource.Container)
			}
			e.usageTarget(p.Child("target"), &m.ContainerResource.Target)
		}},
	}
	if m.Type == "" {
		e.required(p.Child("type"), "must specify a metric source type")
	}
	if !slices.Contains(metricTypes, m.Type) {
		e.add(field.NotSupported(p.Child("type"), m.Type, metricTypes))
	}
	first := true
	for _, s := range sources {
		switch {
		case s.is && first:
			s.judge(p.Child(s.name))
			first = false
		case !s.is && s.of == m.Type:
			e.required(p.Child(s.name), "must populate information for the given metric source")
		}
		if s.is && s.of != m.Type {
			e.forbidden(p.Child(s.name), "must populate the given metric source only")
		}
	}
}

func (e *problems) metricName(p *field.Path, id types.MetricName) {
	if id.Name == "" {
		e.required(p.Child("name"), "must specify a metric name")
		return
	}
	e.each(p.Child("name"), id.Name, path.IsValidPathSegmentName(id.Name))
}

func (e *problems) metricTarget(p *field.Path, t *types.MetricTarget) {
	if t.Type == "" {
		e.required(p.Child("type"), "must specify a metric target type")
	}
	if !slices.Contains(targetTypes, t.Type) {
		e.invalid(p.Child("type"), t.Type, "must be either Utilization, Value, or AverageValue")
	}
	if t.Value != nil && t.Value.Sign() != 1 {
		e.invalid(p.Child("value"), t.Value, "must be positive")
	}
	if t.AverageValue != nil && t.AverageValue.Sign() != 1 {
		e.invalid(p.Child("averageValue"), t.AverageValue, "must be positive")
	}
	if t.AverageUtilization != nil && *t.AverageUtilization < 1 {
		e.invalid(p.Child("averageUtilization"), *t.AverageUtilization, "must be greater than 0")
	}
}

// usageTarget is the target of what pods or their containers use.
func (e *problems) usageTarget(p *field.Path, t *types.MetricTarget) {
	e.metricTarget(p, t)
	switch {
	case t.AverageUtilization == nil && t.AverageValue == nil:
		e.required(p.Child("averageUtilization"), "must set either a target raw value or a target utilization")
	case t.AverageUtilization != nil && t.AverageValue != nil:
		e.forbidden(p.Child("averageValue"), "may not set both a target raw value and a target utilization")
	}
}

// autoscalerWarnings are of the metrics that nobody reads here: those of
// custom.metrics.k8s.io and external.metrics.k8s.io.
func autoscalerWarnings(h *types.HorizontalPodAutoscaler) (out []string) {
	for i, m := range h.Spec.Metrics {
		if m.Resource == nil && m.ContainerResource == nil {
			out = append(out, unsupported(specPath.Child("metrics").Index(i)))
		}
	}
	return out
}

// What kubectl prints.

var autoscalerColumns = []metav1.TableColumnDefinition{
	nameColumn,
	text("Reference", "What is scaled: its kind and its name."),
	text("Targets", "What each metric is, and what it is meant to be."),
	text("MinPods", "The least number of replicas that the target is scaled to."),
	text("MaxPods", "The greatest number of replicas that the target is scaled to."),
	text("Replicas", "The number of replicas that the target has, as was last seen."),
	ageColumn,
}

func autoscalerCells(h *types.HorizontalPodAutoscaler, now time.Time) []any {
	least := unset
	if h.Spec.MinReplicas != nil {
		least = fmt.Sprint(*h.Spec.MinReplicas)
	}
	return []any{
		h.Name, h.Spec.ScaleTargetRef.Kind + "/" + h.Spec.ScaleTargetRef.Name, metricsCell(h.Spec.Metrics, h.Status.CurrentMetrics),
		least, int64(h.Spec.MaxReplicas), int64(h.Status.CurrentReplicas), age(h.CreationTimestamp, now),
	}
}

// metricsCell shows what is and what is meant to be, of the first two metrics.
func metricsCell(specs []types.MetricSpec, statuses []types.MetricStatus) string {
	const most = 2
	var list []string
	for i, spec := range specs {
		if i == most {
			return fmt.Sprintf("%s + %d more...", strings.Join(list, ", "), len(specs)-most)
		}
		var status types.MetricStatus
		if i < len(statuses) {
			status = statuses[i]
		}
		list = append(list, metricCell(&spec, &status))
	}
	return or(strings.Join(list, ", "), none)
}

func metricCell(spec *types.MetricSpec, status *types.MetricStatus) string {
	var is types.MetricValue
	switch {
	case spec.Resource != nil:
		if status.Resource != nil {
			is = status.Resource.Current
		}
		return fmt.Sprintf("%s: %s", spec.Resource.Name, usageCell(&spec.Resource.Target, &is))
	case spec.ContainerResource != nil:
		if status.ContainerResource != nil {
			is = status.ContainerResource.Current
		}
		return fmt.Sprintf("%s: %s", spec.ContainerResource.Name, usageCell(&spec.ContainerResource.Target, &is))
	case spec.Pods != nil:
		if status.Pods != nil {
			is = status.Pods.Current
		}
		return known(is.AverageValue) + "/" + known(spec.Pods.Target.AverageValue)
	case spec.Object != nil:
		if status.Object != nil {
			is = status.Object.Current
		}
		return valueCell(&spec.Object.Target, &is)
	case spec.External != nil:
		if status.External != nil {
			is = status.External.Current
		}
		return valueCell(&spec.External.Target, &is)
	}
	return "<unknown type>"
}

// known is a value, if there is one.
func known(v *resource.Quantity) string {
	if v == nil {
		return unknown
	}
	return v.String()
}

func usageCell(target *types.MetricTarget, is *types.MetricValue) string {
	if target.AverageValue != nil {
		return known(is.AverageValue) + "/" + target.AverageValue.String()
	}
	percent := func(n *int32, otherwise string) string {
		if n == nil {
			return otherwise
		}
		return fmt.Sprintf("%d%%", *n)
	}
	return percent(is.AverageUtilization, unknown) + "/" + percent(target.AverageUtilization, "<auto>")
}

func valueCell(target *types.MetricTarget, is *types.MetricValue) string {
	if target.AverageValue != nil {
		return known(is.AverageValue) + "/" + target.AverageValue.String() + " (avg)"
	}
	return known(is.Value) + "/" + known(target.Value)
}
