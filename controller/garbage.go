package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

// newGarbage deletes what has no owner left, and carries out what a deletion
// asked for: Foreground (first the dependents, then the owner) and Orphan (the
// dependents live on). Its graph is the cache's index of ownerReferences.
func newGarbage(e *env) *Controller {
	c := &garbageController{env: e}
	controller := &Controller{
		Name:    "garbage-collector",
		Workers: 8,
		// It removes references and finalizers of every kind; that is outside
		// of what any other controller writes.
		Outputs:   []Output{{schema.GroupVersionResource{Resource: "*"}, "metadata.ownerReferences to the deleted"}, {schema.GroupVersionResource{Resource: "*"}, "deletions for want of an owner"}},
		Reconcile: c.reconcile,
	}
	for _, r := range e.Kinds {
		if r != events { // nothing owns an event, and there are many
			controller.Inputs = append(controller.Inputs, Input{r, func(change Change) []Key { return c.keys(r, change) }})
		}
	}
	controller.Custom = c.keys
	return controller
}

type garbageController struct{ *env }

func objectKey(r schema.GroupVersionResource, o metav1.Object) Key {
	return Key{Resource: r, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// keys of a change: the object itself where its own fate may be decided now;
// its dependents when it went, or went on waiting for them; and its owners
// when they wait for it.
func (c *garbageController) keys(r schema.GroupVersionResource, change Change) []Key {
	var found []Key
	if o := change.New; o != nil {
		newborn := change.Old == nil && len(o.GetOwnerReferences()) > 0
		reowned := change.Old != nil && !slices.EqualFunc(change.Old.GetOwnerReferences(), o.GetOwnerReferences(), sameRef)
		if newborn || reowned || o.GetDeletionTimestamp() != nil && (waits(o) || orphaning(o)) {
			found = append(found, objectKey(r, o))
		}
		if change.Old != nil && waits(o) && !waits(change.Old) {
			found = append(found, mapKeys(c.cache.dependentsOf(o.GetUID()))...)
		}
		if !reowned {
			return found
		}
	}
	if change.Old == nil {
		return found
	}
	if change.New == nil {
		found = append(found, mapKeys(c.cache.dependentsOf(change.Old.GetUID()))...)
	}
	// Somebody may have waited for this.
	for _, ref := range change.Old.GetOwnerReferences() {
		if owner, or := c.owner(change.Old, ref); owner != nil && waits(owner) {
			found = append(found, objectKey(or, owner))
		}
	}
	return found
}

func sameRef(a, b metav1.OwnerReference) bool { return a.String() == b.String() }

// waits says that an object is being deleted after its dependents.
func waits(o api.Object) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents)
}

func orphaning(o api.Object) bool {
	return o.GetDeletionTimestamp() != nil && slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents)
}

// resource of the kind that a reference names; false if it is not served.
func (c *garbageController) resource(ref metav1.OwnerReference) (schema.GroupVersionResource, bool) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return schema.GroupVersionResource{}, false
	}
	plural, _ := meta.UnsafeGuessKindToResource(gv.WithKind(ref.Kind))
	if slices.Contains(c.Kinds, plural) {
		return plural, true
	}
	// Another version of a served kind is the same objects.
	if r, ok := c.cache.resourceOf(gv.Group, plural.Resource, ref.Kind); ok {
		return r, true
	}
	return plural, false
}

// owner is the live object that a reference names, as the cache knows it.
func (c *garbageController) owner(o api.Object, ref metav1.OwnerReference) (api.Object, schema.GroupVersionResource) {
	r, ok := c.resource(ref)
	if !ok {
		return nil, r
	}
	for _, namespace := range []string{o.GetNamespace(), ""} {
		if found, ok := get[api.Object](c.cache, r, namespace, ref.Name); ok && found.GetUID() == ref.UID {
			return found, r
		}
	}
	return nil, r
}

// standing of an owner, seen from one dependent.
type standing uint8

const (
	solid   standing = iota // there, or nobody can tell
	absent                  // gone for certain
	waiting                 // being deleted, after its dependents
)

func (c *garbageController) standing(ctx context.Context, o api.Object, ref metav1.OwnerReference) (standing, error) {
	if owner, _ := c.owner(o, ref); owner != nil {
		if waits(owner) {
			return waiting, nil
		}
		return solid, nil
	}
	r, ok := c.resource(ref)
	if !ok {
		return solid, nil // of a kind that this cluster does not know (yet)
	}
	namespaced, seen := c.cache.scope(r)
	if o.GetNamespace() == "" && (!seen || namespaced) {
		// A cluster-wide object cannot be owned by one in a namespace: that is
		// a mistake of the reference, and deletes nothing.
		return solid, nil
	}
	// The cache follows each resource by itself: an owner older than its
	// dependent may still be on its way. The store has it.
	scope := ""
	if namespaced || !seen {
		scope = o.GetNamespace()
	}
	owner, err := c.peek(ctx, r, scope, ref.Name)
	switch {
	case err != nil:
		return solid, err
	case owner == nil || owner.GetUID() != ref.UID:
		if scope != "" && !seen {
			// The scope is not known: it may be a cluster-wide one.
			if owner, err = c.peek(ctx, r, "", ref.Name); err != nil && !apierrors.IsBadRequest(err) {
				return solid, err
			}
			if owner != nil && owner.GetUID() == ref.UID {
				return solid, nil
			}
		}
		return absent, nil
	case waits(owner):
		return waiting, nil
	}
	return solid, nil
}

