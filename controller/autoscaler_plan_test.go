package controller

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
	"conclave/api/kinds"
	"conclave/api/types"
)

var scaleNow = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

// scaledPod has run ready for an hour, requests 1000m, and is one of a view's.
func scaledPod(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	start := metav1.NewTime(scaleNow.Add(-time.Hour))
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("100Mi")},
		}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &start, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: start}}},
	}
	for _, f := range edit {
		f(p)
	}
	return p
}

func pending(p *corev1.Pod)  { p.Status.Phase = corev1.PodPending }
func failed(p *corev1.Pod)   { p.Status.Phase = corev1.PodFailed }
func deleted(p *corev1.Pod)  { p.DeletionTimestamp = &metav1.Time{Time: scaleNow} }
func noStatus(p *corev1.Pod) { p.Status.Conditions = nil }

// started is how long ago, and when after that it became ready or unready.
func started(ago, turned time.Duration, ready bool) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		start := metav1.NewTime(scaleNow.Add(-ago))
		p.Status.StartTime = &start
		c := &p.Status.Conditions[0]
		c.LastTransitionTime = metav1.NewTime(start.Add(turned))
		if !ready {
			c.Status = corev1.ConditionFalse
		}
	}
}

// viewOf has pods of which each uses that many thousandths of a processor;
// negative: nobody knows.
func viewOf(use []int64, edits ...func(*corev1.Pod)) *scaleView {
	v := &scaleView{now: scaleNow, used: map[string]api.PodUsage{}, tolerances: tolerances{0.1, 0.1}, replicas: int32(len(use))}
	for i, n := range use {
		var e []func(*corev1.Pod)
		if i < len(edits) && edits[i] != nil {
			e = append(e, edits[i])
		}
		p := scaledPod(fmt.Sprintf("p%d", i), e...)
		v.pods = append(v.pods, p)
		if n >= 0 {
			v.used[p.Name] = api.PodUsage{Time: scaleNow, Window: 15 * time.Second, Containers: map[string]corev1.ResourceList{
				"c": {"cpu": *resource.NewMilliQuantity(n, resource.DecimalSI), "memory": *resource.NewQuantity(n<<20, resource.BinarySI)},
			}}
		}
	}
	return v
}

func percentOf(name corev1.ResourceName, percent int32) types.MetricSpec {
	return types.MetricSpec{Type: types.ResourceMetric, Resource: &types.ResourceMetricSource{Name: name, Target: types.MetricTarget{Type: types.TargetUtilization, AverageUtilization: &percent}}}
}

func amountOf(name corev1.ResourceName, amount string) types.MetricSpec {
	q := resource.MustParse(amount)
	return types.MetricSpec{Type: types.ResourceMetric, Resource: &types.ResourceMetricSource{Name: name, Target: types.MetricTarget{Type: types.TargetAverageValue, AverageValue: &q}}}
}

