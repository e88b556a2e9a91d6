package api

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	discoveryv2 "k8s.io/api/apidiscovery/v2"
	discoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
)

var allVerbs = metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// discovery is what the server serves, in the forms that clients ask for. It
// is made once for a table of kinds.
type discovery struct {
	groups    []metav1.APIGroup                               // all but the core
	resources map[schema.GroupVersion]*metav1.APIResourceList // the old form
	whole     map[string]map[string]*document                 // "/api", "/apis" → version → the aggregated form
	order     []schema.GroupVersion

	// Of what other servers serve: what may not be the whole, and how it is ordered.
	stale      map[schema.GroupVersion]bool
	priorities map[schema.GroupVersion]priority
}

type document struct {
	body []byte
	etag string
}

func newDocument(obj any) *document {
	b, err := json.Marshal(obj)
	if err != nil {
		panic(err) // of strings and booleans
	}
	sum := sha256.Sum256(b)
	return &document{body: b, etag: `"` + strings.ToUpper(hex.EncodeToString(sum[:])) + `"`}
}

func (d *discovery) build(s *Server, rows []*resource, others []extension) {
	d.resources = map[schema.GroupVersion]*metav1.APIResourceList{}
	list := func(gv schema.GroupVersion) *metav1.APIResourceList {
		l := d.resources[gv]
		if l == nil {
			l = &metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: gv.String()}
			d.resources[gv] = l
			d.order = append(d.order, gv)
		}
		return l
	}
	for _, r := range rows {
		l := list(r.gvr.GroupVersion())
		l.APIResources = append(l.APIResources, metav1.APIResource{
			Name: r.Plural, SingularName: r.Singular, Namespaced: r.Namespaced, Kind: r.GVK.Kind, Verbs: s.verbs(r),
			ShortNames: r.ShortNames, Categories: r.Categories, StorageVersionHash: storageHash(r.storedGVK()),
		})
		for _, sub := range r.subresources(s.creators) {
			a := metav1.APIResource{Name: r.Plural + "/" + sub.name, Namespaced: r.Namespaced, Kind: sub.gvk.Kind, Verbs: sub.verbs}
			if sub.gvk.GroupVersion() != r.gvr.GroupVersion() {
				a.Group, a.Version = sub.gvk.Group, sub.gvk.Version
			}
			l.APIResources = append(l.APIResources, a)
		}
	}
	for gvr, r := range s.reviews {
		l := list(gvr.GroupVersion())
		l.APIResources = append(l.APIResources, metav1.APIResource{
			Name: r.plural, SingularName: strings.ToLower(r.gvk.Kind), Namespaced: r.namespaced, Kind: r.gvk.Kind, Verbs: metav1.Verbs{"create"},
		})
	}
	l := list(metricsVersion)
	l.APIResources = append(l.APIResources, metricsResources()...)
	for _, l := range d.resources {
		slices.SortFunc(l.APIResources, func(a, b metav1.APIResource) int { return cmp.Compare(a.Name, b.Name) })
	}
	d.addBehind(others)
	// Of the versions of a group, the first is the one that clients prefer.
	d.sort(version.CompareKubeAwareVersionStrings)
	for _, gv := range d.order {
		if gv.Group == "" {
			continue
		}
		v := metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
		if n := len(d.groups); n > 0 && d.groups[n-1].Name == gv.Group {
			d.groups[n-1].Versions = append(d.groups[n-1].Versions, v)
			continue
		}
		d.groups = append(d.groups, metav1.APIGroup{
			TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, Name: gv.Group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v,
		})
	}
	d.whole = map[string]map[string]*document{}
	for path, core := range map[string]bool{"/api": true, "/apis": false} {
		v2 := d.aggregate(core)
		d.whole[path] = map[string]*document{"v2": newDocument(v2)}
		// The two versions differ in nothing but their name.
		var old discoveryv2beta1.APIGroupDiscoveryList
		if err := json.Unmarshal(d.whole[path]["v2"].body, &old); err == nil {
			old.APIVersion = discoveryv2beta1.SchemeGroupVersion.String()
			d.whole[path]["v2beta1"] = newDocument(old)
		}
	}
}

// storageHash tells clients when a kind is stored otherwise than before.
func storageHash(gvk schema.GroupVersionKind) string {
	sum := sha256.Sum256([]byte(gvk.Group + "/" + gvk.Version + "/" + gvk.Kind))
	return hex.EncodeToString(sum[:4])
}

