package kinds

import (
	"encoding/json"
	"fmt"
	"maps"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/types"
)

// autoscaling/v1 knows one metric, the processors, and no status of its own
// making. What v2 says beyond that it carries as JSON in annotations, which v2
// does not show.

type (
	autoscaler = types.HorizontalPodAutoscaler
	older      = autoscalingv1.HorizontalPodAutoscaler
)

const annotatedMetrics, annotatedStatuses, annotatedConditions, annotatedBehavior = "autoscaling.alpha.kubernetes.io/metrics",
	"autoscaling.alpha.kubernetes.io/current-metrics", "autoscaling.alpha.kubernetes.io/conditions", "autoscaling.alpha.kubernetes.io/behavior"

// olderAutoscaler is the row of v1, of which everything is said by that of v2.
func olderAutoscaler(v2 *Kind) *Kind {
	k := *v2
	k.GVK = autoscalingv1.SchemeGroupVersion.WithKind(v2.GVK.Kind)
	k.New, k.NewList = empty[older], empty[autoscalingv1.HorizontalPodAutoscalerList]
	k.Stored = v2.Resource()
	k.ToStored = func(o runtime.Object) (runtime.Object, error) {
		n, problem := newerAutoscaler(o.(*older))
		if problem != nil { // an error that is nil would not be
			return nil, problem
		}
		return n, nil
	}
	k.FromStored = func(o runtime.Object) (runtime.Object, error) { return autoscalerAsV1(o.(*autoscaler)) }
	k.Default = one(func(h *older) { defaultPtr(&h.Spec.MinReplicas, 1) })
	k.PrepareForCreate = one(func(h *older) {
		changeAsV2(h, func(n *autoscaler) { v2.PrepareForCreate(n) })
	})
	prepare := func(f func(obj, old runtime.Object)) func(obj, old runtime.Object) {
		return two(func(h, old *older) {
			if o, err := newerAutoscaler(old); err == nil {
				changeAsV2(h, func(n *autoscaler) { f(n, o) })
			}
		})
	}
	k.PrepareForUpdate, k.PrepareForStatusUpdate = prepare(v2.PrepareForUpdate), prepare(v2.PrepareForStatusUpdate)
	k.Validate = check(func(h *older) field.ErrorList {
		n, err := newerAutoscaler(h)
		if err != nil {
			return field.ErrorList{err}
		}
		return v2.Validate(n)
	})
	judge := func(f func(obj, old runtime.Object) field.ErrorList) func(obj, old runtime.Object) field.ErrorList {
		return checkTwo(func(h, old *older) field.ErrorList {
			n, err := newerAutoscaler(h)
			o, oldErr := newerAutoscaler(old)
			switch {
			case err != nil:
				return field.ErrorList{err}
			case oldErr != nil:
				return field.ErrorList{oldErr}
			}
			return f(n, o)
		})
	}
	k.ValidateUpdate, k.ValidateStatusUpdate = judge(v2.ValidateUpdate), judge(v2.ValidateStatusUpdate)
	k.Warnings = warn(func(h *older) []string {
		n, err := newerAutoscaler(h)
		if err != nil {
			return nil
		}
		return autoscalerWarnings(n)
	})
	k.Cells = cells(func(h *older, now time.Time) []any {
		n, err := newerAutoscaler(h)
		if err != nil {
			n = &autoscaler{ObjectMeta: h.ObjectMeta}
		}
		return autoscalerCells(n, now)
	})
	return &k
}

// changeAsV2 changes what cannot be read by nothing: validation says why.
func changeAsV2(h *older, change func(*autoscaler)) {
	n, problem := newerAutoscaler(h)
	if problem != nil {
		return
	}
	change(n)
	if changed, err := autoscalerAsV1(n); err == nil {
		changed.TypeMeta = h.TypeMeta
		*h = *changed
	}
}

