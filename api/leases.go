package api

import (
	"context"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// How often a watch of node leases looks at them. They change every second
// and nobody writes them down; looking is all that a watcher of them costs.
const leaseLook = 10 * time.Second

// nodeLeases shows the heartbeats of the live nodes as Lease objects.
func nodeLeases(s *Server, namespace string) []Record {
	if s.cfg.Leases == nil || namespace != "" && namespace != corev1.NamespaceNodeLease {
		return nil
	}
	live := s.cfg.Leases()
	records := make([]Record, len(live))
	for i, l := range live {
		records[i] = loose{leaseObject(l)}
	}
	return records
}

func leaseObject(l NodeLease) *coordinationv1.Lease {
	seconds := int32(max(l.Duration/time.Second, 1))
	renewed, acquired := metav1.NewMicroTime(l.Renewed), metav1.NewMicroTime(l.Acquired)
	lease := &coordinationv1.Lease{
		TypeMeta: metav1.TypeMeta{Kind: "Lease", APIVersion: "coordination.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{
			Name: l.Name, Namespace: corev1.NamespaceNodeLease,
			UID: types.UID("node-lease-" + l.Name),
			// Times only grow, as versions must; the store's never get here.
			ResourceVersion: "1",
		},
		Spec: coordinationv1.LeaseSpec{HolderIdentity: &l.Holder, LeaseDurationSeconds: &seconds, RenewTime: &renewed},
	}
	if !l.Acquired.IsZero() {
		lease.Spec.AcquireTime = &acquired
		lease.CreationTimestamp = metav1.NewTime(l.Acquired)
	}
	return lease
}

// admitLease refuses to store what lives in memory.
func admitLease(_ context.Context, c *call, obj, _ Object) error {
	if obj.GetNamespace() != corev1.NamespaceNodeLease {
		return nil
	}
	if c.s.cfg.Storage.Get(nodes.Resource, "", obj.GetName()) != nil {
		return leaseInMemory(obj.GetName())
	}
	one := *c
	one.name = obj.GetName()
	return one.notInMemory()
}

func leaseInMemory(name string) error {
	return apierrors.NewForbidden(leases.GroupResource(), name, errors.New("the leases of nodes are kept in memory and renewed over the nodes' own streams: they cannot be written"))
}

// notInMemory refuses the change of an object that no store holds.
func (c *call) notInMemory() error {
	if c.res.hooks.memory == nil {
		return nil
	}
	for _, rec := range c.res.hooks.memory(c.s, c.namespace) {
		if rec.Object().GetName() == c.name {
			return leaseInMemory(c.name)
		}
	}
	return nil
}

// watchMemory adds the changes of what lives in memory to a watcher. shown is
// what the watcher's client knows already.
func (c *call) watchMemory(w Watcher, shown []Record) Watcher {
	if c.res.hooks.memory == nil || c.s.cfg.Leases == nil || c.namespace != "" && c.namespace != corev1.NamespaceNodeLease {
		return w
	}
	m := &memoryWatcher{Watcher: w, c: c, seen: map[string]Record{}}
	for _, rec := range shown {
		if rec.Revision() == 0 {
			m.seen[rec.Object().GetName()] = rec
		}
	}
	return m
}

// memoryWatcher is a watcher of stored leases that also looks at those of the
// nodes, every leaseLook.
type memoryWatcher struct {
	Watcher
	c    *call
	seen map[string]Record
	due  time.Time
}

func (m *memoryWatcher) Next(ctx context.Context) ([]Event, uint64, error) {
	for {
		if m.due.IsZero() {
			m.due = time.Now().Add(leaseLook)
		}
		wait, cancel := context.WithDeadline(ctx, m.due)
		events, at, err := m.Watcher.Next(wait)
		cancel()
		if err == nil || ctx.Err() != nil || wait.Err() == nil {
			return events, at, err
		}
		m.due = time.Time{}
		if events := m.look(); len(events) > 0 {
			return events, m.Revision(), nil
		}
	}
}

func (m *memoryWatcher) look() []Event {
	var events []Event
	now := map[string]Record{}
	version := fmt.Sprint(m.Revision())
	for _, rec := range nodeLeases(m.c.s, m.c.namespace) {
		lease := rec.Object().(*coordinationv1.Lease)
		lease.ResourceVersion = version
		now[lease.Name] = rec
		before, known := m.seen[lease.Name]
		switch {
		case !known:
			events = append(events, Event{Type: watch.Added, Record: rec})
		case !before.Object().(*coordinationv1.Lease).Spec.RenewTime.Equal(lease.Spec.RenewTime):
			events = append(events, Event{Type: watch.Modified, Record: rec, Previous: before})
		}
	}
	for name, before := range m.seen {
		if now[name] == nil {
			events = append(events, Event{Type: watch.Deleted, Record: before, Previous: before})
		}
	}
	m.seen = now
	return events
}
