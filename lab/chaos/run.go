package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/lab"
)

// Config says what to drill.
type Config struct {
	Lab      *lab.Lab // a cluster that is formed
	Seed     uint64
	Duration time.Duration
	Beyond   bool
	Without  []Kind // of fault
	// History gets all that is recorded, one JSON object a line; nil: nobody does.
	History io.Writer
	// Say tells what happens, in one line.
	Say func(at time.Duration, text string)
}

const (
	clientsPerHost = 2
	// The pause between a client's operations, and before the next fault, is
	// between nothing and this.
	clientPause = 150 * time.Millisecond
	faultPause  = 5 * time.Second
	// settleWait is how long the cluster may take to be whole by itself once
	// nothing is wrong any more: machines that run a drill may be slow.
	settleWait = 4 * time.Minute
	// judgeWait is how long one register's history is thought about.
	judgeWait = 30 * time.Second
)

// drill is a run.
type drill struct {
	Config
	lab     *lab.Lab
	began   time.Time
	history *history

	kubeconfig  []byte
	clients     map[string]*apiClient // by host
	replicas    int                   // of the page
	stamps      string                // the folder of what StatefulSet pods stamp
	readdressed int

	mu      sync.Mutex
	hosts   []lab.Host // as last published
	lives   map[string]life
	inForce []*force
	now     sight
	events  []Event
	past    []Span
	probes  []Probe
	seen    observed
}

// life is the time from a host's boot to its end.
type life struct {
	pid int
	ctx context.Context
	end context.CancelFunc
}

func (d *drill) since() time.Duration { return time.Since(d.began) }

// tell notes an event.
func (d *drill) tell(at time.Duration, e Event) {
	e.At = at
	d.mu.Lock()
	d.events = append(d.events, e)
	d.mu.Unlock()
	d.history.also("event", e)
	d.Say(at, e.Line())
}

// publish lets the others see the hosts as the lab now has them, and ends what
// was connected to a host that is off.
func (d *drill) publish() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts = nil
	for _, h := range d.lab.Hosts {
		d.hosts = append(d.hosts, *h)
		old := d.lives[h.Name]
		if old.pid == h.Init.PID && old.ctx != nil {
			continue
		}
		if old.end != nil {
			old.end()
		}
		ctx, end := context.WithCancel(context.Background())
		d.lives[h.Name] = life{h.Init.PID, ctx, end}
		if c := d.clients[h.Name]; c != nil {
			c.http.CloseIdleConnections()
		}
	}
}

func (d *drill) published() []lab.Host {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.hosts
}

func (d *drill) host(name string) lab.Host {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(d.hosts, func(h lab.Host) bool { return h.Name == name })
	return d.hosts[i]
}

// during is a context that also ends when the host does.
func (d *drill) during(ctx context.Context, name string) (context.Context, context.CancelFunc) {
	d.mu.Lock()
	life := d.lives[name].ctx
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(life, cancel)
	return ctx, func() { stop(); cancel() }
}

// Run drills the lab's cluster and returns what came of it. An error means that
// the drill could not be carried out; what it found is in the report.
func Run(ctx context.Context, c Config) (*Report, error) {
	d := &drill{
		Config: c, lab: c.Lab, began: time.Now(), history: newHistory(c.History),
		clients: map[string]*apiClient{}, lives: map[string]life{},
	}
	d.publish()
	defer func() {
		for _, l := range d.lives {
			l.end()
		}
	}()
	if err := d.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare the drill: %w", err)
	}
	return d.run(ctx)
}

