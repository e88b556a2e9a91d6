//go:build faults

package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// fault is what a build for tests does at each labelled step: it notes the
// label in the data folder, and dies there if the folder's file "fault" says
// so, as if it had been killed.
func fault(dataDir string) func(label string) {
	return func(label string) {
		if f, err := os.OpenFile(filepath.Join(dataDir, "faults-seen"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			fmt.Fprintln(f, label)
			f.Close()
		}
		path := filepath.Join(dataDir, "fault")
		if text, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(text)) != label {
			return
		}
		_ = os.Remove(path)
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {}
	}
}

// engineFaults is fault in the form that the runtime takes.
func engineFaults(dataDir string) func(label string) error {
	f := fault(dataDir)
	return func(label string) error {
		f(label)
		return nil
	}
}
