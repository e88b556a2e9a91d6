package api

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/cel"
	"conclave/api/policy"
	"conclave/api/types"
	"conclave/api/webhook"
)

// Admission policies are asked as webhooks are (webhooks.go): by the replica that
// a request came to, not about what the server writes on its own account, nor
// about policies and webhook configurations. Mutating ones come before mutating
// webhooks, validating ones before validating webhooks.

var (
	validatingPolicies = types.Admission.WithResource("validatingadmissionpolicies")
	validatingBindings = types.Admission.WithResource("validatingadmissionpolicybindings")
	mutatingPolicies   = types.Admission.WithResource("mutatingadmissionpolicies")
	mutatingBindings   = types.Admission.WithResource("mutatingadmissionpolicybindings")

	// Policies and their bindings, as Storage names them: asked about with each
	// write.
	validatingStored = []string{validatingPolicies.GroupResource().String(), validatingBindings.GroupResource().String()}
	mutatingStored   = []string{mutatingPolicies.GroupResource().String(), mutatingBindings.GroupResource().String()}
)

// policySet is the policies of one kind that are bound.
type policySet struct{ derived[[]*boundPolicy] }

// boundPolicy is a policy, or what is wrong with it, and its bindings.
type boundPolicy struct {
	name     string
	revision uint64
	policy   *policy.Policy // nil: it cannot be used
	bindings []*policy.Binding
}

// bound are the policies that this replica knows, by name; stored are the names of
// their kind and their bindings'. Where there are none, it costs a look at a number.
func (set *policySet) bound(s *Server, stored []string) []*boundPolicy {
	return set.of(s.cfg.Storage, stored, func(before []*boundPolicy) []*boundPolicy { return s.bindPolicies(stored, before) })
}

// bindPolicies are all policies that have bindings, compiled but for those that
// were before.
func (s *Server) bindPolicies(stored []string, before []*boundPolicy) (all []*boundPolicy) {
	of := map[string][]*policy.Binding{}
	records, _ := s.cfg.Storage.List(stored[1], "")
	for _, rec := range records {
		name, b, err := bindingOf(rec.Object())
		if err != nil { // which validation keeps from happening
			s.log.Error("a binding of an admission policy cannot be used", "error", err)
			continue
		}
		of[name] = append(of[name], b)
	}
	if len(of) == 0 {
		return nil
	}
	records, _ = s.cfg.Storage.List(stored[0], "")
	for _, rec := range records {
		name := rec.Object().GetName()
		if len(of[name]) > 0 {
			all = append(all, &boundPolicy{name, rec.Revision(), s.compiled(before, rec), of[name]})
		}
	}
	return all
}

// compiled is a policy as it was compiled before, if it is the same.
func (s *Server) compiled(before []*boundPolicy, rec Record) *policy.Policy {
	i := slices.IndexFunc(before, func(b *boundPolicy) bool { return b.name == rec.Object().GetName() && b.revision == rec.Revision() })
	if i >= 0 {
		return before[i].policy
	}
	var p *policy.Policy
	var err error
	switch o := rec.Object().(type) {
	case *types.ValidatingAdmissionPolicy:
		p, err = policy.NewValidating(o)
	case *types.MutatingAdmissionPolicy:
		p, err = policy.NewMutating(o)
	}
	if err != nil { // which validation keeps from happening
		s.log.Error("an admission policy cannot be used", "error", err)
		return nil
	}
	return p
}

func bindingOf(o Object) (of string, b *policy.Binding, err error) {
	switch o := o.(type) {
	case *types.ValidatingAdmissionPolicyBinding:
		b, err = policy.NewBinding(o.Name, o.Spec.MatchResources, o.Spec.ParamRef, o.Spec.ValidationActions)
		return o.Spec.PolicyName, b, err
	case *types.MutatingAdmissionPolicyBinding:
		b, err = policy.NewBinding(o.Name, o.Spec.MatchResources, o.Spec.ParamRef, nil)
		return o.Spec.PolicyName, b, err
	}
	return "", nil, fmt.Errorf("a %T is no binding of a policy", o)
}

// asksPolicies says whether policies may have a say in what this call does.
func (c *call) asksPolicies() bool { return !c.quiet && c.resource().Group != types.Admission.Group }

