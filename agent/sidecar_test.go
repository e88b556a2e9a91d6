package agent_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"conclave/agent"
	"conclave/agent/agenttest"
)

// probe is one by a command that says which it is.
func probe(name string, edit ...func(*corev1.Probe)) *corev1.Probe {
	p := &corev1.Probe{
		ProbeHandler:   corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{name}}},
		TimeoutSeconds: 1, PeriodSeconds: 2, SuccessThreshold: 1, FailureThreshold: 3,
	}
	for _, f := range edit {
		f(p)
	}
	return p
}

// clinic answers probes, and remembers which were asked.
type clinic struct {
	mu    sync.Mutex
	ill   map[string]bool
	asked map[string]int
}

func (c *clinic) exec(_ context.Context, _, id string, cmd []string, _ io.Reader, stdout, _ io.Writer) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked == nil {
		c.asked = map[string]int{}
	}
	c.asked[id+" "+cmd[0]]++
	if c.ill[cmd[0]] {
		fmt.Fprint(stdout, "not yet")
		return 1, nil
	}
	return 0, nil
}

func (c *clinic) set(name string, ill bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ill == nil {
		c.ill = map[string]bool{}
	}
	c.ill[name] = ill
}

func (c *clinic) count(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[what]
}

func TestStartupProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		doctor := &clinic{}
		doctor.set("start", true)
		w := newWorld(t, func(w *world) { w.runtime.OnExec = doctor.exec })
		w.create(pod("a", func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.StartupProbe = probe("start", func(p *corev1.Probe) { p.FailureThreshold = 30 })
			c.LivenessProbe, c.ReadinessProbe = probe("live"), probe("ready")
		}))
		after(20 * time.Second)
		p := w.get("a")
		if s := state(p, "web"); s.State.Running == nil || *s.Started || s.Ready || s.RestartCount != 0 || p.Status.Phase != corev1.PodRunning {
			t.Fatalf("while it starts: %s", show(p.Status))
		}
		if n := doctor.count("web_0 live") + doctor.count("web_0 ready"); n != 0 {
			t.Errorf("%d other probes were asked before the container had started", n)
		}
		if m := w.events("Unhealthy"); len(m) != 1 || m[0] != "Startup probe failed: not yet" {
			t.Errorf("events: %q", m)
		}
		doctor.set("start", false)
		after(5 * time.Second)
		if s := state(w.get("a"), "web"); !*s.Started || !s.Ready {
			t.Fatalf("started: %s", show(s))
		}
		asked := doctor.count("web_0 start")
		after(time.Minute)
		if doctor.count("web_0 start") != asked || doctor.count("web_0 live") == 0 {
			t.Error("the startup probe goes on, or the liveness probe does not")
		}
		// A restart of ours asks nobody anew.
		doctor.set("start", true)
		w.restart()
		after(time.Minute)
		if s := state(w.get("a"), "web"); !*s.Started || !s.Ready || s.RestartCount != 0 || doctor.count("web_0 start") != asked {
			t.Errorf("after a restart of the agent: %s", show(s))
		}
		// A new start of the container does.
		w.runtime.Exit(string(p.UID), "web_0", 1)
		after(3 * time.Second)
		if s := state(w.get("a"), "web"); *s.Started || s.Ready || s.RestartCount != 1 {
			t.Errorf("started anew: %s", show(s))
		}
	})
}

// A container that does not come up is killed within the probe's own grace
// period and begins again.
func TestStartupProbeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		doctor := &clinic{}
		doctor.set("start", true)
		w := newWorld(t, func(w *world) { w.runtime.OnExec = doctor.exec })
		w.runtime.Behave = func(agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{IgnoresTerm: true} }
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].StartupProbe = probe("start", func(p *corev1.Probe) {
				p.InitialDelaySeconds, p.TerminationGracePeriodSeconds = 10, new(int64(3))
			})
		}))
		after(13 * time.Second)
		if s := state(w.get("a"), "web"); s.RestartCount != 0 || s.State.Running == nil {
			t.Fatalf("two failures are not three: %s", show(s))
		}
		after(5 * time.Second) // the third, and the grace period
		s := state(w.get("a"), "web")
		if s.RestartCount != 1 || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 137 {
			t.Fatalf("%s", show(s))
		}
		if m := w.events("Killing"); len(m) != 1 || m[0] != "Container web failed startup probe, will be restarted" {
			t.Errorf("events: %q", m)
		}
	})
}

