package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestConfigMapVolumeFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx := context.Background()
		w.put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "c"}, Data: map[string]string{"a": "1"}, BinaryData: map[string][]byte{"b": {0xde, 0xca}}})
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{
				{Name: "c", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
				{Name: "o", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "o"}, Optional: new(true)}}},
			}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "c", MountPath: "/c"}, {Name: "o", MountPath: "/o"}}
		}))
		after(time.Second)
		web := w.runtime.Started()[0]
		if got := readMount(t, web, "/c", "a") + readMount(t, web, "/c", "b"); got != "1\xde\xca" {
			t.Fatalf("at first: %q", got)
		}
		if _, err := w.client.Patch(ctx, configMapsGVR, "default", "c", types.MergePatchType, []byte(`{"data":{"a":"2","new":"x"}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		w.put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "o"}, Data: map[string]string{"k": "v"}})
		after(time.Second)
		if got := readMount(t, web, "/c", "a") + readMount(t, web, "/c", "new") + readMount(t, web, "/o", "k"); got != "2xv" {
			t.Errorf("after the update: %q", got)
		}
		if err := w.client.Delete(ctx, configMapsGVR, "default", "o", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		if _, err := os.Stat(filepath.Join(mountSource(t, web, "/o"), "k")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after the deletion: %v", err)
		}
	})
}

func TestDownwardVolumeFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a", func(p *corev1.Pod) {
			p.Labels, p.Annotations = map[string]string{"k": "1"}, map[string]string{"x": "old"}
			p.Spec.Volumes = []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{
				{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
				{Path: "deep/annotations", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.annotations"}},
			}}}}}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "d", MountPath: "/d"}}
		}))
		after(time.Second)
		web := w.runtime.Started()[0]
		if got := readMount(t, web, "/d", "labels"); got != `k="1"` {
			t.Fatalf("labels: %q", got)
		}
		patch := []byte(`{"metadata":{"labels":{"k":"2","l":"3"},"annotations":{"x":"new"}}}`)
		if _, err := w.client.Patch(context.Background(), podsGVR, "default", "a", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		if got := readMount(t, web, "/d", "labels") + " " + readMount(t, web, "/d", "deep/annotations"); got != "k=\"2\"\nl=\"3\" x=\"new\"" {
			t.Errorf("after: %q", got)
		}
	})
}

func TestTokenIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{tokenVolume("t", 3600)}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "t", MountPath: "/t"}}
		}))
		after(time.Second)
		if len(w.runtime.Started()) == 0 {
			t.Fatalf("%s %q", show(w.get("a").Status), w.events("FailedMount"))
		}
		web := w.runtime.Started()[0]
		one := readMount(t, web, "/t", "token")
		after(47 * time.Minute)
		if readMount(t, web, "/t", "token") != one {
			t.Error("renewed too soon")
		}
		after(2 * time.Minute)
		two := readMount(t, web, "/t", "token")
		if two == one || strings.Count(two, ".") != 2 {
			t.Error("not renewed at four fifths of its life")
		}
	})
}

func TestMissingReferences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ref := corev1.LocalObjectReference{Name: "later"}
		w.create(pod("env", func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: ref}}}
		}))
		w.create(pod("volume", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: ref}}}}
		}))
		after(5 * time.Second)
		if s := state(w.get("env"), "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "CreateContainerConfigError" || s.State.Waiting.Message != `configmap "later" not found` {
			t.Errorf("env: %s", show(s))
		}
		if s := state(w.get("volume"), "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "ContainerCreating" {
			t.Errorf("volume: %s", show(s))
		}
		if m := w.events("FailedMount"); len(m) != 1 || m[0] != `MountVolume.SetUp failed for volume "v" : configmap "later" not found` {
			t.Errorf("FailedMount: %q", m)
		}
		w.put(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "later"}, Data: map[string]string{"a": "1"}})
		synctest.Wait() // at once, without waiting for a back-off
		for _, name := range []string{"env", "volume"} {
			if p := w.get(name); p.Status.Phase != corev1.PodRunning {
				t.Errorf("%s: %s", name, show(p.Status))
			}
		}
	})
}
