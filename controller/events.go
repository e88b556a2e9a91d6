package controller

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

// recorder writes Events, beside the work and never in its way: when it cannot
// follow, events are lost, as Kubernetes permits.
//
// The name of an Event is made from what it says. So a repetition finds the
// first one in the store and counts it up, across leaders too, and nothing has
// to be remembered here.
type recorder struct {
	now   func() time.Time
	log   *slog.Logger
	queue chan *corev1.Event
}

func newRecorder(c Config) *recorder {
	return &recorder{now: c.Now, log: c.Log, queue: make(chan *corev1.Event, 1024)}
}

// record notes what happened to an object. component is the name under which
// Kubernetes' own controller reports it.
func (r *recorder) record(component string, about *corev1.ObjectReference, kind, reason, format string, args ...any) {
	now := metav1.NewTime(r.now())
	namespace := about.Namespace
	if namespace == "" {
		namespace = metav1.NamespaceDefault
	}
	message := fmt.Sprintf(format, args...)
	h := fnv.New64a()
	for _, part := range []string{component, about.Kind, about.Namespace, about.Name, string(about.UID), reason, message} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	event := &corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", about.Name, h.Sum64())},
		InvolvedObject:      *about,
		Type:                kind,
		Reason:              reason,
		Message:             message,
		Source:              corev1.EventSource{Component: component},
		ReportingController: component,
		FirstTimestamp:      now,
		LastTimestamp:       now,
		Count:               1,
	}
	select {
	case r.queue <- event:
	default:
		r.log.Debug("event dropped", "object", about.Name, "reason", reason)
	}
}

func (r *recorder) run(ctx context.Context, client api.Client) {
	for {
		select {
		case event := <-r.queue:
			if err := r.write(ctx, client, event); err != nil && ctx.Err() == nil {
				r.log.Debug("event not written", "object", event.InvolvedObject.Name, "reason", event.Reason, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

func (r *recorder) write(ctx context.Context, client api.Client, event *corev1.Event) error {
	_, err := client.Create(ctx, events, event.Namespace, event.Name, event, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	old, err := client.Get(ctx, events, event.Namespace, event.Name, metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return err
	}
	first, ok := old.(*corev1.Event)
	if !ok {
		return fmt.Errorf("an Event is a %T", old)
	}
	again := edit(first)
	again.Count++
	again.LastTimestamp = event.LastTimestamp
	_, err = client.Update(ctx, events, event.Namespace, again, metav1.UpdateOptions{})
	return err
}

// about refers to an object whose kind the store has filled in.
func about(o api.Object) *corev1.ObjectReference {
	kind := o.GetObjectKind().GroupVersionKind()
	return &corev1.ObjectReference{
		APIVersion: kind.GroupVersion().String(), Kind: kind.Kind,
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(),
		ResourceVersion: o.GetResourceVersion(),
	}
}
