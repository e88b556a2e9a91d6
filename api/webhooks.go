package api

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion/queryparams"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"conclave/api/types"
	"conclave/api/webhook"
)

// Admission webhooks are asked by the replica that a request came to, before
// anything goes to the log, so once for each time that the write is computed.
// What the server writes on its own account (Server.own) they are not asked
// about, nor about their own configurations: they must not keep from their
// repair a cluster that they have locked.

var (
	mutatingHooks   = []string{types.Admission.WithResource("mutatingwebhookconfigurations").GroupResource().String()}
	validatingHooks = []string{types.Admission.WithResource("validatingwebhookconfigurations").GroupResource().String()}
)

// hookSet is the webhooks of the configurations of one kind.
type hookSet struct{ derived[[]*webhook.Hook] }

// hooks are the webhooks that this replica knows, in the order in which they are
// asked. Where there are none, it costs a look at a number.
func (set *hookSet) hooks(s *Server, stored []string) []*webhook.Hook {
	return set.of(s.cfg.Storage, stored, func([]*webhook.Hook) []*webhook.Hook { return s.readHooks(stored[0]) })
}

func (s *Server) readHooks(stored string) (all []*webhook.Hook) {
	records, _ := s.cfg.Storage.List(stored, "")
	for _, rec := range records { // by name
		var hooks []*webhook.Hook
		var err error
		switch c := rec.Object().(type) {
		case *types.MutatingWebhookConfiguration:
			hooks, err = webhook.Mutating(c)
		case *types.ValidatingWebhookConfiguration:
			hooks, err = webhook.Validating(c)
		}
		if err != nil { // which validation keeps from happening
			s.log.Error("a configuration of webhooks cannot be used", "error", err)
		}
		all = append(all, hooks...)
	}
	return all
}

// ask is a request as webhooks are asked about it.
type ask struct {
	op       string
	kind     schema.GroupVersionKind // of obj
	obj, old runtime.Object          // either may be nil
	options  runtime.Object
	dryRun   bool
}

// mutating and validating are the webhooks that may have to be asked about what
// this call does.
func (c *call) mutating() []*webhook.Hook   { return c.hooksOf(&c.s.mutating, mutatingHooks) }
func (c *call) validating() []*webhook.Hook { return c.hooksOf(&c.s.validating, validatingHooks) }

func (c *call) hooksOf(set *hookSet, stored []string) []*webhook.Hook {
	if c.quiet || c.resource().Group == types.Admission.Group {
		return nil
	}
	return set.hooks(c.s, stored)
}

// asks says whether there are any, or policies.
func (c *call) asks() bool {
	return len(c.mutating()) > 0 || len(c.validating()) > 0 || len(c.mutates()) > 0 || len(c.judges()) > 0
}

// resource is what the call is about, also where it is no row of the table.
func (c *call) resource() schema.GroupVersionResource {
	if c.res == nil {
		return c.posted
	}
	return c.res.gvr
}

// admit lets own, which is what the kind itself has to say of obj, the mutating
// policies and the mutating webhooks complete or refuse what is asked for. What
// they changed, own is shown again; and what was changed after policies and
// webhooks had seen it, those of them that want to. a.obj is the outcome, which is
// another object if changed.
func (c *call) admit(ctx context.Context, a *ask, own func(Object) error) (changed bool, err error) {
	once := func() error {
		if own == nil {
			return nil
		}
		return own(a.obj.(Object))
	}
	if err := once(); err != nil {
		return false, err
	}
	policies, hooks := c.mutates(), c.mutating()
	if len(policies) == 0 && len(hooks) == 0 {
		return false, nil
	}
	r := round{again: map[any]bool{}}
	ask := func() error {
		if err := r.runPolicies(ctx, c, a, policies); err != nil {
			return err
		}
		return r.run(ctx, c, a, hooks)
	}
	if err := ask(); err != nil || !r.changed {
		return false, err
	}
	seen := a.obj.DeepCopyObject()
	if err := once(); err != nil {
		return true, err
	}
	if !apiequality.Semantic.DeepEqual(seen, a.obj) {
		r.mark()
	}
	r.second = true
	return true, ask()
}

// round is the state of asking mutating policies and webhooks, which is done at
// most twice. They are known by their keys: a useKey, a *webhook.Hook.
type round struct {
	second  bool
	changed bool
	asked   []any // of those that want to know what others change
	again   map[any]bool
}

