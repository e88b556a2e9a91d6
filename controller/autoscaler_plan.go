package controller

import (
	"errors"
	"fmt"
	"math"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"conclave/api"
	"conclave/api/kinds"
	"conclave/api/types"
)

// What a HorizontalPodAutoscaler's metrics amount to, and how much of that may
// be done now. All of it is functions of what was seen and of the autoscaler's
// past.

const (
	// defaultTolerance is by how much a metric may miss its target.
	defaultTolerance = 0.1
	// cpuInitialization is how long what a starting pod's processors do says
	// nothing, unless the pod is ready.
	cpuInitialization = 5 * time.Minute
	// initialReadiness is how long after its start a pod that has become unready
	// counts as one that was never ready.
	initialReadiness = 30 * time.Second
)

// scaleFailure is why a metric cannot be used: reason is of the condition and
// the event, what its message, and whole what is said of all metrics.
type scaleFailure struct {
	reason string
	what   error
	whole  error
}

// scalePast is what an autoscaler remembers, oldest first.
type scalePast struct {
	begun       bool
	recommended []scaleStep // replicas that metrics amounted to
	ups, downs  []scaleStep // by how many replicas it scaled
}

type scaleStep struct {
	at time.Time
	n  int32
}

// forget drops what no rule looks at any more.
func (p *scalePast) forget(now time.Time, b *types.AutoscalerBehavior) {
	window := time.Duration(max(stabilization(b.ScaleUp, 0), stabilization(b.ScaleDown, kinds.DefaultScaleDownWindow))) * time.Second
	p.recommended = after(p.recommended, now.Add(-window))
	period := func(r *types.ScalingRules) (longest int32) {
		for _, policy := range r.Policies {
			longest = max(longest, policy.PeriodSeconds)
		}
		return longest
	}
	oldest := now.Add(-time.Duration(max(period(b.ScaleUp), period(b.ScaleDown))) * time.Second)
	p.ups, p.downs = after(p.ups, oldest), after(p.downs, oldest)
}

func after(steps []scaleStep, at time.Time) []scaleStep {
	for len(steps) > 0 && !steps[0].at.After(at) {
		steps = steps[1:]
	}
	return steps
}

func stabilization(r *types.ScalingRules, otherwise int32) int32 {
	if r.StabilizationWindowSeconds == nil {
		return otherwise
	}
	return *r.StabilizationWindowSeconds
}

// tolerances are by how much a ratio may differ from 1 in each direction.
type tolerances struct{ up, down float64 }

func tolerancesOf(b *types.AutoscalerBehavior) tolerances {
	of := func(r *types.ScalingRules) float64 {
		if r.Tolerance == nil {
			return defaultTolerance
		}
		return r.Tolerance.AsApproximateFloat64()
	}
	return tolerances{up: of(b.ScaleUp), down: of(b.ScaleDown)}
}

func (t tolerances) bear(ratio float64) bool { return ratio >= 1-t.down && ratio <= 1+t.up }

// scaleView is what the metrics of an autoscaler are computed from.
type scaleView struct {
	replicas   int32 // that the target is meant to have
	pods       []*corev1.Pod
	used       map[string]api.PodUsage // by the pod's name
	tolerances tolerances
	now        time.Time
}

// sample is what a pod used, in thousandths.
type sample struct {
	value  int64
	at     time.Time
	window time.Duration
}

// samples are what pods use of a resource; container is empty for the whole pod.
func (v *scaleView) samples(name corev1.ResourceName, container string) (map[string]sample, error) {
	if len(v.used) == 0 {
		return nil, errors.New("no metrics returned from resource metrics API")
	}
	all := map[string]sample{}
	for _, pod := range v.pods {
		u, measured := v.used[pod.Name]
		if !measured {
			continue
		}
		s, complete := sample{at: u.Time, window: u.Window}, true
		add := func(list corev1.ResourceList) {
			q, ok := list[name]
			s.value, complete = s.value+q.MilliValue(), complete && ok
		}
		if container == "" {
			for _, list := range u.Containers {
				add(list)
			}
		} else {
			list, ok := u.Containers[container]
			if !ok {
				return nil, fmt.Errorf("failed to get container metrics: container %s not present in metrics for pod %s/%s", container, pod.Namespace, pod.Name)
			}
			add(list)
		}
		if complete {
			all[pod.Name] = s
		}
	}
	return all, nil
}

