package hosts

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"conclave/test/conformance"
)

// hostPorts is a definition whose version v1 says in hostPort what v2 says in
// host and port; a webhook converts.
func (k *hookTest) hostPorts(name string) (customs, *apiextensionsv1.CustomResourceDefinition) {
	d := definition(name+".convert.example.com",
		[2]string{"v1", "{type: object, properties: {hostPort: {type: string}}}"},
		[2]string{"v2", "{type: object, properties: {host: {type: string}, port: {type: string}}}"})
	d.Spec.Conversion = &apiextensionsv1.CustomResourceConversion{Strategy: apiextensionsv1.WebhookConverter, Webhook: &apiextensionsv1.WebhookConversion{
		ConversionReviewVersions: []string{"v1"},
		ClientConfig: &apiextensionsv1.WebhookClientConfig{CABundle: k.ca, Service: &apiextensionsv1.ServiceReference{
			Namespace: k.ns, Name: hookService, Path: ptr.To("/convert"), Port: ptr.To(int32(8443)),
		}},
	}}
	d.Spec.Versions[0].SelectableFields = []apiextensionsv1.SelectableField{{JSONPath: ".hostPort"}}
	d.Spec.Versions[1].SelectableFields = []apiextensionsv1.SelectableField{{JSONPath: ".host"}, {JSONPath: ".port"}}
	all := customsOf(k.T, k.c)
	all.define(d)
	return all, d
}

// TestConversion shows a webhook that converts between the versions of a custom
// resource, and selectors of their fields.
func TestConversion(t *testing.T) {
	s := startHooks(t, three(t))
	t.Run("all", func(t *testing.T) {
		for name, tc := range map[string]struct {
			shows string
			f     func(*hookTest)
		}{
			"one":    {"CustomResourceConversionWebhook [Privileged:ClusterAdmin] should be able to convert from CR v1 to CR v2", convertOne},
			"list":   {"CustomResourceConversionWebhook [Privileged:ClusterAdmin] should be able to convert a non homogeneous list of CRs", convertList},
			"fields": {"CustomResourceFieldSelectors [Privileged:ClusterAdmin] CustomResourceFieldSelectors MUST list and watch custom resources matching the field selector", selectFields},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				conformance.Shows(t, "[sig-api-machinery] "+tc.shows+" [Conformance]")
				tc.f(s.test(t))
			})
		}
	})
}

func isConverted(t *testing.T, u *unstructured.Unstructured, host, port string) {
	t.Helper()
	if u.Object["host"] != host || u.Object["port"] != port || u.Object["hostPort"] != nil {
		t.Errorf("%s is %v, not of %s and %s", u.GetName(), u.Object, host, port)
	}
}