// TestReplicasForMetrics is desiredReplicas = ceil(currentReplicas × current ÷
// target) and what Kubernetes documents around it.
func TestReplicasForMetrics(t *testing.T) {
	u := func(n ...int64) []int64 { return n }
	e := func(f ...func(*corev1.Pod)) []func(*corev1.Pod) { return f }
	for _, c := range []struct {
		name    string
		use     []int64
		edits   []func(*corev1.Pod)
		metrics []types.MetricSpec
		want    int32
		ok      bool
		says    string // of the first failure, or the metric that decides
	}{
		{"a ratio of 2 doubles", u(200, 200), nil, []types.MetricSpec{amountOf("cpu", "100m")}, 4, true, "cpu resource"},
		{"a ratio of one half halves", u(50, 50), nil, []types.MetricSpec{amountOf("cpu", "100m")}, 1, true, "cpu resource"},
		{"percent of requests", u(900, 900, 900), nil, []types.MetricSpec{percentOf("cpu", 60)}, 5, true, "cpu resource utilization (percentage of request)"},
		{"within the tolerance above", u(109, 109), nil, []types.MetricSpec{amountOf("cpu", "100m")}, 2, true, ""},
		{"within the tolerance below", u(91, 91), nil, []types.MetricSpec{amountOf("cpu", "100m")}, 2, true, ""},
		{"just beyond the tolerance", u(111, 111), nil, []types.MetricSpec{amountOf("cpu", "100m")}, 3, true, ""},
		{"memory", u(150, 150), nil, []types.MetricSpec{percentOf("memory", 50)}, 6, true, "memory resource utilization (percentage of request)"},
		{"the greatest of several", u(100, 100), nil, []types.MetricSpec{amountOf("cpu", "100m"), amountOf("memory", "25Mi"), percentOf("cpu", 5)}, 8, true, "memory resource"},
		{"missing on the way down use all that they request", u(100, 100, -1), nil, []types.MetricSpec{percentOf("cpu", 50)}, 3, true, ""},
		{"missing on the way down use their target", u(100, 100, 100, -1), nil, []types.MetricSpec{amountOf("cpu", "1")}, 2, true, ""},
		{"missing on the way up use nothing", u(1000, 1000, -1), nil, []types.MetricSpec{percentOf("cpu", 50)}, 4, true, ""},
		{"missing do not turn up into down", u(600, -1, -1), nil, []types.MetricSpec{percentOf("cpu", 50)}, 3, true, ""},
		{"missing do not turn down into up", u(400, -1), nil, []types.MetricSpec{percentOf("cpu", 50)}, 2, true, ""},
		{"missing with a target above all", u(1400, -1), nil, []types.MetricSpec{percentOf("cpu", 200)}, 2, true, ""},
		{"pending on the way up use nothing", u(1000, 1000, -1), e(nil, nil, pending), []types.MetricSpec{percentOf("cpu", 50)}, 4, true, ""},
		{"pending on the way down do not count", u(100, 100, -1), e(nil, nil, pending), []types.MetricSpec{percentOf("cpu", 50)}, 1, true, ""},
		{"failed and deleted are not there", u(1000, 1000, 5000, 5000), e(nil, nil, failed, deleted), []types.MetricSpec{percentOf("cpu", 50)}, 4, true, ""},
		{"an unready pod that starts", u(1000, 1000), e(nil, started(time.Minute, 10*time.Second, false)), []types.MetricSpec{percentOf("cpu", 50)}, 2, true, ""},
		{"one that was ready for less than a window", u(1000, 1000), e(nil, started(time.Minute, 50*time.Second, true)), []types.MetricSpec{percentOf("cpu", 50)}, 2, true, ""},
		{"one that was ready for longer", u(1000, 1000), e(nil, started(time.Minute, 30*time.Second, true)), []types.MetricSpec{percentOf("cpu", 50)}, 4, true, ""},
		{"one that was never ready", u(1000, 1000), e(nil, started(time.Hour, 29*time.Second, false)), []types.MetricSpec{percentOf("cpu", 50)}, 2, true, ""},
		{"one that has become unready later", u(1000, 1000), e(nil, started(time.Hour, 31*time.Second, false)), []types.MetricSpec{percentOf("cpu", 50)}, 4, true, ""},
		{"one that says nothing of being ready", u(1000, 1000), e(nil, noStatus), []types.MetricSpec{percentOf("cpu", 50)}, 2, true, ""},
		{"readiness is not asked for memory", u(100, 100), e(nil, noStatus), []types.MetricSpec{percentOf("memory", 50)}, 4, true, ""},
		{"nothing is known", u(-1, -1), nil, []types.MetricSpec{percentOf("cpu", 50)}, 0, false,
			"FailedGetResourceMetric: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"},
		{"all start", u(100, 100), e(noStatus, pending), []types.MetricSpec{percentOf("cpu", 50)}, 0, false,
			"FailedGetResourceMetric: failed to get cpu utilization: did not receive metrics for targeted pods (pods might be unready)"},
		{"no request", u(100), e(func(p *corev1.Pod) { p.Spec.Containers[0].Resources = corev1.ResourceRequirements{} }), []types.MetricSpec{percentOf("cpu", 50)}, 0, false,
			"FailedGetResourceMetric: failed to get cpu utilization: missing request for cpu in container c of Pod p0"},
		{"a request of the pod's", u(100, 100), e(func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{}
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("200m")}}
		}, func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests["cpu"] = resource.MustParse("200m")
		}), []types.MetricSpec{percentOf("cpu", 25)}, 4, true, ""},
		{"one fails, the other wants more", u(1000, 1000), nil, []types.MetricSpec{podsMetric(), percentOf("cpu", 50)}, 4, true, "FailedGetPodsMetric: unable to get metric hits: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"},
		{"one fails, the other wants less", u(100, 100), nil, []types.MetricSpec{podsMetric(), percentOf("cpu", 50)}, 1, false, "FailedGetPodsMetric: unable…"},
		{"pods", u(100), nil, []types.MetricSpec{podsMetric()}, 0, false, "FailedGetPodsMetric: unable…"},
		{"object", u(100), nil, []types.MetricSpec{{Type: types.ObjectMetric, Object: &types.ObjectMetricSource{DescribedObject: types.ObjectName{Kind: "Service", Name: "web"}, Metric: types.MetricName{Name: "hits"}}}}, 0, false,
			"FailedGetObjectMetric: unable to get metric hits: Service on default web/unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"},
		{"external", u(100), nil, []types.MetricSpec{{Type: types.ExternalMetric, External: &types.NamedMetricSource{Metric: types.MetricName{Name: "queue"}}}}, 0, false,
			"FailedGetExternalMetric: unable to get external metric default/queue/nil: unable to fetch metrics from external metrics API: the server could not find the requested resource (get queue.external.metrics.k8s.io)"},
		{"a container's", u(800, 800), nil, []types.MetricSpec{containerMetric("c", 40)}, 4, true, "cpu container resource utilization (percentage of request)"},
		{"a container that is not there", u(800), nil, []types.MetricSpec{containerMetric("d", 40)}, 0, false,
			"FailedGetContainerResourceMetric: failed to get cpu utilization: unable to get metrics for resource cpu: failed to get container metrics: container d not present in metrics for pod default/p0"},
		{"no pods", nil, nil, []types.MetricSpec{percentOf("cpu", 50)}, 0, false, "FailedGetResourceMetric: failed to get cpu utilization: unable to get metrics for resource cpu: no metrics returned from resource metrics API"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := viewOf(c.use, c.edits...)
			r := v.recommend(c.metrics, "default", map[string]error{customMetrics: fmt.Errorf("no custom metrics API (custom.metrics.k8s.io) registered")})
			said := r.by
			if len(r.failures) > 0 {
				said = r.failures[0].reason + ": " + r.failures[0].what.Error()
			}
			prefix, cut := strings.CutSuffix(c.says, "…")
			if r.ok != c.ok || r.replicas != c.want || c.says != "" && said != c.says && !(cut && strings.HasPrefix(said, prefix)) {
				t.Errorf("%d replicas, %t: %s; want %d, %t: %s", r.replicas, r.ok, said, c.want, c.ok, c.says)
			}
			if len(r.statuses) != len(c.metrics) {
				t.Errorf("%d statuses of %d metrics", len(r.statuses), len(c.metrics))
			}
		})
	}
}

