package controller

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	machinery "k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/api/custom"
	"conclave/api/types"
)

// load is what nodes would say: all pods together do so much, in thousandths of a
// processor.
type load struct {
	mu    sync.Mutex
	total int64
	away  bool
	asked int
}

func (l *load) set(total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total = total
}

func (l *load) measure(_ context.Context, all []*corev1.Pod) map[machinery.UID]api.PodUsage {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	var running []*corev1.Pod
	for _, p := range all {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			running = append(running, p)
		}
	}
	used := map[machinery.UID]api.PodUsage{}
	for _, p := range running {
		if l.away {
			continue
		}
		used[p.UID] = api.PodUsage{Time: time.Now(), Window: 15 * time.Second, Containers: map[string]corev1.ResourceList{
			"c": {"cpu": *resource.NewMilliQuantity(l.total/int64(len(running)), resource.DecimalSI)},
		}}
	}
	return used
}

func hundredth(d *appsv1.Deployment) {
	d.Spec.Template.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("100m")}
}

func autoscaler(name string, least, most, percent int32, edit ...func(*types.HorizontalPodAutoscaler)) *types.HorizontalPodAutoscaler {
	h := &types.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: types.AutoscalerSpec{
			ScaleTargetRef: types.ObjectName{APIVersion: "apps/v1", Kind: "Deployment", Name: name}, MinReplicas: &least, MaxReplicas: most,
			Metrics: []types.MetricSpec{percentOf("cpu", percent)},
		},
	}
	for _, f := range edit {
		f(h)
	}
	return h
}

// state is what an autoscaler says: its replicas, and its conditions.
func (w *world) scaling(name string) (n int32, says string) {
	w.Helper()
	h := read[*types.HorizontalPodAutoscaler](w, autoscalers, "default", name)
	var all []string
	for _, c := range h.Status.Conditions {
		all = append(all, c.Type+"="+string(c.Status)+" "+c.Reason)
		if c.ObservedGeneration == nil || c.LastTransitionTime.IsZero() {
			w.Errorf("condition %+v is not complete", c)
		}
	}
	if o := h.Status.ObservedGeneration; o == nil || *o != h.Generation {
		w.Errorf("%s has seen generation %v of %d", name, o, h.Generation)
	}
	return *read[*appsv1.Deployment](w, deployments, "default", name).Spec.Replicas, strings.Join(all, ", ")
}

func TestAutoscalerFollows(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 1, hundredth))
		w.settle(time.Minute)
		w.load.set(50)
		create(w, autoscalers, autoscaler("web", 1, 6, 50))
		w.settle(time.Second)
		if n, says := w.scaling("web"); n != 1 || says != "AbleToScale=True ReadyForNewScale, ScalingActive=True ValidMetricFound, ScalingLimited=False DesiredWithinRange" {
			t.Errorf("on target: %d, %s", n, says)
		}
		w.load.set(150) // 150 % of one request, three times the target
		w.settle(16 * time.Second)
		n, says := w.scaling("web")
		if n != 3 || says != "AbleToScale=True SucceededRescale, ScalingActive=True ValidMetricFound, ScalingLimited=False DesiredWithinRange" {
			t.Errorf("three times the load: %d, %s", n, says)
		}
		h := read[*types.HorizontalPodAutoscaler](w, autoscalers, "default", "web")
		if h.Status.LastScaleTime == nil || h.Status.DesiredReplicas != 3 || h.Status.CurrentReplicas != 1 || *h.Status.CurrentMetrics[0].Resource.Current.AverageUtilization != 150 {
			t.Errorf("status %+v", h.Status)
		}
		if got := w.events("web"); !slices.Contains(got, "SuccessfulRescale: New size: 3; reason: cpu resource utilization (percentage of request) above target") {
			t.Errorf("events %q", got)
		}
		w.load.set(10_000)
		w.settle(2 * time.Minute)
		if n, says := w.scaling("web"); n != 6 || !strings.Contains(says, "ScalingLimited=True TooManyReplicas") {
			t.Errorf("far more load: %d, %s", n, says)
		}
		w.load.set(100)
		w.settle(4 * time.Minute)
		if n, says := w.scaling("web"); n != 6 || !strings.Contains(says, "AbleToScale=True ScaleDownStabilized") {
			t.Errorf("less load since a moment: %d, %s", n, says)
		}
		w.settle(90 * time.Second)
		if n, _ := w.scaling("web"); n != 2 {
			t.Errorf("less load since five minutes: %d", n)
		}
		if got := w.events("web"); !slices.Contains(got, "SuccessfulRescale: New size: 2; reason: All metrics below target") {
			t.Errorf("events %q", got)
		}
		w.load.set(0)
		w.settle(10 * time.Minute)
		if n, says := w.scaling("web"); n != 1 || !strings.Contains(says, "ScalingLimited=True TooFewReplicas") {
			t.Errorf("no load: %d, %s", n, says)
		}
		// At rest, nothing is written; without autoscalers, nobody is asked.
		before := read[*types.HorizontalPodAutoscaler](w, autoscalers, "default", "web").ResourceVersion
		w.settle(10 * time.Minute)
		if after := read[*types.HorizontalPodAutoscaler](w, autoscalers, "default", "web").ResourceVersion; after != before {
			t.Errorf("written at rest: %s, then %s", before, after)
		}
		w.remove(autoscalers, "default", "web", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		w.load.mu.Lock()
		asked := w.load.asked
		w.load.mu.Unlock()
		w.settle(10 * time.Minute)
		if w.load.asked != asked {
			t.Errorf("nodes were asked %d times with no autoscaler there", w.load.asked-asked)
		}
	})
}

