package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// operated is a kind whose every operation is tried: spec and the rest of an
// object of it, and what a patch of its status says, if it has one.
type operated struct {
	codename   string // several lines for several
	resource   schema.GroupVersionResource
	kind       string
	namespaced bool
	object     string // YAML of all but the metadata
	status     string // merge patch of what is below status
	lax        bool   // made in a namespace of its own, where nobody feels it
	// names are of the objects made, where not any name will do.
	names [3]string
}

func of(group, version, resource string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
}

const condition = `{"conditions":[{"type":"StatusPatched","status":"True","reason":"Tested","message":"by a test","lastTransitionTime":"2026-01-01T00:00:00Z"}]}`

// ofNothing is of a resource that there is not.
const ofNothing = `matchConstraints: {resourceRules: [{apiGroups: [conclave.test], apiVersions: [v1], operations: [CREATE], resources: [nothings]}]}`

var operatedKinds = []operated{
	{codename: "[sig-network] Ingress API should support creating Ingress API operations [Conformance]",
		resource: of("networking.k8s.io", "v1", "ingresses"), kind: "Ingress", namespaced: true,
		object: `spec: {defaultBackend: {service: {name: default-backend, port: {number: 80}}}, rules: [{host: a.test, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: b, port: {name: http}}}}]}}]}`,
		status: `{"loadBalancer":{"ingress":[{"ip":"169.1.1.1"}]}}`},
	{codename: "[sig-network] IngressClass API should support creating IngressClass API operations [Conformance]",
		resource: of("networking.k8s.io", "v1", "ingressclasses"), kind: "IngressClass", object: `spec: {controller: conclave.test/controller}`},
	{codename: "[sig-network] ServiceCIDR and IPAddress API should support IPAddress API operations [Conformance]",
		resource: of("networking.k8s.io", "v1", "ipaddresses"), kind: "IPAddress", names: [3]string{"192.0.2.1", "192.0.2.2", "192.0.2.3"},
		object: `spec: {parentRef: {resource: services, namespace: default, name: none}}`},
	{codename: "[sig-network] ServiceCIDR and IPAddress API should support ServiceCIDR API operations [Conformance]",
		resource: of("networking.k8s.io", "v1", "servicecidrs"), kind: "ServiceCIDR", object: `spec: {cidrs: [10.197.0.0/24]}`, status: condition},
	{codename: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 DeviceClass [Conformance]",
		resource: of("resource.k8s.io", "v1", "deviceclasses"), kind: "DeviceClass", object: `spec: {selectors: [{cel: {expression: 'device.driver == "a.test"'}}]}`},
	{codename: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaim [Conformance]",
		resource: of("resource.k8s.io", "v1", "resourceclaims"), kind: "ResourceClaim", namespaced: true,
		object: `spec: {devices: {requests: [{name: one, exactly: {deviceClassName: a.test}}]}}`,
		status: `{"devices":null}`},
	{codename: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceClaimTemplate [Conformance]",
		resource: of("resource.k8s.io", "v1", "resourceclaimtemplates"), kind: "ResourceClaimTemplate", namespaced: true,
		object: `spec: {spec: {devices: {requests: [{name: one, exactly: {deviceClassName: a.test}}]}}}`},
	{codename: "[sig-node] [DRA] CRUD Tests resource.k8s.io/v1 ResourceSlice [Conformance]",
		resource: of("resource.k8s.io", "v1", "resourceslices"), kind: "ResourceSlice",
		object: `spec: {driver: a.test, nodeName: nowhere, pool: {name: p, generation: 1, resourceSliceCount: 1}, devices: [{name: d}]}`},
	{codename: `[sig-node] PodTemplates should run the lifecycle of PodTemplates [Conformance]
[sig-node] PodTemplates should replace a pod template [Conformance]
[sig-node] PodTemplates should delete a collection of pod templates [Conformance]`,
		resource: of("", "v1", "podtemplates"), kind: "PodTemplate", namespaced: true,
		object: `template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}`},
	{codename: `[sig-apps] DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets [Conformance]
[sig-apps] DisruptionController should update/patch PodDisruptionBudget status [Conformance]`,
		resource: of("policy", "v1", "poddisruptionbudgets"), kind: "PodDisruptionBudget", namespaced: true,
		object: `spec: {minAvailable: 1, selector: {matchLabels: {none: none}}}`, status: condition},
	{codename: "[sig-apps] CronJob should support CronJob API operations [Conformance]",
		resource: of("batch", "v1", "cronjobs"), kind: "CronJob", namespaced: true,
		object: `spec: {schedule: "*/1 * * * *", suspend: true, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}`,
		status: `{"lastScheduleTime":"2026-01-01T00:00:00Z"}`},
	{codename: "[sig-api-machinery] ResourceQuota should manage the lifecycle of a ResourceQuota [Conformance]",
		resource: of("", "v1", "resourcequotas"), kind: "ResourceQuota", namespaced: true,
		object: `spec: {hard: {"count/nothing.conclave.test": "1"}}`, status: `{"hard":{"count/nothing.conclave.test":"1"}}`},
	{codename: "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicy API operations [Conformance]",
		resource: of("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies"), kind: "ValidatingAdmissionPolicy",
		object: `spec: {` + ofNothing + `, validations: [{expression: "object.spec.replicas <= 100"}]}`, status: condition},
	{codename: "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicyBinding API operations [Conformance]",
		resource: of("admissionregistration.k8s.io", "v1", "validatingadmissionpolicybindings"), kind: "ValidatingAdmissionPolicyBinding",
		object: `spec: {policyName: none.conclave.test, validationActions: [Deny]}`},
	{codename: "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should support MutatingAdmissionPolicy API operations [Conformance]",
		resource: of("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicies"), kind: "MutatingAdmissionPolicy",
		object: `spec: {` + ofNothing + `, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: '/spec'}]"}}]}`},
	{codename: "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should support MutatingAdmissionPolicyBinding API operations [Conformance]",
		resource: of("admissionregistration.k8s.io", "v1", "mutatingadmissionpolicybindings"), kind: "MutatingAdmissionPolicyBinding",
		object: `spec: {policyName: none.conclave.test}`},
	{codename: "[sig-scheduling] LimitRange should list, patch and delete a LimitRange by collection [Conformance]",
		resource: of("", "v1", "limitranges"), kind: "LimitRange", namespaced: true,
		object: `spec: {limits: [{type: Container, default: {cpu: 100m}}]}`, lax: true},
}

