package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"conclave/api"
	"conclave/api/types"
)

// How long it takes until a server behind ours is asked again whether it answers,
// though nothing is known to have changed.
const (
	askWell   = 30 * time.Second
	askFailed = 10 * time.Second
)

// newAPIServices keeps the APIServices of what the cluster serves itself: people
// see by them what there is.
func newAPIServices(e *env) *Controller {
	c := apiServiceController{e}
	return &Controller{
		Name: "apiservice-registration",
		Inputs: []Input{
			{apiServices, self},
			{definitions, func(change Change) []Key { return c.keysOfGroup(change) }},
			{namespaces, func(change Change) []Key {
				if change.either().GetName() != metav1.NamespaceSystem {
					return nil
				}
				return c.ownKeys() // once at the start
			}},
		},
		Outputs:   []Output{{apiServices, "local objects"}},
		Reconcile: c.reconcile,
	}
}

type apiServiceController struct{ *env }

func (c apiServiceController) own() []*types.APIService {
	if c.LocalAPIServices == nil {
		return nil
	}
	return c.LocalAPIServices()
}

func (c apiServiceController) ownKeys() (keys []Key) {
	for _, o := range c.own() {
		keys = append(keys, keyOf(o))
	}
	return keys
}

// keysOfGroup are the APIServices that a definition may be the reason of: those
// that there should be, and those that there are.
func (c apiServiceController) keysOfGroup(Change) []Key {
	keys := c.ownKeys()
	for _, o := range list[*types.APIService](c.cache, apiServices, "") {
		if o.Labels[api.ManagedAPIService] == "true" {
			keys = append(keys, keyOf(o))
		}
	}
	return keys
}

func (c apiServiceController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	all := c.own()
	i := slices.IndexFunc(all, func(o *types.APIService) bool { return o.Name == key.Name })
	is, exists := get[*types.APIService](c.cache, apiServices, "", key.Name)
	switch {
	case exists && (is.DeletionTimestamp != nil || is.Spec.Service != nil):
		return 0, nil // its end wakes us; and what another server serves is not ours
	case i < 0:
		if exists && is.Labels[api.ManagedAPIService] == "true" {
			return 0, c.delete(ctx, apiServices, is, metav1.DeleteOptions{})
		}
		return 0, nil
	case !exists:
		_, err := c.create(ctx, apiServices, all[i])
		if apierrors.IsAlreadyExists(err) {
			return 0, nil // the news is on its way
		}
		return 0, err
	}
	managed := all[i].Labels[api.ManagedAPIService]
	if is.Labels[api.ManagedAPIService] == managed && equality.Semantic.DeepEqual(is.Spec, all[i].Spec) {
		return 0, nil
	}
	changed := edit(is)
	changed.Spec = all[i].Spec
	metav1.SetMetaDataLabel(&changed.ObjectMeta, api.ManagedAPIService, managed)
	_, err := c.update(ctx, apiServices, changed)
	return 0, ignoreGone(err)
}

// newAPIAvailability says of each APIService whether its server answers.
func newAPIAvailability(e *env) *Controller {
	c := availabilityController{e}
	return &Controller{
		Name:    "apiservice-availability",
		Workers: 4, // one that hangs holds up no other
		Inputs: []Input{
			{apiServices, self},
			{services, func(change Change) []Key { return c.keysOf(change.either()) }},
			{endpointSlices, func(change Change) []Key {
				o := change.either()
				return c.keysOf(&metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetLabels()[discoveryv1.LabelServiceName]})
			}},
		},
		Outputs:   []Output{{apiServices, "status"}},
		Reconcile: c.reconcile,
	}
}

type availabilityController struct{ *env }

// keysOf are the APIServices that name a Service.
func (c availabilityController) keysOf(service metav1.Object) (keys []Key) {
	for _, o := range list[*types.APIService](c.cache, apiServices, "") {
		if s := o.Spec.Service; s != nil && s.Namespace == service.GetNamespace() && s.Name == service.GetName() {
			keys = append(keys, keyOf(o))
		}
	}
	return keys
}

