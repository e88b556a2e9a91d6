package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// socket is a memberlist.Transport on UDP and TCP. Unlike memberlist's own it
// reads packets into one buffer, and does not ask a resolver about addresses.
type socket struct {
	udp     *net.UDPConn
	tcp     *net.TCPListener
	packets chan *memberlist.Packet
	streams chan net.Conn
	closed  chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
	log     *slog.Logger
}

// listenSocket binds both sockets to the same port; with port 0 to one that is
// free in both.
func listenSocket(bind netip.AddrPort, log *slog.Logger) (*socket, error) {
	for attempt := 0; ; attempt++ {
		s, err := bindSocket(bind, log)
		if err == nil || bind.Port() != 0 || attempt == 10 {
			return s, err
		}
	}
}

func bindSocket(bind netip.AddrPort, log *slog.Logger) (*socket, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(bind))
	if err != nil {
		return nil, fmt.Errorf("open the gossip port: %w", err)
	}
	bound := netip.AddrPortFrom(bind.Addr(), uint16(tcp.Addr().(*net.TCPAddr).Port))
	udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound))
	if err != nil {
		tcp.Close()
		return nil, fmt.Errorf("open the gossip port: %w", err)
	}
	return &socket{
		udp: udp, tcp: tcp, log: log,
		packets: make(chan *memberlist.Packet, 64), streams: make(chan net.Conn), closed: make(chan struct{}),
	}, nil
}

func (s *socket) port() uint16 { return uint16(s.tcp.Addr().(*net.TCPAddr).Port) }

// start reads until Shutdown.
func (s *socket) start() {
	s.wg.Go(s.readPackets)
	s.wg.Go(s.acceptStreams)
}

func (s *socket) readPackets() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if s.pauseAfter(err) {
				continue
			}
			return
		}
		if n == 0 {
			continue
		}
		packet := &memberlist.Packet{
			Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now(),
		}
		select {
		case s.packets <- packet:
		case <-s.closed:
			return
		}
	}
}

func (s *socket) acceptStreams() {
	for {
		conn, err := s.tcp.Accept()
		if err != nil {
			if s.pauseAfter(err) {
				continue
			}
			return
		}
		select {
		case s.streams <- conn:
		case <-s.closed:
			conn.Close()
			return
		}
	}
}

// pauseAfter says whether reading may go on after an error. What passes (no
// file descriptors, an ICMP answer to something sent) gets a pause.
func (s *socket) pauseAfter(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	s.log.Debug("the gossip port fails", "err", err)
	timer := time.NewTimer(50 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.closed:
		return false
	}
}

func (s *socket) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return nil, 0, errors.New("the pool says what is advertised") // view does
}

func (s *socket) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = s.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

func (s *socket) PacketCh() <-chan *memberlist.Packet { return s.packets }

func (s *socket) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", addr, timeout)
}

func (s *socket) StreamCh() <-chan net.Conn { return s.streams }

func (s *socket) Shutdown() error {
	s.once.Do(func() {
		close(s.closed)
		s.udp.Close()
		s.tcp.Close()
	})
	s.wg.Wait()
	return nil
}

// view is a transport as one instance of memberlist sees it: it advertises one
// address, its packets pass the tap, and its end does not close the sockets,
// which the next instance goes on using.
type view struct {
	memberlist.Transport
	advertise netip.AddrPort
	tap       func(packet []byte)
}

func (v *view) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return v.advertise.Addr().Unmap().AsSlice(), int(v.advertise.Port()), nil
}

func (v *view) WriteTo(b []byte, addr string) (time.Time, error) {
	v.tap(b)
	return v.Transport.WriteTo(b, addr)
}

func (v *view) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	return v.WriteTo(b, to.Addr)
}

func (v *view) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return v.DialTimeout(to.Addr, timeout)
}

func (v *view) Shutdown() error { return nil }