// TestAutoscalerSoon is of windows that are shorter than it takes to look again.
func TestAutoscalerSoon(t *testing.T) {
	for _, window := range []int32{0, 5, 20} {
		inWorld(t, func(w *world) {
			w.addNode("a")
			create(w, deployments, deployment("web", 3, hundredth))
			w.settle(time.Minute)
			w.load.set(150)
			create(w, autoscalers, autoscaler("web", 1, 5, 50, func(h *types.HorizontalPodAutoscaler) {
				h.Spec.Behavior = &types.AutoscalerBehavior{ScaleDown: &types.ScalingRules{StabilizationWindowSeconds: &window}}
			}))
			w.settle(time.Second)
			w.load.set(0)
			w.settle(time.Duration(window)*time.Second + 16*time.Second)
			if n, says := w.scaling("web"); n != 1 {
				t.Errorf("with a window of %d s: %d, %s", window, n, says)
			}
		})
	}
}

func TestAutoscalerBounds(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 9, hundredth))
		w.settle(10 * time.Minute)
		w.load.set(9 * 50)
		create(w, autoscalers, autoscaler("web", 2, 5, 50))
		w.settle(time.Second)
		if n, _ := w.scaling("web"); n != 5 {
			t.Errorf("above the most: %d", n)
		}
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { *d.Spec.Replicas = 1 })
		w.settle(16 * time.Second)
		if n, _ := w.scaling("web"); n < 2 {
			t.Errorf("below the least: %d", n)
		}
		for _, want := range []string{"New size: 5; reason: Current number of replicas above Spec.MaxReplicas", "New size: 2; reason: Current number of replicas below Spec.MinReplicas"} {
			if got := w.events("web"); !slices.Contains(got, "SuccessfulRescale: "+want) {
				t.Errorf("no event %q: %q", want, got)
			}
		}
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { *d.Spec.Replicas = 0 })
		w.settle(16 * time.Second)
		if n, says := w.scaling("web"); n != 0 || !strings.Contains(says, "ScalingActive=False ScalingDisabled") {
			t.Errorf("scaled to nothing by hand: %d, %s", n, says)
		}
		// What is said anew is looked at at once.
		change(w, deployments, "default", "web", func(d *appsv1.Deployment) { *d.Spec.Replicas = 3 })
		change(w, autoscalers, "default", "web", func(h *types.HorizontalPodAutoscaler) { h.Spec.MaxReplicas = 2 })
		w.settle(time.Second)
		if n, _ := w.scaling("web"); n != 2 {
			t.Errorf("a new bound: %d", n)
		}
	})
}

