package api

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// kubernetesService is the name of the service by which pods find the API.
	kubernetesService = "kubernetes"
	// dnsServiceName is that of DNS.
	dnsServiceName = "kube-dns"
)

// system is the server acting on its own account.
var system = User{Name: "system:apiserver", Groups: []string{groupMasters}}

// EnsureDefaults creates what every cluster has and is not there: its
// namespaces, the services kubernetes and kube-dns, what systemObjects lists, the roles of the
// system and the levels of priority, which it also keeps up, and, once, a storage
// class. The leader calls it
// when it begins to lead; it frees leftover reservations, too.
func (s *Server) EnsureDefaults(ctx context.Context) error {
	c := s.own()
	for _, name := range systemNamespaces {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := ensure(ctx, c, ns); err != nil {
			return err
		}
	}
	for _, obj := range append([]Object{s.apiService(), s.dnsService(), s.clusterSettings()}, s.systemObjects()...) {
		if err := ensure(ctx, c, obj); err != nil {
			return err
		}
	}
	if err := ensureRoles(ctx, c); err != nil {
		return err
	}
	if err := ensureFlow(ctx, c); err != nil {
		return err
	}
	if err := ensureLocalPath(ctx, c); err != nil {
		return err
	}
	return s.repair(ctx)
}

func (s *Server) apiService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: kubernetesService, Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: nth(s.cfg.ServiceCIDR, 1).String(),
			Ports: []corev1.ServicePort{{Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(6443)}},
		},
	}
}

// dnsService is the service of the cluster's DNS, by the name and the labels
// under which manifests and tools look for it. It has no endpoints: every node
// answers at its address itself.
func (s *Server) dnsService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: dnsServiceName, Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "KubeDNS"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: nth(s.cfg.ServiceCIDR, 10).String(),
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
}

// ensure creates an object unless one of its name exists.
func ensure(ctx context.Context, c Client, obj Object) error {
	r := GVROf(obj)
	_, err := c.Get(ctx, r, obj.GetNamespace(), obj.GetName(), metav1.GetOptions{})
	if err == nil {
		return nil
	}
	if apierrors.IsNotFound(err) {
		_, err = c.Create(ctx, r, obj.GetNamespace(), "", obj, metav1.CreateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %q: %w", r.Resource, obj.GetName(), err)
	}
	return nil
}

// SetMasters keeps the endpoints of the kubernetes service: the addresses at
// which the masters serve the API.
func (s *Server) SetMasters(ctx context.Context, masters []netip.AddrPort) error {
	masters = slices.SortedFunc(slices.Values(masters), netip.AddrPort.Compare)
	masters = slices.Compact(masters)
	if len(masters) == 0 {
		return errors.New("set masters: none given")
	}
	port := int32(masters[0].Port())
	meta := metav1.ObjectMeta{Name: kubernetesService, Namespace: metav1.NamespaceDefault}
	ep := &corev1.Endpoints{ObjectMeta: meta}
	// The endpoint controllers leave alone what says that it is not theirs.
	ep.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: port, Protocol: corev1.ProtocolTCP}}}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: meta, AddressType: discoveryv1.AddressTypeIPv4}
	if masters[0].Addr().Is6() {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: kubernetesService}
	name, tcp, ready := "https", corev1.ProtocolTCP, true
	slice.Ports = []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}}
	for _, m := range masters {
		ip := m.Addr().String()
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: ip})
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	ep.Subsets = []corev1.EndpointSubset{subset}
	c := s.own()
	return errors.Join(put(ctx, c, ep, sameEndpoints), put(ctx, c, slice, sameSlice))
}

func sameEndpoints(a, b Object) bool {
	return apiequality.Semantic.DeepEqual(a.(*corev1.Endpoints).Subsets, b.(*corev1.Endpoints).Subsets)
}

func sameSlice(a, b Object) bool {
	x, y := a.(*discoveryv1.EndpointSlice), b.(*discoveryv1.EndpointSlice)
	addresses := func(s *discoveryv1.EndpointSlice) []string {
		var all []string
		for _, e := range s.Endpoints {
			all = append(all, e.Addresses...)
		}
		return all
	}
	return slices.Equal(addresses(x), addresses(y)) && apiequality.Semantic.DeepEqual(x.Ports, y.Ports)
}

// put makes an object be as given: nothing is written if it is already.
func put(ctx context.Context, c Client, obj Object, same func(a, b Object) bool) error {
	r := GVROf(obj)
	have, err := c.Get(ctx, r, obj.GetNamespace(), obj.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = c.Create(ctx, r, obj.GetNamespace(), "", obj, metav1.CreateOptions{})
	case err == nil && !same(have, obj):
		_, err = c.Update(ctx, r, obj.GetNamespace(), obj, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("set %s %q: %w", r.Resource, obj.GetName(), err)
	}
	return nil
}
