// Package conformance keeps the ledger of Kubernetes' conformance behaviours:
// a test names the behaviour that it shows, and what passed ends up in
// docs/conformance.md. It owns the folder of results, one file per behaviour,
// and nothing that runs.
package conformance

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Behaviour is one row of the conformance list of Kubernetes 1.36.
type Behaviour struct {
	Area, Name, Codename, Release, Statement, Capability string
}

//go:embed behaviours.tsv
var table string

// Behaviours are all rows, in the list's order.
func Behaviours() []Behaviour {
	var all []Behaviour
	for i, line := range strings.Split(strings.TrimSpace(table), "\n") {
		f := strings.Split(line, "\t")
		if i == 0 {
			continue
		}
		all = append(all, Behaviour{Area: f[0], Name: f[1], Codename: f[2], Release: f[3], Statement: f[5], Capability: f[6]})
	}
	return all
}

// Result is what a test showed of a behaviour.
type Result struct {
	Codename, Test string
	Passed         bool
}

// ResultsEnv names the folder of results; without it nothing is recorded.
const ResultsEnv = "CONCLAVE_CONFORMANCE_DIR"

// Shows says that the test that calls it shows one behaviour, whole: its result
// is the test's own. An unknown codename fails the test.
func Shows(t *testing.T, codename string) {
	t.Helper()
	if !slices.ContainsFunc(Behaviours(), func(b Behaviour) bool { return b.Codename == codename }) {
		t.Fatalf("no behaviour has the codename %q", codename)
	}
	t.Cleanup(func() {
		if t.Skipped() {
			return
		}
		if err := record(Result{codename, t.Name(), !t.Failed()}); err != nil {
			t.Errorf("record the result: %v", err)
		}
	})
}

func record(r Result) error {
	dir := os.Getenv(ResultsEnv)
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(r.Codename))
	return os.WriteFile(filepath.Join(dir, hex.EncodeToString(sum[:8])+".json"), append(raw, '\n'), 0o644)
}

// Results reads what the tests recorded, by codename.
func Results(dir string) (map[string]Result, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	all := map[string]Result{}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var r Result
		if err := json.Unmarshal(raw, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		all[r.Codename] = r
	}
	return all, nil
}
