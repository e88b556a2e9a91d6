//go:build !faults

package cli

// fault and engineFaults: see faults.go.
func fault(string) func(label string)              { return nil }
func engineFaults(string) func(label string) error { return nil }
