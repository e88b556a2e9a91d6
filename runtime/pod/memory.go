//go:build linux && cgo

package main

import (
	"runtime/debug"
	"time"
)

// limitMemory bounds what the few starts in a pod's life may let pile up. The
// heap at rest is some hundred kilobytes; collecting more often than this
// costs more memory, in the collector's own stacks, than it saves.
func limitMemory() {
	debug.SetMemoryLimit(8 << 20)
}

// settle gives memory back to the kernel once nothing has happened for a
// while. It is called after each change.
func (s *server) settle() {
	s.settleTimer.Reset(settleAfter)
}

const settleAfter = 500 * time.Millisecond
