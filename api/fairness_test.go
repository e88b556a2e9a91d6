package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"conclave/api"
	"conclave/api/apitest"
	"conclave/api/flow"
	"conclave/api/types"
)

var (
	flowSchemas    = types.FlowControl.WithResource("flowschemas")
	priorityLevels = types.FlowControl.WithResource("prioritylevelconfigurations")
)

// crowd is a server with a level of one seat for whoever does not say who they are,
// in a bubble of virtual time. A question whether it is ready takes until it is
// released.
type crowd struct {
	*api.Server
	t      *testing.T
	hold   chan struct{} // nil: nothing is held
	all    sync.WaitGroup
	schema *types.FlowSchema
	level  *types.PriorityLevelConfiguration
}

func newCrowd(t *testing.T, queuing *types.QueuingConfiguration) *crowd {
	c := &crowd{t: t}
	c.Server = apitest.NewServer(t, func(cfg *api.Config) {
		cfg.Seats = 100
		cfg.Ready = func() error {
			if c.hold != nil {
				<-c.hold
			}
			return nil
		}
	})
	level := &types.LimitedLevel{NominalConcurrencyShares: ptr.To[int32](1), BorrowingLimitPercent: ptr.To[int32](0), LimitResponse: types.LimitResponse{Type: types.Reject}}
	if queuing != nil {
		level.LimitResponse = types.LimitResponse{Type: types.Queue, Queuing: queuing}
	}
	c.level = c.create(priorityLevels, &types.PriorityLevelConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "crowd"}, Spec: types.PriorityLevelSpec{Type: types.Limited, Limited: level},
	}).(*types.PriorityLevelConfiguration)
	c.schema = c.create(flowSchemas, &types.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: "anonymous"}, Spec: types.FlowSchemaSpec{
		// Before "probes", by its name.
		MatchingPrecedence: 2, PriorityLevelConfiguration: types.PriorityLevelReference{Name: "crowd"},
		Rules: []types.PolicyRulesWithSubjects{{
			Subjects:         []types.FlowSubject{{Kind: types.UserKind, User: &types.NamedSubject{Name: "system:anonymous"}}},
			NonResourceRules: []types.NonResourcePolicyRule{{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}},
			ResourceRules:    []types.ResourcePolicyRule{{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Namespaces: []string{"*"}, ClusterScope: true}},
		}},
	}}).(*types.FlowSchema)
	rbac := rbacv1.SchemeGroupVersion
	c.create(rbac.WithResource("clusterroles"), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "all"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
	}})
	c.create(rbac.WithResource("clusterrolebindings"), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "all"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "all"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "system:anonymous"}},
	})
	return c
}

func (c *crowd) create(r schema.GroupVersionResource, o api.Object) api.Object {
	c.t.Helper()
	return must(c.Local(apitest.Admin).Create(c.t.Context(), r, "", "", o, metav1.CreateOptions{}))(c.t)
}

func (c *crowd) ask(ctx context.Context, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
	return w
}

// linger asks in a goroutine, and returns when that waits or is answered.
func (c *crowd) linger(ctx context.Context, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.all.Go(func() { c.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)) })
	synctest.Wait()
	return w
}

func (c *crowd) stats() (s flow.SchemaStats) {
	c.t.Helper()
	for _, l := range c.Fairness() {
		if i := slices.IndexFunc(l.Schemas, func(s flow.SchemaStats) bool { return s.Schema == "anonymous" }); l.Level == "crowd" && i >= 0 {
			return l.Schemas[i]
		}
	}
	c.t.Fatal("there is no level crowd")
	return s
}

func (c *crowd) refused(w *httptest.ResponseRecorder) {
	c.t.Helper()
	var s metav1.Status
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		c.t.Fatalf("%v: %s", err, w.Body)
	}
	if w.Code != 429 || w.Header().Get("Retry-After") != "1" || s.Reason != metav1.StatusReasonTooManyRequests || s.Message != "Too many requests, please try again later." || s.Kind != "Status" {
		c.t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	c.ranked(w)
}

