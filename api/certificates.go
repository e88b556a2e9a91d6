package api

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api/kinds"
	"conclave/api/types"
)

var signingRequests = types.Certificates.WithResource("certificatesigningrequests")

// completeRequest writes into a new request for a certificate who made it,
// whatever its writer and webhooks say of that. Nobody becomes an administrator
// by a request: as in Kubernetes, an approver in a hurry must not be able to make
// one.
func completeRequest(c *call, obj Object) error {
	r, ok := obj.(*types.CertificateSigningRequest)
	if !ok {
		return nil
	}
	r.Spec.Username, r.Spec.UID, r.Spec.Groups, r.Spec.Extra = c.user.Name, c.user.UID, slices.Clone(c.user.Groups), nil
	for key, values := range c.user.Extra {
		if r.Spec.Extra == nil {
			r.Spec.Extra = map[string]types.ExtraValue{}
		}
		r.Spec.Extra[key] = slices.Clone(values)
	}
	if r.Spec.SignerName != types.SignerClient {
		return nil
	}
	// What cannot be read, validation refuses.
	if request, err := kinds.ParseRequest(r.Spec.Request); err == nil && slices.Contains(request.Subject.Organization, groupMasters) {
		return forbiddenObject(c.res.gr(), r.Name, "use of "+types.SignerClient+" signer with system:masters group is not allowed")
	}
	return nil
}

// admitApproval asks whether whoever approves or denies may do that for the
// signer.
func admitApproval(ctx context.Context, c *call, obj, old Object) error {
	was, ok := old.(*types.CertificateSigningRequest)
	r, is := obj.(*types.CertificateSigningRequest)
	if !ok || !is || c.sub != "approval" {
		return nil
	}
	stampConditions(r, was, c.now())
	return c.mustFor(ctx, "approve", was)
}

// admitSigning asks whether whoever writes a certificate or conditions may sign
// for the signer.
func admitSigning(ctx context.Context, c *call, obj, old Object) error {
	was, ok := old.(*types.CertificateSigningRequest)
	r, is := obj.(*types.CertificateSigningRequest)
	if !ok || !is {
		return nil
	}
	stampConditions(r, was, c.now())
	if apiequality.Semantic.DeepEqual(r.Status, was.Status) {
		return nil
	}
	return c.mustFor(ctx, "sign", was)
}

// mustFor refuses a user who may not do something for a request's signer, nor for
// all of its domain: that is a right on the resource signers, which has no objects.
func (c *call) mustFor(ctx context.Context, verb string, r *types.CertificateSigningRequest) error {
	domain, _, _ := strings.Cut(r.Spec.SignerName, "/")
	for _, name := range []string{r.Spec.SignerName, domain + "/*"} {
		d := c.s.decide(ctx, c.user, &Attributes{
			Verb: verb, Resource: schema.GroupVersionResource{Group: types.Certificates.Group, Version: "*", Resource: "signers"}, Name: name,
		})
		if d.allowed {
			return nil
		}
	}
	return forbiddenObject(c.res.gr(), r.Name, fmt.Sprintf("user not permitted to %s requests with signerName %q", verb, r.Spec.SignerName))
}

// stampConditions fills in the times that the writer of conditions left out.
func stampConditions(r, old *types.CertificateSigningRequest, now metav1.Time) {
	for i := range r.Status.Conditions {
		c := &r.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		if !c.LastTransitionTime.IsZero() {
			continue
		}
		c.LastTransitionTime = now
		for _, was := range old.Status.Conditions {
			if was.Type == c.Type && was.Status == c.Status && !was.LastTransitionTime.IsZero() {
				c.LastTransitionTime = was.LastTransitionTime
				break
			}
		}
	}
}