func (r *round) mark() {
	for _, h := range r.asked {
		r.again[h] = true
	}
}

// took notes that somebody was asked.
func (r *round) took(key any, again, changed bool) {
	if changed {
		r.changed = true
		r.mark()
	}
	if again && !slices.Contains(r.asked, key) {
		r.asked = append(r.asked, key)
	}
}

func (r *round) run(ctx context.Context, c *call, a *ask, hooks []*webhook.Hook) error {
	for _, h := range hooks {
		if r.second && !r.again[h] {
			continue
		}
		as, is, err := c.concerns(ctx, h, c.subject(ctx, a), a)
		if err != nil {
			return err
		}
		if !is {
			continue
		}
		changed, err := c.mutateBy(ctx, h, as, a)
		if err != nil {
			return err
		}
		r.took(h, h.Again, changed)
	}
	return nil
}

// judge asks the validating policies, then the validating webhooks, all at once.
// Of several refusals the first in the order of the webhooks is the answer.
func (c *call) judge(ctx context.Context, a *ask) error {
	if err := c.judgeByPolicies(ctx, a); err != nil {
		return err
	}
	hooks := c.validating()
	if len(hooks) == 0 {
		return nil
	}
	subject := c.subject(ctx, a)
	answers := make([]func() error, len(hooks))
	var all sync.WaitGroup
	for i, h := range hooks {
		as, is, err := c.concerns(ctx, h, subject, a)
		if err != nil {
			answers[i] = func() error { return err }
			continue
		}
		if !is {
			continue
		}
		all.Go(func() {
			r, _, err := c.askHook(ctx, h, as, a)
			answers[i] = func() error { return c.took(h, r, err) }
		})
	}
	all.Wait()
	for _, answer := range answers {
		if answer == nil {
			continue
		}
		if err := answer(); err != nil {
			return err
		}
	}
	return nil
}

// subject is what rules and selectors are compared with.
func (c *call) subject(ctx context.Context, a *ask) *webhook.Subject {
	s := &webhook.Subject{Operation: a.op, Version: webhook.Version{Resource: c.resource(), Kind: a.kind}, Subresource: c.sub, Name: c.nameOf(a), Namespace: c.namespace}
	if s.Resource == namespaces {
		s.Namespace = s.Name
	}
	for _, o := range []runtime.Object{a.obj, a.old} {
		if m, ok := o.(metav1.Object); ok {
			s.Labels = append(s.Labels, m.GetLabels())
		}
	}
	if c.res != nil {
		for _, r := range c.s.versionsOf(c.res) {
			kind := a.kind
			if kind == c.res.GVK {
				kind = r.GVK
			}
			s.Others = append(s.Others, webhook.Version{Resource: r.gvr, Kind: kind})
		}
	}
	s.NamespaceLabels = func() (map[string]string, error) {
		if ns, ok := a.obj.(*corev1.Namespace); ok && s.Resource == namespaces {
			return ns.Labels, nil // what is stored may be another state of it
		}
		ns, err := c.namespaceObject(ctx, s.Namespace)
		if err != nil {
			return nil, err
		}
		return ns.GetLabels(), nil
	}
	return s
}

// namespaceObject is a namespace that is there.
func (c *call) namespaceObject(ctx context.Context, name string) (Object, error) {
	rec := c.s.cfg.Storage.Get(namespaces.Resource, "", name)
	if rec == nil { // this replica may be behind
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return nil, storageError(err, c.resource().GroupResource(), c.name)
		}
		if rec = c.s.cfg.Storage.Get(namespaces.Resource, "", name); rec == nil {
			return nil, apierrors.NewNotFound(namespaces.GroupResource(), name)
		}
	}
	return rec.Object(), nil
}

// concerns says whether a webhook is to be asked, and in which version: by its
// rules and selectors, then by its matchConditions.
func (c *call) concerns(ctx context.Context, h *webhook.Hook, s *webhook.Subject, a *ask) (as webhook.Version, is bool, err error) {
	as, is, err = h.Concerns(s)
	if err != nil || !is || len(h.Conditions) == 0 {
		return as, is, err
	}
	in, err := c.input(ctx, a, as)
	if err != nil {
		return as, false, err
	}
	switch is, err = h.Conditions.Match(ctx, in); {
	case err == nil:
		return as, is, nil
	case ctx.Err() != nil:
		return as, false, ctx.Err()
	case h.Ignores:
		c.s.log.Warn("a webhook's matchConditions failed and it is not asked, as its failurePolicy says", "webhook", h.Name, "error", err)
		return as, false, nil
	}
	return as, false, apierrors.NewForbidden(c.resource().GroupResource(), c.nameOf(a), err)
}

