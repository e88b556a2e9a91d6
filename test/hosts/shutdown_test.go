package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/test/cluster"
)

// TestHostGoesDown stops conclave twice: alone, which no pod notices, and with
// its host, by the word of systemd, for which a script stands in here.
func TestHostGoesDown(t *testing.T) {
	needRoot(t)
	t.Parallel()
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir() // first in the hosts' PATH
	binary, going := filepath.Join(dir, "conclave"), filepath.Join(dir, "going-down")
	if out, err := exec.CommandContext(t.Context(), "cp", filepath.Join(root, "bin", "conclave"), binary).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script := fmt.Sprintf("#!/bin/sh\nif [ -e %s ]; then echo stopping; exit 1; fi\necho running\n", going)
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c := ownOf(t, cluster.Config{Hosts: 1, Binary: binary, Args: []string{"--shutdown-grace-period=20s", "--shutdown-grace-period-critical-pods=5s"}})
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	n := &nodeTest{t, c, metav1.NamespaceDefault}
	h := c.Hosts[0]
	diary := t.TempDir()
	writes := func(name, class string) {
		n.create(edited(nodePod(name, sh("main", fmt.Sprintf("trap 'sleep 1; echo %[1]s >> /v/diary; exit 0' TERM; echo marker-%[1]s >/dev/null; while true; do sleep 0.1; done", name))), always, mountShared, func(p *corev1.Pod) {
			p.Spec.TerminationGracePeriodSeconds, p.Spec.PriorityClassName = new(int64(15)), class
			p.Spec.Volumes[0].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: diary}}
		}))
		n.until(name, "runs", readyNow, nil)
	}
	writes("critical", "system-node-critical")
	writes("plain", "")
	pids := processesOn(t, c, h.Name, "marker-")
	stop := func() {
		t.Helper()
		if err := c.Stop(h.Name); err != nil {
			t.Fatal(err)
		}
		eventually(t, "conclave ends", func() error {
			if out, err := c.On(t.Context(), h.Name, "sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -c '^[^ ]*conclave [uj]' || true"); err != nil || out != "0\n" {
				return fmt.Errorf("%s %v", out, err)
			}
			return nil
		})
	}
	start := func() {
		t.Helper()
		if err := c.Start(h.Name, "up"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the API answers", func() error { return c.Connect(t.Context()) })
	}
	stop()
	if now := processesOn(t, c, h.Name, "marker-"); len(now) != 2 || len(pids) != 2 || now[0] != pids[0] || now[1] != pids[1] {
		t.Fatalf("conclave alone has ended: processes %v, were %v", now, pids)
	}
	start()
	n.until("plain", "is there", readyNow, nil)
	if err := os.WriteFile(going, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	stop()
	if now := processesOn(t, c, h.Name, "marker-"); len(now) != 0 {
		t.Errorf("the host goes down, and there are processes %v", now)
	}
	if raw, err := os.ReadFile(filepath.Join(diary, "diary")); string(raw) != "plain\ncritical\n" {
		t.Errorf("the pods ended as %q %v", raw, err)
	}
	if err := os.Remove(going); err != nil {
		t.Fatal(err)
	}
	start()
	for _, name := range []string{"plain", "critical"} {
		p := n.pod(name)
		if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" || conditionOf(p, corev1.DisruptionTarget) != corev1.ConditionTrue {
			t.Errorf("%s: %s", name, shown(p.Status))
		}
	}
}
