package kinds

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var taintEffects = []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute}

func (e *problems) taintEffect(p *field.Path, effect corev1.TaintEffect, mayBeEmpty bool) {
	if effect == "" && mayBeEmpty {
		return
	}
	if !slices.Contains(taintEffects, effect) {
		e.add(field.NotSupported(p, effect, taintEffects))
	}
}

func (e *problems) tolerations(p *field.Path, list []corev1.Toleration) {
	for i, t := range list {
		at := p.Index(i)
		if t.Key != "" {
			e.add(metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
		}
		if t.Key == "" && t.Operator != corev1.TolerationOpExists {
			e.invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		if t.TolerationSeconds != nil && t.Effect != corev1.TaintEffectNoExecute {
			e.invalid(at.Child("effect"), t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		switch t.Operator {
		case corev1.TolerationOpEqual, "":
			if messages := validation.IsValidLabelValue(t.Value); len(messages) > 0 {
				e.invalid(at.Child("operator"), t.Value, strings.Join(messages, ";"))
			}
		case corev1.TolerationOpExists:
			if t.Value != "" {
				e.invalid(at.Child("operator"), t, "value must be empty when `operator` is 'Exists'")
			}
		default:
			e.add(field.NotSupported(at.Child("operator"), t.Operator, []corev1.TolerationOperator{corev1.TolerationOpEqual, corev1.TolerationOpExists}))
		}
		e.taintEffect(at.Child("effect"), t.Effect, true)
	}
}

func (e *problems) affinity(p *field.Path, a *corev1.Affinity) {
	if a == nil {
		return
	}
	const required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
	if n := a.NodeAffinity; n != nil {
		at := p.Child("nodeAffinity")
		if s := n.RequiredDuringSchedulingIgnoredDuringExecution; s != nil {
			e.nodeSelector(at.Child(required), s)
		}
		for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
			term := &n.PreferredDuringSchedulingIgnoredDuringExecution[i]
			e.weight(at.Child(preferred).Index(i).Child("weight"), term.Weight)
			e.nodeSelectorTerm(at.Child(preferred).Index(i).Child("preference"), &term.Preference)
		}
	}
	pods := func(at *field.Path, must []corev1.PodAffinityTerm, should []corev1.WeightedPodAffinityTerm) {
		for i := range must {
			e.podAffinityTerm(at.Child(required).Index(i), &must[i])
		}
		for i := range should {
			e.weight(at.Child(preferred).Index(i).Child("weight"), should[i].Weight)
			e.podAffinityTerm(at.Child(preferred).Index(i).Child("podAffinityTerm"), &should[i].PodAffinityTerm)
		}
	}
	if t := a.PodAffinity; t != nil {
		pods(p.Child("podAffinity"), t.RequiredDuringSchedulingIgnoredDuringExecution, t.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if t := a.PodAntiAffinity; t != nil {
		pods(p.Child("podAntiAffinity"), t.RequiredDuringSchedulingIgnoredDuringExecution, t.PreferredDuringSchedulingIgnoredDuringExecution)
	}
}

func (e *problems) nodeSelector(p *field.Path, s *corev1.NodeSelector) {
	terms := p.Child("nodeSelectorTerms")
	if len(s.NodeSelectorTerms) == 0 {
		e.required(terms, "must have at least one node selector term")
	}
	for i := range s.NodeSelectorTerms {
		e.nodeSelectorTerm(terms.Index(i), &s.NodeSelectorTerms[i])
	}
}

func (e *problems) weight(p *field.Path, weight int32) {
	if weight <= 0 || weight > 100 {
		e.invalid(p, weight, "must be in the range 1-100")
	}
}

func (e *problems) nodeSelectorTerm(p *field.Path, t *corev1.NodeSelectorTerm) {
	for i, r := range t.MatchExpressions {
		at := p.Child("matchExpressions").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) == 0 {
				e.required(at.Child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
			}
		case corev1.NodeSelectorOpExists, corev1.NodeSelectorOpDoesNotExist:
			if len(r.Values) > 0 {
				e.forbidden(at.Child("values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
			}
		case corev1.NodeSelectorOpGt, corev1.NodeSelectorOpLt:
			if len(r.Values) != 1 {
				e.required(at.Child("values"), "must be specified single value when `operator` is 'Lt' or 'Gt'")
			}
		default:
			e.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
		}
		e.add(metavalidation.ValidateLabelName(r.Key, at.Child("key"))...)
		for j, v := range r.Values {
			e.each(at.Child("values").Index(j), v, validation.IsValidLabelValue(v))
		}
	}
	for i, r := range t.MatchFields {
		at := p.Child("matchFields").Index(i)
		switch r.Operator {
		case corev1.NodeSelectorOpIn, corev1.NodeSelectorOpNotIn:
			if len(r.Values) != 1 {
				e.required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
			}
		default:
			e.invalid(at.Child("operator"), r.Operator, "not a valid selector operator")
		}
		if r.Key != metav1.ObjectNameField {
			e.invalid(at.Child("key"), r.Key, "not a valid field selector key")
			continue
		}
		for j, v := range r.Values {
			e.each(at.Child("values").Index(j), v, apivalidation.NameIsDNSSubdomain(v, false))
		}
	}
}

func (e *problems) podAffinityTerm(p *field.Path, t *corev1.PodAffinityTerm) {
	labelSelector(e, p.Child("labelSelector"), t.LabelSelector)
	labelSelector(e, p.Child("namespaceSelector"), t.NamespaceSelector)
	for _, ns := range t.Namespaces {
		e.each(p.Child("namespace"), ns, apivalidation.ValidateNamespaceName(ns, false))
	}
	if t.TopologyKey == "" {
		e.required(p.Child("topologyKey"), "can not be empty")
	} else {
		e.add(metavalidation.ValidateLabelName(t.TopologyKey, p.Child("topologyKey"))...)
	}
	e.labelKeys(p.Child("matchLabelKeys"), t.MatchLabelKeys, t.LabelSelector)
	e.labelKeys(p.Child("mismatchLabelKeys"), t.MismatchLabelKeys, t.LabelSelector)
	for i, key := range t.MatchLabelKeys {
		if slices.Contains(t.MismatchLabelKeys, key) {
			e.invalid(p.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

// labelKeys are of labels whose value is taken from the pod itself.
func (e *problems) labelKeys(p *field.Path, keys []string, selector *metav1.LabelSelector) {
	if len(keys) == 0 {
		return
	}
	if selector == nil {
		e.forbidden(p, "must not be specified when labelSelector is not set")
	}
	for i, key := range keys {
		e.add(metavalidation.ValidateLabelName(key, p.Index(i))...)
	}
}

func (e *problems) spread(p *field.Path, list []corev1.TopologySpreadConstraint) {
	honors := []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore}
	for i, c := range list {
		at := p.Index(i)
		if c.MaxSkew <= 0 {
			e.invalid(at.Child("maxSkew"), c.MaxSkew, "must be greater than zero")
		}
		if c.TopologyKey == "" {
			e.required(at.Child("topologyKey"), "can not be empty")
		} else {
			e.add(metavalidation.ValidateLabelName(c.TopologyKey, at.Child("topologyKey"))...)
		}
		actions := []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}
		if !slices.Contains(actions, c.WhenUnsatisfiable) {
			e.add(field.NotSupported(at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable, actions))
		}
		for _, other := range list[:i] {
			if other.TopologyKey == c.TopologyKey && other.WhenUnsatisfiable == c.WhenUnsatisfiable {
				e.duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable))
				break
			}
		}
		if c.MinDomains != nil {
			if *c.MinDomains <= 0 {
				e.invalid(at.Child("minDomains"), *c.MinDomains, "must be greater than zero")
			}
			if c.WhenUnsatisfiable != corev1.DoNotSchedule {
				e.invalid(at.Child("minDomains"), *c.MinDomains, fmt.Sprintf("can only use minDomains if whenUnsatisfiable=%s, not %s", corev1.DoNotSchedule, c.WhenUnsatisfiable))
			}
		}
		for name, policy := range map[string]*corev1.NodeInclusionPolicy{"nodeAffinityPolicy": c.NodeAffinityPolicy, "nodeTaintsPolicy": c.NodeTaintsPolicy} {
			if policy != nil && !slices.Contains(honors, *policy) {
				e.add(field.NotSupported(at.Child(name), *policy, honors))
			}
		}
		e.labelKeys(at.Child("matchLabelKeys"), c.MatchLabelKeys, c.LabelSelector)
		labelSelector(e, at.Child("labelSelector"), c.LabelSelector)
	}
}

// onlyAdded says whether every old toleration is still there, but for how
// long it lasts.
func (e *problems) onlyAdded(p *field.Path, tolerations, old []corev1.Toleration) {
	for _, was := range old {
		was.TolerationSeconds = nil
		kept := slices.ContainsFunc(tolerations, func(t corev1.Toleration) bool {
			t.TolerationSeconds = nil
			return equality.Semantic.DeepEqual(t, was)
		})
		if !kept {
			e.forbidden(p, "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
	e.tolerations(p, tolerations)
}
