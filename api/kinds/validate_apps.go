package kinds

import (
	"math"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// judge is of kinds whose spec is judged alike when it is made and when it is
// changed. What selects their pods, if there is a function that says so, stays
// as it was made.
type judge[T metav1.ObjectMetaAccessor] struct {
	spec     func(e *problems, o T)
	selector func(o T) *metav1.LabelSelector
}

func (j judge[T]) create(o T) field.ErrorList {
	e := metadata(o.GetObjectMeta().(*metav1.ObjectMeta), nil, true, apivalidation.NameIsDNSSubdomain)
	j.spec(&e, o)
	return e.list()
}

func (j judge[T]) update(o, old T) field.ErrorList {
	e := metadata(o.GetObjectMeta().(*metav1.ObjectMeta), old.GetObjectMeta().(*metav1.ObjectMeta), true, apivalidation.NameIsDNSSubdomain)
	j.spec(&e, o)
	if j.selector != nil {
		e.immutable(specPath.Child("selector"), j.selector(o), j.selector(old))
	}
	return e.list()
}

var (
	judgeDeployment = judge[*appsv1.Deployment]{
		func(e *problems, d *appsv1.Deployment) { e.deploymentSpec(specPath, &d.Spec) }, func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector },
	}
	judgeReplicaSet = judge[*appsv1.ReplicaSet]{
		func(e *problems, rs *appsv1.ReplicaSet) { e.replicaSetSpec(specPath, &rs.Spec) }, func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector },
	}
	judgeDaemonSet = judge[*appsv1.DaemonSet]{
		func(e *problems, d *appsv1.DaemonSet) { e.daemonSetSpec(specPath, &d.Spec) }, func(d *appsv1.DaemonSet) *metav1.LabelSelector { return d.Spec.Selector },
	}
	judgeReplicationController = judge[*corev1.ReplicationController]{
		spec: func(e *problems, rc *corev1.ReplicationController) { e.replicationController(specPath, &rc.Spec) },
	}
	judgeBudget = judge[*policyv1.PodDisruptionBudget]{
		spec: func(e *problems, b *policyv1.PodDisruptionBudget) { e.budgetSpec(specPath, &b.Spec) },
	}
)

// selectsItself refuses a selector that is malformed, that selects everything,
// or that does not select the pods of its own template.
func (e *problems) selectsItself(p *field.Path, kind string, selector *metav1.LabelSelector, of map[string]string) {
	at := p.Child("selector")
	if selector == nil {
		e.required(at, "")
		return
	}
	before := len(*e)
	labelSelector(e, at, selector)
	if len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
		e.invalid(at, selector, "empty selector is invalid for "+kind)
		return
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		if len(*e) == before {
			e.invalid(at, selector, "invalid label selector")
		}
		return
	}
	if !s.Matches(labels.Set(of)) {
		e.invalid(p.Child("template", "metadata", "labels"), of, "`selector` does not match template `labels`")
	}
}

// runsForever is of the template of a controller that replaces what ends.
func (e *problems) runsForever(p *field.Path, kind string, t *corev1.PodTemplateSpec) {
	e.podTemplate(p, t)
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		e.add(field.NotSupported(p.Child("spec", "restartPolicy"), t.Spec.RestartPolicy, []corev1.RestartPolicy{corev1.RestartPolicyAlways}))
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		e.forbidden(p.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported")
	}
}

func (e *problems) deploymentSpec(p *field.Path, spec *appsv1.DeploymentSpec) {
	e.mayCount(p.Child("replicas"), spec.Replicas)
	e.selectsItself(p, "deployment", spec.Selector, spec.Template.Labels)
	e.runsForever(p.Child("template"), "ReplicaSet", &spec.Template)
	e.strategy(p.Child("strategy"), &spec.Strategy)
	e.nonNegative(p.Child("minReadySeconds"), int64(spec.MinReadySeconds))
	e.mayCount(p.Child("revisionHistoryLimit"), spec.RevisionHistoryLimit)
	if spec.ProgressDeadlineSeconds != nil {
		at := p.Child("progressDeadlineSeconds")
		e.nonNegative(at, int64(*spec.ProgressDeadlineSeconds))
		if *spec.ProgressDeadlineSeconds <= spec.MinReadySeconds {
			e.invalid(at, *spec.ProgressDeadlineSeconds, "must be greater than minReadySeconds")
		}
	}
}