// requests are what pods ask for of a resource, in thousandths.
func (v *scaleView) requests(name corev1.ResourceName, container string) (map[string]int64, error) {
	all := map[string]int64{}
	for _, pod := range v.pods {
		if container == "" && pod.Spec.Resources != nil {
			if q, ok := pod.Spec.Resources.Requests[name]; ok {
				all[pod.Name] = q.MilliValue()
				continue
			}
		}
		all[pod.Name] = 0
		for c := range lastingContainers(pod) {
			if container != "" && c.Name != container {
				continue
			}
			q, ok := c.Resources.Requests[name]
			if !ok {
				return nil, fmt.Errorf("missing request for %s in container %s of Pod %s", name, c.Name, pod.Name)
			}
			all[pod.Name] += q.MilliValue()
		}
	}
	return all, nil
}

// lastingContainers are those that run as long as the pod does.
func lastingContainers(pod *corev1.Pod) func(yield func(*corev1.Container) bool) {
	return func(yield func(*corev1.Container) bool) {
		for i := range pod.Spec.Containers {
			if !yield(&pod.Spec.Containers[i]) {
				return
			}
		}
		for i := range pod.Spec.InitContainers {
			c := &pod.Spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && !yield(c) {
				return
			}
		}
	}
}

// podGroups are the pods as a metric sees them. Those that end are in none.
type podGroups struct {
	ready            int
	unready, missing []string
}

// group sorts the pods, and drops the samples of those that do not count.
func (v *scaleView) group(name corev1.ResourceName, samples map[string]sample) (g podGroups) {
	for _, pod := range v.pods {
		s, measured := samples[pod.Name]
		switch {
		case pod.DeletionTimestamp != nil || pod.Status.Phase == corev1.PodFailed:
			delete(samples, pod.Name)
		case pod.Status.Phase == corev1.PodPending:
			g.unready = append(g.unready, pod.Name)
			delete(samples, pod.Name)
		case !measured:
			g.missing = append(g.missing, pod.Name)
		case name == corev1.ResourceCPU && v.starts(pod, s):
			g.unready = append(g.unready, pod.Name)
			delete(samples, pod.Name)
		default:
			g.ready++
		}
	}
	return g
}

// starts says that what a pod's processors do is its start, and says nothing of
// the work that it is there for.
func (v *scaleView) starts(pod *corev1.Pod, s sample) bool {
	ready := podCondition(pod, corev1.PodReady)
	if ready == nil || pod.Status.StartTime == nil {
		return true
	}
	start, since, unready := pod.Status.StartTime.Time, ready.LastTransitionTime.Time, ready.Status == corev1.ConditionFalse
	if start.Add(cpuInitialization).After(v.now) {
		return unready || s.at.Before(since.Add(s.window))
	}
	return unready && start.Add(initialReadiness).After(since)
}

// gauge compares what pods use with what they are meant to.
type gauge struct {
	// ratio of the two, and both forms of what they use on the average.
	ratio func(map[string]int64) (ratio float64, percent *int32, average int64, err error)
	// full is what a pod of which nothing is known is taken to use when the others
	// use too little.
	full func(pod string) int64
}

// utilization is a gauge of percentages of what pods request.
func utilization(target int32, requests map[string]int64) gauge {
	return gauge{
		ratio: func(used map[string]int64) (float64, *int32, int64, error) {
			var sum, of, n int64
			for pod, value := range used {
				if request, ok := requests[pod]; ok {
					sum, of, n = sum+value, of+request, n+1
				}
			}
			if of == 0 {
				return 0, nil, 0, errors.New("no metrics returned matched known pods")
			}
			percent := int32(min(sum*100/of, math.MaxInt32))
			return float64(percent) / float64(target), &percent, sum / n, nil
		},
		full: func(pod string) int64 { return requests[pod] * int64(max(100, target)) / 100 },
	}
}

