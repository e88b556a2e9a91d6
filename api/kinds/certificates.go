package kinds

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"conclave/api/types"
)

type csr = types.CertificateSigningRequest

// certificateRows are the requests for certificates. Who asks, and when a
// condition was set, the server fills in beside the row: it knows the user and
// the time.
func certificateRows() []*Kind {
	return []*Kind{{
		GVK: types.Certificates.WithKind("CertificateSigningRequest"), Plural: "certificatesigningrequests", ShortNames: []string{"csr"},
		New: empty[csr], NewList: empty[types.CertificateSigningRequestList], Status: true,
		PrepareForCreate: one(func(r *csr) { r.Status = types.CertificateSigningRequestStatus{} }),
		PrepareForUpdate: two(func(r, old *csr) { r.Spec, r.Status = old.Spec, old.Status }),
		PrepareForStatusUpdate: two(func(r, old *csr) {
			r.Spec = old.Spec
			keepVerdicts(r, old)
		}),
		Subs: []Sub{{
			Name: "approval", Keeps: [][]string{{"spec"}, {"status", "certificate"}},
			Prepare:  two(func(r, old *csr) { r.Spec, r.Status.Certificate = old.Spec, old.Status.Certificate }),
			Validate: checkTwo(func(r, old *csr) field.ErrorList { return validateRequestUpdate(r, old, true) }),
		}},
		Validate:       check(validateRequest),
		ValidateUpdate: checkTwo(func(r, old *csr) field.ErrorList { return validateRequestUpdate(r, old, false) }),
		Warnings:       warnOfRequest,
		FieldNames:     []string{"spec.signerName"},
		Fields:         selectable(func(r *csr) fields.Set { return fields.Set{"spec.signerName": r.Spec.SignerName} }),
		Columns:        requestColumns, Cells: cells(requestCells),
	}}
}

// ParseRequest reads a PKCS#10 request in PEM.
func ParseRequest(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	return x509.ParseCertificateRequest(block.Bytes)
}

var keyUsages = []string{
	"any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only",
	"digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement",
	"key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping",
}

const leastExpiration = 600 // seconds

func validateRequest(r *csr) field.ErrorList {
	e := metadata(&r.ObjectMeta, nil, false, path.ValidatePathSegmentName)
	request, err := ParseRequest(r.Spec.Request)
	if err == nil {
		err = request.CheckSignature()
	}
	if err != nil {
		e.invalid(specPath.Child("request"), r.Spec.Request, err.Error())
	}
	if len(r.Spec.Usages) == 0 {
		e.required(specPath.Child("usages"), "")
	}
	for i, usage := range r.Spec.Usages {
		at := specPath.Child("usages").Index(i)
		if !slices.Contains(keyUsages, usage) {
			e.add(field.NotSupported(at, usage, keyUsages))
		}
		if slices.Contains(r.Spec.Usages[:i], usage) {
			e.duplicate(at, usage)
		}
	}
	e.signerName(specPath.Child("signerName"), r.Spec.SignerName)
	if s := r.Spec.ExpirationSeconds; s != nil && *s < leastExpiration {
		e.invalid(specPath.Child("expirationSeconds"), *s, "may not specify a duration less than 600 seconds (10 minutes)")
	}
	return e.list()
}

