package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

// nodeCase is a pod and what is to become of it. The pods of all cases are made
// at once, so that a case only waits for what the node has been doing since.
type nodeCase struct {
	codename string
	pod      *corev1.Pod
	check    func(n *nodeTest, pod *corev1.Pod)
}

// nodeTest is one case at work.
type nodeTest struct {
	*testing.T
	c  *cluster.Cluster
	ns string
}

// sh is a container that runs a script in busybox.
func sh(name, script string, edit ...func(*corev1.Container)) corev1.Container {
	ct := corev1.Container{Name: name, Image: "conclave.test/busybox:1", Command: []string{"sh", "-c", script}}
	for _, f := range edit {
		f(&ct)
	}
	return ct
}

// nodePod is a pod whose containers are run once.
func nodePod(name string, containers ...corev1.Container) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod": name}},
		Spec: corev1.PodSpec{
			RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: new(int64(0)),
			AutomountServiceAccountToken: new(false), Containers: containers,
		},
	}
}

func edited(pod *corev1.Pod, edit ...func(*corev1.Pod)) *corev1.Pod {
	for _, f := range edit {
		f(pod)
	}
	return pod
}

func always(pod *corev1.Pod) { pod.Spec.RestartPolicy = corev1.RestartPolicyAlways }

const (
	forever = "while true; do sleep 3600; done"
	polite  = "trap 'exit 0' TERM; while true; do sleep 0.2; done" // ends when asked
)

func (n *nodeTest) pod(name string) *corev1.Pod {
	n.Helper()
	pod, err := n.c.Client.CoreV1().Pods(n.ns).Get(n.Context(), name, metav1.GetOptions{})
	if err != nil {
		n.Fatal(err)
	}
	return pod
}

// until waits for a pod to be as it should; never, which may be nil, says what
// it must not be on the way.
func (n *nodeTest) until(name, what string, is func(*corev1.Pod) bool, never func(*corev1.Pod) string) *corev1.Pod {
	n.Helper()
	ctx, cancel := context.WithTimeout(n.Context(), 5*time.Minute) // the slowest wait out a back-off
	defer cancel()
	var pod *corev1.Pod
	err := cluster.Eventually(ctx, func() (err error) {
		pod, err = n.c.Client.CoreV1().Pods(n.ns).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if never != nil {
			if wrong := never(pod); wrong != "" {
				n.Fatalf("pod %s: %s: %s", name, wrong, shown(pod.Status))
			}
		}
		if !is(pod) {
			return errors.New(shown(pod.Status))
		}
		return nil
	})
	if err != nil {
		n.Fatalf("pod %s: %s: %v", name, what, err)
	}
	return pod
}

func shown(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

func (n *nodeTest) phase(name string, phase corev1.PodPhase) *corev1.Pod {
	n.Helper()
	return n.until(name, string(phase), func(p *corev1.Pod) bool { return p.Status.Phase == phase }, func(p *corev1.Pod) string {
		if over := p.Status.Phase; over != phase && (over == corev1.PodFailed || over == corev1.PodSucceeded) {
			return "its phase is " + string(over)
		}
		return ""
	})
}

func (n *nodeTest) log(pod, container string) string {
	n.Helper()
	raw, err := n.c.Client.CoreV1().Pods(n.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(n.Context())
	if err != nil {
		n.Fatal(err)
	}
	return string(raw)
}

// says waits for a pod to succeed and wants its log to have these lines.
func says(lines ...string) func(*nodeTest, *corev1.Pod) {
	return func(n *nodeTest, pod *corev1.Pod) {
		n.Helper()
		n.phase(pod.Name, corev1.PodSucceeded)
		n.has(n.log(pod.Name, pod.Spec.Containers[0].Name), lines...)
	}
}

func (n *nodeTest) has(text string, lines ...string) {
	n.Helper()
	have := strings.Split(text, "\n")
	for _, want := range lines {
		if !slices.Contains(have, want) {
			n.Errorf("no line is %q:\n%s", want, text)
		}
	}
}

func restarts(p *corev1.Pod) int32 {
	if len(p.Status.ContainerStatuses) == 0 {
		return 0
	}
	return p.Status.ContainerStatuses[0].RestartCount
}

func readyNow(p *corev1.Pod) bool { return conditionOf(p, corev1.PodReady) == corev1.ConditionTrue }

func conditionOf(p *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func env(name, value string) corev1.EnvVar { return corev1.EnvVar{Name: name, Value: value} }

func field(name, path string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
}

func resourceOf(name, what string) corev1.EnvVar {
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: what}}}
}

func withEnv(vars ...corev1.EnvVar) func(*corev1.Container) {
	return func(c *corev1.Container) { c.Env = append(c.Env, vars...) }
}

