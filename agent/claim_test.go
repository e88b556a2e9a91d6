package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/api"
)

var (
	claimsGVR  = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	volumesGVR = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
)

var oneGi = corev1.ResourceList{"storage": resource.MustParse("1Gi")}

// volume is one of class local-path that is kept on this node, for the claim
// "data".
func (w *world) volume(name string, edit ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	w.t.Helper()
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Labels: map[string]string{api.LabelVolumeNode: "n1"}, Finalizers: []string{api.FinalizerLocalPath},
			Annotations: map[string]string{api.AnnotationProvisionedBy: api.LocalPathProvisioner},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: oneGi, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:               &corev1.ObjectReference{Namespace: "default", Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: filepath.Join(w.config.Dir, "volumes", name+"_default_data")}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{"n1"}}},
			}}}},
		},
	}
	for _, f := range edit {
		f(v)
	}
	o, err := w.client.Create(context.Background(), volumesGVR, "", name, v, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
	return o.(*corev1.PersistentVolume)
}

func edit[T api.Object](w *world, r gvr, namespace, name string, f func(T), sub ...string) {
	w.t.Helper()
	for {
		o, err := w.client.Get(context.Background(), r, namespace, name, metav1.GetOptions{})
		if err != nil {
			w.t.Fatal(err)
		}
		changed := o.DeepCopyObject().(T)
		f(changed)
		_, err = w.client.Update(context.Background(), r, namespace, changed, metav1.UpdateOptions{}, sub...)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		synctest.Wait()
		return
	}
}

// claim makes the claim "data", bound to a volume.
func (w *world) claim(volume string) {
	w.t.Helper()
	class := ""
	w.put(&corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", Annotations: map[string]string{api.AnnotationBindCompleted: "yes"}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, VolumeName: volume, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany},
			Resources: corev1.VolumeResourceRequirements{Requests: oneGi},
		},
	})
	edit(w, claimsGVR, "default", "data", func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimBound }, "status")
	c, err := w.client.Get(context.Background(), claimsGVR, "default", "data", metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	edit(w, volumesGVR, "", volume, func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = c.GetUID() })
}

// release is what the controllers do when the claim is gone.
func (w *world) release(volume string) {
	w.t.Helper()
	if err := w.client.Delete(context.Background(), volumesGVR, "", volume, metav1.DeleteOptions{}); err != nil {
		w.t.Fatal(err)
	}
	edit(w, volumesGVR, "", volume, func(v *corev1.PersistentVolume) {
		v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == api.FinalizerVolume })
	})
}

func (w *world) hasVolume(name string) bool {
	_, err := w.client.Get(context.Background(), volumesGVR, "", name, metav1.GetOptions{})
	return err == nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func claiming(p *corev1.Pod) {
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/data"}}
}

// mounted is where the host has what a container sees at /data.
func (w *world) mounted() string {
	for _, c := range w.runtime.Started() {
		for _, m := range c.Mounts {
			if m.Destination == "/data" {
				return m.Source
			}
		}
	}
	return ""
}

// A folder is made once and removed once: when its volume is deleted and no pod
// mounts it any more.
func TestLocalVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		synctest.Wait()
		if got := w.node().Annotations[api.AnnotationVolumesDir]; got != filepath.Join(w.config.Dir, "volumes") {
			t.Errorf("the node says that volumes are in %q", got)
		}
		v := w.volume("pvc-1")
		path := v.Spec.Local.Path
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
			t.Fatalf("the folder: %v, %v", info, err)
		}
		edit(w, volumesGVR, "", "pvc-1", func(v *corev1.PersistentVolume) {
			if v.Annotations[api.AnnotationVolumeMade] == "" {
				t.Error("nobody was told that the folder is made")
			}
		})
		w.claim("pvc-1")
		w.create(pod("a", claiming))
		after(time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning || w.mounted() != path {
			t.Fatalf("mounted %q, status %s, events %q", w.mounted(), show(p.Status), w.events("FailedMount"))
		}
		if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.restart()
		after(time.Second)
		w.release("pvc-1")
		after(time.Minute)
		if !exists(filepath.Join(path, "file")) || !w.hasVolume("pvc-1") {
			t.Fatal("removed while a pod mounts it")
		}
		w.delete("a", 0)
		after(time.Minute)
		if exists(path) || w.hasVolume("pvc-1") {
			t.Errorf("folder: %t, object: %t", exists(path), w.hasVolume("pvc-1"))
		}
	})
}

func TestLocalVolumeStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		retained := w.volume("pvc-1", func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		})
		w.release("pvc-1")
		after(time.Second)
		if !exists(retained.Spec.Local.Path) || w.hasVolume("pvc-1") {
			t.Errorf("retained: folder %t, object %t", exists(retained.Spec.Local.Path), w.hasVolume("pvc-1"))
		}
		// Whose path is not one of ours is no order to remove it.
		precious := filepath.Join(w.config.Dir, "pods")
		w.volume("pvc-2", func(v *corev1.PersistentVolume) { v.Spec.Local.Path = precious })
		w.release("pvc-2")
		after(time.Minute)
		if !exists(precious) {
			t.Error("a PersistentVolume made us remove a folder that is none")
		}
		// What was made once and is missing is lost, not made again.
		lost := w.volume("pvc-3")
		w.claim("pvc-3")
		if err := os.Remove(lost.Spec.Local.Path); err != nil {
			t.Fatal(err)
		}
		w.restart()
		w.create(pod("a", claiming))
		after(time.Minute)
		if exists(lost.Spec.Local.Path) || w.get("a").Status.Phase == corev1.PodRunning {
			t.Error("a lost folder is there again, empty")
		}
		if got := w.events("FailedMount"); len(got) == 0 || !strings.Contains(got[0], `local volume: path "`+lost.Spec.Local.Path+`" does not exist`) {
			t.Errorf("events %q", got)
		}
	})
}

// A node that boots with no master in sight starts the pods that it had.
func TestClaimWithoutMasters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.volume("pvc-1")
		w.claim("pvc-1")
		p := w.create(pod("a", claiming))
		after(time.Second)
		w.stop()
		w.runtime.Reboot()
		w.config.Client = deaf{w.client}
		w.start()
		after(time.Minute)
		w.wantStarts("alone", p.UID, "web_0", "web_1")
	})
}

// deaf is a client whose API does not answer.
type deaf struct{ api.Client }

func (deaf) List(ctx context.Context, _ gvr, _ string, _ metav1.ListOptions) ([]api.Object, metav1.ListMeta, error) {
	return nil, metav1.ListMeta{}, apierrors.NewServiceUnavailable("nobody is there")
}

func (deaf) Get(context.Context, gvr, string, string, metav1.GetOptions, ...string) (api.Object, error) {
	return nil, apierrors.NewServiceUnavailable("nobody is there")
}

func TestClaimsThatCannotBeMounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a", claiming))
		after(time.Second)
		want := func(what string) {
			t.Helper()
			after(3 * time.Minute)
			if got := w.events("FailedMount"); !slices.ContainsFunc(got, func(e string) bool { return strings.Contains(e, what) }) {
				t.Errorf("no event with %q among %q", what, got)
			}
		}
		want(`persistentvolumeclaim "data" not found`)
		w.volume("iscsi", func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{ISCSI: &corev1.ISCSIPersistentVolumeSource{TargetPortal: "s", IQN: "iqn.x"}}
		})
		w.claim("iscsi")
		want("volumes of this type are not supported")
		if err := w.client.Delete(context.Background(), claimsGVR, "default", "data", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		edit(w, claimsGVR, "default", "data", func(c *corev1.PersistentVolumeClaim) { c.Finalizers = nil })
		w.volume("elsewhere", func(v *corev1.PersistentVolume) {
			v.Labels = nil
			v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] = "n2"
		})
		w.claim("elsewhere")
		want("volume elsewhere cannot be mounted on node n1")
		// It is mended as soon as there is something to mount.
		if err := w.client.Delete(context.Background(), claimsGVR, "default", "data", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		edit(w, claimsGVR, "default", "data", func(c *corev1.PersistentVolumeClaim) { c.Finalizers = nil })
		dir := t.TempDir()
		w.volume("host", func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}
		})
		w.claim("host")
		after(time.Millisecond)
		if w.mounted() != dir {
			t.Errorf("mounted %q, events %q", w.mounted(), w.events("FailedMount"))
		}
	})
}
