package chaos

import (
	"context"
	"encoding/json"

	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Change is one event of a watch of the registers.
type Change struct {
	Revision uint64        `json:"revision"`
	Type     string        `json:"type"` // ADDED, MODIFIED or DELETED
	Key      string        `json:"key"`
	Value    string        `json:"value,omitempty"`
	At       time.Duration `json:"at"`
}

// stretch is what a watcher saw without a break: all registers at a revision,
// then every change after it up to another.
type stretch struct {
	from    uint64
	list    map[string]Change // by register
	changes []Change
	// to is the newest revision that the watcher is known to have reached: that
	// of a change or of a bookmark.
	to uint64
}

// watcher follows the registers by way of one host. When its connection ends it
// goes on from the newest revision that it was told; only when that is gone
// (410) does it list anew, which begins another stretch.
type watcher struct {
	host  string
	api   *apiClient
	since func() time.Duration
	// life returns a context that ends when the host's connections are dead
	// without anybody telling.
	life func(ctx context.Context) (context.Context, context.CancelFunc)

	mu        sync.Mutex
	stretches []*stretch
	reached   chan struct{} // closed and made anew when to moves
	begun     int           // requests
	wrong     []string      // answers that break the rules of a watch
}

// watchTime is how long one watch request lasts: it is resumed even when
// nothing goes wrong.
const watchTime = 20 * time.Second

// run watches until the context ends.
func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		life, cancel := w.life(ctx)
		err := w.once(life)
		cancel()
		if err == nil {
			continue
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// once makes one request: a list where there is nothing to go on from, or else a
// watch to its end.
func (w *watcher) once(ctx context.Context) error {
	w.mu.Lock()
	var now *stretch
	if n := len(w.stretches); n > 0 {
		now = w.stretches[n-1]
	}
	w.mu.Unlock()
	if now == nil {
		return w.list(ctx)
	}
	err := w.follow(ctx, now)
	if answered(err) == http.StatusGone {
		return w.list(ctx)
	}
	return err
}

func (w *watcher) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, watchTime)
	defer cancel()
	var all corev1.ConfigMapList
	if err := w.api.call(ctx, http.MethodGet, configMaps, nil, &all); err != nil {
		return err
	}
	at, err := strconv.ParseUint(all.ResourceVersion, 10, 64)
	if err != nil {
		return err
	}
	s := &stretch{from: at, to: at, list: map[string]Change{}}
	for _, o := range all.Items {
		c, err := change("ADDED", o)
		if err != nil {
			return err
		}
		s.list[c.Key] = c
	}
	w.mu.Lock()
	w.stretches = append(w.stretches, s)
	w.moved()
	w.mu.Unlock()
	return nil
}

func change(kind string, o corev1.ConfigMap) (Change, error) {
	revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64)
	return Change{Revision: revision, Type: kind, Key: o.Name, Value: o.Data[valueKey]}, err
}

// moved tells whoever waits for a revision; the lock is held.
func (w *watcher) moved() {
	if w.reached != nil {
		close(w.reached)
		w.reached = nil
	}
}

// follow watches from where a stretch ends.
func (w *watcher) follow(ctx context.Context, s *stretch) error {
	ctx, cancel := context.WithTimeout(ctx, watchTime+5*time.Second)
	defer cancel()
	path := fmt.Sprintf("%s?watch=1&allowWatchBookmarks=true&timeoutSeconds=%d&resourceVersion=%d", configMaps, int(watchTime.Seconds()), s.to)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.api.base()+path, nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	response, err := w.api.http.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return &statusError{code: response.StatusCode}
	}
	w.mu.Lock()
	w.begun++
	w.mu.Unlock()
	for stream := json.NewDecoder(response.Body); ; {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if err := stream.Decode(&event); err != nil {
			return nil // it ended, in whatever way: go on
		}
		if err := w.take(s, event.Type, event.Object); err != nil {
			return err
		}
	}
}

// take adds an event to a stretch.
func (w *watcher) take(s *stretch, kind string, raw []byte) error {
	if kind == "ERROR" {
		var status metav1.Status
		if err := json.Unmarshal(raw, &status); err != nil {
			return err
		}
		return &statusError{code: int(status.Code), status: status}
	}
	var o corev1.ConfigMap
	if err := json.Unmarshal(raw, &o); err != nil {
		return err
	}
	c, err := change(kind, o)
	if err != nil {
		return err
	}
	c.At = w.since()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case kind == "BOOKMARK" && c.Revision < s.to:
		w.wrong = append(w.wrong, fmt.Sprintf("a bookmark at %d after revision %d", c.Revision, s.to))
	case kind == "BOOKMARK":
	case c.Revision <= s.to:
		w.wrong = append(w.wrong, fmt.Sprintf("%s %s at %d after revision %d: repeated, or out of order", kind, c.Key, c.Revision, s.to))
		return nil
	default:
		s.changes = append(s.changes, c)
	}
	s.to = max(s.to, c.Revision)
	w.moved()
	return nil
}

