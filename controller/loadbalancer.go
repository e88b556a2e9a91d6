package controller

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

const (
	balancerComponent = "load-balancer-controller"

	// balancerSetting, in the cluster's settings, lists the addresses that
	// services of type LoadBalancer are given. Without it they get the nodes'.
	balancerSetting = "load-balancer.addresses"
)

// nodePortsTaken are the ports that every node needs for itself. A service that
// is given the nodes' addresses cannot have them.
var nodePortsTaken = []corev1.ServicePort{
	{Protocol: corev1.ProtocolTCP, Port: 6443}, {Protocol: corev1.ProtocolTCP, Port: 10250},
	{Protocol: corev1.ProtocolTCP, Port: 7946}, {Protocol: corev1.ProtocolUDP, Port: 7946},
	{Protocol: corev1.ProtocolUDP, Port: 8472}, {Protocol: corev1.ProtocolUDP, Port: 51820},
}

// newLoadBalancer gives addresses to services of type LoadBalancer. Which have
// which is in their status and nowhere else: the address of a service that is
// deleted or becomes of another type is free.
func newLoadBalancer(e *env) *Controller {
	c := balancerController{e}
	return &Controller{
		Name:    "loadbalancer",
		Workers: 1, // so that no two services are given one address
		Inputs: []Input{
			{services, c.keysOfService}, {configMaps, c.keysOfSettings}, {nodes, c.keysOfNode}, {endpointSlices, c.keysOfSlice},
		},
		Outputs:   []Output{{services, "status.loadBalancer"}},
		Reconcile: c.reconcile,
	}
}

type balancerController struct{ *env }

// ours are all services that this controller looks after, the oldest first.
func (c balancerController) ours() []*corev1.Service {
	all := slices.Clone(indexed[*corev1.Service](c.cache, services, servicesBalanced, ""))
	slices.SortFunc(all, olderService)
	return all
}

func olderService(a, b *corev1.Service) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func (c balancerController) everyKey() (keys []Key) {
	for _, s := range indexed[*corev1.Service](c.cache, services, servicesBalanced, "") {
		keys = append(keys, keyOf(s))
	}
	return keys
}

// keysOfService: what one service takes or gives back may matter to all.
func (c balancerController) keysOfService(change Change) []Key {
	side := func(o api.Object) *corev1.Service {
		if s, ok := o.(*corev1.Service); ok && api.OwnLoadBalancer(s) && s.DeletionTimestamp == nil {
			return s
		}
		return nil
	}
	was, is := side(change.Old), side(change.New)
	switch {
	case was == nil && is == nil:
		return nil
	case was == nil && change.Old == nil && len(is.Status.LoadBalancer.Ingress) > 0: // seen at the start
		return []Key{keyOf(is)}
	case was == nil || is == nil || !slices.EqualFunc(was.Spec.Ports, is.Spec.Ports, samePort) || !slices.Equal(ingressOf(was), ingressOf(is)):
		return append(c.everyKey(), keyOf(change.either()))
	}
	return []Key{keyOf(is)}
}

func samePort(a, b corev1.ServicePort) bool { return a.Port == b.Port && a.Protocol == b.Protocol }

func (c balancerController) keysOfSettings(change Change) []Key {
	if o := change.either(); o.GetNamespace() != metav1.NamespaceSystem || o.GetName() != api.SettingsName {
		return nil
	}
	value := func(o api.Object) string {
		if m, ok := o.(*corev1.ConfigMap); ok {
			return m.Data[balancerSetting]
		}
		return ""
	}
	if change.Old != nil && value(change.Old) == value(change.New) {
		return nil
	}
	return c.everyKey()
}

func (c balancerController) keysOfNode(change Change) []Key {
	if was, ok := change.Old.(*corev1.Node); ok && change.New != nil && change.Old != change.New {
		is := change.New.(*corev1.Node)
		if slices.Equal(nodeAddresses(was), nodeAddresses(is)) && excludesBalancers(was) == excludesBalancers(is) && cooling(was) == cooling(is) {
			return nil
		}
	}
	return c.everyKey()
}

