package kinds

import (
	"slices"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/flow"
	"conclave/api/types"
)

const (
	flowSchemas    = "flowschemas.flowcontrol.apiserver.k8s.io"
	priorityLevels = "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io"
)

// TestFlowSystem: what every cluster has is right, and no default changes it.
func TestFlowSystem(t *testing.T) {
	for _, o := range flow.Schemas() {
		was := o.DeepCopyObject()
		table[flowSchemas].Default(o)
		expect(t, table[flowSchemas].Validate(o))
		if !equality.Semantic.DeepEqual(was, o) {
			t.Errorf("%s has defaults: %+v", o.Name, o.Spec)
		}
	}
	for _, o := range flow.Levels() {
		was := o.DeepCopyObject()
		table[priorityLevels].Default(o)
		expect(t, table[priorityLevels].Validate(o))
		if !equality.Semantic.DeepEqual(was, o) {
			t.Errorf("%s has defaults: %+v", o.Name, o.Spec)
		}
	}
}

func TestFlowSchemas(t *testing.T) {
	good := `
metadata: {name: x}
spec:
  priorityLevelConfiguration: {name: system}
  rules:
  - subjects: [{kind: User, user: {name: "*"}}, {kind: Group, group: {name: g}}, {kind: ServiceAccount, serviceAccount: {namespace: shop, name: "*"}}]
    resourceRules: [{verbs: [get, list], apiGroups: [""], resources: [pods/status], namespaces: [shop]}, {verbs: ["*"], apiGroups: ["*"], resources: ["*"], clusterScope: true}]
    nonResourceRules: [{verbs: ["*"], nonResourceURLs: ["*"]}, {verbs: [get], nonResourceURLs: [/, /livez, /openapi/*]}]
`
	o := parse[*types.FlowSchema](t, flowSchemas, good)
	expect(t, table[flowSchemas].Validate(o))
	if o.Spec.MatchingPrecedence != 1000 || o.Spec.DistinguisherMethod != nil {
		t.Errorf("%+v", o.Spec)
	}
	rules := func(text string) string {
		return "{metadata: {name: x}, spec: {priorityLevelConfiguration: {name: system}, rules: [" + text + "]}}"
	}
	subject := func(text string) string {
		return rules("{subjects: [" + text + "], nonResourceRules: [{verbs: [get], nonResourceURLs: [/]}]}")
	}
	resource := func(text string) string {
		return rules("{subjects: [{kind: User, user: {name: ann}}], resourceRules: [" + text + "]}")
	}
	path := func(text string) string {
		return rules("{subjects: [{kind: User, user: {name: ann}}], nonResourceRules: [" + text + "]}")
	}
	const s0, r0, n0 = "spec.rules[0].subjects[0]", "spec.rules[0].resourceRules[0]", "spec.rules[0].nonResourceRules[0]"
	for _, tc := range []struct {
		text string
		want []string
	}{
		{"{metadata: {name: X}, spec: {matchingPrecedence: -1}}", []string{
			`metadata.name: Invalid value: "X": a lowercase RFC 1123 subdomain…`, "spec.matchingPrecedence: Invalid value: -1: must be a positive value",
			"spec.priorityLevelConfiguration.name: Required value: must reference a priority level"}},
		{"{metadata: {name: x}, spec: {matchingPrecedence: 10001, priorityLevelConfiguration: {name: A}, distinguisherMethod: {type: ByAge}}}", []string{
			"spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000",
			`spec.distinguisherMethod.type: Unsupported value: "ByAge": supported values: "ByNamespace", "ByUser"`,
			`spec.priorityLevelConfiguration.name: Invalid value: "A": a lowercase RFC 1123 subdomain…`}},
		{"{metadata: {name: x}, spec: {matchingPrecedence: 1, priorityLevelConfiguration: {name: a}}}", []string{
			"spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1"}},
		{rules("{}"), []string{
			"spec.rules[0].subjects: Required value: subjects must contain at least one value",
			"spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty"}},
		{subject("{kind: Robot}"), []string{s0 + `.kind: Unsupported value: "Robot": supported values: "Group", "ServiceAccount", "User"`}},
		{subject("{kind: User}"), []string{s0 + ".user: Required value: user is required when subject kind is 'User'"}},
		{subject("{kind: Group, group: {name: ''}, user: {name: a}, serviceAccount: {}}"), []string{
			s0 + ".serviceAccount: Forbidden: serviceAccount is forbidden when subject kind is not 'ServiceAccount'",
			s0 + ".user: Forbidden: user is forbidden when subject kind is not 'User'", s0 + ".group.name: Required value"}},
		{subject("{kind: ServiceAccount, serviceAccount: {name: A_}}"), []string{
			s0 + `.serviceAccount.name: Invalid value: "A_": a lowercase RFC 1123 subdomain…`, s0 + ".serviceAccount.namespace: Required value: must specify namespace for service account"}},
		{subject("{kind: ServiceAccount, serviceAccount: {name: '*', namespace: '*'}}"), []string{s0 + `.serviceAccount.namespace: Invalid value: "*": a lowercase RFC 1123 label…`}},
		{resource("{}"), []string{
			r0 + ".verbs: Required value: verbs must contain at least one value", r0 + ".apiGroups: Required value: resource rules must supply at least one api group",
			r0 + ".resources: Required value: resource rules must supply at least one resource",
			r0 + ".namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace"}},
		{resource("{verbs: ['*', get], apiGroups: ['*', ''], resources: ['*', pods], namespaces: ['*', shop]}"), []string{
			r0 + `.verbs: Invalid value: ["*","get"]: if '*' is present, must not specify other verbs`, r0 + `.apiGroups: Invalid value: ["*",""]: if '*' is present, must not specify other api groups`,
			r0 + `.resources: Invalid value: ["*","pods"]: if '*' is present, must not specify other resources`, r0 + `.namespaces: Invalid value: ["*","shop"]: if '*' is present, must not specify other namespaces`}},
		{resource("{verbs: [eat], apiGroups: [''], resources: [pods], namespaces: [Shop]}"), []string{
			r0 + `.verbs: Unsupported value: ["eat"]: supported values: "create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"`,
			r0 + `.namespaces[0]: Invalid value: "Shop": each member of this list must be '*' or a DNS-1123 label; a lowercase RFC 1123 label…`}},
		{path("{verbs: [get]}"), []string{n0 + ".nonResourceURLs: Required value: nonResourceURLs must contain at least one value"}},
		{path("{verbs: [get], nonResourceURLs: ['*', /]}"), []string{n0 + `.nonResourceURLs: Invalid value: ["*","/"]: if '*' is present, must not specify other non-resource URLs`}},
		{path("{verbs: [get], nonResourceURLs: ['', a, '/a b', //, '/a*', '/*/*']}"), []string{
			n0 + `.nonResourceURLs[0]: Invalid value: "": must not be empty`, n0 + `.nonResourceURLs[1]: Invalid value: "a": must start with slash`,
			n0 + `.nonResourceURLs[2]: Invalid value: "/a b": must not contain white-space`, n0 + `.nonResourceURLs[3]: Invalid value: "//": must not contain double slash`,
			n0 + `.nonResourceURLs[4]: Invalid value: "/a*": wildcard can only do suffix matching`, n0 + `.nonResourceURLs[5]: Invalid value: "/*/*": wildcard can only do suffix matching`}},
		{"{metadata: {name: catch-all}, spec: {matchingPrecedence: 10000, priorityLevelConfiguration: {name: catch-all}}}", []string{"spec: Invalid value: …"}},
		{"{metadata: {name: x}, spec: {priorityLevelConfiguration: {name: a}}, status: {conditions: [{type: a}, {type: a}, {}]}}", []string{
			`status.conditions[1].type: Duplicate value: "a"`, "status.conditions[2].type: Required value: must not be empty"}},
	} {
		expect(t, table[flowSchemas].Validate(parse[*types.FlowSchema](t, flowSchemas, tc.text)), tc.want...)
	}
	// Its status is a part of its own, and so is all the rest.
	old := parse[*types.FlowSchema](t, flowSchemas, good)
	old.Generation, old.ResourceVersion = 3, "7"
	next := old.DeepCopyObject().(*types.FlowSchema)
	next.Spec.MatchingPrecedence, next.Labels, next.Status.Conditions = 5, map[string]string{"a": "b"}, []types.FlowCondition{{Type: "Dangling"}}
	status := next.DeepCopyObject().(*types.FlowSchema)
	table[flowSchemas].PrepareForUpdate(next, old)
	table[flowSchemas].PrepareForStatusUpdate(status, old)
	if next.Generation != 4 || len(next.Status.Conditions) > 0 || next.Labels == nil {
		t.Errorf("updated: %+v", next)
	}
	if status.Generation != 3 || len(status.Status.Conditions) != 1 || status.Spec.MatchingPrecedence != 1000 || status.Labels != nil {
		t.Errorf("with another status: %+v", status)
	}
	expect(t, table[flowSchemas].ValidateStatusUpdate(status, old))
	status.Status.Conditions[0].Type = ""
	expect(t, table[flowSchemas].ValidateStatusUpdate(status, old), "status.conditions[0].type: Required value: must not be empty")
}

