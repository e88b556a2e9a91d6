package agent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"conclave/agent"
	"conclave/agent/agenttest"
	"conclave/api"
)

// conformance: [sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status [Conformance] [NodeConformance]
func TestRestartPolicies(t *testing.T) {
	for _, test := range []struct {
		policy   corev1.RestartPolicy
		code     int
		phase    corev1.PodPhase
		restarts int32
		state    string // waiting reason, or exit code
	}{
		{corev1.RestartPolicyAlways, 0, corev1.PodRunning, 2, "CrashLoopBackOff"},
		{corev1.RestartPolicyAlways, 1, corev1.PodRunning, 2, "CrashLoopBackOff"},
		{corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded, 0, "0"},
		{corev1.RestartPolicyOnFailure, 3, corev1.PodRunning, 2, "CrashLoopBackOff"},
		{corev1.RestartPolicyNever, 0, corev1.PodSucceeded, 0, "0"},
		{corev1.RestartPolicyNever, 4, corev1.PodFailed, 0, "4"},
	} {
		t.Run(fmt.Sprintf("%s/%d", test.policy, test.code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour {
					return agenttest.Behaviour{ExitAfter: time.Second, ExitCode: test.code}
				}
				w.create(pod("a", func(p *corev1.Pod) { p.Spec.RestartPolicy = test.policy }))
				// Starts at 0, 1 and, after 10 s, at 12; ends at 13, then waits 20 s.
				after(20 * time.Second)
				p := w.get("a")
				s := state(p, "web")
				got := ""
				switch {
				case s.State.Waiting != nil:
					got = s.State.Waiting.Reason
					if want := fmt.Sprintf("back-off 20s restarting failed container=web pod=a_default(%s)", p.UID); s.State.Waiting.Message != want {
						t.Errorf("message %q, want %q", s.State.Waiting.Message, want)
					}
					if s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != int32(test.code) {
						t.Errorf("last state: %s", show(s))
					}
				case s.State.Terminated != nil:
					got = fmt.Sprint(s.State.Terminated.ExitCode)
				}
				if p.Status.Phase != test.phase || s.RestartCount != test.restarts || got != test.state {
					t.Errorf("phase %s, %d restarts, state %s: %s", p.Status.Phase, s.RestartCount, got, show(p.Status))
				}
				if test.phase != corev1.PodRunning && w.network.Attached() != 0 {
					t.Error("a pod at its end keeps its address")
				}
			})
		})
	}
}

// TestSlowStartIsNoEnd has the agent look while a container is created and does
// not run yet: a pod that is never restarted must not be called failed then.
func TestSlowStartIsNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{StartDelay: time.Second}
		}
		w.create(pod("a", func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }))
		after(500 * time.Millisecond)
		if p := w.get("a"); p.Status.Phase != corev1.PodPending {
			t.Errorf("while its container is created the pod is %s: %s", p.Status.Phase, show(p.Status))
		}
		after(time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning || state(p, "web").State.Running == nil {
			t.Errorf("the pod is %s: %s", p.Status.Phase, show(p.Status))
		}
	})
}

func TestBackOffGrowsAndResets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		long := atomic.Bool{}
		var mu sync.Mutex
		var times []time.Time
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
			if long.Load() {
				return agenttest.Behaviour{ExitAfter: 11 * time.Minute, ExitCode: 1}
			}
			return agenttest.Behaviour{Exits: true, ExitCode: 1}
		}
		w.create(pod("a"))
		seen := func() []time.Time { mu.Lock(); defer mu.Unlock(); return slices.Clone(times) }
		after(25 * time.Minute)
		starts := seen()
		var gaps []time.Duration
		for i := 1; i < len(starts); i++ {
			gaps = append(gaps, starts[i].Sub(starts[i-1]).Round(time.Second))
		}
		want := []time.Duration{0, 10, 20, 40, 80, 160, 300, 300}
		for i := range want {
			want[i] *= time.Second
		}
		if len(gaps) < len(want) || !slices.Equal(gaps[:len(want)], want) {
			t.Fatalf("restarts after %v, want %v", gaps, want)
		}
		long.Store(true)
		after(6 * time.Minute) // it runs now
		n := len(seen())
		long.Store(false)
		after(11 * time.Minute)
		starts = seen()
		if len(starts) < n+2 || starts[n].Sub(starts[n-1]) != 11*time.Minute || starts[n+1].Sub(starts[n]) != 10*time.Second {
			t.Errorf("ten good minutes did not count: %v", starts[n-1:])
		}
	})
}

