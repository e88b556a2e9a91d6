package kinds

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"

	"conclave/api/flow"
	"conclave/api/types"
)

// flowRows are the kinds by which requests to the API server itself are ranked.
func flowRows() []*Kind {
	schemas := specAndStatus(Kind{
		GVK: types.FlowControl.WithKind("FlowSchema"), Plural: "flowschemas",
		New: empty[types.FlowSchema], NewList: empty[types.FlowSchemaList],
		Default:  one(defaultFlowSchema),
		Validate: check(func(o *types.FlowSchema) field.ErrorList { return validateFlowSchema(o, nil) }), ValidateUpdate: checkTwo(validateFlowSchema),
		ValidateStatusUpdate: checkTwo(func(o, old *types.FlowSchema) field.ErrorList {
			return flowStatus(&o.ObjectMeta, &old.ObjectMeta, &o.Status)
		}),
		Order: func(a, b runtime.Object) int { return flow.Compare(a.(*types.FlowSchema), b.(*types.FlowSchema)) },
		Columns: []metav1.TableColumnDefinition{
			nameColumn,
			text("PriorityLevel", "The PriorityLevelConfiguration whose seats its requests take."),
			text("MatchingPrecedence", "Of the FlowSchemas that match a request, the one with the lowest value has it."),
			text("DistinguisherMethod", "What tells the flows of its requests apart; none: they are one flow."),
			ageColumn,
			text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
		},
		Cells: cells(flowSchemaCells),
	}, func(o *types.FlowSchema) *types.FlowSchemaSpec { return &o.Spec }, func(o *types.FlowSchema) *types.FlowStatus { return &o.Status })
	schemas.PrepareForStatusUpdate = then(schemas.PrepareForStatusUpdate, func(o, old *types.FlowSchema) { keepMetadata(&o.ObjectMeta, &old.ObjectMeta) })
	levels := specAndStatus(Kind{
		GVK: types.FlowControl.WithKind("PriorityLevelConfiguration"), Plural: "prioritylevelconfigurations",
		New: empty[types.PriorityLevelConfiguration], NewList: empty[types.PriorityLevelConfigurationList],
		Default:  one(defaultPriorityLevel),
		Validate: check(func(o *types.PriorityLevelConfiguration) field.ErrorList { return validatePriorityLevel(o, nil) }), ValidateUpdate: checkTwo(validatePriorityLevel),
		ValidateStatusUpdate: checkTwo(func(o, old *types.PriorityLevelConfiguration) field.ErrorList {
			return flowStatus(&o.ObjectMeta, &old.ObjectMeta, &o.Status)
		}),
		Columns: []metav1.TableColumnDefinition{
			nameColumn,
			text("Type", "Exempt, if its requests wait for no seat, or Limited."),
			text("NominalConcurrencyShares", "Its part of all seats, in proportion to those of the other levels."),
			text("Queues", "How many queues its requests wait in."),
			text("HandSize", "How many of the queues are a flow's."),
			text("QueueLengthLimit", "How many requests are in a queue at most."),
			ageColumn,
		},
		Cells: cells(priorityLevelCells),
	}, func(o *types.PriorityLevelConfiguration) *types.PriorityLevelSpec { return &o.Spec }, func(o *types.PriorityLevelConfiguration) *types.FlowStatus { return &o.Status })
	levels.PrepareForStatusUpdate = then(levels.PrepareForStatusUpdate, func(o, old *types.PriorityLevelConfiguration) {
		keepMetadata(&o.ObjectMeta, &old.ObjectMeta)
	})
	return []*Kind{schemas, levels}
}

// keepMetadata lets an update of the status change none of the metadata but who owns
// the fields.
func keepMetadata(meta, old *metav1.ObjectMeta) {
	managed := meta.ManagedFields
	*meta = *old.DeepCopy()
	meta.ManagedFields = managed
}

func flowSchemaCells(o *types.FlowSchema, now time.Time) []any {
	by, missing := "<none>", "?"
	if m := o.Spec.DistinguisherMethod; m != nil {
		by = m.Type
	}
	if c := o.Status.Condition(types.FlowSchemaDangling); c != nil {
		missing = c.Status
	}
	return []any{o.Name, o.Spec.PriorityLevelConfiguration.Name, int64(o.Spec.MatchingPrecedence), by, age(o.CreationTimestamp, now), missing}
}

