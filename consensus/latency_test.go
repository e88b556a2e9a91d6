package consensus

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDiskLatency(t *testing.T) {
	dir := t.TempDir()
	took, err := DiskLatency(dir)
	if err != nil || took <= 0 {
		t.Errorf("%v, %v", took, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := DiskLatency(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there has a latency")
	}
}
