package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/custom"
	"conclave/api/webhook"
)

// Where a definition names a webhook for it, an object is shown in another
// version than the stored one as the webhook converts it, and is converted to be
// stored. Reads and writes ask anew each time, because the webhook may have
// learned better; watches ask once for each version of an object, however many
// watch it.

// converterOf is the webhook that converts, nil where versions differ in their
// name alone.
func converterOf(d *custom.Definition) *webhook.Converter {
	c := d.Spec.Conversion
	if c == nil || c.Strategy != apiextensionsv1.WebhookConverter || c.Webhook == nil || c.Webhook.ClientConfig == nil {
		return nil
	}
	return &webhook.Converter{Config: custom.ClientConfig(c.Webhook.ClientConfig), Reviews: c.Webhook.ConversionReviewVersions}
}

// converts says whether a row's objects may need a webhook.
func (r *resource) converts() bool { return r.def != nil && r.def.converter != nil }

// convertAll asks the webhook of a definition for objects of one version in
// another.
func (d *definition) convertAll(ctx context.Context, s *Server, objects []*unstructured.Unstructured, to schema.GroupVersionKind) ([]*unstructured.Unstructured, error) {
	out, err := s.hooks.Convert(ctx, d.converter, objects, to)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, apierrors.NewInternalError(err)
	}
	return out, nil
}

// errNotYet says of a record that nobody has converted it.
var errNotYet = errors.New("not yet converted")

// shownAll are records as readers of the call's resource see them. once says that
// what was converted for another reader is good enough.
func (c *call) shownAll(ctx context.Context, records []Record, once bool) ([]Record, error) {
	out := make([]Record, len(records))
	r := c.res
	if !r.converts() || c.byName {
		for i, rec := range records {
			out[i] = r.view(rec)
		}
		return out, nil
	}
	waiting := map[string][]int{} // by the version that they are stored in
	for i, rec := range records {
		if rec == nil {
			continue
		}
		version := rec.Object().GetObjectKind().GroupVersionKind().Version
		if version == r.gvr.Version {
			out[i] = r.view(rec)
			continue
		}
		if once {
			raw, err := rec.Encoding(r.as+" converted", func(Object) ([]byte, error) { return nil, errNotYet })
			if err == nil {
				out[i], err = r.read(rec, raw)
			}
			if err == nil {
				continue
			}
		}
		waiting[version] = append(waiting[version], i)
	}
	for version, which := range waiting {
		if err := r.convertInto(ctx, c.s, out, records, version, which, once); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// read is a record that was converted before.
func (r *resource) read(rec Record, raw []byte) (Record, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(raw); err != nil {
		return nil, err
	}
	return &viewed{Record: rec, r: r, converted: u}, nil
}

// convertInto converts those records that are stored in a version, all at once.
func (r *resource) convertInto(ctx context.Context, s *Server, out, records []Record, version string, which []int, keep bool) error {
	objects := make([]*unstructured.Unstructured, len(which))
	for i, at := range which {
		obj := records[at].Object()
		if row := r.def.row(s, version, false); row != nil { // with the defaults of its own version
			restored, err := row.FromStored(obj)
			if err != nil {
				return err
			}
			obj = restored.(Object)
		}
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("convert a %T: not a custom resource", obj)
		}
		objects[i] = u
	}
	converted, err := r.def.convertAll(ctx, s, objects, r.GVK)
	if err != nil {
		return err
	}
	for i, at := range which {
		obj, err := r.FromStored(converted[i]) // what the version knows
		if err != nil {
			return err
		}
		out[at] = &viewed{Record: records[at], r: r, converted: obj.(Object)}
		if keep {
			if _, err := records[at].Encoding(r.as+" converted", func(Object) ([]byte, error) { return json.Marshal(obj) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// shownOne is shownAll of one record, which may be nil.
func (c *call) shownOne(ctx context.Context, rec Record) (Record, error) {
	if rec == nil {
		return nil, nil
	}
	out, err := c.shownAll(ctx, []Record{rec}, false)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// stored is an object of a row in the form that is stored.
func (s *Server) stored(ctx context.Context, r *resource, obj Object) (Object, error) {
	to := r.storedGVK()
	if !r.converts() || r.GVK == to {
		return r.toStored(obj)
	}
	u, err := s.convertOne(ctx, r.def, obj, to)
	if err != nil {
		return nil, err
	}
	row := r.def.row(s, to.Version, false)
	if row == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("%s is not stored in %s any more", r.gvr, to.Version))
	}
	if _, err := row.Decoded(u); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("%s as its webhook converted it: %w", r.gvr, err))
	}
	return u, nil
}

func (s *Server) convertOne(ctx context.Context, d *definition, obj Object, to schema.GroupVersionKind) (Object, error) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("convert a %T: not a custom resource", obj)
	}
	if u.GroupVersionKind() == to {
		return u, nil
	}
	out, err := d.convertAll(ctx, s, []*unstructured.Unstructured{u}, to)
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// convert shows an object of one version of a resource in another.
func (s *Server) convert(ctx context.Context, obj Object, from, to schema.GroupVersionResource) (Object, error) {
	was, is := s.resource(from), s.resource(to)
	if was == nil || is == nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("convert %s to %s: one of them is not served any more", from, to))
	}
	if was.converts() {
		return s.convertOne(ctx, was.def, obj, is.GVK)
	}
	stored, err := was.toStored(obj)
	if err != nil {
		return nil, err
	}
	if is.FromStored == nil {
		return stored, nil
	}
	out, err := is.FromStored(stored)
	if err != nil {
		return nil, err
	}
	out.GetObjectKind().SetGroupVersionKind(is.GVK)
	return out.(Object), nil
}
