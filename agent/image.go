package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// waitingError is a container that cannot be started now, with the reason that
// its status shows.
type waitingError struct {
	reason, message string
	// again is when to try the same again; zero leaves it to the caller.
	again time.Time
	quiet bool // events were sent already, or are not due
}

func (e *waitingError) Error() string { return e.message }

// pullBackOff remembers what pulling an image has come to for one container.
type pullBackOff struct {
	image string
	next  time.Time
	delay time.Duration
	cause *waitingError
}

// of is the back-off if it is that of an image.
func (b *pullBackOff) of(image string) *pullBackOff {
	if b == nil || b.image != image {
		return nil
	}
	return b
}

// due is when the next attempt is. While another node has the image, what was in
// the way is between the two, and may be over before a long pause is: then it is
// as long as the first.
func (b *pullBackOff) due(near bool) time.Time {
	if near {
		return b.next.Add(min(b.delay, backOffFirst) - b.delay)
	}
	return b.next
}

const errImagePullAgain = time.Second // until ErrImagePull shows as ImagePullBackOff

// ensureImage returns an image that a container needs, pulling it as the policy
// says.
func (w *podWorker) ensureImage(ctx context.Context, c *corev1.Container, ref string, policy corev1.PullPolicy, back *pullBackOff, credentials Credentials) (Image, *pullBackOff, error) {
	a := w.a
	image, have := a.cfg.Runtime.Image(ref)
	entitled := have && policy != corev1.PullAlways && a.cfg.Runtime.Entitled(ref, credentials)
	switch {
	case entitled:
		w.event(c, corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", ref))
		return image, nil, nil
	case policy == corev1.PullNever:
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", ref)
		if have {
			msg = fmt.Sprintf("Container image %q is present with pull policy of Never but does not have the proper credentials to access the image", ref)
		}
		w.event(c, corev1.EventTypeWarning, "ErrImageNeverPull", msg)
		return image, back, &waitingError{reason: "ErrImageNeverPull", message: msg}
	}
	now := a.cfg.Now()
	if back != nil && now.Before(back.due(a.cfg.Runtime.Near(ref))) {
		again := back.next
		if later := now.Add(backOffFirst); later.Before(again) {
			again = later // to see whether another node has it by then
		}
		msg := fmt.Sprintf("Back-off pulling image %q", ref)
		if now.Sub(back.next.Add(-back.delay)) < backOffFirst { // and not at each look
			w.event(c, corev1.EventTypeNormal, "BackOff", msg)
		}
		return image, back, &waitingError{reason: "ImagePullBackOff", message: msg + ": " + back.cause.reason + ": " + back.cause.message, again: again}
	}
	w.event(c, corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", ref))
	image, err := a.cfg.Runtime.Pull(ctx, ref, PullOptions{Credentials: credentials, Fresh: policy == corev1.PullAlways})
	if err == nil {
		took := a.cfg.Now().Sub(now).Round(time.Millisecond)
		w.event(c, corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.", ref, took, took, image.Size))
		a.ImagesChanged()
		return image, nil, nil
	}
	if ctx.Err() != nil {
		return image, back, ctx.Err()
	}
	next := &pullBackOff{image: ref, delay: backOffFirst}
	if back != nil {
		next.delay = min(2*back.delay, backOffMax)
	}
	now = a.cfg.Now()
	next.next = now.Add(next.delay)
	next.cause = &waitingError{reason: "ErrImagePull", message: err.Error(), again: now.Add(errImagePullAgain)}
	switch {
	case errors.Is(err, ErrInvalidImageName):
		next.cause.reason = "InvalidImageName"
		next.cause.message = fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: %v", ref, ref, err)
		next.cause.again = next.next
		w.event(c, corev1.EventTypeWarning, "InspectFailed", next.cause.message)
		return image, next, next.cause
	case errors.Is(err, ErrRegistryUnavailable):
		next.cause.message = fmt.Sprintf("image pull failed for %s because the registry is unavailable: %v", ref, err)
	case errors.Is(err, ErrDiskFull):
		a.images.diskFull() // there may be something to remove before the next attempt
	}
	w.event(c, corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", ref, err))
	return image, next, next.cause
}

// credentials are what a pod may tell registries: its pull secrets, and then
// what the node has for every pod. Nothing is read before it is asked for.
func (w *podWorker) credentials(ctx context.Context, pod *corev1.Pod, c *corev1.Container, src sources) Credentials {
	var entries []keyEntry
	read := false
	return func(repository string) ([]Credential, error) {
		if !read {
			read = true
			var secrets []*corev1.Secret
			var missing []string
			for _, ref := range pod.Spec.ImagePullSecrets {
				s, err := src.secret(ref.Name)
				if ctx.Err() != nil {
					read = false
					return nil, ctx.Err()
				}
				if err != nil || s == nil {
					missing = append(missing, ref.Name)
					continue
				}
				secrets = append(secrets, s)
			}
			if len(missing) > 0 {
				w.event(c, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
					fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
			}
			entries = secretEntries(secrets)
		}
		out := matching(entries, repository)
		own, err := w.a.credentials.of(ctx, repository)
		if err != nil {
			w.log.Warn("some of the node's credentials for registries cannot be had", "repository", repository, "err", err)
		}
		return append(out, own...), nil
	}
}

// ensureImages brings all the images that a container needs: its own, which is
// returned, and those of the volumes that it mounts, which are put in place.
func (w *podWorker) ensureImages(ctx context.Context, pod *corev1.Pod, c *corev1.Container, back *pullBackOff, src sources) (image Image, pull *pullBackOff, err error) {
	credentials := w.credentials(ctx, pod, c, src)
	image, pull, err = w.ensureImage(ctx, c, c.Image, c.ImagePullPolicy, back.of(c.Image), credentials)
	if err != nil {
		return image, pull, err
	}
	for _, m := range c.VolumeMounts {
		v := volumeNamed(pod, m.Name)
		if v == nil || v.Image == nil || v.Image.Reference == "" {
			continue
		}
		target := filepath.Join(w.dirs.volumes, v.Name)
		if w.a.cfg.Runtime.ImageMounted(target) {
			continue // by another container of the pod, or before a restart of ours
		}
		ref := v.Image.Reference
		var content Image
		content, pull, err = w.ensureImage(ctx, c, ref, v.Image.PullPolicy, back.of(ref), credentials)
		if err != nil {
			return image, pull, err
		}
		if err := w.a.cfg.Runtime.MountImage(ctx, content.ID, target); err != nil {
			return image, nil, &waitingError{reason: "ImageVolumeMountFailed", message: fmt.Sprintf("failed to mount image %q of volume %q: %v", ref, v.Name, err)}
		}
	}
	return image, nil, nil
}

func volumeNamed(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}
