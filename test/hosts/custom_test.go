package hosts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

var errNotThere = errors.New("it is not there")

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
	t.Run("rules", func(t *testing.T) { customRules(all.with(t), namespace(t, c)) })
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
// customRules has kubectl apply definitions with rules in CEL, and objects.
func customRules(k customs, ns string) {
	const group = "rules.example.com"
	apply := func(obj any, args ...string) (string, error) {
		text, err := yaml.Marshal(obj)
		if err != nil {
			k.Fatal(err)
		}
		return k.c.KubectlInput(k.Context(), string(text), append([]string{"apply", "-f", "-"}, args...)...)
	}
	ruled := func(rule string) *unstructured.Unstructured {
		schema := fmt.Sprintf(`{type: object, properties: {spec: {type: object, properties: {min: {type: integer}, max: {type: integer}, class: {type: string, x-kubernetes-validations: [{rule: self == oldSelf, message: the class is for good}]}}, x-kubernetes-validations: [{rule: %q, message: min is above max, fieldPath: .min}]}}}`, rule)
		return loosely(k.T, definition(group, [2]string{"v1", schema}))
	}
	refused := func(out string, err error, want string) {
		k.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			k.Errorf("kubectl says %q (%v), not %q", out, err, want)
		}
	}
	out, err := apply(ruled("self.low <= self.max"))
	refused(out, err, "undefined field 'low'")
	out, err = apply(ruled("self.min <= self.max"))
	if err != nil || strings.Contains(out, "Warning") {
		k.Fatalf("%v: %s", err, out)
	}
	k.Cleanup(func() { k.undefine("things." + group) })
	kubectl(k.T, k.c, "wait", "--for=condition=established", "--timeout=60s", "crd/things."+group)
	object := func(class string, low, high int64) *unstructured.Unstructured {
		return thing(group, "v1", "a", map[string]any{"spec": map[string]any{"min": low, "max": high, "class": class}})
	}
	out, err = apply(object("one", 3, 2), "-n", ns)
	refused(out, err, `The Thing "a" is invalid: spec.min: Invalid value: min is above max`)
	if out, err := apply(object("one", 1, 2), "-n", ns); err != nil {
		k.Fatalf("%v: %s", err, out)
	}
	out, err = apply(object("two", 1, 2), "-n", ns)
	refused(out, err, `spec.class: Invalid value: "two": the class is for good`)
	out, err = apply(object("one", 5, 2), "-n", ns, "--server-side", "--force-conflicts")
	refused(out, err, "spec.min: Invalid value: min is above max")
}

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
