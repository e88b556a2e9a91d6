package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"conclave/lab"
	"conclave/test/cluster"
)

// settled waits until every host, asked itself, knows a leader and n voters. A
// host that has just come back is a voter to the others before it knows it.
func settled(ctx context.Context, c *cluster.Cluster, n int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return cluster.Eventually(ctx, func() error {
		for _, h := range c.Hosts {
			out, err := c.On(ctx, h.Name, c.Binary, "status")
			if err != nil {
				return err
			}
			if got := voters(out); got != n || strings.Contains(out, "leader none") {
				return fmt.Errorf("%s knows %d voters: %s", h.Name, got, out)
			}
		}
		return nil
	})
}

// back boots a host and starts its conclave.
func back(c *cluster.Cluster, host string) error {
	return errors.Join(c.Boot(host, lab.Host{}.Address), c.Start(host, "up"))
}

func survivor(c *cluster.Cluster, dead string) string {
	i := slices.IndexFunc(c.Hosts, func(h *lab.Host) bool { return h.Name != dead })
	return c.Hosts[i].Name
}

// leaderKilled: how long no write is accepted after the leader lost its power,
// and after it was asked to stop.
func (b *bench) leaderKilled(ctx context.Context) error {
	c, down, err := b.formed(ctx, 3)
	if err != nil {
		return err
	}
	defer down()
	for _, kind := range []struct {
		what, target string
		end, back    func(string) error
	}{
		{"leader powered off → write accepted", "median ≤ 0.6 s, worst ≤ 1.2 s", func(h string) error { return c.PowerOff(h) }, func(h string) error { return back(c, h) }},
		{"leader stopped gracefully → write accepted", "≤ 0.1 s", c.Stop, func(h string) error { return c.Start(h, "up") }},
	} {
		var all []time.Duration
		for range b.deaths {
			if err := settled(ctx, c, 3); err != nil {
				return err
			}
			leader, err := leaderOf(ctx, c)
			if err != nil {
				return err
			}
			took, err := gap(ctx, c, survivor(c, leader), func() error { return kind.end(leader) })
			if err != nil {
				return fmt.Errorf("%s: %w", kind.what, err)
			}
			all = append(all, took)
			if err := kind.back(leader); err != nil {
				return err
			}
		}
		b.row(kind.what, distribution(all), kind.target)
	}
	return nil
}

// gap starts a write through a host every 20 ms while end ends another one, and
// returns the longest time for which none was accepted: until the first that
// was begun after the end.
func gap(ctx context.Context, c *cluster.Cluster, host string, end func() error) (time.Duration, error) {
	client, url, err := c.HTTPClient(host)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var writes sync.WaitGroup
	defer writes.Wait()
	defer cancel()
	type write struct{ begun, accepted time.Time }
	done := make(chan write, 1)
	refused := make(chan error, 1)
	mark := fmt.Sprintf("gap-%d", time.Now().UnixNano())
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var ended chan error
	var over time.Time // when end had returned
	var last time.Time // the newest acceptance
	var longest time.Duration
	var problem error
	for i := 0; ; {
		select {
		case begun := <-tick.C:
			name := fmt.Sprintf("%s-%d", mark, i)
			i++
			writes.Go(func() {
				if err := createMark(ctx, client, url, name); err != nil {
					select {
					case refused <- err:
					case <-ctx.Done():
					}
					return
				}
				select {
				case done <- write{begun, time.Now()}:
				case <-ctx.Done():
				}
			})
		case w := <-done:
			if ended != nil {
				longest = max(longest, w.accepted.Sub(last))
			}
			if w.accepted.After(last) {
				last = w.accepted
			}
			if !over.IsZero() && w.begun.After(over) {
				return longest, nil
			}
			if ended == nil && i > 10 { // the connections are made
				ended = make(chan error, 1)
				go func() { ended <- end() }()
			}
		case problem = <-refused:
			if ended == nil {
				return 0, fmt.Errorf("before the end: %w", problem)
			}
		case err := <-ended:
			if err != nil {
				return 0, err
			}
			over = time.Now()
		case <-ctx.Done():
			return 0, fmt.Errorf("no write was accepted in a minute: %w", problem)
		}
	}
}

