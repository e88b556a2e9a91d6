package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

var definitionsResource = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")

// customs makes custom resources, each of a group of its own, and removes them
// with the test.
type customs struct {
	*testing.T
	c   *cluster.Cluster
	dyn dynamic.Interface
}

func customsOf(t *testing.T, c *cluster.Cluster) customs {
	t.Helper()
	cfg, err := c.RESTConfig(c.Hosts[0].Name)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return customs{t, c, dyn}
}

func (k customs) with(t *testing.T) customs { k.T = t; return k }

const keepAll = "{type: object, x-kubernetes-preserve-unknown-fields: true}"

// definition is a definition of Things, with versions by their schemas; the
// first in the list is stored.
func definition(group string, versions ...[2]string) *apiextensionsv1.CustomResourceDefinition {
	d := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "things." + group},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "things", Singular: "thing", Kind: "Thing", ListKind: "ThingList"},
		},
	}
	for i, v := range versions {
		props := &apiextensionsv1.JSONSchemaProps{}
		if err := yaml.UnmarshalStrict([]byte(v[1]), props); err != nil {
			panic(err) // of the test's own text
		}
		d.Spec.Versions = append(d.Spec.Versions, apiextensionsv1.CustomResourceDefinitionVersion{
			Name: v[0], Served: true, Storage: i == 0, Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: props},
		})
	}
	return d
}

func loosely(t *testing.T, obj any) *unstructured.Unstructured {
	t.Helper()
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
	if err != nil {
		t.Fatal(err)
	}
	u := &unstructured.Unstructured{Object: m}
	u.SetGroupVersionKind(apiextensionsv1.SchemeGroupVersion.WithKind("CustomResourceDefinition"))
	return u
}

// define creates a definition and waits until it is established.
func (k customs) define(d *apiextensionsv1.CustomResourceDefinition) {
	k.Helper()
	if _, err := k.dyn.Resource(definitionsResource).Create(k.Context(), loosely(k.T, d), metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { k.undefine(d.Name) })
	eventually(k.T, "the definition is established", func() error {
		now, err := k.get(d.Name)
		if err == nil && !established(now) {
			err = fmt.Errorf("its status is %+v", now.Status)
		}
		return err
	})
}

func established(d *apiextensionsv1.CustomResourceDefinition) bool {
	return slices.ContainsFunc(d.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	})
}

func (k customs) get(name string) (*apiextensionsv1.CustomResourceDefinition, error) {
	u, err := k.dyn.Resource(definitionsResource).Get(k.Context(), name, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	d := &apiextensionsv1.CustomResourceDefinition{}
	return d, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, d)
}

// undefine also runs when the test's own context has ended.
func (k customs) undefine(name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(k.Context()), time.Minute)
	defer cancel()
	if _, err := k.c.Kubectl(ctx, "delete", "crd", name, "--ignore-not-found", "--timeout=50s"); err != nil {
		k.Error(err)
	}
}

func (k customs) patch(name, patch string) {
	k.Helper()
	if _, err := k.dyn.Resource(definitionsResource).Patch(k.Context(), name, types.JSONPatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
}

func thing(group, version, name string, content map[string]any) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: content}
	if content == nil {
		u.Object = map[string]any{}
	}
	u.SetGroupVersionKind(schema.GroupVersionKind{Group: group, Version: version, Kind: "Thing"})
	u.SetName(name)
	return u
}

func things(group, version string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: "things"}
}