// ranked says whether an answer tells by which objects.
func (c *crowd) ranked(w *httptest.ResponseRecorder) {
	c.t.Helper()
	if fs, pl := w.Header().Get("X-Kubernetes-PF-FlowSchema-UID"), w.Header().Get("X-Kubernetes-PF-PriorityLevel-UID"); fs != string(c.schema.UID) || pl != string(c.level.UID) || fs == "" {
		c.t.Errorf("ranked by %s and %s", fs, pl)
	}
}

// TestFairnessReject has one request of a level served, and others refused meanwhile.
func TestFairnessReject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, nil)
		c.hold = make(chan struct{})
		slow := c.linger(t.Context(), "/readyz")
		c.refused(c.ask(t.Context(), "/version"))
		c.refused(c.ask(t.Context(), "/api/v1/namespaces/default/configmaps?watch=1"))
		c.refused(c.ask(t.Context(), "/api/v1/pods"))
		if s := c.stats(); s.Serving != 1 || s.Refused[flow.NoSeat] != 3 {
			t.Errorf("%+v", s)
		}
		// What only hands bytes on takes no seat, here to be told that there is nothing.
		if w := c.ask(t.Context(), "/api/v1/namespaces/default/pods/x/log"); w.Code != 404 || w.Header().Get("X-Kubernetes-PF-FlowSchema-UID") != "" {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		// Nor does what this process asks itself.
		if _, _, err := c.Local(api.User{Name: "system:anonymous"}).List(t.Context(), flowSchemas, "", metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		close(c.hold)
		c.all.Wait()
		if slow.Code != 200 {
			t.Errorf("%d %s", slow.Code, slow.Body)
		}
		c.ranked(slow)
		// A watch has its seat until it has begun; a request that fails leaves it, too.
		ctx, cancel := context.WithCancel(t.Context())
		watch := c.linger(ctx, "/api/v1/namespaces/default/configmaps?watch=1")
		if w := c.ask(t.Context(), "/api/v1/namespaces/default/configmaps/nothing"); w.Code != 404 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if w := c.ask(t.Context(), "/version"); w.Code != 200 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		cancel()
		c.all.Wait()
		if watch.Code != 200 {
			t.Errorf("%d %s", watch.Code, watch.Body)
		}
		if s := c.stats(); s.Serving != 0 {
			t.Errorf("%+v", s)
		}
		// Without its level, the FlowSchema is as if it were not.
		if err := c.Local(apitest.Admin).Delete(t.Context(), priorityLevels, "", "crowd", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if w := c.ask(t.Context(), "/version"); w.Code != 200 || w.Header().Get("X-Kubernetes-PF-FlowSchema-UID") == string(c.schema.UID) {
			t.Errorf("%d %v", w.Code, w.Header())
		}
	})
}

// TestFairnessQueue has requests wait for those before them.
func TestFairnessQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, &types.QueuingConfiguration{Queues: 1, HandSize: 1, QueueLengthLimit: 2})
		c.hold = make(chan struct{})
		begin := time.Now()
		c.linger(t.Context(), "/readyz")
		first := c.linger(t.Context(), "/version")
		hasty := c.linger(t.Context(), "/version?timeout=4s")
		c.refused(c.ask(t.Context(), "/version"))
		if s := c.stats(); s.Serving != 1 || s.Waiting != 2 || s.Refused[flow.QueueFull] != 1 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		c.refused(hasty)
		if s := c.stats(); s.Waiting != 1 || s.Refused[flow.TooLong] != 1 {
			t.Errorf("%+v", s)
		}
		// A quarter of a minute is all that there is.
		late := c.linger(t.Context(), "/version")
		time.Sleep(14 * time.Second)
		synctest.Wait()
		c.refused(first)
		close(c.hold)
		c.all.Wait()
		if late.Code != 200 || time.Since(begin) != 15*time.Second {
			t.Errorf("%d after %v", late.Code, time.Since(begin))
		}
		c.ranked(late)

		// Who waits finds out by itself that there are more seats.
		c.hold = make(chan struct{})
		c.linger(t.Context(), "/readyz")
		late = c.linger(t.Context(), "/version")
		more := c.level.DeepCopyObject().(*types.PriorityLevelConfiguration)
		more.Spec.Limited.NominalConcurrencyShares = ptr.To[int32](10)
		must(c.Local(apitest.Admin).Update(t.Context(), priorityLevels, "", more, metav1.UpdateOptions{}))(t)
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		if late.Code != 200 || late.Body.Len() == 0 {
			t.Errorf("%d %s", late.Code, late.Body)
		}
		close(c.hold)
		c.all.Wait()
	})
}

