package controller

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	machinery "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"golang.org/x/sync/errgroup"

	"conclave/api"
	"conclave/api/custom"
	"conclave/api/types"
)

// NodeState is what gossip and the leases together say of a node.
type NodeState uint8

const (
	// Alive: the node's lease is held, and gossip does not doubt it.
	Alive NodeState = iota
	// Suspect: gossip doubts the node, its lease still runs. It gets no new
	// pods and leaves the endpoints; nothing is evicted.
	Suspect
	// Refused: the host answers that our process is not running. Its pods run
	// on, so they are given longer.
	Refused
	// Dead: gossip doubts the node and its lease has expired.
	Dead
)

// Liveness says who is alive. Its answers come from memory.
type Liveness interface {
	// State is what is known of a node by its name and the id in its
	// annotation conclave.io/node-id.
	State(nodeName, nodeID string) NodeState
	// FenceLeft is how long what must not run twice may still run on a node; at
	// 0 it has stopped, and does not start again before the API took a write
	// about it from that node. An empty id looks the node up by its name.
	FenceLeft(nodeName, nodeID string) time.Duration
	// Changed returns a channel that is closed, or receives, when the answer
	// of State may have changed for any node. It is asked for again after
	// each time.
	Changed() <-chan struct{}
}

// Config is what a Manager needs.
type Config struct {
	// Client reads the leader's own store and writes through its API server.
	Client api.Client
	// Kinds are all resources served: the garbage collector and the deletion
	// of namespaces look after every one of them.
	Kinds    []schema.GroupVersionResource
	Liveness Liveness
	// RootCA is the PEM of the cluster's CA, for kube-root-ca.crt.
	RootCA func() []byte
	// PodCIDR is divided among the nodes in ranges of NodeMask bits: 24, or 64
	// of IPv6.
	PodCIDR  netip.Prefix
	NodeMask int
	// PodCIDR6 is divided in the same way, in ranges of 64 bits; it is invalid
	// but in a dual-stack cluster.
	PodCIDR6 netip.Prefix
	// CallDriver makes a controller call of a CSI driver, by way of the node, by
	// name and id, with which it has registered. Nil: drivers bring their own.
	CallDriver func(ctx context.Context, node, id, driver, method string, request []byte) ([]byte, error)
	// SignClient makes, in PEM, the certificate of a client of the API for a
	// request in DER. A life of 0 is the longest that there is; a longer one is
	// cut. What it refuses it will refuse again. Nil: nobody signs here.
	SignClient func(request []byte, usage x509.KeyUsage, life time.Duration) ([]byte, error)
	// LocalAPIServices are the APIServices of what the cluster serves itself, for
	// whoever asks to see them. Nil: none are kept.
	LocalAPIServices func() []*types.APIService
	// CheckPolicy says what in an admission policy does not fit to the kinds that it
	// is about. Nil: nobody looks.
	CheckPolicy func(*types.ValidatingAdmissionPolicy) ([]types.ExpressionWarning, error)
	// ProbeAPIService asks the server of an APIService what it serves, and says why
	// it does not answer. Nil: endpoints alone decide.
	ProbeAPIService func(ctx context.Context, o *types.APIService) error
	// EmptyBehind deletes what API servers behind ours keep in a namespace; unknown
	// lists those that do not say what they have. Nil: there are none.
	EmptyBehind func(ctx context.Context, namespace string) (left []api.RemoteRemains, unknown []string, err error)
	// MeasurePods asks the nodes what pods use; what cannot be measured is not in the
	// answer. Nil: nothing is measured here, and nothing scales by it.
	MeasurePods func(ctx context.Context, pods []*corev1.Pod) map[machinery.UID]api.PodUsage
	// ExtensionAuthentication is the data of the ConfigMap by which API servers
	// behind ours know clients and us. Nil: it is not kept.
	ExtensionAuthentication func() map[string]string

	Now func() time.Time
	Log *slog.Logger
}

// Controller makes objects of one sort from other objects. It is level
// triggered: Reconcile looks at the whole state of its key, never at the event
// that called it.
type Controller struct {
	Name string
	// Inputs say which changes concern which keys.
	Inputs []Input
	// Outputs are all that Reconcile writes. No two controllers may own the
	// same: the Manager refuses to start.
	Outputs []Output
	// Custom says what changes of custom resources concern: there is no input of
	// those, since they come and go.
	Custom func(schema.GroupVersionResource, Change) []Key
	// Workers is how many keys are reconciled at a time.
	Workers int
	// Reconcile brings the world nearer to what the key's object asks for. It
	// is called again after the returned delay, if that is not 0; after an
	// error with growing delays; and whenever an input says so.
	Reconcile func(ctx context.Context, key Key) (again time.Duration, err error)
	// queue belongs to the Manager.
	queue *queue
}