// TestCustomDefinitions makes definitions and changes them.
func TestCustomDefinitions(t *testing.T) {
	c := three(t)
	all := customsOf(t, c)
	t.Run("create and delete", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition creating/deleting custom resource definition objects works [Conformance]")
		k := all.with(t)
		k.define(definition("create.example.com", [2]string{"v1", keepAll}))
		if err := k.dyn.Resource(definitionsResource).Delete(t.Context(), "things.create.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the definition is gone", func() error {
			if _, err := k.get("things.create.example.com"); !apierrors.IsNotFound(err) {
				return fmt.Errorf("it is there: %v", err)
			}
			return nil
		})
	})
	t.Run("list", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition listing custom resource definition objects works [Conformance]")
		k, names := all.with(t), []string{}
		for i := range 4 {
			d := definition(fmt.Sprintf("list%d.example.com", i), [2]string{"v1", keepAll})
			if i > 0 {
				d.Labels = map[string]string{"of": "list"}
				names = append(names, d.Name)
			}
			k.define(d)
		}
		labelled := metav1.ListOptions{LabelSelector: "of=list"}
		list, err := k.dyn.Resource(definitionsResource).List(t.Context(), labelled)
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, d := range list.Items {
			found = append(found, d.GetName())
		}
		if !slices.Equal(found, names) {
			t.Errorf("listed are %v, not %v", found, names)
		}
		if err := k.dyn.Resource(definitionsResource).DeleteCollection(t.Context(), metav1.DeleteOptions{}, labelled); err != nil {
			t.Fatal(err)
		}
		eventually(t, "those with the label are gone", func() error {
			list, err := k.dyn.Resource(definitionsResource).List(t.Context(), labelled)
			if err == nil && len(list.Items) > 0 {
				err = fmt.Errorf("%d are there", len(list.Items))
			}
			return err
		})
		if _, err := k.get("things.list0.example.com"); err != nil {
			t.Errorf("the one without the label: %v", err)
		}
	})
	t.Run("status", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] Simple CustomResourceDefinition getting/updating/patching custom resource definition status sub-resource works [Conformance]")
		customStatus(all.with(t))
	})
	t.Run("discovery", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] should include custom resource definition resources in discovery documents [Conformance]")
		client := c.Client.Discovery().RESTClient()
		var groups metav1.APIGroupList
		getJSON(t, client, "/apis", &groups)
		isVersion := func(v metav1.GroupVersionForDiscovery) bool {
			return v.GroupVersion == "apiextensions.k8s.io/v1" && v.Version == "v1"
		}
		if !slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool {
			return g.Name == "apiextensions.k8s.io" && slices.ContainsFunc(g.Versions, isVersion)
		}) {
			t.Errorf("/apis says %+v", groups)
		}
		var group metav1.APIGroup
		getJSON(t, client, "/apis/apiextensions.k8s.io", &group)
		if group.Name != "apiextensions.k8s.io" || !slices.ContainsFunc(group.Versions, isVersion) {
			t.Errorf("/apis/apiextensions.k8s.io says %+v", group)
		}
		var resources metav1.APIResourceList
		getJSON(t, client, "/apis/apiextensions.k8s.io/v1", &resources)
		for _, name := range []string{"customresourcedefinitions", "customresourcedefinitions/status"} {
			if !slices.ContainsFunc(resources.APIResources, func(r metav1.APIResource) bool { return r.Name == name && r.Kind == "CustomResourceDefinition" }) {
				t.Errorf("/apis/apiextensions.k8s.io/v1 has no %s", name)
			}
		}
	})
	t.Run("watch", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourceDefinition Watch [Privileged:ClusterAdmin] CustomResourceDefinition Watch watch on custom resource definition objects [Conformance]")
		customWatch(all.with(t))
	})
	t.Run("defaults", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] CustomResourceDefinition resources [Privileged:ClusterAdmin] custom resource defaulting for requests and from storage works [Conformance]")
		customDefaults(all.with(t), namespace(t, c))
	})
	t.Run("everywhere", func(t *testing.T) { customEverywhere(all.with(t)) })
	t.Run("names", func(t *testing.T) { customNames(all.with(t)) })
	t.Run("life", func(t *testing.T) { customLife(all.with(t)) })
}

func customStatus(k customs) {
	d := definition("status.example.com", [2]string{"v1", keepAll})
	k.define(d)
	client := k.dyn.Resource(definitionsResource)
	u, err := client.Get(k.Context(), d.Name, metav1.GetOptions{}, "status")
	if err != nil {
		k.Fatal(err)
	}
	has := func(kind string) {
		k.Helper()
		now, err := k.get(d.Name)
		if err != nil {
			k.Fatal(err)
		}
		if !slices.ContainsFunc(now.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool { return string(c.Type) == kind }) {
			k.Errorf("no condition %s is among %+v", kind, now.Status.Conditions)
		}
	}
	eventually(k.T, "the status is updated", func() error {
		if u, err = client.Get(k.Context(), d.Name, metav1.GetOptions{}, "status"); err != nil {
			return err
		}
		conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
		conditions = append(conditions, map[string]any{"type": "Updated", "status": "True", "reason": "ByTest", "message": "updated"})
		if err := unstructured.SetNestedSlice(u.Object, conditions, "status", "conditions"); err != nil {
			return err
		}
		_, err = client.UpdateStatus(k.Context(), u, metav1.UpdateOptions{})
		return err
	})
	has("Updated")
	patch := `[{"op":"add","path":"/status/conditions/-","value":{"type":"Patched","status":"True","reason":"ByTest","message":"patched"}},{"op":"replace","path":"/spec/scope","value":"Cluster"}]`
	if _, err := client.Patch(k.Context(), d.Name, types.JSONPatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
		k.Fatal(err)
	}
	has("Updated")
	has("Patched")
	if now, err := k.get(d.Name); err != nil || now.Spec.Scope != apiextensionsv1.NamespaceScoped {
		k.Errorf("a patch of the status changed the spec: %+v %v", now, err)
	}
}