func (c balancerController) keysOfSlice(change Change) []Key {
	var keys []Key
	for _, o := range change.sides() {
		key := Key{Namespace: o.GetNamespace(), Name: o.GetLabels()[discoveryv1.LabelServiceName]}
		if s, ok := get[*corev1.Service](c.cache, services, key.Namespace, key.Name); ok && api.OwnLoadBalancer(s) && localOnly(s) {
			keys = append(keys, key)
		}
	}
	return keys
}

func localOnly(s *corev1.Service) bool {
	return s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func excludesBalancers(n *corev1.Node) bool {
	_, yes := n.Labels[corev1.LabelNodeExcludeBalancers]
	return yes
}

// nodeAddresses are a node's own.
func nodeAddresses(n *corev1.Node) (all []netip.Addr) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			all = append(all, ip)
		}
	}
	return all
}

// ingressOf are the addresses that a service has.
func ingressOf(s *corev1.Service) (all []netip.Addr) {
	for _, in := range s.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(in.IP); err == nil {
			all = append(all, a.Unmap())
		}
	}
	return all
}

func (c balancerController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	s, ok := get[*corev1.Service](c.cache, services, key.Namespace, key.Name)
	if !ok || s.DeletionTimestamp != nil || !api.OwnLoadBalancer(s) {
		return 0, nil
	}
	var (
		want   []netip.Addr
		why    string
		others = slices.DeleteFunc(c.ours(), func(o *corev1.Service) bool { return o.UID == s.UID || o.DeletionTimestamp != nil })
	)
	setting := ""
	settings, configured := get[*corev1.ConfigMap](c.cache, configMaps, metav1.NamespaceSystem, api.SettingsName)
	if configured {
		setting = strings.TrimSpace(settings.Data[balancerSetting])
	}
	if setting == "" {
		addresses, serving := c.nodesFor(s)
		if want, why = fromNodes(s, others, addresses); why == "" && len(want) == 0 && serving > 0 {
			why = fmt.Sprintf("none of the %d nodes that serve it has an address of %s", serving, families(s)[0])
		}
	} else {
		ranges, err := parseAddressRanges(setting, c.families()...)
		if err != nil {
			c.events.record(balancerComponent, about(settings), corev1.EventTypeWarning, "InvalidSetting", "%s: %v", balancerSetting, err)
			return 0, nil // what is given stays as it is, until somebody mends this
		}
		want, why = fromRanges(s, others, ranges, c.taken(s))
	}
	if why != "" {
		c.events.record(balancerComponent, about(s), corev1.EventTypeWarning, "AllocationFailed", "Failed to allocate IP for %q: %s", keyOf(s), why)
	}
	had := ingressOf(s)
	if slices.Equal(had, want) {
		return 0, nil
	}
	changed := edit(s)
	vip := corev1.LoadBalancerIPModeVIP
	changed.Status.LoadBalancer.Ingress = nil
	for _, a := range want {
		changed.Status.LoadBalancer.Ingress = append(changed.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &vip})
	}
	if _, err := c.update(ctx, services, changed, "status"); err != nil {
		return 0, err
	}
	switch {
	case len(want) == 0:
		c.events.record(balancerComponent, about(s), corev1.EventTypeNormal, "IPReleased", "Released IP %s", quoted(had))
	case setting == "":
		c.events.record(balancerComponent, about(s), corev1.EventTypeNormal, "UpdatedIngressIP", "LoadBalancer Ingress IP addresses updated: %s", joined(want))
	default:
		c.events.record(balancerComponent, about(s), corev1.EventTypeNormal, "IPAllocated", "Assigned IP %s", quoted(want))
	}
	return 0, nil
}

func joined(all []netip.Addr) string {
	var parts []string
	for _, a := range all {
		parts = append(parts, a.String())
	}
	return strings.Join(parts, ", ")
}

func quoted(all []netip.Addr) string { return fmt.Sprintf("[%q]", joined(all)) }

