package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"sigs.k8s.io/yaml"
)

// More operations than this in one JSON patch are refused: each may copy.
const maxPatchOperations = 10000

var patchTypes = []string{
	string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType),
	string(types.ApplyYAMLPatchType),
}

// facet is the object that a subresource shows of another.
type facet struct {
	gvk  schema.GroupVersionKind
	show func(of Object) (Object, error)
	// base is what a patch starts from, where that is not what is shown.
	base func(of Object) (Object, error)
	// put returns a copy of of that is as shown says.
	put  func(of, shown Object) (Object, error)
	mode mode
}

// facet returns what the call's subresource lets be read and updated.
func (c *call) facet() (facet, error) {
	whole := facet{
		gvk:  c.res.GVK,
		show: func(of Object) (Object, error) { return of, nil },
		put:  func(_, shown Object) (Object, error) { return shown, nil },
	}
	switch {
	case c.sub == "":
		return whole, nil
	case c.sub == "status" && c.res.Status:
		whole.mode = ofStatus
		return whole, nil
	case c.res.Sub(c.sub) != nil:
		whole.mode = ofSub
		return whole, nil
	case c.sub == "scale" && c.res.GetScale != nil:
		return c.scaleFacet(), nil
	case c.sub == "finalize" && c.res.gvr == namespaces:
		whole.mode = ofSystem
		whole.put = putFinalizers
		return whole, nil
	}
	return facet{}, apierrors.NewNotFound(schema.GroupResource{Group: c.res.gvr.Group, Resource: c.res.gvr.Resource + "/" + c.sub}, c.name)
}

func (c *call) scaleFacet() facet {
	return facet{
		gvk: autoscalingv1.SchemeGroupVersion.WithKind("Scale"),
		show: func(of Object) (Object, error) {
			scale, err := c.res.GetScale(of)
			if err != nil {
				return nil, err
			}
			scale.SetGroupVersionKind(autoscalingv1.SchemeGroupVersion.WithKind("Scale"))
			return scale, nil
		},
		base: func(of Object) (Object, error) {
			scale, err := c.res.GetScale(of)
			if scale == nil {
				return nil, err
			}
			scale.SetGroupVersionKind(autoscalingv1.SchemeGroupVersion.WithKind("Scale"))
			return scale, nil
		},
		put: func(of, shown Object) (Object, error) {
			scale, ok := shown.(*autoscalingv1.Scale)
			if !ok {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Scale, got a %T", shown))
			}
			obj := of.DeepCopyObject().(Object)
			if err := c.res.SetScale(obj, scale); err != nil {
				return nil, err
			}
			obj.SetResourceVersion(scale.ResourceVersion)
			if scale.UID != "" {
				obj.SetUID(scale.UID)
			}
			return obj, nil
		},
	}
}

// updateSub is the PUT of the call's subresource, or of the object itself.
func (c *call) updateSub(ctx context.Context, obj Object, o metav1.UpdateOptions) (Record, error) {
	f, err := c.facet()
	if err != nil {
		return nil, err
	}
	if f.gvk == c.res.GVK && c.sub != "finalize" {
		return c.replace(ctx, obj, o, &f)
	}
	if err := invalidOptions("UpdateOptions", metav1validation.ValidateUpdateOptions(&o)); err != nil {
		return nil, err
	}
	if err := c.checkPlace(obj); err != nil {
		return nil, err
	}
	u := update{mode: f.mode, facet: &f, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun), manager: o.FieldManager}
	u.change = func(old Object) (Object, error) {
		said, err := c.admitShown(ctx, &u, obj, old)
		if err != nil {
			return nil, err
		}
		return f.put(old, said)
	}
	rec, err := c.update(ctx, u)
	return c.shown(f, rec, err)
}

// shown is what a write of a subresource answers with.
func (c *call) shown(f facet, rec Record, err error) (Record, error) {
	if err != nil || f.gvk == c.res.GVK {
		return rec, err
	}
	obj, err := f.show(rec.Object())
	return loose{obj}, err
}

// patch changes the call's object, or its subresource, as a patch says.
// created says that an applied object was not there before.
func (c *call) patch(ctx context.Context, t types.PatchType, data []byte, o metav1.PatchOptions) (rec Record, created bool, err error) {
	if err := invalidOptions("PatchOptions", metav1validation.ValidatePatchOptions(&o, t)); err != nil {
		return nil, false, err
	}
	f, err := c.facet()
	if err != nil {
		return nil, false, err
	}
	if t == types.ApplyPatchType {
		return c.apply(ctx, f, data, o)
	}
	var p patcher
	switch t {
	case types.JSONPatchType:
		p, err = jsonPatcher(data)
	case types.MergePatchType:
		p = func(doc []byte) ([]byte, error) { return jsonpatch.MergePatch(doc, data) }
	case types.StrategicMergePatchType:
		into, newErr := Scheme().New(f.gvk)
		if newErr != nil {
			return nil, false, unsupportedMedia(string(t), patchTypes[0], patchTypes[1], patchTypes[3])
		}
		p = func(doc []byte) ([]byte, error) { return strategicpatch.StrategicMergePatch(doc, data, into) }
	default:
		return nil, false, unsupportedMedia(string(t), patchTypes...)
	}
	if err != nil {
		return nil, false, err
	}
	u := update{mode: f.mode, facet: &f, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun), manager: o.FieldManager}
	u.change = func(old Object) (Object, error) {
		base := f.show
		if f.base != nil {
			base = f.base
		}
		before, err := base(old)
		if err != nil {
			return nil, err
		}
		doc, err := json.Marshal(before)
		if err != nil {
			return nil, err
		}
		patched, err := p(doc)
		if err != nil {
			return nil, patchError(err)
		}
		after, err := c.decodePatched(patched, f.gvk, o.FieldValidation)
		if err != nil {
			return nil, err
		}
		if after.GetName() != before.GetName() || after.GetNamespace() != before.GetNamespace() {
			return nil, apierrors.NewBadRequest("a patch may not change an object's name or namespace")
		}
		if after.GetResourceVersion() == before.GetResourceVersion() {
			after.SetResourceVersion("") // not the patch's own word
		}
		if after, err = c.admitShown(ctx, &u, after, old); err != nil {
			return nil, err
		}
		return f.put(old, after)
	}
	rec, err = c.update(ctx, u)
	rec, err = c.shown(f, rec, err)
	return rec, false, err
}

