package controller

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"conclave/api"
)

// A node that is lost again and again moves pods about each time, to nobody's
// good. So one that comes back for the third time within half an hour must first
// be alive for a while before it is given pods or traffic, for twice as long
// each time. A reboot or two are nothing unusual.
const (
	lossWindow   = 30 * time.Minute
	lossesFree   = 2
	coolDownMin  = 10 * time.Second
	coolDownMax  = 2 * time.Minute
	lossesToKeep = 8
)

// What the next leader must know too is in the Node: when it was lost of late,
// and until when it cools down.
const (
	lossesAnnotation   = "conclave.io/lost"
	coolDownAnnotation = "conclave.io/cooling-down-until"
)

// cooling says whether a node is alive and not trusted yet.
func cooling(node api.Object) bool { return node.GetAnnotations()[coolDownAnnotation] != "" }

// losses reads the times at which a node was lost; what is not one is not
// counted, nor is one that only a leader with a wrong clock can have written.
func losses(annotation string, now time.Time) (recent []time.Time) {
	for s := range strings.SplitSeq(annotation, ",") {
		if t, err := time.Parse(time.RFC3339, s); err == nil && now.Sub(t).Abs() < lossWindow {
			recent = append(recent, t)
		}
	}
	return recent[max(0, len(recent)-lossesToKeep):]
}

// noteLoss adds a loss to those of the annotation.
func noteLoss(annotation string, now time.Time) string {
	var all []string
	for _, t := range append(losses(annotation, now), now) {
		all = append(all, t.UTC().Format(time.RFC3339))
	}
	return strings.Join(all, ",")
}

// coolDown is how long a node that was lost that often of late must be alive.
func coolDown(losses int) time.Duration {
	if losses <= lossesFree {
		return 0
	}
	return min(coolDownMin<<(min(losses, lossesToKeep)-lossesFree-1), coolDownMax)
}

// note adds a loss to a node's annotation, once for each time that it is lost:
// noted is set when that is written.
func (c *nodeController) note(node *corev1.Node) {
	if c.noted[node.Name] {
		return
	}
	node.Annotations[lossesAnnotation] = noteLoss(node.Annotations[lossesAnnotation], c.Now())
}

// writeCoolDown begins or ends a node's cool-down, and changes the verdict on
// one that is alive and cools down.
func (c *nodeController) writeCoolDown(ctx context.Context, node *corev1.Node, v *verdict) (*corev1.Node, error) {
	state, now := c.states.of(node), c.Now()
	if state == Alive {
		delete(c.noted, node.Name)
	}
	until, begun := time.Time{}, false
	if cooling(node) {
		var err error
		until, err = time.Parse(time.RFC3339, node.Annotations[coolDownAnnotation])
		begun = err == nil
	}
	lost := len(losses(node.Annotations[lossesAnnotation], now))
	ready := readyCondition(node)
	declared := ready != nil && ready.Status == corev1.ConditionUnknown && ready.Reason == "NodeStatusUnknown"
	switch {
	case state == Suspect || state == Refused && !v.unreachable:
		return node, nil // in doubt, everything stays as it is
	case state == Alive && !begun && declared && coolDown(lost) > 0:
		until = now.Add(coolDown(lost)).Truncate(time.Second)
		c.events.record("node-controller", about(node), corev1.EventTypeWarning, "NodeCoolingDown", "Node %s was lost %d times in the last %s: it gets no pods and no traffic for %s", node.Name, lost, lossWindow, coolDown(lost))
	case state != Alive || !until.After(now) || until.Sub(now) > coolDownMax:
		until = time.Time{} // lost again, or cool, or said by a leader whose clock was wrong
	}
	if until.IsZero() == cooling(node) {
		changed := edit(node)
		delete(changed.Annotations, coolDownAnnotation)
		if !until.IsZero() {
			changed.Annotations[coolDownAnnotation] = until.UTC().Format(time.RFC3339)
		} else if state != Alive { // for its conditions it was never back
			c.note(changed)
		}
		written, err := c.writeNode(ctx, changed)
		if err != nil {
			return nil, err
		}
		node, c.noted[node.Name] = written, state != Alive
	}
	if !until.IsZero() {
		*v = verdict{
			unreachable: true, again: until.Sub(now),
			message: fmt.Sprintf("Node was lost %d times in the last %s: it gets no pods and no traffic until %s.", lost, lossWindow, until.UTC().Format(time.RFC3339)),
		}
	}
	return node, nil
}
