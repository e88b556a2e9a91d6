package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

func ownedBy(owners ...api.Object) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		yes := true
		for _, o := range owners {
			p.OwnerReferences = append(p.OwnerReferences, metav1.OwnerReference{
				APIVersion: o.GetObjectKind().GroupVersionKind().GroupVersion().String(), Kind: o.GetObjectKind().GroupVersionKind().Kind,
				Name: o.GetName(), UID: o.GetUID(), BlockOwnerDeletion: &yes,
			})
		}
	}
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
}

// conformance: Garbage Collector, delete deployment, propagation policy background
func TestBackground(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 2))
		w.settle(time.Second)
		w.remove(deployments, "default", "web", metav1.DeletePropagationBackground)
		w.settle(time.Second)
		if n, m := len(all[*appsv1.ReplicaSet](w, replicaSets, "default")), len(all[*corev1.Pod](w, pods, "default")); n+m != 0 {
			t.Errorf("%d replica sets and %d pods are left", n, m)
		}
	})
}

// conformance: Garbage Collector, delete deployment, propagation policy orphan
func TestOrphan(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 2))
		w.settle(time.Second)
		w.remove(deployments, "default", "web", metav1.DeletePropagationOrphan)
		w.settle(time.Minute)
		if w.exists(deployments, "default", "web") {
			t.Error("the deployment stays")
		}
		sets := all[*appsv1.ReplicaSet](w, replicaSets, "default")
		if len(sets) != 1 || len(sets[0].OwnerReferences) != 0 || sets[0].Status.AvailableReplicas != 2 {
			t.Errorf("sets %+v", sets)
		}
	})
}

// Foreground: the owner goes last.
func TestForeground(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, deployments, deployment("web", 2))
		w.settle(time.Second)
		w.agent.set(func() { w.agent.linger = true })
		w.remove(deployments, "default", "web", metav1.DeletePropagationForeground)
		w.settle(time.Minute)
		if !w.exists(deployments, "default", "web") {
			t.Error("the deployment went before its pods")
		}
		for _, p := range all[*corev1.Pod](w, pods, "default") {
			if p.DeletionTimestamp == nil {
				t.Errorf("pod %s is not being deleted", p.Name)
			}
		}
		w.agent.set(func() { w.agent.linger = false })
		w.settle(time.Second)
		if w.exists(deployments, "default", "web") || len(w.sets()) > 0 {
			t.Error("something is left")
		}
	})
}

// A dependent with another owner that stays is let go, not deleted.
//
// conformance: Garbage Collector, multiple owners
func TestSeveralOwners(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		stays, goes := create(w, configMaps, configMap("stays")), create(w, configMaps, configMap("goes"))
		create(w, pods, plainPod("both", ownedBy(stays, goes)))
		create(w, pods, plainPod("one", ownedBy(goes)))
		w.settle(time.Second)
		w.remove(configMaps, "default", "goes", metav1.DeletePropagationForeground)
		w.settle(time.Second)
		if w.exists(configMaps, "default", "goes") || w.exists(pods, "default", "one") {
			t.Error("the owner or its own pod is left")
		}
		if got := read[*corev1.Pod](w, pods, "default", "both").OwnerReferences; len(got) != 1 || got[0].UID != stays.UID {
			t.Errorf("owners %v", got)
		}
	})
}

// conformance: Garbage Collector, dependency cycle
func TestCycle(t *testing.T) {
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationForeground, metav1.DeletePropagationBackground} {
		t.Run(string(policy), func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.addNode("a")
				var ring []*corev1.Pod
				for i := range 3 {
					ring = append(ring, create(w, pods, plainPod(fmt.Sprint("pod", i))))
				}
				w.settle(time.Second)
				for i, p := range ring {
					change(w, pods, "default", p.Name, ownedBy(ring[(i+1)%3]))
				}
				w.settle(time.Second)
				w.remove(pods, "default", "pod0", policy)
				w.settle(time.Minute)
				if left := all[*corev1.Pod](w, pods, "default"); len(left) != 0 {
					t.Errorf("%d pods are left, first %v", len(left), left[0].ObjectMeta)
				}
			})
		})
	}
}

func TestReferences(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
		w.settle(time.Second)
		elsewhere := configMap("elsewhere")
		elsewhere.Namespace = "other"
		elsewhere = create(w, configMaps, elsewhere)
		same := create(w, configMaps, configMap("same-name"))
		node := w.node("a")
		for name, tc := range map[string]struct {
			edit func(*corev1.Pod)
			left bool
		}{
			"never-was":        {ownedBy(&corev1.ConfigMap{TypeMeta: same.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: "gone", UID: "gone"}}), false},
			"another-uid":      {ownedBy(&corev1.ConfigMap{TypeMeta: same.TypeMeta, ObjectMeta: metav1.ObjectMeta{Name: "same-name", UID: "former"}}), false},
			"across":           {ownedBy(elsewhere), false},
			"by-a-node":        {ownedBy(node), true},
			"unknown-kind":     {ownedBy(&corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "example.com/v1", Kind: "Thing"}, ObjectMeta: metav1.ObjectMeta{Name: "t", UID: "t"}}), true},
			"one-of-two-there": {ownedBy(same, elsewhere), true},
		} {
			create(w, pods, plainPod(name, tc.edit))
			w.settle(time.Second)
			if w.exists(pods, "default", name) != tc.left {
				t.Errorf("%s: left %v", name, !tc.left)
			}
		}
	})
}

