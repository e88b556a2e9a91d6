package kinds

import (
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
)

// Builtin returns the rows of the kinds that Conclave has without custom
// resources, in the order in which discovery lists them. Each call makes new
// rows; call it once.
func Builtin() []*Kind {
	rows := []*Kind{
		{
			GVK: corev1.SchemeGroupVersion.WithKind("ConfigMap"), Plural: "configmaps", ShortNames: []string{"cm"}, Namespaced: true,
			New: empty[corev1.ConfigMap], NewList: empty[corev1.ConfigMapList],
			Validate: check(validateConfigMap), ValidateUpdate: checkTwo(validateConfigMapUpdate),
			Columns: configMapColumns, Cells: cells(configMapCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Endpoints"), Plural: "endpoints", ShortNames: []string{"ep"}, Namespaced: true,
			New: empty[corev1.Endpoints], NewList: empty[corev1.EndpointsList],
			Default: one(defaultEndpoints), Validate: check(validateEndpoints), ValidateUpdate: checkTwo(validateEndpointsUpdate),
			Columns: endpointsColumns, Cells: cells(endpointsCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Event"), Plural: "events", ShortNames: []string{"ev"}, Namespaced: true,
			New: empty[corev1.Event], NewList: empty[corev1.EventList],
			Validate: check(validateCoreEvent), ValidateUpdate: checkTwo(validateCoreEventUpdate),
			FieldNames: coreEventFieldNames, Fields: selectable(coreEventFields),
			Columns: eventColumns, Cells: cells(coreEventCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Namespace"), Plural: "namespaces", ShortNames: []string{"ns"},
			New: empty[corev1.Namespace], NewList: empty[corev1.NamespaceList], Status: true,
			Default:          one(defaultNamespace),
			PrepareForCreate: one(prepareNamespaceCreate), PrepareForUpdate: two(prepareNamespaceUpdate),
			PrepareForStatusUpdate: two(func(ns, old *corev1.Namespace) { ns.Spec = old.Spec }),
			Validate:               check(validateNamespace), ValidateUpdate: checkTwo(validateNamespaceUpdate), ValidateStatusUpdate: checkTwo(validateNamespaceStatus),
			FieldNames: []string{"status.phase", "name"},
			Fields: selectable(func(ns *corev1.Namespace) fields.Set {
				return fields.Set{"status.phase": string(ns.Status.Phase), "name": ns.Name}
			}),
			Columns: namespaceColumns, Cells: cells(namespaceCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Node"), Plural: "nodes", ShortNames: []string{"no"},
			New: empty[corev1.Node], NewList: empty[corev1.NodeList], Status: true,
			Default:                one(defaultNode),
			PrepareForUpdate:       two(func(node, old *corev1.Node) { node.Status = old.Status }),
			PrepareForStatusUpdate: two(func(node, old *corev1.Node) { node.Spec = old.Spec }),
			Validate:               check(validateNode), ValidateUpdate: checkTwo(validateNodeUpdate),
			Warnings:   warn(nodeWarnings),
			FieldNames: []string{"spec.unschedulable"},
			Fields: selectable(func(node *corev1.Node) fields.Set {
				return fields.Set{"spec.unschedulable": strconv.FormatBool(node.Spec.Unschedulable)}
			}),
			Columns: nodeColumns, Cells: cells(nodeCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"), Plural: "persistentvolumeclaims", ShortNames: []string{"pvc"}, Namespaced: true,
			New: empty[corev1.PersistentVolumeClaim], NewList: empty[corev1.PersistentVolumeClaimList], Status: true,
			Default: one(defaultClaim),
			PrepareForCreate: one(func(c *corev1.PersistentVolumeClaim) {
				c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			}),
			PrepareForUpdate:       two(func(c, old *corev1.PersistentVolumeClaim) { c.Status = old.Status }),
			PrepareForStatusUpdate: two(func(c, old *corev1.PersistentVolumeClaim) { c.Spec = old.Spec }),
			Validate:               check(validateClaim), ValidateUpdate: checkTwo(validateClaimUpdate), ValidateStatusUpdate: checkTwo(validateClaimStatus),
			Warnings: warn(claimWarnings),
			Columns:  claimColumns, Cells: cells(claimCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("PersistentVolume"), Plural: "persistentvolumes", ShortNames: []string{"pv"},
			New: empty[corev1.PersistentVolume], NewList: empty[corev1.PersistentVolumeList], Status: true,
			Default:                one(defaultVolumeObject),
			PrepareForCreate:       one(prepareVolumeCreate),
			PrepareForUpdate:       two(func(v, old *corev1.PersistentVolume) { v.Status = old.Status }),
			PrepareForStatusUpdate: two(func(v, old *corev1.PersistentVolume) { v.Spec = old.Spec }),
			Validate:               check(validateVolume), ValidateUpdate: checkTwo(validateVolumeUpdate), ValidateStatusUpdate: checkTwo(validateVolumeStatus),
			Warnings: warn(volumeWarnings),
			Columns:  volumeColumns, Cells: cells(volumeCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Pod"), Plural: "pods", ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true,
			New: empty[corev1.Pod], NewList: empty[corev1.PodList], Status: true,
			Default:          one(defaultPod),
			PrepareForCreate: one(preparePodCreate), PrepareForUpdate: two(preparePodUpdate), PrepareForStatusUpdate: two(preparePodStatusUpdate),
			Validate: check(validatePod), ValidateUpdate: checkTwo(validatePodUpdate), ValidateStatusUpdate: checkTwo(validatePodStatusUpdate),
			Subs: []Sub{
				{Name: "ephemeralcontainers", Prepare: two(prepareEphemeralContainers), Validate: checkTwo(validateEphemeralContainers)},
				{Name: "resize", Prepare: two(preparePodResize), Validate: checkTwo(validatePodResize)},
			},
			Warnings: warn(podWarnings), FieldNames: podFieldNames, Fields: selectable(podFields),
			Columns: podColumns, Cells: cells(podCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Secret"), Plural: "secrets", Namespaced: true,
			New: empty[corev1.Secret], NewList: empty[corev1.SecretList],
			Default: one(defaultSecret), Validate: check(validateSecret), ValidateUpdate: checkTwo(validateSecretUpdate), Warnings: warn(secretWarnings),
			FieldNames: []string{"type"},
			Fields:     selectable(func(s *corev1.Secret) fields.Set { return fields.Set{"type": string(s.Type)} }),
			Columns:    secretColumns, Cells: cells(secretCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("ServiceAccount"), Plural: "serviceaccounts", ShortNames: []string{"sa"}, Namespaced: true,
			New: empty[corev1.ServiceAccount], NewList: empty[corev1.ServiceAccountList],
			Validate: check(validateServiceAccount), ValidateUpdate: checkTwo(validateServiceAccountUpdate),
			Columns: serviceAccountColumns, Cells: cells(serviceAccountCells),
		},
		{
			GVK: corev1.SchemeGroupVersion.WithKind("Service"), Plural: "services", ShortNames: []string{"svc"}, Categories: []string{"all"}, Namespaced: true,
			New: empty[corev1.Service], NewList: empty[corev1.ServiceList], Status: true,
			Default:          one(defaultService),
			PrepareForCreate: one(prepareServiceCreate), PrepareForUpdate: two(prepareServiceUpdate),
			PrepareForStatusUpdate: two(func(svc, old *corev1.Service) { svc.Spec = old.Spec }),
			Validate:               check(validateService), ValidateUpdate: checkTwo(validateServiceUpdate), ValidateStatusUpdate: checkTwo(validateServiceStatus),
			Warnings:   warn(serviceWarnings),
			FieldNames: []string{"spec.clusterIP", "spec.type"},
			Fields: selectable(func(svc *corev1.Service) fields.Set {
				return fields.Set{"spec.clusterIP": svc.Spec.ClusterIP, "spec.type": string(svc.Spec.Type)}
			}),
			Columns: serviceColumns, Cells: cells(serviceCells),
		},
		{
			GVK: appsv1.SchemeGroupVersion.WithKind("Deployment"), Plural: "deployments", ShortNames: []string{"deploy"}, Categories: []string{"all"}, Namespaced: true,
			New: empty[appsv1.Deployment], NewList: empty[appsv1.DeploymentList], Status: true,
			GetScale: deploymentScale, SetScale: setDeploymentScale,
			Default:                one(defaultDeployment),
			PrepareForCreate:       one(func(d *appsv1.Deployment) { d.Status, d.Generation = appsv1.DeploymentStatus{}, 1 }),
			PrepareForUpdate:       two(prepareDeploymentUpdate),
			PrepareForStatusUpdate: two(func(d, old *appsv1.Deployment) { d.Spec, d.Labels = old.Spec, old.Labels }),
			Validate:               check(judgeDeployment.create), ValidateUpdate: checkTwo(judgeDeployment.update), ValidateStatusUpdate: checkTwo(validateDeploymentStatus),
			Warnings: warn(deploymentWarnings),
			Columns:  deploymentColumns, Cells: cells(deploymentCells),
		},
		{
			GVK: appsv1.SchemeGroupVersion.WithKind("ReplicaSet"), Plural: "replicasets", ShortNames: []string{"rs"}, Categories: []string{"all"}, Namespaced: true,
			New: empty[appsv1.ReplicaSet], NewList: empty[appsv1.ReplicaSetList], Status: true,
			GetScale: replicaSetScale, SetScale: setReplicaSetScale,
			Default:                one(defaultReplicaSet),
			PrepareForCreate:       one(func(rs *appsv1.ReplicaSet) { rs.Status, rs.Generation = appsv1.ReplicaSetStatus{}, 1 }),
			PrepareForUpdate:       two(prepareReplicaSetUpdate),
			PrepareForStatusUpdate: two(func(rs, old *appsv1.ReplicaSet) { rs.Spec = old.Spec }),
			Validate:               check(judgeReplicaSet.create), ValidateUpdate: checkTwo(judgeReplicaSet.update), ValidateStatusUpdate: checkTwo(validateReplicaSetStatus),
			Warnings:   warn(replicaSetWarnings),
			FieldNames: []string{"status.replicas"},
			Fields: selectable(func(rs *appsv1.ReplicaSet) fields.Set {
				return fields.Set{"status.replicas": strconv.Itoa(int(rs.Status.Replicas))}
			}),
			Columns: replicaSetColumns, Cells: cells(replicaSetCells),
		},
		{
			GVK: appsv1.SchemeGroupVersion.WithKind("StatefulSet"), Plural: "statefulsets", ShortNames: []string{"sts"}, Categories: []string{"all"}, Namespaced: true,
			New: empty[appsv1.StatefulSet], NewList: empty[appsv1.StatefulSetList], Status: true,
			GetScale: statefulSetScale, SetScale: setStatefulSetScale,
			Default:                one(defaultStatefulSet),
			PrepareForCreate:       one(func(s *appsv1.StatefulSet) { s.Status, s.Generation = appsv1.StatefulSetStatus{}, 1 }),
			PrepareForUpdate:       two(prepareStatefulSetUpdate),
			PrepareForStatusUpdate: two(func(s, old *appsv1.StatefulSet) { s.Spec = old.Spec }),
			Validate:               check(validateStatefulSet), ValidateUpdate: checkTwo(validateStatefulSetUpdate), ValidateStatusUpdate: checkTwo(validateStatefulSetStatus),
			Warnings: warn(statefulSetWarnings),
			Columns:  statefulSetColumns, Cells: cells(statefulSetCells),
		},
		{
			GVK: appsv1.SchemeGroupVersion.WithKind("ControllerRevision"), Plural: "controllerrevisions", Namespaced: true,
			New: empty[appsv1.ControllerRevision], NewList: empty[appsv1.ControllerRevisionList],
			Validate: check(validateControllerRevision), ValidateUpdate: checkTwo(validateControllerRevisionUpdate),
			Columns: controllerRevisionColumns, Cells: cells(controllerRevisionCells),
		},
		{
			GVK: coordinationv1.SchemeGroupVersion.WithKind("Lease"), Plural: "leases", Namespaced: true,
			New: empty[coordinationv1.Lease], NewList: empty[coordinationv1.LeaseList],
			Validate: check(validateLease), ValidateUpdate: checkTwo(validateLeaseUpdate),
			Columns: leaseColumns, Cells: cells(leaseCells),
		},
		{
			GVK: discoveryv1.SchemeGroupVersion.WithKind("EndpointSlice"), Plural: "endpointslices", Namespaced: true,
			New: empty[discoveryv1.EndpointSlice], NewList: empty[discoveryv1.EndpointSliceList],
			Default:          one(defaultEndpointSlice),
			PrepareForCreate: one(func(s *discoveryv1.EndpointSlice) { s.Generation = 1 }),
			PrepareForUpdate: two(prepareEndpointSliceUpdate),
			Validate:         check(validateEndpointSlice), ValidateUpdate: checkTwo(validateEndpointSliceUpdate),
			Columns: endpointSliceColumns, Cells: cells(endpointSliceCells),
		},
		{
			GVK: eventsv1.SchemeGroupVersion.WithKind("Event"), Plural: "events", ShortNames: []string{"ev"}, Namespaced: true,
			New: empty[eventsv1.Event], NewList: empty[eventsv1.EventList],
			Stored: "events", ToStored: eventToCore, FromStored: eventFromCore,
			Validate: check(validateEvent), ValidateUpdate: checkTwo(validateEventUpdate),
			FieldNames: eventFieldNames, Fields: selectable(eventFields),
			Columns: eventColumns, Cells: cells(eventCells),
		},
		{
			GVK: networkingv1.SchemeGroupVersion.WithKind("IPAddress"), Plural: "ipaddresses", ShortNames: []string{"ip"},
			New: empty[networkingv1.IPAddress], NewList: empty[networkingv1.IPAddressList],
			Validate: check(validateIPAddress), ValidateUpdate: checkTwo(validateIPAddressUpdate),
			Columns: ipAddressColumns, Cells: cells(ipAddressCells),
		},
		{
			GVK: networkingv1.SchemeGroupVersion.WithKind("NetworkPolicy"), Plural: "networkpolicies", ShortNames: []string{"netpol"}, Namespaced: true,
			New: empty[networkingv1.NetworkPolicy], NewList: empty[networkingv1.NetworkPolicyList],
			Default:          one(defaultNetworkPolicy),
			PrepareForCreate: one(func(n *networkingv1.NetworkPolicy) { n.Generation = 1 }),
			PrepareForUpdate: two(func(n, old *networkingv1.NetworkPolicy) { countGeneration(n, &n.Spec, &old.Spec) }),
			Validate:         check(validateNetworkPolicy), ValidateUpdate: checkTwo(validateNetworkPolicyUpdate),
			Warnings: warn(networkPolicyWarnings),
			Columns:  networkPolicyColumns, Cells: cells(networkPolicyCells),
		},
		{
			GVK: storagev1.SchemeGroupVersion.WithKind("CSIDriver"), Plural: "csidrivers",
			New: empty[storagev1.CSIDriver], NewList: empty[storagev1.CSIDriverList],
			Default: one(defaultCSIDriver), PrepareForCreate: one(func(d *storagev1.CSIDriver) { d.Generation = 1 }),
			PrepareForUpdate: two(func(d, old *storagev1.CSIDriver) { countGeneration(d, &d.Spec, &old.Spec) }),
			Validate:         check(validateCSIDriver), ValidateUpdate: checkTwo(validateCSIDriverUpdate),
			Columns: csiDriverColumns, Cells: cells(csiDriverCells),
		},
		{
			GVK: storagev1.SchemeGroupVersion.WithKind("CSINode"), Plural: "csinodes",
			New: empty[storagev1.CSINode], NewList: empty[storagev1.CSINodeList], Status: true,
			PrepareForCreate:       one(func(n *storagev1.CSINode) { n.Status = storagev1.CSINodeStatus{} }),
			PrepareForUpdate:       two(func(n, old *storagev1.CSINode) { n.Status = old.Status }),
			PrepareForStatusUpdate: two(func(n, old *storagev1.CSINode) { n.Spec = old.Spec }),
			Validate:               check(validateCSINode), ValidateUpdate: checkTwo(validateCSINodeUpdate),
			Columns: csiNodeColumns, Cells: cells(csiNodeCells),
		},
		{
			GVK: storagev1.SchemeGroupVersion.WithKind("CSIStorageCapacity"), Plural: "csistoragecapacities", Namespaced: true,
			New: empty[storagev1.CSIStorageCapacity], NewList: empty[storagev1.CSIStorageCapacityList],
			Validate: check(validateCapacity), ValidateUpdate: checkTwo(validateCapacityUpdate),
			Columns: capacityColumns, Cells: cells(capacityCells),
		},
		{
			GVK: nodev1.SchemeGroupVersion.WithKind("RuntimeClass"), Plural: "runtimeclasses",
			New: empty[nodev1.RuntimeClass], NewList: empty[nodev1.RuntimeClassList],
			Validate: check(validateRuntimeClass), ValidateUpdate: checkTwo(validateRuntimeClassUpdate),
			Columns: runtimeClassColumns, Cells: cells(runtimeClassCells),
		},
		{
			GVK: storagev1.SchemeGroupVersion.WithKind("StorageClass"), Plural: "storageclasses", ShortNames: []string{"sc"},
			New: empty[storagev1.StorageClass], NewList: empty[storagev1.StorageClassList],
			Default: one(defaultStorageClass), Validate: check(validateStorageClass), ValidateUpdate: checkTwo(validateStorageClassUpdate),
			Columns: storageClassColumns, Cells: cells(storageClassCells),
		},
		{
			GVK: storagev1.SchemeGroupVersion.WithKind("VolumeAttachment"), Plural: "volumeattachments",
			New: empty[storagev1.VolumeAttachment], NewList: empty[storagev1.VolumeAttachmentList], Status: true,
			PrepareForCreate:       one(func(a *storagev1.VolumeAttachment) { a.Status = storagev1.VolumeAttachmentStatus{} }),
			PrepareForUpdate:       two(func(a, old *storagev1.VolumeAttachment) { a.Status = old.Status }),
			PrepareForStatusUpdate: two(func(a, old *storagev1.VolumeAttachment) { a.Spec = old.Spec }),
			Validate:               check(validateAttachment), ValidateUpdate: checkTwo(validateAttachmentUpdate),
			Columns: attachmentColumns, Cells: cells(attachmentCells),
		},
		{
			GVK: storagev1.SchemeGroupVersion.WithKind("VolumeAttributesClass"), Plural: "volumeattributesclasses", ShortNames: []string{"vac"},
			New: empty[storagev1.VolumeAttributesClass], NewList: empty[storagev1.VolumeAttributesClassList],
			Validate: check(validateAttributesClass), ValidateUpdate: checkTwo(validateAttributesClassUpdate),
			Columns: attributesClassColumns, Cells: cells(attributesClassCells),
		},
	}
	rows = slices.Concat(rows, storedRows(), workloadRows(), autoscalingRows(), policyRows(), admissionRows(), admissionPolicyRows(), certificateRows(), registrationRows(), snapshotRows(), rbacRows(), flowRows())
	for _, k := range rows {
		k.Complete()
	}
	return rows
}

// empty returns a new, empty T as an object.
func empty[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}