// conformance: [sig-node] InitContainer should invoke init containers on a RestartAlways pod [Conformance] [NodeConformance]
// conformance: [sig-node] InitContainer should invoke init containers on a RestartNever pod [Conformance] [NodeConformance]
func TestInitContainers(t *testing.T) {
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyNever} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
				switch {
				case strings.HasPrefix(c.ID, "init"):
					return agenttest.Behaviour{ExitAfter: 5 * time.Second}
				case policy == corev1.RestartPolicyNever:
					return agenttest.Behaviour{ExitAfter: 5 * time.Second}
				}
				return agenttest.Behaviour{}
			}
			w.create(pod("a", withInit, func(p *corev1.Pod) { p.Spec.RestartPolicy = policy }))
			after(time.Second)
			p := w.get("a")
			if p.Status.Phase != corev1.PodPending || condition(p, corev1.PodInitialized) != corev1.ConditionFalse ||
				state(p, "web").State.Waiting.Reason != "PodInitializing" || state(p, "init1").State.Running == nil {
				t.Fatalf("while the first works: %s", show(p.Status))
			}
			after(12 * time.Second)
			p = w.get("a")
			if p.Status.Phase != corev1.PodRunning || condition(p, corev1.PodInitialized) != corev1.ConditionTrue {
				t.Fatalf("after both: %s", show(p.Status))
			}
			after(10 * time.Second)
			p = w.get("a")
			want := corev1.PodRunning
			if policy == corev1.RestartPolicyNever {
				want = corev1.PodSucceeded
			}
			if p.Status.Phase != want || len(p.Status.InitContainerStatuses) != 2 || !state(p, "init2").Ready || state(p, "init2").State.Terminated == nil {
				t.Fatalf("at the end: %s", show(p.Status))
			}
			var order []string
			for _, c := range w.runtime.Started() {
				order = append(order, c.ID)
			}
			if got := strings.Join(order, " "); got != "init1_0 init2_0 web_0" {
				t.Errorf("order: %s", got)
			}
		})
	}
}

func withInit(p *corev1.Pod) {
	p.Spec.InitContainers = []corev1.Container{{Name: "init1", Image: "app:1"}, {Name: "init2", Image: "app:1"}}
}

// conformance: [sig-node] InitContainer should not start app containers and fail the pod if init containers fail on a RestartNever pod [Conformance] [NodeConformance]
// conformance: [sig-node] InitContainer should not start app containers if init containers fail on a RestartAlways pod [Conformance] [NodeConformance]
func TestInitContainerFails(t *testing.T) {
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyNever} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
				if strings.HasPrefix(c.ID, "init1") {
					return agenttest.Behaviour{Exits: true, ExitCode: 1}
				}
				return agenttest.Behaviour{}
			}
			w.create(pod("a", withInit, func(p *corev1.Pod) { p.Spec.RestartPolicy = policy }))
			after(time.Minute)
			p := w.get("a")
			want, restarts := corev1.PodPending, int32(3)
			if policy == corev1.RestartPolicyNever {
				want, restarts = corev1.PodFailed, 0
			}
			if p.Status.Phase != want || state(p, "init1").RestartCount != restarts || state(p, "init2").State.Waiting == nil || state(p, "web").State.Waiting == nil {
				t.Fatalf("%s: %s", policy, show(p.Status))
			}
			for _, c := range w.runtime.Started() {
				if !strings.HasPrefix(c.ID, "init1") {
					t.Errorf("%s was started", c.ID)
				}
			}
		})
	}
}

func TestGracefulDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		}))
		synctest.Wait()
		uid := string(w.get("a").UID)
		if _, err := os.Stat(filepath.Join(w.config.Dir, "pods", uid, "volumes", "v")); err != nil {
			t.Fatal(err)
		}
		w.delete("a", 20)
		after(19 * time.Second)
		p := w.get("a")
		if p == nil || p.DeletionTimestamp == nil || state(p, "web").State.Running == nil {
			t.Fatal("it did not get its time")
		}
		after(2 * time.Second)
		if p := w.get("a"); p != nil {
			t.Fatalf("it is still there: %s", show(p.Status))
		}
		if len(w.runtime.Pods()) != 0 || w.network.Attached() != 0 {
			t.Error("it is gone from the API, but not from the node")
		}
		if _, err := os.Stat(filepath.Join(w.config.Dir, "pods", uid)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its folder: %v", err)
		}
		if k := w.events("Killing"); len(k) != 1 || k[0] != "Stopping container web" {
			t.Errorf("Killing: %q", k)
		}
	})
}

func TestDeletionGraceIsShortened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		w.create(pod("a"))
		synctest.Wait()
		w.delete("a", 600)
		after(10 * time.Second)
		w.delete("a", 5)
		after(6 * time.Second)
		if p := w.get("a"); p != nil {
			t.Fatalf("still there: %s", show(p.Status))
		}
	})
}

func TestForcedRemovalStopsThePod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a"))
		synctest.Wait()
		w.delete("a", 0)
		after(time.Second)
		if len(w.runtime.Pods()) != 0 || w.network.Attached() != 0 || len(w.agent.PodsRunning()) != 0 {
			t.Error("a pod that was removed by force runs on")
		}
	})
}

func TestImagePullBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var pulls []time.Time
		w.runtime.OnPull = func(context.Context, string, agent.PullOptions) (agent.Image, error) {
			pulls = append(pulls, time.Now())
			if len(pulls) == 4 {
				return agent.Image{ID: "sha256:x", Size: 42}, nil
			}
			return agent.Image{}, fmt.Errorf("pull missing:1: %w", agent.ErrImageNotFound)
		}
		w.create(pod("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "missing:1" }))
		synctest.Wait()
		s := state(w.get("a"), "web")
		if s.State.Waiting == nil || s.State.Waiting.Reason != "ErrImagePull" || s.State.Waiting.Message != "pull missing:1: image not found" {
			t.Errorf("first: %s", show(s))
		}
		after(2 * time.Second)
		s = state(w.get("a"), "web")
		if s.State.Waiting == nil || s.State.Waiting.Reason != "ImagePullBackOff" || !strings.HasPrefix(s.State.Waiting.Message, `Back-off pulling image "missing:1": ErrImagePull: `) {
			t.Errorf("then: %s", show(s))
		}
		after(2 * time.Minute)
		var gaps []time.Duration
		for i := 1; i < len(pulls); i++ {
			gaps = append(gaps, pulls[i].Sub(pulls[i-1]))
		}
		if fmt.Sprint(gaps) != "[10s 20s 40s]" {
			t.Errorf("pulled again after %v", gaps)
		}
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("at last: %s", show(p.Status))
		}
		if m := w.events("Pulled"); len(m) != 1 || !strings.HasPrefix(m[0], `Successfully pulled image "missing:1" in `) || !strings.HasSuffix(m[0], "Image size: 42 bytes.") {
			t.Errorf("Pulled: %q", m)
		}
	})
}

