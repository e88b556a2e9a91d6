package controller

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// backend is one pod behind one Service, of which EndpointSlices and Endpoints
// each tell a part.
type backend struct {
	pod                        *corev1.Pod
	ready, serving, terminated bool
	ports                      []discoveryv1.EndpointPort
	node, zone                 string
	hostname                   string
}

// backends are the pods that a Service selects, those first that the slices
// list first. A pod on a node that is suspected or dead is none: its address
// must get no traffic, whatever the pod said last.
func backends(e *env, s *corev1.Service) []backend {
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var found []backend
	for _, pod := range list[*corev1.Pod](e.cache, pods, s.Namespace) {
		if !selector.Matches(labels.Set(pod.Labels)) || len(pod.Status.PodIPs) == 0 && pod.Status.PodIP == "" || podFinished(pod) {
			continue
		}
		node, known := get[*corev1.Node](e.cache, nodes, "", pod.Spec.NodeName)
		if !known && !s.Spec.PublishNotReadyAddresses || known && (e.states.of(node).out() || cooling(node)) {
			continue
		}
		b := backend{pod: pod, node: pod.Spec.NodeName, serving: podReady(pod), terminated: pod.DeletionTimestamp != nil}
		b.ready = s.Spec.PublishNotReadyAddresses || b.serving && !b.terminated
		b.ports = backendPorts(s, pod)
		if known {
			b.zone = node.Labels[corev1.LabelTopologyZone]
		}
		if pod.Spec.Hostname != "" && pod.Spec.Subdomain == s.Name {
			b.hostname = pod.Spec.Hostname
		}
		found = append(found, b)
	}
	return found
}

// backendPorts resolves a Service's target ports in a pod; a named port that
// the pod does not have is left out.
func backendPorts(s *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	var ports []discoveryv1.EndpointPort
	for _, p := range s.Spec.Ports {
		if number, ok := targetPort(pod, p); ok {
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &number, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
	}
	return ports
}

func targetPort(pod *corev1.Pod, p corev1.ServicePort) (int32, bool) {
	if p.TargetPort.Type == intstr.Int {
		return p.TargetPort.IntVal, true
	}
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if port.Name == p.TargetPort.StrVal && port.Protocol == p.Protocol {
				return port.ContainerPort, true
			}
		}
	}
	return 0, false
}

// addresses are the pod's own in one family.
func (b backend) addresses(family discoveryv1.AddressType) []string {
	all := b.pod.Status.PodIPs
	if len(all) == 0 {
		all = []corev1.PodIP{{IP: b.pod.Status.PodIP}}
	}
	var found []string
	for _, ip := range all {
		if a, err := netip.ParseAddr(ip.IP); err == nil && familyOf(a) == family {
			found = append(found, a.Unmap().String())
		}
	}
	return found
}

func familyOf(a netip.Addr) discoveryv1.AddressType {
	if a.Unmap().Is4() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// families are the cluster's, the first one first.
func (c Config) families() []discoveryv1.AddressType {
	all := []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	if c.PodCIDR.IsValid() {
		all[0] = familyOf(c.PodCIDR.Addr())
	}
	if c.PodCIDR6.IsValid() {
		all = append(all, discoveryv1.AddressTypeIPv6)
	}
	return all
}

// families of a Service's endpoints. A headless one that names none has those
// of its pods: IPv4 first.
func families(s *corev1.Service) []discoveryv1.AddressType {
	var found []discoveryv1.AddressType
	for _, f := range s.Spec.IPFamilies {
		found = append(found, discoveryv1.AddressType(f))
	}
	if len(found) > 0 {
		return found
	}
	if a, err := netip.ParseAddr(s.Spec.ClusterIP); err == nil {
		return []discoveryv1.AddressType{familyOf(a)}
	}
	return []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
}

func (b backend) reference() *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Pod", Namespace: b.pod.Namespace, Name: b.pod.Name, UID: b.pod.UID}
}

func headless(s *corev1.Service) bool {
	return s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone
}

// portsKey tells port sets apart whatever their order.
func portsKey(ports []discoveryv1.EndpointPort) string {
	parts := make([]string, len(ports))
	for i, p := range ports {
		parts[i] = p.String()
	}
	slices.Sort(parts)
	return strings.Join(parts, ";")
}

// servicesOf maps changes of pods and nodes to the Services that they concern.
// Only what endpoints show of a pod counts, so that most writes of a pod's
// status wake nobody.
func servicesOf(e *env) []Input {
	ofPod := func(c Change) []Key {
		if c.Old != nil && c.New != nil && sameBackend(c.Old.(*corev1.Pod), c.New.(*corev1.Pod)) {
			return nil
		}
		keys := map[Key]bool{}
		for _, o := range c.sides() {
			for _, s := range list[*corev1.Service](e.cache, services, o.GetNamespace()) {
				if len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(o.GetLabels())) {
					keys[keyOf(s)] = true
				}
			}
		}
		return slices.Collect(maps.Keys(keys))
	}
	ofNode := func(c Change) []Key {
		if c.Old != nil && c.New != nil && c.Old != c.New &&
			c.Old.GetLabels()[corev1.LabelTopologyZone] == c.New.GetLabels()[corev1.LabelTopologyZone] &&
			c.Old.GetAnnotations()[nodeIDAnnotation] == c.New.GetAnnotations()[nodeIDAnnotation] && cooling(c.Old) == cooling(c.New) {
			return nil
		}
		var keys []Key
		for _, pod := range indexed[*corev1.Pod](e.cache, pods, podsByNode, c.either().GetName()) {
			keys = append(keys, ofPod(Change{New: pod})...)
		}
		return keys
	}
	return []Input{{services, self}, {pods, ofPod}, {nodes, ofNode}}
}