func priorityLevelCells(o *types.PriorityLevelConfiguration, now time.Time) []any {
	cells := []any{o.Name, o.Spec.Type, "<none>", "<none>", "<none>", "<none>", age(o.CreationTimestamp, now)}
	if l := o.Spec.Limited; l != nil {
		cells[2] = int64(ptr.Deref(l.NominalConcurrencyShares, 0))
		if q := l.LimitResponse.Queuing; q != nil {
			cells[3], cells[4], cells[5] = int64(q.Queues), int64(q.HandSize), int64(q.QueueLengthLimit)
		}
	}
	return cells
}

func defaultFlowSchema(o *types.FlowSchema) { defaultTo(&o.Spec.MatchingPrecedence, 1000) }

func defaultPriorityLevel(o *types.PriorityLevelConfiguration) {
	if e := o.Spec.Exempt; e != nil {
		defaultPtr(&e.NominalConcurrencyShares, 0)
		defaultPtr(&e.LendablePercent, 0)
	}
	if l := o.Spec.Limited; l != nil {
		defaultPtr(&l.NominalConcurrencyShares, 30)
		defaultPtr(&l.LendablePercent, 0)
		if q := l.LimitResponse.Queuing; q != nil {
			defaultTo(&q.HandSize, 8)
			defaultTo(&q.Queues, 64)
			defaultTo(&q.QueueLengthLimit, 50)
		}
	}
}

func flowMetadata(meta, old *metav1.ObjectMeta) problems {
	return metadata(meta, old, false, apivalidation.NameIsDNSSubdomain)
}

func flowStatus(meta, old *metav1.ObjectMeta, s *types.FlowStatus) field.ErrorList {
	e := flowMetadata(meta, old)
	e.flowConditions(s)
	return e.list()
}

func (e *problems) flowConditions(s *types.FlowStatus) {
	for i, c := range s.Conditions {
		p := field.NewPath("status", "conditions").Index(i).Child("type")
		if slices.ContainsFunc(s.Conditions[:i], func(o types.FlowCondition) bool { return o.Type == c.Type }) {
			e.duplicate(p, c.Type)
		}
		if c.Type == "" {
			e.required(p, "must not be empty")
		}
	}
}

func validateFlowSchema(o, old *types.FlowSchema) field.ErrorList {
	e := flowMetadata(&o.ObjectMeta, metaOf(old))
	spec, p := &o.Spec, field.NewPath("spec")
	precedence := p.Child("matchingPrecedence")
	if spec.MatchingPrecedence <= 0 {
		e.invalid(precedence, spec.MatchingPrecedence, "must be a positive value")
	}
	if spec.MatchingPrecedence > types.MaxPrecedence {
		e.invalid(precedence, spec.MatchingPrecedence, fmt.Sprintf("must not be greater than %d", types.MaxPrecedence))
	}
	if spec.MatchingPrecedence == 1 && o.Name != flow.Exempt {
		e.invalid(precedence, spec.MatchingPrecedence, "only the schema named 'exempt' may have matchingPrecedence 1")
	}
	methods := []string{types.ByNamespace, types.ByUser}
	if m := spec.DistinguisherMethod; m != nil && !slices.Contains(methods, m.Type) {
		e.add(field.NotSupported(p.Child("distinguisherMethod", "type"), m.Type, methods))
	}
	if level := p.Child("priorityLevelConfiguration", "name"); spec.PriorityLevelConfiguration.Name == "" {
		e.required(level, "must reference a priority level")
	} else {
		e.each(level, spec.PriorityLevelConfiguration.Name, apivalidation.NameIsDNSSubdomain(spec.PriorityLevelConfiguration.Name, false))
	}
	for i := range spec.Rules {
		e.flowRules(p.Child("rules").Index(i), &spec.Rules[i])
	}
	if fixed := flow.FixedSchema(o.Name); fixed != nil && !equality.Semantic.DeepEqual(*spec, fixed.Spec) {
		e.invalid(p, *spec, fmt.Sprintf("spec of '%s' must equal the fixed value", o.Name))
	}
	e.flowConditions(&o.Status)
	return e.list()
}

