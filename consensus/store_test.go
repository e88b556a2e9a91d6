package consensus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// thing makes an object whose content is one word.
func thing(namespace, name, value string) *metav1.PartialObjectMetadata {
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: name, UID: types.UID("uid-" + name), Annotations: map[string]string{"v": value},
	}}
}

func value(r Record) string { return r.Object().GetAnnotations()["v"] }

// jsonCodec encodes the things of these tests.
type jsonCodec struct{}

func (jsonCodec) Encode(o Object) ([]byte, error) { return json.Marshal(o) }

func (jsonCodec) Decode(b []byte) (Object, error) {
	o := new(metav1.PartialObjectMetadata)
	return o, json.Unmarshal(b, o)
}

func create(namespace, name, v string) Write {
	return Write{Verb: Create, Resource: "things", Namespace: namespace, Name: name, Object: thing(namespace, name, v)}
}

func update(namespace, name, v string) Write {
	return Write{Verb: Update, Resource: "things", Namespace: namespace, Name: name, Object: thing(namespace, name, v)}
}

func remover(namespace, name string) Write {
	return Write{Verb: Delete, Resource: "things", Namespace: namespace, Name: name}
}

func check(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Errorf("the store is inconsistent: %v", err)
	}
}

func TestApplyChecksPreconditions(t *testing.T) {
	with := func(w Write, version uint64, uid types.UID) Write {
		w.Version, w.UID = version, uid
		return w
	}
	other := create("ns", "a", "x")
	other.Name = "b"
	for name, c := range map[string]struct {
		w    Write
		want error
		ok   bool
	}{
		"create":                          {w: create("ns", "new", "x"), ok: true},
		"create what exists":              {w: create("ns", "a", "x"), want: ErrExists},
		"create what exists elsewhere":    {w: create("other", "a", "x"), ok: true},
		"create demanding a version":      {w: with(create("ns", "new", "x"), 7, ""), want: ErrConflict},
		"create demanding a UID":          {w: with(create("ns", "new", "x"), 0, "u"), want: ErrConflict},
		"update":                          {w: update("ns", "a", "x"), ok: true},
		"update what is not there":        {w: update("ns", "b", "x"), want: ErrNotFound},
		"update at the version":           {w: with(update("ns", "a", "x"), 5, ""), ok: true},
		"update at an older version":      {w: with(update("ns", "a", "x"), 4, ""), want: ErrConflict},
		"update the right UID":            {w: with(update("ns", "a", "x"), 0, "uid-a"), ok: true},
		"update another UID":              {w: with(update("ns", "a", "x"), 0, "uid-b"), want: ErrConflict},
		"delete":                          {w: remover("ns", "a"), ok: true},
		"delete at the version and UID":   {w: with(remover("ns", "a"), 5, "uid-a"), ok: true},
		"delete at an older version":      {w: with(remover("ns", "a"), 4, "uid-a"), want: ErrConflict},
		"delete another UID":              {w: with(remover("ns", "a"), 5, "uid-b"), want: ErrConflict},
		"delete what is not there":        {w: remover("ns", "b"), want: ErrNotFound},
		"no verb":                         {w: Write{Resource: "things", Name: "a"}},
		"no name":                         {w: Write{Verb: Delete, Resource: "things"}},
		"delete with an object":           {w: Write{Verb: Delete, Resource: "things", Name: "a", Object: thing("", "a", "x")}},
		"update without an object":        {w: Write{Verb: Update, Resource: "things", Name: "a"}},
		"an object that has another name": {w: other},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewStore()
			if _, err := s.Apply(5, create("ns", "a", "1")); err != nil {
				t.Fatal(err)
			}
			before, _ := s.List("things", "")
			record, err := s.Apply(6, c.w)
			check(t, s)
			if c.ok {
				if err != nil {
					t.Fatal(err)
				}
				if record.Revision() != 6 || record.Object().GetResourceVersion() != "6" {
					t.Errorf("the record's version is %d, the object's %s", record.Revision(), record.Object().GetResourceVersion())
				}
				return
			}
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if after, _ := s.List("things", ""); !slices.Equal(before, after) {
				t.Error("a refused write changed something")
			}
		})
	}
}

