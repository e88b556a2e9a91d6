package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
	"conclave/api/apitest"
)

// bench is a scheduler at work on an API server in memory, in a bubble.
type bench struct {
	*testing.T
	client api.Client
	ctx    context.Context
	s      *Scheduler
}

// inBubble runs a test with a scheduler whose client is wrapped.
func inBubble(t *testing.T, wrap func(api.Client) api.Client, suspect func(string) bool, test func(b *bench)) {
	synctest.Test(t, func(t *testing.T) {
		server := apitest.NewServer(t)
		client := server.Local(apitest.Admin)
		used := client
		if wrap != nil {
			used = wrap(client)
		}
		s, err := New(Config{Client: used, Suspect: suspect})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		test(&bench{T: t, client: client, ctx: ctx, s: s})
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
}

func (b *bench) create(o api.Object, r schema.GroupVersionResource) {
	b.Helper()
	o.SetUID("")
	if _, err := b.client.Create(b.ctx, r, o.GetNamespace(), o.GetName(), o, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
}

// node makes a node and lets the scheduler hear of it: news of nodes and of
// pods come by different watches, so that a pod made right after may be looked
// at first, fit nowhere, and be overtaken by the next pod while it backs off.
func (b *bench) node(name string, edit ...func(*corev1.Node)) {
	b.Helper()
	b.create(testNode(name, edit...), nodes)
	b.settle(0)
}

func (b *bench) pod(name string, edit ...func(*corev1.Pod)) {
	b.Helper()
	b.ensureAccount()
	b.create(testPod(name, edit...), pods)
}

// ensureAccount makes what the service account controller would.
func (b *bench) ensureAccount() {
	b.Helper()
	r := corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}
	if _, err := b.client.Create(b.ctx, r, "default", "default", account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		b.Fatal(err)
	}
}

func (b *bench) get(name string) *corev1.Pod {
	b.Helper()
	p, err := api.GetAs[*corev1.Pod](b.ctx, b.client, "default", name)
	if err != nil {
		b.Fatal(err)
	}
	return p
}

// settle lets all work be done, and all timers up to d fire.
func (b *bench) settle(d time.Duration) {
	synctest.Wait()
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) scheduled(pod *corev1.Pod) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c
		}
	}
	return corev1.PodCondition{}
}

func (b *bench) events(reason string) (messages []string) {
	b.Helper()
	all, err := api.ListAs[*corev1.Event](b.ctx, b.client, "default", metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range all {
		if e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages
}

func TestPlacesPods(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		b.node("a")
		b.pod("p", asks("cpu", "1"))
		b.pod("other", func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" })
		b.settle(0)
		if got := b.get("p"); got.Spec.NodeName != "a" || b.scheduled(got).Status != corev1.ConditionTrue {
			t.Errorf("p: node %q, condition %+v", got.Spec.NodeName, b.scheduled(got))
		}
		if got := b.get("other"); got.Spec.NodeName != "" {
			t.Error("placed a pod of another scheduler")
		}
		if got := b.events("Scheduled"); len(got) != 1 || got[0] != "Successfully assigned default/p to a" {
			t.Errorf("events %q", got)
		}
	})
}

// conformance: Scheduler, resource limits
// conformance: Scheduler, node selector matching
// conformance: Scheduler, node selector not matching
func TestWaitsForRoom(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		b.node("a")
		b.pod("first", asks("cpu", "3"))
		b.settle(0)
		b.pod("second", asks("cpu", "3"))
		b.settle(time.Minute)
		const why = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
		c := b.scheduled(b.get("second"))
		if c.Status != corev1.ConditionFalse || c.Reason != "Unschedulable" || c.Message != why {
			t.Fatalf("condition %+v", c)
		}
		if got := b.events("FailedScheduling"); len(got) != 1 || got[0] != why {
			t.Errorf("events %q", got)
		}
		// A finished pod frees its room at once.
		first := b.get("first").DeepCopy()
		first.Status.Phase = corev1.PodSucceeded
		if _, err := b.client.Update(b.ctx, pods, "default", first, metav1.UpdateOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		b.settle(0)
		if got := b.get("second"); got.Spec.NodeName != "a" {
			t.Errorf("second is on %q", got.Spec.NodeName)
		}
		// So does a new node, and a label.
		b.pod("third", asks("cpu", "3"), func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "fast"} })
		b.node("b")
		b.settle(time.Minute)
		if got := b.get("third"); got.Spec.NodeName != "" {
			t.Fatalf("third is on %q", got.Spec.NodeName)
		}
		node, err := api.GetAs[*corev1.Node](b.ctx, b.client, "", "b")
		if err != nil {
			t.Fatal(err)
		}
		node = node.DeepCopy()
		node.Labels["disk"] = "fast"
		if _, err := b.client.Update(b.ctx, nodes, "", node, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		b.settle(time.Second)
		if got := b.get("third"); got.Spec.NodeName != "b" {
			t.Errorf("third is on %q", got.Spec.NodeName)
		}
	})
}

