package custom

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/util/jsonpath"
)

// compareVersions orders versions as Kubernetes does: v2, v1, v1beta1, …
func compareVersions(a, b string) int { return utilversion.CompareKubeAwareVersionStrings(a, b) }

// steps are the names of a simple path such as ".spec.replicas".
func steps(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

// selectable are the fields by which objects may be selected, besides those of
// all kinds.
func selectable(list []apiextensionsv1.SelectableField) (names []string, values func(runtime.Object) fields.Set) {
	if len(list) == 0 {
		return nil, nil
	}
	for _, f := range list {
		names = append(names, strings.TrimPrefix(f.JSONPath, "."))
	}
	return names, func(obj runtime.Object) fields.Set {
		set := fields.Set{}
		for _, name := range names {
			v, ok, err := unstructured.NestedFieldNoCopy(of(obj).Object, strings.Split(name, ".")...)
			if set[name] = ""; ok && err == nil && v != nil {
				set[name] = fmt.Sprint(v)
			}
		}
		return set
	}
}

var metaDescription = metav1.ObjectMeta{}.SwaggerDoc()

// columns are what kubectl prints: the name, and what the version says or, where
// it says nothing, the age.
func columns(list []apiextensionsv1.CustomResourceColumnDefinition) ([]metav1.TableColumnDefinition, func(runtime.Object, time.Time) []any) {
	if len(list) == 0 {
		list = []apiextensionsv1.CustomResourceColumnDefinition{{
			Name: "Age", Type: "date", Description: metaDescription["creationTimestamp"], JSONPath: ".metadata.creationTimestamp",
		}}
	}
	defs := []metav1.TableColumnDefinition{{Name: "Name", Type: "string", Format: "name", Description: metaDescription["name"]}}
	for _, c := range list {
		description := c.Description
		if description == "" {
			description = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		defs = append(defs, metav1.TableColumnDefinition{Name: c.Name, Type: c.Type, Format: c.Format, Description: description, Priority: c.Priority})
	}
	return defs, func(obj runtime.Object, now time.Time) []any {
		row := []any{of(obj).GetName()}
		for i := range list {
			row = append(row, cell(&list[i], of(obj).Object, now))
		}
		return row
	}
}

// cell is the first value that a column's path finds. A path is parsed for each
// printing: it keeps state while it is used, and printing is rare.
func cell(c *apiextensionsv1.CustomResourceColumnDefinition, obj map[string]any, now time.Time) any {
	path := jsonpath.New(c.Name).AllowMissingKeys(true)
	if err := path.Parse("{" + c.JSONPath + "}"); err != nil {
		return nil
	}
	results, err := path.FindResults(obj)
	if err != nil || len(results) == 0 || len(results[0]) == 0 {
		return nil
	}
	value := results[0][0].Interface()
	if value == nil {
		return nil
	}
	number, isNumber := float(value)
	switch c.Type {
	case "string":
		var b bytes.Buffer
		if err := path.PrintResults(&b, []reflect.Value{reflect.ValueOf(value)}); err != nil {
			return nil
		}
		return b.String()
	case "integer":
		if isNumber {
			return int64(number)
		}
	case "number":
		if isNumber {
			return number
		}
	case "boolean":
		if b, ok := value.(bool); ok {
			return b
		}
	case "date":
		if s, ok := value.(string); ok {
			t, err := time.Parse(time.RFC3339, s)
			if err != nil {
				return "<invalid>"
			}
			return duration.HumanDuration(now.Sub(t))
		}
	}
	return nil
}

// noReplicas stands in a scale for what the object does not say.
const noReplicas = math.MinInt32

// getScale shows the scale of an object. Where it has no replicas, the scale is
// returned with the error: a patch may add them.
func (r *row) getScale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	u := of(obj)
	want, found, err := unstructured.NestedInt64(u.Object, steps(r.scale.SpecReplicasPath)...)
	if err != nil {
		return nil, err
	}
	have, _, err := unstructured.NestedInt64(u.Object, steps(r.scale.StatusReplicasPath)...)
	if err != nil {
		return nil, err
	}
	s := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: u.GetName(), Namespace: u.GetNamespace(), UID: u.GetUID(), ResourceVersion: u.GetResourceVersion(), CreationTimestamp: u.GetCreationTimestamp(),
		},
		Spec: autoscalingv1.ScaleSpec{Replicas: int32(want)}, Status: autoscalingv1.ScaleStatus{Replicas: int32(have)},
	}
	if p := r.scale.LabelSelectorPath; p != nil && *p != "" {
		if s.Status.Selector, _, err = unstructured.NestedString(u.Object, steps(*p)...); err != nil {
			return nil, err
		}
	}
	if !found {
		s.Spec.Replicas = noReplicas
		return s, apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", r.scale.SpecReplicasPath))
	}
	return s, nil
}

func (r *row) setScale(obj runtime.Object, s *autoscalingv1.Scale) error {
	if s.Spec.Replicas == noReplicas {
		return apierrors.NewBadRequest(fmt.Sprintf("the spec replicas field %q cannot be empty", r.scale.SpecReplicasPath))
	}
	return unstructured.SetNestedField(of(obj).Object, int64(s.Spec.Replicas), steps(r.scale.SpecReplicasPath)...)
}

// validateScale is of the numbers that the scale is made of.
func (r *row) validateScale(u *unstructured.Unstructured, spec bool) (errs field.ErrorList) {
	if r.scale == nil {
		return nil
	}
	number := func(path string) {
		n, _, err := unstructured.NestedInt64(u.Object, steps(path)...)
		switch p := field.NewPath(path); {
		case err != nil:
			errs = append(errs, field.Invalid(p, n, err.Error()))
		case n < 0:
			errs = append(errs, field.Invalid(p, n, "should be a non-negative integer"))
		case n > math.MaxInt32:
			errs = append(errs, field.Invalid(p, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)))
		}
	}
	if spec {
		number(r.scale.SpecReplicasPath)
	}
	number(r.scale.StatusReplicasPath)
	if p := r.scale.LabelSelectorPath; p != nil && *p != "" {
		if s, _, err := unstructured.NestedString(u.Object, steps(*p)...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*p), s, err.Error()))
		}
	}
	return errs
}