// averageValue is a gauge of amounts, in thousandths.
func averageValue(target int64) gauge {
	return gauge{
		ratio: func(used map[string]int64) (float64, *int32, int64, error) {
			var sum int64
			for _, value := range used {
				sum += value
			}
			average := sum / int64(len(used))
			return float64(average) / float64(target), nil, average, nil
		},
		full: func(string) int64 { return target },
	}
}

// replicasFor is how many replicas a metric asks for, and what it was. Pods of
// which nothing is known, or which have only started, are taken to use what makes
// the change smaller; they never turn it round.
func (v *scaleView) replicasFor(name corev1.ResourceName, samples map[string]sample, g gauge) (int32, types.MetricValue, error) {
	var is types.MetricValue
	if len(v.pods) == 0 {
		return 0, is, errors.New("no pods returned by selector while calculating replica count")
	}
	groups := v.group(name, samples)
	if len(samples) == 0 {
		return 0, is, errors.New("did not receive metrics for targeted pods (pods might be unready)")
	}
	used := make(map[string]int64, len(samples))
	for pod, s := range samples {
		used[pod] = s.value
	}
	ratio, percent, average, err := g.ratio(used)
	if err != nil {
		return 0, is, err
	}
	is = types.MetricValue{AverageUtilization: percent, AverageValue: resource.NewMilliQuantity(average, resource.DecimalSI)}
	more := ratio > 1
	if (!more || len(groups.unready) == 0) && len(groups.missing) == 0 {
		if v.tolerances.bear(ratio) {
			return v.replicas, is, nil
		}
		return ceiling(ratio * float64(groups.ready)), is, nil
	}
	for _, pod := range groups.missing {
		switch {
		case ratio < 1:
			used[pod] = g.full(pod)
		case more:
			used[pod] = 0
		}
	}
	if more {
		for _, pod := range groups.unready {
			used[pod] = 0
		}
	}
	careful, _, _, err := g.ratio(used)
	if err != nil {
		return 0, is, err
	}
	want := ceiling(careful * float64(len(used)))
	if v.tolerances.bear(careful) || (ratio < 1) != (careful < 1) || careful < 1 && want > v.replicas || careful > 1 && want < v.replicas {
		return v.replicas, is, nil
	}
	return want, is, nil
}

func ceiling(n float64) int32 { return int32(min(math.Ceil(n), math.MaxInt32)) }

// usage is what a metric of a resource asks for. named is how the metric is
// called, of whichever sort.
func (v *scaleView) usage(name corev1.ResourceName, container string, target *types.MetricTarget, named, sort string) (n int32, what string, is types.MetricValue, err error) {
	samples, err := v.samples(name, container)
	if err != nil {
		err = fmt.Errorf("unable to get metrics for resource %s: %w", name, err)
	}
	switch {
	case target.AverageValue != nil:
		if err == nil {
			n, is, err = v.replicasFor(name, samples, averageValue(target.AverageValue.MilliValue()))
		}
		if err != nil {
			err = fmt.Errorf("failed to get %s usage: %w", name, err)
		}
		return n, fmt.Sprintf("%s resource", name), is, err
	case target.AverageUtilization == nil:
		return 0, "", is, errors.New("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set")
	}
	var requests map[string]int64
	if err == nil {
		requests, err = v.requests(name, container)
	}
	if err == nil {
		n, is, err = v.replicasFor(name, samples, utilization(*target.AverageUtilization, requests))
	}
	if err != nil {
		err = fmt.Errorf("failed to get %s utilization: %w", name, err)
	}
	return n, fmt.Sprintf("%s %s utilization (percentage of request)", name, sort), is, err
}