// AddAutoscalerConversions lets a scheme convert between the two versions, for
// the sake of who owns which fields.
func AddAutoscalerConversions(s *runtime.Scheme) error {
	if err := s.AddConversionFunc((*older)(nil), (*autoscaler)(nil), func(a, b any, _ conversion.Scope) error {
		n, err := newerAutoscaler(a.(*older))
		if err != nil {
			return err
		}
		*b.(*autoscaler) = *n
		return nil
	}); err != nil {
		return err
	}
	return s.AddConversionFunc((*autoscaler)(nil), (*older)(nil), func(a, b any, _ conversion.Scope) error {
		h, err := autoscalerAsV1(a.(*autoscaler))
		if err != nil {
			return err
		}
		*b.(*older) = *h
		return nil
	})
}

// newerAutoscaler reads an object of v1 as one of v2, complete with the metric
// that v1 has where it says none.
func newerAutoscaler(h *older) (*autoscaler, *field.Error) {
	h = h.DeepCopy()
	n := &autoscaler{
		TypeMeta: metav1.TypeMeta{APIVersion: types.Autoscaling.String(), Kind: "HorizontalPodAutoscaler"}, ObjectMeta: h.ObjectMeta,
		Spec: types.AutoscalerSpec{
			ScaleTargetRef: types.ObjectName(h.Spec.ScaleTargetRef), MinReplicas: h.Spec.MinReplicas, MaxReplicas: h.Spec.MaxReplicas,
		},
		Status: types.AutoscalerStatus{
			ObservedGeneration: h.Status.ObservedGeneration, LastScaleTime: h.Status.LastScaleTime,
			CurrentReplicas: h.Status.CurrentReplicas, DesiredReplicas: h.Status.DesiredReplicas,
		},
	}
	if percent := h.Spec.TargetCPUUtilizationPercentage; percent != nil {
		n.Spec.Metrics = append(n.Spec.Metrics, cpuMetric(*percent))
	}
	var metrics, statuses []annotatedMetric
	for key, into := range sorted(map[string]any{annotatedMetrics: &metrics, annotatedStatuses: &statuses, annotatedConditions: &n.Status.Conditions, annotatedBehavior: &n.Spec.Behavior}) {
		text, ok := n.Annotations[key]
		if !ok {
			continue
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			return nil, field.Invalid(field.NewPath("metadata", "annotations").Key(key), text, fmt.Sprintf("must be the JSON of what autoscaling/v2 says: %v", err))
		}
		delete(n.Annotations, key)
	}
	if len(n.Annotations) == 0 {
		n.Annotations = nil
	}
	for i := range metrics {
		n.Spec.Metrics = append(n.Spec.Metrics, metrics[i].spec())
	}
	for i := range statuses {
		n.Status.CurrentMetrics = append(n.Status.CurrentMetrics, statuses[i].status())
	}
	if percent := h.Status.CurrentCPUUtilizationPercentage; percent != nil && len(statuses) == 0 {
		n.Status.CurrentMetrics = []types.MetricStatus{{Type: types.ResourceMetric, Resource: &types.ResourceMetricStatus{
			Name: corev1.ResourceCPU, Current: types.MetricValue{AverageUtilization: percent},
		}}}
	}
	defaultAutoscaler(n)
	return n, nil
}

