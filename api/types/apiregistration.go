package types

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Registration is the group and version of APIServices.
var Registration = schema.GroupVersion{Group: "apiregistration.k8s.io", Version: "v1"}

// APIAvailable is the type of the condition that says whether requests reach the
// server of an APIService.
const APIAvailable = "Available"

// APIService says who serves a version of a group: another API server, or, where
// it names no service, this one. Its name is VERSION.GROUP.
type APIService struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              APIServiceSpec   `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
	Status            APIServiceStatus `json:"status,omitempty" protobuf:"bytes,3,opt,name=status"`
}

// APIServiceSpec is what is served, by whom, and where discovery lists it.
type APIServiceSpec struct {
	Service               *APIServiceReference `json:"service,omitempty" protobuf:"bytes,1,opt,name=service"`
	Group                 string               `json:"group,omitempty" protobuf:"bytes,2,opt,name=group"`
	Version               string               `json:"version,omitempty" protobuf:"bytes,3,opt,name=version"`
	InsecureSkipTLSVerify bool                 `json:"insecureSkipTLSVerify,omitempty" protobuf:"varint,4,opt,name=insecureSkipTLSVerify"`
	CABundle              []byte               `json:"caBundle,omitempty" protobuf:"bytes,5,opt,name=caBundle"`                // PEM; empty: the host's own roots
	GroupPriorityMinimum  int32                `json:"groupPriorityMinimum" protobuf:"varint,7,opt,name=groupPriorityMinimum"` // of groups, higher ones are first
	VersionPriority       int32                `json:"versionPriority" protobuf:"varint,8,opt,name=versionPriority"`           // of versions in a group
}

// APIServiceReference is a port of the Service that an API server is behind.
type APIServiceReference struct {
	Namespace string `json:"namespace,omitempty" protobuf:"bytes,1,opt,name=namespace"`
	Name      string `json:"name,omitempty" protobuf:"bytes,2,opt,name=name"`
	Port      *int32 `json:"port,omitempty" protobuf:"varint,3,opt,name=port"`
}

// APIServiceStatus is what the leader found out about the server.
type APIServiceStatus struct {
	Conditions []APIServiceCondition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type" protobuf:"bytes,1,rep,name=conditions"`
}

// APIServiceCondition is one thing that was found out.
type APIServiceCondition struct {
	Type               string      `json:"type" protobuf:"bytes,1,opt,name=type"`
	Status             string      `json:"status" protobuf:"bytes,2,opt,name=status"`
	LastTransitionTime metav1.Time `json:"lastTransitionTime,omitempty" protobuf:"bytes,3,opt,name=lastTransitionTime"`
	Reason             string      `json:"reason,omitempty" protobuf:"bytes,4,opt,name=reason"`
	Message            string      `json:"message,omitempty" protobuf:"bytes,5,opt,name=message"`
}

// APIServiceList is a list of them.
type APIServiceList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []APIService `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// Condition is the condition of a type, nil if there is none.
func (o *APIService) Condition(of string) *APIServiceCondition {
	for i := range o.Status.Conditions {
		if o.Status.Conditions[i].Type == of {
			return &o.Status.Conditions[i]
		}
	}
	return nil
}

// SetCondition writes a condition. Its time moves when its status does.
func (o *APIService) SetCondition(c APIServiceCondition) {
	was := o.Condition(c.Type)
	if was == nil {
		o.Status.Conditions = append(o.Status.Conditions, c)
		return
	}
	if was.Status == c.Status {
		c.LastTransitionTime = was.LastTransitionTime
	}
	*was = c
}

// IsAvailable says whether requests for what it registers are handed on.
func (o *APIService) IsAvailable() bool {
	c := o.Condition(APIAvailable)
	return c != nil && c.Status == string(metav1.ConditionTrue)
}

// LocallyAvailable is the condition of an APIService without a service.
func LocallyAvailable(since metav1.Time) APIServiceCondition {
	return APIServiceCondition{
		Type: APIAvailable, Status: string(metav1.ConditionTrue), LastTransitionTime: since,
		Reason: "Local", Message: "Local APIServices are always available",
	}
}

// What the API machinery asks of a type; see admission.go.

const registrationModels = "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1."

func (o *APIService) DeepCopyObject() runtime.Object     { return deepCopy(o) }
func (o *APIServiceList) DeepCopyObject() runtime.Object { return deepCopy(o) }

func (o *APIService) Marshal() ([]byte, error)     { return marshal(reflect.ValueOf(o).Elem()) }
func (o *APIServiceList) Marshal() ([]byte, error) { return marshal(reflect.ValueOf(o).Elem()) }

func (o *APIService) Unmarshal(b []byte) error     { return unmarshal(b, reflect.ValueOf(o).Elem()) }
func (o *APIServiceList) Unmarshal(b []byte) error { return unmarshal(b, reflect.ValueOf(o).Elem()) }

func (o *APIService) Reset()     { *o = APIService{} }
func (o *APIServiceList) Reset() { *o = APIServiceList{} }

func (APIService) OpenAPIModelName() string     { return registrationModels + "APIService" }
func (APIServiceList) OpenAPIModelName() string { return registrationModels + "APIServiceList" }
