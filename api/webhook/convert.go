package webhook

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	types_ "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"conclave/api/types"
)

// How long a webhook may take to convert what it is sent at once.
const conversionTime = 30 * time.Second

// Converter is a webhook that converts the versions of a custom resource.
type Converter struct {
	Config  types.WebhookClientConfig
	Reviews []string // the versions of ConversionReview that it knows, the one that it likes best first
}

type conversion struct {
	heading
	Request  *conversionRequest  `json:"request,omitempty"`
	Response *conversionResponse `json:"response,omitempty"`
}

type conversionRequest struct {
	UID     types_.UID                   `json:"uid"`
	Desired string                       `json:"desiredAPIVersion"`
	Objects []*unstructured.Unstructured `json:"objects"`
}

type conversionResponse struct {
	UID     types_.UID                   `json:"uid"`
	Objects []*unstructured.Unstructured `json:"convertedObjects"`
	Result  metav1.Status                `json:"result"`
}

// Convert asks for objects of one kind in another version. What it returns is in
// their order, and has their metadata, but for labels and annotations, which are
// the webhook's to change.
func (c *Client) Convert(ctx context.Context, by *Converter, objects []*unstructured.Unstructured, to schema.GroupVersionKind) ([]*unstructured.Unstructured, error) {
	failed := func(err error) error {
		return fmt.Errorf("conversion webhook for %v failed: %w", objects[0].GroupVersionKind(), err)
	}
	i := slices.IndexFunc(by.Reviews, func(v string) bool { return v == "v1" || v == "v1beta1" })
	if i < 0 {
		return nil, failed(errors.New("it knows neither v1 nor v1beta1 of ConversionReview"))
	}
	question := conversion{heading{"apiextensions.k8s.io/" + by.Reviews[i], "ConversionReview"}, &conversionRequest{
		UID: uuid.NewUUID(), Desired: to.GroupVersion().String(), Objects: objects,
	}, nil}
	var answer conversion
	if err := c.Post(ctx, &by.Config, conversionTime, &question, &answer); err != nil {
		return nil, failed(err)
	}
	got := answer.Response
	if got == nil {
		return nil, failed(errors.New("the answer has no response"))
	}
	if by.Reviews[i] == "v1" { // the older version asks for less
		if err := question.answered(answer.heading, question.Request.UID, got.UID); err != nil {
			return nil, failed(err)
		}
	}
	switch {
	case got.Result.Status != metav1.StatusSuccess && got.Result.Message != "":
		return nil, failed(errors.New(got.Result.Message))
	case got.Result.Status != metav1.StatusSuccess:
		return nil, failed(fmt.Errorf("the response's result is %q", got.Result.Status))
	case len(got.Objects) != len(objects):
		return nil, failed(fmt.Errorf("it returned %d objects, expected %d", len(got.Objects), len(objects)))
	}
	for i, o := range got.Objects {
		if err := keepMetadata(o, objects[i], to); err != nil {
			return nil, failed(fmt.Errorf("invalid converted object at index %d: %w", i, err))
		}
	}
	return got.Objects, nil
}

func keepMetadata(o, was *unstructured.Unstructured, to schema.GroupVersionKind) error {
	switch {
	case o == nil || o.GroupVersionKind() != to:
		return fmt.Errorf("it is not of %s", to)
	case o.GetName() != was.GetName():
		return fmt.Errorf("metadata.name: %q instead of %q", o.GetName(), was.GetName())
	case o.GetNamespace() != was.GetNamespace():
		return fmt.Errorf("metadata.namespace: %q instead of %q", o.GetNamespace(), was.GetNamespace())
	case o.GetUID() != was.GetUID():
		return fmt.Errorf("metadata.uid: %q instead of %q", o.GetUID(), was.GetUID())
	}
	labels, annotations := o.GetLabels(), o.GetAnnotations()
	meta, ok := was.DeepCopy().Object["metadata"]
	if !ok {
		return nil
	}
	o.Object["metadata"] = meta
	o.SetLabels(labels)
	o.SetAnnotations(annotations)
	return nil
}