// prepare makes the clients and the workload, and waits until all is well.
func (d *drill) prepare(ctx context.Context) error {
	kubeconfig, err := d.lab.Ask(ctx, "kubeconfig")
	if err != nil {
		return err
	}
	d.kubeconfig = []byte(kubeconfig)
	image, err := emptyImage()
	if err != nil {
		return err
	}
	for _, h := range d.published() {
		d.clients[h.Name], err = newAPIClient(d.kubeconfig, func() string { return hostURL(d.host(h.Name).Address.String()) })
		if err != nil {
			return err
		}
		var imported any
		if err := askSocket(ctx, d.lab.Socket(&h), http.MethodPost, "/images", image, &imported); err != nil {
			return fmt.Errorf("import the workload's image on %s: %w", h.Name, err)
		}
	}
	d.replicas = len(d.hosts)
	if d.stamps, err = d.lab.Shared(fmt.Sprintf("stamps-%d", time.Now().UnixNano())); err != nil {
		return err
	}
	api := d.clients[d.hosts[0].Name]
	objects := []struct {
		path   string
		object any
	}{
		{namespaces, &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: namespace}}},
		{servicesAt, pageService()},
		{deployments, pageDeployment(d.lab.Binary, int32(d.replicas))},
		{statefulSets, singleSet(d.lab.Binary, d.stamps)},
	}
	for _, o := range objects {
		err := api.call(ctx, http.MethodPost, o.path, o.object, nil)
		if answered(err) == http.StatusConflict {
			err = fmt.Errorf("the namespace %s is there already: delete it, it is another drill's", namespace)
		}
		if err != nil {
			return fmt.Errorf("make the workload: %w", err)
		}
	}
	o := d.observer()
	return d.until(ctx, func() string {
		s := o.look(ctx)
		d.mu.Lock()
		d.now = s
		d.mu.Unlock()
		if lacks := whole(s.answers, func(string) bool { return false }); lacks != "" {
			return lacks
		}
		return settled(ctx, api, len(d.hosts), d.replicas+singleCount)
	})
}

func (d *drill) observer() *observer {
	return &observer{hosts: d.published, since: d.since, found: d.found, socket: d.lab.Socket}
}

// until looks again and again, until nothing is lacking.
func (d *drill) until(ctx context.Context, lacks func() string) error {
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	for {
		what := lacks()
		if what == "" {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("after %s: %s", settleWait, what)
		}
	}
}

// run is the drill itself.
func (d *drill) run(ctx context.Context) (*Report, error) {
	var service corev1.Service
	if err := d.clients[d.hosts[0].Name].call(ctx, http.MethodGet, servicesAt+"/"+pageName, nil, &service); err != nil {
		return nil, err
	}
	d.began = time.Now()
	working, stop := context.WithCancel(ctx)
	defer stop()
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	var workers, lookers sync.WaitGroup
	watchers := d.watchers()
	for _, w := range watchers {
		lookers.Go(func() { w.run(watching) })
	}
	lookers.Go(func() { d.observer().run(watching) })
	keys := &keyring{}
	for i, h := range d.hosts {
		for n := range clientsPerHost {
			number := i*clientsPerHost + n
			c := &client{
				number: number, host: h.Name, api: d.clients[h.Name], rng: rand.New(rand.NewPCG(d.Seed, uint64(1<<32+number))),
				keys: keys, note: d.history.add, since: d.since, pause: clientPause,
				limit: []time.Duration{3 * time.Second, 15 * time.Second}[n%2], // some are gone before a server gives up, some are not
			}
			workers.Go(func() { c.run(working) })
		}
		p := &prober{host: func() lab.Host { return d.host(h.Name) }, url: "http://" + net.JoinHostPort(service.Spec.ClusterIP, "80") + "/", since: d.since, note: d.probed}
		workers.Go(func() { p.run(working) })
	}
	report := &Report{Seed: d.Seed, Duration: d.Duration, Beyond: d.Beyond, Nodes: len(d.hosts), Started: d.began}
	failed := d.sow(ctx, report)
	failed = errors.Join(failed, d.liftAll())
	healed := d.since()
	d.tell(healed, Event{Kind: "healed", Text: "no fault is in force any more"})
	report.Sown = healed
	api := d.clients[d.hosts[0].Name]
	if err := d.until(ctx, func() string {
		if lacks := d.lacks(); lacks != "" {
			return lacks
		}
		return settled(ctx, api, len(d.hosts), d.replicas+singleCount)
	}); err != nil && ctx.Err() == nil {
		report.violate("the cluster is not whole by itself %v", err)
	} else {
		report.Whole = d.since() - healed
		d.tell(d.since(), Event{Kind: "whole", Text: fmt.Sprintf("the cluster is whole by itself after %.1f s", report.Whole.Seconds())})
	}
	stop()
	workers.Wait()
	if ctx.Err() == nil {
		d.judge(ctx, report, watchers)
	}
	unwatch()
	lookers.Wait()
	d.conclude(report, watchers)
	if len(report.Violations) == 0 && ctx.Err() == nil {
		failed = errors.Join(failed, d.tidy(ctx))
	}
	return report, errors.Join(failed, ctx.Err(), d.history.err)
}

