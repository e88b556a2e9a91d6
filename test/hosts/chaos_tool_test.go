package hosts

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"conclave/test/cluster"
)

// TestChaosTool runs a short drill as a user would: `make chaos` runs a longer
// one, of all kinds of fault.
func TestChaosTool(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root, err := cluster.Root()
	if err != nil {
		t.Fatal(err)
	}
	binary := os.Getenv("CONCLAVE_BINARY")
	if binary == "" {
		binary = filepath.Join(root, "bin", "conclave")
	}
	dir, err := os.MkdirTemp("/var/tmp", "conclave-") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	page := filepath.Join(dir, "report.html")
	cmd := exec.CommandContext(t.Context(), binary, "lab", "chaos", "--lab", labName("x"), "--lab-dir", filepath.Join(dir, "labs"),
		"--nodes", "5", "--duration", "15s", "--seed", "1", "--report", page, "--history", filepath.Join(dir, "history.jsonl"))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it heals and removes what it made
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, "the report", string(out), "no violation", "again: conclave lab chaos --nodes 5 --duration 15s --seed 1")
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	mustContain(t, "the page", string(html), "no violation", "<svg", "--seed 1")
	if left, err := os.ReadDir(filepath.Join(dir, "labs")); err != nil || len(left) > 0 {
		t.Errorf("left of the lab: %v (%v)", left, err)
	}
}