// Input maps the changes of a resource to the keys that they concern.
type Input struct {
	Resource schema.GroupVersionResource
	Keys     func(Change) []Key
}

// Output names one thing that a controller owns: a field of a resource, or
// which objects of it there are.
type Output struct {
	Resource schema.GroupVersionResource
	Field    string
}

// self is the Keys of an Input whose objects are themselves the keys.
func self(c Change) []Key { return []Key{keyOf(c.either())} }

// env is what all controllers share.
type env struct {
	Config
	*store
	events *recorder
	// customs are the custom resources that are followed.
	customs *customs
	// states is the last answer of Liveness per node name; see liveness.go.
	states *states
}

// Manager runs every controller.
type Manager struct {
	env         *env
	controllers []*Controller
	byInput     map[schema.GroupVersionResource][]boundInput
	// ready is closed, under mu, when every resource has been listed.
	mu    sync.Mutex
	ready chan struct{}
}

type boundInput struct {
	*Controller
	keys func(Change) []Key
}

// New prepares a Manager; nothing runs before Run.
func New(c Config) (*Manager, error) {
	if c.Client == nil || c.Liveness == nil {
		return nil, errors.New("controller: a Client and a Liveness are needed")
	}
	if c.PodCIDR.IsValid() {
		if c.NodeMask == 0 {
			if c.NodeMask = 24; c.PodCIDR.Addr().Is6() {
				c.NodeMask = nodeMask6
			}
		}
		if c.NodeMask < c.PodCIDR.Bits() || c.NodeMask > c.PodCIDR.Addr().BitLen() {
			return nil, fmt.Errorf("controller: a node's range of /%d bits does not fit into %v", c.NodeMask, c.PodCIDR)
		}
	}
	if c.PodCIDR6.IsValid() && (c.PodCIDR6.Addr().Is4() || c.PodCIDR6.Bits() > nodeMask6) {
		return nil, fmt.Errorf("controller: a node's range of /%d bits does not fit into %v", nodeMask6, c.PodCIDR6)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.RootCA == nil {
		c.RootCA = func() []byte { return nil }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, needed := range needed {
		if !slices.Contains(c.Kinds, needed) {
			c.Kinds = append(slices.Clone(c.Kinds), needed)
		}
	}
	m := &Manager{byInput: map[schema.GroupVersionResource][]boundInput{}, ready: make(chan struct{})}
	m.env = &env{Config: c, events: newRecorder(c), customs: &customs{known: knows(c.Kinds)}, states: newStates(c.Liveness)}
	m.env.store = &store{client: c.Client, cache: newCache(c.Kinds), changed: m.dispatch}
	addIndexes(m.env.cache)
	for _, add := range []func(*env) *Controller{
		newReplicaSets, newReplicationControllers, newDeployments, newStatefulSets, newDaemonSets, newJobs, newCronJobs, newDisruption,
		newVolumes, newVolumeProtection, newEphemeral, newAttachDetach, newCSI, newSnapshots, newCSISnapshots, newEndpointSlices, newEndpoints, newMirror, newLoadBalancer,
		newNodes, newTaintEviction, newPodGC, newGarbage, newNamespaces,
		newServiceAccounts, newRootCA, newExpiry, newServiceCIDRs, newQuotas, newDefinitions, newCertificateSigner, newCertificateCleaner, newClusterRoles,
		newAPIServices, newAPIAvailability, newAuthenticationConfig, newFlowSchemaStatus, newFlowSchemas, newPriorityLevels, newAutoscalers, newPolicyStatus,
	} {
		if err := m.add(add(m.env)); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// add registers a controller, unless it claims what another one owns.
func (m *Manager) add(c *Controller) error {
	for _, other := range m.controllers {
		for _, o := range other.Outputs {
			if slices.Contains(c.Outputs, o) {
				return fmt.Errorf("controllers %s and %s both own %s of %s", other.Name, c.Name, o.Field, o.Resource.Resource)
			}
		}
	}
	c.queue = newQueue()
	m.controllers = append(m.controllers, c)
	for _, in := range c.Inputs {
		if _, followed := m.env.cache.tables[in.Resource]; !followed {
			return fmt.Errorf("controller %s needs %s, which is not served", c.Name, in.Resource.Resource)
		}
		m.byInput[in.Resource] = append(m.byInput[in.Resource], boundInput{c, in.Keys})
	}
	return nil
}

// Run reconciles until ctx, which is leadership's, ends, and returns when all
// that it started has ended. A Manager runs once.
func (m *Manager) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	m.env.customs.start = func(r schema.GroupVersionResource) context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		g.Go(func() error { m.followCustom(ctx, r); return nil })
		return cancel
	}
	for _, resource := range m.env.Kinds {
		g.Go(func() error {
			err := api.Follow(ctx, m.env.client, resource, "", metav1.ListOptions{}, &follower{ctx, m, resource})
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("follow %s: %w", resource.Resource, err)
		})
	}
	g.Go(func() error { m.env.events.run(ctx, m.env.client); return nil })
	g.Go(func() error { m.watchLiveness(ctx); return nil })
	for _, c := range m.controllers {
		defer c.queue.close()
		for range max(c.Workers, 1) {
			g.Go(func() error { m.work(ctx, c); return nil })
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// work is one worker of one controller. It begins when every resource has been
// listed: a controller that saw only half of the world would undo the other.
func (m *Manager) work(ctx context.Context, c *Controller) {
	select {
	case <-m.ready:
	case <-ctx.Done():
		return
	}
	for {
		key, ok := c.queue.next(ctx)
		if !ok {
			return
		}
		again, err := c.Reconcile(ctx, key)
		if err != nil && ctx.Err() == nil {
			level := slog.LevelWarn
			if apierrors.IsConflict(err) {
				level = slog.LevelDebug // somebody was faster: look again
			}
			m.env.Log.Log(ctx, level, "reconciliation failed", "controller", c.Name, "key", key.String(), "error", err)
		}
		c.queue.done(key, again, err)
	}
}

// dispatch tells the controllers of changes.
func (m *Manager) dispatch(r schema.GroupVersionResource, changes []Change) {
	for _, change := range changes {
		inputs, known := m.byInput[r]
		for _, in := range inputs {
			in.queue.add(in.keys(change)...)
		}
		if known || slices.Contains(m.env.Kinds, r) {
			continue
		}
		for _, c := range m.controllers {
			if c.Custom != nil {
				c.queue.add(c.Custom(r, change)...)
			}
		}
	}
}

// follower feeds one resource into the cache.
type follower struct {
	ctx      context.Context // Run's: the calls of a Handler carry none
	m        *Manager
	resource schema.GroupVersionResource
}

func (f *follower) Replace(objects []api.Object) {
	changes, missing := f.m.env.cache.replace(f.resource, objects)
	f.definitions()
	f.m.dispatch(f.resource, changes)
	for _, o := range missing {
		f.m.env.refresh(f.ctx, f.resource, o)
	}
	f.m.checkReady()
}

// knows says which resources are among these, in whatever version.
func knows(kinds []schema.GroupVersionResource) func(schema.GroupResource) bool {
	return func(gr schema.GroupResource) bool {
		return slices.ContainsFunc(kinds, func(r schema.GroupVersionResource) bool { return r.GroupResource() == gr })
	}
}

// checkReady lets the controllers begin once everything has been listed.
func (m *Manager) checkReady() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.ready:
	default:
		if m.env.cache.synced() {
			close(m.ready)
		}
	}
}

func (f *follower) Apply(t watch.EventType, o api.Object) {
	var changes []Change
	if t == watch.Deleted {
		changes = f.m.env.cache.remove(f.resource, o, true)
	} else {
		changes = f.m.env.cache.apply(f.resource, o, true)
	}
	f.definitions()
	f.m.dispatch(f.resource, changes)
}

// definitions follows the custom resources that there are now.
func (f *follower) definitions() {
	if f.resource == definitions {
		f.m.env.customs.set(f.m.env.cache, list[*custom.Definition](f.m.env.cache, definitions, ""))
	}
}

// followCustom follows a custom resource until ctx ends.
func (m *Manager) followCustom(ctx context.Context, r schema.GroupVersionResource) {
	err := api.Follow(ctx, m.env.client, r, "", metav1.ListOptions{}, &follower{ctx, m, r})
	if ctx.Err() == nil {
		m.env.Log.Error("a custom resource is not looked after any more", "resource", r.String(), "error", err)
	}
	m.env.cache.clear(r)
	m.checkReady()
}