func podsMetric() types.MetricSpec {
	q := resource.MustParse("10")
	return types.MetricSpec{Type: types.PodsMetric, Pods: &types.NamedMetricSource{Metric: types.MetricName{Name: "hits"}, Target: types.MetricTarget{Type: types.TargetAverageValue, AverageValue: &q}}}
}

func containerMetric(container string, percent int32) types.MetricSpec {
	return types.MetricSpec{Type: types.ContainerResourceMetric, ContainerResource: &types.ContainerResourceMetricSource{
		Name: "cpu", Container: container, Target: types.MetricTarget{Type: types.TargetUtilization, AverageUtilization: &percent},
	}}
}

func TestTolerances(t *testing.T) {
	q := func(s string) *resource.Quantity { v := resource.MustParse(s); return &v }
	b := kinds.DefaultBehavior()
	b.ScaleUp.Tolerance, b.ScaleDown.Tolerance = q("10m"), q("0.5")
	v := viewOf([]int64{102, 102})
	v.tolerances = tolerancesOf(b)
	if r := v.recommend([]types.MetricSpec{amountOf("cpu", "100m")}, "default", nil); r.replicas != 3 {
		t.Errorf("up by two hundredths with a tolerance of one: %d", r.replicas)
	}
	v = viewOf([]int64{51, 51})
	v.tolerances = tolerancesOf(b)
	if r := v.recommend([]types.MetricSpec{amountOf("cpu", "100m")}, "default", nil); r.replicas != 2 {
		t.Errorf("down by one half with a tolerance of one half: %d", r.replicas)
	}
}