// TestImageIsNear: a long pause ends early once another node says that it has the
// image, and stays short while one does.
func TestImageIsNear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var pulls []time.Duration
		began := time.Now()
		var near atomic.Bool
		w.runtime.OnNear = func(string) bool { return near.Load() }
		w.runtime.OnPull = func(context.Context, string, agent.PullOptions) (agent.Image, error) {
			pulls = append(pulls, time.Since(began).Round(time.Second))
			return agent.Image{}, fmt.Errorf("pull missing:1: %w", agent.ErrRegistryUnavailable)
		}
		w.create(pod("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "missing:1" }))
		after(90 * time.Second)
		near.Store(true) // the pause is of 80 s, and 20 s of it are over
		after(30 * time.Second)
		near.Store(false)
		after(time.Minute)
		if got := fmt.Sprint(pulls); !strings.HasPrefix(got, "[0s 10s 30s 1m10s ") || len(pulls) != 7 {
			t.Fatalf("pulled at %s", got)
		}
		for i, at := range pulls[4:] { // from the next look on, every 10 s or a little more
			if gap := at - pulls[3+i]; at > 2*time.Minute || gap < 10*time.Second || gap > 12*time.Second && i > 0 || at > 101*time.Second && i == 0 {
				t.Errorf("pulled at %s", pulls)
			}
		}
		if n := len(w.events("BackOff")); n > len(pulls) {
			t.Errorf("%d events of %d pauses", n, len(pulls))
		}
	})
}

func TestImagePullPolicies(t *testing.T) {
	for _, test := range []struct {
		image  string
		policy corev1.PullPolicy
		pulls  int
		reason string
	}{
		{"app:1", corev1.PullIfNotPresent, 0, ""},
		{"app:1", corev1.PullAlways, 1, ""},
		{"app:1", corev1.PullNever, 0, ""},
		{"other:1", corev1.PullIfNotPresent, 1, ""},
		{"other:1", corev1.PullNever, 0, "ErrImageNeverPull"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			pulls := 0
			w.runtime.OnPull = func(_ context.Context, ref string, _ agent.PullOptions) (agent.Image, error) {
				pulls++
				return agent.Image{ID: "sha256:" + ref}, nil
			}
			w.create(pod("a", func(p *corev1.Pod) {
				p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = test.image, test.policy
			}))
			after(100 * time.Millisecond)
			reason := ""
			if s := state(w.get("a"), "web"); s.State.Waiting != nil {
				reason = s.State.Waiting.Reason
			}
			if pulls != test.pulls || reason != test.reason {
				t.Errorf("%s %s: %d pulls, waiting for %q", test.image, test.policy, pulls, reason)
			}
		})
	}
}

func TestInvalidImageName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.OnPull = func(context.Context, string, agent.PullOptions) (agent.Image, error) {
			return agent.Image{}, agent.ErrInvalidImageName
		}
		w.create(pod("a", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "UPPER" }))
		after(2 * time.Second)
		if s := state(w.get("a"), "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "InvalidImageName" {
			t.Errorf("%s", show(s))
		}
	})
}

// conformance: [sig-node] Pods should allow activeDeadlineSeconds to be updated [Conformance] [NodeConformance]
func TestActiveDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a"))
		after(time.Second)
		patch := []byte(`{"spec":{"activeDeadlineSeconds":5}}`)
		if _, err := w.client.Patch(context.Background(), podsGVR, "default", "a", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		after(2 * time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning {
			t.Fatalf("too early: %s", show(p.Status))
		}
		after(10 * time.Second)
		p := w.get("a")
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "DeadlineExceeded" || len(w.agent.PodsRunning()) != 0 {
			t.Fatalf("%s", show(p.Status))
		}
	})
}

func TestLivenessRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		healthy := atomic.Bool{}
		healthy.Store(true)
		w.runtime.OnExec = func(_ context.Context, _, _ string, cmd []string, _ io.Reader, stdout, _ io.Writer) (int, error) {
			if healthy.Load() {
				return 0, nil
			}
			fmt.Fprint(stdout, "it is ill")
			return 1, nil
		}
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].LivenessProbe = &corev1.Probe{
				ProbeHandler:        corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}},
				InitialDelaySeconds: 5, PeriodSeconds: 3, FailureThreshold: 2, TimeoutSeconds: 1, SuccessThreshold: 1,
			}
		}))
		after(time.Minute)
		if s := state(w.get("a"), "web"); s.RestartCount != 0 {
			t.Fatalf("a healthy container was restarted: %s", show(s))
		}
		healthy.Store(false)
		after(4 * time.Second)
		healthy.Store(true)
		after(time.Minute)
		if s := state(w.get("a"), "web"); s.RestartCount != 0 {
			t.Fatalf("one failure is not two: %s", show(s))
		}
		healthy.Store(false)
		after(7 * time.Second)
		healthy.Store(true)
		after(time.Second)
		s := state(w.get("a"), "web")
		if s.RestartCount != 1 || s.State.Running == nil || s.LastTerminationState.Terminated.ExitCode != 143 {
			t.Fatalf("%s", show(s))
		}
		if m := w.events("Unhealthy"); len(m) != 1 || m[0] != "Liveness probe failed: it is ill" {
			t.Errorf("Unhealthy: %q", m)
		}
		if m := w.events("Killing"); len(m) != 1 || m[0] != "Container web failed liveness probe, will be restarted" {
			t.Errorf("Killing: %q", m)
		}
	})
}

