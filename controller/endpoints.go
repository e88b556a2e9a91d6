package controller

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const managedByEndpoints = "endpoints.kubernetes.io/managed-by"

// newEndpoints lists, in one Endpoints object per Service, what the
// EndpointSlices list: older clients read it.
func newEndpoints(e *env) *Controller {
	c := &endpointsController{env: e}
	return &Controller{
		Name:      "endpoints",
		Workers:   2,
		Inputs:    append(servicesOf(e), Input{endpoints, self}, Input{services, c.noteDeleted}),
		Outputs:   []Output{{endpoints, "objects of Services with a selector"}},
		Reconcile: c.reconcile,
	}
}

type endpointsController struct {
	*env
	// deleted are the Services that were seen to go: their Endpoints go with
	// them, also those made by hand. Endpoints that never had a Service stay.
	deleted sync.Map
}

func (c *endpointsController) noteDeleted(change Change) []Key {
	key := keyOf(change.either())
	if change.New != nil {
		c.deleted.Delete(key)
		return nil // servicesOf tells of it
	}
	c.deleted.Store(key, true)
	return []Key{key}
}

func (c *endpointsController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	current, exists := get[*corev1.Endpoints](c.cache, endpoints, key.Namespace, key.Name)
	s, ok := get[*corev1.Service](c.cache, services, key.Namespace, key.Name)
	if !ok {
		if _, seen := c.deleted.Load(key); exists && (seen || current.Labels[managedByEndpoints] == endpointsMaker) {
			if err := c.delete(ctx, endpoints, current, metav1.DeleteOptions{}); err != nil {
				return 0, err
			}
		}
		c.deleted.Delete(key)
		return 0, nil
	}
	if s.DeletionTimestamp != nil || len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName {
		return 0, nil // the user's to write
	}
	want := &corev1.Endpoints{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name},
	}
	if exists {
		want = edit(current)
	}
	want.Labels = copyLabels(s.Labels)
	want.Labels[managedByEndpoints] = endpointsMaker
	if headless(s) {
		want.Labels[corev1.IsHeadlessService] = ""
	}
	over := false
	want.Subsets, over = subsets(s, backends(c.env, s))
	if over {
		if want.Annotations == nil {
			want.Annotations = map[string]string{}
		}
		want.Annotations[corev1.EndpointsOverCapacity] = "truncated"
	} else {
		delete(want.Annotations, corev1.EndpointsOverCapacity)
	}
	var err error
	switch {
	case !exists:
		_, err = c.create(ctx, endpoints, want)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			err = nil
		}
	case !maps.Equal(want.Labels, current.Labels) || !maps.Equal(want.Annotations, current.Annotations) ||
		!equality.Semantic.DeepEqual(want.Subsets, current.Subsets):
		_, err = c.update(ctx, endpoints, want)
	}
	return 0, err
}

// subsets groups the backends by their ports, and says whether some were left
// out because there were too many: those that are not ready first.
func subsets(s *corev1.Service, all []backend) ([]corev1.EndpointSubset, bool) {
	family := families(s)[0]
	ready, unready := 0, 0
	for _, b := range all {
		if len(b.addresses(family)) == 0 || b.terminated && !s.Spec.PublishNotReadyAddresses {
			continue
		}
		if b.ready {
			ready++
		} else {
			unready++
		}
	}
	over := ready+unready > addressesMax
	leftReady := min(ready, addressesMax)
	leftUnready := min(unready, addressesMax-leftReady)

	groups := map[string]*corev1.EndpointSubset{}
	for _, b := range all {
		addresses := b.addresses(family)
		if len(addresses) == 0 || b.terminated && !s.Spec.PublishNotReadyAddresses {
			continue
		}
		if len(b.ports) == 0 && !headless(s) {
			continue
		}
		left := &leftUnready
		if b.ready {
			left = &leftReady
		}
		if *left == 0 {
			continue
		}
		*left--
		key := portsKey(b.ports)
		if groups[key] == nil {
			groups[key] = &corev1.EndpointSubset{Ports: endpointPorts(b.ports)}
		}
		address := corev1.EndpointAddress{IP: addresses[0], Hostname: b.hostname, TargetRef: b.reference()}
		if b.node != "" {
			address.NodeName = &b.node
		}
		if b.ready {
			groups[key].Addresses = append(groups[key].Addresses, address)
		} else {
			groups[key].NotReadyAddresses = append(groups[key].NotReadyAddresses, address)
		}
	}
	var found []corev1.EndpointSubset
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		slices.SortFunc(groups[key].Addresses, byAddress)
		slices.SortFunc(groups[key].NotReadyAddresses, byAddress)
		found = append(found, *groups[key])
	}
	return found, over
}

func endpointPorts(ports []discoveryv1.EndpointPort) []corev1.EndpointPort {
	var found []corev1.EndpointPort
	for _, p := range ports {
		found = append(found, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
	}
	return found
}

func addressFamily(ip string) (discoveryv1.AddressType, bool) {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return "", false
	}
	return familyOf(a), true
}
