package kinds

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateStatefulSet(s *appsv1.StatefulSet) field.ErrorList {
	e := metadata(&s.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.statefulSetSpec(specPath, &s.Spec)
	return e.list()
}

func validateStatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	e := metadata(&s.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.statefulSetSpec(specPath, &s.Spec)
	// Everything else says who the pods are, and they are that already.
	kept := *s.Spec.DeepCopy()
	kept.Replicas, kept.Ordinals, kept.Template = old.Spec.Replicas, old.Spec.Ordinals, old.Spec.Template
	kept.UpdateStrategy, kept.RevisionHistoryLimit = old.Spec.UpdateStrategy, old.Spec.RevisionHistoryLimit
	kept.PersistentVolumeClaimRetentionPolicy, kept.MinReadySeconds = old.Spec.PersistentVolumeClaimRetentionPolicy, old.Spec.MinReadySeconds
	if !equality.Semantic.DeepEqual(kept, old.Spec) {
		e.forbidden(specPath, "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden")
	}
	return e.list()
}

func (e *problems) statefulSetSpec(p *field.Path, spec *appsv1.StatefulSetSpec) {
	oneOf(e, p.Child("podManagementPolicy"), spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)
	e.statefulSetStrategy(p.Child("updateStrategy"), &spec.UpdateStrategy)
	if r := spec.PersistentVolumeClaimRetentionPolicy; r != nil {
		at := p.Child("persistentVolumeClaimRetentionPolicy")
		for name, value := range sorted(map[string]appsv1.PersistentVolumeClaimRetentionPolicyType{"whenDeleted": r.WhenDeleted, "whenScaled": r.WhenScaled}) {
			oneOf(e, at.Child(name), value, appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)
		}
	}
	e.mayCount(p.Child("replicas"), spec.Replicas)
	e.nonNegative(p.Child("minReadySeconds"), int64(spec.MinReadySeconds))
	if spec.Ordinals != nil {
		e.nonNegative(p.Child("ordinals", "start"), int64(spec.Ordinals.Start))
	}
	e.mayCount(p.Child("revisionHistoryLimit"), spec.RevisionHistoryLimit)
	e.selectsItself(p, "statefulset", spec.Selector, spec.Template.Labels)
	names := map[string]bool{}
	for i := range spec.VolumeClaimTemplates {
		t, at := &spec.VolumeClaimTemplates[i], p.Child("volumeClaimTemplates").Index(i)
		if e.nonEmpty(at.Child("metadata", "name"), t.Name) {
			e.dnsLabel(at.Child("metadata", "name"), t.Name) // it becomes a volume's name
		}
		if names[t.Name] {
			e.duplicate(at.Child("metadata", "name"), t.Name)
		}
		names[t.Name] = true
		e.claimSpec(at.Child("spec"), &t.Spec)
	}
	// The template is judged as the pods made of it will be, so that its writer
	// hears at once of what would keep them from being made.
	template := spec.Template.DeepCopy()
	template.Spec.Volumes = slices.DeleteFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return names[v.Name] })
	for _, t := range spec.VolumeClaimTemplates {
		if t.Name != "" {
			template.Spec.Volumes = append(template.Spec.Volumes, claimVolume(t.Name))
			delete(names, t.Name)
		}
	}
	e.runsForever(p.Child("template"), "StatefulSet", template)
}

// claimVolume stands for the volume that a claim template becomes.
func claimVolume(name string) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}
}

func (e *problems) statefulSetStrategy(p *field.Path, s *appsv1.StatefulSetUpdateStrategy) {
	at := p.Child("rollingUpdate")
	switch s.Type {
	case "":
		e.required(p, "")
	case appsv1.OnDeleteStatefulSetStrategyType:
		if s.RollingUpdate != nil {
			e.invalid(at, s.RollingUpdate, "only allowed for updateStrategy '"+string(appsv1.RollingUpdateStatefulSetStrategyType)+"'")
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if s.RollingUpdate == nil {
			return
		}
		e.mayCount(at.Child("partition"), s.RollingUpdate.Partition)
		if s.RollingUpdate.MaxUnavailable != nil {
			unavailable := *s.RollingUpdate.MaxUnavailable
			e.share(at.Child("maxUnavailable"), unavailable)
			if isZero(unavailable) {
				e.invalid(at.Child("maxUnavailable"), unavailable, "cannot be 0")
			}
		}
	default:
		e.invalid(p, s, "must be '"+string(appsv1.RollingUpdateStatefulSetStrategyType)+"' or '"+string(appsv1.OnDeleteStatefulSetStrategyType)+"'")
	}
}

func validateStatefulSetStatus(s, old *appsv1.StatefulSet) field.ErrorList {
	e := metadata(&s.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	status, p := &s.Status, field.NewPath("status")
	e.counts(p, status.Replicas, map[string]int32{
		"readyReplicas": status.ReadyReplicas, "currentReplicas": status.CurrentReplicas,
		"updatedReplicas": status.UpdatedReplicas, "availableReplicas": status.AvailableReplicas,
	})
	if status.AvailableReplicas > status.ReadyReplicas {
		e.invalid(p.Child("availableReplicas"), status.AvailableReplicas, "cannot be greater than status.readyReplicas")
	}
	e.nonNegative(p.Child("observedGeneration"), status.ObservedGeneration)
	e.mayCount(p.Child("collisionCount"), status.CollisionCount)
	return e.list()
}

func validateControllerRevision(r *appsv1.ControllerRevision) field.ErrorList {
	e := metadata(&r.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.controllerRevision(r)
	return e.list()
}

func (e *problems) controllerRevision(r *appsv1.ControllerRevision) {
	if r.Data.Raw == nil && r.Data.Object == nil {
		e.required(field.NewPath("data"), "data is mandatory")
	}
	e.nonNegative(field.NewPath("revision"), r.Revision)
}

func validateControllerRevisionUpdate(r, old *appsv1.ControllerRevision) field.ErrorList {
	e := metadata(&r.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.controllerRevision(r)
	e.immutable(field.NewPath("data"), r.Data, old.Data)
	return e.list()
}
