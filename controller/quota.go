package controller

import (
	"context"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
	"conclave/api/kinds"
)

// chargeTakes is how long an object may take to be seen after it was charged
// to a quota: for so long after the last charge nothing is given back.
const chargeTakes = 2 * time.Second

// newQuotas keeps status.hard and status.used of each ResourceQuota. The API
// server raises status.used with each object that it admits, before the object
// is there; so this controller lowers it only when no charge was made for a
// while, lest it give back what is about to be used.
func newQuotas(e *env) *Controller {
	c := &quotaController{env: e, charged: map[Key]charge{}}
	controller := &Controller{
		Name: "resourcequota", Workers: 2,
		Inputs:    []Input{{quotas, self}},
		Outputs:   []Output{{quotas, "status"}},
		Reconcile: c.reconcile,
	}
	for _, r := range e.Kinds {
		if r != events && r != quotas {
			controller.Inputs = append(controller.Inputs, Input{r, func(change Change) []Key { return c.keysOf(r, change) }})
		}
	}
	controller.Custom = c.keysOf
	return controller
}

type quotaController struct {
	*env
	mu sync.Mutex
	// charged is when each quota was last written by somebody else.
	charged map[Key]charge
}

type charge struct {
	version string
	at      time.Time
}

// keysOf are the quotas of a namespace where something came, went or, if it is
// of a kind whose use may change, changed.
func (c *quotaController) keysOf(r schema.GroupVersionResource, change Change) (keys []Key) {
	o := change.either()
	if o.GetNamespace() == "" {
		return nil
	}
	if change.Old != nil && change.New != nil {
		switch r {
		case pods:
			old, now := change.Old.(*corev1.Pod), change.New.(*corev1.Pod)
			if old.Status.Phase == now.Status.Phase && (old.DeletionTimestamp == nil) == (now.DeletionTimestamp == nil) && equality.Semantic.DeepEqual(old.Spec, now.Spec) {
				return nil
			}
		case services, claims:
		default:
			return nil
		}
	}
	for _, q := range list[*corev1.ResourceQuota](c.cache, quotas, o.GetNamespace()) {
		keys = append(keys, keyOf(q))
	}
	return keys
}

func (c *quotaController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	q, ok := get[*corev1.ResourceQuota](c.cache, quotas, key.Namespace, key.Name)
	if !ok {
		c.mu.Lock()
		delete(c.charged, key)
		c.mu.Unlock()
		return 0, nil
	}
	now := c.Now()
	quiet := c.quietFor(key, q.ResourceVersion, now)
	status, held := quotaStatus(q, c.used(q, now), quiet >= chargeTakes)
	again := time.Duration(0)
	if held {
		again = max(chargeTakes-quiet, time.Millisecond)
	}
	if equality.Semantic.DeepEqual(q.Status, status) {
		return again, nil
	}
	q = edit(q)
	q.Status = status
	made, err := c.update(ctx, quotas, q, "status")
	if err != nil {
		return again, ignoreGone(err)
	}
	c.mu.Lock()
	if was := c.charged[key]; was.version == q.ResourceVersion {
		c.charged[key] = charge{made.GetResourceVersion(), was.at} // our own write is no charge
	}
	c.mu.Unlock()
	return again, nil
}

// quietFor is for how long a quota is as it is but for our own writes.
func (c *quotaController) quietFor(key Key, version string, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.charged[key].version != version {
		c.charged[key] = charge{version, now}
	}
	return now.Sub(c.charged[key].at)
}

// used is what the objects of a quota's namespace use of what it limits.
func (c *quotaController) used(q *corev1.ResourceQuota, now time.Time) corev1.ResourceList {
	used := corev1.ResourceList{}
	for name := range q.Spec.Hard {
		used[name] = *resource.NewQuantity(0, resource.DecimalSI)
	}
	for _, r := range c.kinds() {
		kind := r.GroupResource().String()
		concerns := func(name corev1.ResourceName) bool { return kinds.QuotaConcerns(name, kind) }
		var names []corev1.ResourceName
		for name := range q.Spec.Hard {
			if concerns(name) {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			continue
		}
		for _, o := range list[api.Object](c.cache, r, q.Namespace) {
			if !kinds.QuotaMatches(q, o) {
				continue
			}
			for name, n := range kinds.QuotaUsage(kind, o, now) {
				if slices.Contains(names, name) {
					sum := used[name]
					sum.Add(n)
					used[name] = sum
				}
			}
		}
	}
	return used
}

// quotaStatus is the status for what is used; held says that something is used
// less than the status says, which may not be lowered yet.
func quotaStatus(q *corev1.ResourceQuota, used corev1.ResourceList, lower bool) (status corev1.ResourceQuotaStatus, held bool) {
	status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: used}
	for name, n := range used {
		if was, ok := q.Status.Used[name]; ok && was.Cmp(n) > 0 && !lower {
			used[name], held = was, true
		}
	}
	return status, held
}
