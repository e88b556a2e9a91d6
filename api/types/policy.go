package types

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Values of a policy's and a binding's fields.
const (
	Allow = "Allow" // parameterNotFoundAction: a binding without parameters does nothing
	Deny  = "Deny"  // parameterNotFoundAction: that is an error; validationActions: refuse
	Warn  = "Warn"  // validationActions: let through, with a warning
	Audit = "Audit" // validationActions: note it in the audit log

	PatchApplyConfiguration = "ApplyConfiguration" // patchType: an object that is merged as by server-side apply
	PatchJSON               = "JSONPatch"          // patchType: a list of operations (RFC 6902)
)

// ParamKind is the kind of the objects that a policy takes parameters from.
type ParamKind struct {
	APIVersion string `json:"apiVersion,omitempty" protobuf:"bytes,1,rep,name=apiVersion"`
	Kind       string `json:"kind,omitempty" protobuf:"bytes,2,rep,name=kind"`
}

// ParamRef is which of them: one by name or all that are selected.
type ParamRef struct {
	Name                    string                `json:"name,omitempty" protobuf:"bytes,1,rep,name=name"`
	Namespace               string                `json:"namespace,omitempty" protobuf:"bytes,2,rep,name=namespace"` // empty: the request's
	Selector                *metav1.LabelSelector `json:"selector,omitempty" protobuf:"bytes,3,rep,name=selector"`
	ParameterNotFoundAction *string               `json:"parameterNotFoundAction,omitempty" protobuf:"bytes,4,rep,name=parameterNotFoundAction"`
}

// NamedRuleWithOperations is a rule that may mean single objects.
type NamedRuleWithOperations struct {
	ResourceNames      []string `json:"resourceNames,omitempty" protobuf:"bytes,1,rep,name=resourceNames"`
	RuleWithOperations `json:",inline" protobuf:"bytes,2,opt,name=ruleWithOperations"`
}

// MatchResources says which requests are meant.
type MatchResources struct {
	NamespaceSelector    *metav1.LabelSelector     `json:"namespaceSelector,omitempty" protobuf:"bytes,1,opt,name=namespaceSelector"`
	ObjectSelector       *metav1.LabelSelector     `json:"objectSelector,omitempty" protobuf:"bytes,2,opt,name=objectSelector"`
	ResourceRules        []NamedRuleWithOperations `json:"resourceRules,omitempty" protobuf:"bytes,3,rep,name=resourceRules"`
	ExcludeResourceRules []NamedRuleWithOperations `json:"excludeResourceRules,omitempty" protobuf:"bytes,4,rep,name=excludeResourceRules"`
	MatchPolicy          *string                   `json:"matchPolicy,omitempty" protobuf:"bytes,7,opt,name=matchPolicy"`
}

// Variable is an expression that others use as variables.NAME.
type Variable struct {
	Name       string `json:"name" protobuf:"bytes,1,opt,name=Name"`
	Expression string `json:"expression" protobuf:"bytes,2,opt,name=Expression"`
}

// Validation is an expression that has to be true, and what to say where it is
// not.
type Validation struct {
	Expression        string               `json:"expression" protobuf:"bytes,1,opt,name=Expression"`
	Message           string               `json:"message,omitempty" protobuf:"bytes,2,opt,name=message"`
	Reason            *metav1.StatusReason `json:"reason,omitempty" protobuf:"bytes,3,opt,name=reason"`
	MessageExpression string               `json:"messageExpression,omitempty" protobuf:"bytes,4,opt,name=messageExpression"`
}

// AuditAnnotation is an expression whose value belongs into an audit log.
type AuditAnnotation struct {
	Key             string `json:"key" protobuf:"bytes,1,opt,name=key"`
	ValueExpression string `json:"valueExpression" protobuf:"bytes,2,opt,name=valueExpression"`
}

