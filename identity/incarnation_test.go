package identity

import (
	"path/filepath"
	"testing"
)

// TestIncarnation: only the CA begins one, a node remembers the newest, and an
// older one changes nothing.
func TestIncarnation(t *testing.T) {
	dir := t.TempDir()
	node, err := Open(filepath.Join(dir, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	a, err := node.Found(t.Context(), FoundOptions{Name: "n1", MasterDir: filepath.Join(dir, "master")})
	if err != nil {
		t.Fatal(err)
	}
	other, err := newAuthority(FoundOptions{Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	first, err := a.Proclaim(node.Incarnation(), "n1", "recover")
	if err != nil {
		t.Fatal(err)
	}
	second, err := a.Proclaim(first, "n1", "recover")
	if err != nil || second.Compare(first) <= 0 {
		t.Fatalf("%+v does not follow %+v (%v)", second, first, err)
	}
	forged := second
	forged.Number += 1000
	foreign, err := other.Proclaim(second, "n1", "recover")
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]Incarnation{"a changed one": forged, "another cluster's": foreign, "an unsigned one": {Number: 9, Cluster: a.Cluster().ID}} {
		if newer, err := node.Adopt(bad); err == nil || newer {
			t.Errorf("%s was adopted", what)
		}
	}
	for _, step := range []struct {
		i     Incarnation
		newer bool
	}{{first, true}, {first, false}, {second, true}, {first, false}, {Incarnation{}, false}} {
		if newer, err := node.Adopt(step.i); err != nil || newer != step.newer {
			t.Errorf("adopting %d: %v, %v", step.i.Number, newer, err)
		}
	}
	again, err := Open(filepath.Join(dir, "identity"))
	if err != nil || again.Incarnation().Compare(second) != 0 {
		t.Errorf("after a restart it knows %+v, %v", again.Incarnation(), err)
	}
}
