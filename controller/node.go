package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// How long a host whose process is down, but which itself answers, is believed
// to run its pods: first its Node says that it is not ready, then its pods are
// replaced. Kubernetes' own figures: nothing is known to be wrong with them.
const (
	refusedGrace = 40 * time.Second
	refusedEvict = 5 * time.Minute
)

// lastReportAnnotation keeps, on a Node declared Unknown, the conditions that
// its agent reported last. An agent writes its status only when it changes, so
// a node that returns would otherwise stay Unknown.
const lastReportAnnotation = "conclave.io/last-reported-conditions"

// newNodes gives nodes their pod ranges, and says of each whether it is ready:
// in its conditions what Liveness knows and the agent can no longer tell, in
// its taints what follows for pods.
func newNodes(e *env) *Controller {
	c := &nodeController{env: e, refused: map[string]time.Time{}, noted: map[string]bool{}}
	return &Controller{
		Name:      "node",
		Workers:   1, // ranges are given one after the other; refused is its own
		Inputs:    []Input{{nodes, self}, {pods, c.keysOfPod}},
		Outputs:   []Output{{nodes, "spec.podCIDR"}, {nodes, "spec.taints of " + corev1.TaintNodeNotReady}, {nodes, "status.conditions when unreachable"}, {pods, "status.conditions[Ready] when unreachable"}},
		Reconcile: c.reconcile,
	}
}

type nodeController struct {
	*env
	// refused is since when a node's process is down, by name.
	refused map[string]time.Time
	// noted are the nodes whose present loss is in their annotation: until one
	// is judged alive, it is the same loss whatever its agent reports.
	noted map[string]bool
}

// keysOfPod looks at a node again when a pod on it is called ready while nobody
// can know.
func (c *nodeController) keysOfPod(change Change) []Key {
	if change.New == nil {
		return nil
	}
	pod := change.New.(*corev1.Pod)
	if pod.Spec.NodeName == "" || !podReady(pod) {
		return nil
	}
	node, ok := get[*corev1.Node](c.cache, nodes, "", pod.Spec.NodeName)
	if !ok || readyStatus(node) != corev1.ConditionUnknown {
		return nil
	}
	return []Key{keyOf(node)}
}

func readyCondition(node *corev1.Node) *corev1.NodeCondition {
	for i := range node.Status.Conditions {
		if node.Status.Conditions[i].Type == corev1.NodeReady {
			return &node.Status.Conditions[i]
		}
	}
	return nil
}

// readyStatus of a node that never reported is the empty string.
func readyStatus(node *corev1.Node) corev1.ConditionStatus {
	if c := readyCondition(node); c != nil {
		return c.Status
	}
	return ""
}

func (c *nodeController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	node, ok := get[*corev1.Node](c.cache, nodes, "", key.Name)
	if !ok {
		delete(c.refused, key.Name)
		delete(c.noted, key.Name)
		return 0, nil
	}
	if len(node.Spec.PodCIDRs) == 0 && c.PodCIDR.IsValid() {
		written, err := c.giveRange(ctx, node)
		if err != nil {
			return 0, err
		}
		c.events.record("node-controller", about(node), corev1.EventTypeNormal, "RegisteredNode", "Node %s event: Registered Node %s in Controller", node.Name, node.Name)
		node = written
	}
	v := c.judge(node)
	node, err := c.writeCoolDown(ctx, node, &v)
	if err == nil {
		node, err = c.writeConditions(ctx, node, v)
	}
	if err != nil {
		return 0, err
	}
	if err := c.writeTaints(ctx, node, v.evict); err != nil {
		return 0, err
	}
	if readyStatus(node) == corev1.ConditionUnknown && !cooling(node) {
		if err := c.markPods(ctx, node); err != nil {
			return 0, err
		}
	}
	return v.again, nil
}

// verdict is what a node's state comes to.
type verdict struct {
	unreachable bool          // its agent cannot be asked, or is not trusted yet
	evict       bool          // its pods shall go
	message     string        // of the Ready condition of an unreachable node
	again       time.Duration // when it may change by the passing of time alone
}

const stoppedPosting = "Kubelet stopped posting node status."

// judge says what to make of a node's state.
func (c *nodeController) judge(node *corev1.Node) verdict {
	lost := verdict{unreachable: true, evict: true, message: stoppedPosting}
	state := c.states.of(node)
	if state != Refused {
		delete(c.refused, node.Name)
	}
	switch state {
	case Dead:
		return lost
	case Refused:
		since, known := c.refused[node.Name]
		if !known {
			since = c.Now()
			c.refused[node.Name] = since
		}
		switch down := c.Now().Sub(since); {
		case down < refusedGrace:
			return verdict{again: refusedGrace - down}
		case down < refusedEvict:
			return verdict{unreachable: true, message: stoppedPosting, again: refusedEvict - down}
		default:
			return lost
		}
	case Suspect:
		// Doubt changes nothing that is written: neither for the worse, nor
		// for the better.
		if ready := readyCondition(node); ready != nil && ready.Status == corev1.ConditionUnknown {
			return verdict{unreachable: true, evict: !cooling(node), message: ready.Message}
		}
		return verdict{}
	default:
		return verdict{}
	}
}