// ValidatingAdmissionPolicy may refuse what is asked for.
type ValidatingAdmissionPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              ValidatingAdmissionPolicySpec   `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
	Status            ValidatingAdmissionPolicyStatus `json:"status,omitempty" protobuf:"bytes,3,opt,name=status"`
}

// ValidatingAdmissionPolicySpec is what it refuses.
type ValidatingAdmissionPolicySpec struct {
	ParamKind        *ParamKind        `json:"paramKind,omitempty" protobuf:"bytes,1,rep,name=paramKind"`
	MatchConstraints *MatchResources   `json:"matchConstraints,omitempty" protobuf:"bytes,2,rep,name=matchConstraints"`
	Validations      []Validation      `json:"validations,omitempty" protobuf:"bytes,3,rep,name=validations"`
	FailurePolicy    *string           `json:"failurePolicy,omitempty" protobuf:"bytes,4,opt,name=failurePolicy"`
	AuditAnnotations []AuditAnnotation `json:"auditAnnotations,omitempty" protobuf:"bytes,5,rep,name=auditAnnotations"`
	MatchConditions  []MatchCondition  `json:"matchConditions,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,6,rep,name=matchConditions"`
	Variables        []Variable        `json:"variables,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,7,rep,name=variables"`
}

// ValidatingAdmissionPolicyStatus is what the leader found out about it.
type ValidatingAdmissionPolicyStatus struct {
	ObservedGeneration int64              `json:"observedGeneration,omitempty" protobuf:"varint,1,opt,name=observedGeneration"`
	TypeChecking       *TypeChecking      `json:"typeChecking,omitempty" protobuf:"bytes,2,opt,name=typeChecking"`
	Conditions         []metav1.Condition `json:"conditions,omitempty" protobuf:"bytes,3,rep,name=conditions"`
}

// TypeChecking is what does not fit to the types of the kinds that the rules
// name.
type TypeChecking struct {
	ExpressionWarnings []ExpressionWarning `json:"expressionWarnings,omitempty" protobuf:"bytes,1,rep,name=expressionWarnings"`
}

// ExpressionWarning is of one expression.
type ExpressionWarning struct {
	FieldRef string `json:"fieldRef" protobuf:"bytes,2,opt,name=fieldRef"` // "spec.validations[0].expression"
	Warning  string `json:"warning" protobuf:"bytes,3,opt,name=warning"`
}

// ValidatingAdmissionPolicyList is a list of them.
type ValidatingAdmissionPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []ValidatingAdmissionPolicy `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// ValidatingAdmissionPolicyBinding puts a policy to use.
type ValidatingAdmissionPolicyBinding struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              ValidatingAdmissionPolicyBindingSpec `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
}

// ValidatingAdmissionPolicyBindingSpec is where, with what, and what follows.
type ValidatingAdmissionPolicyBindingSpec struct {
	PolicyName        string          `json:"policyName,omitempty" protobuf:"bytes,1,rep,name=policyName"`
	ParamRef          *ParamRef       `json:"paramRef,omitempty" protobuf:"bytes,2,rep,name=paramRef"`
	MatchResources    *MatchResources `json:"matchResources,omitempty" protobuf:"bytes,3,rep,name=matchResources"`
	ValidationActions []string        `json:"validationActions,omitempty" protobuf:"bytes,4,rep,name=validationActions"`
}

// ValidatingAdmissionPolicyBindingList is a list of them.
type ValidatingAdmissionPolicyBindingList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []ValidatingAdmissionPolicyBinding `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// MutatingAdmissionPolicy may change what is asked for.
type MutatingAdmissionPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              MutatingAdmissionPolicySpec `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
}

// MutatingAdmissionPolicySpec is what it changes.
type MutatingAdmissionPolicySpec struct {
	ParamKind          *ParamKind       `json:"paramKind,omitempty" protobuf:"bytes,1,rep,name=paramKind"`
	MatchConstraints   *MatchResources  `json:"matchConstraints,omitempty" protobuf:"bytes,2,rep,name=matchConstraints"`
	Variables          []Variable       `json:"variables,omitempty" protobuf:"bytes,3,rep,name=variables"`
	Mutations          []Mutation       `json:"mutations,omitempty" protobuf:"bytes,4,rep,name=mutations"`
	FailurePolicy      *string          `json:"failurePolicy,omitempty" protobuf:"bytes,5,opt,name=failurePolicy"`
	MatchConditions    []MatchCondition `json:"matchConditions,omitempty" patchStrategy:"merge" patchMergeKey:"name" protobuf:"bytes,6,rep,name=matchConditions"`
	ReinvocationPolicy string           `json:"reinvocationPolicy,omitempty" protobuf:"bytes,7,opt,name=reinvocationPolicy"`
}

// Mutation is one change: that of its patchType.
type Mutation struct {
	PatchType          string      `json:"patchType" protobuf:"bytes,2,opt,name=patchType"`
	ApplyConfiguration *Expression `json:"applyConfiguration,omitempty" protobuf:"bytes,3,opt,name=applyConfiguration"`
	JSONPatch          *Expression `json:"jsonPatch,omitempty" protobuf:"bytes,4,opt,name=jsonPatch"`
}

// Expression is the expression of a mutation: the published ApplyConfiguration
// and JSONPatch.
type Expression struct {
	Expression string `json:"expression,omitempty" protobuf:"bytes,1,opt,name=expression"`
}

// MutatingAdmissionPolicyList is a list of them.
type MutatingAdmissionPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []MutatingAdmissionPolicy `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// MutatingAdmissionPolicyBinding puts a policy to use.
type MutatingAdmissionPolicyBinding struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              MutatingAdmissionPolicyBindingSpec `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
}

// MutatingAdmissionPolicyBindingSpec is where and with what.
type MutatingAdmissionPolicyBindingSpec struct {
	PolicyName     string          `json:"policyName,omitempty" protobuf:"bytes,1,rep,name=policyName"`
	ParamRef       *ParamRef       `json:"paramRef,omitempty" protobuf:"bytes,2,rep,name=paramRef"`
	MatchResources *MatchResources `json:"matchResources,omitempty" protobuf:"bytes,3,rep,name=matchResources"`
}

// MutatingAdmissionPolicyBindingList is a list of them.
type MutatingAdmissionPolicyBindingList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []MutatingAdmissionPolicyBinding `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// What the API machinery asks of a type; see admission.go.