type patcher func(doc []byte) ([]byte, error)

func jsonPatcher(data []byte) (patcher, error) {
	p, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	if len(p) > maxPatchOperations {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxPatchOperations, len(p)))
	}
	return func(doc []byte) ([]byte, error) {
		out, err := p.Apply(doc)
		if err != nil {
			return nil, apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
		}
		return out, nil
	}, nil
}

// patchError keeps an error that knows its status; all others are the patch's
// own fault.
func patchError(err error) error {
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return apierrors.NewBadRequest(err.Error())
}

func (c *call) decodePatched(doc []byte, gvk schema.GroupVersionKind, validation string) (Object, error) {
	into, err := c.newOf(gvk)
	if err != nil {
		return nil, err
	}
	warn := c.warn
	if warn == nil {
		warn = func(string) {}
	}
	obj, err := decodeBody(doc, mediaJSON, validation, into, gvk, c.decodedOf(gvk), warn)
	if err != nil {
		return nil, err
	}
	return obj.(Object), nil
}

// decodedOf is the kind's Decoded, for an object of the kind itself.
func (c *call) decodedOf(gvk schema.GroupVersionKind) func(runtime.Object) ([]string, error) {
	if c.res != nil && gvk == c.res.GVK {
		return c.res.Decoded
	}
	return nil
}

func (c *call) newOf(gvk schema.GroupVersionKind) (runtime.Object, error) {
	if c.res != nil && gvk == c.res.GVK {
		return c.res.New(), nil
	}
	return Scheme().New(gvk)
}

// apply is a server-side apply: what the body says becomes this manager's.
func (c *call) apply(ctx context.Context, f facet, data []byte, o metav1.PatchOptions) (Record, bool, error) {
	if f.gvk != c.res.GVK {
		return nil, false, unsupportedMedia(string(types.ApplyYAMLPatchType), patchTypes[:3]...)
	}
	intent, err := c.decodeApplied(data, o.FieldValidation)
	if err != nil {
		return nil, false, err
	}
	m, err := c.res.fieldManager(c.sub)
	if err != nil {
		return nil, false, err
	}
	force := o.Force != nil && *o.Force
	merge := func(live Object) (Object, error) {
		merged, err := m.Apply(live, intent.DeepCopy(), o.FieldManager, force)
		if err != nil {
			return nil, patchError(err)
		}
		obj, ok := merged.(Object)
		if !ok {
			return nil, fmt.Errorf("applying %s made a %T", c.res.gvr, merged)
		}
		obj.GetObjectKind().SetGroupVersionKind(c.res.GVK)
		return obj, nil
	}
	for attempt := 0; ; attempt++ {
		rec, err := c.update(ctx, update{mode: f.mode, facet: &f, options: optionsOf(&o), dryRun: c.dryRun(o.DryRun), applied: true, change: func(old Object) (Object, error) {
			merged, err := merge(old)
			if err == nil && merged.GetResourceVersion() == old.GetResourceVersion() {
				merged.SetResourceVersion(intent.GetResourceVersion())
			}
			return merged, err
		}})
		if !apierrors.IsNotFound(err) || c.sub != "" {
			return rec, false, err
		}
		if intent.GetUID() != "" {
			return nil, false, apierrors.NewConflict(c.res.gr(), c.name, fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", intent.GetUID()))
		}
		empty := c.res.New().(Object)
		empty.GetObjectKind().SetGroupVersionKind(c.res.GVK)
		obj, err := merge(empty)
		if err != nil {
			return nil, false, err
		}
		if err := c.s.authorize(ctx, c.user, Attributes{Verb: "create", Resource: c.res.gvr, Namespace: c.namespace, Name: c.name}); err != nil {
			return nil, false, err
		}
		once := *c
		once.applied = true
		rec, err = once.create(ctx, obj, metav1.CreateOptions{DryRun: o.DryRun})
		if apierrors.IsAlreadyExists(err) && attempt < 5 {
			continue // somebody was faster: then it is an update
		}
		return rec, true, err
	}
}

// decodeApplied reads the body of an apply. It stays unstructured, because
// what it does not say must stay unsaid; but it is also read as its type, for
// the sake of unknown fields.
func (c *call) decodeApplied(data []byte, validation string) (*unstructured.Unstructured, error) {
	intent := &unstructured.Unstructured{}
	doc, err := yaml.YAMLToJSON(data)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding YAML: %v", err))
	}
	if err := intent.UnmarshalJSON(doc); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding the applied configuration: %v", err))
	}
	if got := intent.GroupVersionKind(); got != c.res.GVK {
		return nil, wrongKind(got, c.res.GVK)
	}
	if intent.GetManagedFields() != nil {
		return nil, apierrors.NewBadRequest("metadata.managedFields must be nil")
	}
	warn := c.warn
	if warn == nil {
		warn = func(string) {}
	}
	if _, err := decodeBody(data, mediaYAML, validation, c.res.New(), c.res.GVK, c.res.Decoded, warn); err != nil {
		return nil, err
	}
	return intent, c.checkPlace(intent)
}