// conformance: [sig-node] Probing container with readiness probe should not be ready before initial delay and never restart [Conformance] [NodeConformance]
// conformance: [sig-node] Probing container with readiness probe that fails should never be ready and never restart [Conformance] [NodeConformance]
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ready := atomic.Bool{}
		w.runtime.OnExec = func(context.Context, string, string, []string, io.Reader, io.Writer, io.Writer) (int, error) {
			if ready.Load() {
				return 0, nil
			}
			return 1, nil
		}
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
				ProbeHandler:        corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}},
				InitialDelaySeconds: 30, PeriodSeconds: 5, FailureThreshold: 3, TimeoutSeconds: 1, SuccessThreshold: 1,
			}
		}))
		after(time.Minute)
		if p := w.get("a"); condition(p, corev1.PodReady) != corev1.ConditionFalse || p.Status.Phase != corev1.PodRunning || state(p, "web").RestartCount != 0 {
			t.Fatalf("never ready: %s", show(p.Status))
		}
		w.delete("a", 0)
		ready.Store(true)
		w.create(pod("b", func(p *corev1.Pod) {
			p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
				ProbeHandler:        corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"check"}}},
				InitialDelaySeconds: 30, PeriodSeconds: 5,
			}
		}))
		after(29 * time.Second)
		if p := w.get("b"); condition(p, corev1.PodReady) != corev1.ConditionFalse {
			t.Fatalf("ready before its time: %s", show(p.Status))
		}
		after(2 * time.Second)
		if p := w.get("b"); condition(p, corev1.PodReady) != corev1.ConditionTrue {
			t.Fatalf("not ready after its time: %s", show(p.Status))
		}
		// A restart of ours does not take readiness away.
		w.stop()
		w.start()
		synctest.Wait()
		if p := w.get("b"); condition(p, corev1.PodReady) != corev1.ConditionTrue {
			t.Errorf("not ready after a restart of the agent: %s", show(p.Status))
		}
		ready.Store(false)
		after(20 * time.Second)
		if p := w.get("b"); condition(p, corev1.PodReady) != corev1.ConditionFalse || state(p, "web").RestartCount != 0 {
			t.Errorf("still ready: %s", show(p.Status))
		}
	})
}

func TestAdmission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		after(time.Second)
		huge := func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1000")}
		}
		w.create(pod("cpu", huge))
		w.create(pod("windows", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }))
		w.create(pod("selector", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "none"} }))
		port := func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
		}
		w.create(pod("port1", port))
		after(time.Second)
		w.create(pod("port2", port))
		after(time.Second)
		for name, reason := range map[string]string{"cpu": "OutOfcpu", "selector": "NodeAffinity", "windows": "PodOSNotSupported", "port2": "NodePorts"} {
			p := w.get(name)
			if p.Status.Phase != corev1.PodFailed || p.Status.Reason != reason || len(w.events(reason)) != 1 || len(p.Status.ContainerStatuses) != 0 {
				t.Errorf("%s: %s", name, show(p.Status))
			}
		}
		if p := w.get("port1"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("port1: %s", show(p.Status))
		}
	})
}

