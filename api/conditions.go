package api

import (
	"context"
	"strings"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/library"

	"conclave/api/cel"
	"conclave/api/webhook"
)

// What expressions about a request are told: the matchConditions of webhooks, and
// admission policies.

// input is the request as expressions in one version see it.
func (c *call) input(ctx context.Context, a *ask, as webhook.Version) (*cel.Input, error) {
	is := webhook.Version{Resource: c.resource(), Kind: a.kind}
	in := &cel.Input{Request: c.requestValue(a, is, as)}
	var err error
	if in.Object, err = c.objectAs(ctx, a.obj, is, as); err != nil {
		return nil, err
	}
	if in.OldObject, err = c.objectAs(ctx, a.old, is, as); err != nil {
		return nil, err
	}
	who := &user.DefaultInfo{Name: c.user.Name, UID: c.user.UID, Groups: c.user.Groups, Extra: c.user.Extra}
	rights := &expressionRights{s: c.s, ctx: ctx, known: map[rightsQuestion]decision{}}
	in.Authorizer = library.NewAuthorizerVal(who, rights)
	in.RequestAuthorizer = library.NewResourceAuthorizerVal(who, rights, &asked{c, a})
	return in, nil
}

// asked is what authorizer.requestResource is about.
type asked struct {
	c *call
	a *ask
}

func (r *asked) GetName() string                          { return r.c.nameOf(r.a) }
func (r *asked) GetNamespace() string                     { return r.c.namespace }
func (r *asked) GetResource() schema.GroupVersionResource { return r.c.resource() }
func (r *asked) GetSubresource() string                   { return r.c.sub }

// requestValue is the AdmissionRequest without its objects, as in JSON.
func (c *call) requestValue(a *ask, is, as webhook.Version) map[string]any {
	kind := func(k schema.GroupVersionKind) map[string]any {
		return map[string]any{"group": k.Group, "version": k.Version, "kind": k.Kind}
	}
	resource := func(r schema.GroupVersionResource) map[string]any {
		return map[string]any{"group": r.Group, "version": r.Version, "resource": r.Resource}
	}
	request := map[string]any{
		"kind": kind(as.Kind), "resource": resource(as.Resource), "requestKind": kind(is.Kind), "requestResource": resource(is.Resource),
		"operation": a.op, "userInfo": userValue(c.user), "dryRun": a.dryRun, "options": cel.ValueOf(a.options),
	}
	name, namespace := c.nameOf(a), c.namespace
	if is.Resource == namespaces {
		namespace = name
	}
	for key, value := range map[string]string{"subResource": c.sub, "requestSubResource": c.sub, "name": name, "namespace": namespace} {
		if value != "" {
			request[key] = value
		}
	}
	return request
}

func userValue(u User) map[string]any {
	who := map[string]any{}
	if u.Name != "" {
		who["username"] = u.Name
	}
	if u.UID != "" {
		who["uid"] = u.UID
	}
	if len(u.Groups) > 0 {
		who["groups"] = u.Groups
	}
	if len(u.Extra) > 0 {
		who["extra"] = u.Extra
	}
	return who
}

// expressionRights answers what expressions ask about rights, each question once.
// It is of one request and one goroutine.
type expressionRights struct {
	s     *Server
	ctx   context.Context // of the request: the library hands on none
	known map[rightsQuestion]decision
}

type rightsQuestion struct {
	user       string
	attributes Attributes
}

func (r *expressionRights) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	q := rightsQuestion{a.GetUser().GetName(), Attributes{Verb: a.GetVerb(), Path: a.GetPath()}}
	if a.IsResourceRequest() {
		q.attributes = Attributes{
			Verb: a.GetVerb(), Resource: schema.GroupVersionResource{Group: a.GetAPIGroup(), Version: a.GetAPIVersion(), Resource: a.GetResource()},
			Subresource: a.GetSubresource(), Namespace: a.GetNamespace(), Name: a.GetName(),
		}
		if required, err := a.GetFieldSelector(); err == nil {
			terms := make([]string, len(required))
			for i, f := range required {
				terms[i] = f.Field + string(f.Operator) + fields.EscapeValue(f.Value)
			}
			q.attributes.FieldSelector = strings.Join(terms, ",")
		}
	}
	d, ok := r.known[q]
	if !ok {
		d = r.s.decide(r.ctx, User{Name: q.user, UID: a.GetUser().GetUID(), Groups: a.GetUser().GetGroups(), Extra: a.GetUser().GetExtra()}, &q.attributes)
		r.known[q] = d
	}
	if d.allowed {
		return authorizer.DecisionAllow, d.reason(), nil
	}
	return authorizer.DecisionNoOpinion, d.reason(), nil
}
