package types

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Admission is the group and version of webhook configurations and of admission
// policies.
var Admission = schema.GroupVersion{Group: "admissionregistration.k8s.io", Version: "v1"}

// Values of a webhook's fields.
const (
	Ignore = "Ignore" // failurePolicy: what it cannot be asked about is let through
	Fail   = "Fail"   // failurePolicy: what it cannot be asked about is refused

	Exact      = "Exact"      // matchPolicy: rules mean the resource as it was asked for
	Equivalent = "Equivalent" // matchPolicy: and in every other version of it

	SideEffectsNone  = "None"         // sideEffects: asking it changes nothing
	SideEffectsNoDry = "NoneOnDryRun" // sideEffects: it minds request.dryRun

	Never    = "Never"    // reinvocationPolicy
	IfNeeded = "IfNeeded" // reinvocationPolicy: asked again if others changed the object after it

	AllScopes       = "*" // rules[].scope
	ClusterScope    = "Cluster"
	NamespacedScope = "Namespaced"
)

// ServiceReference is a Service that answers webhook calls.
type ServiceReference struct {
	Namespace string  `json:"namespace" protobuf:"bytes,1,opt,name=namespace"`
	Name      string  `json:"name" protobuf:"bytes,2,opt,name=name"`
	Path      *string `json:"path,omitempty" protobuf:"bytes,3,opt,name=path"`
	Port      *int32  `json:"port,omitempty" protobuf:"varint,4,opt,name=port"`
}

// WebhookClientConfig says how to reach a webhook: one of url and service.
type WebhookClientConfig struct {
	URL      *string           `json:"url,omitempty" protobuf:"bytes,3,opt,name=url"`
	Service  *ServiceReference `json:"service,omitempty" protobuf:"bytes,1,opt,name=service"`
	CABundle []byte            `json:"caBundle,omitempty" protobuf:"bytes,2,opt,name=caBundle"` // PEM; empty: the host's own roots
}

// Rule says which resources are meant.
type Rule struct {
	APIGroups   []string `json:"apiGroups,omitempty" protobuf:"bytes,1,rep,name=apiGroups"`
	APIVersions []string `json:"apiVersions,omitempty" protobuf:"bytes,2,rep,name=apiVersions"`
	Resources   []string `json:"resources,omitempty" protobuf:"bytes,3,rep,name=resources"` // "pods", "pods/status", "*", "*/scale", "pods/*", "*/*"
	Scope       *string  `json:"scope,omitempty" protobuf:"bytes,4,rep,name=scope"`
}

// RuleWithOperations says which operations on them are: CREATE, UPDATE, DELETE,
// CONNECT, or * for all.
type RuleWithOperations struct {
	Operations []string `json:"operations,omitempty" protobuf:"bytes,1,rep,name=operations"`
	Rule       `json:",inline" protobuf:"bytes,2,opt,name=rule"`
}

// MatchCondition is an expression in CEL.
type MatchCondition struct {
	Name       string `json:"name" protobuf:"bytes,1,opt,name=name"`
	Expression string `json:"expression" protobuf:"bytes,2,opt,name=expression"`
}

// Webhook is what the webhooks of both kinds have alike.
type Webhook struct {
	Name                    string                `json:"name" protobuf:"bytes,1,opt,name=name"`
	ClientConfig            WebhookClientConfig   `json:"clientConfig" protobuf:"bytes,2,opt,name=clientConfig"`
	Rules                   []RuleWithOperations  `json:"rules,omitempty" protobuf:"bytes,3,rep,name=rules"`
	FailurePolicy           *string               `json:"failurePolicy,omitempty" protobuf:"bytes,4,opt,name=failurePolicy"`
	MatchPolicy             *string               `json:"matchPolicy,omitempty" protobuf:"bytes,9,opt,name=matchPolicy"`
	NamespaceSelector       *metav1.LabelSelector `json:"namespaceSelector,omitempty" protobuf:"bytes,5,opt,name=namespaceSelector"`
	SideEffects             *string               `json:"sideEffects" protobuf:"bytes,6,opt,name=sideEffects"`
	TimeoutSeconds          *int32                `json:"timeoutSeconds,omitempty" protobuf:"varint,7,opt,name=timeoutSeconds"`
	AdmissionReviewVersions []string              `json:"admissionReviewVersions" protobuf:"bytes,8,rep,name=admissionReviewVersions"`
}

// MutatingWebhook may change what is asked for.
type MutatingWebhook struct {
	Webhook            `json:",inline"`
	ObjectSelector     *metav1.LabelSelector `json:"objectSelector,omitempty" protobuf:"bytes,11,opt,name=objectSelector"`
	ReinvocationPolicy *string               `json:"reinvocationPolicy,omitempty" protobuf:"bytes,10,opt,name=reinvocationPolicy"`
	MatchConditions    []MatchCondition      `json:"matchConditions,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,12,opt,name=matchConditions"`
}

