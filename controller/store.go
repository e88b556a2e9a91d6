package controller

import (
	"context"
	"fmt"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
	"conclave/api/custom"
	"conclave/api/types"
)

// The resources that controllers speak of.
var (
	pods                   = corev1.SchemeGroupVersion.WithResource("pods")
	nodes                  = corev1.SchemeGroupVersion.WithResource("nodes")
	services               = corev1.SchemeGroupVersion.WithResource("services")
	endpoints              = corev1.SchemeGroupVersion.WithResource("endpoints")
	namespaces             = corev1.SchemeGroupVersion.WithResource("namespaces")
	configMaps             = corev1.SchemeGroupVersion.WithResource("configmaps")
	serviceAccounts        = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	events                 = corev1.SchemeGroupVersion.WithResource("events")
	deployments            = appsv1.SchemeGroupVersion.WithResource("deployments")
	replicaSets            = appsv1.SchemeGroupVersion.WithResource("replicasets")
	endpointSlices         = discoveryv1.SchemeGroupVersion.WithResource("endpointslices")
	statefulSets           = appsv1.SchemeGroupVersion.WithResource("statefulsets")
	revisions              = appsv1.SchemeGroupVersion.WithResource("controllerrevisions")
	claims                 = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumes                = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
	storageClasses         = storagev1.SchemeGroupVersion.WithResource("storageclasses")
	replicationControllers = corev1.SchemeGroupVersion.WithResource("replicationcontrollers")
	daemonSets             = appsv1.SchemeGroupVersion.WithResource("daemonsets")
	budgets                = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")
	definitions            = custom.Definitions
	autoscalers            = types.Autoscaling.WithResource("horizontalpodautoscalers")
	validatingPolicies     = types.Admission.WithResource("validatingadmissionpolicies")
	apiServices            = types.Registration.WithResource("apiservices")
	quotas                 = corev1.SchemeGroupVersion.WithResource("resourcequotas")
	jobs                   = batchv1.SchemeGroupVersion.WithResource("jobs")
	cronJobs               = batchv1.SchemeGroupVersion.WithResource("cronjobs")
	serviceCIDRs           = networkingv1.SchemeGroupVersion.WithResource("servicecidrs")
	ipAddresses            = networkingv1.SchemeGroupVersion.WithResource("ipaddresses")

	attachments = storagev1.SchemeGroupVersion.WithResource("volumeattachments")
	csiNodes    = storagev1.SchemeGroupVersion.WithResource("csinodes")
	csiDrivers  = storagev1.SchemeGroupVersion.WithResource("csidrivers")

	snapshots        = snapshotv1.SchemeGroupVersion.WithResource("volumesnapshots")
	snapshotContents = snapshotv1.SchemeGroupVersion.WithResource("volumesnapshotcontents")
	snapshotClasses  = snapshotv1.SchemeGroupVersion.WithResource("volumesnapshotclasses")

	signingRequests = types.Certificates.WithResource("certificatesigningrequests")
	clusterRoles    = rbacv1.SchemeGroupVersion.WithResource("clusterroles")

	flowSchemas    = types.FlowControl.WithResource("flowschemas")
	priorityLevels = types.FlowControl.WithResource("prioritylevelconfigurations")

	secrets = corev1.SchemeGroupVersion.WithResource("secrets") // read one by one, not kept

	needed = []schema.GroupVersionResource{
		pods, nodes, services, endpoints, namespaces, configMaps, serviceAccounts,
		events, deployments, replicaSets, endpointSlices,
		statefulSets, revisions, claims, volumes, storageClasses, attachments, csiNodes, csiDrivers,
		serviceCIDRs, ipAddresses, replicationControllers, daemonSets, budgets, jobs, cronJobs, quotas, definitions,
		snapshots, snapshotContents, snapshotClasses, signingRequests, clusterRoles, apiServices, flowSchemas, priorityLevels, autoscalers, validatingPolicies,
	}
)

// Names of the cache's indexes.
const (
	podsByNode          = "node"     // pods by spec.nodeName
	orphans             = "orphans"  // pods, ReplicaSets and revisions without a controller, by namespace
	servicesBalanced    = "balanced" // services that the built-in load balancer looks after, under ""
	slicesByService     = "service"  // EndpointSlices by namespace/name of their service
	podsByClaim         = "claim"    // pods by namespace/name of the claims that they use
	volumesByClaim      = "claim"    // persistent volumes by namespace/name of claimRef
	volumesByNode       = "node"     // persistent volumes by the node that keeps them
	attachmentsByNode   = "node"     // VolumeAttachments by spec.nodeName
	attachmentsByVolume = "volume"   // VolumeAttachments by their volume
	claimsBySource      = "source"   // claims by sourceKey of what their volumes begin with
	snapshotsByClaim    = "claim"    // VolumeSnapshots by namespace/name of the claim that they are of
)

