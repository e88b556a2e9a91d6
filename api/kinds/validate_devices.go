package kinds

import (
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The published types carry rules of their own, generated; calling them would
// cost the binary half a megabyte. These are the same, but for the deepest
// parts of slices, which only drivers write.

// atMost says TooMany of a list that is longer.
func (e *problems) atMost(p *field.Path, n, most int) bool {
	if n > most {
		e.add(field.TooMany(p, n, most))
	}
	return n <= most
}

func (e *problems) selectors(p *field.Path, list []resourcev1.DeviceSelector) {
	if !e.atMost(p, len(list), resourcev1.DeviceSelectorsMaxSize) {
		return
	}
	for i, s := range list {
		if s.CEL == nil {
			e.required(p.Index(i).Child("cel"), "")
			continue
		}
		at := p.Index(i).Child("cel", "expression")
		if !e.nonEmpty(at, s.CEL.Expression) {
			continue
		}
		if len(s.CEL.Expression) > resourcev1.CELSelectorExpressionMaxLength {
			e.add(field.TooLong(at, "", resourcev1.CELSelectorExpressionMaxLength))
		}
	}
}

func (e *problems) deviceConfig(p *field.Path, c *resourcev1.DeviceConfiguration) {
	if c.Opaque == nil {
		e.required(p.Child("opaque"), "")
		return
	}
	e.driver(p.Child("opaque", "driver"), c.Opaque.Driver)
	if len(c.Opaque.Parameters.Raw) == 0 && c.Opaque.Parameters.Object == nil {
		e.required(p.Child("opaque", "parameters"), "")
	}
}

func (e *problems) driver(p *field.Path, name string) {
	if !e.nonEmpty(p, name) {
		return
	}
	if len(name) > resourcev1.DriverNameMaxLength {
		e.add(field.TooLong(p, "", resourcev1.DriverNameMaxLength))
	}
	e.dnsSubdomain(p, name)
}

func validateDeviceClass(c *resourcev1.DeviceClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.deviceClass(c)
	return e.list()
}

func validateDeviceClassUpdate(c, old *resourcev1.DeviceClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.deviceClass(c)
	return e.list()
}

func (e *problems) deviceClass(c *resourcev1.DeviceClass) {
	e.atMost(specPath.Child("config"), len(c.Spec.Config), resourcev1.DeviceConfigMaxSize)
	if name := c.Spec.ExtendedResourceName; name != nil && !isExtendedResource(corev1.ResourceName(*name)) {
		e.invalid(specPath.Child("extendedResourceName"), *name, "must be a valid extended resource name")
	}
	e.selectors(specPath.Child("selectors"), c.Spec.Selectors)
	for i := range c.Spec.Config {
		e.deviceConfig(specPath.Child("config").Index(i), &c.Spec.Config[i].DeviceConfiguration)
	}
}

func validateResourceClaim(c *resourcev1.ResourceClaim) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.deviceClaim(specPath, &c.Spec)
	return e.list()
}

func validateResourceClaimUpdate(c, old *resourcev1.ResourceClaim) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.immutable(specPath, c.Spec, old.Spec)
	return e.list()
}

func validateResourceClaimStatus(c, old *resourcev1.ResourceClaim) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	p := field.NewPath("status")
	e.atMost(p.Child("reservedFor"), len(c.Status.ReservedFor), resourcev1.ResourceClaimReservedForMaxSize)
	if old.Status.Allocation != nil && c.Status.Allocation != nil {
		e.immutable(p.Child("allocation"), c.Status.Allocation, old.Status.Allocation)
	}
	if len(c.Status.ReservedFor) > 0 && c.Status.Allocation == nil {
		e.forbidden(p.Child("reservedFor"), "may not be specified when `allocated` is not set")
	}
	for i, r := range c.Status.ReservedFor {
		at := p.Child("reservedFor").Index(i)
		e.nonEmpty(at.Child("resource"), r.Resource)
		e.nonEmpty(at.Child("name"), r.Name)
		e.nonEmpty(at.Child("uid"), string(r.UID))
	}
	return e.list()
}

