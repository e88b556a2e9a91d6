package types

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// FlowControl is the group and version of FlowSchemas and
// PriorityLevelConfigurations (KEP-1040).
var FlowControl = schema.GroupVersion{Group: "flowcontrol.apiserver.k8s.io", Version: "v1"}

// Values of fields of FlowSchemas and PriorityLevelConfigurations.
const (
	ByUser      = "ByUser"      // distinguisherMethod.type
	ByNamespace = "ByNamespace" // distinguisherMethod.type

	UserKind           = "User" // subjects[].kind
	GroupKind          = "Group"
	ServiceAccountKind = "ServiceAccount"

	Exempt  = "Exempt"  // type of a level: nothing in it ever waits
	Limited = "Limited" // type of a level: so many of its requests are served at once

	Queue  = "Queue"  // limitResponse.type: what there is no seat for waits
	Reject = "Reject" // limitResponse.type: it is refused

	MaxPrecedence = 10000 // of matchingPrecedence

	// FlowSchemaDangling is the type of the condition that says whether the level
	// that a FlowSchema names is missing.
	FlowSchemaDangling = "Dangling"
)

// FlowSchema says which requests belong together, and to which level of priority.
type FlowSchema struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              FlowSchemaSpec `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
	Status            FlowStatus     `json:"status,omitempty" protobuf:"bytes,3,opt,name=status"`
}

// FlowSchemaSpec is what a FlowSchema says. Of those that match a request, the one
// with the lowest precedence has it, of several the one whose name is first.
type FlowSchemaSpec struct {
	PriorityLevelConfiguration PriorityLevelReference    `json:"priorityLevelConfiguration" protobuf:"bytes,1,opt,name=priorityLevelConfiguration"`
	MatchingPrecedence         int32                     `json:"matchingPrecedence" protobuf:"varint,2,opt,name=matchingPrecedence"`
	DistinguisherMethod        *FlowDistinguisherMethod  `json:"distinguisherMethod,omitempty" protobuf:"bytes,3,opt,name=distinguisherMethod"`
	Rules                      []PolicyRulesWithSubjects `json:"rules,omitempty" protobuf:"bytes,4,rep,name=rules"`
}

// PriorityLevelReference names a PriorityLevelConfiguration.
type PriorityLevelReference struct {
	Name string `json:"name" protobuf:"bytes,1,opt,name=name"`
}

// FlowDistinguisherMethod says by what the requests of a FlowSchema are told apart,
// so that none of its flows takes what is the others'.
type FlowDistinguisherMethod struct {
	Type string `json:"type" protobuf:"bytes,1,opt,name=type"`
}

// PolicyRulesWithSubjects matches a request of any of the subjects that any of the
// rules matches.
type PolicyRulesWithSubjects struct {
	Subjects         []FlowSubject           `json:"subjects" protobuf:"bytes,1,rep,name=subjects"`
	ResourceRules    []ResourcePolicyRule    `json:"resourceRules,omitempty" protobuf:"bytes,2,opt,name=resourceRules"`
	NonResourceRules []NonResourcePolicyRule `json:"nonResourceRules,omitempty" protobuf:"bytes,3,opt,name=nonResourceRules"`
}

// FlowSubject is who makes a request: one of the three, as kind says.
type FlowSubject struct {
	Kind           string                 `json:"kind" protobuf:"bytes,1,opt,name=kind"`
	User           *NamedSubject          `json:"user,omitempty" protobuf:"bytes,2,opt,name=user"`
	Group          *NamedSubject          `json:"group,omitempty" protobuf:"bytes,3,opt,name=group"`
	ServiceAccount *ServiceAccountSubject `json:"serviceAccount,omitempty" protobuf:"bytes,4,opt,name=serviceAccount"`
}

// NamedSubject is a user or group, or all of them: "*".
type NamedSubject struct {
	Name string `json:"name" protobuf:"bytes,1,opt,name=name"`
}

// ServiceAccountSubject is a service account, or all of its namespace: "*".
type ServiceAccountSubject struct {
	Namespace string `json:"namespace" protobuf:"bytes,1,opt,name=namespace"`
	Name      string `json:"name" protobuf:"bytes,2,opt,name=name"`
}

// ResourcePolicyRule matches requests for resources.
type ResourcePolicyRule struct {
	Verbs        []string `json:"verbs" protobuf:"bytes,1,rep,name=verbs"`
	APIGroups    []string `json:"apiGroups" protobuf:"bytes,2,rep,name=apiGroups"`
	Resources    []string `json:"resources" protobuf:"bytes,3,rep,name=resources"` // "pods", "pods/status", "*"
	ClusterScope bool     `json:"clusterScope,omitempty" protobuf:"varint,4,opt,name=clusterScope"`
	Namespaces   []string `json:"namespaces" protobuf:"bytes,5,rep,name=namespaces"`
}

// NonResourcePolicyRule matches requests for other paths.
type NonResourcePolicyRule struct {
	Verbs           []string `json:"verbs" protobuf:"bytes,1,rep,name=verbs"`
	NonResourceURLs []string `json:"nonResourceURLs" protobuf:"bytes,6,rep,name=nonResourceURLs"` // "/livez", "/openapi/*", "*"
}

// FlowStatus is what was found out about a FlowSchema, or a
// PriorityLevelConfiguration.
type FlowStatus struct {
	Conditions []FlowCondition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type" protobuf:"bytes,1,rep,name=conditions"`
}

