package policy_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"conclave/api/cel"
	"conclave/api/policy"
	"conclave/api/types"
	"conclave/api/webhook"
)

var pods = schema.GroupVersionResource{Version: "v1", Resource: "pods"}

func ofPods() *types.MatchResources {
	return &types.MatchResources{ResourceRules: []types.NamedRuleWithOperations{{RuleWithOperations: types.RuleWithOperations{
		Operations: []string{"*"}, Rule: types.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
	}}}}
}

func pod(replicas int) *cel.Input {
	return &cel.Input{Object: &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"n": fmt.Sprint(replicas)}}}}
}

// TestValidate is of denials and their order.
func TestValidate(t *testing.T) {
	heavy := "[" + strings.TrimSuffix(strings.Repeat("0,", 200), ",") + "]"
	for name, tc := range map[string]struct {
		spec types.ValidatingAdmissionPolicySpec
		want string // of denials, and behind | of audit annotations
	}{
		"all": {types.ValidatingAdmissionPolicySpec{Validations: []types.Validation{
			{Expression: "true"}, {Expression: "false", Message: "a"}, {Expression: "object.nosuch"}, {Expression: "1 == 2", Reason: ptr.To(metav1.StatusReasonForbidden)},
		}}, "a Invalid; compilation error: must evaluate to bool but got dyn Invalid; failed expression: 1 == 2 Forbidden"},
		"errors": {types.ValidatingAdmissionPolicySpec{Validations: []types.Validation{{Expression: "object.nosuch == 1"}, {Expression: "1 == 2", Reason: ptr.To(metav1.StatusReasonForbidden)}}},
			"expression 'object.nosuch == 1' resulted in error: no such key: nosuch Invalid; failed expression: 1 == 2 Forbidden"},
		"ignored": {types.ValidatingAdmissionPolicySpec{FailurePolicy: ptr.To(types.Ignore), Validations: []types.Validation{{Expression: "object.nosuch == 1"}, {Expression: "false", Message: "b"}},
			AuditAnnotations: []types.AuditAnnotation{{Key: "k", ValueExpression: "string(object.nosuch)"}}}, "b Invalid"},
		"audit": {types.ValidatingAdmissionPolicySpec{AuditAnnotations: []types.AuditAnnotation{{Key: "k", ValueExpression: "null"}, {Key: "l", ValueExpression: "string(object.nosuch)"}}},
			"|expression 'string(object.nosuch)' resulted in error: no such key: nosuch Invalid"},
		"too dear": {types.ValidatingAdmissionPolicySpec{Validations: []types.Validation{{Expression: "false", Message: "a"}, {Expression: heavy + ".all(a, " + heavy + ".all(b, " + heavy + ".all(c, a + b + c >= 0)))", Message: "b"}}},
			"a Invalid; expression '[0,0"},
	} {
		tc.spec.MatchConstraints = ofPods()
		p, err := policy.NewValidating(&types.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: tc.spec})
		if err != nil {
			t.Fatal(err)
		}
		denials, audit := p.Validate(t.Context(), pod(1))
		show := func(all []policy.Denial) string {
			var text []string
			for _, d := range all {
				text = append(text, d.Message+" "+string(d.Reason))
			}
			return strings.Join(text, "; ")
		}
		got := show(denials)
		if len(audit) > 0 {
			got += "|" + show(audit)
		}
		if got != tc.want && !(name == "too dear" && strings.HasPrefix(got, tc.want) && strings.Contains(got, "cost limit exceeded")) {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestChange is of what mutations evaluate to.
func TestChange(t *testing.T) {
	for name, tc := range map[string]struct {
		patch, apply string
		want         string // JSON
		err          string
	}{
		"apply":       {"", `Object{spec: Object.spec{priority: 3, containers: [Object.spec.containers{name: "c"}]}}`, `{"spec":{"containers":[{"name":"c"}],"priority":3}}`, ""},
		"wrong names": {"", `Object{spec: Object.metadata{name: "c"}}`, "", "type mismatch: "},
		"patch":       {`[JSONPatch{op: "add", path: "/a~1b", value: {"x": [1, 2]}}, JSONPatch{op: "copy", from: "/a", path: "/b"}, JSONPatch{op: "remove", path: "/c"}]`, "", `[{"op":"add","path":"/a~1b","value":{"x":[1,2]}},{"op":"copy","path":"/b","from":"/a"},{"op":"remove","path":"/c"}]`, ""},
		"null":        {`[JSONPatch{op: "add", path: "/a", value: null}]`, "", `[{"op":"add","path":"/a","value":null}]`, ""},
		"an object":   {`[JSONPatch{op: "add", path: "/spec", value: Object.spec{priority: 3}}]`, "", `[{"op":"add","path":"/spec","value":{"priority":3}}]`, ""},
		"conditional": {`object.metadata.name == "q" ? [JSONPatch{op: "remove", path: "/a"}] : []`, "", `[]`, ""},
	} {
		m := types.Mutation{PatchType: types.PatchJSON, JSONPatch: &types.Expression{Expression: tc.patch}}
		if tc.apply != "" {
			m = types.Mutation{PatchType: types.PatchApplyConfiguration, ApplyConfiguration: &types.Expression{Expression: tc.apply}}
		}
		p, err := policy.NewMutating(&types.MutatingAdmissionPolicy{Spec: types.MutatingAdmissionPolicySpec{MatchConstraints: ofPods(), Mutations: []types.Mutation{m}}})
		if err != nil {
			t.Fatal(err)
		}
		change, err := p.Change(t.Context(), 0, pod(1))
		if tc.err != "" {
			if err == nil || !strings.HasPrefix(err.Error(), tc.err) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := strings.NewReplacer(": ", ":", ", ", ",").Replace(string(change.Patch))
		if change.Apply != nil {
			raw, err := json.Marshal(change.Apply.Object)
			if err != nil {
				t.Fatal(err)
			}
			got = string(raw)
		}
		if got != tc.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// TestMatch is of rules that webhooks do not have.
func TestMatch(t *testing.T) {
	named, excluded := ofPods(), ofPods()
	named.ResourceRules[0].ResourceNames = []string{"p"}
	excluded.ResourceRules = nil
	excluded.ExcludeResourceRules = ofPods().ResourceRules
	for name, tc := range map[string]struct {
		m    *types.MatchResources
		of   string
		want bool
	}{
		"rules": {ofPods(), "x", true}, "named": {named, "p", true}, "another name": {named, "q", false}, "no name yet": {named, "", false},
		"no rules": {&types.MatchResources{}, "x", true}, "excluded": {excluded, "x", false},
	} {
		b, err := policy.NewBinding("b", tc.m, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, is, err := b.Concerns(&webhook.Subject{Operation: webhook.Create, Version: webhook.Version{Resource: pods}, Name: tc.of, Namespace: "n"})
		if is != tc.want || err != nil {
			t.Errorf("%s: %t, %v", name, is, err)
		}
	}
}
