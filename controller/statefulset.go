package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"conclave/api"
)

const statefulComponent = "statefulset-controller"

// newStatefulSets keeps the pods of each StatefulSet: each has a name, a place
// and claims of its own, and there is never a second one of the same name,
// because the store has only one object of a name. A pod on a dead node stays
// until somebody who knows that it runs no more deletes it.
func newStatefulSets(e *env) *Controller {
	c := statefulSetController{e}
	return &Controller{
		Name:    "statefulset",
		Workers: 4,
		Inputs: []Input{
			{statefulSets, self},
			{pods, claimants(e, statefulSets, "StatefulSet", func(s *appsv1.StatefulSet) *metav1.LabelSelector { return s.Spec.Selector })},
			{claims, c.keysOfClaim},
		},
		Outputs: []Output{
			{pods, "objects controlled by a StatefulSet"}, {statefulSets, "status"},
			{revisions, "objects controlled by a StatefulSet"}, {claims, "objects made from volumeClaimTemplates"},
		},
		Reconcile: c.reconcile,
	}
}

type statefulSetController struct{ *env }

// keysOfClaim wakes the sets whose pods wait until a claim is gone, or have
// lost one.
func (c statefulSetController) keysOfClaim(change Change) (keys []Key) {
	if change.New != nil {
		return nil
	}
	for _, set := range list[*appsv1.StatefulSet](c.cache, statefulSets, change.Old.GetNamespace()) {
		if slices.ContainsFunc(set.Spec.VolumeClaimTemplates, func(t corev1.PersistentVolumeClaim) bool {
			_, ok := claimOrdinal(set, &t, change.Old.GetName())
			return ok
		}) {
			keys = append(keys, keyOf(set))
		}
	}
	return keys
}

// claimName is the name of the claim that a template is for one pod.
func claimName(set *appsv1.StatefulSet, t *corev1.PersistentVolumeClaim, ordinal int) string {
	return t.Name + "-" + podNameOf(set, ordinal)
}

func claimOrdinal(set *appsv1.StatefulSet, t *corev1.PersistentVolumeClaim, name string) (int, bool) {
	if len(name) <= len(t.Name) || name[:len(t.Name)] != t.Name || name[len(t.Name)] != '-' {
		return 0, false
	}
	n := ordinalOf(set, name[len(t.Name)+1:])
	return n, n >= 0
}

func (c statefulSetController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	set, ok := get[*appsv1.StatefulSet](c.cache, statefulSets, key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		return 0, fmt.Errorf("selector of stateful set %s: %w", key, err)
	}
	belongs := func(p *corev1.Pod) bool {
		return selector.Matches(labels.Set(p.Labels)) && ordinalOf(set, p.Name) >= 0
	}
	claimed, err := claimWhere(ctx, c.env, pods, set, statefulSets, belongs)
	if err != nil {
		return 0, err
	}
	h, err := historyOf(ctx, c.env, revised{
		owner: set, resource: statefulSets, template: &set.Spec.Template, label: revisionHashLabel,
		collisions: set.Status.CollisionCount, current: set.Status.CurrentRevision,
	}, selector)
	if err != nil {
		return 0, terminatingIsFine(err)
	}
	s := &statefulState{set: set, current: h.current.Name, update: h.update.Name, pods: byOrdinal(set, claimed), now: c.Now()}
	s.held = func(n int) bool { return c.claimsGo(set, n) }
	var again time.Duration
	var failure error
	if set.DeletionTimestamp == nil {
		again, failure = c.act(ctx, s, h)
	}
	// What was just made and deleted is in the cache by now.
	s.pods = byOrdinal(set, slices.DeleteFunc(controlled[*corev1.Pod](c.cache, pods, set.UID), func(p *corev1.Pod) bool { return !belongs(p) }))
	status, later := statefulSetStatus(s, h.collisions)
	if !equality.Semantic.DeepEqual(set.Status, status) {
		changed := edit(set)
		changed.Status = status
		made, err := c.update(ctx, statefulSets, changed, "status")
		if apierrors.IsNotFound(err) {
			return 0, failure
		}
		if err != nil {
			return 0, errors.Join(failure, err)
		}
		set = made.(*appsv1.StatefulSet)
	}
	if set.DeletionTimestamp == nil {
		live := map[string]bool{h.current.Name: true, h.update.Name: true}
		for _, pod := range s.pods {
			live[revisionLabel(pod)] = true
		}
		failure = errors.Join(failure, forgetOldRevisions(ctx, c.env, h, set.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool { return live[r.Name] }))
	}
	return sooner(again, later), failure
}

