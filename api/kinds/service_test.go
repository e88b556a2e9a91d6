package kinds

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestServiceHealthCheckNodePort(t *testing.T) {
	service := func(port int32, change func(*corev1.Service)) *corev1.Service {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "b", ResourceVersion: "1"},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeLoadBalancer, ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal, HealthCheckNodePort: port,
				ClusterIP: "10.96.0.9", ClusterIPs: []string{"10.96.0.9"}, Ports: []corev1.ServicePort{{Port: 80}},
			},
		}
		if change != nil {
			change(s)
		}
		defaultService(s)
		return s
	}
	if errs := validateServiceUpdate(service(30001, nil), service(30001, nil)); len(errs) > 0 {
		t.Error(errs)
	}
	if errs := validateServiceUpdate(service(30002, nil), service(30001, nil)); len(errs) != 1 || !strings.Contains(errs[0].Error(), "spec.healthCheckNodePort: Forbidden: field is immutable") {
		t.Error(errs)
	}
	cluster := func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster }
	changed := service(30001, cluster)
	prepareServiceUpdate(changed, service(30001, nil))
	if changed.Spec.HealthCheckNodePort != 0 {
		t.Errorf("healthCheckNodePort stays %d", changed.Spec.HealthCheckNodePort)
	}
}

func TestServiceWarnings(t *testing.T) {
	class, near := "example.org/other", corev1.ServiceTrafficDistributionPreferSameZone
	s := &corev1.Service{Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, TrafficDistribution: &near, LoadBalancerIP: "10.0.0.1",
		LoadBalancerSourceRanges: []string{"10.0.0.0/8"}, HealthCheckNodePort: 30000, Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}},
	}}
	if w := serviceWarnings(s); len(w) > 0 {
		t.Errorf("what works is warned of: %q", w)
	}
	s.Annotations = map[string]string{corev1.AnnotationTopologyMode: "Disabled"}
	if w := serviceWarnings(s); len(w) > 0 {
		t.Errorf("what asks for nothing is warned of: %q", w)
	}
	s.Annotations[corev1.AnnotationTopologyMode] = "Auto"
	if w := serviceWarnings(s); len(w) != 1 || !strings.HasPrefix(w[0], "metadata.annotations[service.kubernetes.io/topology-mode]: ") || !strings.Contains(w[0], "spec.trafficDistribution") {
		t.Errorf("hints that nobody makes: %q", w)
	}
	s.Annotations = nil
	ignored := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, ExternalIPs: []string{"192.0.2.1"}, LoadBalancerIP: "192.0.2.2", SessionAffinity: corev1.ServiceAffinityClientIP}}
	if w := serviceWarnings(ignored); !slices.Equal(w, []string{
		"spec.SessionAffinity is ignored for headless services", "spec.externalIPs is ignored for headless services", "spec.loadBalancerIP is ignored for headless services",
	}) {
		t.Errorf("a headless one: %q", w)
	}
	s.Spec.Ports[0].Protocol = corev1.ProtocolSCTP
	w := serviceWarnings(s)
	if kernelHasSCTP() && len(w) > 0 || !kernelHasSCTP() && (len(w) != 1 || !strings.HasPrefix(w[0], "spec.ports[0].protocol: ")) {
		t.Errorf("SCTP: %q, and the kernel has it: %t", w, kernelHasSCTP())
	}
}
