package network

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

func testConfig(t *testing.T) Config {
	return Config{
		NodeName: "node1", Client: newMemory(), Dir: filepath.Join(t.TempDir(), "dir"), RunDir: filepath.Join(t.TempDir(), "run"),
		Address: func() netip.Addr { return netip.Addr{} }, PodCIDR: testPodCIDR, ServiceCIDR: testServiceCIDR, ClusterDNS: testDNS,
		Log: slog.New(slog.DiscardHandler),
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"NodeName":           func(c *Config) { c.NodeName = "" },
		"PodCIDR":            func(c *Config) { c.PodCIDR = netip.Prefix{} },
		"PodCIDR6":           func(c *Config) { c.PodCIDR6, c.ServiceCIDR6 = testPodCIDR, testServiceCIDR6 },
		"usable ServiceCIDR": func(c *Config) { c.PodCIDR = testPodCIDR6 },
		"ServiceCIDR":        func(c *Config) { c.ServiceCIDR, c.ClusterDNS = netip.Prefix{}, netip.Addr{} },
		"ClusterDNS":         func(c *Config) { c.ClusterDNS = addr("10.1.1.1") },
	} {
		c := testConfig(t)
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", want, err)
		}
	}
	if os.Geteuid() != 0 {
		if _, err := New(testConfig(t)); err == nil || !strings.Contains(err.Error(), "root") {
			t.Errorf("not root: %v", err)
		}
	}
}

func TestProbeIsQuick(t *testing.T) {
	needRoot(t)
	start := time.Now()
	if err := probe([]*family{ip4}); err != nil {
		t.Fatal(err)
	}
	t.Logf("probed in %s", time.Since(start))
}

// Attach waits for the range, and says so when it may wait no longer.
func TestAttachWaits(t *testing.T) {
	needRoot(t)
	n, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := n.Attach(ctx, podNamed("a")); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "range") {
		t.Errorf("got %v", err)
	}
	if err := n.Ready(); err == nil {
		t.Error("ready before Run")
	}
	host := podNamed("b")
	host.Spec.HostNetwork = true
	if path, _, err := n.Attach(ctx, host); path != "" || err != nil {
		t.Errorf("a pod on the host's network got %q, %v", path, err)
	}
	if err := n.Detach(ctx, "../never"); err != nil {
		t.Error(err)
	}
}

// The address of a pod that the cluster has not known for long is free again.
func TestLeaksAreReclaimed(t *testing.T) {
	needRoot(t)
	n, err := New(testConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ipam.setRange(ranges{first: netip.MustParsePrefix("10.244.1.0/24")}); err != nil {
		t.Fatal(err)
	}
	reserveAll(t, n.ipam, "known", "leaked")
	now, leaks := time.Unix(1000, 0), map[types.UID]time.Time{}
	if wait := n.reclaim(leaks, now); wait != 0 || len(leaks) != 0 {
		t.Errorf("judged before the cluster's pods were seen: %s, %v", wait, leaks)
	}
	known := podNamed("known")
	pods := n.cluster.handlers()["pods"]
	pods.Replace(nil)
	pods.Apply("ADDED", known)
	for _, step := range []struct {
		after time.Duration
		wait  time.Duration
		left  int
	}{{0, leakAge, 2}, {leakAge / 2, leakAge / 2, 2}, {leakAge / 2, 0, 1}, {time.Hour, 0, 1}} {
		now = now.Add(step.after)
		if wait, left := n.reclaim(leaks, now), len(n.ipam.all()); wait != step.wait || left != step.left {
			t.Errorf("after %s: wait %s, %d left; want %+v", step.after, wait, left, step)
		}
	}
	if _, ok := n.ipam.get("uid-known"); !ok {
		t.Error("the wrong address was reclaimed")
	}
}
