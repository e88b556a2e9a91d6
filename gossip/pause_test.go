package gossip

import (
	"net/netip"
	"testing"
	"time"
)

func TestSearchPause(t *testing.T) {
	var s searchPause
	gone := map[string]netip.AddrPort{"a": {}}
	if !s.changed(gone) {
		t.Error("nobody was newly missing")
	}
	var away time.Duration
	for away < 10*time.Minute {
		wait := s.next()
		if wait > searchFirst+away/3 || wait > searchMost || wait < searchFirst*3/4 {
			t.Fatalf("away for %v, the next search is after %v", away, wait)
		}
		if away > 2*time.Minute && wait < searchMost*3/4 {
			t.Fatalf("away for %v, and still sought after %v", away, wait)
		}
		away += wait
	}
	if s.changed(gone) || s.next() < searchMost*3/4 {
		t.Error("the same one missing began again")
	}
	if gone = map[string]netip.AddrPort{"a": {}, "b": {}}; !s.changed(gone) || s.next() > searchFirst {
		t.Error("another one missing did not")
	}
}
