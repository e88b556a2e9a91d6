// Package gossiptest is a lossy network in memory, for tests of whole clusters
// in one process: gossip's packets, and streams and calls for whatever else the
// nodes say to each other. It works in testing/synctest bubbles: all its waiting
// is by the clock or on channels.
//
// Memberlist's own MockTransport cannot model a dead peer: dialling one fails
// at once, and sending to one fails. Here a killed host is silent, as one that
// lost power: packets vanish, dialling waits for its timeout, and streams that
// were open stall. What a stream or a call carries is not lost with a packet:
// it arrives when the way is free again, some time later, as with TCP.
//
// The switch has no goroutines. A packet that is held up is a timer.
package gossiptest

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

// Switch connects Hosts. Its methods may be called at any time, from anywhere.
type Switch struct {
	mu     sync.Mutex
	rand   *rand.Rand
	hosts  map[netip.AddrPort]*Host
	group  map[netip.Addr]int // nil: no partition
	cut    map[[2]netip.Addr]bool
	killed map[netip.Addr]bool
	paused map[netip.Addr]bool
	loss   float64
	twice  float64
	base   time.Duration
	jitter time.Duration
	// changed is closed and replaced whenever the way between two hosts may
	// have become another.
	changed chan struct{}
	sent    Traffic
}

// Traffic counts what hosts gave the switch to carry.
type Traffic struct{ Packets, PacketBytes, Chunks, StreamBytes uint64 }

// New makes a Switch without faults. Its dice are the seed's.
func New(seed int64) *Switch {
	return &Switch{
		rand:  rand.New(rand.NewPCG(uint64(seed), 0)),
		hosts: map[netip.AddrPort]*Host{}, cut: map[[2]netip.Addr]bool{}, killed: map[netip.Addr]bool{},
		paused: map[netip.Addr]bool{}, changed: make(chan struct{}),
	}
}

// change makes a change and wakes all that wait for one.
func (s *Switch) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Traffic is what was sent so far.
func (s *Switch) Traffic() Traffic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// Host is one port of a machine on the Switch, a memberlist.Transport.
type Host struct {
	s       *Switch
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}
	ends    map[*stream]struct{} // this host's ends of open streams
}

// Host plugs in a host. Shutdown unplugs it: then its address refuses
// connections, as a machine does whose process ended, until the address is
// plugged in again.
func (s *Switch) Host(addr netip.AddrPort) *Host {
	h := &Host{
		s: s, addr: addr,
		packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 16), closed: make(chan struct{}),
		ends: map[*stream]struct{}{},
	}
	s.change(func() { s.hosts[addr] = h })
	return h
}

// Move gives a host another address, at once and without telling anybody. The
// far ends of its streams hear no more of it.
func (h *Host) Move(to netip.AddrPort) {
	var ends []*stream
	h.s.change(func() {
		if h.s.hosts[h.addr] == h {
			delete(h.s.hosts, h.addr)
		}
		h.addr = to
		h.s.hosts[to] = h
		for e := range h.ends {
			ends = append(ends, e)
		}
		clear(h.ends)
	})
	for _, e := range ends {
		e.in.strand()
		e.out.strand()
		e.in.fail(os.NewSyscallError("read", syscall.ETIMEDOUT))
	}
}

// Partition cuts the hosts of each group from all that are not in the same
// group. Hosts in no group are a group of their own. It replaces the partition
// before.
func (s *Switch) Partition(groups ...[]netip.Addr) {
	s.change(func() {
		s.group = map[netip.Addr]int{}
		for i, members := range groups {
			for _, a := range members {
				s.group[a] = i + 1
			}
		}
	})
}

// Heal undoes every Partition, Cut, Kill and Pause.
func (s *Switch) Heal() {
	s.change(func() {
		s.group = nil
		clear(s.cut)
		clear(s.killed)
		clear(s.paused)
	})
}

// Cut drops everything from one host to another, one way.
func (s *Switch) Cut(from, to netip.Addr) {
	s.change(func() { s.cut[[2]netip.Addr{from, to}] = true })
}

