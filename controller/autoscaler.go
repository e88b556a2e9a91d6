package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	machinery "k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/api/kinds"
	"conclave/api/types"
)

const (
	autoscalerComponent = "horizontal-pod-autoscaler"
	// autoscalerEvery is how often an autoscaler looks at its metrics.
	autoscalerEvery = 15 * time.Second
	// autoscalerRepeats is how often it says again what it has said.
	autoscalerRepeats = 5 * time.Minute

	customMetrics   = "custom.metrics.k8s.io"
	externalMetrics = "external.metrics.k8s.io"
)

// newAutoscalers makes the replicas of what HorizontalPodAutoscalers name follow
// what its pods use. It asks the nodes, for the pods of each autoscaler, as long
// as there is one.
//
// Recommendations and changes of the last minutes are in memory: another leader
// begins with the replicas that it finds as the first recommendation, and so
// waits for as long as scaling down has to wait.
func newAutoscalers(e *env) *Controller {
	c := &autoscalerController{env: e, memory: map[Key]*autoscalerMemory{}}
	return &Controller{
		Name: "horizontalpodautoscaler", Workers: 4,
		Inputs: []Input{{autoscalers, func(change Change) []Key {
			if change.Old != nil && change.New != nil && change.Old.GetGeneration() == change.New.GetGeneration() {
				return nil // only time makes it look again
			}
			return self(change)
		}}},
		Outputs:   []Output{{autoscalers, "status"}, {schema.GroupVersionResource{Resource: "*"}, "scale of what a HorizontalPodAutoscaler names"}},
		Reconcile: c.reconcile,
	}
}

type autoscalerController struct {
	*env
	mu     sync.Mutex
	memory map[Key]*autoscalerMemory
}

// autoscalerMemory is what is known of one autoscaler beside its object. It
// belongs to the worker that has its key, but for the selector, which is under
// the controller's mu.
type autoscalerMemory struct {
	uid      machinery.UID
	past     scalePast
	selector labels.Selector
	said     map[string]time.Time // warnings
}

// remember returns the memory of an autoscaler, or forgets what has its name.
func (c *autoscalerController) remember(key Key, h *types.HorizontalPodAutoscaler) *autoscalerMemory {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h == nil {
		delete(c.memory, key)
		return nil
	}
	m := c.memory[key]
	if m == nil || m.uid != h.UID {
		m = &autoscalerMemory{uid: h.UID, said: map[string]time.Time{}}
		c.memory[key] = m
	}
	return m
}

// autoscaling is one look at one autoscaler.
type autoscaling struct {
	*autoscalerController
	*autoscalerMemory
	h        *types.HorizontalPodAutoscaler
	status   types.AutoscalerStatus
	behavior *types.AutoscalerBehavior
	now      time.Time
	warned   map[string]bool
}

func (c *autoscalerController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	h, ok := get[*types.HorizontalPodAutoscaler](c.cache, autoscalers, key.Namespace, key.Name)
	if !ok || h.DeletionTimestamp != nil {
		c.remember(key, nil)
		return 0, nil
	}
	a := &autoscaling{autoscalerController: c, autoscalerMemory: c.remember(key, h), h: h, now: c.Now(), warned: map[string]bool{}}
	a.status = edit(h).Status
	a.status.ObservedGeneration = &h.Generation
	if a.behavior = h.Spec.Behavior; a.behavior == nil {
		a.behavior = kinds.DefaultBehavior()
	}
	if err := a.sync(ctx); err != nil {
		return 0, err
	}
	for text := range a.said {
		if !a.warned[text] {
			delete(a.said, text) // it is news when it comes again
		}
	}
	a.status.CurrentMetrics = steadied(h.Spec.Metrics, a.status.CurrentMetrics, h.Status.CurrentMetrics)
	if equality.Semantic.DeepEqual(h.Status, a.status) {
		return autoscalerEvery, nil
	}
	h = edit(h)
	h.Status = a.status
	_, err := c.update(ctx, autoscalers, h, "status")
	return autoscalerEvery, ignoreGone(err)
}

