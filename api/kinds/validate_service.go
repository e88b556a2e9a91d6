package kinds

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateService(svc *corev1.Service) field.ErrorList {
	e := metadata(&svc.ObjectMeta, nil, true, apivalidation.NameIsDNSLabel)
	e.service(svc)
	return e.list()
}

func validateServiceUpdate(svc, old *corev1.Service) field.ErrorList {
	e := metadata(&svc.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSLabel)
	// Addresses stay while the service keeps having them.
	if needsClusterIP(old) && needsClusterIP(svc) && len(old.Spec.ClusterIPs) > 0 {
		at := specPath.Child("clusterIPs").Index(0)
		switch {
		case len(svc.Spec.ClusterIPs) == 0:
			e.invalid(at, svc.Spec.ClusterIPs, "primary clusterIP can not be unset")
		case svc.Spec.ClusterIPs[0] != old.Spec.ClusterIPs[0]:
			e.invalid(at, svc.Spec.ClusterIPs, "may not change once set")
		case len(svc.Spec.ClusterIPs) > 1 && len(old.Spec.ClusterIPs) > 1 && svc.Spec.ClusterIPs[1] != old.Spec.ClusterIPs[1]:
			e.invalid(specPath.Child("clusterIPs").Index(1), svc.Spec.ClusterIPs, "may not change once set")
		}
		// Those of one without addresses may.
		headless := svc.Spec.ClusterIP == corev1.ClusterIPNone || old.Spec.ClusterIP == corev1.ClusterIPNone
		for i := range min(len(old.Spec.IPFamilies), len(svc.Spec.IPFamilies)) {
			if !headless && svc.Spec.IPFamilies[i] != old.Spec.IPFamilies[i] {
				e.invalid(specPath.Child("ipFamilies").Index(0), svc.Spec.IPFamilies, "may not change once set")
				break
			}
		}
	}
	if svc.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.Type == corev1.ServiceTypeLoadBalancer && old.Spec.LoadBalancerClass != nil {
		if svc.Spec.LoadBalancerClass == nil || *svc.Spec.LoadBalancerClass != *old.Spec.LoadBalancerClass {
			e.invalid(specPath.Child("loadBalancerClass"), svc.Spec.LoadBalancerClass, "may not change once set")
		}
	}
	if needsHealthCheckNodePort(old) && needsHealthCheckNodePort(svc) && old.Spec.HealthCheckNodePort != 0 &&
		svc.Spec.HealthCheckNodePort != old.Spec.HealthCheckNodePort {
		e.forbidden(specPath.Child("healthCheckNodePort"), "field is immutable")
	}
	e.service(svc)
	return e.list()
}

func validateServiceStatus(svc, old *corev1.Service) field.ErrorList {
	e := metadata(&svc.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSLabel)
	p := field.NewPath("status", "loadBalancer", "ingress")
	if len(svc.Status.LoadBalancer.Ingress) > 0 && svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		e.forbidden(p, "may only be used when `spec.type` is \"LoadBalancer\"")
	}
	for i, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			e.ip(p.Index(i).Child("ip"), in.IP)
		}
		if in.IPMode != nil {
			if in.IP == "" {
				e.forbidden(p.Index(i).Child("ipMode"), "may not be specified when `ip` is not set")
			}
			maybeOneOf(&e, p.Index(i).Child("ipMode"), *in.IPMode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)
		}
		if in.Hostname != "" {
			e.dnsSubdomain(p.Index(i).Child("hostname"), in.Hostname)
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				e.invalid(p.Index(i).Child("hostname"), in.Hostname, "must be a DNS name, not an IP address")
			}
		}
	}
	return e.list()
}

