package hosts

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"conclave/test/cluster"
)

func sha(raw []byte) string {
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:])
}

// traces is all of a host that conclave may leave something in: processes,
// links, addresses, routes, namespaces, nft tables, mounts, cgroups.
func traces(t *testing.T, c *cluster.Cluster, host string) map[string][]string {
	t.Helper()
	h, err := c.Host(host)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for what, script := range map[string]string{
		// Who is there is known before the first tr begins, and there is no pipe
		// whose other end would be among them.
		"processes":          `for p in /proc/[0-9]*; do [ "${p#/proc/}" = $$ ] || tr '\0' ' ' < $p/cmdline; echo; done 2>/dev/null`,
		"links":              `ls /proc/sys/net/ipv4/conf`,
		"addresses":          `ip -o address | awk '{print $2, $4}'`,
		"routes":             `ip route`,
		"nft":                `nft list tables`,
		"mounts":             `awk '{print $5}' /proc/self/mountinfo`,
		"cgroups":            `find /sys/fs/cgroup -type d -path '*` + c.CgroupParent(h) + `*'; true`, // other clusters' come and go meanwhile
		"network namespaces": `ls /run/netns 2>/dev/null; true`,
	} {
		out, err := c.On(t.Context(), host, "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if line = strings.TrimSpace(line); line != "" {
				all[what] = append(all[what], line)
			}
		}
		sort.Strings(all[what])
	}
	return all
}

// TestLeaveLeavesNothing compares a host before it joined with itself after it left.
func TestLeaveLeavesNothing(t *testing.T) {
	t.Parallel()
	c := own(t, 2)
	if err := c.Import(t.Context(), "busybox"); err != nil {
		t.Fatal(err)
	}
	guest, err := c.Add()
	if err != nil {
		t.Fatal(err)
	}
	name := guest.Name
	before := traces(t, c, name)
	token, err := c.Ask(t.Context(), "token", "--bare")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(name, "join", strings.TrimSpace(token)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the third node is ready", func() error {
		out, err := c.Kubectl(t.Context(), "get", "node", name)
		if err == nil && !strings.Contains(out, " Ready ") {
			err = fmt.Errorf("it is %s", out)
		}
		return err
	})
	if _, err := c.On(t.Context(), name, c.Binary, "image", "import", filepath.Join(c.Root, "bin", "images", "busybox.tar")); err != nil {
		t.Fatal(err)
	}
	apply(t, c, "default", deployment)
	apply(t, c, "default", fmt.Sprintf(counter, name, name))
	kubectl(t, c, "wait", "pod/counter", "pod/leaver", "--for=condition=Ready", "--timeout=60s")
	kubectl(t, c, "rollout", "status", "deployment/tick", "--timeout=60s")

	out, err := c.On(t.Context(), name, c.Binary, "leave")
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, "leave", out, "left")
	eventually(t, "nothing of conclave is on the host", func() error {
		after := traces(t, c, name)
		for what := range before {
			if got, want := fmt.Sprint(after[what]), fmt.Sprint(before[what]); got != want {
				return fmt.Errorf("%s were\n%s\nand are\n%s", what, strings.Join(before[what], "\n"), strings.Join(after[what], "\n"))
			}
		}
		return nil
	})
	h, err := c.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(c.DataDir(h)); err != nil || len(entries) > 0 {
		t.Errorf("the data folder holds %v (%v)", entries, err)
	}
	if out := kubectl(t, c, "get", "nodes", "-o", "name"); strings.Count(out, "node/") != 2 || strings.Contains(out, name) {
		t.Errorf("the nodes are %s", out)
	}
	eventually(t, "the application runs on the others", func() error {
		ready, err := readyPods(t.Context(), c)
		if err == nil && ready != 2 {
			err = fmt.Errorf("%d pods are ready", ready)
		}
		return err
	})
}
