package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

// claim returns the dependents of a kind that belong to an owner by its
// selector: it adopts those that match and have no controller, and releases
// those of its own that match no longer. An owner that is being deleted does
// neither.
func claim[T api.Object](ctx context.Context, e *env, r schema.GroupVersionResource, owner api.Object,
	ownerResource schema.GroupVersionResource, selector labels.Selector) ([]T, error) {
	return claimWhere(ctx, e, r, owner, ownerResource, func(o T) bool { return selector.Matches(labels.Set(o.GetLabels())) })
}

// claimWhere is claim by more than a selector.
func claimWhere[T api.Object](ctx context.Context, e *env, r schema.GroupVersionResource, owner api.Object,
	ownerResource schema.GroupVersionResource, belongs func(T) bool) ([]T, error) {
	var claimed []T
	var errs []error
	for _, o := range controlled[T](e.cache, r, owner.GetUID()) {
		if o.GetNamespace() != owner.GetNamespace() {
			continue // a reference across namespaces owns nothing
		}
		if belongs(o) {
			claimed = append(claimed, o)
			continue
		}
		if owner.GetDeletionTimestamp() != nil {
			continue
		}
		if err := release(ctx, e, r, o, owner); err != nil {
			errs = append(errs, err)
		}
	}
	if owner.GetDeletionTimestamp() != nil {
		return claimed, errors.Join(errs...)
	}
	confirmed := false
	for _, o := range indexed[T](e.cache, r, orphans, owner.GetNamespace()) {
		if o.GetDeletionTimestamp() != nil || !belongs(o) {
			continue
		}
		if !confirmed {
			// The owner may have been deleted, and its dependents orphaned on
			// purpose, since the cache heard of it.
			now, err := e.peek(ctx, ownerResource, owner.GetNamespace(), owner.GetName())
			if err != nil {
				return nil, err
			}
			if now == nil || now.GetUID() != owner.GetUID() || now.GetDeletionTimestamp() != nil {
				return claimed, errors.Join(errs...)
			}
			confirmed = true
		}
		adopted, err := adopt(ctx, e, r, o, owner)
		switch {
		case err == nil:
			claimed = append(claimed, adopted)
		case !apierrors.IsNotFound(err):
			errs = append(errs, err)
		}
	}
	return claimed, errors.Join(errs...)
}

func adopt[T api.Object](ctx context.Context, e *env, r schema.GroupVersionResource, o T, owner api.Object) (T, error) {
	o = edit(o)
	// One entry per UID: an ordinary owner that becomes the controller keeps
	// its place.
	refs := []metav1.OwnerReference{}
	for _, ref := range o.GetOwnerReferences() {
		if ref.UID != owner.GetUID() {
			refs = append(refs, ref)
		}
	}
	o.SetOwnerReferences(append(refs, controllerRef(owner)))
	written, err := e.update(ctx, r, o)
	if err != nil {
		var none T
		return none, err
	}
	t, ok := written.(T)
	if !ok {
		return t, fmt.Errorf("update %s %s: the answer is a %T", r.Resource, keyOf(o), written)
	}
	return t, nil
}

func release[T api.Object](ctx context.Context, e *env, r schema.GroupVersionResource, o T, owner api.Object) error {
	o = edit(o)
	o.SetOwnerReferences(withoutOwner(o.GetOwnerReferences(), owner))
	_, err := e.update(ctx, r, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func withoutOwner(refs []metav1.OwnerReference, owner metav1.Object) []metav1.OwnerReference {
	var kept []metav1.OwnerReference
	for _, ref := range refs {
		if ref.UID != owner.GetUID() {
			kept = append(kept, ref)
		}
	}
	return kept
}

func controllerRef(owner api.Object) metav1.OwnerReference {
	return *metav1.NewControllerRef(owner, owner.GetObjectKind().GroupVersionKind())
}

// claimants maps the changes of a dependent kind to its controllers: the one
// named, before and after, and where none is named all whose selector matches.
func claimants[T api.Object](e *env, r schema.GroupVersionResource, kind string, selects func(T) *metav1.LabelSelector) func(Change) []Key {
	return func(c Change) []Key {
		var keys []Key
		for _, o := range c.sides() {
			if key, ok := controllerKey(o, kind); ok {
				keys = append(keys, key)
			}
		}
		if c.New == nil || metav1.GetControllerOfNoCopy(c.New) != nil {
			return keys
		}
		if c.Old != nil && metav1.GetControllerOfNoCopy(c.Old) == nil && maps.Equal(c.Old.GetLabels(), c.New.GetLabels()) {
			return keys // an orphan that nobody wanted before
		}
		for _, owner := range list[T](e.cache, r, c.New.GetNamespace()) {
			s, err := metav1.LabelSelectorAsSelector(selects(owner))
			if err == nil && !s.Empty() && s.Matches(labels.Set(c.New.GetLabels())) {
				keys = append(keys, keyOf(owner))
			}
		}
		return keys
	}
}
