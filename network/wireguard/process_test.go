package wireguard

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// Who brings packets waits while too many are under way, and goes on as soon as
// some have left.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(newTraffic())
		begun := time.Now()
		g.wait()
		g.passed(mostInFlight - 1)
		g.wait() // there is room for one
		g.passed(40)
		through := make(chan time.Duration, 1)
		go func() { g.wait(); through <- time.Since(begun) }()
		time.Sleep(stuckAfter / 2)
		g.left(10)
		synctest.Wait()
		if len(through) != 0 {
			t.Error("somebody passed while too many were under way")
		}
		g.left(30)
		if d := <-through; d != stuckAfter/2 {
			t.Errorf("room was made after %v, and used after %v", stuckAfter/2, d)
		}
	})
}

// Packets that are dropped on the way do not stop it for good.
func TestGateForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(newTraffic())
		for range 3 {
			begun := time.Now()
			g.passed(2 * mostInFlight)
			g.wait()
			if d := time.Since(begun); d != stuckAfter {
				t.Errorf("it waited for %v, not %v", d, stuckAfter)
			}
		}
		g.left(5 * mostInFlight) // they were only late
		g.wait()
	})
}

func TestDataPackets(t *testing.T) {
	packet := func(kind byte, length int) []byte {
		b := make([]byte, length)
		if length > 0 {
			b[0] = kind
		}
		return b
	}
	bufs := [][]byte{
		packet(device.MessageInitiationType, device.MessageInitiationSize), packet(device.MessageTransportType, device.MessageKeepaliveSize),
		packet(device.MessageTransportType, device.MessageKeepaliveSize+16), packet(device.MessageCookieReplyType, device.MessageCookieReplySize), {},
	}
	if n := data(bufs, nil); n != 1 {
		t.Errorf("%d packets carry something", n)
	}
	if n := data(bufs, []int{0, 0, device.MessageKeepaliveSize, 0, 0}); n != 0 {
		t.Errorf("%d of those that are shorter than their buffers carry something", n)
	}
}

// Memory is given back once, after the process has been busy, and not while it
// is or where little passes.
func TestTidy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counted, done := newTraffic(), make(chan struct{})
		var rests atomic.Int32
		go func() { defer close(done); tidy(counted, func() { rests.Add(1) }) }()
		want := func(n int32, when string) {
			t.Helper()
			if got := rests.Load(); got != n {
				t.Errorf("%d rests %s, not %d", got, when, n)
			}
		}
		pass := func(packets int) {
			for range 100 {
				counted.add(packets)
				time.Sleep(time.Second)
			}
		}
		pass(1)
		want(0, "where little passes")
		pass(busy)
		want(0, "while much passes")
		time.Sleep(3 * restAfter)
		want(1, "afterwards")
		pass(1)
		time.Sleep(time.Hour)
		want(1, "in an hour of next to nothing")
		close(counted.some)
		<-done
	})
}
