package api_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

func testPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1"}}},
	}
}

func TestPodAdmission(t *testing.T) {
	st := newSite(t, func(c *api.Config) { c.UnreachableToleration = time.Hour }) // the flag of the founder
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	settings := must(cs.CoreV1().ConfigMaps("kube-system").Get(ctx, "conclave", metav1.GetOptions{}))(t)
	if got := settings.Data["unreachable-toleration"]; got != "1h0m0s" {
		t.Errorf("a new cluster's setting is %q", got)
	}
	settings.Data["unreachable-toleration"] = "7s"
	must(cs.CoreV1().ConfigMaps("kube-system").Update(ctx, settings, metav1.UpdateOptions{}))(t)
	sa := must(cs.CoreV1().ServiceAccounts("shop").Get(ctx, "default", metav1.GetOptions{}))(t)
	sa.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "registry"}}
	must(cs.CoreV1().ServiceAccounts("shop").Update(ctx, sa, metav1.UpdateOptions{}))(t)

	p := must(cs.CoreV1().Pods("shop").Create(ctx, testPod("a"), metav1.CreateOptions{}))(t)
	if p.Spec.ServiceAccountName != "default" || p.Spec.ImagePullSecrets[0].Name != "registry" || *p.Spec.Priority != 0 || *p.Spec.PreemptionPolicy != corev1.PreemptLowerPriority {
		t.Errorf("%+v", p.Spec)
	}
	for key, seconds := range map[string]int64{"node.kubernetes.io/not-ready": 300, "node.kubernetes.io/unreachable": 7} {
		if !slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool {
			return t.Key == key && t.Effect == corev1.TaintEffectNoExecute && t.Operator == corev1.TolerationOpExists && *t.TolerationSeconds == seconds
		}) {
			t.Errorf("no toleration of %s: %v", key, p.Spec.Tolerations)
		}
	}
	mounts := p.Spec.Containers[0].VolumeMounts
	if len(mounts) != 1 || !strings.HasPrefix(mounts[0].Name, "kube-api-access-") || mounts[0].MountPath != "/var/run/secrets/kubernetes.io/serviceaccount" || !mounts[0].ReadOnly {
		t.Errorf("%+v", mounts)
	}
	if len(p.Spec.Volumes) != 1 || len(p.Spec.Volumes[0].Projected.Sources) != 3 || *p.Spec.Volumes[0].Projected.Sources[0].ServiceAccountToken.ExpirationSeconds != 3607 {
		t.Errorf("%+v", p.Spec.Volumes)
	}

	// What a pod says itself stays.
	off, fine := false, testPod("b")
	fine.Spec.AutomountServiceAccountToken = &off
	fine.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	fine.Spec.PriorityClassName = "system-node-critical"
	p = must(cs.CoreV1().Pods("shop").Create(ctx, fine, metav1.CreateOptions{}))(t)
	if len(p.Spec.Volumes) != 0 || len(p.Spec.Tolerations) != 1 || *p.Spec.Priority != 2000001000 {
		t.Errorf("%+v", p.Spec)
	}
	for name, tc := range map[string]struct {
		edit func(*corev1.Pod)
		want string
	}{
		"account":  {func(p *corev1.Pod) { p.Spec.ServiceAccountName = "none" }, `pods "c" is forbidden: error looking up service account shop/none: serviceaccount "none" not found`},
		"class":    {func(p *corev1.Pod) { p.Spec.PriorityClassName = "vip" }, `pods "c" is forbidden: no PriorityClass with name vip was found`},
		"priority": {func(p *corev1.Pod) { n := int32(9); p.Spec.Priority = &n }, `the integer value of priority (9) must not be provided in pod spec`},
	} {
		bad := testPod("c")
		tc.edit(bad)
		if _, err := cs.CoreV1().Pods("shop").Create(ctx, bad, metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A pod in a namespace that was made just now waits for the namespace's
// service account instead of failing.
func TestPodWaitsForServiceAccount(t *testing.T) {
	st := newSite(t)
	cs, ctx := st.clientset(""), t.Context()
	must(cs.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "young"}}, metav1.CreateOptions{}))(t)
	done := make(chan error, 1)
	go func() {
		_, err := cs.CoreV1().Pods("young").Create(ctx, testPod("a"), metav1.CreateOptions{})
		done <- err
	}()
	must(cs.CoreV1().ServiceAccounts("young").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}))(t)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPodLife(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	pods := cs.CoreV1().Pods("shop")
	bindTo := func(name, node string) error {
		return pods.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}, metav1.CreateOptions{})
	}
	for _, name := range []string{"unbound", "polite", "forced", "evicted", "held"} {
		p := testPod(name)
		if name == "held" {
			p.Finalizers = []string{"example.com/hold"}
		}
		must(pods.Create(ctx, p, metav1.CreateOptions{}))(t)
		if name != "unbound" {
			if err := bindTo(name, "n1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	p := must(pods.Get(ctx, "polite", metav1.GetOptions{}))(t)
	if p.Spec.NodeName != "n1" || len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Type != corev1.PodScheduled || p.Status.Conditions[0].Status != corev1.ConditionTrue {
		t.Errorf("after binding: %+v", p)
	}
	if err := bindTo("polite", "n2"); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `pod polite is already assigned to node "n1"`) {
		t.Errorf("second binding: %v", err)
	}
	remove := func(name string, seconds int64) {
		t.Helper()
		o := metav1.DeleteOptions{}
		if seconds >= 0 {
			o.GracePeriodSeconds = &seconds
		}
		if err := pods.Delete(ctx, name, o); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	gone := func(name string) bool {
		_, err := pods.Get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	}
	grace := func(name string) string {
		p := must(pods.Get(ctx, name, metav1.GetOptions{}))(t)
		if p.DeletionTimestamp == nil {
			return "none"
		}
		return fmt.Sprint(*p.DeletionGracePeriodSeconds)
	}
	remove("unbound", -1)
	remove("forced", 0)
	if !gone("unbound") || !gone("forced") {
		t.Error("a pod that nothing runs of, or that is forced, goes at once")
	}
	for _, step := range []struct {
		seconds int64
		want    string
	}{{-1, "30"}, {60, "30"}, {5, "5"}, {-1, "5"}} {
		if remove("polite", step.seconds); grace("polite") != step.want {
			t.Errorf("deletion with %d s: grace %s, want %s", step.seconds, grace("polite"), step.want)
		}
	}
	if err := bindTo("polite", "n2"); !apierrors.IsConflict(err) {
		t.Errorf("binding of a dying pod: %v", err)
	}
	remove("polite", 0)
	if !gone("polite") {
		t.Error("the agent's last deletion removes the pod")
	}
	if err := pods.EvictV1(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "evicted"}}); err != nil || grace("evicted") != "30" {
		t.Errorf("eviction: %v, %s", err, grace("evicted"))
	}
	remove("held", 0)
	if grace("held") != "0" {
		t.Errorf("held: %s", grace("held"))
	}
	p = must(pods.Get(ctx, "held", metav1.GetOptions{}))(t)
	p.Finalizers = nil
	must(pods.Update(ctx, p, metav1.UpdateOptions{}))(t)
	if !gone("held") {
		t.Error("without its last finalizer a deleted object goes")
	}
}