// metric is what one metric asks for; what names it. Those that an adapter would
// have fail, as adapters says.
func (v *scaleView) metric(m *types.MetricSpec, namespace string, adapters map[string]error) (n int32, what string, status types.MetricStatus, failure *scaleFailure) {
	status.Type = m.Type
	fail := func(reason string, err error, format string, args ...any) *scaleFailure {
		return &scaleFailure{reason, err, fmt.Errorf(format+": %w", append(args, err)...)}
	}
	var is types.MetricValue
	var err error
	switch {
	case m.Type == types.ResourceMetric && m.Resource != nil:
		if n, what, is, err = v.usage(m.Resource.Name, "", &m.Resource.Target, "resource", "resource"); err != nil {
			return 0, "", types.MetricStatus{}, fail("FailedGetResourceMetric", err, "failed to get %s resource metric value", m.Resource.Name)
		}
		status.Resource = &types.ResourceMetricStatus{Name: m.Resource.Name, Current: is}
	case m.Type == types.ContainerResourceMetric && m.ContainerResource != nil:
		c := m.ContainerResource
		if n, what, is, err = v.usage(c.Name, c.Container, &c.Target, "container resource", "container resource"); err != nil {
			return 0, "", types.MetricStatus{}, fail("FailedGetContainerResourceMetric", err, "failed to get %s container metric value", c.Name)
		}
		status.ContainerResource = &types.ContainerResourceMetricStatus{Name: c.Name, Container: c.Container, Current: is}
	case m.Type == types.PodsMetric && m.Pods != nil:
		err := fmt.Errorf("unable to get metric %s: unable to fetch metrics from custom metrics API: %w", m.Pods.Metric.Name, adapters[customMetrics])
		return 0, "", types.MetricStatus{}, fail("FailedGetPodsMetric", err, "failed to get pods metric value")
	case m.Type == types.ObjectMetric && m.Object != nil:
		o := m.Object
		err := fmt.Errorf("unable to get metric %s: %s on %s %s/unable to fetch metrics from custom metrics API: %w", o.Metric.Name, o.DescribedObject.Kind, namespace, o.DescribedObject.Name, adapters[customMetrics])
		return 0, "", types.MetricStatus{}, fail("FailedGetObjectMetric", err, "failed to get object metric value")
	case m.Type == types.ExternalMetric && m.External != nil:
		x := m.External
		why := adapters[externalMetrics]
		if why == nil {
			why = fmt.Errorf("the server could not find the requested resource (get %s.%s)", x.Metric.Name, externalMetrics)
		}
		err := fmt.Errorf("unable to get external metric %s/%s/%+v: unable to fetch metrics from external metrics API: %w", namespace, x.Metric.Name, x.Metric.Selector, why)
		return 0, "", types.MetricStatus{}, fail("FailedGetExternalMetric", err, "failed to get %s external metric value", x.Metric.Name)
	default:
		err := fmt.Errorf("unknown metric source type %q", m.Type)
		return 0, "", types.MetricStatus{}, &scaleFailure{"InvalidMetricSourceType", err, err}
	}
	return n, what, status, nil
}

// recommendation is what all metrics together ask for.
type recommendation struct {
	replicas int32
	by       string // the metric that asks for most
	statuses []types.MetricStatus
	failures []*scaleFailure
	// ok says that replicas are to be trusted: where a metric fails, the others
	// may ask for more, but not for less.
	ok bool
}

func (r *recommendation) err(of int) error {
	if len(r.failures) == 0 {
		return nil
	}
	return fmt.Errorf("invalid metrics (%d invalid out of %d), first error is: %w", len(r.failures), of, r.failures[0].whole)
}

