package hosts

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
)

// endpointsOf are the addresses of a service's Endpoints and of its
// EndpointSlices; nil where there is no such object.
func (w *world) endpointsOf(t *testing.T, service string) (endpoints, slicesOf []string, err error) {
	ep, err := w.c.Client.CoreV1().Endpoints(w.ns).Get(t.Context(), service, metav1.GetOptions{})
	if err == nil {
		endpoints = []string{}
		for _, s := range ep.Subsets {
			for _, p := range s.Ports {
				for _, a := range s.Addresses {
					endpoints = append(endpoints, fmt.Sprintf("%s %s:%d", p.Name, a.IP, p.Port))
				}
			}
		}
	} else if !apierrors.IsNotFound(err) {
		return nil, nil, err
	}
	all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service})
	if err != nil {
		return nil, nil, err
	}
	for _, s := range all.Items {
		if slicesOf == nil {
			slicesOf = []string{}
		}
		for _, p := range s.Ports {
			for _, e := range s.Endpoints {
				if ptr.Deref(e.Conditions.Ready, true) {
					slicesOf = append(slicesOf, fmt.Sprintf("%s %s:%d", *p.Name, e.Addresses[0], *p.Port))
				}
			}
		}
	}
	slices.Sort(endpoints)
	slices.Sort(slicesOf)
	return endpoints, slicesOf, nil
}

// wantEndpoints waits until both kinds of object name these; nil: are gone.
func (w *world) wantEndpoints(t *testing.T, service string, wanted []string) {
	t.Helper()
	slices.Sort(wanted)
	eventually(t, "endpoints of "+service, func() error {
		endpoints, inSlices, err := w.endpointsOf(t, service)
		if err != nil {
			return err
		}
		for _, got := range [][]string{endpoints, inSlices} {
			if (got == nil) != (wanted == nil) || !slices.Equal(got, wanted) {
				return fmt.Errorf("Endpoints %#v, EndpointSlices %#v, wanted %#v", endpoints, inSlices, wanted)
			}
		}
		return nil
	})
}

func (w *world) at(port string, number int, pods ...*corev1.Pod) []string {
	all := []string{}
	for _, p := range pods {
		all = append(all, fmt.Sprintf("%s %s:%d", port, p.Status.PodIP, number))
	}
	return all
}

var endpointObjects = []behaviour{
	{"endpoints and slices of pods", "[sig-network] EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "matched"}
		w.service(t, "matched", func(s *corev1.Service) {
			s.Spec.Selector = labels
			s.Spec.Ports = []corev1.ServicePort{{Name: "number", Port: 80, TargetPort: intstr.FromInt32(8080)}, {Name: "name", Port: 81, TargetPort: intstr.FromString("by-name")}}
		})
		pod := toolPod("matched-1", "", labels, "serve", "http:8080")
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "by-name", ContainerPort: 8080}}
		second := toolPod("matched-2", "", labels, "serve", "http:8080")
		pods := runPods(t, w.c, w.ns, pod, second)
		w.wantEndpoints(t, "matched", slices.Concat(w.at("number", 8080, pods...), w.at("name", 8080, pods[0])))
		all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=matched"})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all.Items {
			if s.Labels[discoveryv1.LabelManagedBy] != "endpointslice-controller.k8s.io" || !metav1.IsControlledBy(&s, w.get(t, "matched")) {
				t.Errorf("slice %s is not the controller's: %+v", s.Name, s.ObjectMeta)
			}
			for _, e := range s.Endpoints {
				if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || e.NodeName == nil {
					t.Errorf("endpoint %+v names no pod or node", e)
				}
			}
		}
		deletePod(t, w.c, w.ns, "matched-1")
		w.wantEndpoints(t, "matched", w.at("number", 8080, pods[1]))
		if err := w.deleteServices(t, "of=matched"); err != nil {
			t.Fatal(err)
		}
		w.wantEndpoints(t, "matched", nil)
	}},
	{"slices of no pods", "[sig-network] EndpointSlice should create and delete EndpointSlices for a Service with a selector that matches no pods [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "lonely", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} })
		w.wantEndpoints(t, "lonely", []string{})
		if err := w.deleteServices(t, "of=lonely"); err != nil {
			t.Fatal(err)
		}
		w.wantEndpoints(t, "lonely", nil)
	}},
	{"endpoints of pods", "[sig-network] EndpointsController should create Endpoints for Pods matching a Service [Conformance]", func(t *testing.T, w *world) {
		labels := map[string]string{"app": "counted"}
		w.service(t, "counted", func(s *corev1.Service) { s.Spec.Selector = labels })
		first := runPods(t, w.c, w.ns, toolPod("counted-1", w.c.Hosts[0].Name, labels, "serve", "http:8080"))
		w.wantEndpoints(t, "counted", w.at("http", 8080, first...))
		second := runPods(t, w.c, w.ns, toolPod("counted-2", w.c.Hosts[1].Name, labels, "serve", "http:8080"))
		w.wantEndpoints(t, "counted", w.at("http", 8080, first[0], second[0]))
		deletePod(t, w.c, w.ns, "counted-1")
		w.wantEndpoints(t, "counted", w.at("http", 8080, second...))
	}},
	{"endpoints of no pods", "[sig-network] EndpointsController should create and delete Endpoints for a Service with a selector that matches no pods [Conformance]", func(t *testing.T, w *world) {
		w.service(t, "unmatched", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "nobody"} })
		w.wantEndpoints(t, "unmatched", []string{})
		if err := w.deleteServices(t, "of=unmatched"); err != nil {
			t.Fatal(err)
		}
		w.wantEndpoints(t, "unmatched", nil)
	}},
	{"mirrored endpoints", "[sig-network] EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete [Conformance]", showMirroring},
	{"lifecycle of endpoints", "[sig-network] Endpoints should test the lifecycle of an Endpoint [Conformance]", showEndpointsLifecycle},
	{"operations on slices", "[sig-network] EndpointSlice should support creating EndpointSlice API operations [Conformance]", showSliceOperations},
}