// ValidatingWebhook may refuse what is asked for.
type ValidatingWebhook struct {
	Webhook         `json:",inline"`
	ObjectSelector  *metav1.LabelSelector `json:"objectSelector,omitempty" protobuf:"bytes,10,opt,name=objectSelector"`
	MatchConditions []MatchCondition      `json:"matchConditions,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,11,opt,name=matchConditions"`
}

// MutatingWebhookConfiguration is webhooks that are asked in their order, those
// of all configurations in the order of the configurations' names.
type MutatingWebhookConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Webhooks          []MutatingWebhook `json:"webhooks,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,2,rep,name=Webhooks"`
}

// MutatingWebhookConfigurationList is a list of them.
type MutatingWebhookConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []MutatingWebhookConfiguration `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// ValidatingWebhookConfiguration is webhooks that are asked all at once, after
// the mutating ones.
type ValidatingWebhookConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Webhooks          []ValidatingWebhook `json:"webhooks,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,2,rep,name=Webhooks"`
}

// ValidatingWebhookConfigurationList is a list of them.
type ValidatingWebhookConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []ValidatingWebhookConfiguration `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// AddToScheme registers the types of this package.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(Admission, &MutatingWebhookConfiguration{}, &MutatingWebhookConfigurationList{}, &ValidatingWebhookConfiguration{}, &ValidatingWebhookConfigurationList{})
	s.AddKnownTypes(Admission, &ValidatingAdmissionPolicy{}, &ValidatingAdmissionPolicyList{}, &ValidatingAdmissionPolicyBinding{}, &ValidatingAdmissionPolicyBindingList{},
		&MutatingAdmissionPolicy{}, &MutatingAdmissionPolicyList{}, &MutatingAdmissionPolicyBinding{}, &MutatingAdmissionPolicyBindingList{})
	s.AddKnownTypes(Certificates, &CertificateSigningRequest{}, &CertificateSigningRequestList{})
	metav1.AddToGroupVersion(s, Admission)
	metav1.AddToGroupVersion(s, Certificates)
	s.AddKnownTypes(Registration, &APIService{}, &APIServiceList{})
	metav1.AddToGroupVersion(s, Registration)
	s.AddKnownTypes(FlowControl, &FlowSchema{}, &FlowSchemaList{}, &PriorityLevelConfiguration{}, &PriorityLevelConfigurationList{})
	metav1.AddToGroupVersion(s, FlowControl)
	s.AddKnownTypes(Autoscaling, &HorizontalPodAutoscaler{}, &HorizontalPodAutoscalerList{})
	metav1.AddToGroupVersion(s, Autoscaling)
	return nil
}

// What the API machinery asks of a type. The model names are those of the
// published types, whose documents describe these too.

const admissionModels = "io.k8s.api.admissionregistration.v1."

func (o *MutatingWebhookConfiguration) DeepCopyObject() runtime.Object     { return deepCopy(o) }
func (o *MutatingWebhookConfigurationList) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *ValidatingWebhookConfiguration) DeepCopyObject() runtime.Object   { return deepCopy(o) }
func (o *ValidatingWebhookConfigurationList) DeepCopyObject() runtime.Object {
	return deepCopy(o)
}

func (o *MutatingWebhookConfiguration) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *MutatingWebhookConfigurationList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *ValidatingWebhookConfiguration) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *ValidatingWebhookConfigurationList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}

func (o *MutatingWebhookConfiguration) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *MutatingWebhookConfigurationList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *ValidatingWebhookConfiguration) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *ValidatingWebhookConfigurationList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}

func (o *MutatingWebhookConfiguration) Reset()     { *o = MutatingWebhookConfiguration{} }
func (o *MutatingWebhookConfigurationList) Reset() { *o = MutatingWebhookConfigurationList{} }
func (o *ValidatingWebhookConfiguration) Reset()   { *o = ValidatingWebhookConfiguration{} }
func (o *ValidatingWebhookConfigurationList) Reset() {
	*o = ValidatingWebhookConfigurationList{}
}

func (MutatingWebhookConfiguration) OpenAPIModelName() string {
	return admissionModels + "MutatingWebhookConfiguration"
}
func (MutatingWebhookConfigurationList) OpenAPIModelName() string {
	return admissionModels + "MutatingWebhookConfigurationList"
}
func (ValidatingWebhookConfiguration) OpenAPIModelName() string {
	return admissionModels + "ValidatingWebhookConfiguration"
}
func (ValidatingWebhookConfigurationList) OpenAPIModelName() string {
	return admissionModels + "ValidatingWebhookConfigurationList"
}
