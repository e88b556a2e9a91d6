package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// sameStatusAgain is how soon a status that somebody else overwrote is written
// again.
const sameStatusAgain = 10 * time.Second

// statusNow is the pod's status as it should be.
func (w *podWorker) statusNow(o observed) corev1.PodStatus {
	in := statusInput{
		observed: o, failure: w.rec.Failed, rejected: w.rec.Rejected, hostIPs: w.a.hostIPs(), podIPs: w.podIPs(), views: map[string]statusView{},
		resize: w.resize, cgroup: w.rec.Cgroup,
	}
	newest := w.newestContainers()
	for _, c := range everyContainer(w.pod) {
		rec, loop := w.rec.container(c.Name), w.loop(c.Name)
		v := statusView{record: *rec, image: loop.image, waiting: loop.waiting}
		if s := newest[c.Name]; s != nil {
			v.runtime = &s.ContainerStatus
		}
		view := o.containers[c.Name]
		v.ready = view.up && w.isReady(c, containerID(c.Name, rec.Attempt))
		if rec.End != nil && view.task == idle && o.now.Before(rec.Until) && rec.waited() > 0 {
			v.waiting = &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: w.backOffMessage(c, rec)}
		}
		in.views[c.Name] = v
	}
	return podStatus(w.pod, in)
}

func (w *podWorker) backOffMessage(c *corev1.Container, rec *containerRecord) string {
	return fmt.Sprintf("back-off %v restarting failed container=%s pod=%s", rec.waited(), c.Name, podFullName(w.pod))
}

// report writes the pod's status to the API if it is not what the API has, and
// shows it to the kubelet API.
func (w *podWorker) report(o observed, wait *waiter) {
	status := w.statusNow(o)
	w.announceBackOffs(o)
	w.finishResize(o.resizeProgress)
	w.show(o, status)
	if w.pod.ResourceVersion == "" || o.removed || w.statusGone || w.ops["status"] != nil || equality.Semantic.DeepEqual(status, w.pod.Status) {
		return
	}
	if wait.later(w.statusTry.retry) || saysNothingYet(w.pod, status) && wait.later(w.since.Add(firstWord)) {
		return
	}
	if equality.Semantic.DeepEqual(status, w.statusSent) && wait.later(w.statusSentAt.Add(sameStatusAgain)) {
		return
	}
	pod := w.pod
	if w.static != nil {
		pod = pod.DeepCopy()
		w.mu.Lock()
		pod.UID = w.mirror
		w.mu.Unlock()
	}
	w.start("status", idle, 0, func(ctx context.Context) func() {
		written, err := w.a.writeStatus(ctx, pod, status)
		return func() {
			now := w.a.cfg.Now()
			switch {
			case err == nil:
				w.statusTry.succeeded()
				w.statusSent, w.statusSentAt = status, now
				if written != nil {
					w.update(written, false)
				}
			case apierrors.IsNotFound(err), apierrors.IsConflict(err) && written == nil:
				// Removed, or another has its name: the follower will say so.
				w.statusGone = apierrors.IsNotFound(err)
				w.statusTry.failed(now)
			case !errors.Is(err, context.Canceled):
				w.log.Debug("a status cannot be written yet", "err", err)
				w.statusTry.failed(now)
			}
		}
	})
}

// firstWord is how long after its first sight of a pod a node tells no more than
// that it has begun to start it. Most pods run by then, and two of three writes
// of their status, each of which goes to the disks of all masters, are spared.
const firstWord = 2 * time.Second

// saysNothingYet says whether status is the first of a pod that nobody wants to
// be gone, and whether all that it tells is that nothing stands in the way of
// its start.
func saysNothingYet(pod *corev1.Pod, status corev1.PodStatus) bool {
	if pod.Status.StartTime != nil || pod.DeletionTimestamp != nil || status.Phase != corev1.PodPending || status.Reason != "" {
		return false
	}
	return !slices.ContainsFunc(slices.Concat(status.InitContainerStatuses, status.ContainerStatuses, status.EphemeralContainerStatuses), func(c corev1.ContainerStatus) bool {
		return c.RestartCount > 0 || c.State.Waiting == nil || c.State.Waiting.Reason != waitCreating && c.State.Waiting.Reason != waitInitializing
	})
}

