package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"conclave/test/cluster"
)

// stays makes an init container a sidecar.
func stays(c *corev1.Container) { c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways) }

// statusOfContainer is what a pod says of one of its containers, of any kind.
func statusOfContainer(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if s.Name == name {
			return s
		}
	}
	return corev1.ContainerStatus{}
}

// TestPodLifecycles shows what pods may ask of their containers' lives.
func TestPodLifecycles(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "tool"); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	ns := namespace(t, c)
	runCases(t, c, ns, slices.Concat(startupCases(), sidecarCases(), restartRuleCases(), ephemeralCases(), valueCases()))
}

func startupCases() []nodeCase {
	startup := func(h corev1.ProbeHandler, failures int32) func(*corev1.Container) {
		return func(c *corev1.Container) {
			c.StartupProbe = &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: failures, TimeoutSeconds: 5}
		}
	}
	file := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/up"}}}
	get := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/up", Port: intstr.FromInt32(8080)}}
	tcp := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}
	// What is alive only once it has started dies if it is asked before.
	alive := func(h corev1.ProbeHandler) func(*corev1.Container) {
		return func(c *corev1.Container) {
			c.LivenessProbe = &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 5}
			c.ReadinessProbe = &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, TimeoutSeconds: 5}
		}
	}
	comes := func(n *nodeTest, pod *corev1.Pod) {
		p := n.until(pod.Name, "comes up", readyNow, func(p *corev1.Pod) string {
			if s := statusOfContainer(p, "main"); s.Ready && !*s.Started {
				return "it is ready before it has started"
			}
			if restarts(p) > 0 {
				return "it was restarted"
			}
			return ""
		})
		s := statusOfContainer(p, "main")
		for _, c := range p.Status.Conditions {
			if took := c.LastTransitionTime.Sub(s.State.Running.StartedAt.Time); c.Type == corev1.PodReady && (!*s.Started || took < 11*time.Second) { // of 12 s, both in whole ones
				n.Errorf("ready %s after its start: %s", took, shown(s))
			}
		}
	}
	slow := func(name, script string, h corev1.ProbeHandler) nodeCase {
		return nodeCase{"startup probe, " + name, edited(nodePod("startup-"+name, sh("main", script, startup(h, 300), alive(h))), always), comes}
	}
	return []nodeCase{
		slow("exec", "mkdir -p /tmp; sleep 12; echo > /tmp/up; "+forever, file),
		slow("http", "mkdir /www; (sleep 12; echo > /www/up) & exec httpd -f -p 8080 -h /www", get),
		slow("tcp", "mkdir /www; sleep 12; exec httpd -f -p 8080 -h /www", tcp),
		{
			"startup probe, grpc", edited(nodePod("startup-grpc", sh("main", "", func(c *corev1.Container) {
				c.Image, c.Command = "conclave.test/tool:1", []string{"/tool", "health", ":5000"}
				c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 5000}}, PeriodSeconds: 1, FailureThreshold: 30}
			})), always),
			func(n *nodeTest, pod *corev1.Pod) { n.until(pod.Name, "comes up", readyNow, nil) },
		},
		{
			"startup probe that fails", edited(nodePod("startup-fails", sh("main", forever, startup(file, 3))), always, func(p *corev1.Pod) {
				p.Spec.TerminationGracePeriodSeconds = new(int64(1))
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "is restarted", func(p *corev1.Pod) bool { return restarts(p) >= 1 }, func(p *corev1.Pod) string {
					if readyNow(p) {
						return "it is ready"
					}
					return ""
				})
				eventually(n.T, "events tell of it", func() error {
					out := kubectl(n.T, n.c, "-n", n.ns, "events", "--for", "pod/"+pod.Name)
					if !strings.Contains(out, "Startup probe failed: ") || !strings.Contains(out, "Container main failed startup probe, will be restarted") {
						return errors.New(out)
					}
					return nil
				})
			},
		},
	}
}

