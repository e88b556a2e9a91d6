package hosts

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"conclave/lab"
	"conclave/test/cluster"
)

const staticPodText = `apiVersion: v1
kind: Pod
metadata: {name: NAME, labels: {app: static}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "conclave.test/busybox:1", command: [sh, -c, "echo MARK; while true; do sleep 3600; done"]}
`

// putStatic writes a file of a host's folder of static pods.
func putStatic(t *testing.T, c *cluster.Cluster, h *lab.Host, name, mark string) string {
	t.Helper()
	path := filepath.Join(c.DataDir(h), "manifests", name+".yaml")
	text := strings.NewReplacer("NAME", name, "MARK", mark).Replace(staticPodText)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return path
}

// TestStaticPods has a node run what the files of its folder describe.
func TestStaticPods(t *testing.T) {
	c := three(t)
	t.Parallel()
	h := c.Hosts[1]
	n := &nodeTest{t, c, metav1.NamespaceDefault}
	name := "static-" + h.Name
	path := putStatic(t, c, h, "static", "static-one")
	ready := func() *corev1.Pod { return n.until(name, "is shown", readyNow, nil) }
	eventually(t, "the static pod is shown", func() error {
		_, err := c.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
	p := ready()
	hash := p.Annotations["kubernetes.io/config.hash"]
	if a := p.Annotations; a["kubernetes.io/config.source"] != "file" || hash == "" || a[corev1.MirrorPodAnnotationKey] != hash || p.Spec.NodeName != h.Name {
		t.Errorf("mirror: %s", shown(p.ObjectMeta))
	}
	if len(p.OwnerReferences) != 1 || p.OwnerReferences[0].Kind != "Node" || p.OwnerReferences[0].Name != h.Name {
		t.Errorf("its owner: %s", shown(p.ObjectMeta))
	}
	if pids := processesOn(t, c, h.Name, "static-one"); len(pids) != 1 {
		t.Fatalf("processes %v", pids)
	}
	pid := processesOn(t, c, h.Name, "static-one")[0]
	if out := kubectl(t, c, "logs", name); out != "static-one\n" {
		t.Errorf("log: %q", out)
	}
	if out := kubectl(t, c, "exec", name, "--", "echo", "inside"); out != "inside\n" {
		t.Errorf("exec: %q", out)
	}
	eventually(t, "its events are shown", func() error {
		if out := kubectl(t, c, "describe", "pod", name); !strings.Contains(out, "Container started") {
			return errors.New(out)
		}
		return nil
	})
	if out, err := c.Kubectl(t.Context(), "debug", name, "--image=conclave.test/busybox:1", "--profile=general", "--", "true"); err == nil || !strings.Contains(out, "static pods do not support ephemeral containers") {
		t.Errorf("debug: %s", out)
	}

	// Whoever deletes what shows it, deletes only that.
	kubectl(t, c, "delete", "pod", name, "--wait=false")
	eventually(t, "the mirror comes back", func() error {
		again, err := c.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if again.UID == p.UID || !readyNow(again) {
			return errors.New(shown(again.Status))
		}
		return nil
	})
	if pids := processesOn(t, c, h.Name, "static-one"); len(pids) != 1 || pids[0] != pid {
		t.Errorf("the container was restarted: %v, was %d", pids, pid)
	}

	// A change of the file is another pod.
	putStatic(t, c, h, "static", "static-two")
	eventually(t, "the pod is another", func() error {
		if one, two := len(processesOn(t, c, h.Name, "static-one")), len(processesOn(t, c, h.Name, "static-two")); one != 0 || two != 1 {
			return fmt.Errorf("%d of the old, %d of the new", one, two)
		}
		return nil
	})
	if p := ready(); p.Annotations["kubernetes.io/config.hash"] == hash {
		t.Errorf("mirror: %s", shown(p.ObjectMeta))
	}
	// One that cannot be read changes nothing.
	if err := os.WriteFile(path, []byte("apiVersion: v1\nkind: Po"), 0o644); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "delete", "pod", name, "--wait=false") // to see something happen meanwhile
	eventually(t, "the mirror comes back", func() error {
		_, err := c.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
	if two := processesOn(t, c, h.Name, "static-two"); len(two) != 1 {
		t.Errorf("processes %v", two)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pod has gone with its file", func() error {
		if two := processesOn(t, c, h.Name, "static-two"); len(two) > 0 {
			return fmt.Errorf("processes %v", two)
		}
		if p, err := c.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{}); err == nil {
			return errors.New(shown(p.ObjectMeta))
		}
		return nil
	})
}

// TestStaticPodsWithoutMasters starts a static pod on a node that has no master
// in sight, shows it when one is back, and stops one whose file went meanwhile.
func TestStaticPodsWithoutMasters(t *testing.T) {
	t.Parallel()
	c := own(t, 2)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	n := &nodeTest{t, c, metav1.NamespaceDefault}
	master, h := c.Hosts[0], c.Hosts[1]
	old := putStatic(t, c, h, "old", "static-old")
	eventually(t, "the first runs", func() error {
		if pids := processesOn(t, c, h.Name, "static-old"); len(pids) != 1 {
			return fmt.Errorf("processes %v", pids)
		}
		return nil
	})
	if err := errors.Join(c.Kill(master.Name), c.Kill(h.Name)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(old); err != nil {
		t.Fatal(err)
	}
	putStatic(t, c, h, "new", "static-new")
	if err := c.Start(h.Name, "up"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new one runs, the old one does not", func() error {
		if was, is := processesOn(t, c, h.Name, "static-old"), processesOn(t, c, h.Name, "static-new"); len(was) != 0 || len(is) != 1 {
			return fmt.Errorf("old %v, new %v", was, is)
		}
		return nil
	})
	pid := processesOn(t, c, h.Name, "static-new")[0]
	if err := c.Start(master.Name, "up"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is shown", func() error {
		if err := c.Connect(t.Context()); err != nil {
			return err
		}
		p, err := c.Client.CoreV1().Pods("default").Get(t.Context(), "new-"+h.Name, metav1.GetOptions{})
		if err == nil && !readyNow(p) {
			err = errors.New(shown(p.Status))
		}
		return err
	})
	eventually(t, "the old one is shown no more", func() error {
		if p, err := c.Client.CoreV1().Pods("default").Get(t.Context(), "old-"+h.Name, metav1.GetOptions{}); err == nil {
			return errors.New(shown(p.ObjectMeta))
		}
		return nil
	})
	if pids := processesOn(t, c, h.Name, "static-new"); len(pids) != 1 || pids[0] != pid || restarts(n.pod("new-"+h.Name)) != 0 {
		t.Errorf("it was restarted: %v, was %d", pids, pid)
	}
}
