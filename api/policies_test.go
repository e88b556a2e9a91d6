package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"conclave/api"
	"conclave/api/types"
)

const policiesPath = "/apis/admissionregistration.k8s.io/v1/"

// policyOf is a policy of a kind, Validating or Mutating, with a binding of the
// same name. Both specs are YAML in flow style.
func (st *site) policy(kind, name, spec, binding string) {
	st.t.Helper()
	for _, o := range []struct{ kind, plural, spec string }{
		{kind + "AdmissionPolicy", "admissionpolicies", spec},
		{kind + "AdmissionPolicyBinding", "admissionpolicybindings", fmt.Sprintf("{policyName: %s%s}", name, binding)},
	} {
		body := fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: %s, metadata: {name: %s}, spec: %s}", o.kind, name, o.spec)
		st.post(policiesPath+strings.ToLower(kind)+o.plural, body, 201)
	}
}

func (st *site) noPolicy(kind, name string) {
	st.t.Helper()
	for _, plural := range []string{"admissionpolicies", "admissionpolicybindings"} {
		if a := st.request(st.admin(), "DELETE", policiesPath+strings.ToLower(kind)+plural+"/"+name, ""); a.code != 200 {
			st.t.Fatalf("%d %s", a.code, a.body)
		}
	}
}

const (
	ofConfigMaps = `matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [configmaps]}]}`
	denies       = `, validationActions: [Deny]`
)

func configMap(name, data string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, labels: {team: a}}, data: %s}", name, data)
}

// sends posts YAML as JSON.
func (st *site) sends(path, text string) answer {
	st.t.Helper()
	body, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		st.t.Fatal(err)
	}
	return st.request(st.admin(), "POST", path, string(body))
}