func TestNamespaceLife(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	ns := must(cs.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{}))(t)
	if ns.Labels["kubernetes.io/metadata.name"] != "shop" || len(ns.Spec.Finalizers) != 1 || ns.Status.Phase != corev1.NamespaceActive {
		t.Errorf("%+v", ns)
	}
	if err := cs.CoreV1().Namespaces().Delete(ctx, "shop", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ns = must(cs.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{}))(t)
	if ns.Status.Phase != corev1.NamespaceTerminating || ns.DeletionTimestamp == nil {
		t.Errorf("%+v", ns)
	}
	_, err := cs.CoreV1().ConfigMaps("shop").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || err.Error() != `configmaps "late" is forbidden: unable to create new content in namespace shop because it is being terminated` || !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("%v", err)
	}
	ns.Spec.Finalizers = nil
	must(cs.CoreV1().Namespaces().Finalize(ctx, ns, metav1.UpdateOptions{}))(t)
	if _, err := cs.CoreV1().Namespaces().Get(ctx, "shop", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("%v", err)
	}
}

func TestPropagation(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	for policy, want := range map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationBackground: "gone",
		metav1.DeletePropagationForeground: "[foregroundDeletion]",
		metav1.DeletePropagationOrphan:     "[orphan]",
	} {
		name := strings.ToLower(string(policy))
		must(cs.AppsV1().Deployments("shop").Create(ctx, testDeployment(name), metav1.CreateOptions{}))(t)
		if err := cs.AppsV1().Deployments("shop").Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
			t.Fatal(err)
		}
		got := "gone"
		if d, err := cs.AppsV1().Deployments("shop").Get(ctx, name, metav1.GetOptions{}); err == nil {
			got = fmt.Sprint(d.Finalizers)
			if d.DeletionTimestamp == nil || *d.DeletionGracePeriodSeconds != 0 || d.Generation != 2 {
				t.Errorf("%s: %+v", policy, d.ObjectMeta)
			}
		}
		if got != want {
			t.Errorf("%s: %s, want %s", policy, got, want)
		}
	}
}