func sidecarCases() []nodeCase {
	// Each says what it does into one file.
	say := func(name, then string) string {
		return "echo " + name + " begins >> /v/diary; trap 'echo " + name + " ends >> /v/diary; exit 0' TERM; " + then
	}
	idle := "while true; do sleep 0.1; done"
	job := edited(nodePod("sidecar-job", sh("main", say("main", "cat /v/diary; sleep 1; echo main ends >> /v/diary"))), func(p *corev1.Pod) {
		p.Spec.TerminationGracePeriodSeconds = new(int64(20))
	}, inits(sh("first", say("first", idle), stays), sh("init", say("init", "sleep 1; echo init ends >> /v/diary")), sh("second", say("second", "sleep 1; echo > /tmp/up; "+idle), stays, func(c *corev1.Container) {
		c.StartupProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/up"}}}, PeriodSeconds: 1, FailureThreshold: 60}
	})), mountShared)
	// The diary outlives the pod, to be read by the next one on its node.
	diary := func(p *corev1.Pod) {
		p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/tmp/conclave-diary-" + p.Name + labName("x"), Type: new(corev1.HostPathDirectoryOrCreate)}}
	}
	for i := range job.Spec.InitContainers {
		job.Spec.InitContainers[i].Command[2] = "mkdir -p /tmp; " + job.Spec.InitContainers[i].Command[2]
	}
	return []nodeCase{
		{"sidecars of a pod that ends", edited(job, diary), func(n *nodeTest, pod *corev1.Pod) {
			n.Cleanup(func() { os.RemoveAll(pod.Spec.Volumes[0].HostPath.Path) })
			p := n.phase(pod.Name, corev1.PodSucceeded)
			if out := n.log(pod.Name, "main"); !strings.HasPrefix(out, "first begins\ninit begins\ninit ends\nsecond begins\nmain begins\n") {
				n.Errorf("the beginning: %s", out)
			}
			raw, err := os.ReadFile(filepath.Join(pod.Spec.Volumes[0].HostPath.Path, "diary"))
			if err != nil || !strings.HasSuffix(string(raw), "main ends\nsecond ends\nfirst ends\n") {
				n.Errorf("the end: %s %v", raw, err)
			}
			for _, name := range []string{"first", "second"} {
				if s := statusOfContainer(p, name); s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 || s.RestartCount != 0 {
					n.Error(shown(s))
				}
			}
		}},
		{
			"a sidecar that crashes", edited(nodePod("sidecar-crash", sh("main", forever)), inits(sh("side", "sleep 3; exit 1", stays))),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "restarts its sidecar", func(p *corev1.Pod) bool { return statusOfContainer(p, "side").RestartCount >= 1 }, nil)
				if s := statusOfContainer(p, "main"); s.State.Running == nil || s.RestartCount != 0 || p.Status.Phase != corev1.PodRunning {
					n.Error(shown(p.Status))
				}
				if out := kubectl(n.T, n.c, "-n", n.ns, "get", "pod", pod.Name); !strings.Contains(out, "/2") {
					n.Errorf("a sidecar counts among the containers: %s", out)
				}
			},
		},
	}
}