// conformance: namespace-deletion-removes-services
// conformance: Ordered Namespace Deletion
func TestNamespaceDeletion(t *testing.T) {
	inWorld(t, func(w *world) {
		w.addNode("a")
		create(w, namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "doomed"}})
		w.settle(time.Second)
		create(w, pods, plainPod("p", func(p *corev1.Pod) { p.Namespace = "doomed"; p.Finalizers = []string{"example.com/hold"} }))
		create(w, services, service("s", func(s *corev1.Service) { s.Namespace = "doomed" }))
		create(w, configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "doomed", Name: "c"}})
		w.settle(time.Second)
		w.remove(namespaces, "", "doomed", metav1.DeletePropagationBackground)
		w.settle(time.Minute)
		ns := read[*corev1.Namespace](w, namespaces, "", "doomed")
		got := map[corev1.NamespaceConditionType]string{}
		for _, c := range ns.Status.Conditions {
			got[c.Type] = fmt.Sprintf("%s %s: %s", c.Status, c.Reason, c.Message)
		}
		if want := "True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"; got[corev1.NamespaceFinalizersRemaining] != want {
			t.Errorf("got %q", got)
		}
		if want := "True SomeResourcesRemain: Some resources are remaining: pods. has 1 resource instances"; got[corev1.NamespaceContentRemaining] != want {
			t.Errorf("got %q", got)
		}
		if !w.exists(configMaps, "doomed", "c") || !w.exists(services, "doomed", "s") {
			t.Error("something went before the pod")
		}
		if p := read[*corev1.Pod](w, pods, "doomed", "p"); p.DeletionTimestamp == nil {
			t.Error("the pod is not being deleted")
		}
		change(w, pods, "doomed", "p", func(p *corev1.Pod) { p.Finalizers = nil })
		w.settle(time.Second)
		if w.exists(namespaces, "", "doomed") {
			t.Errorf("left: %+v", read[*corev1.Namespace](w, namespaces, "", "doomed"))
		}
		for _, r := range resources() {
			for _, o := range all[api.Object](w, r, "") {
				if o.GetNamespace() == "doomed" {
					t.Errorf("%s %s outlives its namespace", r.Resource, o.GetName())
				}
			}
		}
	})
}

// conformance: RootCA ConfigMap test
func TestEveryNamespaceHas(t *testing.T) {
	inWorld(t, func(w *world) {
		create(w, namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}})
		w.settle(time.Second)
		for _, ns := range []string{"default", "kube-system", "new"} {
			if !w.exists(serviceAccounts, ns, defaultAccount) {
				t.Errorf("%s has no default account", ns)
			}
			if got := read[*corev1.ConfigMap](w, configMaps, ns, rootCAName).Data; got[rootCAKey] != "-----BEGIN CERTIFICATE-----" || len(got) != 1 {
				t.Errorf("%s: %v", ns, got)
			}
		}
		w.remove(configMaps, "new", rootCAName, metav1.DeletePropagationBackground)
		w.remove(serviceAccounts, "new", defaultAccount, metav1.DeletePropagationBackground)
		change(w, configMaps, "default", rootCAName, func(c *corev1.ConfigMap) { c.Data = map[string]string{"ca.crt": "", "more": "x"} })
		w.settle(time.Second)
		if !w.exists(configMaps, "new", rootCAName) || !w.exists(serviceAccounts, "new", defaultAccount) {
			t.Error("not made again")
		}
		if got := read[*corev1.ConfigMap](w, configMaps, "default", rootCAName).Data; len(got) != 1 || got[rootCAKey] == "" {
			t.Errorf("not repaired: %v", got)
		}
	})
}

func TestEventsExpire(t *testing.T) {
	inWorld(t, func(w *world) {
		event := func(name string) {
			now := metav1.Now()
			create(w, events, &corev1.Event{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Reason: "R", Message: name, Type: "Normal", Count: 1,
				InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "x", APIVersion: "v1"}, FirstTimestamp: now, LastTimestamp: now,
			})
		}
		event("old")
		w.settle(40 * time.Minute)
		event("young")
		w.settle(26 * time.Minute)
		if w.exists(events, "default", "old") || !w.exists(events, "default", "young") {
			t.Errorf("old %v, young %v", w.exists(events, "default", "old"), w.exists(events, "default", "young"))
		}
		w.settle(50 * time.Minute)
		if w.exists(events, "default", "young") {
			t.Error("young stays for ever")
		}
	})
}

