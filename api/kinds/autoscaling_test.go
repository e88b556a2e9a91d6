package kinds

import (
	"reflect"
	"strings"
	"testing"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/randfill"
	"sigs.k8s.io/yaml"

	"conclave/api/types"
)

const autoscalersName = "horizontalpodautoscalers.autoscaling"

func TestValidateAutoscaler(t *testing.T) {
	const meta, ref = "metadata: {name: x, namespace: default}\n", "scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}"
	k := table[autoscalersName]
	for name, c := range map[string]struct {
		spec string
		want []string
	}{
		"good": {ref + ", maxReplicas: 3, minReplicas: 3", nil},
		"all sorts of metrics": {ref + `, maxReplicas: 3, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}},
			{type: ContainerResource, containerResource: {name: memory, container: c, target: {type: AverageValue, averageValue: 50Mi}}},
			{type: Pods, pods: {metric: {name: hits, selector: {matchLabels: {a: b}}}, target: {type: AverageValue, averageValue: 1k}}},
			{type: Object, object: {metric: {name: hits}, describedObject: {kind: Service, name: s}, target: {type: Value, value: 2k}}},
			{type: External, external: {metric: {name: queue}, target: {type: Value, value: 30}}}]`, nil},
		"nothing": {"{}", []string{"spec.maxReplicas: Invalid value: 0: must be greater than 0", "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
			"spec.scaleTargetRef.kind: Required value", "spec.scaleTargetRef.name: Required value"}},
		"numbers": {ref + ", minReplicas: 0, maxReplicas: -1", []string{"spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
			"spec.maxReplicas: Invalid value: -1: must be greater than 0", "spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`"}},
		"names": {"scaleTargetRef: {kind: a/b, name: '..'}, maxReplicas: 1", []string{
			`spec.scaleTargetRef.kind: Invalid value: "a/b": may not contain '/'`, `spec.scaleTargetRef.name: Invalid value: "..": may not be '..'`}},
		"behavior": {ref + `, maxReplicas: 3, behavior: {scaleUp: {stabilizationWindowSeconds: 3601, selectPolicy: Odd, tolerance: "-0.1", policies: []},
			scaleDown: {stabilizationWindowSeconds: -1, policies: [{type: Odd, value: 0, periodSeconds: 0}, {type: Pods, value: 1, periodSeconds: 1801}]}}`, []string{
			"spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
			`spec.behavior.scaleUp.selectPolicy: Unsupported value: "Odd": supported values: "Disabled", "Max", "Min"`,
			`spec.behavior.scaleUp.tolerance: Invalid value: "-100m": must be greater than or equal to 0`,
			"spec.behavior.scaleUp.policies: Required value: must specify at least one Policy",
			"spec.behavior.scaleDown.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero",
			`spec.behavior.scaleDown.policies[0].type: Unsupported value: "Odd": supported values: "Percent", "Pods"`,
			"spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
			"spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 0: must be greater than zero",
			"spec.behavior.scaleDown.policies[1].periodSeconds: Invalid value: 1801: must be less than or equal to 1800"}},
		"metrics": {ref + `, maxReplicas: 3, metrics: [{}, {type: Odd, resource: {}}, {type: Pods}, {type: Resource, pods: {metric: {name: a/b}, target: {type: Odd, value: 0}}, resource: {}},
			{type: ContainerResource, containerResource: {name: disks, container: A, target: {type: Utilization, averageUtilization: 0, averageValue: -1}}},
			{type: External, external: {metric: {}, target: {type: Value, value: 1, averageValue: 1}}}, {type: Object, object: {metric: {name: a}, describedObject: {}, target: {type: Value}}}]`, []string{
			"spec.metrics[0].type: Required value: must specify a metric source type",
			`spec.metrics[0].type: Unsupported value: "": supported values: "ContainerResource", "External", "Object", "Pods", "Resource"`,
			`spec.metrics[1].type: Unsupported value: "Odd": supported values: "ContainerResource", "External", "Object", "Pods", "Resource"`,
			"spec.metrics[1].resource.name: Required value: must specify a resource name",
			"spec.metrics[1].resource.target.type: Required value: must specify a metric target type",
			`spec.metrics[1].resource.target.type: Invalid value: "": must be either Utilization, Value, or AverageValue`,
			"spec.metrics[1].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
			"spec.metrics[1].resource: Forbidden: must populate the given metric source only",
			"spec.metrics[2].pods: Required value: must populate information for the given metric source",
			`spec.metrics[3].pods.metric.name: Invalid value: "a/b": may not contain '/'`,
			`spec.metrics[3].pods.target.type: Invalid value: "Odd": must be either Utilization, Value, or AverageValue`,
			`spec.metrics[3].pods.target.value: Invalid value: "0": must be positive`,
			"spec.metrics[3].pods.target.averageValue: Required value: must specify a positive target averageValue",
			"spec.metrics[3].pods: Forbidden: must populate the given metric source only",
			`spec.metrics[4].containerResource.name: Invalid value: "disks": must be a standard resource type or fully qualified`,
			`spec.metrics[4].containerResource.name: Invalid value: "disks": must be a standard resource for containers`,
			`spec.metrics[4].containerResource.container: Invalid value: "A": a lowercase RFC 1123 label…`,
			`spec.metrics[4].containerResource.target.averageValue: Invalid value: "-1": must be positive`,
			"spec.metrics[4].containerResource.target.averageUtilization: Invalid value: 0: must be greater than 0",
			"spec.metrics[4].containerResource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
			"spec.metrics[5].external.metric.name: Required value: must specify a metric name",
			"spec.metrics[5].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
			"spec.metrics[6].object.describedObject.kind: Required value", "spec.metrics[6].object.describedObject.name: Required value",
			"spec.metrics[6].object.target.averageValue: Required value: must set either a target value or averageValue"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := meta + "spec: {" + c.spec + "}"
			if c.spec == "{}" {
				text = meta + "spec: {}"
			}
			h := parse[*types.HorizontalPodAutoscaler](t, autoscalersName, text)
			expect(t, k.Validate(h), c.want...)
			h.ResourceVersion = "1"
			expect(t, k.ValidateUpdate(h, h), c.want...)
		})
	}
	bad := parse[*types.HorizontalPodAutoscaler](t, autoscalersName, meta+"spec: {"+ref+", maxReplicas: 3}\nstatus: {currentReplicas: -1, desiredReplicas: -2}")
	bad.ResourceVersion = "1"
	expect(t, k.ValidateStatusUpdate(bad, bad), "status.currentReplicas: Invalid value: -1: must be greater than or equal to 0", "status.desiredReplicas: Invalid value: -2: must be greater than or equal to 0")
}

