package controller

import (
	"context"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"conclave/api/rbac"
)

// newClusterRoles gives aggregated ClusterRoles the rules of those that they
// gather.
func newClusterRoles(e *env) *Controller {
	aggregated := func(Change) (keys []Key) {
		for _, r := range list[*rbacv1.ClusterRole](e.cache, clusterRoles, "") {
			if r.AggregationRule != nil {
				keys = append(keys, keyOf(r))
			}
		}
		return keys
	}
	return &Controller{
		Name:    "clusterrole-aggregation",
		Workers: 1, // roles gather roles that gather roles: each writes once its own are settled
		// Any role may begin or cease to be gathered by any other.
		Inputs:  []Input{{clusterRoles, aggregated}},
		Outputs: []Output{{clusterRoles, "rules of those with an aggregationRule"}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			r, ok := get[*rbacv1.ClusterRole](e.cache, clusterRoles, "", key.Name)
			if !ok || r.AggregationRule == nil || r.DeletionTimestamp != nil {
				return 0, nil
			}
			rules, err := rbac.Aggregate(r, list[*rbacv1.ClusterRole](e.cache, clusterRoles, ""))
			if err != nil || equality.Semantic.DeepEqual(rules, r.Rules) {
				return 0, err
			}
			next := edit(r)
			next.Rules = rules
			_, err = e.update(ctx, clusterRoles, next)
			return 0, ignoreGone(err)
		},
	}
}
