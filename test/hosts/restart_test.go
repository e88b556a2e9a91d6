package hosts

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

const counter = `
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 1
  nodeName: %s
  containers:
  - name: main
    image: conclave.test/busybox:1
    command: [sh, -c, 'i=0; while true; do echo $i; i=$((i+1)); sleep 0.05; done']
---
apiVersion: v1
kind: Pod
metadata: {name: leaver}
spec:
  nodeName: %s
  restartPolicy: Never
  containers:
  - name: main
    image: conclave.test/busybox:1
    command: [sh, -c, 'while [ ! -e /go ]; do sleep 0.05; done; exit 42']
`

// TestKilledProcessLeavesPodsAlone kills conclave on a node that runs pods, lets
// one of them end meanwhile, and starts it again.
func TestKilledProcessLeavesPodsAlone(t *testing.T) {
	t.Parallel()
	c := own(t, 1)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	node := c.Hosts[0].Name
	apply(t, c, "default", fmt.Sprintf(counter, node, node))
	kubectl(t, c, "wait", "pod/counter", "pod/leaver", "--for=condition=Ready", "--timeout=60s")
	before := processes(t, c, "while true")
	leaver := processes(t, c, "/go")
	if len(before) != 1 || len(leaver) != 1 {
		t.Fatalf("the containers' processes are %v and %v", before, leaver)
	}
	id := kubectl(t, c, "get", "pod", "counter", "-o", "jsonpath={.status.containerStatuses[0].containerID}")

	printed := len(strings.Fields(kubectl(t, c, "logs", "counter")))
	if err := c.Kill(node); err != nil {
		t.Fatal(err)
	}
	if got := processes(t, c, "while true"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Fatalf("the container's process is %v, was %v", got, before)
	}
	// Let the other one end while nobody looks.
	if _, err := c.On(t.Context(), node, "touch", fmt.Sprintf("/proc/%d/root/go", leaver[0])); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the leaver's process is gone", func() error {
		if left := processes(t, c, "/go"); len(left) > 0 {
			return fmt.Errorf("it is %v", left)
		}
		return nil
	})
	if err := c.Start(node, "up"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the exit is reported", func() error {
		pod, err := c.Client.CoreV1().Pods("default").Get(t.Context(), "leaver", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(pod.Status.ContainerStatuses) != 1 || pod.Status.ContainerStatuses[0].State.Terminated == nil {
			return fmt.Errorf("status is %+v", pod.Status)
		}
		if code := pod.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != 42 || pod.Status.Phase != corev1.PodFailed {
			t.Fatalf("exit code %d, phase %s", code, pod.Status.Phase)
		}
		return nil
	})
	if got := processes(t, c, "while true"); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Errorf("after the restart the container's process is %v, was %v", got, before)
	}
	status := kubectl(t, c, "get", "pod", "counter", "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
	if status != id+" 0" {
		t.Errorf("the container is %q now, was %q with no restart", status, id)
	}
	// The log has no gap, from before the kill until well after the restart.
	eventually(t, "the container goes on printing", func() error {
		lines := strings.Fields(kubectl(t, c, "logs", "counter"))
		for i, line := range lines {
			if line != strconv.Itoa(i) {
				t.Fatalf("line %d of the log is %q", i, line)
			}
		}
		if len(lines) < printed+20 {
			return fmt.Errorf("it has printed %d lines, %d of them before the kill", len(lines), printed)
		}
		return nil
	})
}

// processes are the pids, as the first host sees them, of what has text in its
// command line and is not this search.
func processes(t *testing.T, c *cluster.Cluster, text string) []int {
	t.Helper()
	return processesOn(t, c, c.Hosts[0].Name, text)
}

func processesOn(t *testing.T, c *cluster.Cluster, host, text string) []int {
	t.Helper()
	out, err := c.On(t.Context(), host, "sh", "-c", `for p in /proc/[0-9]*; do printf '%s ' "${p#/proc/}"; tr '\0\n' '  ' < $p/cmdline; echo; done 2>/dev/null`)
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for line := range strings.Lines(out) {
		pid, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.Contains(command, text) && strings.HasPrefix(command, "sh -c") {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, n)
		}
	}
	return pids
}

