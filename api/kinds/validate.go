package kinds

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// problems collects what is wrong with an object.
type problems field.ErrorList

func (e *problems) add(list ...*field.Error) { *e = append(*e, list...) }

func (e *problems) invalid(p *field.Path, value any, detail string) {
	e.add(field.Invalid(p, value, detail))
}

func (e *problems) required(p *field.Path, detail string) { e.add(field.Required(p, detail)) }

func (e *problems) forbidden(p *field.Path, detail string) { e.add(field.Forbidden(p, detail)) }

func (e *problems) duplicate(p *field.Path, value any) { e.add(field.Duplicate(p, value)) }

// each adds an Invalid for each message.
func (e *problems) each(p *field.Path, value any, messages []string) {
	for _, m := range messages {
		e.invalid(p, value, m)
	}
}

// nonEmpty says Required of an empty string, and reports whether it was not.
func (e *problems) nonEmpty(p *field.Path, value string) bool {
	if value == "" {
		e.required(p, "")
	}
	return value != ""
}

func (e *problems) nonNegative(p *field.Path, value int64) {
	if value < 0 {
		e.invalid(p, value, apivalidation.IsNegativeErrorMsg)
	}
}

// immutable says Invalid of a field that changed.
func (e *problems) immutable(p *field.Path, value, old any) {
	if !equality.Semantic.DeepEqual(value, old) {
		e.invalid(p, value, apivalidation.FieldImmutableErrorMsg)
	}
}

func (e *problems) dnsLabel(p *field.Path, value string) {
	e.each(p, value, validation.IsDNS1123Label(value))
}

func (e *problems) dnsSubdomain(p *field.Path, value string) {
	e.each(p, value, validation.IsDNS1123Subdomain(value))
}

func (e *problems) port(p *field.Path, value int32) {
	e.each(p, value, validation.IsValidPortNum(int(value)))
}

// portOrName is of a port that may be named.
func (e *problems) portOrName(p *field.Path, value intstr.IntOrString) {
	if value.Type == intstr.Int {
		e.each(p, value.IntValue(), validation.IsValidPortNum(value.IntValue()))
	} else {
		e.each(p, value.StrVal, validation.IsValidPortName(value.StrVal))
	}
}

// fileMode is of optional permission bits.
func (e *problems) fileMode(p *field.Path, mode *int32) {
	if mode != nil && (*mode < 0 || *mode > 0o777) {
		e.invalid(p, *mode, "must be a number between 0 and 0777 (octal), both inclusive")
	}
}

func (e *problems) noBacksteps(p *field.Path, value string) {
	if slices.Contains(strings.Split(value, "/"), "..") {
		e.invalid(p, value, "must not contain '..'")
	}
}

// localPath is of a path below a folder of ours.
func (e *problems) localPath(p *field.Path, value string) {
	if path.IsAbs(value) {
		e.invalid(p, value, "must be a relative path")
	}
	e.noBacksteps(p, value)
}

// localFile is localPath that cannot be mistaken for what volumes use to swap
// their content at once.
func (e *problems) localFile(p *field.Path, value string) {
	e.localPath(p, value)
	if strings.HasPrefix(value, "..") && !strings.HasPrefix(value, "../") {
		e.invalid(p, value, "must not start with '..'")
	}
}

// oneOf says Required of an empty value, unless it may be empty, and
// NotSupported of one that is not allowed.
func oneOf[T ~string](e *problems, p *field.Path, value T, allowed ...T) {
	if value == "" {
		e.required(p, "")
	} else {
		maybeOneOf(e, p, value, allowed...)
	}
}

func maybeOneOf[T ~string](e *problems, p *field.Path, value T, allowed ...T) {
	if value != "" && !slices.Contains(allowed, value) {
		e.add(field.NotSupported(p, value, allowed))
	}
}

// ValidateMetadata says what is wrong with the metadata of an object that is
// created, or updated if old is not nil.
func ValidateMetadata(meta, old *metav1.ObjectMeta, namespaced bool, name apivalidation.ValidateNameFunc, p *field.Path) field.ErrorList {
	op := operation.Create
	if old != nil {
		op = operation.Update
	}
	return apivalidation.ValidateObjectMetaDeclaratively(context.Background(), op, meta, old, namespaced, name, p, true)
}

// metaOf is the metadata of what there was before, nil if there was nothing.
func metaOf[T any, P interface {
	*T
	GetObjectMeta() metav1.Object
}](old P) *metav1.ObjectMeta {
	if old == nil {
		return nil
	}
	return old.GetObjectMeta().(*metav1.ObjectMeta)
}