// A pod that the API has no more keeps its port until it has ended. The next
// one, which found the port free by what the API says, waits for it.
// A critical pod that the node has no room for gets it from those that are not,
// and from no more of them than it takes.
func TestCriticalPodsPreempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		after(time.Second)
		cpus := w.node().Status.Allocatable.Cpu().MilliValue()
		wants := func(milli int64) func(*corev1.Pod) {
			return func(p *corev1.Pod) {
				p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(milli, resource.DecimalSI)}
				p.Spec.TerminationGracePeriodSeconds = new(int64(5))
			}
		}
		first := func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-node-critical" }
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		w.create(pod("half", wants(cpus/2)))
		w.create(pod("quarter", wants(cpus/4)))
		w.create(pod("effort"))
		w.create(pod("keeper", wants(cpus/4), first))
		after(time.Second)
		w.create(pod("ordinary", wants(cpus/4)))
		w.create(pod("critical", wants(cpus/4), first))
		after(2 * time.Second)
		if p := w.get("ordinary"); p.Status.Reason != "OutOfcpu" {
			t.Errorf("an ordinary pod: %s", show(p.Status))
		}
		if p := w.get("critical"); p.Status.Phase != corev1.PodPending {
			t.Errorf("before there is room: %s", show(p.Status))
		}
		after(5 * time.Second)
		p := w.get("half")
		if q := w.get("quarter"); q.Status.Phase == corev1.PodFailed {
			p = q
		} else if p.Status.Phase == corev1.PodFailed && q.Status.Phase != corev1.PodRunning {
			t.Errorf("both went: %s", show(q.Status))
		}
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Preempting" || p.Status.Message != "Preempted in order to admit critical pod" || condition(p, corev1.DisruptionTarget) != corev1.ConditionTrue || len(w.events("Preempting")) != 1 {
			t.Errorf("the one that gave way, %s: %s", p.Name, show(p.Status))
		}
		for _, name := range []string{"critical", "keeper", "effort"} {
			if p := w.get(name); p.Status.Phase != corev1.PodRunning {
				t.Errorf("%s: %s", name, show(p.Status))
			}
		}
		// More than the node has at all.
		w.create(pod("huge", wants(2*cpus), first))
		after(10 * time.Second)
		if p := w.get("huge"); p.Status.Reason != "OutOfcpu" {
			t.Errorf("one that cannot be: %s", show(p.Status))
		}
	})
}

func TestAdmissionWaitsForWhatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		port := func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
		}
		w.create(pod("first", port))
		after(time.Second)
		w.delete("first", 0)
		w.create(pod("next", port))
		after(time.Millisecond)
		if p := w.get("next"); p.Status.Phase != corev1.PodPending || len(w.runtime.Started()) != 1 {
			t.Errorf("while the first one ends: %s", show(p.Status))
		}
		after(time.Minute)
		if p := w.get("next"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("afterwards: %s", show(p.Status))
		}
	})
}

// patches counts the patches of a client.
type patches struct {
	api.Client
	n atomic.Int32
}

func (c *patches) Patch(ctx context.Context, r schema.GroupVersionResource, namespace, name string, t types.PatchType, data []byte, o metav1.PatchOptions, sub ...string) (api.Object, error) {
	if r == podsGVR {
		c.n.Add(1)
	}
	return c.Client.Patch(ctx, r, namespace, name, t, data, o, sub...)
}

