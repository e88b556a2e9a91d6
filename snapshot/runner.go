package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"conclave/api"
)

// Where the configuration is.
const (
	ConfigNamespace = metav1.NamespaceSystem
	ConfigName      = "conclave"
)

const (
	// takeLimit bounds one snapshot, retryAfter is the pause after one that
	// failed.
	takeLimit  = 30 * time.Minute
	retryAfter = 5 * time.Minute
	// lookLimit bounds the look at what there is, tellLimit the writing of an event.
	lookLimit = time.Minute
	tellLimit = 10 * time.Second
)

var (
	configMaps = corev1.SchemeGroupVersion.WithResource("configmaps")
	events     = corev1.SchemeGroupVersion.WithResource("events")
)

// Config is what a Runner needs.
type Config struct {
	Client  api.Client
	Cluster string // its id
	// Take returns the cluster as it is now. Whoever calls it reads State to
	// its end, or ends the context.
	Take func(ctx context.Context) (Content, error)
	Dir  string // where a snapshot is written before it goes to its place
	Log  *slog.Logger
}

// Result is what became of the scheduled snapshots, since this runner began.
type Result struct {
	Saved  time.Time // the newest that is safe, by its name; zero: none is known
	Size   int64
	Failed string // why the last attempt failed, empty if it did not
	Next   time.Time
	Saves  uint64 // since the runner began
	Fails  uint64
}

// Runner makes snapshots on the schedule of the cluster's configuration. One at
// a time runs in a cluster, on the leader.
type Runner struct {
	c Config

	mu     sync.Mutex
	result Result
}

// New makes a Runner.
func New(c Config) *Runner { return &Runner{c: c} }

// Result is what is known now.
func (r *Runner) Result() Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.result
}

func (r *Runner) note(change func(*Result)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.result)
}

// settings hands the newest configuration from its follower to the loop.
type settings struct{ news chan *corev1.ConfigMap }

func (s settings) set(c *corev1.ConfigMap) {
	select {
	case <-s.news: // replaced by the newer; nobody else sends
	default:
	}
	s.news <- c
}

func (s settings) Replace(objects []api.Object) {
	for _, o := range objects {
		if c, ok := o.(*corev1.ConfigMap); ok {
			s.set(c)
			return
		}
	}
	s.set(nil)
}

func (s settings) Apply(event watch.EventType, object api.Object) {
	c, ok := object.(*corev1.ConfigMap)
	switch {
	case event == watch.Deleted:
		s.set(nil)
	case ok:
		s.set(c)
	}
}

// Run works until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	s := settings{make(chan *corev1.ConfigMap, 1)}
	ctx, cancel := context.WithCancel(ctx)
	var following sync.WaitGroup
	defer following.Wait()
	defer cancel()
	following.Go(func() {
		// It ends with ctx alone: nothing about the question can be wrong.
		_ = api.Follow(ctx, r.c.Client, configMaps, ConfigNamespace, metav1.ListOptions{FieldSelector: "metadata.name=" + ConfigName}, s)
	})
	due := time.NewTimer(0)
	if !due.Stop() {
		<-due.C
	}
	var config *corev1.ConfigMap
	var plan Plan
	at := func(next time.Time) {
		r.note(func(n *Result) { n.Next = next })
		due.Reset(max(0, time.Until(next)))
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-s.news:
			if config != nil && now != nil && maps.Equal(config.Data, now.Data) {
				continue // another field of it changed
			}
			config = now
			due.Stop()
			p, wanted, err := parse(now)
			if err != nil {
				r.fail(ctx, now, "SnapshotConfigInvalid", err)
				continue
			}
			r.note(func(n *Result) { n.Failed, n.Next = "", time.Time{} })
			if wanted {
				plan = p
				at(r.first(ctx, now, p))
			}
		case <-due.C:
			if err := r.save(ctx, config, plan); err != nil && ctx.Err() == nil {
				r.fail(ctx, config, "SnapshotFailed", err)
				at(earlier(time.Now().Add(retryAfter), plan.Schedule.Next(time.Now())))
				continue
			}
			at(plan.Schedule.Next(time.Now()))
		}
	}
}

