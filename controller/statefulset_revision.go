package controller

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"
)

// revisionHashLabel is how kubectl and others find a revision by its content.
const revisionHashLabel = "controller.kubernetes.io/hash"

// history is the revisions of a StatefulSet's template: one per template that
// its pods were ever made of, until revisionHistoryLimit takes the oldest.
type history struct {
	all             []*appsv1.ControllerRevision // the oldest first
	current, update *appsv1.ControllerRevision
	collisions      int32
}

func oldestRevision(a, b *appsv1.ControllerRevision) int {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// templatePatch is a template as a revision keeps it: the patch that puts it
// back into the set, which is what kubectl makes of it.
func templatePatch(t *corev1.PodTemplateSpec) ([]byte, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	var template map[string]any
	if err := json.Unmarshal(data, &template); err != nil {
		return nil, err
	}
	template["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
}

// templateOf is the template that a revision keeps.
func templateOf(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var set struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &set); err != nil {
		return nil, fmt.Errorf("read revision %s: %w", r.Name, err)
	}
	return &set.Spec.Template, nil
}

func sameData(a, b []byte) bool {
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// historyOf finds the revisions of a set, and makes or revives the one of its
// template.
func (c statefulSetController) historyOf(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector) (*history, error) {
	all, err := claim[*appsv1.ControllerRevision](ctx, c.env, revisions, set, statefulSets, selector)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, oldestRevision)
	h := &history{all: all}
	if set.Status.CollisionCount != nil {
		h.collisions = *set.Status.CollisionCount
	}
	data, err := templatePatch(&set.Spec.Template)
	if err != nil {
		return nil, fmt.Errorf("revision of stateful set %s: %w", keyOf(set), err)
	}
	same := slices.IndexFunc(all, func(r *appsv1.ControllerRevision) bool { return sameData(r.Data.Raw, data) })
	next := int64(1)
	if len(all) > 0 {
		next = all[len(all)-1].Revision + 1
	}
	switch {
	case same < 0:
		h.update, err = c.makeRevision(ctx, set, data, next, &h.collisions)
		if err == nil {
			h.all = append(h.all, h.update)
		}
	case same == len(all)-1:
		h.update = all[same]
	default: // a template that was there before: a rollback
		r := edit(all[same])
		r.Revision = next
		var made any
		if made, err = c.env.update(ctx, revisions, r); err == nil {
			h.update = made.(*appsv1.ControllerRevision)
			h.all = append(slices.Delete(h.all, same, same+1), h.update)
		}
	}
	if err != nil {
		return nil, err
	}
	h.current = h.update
	for _, r := range h.all {
		if r.Name == set.Status.CurrentRevision {
			h.current = r
		}
	}
	return h, nil
}

func (c statefulSetController) makeRevision(ctx context.Context, set *appsv1.StatefulSet, data []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	for {
		h := fnv.New32a()
		h.Write(data)
		if *collisions > 0 {
			fmt.Fprintf(h, "/%d", *collisions)
		}
		hash := rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
		const longest = 223 // so that the hash fits
		r := &appsv1.ControllerRevision{
			TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ControllerRevision"},
			ObjectMeta: metav1.ObjectMeta{
				Namespace: set.Namespace, Name: set.Name[:min(len(set.Name), longest)] + "-" + hash,
				Labels: map[string]string{}, Annotations: maps.Clone(set.Annotations),
				OwnerReferences: []metav1.OwnerReference{controllerRef(set)},
			},
			Data: runtime.RawExtension{Raw: data}, Revision: number,
		}
		maps.Copy(r.Labels, set.Spec.Template.Labels)
		r.Labels[revisionHashLabel] = hash
		made, err := c.create(ctx, revisions, r)
		if err == nil {
			return made.(*appsv1.ControllerRevision), nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
		other, peekErr := c.peek(ctx, revisions, r.Namespace, r.Name)
		if peekErr != nil {
			return nil, peekErr
		}
		if found, ok := other.(*appsv1.ControllerRevision); ok && metav1.IsControlledBy(found, set) && sameData(found.Data.Raw, data) {
			c.learn(revisions, found)
			return found, nil
		}
		*collisions++ // another template, or another's revision, has the name
	}
}

// forgetOld deletes the oldest revisions beyond the limit that no pod is of.
func (c statefulSetController) forgetOld(ctx context.Context, set *appsv1.StatefulSet, h *history, pods map[int]*corev1.Pod) error {
	limit := 10
	if set.Spec.RevisionHistoryLimit != nil {
		limit = int(*set.Spec.RevisionHistoryLimit)
	}
	live := map[string]bool{h.current.Name: true, h.update.Name: true}
	for _, pod := range pods {
		live[revisionLabel(pod)] = true
	}
	old := slices.DeleteFunc(slices.Clone(h.all), func(r *appsv1.ControllerRevision) bool { return live[r.Name] || r.DeletionTimestamp != nil })
	for i := 0; i < len(old)-limit; i++ {
		if err := c.delete(ctx, revisions, old[i], metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}
