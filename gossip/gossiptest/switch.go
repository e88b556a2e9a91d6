// Package gossiptest is a lossy network in memory, for tests of whole clusters
// in one process. It works in testing/synctest bubbles: all its waiting is by
// the clock or on channels.
//
// Memberlist's own MockTransport cannot model a dead peer: dialling one fails
// at once, and sending to one fails. Here a killed host is silent, as one that
// lost power: packets vanish, dialling waits for its timeout, and streams that
// were open stall.
package gossiptest

import (
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
	loss   float64
	base   time.Duration
	jitter time.Duration
}

// New makes a Switch without faults. Its dice are the seed's.
func New(seed int64) *Switch {
	return &Switch{
		rand:  rand.New(rand.NewPCG(uint64(seed), 0)),
		hosts: map[netip.AddrPort]*Host{}, cut: map[[2]netip.Addr]bool{}, killed: map[netip.Addr]bool{},
	}
}

// Host is one port of a machine on the Switch, a memberlist.Transport.
type Host struct {
	s       *Switch
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}
}

// Host plugs in a host. Shutdown unplugs it: then its address refuses
// connections, as a machine does whose process ended, until the address is
// plugged in again.
func (s *Switch) Host(addr netip.AddrPort) *Host {
	h := &Host{
		s: s, addr: addr,
		packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 16), closed: make(chan struct{}),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts[addr] = h
	return h
}

// Move gives a host another address, at once and without telling anybody.
func (h *Host) Move(to netip.AddrPort) {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.hosts[h.addr] == h {
		delete(h.s.hosts, h.addr)
	}
	h.addr = to
	h.s.hosts[to] = h
}

// Partition cuts the hosts of each group from all that are not in the same
// group. Hosts in no group are a group of their own. It replaces the partition
// before.
func (s *Switch) Partition(groups ...[]netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group = map[netip.Addr]int{}
	for i, members := range groups {
		for _, a := range members {
			s.group[a] = i + 1
		}
	}
}

// Heal undoes every Partition, Cut and Kill.
func (s *Switch) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group = nil
	clear(s.cut)
	clear(s.killed)
}

// Cut drops everything from one host to another, one way.
func (s *Switch) Cut(from, to netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[[2]netip.Addr{from, to}] = true
}

// Kill silences a host. Its program goes on, and notices only that nobody
// answers.
func (s *Switch) Kill(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed[a] = true
}

// Revive undoes Kill.
func (s *Switch) Revive(a netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.killed, a)
}

// Loss drops this fraction of all packets; streams are reliable.
func (s *Switch) Loss(fraction float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loss = fraction
}

// Delay holds up each packet, and the opening of each stream, by base and up to
// jitter more.
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

func (s *Switch) connected(from, to netip.Addr) bool {
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
	if !h.s.passes(from.Addr(), to.Addr()) || h.s.rand.Float64() < h.s.loss {
		return now, nil
	}
	packet := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(from)}
	if d := h.s.delay(); d > 0 {
		time.AfterFunc(d, func() {
			h.s.mu.Lock()
			defer h.s.mu.Unlock()
			h.s.deliver(to, packet)
		})
	} else {
		h.s.deliver(to, packet)
	}
	return now, nil
}

// deliver queues a packet; a full queue drops it, as a socket does.
func (s *Switch) deliver(to netip.AddrPort, packet *memberlist.Packet) {
	host := s.hosts[to]
	if host == nil {
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
	near, far := net.Pipe()
	select {
	case host.streams <- &stream{Conn: far, s: h.s, local: to, remote: from}:
		return &stream{Conn: near, s: h.s, local: from, remote: to}, nil
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

// Shutdown unplugs the host.
func (h *Host) Shutdown() error {
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	if h.s.hosts[h.addr] == h {
		delete(h.s.hosts, h.addr)
	}
	select {
	case <-h.closed:
		return errors.New("the host was unplugged before")
	default:
		close(h.closed)
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

// stream is a pipe that swallows what is written while the hosts are cut apart.
type stream struct {
	net.Conn
	s             *Switch
	local, remote netip.AddrPort
}

func (c *stream) Write(b []byte) (int, error) {
	if !c.s.connected(c.local.Addr(), c.remote.Addr()) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *stream) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }
