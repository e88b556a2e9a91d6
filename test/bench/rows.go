package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/lab"
	"conclave/test/cluster"
)

// oneNode: cold start, pod start, burst, and what one idle node costs.
func (b *bench) oneNode(ctx context.Context) error {
	var cold []time.Duration
	for range b.trials - 1 {
		c, down, err := b.fresh(ctx, 1)
		if err != nil {
			return err
		}
		took, err := coldStart(ctx, c)
		down()
		if err != nil {
			return err
		}
		cold = append(cold, took)
	}
	c, down, err := b.fresh(ctx, 1)
	if err != nil {
		return err
	}
	defer down()
	took, err := coldStart(ctx, c)
	if err != nil {
		return err
	}
	b.row("cold start of one node → Ready", distribution(append(cold, took)), "≤ 0.6 s")
	if err := c.Connect(ctx); err != nil {
		return err
	}
	if err := b.cost(ctx, c, "one node alone", "≤ 50 MiB", "≤ 0.3 s"); err != nil {
		return err
	}
	if err := c.Import(ctx, "busybox"); err != nil {
		return err
	}
	var starts []time.Duration
	for i := range 4 * b.trials {
		took, _, err := startPods(ctx, c, fmt.Sprintf("one-%d", i), 1)
		if err != nil {
			return err
		}
		if i == 0 {
			b.row("first pod (image present) → Running", fmt.Sprintf("%.3f s", took.Seconds()), "0.2 s after Ready")
			continue
		}
		starts = append(starts, took)
	}
	b.row("pod start, image present", distribution(starts), "≤ 0.1 s")
	if err := pause(ctx, toRest); err != nil {
		return err
	}
	before, err := usage(c.Hosts[0])
	if err != nil {
		return err
	}
	burst, half, err := startPods(ctx, c, "burst", 50)
	if err != nil {
		return err
	}
	b.row("burst: 50 pods on one node → all Running", fmt.Sprintf("%.2f s, half of them %.2f s", burst.Seconds(), half.Seconds()), "≤ 2 s")
	if err := pause(ctx, toRest); err != nil {
		return err
	}
	after, err := usage(c.Hosts[0])
	if err != nil {
		return err
	}
	b.row("memory per idle pod", fmt.Sprintf("%.2f MiB", float64(after.pss-before.pss)/50/(1<<20)), "≤ 2 MiB")
	return nil
}

// toRest is how long a process takes to give back what it does not need, some
// seconds more than conclave waits for that. What is compared is at rest both
// times.
const toRest = 20 * time.Second

func coldStart(ctx context.Context, c *cluster.Cluster) (time.Duration, error) {
	start := time.Now()
	if err := c.Start("1", "up"); err != nil {
		return 0, err
	}
	err := said(ctx, c, c.Hosts[0], "is ready after")
	return time.Since(start), err
}

// startPods creates pods all at once and waits until a watch has seen each
// Running, then removes them unless they are many.
func startPods(ctx context.Context, c *cluster.Cluster, name string, n int) (took, half time.Duration, err error) {
	pods := c.Client.CoreV1().Pods("default")
	w, err := pods.Watch(ctx, metav1.ListOptions{LabelSelector: "bench=" + name})
	if err != nil {
		return 0, 0, err
	}
	defer w.Stop()
	grace := int64(0)
	start := time.Now()
	failed := make(chan error, n)
	for i := range n {
		go func() {
			_, err := pods.Create(ctx, &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", name, i), Labels: map[string]string{"bench": name}},
				Spec: corev1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{
					Name: "main", Image: "conclave.test/busybox:1", Command: []string{"sleep", "1000000"}}}},
			}, metav1.CreateOptions{})
			if err != nil {
				failed <- err
			}
		}()
	}
	running := map[string]bool{}
	for len(running) < n {
		select {
		case err := <-failed:
			return 0, 0, err
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-time.After(time.Minute):
			return 0, 0, fmt.Errorf("%d of %d pods run after a minute", len(running), n)
		case e, open := <-w.ResultChan():
			if !open {
				return 0, 0, errors.New("the watch ended")
			}
			if pod, ok := e.Object.(*corev1.Pod); ok && pod.Status.Phase == corev1.PodRunning {
				running[pod.Name] = true
				if half == 0 && 2*len(running) >= n {
					half = time.Since(start)
				}
			}
		}
	}
	took = time.Since(start)
	if n == 1 {
		return took, half, pods.Delete(ctx, name+"-0", metav1.DeleteOptions{GracePeriodSeconds: &grace})
	}
	return took, half, nil
}

// spent is what the processes of a host's conclave have used.
type spent struct {
	pss, written int64
	cpu          time.Duration
	processes    int
}

// usage adds up our processes on a host: the daemon and the pod processes.
func usage(h *lab.Host) (spent, error) {
	var s spent
	root := fmt.Sprintf("/proc/%d/root/proc", h.Init.PID)
	entries, err := os.ReadDir(root)
	if err != nil {
		return s, err
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := root + "/" + e.Name()
		exe, err := os.Readlink(dir + "/exe")
		if err != nil || !strings.Contains(exe, "conclave") || strings.Contains(exe, "bench") {
			continue
		}
		rollup, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			continue // it ended while we looked
		}
		s.processes++
		for line := range strings.Lines(string(rollup)) {
			var kib int64
			if _, err := fmt.Sscanf(line, "Pss: %d kB", &kib); err == nil {
				s.pss += kib << 10
			}
		}
		io, err := os.ReadFile(dir + "/io")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(io)) {
			var n int64
			if _, err := fmt.Sscanf(line, "write_bytes: %d", &n); err == nil {
				s.written += n
			}
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		s.cpu += time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
	}
	return s, nil
}