func (c *garbageController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	o, ok := get[api.Object](c.cache, key.Resource, key.Namespace, key.Name)
	if !ok {
		return 0, nil
	}
	if waits(o) {
		return 0, c.finishForeground(ctx, key, o)
	}
	if orphaning(o) {
		if err := c.orphan(ctx, key, o); err != nil {
			return 0, err
		}
	}
	if o.GetDeletionTimestamp() != nil || len(o.GetOwnerReferences()) == 0 {
		return 0, nil
	}
	return 0, c.decide(ctx, key, o)
}

// decide deletes an object whose owners are all gone or going.
func (c *garbageController) decide(ctx context.Context, key Key, o api.Object) error {
	var good, bad []metav1.OwnerReference
	anyWaiting := false
	for _, ref := range o.GetOwnerReferences() {
		s, err := c.standing(ctx, o, ref)
		if err != nil {
			return fmt.Errorf("owner %s %s of %s: %w", ref.Kind, ref.Name, key, err)
		}
		switch s {
		case solid:
			good = append(good, ref)
		case waiting:
			anyWaiting = true
			fallthrough
		case absent:
			bad = append(bad, ref)
		}
	}
	switch {
	case len(bad) == 0:
		return nil
	case len(good) > 0:
		o = edit(o)
		o.SetOwnerReferences(good)
		return c.writeAny(ctx, key.Resource, o)
	}
	policy := metav1.DeletePropagationBackground
	dependents := c.cache.dependentsOf(o.GetUID())
	switch {
	case anyWaiting && len(dependents) > 0:
		// The owner waits for all below it, so this waits for its own. If one
		// of those waits already, this is a cycle: cut it here.
		if slices.ContainsFunc(slices.Collect(maps.Values(dependents)), waits) {
			var err error
			if o, err = c.unblock(ctx, key, o); err != nil {
				return err
			}
		}
		policy = metav1.DeletePropagationForeground
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(o.GetFinalizers(), metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	// The version too: an owner may have been added since.
	version := o.GetResourceVersion()
	return c.delete(ctx, key.Resource, o, metav1.DeleteOptions{
		PropagationPolicy: &policy,
		Preconditions:     &metav1.Preconditions{ResourceVersion: &version},
	})
}

// unblock makes no owner wait for an object, and returns it as it is then.
func (c *garbageController) unblock(ctx context.Context, key Key, o api.Object) (api.Object, error) {
	refs := slices.Clone(o.GetOwnerReferences())
	changed := false
	for i := range refs {
		if refs[i].BlockOwnerDeletion != nil && *refs[i].BlockOwnerDeletion {
			refs[i].BlockOwnerDeletion = new(bool)
			changed = true
		}
	}
	if !changed {
		return o, nil
	}
	o = edit(o)
	o.SetOwnerReferences(refs)
	return c.update(ctx, key.Resource, o)
}

// finishForeground lets an owner go once nothing that blocks it is left.
func (c *garbageController) finishForeground(ctx context.Context, key Key, o api.Object) error {
	for _, d := range c.cache.dependentsOf(o.GetUID()) {
		for _, ref := range d.GetOwnerReferences() {
			if ref.UID == o.GetUID() && ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion {
				return nil // its going wakes us
			}
		}
	}
	return c.dropFinalizer(ctx, key, o, metav1.FinalizerDeleteDependents)
}

// orphan frees the dependents of an owner, and then the owner.
func (c *garbageController) orphan(ctx context.Context, key Key, o api.Object) error {
	for dk, d := range c.cache.dependentsOf(o.GetUID()) {
		d = edit(d)
		d.SetOwnerReferences(withoutOwner(d.GetOwnerReferences(), o))
		if err := c.writeAny(ctx, dk.Resource, d); err != nil {
			return err
		}
	}
	return c.dropFinalizer(ctx, key, o, metav1.FinalizerOrphanDependents)
}

func (c *garbageController) dropFinalizer(ctx context.Context, key Key, o api.Object, finalizer string) error {
	o = edit(o)
	o.SetFinalizers(slices.DeleteFunc(slices.Clone(o.GetFinalizers()), func(f string) bool { return f == finalizer }))
	return c.writeAny(ctx, key.Resource, o)
}

// writeAny is update that does not mind if the object is gone.
func (c *garbageController) writeAny(ctx context.Context, r schema.GroupVersionResource, o api.Object) error {
	_, err := c.update(ctx, r, o)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
