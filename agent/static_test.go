package agent

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/api"
)

const staticText = `{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: main, image: app}]}}`

func TestStaticPod(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	pod, err := staticPod([]byte(staticText), "web.yaml", "n1", now)
	if err != nil {
		t.Fatal(err)
	}
	if pod.Name != "web-n1" || pod.Namespace != "default" || pod.Spec.NodeName != "n1" || len(pod.UID) != 32 || pod.Spec.RestartPolicy != corev1.RestartPolicyAlways || pod.Spec.Containers[0].ImagePullPolicy != corev1.PullAlways {
		t.Errorf("%+v", pod)
	}
	if a := pod.Annotations; a[api.AnnotationPodSource] != "file" || a[api.AnnotationPodHash] != string(pod.UID) || a[api.AnnotationPodSeen] == "" || !api.IsStatic(pod) {
		t.Errorf("annotations %v", a)
	}
	again, err := staticPod([]byte(staticText), "web.yaml", "n1", now.Add(time.Hour))
	if err != nil || again.UID != pod.UID {
		t.Errorf("the same file is another pod: %s %v", again.UID, err)
	}
	for _, other := range []func() (*corev1.Pod, error){
		func() (*corev1.Pod, error) { return staticPod([]byte(staticText+" "), "web.yaml", "n1", now) },
		func() (*corev1.Pod, error) { return staticPod([]byte(staticText), "web.yaml", "n2", now) },
	} {
		if p, err := other(); err != nil || p.UID == pod.UID {
			t.Errorf("another pod has the same UID: %v", err)
		}
	}
	m := mirrorOf(pod, &corev1.Node{})
	if api.IsStatic(m) || !api.IsMirror(m) || m.Annotations[corev1.MirrorPodAnnotationKey] != string(pod.UID) || m.UID != "" || api.IsMirror(pod) {
		t.Errorf("mirror: %+v", m.ObjectMeta)
	}
	for text, want := range map[string]string{
		"nonsense": "it is no pod",
		"{apiVersion: v1, kind: Service, metadata: {name: x}}":                                                       "only a Pod of v1",
		"{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {}}":                                             "only a Pod of v1",
		strings.Replace(staticText, "name: web", "namespace: x", 1):                                                  "metadata.name",
		strings.Replace(staticText, "containers: [", "serviceAccountName: a, containers: [", 1):                      "spec.serviceAccountName: Forbidden",
		strings.Replace(staticText, "image: app", "image: app, envFrom: [{secretRef: {name: s}}]", 1):                "envFrom: Forbidden",
		strings.Replace(staticText, "containers: [", "volumes: [{name: v, configMap: {name: c}}], containers: [", 1): "spec.volumes[0]: Forbidden",
		strings.Replace(staticText, "image: app", "image: app, unknown: 1", 1):                                       "unknown",
	} {
		if _, err := staticPod([]byte(text), "f", "n1", now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

func FuzzStaticPod(f *testing.F) {
	f.Add([]byte(staticText))
	f.Fuzz(func(t *testing.T, data []byte) {
		pod, err := staticPod(data, "f", "n1", time.Time{})
		if err == nil && (pod.Spec.NodeName != "n1" || !strings.HasSuffix(pod.Name, "-n1") || !api.IsStatic(pod)) {
			t.Errorf("%q became %+v", data, pod)
		}
	})
}

func TestMirrorsDue(t *testing.T) {
	pod := func(name, hash string) *corev1.Pod {
		p := &corev1.Pod{}
		p.Name, p.Annotations = name, map[string]string{api.AnnotationPodHash: hash}
		return p
	}
	mirror := func(name, hash string) *corev1.Pod {
		p := pod(name, hash)
		p.Annotations[corev1.MirrorPodAnnotationKey] = hash
		return p
	}
	leaving := mirror("leaving", "1")
	leaving.DeletionTimestamp = &metav1.Time{Time: stepNow}
	k := &staticKeeper{
		pods:  map[string]*corev1.Pod{"a": pod("shown", "1"), "b": pod("missing", "1"), "c": pod("changed", "2"), "d": pod("leaving", "1")},
		shown: map[types.NamespacedName]*corev1.Pod{},
	}
	if missing, surplus := k.due(); len(missing)+len(surplus) > 0 {
		t.Errorf("before the API has answered: %v %v", missing, surplus)
	}
	k.listed = true
	for _, m := range []*corev1.Pod{mirror("shown", "1"), mirror("changed", "1"), leaving, mirror("nobody's", "1")} {
		k.shown[nameOf(m)] = m
	}
	missing, surplus := k.due()
	names := map[string]bool{}
	for _, p := range surplus {
		names[p.Name] = true
	}
	if len(missing) != 1 || missing[0].Name != "missing" || len(names) != 3 || !names["changed"] || !names["leaving"] || !names["nobody's"] {
		t.Errorf("missing %v, surplus %v", missing, names)
	}
}
