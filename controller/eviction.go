package controller

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"

	"conclave/api"
)

// newTaintEviction deletes the pods that do not tolerate a NoExecute taint of
// their node, or no longer do.
func newTaintEviction(e *env) *Controller {
	c := &evictionController{env: e, since: map[Key]time.Time{}, told: map[Key]types.UID{}}
	return &Controller{
		Name:      "taint-eviction",
		Workers:   8,
		Inputs:    []Input{{pods, c.keysOfPod}, {nodes, podsOfNode(e)}},
		Outputs:   []Output{{pods, "deletions for NoExecute taints"}},
		Reconcile: c.reconcile,
	}
}

type evictionController struct {
	*env
	mu sync.Mutex
	// told are the pods of which an event said that they cannot be moved.
	told map[Key]types.UID
	// since is when a pod was found to tolerate its node only for a while, for
	// taints that do not say when they were added.
	since map[Key]time.Time
}

func (c *evictionController) keysOfPod(change Change) []Key {
	if change.Old != nil && change.New != nil {
		a, b := change.Old.(*corev1.Pod), change.New.(*corev1.Pod)
		if a.Spec.NodeName == b.Spec.NodeName && equality.Semantic.DeepEqual(a.Spec.Tolerations, b.Spec.Tolerations) {
			return nil
		}
	}
	if change.either().(*corev1.Pod).Spec.NodeName == "" {
		return nil
	}
	return self(change)
}

// podsOfNode maps a node to its pods when its taints changed, when it came or
// went, and when its liveness did (a change that changes nothing).
func podsOfNode(e *env) func(Change) []Key {
	return func(c Change) []Key {
		if c.Old != nil && c.New != nil && c.Old != c.New &&
			equality.Semantic.DeepEqual(c.Old.(*corev1.Node).Spec.Taints, c.New.(*corev1.Node).Spec.Taints) {
			return nil
		}
		var keys []Key
		for _, pod := range indexed[*corev1.Pod](e.cache, pods, podsByNode, c.either().GetName()) {
			keys = append(keys, keyOf(pod))
		}
		return keys
	}
}

func (c *evictionController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	pod, ok := get[*corev1.Pod](c.cache, pods, key.Namespace, key.Name)
	if !ok || pod.DeletionTimestamp != nil || pod.Spec.NodeName == "" {
		c.forget(key)
		c.mu.Lock()
		delete(c.told, key)
		c.mu.Unlock()
		return 0, nil
	}
	node, ok := get[*corev1.Node](c.cache, nodes, "", pod.Spec.NodeName)
	if !ok {
		return 0, nil // the pod collector's
	}
	left, evict := c.tolerated(key, pod, node)
	switch {
	case !evict:
		if c.forget(key) {
			c.events.record("taint-eviction-controller", about(pod), corev1.EventTypeNormal, "TaintManagerEviction", "Cancelling deletion of Pod %s/%s", pod.Namespace, pod.Name)
		}
		return 0, nil
	case left > 0:
		return left, nil
	}
	if volume := c.tiedBy(pod, node); volume != "" {
		c.tellTied(key, pod, node, volume)
		return 0, nil
	}
	wait, force := c.mayForce(pod, node)
	if wait > 0 {
		return wait, nil
	}
	c.events.record("taint-eviction-controller", about(pod), corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod %s/%s", pod.Namespace, pod.Name)
	options := metav1.DeleteOptions{}
	if force {
		options.GracePeriodSeconds = new(int64) // nobody is there to end it gracefully
		if c.fenced(pod) {
			c.events.record("taint-eviction-controller", about(pod), corev1.EventTypeNormal, "Fenced", "Node %s lost the masters and has killed this pod: it may be replaced", node.Name)
		}
	}
	pod, err := markDisrupted(ctx, c.env, pod, pod.Status.Phase, "DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint")
	if err != nil || pod == nil {
		return 0, err
	}
	if err := c.deleteAsSeen(ctx, pod, options); err != nil {
		return 0, err
	}
	c.forget(key)
	return 0, nil
}

// tiedBy is the name of a volume that keeps a pod on a node that is lost: it can
// be reached from no other. Another pod in its place would only wait there.
func (c *evictionController) tiedBy(pod *corev1.Pod, node *corev1.Node) string {
	unreachable := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeUnreachable })
	if !unreachable && !c.states.of(node).lost() {
		return "" // somebody wants the pod off a node that is there
	}
	for _, name := range api.ClaimNames(pod) {
		claim, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, pod.Namespace, name)
		if !ok {
			continue
		}
		volume, ok := get[*corev1.PersistentVolume](c.cache, volumes, "", claim.Spec.VolumeName)
		if ok && c.onlyOn(volume, node) {
			return volume.Name
		}
	}
	return ""
}

