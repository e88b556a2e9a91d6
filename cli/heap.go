package cli

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
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

// restAfter is how long after a collection without another the process counts
// as at rest: a busy one collects more often.
const restAfter = 15 * time.Second

// leastReturn is for how many bytes a process at rest collects once more.
const leastReturn = 4 << 20

// worthReturning says whether a process at rest should give memory back to the
// kernel, which costs one collection: it was alive bytes at the last one, has
// objects now, whether alive or not, and holds free bytes for those to come.
// The kernel gets the like from Go by itself only within minutes, and never
// what lies between the collector's goal and what is alive, which is half.
func worthReturning(live, objects, free uint64) bool {
	return max(objects, live)-live+free > max(leastReturn, live/4)
}

// heapSize are the samples that worthReturning asks for, in its order.
var heapSize = []string{"/gc/heap/live:bytes", "/memory/classes/heap/objects:bytes", "/memory/classes/heap/free:bytes"}

// boundGarbage keeps the collector's setting by what is alive, after every
// collection, and gives memory back once the process is at rest, for as long as
// it lives. It takes one timer and no goroutine.
func boundGarbage() {
	if os.Getenv("GOGC") != "" { // whoever sets it knows better
		return
	}
	set := 100
	sample := []metrics.Sample{{Name: heapSize[0]}}
	rest := time.AfterFunc(restAfter, func() {
		samples := make([]metrics.Sample, len(heapSize))
		for i := range samples {
			samples[i].Name = heapSize[i]
		}
		metrics.Read(samples)
		if worthReturning(samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()) {
			debug.FreeOSMemory()
		}
		if n, err := mappedFiles(); err == nil && n > mappedAtRest {
			_ = unmapProgram() // what it cannot give back stays as it was
		}
	})
	type sentinel struct{ _ [32]byte } // too large to share its memory with others
	var collected func(*sentinel)
	collected = func(*sentinel) {
		metrics.Read(sample)
		// A change stops the world for a moment: not for a little.
		if p := gcPercent(sample[0].Value.Uint64()); p != set && (p == 100 || p*10 < set*9 || p*9 > set*10) {
			debug.SetGCPercent(p)
			set = p
		}
		rest.Reset(restAfter)
		// What nobody holds is found at the next collection.
		runtime.SetFinalizer(new(sentinel), collected)
	}
	collected(nil)
}