func (e *problems) service(svc *corev1.Service) {
	p, spec := specPath, &svc.Spec
	headless := len(spec.ClusterIPs) == 1 && spec.ClusterIPs[0] == corev1.ClusterIPNone
	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		e.required(p.Child("ports"), "")
	}
	switch spec.Type {
	case corev1.ServiceTypeLoadBalancer:
		for i, port := range spec.Ports {
			if port.Port == 10250 {
				e.invalid(p.Child("ports").Index(i), port.Port, "may not expose port 10250 externally since it is used by kubelet")
			}
		}
		fallthrough
	case corev1.ServiceTypeNodePort:
		if headless {
			e.invalid(p.Child("clusterIPs").Index(0), spec.ClusterIPs[0], fmt.Sprintf("may not be set to 'None' for %s services", spec.Type))
		}
	case corev1.ServiceTypeExternalName:
		if len(spec.ClusterIPs) > 0 {
			e.forbidden(p.Child("clusterIPs"), "may not be set for ExternalName services")
		}
		if len(spec.IPFamilies) > 0 {
			e.forbidden(p.Child("ipFamilies"), "may not be set for ExternalName services")
		}
		if spec.IPFamilyPolicy != nil {
			e.forbidden(p.Child("ipFamilyPolicy"), "may not be set for ExternalName services")
		}
		if name := strings.TrimSuffix(spec.ExternalName, "."); name != "" {
			e.dnsSubdomain(p.Child("externalName"), name)
		} else {
			e.required(p.Child("externalName"), "")
		}
	}

	names := map[string]bool{}
	for i, port := range spec.Ports {
		e.servicePort(p.Child("ports").Index(i), port, len(spec.Ports) > 1, names)
	}
	e.labels(p.Child("selector"), spec.Selector)
	oneOf(e, p.Child("sessionAffinity"), spec.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	config := p.Child("sessionAffinityConfig")
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			const most = 86400
			if n := *c.ClientIP.TimeoutSeconds; n <= 0 || n > most {
				e.invalid(config.Child("clientIP", "timeoutSeconds"), n, fmt.Sprintf("must be greater than 0 and less than %d", most))
			}
		}
	case corev1.ServiceAffinityNone:
		if spec.SessionAffinityConfig != nil {
			e.forbidden(config, "must not be set when session affinity is None")
		}
	}
	e.serviceIPs(p, spec)
	for i, ip := range spec.ExternalIPs {
		at := p.Child("externalIPs").Index(i)
		if messages := validation.IsValidIPForLegacyField(at, ip, true, nil); len(messages) > 0 {
			e.add(messages...)
		} else {
			e.nonSpecialIP(at, ip)
		}
	}
	oneOf(e, p.Child("type"), spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)
	if spec.Type == corev1.ServiceTypeClusterIP {
		for i, port := range spec.Ports {
			if port.NodePort != 0 {
				e.forbidden(p.Child("ports").Index(i).Child("nodePort"), "may not be used when `type` is 'ClusterIP'")
			}
		}
	}
	e.servicePortsOnce(p.Child("ports"), spec.Ports)
	e.loadBalancer(p, spec)
	e.trafficPolicies(p, svc)
}

func (e *problems) servicePort(p *field.Path, port corev1.ServicePort, named bool, names map[string]bool) {
	if port.Name == "" {
		if named {
			e.required(p.Child("name"), "")
		}
	} else {
		e.dnsLabel(p.Child("name"), port.Name)
		if names[port.Name] {
			e.duplicate(p.Child("name"), port.Name)
		}
		names[port.Name] = true
	}
	e.port(p.Child("port"), port.Port)
	oneOf(e, p.Child("protocol"), port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	e.portOrName(p.Child("targetPort"), port.TargetPort)
	if port.AppProtocol != nil {
		e.qualifiedName(p.Child("appProtocol"), *port.AppProtocol)
	}
}

func (e *problems) servicePortsOnce(p *field.Path, ports []corev1.ServicePort) {
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	nodePorts, seen := map[key]bool{}, map[key]bool{}
	for i, port := range ports {
		if k := (key{port.Protocol, port.NodePort}); port.NodePort != 0 {
			if nodePorts[k] {
				e.duplicate(p.Index(i).Child("nodePort"), port.NodePort)
			}
			nodePorts[k] = true
		}
		k := key{port.Protocol, port.Port}
		if seen[k] {
			e.duplicate(p.Index(i), corev1.ServicePort{Protocol: port.Protocol, Port: port.Port})
		}
		seen[k] = true
	}
}

// ServiceAddressProblems is what is wrong with the addresses and families that
// a Service names, whatever the cluster has.
func ServiceAddressProblems(svc *corev1.Service) field.ErrorList {
	var e problems
	e.serviceIPs(specPath, &svc.Spec)
	return e.list()
}

func (e *problems) serviceIPs(p *field.Path, spec *corev1.ServiceSpec) {
	at := p.Child("clusterIPs")
	switch {
	case spec.ClusterIP == "" && len(spec.ClusterIPs) > 0:
		e.invalid(at, spec.ClusterIPs, "must be empty when `clusterIP` is not specified")
	case spec.ClusterIP != "" && len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] != spec.ClusterIP:
		e.invalid(at, spec.ClusterIPs, "first value must match `clusterIP`")
	}
	if len(spec.ClusterIPs) > 2 {
		e.invalid(at, spec.ClusterIPs, "may only hold up to 2 values")
	}
	families := map[bool]bool{}
	for i, ip := range spec.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			if len(spec.ClusterIPs) > 1 {
				e.invalid(at, spec.ClusterIPs, "'None' must be the first and only value")
			}
			break
		}
		if problems := validation.IsValidIPForLegacyField(at.Index(i), ip, true, nil); len(problems) > 0 {
			e.add(problems...)
			continue
		}
		address, err := netip.ParseAddr(ip)
		if err == nil && families[address.Is4()] {
			e.invalid(at, spec.ClusterIPs, "may specify no more than one IP for each IP family")
		}
		families[err == nil && address.Is4()] = true
		if err == nil && i < len(spec.IPFamilies) && (spec.IPFamilies[i] == corev1.IPv4Protocol) != address.Is4() {
			e.invalid(at.Index(i), ip, fmt.Sprintf("expected an %s value as indicated by `ipFamilies[%d]`", spec.IPFamilies[i], i))
		}
	}
	for i, family := range spec.IPFamilies {
		maybeOneOf(e, p.Child("ipFamilies").Index(i), family, corev1.IPv4Protocol, corev1.IPv6Protocol)
		if slices.Contains(spec.IPFamilies[:i], family) {
			e.duplicate(p.Child("ipFamilies").Index(i), family)
		}
	}
	if len(spec.IPFamilies) > 2 {
		e.invalid(p.Child("ipFamilies"), spec.IPFamilies, "may only hold up to 2 values")
	}
	if spec.IPFamilyPolicy != nil {
		maybeOneOf(e, p.Child("ipFamilyPolicy"), *spec.IPFamilyPolicy, corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)
	}
}

