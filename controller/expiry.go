package controller

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// eventTTL is for how long an Event is kept after it was last seen.
	eventTTL = time.Hour
	// expiryBatch is the least time between two deletions of old events: a
	// disk is woken once for many.
	expiryBatch = 5 * time.Minute
	// finishedPods is how many finished pods the cluster keeps: enough to read
	// the logs of the last ones, few enough for a small machine's memory.
	finishedPods = 1000
	// finishedPause is the least time between two counts of them.
	finishedPause = 10 * time.Second
)

// newExpiry deletes what is kept only for a while: old Events, and the oldest
// of too many finished pods.
func newExpiry(e *env) *Controller {
	eventsKey, podsKey := Key{Resource: events}, Key{Resource: pods}
	// due is when each is looked at next: what appears before cannot make it
	// earlier. Only the one worker reads it.
	due := map[Key]time.Time{}
	return &Controller{
		Name:    "expiry",
		Workers: 1,
		Inputs: []Input{
			{events, func(c Change) []Key {
				if c.Old != nil {
					return nil // the earliest wish already covers it
				}
				return []Key{eventsKey}
			}},
			{pods, func(c Change) []Key {
				if c.New == nil || !podFinished(c.New.(*corev1.Pod)) || c.Old != nil && podFinished(c.Old.(*corev1.Pod)) {
					return nil
				}
				return []Key{podsKey}
			}},
		},
		Outputs: []Output{{events, "deletions by age"}, {pods, "deletions of finished ones by number"}},
		Reconcile: func(ctx context.Context, key Key) (time.Duration, error) {
			if left := due[key].Sub(e.Now()); left > 0 {
				return left, nil
			}
			if key == eventsKey {
				again, err := expireEvents(ctx, e)
				due[key] = e.Now().Add(again)
				return again, err
			}
			due[key] = e.Now().Add(finishedPause)
			return 0, limitFinished(ctx, e)
		},
	}
}

func lastSeen(e *corev1.Event) time.Time {
	last := e.CreationTimestamp.Time
	for _, t := range []time.Time{e.LastTimestamp.Time, e.EventTime.Time} {
		if t.After(last) {
			last = t
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(last) {
		last = e.Series.LastObservedTime.Time
	}
	return last
}

// expireEvents deletes what is older than the TTL and says when the next is.
func expireEvents(ctx context.Context, e *env) (time.Duration, error) {
	now := e.Now()
	var next time.Duration
	var errs []error
	for _, event := range list[*corev1.Event](e.cache, events, "") {
		left := lastSeen(event).Add(eventTTL).Sub(now)
		if left <= 0 {
			errs = append(errs, e.delete(ctx, events, event, metav1.DeleteOptions{}))
			continue
		}
		if next == 0 || left < next {
			next = left
		}
	}
	if next > 0 {
		next = max(next, expiryBatch)
	}
	return next, errors.Join(errs...)
}

func limitFinished(ctx context.Context, e *env) error {
	finished := slices.DeleteFunc(list[*corev1.Pod](e.cache, pods, ""), func(p *corev1.Pod) bool {
		return !podFinished(p) || p.DeletionTimestamp != nil
	})
	surplus := len(finished) - finishedPods
	if surplus <= 0 {
		return nil
	}
	slices.SortFunc(finished, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	var errs []error
	for _, pod := range finished[:surplus] {
		errs = append(errs, e.delete(ctx, pods, pod, metav1.DeleteOptions{}))
	}
	return errors.Join(errs...)
}