// signerName is of a domain and a path, such as "example.com/signer" or
// "example.com/namespace.name".
func (e *problems) signerName(p *field.Path, name string) {
	const (
		longestDomain = validation.DNS1123SubdomainMaxLength
		longestPath   = validation.DNS1123LabelMaxLength + 1 + validation.DNS1123SubdomainMaxLength
	)
	if !e.nonEmpty(p, name) {
		return
	}
	if name == types.SignerLegacy {
		e.invalid(p, name, "the legacy signerName is not allowed via this API version")
		return
	}
	domain, rest, found := strings.Cut(name, "/")
	if !found || strings.Contains(rest, "/") {
		e.invalid(p, name, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	if len(domain) > longestDomain {
		e.add(field.TooLong(p, domain, longestDomain))
	}
	labels := func(of string, valid func(string) []string) {
		for _, label := range strings.Split(of, ".") {
			for _, m := range valid(label) {
				e.invalid(p, of, fmt.Sprintf("validating label %q: %s", label, m))
			}
		}
	}
	labels(domain, validation.IsDNS1123Label)
	if !strings.Contains(domain, ".") {
		e.invalid(p, domain, "should be a domain with at least two segments separated by dots")
	}
	labels(rest, validation.IsDNS1123Subdomain)
	if most := longestDomain + 1 + longestPath; len(name) > most {
		e.add(field.TooLong(p, name, most))
	}
}

// verdicts are what only approvers say; settled conditions stay.
var (
	verdicts = []string{types.CertificateApproved, types.CertificateDenied}
	settled  = append(slices.Clone(verdicts), types.CertificateFailed)
)

// keepVerdicts gives back to a signer, who repeats them, the conditions of
// approvers as they were. If their number differs, validation speaks.
func keepVerdicts(r, old *csr) {
	for _, verdict := range verdicts {
		was := conditionsOf(old, verdict)
		if len(was) != len(conditionsOf(r, verdict)) {
			continue
		}
		for i := range r.Status.Conditions {
			if r.Status.Conditions[i].Type == verdict {
				r.Status.Conditions[i], was = was[0], was[1:]
			}
		}
	}
}

func conditionsOf(r *csr, conditionType string) (all []types.CertificateSigningRequestCondition) {
	for _, c := range r.Status.Conditions {
		if c.Type == conditionType {
			all = append(all, c)
		}
	}
	return all
}

// validateRequestUpdate is of an update by whoever may judge a request or by
// others; the spec cannot have changed since it was valid.
func validateRequestUpdate(r, old *csr, judges bool) field.ErrorList {
	e := metadata(&r.ObjectMeta, &old.ObjectMeta, false, path.ValidatePathSegmentName)
	status := field.NewPath("status")
	e.requestConditions(status.Child("conditions"), r)
	for _, t := range settled {
		was, is := conditionsOf(old, t), conditionsOf(r, t)
		switch verdict := !judges && slices.Contains(verdicts, t); {
		case len(is) < len(was):
			e.forbidden(status.Child("conditions"), fmt.Sprintf("updates may not remove a condition of type %q", t))
		case verdict && len(is) > len(was):
			e.forbidden(status.Child("conditions"), fmt.Sprintf("updates may not add a condition of type %q", t))
		case verdict && !equality.Semantic.DeepEqual(is, was):
			e.forbidden(status.Child("conditions"), fmt.Sprintf("updates may not modify a condition of type %q", t))
		}
	}
	if at := status.Child("certificate"); !bytes.Equal(r.Status.Certificate, old.Status.Certificate) {
		if err := validateCertificates(r.Status.Certificate); err != nil {
			e.invalid(at, "<certificate data>", err.Error())
		}
		if len(old.Status.Certificate) > 0 {
			e.forbidden(at, "updates may not modify existing certificate content")
		}
	}
	return e.list()
}

func (e *problems) requestConditions(p *field.Path, r *csr) {
	seen := map[string]bool{}
	for i, c := range r.Status.Conditions {
		at := p.Index(i)
		e.nonEmpty(at.Child("type"), c.Type)
		allowed := []string{"False", "True", "Unknown"}
		if slices.Contains(settled, c.Type) {
			allowed = []string{"True"}
		}
		oneOf(e, at.Child("status"), c.Status, allowed...)
		if c.Type == types.CertificateApproved && seen[types.CertificateDenied] || c.Type == types.CertificateDenied && seen[types.CertificateApproved] {
			e.invalid(at.Child("type"), c.Type, "Approved and Denied conditions are mutually exclusive")
		}
		if seen[c.Type] {
			e.duplicate(at.Child("type"), c.Type)
		}
		seen[c.Type] = true
	}
}

// validateCertificates is of one or more certificates in PEM; nothing is fine, too.
func validateCertificates(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	blocks := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("only CERTIFICATE PEM blocks are allowed, found %q", block.Type)
		}
		if len(block.Headers) != 0 {
			return errors.New("no PEM block headers are permitted")
		}
		certs, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return err
		}
		if len(certs) == 0 {
			return errors.New("found CERTIFICATE PEM block containing 0 certificates")
		}
		blocks++
	}
	if blocks == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}

var warnOfRequest = warn(func(r *csr) []string {
	name, ours := r.Spec.SignerName, strings.HasPrefix(r.Spec.SignerName, kubernetesDomain)
	switch {
	case name == types.SignerClient:
		request, err := ParseRequest(r.Spec.Request)
		if err != nil {
			return nil // it is refused for that
		}
		more := len(request.DNSNames)+len(request.EmailAddresses)+len(request.IPAddresses)+len(request.URIs) > 0
		for _, a := range request.Subject.Names {
			more = more || !a.Type.Equal(oidCommonName) && !a.Type.Equal(oidOrganization)
		}
		if more {
			return []string{specPath.Child("request").String() + ": the certificate will have the user (CN) and the groups (O) alone; other parts of the subject and alternative names are left out"}
		}
	case name == types.SignerKubeletClient || name == types.SignerKubeletServer:
		return []string{specPath.Child("signerName").String() + ": Conclave's nodes get their certificates by joining: nobody signs for " + name}
	case ours:
		return []string{specPath.Child("signerName").String() + ": nobody signs for " + name}
	}
	return nil
})

var (
	oidCommonName   = []int{2, 5, 4, 3}
	oidOrganization = []int{2, 5, 4, 10}
)

var requestColumns = []metav1.TableColumnDefinition{
	nameColumn, ageColumn,
	text("SignerName", "The signer that is asked for the certificate."),
	text("Requestor", "The user who made the request."),
	text("RequestedDuration", "How long the certificate shall be good."),
	text("Condition", "What has become of the request."),
}

func requestCells(r *csr, now time.Time) []any {
	life := none
	if s := r.Spec.ExpirationSeconds; s != nil {
		life = duration.HumanDuration(time.Duration(*s) * time.Second)
	}
	condition := "Pending"
	switch {
	case len(conditionsOf(r, types.CertificateDenied)) > 0:
		condition = types.CertificateDenied
	case len(conditionsOf(r, types.CertificateApproved)) > 0:
		condition = types.CertificateApproved
	}
	if len(conditionsOf(r, types.CertificateFailed)) > 0 {
		condition += "," + types.CertificateFailed
	}
	if len(r.Status.Certificate) > 0 {
		condition += ",Issued"
	}
	return []any{r.Name, age(r.CreationTimestamp, now), or(r.Spec.SignerName, none), r.Spec.Username, life, condition}
}
