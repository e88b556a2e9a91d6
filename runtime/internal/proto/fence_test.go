package proto

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFence(t *testing.T) {
	path := filepath.Join(t.TempDir(), FenceFile)
	if _, err := OpenFence(path, false); !os.IsNotExist(err) {
		t.Fatalf("a reader of a fence that is not there: %v", err)
	}
	w, err := OpenFence(path, true)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenFence(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	expect := func(what string, epoch uint64, up bool) {
		t.Helper()
		if e, u := r.Up(); e != epoch || u != up {
			t.Errorf("%s: epoch %d, up %v; want %d, %v", what, e, u, epoch, up)
		}
	}
	expect("new", 0, false)
	hold := func(ahead time.Duration) bool { return w.Hold(SinceBoot() + ahead) }
	if hold(-time.Second) {
		t.Error("an instant of the past began an epoch")
	}
	expect("held for the past", 0, false)
	if !hold(time.Hour) {
		t.Error("the first hold began no epoch")
	}
	expect("held", 1, true)
	if hold(2*time.Hour) || hold(time.Minute) {
		t.Error("a fence that was up began an epoch")
	}
	if until, _ := r.Read(); until < SinceBoot()+time.Hour {
		t.Error("an older answer moved the fence back")
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The next writer, after a restart, finds it as it was.
	if w, err = OpenFence(path, true); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	expect("opened again", 1, true)
	if hold(3 * time.Hour) {
		t.Error("a restart began an epoch though the fence was up")
	}
	*w.word(0) = 0 // long ago
	expect("run out", 1, false)
	if !hold(time.Hour) {
		t.Error("after it was down, no epoch began")
	}
	expect("back", 2, true)

	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFence(short, false); err == nil {
		t.Error("a file that is too short was mapped")
	}
}
