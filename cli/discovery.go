package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	discoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
)

// served is the kinds of a cluster in the order of its preference. client-go's
// own discovery knows as much, and with it every published Kubernetes type,
// which would be a sixth of this program.
type served []servedKind

type servedKind struct {
	meta.RESTMapping
	words []string // what users call it
}

const discoveryAccept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

// discover asks a cluster what it serves.
func discover(ctx context.Context, client rest.Interface) (served, error) {
	var all served
	for _, root := range []string{"/api", "/apis"} {
		raw, err := answer(ctx, client.Get().AbsPath(root).SetHeader("Accept", discoveryAccept))
		if err != nil {
			return nil, fmt.Errorf("ask the cluster for its kinds: %w", err)
		}
		var list discoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(raw, &list); err != nil {
			return nil, fmt.Errorf("read the kinds that the cluster serves: %w", err)
		}
		if list.Kind != "APIGroupDiscoveryList" {
			return nil, fmt.Errorf("the cluster answers %s with a %q: it must be Kubernetes 1.30 or newer", root, list.Kind)
		}
		all = append(all, readDiscovery(list)...)
	}
	return all, nil
}

func readDiscovery(list discoveryv2.APIGroupDiscoveryList) served {
	var all served
	for _, group := range list.Items {
		for _, version := range group.Versions {
			gv := schema.GroupVersion{Group: group.Name, Version: version.Version}
			for _, r := range version.Resources {
				if r.ResponseKind == nil {
					continue // only its subresources are served
				}
				k := servedKind{words: append([]string{r.Resource, r.SingularResource, strings.ToLower(r.ResponseKind.Kind)}, r.ShortNames...)}
				k.Resource, k.GroupVersionKind, k.Scope = gv.WithResource(r.Resource), gv.WithKind(r.ResponseKind.Kind), meta.RESTScopeRoot
				if r.Scope == discoveryv2.ScopeNamespace {
					k.Scope = meta.RESTScopeNamespace
				}
				all = append(all, k)
			}
		}
	}
	return all
}

// word finds what a user's word means: KIND, KIND.GROUP or KIND.VERSION.GROUP,
// where KIND is any name of it.
func (s served) word(word string) (*meta.RESTMapping, error) {
	name, rest, qualified := strings.Cut(strings.ToLower(word), ".")
	for i := range s {
		k := &s[i]
		gv := k.Resource.GroupVersion()
		if slices.Contains(k.words, name) && name != "" && (!qualified || rest == gv.Group || rest == gv.Version+"."+gv.Group) {
			return &k.RESTMapping, nil
		}
	}
	return nil, fmt.Errorf("the server doesn't have a resource type %q", word)
}

// kind finds the resource of the objects of a kind.
func (s served) kind(gvk schema.GroupVersionKind) (*meta.RESTMapping, error) {
	for i := range s {
		if s[i].GroupVersionKind == gvk {
			return &s[i].RESTMapping, nil
		}
	}
	return nil, fmt.Errorf("the server knows no kind %s in %s", gvk.Kind, gvk.GroupVersion())
}
