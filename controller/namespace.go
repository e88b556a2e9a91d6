package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

// newNamespaces empties the namespaces that are being deleted, pods first, and
// then lets them go.
func newNamespaces(e *env) *Controller {
	c := namespaceController{e}
	controller := &Controller{
		Name:      "namespace",
		Workers:   4,
		Inputs:    []Input{{namespaces, self}},
		Outputs:   []Output{{namespaces, "status"}, {namespaces, "finalize"}, {schema.GroupVersionResource{Resource: "*"}, "deletions with their namespace"}},
		Reconcile: c.reconcile,
	}
	for _, r := range e.Kinds {
		controller.Inputs = append(controller.Inputs, Input{r, c.keysOfContent})
	}
	controller.Custom = func(_ schema.GroupVersionResource, change Change) []Key { return c.keysOfContent(change) }
	return controller
}

type namespaceController struct{ *env }

// keysOfContent wakes a namespace that is being deleted when something in it
// went, came, or lost its last finalizer but one.
func (c namespaceController) keysOfContent(change Change) []Key {
	name := change.either().GetNamespace()
	if name == "" {
		return nil
	}
	ns, ok := get[*corev1.Namespace](c.cache, namespaces, "", name)
	if !ok || ns.DeletionTimestamp == nil {
		return nil
	}
	return []Key{{Name: name}}
}

func (c namespaceController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	ns, ok := get[*corev1.Namespace](c.cache, namespaces, "", key.Name)
	if !ok || ns.DeletionTimestamp == nil {
		return 0, nil
	}
	if !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return 0, nil // ours is done; others hold it
	}
	behind, unknown, failure := c.emptyBehind(ctx, ns.Name) // first: its server may be a pod of this namespace
	left, err := c.empty(ctx, ns.Name)
	left, failure = append(left, behind...), errors.Join(failure, err)
	changed := edit(ns)
	changed.Status.Phase = corev1.NamespaceTerminating
	changed.Status.Conditions = namespaceConditions(ns.Status.Conditions, left, unknown, failure, c.Now())
	if !equality.Semantic.DeepEqual(changed.Status, ns.Status) {
		made, err := c.update(ctx, namespaces, changed, "status")
		if apierrors.IsNotFound(err) {
			return 0, nil
		}
		if err != nil {
			return 0, errors.Join(failure, err)
		}
		ns = made.(*corev1.Namespace)
	}
	switch {
	case failure != nil:
		return 0, failure
	case len(unknown) > 0 || len(behind) > 0:
		return askFailed, nil // nobody tells what happens there
	case len(left) > 0:
		return 0, nil // what goes wakes us
	}
	done := edit(ns)
	done.Spec.Finalizers = slices.DeleteFunc(done.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	_, err = c.update(ctx, namespaces, done, "finalize")
	if apierrors.IsNotFound(err) {
		err = nil
	}
	// The API server deletes a namespace whose last finalizer went, if it has
	// no metadata.finalizers; if it is still there, a deletion says so.
	now, peekErr := c.peek(ctx, namespaces, "", ns.Name)
	switch {
	case err != nil || peekErr != nil:
		return 0, errors.Join(err, peekErr)
	case now == nil || now.GetUID() != ns.UID:
		c.refresh(ctx, namespaces, ns)
		return 0, nil
	case len(now.GetFinalizers()) == 0:
		return 0, c.delete(ctx, namespaces, now, metav1.DeleteOptions{})
	}
	return 0, nil
}

// emptyBehind deletes what is kept in a namespace by API servers behind ours.
func (c namespaceController) emptyBehind(ctx context.Context, namespace string) (found []remains, unknown []string, err error) {
	if c.EmptyBehind == nil {
		return nil, nil, nil
	}
	left, unknown, err := c.EmptyBehind(ctx, namespace)
	for _, r := range left {
		found = append(found, remains{r.Resource, r.Count, r.Finalizers})
	}
	return found, unknown, err
}

// remains is what is left of one resource in a namespace.
type remains struct {
	resource   schema.GroupVersionResource
	count      int
	finalizers map[string]int
}

