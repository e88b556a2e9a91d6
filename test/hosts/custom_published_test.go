package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"conclave/test/conformance"
)

// TestAggregatedDiscovery asks for everything in one document.
func TestAggregatedDiscovery(t *testing.T) {
	c := three(t)
	all := customsOf(t, c)
	expected := map[schema.GroupVersion][]string{
		{Version: "v1"}:                                 {"namespaces", "nodes", "pods", "services", "configmaps", "secrets", "persistentvolumes"},
		{Group: "apps", Version: "v1"}:                  {"deployments", "daemonsets", "replicasets", "statefulsets"},
		{Group: "batch", Version: "v1"}:                 {"jobs", "cronjobs"},
		{Group: "networking.k8s.io", Version: "v1"}:     {"ingresses", "networkpolicies"},
		{Group: "storage.k8s.io", Version: "v1"}:        {"storageclasses", "volumeattachments"},
		{Group: "policy", Version: "v1"}:                {"poddisruptionbudgets"},
		{Group: "apiextensions.k8s.io", Version: "v1"}:  {"customresourcedefinitions"},
		{Group: "authorization.k8s.io", Version: "v1"}:  {"subjectaccessreviews"},
		{Group: "authentication.k8s.io", Version: "v1"}: {"tokenreviews"},
	}
	// Every resource that the old documents have is expected in the new one.
	lists, err := c.Client.Discovery().ServerPreferredResources()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(gv.Group, "example.com") {
			continue // of another test, and perhaps gone by now
		}
		for _, r := range l.APIResources {
			if !strings.Contains(r.Name, "/") {
				expected[gv] = append(expected[gv], r.Name)
			}
		}
	}
	client := func(t *testing.T) map[schema.GroupVersion]*metav1.APIResourceList {
		t.Helper()
		d := discovery.NewDiscoveryClient(c.Client.Discovery().RESTClient())
		_, resources, failed, err := d.GroupsAndMaybeResources()
		if err != nil || resources == nil || len(failed) > 0 {
			t.Fatalf("aggregated discovery: %v %v (%d resources)", err, failed, len(resources))
		}
		return resources
	}
	type document struct {
		Kind  string
		Items []struct {
			Metadata metav1.ObjectMeta
			Versions []struct {
				Version   string
				Resources []struct{ Resource string }
			}
		}
	}
	raw := func(t *testing.T, version string) map[schema.GroupVersion][]string {
		t.Helper()
		found := map[schema.GroupVersion][]string{}
		for _, path := range []string{"/api", "/apis"} {
			var kind string
			result := c.Client.Discovery().RESTClient().Get().AbsPath(path).
				SetHeader("Accept", "application/json;g=apidiscovery.k8s.io;v="+version+";as=APIGroupDiscoveryList").Do(t.Context()).ContentType(&kind)
			body, err := result.Raw()
			var doc document
			if err == nil {
				err = json.Unmarshal(body, &doc)
			}
			if err != nil || doc.Kind != "APIGroupDiscoveryList" || !strings.Contains(kind, "as=APIGroupDiscoveryList") || !strings.Contains(kind, "v="+version) {
				t.Fatalf("%s as %s: %v, kind %s, content type %s", path, version, err, doc.Kind, kind)
			}
			for _, g := range doc.Items {
				for _, v := range g.Versions {
					gv := schema.GroupVersion{Group: g.Metadata.Name, Version: v.Version}
					for _, r := range v.Resources {
						found[gv] = append(found[gv], r.Resource)
					}
				}
			}
		}
		return found
	}
	t.Run("client", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface [Conformance]")
		resources := client(t)
		for gv, names := range expected {
			for _, name := range names {
				if resources[gv] == nil || !slices.ContainsFunc(resources[gv].APIResources, func(r metav1.APIResource) bool { return r.Name == name }) {
					t.Errorf("%s has no %s", gv, name)
				}
			}
		}
	})
	t.Run("raw", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery endpoint Accept headers [Conformance]")
		found := raw(t, "v2")
		for gv, names := range expected {
			for _, name := range names {
				if !slices.Contains(found[gv], name) {
					t.Errorf("%s has no %s", gv, name)
				}
			}
		}
		if body, err := c.Client.Discovery().RESTClient().Get().AbsPath("/apis").SetHeader("Accept", "application/json").DoRaw(t.Context()); err != nil || !strings.Contains(string(body), `"APIGroupList"`) {
			t.Errorf("without the header: %s %v", body, err)
		}
	})
	t.Run("custom client", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface for CRDs [Conformance]")
		all.with(t).define(definition("client.aggregated.example.com", [2]string{"v1", keepAll}))
		gv := schema.GroupVersion{Group: "client.aggregated.example.com", Version: "v1"}
		eventually(t, "the client sees the resource", func() error {
			if l := client(t)[gv]; l == nil || len(l.APIResources) != 1 || l.APIResources[0].Name != "things" || l.APIResources[0].Kind != "Thing" || !l.APIResources[0].Namespaced {
				return fmt.Errorf("it has %+v", l)
			}
			return nil
		})
	})
	t.Run("custom raw", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery request for CRDs [Conformance]")
		all.with(t).define(definition("raw.aggregated.example.com", [2]string{"v1", keepAll}))
		eventually(t, "the document has the resource", func() error {
			if found := raw(t, "v2")[schema.GroupVersion{Group: "raw.aggregated.example.com", Version: "v1"}]; !slices.Equal(found, []string{"things"}) {
				return fmt.Errorf("it has %v", found)
			}
			return nil
		})
	})
}

