package api

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilrand "k8s.io/apimachinery/pkg/util/rand"

	"conclave/api/kinds"
)

const (
	tokenMountPath = "/var/run/secrets/kubernetes.io/serviceaccount"
	rootCAName     = "kube-root-ca.crt"
	tokenVolume    = "kube-api-access-"
	// Somewhat more than an hour, by which clients recognise a token that was
	// mounted by default.
	mountedTokenSeconds = 3607
	// A new namespace gets its default service account from a controller, a
	// moment after itself.
	serviceAccountWait = 2 * time.Second
)

// namespaceTakes refuses an object whose namespace is not there or is going.
func (c *call) namespaceTakes(ctx context.Context, obj Object) error {
	if !c.res.Namespaced {
		return nil
	}
	name := obj.GetNamespace()
	rec := c.s.cfg.Storage.Get(namespaces.Resource, "", name)
	if rec == nil { // this replica may be behind
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return c.storageError(err)
		}
		if rec = c.s.cfg.Storage.Get(namespaces.Resource, "", name); rec == nil {
			return apierrors.NewNotFound(namespaces.GroupResource(), name)
		}
	}
	if rec.Object().GetDeletionTimestamp() == nil {
		return nil
	}
	err := apierrors.NewForbidden(c.res.gr(), obj.GetName(), fmt.Errorf("unable to create new content in namespace %s because it is being terminated", name))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{
		Type: namespaceTerminated, Message: fmt.Sprintf("namespace %s is being terminated", name), Field: "metadata.namespace",
	})
	return err
}

// admitNamespace keeps the label by which selectors find a namespace by name.
func admitNamespace(_ context.Context, _ *call, obj, _ Object) error {
	labels := obj.GetLabels()
	if labels[corev1.LabelMetadataName] == obj.GetName() || obj.GetName() == "" {
		return nil
	}
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = obj.GetName()
	obj.SetLabels(labels)
	return nil
}

// admitIngress gives a new Ingress that names no class the default one: of
// several the newest, as Kubernetes does.
func admitIngress(_ context.Context, c *call, obj, old Object) error {
	in, ok := obj.(*networkingv1.Ingress)
	if !ok || old != nil || kinds.NamesIngressClass(in) {
		return nil
	}
	var chosen *networkingv1.IngressClass
	records, _ := c.s.cfg.Storage.List(ingressClasses.GroupResource().String(), "")
	for _, rec := range records {
		class, ok := rec.Object().(*networkingv1.IngressClass)
		if !ok || !kinds.IsDefaultIngressClass(class) {
			continue
		}
		if chosen == nil || chosen.CreationTimestamp.Before(&class.CreationTimestamp) ||
			chosen.CreationTimestamp.Equal(&class.CreationTimestamp) && class.Name < chosen.Name {
			chosen = class
		}
	}
	if chosen != nil {
		name := chosen.Name
		in.Spec.IngressClassName = &name
	}
	return nil
}

// admitPod completes a new pod with what its namespace and cluster give it.
func admitPod(ctx context.Context, c *call, obj, old Object) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	if was, ok := old.(*corev1.Pod); ok {
		keepPriority(pod, was)
		return nil
	}
	if err := admitPriority(c, pod); err != nil {
		return err
	}
	if err := admitRuntimeClass(ctx, c, pod); err != nil {
		return err
	}
	addTolerations(pod, c.s.unreachableToleration)
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		return nil // it runs already, and as nobody
	}
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = "default"
	}
	pod.Spec.DeprecatedServiceAccount = pod.Spec.ServiceAccountName
	sa, err := c.serviceAccount(ctx, pod.Namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return err
	}
	if sa == nil {
		return forbiddenObject(c.res.gr(), pod.Name, fmt.Sprintf("error looking up service account %s/%s: serviceaccount %q not found",
			pod.Namespace, pod.Spec.ServiceAccountName, pod.Spec.ServiceAccountName))
	}
	c.fillLimits(pod)
	if len(pod.Spec.ImagePullSecrets) == 0 {
		pod.Spec.ImagePullSecrets = slices.Clone(sa.ImagePullSecrets)
	}
	if automounts(pod, sa) {
		mountToken(pod)
	}
	return c.checkLimits(pod)
}

func automounts(pod *corev1.Pod, sa *corev1.ServiceAccount) bool {
	if b := pod.Spec.AutomountServiceAccountToken; b != nil {
		return *b
	}
	return sa.AutomountServiceAccountToken == nil || *sa.AutomountServiceAccountToken
}

// serviceAccount finds a service account; for the default one it waits a
// moment, for the sake of a namespace that was made just now.
func (c *call) serviceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	st := c.s.cfg.Storage
	find := func() *corev1.ServiceAccount {
		if rec := st.Get(serviceAccounts.Resource, namespace, name); rec != nil {
			sa, _ := rec.Object().(*corev1.ServiceAccount)
			return sa
		}
		return nil
	}
	if sa := find(); sa != nil {
		return sa, nil
	}
	if err := st.Sync(ctx); err != nil {
		return nil, c.storageError(err)
	}
	_, w, err := st.ListAndWatch(serviceAccounts.Resource, namespace)
	if err != nil {
		return nil, c.storageError(err)
	}
	defer w.Stop()
	if name != "default" {
		return find(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, serviceAccountWait)
	defer cancel()
	for {
		if sa := find(); sa != nil {
			return sa, nil
		}
		if _, _, err := w.Next(ctx); err != nil {
			return find(), nil
		}
	}
}

// mountToken gives every container of a pod the token of its service account,
// unless it has something else mounted there.
func mountToken(pod *corev1.Pod) {
	name := tokenVolume + utilrand.String(5)
	i := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return strings.HasPrefix(v.Name, tokenVolume) })
	if i >= 0 { // it has one already: only what a webhook added lacks the mount
		name = pod.Spec.Volumes[i].Name
	}
	used := false
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			ct := &containers[i]
			if slices.ContainsFunc(ct.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == tokenMountPath }) {
				continue
			}
			ct.VolumeMounts = append(ct.VolumeMounts, corev1.VolumeMount{Name: name, ReadOnly: true, MountPath: tokenMountPath})
			used = true
		}
	}
	if !used || i >= 0 {
		return
	}
	seconds, mode := int64(mountedTokenSeconds), int32(0o644)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
			{ConfigMap: &corev1.ConfigMapProjection{
				LocalObjectReference: corev1.LocalObjectReference{Name: rootCAName},
				Items:                []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}},
			}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{
				Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.namespace"},
			}}}},
		},
	}}})
}

// notReadyStay is how long a pod that does not say otherwise stays on a node
// that says itself that it is not ready: Kubernetes' five minutes, because
// somebody is there, and the pod runs.
const notReadyStay = 5 * time.Minute

// addTolerations says how long a pod stays on a node that is not ready or that
// cannot be reached, where it does not say so itself.
func addTolerations(pod *corev1.Pod, unreachable func() time.Duration) {
	for _, taint := range []struct {
		key  string
		stay func() time.Duration
	}{{corev1.TaintNodeNotReady, func() time.Duration { return notReadyStay }}, {corev1.TaintNodeUnreachable, unreachable}} {
		if slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
			return (t.Key == taint.key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
		}) {
			continue
		}
		seconds := int64(taint.stay() / time.Second)
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
			Key: taint.key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
		})
	}
}