func TestGates(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		b.node("a")
		b.pod("p", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}} })
		b.settle(time.Minute)
		p := b.get("p")
		if c := b.scheduled(p); p.Spec.NodeName != "" || c.Reason != "SchedulingGated" || c.Status != corev1.ConditionFalse {
			t.Fatalf("node %q, condition %+v", p.Spec.NodeName, c)
		}
		p = p.DeepCopy()
		p.Spec.SchedulingGates = nil
		if _, err := b.client.Update(b.ctx, pods, "default", p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		b.settle(0)
		if got := b.get("p"); got.Spec.NodeName != "a" {
			t.Errorf("on %q", got.Spec.NodeName)
		}
	})
}

// Suspicion ends without any object changing: time has to find out.
func TestSuspicionEnds(t *testing.T) {
	var doubted atomic.Bool
	doubted.Store(true)
	inBubble(t, nil, func(string) bool { return doubted.Load() }, func(b *bench) {
		b.node("a")
		b.pod("p")
		b.settle(time.Minute)
		if got := b.get("p"); got.Spec.NodeName != "" {
			t.Fatal("placed on a suspected node")
		}
		doubted.Store(false)
		b.settle(lastBackOff)
		if got := b.get("p"); got.Spec.NodeName != "a" {
			t.Errorf("on %q", got.Spec.NodeName)
		}
	})
}

func TestQueueOrder(t *testing.T) {
	now := time.Unix(1000, 0)
	q := newQueue()
	put := func(name string, priority int32) *entry {
		return q.put(newPodInfo(testPod(name, func(p *corev1.Pod) { p.Spec.Priority = &priority })), now)
	}
	put("old", 0)
	put("young", 0)
	put("high", 1000)
	changed := put("changed", 0)
	put("changed", 2000)
	if q.entries[changed.info.UID] != changed {
		t.Error("a new version is a new entry")
	}
	q.remove("pod-young")
	var got []string
	for {
		e, _ := q.pop(now)
		if e == nil {
			break
		}
		got = append(got, e.info.Name)
		q.failed(e, now, e.info.Name == "high")
	}
	if strings.Join(got, " ") != "changed high old" {
		t.Errorf("order %v", got)
	}
	// Only high asked to be tried again; the others wait for something to help.
	if e, next := q.pop(now); e != nil || !next.Equal(now.Add(firstBackOff)) {
		t.Errorf("next at %v", next)
	}
	q.wakeAll(now, func(p *podInfo) bool { return p.Name == "old" })
	now = now.Add(firstBackOff)
	first, _ := q.pop(now)
	second, _ := q.pop(now)
	third, _ := q.pop(now)
	if first == nil || second == nil || first.info.Name != "high" || second.info.Name != "old" || third != nil {
		t.Errorf("after back-off: %v %v %v", first, second, third)
	}
}

// faulty answers bindings as told.
type faulty struct {
	api.Client
	answer func(try int, forward func() error) error
	tries  atomic.Int32
}

func (f *faulty) Create(ctx context.Context, r schema.GroupVersionResource, namespace, name string, obj api.Object, o metav1.CreateOptions, sub ...string) (api.Object, error) {
	if len(sub) == 0 || sub[0] != "binding" {
		return f.Client.Create(ctx, r, namespace, name, obj, o, sub...)
	}
	var made api.Object
	err := f.answer(int(f.tries.Add(1)), func() (err error) {
		made, err = f.Client.Create(ctx, r, namespace, name, obj, o, sub...)
		return err
	})
	return made, err
}

func TestBindingRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer func(try int, forward func() error) error
	}{
		{"no leader for a while", func(try int, forward func() error) error {
			if try < 4 {
				return apierrors.NewServiceUnavailable("no leader")
			}
			return forward()
		}},
		{"outcome unknown, but written", func(try int, forward func() error) error {
			err := forward()
			if try == 1 {
				return apierrors.NewTimeoutError("unknown", 0)
			}
			return err
		}},
		{"outcome unknown, not written", func(try int, forward func() error) error {
			if try < 3 {
				return apierrors.NewTimeoutError("unknown", 0)
			}
			return forward()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(c api.Client) api.Client { return &faulty{Client: c, answer: tc.answer} }, nil, func(b *bench) {
				b.node("a")
				b.pod("p", asks("cpu", "3"))
				b.settle(time.Minute)
				if got := b.get("p"); got.Spec.NodeName != "a" {
					t.Errorf("on %q", got.Spec.NodeName)
				}
				b.s.mu.Lock()
				defer b.s.mu.Unlock()
				check(t, b.s.snapshot)
				if len(b.s.queue.entries) != 0 || b.s.snapshot.nodes["a"].requests.cpu != 3000 {
					t.Errorf("%d in the queue, %+v on a", len(b.s.queue.entries), b.s.snapshot.nodes["a"].requests)
				}
			})
		})
	}
}

