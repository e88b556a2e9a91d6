package api

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"golang.org/x/sync/errgroup"

	"conclave/api/flow"
	"conclave/api/types"
)

// Priority and fairness: which of the requests over HTTP is served first, when there
// are more than this server serves at once (package flow). What this process asks of
// itself (Local) takes no seat: that are the controllers, the scheduler and the
// agent of a master. Nor is a request counted twice: a node that is no master splices
// connections to one that is, and a write that goes on from there to the leader goes
// there as an entry for the log.

var (
	flowSchemas    = types.FlowControl.WithResource("flowschemas")
	priorityLevels = types.FlowControl.WithResource("prioritylevelconfigurations")
	flowStored     = []string{flowSchemas.GroupResource().String(), priorityLevels.GroupResource().String()}
)

// The headers that say by which objects a request was ranked, in the form in which
// net/http keeps them.
const (
	schemaHeader = "X-Kubernetes-Pf-Flowschema-Uid"
	levelHeader  = "X-Kubernetes-Pf-Prioritylevel-Uid"
)

// How long a request that is refused is to stay away, and the longest that one waits.
const (
	flowRetry    = 1 // seconds
	flowPatience = time.Minute
)

// fairness is the control of this server, kept as this replica's objects say.
type fairness struct {
	control *flow.Control
	kept    derived[*flow.Control]
}

func (f *fairness) now(st Storage) *flow.Control {
	return f.kept.of(st, flowStored, func(*flow.Control) *flow.Control {
		f.control.Set(
			orElse(allOf[*types.FlowSchema](st, flowStored[0]), flow.Schemas),
			orElse(allOf[*types.PriorityLevelConfiguration](st, flowStored[1]), flow.Levels))
		return f.control
	})
}

// Fairness tells of the requests of each level of priority so far.
func (s *Server) Fairness() []flow.Stats { return s.fair.now(s.cfg.Storage).Stats() }

// enter waits until the request may be served, and gives it the seat that it has
// until it is answered, or, if it is a watch, until that has begun. What lasts as
// long as somebody wants, and is a node's to do, takes none.
func (x *exchange) enter(ctx context.Context) error {
	if x.streams() {
		return nil
	}
	t := &x.target
	q := flow.Request{
		User: x.user.Name, Groups: x.user.Groups, Verb: t.Verb, Path: t.Path,
		Group: t.Resource.Group, Resource: t.Resource.Resource, Subresource: t.Subresource, Namespace: t.Namespace,
	}
	match := x.s.fair.now(x.s.cfg.Storage).Match(&q)
	h := x.w.Header()
	h.Set(schemaHeader, match.UID)
	h.Set(levelHeader, match.LevelUID)
	seat, err := match.Enter(ctx, &q, x.patience())
	if err != nil {
		x.s.log.Debug("a request is refused", "path", x.r.URL.Path, "user", q.User, "flowschema", match.Name, "prioritylevel", match.Level, "why", err)
		return apierrors.NewTooManyRequests("Too many requests, please try again later.", flowRetry)
	}
	x.seat = seat
	return nil
}

// patience is how long the request may wait: a quarter of the time that there is for
// all of it.
func (x *exchange) patience() time.Duration {
	whole := requestTime
	if text := x.query.Get("timeout"); text != "" {
		if d, err := time.ParseDuration(text); err == nil && d > 0 && d < whole {
			whole = d
		}
	}
	return min(whole/4, flowPatience)
}

// ensureFlow makes the FlowSchemas and levels of the system be there and, as far as
// they let themselves, be as they are here; what was one of them and is none any more
// goes.
func ensureFlow(ctx context.Context, c Client) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(rolesAtOnce)
	keepFlow(ctx, g, c, priorityLevels, flow.Levels(), flow.ReconcileLevel)
	keepFlow(ctx, g, c, flowSchemas, flow.Schemas(), flow.ReconcileSchema)
	return g.Wait()
}

// keepFlow is ensureFlow of one kind.
func keepFlow[T interface {
	comparable
	Object
}](ctx context.Context, g *errgroup.Group, c Client, r schema.GroupVersionResource, system []T, reconcile func(have, want T) T) {
	for _, want := range system {
		g.Go(func() error {
			return keepUp(ctx, c, want, func(have Object) (Object, bool) {
				var none T
				next := reconcile(have.(T), want)
				return next, next != none
			})
		})
	}
	g.Go(func() error {
		return dropOutdated(ctx, c, r, func(o Object) bool { return flow.Outdated(o, system) })
	})
}

func dropOutdated(ctx context.Context, c Client, r schema.GroupVersionResource, outdated func(Object) bool) error {
	all, _, err := c.List(ctx, r, "", metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list %s: %w", r.Resource, err)
	}
	for _, o := range all {
		if !outdated(o) {
			continue
		}
		uid := o.GetUID()
		err := c.Delete(ctx, r, "", o.GetName(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete %s %q: %w", r.Resource, o.GetName(), err)
		}
	}
	return nil
}
