package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"conclave/api/types"
	"conclave/api/webhook"
)

// many are so many matchConditions, each with a name of its own.
func many(n int) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(`{"name":"c%d","expression":"true"}`, i)
	}
	return strings.Join(all, ",")
}

func condition(expressions ...string) string {
	var all []types.MatchCondition
	for i, text := range expressions {
		all = append(all, types.MatchCondition{Name: fmt.Sprintf("c%d", i), Expression: text})
	}
	text, _ := json.Marshal(all)
	return `,"matchConditions":` + string(text)
}

// TestWebhookConditions is of what keeps webhooks from being asked, and of what
// conditions are told.
func TestWebhookConditions(t *testing.T) {
	h := newHooks(t, map[string]func(webhook.Request) hookAnswer{"a": func(r webhook.Request) hookAnswer {
		return hookAnswer{warnings: []string{"asked"}}
	}})
	st := newSite(t)
	of := rule(`"*"`, "", "v1", `"configmaps"`)
	const heavy = `[0,1,2,3,4,5,6,7,8,9].all(a, [0,1,2,3,4,5,6,7,8,9].all(b, [0,1,2,3,4,5,6,7,8,9].all(c, [0,1,2,3,4,5,6,7,8,9].all(d, [0,1,2,3,4,5,6,7,8,9].all(e, a+b+c+d+e >= 0)))))`
	n := 0
	for name, tc := range map[string]struct {
		conditions []string
		more       string
		asked      bool
		refused    string
	}{
		"true":           {[]string{`true`}, "", true, ""},
		"false":          {[]string{`true`, `false`}, "", false, ""},
		"object":         {[]string{`object.data.a == 'b' && object.kind == 'ConfigMap' && object.metadata.namespace == 'default'`}, "", true, ""},
		"no old object":  {[]string{`oldObject == null`}, "", true, ""},
		"request":        {[]string{`request.operation == 'CREATE' && request.resource.resource == 'configmaps' && request.kind.kind == 'ConfigMap' && request.name == object.metadata.name && request.namespace == 'default'`}, "", true, ""},
		"user":           {[]string{`request.userInfo.username == 'admin' && 'system:masters' in request.userInfo.groups`}, "", true, ""},
		"options":        {[]string{`!request.dryRun && request.options.kind == 'CreateOptions' && !has(request.subResource)`}, "", true, ""},
		"rights":         {[]string{`authorizer.group('apps').resource('deployments').check('delete').allowed()`}, "", true, ""},
		"others' rights": {[]string{`authorizer.serviceAccount('default', 'nobody').group('').resource('secrets').namespace('default').check('get').allowed()`}, "", false, ""},
		"own rights":     {[]string{`authorizer.requestResource.check('create').allowed() && authorizer.path('/healthz').check('get').allowed()`}, "", true, ""},
		"error":          {[]string{`object.data.missing == 'x'`}, "", false, `configmaps "NAME" is forbidden: expression 'object.data.missing == 'x'' resulted in error: no such key: missing`},
		"error, ignored": {[]string{`object.data.missing == 'x'`}, `,"failurePolicy":"Ignore"`, false, ""},
		"error, false":   {[]string{`object.data.missing == 'x'`, `false`}, "", false, ""},
		"too dear": {[]string{heavy, heavy, heavy, heavy, heavy, heavy, heavy, heavy, heavy, heavy}, "", false,
			`configmaps "NAME" is forbidden: validation failed due to running out of cost budget, no further validation rules will be run`},
	} {
		for _, kind := range []string{"Mutating", "Validating"} {
			st.hook(kind, h.config(kind, "x", of, condition(tc.conditions...)+tc.more, "a"))
			n++
			cm := fmt.Sprintf("c%d", n)
			a := st.request(st.admin(), "POST", cms, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"a":"b"}}`, cm))
			if want := strings.ReplaceAll(tc.refused, "NAME", cm); want != "" {
				if s := a.status(t); a.code != 403 || s.Message != want {
					t.Errorf("%s, %s: %d %s", name, kind, a.code, a.body)
				}
			} else if asked := a.header.Get("Warning") == `299 - "asked"`; a.code != 201 || asked != tc.asked {
				t.Errorf("%s, %s: %d, asked %t: %s", name, kind, a.code, asked, a.body)
			}
			if a := st.request(st.admin(), "DELETE", hookPath(kind)+"/x", ""); a.code != 200 {
				t.Fatalf("%d %s", a.code, a.body)
			}
		}
	}
	// An update and a deletion: what was before.
	st.post(cms, `{apiVersion: v1, kind: ConfigMap, metadata: {name: was}, data: {a: b}}`, 201)
	st.hook("Validating", h.config("Validating", "x", of, condition(`request.operation == 'UPDATE' ? oldObject.data.a == 'b' && object.data.a == 'c' : object == null && oldObject.data.a == 'c'`), "a"))
	for _, do := range []struct{ method, body string }{
		{"PUT", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"was"},"data":{"a":"c"}}`},
		{"DELETE", ""},
	} {
		if a := st.request(st.admin(), do.method, cms+"/was", do.body); a.code != 200 || a.header.Get("Warning") != `299 - "asked"` {
			t.Errorf("%s: %d %v %s", do.method, a.code, a.header, a.body)
		}
	}
}
