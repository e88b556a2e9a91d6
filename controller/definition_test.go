package controller

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
	"conclave/api/custom"
)

// mice is a definition whose plural nobody would guess from its kind.
func mice(edit ...func(*custom.Definition)) *custom.Definition {
	open := true
	d := &custom.Definition{
		ObjectMeta: metav1.ObjectMeta{Name: "mice.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "mice", Kind: "Mouse"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &open}},
			}},
		},
	}
	for _, f := range edit {
		f(d)
	}
	return d
}

var miceResource = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "mice"}

func mouse(name string, owners ...api.Object) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(miceResource.GroupVersion().WithKind("Mouse"))
	u.SetNamespace("default")
	u.SetName(name)
	var refs []metav1.OwnerReference
	for _, o := range owners {
		gvk := o.GetObjectKind().GroupVersionKind()
		refs = append(refs, metav1.OwnerReference{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Name: o.GetName(), UID: o.GetUID()})
	}
	u.SetOwnerReferences(refs)
	return u
}

func (w *world) definition(name string) *custom.Definition {
	w.Helper()
	o, err := w.client.Get(w.ctx, definitions, "", name, metav1.GetOptions{})
	if err != nil {
		w.Fatal(err)
	}
	return o.(*custom.Definition)
}

func TestDefinition(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, definitions, mice())
		w.settle(time.Second)
		if d := w.definition("mice.example.com"); !custom.IsTrue(d, custom.Established) || d.Status.AcceptedNames.ListKind != "MouseList" {
			t.Fatalf("its status is %+v", d.Status)
		}
		// Owners and owned, of this kind and others.
		mother := create[api.Object](w, miceResource, mouse("mother"))
		create[api.Object](w, miceResource, mouse("child", mother))
		cheese := configMap("cheese")
		cheese.OwnerReferences = mouse("", mother).GetOwnerReferences()
		create(w, configMaps, cheese)
		w.settle(time.Second)
		if !w.exists(miceResource, "default", "child") || !w.exists(configMaps, "default", "cheese") {
			t.Fatal("what has an owner is gone")
		}
		w.remove(miceResource, "default", "mother", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if w.exists(miceResource, "default", "child") || w.exists(configMaps, "default", "cheese") {
			t.Error("what has no owner any more stays")
		}
		// With the definition its objects go, and what they own.
		held := mouse("held")
		held.SetFinalizers([]string{"example.com/trap"})
		owner := create[api.Object](w, miceResource, held)
		cheese = configMap("more-cheese")
		cheese.OwnerReferences = mouse("", owner).GetOwnerReferences()
		create(w, configMaps, cheese)
		w.settle(time.Second)
		w.remove(definitions, "", "mice.example.com", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if c := custom.Condition(w.definition("mice.example.com"), custom.Terminating); c == nil || c.Reason != "InstanceDeletionInProgress" {
			t.Errorf("it waits with %+v", c)
		}
		o, err := w.client.Get(w.ctx, miceResource, "default", "held", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		o = o.DeepCopyObject().(api.Object)
		o.SetFinalizers(nil)
		if _, err := w.client.Update(w.ctx, miceResource, "default", o, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.settle(5 * time.Second)
		if w.exists(definitions, "", "mice.example.com") || w.exists(configMaps, "default", "more-cheese") {
			t.Error("the definition or what its objects owned is still there")
		}
		// A new definition of the same name begins anew.
		create(w, definitions, mice())
		w.settle(time.Second)
		create[api.Object](w, miceResource, mouse("again"))
		if list, _, err := w.client.List(w.ctx, miceResource, "default", metav1.ListOptions{}); err != nil || len(list) != 1 {
			t.Errorf("%d mice are there: %v", len(list), err)
		}
	})
}

// A version that is not served is still looked after, and so are its objects.
func TestDefinitionNotServed(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, definitions, mice())
		w.settle(time.Second)
		create[api.Object](w, miceResource, mouse("hidden"))
		d := w.definition("mice.example.com").DeepCopy()
		d.Spec.Versions[0].Served = false
		if _, err := w.client.Update(w.ctx, definitions, "", d, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.remove(definitions, "", "mice.example.com", metav1.DeletePropagationBackground)
		w.settle(5 * time.Second)
		if w.exists(definitions, "", "mice.example.com") {
			t.Errorf("it stays: %+v", w.definition("mice.example.com").Status)
		}
		create(w, definitions, mice())
		w.settle(time.Second)
		if list, _, err := w.client.List(w.ctx, miceResource, "default", metav1.ListOptions{}); err != nil || len(list) != 0 {
			t.Errorf("%d old mice are there: %v", len(list), err)
		}
	})
}

// A definition of a kind that Conclave has by itself gets no hold of it.
func TestDefinitionOfBuiltIn(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, definitions, mice(func(d *custom.Definition) {
			d.Name, d.Spec.Group, d.Spec.Names.Plural, d.Spec.Names.Kind = "ingressclasses.networking.k8s.io", "networking.k8s.io", "ingressclasses", "IngressClass"
			d.Annotations = map[string]string{apiextensionsv1.KubeAPIApprovedAnnotation: "unapproved, a test"}
		}))
		r := schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "ingressclasses"}
		w.settle(time.Second)
		w.remove(definitions, "", "ingressclasses.networking.k8s.io", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if w.exists(definitions, "", "ingressclasses.networking.k8s.io") {
			t.Error("the definition stays")
		}
		if _, _, err := w.client.List(w.ctx, r, "", metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
	})
}

func TestDefinitionQuotaAndNamespace(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, definitions, mice())
		create(w, quotas, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "few"}, Spec: corev1.ResourceQuotaSpec{
			Hard: corev1.ResourceList{"count/mice.example.com": resource.MustParse("1")},
		}})
		w.settle(3 * time.Second)
		create[api.Object](w, miceResource, mouse("one"))
		if _, err := w.client.Create(w.ctx, miceResource, "default", "", mouse("two"), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "exceeded quota: few") {
			t.Errorf("beyond the quota: %v", err)
		}
		w.remove(miceResource, "default", "one", metav1.DeletePropagationBackground)
		w.settle(5 * time.Second)
		create[api.Object](w, miceResource, mouse("three"))
		create(w, namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "nest"}})
		u := mouse("four")
		u.SetNamespace("nest")
		create[api.Object](w, miceResource, u)
		w.remove(namespaces, "", "nest", metav1.DeletePropagationBackground)
		w.settle(5 * time.Second)
		if w.exists(namespaces, "", "nest") || w.exists(miceResource, "nest", "four") {
			t.Error("the namespace or what was in it stays")
		}
	})
}
