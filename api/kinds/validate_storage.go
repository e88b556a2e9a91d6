package kinds

import (
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var accessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod}

func (e *problems) accessModes(p *field.Path, modes []corev1.PersistentVolumeAccessMode, missing string) {
	if len(modes) == 0 {
		e.required(p, missing)
	}
	for _, mode := range modes {
		if !slices.Contains(accessModes, mode) {
			e.add(field.NotSupported(p, mode, accessModes))
		}
	}
	if len(modes) > 1 && slices.Contains(modes, corev1.ReadWriteOncePod) {
		e.forbidden(p, "may not use ReadWriteOncePod with other access modes")
	}
}

// storage is of an amount of storage that there must be.
func (e *problems) storage(p *field.Path, list corev1.ResourceList) {
	at := p.Key(string(corev1.ResourceStorage))
	q, ok := list[corev1.ResourceStorage]
	if !ok {
		e.required(at, "")
	} else if q.Sign() <= 0 {
		e.invalid(at, q.String(), "must be greater than zero")
	}
}

// IsBlock says that a volume is a device and not a file system.
func IsBlock(mode *corev1.PersistentVolumeMode) bool {
	return mode != nil && *mode == corev1.PersistentVolumeBlock
}

func (e *problems) volumeMode(p *field.Path, mode *corev1.PersistentVolumeMode) {
	if mode != nil {
		maybeOneOf(e, p, *mode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	}
}

// claimSpec is of a claim, or of what claims are made of.
func (e *problems) claimSpec(p *field.Path, spec *corev1.PersistentVolumeClaimSpec) {
	e.accessModes(p.Child("accessModes"), spec.AccessModes, "at least 1 access mode is required")
	if spec.Selector != nil {
		labelSelector(e, p.Child("selector"), spec.Selector)
	}
	e.storage(p.Child("resources"), spec.Resources.Requests)
	if spec.StorageClassName != nil && *spec.StorageClassName != "" {
		e.dnsSubdomain(p.Child("storageClassName"), *spec.StorageClassName)
	}
	e.volumeMode(p.Child("volumeMode"), spec.VolumeMode)
	if s := spec.DataSource; s != nil {
		e.dataSource(p.Child("dataSource"), s.APIGroup, s.Kind, s.Name)
	}
	if s := spec.DataSourceRef; s != nil {
		e.dataSource(p.Child("dataSourceRef"), s.APIGroup, s.Kind, s.Name)
	}
	if name := spec.VolumeAttributesClassName; name != nil && *name != "" {
		e.dnsSubdomain(p.Child("volumeAttributesClassName"), *name)
	}
}

func (e *problems) dataSource(p *field.Path, group *string, kind, name string) {
	e.nonEmpty(p.Child("name"), name)
	e.nonEmpty(p.Child("kind"), kind)
	if (group == nil || *group == "") && kind != "PersistentVolumeClaim" {
		e.invalid(p, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
	}
}

func validateClaim(c *corev1.PersistentVolumeClaim) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.claimSpec(specPath, &c.Spec)
	return e.list()
}

func validateClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.claimSpec(specPath, &c.Spec)
	kept := *c.Spec.DeepCopy()
	if old.Spec.VolumeName == "" {
		kept.VolumeName = "" // binding sets it, once
	}
	if old.Spec.StorageClassName == nil && (c.Annotations[corev1.BetaStorageClassAnnotation] == "" || kept.StorageClassName == nil) {
		kept.StorageClassName = nil // a default class may come later
	}
	kept.VolumeAttributesClassName = old.Spec.VolumeAttributesClassName
	before, now := old.Spec.Resources.Requests[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	if c.Status.Phase == corev1.ClaimBound && kept.Resources.Requests != nil {
		kept.Resources.Requests[corev1.ResourceStorage] = before
	}
	if !equality.Semantic.DeepEqual(kept, old.Spec) {
		e.forbidden(specPath, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims")
	}
	if has := old.Status.Capacity[corev1.ResourceStorage]; now.Cmp(before) < 0 && now.Cmp(has) <= 0 {
		e.forbidden(specPath.Child("resources", "requests", "storage"), "field can not be less than status.capacity")
	}
	return e.list()
}

func validateClaimStatus(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	status, p := &c.Status, field.NewPath("status")
	for name, q := range sorted(status.Capacity) {
		e.resourceName(p.Child("capacity").Key(string(name)), name)
		e.quantity(p.Child("capacity").Key(string(name)), name, q)
	}
	for name, q := range sorted(status.AllocatedResources) {
		e.resourceName(p.Child("allocatedResources").Key(string(name)), name)
		e.quantity(p.Child("allocatedResources").Key(string(name)), name, q)
	}
	return e.list()
}

func validateVolume(v *corev1.PersistentVolume) field.ErrorList {
	e := metadata(&v.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.volumeSpec(specPath, &v.Spec)
	return e.list()
}

func (e *problems) volumeSpec(p *field.Path, spec *corev1.PersistentVolumeSpec) {
	e.accessModes(p.Child("accessModes"), spec.AccessModes, "")
	switch _, ok := spec.Capacity[corev1.ResourceStorage]; {
	case len(spec.Capacity) == 0:
		e.required(p.Child("capacity"), "")
	case !ok || len(spec.Capacity) > 1:
		e.add(field.NotSupported(p.Child("capacity"), spec.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	default:
		e.storage(p.Child("capacity"), spec.Capacity)
	}
	maybeOneOf(e, p.Child("persistentVolumeReclaimPolicy"), spec.PersistentVolumeReclaimPolicy,
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
	if spec.NodeAffinity != nil {
		if spec.NodeAffinity.Required == nil {
			e.required(p.Child("nodeAffinity", "required"), "must specify required node constraints")
		} else {
			e.nodeSelector(p.Child("nodeAffinity", "required"), spec.NodeAffinity.Required)
		}
	}
	e.persistentSource(p, spec)
	if spec.StorageClassName != "" {
		e.dnsSubdomain(p.Child("storageClassName"), spec.StorageClassName)
	}
	e.volumeMode(p.Child("volumeMode"), spec.VolumeMode)
	if name := spec.VolumeAttributesClassName; name != nil && *name == "" {
		e.required(p.Child("volumeAttributesClassName"), "an empty string is disallowed")
	}
}

func (e *problems) persistentSource(p *field.Path, spec *corev1.PersistentVolumeSpec) {
	sources := membersOf(&spec.PersistentVolumeSource)
	if len(sources) == 0 {
		e.required(p, "must specify a volume type")
		return
	}
	for _, more := range sources[1:] {
		e.forbidden(p.Child(more), "may not specify more than 1 volume type")
	}
	switch at := p.Child(sources[0]); sources[0] {
	case "local":
		if e.nonEmpty(at.Child("path"), spec.Local.Path) {
			e.noBacksteps(at.Child("path"), spec.Local.Path)
		}
		if spec.NodeAffinity == nil {
			e.required(p.Child("nodeAffinity"), "Local volume requires node affinity")
		}
	case "csi":
		if e.nonEmpty(at.Child("driver"), spec.CSI.Driver) {
			e.each(at.Child("driver"), spec.CSI.Driver, validation.IsDNS1123Subdomain(strings.ToLower(spec.CSI.Driver)))
		}
		e.nonEmpty(at.Child("volumeHandle"), spec.CSI.VolumeHandle)
	default:
		// Most types are a pod's types too, and are held to the same.
		var v corev1.VolumeSource
		from := member(reflect.ValueOf(&spec.PersistentVolumeSource).Elem(), sources[0])
		if to := member(reflect.ValueOf(&v).Elem(), sources[0]); to.IsValid() && to.Type() == from.Type() {
			to.Set(from)
			e.volumeSource(p, &v)
		}
	}
	if spec.HostPath != nil && spec.HostPath.Path == "/" && spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		e.forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
}

func validateVolumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	e := metadata(&v.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.volumeSpec(specPath, &v.Spec)
	if !equality.Semantic.DeepEqual(v.Spec.PersistentVolumeSource, old.Spec.PersistentVolumeSource) {
		e.forbidden(specPath.Child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation")
	}
	e.immutable(specPath.Child("volumeMode"), v.Spec.VolumeMode, old.Spec.VolumeMode)
	if old.Spec.NodeAffinity != nil {
		e.immutable(specPath.Child("nodeAffinity"), v.Spec.NodeAffinity, old.Spec.NodeAffinity)
	}
	return e.list()
}

func validateVolumeStatus(v, old *corev1.PersistentVolume) field.ErrorList {
	return metadata(&v.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain).list()
}

// provisioner is of the name of whoever makes, or attaches, volumes.
func (e *problems) provisioner(p *field.Path, name string) {
	if e.nonEmpty(p, name) {
		e.qualifiedName(p, strings.ToLower(name))
	}
}

const mostParameters, largestParameters = 512, 256 << 10

func validateStorageClass(c *storagev1.StorageClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.storageClass(c)
	return e.list()
}

func (e *problems) storageClass(c *storagev1.StorageClass) {
	e.provisioner(field.NewPath("provisioner"), c.Provisioner)
	e.parameters(field.NewPath("parameters"), c.Parameters)
	if c.ReclaimPolicy != nil {
		oneOf(e, field.NewPath("reclaimPolicy"), *c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)
	}
	at := field.NewPath("volumeBindingMode")
	if c.VolumeBindingMode == nil {
		e.required(at, "")
	} else {
		oneOf(e, at, *c.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)
	}
	for i, term := range c.AllowedTopologies {
		at := field.NewPath("allowedTopologies").Index(i).Child("matchLabelExpressions")
		keys := map[string]bool{}
		for j, r := range term.MatchLabelExpressions {
			if len(r.Values) == 0 {
				e.required(at.Index(j).Child("values"), "")
			}
			if keys[r.Key] {
				e.duplicate(at.Index(j).Child("key"), r.Key)
			}
			keys[r.Key] = true
			e.qualifiedName(at.Index(j).Child("key"), r.Key)
		}
	}
}

// parameters are what a driver is told; only their size is ours to judge.
func (e *problems) parameters(at *field.Path, parameters map[string]string) {
	size := 0
	if len(parameters) > mostParameters {
		e.add(field.TooLong(at, "", mostParameters))
	}
	for name, value := range sorted(parameters) {
		if name == "" {
			e.invalid(at, name, "field can not be empty.")
		}
		size += len(name) + len(value)
	}
	if size > largestParameters {
		e.add(field.TooLong(at, "", largestParameters))
	}
}

func validateStorageClassUpdate(c, old *storagev1.StorageClass) field.ErrorList {
	e := metadata(&c.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.storageClass(c)
	for name, same := range sorted(map[string]bool{
		"parameters":    equality.Semantic.DeepEqual(c.Parameters, old.Parameters),
		"provisioner":   c.Provisioner == old.Provisioner,
		"reclaimPolicy": equality.Semantic.DeepEqual(c.ReclaimPolicy, old.ReclaimPolicy),
	}) {
		if !same {
			e.forbidden(field.NewPath(name), "updates to "+name+" are forbidden.")
		}
	}
	e.immutable(field.NewPath("volumeBindingMode"), c.VolumeBindingMode, old.VolumeBindingMode)
	return e.list()
}

func validateAttachment(a *storagev1.VolumeAttachment) field.ErrorList {
	e := metadata(&a.ObjectMeta, nil, false, apivalidation.NameIsDNSSubdomain)
	e.provisioner(specPath.Child("attacher"), a.Spec.Attacher)
	at := specPath.Child("source")
	switch s := a.Spec.Source; {
	case s.InlineVolumeSpec != nil && s.PersistentVolumeName != nil:
		e.forbidden(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
	case s.InlineVolumeSpec == nil && (s.PersistentVolumeName == nil || *s.PersistentVolumeName == ""):
		e.required(at, "must specify exactly one of inlineVolumeSpec and persistentVolumeName")
	case s.InlineVolumeSpec != nil:
		e.volumeSpec(at.Child("inlineVolumeSpec"), s.InlineVolumeSpec)
	default:
		e.dnsSubdomain(at.Child("persistentVolumeName"), *s.PersistentVolumeName)
	}
	e.dnsSubdomain(specPath.Child("nodeName"), a.Spec.NodeName)
	return e.list()
}

func validateAttachmentUpdate(a, old *storagev1.VolumeAttachment) field.ErrorList {
	e := metadata(&a.ObjectMeta, &old.ObjectMeta, false, apivalidation.NameIsDNSSubdomain)
	e.immutable(specPath, a.Spec, old.Spec)
	return e.list()
}