func TestApplyRefusesThePast(t *testing.T) {
	s := NewStore()
	if _, err := s.Apply(5, create("ns", "a", "1")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(5, create("ns", "b", "1")); err == nil {
		t.Error("two writes have the same revision")
	}
}

func TestRecordsAreNotShared(t *testing.T) {
	s := NewStore()
	mine := create("ns", "a", "1")
	first, err := s.Apply(1, mine)
	if err != nil {
		t.Fatal(err)
	}
	mine.Object.SetAnnotations(map[string]string{"v": "changed behind its back"})
	if got := value(s.Get("things", "ns", "a")); got != "1" {
		t.Errorf("the store's object became %q", got)
	}
	last, err := s.Apply(2, remover("ns", "a"))
	if err != nil {
		t.Fatal(err)
	}
	if value(last) != "1" || last.Object().GetResourceVersion() != "2" {
		t.Errorf("the deletion left %q at version %s", value(last), last.Object().GetResourceVersion())
	}
	if first.Object().GetResourceVersion() != "1" {
		t.Error("the deletion changed the version before it")
	}
	if s.Get("things", "ns", "a") != nil {
		t.Error("it is still there")
	}
}

func TestListIsSortedAndOfOneNamespace(t *testing.T) {
	s := NewStore()
	for i, n := range []string{"b/z", "a/y", "b/a", "c/c", "a/b", "ab/a"} {
		namespace, name, _ := bytes.Cut([]byte(n), []byte("/"))
		if _, err := s.Apply(uint64(i+1), create(string(namespace), string(name), n)); err != nil {
			t.Fatal(err)
		}
	}
	for namespace, want := range map[string][]string{
		"":  {"a/b", "a/y", "ab/a", "b/a", "b/z", "c/c"},
		"a": {"a/b", "a/y"},
		"c": {"c/c"},
		"d": nil,
	} {
		records, revision := s.List("things", namespace)
		var got []string
		for _, r := range records {
			got = append(got, value(r))
		}
		if !slices.Equal(got, want) || revision != 6 {
			t.Errorf("namespace %q at %d: got %v, want %v", namespace, revision, got, want)
		}
	}
	if got, revision := s.List("nothing", ""); len(got) != 0 || revision != 6 {
		t.Errorf("an unknown resource has %v at %d", got, revision)
	}
	check(t, s)
}

func TestEncodingIsSharedWhileInUse(t *testing.T) {
	s := NewStore()
	r, err := s.Apply(1, create("ns", "a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	encode := func(o Object) ([]byte, error) {
		calls++
		return json.Marshal(o)
	}
	fail := func(Object) ([]byte, error) { return nil, io.ErrShortBuffer }
	if _, err := r.Encoding("json", fail); !errors.Is(err, io.ErrShortBuffer) {
		t.Errorf("a failed encode says %v", err)
	}
	for range 10 {
		b, err := r.Encoding("json", encode)
		if err != nil || len(b) == 0 {
			t.Fatal(err)
		}
		if _, err := r.Encoding("other", encode); err != nil {
			t.Fatal(err)
		}
	}
	// A garbage collection in between may cost another call, not ten.
	if calls < 2 || calls > 6 {
		t.Errorf("encoded %d times", calls)
	}
}

// history makes random writes of which about half succeed, and remembers the
// state after each.
type history struct {
	states map[uint64]map[string]string
	events []string // "revision type namespace/name value previous"
	last   uint64
}

func randomHistory(t testing.TB, rng *rand.Rand, s *Store, writes int) *history {
	h := &history{states: map[uint64]map[string]string{0: {}}}
	now := map[string]string{}
	for range writes {
		h.last += 1 + rng.Uint64N(3) // the log has other entries too
		namespace, name := fmt.Sprintf("n%d", rng.IntN(3)), fmt.Sprintf("o%d", rng.IntN(8))
		key, v := namespace+"/"+name, strconv.FormatUint(h.last, 10)
		before, exists := now[key]
		var w Write
		var event string
		switch rng.IntN(3) {
		case 0:
			w, event = create(namespace, name, v), "ADDED"
		case 1:
			w, event = update(namespace, name, v), "MODIFIED"
		default:
			w, event, v = remover(namespace, name), "DELETED", before
		}
		ok := exists == (w.Verb != Create)
		if _, err := s.Apply(h.last, w); (err == nil) != ok {
			t.Fatalf("revision %d: %s %s: %v, exists: %v", h.last, w.Verb, key, err, exists)
		}
		if ok {
			h.events = append(h.events, fmt.Sprintf("%d %s %s %s %s", h.last, event, key, v, before))
			now[key] = v
			if w.Verb == Delete {
				delete(now, key)
			}
		}
		h.states[h.last] = maps.Clone(now)
	}
	return h
}

func stateOf(records []Record) map[string]string {
	out := map[string]string{}
	for _, r := range records {
		out[r.Object().GetNamespace()+"/"+r.Object().GetName()] = value(r)
	}
	return out
}

func eventLine(e Event) string {
	previous := ""
	if e.Previous != nil {
		previous = value(e.Previous)
	}
	return fmt.Sprintf("%d %s %s/%s %s %s", e.Record.Revision(), e.Type, e.Record.Object().GetNamespace(), e.Record.Object().GetName(), value(e.Record), previous)
}

// TestPastAgreesWithModel lists and watches from every revision of random
// histories.
func TestPastAgreesWithModel(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		window := 1 + rng.IntN(60)
		s := newStore(window, 1<<20)
		h := randomHistory(t, rng, s, 120)
		check(t, s)
		oldest := uint64(0)
		if cut := len(h.events) - window; cut > 0 {
			fmt.Sscan(h.events[cut-1], &oldest)
		}
		state := map[string]string{}
		for revision := uint64(0); revision <= h.last+1; revision++ {
			if now, ok := h.states[revision]; ok {
				state = now
			}
			records, err := s.ListAt("things", "", revision)
			w, watchErr := s.Watch("things", "", revision)
			switch {
			case revision > h.last:
				if !errors.Is(err, ErrFuture) || !errors.Is(watchErr, ErrFuture) {
					t.Fatalf("seed %d: revision %d of %d: %v, %v", seed, revision, h.last, err, watchErr)
				}
				continue
			case revision < oldest:
				if !errors.Is(err, ErrExpired) || !errors.Is(watchErr, ErrExpired) {
					t.Fatalf("seed %d: revision %d, oldest %d: %v, %v", seed, revision, oldest, err, watchErr)
				}
				continue
			case err != nil || watchErr != nil:
				t.Fatalf("seed %d: revision %d, oldest %d: %v, %v", seed, revision, oldest, err, watchErr)
			}
			if got := stateOf(records); !maps.Equal(got, state) {
				t.Fatalf("seed %d: at revision %d: got %v, want %v", seed, revision, got, state)
			}
			if !slices.IsSortedFunc(records, func(a, b Record) int {
				return bytes.Compare([]byte(a.Object().GetNamespace()+"/"+a.Object().GetName()), []byte(b.Object().GetNamespace()+"/"+b.Object().GetName()))
			}) {
				t.Fatalf("seed %d: the list at %d is not sorted", seed, revision)
			}
			var want []string
			for _, line := range h.events {
				var at uint64
				if fmt.Sscan(line, &at); at > revision {
					want = append(want, line)
				}
			}
			if len(want) == 0 {
				continue
			}
			events, upTo, err := w.Next(t.Context())
			if err != nil || upTo != h.last {
				t.Fatalf("seed %d: watching from %d: %v, up to %d", seed, revision, err, upTo)
			}
			var got []string
			for _, e := range events {
				got = append(got, eventLine(e))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: watching from %d: got %q, want %q", seed, revision, got, want)
			}
		}
		check(t, s)
	}
}

func TestWatchersSeeTheSameOrder(t *testing.T) {
	// conformance: watch-consistency
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		const writes = 200
		results := make(chan []string)
		for i := range 8 {
			resource := []string{"things", ""}[i%2]
			w, err := s.Watch(resource, "", 0)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				var got []string
				for len(got) == 0 || got[len(got)-1][:4] != "end " {
					events, _, err := w.Next(t.Context())
					if err != nil {
						t.Error(err)
						break
					}
					for _, e := range events {
						if value(e.Record) == "end" {
							got = append(got, "end ")
							break
						}
						got = append(got, eventLine(e))
					}
				}
				results <- got
			}()
		}
		h := randomHistory(t, rand.New(rand.NewPCG(1, 2)), s, writes)
		if _, err := s.Apply(h.last+1, create("z", "z", "end")); err != nil {
			t.Fatal(err)
		}
		want := append(h.events, "end ")
		for range 8 {
			if got := <-results; !slices.Equal(got, want) {
				t.Errorf("got %d events, want %d: %q", len(got), len(want), got)
			}
		}
	})
}

