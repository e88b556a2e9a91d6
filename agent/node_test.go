package agent_test

import (
	"context"
	"errors"
	"net/netip"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/agent"
)

func (w *world) node() *corev1.Node {
	w.t.Helper()
	o, err := w.client.Get(context.Background(), nodesGVR, "", "n1", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return o.(*corev1.Node)
}

func ready(n *corev1.Node) corev1.NodeCondition {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c
		}
	}
	return corev1.NodeCondition{}
}

func TestNodeRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world) {
			w.network.Fail(errors.New("no pod range yet"))
			w.config.Labels = map[string]string{"disk": "ssd"}
		})
		synctest.Wait()
		n := w.node()
		if c := ready(n); c.Status != corev1.ConditionFalse || c.Reason != "KubeletNotReady" || c.Message != "container runtime network not ready: no pod range yet" {
			t.Errorf("not ready: %s", show(n.Status.Conditions))
		}
		if err := w.agent.Ready(); err == nil {
			t.Error("Ready says that it is")
		}
		w.network.Fail(nil)
		after(2 * time.Second)
		n = w.node()
		if c := ready(n); c.Status != corev1.ConditionTrue || c.Reason != "KubeletReady" || len(n.Status.Conditions) != 4 {
			t.Errorf("ready: %s", show(n.Status.Conditions))
		}
		if err := w.agent.Ready(); err != nil {
			t.Error(err)
		}
		for k, v := range map[string]string{"kubernetes.io/hostname": "n1", "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "z1", "disk": "ssd", "beta.kubernetes.io/os": "linux", "beta.kubernetes.io/arch": goruntime.GOARCH} {
			if n.Labels[k] != v {
				t.Errorf("label %s: %q", k, n.Labels[k])
			}
		}
		if n.Annotations["conclave.io/node-id"] != "0123" {
			t.Errorf("annotations: %q", n.Annotations)
		}
		if len(n.Status.Addresses) != 2 || n.Status.Addresses[0].Address != "192.0.2.7" || n.Status.NodeInfo.KubeletVersion != "v1.37.0" || len(n.Status.Images) != 1 {
			t.Errorf("status: %s", show(n.Status))
		}
		if a, c := n.Status.Allocatable, n.Status.Capacity; a.Pods().Value() != 110 || a.Cpu().Cmp(*c.Cpu()) != 0 || a.Memory().Cmp(*c.Memory()) >= 0 {
			t.Errorf("resources: %s", show(n.Status))
		}
		// Liveness is elsewhere: the object of a node that is well is not
		// written again.
		version := n.ResourceVersion
		after(24 * time.Hour)
		if now := w.node().ResourceVersion; now != version {
			t.Errorf("written while nothing happened: %s, then %s: %s", version, now, show(w.node().Status))
		}
	})
}

func TestNodeFollowsChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		addresses := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		changed := make(chan struct{}, 1)
		w := newWorld(t, func(w *world) {
			w.config.AddressesChanged = changed
			w.config.Addresses = func() []netip.Addr { mu.Lock(); defer mu.Unlock(); return addresses }
		})
		w.create(pod("a", func(p *corev1.Pod) { p.Spec.HostNetwork = true }))
		w.create(pod("pulls", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "new:1" }))
		after(time.Second)
		if p := w.get("a"); p.Status.PodIP != "192.0.2.7" || w.network.Attached() != 1 {
			t.Errorf("host network: %s", show(p.Status))
		}
		if n := w.node(); len(n.Status.Images) != 2 {
			t.Errorf("images: %s", show(n.Status.Images))
		}
		w.runtime.AddImage("imported:1", agent.Image{ID: "sha256:1", Size: 100})
		w.agent.ImagesChanged()
		after(time.Second)
		if n := w.node(); len(n.Status.Images) != 3 {
			t.Errorf("images after an import: %s", show(n.Status.Images))
		}
		mu.Lock()
		addresses = []netip.Addr{netip.MustParseAddr("192.0.2.99")}
		mu.Unlock()
		changed <- struct{}{}
		after(time.Second)
		if n := w.node(); n.Status.Addresses[0].Address != "192.0.2.99" {
			t.Errorf("addresses: %s", show(n.Status.Addresses))
		}
		if p := w.get("a"); p.Status.HostIP != "192.0.2.99" || p.Status.PodIP != "192.0.2.99" {
			t.Errorf("the pod's: %s", show(p.Status))
		}
	})
}

// What the node controller wrote while this node was thought dead is put right;
// conditions and resources of others stay.
func TestNodeComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		after(time.Second)
		patch := []byte(`{"status":{"capacity":{"example.com/gpu":"2"},"conditions":[{"type":"Ready","status":"Unknown","reason":"NodeStatusUnknown"},{"type":"Other","status":"True"}]}}`)
		if _, err := w.client.Patch(context.Background(), nodesGVR, "", "n1", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		n := w.node()
		if ready(n).Status != corev1.ConditionTrue || len(n.Status.Conditions) != 5 || n.Status.Capacity.Name("example.com/gpu", "").Value() != 2 {
			t.Errorf("%s", show(n.Status))
		}
	})
}

func TestNodeTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world) {
			w.put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{"conclave.io/node-id": "older", "keep": "me"}, Labels: map[string]string{"role": "db"}}})
		})
		after(time.Second)
		n := w.node()
		if n.Annotations["conclave.io/node-id"] != "0123" || n.Annotations["keep"] != "me" || n.Labels["role"] != "db" || ready(n).Status != corev1.ConditionTrue {
			t.Errorf("%s", show(n))
		}
	})
}

// A Node whose host has been started anew says so, once.
func TestNodeRebooted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		after(time.Second)
		if said := w.events("Rebooted"); len(said) != 0 {
			t.Errorf("of a new node: %q", said)
		}
		w.stop()
		patch := []byte(`{"status":{"nodeInfo":{"bootID":"another"}}}`)
		if _, err := w.client.Patch(context.Background(), nodesGVR, "", "n1", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		w.start()
		after(time.Second)
		if said := w.events("Rebooted"); len(said) != 1 || !strings.HasPrefix(said[0], "Node n1 has been rebooted, boot id: ") {
			t.Errorf("after a reboot: %q", said)
		}
	})
}

// A removed Node stays removed while this process runs: somebody meant it.
func TestNodeStaysRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		after(time.Second)
		if err := w.client.Delete(context.Background(), nodesGVR, "", "n1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		after(10 * time.Minute)
		list, _, err := w.client.List(context.Background(), nodesGVR, "", metav1.ListOptions{})
		if err != nil || len(list) != 0 {
			t.Errorf("%d nodes, %v", len(list), err)
		}
		w.restart()
		after(time.Second)
		if ready(w.node()).Status != corev1.ConditionTrue {
			t.Error("a restart does not bring it back")
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := agent.New(agent.Config{}); err == nil {
		t.Error("an empty configuration is accepted")
	}
}

// Events that repeat raise a count; an object that says too much is cut short.
func TestEventsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.Fail(errors.New("broken"))
		w.create(pod("a"))
		after(10 * time.Minute)
		list, _, err := w.client.List(context.Background(), eventsGVR, "default", metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, o := range list {
			if e := o.(*corev1.Event); e.Reason == "FailedCreatePodSandBox" {
				found++
				if e.Count < 5 || !e.LastTimestamp.After(e.FirstTimestamp.Time) || e.Source.Component != "kubelet" || e.Source.Host != "n1" || e.InvolvedObject.Name != "a" {
					t.Errorf("%s", show(e))
				}
			}
		}
		if found != 1 {
			t.Errorf("%d events for one thing", found)
		}
	})
}
