package types

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Autoscaling is the group and version in which HorizontalPodAutoscalers are
// stored.
var Autoscaling = schema.GroupVersion{Group: "autoscaling", Version: "v2"}

// Types of metrics.
const (
	ObjectMetric            = "Object"
	PodsMetric              = "Pods"
	ResourceMetric          = "Resource"
	ContainerResourceMetric = "ContainerResource"
	ExternalMetric          = "External"
)

// Types of a metric's target.
const (
	TargetUtilization  = "Utilization" // averageUtilization
	TargetValue        = "Value"
	TargetAverageValue = "AverageValue"
)

// Which of several scaling policies counts, and what a policy's value is.
const (
	SelectMost  = "Max"
	SelectLeast = "Min"
	SelectNone  = "Disabled"

	PolicyPods    = "Pods"
	PolicyPercent = "Percent"
)

// Types of a HorizontalPodAutoscaler's conditions.
const (
	ScalingActive  = "ScalingActive"
	AbleToScale    = "AbleToScale"
	ScalingLimited = "ScalingLimited"
)

// HorizontalPodAutoscaler makes the replicas of something follow what its pods
// use.
type HorizontalPodAutoscaler struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Spec              AutoscalerSpec   `json:"spec,omitempty" protobuf:"bytes,2,opt,name=spec"`
	Status            AutoscalerStatus `json:"status,omitempty" protobuf:"bytes,3,opt,name=status"`
}

// HorizontalPodAutoscalerList is a list of them.
type HorizontalPodAutoscalerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty" protobuf:"bytes,1,opt,name=metadata"`
	Items           []HorizontalPodAutoscaler `json:"items" protobuf:"bytes,2,rep,name=items"`
}

// AutoscalerSpec says what is scaled, between which bounds, by what, how fast.
type AutoscalerSpec struct {
	ScaleTargetRef ObjectName          `json:"scaleTargetRef" protobuf:"bytes,1,opt,name=scaleTargetRef"`
	MinReplicas    *int32              `json:"minReplicas,omitempty" protobuf:"varint,2,opt,name=minReplicas"`
	MaxReplicas    int32               `json:"maxReplicas" protobuf:"varint,3,opt,name=maxReplicas"`
	Metrics        []MetricSpec        `json:"metrics,omitempty" protobuf:"bytes,4,rep,name=metrics"`
	Behavior       *AutoscalerBehavior `json:"behavior,omitempty" protobuf:"bytes,5,opt,name=behavior"`
}

// ObjectName names an object of the namespace, in whatever version.
type ObjectName struct {
	Kind       string `json:"kind" protobuf:"bytes,1,opt,name=kind"`
	Name       string `json:"name" protobuf:"bytes,2,opt,name=name"`
	APIVersion string `json:"apiVersion,omitempty" protobuf:"bytes,3,opt,name=apiVersion"`
}

// MetricSpec is one metric: the source that its type names, and what it is meant
// to be.
type MetricSpec struct {
	Type              string                         `json:"type" protobuf:"bytes,1,name=type"`
	Object            *ObjectMetricSource            `json:"object,omitempty" protobuf:"bytes,2,opt,name=object"`
	Pods              *NamedMetricSource             `json:"pods,omitempty" protobuf:"bytes,3,opt,name=pods"`
	Resource          *ResourceMetricSource          `json:"resource,omitempty" protobuf:"bytes,4,opt,name=resource"`
	ContainerResource *ContainerResourceMetricSource `json:"containerResource,omitempty" protobuf:"bytes,7,opt,name=containerResource"`
	External          *NamedMetricSource             `json:"external,omitempty" protobuf:"bytes,5,opt,name=external"`
}

// ObjectMetricSource is a metric of one object (custom.metrics.k8s.io).
type ObjectMetricSource struct {
	DescribedObject ObjectName   `json:"describedObject" protobuf:"bytes,1,name=describedObject"`
	Target          MetricTarget `json:"target" protobuf:"bytes,2,name=target"`
	Metric          MetricName   `json:"metric" protobuf:"bytes,3,name=metric"`
}

// NamedMetricSource is a metric of pods (custom.metrics.k8s.io), or of something
// outside the cluster (external.metrics.k8s.io).
type NamedMetricSource struct {
	Metric MetricName   `json:"metric" protobuf:"bytes,1,name=metric"`
	Target MetricTarget `json:"target" protobuf:"bytes,2,name=target"`
}

