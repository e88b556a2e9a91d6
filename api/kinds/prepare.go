package kinds

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func prepareNamespaceCreate(ns *corev1.Namespace) {
	ns.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		ns.Spec.Finalizers = append(ns.Spec.Finalizers, corev1.FinalizerKubernetes)
	}
	defaultNamespace(ns)
}

func prepareNamespaceUpdate(ns, old *corev1.Namespace) {
	ns.Spec.Finalizers = old.Spec.Finalizers
	ns.Status = old.Status
}

func preparePodCreate(pod *corev1.Pod) {
	pod.Generation = 1
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(pod)}
	if len(pod.Spec.SchedulingGates) > 0 {
		pod.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates",
		}}
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	defaultPtr(&pod.Spec.Priority, 0) // admission has said it, where there is any
	defaultPtr(&pod.Spec.PreemptionPolicy, corev1.PreemptLowerPriority)
	expandMatchLabelKeys(pod)
	appArmorFields(pod)
}

// expandMatchLabelKeys writes into the selectors of pod (anti-)affinity and of
// spread constraints what matchLabelKeys mean for this pod, so that whoever
// reads the selector needs nothing else.
func expandMatchLabelKeys(pod *corev1.Pod) {
	expand := func(selector *metav1.LabelSelector, keys []string, op metav1.LabelSelectorOperator) {
		if selector == nil {
			return
		}
		for _, key := range keys {
			if value, ok := pod.Labels[key]; ok {
				selector.MatchExpressions = append(selector.MatchExpressions,
					metav1.LabelSelectorRequirement{Key: key, Operator: op, Values: []string{value}})
			}
		}
	}
	if a := pod.Spec.Affinity; a != nil {
		var terms []*corev1.PodAffinityTerm
		if a.PodAffinity != nil {
			terms = append(terms, podAffinityTerms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution)...)
		}
		if a.PodAntiAffinity != nil {
			terms = append(terms, podAffinityTerms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution)...)
		}
		for _, t := range terms {
			expand(t.LabelSelector, t.MatchLabelKeys, metav1.LabelSelectorOpIn)
			expand(t.LabelSelector, t.MismatchLabelKeys, metav1.LabelSelectorOpNotIn)
		}
	}
	for i := range pod.Spec.TopologySpreadConstraints {
		c := &pod.Spec.TopologySpreadConstraints[i]
		expand(c.LabelSelector, c.MatchLabelKeys, metav1.LabelSelectorOpIn)
	}
}

func podAffinityTerms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) []*corev1.PodAffinityTerm {
	terms := pointers(required)
	for i := range preferred {
		terms = append(terms, &preferred[i].PodAffinityTerm)
	}
	return terms
}

func preparePodUpdate(pod, old *corev1.Pod) {
	pod.Status = old.Status
	countGeneration(pod, &pod.Spec, &old.Spec)
}

func preparePodStatusUpdate(pod, old *corev1.Pod) {
	pod.Spec = old.Spec
	pod.DeletionTimestamp = old.DeletionTimestamp
	// Only the spec's writer may say who owns a pod.
	pod.OwnerReferences = old.OwnerReferences
	// The class follows from the spec, and so may the agent not choose it.
	if pod.Status.QOSClass == "" {
		pod.Status.QOSClass = old.Status.QOSClass
	}
}

// prepareEphemeralContainers lets nothing through but the list of ephemeral
// containers.
func prepareEphemeralContainers(pod, old *corev1.Pod) {
	list := pod.Spec.EphemeralContainers
	pod.Spec, pod.Status = *old.Spec.DeepCopy(), old.Status
	pod.Spec.EphemeralContainers = list
	pod.Labels, pod.Annotations, pod.Finalizers, pod.OwnerReferences = old.Labels, old.Annotations, old.Finalizers, old.OwnerReferences
	pod.DeletionTimestamp = old.DeletionTimestamp
	countGeneration(pod, &pod.Spec, &old.Spec)
}

// countGeneration moves the generation on if the specs differ.
func countGeneration(obj metav1.Object, spec, old any) {
	if !equality.Semantic.DeepEqual(spec, old) {
		obj.SetGeneration(obj.GetGeneration() + 1)
	}
}

