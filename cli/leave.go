package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
	"conclave/gossip"
)

var (
	nodesResource = corev1.SchemeGroupVersion.WithResource("nodes")
	podsResource  = corev1.SchemeGroupVersion.WithResource("pods")
)

// leaveLimit is how long the whole of leave may take.
const leaveLimit = drainLimit + 2*time.Minute

// drainLimit is how long leave waits for the node's pods to end.
const drainLimit = 2 * time.Minute

// leave hands over what this node does for the cluster and takes it out of the
// cluster's records. What is on this machine is removed by forget, once
// everything has ended.
func (s *Server) leave(ctx context.Context, say func(format string, args ...any)) error {
	others := 0
	for _, m := range s.pool.Members() {
		if m.ID != s.node.ID() && m.State != gossip.Left {
			others++
		}
	}
	if others == 0 {
		say("this is the only node: the cluster ends with it")
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaveLimit)
	defer cancel()
	say("draining %s", s.node.Name())
	if err := s.askMaster(ctx, "/conclave/v1/drain", nil, nil); err != nil {
		return fmt.Errorf("drain this node: %w", err)
	}
	if err := s.waitDrained(ctx); err != nil {
		say("pods are left after %s: they are stopped", drainLimit)
	}
	s.stopAgent()
	if m := s.master.Load(); m != nil {
		say("handing the master's part over")
		if err := s.abdicate(ctx, m); err != nil {
			return err
		}
	}
	say("leaving the cluster")
	if err := s.askMaster(ctx, "/conclave/v1/leave", nil, nil); err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	return s.pool.Leave(ctx)
}

// abdicate takes this node out of the masters and returns when its own master
// has ended: the leader retires it once another node has taken its place.
func (s *Server) abdicate(ctx context.Context, m *master) error {
	removing, cancel := context.WithCancel(ctx)
	defer cancel()
	removed := make(chan error, 1)
	go func() { removed <- m.consensus.Remove(removing, s.node.ID()) }()
	for {
		select {
		case <-m.ended:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("no other node took this master's part: %w", ctx.Err())
		case err := <-removed:
			if err != nil {
				return err
			}
			removed = nil // out of the configuration: the master ends in a moment
		}
	}
}

// waitDrained returns when no pod of this node is left that could go elsewhere.
func (s *Server) waitDrained(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainLimit)
	defer cancel()
	h := &untilHandler[*corev1.Pod]{done: cancel, objects: map[types.UID]*corev1.Pod{}, reached: func(pods map[types.UID]*corev1.Pod) bool {
		for _, pod := range pods {
			if !api.IsMirror(pod) { // what it shows ends with this node
				return false
			}
		}
		return true
	}}
	_ = api.Follow(ctx, s.client, podsResource, "", metav1.ListOptions{FieldSelector: "spec.nodeName=" + s.node.Name()}, h)
	if !h.met {
		return ctx.Err()
	}
	return nil
}

// untilHandler follows objects until a condition holds, and calls done then.
type untilHandler[T api.Object] struct {
	objects map[types.UID]T
	reached func(map[types.UID]T) bool
	done    func()
	met     bool
}

func (h *untilHandler[T]) Replace(objects []api.Object) {
	clear(h.objects)
	for _, o := range objects {
		if t, ok := o.(T); ok {
			h.objects[t.GetUID()] = t
		}
	}
	h.check()
}

func (h *untilHandler[T]) Apply(event watch.EventType, object api.Object) {
	t, ok := object.(T)
	if !ok {
		return
	}
	if event == watch.Deleted {
		delete(h.objects, t.GetUID())
	} else {
		h.objects[t.GetUID()] = t
	}
	h.check()
}

func (h *untilHandler[T]) check() {
	if !h.met && h.reached(h.objects) {
		h.met = true
		h.done()
	}
}

// serveDrain marks the caller unschedulable and evicts its pods.
func (s *Server) serveDrain(m *master, id string, w http.ResponseWriter, r *http.Request) {
	member, ok := s.pool.Member(id)
	if !ok {
		http.Error(w, "gossip does not know this node", http.StatusNotFound)
		return
	}
	if err := m.drain(r.Context(), member.Name); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

func (m *master) drain(ctx context.Context, node string) error {
	client := m.api.Local(api.User{Name: "system:conclave", Groups: []string{"system:masters", "system:authenticated"}})
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"unschedulable": true}})
	if err != nil {
		return err
	}
	if _, err := client.Patch(ctx, nodesResource, "", node, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return err
	}
	pods, err := api.ListAs[*corev1.Pod](ctx, client, "", metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return err
	}
	for _, p := range pods {
		if api.IsMirror(p) {
			continue
		}
		eviction := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace}}
		_, err := client.Create(ctx, podsResource, p.Namespace, p.Name, eviction, metav1.CreateOptions{}, "eviction")
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("evict pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	return nil
}

// forget removes what this node made on its machine. Everything has ended.
func (s *Server) forget() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var failed error
	for _, pod := range s.engine.Pods() {
		failed = errors.Join(failed, s.engine.StopPod(ctx, pod), s.net.Detach(ctx, pod))
	}
	failed = errors.Join(failed, s.net.Teardown(ctx), s.engine.Teardown(ctx))
	// What drivers have mounted is below: it must be out of sight before anything
	// is removed.
	if err := unix.Unmount(s.path("kubelet"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		failed = errors.Join(failed, fmt.Errorf("unmount %s: %w", s.path("kubelet"), err))
	}
	if err := unix.Unmount(s.path("run"), unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		failed = errors.Join(failed, fmt.Errorf("unmount %s: %w", s.path("run"), err))
	}
	if failed != nil {
		return failed // what is left is named, and the folder still says what to remove
	}
	entries, err := os.ReadDir(s.config.DataDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		failed = errors.Join(failed, os.RemoveAll(filepath.Join(s.config.DataDir, e.Name())))
	}
	return failed
}

// tellReady says when this node runs pods, and how others come to it.
func (s *Server) tellReady(ctx context.Context, founded bool) error {
	following, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &untilHandler[*corev1.Node]{done: cancel, objects: map[types.UID]*corev1.Node{}, reached: func(nodes map[types.UID]*corev1.Node) bool {
		for _, n := range nodes {
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue && n.Annotations["conclave.io/node-id"] == s.node.ID() {
					return true
				}
			}
		}
		return false
	}}
	_ = api.Follow(following, s.client, nodesResource, "", metav1.ListOptions{FieldSelector: "metadata.name=" + s.node.Name()}, h)
	if !h.met {
		return nil
	}
	s.readyAfter.Store(int64(time.Since(s.start)))
	s.config.Tell("node %s is ready after %.2f s", s.node.Name(), time.Since(s.start).Seconds())
	if c, err := s.credentials(ctx); err == nil && founded {
		s.config.Tell("")
		s.config.Tell("to join another machine:  conclave join %s", c.Token)
		s.config.Tell("to use kubectl:           conclave kubeconfig > ~/.kube/config")
	}
	return nil
}