func (e *problems) loadBalancer(p *field.Path, spec *corev1.ServiceSpec) {
	const only = "may only be used when `type` is 'LoadBalancer'"
	is := spec.Type == corev1.ServiceTypeLoadBalancer
	if ranges := spec.LoadBalancerSourceRanges; len(ranges) > 0 {
		at := p.Child("loadBalancerSourceRanges")
		if !is {
			e.forbidden(at, only)
		}
		for i, r := range ranges {
			// Spaces around are allowed here and nowhere else.
			e.add(validation.IsValidCIDRForLegacyField(at.Index(i), strings.TrimSpace(r), true, nil)...)
		}
	}
	if spec.AllocateLoadBalancerNodePorts != nil && !is {
		e.forbidden(p.Child("allocateLoadBalancerNodePorts"), only)
	}
	if is && spec.AllocateLoadBalancerNodePorts == nil {
		e.required(p.Child("allocateLoadBalancerNodePorts"), "")
	}
	if spec.LoadBalancerClass != nil {
		if !is {
			e.forbidden(p.Child("loadBalancerClass"), only)
		}
		e.qualifiedName(p.Child("loadBalancerClass"), *spec.LoadBalancerClass)
	}
}

func (e *problems) trafficPolicies(p *field.Path, svc *corev1.Service) {
	spec := &svc.Spec
	external := p.Child("externalTrafficPolicy")
	switch {
	case spec.ExternalTrafficPolicy != "" && !externallyAccessible(svc):
		e.invalid(external, spec.ExternalTrafficPolicy, "may only be set for externally-accessible services")
	case externallyAccessible(svc):
		oneOf(e, external, spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	if spec.HealthCheckNodePort != 0 {
		if needsHealthCheckNodePort(svc) {
			e.port(p.Child("healthCheckNodePort"), spec.HealthCheckNodePort)
		} else {
			e.invalid(p.Child("healthCheckNodePort"), spec.HealthCheckNodePort, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
		}
	}
	internal := p.Child("internalTrafficPolicy")
	if spec.InternalTrafficPolicy != nil {
		maybeOneOf(e, internal, *spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	} else if needsClusterIP(svc) {
		e.required(internal, "")
	}
	if spec.TrafficDistribution != nil {
		maybeOneOf(e, p.Child("trafficDistribution"), *spec.TrafficDistribution,
			corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameNode, corev1.ServiceTrafficDistributionPreferSameZone)
	}
}

// Endpoint slices.

const (
	maxEndpoints     = 1000
	maxAddresses     = 100
	maxEndpointPorts = 20000
	maxHints         = 8
)

func validateEndpointSlice(s *discoveryv1.EndpointSlice) field.ErrorList {
	e := metadata(&s.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.endpointSlice(s)
	return e.list()
}

func validateEndpointSliceUpdate(s, old *discoveryv1.EndpointSlice) field.ErrorList {
	e := metadata(&s.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.endpointSlice(s)
	e.immutable(field.NewPath("addressType"), s.AddressType, old.AddressType)
	return e.list()
}

func (e *problems) endpointSlice(s *discoveryv1.EndpointSlice) {
	oneOf(e, field.NewPath("addressType"), s.AddressType, discoveryv1.AddressTypeFQDN, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6)
	endpoints := field.NewPath("endpoints")
	if len(s.Endpoints) > maxEndpoints {
		e.add(field.TooMany(endpoints, len(s.Endpoints), maxEndpoints))
		return
	}
	for i := range s.Endpoints {
		e.endpoint(endpoints.Index(i), &s.Endpoints[i], s.AddressType)
	}
	ports := field.NewPath("ports")
	if len(s.Ports) > maxEndpointPorts {
		e.add(field.TooMany(ports, len(s.Ports), maxEndpointPorts))
		return
	}
	names := map[string]bool{}
	for i, port := range s.Ports {
		at, name := ports.Index(i), ""
		if port.Name != nil {
			name = *port.Name
		}
		if name != "" {
			e.dnsLabel(at.Child("name"), name)
		}
		if names[name] {
			e.duplicate(at.Child("name"), name)
		}
		names[name] = true
		if port.Protocol == nil {
			e.required(at.Child("protocol"), "")
		} else {
			oneOf(e, at.Child("protocol"), *port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
		}
		if port.Port != nil {
			e.port(at.Child("port"), *port.Port)
		}
		if port.AppProtocol != nil {
			e.qualifiedName(at.Child("appProtocol"), *port.AppProtocol)
		}
	}
}

func (e *problems) endpoint(p *field.Path, ep *discoveryv1.Endpoint, addressType discoveryv1.AddressType) {
	addresses := p.Child("addresses")
	switch {
	case len(ep.Addresses) == 0:
		e.required(addresses, "must contain at least 1 address")
	case len(ep.Addresses) > maxAddresses:
		e.add(field.TooMany(addresses, len(ep.Addresses), maxAddresses))
	}
	for i, a := range ep.Addresses {
		at := addresses.Index(i)
		switch addressType {
		case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
			if problems := validation.IsValidIPForLegacyField(at, a, true, nil); len(problems) > 0 {
				e.add(problems...)
				continue
			}
			if ip, err := netip.ParseAddr(a); err == nil && ip.Is4() != (addressType == discoveryv1.AddressTypeIPv4) {
				e.invalid(at, a, fmt.Sprintf("must be an %s address", addressType))
			}
			e.nonSpecialIP(at, a)
		case discoveryv1.AddressTypeFQDN:
			e.add(validation.IsFullyQualifiedDomainName(at, a)...)
		}
	}
	if ep.NodeName != nil {
		e.dnsSubdomain(p.Child("nodeName"), *ep.NodeName)
	}
	e.labels(p.Child("deprecatedTopology"), ep.DeprecatedTopology)
	if _, ok := ep.DeprecatedTopology[corev1.LabelTopologyZone]; ok {
		e.invalid(p.Child("deprecatedTopology").Key(corev1.LabelTopologyZone), corev1.LabelTopologyZone, "reserved key cannot be set using topology")
	}
	if ep.Hostname != nil {
		e.dnsLabel(p.Child("hostname"), *ep.Hostname)
	}
	if ep.Hints == nil {
		return
	}
	hints := func(at *field.Path, names []string) {
		if len(names) > maxHints {
			e.add(field.TooMany(at, len(names), maxHints))
			return
		}
		for i, name := range names {
			if name == "" {
				e.required(at.Index(i).Child("name"), "")
			}
			if slices.Contains(names[:i], name) {
				e.duplicate(at.Index(i), name)
			}
		}
	}
	var zones, nodes []string
	for _, z := range ep.Hints.ForZones {
		zones = append(zones, z.Name)
	}
	for _, n := range ep.Hints.ForNodes {
		nodes = append(nodes, n.Name)
	}
	hints(p.Child("hints", "forZones"), zones)
	hints(p.Child("hints", "forNodes"), nodes)
}