func TestPriorityLevels(t *testing.T) {
	o := parse[*types.PriorityLevelConfiguration](t, priorityLevels, "{metadata: {name: x}, spec: {type: Limited, limited: {limitResponse: {type: Queue, queuing: {}}}}}")
	expect(t, table[priorityLevels].Validate(o))
	if l := o.Spec.Limited; *l.NominalConcurrencyShares != 30 || *l.LendablePercent != 0 || l.BorrowingLimitPercent != nil || *l.LimitResponse.Queuing != (types.QueuingConfiguration{Queues: 64, HandSize: 8, QueueLengthLimit: 50}) {
		t.Errorf("%+v", l)
	}
	limited := func(text string) string {
		return "{metadata: {name: x}, spec: {type: Limited, limited: {" + text + "}}}"
	}
	queuing := func(text string) string { return limited("limitResponse: {type: Queue, queuing: {" + text + "}}") }
	const q = "spec.limited.limitResponse.queuing"
	for _, tc := range []struct {
		text string
		want []string
	}{
		{limited("nominalConcurrencyShares: 0, limitResponse: {type: Reject}"), nil},
		{"{metadata: {name: x}, spec: {type: Free}}", []string{`spec.type: Unsupported value: "Free": supported values: "Exempt", "Limited"`}},
		{"{metadata: {name: x}, spec: {type: Limited, exempt: {}}}", []string{"spec.exempt: Forbidden: must be nil if the type is Limited", "spec.limited: Required value: must not be empty when type is Limited"}},
		{"{metadata: {name: x}, spec: {type: Exempt, limited: {limitResponse: {type: Reject}}}}", []string{
			`spec.type: Invalid value: "Exempt": type must be 'Exempt' if and only if name is 'exempt'`, "spec.limited: Forbidden: must be nil if the type is not Limited"}},
		{"{metadata: {name: exempt}, spec: {type: Limited, limited: {limitResponse: {type: Reject}}}}", []string{
			`spec.type: Invalid value: "Limited": type must be 'Exempt' if and only if name is 'exempt'`, "spec: Invalid value: …"}},
		{"{metadata: {name: exempt}, spec: {type: Exempt, exempt: {nominalConcurrencyShares: 7, lendablePercent: 10}}}", nil},
		{"{metadata: {name: exempt}, spec: {type: Exempt, exempt: {nominalConcurrencyShares: -1, lendablePercent: 101}}}", []string{
			"spec.exempt.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer", "spec.exempt.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive"}},
		{"{metadata: {name: catch-all}, spec: {type: Limited, limited: {nominalConcurrencyShares: 6, limitResponse: {type: Reject}}}}", []string{"spec: Invalid value: …"}},
		{limited("nominalConcurrencyShares: -1, lendablePercent: 101, borrowingLimitPercent: -1"), []string{
			"spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer",
			`spec.limited.limitResponse.type: Unsupported value: "": supported values: "Queue", "Reject"`,
			"spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive",
			"spec.limited.borrowingLimitPercent: Invalid value: -1: if specified, must be a non-negative integer"}},
		{limited("limitResponse: {type: Reject, queuing: {}}"), []string{q + ": Forbidden: must be nil if limited.limitResponse.type is not Limited"}},
		{limited("limitResponse: {type: Queue}"), []string{q + ": Required value: must not be empty if limited.limitResponse.type is Limited"}},
		{queuing("queues: -1, handSize: -1, queueLengthLimit: -1"), []string{
			q + ".queueLengthLimit: Invalid value: -1: must be positive", q + ".queues: Invalid value: -1: must be positive", q + ".handSize: Invalid value: -1: must be positive"}},
		{queuing("queues: 10000001, handSize: 1"), []string{q + ".queues: Invalid value: 10000001: must not be greater than 10000000"}},
		{queuing("queues: 4"), []string{q + ".handSize: Invalid value: 8: should not be greater than queues (4)"}},
		{queuing("queues: 512, handSize: 8"), []string{q + ".handSize: Invalid value: 8: required entropy bits of deckSize 512 and handSize 8 should not be greater than 60"}},
	} {
		expect(t, table[priorityLevels].Validate(parse[*types.PriorityLevelConfiguration](t, priorityLevels, tc.text)), tc.want...)
	}
}