func always(c *corev1.Container) {
	c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
}

// withSidecars is a pod of an init container between two sidecars, the second
// of which takes its time to come up.
func withSidecars(p *corev1.Pod) {
	p.Spec.InitContainers = []corev1.Container{{Name: "s1", Image: "app:1"}, {Name: "init", Image: "app:1"}, {Name: "s2", Image: "app:1", StartupProbe: probe("start", func(p *corev1.Probe) { p.FailureThreshold = 100 })}}
	always(&p.Spec.InitContainers[0])
	always(&p.Spec.InitContainers[2])
}

// starts are the runtime IDs of all containers started so far, in order.
func started(w *world) string {
	var ids []string
	for _, c := range w.runtime.Started() {
		ids = append(ids, c.ID)
	}
	return strings.Join(ids, " ")
}

func TestSidecars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		doctor := &clinic{}
		doctor.set("start", true)
		w := newWorld(t, func(w *world) { w.runtime.OnExec = doctor.exec })
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			if strings.HasPrefix(c.ID, "init") {
				return agenttest.Behaviour{ExitAfter: 5 * time.Second}
			}
			return agenttest.Behaviour{}
		}
		made := w.create(pod("a", withSidecars))
		after(time.Second)
		if got := started(w); got != "s1_0 init_0" {
			t.Fatalf("started: %s", got)
		}
		after(10 * time.Second)
		p := w.get("a")
		if got := started(w); got != "s1_0 init_0 s2_0" || p.Status.Phase != corev1.PodPending || condition(p, corev1.PodInitialized) != corev1.ConditionFalse {
			t.Fatalf("before the second sidecar has come up: %s, %s", got, show(p.Status))
		}
		// The first one's end holds up nobody, and it comes back.
		w.runtime.Exit(string(made.UID), "s1_0", 0)
		after(time.Second)
		if got := started(w); got != "s1_0 init_0 s2_0 s1_1" {
			t.Fatalf("after the end of a sidecar: %s", got)
		}
		doctor.set("start", false)
		after(5 * time.Second)
		p = w.get("a")
		if got := started(w); got != "s1_0 init_0 s2_0 s1_1 web_0" || p.Status.Phase != corev1.PodRunning || condition(p, corev1.PodInitialized) != corev1.ConditionTrue || condition(p, corev1.PodReady) != corev1.ConditionTrue {
			t.Fatalf("all up: %s, %s", got, show(p.Status))
		}
		for name, restarts := range map[string]int32{"s1": 1, "s2": 0} {
			if s := state(p, name); !s.Ready || !*s.Started || s.RestartCount != restarts {
				t.Errorf("%s", show(s))
			}
		}
		// A sidecar that is away makes the pod unready, and is started again.
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour { return agenttest.Behaviour{StartDelay: time.Minute} }
		w.runtime.Exit(string(made.UID), "s2_0", 3)
		after(time.Second)
		if p = w.get("a"); condition(p, corev1.PodReady) != corev1.ConditionFalse || condition(p, corev1.PodInitialized) != corev1.ConditionTrue || p.Status.Phase != corev1.PodRunning {
			t.Errorf("a sidecar is away: %s", show(p.Status))
		}
		after(2 * time.Minute)
		if p = w.get("a"); condition(p, corev1.PodReady) != corev1.ConditionTrue || state(p, "s2").RestartCount != 1 {
			t.Errorf("it is back: %s", show(p.Status))
		}
	})
}