func convertOne(k *hookTest) {
	all, d := k.hostPorts("one")
	v1, v2 := all.dyn.Resource(things(d.Spec.Group, "v1")).Namespace(k.own), all.dyn.Resource(things(d.Spec.Group, "v2")).Namespace(k.own)
	if _, err := v1.Create(k.Context(), thing(d.Spec.Group, "v1", "a", map[string]any{"hostPort": "localhost:8080"}), metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	got, err := v2.Get(k.Context(), "a", metav1.GetOptions{})
	if err != nil {
		k.Fatal(err)
	}
	isConverted(k.T, got, "localhost", "8080")
	got.Object["port"] = "9090"
	if got, err = v2.Update(k.Context(), got, metav1.UpdateOptions{}); err != nil {
		k.Fatal(err)
	}
	isConverted(k.T, got, "localhost", "9090")
	if got, err = v1.Get(k.Context(), "a", metav1.GetOptions{}); err != nil || got.Object["hostPort"] != "localhost:9090" {
		k.Errorf("in v1 it is %v: %v", got, err)
	}
}

func convertList(k *hookTest) {
	all, d := k.hostPorts("list")
	v1, v2 := all.dyn.Resource(things(d.Spec.Group, "v1")).Namespace(k.own), all.dyn.Resource(things(d.Spec.Group, "v2")).Namespace(k.own)
	if _, err := v1.Create(k.Context(), thing(d.Spec.Group, "v1", "a", map[string]any{"hostPort": "localhost:8080"}), metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	all.patch(d.Name, `[{"op":"replace","path":"/spec/versions/0/storage","value":false},{"op":"replace","path":"/spec/versions/1/storage","value":true}]`)
	if _, err := v1.Create(k.Context(), thing(d.Spec.Group, "v1", "b", map[string]any{"hostPort": "localhost:8081"}), metav1.CreateOptions{}); err != nil {
		k.Fatal(err)
	}
	for version, of := range map[string]dynamic.ResourceInterface{"v1": v1, "v2": v2} {
		list, err := of.List(k.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) != 2 {
			k.Fatalf("%v: %v", list, err)
		}
		for i, u := range list.Items {
			if port := fmt.Sprint(8080 + i); version == "v2" {
				isConverted(k.T, &u, "localhost", port)
			} else if u.Object["hostPort"] != "localhost:"+port {
				k.Errorf("it is %v", u.Object)
			}
		}
	}
}

// events are what a watch sees of objects that a selector selects, by name.
func (k *hookTest) events(of dynamic.ResourceInterface, selector string) func(want ...string) {
	k.Helper()
	w, err := of.Watch(k.Context(), metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		k.Fatal(err)
	}
	k.Cleanup(w.Stop)
	return func(want ...string) {
		k.Helper()
		for _, what := range want {
			ctx, cancel := context.WithTimeout(k.Context(), time.Minute)
			select {
			case e := <-w.ResultChan():
				u, ok := e.Object.(*unstructured.Unstructured)
				if got := fmt.Sprint(e.Type, " ", u.GetName()); !ok || got != what {
					k.Errorf("%s: %s instead of %s", selector, got, what)
				}
			case <-ctx.Done():
				k.Errorf("%s: no %s", selector, what)
			}
			cancel()
		}
	}
}

func selectFields(k *hookTest) {
	all, d := k.hostPorts("fields")
	v1, v2 := all.dyn.Resource(things(d.Spec.Group, "v1")).Namespace(k.own), all.dyn.Resource(things(d.Spec.Group, "v2")).Namespace(k.own)
	watch1, watch2 := k.events(v1, "hostPort=host1:80"), k.events(v2, "host=host1,port=80")
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(all.dyn, 0, k.own, func(o *metav1.ListOptions) { o.FieldSelector = "host=host1" })
	informer := factory.ForResource(things(d.Spec.Group, "v2")).Informer()
	factory.Start(k.Context().Done())
	if !cache.WaitForCacheSync(k.Context().Done(), informer.HasSynced) {
		k.Fatal("the informer does not sync")
	}
	for _, o := range []struct{ version, name, host, port string }{
		{"v1", "a", "host1", "80"}, {"v1", "b", "host2", "80"}, {"v2", "c", "host1", "80"}, {"v2", "d", "host1", "8080"},
	} {
		of, content := v1, map[string]any{"hostPort": o.host + ":" + o.port}
		if o.version == "v2" {
			of, content = v2, map[string]any{"host": o.host, "port": o.port}
		}
		if _, err := of.Create(k.Context(), thing(d.Spec.Group, o.version, o.name, content), metav1.CreateOptions{}); err != nil {
			k.Fatal(err)
		}
	}
	listed := func(of dynamic.ResourceInterface, selector string, want ...string) {
		k.Helper()
		list, err := of.List(k.Context(), metav1.ListOptions{FieldSelector: selector})
		if err != nil {
			k.Fatal(err)
		}
		var got []string
		for _, u := range list.Items {
			got = append(got, u.GetName())
		}
		if !slices.Equal(got, want) {
			k.Errorf("%s: %v, not %v", selector, got, want)
		}
	}
	listed(v1, "hostPort=host1:80", "a", "c")
	listed(v2, "host=host1,port=80", "a", "c")
	listed(v2, "host=host1", "a", "c", "d")
	listed(v2, "port!=80", "d")
	if _, err := v1.List(k.Context(), metav1.ListOptions{FieldSelector: "host=host1"}); err == nil {
		k.Error("v1 has no field host")
	}
	added := []string{fmt.Sprint(watch.Added, " a"), fmt.Sprint(watch.Added, " c")}
	watch1(added...)
	watch2(added...)
	eventually(k.T, "the informer knows what is selected", func() error {
		if n := len(informer.GetStore().ListKeys()); n != 3 {
			return fmt.Errorf("it has %v", informer.GetStore().ListKeys())
		}
		return nil
	})
	// What is selected no longer is gone to a watch.
	if _, err := v2.Patch(k.Context(), "c", types.MergePatchType, []byte(`{"host":"host3"}`), metav1.PatchOptions{}); err != nil {
		k.Fatal(err)
	}
	watch1(fmt.Sprint(watch.Deleted, " c"))
	watch2(fmt.Sprint(watch.Deleted, " c"))
	eventually(k.T, "the informer forgets it", func() error {
		if _, there, err := informer.GetStore().GetByKey(k.own + "/c"); err != nil || there {
			return fmt.Errorf("it has %v: %w", informer.GetStore().ListKeys(), err)
		}
		return nil
	})
	if err := v2.DeleteCollection(k.Context(), metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "host=host1,port=80"}); err != nil {
		k.Fatal(err)
	}
	watch1(fmt.Sprint(watch.Deleted, " a"))
	watch2(fmt.Sprint(watch.Deleted, " a"))
	listed(v2, "", "b", "c", "d")
}
