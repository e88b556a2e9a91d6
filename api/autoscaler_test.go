package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/apitest"
)

const (
	autoscalersV1 = "/apis/autoscaling/v1/namespaces/shop/horizontalpodautoscalers"
	autoscalersV2 = "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers"
)

// TestAutoscalerInTwoVersions: one object, written and read in both, with fields
// that belong to who wrote them in whichever version.
func TestAutoscalerInTwoVersions(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	rt := st.admin()
	apply := func(path, manager, body string) answer {
		t.Helper()
		return st.request(rt, "PATCH", path+"/web?fieldManager="+manager, body, "Content-Type", applyType)
	}
	const old = `
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: %d, targetCPUUtilizationPercentage: 50}
`
	if a := apply(autoscalersV1, "older", fmt.Sprintf(old, 3)); a.code != 201 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	var v2 autoscalingv2.HorizontalPodAutoscaler
	st.request(rt, "GET", autoscalersV2+"/web", "").into(t, &v2)
	if v2.APIVersion != "autoscaling/v2" || len(v2.Spec.Metrics) != 1 || *v2.Spec.Metrics[0].Resource.Target.AverageUtilization != 50 || *v2.Spec.MinReplicas != 1 || v2.Generation != 1 {
		t.Errorf("in v2: %+v", v2)
	}
	const more = `
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {behavior: {scaleDown: {stabilizationWindowSeconds: 5}}}
`
	if a := apply(autoscalersV2, "newer", more); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	// Who applied v1 goes on doing so, and takes nothing from the other.
	if a := apply(autoscalersV1, "older", fmt.Sprintf(old, 4)); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	st.request(rt, "GET", autoscalersV2+"/web", "").into(t, &v2)
	if b := v2.Spec.Behavior; v2.Spec.MaxReplicas != 4 || b == nil || *b.ScaleDown.StabilizationWindowSeconds != 5 || len(b.ScaleUp.Policies) != 2 || managers(v2.ManagedFields) != "newer Apply, older Apply" {
		t.Errorf("after both applied: %+v, by %s", v2.Spec, managers(v2.ManagedFields))
	}
	a := apply(autoscalersV2, "newer", strings.Replace(more, "spec: {", "spec: {maxReplicas: 9, ", 1))
	if s := a.status(t); a.code != 409 || !strings.Contains(s.Message, `conflict with "older": .spec.maxReplicas`) {
		t.Errorf("%d %s", a.code, a.body)
	}
	// A status of v2 is not lost by a write of v1.
	v2.Status = autoscalingv2.HorizontalPodAutoscalerStatus{CurrentReplicas: 2, Conditions: []autoscalingv2.HorizontalPodAutoscalerCondition{{Type: "AbleToScale", Status: "True"}}}
	body, err := json.Marshal(v2)
	if err != nil {
		t.Fatal(err)
	}
	if a := st.request(rt, "PUT", autoscalersV2+"/web/status", string(body)); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	if a := st.request(rt, "PATCH", autoscalersV1+"/web", `{"spec":{"targetCPUUtilizationPercentage":60}}`, "Content-Type", "application/merge-patch+json"); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	var v1 autoscalingv1.HorizontalPodAutoscaler
	st.request(rt, "GET", autoscalersV1+"/web", "").into(t, &v1)
	st.request(rt, "GET", autoscalersV2+"/web", "").into(t, &v2)
	if v1.Status.CurrentReplicas != 2 || !strings.Contains(v1.Annotations["autoscaling.alpha.kubernetes.io/conditions"], "AbleToScale") || len(v2.Annotations) != 0 || len(v2.Status.Conditions) != 1 || *v2.Spec.Metrics[0].Resource.Target.AverageUtilization != 60 {
		t.Errorf("v1 %+v\nv2 %+v", v1, v2)
	}
	if a := st.request(rt, "POST", autoscalersV1, `{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler","metadata":{"name":"bad","annotations":{"autoscaling.alpha.kubernetes.io/behavior":"no"}},"spec":{"maxReplicas":1,"scaleTargetRef":{"kind":"a","name":"b"}}}`); a.code != 422 {
		t.Errorf("an annotation that is no JSON: %d %s", a.code, a.body)
	}
	var groups metav1.APIGroup
	st.request(rt, "GET", "/apis/autoscaling", "").into(t, &groups)
	if groups.PreferredVersion.Version != "v2" || len(groups.Versions) != 2 {
		t.Errorf("versions %+v", groups)
	}
	var list metav1.APIResourceList
	st.request(rt, "GET", "/apis/autoscaling/v2", "").into(t, &list)
	if r := list.APIResources[0]; r.Name != "horizontalpodautoscalers" || fmt.Sprint(r.ShortNames, r.Categories) != "[hpa] [all]" || list.APIResources[1].Name != "horizontalpodautoscalers/status" {
		t.Errorf("resources %+v", list.APIResources)
	}
}

// TestReplicasBelongToWhoScales: whoever applies a Deployment without replicas
// leaves them as an autoscaler has set them.
func TestReplicasBelongToWhoScales(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	rt := st.admin()
	apply := func(body string) (d appsv1.Deployment) {
		t.Helper()
		a := st.request(rt, "PATCH", deployments+"/web?fieldManager=me", body, "Content-Type", applyType)
		if a.code > 201 {
			t.Fatalf("%d %s", a.code, a.body)
		}
		a.into(t, &d)
		return d
	}
	bare := func(image int) string { return strings.Replace(fmt.Sprintf(web, 1, image), "  replicas: 1\n", "", 1) }
	if d := apply(bare(1)); *d.Spec.Replicas != 1 {
		t.Fatalf("a new one has %d", *d.Spec.Replicas)
	}
	c := st.Local(apitest.Admin)
	scale, err := c.Get(t.Context(), appsv1.SchemeGroupVersion.WithResource("deployments"), "shop", "web", metav1.GetOptions{}, "scale")
	if err != nil {
		t.Fatal(err)
	}
	s := scale.(*autoscalingv1.Scale).DeepCopy()
	if s.Status.Selector != "app=web" || s.Spec.Replicas != 1 {
		t.Errorf("scale %+v", s)
	}
	s.Spec.Replicas = 5
	if _, err := c.Update(t.Context(), appsv1.SchemeGroupVersion.WithResource("deployments"), "shop", s, metav1.UpdateOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	if d := apply(bare(2)); *d.Spec.Replicas != 5 || d.Spec.Template.Spec.Containers[0].Image != "web:2" {
		t.Errorf("applied without replicas: %d", *d.Spec.Replicas)
	}
	// kubectl's own apply sends what has changed of what it sent before.
	a := st.request(rt, "PATCH", deployments+"/web", `{"spec":{"template":{"spec":{"containers":[{"name":"web","image":"web:3"}]}}}}`, "Content-Type", "application/strategic-merge-patch+json")
	var d appsv1.Deployment
	if a.into(t, &d); *d.Spec.Replicas != 5 {
		t.Errorf("patched without replicas: %d", *d.Spec.Replicas)
	}
	if _, err := c.Get(t.Context(), appsv1.SchemeGroupVersion.WithResource("daemonsets"), "shop", "web", metav1.GetOptions{}, "scale"); err == nil {
		t.Error("a DaemonSet has a scale")
	}
}
