package agent

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
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

// pullBackOff remembers what pulling an image has come to for one pod.
type pullBackOff struct {
	next  time.Time
	delay time.Duration
	cause *waitingError
}

const errImagePullAgain = time.Second // until ErrImagePull shows as ImagePullBackOff

// ensureImage returns the image of a container, pulling it as its policy says.
func (w *podWorker) ensureImage(ctx context.Context, pod *corev1.Pod, c *corev1.Container, back *pullBackOff, auth func() (PullAuth, error)) (Image, *pullBackOff, error) {
	a := w.a
	image, have := a.cfg.Runtime.Image(c.Image)
	switch policy := c.ImagePullPolicy; {
	case have && policy != corev1.PullAlways:
		w.event(c, corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Container image %q already present on machine", c.Image))
		return image, nil, nil
	case policy == corev1.PullNever:
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", c.Image)
		w.event(c, corev1.EventTypeWarning, "ErrImageNeverPull", msg)
		return image, back, &waitingError{reason: "ErrImageNeverPull", message: msg}
	}
	now := a.cfg.Now()
	if back != nil && now.Before(back.next) {
		msg := fmt.Sprintf("Back-off pulling image %q", c.Image)
		w.event(c, corev1.EventTypeNormal, "BackOff", msg)
		return image, back, &waitingError{reason: "ImagePullBackOff", message: msg + ": " + back.cause.reason + ": " + back.cause.message, again: back.next}
	}
	credentials, err := auth()
	if err != nil {
		return image, back, err
	}
	w.event(c, corev1.EventTypeNormal, "Pulling", fmt.Sprintf("Pulling image %q", c.Image))
	image, err = a.cfg.Runtime.Pull(ctx, c.Image, credentials)
	if err == nil {
		took := a.cfg.Now().Sub(now).Round(time.Millisecond)
		w.event(c, corev1.EventTypeNormal, "Pulled", fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.", c.Image, took, took, image.Size))
		a.node.imagesChanged()
		return image, nil, nil
	}
	if ctx.Err() != nil {
		return image, back, ctx.Err()
	}
	next := &pullBackOff{delay: backOffFirst}
	if back != nil {
		next.delay = min(2*back.delay, backOffMax)
	}
	now = a.cfg.Now()
	next.next = now.Add(next.delay)
	next.cause = &waitingError{reason: "ErrImagePull", message: err.Error(), again: now.Add(errImagePullAgain)}
	switch {
	case errors.Is(err, ErrInvalidImageName):
		next.cause.reason = "InvalidImageName"
		next.cause.message = fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: %v", c.Image, c.Image, err)
		next.cause.again = next.next
		w.event(c, corev1.EventTypeWarning, "InspectFailed", next.cause.message)
		return image, next, next.cause
	case errors.Is(err, ErrRegistryUnavailable):
		next.cause.message = fmt.Sprintf("image pull failed for %s because the registry is unavailable: %v", c.Image, err)
	}
	w.event(c, corev1.EventTypeWarning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", c.Image, err))
	return image, next, next.cause
}

// dockerConfig is the content of the two kinds of registry secrets.
type dockerConfig map[string]struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	RegistryToken string `json:"registrytoken"`
	IdentityToken string `json:"identitytoken"`
}

// pullAuth picks what to tell the registry of an image: the entry of the pod's
// pull secrets with the longest matching address.
func pullAuth(image string, secrets []*corev1.Secret) PullAuth {
	repository := imageRepository(image)
	var best PullAuth
	longest := -1
	for _, s := range secrets {
		var config dockerConfig
		if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok {
			var file struct {
				Auths dockerConfig `json:"auths"`
			}
			if json.Unmarshal(data, &file) != nil {
				continue
			}
			config = file.Auths
		} else if json.Unmarshal(s.Data[corev1.DockerConfigKey], &config) != nil {
			continue
		}
		for address, entry := range config {
			address = registryAddress(address)
			if len(address) <= longest || !addressMatches(address, repository) {
				continue
			}
			best, longest = PullAuth{Username: entry.Username, Password: entry.Password, Token: entry.RegistryToken}, len(address)
			if best.Token == "" {
				best.Token = entry.IdentityToken
			}
			if plain, err := base64.StdEncoding.DecodeString(entry.Auth); err == nil && entry.Auth != "" {
				best.Username, best.Password, _ = strings.Cut(string(plain), ":")
			}
		}
	}
	return best
}

const dockerHub = "index.docker.io"

// imageRepository is an image's registry and path, without tag and digest.
func imageRepository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') {
		image = image[:i]
	}
	host, rest, ok := strings.Cut(image, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		if !ok {
			image = "library/" + image
		}
		return dockerHub + "/" + image
	}
	if host == "docker.io" {
		return dockerHub + "/" + rest
	}
	return image
}

func registryAddress(s string) string {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://")
	s = strings.TrimSuffix(s, "/")
	s = strings.TrimSuffix(strings.TrimSuffix(s, "/v1"), "/v2")
	if host, rest, _ := strings.Cut(s, "/"); host == "docker.io" || host == "registry-1.docker.io" {
		s = strings.TrimSuffix(dockerHub+"/"+rest, "/")
	}
	return s
}

// addressMatches compares host names label by label, each of which may hold
// wildcards, and takes the rest as a path prefix.
func addressMatches(address, repository string) bool {
	wantHost, wantPath, _ := strings.Cut(address, "/")
	host, rest, _ := strings.Cut(repository, "/")
	want, have := strings.Split(wantHost, "."), strings.Split(host, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return wantPath == "" || rest == wantPath || strings.HasPrefix(rest, wantPath+"/")
}