// ResourceMetricSource is what pods use of a resource.
type ResourceMetricSource struct {
	Name   corev1.ResourceName `json:"name" protobuf:"bytes,1,name=name"`
	Target MetricTarget        `json:"target" protobuf:"bytes,2,name=target"`
}

// ContainerResourceMetricSource is what the containers of one name use of it.
type ContainerResourceMetricSource struct {
	Name      corev1.ResourceName `json:"name" protobuf:"bytes,1,name=name"`
	Target    MetricTarget        `json:"target" protobuf:"bytes,2,name=target"`
	Container string              `json:"container" protobuf:"bytes,3,opt,name=container"`
}

// MetricName names a metric of an adapter's.
type MetricName struct {
	Name     string                `json:"name" protobuf:"bytes,1,name=name"`
	Selector *metav1.LabelSelector `json:"selector,omitempty" protobuf:"bytes,2,name=selector"`
}

// MetricTarget is what a metric is meant to be: averages are over the pods,
// utilization in percent of what they request.
type MetricTarget struct {
	Type               string             `json:"type" protobuf:"bytes,1,name=type"`
	Value              *resource.Quantity `json:"value,omitempty" protobuf:"bytes,2,opt,name=value"`
	AverageValue       *resource.Quantity `json:"averageValue,omitempty" protobuf:"bytes,3,opt,name=averageValue"`
	AverageUtilization *int32             `json:"averageUtilization,omitempty" protobuf:"bytes,4,opt,name=averageUtilization"`
}

// AutoscalerBehavior is how fast replicas follow.
type AutoscalerBehavior struct {
	ScaleUp   *ScalingRules `json:"scaleUp,omitempty" protobuf:"bytes,1,opt,name=scaleUp"`
	ScaleDown *ScalingRules `json:"scaleDown,omitempty" protobuf:"bytes,2,opt,name=scaleDown"`
}

// ScalingRules are of one direction. Tolerance is a part of 1 (KEP 4951).
type ScalingRules struct {
	StabilizationWindowSeconds *int32             `json:"stabilizationWindowSeconds,omitempty" protobuf:"varint,3,opt,name=stabilizationWindowSeconds"`
	SelectPolicy               *string            `json:"selectPolicy,omitempty" protobuf:"bytes,1,opt,name=selectPolicy"`
	Policies                   []ScalingPolicy    `json:"policies,omitempty" protobuf:"bytes,2,rep,name=policies"`
	Tolerance                  *resource.Quantity `json:"tolerance,omitempty" protobuf:"bytes,4,opt,name=tolerance"`
}

// ScalingPolicy is by how many pods, or percent, the replicas may change in a
// time.
type ScalingPolicy struct {
	Type          string `json:"type" protobuf:"bytes,1,opt,name=type"`
	Value         int32  `json:"value" protobuf:"varint,2,opt,name=value"`
	PeriodSeconds int32  `json:"periodSeconds" protobuf:"varint,3,opt,name=periodSeconds"`
}

// AutoscalerStatus is what was last seen and done. CurrentMetrics are in the
// order of the spec's.
type AutoscalerStatus struct {
	ObservedGeneration *int64                `json:"observedGeneration,omitempty" protobuf:"varint,1,opt,name=observedGeneration"`
	LastScaleTime      *metav1.Time          `json:"lastScaleTime,omitempty" protobuf:"bytes,2,opt,name=lastScaleTime"`
	CurrentReplicas    int32                 `json:"currentReplicas,omitempty" protobuf:"varint,3,opt,name=currentReplicas"`
	DesiredReplicas    int32                 `json:"desiredReplicas" protobuf:"varint,4,opt,name=desiredReplicas"`
	CurrentMetrics     []MetricStatus        `json:"currentMetrics" protobuf:"bytes,5,rep,name=currentMetrics"`
	Conditions         []AutoscalerCondition `json:"conditions,omitempty" patchStrategy:"merge" patchMergeKey:"type" protobuf:"bytes,6,rep,name=conditions"`
}