func TestFlowColumns(t *testing.T) {
	now := time.Unix(1e9, 0)
	since := metav1.NewTime(now.Add(-time.Minute * 5))
	s := flow.Schemas()[1]
	s.CreationTimestamp = since
	cells := table[flowSchemas].Cells
	if got := cells(s, now); !slices.Equal(got, []any{"probes", "exempt", int64(2), "<none>", "5m", "?"}) {
		t.Error(got)
	}
	s = flow.Schemas()[2]
	s.CreationTimestamp, s.Status.Conditions = since, []types.FlowCondition{{Type: types.FlowSchemaDangling, Status: "False"}}
	if got := cells(s, now); !slices.Equal(got, []any{"system-leader-election", "leader-election", int64(100), "ByUser", "5m", "False"}) {
		t.Error(got)
	}
	for i, want := range [][]any{
		{"exempt", "Exempt", "<none>", "<none>", "<none>", "<none>", "5m"},
		{"catch-all", "Limited", int64(5), "<none>", "<none>", "<none>", "5m"},
		{"system", "Limited", int64(30), int64(64), int64(6), int64(50), "5m"},
	} {
		l := flow.Levels()[i]
		l.CreationTimestamp = since
		if got := table[priorityLevels].Cells(l, now); !slices.Equal(got, want) {
			t.Error(got)
		}
	}
}