// published is the schema of a kind in the document of version 2.
func (k customs) published(group, version string) (map[string]any, error) {
	var doc struct{ Definitions map[string]map[string]any }
	raw, err := k.c.Client.Discovery().RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").DoRaw(k.Context())
	if err == nil {
		err = json.Unmarshal(raw, &doc)
	}
	if err != nil {
		return nil, err
	}
	parts := strings.Split(group, ".")
	slices.Reverse(parts)
	model := doc.Definitions[strings.Join(parts, ".")+"."+version+".Thing"]
	if model == nil {
		return nil, errNotThere
	}
	return model, nil
}

func (k customs) publishes(group, version string, wanted bool) {
	k.Helper()
	eventually(k.T, fmt.Sprintf("%s/%s is published: %t", group, version, wanted), func() error {
		switch _, err := k.published(group, version); {
		case err != nil && !errors.Is(err, errNotThere):
			return err
		case (err == nil) != wanted:
			return fmt.Errorf("is it? %v", err == nil)
		}
		return nil
	})
}

// TestCustomOpenAPI reads what is published of custom resources, itself and by
// kubectl.
func TestCustomOpenAPI(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	all := customsOf(t, c)
	// kubectl with what it should say; what begins with ! is to be refused.
	try := func(t *testing.T, group, verb, content, want string) {
		t.Helper()
		manifest := fmt.Sprintf("apiVersion: %s/v1\nkind: Thing\nmetadata: {name: test}\n%s", group, content)
		out, err := c.KubectlInput(t.Context(), manifest, "-n", ns, verb, "-f", "-")
		refusal, refused := strings.CutPrefix(want, "!")
		switch {
		case refused && (err == nil || !strings.Contains(err.Error(), refusal)):
			t.Errorf("kubectl %s of %q: %s %v, not %q", verb, content, out, err, refusal)
		case !refused && err != nil:
			t.Errorf("kubectl %s of %q: %v", verb, content, err)
		}
	}
	accepted := func(t *testing.T, group, content string) {
		t.Helper()
		try(t, group, "create", content, "")
		try(t, group, "delete", content, "")
		try(t, group, "apply", content, "")
		try(t, group, "delete", content, "")
	}
	explain := func(t *testing.T, group, what string, wanted ...string) {
		t.Helper()
		mustContain(t, "explain "+what, kubectl(t, c, "explain", what, "--api-version="+group+"/v1"), wanted...)
	}
	const bars = `
description: Foo CRD for Testing
type: object
properties:
  spec:
    type: object
    description: Specification of Foo
    properties:
      bars:
        description: List of Bars and their specs.
        type: array
        items:
          type: object
          required: [name]
          properties:
            name: {description: Name of Bar., type: string}
            age: {description: Age of Bar., type: string}
            feeling: {description: Whether Bar is feeling great., type: string, enum: [Great, Down]}
            bazs: {description: List of Bazs., type: array, items: {type: string}}
  status:
    description: Status of Foo
    type: object
    properties: {bars: {description: List of Bars and their statuses., type: array, items: {type: string}}}
`
	t.Run("schema", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD with validation schema [Conformance]")
		k, group := all.with(t), "schema.publish.example.com"
		k.define(definition(group, [2]string{"v1", bars}))
		k.publishes(group, "v1", true)
		accepted(t, group, "spec: {bars: [{name: test-bar, age: '10', feeling: Great}]}")
		try(t, group, "create", "spec: {bars: [{name: test-bar, feeling: NonExistentValue}]}", "!supported values")
		for _, verb := range []string{"create", "apply"} {
			try(t, group, verb, "spec: {foo: true}", `!unknown field "spec.foo"`)
			try(t, group, verb, "spec: {bars: [{age: '10'}]}", "!spec.bars[0].name: Required value")
		}
		explain(t, group, "things", "DESCRIPTION:\n    Foo CRD for Testing", "FIELDS:", "apiVersion\t<string>", "metadata\t<ObjectMeta>", "spec\t<Object>", "Specification of Foo")
		explain(t, group, "things.metadata", "creationTimestamp\t<string>")
		explain(t, group, "things.spec", "DESCRIPTION:\n    Specification of Foo", "bars\t<[]Object>", "List of Bars and their specs.")
		explain(t, group, "things.spec.bars", "name\t<string> -required-", "Name of Bar.", "bazs\t<[]string>", "enum: Great, Down")
		if out, err := c.Kubectl(t.Context(), "explain", "things.spec.bars2", "--api-version="+group+"/v1"); err == nil || !strings.Contains(err.Error(), `"bars2" does not exist`) {
			t.Errorf("explain of a field that there is not: %s %v", out, err)
		}
	})
	t.Run("no schema", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD without validation schema [Conformance]")
		k, group := all.with(t), "empty.publish.example.com"
		k.define(definition(group, [2]string{"v1", keepAll}))
		k.publishes(group, "v1", true)
		accepted(t, group, "a: {b: [1, c]}")
		explain(t, group, "things", "KIND:       Thing", "DESCRIPTION:\n    <empty>")
	})
	t.Run("open root", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD preserving unknown fields at the schema root [Conformance]")
		k, group := all.with(t), "root.publish.example.com"
		k.define(definition(group, [2]string{"v1", "x-kubernetes-preserve-unknown-fields: true\n" + strings.TrimPrefix(bars, "\n")}))
		k.publishes(group, "v1", true)
		accepted(t, group, "a: {b: [1, c]}")
		explain(t, group, "things", "KIND:       Thing", "Foo CRD for Testing")
	})
	t.Run("open part", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for CRD preserving unknown fields in an embedded object [Conformance]")
		k, group := all.with(t), "part.publish.example.com"
		k.define(definition(group, [2]string{"v1", `
description: preserve-unknown-properties in nested field for Testing
type: object
properties:
  spec: {type: object, description: Specification of Waldo, x-kubernetes-preserve-unknown-fields: true, properties: {dummy: {description: Dummy property., type: object}}}
  status: {type: object, description: Status of Waldo, properties: {bars: {type: array, items: {type: object}}}}
`}))
		k.publishes(group, "v1", true)
		accepted(t, group, "spec: {b: [{c: d}]}")
		explain(t, group, "things", "KIND:       Thing", "preserve-unknown-properties in nested field for Testing", "spec\t<Object>", "Specification of Waldo", "status\t<Object>")
	})
	t.Run("groups", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for multiple CRDs of different groups [Conformance]")
		k := all.with(t)
		k.define(definition("one.publish.example.com", [2]string{"v1", bars}))
		k.define(definition("two.publish.example.com", [2]string{"v1", bars}))
		k.publishes("one.publish.example.com", "v1", true)
		k.publishes("two.publish.example.com", "v1", true)
	})
	t.Run("versions", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for multiple CRDs of same group but different versions [Conformance]")
		k := all.with(t)
		k.define(definition("versions.publish.example.com", [2]string{"v2", bars}, [2]string{"v3", bars}))
		k.publishes("versions.publish.example.com", "v2", true)
		k.publishes("versions.publish.example.com", "v3", true)
		// And in two definitions.
		other := definition("versions.publish.example.com", [2]string{"v4", bars})
		other.Name, other.Spec.Names = "others.versions.publish.example.com", apiextensionsv1.CustomResourceDefinitionNames{Plural: "others", Singular: "other", Kind: "Other", ListKind: "OtherList"}
		k.define(other)
		eventually(t, "the other's is published", func() error {
			raw, err := c.Client.Discovery().RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").DoRaw(t.Context())
			if err == nil && !strings.Contains(string(raw), `"com.example.publish.versions.v4.Other":`) {
				err = errNotThere
			}
			return err
		})
		k.publishes("versions.publish.example.com", "v2", true)
	})
	t.Run("kinds", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] works for multiple CRDs of same group and version but different kinds [Conformance]")
		k, group := all.with(t), "kinds.publish.example.com"
		k.define(definition(group, [2]string{"v1", bars}))
		other := definition(group, [2]string{"v1", bars})
		other.Name, other.Spec.Names = "others.kinds.publish.example.com", apiextensionsv1.CustomResourceDefinitionNames{Plural: "others", Singular: "other", Kind: "Other", ListKind: "OtherList"}
		k.define(other)
		k.publishes(group, "v1", true)
		explain(t, group, "others", "KIND:       Other")
		raw, err := c.Client.Discovery().RESTClient().Get().AbsPath("/openapi/v2").SetHeader("Accept", "application/json").DoRaw(t.Context())
		if err != nil || !strings.Contains(string(raw), `"com.example.publish.kinds.v1.Other":`) {
			t.Errorf("the other kind is not published: %v", err)
		}
	})
	t.Run("renamed", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] updates the published spec when one version gets renamed [Conformance]")
		k, group := all.with(t), "renamed.publish.example.com"
		k.define(definition(group, [2]string{"v2", bars}, [2]string{"v3", bars}))
		k.publishes(group, "v3", true)
		before, err := k.published(group, "v2")
		if err != nil {
			t.Fatal(err)
		}
		k.patch("things."+group, `[{"op":"test","path":"/spec/versions/1/name","value":"v3"},{"op":"replace","path":"/spec/versions/1/name","value":"v4"}]`)
		k.publishes(group, "v4", true)
		k.publishes(group, "v3", false)
		if after, err := k.published(group, "v2"); err != nil || !equality.Semantic.DeepEqual(before, after) {
			t.Errorf("the other version is published otherwise: %v", err)
		}
	})
	t.Run("not served", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourcePublishOpenAPI [Privileged:ClusterAdmin] removes definition from spec when one version gets changed to not be served [Conformance]")
		k, group := all.with(t), "unserved.publish.example.com"
		k.define(definition(group, [2]string{"v5", bars}, [2]string{"v6alpha1", bars}))
		k.publishes(group, "v6alpha1", true)
		before, err := k.published(group, "v5")
		if err != nil {
			t.Fatal(err)
		}
		k.patch("things."+group, `[{"op":"test","path":"/spec/versions/1/name","value":"v6alpha1"},{"op":"replace","path":"/spec/versions/1/served","value":false}]`)
		k.publishes(group, "v6alpha1", false)
		if after, err := k.published(group, "v5"); err != nil || !equality.Semantic.DeepEqual(before, after) {
			t.Errorf("the other version is published otherwise: %v", err)
		}
	})
}
