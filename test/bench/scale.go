package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"
)

const (
	watchersAll    = 1000
	watchersShared = 100 // of one connection
	watchedWrites  = 50
)

// watchers: how long one write takes until a thousand watchers have it, through
// every host of three.
func (b *bench) watchers(ctx context.Context) error {
	c, down, err := b.formed(ctx, 3)
	if err != nil {
		return err
	}
	defer down()
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	seen := make(chan time.Time, watchersAll)
	failed := make(chan error, watchersAll)
	ready := make(chan struct{}, watchersAll)
	var client *http.Client
	var url string
	for i := range watchersAll {
		if i%watchersShared == 0 {
			if client, url, err = c.HTTPClient(c.Hosts[i/watchersShared%len(c.Hosts)].Name); err != nil {
				return err
			}
		}
		client, url := client, url+"/api/v1/namespaces/default/configmaps?watch=true&labelSelector=bench%3Dwatched&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
		all.Go(func() {
			if err := watchMarks(ctx, client, url, ready, seen); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	for range watchersAll {
		select {
		case <-ready:
		case err := <-failed:
			return err
		case <-time.After(time.Minute):
			return errors.New("not all watches began within a minute")
		}
	}
	maps := c.Client.CoreV1().ConfigMaps("default")
	var last, each []time.Duration
	for i := range watchedWrites {
		start := time.Now()
		if _, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("watched-%d", i), Labels: map[string]string{"bench": "watched"}}}, metav1.CreateOptions{}); err != nil {
			return err
		}
		for k := range watchersAll {
			select {
			case at := <-seen:
				each = append(each, at.Sub(start))
			case err := <-failed:
				return err
			case <-time.After(time.Minute):
				return fmt.Errorf("%d of %d watchers have a write after a minute", k, watchersAll)
			}
		}
		last = append(last, slices.Max(each[len(each)-watchersAll:]))
	}
	slices.Sort(each)
	b.row(fmt.Sprintf("one write → %d watchers have it (the clients take their part of the cores)", watchersAll),
		fmt.Sprintf("p99 %.0f ms; the last watcher: %s", each[len(each)*99/100].Seconds()*1000, distribution(last)), "p99 ≤ 50 ms")
	return nil
}

// watchMarks says when it sees what was written; it decodes nothing, since it
// is not the clients' speed that is asked.
func watchMarks(ctx context.Context, client *http.Client, url string, ready chan<- struct{}, seen chan<- time.Time) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body) // it is only for the message
		return fmt.Errorf("watch: %s: %s", answer.Status, text)
	}
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		switch {
		case bytes.HasPrefix(lines.Bytes(), []byte(`{"type":"BOOKMARK"`)):
			if ready != nil {
				ready <- struct{}{}
				ready = nil
			}
		case bytes.HasPrefix(lines.Bytes(), []byte(`{"type":"ADDED"`)):
			seen <- time.Now()
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the watch ended")
}

// The size of the state that one master is to hold.
const (
	stateNodes = 1000
	statePods  = 30000
)

// state: what a master's memory and a full list cost when the cluster is large.
// The nodes have no agents: their pods, which tolerate that, lie still.
func (b *bench) state(ctx context.Context) error {
	c, down, err := b.formed(ctx, 1)
	if err != nil {
		return err
	}
	defer down()
	client, err := c.ClientFor("", func(config *rest.Config) {
		config.RateLimiter = flowcontrol.NewFakeAlwaysRateLimiter()
		config.ContentType = "application/vnd.kubernetes.protobuf"
	})
	if err != nil {
		return err
	}
	if err := many(ctx, stateNodes, func(i int) error {
		_, err := client.CoreV1().Nodes().Create(ctx, stateNode(i), metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	if err := many(ctx, statePods, func(i int) error {
		_, err := client.CoreV1().Pods("default").Create(ctx, statePod(i), metav1.CreateOptions{})
		return err
	}); err != nil {
		return err
	}
	if err := pause(ctx, 20*time.Second); err != nil { // for garbage to be collected
		return err
	}
	used, err := usage(c.Hosts[0])
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%d nodes, %d pods", stateNodes, statePods)
	b.row("memory of the one master with "+what, fmt.Sprintf("%.0f MiB", float64(used.pss)/(1<<20)), "≤ 400 MiB")
	raw, url, err := c.HTTPClient("")
	if err != nil {
		return err
	}
	var lists []time.Duration
	for range b.trials {
		took, err := listPods(ctx, raw, url)
		if err != nil {
			return err
		}
		lists = append(lists, took)
	}
	b.row("full list of pods (JSON) with "+what, distribution(lists), "≤ 0.5 s")
	return nil
}

func listPods(ctx context.Context, client *http.Client, host string) (time.Duration, error) {
	start := time.Now()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, host+"/api/v1/pods", nil)
	if err != nil {
		return 0, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	if err == nil && (answer.StatusCode != http.StatusOK || n < statePods*500) {
		err = fmt.Errorf("list: %s, %d bytes", answer.Status, n)
	}
	return time.Since(start), err
}

// many does something n times, some at once, and returns one of the errors.
func many(ctx context.Context, n int, do func(i int) error) error {
	const workers = 64
	next := make(chan int)
	failed := make(chan error, workers)
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	var err error
	for i := 0; i < n && err == nil; i++ {
		select {
		case next <- i:
		case err = <-failed:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	close(next)
	all.Wait()
	select {
	case other := <-failed:
		return errors.Join(err, other)
	default:
		return err
	}
}

func stateNode(i int) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("simulated-%d", i), Labels: map[string]string{"kubernetes.io/hostname": fmt.Sprintf("simulated-%d", i), "kubernetes.io/os": "linux"}},
		Status: corev1.NodeStatus{
			Capacity:    corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110")},
			Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("110")},
		},
	}
}

// statePod is a pod of the usual size, bound to one of the nodes.
func statePod(i int) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("application-%d", i), Namespace: "default",
			Labels:      map[string]string{"app": fmt.Sprintf("application-%d", i/10), "tier": "front", "pod-template-hash": "6d4cf56db6"},
			Annotations: map[string]string{"example.com/checksum": strings.Repeat("0123456789abcdef", 4)},
		},
		Spec: corev1.PodSpec{
			NodeName:    fmt.Sprintf("simulated-%d", i%stateNodes),
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example.com/team/application:1.2.3", Args: []string{"--listen=:8080", "--verbose"},
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Env:            []corev1.EnvVar{{Name: "MODE", Value: "production"}, {Name: "POD", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}},
				Resources:      corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("32Mi")}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("http")}}},
			}},
		},
	}
}
