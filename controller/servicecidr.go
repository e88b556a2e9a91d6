package controller

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// allocatorsLearn is how long a server may still give out addresses of a range
// whose deletion it has not heard of.
const allocatorsLearn = 10 * time.Second

// newServiceCIDRs says of each ServiceCIDR that addresses may be given out of
// it, and lets none go while a service has an address that no other range has.
func newServiceCIDRs(e *env) *Controller {
	c := serviceCIDRController{e}
	return &Controller{
		Name: "service-cidr",
		Inputs: []Input{
			{serviceCIDRs, func(change Change) []Key { return append(self(change), c.going()...) }},
			{ipAddresses, func(change Change) []Key {
				if change.New != nil {
					return nil
				}
				return c.going()
			}},
		},
		Outputs:   []Output{{serviceCIDRs, "status"}, {serviceCIDRs, "finalizer " + api.ServiceCIDRFinalizer}},
		Reconcile: c.reconcile,
	}
}

type serviceCIDRController struct{ *env }

// going are the ranges that wait to be deleted.
func (c serviceCIDRController) going() (keys []Key) {
	for _, o := range list[*networkingv1.ServiceCIDR](c.cache, serviceCIDRs, "") {
		if o.DeletionTimestamp != nil {
			keys = append(keys, keyOf(o))
		}
	}
	return keys
}

func (c serviceCIDRController) reconcile(ctx context.Context, key Key) (time.Duration, error) {
	o, ok := get[*networkingv1.ServiceCIDR](c.cache, serviceCIDRs, "", key.Name)
	if !ok {
		return 0, nil
	}
	has := slices.Contains(o.Finalizers, api.ServiceCIDRFinalizer)
	if o.DeletionTimestamp == nil {
		if !has {
			o = edit(o)
			o.Finalizers = append(o.Finalizers, api.ServiceCIDRFinalizer)
			made, err := c.update(ctx, serviceCIDRs, o)
			if err != nil {
				return 0, ignoreGone(err)
			}
			if o, ok = made.(*networkingv1.ServiceCIDR); !ok {
				return 0, fmt.Errorf("a ServiceCIDR is a %T", made)
			}
		}
		return 0, c.say(ctx, o, metav1.Condition{Status: metav1.ConditionTrue, Message: "Kubernetes Service CIDR is ready"})
	}
	if !has {
		return 0, nil
	}
	if !freed(o, list[*networkingv1.ServiceCIDR](c.cache, serviceCIDRs, ""), list[*networkingv1.IPAddress](c.cache, ipAddresses, "")) {
		return 0, c.say(ctx, o, metav1.Condition{
			Status: metav1.ConditionFalse, Reason: networkingv1.ServiceCIDRReasonTerminating,
			Message: "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
		})
	}
	if left := o.DeletionTimestamp.Add(allocatorsLearn).Sub(c.Now()); left > 0 && left <= allocatorsLearn {
		return left, nil
	}
	o = edit(o)
	o.Finalizers = slices.DeleteFunc(o.Finalizers, func(f string) bool { return f == api.ServiceCIDRFinalizer })
	_, err := c.update(ctx, serviceCIDRs, o)
	return 0, ignoreGone(err)
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// say sets the condition Ready.
func (c serviceCIDRController) say(ctx context.Context, o *networkingv1.ServiceCIDR, ready metav1.Condition) error {
	changed := edit(o)
	ready.Type, ready.LastTransitionTime = networkingv1.ServiceCIDRConditionReady, metav1.NewTime(c.Now()).Rfc3339Copy()
	meta.SetStatusCondition(&changed.Status.Conditions, ready)
	if equality.Semantic.DeepEqual(changed.Status, o.Status) {
		return nil
	}
	_, err := c.update(ctx, serviceCIDRs, changed, "status")
	return ignoreGone(err)
}

// freed says that no address lies in a range's prefixes and in no other's.
func freed(o *networkingv1.ServiceCIDR, all []*networkingv1.ServiceCIDR, addresses []*networkingv1.IPAddress) bool {
	var others []*networkingv1.ServiceCIDR
	for _, other := range all {
		if other.Name != o.Name && other.DeletionTimestamp == nil {
			others = append(others, other)
		}
	}
	return !slices.ContainsFunc(addresses, func(ip *networkingv1.IPAddress) bool {
		addr, err := netip.ParseAddr(ip.Name)
		return err == nil && inRanges(addr, o) && !slices.ContainsFunc(others, func(other *networkingv1.ServiceCIDR) bool { return inRanges(addr, other) })
	})
}

func inRanges(addr netip.Addr, o *networkingv1.ServiceCIDR) bool {
	return slices.ContainsFunc(o.Spec.CIDRs, func(text string) bool {
		p, err := netip.ParsePrefix(text)
		return err == nil && p.Contains(addr)
	})
}