func TestServiceAddresses(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	svcs := cs.CoreV1().Services("shop")
	service := func(name string, edit func(*corev1.ServiceSpec)) *corev1.Service {
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
		if edit != nil {
			edit(&s.Spec)
		}
		return s
	}
	// Those of services that every cluster has do not count.
	reserved := func() int {
		r, _ := st.store.List("ipaddresses.networking.k8s.io", "")
		return len(r) - 2
	}
	ports := func() int { r, _ := st.store.List("nodeports.conclave.io", ""); return len(r) }
	a := must(svcs.Create(ctx, service("a", nil), metav1.CreateOptions{}))(t)
	if !strings.HasPrefix(a.Spec.ClusterIP, "10.96.") || a.Spec.ClusterIPs[0] != a.Spec.ClusterIP || a.Spec.IPFamilies[0] != corev1.IPv4Protocol || reserved() != 1 {
		t.Errorf("%+v, %d reserved", a.Spec, reserved())
	}
	for name, tc := range map[string]struct{ ip, want string }{
		"taken":     {a.Spec.ClusterIP, "failed to allocate IP " + a.Spec.ClusterIP + ": provided IP is already allocated"},
		"outside":   {"10.97.0.1", "The range of valid IPs is 10.96.0.0/16"},
		"dns":       {"10.96.0.10", "reserved for kube-system/kube-dns"},
		"no number": {"ten", "clusterIP"},
	} {
		_, err := svcs.Create(ctx, service("b", func(s *corev1.ServiceSpec) { s.ClusterIP = tc.ip }), metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A service that is refused keeps nothing.
	if _, err := svcs.Create(ctx, service("a", nil), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) || reserved() != 1 {
		t.Errorf("%v, %d reserved", err, reserved())
	}
	if h := must(svcs.Create(ctx, service("head", func(s *corev1.ServiceSpec) { s.ClusterIP = "None" }), metav1.CreateOptions{}))(t); h.Spec.ClusterIP != "None" || reserved() != 1 {
		t.Errorf("%+v", h.Spec)
	}
	a.Spec.Type = corev1.ServiceTypeNodePort
	a.Spec.ClusterIP, a.Spec.ClusterIPs = "", nil
	was := must(svcs.Get(ctx, "a", metav1.GetOptions{}))(t).Spec.ClusterIP
	a = must(svcs.Update(ctx, a, metav1.UpdateOptions{}))(t)
	port := a.Spec.Ports[0].NodePort
	if a.Spec.ClusterIP != was || port < 30000 || port > 32767 || ports() != 1 {
		t.Errorf("%+v", a.Spec)
	}
	if _, err := svcs.Create(ctx, service("c", func(s *corev1.ServiceSpec) { s.Type, s.Ports[0].NodePort = "NodePort", port }), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.ports[0].nodePort: Invalid value: "+fmt.Sprint(port)+": provided port is already allocated") || reserved() != 1 {
		t.Errorf("%v, %d", err, reserved())
	}
	a.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"}
	a = must(svcs.Update(ctx, a, metav1.UpdateOptions{}))(t)
	if a.Spec.ClusterIP != "" || reserved() != 0 || ports() != 0 {
		t.Errorf("%+v, %d addresses, %d ports", a.Spec, reserved(), ports())
	}
	must(svcs.Create(ctx, service("d", func(s *corev1.ServiceSpec) { s.ClusterIP = was }), metav1.CreateOptions{}))(t)
	if err := svcs.Delete(ctx, "d", metav1.DeleteOptions{}); err != nil || reserved() != 0 {
		t.Errorf("%v, %d reserved", err, reserved())
	}
}

// Two masters that choose at once never give one address twice.
func TestServiceAddressesAreUnique(t *testing.T) {
	st := newSite(t, func(c *api.Config) { c.ServiceCIDR = netipPrefix("10.96.0.0/27") })
	st.namespace("shop")
	cs, ctx := st.clientset(""), t.Context()
	type result struct {
		ip  string
		err error
	}
	results := make(chan result)
	const n = 40 // more than there are
	for i := range n {
		go func() {
			s, err := cs.CoreV1().Services("shop").Create(context.WithoutCancel(ctx), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s", i)}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
			results <- result{s.Spec.ClusterIP, err}
		}()
	}
	seen, full := map[string]bool{}, 0
	for range n {
		r := <-results
		if r.err != nil {
			if !strings.Contains(r.err.Error(), "range 10.96.0.0/27 is full") {
				t.Error(r.err)
			}
			full++
			continue
		}
		if seen[r.ip] || r.ip == "10.96.0.1" || r.ip == "10.96.0.10" || r.ip == "10.96.0.0" || r.ip == "10.96.0.31" {
			t.Errorf("%s given twice, or reserved", r.ip)
		}
		seen[r.ip] = true
	}
	if len(seen) != 28 || full != n-28 {
		t.Errorf("%d given, %d refused", len(seen), full)
	}
}