// writeConditions writes what the agent cannot say of itself, and takes it
// back when the node returns.
func (c *nodeController) writeConditions(ctx context.Context, node *corev1.Node, v verdict) (*corev1.Node, error) {
	unreachable := v.unreachable
	was := readyCondition(node)
	changed := edit(node)
	now := metav1.NewTime(c.Now()).Rfc3339Copy()
	switch declared := was != nil && was.Status == corev1.ConditionUnknown && was.Reason == "NodeStatusUnknown"; {
	case unreachable && was == nil:
		changed.Status.Conditions = append(changed.Status.Conditions, corev1.NodeCondition{
			Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
			Message: "Kubelet never posted node status.", LastHeartbeatTime: now, LastTransitionTime: now,
		})
	case unreachable && was.Status != corev1.ConditionUnknown:
		report, err := json.Marshal(node.Status.Conditions)
		if err != nil {
			return nil, fmt.Errorf("note the conditions of node %s: %w", node.Name, err)
		}
		if changed.Annotations == nil {
			changed.Annotations = map[string]string{}
		}
		changed.Annotations[lastReportAnnotation] = string(report)
		if !cooling(node) {
			c.note(changed)
		}
		if node, err = c.writeNode(ctx, changed); err != nil {
			return nil, err
		}
		c.noted[node.Name] = c.noted[node.Name] || !cooling(node)
		changed = edit(node)
		for i := range changed.Status.Conditions {
			condition := &changed.Status.Conditions[i]
			if !slices.Contains(agentConditions, condition.Type) || condition.Status == corev1.ConditionUnknown {
				continue
			}
			condition.Status, condition.LastTransitionTime = corev1.ConditionUnknown, now
			condition.Reason, condition.Message = "NodeStatusUnknown", stoppedPosting
			if condition.Type == corev1.NodeReady {
				condition.Message = v.message
			}
		}
	case unreachable && declared && was.Message != v.message:
		readyCondition(changed).Message = v.message
	case !unreachable && declared && c.states.of(node) == Alive:
		var report []corev1.NodeCondition
		if err := json.Unmarshal([]byte(node.Annotations[lastReportAnnotation]), &report); err != nil {
			// Nothing noted: the agent has to report.
			return node, nil
		}
		for i := range changed.Status.Conditions {
			condition := &changed.Status.Conditions[i]
			for _, old := range report {
				if old.Type == condition.Type && condition.Reason == "NodeStatusUnknown" {
					old.LastTransitionTime = now
					*condition = old
				}
			}
		}
	}
	if equality.Semantic.DeepEqual(changed.Status.Conditions, node.Status.Conditions) {
		return node, c.forgetReport(ctx, &node)
	}
	written, err := c.writeNode(ctx, changed, "status")
	if err != nil {
		return nil, err
	}
	switch before, after := was != nil && was.Status == corev1.ConditionTrue, readyStatus(written) == corev1.ConditionTrue; {
	case before && !after:
		c.events.record("node-controller", about(node), corev1.EventTypeNormal, "NodeNotReady", "Node %s status is now: NodeNotReady", node.Name)
	case after && !before:
		c.events.record("node-controller", about(node), corev1.EventTypeNormal, "NodeReady", "Node %s status is now: NodeReady", node.Name)
	}
	return written, c.forgetReport(ctx, &written)
}

// agentConditions are those that only the node's own agent can know.
var agentConditions = []corev1.NodeConditionType{
	corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure,
}

// forgetReport drops the note once the node speaks for itself again.
func (c *nodeController) forgetReport(ctx context.Context, node **corev1.Node) error {
	ready := readyCondition(*node)
	if _, noted := (*node).Annotations[lastReportAnnotation]; !noted || ready == nil || ready.Reason == "NodeStatusUnknown" {
		return nil
	}
	changed := edit(*node)
	delete(changed.Annotations, lastReportAnnotation)
	written, err := c.writeNode(ctx, changed)
	if err != nil {
		return err
	}
	*node = written
	return nil
}

func (c *nodeController) writeNode(ctx context.Context, node *corev1.Node, subresource ...string) (*corev1.Node, error) {
	made, err := c.update(ctx, nodes, node, subresource...)
	if err != nil {
		return nil, err
	}
	written, ok := made.(*corev1.Node)
	if !ok {
		return nil, fmt.Errorf("update nodes %s: the answer is a %T", node.Name, made)
	}
	return written, nil
}