// sync scales, and says in the status what came of it. An error is of what may
// be done again at once.
func (a *autoscaling) sync(ctx context.Context) error {
	resource, scale, err := a.scale(ctx)
	if err != nil {
		a.warn("FailedGetScale", err.Error())
		a.condition(types.AbleToScale, finding{false, "FailedGetScale", fmt.Sprintf("the HPA controller was unable to get the target's current scale: %v", err)})
		return nil
	}
	a.condition(types.AbleToScale, finding{true, "SucceededGetScale", "the HPA controller was able to get the target's current scale"})
	current, least, most := scale.Spec.Replicas, int32(1), a.h.Spec.MaxReplicas
	if a.h.Spec.MinReplicas != nil {
		least = *a.h.Spec.MinReplicas
	}
	a.past.forget(a.now, a.behavior)
	if !a.past.begun {
		a.past.begun, a.past.recommended = true, []scaleStep{{a.now, current}}
	}
	a.status.CurrentReplicas = current
	want, why := current, ""
	var statuses []types.MetricStatus
	switch {
	case current == 0:
		want = 0
		a.condition(types.ScalingActive, finding{false, "ScalingDisabled", "scaling is disabled since the replica count of the target is zero"})
	case current > most:
		want, why = most, "Current number of replicas above Spec.MaxReplicas"
	case current < least:
		want, why = least, "Current number of replicas below Spec.MinReplicas"
	default:
		r, err := a.recommend(ctx, scale)
		a.status.CurrentMetrics, statuses = r.statuses, r.statuses
		if err != nil {
			a.warn("FailedComputeMetricsReplicas", err.Error())
			return nil
		}
		want, why = a.decide(current, least, most, &r)
	}
	a.status.CurrentMetrics, a.status.DesiredReplicas = statuses, want
	if want == current {
		return nil
	}
	return a.rescale(ctx, resource, scale, want, why)
}

