package agent_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/agent"
	"conclave/agent/agenttest"
	"conclave/api"
)

// A restart of this process changes nothing that runs and reports what it
// missed.
func TestRestartAdopts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		two := func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side", Image: "app:1"})
			p.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
		}
		w.create(pod("a", two))
		after(time.Second)
		uid := string(w.get("a").UID)
		w.stop()
		w.runtime.Exit(uid, "side_0", 0)
		before := w.get("a")
		w.start()
		after(time.Second)
		p := w.get("a")
		if len(w.runtime.Started()) != 2 {
			t.Fatalf("restarted: %v", len(w.runtime.Started()))
		}
		if s := state(p, "side"); s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 {
			t.Errorf("the exit was missed: %s", show(p.Status))
		}
		if s := state(p, "web"); s.State.Running == nil || s.RestartCount != 0 || !s.State.Running.StartedAt.Equal(&state(before, "web").State.Running.StartedAt) {
			t.Errorf("web: %s", show(s))
		}
		if p.Status.PodIP != before.Status.PodIP {
			t.Errorf("address %s, before %s", p.Status.PodIP, before.Status.PodIP)
		}
	})
}

// refusing is a Client whose server is away.
type refusing struct {
	api.Client
	away atomic.Bool
}

func (r *refusing) Get(ctx context.Context, g gvr, ns, name string, o metav1.GetOptions, sub ...string) (api.Object, error) {
	if r.away.Load() {
		return nil, errors.New("no master in sight")
	}
	return r.Client.Get(ctx, g, ns, name, o, sub...)
}

func (r *refusing) List(ctx context.Context, g gvr, ns string, o metav1.ListOptions) ([]api.Object, metav1.ListMeta, error) {
	if r.away.Load() {
		return nil, metav1.ListMeta{}, errors.New("no master in sight")
	}
	return r.Client.List(ctx, g, ns, o)
}

func (r *refusing) Create(ctx context.Context, g gvr, ns, name string, obj api.Object, o metav1.CreateOptions, sub ...string) (api.Object, error) {
	if r.away.Load() {
		return nil, errors.New("no master in sight")
	}
	return r.Client.Create(ctx, g, ns, name, obj, o, sub...)
}

func (r *refusing) Patch(ctx context.Context, g gvr, ns, name string, t types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (api.Object, error) {
	if r.away.Load() {
		return nil, errors.New("no master in sight")
	}
	return r.Client.Patch(ctx, g, ns, name, t, data, o, sub...)
}

// A host that boots with no master in sight starts the pods that it had, with
// what they need, and tells the master of it when there is one again.
func TestBootWithoutMaster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &refusing{}
		w := newWorld(t, func(w *world) {
			client.Client = w.client
			w.config.Client = client
			w.config.Seal = func(p []byte) ([]byte, error) { return append([]byte("sealed"), xor(p)...), nil }
			w.config.Unseal = func(p []byte) ([]byte, error) { return xor(p[len("sealed"):]), nil }
		})
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{Exits: strings.HasPrefix(c.ID, "init")}
		}
		w.put(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"}, Data: map[string][]byte{"key": []byte("secret value")}})
		w.create(pod("a", withInit, func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{
				{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}},
				tokenVolume("t", 3600),
			}
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}, {Name: "t", MountPath: "/t"}}
			p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "key"}}}}
		}))
		after(time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning {
			t.Fatalf("before: %s", show(p.Status))
		}
		w.stop()
		client.away.Store(true)
		w.runtime.Reboot()
		if err := os.RemoveAll(filepath.Join(w.config.Dir, "run")); err != nil {
			t.Fatal(err)
		}
		n := len(w.runtime.Started())
		err := filepath.WalkDir(w.config.Dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if strings.Contains(string(data), "secret value") {
				t.Errorf("%s holds the secret in the clear", path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		w.start()
		after(time.Minute)
		started := w.runtime.Started()[n:]
		var ids []string
		for _, c := range started {
			ids = append(ids, c.ID)
		}
		if strings.Join(ids, " ") != "init1_1 init2_1 web_1" {
			t.Fatalf("started %v", ids)
		}
		web := started[2]
		if !slices.Contains(web.Env, "S=secret value") || !slices.Contains(web.Env, "KUBERNETES_SERVICE_HOST=10.96.0.1") {
			t.Errorf("environment: %q", web.Env)
		}
		if got := readMount(t, web, "/v", "key"); got != "secret value" {
			t.Errorf("volume: %q", got)
		}
		if got := readMount(t, web, "/t", "token"); len(strings.Split(got, ".")) != 3 {
			t.Errorf("token: %q", got)
		}
		client.away.Store(false)
		after(3 * time.Minute)
		p := w.get("a")
		if s := state(p, "web"); p.Status.Phase != corev1.PodRunning || s.RestartCount != 1 || s.LastTerminationState.Terminated == nil {
			t.Errorf("told the API: %s", show(p.Status))
		}
	})
}

func xor(p []byte) []byte {
	out := make([]byte, len(p))
	for i := range p {
		out[i] = p[i] ^ 0x55
	}
	return out
}

func tokenVolume(name string, seconds int64) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", ExpirationSeconds: &seconds}},
	}}}}
}

func mountSource(t *testing.T, c agent.ContainerConfig, target string) string {
	t.Helper()
	for _, m := range c.Mounts {
		if m.Destination == target {
			return m.Source
		}
	}
	t.Fatalf("nothing is mounted at %s: %+v", target, c.Mounts)
	return ""
}

func readMount(t *testing.T, c agent.ContainerConfig, target, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(mountSource(t, c, target), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A list that lacks a pod is not enough to kill it.
func TestListAloneKillsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := &forgetful{}
		w := newWorld(t, func(w *world) { client.Client = w.client })
		w.create(pod("a"))
		after(time.Second)
		w.stop()
		w.config.Client = client
		client.forget.Store(true)
		w.start()
		after(10 * time.Second)
		if len(w.agent.PodsRunning()) != 1 || len(w.runtime.Started()) != 1 {
			t.Error("a pod was stopped that the API has")
		}
	})
}

// forgetful is a Client whose lists are empty.
type forgetful struct {
	api.Client
	forget atomic.Bool
}

func (f *forgetful) List(ctx context.Context, g gvr, ns string, o metav1.ListOptions) ([]api.Object, metav1.ListMeta, error) {
	objects, meta, err := f.Client.List(ctx, g, ns, o)
	if f.forget.Load() && g == podsGVR {
		objects = nil
	}
	return objects, meta, err
}