// wait returns when the watcher has reached a revision.
func (w *watcher) wait(ctx context.Context, revision uint64) error {
	for {
		w.mu.Lock()
		to := uint64(0)
		if n := len(w.stretches); n > 0 {
			to = w.stretches[n-1].to
		}
		if w.reached == nil {
			w.reached = make(chan struct{})
		}
		reached := w.reached
		w.mu.Unlock()
		if to >= revision {
			return nil
		}
		select {
		case <-reached:
		case <-ctx.Done():
			return fmt.Errorf("the watch by way of %s ended at revision %d, and %d was written: %w", w.host, to, revision, context.Cause(ctx))
		}
	}
}

// covers says whether a stretch must contain a change of this revision.
func (s *stretch) covers(revision uint64) bool { return revision > s.from && revision <= s.to }

// watched judges what watchers saw against what clients were told: every
// acknowledged write is seen once, by each watcher that was there, with its own
// value; nothing is seen that nobody wrote or that was refused; and what one
// watcher saw, every other one saw, too.
func watched(ops []Op, watchers []*watcher) (wrong []string) {
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	truth := map[uint64]Change{}    // every change that anybody saw
	writers := map[string]Op{}      // by value, which is unique
	acknowledged := map[uint64]Op{} // by revision
	for _, o := range ops {
		if o.Value == "" {
			continue
		}
		writers[o.Value] = o
		if o.Outcome == Done {
			revision, err := strconv.ParseUint(o.Revision, 10, 64)
			if err != nil {
				complain("%s %s by way of %s was answered with revision %q", o.Verb, o.Key, o.Host, o.Revision)
			} else if twice, there := acknowledged[revision]; there {
				complain("two writes were answered with revision %d: %s and %s", revision, twice.Value, o.Value)
			} else {
				acknowledged[revision] = o
			}
		}
	}
	for _, w := range watchers {
		for _, text := range w.wrong {
			complain("the watch by way of %s: %s", w.host, text)
		}
		for _, s := range w.stretches {
			for _, c := range s.changes {
				c.At = 0
				if known, there := truth[c.Revision]; there && known != c {
					complain("revision %d is %+v by way of %s, and %+v elsewhere", c.Revision, c, w.host, known)
				}
				truth[c.Revision] = c
			}
		}
	}
	for _, revision := range slices.Sorted(maps.Keys(truth)) {
		c := truth[revision]
		if c.Type == "DELETED" || c.Value == "" {
			continue
		}
		switch o, known := writers[c.Value]; {
		case !known || o.Key != c.Key:
			complain("revision %d has the value %q of %s, which nobody wrote", revision, c.Value, c.Key)
		case o.Outcome != Done && o.Outcome != Open:
			complain("revision %d has the value %q of %s, whose write was answered: %s (%s)", revision, c.Value, c.Key, o.Outcome, o.Error)
		}
	}
	for _, revision := range slices.Sorted(maps.Keys(acknowledged)) {
		o := acknowledged[revision]
		if c, there := truth[revision]; there && (c.Key != o.Key || c.Value != o.Value) {
			complain("revision %d was acknowledged as %s of %s, and is %s of %s", revision, o.Value, o.Key, c.Value, c.Key)
		}
	}
	seenAll := func(from, to uint64) bool {
		return slices.ContainsFunc(watchers, func(w *watcher) bool {
			return slices.ContainsFunc(w.stretches, func(s *stretch) bool { return s.from <= from && s.to >= to })
		})
	}
	for _, w := range watchers {

		for _, s := range w.stretches {
			saw := map[uint64]bool{}
			for _, c := range s.changes {
				saw[c.Revision] = true
			}
			for revision := range acknowledged {
				if s.covers(revision) && !saw[revision] {
					complain("the watch by way of %s skipped the acknowledged revision %d", w.host, revision)
				}
			}
			for revision := range truth {
				if _, mine := acknowledged[revision]; !mine && s.covers(revision) && !saw[revision] {
					complain("the watch by way of %s skipped revision %d, which others saw", w.host, revision)
				}
			}
			wrong = append(wrong, s.startsFrom(w.host, truth, seenAll)...)
		}
	}
	return wrong
}

// startsFrom judges the list that a stretch began with by the changes that
// anybody saw: no register may be older in it than its newest change then.
func (s *stretch) startsFrom(host string, truth map[uint64]Change, seenAll func(from, to uint64) bool) (wrong []string) {
	newest := map[string]Change{}
	for _, revision := range slices.Sorted(maps.Keys(truth)) {
		if revision <= s.from {
			newest[truth[revision].Key] = truth[revision]
		}
	}
	for _, key := range slices.Sorted(maps.Keys(newest)) {
		c := newest[key]
		listed, there := s.list[key]
		var stale bool
		switch {
		case c.Type == "DELETED":
			stale = there && listed.Revision <= c.Revision
		case there:
			stale = listed.Revision < c.Revision || listed.Revision == c.Revision && listed.Value != c.Value
		default: // it may have been deleted while nobody looked
			stale = seenAll(c.Revision, s.from)
		}
		if stale {
			wrong = append(wrong, fmt.Sprintf("a list at revision %d by way of %s has %s as %+v, whose newest change was %+v", s.from, host, key, listed, c))
		}
	}
	return wrong
}