// writeMarks makes objects that must survive, and returns their names.
func writeMarks(t *testing.T, c *cluster.Cluster, prefix string, n int) []string {
	t.Helper()
	var names []string
	for i := range n {
		name := fmt.Sprintf("%s-%d", prefix, i)
		_, err := c.Client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": strconv.Itoa(i)}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

// wantMarks waits until the cluster answers, and finds every mark.
func wantMarks(t *testing.T, c *cluster.Cluster, names []string) {
	t.Helper()
	eventually(t, "the cluster is back with everything", func() error {
		if err := c.Connect(t.Context()); err != nil {
			return err
		}
		for _, name := range names {
			if _, err := c.Client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				return err
			}
		}
		return nil
	})
}

// wantReady waits until all nodes are Ready and the application has n ready pods.
func wantReady(t *testing.T, c *cluster.Cluster, nodes, pods int) {
	t.Helper()
	eventually(t, "nodes and pods are ready", func() error {
		list, err := c.Client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		ready := 0
		for _, n := range list.Items {
			for _, condition := range n.Status.Conditions {
				if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
					ready++
				}
			}
		}
		if ready != nodes {
			return fmt.Errorf("%d of %d nodes are ready", ready, nodes)
		}
		running, err := readyPods(t.Context(), c)
		if err == nil && running != pods {
			err = fmt.Errorf("%d of %d pods are ready", running, pods)
		}
		return err
	})
}

func readyPods(ctx context.Context, c *cluster.Cluster) (int, error) {
	list, err := c.Client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=tick"})
	if err != nil {
		return 0, err
	}
	ready := 0
	for _, p := range list.Items {
		for _, condition := range p.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil {
				ready++
			}
		}
	}
	return ready, nil
}

// TestWholeClusterStops kills conclave everywhere at once, then cuts the power
// everywhere at once, then gives a host another address.
func TestWholeClusterStops(t *testing.T) {
	t.Parallel()
	c := own(t, 3)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	apply(t, c, "default", deployment)
	wantReady(t, c, 3, 2)
	marks := writeMarks(t, c, "before-kill", 50)
	var names []string
	for _, h := range c.Hosts {
		names = append(names, h.Name)
	}

	for _, name := range names {
		if err := c.Kill(name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		if err := c.Start(name, "up"); err != nil {
			t.Fatal(err)
		}
	}
	wantMarks(t, c, marks)
	wantReady(t, c, 3, 2)

	marks = append(marks, writeMarks(t, c, "before-power", 50)...)
	if err := c.PowerOff(names...); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := c.Boot(name, netip.Addr{}); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(name, "up"); err != nil {
			t.Fatal(err)
		}
	}
	wantMarks(t, c, marks)
	wantReady(t, c, 3, 2)

	victim := names[2]
	if err := c.PowerOff(victim); err != nil {
		t.Fatal(err)
	}
	h, err := c.Host(victim)
	if err != nil {
		t.Fatal(err)
	}
	moved := h.Address.Next().Next().Next().Next().Next().Next().Next().Next().Next()
	if err := c.Boot(victim, moved); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(victim, "up"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is back at its new address", func() error {
		out, err := c.Kubectl(t.Context(), "get", "node", victim, "-o", "wide")
		if err == nil && (!strings.Contains(out, moved.String()) || !strings.Contains(out, " Ready ")) {
			err = fmt.Errorf("the node is %s", out)
		}
		return err
	})
	wantReady(t, c, 3, 2)
	// A pod on the moved node is reached from the others, and its logs by kubectl.
	apply(t, c, "default", fmt.Sprintf(counter, victim, victim))
	kubectl(t, c, "wait", "pod/counter", "--for=condition=Ready", "--timeout=60s")
	ip := kubectl(t, c, "get", "pod", "counter", "-o", "jsonpath={.status.podIP}")
	eventually(t, "the pod answers", func() error {
		_, err := c.On(t.Context(), names[0], "busybox", "ping", "-c", "1", "-W", "1", ip)
		return err
	})
	mustContain(t, "logs of a pod on the moved node", kubectl(t, c, "logs", "counter", "--tail=-1"), "0\n1\n")
}