// TestKinds tries every operation on every kind of the table: discovery,
// create, get, list in one namespace and in all, watch, update, patch, apply,
// the status, delete and the deletion of a collection.
func TestKinds(t *testing.T) {
	c := three(t)
	ns := namespace(t, c)
	config, err := c.RESTConfig("")
	if err != nil {
		t.Fatal(err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range operatedKinds {
		t.Run(k.kind, func(t *testing.T) {
			t.Parallel()
			for _, codename := range strings.Split(k.codename, "\n") {
				conformance.Shows(t, codename)
			}
			o := operations{T: t, operated: k, c: c, mark: "tested=" + strings.ToLower(k.kind) + "-" + ns}
			o.all = client.Resource(k.resource)
			o.here = o.all
			if k.namespaced {
				in := ns
				if k.lax {
					in = namespace(t, c)
				}
				o.here = client.Resource(k.resource).Namespace(in)
			}
			o.discovered()
			o.run()
		})
	}
}

// operations are those on one kind. Everything made carries the mark.
type operations struct {
	*testing.T
	operated
	c    *cluster.Cluster
	mark string
	all  dynamic.ResourceInterface
	here dynamic.ResourceInterface
}

func (o *operations) must(what string, err error) {
	o.Helper()
	if err != nil {
		o.Fatalf("%s: %v", what, err)
	}
}

func (o *operations) discovered() {
	o.Helper()
	list, err := o.c.Client.Discovery().ServerResourcesForGroupVersion(o.resource.GroupVersion().String())
	o.must("discover "+o.resource.GroupVersion().String(), err)
	found := map[string]metav1.APIResource{}
	for _, r := range list.APIResources {
		found[r.Name] = r
	}
	r, ok := found[o.resource.Resource]
	if !ok || r.Kind != o.kind || r.Namespaced != o.namespaced {
		o.Fatalf("discovery says %+v", r)
	}
	for _, verb := range []string{"create", "get", "list", "watch", "update", "patch", "delete", "deletecollection"} {
		if !strings.Contains(strings.Join(r.Verbs, " ")+" ", verb+" ") {
			o.Errorf("discovery names no verb %s", verb)
		}
	}
	if _, has := found[o.resource.Resource+"/status"]; has != (o.status != "") {
		o.Errorf("discovery names a status: %t", has)
	}
}

func (o *operations) object(name string) *unstructured.Unstructured {
	o.Helper()
	var content map[string]any
	o.must("read the object of the table", yaml.Unmarshal([]byte(o.operated.object), &content))
	u := &unstructured.Unstructured{Object: content}
	u.SetAPIVersion(o.resource.GroupVersion().String())
	u.SetKind(o.kind)
	if name == "" {
		u.SetGenerateName(strings.ToLower(o.kind) + "-")
	}
	u.SetName(name)
	key, value, _ := strings.Cut(o.mark, "=")
	u.SetLabels(map[string]string{key: value})
	return u
}

func (o *operations) create(name string) *unstructured.Unstructured {
	o.Helper()
	made, err := o.here.Create(o.Context(), o.object(name), metav1.CreateOptions{})
	o.must("create", err)
	return made
}

func (o *operations) run() {
	t, ctx := o.T, o.Context()
	selected := metav1.ListOptions{LabelSelector: o.mark}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = o.here.DeleteCollection(ctx, metav1.DeleteOptions{}, selected)
	})
	list, err := o.all.List(ctx, selected)
	o.must("list all", err)
	follow := selected
	follow.ResourceVersion = list.GetResourceVersion()
	w, err := o.here.Watch(ctx, follow)
	o.must("watch", err)
	defer w.Stop()
	var made []*unstructured.Unstructured
	for _, name := range o.names {
		made = append(made, o.create(name))
	}
	name := made[0].GetName()
	if made[0].GetUID() == "" || made[0].GetKind() != o.kind {
		t.Errorf("what was created is a %s with UID %q", made[0].GetKind(), made[0].GetUID())
	}
	got, err := o.here.Get(ctx, name, metav1.GetOptions{})
	o.must("get", err)
	if got.GetUID() != made[0].GetUID() {
		t.Errorf("got %s, created %s", got.GetUID(), made[0].GetUID())
	}
	for what, in := range map[string]dynamic.ResourceInterface{"here": o.here, "everywhere": o.all} {
		list, err := in.List(ctx, selected)
		o.must("list "+what, err)
		if len(list.Items) != len(made) {
			t.Errorf("%d are listed %s, of %d", len(list.Items), what, len(made))
		}
	}
	o.next(w, watch.Added, name, nil)

	patched, err := o.here.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"annotations":{"patched":"true"}}}`), metav1.PatchOptions{})
	o.must("patch", err)
	if patched.GetAnnotations()["patched"] != "true" {
		t.Errorf("the patch left %v", patched.GetAnnotations())
	}
	var updated *unstructured.Unstructured
	eventually(t, "update", func() error {
		u, err := o.here.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		annotations := u.GetAnnotations()
		annotations["updated"] = "true"
		u.SetAnnotations(annotations)
		updated, err = o.here.Update(ctx, u, metav1.UpdateOptions{})
		return err
	})
	if updated.GetAnnotations()["updated"] != "true" || updated.GetAnnotations()["patched"] != "true" {
		t.Errorf("the update left %v", updated.GetAnnotations())
	}
	o.next(w, watch.Modified, name, func(u *unstructured.Unstructured) bool { return u.GetAnnotations()["patched"] == "true" })
	o.next(w, watch.Modified, name, func(u *unstructured.Unstructured) bool { return u.GetAnnotations()["updated"] == "true" })
	applied := &unstructured.Unstructured{Object: map[string]any{}}
	applied.SetAPIVersion(o.resource.GroupVersion().String())
	applied.SetKind(o.kind)
	applied.SetName(name)
	applied.SetAnnotations(map[string]string{"applied": "true"})
	got, err = o.here.Apply(ctx, name, applied, metav1.ApplyOptions{FieldManager: "test"})
	o.must("apply", err)
	if got.GetAnnotations()["applied"] != "true" || got.GetAnnotations()["updated"] != "true" {
		t.Errorf("applying left %v", got.GetAnnotations())
	}
	if o.status != "" {
		o.tryStatus(name)
	}
	o.must("delete", o.here.Delete(ctx, name, metav1.DeleteOptions{}))
	o.goes(name)
	o.next(w, watch.Deleted, name, nil)
	o.must("delete the collection", o.here.DeleteCollection(ctx, metav1.DeleteOptions{}, selected))
	for _, m := range made[1:] {
		o.goes(m.GetName())
	}
}

// next is the next event of a kind that answers.
func (o *operations) next(w watch.Interface, kind watch.EventType, name string, answers func(*unstructured.Unstructured) bool) {
	o.Helper()
	ctx, cancel := context.WithTimeout(o.Context(), time.Minute)
	defer cancel()
	for {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				o.Fatal("the watch ended")
			}
			u, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				o.Fatalf("an event of a %T", e.Object)
			}
			if e.Type == kind && u.GetName() == name && (answers == nil || answers(u)) {
				return
			}
		case <-ctx.Done():
			o.Fatalf("no event %s of %s came", kind, name)
		}
	}
}

// goes waits until an object is gone, or waits for a finalizer's holder.
func (o *operations) goes(name string) {
	o.Helper()
	eventually(o.T, name+" goes", func() error {
		u, err := o.here.Get(o.Context(), name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("it is there: %v", u.Object)
		}
		return err
	})
}

// tryStatus changes the status by a patch and by an update, and the rest not.
func (o *operations) tryStatus(name string) {
	o.Helper()
	ctx := o.Context()
	before, err := o.here.Get(ctx, name, metav1.GetOptions{})
	o.must("get", err)
	patch := fmt.Sprintf(`{"metadata":{"annotations":{"patchedstatus":"true"}},"status":%s}`, o.status)
	got, err := o.here.Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	o.must("patch the status", err)
	var wanted map[string]any
	o.must("read the status of the table", json.Unmarshal([]byte(o.status), &wanted))
	has := func(u *unstructured.Unstructured) {
		o.Helper()
		status, _, _ := unstructured.NestedMap(u.Object, "status")
		for field, value := range wanted {
			if value != nil && fmt.Sprint(status[field]) == "<nil>" {
				o.Errorf("the status has no %s: %v", field, status)
			}
		}
	}
	has(got)
	eventually(o.T, "update the status", func() error {
		u, err := o.here.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		has(u)
		annotations := u.GetAnnotations()
		annotations["updatedstatus"] = "true"
		u.SetAnnotations(annotations)
		_, err = o.here.Update(ctx, u, metav1.UpdateOptions{}, "status")
		return err
	})
	got, err = o.here.Get(ctx, name, metav1.GetOptions{}, "status")
	o.must("get the status", err)
	has(got)
	if fmt.Sprint(got.Object["spec"]) != fmt.Sprint(before.Object["spec"]) {
		o.Errorf("the spec was %v and is %v", before.Object["spec"], got.Object["spec"])
	}
	if got.GetAnnotations()["updatedstatus"] != "true" {
		o.Errorf("annotations %v", got.GetAnnotations())
	}
}
