package controller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
	"conclave/api/apitest"
	"conclave/api/custom"
)

// world is a cluster in a bubble: the API server in memory, the controllers
// under test, and an agent that stands for all nodes: it gives pods a node,
// runs them, and ends them when they are deleted.
type world struct {
	*testing.T
	ctx      context.Context
	client   api.Client
	manager  *Manager
	liveness *fakeLiveness
	agent    *agent
	driver   *fakeDriver
	signer   *fakeSigner
	behind   *fakeBehind
	load     *load
}

type fakeLiveness struct {
	mu      sync.Mutex
	states  map[string]NodeState
	since   map[string]time.Time // of the state
	changed chan struct{}
}

func (l *fakeLiveness) State(name, _ string) NodeState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[name]
}

func (l *fakeLiveness) FenceLeft(name, _ string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.states[name] == Alive {
		return testFence
	}
	return max(testFence-time.Since(l.since[name]), 0)
}

const testFence = 10 * time.Second

func (l *fakeLiveness) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

func (l *fakeLiveness) set(name string, s NodeState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states[name], l.since[name] = s, time.Now()
	close(l.changed)
	l.changed = make(chan struct{})
}

func resources() (all []schema.GroupVersionResource) {
	for _, k := range custom.Kinds() {
		if k.Stored == "" { // its own storage, not a second view of another's
			all = append(all, k.GVR())
		}
	}
	return all
}

func inWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	worldOf(t, []string{"10.244.0.0/16", "10.96.0.0/16"}, test)
}

// inDualWorld is inWorld in a dual-stack cluster.
func inDualWorld(t *testing.T, test func(w *world)) {
	t.Helper()
	worldOf(t, []string{"10.244.0.0/16", "10.96.0.0/16", "fd00:1::/56", "fd00:2::/112"}, test)
}

// worldOf has ranges of pods and of Services, and second ones in a dual-stack
// cluster.
func worldOf(t *testing.T, ranges []string, test func(w *world)) {
	t.Helper()
	var of [4]netip.Prefix
	for i, text := range ranges {
		of[i] = netip.MustParsePrefix(text)
	}
	synctest.Test(t, func(t *testing.T) {
		server := apitest.NewServer(t, func(c *api.Config) { c.ServiceCIDR, c.ServiceCIDR6 = of[1], of[3] })
		client := server.Local(apitest.Admin)
		liveness := &fakeLiveness{states: map[string]NodeState{}, since: map[string]time.Time{}, changed: make(chan struct{})}
		driver, signer, behind, load := &fakeDriver{}, &fakeSigner{}, &fakeBehind{}, &load{}
		m, err := New(Config{
			CallDriver: driver.call, SignClient: signer.sign, LocalAPIServices: server.LocalAPIServices, CheckPolicy: server.CheckPolicy, ProbeAPIService: behind.probe, EmptyBehind: behind.empty,
			ExtensionAuthentication: func() map[string]string { return map[string]string{"client-ca-file": "CA"} },
			MeasurePods:             load.measure,
			Client:                  client, Kinds: resources(), Liveness: liveness,
			RootCA: func() []byte { return []byte("-----BEGIN CERTIFICATE-----") }, PodCIDR: of[0], PodCIDR6: of[2],
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{T: t, ctx: ctx, client: client, manager: m, liveness: liveness, driver: driver, signer: signer, behind: behind, load: load, agent: &agent{client: client, ctx: ctx, liveness: liveness, known: map[string]*corev1.Pod{}, wake: make(chan struct{}, 1)}}
		var all sync.WaitGroup
		all.Go(func() {
			if err := m.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run ended with %v", err)
			}
		})
		all.Go(func() { _ = api.Follow(ctx, client, pods, "", metav1.ListOptions{}, w.agent) })
		all.Go(w.agent.run)
		w.settle(0)
		test(w)
		cancel()
		all.Wait()
	})
}

// settle lets all work be done, and the timers of the next d fire.
func (w *world) settle(d time.Duration) {
	synctest.Wait()
	time.Sleep(d)
	synctest.Wait()
}

// agent is every node's.
type agent struct {
	ctx      context.Context
	client   api.Client
	liveness *fakeLiveness
	wake     chan struct{}
	mu       sync.Mutex
	known    map[string]*corev1.Pod
	nodes    []string
	turn, ip int
	// hold keeps pods from becoming ready.
	hold func(*corev1.Pod) bool
	// linger keeps deleted pods from ending.
	linger bool
	// pinned pods go to the node that they name.
	pinned bool
}

func (a *agent) Replace(objects []api.Object) {
	for _, o := range objects {
		a.Apply(watch.Added, o)
	}
}

func (a *agent) Apply(t watch.EventType, o api.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := o.GetNamespace() + "/" + o.GetName()
	if t == watch.Deleted {
		delete(a.known, key)
	} else {
		a.known[key] = o.(*corev1.Pod)
	}
	a.poke()
}

func (a *agent) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// set changes how the agent behaves.
func (a *agent) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
	a.poke()
}

func (a *agent) run() {
	for {
		select {
		case <-a.wake:
		case <-a.ctx.Done():
			return
		}
		a.mu.Lock()
		var all []*corev1.Pod
		for _, p := range a.known {
			all = append(all, p)
		}
		a.mu.Unlock()
		slices.SortFunc(all, func(x, y *corev1.Pod) int { return byName(x, y) })
		for _, p := range all {
			a.sync(p)
		}
	}
}

