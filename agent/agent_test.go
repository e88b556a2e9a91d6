package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/agent"
	"conclave/agent/agenttest"
	"conclave/api"
	"conclave/api/apitest"
)

type gvr = schema.GroupVersionResource

var (
	podsGVR       = corev1.SchemeGroupVersion.WithResource("pods")
	nodesGVR      = corev1.SchemeGroupVersion.WithResource("nodes")
	eventsGVR     = corev1.SchemeGroupVersion.WithResource("events")
	servicesGVR   = corev1.SchemeGroupVersion.WithResource("services")
	configMapsGVR = corev1.SchemeGroupVersion.WithResource("configmaps")
	secretsGVR    = corev1.SchemeGroupVersion.WithResource("secrets")
)

// world is one node over a server in memory.
type world struct {
	t       *testing.T
	server  *api.Server
	client  api.Client
	runtime *agenttest.Runtime
	network *agenttest.Network
	config  agent.Config
	agent   *agent.Agent
	stop    func()
}

func newWorld(t *testing.T, edit ...func(*world)) *world {
	t.Helper()
	w := &world{t: t, server: apitest.NewServer(t), runtime: &agenttest.Runtime{}, network: &agenttest.Network{}}
	w.client = w.server.Local(apitest.Admin)
	w.runtime.AddImage("app:1", agent.Image{Size: 100})
	w.config = agent.Config{
		NodeName: "n1", NodeID: "0123", Client: w.client, Runtime: w.runtime, Network: w.network,
		Dir: t.TempDir(), Addresses: func() []netip.Addr { return []netip.Addr{netip.MustParseAddr("192.0.2.7")} },
		ClusterDNS: netip.MustParseAddr("10.96.0.10"), APIServer: netip.MustParseAddrPort("10.96.0.1:443"),
		Authorize: func(*http.Request) error { return nil },
		Version:   "v1.37.0", Zone: "z1",
		Readings: func() map[agent.Signal]agent.Reading { return nil }, // of the machine that tests
	}
	w.config.ImageGC.Disk = func() (int64, int64, error) { return 1000, 900, nil } // nor is its disk
	w.config.EvictionHard = must(agent.ParseThresholds(agent.DefaultThresholds))(t)
	if testing.Verbose() {
		w.config.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	for _, f := range edit {
		f(w)
	}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	w.t.Helper()
	a, err := agent.New(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	w.agent = a
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
}

func (w *world) restart() { w.stop(); w.start() }

func pod(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.PodSpec{
			NodeName: "n1", AutomountServiceAccountToken: new(false), TerminationGracePeriodSeconds: new(int64(30)),
			Containers: []corev1.Container{{Name: "web", Image: "app:1"}},
		},
	}
	for _, f := range edit {
		f(p)
	}
	return p
}

func (w *world) create(p *corev1.Pod) *corev1.Pod {
	w.t.Helper()
	if _, err := w.client.Get(context.Background(), corev1.SchemeGroupVersion.WithResource("serviceaccounts"), p.Namespace, "default", metav1.GetOptions{}); apierrors.IsNotFound(err) {
		w.put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: "default"}})
	}
	o, err := w.client.Create(context.Background(), podsGVR, p.Namespace, p.Name, p, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return o.(*corev1.Pod)
}

func (w *world) put(o api.Object) {
	w.t.Helper()
	if _, err := w.client.Create(context.Background(), api.GVROf(o), o.GetNamespace(), o.GetName(), o, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

// get is the pod in the API, nil if there is none.
func (w *world) get(name string) *corev1.Pod {
	w.t.Helper()
	o, err := w.client.Get(context.Background(), podsGVR, "default", name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return o.(*corev1.Pod)
}

func (w *world) delete(name string, grace int64) {
	w.t.Helper()
	if err := w.client.Delete(context.Background(), podsGVR, "default", name, metav1.DeleteOptions{GracePeriodSeconds: &grace}); err != nil {
		w.t.Fatal(err)
	}
}

// after lets time pass and everything come to rest.
func after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) events(reason string) (messages []string) {
	w.t.Helper()
	list, _, err := w.client.List(context.Background(), eventsGVR, "", metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, o := range list {
		if e := o.(*corev1.Event); e.Reason == reason {
			messages = append(messages, e.Message)
		}
	}
	return messages
}

func state(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range append(slices.Clone(p.Status.InitContainerStatuses), p.Status.ContainerStatuses...) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

func condition(p *corev1.Pod, t corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c.Status
		}
	}
	return ""
}

// conformance: [sig-node] Pods should get a host IP [Conformance] [NodeConformance]
func TestPodRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a"))
		synctest.Wait()
		p := w.get("a")
		s := state(p, "web")
		if p.Status.Phase != corev1.PodRunning || s.State.Running == nil || !s.Ready || s.RestartCount != 0 || !*s.Started {
			t.Fatalf("status: %s", show(p.Status))
		}
		if !regexp.MustCompile("^conclave://[0-9a-f]{64}$").MatchString(s.ContainerID) || s.ImageID == "" {
			t.Errorf("container: %s", show(s))
		}
		if p.Status.HostIP != "192.0.2.7" || p.Status.PodIP != "10.244.9.1" || len(p.Status.PodIPs) != 1 || p.Status.StartTime == nil {
			t.Errorf("addresses: %s", show(p.Status))
		}
		for _, c := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.PodReadyToStartContainers, corev1.ContainersReady, corev1.PodReady} {
			if condition(p, c) != corev1.ConditionTrue {
				t.Errorf("condition %s: %s", c, show(p.Status.Conditions))
			}
		}
		for _, reason := range []string{"Pulled", "Created", "Started"} {
			if len(w.events(reason)) != 1 {
				t.Errorf("%s events: %q", reason, w.events(reason))
			}
		}
		if p.Status.ObservedGeneration != p.Generation {
			t.Errorf("observed generation %d of %d", p.Status.ObservedGeneration, p.Generation)
		}
		// Nothing is written when nothing happens.
		before := w.get("a").ResourceVersion
		after(time.Hour)
		if now := w.get("a").ResourceVersion; now != before {
			t.Errorf("an idle pod was written: %s, then %s", before, now)
		}
	})
}

func show(v any) string {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}

// must is for what cannot fail in a test that is right.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// A node that has run no container has the folders of logs all the same: who
// gathers them may be the first, and mount them as folders that are there.
func TestFoldersOfLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, name := range []string{"pods", "containers"} {
			if info, err := os.Stat(filepath.Join(w.config.Dir, "log", name)); err != nil || !info.IsDir() {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
