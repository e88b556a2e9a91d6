package hosts

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// TestFairnessAPI does with FlowSchemas and PriorityLevelConfigurations all that
// their API offers.
func TestFairnessAPI(t *testing.T) {
	t.Parallel()
	c := three(t)
	t.Run("FlowSchema", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] API priority and fairness should support FlowSchema API operations [Conformance]")
		flowLifecycle(t, c, "flowschemas", "FlowSchema", "matchingPrecedence", map[string]any{
			"matchingPrecedence": int64(9999), "priorityLevelConfiguration": map[string]any{"name": "global-default"},
			"distinguisherMethod": map[string]any{"type": "ByUser"},
			"rules": []any{map[string]any{
				"subjects":         []any{map[string]any{"kind": "User", "user": map[string]any{"name": "example-e2e-non-existent-user"}}},
				"nonResourceRules": []any{map[string]any{"verbs": []any{"*"}, "nonResourceURLs": []any{"*"}}},
			}},
		}, []int64{9998, 9997})
	})
	t.Run("PriorityLevelConfiguration", func(t *testing.T) {
		conformance.Shows(t, "[sig-api-machinery] API priority and fairness should support PriorityLevelConfiguration API operations [Conformance]")
		flowLifecycle(t, c, "prioritylevelconfigurations", "PriorityLevelConfiguration", "limited.nominalConcurrencyShares", map[string]any{
			"type":    "Limited",
			"limited": map[string]any{"nominalConcurrencyShares": int64(2), "limitResponse": map[string]any{"type": "Reject"}},
		}, []int64{4, 6})
	})
}