// onlyOn says that of all nodes only this one reaches a volume.
func (c *evictionController) onlyOn(volume *corev1.PersistentVolume, node *corev1.Node) bool {
	if volume.Spec.NodeAffinity == nil || volume.Spec.NodeAffinity.Required == nil {
		return false
	}
	reaches, err := nodeaffinity.NewNodeSelector(volume.Spec.NodeAffinity.Required)
	if err != nil || !reaches.Match(node) {
		return false
	}
	for _, other := range list[*corev1.Node](c.cache, nodes, "") {
		if other.Name != node.Name && reaches.Match(other) {
			return false
		}
	}
	return true
}

func (c *evictionController) tellTied(key Key, pod *corev1.Pod, node *corev1.Node, volume string) {
	c.mu.Lock()
	known := c.told[key] == pod.UID
	c.told[key] = pod.UID
	c.mu.Unlock()
	if !known {
		c.events.record("taint-eviction-controller", about(pod), corev1.EventTypeWarning, "VolumeOnLostNode",
			"Volume %s lies on node %s, which is lost, and can be reached from no other: the pod is not moved and runs again when the node is back", volume, node.Name)
	}
}

// mayForce says whether a pod may be deleted without its agent's help, or how
// long to wait before anything is decided. An ordinary pod may go when its node
// is dead. A fenced one may when its node has surely killed it: then nothing is
// gained by waiting on a host that merely lacks our process, and everything is
// lost by not waiting on a dead one.
func (e *env) mayForce(pod *corev1.Pod, node *corev1.Node) (wait time.Duration, force bool) {
	state := e.states.of(node)
	if !e.fenced(pod) || !state.lost() {
		return 0, state == Dead
	}
	if left := e.states.fenceLeft(node); left > 0 {
		return left, false
	}
	return 0, true
}

// deleteAsSeen deletes a pod if it is still as it was when it was judged: its
// node, should it be back, writes about a fenced pod before it starts it.
func (e *env) deleteAsSeen(ctx context.Context, pod *corev1.Pod, options metav1.DeleteOptions) error {
	if e.fenced(pod) {
		options.Preconditions = &metav1.Preconditions{ResourceVersion: &pod.ResourceVersion}
	}
	return e.delete(ctx, pods, pod, options)
}

// tolerated says whether a pod must go, and how much time it has left.
func (c *evictionController) tolerated(key Key, pod *corev1.Pod, node *corev1.Node) (left time.Duration, evict bool) {
	now := c.Now()
	lost := c.states.of(node).lost()
	for _, taint := range node.Spec.Taints {
		switch {
		case taint.Key != corev1.TaintNodeUnreachable:
		case !lost:
			continue // it is back, and the taint about to be taken away
		case c.fenced(pod):
			// Whoever cannot reach the masters has killed it: unlike an ordinary
			// pod it does not run on while its host merely lacks our process.
			taint.Effect = corev1.TaintEffectNoExecute
		}
		if taint.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		seconds, forever := toleration(pod.Spec.Tolerations, &taint)
		if forever {
			continue
		}
		if seconds <= 0 {
			return 0, true
		}
		start := c.noticed(key, now)
		if taint.TimeAdded != nil && taint.TimeAdded.Before(&metav1.Time{Time: start}) {
			start = taint.TimeAdded.Time
			if s := podCondition(pod, corev1.PodScheduled); s != nil && s.LastTransitionTime.After(start) {
				start = s.LastTransitionTime.Time
			}
		}
		until := start.Add(time.Duration(seconds) * time.Second).Sub(now)
		if until <= 0 {
			return 0, true
		}
		if !evict || until < left {
			left, evict = until, true
		}
	}
	return left, evict
}

// toleration returns for how many seconds a taint is tolerated: the least that
// any matching toleration names, 0 if none matches.
func toleration(all []corev1.Toleration, taint *corev1.Taint) (seconds int64, forever bool) {
	matched := false
	for _, t := range all {
		if !t.ToleratesTaint(klog.Background(), taint, true) {
			continue
		}
		switch {
		case t.TolerationSeconds == nil && !matched:
			matched, forever = true, true
		case t.TolerationSeconds == nil:
		case !matched || forever || *t.TolerationSeconds < seconds:
			matched, forever, seconds = true, false, *t.TolerationSeconds
		}
	}
	return seconds, forever
}