// terminatingIsFine drops what a namespace refuses because it goes: nobody
// needs to read of it.
func terminatingIsFine(err error) error {
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	return err
}

func byOrdinal(set *appsv1.StatefulSet, all []*corev1.Pod) map[int]*corev1.Pod {
	found := make(map[int]*corev1.Pod, len(all))
	for _, p := range all {
		found[ordinalOf(set, p.Name)] = p
	}
	return found
}

// act brings the claims up to what the set asks for and takes the next steps.
func (c statefulSetController) act(ctx context.Context, s *statefulState, h *history) (time.Duration, error) {
	for n, pod := range s.pods {
		if err := c.keepClaims(ctx, s.set, n, pod); err != nil {
			return 0, terminatingIsFine(err)
		}
	}
	todo, again := s.steps()
	for _, step := range todo {
		var err error
		switch step.verb {
		case createPod:
			err = c.makePod(ctx, s, h, step)
		case deletePod:
			err = c.removePod(ctx, s.set, step.pod)
		case replacePod:
			c.events.record(statefulComponent, about(s.set), corev1.EventTypeWarning, "RecreatingFailedPod", "StatefulSet %s/%s is recreating failed Pod %s", s.set.Namespace, s.set.Name, step.pod.Name)
			err = c.removePod(ctx, s.set, step.pod)
		case identifyPod:
			pod := edit(step.pod)
			identify(s.set, pod, step.ordinal)
			_, err = c.update(ctx, pods, pod)
		}
		if err != nil {
			return 0, terminatingIsFine(err)
		}
	}
	return again, nil
}

func (c statefulSetController) makePod(ctx context.Context, s *statefulState, h *history, step statefulStep) error {
	template := &s.set.Spec.Template
	if step.revision != h.update.Name {
		var err error
		if template, err = templateOf(h.current); err != nil {
			return err
		}
	}
	if err := c.keepClaims(ctx, s.set, step.ordinal, nil); err != nil {
		return err
	}
	pod := statefulPod(s.set, template, step.ordinal, step.revision)
	_, err := c.create(ctx, pods, pod)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return err
	}
	c.tell(s.set, "Create", "create", "Pod "+pod.Name, err)
	return err
}

// tell records how a change to what belongs to a set went.
func (c statefulSetController) tell(set *appsv1.StatefulSet, reason, verb, what string, err error) {
	if err != nil {
		c.events.record(statefulComponent, about(set), corev1.EventTypeWarning, "Failed"+reason, "%s %s in StatefulSet %s failed error: %v", verb, what, set.Name, rootCause(err))
		return
	}
	c.events.record(statefulComponent, about(set), corev1.EventTypeNormal, "Successful"+reason, "%s %s in StatefulSet %s successful", verb, what, set.Name)
}

func (c statefulSetController) removePod(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	err := c.delete(ctx, pods, pod, metav1.DeleteOptions{})
	c.tell(set, "Delete", "delete", "Pod "+pod.Name, err)
	return err
}

// statefulPod is the pod of one place.
func statefulPod(set *appsv1.StatefulSet, template *corev1.PodTemplateSpec, ordinal int, revision string) *corev1.Pod {
	t := template.DeepCopy()
	pod := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: set.Namespace, Name: podNameOf(set, ordinal), GenerateName: set.Name + "-",
			Labels: t.Labels, Annotations: t.Annotations, Finalizers: t.Finalizers,
			OwnerReferences: []metav1.OwnerReference{controllerRef(set)},
		},
		Spec: t.Spec,
	}
	identify(set, pod, ordinal)
	pod.Labels[appsv1.ControllerRevisionHashLabelKey] = revision
	pod.Spec.Hostname, pod.Spec.Subdomain = pod.Name, set.Spec.ServiceName
	var volumes []corev1.Volume
	for i := range set.Spec.VolumeClaimTemplates {
		claim := &set.Spec.VolumeClaimTemplates[i]
		volumes = append(volumes, corev1.Volume{Name: claim.Name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(set, claim, ordinal)},
		}})
	}
	for _, v := range pod.Spec.Volumes {
		if !slices.ContainsFunc(volumes, func(own corev1.Volume) bool { return own.Name == v.Name }) {
			volumes = append(volumes, v)
		}
	}
	pod.Spec.Volumes = volumes
	return pod
}