// nodesFor are the addresses, in order, of the nodes that can serve a service to
// the outside, one of each of its families; and how many nodes these are.
func (c balancerController) nodesFor(s *corev1.Service) (all []netip.Addr, nodesServing int) {
	serving := map[string]bool{}
	if localOnly(s) {
		for _, slice := range indexed[*discoveryv1.EndpointSlice](c.cache, endpointSlices, slicesByService, s.Namespace+"/"+s.Name) {
			for _, ep := range slice.Endpoints {
				if ep.NodeName != nil && (ep.Conditions.Ready == nil || *ep.Conditions.Ready) {
					serving[*ep.NodeName] = true
				}
			}
		}
	}
	for _, n := range list[*corev1.Node](c.cache, nodes, "") {
		if c.states.of(n).out() || cooling(n) || excludesBalancers(n) || localOnly(s) && !serving[n.Name] {
			continue
		}
		nodesServing++
		for _, family := range families(s) {
			if own := addressesOf(family, nodeAddresses(n)); len(own) > 0 {
				all = append(all, own[0])
			}
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all), nodesServing
}

// addressesOf are those of some addresses that are of a family.
func addressesOf(family discoveryv1.AddressType, all []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(all), func(a netip.Addr) bool { return familyOf(a) != family })
}

// taken says what else has an address: a node, or another service that names it
// among its external ones.
func (c balancerController) taken(s *corev1.Service) map[netip.Addr]string {
	all := map[netip.Addr]string{}
	for _, o := range list[*corev1.Service](c.cache, services, "") {
		for _, ip := range o.Spec.ExternalIPs {
			if a, err := netip.ParseAddr(ip); err == nil && o.UID != s.UID {
				all[a] = "service " + keyOf(o).String()
			}
		}
	}
	for _, n := range list[*corev1.Node](c.cache, nodes, "") {
		for _, a := range nodeAddresses(n) {
			all[a] = "node " + n.Name
		}
	}
	return all
}

// fromRanges chooses a service's addresses, one of each of its families: the one
// that it asks for, or the one that it has, or the first that is free. Where one
// is missing it has none, and this says why; but where two families are merely
// preferred one is enough, if no range has the other. Others are sorted, the
// oldest first; taken says what else has an address.
func fromRanges(s *corev1.Service, others []*corev1.Service, ranges []addressRange, taken map[netip.Addr]string) (want []netip.Addr, why string) {
	prefers := s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack
	all := families(s)
	if asked, err := netip.ParseAddr(s.Spec.LoadBalancerIP); s.Spec.LoadBalancerIP != "" && (err != nil || !slices.Contains(all, familyOf(asked))) {
		return nil, fmt.Sprintf("invalid spec.loadBalancerIP %q", s.Spec.LoadBalancerIP)
	}
	for _, family := range all {
		of := slices.DeleteFunc(slices.Clone(ranges), func(r addressRange) bool { return familyOf(r.from) != family })
		a, problem := fromRangesOf(family, s, others, of, taken)
		switch {
		case problem == "":
			want = append(want, a)
		case !prefers || len(of) > 0:
			return nil, problem
		default:
			why = problem
		}
	}
	if len(want) > 0 {
		why = ""
	}
	return want, why
}

// fromRangesOf chooses a service's address of one family, of ranges of it.
func fromRangesOf(family discoveryv1.AddressType, s *corev1.Service, others []*corev1.Service, ranges []addressRange, taken map[netip.Addr]string) (_ netip.Addr, why string) {
	if len(ranges) == 0 {
		return netip.Addr{}, fmt.Sprintf("%s has no range of %s", balancerSetting, family)
	}
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(r addressRange) bool { return r.contains(a) })
	}
	had := ingressOf(s)
	holder := func(a netip.Addr) string {
		if who := taken[a]; who != "" {
			return who
		}
		for _, o := range others {
			// Of two that have one address the older keeps it.
			if slices.Contains(ingressOf(o), a) && (!slices.Contains(had, a) || olderService(o, s) < 0) {
				return "service " + keyOf(o).String()
			}
		}
		return ""
	}
	if asked, err := netip.ParseAddr(s.Spec.LoadBalancerIP); err == nil && familyOf(asked) == family {
		switch {
		case !inside(asked):
			return asked, fmt.Sprintf("%q is in none of the ranges %s", asked, joinedRanges(ranges))
		case holder(asked) != "":
			return asked, fmt.Sprintf("%q is already in use by %s", asked, holder(asked))
		}
		return asked, ""
	}
	for _, a := range had {
		if inside(a) && holder(a) == "" {
			return a, ""
		}
	}
	used := map[netip.Addr]bool{}
	for _, o := range others {
		for _, a := range ingressOf(o) {
			used[a] = true
		}
	}
	for _, r := range ranges {
		for a := r.from; r.contains(a); a = a.Next() {
			if taken[a] == "" && !used[a] {
				return a, ""
			}
		}
	}
	return netip.Addr{}, "no available IPs in " + joinedRanges(ranges)
}