// empty deletes what a namespace holds and tells what is left: first the pods,
// and only when those are gone everything else, so that what a pod needs to
// end in order outlives it.
//
// It lists the store, not the cache: a namespace must not go before its last
// object, and the cache may not show that one yet.
func (c namespaceController) empty(ctx context.Context, namespace string) ([]remains, error) {
	left, err := c.emptyOf(ctx, pods, namespace)
	if err != nil || left != nil {
		found := []remains{}
		if left != nil {
			found = append(found, *left)
		}
		return found, err
	}
	var found []remains
	var errs []error
	for _, r := range c.kinds() {
		if r == pods {
			continue
		}
		left, err := c.emptyOf(ctx, r, namespace)
		if left != nil {
			found = append(found, *left)
		}
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

func (c namespaceController) emptyOf(ctx context.Context, r schema.GroupVersionResource, namespace string) (*remains, error) {
	if namespaced, known := c.cache.scope(r); known && !namespaced {
		return nil, nil
	}
	objects, err := c.inNamespace(ctx, r, namespace)
	if err != nil || len(objects) == 0 {
		return nil, err
	}
	var errs []error
	background := metav1.DeletePropagationBackground
	for _, o := range objects {
		if o.GetDeletionTimestamp() == nil {
			errs = append(errs, c.delete(ctx, r, o, metav1.DeleteOptions{PropagationPolicy: &background}))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	objects, err = c.inNamespace(ctx, r, namespace)
	if err != nil || len(objects) == 0 {
		return nil, err
	}
	left := &remains{resource: r, count: len(objects), finalizers: map[string]int{}}
	for _, o := range objects {
		for _, f := range o.GetFinalizers() {
			left.finalizers[f]++
		}
	}
	return left, nil
}

func (c namespaceController) inNamespace(ctx context.Context, r schema.GroupVersionResource, namespace string) ([]api.Object, error) {
	objects, _, err := c.client.List(ctx, r, namespace, metav1.ListOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) || apierrors.IsBadRequest(err) || apierrors.IsMethodNotSupported(err) {
		return nil, nil // not a resource of namespaces
	}
	if err != nil {
		return nil, fmt.Errorf("list %s in namespace %s: %w", r.Resource, namespace, err)
	}
	return slices.DeleteFunc(objects, func(o api.Object) bool { return o.GetNamespace() != namespace }), nil
}

// namespaceConditions tell users why a namespace is not gone yet.
func namespaceConditions(old []corev1.NamespaceCondition, left []remains, unknown []string, failure error, now time.Time) []corev1.NamespaceCondition {
	undiscovered := fmt.Sprintf("Discovery failed for some groups, %d failing: unable to retrieve the complete list of server APIs: %s", len(unknown), strings.Join(unknown, ", "))
	type verdict struct {
		t                       corev1.NamespaceConditionType
		bad                     bool
		badReason, goodReason   string
		badMessage, goodMessage string
	}
	var content, finalizers []string
	count := map[string]int{}
	for _, r := range left {
		name := r.resource.Resource + "."
		if r.resource.Group != "" {
			name += r.resource.Group
		}
		content = append(content, fmt.Sprintf("%s has %d resource instances", name, r.count))
		for f, n := range r.finalizers {
			count[f] += n
		}
	}
	slices.Sort(content)
	for _, f := range slices.Sorted(maps.Keys(count)) {
		finalizers = append(finalizers, fmt.Sprintf("%s in %d resource instances", f, count[f]))
	}
	failed := ""
	if failure != nil {
		failed = "Failed to delete all resource types, " + fmt.Sprintf("%d remaining: %v", max(len(left), 1), rootCause(failure))
	}
	verdicts := []verdict{
		{corev1.NamespaceDeletionDiscoveryFailure, len(unknown) > 0, "DiscoveryFailed", "ResourcesDiscovered", undiscovered, "All resources successfully discovered"},
		{corev1.NamespaceDeletionGVParsingFailure, false, "GroupVersionParsingFailed", "ParsedGroupVersions", "", "All legacy kube types successfully parsed"},
		{corev1.NamespaceDeletionContentFailure, failure != nil, "ContentDeletionFailed", "ContentDeleted", failed, "All content successfully deleted, may be waiting on finalization"},
		{corev1.NamespaceContentRemaining, len(content) > 0, "SomeResourcesRemain", "ContentRemoved", "Some resources are remaining: " + strings.Join(content, ", "), "All content successfully removed"},
		{corev1.NamespaceFinalizersRemaining, len(finalizers) > 0, "SomeFinalizersRemain", "ContentHasNoFinalizers", "Some content in the namespace has finalizers remaining: " + strings.Join(finalizers, ", "), "All content-preserving finalizers finished"},
	}
	found := slices.Clone(old)
	for _, v := range verdicts {
		c := corev1.NamespaceCondition{Type: v.t, Status: corev1.ConditionFalse, Reason: v.goodReason, Message: v.goodMessage, LastTransitionTime: metav1.NewTime(now).Rfc3339Copy()}
		if v.bad {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, v.badReason, v.badMessage
		}
		i := slices.IndexFunc(found, func(o corev1.NamespaceCondition) bool { return o.Type == v.t })
		switch {
		case i < 0:
			found = append(found, c)
		default:
			if found[i].Status == c.Status {
				c.LastTransitionTime = found[i].LastTransitionTime
			}
			found[i] = c
		}
	}
	return found
}
