// Command ledger writes docs/conformance.md from the results of the last tests.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"conclave/test/cluster"
	"conclave/test/conformance"
)

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, "ledger:", err)
		os.Exit(1)
	}
}

func write() error {
	root, err := cluster.Root()
	if err != nil {
		return err
	}
	dir := os.Getenv(conformance.ResultsEnv)
	if dir == "" {
		return fmt.Errorf("%s names no folder of results: use `make conformance`", conformance.ResultsEnv)
	}
	results, err := conformance.Results(dir)
	if err != nil {
		return err
	}
	if len(results) == 0 {
		return fmt.Errorf("%s holds no results: run `make hosts` first", dir)
	}
	page := page(conformance.Behaviours(), results)
	return os.WriteFile(filepath.Join(root, "docs", "conformance.md"), []byte(page), 0o644)
}

// page is the ledger as Markdown: a count by area, then every behaviour.
func page(behaviours []conformance.Behaviour, results map[string]conformance.Result) string {
	var areas []string
	total, passed := map[string]int{}, map[string]int{}
	for _, b := range behaviours {
		if total[b.Area] == 0 {
			areas = append(areas, b.Area)
		}
		total[b.Area]++
		if results[b.Codename].Passed {
			passed[b.Area]++
		}
	}
	var out strings.Builder
	out.WriteString("# Conformance\n\nWritten by `make conformance` from the results of our own tests on hosts; do not edit. " +
		"Each row is one behaviour of Kubernetes' conformance list (1.36), by its codename; a behaviour passes when the test " +
		"that is named beside it did, on a cluster of the built binary. The upstream suite itself was not run.\n\n" +
		"| area | pass | of |\n|---|---:|---:|\n")
	sum, all := 0, 0
	for _, a := range areas {
		fmt.Fprintf(&out, "| %s | %d | %d |\n", a, passed[a], total[a])
		sum, all = sum+passed[a], all+total[a]
	}
	fmt.Fprintf(&out, "| **all** | **%d** | **%d** |\n", sum, all)
	for _, a := range areas {
		fmt.Fprintf(&out, "\n## %s\n\n| behaviour | result | test |\n|---|---|---|\n", a)
		for _, b := range behaviours {
			if b.Area != a {
				continue
			}
			r, shown := results[b.Codename]
			result := "no test yet: waits for " + b.Capability
			switch {
			case shown && r.Passed:
				result = "pass"
			case shown:
				result = "**fail**"
			}
			fmt.Fprintf(&out, "| %s | %s | %s |\n", strings.ReplaceAll(b.Codename, "|", "\\|"), result, r.Test)
		}
	}
	return out.String()
}
