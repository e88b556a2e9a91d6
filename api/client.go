package api

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Client is how every other room reads and writes the cluster's state. There
// are two: Local calls the server in this process and reads the store itself,
// without encoding anything; HTTP talks to a server elsewhere. Both return
// errors that k8s.io/apimachinery/pkg/api/errors tells apart.
//
// Objects that a Client returns are shared and read-only: make a deep copy
// before changing one.
type Client interface {
	// Get takes at most one subresource, which may be of another kind (a Scale).
	Get(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.GetOptions, subresource ...string) (Object, error)
	List(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) ([]Object, metav1.ListMeta, error)
	Watch(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) (watch.Interface, error)
	// Create and Update take at most one subresource. The object sent may be
	// of another kind than the resource's (a Binding for pods/binding, a Scale
	// for deployments/scale), and so may the one returned.
	Create(ctx context.Context, r schema.GroupVersionResource, namespace, name string, obj Object, o metav1.CreateOptions, subresource ...string) (Object, error)
	Update(ctx context.Context, r schema.GroupVersionResource, namespace string, obj Object, o metav1.UpdateOptions, subresource ...string) (Object, error)
	Patch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, t types.PatchType, data []byte, o metav1.PatchOptions, subresource ...string) (Object, error)
	Delete(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.DeleteOptions) error
}

// Handler receives what Follow sees. Its methods are called from one goroutine.
type Handler interface {
	// Replace is the whole state: at the start, and after every gap.
	Replace(objects []Object)
	// Apply is one change since.
	Apply(event watch.EventType, object Object)
}