func sameBackend(a, b *corev1.Pod) bool {
	return a.Status.PodIP == b.Status.PodIP && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		a.Spec.NodeName == b.Spec.NodeName && podReady(a) == podReady(b) && podFinished(a) == podFinished(b) &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && maps.Equal(a.Labels, b.Labels) &&
		a.UID == b.UID
}

// sliceEndpoint is a backend as an EndpointSlice shows it; near is the
// service's trafficDistribution.
func (b backend) sliceEndpoint(addresses []string, near *string) discoveryv1.Endpoint {
	ep := discoveryv1.Endpoint{
		Addresses:  addresses,
		Conditions: discoveryv1.EndpointConditions{Ready: &b.ready, Serving: &b.serving, Terminating: &b.terminated},
		TargetRef:  b.reference(),
	}
	if b.node != "" {
		ep.NodeName = &b.node
	}
	if b.zone != "" {
		ep.Zone = &b.zone
	}
	if b.hostname != "" {
		ep.Hostname = &b.hostname
	}
	ep.Hints = b.hints(near)
	return ep
}

// hints say whom an endpoint is meant for, as trafficDistribution wants it.
// Those that are not ready have none.
func (b backend) hints(near *string) *discoveryv1.EndpointHints {
	if near == nil || !b.ready {
		return nil
	}
	var h discoveryv1.EndpointHints
	if *near == corev1.ServiceTrafficDistributionPreferSameNode && b.node != "" {
		h.ForNodes = []discoveryv1.ForNode{{Name: b.node}}
	}
	if b.zone != "" {
		h.ForZones = []discoveryv1.ForZone{{Name: b.zone}}
	}
	if h.ForNodes == nil && h.ForZones == nil {
		return nil
	}
	return &h
}

// sliceGroup is what one set of slices holds: endpoints of one family with the
// same ports.
type sliceGroup struct {
	family    discoveryv1.AddressType
	ports     []discoveryv1.EndpointPort
	endpoints []discoveryv1.Endpoint
}

// sliceSize is the most endpoints that a slice holds.
const sliceSize = 100

// pack divides a group among slices so that as few as possible change: an
// endpoint stays where it is; free places are taken before a slice is made.
// It returns the contents by slice, in the order of existing, and then those of
// new slices. An empty content means that the slice is not needed.
func pack(endpoints []discoveryv1.Endpoint, existing []*discoveryv1.EndpointSlice) [][]discoveryv1.Endpoint {
	wanted := make(map[string]discoveryv1.Endpoint, len(endpoints))
	for _, ep := range endpoints {
		wanted[endpointKey(ep)] = ep
	}
	contents := make([][]discoveryv1.Endpoint, len(existing))
	for i, slice := range existing {
		for _, ep := range slice.Endpoints {
			if want, ok := wanted[endpointKey(ep)]; ok && len(contents[i]) < sliceSize {
				contents[i] = append(contents[i], want)
				delete(wanted, endpointKey(ep))
			}
		}
	}
	var rest []discoveryv1.Endpoint
	for _, ep := range endpoints {
		if _, ok := wanted[endpointKey(ep)]; ok {
			rest = append(rest, ep)
		}
	}
	// Slices that change anyway are filled first, then the fullest that can
	// take all that is left.
	changed := func(i int) bool { return !equality.Semantic.DeepEqual(contents[i], existing[i].Endpoints) }
	for i := range existing {
		if len(contents[i]) > 0 && changed(i) {
			n := min(sliceSize-len(contents[i]), len(rest))
			contents[i], rest = append(contents[i], rest[:n]...), rest[n:]
		}
	}
	for len(rest) > 0 {
		best := -1
		for i := range existing {
			if free := sliceSize - len(contents[i]); free >= len(rest) && (best < 0 || len(contents[i]) > len(contents[best])) {
				best = i
			}
		}
		if best >= 0 {
			contents[best] = append(contents[best], rest...)
			break
		}
		n := min(sliceSize, len(rest))
		contents, rest = append(contents, rest[:n:n]), rest[n:]
	}
	return contents
}

// endpointKey tells the endpoints of one group apart.
func endpointKey(ep discoveryv1.Endpoint) string {
	key := strings.Join(ep.Addresses, ",")
	if ep.TargetRef != nil {
		key += "/" + string(ep.TargetRef.UID)
	}
	if ep.Hostname != nil {
		key += "/" + *ep.Hostname
	}
	return key
}

// byAddress orders the addresses of Endpoints as Kubernetes shows them.
func byAddress(a, b corev1.EndpointAddress) int {
	ax, _ := netip.ParseAddr(a.IP)
	bx, _ := netip.ParseAddr(b.IP)
	return cmp.Or(ax.Compare(bx), cmp.Compare(a.IP, b.IP))
}