func (e *problems) strategy(p *field.Path, s *appsv1.DeploymentStrategy) {
	switch s.Type {
	case appsv1.RecreateDeploymentStrategyType:
		if s.RollingUpdate != nil {
			e.forbidden(p.Child("rollingUpdate"), "may not be specified when strategy `type` is '"+string(appsv1.RecreateDeploymentStrategyType)+"'")
		}
	case appsv1.RollingUpdateDeploymentStrategyType:
		if s.RollingUpdate == nil {
			e.required(p.Child("rollingUpdate"), "this should be defaulted and never be nil")
			return
		}
		at := p.Child("rollingUpdate")
		unavailable, surge := valueOr(s.RollingUpdate.MaxUnavailable), valueOr(s.RollingUpdate.MaxSurge)
		e.countOrPercent(at.Child("maxUnavailable"), unavailable)
		e.countOrPercent(at.Child("maxSurge"), surge)
		if isZero(unavailable) && isZero(surge) {
			e.invalid(at.Child("maxUnavailable"), unavailable, "may not be 0 when `maxSurge` is 0")
		}
		e.notMoreThanAll(at.Child("maxUnavailable"), unavailable)
	default:
		e.add(field.NotSupported(p, *s, []appsv1.DeploymentStrategyType{appsv1.RecreateDeploymentStrategyType, appsv1.RollingUpdateDeploymentStrategyType}))
	}
}

func valueOr(v *intstr.IntOrString) intstr.IntOrString {
	if v == nil {
		return intstr.IntOrString{}
	}
	return *v
}

// percent is the number before the sign, of a string that is well formed.
func percent(v intstr.IntOrString) (int, bool) {
	if v.Type != intstr.String || len(validation.IsValidPercent(v.StrVal)) > 0 {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(v.StrVal, "%"))
	if err != nil {
		return math.MaxInt, true // only a number too large gets here
	}
	return n, true
}

func isZero(v intstr.IntOrString) bool {
	if n, ok := percent(v); ok {
		return n == 0
	}
	return v.Type == intstr.Int && v.IntVal == 0
}

func (e *problems) countOrPercent(p *field.Path, v intstr.IntOrString) {
	if v.Type == intstr.String {
		e.each(p, v, validation.IsValidPercent(v.StrVal))
		return
	}
	e.nonNegative(p, int64(v.IntVal))
}

// share is countOrPercent of what may not be more than all.
func (e *problems) share(p *field.Path, v intstr.IntOrString) {
	e.countOrPercent(p, v)
	e.notMoreThanAll(p, v)
}

func (e *problems) notMoreThanAll(p *field.Path, v intstr.IntOrString) {
	if n, ok := percent(v); ok && n > 100 {
		e.invalid(p, v, "must not be greater than 100%")
	}
}

// mayCount is of a number that may be left out.
func (e *problems) mayCount(p *field.Path, n *int32) {
	if n != nil {
		e.nonNegative(p, int64(*n))
	}
}

func validateDeploymentStatus(d, old *appsv1.Deployment) field.ErrorList {
	e := metadata(&d.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	s, p := &d.Status, field.NewPath("status")
	e.nonNegative(p.Child("observedGeneration"), s.ObservedGeneration)
	e.counts(p, s.Replicas, map[string]int32{
		"updatedReplicas": s.UpdatedReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas,
	})
	e.nonNegative(p.Child("unavailableReplicas"), int64(s.UnavailableReplicas))
	if s.AvailableReplicas > s.ReadyReplicas {
		e.invalid(p.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas")
	}
	if s.CollisionCount != nil {
		e.nonNegative(p.Child("collisionCount"), int64(*s.CollisionCount))
		if old.Status.CollisionCount != nil && *s.CollisionCount < *old.Status.CollisionCount {
			e.invalid(p.Child("collisionCount"), *s.CollisionCount, "cannot be decremented")
		}
	}
	return e.list()
}

// counts are of replicas in some state: not negative, and not more than all.
func (e *problems) counts(p *field.Path, all int32, some map[string]int32) {
	e.nonNegative(p.Child("replicas"), int64(all))
	for name, n := range sorted(some) {
		e.nonNegative(p.Child(name), int64(n))
		if n > all {
			e.invalid(p.Child(name), n, "cannot be greater than status.replicas")
		}
	}
}

func (e *problems) replicaSetSpec(p *field.Path, spec *appsv1.ReplicaSetSpec) {
	e.mayCount(p.Child("replicas"), spec.Replicas)
	e.nonNegative(p.Child("minReadySeconds"), int64(spec.MinReadySeconds))
	e.selectsItself(p, "ReplicaSet", spec.Selector, spec.Template.Labels)
	e.runsForever(p.Child("template"), "ReplicaSet", &spec.Template)
}

func validateReplicaSetStatus(rs, old *appsv1.ReplicaSet) field.ErrorList {
	e := metadata(&rs.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.replicas(&rs.Status)
	return e.list()
}

// replicas is of the status of what keeps so many pods.
func (e *problems) replicas(s *appsv1.ReplicaSetStatus) {
	p := field.NewPath("status")
	e.counts(p, s.Replicas, map[string]int32{
		"fullyLabeledReplicas": s.FullyLabeledReplicas, "readyReplicas": s.ReadyReplicas, "availableReplicas": s.AvailableReplicas,
	})
	if s.AvailableReplicas > s.ReadyReplicas {
		e.invalid(p.Child("availableReplicas"), s.AvailableReplicas, "cannot be greater than readyReplicas")
	}
	e.nonNegative(p.Child("observedGeneration"), s.ObservedGeneration)
}