// writeStatus patches what differs from the version of the pod that is known.
func (a *Agent) writeStatus(ctx context.Context, pod *corev1.Pod, status corev1.PodStatus) (*corev1.Pod, error) {
	patch, err := statusPatch(pod, status)
	if err != nil {
		return nil, fmt.Errorf("make a status patch for pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	obj, err := a.cfg.Client.Patch(ctx, podsResource, pod.Namespace, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return nil, err
	}
	written, _ := obj.(*corev1.Pod)
	return written, nil
}

// statusPatch is the strategic merge patch from one status to another, for this
// very pod and no other of its name. Conditions of others stay untouched.
func statusPatch(pod *corev1.Pod, status corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: status})
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
}

// announceBackOffs sends the event of each back-off once.
func (w *podWorker) announceBackOffs(o observed) {
	over := w.pod.DeletionTimestamp != nil || finished(w.pod, o)
	for kind, c := range everyContainer(w.pod) {
		rec, loop := w.rec.container(c.Name), w.loop(c.Name)
		if rec.End == nil || !o.now.Before(rec.Until) || rec.waited() <= 0 || loop.announced.Equal(rec.Until) || over || !shouldStart(w.pod, kind, c, o.containers[c.Name]) {
			continue
		}
		loop.announced = rec.Until
		w.event(c, corev1.EventTypeWarning, "BackOff", fmt.Sprintf("Back-off restarting failed container %s in pod %s", c.Name, podFullName(w.pod)))
	}
}

// show lets others see the pod as it is now.
func (w *podWorker) show(o observed, status corev1.PodStatus) {
	pod := *w.pod
	pod.Status = status
	v := podView{pod: &pod, running: map[string]string{}, rec: w.rec}
	v.told = w.pod.ResourceVersion == "" || o.removed || w.statusGone || equality.Semantic.DeepEqual(status, w.pod.Status)
	for name, c := range o.containers {
		if c.running {
			v.running[name] = containerID(name, c.attempt)
		}
	}
	v.rec.Containers = make(map[string]*containerRecord, len(w.rec.Containers))
	for name, c := range w.rec.Containers {
		copied := *c
		v.rec.Containers[name] = &copied
	}
	w.mu.Lock()
	w.shown = v
	w.mu.Unlock()
	w.a.podShown(w.uid)
	if v.rec.Down || w.roomier {
		w.roomier = false
		w.a.roomMade()
	}
}

func (w *podWorker) view() podView {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shown
}

// save keeps on disk what is not there yet. It does not hold the loop up: a
// pod's start does not wait for an SD card.
func (w *podWorker) save() {
	if w.ops["save"] != nil {
		return
	}
	m, errM := json.Marshal(manifest(w.pod))
	r, errR := json.Marshal(&w.rec)
	if err := errors.Join(errM, errR); err != nil {
		w.log.Error("a pod cannot be kept on disk", "err", err)
		return
	}
	newManifest, newRecord := !bytes.Equal(m, w.saved.manifest), !bytes.Equal(r, w.saved.record)
	if !newManifest && !newRecord {
		return
	}
	w.start("save", idle, 0, func(context.Context) func() {
		err := os.MkdirAll(w.dirs.disk, 0o750)
		if err == nil && newManifest {
			err = writeDurably(filepath.Join(w.dirs.disk, manifestFile), m)
		}
		if err == nil && newRecord {
			err = writeDurably(filepath.Join(w.dirs.disk, recordFile), r)
		}
		w.a.fault("record.saved")
		return func() {
			// What could not be written counts as written until it changes
			// again: a full disk is not written to in a loop.
			w.saved = savedState{m, r}
			if err != nil {
				w.log.Error("a pod cannot be kept on disk", "err", err)
			}
		}
	})
}

// forget removes the last traces of a pod.
func (w *podWorker) forget() {
	w.a.objects.hold(w.uid, nil)
	if err := w.dirs.remove(); err != nil {
		w.log.Warn("the folder of a pod cannot be removed", "err", err)
	}
	w.a.workerEnded(w)
}
