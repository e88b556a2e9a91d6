package api

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	bookmarkEvery = time.Minute
	// A watch whose client names no end is ended after this long and up to as
	// long again, so that clients spread over the servers anew.
	watchEnds = 30 * time.Minute
)

// change is one event as a watcher sees it.
type change struct {
	kind   watch.EventType
	record Record // nil for bookmarks and errors
	at     uint64 // of a bookmark
	opened bool   // this bookmark ends the initial events
	err    error  // of an error
}

// object is what the watcher is sent.
func (ch change) object(r *resource) Object {
	if ch.record != nil {
		return ch.record.Object()
	}
	obj := r.New().(Object)
	obj.GetObjectKind().SetGroupVersionKind(r.GVK)
	obj.SetResourceVersion(strconv.FormatUint(ch.at, 10))
	if ch.opened {
		obj.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return obj
}

// stream is a watch: the changes of one resource that its selectors select.
// It is used by one goroutine.
type stream struct {
	c         *call
	res       *resource
	watcher   Watcher
	match     func(Object) bool
	initial   []change
	bookmarks bool
	ends      time.Duration
}

// openWatch starts a watch where the options say.
func (c *call) openWatch(ctx context.Context, o *internalOptions, fresh bool) (*stream, error) {
	legacy := o.ResourceVersion == "" || o.ResourceVersion == "0"
	internalversion.SetListOptionsDefaults(o, true)
	o.Watch = true
	if err := invalidOptions("ListOptions", internalvalidation.ValidateListOptions(o, true)); err != nil {
		return nil, err
	}
	match, err := c.res.matcher(o.LabelSelector, o.FieldSelector)
	if err != nil {
		return nil, err
	}
	at, err := parseRevision(o.ResourceVersion)
	if err != nil {
		return nil, err
	}
	st := &stream{c: c, res: c.res, match: match, bookmarks: o.AllowWatchBookmarks, ends: watchEnds + rand.N(watchEnds)}
	if o.TimeoutSeconds != nil {
		st.ends = time.Duration(*o.TimeoutSeconds) * time.Second
	}
	if at > 0 {
		if err := c.waitFor(ctx, at); err != nil {
			return nil, c.storageError(err)
		}
	}
	initial := o.SendInitialEvents != nil && *o.SendInitialEvents || o.SendInitialEvents == nil && legacy
	if !initial {
		if at == 0 {
			if at, err = c.newestRevision(ctx, fresh); err != nil {
				return nil, c.storageError(err)
			}
		}
		if st.watcher, err = c.s.cfg.Storage.Watch(c.res.stored, c.namespace, at); err != nil {
			return nil, c.storageError(err)
		}
		st.watcher = c.watchMemory(st.watcher, nil)
		return st, nil
	}
	if fresh && o.ResourceVersion == "" {
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return nil, c.storageError(err)
		}
	}
	records, watcher, err := c.s.cfg.Storage.ListAndWatch(c.res.stored, c.namespace)
	if err != nil {
		return nil, c.storageError(err)
	}
	all := c.withMemory(records)
	st.watcher = c.watchMemory(watcher, all)
	shown, err := c.shownAll(ctx, all, true)
	if err != nil {
		st.watcher.Stop()
		return nil, err
	}
	st.initial = make([]change, 0, len(all)+1)
	for _, rec := range shown {
		if match == nil || match(rec.Object()) {
			st.initial = append(st.initial, change{kind: watch.Added, record: rec})
		}
	}
	if st.bookmarks && o.SendInitialEvents != nil {
		st.initial = append(st.initial, change{kind: watch.Bookmark, at: watcher.Revision(), opened: true})
	}
	return st, nil
}

func (c *call) newestRevision(ctx context.Context, fresh bool) (uint64, error) {
	if fresh {
		if err := c.s.cfg.Storage.Sync(ctx); err != nil {
			return 0, err
		}
	}
	return c.s.cfg.Storage.Revision(), nil
}

// run hands the changes to send until ctx ends, the watch's time is over or
// send fails, and frees the watch.
func (st *stream) run(ctx context.Context, send func([]change) error) error {
	defer st.watcher.Stop()
	ctx, cancel := context.WithTimeout(ctx, st.ends)
	defer cancel()
	if d := st.res.def; d != nil { // until it is served otherwise
		defer context.AfterFunc(d.life, cancel)()
	}
	if len(st.initial) > 0 {
		err := send(st.initial)
		st.initial = nil // a watch lives long: let the first state go
		if err != nil {
			return err
		}
	}
	sent := st.watcher.Revision()
	var due time.Time
	for {
		wait, done := ctx, context.CancelFunc(func() {})
		if st.bookmarks {
			if due.IsZero() {
				due = time.Now().Add(bookmarkEvery)
			}
			wait, done = context.WithDeadline(ctx, due)
		}
		events, _, err := st.watcher.Next(wait)
		done()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, ErrExpired):
			return send([]change{{kind: watch.Error, err: apierrors.NewResourceExpired("the watch fell behind the window of events that is kept")}})
		case err != nil && wait.Err() == nil:
			return send([]change{{kind: watch.Error, err: err}})
		}
		changes, err := st.translate(ctx, events)
		if err != nil {
			return send([]change{{kind: watch.Error, err: err}})
		}
		if st.bookmarks && !time.Now().Before(due) {
			due = time.Time{}
			if at := st.watcher.Revision(); at > sent {
				sent = at
				changes = append(changes, change{kind: watch.Bookmark, at: at})
			}
		}
		if len(changes) == 0 {
			continue
		}
		if err := send(changes); err != nil {
			return err
		}
	}
}

// translate turns the store's events into what this watcher is to see.
func (st *stream) translate(ctx context.Context, events []Event) ([]change, error) {
	view := st.res.view
	if st.res.converts() { // all at once
		var records []Record
		for _, e := range events {
			records = append(records, e.Record)
			if st.match != nil && e.Previous != nil {
				records = append(records, e.Previous)
			}
		}
		shown, err := st.c.shownAll(ctx, records, true)
		if err != nil {
			return nil, err
		}
		as := map[Record]Record{}
		for i, rec := range records {
			as[rec] = shown[i]
		}
		view = func(rec Record) Record { return as[rec] }
	}
	changes := make([]change, 0, len(events))
	for _, e := range events {
		rec := view(e.Record)
		if st.match == nil {
			changes = append(changes, change{kind: e.Type, record: rec})
			continue
		}
		is := e.Type != watch.Deleted && st.match(rec.Object())
		was := false
		if e.Previous != nil {
			was = st.match(view(e.Previous).Object())
		}
		switch {
		case is && was:
			changes = append(changes, change{kind: watch.Modified, record: rec})
		case is:
			changes = append(changes, change{kind: watch.Added, record: rec})
		case was && e.Type == watch.Deleted:
			changes = append(changes, change{kind: watch.Deleted, record: rec})
		case was:
			// It no longer matches: to this watcher it is gone, in the last
			// state that it may see, as of this revision.
			last := view(e.Previous).Object().DeepCopyObject().(Object)
			last.SetResourceVersion(strconv.FormatUint(e.Record.Revision(), 10))
			changes = append(changes, change{kind: watch.Deleted, record: loose{last}})
		}
	}
	return changes, nil
}