// customWatch follows two objects of a resource in the cluster's own scope.
func customWatch(k customs) {
	d := definition("watch.example.com", [2]string{"v1", keepAll})
	d.Spec.Scope = apiextensionsv1.ClusterScoped
	k.define(d)
	client := k.dyn.Resource(things("watch.example.com", "v1"))
	w, err := client.Watch(k.Context(), metav1.ListOptions{})
	if err != nil {
		k.Fatal(err)
	}
	defer w.Stop()
	next := func(kind watch.EventType, name string) {
		k.Helper()
		select {
		case e, open := <-w.ResultChan():
			if o, ok := e.Object.(*unstructured.Unstructured); !open || !ok || e.Type != kind || o.GetName() != name {
				k.Fatalf("%+v came, not %s of %s", e, kind, name)
			}
		case <-time.After(time.Minute):
			k.Fatalf("%s of %s did not come", kind, name)
		}
	}
	for _, name := range []string{"a", "b"} {
		if _, err := client.Create(k.Context(), thing("watch.example.com", "v1", name, nil), metav1.CreateOptions{}); err != nil {
			k.Fatal(err)
		}
		next(watch.Added, name)
		if _, err := client.Patch(k.Context(), name, types.MergePatchType, []byte(`{"spec":{"x":1}}`), metav1.PatchOptions{}); err != nil {
			k.Fatal(err)
		}
		next(watch.Modified, name)
	}
	for _, name := range []string{"a", "b"} {
		if err := client.Delete(k.Context(), name, metav1.DeleteOptions{}); err != nil {
			k.Fatal(err)
		}
		next(watch.Deleted, name)
	}
}