// flowLifecycle leads objects of a kind through all verbs. field, below the spec, is
// patched to the first of the values and updated to the second.
func flowLifecycle(t *testing.T, c *cluster.Cluster, resource, kind, field string, spec map[string]any, values []int64) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	try := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	gv := flowcontrolv1.SchemeGroupVersion
	groups, err := c.Client.Discovery().ServerGroups()
	try("discover the groups", err)
	found := false
	for _, g := range groups.Groups {
		found = found || g.Name == gv.Group && g.PreferredVersion.GroupVersion == gv.String()
	}
	if !found {
		t.Fatalf("there is no group %s", gv.Group)
	}
	var group metav1.APIGroup
	try("read the group", c.Client.Discovery().RESTClient().Get().AbsPath("/apis/"+gv.Group).Do(ctx).Into(&group))
	if len(group.Versions) != 1 || group.Versions[0].Version != "v1" {
		t.Errorf("it is %+v", group)
	}
	served, err := c.Client.Discovery().ServerResourcesForGroupVersion(gv.String())
	try("discover the resources", err)
	verbs := map[string]string{}
	for _, r := range served.APIResources {
		verbs[r.Name] = strings.Join(r.Verbs, " ")
	}
	if verbs[resource] != "create delete deletecollection get list patch update watch" || verbs[resource+"/status"] != "get patch update" {
		t.Errorf("the verbs are %v", verbs)
	}

	config, err := c.RESTConfig("")
	try("configure a client", err)
	raw, err := dynamic.NewForConfig(config)
	try("make a client", err)
	client := raw.Resource(gv.WithResource(resource))
	ours := metav1.ListOptions{LabelSelector: "conclave-test=" + strings.ToLower(kind)}
	t.Cleanup(func() {
		if err := client.DeleteCollection(context.Background(), metav1.DeleteOptions{}, ours); err != nil {
			t.Error(err)
		}
	})
	at := append([]string{"spec"}, strings.Split(field, ".")...)
	valueOf := func(o *unstructured.Unstructured) int64 {
		n, _, _ := unstructured.NestedInt64(o.Object, at...)
		return n
	}

	var made *unstructured.Unstructured
	for range 3 {
		o := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": gv.String(), "kind": kind, "spec": spec,
			"metadata": map[string]any{"generateName": "e2e-example-", "labels": map[string]any{"conclave-test": strings.ToLower(kind)}},
		}}
		made, err = client.Create(ctx, o, metav1.CreateOptions{})
		try("create", err)
	}
	got, err := client.Get(ctx, made.GetName(), metav1.GetOptions{})
	try("get", err)
	if got.GetUID() != made.GetUID() || got.GetResourceVersion() == "" {
		t.Errorf("got %v", got)
	}
	list, err := client.List(ctx, ours)
	try("list", err)
	if len(list.Items) != 3 {
		t.Errorf("listed %d of 3", len(list.Items))
	}
	w, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion(), LabelSelector: ours.LabelSelector})
	try("watch", err)
	defer w.Stop()
	saw := func(what string, is func(watch.EventType, *unstructured.Unstructured) bool) {
		t.Helper()
		for {
			select {
			case e, open := <-w.ResultChan():
				if !open {
					t.Fatalf("the watch ended before %s", what)
				}
				if o, ok := e.Object.(*unstructured.Unstructured); ok && o.GetName() == made.GetName() && is(e.Type, o) {
					return
				}
			case <-ctx.Done():
				t.Fatalf("no event of %s", what)
			}
		}
	}

	body := fmt.Sprintf(`{"metadata":{"annotations":{"patched":"true"}},"spec":%s}`, strings.Replace(`{"`+strings.ReplaceAll(field, ".", `":{"`)+`":N`+strings.Repeat("}", len(at)-1), "N", fmt.Sprint(values[0]), 1))
	patched, err := client.Patch(ctx, made.GetName(), types.MergePatchType, []byte(body), metav1.PatchOptions{})
	try("patch", err)
	if patched.GetAnnotations()["patched"] != "true" || valueOf(patched) != values[0] || patched.GetGeneration() != made.GetGeneration()+1 {
		t.Errorf("patched to %v", patched)
	}
	// A controller writes into its status meanwhile.
	change := func(what string, edit func(*unstructured.Unstructured), sub ...string) (out *unstructured.Unstructured) {
		t.Helper()
		eventually(t, what, func() error {
			o, err := client.Get(ctx, made.GetName(), metav1.GetOptions{})
			try("get", err)
			edit(o)
			if len(sub) > 0 {
				out, err = client.UpdateStatus(ctx, o, metav1.UpdateOptions{})
			} else {
				out, err = client.Update(ctx, o, metav1.UpdateOptions{})
			}
			if err != nil && !apierrors.IsConflict(err) {
				t.Fatalf("%s: %v", what, err)
			}
			return err
		})
		return out
	}
	updated := change("update", func(o *unstructured.Unstructured) {
		o.SetAnnotations(map[string]string{"patched": "true", "updated": "true"})
		if err := unstructured.SetNestedField(o.Object, values[1], at...); err != nil {
			t.Fatal(err)
		}
	})
	if updated.GetAnnotations()["updated"] != "true" || valueOf(updated) != values[1] {
		t.Errorf("updated to %v", updated)
	}
	saw("the update", func(e watch.EventType, o *unstructured.Unstructured) bool {
		return e == watch.Modified && o.GetAnnotations()["updated"] == "true"
	})

	status, err := client.Get(ctx, made.GetName(), metav1.GetOptions{}, "status")
	try("get the status", err)
	if status.GetUID() != made.GetUID() || status.GroupVersionKind() != gv.WithKind(kind) {
		t.Errorf("the status is of %v", status)
	}
	conditions := func(o *unstructured.Unstructured) (all []string) {
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		for _, c := range list {
			all = append(all, fmt.Sprint(c.(map[string]any)["type"]))
		}
		return all
	}
	patched, err = client.Patch(ctx, made.GetName(), types.MergePatchType, []byte(`{"metadata":{"annotations":{"no":"no"}},"spec":null,"status":{"conditions":[{"type":"PatchStatusFailed","status":"False","reason":"e2e"}]}}`), metav1.PatchOptions{}, "status")
	try("patch the status", err)
	if got := conditions(patched); len(got) == 0 || got[0] != "PatchStatusFailed" || valueOf(patched) != values[1] || patched.GetAnnotations()["no"] != "" {
		t.Errorf("patched the status to %v", patched)
	}
	updated = change("update the status", func(o *unstructured.Unstructured) {
		list, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
		list = append(list, map[string]any{"type": "StatusUpdateFailed", "status": "False", "reason": "E2E", "message": "Set from an e2e test"})
		if err := unstructured.SetNestedSlice(o.Object, list, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
	}, "status")
	if got := strings.Join(conditions(updated), " "); !strings.Contains(got, "StatusUpdateFailed") || !strings.Contains(got, "PatchStatusFailed") {
		t.Errorf("updated the status to %s", got)
	}

	try("delete", client.Delete(ctx, made.GetName(), metav1.DeleteOptions{}))
	saw("the deletion", func(e watch.EventType, _ *unstructured.Unstructured) bool { return e == watch.Deleted })
	if _, err := client.Get(ctx, made.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after its deletion: %v", err)
	}
	if list, err = client.List(ctx, ours); err != nil || len(list.Items) != 2 {
		t.Errorf("two should be left: %v %v", list, err)
	}
	try("delete the collection", client.DeleteCollection(ctx, metav1.DeleteOptions{}, ours))
	if list, err = client.List(ctx, ours); err != nil || len(list.Items) != 0 {
		t.Errorf("none should be left: %v %v", list, err)
	}
}

