package kinds

import (
	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Builtin returns the rows of the kinds that Conclave has without custom
// resources, in the order in which discovery lists them. Each call makes new
// rows; call it once.
func Builtin() []*Kind {
	rows := []*Kind{
		{
			GVK: corev1.SchemeGroupVersion.WithKind("ConfigMap"), Plural: "configmaps", ShortNames: []string{"cm"}, Namespaced: true,
			New: make1[corev1.ConfigMap], NewList: make1[corev1.ConfigMapList],
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Endpoints"), Plural: "endpoints", ShortNames: []string{"ep"}, Namespaced: true,
			New: make1[corev1.Endpoints], NewList: make1[corev1.EndpointsList],
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Event"), Plural: "events", ShortNames: []string{"ev"}, Namespaced: true,
			New: make1[corev1.Event], NewList: make1[corev1.EventList],
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Namespace"), Plural: "namespaces", ShortNames: []string{"ns"},
			New: make1[corev1.Namespace], NewList: make1[corev1.NamespaceList], Status: true,
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Node"), Plural: "nodes", ShortNames: []string{"no"},
			New: make1[corev1.Node], NewList: make1[corev1.NodeList], Status: true,
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Plural: "pods", ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true,
			New: make1[corev1.Pod], NewList: make1[corev1.PodList], Status: true,
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Secret"), Plural: "secrets", Namespaced: true,
			New: make1[corev1.Secret], NewList: make1[corev1.SecretList],
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("ServiceAccount"), Plural: "serviceaccounts", ShortNames: []string{"sa"}, Namespaced: true,
			New: make1[corev1.ServiceAccount], NewList: make1[corev1.ServiceAccountList],
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Service"), Plural: "services", ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true,
			New: make1[corev1.Service], NewList: make1[corev1.ServiceList], Status: true,
		},
		{
			GVK: appsv1.SchemeGroupVersion.WithKind("Deployment"), Plural: "deployments", ShortNames: []string{"deploy"}, Categories: []string{"all"}, Namespaced: true,
			New: make1[appsv1.Deployment], NewList: make1[appsv1.DeploymentList], Status: true,
		},
		{
			GVK: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), Plural: "replicasets", ShortNames: []string{"rs"}, Categories: []string{"all"}, Namespaced: true,
			New: make1[appsv1.ReplicaSet], NewList: make1[appsv1.ReplicaSetList], Status: true,
		},
		{
			GVK: coordinationv1.SchemeGroupVersion.WithKind("Lease"), Plural: "leases", Namespaced: true,
			New: make1[coordinationv1.Lease], NewList: make1[coordinationv1.LeaseList],
		},
		{
			GVK: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), Plural: "endpointslices", Namespaced: true,
			New: make1[discoveryv1.EndpointSlice], NewList: make1[discoveryv1.EndpointSliceList],
		},
		{
			GVK: eventsv1.SchemeGroupVersion.WithKind("Event"), Plural: "events", ShortNames: []string{"ev"}, Namespaced: true,
			New: make1[eventsv1.Event], NewList: make1[eventsv1.EventList],
			Stored: "events",
		},
		{
			GVK: networkingv1.SchemeGroupVersion.WithKind("IPAddress"), Plural: "ipaddresses", ShortNames: []string{"ip"},
			New: make1[networkingv1.IPAddress], NewList: make1[networkingv1.IPAddressList],
		},
	}
	for _, k := range rows {
		k.complete()
	}
	return rows
}

// make1 returns a new, empty T as an object.
func make1[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}