// recommend computes what the metrics ask for.
func (a *autoscaling) recommend(ctx context.Context, scale *autoscalingv1.Scale) (r recommendation, err error) {
	selector, err := a.selects(scale.Status.Selector)
	if err != nil {
		return r, err
	}
	v := &scaleView{
		replicas: scale.Spec.Replicas, pods: matching(list[*corev1.Pod](a.cache, pods, a.h.Namespace), selector),
		tolerances: tolerancesOf(a.behavior), used: map[string]api.PodUsage{},
	}
	if a.measures() {
		used := a.MeasurePods(ctx, v.pods)
		for _, pod := range v.pods {
			if u, ok := used[pod.UID]; ok {
				v.used[pod.Name] = u
			}
		}
	}
	v.now = a.Now() // measuring takes its time
	r = v.recommend(a.h.Spec.Metrics, a.h.Namespace, a.adapters())
	for _, f := range r.failures {
		a.warn(f.reason, f.what.Error())
	}
	if r.ok {
		a.condition(types.ScalingActive, finding{true, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from " + r.by})
		return r, nil
	}
	a.condition(types.ScalingActive, finding{false, r.failures[0].reason, fmt.Sprintf("the HPA was unable to compute the replica count: %v", r.failures[0].what)})
	return r, r.err(len(a.h.Spec.Metrics))
}

// measures says whether a metric is one that the nodes know.
func (a *autoscaling) measures() bool {
	return a.MeasurePods != nil && slices.ContainsFunc(a.h.Spec.Metrics, func(m types.MetricSpec) bool { return m.Resource != nil || m.ContainerResource != nil })
}

// decide is what is done now of what the metrics ask for, and why.
func (a *autoscaling) decide(current, least, most int32, r *recommendation) (want int32, why string) {
	switch {
	case r.replicas > current:
		why = r.by + " above target"
	case r.replicas < current:
		why = "All metrics below target"
	}
	want, v := stabilize(current, r.replicas, a.past.recommended, a.behavior, a.now)
	a.past.recommended = append(a.past.recommended, scaleStep{a.now, r.replicas})
	a.condition(types.AbleToScale, v)
	want, v = limit(current, want, least, most, &a.past, a.behavior, a.now)
	a.condition(types.ScalingLimited, v)
	return want, why
}

// rescale writes how many replicas there are to be.
func (a *autoscaling) rescale(ctx context.Context, r schema.GroupVersionResource, scale *autoscalingv1.Scale, want int32, why string) error {
	current := scale.Spec.Replicas
	scale = edit(scale)
	scale.Spec.Replicas = want
	_, err := a.client.Update(ctx, r, a.h.Namespace, scale, metav1.UpdateOptions{}, "scale")
	switch {
	case apierrors.IsConflict(err):
		return fmt.Errorf("rescale %s %s: %w", r.Resource, scale.Name, err) // somebody was faster: look again
	case err != nil:
		a.status.DesiredReplicas = current
		a.warn("FailedRescale", fmt.Sprintf("New size: %d; reason: %s; error: %v", want, why, err))
		a.condition(types.AbleToScale, finding{false, "FailedUpdateScale", fmt.Sprintf("the HPA controller was unable to update the target scale: %v", err)})
		return nil
	}
	a.condition(types.AbleToScale, finding{true, "SucceededRescale", fmt.Sprintf("the HPA controller was able to update the target scale to %d", want)})
	a.events.record(autoscalerComponent, about(a.h), corev1.EventTypeNormal, "SuccessfulRescale", "New size: %d; reason: %s", want, why)
	a.status.LastScaleTime = &metav1.Time{Time: a.now.Truncate(time.Second)}
	if want > current {
		a.past.ups = append(a.past.ups, scaleStep{a.now, want - current})
	} else {
		a.past.downs = append(a.past.downs, scaleStep{a.now, current - want})
	}
	return nil
}

// scale is that of the target, and the resource that it is of.
func (a *autoscaling) scale(ctx context.Context) (schema.GroupVersionResource, *autoscalingv1.Scale, error) {
	ref := a.h.Spec.ScaleTargetRef
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return schema.GroupVersionResource{}, nil, err
	}
	plural, _ := apimeta.UnsafeGuessKindToResource(gv.WithKind(ref.Kind))
	r, ok := a.cache.resourceOf(gv.Group, plural.Resource, ref.Kind)
	if !ok {
		return r, nil, &apimeta.NoKindMatchError{GroupKind: schema.GroupKind{Group: gv.Group, Kind: ref.Kind}}
	}
	o, err := a.client.Get(ctx, r, a.h.Namespace, ref.Name, metav1.GetOptions{ResourceVersion: "0"}, "scale")
	if err != nil {
		return r, nil, err
	}
	scale, ok := o.(*autoscalingv1.Scale)
	if !ok {
		return r, nil, fmt.Errorf("the scale of %s is a %T", r.GroupResource(), o)
	}
	return r, scale, nil
}

// selects reads the selector of a scale, and refuses one whose pods are another
// autoscaler's too.
func (a *autoscaling) selects(text string) (labels.Selector, error) {
	refuse := func(event, reason, message, condition string) error {
		a.warn(event, message)
		a.condition(types.ScalingActive, finding{false, reason, condition})
		return errors.New(message)
	}
	if text == "" {
		return nil, refuse("SelectorRequired", "InvalidSelector", "selector is required", "the HPA target's scale is missing a selector")
	}
	selector, err := labels.Parse(text)
	if err != nil {
		message := fmt.Sprintf("couldn't convert selector into a corresponding internal selector object: %v", err)
		return nil, refuse("InvalidSelector", "InvalidSelector", message, message)
	}
	selected := matching(list[*corev1.Pod](a.cache, pods, a.h.Namespace), selector)
	var names []string
	a.mu.Lock()
	a.selector = selector
	for key, m := range a.memory {
		if key.Namespace == a.h.Namespace && m.selector != nil && slices.ContainsFunc(selected, func(pod *corev1.Pod) bool { return m.selector.Matches(labels.Set(pod.Labels)) }) {
			names = append(names, key.String())
		}
	}
	a.mu.Unlock()
	if len(names) > 1 {
		slices.Sort(names)
		message := fmt.Sprintf("pods by selector %s are controlled by multiple HPAs: %v", text, names)
		return nil, refuse("AmbiguousSelector", "AmbiguousSelector", message, message)
	}
	return selector, nil
}

// adapters says why the metrics that are not the nodes' cannot be had; nothing of
// external ones whose API nobody serves, of which it is said by their name.
func (a *autoscaling) adapters() map[string]error {
	all := map[string]error{customMetrics: fmt.Errorf("no custom metrics API (%s) registered", customMetrics)}
	for _, s := range list[*types.APIService](a.cache, apiServices, "") {
		if g := s.Spec.Group; g == customMetrics || g == externalMetrics {
			all[g] = fmt.Errorf("%s is registered, and not read by Conclave yet", g)
		}
	}
	return all
}

// warn records an event, unless it was recorded a moment ago and things are still
// as they were.
func (a *autoscaling) warn(reason, message string) {
	text := reason + ": " + message
	a.warned[text] = true
	if at, ok := a.said[text]; ok && a.now.Sub(at) < autoscalerRepeats {
		return
	}
	a.said[text] = a.now
	a.events.record(autoscalerComponent, about(a.h), corev1.EventTypeWarning, reason, "%s", message)
}

func (a *autoscaling) condition(of string, v finding) {
	is := corev1.ConditionFalse
	if v.is {
		is = corev1.ConditionTrue
	}
	all := &a.status.Conditions
	at := slices.IndexFunc(*all, func(c types.AutoscalerCondition) bool { return c.Type == of })
	if at < 0 {
		at = len(*all)
		*all = append(*all, types.AutoscalerCondition{Type: of})
	}
	c := &(*all)[at]
	if c.Status != is {
		c.Status, c.LastTransitionTime = is, metav1.NewTime(a.now).Rfc3339Copy()
	}
	c.Reason, c.Message, c.ObservedGeneration = v.reason, v.message, &a.h.Generation
}

// steadied are the metrics to be written: one that is within a hundredth of its
// target of what is there stays as that is, so that a quiet pod does not cost a
// write every few seconds.
func steadied(specs []types.MetricSpec, now, old []types.MetricStatus) []types.MetricStatus {
	now = slices.Clone(now)
	for i := range min(len(now), len(old), len(specs)) {
		is, was, target := valueOf(&now[i]), valueOf(&old[i]), targetOf(&specs[i])
		if is == nil || was == nil || target == nil || now[i].Type != old[i].Type || is.AverageValue == nil || was.AverageValue == nil {
			continue
		}
		switch {
		case is.AverageUtilization != nil && was.AverageUtilization != nil:
			if *is.AverageUtilization == *was.AverageUtilization {
				is.AverageValue = was.AverageValue
			}
		case is.AverageUtilization == nil && was.AverageUtilization == nil && target.AverageValue != nil:
			if d := is.AverageValue.MilliValue() - was.AverageValue.MilliValue(); max(d, -d) <= target.AverageValue.MilliValue()/100 {
				is.AverageValue = was.AverageValue
			}
		}
	}
	return now
}

func valueOf(s *types.MetricStatus) *types.MetricValue {
	switch {
	case s.Resource != nil:
		return &s.Resource.Current
	case s.ContainerResource != nil:
		return &s.ContainerResource.Current
	}
	return nil
}

func targetOf(m *types.MetricSpec) *types.MetricTarget {
	switch {
	case m.Resource != nil:
		return &m.Resource.Target
	case m.ContainerResource != nil:
		return &m.ContainerResource.Target
	}
	return nil
}