func (e *problems) flowRules(p *field.Path, r *types.PolicyRulesWithSubjects) {
	if len(r.Subjects) == 0 {
		e.required(p.Child("subjects"), "subjects must contain at least one value")
	}
	for i := range r.Subjects {
		e.flowSubject(p.Child("subjects").Index(i), &r.Subjects[i])
	}
	if len(r.ResourceRules) == 0 && len(r.NonResourceRules) == 0 {
		e.required(p, "at least one of resourceRules and nonResourceRules has to be non-empty")
	}
	for i := range r.ResourceRules {
		at, o := p.Child("resourceRules").Index(i), &r.ResourceRules[i]
		e.flowVerbs(at, o.Verbs)
		e.allOrSome(at.Child("apiGroups"), o.APIGroups, "resource rules must supply at least one api group", "api groups")
		e.allOrSome(at.Child("resources"), o.Resources, "resource rules must supply at least one resource", "resources")
		spaces := at.Child("namespaces")
		if len(o.Namespaces) == 0 && o.ClusterScope {
			continue
		}
		if !e.allOrSome(spaces, o.Namespaces, "resource rules that are not cluster scoped must supply at least one namespace", "namespaces") {
			continue
		}
		for j, name := range o.Namespaces {
			for _, why := range apivalidation.ValidateNamespaceName(name, false) {
				e.invalid(spaces.Index(j), name, "each member of this list must be '*' or a DNS-1123 label; "+why)
			}
		}
	}
	for i := range r.NonResourceRules {
		at, o := p.Child("nonResourceRules").Index(i), &r.NonResourceRules[i]
		e.flowVerbs(at, o.Verbs)
		urls := at.Child("nonResourceURLs")
		if !e.allOrSome(urls, o.NonResourceURLs, "nonResourceURLs must contain at least one value", "non-resource URLs") {
			continue
		}
		for j, path := range o.NonResourceURLs {
			if why := wrongPath(path); why != "" {
				e.invalid(urls.Index(j), path, why)
			}
		}
	}
}

// allOrSome is of a list that may be one "*" for everything. It says whether it is
// of particular things, each of which has to be looked at.
func (e *problems) allOrSome(p *field.Path, list []string, none, others string) bool {
	switch {
	case len(list) == 0:
		e.required(p, none)
	case !slices.Contains(list, "*"):
		return true
	case len(list) > 1:
		e.invalid(p, list, "if '*' is present, must not specify other "+others)
	}
	return false
}

var flowVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}

func (e *problems) flowVerbs(p *field.Path, verbs []string) {
	p = p.Child("verbs")
	if e.allOrSome(p, verbs, "verbs must contain at least one value", "verbs") && !sets.New(flowVerbs...).HasAll(verbs...) {
		e.add(field.NotSupported(p, verbs, flowVerbs))
	}
}

func wrongPath(path string) string {
	stars := strings.Count(path, "*")
	switch {
	case path == "":
		return "must not be empty"
	case !strings.HasPrefix(path, "/"):
		return "must start with slash"
	case strings.Contains(path, " "):
		return "must not contain white-space"
	case strings.Contains(path, "//"):
		return "must not contain double slash"
	case stars > 1 || stars == 1 && !strings.HasSuffix(path, "/*"):
		return "wildcard can only do suffix matching"
	}
	return ""
}

func (e *problems) flowSubject(p *field.Path, s *types.FlowSubject) {
	known := []string{types.GroupKind, types.ServiceAccountKind, types.UserKind}
	if !slices.Contains(known, s.Kind) {
		e.add(field.NotSupported(p.Child("kind"), s.Kind, known))
		return
	}
	for _, of := range []struct {
		kind, field string
		given       bool
		check       func(p *field.Path)
	}{
		{types.ServiceAccountKind, "serviceAccount", s.ServiceAccount != nil, func(p *field.Path) { e.flowAccount(p, s.ServiceAccount) }},
		{types.UserKind, "user", s.User != nil, func(p *field.Path) { e.nonEmpty(p.Child("name"), s.User.Name) }},
		{types.GroupKind, "group", s.Group != nil, func(p *field.Path) { e.nonEmpty(p.Child("name"), s.Group.Name) }},
	} {
		at := p.Child(of.field)
		switch {
		case of.kind == s.Kind && !of.given:
			e.required(at, fmt.Sprintf("%s is required when subject kind is '%s'", of.field, of.kind))
		case of.kind == s.Kind:
			of.check(at)
		case of.given:
			e.forbidden(at, fmt.Sprintf("%s is forbidden when subject kind is not '%s'", of.field, of.kind))
		}
	}
}

func (e *problems) flowAccount(p *field.Path, s *types.ServiceAccountSubject) {
	if e.nonEmpty(p.Child("name"), s.Name) && s.Name != "*" {
		e.each(p.Child("name"), s.Name, apivalidation.ValidateServiceAccountName(s.Name, false))
	}
	if s.Namespace == "" {
		e.required(p.Child("namespace"), "must specify namespace for service account")
	} else {
		e.each(p.Child("namespace"), s.Namespace, apivalidation.ValidateNamespaceName(s.Namespace, false))
	}
}