// TestValidatingPolicies is of what a policy refuses, and how it says so.
func TestValidatingPolicies(t *testing.T) {
	st := newSite(t)
	st.post(cms, configMap("limits", `{max: "3"}`), 201)
	st.post(cms, "{apiVersion: v1, kind: ConfigMap, metadata: {name: more, labels: {limits: yes-please}}, data: {max: \"2\"}}", 201)
	const params = `, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "object.data.num.size() <= int(params.data.max)"}]`
	n := 0
	for name, tc := range map[string]struct {
		spec, binding, data string
		code                int
		reason              metav1.StatusReason
		message             string // empty: it is let through
		warning             string
	}{
		"true":        {`, validations: [{expression: "object.data.num == '1'"}]`, denies, `{num: "1"}`, 201, "", "", ""},
		"false":       {`, validations: [{expression: "object.data.num == '1'"}]`, denies, `{num: "2"}`, 422, "Invalid", "failed expression: object.data.num == '1'", ""},
		"message":     {`, validations: [{expression: "false", message: " not so "}]`, denies, `{}`, 422, "Invalid", "not so", ""},
		"reason":      {`, validations: [{expression: "false", message: m, reason: Forbidden}]`, denies, `{}`, 403, "Forbidden", "m", ""},
		"too large":   {`, validations: [{expression: "false", message: m, reason: RequestEntityTooLarge}]`, denies, `{}`, 413, "RequestEntityTooLarge", "m", ""},
		"expressed":   {`, validations: [{expression: "false", messageExpression: "'n is ' + object.data.num", message: m}]`, denies, `{num: "2"}`, 422, "Invalid", "n is 2", ""},
		"inexpressed": {`, validations: [{expression: "false", messageExpression: "string(object.data.missing)", message: m}]`, denies, `{}`, 422, "Invalid", "m", ""},
		"lines":       {`, validations: [{expression: "false", messageExpression: "'a\\nb'", message: m}]`, denies, `{}`, 422, "Invalid", "m", ""},
		"the first":   {`, validations: [{expression: "true"}, {expression: "false", message: a}, {expression: "false", message: b}]`, denies, `{}`, 422, "Invalid", "a", ""},
		"warns":       {`, validations: [{expression: "false", message: m}]`, `, validationActions: [Warn, Audit]`, `{}`, 201, "", "", "m"},
		"audits":      {`, validations: [{expression: "false", message: m}]`, `, validationActions: [Audit]`, `{}`, 201, "", "", ""},
		"error":       {`, validations: [{expression: "object.data.missing == ''"}]`, denies, `{a: b}`, 422, "Invalid", "expression 'object.data.missing == ''' resulted in error: no such key: missing", ""},
		"ignored":     {`, failurePolicy: Ignore, validations: [{expression: "object.data.missing == ''"}]`, denies, `{a: b}`, 201, "", "", ""},
		"not ignored": {`, failurePolicy: Ignore, validations: [{expression: "false", message: m}]`, denies, `{}`, 422, "Invalid", "m", ""},
		"conditions":  {`, matchConditions: [{name: a, expression: "object.data.num == '1'"}], validations: [{expression: "false"}]`, denies, `{num: "2"}`, 201, "", "", ""},
		"their error": {`, matchConditions: [{name: a, expression: "object.data.num == '1'"}], validations: [{expression: "true"}]`, denies, `{a: b}`, 422, "Invalid", "expression 'object.data.num == '1'' resulted in error: no such key: num", ""},
		"variables": {`, variables: [{name: num, expression: "int(object.data.num)"}, {name: twice, expression: "variables.num * 2"}], validations: [{expression: "variables.twice < 5", messageExpression: "'twice is ' + string(variables.twice)"}]`,
			denies, `{num: "3"}`, 422, "Invalid", "twice is 6", ""},
		"lazy":      {`, variables: [{name: bad, expression: "int(object.data.num)"}], validations: [{expression: "true || variables.bad > 1"}]`, denies, `{num: x}`, 201, "", "", ""},
		"namespace": {`, validations: [{expression: "namespaceObject.metadata.name == 'default' && namespaceObject.metadata.labels['kubernetes.io/metadata.name'] == request.namespace"}]`, denies, `{}`, 201, "", "", ""},
		"rights":    {`, validations: [{expression: "authorizer.serviceAccount('default', 'nobody').group('').resource('secrets').check('get').allowed()", message: m}]`, denies, `{}`, 422, "Invalid", "m", ""},
		"audit value": {`, auditAnnotations: [{key: k, valueExpression: "string(object.data.missing)"}]`, `, validationActions: [Audit]`, `{a: b}`, 422, "Invalid",
			"expression 'string(object.data.missing)' resulted in error: no such key: missing", ""},
		"selected":         {`, validations: [{expression: "false", message: m}]`, denies + `, matchResources: {objectSelector: {matchLabels: {team: a}}}`, `{}`, 422, "Invalid", "m", ""},
		"not selected":     {`, validations: [{expression: "false"}]`, denies + `, matchResources: {objectSelector: {matchLabels: {team: b}}}`, `{}`, 201, "", "", ""},
		"another space":    {`, validations: [{expression: "false"}]`, denies + `, matchResources: {namespaceSelector: {matchLabels: {"kubernetes.io/metadata.name": other}}}`, `{}`, 201, "", "", ""},
		"another name":     {`, validations: [{expression: "false"}]`, denies + `, matchResources: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: ["*"], resources: [configmaps], resourceNames: [other]}]}`, `{}`, 201, "", "", ""},
		"excluded":         {`, validations: [{expression: "false"}]`, denies + `, matchResources: {excludeResourceRules: [{apiGroups: [""], apiVersions: [v1], operations: ["*"], resources: [configmaps]}]}`, `{}`, 201, "", "", ""},
		"parameter":        {params, denies + `, paramRef: {name: limits, parameterNotFoundAction: Deny}`, `{num: abc}`, 201, "", "", ""},
		"its limit":        {params, denies + `, paramRef: {name: limits, parameterNotFoundAction: Deny}`, `{num: abcd}`, 422, "Invalid", "failed expression: object.data.num.size() <= int(params.data.max)", ""},
		"of a namespace":   {params, denies + `, paramRef: {name: limits, namespace: other, parameterNotFoundAction: Allow}`, `{num: abcd}`, 201, "", "", ""},
		"all of them":      {params, denies + `, paramRef: {selector: {matchLabels: {limits: yes-please}}, parameterNotFoundAction: Deny}`, `{num: abc}`, 422, "Invalid", "failed expression: object.data.num.size() <= int(params.data.max)", ""},
		"none":             {params, denies + `, paramRef: {name: gone, parameterNotFoundAction: Deny}`, `{num: a}`, 422, "Invalid", "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction", ""},
		"none, let be":     {params, denies + `, paramRef: {name: gone, parameterNotFoundAction: Allow}`, `{num: abcd}`, 201, "", "", ""},
		"no reference":     {`, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "params == null"}]`, denies, `{}`, 201, "", "", ""},
		"an unknown kind":  {`, paramKind: {apiVersion: example.com/v1, kind: Limit}, validations: [{expression: "true"}]`, denies + `, paramRef: {name: a, parameterNotFoundAction: Allow}`, `{}`, 422, "Invalid", "failed to configure binding: paramKind kind `example.com/v1, Kind=Limit` not known", ""},
		"of whole cluster": {`, paramKind: {apiVersion: v1, kind: Namespace}, validations: [{expression: "params.metadata.name == 'default' && params.kind == 'Namespace'"}]`, denies + `, paramRef: {name: default, parameterNotFoundAction: Deny}`, `{}`, 201, "", "", ""},
	} {
		st.policy("Validating", "p", "{"+ofConfigMaps+tc.spec+"}", tc.binding)
		n++
		cm := fmt.Sprintf("c%d", n)
		a := st.sends(cms, configMap(cm, tc.data))
		switch {
		case a.code != tc.code:
			t.Errorf("%s: %d %s", name, a.code, a.body)
		case tc.message != "":
			s := a.status(t)
			said := "ValidatingAdmissionPolicy 'p' with binding 'p' denied request: " + tc.message
			if s.Message != fmt.Sprintf("configmaps %q is forbidden: %s", cm, said) || s.Reason != tc.reason || len(s.Details.Causes) != 1 || s.Details.Causes[0].Message != said {
				t.Errorf("%s: %s", name, a.body)
			}
		default:
			want := ""
			if tc.warning != "" {
				want = fmt.Sprintf(`299 - "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': %s"`, tc.warning)
			}
			if got := a.header.Get("Warning"); got != want {
				t.Errorf("%s: warned %q", name, got)
			}
		}
		st.noPolicy("Validating", "p")
	}
}

