package api

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/kinds"
)

// An object that a quota counts is charged to it before it is written: the
// quota's status.used goes up by a write that names the version on which it was
// decided, so that of writers at once, on whichever masters, only so many get
// through as there is room for. What is charged and then not written, and what
// is deleted, the controller gives back: it alone lowers status.used, and only
// some time after the last charge (see controller/quota.go).

// charges are tried so often: each lost race is another writer's success.
const chargeTries = 100

// chargeQuotas charges what obj uses more than old, which may be nil.
func (c *call) chargeQuotas(ctx context.Context, obj, old Object, dryRun bool) error {
	if !c.res.Namespaced {
		return nil
	}
	if old != nil && c.res.gvr != pods && c.res.gvr != services && c.res.gvr != volumeClaims {
		return nil // all that is counted of others is that they are
	}
	synced := false
	sync := func() error {
		synced = true
		return storageError(c.s.cfg.Storage.Sync(ctx), c.res.gr(), obj.GetName())
	}
	var done []string // quotas that are charged
	for range chargeTries {
		err := c.chargeOnce(ctx, obj, old, dryRun, &done)
		switch {
		case err == nil:
			return nil
		case apierrors.IsConflict(err):
			if err := sync(); err != nil {
				return err
			}
		case !synced: // what this replica knows may be old
			if err := sync(); err != nil {
				return err
			}
		default:
			return err
		}
	}
	return apierrors.NewTimeoutError("too many writers charge the quotas of namespace "+obj.GetNamespace(), 1)
}

func (c *call) chargeOnce(ctx context.Context, obj, old Object, dryRun bool, done *[]string) error {
	records, _ := c.s.cfg.Storage.List(resourceQuotas.GroupResource().String(), obj.GetNamespace())
	if len(records) == 0 {
		return nil
	}
	kind, now := c.res.Resource(), c.s.cfg.Now()
	used := kinds.QuotaUsage(kind, obj, now)
	if old != nil {
		for name, q := range kinds.QuotaUsage(kind, old, now) {
			left := used[name].DeepCopy()
			left.Sub(q)
			used[name] = left
		}
	}
	var charged []*corev1.ResourceQuota
	for _, rec := range records {
		q, ok := rec.Object().(*corev1.ResourceQuota)
		if !ok || slices.Contains(*done, q.Name) || q.DeletionTimestamp != nil || !kinds.QuotaMatches(q, obj) {
			continue
		}
		more, err := c.afterCharge(q, kind, used, obj, old)
		if err != nil {
			return err
		}
		if more != nil {
			charged = append(charged, more)
		}
	}
	if dryRun {
		return nil
	}
	for _, q := range charged {
		if _, err := c.s.own().Update(ctx, resourceQuotas, q.Namespace, q, metav1.UpdateOptions{}, "status"); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		*done = append(*done, q.Name)
	}
	return nil
}

// afterCharge is a quota with more used; nil if it does not count the object.
func (c *call) afterCharge(q *corev1.ResourceQuota, kind string, used corev1.ResourceList, obj, old Object) (*corev1.ResourceQuota, error) {
	refuse := func(format string, args ...any) (*corev1.ResourceQuota, error) {
		return nil, forbiddenObject(c.res.gr(), obj.GetName(), fmt.Sprintf(format, args...))
	}
	delta := corev1.ResourceList{}
	for name := range q.Status.Hard {
		if n, ok := used[name]; ok && kinds.QuotaConcerns(name, kind) && !n.IsZero() {
			delta[name] = n
		}
	}
	if pod, ok := obj.(*corev1.Pod); ok && old == nil {
		if lacks := kinds.QuotaLacks(pod, q.Status.Hard); len(lacks) > 0 {
			var parts []string
			for _, name := range slices.Sorted(maps.Keys(lacks)) {
				parts = append(parts, string(name)+" for: "+strings.Join(lacks[name], ","))
			}
			return refuse("failed quota: %s: must specify %s", q.Name, strings.Join(parts, "; "))
		}
	}
	if len(delta) == 0 {
		return nil, nil
	}
	var unknown []string
	for name := range delta {
		if _, ok := q.Status.Used[name]; !ok {
			unknown = append(unknown, string(name))
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return refuse("status unknown for quota: %s, resources: %s", q.Name, strings.Join(unknown, ","))
	}
	next := q.DeepCopy()
	over := corev1.ResourceList{}
	for name, n := range delta {
		sum := next.Status.Used[name].DeepCopy()
		sum.Add(n)
		next.Status.Used[name] = sum
		if hard := q.Status.Hard[name]; n.Sign() > 0 && sum.Cmp(hard) > 0 {
			over[name] = n
		}
	}
	if len(over) > 0 {
		return refuse("exceeded quota: %s, requested: %s, used: %s, limited: %s", q.Name, listed(over, over), listed(q.Status.Used, over), listed(q.Status.Hard, over))
	}
	// Less is not given back here: the controller does, when it is true.
	for name, n := range delta {
		if n.Sign() < 0 {
			next.Status.Used[name] = q.Status.Used[name]
		}
	}
	if apiequality.Semantic.DeepEqual(next.Status.Used, q.Status.Used) {
		return nil, nil
	}
	return next, nil
}

// listed is some entries of a list, in order.
func listed(list, names corev1.ResourceList) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(names)) {
		q := list[name]
		parts = append(parts, string(name)+"="+q.String())
	}
	return strings.Join(parts, ",")
}