// autoscalerAsV1 is the reverse.
func autoscalerAsV1(n *autoscaler) (*older, error) {
	n = n.DeepCopyObject().(*autoscaler)
	h := &older{
		TypeMeta: metav1.TypeMeta{APIVersion: autoscalingv1.SchemeGroupVersion.String(), Kind: "HorizontalPodAutoscaler"}, ObjectMeta: n.ObjectMeta,
		Spec: autoscalingv1.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv1.CrossVersionObjectReference(n.Spec.ScaleTargetRef), MinReplicas: n.Spec.MinReplicas, MaxReplicas: n.Spec.MaxReplicas,
		},
		Status: autoscalingv1.HorizontalPodAutoscalerStatus{
			ObservedGeneration: n.Status.ObservedGeneration, LastScaleTime: n.Status.LastScaleTime,
			CurrentReplicas: n.Status.CurrentReplicas, DesiredReplicas: n.Status.DesiredReplicas,
		},
	}
	var metrics, statuses []annotatedMetric
	for i := range n.Spec.Metrics {
		m := &n.Spec.Metrics[i]
		if r := m.Resource; r != nil && r.Name == corev1.ResourceCPU && r.Target.AverageUtilization != nil && h.Spec.TargetCPUUtilizationPercentage == nil {
			h.Spec.TargetCPUUtilizationPercentage = r.Target.AverageUtilization
			continue
		}
		metrics = append(metrics, metricAsV1(m))
	}
	for i := range n.Status.CurrentMetrics {
		s := &n.Status.CurrentMetrics[i]
		if r := s.Resource; r != nil && r.Name == corev1.ResourceCPU && r.Current.AverageUtilization != nil {
			h.Status.CurrentCPUUtilizationPercentage = r.Current.AverageUtilization
		}
		statuses = append(statuses, statusAsV1(s))
	}
	said := map[string]any{}
	if len(metrics) > 0 {
		said[annotatedMetrics] = metrics
	}
	if len(statuses) > 0 {
		said[annotatedStatuses] = statuses
	}
	if len(n.Status.Conditions) > 0 {
		said[annotatedConditions] = n.Status.Conditions
	}
	if n.Spec.Behavior != nil {
		said[annotatedBehavior] = n.Spec.Behavior
	}
	maps.DeleteFunc(h.Annotations, func(key, _ string) bool {
		return key == annotatedMetrics || key == annotatedStatuses || key == annotatedConditions || key == annotatedBehavior
	})
	for key, what := range said {
		text, err := json.Marshal(what)
		if err != nil {
			return nil, fmt.Errorf("write %s: %w", key, err)
		}
		if h.Annotations == nil {
			h.Annotations = map[string]string{}
		}
		h.Annotations[key] = string(text)
	}
	return h, nil
}

// annotatedMetric is the form that v1 has for a metric, or for the status of
// one: the published types would be another 0.2 MB of the binary. The controller
// reads resources alone, so that there is no status of other metrics.
type annotatedMetric struct {
	Type              string           `json:"type"`
	Object            *annotatedSource `json:"object,omitempty"`
	Pods              *annotatedSource `json:"pods,omitempty"`
	Resource          *annotatedSource `json:"resource,omitempty"`
	ContainerResource *annotatedSource `json:"containerResource,omitempty"`
	External          *annotatedSource `json:"external,omitempty"`
}

type annotatedSource struct {
	// What is measured.
	Name           corev1.ResourceName   `json:"name,omitempty"`
	Container      string                `json:"container,omitempty"`
	MetricName     string                `json:"metricName,omitempty"`
	Selector       *metav1.LabelSelector `json:"selector,omitempty"`
	MetricSelector *metav1.LabelSelector `json:"metricSelector,omitempty"` // External's
	Target         *types.ObjectName     `json:"target,omitempty"`
	// What it is meant to be.
	TargetValue              *resource.Quantity `json:"targetValue,omitempty"`
	AverageValue             *resource.Quantity `json:"averageValue,omitempty"` // Object's
	TargetAverageValue       *resource.Quantity `json:"targetAverageValue,omitempty"`
	TargetAverageUtilization *int32             `json:"targetAverageUtilization,omitempty"`
	// What it is.
	CurrentAverageValue       *resource.Quantity `json:"currentAverageValue,omitempty"`
	CurrentAverageUtilization *int32             `json:"currentAverageUtilization,omitempty"`
}