// nameOf is the name of the object that is asked about, as far as it has one.
func (c *call) nameOf(a *ask) string {
	if c.name != "" {
		return c.name
	}
	if m, ok := a.obj.(metav1.Object); ok {
		return m.GetName()
	}
	return ""
}

// versionsOf are the other rows that show what a row shows.
func (s *Server) versionsOf(r *resource) []*resource {
	if r.def != nil {
		return slices.DeleteFunc(r.def.served(s), func(o *resource) bool { return o.gvr == r.gvr })
	}
	var others []*resource
	for _, o := range s.table.Load().rows {
		if o.stored == r.stored && o.gvr != r.gvr {
			others = append(others, o)
		}
	}
	return others
}

// askHook puts the question to a webhook. doc is the object as it was sent.
func (c *call) askHook(ctx context.Context, h *webhook.Hook, as webhook.Version, a *ask) (_ *webhook.Response, doc []byte, _ error) {
	if a.dryRun {
		if err := h.MayDryRun(); err != nil {
			return nil, nil, err
		}
	}
	is := webhook.Version{Resource: c.resource(), Kind: a.kind}
	requested, requestedKind := webhook.Resource(is.Resource), webhook.Kind(is.Kind)
	r := webhook.Request{
		Kind: webhook.Kind(as.Kind), Resource: webhook.Resource(as.Resource), SubResource: c.sub,
		RequestKind: &requestedKind, RequestResource: &requested, RequestSubResource: c.sub,
		Name: c.nameOf(a), Namespace: c.namespace, Operation: a.op, UserInfo: userInfo(c.user), DryRun: &a.dryRun,
	}
	if is.Resource == namespaces {
		r.Namespace = r.Name
	}
	var err error
	if r.Object, err = c.documentOf(ctx, a.obj, is, as); err != nil {
		return nil, nil, err
	}
	if r.OldObject, err = c.documentOf(ctx, a.old, is, as); err != nil {
		return nil, nil, err
	}
	if a.options != nil {
		if r.Options, err = json.Marshal(a.options); err != nil {
			return nil, nil, err
		}
	}
	response, err := c.s.hooks.Ask(ctx, h, r)
	switch {
	case err == nil:
		return response, r.Object, nil
	case ctx.Err() != nil: // it is the request that has ended, not the webhook
		return nil, nil, ctx.Err()
	case h.Ignores:
		c.s.log.Warn("a webhook could not be asked and is ignored, as its failurePolicy says", "webhook", h.Name, "error", err)
		return nil, nil, nil
	}
	return nil, nil, h.Failure(err)
}

// documentOf is an object as it is sent to a webhook that asked for a version.
func (c *call) documentOf(ctx context.Context, obj runtime.Object, is, as webhook.Version) ([]byte, error) {
	obj, err := c.objectAs(ctx, obj, is, as)
	if err != nil || obj == nil {
		return nil, err
	}
	doc, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("encode an object for a webhook: %w", err)
	}
	return doc, nil
}

// objectAs is an object in the version that was asked for, nil if it is.
func (c *call) objectAs(ctx context.Context, obj runtime.Object, is, as webhook.Version) (runtime.Object, error) {
	if obj == nil || is.Kind == as.Kind {
		return obj, nil
	}
	return c.s.convert(ctx, obj.(Object), is.Resource, as.Resource)
}

// took passes on what a webhook has to tell, and returns its refusal. A nil
// response is of a webhook that is ignored.
func (c *call) took(h *webhook.Hook, r *webhook.Response, err error) error {
	if err != nil || r == nil {
		return err
	}
	if c.warn != nil {
		for _, w := range r.Warnings {
			c.warn(w)
		}
	}
	if !r.Allowed {
		return h.Refusal(r)
	}
	return nil
}

// mutateBy asks one mutating webhook and does to a.obj what it says.
func (c *call) mutateBy(ctx context.Context, h *webhook.Hook, as webhook.Version, a *ask) (changed bool, err error) {
	r, doc, err := c.askHook(ctx, h, as, a)
	if err := c.took(h, r, err); err != nil {
		return false, err
	}
	if r == nil || len(r.Patch) == 0 {
		return false, nil
	}
	if a.obj == nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q attempted to modify the object, which is not supported for this operation", h.Name))
	}
	obj, err := c.patchedBy(ctx, r.Patch, doc, as, a)
	if err != nil {
		return false, apierrors.NewInternalError(fmt.Errorf("admission webhook %q: its patch: %w", h.Name, err))
	}
	if apiequality.Semantic.DeepEqual(a.obj, obj) {
		return false, nil
	}
	a.obj = obj
	return true, nil
}