// An event that is said again is counted, not written anew.
func TestEventCounts(t *testing.T) {
	inWorld(t, func(w *world) {
		c := create(w, configMaps, configMap("c"))
		for range 3 {
			w.manager.env.events.record("tester", about(c), corev1.EventTypeNormal, "Said", "again")
			w.settle(time.Second)
		}
		var found []*corev1.Event
		for _, e := range all[*corev1.Event](w, events, "default") {
			if e.Reason == "Said" {
				found = append(found, e)
			}
		}
		if len(found) != 1 || found[0].Count != 3 || !found[0].LastTimestamp.After(found[0].FirstTimestamp.Time) {
			t.Errorf("%d events, first %+v", len(found), found)
		}
	})
}

func TestFinishedPodsLimit(t *testing.T) {
	inWorld(t, func(w *world) {
		for i := range finishedPods + 3 {
			p := create(w, pods, plainPod(fmt.Sprintf("p%04d", i)))
			change(w, pods, "default", p.Name, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, "status")
		}
		w.settle(time.Minute)
		if n := len(all[*corev1.Pod](w, pods, "default")); n != finishedPods {
			t.Errorf("%d are kept", n)
		}
	})
}

// A controller reads its own writes, whatever the watch says late.
func TestCacheOrder(t *testing.T) {
	pod := func(uid, version string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: types.UID(uid), ResourceVersion: version}}
	}
	c := newCache(needed)
	addIndexes(c)
	have := func(step, want string) {
		t.Helper()
		got := "none"
		if p, ok := get[*corev1.Pod](c, pods, "n", "p"); ok {
			got = string(p.UID) + p.ResourceVersion
		}
		if got != want {
			t.Errorf("%s: %s, want %s", step, got, want)
		}
		if n := len(indexed[*corev1.Pod](c, pods, orphans, "n")); (n == 1) != (want != "none") {
			t.Errorf("%s: %d in the index", step, n)
		}
	}
	c.apply(pods, pod("a", "5"), true)
	c.apply(pods, pod("a", "4"), true)
	have("old news", "a5")
	c.remove(pods, pod("a", "6"), false) // our own deletion
	c.apply(pods, pod("a", "5"), true)
	have("news of what we deleted", "none")
	c.apply(pods, pod("b", "9"), false) // made again by us
	c.remove(pods, pod("a", "6"), true)
	have("the deletion of the former", "b9")
	if len(c.tables[pods].gone) != 0 {
		t.Error("a deletion is remembered for ever")
	}
	_, missing := c.replace(pods, nil)
	if len(missing) != 1 || missing[0].GetUID() != "b" {
		t.Errorf("missing %v", missing)
	}
	c.apply(pods, pod("c", "12"), true)
	have("a name used again", "c12")
	c.remove(pods, pod("c", "13"), true)
	c.apply(pods, pod("c", "12"), false) // the answer to a write of ours, late
	have("late news of what is gone", "none")
}

func TestTwoOwnersAreRefused(t *testing.T) {
	m := &Manager{env: &env{store: &store{cache: newCache(needed)}}}
	output := []Output{{pods, "status"}}
	if err := m.add(&Controller{Name: "one", Outputs: output}); err != nil {
		t.Fatal(err)
	}
	if err := m.add(&Controller{Name: "two", Outputs: output}); err == nil || !strings.Contains(err.Error(), "controllers one and two both own status of pods") {
		t.Errorf("got %v", err)
	}
}

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, a, b := newQueue(), Key{Name: "a"}, Key{Name: "b"}
		next := func() (names string) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
			defer cancel()
			k, ok := q.next(ctx)
			if !ok {
				return "nothing"
			}
			return k.Name
		}
		q.add(a, b, a)
		if x, y, z := next(), next(), next(); x != "a" || y != "b" || z != "nothing" {
			t.Errorf("%s %s %s", x, y, z)
		}
		q.add(a) // while it is worked on
		if x := next(); x != "nothing" {
			t.Errorf("%s twice at a time", x)
		}
		q.done(a, 0, nil)
		q.done(b, 0, errors.New("no"))
		if x, y := next(), next(); x != "a" || y != "nothing" {
			t.Errorf("%s %s", x, y)
		}
		time.Sleep(firstBackOff)
		synctest.Wait()
		if x := next(); x != "b" {
			t.Errorf("%s after the back-off", x)
		}
		q.done(a, time.Hour, nil)
		q.done(b, 0, errors.New("no"))
		time.Sleep(firstBackOff + time.Millisecond)
		synctest.Wait()
		if x := next(); x != "nothing" {
			t.Errorf("the second back-off is no longer: %s", x)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		got := []string{next(), next()}
		slices.Sort(got)
		if !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("%v after an hour", got)
		}
		q.close()
	})
}