// A start that is quick is one write of the pod's status; of one that is not,
// something is said meanwhile.
func TestFirstWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var written *patches
		w := newWorld(t, func(w *world) {
			written = &patches{Client: w.client}
			w.config.Client = written
		})
		pulled := make(chan struct{})
		w.runtime.OnPull = func(_ context.Context, ref string, _ agent.PullOptions) (agent.Image, error) {
			<-pulled
			return agent.Image{ID: "sha256:" + ref}, nil
		}
		w.create(pod("near"))
		after(time.Millisecond)
		if p := w.get("near"); p.Status.Phase != corev1.PodRunning || written.n.Load() != 1 {
			t.Errorf("after %d writes: %s", written.n.Load(), show(p.Status))
		}
		far := w.create(pod("far", func(p *corev1.Pod) { p.Spec.Containers[0].Image = "far" }))
		after(1900 * time.Millisecond)
		if p := w.get("far"); p.ResourceVersion != far.ResourceVersion {
			t.Errorf("told that nothing stands in its way: %s", show(p.Status))
		}
		after(time.Second)
		p := w.get("far")
		if s := state(p, "web"); s.State.Waiting == nil || s.State.Waiting.Reason != "ContainerCreating" || p.Status.PodIP == "" || p.Status.StartTime == nil || written.n.Load() != 2 {
			t.Errorf("while its image is pulled, after %d writes: %s", written.n.Load(), show(p.Status))
		}
		close(pulled)
		after(time.Millisecond)
		if p := w.get("far"); p.Status.Phase != corev1.PodRunning || written.n.Load() != 3 {
			t.Errorf("with its image, after %d writes: %s", written.n.Load(), show(p.Status))
		}
	})
}

func TestSandboxFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.Fail(errors.New("no pod range"))
		w.create(pod("a"))
		after(2 * time.Second)
		p := w.get("a")
		if p.Status.Phase != corev1.PodPending || condition(p, corev1.PodReadyToStartContainers) != corev1.ConditionFalse {
			t.Errorf("%s", show(p.Status))
		}
		if m := w.events("FailedCreatePodSandBox"); len(m) == 0 || m[0] != "Failed to create pod sandbox: attach to the pod network: no pod range" {
			t.Errorf("events: %q", m)
		}
		w.network.Fail(nil)
		after(5 * time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning {
			t.Errorf("%s", show(p.Status))
		}
	})
}

func TestTerminationMessage(t *testing.T) {
	for _, test := range []struct {
		behave agenttest.Behaviour
		want   string
	}{
		{agenttest.Behaviour{Exits: true, Message: "from the file", Log: "from the log\n"}, "from the file"},
		{agenttest.Behaviour{Exits: true, Log: "from the log\n"}, ""},
		{agenttest.Behaviour{Exits: true, Log: "from the log\n", ExitCode: 1}, "from the log\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return test.behave }
			w.create(pod("a", func(p *corev1.Pod) {
				p.Spec.RestartPolicy = corev1.RestartPolicyNever
				p.Spec.Containers[0].TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
			}))
			after(time.Second)
			s := state(w.get("a"), "web")
			if s.State.Terminated == nil || s.State.Terminated.Message != test.want {
				t.Errorf("want %q: %s", test.want, show(s))
			}
		})
	}
}

// An image changed in a running pod restarts the container with it.
func TestImageUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.AddImage("app:2", agent.Image{})
		w.create(pod("a"))
		after(time.Second)
		patch := []byte(`{"spec":{"containers":[{"name":"web","image":"app:2"}]}}`)
		if _, err := w.client.Patch(context.Background(), podsGVR, "default", "a", types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		after(time.Second)
		p := w.get("a")
		if s := state(p, "web"); s.Image != "app:2" || s.RestartCount != 1 || s.State.Running == nil || p.Status.ObservedGeneration != 2 {
			t.Errorf("%s", show(p.Status))
		}
	})
}

// Status written by somebody else is put right, without a fight.
func TestStatusIsPutRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.create(pod("a"))
		after(time.Second)
		patch := []byte(`{"status":{"conditions":[{"type":"Ready","status":"False"},{"type":"Mine","status":"True"}]}}`)
		if _, err := w.client.Patch(context.Background(), podsGVR, "default", "a", types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		after(time.Minute)
		p := w.get("a")
		if condition(p, corev1.PodReady) != corev1.ConditionTrue || condition(p, "Mine") != corev1.ConditionTrue {
			t.Errorf("%s", show(p.Status.Conditions))
		}
	})
}

func TestOrphansAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(w *world) {
			if err := w.runtime.StartPod(context.Background(), agent.PodConfig{ID: "nobody-knows"}); err != nil {
				t.Fatal(err)
			}
		})
		after(time.Second)
		if pods := w.runtime.Pods(); len(pods) != 0 {
			t.Errorf("left: %v", pods)
		}
	})
}
