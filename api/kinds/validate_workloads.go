package kinds

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (e *problems) replicationController(p *field.Path, spec *corev1.ReplicationControllerSpec) {
	e.nonNegative(p.Child("minReadySeconds"), int64(spec.MinReadySeconds))
	if len(spec.Selector) == 0 {
		e.required(p.Child("selector"), "")
	}
	if spec.Replicas == nil {
		e.required(p.Child("replicas"), "")
	} else {
		e.nonNegative(p.Child("replicas"), int64(*spec.Replicas))
	}
	t, at := spec.Template, p.Child("template")
	if t == nil {
		e.required(at, "")
		return
	}
	if len(spec.Selector) > 0 && !labels.SelectorFromSet(spec.Selector).Matches(labels.Set(t.Labels)) {
		e.invalid(at.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`")
	}
	e.runsForever(at, "ReplicationController", t)
}

func validateReplicationControllerStatus(rc, old *corev1.ReplicationController) field.ErrorList {
	e := metadata(&rc.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	s := &rc.Status
	e.replicas(&appsv1.ReplicaSetStatus{
		Replicas: s.Replicas, FullyLabeledReplicas: s.FullyLabeledReplicas, ReadyReplicas: s.ReadyReplicas, AvailableReplicas: s.AvailableReplicas, ObservedGeneration: s.ObservedGeneration,
	})
	return e.list()
}

// Priorities.

const (
	// HighestUserPriority is the most that a class of a user's may have: what is
	// above is the system's.
	HighestUserPriority = 1000000000
	systemClassPrefix   = "system-"
)

// SystemPriorities are the classes that every cluster has.
var SystemPriorities = map[string]int32{
	"system-cluster-critical": 2000000000,
	"system-node-critical":    2000001000,
}

func validatePriorityClass(c *schedulingv1.PriorityClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	value, system := SystemPriorities[c.Name]
	switch {
	case system && (c.Value != value || c.GlobalDefault):
		e.forbidden(field.NewPath("metadata", "name"), "priority class names with '"+systemClassPrefix+"' prefix are reserved for system use only. error: value of "+c.Name+" PriorityClass must be "+fmt.Sprint(value))
	case !system && len(c.Name) >= len(systemClassPrefix) && c.Name[:len(systemClassPrefix)] == systemClassPrefix:
		e.forbidden(field.NewPath("metadata", "name"), "priority class names with '"+systemClassPrefix+"' prefix are reserved for system use only. error: "+c.Name+" is not a known system priority class")
	case !system && c.Value > HighestUserPriority:
		e.forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", HighestUserPriority))
	}
	if c.PreemptionPolicy != nil {
		oneOf(&e, field.NewPath("preemptionPolicy"), *c.PreemptionPolicy, corev1.PreemptLowerPriority, corev1.PreemptNever)
	}
	return e.list()
}

func validatePriorityClassUpdate(c, old *schedulingv1.PriorityClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	if c.Value != old.Value {
		e.forbidden(field.NewPath("value"), "may not be changed in an update.")
	}
	e.immutable(field.NewPath("preemptionPolicy"), c.PreemptionPolicy, old.PreemptionPolicy)
	return e.list()
}

func (e *problems) daemonSetSpec(p *field.Path, spec *appsv1.DaemonSetSpec) {
	e.selectsItself(p, "daemonset", spec.Selector, spec.Template.Labels)
	e.runsForever(p.Child("template"), "DaemonSet", &spec.Template)
	e.nonNegative(p.Child("minReadySeconds"), int64(spec.MinReadySeconds))
	e.mayCount(p.Child("revisionHistoryLimit"), spec.RevisionHistoryLimit)
	at, s := p.Child("updateStrategy"), &spec.UpdateStrategy
	switch s.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
	case appsv1.RollingUpdateDaemonSetStrategyType:
		at = at.Child("rollingUpdate")
		if s.RollingUpdate == nil {
			e.required(at, "")
			return
		}
		unavailable, surge := valueOr(s.RollingUpdate.MaxUnavailable), valueOr(s.RollingUpdate.MaxSurge)
		e.share(at.Child("maxUnavailable"), unavailable)
		e.share(at.Child("maxSurge"), surge)
		switch {
		case !isZero(unavailable) && !isZero(surge):
			e.invalid(at.Child("maxSurge"), surge, "may not be set when maxUnavailable is non-zero")
		case isZero(unavailable) && isZero(surge):
			e.required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0")
		}
	default:
		e.add(field.NotSupported(at, *s, []appsv1.DaemonSetUpdateStrategyType{appsv1.RollingUpdateDaemonSetStrategyType, appsv1.OnDeleteDaemonSetStrategyType}))
	}
}

func validateDaemonSetStatus(d, old *appsv1.DaemonSet) field.ErrorList {
	e := metadata(&d.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	s, p := &d.Status, field.NewPath("status")
	for name, n := range sorted(map[string]int32{
		"currentNumberScheduled": s.CurrentNumberScheduled, "numberMisscheduled": s.NumberMisscheduled, "desiredNumberScheduled": s.DesiredNumberScheduled,
		"numberReady": s.NumberReady, "updatedNumberScheduled": s.UpdatedNumberScheduled, "numberAvailable": s.NumberAvailable, "numberUnavailable": s.NumberUnavailable,
	}) {
		e.nonNegative(p.Child(name), int64(n))
	}
	e.nonNegative(p.Child("observedGeneration"), s.ObservedGeneration)
	return e.list()
}

func (e *problems) budgetSpec(p *field.Path, spec *policyv1.PodDisruptionBudgetSpec) {
	if spec.MinAvailable != nil && spec.MaxUnavailable != nil {
		e.invalid(p, *spec, "minAvailable and maxUnavailable cannot be both set")
	}
	if v := spec.MinAvailable; v != nil {
		e.share(p.Child("minAvailable"), *v)
	}
	if v := spec.MaxUnavailable; v != nil {
		e.share(p.Child("maxUnavailable"), *v)
	}
	labelSelector(e, p.Child("selector"), spec.Selector)
	if spec.UnhealthyPodEvictionPolicy != nil {
		oneOf(e, p.Child("unhealthyPodEvictionPolicy"), *spec.UnhealthyPodEvictionPolicy, policyv1.AlwaysAllow, policyv1.IfHealthyBudget)
	}
}

func validateBudgetStatus(b, old *policyv1.PodDisruptionBudget) field.ErrorList {
	e := metadata(&b.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.statusConditions(b.Status.Conditions)
	p := field.NewPath("status")
	for name, n := range sorted(map[string]int32{
		"disruptionsAllowed": b.Status.DisruptionsAllowed, "currentHealthy": b.Status.CurrentHealthy,
		"desiredHealthy": b.Status.DesiredHealthy, "expectedPods": b.Status.ExpectedPods,
	}) {
		e.nonNegative(p.Child(name), int64(n))
	}
	return e.list()
}