func security(s corev1.SecurityContext) func(*corev1.Container) {
	return func(c *corev1.Container) { c.SecurityContext = &s }
}

// mountShared mounts one emptyDir at /v of every container.
func mountShared(pod *corev1.Pod) {
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			list[i].VolumeMounts = append(list[i].VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/v"})
		}
	}
}

func inits(list ...corev1.Container) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.InitContainers = list }
}

// runCases makes the pods of all cases and then looks at each.
func runCases(t *testing.T, c *cluster.Cluster, ns string, cases []nodeCase) {
	t.Helper()
	problems := make([]error, len(cases))
	for i, k := range cases {
		if k.pod == nil {
			continue
		}
		_, problems[i] = c.Client.CoreV1().Pods(ns).Create(t.Context(), k.pod, metav1.CreateOptions{})
	}
	for i, k := range cases {
		t.Run(k.codename, func(t *testing.T) {
			if k.codename[0] == '[' {
				conformance.Shows(t, k.codename)
			}
			if problems[i] != nil {
				t.Fatal(problems[i])
			}
			k.check(&nodeTest{t, c, ns}, k.pod)
		})
	}
}

// TestNodePods shows what a node makes of pods.
func TestNodePods(t *testing.T) {
	c := three(t)
	if err := c.Import(t.Context(), "said", "tool"); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	ns := namespace(t, c)
	core := c.Client.CoreV1()
	// A tick of the clock that pods see: what they are told of, exists before.
	for _, name := range []string{"values", "other"} {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"data_1": "value-1", "data_2": "value-2"}}
		if _, err := core.ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: cm.Data}
		if _, err := core.Secrets(ns).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	cases := slices.Concat(probeCases(), environmentCases(), commandCases(), initCases(), restartCases(), securityCases(), messageCases(), etcCases(), subPathCases())
	runCases(t, c, ns, cases)
}