func restartRuleCases() []nodeCase {
	rules := func(policy corev1.ContainerRestartPolicy, action corev1.ContainerRestartRuleAction, code int32) func(*corev1.Container) {
		return func(c *corev1.Container) {
			c.RestartPolicy = &policy
			c.RestartPolicyRules = []corev1.ContainerRestartRule{{Action: action, ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{code}}}}
		}
	}
	once := func(code int) string { // ends with the code at its first start, and well at the next
		return fmt.Sprintf("if [ -e /v/been ]; then exit 0; fi; sleep 1; echo > /v/been; exit %d", code)
	}
	return []nodeCase{
		{
			"a container's own restart rule", edited(nodePod("rule", sh("main", once(42), rules(corev1.ContainerRestartPolicyNever, corev1.ContainerRestartRuleActionRestart, 42)), sh("other", "sleep 1")), mountShared),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.phase(pod.Name, corev1.PodSucceeded)
				if restarts(p) != 1 || statusOfContainer(p, "other").RestartCount != 0 {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"a rule that does not match", edited(nodePod("rule-no", sh("main", once(41), rules(corev1.ContainerRestartPolicyNever, corev1.ContainerRestartRuleActionRestart, 42))), always, mountShared),
			func(n *nodeTest, pod *corev1.Pod) {
				if p := n.phase(pod.Name, corev1.PodFailed); restarts(p) != 0 {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"a rule that restarts all containers", edited(nodePod("rule-all", sh("main", "until [ -e /v/other ]; do sleep 0.1; done; "+once(88), rules(corev1.ContainerRestartPolicyNever, corev1.ContainerRestartRuleActionRestartAllContainers, 88)), sh("other", "echo > /v/other; sleep 3")),
				inits(sh("init", "echo ran >> /v/inits; cat /v/inits")), mountShared),
			func(n *nodeTest, pod *corev1.Pod) {
				ip := n.until(pod.Name, "has an address", func(p *corev1.Pod) bool { return p.Status.PodIP != "" }, nil).Status.PodIP
				p := n.phase(pod.Name, corev1.PodSucceeded)
				if restarts(p) != 1 || statusOfContainer(p, "other").RestartCount != 1 || statusOfContainer(p, "init").RestartCount != 1 || p.Status.PodIP != ip {
					n.Error(shown(p.Status))
				}
				if out := n.log(pod.Name, "init"); out != "ran\nran\n" {
					n.Errorf("the init container: %q", out)
				}
			},
		},
	}
}

// valueCases are what a pod is told of itself in newer ways.
func valueCases() []nodeCase {
	fromFile := func(key string, optional bool) corev1.EnvVar {
		return corev1.EnvVar{Name: key, ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{VolumeName: "v", Path: "sub/env", Key: key, Optional: &optional}}}
	}
	unmounted := func(p *corev1.Pod) { p.Spec.Containers[0].VolumeMounts = nil }
	writes := sh("init", `mkdir /v/sub; printf "# mine\nADDRESS='10.0.0.1 # all of it'\nLINES='one\ntwo'\n" > /v/sub/env`)
	return []nodeCase{
		{
			"hostnameOverride", edited(nodePod("override", sh("main", "hostname; grep -c other.example.com /etc/hosts")), func(p *corev1.Pod) {
				p.Spec.HostnameOverride, p.Spec.Hostname, p.Spec.Subdomain = new("other.example.com"), "ignored", "ignored"
			}),
			says("other.example.com", "1"),
		},
		{
			"variables from a file", edited(nodePod("env-file", sh("main", `echo "$ADDRESS"; echo "$LINES"; echo "none: ${NONE-unset}"`, withEnv(fromFile("ADDRESS", false), fromFile("LINES", false), fromFile("NONE", true)))), inits(writes), mountShared, unmounted),
			says("10.0.0.1 # all of it", "one", "two", "none: unset"),
		},
		{
			"a variable that the file lacks", edited(nodePod("env-file-none", sh("main", "true", withEnv(fromFile("NONE", false)))), inits(writes), mountShared, unmounted),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "waits", func(p *corev1.Pod) bool {
					w := statusOfContainer(p, "main").State.Waiting
					return w != nil && w.Reason == "CreateContainerConfigError"
				}, nil)
				if m := statusOfContainer(p, "main").State.Waiting.Message; m != `environment variable key "NONE" not found in file "sub/env"` {
					n.Error(m)
				}
			},
		},
	}
}

func ephemeralCases() []nodeCase {
	const prefix = "[sig-node] Ephemeral Containers "
	ephemeral := func(name, script string) corev1.EphemeralContainer {
		c := sh(name, script)
		return corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: c.Name, Image: c.Image, Command: c.Command}}
	}
	patch := func(n *nodeTest, pod string, c corev1.EphemeralContainer) {
		n.Helper()
		raw, err := json.Marshal(map[string]any{"spec": map[string]any{"ephemeralContainers": []corev1.EphemeralContainer{c}}})
		if err != nil {
			n.Fatal(err)
		}
		if _, err := n.c.Client.CoreV1().Pods(n.ns).Patch(n.Context(), pod, types.StrategicMergePatchType, raw, metav1.PatchOptions{}, "ephemeralcontainers"); err != nil {
			n.Fatal(err)
		}
	}
	runs := func(n *nodeTest, pod, name string) {
		n.Helper()
		n.until(pod, name+" runs", func(p *corev1.Pod) bool { return statusOfContainer(p, name).State.Running != nil }, nil)
	}
	return []nodeCase{
		{
			prefix + "will start an ephemeral container in an existing pod [Conformance] [NodeConformance]", nodePod("ephemeral", sh("main", forever)),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "runs", readyNow, nil)
				c := ephemeral("debugger", "while true; do echo polo; read line; done")
				c.Stdin, c.TTY = true, true
				patch(n, pod.Name, c)
				runs(n, pod.Name, "debugger")
				eventually(n.T, "it speaks", func() error {
					if out := n.log(pod.Name, "debugger"); !strings.Contains(out, "polo") {
						return fmt.Errorf("it says %q", out)
					}
					return nil
				})
				if out := kubectl(n.T, n.c, "-n", n.ns, "exec", pod.Name, "-c", "debugger", "--", "echo", "marco"); !strings.Contains(out, "marco") {
					n.Errorf("exec: %q", out)
				}
			},
		},
		{
			prefix + "should update the ephemeral containers in an existing pod [Conformance] [NodeConformance]", nodePod("ephemeral-two", sh("main", forever)),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "runs", readyNow, nil)
				patch(n, pod.Name, ephemeral("debugger1", forever))
				runs(n, pod.Name, "debugger1")
				p := n.pod(pod.Name)
				p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, ephemeral("debugger2", forever))
				p, err := n.c.Client.CoreV1().Pods(n.ns).UpdateEphemeralContainers(n.Context(), pod.Name, p, metav1.UpdateOptions{})
				if err != nil || len(p.Spec.EphemeralContainers) != 2 {
					n.Fatal(shown(p), err)
				}
				runs(n, pod.Name, "debugger1")
				runs(n, pod.Name, "debugger2")
				p.Spec.EphemeralContainers, p.ResourceVersion = p.Spec.EphemeralContainers[:1], "" // whatever its status came to
				if _, err := n.c.Client.CoreV1().Pods(n.ns).UpdateEphemeralContainers(n.Context(), pod.Name, p, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "may not be removed") {
					n.Errorf("one was taken away again: %v", err)
				}
			},
		},
	}
}