func TestAutoscalerColumns(t *testing.T) {
	for want, text := range map[string]string{
		"cpu: <unknown>/80%": "spec: {maxReplicas: 3}",
		"cpu: 12%/50%": `spec: {metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}
status: {currentMetrics: [{type: Resource, resource: {name: cpu, current: {averageUtilization: 12, averageValue: 60m}}}]}`,
		"memory: 60Mi/100Mi, cpu: <unknown>/5% + 1 more...": `spec: {metrics: [{type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 100Mi}}},
  {type: ContainerResource, containerResource: {name: cpu, container: c, target: {type: Utilization, averageUtilization: 5}}}, {type: External, external: {metric: {name: q}, target: {type: Value, value: 1}}}]}
status: {currentMetrics: [{type: Resource, resource: {name: memory, current: {averageValue: 60Mi}}}, {type: ""}]}`,
		"<unknown>/10, <unknown>/3 (avg)": `spec: {metrics: [{type: Pods, pods: {metric: {name: hits}, target: {type: AverageValue, averageValue: "10"}}},
  {type: Object, object: {metric: {name: hits}, describedObject: {kind: Service, name: s}, target: {type: AverageValue, averageValue: "3"}}}]}`,
	} {
		h := parse[*types.HorizontalPodAutoscaler](t, autoscalersName, "metadata: {name: x}\n"+text)
		h.Spec.ScaleTargetRef = types.ObjectName{Kind: "Deployment", Name: "web"}
		cells := table[autoscalersName].Cells(h, time.Now())
		if cells[1] != "Deployment/web" || cells[2] != want || cells[3] != "1" {
			t.Errorf("%v, want %s", cells, want)
		}
	}
}

func TestAutoscalerWarnings(t *testing.T) {
	h := parse[*types.HorizontalPodAutoscaler](t, autoscalersName, `spec: {metrics: [{type: Pods, pods: {metric: {name: hits}, target: {type: AverageValue, averageValue: "10"}}},
  {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 5}}}]}`)
	if got := table[autoscalersName].Warnings(h, nil); !reflect.DeepEqual(got, []string{"spec.metrics[0]: not supported by Conclave yet, it has no effect"}) {
		t.Errorf("warnings %q", got)
	}
}

func v1Row(t *testing.T) *Kind {
	t.Helper()
	for _, k := range Builtin() {
		if k.GVK == autoscalingv1.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler") {
			return k
		}
	}
	t.Fatal("no row of autoscaling/v1")
	return nil
}

