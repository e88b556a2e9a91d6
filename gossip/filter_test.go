package gossip

import (
	"fmt"
	"testing"
)

// TestFilter: what went in is found, also in a folded filter, and what did not is
// found rarely.
func TestFilter(t *testing.T) {
	for _, c := range []struct {
		keys, bytes int
		wrong       float64
	}{{0, 0, 0}, {1, 16, 0.001}, {20, 64, 0.02}, {60, 128, 0.02}, {200, 128, 0.15}} {
		var keys []string
		for i := range c.keys {
			keys = append(keys, fmt.Sprintf("sha256:%d", i))
		}
		f := NewFilter(keys)
		if len(f) != c.bytes || !f.valid() {
			t.Errorf("%d keys: %d bytes", c.keys, len(f))
		}
		for g := f; len(g) > 0; g = g.fold() {
			for _, k := range keys {
				if !g.Has(k) {
					t.Fatalf("%d keys in %d bytes: %s is not found", c.keys, len(g), k)
				}
			}
		}
		wrong := 0
		for i := range 10_000 {
			if f.Has(fmt.Sprintf("other:%d", i)) {
				wrong++
			}
		}
		if got := float64(wrong) / 10_000; got > c.wrong {
			t.Errorf("%d keys: %.3f of what is not there is found", c.keys, got)
		}
	}
}

// TestMetaMakesRoom: a filter becomes coarser before an address is left out.
func TestMetaMakesRoom(t *testing.T) {
	var keys []string
	for i := range 100 {
		keys = append(keys, fmt.Sprint(i))
	}
	m := Meta{Name: string(make([]byte, 253)), Zone: string(make([]byte, 63+80)), Holds: NewFilter(keys), Role: RoleNode}
	b, err := m.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMeta(b)
	if err != nil || len(got.Holds) != 64 || !got.Holds.Has("99") {
		t.Errorf("%d bytes: a filter of %d, %v", len(b), len(got.Holds), err)
	}
}
