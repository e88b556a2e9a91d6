package cli

import (
	"context"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// switchClient is this node's client of the cluster: the server in this process
// while that is a master which has caught up, a master elsewhere otherwise. A
// watch that was begun at one ends when that one goes; Follow begins it anew.
type switchClient struct {
	remote api.Client
	// reachable says whether a master elsewhere is known to live.
	reachable func() bool
	// changed is a channel that is closed when reachable may answer differently.
	changed func() <-chan struct{}
	// local holds the client of this process, or nil, and is told of a change by
	// closing switched, which is made anew then.
	local atomic.Pointer[localClient]
}

type localClient struct {
	api.Client               // nil: this node is no master, or has not caught up
	switched   chan struct{} // closed when another localClient takes this one's place
}

func newSwitchClient(remote api.Client, reachable func() bool, changed func() <-chan struct{}) *switchClient {
	c := &switchClient{remote: remote, reachable: reachable, changed: changed}
	c.local.Store(&localClient{switched: make(chan struct{})})
	return c
}

// use makes the client local, or remote again with nil.
func (c *switchClient) use(local api.Client) {
	close(c.local.Swap(&localClient{local, make(chan struct{})}).switched)
}

// masterWait is how long a call waits for a master to be there at all: a node
// that has just started has one in a moment.
const masterWait = 2 * time.Second

func (c *switchClient) now(ctx context.Context) api.Client {
	client, _ := c.at(ctx)
	return client
}

// at also tells when another client takes the place of this one.
func (c *switchClient) at(ctx context.Context) (_ api.Client, switched <-chan struct{}) {
	timeout := time.NewTimer(masterWait)
	defer timeout.Stop()
	for {
		changed, local := c.changed(), c.local.Load()
		if local.Client != nil {
			return local.Client, local.switched
		}
		if c.reachable() {
			return c.remote, local.switched
		}
		select {
		case <-changed:
		case <-local.switched:
		case <-timeout.C:
			return c.remote, local.switched // whose error says what is missing
		case <-ctx.Done():
			return c.remote, local.switched
		}
	}
}

func (c *switchClient) Get(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.GetOptions, sub ...string) (api.Object, error) {
	return c.now(ctx).Get(ctx, r, namespace, name, o, sub...)
}

func (c *switchClient) List(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) ([]api.Object, metav1.ListMeta, error) {
	return c.now(ctx).List(ctx, r, namespace, o)
}

// Watch ends when the client is switched: a watch at another master, begun
// before there was one here, would depend on that master's life for no reason.
func (c *switchClient) Watch(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	client, switched := c.at(ctx)
	ctx, cancel := context.WithCancel(ctx)
	w, err := client.Watch(ctx, r, namespace, o)
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer cancel()
		select {
		case <-switched:
		case <-ctx.Done():
		}
	}()
	return &switchedWatch{w, cancel}, nil
}

// switchedWatch is a watch whose end also ends the waiting for a switch.
type switchedWatch struct {
	watch.Interface
	cancel context.CancelFunc
}

func (w *switchedWatch) Stop() {
	w.cancel()
	w.Interface.Stop()
}

func (c *switchClient) Create(ctx context.Context, r schema.GroupVersionResource, namespace, name string, obj api.Object, o metav1.CreateOptions, subresource ...string) (api.Object, error) {
	return c.now(ctx).Create(ctx, r, namespace, name, obj, o, subresource...)
}

func (c *switchClient) Update(ctx context.Context, r schema.GroupVersionResource, namespace string, obj api.Object, o metav1.UpdateOptions, subresource ...string) (api.Object, error) {
	return c.now(ctx).Update(ctx, r, namespace, obj, o, subresource...)
}

func (c *switchClient) Patch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, t types.PatchType, data []byte, o metav1.PatchOptions, subresource ...string) (api.Object, error) {
	return c.now(ctx).Patch(ctx, r, namespace, name, t, data, o, subresource...)
}

func (c *switchClient) Delete(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.DeleteOptions) error {
	return c.now(ctx).Delete(ctx, r, namespace, name, o)
}