func environmentCases() []nodeCase {
	printed := func(name string, edit ...func(*corev1.Container)) *corev1.Pod {
		// A shell would drop the names that it cannot use.
		return nodePod(name, sh("main", "", append(edit, func(c *corev1.Container) { c.Command = []string{"env"} })...))
	}
	cmKey := func(name string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "values"}, Key: "data_1"}}}
	}
	secretKey := func(name string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "values"}, Key: "data_1"}}}
	}
	from := func(secret bool, prefixes ...string) func(*corev1.Container) {
		return func(c *corev1.Container) {
			for _, p := range prefixes {
				source := corev1.EnvFromSource{Prefix: p}
				if ref := (corev1.LocalObjectReference{Name: "values"}); secret {
					source.SecretRef = &corev1.SecretEnvSource{LocalObjectReference: ref}
				} else {
					source.ConfigMapRef = &corev1.ConfigMapEnvSource{LocalObjectReference: ref}
				}
				c.EnvFrom = append(c.EnvFrom, source)
			}
		}
	}
	unusual := []string{"p-", "1.", "#!/", "a b ", "{", "$(x)"}
	var unusualLines []string
	for _, p := range unusual {
		unusualLines = append(unusualLines, p+"data_1=value-1", p+"data_2=value-2")
	}
	all := []string{"data_1=value-1", "data_2=value-2", "p_data_1=value-1", "p_data_2=value-2"}
	resources := func(c *corev1.Container) {
		c.Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{"cpu": resource.MustParse("250m"), "memory": resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{"cpu": resource.MustParse("1250m"), "memory": resource.MustParse("64Mi")},
		}
	}
	hostAddress := func(name string) func(*nodeTest, *corev1.Pod) {
		return func(n *nodeTest, pod *corev1.Pod) {
			p := n.phase(pod.Name, corev1.PodSucceeded)
			address, err := netip.ParseAddr(p.Status.HostIP)
			if err != nil {
				n.Fatal(err)
			}
			n.has(n.log(pod.Name, "main"), name+"="+address.String())
		}
	}
	return []nodeCase{
		{"[sig-node] ConfigMap should be consumable via environment variable [Conformance] [NodeConformance]", printed("cm-key", withEnv(cmKey("CONFIG_DATA_1"))), says("CONFIG_DATA_1=value-1")},
		{"[sig-node] ConfigMap should be consumable via the environment [Conformance] [NodeConformance]", printed("cm-env", from(false, "", "p_")), says(all...)},
		{"[sig-node] ConfigMap should be consumable as environment variable names with various prefixes [Conformance]", printed("cm-prefix", from(false, unusual...)), says(unusualLines...)},
		{"[sig-node] Secrets should be consumable from pods in env vars [Conformance] [NodeConformance]", printed("secret-key", withEnv(secretKey("SECRET_DATA"))), says("SECRET_DATA=value-1")},
		{"[sig-node] Secrets should be consumable via the environment [Conformance] [NodeConformance]", printed("secret-env", from(true, "", "p_")), says(all...)},
		{"[sig-node] Secrets should be consumable as environment variable names variable names with various prefixes [Conformance]", printed("secret-prefix", from(true, unusual...)), says(unusualLines...)},
		{
			"[sig-node] Downward API should provide pod name, namespace and IP address as env vars [Conformance] [NodeConformance]",
			printed("down-name", withEnv(field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace"), field("POD_IP", "status.podIP"))),
			func(n *nodeTest, pod *corev1.Pod) {
				says("POD_NAME=down-name", "POD_NAMESPACE="+n.ns)(n, pod)
				if !regexp.MustCompile(`(?m)^POD_IP=10\.244\.\d+\.\d+$`).MatchString(n.log(pod.Name, "main")) {
					n.Error("the pod does not know its address:\n", n.log(pod.Name, "main"))
				}
			},
		},
		{"[sig-node] Downward API should provide host IP as an env var [Conformance] [NodeConformance]", printed("down-host", withEnv(field("HOST_IP", "status.hostIP"))), hostAddress("HOST_IP")},
		{"[sig-node] Downward API should provide hostIPs as an env var [Conformance] [NodeConformance]", printed("down-hosts", withEnv(field("HOST_IPS", "status.hostIPs"))), hostAddress("HOST_IPS")},
		{
			"[sig-node] Downward API should provide pod UID as env vars [Conformance] [NodeConformance]",
			printed("down-uid", withEnv(field("POD_UID", "metadata.uid"))),
			func(n *nodeTest, pod *corev1.Pod) { says("POD_UID="+string(n.pod(pod.Name).UID))(n, pod) },
		},
		{
			"[sig-node] Downward API should provide container's limits.cpu/memory and requests.cpu/memory as env vars [Conformance] [NodeConformance]",
			printed("down-resources", resources, withEnv(resourceOf("CPU_LIMIT", "limits.cpu"), resourceOf("MEMORY_LIMIT", "limits.memory"), resourceOf("CPU_REQUEST", "requests.cpu"), resourceOf("MEMORY_REQUEST", "requests.memory"))),
			says("CPU_LIMIT=2", "MEMORY_LIMIT=67108864", "CPU_REQUEST=1", "MEMORY_REQUEST=33554432"),
		},
		{
			"[sig-node] Downward API should provide default limits.cpu/memory from node allocatable [Conformance] [NodeConformance]",
			printed("down-defaults", withEnv(resourceOf("CPU_LIMIT", "limits.cpu"), resourceOf("MEMORY_LIMIT", "limits.memory"))),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.phase(pod.Name, corev1.PodSucceeded)
				node, err := n.c.Client.CoreV1().Nodes().Get(n.Context(), p.Spec.NodeName, metav1.GetOptions{})
				if err != nil {
					n.Fatal(err)
				}
				n.has(n.log(pod.Name, "main"), fmt.Sprintf("CPU_LIMIT=%d", node.Status.Allocatable.Cpu().Value()), fmt.Sprintf("MEMORY_LIMIT=%d", node.Status.Allocatable.Memory().Value()))
			},
		},
	}
}

func commandCases() []nodeCase {
	said := func(name string, command, args []string) *corev1.Pod {
		return nodePod(name, corev1.Container{Name: "main", Image: "conclave.test/said:1", Command: command, Args: args})
	}
	return []nodeCase{
		{"[sig-node] Containers should use the image defaults if command and args are blank [Conformance] [NodeConformance]", said("defaults", nil, nil), says("entrypoint cmd")},
		{"[sig-node] Containers should be able to override the image's default arguments (container cmd) [Conformance] [NodeConformance]", said("args", nil, []string{"mine", "too"}), says("entrypoint mine too")},
		{"[sig-node] Containers should be able to override the image's default command (container entrypoint) [Conformance] [NodeConformance]", said("command", []string{"/bin/echo", "mine"}, nil), says("mine")},
		{"[sig-node] Containers should be able to override the image's default command and arguments [Conformance] [NodeConformance]", said("both", []string{"/bin/echo", "mine"}, []string{"too"}), says("mine too")},
		{
			"[sig-node] Variable Expansion should allow composing env vars into new env vars [Conformance] [NodeConformance]",
			nodePod("composed", sh("main", "env", withEnv(env("FOO", "foo"), env("BAR", "bar"), env("FOOBAR", "$(FOO);;$(BAR)"), env("NONE", "$(NO_SUCH) $$(FOO)")))),
			says("FOOBAR=foo;;bar", "NONE=$(NO_SUCH) $(FOO)"),
		},
		{
			"[sig-node] Variable Expansion should allow substituting values in a container's command [Conformance] [NodeConformance]",
			nodePod("command-var", sh("main", `TEST_VAR=wrong; echo "$(TEST_VAR)"`, withEnv(env("TEST_VAR", "value")))), says("value"),
		},
		{
			"[sig-node] Variable Expansion should allow substituting values in a container's args [Conformance] [NodeConformance]",
			nodePod("args-var", sh("main", "", withEnv(env("TEST_VAR", "value")), func(c *corev1.Container) {
				c.Command, c.Args = []string{"sh", "-c"}, []string{`TEST_VAR=wrong; echo "$(TEST_VAR)"`}
			})), says("value"),
		},
		{"[sig-node] Kubelet when scheduling a busybox command in a pod should print the output to logs [Conformance] [NodeConformance]", nodePod("hello", sh("main", "echo Hello World; sleep 0")), says("Hello World")},
	}
}

