package api

import (
	"context"
	"math"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// Local is the client of this process, acting as u. It encodes nothing: it
// reads this replica's own records as they are, without asking the leader
// whether they are the newest. What u may not do is refused as it would be
// over HTTP.
func (s *Server) Local(u User) Client { return &local{s: s, user: u} }

// own is the client by which the server writes on its own account: what keeps the
// cluster going, and so is below admission by webhooks.
func (s *Server) own() Client { return &local{s: s, user: system, quiet: true} }

type local struct {
	s     *Server
	user  User
	quiet bool // webhooks are not asked
}

// begin finds the resource and asks whether the user may.
func (l *local) begin(ctx context.Context, verb string, r schema.GroupVersionResource, namespace, name string, o *metav1.ListOptions, sub ...string) (*call, error) {
	res := l.s.resource(r)
	if res == nil {
		return nil, apierrors.NewNotFound(r.GroupResource(), name)
	}
	c := &call{s: l.s, res: res, user: l.user, namespace: namespace, name: name, manager: l.user.Name, quiet: l.quiet}
	if !res.Namespaced {
		c.namespace = ""
	}
	if len(sub) > 0 {
		c.sub = sub[0]
	}
	a := Attributes{Verb: verb, Resource: r, Subresource: c.sub, Namespace: c.namespace, Name: name}
	if o != nil {
		a.LabelSelector, a.FieldSelector = o.LabelSelector, o.FieldSelector
		a.Name = selectedName(o.FieldSelector)
	}
	if err := l.s.authorize(ctx, l.user, a); err != nil {
		return nil, err
	}
	c.res = l.s.shownTo(l.user, res, a)
	return c, nil
}

func (l *local) Get(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.GetOptions, sub ...string) (Object, error) {
	c, err := l.begin(ctx, "get", r, namespace, name, nil, sub...)
	if err != nil {
		return nil, err
	}
	f, err := c.facet()
	if err != nil {
		return nil, err
	}
	rec, err := c.get(ctx, o, false)
	return objectOf(c.shown(f, rec, err))
}

func objectOf(rec Record, err error) (Object, error) {
	if err != nil {
		return nil, err
	}
	return rec.Object(), nil
}

func (l *local) List(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) ([]Object, metav1.ListMeta, error) {
	c, err := l.begin(ctx, "list", r, namespace, "", &o)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	options, err := parseOptions(o)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	list, err := c.list(ctx, options, false)
	if err != nil {
		return nil, metav1.ListMeta{}, err
	}
	objects := make([]Object, len(list.records))
	for i, rec := range list.records {
		objects[i] = rec.Object()
	}
	return objects, list.meta(), nil
}

func (l *local) Watch(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions) (watch.Interface, error) {
	c, err := l.begin(ctx, "watch", r, namespace, "", &o)
	if err != nil {
		return nil, err
	}
	options, err := parseOptions(o)
	if err != nil {
		return nil, err
	}
	st, err := c.openWatch(ctx, options, false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := l.s.watchContext(ctx)
	w := &localWatch{events: make(chan watch.Event), stop: cancel}
	go func() {
		defer close(w.events)
		defer cancel()
		// The error says only why the watch ended; what the watcher must know
		// was sent as an event.
		_ = st.run(ctx, func(changes []change) error {
			for _, ch := range changes {
				e := watch.Event{Type: ch.kind}
				if ch.err != nil {
					e.Object = asStatus(ch.err)
				} else {
					e.Object = ch.object(c.res)
				}
				select {
				case w.events <- e:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	}()
	return w, nil
}

// localWatch hands over the events of one goroutine, which closes the channel
// when it ends.
type localWatch struct {
	events chan watch.Event
	stop   context.CancelFunc
	once   sync.Once
}

func (w *localWatch) ResultChan() <-chan watch.Event { return w.events }
func (w *localWatch) Stop()                          { w.once.Do(w.stop) }

func (l *local) Create(ctx context.Context, r schema.GroupVersionResource, namespace, name string, obj Object, o metav1.CreateOptions, sub ...string) (Object, error) {
	obj = obj.DeepCopyObject().(Object)
	if name == "" {
		name = obj.GetName()
	}
	if namespace == "" {
		namespace = obj.GetNamespace()
	}
	if review := l.s.reviews[r]; review != nil && len(sub) == 0 {
		if err := l.s.authorize(ctx, l.user, Attributes{Verb: "create", Resource: r, Namespace: namespace}); err != nil {
			return nil, err
		}
		return l.s.answer(ctx, review, l.user, namespace, obj, o, nil)
	}
	c, err := l.begin(ctx, "create", r, namespace, name, nil, sub...)
	if err != nil {
		return nil, err
	}
	if c.sub == "" {
		if obj.GetName() == "" && obj.GetGenerateName() == "" {
			obj.SetName(name)
		}
		c.name = ""
		return objectOf(c.create(ctx, obj, o))
	}
	cr, ok := l.s.creators[r.GroupResource().String()+"/"+c.sub]
	if !ok {
		return nil, apierrors.NewMethodNotSupported(schema.GroupResource{Group: r.Group, Resource: r.Resource + "/" + c.sub}, "create")
	}
	if err := c.checkPlace(obj); err != nil {
		return nil, err
	}
	if obj, err = c.admitPosted(ctx, cr.gvk, obj, o); err != nil {
		return nil, err
	}
	out, err := cr.do(ctx, c, obj, o)
	if err != nil {
		return nil, err
	}
	answer, ok := out.(Object)
	if !ok { // a Status says that it went well, and nothing else
		return obj, nil
	}
	return answer, nil
}

func (l *local) Update(ctx context.Context, r schema.GroupVersionResource, namespace string, obj Object, o metav1.UpdateOptions, sub ...string) (Object, error) {
	if namespace == "" {
		namespace = obj.GetNamespace()
	}
	c, err := l.begin(ctx, "update", r, namespace, obj.GetName(), nil, sub...)
	if err != nil {
		return nil, err
	}
	return objectOf(c.updateSub(ctx, obj.DeepCopyObject().(Object), o))
}

func (l *local) Patch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, t types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (Object, error) {
	c, err := l.begin(ctx, "patch", r, namespace, name, nil, sub...)
	if err != nil {
		return nil, err
	}
	if t == types.ApplyPatchType {
		c.tracked = true
	}
	rec, _, err := c.patch(ctx, t, data, o)
	return objectOf(rec, err)
}

func (l *local) Delete(ctx context.Context, r schema.GroupVersionResource, namespace, name string, o metav1.DeleteOptions) error {
	c, err := l.begin(ctx, "delete", r, namespace, name, nil)
	if err != nil {
		return err
	}
	_, _, err = c.remove(ctx, o)
	return err
}

// followOnce is one life of a Follow without a second copy of anything: one
// ListAndWatch, until there is a gap.
func (l *local) followOnce(ctx context.Context, r schema.GroupVersionResource, namespace string, o metav1.ListOptions, h Handler) (progress bool, err error) {
	if l.s.ending.Err() != nil {
		return false, apierrors.NewServiceUnavailable("the server in this process has ended")
	}
	c, err := l.begin(ctx, "watch", r, namespace, "", &o)
	if err != nil {
		return false, err
	}
	c.byName = true
	options, err := parseOptions(metav1.ListOptions{LabelSelector: o.LabelSelector, FieldSelector: o.FieldSelector})
	if err != nil {
		return false, err
	}
	ctx, cancel := l.s.watchContext(ctx)
	defer cancel()
	st, err := c.openWatch(ctx, options, false)
	if err != nil {
		return false, err
	}
	st.ends = math.MaxInt64 // in process, nobody needs to be spread anew
	all := make([]Object, len(st.initial))
	for i, ch := range st.initial {
		all[i] = ch.record.Object()
	}
	st.initial = nil
	h.Replace(all)
	return true, st.run(ctx, func(changes []change) error {
		for _, ch := range changes {
			if ch.err != nil {
				return ch.err
			}
			h.Apply(ch.kind, ch.record.Object())
		}
		return nil
	})
}