// ending runs a pod with sidecars whose containers take their time to end, and
// returns what a container is doing when.
func TestSidecarsEndLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			if strings.HasPrefix(c.ID, "init") {
				return agenttest.Behaviour{Exits: true}
			}
			return agenttest.Behaviour{IgnoresTerm: strings.HasPrefix(c.ID, "web")}
		}
		d := &diary{}
		w.runtime.OnExec = d.exec
		made := w.create(pod("a", withSidecars, func(p *corev1.Pod) {
			p.Spec.InitContainers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"goodbye"}}}}
		}))
		after(5 * time.Second)
		if p := w.get("a"); condition(p, corev1.PodReady) != corev1.ConditionTrue {
			t.Fatalf("%s", show(p.Status))
		}
		running := func() string {
			var names []string
			for _, c := range w.runtime.Containers(string(made.UID)) {
				if c.State == agent.Running {
					names = append(names, c.ID)
				}
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		w.delete("a", 20)
		after(5 * time.Second)
		if got := running(); got != "s1_0 s2_0 web_0" {
			t.Errorf("while the container takes its time there are %q", got)
		}
		if got := d.entries(); !slices.Contains(got, "s1_0 goodbye") {
			t.Errorf("the hook of the sidecar did not run at once: %q", got)
		}
		w.runtime.Exit(string(made.UID), "web_0", 0)
		after(time.Second)
		if got := running(); got != "" || w.get("a") != nil {
			t.Errorf("after the container's end there are %q", got)
		}
		// One whose containers use all of the grace period up leaves the
		// sidecars a moment, all the same.
		made = w.create(pod("b", withSidecars))
		after(5 * time.Second)
		w.delete("b", 20)
		after(19 * time.Second)
		if got := running(); got != "s1_0 s2_0 web_0" {
			t.Errorf("within the grace period there are %q", got)
		}
		after(4 * time.Second)
		if got := running(); got != "" || w.get("b") != nil {
			t.Errorf("after the grace period there are %q", got)
		}
	})
}

// A pod ends with its ordinary containers, although its sidecars run.
func TestSidecarsDoNotKeepThePod(t *testing.T) {
	for _, test := range []struct {
		policy corev1.RestartPolicy
		code   int
		phase  corev1.PodPhase
	}{
		{corev1.RestartPolicyNever, 0, corev1.PodSucceeded},
		{corev1.RestartPolicyNever, 2, corev1.PodFailed},
		{corev1.RestartPolicyOnFailure, 0, corev1.PodSucceeded},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
				switch name, _, _ := strings.Cut(c.ID, "_"); name {
				case "web":
					return agenttest.Behaviour{ExitAfter: 10 * time.Second, ExitCode: test.code}
				case "s1":
					return agenttest.Behaviour{IgnoresTerm: true}
				case "init":
					return agenttest.Behaviour{Exits: true}
				}
				return agenttest.Behaviour{}
			}
			made := w.create(pod("a", withSidecars, func(p *corev1.Pod) { p.Spec.RestartPolicy = test.policy }))
			after(20 * time.Second)
			if p := w.get("a"); p.Status.Phase != corev1.PodRunning || state(p, "s1").State.Running == nil || state(p, "s2").State.Terminated == nil {
				t.Errorf("while a sidecar takes its time: %s", show(p.Status))
			}
			after(time.Minute)
			p := w.get("a")
			if p.Status.Phase != test.phase || state(p, "s1").State.Terminated == nil || len(w.runtime.Containers(string(made.UID))) != 0 {
				t.Errorf("%+v: %s", test, show(p.Status))
			}
			if got := started(w); got != "s1_0 init_0 s2_0 web_0" {
				t.Errorf("started: %s", got)
			}
		})
	}
}

// A sidecar must not keep a pod whose initialization failed for good either.
func TestSidecarOfAPodThatFailsToInitialize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{Exits: strings.HasPrefix(c.ID, "init"), ExitCode: 1}
		}
		w.create(pod("a", withSidecars, func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever }))
		after(time.Minute)
		if p := w.get("a"); p.Status.Phase != corev1.PodFailed || started(w) != "s1_0 init_0" || state(p, "s1").State.Terminated == nil {
			t.Errorf("%s: %s", started(w), show(p.Status))
		}
	})
}

func rule(action corev1.ContainerRestartRuleAction, op corev1.ContainerRestartRuleOnExitCodesOperator, codes ...int32) corev1.ContainerRestartRule {
	return corev1.ContainerRestartRule{Action: action, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: op, Values: codes}}
}