// TestAutoscalerInV1 is as Kubernetes shows it there.
func TestAutoscalerInV1(t *testing.T) {
	k := v1Row(t)
	h := parse[*types.HorizontalPodAutoscaler](t, autoscalersName, `metadata: {name: x, annotations: {a: b}}
spec: {scaleTargetRef: {kind: Deployment, name: web, apiVersion: apps/v1}, maxReplicas: 3, metrics: [{type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 70}}},
  {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]}
status: {currentReplicas: 2, desiredReplicas: 3, currentMetrics: [{type: Resource, resource: {name: cpu, current: {averageUtilization: 12, averageValue: 60m}}}],
  conditions: [{type: AbleToScale, status: "True", reason: ReadyForNewScale}]}`)
	o, err := k.FromStored(h)
	if err != nil {
		t.Fatal(err)
	}
	got, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	want := `apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata:
  annotations:
    a: b
    autoscaling.alpha.kubernetes.io/conditions: '[{"type":"AbleToScale","status":"True","lastTransitionTime":null,"reason":"ReadyForNewScale"}]'
    autoscaling.alpha.kubernetes.io/current-metrics: '[{"type":"Resource","resource":{"name":"cpu","currentAverageValue":"60m","currentAverageUtilization":12}}]'
    autoscaling.alpha.kubernetes.io/metrics: '[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":70}}]'
  name: x
spec:
  maxReplicas: 3
  minReplicas: 1
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: web
  targetCPUUtilizationPercentage: 50
status:
  currentCPUUtilizationPercentage: 12
  currentReplicas: 2
  desiredReplicas: 3
`
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	bare := k.New().(*autoscalingv1.HorizontalPodAutoscaler)
	k.Default(bare)
	k.PrepareForCreate(bare)
	if p := bare.Spec.TargetCPUUtilizationPercentage; p == nil || *p != DefaultCPUTarget || bare.Generation != 1 {
		t.Errorf("a new one of v1 is %+v", bare)
	}
	bare.Annotations = map[string]string{annotatedMetrics: "{"}
	if problems := k.Validate(bare); len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), `metadata.annotations[autoscaling.alpha.kubernetes.io/metrics]: Invalid value: "{"`) {
		t.Errorf("an annotation that cannot be read: %v", problems)
	}
}

// TestAutoscalerThereAndBack loses nothing of what the API server takes in.
func TestAutoscalerThereAndBack(t *testing.T) {
	k := v1Row(t)
	sources := []func(*types.MetricSpec, randfill.Continue){
		func(m *types.MetricSpec, c randfill.Continue) { m.Type = types.ResourceMetric; c.Fill(&m.Resource) },
		func(m *types.MetricSpec, c randfill.Continue) {
			m.Type = types.ContainerResourceMetric
			c.Fill(&m.ContainerResource)
		},
		func(m *types.MetricSpec, c randfill.Continue) { m.Type = types.PodsMetric; c.Fill(&m.Pods) },
		func(m *types.MetricSpec, c randfill.Continue) { m.Type = types.ExternalMetric; c.Fill(&m.External) },
		func(m *types.MetricSpec, c randfill.Continue) { m.Type = types.ObjectMetric; c.Fill(&m.Object) },
	}
	fill := randfill.NewWithSeed(3).NilChance(0).NumElements(1, 3).Funcs(
		func(q *resource.Quantity, c randfill.Continue) {
			*q = resource.MustParse([]string{"1", "250m", "3Ki"}[c.Intn(3)])
		},
		func(m *metav1.ObjectMeta, c randfill.Continue) { m.Name = c.String(5) },
		func(m *metav1.TypeMeta, _ randfill.Continue) {},
		func(m *metav1.Time, c randfill.Continue) { *m = metav1.Unix(c.Int63n(1e9), 0) },
		func(m *types.MetricSpec, c randfill.Continue) { sources[c.Intn(len(sources))](m, c) },
		func(x *types.MetricTarget, c randfill.Continue) {
			*x = types.MetricTarget{Type: types.TargetAverageValue}
			c.Fill(&x.AverageValue)
		},
		func(s *types.MetricStatus, c randfill.Continue) {
			*s = types.MetricStatus{Type: types.ResourceMetric}
			c.Fill(&s.Resource)
			s.Resource.Current.Value = nil // a resource has no such status
		},
	)
	for range 200 {
		h := &types.HorizontalPodAutoscaler{}
		fill.Fill(h)
		h.SetGroupVersionKind(types.Autoscaling.WithKind("HorizontalPodAutoscaler"))
		defaultAutoscaler(h)
		v1, err := k.FromStored(h)
		if err != nil {
			t.Fatal(err)
		}
		back, err := k.ToStored(v1)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(runtime.Object(h), back) {
			a, _ := yaml.Marshal(h)
			b, _ := yaml.Marshal(back)
			t.Fatalf("in\n%s\nout\n%s", a, b)
		}
	}
}