func TestWatchOfOneNamespaceAndBookmarks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		w, err := s.Watch("things", "mine", 0)
		if err != nil {
			t.Fatal(err)
		}
		apply := func(revision uint64, wr Write) {
			t.Helper()
			if _, err := s.Apply(revision, wr); err != nil {
				t.Fatal(err)
			}
		}
		apply(1, create("other", "a", "1"))
		if got := w.Revision(); got != 1 {
			t.Errorf("nothing of ours lies before 1, the bookmark is %d", got)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if events, _, err := w.Next(short); len(events) != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, %v", events, err)
		}
		apply(2, create("mine", "a", "1"))
		apply(3, create("other", "b", "1"))
		if got := w.Revision(); got != 1 {
			t.Errorf("the event at 2 is not returned yet, the bookmark is %d", got)
		}
		events, upTo, err := w.Next(t.Context())
		if err != nil || len(events) != 1 || events[0].Type != watch.Added || events[0].Record.Revision() != 2 || upTo != 3 {
			t.Errorf("got %v up to %d: %v", events, upTo, err)
		}
		apply(4, Write{Verb: Create, Resource: "others", Name: "x", Object: thing("", "x", "1")})
		if got := w.Revision(); got != 4 {
			t.Errorf("the bookmark is %d", got)
		}
		go w.Stop()
		if _, _, err := w.Next(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("a stopped watcher says %v", err)
		}
		check(t, s)
	})
}