func metricAsV1(m *types.MetricSpec) annotatedMetric {
	out := annotatedMetric{Type: m.Type}
	if o := m.Object; o != nil {
		out.Object = &annotatedSource{
			Target: &o.DescribedObject, MetricName: o.Metric.Name, Selector: o.Metric.Selector, TargetValue: o.Target.Value, AverageValue: o.Target.AverageValue,
		}
	}
	if p := m.Pods; p != nil {
		out.Pods = &annotatedSource{MetricName: p.Metric.Name, Selector: p.Metric.Selector, TargetAverageValue: p.Target.AverageValue}
	}
	if r := m.Resource; r != nil {
		out.Resource = &annotatedSource{Name: r.Name, TargetAverageUtilization: r.Target.AverageUtilization, TargetAverageValue: r.Target.AverageValue}
	}
	if c := m.ContainerResource; c != nil {
		out.ContainerResource = &annotatedSource{
			Name: c.Name, Container: c.Container, TargetAverageUtilization: c.Target.AverageUtilization, TargetAverageValue: c.Target.AverageValue,
		}
	}
	if x := m.External; x != nil {
		out.External = &annotatedSource{MetricName: x.Metric.Name, MetricSelector: x.Metric.Selector, TargetValue: x.Target.Value, TargetAverageValue: x.Target.AverageValue}
	}
	return out
}

// meant is the target of a source, of which v1 says no type.
func (s *annotatedSource) meant() types.MetricTarget {
	t := types.MetricTarget{Type: types.TargetValue, Value: s.TargetValue, AverageValue: s.TargetAverageValue, AverageUtilization: s.TargetAverageUtilization}
	if s.AverageValue != nil {
		t.AverageValue = s.AverageValue
	}
	switch {
	case t.AverageUtilization != nil:
		t.Type = types.TargetUtilization
	case t.AverageValue != nil:
		t.Type = types.TargetAverageValue
		if t.Value != nil && t.Value.IsZero() {
			t.Value = nil // Kubernetes' v1 cannot leave it out
		}
	}
	return t
}

func (m *annotatedMetric) spec() types.MetricSpec {
	out := types.MetricSpec{Type: m.Type}
	if o := m.Object; o != nil {
		out.Object = &types.ObjectMetricSource{
			DescribedObject: deref(o.Target), Metric: types.MetricName{Name: o.MetricName, Selector: o.Selector}, Target: o.meant(),
		}
	}
	if p := m.Pods; p != nil {
		out.Pods = &types.NamedMetricSource{Metric: types.MetricName{Name: p.MetricName, Selector: p.Selector}, Target: p.meant()}
	}
	if r := m.Resource; r != nil {
		out.Resource = &types.ResourceMetricSource{Name: r.Name, Target: r.meant()}
	}
	if c := m.ContainerResource; c != nil {
		out.ContainerResource = &types.ContainerResourceMetricSource{Name: c.Name, Container: c.Container, Target: c.meant()}
	}
	if x := m.External; x != nil {
		out.External = &types.NamedMetricSource{Metric: types.MetricName{Name: x.MetricName, Selector: x.MetricSelector}, Target: x.meant()}
	}
	return out
}

func statusAsV1(s *types.MetricStatus) annotatedMetric {
	out := annotatedMetric{Type: s.Type}
	if r := s.Resource; r != nil {
		out.Resource = &annotatedSource{Name: r.Name, CurrentAverageUtilization: r.Current.AverageUtilization, CurrentAverageValue: r.Current.AverageValue}
	}
	if c := s.ContainerResource; c != nil {
		out.ContainerResource = &annotatedSource{
			Name: c.Name, Container: c.Container, CurrentAverageUtilization: c.Current.AverageUtilization, CurrentAverageValue: c.Current.AverageValue,
		}
	}
	return out
}

func (m *annotatedMetric) status() types.MetricStatus {
	out := types.MetricStatus{Type: m.Type}
	if r := m.Resource; r != nil {
		out.Resource = &types.ResourceMetricStatus{Name: r.Name, Current: types.MetricValue{AverageUtilization: r.CurrentAverageUtilization, AverageValue: r.CurrentAverageValue}}
	}
	if c := m.ContainerResource; c != nil {
		out.ContainerResource = &types.ContainerResourceMetricStatus{
			Name: c.Name, Container: c.Container, Current: types.MetricValue{AverageUtilization: c.CurrentAverageUtilization, AverageValue: c.CurrentAverageValue},
		}
	}
	return out
}
