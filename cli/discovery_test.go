package cli

import (
	"testing"

	discoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestServed(t *testing.T) {
	resource := func(kind, plural, singular string, scope discoveryv2.ResourceScope, short ...string) discoveryv2.APIResourceDiscovery {
		return discoveryv2.APIResourceDiscovery{Resource: plural, SingularResource: singular, ShortNames: short, Scope: scope,
			ResponseKind: &metav1.GroupVersionKind{Kind: kind}}
	}
	group := func(name string, versions ...discoveryv2.APIVersionDiscovery) discoveryv2.APIGroupDiscovery {
		return discoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: name}, Versions: versions}
	}
	version := func(name string, resources ...discoveryv2.APIResourceDiscovery) discoveryv2.APIVersionDiscovery {
		return discoveryv2.APIVersionDiscovery{Version: name, Resources: resources}
	}
	const namespaced, cluster = discoveryv2.ScopeNamespace, discoveryv2.ScopeCluster
	all := readDiscovery(discoveryv2.APIGroupDiscoveryList{Items: []discoveryv2.APIGroupDiscovery{
		group("", version("v1", resource("Pod", "pods", "pod", namespaced, "po"), resource("Node", "nodes", "node", cluster), resource("Event", "events", "event", namespaced, "ev"))),
		group("events.k8s.io", version("v1", resource("Event", "events", "event", namespaced, "ev"))),
		group("x.io", version("v2", resource("Thing", "things", "thing", cluster)), version("v1", resource("Thing", "things", "thing", cluster))),
	}})
	for word, want := range map[string]schema.GroupVersionResource{
		"po": {Version: "v1", Resource: "pods"}, "Pod": {Version: "v1", Resource: "pods"}, "PODS": {Version: "v1", Resource: "pods"},
		"node": {Version: "v1", Resource: "nodes"}, "ev": {Version: "v1", Resource: "events"},
		"events.events.k8s.io": {Group: "events.k8s.io", Version: "v1", Resource: "events"},
		"thing":                {Group: "x.io", Version: "v2", Resource: "things"},
		"things.x.io":          {Group: "x.io", Version: "v2", Resource: "things"},
		"things.v1.x.io":       {Group: "x.io", Version: "v1", Resource: "things"},
		"pods.x.io":            {}, "": {}, "widgets": {},
	} {
		m, err := all.word(word)
		if want.Resource == "" {
			if err == nil {
				t.Errorf("%q is %v", word, m.Resource)
			}
		} else if err != nil || m.Resource != want {
			t.Errorf("%q: %v, %v", word, m, err)
		}
	}
	thing := schema.GroupVersionKind{Group: "x.io", Version: "v1", Kind: "Thing"}
	m, err := all.kind(thing)
	if err != nil || m.GroupVersionKind != thing || path(m, "shop", "a") != "/apis/x.io/v1/things/a" {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := all.kind(schema.GroupVersionKind{Version: "v1", Kind: "Thing"}); err == nil {
		t.Error("a kind of another group was found")
	}
	if m, err := all.kind(schema.GroupVersionKind{Version: "v1", Kind: "Pod"}); err != nil || path(m, "shop", "") != "/api/v1/namespaces/shop/pods" {
		t.Errorf("%v, %v", m, err)
	}
}
