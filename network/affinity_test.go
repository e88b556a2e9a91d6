package network

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"conclave/api"
)

// A client stays at one pod, by cluster address and by node port, and is free
// again when the affinity is switched off.
//
// conformance: Service, ClusterIP type, session affinity to ClientIP
// conformance: Service, NodePort type, session affinity to ClientIP
// conformance: Service, ClusterIP type, session affinity to None
// conformance: Service, NodePort type, session affinity to None
func TestSessionAffinity(t *testing.T) {
	t.Parallel()
	all, l := twoNodes(t)
	client := all[0].attach("client")
	outside := l.host(200)
	var endpoints []ep
	for i := range 4 {
		name := fmt.Sprintf("s%d", i)
		n := all[i%2]
		p := n.attach(name)
		p.serve(name, 8080)
		endpoints = append(endpoints, ep{addr: p.addr, node: n.config.Name})
	}
	ports, targets := both(80, 8080)
	ports[0].NodePort, ports[1].NodePort = 30080, 30080
	free := serviceOf("web", "10.96.0.20", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, ports...)
	sticky := free.DeepCopy()
	sticky.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	sticky.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](600)}}
	all.put(sliceOf("web", targets, endpoints...))

	port := 20000
	answers := func(t *testing.T, m *machine, network, to string) map[string]int {
		t.Helper()
		seen := map[string]int{}
		for range 40 {
			// A port of its own each time: a UDP flow that is still known
			// stays where it was.
			port++
			c, err := m.dial(network, to, fmt.Sprintf("0.0.0.0:%d", port))
			if err != nil {
				t.Fatalf("%s %s: %v", network, to, err)
			}
			who, _, err := exchange(c)
			c.Close()
			if err != nil {
				t.Fatalf("%s %s: %v", network, to, err)
			}
			seen[who]++
		}
		return seen
	}
	for _, network := range protocols {
		for name, from := range map[string]struct {
			m  *machine
			to string
		}{"cluster address": {client, "10.96.0.20:80"}, "node port": {outside, "192.168.77.1:30080"}, "from a node": {all[0].machine, "10.96.0.20:80"}} {
			t.Run(network+" "+name, func(t *testing.T) {
				for range 2 {
					all.put(sticky)
					if seen := answers(t, from.m, network, from.to); len(seen) != 1 {
						t.Errorf("with affinity, %v answered", seen)
					}
					all.put(free)
					if seen := answers(t, from.m, network, from.to); len(seen) < 2 {
						t.Errorf("without affinity, only %v answered", seen)
					}
				}
			})
		}
	}
	t.Run("the endpoint goes", func(t *testing.T) {
		all.put(sticky)
		gone, _, err := client.talk("tcp4", "10.96.0.20:80")
		if err != nil {
			t.Fatal(err)
		}
		var left []ep
		for i, e := range endpoints {
			if fmt.Sprintf("s%d", i) != gone {
				left = append(left, e)
			}
		}
		all.put(sliceOf("web", targets, left...))
		seen := answers(t, client, "tcp4", "10.96.0.20:80")
		if seen[gone] > 0 || len(seen) != 1 {
			t.Errorf("after %s went, %v answered", gone, seen)
		}
		// Another endpoint coming changes nothing for a client.
		all.put(sliceOf("web", targets, endpoints...))
		if again := answers(t, client, "tcp4", "10.96.0.20:80"); len(again) != 1 || again[gone] > 0 {
			t.Errorf("after %s came back, %v answered instead of %v", gone, again, seen)
		}
	})
}

// A client stays where it was while the node's process ends and another builds
// its rules from scratch; for as long as it was to, and not longer.
func TestSessionAffinityAcrossRestarts(t *testing.T) {
	t.Parallel()
	all, _ := twoNodes(t)
	client := all[0].attach("client")
	var endpoints []ep
	for i := range 6 {
		name := fmt.Sprintf("s%d", i)
		p := all[i%2].attach(name)
		p.serve(name, 8080)
		endpoints = append(endpoints, ep{addr: p.addr, node: all[i%2].config.Name})
	}
	ports, targets := both(80, 8080)
	sticky := func(name, ip string, seconds int32) *corev1.Service {
		return serviceOf(name, ip, func(s *corev1.Service) {
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}, ports...)
	}
	objects := []api.Object{all[0].object(), all[1].object(),
		sticky("web", "10.96.0.20", 600), sliceOf("web", targets, endpoints...), sticky("other", "10.96.0.21", 600), sliceOf("other", targets, endpoints...)}
	all.put(objects...)
	at := func(to string) string {
		t.Helper()
		who, _, err := client.talk("tcp4", to)
		if err != nil {
			t.Fatal(err)
		}
		return who
	}
	web, other := at("10.96.0.20:80"), at("10.96.0.21:80")
	// Six endpoints, two services, three times: by chance this passes once in
	// 46,656.
	all[0].config.Held = true // until all is there, as it is for a node that finds its cluster
	for range 3 {
		all[0].kill()
		all[0].start()
		all[:1].put(objects...)
		all[0].do(order{Do: "reached"})
		if a, b := at("10.96.0.20:80"), at("10.96.0.21:80"); a != web || b != other {
			t.Errorf("the client was at %s and %s and is now at %s and %s", web, other, a, b)
		}
	}
}