// TestFairness gives a user a level without a seat: at every node they are refused,
// or wait until there is one, while nobody else notices.
func TestFairness(t *testing.T) {
	c := three(t)
	t.Parallel()
	name := "jail-" + namespace(t, c)
	api := c.Client.FlowcontrolV1()
	level, err := api.PriorityLevelConfigurations().Create(t.Context(), &flowcontrolv1.PriorityLevelConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
			NominalConcurrencyShares: ptr.To[int32](0), BorrowingLimitPercent: ptr.To[int32](0), LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeLater(t, c, "prioritylevelconfiguration", name) })
	schema, err := api.FlowSchemas().Create(t.Context(), &flowcontrolv1.FlowSchema{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: name}, MatchingPrecedence: 50,
			Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
				Subjects:         []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: name}}},
				NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}},
			}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeLater(t, c, "flowschema", name) })
	// ask asks a node as that user, once: client-go would ask again and again.
	ask := func(host, query string) (int, http.Header, string, error) {
		config, err := c.RESTConfig(host)
		if err != nil {
			return 0, nil, "", err
		}
		config.Impersonate = rest.ImpersonationConfig{UserName: name}
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			return 0, nil, "", err
		}
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+"/version"+query, nil)
		if err != nil {
			return 0, nil, "", err
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, nil, "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, resp.Header, string(body), err
	}
	refused := func(host, query string) error {
		code, header, body, err := ask(host, query)
		if err != nil {
			return err
		}
		var s metav1.Status
		if code != http.StatusTooManyRequests || header.Get("Retry-After") != "1" || json.Unmarshal([]byte(body), &s) != nil || s.Reason != metav1.StatusReasonTooManyRequests {
			return fmt.Errorf("%s answers %d %v %s", host, code, header, body)
		}
		if header.Get(flowcontrolv1.ResponseHeaderMatchedFlowSchemaUID) != string(schema.UID) || header.Get(flowcontrolv1.ResponseHeaderMatchedPriorityLevelConfigurationUID) != string(level.UID) {
			return fmt.Errorf("%s says %v", host, header)
		}
		return nil
	}
	for _, h := range c.Hosts { // a replica may be behind
		eventually(t, "refused at "+h.Name, func() error { return refused(h.Name, "") })
	}
	mustContain(t, "an administrator's", kubectl(t, c, "version"), "Server Version")
	eventually(t, "the status of the FlowSchema", func() error {
		out, err := c.Kubectl(t.Context(), "get", "flowschema", name)
		if err == nil && (!strings.Contains(out, "MISSINGPL") || !strings.Contains(out, "False")) {
			err = fmt.Errorf("it is\n%s", out)
		}
		return err
	})
	mustContain(t, "the levels", kubectl(t, c, "get", "prioritylevelconfigurations"), "NOMINALCONCURRENCYSHARES", name, "workload-low")

	// With a queue it waits, and is served as soon as there is a seat.
	kubectl(t, c, "patch", "prioritylevelconfiguration", name, "--type=merge", "-p", `{"spec":{"limited":{"limitResponse":{"type":"Queue","queuing":{"queues":2,"handSize":1,"queueLengthLimit":5}}}}}`)
	host := c.Hosts[0].Name
	eventually(t, "it waits its time", func() error {
		begin := time.Now()
		if err := refused(host, "?timeout=4s"); err != nil || time.Since(begin) < time.Second {
			return fmt.Errorf("after %v: %v", time.Since(begin), err)
		}
		return nil
	})
	answer := make(chan string, 1)
	go func() { // its time may be over before it is seen: then it asks again
		for {
			code, header, body, err := ask(host, "")
			if code != http.StatusTooManyRequests {
				answer <- fmt.Sprint(code, header, body, err)
				return
			}
		}
	}()
	eventually(t, "it waits", func() error {
		for _, h := range c.Hosts { // whichever of them serves it
			config, err := c.ClientFor(h.Name, func(*rest.Config) {})
			if err != nil {
				return err
			}
			raw, err := config.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
			if err != nil {
				return err
			}
			if strings.Contains(string(raw), fmt.Sprintf("apiserver_flowcontrol_current_inqueue_requests{flow_schema=%q,priority_level=%q} 1\n", name, name)) {
				if !strings.Contains(string(raw), fmt.Sprintf("apiserver_flowcontrol_rejected_requests_total{flow_schema=%q,priority_level=%q,reason=\"time-out\"} ", name, name)) {
					t.Errorf("the metrics of %s lack the refusals", h.Name)
				}
				return nil
			}
		}
		return fmt.Errorf("no master has it in a queue")
	})
	kubectl(t, c, "patch", "prioritylevelconfiguration", name, "--type=merge", "-p", `{"spec":{"limited":{"nominalConcurrencyShares":5}}}`)
	if got := <-answer; !strings.HasPrefix(got, "200") {
		t.Error(got)
	}
}