func (d *discovery) aggregate(core bool) *discoveryv2.APIGroupDiscoveryList {
	list := &discoveryv2.APIGroupDiscoveryList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: discoveryv2.SchemeGroupVersion.String()}}
	for _, gv := range d.order {
		if (gv.Group == "") != core {
			continue
		}
		v := discoveryv2.APIVersionDiscovery{Version: gv.Version, Freshness: discoveryv2.DiscoveryFreshnessCurrent}
		if d.stale[gv] {
			v.Freshness = discoveryv2.DiscoveryFreshnessStale
		}
		for _, a := range d.resources[gv].APIResources {
			v.Resources = appendDiscovered(v.Resources, gv, a)
		}
		if n := len(list.Items); n > 0 && list.Items[n-1].Name == gv.Group {
			list.Items[n-1].Versions = append(list.Items[n-1].Versions, v)
			continue
		}
		list.Items = append(list.Items, discoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: gv.Group}, Versions: []discoveryv2.APIVersionDiscovery{v}})
	}
	return list
}

// appendDiscovered adds a resource, or a subresource to its resource, which is
// there before it.
func appendDiscovered(all []discoveryv2.APIResourceDiscovery, gv schema.GroupVersion, a metav1.APIResource) []discoveryv2.APIResourceDiscovery {
	kind := &metav1.GroupVersionKind{Group: gv.Group, Version: gv.Version, Kind: a.Kind}
	if a.Version != "" {
		kind.Group, kind.Version = a.Group, a.Version
	}
	if name, sub, ok := strings.Cut(a.Name, "/"); ok {
		for i := range all {
			if all[i].Resource == name {
				all[i].Subresources = append(all[i].Subresources, discoveryv2.APISubresourceDiscovery{Subresource: sub, ResponseKind: kind, Verbs: a.Verbs})
			}
		}
		return all
	}
	scope := discoveryv2.ScopeCluster
	if a.Namespaced {
		scope = discoveryv2.ScopeNamespace
	}
	return append(all, discoveryv2.APIResourceDiscovery{
		Resource: a.Name, ResponseKind: kind, Scope: scope, SingularResource: a.SingularName,
		Verbs: a.Verbs, ShortNames: a.ShortNames, Categories: a.Categories,
	})
}

// discover answers what is below /api and /apis. found says that there is
// something by that path.
func (x *exchange) discover(path string) (found bool, err error) {
	if path == "/apis" {
		x.s.lookBehind(x.r.Context())
	}
	d := x.s.discovery()
	if whole := d.whole[path]; whole != nil {
		if version := aggregatedVersion(x.r.Header.Get("Accept")); version != "" {
			doc := whole[version]
			h := x.w.Header()
			h.Set("ETag", doc.etag)
			h.Add("Vary", "Accept")
			if x.r.Header.Get("If-None-Match") == doc.etag {
				x.w.WriteHeader(http.StatusNotModified)
				return true, nil
			}
			x.format.media = mediaJSON + ";g=apidiscovery.k8s.io;v=" + version + ";as=APIGroupDiscoveryList"
			return true, x.bytes(http.StatusOK, doc.body)
		}
	}
	var obj runtime.Object
	switch parts := strings.Split(strings.Trim(path, "/"), "/"); {
	case path == "/api":
		obj = &metav1.APIVersions{
			TypeMeta: metav1.TypeMeta{Kind: "APIVersions", APIVersion: "v1"}, Versions: []string{"v1"},
			ServerAddressByClientCIDRs: []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: x.r.Host}},
		}
	case path == "/apis":
		obj = &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: d.groups}
	case len(parts) == 2 && parts[0] == "apis":
		for i := range d.groups {
			if d.groups[i].Name == parts[1] {
				obj = &d.groups[i]
			}
		}
	case len(parts) == 2 && parts[0] == "api":
		if l := d.resources[schema.GroupVersion{Version: parts[1]}]; l != nil {
			obj = l
		}
	case len(parts) == 3 && parts[0] == "apis":
		if l := d.resources[schema.GroupVersion{Group: parts[1], Version: parts[2]}]; l != nil {
			obj = l
		}
	}
	if obj == nil {
		return false, nil
	}
	return true, x.object(http.StatusOK, obj)
}

// aggregatedVersion is the version of the aggregated form that a client
// prefers to the old form, empty if none.
func aggregatedVersion(accept string) string {
	for _, a := range parseAccept(accept) {
		if a.media != mediaJSON && a.media != "*/*" && a.media != "application/*" {
			continue
		}
		if a.params["as"] == "" {
			return ""
		}
		v := a.params["v"]
		if a.params["g"] == "apidiscovery.k8s.io" && a.params["as"] == "APIGroupDiscoveryList" && (v == "v2" || v == "v2beta1") {
			return v
		}
	}
	return ""
}
