package controller

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api/kinds"
	"conclave/api/types"
)

// How long requests for certificates are kept.
const (
	keepSettled = time.Hour      // after they were issued, denied or failed
	keepWaiting = 24 * time.Hour // while they wait for an approver or a signer
)

// newCertificateSigner signs approved requests of the one signer that is ours:
// kubernetes.io/kube-apiserver-client, with the key that this node has as a
// master.
func newCertificateSigner(e *env) *Controller {
	return &Controller{
		Name:    "csrsigning",
		Workers: 1,
		Inputs: []Input{{signingRequests, func(c Change) []Key {
			if c.New == nil {
				return nil
			}
			return self(c)
		}}},
		Outputs: []Output{{signingRequests, "status.certificate for " + types.SignerClient}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			r, ok := get[*types.CertificateSigningRequest](e.cache, signingRequests, "", key.Name)
			if !ok || e.SignClient == nil || !toSign(r) {
				return 0, nil
			}
			r = edit(r)
			certificate, err := signRequest(r, e.SignClient)
			if err != nil {
				r.Status.Conditions = append(r.Status.Conditions, types.CertificateSigningRequestCondition{
					Type: types.CertificateFailed, Status: string(metav1.ConditionTrue), Reason: "SignerValidationFailure", Message: err.Error(),
					LastUpdateTime: metav1.NewTime(e.Now()).Rfc3339Copy(),
				})
			}
			r.Status.Certificate = certificate
			_, err = e.update(ctx, signingRequests, r, "status")
			return 0, ignoreGone(err)
		},
	}
}

// toSign says that a request is approved and waits for us alone.
func toSign(r *types.CertificateSigningRequest) bool {
	return r.DeletionTimestamp == nil && r.Spec.SignerName == types.SignerClient && len(r.Status.Certificate) == 0 &&
		r.Has(types.CertificateApproved) && !r.Has(types.CertificateDenied) && !r.Has(types.CertificateFailed)
}

// Usages that a client's certificate may have; it must have the first.
const usageClientAuth = "client auth"

var clientUsages = map[string]x509.KeyUsage{
	usageClientAuth: 0, "digital signature": x509.KeyUsageDigitalSignature, "key encipherment": x509.KeyUsageKeyEncipherment,
}

func signRequest(r *types.CertificateSigningRequest, sign func([]byte, x509.KeyUsage, time.Duration) ([]byte, error)) ([]byte, error) {
	var usage x509.KeyUsage
	for _, name := range r.Spec.Usages {
		bits, may := clientUsages[name]
		if !may {
			return nil, fmt.Errorf("invalid usage for client certificate: %s", name)
		}
		usage |= bits
	}
	if !slices.Contains(r.Spec.Usages, usageClientAuth) {
		return nil, errors.New("missing required usage for client certificate: " + usageClientAuth)
	}
	request, err := kinds.ParseRequest(r.Spec.Request)
	if err != nil {
		return nil, err
	}
	var life time.Duration
	if s := r.Spec.ExpirationSeconds; s != nil {
		life = time.Duration(*s) * time.Second
	}
	return sign(request.Raw, usage, life)
}

// newCertificateCleaner deletes requests that have been settled, or have waited,
// for long enough.
func newCertificateCleaner(e *env) *Controller {
	return &Controller{
		Name:    "csrcleaner",
		Workers: 1,
		Inputs:  []Input{{signingRequests, self}},
		Outputs: []Output{{signingRequests, "deletions by age"}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			r, ok := get[*types.CertificateSigningRequest](e.cache, signingRequests, "", key.Name)
			if !ok || r.DeletionTimestamp != nil {
				return 0, nil
			}
			end, ends := keptUntil(r)
			if !ends {
				return 0, nil
			}
			if left := end.Sub(e.Now()); left > 0 {
				return left, nil
			}
			return 0, e.delete(ctx, signingRequests, r, metav1.DeleteOptions{})
		},
	}
}

// keptUntil is when a request is no longer of use to anybody: the earliest end
// that its conditions give it. One that has only conditions of others' types is
// in the hands of those.
func keptUntil(r *types.CertificateSigningRequest) (end time.Time, ends bool) {
	until := func(t time.Time) {
		if !ends || t.Before(end) {
			end, ends = t, true
		}
	}
	if len(r.Status.Conditions) == 0 {
		until(r.CreationTimestamp.Add(keepWaiting))
	}
	for _, c := range r.Status.Conditions {
		switch {
		case c.LastUpdateTime.IsZero():
		case c.Type == types.CertificateDenied, c.Type == types.CertificateFailed:
			until(c.LastUpdateTime.Add(keepSettled))
		case c.Type == types.CertificateApproved && len(r.Status.Certificate) > 0:
			until(c.LastUpdateTime.Add(keepSettled))
			if expires, ok := expiry(r.Status.Certificate); ok {
				until(expires)
			}
		case c.Type == types.CertificateApproved:
			until(c.LastUpdateTime.Add(keepWaiting))
		}
	}
	return end, ends
}

// expiry is the end of the first certificate in PEM.
func expiry(text []byte) (time.Time, bool) {
	block, _ := pem.Decode(text)
	if block == nil {
		return time.Time{}, false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return time.Time{}, false
	}
	return cert.NotAfter, true
}