func (c *call) patchedBy(ctx context.Context, patch, doc []byte, as webhook.Version, a *ask) (runtime.Object, error) {
	doc, err := patched(doc, patch)
	if err != nil {
		return nil, err
	}
	return c.decodeAdmitted(ctx, doc, as, a)
}

// patched is a document after a JSON patch.
func patched(doc, patch []byte) ([]byte, error) {
	p, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, err
	}
	return p.Apply(doc)
}

// decodeAdmitted is what admission made, in the version as, of a.obj.
func (c *call) decodeAdmitted(ctx context.Context, doc []byte, as webhook.Version, a *ask) (runtime.Object, error) {
	of := c
	if as.Kind != a.kind { // it speaks of another version
		other := *c
		if other.res = c.s.resource(as.Resource); other.res == nil {
			return nil, errNoSuchPath
		}
		of = &other
	}
	if _, ok := a.obj.(Object); !ok { // the options of a connection
		obj, err := Scheme().New(as.Kind)
		if err != nil {
			return nil, err
		}
		return obj, json.Unmarshal(doc, obj)
	}
	obj, err := of.decodePatched(doc, as.Kind, metav1.FieldValidationIgnore)
	if err != nil {
		return nil, err
	}
	if of != c {
		if obj, err = c.s.convert(ctx, obj, as.Resource, c.res.gvr); err != nil {
			return nil, err
		}
	}
	obj.GetObjectKind().SetGroupVersionKind(a.kind)
	if c.res != nil && a.kind == c.res.GVK && c.res.Default != nil {
		c.res.Default(obj)
	}
	c.keepManagedFields(obj, a.obj.(Object))
	return obj, nil
}

// keepManagedFields undoes what admission did to the managed fields, if nobody
// can read it.
func (c *call) keepManagedFields(obj, was Object) {
	if err := managedfields.ValidateManagedFields(obj.GetManagedFields()); err != nil {
		obj.SetManagedFields(was.GetManagedFields())
		if c.warn != nil {
			c.warn(fmt.Sprintf(".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission controller; please fix your requests: %v", err))
		}
	}
}

// admitPosted asks webhooks about an object that is posted and not kept: what
// some subresources and the reviews are.
func (c *call) admitPosted(ctx context.Context, kind schema.GroupVersionKind, obj Object, o metav1.CreateOptions) (Object, error) {
	obj.GetObjectKind().SetGroupVersionKind(kind)
	a := &ask{op: webhook.Create, kind: kind, obj: obj, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun)}
	if _, err := c.admit(ctx, a, nil); err != nil {
		return nil, err
	}
	return a.obj.(Object), c.judge(ctx, a)
}

// optionsOf names options for what they are.
func optionsOf(o runtime.Object) runtime.Object {
	var kind string
	switch o.(type) {
	case *metav1.CreateOptions:
		kind = "CreateOptions"
	case *metav1.UpdateOptions:
		kind = "UpdateOptions"
	case *metav1.PatchOptions:
		kind = "PatchOptions"
	case *metav1.DeleteOptions:
		kind = "DeleteOptions"
	}
	o.GetObjectKind().SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind(kind))
	return o
}

// backendOf is where a port of a Service answers: webhooks are reached as
// proxies reach it, past its rules, so on every master.
func (s *Server) backendOf(namespace, name string, port int32) (string, error) {
	rec := s.cfg.Storage.Get(services.Resource, namespace, name)
	if rec == nil {
		return "", fmt.Errorf("service %q not found", name)
	}
	svc, ok := rec.Object().(*corev1.Service)
	if !ok {
		return "", fmt.Errorf("service %q not found", name)
	}
	return s.serviceBackend(svc, strconv.Itoa(int(port)))
}

// ownAdmission is what the kind itself has to say of a write by one of its hooks;
// nil if nothing.
func (c *call) ownAdmission(ctx context.Context, admit func(context.Context, *call, Object, Object) error, old Object) func(Object) error {
	if admit == nil {
		return nil
	}
	if old == nil { // which must stay nil
		return func(obj Object) error { return admit(ctx, c, obj, nil) }
	}
	return func(obj Object) error { return admit(ctx, c, obj, old) }
}

