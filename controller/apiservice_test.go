package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"conclave/api"
	"conclave/api/types"
)

// fakeBehind is an API server behind ours.
type fakeBehind struct {
	mu      sync.Mutex
	fails   error // what it answers when it is asked whether it is there
	probes  int
	left    []api.RemoteRemains
	unknown []string
	emptied []string
}

func (b *fakeBehind) probe(context.Context, *types.APIService) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probes++
	return b.fails
}

func (b *fakeBehind) empty(_ context.Context, namespace string) ([]api.RemoteRemains, []string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.emptied = append(b.emptied, namespace)
	return b.left, b.unknown, nil
}

func (b *fakeBehind) set(change func(*fakeBehind)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

const wardle = "v1alpha1.wardle.example.com"

func (w *world) apiService(name string) *types.APIService {
	w.Helper()
	o, err := w.client.Get(w.ctx, apiServices, "", name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return o.(*types.APIService)
}

// available has to be the status, reason and message of an APIService.
func (w *world) available(name, want string) {
	w.Helper()
	w.settle(0)
	c := w.apiService(name).Condition(types.APIAvailable)
	if c == nil {
		w.Fatalf("%s has no condition, not %s", name, want)
	}
	if got := strings.Join([]string{c.Status, c.Reason, c.Message}, " "); got != want {
		w.Errorf("%s is %s, not %s", name, got, want)
	}
}

func (w *world) make(o api.Object) api.Object {
	w.Helper()
	made, err := w.client.Create(w.ctx, api.GVROf(o), o.GetNamespace(), "", o, metav1.CreateOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return made
}

func registered() *types.APIService {
	return &types.APIService{ObjectMeta: metav1.ObjectMeta{Name: wardle}, Spec: types.APIServiceSpec{
		Group: "wardle.example.com", Version: "v1alpha1", GroupPriorityMinimum: 2000, VersionPriority: 200, InsecureSkipTLSVerify: true,
		Service: &types.APIServiceReference{Namespace: "default", Name: "s"},
	}}
}

// TestAPIServiceAvailable goes through the reasons, in the order in which a server
// comes up.
func TestAPIServiceAvailable(t *testing.T) {
	inWorld(t, func(w *world) {
		w.make(registered())
		w.available(wardle, `False ServiceNotFound service/s in "default" is not present`)
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "other", Port: 80}}}}
		made := w.make(svc).DeepCopyObject().(*corev1.Service)
		w.available(wardle, `False ServicePortError service/s in "default" is not listening on port 443`)
		made.Spec.Ports = append(made.Spec.Ports, corev1.ServicePort{Name: "web", Port: 443})
		if _, err := w.client.Update(w.ctx, services, "default", made, metav1.UpdateOptions{}); err != nil {
			w.Fatal(err)
		}
		w.available(wardle, `False EndpointsNotFound cannot find endpointslices for service/s in "default"`)
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}}, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.1.1.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}}},
			Ports:     []discoveryv1.EndpointPort{{Name: ptr.To("web"), Port: ptr.To(int32(8443))}},
		}
		slice = w.make(slice).DeepCopyObject().(*discoveryv1.EndpointSlice)
		w.available(wardle, `False MissingEndpoints endpointslices for service/s in "default" have no addresses with port name "web"`)
		w.behind.set(func(b *fakeBehind) { b.fails = errors.New("no answer") })
		slice.Endpoints[0].Conditions.Ready = ptr.To(true)
		if _, err := w.client.Update(w.ctx, endpointSlices, "default", slice, metav1.UpdateOptions{}); err != nil {
			w.Fatal(err)
		}
		w.available(wardle, "False FailedDiscoveryCheck no answer")
		w.behind.set(func(b *fakeBehind) { b.fails = nil })
		since := w.apiService(wardle).Condition(types.APIAvailable).LastTransitionTime
		w.settle(askFailed)
		w.available(wardle, "True Passed all checks passed")
		if c := w.apiService(wardle).Condition(types.APIAvailable); !c.LastTransitionTime.After(since.Time) {
			w.Errorf("it became so at %v", c.LastTransitionTime)
		}

		// At rest it is asked, and nothing is written.
		was, before := w.apiService(wardle).ResourceVersion, w.behind.probes
		w.settle(10 * askWell)
		if now := w.apiService(wardle).ResourceVersion; now != was || w.behind.probes-before < 9 || w.behind.probes-before > 11 {
			w.Errorf("version %s became %s, and it was asked %d times", was, now, w.behind.probes-before)
		}
		w.behind.set(func(b *fakeBehind) { b.fails = errors.New("no answer") })
		w.settle(askWell)
		w.available(wardle, "False FailedDiscoveryCheck no answer")
	})
}

