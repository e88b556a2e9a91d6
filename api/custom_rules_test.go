package api_test

import (
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// gauges is a definition with rules, and a version beside that has none.
const gauges = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gauges.rules.example.com}
spec:
  group: rules.example.com
  scope: Namespaced
  names: {plural: gauges, singular: gauge, kind: Gauge}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [min, max]
            properties:
              min: {type: integer}
              max: {type: integer}
              replicas: {type: integer, x-kubernetes-validations: [{rule: self <= 5, reason: FieldValueForbidden, message: five are enough}]}
              name: {type: string, x-kubernetes-validations: [{rule: self == oldSelf, message: the name is for good}]}
            x-kubernetes-validations: [{rule: self.min <= self.max, messageExpression: '"min is above max"', fieldPath: .min}]
          status:
            type: object
            properties: {replicas: {type: integer, x-kubernetes-validations: [{rule: self >= oldSelf, message: it may only grow}]}}
        x-kubernetes-validations: [{rule: '!self.metadata.name.startsWith("x")'}]
  - name: v1beta1
    served: true
    storage: false
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

const gaugesPath = "/apis/rules.example.com/v1/namespaces/default/gauges"

func gauge(name, spec string) string {
	return "apiVersion: rules.example.com/v1\nkind: Gauge\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}

// Every way to write an object asks the rules of the version that it is written in.
func TestCustomRules(t *testing.T) {
	st := newSite(t)
	if a := st.request(st.admin(), "POST", crds+"?dryRun=All", gauges, "Content-Type", "application/yaml"); a.code != http.StatusCreated || a.header.Get("Warning") != "" {
		t.Errorf("%d, warning %q: %s", a.code, a.header.Get("Warning"), a.body)
	}
	st.define(gauges)
	st.post(gaugesPath, gauge("a", "{min: 1, max: 2, name: one}"), http.StatusCreated)
	const merge, apply, yaml = "application/merge-patch+json", "application/apply-patch+yaml", "application/yaml"
	for _, tc := range []struct {
		name, method, path, media, body string
		code                            int
		want                            string
	}{
		{"create", "POST", "", yaml, gauge("b", "{min: 3, max: 2}"), 422, `Gauge.rules.example.com \"b\" is invalid: spec.min: Invalid value: min is above max`},
		{"create, the root", "POST", "", yaml, gauge("xb", "{min: 1, max: 2}"), 422, `\u003cnil\u003e: Invalid value: failed rule: !self.metadata.name.startsWith(\"x\")`},
		{"create, incomplete", "POST", "", yaml, gauge("b", "{min: 3}"), 422, `some validation rules were not checked because the object was invalid; correct the existing errors to complete validation`},
		{"dry run", "POST", "?dryRun=All", yaml, gauge("b", "{min: 3, max: 2}"), 422, "min is above max"},
		{"update", "PUT", "/a", yaml, gauge("a", "{min: 4, max: 2, name: one}"), 422, "spec.min: Invalid value: min is above max"},
		{"patch", "PATCH", "/a", merge, `{"spec":{"min":5}}`, 422, "spec.min: Invalid value: min is above max"},
		{"transition", "PATCH", "/a", merge, `{"spec":{"name":"two"}}`, 422, `spec.name: Invalid value: \"two\": the name is for good`},
		{"apply", "PATCH", "/a?fieldManager=f&force=true", apply, gauge("a", "{min: 6, max: 2}"), 422, "spec.min: Invalid value: min is above max"},
		{"apply, a new one", "PATCH", "/c?fieldManager=f", apply, gauge("c", "{min: 6, max: 2}"), 422, "spec.min: Invalid value: min is above max"},
		{"scale without replicas", "PATCH", "/a", merge, `{"spec":{"replicas":1}}`, 200, ""},
		{"scale", "PATCH", "/a/scale", merge, `{"spec":{"replicas":6}}`, 422, "spec.replicas: Forbidden: five are enough"},
		{"scale within", "PATCH", "/a/scale", merge, `{"spec":{"replicas":5}}`, 200, ""},
		{"status", "PATCH", "/a/status", merge, `{"status":{"replicas":3}}`, 200, ""},
		{"status, less", "PATCH", "/a/status", merge, `{"status":{"replicas":2}}`, 422, "status.replicas: Invalid value: 2: it may only grow"},
		{"good", "PATCH", "/a", merge, `{"spec":{"min":2}}`, 200, ""},
	} {
		a := st.request(st.admin(), tc.method, gaugesPath+tc.path, tc.body, "Content-Type", tc.media)
		if a.code != tc.code || !strings.Contains(string(a.body), tc.want) {
			t.Errorf("%s: %d, not %d with %s: %s", tc.name, a.code, tc.code, tc.want, a.body)
		}
	}
	var why metav1.Status
	st.post(gaugesPath, gauge("b", "{min: 3, max: 2, replicas: 6}"), 422).into(t, &why)
	if d := why.Details; d == nil || len(d.Causes) != 2 || d.Causes[0] != (metav1.StatusCause{Type: "FieldValueInvalid", Message: "Invalid value: min is above max", Field: "spec.min"}) || d.Causes[1].Type != "FieldValueForbidden" {
		t.Errorf("the causes are %+v", why.Details)
	}
	// The other version has no rules, and lets in what this one then lets be, and
	// says so, until it changes.
	st.post(strings.Replace(gaugesPath, "v1", "v1beta1", 1), strings.Replace(gauge("d", "{min: 9, max: 2}"), "/v1", "/v1beta1", 1), http.StatusCreated)
	a := st.request(st.admin(), "PATCH", gaugesPath+"/d", `{"metadata":{"labels":{"x":"z"}}}`, "Content-Type", merge)
	if a.code != 200 || a.header.Get("Warning") != `299 - "spec.min: Invalid value: min is above max"` {
		t.Errorf("%d, warning %q: %s", a.code, a.header.Values("Warning"), a.body)
	}
	if a := st.request(st.admin(), "PATCH", gaugesPath+"/d", `{"spec":{"max":3}}`, "Content-Type", merge); a.code != 422 {
		t.Errorf("%d %s", a.code, a.body)
	}
}

// A definition whose rules are wrong is refused; rules may change, and the next
// write is asked the new ones.
func TestCustomRulesOfDefinition(t *testing.T) {
	st := newSite(t)
	bad := strings.Replace(gauges, "self.min <= self.max", "self.low <= self.max", 1)
	a := st.request(st.admin(), "POST", crds, bad, "Content-Type", "application/yaml")
	for _, want := range []string{
		`CustomResourceDefinition.apiextensions.k8s.io \"gauges.rules.example.com\" is invalid: spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: `,
		`compilation failed: ERROR: \u003cinput\u003e:1:5: undefined field 'low'`,
	} {
		if a.code != 422 || !strings.Contains(string(a.body), want) {
			t.Errorf("%d %s does not say %s", a.code, a.body, want)
		}
	}
	st.define(gauges)
	st.post(gaugesPath, gauge("a", "{min: 3, max: 2}"), 422)
	const rule = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations/0/rule"
	patch := func(value string) answer {
		return st.request(st.admin(), "PATCH", crds+"/gauges.rules.example.com", `[{"op":"replace","path":"`+rule+`","value":"`+value+`"}]`, "Content-Type", "application/json-patch+json")
	}
	if a := patch("self.min +"); a.code != 422 || !strings.Contains(string(a.body), "Syntax error") {
		t.Errorf("%d %s", a.code, a.body)
	}
	if a := patch("self.min >= self.max"); a.code != 200 {
		t.Fatalf("%d %s", a.code, a.body)
	}
	st.post(gaugesPath, gauge("a", "{min: 3, max: 2}"), http.StatusCreated)
	st.post(gaugesPath, gauge("b", "{min: 1, max: 2}"), 422)
}