func TestContainersOwnRestartPolicies(t *testing.T) {
	for _, test := range []struct {
		name     string
		pod      corev1.RestartPolicy
		own      corev1.ContainerRestartPolicy // "": none
		rules    []corev1.ContainerRestartRule
		code     int
		restarts bool
	}{
		{"the pod's", corev1.RestartPolicyNever, "", nil, 1, false},
		{"always", corev1.RestartPolicyNever, corev1.ContainerRestartPolicyAlways, nil, 0, true},
		{"on failure, of one that failed", corev1.RestartPolicyNever, corev1.ContainerRestartPolicyOnFailure, nil, 1, true},
		{"on failure, of one that did not", corev1.RestartPolicyAlways, corev1.ContainerRestartPolicyOnFailure, nil, 0, false},
		{"never", corev1.RestartPolicyAlways, corev1.ContainerRestartPolicyNever, nil, 1, false},
		{"never, but for one code", corev1.RestartPolicyAlways, corev1.ContainerRestartPolicyNever, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleOnExitCodesOpIn, 42)}, 42, true},
		{"never, with another code", corev1.RestartPolicyAlways, corev1.ContainerRestartPolicyNever, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleOnExitCodesOpIn, 42)}, 41, false},
		{"never, but for all but one code", corev1.RestartPolicyAlways, corev1.ContainerRestartPolicyNever, []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleOnExitCodesOpNotIn, 42)}, 41, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
				return agenttest.Behaviour{Exits: c.ID == "web_0", ExitCode: test.code}
			}
			w.create(pod("a", func(p *corev1.Pod) {
				p.Spec.RestartPolicy = test.pod
				if test.own != "" {
					p.Spec.Containers[0].RestartPolicy = &test.own
				}
				p.Spec.Containers[0].RestartPolicyRules = test.rules
			}))
			after(time.Minute)
			p := w.get("a")
			want := corev1.PodRunning
			if !test.restarts {
				want = corev1.PodFailed
				if test.code == 0 {
					want = corev1.PodSucceeded
				}
			}
			if (started(w) == "web_0 web_1") != test.restarts || p.Status.Phase != want {
				t.Errorf("%s: started %s, %s", test.name, started(w), show(p.Status))
			}
		})
	}
}

// A pod whose containers have different policies ends when the last has.
func TestPodOfMixedPolicies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{ExitAfter: time.Minute, ExitCode: 0}
		}
		w.create(pod("a", func(p *corev1.Pod) {
			p.Spec.Containers[0].RestartPolicy = new(corev1.ContainerRestartPolicyNever)
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side", Image: "app:1"})
		}))
		after(150 * time.Second)
		if p := w.get("a"); p.Status.Phase != corev1.PodRunning || state(p, "web").State.Terminated == nil || state(p, "side").State.Running == nil {
			t.Errorf("%s", show(p.Status))
		}
	})
}

// RestartAllContainers begins the pod anew in place: same addresses, init
// containers first, no hooks.
func TestRestartAllContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &diary{}
		w := newWorld(t, func(w *world) { w.runtime.OnExec = d.exec })
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			if strings.HasPrefix(c.ID, "init") {
				return agenttest.Behaviour{ExitAfter: 5 * time.Second}
			}
			return agenttest.Behaviour{IgnoresTerm: c.ID == "side_0"}
		}
		made := w.create(pod("a", withSidecars, func(p *corev1.Pod) {
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			web := &p.Spec.Containers[0]
			web.RestartPolicy = new(corev1.ContainerRestartPolicyNever)
			web.RestartPolicyRules = []corev1.ContainerRestartRule{rule(corev1.ContainerRestartRuleActionRestartAllContainers, corev1.ContainerRestartRuleOnExitCodesOpIn, 88)}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side", Image: "app:1", Lifecycle: &corev1.Lifecycle{
				PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"goodbye"}}},
			}})
		}))
		after(15 * time.Second)
		before := w.get("a")
		if condition(before, corev1.PodReady) != corev1.ConditionTrue {
			t.Fatalf("%s", show(before.Status))
		}
		w.runtime.Exit(string(made.UID), "web_0", 88)
		after(10 * time.Second)
		if p := w.get("a"); condition(p, corev1.AllContainersRestarting) != corev1.ConditionTrue || condition(p, corev1.PodReady) != corev1.ConditionFalse {
			t.Errorf("while the last container ends: %s", show(p.Status))
		}
		w.restart()             // of ours, in the midst of it
		after(33 * time.Second) // its grace period begins anew
		if got, want := started(w), "s1_0 init_0 s2_0 web_0 side_0 s1_1 init_1"; got != want {
			t.Errorf("begun anew: %s, want %s", got, want)
		}
		after(15 * time.Second)
		p := w.get("a")
		if got, want := started(w), "s1_0 init_0 s2_0 web_0 side_0 s1_1 init_1 s2_1 web_1 side_1"; got != want {
			t.Errorf("started: %s, want %s", got, want)
		}
		if condition(p, corev1.PodReady) != corev1.ConditionTrue || condition(p, corev1.AllContainersRestarting) != corev1.ConditionFalse || p.Status.PodIP != before.Status.PodIP || state(p, "side").RestartCount != 1 {
			t.Errorf("%s", show(p.Status))
		}
		if got := d.entries(); slices.ContainsFunc(got, func(s string) bool { return strings.HasSuffix(s, "goodbye") }) {
			t.Errorf("a hook ran: %q", got)
		}
		// One that ends otherwise ends for good.
		w.runtime.Exit(string(made.UID), "web_1", 1)
		w.runtime.Exit(string(made.UID), "side_1", 0)
		after(time.Minute)
		if p := w.get("a"); p.Status.Phase != corev1.PodFailed {
			t.Errorf("%s", show(p.Status))
		}
	})
}

