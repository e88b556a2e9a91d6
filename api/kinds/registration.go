package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"conclave/api/types"
)

// registrationRows are the APIServices.
func registrationRows() []*Kind {
	return []*Kind{{
		GVK: types.Registration.WithKind("APIService"), Plural: "apiservices", Categories: []string{"api-extensions"},
		New: empty[types.APIService], NewList: empty[types.APIServiceList], Status: true,
		Default: one(func(o *types.APIService) {
			if o.Spec.Service != nil {
				defaultPtr(&o.Spec.Service.Port, 443)
			}
		}),
		PrepareForCreate: one(func(o *types.APIService) {
			o.Status = types.APIServiceStatus{}
			if o.Spec.Service == nil {
				o.SetCondition(types.LocallyAvailable(o.CreationTimestamp))
			}
		}),
		PrepareForUpdate:       two(func(o, old *types.APIService) { o.Status = old.Status }),
		PrepareForStatusUpdate: two(func(o, old *types.APIService) { o.Spec = old.Spec }),
		Validate:               check(func(o *types.APIService) field.ErrorList { return validateAPIService(o, nil) }),
		ValidateUpdate:         checkTwo(validateAPIService),
		ValidateStatusUpdate:   checkTwo(validateAPIServiceStatus),
		Columns: []metav1.TableColumnDefinition{
			nameColumn,
			text("Service", "The reference to the service that hosts this API endpoint."),
			text("Available", "Whether this service is available."),
			ageColumn,
		},
		Cells: cells(apiServiceCells),
	}}
}

func apiServiceCells(o *types.APIService, now time.Time) []any {
	service, available := "Local", string(metav1.ConditionUnknown)
	if s := o.Spec.Service; s != nil {
		service = s.Namespace + "/" + s.Name
	}
	if c := o.Condition(types.APIAvailable); c != nil {
		available = c.Status
		if c.Status != string(metav1.ConditionTrue) && c.Reason != "" {
			available += " (" + c.Reason + ")"
		}
	}
	return []any{o.Name, service, available, age(o.CreationTimestamp, now)}
}

const (
	maxGroupPriority   = 20000
	maxVersionPriority = 1000
)

func validateAPIService(o, old *types.APIService) field.ErrorList {
	wanted := o.Spec.Version + "." + o.Spec.Group
	e := metadata(&o.ObjectMeta, metaOf(old), false, func(name string, _ bool) []string {
		if why := path.IsValidPathSegmentName(name); len(why) > 0 {
			return why
		}
		if name != wanted {
			return []string{fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", wanted)}
		}
		return nil
	})
	if old != nil && o.Name == old.Name && o.Name != wanted { // of an update, metadata says nothing of names
		e.invalid(field.NewPath("metadata", "name"), o.Name, fmt.Sprintf("must be `spec.version+\".\"+spec.group`: %q", wanted))
	}
	spec, p := &o.Spec, field.NewPath("spec")
	if spec.Group == "" && spec.Version != "v1" {
		e.required(p.Child("group"), "only v1 may have an empty group and it better be legacy kube")
	}
	if spec.Group != "" {
		e.each(p.Child("group"), spec.Group, validation.IsDNS1123Subdomain(spec.Group))
	}
	e.each(p.Child("version"), spec.Version, validation.IsDNS1035Label(spec.Version))
	if spec.GroupPriorityMinimum <= 0 || spec.GroupPriorityMinimum > maxGroupPriority {
		e.invalid(p.Child("groupPriorityMinimum"), spec.GroupPriorityMinimum, fmt.Sprintf("must be positive and less than %d", maxGroupPriority))
	}
	if spec.VersionPriority <= 0 || spec.VersionPriority > maxVersionPriority {
		e.invalid(p.Child("versionPriority"), spec.VersionPriority, fmt.Sprintf("must be positive and less than %d", maxVersionPriority))
	}
	if spec.Service == nil {
		if len(spec.CABundle) > 0 {
			e.invalid(p.Child("caBundle"), fmt.Sprintf("%d bytes", len(spec.CABundle)), "local APIServices may not have a caBundle")
		}
		if spec.InsecureSkipTLSVerify {
			e.invalid(p.Child("insecureSkipTLSVerify"), true, "local APIServices may not have insecureSkipTLSVerify")
		}
		return e.list()
	}
	service := p.Child("service")
	e.nonEmpty(service.Child("namespace"), spec.Service.Namespace)
	e.nonEmpty(service.Child("name"), spec.Service.Name)
	port := ptr.Deref(spec.Service.Port, 0)
	if why := validation.IsValidPortNum(int(port)); len(why) > 0 {
		e.invalid(service.Child("port"), port, "port is not valid: "+strings.Join(why, ", "))
	}
	if spec.InsecureSkipTLSVerify && len(spec.CABundle) > 0 {
		e.invalid(p.Child("insecureSkipTLSVerify"), true, "may not be true if caBundle is present")
	}
	return e.list()
}

func validateAPIServiceStatus(o, old *types.APIService) field.ErrorList {
	e := metadata(&o.ObjectMeta, &old.ObjectMeta, false, nil)
	known := []string{string(metav1.ConditionTrue), string(metav1.ConditionFalse), string(metav1.ConditionUnknown)}
	for i, c := range o.Status.Conditions {
		if !slices.Contains(known, c.Status) {
			e.add(field.NotSupported(field.NewPath("status", "conditions").Index(i).Child("status"), c.Status, known))
		}
	}
	return e.list()
}