func (o *ValidatingAdmissionPolicy) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *ValidatingAdmissionPolicy) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicy) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicy) Reset() { *o = ValidatingAdmissionPolicy{} }
func (ValidatingAdmissionPolicy) OpenAPIModelName() string {
	return admissionModels + "ValidatingAdmissionPolicy"
}

func (o *ValidatingAdmissionPolicyList) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *ValidatingAdmissionPolicyList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicyList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicyList) Reset() { *o = ValidatingAdmissionPolicyList{} }
func (ValidatingAdmissionPolicyList) OpenAPIModelName() string {
	return admissionModels + "ValidatingAdmissionPolicyList"
}

func (o *ValidatingAdmissionPolicyBinding) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *ValidatingAdmissionPolicyBinding) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicyBinding) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicyBinding) Reset() { *o = ValidatingAdmissionPolicyBinding{} }
func (ValidatingAdmissionPolicyBinding) OpenAPIModelName() string {
	return admissionModels + "ValidatingAdmissionPolicyBinding"
}

func (o *ValidatingAdmissionPolicyBindingList) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *ValidatingAdmissionPolicyBindingList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicyBindingList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *ValidatingAdmissionPolicyBindingList) Reset() { *o = ValidatingAdmissionPolicyBindingList{} }
func (ValidatingAdmissionPolicyBindingList) OpenAPIModelName() string {
	return admissionModels + "ValidatingAdmissionPolicyBindingList"
}

func (o *MutatingAdmissionPolicy) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *MutatingAdmissionPolicy) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicy) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicy) Reset() { *o = MutatingAdmissionPolicy{} }
func (MutatingAdmissionPolicy) OpenAPIModelName() string {
	return admissionModels + "MutatingAdmissionPolicy"
}

func (o *MutatingAdmissionPolicyList) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *MutatingAdmissionPolicyList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicyList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicyList) Reset() { *o = MutatingAdmissionPolicyList{} }
func (MutatingAdmissionPolicyList) OpenAPIModelName() string {
	return admissionModels + "MutatingAdmissionPolicyList"
}

func (o *MutatingAdmissionPolicyBinding) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *MutatingAdmissionPolicyBinding) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicyBinding) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicyBinding) Reset() { *o = MutatingAdmissionPolicyBinding{} }
func (MutatingAdmissionPolicyBinding) OpenAPIModelName() string {
	return admissionModels + "MutatingAdmissionPolicyBinding"
}

func (o *MutatingAdmissionPolicyBindingList) DeepCopyObject() runtime.Object { return deepCopy(o) }
func (o *MutatingAdmissionPolicyBindingList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicyBindingList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *MutatingAdmissionPolicyBindingList) Reset() { *o = MutatingAdmissionPolicyBindingList{} }
func (MutatingAdmissionPolicyBindingList) OpenAPIModelName() string {
	return admissionModels + "MutatingAdmissionPolicyBindingList"
}
