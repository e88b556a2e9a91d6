package hosts

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

const mebi = 1 << 20

// TestPressure runs a small node: of the machine's memory its pods may have
// 300 MiB, and are evicted from 200 MiB on.
func TestPressure(t *testing.T) {
	needRoot(t)
	total := memTotal(t)
	c := own(t, 1, "--system-reserved", fmt.Sprintf("memory=%d,cpu=500m", total-400*mebi), "--kube-reserved", "memory=100Mi",
		"--pod-max-pids", "64", "--eviction-pressure-transition-period", "1s")
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	const ns = "default"
	node := func() *corev1.Node {
		n, err := c.Client.CoreV1().Nodes().Get(t.Context(), c.Hosts[0].Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if a := node().Status.Allocatable; a.Memory().Value() != 200*mebi || node().Status.Capacity.Cpu().MilliValue()-a.Cpu().MilliValue() != 500 {
		t.Errorf("allocatable %v", a)
	}
	if limit := inCgroup(t, c, "memory", "kubepods", "memory.limit_in_bytes", "memory.max"); limit != "" && limit != strconv.Itoa(300*mebi) {
		t.Errorf("all pods may have %s", limit)
	}

	// Two that behave.
	createPod(t, c, ns, edited(nodePod("burstable", sized("c1", "cpu=250m memory=64Mi", "")), always))
	createPod(t, c, ns, edited(nodePod("besteffort", sized("c1", "", "")), always))
	for pod, score := range map[string]int64{"burstable": min(1000-1000*64*mebi/total, 999), "besteffort": 1000} {
		waitForPod(t, c, ns, pod, corev1.PodRunning)
		if got := strings.TrimSpace(kubectl(t, c, "exec", pod, "--", "cat", "/proc/self/oom_score_adj")); got != fmt.Sprint(score) {
			t.Errorf("the score of %s is %s, not %d", pod, got, score)
		}
	}
	eventually(t, "the classes have their shares", func() error {
		burstable, best := inCgroup(t, c, "cpu", "kubepods/burstable", "cpu.shares", ""), inCgroup(t, c, "cpu", "kubepods/besteffort", "cpu.shares", "")
		if burstable+best != "" && (burstable != "256" || best != "2") {
			return fmt.Errorf("%s and %s", burstable, best)
		}
		return nil
	})

	// One that is killed for its own limit, and one that forks without end.
	createPod(t, c, ns, nodePod("eats", sh("c1", "exec tail < /dev/zero", func(c *corev1.Container) { c.Resources.Limits = amountsIn("memory=32Mi") })))
	dead := waitForPod(t, c, ns, "eats", corev1.PodFailed).Status.ContainerStatuses[0].State.Terminated
	if dead == nil || dead.Reason != "OOMKilled" || dead.ExitCode != 137 {
		t.Errorf("%+v", dead)
	}
	createPod(t, c, ns, nodePod("forks", sh("c1", "i=0; while [ $i -lt 100 ]; do sleep 100 & i=$((i+1)); done; true")))
	eventually(t, "it cannot fork without end", func() error {
		if out, err := c.Kubectl(t.Context(), "logs", "forks"); err != nil || !strings.Contains(strings.ToLower(out), "can't fork") {
			return fmt.Errorf("it says %q, %v", out, err)
		}
		return nil
	})
	kubectl(t, c, "delete", "pod", "forks", "--now")

	// One that takes more than there is goes, and only that one.
	createPod(t, c, ns, nodePod("greedy", sh("c1", fmt.Sprintf("(head -c %d /dev/zero; sleep 1000) | tail", 230*mebi))))
	eventually(t, "the greedy pod is evicted", func() error {
		p, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), "greedy", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Evicted" || !strings.HasPrefix(p.Status.Message, "The node was low on resource: memory. Threshold quantity: 100Mi, available: ") ||
			!strings.Contains(p.Status.Message, "Container c1 was using ") {
			return fmt.Errorf("%s %s %q", p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		return nil
	})
	events := kubectl(t, c, "get", "events", "-A", "-o", `jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}`)
	mustContain(t, "the events", events, "EvictionThresholdMet Attempting to reclaim memory", "NodeHasInsufficientMemory", "Evicted The node was low on resource: memory.")
	eventually(t, "the pressure ends", func() error {
		n := node()
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeMemoryPressure && cond.Status != corev1.ConditionFalse {
				return fmt.Errorf("%s is %s", cond.Type, cond.Status)
			}
		}
		for _, taint := range n.Spec.Taints {
			return fmt.Errorf("taint %s", taint.Key)
		}
		return nil
	})
	for _, pod := range []string{"burstable", "besteffort"} {
		p, err := c.Client.CoreV1().Pods(ns).Get(t.Context(), pod, metav1.GetOptions{})
		if err != nil || p.Status.Phase != corev1.PodRunning || restarts(p) != 0 {
			t.Errorf("%s: %v %v", pod, p.Status, err)
		}
	}

	// One that writes more than its volume may hold.
	size := resource.MustParse("1Mi")
	createPod(t, c, ns, edited(nodePod("writes", sh("c1", "head -c 4000000 /dev/zero > /cache/f; sleep 1000", func(c *corev1.Container) {
		c.VolumeMounts = []corev1.VolumeMount{{Name: "cache", MountPath: "/cache"}}
	})), func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "cache", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &size}}}}
	}))
	p := waitForPod(t, c, ns, "writes", corev1.PodFailed)
	if p.Status.Reason != "Evicted" || p.Status.Message != `Usage of EmptyDir volume "cache" exceeds the limit "1Mi". ` {
		t.Errorf("%s %q", p.Status.Reason, p.Status.Message)
	}

	// One that is critical has room made for it.
	createPod(t, c, ns, edited(nodePod("filler", sized("c1", "memory=130Mi", "")), always))
	waitForPod(t, c, ns, "filler", corev1.PodRunning)
	createPod(t, c, ns, edited(nodePod("critical", sized("c1", "memory=130Mi", "")), always, func(p *corev1.Pod) {
		p.Spec.NodeName, p.Spec.PriorityClassName = c.Hosts[0].Name, "system-node-critical"
	}))
	waitForPod(t, c, ns, "critical", corev1.PodRunning)
	p = waitForPod(t, c, ns, "filler", corev1.PodFailed)
	if p.Status.Reason != "Preempting" || p.Status.Message != "Preempted in order to admit critical pod" {
		t.Errorf("%s %q", p.Status.Reason, p.Status.Message)
	}
	waitForPod(t, c, ns, "burstable", corev1.PodRunning)
}

// inCgroup reads a setting below a host's cgroup; "" where the version has it
// under no name.
func inCgroup(t *testing.T, c *cluster.Cluster, controller, group, v1, v2 string) string {
	t.Helper()
	parent := c.CgroupParent(c.Hosts[0])
	path := filepath.Join("/sys/fs/cgroup", controller, parent, group, v1)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		if path = filepath.Join("/sys/fs/cgroup", parent, group, v2); v2 == "" {
			return ""
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func memTotal(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	if _, err := fmt.Sscanf(string(data), "MemTotal: %d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
