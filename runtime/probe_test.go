package runtime

import (
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPodProgram(t *testing.T) {
	if _, err := podProgram(Config{PodBinary: "/no/such"}); !errors.Is(err, ErrNoPodProgram) || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("a path that is not there: %v", err)
	}
	cfg := Config{Root: t.TempDir()}
	path, err := podProgram(cfg)
	packed, oerr := embedded.Open(podProgramFile)
	if oerr != nil { // this build has none: it must say how to make it
		if !errors.Is(err, ErrNoPodProgram) || !strings.Contains(err.Error(), "go build") {
			t.Errorf("without an embedded program: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		again, err := podProgram(cfg)
		got, rerr := os.ReadFile(path)
		if err != nil || again != path || string(got) != string(want) {
			t.Errorf("%s, then %s: %d bytes (%v, %v)", path, again, len(got), err, rerr)
		}
	}
	check()
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	check()
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again without need: %v", err)
	}
	// Damaged, or of another version, it is replaced.
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	check()
	old := filepath.Join(filepath.Dir(path), "conclave-pod-0-0")
	if err := errors.Join(os.WriteFile(old, nil, 0o755), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	check()
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an older version: %v", err)
	}
}

func TestProbe(t *testing.T) {
	if os.Geteuid() == 0 {
		// The upper layer cannot be on a filesystem without what overlayfs needs.
		if err := probeOverlay("/proc/self"); err == nil {
			t.Error("/proc was taken as a data folder")
		}
		return
	}
	if err := probe(Config{Root: t.TempDir()}); !errors.Is(err, ErrNotRoot) {
		t.Errorf("not root: %v", err)
	}
}
