package kinds

import (
	"maps"
	"math"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// defaultTo sets *p to value if it is empty.
func defaultTo[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

// defaultPtr points *p at value if it is nil.
func defaultPtr[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func defaultNamespace(ns *corev1.Namespace) {
	// Without a name yet (generateName), create adds the label.
	if ns.Name == "" {
		return
	}
	if ns.Labels == nil {
		ns.Labels = map[string]string{}
	}
	ns.Labels[corev1.LabelMetadataName] = ns.Name
}

func defaultNode(node *corev1.Node) {
	defaultResourceList(node.Status.Capacity)
	if node.Status.Allocatable == nil && node.Status.Capacity != nil {
		node.Status.Allocatable = maps.Clone(node.Status.Capacity)
	}
	defaultResourceList(node.Status.Allocatable)
	// Two names of one field; a writer who knows only the older one is right.
	if spec := &node.Spec; spec.PodCIDR != "" && (len(spec.PodCIDRs) == 0 || spec.PodCIDRs[0] != spec.PodCIDR) {
		spec.PodCIDRs = []string{spec.PodCIDR}
	} else if len(spec.PodCIDRs) > 0 {
		spec.PodCIDR = spec.PodCIDRs[0]
	}
}

func defaultSecret(s *corev1.Secret) {
	// stringData is a way to write data, and is never read back.
	if len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = make(map[string][]byte, len(s.StringData))
		}
		for k, v := range s.StringData {
			s.Data[k] = []byte(v)
		}
	}
	s.StringData = nil
	defaultTo(&s.Type, corev1.SecretTypeOpaque)
}

func defaultService(svc *corev1.Service) {
	spec := &svc.Spec
	defaultTo(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
		}
	}
	defaultTo(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		defaultTo(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if externallyAccessible(svc) {
		defaultTo(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if needsClusterIP(svc) {
		defaultPtr(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		defaultPtr(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range svc.Status.LoadBalancer.Ingress {
			if in := &svc.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				defaultPtr(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
}

func externallyAccessible(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer || svc.Spec.Type == corev1.ServiceTypeNodePort ||
		svc.Spec.Type == corev1.ServiceTypeClusterIP && len(svc.Spec.ExternalIPs) > 0
}

func needsClusterIP(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeClusterIP || needsNodePort(svc) || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

func needsNodePort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort ||
		svc.Spec.Type == corev1.ServiceTypeLoadBalancer && (svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts)
}

func needsHealthCheckNodePort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func defaultEndpoints(e *corev1.Endpoints) {
	for i := range e.Subsets {
		for j := range e.Subsets[i].Ports {
			defaultTo(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
		}
	}
}

func defaultEndpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		defaultPtr(&s.Ports[i].Name, "")
		defaultPtr(&s.Ports[i].Protocol, corev1.ProtocolTCP)
	}
}

func defaultDeployment(d *appsv1.Deployment) {
	spec := &d.Spec
	defaultPodSpec(&spec.Template.Spec)
	defaultPtr(&spec.Replicas, 1)
	defaultTo(&spec.Strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		defaultPtr(&spec.Strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		defaultPtr(&spec.Strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		defaultPtr(&spec.Strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	defaultPtr(&spec.RevisionHistoryLimit, 10)
	defaultPtr(&spec.ProgressDeadlineSeconds, 600)
}

func defaultReplicaSet(rs *appsv1.ReplicaSet) {
	defaultPodSpec(&rs.Spec.Template.Spec)
	defaultPtr(&rs.Spec.Replicas, 1)
}

func defaultStatefulSet(s *appsv1.StatefulSet) {
	spec := &s.Spec
	defaultPodSpec(&spec.Template.Spec)
	defaultTo(&spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement)
	defaultTo(&spec.UpdateStrategy.Type, appsv1.RollingUpdateStatefulSetStrategyType)
	if spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		defaultPtr(&spec.UpdateStrategy.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
		defaultPtr(&spec.UpdateStrategy.RollingUpdate.Partition, 0)
		defaultPtr(&spec.UpdateStrategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	defaultPtr(&spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	defaultTo(&spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	defaultTo(&spec.PersistentVolumeClaimRetentionPolicy.WhenScaled, appsv1.RetainPersistentVolumeClaimRetentionPolicyType)
	defaultPtr(&spec.Replicas, 1)
	defaultPtr(&spec.RevisionHistoryLimit, 10)
	for i := range spec.VolumeClaimTemplates {
		defaultClaim(&spec.VolumeClaimTemplates[i])
	}
	TypeClaimTemplates(s)
}

// TypeClaimTemplates writes into a set's claim templates what they are, which
// is not part of their protobuf form.
func TypeClaimTemplates(s *appsv1.StatefulSet) {
	for i := range s.Spec.VolumeClaimTemplates {
		s.Spec.VolumeClaimTemplates[i].TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
	}
}

// defaultResourceList rounds up to thousandths, the API keeps no finer, and
// caps what no int64 holds.
func defaultResourceList(list corev1.ResourceList) {
	for name, q := range list {
		capped := capQuantity(&q)
		if q.RoundUp(resource.Milli) && !capped {
			continue
		}
		list[name] = q
	}
}

// capQuantity caps an amount whose exponent is absurd, as the type's own words
// promise for numbers beyond 2^63-1 (its parser keeps that promise only for
// binary suffixes). Without it, one "1e2147483647" would keep whoever compares
// it with anything busy for hours.
func capQuantity(q *resource.Quantity) bool {
	if q == nil {
		return false
	}
	c := *q // AsDec changes how a quantity holds its number
	if d := c.AsDec(); d.Sign() == 0 || d.Scale() >= -18 {
		return false
	}
	*q = *resource.NewQuantity(int64(q.Sign())*math.MaxInt64, q.Format)
	return true
}

func defaultRequirements(r *corev1.ResourceRequirements) {
	defaultResourceList(r.Limits)
	defaultResourceList(r.Requests)
}

// imageTag is the tag of an image reference, "latest" where it has neither tag
// nor digest.
func imageTag(image string) string {
	name, digest, hasDigest := strings.Cut(image, "@")
	// A colon before the last slash is of the registry's port.
	slash := strings.LastIndexByte(name, '/')
	if _, tag, ok := strings.Cut(name[slash+1:], ":"); ok {
		return tag
	}
	if hasDigest && digest != "" {
		return ""
	}
	return "latest"
}

func pullPolicyOf(image string) corev1.PullPolicy {
	if imageTag(image) == "latest" {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}