func addIndexes(c *cache) {
	c.addIndex(pods, podsByNode, func(o api.Object) []string {
		return []string{o.(*corev1.Pod).Spec.NodeName}
	})
	orphan := func(o api.Object) []string {
		if metav1.GetControllerOfNoCopy(o) != nil {
			return nil
		}
		return []string{o.GetNamespace()}
	}
	c.addIndex(pods, orphans, orphan)
	c.addIndex(replicaSets, orphans, orphan)
	c.addIndex(revisions, orphans, orphan)
	c.addIndex(pods, podsByClaim, func(o api.Object) (keys []string) {
		for _, name := range api.ClaimNames(o.(*corev1.Pod)) {
			keys = append(keys, o.GetNamespace()+"/"+name)
		}
		return keys
	})
	c.addIndex(volumes, volumesByClaim, func(o api.Object) []string {
		if ref := o.(*corev1.PersistentVolume).Spec.ClaimRef; ref != nil {
			return []string{ref.Namespace + "/" + ref.Name}
		}
		return nil
	})
	c.addIndex(volumes, volumesByNode, func(o api.Object) []string {
		if node := o.GetLabels()[api.LabelVolumeNode]; node != "" {
			return []string{node}
		}
		return nil
	})
	c.addIndex(services, servicesBalanced, func(o api.Object) []string {
		if api.OwnLoadBalancer(o.(*corev1.Service)) {
			return []string{""}
		}
		return nil
	})
	c.addIndex(attachments, attachmentsByNode, func(o api.Object) []string {
		return []string{o.(*storagev1.VolumeAttachment).Spec.NodeName}
	})
	c.addIndex(attachments, attachmentsByVolume, func(o api.Object) []string {
		if name := o.(*storagev1.VolumeAttachment).Spec.Source.PersistentVolumeName; name != nil {
			return []string{*name}
		}
		return nil
	})
	c.addIndex(claims, claimsBySource, func(o api.Object) []string {
		s := o.(*corev1.PersistentVolumeClaim).Spec.DataSource
		if s == nil {
			return nil
		}
		group := ""
		if s.APIGroup != nil {
			group = *s.APIGroup
		}
		return []string{sourceKey(group, s.Kind, o.GetNamespace(), s.Name)}
	})
	c.addIndex(snapshots, snapshotsByClaim, func(o api.Object) []string {
		if name := o.(*snapshotv1.VolumeSnapshot).Spec.Source.PersistentVolumeClaimName; name != nil {
			return []string{o.GetNamespace() + "/" + *name}
		}
		return nil
	})
	c.addIndex(endpointSlices, slicesByService, func(o api.Object) []string {
		if name := o.GetLabels()[discoveryv1.LabelServiceName]; name != "" {
			return []string{o.GetNamespace() + "/" + name}
		}
		return nil
	})
}

// store is how controllers write. Whatever a write made is in the cache, and
// the controllers told of it, before the call returns.
type store struct {
	client  api.Client
	cache   *cache
	changed func(schema.GroupVersionResource, []Change)
}

func (s *store) learn(r schema.GroupVersionResource, o api.Object) {
	s.changed(r, s.cache.apply(r, o, false))
}

func (s *store) create(ctx context.Context, r schema.GroupVersionResource, o api.Object) (api.Object, error) {
	made, err := s.client.Create(ctx, r, o.GetNamespace(), o.GetName(), o, metav1.CreateOptions{})
	if err != nil {
		name := o.GetName()
		if name == "" {
			name = o.GetGenerateName() + "*"
		}
		return nil, fmt.Errorf("create %s %s: %w", r.Resource, name, err)
	}
	s.learn(r, made)
	return made, nil
}

// update writes a changed copy; its resourceVersion guards against changes
// made since it was read.
func (s *store) update(ctx context.Context, r schema.GroupVersionResource, o api.Object, subresource ...string) (api.Object, error) {
	made, err := s.client.Update(ctx, r, o.GetNamespace(), o, metav1.UpdateOptions{}, subresource...)
	if err != nil {
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			// The cache was behind: fetch what made us fail, so that the next
			// try does not fail alike.
			s.refresh(ctx, r, o)
		}
		return nil, fmt.Errorf("update %s %s: %w", r.Resource, keyOf(o), err)
	}
	if made.GetUID() == o.GetUID() { // not a Scale or the like
		s.learn(r, made)
	}
	return made, nil
}

// delete deletes the very object that was looked at. That it is gone already
// is no error.
func (s *store) delete(ctx context.Context, r schema.GroupVersionResource, o api.Object, options metav1.DeleteOptions) error {
	uid := o.GetUID()
	if options.Preconditions == nil {
		options.Preconditions = &metav1.Preconditions{}
	}
	options.Preconditions.UID = &uid
	err := s.client.Delete(ctx, r, o.GetNamespace(), o.GetName(), options)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		gone := s.refresh(ctx, r, o)
		if gone {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", r.Resource, keyOf(o), err)
	}
	return nil
}

// refresh brings one object of the cache up to the store, and says whether the
// object of that UID is gone.
func (s *store) refresh(ctx context.Context, r schema.GroupVersionResource, o api.Object) (gone bool) {
	now, err := s.peek(ctx, r, o.GetNamespace(), o.GetName())
	switch {
	case err != nil:
		return false
	case now == nil || now.GetUID() != o.GetUID():
		s.changed(r, s.cache.remove(r, o, false))
		if now != nil {
			s.learn(r, now)
		}
		return true
	default:
		s.learn(r, now)
		return false
	}
}

// peek reads this process's own replica: it has everything that was written
// before anything that the cache shows. nil means that there is none.
func (s *store) peek(ctx context.Context, r schema.GroupVersionResource, namespace, name string) (api.Object, error) {
	o, err := s.client.Get(ctx, r, namespace, name, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", r.Resource, namespace, name, err)
	}
	return o, nil
}

// edit returns a deep copy to be changed.
func edit[T api.Object](o T) T { return o.DeepCopyObject().(T) }