// TestLocalAPIServices says which are kept, and that they are kept as they are.
func TestLocalAPIServices(t *testing.T) {
	inWorld(t, func(w *world) {
		w.available("v1.", "True Local Local APIServices are always available")
		apps := w.apiService("v1.apps")
		if apps.Spec.GroupPriorityMinimum != 17800 || apps.Spec.VersionPriority != 15 || apps.Labels[api.ManagedAPIService] != "onstart" {
			w.Errorf("%+v", apps)
		}
		changed := edit(apps)
		changed.Spec.VersionPriority = 1
		if _, err := w.client.Update(w.ctx, apiServices, "", changed, metav1.UpdateOptions{}); err != nil {
			w.Fatal(err)
		}
		w.settle(0)
		if got := w.apiService("v1.apps").Spec.VersionPriority; got != 15 {
			w.Errorf("a priority that was changed stays %d", got)
		}
		w.remove(apiServices, "", "v1.apps", metav1.DeletePropagationBackground)
		w.settle(0)
		w.available("v1.apps", "True Local Local APIServices are always available")

		// Those of custom resources come and go with them.
		w.make(mice())
		w.settle(0)
		if o := w.apiService("v1.example.com"); o.Labels[api.ManagedAPIService] != "true" || o.Spec.GroupPriorityMinimum != 1000 || o.Spec.VersionPriority != 100 {
			w.Errorf("%+v", o)
		}
		w.remove(definitions, "", "mice.example.com", metav1.DeletePropagationBackground)
		w.settle(0)
		if w.exists(apiServices, "", "v1.example.com") {
			w.Error("an APIService outlives what it is of")
		}
	})
}

func TestAuthenticationConfig(t *testing.T) {
	inWorld(t, func(w *world) {
		at := func() *corev1.ConfigMap {
			w.Helper()
			w.settle(0)
			o, err := w.client.Get(w.ctx, configMaps, "kube-system", api.AuthenticationConfig, metav1.GetOptions{})
			if err != nil {
				w.Fatal(err)
			}
			return o.(*corev1.ConfigMap)
		}
		changed := edit(at())
		changed.Data = map[string]string{"client-ca-file": "mine", "more": "yes"}
		if _, err := w.client.Update(w.ctx, configMaps, "kube-system", changed, metav1.UpdateOptions{}); err != nil {
			w.Fatal(err)
		}
		if got := fmt.Sprint(at().Data); got != "map[client-ca-file:CA more:yes]" {
			w.Errorf("it is %s", got)
		}
		w.remove(configMaps, "kube-system", api.AuthenticationConfig, metav1.DeletePropagationBackground)
		if got := fmt.Sprint(at().Data); got != "map[client-ca-file:CA]" {
			w.Errorf("it is %s", got)
		}
	})
}

// TestNamespaceBehind says that a namespace waits for what other servers keep in
// it, and for those that do not say what they keep.
func TestNamespaceBehind(t *testing.T) {
	inWorld(t, func(w *world) {
		w.behind.set(func(b *fakeBehind) {
			b.unknown = []string{"a/v1: stale GroupVersion discovery: a/v1"}
			b.left = []api.RemoteRemains{{Resource: schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1alpha1", Resource: "flunders"}, Count: 2, Finalizers: map[string]int{"f": 1}}}
		})
		w.make(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}})
		w.settle(0)
		w.remove(namespaces, "", "shop", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		o, err := w.client.Get(w.ctx, namespaces, "", "shop", metav1.GetOptions{})
		if err != nil {
			w.Fatal(err)
		}
		var all []string
		for _, c := range o.(*corev1.Namespace).Status.Conditions {
			if c.Status == corev1.ConditionTrue {
				all = append(all, c.Reason+": "+c.Message)
			}
		}
		want := []string{
			"DiscoveryFailed: Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: a/v1: stale GroupVersion discovery: a/v1",
			"SomeResourcesRemain: Some resources are remaining: flunders.wardle.example.com has 2 resource instances",
			"SomeFinalizersRemain: Some content in the namespace has finalizers remaining: f in 1 resource instances",
		}
		if fmt.Sprint(all) != fmt.Sprint(want) {
			w.Errorf("the conditions are\n%s", strings.Join(all, "\n"))
		}
		w.behind.set(func(b *fakeBehind) { b.unknown, b.left = nil, nil })
		w.settle(askFailed)
		if w.exists(namespaces, "", "shop") {
			w.Error("it is still there")
		}
	})
}
