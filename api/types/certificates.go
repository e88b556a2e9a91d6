package types

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Certificates is the group and version of CertificateSigningRequests.
var Certificates = schema.GroupVersion{Group: "certificates.k8s.io", Version: "v1"}

// Signers that Kubernetes names.
const (
	SignerClient        = "kubernetes.io/kube-apiserver-client"         // certificates of clients of the API
	SignerKubeletClient = "kubernetes.io/kube-apiserver-client-kubelet" // of kubelets as such clients
	SignerKubeletServer = "kubernetes.io/kubelet-serving"               // of kubelets as servers
	SignerLegacy        = "kubernetes.io/legacy-unknown"                // of the API's first versions
)

// Types of a request's conditions that mean something.
const (
	CertificateApproved = "Approved"
	CertificateDenied   = "Denied"
	CertificateFailed   = "Failed"
)

// CertificateSigningRequest asks a signer for a certificate. What it asks for
// does not change; its status tells whether it was approved, and the certificate.
type CertificateSigningRequest struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              CertificateSigningRequestSpec   `json:"spec" protobuf:"bytes,2,opt,name=spec"`
	Status            CertificateSigningRequestStatus `json:"status,omitempty" protobuf:"bytes,3,opt,name=status"`
}

// CertificateSigningRequestSpec is what is asked for, and by whom.
type CertificateSigningRequestSpec struct {
	Request           []byte   `json:"request" protobuf:"bytes,1,opt,name=request"` // PKCS#10 (RFC 2986) in PEM
	SignerName        string   `json:"signerName" protobuf:"bytes,7,opt,name=signerName"`
	ExpirationSeconds *int32   `json:"expirationSeconds,omitempty" protobuf:"varint,8,opt,name=expirationSeconds"`
	Usages            []string `json:"usages,omitempty" protobuf:"bytes,5,opt,name=usages"`

	// The server says these, of whoever made the object.
	Username string                `json:"username,omitempty" protobuf:"bytes,2,opt,name=username"`
	UID      string                `json:"uid,omitempty" protobuf:"bytes,3,opt,name=uid"`
	Groups   []string              `json:"groups,omitempty" protobuf:"bytes,4,rep,name=groups"`
	Extra    map[string]ExtraValue `json:"extra,omitempty" protobuf:"bytes,6,rep,name=extra"`
}

// ExtraValue is what a user has under one key.
type ExtraValue []string

// CertificateSigningRequestStatus is what has become of a request.
type CertificateSigningRequestStatus struct {
	Conditions  []CertificateSigningRequestCondition `json:"conditions,omitempty" protobuf:"bytes,1,rep,name=conditions"`
	Certificate []byte                               `json:"certificate,omitempty" protobuf:"bytes,2,opt,name=certificate"` // PEM
}

// CertificateSigningRequestCondition is one step of it. Approvers and signers
// may have types of their own.
type CertificateSigningRequestCondition struct {
	Type               string      `json:"type" protobuf:"bytes,1,opt,name=type"`
	Status             string      `json:"status" protobuf:"bytes,6,opt,name=status"`
	Reason             string      `json:"reason,omitempty" protobuf:"bytes,2,opt,name=reason"`
	Message            string      `json:"message,omitempty" protobuf:"bytes,3,opt,name=message"`
	LastUpdateTime     metav1.Time `json:"lastUpdateTime,omitempty" protobuf:"bytes,4,opt,name=lastUpdateTime"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitempty" protobuf:"bytes,5,opt,name=lastTransitionTime"`
}

// CertificateSigningRequestList is a list of them.
type CertificateSigningRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []CertificateSigningRequest `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// Has says whether a request has a condition of a type, and that it is true.
func (o *CertificateSigningRequest) Has(condition string) bool {
	for _, c := range o.Status.Conditions {
		if c.Type == condition && c.Status == string(metav1.ConditionTrue) {
			return true
		}
	}
	return false
}

// What the API machinery asks of a type; see admission.go.

const certificateModels = "io.k8s.api.certificates.v1."

func (o *CertificateSigningRequest) DeepCopyObject() runtime.Object     { return deepCopy(o) }
func (o *CertificateSigningRequestList) DeepCopyObject() runtime.Object { return deepCopy(o) }

func (o *CertificateSigningRequest) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *CertificateSigningRequestList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}

func (o *CertificateSigningRequest) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *CertificateSigningRequestList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}

func (o *CertificateSigningRequest) Reset()     { *o = CertificateSigningRequest{} }
func (o *CertificateSigningRequestList) Reset() { *o = CertificateSigningRequestList{} }

func (CertificateSigningRequest) OpenAPIModelName() string {
	return certificateModels + "CertificateSigningRequest"
}
func (CertificateSigningRequestList) OpenAPIModelName() string {
	return certificateModels + "CertificateSigningRequestList"
}