func (c availabilityController) reconcile(ctx context.Context, key Key) (again time.Duration, err error) {
	o, ok := get[*types.APIService](c.cache, apiServices, "", key.Name)
	if !ok || o.DeletionTimestamp != nil {
		return 0, nil
	}
	is, ask := c.judge(o)
	if ask {
		again = askWell
		if c.ProbeAPIService != nil {
			err = c.ProbeAPIService(ctx, o)
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err != nil {
			again = askFailed
			is = unavailable("FailedDiscoveryCheck", "%v", err)
		}
	}
	is.Type, is.LastTransitionTime = types.APIAvailable, metav1.NewTime(c.Now()).Rfc3339Copy()
	changed := edit(o)
	changed.SetCondition(is)
	if equality.Semantic.DeepEqual(changed.Status, o.Status) {
		return again, nil
	}
	_, err = c.update(ctx, apiServices, changed, "status")
	return again, ignoreGone(err)
}

func unavailable(reason, format string, args ...any) types.APIServiceCondition {
	return types.APIServiceCondition{Status: string(metav1.ConditionFalse), Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// judge is what can be told of an APIService without asking its server. ask says
// that nothing speaks against asking; the condition is then of one that answers.
func (c availabilityController) judge(o *types.APIService) (_ types.APIServiceCondition, ask bool) {
	ref := o.Spec.Service
	if ref == nil {
		return types.LocallyAvailable(metav1.Time{}), false
	}
	well := types.APIServiceCondition{Status: string(metav1.ConditionTrue), Reason: "Passed", Message: "all checks passed"}
	svc, ok := get[*corev1.Service](c.cache, services, ref.Namespace, ref.Name)
	if !ok {
		return unavailable("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace), false
	}
	if svc.Spec.Type != corev1.ServiceTypeClusterIP {
		return well, true
	}
	number := ptr.Deref(ref.Port, 443)
	i := slices.IndexFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == number })
	if i < 0 {
		return unavailable("ServicePortError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, number), false
	}
	all := indexed[*discoveryv1.EndpointSlice](c.cache, endpointSlices, slicesByService, ref.Namespace+"/"+ref.Name)
	if len(all) == 0 {
		return unavailable("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace), false
	}
	port := svc.Spec.Ports[i].Name
	if !slices.ContainsFunc(all, func(s *discoveryv1.EndpointSlice) bool { return answersAt(s, port) }) {
		return unavailable("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, port), false
	}
	return well, true
}

// answersAt says whether a slice has a ready endpoint with a port of that name.
func answersAt(s *discoveryv1.EndpointSlice, port string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return ptr.Deref(e.Conditions.Ready, true) }) &&
		slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return ptr.Deref(p.Name, "") == port && p.Port != nil })
}

// newAuthenticationConfig keeps the ConfigMap by which API servers behind ours
// know who speaks to them. Whoever changes what is ours in it is corrected.
func newAuthenticationConfig(e *env) *Controller {
	named := func(change Change) []Key {
		o := change.either()
		if o.GetName() == metav1.NamespaceSystem || o.GetNamespace() == metav1.NamespaceSystem && o.GetName() == api.AuthenticationConfig {
			return []Key{{Namespace: metav1.NamespaceSystem, Name: api.AuthenticationConfig}}
		}
		return nil
	}
	return &Controller{
		Name:    "extension-apiserver-authentication",
		Inputs:  []Input{{namespaces, named}, {configMaps, named}},
		Outputs: []Output{{configMaps, "objects named " + api.AuthenticationConfig}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			if e.ExtensionAuthentication == nil {
				return 0, nil
			}
			wanted := e.ExtensionAuthentication()
			is, exists := get[*corev1.ConfigMap](e.cache, configMaps, key.Namespace, key.Name)
			if !exists {
				_, err := e.create(ctx, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Data: wanted})
				if apierrors.IsAlreadyExists(err) {
					err = nil // the news is on its way
				}
				return 0, err
			}
			changed := edit(is)
			if changed.Data == nil {
				changed.Data = map[string]string{}
			}
			maps.Copy(changed.Data, wanted)
			if is.DeletionTimestamp != nil || maps.Equal(changed.Data, is.Data) {
				return 0, nil
			}
			_, err := e.update(ctx, configMaps, changed)
			return 0, ignoreGone(err)
		},
	}
}
