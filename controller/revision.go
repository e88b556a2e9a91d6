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
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"

	"conclave/api"
)

// revisionHashLabel is how kubectl and others find a revision by its content.
const revisionHashLabel = "controller.kubernetes.io/hash"

// history is the revisions of a StatefulSet's or DaemonSet's template: one per
// template that its pods were ever made of, until revisionHistoryLimit takes the oldest.
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

// revised is a set whose template has a history.
type revised struct {
	owner    api.Object
	resource schema.GroupVersionResource
	template *corev1.PodTemplateSpec
	// label holds a revision's hash.
	label      string
	collisions *int32 // of the status
	current    string // name of the revision that most pods are of, if known
}

// historyOf finds the revisions of a set, and makes or revives the one of its
// template.
func historyOf(ctx context.Context, e *env, set revised, selector labels.Selector) (*history, error) {
	all, err := claim[*appsv1.ControllerRevision](ctx, e, revisions, set.owner, set.resource, selector)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, oldestRevision)
	h := &history{all: all}
	if set.collisions != nil {
		h.collisions = *set.collisions
	}
	data, err := templatePatch(set.template)
	if err != nil {
		return nil, fmt.Errorf("revision of %s %s: %w", set.resource.Resource, keyOf(set.owner), err)
	}
	same := slices.IndexFunc(all, func(r *appsv1.ControllerRevision) bool { return sameData(r.Data.Raw, data) })
	next := int64(1)
	if len(all) > 0 {
		next = all[len(all)-1].Revision + 1
	}
	switch {
	case same < 0:
		h.update, err = makeRevision(ctx, e, set, data, next, &h.collisions)
		if err == nil {
			h.all = append(h.all, h.update)
		}
	case same == len(all)-1:
		h.update = all[same]
	default: // a template that was there before: a rollback
		r := edit(all[same])
		r.Revision = next
		var made any
		if made, err = e.update(ctx, revisions, r); err == nil {
			h.update = made.(*appsv1.ControllerRevision)
			h.all = append(slices.Delete(h.all, same, same+1), h.update)
		}
	}
	if err != nil {
		return nil, err
	}
	h.current = h.update
	for _, r := range h.all {
		if r.Name == set.current {
			h.current = r
		}
	}
	return h, nil
}

func makeRevision(ctx context.Context, e *env, set revised, data []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	owner := set.owner
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
				Namespace: owner.GetNamespace(), Name: owner.GetName()[:min(len(owner.GetName()), longest)] + "-" + hash,
				Labels: map[string]string{}, Annotations: maps.Clone(owner.GetAnnotations()),
				OwnerReferences: []metav1.OwnerReference{controllerRef(owner)},
			},
			Data: runtime.RawExtension{Raw: data}, Revision: number,
		}
		maps.Copy(r.Labels, set.template.Labels)
		r.Labels[set.label] = hash
		made, err := e.create(ctx, revisions, r)
		if err == nil {
			return made.(*appsv1.ControllerRevision), nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
		other, peekErr := e.peek(ctx, revisions, r.Namespace, r.Name)
		if peekErr != nil {
			return nil, peekErr
		}
		if found, ok := other.(*appsv1.ControllerRevision); ok && metav1.IsControlledBy(found, owner) && sameData(found.Data.Raw, data) {
			e.learn(revisions, found)
			return found, nil
		}
		*collisions++ // another template, or another's revision, has the name
	}
}

// forgetOldRevisions deletes the oldest revisions beyond the limit that no pod
// is of.
func forgetOldRevisions(ctx context.Context, e *env, h *history, limit *int32, live func(*appsv1.ControllerRevision) bool) error {
	most := 10
	if limit != nil {
		most = int(*limit)
	}
	old := slices.DeleteFunc(slices.Clone(h.all), func(r *appsv1.ControllerRevision) bool { return live(r) || r.DeletionTimestamp != nil })
	for i := 0; i < len(old)-most; i++ {
		if err := e.delete(ctx, revisions, old[i], metav1.DeleteOptions{}); err != nil {
			return err
		}
	}
	return nil
}
