package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
	"conclave/test/images"
)

// maxPods is how many pods a node takes by default.
const maxPods = 110

// fullNode: as many pods as a node takes: their start, what they cost at rest,
// their stop; and runc alone with as many containers of the same image.
func (b *bench) fullNode(ctx context.Context) error {
	c, down, err := b.formed(ctx, 1)
	if err != nil {
		return err
	}
	defer down()
	alone, err := b.runcAlone(ctx, c)
	if err != nil {
		return fmt.Errorf("runc alone: %w", err)
	}
	before, err := usage(c.Hosts[0])
	if err != nil {
		return err
	}
	var took, half time.Duration
	err = b.profiled(ctx, c, c.Hosts[0], "start", func() (err error) {
		took, half, err = startPods(ctx, c, "full", maxPods)
		return err
	})
	if err != nil {
		return err
	}
	after, err := usage(c.Hosts[0])
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("CPU of ours to start %d pods", maxPods), fmt.Sprintf("%.2f s", (after.cpu-before.cpu).Seconds()), "–")
	b.row(fmt.Sprintf("%d pods on one node → all Running", maxPods), fmt.Sprintf("%.2f s, half of them %.2f s", took.Seconds(), half.Seconds()), fmt.Sprintf("runc alone %.2f s", alone.Seconds()))
	if err := b.cost(ctx, c, fmt.Sprintf("one node, %d pods", maxPods), "≤ 50 MiB + 2 MiB per pod", "≤ 0.3 s"); err != nil {
		return err
	}
	took, err = stopPods(ctx, c, "full")
	if err != nil {
		return err
	}
	b.row(fmt.Sprintf("%d pods on one node → all gone", maxPods), fmt.Sprintf("%.2f s", took.Seconds()), "–")
	return nil
}

// stopPods deletes pods and waits until a watch has seen the last one go, and
// none of the processes that stay with pods is left.
func stopPods(ctx context.Context, c *cluster.Cluster, name string) (time.Duration, error) {
	pods := c.Client.CoreV1().Pods("default")
	of := metav1.ListOptions{LabelSelector: "bench=" + name}
	list, err := pods.List(ctx, of)
	if err != nil {
		return 0, err
	}
	of.ResourceVersion = list.ResourceVersion
	w, err := pods.Watch(ctx, of)
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	start := time.Now()
	if err := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: of.LabelSelector}); err != nil {
		return 0, err
	}
	for left := len(list.Items); left > 0; {
		select {
		case e, open := <-w.ResultChan():
			if !open {
				return 0, errors.New("the watch ended")
			}
			if e.Type == "DELETED" {
				left--
			}
		case <-time.After(time.Minute):
			return 0, fmt.Errorf("%d pods are still there after a minute", left)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	err = cluster.Eventually(ctx, func() error {
		used, err := usage(c.Hosts[0])
		if err == nil && used.processes > 1 {
			err = fmt.Errorf("%d processes are left", used.processes)
		}
		return err
	})
	return time.Since(start), err
}

// atOnce is how many containers runc is asked to start side by side.
const atOnce = 8

// runcAlone starts containers with Debian's runc on the host, as a pod start is
// without all else: one, fifty and as many as a node takes. It returns the time
// of the last.
func (b *bench) runcAlone(ctx context.Context, c *cluster.Cluster) (last time.Duration, err error) {
	bundle := filepath.Join(c.Dir, "bundle")
	if err := images.Unpack(ctx, images.Recipes["busybox"], filepath.Join(bundle, "rootfs")); err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(aloneSpec), 0o644); err != nil {
		return 0, err
	}
	host := c.Hosts[0].Name
	for _, n := range []int{1, 50, maxPods} {
		// Their output is the containers', which keep it open.
		script := fmt.Sprintf("seq %d | xargs -P %d -I{} runc %%s >%s/said 2>&1 || { cat %[3]s/said; false; }", n, atOnce, bundle)
		start := time.Now()
		if _, err := c.On(ctx, host, "sh", "-c", fmt.Sprintf(script, "run --detach --bundle "+bundle+" alone-{}")); err != nil {
			return 0, err
		}
		last = time.Since(start)
		if _, err := c.On(ctx, host, "sh", "-c", fmt.Sprintf(script, "delete --force alone-{}")); err != nil {
			return 0, err
		}
		b.row(fmt.Sprintf("runc alone, %d containers, %d at once", n, min(n, atOnce)), fmt.Sprintf("%.2f s", last.Seconds()), "–")
	}
	return last, nil
}

// aloneSpec is what a pod's container is, in the words of the OCI runtime
// specification.
var aloneSpec = strings.TrimSpace(`
{"ociVersion":"1.0.2","hostname":"alone","root":{"path":"rootfs","readonly":true},
 "process":{"user":{"uid":0,"gid":0},"args":["sleep","1000000"],"cwd":"/","env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],"noNewPrivileges":true,
  "capabilities":{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"]}},
 "mounts":[{"destination":"/proc","type":"proc","source":"proc"},
  {"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]},
  {"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}],
 "linux":{"namespaces":[{"type":"pid"},{"type":"network"},{"type":"ipc"},{"type":"uts"},{"type":"mount"}]}}`)