func (w *world) get(t *testing.T, service string) *corev1.Service {
	t.Helper()
	s, err := w.c.Client.CoreV1().Services(w.ns).Get(t.Context(), service, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func handMade(name string, ip string, port int32) *corev1.Endpoints {
	return &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"by": name}},
		Subsets:    []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: ip}}, Ports: []corev1.EndpointPort{{Name: "http", Port: port}}}},
	}
}

func showMirroring(t *testing.T, w *world) {
	s := w.service(t, "mirrored", func(s *corev1.Service) { s.Spec.Selector = nil })
	endpoints := w.c.Client.CoreV1().Endpoints(w.ns)
	ep, err := endpoints.Create(t.Context(), handMade("mirrored", w.pods[0].Status.PodIP, 8080), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, "mirrored", w.at("http", 8080, w.pods[0]))
	all, err := w.c.Client.DiscoveryV1().EndpointSlices(w.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=mirrored"})
	if err != nil || len(all.Items) != 1 || all.Items[0].Labels[discoveryv1.LabelManagedBy] != "endpointslicemirroring-controller.k8s.io" || all.Items[0].Labels["by"] != "mirrored" {
		t.Fatalf("the slices are %+v (%v)", all, err)
	}
	w.wantAnswers(t, w.pods[2], []string{"net-0"}, "get", "-n", "5", pageAt(s.Spec.ClusterIP, 80))
	ep.Subsets[0].Addresses[0].IP, ep.Subsets[0].Ports[0].Port = w.pods[1].Status.PodIP, 8083
	if _, err := endpoints.Update(t.Context(), ep, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, "mirrored", w.at("http", 8083, w.pods[1]))
	w.wantAnswers(t, w.pods[2], []string{"net-1"}, "get", "-n", "5", pageAt(s.Spec.ClusterIP, 80))
	if err := endpoints.Delete(t.Context(), "mirrored", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.wantEndpoints(t, "mirrored", nil)
}

func showEndpointsLifecycle(t *testing.T, w *world) {
	endpoints := w.c.Client.CoreV1().Endpoints(w.ns)
	selected := metav1.ListOptions{LabelSelector: "by=cycle"}
	watching, err := endpoints.Watch(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	if _, err := endpoints.Create(t.Context(), handMade("cycle", "10.0.0.24", 80), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	ep := awaitEvent(t, watching, watch.Added, func(*corev1.Endpoints) bool { return true })
	everywhere, err := w.c.Client.CoreV1().Endpoints("").List(t.Context(), selected)
	if err != nil || len(everywhere.Items) != 1 || everywhere.Items[0].UID != ep.UID {
		t.Fatalf("listed are %+v (%v)", everywhere, err)
	}
	ep.Labels["updated"] = "yes"
	if _, err := endpoints.Update(t.Context(), ep, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *corev1.Endpoints) bool { return e.Labels["updated"] == "yes" })
	patch := `{"metadata":{"labels":{"patched":"yes"}},"subsets":[{"addresses":[{"ip":"10.0.0.25"}],"ports":[{"name":"http","port":81}]}]}`
	if _, err := endpoints.Patch(t.Context(), "cycle", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *corev1.Endpoints) bool { return e.Labels["patched"] == "yes" })
	got, err := endpoints.Get(t.Context(), "cycle", metav1.GetOptions{})
	if err != nil || got.Subsets[0].Addresses[0].IP != "10.0.0.25" || got.Subsets[0].Ports[0].Port != 81 || got.Labels["updated"] != "yes" {
		t.Fatalf("the patched object is %+v (%v)", got, err)
	}
	if err := endpoints.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Deleted, func(*corev1.Endpoints) bool { return true })
	if _, err := endpoints.Get(t.Context(), "cycle", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("afterwards: %v", err)
	}
}

func showSliceOperations(t *testing.T, w *world) {
	groups, err := w.c.Client.Discovery().ServerGroups()
	if err != nil || !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool {
		return g.Name == "discovery.k8s.io" && g.PreferredVersion.Version == "v1"
	}) {
		t.Fatalf("the groups are %+v (%v)", groups, err)
	}
	resources, err := w.c.Client.Discovery().ServerResourcesForGroupVersion("discovery.k8s.io/v1")
	if err != nil || !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == "endpointslices" && r.Kind == "EndpointSlice" }) {
		t.Fatalf("the resources are %+v (%v)", resources, err)
	}
	api := w.c.Client.DiscoveryV1().EndpointSlices(w.ns)
	selected := metav1.ListOptions{LabelSelector: "operations=yes"}
	watching, err := api.Watch(t.Context(), selected)
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	var made []*discoveryv1.EndpointSlice
	for i := range 3 {
		s, err := api.Create(t.Context(), &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{GenerateName: "slice-", Labels: map[string]string{"operations": "yes"}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprintf("10.0.0.%d", i+1)}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		awaitEvent(t, watching, watch.Added, func(e *discoveryv1.EndpointSlice) bool { return e.UID == s.UID })
		made = append(made, s)
	}
	if got, err := api.Get(t.Context(), made[0].Name, metav1.GetOptions{}); err != nil || got.UID != made[0].UID {
		t.Fatalf("got %+v (%v)", got, err)
	}
	for _, ns := range []string{w.ns, ""} {
		if all, err := w.c.Client.DiscoveryV1().EndpointSlices(ns).List(t.Context(), selected); err != nil || len(all.Items) != 3 {
			t.Fatalf("in %q are %+v (%v)", ns, all, err)
		}
	}
	if s, err := api.Patch(t.Context(), made[0].Name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"patched":"yes"}}}`), metav1.PatchOptions{}); err != nil || s.Annotations["patched"] != "yes" {
		t.Fatalf("patched: %+v (%v)", s, err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *discoveryv1.EndpointSlice) bool { return e.Annotations["patched"] == "yes" })
	made[1].Annotations, made[1].Endpoints[0].Addresses = map[string]string{"updated": "yes"}, []string{"10.0.0.99"}
	if s, err := api.Update(t.Context(), made[1], metav1.UpdateOptions{}); err != nil || s.Endpoints[0].Addresses[0] != "10.0.0.99" {
		t.Fatalf("updated: %+v (%v)", s, err)
	}
	awaitEvent(t, watching, watch.Modified, func(e *discoveryv1.EndpointSlice) bool { return e.Annotations["updated"] == "yes" })
	if err := api.Delete(t.Context(), made[2].Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	awaitEvent(t, watching, watch.Deleted, func(e *discoveryv1.EndpointSlice) bool { return e.UID == made[2].UID })
	if err := api.DeleteCollection(t.Context(), metav1.DeleteOptions{}, selected); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		awaitEvent(t, watching, watch.Deleted, func(*discoveryv1.EndpointSlice) bool { return true })
	}
	if all, err := api.List(t.Context(), selected); err != nil || len(all.Items) != 0 {
		t.Errorf("left are %+v (%v)", all, err)
	}
}