func initCases() []nodeCase {
	note := func(name string) corev1.Container { return sh(name, "echo "+name+" >> /v/order; cat /v/order") }
	return []nodeCase{
		{
			"[sig-node] InitContainer should invoke init containers on a RestartNever pod [Conformance] [NodeConformance]",
			edited(nodePod("init-never", note("run1")), inits(note("init1"), note("init2")), mountShared),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.phase(pod.Name, corev1.PodSucceeded)
				if got := n.log(pod.Name, "run1"); got != "init1\ninit2\nrun1\n" {
					n.Errorf("the order was %q", got)
				}
				n.initialized(p)
			},
		},
		{
			"[sig-node] InitContainer should invoke init containers on a RestartAlways pod [Conformance] [NodeConformance]",
			edited(nodePod("init-always", sh("run1", "cat /v/order; "+forever)), inits(note("init1"), note("init2")), mountShared, always),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "ready", readyNow, nil)
				if got := n.log(pod.Name, "run1"); got != "init1\ninit2\n" {
					n.Errorf("the order was %q", got)
				}
				n.initialized(p)
			},
		},
		{
			"[sig-node] InitContainer should not start app containers if init containers fail on a RestartAlways pod [Conformance] [NodeConformance]",
			edited(nodePod("init-fails", sh("run1", forever)), inits(sh("init1", "exit 1"), sh("init2", "true")), always),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "has tried again", func(p *corev1.Pod) bool {
					return len(p.Status.InitContainerStatuses) == 2 && p.Status.InitContainerStatuses[0].RestartCount >= 3
				}, appWaits)
				if p.Status.Phase != corev1.PodPending || conditionOf(p, corev1.PodInitialized) != corev1.ConditionFalse || p.Status.InitContainerStatuses[1].State.Waiting == nil {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"[sig-node] InitContainer should not start app containers and fail the pod if init containers fail on a RestartNever pod [Conformance] [NodeConformance]",
			edited(nodePod("init-ends", sh("run1", "true")), inits(sh("init1", "true"), sh("init2", "exit 1"))),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed }, appWaits)
				s := p.Status.InitContainerStatuses
				if len(s) != 2 || s[0].State.Terminated == nil || s[0].State.Terminated.ExitCode != 0 || s[1].State.Terminated == nil || s[1].State.Terminated.ExitCode != 1 || conditionOf(p, corev1.PodInitialized) != corev1.ConditionFalse {
					n.Error(shown(p.Status))
				}
			},
		},
	}
}

func (n *nodeTest) initialized(p *corev1.Pod) {
	n.Helper()
	if conditionOf(p, corev1.PodInitialized) != corev1.ConditionTrue || len(p.Status.InitContainerStatuses) != 2 {
		n.Error(shown(p.Status))
	}
	for _, s := range p.Status.InitContainerStatuses {
		if !s.Ready || s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 {
			n.Error(shown(s))
		}
	}
}

// appWaits: no ordinary container has ever run.
func appWaits(p *corev1.Pod) string {
	for _, s := range p.Status.ContainerStatuses {
		if s.State.Waiting == nil || s.State.Waiting.Reason != "PodInitializing" || s.RestartCount != 0 {
			return "an ordinary container is not waiting"
		}
	}
	return ""
}

