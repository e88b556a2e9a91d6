package api_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
	"conclave/api/apitest"
)

const (
	applyType   = "application/apply-patch+yaml"
	deployments = "/apis/apps/v1/namespaces/shop/deployments"
	web         = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:%d"}]}
`
)

// managers is who owns fields of an object, with the subresource by which.
func managers(m []metav1.ManagedFieldsEntry) string {
	var names []string
	for _, e := range m {
		names = append(names, strings.Trim(e.Manager+" "+string(e.Operation)+" "+e.Subresource, " "))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func TestApply(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	rt := st.admin()
	apply := func(query, body string) (appsv1.Deployment, answer) {
		t.Helper()
		a := st.request(rt, "PATCH", deployments+"/web"+query, body, "Content-Type", applyType)
		var d appsv1.Deployment
		if a.code < 300 {
			a.into(t, &d)
		}
		return d, a
	}
	d, a := apply("?fieldManager=me", fmt.Sprintf(web, 2, 1))
	if a.code != 201 || d.Generation != 1 || *d.Spec.RevisionHistoryLimit != 10 || managers(d.ManagedFields) != "me Apply" {
		t.Fatalf("%d %s", a.code, a.body)
	}
	again, a := apply("?fieldManager=me", fmt.Sprintf(web, 2, 1))
	if a.code != 200 || again.ResourceVersion != d.ResourceVersion {
		t.Errorf("applying the same wrote: %s", a.body)
	}
	st.request(rt, "PATCH", deployments+"/web", `{"spec":{"replicas":5}}`, "Content-Type", "application/merge-patch+json", "User-Agent", "scaler/1.0")
	_, a = apply("?fieldManager=me", fmt.Sprintf(web, 3, 1))
	if s := a.status(t); a.code != 409 || !strings.Contains(s.Message, `Apply failed with 1 conflict: conflict with "scaler"`) || s.Details.Causes[0].Field != ".spec.replicas" {
		t.Errorf("%d %s", a.code, a.body)
	}
	d, a = apply("?fieldManager=me&force=true", fmt.Sprintf(web, 3, 2))
	if a.code != 200 || *d.Spec.Replicas != 3 || d.Generation != 3 || d.Spec.Template.Spec.Containers[0].Image != "web:2" {
		t.Errorf("%d %s", a.code, a.body)
	}
	// What a manager no longer applies, and nobody else owns, goes.
	labelled := strings.Replace(fmt.Sprintf(web, 3, 2), "{name: web}", "{name: web, labels: {a: b}}", 1)
	if d, a = apply("?fieldManager=me", labelled); d.Labels["a"] != "b" {
		t.Errorf("%s", a.body)
	}
	if d, a = apply("?fieldManager=me", fmt.Sprintf(web, 3, 2)); len(d.Labels) != 0 || a.code != 200 {
		t.Errorf("%s", a.body)
	}
	for name, tc := range map[string]struct {
		query, body string
		code        int
		want        string
	}{
		"unknown field": {"?fieldManager=me&fieldValidation=Strict", strings.Replace(labelled, "replicas:", "replica:", 1), 400, `unknown field \"spec.replica\"`},
		"other kind":    {"?fieldManager=me", strings.Replace(labelled, "kind: Deployment", "kind: ReplicaSet", 1), 400, "cannot be handled as a Deployment"},
		"other name":    {"?fieldManager=me", strings.Replace(labelled, "name: web,", "name: wob,", 1), 400, "does not match the name on the URL"},
		"owned fields":  {"?fieldManager=me", strings.Replace(labelled, "labels:", "managedFields: [], labels:", 1), 400, "managedFields"},
		"old version":   {"?fieldManager=me", strings.Replace(labelled, "labels:", `resourceVersion: "1", labels:`, 1), 409, "the object has been modified"},
		"not YAML":      {"?fieldManager=me", "{", 400, ""},
		"a list":        {"?fieldManager=me", "[1]", 400, ""},
	} {
		if _, a := apply(tc.query, tc.body); a.code != tc.code || !strings.Contains(string(a.body), tc.want) {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
	}
	// The status is somebody else's, by another door.
	st.request(rt, "PATCH", deployments+"/web/status", `{"status":{"replicas":3}}`, "Content-Type", "application/merge-patch+json", "User-Agent", "controller/1.0")
	st.request(rt, "GET", deployments+"/web", "").into(t, &d)
	if got := managers(d.ManagedFields); got != "controller Update status, me Apply" || d.Status.Replicas != 3 {
		t.Errorf("%s, %+v", got, d.Status)
	}
	dry, a := apply("?fieldManager=me&dryRun=All", fmt.Sprintf(web, 9, 9))
	if *dry.Spec.Replicas != 9 {
		t.Errorf("%s", a.body)
	}
	if st.request(rt, "GET", deployments+"/web", "").into(t, &d); *d.Spec.Replicas != 3 {
		t.Error("a dry run wrote")
	}
}

