package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

const (
	eventsKept     = 1024 // different events remembered for counting
	eventBurst     = 25   // events of one object at once,
	eventRefill    = 5 * time.Minute
	eventRetryMin  = time.Second
	eventRetryMax  = 30 * time.Second
	eventComponent = "kubelet"
)

type eventKey struct {
	object               types.UID
	name, field          string
	kind, reason, detail string
}

// recorder writes events. The same event again only raises the count of the one
// written before; an object that says too much is cut short.
type recorder struct {
	client api.Client
	node   string
	now    func() time.Time
	log    *slog.Logger
	wake   chan struct{}

	mu      sync.Mutex
	known   map[eventKey]*corev1.Event
	order   []eventKey // of known, oldest first
	pending []eventKey // to be written, each once
	buckets map[types.UID]*bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newRecorder(client api.Client, node string, now func() time.Time, log *slog.Logger) *recorder {
	return &recorder{
		client: client, node: node, now: now, log: log, wake: make(chan struct{}, 1),
		known: map[eventKey]*corev1.Event{}, buckets: map[types.UID]*bucket{},
	}
}

// event records that something happened to an object. It never waits.
func (r *recorder) event(ref corev1.ObjectReference, kind, reason, message string) {
	now := r.now()
	key := eventKey{ref.UID, ref.Name, ref.FieldPath, kind, reason, message}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.allow(ref.UID, now) {
		return
	}
	stamp := metav1.NewTime(now.Truncate(time.Second))
	if e := r.known[key]; e != nil {
		e.Count++
		e.LastTimestamp = stamp
	} else {
		namespace := ref.Namespace
		if namespace == "" {
			namespace = metav1.NamespaceDefault
		}
		r.known[key] = &corev1.Event{
			ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.%x", ref.Name, now.UnixNano()+int64(len(r.order)))},
			InvolvedObject: ref, Type: kind, Reason: reason, Message: message,
			Source:              corev1.EventSource{Component: eventComponent, Host: r.node},
			ReportingController: eventComponent, ReportingInstance: r.node,
			FirstTimestamp: stamp, LastTimestamp: stamp, Count: 1,
		}
		r.order = append(r.order, key)
		if len(r.order) > eventsKept {
			delete(r.known, r.order[0])
			r.order = r.order[1:]
		}
	}
	for _, k := range r.pending {
		if k == key {
			return
		}
	}
	r.pending = append(r.pending, key)
	poke(r.wake)
}

func (r *recorder) allow(uid types.UID, now time.Time) bool {
	b := r.buckets[uid]
	if b == nil {
		if len(r.buckets) > eventsKept {
			clear(r.buckets)
		}
		b = &bucket{tokens: eventBurst, at: now}
		r.buckets[uid] = b
	}
	b.tokens = min(eventBurst, b.tokens+float64(now.Sub(b.at))/float64(eventRefill))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// next takes the oldest event to be written. It is nil if there is none.
func (r *recorder) next() (eventKey, *corev1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.pending) > 0 {
		key := r.pending[0]
		r.pending = r.pending[1:]
		if e := r.known[key]; e != nil {
			return key, e.DeepCopy()
		}
	}
	return eventKey{}, nil
}

// again puts an event back that could not be written.
func (r *recorder) again(key eventKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.pending {
		if k == key {
			return
		}
	}
	r.pending = append([]eventKey{key}, r.pending...)
}

func (r *recorder) run(ctx context.Context) {
	retry := eventRetryMin
	for {
		key, e := r.next()
		var wait <-chan time.Time
		if e != nil {
			err := r.write(ctx, e)
			if err == nil {
				retry = eventRetryMin
				continue
			}
			if ctx.Err() != nil {
				return
			}
			if refused(err) {
				r.log.Warn("an event was refused", "reason", e.Reason, "object", e.InvolvedObject.Name, "err", err)
				continue
			}
			r.again(key)
			wait = time.After(retry)
			retry = min(2*retry, eventRetryMax)
		}
		wake := r.wake
		if wait != nil {
			wake = nil // first things first
		}
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-wait:
		}
	}
}

func (r *recorder) write(ctx context.Context, e *corev1.Event) error {
	if e.Count > 1 {
		patch, err := json.Marshal(map[string]any{"count": e.Count, "lastTimestamp": e.LastTimestamp})
		if err != nil {
			return err
		}
		_, err = r.client.Patch(ctx, eventsResource, e.Namespace, e.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if !apierrors.IsNotFound(err) {
			return err
		}
	}
	_, err := r.client.Create(ctx, eventsResource, e.Namespace, e.Name, e, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil // written by an attempt whose answer was lost
	}
	return err
}

// refused says that asking again will not help.
func refused(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsInvalid(err) ||
		apierrors.IsBadRequest(err) || apierrors.IsConflict(err) || apierrors.IsMethodNotSupported(err)
}

// poke makes the receiver of a one-place channel look again.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func podReference(pod *corev1.Pod, field string) corev1.ObjectReference {
	return corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, FieldPath: field}
}

// containerField is how an event points at a container.
func containerField(pod *corev1.Pod, name string) string {
	for kind, c := range everyContainer(pod) {
		switch {
		case c.Name != name || kind == ordinary:
		case kind == ephemeral:
			return "spec.ephemeralContainers{" + name + "}"
		default:
			return "spec.initContainers{" + name + "}"
		}
	}
	return "spec.containers{" + name + "}"
}