func (c *evictionController) noticed(key Key, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.since[key]; !ok {
		c.since[key] = now
	}
	return c.since[key]
}

func (c *evictionController) forget(key Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.since[key]
	delete(c.since, key)
	return ok
}

// markDisrupted writes down why a pod is about to be deleted. nil says that it
// is gone already.
func markDisrupted(ctx context.Context, e *env, pod *corev1.Pod, phase corev1.PodPhase, reason, message string) (*corev1.Pod, error) {
	changed := edit(pod)
	changed.Status.Phase = phase
	if podCondition(changed, corev1.DisruptionTarget) == nil {
		changed.Status.Conditions = append(changed.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: reason, Message: message,
			LastTransitionTime: metav1.NewTime(e.Now()).Rfc3339Copy(),
		})
	}
	if equality.Semantic.DeepEqual(changed.Status, pod.Status) {
		return pod, nil
	}
	made, err := e.update(ctx, pods, changed, "status")
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return made.(*corev1.Pod), nil
}

// orphanGrace is how long a pod that must not run twice is left alone after
// its Node object was deleted: the node may yet live and register again.
const orphanGrace = 40 * time.Second

// newPodGC deletes for good the pods that no agent will ever finish: of nodes
// that are dead or deleted, and those deleted before they had a node.
func newPodGC(e *env) *Controller {
	c := &podGC{env: e, since: map[Key]time.Time{}}
	return &Controller{
		Name:      "pod-gc",
		Workers:   4,
		Inputs:    []Input{{pods, c.keysOfPod}, {nodes, podsOfNode(e)}},
		Outputs:   []Output{{pods, "deletions for want of an agent"}},
		Reconcile: c.reconcile,
	}
}

type podGC struct {
	*env
	mu    sync.Mutex
	since map[Key]time.Time // when its node was first found missing
}

func (c *podGC) keysOfPod(change Change) []Key {
	if change.New == nil {
		return self(change) // to forget it
	}
	pod := change.New.(*corev1.Pod)
	_, known := get[*corev1.Node](c.cache, nodes, "", pod.Spec.NodeName)
	if pod.DeletionTimestamp != nil || pod.Spec.NodeName != "" && !known {
		return self(change)
	}
	return nil
}

func (c *podGC) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	pod, ok := get[*corev1.Pod](c.cache, pods, key.Namespace, key.Name)
	if !ok {
		c.after(key, false)
		return 0, nil
	}
	if pod.Spec.NodeName == "" {
		if pod.DeletionTimestamp == nil {
			return 0, nil
		}
		return 0, c.finish(ctx, pod)
	}
	if node, ok := get[*corev1.Node](c.cache, nodes, "", pod.Spec.NodeName); ok {
		c.after(key, false)
		if pod.DeletionTimestamp == nil {
			return 0, nil
		}
		wait, force := c.mayForce(pod, node)
		if force {
			return 0, c.finish(ctx, pod)
		}
		return wait, nil
	}
	// The cache may be behind with nodes while it is not with pods.
	if node, err := c.peek(ctx, nodes, "", pod.Spec.NodeName); node != nil || err != nil {
		return time.Second, err
	}
	if c.fenced(pod) {
		// Its agent may be there and renew its lease all the same.
		if left := max(orphanGrace-c.after(key, true), c.states.liveness.FenceLeft(pod.Spec.NodeName, "")); left > 0 {
			return left, nil
		}
	}
	phase := pod.Status.Phase
	if !podFinished(pod) && !c.fenced(pod) { // what its node may run again has not failed before it is gone
		phase = corev1.PodFailed
	}
	pod, err := markDisrupted(ctx, c.env, pod, phase, "DeletionByPodGC", "PodGC: node no longer exists")
	if err != nil || pod == nil {
		return 0, err
	}
	return 0, c.finish(ctx, pod)
}

func (c *podGC) finish(ctx context.Context, pod *corev1.Pod) error {
	return c.deleteAsSeen(ctx, pod, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
}

// after is since when a pod's node is missing; it forgets if it is not.
func (c *podGC) after(key Key, missing bool) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !missing {
		delete(c.since, key)
		return 0
	}
	if _, ok := c.since[key]; !ok {
		c.since[key] = c.Now()
	}
	return c.Now().Sub(c.since[key])
}

// fenced is api.Fenced.
func (e *env) fenced(pod *corev1.Pod) bool {
	return api.Fenced(pod, func(name string) *corev1.PersistentVolumeClaim {
		claim, _ := get[*corev1.PersistentVolumeClaim](e.cache, claims, pod.Namespace, name)
		return claim
	})
}
