package kinds

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

func defaultPod(pod *corev1.Pod) {
	spec := &pod.Spec
	defaultPodSpec(spec)
	defaultPtr(&spec.EnableServiceLinks, corev1.DefaultEnableServiceLinks)
	for _, c := range slices.Concat(pointers(spec.InitContainers), pointers(spec.Containers)) {
		if c.Resources.Limits == nil {
			continue
		}
		if c.Resources.Requests == nil {
			c.Resources.Requests = make(corev1.ResourceList, len(c.Resources.Limits))
		}
		for name, q := range c.Resources.Limits {
			if _, ok := c.Resources.Requests[name]; !ok {
				c.Resources.Requests[name] = q.DeepCopy()
			}
		}
	}
	defaultPodLevelRequests(pod)
	if s := &pod.Status; s.PodIP != "" && (len(s.PodIPs) == 0 || s.PodIPs[0].IP != s.PodIP) {
		s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
	} else if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
	if spec.HostNetwork {
		for _, c := range slices.Concat(pointers(spec.InitContainers), pointers(spec.Containers)) {
			for i := range c.Ports {
				defaultTo(&c.Ports[i].HostPort, c.Ports[i].ContainerPort)
			}
		}
	}
}

// defaultPodLevelRequests fills in the requests of the pod as a whole, where
// only its limits were given: what its containers request together, or else
// the limit.
func defaultPodLevelRequests(pod *corev1.Pod) {
	if pod.Spec.Resources == nil || len(pod.Spec.Resources.Limits) == 0 {
		return
	}
	requests := maps.Clone(pod.Spec.Resources.Requests)
	if requests == nil {
		requests = corev1.ResourceList{}
	}
	of := resource.AggregateContainerRequests(pod, resource.PodResourcesOptions{})
	for name, q := range of {
		if _, ok := requests[name]; !ok && resource.IsSupportedPodLevelResource(name) && !isHugePages(name) {
			requests[name] = q
		}
	}
	for name, q := range pod.Spec.Resources.Limits {
		if _, ok := requests[name]; !ok && resource.IsSupportedPodLevelResource(name) {
			requests[name] = q
		}
	}
	if len(requests) > 0 {
		pod.Spec.Resources.Requests = requests
	}
}

func isHugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// pointers are the addresses of a slice's elements.
func pointers[T any](s []T) []*T {
	out := make([]*T, len(s))
	for i := range s {
		out[i] = &s[i]
	}
	return out
}

// allContainers are a pod's containers of all three kinds, ephemeral ones as
// the ordinary containers that they mostly are.
func allContainers(spec *corev1.PodSpec) []*corev1.Container {
	all := slices.Concat(pointers(spec.InitContainers), pointers(spec.Containers))
	for i := range spec.EphemeralContainers {
		all = append(all, asContainer(&spec.EphemeralContainers[i]))
	}
	return all
}

// asContainer is the same memory under the type of an ordinary container:
// EphemeralContainerCommon has the same fields, by its definition.
func asContainer(e *corev1.EphemeralContainer) *corev1.Container {
	return (*corev1.Container)(&e.EphemeralContainerCommon)
}

