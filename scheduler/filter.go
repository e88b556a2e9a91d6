package scheduler

import (
	corev1 "k8s.io/api/core/v1"
)

// cycle is one decision: the state, the pod, and what the pod's wishes about
// other pods come to, worked out once for all nodes.
type cycle struct {
	s       *snapshot
	p       *podInfo
	suspect func(nodeName string) bool

	hard, soft []spreadCount
	affinity   affinityCount
	volumes    volumeCheck
	*scratch
}

// scratch is memory that one decision leaves to the next.
type scratch struct {
	filters       []*Filter // those that can refuse this pod a node
	candidates    []*nodeInfo
	total, values []int64
	zones         []int64
}

// Filter decides whether a pod can run on a node, and says why not in the
// words that users of Kubernetes know.
type Filter struct {
	Name string
	// Concerns says whether the filter can refuse this pod any node at all: it
	// is asked once per decision.
	Concerns func(c *cycle) bool
	// Check is asked for every node: it answers quickly and gives no reasons.
	Check func(c *cycle, n *nodeInfo) bool
	// Explain gives the reasons where Check said no.
	Explain func(c *cycle, n *nodeInfo) []string
}

func everyPod(*cycle) bool { return true }

func because(reason string) func(*cycle, *nodeInfo) []string {
	return func(*cycle, *nodeInfo) []string { return []string{reason} }
}

const suspected = "node(s) were suspected to be unreachable"

// filters in Kubernetes' order: the reason of the first that refuses is shown.
var filters = []Filter{
	{"NodeUnschedulable", everyPod, func(c *cycle, n *nodeInfo) bool {
		return !n.Spec.Unschedulable || c.p.tolerates(&unschedulableTaint)
	}, because("node(s) were unschedulable")},
	{"NodeName", func(c *cycle) bool { return c.p.Spec.NodeName != "" }, func(c *cycle, n *nodeInfo) bool {
		return c.p.Spec.NodeName == n.name
	}, because("node(s) didn't match the requested node name")},
	{"TaintToleration", everyPod, func(c *cycle, n *nodeInfo) bool {
		return len(n.hard) == 0 || n.unbearable(c.p) == nil
	}, func(c *cycle, n *nodeInfo) []string {
		t := n.unbearable(c.p)
		return []string{"node(s) had untolerated taint {" + t.Key + ": " + t.Value + "}"}
	}},
	{"NodeSuspected", everyPod, func(c *cycle, n *nodeInfo) bool { return !c.suspect(n.name) }, because(suspected)},
	{"NodeAffinity", func(c *cycle) bool { return c.p.required != nil }, func(c *cycle, n *nodeInfo) bool {
		ok, err := c.p.required.Match(n.Node)
		return ok && err == nil
	}, because("node(s) didn't match Pod's node affinity/selector")},
	{"NodePorts", func(c *cycle) bool { return len(c.p.ports) > 0 }, func(c *cycle, n *nodeInfo) bool {
		for _, p := range c.p.ports {
			if !n.freePort(p) {
				return false
			}
		}
		return true
	}, because("node(s) didn't have free ports for the requested pod ports")},
	{"NodeResourcesFit", everyPod, fits, lacks},
	volumeFilters[0],
	volumeFilters[1],
	volumeFilters[2],
	{"PodTopologySpread", func(c *cycle) bool { return len(c.hard) > 0 }, func(c *cycle, n *nodeInfo) bool {
		for i := range c.hard {
			if _, ok := n.domain(c.hard[i].key); !ok || !c.hard[i].fits(n) {
				return false
			}
		}
		return true
	}, func(c *cycle, n *nodeInfo) []string {
		for i := range c.hard {
			if _, ok := n.domain(c.hard[i].key); !ok {
				return []string{"node(s) didn't match pod topology spread constraints (missing required label)"}
			}
		}
		return []string{"node(s) didn't match pod topology spread constraints"}
	}},
	{"InterPodAffinity", func(c *cycle) bool { return c.p.affine() || len(c.affinity.forbidden) > 0 },
		func(c *cycle, n *nodeInfo) bool { return c.affinity.refusal(c, n) == "" },
		func(c *cycle, n *nodeInfo) []string { return []string{c.affinity.refusal(c, n)} }},
}

var unschedulableTaint = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

func fits(c *cycle, n *nodeInfo) bool {
	r := &c.p.requests
	taken, pods := n.taken(c.p)
	if pods >= n.maxPods ||
		r.cpu > 0 && r.cpu > n.allocatable.cpu-taken.cpu ||
		r.memory > 0 && r.memory > n.allocatable.memory-taken.memory ||
		r.storage > 0 && r.storage > n.allocatable.storage-taken.storage {
		return false
	}
	for name, v := range r.other {
		if v > 0 && v > n.allocatable.other[name]-taken.other[name] {
			return false
		}
	}
	return true
}

func lacks(c *cycle, n *nodeInfo) (reasons []string) {
	r := &c.p.requests
	taken, pods := n.taken(c.p)
	if pods >= n.maxPods {
		reasons = append(reasons, "Too many pods")
	}
	short := func(name corev1.ResourceName, want, have int64) {
		if want > 0 && want > have {
			reasons = append(reasons, "Insufficient "+string(name))
		}
	}
	short(corev1.ResourceCPU, r.cpu, n.allocatable.cpu-taken.cpu)
	short(corev1.ResourceMemory, r.memory, n.allocatable.memory-taken.memory)
	short(corev1.ResourceEphemeralStorage, r.storage, n.allocatable.storage-taken.storage)
	for name, v := range r.other {
		short(name, v, n.allocatable.other[name]-taken.other[name])
	}
	return reasons
}