// lifecycleTaints are those that this controller alone sets and removes.
var lifecycleTaints = []string{
	corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable,
	corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
	corev1.TaintNodeNetworkUnavailable,
}

// taints that a node's state asks for. evict adds those that make pods go from
// an unreachable node.
func taints(node *corev1.Node, evict bool) []corev1.Taint {
	var found []corev1.Taint
	add := func(key string, effects ...corev1.TaintEffect) {
		for _, e := range effects {
			found = append(found, corev1.Taint{Key: key, Effect: e})
		}
	}
	for _, c := range node.Status.Conditions {
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse:
			add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown:
			add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule)
			if evict {
				add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
			}
		case c.Status != corev1.ConditionTrue:
		case c.Type == corev1.NodeMemoryPressure:
			add(corev1.TaintNodeMemoryPressure, corev1.TaintEffectNoSchedule)
		case c.Type == corev1.NodeDiskPressure:
			add(corev1.TaintNodeDiskPressure, corev1.TaintEffectNoSchedule)
		case c.Type == corev1.NodePIDPressure:
			add(corev1.TaintNodePIDPressure, corev1.TaintEffectNoSchedule)
		case c.Type == corev1.NodeNetworkUnavailable:
			add(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)
		}
	}
	if node.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	return found
}

func (c *nodeController) writeTaints(ctx context.Context, node *corev1.Node, evict bool) error {
	now := metav1.NewTime(c.Now()).Rfc3339Copy()
	var want []corev1.Taint
	asked := taints(node, evict)
	for _, t := range node.Spec.Taints {
		i := slices.IndexFunc(asked, func(a corev1.Taint) bool { return a.MatchTaint(&t) })
		switch {
		case i >= 0: // stays, with its time
			asked = slices.Delete(asked, i, i+1)
			want = append(want, t)
		case !slices.Contains(lifecycleTaints, t.Key):
			want = append(want, t)
		}
	}
	for _, t := range asked {
		t.TimeAdded = &now
		want = append(want, t)
	}
	if equality.Semantic.DeepEqual(want, node.Spec.Taints) {
		return nil
	}
	node = edit(node)
	node.Spec.Taints = want
	_, err := c.update(ctx, nodes, node)
	return err
}

// markPods takes the pods of a node that cannot be asked out of service. A node
// that reports that it is not ready reports on its pods too. One that returns
// has to report its pods again, as a kubelet does.
func (c *nodeController) markPods(ctx context.Context, node *corev1.Node) error {
	for _, pod := range indexed[*corev1.Pod](c.cache, pods, podsByNode, node.Name) {
		if !podReady(pod) {
			continue
		}
		pod = edit(pod)
		ready := podCondition(pod, corev1.PodReady)
		ready.Status, ready.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(c.Now()).Rfc3339Copy()
		if _, err := c.update(ctx, pods, pod, "status"); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		c.events.record("node-controller", about(pod), corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
	return nil
}

// nodeMask6 is the length of a node's range of IPv6 addresses.
const nodeMask6 = 64

// giveRange gives a node, of each family, the lowest range that no other has.
func (c *nodeController) giveRange(ctx context.Context, node *corev1.Node) (*corev1.Node, error) {
	taken := map[netip.Prefix]bool{}
	for _, other := range list[*corev1.Node](c.cache, nodes, "") {
		for _, s := range append(slices.Clone(other.Spec.PodCIDRs), other.Spec.PodCIDR) {
			if p, err := netip.ParsePrefix(s); err == nil {
				taken[p.Masked()] = true
			}
		}
	}
	all := mapKeys(taken)
	var given []string
	for _, of := range []struct {
		whole netip.Prefix
		bits  int
	}{{c.PodCIDR, c.NodeMask}, {c.PodCIDR6, nodeMask6}} {
		if !of.whole.IsValid() {
			continue
		}
		p, ok := freeRange(of.whole, of.bits, all)
		if !ok {
			c.events.record("cidrAllocator", about(node), corev1.EventTypeNormal, "CIDRNotAvailable", "Node %s status is now: CIDRNotAvailable", node.Name)
			return nil, fmt.Errorf("no pod range of /%d in %v is free for node %s", of.bits, of.whole, node.Name)
		}
		given = append(given, p.String())
	}
	node = edit(node)
	node.Spec.PodCIDR, node.Spec.PodCIDRs = given[0], given
	return c.writeNode(ctx, node)
}

func freeRange(whole netip.Prefix, bits int, taken []netip.Prefix) (netip.Prefix, bool) {
	for p := range ranges(whole, bits) {
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