func validatePriorityLevel(o, old *types.PriorityLevelConfiguration) field.ErrorList {
	e := flowMetadata(&o.ObjectMeta, metaOf(old))
	spec, p := &o.Spec, field.NewPath("spec")
	if (o.Name == flow.Exempt) != (spec.Type == types.Exempt) {
		e.invalid(p.Child("type"), spec.Type, "type must be 'Exempt' if and only if name is 'exempt'")
	}
	switch spec.Type {
	case types.Exempt:
		if spec.Limited != nil {
			e.forbidden(p.Child("limited"), "must be nil if the type is not Limited")
		}
		if spec.Exempt != nil {
			e.exemptLevel(p.Child("exempt"), spec.Exempt)
		}
	case types.Limited:
		if spec.Exempt != nil {
			e.forbidden(p.Child("exempt"), "must be nil if the type is Limited")
		}
		if spec.Limited == nil {
			e.required(p.Child("limited"), "must not be empty when type is Limited")
		} else {
			e.limitedLevel(p.Child("limited"), spec.Limited)
		}
	default:
		e.add(field.NotSupported(p.Child("type"), spec.Type, []string{types.Exempt, types.Limited}))
	}
	if fixed := flow.FixedLevel(o.Name); fixed != nil {
		have, want, but := *spec, fixed.Spec, ""
		if o.Name == flow.Exempt {
			have.Exempt, want.Exempt, but = nil, nil, " except the 'spec.exempt' field"
		}
		if !equality.Semantic.DeepEqual(have, want) {
			e.invalid(p, *spec, fmt.Sprintf("spec of '%s'%s must equal the fixed value", o.Name, but))
		}
	}
	e.flowConditions(&o.Status)
	return e.list()
}

func (e *problems) notNegative(p *field.Path, n *int32, why string) {
	if n != nil && *n < 0 {
		e.invalid(p, *n, why)
	}
}

func (e *problems) percent(p *field.Path, n *int32) {
	if n != nil && (*n < 0 || *n > 100) {
		e.invalid(p, *n, "must be between 0 and 100, inclusive")
	}
}

func (e *problems) exemptLevel(p *field.Path, l *types.ExemptedLevel) {
	e.notNegative(p.Child("nominalConcurrencyShares"), l.NominalConcurrencyShares, "must be a non-negative integer")
	e.percent(p.Child("lendablePercent"), l.LendablePercent)
}

func (e *problems) limitedLevel(p *field.Path, l *types.LimitedLevel) {
	e.notNegative(p.Child("nominalConcurrencyShares"), l.NominalConcurrencyShares, "must be a non-negative integer")
	response, queuing := p.Child("limitResponse"), p.Child("limitResponse", "queuing")
	switch l.LimitResponse.Type {
	case types.Reject:
		if l.LimitResponse.Queuing != nil {
			e.forbidden(queuing, "must be nil if limited.limitResponse.type is not Limited")
		}
	case types.Queue:
		if l.LimitResponse.Queuing == nil {
			e.required(queuing, "must not be empty if limited.limitResponse.type is Limited")
		} else {
			e.queuing(queuing, l.LimitResponse.Queuing)
		}
	default:
		e.add(field.NotSupported(response.Child("type"), l.LimitResponse.Type, []string{types.Queue, types.Reject}))
	}
	e.percent(p.Child("lendablePercent"), l.LendablePercent)
	e.notNegative(p.Child("borrowingLimitPercent"), l.BorrowingLimitPercent, "if specified, must be a non-negative integer")
}

const maxQueues = 10_000_000

func (e *problems) queuing(p *field.Path, q *types.QueuingConfiguration) {
	if q.QueueLengthLimit <= 0 {
		e.invalid(p.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive")
	}
	if q.Queues <= 0 {
		e.invalid(p.Child("queues"), q.Queues, "must be positive")
	} else if q.Queues > maxQueues {
		e.invalid(p.Child("queues"), q.Queues, fmt.Sprintf("must not be greater than %d", maxQueues))
	}
	hand := p.Child("handSize")
	switch {
	case q.HandSize <= 0:
		e.invalid(hand, q.HandSize, "must be positive")
	case q.HandSize > q.Queues:
		e.invalid(hand, q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues))
	case flow.Entropy(int(q.Queues), int(q.HandSize)) > flow.MaxEntropy:
		e.invalid(hand, q.HandSize, fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, flow.MaxEntropy))
	}
}