// judges and mutates are the policies that may have a say.
func (c *call) judges() []*boundPolicy {
	if !c.asksPolicies() {
		return nil
	}
	return c.s.judges.bound(c.s, validatingStored)
}

func (c *call) mutates() []*boundPolicy {
	if !c.asksPolicies() {
		return nil
	}
	return c.s.mutates.bound(c.s, mutatingStored)
}

// use is one use of a policy in a request: with a binding and one of its
// parameters.
type use struct {
	policy  *policy.Policy
	binding *policy.Binding
	as      webhook.Version
	param   Object // nil: null
}

// misuse is why a policy or a binding of it cannot be used.
type misuse struct {
	policy  *policy.Policy
	binding *policy.Binding // nil: it is the policy's fault
	err     error
}

func (m *misuse) Error() string {
	if m.binding == nil {
		return "failed to configure policy: " + m.err.Error()
	}
	return "failed to configure binding: " + m.err.Error()
}

// uses are those of all policies that a request concerns, in order, and what
// cannot be used though the request concerns it. An error is of this replica, which
// has to catch up and cannot: no policy is to blame.
func (c *call) uses(ctx context.Context, bound []*boundPolicy, a *ask) (uses []use, misuses []misuse, err error) {
	subject := c.subject(ctx, a)
	blame := func(p *policy.Policy, b *policy.Binding, err error) error {
		if ctx.Err() != nil || apierrors.IsServiceUnavailable(err) {
			return err
		}
		misuses = append(misuses, misuse{p, b, err})
		return nil
	}
	for _, b := range bound {
		if b.policy == nil {
			continue
		}
		as, is, err := b.policy.Concerns(subject)
		if err != nil {
			if err := blame(b.policy, nil, err); err != nil {
				return nil, nil, err
			}
			continue
		}
		if !is {
			continue
		}
		for _, binding := range b.bindings {
			params, err := c.bound(ctx, subject, b.policy, binding)
			if err != nil {
				if err := blame(b.policy, binding, err); err != nil {
					return nil, nil, err
				}
			}
			for _, param := range params {
				uses = append(uses, use{b.policy, binding, as, param})
			}
		}
	}
	return uses, misuses, nil
}

// bound are the parameters that a binding uses a policy with in a request: none
// where the binding does not mean the request.
func (c *call) bound(ctx context.Context, s *webhook.Subject, p *policy.Policy, b *policy.Binding) ([]Object, error) {
	if b.Match != nil {
		if _, is, err := b.Concerns(s); err != nil || !is {
			return nil, err
		}
	}
	return c.params(ctx, p.ParamKind, b.Param)
}

// params are what a binding takes its parameters from: one nil where it takes
// none, and none where there is nothing and that is let be.
func (c *call) params(ctx context.Context, kind *types.ParamKind, ref *types.ParamRef) ([]Object, error) {
	if kind == nil || ref == nil {
		return []Object{nil}, nil
	}
	gvk := schema.FromAPIVersionAndKind(kind.APIVersion, kind.Kind)
	r := c.s.resourceOfKind(gvk)
	if r == nil {
		return nil, fmt.Errorf("paramKind kind `%s` not known", gvk)
	}
	of := &call{s: c.s, res: r, namespace: ref.Namespace, name: ref.Name, quiet: true}
	switch {
	case !r.Namespaced && ref.Namespace != "":
		return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
	case r.Namespaced && ref.Namespace == "":
		if of.namespace = c.namespace; of.namespace == "" {
			return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
		}
	}
	found, err := of.paramsOf(ctx, ref.Selector)
	if err == nil && len(found) == 0 { // this replica may be behind
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return nil, storageError(err, c.resource().GroupResource(), c.name)
		}
		found, err = of.paramsOf(ctx, ref.Selector)
	}
	if err == nil && len(found) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == types.Deny {
		err = errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return found, err
}

// paramsOf is the call's object, or those that are selected.
func (c *call) paramsOf(ctx context.Context, s *metav1.LabelSelector) (found []Object, err error) {
	var records []Record
	if c.name != "" {
		if rec := c.s.cfg.Storage.Get(c.res.stored, c.namespace, c.name); rec != nil {
			records = []Record{rec}
		}
	} else {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			return nil, err
		}
		all, _ := c.s.cfg.Storage.List(c.res.stored, c.namespace)
		for _, rec := range all {
			if selector.Matches(labels.Set(rec.Object().GetLabels())) {
				records = append(records, rec)
			}
		}
	}
	shown, err := c.shownAll(ctx, records, true)
	if err != nil {
		return nil, err
	}
	for _, rec := range shown {
		found = append(found, rec.Object())
	}
	return found, nil
}