// tidy removes the workload: the lab may be used for something else.
func (d *drill) tidy(ctx context.Context) error {
	api, path := d.clients[d.hosts[0].Name], namespaces+"/"+namespace
	if err := api.call(ctx, http.MethodDelete, path, nil, nil); err != nil {
		return fmt.Errorf("remove the workload: %w", err)
	}
	return d.until(ctx, func() string {
		err := api.call(ctx, http.MethodGet, path, nil, nil)
		if answered(err) == http.StatusNotFound {
			return ""
		}
		return fmt.Sprintf("namespace %s is still there (%v)", namespace, err)
	})
}

// watchers follow by way of every second host.
func (d *drill) watchers() (all []*watcher) {
	for i, h := range d.hosts {
		if i%2 == 0 {
			all = append(all, &watcher{host: h.Name, api: d.clients[h.Name], since: d.since,
				life: func(ctx context.Context) (context.Context, context.CancelFunc) { return d.during(ctx, h.Name) }})
		}
	}
	return all
}

// lacks is what the master set lacks, as seen last, and who does not answer
// although no fault explains it.
func (d *drill) lacks() string {
	d.mu.Lock()
	answers, hosts := d.now.answers, d.hosts
	d.mu.Unlock()
	for _, h := range hosts {
		if _, answers := answers[h.Name]; !answers && !d.affected(h.Name).Away {
			return fmt.Sprintf("conclave does not answer on %s", h.Name)
		}
	}
	return whole(answers, func(host string) bool { return d.affected(host).Away })
}

// state is what Plan decides upon.
func (d *drill) state() State {
	s := State{Whole: d.lacks() == "", Beyond: d.Beyond, Cannot: slices.Clone(d.Without)}
	if !lab.CanSkew() {
		s.Cannot = append(s.Cannot, Skew)
	}
	if d.lab.DiskSize == 0 {
		s.Cannot = append(s.Cannot, Fill)
	}
	d.mu.Lock()
	roles, hosts := d.now.roles(), d.hosts
	d.mu.Unlock()
	for _, h := range hosts {
		state := d.affected(h.Name)
		if state.Role = roles[h.Name]; state.Role == "" {
			state.Role = Plain
		}
		s.Hosts = append(s.Hosts, state)
	}
	return s
}

// sow imposes faults and lifts them again until the time is over.
func (d *drill) sow(ctx context.Context, report *Report) error {
	pauses := rand.New(rand.NewPCG(d.Seed, 1<<33))
	next := time.Duration(pauses.Int64N(int64(faultPause)))
	step, idle := 0, time.Duration(0) // since when nothing is in force and yet nothing may be done
	tick := time.NewTicker(lookEvery / 2)
	defer tick.Stop()
	for ctx.Err() == nil && d.since() < d.Duration {
		now := d.since()
		if f := d.due(now); f != nil {
			if err := d.lift(f); err != nil {
				return err
			}
			continue
		}
		if now >= next {
			if f, ok := Plan(d.Seed, step, d.state()); ok {
				if err := d.impose(f); err != nil {
					return err
				}
				step++
				next = d.since() + time.Duration(pauses.Int64N(int64(faultPause)))
				continue
			}
		}
		if d.quiet() {
			if idle == 0 {
				idle = now
			}
			if lacks := d.lacks(); lacks == "" {
				idle = now
			} else if now-idle > settleWait {
				report.violate("nothing has been wrong for %s, and yet: %s", settleWait, lacks)
				return nil
			}
		} else {
			idle = 0
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// due is a fault whose time is over.
func (d *drill) due(now time.Duration) *force {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.inForce {
		if f.until <= now {
			return f
		}
	}
	return nil
}

func (d *drill) quiet() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.inForce) == 0
}

func (d *drill) liftAll() (failed error) {
	d.mu.Lock()
	left := slices.Clone(d.inForce)
	d.mu.Unlock()
	for _, f := range left {
		failed = errors.Join(failed, d.lift(f))
	}
	return failed
}

func (d *drill) probed(p Probe) {
	d.mu.Lock()
	d.probes = append(d.probes, p)
	d.mu.Unlock()
	d.history.also("probe", p)
}
