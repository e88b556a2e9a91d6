package kinds

import (
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
)

// selectable lends a typed function to a row's Fields.
func selectable[T runtime.Object](f func(T) fields.Set) func(runtime.Object) fields.Set {
	return func(o runtime.Object) fields.Set { return f(o.(T)) }
}

var podFieldNames = []string{
	"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName", "spec.hostNetwork",
	"status.phase", "status.podIP", "status.podIPs", "status.nominatedNodeName",
}

func podFields(pod *corev1.Pod) fields.Set {
	ips := make([]string, len(pod.Status.PodIPs))
	for i, ip := range pod.Status.PodIPs {
		ips[i] = ip.IP
	}
	ip := pod.Status.PodIP
	if ip == "" && len(ips) > 0 {
		ip = ips[0]
	}
	return fields.Set{
		"spec.nodeName":            pod.Spec.NodeName,
		"spec.restartPolicy":       string(pod.Spec.RestartPolicy),
		"spec.schedulerName":       pod.Spec.SchedulerName,
		"spec.serviceAccountName":  pod.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(pod.Spec.HostNetwork),
		"status.phase":             string(pod.Status.Phase),
		"status.podIP":             ip,
		"status.podIPs":            strings.Join(ips, ","),
		"status.nominatedNodeName": pod.Status.NominatedNodeName,
	}
}

// eventFieldNames are the same things under the names of either kind.
var (
	coreEventFieldNames = []string{
		"involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
		"involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
		"reason", "reportingComponent", "source", "type",
	}
	eventFieldNames = []string{
		"regarding.kind", "regarding.namespace", "regarding.name", "regarding.uid",
		"regarding.apiVersion", "regarding.resourceVersion", "regarding.fieldPath",
		"reason", "reportingController", "type",
	}
)

func coreEventFields(ev *corev1.Event) fields.Set {
	source := ev.Source.Component
	if source == "" {
		source = ev.ReportingController
	}
	set := objectReferenceFields("involvedObject", &ev.InvolvedObject)
	set["reason"], set["reportingComponent"], set["source"], set["type"] = ev.Reason, ev.ReportingController, source, ev.Type
	return set
}

func eventFields(ev *eventsv1.Event) fields.Set {
	set := objectReferenceFields("regarding", &ev.Regarding)
	set["reason"], set["reportingController"], set["type"] = ev.Reason, ev.ReportingController, ev.Type
	return set
}

func objectReferenceFields(prefix string, r *corev1.ObjectReference) fields.Set {
	return fields.Set{
		prefix + ".kind":            r.Kind,
		prefix + ".namespace":       r.Namespace,
		prefix + ".name":            r.Name,
		prefix + ".uid":             string(r.UID),
		prefix + ".apiVersion":      r.APIVersion,
		prefix + ".resourceVersion": r.ResourceVersion,
		prefix + ".fieldPath":       r.FieldPath,
	}
}

// Scales.

func scaleOf(meta *metav1.ObjectMeta, desired *int32, current int32, selector *metav1.LabelSelector) (*autoscalingv1.Scale, error) {
	scale := &autoscalingv1.Scale{
		TypeMeta: metav1.TypeMeta{APIVersion: autoscalingv1.SchemeGroupVersion.String(), Kind: "Scale"},
		ObjectMeta: metav1.ObjectMeta{
			Name: meta.Name, Namespace: meta.Namespace, UID: meta.UID,
			ResourceVersion: meta.ResourceVersion, CreationTimestamp: meta.CreationTimestamp,
		},
		Status: autoscalingv1.ScaleStatus{Replicas: current},
	}
	if desired != nil {
		scale.Spec.Replicas = *desired
	}
	if s, err := metav1.LabelSelectorAsSelector(selector); err == nil {
		scale.Status.Selector = s.String()
	}
	return scale, nil
}

func deploymentScale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	d := obj.(*appsv1.Deployment)
	return scaleOf(&d.ObjectMeta, d.Spec.Replicas, d.Status.Replicas, d.Spec.Selector)
}

func setDeploymentScale(obj runtime.Object, s *autoscalingv1.Scale) error {
	d := obj.(*appsv1.Deployment)
	replicas := s.Spec.Replicas
	d.Spec.Replicas, d.ResourceVersion = &replicas, s.ResourceVersion
	return nil
}

func replicaSetScale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	rs := obj.(*appsv1.ReplicaSet)
	return scaleOf(&rs.ObjectMeta, rs.Spec.Replicas, rs.Status.Replicas, rs.Spec.Selector)
}

func setReplicaSetScale(obj runtime.Object, s *autoscalingv1.Scale) error {
	rs := obj.(*appsv1.ReplicaSet)
	replicas := s.Spec.Replicas
	rs.Spec.Replicas, rs.ResourceVersion = &replicas, s.ResourceVersion
	return nil
}

func statefulSetScale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	s := obj.(*appsv1.StatefulSet)
	return scaleOf(&s.ObjectMeta, s.Spec.Replicas, s.Status.Replicas, s.Spec.Selector)
}

func setStatefulSetScale(obj runtime.Object, scale *autoscalingv1.Scale) error {
	s := obj.(*appsv1.StatefulSet)
	replicas := scale.Spec.Replicas
	s.Spec.Replicas, s.ResourceVersion = &replicas, scale.ResourceVersion
	return nil
}

func replicationScale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	rc := obj.(*corev1.ReplicationController)
	return scaleOf(&rc.ObjectMeta, rc.Spec.Replicas, rc.Status.Replicas, &metav1.LabelSelector{MatchLabels: rc.Spec.Selector})
}

func setReplicationScale(obj runtime.Object, s *autoscalingv1.Scale) error {
	rc := obj.(*corev1.ReplicationController)
	replicas := s.Spec.Replicas
	rc.Spec.Replicas, rc.ResourceVersion = &replicas, s.ResourceVersion
	return nil
}
