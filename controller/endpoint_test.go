package controller

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func service(name string, edit ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"tier": "front"}},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")}},
		},
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

func (w *world) slices(name string) (found []*discoveryv1.EndpointSlice) {
	w.Helper()
	for _, s := range all[*discoveryv1.EndpointSlice](w, endpointSlices, "default") {
		if s.Labels[discoveryv1.LabelServiceName] == name {
			found = append(found, s)
		}
	}
	return found
}

// told is what slices and Endpoints say, in one line each, sorted.
func (w *world) told(name string) (bySlices, byEndpoints string) {
	w.Helper()
	var lines []string
	for _, s := range w.slices(name) {
		for _, e := range s.Endpoints {
			line := strings.Join(e.Addresses, ",")
			for _, p := range s.Ports {
				line += fmt.Sprintf(" %s:%d", *p.Name, *p.Port)
			}
			if *e.Conditions.Ready {
				line += " ready"
			}
			if e.Conditions.Serving != nil && *e.Conditions.Serving {
				line += " serving"
			}
			if e.Conditions.Terminating != nil && *e.Conditions.Terminating {
				line += " terminating"
			}
			if e.Hostname != nil {
				line += " " + *e.Hostname
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	bySlices = strings.Join(lines, "; ")
	if !w.exists(endpoints, "default", name) {
		return bySlices, "none"
	}
	lines = nil
	for _, s := range read[*corev1.Endpoints](w, endpoints, "default", name).Subsets {
		ports := ""
		for _, p := range s.Ports {
			ports += fmt.Sprintf(" %s:%d", p.Name, p.Port)
		}
		for _, a := range s.Addresses {
			lines = append(lines, a.IP+ports)
		}
		for _, a := range s.NotReadyAddresses {
			lines = append(lines, a.IP+ports+" not ready")
		}
	}
	slices.Sort(lines)
	return bySlices, strings.Join(lines, "; ")
}

func (w *world) expect(name, bySlices, byEndpoints string) {
	w.Helper()
	w.settle(time.Second)
	s, e := w.told(name)
	if s != bySlices {
		w.Errorf("slices: %s\n  want: %s", s, bySlices)
	}
	if e != byEndpoints {
		w.Errorf("endpoints: %s\n     want: %s", e, byEndpoints)
	}
}

// conformance: EndpointSlice, "empty" Service
// conformance: Endpoints, "empty" Service
func TestEmptyService(t *testing.T) {
	inWorld(t, func(w *world) {
		s := create(w, services, service("web"))
		w.expect("web", "", "")
		found := w.slices("web")
		if len(found) != 1 || found[0].AddressType != discoveryv1.AddressTypeIPv4 || !metav1.IsControlledBy(found[0], s) {
			t.Fatalf("slices %v", found)
		}
		if !maps.Equal(found[0].Labels, map[string]string{"tier": "front", discoveryv1.LabelServiceName: "web", discoveryv1.LabelManagedBy: slicesManager}) {
			t.Errorf("labels %v", found[0].Labels)
		}
		w.remove(services, "default", "web", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if len(w.slices("web")) > 0 || w.exists(endpoints, "default", "web") {
			t.Error("slices or endpoints outlive their service")
		}
	})
}

// conformance: EndpointSlice, creation/deletion
// conformance: Endpoints, creation/deletion
func TestEndpointsFollowPods(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a", func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = "z1" })
		create(w, services, service("web"))
		w.settle(0)
		w.agent.set(func() { w.agent.hold = func(p *corev1.Pod) bool { return p.Name == "web-2" } })
		for _, name := range []string{"web-1", "web-2"} {
			create(w, pods, plainPod(name, func(p *corev1.Pod) { p.Labels["app"] = "web" }))
			w.settle(0)
		}
		w.expect("web", "10.244.0.2 http:8080 ready serving; 10.244.0.3 http:8080", "10.244.0.2 http:8080; 10.244.0.3 http:8080 not ready")
		e := w.slices("web")[0].Endpoints[0]
		if *e.NodeName != "a" || *e.Zone != "z1" || e.TargetRef.Kind != "Pod" || e.TargetRef.Name != "web-1" {
			t.Errorf("endpoint %+v", e)
		}
		// Another port by the same name is another slice.
		create(w, pods, plainPod("web-3", func(p *corev1.Pod) { p.Labels["app"] = "web"; p.Spec.Containers[0].Ports[0].ContainerPort = 9090 }))
		w.expect("web", "10.244.0.2 http:8080 ready serving; 10.244.0.3 http:8080; 10.244.0.4 http:9090 ready serving",
			"10.244.0.2 http:8080; 10.244.0.3 http:8080 not ready; 10.244.0.4 http:9090")
		change(w, services, "default", "web", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true })
		w.expect("web", "10.244.0.2 http:8080 ready serving; 10.244.0.3 http:8080 ready; 10.244.0.4 http:9090 ready serving",
			"10.244.0.2 http:8080; 10.244.0.3 http:8080; 10.244.0.4 http:9090")
		change(w, services, "default", "web", func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = false })
		w.agent.set(func() { w.agent.linger = true })
		w.remove(pods, "default", "web-1", metav1.DeletePropagationBackground)
		w.expect("web", "10.244.0.2 http:8080 serving terminating; 10.244.0.3 http:8080; 10.244.0.4 http:9090 ready serving",
			"10.244.0.3 http:8080 not ready; 10.244.0.4 http:9090")
		w.agent.set(func() { w.agent.linger = false })
		w.expect("web", "10.244.0.3 http:8080; 10.244.0.4 http:9090 ready serving", "10.244.0.3 http:8080 not ready; 10.244.0.4 http:9090")
	})
}