// TestRestartedWatch goes on from the last version that an earlier watch saw.
func TestRestartedWatch(t *testing.T) {
	// conformance: watch-configmaps-closed-and-restarted
	s := NewStore()
	records, w, err := s.ListAndWatch("things", "")
	if err != nil || len(records) != 0 {
		t.Fatal(records, err)
	}
	for i, wr := range []Write{create("n", "a", "1"), update("n", "a", "2")} {
		if _, err := s.Apply(uint64(i+1), wr); err != nil {
			t.Fatal(err)
		}
	}
	events, seen, err := w.Next(t.Context())
	if err != nil || len(events) != 2 {
		t.Fatal(events, err)
	}
	w.Stop()
	for i, wr := range []Write{update("n", "a", "3"), remover("n", "a")} {
		if _, err := s.Apply(uint64(i+3), wr); err != nil {
			t.Fatal(err)
		}
	}
	again, err := s.Watch("things", "", seen)
	if err != nil {
		t.Fatal(err)
	}
	events, _, err = again.Next(t.Context())
	if err != nil || len(events) != 2 || events[0].Type != watch.Modified || value(events[0].Record) != "3" || events[1].Type != watch.Deleted {
		t.Errorf("got %v, %v", events, err)
	}
}

func TestSlowWatcherIsTold(t *testing.T) {
	s := newStore(10, 1<<20)
	slow, err := s.Watch("things", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	quiet, err := s.Watch("quiet", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(11) {
		if _, err := s.Apply(i+1, create("n", fmt.Sprint(i), "x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := slow.Next(t.Context()); !errors.Is(err, ErrExpired) {
		t.Errorf("a watcher that missed an event is told %v", err)
	}
	if _, err := s.Watch("things", "", 0); !errors.Is(err, ErrExpired) {
		t.Errorf("watching from before the window: %v", err)
	}
	// Events of others do not make a watcher slow.
	if _, err := s.Apply(12, Write{Verb: Create, Resource: "quiet", Name: "x", Object: thing("", "x", "1")}); err != nil {
		t.Fatal(err)
	}
	if events, _, err := quiet.Next(t.Context()); err != nil || len(events) != 1 {
		t.Errorf("the quiet watcher got %v, %v", events, err)
	}
	check(t, s)
}

func TestWindowIsBoundedInBytes(t *testing.T) {
	s := newStore(1000, 100_000)
	for i := range uint64(500) {
		s.mu.Lock()
		s.apply(i+1, create("n", fmt.Sprint(i), "x"), requestID{}, 1000)
		s.finish(i + 1)
		s.mu.Unlock()
	}
	if s.all.len() != 100 || s.bytes != 100_000 {
		t.Errorf("%d events of %d bytes are kept", s.all.len(), s.bytes)
	}
	for i := range uint64(500) {
		s.mu.Lock()
		s.apply(i+501, create("n", fmt.Sprint(i+501), "x"), requestID{}, 1_000_000)
		s.finish(i + 501)
		s.mu.Unlock()
	}
	if s.all.len() != minWindow {
		t.Errorf("%d huge events are kept", s.all.len())
	}
	check(t, s)
}

func TestWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		done := make(chan error)
		go func() { done <- s.WaitFor(t.Context(), 3) }()
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := s.WaitFor(short, 9); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("waiting for what does not come: %v", err)
		}
		if _, err := s.Apply(4, create("n", "a", "1")); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := s.WaitFor(t.Context(), 4); err != nil {
			t.Error(err)
		}
		check(t, s)
	})
}