// cost watches idle hosts.
func (b *bench) cost(ctx context.Context, c *cluster.Cluster, what, memory, cpu string) error {
	if err := pause(ctx, toRest); err != nil {
		return err
	}
	before := map[string]spent{}
	for _, h := range c.Hosts {
		s, err := usage(h)
		if err != nil {
			return err
		}
		before[h.Name] = s
	}
	if err := pause(ctx, b.idle); err != nil {
		return err
	}
	leader, err := leaderOf(ctx, c)
	if err != nil {
		return err
	}
	for _, h := range c.Hosts {
		s, err := usage(h)
		if err != nil {
			return err
		}
		role := "master"
		if h.Name == leader {
			role = "leader"
		}
		minutes := b.idle.Minutes()
		b.row(fmt.Sprintf("idle memory, %s, %s", what, role), fmt.Sprintf("%.1f MiB in %d processes", float64(s.pss)/(1<<20), s.processes), memory)
		b.row(fmt.Sprintf("idle CPU per minute, %s, %s", what, role), fmt.Sprintf("%.2f s", (s.cpu-before[h.Name].cpu).Seconds()/minutes), cpu)
		b.row(fmt.Sprintf("idle disk over %s, %s, %s", b.idle, what, role), fmt.Sprintf("%d bytes", s.written-before[h.Name].written), "0")
	}
	return nil
}

func leaderOf(ctx context.Context, c *cluster.Cluster) (string, error) {
	out, err := c.Ask(ctx, "status")
	return leaderIn(out, err)
}

// leaderIn finds the leader in what `conclave status` printed.
func leaderIn(out string, err error) (string, error) {
	if err != nil {
		return "", err
	}
	_, after, _ := strings.Cut(out, "leader ")
	name, _, _ := strings.Cut(after, ",")
	if name == "" || name == "none" {
		return "", fmt.Errorf("no leader: %s", out)
	}
	return name, nil
}

// threeNodes: join, three masters from nothing, and what idle masters cost.
func (b *bench) threeNodes(ctx context.Context) error {
	var joins, masters []time.Duration
	for i := range b.trials {
		c, down, err := b.fresh(ctx, 3)
		if err != nil {
			return err
		}
		err = func() error {
			start := time.Now()
			if _, err := coldStart(ctx, c); err != nil {
				return err
			}
			token, err := c.Ask(ctx, "token", "--bare")
			if err != nil {
				return err
			}
			for k, name := range []string{"2", "3"} {
				began := time.Now()
				if err := c.Start(name, "join", strings.TrimSpace(token)); err != nil {
					return err
				}
				if k == 0 {
					if err := said(ctx, c, c.Hosts[1], "is ready after"); err != nil {
						return err
					}
					joins = append(joins, time.Since(began))
				}
			}
			if err := waitVoters(ctx, c, 3); err != nil {
				return err
			}
			masters = append(masters, time.Since(start))
			if i == b.trials-1 {
				if err := c.Connect(ctx); err != nil {
					return err
				}
				if err := c.Import(ctx, "busybox"); err != nil {
					return err
				}
				if _, _, err := startPods(ctx, c, "idle", 10); err != nil {
					return err
				}
				return b.cost(ctx, c, "three nodes, 10 pods", "≤ 50 MiB + 2 MiB per pod", "leader ≤ 0.3 s, other ≤ 0.1 s")
			}
			return nil
		}()
		down()
		if err != nil {
			return err
		}
	}
	b.row("join → node Ready", distribution(joins), "≤ 0.3 s")
	b.row("first up → three voters (a joining host waits for the one before)", distribution(masters), "≤ 1.5 s")
	return nil
}

// writes: creates per second of a 512-byte ConfigMap.
func (b *bench) writes(ctx context.Context) error {
	c, down, err := b.formed(ctx, 3)
	if err != nil {
		return err
	}
	defer down()
	leader, err := leaderOf(ctx, c)
	if err != nil {
		return err
	}
	for _, row := range []struct {
		clients int
		target  string
	}{{1, "≥ 800/s"}, {64, "≥ 4,000/s"}} {
		rate, err := writeRate(ctx, c, leader, row.clients)
		if err != nil {
			return err
		}
		b.row(fmt.Sprintf("API writes, %d clients", row.clients), fmt.Sprintf("%.0f/s", rate), row.target)
	}
	return nil
}

func writeRate(ctx context.Context, c *cluster.Cluster, host string, clients int) (float64, error) {
	each := make([]*http.Client, clients)
	var url string
	for k := range each {
		var err error
		if each[k], url, err = c.HTTPClient(host); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	start := time.Now()
	for k, client := range each {
		all.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := createMark(ctx, client, url, fmt.Sprintf("w%d-%d-%d", clients, k, i)); err != nil && ctx.Err() == nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(done.Load()) / time.Since(start).Seconds(), nil
}

// createMark creates a ConfigMap of 512 bytes.
func createMark(ctx context.Context, client *http.Client, host, name string) error {
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"a":%q}}`, name, strings.Repeat("x", 512))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, host+"/api/v1/namespaces/default/configmaps", strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusCreated {
		err = fmt.Errorf("%s: %.200s", response.Status, answer)
	}
	return err
}