func TestHeadlessHostnames(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, services, service("web", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone; s.Spec.Ports = nil }))
		create(w, pods, plainPod("web", func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "one", "web" }))
		w.expect("web", "10.244.0.2 ready serving one", "10.244.0.2")
		if _, ok := w.slices("web")[0].Labels[corev1.IsHeadlessService]; !ok {
			t.Error("no headless label")
		}
	})
}

// What a suspected or dead node's pods said last does not count; a host whose
// process alone is down keeps its traffic.
func TestEndpointsLeaveDoubtedNodes(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, services, service("web"))
		create(w, pods, plainPod("web", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}))
		const there = "10.244.0.2 http:8080 ready serving"
		w.expect("web", there, "10.244.0.2 http:8080")
		for _, state := range []NodeState{Suspect, Dead} {
			w.liveness.set("a", state)
			w.expect("web", "", "")
			w.liveness.set("a", Alive)
			w.settle(time.Second)
			change(w, pods, "default", "web", func(p *corev1.Pod) { podCondition(p, corev1.PodReady).Status = corev1.ConditionTrue }, "status")
			w.expect("web", there, "10.244.0.2 http:8080")
		}
		w.liveness.set("a", Refused)
		w.expect("web", there, "10.244.0.2 http:8080")
	})
}

// conformance: EndpointSlice Mirroring
func TestMirror(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, services, service("hand", func(s *corev1.Service) { s.Spec.Selector = nil }))
		create(w, endpoints, &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "hand"}, Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: "10.1.2.3"}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}},
		}}})
		w.expect("hand", "10.1.2.3 http:80 ready", "10.1.2.3 http:80")
		if got := w.slices("hand")[0].Labels[discoveryv1.LabelManagedBy]; got != mirrorManager {
			t.Errorf("managed by %s", got)
		}
		change(w, endpoints, "default", "hand", func(e *corev1.Endpoints) { e.Subsets[0].Addresses[0].IP = "10.1.2.4" })
		w.expect("hand", "10.1.2.4 http:80 ready", "10.1.2.4 http:80")
		w.remove(endpoints, "default", "hand", metav1.DeletePropagationBackground)
		w.expect("hand", "", "none")
		if n := len(w.slices("hand")); n != 0 {
			t.Errorf("%d slices", n)
		}
	})
}

func TestPack(t *testing.T) {
	endpoints := func(from, to int) (found []discoveryv1.Endpoint) {
		for i := from; i < to; i++ {
			found = append(found, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.0.%d.%d", i/250, i%250)}})
		}
		return found
	}
	slice := func(from, to int) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{Endpoints: endpoints(from, to)}
	}
	for _, tc := range []struct {
		name     string
		want     []discoveryv1.Endpoint
		existing []*discoveryv1.EndpointSlice
		sizes    string
		changed  int
	}{
		{"new", endpoints(0, 250), nil, "[100 100 50]", 0},
		{"nothing to do", endpoints(0, 150), []*discoveryv1.EndpointSlice{slice(0, 100), slice(100, 150)}, "[100 50]", 0},
		{"one more goes where there is room", endpoints(0, 151), []*discoveryv1.EndpointSlice{slice(0, 100), slice(100, 150)}, "[100 51]", 1},
		{"one less, one more: one slice changes", endpoints(1, 151), []*discoveryv1.EndpointSlice{slice(0, 100), slice(100, 150)}, "[100 50]", 1},
		{"all gone", nil, []*discoveryv1.EndpointSlice{slice(0, 100), slice(100, 150)}, "[0 0]", 2},
		{"more than is free in one place", endpoints(0, 260), []*discoveryv1.EndpointSlice{slice(0, 90)}, "[90 100 70]", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := pack(tc.want, tc.existing)
			var sizes []int
			seen, changed := map[string]bool{}, 0
			for i, content := range got {
				sizes = append(sizes, len(content))
				for _, e := range content {
					seen[e.Addresses[0]] = true
				}
				if i < len(tc.existing) && !slices.EqualFunc(content, tc.existing[i].Endpoints, func(a, b discoveryv1.Endpoint) bool { return a.Addresses[0] == b.Addresses[0] }) {
					changed++
				}
			}
			if fmt.Sprint(sizes) != tc.sizes || len(seen) != len(tc.want) || changed != tc.changed {
				t.Errorf("sizes %v, %d different, %d slices changed", sizes, len(seen), changed)
			}
		})
	}
}

func TestOverCapacity(t *testing.T) {
	var many []backend
	for i := range 1200 {
		b := backend{pod: plainPod(fmt.Sprint("p", i)), ready: i >= 300}
		b.pod.Status.PodIP = fmt.Sprintf("10.0.%d.%d", i/250, i%250)
		b.ports = backendPorts(service("s"), b.pod)
		many = append(many, b)
	}
	found, over := subsets(service("s"), many)
	if !over || len(found) != 1 || len(found[0].Addresses) != 900 || len(found[0].NotReadyAddresses) != 100 {
		t.Errorf("over %v, %d subsets", over, len(found))
	}
}