// A burst larger than the cluster: as much as fits is placed, no more.
func TestBurst(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		for i := range 5 {
			b.node(fmt.Sprint("n", i))
		}
		for i := range 30 {
			b.pod(fmt.Sprint("p", i), asks("cpu", "1"))
		}
		b.settle(time.Minute)
		all, err := api.ListAs[*corev1.Pod](b.ctx, b.client, "default", metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		perNode := map[string]int{}
		for _, p := range all {
			perNode[p.Spec.NodeName]++
		}
		if perNode[""] != 10 {
			t.Errorf("%d without a node", perNode[""])
		}
		for name, n := range perNode {
			if strings.HasPrefix(name, "n") && n != 4 {
				t.Errorf("%d on %s", n, name)
			}
		}
	})
}

// change updates an object as it is now.
func change[T api.Object](b *bench, r schema.GroupVersionResource, namespace, name string, f func(T), sub ...string) {
	b.Helper()
	for {
		o, err := b.client.Get(b.ctx, r, namespace, name, metav1.GetOptions{})
		if err != nil {
			b.Fatal(err)
		}
		changed := o.DeepCopyObject().(T)
		f(changed)
		if _, err := b.client.Update(b.ctx, r, namespace, changed, metav1.UpdateOptions{}, sub...); err == nil {
			return
		} else if !apierrors.IsConflict(err) {
			b.Fatal(err)
		}
	}
}

// A pod holds its place on its node until its volumes are bound there.
func TestWaitsForVolumes(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		b.node("a", keeping, func(n *corev1.Node) { n.Status.Allocatable["cpu"] = amounts("cpu", "1")["cpu"] })
		b.create(testClass("local", api.LocalPathProvisioner, true), classes)
		b.create(testClaim("data", "local"), claims)
		b.settle(0)
		selected := func() string {
			c, err := api.GetAs[*corev1.PersistentVolumeClaim](b.ctx, b.client, "default", "data")
			if err != nil {
				b.Fatal(err)
			}
			return c.Annotations[api.AnnotationSelectedNode]
		}
		b.pod("p", claiming("data"), asks("cpu", "1"))
		b.pod("rival", asks("cpu", "1"))
		b.settle(time.Second)
		if selected() != "a" || b.get("p").Spec.NodeName != "" || b.get("rival").Spec.NodeName != "" {
			t.Fatalf("selected %q, p on %q, rival on %q", selected(), b.get("p").Spec.NodeName, b.get("rival").Spec.NodeName)
		}
		// Nobody can make it there: somebody else may have the place.
		change(b, claims, "default", "data", func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, api.AnnotationSelectedNode) })
		b.settle(time.Second)
		if got := strings.Join(b.events("FailedScheduling"), " "); !strings.Contains(got, `binding volumes: provisioning failed for PVC "default/data"`) {
			t.Errorf("events %q", got)
		}
		if got := b.get("rival").Spec.NodeName; got != "a" {
			t.Errorf("rival is on %q", got)
		}
		if err := b.client.Delete(b.ctx, pods, "default", "rival", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
			t.Fatal(err)
		}
		b.settle(time.Minute)
		if selected() != "a" {
			t.Errorf("it was not tried again: %q", b.events("FailedScheduling"))
		}
	})
}

func TestBindsOnceVolumesAreBound(t *testing.T) {
	inBubble(t, nil, nil, func(b *bench) {
		b.node("a", keeping)
		b.create(testClass("local", api.LocalPathProvisioner, true), classes)
		b.create(testClaim("data", "local"), claims)
		b.settle(0)
		b.pod("p", claiming("data"))
		b.settle(time.Second)
		b.create(testVolume("v", "local", "a"), volumes)
		change(b, claims, "default", "data", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName = "v"
			metav1.SetMetaDataAnnotation(&c.ObjectMeta, api.AnnotationBindCompleted, "yes")
		})
		b.settle(0)
		if got := b.get("p").Spec.NodeName; got != "a" {
			t.Errorf("p is on %q: %q", got, b.events("FailedScheduling"))
		}
		// A claim that nobody serves does not keep its pod's place for ever,
		// and a pod that goes does not wait at all.
		b.create(testClaim("slow", "local"), claims)
		b.settle(0)
		b.pod("q", claiming("slow"))
		b.pod("gone", claiming("slow"))
		b.settle(time.Second)
		if err := b.client.Delete(b.ctx, pods, "default", "gone", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
			t.Fatal(err)
		}
		b.settle(2 * volumesWithin)
		if got := strings.Join(b.events("FailedScheduling"), " "); !strings.Contains(got, `running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded`) {
			t.Errorf("events %q", got)
		}
	})
}