// TestPolicyBindings has each binding decide for itself, and a replica that cannot
// catch up blame no policy.
func TestPolicyBindings(t *testing.T) {
	st := newSite(t)
	st.policy("Validating", "p", "{"+ofConfigMaps+`, paramKind: {apiVersion: v1, kind: ConfigMap}, validations: [{expression: "false", message: m}]}`, denies+`, matchResources: {objectSelector: {matchLabels: {team: none}}}`)
	bind := func(name, more string) {
		t.Helper()
		st.post(policiesPath+"validatingadmissionpolicybindings", fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicyBinding, metadata: {name: %s}, spec: {policyName: p%s}}", name, more), 201)
	}
	st.post(cms, configMap("a", "{}"), 201)
	bind("q", `, validationActions: [Warn]`) // everywhere
	if a := st.sends(cms, configMap("b", "{}")); a.code != 201 || a.header.Get("Warning") != `299 - "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'q': m"` {
		t.Errorf("%d %v", a.code, a.header)
	}
	bind("r", denies+`, paramRef: {name: gone, parameterNotFoundAction: Deny}`)
	if a := st.sends(cms, configMap("c", "{}")); a.code != 422 || !strings.Contains(a.status(t).Message, "with binding 'r' denied request: failed to configure binding: no params found") {
		t.Errorf("%d %s", a.code, a.body)
	}
	st.store.FailSync(api.ErrNoLeader)
	if a := st.sends(cms, configMap("d", "{}")); a.code != 503 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestPoliciesAskedAbout has policies see all that webhooks see, and not
// themselves.
func TestPoliciesAskedAbout(t *testing.T) {
	st := newSite(t)
	st.post(cms, configMap("was", `{}`), 201)
	st.policy("Validating", "all", `{matchConstraints: {resourceRules: [{apiGroups: ["*"], apiVersions: ["*"], operations: ["*"], resources: ["*/*"]}]}, validations: [{expression: "false", messageExpression: "request.operation + ' ' + request.resource.resource"}]}`, denies)
	rt := st.admin()
	for _, tc := range []struct{ method, path, body, want string }{
		{"POST", cms, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}`, "CREATE configmaps"},
		{"PUT", cms + "/was", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"was"},"data":{"a":"b"}}`, "UPDATE configmaps"},
		{"DELETE", cms + "/was", "", "DELETE configmaps"},
		{"DELETE", cms, "", "DELETE configmaps"},
		{"POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`, "CREATE selfsubjectreviews"},
		{"POST", "/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"n"}}`, "CREATE namespaces"},
	} {
		if a := st.request(rt, tc.method, tc.path, tc.body); a.code != 422 || !strings.HasSuffix(a.status(t).Message, ": "+tc.want) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, a.code, a.body)
		}
	}
	st.noPolicy("Validating", "all")
	st.post(cms, configMap("x", `{}`), 201)
}