// fromNodes gives a service the addresses of nodes, all or the one that it asks
// for, unless an older service has one of its ports there, or the nodes
// themselves.
func fromNodes(s *corev1.Service, others []*corev1.Service, addresses []netip.Addr) ([]netip.Addr, string) {
	for _, p := range s.Spec.Ports {
		same := func(o corev1.ServicePort) bool { return samePort(p, o) }
		if slices.ContainsFunc(nodePortsTaken, same) {
			return nil, fmt.Sprintf("port %d/%s of the nodes' addresses is the nodes' own; set %s in configmap %s/%s to use others", p.Port, p.Protocol, balancerSetting, metav1.NamespaceSystem, api.SettingsName)
		}
		for _, o := range others {
			shared := slices.ContainsFunc(families(o), func(f discoveryv1.AddressType) bool { return slices.Contains(families(s), f) })
			if shared && olderService(o, s) < 0 && slices.ContainsFunc(o.Spec.Ports, same) {
				return nil, fmt.Sprintf("port %d/%s of the nodes' addresses is in use by service %s", p.Port, p.Protocol, keyOf(o))
			}
		}
	}
	if asked := s.Spec.LoadBalancerIP; asked != "" {
		if i := slices.IndexFunc(addresses, func(a netip.Addr) bool { return a.String() == asked }); i >= 0 {
			return addresses[i : i+1], ""
		}
		return nil, fmt.Sprintf("%q is not the address of a node that serves it", asked)
	}
	return addresses, ""
}

// addressRange is from its first address to its last, both included.
type addressRange struct{ from, to netip.Addr }

func (r addressRange) contains(a netip.Addr) bool {
	return a.IsValid() && r.from.Compare(a) <= 0 && a.Compare(r.to) <= 0
}

func (r addressRange) String() string { return r.from.String() + "-" + r.to.String() }

func joinedRanges(all []addressRange) string {
	var parts []string
	for _, r := range all {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, ", ")
}

// parseAddressRanges reads addresses, prefixes and ranges "first-last",
// separated by commas or white space, of families that the cluster has.
func parseAddressRanges(text string, served ...discoveryv1.AddressType) ([]addressRange, error) {
	var all []addressRange
	for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		r, err := parseAddressRange(part)
		if err == nil && !slices.Contains(served, familyOf(r.from)) {
			err = fmt.Errorf("%q: only %s addresses can be given", part, served[0])
		}
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func parseAddressRange(part string) (r addressRange, err error) {
	if from, to, ok := strings.Cut(part, "-"); ok {
		if r.from, err = netip.ParseAddr(from); err == nil {
			r.to, err = netip.ParseAddr(to)
		}
	} else if p, perr := netip.ParsePrefix(part); perr == nil {
		r.from = p.Masked().Addr()
		r.to = lastOf(p)
	} else {
		r.from, err = netip.ParseAddr(part)
		r.to = r.from
	}
	switch {
	case err != nil:
		return r, fmt.Errorf("%q is no address, prefix or range such as 10.0.0.240-10.0.0.250", part)
	case r.from.Is4() != r.to.Is4():
		return r, fmt.Errorf("%q begins in one family of addresses and ends in another", part)
	case r.to.Less(r.from):
		return r, fmt.Errorf("%q ends before it begins", part)
	}
	return r, nil
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		if covered := p.Bits() - i*8; covered < 8 {
			b[i] |= byte(0xff >> max(covered, 0))
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