// onTerminal runs kubectl under script(1), which gives it a terminal; input is
// typed into it.
func onTerminal(t *testing.T, c *cluster.Cluster, input string, args ...string) string {
	t.Helper()
	script, err := exec.LookPath("script")
	if err != nil {
		t.Fatal("script is missing: it comes with bsdutils")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, script, "-qec", filepath.Join(c.Root, "bin", "kubectl")+" "+strings.Join(args, " "), "/dev/null")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig, "TERM=xterm", "SHELL=/bin/sh")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = in.Write([]byte(input)) }() // it stays open: its end would be a hang-up
	out, err := cmd.CombinedOutput()
	in.Close()
	if err != nil {
		t.Errorf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestKubectlDebug looks into a pod and into a node as an administrator would.
func TestKubectlDebug(t *testing.T) {
	c := three(t)
	t.Parallel()
	ns := namespace(t, c)
	n := &nodeTest{t, c, ns}
	n.create(edited(nodePod("app", sh("main", "exec httpd -f -p 8080 -h /")), always))
	n.until("app", "runs", readyNow, nil)
	out := onTerminal(t, c, "go\n", "-n", ns, "debug", "-it", "app", "--image=conclave.test/busybox:1", "--target=main", "--profile=general", "-c", "look", "--", "sh", "-c", "'read go; ps; tty; ls /proc/1/root/bin/httpd'")
	mustContain(t, "debug -it", out, "httpd -f -p 8080", "/dev/pts/", "/proc/1/root/bin/httpd")
	n.until("app", "has ended to be looked at", func(p *corev1.Pod) bool { return statusOfContainer(p, "look").State.Terminated != nil }, nil)
	mustContain(t, "logs of an ephemeral container", kubectl(t, c, "-n", ns, "logs", "app", "-c", "look"), "httpd -f -p 8080")

	// A shell that somebody types into.
	out = onTerminal(t, c, "echo $((6*7)) apples\nexit\n", "-n", ns, "debug", "-it", "app", "--image=conclave.test/busybox:1", "--profile=general", "-c", "shell", "--", "sh")
	mustContain(t, "a debug shell", out, "42 apples")
	// Attached to later.
	kubectl(t, c, "-n", ns, "debug", "app", "--image=conclave.test/busybox:1", "--profile=general", "-c", "later", "-i", "--attach=false", "--", "sh")
	n.until("app", "can be attached to", func(p *corev1.Pod) bool { return statusOfContainer(p, "later").State.Running != nil }, nil)
	out, err := c.KubectlInput(t.Context(), "echo $((6*9)) pears\nexit\n", "-n", ns, "attach", "-i", "app", "-c", "later")
	if err != nil {
		t.Error(err)
	}
	mustContain(t, "attach", out, "54 pears")
	// A copy of the pod.
	// It waits for a line, which comes only when somebody is attached: what it says before that is in the log alone.
	out = onTerminal(t, c, "go\n", "-n", ns, "debug", "-it", "app", "--copy-to=copy", "--container=main", "--", "sh", "-c", "'read go; echo copied'")
	mustContain(t, "debug --copy-to", out, "copied")

	node := n.pod("app").Spec.NodeName
	out = onTerminal(t, c, "go\n", "-n", ns, "debug", "-it", "node/"+node, "--image=conclave.test/busybox:1", "--profile=sysadmin", "--", "chroot", "/host", "sh", "-c", "'read go; ls -d /etc/debian_version /proc/1; hostname'")
	mustContain(t, "debug node", out, "/etc/debian_version", "/proc/1")
	list := kubectl(t, c, "-n", ns, "get", "pods", "-o", "name")
	if !strings.Contains(list, "pod/node-debugger-"+node) {
		t.Errorf("no pod debugs the node: %s", list)
	}
}
