package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// Request is the question of an AdmissionReview (admission.k8s.io).
type Request struct {
	UID                types.UID                 `json:"uid"`
	Kind               Kind                      `json:"kind"`
	Resource           Resource                  `json:"resource"`
	SubResource        string                    `json:"subResource,omitempty"`
	RequestKind        *Kind                     `json:"requestKind,omitempty"`
	RequestResource    *Resource                 `json:"requestResource,omitempty"`
	RequestSubResource string                    `json:"requestSubResource,omitempty"`
	Name               string                    `json:"name,omitempty"`
	Namespace          string                    `json:"namespace,omitempty"`
	Operation          string                    `json:"operation"`
	UserInfo           authenticationv1.UserInfo `json:"userInfo"`
	Object             json.RawMessage           `json:"object"`
	OldObject          json.RawMessage           `json:"oldObject"`
	DryRun             *bool                     `json:"dryRun,omitempty"`
	Options            json.RawMessage           `json:"options"`
}

// Response is the answer of an AdmissionReview.
type Response struct {
	UID       types.UID      `json:"uid"`
	Allowed   bool           `json:"allowed"`
	Result    *metav1.Status `json:"status,omitempty"`
	Patch     []byte         `json:"patch,omitempty"` // RFC 6902
	PatchType *string        `json:"patchType,omitempty"`
	Warnings  []string       `json:"warnings,omitempty"`
	// AuditAnnotations are for a log that Conclave does not have.
	AuditAnnotations map[string]string `json:"auditAnnotations,omitempty"`
}

// heading is what reviews of both kinds begin with.
type heading struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// answered says whether an answer is to this question, as version v1 asks for.
func (q heading) answered(a heading, asked, got types.UID) error {
	switch {
	case a != q:
		return fmt.Errorf("expected webhook response of %s, Kind=%s, got %s, Kind=%s", q.APIVersion, q.Kind, a.APIVersion, a.Kind)
	case got != asked:
		return fmt.Errorf("expected response.uid=%q, got %q", asked, got)
	}
	return nil
}

type review struct {
	heading
	Request  *Request  `json:"request,omitempty"`
	Response *Response `json:"response,omitempty"`
}

// Kind is how a review names a kind.
type Kind struct {
	Group   string `json:"group"`
	Version string `json:"version"`
	Kind    string `json:"kind"`
}

// Resource is how it names a resource.
type Resource struct {
	Group    string `json:"group"`
	Version  string `json:"version"`
	Resource string `json:"resource"`
}

// Ask puts a question to a webhook. The error is of an answer that did not come
// or is none: what the webhook refuses is in the response.
func (c *Client) Ask(ctx context.Context, h *Hook, r Request) (*Response, error) {
	if h.version == "" {
		return nil, errors.New("webhook does not accept known AdmissionReview versions (v1, v1beta1)")
	}
	r.UID = uuid.NewUUID()
	question := review{heading{"admission.k8s.io/" + h.version, "AdmissionReview"}, &r, nil}
	var answer review
	if err := c.Post(ctx, h.Config, h.Timeout, &question, &answer); err != nil {
		return nil, fmt.Errorf("failed to call webhook: %w", err)
	}
	if err := check(&question, &answer); err != nil {
		return nil, fmt.Errorf("received invalid webhook response: %w", err)
	}
	return answer.Response, nil
}

// check says what is wrong with an answer.
func check(question, answer *review) error {
	got := answer.Response
	if got == nil {
		return errors.New("webhook response was absent")
	}
	if question.APIVersion == "admission.k8s.io/v1" { // the older version asks for less
		if err := question.answered(answer.heading, question.Request.UID, got.UID); err != nil {
			return err
		}
		if len(got.Patch) > 0 && got.PatchType == nil {
			return errors.New("webhook returned response.patch but not response.patchType")
		}
		if len(got.Patch) == 0 && got.PatchType != nil {
			return errors.New("webhook returned response.patchType but not response.patch")
		}
	}
	if len(got.Patch) > 0 && got.PatchType != nil && *got.PatchType != "JSONPatch" {
		return fmt.Errorf("unsupported patch type %q", *got.PatchType)
	}
	return nil
}

// MayDryRun refuses a dry run where the webhook does more than answer.
func (h *Hook) MayDryRun() error {
	if h.sideEffects == "None" || h.sideEffects == "NoneOnDryRun" {
		return nil
	}
	return apierrors.NewBadRequest(fmt.Sprintf("admission webhook %q does not support dry run", h.Name))
}

// Refusal is the error of a webhook's no.
func (h *Hook) Refusal(r *Response) error {
	var status metav1.Status
	if r.Result != nil {
		status = *r.Result
	}
	by := fmt.Sprintf("admission webhook %q denied the request", h.Name)
	switch {
	case status.Message != "":
		status.Message = by + ": " + status.Message
	case status.Reason != "":
		status.Message = by + ": " + string(status.Reason)
	default:
		status.Message = by + " without explanation"
	}
	if status.Code < http.StatusBadRequest {
		status.Code = http.StatusBadRequest
	}
	status.Status = metav1.StatusFailure
	return &apierrors.StatusError{ErrStatus: status}
}

// Failure is the error of a webhook that could not be asked.
func (h *Hook) Failure(err error) error {
	return apierrors.NewInternalError(fmt.Errorf("failed calling webhook %q: %w", h.Name, err))
}
