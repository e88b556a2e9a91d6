package hosts

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"conclave/test/conformance"
)

func amounts(pairs ...string) corev1.ResourceList {
	list := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		list[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return list
}

func (w *world) quota(t *testing.T, name string, hard corev1.ResourceList, scopes ...corev1.ResourceQuotaScope) {
	t.Helper()
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ResourceQuotaSpec{Hard: hard, Scopes: scopes}}
	if _, err := w.c.Client.CoreV1().ResourceQuotas(w.ns).Create(t.Context(), q, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// uses waits until a quota says that so much is used.
func (w *world) uses(t *testing.T, name string, pairs ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("quota %s uses %v", name, pairs), func() error {
		q, err := w.c.Client.CoreV1().ResourceQuotas(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for what, n := range amounts(pairs...) {
			used, ok := q.Status.Used[what]
			hard := q.Status.Hard[what]
			if !ok || used.Cmp(n) != 0 || hard.Cmp(q.Spec.Hard[what]) != 0 {
				return fmt.Errorf("used are %v of %v", q.Status.Used, q.Status.Hard)
			}
		}
		return nil
	})
}

// exceeds wants a refusal because of a quota.
func exceeds(t *testing.T, what string, err error) {
	t.Helper()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: ") {
		t.Errorf("%s: %v", what, err)
	}
}

func askingPod(name string, requests, limits corev1.ResourceList) *corev1.Pod {
	p := idlePod(name, nil, "")
	p.Spec.TerminationGracePeriodSeconds = ptr.To(int64(0))
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	return p
}

func (w *world) createPod(t *testing.T, p *corev1.Pod) error {
	t.Helper()
	_, err := w.c.Client.CoreV1().Pods(w.ns).Create(t.Context(), p, metav1.CreateOptions{})
	return err
}

// TestQuotas shows what Kubernetes asks of resource quotas, each in a namespace
// of its own.
func TestQuotas(t *testing.T) {
	c := three(t)
	for _, b := range quotaBehaviours {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			conformance.Shows(t, b.codename)
			b.show(t, &world{c: c, ns: namespace(t, c)})
		})
	}
}