// QOSClass is the quality of service that a pod's requests and limits give it.
func QOSClass(pod *corev1.Pod) corev1.PodQOSClass {
	guaranteed, burstable := true, false
	judge := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if !request.IsZero() || !limit.IsZero() {
				burstable = true
			}
			if limit.IsZero() || request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	if r := pod.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		judge(r)
	} else {
		for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
			judge(&c.Resources)
		}
	}
	switch {
	case !burstable:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

func prepareDeploymentUpdate(d, old *appsv1.Deployment) {
	d.Status = old.Status
	// Annotations count, because rollouts copy them to replica sets.
	type state struct {
		Spec        *appsv1.DeploymentSpec
		Annotations map[string]string
	}
	countGeneration(d, state{&d.Spec, d.Annotations}, state{&old.Spec, old.Annotations})
}

func prepareReplicaSetUpdate(rs, old *appsv1.ReplicaSet) {
	rs.Status = old.Status
	countGeneration(rs, &rs.Spec, &old.Spec)
}

func prepareStatefulSetUpdate(s, old *appsv1.StatefulSet) {
	s.Status = old.Status
	countGeneration(s, &s.Spec, &old.Spec)
}

// prepareVolumeCreate notes since when the volume is in its phase: the server
// has given it its time of creation by now.
func prepareVolumeCreate(v *corev1.PersistentVolume) {
	v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
	if created := v.CreationTimestamp; !created.IsZero() {
		v.Status.LastPhaseTransitionTime = &created
	}
}

func prepareEndpointSliceUpdate(s, old *discoveryv1.EndpointSlice) {
	type state struct {
		Labels, Annotations map[string]string
		Endpoints           []discoveryv1.Endpoint
		Ports               []discoveryv1.EndpointPort
	}
	countGeneration(s, state{s.Labels, s.Annotations, s.Endpoints, s.Ports}, state{old.Labels, old.Annotations, old.Endpoints, old.Ports})
}

func prepareServiceCreate(svc *corev1.Service) {
	svc.Status = corev1.ServiceStatus{}
	if svc.Spec.ClusterIP != "" && len(svc.Spec.ClusterIPs) == 0 {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
}

func prepareServiceUpdate(svc, old *corev1.Service) {
	svc.Status = old.Status
	followClusterIP(svc, old)
	keepAllocated(svc, old)
	dropWhatTypeLost(svc, old)
}

// followClusterIP makes clusterIPs follow a writer who knows only clusterIP.
func followClusterIP(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	switch {
	case spec.ClusterIP != was.ClusterIP && (len(spec.ClusterIPs) == 0 || slices.Equal(spec.ClusterIPs, was.ClusterIPs)):
		spec.ClusterIPs = nil
		if spec.ClusterIP != "" {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
	case spec.ClusterIP == was.ClusterIP && len(spec.ClusterIPs) == 0 && len(was.ClusterIPs) > 0:
		// An old client does not send the list back; a new one clears both.
		spec.ClusterIPs = was.ClusterIPs
	}
}

// keepAllocated gives back to an update that leaves them out the addresses and
// ports that were allocated before.
func keepAllocated(svc, old *corev1.Service) {
	if needsClusterIP(old) && needsClusterIP(svc) {
		defaultTo(&svc.Spec.ClusterIP, old.Spec.ClusterIP)
		if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP == old.Spec.ClusterIP {
			svc.Spec.ClusterIPs = old.Spec.ClusterIPs
		}
		if len(svc.Spec.IPFamilies) == 0 {
			svc.Spec.IPFamilies = old.Spec.IPFamilies
		}
		if svc.Spec.IPFamilyPolicy == nil {
			svc.Spec.IPFamilyPolicy = old.Spec.IPFamilyPolicy
		}
	}
	if needsNodePort(old) && needsNodePort(svc) {
		type key struct {
			protocol corev1.Protocol
			port     int32
		}
		was, used := map[key]int32{}, map[int32]bool{}
		for _, p := range old.Spec.Ports {
			was[key{p.Protocol, p.Port}] = p.NodePort
		}
		for _, p := range svc.Spec.Ports {
			used[p.NodePort] = true
		}
		for i := range svc.Spec.Ports {
			p := &svc.Spec.Ports[i]
			if before := was[key{p.Protocol, p.Port}]; p.NodePort == 0 && !used[before] {
				p.NodePort = before
				used[before] = true
			}
		}
	}
	if needsHealthCheckNodePort(old) && needsHealthCheckNodePort(svc) {
		defaultTo(&svc.Spec.HealthCheckNodePort, old.Spec.HealthCheckNodePort)
	}
}

// dropWhatTypeLost clears fields that a change of type made meaningless,
// unless the writer changed them in the same breath (then validation speaks).
func dropWhatTypeLost(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	if needsClusterIP(old) && !needsClusterIP(svc) {
		if spec.ClusterIP == was.ClusterIP && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		if slices.Equal(spec.IPFamilies, was.IPFamilies) {
			spec.IPFamilies = nil
		}
		if equality.Semantic.DeepEqual(spec.IPFamilyPolicy, was.IPFamilyPolicy) {
			spec.IPFamilyPolicy = nil
		}
		if equality.Semantic.DeepEqual(spec.InternalTrafficPolicy, was.InternalTrafficPolicy) {
			spec.InternalTrafficPolicy = nil
		}
	}
	if needsNodePort(old) && !needsNodePort(svc) {
		ports := func(s *corev1.ServiceSpec) map[int32]bool {
			set := map[int32]bool{}
			for _, p := range s.Ports {
				set[p.NodePort] = true
			}
			return set
		}
		if maps.Equal(ports(spec), ports(was)) {
			for i := range spec.Ports {
				spec.Ports[i].NodePort = 0
			}
		}
	}
	if needsHealthCheckNodePort(old) && !needsHealthCheckNodePort(svc) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && spec.Type != corev1.ServiceTypeLoadBalancer {
		if equality.Semantic.DeepEqual(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if equality.Semantic.DeepEqual(spec.LoadBalancerClass, was.LoadBalancerClass) {
			spec.LoadBalancerClass = nil
		}
		svc.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	if externallyAccessible(old) && !externallyAccessible(svc) && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
}
