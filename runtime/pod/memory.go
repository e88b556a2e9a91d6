//go:build linux && cgo

package main

import (
	"runtime/debug"
	"time"
)

// limitMemory makes the collector run early: the heap at rest is some hundred
// kilobytes, and the few starts in a pod's life may cost a little more time.
func limitMemory() {
	debug.SetGCPercent(40)
	debug.SetMemoryLimit(8 << 20)
}

// settle gives memory back to the kernel once nothing has happened for a
// while. It is called after each change.
func (s *server) settle() {
	s.settleTimer.Reset(settleAfter)
}

const settleAfter = 500 * time.Millisecond
