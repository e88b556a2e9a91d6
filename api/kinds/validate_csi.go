package kinds

import (
	"fmt"
	"strings"

	storagev1 "k8s.io/api/storage/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	longestDriver, longestNodeID = 63, 192
	shortestToken, longestToken  = 600, 1 << 32 // seconds
	shortestAllocatable          = 10           // seconds
)

// driverName is of the name of a CSI driver.
func (e *problems) driverName(p *field.Path, name string) {
	if !e.nonEmpty(p, name) {
		return
	}
	if len(name) > longestDriver {
		e.add(field.TooLong(p, "", longestDriver))
	}
	e.each(p, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))
}

func validateCSIDriver(d *storagev1.CSIDriver) field.ErrorList {
	e := metadata(&d.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.csiDriver(d)
	return e.list()
}

func (e *problems) csiDriver(d *storagev1.CSIDriver) {
	e.driverName(field.NewPath("name"), d.Name)
	spec := &d.Spec
	for name, value := range sorted(map[string]*bool{
		"attachedRequired": spec.AttachRequired, "podInfoOnMount": spec.PodInfoOnMount, "storageCapacity": spec.StorageCapacity, "seLinuxMount": spec.SELinuxMount,
	}) {
		if value == nil {
			e.required(specPath.Child(name), "")
		}
	}
	if spec.FSGroupPolicy == nil {
		e.required(specPath.Child("fsGroupPolicy"), "")
	} else {
		oneOf(e, specPath.Child("fsGroupPolicy"), *spec.FSGroupPolicy, storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	}
	for i, mode := range spec.VolumeLifecycleModes {
		oneOf(e, specPath.Child("volumeLifecycleModes").Index(i), mode, storagev1.VolumeLifecycleEphemeral, storagev1.VolumeLifecyclePersistent)
	}
	audiences := map[string]bool{}
	for i, r := range spec.TokenRequests {
		at := specPath.Child("tokenRequests").Index(i)
		if audiences[r.Audience] {
			e.duplicate(at.Child("audience"), r.Audience)
		}
		audiences[r.Audience] = true
		switch s := r.ExpirationSeconds; {
		case s == nil:
		case *s < shortestToken:
			e.invalid(at.Child("expirationSeconds"), *s, "may not specify a duration less than 10 minutes")
		case *s > longestToken:
			e.invalid(at.Child("expirationSeconds"), *s, "may not specify a duration larger than 2^32 seconds")
		}
	}
	if s := spec.NodeAllocatableUpdatePeriodSeconds; s != nil && *s < shortestAllocatable {
		e.invalid(specPath.Child("nodeAllocatableUpdatePeriodSeconds"), *s, fmt.Sprintf("must be greater than or equal to %d seconds", shortestAllocatable))
	}
	if spec.ServiceAccountTokenInSecrets != nil && len(spec.TokenRequests) == 0 {
		e.invalid(specPath.Child("serviceAccountTokenInSecrets"), *spec.ServiceAccountTokenInSecrets, "serviceAccountTokenInSecrets must be unset if no token requests are specified")
	}
}

func validateCSIDriverUpdate(d, old *storagev1.CSIDriver) field.ErrorList {
	e := metadata(&d.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.csiDriver(d)
	e.immutable(specPath.Child("attachedRequired"), d.Spec.AttachRequired, old.Spec.AttachRequired)
	e.immutable(specPath.Child("volumeLifecycleModes"), d.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes)
	return e.list()
}

func validateCSINode(n *storagev1.CSINode) field.ErrorList {
	e := metadata(&n.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.csiDrivers(n)
	return e.list()
}

func (e *problems) csiDrivers(n *storagev1.CSINode) {
	names := map[string]bool{}
	for i := range n.Spec.Drivers {
		d, at := &n.Spec.Drivers[i], specPath.Child("drivers").Index(i)
		e.driverName(at.Child("name"), d.Name)
		if names[d.Name] {
			e.duplicate(at.Child("name"), d.Name)
		}
		names[d.Name] = true
		if e.nonEmpty(at.Child("nodeID"), d.NodeID) && len(d.NodeID) > longestNodeID {
			e.invalid(at.Child("nodeID"), d.NodeID, fmt.Sprintf("must be %d characters or less", longestNodeID))
		}
		if d.Allocatable != nil && d.Allocatable.Count != nil && *d.Allocatable.Count < 0 {
			e.invalid(at.Child("allocatable", "count"), *d.Allocatable.Count, apivalidation.IsNegativeErrorMsg)
		}
		keys := map[string]bool{}
		for _, key := range d.TopologyKeys {
			if key == "" {
				e.required(at, "")
				continue
			}
			if keys[key] {
				e.duplicate(at, key)
			}
			keys[key] = true
			e.qualifiedName(at, key)
		}
	}
}

// validateCSINodeUpdate lets a driver come and go; while it is there it stays
// what it is, but for how many volumes it can take.
func validateCSINodeUpdate(n, old *storagev1.CSINode) field.ErrorList {
	e := metadata(&n.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.csiDrivers(n)
	for _, was := range old.Spec.Drivers {
		for i, now := range n.Spec.Drivers {
			if now.Name == was.Name {
				now.Allocatable = was.Allocatable
				e.immutable(specPath.Child("drivers").Index(i), now, was)
			}
		}
	}
	return e.list()
}

func validateCapacity(c *storagev1.CSIStorageCapacity) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.capacity(c)
	return e.list()
}

func (e *problems) capacity(c *storagev1.CSIStorageCapacity) {
	labelSelector(e, field.NewPath("nodeTopology"), c.NodeTopology)
	if at := field.NewPath("storageClassName"); e.nonEmpty(at, c.StorageClassName) {
		e.dnsSubdomain(at, c.StorageClassName)
	}
	if q := c.Capacity; q != nil && q.Sign() < 0 {
		e.invalid(field.NewPath("capacity"), q.String(), apivalidation.IsNegativeErrorMsg)
	}
	if q := c.MaximumVolumeSize; q != nil && q.Sign() < 0 {
		e.invalid(field.NewPath("maximumVolumeSize"), q.String(), apivalidation.IsNegativeErrorMsg)
	}
}

func validateCapacityUpdate(c, old *storagev1.CSIStorageCapacity) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.capacity(c)
	e.immutable(field.NewPath("nodeTopology"), c.NodeTopology, old.NodeTopology)
	e.immutable(field.NewPath("storageClassName"), c.StorageClassName, old.StorageClassName)
	return e.list()
}

func validateAttributesClass(c *storagev1.VolumeAttributesClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.attributesClass(c)
	return e.list()
}

func (e *problems) attributesClass(c *storagev1.VolumeAttributesClass) {
	e.provisioner(field.NewPath("driverName"), c.DriverName)
	if at := field.NewPath("parameters"); len(c.Parameters) == 0 {
		e.required(at, "must contain at least one key/value pair")
	} else {
		e.parameters(at, c.Parameters)
	}
}

func validateAttributesClassUpdate(c, old *storagev1.VolumeAttributesClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.attributesClass(c)
	e.immutable(field.NewPath("driverName"), c.DriverName, old.DriverName)
	e.immutable(field.NewPath("parameters"), c.Parameters, old.Parameters)
	return e.list()
}
