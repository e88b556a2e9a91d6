package api_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

func testDeployment(name string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1"}}},
			},
		},
	}
}

// Kubernetes' own client, in both of its encodings, does everything to objects.
func TestClientGo(t *testing.T) {
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(contentType, func(t *testing.T) {
			st := newSite(t)
			st.namespace("shop")
			cs := st.clientset(contentType)
			ctx := t.Context()
			maps := cs.CoreV1().ConfigMaps("shop")
			w := must(maps.Watch(ctx, metav1.ListOptions{LabelSelector: "tier=front"}))(t)
			defer w.Stop()
			next := func(kind watch.EventType, data string) {
				t.Helper()
				select {
				case e := <-w.ResultChan():
					cm, ok := e.Object.(*corev1.ConfigMap)
					if !ok || e.Type != kind || cm.Data["k"] != data {
						t.Fatalf("want %s %q, got %s %v", kind, data, e.Type, e.Object)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("no event, want %s %q", kind, data)
				}
			}
			cm := must(maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"tier": "front"}}, Data: map[string]string{"k": "1"}}, metav1.CreateOptions{}))(t)
			next(watch.Added, "1")
			if cm.UID == "" || cm.ResourceVersion == "" || cm.CreationTimestamp.IsZero() {
				t.Errorf("incomplete metadata: %+v", cm.ObjectMeta)
			}
			stale := cm.DeepCopy()
			cm.Data["k"] = "2"
			must(maps.Update(ctx, cm, metav1.UpdateOptions{}))(t)
			next(watch.Modified, "2")
			if _, err := maps.Update(ctx, stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) ||
				err.Error() != `Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again` {
				t.Errorf("update of an old version: %v", err)
			}
			for i, p := range []struct {
				kind types.PatchType
				data string
			}{
				{types.MergePatchType, `{"data":{"k":"3"}}`},
				{types.JSONPatchType, `[{"op":"replace","path":"/data/k","value":"4"}]`},
				{types.StrategicMergePatchType, `{"data":{"k":"5"}}`},
			} {
				must(maps.Patch(ctx, "a", p.kind, []byte(p.data), metav1.PatchOptions{}))(t)
				next(watch.Modified, fmt.Sprint(i+3))
			}
			applied := applycorev1.ConfigMap("a", "shop").WithData(map[string]string{"k": "6"})
			if _, err := maps.Apply(ctx, applied, metav1.ApplyOptions{FieldManager: "me"}); !apierrors.IsConflict(err) {
				t.Errorf("apply of another's field: %v", err)
			}
			got := must(maps.Apply(ctx, applied, metav1.ApplyOptions{FieldManager: "me", Force: true}))(t)
			next(watch.Modified, "6")
			if len(got.ManagedFields) != 2 {
				t.Errorf("managed fields: %v", got.ManagedFields)
			}
			must(maps.Patch(ctx, "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"tier":"back"}}}`), metav1.PatchOptions{}))(t)
			next(watch.Deleted, "6") // it no longer matches
			if err := maps.Delete(ctx, "a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := maps.Get(ctx, "a", metav1.GetOptions{}); !apierrors.IsNotFound(err) || err.Error() != `configmaps "a" not found` {
				t.Errorf("get of what is gone: %v", err)
			}
			testWorkload(t, st, contentType)
		})
	}
}

func testWorkload(t *testing.T, st *site, contentType string) {
	ctx, cs := t.Context(), st.clientset(contentType)
	deployments := cs.AppsV1().Deployments("shop")
	d := must(deployments.Create(ctx, testDeployment("web"), metav1.CreateOptions{}))(t)
	if d.Generation != 1 || *d.Spec.Replicas != 1 || d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		t.Errorf("defaults: %+v", d.Spec)
	}
	scale := must(deployments.GetScale(ctx, "web", metav1.GetOptions{}))(t)
	scale.Spec.Replicas = 4
	scale = must(deployments.UpdateScale(ctx, "web", scale, metav1.UpdateOptions{}))(t)
	if scale.Spec.Replicas != 4 {
		t.Errorf("scale: %+v", scale.Spec)
	}
	must(deployments.Patch(ctx, "web", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"))(t)
	d = must(deployments.Get(ctx, "web", metav1.GetOptions{}))(t)
	if *d.Spec.Replicas != 5 || d.Generation != 3 {
		t.Errorf("after scaling: %d replicas, generation %d", *d.Spec.Replicas, d.Generation)
	}
	d.Status.Replicas, d.Spec.Paused = 3, true
	d = must(deployments.UpdateStatus(ctx, d, metav1.UpdateOptions{}))(t)
	if d.Status.Replicas != 3 || d.Spec.Paused || d.Generation != 3 {
		t.Errorf("status update: %+v", d)
	}
	d.Status.Replicas, d.Spec.Paused = 7, true
	d = must(deployments.Update(ctx, d, metav1.UpdateOptions{}))(t)
	if d.Status.Replicas != 3 || !d.Spec.Paused || d.Generation != 4 {
		t.Errorf("update: %+v", d)
	}
	if err := deployments.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=web"}); err != nil {
		t.Fatal(err)
	}
	if l := must(deployments.List(ctx, metav1.ListOptions{}))(t); len(l.Items) != 0 {
		t.Errorf("left after deletion: %d", len(l.Items))
	}
}

// client-go's informer, which lists by watching, sees what happens.
func TestInformer(t *testing.T) {
	st := newSite(t)
	st.namespace("shop")
	cs := st.clientset("application/vnd.kubernetes.protobuf")
	ctx, cancel := context.WithCancel(t.Context())
	f := informers.NewSharedInformerFactoryWithOptions(cs, 0, informers.WithNamespace("shop"))
	seen := make(chan string, 100)
	_, err := f.Core().V1().Secrets().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { seen <- "add " + o.(*corev1.Secret).Name },
		UpdateFunc: func(_, o any) { seen <- "update " + o.(*corev1.Secret).Name },
		DeleteFunc: func(any) { seen <- "delete" },
	})
	if err != nil {
		t.Fatal(err)
	}
	secrets := cs.CoreV1().Secrets("shop")
	must(secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "before"}}, metav1.CreateOptions{}))(t)
	f.Start(ctx.Done())
	defer f.Shutdown()
	defer cancel()
	for _, ok := range f.WaitForCacheSync(ctx.Done()) {
		if !ok {
			t.Fatal("the informer did not get in step")
		}
	}
	s := must(secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "after"}}, metav1.CreateOptions{}))(t)
	s.Data = map[string][]byte{"k": []byte("v")}
	must(secrets.Update(ctx, s, metav1.UpdateOptions{}))(t)
	if err := secrets.Delete(ctx, "after", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"add before", "add after", "update after", "delete"} {
		select {
		case got := <-seen:
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no %q", want)
		}
	}
}