// countedLife is the life of one object of a kind that a quota counts.
func countedLife(name, codename, counted, manifest string) behaviour {
	return behaviour{name, codename, func(t *testing.T, w *world) {
		other := "count/" + counted
		if strings.HasPrefix(counted, "count/") {
			other = counted
		}
		w.quota(t, "q", amounts(counted, "10", other, "10"))
		before := w.settled(t, "q", counted)
		apply(t, w.c, w.ns, manifest)
		w.uses(t, "q", counted, fmt.Sprint(before+1), other, fmt.Sprint(before+1))
		if _, err := w.c.KubectlInput(t.Context(), manifest, "delete", "-n", w.ns, "--wait=false", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		w.uses(t, "q", counted, fmt.Sprint(before), other, fmt.Sprint(before))
	}}
}

// settled is how much of a thing a quota uses once it has been seen to; a new
// namespace has a config map of its own.
func (w *world) settled(t *testing.T, name, what string) (n int64) {
	t.Helper()
	if what == "configmaps" {
		w.uses(t, name, what, "1")
	}
	eventually(t, "the quota is seen to", func() error {
		q, err := w.c.Client.CoreV1().ResourceQuotas(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		used, ok := q.Status.Used[corev1.ResourceName(what)]
		if !ok {
			return fmt.Errorf("its status is %+v", q.Status)
		}
		n = used.Value()
		return nil
	})
	return n
}

var quotaBehaviours = []behaviour{
	countedLife("config map", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a configMap. [Conformance]", "configmaps",
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}"),
	countedLife("secret", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a secret. [Conformance]", "secrets",
		"apiVersion: v1\nkind: Secret\nmetadata: {name: x}"),
	countedLife("replica set", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a replica set. [Conformance]", "count/replicasets.apps",
		"apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: x}\nspec: {replicas: 0, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}"),
	countedLife("replication controller", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a replication controller. [Conformance]", "replicationcontrollers",
		"apiVersion: v1\nkind: ReplicationController\nmetadata: {name: x}\nspec: {replicas: 0, selector: {a: b}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}"),
	{"service", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a service. [Conformance]", func(t *testing.T, w *world) {
		w.quota(t, "q", amounts("services", "2", "services.nodeports", "1", "services.loadbalancers", "1"))
		w.uses(t, "q", "services", "0", "services.nodeports", "0")
		service := func(name string, kind corev1.ServiceType) error {
			_, err := w.c.Client.CoreV1().Services(w.ns).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{Type: kind, Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
			return err
		}
		for name, kind := range map[string]corev1.ServiceType{"plain": corev1.ServiceTypeClusterIP, "node": corev1.ServiceTypeNodePort} {
			if err := service(name, kind); err != nil {
				t.Fatal(err)
			}
		}
		w.uses(t, "q", "services", "2", "services.nodeports", "1", "services.loadbalancers", "0")
		exceeds(t, "a third service", service("third", corev1.ServiceTypeLoadBalancer))
		for _, name := range []string{"plain", "node"} {
			if err := w.c.Client.CoreV1().Services(w.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		w.uses(t, "q", "services", "0", "services.nodeports", "0")
	}},
	{"pod", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and capture the life of a pod. [Conformance]", func(t *testing.T, w *world) {
		w.quota(t, "q", amounts("pods", "5", "cpu", "1", "memory", "500Mi", "requests."+scarce, "3"))
		w.uses(t, "q", "pods", "0", "cpu", "0")
		scarceOf := func(n string, more ...string) (corev1.ResourceList, corev1.ResourceList) {
			return amounts(append(more, scarce, n)...), amounts(scarce, n)
		}
		requests, limits := scarceOf("2", "cpu", "500m", "memory", "252Mi")
		if err := w.createPod(t, askingPod("fits", requests, limits)); err != nil {
			t.Fatal(err)
		}
		w.uses(t, "q", "pods", "1", "cpu", "500m", "memory", "252Mi", "requests."+scarce, "2")
		exceeds(t, "too much cpu", w.createPod(t, askingPod("too-much", amounts("cpu", "600m", "memory", "100Mi"), nil)))
		requests, limits = scarceOf("2", "cpu", "100m", "memory", "100Mi")
		exceeds(t, "too much of what is scarce", w.createPod(t, askingPod("too-scarce", requests, limits)))
		if err := w.createPod(t, askingPod("silent", nil, nil)); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "must specify cpu for: ") {
			t.Errorf("a pod that says nothing: %v", err)
		}
		eventually(t, "its resources may not be changed", func() error {
			p, err := w.c.Client.CoreV1().Pods(w.ns).Get(t.Context(), "fits", metav1.GetOptions{})
			if err != nil {
				return err
			}
			p.Spec.Containers[0].Resources.Requests[corev1.ResourceCPU] = resource.MustParse("600m")
			if _, err = w.c.Client.CoreV1().Pods(w.ns).Update(t.Context(), p, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
				return fmt.Errorf("the update: %v", err)
			}
			return nil
		})
		w.uses(t, "q", "cpu", "500m")
		deletePod(t, w.c, w.ns, "fits")
		w.uses(t, "q", "pods", "0", "cpu", "0", "memory", "0", "requests."+scarce, "0")
	}},
	{"status is calculated", "[sig-api-machinery] ResourceQuota should create a ResourceQuota and ensure its status is promptly calculated. [Conformance]", func(t *testing.T, w *world) {
		w.quota(t, "q", amounts("resourcequotas", "1", "pods", "5"))
		w.uses(t, "q", "resourcequotas", "1", "pods", "0")
		_, err := w.c.Client.CoreV1().ResourceQuotas(w.ns).Create(t.Context(), &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "second"}}, metav1.CreateOptions{})
		exceeds(t, "a second quota", err)
	}},
	{"update and delete", "[sig-api-machinery] ResourceQuota should be able to update and delete ResourceQuota. [Conformance]", func(t *testing.T, w *world) {
		quotas := w.c.Client.CoreV1().ResourceQuotas(w.ns)
		w.quota(t, "q", amounts("cpu", "1", "memory", "500Mi"))
		eventually(t, "it is updated", func() error {
			q, err := quotas.Get(t.Context(), "q", metav1.GetOptions{})
			if err == nil {
				q.Spec.Hard = amounts("cpu", "2", "memory", "1Gi")
				_, err = quotas.Update(t.Context(), q, metav1.UpdateOptions{})
			}
			return err
		})
		w.uses(t, "q", "cpu", "0", "memory", "0")
		if err := quotas.Delete(t.Context(), "q", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := quotas.Get(t.Context(), "q", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("it is there: %v", err)
		}
	}},
	{"status", "[sig-api-machinery] ResourceQuota should apply changes to a resourcequota status [Conformance]", func(t *testing.T, w *world) {
		quotas := w.c.Client.CoreV1().ResourceQuotas(w.ns)
		w.quota(t, "q", amounts("cpu", "500m", "memory", "500Mi"))
		w.uses(t, "q", "cpu", "0", "memory", "0")
		got, err := quotas.Patch(t.Context(), "q", types.MergePatchType, []byte(`{"status":{"hard":{"cpu":"1"}}}`), metav1.PatchOptions{}, "status")
		if err != nil || got.Status.Hard.Cpu().Cmp(resource.MustParse("1")) != 0 || got.Spec.Hard.Cpu().Cmp(resource.MustParse("500m")) != 0 {
			t.Fatalf("patched to %v (%v)", got, err)
		}
		w.uses(t, "q", "cpu", "0") // the controller knows better
		eventually(t, "the status is updated", func() error {
			q, err := quotas.Get(t.Context(), "q", metav1.GetOptions{})
			if err == nil {
				q.Status.Hard = amounts("cpu", "2", "memory", "1Gi")
				q, err = quotas.UpdateStatus(t.Context(), q, metav1.UpdateOptions{})
			}
			if err == nil && q.Spec.Hard.Cpu().Cmp(resource.MustParse("500m")) != 0 {
				t.Errorf("the spec is %v", q.Spec)
			}
			return err
		})
		w.uses(t, "q", "cpu", "0", "memory", "0")
	}},
	{"best effort", "[sig-api-machinery] ResourceQuota should verify ResourceQuota with best effort scope. [Conformance]", func(t *testing.T, w *world) {
		w.quota(t, "best", amounts("pods", "5"), corev1.ResourceQuotaScopeBestEffort)
		w.quota(t, "not-best", amounts("pods", "5"), corev1.ResourceQuotaScopeNotBestEffort)
		w.splits(t, "best", "not-best", askingPod("first", nil, nil), askingPod("second", amounts("cpu", "1m"), nil))
	}},
	{"terminating", "[sig-api-machinery] ResourceQuota should verify ResourceQuota with terminating scopes. [Conformance]", func(t *testing.T, w *world) {
		w.quota(t, "terminating", amounts("pods", "5"), corev1.ResourceQuotaScopeTerminating)
		w.quota(t, "not-terminating", amounts("pods", "5"), corev1.ResourceQuotaScopeNotTerminating)
		first := askingPod("first", nil, nil)
		first.Spec.ActiveDeadlineSeconds = ptr.To(int64(3600))
		w.splits(t, "terminating", "not-terminating", first, askingPod("second", nil, nil))
	}},
}

// splits shows that each of two quotas counts one of two pods.
func (w *world) splits(t *testing.T, one, other string, first, second *corev1.Pod) {
	t.Helper()
	w.uses(t, one, "pods", "0")
	w.uses(t, other, "pods", "0")
	for i, p := range []*corev1.Pod{first, second} {
		if i == 1 {
			one, other = other, one
		}
		if err := w.createPod(t, p); err != nil {
			t.Fatal(err)
		}
		w.uses(t, one, "pods", "1")
		w.uses(t, other, "pods", "0")
		deletePod(t, w.c, w.ns, p.Name)
		w.uses(t, one, "pods", "0")
	}
}

// TestQuotaHolds creates more at once, through every node, than there is room
// for.
func TestQuotaHolds(t *testing.T) {
	c := three(t)
	w := &world{c: c, ns: namespace(t, c)}
	w.quota(t, "q", amounts("secrets", "5"))
	w.uses(t, "q", "secrets", "0")
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			_, err := w.c.Client.CoreV1().Secrets(w.ns).Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("s-", i)}}, metav1.CreateOptions{})
			if err != nil {
				exceeds(t, "one too many", err)
			}
		})
	}
	all.Wait()
	list, err := w.c.Client.CoreV1().Secrets(w.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 5 {
		t.Errorf("%d secrets (%v)", len(list.Items), err)
	}
	w.uses(t, "q", "secrets", "5")
}

