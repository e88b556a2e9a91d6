package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	amount "k8s.io/apimachinery/pkg/api/resource"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	helper "k8s.io/component-helpers/resource"
)

// limitAnnotation tells what a LimitRange filled in.
const limitAnnotation = "kubernetes.io/limit-ranger"

// limitRanges of a namespace, by name.
func (s *Server) limitRanges(namespace string) (all []*corev1.LimitRange) {
	records, _ := s.cfg.Storage.List(limitRangeKind.GroupResource().String(), namespace)
	for _, rec := range records {
		if l, ok := rec.Object().(*corev1.LimitRange); ok {
			all = append(all, l)
		}
	}
	slices.SortFunc(all, func(a, b *corev1.LimitRange) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// fillLimits gives a new pod's containers the requests and limits that its
// namespace has for those that do not say.
func (c *call) fillLimits(pod *corev1.Pod) {
	for _, l := range c.s.limitRanges(pod.Namespace) {
		var said []string
		for _, item := range l.Spec.Limits {
			if item.Type != corev1.LimitTypeContainer {
				continue
			}
			for _, of := range []struct {
				kind string
				list []corev1.Container
			}{{"container", pod.Spec.Containers}, {"init container", pod.Spec.InitContainers}} {
				for i := range of.list {
					ct := &of.list[i]
					if names := fillList(&ct.Resources.Requests, item.DefaultRequest); names != "" {
						said = append(said, fmt.Sprintf("%s request for %s %s", names, of.kind, ct.Name))
					}
					if names := fillList(&ct.Resources.Limits, item.Default); names != "" {
						said = append(said, fmt.Sprintf("%s limit for %s %s", names, of.kind, ct.Name))
					}
				}
			}
		}
		if len(said) > 0 {
			if pod.Annotations == nil {
				pod.Annotations = map[string]string{}
			}
			pod.Annotations[limitAnnotation] = "LimitRanger plugin set: " + strings.Join(said, "; ")
		}
	}
}

// fillList adds what is missing and names it.
func fillList(to *corev1.ResourceList, from corev1.ResourceList) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(from)) {
		if _, ok := (*to)[name]; ok {
			continue
		}
		if *to == nil {
			*to = corev1.ResourceList{}
		}
		(*to)[name] = from[name].DeepCopy()
		names = append(names, string(name))
	}
	return strings.Join(names, ", ")
}

// checkLimits refuses a pod or a claim that asks for more or less than its
// namespace lets it.
func (c *call) checkLimits(obj Object) error {
	for _, l := range c.s.limitRanges(obj.GetNamespace()) {
		var errs []error
		for i := range l.Spec.Limits {
			item := &l.Spec.Limits[i]
			switch o := obj.(type) {
			case *corev1.Pod:
				if item.Type == corev1.LimitTypeContainer {
					for _, ct := range slices.Concat(o.Spec.Containers, o.Spec.InitContainers) {
						errs = append(errs, exceeds(item, ct.Resources.Requests, ct.Resources.Limits)...)
					}
				}
				if item.Type == corev1.LimitTypePod {
					errs = append(errs, exceeds(item, helper.PodRequests(o, helper.PodResourcesOptions{}), helper.PodLimits(o, helper.PodResourcesOptions{}))...)
				}
			case *corev1.PersistentVolumeClaim:
				if item.Type != corev1.LimitTypePersistentVolumeClaim {
					continue
				}
				requests := o.Spec.Resources.Requests
				for _, name := range slices.Sorted(maps.Keys(item.Min)) {
					errs = append(errs, tooLittle(item.Type, name, item.Min[name], requests, nil))
				}
				for _, name := range slices.Sorted(maps.Keys(item.Max)) {
					// A claim has no limit: its request is one.
					if q, most := requests[name], item.Max[name]; q.Cmp(most) > 0 {
						errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, item.Type, most.String(), q.String()))
					}
				}
			}
		}
		if err := utilerrors.NewAggregate(errs); err != nil {
			return forbiddenObject(c.res.gr(), obj.GetName(), err.Error())
		}
	}
	return nil
}

func exceeds(item *corev1.LimitRangeItem, requests, limits corev1.ResourceList) (errs []error) {
	for _, name := range slices.Sorted(maps.Keys(item.Min)) {
		errs = append(errs, tooLittle(item.Type, name, item.Min[name], requests, limits))
	}
	for _, name := range slices.Sorted(maps.Keys(item.Max)) {
		errs = append(errs, tooMuch(item.Type, name, item.Max[name], requests, limits))
	}
	for _, name := range slices.Sorted(maps.Keys(item.MaxLimitRequestRatio)) {
		errs = append(errs, tooFar(item.Type, name, item.MaxLimitRequestRatio[name], requests, limits))
	}
	return errs
}

func tooLittle(of corev1.LimitType, name corev1.ResourceName, least amount.Quantity, requests, limits corev1.ResourceList) error {
	request, asks := requests[name]
	limit, limited := limits[name]
	switch {
	case !asks:
		return fmt.Errorf("minimum %s usage per %s is %s.  No request is specified", name, of, least.String())
	case request.Cmp(least) < 0:
		return fmt.Errorf("minimum %s usage per %s is %s, but request is %s", name, of, least.String(), request.String())
	case limited && limit.Cmp(least) < 0:
		return fmt.Errorf("minimum %s usage per %s is %s, but limit is %s", name, of, least.String(), limit.String())
	}
	return nil
}

func tooMuch(of corev1.LimitType, name corev1.ResourceName, most amount.Quantity, requests, limits corev1.ResourceList) error {
	request, asks := requests[name]
	limit, limited := limits[name]
	switch {
	case !limited:
		return fmt.Errorf("maximum %s usage per %s is %s.  No limit is specified", name, of, most.String())
	case limit.Cmp(most) > 0:
		return fmt.Errorf("maximum %s usage per %s is %s, but limit is %s", name, of, most.String(), limit.String())
	case asks && request.Cmp(most) > 0:
		return fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, of, most.String(), request.String())
	}
	return nil
}

func tooFar(of corev1.LimitType, name corev1.ResourceName, most amount.Quantity, requests, limits corev1.ResourceList) error {
	request, asks := requests[name]
	limit, limited := limits[name]
	switch {
	case !asks || request.IsZero():
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, of, most.String())
	case !limited || limit.IsZero():
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", name, of, most.String())
	}
	if ratio := limit.AsApproximateFloat64() / request.AsApproximateFloat64(); ratio > most.AsApproximateFloat64() {
		return fmt.Errorf("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, of, most.String(), ratio)
	}
	return nil
}