// FlowCondition is one thing that was found out.
type FlowCondition struct {
	Type               string      `json:"type,omitempty" protobuf:"bytes,1,opt,name=type"`
	Status             string      `json:"status,omitempty" protobuf:"bytes,2,opt,name=status"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitempty" protobuf:"bytes,3,opt,name=lastTransitionTime"`
	Reason             string      `json:"reason,omitempty" protobuf:"bytes,4,opt,name=reason"`
	Message            string      `json:"message,omitempty" protobuf:"bytes,5,opt,name=message"`
}

// FlowSchemaList is a list of them.
type FlowSchemaList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []FlowSchema `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// PriorityLevelConfiguration is a level of priority: what its requests may take of
// a server, and what becomes of those that there is no room for.
type PriorityLevelConfiguration struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              PriorityLevelSpec `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
	Status            FlowStatus        `json:"status,omitempty" protobuf:"bytes,3,opt,name=status"`
}

// PriorityLevelSpec is what a PriorityLevelConfiguration says: one of the two, as
// type says.
type PriorityLevelSpec struct {
	Type    string         `json:"type" protobuf:"bytes,1,opt,name=type"`
	Limited *LimitedLevel  `json:"limited,omitempty" protobuf:"bytes,2,opt,name=limited"`
	Exempt  *ExemptedLevel `json:"exempt,omitempty" protobuf:"bytes,3,opt,name=exempt"`
}

// LimitedLevel says how many requests of a level a server serves at once: a share
// of all seats, of which others may borrow a part while they are idle here, and
// which may be exceeded by what is idle elsewhere.
type LimitedLevel struct {
	NominalConcurrencyShares *int32        `json:"nominalConcurrencyShares" protobuf:"varint,1,opt,name=nominalConcurrencyShares"`
	LimitResponse            LimitResponse `json:"limitResponse,omitempty" protobuf:"bytes,2,opt,name=limitResponse"`
	LendablePercent          *int32        `json:"lendablePercent,omitempty" protobuf:"varint,3,opt,name=lendablePercent"`             // of the share
	BorrowingLimitPercent    *int32        `json:"borrowingLimitPercent,omitempty" protobuf:"varint,4,opt,name=borrowingLimitPercent"` // of the share; nil: no limit
}

// ExemptedLevel says what of the seats is kept for requests that wait for none.
type ExemptedLevel struct {
	NominalConcurrencyShares *int32 `json:"nominalConcurrencyShares,omitempty" protobuf:"varint,1,opt,name=nominalConcurrencyShares"`
	LendablePercent          *int32 `json:"lendablePercent,omitempty" protobuf:"varint,2,opt,name=lendablePercent"`
}

// LimitResponse says what becomes of requests that there is no seat for.
type LimitResponse struct {
	Type    string                `json:"type" protobuf:"bytes,1,opt,name=type"`
	Queuing *QueuingConfiguration `json:"queuing,omitempty" protobuf:"bytes,2,opt,name=queuing"`
}

// QueuingConfiguration says how they wait: each flow has a hand of so many of all
// queues, and uses the shortest of them.
type QueuingConfiguration struct {
	Queues           int32 `json:"queues" protobuf:"varint,1,opt,name=queues"`
	HandSize         int32 `json:"handSize" protobuf:"varint,2,opt,name=handSize"`
	QueueLengthLimit int32 `json:"queueLengthLimit" protobuf:"varint,3,opt,name=queueLengthLimit"`
}

// PriorityLevelConfigurationList is a list of them.
type PriorityLevelConfigurationList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []PriorityLevelConfiguration `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// Condition is the condition of a type, nil if there is none.
func (s *FlowStatus) Condition(of string) *FlowCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == of {
			return &s.Conditions[i]
		}
	}
	return nil
}

// What the API machinery asks of a type; see admission.go.

const flowModels = "io.k8s.api.flowcontrol.v1."

func (o *FlowSchema) DeepCopyObject() runtime.Object                     { return deepCopy(o) }
func (o *FlowSchemaList) DeepCopyObject() runtime.Object                 { return deepCopy(o) }
func (o *PriorityLevelConfiguration) DeepCopyObject() runtime.Object     { return deepCopy(o) }
func (o *PriorityLevelConfigurationList) DeepCopyObject() runtime.Object { return deepCopy(o) }

func (o *FlowSchema) Marshal() ([]byte, error)     { return marshal(reflect.ValueOf(o).Elem()) }
func (o *FlowSchemaList) Marshal() ([]byte, error) { return marshal(reflect.ValueOf(o).Elem()) }
func (o *PriorityLevelConfiguration) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *PriorityLevelConfigurationList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}

func (o *FlowSchema) Unmarshal(b []byte) error     { return unmarshal(b, reflect.ValueOf(o).Elem()) }
func (o *FlowSchemaList) Unmarshal(b []byte) error { return unmarshal(b, reflect.ValueOf(o).Elem()) }
func (o *PriorityLevelConfiguration) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *PriorityLevelConfigurationList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}

func (o *FlowSchema) Reset()                     { *o = FlowSchema{} }
func (o *FlowSchemaList) Reset()                 { *o = FlowSchemaList{} }
func (o *PriorityLevelConfiguration) Reset()     { *o = PriorityLevelConfiguration{} }
func (o *PriorityLevelConfigurationList) Reset() { *o = PriorityLevelConfigurationList{} }

func (FlowSchema) OpenAPIModelName() string     { return flowModels + "FlowSchema" }
func (FlowSchemaList) OpenAPIModelName() string { return flowModels + "FlowSchemaList" }
func (PriorityLevelConfiguration) OpenAPIModelName() string {
	return flowModels + "PriorityLevelConfiguration"
}
func (PriorityLevelConfigurationList) OpenAPIModelName() string {
	return flowModels + "PriorityLevelConfigurationList"
}