// TestStatusOfMetrics is what kubectl shows.
func TestStatusOfMetrics(t *testing.T) {
	r := viewOf([]int64{300, 101}).recommend([]types.MetricSpec{percentOf("cpu", 50), amountOf("memory", "10Mi"), podsMetric()}, "default", map[string]error{})
	cpu, memory := r.statuses[0].Resource, r.statuses[1].Resource
	if *cpu.Current.AverageUtilization != 20 || cpu.Current.AverageValue.String() != "200m" {
		t.Errorf("cpu is %d%%, %s", *cpu.Current.AverageUtilization, cpu.Current.AverageValue)
	}
	if memory.Current.AverageUtilization != nil || memory.Current.AverageValue.Value() != (401<<20)/2 {
		t.Errorf("memory is %s", memory.Current.AverageValue)
	}
	if r.statuses[2].Type != "" {
		t.Errorf("a metric that failed has the status %+v", r.statuses[2])
	}
}

// TestSteadied is of what is written again.
func TestSteadied(t *testing.T) {
	status := func(percent int32, amount string) []types.MetricStatus {
		q := resource.MustParse(amount)
		s := []types.MetricStatus{{Type: types.ResourceMetric, Resource: &types.ResourceMetricStatus{Name: "cpu", Current: types.MetricValue{AverageValue: &q}}}}
		if percent >= 0 {
			s[0].Resource.Current.AverageUtilization = &percent
		}
		return s
	}
	for _, c := range []struct {
		name     string
		spec     types.MetricSpec
		now, old []types.MetricStatus
		want     string
	}{
		{"the same percentage", percentOf("cpu", 50), status(3, "31m"), status(3, "39m"), "39m"},
		{"another percentage", percentOf("cpu", 50), status(4, "40m"), status(3, "39m"), "40m"},
		{"less than a hundredth of the target", amountOf("cpu", "1"), status(-1, "510m"), status(-1, "500m"), "500m"},
		{"more than that", amountOf("cpu", "1"), status(-1, "511m"), status(-1, "500m"), "511m"},
		{"less by more than that", amountOf("cpu", "1"), status(-1, "489m"), status(-1, "500m"), "489m"},
		{"the first", percentOf("cpu", 50), status(3, "31m"), nil, "31m"},
		{"after a failure", percentOf("cpu", 50), status(3, "31m"), []types.MetricStatus{{}}, "31m"},
	} {
		if got := steadied([]types.MetricSpec{c.spec}, c.now, c.old)[0].Resource.Current.AverageValue.String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func behaviorOf(edit func(*types.AutoscalerBehavior)) *types.AutoscalerBehavior {
	b := kinds.DefaultBehavior()
	if edit != nil {
		edit(b)
	}
	return b
}

func TestStabilize(t *testing.T) {
	ago := func(seconds int, n int32) scaleStep {
		return scaleStep{scaleNow.Add(-time.Duration(seconds) * time.Second), n}
	}
	window := func(up, down int32) *types.AutoscalerBehavior {
		return behaviorOf(func(b *types.AutoscalerBehavior) {
			b.ScaleUp.StabilizationWindowSeconds, b.ScaleDown.StabilizationWindowSeconds = &up, &down
		})
	}
	for _, c := range []struct {
		name          string
		current, want int32
		past          []scaleStep
		b             *types.AutoscalerBehavior
		n             int32
		reason        string
	}{
		{"up at once", 2, 8, []scaleStep{ago(10, 2)}, behaviorOf(nil), 8, "ReadyForNewScale"},
		{"down waits five minutes", 8, 2, []scaleStep{ago(299, 8)}, behaviorOf(nil), 8, "ScaleDownStabilized"},
		{"and no longer", 8, 2, []scaleStep{ago(300, 8)}, behaviorOf(nil), 2, "ReadyForNewScale"},
		{"down to the highest of the window", 8, 2, []scaleStep{ago(200, 5), ago(100, 3)}, behaviorOf(nil), 5, "ScaleDownStabilized"},
		{"up to the lowest of the window", 2, 9, []scaleStep{ago(50, 4), ago(20, 7)}, window(60, 300), 4, "ScaleUpStabilized"},
		{"never further than now", 6, 9, []scaleStep{ago(50, 4)}, window(60, 300), 6, "ScaleUpStabilized"},
		{"without a window", 8, 2, []scaleStep{ago(0, 8), ago(1, 8)}, window(0, 0), 2, "ReadyForNewScale"},
		{"nothing to do", 3, 3, []scaleStep{ago(10, 3)}, behaviorOf(nil), 3, "ReadyForNewScale"},
	} {
		n, v := stabilize(c.current, c.want, c.past, c.b, scaleNow)
		if n != c.n || v.reason != c.reason {
			t.Errorf("%s: %d, %s; want %d, %s", c.name, n, v.reason, c.n, c.reason)
		}
	}
}

func TestLimit(t *testing.T) {
	ago := func(seconds int, n int32) scaleStep {
		return scaleStep{scaleNow.Add(-time.Duration(seconds) * time.Second), n}
	}
	policies := func(choice string, all ...types.ScalingPolicy) *types.AutoscalerBehavior {
		return behaviorOf(func(b *types.AutoscalerBehavior) {
			for _, r := range []*types.ScalingRules{b.ScaleUp, b.ScaleDown} {
				r.SelectPolicy, r.Policies = &choice, all
			}
		})
	}
	pods4, percent10 := types.ScalingPolicy{Type: types.PolicyPods, Value: 4, PeriodSeconds: 60}, types.ScalingPolicy{Type: types.PolicyPercent, Value: 10, PeriodSeconds: 60}
	for _, c := range []struct {
		name          string
		current, want int32
		past          scalePast
		b             *types.AutoscalerBehavior
		n             int32
		reason        string
	}{
		{"up by four where that is more than all", 1, 50, scalePast{}, behaviorOf(nil), 5, "ScaleUpLimit"},
		{"up by all where that is more than four", 10, 50, scalePast{}, behaviorOf(nil), 20, "ScaleUpLimit"},
		{"what was added in the period counts", 8, 50, scalePast{ups: []scaleStep{ago(10, 4)}}, behaviorOf(nil), 8, "ScaleUpLimit"},
		{"what was added before does not", 8, 50, scalePast{ups: []scaleStep{ago(15, 4)}}, behaviorOf(nil), 16, "ScaleUpLimit"},
		{"what was removed may come back", 4, 50, scalePast{downs: []scaleStep{ago(10, 16)}}, behaviorOf(nil), 40, "ScaleUpLimit"},
		{"down at once", 50, 3, scalePast{}, behaviorOf(nil), 3, "DesiredWithinRange"},
		{"no more than the most", 50, 200, scalePast{}, behaviorOf(nil), 99, "TooManyReplicas"},
		{"no less than the least", 50, 1, scalePast{}, behaviorOf(nil), 2, "TooFewReplicas"},
		{"the documented example: 10 % of 80", 80, 10, scalePast{}, policies(types.SelectMost, pods4, percent10), 72, "ScaleDownLimit"},
		{"of 72, rounded to more", 72, 10, scalePast{}, policies(types.SelectMost, pods4, percent10), 64, "ScaleDownLimit"},
		{"below 40 four pods are more", 37, 10, scalePast{}, policies(types.SelectMost, pods4, percent10), 33, "ScaleDownLimit"},
		{"the least change down", 80, 10, scalePast{}, policies(types.SelectLeast, pods4, percent10), 76, "ScaleDownLimit"},
		{"the least change up", 20, 90, scalePast{}, policies(types.SelectLeast, pods4, percent10), 22, "ScaleUpLimit"},
		{"disabled down", 80, 10, scalePast{}, policies(types.SelectNone, pods4), 80, "ScaleDownLimit"},
		{"disabled up", 20, 90, scalePast{}, policies(types.SelectNone, pods4), 20, "ScaleUpLimit"},
		{"a tenth of one is one", 1, 90, scalePast{}, policies(types.SelectMost, percent10), 2, "ScaleUpLimit"},
		{"all the same", 7, 7, scalePast{}, behaviorOf(nil), 7, "DesiredWithinRange"},
	} {
		n, v := limit(c.current, c.want, 2, 99, &c.past, c.b, scaleNow)
		if n != c.n || v.reason != c.reason {
			t.Errorf("%s: %d, %s; want %d, %s", c.name, n, v.reason, c.n, c.reason)
		}
	}
}

// TestNeverFasterThanPolicies drives autoscalers with arbitrary wishes and holds
// what they do against the policies, counted anew from all that was done.
func TestNeverFasterThanPolicies(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		rules := func() *types.ScalingRules {
			window := r.Int32N(120)
			choice := []string{types.SelectMost, types.SelectMost, types.SelectLeast, types.SelectLeast, types.SelectNone}[r.IntN(5)]
			s := &types.ScalingRules{StabilizationWindowSeconds: &window, SelectPolicy: &choice}
			for range 1 + r.IntN(3) {
				s.Policies = append(s.Policies, types.ScalingPolicy{
					Type: []string{types.PolicyPods, types.PolicyPercent}[r.IntN(2)], Value: 1 + r.Int32N(120), PeriodSeconds: 15 + r.Int32N(120),
				})
			}
			return s
		}
		b := &types.AutoscalerBehavior{ScaleUp: rules(), ScaleDown: rules()}
		least := 1 + r.Int32N(10)
		most := least + r.Int32N(200)
		current := least + r.Int32N(most-least+1)
		var past scalePast
		var did []scaleStep // signed
		now := scaleNow
		for range 100 {
			now = now.Add(time.Duration(1+r.IntN(30)) * time.Second)
			past.forget(now, b)
			wish := r.Int32N(400)
			n, _ := stabilize(current, wish, past.recommended, b, now)
			past.recommended = append(past.recommended, scaleStep{now, wish})
			n, _ = limit(current, n, least, most, &past, b, now)
			if n < least || n > most {
				t.Fatalf("seed %d: %d is not within %d and %d", seed, n, least, most)
			}
			if n != current {
				checkPace(t, seed, b, current, n, did, now)
				did = append(did, scaleStep{now, n - current})
				if n > current {
					past.ups = append(past.ups, scaleStep{now, n - current})
				} else {
					past.downs = append(past.downs, scaleStep{now, current - n})
				}
				current = n
			}
		}
	}
}

func checkPace(t *testing.T, seed uint64, b *types.AutoscalerBehavior, current, n int32, did []scaleStep, now time.Time) {
	t.Helper()
	rules, sign := b.ScaleUp, 1.0
	if n < current {
		rules, sign = b.ScaleDown, -1
	}
	allowedByOne, allowedByAll := false, true
	for _, p := range rules.Policies {
		began := float64(current)
		for _, s := range did {
			if s.at.After(now.Add(-time.Duration(p.PeriodSeconds) * time.Second)) {
				began -= float64(s.n)
			}
		}
		by := float64(p.Value)
		if p.Type == types.PolicyPercent {
			by = math.Ceil(began*float64(p.Value)/100 - 1e-9)
		}
		ok := sign*(float64(n)-began) <= by
		allowedByOne, allowedByAll = allowedByOne || ok, allowedByAll && ok
	}
	switch choice := *rules.SelectPolicy; {
	case choice == types.SelectNone, choice == types.SelectMost && !allowedByOne, choice == types.SelectLeast && !allowedByAll:
		t.Fatalf("seed %d: from %d to %d, with %s of %+v", seed, current, n, choice, rules.Policies)
	}
}
