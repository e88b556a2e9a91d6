package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The sentence of every lost race, as clients know it.
var errModified = errors.New("the object has been modified; please apply your changes to the latest version and try again")

// storageError turns what Storage said about one object into the API's error.
// It is the only place that knows both.
func storageError(err error, r schema.GroupResource, name string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		return apierrors.NewNotFound(r, name)
	case errors.Is(err, ErrExists):
		return apierrors.NewAlreadyExists(r, name)
	case errors.Is(err, ErrConflict):
		return apierrors.NewConflict(r, name, errModified)
	case errors.Is(err, ErrExpired):
		return apierrors.NewResourceExpired("The resourceVersion for the provided list or watch is too old.")
	case errors.Is(err, ErrFuture):
		e := apierrors.NewTimeoutError("Too large resource version", 1)
		e.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
		return e
	case errors.Is(err, ErrNoLeader):
		// No Retry-After: the storage has waited already, and clients that
		// silently do the same ten times over would show nothing for minutes.
		return apierrors.NewServiceUnavailable(ErrNoLeader.Error() + " that this server reaches: until a majority of the masters answers, nothing can be written, and what is read has to be asked for with resourceVersion=0, and may be old. Try again, or ask another node; if masters are lost for good, run `conclave recover`")
	case errors.Is(err, ErrUnknownOutcome), errors.Is(err, context.DeadlineExceeded):
		// No Retry-After: clients would repeat by themselves what may have been done.
		return apierrors.NewTimeoutError(fmt.Sprintf("request for %s %q did not complete: the outcome is not known", r.String(), name), 0)
	case errors.Is(err, ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s %q: %v", r.String(), name, err))
	case errors.Is(err, ErrDiskFull):
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInsufficientStorage,
			Reason: metav1.StatusReasonInternalError, Message: ErrDiskFull.Error(),
		}}
	}
	return err
}

// asStatus is the Status that tells a client of an error.
func asStatus(err error) *metav1.Status {
	var status metav1.Status
	var known apierrors.APIStatus
	switch {
	case errors.As(err, &known):
		status = known.Status()
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		status = apierrors.NewTimeoutError("the request did not complete in time", 0).Status()
	default:
		if translated := storageError(err, schema.GroupResource{}, ""); errors.As(translated, &known) {
			status = known.Status()
		} else {
			status = apierrors.NewInternalError(err).Status()
		}
	}
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	return &status
}

// forbidden is the answer to what no rule allows.
func forbidden(u User, a Attributes, why string) error {
	if a.Path != "" {
		msg := fmt.Sprintf("forbidden: User %q cannot %s path %q", u.Name, a.Verb, a.Path)
		return forbiddenStatus(msg, why, nil)
	}
	resource := a.Resource.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	what := a.Resource.GroupResource().String()
	if a.Name != "" {
		what += fmt.Sprintf(" %q", a.Name)
	}
	msg := fmt.Sprintf("%s is forbidden: User %q cannot %s resource %q in API group %q", what, u.Name, a.Verb, resource, a.Resource.Group)
	if a.Namespace != "" {
		msg += fmt.Sprintf(" in the namespace %q", a.Namespace)
	} else {
		msg += " at the cluster scope"
	}
	return forbiddenStatus(msg, why, &metav1.StatusDetails{Group: a.Resource.Group, Kind: a.Resource.Resource, Name: a.Name})
}

func forbiddenStatus(msg, why string, details *metav1.StatusDetails) error {
	if why != "" {
		msg += ": " + why
	}
	if details == nil {
		details = &metav1.StatusDetails{}
	}
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden,
		Message: msg, Details: details,
	}}
}