// In process nothing is tracked, until somebody over HTTP is.
func TestLocalTracking(t *testing.T) {
	st := newSite(t)
	c := st.Local(apitest.Admin)
	putMap(t, c, "a", "1")
	get := func() *corev1.ConfigMap {
		return must(api.GetAs[*corev1.ConfigMap](t.Context(), c, "default", "a"))(t)
	}
	if len(get().ManagedFields) != 0 {
		t.Error("tracked for nobody")
	}
	st.request(st.admin(), "PATCH", cms+"/a", `{"apiVersion":"v1","kind":"ConfigMap","data":{"k":"v"}}`, "Content-Type", applyType, "Accept", "application/json")
	a := st.request(st.admin(), "PATCH", cms+"/a?fieldManager=me", `{"apiVersion":"v1","kind":"ConfigMap","data":{"k":"v"}}`, "Content-Type", applyType)
	if a.code != 200 || !strings.Contains(managers(get().ManagedFields), "me Apply") {
		t.Fatalf("%d %s", a.code, a.body)
	}
	cm := get().DeepCopy()
	cm.Data["k"] = "w"
	must(c.Update(t.Context(), cmGVR, "default", cm, metav1.UpdateOptions{}))(t)
	if got := managers(get().ManagedFields); !strings.Contains(got, "admin Update") {
		t.Errorf("the owner of the changed field: %s", got)
	}
}

// Patches that name no version all happen, however many come at once.
func TestPatchRace(t *testing.T) {
	st := newSite(t)
	c := st.Local(apitest.Admin)
	putMap(t, c, "a", "1")
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			if _, err := c.Patch(t.Context(), cmGVR, "default", "a", types.MergePatchType, fmt.Appendf(nil, `{"data":{"k%d":"v"}}`, i), metav1.PatchOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if cm := must(api.GetAs[*corev1.ConfigMap](t.Context(), c, "default", "a"))(t); len(cm.Data) != 20 {
		t.Errorf("%d of 20 patches are there", len(cm.Data))
	}
}

// A replica that is behind catches up before it refuses.
func TestCatchUpBeforeRefusing(t *testing.T) {
	st := newSite(t)
	c := st.Local(apitest.Admin)
	before := st.store.Syncs()
	if _, err := c.Update(t.Context(), cmGVR, "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "none"}}, metav1.UpdateOptions{}); err == nil {
		t.Error("updated what is not there")
	}
	if st.store.Syncs() != before+1 {
		t.Errorf("%d syncs", st.store.Syncs()-before)
	}
}

// Both groups of events show the same objects.
func TestEventsOfBothGroups(t *testing.T) {
	st := newSite(t)
	rt := st.admin()
	a := st.request(rt, "POST", "/apis/events.k8s.io/v1/namespaces/default/events", `{"metadata":{"name":"new"},"eventTime":"2026-01-01T00:00:00.000000Z",
		"reportingController":"example.com/c","reportingInstance":"i","action":"Do","reason":"Because","type":"Normal","note":"hello","regarding":{"kind":"Pod","name":"p","namespace":"default"}}`)
	if a.code != 201 || !strings.Contains(string(a.body), `"note":"hello"`) || !strings.Contains(string(a.body), `"apiVersion":"events.k8s.io/v1"`) {
		t.Fatalf("%d %s", a.code, a.body)
	}
	var old corev1.EventList
	st.request(rt, "GET", "/api/v1/namespaces/default/events?fieldSelector="+url.QueryEscape("involvedObject.name=p"), "").into(t, &old)
	if len(old.Items) != 1 || old.Items[0].Message != "hello" || old.Items[0].InvolvedObject.Name != "p" {
		t.Errorf("%+v", old)
	}
	a = st.request(rt, "GET", "/apis/events.k8s.io/v1/events", "")
	if !strings.Contains(string(a.body), `"note":"hello"`) || !strings.Contains(string(a.body), `"kind":"EventList","apiVersion":"events.k8s.io/v1"`) {
		t.Errorf("%s", a.body)
	}
}