func restartCases() []nodeCase {
	// Fails at first, succeeds at second, and then runs on.
	const thrice = `echo x >> /v/runs; case $(wc -l < /v/runs) in 1) exit 1;; 2) exit 0;; esac; ` + forever
	containers := func() []corev1.Container { return []corev1.Container{sh("main", thrice)} }
	policies := edited(nodePod("restart-always", containers()...), mountShared, always)
	return []nodeCase{
		{
			"[sig-node] Container Runtime blackbox test when starting a container that exits should run with the expected status [Conformance] [NodeConformance]",
			policies,
			func(n *nodeTest, pod *corev1.Pod) {
				for policy, name := range map[corev1.RestartPolicy]string{corev1.RestartPolicyOnFailure: "restart-on-failure", corev1.RestartPolicyNever: "restart-never"} {
					p := edited(nodePod(name, containers()...), mountShared, func(p *corev1.Pod) { p.Spec.RestartPolicy = policy })
					if _, err := n.c.Client.CoreV1().Pods(n.ns).Create(n.Context(), p, metav1.CreateOptions{}); err != nil {
						n.Fatal(err)
					}
				}
				p := n.until(pod.Name, "runs for the third time", func(p *corev1.Pod) bool { return readyNow(p) && restarts(p) == 2 }, nil)
				if s := p.Status.ContainerStatuses[0]; p.Status.Phase != corev1.PodRunning || s.State.Running == nil || !s.Ready {
					n.Error(shown(p.Status))
				}
				p = n.phase("restart-on-failure", corev1.PodSucceeded)
				if s := p.Status.ContainerStatuses[0]; s.RestartCount != 1 || s.State.Terminated == nil || s.State.Terminated.ExitCode != 0 || s.Ready {
					n.Error(shown(p.Status))
				}
				p = n.phase("restart-never", corev1.PodFailed)
				if s := p.Status.ContainerStatuses[0]; s.RestartCount != 0 || s.State.Terminated == nil || s.State.Terminated.ExitCode != 1 || s.Ready {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should have an terminated reason [Conformance] [NodeConformance]",
			nodePod("fails", sh("main", "exit 1")),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.phase(pod.Name, corev1.PodFailed)
				if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 1 || s.Reason != "Error" {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			"[sig-node] Kubelet when scheduling a busybox command that always fails in a pod should be possible to delete [Conformance] [NodeConformance]",
			edited(nodePod("fails-always", sh("main", "exit 1")), always),
			func(n *nodeTest, pod *corev1.Pod) {
				n.until(pod.Name, "has failed", func(p *corev1.Pod) bool { return restarts(p) > 0 }, nil)
				kubectl(n.T, n.c, "-n", n.ns, "delete", "pod", pod.Name, "--timeout=60s")
			},
		},
	}
}

func securityCases() []nodeCase {
	users := func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(1001)), RunAsGroup: new(int64(2002))}
	}
	const id = "echo $(id -u) $(id -g)"
	// A setuid program of root gives its rights only to those who may gain any.
	setuid := func(c *corev1.Container) {
		c.Image, c.Command = "conclave.test/tool:1", []string{"/v/tool", "euid"}
	}
	escalation := edited(nodePod("escalation",
		sh("may", "", setuid, security(corev1.SecurityContext{RunAsUser: new(int64(1000)), AllowPrivilegeEscalation: new(true)})),
		sh("not", "", setuid, security(corev1.SecurityContext{RunAsUser: new(int64(1000)), AllowPrivilegeEscalation: new(false)})),
	), inits(sh("copy", "cp /tool /v/tool && chmod 4755 /v/tool", func(c *corev1.Container) { c.Image = "conclave.test/tool:1" })), mountShared)
	return []nodeCase{
		{"[sig-node] Security Context When creating a container with runAsUser should run the container with uid 65534 [LinuxOnly] [Conformance] [NodeConformance]", nodePod("user", sh("main", "id -u", security(corev1.SecurityContext{RunAsUser: new(int64(65534))}))), says("65534")},
		{"[sig-node] Security Context should support container.SecurityContext.RunAsUser And container.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]", nodePod("container-ids", sh("main", id, security(corev1.SecurityContext{RunAsUser: new(int64(1001)), RunAsGroup: new(int64(2002))}))), says("1001 2002")},
		{"[sig-node] Security Context should support pod.Spec.SecurityContext.RunAsUser And pod.Spec.SecurityContext.RunAsGroup [LinuxOnly] [Conformance]", edited(nodePod("pod-ids", sh("main", id)), users), says("1001 2002")},
		{"[sig-node] Kubelet when scheduling a read only busybox container should not write to root filesystem [LinuxOnly] [Conformance] [NodeConformance]", nodePod("read-only", sh("main", "echo x > /file || echo refused; test ! -e /file", security(corev1.SecurityContext{ReadOnlyRootFilesystem: new(true)}))), says("refused")},
		{"[sig-node] Security Context When creating a pod with readOnlyRootFilesystem should run the container with writable rootfs when readOnlyRootFilesystem=false [Conformance] [NodeConformance]", nodePod("writable", sh("main", "echo written > /file; cat /file", security(corev1.SecurityContext{ReadOnlyRootFilesystem: new(false)}))), says("written")},
		{"[sig-node] Security Context When creating a pod with privileged should run the container as unprivileged when false [LinuxOnly] [Conformance] [NodeConformance]", nodePod("unprivileged", sh("main", "ip link add dummy1 type dummy || echo refused", security(corev1.SecurityContext{Privileged: new(false)}))), says("refused")},
		{
			"[sig-node] Security Context when creating containers with AllowPrivilegeEscalation should not allow privilege escalation when false [LinuxOnly] [Conformance] [NodeConformance]",
			escalation, func(n *nodeTest, pod *corev1.Pod) {
				n.phase(pod.Name, corev1.PodSucceeded)
				n.has(n.log(pod.Name, "may"), "0")
				n.has(n.log(pod.Name, "not"), "1000")
			},
		},
		{
			"[sig-node] Sysctls [LinuxOnly] should support sysctls [Environment:NotInUserNS] [Conformance] [NodeConformance]",
			edited(nodePod("sysctl", sh("main", "cat /proc/sys/kernel/shm_rmid_forced")), func(p *corev1.Pod) {
				p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.shm_rmid_forced", Value: "1"}}}
			}), says("1"),
		},
	}
}