// TestAutoscalerTargets scales all sorts of things that have a scale.
func TestAutoscalerTargets(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		requests := func(name string) corev1.PodTemplateSpec {
			t := template(name, "image:1")
			t.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("100m")}
			return t
		}
		one, meta := new(int32(1)), func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "default", Name: name} }
		selector := func(name string) *metav1.LabelSelector {
			return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
		}
		create(w, replicaSets, &appsv1.ReplicaSet{ObjectMeta: meta("rs"), Spec: appsv1.ReplicaSetSpec{Replicas: one, Selector: selector("rs"), Template: requests("rs")}})
		create(w, statefulSets, &appsv1.StatefulSet{ObjectMeta: meta("sts"), Spec: appsv1.StatefulSetSpec{Replicas: one, Selector: selector("sts"), Template: requests("sts")}})
		rc := requests("rc")
		create(w, replicationControllers, &corev1.ReplicationController{ObjectMeta: meta("rc"), Spec: corev1.ReplicationControllerSpec{Replicas: one, Selector: map[string]string{"app": "rc"}, Template: &rc}})
		create(w, definitions, mice(func(d *custom.Definition) {
			path := ".status.selector"
			d.Spec.Versions[0].Subresources = &apiextensionsv1.CustomResourceSubresources{
				Scale: &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".spec.replicas", StatusReplicasPath: ".status.replicas", LabelSelectorPath: &path},
			}
		}))
		w.settle(time.Minute)
		m := mouse("m")
		m.Object["spec"] = map[string]any{"replicas": int64(1)}
		m.Object["status"] = map[string]any{"replicas": int64(1), "selector": "app=m"}
		create[api.Object](w, miceResource, m)
		pod := requests("m")
		create(w, pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "m-1", Labels: pod.Labels}, Spec: pod.Spec})
		create[api.Object](w, miceResource, func() api.Object {
			m := mouse("bare") // says nothing of its pods
			m.Object["spec"] = map[string]any{"replicas": int64(1)}
			return m
		}())
		w.settle(10 * time.Minute)
		w.load.set(200)
		for name, ref := range map[string]types.ObjectName{
			"rs": {APIVersion: "apps/v1", Kind: "ReplicaSet"}, "sts": {APIVersion: "apps/v1", Kind: "StatefulSet"}, "rc": {APIVersion: "v1", Kind: "ReplicationController"},
			"m": {APIVersion: "example.com/v1", Kind: "Mouse"}, "bare": {APIVersion: "example.com/v1", Kind: "Mouse"},
		} {
			ref.Name = name
			create(w, autoscalers, autoscaler(name, 1, 4, 50, func(h *types.HorizontalPodAutoscaler) { h.Spec.ScaleTargetRef = ref }))
		}
		w.settle(time.Minute)
		if n := *read[*appsv1.ReplicaSet](w, replicaSets, "default", "rs").Spec.Replicas; n != 4 {
			t.Errorf("a ReplicaSet: %d", n)
		}
		if n := *read[*appsv1.StatefulSet](w, statefulSets, "default", "sts").Spec.Replicas; n != 4 {
			t.Errorf("a StatefulSet: %d", n)
		}
		if n := *read[*corev1.ReplicationController](w, replicationControllers, "default", "rc").Spec.Replicas; n != 4 {
			t.Errorf("a ReplicationController: %d", n)
		}
		if n, _, _ := unstructured.NestedInt64(read[*unstructured.Unstructured](w, miceResource, "default", "m").Object, "spec", "replicas"); n != 4 {
			t.Errorf("a custom resource: %d", n)
		}
		h := read[*types.HorizontalPodAutoscaler](w, autoscalers, "default", "bare")
		if c := h.Status.Conditions; len(c) != 2 || c[1].Reason != "InvalidSelector" || c[1].Message != "the HPA target's scale is missing a selector" {
			t.Errorf("without a selector: %+v", c)
		}
		if got := w.events("bare"); !slices.Contains(got, "SelectorRequired: selector is required") {
			t.Errorf("events %q", got)
		}
	})
}