// sink is a raft.SnapshotSink in memory.
type sink struct {
	bytes.Buffer
	cancelled, closed bool
}

func (s *sink) ID() string    { return "test" }
func (s *sink) Cancel() error { s.cancelled = true; return nil }
func (s *sink) Close() error  { s.closed = true; return nil }

// Changed grows with every change of its resources, by whatever way it comes, and
// with no other.
func TestChanged(t *testing.T) {
	s := NewStore()
	at := s.Changed("things", "others")
	step := func(what string, revision uint64, w Write, grows bool) {
		t.Helper()
		_, _ = s.Apply(revision, w) // some are refused
		now := s.Changed("things", "others")
		if now < at || (now > at) != grows {
			t.Errorf("%s: from %d to %d", what, at, now)
		}
		at = now
	}
	step("a create", 1, create("a", "x", "1"), true)
	step("another that is refused", 2, create("a", "x", "2"), false)
	step("of another resource", 3, Write{Verb: Create, Resource: "nodes", Name: "x", Object: thing("", "x", "1")}, false)
	step("an update", 4, update("a", "x", "2"), true)
	step("a delete", 5, remover("a", "x"), true)
	var out sink
	if err := s.snapshot(jsonCodec{}.Encode).Persist(&out); err != nil {
		t.Fatal(err)
	}
	behind := NewStore()
	if _, err := behind.Apply(1, create("a", "x", "1")); err != nil {
		t.Fatal(err)
	}
	before := behind.Changed("things")
	if err := (&machine{store: behind, codec: jsonCodec{}}).Restore(io.NopCloser(bytes.NewReader(out.Bytes()))); err != nil {
		t.Fatal(err)
	}
	if now := behind.Changed("things"); now <= before {
		t.Errorf("a snapshot in place of what was there: from %d to %d", before, now)
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 3))
		from := NewStore()
		h := randomHistory(t, rng, from, 100)
		if _, err := from.Apply(h.last+1, Write{Verb: Create, Resource: "nodes", Name: "x", Object: thing("", "x", "1")}); err != nil {
			t.Fatal(err)
		}
		snap := from.snapshot(jsonCodec{}.Encode)
		want, revision := from.List("things", "")
		// The store goes on while the snapshot is written.
		if _, err := from.Apply(h.last+2, create("later", "later", "x")); err != nil {
			t.Fatal(err)
		}
		var out sink
		if err := snap.Persist(&out); err != nil || !out.closed {
			t.Fatal(err)
		}
		to := NewStore()
		randomHistory(t, rng, to, 20) // it is all replaced
		w, err := to.Watch("things", "", to.Revision())
		if err != nil {
			t.Fatal(err)
		}
		m := &machine{store: to, codec: jsonCodec{}}
		if err := m.Restore(io.NopCloser(bytes.NewReader(out.Bytes()))); err != nil {
			t.Fatal(err)
		}
		check(t, to)
		got, at := to.List("things", "")
		if !maps.Equal(stateOf(got), stateOf(want)) || at != revision {
			t.Errorf("at %d got %v, at %d was %v", at, stateOf(got), revision, stateOf(want))
		}
		for i := range got {
			if got[i].Revision() != want[i].Revision() {
				t.Errorf("%s came back at version %d, was %d", got[i].Object().GetName(), got[i].Revision(), want[i].Revision())
			}
		}
		if _, _, err := w.Next(t.Context()); !errors.Is(err, ErrExpired) {
			t.Errorf("a watcher across the restore is told %v", err)
		}
		if _, err := to.Watch("things", "", revision-1); !errors.Is(err, ErrExpired) {
			t.Errorf("watching from before the snapshot: %v", err)
		}
		resumed, err := to.Watch("things", "", revision)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := to.Apply(revision+1, create("later", "later", "x")); err != nil {
			t.Fatal(err)
		}
		if events, _, err := resumed.Next(t.Context()); err != nil || len(events) != 1 {
			t.Errorf("watching on from the snapshot: %v, %v", events, err)
		}
		check(t, to)
	}
}