func messageCases() []nodeCase {
	message := func(name, script, path string, policy corev1.TerminationMessagePolicy, edit ...func(*corev1.Container)) *corev1.Pod {
		return nodePod(name, sh("main", script, append(edit, func(c *corev1.Container) { c.TerminationMessagePath, c.TerminationMessagePolicy = path, policy })...))
	}
	left := func(phase corev1.PodPhase, want string) func(*nodeTest, *corev1.Pod) {
		return func(n *nodeTest, pod *corev1.Pod) {
			p := n.phase(pod.Name, phase)
			if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.Message != want {
				n.Errorf("want the message %q: %s", want, shown(p.Status))
			}
		}
	}
	const prefix = "[sig-node] Container Runtime blackbox test on terminated container should report termination message "
	return []nodeCase{
		{
			prefix + "if TerminationMessagePath is set as non-root user and at a non-default path [Conformance] [NodeConformance]",
			message("message-path", "printf DONE > /dev/custom-log", "/dev/custom-log", corev1.TerminationMessageReadFile, security(corev1.SecurityContext{RunAsUser: new(int64(1000))})), left(corev1.PodSucceeded, "DONE"),
		},
		{prefix + "from log output if TerminationMessagePolicy FallbackToLogsOnError is set [Conformance] [NodeConformance]", message("message-log", "printf DONE; exit 1", "", corev1.TerminationMessageFallbackToLogsOnError), left(corev1.PodFailed, "DONE")},
		{prefix + "as empty when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [Conformance] [NodeConformance]", message("message-none", "printf DONE", "", corev1.TerminationMessageFallbackToLogsOnError), left(corev1.PodSucceeded, "")},
		{prefix + "from file when pod succeeds and TerminationMessagePolicy FallbackToLogsOnError is set [Conformance] [NodeConformance]", message("message-file", "printf OK > /dev/termination-log; echo DONE", "", corev1.TerminationMessageFallbackToLogsOnError), left(corev1.PodSucceeded, "OK")},
	}
}

func etcCases() []nodeCase {
	own := func(c *corev1.Container) {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/etc/hosts"}}
	}
	managed := edited(nodePod("managed", sh("one", forever), sh("two", forever), sh("own", forever, own)), func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc/hosts", Type: new(corev1.HostPathFile)}}}}
	})
	return []nodeCase{
		{
			"[sig-node] Kubelet when scheduling an agnhost Pod with hostAliases should write entries to /etc/hosts [Conformance] [NodeConformance]",
			edited(nodePod("aliases", sh("main", "cat /etc/hosts")), func(p *corev1.Pod) {
				p.Spec.HostAliases = []corev1.HostAlias{{IP: "123.45.67.89", Hostnames: []string{"foo", "bar"}}}
			}), says("123.45.67.89\tfoo\tbar"),
		},
		{
			"[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [Conformance] [NodeConformance]", managed,
			func(n *nodeTest, pod *corev1.Pod) {
				host := edited(nodePod("host-network", sh("main", "cat /etc/hosts")), func(p *corev1.Pod) { p.Spec.HostNetwork = true })
				if _, err := n.c.Client.CoreV1().Pods(n.ns).Create(n.Context(), host, metav1.CreateOptions{}); err != nil {
					n.Fatal(err)
				}
				const mark = "# Kubernetes-managed hosts file."
				n.until(pod.Name, "ready", readyNow, nil)
				for container, want := range map[string]bool{"one": true, "two": true, "own": false} {
					text := kubectl(n.T, n.c, "-n", n.ns, "exec", pod.Name, "-c", container, "--", "cat", "/etc/hosts")
					if strings.Contains(text, mark) != want {
						n.Errorf("container %s, managed should be %v:\n%s", container, want, text)
					}
				}
				n.phase(host.Name, corev1.PodSucceeded)
				if text := n.log(host.Name, "main"); strings.Contains(text, mark) {
					n.Error("the hosts file of the host network is managed:\n", text)
				}
			},
		},
	}
}