func parse(c *corev1.ConfigMap) (Plan, bool, error) {
	if c == nil {
		return Plan{}, false, nil
	}
	return ParsePlan(c.Data)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// first is when the first snapshot is due: at once where one was missed, while
// nobody led say.
func (r *Runner) first(ctx context.Context, config *corev1.ConfigMap, p Plan) time.Time {
	look, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	now := time.Now()
	place, err := r.place(look, p)
	var all []Entry
	if err == nil {
		all, err = place.List(look)
	}
	if err != nil {
		if ctx.Err() == nil {
			r.fail(ctx, config, "SnapshotFailed", fmt.Errorf("look at the snapshots that there are: %w", err))
		}
		return p.Schedule.Next(now)
	}
	for _, e := range all {
		if !strings.HasPrefix(e.Name, prefix(r.c.Cluster)) {
			continue
		}
		r.note(func(n *Result) { n.Saved, n.Size = e.Made, e.Size })
		return p.Schedule.Next(earlier(e.Made, now))
	}
	return p.Schedule.Next(now)
}

// place is where the plan's snapshots go.
func (r *Runner) place(ctx context.Context, p Plan) (Place, error) {
	var s3 S3
	if strings.HasPrefix(p.To, s3Scheme) {
		secret, err := api.GetAs[*corev1.Secret](ctx, r.c.Client, ConfigNamespace, p.Secret)
		if err != nil {
			return nil, fmt.Errorf("the credentials for S3: %w", err)
		}
		s3 = S3FromEnvironment(func(name string) string { return string(secret.Data[name]) })
		if p.Endpoint != "" {
			s3.Endpoint = p.Endpoint
		}
		if p.Region != "" {
			s3.Region = p.Region
		}
	}
	place, _, err := Locate(strings.TrimSuffix(p.To, "/")+"/", s3)
	return place, err
}

// save makes one snapshot and deletes what it makes superfluous.
func (r *Runner) save(ctx context.Context, config *corev1.ConfigMap, p Plan) error {
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	place, err := r.place(ctx, p)
	if err != nil {
		return err
	}
	content, err := r.c.Take(ctx)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(r.c.Dir, "snapshot-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	defer temp.Close()
	if err := Write(temp, content, p.Recipients...); err != nil {
		return err
	}
	size, err := temp.Seek(0, io.SeekEnd)
	if err == nil {
		err = again(temp)
	}
	if err == nil {
		err = place.Put(ctx, content.Header.Name(), temp, size)
	}
	if err != nil {
		return err
	}
	r.note(func(n *Result) { n.Saved, n.Size, n.Failed, n.Saves = content.Header.Made, size, "", n.Saves+1 })
	r.tell(ctx, config, corev1.EventTypeNormal, "SnapshotSaved", fmt.Sprintf("saved %s%s (revision %d, %d bytes)", place, content.Header.Name(), content.Header.Revision, size))
	all, err := place.List(ctx)
	if err != nil {
		return fmt.Errorf("look for snapshots to delete: %w", err)
	}
	var failed []error
	for _, e := range surplus(all, r.c.Cluster, p.Keep) {
		if err := place.Delete(ctx, e.Name); err != nil {
			failed = append(failed, fmt.Errorf("delete an old snapshot: %w", err))
		}
	}
	return errors.Join(failed...)
}

func (r *Runner) fail(ctx context.Context, config *corev1.ConfigMap, reason string, err error) {
	r.c.Log.Warn("no snapshot", "reason", reason, "error", err)
	r.note(func(n *Result) { n.Failed, n.Fails = err.Error(), n.Fails+1 })
	r.tell(context.WithoutCancel(ctx), config, corev1.EventTypeWarning, reason, err.Error())
}

// tell writes an event about the configuration. It is lost where it cannot be
// written, as Kubernetes permits.
func (r *Runner) tell(ctx context.Context, config *corev1.ConfigMap, kind, reason, message string) {
	if config == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellLimit)
	defer cancel()
	now := metav1.Now()
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: config.Namespace, GenerateName: config.Name + "."},
		InvolvedObject: corev1.ObjectReference{Kind: "ConfigMap", APIVersion: "v1", Namespace: config.Namespace, Name: config.Name,
			UID: config.UID, ResourceVersion: config.ResourceVersion},
		Type: kind, Reason: reason, Message: message, FirstTimestamp: now, LastTimestamp: now, Count: 1,
		Source: corev1.EventSource{Component: "conclave-snapshot"}, ReportingController: "conclave-snapshot",
	}
	if _, err := r.c.Client.Create(ctx, events, event.Namespace, "", event, metav1.CreateOptions{}); err != nil {
		r.c.Log.Debug("event not written", "reason", reason, "error", err)
	}
}
