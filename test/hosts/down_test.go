package hosts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"conclave/test/cluster"
)

// machine is all of this machine that a lab may leave something in. Only what
// carries the lab's name is looked at: other tests run at the same time.
func machine(t *testing.T, name, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for what, script := range map[string]string{
		"processes":  `for p in /proc/[0-9]*; do cat $p/cmdline 2>/dev/null | tr '\0' ' ' | grep -e '` + name + `' -e '` + dir + `' | grep -v 'for p in'; done; true`,
		"links":      `ls /sys/class/net | grep -e '` + name + `'; true`,
		"mounts":     `awk '{print $5}' /proc/self/mountinfo | grep -e '` + dir + `'; true`,
		"cgroups":    `find /sys/fs/cgroup -type d -path '*conclave-lab/` + name + `*'; true`,
		"nft":        `nft list tables | grep -e conclave -e '` + name + `'; true`,
		"namespaces": `ls /run/netns 2>/dev/null | grep -e '` + name + `'; true`,
	} {
		out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", what, err, out)
		}
		all[what] = strings.TrimSpace(string(out))
	}
	return all
}

// TestLabDownLeavesNothing takes a lab down while pods run on every host, of a
// cluster that encrypts: its nodes have one process more.
func TestLabDownLeavesNothing(t *testing.T) {
	needRoot(t)
	c, err := cluster.New(t.Context(), cluster.Config{Name: labName("d"), Hosts: 2, Up: []string{"--encrypt"}})
	if err != nil {
		t.Fatal(err)
	}
	name, dir := c.Name, c.Dir
	down := false
	t.Cleanup(func() {
		if !down {
			if err := c.Down(); err != nil {
				t.Error(err)
			}
		}
	})
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.Hosts {
		apply(t, c, "default", strings.NewReplacer("counter", "counter-"+h.Name, "leaver", "leaver-"+h.Name).Replace(fmt.Sprintf(counter, h.Name, h.Name)))
	}
	kubectl(t, c, "wait", "pods", "--all", "--for=condition=Ready", "--timeout=60s")
	during := machine(t, name, dir)
	for _, what := range []string{"processes", "links", "cgroups"} {
		if during[what] == "" {
			t.Errorf("no %s of a running lab are seen: the test looks in the wrong place", what)
		}
	}
	out, err := exec.CommandContext(t.Context(), c.Binary, "lab", "down", "--lab", name, "--lab-dir", filepath.Join(dir, "lab")).CombinedOutput()
	if err != nil {
		t.Fatalf("lab down: %v: %s", err, out)
	}
	down = true
	if err := os.RemoveAll(dir); err != nil { // the test's own kubeconfig and caches
		t.Error(err)
	}
	for what, left := range machine(t, name, dir) {
		if left != "" {
			t.Errorf("%s are left:\n%s", what, left)
		}
	}
}
