package gossiptest

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how much one way of a stream holds that nobody has read.
const window = 1 << 20

// stream is one end of a connection. What is written arrives in order, after
// the switch's delay; what is written while the way is cut arrives after it is
// free again.
type stream struct {
	s             *Switch
	host          *Host
	local, remote netip.AddrPort
	in, out       *half
	once          sync.Once
}

// half is one way of a stream, from its writer to its reader.
type half struct {
	s        *Switch
	from, to netip.Addr

	mu       sync.Mutex
	queue    []chunk
	held     int       // bytes in queue
	cut      time.Time // since when the head finds the way cut; zero: it does not
	err      error     // what its reader gets at once, nil while all is well
	shut     bool      // its writer closed the stream
	deaf     bool      // its reader did: a writer is told once the way is free
	stranded bool      // one end has another address: nothing arrives any more
	deadline [2]time.Time
	moved    chan struct{} // closed and replaced when anything above changes
}

// The two deadlines of a half.
const (
	reading = iota
	writing
)

// chunk is what one Write wrote, or the end of the stream.
type chunk struct {
	data []byte
	end  error // not nil: no data, the reader gets this
	due  time.Time
}

// connect makes a stream between two hosts.
func (s *Switch) connect(a, b *Host, from, to netip.AddrPort) (near, far *stream) {
	there := &half{s: s, from: from.Addr(), to: to.Addr(), moved: make(chan struct{})}
	back := &half{s: s, from: to.Addr(), to: from.Addr(), moved: make(chan struct{})}
	near = &stream{s: s, host: a, local: from, remote: to, in: back, out: there}
	far = &stream{s: s, host: b, local: to, remote: from, in: there, out: back}
	s.mu.Lock()
	defer s.mu.Unlock()
	a.ends[near], b.ends[far] = struct{}{}, struct{}{}
	return near, far
}

// update changes a half and wakes who waits for that.
func (h *half) update(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
	close(h.moved)
	h.moved = make(chan struct{})
}

// fail ends reading from a half at once.
func (h *half) fail(err error) {
	h.update(func() {
		if h.err == nil {
			h.err, h.queue, h.held, h.deaf = err, nil, 0, true
		}
	})
}

// strand lets nothing arrive any more.
func (h *half) strand() { h.update(func() { h.stranded = true }) }

// put queues a chunk.
func (h *half) put(c chunk) {
	h.s.mu.Lock()
	c.due = time.Now().Add(h.s.delay())
	h.s.sent.Chunks++
	h.s.sent.StreamBytes += uint64(len(c.data))
	h.s.mu.Unlock()
	h.update(func() {
		if n := len(h.queue); n > 0 && c.due.Before(h.queue[n-1].due) {
			c.due = h.queue[n-1].due // in order
		}
		h.queue = append(h.queue, c)
		h.held += len(c.data)
	})
}

// wait waits for a time, a change of this half or of the switch, or a deadline.
func wait(until time.Time, changes [2]<-chan struct{}) {
	var due <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-due:
	case <-changes[0]:
	case <-changes[1]:
	}
}

func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func expired(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// way says whether something arrives now at the end of this half, and returns
// the channel that is closed when that may change.
func (h *half) way(asleep netip.Addr) (free, paused bool, changed <-chan struct{}) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.s.passes(h.from, h.to), h.s.paused[asleep], h.s.changed
}

// Read waits for the first chunk to be due and the way to be free.
func (c *stream) Read(b []byte) (int, error) {
	h := c.in
	for {
		free, paused, changed := h.way(h.to)
		h.mu.Lock()
		if expired(h.deadline[reading]) {
			h.mu.Unlock()
			return 0, c.failed("read", os.ErrDeadlineExceeded)
		}
		if h.err != nil {
			defer h.mu.Unlock()
			return 0, c.failed("read", h.err)
		}
		until := h.deadline[reading]
		switches := [2]<-chan struct{}{h.moved}
		switch {
		case paused:
			switches[1] = changed
		case len(h.queue) == 0, h.stranded:
		case time.Now().Before(h.queue[0].due):
			until = sooner(until, h.queue[0].due)
		case !free:
			if h.cut.IsZero() {
				h.cut = h.queue[0].due
			}
			switches[1] = changed
		case !h.cut.IsZero():
			h.s.mu.Lock()
			h.queue[0].due = time.Now().Add(h.s.again(h.cut))
			h.s.mu.Unlock()
			h.cut = time.Time{}
			h.mu.Unlock()
			continue
		default:
			defer h.mu.Unlock()
			return c.take(b)
		}
		h.mu.Unlock()
		wait(until, switches)
	}
}

// take reads what has arrived; the caller holds the half's lock.
func (c *stream) take(b []byte) (n int, err error) {
	h := c.in
	now := time.Now()
	for n < len(b) && len(h.queue) > 0 && !now.Before(h.queue[0].due) {
		first := &h.queue[0]
		if first.end != nil {
			if n > 0 {
				break
			}
			if first.end == io.EOF {
				return 0, io.EOF // again and again
			}
			h.err = first.end
			return 0, c.failed("read", first.end)
		}
		m := copy(b[n:], first.data)
		n += m
		h.held -= m
		if first.data = first.data[m:]; len(first.data) == 0 {
			h.queue = h.queue[1:]
		}
	}
	if n > 0 && h.held+n >= window { // a writer may wait for room
		close(h.moved)
		h.moved = make(chan struct{})
	}
	return n, nil
}

// Write returns as soon as there is room, whether or not the way is free.
func (c *stream) Write(b []byte) (int, error) {
	h := c.out
	for {
		free, paused, changed := h.way(h.from)
		h.mu.Lock()
		full := h.held >= window && !h.deaf
		var err error
		switch {
		case h.shut:
			err = net.ErrClosed
		case expired(h.deadline[writing]):
			err = os.ErrDeadlineExceeded
		case h.deaf && free && !h.stranded && !paused:
			err = os.NewSyscallError("write", syscall.EPIPE)
		}
		until, switches, deaf := h.deadline[writing], [2]<-chan struct{}{h.moved, changed}, h.deaf
		h.mu.Unlock()
		switch {
		case err != nil:
			return 0, c.failed("write", err)
		case paused, full:
			wait(until, switches)
			continue
		case !deaf:
			h.put(chunk{data: append([]byte(nil), b...)})
		}
		return len(b), nil
	}
}

// Close ends the stream in both directions: what was written still arrives.
func (c *stream) Close() error { c.end(io.EOF); return nil }

// reset ends the stream: what was not read is gone.
func (c *stream) reset() { c.end(os.NewSyscallError("read", syscall.ECONNRESET)) }

func (c *stream) end(why error) {
	c.once.Do(func() {
		c.s.mu.Lock()
		delete(c.host.ends, c)
		c.s.mu.Unlock()
		c.in.fail(net.ErrClosed)
		c.out.put(chunk{end: why})
		c.out.update(func() { c.out.shut = true })
	})
}

func (c *stream) failed(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

func (c *stream) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *stream) SetDeadline(t time.Time) error {
	c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *stream) SetReadDeadline(t time.Time) error {
	c.in.update(func() { c.in.deadline[reading] = t })
	return nil
}

func (c *stream) SetWriteDeadline(t time.Time) error {
	c.out.update(func() { c.out.deadline[writing] = t })
	return nil
}
