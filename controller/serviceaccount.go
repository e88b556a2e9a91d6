package controller

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"conclave/api"
)

// What every namespace has.
const (
	defaultAccount = "default"
	rootCAName     = "kube-root-ca.crt"
	rootCAKey      = "ca.crt"
)

// newServiceAccounts keeps the account "default" in each namespace.
func newServiceAccounts(e *env) *Controller {
	return perNamespace(e, "serviceaccount", serviceAccounts, defaultAccount,
		func(o api.Object) (api.Object, bool) {
			if o != nil {
				return o, false
			}
			return &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}}, true
		})
}

// newRootCA keeps the cluster's CA in each namespace, for pods to trust the
// API server by. Whoever changes it is corrected.
func newRootCA(e *env) *Controller {
	return perNamespace(e, "root-ca-publisher", configMaps, rootCAName,
		func(o api.Object) (api.Object, bool) {
			ca := string(e.RootCA())
			if ca == "" {
				return o, false
			}
			current, _ := o.(*corev1.ConfigMap)
			if current != nil && len(current.Data) == 1 && current.Data[rootCAKey] == ca && len(current.BinaryData) == 0 {
				return o, false
			}
			want := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}}
			if current != nil {
				want = edit(current)
			}
			want.Data, want.BinaryData = map[string]string{rootCAKey: ca}, nil
			if want.Annotations == nil {
				want.Annotations = map[string]string{}
			}
			want.Annotations["kubernetes.io/description"] = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. " +
				"No other usage is guaranteed across distributions of Kubernetes clusters."
			return want, true
		})
}

// perNamespace keeps one object of a fixed name in every namespace that is not
// being deleted. want returns what it should be, given what it is or nil, and
// whether that has to be written.
func perNamespace(e *env, controller string, r schema.GroupVersionResource, name string, want func(api.Object) (api.Object, bool)) *Controller {
	return &Controller{
		Name:    controller,
		Workers: 2,
		Inputs: []Input{
			{namespaces, self},
			{r, func(c Change) []Key {
				if o := c.either(); o.GetName() == name {
					return []Key{{Name: o.GetNamespace()}}
				}
				return nil
			}},
		},
		Outputs: []Output{{r, "objects named " + name}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			ns, ok := get[*corev1.Namespace](e.cache, namespaces, "", key.Name)
			if !ok || ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
				return 0, nil
			}
			current, exists := get[api.Object](e.cache, r, ns.Name, name)
			if exists && current.GetDeletionTimestamp() != nil {
				return 0, nil // its end wakes us
			}
			if !exists {
				current = nil
			}
			o, write := want(current)
			if !write {
				return 0, nil
			}
			var err error
			if exists {
				_, err = e.update(ctx, r, o)
			} else {
				o.SetNamespace(ns.Name)
				o.SetName(name)
				_, err = e.create(ctx, r, o)
			}
			if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) {
				return 0, nil // the news is on its way
			}
			return 0, err
		},
	}
}
