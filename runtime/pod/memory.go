//go:build linux && cgo

package main

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// limitMemory bounds what the few starts in a pod's life may let pile up.
func limitMemory() {
	debug.SetMemoryLimit(8 << 20)
}

// rest gives memory back to the kernel when nothing has happened for a while,
// but only once enough has happened: the start of a container leaves some
// hundred kilobytes of garbage, mostly among what stays, and the first
// collection makes as much for itself that is never given back. Asking the Go
// runtime how much garbage there is costs more than there is.
type rest struct {
	timer   *time.Timer
	changes atomic.Int32 // since the last collection
}

const (
	settleAfter = 500 * time.Millisecond
	// fewChanges are those of the starts of three containers.
	fewChanges = 12
)

func newRest() *rest {
	r := new(rest)
	r.timer = time.AfterFunc(settleAfter, r.settled)
	return r
}

// change is called after each.
func (r *rest) change() {
	r.changes.Add(1)
	r.timer.Reset(settleAfter)
}

func (r *rest) settled() {
	if r.changes.Load() > fewChanges {
		r.changes.Store(0)
		debug.FreeOSMemory()
	}
}
