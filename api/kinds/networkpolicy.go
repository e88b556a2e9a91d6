package kinds

import (
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func defaultNetworkPolicy(n *networkingv1.NetworkPolicy) {
	ports := func(all []networkingv1.NetworkPolicyPort) {
		for i := range all {
			defaultPtr(&all[i].Protocol, corev1.ProtocolTCP)
		}
	}
	for i := range n.Spec.Ingress {
		ports(n.Spec.Ingress[i].Ports)
	}
	for i := range n.Spec.Egress {
		ports(n.Spec.Egress[i].Ports)
	}
	if len(n.Spec.PolicyTypes) == 0 {
		n.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(n.Spec.Egress) > 0 {
			n.Spec.PolicyTypes = append(n.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
}

func validateNetworkPolicy(n *networkingv1.NetworkPolicy) field.ErrorList {
	e := metadata(&n.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.networkPolicy(&n.Spec)
	return e.list()
}

func validateNetworkPolicyUpdate(n, old *networkingv1.NetworkPolicy) field.ErrorList {
	e := metadata(&n.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.networkPolicy(&n.Spec)
	return e.list()
}

func (e *problems) networkPolicy(spec *networkingv1.NetworkPolicySpec) {
	p := specPath
	labelSelector(e, p.Child("podSelector"), &spec.PodSelector)
	rule := func(at *field.Path, ports []networkingv1.NetworkPolicyPort, direction string, peers []networkingv1.NetworkPolicyPeer) {
		for i := range ports {
			e.policyPort(at.Child("ports").Index(i), &ports[i])
		}
		for i := range peers {
			e.policyPeer(at.Child(direction).Index(i), &peers[i])
		}
	}
	for i, r := range spec.Ingress {
		rule(p.Child("ingress").Index(i), r.Ports, "from", r.From)
	}
	for i, r := range spec.Egress {
		rule(p.Child("egress").Index(i), r.Ports, "to", r.To)
	}
	types := p.Child("policyTypes")
	if len(spec.PolicyTypes) > 2 {
		e.invalid(types, &spec.PolicyTypes, "may not specify more than two policyTypes")
		return
	}
	for i, t := range spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			e.add(field.NotSupported(types.Index(i), t, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}))
		}
	}
}

func (e *problems) policyPort(p *field.Path, port *networkingv1.NetworkPolicyPort) {
	if port.Protocol != nil {
		if at := *port.Protocol; at != corev1.ProtocolTCP && at != corev1.ProtocolUDP && at != corev1.ProtocolSCTP {
			e.add(field.NotSupported(p.Child("protocol"), at, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}))
		}
	}
	end := p.Child("endPort")
	switch {
	case port.Port == nil:
		if port.EndPort != nil {
			e.invalid(end, *port.EndPort, "may not be specified when `port` is not specified")
		}
	case port.Port.Type == intstr.String:
		if port.EndPort != nil {
			e.invalid(end, *port.EndPort, "may not be specified when `port` is non-numeric")
		}
		e.each(p.Child("port"), port.Port.StrVal, validation.IsValidPortName(port.Port.StrVal))
	default:
		e.port(p.Child("port"), port.Port.IntVal)
		if port.EndPort != nil {
			if *port.EndPort < port.Port.IntVal {
				e.invalid(end, port.Port.IntVal, "must be greater than or equal to `port`")
			}
			e.port(end, *port.EndPort)
		}
	}
}

func (e *problems) policyPeer(p *field.Path, peer *networkingv1.NetworkPolicyPeer) {
	if peer.PodSelector != nil {
		labelSelector(e, p.Child("podSelector"), peer.PodSelector)
	}
	if peer.NamespaceSelector != nil {
		labelSelector(e, p.Child("namespaceSelector"), peer.NamespaceSelector)
	}
	if peer.IPBlock != nil {
		e.ipBlock(p.Child("ipBlock"), peer.IPBlock)
	}
	selects := peer.PodSelector != nil || peer.NamespaceSelector != nil
	if peer.IPBlock == nil && !selects {
		e.required(p, "must specify a peer")
	} else if peer.IPBlock != nil && selects {
		e.forbidden(p, "may not specify both ipBlock and another peer")
	}
}

func (e *problems) ipBlock(p *field.Path, b *networkingv1.IPBlock) {
	if b.CIDR == "" {
		e.required(p.Child("cidr"), "")
		return
	}
	e.add(validation.IsValidCIDRForLegacyField(p.Child("cidr"), b.CIDR, true, nil)...)
	whole, wholeErr := netip.ParsePrefix(b.CIDR)
	for i, except := range b.Except {
		at := p.Child("except").Index(i)
		e.add(validation.IsValidCIDRForLegacyField(at, except, true, nil)...)
		part, err := netip.ParsePrefix(except)
		if err == nil && wholeErr == nil && (!whole.Contains(part.Addr()) || whole.Bits() >= part.Bits()) {
			e.invalid(at, except, "must be a strict subset of `cidr`")
		}
	}
}

func networkPolicyWarnings(n *networkingv1.NetworkPolicy) []string {
	var out []string
	cidr := func(at *field.Path, value string) {
		if len(validation.IsValidCIDRForLegacyField(at, value, true, nil)) == 0 {
			out = append(out, validation.GetWarningsForCIDR(at, value)...)
		}
	}
	peers := func(at *field.Path, all []networkingv1.NetworkPolicyPeer) {
		for i, peer := range all {
			if peer.IPBlock == nil {
				continue
			}
			at := at.Index(i).Child("ipBlock")
			cidr(at.Child("cidr"), peer.IPBlock.CIDR)
			for j, except := range peer.IPBlock.Except {
				cidr(at.Child("except").Index(j), except)
			}
		}
	}
	for i, r := range n.Spec.Ingress {
		peers(specPath.Child("ingress").Index(i).Child("from"), r.From)
	}
	for i, r := range n.Spec.Egress {
		peers(specPath.Child("egress").Index(i).Child("to"), r.To)
	}
	return out
}

var networkPolicyColumns = []metav1.TableColumnDefinition{nameColumn, text("Pod-Selector", docs(networkingv1.NetworkPolicySpec{}, "podSelector")), ageColumn}

func networkPolicyCells(n *networkingv1.NetworkPolicy, now time.Time) []any {
	return []any{n.Name, metav1.FormatLabelSelector(&n.Spec.PodSelector), age(n.CreationTimestamp, now)}
}