func (e *problems) deviceClaim(p *field.Path, spec *resourcev1.ResourceClaimSpec) {
	devices := p.Child("devices")
	if !e.atMost(devices.Child("requests"), len(spec.Devices.Requests), resourcev1.DeviceRequestsMaxSize) ||
		!e.atMost(devices.Child("constraints"), len(spec.Devices.Constraints), resourcev1.DeviceConstraintsMaxSize) ||
		!e.atMost(devices.Child("config"), len(spec.Devices.Config), resourcev1.DeviceConfigMaxSize) {
		return
	}
	names := map[string]bool{}
	for i := range spec.Devices.Requests {
		r, at := &spec.Devices.Requests[i], devices.Child("requests").Index(i)
		if e.nonEmpty(at.Child("name"), r.Name) {
			e.dnsLabel(at.Child("name"), r.Name)
		}
		if names[r.Name] {
			e.duplicate(at, r.Name)
		}
		names[r.Name] = true
		e.atMost(at.Child("firstAvailable"), len(r.FirstAvailable), resourcev1.FirstAvailableDeviceRequestMaxSize)
		switch {
		case r.Exactly == nil && len(r.FirstAvailable) == 0:
			e.required(at, "exactly one of `exactly` or `firstAvailable` is required")
		case r.Exactly != nil && len(r.FirstAvailable) > 0:
			e.invalid(at, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set")
		case r.Exactly != nil:
			e.deviceTolerations(at.Child("exactly", "tolerations"), r.Exactly.Tolerations)
			e.deviceRequest(at.Child("exactly"), r.Exactly.DeviceClassName, r.Exactly.Selectors, r.Exactly.AllocationMode, r.Exactly.Count)
		}
		for j, sub := range r.FirstAvailable {
			at := at.Child("firstAvailable").Index(j)
			if e.nonEmpty(at.Child("name"), sub.Name) {
				e.dnsLabel(at.Child("name"), sub.Name)
			}
			names[r.Name+"/"+sub.Name] = true
			e.deviceTolerations(at.Child("tolerations"), sub.Tolerations)
			e.deviceRequest(at, sub.DeviceClassName, sub.Selectors, sub.AllocationMode, sub.Count)
		}
	}
	known := func(at *field.Path, list []string) {
		for i, name := range list {
			if !names[name] {
				e.invalid(at.Child("requests").Index(i), name, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
			}
		}
	}
	for i, c := range spec.Devices.Constraints {
		known(devices.Child("constraints").Index(i), c.Requests)
	}
	for i := range spec.Devices.Config {
		c, at := &spec.Devices.Config[i], devices.Child("config").Index(i)
		known(at, c.Requests)
		e.deviceConfig(at, &c.DeviceConfiguration)
	}
}

func (e *problems) deviceTolerations(p *field.Path, list []resourcev1.DeviceToleration) {
	e.atMost(p, len(list), resourcev1.DeviceTolerationsMaxLength)
	for i, t := range list {
		at := p.Index(i)
		if t.Key != "" {
			e.qualifiedName(at.Child("key"), t.Key)
		}
		oneOf(e, at.Child("operator"), t.Operator, resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)
		if t.Operator == resourcev1.DeviceTolerationOpExists && t.Value != "" {
			e.invalid(at.Child("value"), t.Value, "must be empty for operator `Exists`")
		}
		maybeOneOf(e, at.Child("effect"), t.Effect, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNoExecute)
	}
}

func (e *problems) deviceRequest(p *field.Path, class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64) {
	if e.nonEmpty(p.Child("deviceClassName"), class) {
		e.dnsSubdomain(p.Child("deviceClassName"), class)
	}
	e.selectors(p.Child("selectors"), selectors)
	oneOf(e, p.Child("allocationMode"), mode, resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)
	switch at := p.Child("count"); {
	case mode == resourcev1.DeviceAllocationModeAll && count != 0:
		e.invalid(at, count, "must not be specified when allocationMode is 'All'")
	case mode == resourcev1.DeviceAllocationModeExactCount && count <= 0:
		e.invalid(at, count, "must be greater than zero")
	}
}

func validateResourceClaimTemplate(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
	e := metadata(&t.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.labels(specPath.Child("metadata", "labels"), t.Spec.Labels)
	e.add(apivalidation.ValidateAnnotations(t.Spec.Annotations, specPath.Child("metadata", "annotations"))...)
	e.deviceClaim(specPath.Child("spec"), &t.Spec.Spec)
	return e.list()
}

func validateResourceClaimTemplateUpdate(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
	e := metadata(&t.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.immutable(specPath, t.Spec, old.Spec)
	return e.list()
}

func validateResourceSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	e := metadata(&s.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.resourceSlice(s)
	return e.list()
}

func validateResourceSliceUpdate(s, old *resourcev1.ResourceSlice) field.ErrorList {
	e := metadata(&s.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.resourceSlice(s)
	e.immutable(specPath.Child("driver"), s.Spec.Driver, old.Spec.Driver)
	e.immutable(specPath.Child("pool", "name"), s.Spec.Pool.Name, old.Spec.Pool.Name)
	e.immutable(specPath.Child("nodeName"), s.Spec.NodeName, old.Spec.NodeName)
	return e.list()
}

func (e *problems) resourceSlice(s *resourcev1.ResourceSlice) {
	spec, p := &s.Spec, specPath
	e.driver(p.Child("driver"), spec.Driver)
	if e.nonEmpty(p.Child("pool", "name"), spec.Pool.Name) && len(spec.Pool.Name) > resourcev1.PoolNameMaxLength {
		e.add(field.TooLong(p.Child("pool", "name"), "", resourcev1.PoolNameMaxLength))
	}
	if spec.Pool.ResourceSliceCount <= 0 {
		e.invalid(p.Child("pool", "resourceSliceCount"), spec.Pool.ResourceSliceCount, "must be greater than zero")
	}
	e.nonNegative(p.Child("pool", "generation"), spec.Pool.Generation)
	set := 0
	if spec.NodeName != nil {
		set++
		if e.nonEmpty(p.Child("nodeName"), *spec.NodeName) {
			e.dnsSubdomain(p.Child("nodeName"), *spec.NodeName)
		}
	}
	if spec.NodeSelector != nil {
		set++
		e.nodeSelector(p.Child("nodeSelector"), spec.NodeSelector)
		if len(spec.NodeSelector.NodeSelectorTerms) != 1 {
			e.invalid(p.Child("nodeSelector", "nodeSelectorTerms"), len(spec.NodeSelector.NodeSelectorTerms), "must have exactly one node selector term")
		}
	}
	for _, b := range []*bool{spec.AllNodes, spec.PerDeviceNodeSelection} {
		if isTrue(b) {
			set++
		}
	}
	const which = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	switch {
	case set == 0:
		e.required(p, which)
	case set > 1:
		e.invalid(p, nil, which+", but multiple fields are set")
	}
	if !e.atMost(p.Child("devices"), len(spec.Devices), resourcev1.ResourceSliceMaxDevices) {
		return
	}
	names := map[string]bool{}
	for i := range spec.Devices {
		at := p.Child("devices").Index(i)
		if e.nonEmpty(at.Child("name"), spec.Devices[i].Name) {
			e.dnsLabel(at.Child("name"), spec.Devices[i].Name)
		}
		if names[spec.Devices[i].Name] {
			e.duplicate(at.Child("name"), spec.Devices[i].Name)
		}
		names[spec.Devices[i].Name] = true
		d := &spec.Devices[i]
		e.atMost(at.Child("attributes"), len(d.Attributes)+len(d.Capacity), resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice)
		e.atMost(at.Child("taints"), len(d.Taints), resourcev1.DeviceTaintsMaxLength)
		for j, taint := range d.Taints {
			e.qualifiedName(at.Child("taints").Index(j).Child("key"), taint.Key)
			oneOf(e, at.Child("taints").Index(j).Child("effect"), taint.Effect, resourcev1.DeviceTaintEffectNone, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNoExecute)
		}
		for key, a := range sorted(d.Attributes) {
			set := 0
			for _, is := range []bool{a.IntValue != nil, a.BoolValue != nil, a.StringValue != nil, a.VersionValue != nil, a.IntValues != nil, a.BoolValues != nil, a.StringValues != nil, a.VersionValues != nil} {
				if is {
					set++
				}
			}
			if on := at.Child("attributes").Key(string(key)); set != 1 {
				e.invalid(on, nil, "exactly one value must be specified")
			} else if a.StringValue != nil && len(*a.StringValue) > resourcev1.DeviceAttributeMaxValueLength {
				e.add(field.TooLong(on.Child("string"), *a.StringValue, resourcev1.DeviceAttributeMaxValueLength))
			}
		}
	}
}