// identify writes into a pod's labels which one of the set it is.
func identify(set *appsv1.StatefulSet, pod *corev1.Pod, ordinal int) {
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = podNameOf(set, ordinal)
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(ordinal)
}

// claimsGo says that a claim of this place is being deleted, or will be because
// it belongs to a pod that was scaled away.
func (c statefulSetController) claimsGo(set *appsv1.StatefulSet, ordinal int) bool {
	return slices.ContainsFunc(set.Spec.VolumeClaimTemplates, func(t corev1.PersistentVolumeClaim) bool {
		have, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, set.Namespace, claimName(set, &t, ordinal))
		return ok && (have.DeletionTimestamp != nil || slices.ContainsFunc(have.OwnerReferences, func(r metav1.OwnerReference) bool {
			return r.Kind == "Pod" && r.Name == podNameOf(set, ordinal)
		}))
	})
}

// keepClaims makes the claims of a place that are missing, if its pod is yet to
// be made or to start, and writes into those that are there who takes them
// along when it goes.
func (c statefulSetController) keepClaims(ctx context.Context, set *appsv1.StatefulSet, ordinal int, pod *corev1.Pod) error {
	for i := range set.Spec.VolumeClaimTemplates {
		t := &set.Spec.VolumeClaimTemplates[i]
		name := claimName(set, t, ordinal)
		have, ok := get[*corev1.PersistentVolumeClaim](c.cache, claims, set.Namespace, name)
		switch {
		case ok:
			if err := c.ownClaim(ctx, set, ordinal, pod, have); err != nil {
				return err
			}
		case pod == nil || pod.Status.Phase == corev1.PodPending && pod.DeletionTimestamp == nil:
			made := &corev1.PersistentVolumeClaim{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
				ObjectMeta: metav1.ObjectMeta{
					Namespace: set.Namespace, Name: name, Labels: map[string]string{}, Annotations: maps.Clone(t.Annotations), Finalizers: slices.Clone(t.Finalizers),
				},
				Spec: *t.Spec.DeepCopy(),
			}
			maps.Copy(made.Labels, t.Labels)
			maps.Copy(made.Labels, set.Spec.Selector.MatchLabels)
			made.OwnerReferences = claimOwners(set, ordinal, pod, nil)
			_, err := c.create(ctx, claims, made)
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
				return err
			}
			c.tell(set, "Create", "create", "Claim "+name+" Pod "+podNameOf(set, ordinal), err)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (c statefulSetController) ownClaim(ctx context.Context, set *appsv1.StatefulSet, ordinal int, pod *corev1.Pod, have *corev1.PersistentVolumeClaim) error {
	want := claimOwners(set, ordinal, pod, have.OwnerReferences)
	if have.DeletionTimestamp != nil || equality.Semantic.DeepEqual(want, have.OwnerReferences) {
		return nil
	}
	if ref := metav1.GetControllerOfNoCopy(have); ref != nil && ref.UID != set.UID && (pod == nil || ref.UID != pod.UID) {
		return nil // another controller's: it knows better
	}
	claim := edit(have)
	claim.OwnerReferences = want
	_, err := c.update(ctx, claims, claim)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// claimOwners are the owners of a claim by the set's retention policy: the set,
// if the claim is to go with it; the pod, if that is being scaled away and the
// claim is to go with that; and those that are nobody's business here.
func claimOwners(set *appsv1.StatefulSet, ordinal int, pod *corev1.Pod, have []metav1.OwnerReference) []metav1.OwnerReference {
	var whenDeleted, whenScaled bool
	if p := set.Spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		whenDeleted = p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
		whenScaled = p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	}
	first, end := ordinals(set)
	condemned := pod != nil && (ordinal < first || ordinal >= end)
	var owner api.Object
	switch {
	case condemned && whenScaled:
		owner = pod
	case whenDeleted:
		owner = set
	}
	var kept []metav1.OwnerReference
	has := false
	for _, ref := range have {
		switch {
		case owner != nil && ref.UID == owner.GetUID():
			has = true
			kept = append(kept, ref)
		case ref.UID != set.UID && (pod == nil || ref.UID != pod.UID):
			kept = append(kept, ref)
		}
	}
	if owner != nil && !has {
		kept = append(kept, controllerRef(owner))
	}
	return kept
}