func defaultPodSpec(spec *corev1.PodSpec) {
	defaultTo(&spec.DNSPolicy, corev1.DNSClusterFirst)
	defaultTo(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	defaultPtr(&spec.SecurityContext, corev1.PodSecurityContext{})
	defaultPtr(&spec.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	defaultTo(&spec.SchedulerName, corev1.DefaultSchedulerName)
	// Two names of one field; the older one follows.
	defaultTo(&spec.ServiceAccountName, spec.DeprecatedServiceAccount)
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
	defaultResourceList(spec.Overhead)
	if spec.Resources != nil {
		defaultRequirements(spec.Resources)
	}
	for i := range spec.Volumes {
		defaultVolume(&spec.Volumes[i].VolumeSource)
	}
	for _, c := range allContainers(spec) {
		defaultContainer(c)
	}
}

func defaultContainer(c *corev1.Container) {
	defaultTo(&c.ImagePullPolicy, pullPolicyOf(c.Image))
	defaultTo(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	defaultTo(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	defaultRequirements(&c.Resources)
	for i := range c.Ports {
		defaultTo(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil {
			defaultFieldRef(from.FieldRef)
			if from.ResourceFieldRef != nil {
				capQuantity(&from.ResourceFieldRef.Divisor)
			}
			if from.FileKeyRef != nil {
				defaultPtr(&from.FileKeyRef.Optional, false)
			}
		}
	}
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p == nil {
			continue
		}
		defaultTo(&p.TimeoutSeconds, 1)
		defaultTo(&p.PeriodSeconds, 10)
		defaultTo(&p.SuccessThreshold, 1)
		defaultTo(&p.FailureThreshold, 3)
		defaultHTTPGet(p.HTTPGet)
		if p.GRPC != nil {
			defaultPtr(&p.GRPC.Service, "")
		}
	}
	if c.Lifecycle != nil {
		for _, h := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
			if h != nil {
				defaultHTTPGet(h.HTTPGet)
			}
		}
	}
}

func defaultHTTPGet(h *corev1.HTTPGetAction) {
	if h != nil {
		defaultTo(&h.Path, "/")
		defaultTo(&h.Scheme, corev1.URISchemeHTTP)
	}
}

func defaultFieldRef(r *corev1.ObjectFieldSelector) {
	if r != nil {
		defaultTo(&r.APIVersion, "v1")
	}
}

func defaultVolume(v *corev1.VolumeSource) {
	if *v == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if s := v.EmptyDir; s != nil {
		capQuantity(s.SizeLimit)
	}
	if s := v.HostPath; s != nil {
		defaultPtr(&s.Type, corev1.HostPathUnset)
	}
	if s := v.Secret; s != nil {
		defaultPtr(&s.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
	}
	if s := v.ConfigMap; s != nil {
		defaultPtr(&s.DefaultMode, corev1.ConfigMapVolumeSourceDefaultMode)
	}
	if s := v.DownwardAPI; s != nil {
		defaultPtr(&s.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
		defaultDownward(s.Items)
	}
	if s := v.Projected; s != nil {
		defaultPtr(&s.DefaultMode, corev1.ProjectedVolumeSourceDefaultMode)
		for _, p := range s.Sources {
			if p.DownwardAPI != nil {
				defaultDownward(p.DownwardAPI.Items)
			}
			if t := p.ServiceAccountToken; t != nil {
				defaultPtr(&t.ExpirationSeconds, 60*60)
			}
			if c := p.PodCertificate; c != nil {
				defaultPtr(&c.MaxExpirationSeconds, 24*60*60)
			}
		}
	}
	if s := v.ISCSI; s != nil {
		defaultTo(&s.ISCSIInterface, "default")
	}
	if s := v.RBD; s != nil {
		defaultTo(&s.RBDPool, "rbd")
		defaultTo(&s.RadosUser, "admin")
		defaultTo(&s.Keyring, "/etc/ceph/keyring")
	}
	if s := v.AzureDisk; s != nil {
		defaultPtr(&s.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		defaultPtr(&s.Kind, corev1.AzureSharedBlobDisk)
		defaultPtr(&s.FSType, "ext4")
		defaultPtr(&s.ReadOnly, false)
	}
	if s := v.ScaleIO; s != nil {
		defaultTo(&s.StorageMode, "ThinProvisioned")
		defaultTo(&s.FSType, "xfs")
	}
	if s := v.Ephemeral; s != nil && s.VolumeClaimTemplate != nil {
		defaultClaimSpec(&s.VolumeClaimTemplate.Spec)
	}
	if s := v.Image; s != nil {
		defaultTo(&s.PullPolicy, pullPolicyOf(s.Reference))
	}
}

func defaultDownward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		defaultFieldRef(items[i].FieldRef)
		if r := items[i].ResourceFieldRef; r != nil {
			capQuantity(&r.Divisor)
		}
	}
}
