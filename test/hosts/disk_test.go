package hosts

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// withDisks is a cluster whose hosts have small disks of their own.
func withDisks(t *testing.T, hosts int, size int64, args ...string) *cluster.Cluster {
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	c := ownOf(t, cluster.Config{Hosts: hosts, DiskSize: size, Args: args})
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDiskFullUnderPods: the disk of one of three hosts is full to the last
// block, and nothing is evicted for it. A container that logs is not held up,
// one that writes to an emptyDir is told; both go on when there is room.
func TestDiskFullUnderPods(t *testing.T) {
	t.Parallel()
	c := withDisks(t, 3, 256<<20, "--eviction-hard", "memory.available<50Mi", "--image-gc-high-threshold", "100", "--image-gc-low-threshold", "99")
	n := &nodeTest{t, c, metav1.NamespaceDefault}
	node := c.Hosts[2].Name
	on := func(pod *corev1.Pod) *corev1.Pod { pod.Spec.NodeName = node; return pod }
	n.create(on(edited(nodePod("logs", sh("main", `i=0; while true; do i=$((i+1)); echo line $i of the log; echo $i > /v/count.new; mv /v/count.new /v/count; sleep 0.05; done`)), always, mountShared, func(p *corev1.Pod) {
		p.Spec.Volumes[0].EmptyDir.Medium = corev1.StorageMediumMemory
	})))
	n.create(on(edited(nodePod("writes", sh("main", `until [ -e /v/go ]; do sleep 0.1; done; dd if=/dev/zero of=/v/big bs=65536 count=8192; code=$?; rm -f /v/big; echo told $code; `+forever)), always, mountShared)))
	n.until("logs", "runs", readyNow, nil)
	n.until("writes", "runs", readyNow, nil)
	count := func() (i int) {
		t.Helper()
		if _, err := fmt.Sscan(kubectl(t, c, "exec", "logs", "--", "cat", "/v/count"), &i); err != nil {
			t.Fatal(err)
		}
		return i
	}
	// In an emptyDir.
	kubectl(t, c, "exec", "writes", "--", "touch", "/v/go")
	eventually(t, "the pod is told that the disk is full", func() error {
		if out := n.log("writes", "main"); !strings.Contains(out, "told 1\n") {
			return errors.New(out)
		}
		return nil
	})
	// While logging.
	eventually(t, "the log loses lines, and the container runs on", func() error {
		if err := c.FillDisk(node); err != nil { // again and again: others may have freed some
			return err
		}
		i := count()
		if out := n.log("logs", "main"); strings.Contains(out, fmt.Sprintf("line %d of", i-20)) || i < 100 {
			return fmt.Errorf("line %d is there", i-20)
		}
		return nil
	})
	lost := count()
	if err := c.FreeDisk(node); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log goes on", func() error {
		i := count()
		if out := n.log("logs", "main"); i < lost+40 || !strings.Contains(out, fmt.Sprintf("line %d of the log\n", i-10)) {
			return fmt.Errorf("line %d is not there", i-10)
		}
		return nil
	})
	for line := range strings.Lines(n.log("logs", "main")) {
		var i int
		if _, err := fmt.Sscanf(line, "line %d of the log\n", &i); err != nil {
			t.Errorf("a line is torn: %q", line)
		}
	}
	for _, name := range []string{"logs", "writes"} {
		if p := n.pod(name); restarts(p) != 0 || !readyNow(p) {
			t.Errorf("%s: %s", name, shown(p.Status))
		}
	}
	// Four times what the disk has, in logs, at more than a gigabyte a minute.
	n.create(on(nodePod("flood", sh("main", "yes a line that is written again and again until there is a gigabyte of it | head -c 1073741824; echo; echo the end"))))
	flood := n.phase("flood", corev1.PodSucceeded)
	if out := kubectl(t, c, "logs", "flood", "--tail=1"); out != "the end\n" {
		t.Errorf("the last line of a gigabyte is %q", out)
	}
	out, err := c.On(t.Context(), node, "du", "-sk", filepath.Join(c.DataDir(c.Hosts[2]), "log", "pods", fmt.Sprintf("%s_flood_%s", n.ns, flood.UID)))
	var kib int
	if _, scanErr := fmt.Sscan(out, &kib); err != nil || scanErr != nil || kib < 10<<10 || kib > 64<<10 {
		t.Errorf("of a gigabyte of logs the disk has %q %v", out, err)
	}
	end := flood.Status.ContainerStatuses[0].State.Terminated
	t.Logf("a gigabyte of logs in %v, of which %d KiB are on the disk", end.FinishedAt.Sub(end.StartedAt.Time), kib)
	kubectl(t, c, "delete", "pod", "logs", "writes", "flood", "--timeout=60s")
}