// TestMutatingPolicies is of what a policy changes.
func TestMutatingPolicies(t *testing.T) {
	st := newSite(t)
	st.post(cms, configMap("defaults", `{v: fromparam}`), 201)
	apply := func(text string) string {
		return fmt.Sprintf(`, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: %q}}]`, text)
	}
	patch := func(text string) string {
		return fmt.Sprintf(`, mutations: [{patchType: JSONPatch, jsonPatch: {expression: %q}}]`, text)
	}
	n := 0
	for name, tc := range map[string]struct {
		spec, binding, data string
		want                map[string]string // of data and labels
		refused             string
	}{
		"apply":         {apply(`Object{data: {"b": "2"}}`), "", `{a: "1"}`, map[string]string{"a": "1", "b": "2"}, ""},
		"metadata":      {apply(`Object{metadata: Object.metadata{labels: {"x": object.data.a}}}`), "", `{a: "1"}`, map[string]string{"a": "1", "x": "1", "team": "a"}, ""},
		"patch":         {patch(`[JSONPatch{op: "add", path: "/data/b", value: "2"}, JSONPatch{op: "remove", path: "/data/a"}]`), "", `{a: "1"}`, map[string]string{"b": "2"}, ""},
		"escaped":       {patch(`[JSONPatch{op: "add", path: "/metadata/labels/" + jsonpatch.escapeKey("e.com/x"), value: "y"}]`), "", `{a: "1"}`, map[string]string{"e.com/x": "y"}, ""},
		"a map":         {patch(`[JSONPatch{op: "add", path: "/data", value: {"c": "3"}}]`), "", `{a: "1"}`, map[string]string{"c": "3"}, ""},
		"a test fails":  {patch(`[JSONPatch{op: "test", path: "/data/a", value: "x"}, JSONPatch{op: "add", path: "/data/b", value: "2"}]`), "", `{a: "1"}`, map[string]string{"a": "1"}, ""},
		"a bad path":    {patch(`[JSONPatch{op: "remove", path: "/data/none"}]`), "", `{a: "1"}`, nil, "JSON Patch: "},
		"an error":      {apply(`Object{data: {"b": object.data.missing}}`), "", `{a: "1"}`, nil, "no such key: missing"},
		"ignored":       {`, failurePolicy: Ignore` + apply(`Object{data: {"b": object.data.missing}}`), "", `{a: "1"}`, map[string]string{"a": "1"}, ""},
		"wrong names":   {apply(`Object{metadata: Object.spec{labels: {"x": "y"}}}`), "", `{a: "1"}`, nil, "type mismatch: "},
		"no such field": {apply(`Object{nosuch: "x"}`), "", `{a: "1"}`, nil, "field not declared in schema"},
		"conditions":    {`, matchConditions: [{name: num, expression: "object.data.a == '2'"}]` + apply(`Object{data: {"b": "2"}}`), "", `{a: "1"}`, map[string]string{"a": "1"}, ""},
		"variables":     {`, variables: [{name: v, expression: "object.data.a + '!'"}]` + apply(`Object{data: {"b": variables.v}}`), "", `{a: "1"}`, map[string]string{"a": "1", "b": "1!"}, ""},
		"parameters":    {`, paramKind: {apiVersion: v1, kind: ConfigMap}` + apply(`Object{data: {"b": params.data.v}}`), `, paramRef: {name: defaults, parameterNotFoundAction: Deny}`, `{a: "1"}`, map[string]string{"a": "1", "b": "fromparam"}, ""},
		"two": {`, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{data: {'b': '2'}}"}}, {patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'add', path: '/data/c', value: object.data.b + '3'}]"}}]`,
			"", `{a: "1"}`, map[string]string{"a": "1", "b": "2", "c": "23"}, ""},
	} {
		st.policy("Mutating", "p", "{"+ofConfigMaps+tc.spec+"}", tc.binding)
		n++
		a := st.sends(cms, configMap(fmt.Sprintf("c%d", n), tc.data))
		if tc.refused != "" {
			if s := a.status(t); a.code != 403 || s.Reason != metav1.StatusReasonInvalid || !strings.HasPrefix(s.Message, "policy 'p' with binding 'p' denied request: ") || !strings.Contains(s.Message, tc.refused) {
				t.Errorf("%s: %d %s", name, a.code, a.body)
			}
		} else if a.code != 201 {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		} else {
			var cm corev1.ConfigMap
			a.into(t, &cm)
			for key, value := range tc.want {
				if cm.Data[key] != value && cm.Labels[key] != value {
					t.Errorf("%s: %s", name, a.body)
				}
			}
			if len(cm.Data) > len(tc.want) {
				t.Errorf("%s: %s", name, a.body)
			}
		}
		st.noPolicy("Mutating", "p")
	}
}