func TestAutoscalerCannot(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 2, hundredth))
		create(w, deployments, deployment("twin", 2, hundredth, func(d *appsv1.Deployment) {
			d.Spec.Template.Labels["app2"] = "twin"
		}))
		w.settle(10 * time.Minute)
		w.load.set(100)
		to := func(version, kind, name string) func(*types.HorizontalPodAutoscaler) {
			return func(h *types.HorizontalPodAutoscaler) {
				h.Spec.ScaleTargetRef = types.ObjectName{APIVersion: version, Kind: kind, Name: name}
			}
		}
		create(w, autoscalers, autoscaler("nobody", 1, 5, 50, to("apps/v1", "Deployment", "nobody")))
		create(w, autoscalers, autoscaler("unknown", 1, 5, 50, to("example.com/v1", "Thing", "x")))
		create(w, autoscalers, autoscaler("daemons", 1, 5, 50, to("apps/v1", "DaemonSet", "x")))
		create(w, autoscalers, autoscaler("custom", 1, 5, 50, to("apps/v1", "Deployment", "web"), func(h *types.HorizontalPodAutoscaler) { h.Spec.Metrics = []types.MetricSpec{podsMetric()} }))
		w.settle(time.Minute)
		says := func(name string) (active, able string) {
			for _, c := range read[*types.HorizontalPodAutoscaler](w, autoscalers, "default", name).Status.Conditions {
				switch text := string(c.Status) + " " + c.Reason + ": " + c.Message; c.Type {
				case types.ScalingActive:
					active = text
				case types.AbleToScale:
					able = text
				}
			}
			return active, able
		}
		for name, want := range map[string]string{
			"nobody":  `False FailedGetScale: the HPA controller was unable to get the target's current scale: deployments.apps "nobody" not found`,
			"unknown": `False FailedGetScale: the HPA controller was unable to get the target's current scale: no matches for kind "Thing" in group "example.com"`,
			"daemons": `False FailedGetScale: the HPA controller was unable to get the target's current scale: daemonsets/scale.apps "x" not found`,
		} {
			if _, able := says(name); able != want {
				t.Errorf("%s: %s", name, able)
			}
		}
		const missing = "unable to get metric hits: unable to fetch metrics from custom metrics API: no custom metrics API (custom.metrics.k8s.io) registered"
		if active, _ := says("custom"); active != "False FailedGetPodsMetric: the HPA was unable to compute the replica count: "+missing {
			t.Errorf("custom: %s", active)
		}
		got := w.events("custom")
		for _, want := range []string{"FailedGetPodsMetric: " + missing, "FailedComputeMetricsReplicas: invalid metrics (1 invalid out of 1), first error is: failed to get pods metric value: " + missing} {
			if !slices.Contains(got, want) {
				t.Errorf("no event %q: %q", want, got)
			}
		}
		for _, e := range all[*corev1.Event](w, events, "default") {
			if e.InvolvedObject.Name == "custom" && e.Count != 1 {
				t.Errorf("said %d times within a minute: %s", e.Count, e.Message)
			}
		}
		// Two autoscalers of the same pods stop each other, and go on when one has gone.
		create(w, autoscalers, autoscaler("web", 1, 5, 50))
		w.settle(time.Minute)
		const both = "False AmbiguousSelector: pods by selector app=web are controlled by multiple HPAs: [default/custom default/web]"
		if active, _ := says("web"); active != both {
			t.Errorf("two: %s", active)
		}
		w.remove(autoscalers, "default", "custom", metav1.DeletePropagationBackground)
		w.settle(16 * time.Second)
		if active, _ := says("web"); !strings.HasPrefix(active, "True ValidMetricFound") {
			t.Errorf("one of two: %s", active)
		}
		// Nodes that do not answer change nothing.
		w.load.mu.Lock()
		w.load.away = true
		w.load.mu.Unlock()
		w.settle(10 * time.Minute)
		if n, s := w.scaling("web"); n != 2 || !strings.Contains(s, "ScalingActive=False FailedGetResourceMetric") {
			t.Errorf("nodes are away: %d, %s", n, s)
		}
	})
}