// TestLimitRange shows what a LimitRange makes of pods.
func TestLimitRange(t *testing.T) {
	c := three(t)
	w := &world{c: c, ns: namespace(t, c)}
	conformance.Shows(t, "[sig-scheduling] LimitRange should create a LimitRange with defaults and ensure pod has those defaults applied. [Conformance]")
	limits := c.Client.CoreV1().LimitRanges(w.ns)
	made, err := limits.Create(t.Context(), &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{
		Type: corev1.LimitTypeContainer, Min: amounts("cpu", "50m", "memory", "100Mi"), Max: amounts("cpu", "500m", "memory", "500Mi"),
		Default: amounts("cpu", "500m", "memory", "500Mi"), DefaultRequest: amounts("cpu", "100m", "memory", "200Mi"),
	}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	has := func(name string, requests, limits corev1.ResourceList) {
		t.Helper()
		p, err := c.Client.CoreV1().Pods(w.ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for what, want := range map[string][2]corev1.ResourceList{"requests": {p.Spec.Containers[0].Resources.Requests, requests}, "limits": {p.Spec.Containers[0].Resources.Limits, limits}} {
			for name, n := range want[1] {
				if got := want[0][name]; got.Cmp(n) != 0 {
					t.Errorf("%s of %s are %s, wanted %s", what, name, got.String(), n.String())
				}
			}
		}
	}
	create := func(name string, requests, limits corev1.ResourceList) {
		t.Helper()
		if err := w.createPod(t, askingPod(name, requests, limits)); err != nil {
			t.Fatal(err)
		}
	}
	create("silent", nil, nil)
	has("silent", amounts("cpu", "100m", "memory", "200Mi"), amounts("cpu", "500m", "memory", "500Mi"))
	create("partial", amounts("cpu", "300m", "memory", "150Mi"), amounts("cpu", "300m"))
	has("partial", amounts("cpu", "300m", "memory", "150Mi"), amounts("cpu", "300m", "memory", "500Mi"))
	refused := func(name string, requests, limits corev1.ResourceList, why string) {
		t.Helper()
		if err := w.createPod(t, askingPod(name, requests, limits)); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), why) {
			t.Errorf("pod %s: %v", name, err)
		}
	}
	refused("too-little", amounts("cpu", "10m", "memory", "50Mi"), nil, "minimum cpu usage per Container is 50m, but request is 10m")
	refused("too-much", amounts("cpu", "600m"), amounts("cpu", "600m"), "maximum cpu usage per Container is 500m, but limit is 600m")
	made.Spec.Limits[0].Min = amounts("cpu", "9m", "memory", "49Mi")
	if _, err := limits.Update(t.Context(), made, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	create("little", amounts("cpu", "10m", "memory", "50Mi"), nil)
	refused("still-too-much", amounts("cpu", "600m"), amounts("cpu", "600m"), "maximum cpu usage")
	if err := limits.Delete(t.Context(), "l", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	create("much", amounts("cpu", "600m", "memory", "600Mi"), amounts("cpu", "600m", "memory", "600Mi"))
}
