package chaos

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// judge asks the cluster, which is whole, what it has, and compares that and all
// that was recorded with what the guarantees say.
func (d *drill) judge(ctx context.Context, r *Report, watchers []*watcher) {
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	last := d.readAll(ctx, r)
	for _, w := range watchers {
		if err := w.wait(ctx, last); err != nil {
			r.violate("%v", err)
		}
	}
	d.compare(ctx, r)
}

// ask sends a GET until it is answered: a connection that was made before the
// cluster was whole may have to be made anew.
func (d *drill) ask(ctx context.Context, host, path string, answer any) error {
	for {
		err := d.clients[host].call(ctx, http.MethodGet, path, nil, answer)
		if code := answered(err); err == nil || code != 0 && code < 500 {
			return err
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// readAll reads all registers by way of each host, as operations of the history,
// and returns the newest revision of any.
func (d *drill) readAll(ctx context.Context, r *Report) (newest uint64) {
	known := map[string]bool{}
	for _, o := range d.history.all() {
		known[o.Key] = true
	}
	for i, h := range d.hosts {
		op := Op{Client: len(d.hosts)*clientsPerHost + i, Host: h.Name, Verb: Read, Call: d.since()}
		var all corev1.ConfigMapList
		err := d.ask(ctx, h.Name, configMaps, &all)
		op.Return = d.since()
		if err != nil {
			r.violate("a list by way of %s in the end: %v", h.Name, err)
			continue
		}
		found := map[string]corev1.ConfigMap{}
		for _, o := range all.Items {
			if _, register := o.Data[valueKey]; register {
				found[o.Name] = o
				if revision, err := strconv.ParseUint(o.ResourceVersion, 10, 64); err == nil {
					newest = max(newest, revision)
				}
			}
			if _, register := o.Data[valueKey]; register && !known[o.Name] {
				r.violate("%s has a register %s that nobody used", h.Name, o.Name)
			}
		}
		for key := range known {
			op.Key, op.Outcome, op.Got, op.Revision = key, Missing, "", ""
			if o, there := found[key]; there {
				op.Outcome, op.Got, op.Revision = Done, o.Data[valueKey], o.ResourceVersion
			}
			d.history.add(op)
		}
	}
	return newest
}

// compared are the kinds whose objects must be the same at every replica.
var compared = []string{
	configMaps, pods, servicesAt, deployments, statefulSets, nodes, namespaces,
	"/apis/apps/v1/replicasets", "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/serviceaccounts", "/api/v1/events",
}

// compare asks every host for the same past moment and compares their answers.
func (d *drill) compare(ctx context.Context, r *Report) {
	for _, path := range compared {
		var at struct {
			Metadata struct{ ResourceVersion string }
		}
		if err := d.ask(ctx, d.hosts[0].Name, path+"?limit=1", &at); err != nil {
			r.violate("%s in the end: %v", path, err)
			continue
		}
		answers := map[string][]string{}
		for _, h := range d.hosts {
			var all struct{ Items []json.RawMessage }
			query := "?resourceVersionMatch=Exact&resourceVersion=" + at.Metadata.ResourceVersion
			if err := d.ask(ctx, h.Name, path+query, &all); err != nil {
				r.violate("%s at revision %s by way of %s: %v", path, at.Metadata.ResourceVersion, h.Name, err)
				continue
			}
			var text strings.Builder
			for _, item := range all.Items {
				text.Write(item)
			}
			answers[text.String()] = append(answers[text.String()], h.Name)
		}
		r.Compared++
		if len(answers) > 1 {
			r.violate("replicas differ in %s at revision %s: %v", path, at.Metadata.ResourceVersion, slices.Collect(maps.Values(answers)))
		}
	}
}

// conclude draws the report from what was recorded.
func (d *drill) conclude(r *Report, watchers []*watcher) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ops := d.history.ops
	r.Finished = d.since()
	for _, w := range watchers {
		r.Watches += w.begun
		r.Relists += max(0, len(w.stretches)-1)
		for _, s := range w.stretches {
			r.Changes += len(s.changes)
		}
		d.history.also("watch", map[string]any{"host": w.host, "changes": changes(w)})
	}
	r.Operations = len(ops)
	r.Outcomes = map[Outcome]int{}
	for _, o := range ops {
		r.Outcomes[o.Outcome]++
		if o.Outcome == Wrong {
			r.violate("%s of %s by way of %s at %.1f s: %s", o.Verb, o.Key, o.Host, o.Call.Seconds(), o.Error)
		}
	}
	wrong, undecided := linearizable(ops, judgeWait)
	for _, key := range wrong {
		r.violate("the history of register %s is not linearizable", key)
	}
	r.Undecided = undecided
	for _, text := range watched(ops, watchers) {
		r.violate("%s", text)
	}
	for _, p := range d.probes {
		if p.Error == "" && !strings.HasPrefix(p.Pod, pageName+"-") {
			r.violate("the Service answered %q on %s at %.1f s", p.Pod, p.Host, p.At.Seconds())
		}
	}
	stays, err := readStays(d.stamps)
	if err != nil {
		r.violate("what the pods of StatefulSets stamped: %v", err)
	}
	for _, s := range stays {
		d.history.also("stay", s)
	}
	twice, moves := together(stays)
	for _, text := range twice {
		r.violate("%s", text)
	}
	r.Stays = len(stays)
	r.Events, r.Spans, r.Probes = d.events, d.past, len(d.probes)
	r.draw(ops, d.probes, d.hosts, d.seen)
	r.Times = append(r.Times, Timing{"StatefulSet pod's end → it runs on another node", moves})
}

func changes(w *watcher) (all []Change) {
	for _, s := range w.stretches {
		all = append(all, s.changes...)
	}
	return all
}

// Gap is a time without success.
type Gap struct {
	Host     string // "" for all of them together
	What     string // writes, reads or Service
	From, To time.Duration
}

// gapFrom is how short a time without success is not worth mention: clients
// pause between operations.
const gapFrom = 500 * time.Millisecond

// gaps are the times between successes that are longer than gapFrom, from start
// to end. successes are pairs of begin and end.
func gaps(successes [][2]time.Duration, start, end time.Duration) (all [][2]time.Duration) {
	slices.SortFunc(successes, func(a, b [2]time.Duration) int { return int(a[1] - b[1]) })
	last := start
	for _, s := range append(slices.Clone(successes), [2]time.Duration{end, end}) {
		if s[1]-last > gapFrom {
			all = append(all, [2]time.Duration{last, s[1]})
		}
		last = max(last, s[1])
	}
	return all
}
