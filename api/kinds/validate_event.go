package kinds

import (
	"fmt"
	"slices"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Events are one kind under two names: events.k8s.io/v1, with some fields
// renamed and stricter rules, is kept as the core kind.

func eventToCore(obj runtime.Object) (runtime.Object, error) {
	e, ok := obj.(*eventsv1.Event)
	if !ok {
		return nil, fmt.Errorf("keep %T as an event", obj)
	}
	core := &corev1.Event{
		TypeMeta:            metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:          e.ObjectMeta,
		InvolvedObject:      e.Regarding,
		Related:             e.Related,
		Reason:              e.Reason,
		Message:             e.Note,
		Type:                e.Type,
		EventTime:           e.EventTime,
		Action:              e.Action,
		ReportingController: e.ReportingController,
		ReportingInstance:   e.ReportingInstance,
		Source:              e.DeprecatedSource,
		FirstTimestamp:      e.DeprecatedFirstTimestamp,
		LastTimestamp:       e.DeprecatedLastTimestamp,
		Count:               e.DeprecatedCount,
	}
	if e.Series != nil {
		core.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return core, nil
}

func eventFromCore(obj runtime.Object) (runtime.Object, error) {
	core, ok := obj.(*corev1.Event)
	if !ok {
		return nil, fmt.Errorf("read %T as an event", obj)
	}
	e := &eventsv1.Event{
		TypeMeta:                 metav1.TypeMeta{APIVersion: eventsv1.SchemeGroupVersion.String(), Kind: "Event"},
		ObjectMeta:               core.ObjectMeta,
		Regarding:                core.InvolvedObject,
		Related:                  core.Related,
		Reason:                   core.Reason,
		Note:                     core.Message,
		Type:                     core.Type,
		EventTime:                core.EventTime,
		Action:                   core.Action,
		ReportingController:      core.ReportingController,
		ReportingInstance:        core.ReportingInstance,
		DeprecatedSource:         core.Source,
		DeprecatedFirstTimestamp: core.FirstTimestamp,
		DeprecatedLastTimestamp:  core.LastTimestamp,
		DeprecatedCount:          core.Count,
	}
	if core.Series != nil {
		e.Series = &eventsv1.EventSeries{Count: core.Series.Count, LastObservedTime: core.Series.LastObservedTime}
	}
	return e, nil
}

// eventNames are what the two kinds call the fields that errors name.
type eventNames struct{ object, controller, message string }

var (
	coreNames = eventNames{"involvedObject", "reportingController", "message"}
	newNames  = eventNames{"regarding", "reportingController", "note"}
)

func validateCoreEvent(ev *corev1.Event) field.ErrorList {
	var e problems
	e.event(ev, coreNames)
	return e.list()
}

// event is what holds for both kinds.
func (e *problems) event(ev *corev1.Event, names eventNames) {
	object := field.NewPath(names.object, "namespace")
	switch ns := ev.InvolvedObject.Namespace; {
	case ns == "":
		// What belongs to no namespace is reported in one of these.
		if !slices.Contains([]string{metav1.NamespaceDefault, metav1.NamespaceSystem}, ev.Namespace) {
			e.invalid(object, ns, "does not match event.namespace")
		}
	case ns != ev.Namespace:
		e.invalid(object, ns, "does not match event.namespace")
	}
	if !ev.EventTime.IsZero() {
		controller := field.NewPath(names.controller)
		if e.nonEmpty(controller, ev.ReportingController) {
			e.qualifiedName(controller, ev.ReportingController)
		}
		for _, f := range []struct{ name, value string }{{"reportingInstance", ev.ReportingInstance}, {"action", ev.Action}, {"reason", ev.Reason}} {
			e.nonEmpty(field.NewPath(f.name), f.value)
			if len(f.value) > 128 {
				e.invalid(field.NewPath(f.name), "", "can have at most 128 characters")
			}
		}
		if len(ev.Message) > 1024 {
			e.invalid(field.NewPath(names.message), "", "can have at most 1024 characters")
		}
	}
	e.each(field.NewPath("namespace"), ev.Namespace, validation.IsDNS1123Subdomain(ev.Namespace))
}

func validateEvent(ev *eventsv1.Event) field.ErrorList {
	core := coreEvent(ev)
	e := metadata(&ev.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.event(core, newNames)
	if ev.EventTime.IsZero() {
		e.required(field.NewPath("eventTime"), "")
	}
	if ev.Type != corev1.EventTypeNormal && ev.Type != corev1.EventTypeWarning {
		e.invalid(field.NewPath("type"), "", fmt.Sprintf("has invalid value: %v", ev.Type))
	}
	for _, unset := range []struct {
		name  string
		set   bool
		value any
	}{
		{"deprecatedFirstTimestamp", !ev.DeprecatedFirstTimestamp.IsZero(), ev.DeprecatedFirstTimestamp},
		{"deprecatedLastTimestamp", !ev.DeprecatedLastTimestamp.IsZero(), ev.DeprecatedLastTimestamp},
		{"deprecatedCount", ev.DeprecatedCount != 0, ev.DeprecatedCount},
		{"deprecatedSource", ev.DeprecatedSource != corev1.EventSource{}, ev.DeprecatedSource},
	} {
		if unset.set {
			e.invalid(field.NewPath(unset.name), unset.value, "needs to be unset")
		}
	}
	e.series(ev)
	return e.list()
}

func (e *problems) series(ev *eventsv1.Event) {
	if ev.Series == nil {
		return
	}
	if ev.Series.Count < 2 {
		e.invalid(field.NewPath("series", "count"), ev.Series.Count, "should be at least 2")
	}
	if ev.Series.LastObservedTime.IsZero() {
		e.required(field.NewPath("series", "lastObservedTime"), "")
	}
}

// coreEvent is eventToCore for a type that cannot be wrong.
func coreEvent(ev *eventsv1.Event) *corev1.Event {
	core, err := eventToCore(ev)
	if err != nil {
		panic(err)
	}
	return core.(*corev1.Event)
}

func validateCoreEventUpdate(ev, old *corev1.Event) field.ErrorList {
	e := metadata(&ev.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.event(ev, coreNames)
	return e.list()
}

func validateEventUpdate(ev, old *eventsv1.Event) field.ErrorList {
	e := metadata(&ev.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.event(coreEvent(ev), newNames)
	for _, f := range []struct {
		name     string
		now, was any
	}{
		{"regarding", ev.Regarding, old.Regarding}, {"related", ev.Related, old.Related}, {"reason", ev.Reason, old.Reason},
		{"note", ev.Note, old.Note}, {"type", ev.Type, old.Type}, {"action", ev.Action, old.Action},
		{"reportingController", ev.ReportingController, old.ReportingController}, {"reportingInstance", ev.ReportingInstance, old.ReportingInstance},
		{"deprecatedFirstTimestamp", ev.DeprecatedFirstTimestamp, old.DeprecatedFirstTimestamp},
		{"deprecatedLastTimestamp", ev.DeprecatedLastTimestamp, old.DeprecatedLastTimestamp},
		{"deprecatedCount", ev.DeprecatedCount, old.DeprecatedCount}, {"deprecatedSource", ev.DeprecatedSource, old.DeprecatedSource},
	} {
		e.immutable(field.NewPath(f.name), f.now, f.was)
	}
	// JSON keeps microseconds: a clock that has finer ones reads them back cut.
	if !ev.EventTime.Equal(&old.EventTime) && ev.EventTime.UnixMicro() != old.EventTime.UnixMicro() {
		e.invalid(field.NewPath("eventTime"), ev.EventTime, apivalidation.FieldImmutableErrorMsg)
	}
	e.series(ev)
	return e.list()
}

// Leases.

func validateLease(l *coordinationv1.Lease) field.ErrorList {
	e := metadata(&l.ObjectMeta, nil, true, apivalidation.NameIsDNSSubdomain)
	e.lease(&l.Spec)
	return e.list()
}

func validateLeaseUpdate(l, old *coordinationv1.Lease) field.ErrorList {
	e := metadata(&l.ObjectMeta, &old.ObjectMeta, true, apivalidation.NameIsDNSSubdomain)
	e.lease(&l.Spec)
	return e.list()
}

func (e *problems) lease(spec *coordinationv1.LeaseSpec) {
	if spec.LeaseDurationSeconds != nil && *spec.LeaseDurationSeconds <= 0 {
		e.invalid(specPath.Child("leaseDurationSeconds"), *spec.LeaseDurationSeconds, "must be greater than 0")
	}
	if spec.LeaseTransitions != nil && *spec.LeaseTransitions < 0 {
		e.invalid(specPath.Child("leaseTransitions"), *spec.LeaseTransitions, "must be greater than or equal to 0")
	}
	if spec.Strategy != nil {
		e.each(specPath.Child("strategy"), *spec.Strategy, validation.IsQualifiedName(string(*spec.Strategy)))
	}
	if spec.PreferredHolder != nil && *spec.PreferredHolder != "" && (spec.Strategy == nil || *spec.Strategy == "") {
		e.invalid(specPath.Child("preferredHolder"), *spec.PreferredHolder, "may only be specified when `strategy` is defined")
	}
}
