package liveness

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		name string
		f    facts
		want State
	}{
		{"well", facts{gossip: true}, Alive},
		{"well again after death", facts{gossip: true, before: Dead}, Alive},
		{"doubted, knock under way", facts{before: Alive}, Alive},
		{"doubted, silent", facts{knock: silent}, Suspect},
		{"doubted, silent, lease ended", facts{knock: silent, expired: true}, Dead},
		{"doubted, refused", facts{knock: refused}, Refused},
		{"doubted, refused, lease ended long ago", facts{knock: refused, expired: true}, Refused},
		{"doubted, but its port is open", facts{knock: open, expired: true, patient: true}, Suspect},
		{"doubted, its port open for too long", facts{knock: open, expired: true}, Dead},
		{"gossips but does not renew", facts{gossip: true, expired: true, patient: true}, Suspect},
		{"gossips but does not renew for too long", facts{gossip: true, expired: true}, Dead},
		{"dead stays dead before the next knock", facts{before: Dead, expired: true}, Dead},
	} {
		if got := decide(c.f); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// world is a cluster of one node whose fate the test sets.
type world struct {
	mu      sync.Mutex
	alive   bool
	renewed time.Time
	dial    error
	hints   chan struct{}
}

func (w *world) set(change func(*world)) {
	w.mu.Lock()
	change(w)
	w.mu.Unlock()
	w.hints <- struct{}{}
}

const lease = 3 * time.Second

func (w *world) judge() *Judge {
	return New(Config{
		Members: func() []Member {
			w.mu.Lock()
			defer w.mu.Unlock()
			return []Member{{ID: "id", Name: "node", Alive: w.alive, Address: netip.MustParseAddrPort("192.0.2.1:6443")}}
		},
		Subscribe: func() (<-chan struct{}, func()) { return w.hints, func() {} },
		Lease: func(name, id string) (time.Time, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.renewed.IsZero() {
				return time.Now(), false
			}
			return w.renewed, time.Since(w.renewed) > lease
		},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			w.mu.Lock()
			err := w.dial
			w.mu.Unlock()
			if err == nil {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, err
		},
	})
}

// until waits for a judgement and returns how long that took.
func until(t *testing.T, j *Judge, want State) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		changed := j.Changed()
		if j.State("node", "id") == want {
			return time.Since(start)
		}
		select {
		case <-changed:
		case <-time.After(time.Hour):
			t.Fatalf("still %v after an hour, want %v", j.State("node", "id"), want)
		}
	}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{alive: true, hints: make(chan struct{})}
		j := w.judge()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- j.Run(ctx) }()

		w.set(func(w *world) { w.alive, w.renewed = false, time.Now() })
		if took := until(t, j, Suspect); took > knockTimeout {
			t.Errorf("suspected after %s", took)
		}
		if took := until(t, j, Dead); took < lease-knockTimeout || took > lease+alarmed {
			t.Errorf("dead %s after the suspicion, with a lease of %s", took, lease)
		}
		if d := j.Detections(); d.Count != 1 || d.Last < lease || d.Last > lease+time.Second || d.Sum != d.Last {
			t.Errorf("found dead: %+v, with a lease of %s", d, lease)
		}
		w.set(func(w *world) { w.alive, w.renewed = true, time.Time{} })
		until(t, j, Alive)

		w.set(func(w *world) { w.alive, w.renewed, w.dial = false, time.Now(), syscall.ECONNREFUSED })
		if took := until(t, j, Refused); took > knockTimeout {
			t.Errorf("refused after %s", took)
		}
		time.Sleep(time.Hour) // of the bubble
		if got := j.State("node", "id"); got != Refused {
			t.Errorf("a host that refuses is %v after an hour", got)
		}
		w.set(func(w *world) { w.dial = errors.New("no route to host") })
		until(t, j, Dead)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
