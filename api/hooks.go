package api

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// hooks is what a kind needs beyond its row because it depends on other
// objects: admission and allocation. Each may be nil.
type hooks struct {
	// admit completes or refuses what a writer asks for; old is nil at creation.
	admit func(ctx context.Context, c *call, obj, old Object) error
	// admitStatus is admit of an update of the status.
	admitStatus func(ctx context.Context, c *call, obj, old Object) error
	// complete has the last word on a new object, after webhooks.
	complete func(c *call, obj Object) error
	// permit refuses an object, as it is going to be, that would give away what
	// its writer does not have; old is nil at creation.
	permit func(ctx context.Context, c *call, obj, old Object) error
	// reserve takes what the object needs for itself alone. undo is told how
	// the write ended.
	reserve func(ctx context.Context, c *call, obj, old Object) (undo func(error), err error)
	// deleted gives it back.
	deleted func(ctx context.Context, c *call, old Object)
	// memory lists the objects of a namespace ("" for all) that are not stored.
	memory func(s *Server, namespace string) []Record
	// answersDeleted says that a deletion is answered with the object instead
	// of a Status. Clients know which kinds do.
	answersDeleted bool
}

var (
	namespaces      = corev1.SchemeGroupVersion.WithResource("namespaces")
	nodes           = corev1.SchemeGroupVersion.WithResource("nodes")
	pods            = corev1.SchemeGroupVersion.WithResource("pods")
	services        = corev1.SchemeGroupVersion.WithResource("services")
	secrets         = corev1.SchemeGroupVersion.WithResource("secrets")
	configMaps      = corev1.SchemeGroupVersion.WithResource("configmaps")
	serviceAccounts = corev1.SchemeGroupVersion.WithResource("serviceaccounts")
	volumeClaims    = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumes         = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
	storageClasses  = storagev1.SchemeGroupVersion.WithResource("storageclasses")
	attachments     = storagev1.SchemeGroupVersion.WithResource("volumeattachments")
	csiNodes        = storagev1.SchemeGroupVersion.WithResource("csinodes")
	csiDrivers      = storagev1.SchemeGroupVersion.WithResource("csidrivers")
	podTemplates    = corev1.SchemeGroupVersion.WithResource("podtemplates")
	ingresses       = networkingv1.SchemeGroupVersion.WithResource("ingresses")
	ingressClasses  = networkingv1.SchemeGroupVersion.WithResource("ingressclasses")
	priorityClasses = schedulingv1.SchemeGroupVersion.WithResource("priorityclasses")
	budgets         = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")
	limitRangeKind  = corev1.SchemeGroupVersion.WithResource("limitranges")
	resourceQuotas  = corev1.SchemeGroupVersion.WithResource("resourcequotas")
	leases          = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}

	deviceClasses          = resourcev1.SchemeGroupVersion.WithResource("deviceclasses")
	resourceClaims         = resourcev1.SchemeGroupVersion.WithResource("resourceclaims")
	resourceClaimTemplates = resourcev1.SchemeGroupVersion.WithResource("resourceclaimtemplates")
	resourceSlices         = resourcev1.SchemeGroupVersion.WithResource("resourceslices")
)

func hooksOf(r *resource) hooks {
	switch r.gvr {
	case pods:
		return hooks{admit: admitPod, answersDeleted: true}
	case services:
		return hooks{admit: admitService, reserve: reserveService, deleted: releaseService, answersDeleted: true}
	case namespaces:
		return hooks{admit: admitNamespace}
	case volumeClaims:
		return hooks{admit: admitClaim, answersDeleted: true}
	case volumes:
		return hooks{admit: admitVolume, answersDeleted: true}
	case storageClasses, attachments, csiNodes, csiDrivers, storagev1.SchemeGroupVersion.WithResource("volumeattributesclasses"):
		return hooks{answersDeleted: true}
	case priorityClasses:
		return hooks{admit: admitPriorityClass}
	case ingresses:
		return hooks{admit: admitIngress}
	case podTemplates, resourceQuotas, deviceClasses, resourceClaims, resourceClaimTemplates, resourceSlices:
		return hooks{answersDeleted: true}
	case serviceAccounts:
		return hooks{answersDeleted: true}
	case signingRequests:
		return hooks{admit: admitApproval, admitStatus: admitSigning, complete: completeRequest}
	case roles, clusterRoles:
		return hooks{permit: permitRole}
	case roleBindings, clusterRoleBindings:
		return hooks{permit: permitBinding}
	case validatingPolicies, mutatingPolicies:
		return hooks{permit: permitPolicy}
	case validatingBindings, mutatingBindings:
		return hooks{permit: permitPolicyBinding}
	case apiServices:
		return hooks{admit: admitAPIService}
	case leases:
		return hooks{admit: admitLease, memory: nodeLeases}
	}
	return hooks{}
}

// Namespaces that every cluster has, and those of them that must stay.
var (
	systemNamespaces    = []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}
	immortalNamespaces  = systemNamespaces[:3]
	errNamespaceStays   = "this namespace may not be deleted"
	namespaceTerminated = metav1.CauseType(corev1.NamespaceTerminatingCause)
)

// mayRemove refuses the deletion of what must stay.
func (c *call) mayRemove(_ context.Context, old Object, _ metav1.DeleteOptions) error {
	if c.res.gvr == priorityClasses {
		return mayRemoveClass(c, old)
	}
	if c.res.gvr == namespaces {
		for _, name := range immortalNamespaces {
			if old.GetName() == name {
				return forbiddenObject(c.res.gr(), name, errNamespaceStays)
			}
		}
	}
	return nil
}

func forbiddenObject(r schema.GroupResource, name, why string) error {
	return apierrors.NewForbidden(r, name, textError(why))
}

// textError is an error that is only its text.
type textError string

func (e textError) Error() string { return string(e) }