const counted = `Object{data: {"num": string(has(object.data.num) ? int(object.data.num) + 1 : 1)}}`

// TestMutatingPoliciesAgain has a policy see what came after it, and a validating
// one the outcome.
func TestMutatingPoliciesAgain(t *testing.T) {
	st := newSite(t)
	expression := fmt.Sprintf(`mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: %q}}]`, counted)
	st.policy("Mutating", "a", "{"+ofConfigMaps+", reinvocationPolicy: IfNeeded, "+expression+"}", "")
	st.policy("Mutating", "b", "{"+ofConfigMaps+", "+expression+"}", "")
	st.policy("Validating", "v", "{"+ofConfigMaps+`, validations: [{expression: "object.data.num == '3'", messageExpression: "string(object.data.num)"}]}`, denies)
	var cm corev1.ConfigMap
	st.post(cms, configMap("x", `{a: b}`), 201).into(t, &cm) // a, b, and a once more
	if cm.Data["num"] != "3" || cm.Data["a"] != "b" {
		t.Errorf("%v", cm.Data)
	}
	// A deletion is no business of policies that change, though * means it.
	st.namespace("apart")
	st.policy("Mutating", "d", `{matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: ["*"], resources: [namespaces]}]}, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[JSONPatch{op: 'remove', path: object.nosuch}]"}}]}`, "")
	if a := st.request(st.admin(), "DELETE", "/api/v1/namespaces/apart", ""); a.code != 200 {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := st.sends("/api/v1/namespaces", `{apiVersion: v1, kind: Namespace, metadata: {name: more}}`); a.code != 403 {
		t.Errorf("%d %s", a.code, a.body)
	}
	st.noPolicy("Mutating", "d")
	// An update, by server-side apply, and a custom resource by its own schema.
	if a := st.request(st.admin(), "PATCH", cms+"/x?fieldManager=me", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"data":{"z":"z"}}`, "Content-Type", applyType); a.code != 422 || !strings.HasSuffix(a.status(t).Message, ": 6") {
		t.Errorf("%d %s", a.code, a.body)
	}
	st.define(crontab)
	st.policy("Mutating", "tabs", `{matchConstraints: {resourceRules: [{apiGroups: [stable.example.com], apiVersions: [v1], operations: [CREATE], resources: [crontabs]}]}, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{spec: Object.spec{note: 'by policy'}}"}}]}`, "")
	u := st.post(tabs, object("t", `{cronSpec: "* * * * *"}`), 201).object(t)
	if field(t, u, "spec", "note") != "by policy" || field(t, u, "spec", "cronSpec") != "* * * * *" {
		t.Errorf("%v", u.Object)
	}
	u = st.post("/apis/stable.example.com/v1beta1/namespaces/default/crontabs", strings.Replace(object("u", `{cronSpec: "* * * * *"}`), "/v1", "/v1beta1", 1), 201).object(t)
	if field(t, u, "spec", "note") != "by policy" {
		t.Errorf("by another version: %v", u.Object)
	}
}

// TestPolicyKinds is of defaults, validation, and who may name parameters.
func TestPolicyKinds(t *testing.T) {
	st := newSite(t)
	const validating, mutating = policiesPath + "validatingadmissionpolicies", policiesPath + "mutatingadmissionpolicies"
	var p map[string]any
	st.post(validating, `{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingAdmissionPolicy, metadata: {name: d}, spec: {`+ofConfigMaps+`, validations: [{expression: "true"}]}, status: {observedGeneration: 7}}`, 201).into(t, &p)
	text, _ := json.Marshal(p["spec"])
	if got := string(text); got != `{"failurePolicy":"Fail","matchConstraints":{"matchPolicy":"Equivalent","namespaceSelector":{},"objectSelector":{},"resourceRules":[{"apiGroups":[""],"apiVersions":["v1"],"operations":["CREATE","UPDATE"],"resources":["configmaps"],"scope":"*"}]},"validations":[{"expression":"true"}]}` {
		t.Errorf("made %s", got)
	}
	if s, _ := json.Marshal(p["status"]); string(s) != "{}" {
		t.Errorf("status %s", s)
	}
	for want, tc := range map[string]struct{ path, kind, spec string }{
		`spec.validations[0].expression: Invalid value: "object.": compilation failed: `:                                           {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, validations: [{expression: "object."}]}`},
		`spec.validations[0].expression: Invalid value: "1": must evaluate to bool but got int`:                                    {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, validations: [{expression: "1"}]}`},
		`spec.validations[0].expression: Invalid value: "params == null": compilation failed: `:                                    {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, validations: [{expression: "params == null"}]}`},
		`spec.validations[0].messageExpression: Invalid value: "1": must evaluate to string but got int`:                           {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, validations: [{expression: "true", messageExpression: "1"}]}`},
		`spec.validations[0].reason: Unsupported value: "Gone": supported values: "Forbidden", "Invalid", "RequestEntityTooLarge"`: {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, validations: [{expression: "true", reason: Gone}]}`},
		`spec.validations: Required value: validations or auditAnnotations must contain at least one item`:                         {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `}`},
		`spec.matchConstraints: Required value`:                                                                                    {validating, "ValidatingAdmissionPolicy", `{validations: [{expression: "true"}]}`},
		`spec.variables[0].name: Invalid value: "in": name is not a valid CEL identifier`:                                          {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, variables: [{name: in, expression: "1"}], validations: [{expression: "true"}]}`},
		`spec.validations[0].expression: Invalid value: "variables.b": compilation failed: `:                                       {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, variables: [{name: a, expression: "true"}], validations: [{expression: "variables.b"}]}`},
		`spec.auditAnnotations[0].valueExpression: Invalid value: "1": must evaluate to one of [string null_type] but got int`:     {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, auditAnnotations: [{key: a, valueExpression: "1"}]}`},
		`spec.validationActions: Invalid value: ["Deny","Warn"]: must not contain both Deny and Warn`:                              {policiesPath + "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", `{policyName: p, validationActions: [Deny, Warn]}`},
		`spec.validationActions: Required value: at least one validation action is required`:                                       {policiesPath + "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", `{policyName: p}`},
		`spec.paramRef: Required value: one of name or selector must be specified`:                                                 {policiesPath + "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding", `{policyName: p, paramRef: {}}`},
		`spec.mutations: Required value: mutations must contain at least one item`:                                                 {mutating, "MutatingAdmissionPolicy", `{` + ofConfigMaps + `}`},
		`spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch`:                               {mutating, "MutatingAdmissionPolicy", `{` + ofConfigMaps + `, mutations: [{patchType: JSONPatch}]}`},
		`spec.mutations[0].applyConfiguration.expression: Invalid value: "1": must evaluate to Object but got int`:                 {mutating, "MutatingAdmissionPolicy", `{` + ofConfigMaps + `, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "1"}}]}`},
		`spec.mutations[0].jsonPatch.expression: Invalid value: "1": must evaluate to list(JSONPatch) but got int`:                 {mutating, "MutatingAdmissionPolicy", `{` + ofConfigMaps + `, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "1"}}]}`},
		`spec.matchConstraints.resourceRules[0].operations[0]: Unsupported value: "DELETE": supported values: `:                    {mutating, "MutatingAdmissionPolicy", `{matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [DELETE], resources: [pods]}]}, mutations: [{patchType: JSONPatch, jsonPatch: {expression: "[]"}}]}`},
	} {
		a := st.sends(tc.path, fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: %s, metadata: {name: x}, spec: %s}", tc.kind, tc.spec))
		if a.code != 422 || !strings.Contains(a.status(t).Message, want) {
			t.Errorf("%s: %d %s", want, a.code, a.body)
		}
	}
	for want, tc := range map[string][3]string{
		`299 - "spec.auditAnnotations: nothing is written: Conclave keeps no audit log"`:            {validating, "ValidatingAdmissionPolicy", `{` + ofConfigMaps + `, auditAnnotations: [{key: k, valueExpression: "'v'"}]}`},
		`299 - "spec.validationActions[1]: Audit: nothing is written: Conclave keeps no audit log"`: {policiesPath + "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding", `{policyName: p, validationActions: [Deny, Audit]}`},
	} {
		a := st.sends(tc[0], fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: %s, metadata: {name: audits}, spec: %s}", tc[1], tc[2]))
		if got := a.header.Get("Warning"); a.code != 201 || got != want {
			t.Errorf("%d, warned %q", a.code, got)
		}
	}
	if a := st.request(st.admin(), "GET", validating, "", "Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"); !strings.Contains(string(a.body), `"cells":["d",1,"\u003cunset\u003e",`) {
		t.Errorf("%s", a.body)
	}
}

