package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// leastStop is what a container gets to end after its preStop hook and the wait
// for its turn, however much of its grace period they took.
const leastStop = 2 * time.Second

func postStartOf(c *corev1.Container) *corev1.LifecycleHandler {
	if c.Lifecycle == nil {
		return nil
	}
	return c.Lifecycle.PostStart
}

func preStopOf(c *corev1.Container) *corev1.LifecycleHandler {
	if c.Lifecycle == nil {
		return nil
	}
	return c.Lifecycle.PreStop
}

// postStart runs the hook of a container that has just started, and stops one
// whose hook fails.
func (w *podWorker) postStart(ctx context.Context, pod *corev1.Pod, c *corev1.Container, id string, podIP string) {
	err := w.hook(ctx, c, id, postStartOf(c), podIP)
	if err == nil || ctx.Err() != nil {
		return
	}
	w.log.Warn("a postStart hook failed", "container", id, "err", err)
	w.event(c, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	w.event(c, corev1.EventTypeNormal, "Killing", "FailedPostStartHook")
	if err := w.stopGently(ctx, c, id, gracePeriod(pod, false), preStopOf(c), nil, podIP); err != nil && ctx.Err() == nil {
		w.log.Warn("a container whose postStart hook failed cannot be stopped", "container", id, "err", err)
	}
}

// stopGently asks a container to end: by its preStop hook, if there is one,
// then, if turn is not nil, when that is closed, by its signal, all within
// grace.
func (w *podWorker) stopGently(ctx context.Context, c *corev1.Container, id string, grace time.Duration, preStop *corev1.LifecycleHandler, turn <-chan struct{}, podIP string) error {
	began := w.a.cfg.Now()
	left := func() time.Duration { return grace - w.a.cfg.Now().Sub(began) }
	if preStop != nil && grace > 0 {
		limited, cancel := context.WithTimeout(ctx, grace)
		err := w.hook(limited, c, id, preStop, podIP)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			w.log.Warn("a preStop hook failed", "container", id, "err", err)
			w.event(c, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		}
	}
	if turn != nil && left() > 0 {
		timer := time.NewTimer(left())
		defer timer.Stop()
		select {
		case <-turn:
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if grace > 0 && (preStop != nil || turn != nil) {
		grace = max(left(), leastStop)
	}
	w.a.fault("container.stopping")
	err := w.a.cfg.Runtime.StopContainer(ctx, string(w.uid), id, grace)
	w.a.fault("container.stopped")
	return err
}

// hook runs one hook of a running container.
func (w *podWorker) hook(ctx context.Context, c *corev1.Container, id string, h *corev1.LifecycleHandler, podIP string) error {
	switch {
	case h.Exec != nil:
		out := &limitedBuffer{left: probeMaxOutput}
		code, err := w.a.cfg.Runtime.Exec(ctx, string(w.uid), id, h.Exec.Command, false, nil, out, out, nil)
		if err == nil && code != 0 {
			err = fmt.Errorf("exit status %d: %s", code, out.String())
		}
		return err
	case h.HTTPGet != nil:
		return hookGet(ctx, c, h.HTTPGet, podIP)
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.New("the hook asks for nothing that can be done")
}

// hookGet asks a server for a page; any answer at all is a good one.
func hookGet(ctx context.Context, c *corev1.Container, get *corev1.HTTPGetAction, podIP string) error {
	if get.Port.Type == intstr.String && get.Port.StrVal == "" {
		get = get.DeepCopy()
		get.Port = intstr.FromInt32(80)
	}
	req, err := httpGetRequest(ctx, c, get, podIP, "kube-lifecycle/1.37")
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: probeTransport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, probeMaxOutput)) // only so that its server can finish
	return nil
}
