package api

import (
	"context"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	followFirstWait = 50 * time.Millisecond
	followMaxWait   = 2 * time.Second
)

// Follow tells h the whole state that the options select, then each change of
// it, until ctx ends; after a gap it tells the whole state again. What the
// server refuses now (a node may read a secret only once it has the pod that
// uses it) is asked for again, ever more slowly. It returns ctx's error, or
// the server's where asking again cannot help. Of the options only the
// selectors are used.
func Follow(ctx context.Context, c Client, r schema.GroupVersionResource, namespace string, o metav1.ListOptions, h Handler) error {
	f := follower{c: c, r: r, namespace: namespace, h: h, o: metav1.ListOptions{LabelSelector: o.LabelSelector, FieldSelector: o.FieldSelector}}
	once := f.once
	if l, ok := c.(*local); ok {
		once = func(ctx context.Context) (bool, error) { return l.followOnce(ctx, r, namespace, f.o, h) }
	}
	wait := followFirstWait
	for {
		progress, err := once(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case apierrors.IsBadRequest(err), apierrors.IsInvalid(err), apierrors.IsMethodNotSupported(err):
			return err
		case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
			f.at = "" // begin anew, from a list
		}
		if progress {
			wait = followFirstWait
		}
		select {
		case <-time.After(wait + rand.N(wait)):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, followMaxWait)
	}
}

type follower struct {
	c         Client
	r         schema.GroupVersionResource
	namespace string
	o         metav1.ListOptions
	h         Handler
	at        string // the last revision seen, empty before the first list
}

// once lists if need be and then watches until the watch ends. progress says
// that the server answered.
func (f *follower) once(ctx context.Context) (progress bool, err error) {
	if f.at == "" {
		objects, list, err := f.c.List(ctx, f.r, f.namespace, f.o)
		if err != nil {
			return false, err
		}
		f.at = list.ResourceVersion
		f.h.Replace(objects)
		progress = true
	}
	o := f.o
	o.ResourceVersion, o.AllowWatchBookmarks = f.at, true
	w, err := f.c.Watch(ctx, f.r, f.namespace, o)
	if err != nil {
		return progress, err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case e, ok := <-w.ResultChan():
			if !ok {
				return true, nil
			}
			if e.Type == watch.Error {
				return true, apierrors.FromObject(e.Object)
			}
			obj, ok := e.Object.(Object)
			if !ok {
				return true, apierrors.FromObject(e.Object)
			}
			f.at = obj.GetResourceVersion()
			if e.Type != watch.Bookmark {
				f.h.Apply(e.Type, obj)
			}
		}
	}
}