func TestDamagedSnapshotChangesNothing(t *testing.T) {
	from := NewStore()
	randomHistory(t, rand.New(rand.NewPCG(7, 7)), from, 50)
	var out sink
	if err := from.snapshot(jsonCodec{}.Encode).Persist(&out); err != nil {
		t.Fatal(err)
	}
	whole := out.Bytes()
	to := NewStore()
	if _, err := to.Apply(1, create("n", "mine", "1")); err != nil {
		t.Fatal(err)
	}
	m := &machine{store: to, codec: jsonCodec{}}
	for i := range whole {
		broken := bytes.Clone(whole)
		broken[i] ^= 0x41
		for _, b := range [][]byte{broken, whole[:i]} {
			if err := m.Restore(io.NopCloser(bytes.NewReader(b))); err == nil {
				t.Fatalf("damage at byte %d went unnoticed", i)
			}
		}
	}
	if got, _ := to.List("things", ""); len(got) != 1 {
		t.Error("a damaged snapshot replaced something")
	}
	check(t, to)
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add([]byte{})
	for _, e := range []entry{
		{verb: Create, id: newRequestID(), term: 3, resource: "things", name: "a", object: []byte("{}")},
		{verb: Delete, version: 1 << 40, resource: "things", namespace: "n", name: "a", uid: "u"},
	} {
		f.Add(e.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := decodeEntry(b)
		if err != nil {
			return
		}
		// What is accepted means the same when it is written again.
		again, err := decodeEntry(e.encode())
		if err != nil || again.resource != e.resource || again.namespace != e.namespace || again.name != e.name || again.uid != e.uid ||
			again.id != e.id || again.term != e.term || again.version != e.version || again.verb != e.verb || !bytes.Equal(again.object, e.object) {
			t.Fatalf("%+v became %+v: %v", e, again, err)
		}
	})
}

func FuzzReadSnapshot(f *testing.F) {
	s := NewStore()
	randomHistory(f, rand.New(rand.NewPCG(1, 1)), s, 10)
	var out sink
	if err := s.snapshot(jsonCodec{}.Encode).Persist(&out); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readSnapshot(bytes.NewReader(b), jsonCodec{}.Decode)
		if err == nil {
			s := NewStore()
			s.restore(c)
			check(t, s)
		}
	})
}

func FuzzParseVote(f *testing.F) {
	f.Add(make([]byte, voteSlot))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 8 {
			parseVote(b)
		}
	})
}

func TestResultsSurviveTheWire(t *testing.T) {
	for _, r := range []result{
		{verdict: committed, revision: 1 << 33},
		{verdict: committed, revision: 7, err: fmt.Errorf("update x: %w", ErrConflict)},
		{verdict: refused, err: ErrNoLeader},
		{verdict: rejected, err: errors.New("something else")},
		{verdict: unknown, err: fmt.Errorf("gone: %w", ErrUnknownOutcome)},
	} {
		got, err := parseResult(r.encode())
		if err != nil || got.verdict != r.verdict || got.revision != r.revision || (got.err == nil) != (r.err == nil) {
			t.Errorf("%+v became %+v: %v", r, got, err)
			continue
		}
		for _, e := range outcomes[1:] {
			if errors.Is(got.err, e) != errors.Is(r.err, e) {
				t.Errorf("%v became %v", r.err, got.err)
			}
		}
	}
	for _, b := range [][]byte{nil, {9, 0, 0}, {0, 0, 0x80}} {
		if _, err := parseResult(b); err == nil {
			t.Errorf("%v is an answer", b)
		}
	}
}

// TestWaitEndsWithTheReplica: a write by way of a replica that is taken out of
// the configuration is committed elsewhere and never applied here. Whoever
// waits for it must be told, not wait for ever.
func TestWaitEndsWithTheReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		told := make(chan error)
		go func() { told <- s.WaitFor(t.Context(), 7) }()
		synctest.Wait()
		s.end()
		if err := <-told; !errors.Is(err, errEnded) || errors.Is(err, ErrNoLeader) {
			t.Errorf("who waited is told %v", err)
		}
		if err := s.WaitFor(t.Context(), 7); !errors.Is(err, errEnded) {
			t.Errorf("who comes later is told %v", err)
		}
		if err := s.WaitFor(t.Context(), 0); err != nil {
			t.Errorf("what is there: %v", err)
		}
	})
}