func subPathCases() []nodeCase {
	at := func(expr string, vars ...corev1.EnvVar) func(*corev1.Container) {
		return func(c *corev1.Container) {
			c.Env = vars
			c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: "v", MountPath: "/sub", SubPathExpr: expr})
		}
	}
	refused := func(n *nodeTest, pod *corev1.Pod) {
		n.until(pod.Name, "is refused", func(p *corev1.Pod) bool {
			s := p.Status.ContainerStatuses
			return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError"
		}, func(p *corev1.Pod) string {
			if s := p.Status.ContainerStatuses; len(s) == 1 && s[0].State.Waiting == nil {
				return "its container was started"
			}
			return ""
		})
	}
	const prefix = "[sig-node] Variable Expansion should "
	return []nodeCase{
		{
			prefix + "allow substituting values in a volume subpath [Conformance]",
			edited(nodePod("sub-allow", sh("main", "test -d /v/foo/sub-allow && echo found", at("foo/$(POD_NAME)", field("POD_NAME", "metadata.name")))), mountShared), says("found"),
		},
		{
			prefix + "succeed in writing subpaths in container [Conformance]",
			edited(nodePod("sub-write", sh("main", "echo hello > /sub/file; cat /v/mypath/sub-write/file; ls -R /v", at("$(WHERE)/$(POD_NAME)", env("WHERE", "mypath"), field("POD_NAME", "metadata.name")))), mountShared), says("hello"),
		},
		{
			prefix + "fail substituting values in a volume subpath with absolute path [Conformance]",
			edited(nodePod("sub-absolute", sh("main", "true", at("$(WHERE)", env("WHERE", "/tmp")))), mountShared), refused,
		},
		{
			// The suite's own value steps back; one with both steps and ticks must not be run either.
			prefix + "fail substituting values in a volume subpath with backticks [Conformance]",
			edited(nodePod("sub-back", sh("main", "true", at("$(WHERE)", env("WHERE", "..")))), mountShared),
			func(n *nodeTest, pod *corev1.Pod) {
				ticks := edited(nodePod("sub-ticks", sh("main", "true", at("$(WHERE)", env("WHERE", "`true`/..")))), mountShared)
				if _, err := n.c.Client.CoreV1().Pods(n.ns).Create(n.Context(), ticks, metav1.CreateOptions{}); err != nil {
					n.Fatal(err)
				}
				refused(n, pod)
				refused(n, ticks)
			},
		},
		{
			prefix + "verify that a failing subpath expansion can be modified during the lifecycle of a container [Conformance] [Slow]",
			edited(nodePod("sub-mended", sh("main", forever, at("$(WHERE)/$(POD_NAME)", field("WHERE", "metadata.annotations['mysubpath']"), field("POD_NAME", "metadata.name")))), mountShared, func(p *corev1.Pod) {
				p.Annotations = map[string]string{"mysubpath": "/wrong"}
			}),
			func(n *nodeTest, pod *corev1.Pod) {
				refused(n, pod)
				kubectl(n.T, n.c, "-n", n.ns, "annotate", "pod", pod.Name, "--overwrite", "mysubpath=mypath")
				n.until(pod.Name, "runs", readyNow, nil)
				kubectl(n.T, n.c, "-n", n.ns, "exec", pod.Name, "--", "test", "-d", "/v/mypath/sub-mended")
			},
		},
	}
}