// TestDiskPressure: pods that write too much are evicted, and only those: for
// their own limits, for the node's room, and for its inodes.
func TestDiskPressure(t *testing.T) {
	t.Parallel()
	c := withDisks(t, 1, 512<<20, "--eviction-hard", "nodefs.available<128Mi,nodefs.inodesFree<50%", "--eviction-pressure-transition-period", "1s")
	n := &nodeTest{t, c, metav1.NamespaceDefault}
	limited := func(to string) func(*corev1.Container) {
		return func(c *corev1.Container) {
			c.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(to)}
		}
	}
	evicted := func(name, message string) {
		t.Helper()
		p := n.until(name, "is evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed }, nil)
		if p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, message) || conditionOf(p, corev1.DisruptionTarget) != corev1.ConditionTrue {
			t.Errorf("%s: %s", name, shown(p.Status))
		}
	}
	n.create(edited(nodePod("quiet", sh("main", forever)), always))
	n.create(nodePod("layer", sh("main", "head -c 8388608 /dev/zero > /file; "+forever, limited("4Mi")), sh("other", forever, limited("100Mi"))))
	n.create(nodePod("log", sh("main", "yes a line that is written again and again | head -c 8388608; "+forever, limited("4Mi"))))
	evicted("layer", `Container main exceeded its local ephemeral storage limit "4Mi"`)
	evicted("log", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ")
	// Files that every container is given count too (CVE-2020-8557).
	n.create(nodePod("hosts", sh("main", "head -c 8388608 /dev/zero > /etc/hosts; "+forever, limited("4Mi"))))
	evicted("hosts", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ")
	wellAgain := func() {
		t.Helper()
		eventually(t, "the pressure ends", func() error {
			node, err := c.Client.CoreV1().Nodes().Get(t.Context(), c.Hosts[0].Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, cond := range node.Status.Conditions {
				if cond.Type == corev1.NodeDiskPressure && cond.Status != corev1.ConditionFalse {
					return errors.New(cond.Message)
				}
			}
			if len(node.Spec.Taints) > 0 {
				return errors.New(shown(node.Spec.Taints))
			}
			return nil
		})
	}
	wellAgain()
	n.create(edited(nodePod("bytes", sh("main", "head -c 402653184 /dev/zero > /v/big; "+forever)), mountShared))
	evicted("bytes", "The node was low on resource: ephemeral-storage. Threshold quantity: 128Mi, available: ")
	kubectl(t, c, "delete", "pod", "bytes")
	wellAgain()
	n.create(edited(nodePod("inodes", sh("main", `i=0; while [ $i -lt 400 ]; do mkdir /v/$i; (cd /v/$i; touch $(seq 1 100)); i=$((i+1)); done; `+forever)), mountShared))
	evicted("inodes", "The node was low on resource: inodes. Threshold quantity: ")
	kubectl(t, c, "delete", "pod", "inodes")
	wellAgain()
	events := kubectl(t, c, "get", "events", "-A", "-o", `jsonpath={range .items[*]}{.reason} {.message}{"\n"}{end}`)
	mustContain(t, "the events", events, "EvictionThresholdMet Attempting to reclaim ephemeral-storage", "EvictionThresholdMet Attempting to reclaim inodes", "NodeHasDiskPressure", "NodeHasNoDiskPressure")
	if p := n.pod("quiet"); restarts(p) != 0 || !readyNow(p) {
		t.Errorf("the quiet pod: %s", shown(p.Status))
	}
}
