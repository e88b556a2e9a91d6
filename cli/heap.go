package cli

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// slack is how much garbage the process may hold, in bytes, where the collector's
// own rule, as much as what is alive, would let it hold more: a master of a large
// cluster would need twice its state, on a machine that may have a gigabyte.
const slack = 64 << 20

// leastPercent bounds what that costs: with so many hundredths of what is alive
// between two collections, each pays at most for itself.
const leastPercent = 20

// gcPercent is the collector's setting for so many bytes that are alive.
func gcPercent(live uint64) int {
	return int(min(100, max(leastPercent, 100*slack/max(live, 1))))
}

// boundGarbage keeps the collector's setting by what is alive, after every
// collection, for as long as the process lives. It takes no goroutine and no timer.
func boundGarbage() {
	if os.Getenv("GOGC") != "" { // whoever sets it knows better
		return
	}
	set := 100
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	type sentinel struct{ _ [32]byte } // too large to share its memory with others
	var collected func(*sentinel)
	collected = func(*sentinel) {
		metrics.Read(sample)
		// A change stops the world for a moment: not for a little.
		if p := gcPercent(sample[0].Value.Uint64()); p != set && (p == 100 || p*10 < set*9 || p*9 > set*10) {
			debug.SetGCPercent(p)
			set = p
		}
		// What nobody holds is found at the next collection.
		runtime.SetFinalizer(new(sentinel), collected)
	}
	collected(nil)
}