// probeCases come first: their pods take their time.
func probeCases() []nodeCase {
	probe := func(liveness bool, h corev1.ProbeHandler, delay, failures int32) func(*corev1.Container) {
		return func(c *corev1.Container) {
			p := &corev1.Probe{ProbeHandler: h, InitialDelaySeconds: delay, PeriodSeconds: 1, FailureThreshold: failures, TimeoutSeconds: 5}
			if liveness {
				c.LivenessProbe = p
			} else {
				c.ReadinessProbe = p
			}
		}
	}
	cat := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cat", "/tmp/health"}}}
	get := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}}
	tcp := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}
	grpc := func(port int32) corev1.ProbeHandler {
		return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: port, Service: new("")}}
	}
	health := func(c *corev1.Container) {
		c.Image, c.Command = "conclave.test/tool:1", []string{"/tool", "health", ":5000"}
	}
	const web = "mkdir /www; echo ok > /www/healthz; "
	running := func(name, script string, edit ...func(*corev1.Container)) *corev1.Pod {
		return edited(nodePod(name, sh("main", "mkdir -p /tmp; "+script, edit...)), always)
	}
	restarted := func(n *nodeTest, pod *corev1.Pod) {
		n.until(pod.Name, "is restarted", func(p *corev1.Pod) bool { return restarts(p) >= 1 }, nil)
	}
	// It was probed by all those looked at before this, and is still the first.
	never := func(n *nodeTest, pod *corev1.Pod) {
		n.until(pod.Name, "has run for a while", func(p *corev1.Pod) bool {
			if !readyNow(p) {
				return false
			}
			began := p.Status.ContainerStatuses[0].State.Running
			return began != nil && time.Since(began.StartedAt.Time) > 20*time.Second
		}, func(p *corev1.Pod) string {
			if restarts(p) > 0 {
				return "it was restarted"
			}
			return ""
		})
	}
	const prefix = "[sig-node] Probing container "
	// Those that are well may take some seconds to listen, on a machine that has
	// other things to do; a probe that failed for good would restart them in time.
	return []nodeCase{
		{prefix + "should be restarted with a exec \"cat /tmp/health\" liveness probe [Conformance] [NodeConformance]", running("exec-ill", "echo ok > /tmp/health; sleep 3; rm /tmp/health; "+forever, probe(true, cat, 0, 1)), restarted},
		{prefix + "should be restarted with a /healthz http liveness probe [Conformance] [NodeConformance]", running("http-ill", web+"(sleep 3; rm /www/healthz) & exec httpd -f -p 8080 -h /www", probe(true, get, 1, 2)), restarted},
		{prefix + "should be restarted with a GRPC liveness probe [Conformance] [NodeConformance]", running("grpc-ill", "", health, probe(true, grpc(2333), 1, 1)), restarted},
		{prefix + "should *not* be restarted with a exec \"cat /tmp/health\" liveness probe [Conformance] [NodeConformance]", running("exec-well", "echo ok > /tmp/health; "+forever, probe(true, cat, 1, 10)), never},
		{prefix + "should *not* be restarted with a /healthz http liveness probe [Conformance] [NodeConformance]", running("http-well", web+"exec httpd -f -p 8080 -h /www", probe(true, get, 1, 10)), never},
		{prefix + "should *not* be restarted with a tcp:8080 liveness probe [Conformance] [NodeConformance]", running("tcp-well", "mkdir /www; exec httpd -f -p 8080 -h /www", probe(true, tcp, 1, 10)), never},
		{prefix + "should *not* be restarted with a GRPC liveness probe [Conformance] [NodeConformance]", running("grpc-well", "", health, probe(true, grpc(5000), 1, 10)), never},
		{
			prefix + "with readiness probe should not be ready before initial delay and never restart [Conformance] [NodeConformance]",
			running("delayed", "echo ok > /tmp/health; "+forever, probe(false, cat, 8, 3)),
			func(n *nodeTest, pod *corev1.Pod) {
				p := n.until(pod.Name, "ready", readyNow, nil)
				began := p.Status.ContainerStatuses[0].State.Running.StartedAt
				for _, c := range p.Status.Conditions {
					if c.Type == corev1.PodReady && c.LastTransitionTime.Sub(began.Time) < 7*time.Second { // both are whole seconds
						n.Errorf("ready at %s, started at %s", c.LastTransitionTime, began)
					}
				}
				if restarts(p) != 0 {
					n.Error(shown(p.Status))
				}
			},
		},
		{
			prefix + "with readiness probe that fails should never be ready and never restart [Conformance] [NodeConformance]",
			running("never-ready", forever, probe(false, corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"false"}}}, 0, 3)),
			func(n *nodeTest, pod *corev1.Pod) {
				wrong := func(p *corev1.Pod) string {
					if readyNow(p) || restarts(p) > 0 {
						return "it was ready or restarted"
					}
					return ""
				}
				n.until(pod.Name, "was found unready often", func(p *corev1.Pod) bool {
					events, err := n.c.Client.CoreV1().Events(n.ns).List(n.Context(), metav1.ListOptions{FieldSelector: "reason=Unhealthy,involvedObject.name=" + pod.Name})
					if err != nil {
						n.Fatal(err)
					}
					count := int32(0)
					for _, e := range events.Items {
						count += max(e.Count, 1)
					}
					return count >= 5
				}, wrong)
			},
		},
	}
}
