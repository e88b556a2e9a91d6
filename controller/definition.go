package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/custom"
)

// customs are the custom resources that the controllers follow beside the kinds
// that they know from the start: one version of each, the one that is stored.
type customs struct {
	known func(schema.GroupResource) bool                      // of the kinds known from the start
	start func(schema.GroupVersionResource) context.CancelFunc // Run's
	mu    sync.Mutex
	stop  map[schema.GroupVersionResource]context.CancelFunc
}

// set follows the custom resources of these definitions, and no others. It is
// called by the follower of definitions alone.
func (c *customs) set(cache *cache, all []*custom.Definition) {
	wanted := map[schema.GroupVersionResource]*custom.Definition{}
	for _, d := range all {
		if r := storedResource(d); custom.IsServed(d) && !c.known(r.GroupResource()) {
			wanted[r] = d
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for r, stop := range c.stop {
		if wanted[r] == nil {
			stop()
			delete(c.stop, r)
		}
	}
	for r, d := range wanted {
		if c.stop[r] != nil {
			continue
		}
		if c.stop == nil {
			c.stop = map[schema.GroupVersionResource]context.CancelFunc{}
		}
		cache.addCustom(r, d.Spec.Names.Kind, d.Spec.Scope == apiextensionsv1.NamespaceScoped)
		c.stop[r] = c.start(r)
	}
}

func storedResource(d *custom.Definition) schema.GroupVersionResource {
	return custom.ResourceOf(d, custom.StorageVersion(d))
}

// kinds are all resources that there are now.
func (e *env) kinds() []schema.GroupVersionResource {
	e.customs.mu.Lock()
	defer e.customs.mu.Unlock()
	all := slices.Clone(e.Kinds)
	for r := range e.customs.stop {
		all = append(all, r)
	}
	return all
}

// newDefinitions judges the names of CustomResourceDefinitions, and empties
// those that are being deleted before it lets them go.
func newDefinitions(e *env) *Controller {
	c := definitionController{e}
	return &Controller{
		Name:      "customresourcedefinition",
		Workers:   1, // of two that want one name, one is judged first
		Inputs:    []Input{{definitions, c.keysOf}},
		Custom:    c.keysOfInstance,
		Outputs:   []Output{{definitions, "status"}, {definitions, "metadata.finalizers"}, {schema.GroupVersionResource{Resource: "*"}, "deletions with their definition"}},
		Reconcile: c.reconcile,
	}
}

type definitionController struct{ *env }

// keysOf is a definition, and all of its group where names became free.
func (c definitionController) keysOf(change Change) []Key {
	keys := []Key{keyOf(change.either())}
	old, _ := change.Old.(*custom.Definition)
	now, _ := change.New.(*custom.Definition)
	if old == nil || now != nil && equality.Semantic.DeepEqual(old.Status.AcceptedNames, now.Status.AcceptedNames) {
		return keys
	}
	for _, d := range list[*custom.Definition](c.cache, definitions, "") {
		if d.Spec.Group == old.Spec.Group && d.Name != old.Name {
			keys = append(keys, keyOf(d))
		}
	}
	return keys
}

// keysOfInstance wakes a definition that is being deleted when an instance went.
func (c definitionController) keysOfInstance(r schema.GroupVersionResource, change Change) []Key {
	if change.New != nil {
		return nil
	}
	d, ok := get[*custom.Definition](c.cache, definitions, "", r.GroupResource().String())
	if !ok || d.DeletionTimestamp == nil {
		return nil
	}
	return []Key{keyOf(d)}
}

func (c definitionController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	d, ok := get[*custom.Definition](c.cache, definitions, "", key.Name)
	if !ok {
		return 0, nil
	}
	changed := edit(d)
	var failure error
	switch {
	case d.DeletionTimestamp == nil:
		custom.JudgeNames(changed, list[*custom.Definition](c.cache, definitions, ""), c.Now())
	case slices.Contains(d.Finalizers, custom.Finalizer):
		failure = c.empty(ctx, changed)
	}
	if equality.Semantic.DeepEqual(changed, d) {
		return 0, failure
	}
	_, err := c.update(ctx, definitions, changed, "status")
	return 0, errors.Join(failure, ignoreGone(err))
}

// empty deletes the instances of a definition that is being deleted. Once there
// are none it takes the finalizer off; until then, what goes wakes us.
func (c definitionController) empty(ctx context.Context, d *custom.Definition) error {
	r := storedResource(d)
	say := func(is bool, reason, message string) {
		custom.SetCondition(d, custom.Terminating, is, reason, message, c.Now())
	}
	release := func() {
		d.Finalizers = slices.DeleteFunc(slices.Clone(d.Finalizers), func(f string) bool { return f == custom.Finalizer })
	}
	switch {
	case c.customs.known(r.GroupResource()): // its instances are not of this definition
		say(false, "OverlappingBuiltInResource", "instances overlap with built-in resources in storage")
		release()
		return nil
	case !custom.IsTrue(d, custom.Established):
		say(false, "NeverEstablished", "resource was never established")
		release()
		return nil
	}
	left, err := c.deleteAll(ctx, r)
	switch {
	case err != nil:
		say(true, "InstanceDeletionFailed", fmt.Sprintf("could not issue all deletes: %v", err))
	case left > 0:
		say(true, "InstanceDeletionInProgress", "CustomResource deletion is in progress")
	default:
		say(false, "InstanceDeletionCompleted", "removed all instances")
		release()
	}
	return err
}

// deleteAll deletes all objects of a resource, and says how many are left. It
// lists the store, not the cache, as the deletion of a namespace does.
func (c definitionController) deleteAll(ctx context.Context, r schema.GroupVersionResource) (left int, err error) {
	for range 2 { // what remains after the first time has finalizers
		objects, _, err := c.client.List(ctx, r, "", metav1.ListOptions{ResourceVersion: "0"})
		if apierrors.IsNotFound(err) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("list %s: %w", r.GroupResource(), err)
		}
		if left = len(objects); left == 0 {
			return 0, nil
		}
		var errs []error
		for _, o := range objects {
			if o.GetDeletionTimestamp() == nil {
				errs = append(errs, c.delete(ctx, r, o, metav1.DeleteOptions{}))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return left, err
		}
	}
	return left, nil
}