// AutoscalerCondition is whether scaling goes on, and why.
type AutoscalerCondition struct {
	Type               string                 `json:"type" protobuf:"bytes,1,name=type"`
	Status             corev1.ConditionStatus `json:"status" protobuf:"bytes,2,name=status"`
	LastTransitionTime metav1.Time            `json:"lastTransitionTime,omitempty" protobuf:"bytes,3,opt,name=lastTransitionTime"`
	Reason             string                 `json:"reason,omitempty" protobuf:"bytes,4,opt,name=reason"`
	Message            string                 `json:"message,omitempty" protobuf:"bytes,5,opt,name=message"`
	ObservedGeneration *int64                 `json:"observedGeneration,omitempty" protobuf:"varint,6,opt,name=observedGeneration"`
}

// MetricStatus is what one metric was.
type MetricStatus struct {
	Type              string                         `json:"type" protobuf:"bytes,1,name=type"`
	Object            *ObjectMetricStatus            `json:"object,omitempty" protobuf:"bytes,2,opt,name=object"`
	Pods              *NamedMetricStatus             `json:"pods,omitempty" protobuf:"bytes,3,opt,name=pods"`
	Resource          *ResourceMetricStatus          `json:"resource,omitempty" protobuf:"bytes,4,opt,name=resource"`
	ContainerResource *ContainerResourceMetricStatus `json:"containerResource,omitempty" protobuf:"bytes,7,opt,name=containerResource"`
	External          *NamedMetricStatus             `json:"external,omitempty" protobuf:"bytes,5,opt,name=external"`
}

// ObjectMetricStatus is of an ObjectMetricSource.
type ObjectMetricStatus struct {
	Metric          MetricName  `json:"metric" protobuf:"bytes,1,name=metric"`
	Current         MetricValue `json:"current" protobuf:"bytes,2,name=current"`
	DescribedObject ObjectName  `json:"describedObject" protobuf:"bytes,3,name=describedObject"`
}

// NamedMetricStatus is of a NamedMetricSource.
type NamedMetricStatus struct {
	Metric  MetricName  `json:"metric" protobuf:"bytes,1,name=metric"`
	Current MetricValue `json:"current" protobuf:"bytes,2,name=current"`
}

// ResourceMetricStatus is of a ResourceMetricSource.
type ResourceMetricStatus struct {
	Name    corev1.ResourceName `json:"name" protobuf:"bytes,1,name=name"`
	Current MetricValue         `json:"current" protobuf:"bytes,2,name=current"`
}

// ContainerResourceMetricStatus is of a ContainerResourceMetricSource.
type ContainerResourceMetricStatus struct {
	Name      corev1.ResourceName `json:"name" protobuf:"bytes,1,name=name"`
	Current   MetricValue         `json:"current" protobuf:"bytes,2,name=current"`
	Container string              `json:"container" protobuf:"bytes,3,opt,name=container"`
}

// MetricValue is what a metric was, in the units of MetricTarget.
type MetricValue struct {
	Value              *resource.Quantity `json:"value,omitempty" protobuf:"bytes,1,opt,name=value"`
	AverageValue       *resource.Quantity `json:"averageValue,omitempty" protobuf:"bytes,2,opt,name=averageValue"`
	AverageUtilization *int32             `json:"averageUtilization,omitempty" protobuf:"bytes,3,opt,name=averageUtilization"`
}

// What the API machinery asks of a type; see admission.go.

const autoscalingModels = "io.k8s.api.autoscaling.v2."

func (o *HorizontalPodAutoscaler) DeepCopyObject() runtime.Object     { return deepCopy(o) }
func (o *HorizontalPodAutoscalerList) DeepCopyObject() runtime.Object { return deepCopy(o) }

func (o *HorizontalPodAutoscaler) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}
func (o *HorizontalPodAutoscalerList) Marshal() ([]byte, error) {
	return marshal(reflect.ValueOf(o).Elem())
}

func (o *HorizontalPodAutoscaler) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}
func (o *HorizontalPodAutoscalerList) Unmarshal(b []byte) error {
	return unmarshal(b, reflect.ValueOf(o).Elem())
}

func (o *HorizontalPodAutoscaler) Reset()     { *o = HorizontalPodAutoscaler{} }
func (o *HorizontalPodAutoscalerList) Reset() { *o = HorizontalPodAutoscalerList{} }

func (HorizontalPodAutoscaler) OpenAPIModelName() string {
	return autoscalingModels + "HorizontalPodAutoscaler"
}
func (HorizontalPodAutoscalerList) OpenAPIModelName() string {
	return autoscalingModels + "HorizontalPodAutoscalerList"
}
