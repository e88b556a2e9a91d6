package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Writers start a write through each of some hosts again and again, whatever
// became of the one before, and remember what was acknowledged and when.
type Writers struct {
	c     *Cluster
	every time.Duration
	mark  string

	mu    sync.Mutex
	hosts map[string]*writer
	all   sync.WaitGroup // the writers, and their writes
}

type writer struct {
	stop context.CancelFunc
	acks []ack // by the time of the acknowledgement
}

type ack struct {
	name string
	at   time.Time
}

// Write begins to write through hosts, until ctx ends.
func (c *Cluster) Write(ctx context.Context, every time.Duration, hosts ...string) (*Writers, error) {
	w := &Writers{c: c, every: every, mark: fmt.Sprintf("mark-%d", time.Now().UnixNano()), hosts: map[string]*writer{}}
	for _, h := range hosts {
		client, url, err := c.HTTPClient(h)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(ctx)
		one := &writer{stop: cancel}
		w.hosts[h] = one
		w.all.Go(func() { w.run(ctx, h, one, client, url) })
	}
	return w, nil
}

func (w *Writers) run(ctx context.Context, host string, one *writer, client *http.Client, url string) {
	tick := time.NewTicker(w.every)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			client.CloseIdleConnections()
			return
		}
		name := fmt.Sprintf("%s-%s-%d", w.mark, host, i)
		w.all.Go(func() {
			if createMap(ctx, client, url, name) != nil {
				return // what was not acknowledged is promised nothing
			}
			w.mu.Lock()
			one.acks = append(one.acks, ack{name, time.Now()})
			w.mu.Unlock()
		})
	}
}

func createMap(ctx context.Context, client *http.Client, url, name string) error {
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"labels":{"writers":"yes"}}}`, name)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/api/v1/namespaces/default/configmaps", bytes.NewReader([]byte(body)))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %s", response.Status, answer)
	}
	return err
}

// Leave ends the writing through a host.
func (w *Writers) Leave(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if one := w.hosts[host]; one != nil {
		one.stop()
	}
}

// Acknowledged is how many writes through a host have been, through all if
// empty.
func (w *Writers) Acknowledged(host string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, one := range w.hosts {
		if host == "" || name == host {
			n += len(one.acks)
		}
	}
	return n
}

// Gap is the longest time since a moment for which no write through a host was
// acknowledged; the first gap begins with the newest acknowledgement before.
func (w *Writers) Gap(host string, since time.Time) (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	acks := w.hosts[host].acks
	first := max(0, slices.IndexFunc(acks, func(a ack) bool { return a.at.After(since) }))
	if first == 0 && len(acks) > 0 && !acks[0].at.After(since) {
		first = len(acks) // none since
	}
	last := since
	if first > 0 {
		last = acks[first-1].at
	}
	for _, a := range acks[first:] {
		longest = max(longest, a.at.Sub(last))
		last = a.at
	}
	return max(longest, time.Since(last))
}

// Stop ends all writing, and returns when no write is under way.
func (w *Writers) Stop() {
	w.mu.Lock()
	for _, one := range w.hosts {
		one.stop()
	}
	w.mu.Unlock()
	w.all.Wait()
}

// Lost asks a host for all that was written, after Stop, and names what was
// acknowledged and is not there.
func (w *Writers) Lost(ctx context.Context, host string) (lost []string, err error) {
	client, err := w.c.ClientFor(host, func(*rest.Config) {})
	if err != nil {
		return nil, err
	}
	list, err := client.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{LabelSelector: "writers=yes"})
	if err != nil {
		return nil, err
	}
	there := make(map[string]bool, len(list.Items))
	for _, o := range list.Items {
		there[o.Name] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.hosts {
		for _, a := range one.acks {
			if !there[a.name] {
				lost = append(lost, a.name)
			}
		}
	}
	return lost, nil
}