func (w *world) debug(name string, c corev1.EphemeralContainer) {
	w.t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{c}}})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.client.Patch(context.Background(), podsGVR, "default", name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "ephemeralcontainers"); err != nil {
		w.t.Fatal(err)
	}
}

func TestEphemeralContainers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{Exits: strings.HasPrefix(c.ID, "short"), ExitCode: 3}
		}
		made := w.create(pod("a"))
		after(time.Second)
		container := func(name, target string) corev1.EphemeralContainer {
			return corev1.EphemeralContainer{TargetContainerName: target, EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "app:1"}}
		}
		w.debug("a", container("long", "web"))
		after(time.Second)
		w.debug("a", container("short", ""))
		after(time.Minute)
		p := w.get("a")
		if p.Generation != 3 || p.Status.ObservedGeneration != 3 || len(p.Status.EphemeralContainerStatuses) != 2 {
			t.Fatalf("generation %d: %s", p.Generation, show(p.Status))
		}
		status := func(name string) corev1.ContainerStatus {
			for _, s := range w.get("a").Status.EphemeralContainerStatuses {
				if s.Name == name {
					return s
				}
			}
			return corev1.ContainerStatus{}
		}
		long, short := status("long"), status("short")
		if long.State.Running == nil || long.Ready || long.Started != nil {
			t.Errorf("%s", show(long))
		}
		if s := short.State.Terminated; s == nil || s.ExitCode != 3 || short.RestartCount != 0 || condition(p, corev1.PodReady) != corev1.ConditionTrue {
			t.Errorf("%s", show(short))
		}
		if got := started(w); got != "web_0 long_0 short_0" || w.runtime.Started()[1].PIDsOf != "web_0" || w.runtime.Started()[2].PIDsOf != "" {
			t.Errorf("started %s", got)
		}
		// It survives us, and is not started again when it has ended.
		w.restart()
		w.runtime.Exit(string(made.UID), "long_0", 0)
		after(time.Minute)
		if got := started(w); got != "web_0 long_0 short_0" {
			t.Errorf("started again: %s", got)
		}
		// One whose target is not there waits for it.
		w.runtime.Behave = func(c agent.ContainerConfig) agenttest.Behaviour {
			return agenttest.Behaviour{Exits: c.ID == "web_1", ExitCode: 1}
		}
		w.runtime.Exit(string(made.UID), "web_0", 1) // and it backs off once more
		after(time.Second)
		w.debug("a", container("late", "web"))
		after(time.Second)
		if s := status("late").State.Waiting; s == nil || s.Reason != "CreateContainerConfigError" || s.Message != "unable to find target container web" {
			t.Errorf("%s", show(status("late")))
		}
		after(time.Minute)
		if s := status("late"); s.State.Running == nil || w.runtime.Started()[len(w.runtime.Started())-1].PIDsOf != "web_2" {
			t.Errorf("%s", show(s))
		}
		w.delete("a", 5)
		after(time.Second)
		if w.get("a") != nil || len(w.runtime.Containers(string(made.UID))) != 0 {
			t.Error("the pod stays")
		}
	})
}