// Mend undoes Cut.
func (s *Switch) Mend(from, to netip.Addr) {
	s.change(func() { delete(s.cut, [2]netip.Addr{from, to}) })
}

// Kill silences a host. Its program goes on, and notices only that nobody
// answers.
func (s *Switch) Kill(a netip.Addr) { s.change(func() { s.killed[a] = true }) }

// Revive undoes Kill.
func (s *Switch) Revive(a netip.Addr) { s.change(func() { delete(s.killed, a) }) }

// Pause is what the others see of a host whose program is stopped: connections
// to it open, because its kernel lives, and nothing is answered. What it would
// have sent in packets is lost, what it reads and writes in streams waits. Its
// timers run on: a program that is truly stopped finds them all due at once.
func (s *Switch) Pause(a netip.Addr) { s.change(func() { s.paused[a] = true }) }

// Resume undoes Pause.
func (s *Switch) Resume(a netip.Addr) { s.change(func() { delete(s.paused, a) }) }

// Awake returns once a host is not paused, or done is closed.
func (s *Switch) Awake(a netip.Addr, done <-chan struct{}) {
	for {
		s.mu.Lock()
		paused, changed := s.paused[a], s.changed
		s.mu.Unlock()
		if !paused {
			return
		}
		select {
		case <-changed:
		case <-done:
			return
		}
	}
}

// Loss drops this fraction of all packets; streams are reliable.
func (s *Switch) Loss(fraction float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loss = fraction
}

// Twice delivers this fraction of all packets twice.
func (s *Switch) Twice(fraction float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.twice = fraction
}

// Delay holds up each packet, each piece of a stream and the opening of each, by
// base and up to jitter more.
func (s *Switch) Delay(base, jitter time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.base, s.jitter = base, jitter
}

// passes says whether something gets from one address to another; the caller
// holds the lock.
func (s *Switch) passes(from, to netip.Addr) bool {
	return !s.killed[from] && !s.killed[to] && !s.cut[[2]netip.Addr{from, to}] && (s.group == nil || s.group[from] == s.group[to])
}

// Reaches says whether what is sent from one host to another arrives now.
func (s *Switch) Reaches(from, to netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.passes(from, to)
}

func (s *Switch) delay() time.Duration {
	if s.jitter <= 0 {
		return s.base
	}
	return s.base + time.Duration(s.rand.Int64N(int64(s.jitter)))
}

// FinalAdvertiseAddr is the address given, or the host's own.
func (h *Host) FinalAdvertiseAddr(ip string, port int) (net.IP, int, error) {
	if ip != "" {
		return net.ParseIP(ip), port, nil
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	return h.addr.Addr().AsSlice(), int(h.addr.Port()), nil
}

// WriteTo sends a packet, which may get lost.
func (h *Host) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	now := time.Now()
	from := h.addr
	h.s.sent.Packets++
	h.s.sent.PacketBytes += uint64(len(b))
	if h.ended() || !h.s.passes(from.Addr(), to.Addr()) || h.s.paused[from.Addr()] || h.s.rand.Float64() < h.s.loss {
		return now, nil
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(from)}
	h.s.send(to, packet)
	if h.s.twice > 0 && h.s.rand.Float64() < h.s.twice {
		again := *packet
		again.Buf = append([]byte(nil), b...)
		h.s.send(to, &again)
	}
	return now, nil
}

// send delivers a packet when its delay has passed; the caller holds the lock.
func (s *Switch) send(to netip.AddrPort, packet *memberlist.Packet) {
	d := s.delay()
	if d <= 0 {
		s.deliver(to, packet)
		return
	}
	time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.deliver(to, packet)
	})
}

// deliver queues a packet; a full queue drops it, as a socket does.
func (s *Switch) deliver(to netip.AddrPort, packet *memberlist.Packet) {
	host := s.hosts[to]
	if host == nil || s.paused[to.Addr()] {
		return
	}
	packet.Timestamp = time.Now()
	select {
	case host.packets <- packet:
	default:
	}
}