// TestFairnessSystem looks at what every cluster has, and at how it is kept.
func TestFairnessSystem(t *testing.T) {
	st := newSite(t)
	table := func(resource string) (rows []string) {
		var out metav1.Table
		st.request(st.admin(), "GET", "/apis/flowcontrol.apiserver.k8s.io/v1/"+resource, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io").into(t, &out)
		for _, r := range out.Rows {
			rows = append(rows, r.Cells[0].(string))
		}
		return rows
	}
	if got := strings.Join(table("flowschemas"), " "); got != "exempt probes system-leader-election endpoint-controller workload-leader-election system-node-high system-nodes kube-controller-manager kube-scheduler kube-system-service-accounts service-accounts global-default catch-all" {
		t.Error(got)
	}
	if got := strings.Join(table("prioritylevelconfigurations"), " "); got != "catch-all exempt global-default leader-election node-high system workload-high workload-low" {
		t.Error(got)
	}
	c := st.Local(apitest.Admin)
	get := func(name string) *types.FlowSchema {
		o := must(c.Get(t.Context(), flowSchemas, "", name, metav1.GetOptions{}))(t)
		return o.DeepCopyObject().(*types.FlowSchema)
	}
	for name, groups := range map[string][]string{"exempt": {"system:masters"}, "system-nodes": {"system:nodes"}, "global-default": nil} {
		a := st.request(st.transport("system:node:x", groups...), "GET", "/version", "")
		if got := a.header.Get("X-Kubernetes-PF-FlowSchema-UID"); got != string(get(name).UID) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if a := st.request(st.transport(""), "GET", "/livez", ""); a.header.Get("X-Kubernetes-PF-FlowSchema-UID") != string(get("probes").UID) {
		t.Error("a probe is not of probes")
	}
	// What has to be cannot be changed; the rest is kept up unless it says no.
	fixed := get("catch-all")
	fixed.Spec.MatchingPrecedence = 9000
	if _, err := c.Update(t.Context(), flowSchemas, "", fixed, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "spec of 'catch-all' must equal the fixed value") {
		t.Error(err)
	}
	for name, keep := range map[string]string{"probes": "true", "service-accounts": "false"} {
		o := get(name)
		o.Annotations[flow.AutoUpdate], o.Spec.MatchingPrecedence = keep, 77
		must(c.Update(t.Context(), flowSchemas, "", o, metav1.UpdateOptions{}))(t)
	}
	old := get("probes")
	old.Name, old.UID, old.ResourceVersion = "of-an-old-version", "", ""
	must(c.Create(t.Context(), flowSchemas, "", "", old, metav1.CreateOptions{}))(t)
	if err := c.Delete(t.Context(), flowSchemas, "", "exempt", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if a := st.request(st.admin(), "GET", "/version", ""); a.code != 200 || a.header.Get("X-Kubernetes-PF-FlowSchema-UID") != "" {
		t.Errorf("%d, by %v: what has to be is there without its object", a.code, a.header)
	}
	if err := st.EnsureDefaults(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a, b := get("probes").Spec.MatchingPrecedence, get("service-accounts").Spec.MatchingPrecedence; a != 2 || b != 77 {
		t.Errorf("%d %d", a, b)
	}
	if got := strings.Join(table("flowschemas"), " "); !strings.HasPrefix(got, "exempt probes service-accounts ") || strings.Contains(got, "of-an-old-version") {
		t.Error(got)
	}
}
