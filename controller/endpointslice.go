package controller

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// Who manages a slice, as its label says.
const (
	slicesManager  = "endpointslice-controller.k8s.io"
	mirrorManager  = "endpointslicemirroring-controller.k8s.io"
	addressesMax   = 1000 // of one subset of Endpoints
	endpointsMaker = "endpoint-controller"
)

// newEndpointSlices lists, in EndpointSlices, the pods behind each Service
// that has a selector.
func newEndpointSlices(e *env) *Controller {
	c := sliceController{e, slicesManager}
	return &Controller{
		Name:    "endpointslice",
		Workers: 2,
		Inputs:  append(servicesOf(e), Input{endpointSlices, c.keysOfSlice}),
		Outputs: []Output{{endpointSlices, "objects managed by " + slicesManager}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			s, ok := get[*corev1.Service](e.cache, services, key.Namespace, key.Name)
			if !ok || s.DeletionTimestamp != nil || len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName {
				// Slices without their Service are the garbage collector's;
				// those of one that no longer selects are ours.
				if !ok || s.DeletionTimestamp != nil {
					return 0, nil
				}
				return 0, c.write(ctx, s, nil, nil)
			}
			return 0, c.write(ctx, s, serviceSliceLabels(s), serviceGroups(s, backends(e, s)))
		},
	}
}

// newMirror copies hand-made Endpoints of Services without a selector into
// EndpointSlices, which is where readers look.
func newMirror(e *env) *Controller {
	c := sliceController{e, mirrorManager}
	return &Controller{
		Name:    "endpointslicemirroring",
		Workers: 1,
		Inputs:  []Input{{endpoints, self}, {services, self}, {endpointSlices, c.keysOfSlice}},
		Outputs: []Output{{endpointSlices, "objects managed by " + mirrorManager}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			ep, ok := get[*corev1.Endpoints](e.cache, endpoints, key.Namespace, key.Name)
			if !ok || !mirrored(e, ep) {
				return 0, c.write(ctx, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}, nil, nil)
			}
			return 0, c.write(ctx, ep, mirrorLabels(ep), mirrorGroups(ep))
		},
	}
}

// sliceController writes the slices that one manager's label marks.
type sliceController struct {
	*env
	manager string
}

func (c sliceController) keysOfSlice(change Change) []Key {
	var keys []Key
	for _, o := range change.sides() {
		if l := o.GetLabels(); l[discoveryv1.LabelManagedBy] == c.manager && l[discoveryv1.LabelServiceName] != "" {
			keys = append(keys, Key{Namespace: o.GetNamespace(), Name: l[discoveryv1.LabelServiceName]})
		}
	}
	return keys
}

// reservedLabels of slices are never copied from what they are made of.
var reservedLabels = []string{discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy, corev1.IsHeadlessService}

func copyLabels(from map[string]string) map[string]string {
	to := maps.Clone(from)
	if to == nil {
		to = map[string]string{}
	}
	maps.DeleteFunc(to, func(k, _ string) bool { return slices.Contains(reservedLabels, k) })
	return to
}

func serviceSliceLabels(s *corev1.Service) map[string]string {
	l := copyLabels(s.Labels)
	if headless(s) {
		l[corev1.IsHeadlessService] = ""
	}
	l[discoveryv1.LabelServiceName], l[discoveryv1.LabelManagedBy] = s.Name, slicesManager
	return l
}

// serviceGroups sorts the backends of a Service by family and ports. A family
// without any is still one group, so that a slice says: nobody.
func serviceGroups(s *corev1.Service, all []backend) []sliceGroup {
	var groups []sliceGroup
	for _, family := range families(s) {
		byPorts := map[string]int{}
		first := len(groups)
		for _, b := range all {
			addresses := b.addresses(family)
			if len(addresses) == 0 {
				continue
			}
			key := portsKey(b.ports)
			i, ok := byPorts[key]
			if !ok {
				i = len(groups)
				byPorts[key] = i
				groups = append(groups, sliceGroup{family: family, ports: b.ports})
			}
			groups[i].endpoints = append(groups[i].endpoints, b.sliceEndpoint(addresses, s.Spec.TrafficDistribution))
		}
		if len(groups) == first {
			groups = append(groups, sliceGroup{family: family})
		}
	}
	return groups
}

// mirrored says whether Endpoints were made by hand for a Service that has no
// selector of its own.
func mirrored(e *env, ep *corev1.Endpoints) bool {
	if ep.DeletionTimestamp != nil || ep.Labels[discoveryv1.LabelSkipMirror] == "true" {
		return false
	}
	if _, leader := ep.Annotations["control-plane.alpha.kubernetes.io/leader"]; leader {
		return false
	}
	s, ok := get[*corev1.Service](e.cache, services, ep.Namespace, ep.Name)
	return ok && s.DeletionTimestamp == nil && len(s.Spec.Selector) == 0
}