// admitUpdate completes an update of the whole object. What webhooks changed
// that this kind of update may not change, prepare undoes.
func (c *call) admitUpdate(ctx context.Context, u update, obj, old Object, own func(Object) error, prepare func(obj, old runtime.Object)) (Object, error) {
	if u.facet == nil || u.facet.gvk != c.res.GVK || !c.asks() {
		if own == nil {
			return obj, nil
		}
		return obj, own(obj)
	}
	a := &ask{op: webhook.Update, kind: c.res.GVK, obj: obj, old: old, options: u.options, dryRun: u.dryRun}
	changed, err := c.admit(ctx, a, own)
	if err != nil || !changed {
		return obj, err
	}
	obj = a.obj.(Object)
	if obj.GetName() != old.GetName() || obj.GetNamespace() != old.GetNamespace() {
		return nil, apierrors.NewBadRequest("admission may not change an object's name or namespace")
	}
	if err := c.inherit(obj, old); err != nil {
		return nil, err
	}
	if prepare != nil {
		prepare(obj, old)
	}
	return obj, nil
}

// admitShown completes what a subresource shows of an object, before it is put
// into the object.
func (c *call) admitShown(ctx context.Context, u *update, said, old Object) (Object, error) {
	if u.facet.gvk == c.res.GVK || !c.asks() {
		return said, nil
	}
	before, err := u.facet.show(old)
	if err != nil {
		return nil, err
	}
	said.GetObjectKind().SetGroupVersionKind(u.facet.gvk)
	a := &ask{op: webhook.Update, kind: u.facet.gvk, obj: said, old: before, options: u.options, dryRun: u.dryRun}
	_, err = c.admit(ctx, a, nil)
	return a.obj.(Object), err
}

// judgeUpdate asks the validating webhooks about an update.
func (c *call) judgeUpdate(ctx context.Context, u update, obj, old Object) error {
	if u.facet == nil || !c.asks() {
		return nil
	}
	now, err := u.facet.show(obj)
	if err != nil {
		return err
	}
	before, err := u.facet.show(old)
	if err != nil {
		return err
	}
	return c.judge(ctx, &ask{op: webhook.Update, kind: u.facet.gvk, obj: now, old: before, options: u.options, dryRun: u.dryRun})
}

// connects asks webhooks about a connection to a pod, service or node. What
// they change of its options is what is connected with.
func (x *exchange) connects(ctx context.Context, c *call) error {
	kind, ok := connectKind(c.res.gvr, c.sub)
	if !ok || !c.asks() {
		return nil
	}
	options, err := Scheme().New(kind)
	if err != nil {
		return err
	}
	if err := decodeQuery(x.query, options); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	switch o := options.(type) {
	case *corev1.PodProxyOptions:
		o.Path = x.target.rest
	case *corev1.ServiceProxyOptions:
		o.Path = x.target.rest
	case *corev1.NodeProxyOptions:
		o.Path = x.target.rest
	}
	options.GetObjectKind().SetGroupVersionKind(kind)
	a := &ask{op: webhook.Connect, kind: kind, obj: options}
	changed, err := c.admit(ctx, a, nil)
	if err != nil {
		return err
	}
	if err := c.judge(ctx, a); err != nil || !changed {
		return err
	}
	switch o := a.obj.(type) {
	case *corev1.PodProxyOptions:
		x.target.rest = o.Path
	case *corev1.ServiceProxyOptions:
		x.target.rest = o.Path
	case *corev1.NodeProxyOptions:
		x.target.rest = o.Path
	default:
		if x.query, err = queryparams.Convert(a.obj); err != nil {
			return err
		}
	}
	return nil
}

// connectKind is the kind of the options of a connection.
func connectKind(r schema.GroupVersionResource, sub string) (schema.GroupVersionKind, bool) {
	kinds := map[string]string{
		"pods/exec": "PodExecOptions", "pods/attach": "PodAttachOptions", "pods/portforward": "PodPortForwardOptions",
		"pods/proxy": "PodProxyOptions", "services/proxy": "ServiceProxyOptions", "nodes/proxy": "NodeProxyOptions",
	}
	kind, ok := kinds[r.GroupResource().String()+"/"+sub]
	return corev1.SchemeGroupVersion.WithKind(kind), ok
}