// TestPolicyOfDeployments is the way from a policy to what may be deployed.
//
// conformance: [sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should validate against a Deployment [Conformance]
// conformance: [sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should allow expressions to refer variables. [Conformance]
// conformance: [sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment [Conformance]
// conformance: [sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment with annotations [Conformance]
func TestPolicyOfDeployments(t *testing.T) {
	st := newSite(t)
	const of = `matchConstraints: {resourceRules: [{apiGroups: [apps], apiVersions: [v1], operations: [CREATE], resources: [deployments]}]}`
	deployment := func(name string, replicas int) answer {
		return st.sends("/apis/apps/v1/namespaces/default/deployments", fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: %s}, spec: {replicas: %d, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}", name, replicas))
	}
	for name, spec := range map[string]string{
		"plain":     `{` + of + `, validations: [{expression: "object.spec.replicas > 1", messageExpression: "'wants replicas > 1, got ' + string(object.spec.replicas)"}]}`,
		"variables": `{` + of + `, variables: [{name: replicas, expression: "object.spec.replicas"}, {name: few, expression: "variables.replicas <= 1"}], validations: [{expression: "!variables.few", messageExpression: "'wants replicas > 1, got ' + string(variables.replicas)"}]}`,
	} {
		st.policy("Validating", name, spec, denies)
		if a := deployment(name+"1", 1); a.code != 422 || !strings.HasSuffix(a.status(t).Message, "denied request: wants replicas > 1, got 1") {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
		if a := deployment(name+"2", 2); a.code != 201 {
			t.Errorf("%s: %d %s", name, a.code, a.body)
		}
		st.noPolicy("Validating", name)
	}
	st.policy("Mutating", "m", `{`+of+`, mutations: [{patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{spec: Object.spec{replicas: object.spec.replicas + 1}}"}}, {patchType: ApplyConfiguration, applyConfiguration: {expression: "Object{metadata: Object.metadata{annotations: {'by': 'policy'}}}"}}]}`, "")
	var d appsv1.Deployment
	a := deployment("m", 2)
	if a.into(t, &d); a.code != 201 || *d.Spec.Replicas != 3 || d.Annotations["by"] != "policy" || len(d.Spec.Template.Spec.Containers) != 1 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// TestPolicyTypes is of what a policy's expressions have to do with the types of
// what it is about.
func TestPolicyTypes(t *testing.T) {
	st := newSite(t)
	st.define(crontab)
	of := func(group, version string, resources ...string) *types.MatchResources {
		r := types.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources}
		return &types.MatchResources{ResourceRules: []types.NamedRuleWithOperations{{RuleWithOperations: types.RuleWithOperations{Operations: []string{"*"}, Rule: r}}}}
	}
	params := &types.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}
	for name, tc := range map[string]struct {
		of         *types.MatchResources
		params     *types.ParamKind
		expression string
		message    string
		variable   string
		want       []string // what the warning of the expression says of which kind
	}{
		"fits":             {of("apps", "v1", "deployments"), nil, "object.spec.replicas > 1 && object.metadata.name != '' && namespaceObject.metadata.name != ''", "object.kind", "object.spec.template", nil},
		"no such field":    {of("apps", "v1", "deployments", "replicasets"), nil, "object.spec.replicants > 1", "", "1", []string{"apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replicants'", "apps/v1, Kind=ReplicaSet: "}},
		"another type":     {of("apps", "v1", "deployments"), nil, "object.spec.replicas > '1'", "", "1", []string{"found no matching overload for '_>_' applied to '(int, string)'"}},
		"by a variable":    {of("apps", "v1", "deployments"), nil, "variables.v > '1'", "", "object.spec.replicas", []string{"'(int, string)'"}},
		"parameters":       {of("apps", "v1", "deployments"), params, "params.nodata == ''", "", "1", []string{"undefined field 'nodata'"}},
		"of parameters":    {of("", "v1", "configmaps"), params, "params.data.x == object.data.x", "", "1", nil},
		"anything":         {of("apps", "*", "deployments"), nil, "object.nosuch", "", "1", nil},
		"an unknown kind":  {of("example.com", "v1", "things"), nil, "object.nosuch", "", "1", nil},
		"its own version":  {of("stable.example.com", "v1", "crontabs"), nil, "object.spec.cronSpec != '' && object.spec.replicas > 1", "", "1", nil},
		"a custom mistake": {of("stable.example.com", "v1", "crontabs"), nil, "object.spec.cronSpeck != ''", "", "1", []string{"stable.example.com/v1, Kind=CronTab: ERROR: <input>:1:12: undefined field 'cronSpeck'"}},
		"itself in itself": {of("apiextensions.k8s.io", "v1", "customresourcedefinitions"), nil, "object.spec.group != ''", "", "1", nil},
	} {
		p := &types.ValidatingAdmissionPolicy{Spec: types.ValidatingAdmissionPolicySpec{
			MatchConstraints: tc.of, ParamKind: tc.params, Variables: []types.Variable{{Name: "v", Expression: tc.variable}},
			Validations: []types.Validation{{Expression: tc.expression, MessageExpression: tc.message}},
		}}
		warnings, err := st.CheckPolicy(p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(tc.want) == 0 != (len(warnings) == 0) || len(warnings) > 0 && warnings[0].FieldRef != "spec.validations[0].expression" {
			t.Errorf("%s: %+v", name, warnings)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(warnings[0].Warning, want) {
				t.Errorf("%s: %s", name, warnings[0].Warning)
			}
		}
	}
}

// TestPolicyWritersReadTheirParameters: a policy shows parameters to whoever writes it.
func TestPolicyWritersReadTheirParameters(t *testing.T) {
	st := newSite(t)
	ctx, cs := t.Context(), st.clientset("")
	for name, rules := range map[string][]rbacv1.PolicyRule{
		"writer": {right("create", "admissionregistration.k8s.io", "validatingadmissionpolicies,validatingadmissionpolicybindings")},
		"reader": {right("create", "admissionregistration.k8s.io", "validatingadmissionpolicies,validatingadmissionpolicybindings"), right("get", "", "configmaps")},
	} {
		must(cs.RbacV1().ClusterRoles().Create(ctx, clusterRole(name, rules...), metav1.CreateOptions{}))(t)
		must(cs.RbacV1().ClusterRoleBindings().Create(ctx, clusterBinding(name, name, user(name)), metav1.CreateOptions{}))(t)
	}
	st.policy("Validating", "taken", `{paramKind: {apiVersion: v1, kind: ConfigMap}, `+ofConfigMaps+`, validations: [{expression: "params != null"}]}`, denies+`, paramRef: {name: p, namespace: default, parameterNotFoundAction: Allow}`)
	send := func(who, plural, kind, spec string) error {
		body, err := yaml.YAMLToJSON([]byte(fmt.Sprintf("{apiVersion: admissionregistration.k8s.io/v1, kind: %s, metadata: {name: mine}, spec: %s}", kind, spec)))
		if err != nil {
			t.Fatal(err)
		}
		return st.as(who).AdmissionregistrationV1().RESTClient().Post().Resource(plural).Param("dryRun", "All").Body(body).Do(ctx).Error()
	}
	const (
		policies, policy  = "validatingadmissionpolicies", "ValidatingAdmissionPolicy"
		bindings, binding = "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"
		withParams        = `{paramKind: {apiVersion: v1, kind: ConfigMap}, ` + ofConfigMaps + `, validations: [{expression: "true"}]}`
		without           = `{` + ofConfigMaps + `, validations: [{expression: "true"}]}`
		ofTaken           = `{policyName: taken, validationActions: [Deny], paramRef: {name: p, namespace: default, parameterNotFoundAction: Allow}}`
	)
	for name, tc := range map[string]struct {
		err  error
		want string // empty: allowed
	}{
		"a policy without parameters": {send("writer", policies, policy, without), ""},
		"a policy with parameters":    {send("writer", policies, policy, withParams), `user "writer" must have "get" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)`},
		"by who reads them":           {send("reader", policies, policy, withParams), ""},
		"a binding with parameters":   {send("writer", bindings, binding, ofTaken), `user "writer" must have "get" permission on the objects that paramRef refers to`},
		"a binding by who reads them": {send("reader", bindings, binding, ofTaken), ""},
	} {
		switch {
		case tc.want == "" && tc.err != nil, tc.want != "" && tc.err == nil:
			t.Errorf("%s: %v", name, tc.err)
		case tc.want != "" && (!apierrors.IsInvalid(tc.err) || !strings.Contains(tc.err.Error(), tc.want)):
			t.Errorf("%s: %v", name, tc.err)
		}
	}
}
