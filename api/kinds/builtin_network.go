package kinds

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// storedRows are kinds that Conclave keeps for others to act on, beside those
// that it acts on itself.
func storedRows() []*Kind {
	return []*Kind{
		specAlone(Kind{
			GVK: corev1.SchemeGroupVersion.WithKind("PodTemplate"), Plural: "podtemplates", Namespaced: true,
			New: empty[corev1.PodTemplate], NewList: empty[corev1.PodTemplateList],
			Default:  one(func(t *corev1.PodTemplate) { defaultPodSpec(&t.Template.Spec) }),
			Validate: check(validatePodTemplate), ValidateUpdate: checkTwo(validatePodTemplateUpdate),
			Warnings: warn(func(t *corev1.PodTemplate) []string {
				return templateWarnings(nil, &t.Template)
			}),
			Columns: podTemplateColumns, Cells: cells(podTemplateCells),
		}, func(t *corev1.PodTemplate) *corev1.PodTemplateSpec { return &t.Template }),
		specAndStatus(Kind{
			GVK: networkingv1.SchemeGroupVersion.WithKind("Ingress"), Plural: "ingresses", ShortNames: []string{"ing"}, Namespaced: true,
			New: empty[networkingv1.Ingress], NewList: empty[networkingv1.IngressList],
			Validate: check(validateIngress), ValidateUpdate: checkTwo(validateIngressUpdate), ValidateStatusUpdate: checkTwo(validateIngressStatus),
			Columns: ingressColumns, Cells: cells(ingressCells),
		}, func(i *networkingv1.Ingress) *networkingv1.IngressSpec { return &i.Spec },
			func(i *networkingv1.Ingress) *networkingv1.IngressStatus { return &i.Status }),
		specAlone(Kind{
			GVK: networkingv1.SchemeGroupVersion.WithKind("IngressClass"), Plural: "ingressclasses",
			New: empty[networkingv1.IngressClass], NewList: empty[networkingv1.IngressClassList],
			Default: one(func(c *networkingv1.IngressClass) {
				if p := c.Spec.Parameters; p != nil {
					defaultPtr(&p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
				}
			}),
			Validate: check(validateIngressClass), ValidateUpdate: checkTwo(validateIngressClassUpdate),
			Columns: ingressClassColumns, Cells: cells(ingressClassCells),
		}, func(c *networkingv1.IngressClass) *networkingv1.IngressClassSpec { return &c.Spec }),
		specAndStatus(Kind{
			GVK: networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR"), Plural: "servicecidrs",
			New: empty[networkingv1.ServiceCIDR], NewList: empty[networkingv1.ServiceCIDRList],
			Validate: check(validateServiceCIDR), ValidateUpdate: checkTwo(validateServiceCIDRUpdate), ValidateStatusUpdate: checkTwo(validateServiceCIDRStatus),
			Columns: serviceCIDRColumns, Cells: cells(serviceCIDRCells),
		}, func(c *networkingv1.ServiceCIDR) *networkingv1.ServiceCIDRSpec { return &c.Spec },
			func(c *networkingv1.ServiceCIDR) *networkingv1.ServiceCIDRStatus { return &c.Status }),
		specAlone(Kind{
			GVK: resourcev1.SchemeGroupVersion.WithKind("DeviceClass"), Plural: "deviceclasses",
			New: empty[resourcev1.DeviceClass], NewList: empty[resourcev1.DeviceClassList],
			Validate: check(validateDeviceClass), ValidateUpdate: checkTwo(validateDeviceClassUpdate),
			Columns: deviceClassColumns, Cells: cells(deviceClassCells),
		}, func(c *resourcev1.DeviceClass) *resourcev1.DeviceClassSpec { return &c.Spec }),
		specAndStatus(Kind{
			GVK: resourcev1.SchemeGroupVersion.WithKind("ResourceClaim"), Plural: "resourceclaims", Namespaced: true,
			New: empty[resourcev1.ResourceClaim], NewList: empty[resourcev1.ResourceClaimList],
			Default:  one(func(c *resourcev1.ResourceClaim) { defaultDeviceClaim(&c.Spec) }),
			Validate: check(validateResourceClaim), ValidateUpdate: checkTwo(validateResourceClaimUpdate), ValidateStatusUpdate: checkTwo(validateResourceClaimStatus),
			Warnings: warn(func(*resourcev1.ResourceClaim) []string {
				return []string{"Conclave allocates no devices yet: the claim is kept, and stays without an allocation unless something else gives it one"}
			}),
			Columns: resourceClaimColumns, Cells: cells(resourceClaimCells),
		}, func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimSpec { return &c.Spec },
			func(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaimStatus { return &c.Status }),
		specAlone(Kind{
			GVK: resourcev1.SchemeGroupVersion.WithKind("ResourceClaimTemplate"), Plural: "resourceclaimtemplates", Namespaced: true,
			New: empty[resourcev1.ResourceClaimTemplate], NewList: empty[resourcev1.ResourceClaimTemplateList],
			Default:  one(func(t *resourcev1.ResourceClaimTemplate) { defaultDeviceClaim(&t.Spec.Spec) }),
			Validate: check(validateResourceClaimTemplate), ValidateUpdate: checkTwo(validateResourceClaimTemplateUpdate),
			Columns: resourceClaimTemplateColumns, Cells: cells(resourceClaimTemplateCells),
		}, func(t *resourcev1.ResourceClaimTemplate) *resourcev1.ResourceClaimTemplateSpec { return &t.Spec }),
		specAlone(Kind{
			GVK: resourcev1.SchemeGroupVersion.WithKind("ResourceSlice"), Plural: "resourceslices",
			New: empty[resourcev1.ResourceSlice], NewList: empty[resourcev1.ResourceSliceList],
			Validate: check(validateResourceSlice), ValidateUpdate: checkTwo(validateResourceSliceUpdate),
			FieldNames: []string{resourcev1.ResourceSliceSelectorNodeName, resourcev1.ResourceSliceSelectorDriver},
			Fields: selectable(func(s *resourcev1.ResourceSlice) fields.Set {
				return fields.Set{resourcev1.ResourceSliceSelectorNodeName: deref(s.Spec.NodeName), resourcev1.ResourceSliceSelectorDriver: s.Spec.Driver}
			}),
			Columns: resourceSliceColumns, Cells: cells(resourceSliceCells),
		}, func(s *resourcev1.ResourceSlice) *resourcev1.ResourceSliceSpec { return &s.Spec }),
	}
}

func deref[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

// defaultDeviceClaim fills in how many devices each request asks for.
func defaultDeviceClaim(spec *resourcev1.ResourceClaimSpec) {
	fill := func(mode *resourcev1.DeviceAllocationMode, count *int64) {
		defaultTo(mode, resourcev1.DeviceAllocationModeExactCount)
		if *mode == resourcev1.DeviceAllocationModeExactCount {
			defaultTo(count, 1)
		}
	}
	tolerate := func(list []resourcev1.DeviceToleration) {
		for i := range list {
			defaultTo(&list[i].Operator, resourcev1.DeviceTolerationOpEqual)
		}
	}
	for i := range spec.Devices.Requests {
		r := &spec.Devices.Requests[i]
		if e := r.Exactly; e != nil {
			fill(&e.AllocationMode, &e.Count)
			tolerate(e.Tolerations)
		}
		for j := range r.FirstAvailable {
			fill(&r.FirstAvailable[j].AllocationMode, &r.FirstAvailable[j].Count)
			tolerate(r.FirstAvailable[j].Tolerations)
		}
	}
}