// metadata of the object to be created, and of an update if old is not nil.
func metadata(meta, old *metav1.ObjectMeta, namespaced bool, name apivalidation.ValidateNameFunc) problems {
	return problems(ValidateMetadata(meta, old, namespaced, name, field.NewPath("metadata")))
}

func labelSelector(e *problems, p *field.Path, s *metav1.LabelSelector) {
	e.add(metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{}, p)...)
}

func (e *problems) labels(p *field.Path, labels map[string]string) {
	e.add(metavalidation.ValidateLabels(labels, p)...)
}

// Names of resources.

const (
	kubernetesDomain = "kubernetes.io/"
	requestsPrefix   = "requests."
)

var (
	containerResources = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}
	otherResources     = []corev1.ResourceName{
		corev1.ResourceStorage, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage, corev1.ResourcePods,
		corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
		corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
	}
)

func isNativeResource(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), kubernetesDomain)
}

func isExtendedResource(name corev1.ResourceName) bool {
	if isNativeResource(name) || strings.HasPrefix(string(name), requestsPrefix) {
		return false
	}
	return len(validation.IsQualifiedName(requestsPrefix+string(name))) == 0
}

// mayOvercommit says whether less may be requested of a resource than its
// limit: of what can be shared.
func mayOvercommit(name corev1.ResourceName) bool {
	return isNativeResource(name) && !isHugePages(name)
}

func (e *problems) resourceName(p *field.Path, name corev1.ResourceName) {
	e.each(p, name, validation.IsQualifiedName(string(name)))
	if !strings.Contains(string(name), "/") && !isHugePages(name) && !slices.Contains(containerResources, name) && !slices.Contains(otherResources, name) {
		e.invalid(p, name, "must be a standard resource type or fully qualified")
	}
}

func (e *problems) containerResourceName(p *field.Path, name corev1.ResourceName) {
	before := len(*e)
	e.resourceName(p, name)
	switch {
	case !strings.Contains(string(name), "/"):
		if !isHugePages(name) && !slices.Contains(containerResources, name) {
			e.invalid(p, name, "must be a standard resource for containers")
		}
	case len(*e) == before && !isNativeResource(name) && !isExtendedResource(name):
		e.invalid(p, name, "doesn't follow extended resource name standard")
	}
}

// quantity is of an amount of a resource.
func (e *problems) quantity(p *field.Path, name corev1.ResourceName, q resource.Quantity) {
	if q.Sign() < 0 {
		e.invalid(p, q.String(), apivalidation.IsNegativeErrorMsg)
	}
	if isIntegerResource(name) && q.MilliValue()%1000 != 0 {
		e.invalid(p, q, "must be an integer")
	}
}

func isIntegerResource(name corev1.ResourceName) bool {
	return isExtendedResource(name) || slices.Contains([]corev1.ResourceName{
		corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
		corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
	}, name)
}

// isMultipleOfPageSize is of an amount of huge pages, whose name has the size.
func isMultipleOfPageSize(name corev1.ResourceName, q resource.Quantity) bool {
	size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
	return err == nil && size.Value() > 0 && q.Value()%size.Value() == 0
}

// sorted iterates over a map in the order of its keys, so that the same object
// always gets the same errors.
func sorted[K cmp.Ordered, V any](m map[K]V) func(yield func(K, V) bool) {
	return func(yield func(K, V) bool) {
		keys := make([]K, 0, len(m))
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

func (e *problems) activeDeadline(p *field.Path, seconds *int64) {
	if seconds != nil && (*seconds < 1 || *seconds > math.MaxInt32) {
		e.invalid(p, *seconds, validation.InclusiveRangeError(1, math.MaxInt32))
	}
}

func (e *problems) qualifiedName(p *field.Path, name string) {
	e.each(p, name, validation.IsQualifiedName(name))
}

func (e *problems) ip(p *field.Path, value string) {
	e.add(validation.IsValidIPForLegacyField(p, value, true, nil)...)
}

// list turns what was collected into what a row returns: nil if nothing.
func (e problems) list() field.ErrorList {
	if len(e) == 0 {
		return nil
	}
	return field.ErrorList(e)
}

// quoted joins words as Kubernetes lists them in messages.
func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("`%s`", w)
	}
	return strings.Join(out, ",")
}