func customDefaults(k customs, ns string) {
	d := definition("defaults.example.com", [2]string{"v1", "{type: object, properties: {a: {type: string, default: A}, b: {type: string}}}"})
	k.define(d)
	client := k.dyn.Resource(things("defaults.example.com", "v1")).Namespace(ns)
	is := func(u *unstructured.Unstructured, a, b any) {
		k.Helper()
		if u.Object["a"] != a || u.Object["b"] != b {
			k.Errorf("a is %v and b %v, not %v and %v", u.Object["a"], u.Object["b"], a, b)
		}
	}
	made, err := client.Create(k.Context(), thing("defaults.example.com", "v1", "one", nil), metav1.CreateOptions{})
	if err != nil {
		k.Fatal(err)
	}
	is(made, "A", nil)
	// A new default shows in what was stored without it.
	k.patch(d.Name, `[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/b/default","value":"B"}]`)
	stored := func(a, b any) {
		k.Helper()
		eventually(k.T, "the defaults follow", func() error {
			u, err := client.Get(k.Context(), "one", metav1.GetOptions{})
			if err == nil && (u.Object["a"] != a || u.Object["b"] != b) {
				err = fmt.Errorf("a is %v and b %v", u.Object["a"], u.Object["b"])
			}
			return err
		})
	}
	stored("A", "B")
	// What was stored stays when its default changes; what never was follows.
	k.patch(d.Name, `[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema/properties/a/default","value":"A2"},{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema/properties/b/default","value":"B2"}]`)
	stored("A", "B2")
	if made, err = client.Create(k.Context(), thing("defaults.example.com", "v1", "two", nil), metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	is(made, "A2", "B2")
	k.patch(d.Name, `[{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/a/default"},{"op":"remove","path":"/spec/versions/0/schema/openAPIV3Schema/properties/b/default"}]`)
	stored("A", nil)
}

// customEverywhere uses a resource at every node as soon as one has it.
func customEverywhere(k customs) {
	ns := namespace(k.T, k.c)
	k.define(definition("everywhere.example.com", [2]string{"v1", keepAll}))
	for _, host := range k.c.Hosts {
		cfg, err := k.c.RESTConfig(host.Name)
		if err != nil {
			k.Fatal(err)
		}
		dyn, err := dynamic.NewForConfig(cfg)
		if err != nil {
			k.Fatal(err)
		}
		client := dyn.Resource(things("everywhere.example.com", "v1")).Namespace(ns)
		if _, err := client.Create(k.Context(), thing("everywhere.example.com", "v1", host.Name, nil), metav1.CreateOptions{}); err != nil {
			k.Errorf("at %s: %v", host.Name, err)
		}
	}
	list, err := k.dyn.Resource(things("everywhere.example.com", "v1")).Namespace(ns).List(k.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != len(k.c.Hosts) {
		k.Errorf("%d objects are there, not %d: %v", len(list.Items), len(k.c.Hosts), err)
	}
}

// customNames lets two definitions of one group want the same kind.
func customNames(k customs) {
	k.define(definition("names.example.com", [2]string{"v1", keepAll}))
	second := definition("names.example.com", [2]string{"v1", keepAll})
	second.Name, second.Spec.Names.Plural, second.Spec.Names.Singular = "others.names.example.com", "others", "other"
	if _, err := k.dyn.Resource(definitionsResource).Create(k.Context(), loosely(k.T, second), metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	k.Cleanup(func() { k.undefine(second.Name) })
	conflict := func(d *apiextensionsv1.CustomResourceDefinition) bool {
		return slices.ContainsFunc(d.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
			return c.Type == apiextensionsv1.NamesAccepted && c.Status == apiextensionsv1.ConditionFalse && c.Reason == "ListKindConflict"
		})
	}
	eventually(k.T, "the names of the second are refused", func() error {
		d, err := k.get(second.Name)
		if err == nil && !conflict(d) {
			err = fmt.Errorf("its status is %+v", d.Status)
		}
		return err
	})
	k.undefine("things.names.example.com")
	eventually(k.T, "the names are given to the second", func() error {
		d, err := k.get(second.Name)
		if err == nil && !established(d) {
			err = fmt.Errorf("its status is %+v", d.Status)
		}
		return err
	})
}

// customLife: owners, quotas, namespaces and definitions take custom resources
// with them as they do all others.
func customLife(k customs) {
	k.define(definition("life.example.com", [2]string{"v1", keepAll}))
	ns := "custom-life"
	kubectl(k.T, k.c, "create", "namespace", ns)
	client := k.dyn.Resource(things("life.example.com", "v1")).Namespace(ns)
	create := func(name string, owner *unstructured.Unstructured) (*unstructured.Unstructured, error) {
		u := thing("life.example.com", "v1", name, nil)
		if owner != nil {
			u.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: owner.GetAPIVersion(), Kind: owner.GetKind(), Name: owner.GetName(), UID: owner.GetUID()}})
		}
		return client.Create(k.Context(), u, metav1.CreateOptions{})
	}
	gone := func(names ...string) {
		k.Helper()
		eventually(k.T, fmt.Sprintf("%v are gone", names), func() error {
			for _, name := range names {
				if _, err := client.Get(k.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
					return fmt.Errorf("%s: %v", name, err)
				}
			}
			return nil
		})
	}
	owner, err := create("owner", nil)
	if err == nil {
		_, err = create("owned", owner)
	}
	if err != nil {
		k.Fatal(err)
	}
	if err := client.Delete(k.Context(), "owner", metav1.DeleteOptions{}); err != nil {
		k.Fatal(err)
	}
	gone("owner", "owned")
	kubectl(k.T, k.c, "-n", ns, "create", "quota", "few", "--hard=count/things.life.example.com=1")
	eventually(k.T, "the quota is looked after", func() error {
		q, err := k.c.Client.CoreV1().ResourceQuotas(ns).Get(k.Context(), "few", metav1.GetOptions{})
		if err == nil && len(q.Status.Hard) == 0 {
			err = errNotThere
		}
		return err
	})
	if _, err := create("first", nil); err != nil {
		k.Fatal(err)
	}
	if _, err := create("second", nil); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: few") {
		k.Fatalf("beyond the quota: %v", err)
	}
	kubectl(k.T, k.c, "delete", "namespace", ns, "--timeout=60s")
	ns = namespace(k.T, k.c)
	client = k.dyn.Resource(things("life.example.com", "v1")).Namespace(ns)
	held := thing("life.example.com", "v1", "held", nil)
	held.SetFinalizers([]string{"example.com/held"})
	if _, err := client.Create(k.Context(), held, metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	if err := k.dyn.Resource(definitionsResource).Delete(k.Context(), "things.life.example.com", metav1.DeleteOptions{}); err != nil {
		k.Fatal(err)
	}
	eventually(k.T, "the definition waits for its last object", func() error {
		d, err := k.get("things.life.example.com")
		if err != nil {
			k.Fatal(err)
		}
		for _, c := range d.Status.Conditions {
			if c.Type == apiextensionsv1.Terminating && c.Reason == "InstanceDeletionInProgress" {
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", d.Status)
	})
	if _, err := client.Patch(k.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
	eventually(k.T, "the definition is gone", func() error {
		if _, err := k.get("things.life.example.com"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
}

// TestCustomValidation sends custom resources with fields that there are not, or
// twice.
func TestCustomValidation(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	all := customsOf(t, c)
	const schemaText = `{type: object, properties: {spec: {type: object, properties: {count: {type: integer}, known: {type: string}}}}}`
	const embedded = `{type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {template: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}}}}}`
	for name, s := range map[string]string{"open": keepAll, "closed": schemaText, "embedded": embedded} {
		all.define(definition(name+".valid.example.com", [2]string{"v1", s}))
	}
	send := func(t *testing.T, group, verb, name, body string) error {
		t.Helper()
		path := []string{"/apis", group + ".valid.example.com", "v1/namespaces", ns, "things"}
		request := c.Client.CoreV1().RESTClient().Post().AbsPath(path...).SetHeader("Content-Type", "application/yaml")
		if verb == "apply" {
			request = c.Client.CoreV1().RESTClient().Patch(types.ApplyPatchType).AbsPath(append(path, name)...).Param("fieldManager", "me")
		}
		head := fmt.Sprintf("apiVersion: %s.valid.example.com/v1\nkind: Thing\n", group)
		return request.Param("fieldValidation", "Strict").Body([]byte(head + strings.ReplaceAll(body, "NAME", name))).Do(t.Context()).Error()
	}
	both := func(t *testing.T, group, body, want string) {
		t.Helper()
		for _, verb := range []string{"create", "apply"} {
			err := send(t, group, verb, strings.ToLower(strings.ReplaceAll(verb+"-"+t.Name()[strings.LastIndex(t.Name(), "/")+1:], "_", "-")), body)
			switch {
			case want == "" && err != nil:
				t.Errorf("%s: %v", verb, err)
			case want != "" && (!apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), want)):
				t.Errorf("%s: %v, not %q", verb, err, want)
			}
		}
	}
	t.Run("no schema", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should create/apply a CR with unknown fields for CRD with no validation schema [Conformance]")
		both(t, "open", "metadata: {name: NAME}\nspec: {unknown: x, count: 1}\n", "")
	})
	t.Run("valid", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should create/apply a valid CR for CRD with validation schema [Conformance]")
		both(t, "closed", "metadata: {name: NAME}\nspec: {known: x, count: 1}\n", "")
	})
	t.Run("extra", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should create/apply an invalid CR with extra properties for CRD with validation schema [Conformance]")
		both(t, "closed", "metadata: {name: NAME}\nspec: {known: x, extra: 1}\n", `unknown field "spec.extra"`)
	})
	t.Run("twice", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should detect duplicates in a CR when preserving unknown fields [Conformance]")
		both(t, "open", "metadata: {name: NAME}\nspec:\n  a: 1\n  a: 2\n", `key "a" already set in map`)
	})
	t.Run("metadata", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] FieldValidation should detect unknown metadata fields in both the root and embedded object of a CR [Conformance]")
		both(t, "embedded", "metadata: {name: NAME, odd: x}\nspec: {template: {apiVersion: v1, kind: Pod, metadata: {name: a}}}\n", `unknown field "metadata.odd"`)
		both(t, "embedded", "metadata: {name: NAME}\nspec: {template: {apiVersion: v1, kind: Pod, metadata: {name: a, odd: x}}}\n", `unknown field "spec.template.metadata.odd"`)
	})
}

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
		d, ok := discovery.NewDiscoveryClient(c.Client.Discovery().RESTClient()), true
		if !ok {
			t.Fatal("no client")
		}
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

var errNotThere = errors.New("it is not there")

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