// resourceOfKind is the row of a kind, nil if there is none.
func (s *Server) resourceOfKind(gvk schema.GroupVersionKind) *resource {
	for _, r := range s.table.Load().rows {
		if r.GVK == gvk {
			return r
		}
	}
	all, _ := s.definitions()
	for _, d := range all {
		if d.object.Spec.Group != gvk.Group || d.object.Status.AcceptedNames.Kind != gvk.Kind {
			continue
		}
		if r := d.row(s, gvk.Version, true); r != nil {
			return r
		}
	}
	return nil
}

// inputs are what expressions are told of a request, in each version once.
type inputs struct {
	c    *call
	a    *ask
	made map[webhook.Version]*cel.Input
}

// of is what the expressions of a use are told.
func (in *inputs) of(ctx context.Context, u *use) (*cel.Input, error) {
	told := in.made[u.as]
	if told == nil {
		var err error
		if told, err = in.c.input(ctx, in.a, u.as); err != nil {
			return nil, err
		}
		if name := in.c.namespace; name != "" && in.c.resource() != namespaces {
			ns, err := in.c.namespaceObject(ctx, name)
			if err != nil {
				return nil, err
			}
			told.Namespace, _ = ns.(*corev1.Namespace)
		}
		in.made[u.as] = told
	}
	one := *told
	if u.param != nil { // a nil must stay one
		one.Params = u.param
	}
	return &one, nil
}

// judgeByPolicies asks the validating policies. The first refusal is the answer.
func (c *call) judgeByPolicies(ctx context.Context, a *ask) error {
	bound := c.judges()
	if len(bound) == 0 {
		return nil
	}
	var refusal error
	refuse := func(p *policy.Policy, b *policy.Binding, d policy.Denial) {
		if refusal == nil {
			refusal = c.deniedBy(a, p, b, d)
		}
	}
	uses, misuses, err := c.uses(ctx, bound, a)
	if err != nil {
		return err
	}
	for _, m := range misuses {
		if !m.policy.Ignores {
			refuse(m.policy, m.binding, policy.Denial{Message: m.Error(), Reason: metav1.StatusReasonInvalid})
		}
	}
	told := inputs{c, a, map[webhook.Version]*cel.Input{}}
	for i := range uses {
		u := &uses[i]
		in, err := told.of(ctx, u)
		if err != nil {
			return err
		}
		denials, audit := u.policy.Validate(ctx, in)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, d := range denials {
			for _, action := range u.binding.Actions {
				switch {
				case action == types.Deny:
					refuse(u.policy, u.binding, d)
				case action == types.Warn && c.warn != nil:
					c.warn(fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", u.policy.Name, u.binding.Name, d.Message))
				}
			}
		}
		for _, d := range audit {
			refuse(u.policy, u.binding, d)
		}
	}
	return refusal
}

// deniedBy is the answer to what a validating policy refuses.
func (c *call) deniedBy(a *ask, p *policy.Policy, b *policy.Binding, d policy.Denial) error {
	with := ""
	if b != nil {
		with = fmt.Sprintf(" with binding '%s'", b.Name)
	}
	message := fmt.Sprintf("ValidatingAdmissionPolicy '%s'%s denied request: %s", p.Name, with, d.Message)
	err := c.forbiddenBy(a, message)
	err.ErrStatus.Reason, err.ErrStatus.Code = d.Reason, codeOf(d.Reason)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	return err
}

// forbiddenBy names what is refused as far as it has a name.
func (c *call) forbiddenBy(a *ask, message string) *apierrors.StatusError {
	name := c.nameOf(a)
	if m, ok := a.obj.(metav1.Object); ok && name == "" {
		name = m.GetGenerateName()
	}
	if name == "" {
		name = "Unknown"
	}
	return apierrors.NewForbidden(c.resource().GroupResource(), name, textError(message))
}

// codeOf is the code of HTTP for a reason that a policy may give.
func codeOf(r metav1.StatusReason) int32 {
	switch r {
	case metav1.StatusReasonForbidden:
		return 403
	case metav1.StatusReasonRequestEntityTooLarge:
		return 413
	}
	return 422
}
