package api

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/kinds"
)

// systemClasses are the priority classes that every cluster has.
func systemClasses() (all []Object) {
	for _, c := range []struct{ name, description string }{
		{"system-node-critical", "Used for system critical pods that must not be moved from their current node."},
		{"system-cluster-critical", "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."},
	} {
		all = append(all, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: c.name}, Value: kinds.SystemPriorities[c.name], Description: c.description})
	}
	return all
}

// priorityClass is the class of that name; nil if there is none. Without a
// name it is the default one, if any: of several, which only a race can make,
// the lowest.
func (s *Server) priorityClass(name string) *schedulingv1.PriorityClass {
	if name != "" {
		if rec := s.cfg.Storage.Get(priorityClasses.GroupResource().String(), "", name); rec != nil {
			class, _ := rec.Object().(*schedulingv1.PriorityClass)
			return class
		}
		// Those of the system exist before they are objects.
		if value, ok := kinds.SystemPriorities[name]; ok {
			return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
		}
		return nil
	}
	var chosen *schedulingv1.PriorityClass
	records, _ := s.cfg.Storage.List(priorityClasses.GroupResource().String(), "")
	for _, rec := range records {
		if class, ok := rec.Object().(*schedulingv1.PriorityClass); ok && class.GlobalDefault && (chosen == nil || class.Value < chosen.Value) {
			chosen = class
		}
	}
	return chosen
}

// admitPriority gives a new pod the priority of its class.
func admitPriority(c *call, pod *corev1.Pod) error {
	class := c.s.priorityClass(pod.Spec.PriorityClassName)
	value, policy := int32(0), corev1.PreemptLowerPriority
	switch {
	case class != nil:
		value = class.Value
		pod.Spec.PriorityClassName = class.Name
		if class.PreemptionPolicy != nil {
			policy = *class.PreemptionPolicy
		}
	case pod.Spec.PriorityClassName != "":
		return forbiddenObject(c.res.gr(), pod.Name, "no PriorityClass with name "+pod.Spec.PriorityClassName+" was found")
	}
	if p := pod.Spec.Priority; p != nil && *p != value {
		return forbiddenObject(c.res.gr(), pod.Name, fmt.Sprintf(
			"the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p, value))
	}
	if p := pod.Spec.PreemptionPolicy; p != nil && *p != policy {
		return forbiddenObject(c.res.gr(), pod.Name, fmt.Sprintf(
			"the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p, policy))
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}

// keepPriority lets a writer who does not speak of them leave a pod's priority
// and policy as they are.
func keepPriority(pod, was *corev1.Pod) {
	if pod.Spec.Priority == nil {
		pod.Spec.Priority = was.Spec.Priority
	}
	if pod.Spec.PreemptionPolicy == nil {
		pod.Spec.PreemptionPolicy = was.Spec.PreemptionPolicy
	}
}

// admitPriorityClass lets there be one default.
func admitPriorityClass(_ context.Context, c *call, obj, _ Object) error {
	class, ok := obj.(*schedulingv1.PriorityClass)
	if !ok || !class.GlobalDefault {
		return nil
	}
	if other := c.s.priorityClass(""); other != nil && other.Name != class.Name {
		return forbiddenObject(c.res.gr(), class.Name, fmt.Sprintf("PriorityClass %v is already marked as default. Only one default can exist", other.Name))
	}
	return nil
}

// mayRemoveClass keeps the system's classes.
func mayRemoveClass(c *call, old Object) error {
	if _, system := kinds.SystemPriorities[old.GetName()]; system {
		return forbiddenObject(c.res.gr(), old.GetName(), "this is a system priority class and cannot be deleted")
	}
	return nil
}
