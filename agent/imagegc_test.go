package agent_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"conclave/agent"
)

// imageIDs are those of the images that are left.
func (w *world) imageIDs() string {
	var ids []string
	for _, i := range w.runtime.Images() {
		ids = append(ids, strings.TrimPrefix(i.ID, "sha256:"))
	}
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

// TestImagesAreRemoved: above the high threshold those go that were not used for
// longest, until the low one is reached; what is used, young or pinned stays.
func TestImagesAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var other atomic.Int64
		other.Store(100)
		w := newWorld(t, func(w *world) {
			w.config.ImageGC.Disk = func() (int64, int64, error) {
				free := 1000 - other.Load()
				for _, i := range w.runtime.Images() {
					free -= i.Size
				}
				return 1000, free, nil
			}
		})
		w.runtime.OnPull = func(_ context.Context, ref string, _ agent.PullOptions) (agent.Image, error) {
			return agent.Image{ID: "sha256:" + ref, Names: []string{ref}, Size: 100}, nil
		}
		add := func(name string, pinned bool) {
			w.runtime.AddImage(name, agent.Image{ID: "sha256:" + name, Names: []string{name}, Size: 100, Pinned: pinned})
		}
		for _, n := range []string{"a", "b", "pinned"} {
			add(n, n == "pinned")
		}
		w.create(pod("uses", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "used:1" }))
		w.create(pod("used-b", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "b" }))
		after(time.Minute)
		w.agent.ImagesChanged()
		after(time.Second)
		w.delete("used-b", 0)
		before := w.imageIDs()
		after(11 * time.Minute)
		if got := w.imageIDs(); got != before || got != "a app:1 b pinned used:1" {
			t.Errorf("below the threshold: %s, then %s", before, got)
		}
		other.Store(500) // with four images of 100 and what the tests' image has: above 85 %
		add("young", false)
		w.agent.ImagesChanged()
		after(time.Second)
		if got := w.imageIDs(); strings.Contains(got, "a ") || !strings.Contains(got, "pinned") || !strings.Contains(got, "young") {
			t.Errorf("above the threshold: %s", got)
		}
		other.Store(2000)
		after(10 * time.Minute)
		if got := w.imageIDs(); strings.Contains(got, "young") || strings.Contains(got, "b ") || !strings.Contains(got, "used:1") || !strings.Contains(got, "pinned") {
			t.Errorf("of a full disk: %s", got)
		}
		if m := w.events("FreeDiskSpaceFailed"); len(m) == 0 || !strings.Contains(m[0], "Insufficient free disk space on the node's image filesystem (") {
			t.Errorf("FreeDiskSpaceFailed: %q", m)
		}
		if m := w.events("ImageGCFailed"); len(m) == 0 {
			t.Error("ImageGCFailed is missing")
		}
	})
}

func TestImagesGetOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world) {
			w.config.ImageGC.MaximumAge = time.Hour
			w.config.ImageGC.Disk = func() (int64, int64, error) { return 1000, 900, nil }
		})
		w.runtime.AddImage("old", agent.Image{ID: "sha256:old", Names: []string{"old"}})
		w.agent.ImagesChanged()
		after(50 * time.Minute)
		if got := w.imageIDs(); !strings.Contains(got, "old") {
			t.Errorf("after 50 minutes: %s", got)
		}
		after(20 * time.Minute)
		if got := w.imageIDs(); strings.Contains(got, "old") {
			t.Errorf("after 70 minutes: %s", got)
		}
	})
}

// TestEntitledImages: an image that is here is pulled again for a pod that its
// registry has not let in.
func TestEntitledImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.AddImage("private:1", agent.Image{ID: "sha256:p", Names: []string{"private:1"}})
		var asked []string
		w.runtime.OnEntitled = func(ref string, _ agent.Credentials) bool { return ref != "private:1" }
		w.runtime.OnPull = func(_ context.Context, ref string, o agent.PullOptions) (agent.Image, error) {
			asked = append(asked, fmt.Sprint(ref, o.Fresh))
			return agent.Image{}, agent.ErrImageNotFound
		}
		w.create(pod("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "private:1" }))
		after(time.Second / 2)
		if s := state(w.get("a"), "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "ErrImagePull" || !slices.Equal(asked, []string{"private:1false"}) {
			t.Errorf("%v %s", asked, show(s))
		}
		w.create(pod("b", func(p *corev1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = "private:1", corev1.PullNever
		}))
		after(time.Second / 2)
		if s := state(w.get("b"), "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "ErrImageNeverPull" {
			t.Errorf("%s", show(s))
		}
	})
}

// TestImageVolumes: the image of a volume is pulled as a container's own is, and
// holds the container up as that does.
func TestImageVolumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var fail atomic.Bool
		fail.Store(true)
		w.runtime.OnPull = func(_ context.Context, ref string, o agent.PullOptions) (agent.Image, error) {
			if ref == "content:1" && (fail.Load() || !o.Fresh) {
				return agent.Image{}, agent.ErrImageNotFound
			}
			return agent.Image{ID: "sha256:" + ref}, nil
		}
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "content:1", PullPolicy: corev1.PullAlways}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
		}))
		after(3 * time.Second)
		if s := state(w.get("a"), "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "ImagePullBackOff" || !strings.Contains(s.State.Waiting.Message, "content:1") {
			t.Errorf("%s", show(s))
		}
		fail.Store(false)
		after(10 * time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("%s", show(p.Status))
		}
		if !w.runtime.ImageInUse("sha256:content:1") {
			t.Error("the image is not mounted")
		}
		for _, c := range w.runtime.Started() {
			for _, m := range c.Mounts {
				if m.Destination == "/v" && (!slices.Contains(m.Options, "ro") || !slices.Contains(m.Options, "noexec")) {
					t.Errorf("mounted with %v", m.Options)
				}
			}
		}
	})
}