func mirrorLabels(ep *corev1.Endpoints) map[string]string {
	l := copyLabels(ep.Labels)
	delete(l, discoveryv1.LabelSkipMirror)
	l[discoveryv1.LabelServiceName], l[discoveryv1.LabelManagedBy] = ep.Name, mirrorManager
	return l
}

// mirrorGroups turns each subset into a group per family. At most addressesMax
// addresses of a subset are mirrored.
func mirrorGroups(ep *corev1.Endpoints) []sliceGroup {
	var groups []sliceGroup
	index := map[string]int{}
	for _, subset := range ep.Subsets {
		var ports []discoveryv1.EndpointPort
		for _, p := range subset.Ports {
			ports = append(ports, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
		left := addressesMax
		add := func(addresses []corev1.EndpointAddress, ready bool) {
			for _, a := range addresses {
				if left == 0 {
					return
				}
				family, ok := addressFamily(a.IP)
				if !ok {
					continue
				}
				left--
				key := string(family) + "|" + portsKey(ports)
				i, ok := index[key]
				if !ok {
					i = len(groups)
					index[key] = i
					groups = append(groups, sliceGroup{family: family, ports: ports})
				}
				end := discoveryv1.Endpoint{Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}, TargetRef: a.TargetRef, NodeName: a.NodeName}
				if a.Hostname != "" {
					end.Hostname = &a.Hostname
				}
				groups[i].endpoints = append(groups[i].endpoints, end)
			}
		}
		add(subset.Addresses, true)
		add(subset.NotReadyAddresses, false)
	}
	return groups
}

// write makes the slices of one owner hold exactly these groups.
func (c sliceController) write(ctx context.Context, owner api.Object, labels map[string]string, groups []sliceGroup) error {
	free := map[string][]*discoveryv1.EndpointSlice{}
	groupKey := func(family discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
		return string(family) + "|" + portsKey(ports)
	}
	var obsolete []*discoveryv1.EndpointSlice
	for _, slice := range indexed[*discoveryv1.EndpointSlice](c.cache, endpointSlices, slicesByService, owner.GetNamespace()+"/"+owner.GetName()) {
		if slice.Labels[discoveryv1.LabelManagedBy] != c.manager || slice.DeletionTimestamp != nil {
			continue
		}
		if owner.GetUID() != "" && !metav1.IsControlledBy(slice, owner) {
			obsolete = append(obsolete, slice) // of an earlier object of this name
			continue
		}
		key := groupKey(slice.AddressType, slice.Ports)
		free[key] = append(free[key], slice)
	}
	var errs []error
	for _, group := range groups {
		key := groupKey(group.family, group.ports)
		existing := free[key]
		delete(free, key)
		contents := pack(group.endpoints, existing)
		if len(group.endpoints) == 0 && len(contents) == 0 {
			contents = [][]discoveryv1.Endpoint{nil}
		}
		for i, content := range contents {
			switch {
			case i >= len(existing):
				errs = append(errs, c.createSlice(ctx, owner, labels, group, content))
			case len(content) == 0 && (len(group.endpoints) > 0 || i > 0):
				obsolete = append(obsolete, existing[i])
			default:
				errs = append(errs, c.updateSlice(ctx, existing[i], labels, content))
			}
		}
	}
	for _, slices := range free {
		obsolete = append(obsolete, slices...)
	}
	for _, slice := range obsolete {
		errs = append(errs, c.delete(ctx, endpointSlices, slice, metav1.DeleteOptions{}))
	}
	return errors.Join(errs...)
}

func (c sliceController) createSlice(ctx context.Context, owner api.Object, labels map[string]string, group sliceGroup, content []discoveryv1.Endpoint) error {
	prefix := owner.GetName() + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		prefix = owner.GetName()
	}
	slice := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), GenerateName: prefix, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{controllerRef(owner)},
		},
		AddressType: group.family, Ports: group.ports, Endpoints: content,
	}
	_, err := c.create(ctx, endpointSlices, slice)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

func (c sliceController) updateSlice(ctx context.Context, slice *discoveryv1.EndpointSlice, labels map[string]string, content []discoveryv1.Endpoint) error {
	if maps.Equal(slice.Labels, labels) && equality.Semantic.DeepEqual(slice.Endpoints, content) {
		return nil
	}
	slice = edit(slice)
	slice.Labels, slice.Endpoints = labels, content
	_, err := c.update(ctx, endpointSlices, slice)
	if apierrors.IsNotFound(err) {
		return nil // the next look makes another
	}
	return err
}
