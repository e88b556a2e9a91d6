package consensus

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// DiskLatency measures what a synchronous write of 4 KiB to the disk below dir
// takes: the median of five. It is what a voter's every write would wait for,
// so masters are preferred where it is small. It leaves no file behind.
func DiskLatency(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, ".latency-")
	if err != nil {
		return 0, fmt.Errorf("measure the disk: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	page := make([]byte, 4096)
	var took []time.Duration
	for range 5 {
		start := time.Now()
		if _, err := f.WriteAt(page, 0); err != nil {
			return 0, fmt.Errorf("measure the disk at %s: %w", filepath.Dir(f.Name()), err)
		}
		if err := f.Sync(); err != nil {
			return 0, fmt.Errorf("measure the disk at %s: %w", filepath.Dir(f.Name()), err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