func (a *agent) sync(p *corev1.Pod) {
	a.mu.Lock()
	hold, linger, here := a.hold != nil && a.hold(p), a.linger, len(a.nodes) > 0
	a.turn++
	a.mu.Unlock()
	switch {
	case p.Spec.NodeName == "" && p.DeletionTimestamp == nil && here:
		a.mu.Lock()
		node := a.nodes[a.turn%len(a.nodes)]
		if a.pinned {
			node = pinnedTo(p)
		}
		a.mu.Unlock()
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
		_, _ = a.client.Create(a.ctx, pods, p.Namespace, p.Name, binding, metav1.CreateOptions{}, "binding")
	case p.Spec.NodeName == "" || a.liveness.State(p.Spec.NodeName, "") != Alive:
	case p.DeletionTimestamp != nil && !linger:
		_ = a.client.Delete(a.ctx, pods, p.Namespace, p.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
	case p.DeletionTimestamp == nil && !podFinished(p) && (podReady(p) == hold || p.Status.PodIP == ""):
		p = p.DeepCopy()
		p.Status.Phase = corev1.PodRunning
		if p.Status.StartTime == nil {
			p.Status.StartTime = new(metav1.Now())
		}
		if p.Status.PodIP == "" {
			a.mu.Lock()
			a.ip++
			p.Status.PodIP = fmt.Sprintf("10.244.%d.%d", a.ip/250, a.ip%250+1)
			a.mu.Unlock()
			p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
		}
		status := corev1.ConditionTrue
		if hold {
			status = corev1.ConditionFalse
		}
		p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()})
		_, _ = a.client.Update(a.ctx, pods, p.Namespace, p, metav1.UpdateOptions{}, "status")
	}
}

func (w *world) addNode(name string, edit ...func(*corev1.Node)) {
	w.Helper()
	quantity := resource.MustParse("64")
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{nodeIDAnnotation: "id-" + name}, Labels: map[string]string{}},
		Status: corev1.NodeStatus{
			Allocatable: corev1.ResourceList{"cpu": quantity, "memory": quantity, "pods": quantity},
			Conditions: []corev1.NodeCondition{
				{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"},
				{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientMemory"},
			},
		},
	}
	for _, f := range edit {
		f(n)
	}
	create(w, nodes, n)
	w.agent.set(func() { w.agent.nodes = append(w.agent.nodes, name) })
	w.settle(0)
}

func create[T api.Object](w *world, r schema.GroupVersionResource, o T) T {
	w.Helper()
	made, err := w.client.Create(w.ctx, r, o.GetNamespace(), o.GetName(), o, metav1.CreateOptions{})
	if err != nil {
		w.Fatalf("create %s %s: %v", r.Resource, o.GetName(), err)
	}
	return made.(T)
}

// change updates an object as it is now.
func change[T api.Object](w *world, r schema.GroupVersionResource, namespace, name string, f func(T), sub ...string) T {
	w.Helper()
	for {
		o := edit(read[T](w, r, namespace, name))
		f(o)
		made, err := w.client.Update(w.ctx, r, namespace, o, metav1.UpdateOptions{}, sub...)
		if apierrors.IsConflict(err) {
			continue // with what a controller wrote meanwhile
		}
		if err != nil {
			w.Fatalf("update %s %s: %v", r.Resource, name, err)
		}
		return made.(T)
	}
}

func read[T api.Object](w *world, r schema.GroupVersionResource, namespace, name string) T {
	w.Helper()
	o, err := w.client.Get(w.ctx, r, namespace, name, metav1.GetOptions{})
	if err != nil {
		w.Fatalf("read %s %s: %v", r.Resource, name, err)
	}
	return o.(T)
}

func (w *world) exists(r schema.GroupVersionResource, namespace, name string) bool {
	_, err := w.client.Get(w.ctx, r, namespace, name, metav1.GetOptions{})
	return err == nil
}

func all[T api.Object](w *world, r schema.GroupVersionResource, namespace string) []T {
	w.Helper()
	objects, _, err := w.client.List(w.ctx, r, namespace, metav1.ListOptions{})
	if err != nil {
		w.Fatal(err)
	}
	var found []T
	for _, o := range objects {
		found = append(found, o.(T))
	}
	return found
}

func (w *world) remove(r schema.GroupVersionResource, namespace, name string, policy metav1.DeletionPropagation) {
	w.Helper()
	if err := w.client.Delete(w.ctx, r, namespace, name, metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil {
		w.Fatalf("delete %s %s: %v", r.Resource, name, err)
	}
}

// events returns "reason: message" of those about objects of a name's prefix.
func (w *world) events(prefix string) (found []string) {
	w.Helper()
	for _, e := range all[*corev1.Event](w, events, "") {
		if strings.HasPrefix(e.InvolvedObject.Name, prefix) {
			found = append(found, e.Reason+": "+e.Message)
		}
	}
	return found
}

func template(app, image string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}},
	}
}

func replicaSet(name string, n int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template(name, "image:1")},
	}
}

func deployment(name string, n int32, edit ...func(*appsv1.Deployment)) *appsv1.Deployment {
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       appsv1.DeploymentSpec{Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template(name, "image:1")},
	}
	for _, f := range edit {
		f(d)
	}
	return d
}

func plainPod(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	t := template(name, "image:1")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: t.Labels}, Spec: t.Spec}
	for _, f := range edit {
		f(p)
	}
	return p
}