// PacketCh yields the packets that arrived.
func (h *Host) PacketCh() <-chan *memberlist.Packet { return h.packets }

// DialTimeout opens a stream. A host that cannot be reached is silent until the
// timeout; an address that nobody has plugged in refuses.
func (h *Host) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	if h.ended() {
		return nil, opError("dial", to, net.ErrClosed)
	}
	h.s.mu.Lock()
	from := h.addr
	wait := h.s.delay()
	reachable := h.s.passes(from.Addr(), to.Addr()) && h.s.passes(to.Addr(), from.Addr()) && wait < timeout
	if !reachable {
		wait = timeout
	}
	h.s.mu.Unlock()
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-h.closed:
			return nil, opError("dial", to, net.ErrClosed)
		}
	}
	if !reachable {
		return nil, opError("dial", to, os.ErrDeadlineExceeded)
	}
	h.s.mu.Lock()
	host := h.s.hosts[to]
	h.s.mu.Unlock()
	if host == nil {
		return nil, opError("dial", to, os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	near, far := h.s.connect(h, host, from, to)
	select {
	case host.streams <- far:
		return near, nil
	case <-host.closed:
	default: // the queue is full
	}
	near.Close()
	far.Close()
	return nil, opError("dial", to, os.NewSyscallError("connect", syscall.ECONNREFUSED))
}

func opError(op string, to netip.AddrPort, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
}

// StreamCh yields the streams that were opened to this host.
func (h *Host) StreamCh() <-chan net.Conn { return h.streams }

// Shutdown unplugs the host and resets its streams, as the end of a process
// does.
func (h *Host) Shutdown() error {
	var ends []*stream
	already := false
	h.s.change(func() {
		if h.s.hosts[h.addr] == h {
			delete(h.s.hosts, h.addr)
		}
		select {
		case <-h.closed:
			already = true
			return
		default:
			close(h.closed)
		}
		for e := range h.ends {
			ends = append(ends, e)
		}
	})
	if already {
		return errors.New("the host was unplugged before")
	}
	for _, e := range ends {
		e.reset()
	}
	for {
		select {
		case conn := <-h.streams:
			conn.Close()
		default:
			return nil
		}
	}
}

// ended says whether Shutdown was called: what a process that is gone would
// still send, is not sent.
func (h *Host) ended() bool {
	select {
	case <-h.closed:
		return true
	default:
		return false
	}
}

// Carry takes one message of a connection from this host to an address, and
// returns when it is there, or could not be delivered. While the way is cut it
// waits, as TCP does, for as long as ctx.
func (h *Host) Carry(ctx context.Context, to netip.AddrPort) error {
	if h.ended() {
		return opError("write", to, net.ErrClosed)
	}
	var cut time.Time
	for {
		h.s.mu.Lock()
		from, changed := h.addr, h.s.changed
		passes := h.s.passes(from.Addr(), to.Addr()) && !h.s.paused[from.Addr()]
		wait := h.s.delay()
		if passes && !cut.IsZero() {
			wait += h.s.again(cut)
		}
		host := h.s.hosts[to]
		h.s.mu.Unlock()
		if !passes {
			if cut.IsZero() {
				cut = time.Now()
			}
			select {
			case <-changed:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
		}
		h.s.mu.Lock()
		still := h.s.passes(from.Addr(), to.Addr())
		h.s.mu.Unlock()
		switch {
		case !still:
			cut = time.Now()
		case host == nil:
			return opError("dial", to, os.NewSyscallError("connect", syscall.ECONNREFUSED))
		default:
			return nil
		}
	}
}

// again is how long after a cut ended something is sent again: TCP waits longer
// each time. The caller holds the lock.
func (s *Switch) again(cut time.Time) time.Duration {
	most := min(time.Since(cut), mostBackoff)
	if most <= 0 {
		return 0
	}
	return time.Duration(s.rand.Int64N(int64(most)))
}

const mostBackoff = 3 * time.Second