func (v *scaleView) recommend(metrics []types.MetricSpec, namespace string, adapters map[string]error) (r recommendation) {
	for i := range metrics {
		n, what, status, failure := v.metric(&metrics[i], namespace, adapters)
		r.statuses = append(r.statuses, status)
		if failure != nil {
			r.failures = append(r.failures, failure)
		} else if r.by == "" || n > r.replicas {
			r.replicas, r.by = n, what
		}
	}
	r.ok = len(r.failures) < len(metrics) && (len(r.failures) == 0 || r.replicas >= v.replicas)
	return r
}

// finding is a state of a condition.
type finding struct {
	is              bool
	reason, message string
}

// stabilize holds a recommendation back while there were others in the window of
// its direction: up to the least, down to the greatest.
func stabilize(current, want int32, past []scaleStep, b *types.AutoscalerBehavior, now time.Time) (int32, finding) {
	least, most := want, want
	upSince := now.Add(-time.Duration(stabilization(b.ScaleUp, 0)) * time.Second)
	downSince := now.Add(-time.Duration(stabilization(b.ScaleDown, kinds.DefaultScaleDownWindow)) * time.Second)
	for _, r := range past {
		if r.at.After(upSince) {
			least = min(least, r.n)
		}
		if r.at.After(downSince) {
			most = max(most, r.n)
		}
	}
	n := min(max(current, least), most)
	switch {
	case n == want:
		return n, finding{true, "ReadyForNewScale", "recommended size matches current size"}
	case want >= current:
		return n, finding{true, "ScaleUpStabilized", "recent recommendations were lower than current one, applying the lowest recent recommendation"}
	}
	return n, finding{true, "ScaleDownStabilized", "recent recommendations were higher than current one, applying the highest recent recommendation"}
}

// limit keeps a change within the bounds, and no faster than the policies of its
// direction allow.
func limit(current, want, least, most int32, past *scalePast, b *types.AutoscalerBehavior, now time.Time) (int32, finding) {
	switch {
	case want > current:
		allowed, v := most, finding{true, "TooManyReplicas", "the desired replica count is more than the maximum replica count"}
		if fastest := max(current, fastest(current, b.ScaleUp, past, now, true)); fastest < most {
			allowed, v = fastest, finding{true, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"}
		}
		if want > allowed {
			return allowed, v
		}
	case want < current:
		allowed, v := least, finding{true, "TooFewReplicas", "the desired replica count is less than the minimum replica count"}
		if fastest := min(current, fastest(current, b.ScaleDown, past, now, false)); fastest > least {
			allowed, v = fastest, finding{true, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"}
		}
		if want < allowed {
			return allowed, v
		}
	}
	return want, finding{false, "DesiredWithinRange", "the desired count is within the acceptable range"}
}

// fastest is how far the policies of a direction allow to go now: each counts
// from the replicas that there were at the beginning of its period.
func fastest(current int32, r *types.ScalingRules, past *scalePast, now time.Time, up bool) int32 {
	choice := types.SelectMost
	if r.SelectPolicy != nil {
		choice = *r.SelectPolicy
	}
	if choice == types.SelectNone || len(r.Policies) == 0 {
		return current
	}
	var result int32
	for i, policy := range r.Policies {
		since := now.Add(-time.Duration(policy.PeriodSeconds) * time.Second)
		began := int64(current) - total(past.ups, since) + total(past.downs, since)
		value := int64(policy.Value)
		var to int64
		switch {
		case policy.Type == types.PolicyPods && up:
			to = began + value
		case policy.Type == types.PolicyPods:
			to = began - value
		case up: // rounded up: it might not change anything ever
			to = (began*(100+value) + 99) / 100
		default:
			to = began * (100 - value) / 100
		}
		n := int32(max(min(to, math.MaxInt32), math.MinInt32))
		// The most change is the highest number upwards, the lowest downwards.
		if higher := up == (choice == types.SelectMost); i == 0 || higher && n > result || !higher && n < result {
			result = n
		}
	}
	return result
}

func total(steps []scaleStep, since time.Time) (sum int64) {
	for _, s := range steps {
		if s.at.After(since) {
			sum += int64(s.n)
		}
	}
	return sum
}
