// Package hosts tests the built binary on hosts made of namespaces, with real
// containers, through kubectl and client-go.
package hosts

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"conclave/lab"
	"conclave/test/cluster"
)

var shared struct {
	once sync.Once
	c    *cluster.Cluster
	err  error
}

func TestMain(m *testing.M) {
	if lab.IsInit() {
		os.Exit(lab.Init())
	}
	// Tests on hosts wait more than they compute.
	if err := flag.Set("test.parallel", "8"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if shared.c != nil {
		if err := shared.c.Down(); err != nil {
			fmt.Fprintln(os.Stderr, "take the shared cluster down:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func labName(kind string) string { return fmt.Sprintf("%s%d", kind, os.Getpid()%1000000) }

// three is a cluster of three hosts that tests share: they leave its nodes as
// they were, and work in namespaces of their own.
func three(t *testing.T) *cluster.Cluster {
	t.Helper()
	needRoot(t)
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		shared.c, shared.err = cluster.New(ctx, cluster.Config{Name: labName("s"), Hosts: 3})
		if shared.err == nil {
			shared.err = shared.c.Import(ctx, "busybox")
		}
	})
	if shared.err != nil {
		t.Fatal("the shared cluster: ", shared.err)
	}
	return shared.c
}

var owned atomic.Int32

// own is a cluster of this test alone, which may do to it what it likes.
func own(t *testing.T, hosts int, args ...string) *cluster.Cluster {
	t.Helper()
	return ownOf(t, cluster.Config{Hosts: hosts, Args: args})
}

// ownOf is own of any kind; the name is given to it.
func ownOf(t *testing.T, config cluster.Config) *cluster.Cluster {
	t.Helper()
	needRoot(t)
	config.Name = labName("o") + strconv.FormatInt(int64(owned.Add(1)), 36) // tests may run side by side
	c, err := cluster.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dumpLogs(t, c)
		}
		if err := c.Down(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("hosts are made of namespaces, which needs root")
	}
}

// dumpLogs shows the end of what each host's conclave said.
func dumpLogs(t *testing.T, c *cluster.Cluster) {
	for _, h := range c.Hosts {
		raw, err := os.ReadFile(c.LogPath(h))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
		t.Logf("--- %s\n%s", h.Name, strings.Join(lines[max(0, len(lines)-40):], "\n"))
	}
}

// eventually tries until it succeeds; the limit is far beyond what a healthy
// cluster needs on a busy machine.
func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := cluster.Eventually(ctx, try); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// kubectl runs kubectl, which must succeed, and returns what it printed.
func kubectl(t *testing.T, c *cluster.Cluster, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// namespace makes a namespace for one test and removes it afterwards.
func namespace(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	name := "t-" + strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name()))
	name = strings.TrimRight(name[:min(len(name), 50)], "-")
	kubectl(t, c, "create", "namespace", name)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := c.Kubectl(ctx, "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
	return name
}

// apply writes a manifest to the cluster by kubectl.
func apply(t *testing.T, c *cluster.Cluster, ns, manifest string, args ...string) string {
	t.Helper()
	out, err := c.KubectlInput(t.Context(), manifest, append([]string{"apply", "-n", ns, "-f", "-"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mustContain fails where a text lacks one of these.
func mustContain(t *testing.T, what, text string, wanted ...string) {
	t.Helper()
	for _, w := range wanted {
		if !strings.Contains(text, w) {
			t.Errorf("%s lacks %q:\n%s", what, w, text)
		}
	}
}
