package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"conclave/api/cel"
	"conclave/api/policy"
	"conclave/api/webhook"
)

// useKey tells the uses of policies in a request apart.
type useKey struct{ policy, binding, paramNamespace, param string }

func (u *use) key() useKey {
	key := useKey{policy: u.policy.Name, binding: u.binding.Name}
	if u.param != nil {
		key.paramNamespace, key.param = u.param.GetNamespace(), u.param.GetName()
	}
	return key
}

// runPolicies does to a.obj what the mutating policies say, each seeing what those
// before it did. What cannot be done of it refuses the request, unless the
// policy's failurePolicy is Ignore.
func (r *round) runPolicies(ctx context.Context, c *call, a *ask, bound []*boundPolicy) error {
	if len(bound) == 0 || a.obj == nil { // of a deletion there is nothing to change
		return nil
	}
	uses, misuses, err := c.uses(ctx, bound, a)
	if err != nil {
		return err
	}
	var failed []string
	fail := func(p *policy.Policy, b *policy.Binding, err error) {
		switch {
		case p.Ignores:
		case b == nil:
			failed = append(failed, fmt.Sprintf("policy %q denied request: %s", p.Name, err))
		default:
			failed = append(failed, fmt.Sprintf("policy '%s' with binding '%s' denied request: %s", p.Name, b.Name, err))
		}
	}
	for i := range misuses {
		fail(misuses[i].policy, misuses[i].binding, &misuses[i])
	}
	for i := range uses {
		u := &uses[i]
		if r.second && !r.again[u.key()] {
			continue
		}
		changed, err := c.mutateByPolicy(ctx, u, a, func(err error) { fail(u.policy, u.binding, err) })
		if err != nil {
			return err
		}
		r.took(u.key(), u.policy.Again, changed)
	}
	if len(failed) == 0 {
		return nil
	}
	refusal := c.forbiddenBy(a, failed[0])
	refusal.ErrStatus.Message, refusal.ErrStatus.Reason = failed[0], metav1.StatusReasonInvalid
	for _, message := range failed {
		refusal.ErrStatus.Details.Causes = append(refusal.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	}
	return refusal
}

// mutateByPolicy does to a.obj what one use of a policy says. What goes wrong with
// a single change is told to fail, and the others are made.
func (c *call) mutateByPolicy(ctx context.Context, u *use, a *ask, fail func(error)) (changed bool, err error) {
	before := a.obj
	for i := range u.policy.Mutations() {
		told := inputs{c, a, map[webhook.Version]*cel.Input{}} // anew: the object is another
		in, err := told.of(ctx, u)
		if err != nil {
			return false, err
		}
		if i == 0 {
			is, err := u.policy.Applies(ctx, in)
			if err != nil && ctx.Err() == nil {
				fail(err)
			}
			if !is {
				return false, ctx.Err()
			}
		}
		obj, err := c.changedBy(ctx, u, i, in, a)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err != nil:
			fail(err)
		default:
			a.obj = obj
		}
	}
	return !apiequality.Semantic.DeepEqual(before, a.obj), nil
}

// changedBy is a.obj after one change.
func (c *call) changedBy(ctx context.Context, u *use, i int, in *cel.Input, a *ask) (runtime.Object, error) {
	change, err := u.policy.Change(ctx, i, in)
	if err != nil {
		return nil, err
	}
	var doc []byte
	if change.Apply != nil {
		types, err := c.typesOf(u.as)
		if err != nil {
			return nil, err
		}
		merged, err := policy.Apply(types, in.Object, change.Apply)
		if err != nil {
			return nil, err
		}
		if doc, err = json.Marshal(merged); err != nil {
			return nil, err
		}
	} else {
		if doc, err = json.Marshal(in.Object); err != nil {
			return nil, err
		}
		if doc, err = patched(doc, change.Patch); errors.Is(err, jsonpatch.ErrTestFailed) {
			return a.obj, nil // what it asks for before it changes anything is not so
		} else if err != nil {
			return nil, fmt.Errorf("JSON Patch: %w", err)
		}
	}
	return c.decodeAdmitted(ctx, doc, u.as, a)
}

// typesOf knows the fields of a version of what is written.
func (c *call) typesOf(as webhook.Version) (managedfields.TypeConverter, error) {
	if r := c.s.resource(as.Resource); r != nil && r.def != nil {
		return r.def.typed()
	}
	return typeConverter()
}
