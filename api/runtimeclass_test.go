package api_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestRuntimeClassAdmission(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	overhead := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("1Mi")}
	forever := corev1.Toleration{Key: "sandbox", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}
	for _, c := range []*nodev1.RuntimeClass{
		{ObjectMeta: metav1.ObjectMeta{Name: "plain"}, Handler: "runc"},
		{ObjectMeta: metav1.ObjectMeta{Name: "heavy"}, Handler: "runc", Overhead: &nodev1.Overhead{PodFixed: overhead},
			Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"kind": "sandbox", "disk": "ssd"}, Tolerations: []corev1.Toleration{forever}}},
	} {
		must(cs.NodeV1().RuntimeClasses().Create(ctx, c, metav1.CreateOptions{}))(t)
	}
	create := func(name, class string, edit func(*corev1.PodSpec)) (*corev1.Pod, error) {
		p := testPod(name)
		if class != "" {
			p.Spec.RuntimeClassName = &class
		}
		if edit != nil {
			edit(&p.Spec)
		}
		return cs.CoreV1().Pods("shop").Create(ctx, p, metav1.CreateOptions{})
	}
	if p := must(create("a", "plain", nil))(t); p.Spec.Overhead != nil || p.Spec.NodeSelector != nil || len(p.Spec.Tolerations) != 2 {
		t.Errorf("plain: %+v", p.Spec)
	}
	p := must(create("b", "heavy", func(s *corev1.PodSpec) {
		s.NodeSelector = map[string]string{"disk": "ssd", "own": "1"}
		s.Tolerations = []corev1.Toleration{{Key: "sandbox", Value: "", Operator: corev1.TolerationOpEqual, Effect: corev1.TaintEffectNoSchedule}}
	}))(t)
	if s := p.Spec; len(s.NodeSelector) != 3 || s.NodeSelector["kind"] != "sandbox" || !s.Overhead.Cpu().Equal(overhead[corev1.ResourceCPU]) {
		t.Errorf("heavy: %+v", s)
	}
	if s := p.Spec.Tolerations; len(s) != 3 || s[0] != forever { // the narrower one of the pod is included in it
		t.Errorf("heavy: %+v", s)
	}
	must(create("same", "heavy", func(s *corev1.PodSpec) { s.Overhead = overhead }))(t)
	for name, c := range map[string]struct {
		class string
		edit  func(*corev1.PodSpec)
		want  string
	}{
		"missing":  {"nowhere", nil, `pod rejected: RuntimeClass "nowhere" not found`},
		"other":    {"heavy", func(s *corev1.PodSpec) { s.Overhead = corev1.ResourceList{"cpu": resource.MustParse("1")} }, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"},
		"own":      {"", func(s *corev1.PodSpec) { s.Overhead = overhead }, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"},
		"too":      {"plain", func(s *corev1.PodSpec) { s.Overhead = overhead }, "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"},
		"conflict": {"heavy", func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"disk": "spinning"} }, "conflict: runtimeClass.scheduling.nodeSelector[disk] = ssd; pod.spec.nodeSelector[disk] = spinning"},
	} {
		if _, err := create("c", c.class, c.edit); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := cs.NodeV1().RuntimeClasses().Delete(ctx, "plain", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := create("d", "plain", nil); !apierrors.IsForbidden(err) {
		t.Errorf("of a deleted class: %v", err)
	}
	// What a class itself may not be.
	for name, c := range map[string]struct {
		class *nodev1.RuntimeClass
		want  string
	}{
		"no handler":  {&nodev1.RuntimeClass{}, "handler: Required value"},
		"bad handler": {&nodev1.RuntimeClass{Handler: "Not/One"}, "handler: Invalid value"},
		"overhead":    {&nodev1.RuntimeClass{Handler: "runc", Overhead: &nodev1.Overhead{PodFixed: corev1.ResourceList{"cpu": resource.MustParse("-1")}}}, "overhead.podFixed.limits[cpu]: Invalid value"},
		"selector":    {&nodev1.RuntimeClass{Handler: "runc", Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"a b": ""}}}, "scheduling.nodeSelector: Invalid value"},
		"tolerations": {&nodev1.RuntimeClass{Handler: "runc", Scheduling: &nodev1.Scheduling{Tolerations: []corev1.Toleration{forever, forever}}}, "scheduling.tolerations[1]: Duplicate value"},
	} {
		c.class.Name = "bad"
		if _, err := cs.NodeV1().RuntimeClasses().Create(ctx, c.class, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	heavy := must(cs.NodeV1().RuntimeClasses().Get(ctx, "heavy", metav1.GetOptions{}))(t)
	heavy.Handler = "other"
	if _, err := cs.NodeV1().RuntimeClasses().Update(ctx, heavy, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "handler: Invalid value: \"other\": field is immutable") {
		t.Errorf("another handler: %v", err)
	}
}