// An application of one pod that a host's death moves, as a Deployment or a
// StatefulSet, and one that serves on every host.
const (
	moved = `{"apiVersion":"apps/v1","kind":%q,"metadata":{"name":%q},"spec":{"replicas":1,"selector":{"matchLabels":{"app":%[2]q}},
	"template":{"metadata":{"labels":{"app":%[2]q}},"spec":{"containers":[{"name":"main","image":"conclave.test/busybox:1","command":["sleep","1000000"]}]}}}}`
	served = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"served"},"spec":{"replicas":6,"selector":{"matchLabels":{"app":"served"}},
	"template":{"metadata":{"labels":{"app":"served"}},"spec":{"containers":[{"name":"main","image":"conclave.test/tool:1","args":["serve","http:8080"],
	"readinessProbe":{"periodSeconds":1,"tcpSocket":{"port":8080}}}]}}}}`
	servedBy = `{"apiVersion":"v1","kind":"Service","metadata":{"name":"served"},"spec":{"selector":{"app":"served"},"ports":[{"port":80,"targetPort":8080}]}}`
)

// hostDead: what moves when a host loses its power: traffic, a stateless pod
// and a StatefulSet's pod.
func (b *bench) hostDead(ctx context.Context) error {
	c, down, err := b.formed(ctx, 3)
	if err != nil {
		return err
	}
	defer down()
	if err := c.Import(ctx, "tool"); err != nil {
		return err
	}
	for _, manifest := range []string{fmt.Sprintf(moved, "Deployment", "stateless"), fmt.Sprintf(moved, "StatefulSet", "stateful"), served, servedBy} {
		if _, err := c.OnInput(ctx, "1", strings.NewReader(manifest), c.Binary, "apply", "-f", "-"); err != nil {
			return err
		}
	}
	var left []time.Duration
	replaced := map[string][]time.Duration{}
	for _, app := range []string{"stateless", "stateful"} {
		for range b.trials {
			if err := settled(ctx, c, 3); err != nil {
				return err
			}
			if err := trusted(ctx, c); err != nil {
				return fmt.Errorf("the nodes are given no pods: %w", err)
			}
			if err := spread(ctx, c); err != nil {
				return fmt.Errorf("spread the served application: %w", err)
			}
			victim, _, err := runningOn(ctx, c, app, "")
			if err != nil {
				return fmt.Errorf("find %s: %w", app, err)
			}
			watcher := survivor(c, victim)
			if c.Client, err = c.ClientFor(watcher, func(r *rest.Config) { r.Timeout = 2 * time.Second }); err != nil {
				return err
			}
			result, err := watchPage(ctx, c, watcher)
			if err != nil {
				return fmt.Errorf("fetch by way of host %s: %w", watcher, err)
			}
			start := time.Now()
			if err := c.PowerOff(victim); err != nil {
				return err
			}
			_, at, err := runningOn(ctx, c, app, victim)
			if err != nil {
				return err
			}
			replaced[app] = append(replaced[app], at.Sub(start))
			page, err := result()
			if err != nil {
				return err
			}
			if page.LastFailure.After(start) {
				left = append(left, page.LastFailure.Sub(start))
			}
			if err := back(c, victim); err != nil {
				return err
			}
		}
	}
	b.row("host dead → last fetch that went to it", distribution(left), "≤ 3 s")
	b.row("host dead → replacement Running (stateless)", distribution(replaced["stateless"]), "median ≤ 5 s")
	b.row("host dead → replacement Running (StatefulSet)", distribution(replaced["stateful"]), "median ≤ 12 s")
	return nil
}

// trusted waits until all nodes may be given pods. They die more often here than
// nodes that are trusted at once: that they did is struck from their records.
func trusted(ctx context.Context, c *cluster.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return cluster.Eventually(ctx, func() error {
		list, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, n := range list.Items {
			if _, err := c.Client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType,
				[]byte(`{"metadata":{"annotations":{"conclave.io/lost":null,"conclave.io/cooling-down-until":null}}}`), metav1.PatchOptions{}); err != nil {
				return err
			}
			if len(n.Spec.Taints) > 0 {
				return fmt.Errorf("%s has the taints %v", n.Name, n.Spec.Taints)
			}
		}
		return nil
	})
}

// spread makes the served application run on every host again.
func spread(ctx context.Context, c *cluster.Cluster) error {
	if err := c.Client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}, metav1.ListOptions{LabelSelector: "app=served"}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return cluster.Eventually(ctx, func() error {
		list, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=served"})
		if err != nil {
			return err
		}
		on := map[string]bool{}
		for _, p := range list.Items {
			if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				on[p.Spec.NodeName] = true
			}
		}
		if len(on) < len(c.Hosts) {
			return fmt.Errorf("it runs on %d hosts", len(on))
		}
		return nil
	})
}

// fetched is what test/tool's watch prints.
type fetched struct {
	Answered, Failed int
	LastFailure      time.Time
}

// watchPage fetches the served page through its Service from a host until the
// result is asked for.
func watchPage(ctx context.Context, c *cluster.Cluster, host string) (result func() (fetched, error), err error) {
	tool, err := cluster.Tool(ctx, c.Root)
	if err != nil {
		return nil, err
	}
	service, err := c.Client.CoreV1().Services("default").Get(ctx, "served", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	reader, writer := io.Pipe()
	var out strings.Builder
	done := make(chan error, 1)
	go func() {
		code, err := c.Exec(ctx, host, []string{tool, "watch", "http://" + service.Spec.ClusterIP}, reader, &out, &out)
		if err == nil && code != 0 {
			err = fmt.Errorf("watching the page: exit status %d: %s", code, out.String())
		}
		done <- err
	}()
	return func() (f fetched, err error) {
		writer.Close()
		if err := <-done; err != nil {
			return f, err
		}
		return f, json.Unmarshal([]byte(out.String()), &f)
	}, nil
}

// runningOn waits until an application's pod runs on another node than not, and
// returns the node and when that was seen.
func runningOn(ctx context.Context, c *cluster.Cluster, app, not string) (node string, at time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err = cluster.Eventually(ctx, func() error {
		list, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
		if err != nil {
			return err
		}
		for _, p := range list.Items {
			if p.Status.Phase == corev1.PodRunning && p.Spec.NodeName != not && p.DeletionTimestamp == nil {
				node, at = p.Spec.NodeName, time.Now()
				return nil
			}
		}
		return errors.New("no pod runs")
	})
	return node, at, err
}
